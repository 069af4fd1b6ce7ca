//! The crate's counters, budgets and epochs, above stand-ins of `memory`, `tag`, `thread` and `fork`.

#[path = "../../../../src/record/append_list.rs"]
pub(crate) mod append_list;
pub(crate) mod count;
#[path = "../../../../src/record/epoch.rs"]
pub(crate) mod epoch;
pub(crate) mod memory;
#[path = "../../../../src/record/peak.rs"]
pub(crate) mod peak;
pub(crate) mod scope;
pub(crate) mod stack_id;
pub(crate) mod tag;
pub(crate) mod thread;

/// Replaces `fork.rs`: no model forks.
pub(crate) mod fork {
    pub(crate) fn try_enter(_state: &'static crate::state::State) -> Option<()> {
        Some(())
    }

    pub(crate) fn is_closed() -> bool {
        false
    }
}

/// Replaces `watermark.rs`: no reader is to be woken.
pub(crate) mod watermark {
    pub(crate) fn compare(_live_bytes: i64) {}
}
