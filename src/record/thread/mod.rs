//! The calling thread → its [`ThreadState`]: what it is doing, its stack, its caches, its counters.
//!
//! A state outlives its thread and is adopted whole by a later one, counters and caches included, so
//! nothing is ever lost or merged when a thread ends. The list of all states only grows; it is as
//! long as the most threads that ever lived at once.
//!
//! ```text
//! first allocation ─▶ adopt a released state, else make one ─▶ … ─▶ last pthread key destructor
//!                                  ▲                                        │ LOCAL = gone
//!                                  └──────────── released ◀─────────────────┘
//! ```
//!
//! A thread without a state (it is starting, ending, or there was no memory) books at [`SHARED`].

mod exit;
mod guard;
mod registry;
pub(crate) mod stack_bounds;
mod state;

pub(crate) use guard::Silence;
pub(crate) use registry::{
    SHARED, all, current, current_or_make, forget_other_threads, front, idle, prepare, revoke_unpublished,
    tuned_to, unpublished_bytes, unsilenced,
};
pub(crate) use state::{BUSY, INTERNING, OWN, PAUSED, StackBuffer, StackHeader, ThreadState, Tools};
