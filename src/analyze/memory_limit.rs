//! Memory limits of this process, and the bytes that count against them, from `/proc` and the cgroup tree.
//!
//! Read side, any thread. The files are opened once and read again with each [`MemoryLimits::read`], which allocates
//! nothing: it is needed most where memory is scarce. Limits are changed while programs run, so they are read each time,
//! and files without a limit stay open, too. A value that cannot be read is `None`, never an error.
#![forbid(unsafe_code)]

use crate::record::statm::Statm;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A cgroup v1 limit at or above this means "none": the kernel writes `i64::MAX` rounded down to a page.
const UNLIMITED: u64 = 1 << 62;
/// Room for the longest file; `memory.stat` of version 2 has some 2 KiB.
const LONGEST: usize = 16 << 10;

/// A memory limit, and the bytes that count against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    pub limit: Option<u64>,
    /// Anonymous and shared memory, and memory of the kernel that it cannot take back. Pages of files are not in it.
    pub usage: Option<u64>,
}

impl MemoryLimit {
    /// Returns the bytes that are left.
    pub(crate) fn headroom(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.usage?))
    }

    /// Returns the part of the limit that is used, where both are known.
    fn fraction(&self) -> Option<f64> {
        Some(self.usage? as f64 / self.limit?.max(1) as f64)
    }
}

/// Open files with the limits that hold for this process.
#[derive(Debug)]
pub(crate) struct MemoryLimits {
    /// Directories of memory cgroups, up to the mount: the limit of any ancestor holds for this process too.
    cgroups: Vec<Cgroup>,
    /// `/proc/self/status`, `…/limits` and `/proc/meminfo`.
    status: Option<File>,
    limits: Option<File>,
    meminfo: Option<File>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Cgroup {
    limit: File,
    /// Bound above which the kernel slows the processes of the cgroup down until they are hardly moving.
    high: Option<File>,
    usage: Option<File>,
    stat: Option<File>,
    names: &'static Names,
}

/// Names in a version of cgroups: file system, limits, usage, and the key in `memory.stat` of file pages that were not
/// used lately.
#[derive(Debug)]
struct Names {
    kind: &'static str,
    limit: &'static str,
    high: &'static str,
    usage: &'static str,
    inactive_file: &'static str,
}

const V1: Names = Names {
    kind: "cgroup",
    limit: "memory.limit_in_bytes",
    // A soft limit of version 1 does not bind.
    high: "",
    usage: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file",
};
const V2: Names = Names {
    kind: "cgroup2",
    limit: "memory.max",
    high: "memory.high",
    usage: "memory.current",
    inactive_file: "inactive_file",
};

/// Returns the memory limit and its usage now, see [`MemoryLimits::read`].
pub(crate) fn memory_limit(own: Option<u64>) -> MemoryLimit {
    MemoryLimits::open().read(own)
}

/// Returns the bytes that the cgroups of this process leave until the tightest of their limits; `None` when there is none.
/// File pages that the kernel can drop at once count as free.
pub(crate) fn memory_headroom_bytes() -> Option<u64> {
    MemoryLimits::open().cgroup_headroom()
}

impl MemoryLimits {
    /// Opens the files of this process.
    pub(crate) fn open() -> MemoryLimits {
        MemoryLimits::open_below(Path::new("/"))
    }

    /// Opens the files below another root.
    fn open_below(root: &Path) -> MemoryLimits {
        let open = |path: &str| File::open(root.join(path)).ok();
        MemoryLimits {
            cgroups: cgroups(root),
            status: open("proc/self/status"),
            limits: open("proc/self/limits"),
            meminfo: open("proc/meminfo"),
            buffer: vec![0; LONGEST],
        }
    }

    /// Returns the tightest memory limit of the cgroups this process is in and the usage of that cgroup. `own` is a limit of
    /// this process alone, for where no cgroup has a tighter one; its usage, and that without a limit, is of this process.
    pub(crate) fn read(&mut self, own: Option<u64>) -> MemoryLimit {
        let MemoryLimits { cgroups, buffer, status, .. } = self;
        let tightest = cgroups.iter().filter_map(|cgroup| Some((cgroup.limit(buffer)?, cgroup)));
        match tightest.min_by_key(|(limit, _)| *limit) {
            Some((limit, cgroup)) if own.is_none_or(|own| limit <= own) => {
                MemoryLimit { limit: Some(limit), usage: cgroup.unreclaimable(buffer) }
            }
            _ => {
                let usage = text(status.as_ref(), buffer).and_then(process_usage);
                MemoryLimit { limit: own, usage }
            }
        }
    }

    /// Returns the limit that this process is closest to: that of [`read`](MemoryLimits::read), or of its address space or
    /// data (`RLIMIT_AS`, `RLIMIT_DATA`). Where there is none of them, it is what the process holds and what the system has
    /// available.
    pub(crate) fn closest(&mut self, own: Option<u64>) -> MemoryLimit {
        let first = self.read(own);
        let limits = text(self.limits.as_ref(), &mut self.buffer).unwrap_or_default();
        let [space, data] = of_resources(limits, Statm::read);
        let closest = [first, space, data]
            .into_iter()
            .filter_map(|limit| Some((limit.fraction()?, limit)))
            .max_by(|(one, _), (other, _)| one.total_cmp(other));
        if let Some((_, limit)) = closest {
            return limit;
        }
        let available =
            text(self.meminfo.as_ref(), &mut self.buffer).and_then(|text| kilobytes(text, "MemAvailable"));
        match (first.usage, available) {
            (Some(usage), Some(available)) => {
                MemoryLimit { limit: Some(usage.saturating_add(available)), usage: Some(usage) }
            }
            _ => first,
        }
    }

