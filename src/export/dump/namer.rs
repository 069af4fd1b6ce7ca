//! Names of the largest stacks, looked up while there is memory for that, by a thread that ends when it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::WAIT_FOR_NAMES;
use super::largest::Largest;
use crate::analyze::symbols::{self, Unnamed};
use crate::record::control;

/// Longest time for one go.
const LONGEST: Duration = Duration::from_secs(5);
/// Rest after a go that has left stacks without a name.
const REST: Duration = Duration::from_secs(10);

/// The thread, if one is looking names up.
#[derive(Debug, Default)]
pub(super) struct Namer {
    /// Set while it runs.
    is_busy: Arc<AtomicBool>,
    begun: Option<(Instant, usize)>,
    /// True if it has begun, and its end was not noticed yet.
    is_awaited: bool,
}

impl Namer {
    /// Returns whether the names of the last go are there, once.
    pub(super) fn has_finished(&mut self) -> bool {
        let has_finished = self.is_awaited && !self.is_busy.load(Ordering::Relaxed);
        self.is_awaited &= !has_finished;
        has_finished
    }

    /// Looks up the names of the stacks that have none. True if all that can have one have it.
    pub(super) fn name(&mut self, largest: &Largest) -> bool {
        if self.is_busy.load(Ordering::Relaxed) {
            return false;
        }
        let Some(names) = symbols::global().known(WAIT_FOR_NAMES) else { return false };
        let without = largest.iter().filter(|stack| names.site(stack.id).is_none());
        let unnamed = without
            .map(|stack| Unnamed { id: stack.id, addresses: largest.addresses(stack).to_vec().into() });
        let unnamed: Vec<Unnamed> = unnamed.collect();
        drop(names);
        let is_tried =
            self.begun.is_some_and(|(begun, count)| count == unnamed.len() && begun.elapsed() < REST);
        if unnamed.is_empty() || is_tried {
            return true;
        }
        self.begun = Some((Instant::now(), unnamed.len()));
        self.is_awaited = true;
        let is_busy = self.is_busy.clone();
        is_busy.store(true, Ordering::Relaxed);
        let look_up = move || {
            control::internal_for_life();
            let symbols = symbols::global();
            symbols.resolve(&mut unnamed.iter(), LONGEST);
            for stack in unnamed {
                // The site is kept with the names.
                let _ = symbols.site(stack.id, stack.as_ref());
            }
            is_busy.store(false, Ordering::Relaxed);
        };
        let is_begun = std::thread::Builder::new().spawn(look_up).is_ok();
        if !is_begun {
            self.is_busy.store(false, Ordering::Relaxed);
        }
        !is_begun
    }
}
