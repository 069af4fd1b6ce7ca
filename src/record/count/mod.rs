//! Counters by thread and stack id, the byte budget between samples, and the weight of a sample.

pub(crate) mod counters;
pub(crate) mod sampling;
pub(crate) mod unsampled;
