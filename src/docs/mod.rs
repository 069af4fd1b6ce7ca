//! Pages of the documentation: how to read the metrics, sampling, outlets, tests of a program, limits, and the way from `tracemalloc`.

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("sampling.md")]
pub mod sampling {}

pub mod outlets;

#[doc = include_str!("leak_tests.md")]
pub mod leak_tests {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("coming_from_tracemalloc.md")]
pub mod coming_from_tracemalloc {}
