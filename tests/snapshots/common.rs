//! Writes snapshots by hand, as files in a temporary directory.

use heapgauge::{GroupBy, Snapshot, Statistic, StatisticDiff};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A temporary directory, removed when dropped.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("heapgauge-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// One block: domain, size, frames most recent first as `a.rs:2`, total frames.
pub type Block<'a> = (u32, u64, &'a [&'a str], usize);

pub const S1: &[Block<'static>] = &[
    (0, 10, &["a.rs:2", "b.rs:4"], 3),
    (0, 10, &["a.rs:2", "b.rs:4"], 3),
    (0, 10, &["a.rs:2", "b.rs:4"], 3),
    (1, 2, &["a.rs:5", "b.rs:4"], 3),
    (2, 66, &["b.rs:1"], 1),
    (3, 7, &["<unknown>:0"], 1),
];

pub const S2: &[Block<'static>] = &[
    (0, 10, &["a.rs:2", "b.rs:4"], 3),
    (0, 10, &["a.rs:2", "b.rs:4"], 3),
    (0, 10, &["a.rs:2", "b.rs:4"], 3),
    (2, 2, &["a.rs:5", "b.rs:4"], 3),
    (2, 5000, &["a.rs:5", "b.rs:4"], 3),
    (4, 400, &["c.rs:578"], 1),
];

/// Writes a snapshot file with one trace a block.
pub fn json(blocks: &[Block<'_>]) -> serde_json::Value {
    let traces: Vec<serde_json::Value> = blocks
        .iter()
        .map(|(domain, size, frames, total)| {
            let frames: Vec<serde_json::Value> = frames
                .iter()
                .map(|frame| {
                    let (file, line) = frame.rsplit_once(':').unwrap();
                    let line: u32 = line.parse().unwrap();
                    serde_json::json!({"function": null, "file": file, "line": line})
                })
                .collect();
            serde_json::json!({
                "domain": domain, "size": size, "count": 1, "total_frames": total, "frames": frames
            })
        })
        .collect();
    serde_json::json!({
        "version": 1, "taken_at": 1793000000.25, "traceback_limit": 32, "build_id": null, "traces": traces
    })
}

pub fn snapshot(blocks: &[Block<'_>]) -> Snapshot {
    load(&json(blocks).to_string()).unwrap()
}

pub fn load(text: &str) -> Result<Snapshot, heapgauge::Error> {
    let directory = Directory::new();
    let path = directory.file("snapshot.json");
    std::fs::write(&path, text).unwrap();
    Snapshot::load(path)
}

/// Formats rows as `a.rs:5 5002/2`; a traceback as `[a.rs:5,b.rs:4]`.
pub fn rows(statistics: &[Statistic], group_by: GroupBy) -> Vec<String> {
    statistics
        .iter()
        .map(|row| format!("{} {}/{}", key(&row.traceback, &row.name(), group_by), row.size, row.count))
        .collect()
}

/// Formats rows as `a.rs:5 5002(+5000) 2(+1)`.
pub fn diff_rows(rows: &[StatisticDiff], group_by: GroupBy) -> Vec<String> {
    rows.iter()
        .map(|row| {
            let key = key(&row.traceback, &row.name(), group_by);
            format!("{key} {}({:+}) {}({:+})", row.size, row.size_diff, row.count, row.count_diff)
        })
        .collect()
}

fn key(traceback: &heapgauge::Traceback, name: &str, group_by: GroupBy) -> String {
    match group_by {
        GroupBy::Traceback => {
            let frames: Vec<String> = traceback.frames().map(ToString::to_string).collect();
            format!("[{}]", frames.join(","))
        }
        GroupBy::File | GroupBy::CumulativeFile => name.strip_suffix(":0").unwrap().to_owned(),
        _ => name.to_owned(),
    }
}
