//! Checks an id against a walk, in debug builds.

use crate::record::dropped::{self, Reason};
use crate::record::scope::slots;
use crate::record::stack_id::table;
use crate::record::thread::OwnerState;
use crate::record::unwind::{self, Entrance, Registers};

/// Returns whether a walk finds the stack of this id too. In debug builds.
pub(super) fn walk_agrees(id: u32, owner: &mut OwnerState, registers: Registers, entrance: Entrance) -> bool {
    unwind::walk(owner, registers, Some(entrance));
    is_stack_of_id(id, owner)
}

/// Returns whether the id is the one of the stack in the buffer, in its scopes. One of the two may be longer where another thread
/// has just changed how many addresses are stored.
pub(super) fn is_stack_of_id(id: u32, owner: &OwnerState) -> bool {
    let found = owner.buffer.addresses().iter().copied();
    let scope = owner.buffer.header.scope;
    table::recorded(id).is_none_or(|recorded| {
        // Where there was no room for the stack in these scopes.
        let is_elsewhere = dropped::events(Reason::Scopes) != 0
            && (recorded.scope.is_none() || recorded.scope == slots::other_of(scope));
        if recorded.scope != scope && !is_elsewhere {
            return false;
        }
        let is_cut = recorded.truncated || owner.buffer.header.truncated;
        if is_cut {
            recorded.addresses().zip(found).all(|(recorded, found)| recorded == found)
        } else {
            recorded.addresses().eq(found)
        }
    })
}
