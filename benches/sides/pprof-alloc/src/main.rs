//! Runs pprof-alloc recording every block (its default is one per 512 KiB). Built with frame pointers: without
//! them all its sites silently become one.

#[global_allocator]
static ALLOC: pprof_alloc::PprofAlloc = pprof_alloc::PprofAlloc::new().with_pprof_sample_rate(1);

fn main() {
    // Its event counters are a second mechanism with a cost of its own, so they stay off.
    workloads::main(workloads::Side::new("pprof-alloc"));
}
