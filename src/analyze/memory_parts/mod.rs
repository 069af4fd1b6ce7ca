//! Divides resident memory into its parts: live blocks, and all that live blocks do not explain.
//!
//! ```text
//! /proc/self/smaps ─▶ classes of mappings ─┐
//! malloc_info, AllocatorStatistics ────────┼─▶ parts ─▶ the last reading, for reports and allocator.json
//! live counts, large blocks, mincore ──────┘
//! ```
//!
//! A thread of heapgauge's makes a reading, at most every ten seconds. Callers get the last one and never wait.
#![forbid(unsafe_code)]

mod classes;
mod glibc;
mod large_blocks;
mod parts;
mod reading;
mod rounding;
mod schedule;
mod smaps;
mod usage;

#[cfg(any(feature = "http", test))]
#[cfg_attr(not(feature = "http"), allow(unused_imports))]
pub(crate) use glibc::{Arena, SizeClass};
pub use parts::MemoryParts;
pub(crate) use reading::Reading;
#[cfg(any(feature = "http", test))]
pub(crate) use reading::State;
pub(crate) use schedule::{latest, set_shared_statistics};
pub use schedule::{set_allocator_statistics, trim};
pub(crate) use usage::SharedStatistics;
pub use usage::{AllocatorStatistics, AllocatorUsage};
