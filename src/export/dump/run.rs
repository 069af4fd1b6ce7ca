//! The file that says that a run of the program is alive, and the last dump of a run that ended without a word.
//!
//! Each run has a file that it keeps locked. Process ids repeat in containers, but the kernel gives the lock back when the
//! process has ended. A run that ends by itself removes its file; one that finds the unlocked file of another knows
//! that this one was killed or has crashed. The text of a failed allocation goes into the file too, because it is open.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, new_file, reason_of, run_of_text};
use crate::analyze::dump_counts::PreviousRun;
use crate::analyze::snapshot::Snapshot;
use crate::analyze::symbols::Site;
use crate::record::failure;
use crate::record::file_lock;
use crate::record::fork::closed_in_child::ClosedInChild;

/// Longest file of a run that is read: its first line, and the text of a failure.
const LONGEST: u64 = 64 << 10;

/// First line of the file of a run.
#[derive(Debug, Deserialize, Serialize)]
struct FirstLine {
    program: String,
    process: u32,
}

/// File of this run, locked.
#[derive(Debug)]
pub(super) struct RunFile {
    path: PathBuf,
    /// Never closed: a thread may be about to write the text of a failure to it.
    _file: Arc<ManuallyDrop<ClosedInChild<File>>>,
}

impl RunFile {
    /// Creates and locks the file of a run, and makes it the one that gets the text of a failure.
    pub(super) fn create(directory: &Directory, program: &str, process: u32) -> io::Result<RunFile> {
        let path = directory.path().join(format!("heap-{}-run.txt", directory.run));
        // A process of the same id that began in the same second is no longer there.
        let _ = fs::remove_file(&path);
        let file = ClosedInChild::new(|| new_file(&path, true))?;
        file_lock::try_lock(&file)?;
        let line = serde_json::to_string(&FirstLine { program: program.to_owned(), process })?;
        (&*file).write_all(format!("{line}\n").as_bytes())?;
        failure::set_file(Some(&file));
        Ok(RunFile { path, _file: Arc::new(ManuallyDrop::new(file)) })
    }

    /// Removes the file: the run ends by itself. One with a text of a failure is kept under the name of a dump.
    pub(super) fn remove(&self) {
        failure::forget();
        let _ = settle(&self.path);
    }
}

