//! A program whose allocator does not track: it is told so, and may load a library that tracks its own.

#[cfg(feature = "http")]
#[path = "../support/client.rs"]
mod client;
#[cfg(feature = "http")]
mod messages;
#[cfg(target_os = "linux")]
mod unloaded_library;
