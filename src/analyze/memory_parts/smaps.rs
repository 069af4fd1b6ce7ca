//! Reads `/proc/self/smaps`: the mappings of this process, and the part of each that is in memory.
//!
//! The file is read as the kernel writes it, some mappings a call: that is how long it holds the lock of the address space,
//! and the longest call is measured. Exact, where `status` and `statm` are sums that lag by some pages a processor.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time that a source of figures took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallTime {
    pub total: Duration,
    /// The longest time that a lock which the program may need was held, at most.
    pub longest: Duration,
}

/// Meaning of the name of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Anonymous memory without a name, or with one that means nothing here.
    Nothing,
    Heap,
    Stack,
    /// Named by glibc 2.39 and later, where its tunable `glibc.mem.decorate_maps` is set.
    GlibcArena,
    /// Anonymous memory that jemalloc or mimalloc has named.
    Allocator,
    File,
    /// A file that is memory: of `memfd_create`, System V, `/dev/shm`, or shared anonymous memory.
    SharedMemory,
    /// Pages of the kernel's, such as `[vdso]`.
    Kernel,
}

/// One mapping. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub start: usize,
    pub end: usize,
    pub is_readable: bool,
    pub is_writable: bool,
    pub is_executable: bool,
    pub is_shared: bool,
    pub name: Name,
    /// Bytes in memory.
    pub resident: u64,
    /// Bytes in memory with no file behind them.
    pub anonymous: u64,
}

impl Mapping {
    pub(crate) fn size(&self) -> u64 {
        (self.end - self.start) as u64
    }
}

/// Reads all mappings, in the order of their addresses. `None` where the system has no such file, or hides it.
pub(crate) fn read(root: &Path) -> Option<(Vec<Mapping>, CallTime)> {
    let begun = Instant::now();
    let mut file = File::open(root.join("proc/self/smaps")).ok()?;
    let (mut mappings, mut longest) = (Vec::new(), Duration::ZERO);
    let (mut buffer, mut kept) = (vec![0u8; 16 << 10], 0);
    loop {
        let before = Instant::now();
        let read = match file.read(&mut buffer[kept..]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result.ok()?,
        };
        longest = longest.max(before.elapsed());
        let text = &buffer[..kept + read];
        // A text without a line's end is no such file.
        let lines = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        text[..lines].split(|byte| *byte == b'\n').for_each(|line| add_line(&mut mappings, line));
        if read == 0 || (lines == 0 && kept + read == buffer.len()) {
            break;
        }
        buffer.copy_within(lines..kept + read, 0);
        kept = kept + read - lines;
    }
    // Some sandboxes have the file without its figures.
    let has_figures = mappings.iter().any(|mapping| mapping.anonymous > 0);
    has_figures.then_some((mappings, CallTime { total: begun.elapsed(), longest }))
}

/// Adds a line: the head of a mapping, or a figure of the last one.
fn add_line(mappings: &mut Vec<Mapping>, line: &[u8]) {
    let Ok(line) = str::from_utf8(line).or_else(|error| str::from_utf8(&line[..error.valid_up_to()])) else {
        return;
    };
    let figure = |name: &str| {
        let value = line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim();
        value.parse::<u64>().ok()?.checked_mul(1024)
    };
    if let Some(last) = mappings.last_mut() {
        if let Some(bytes) = figure("Rss:") {
            last.resident = bytes;
        } else if let Some(bytes) = figure("Anonymous:") {
            last.anonymous = bytes;
        }
    }
    mappings.extend(head(line));
}

/// Parses `7f52c8000000-7f52c8021000 rw-p 00000000 00:00 0   [name]`.
fn head(line: &str) -> Option<Mapping> {
    let (start, rest) = line.split_once('-')?;
    let (end, rest) = rest.split_once(' ')?;
    let address = |text: &str| usize::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    let mut fields = rest.splitn(5, ' ');
    let access = fields.next()?.as_bytes();
    let (_offset, _device) = (fields.next()?, fields.next()?);
    let inode = fields.next()?;
    let name = name(fields.next().unwrap_or("").trim(), inode);
    (access.len() == 4 && start < end).then_some(Mapping {
        start,
        end,
        is_readable: access[0] == b'r',
        is_writable: access[1] == b'w',
        is_executable: access[2] == b'x',
        is_shared: access[3] == b's',
        name,
        resident: 0,
        anonymous: 0,
    })
}

