//! Runs the default allocator of Rust programs, the base of most sides.

#[global_allocator]
static ALLOC: std::alloc::System = std::alloc::System;

fn main() {
    workloads::main(workloads::Side::new("system"));
}
