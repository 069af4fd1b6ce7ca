//! Tests that what a library allocates for the program is charged to the program's own line, with the library as `via`.
//!
//! A package of its own, because it needs libraries of many kinds. Each test runs in a process of its own, and compares
//! with what the whole process allocated meanwhile: nothing is charged elsewhere.
#![cfg(target_os = "linux")]

#[macro_use]
#[path = "../support/process.rs"]
mod process;

mod channels;
mod containers;
mod labels;
mod rule;
mod servers;
mod tasks;

use heapgauge::{Snapshot, Traceback};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Live bytes and blocks.
type Live = (u64, u64);

/// Live heap by site, in a process where one thread allocates.
struct Heap {
    all: Live,
    /// By file, line and `via`.
    sites: BTreeMap<(String, u32, String), Live>,
}

impl Heap {
    fn now() -> Heap {
        let _paused = heapgauge::pause();
        let mut heap = Heap { all: (0, 0), sites: BTreeMap::new() };
        for trace in Snapshot::take().unwrap().traces() {
            let site = trace.traceback.site();
            // The harness, whose first function is the first line here, has a thread of its own.
            if (site.file(), site.line()) == ("tests/own_line/own_line.rs", 1) {
                continue;
            }
            let key = (site.file().to_owned(), site.line(), trace.traceback.via().to_owned());
            for live in [&mut heap.all, heap.sites.entry(key).or_default()] {
                live.0 += trace.size;
                live.1 += trace.count;
            }
        }
        heap
    }

    /// Returns the live bytes and blocks at these lines of a file, whatever the library.
    fn at(&self, file: &str, lines: RangeInclusive<u32>) -> Live {
        let here = self.sites.iter().filter(|((of, line, _), _)| of == file && lines.contains(line));
        here.fold((0, 0), |sum, (_, live)| (sum.0 + live.0, sum.1 + live.1))
    }

    /// Returns the libraries that hold something at these lines of a file.
    fn via(&self, file: &str, lines: RangeInclusive<u32>) -> Vec<&str> {
        let _paused = heapgauge::pause();
        let here = self.sites.iter().filter(|((of, line, _), _)| of == file && lines.contains(line));
        let mut via: Vec<&str> = here.map(|((.., via), _)| &**via).collect();
        via.sort_unstable();
        via.dedup();
        via
    }

    /// Returns what was allocated since `before`.
    fn since(&self, before: &Heap) -> Live {
        (self.all.0 - before.all.0, self.all.1 - before.all.1)
    }

    /// Checks that nothing has grown since `before` but these lines of a file, and returns their growth.
    ///
    /// Together they may grow by more than the process: a block belongs to the line that resized it last.
    #[track_caller]
    fn all_at(&self, before: &Heap, file: &str, lines: RangeInclusive<u32>) -> Live {
        for ((of, line, via), then, now) in self.changes(before) {
            let is_here = of == file && lines.contains(line);
            assert!(is_here || now.0 <= then.0, "{of}:{line} via {via:?}: {:#?}", self.changes(before));
        }
        let (now, then) = (self.at(file, lines.clone()), before.at(file, lines));
        let here = (now.0 - then.0, now.1 - then.1);
        let all = self.since(before);
        assert!(here.0 >= all.0 && here.1 >= all.1, "{here:?} {all:?}");
        here
    }

    fn changes(&self, before: &Heap) -> Vec<(&(String, u32, String), Live, Live)> {
        let _paused = heapgauge::pause();
        let then = |key| before.sites.get(key).copied().unwrap_or_default();
        let all = self.sites.iter().map(|(key, live)| (key, then(key), *live));
        all.filter(|(_, then, now)| then != now).collect()
    }
}

/// Returns the traceback of the site that holds most at a line of a file.
fn traceback_at(file: &str, line: u32) -> Traceback {
    let snapshot = Snapshot::take().unwrap();
    let here = |traceback: &Traceback| (traceback.site().file(), traceback.site().line()) == (file, line);
    let here = snapshot.traces().iter().filter(|trace| here(&trace.traceback));
    here.max_by_key(|trace| trace.size).unwrap().traceback.clone()
}

/// Runs a future on this thread alone.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}
