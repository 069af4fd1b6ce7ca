//! Tests snapshots as values and files: the acceptance cases A to C and F, without an allocator.

mod ages;
mod common;
mod compare_example;
#[cfg(target_os = "linux")]
mod file_names;
mod files;
mod filters;
mod scopes;
mod statistics;
