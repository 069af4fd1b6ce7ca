//! Read side: raw counts and addresses → named snapshots, statistics and reports, in ordinary safe Rust.
#![forbid(unsafe_code)]

pub(crate) mod ages;
#[cfg(any(feature = "http", test))]
pub(crate) mod call_tree;
pub(crate) mod collector;
pub(crate) mod dump_counts;
pub(crate) mod frame;
pub(crate) mod leb128;
pub(crate) mod live;
pub(crate) mod memory_limit;
// Only the feature `http` reads arenas and mappings.
#[cfg_attr(not(feature = "http"), allow(dead_code))]
pub(crate) mod memory_parts;
pub(crate) mod merge_ids;
// Each of the two features reads a part of it.
#[cfg_attr(not(all(feature = "http", feature = "pprof")), allow(dead_code))]
pub(crate) mod profile;
pub(crate) mod scope;
pub(crate) mod snapshot;
pub(crate) mod stacks_by_id;
pub(crate) mod symbols;
pub mod testing;
pub(crate) mod traceback_of;
