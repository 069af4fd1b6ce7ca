//! Stand-in for `walk_state` where the platform's unwinder walks, which keeps what it needs.

pub(crate) struct WalkState;

impl WalkState {
    pub(super) fn prepare(&mut self) {}

    pub(super) fn retain(&mut self, _keep: impl Fn(u32) -> bool) {}
}
