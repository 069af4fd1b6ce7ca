//! The crate's own files of `record/count/`.

#[path = "../../../../../src/record/count/chunk_table.rs"]
pub(crate) mod chunk_table;
#[path = "../../../../../src/record/count/counters.rs"]
pub(crate) mod counters;
#[path = "../../../../../src/record/count/sampling.rs"]
pub(crate) mod sampling;
#[path = "../../../../../src/record/count/unpublished.rs"]
pub(crate) mod unpublished;
#[path = "../../../../../src/record/count/unsampled.rs"]
pub(crate) mod unsampled;
