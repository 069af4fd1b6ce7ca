//! Replaces `cfi` on targets without a reader of unwind rules: every walk goes to `fallback`.

use super::Entrance;
use crate::record::count::counters::{Count, OwnerCounters, Table};
use crate::record::stack_id::fingerprint::Fingerprint;
use crate::record::thread::{HotState, OwnerState};

pub(super) const AVAILABLE: bool = false;

#[derive(Clone, Copy)]
pub(crate) struct Registers;

impl Registers {
    #[inline(always)]
    pub(crate) fn here() -> Registers {
        Registers
    }
}

/// A stack known by its frame layout: there is none.
#[derive(Clone, Copy)]
pub(crate) enum FrameLayout {}

impl FrameLayout {
    pub(crate) fn id(&self) -> u32 {
        match *self {}
    }

    /// Returns nothing: there is no value to call it with.
    ///
    /// # Safety
    ///
    /// * None.
    pub(crate) unsafe fn count(&self) -> &'static Count {
        match *self {}
    }
}

pub(super) fn refresh(_owner: &mut OwnerState) {}

/// A layout that is not the one looked for: there is none.
pub(crate) type Missed = Option<FrameLayout>;

#[inline(always)]
pub(crate) fn lookup_last<'a>(
    _hot: &HotState,
    _owner: &'a mut OwnerState,
    _entrance: Entrance,
) -> Result<&'a FrameLayout, Missed> {
    Err(None)
}

pub(crate) fn lookup_missed<'a>(
    _owner: &'a mut OwnerState,
    _counters: &'static Table<OwnerCounters>,
    _missed: Missed,
) -> Option<&'a FrameLayout> {
    None
}

pub(crate) fn lookup_by_second_layout<'a>(
    _hot: &HotState,
    _owner: &'a mut OwnerState,
    _counters: &'static Table<OwnerCounters>,
    _missed: Missed,
    _registers: Registers,
    _entrance: Entrance,
) -> Option<&'a FrameLayout> {
    None
}

pub(crate) fn lookup_by_every_layout(
    _hot: &HotState,
    _owner: &mut OwnerState,
    _counters: &'static Table<OwnerCounters>,
    _registers: Registers,
    _entrance: Entrance,
) -> u32 {
    0
}

pub(super) fn walk_and_learn(
    _owner: &mut OwnerState,
    _registers: Registers,
    _limit: usize,
    _entrance: Option<Entrance>,
) -> Option<Fingerprint> {
    None
}

pub(super) fn prepare() {}

pub(super) fn self_test() -> bool {
    false
}

pub(super) fn modules_epoch() -> u64 {
    0
}

pub(super) fn forget_find_object() {}
