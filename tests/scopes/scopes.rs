//! Tests that blocks belong to the scope of the thread, task or request that allocates them, to the byte.
//!
//! A package of its own, because it needs runtimes and thread pools of many kinds. Its library has the code of the page
//! `scopes`.

#[path = "../support/client.rs"]
mod client;
mod runtimes;
mod service;
mod threads;

use heapgauge::{Scope, Snapshot};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Returns live bytes and blocks of a line in the scopes that have this value of a key.
fn held(file: &str, line: u32, key: &str, value: &str) -> (u64, u64) {
    let snapshot = Snapshot::take().unwrap();
    let here = snapshot.traces().iter().filter(|trace| {
        let site = trace.traceback.site();
        (site.file(), site.line()) == (file, line) && trace.scope.get(key) == Some(value)
    });
    here.fold((0, 0), |sum, trace| (sum.0 + trace.size, sum.1 + trace.count))
}

/// Returns keys and values of the scope that this thread is in.
fn current() -> String {
    format!("{:?}", Scope::current())
}

/// Text of the empty scope.
const NO_SCOPE: &str = "Scope {}";
