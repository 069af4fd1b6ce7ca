//! The directory of dumps: new files, the names of those that are there, and which of them have to go.
//!
//! A dump is written to a hidden file and renamed, so that there are whole ones only, whenever the process ends. Files
//! are created anew, never through a link: the directory may be writable for everybody. What the kernel has been handed
//! outlives the process, so nothing is synchronised.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::analyze::dump_counts::DumpReason;

/// Room for a file's name.
const LONGEST_NAME: usize = 96;
/// Longest time by which names may be ahead of the clock, in seconds: a program may ask for dumps without end.
const MOST_AHEAD: u64 = 60;

/// File in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DumpFile {
    pub name: String,
    pub bytes: u64,
    pub modified: SystemTime,
}

impl DumpFile {
    /// Returns the reason in its name.
    #[cfg(feature = "http")]
    pub(crate) fn reason(&self) -> &'static str {
        reason_of(&self.name).unwrap_or(DumpReason::Failure).word()
    }
}

/// Open directory of dumps.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Name of this run: the time at which it began in seconds since 1970, and the process id.
    pub(super) run: String,
    /// File of a dump that is being written, and its later name.
    hidden: PathBuf,
    shown: PathBuf,
    name: String,
    /// Second in the name of the last dump of each reason.
    last: [u64; DumpReason::ALL.len()],
    /// True if the files lie in memory, and count against the same limit.
    pub(super) is_in_memory: bool,
}

/// Dump that is being written.
pub(super) struct NewDump<'a> {
    file: File,
    directory: &'a mut Directory,
    left: u64,
}

impl Directory {
    pub(super) fn new(path: &Path, began: u64, process: u32) -> Directory {
        let run = format!("{began}-{process}");
        let hidden = path.join(format!(".heap-{run}.tmp"));
        let mut shown = PathBuf::with_capacity(hidden.as_os_str().len() + LONGEST_NAME);
        shown.push(&hidden);
        let name = String::with_capacity(LONGEST_NAME);
        let is_in_memory = is_in_memory(path);
        Directory { path: path.to_owned(), run, hidden, shown, name, last: Default::default(), is_in_memory }
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the last dump.
    pub(super) fn last_name(&self) -> &str {
        &self.name
    }

    /// Begins a dump of at most so many bytes. Allocates nothing where paths are shorter than 384 bytes.
    pub(super) fn create(&mut self, most: u64) -> io::Result<NewDump<'_>> {
        // An earlier dump that could not be finished may have left its file.
        let _ = fs::remove_file(&self.hidden);
        let file = new_file(&self.hidden, false)?;
        Ok(NewDump { file, directory: self, left: most })
    }

    /// Lists the dumps and the texts of failures, oldest first. Other files are left out.
    pub(super) fn list(path: &Path) -> io::Result<Vec<DumpFile>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(data) = entry.metadata() else { continue };
            if data.is_file() && is_dump(&name) {
                let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push(DumpFile { name, bytes: data.len(), modified });
            }
        }
        files.sort_by(|one, other| (one.modified, &one.name).cmp(&(other.modified, &other.name)));
        Ok(files)
    }

    /// Removes the oldest dumps beyond `keep` of each reason, and beyond `most` bytes in all but the newest.
    pub(super) fn prune(&self, keep: usize, most: u64) -> io::Result<()> {
        let files = Directory::list(&self.path)?;
        // The last is for texts of failures.
        let (mut of_reason, mut bytes) = ([0_usize; DumpReason::ALL.len() + 1], 0_u64);
        for (at, file) in files.iter().rev().enumerate() {
            let kind = reason_of(&file.name).map_or(DumpReason::ALL.len(), |reason| reason as usize);
            of_reason[kind] += 1;
            let number = of_reason[kind];
            bytes += file.bytes;
            if number > keep || (bytes > most && at > 0) {
                // Another process may have been faster.
                let _ = fs::remove_file(self.path.join(&file.name));
                bytes -= file.bytes;
            }
        }
        Ok(())
    }
}

impl NewDump<'_> {
    /// Returns the bytes that may still be written.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        self.file.write_all(bytes)
    }

    /// Gives the dump its [name](Directory::last_name): that of the next second where another one has been written in this one.
    pub(super) fn finish(self, reason: DumpReason, now: u64) -> io::Result<()> {
        let Directory { run, hidden, shown, name, last, .. } = self.directory;
        let process = run.rsplit('-').next().unwrap_or_default();
        let second = now.max((last[reason as usize] + 1).min(now + MOST_AHEAD));
        last[reason as usize] = second;
        name.clear();
        let _ = write!(name, "heap-{second}-{process}-{}.json", reason.word());
        shown.set_file_name(&*name);
        fs::rename(hidden, shown)
    }

    /// Takes back what was written.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.directory.hidden);
    }
}

/// Creates a file that does not exist, readable for its owner and group.
pub(super) fn new_file(path: &Path, appends: bool) -> io::Result<File> {
    let mut options = File::options();
    options.create_new(true);
    if appends {
        options.append(true)
    } else {
        options.write(true)
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o640).custom_flags(libc::O_NOFOLLOW);
    }
    options.open(path)
}

