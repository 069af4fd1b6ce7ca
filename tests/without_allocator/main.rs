//! Tests a program without a tracking allocator: it gets a message, and may load a library with an allocator of its own.

mod assertions;
#[cfg(feature = "http")]
#[path = "../support/client.rs"]
mod client;
#[cfg(feature = "http")]
mod messages;
#[cfg(target_os = "linux")]
mod unloaded_library;
