//! The calling thread → its [`ThreadState`]: its flags, its stack, its caches, its counters.
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
//! A thread without a state (it is starting, ending, or there was no memory) counts at [`SHARED`].

mod busy;
mod exit;
mod guard;
pub(crate) mod process_barrier;
mod registry;
mod scopes;
mod section;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) mod stack_bounds;
mod stack_buffer;
mod state;
#[cfg(test)]
mod tests;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod walk_state;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "no_walk_state.rs"]
mod walk_state;

pub(crate) use busy::Idle;
pub(crate) use guard::Suspension;
#[cfg(unix)]
pub(crate) use registry::forget_other_threads;
pub(crate) use registry::{
    SHARED, all, current, current_or_make, enter_at_generation, hot_state, idle, idle_with_flags, prepare,
    revoke_unpublished, unpublished_bytes, unsuspended,
};
pub(crate) use section::{LOOKS, Reading, in_event, no_stateless_section};
pub(crate) use stack_buffer::{StackBuffer, StackHeader};
pub(crate) use state::{BUSY, HotState, INTERNAL, INTERNING, OwnerState, PAUSED, SpanBytes, ThreadState};
