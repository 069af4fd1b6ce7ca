//! Replaces the parts of `tag/mod.rs` that `sampling.rs` and `epoch.rs` use; the last check compares both.

/// The first id a stack can have.
pub(crate) const FIRST: u32 = 2;
/// Set in the tag of a sampled block.
pub(crate) const SAMPLED: u32 = 1 << 31;
/// Blocks of fewer bytes have their id behind them.
pub(crate) const SMALL: usize = 1 << 10;
