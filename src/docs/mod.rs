//! Pages of the documentation, in the order in which a reader needs them: the way to production, the meaning of each metric, outlets,
//! sampling, tests of a program, limits, and the way from `tracemalloc`.

#[doc = include_str!("production.md")]
pub mod production {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

pub mod outlets;

#[doc = include_str!("sampling.md")]
pub mod sampling {}

#[doc = include_str!("leak_tests.md")]
pub mod leak_tests {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("coming_from_tracemalloc.md")]
pub mod coming_from_tracemalloc {}
