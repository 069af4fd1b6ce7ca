//! Limits and usages of made-up files.

use super::*;
use std::fs;

/// Writes the files below a folder of the test's own, and passes it on.
fn with_files<R>(files: &[(&str, &str)], read: impl FnOnce(&Path) -> R) -> R {
    let root = std::env::temp_dir().join(format!(
        "heapgauge-limits-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    for (path, text) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let read = read(&root);
    let _ = fs::remove_dir_all(root);
    read
}

fn read(own: Option<u64>, files: &[(&str, &str)]) -> MemoryLimit {
    with_files(files, |root| MemoryLimits::open_below(root).read(own))
}

fn limit_of(files: &[(&str, &str)]) -> Option<u64> {
    read(None, files).limit
}

const MOUNTS_V2: &str = "25 30 0:24 / /proc rw - proc proc rw\n29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";

/// The directory with the least room decides, which need not be the one with the lowest limit.
#[test]
fn headroom_is_what_the_fullest_cgroup_leaves() {
    let files = [
        ("/proc/self/cgroup", "0::/a.slice/b.service\n"),
        ("/proc/self/mountinfo", MOUNTS_V2),
        ("/sys/fs/cgroup/a.slice/b.service/memory.max", "1000000\n"),
        ("/sys/fs/cgroup/a.slice/b.service/memory.current", "300000\n"),
        ("/sys/fs/cgroup/a.slice/memory.max", "8000000\n"),
        ("/sys/fs/cgroup/a.slice/memory.current", "7900000\n"),
        ("/sys/fs/cgroup/a.slice/memory.stat", "anon 5\ninactive_file 400000\nactive_file 9\n"),
    ];
    let headroom = |files: &[_]| with_files(files, |root| MemoryLimits::open_below(root).cgroup_headroom());
    assert_eq!(headroom(&files), Some(500_000));
    assert_eq!(headroom(&[]), None);
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
    let now = read(None, &files);
    assert_eq!(now, MemoryLimit { limit: Some(134_217_728), usage: Some(1_050_307) });
    assert_eq!(read(Some(1 << 40), &files), now);
    // An older kernel has the parts alone.
    files[5].1 =
        "anon 1000000\nkernel_stack 9\npagetables 10\npercpu 11\nslab_reclaimable 9\nslab_unreclaimable 12\n";
    assert_eq!(read(None, &files).usage, Some(1_000_042));
    // A tighter limit of the process alone counts its own memory.
    let own = read(Some(1 << 20), &files);
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
    assert_eq!(read(None, &files), MemoryLimit { limit: Some(5_000_000), usage: Some(4_050) });
    let files = [("/proc/self/status", STATUS)];
    assert_eq!(read(None, &files), MemoryLimit { limit: None, usage: Some(2500 << 10) });
    assert_eq!(process_usage("RssAnon: 1 kB\n"), None);
}

#[test]
fn a_limit_is_read_again_and_high_counts_as_one() {
    let files = [
        ("/proc/self/cgroup", "0::/a\n"),
        ("/proc/self/mountinfo", MOUNTS_V2),
        ("/sys/fs/cgroup/a/memory.max", "max\n"),
        ("/sys/fs/cgroup/a/memory.high", "max\n"),
        ("/sys/fs/cgroup/a/memory.stat", "anon 700\n"),
    ];
    with_files(&files, |root| {
        let mut limits = MemoryLimits::open_below(root);
        let write =
            |name: &str, text: &str| fs::write(root.join("sys/fs/cgroup/a").join(name), text).unwrap();
        assert_eq!(limits.read(None), MemoryLimit::default());
        write("memory.max", "1000\n");
        assert_eq!(limits.read(None), MemoryLimit { limit: Some(1000), usage: Some(700) });
        write("memory.high", "800\n");
        assert_eq!(limits.read(None).headroom(), Some(100));
    });
}

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         409600               unlimited            bytes     \n";

#[test]
fn limits_of_resources_have_a_usage_of_their_own() {
    let statm = Statm { size: 368_640, resident: 1, shared: 0, data: 7 };
    let [space, data] = of_resources(LIMITS, || Some(statm));
    assert_eq!(space, MemoryLimit { limit: Some(409_600), usage: Some(368_640) });
    assert_eq!(data.headroom(), None);
    assert_eq!(of_resources("", || panic!("nothing is limited")), [MemoryLimit::default(); 2]);
}

/// The limit that is closest, not the lowest; without one, what the system has left.
#[test]
fn without_a_limit_the_system_is_one() {
    let mut files = vec![
        ("/proc/self/status", STATUS),
        ("/proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:    1500 kB\n"),
        ("/proc/self/limits", LIMITS),
    ];
    let closest = |files: &[_], own| with_files(files, |root| MemoryLimits::open_below(root).closest(own));
    // This test has more address space than that.
    assert_eq!(closest(&files, Some(2501 << 10)).limit, Some(409_600));
    files.pop();
    let own = closest(&files, Some(2501 << 10));
    assert_eq!(own, MemoryLimit { limit: Some(2501 << 10), usage: Some(2500 << 10) });
    assert_eq!(closest(&files, None), MemoryLimit { limit: Some(4000 << 10), usage: Some(2500 << 10) });
    files.pop();
    assert_eq!(closest(&files, None), MemoryLimit { limit: None, usage: Some(2500 << 10) });
}

#[cfg(target_os = "linux")]
#[test]
fn this_process_has_a_usage() {
    assert!(memory_limit(None).usage.unwrap() > 0);
}
