//! Runs heapscope as its documentation shows it: every block. Built with frame pointers, else it refuses to start.

#[global_allocator]
static ALLOC: heapscope::Alloc = heapscope::Alloc::system();

fn main() {
    let profiler = match heapscope::Profiler::builder().no_output().build() {
        Ok(profiler) => profiler,
        Err(error) => {
            eprintln!("heapscope refuses to start: {error}");
            std::process::exit(1);
        }
    };
    // Lives to the end of the process; its counters are read through the crate root.
    std::mem::forget(profiler);
    workloads::main(workloads::Side {
        recorded: Some(|| heapscope::HeapStats::get().map_or(0, |stats| stats.total_blocks)),
        ..workloads::Side::new("heapscope")
    });
}
