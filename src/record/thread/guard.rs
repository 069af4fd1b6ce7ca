//! Guards that leave the calling thread's allocations out of the traced blocks.

use crate::record::thread::registry::{current, current_or_make};
use crate::record::thread::state::ThreadState;
use std::marker::PhantomData;

/// Suspends recording in the calling thread by one level, for as long as it lives.
pub(crate) struct Suspension {
    kind: u8,
    /// The state that counts it: none where the thread had none when it began, though it may have one when it ends.
    state: Option<&'static ThreadState>,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Suspension {
    /// Suspends recording for the given reason, [`PAUSED`](super::PAUSED) or [`INTERNAL`](super::INTERNAL).
    pub(crate) fn new(kind: u8) -> Suspension {
        let state = current_or_make();
        if let Some(state) = state {
            state.suspend(kind);
        }
        Suspension { kind, state, not_send: PhantomData }
    }
}

impl Drop for Suspension {
    fn drop(&mut self) {
        // Near its end the thread has given its state away, and the levels with it.
        if let (Some(counted), Some(state)) = (self.state, current())
            && std::ptr::eq(counted, state)
        {
            state.resume(self.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::thread::registry::{GONE, LOCAL, NOT_YET};
    use crate::record::thread::state::{INTERNAL, PAUSED};

    /// The first was made where its thread could have no state, near its end or without memory: it counts no level.
    #[test]
    fn suspensions_end_in_any_order() {
        std::thread::spawn(|| {
            LOCAL.set(&raw const GONE);
            let uncounted = Suspension::new(PAUSED);
            LOCAL.set(&raw const NOT_YET);
            let counted = Suspension::new(PAUSED);
            let (first, second) = (Suspension::new(PAUSED), Suspension::new(INTERNAL));
            drop(uncounted);
            drop(first);
            assert_eq!(current().unwrap().flags(), PAUSED | INTERNAL);
            drop(counted);
            assert_eq!(current().unwrap().flags(), INTERNAL);
            drop(second);
            assert_eq!(current().unwrap().flags(), 0);
        })
        .join()
        .unwrap();
    }
}