/// Removes the file of a run that has ended, or keeps it as the text of a failure if it has one.
fn settle(path: &Path) -> io::Result<()> {
    let text = read(path)?;
    match text.split_once('\n') {
        Some((_, failure)) if !failure.is_empty() => {
            let name = path.to_string_lossy().replace("-run.txt", "-failure.txt");
            fs::rename(path, name)
        }
        _ => fs::remove_file(path),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Finds the last dump of the runs of this program that have ended without a word, and settles their files.
pub(super) fn previous(directory: &Path, program: &str) -> Option<PreviousRun> {
    let mut found: Option<PreviousRun> = None;
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let name = entry.file_name();
        let Some(run) = name.to_str().and_then(|name| run_of_text(name, "run")) else { continue };
        let path = entry.path();
        let Ok(text) = read(&path) else { continue };
        let (first, failure) = text.split_once('\n').unwrap_or((&text, ""));
        let is_of_program =
            serde_json::from_str(first).is_ok_and(|first: FirstLine| first.program == program);
        let is_over = || File::open(&path).is_ok_and(|file| file_lock::try_lock(&file).unwrap_or(false));
        if !is_of_program || !is_over() {
            continue;
        }
        let dump = last_dump(directory, run).or_else(|| from_text(failure, run));
        // The names begin with the time, of as many digits until the year 2286.
        if let Some(dump) = dump
            && found.as_ref().is_none_or(|before| before.dump < dump.dump)
        {
            found = Some(dump);
        }
        let _ = settle(&path);
        let _ = fs::remove_file(directory.join(format!(".heap-{run}.tmp")));
    }
    found
}

/// Reads the last dump of a run: one of its process, from its time on, that says so itself.
fn last_dump(directory: &Path, run: &str) -> Option<PreviousRun> {
    #[derive(Deserialize)]
    struct OfRun {
        run: Option<String>,
    }
    let process = run.rsplit('-').next()?;
    let files = Directory::list(directory).ok()?;
    for file in files.iter().rev() {
        let Some(reason) = reason_of(&file.name) else { continue };
        if file.name.split('-').nth(2) != Some(process) {
            continue;
        }
        let path = directory.join(&file.name);
        let is_of_run = || -> Option<bool> {
            let head: OfRun = serde_json::from_reader(io::BufReader::new(File::open(&path).ok()?)).ok()?;
            Some(head.run.as_deref() == Some(run))
        };
        if is_of_run() != Some(true) {
            continue;
        }
        let Ok(snapshot) = Snapshot::load(&path) else { continue };
        let (function, site) = largest_site(&snapshot)?;
        return Some(PreviousRun { reason: reason.word().into(), function, site, dump: file.name.clone() });
    }
    None
}

/// Returns function and id of the site that holds most.
fn largest_site(snapshot: &Snapshot) -> Option<(String, String)> {
    let mut sites: HashMap<u64, (u64, Site)> = HashMap::new();
    for trace in snapshot.traces().iter().filter(|trace| trace.domain == 0) {
        let site = Site::of_traceback(&trace.traceback);
        sites.entry(site.id).or_insert((0, site)).0 += trace.size;
    }
    let (_, site) = sites.into_values().max_by_key(|(size, site)| (*size, site.id))?;
    Some((site.function_label().into_owned(), site.label()))
}

/// Reads the first site of the text of a failure, `  SIZE  FUNCTION  FILE:LINE  site=ID`.
fn from_text(text: &str, run: &str) -> Option<PreviousRun> {
    let first = text.split_once("\nlargest:\n")?.1.lines().next()?;
    let mut parts = first.trim_start().split("  ").skip(1);
    let function = parts.next()?.to_owned();
    let site = parts.find_map(|part| part.strip_prefix("site=")).unwrap_or_default().to_owned();
    let dump = format!("heap-{run}-failure.txt");
    Some(PreviousRun { reason: "failure".into(), function, site, dump })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_failure_names_its_first_site() {
        let text = "heapgauge: an allocation of 64 bytes failed\nheapgauge: 3.0 MiB live in 4 blocks\nlargest:\n  \
                    2.0 MiB  shop::Cache::insert  src/cache.rs:42  site=00000000000000ab\n  1.0 MiB  libc.so.6+0x10\n";
        let run = from_text(text, "100-7").unwrap();
        assert_eq!((run.function.as_str(), run.site.as_str()), ("shop::Cache::insert", "00000000000000ab"));
        assert_eq!((run.reason.as_str(), run.dump.as_str()), ("failure", "heap-100-7-failure.txt"));
        assert_eq!(from_text("", "100-7"), None);
    }

    #[test]
    fn a_run_that_was_killed_is_known_by_its_lock_and_its_dump() {
        let path = std::env::temp_dir().join(format!("heapgauge-runs-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
        let dump = |run: &str, function: &str| {
            format!(
                r#"{{"version":1,"taken_at":1.0,"traceback_limit":1,"reason":"limit","run":"{run}","traces":[{{"domain":0,
                "size":10,"count":1,"total_frames":1,"frames":[{{"function":"{function}","file":"a.rs","line":1}}]}}]}}"#
            )
        };
        write("heap-100-7-run.txt", "{\"program\":\"shop\",\"process\":7}\n");
        write("heap-150-7-limit.json", &dump("100-7", "shop::first"));
        write("heap-160-7-limit.json", &dump("100-7", "shop::last"));
        // The same process id in another container.
        write("heap-170-7-limit.json", &dump("99-7", "shop::other"));
        write("heap-100-8-run.txt", "{\"program\":\"other\",\"process\":8}\n");
        let own = Directory::new(&path, 200, 9);
        let file = RunFile::create(&own, "shop", 9).unwrap();
        let run = previous(&path, "shop").unwrap();
        assert_eq!((run.function.as_str(), run.dump.as_str()), ("shop::last", "heap-160-7-limit.json"));
        assert!(!path.join("heap-100-7-run.txt").exists() && path.join("heap-100-8-run.txt").exists());
        assert_eq!(previous(&path, "shop"), None, "this run is alive, and the other was seen");
        file.remove();
        assert!(!path.join("heap-200-9-run.txt").exists());
        fs::remove_dir_all(path).unwrap();
    }
}
