//! The crate's counters, budgets and epochs, above stand-ins of `memory` and `tag`.

#[path = "../../../../src/record/append_list.rs"]
pub(crate) mod append_list;
pub(crate) mod count;
#[path = "../../../../src/record/epoch.rs"]
pub(crate) mod epoch;
pub(crate) mod memory;
#[path = "../../../../src/record/peak.rs"]
pub(crate) mod peak;
pub(crate) mod tag;

/// Replaces `watermark.rs`: no reader is to be woken.
pub(crate) mod watermark {
    pub(crate) fn compare(_live_bytes: i64) {}
}