fn name(name: &str, inode: &str) -> Name {
    if let Some(label) = name.strip_prefix("[anon:").or_else(|| name.strip_prefix("[anon_shmem:")) {
        return match label.trim_start() {
            label if label.starts_with("glibc: malloc arena") => Name::GlibcArena,
            label if label.starts_with("glibc: pthread") && label.contains("stack") => Name::Stack,
            label if label.starts_with("jemalloc") || label.starts_with("mimalloc") => Name::Allocator,
            _ => Name::Nothing,
        };
    }
    match name {
        "" => Name::Nothing,
        "[heap]" => Name::Heap,
        name if name.starts_with("[stack") => Name::Stack,
        name if name.starts_with('[') => Name::Kernel,
        name if ["/memfd:", "/SYSV", "/dev/shm/", "/dev/zero"]
            .iter()
            .any(|begin| name.starts_with(begin)) =>
        {
            Name::SharedMemory
        }
        _ if inode == "0" => Name::Nothing,
        _ => Name::File,
    }
}

/// Reads a whole text.
#[cfg(test)]
pub(super) fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    text.lines().for_each(|line| add_line(&mut mappings, line.as_bytes()));
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_from_figures() {
        let line =
            "7f52c8000000-7f52cc000000 rw-p 00000000 00:00 0                    [anon: glibc: malloc arena]";
        let mapping = head(line).unwrap();
        assert_eq!(
            (mapping.start, mapping.size(), mapping.name),
            (0x7f52_c800_0000, 64 << 20, Name::GlibcArena)
        );
        assert!(mapping.is_readable && mapping.is_writable && !mapping.is_shared);
        for line in [
            "Rss:    4 kB",
            "VmFlags: rd wr mr mw me ac sd",
            "",
            "no-thing here 1 2 3",
            "-",
            "5-4 rw-p 0 0 0",
        ] {
            assert_eq!(head(line), None, "{line}");
        }
    }

    #[test]
    fn names_say_what_a_mapping_is() {
        for (text, inode, expected) in [
            ("", "0", Name::Nothing),
            ("[heap]", "0", Name::Heap),
            ("[stack]", "0", Name::Stack),
            ("[vdso]", "0", Name::Kernel),
            ("[anon: glibc: pthread user stack: 77]", "0", Name::Stack),
            ("[anon:jemalloc_pg]", "0", Name::Allocator),
            ("[anon:mine]", "0", Name::Nothing),
            ("/usr/lib/libc.so.6", "77", Name::File),
            ("/memfd:a b (deleted)", "77", Name::SharedMemory),
            ("/dev/zero (deleted)", "77", Name::SharedMemory),
            ("/SYSV00000000 (deleted)", "3", Name::SharedMemory),
        ] {
            assert_eq!(name(text, inode), expected, "{text}");
        }
    }

    #[test]
    fn figures_belong_to_the_mapping_before_them() {
        let mappings = parse(include_str!("smaps.txt"));
        let sum = |of: fn(&Mapping) -> u64| mappings.iter().map(of).sum::<u64>();
        assert!(mappings.len() > 20 && sum(|mapping| mapping.anonymous) > 0);
        assert!(mappings.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let heap = mappings.iter().find(|mapping| mapping.name == Name::Heap).unwrap();
        assert!(heap.anonymous > 0 && heap.anonymous <= heap.resident && heap.resident <= heap.size());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_mappings() {
        let (mappings, time) = read(Path::new("/")).unwrap();
        assert!(mappings.iter().any(|mapping| mapping.name == Name::Stack));
        assert!(time.longest <= time.total);
    }
}
