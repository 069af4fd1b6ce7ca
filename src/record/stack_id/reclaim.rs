//! Gives the memory of ids that are over back: their counts in all threads, and their places in the tables.
//!
//! An id is never given out twice. So whatever keeps one (the tag of a block that outlives its epoch, a baseline, a name) can
//! never take it for another stack, and what has to be proven is only that nothing follows a *pointer* any more.
//!
//! ```text
//! id         given out ──▶ present: at or above the base ──▶ over: below `epoch::ended`, for ever
//! its chunk  linked ──────────────────────────────────────▶ unlinked ──▶ every thread was seen outside ──▶ freed
//! ```
//!
//! # Who may hold a pointer to a chunk
//!
//! * An event: its thread is `BUSY` from before it loads the pointer (or the base, or the generation) until after it has
//!   last used it. A signal handler in the middle of an event has the mark of the event around it.
//! * A frame layout, from event to event. It is used only in an event that finds its thread at the present generation, which
//!   is loaded after the mark, and only where its id is not below the base that the thread read in that generation.
//! * A part of an event in a thread without a state: inside `in_event`, counted for all such threads together.
//! * A reader: inside `Reading`.
//!
//! Stack caches, tags and the map of stacks have ids, not pointers. An id that is over is refused by its number, after the
//! mark, or leads to an empty place.
//!
//! # A round
//!
//! 1. The base has moved, then the generation, then `epoch::ended`. Chunks of ids that are over are unlinked from the tables
//!    of all threads.
//! 2. All threads pass a memory barrier. A thread that marks itself after that finds the new base and generation, and no
//!    unlinked pointer. One that had marked itself before is seen busy.
//! 3. Each thread has to be seen outside once, now or in a later round; none is waited for. A state without a thread is
//!    outside: its thread will not go on with an event, and one that adopts it begins after the barrier. So are the threads
//!    that a forked child does not have.
//! 4. All threads pass a barrier again: what they wrote to the chunks in earlier events comes before the free.
//! 5. The chunks are freed.
//!
//! An event that began before the barrier may still make a chunk of an id that is over. So each number is looked at in two
//! rounds, and its page is unlinked after the second.
//!
//! A round is made by threads that clear, stop, start or read, one at a time, inside the fork lock. What is unlinked in a round is
//! bounded. Without the barrier (see `process_barrier`) nothing is unlinked, nor where it is switched off. A thread that has left an event by a jump stays
//! busy, and nothing is freed until it exits.

use crate::base::atomics::{AtomicBool, Ordering};
use crate::record::count::chunk_table::{PAGE, Page};
use crate::record::count::counters::{OwnerCounters, Shared, number};
use crate::record::epoch;
use crate::record::fork;
use crate::record::memory;
use crate::record::thread::{self, BUSY, LOOKS, SHARED, process_barrier};
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ptr::NonNull;

/// Chunks and pages that a round unlinks at most.
const MOST: usize = 2048;
/// Rounds that one call makes at most.
const MOST_ROUNDS: usize = 64;

/// Memory that was unlinked.
#[derive(Clone, Copy)]
enum Unlinked {
    Own(NonNull<OwnerCounters>),
    Shared(NonNull<Shared>),
    OwnPage(NonNull<Page<OwnerCounters>>),
    SharedPage(NonNull<Page<Shared>>),
}

impl Unlinked {
    /// Frees it.
    ///
    /// # Safety
    ///
    /// * Nothing follows the pointer any more.
    unsafe fn free(self) {
        // SAFETY: each came from a table, which makes it in this way; and the caller's duty.
        unsafe {
            match self {
                Unlinked::Own(chunk) => OwnerCounters::free(chunk),
                Unlinked::Shared(chunk) => memory::free_array(chunk.as_ptr(), 1),
                Unlinked::OwnPage(page) => memory::free_array_of_thread(page.as_ptr(), 1),
                Unlinked::SharedPage(page) => memory::free_array(page.as_ptr(), 1),
            }
        }
    }
}

/// The present round.
struct Round {
    /// Number of the round: [`ThreadState::has_passed`](thread::ThreadState::has_passed) compares it.
    number: usize,
    unlinked: [Option<Unlinked>; MOST],
    len: usize,
    /// Below this number of a chunk nothing is linked any more.
    swept: usize,
    /// Below this number all chunks were unlinked, and no event makes one any more.
    passed: usize,
    /// Below this number all chunks were unlinked, by this round.
    reached: usize,
    /// Number of the first page that is not unlinked.
    page: usize,
    /// All threads have passed a barrier after it was unlinked.
    is_after_barrier: bool,
    /// The threads without a state have been seen outside.
    has_passed_stateless: bool,
}

/// The rounds of the process, one after the other.
pub(crate) struct Rounds {
    /// Set while a thread makes the present one.
    is_begun: AtomicBool,
    round: UnsafeCell<Round>,
}

