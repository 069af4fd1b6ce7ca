//! The side every other one is divided by: the allocator Rust programs have when they ask for nothing.

#[global_allocator]
static ALLOC: std::alloc::System = std::alloc::System;

fn main() {
    workloads::main(workloads::Side::new("system"));
}
