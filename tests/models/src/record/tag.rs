//! What `sampling.rs` and `epoch.rs` want of the crate's `tag/mod.rs`; the last check holds it to that.

/// The first id a stack can have.
pub(crate) const FIRST: u32 = 2;
/// Set in the tag of a sampled block.
pub(crate) const SAMPLED: u32 = 1 << 31;
/// Blocks of fewer bytes have their id behind them.
pub(crate) const SMALL: usize = 1 << 10;
