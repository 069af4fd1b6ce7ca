//! Runs re_memory recording every block with its stack (its default leaves out blocks below 1 KiB and samples those
//! below 1 MiB).

use std::alloc::System;

use re_memory::accounting_allocator::{TrackingOptions, set_tracking_callstacks, set_tracking_options};

#[global_allocator]
static ALLOC: re_memory::AccountingAllocator<System> = re_memory::AccountingAllocator::new(System);

fn main() {
    set_tracking_options(TrackingOptions { small_size: 0, medium_size: 0 });
    set_tracking_callstacks(true);
    // It counts live blocks only, so there is no number of events to show.
    workloads::main(workloads::Side::new("re_memory"));
}
