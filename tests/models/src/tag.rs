//! What `tracker.rs` wants of the crate's `tag.rs`.

/// The first id a stack can have.
pub(crate) const FIRST: u32 = 2;
