//! Runs dhat as its documentation shows it: every block, ten frames of each stack.

#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

fn main() {
    // Never dropped: writing the profile is not what is measured.
    std::mem::forget(dhat::Profiler::new_heap());
    workloads::main(workloads::Side {
        recorded: Some(|| dhat::HeapStats::get().total_blocks),
        ..workloads::Side::new("dhat")
    });
}
