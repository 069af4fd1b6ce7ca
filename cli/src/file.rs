//! Snapshot files → a page, with names from the binary or its debug file.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use heapgauge::Snapshot;
use heapgauge::http::SnapshotPage;
use serde::Deserialize;

use crate::arguments::Files;
use crate::failure::Failure;
use crate::progress;
use crate::text::{bytes, whole};

/// Members that only a dump has.
#[derive(Default, Deserialize)]
pub struct Dump {
    /// File name of the program.
    pub program: Option<String>,
    pub memory_limit: Option<u64>,
    pub memory_limit_usage: Option<u64>,
    pub rest: Option<Rest>,
}

/// Stacks that found no room in a dump.
#[derive(Deserialize)]
pub struct Rest {
    pub size: u64,
    pub count: u64,
}

/// Page of a file, the rest of a dump, and lines about its names.
pub struct Loaded {
    pub page: SnapshotPage,
    pub dump: Dump,
    pub notes: Vec<String>,
}

/// Reads a snapshot.
pub fn read(path: &Path) -> Result<Snapshot, Failure> {
    // The system's own words for it would come from the first read: "Is a directory (os error 21)".
    let length = match std::fs::metadata(path) {
        Ok(about) if about.is_dir() => {
            return Err(Failure::Other(format!(
                "{} is a directory, allowed is a snapshot file: a dump of HEAPGAUGE_DUMP_DIR, or what Snapshot::save writes",
                path.display()
            )));
        }
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    let what = format!("reading {} ({})", path.display(), bytes(length as f64));
    let bytes_read = AtomicU64::new(0);
    // A file that is read in one piece is parsed afterwards, which no part tells of.
    let part = || {
        let read = bytes_read.load(Ordering::Relaxed);
        (read < length).then(|| read as f64 / length as f64)
    };
    Ok(progress::with_part(&what, &part, || Snapshot::load_watched(path, &bytes_read))?)
}

/// Reads a snapshot, the one it is compared with, and names.
pub fn load(files: &Files) -> Result<Loaded, Failure> {
    let mut notes = Vec::new();
    let mut snapshot = read(&files.file)?;
    let mut old = files.since.as_deref().map(read).transpose()?;
    let dump = match snapshot.reason() {
        // It holds a thousand stacks at most. It may have been replaced since: then it has the members of another.
        Some(_) => {
            File::open(&files.file).ok().and_then(|file| serde_json::from_reader(BufReader::new(file)).ok())
        }
        None => None,
    };
    let sources = [&files.debug_file, &files.binary];
    for (at, path) in sources.into_iter().enumerate() {
        let Some(path) = path else { continue };
        let has_other = at == 1 && files.debug_file.is_some();
        snapshot = named(&snapshot, path, has_other, &mut notes)?;
        if let Some(older) = &old {
            old = Some(named(older, path, true, &mut Vec::new())?);
        }
    }
    let name = files.file.file_name().unwrap_or(files.file.as_os_str()).to_string_lossy().into_owned();
    let what = format!("adding up {}", files.file.display());
    let page = progress::during(&what, || SnapshotPage::new(&snapshot, &name, old.as_ref()));
    Ok(Loaded { page, dump: dump.unwrap_or_default(), notes })
}

/// Names frames from a file, and notes how many. `has_other`: names were read from another file before.
fn named(
    snapshot: &Snapshot,
    path: &Path,
    has_other: bool,
    notes: &mut Vec<String>,
) -> Result<Snapshot, Failure> {
    let what = format!("reading names from {}", path.display());
    let named = progress::during(&what, || snapshot.named_from(path))?;
    let file = path.display();
    if let (Some(of_file), Some(of_dump)) = (&named.build_id, snapshot.build_id())
        && of_file != of_dump
    {
        notes.push(format!("{file} is of another build, its names may be wrong: build id {of_file}, the snapshot's is {of_dump}"));
    }
    match &named.module {
        _ if has_other => {}
        _ if !named.has_names => {
            notes.push(format!("{file} holds neither line tables nor symbols: it was stripped"))
        }
        None => notes.push(format!("{file} names nothing: every frame has a name")),
        Some(module) => notes.push(format!(
            "{} of {} addresses of {module} named from {file}",
            whole(named.named as u64),
            whole(named.addresses as u64)
        )),
    }
    Ok(named.snapshot)
}
