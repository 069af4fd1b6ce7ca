//! Tests the server and its paths over real connections. A test that counts the whole process has a process of its own.
//! Tests of addresses other than loopback listen on `0.0.0.0`, the only one that every machine has, at a free port and for a moment.
#![cfg(feature = "http")]

#[path = "../support/client.rs"]
mod client;
#[macro_use]
#[path = "../support/process.rs"]
mod process;

mod ages;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod allocator;
mod debug_heap;
mod dumps;
mod environment;
#[cfg(unix)]
mod fork_server;
mod listeners;
mod memory_snapshots;
mod negotiation;
#[cfg(feature = "pprof")]
mod profiles;
#[cfg(feature = "axum")]
mod router;
mod scopes;
mod scrape;
mod server;
mod stacks;
#[cfg(target_os = "linux")]
mod starved;
#[cfg(target_os = "linux")]
mod unread_answers;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
