//! Pages of the documentation, in the order in which a reader needs them.
//!
//! 1. [`production`]: from a laptop to production, in eight steps
//! 2. [`metrics`]: the meaning of each figure
//! 3. [`resident_memory`]: the parts of resident memory, and the figures that each allocator tells
//! 4. [`outlets`]: the ways to serve them, with a snippet each
//! 5. [`sampling`]: less cost, and the error of estimates
//! 6. [`scopes`]: live bytes by tenant, route or task
//! 7. [`ages`]: live bytes by age, and leaks told from caches
//! 8. [`leak_tests`]: tests of your program that fail on a leak
//! 9. [`limits`]: blind spots, and the effect of each limit
//! 10. [`after_a_kill`]: the dumps of a process that was killed for its memory
//! 11. [`platforms`]: the systems and processors it was tried on
//! 12. [`coming_from_tracemalloc`]: the names of Python's module

#[doc = include_str!("production.md")]
pub mod production {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("resident_memory.md")]
pub mod resident_memory {}

pub mod outlets;

#[doc = include_str!("sampling.md")]
pub mod sampling {}

// Its code needs libraries that only the package `test-scopes` has, which tests it.
#[cfg_attr(not(doctest), doc = include_str!("scopes.md"))]
pub mod scopes {}

#[doc = include_str!("ages.md")]
pub mod ages {}

#[doc = include_str!("leak_tests.md")]
pub mod leak_tests {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("after_a_kill.md")]
pub mod after_a_kill {}

#[doc = include_str!("platforms.md")]
pub mod platforms {}

#[doc = include_str!("coming_from_tracemalloc.md")]
pub mod coming_from_tracemalloc {}
