//! The crate's `base/` with atomics that loom controls.

pub(crate) mod atomics;
#[path = "../../../../src/base/hint.rs"]
pub(crate) mod hint;
#[path = "../../../../src/base/splitmix.rs"]
pub(crate) mod splitmix;
