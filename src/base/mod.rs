//! Shared helpers without knowledge of heaps: atomics, errors, branch hints, hashes, random numbers.

pub(crate) mod atomics;
pub(crate) mod error;
pub(crate) mod hint;
#[cfg(test)]
pub(crate) mod random_input;
pub(crate) mod ready_hasher;
pub(crate) mod splitmix;