// SAFETY: one thread at a time uses the round, see `is_begun`.
unsafe impl Sync for Rounds {}

static ROUNDS: Rounds = Rounds::new();

/// Gives back what can be given back now. Never waits; where a thread is in the middle of an event, a later call goes on.
pub(crate) fn give_back() {
    ROUNDS.give_back();
}

impl Rounds {
    pub(crate) const fn new() -> Rounds {
        Rounds { is_begun: AtomicBool::new(false), round: UnsafeCell::new(Round::new()) }
    }

    /// Implements [`give_back`].
    pub(crate) fn give_back(&self) {
        let Some(state) = thread::current_or_make() else { return };
        // In a signal handler, in the middle of an event.
        if state.flags() & BUSY != 0 || !epoch::reclaims() || !process_barrier::is_available() {
            return;
        }
        let Some(_inside) = fork::try_enter(state) else { return };
        // Acquire: pairs with the Release below.
        if self.is_begun.swap(true, Ordering::Acquire) {
            return;
        }
        // SAFETY: no other thread uses it before the store below. A signal handler of this one finds the mark.
        let round = unsafe { &mut *self.round.get() };
        for _ in 0..MOST_ROUNDS {
            if round.len == 0 && !round.begin() || !round.has_passed() {
                break;
            }
            round.end();
        }
        self.is_begun.store(false, Ordering::Release);
    }
}

impl Round {
    const fn new() -> Round {
        Round {
            number: 0,
            unlinked: [None; MOST],
            len: 0,
            swept: 0,
            passed: 0,
            reached: 0,
            page: 0,
            is_after_barrier: false,
            has_passed_stateless: false,
        }
    }

    /// Unlinks what is over; false where that is nothing.
    fn begin(&mut self) -> bool {
        let end = number(epoch::ended());
        if end <= self.passed {
            return false;
        }
        // Chunk 0 has the ids that no epoch ends.
        self.reached = self.unlink(self.swept.max(1)..end).max(self.passed);
        while (self.page + 1) * PAGE <= self.swept && self.unlink_page(self.page * PAGE + PAGE - 1) {
            self.page += 1;
        }
        self.is_after_barrier = false;
        true
    }

    /// Makes all threads pass a barrier after [`begin`](Round::begin); false where that is not possible.
    fn pass_barrier(&mut self) -> bool {
        if !self.is_after_barrier && process_barrier::in_all_threads() {
            self.number += 1;
            (self.is_after_barrier, self.has_passed_stateless) = (true, false);
            thread::all().for_each(thread::ThreadState::note_readings);
        }
        self.is_after_barrier
    }

    /// Unlinks the chunks of these numbers, and returns the number up to which that was possible.
    fn unlink(&mut self, numbers: std::ops::Range<usize>) -> usize {
        let end = numbers.end;
        for number in numbers {
            let own = thread::all().filter_map(|state| state.counters.unlink(number).map(Unlinked::Own));
            let shared = || SHARED.unlink(number).map(Unlinked::Shared);
            if !self.add_all(own) || !self.add_all(std::iter::from_fn(shared)) {
                return number;
            }
        }
        end
    }

    /// Unlinks the pages of this number of a chunk; false where some may be left.
    fn unlink_page(&mut self, number: usize) -> bool {
        let own = thread::all().filter_map(|state| state.counters.unlink_page(number).map(Unlinked::OwnPage));
        let shared = || SHARED.unlink_page(number).map(Unlinked::SharedPage);
        self.add_all(own) && self.add_all(std::iter::from_fn(shared))
    }

    /// Adds what is unlinked one by one; false where there is no room for more.
    fn add_all(&mut self, mut unlinked: impl Iterator<Item = Unlinked>) -> bool {
        while let Some(place) = self.unlinked.get_mut(self.len) {
            let Some(one) = unlinked.next() else { return true };
            *place = Some(one);
            self.len += 1;
        }
        false
    }

    /// Returns whether every thread was seen outside since [`begin`](Round::begin).
    fn has_passed(&mut self) -> bool {
        if !self.pass_barrier() {
            return false;
        }
        for _ in 0..LOOKS {
            self.has_passed_stateless = self.has_passed_stateless || thread::no_stateless_section();
            if thread::all().all(|state| state.has_passed(self.number)) && self.has_passed_stateless {
                return process_barrier::in_all_threads();
            }
            spin_loop();
        }
        false
    }

    /// Frees what was unlinked.
    fn end(&mut self) {
        for unlinked in self.unlinked[..self.len].iter_mut().filter_map(Option::take) {
            // SAFETY: it was unlinked before a barrier, and after that each thread was seen outside: see the module.
            unsafe { unlinked.free() };
        }
        self.len = 0;
        (self.swept, self.passed) = (self.passed, self.reached);
    }
}
