//! The part of a thread's state that walks by unwind rules use.

use crate::record::stack_id::frame_layout_cache::FrameLayoutCache;
use crate::record::thread::stack_bounds::{self, StackBounds};
use crate::record::unwind::rule_cache::Rules;

/// Caches of a thread's walks, and its stack. All zero bytes are a fresh one.
pub(crate) struct WalkState {
    pub rules: Rules,
    pub layouts: FrameLayoutCache,
    pub bounds: StackBounds,
}

impl WalkState {
    /// Prepares it for the calling thread, which has just taken it.
    pub(super) fn prepare(&mut self) {
        self.bounds = stack_bounds::of_this_thread();
        self.layouts.prepare();
        self.layouts.move_to(self.bounds.end);
    }

    /// Forgets the last stack of each layout, but those whose ids are to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.layouts.retain_last(keep);
    }
}
