//! mimalloc alone: what `heapgauge-mimalloc` is divided by.

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    workloads::main(workloads::Side::new("mimalloc"));
}
