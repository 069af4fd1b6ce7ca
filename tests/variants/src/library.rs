//! Provides a library with a heap of its own, which `tests/variants.py` loads.

use heapgauge::Collector;
use serde_json::{Value, json};
use std::hint::black_box;
use std::mem::forget;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Leaks 100 blocks of 1,000 bytes, and prints their site and the build as JSON.
#[unsafe(no_mangle)]
pub extern "C" fn report() {
    for _ in 0..black_box(100) {
        forget(black_box(vec![1_u8; 1000])); // leak
    }
    let collector = Collector::new();
    // On a busy machine the time of one collection may be up before all stacks have names.
    let mut reports = (0..1_000).map(|_| collector.collect());
    let report = reports.find(|report| report.unnamed.pending == 0).expect("names for all stacks");
    let site = |site: &heapgauge::SiteRow| -> Value {
        json!({
            "file": site.file(), "line": site.line(), "name": site.function(),
            "size": site.live.now.bytes, "count": site.live.now.blocks,
        })
    };
    let document = json!({
        "capture": report.build.capture(),
        "symbols": report.build.symbols(),
        "build_id": report.build.build_id(),
        "sites": report.sites.iter().map(site).collect::<Vec<_>>(),
    });
    println!("{document}");
}