    fn cgroup_headroom(&mut self) -> Option<u64> {
        let MemoryLimits { cgroups, buffer, .. } = self;
        let headroom = |cgroup: &Cgroup| {
            let limit = cgroup.limit(buffer)?;
            let usage: u64 = text(cgroup.usage.as_ref(), buffer)?.trim().parse().ok()?;
            let stat = text(cgroup.stat.as_ref(), buffer).unwrap_or_default();
            let inactive = stat
                .lines()
                .find_map(|line| line.strip_prefix(cgroup.names.inactive_file)?.trim().parse().ok());
            Some(limit.saturating_sub(usage.saturating_sub(inactive.unwrap_or(0))))
        };
        cgroups.iter().filter_map(headroom).min()
    }
}

impl Cgroup {
    /// Returns the tighter of its limits.
    fn limit(&self, buffer: &mut [u8]) -> Option<u64> {
        let mut limit_in = |file: &File| {
            let limit = text(Some(file), buffer)?.trim().parse::<u64>().ok()?;
            (limit < UNLIMITED).then_some(limit)
        };
        let max = limit_in(&self.limit);
        let high = self.high.as_ref().and_then(&mut limit_in);
        max.into_iter().chain(high).min()
    }

    /// Sums what the kernel cannot reclaim of a cgroup's `memory.stat`.
    fn unreclaimable(&self, buffer: &mut [u8]) -> Option<u64> {
        let stat = text(self.stat.as_ref(), buffer)?;
        let field = |name: &str| {
            let mut words = stat.lines().map(|line| line.split_ascii_whitespace());
            words.find_map(|mut words| {
                (words.next()? == name).then(|| words.next()?.parse::<u64>().ok()).flatten()
            })
        };
        if self.names.kind != V2.kind {
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
}

/// Reads a small file from its beginning. The kernel writes it anew each time.
fn text<'a>(file: Option<&File>, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut len = 0;
    while len < buffer.len() {
        match read_at(file?, &mut buffer[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    str::from_utf8(&buffer[..len]).ok()
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_at(_file: &File, _buffer: &mut [u8], _offset: u64) -> std::io::Result<usize> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Reads a field in kB of `/proc/self/status` or `/proc/meminfo`, in bytes.
pub(crate) fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Sums anonymous and shared resident memory of `/proc/self/status`.
fn process_usage(status: &str) -> Option<u64> {
    kilobytes(status, "RssAnon")?.checked_add(kilobytes(status, "RssShmem")?)
}

/// Reads the soft limit of a row of `/proc/self/limits`; `None` where it is unlimited.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let row = limits.lines().find_map(|line| line.strip_prefix(name))?;
    row.split_ascii_whitespace().next()?.parse().ok()
}

/// Returns the limits of address space and of data of `/proc/self/limits`, where they are set, with their usage.
fn of_resources(limits: &str, usage: impl FnOnce() -> Option<Statm>) -> [MemoryLimit; 2] {
    let [space, data] = ["Max address space", "Max data size"].map(|name| soft_limit(limits, name));
    if space.is_none() && data.is_none() {
        return [MemoryLimit::default(); 2];
    }
    let usage = usage();
    [
        MemoryLimit { limit: space, usage: usage.map(|usage| usage.size) },
        MemoryLimit { limit: data, usage: usage.map(|usage| usage.data) },
    ]
}

/// Finds all directories up to the mount that may have a limit.
fn cgroups(root: &Path) -> Vec<Cgroup> {
    let read = |path: &str| {
        let mut text = String::new();
        File::open(root.join(path)).and_then(|mut file| file.read_to_string(&mut text)).ok().map(|_| text)
    };
    let mut found = Vec::new();
    let (Some(cgroup), Some(mounts)) = (read("proc/self/cgroup"), read("proc/self/mountinfo")) else {
        return found;
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
        for (mount, top) in mounts.lines().filter_map(|line| cgroup_mount(line, names.kind)) {
            let mount = root.join(mount.strip_prefix("/").unwrap_or(&mount));
            // In a container without its own cgroup namespace the mount begins below the root.
            let below = Path::new(path).strip_prefix(top).unwrap_or(Path::new(""));
            let directory = mount.join(below.strip_prefix("/").unwrap_or(below));
            for ancestor in directory.ancestors() {
                let open = |name: &str| match name {
                    "" => None,
                    name => File::open(ancestor.join(name)).ok(),
                };
                if let Some(limit) = open(names.limit) {
                    let (high, usage, stat) = (open(names.high), open(names.usage), open("memory.stat"));
                    found.push(Cgroup { limit, high, usage, stat, names });
                }
                if ancestor == mount {
                    break;
                }
            }
        }
    }
    found
}

/// Returns the mount point and the directory of the hierarchy it shows, if `line` is a mount of that kind. A mount of
/// version 1 has to be that of the memory controller.
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
mod tests;
