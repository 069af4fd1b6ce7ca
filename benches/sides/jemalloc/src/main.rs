//! Runs jemalloc alone, the base of `heapgauge-jemalloc`.

#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    workloads::main(workloads::Side::new("jemalloc"));
}
