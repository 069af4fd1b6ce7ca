//! Runs jemalloc's own heap profiler at its usual rate: one stack per 512 KiB (`lg_prof_sample:19`), so no exact
//! counts. Here because many services leave it on today.

#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc reads its options through this symbol before `main`.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static OPTIONS: &[u8; 46] = b"prof:true,prof_active:true,lg_prof_sample:19\0\0";

fn main() {
    workloads::main(workloads::Side::new("jemalloc-prof"));
}
