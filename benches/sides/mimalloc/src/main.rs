//! Runs mimalloc alone, the base of `heapgauge-mimalloc`.

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    workloads::main(workloads::Side::new("mimalloc"));
}
