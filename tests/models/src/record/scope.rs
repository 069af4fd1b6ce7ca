//! The life of a scope's slot, as the crate has it.

#[path = "../../../../src/record/scope/slot.rs"]
pub(crate) mod slot;
