//! jemalloc alone: what `heapgauge-jemalloc` is divided by.

#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    workloads::main(workloads::Side::new("jemalloc"));
}
