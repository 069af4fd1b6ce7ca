//! Counters by thread and stack id, live bytes not yet published, the byte budget between samples, and the weight of
//! a sample.

pub(crate) mod chunk_table;
pub(crate) mod counters;
pub(crate) mod sampling;
pub(crate) mod unpublished;
pub(crate) mod unsampled;
