//! Reads this process's resident bytes and memory limit from `/proc` and the cgroup tree.
//!
//! Read side, any thread. Reads a handful of small files each time (about 0.1 ms, no caching: limits
//! are changed while programs run); a value that cannot be read is `None`, never an error.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// A cgroup v1 limit at or above this means "none": the kernel writes `i64::MAX` rounded down to a page.
const UNLIMITED: u64 = 1 << 62;

/// Returns the bytes of this process that are in memory, its resident set size.
///
/// They come from `statm`, in the kernel's own page counts, so they may be off by some pages per thread.
pub(crate) fn resident_bytes() -> Option<u64> {
    resident(&std::fs::read_to_string("/proc/self/statm").ok()?, page_bytes()?)
}

/// Returns the tightest memory limit of the cgroups this process is in, in bytes; `None` when there is none.
pub(crate) fn memory_limit_bytes() -> Option<u64> {
    memory_limit(&|path| std::fs::read_to_string(path).ok())
}

/// Parses `statm`: size, resident, shared … in pages.
fn resident(statm: &str, page_bytes: u64) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(page_bytes)
}

/// Reads the page size from the auxiliary vector, because `sysconf` would be this module's only unsafe call: pairs of
/// words, `AT_PAGESZ` is 6.
fn page_bytes() -> Option<u64> {
    let words = std::fs::read("/proc/self/auxv").ok()?;
    const WORD: usize = size_of::<usize>();
    let word = |bytes: &[u8]| bytes.try_into().ok().map(usize::from_ne_bytes);
    words.chunks_exact(2 * WORD).find_map(|pair| {
        let (key, value) = pair.split_at(WORD);
        (word(key)? == 6).then(|| word(value)).flatten().map(|bytes| bytes as u64)
    })
}

/// Returns the bytes that the cgroups of this process leave until the tightest of their limits; `None` when there is none.
/// File pages that the kernel can drop at once count as free.
pub(crate) fn memory_headroom_bytes() -> Option<u64> {
    memory_headroom(&|path| std::fs::read_to_string(path).ok())
}

/// A directory of a memory cgroup with a limit that holds for this process.
struct LimitedCgroup {
    limit: u64,
    directory: PathBuf,
    names: &'static Names,
}

/// Names in a version of cgroups: file system, limit, usage, and the key in `memory.stat` of file pages that were not
/// used lately.
struct Names {
    kind: &'static str,
    limit: &'static str,
    usage: &'static str,
    inactive_file: &'static str,
}

const V1: Names = Names {
    kind: "cgroup",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file",
};
const V2: Names =
    Names { kind: "cgroup2", limit: "memory.max", usage: "memory.current", inactive_file: "inactive_file" };

fn memory_limit(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    limited_cgroups(read).iter().map(|cgroup| cgroup.limit).min()
}

fn memory_headroom(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let headroom = |cgroup: &LimitedCgroup| {
        let LimitedCgroup { limit, directory, names } = cgroup;
        let usage: u64 = read(&directory.join(names.usage))?.trim().parse().ok()?;
        let stat = read(&directory.join("memory.stat")).unwrap_or_default();
        let inactive =
            stat.lines().find_map(|line| line.strip_prefix(names.inactive_file)?.trim().parse().ok());
        Some(limit.saturating_sub(usage.saturating_sub(inactive.unwrap_or(0))))
    };
    limited_cgroups(read).iter().filter_map(headroom).min()
}

/// Finds all directories up to the mount that have a limit: that of any ancestor holds for this process too.
fn limited_cgroups(read: &dyn Fn(&Path) -> Option<String>) -> Vec<LimitedCgroup> {
    let mut limited = Vec::new();
    let (Some(cgroup), Some(mounts)) =
        (read(Path::new("/proc/self/cgroup")), read(Path::new("/proc/self/mountinfo")))
    else {
        return limited;
    };
    for membership in cgroup.lines() {
        // hierarchy-ID:controllers:path
        let mut parts = membership.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let names = match (id, controllers) {
            ("0", "") => &V2,
            (_, names) if names.split(',').any(|name| name == "memory") => &V1,
            _ => continue,
        };
        for (mount, root) in mounts.lines().filter_map(|line| cgroup_mount(line, names.kind)) {
            // In a container without its own cgroup namespace the mount begins below the root.
            let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            let directory = mount.join(below.strip_prefix("/").unwrap_or(below));
            for ancestor in directory.ancestors() {
                let limit =
                    read(&ancestor.join(names.limit)).and_then(|text| text.trim().parse::<u64>().ok());
                if let Some(limit) = limit.filter(|&limit| limit < UNLIMITED) {
                    limited.push(LimitedCgroup { limit, directory: ancestor.to_owned(), names });
                }
                if ancestor == mount {
                    break;
                }
            }
        }
    }
    limited
}

