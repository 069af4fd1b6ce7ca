//! The part of a thread's state that walks by unwind rules use: nothing on other systems.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
use crate::record::{
    stack_id::frame_layout_cache::FrameLayoutCache,
    thread::stack_bounds::{self, StackBounds},
    unwind::rule_cache::Rules,
};

/// Caches of a thread's walks, and its stack. All zero bytes are a fresh one.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) struct WalkState {
    pub rules: Rules,
    pub layouts: FrameLayoutCache,
    pub bounds: StackBounds,
    /// Working memory of the unwind-rule parser, see `unwind::eh_frame`; null until first needed.
    pub parser: *mut u8,
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
impl WalkState {
    /// Prepares it for the calling thread, which has just taken it.
    pub(super) fn prepare(&mut self) {
        self.bounds = stack_bounds::of_this_thread();
        self.layouts.prepare();
        self.layouts.move_to(self.bounds.end);
    }
}

/// Nothing: the platform's unwinder keeps what it needs.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) struct WalkState;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
impl WalkState {
    pub(super) fn prepare(&mut self) {}
}
