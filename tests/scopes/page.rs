//! The page `scopes` of the documentation, so that `cargo test` runs its code.

#[cfg(doctest)]
#[doc = include_str!("../../src/docs/scopes.md")]
pub mod page {}
