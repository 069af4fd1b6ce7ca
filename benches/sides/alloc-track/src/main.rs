//! Runs alloc-track with backtraces: every block.

use std::alloc::System;

use alloc_track::{AllocTrack, BacktraceMode};

#[global_allocator]
static ALLOC: AllocTrack<System> = AllocTrack::new(System, BacktraceMode::Full);

fn main() {
    workloads::main(workloads::Side {
        // The filter takes nothing, so no symbol is resolved.
        recorded: Some(|| {
            let events = std::cell::Cell::new(0);
            alloc_track::backtrace_report(|_, metric| {
                events.set(events.get() + metric.allocations);
                false
            });
            events.get()
        }),
        ..workloads::Side::new("alloc-track")
    });
}
