//! Reads this process's resident bytes, its memory limit and what counts against it from `/proc` and the cgroup tree.
//!
//! Read side, any thread. Reads a handful of small files each time (about 0.1 ms, no caching: limits
//! are changed while programs run); a value that cannot be read is `None`, never an error.
#![forbid(unsafe_code)]

use crate::record::statm::Statm;
use std::path::{Path, PathBuf};

/// A cgroup v1 limit at or above this means "none": the kernel writes `i64::MAX` rounded down to a page.
const UNLIMITED: u64 = 1 << 62;

/// Returns the bytes of this process that are in memory, its resident set size.
pub(crate) fn resident_bytes() -> Option<u64> {
    Statm::read().map(|statm| statm.resident)
}

/// A memory limit, and the bytes that count against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    pub limit: Option<u64>,
    /// Anonymous and shared memory, and memory of the kernel that it cannot take back. Pages of files are not in it.
    pub usage: Option<u64>,
}

/// Returns the tightest memory limit of the cgroups this process is in and the usage of that cgroup. `own` is a limit of
/// this process alone, for where no cgroup has a tighter one; its usage, and that without a limit, is of this process.
pub(crate) fn memory_limit(own: Option<u64>) -> MemoryLimit {
    limit_and_usage(own, &|path| std::fs::read_to_string(path).ok())
}

fn limit_and_usage(own: Option<u64>, read: &dyn Fn(&Path) -> Option<String>) -> MemoryLimit {
    match limited_cgroups(read).into_iter().min_by_key(|cgroup| cgroup.limit) {
        Some(cgroup) if own.is_none_or(|own| cgroup.limit <= own) => {
            MemoryLimit { limit: Some(cgroup.limit), usage: cgroup_usage(&cgroup, read) }
        }
        _ => MemoryLimit {
            limit: own,
            usage: read(Path::new("/proc/self/status")).and_then(|text| process_usage(&text)),
        },
    }
}

/// Sums anonymous and shared resident memory of `/proc/self/status`, in kB there.
fn process_usage(status: &str) -> Option<u64> {
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    field("RssAnon")?.checked_add(field("RssShmem")?)?.checked_mul(1024)
}

/// Sums what the kernel cannot reclaim of a cgroup's `memory.stat`.
fn cgroup_usage(cgroup: &LimitedCgroup, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let stat = read(&cgroup.directory.join("memory.stat"))?;
    let field = |name: &str| {
        let mut words = stat.lines().map(|line| line.split_ascii_whitespace());
        words.find_map(|mut words| {
            (words.next()? == name).then(|| words.next()?.parse::<u64>().ok()).flatten()
        })
    };
    if cgroup.names.kind != V2.kind {
        // Version 1 has one sum for the kernel's own memory, which includes caches that can be reclaimed.
        return Some(field("total_rss")? + field("total_shmem").unwrap_or(0));
    }
    // `kernel` is younger (Linux 5.18) than its parts.
    let kernel = match field("kernel") {
        Some(kernel) => kernel.saturating_sub(field("slab_reclaimable").unwrap_or(0)),
        None => ["kernel_stack", "pagetables", "percpu", "slab_unreclaimable"]
            .iter()
            .filter_map(|name| field(name))
            .sum(),
    };
    Some(field("anon")? + field("shmem").unwrap_or(0) + kernel + field("sock").unwrap_or(0))
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

    fn with_files(own: Option<u64>, files: &[(&str, &str)]) -> MemoryLimit {
        let files: HashMap<&Path, &str> = files.iter().map(|&(path, text)| (Path::new(path), text)).collect();
        limit_and_usage(own, &|path| files.get(path).map(|text| text.to_string()))
    }

    fn limit_of(files: &[(&str, &str)]) -> Option<u64> {
        with_files(None, files).limit
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

    const STATUS: &str = "Name:\tx\nRssAnon:\t    2000 kB\nRssFile:\t    9000 kB\nRssShmem:\t     500 kB\n";

    #[test]
    fn usage_is_of_the_cgroup_with_the_limit_and_without_pages_of_files() {
        let stat = "anon 1000000\nfile 90000000\nkernel 70000\nkernel_stack 9\nslab_reclaimable 20000\nshmem 300\nsock 7\n";
        let mut files = vec![
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/proc/self/mountinfo", MOUNTS_V2),
            ("/proc/self/status", STATUS),
            ("/sys/fs/cgroup/a/memory.max", "134217728\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.stat", stat),
            ("/sys/fs/cgroup/a/b/memory.stat", "anon 5\n"),
        ];
        let read = with_files(None, &files);
        assert_eq!(read, MemoryLimit { limit: Some(134_217_728), usage: Some(1_050_307) });
        assert_eq!(with_files(Some(1 << 40), &files), read);
        // An older kernel has the parts alone.
        files[5].1 = "anon 1000000\nkernel_stack 9\npagetables 10\npercpu 11\nslab_reclaimable 9\nslab_unreclaimable 12\n";
        assert_eq!(with_files(None, &files).usage, Some(1_000_042));
        // A tighter limit of the process alone counts its own memory.
        let own = with_files(Some(1 << 20), &files);
        assert_eq!(own, MemoryLimit { limit: Some(1 << 20), usage: Some(2500 << 10) });
    }

    #[test]
    fn usage_of_v1_and_of_a_process_without_a_limit() {
        let mounts = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let files = [
            ("/proc/self/cgroup", "7:memory:/x\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "5000000\n"),
            ("/sys/fs/cgroup/memory/x/memory.stat", "rss 1\ntotal_cache 9\ntotal_rss 4000\ntotal_shmem 50\n"),
        ];
        assert_eq!(with_files(None, &files), MemoryLimit { limit: Some(5_000_000), usage: Some(4_050) });
        let files = [("/proc/self/status", STATUS)];
        assert_eq!(with_files(None, &files), MemoryLimit { limit: None, usage: Some(2500 << 10) });
        assert_eq!(process_usage("RssAnon: 1 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_resident_memory() {
        let usage = memory_limit(None).usage.unwrap();
        assert!(usage > 0 && resident_bytes().is_some());
    }
}
