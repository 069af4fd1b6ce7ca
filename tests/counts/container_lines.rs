//! Tests that a growing container is charged to the user's line, with exactly the bytes that it requested.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use heapgauge::{Collector, Report};

const FILE: &str = "tests/counts/container_lines.rs";

/// Collects until every line of `lines` has its name: a collection spends at most a quarter of a second on names, and the
/// first one reads the debug information.
fn collect(collector: &Collector, lines: &[u32]) -> Arc<Report> {
    for _ in 0..60 {
        let report = collector.collect();
        let is_there =
            |line: &u32| report.sites.iter().any(|site| (site.file(), site.line()) == (FILE, *line));
        if lines.iter().all(is_there) {
            return report;
        }
        thread::sleep(Duration::from_millis(1_100)); // a younger collection would be given out again
    }
    panic!("not all of {lines:?} after a minute: {:#?}", collector.collect().sites);
}

/// Returns live bytes and blocks of a line of this file, with the function's name.
fn at(report: &Report, line: u32) -> (u64, u64, String) {
    let site = report.sites.iter().find(|site| (site.file(), site.line()) == (FILE, line)).unwrap();
    (site.live.now.bytes, site.live.now.blocks, site.function().to_owned())
}

fn fill_map(map: &mut HashMap<u64, [u8; 64]>) -> u32 {
    for key in 0..10_000 {
        map.insert(key, [0; 64]);
    }
    line!() - 2
}

fn fill_entries(map: &mut HashMap<u32, [u8; 60]>) -> u32 {
    for key in 0..10_000 {
        *map.entry(key).or_insert([0; 60]) = [1; 60];
    }
    line!() - 2
}

fn fill_vec(vec: &mut Vec<[u8; 100]>) -> u32 {
    for _ in 0..5_000 {
        vec.push([0; 100]);
    }
    line!() - 2
}

fn fill_queue(queue: &mut VecDeque<[u8; 90]>) -> u32 {
    for _ in 0..5_000 {
        queue.push_back([0; 90]);
    }
    line!() - 2
}

fn fill_string(text: &mut String) -> u32 {
    for _ in 0..50_000 {
        text.push_str("heap");
    }
    line!() - 2
}

fn fill_tree(tree: &mut BTreeMap<u32, Box<[u8; 300]>>) -> u32 {
    for key in 0..1_000 {
        let value = Box::new([0; 300]);
        tree.insert(key, value);
    }
    line!() - 3
}

/// Returns the size of a hashbrown table: buckets of `entry` bytes, a control byte a bucket and a group
/// of as many as the processor compares at once.
fn hashbrown_bytes(capacity: usize, entry: usize) -> u64 {
    let buckets = (capacity * 8 / 7).next_power_of_two();
    assert_eq!(buckets * 7 / 8, capacity);
    let group = if cfg!(target_arch = "x86_64") { 16 } else { 8 };
    (buckets * entry + buckets + group) as u64
}

#[test]
fn growth_is_charged_to_the_line_that_inserts() {
    own_process!();
    let collector = Collector::new();
    let mut map = HashMap::new();
    let mut entries = HashMap::new();
    let (mut vec, mut queue, mut text, mut tree) =
        (Vec::new(), VecDeque::new(), String::new(), BTreeMap::new());
    let map_line = fill_map(&mut map);
    let entries_line = fill_entries(&mut entries);
    let vec_line = fill_vec(&mut vec);
    let queue_line = fill_queue(&mut queue);
    let text_line = fill_string(&mut text);
    let box_line = fill_tree(&mut tree);

    let lines = [map_line, entries_line, vec_line, queue_line, text_line, box_line, box_line + 1];
    let report = collect(&collector, &lines);
    let function = |name: &str| format!("counts::container_lines::{name}");
    assert_eq!(at(&report, map_line), (hashbrown_bytes(map.capacity(), 72), 1, function("fill_map")));
    assert_eq!(
        at(&report, entries_line),
        (hashbrown_bytes(entries.capacity(), 64), 1, function("fill_entries"))
    );
    assert_eq!(at(&report, vec_line), (vec.capacity() as u64 * 100, 1, function("fill_vec")));
    assert_eq!(at(&report, queue_line), (queue.capacity() as u64 * 90, 1, function("fill_queue")));
    assert_eq!(at(&report, text_line), (text.capacity() as u64, 1, function("fill_string")));
    assert_eq!(at(&report, box_line), (300_000, 1_000, function("fill_tree")));
    // The nodes of the tree belong to the next line; their number is not specified.
    assert_eq!(at(&report, box_line + 1).2, function("fill_tree"));

    // None of it is charged to a container.
    for site in &report.sites {
        assert!(!site.file().contains("hashbrown"), "{site:?}");
    }
}