/// Opens a file of the directory to read it, if its name is that of a dump: never through a link, and no other file.
#[cfg(any(feature = "http", test))]
pub(super) fn open(directory: &Path, name: &str) -> io::Result<File> {
    if !is_dump(name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(directory.join(name))?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Returns whether a file of this name is a dump or the text of a failure.
fn is_dump(name: &str) -> bool {
    reason_of(name).is_some() || run_of_text(name, "failure").is_some()
}

/// Returns the reason in the name of a dump: `heap-SECONDS-PROCESS-REASON.json`.
pub(super) fn reason_of(name: &str) -> Option<DumpReason> {
    let (run, reason) = name.strip_prefix("heap-")?.strip_suffix(".json")?.rsplit_once('-')?;
    let reason = DumpReason::ALL.into_iter().find(|known| known.word() == reason)?;
    is_run(run).then_some(reason)
}

/// Returns the run in the name of a text: `heap-SECONDS-PROCESS-KIND.txt`.
pub(super) fn run_of_text<'a>(name: &'a str, kind: &str) -> Option<&'a str> {
    let run = name.strip_prefix("heap-")?.strip_suffix(".txt")?.strip_suffix(kind)?.strip_suffix('-')?;
    is_run(run).then_some(run)
}

fn is_run(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-').is_some_and(|(seconds, process)| is_number(seconds) && is_number(process))
}

/// Returns whether a directory lies in a file system that has its files in memory.
fn is_in_memory(path: &Path) -> bool {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kind = mounts.lines().filter_map(|line| {
        // 36 35 98:0 /root /mount/point options [optional fields] - type source superoptions
        let (left, right) = line.split_once(" - ")?;
        let mount = Path::new(left.split(' ').nth(4)?);
        path.starts_with(mount)
            .then(|| (mount.as_os_str().len(), right.split(' ').next().unwrap_or_default()))
    });
    // Of two mounts at one place the later one is seen.
    kind.max_by_key(|(length, _)| *length).is_some_and(|(_, kind)| ["tmpfs", "ramfs"].contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("heapgauge-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn names_of_other_files_are_none_of_dumps() {
        for reason in DumpReason::ALL {
            assert_eq!(reason_of(&format!("heap-1793000000-7-{}.json", reason.word())), Some(reason));
        }
        for name in [
            "heap-1793000000-7-.json",
            "heap-1793000000-7-other.json",
            "heap-1793000000-limit.json",
            "heap-x-7-limit.json",
            "../heap-1-7-limit.json",
            "heap-1-7-limit.json.tmp",
            ".heap-1-7.tmp",
            "heap-1-7-run.txt",
        ] {
            assert!(!is_dump(name), "{name}");
        }
        assert!(is_dump("heap-1-7-failure.txt"));
        assert_eq!(run_of_text("heap-1-7-run.txt", "run"), Some("1-7"));
    }

    #[cfg(unix)]
    #[test]
    fn a_dump_is_whole_and_never_written_through_a_link() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let path = folder("dump-files");
        let victim = path.join("victim");
        fs::write(&victim, "untouched").unwrap();
        let mut directory = Directory::new(&path, 100, 7);
        symlink(&victim, &directory.hidden).unwrap();
        let mut dump = directory.create(1000).unwrap();
        dump.write(b"{}").unwrap();
        assert_eq!(dump.left(), 998);
        assert!(Directory::list(&path).unwrap().is_empty(), "it is not finished");
        dump.finish(DumpReason::Limit, 123).unwrap();
        let name = directory.last_name().to_owned();
        assert_eq!(name, "heap-123-7-limit.json");
        let mode = fs::metadata(path.join(&name)).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, fs::read_to_string(&victim).unwrap().as_str()), (0o640, "untouched"));
        directory.create(1000).unwrap().finish(DumpReason::Limit, 123).unwrap();
        assert_eq!(directory.last_name(), "heap-124-7-limit.json", "one of the same second keeps its name");
        fs::remove_file(path.join(directory.last_name())).unwrap();
        symlink(&victim, path.join("heap-124-7-limit.json")).unwrap();
        assert_eq!(Directory::list(&path).unwrap().len(), 1);
        assert!(open(&path, "heap-124-7-limit.json").is_err());
        assert!(open(&path, "victim").is_err() && open(&path, "../victim").is_err());
        assert!(open(&path, &name).is_ok());
        directory.create(1).unwrap().discard();
        assert!(!directory.hidden.exists());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn the_oldest_go_first() {
        let path = folder("dump-prune");
        let directory = Directory::new(&path, 100, 7);
        let write = |name: &str, bytes: usize, second: u64| {
            fs::write(path.join(name), vec![b'x'; bytes]).unwrap();
            let file = File::options().append(true).open(path.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second)).unwrap();
        };
        for second in 1..=4 {
            write(&format!("heap-{second}-7-limit.json"), 100, second);
        }
        write("heap-1-7-peak.json", 100, 1);
        write("unrelated.json", 100, 0);
        let names =
            || -> Vec<String> { Directory::list(&path).unwrap().into_iter().map(|file| file.name).collect() };
        directory.prune(2, 1 << 20).unwrap();
        assert_eq!(names(), ["heap-1-7-peak.json", "heap-3-7-limit.json", "heap-4-7-limit.json"]);
        for second in 5..=7 {
            write(&format!("heap-{second}-7-failure.txt"), 1, second);
        }
        directory.prune(2, 1 << 20).unwrap();
        assert_eq!(names()[3..], ["heap-6-7-failure.txt", "heap-7-7-failure.txt"]);
        (6..=7)
            .for_each(|second| fs::remove_file(path.join(format!("heap-{second}-7-failure.txt"))).unwrap());
        directory.prune(2, 250).unwrap();
        assert_eq!(names(), ["heap-3-7-limit.json", "heap-4-7-limit.json"]);
        // The newest stays, however large.
        directory.prune(2, 1).unwrap();
        assert_eq!(names(), ["heap-4-7-limit.json"]);
        assert!(path.join("unrelated.json").exists());
        fs::remove_dir_all(path).unwrap();
    }
}