/// Returns the mount point and the directory of the hierarchy it shows, if `line` is a mount of that kind (and,
/// for v1, of the memory controller).
fn cgroup_mount<'a>(line: &'a str, kind: &str) -> Option<(PathBuf, &'a str)> {
    // 36 35 98:0 /root /mount/point options [optional fields] - type source superoptions
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    if right.next()? != kind {
        return None;
    }
    let superoptions = right.nth(1).unwrap_or("");
    if kind == "cgroup" && !superoptions.split(',').any(|option| option == "memory") {
        return None;
    }
    let mut left = left.split(' ').skip(3);
    let root = left.next()?;
    // Spaces are written as \040; no cgroup file system is mounted under such a path in practice.
    Some((PathBuf::from(left.next()?), root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn limit_of(files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<&Path, &str> = files.iter().map(|&(path, text)| (Path::new(path), text)).collect();
        memory_limit(&|path| files.get(path).map(|text| text.to_string()))
    }

    const MOUNTS_V2: &str = "25 30 0:24 / /proc rw - proc proc rw\n29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";

    /// The directory with the least room decides, which need not be the one with the lowest limit.
    #[test]
    fn headroom_is_what_the_fullest_cgroup_leaves() {
        let files: HashMap<&str, &str> = HashMap::from([
            ("/proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/sys/fs/cgroup/a.slice/b.service/memory.max", "1000000\n"),
            ("/sys/fs/cgroup/a.slice/b.service/memory.current", "300000\n"),
            ("/sys/fs/cgroup/a.slice/memory.max", "8000000\n"),
            ("/sys/fs/cgroup/a.slice/memory.current", "7900000\n"),
            ("/sys/fs/cgroup/a.slice/memory.stat", "anon 5\ninactive_file 400000\nactive_file 9\n"),
        ]);
        let headroom = memory_headroom(&|path| files.get(path.to_str()?).map(|text| text.to_string()));
        assert_eq!(headroom, Some(500_000));
        assert_eq!(memory_headroom(&|_| None), None);
    }

    #[test]
    fn v2_takes_the_tightest_limit_on_the_way_up() {
        let files = [
            ("/proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/sys/fs/cgroup/a.slice/b.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/a.slice/memory.max", "134217728\n"),
        ];
        assert_eq!(limit_of(&files), Some(134_217_728));
        let mut tighter = files.to_vec();
        tighter[2].1 = "1000000\n";
        assert_eq!(limit_of(&tighter), Some(1_000_000));
    }

    #[test]
    fn v2_in_a_namespace_of_its_own_reads_the_root() {
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/sys/fs/cgroup/memory.max", "268435456\n"),
        ];
        assert_eq!(limit_of(&files), Some(268_435_456));
    }

    #[test]
    fn v1_strips_the_root_of_the_mount_and_knows_its_unlimited() {
        let mounts = "31 30 0:27 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 30 0:28 /docker/ab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        let files = [
            ("/proc/self/cgroup", "9:cpu:/docker/ab\n7:memory:/docker/ab/inner\n0::/docker/ab\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n"),
        ];
        assert_eq!(limit_of(&files), Some(5_000_000));
        assert_eq!(limit_of(&files[..3]), None);
    }

    #[test]
    fn no_limit_and_no_files_are_absent() {
        assert_eq!(limit_of(&[]), None);
        let files = [
            ("/proc/self/cgroup", "garbage\n0::/x\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/sys/fs/cgroup/x/memory.max", "max\n"),
        ];
        assert_eq!(limit_of(&files), None);
    }

    #[test]
    fn resident_counts_pages() {
        assert_eq!(resident("5000 1234 600 1 0 300 0\n", 4096), Some(5_054_464));
        assert_eq!(resident("5000", 4096), None);
        assert_eq!(resident("5000 x", 4096), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_page_size_and_resident_memory() {
        assert!(page_bytes().is_some_and(u64::is_power_of_two));
        assert!(resident_bytes().is_some());
    }
}
