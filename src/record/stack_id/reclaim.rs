//! Gives the memory of ids that are over back: their counts in all threads, their places in the tables, and their stacks.
//!
//! An id is never given out twice. So a holder of one (the tag of a block that outlives its epoch, a baseline, a name) can never
//! take it for another stack, and the proof has to show only that nothing follows a *pointer* any more.
//!
//! ```text
//! id         given out ──▶ present: at or above the base ──▶ over for ever: below `epoch::ended`, or as `life` finds
//! its chunk  linked ──────────────────────────────────────▶ unlinked ──▶ every thread was seen outside ──▶ freed
//! ```
//!
//! This file has the rounds, and ids that end with their epoch; `life` has those of stacks that die before.
//!
//! # Holders of a pointer to a chunk
//!
//! * An event: its thread is `BUSY` from before it loads the pointer (or the base, or the generation) until after it has
//!   last used it. A signal handler in the middle of an event has the mark of the event around it.
//! * A frame layout, from event to event. It is used only in an event that finds its thread at the present generation, which
//!   is loaded after the mark, and only where its id is not below the base that the thread read in that generation, and was not
//!   closed before it.
//! * A part of an event in a thread without a state: inside `in_event`, counted for all such threads together.
//! * A reader: inside `Reading`.
//!
//! Stack caches and tags have ids, not pointers. An id that is over is refused by its number, after the mark, or leads to an
//! empty place. The map of stacks has pointers to stacks. A stack is taken out of it before its chunk is unlinked, under the lock
//! of its part, and is freed together with that chunk, which is the only other way to it.
//!
//! # A round
//!
//! 1. The base has moved, then the generation, then `epoch::ended`; or `life` has found that ids are over. Their chunks are
//!    unlinked from the tables of all threads.
//! 2. All threads pass a memory barrier. A thread that marks itself after that finds the new base and generation, and no
//!    unlinked pointer. One that had marked itself before is seen busy.
//! 3. Each thread has to be seen outside once, now or in a later round; none is waited for. A state without a thread is
//!    outside: its thread will not go on with an event, and one that adopts it begins after the barrier. So are the threads
//!    that a forked child does not have.
//! 4. All threads pass a barrier again: their writes to the chunks in earlier events come before the free.
//! 5. The chunks are freed.
//!
//! An event that began before the barrier may still make a chunk of an id that has ended with its epoch. So each such number is
//! looked at in two rounds, and its page is unlinked after the second.
//!
//! A round is made by threads that clear, stop, start or read, and where the tables are nearly full by one that has met a new
//! stack, after its event; one at a time, inside the fork lock. Each unlinks a bounded number of chunks. Without the barrier (see
//! `process_barrier`), or where reclaiming is switched off, nothing is unlinked. A thread that has left an event by a jump stays busy, and
//! nothing is freed until it exits. After a jump out of a round no other round is made.

use crate::base::atomics::{AtomicBool, AtomicU32, Ordering};
use crate::base::hint::unlikely;
use crate::record::count::chunk_table::PAGE;
use crate::record::count::counters::{CHUNK, number};
use crate::record::epoch;
use crate::record::fork;
use crate::record::memory;
use crate::record::stack_id::life::Looks;
use crate::record::stack_id::unlinked::Unlinked;
use crate::record::thread::{self, BUSY, LOOKS, process_barrier};
use std::cell::UnsafeCell;
use std::hint::spin_loop;

/// The present round.
struct Round {
    /// Number of the round: [`ThreadState::has_passed`](thread::ThreadState::has_passed) compares it.
    number: usize,
    unlinked: Unlinked,
    /// The looks for ids of the present epoch that are over.
    looks: Looks,
    /// It was begun, and has not ended.
    is_begun: bool,
    /// Below this number of a chunk nothing is linked any more.
    swept: usize,
    /// Below this number all chunks were unlinked, and no event makes one any more.
    passed: usize,
    /// Below this number all chunks were unlinked, by this round; nothing where it has looked at none of them.
    reached: Option<usize>,
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

/// Amounts that [`give_back`] handles for a reader.
pub(crate) const READER: Looked =
    Looked { usually: 64, when_short: 2048, over: 2048, swept: 65_536, rounds: 64 };
/// Amounts that it handles for a thread that ends ids.
pub(crate) const ENDER: Looked = Looked { usually: 0, when_short: 0, over: 0, swept: 65_536, rounds: 64 };
/// Amounts that it handles where scopes have ended.
pub(crate) const SCOPES: Looked =
    Looked { usually: 1024, when_short: 2048, over: 1024, swept: 2048, rounds: 4 };
/// Amounts that it handles in a thread that has met a new stack: few, as this is part of an allocation.
const EVENT: Looked = Looked { usually: 0, when_short: 128, over: 16, swept: 128, rounds: 2 };
/// Ids that are given out between two such rounds. Fewer would have threads look through their caches more often.
const IDS_BETWEEN: usize = 8 * CHUNK;

/// The most that one call does: numbers of chunks that are looked at in a round, also where the tables are nearly full.
#[derive(Clone, Copy)]
pub(crate) struct Looked {
    usually: usize,
    when_short: usize,
    /// Chunks that are unlinked in a round.
    over: usize,
    /// Numbers of chunks of earlier epochs that are looked at in a round.
    swept: usize,
    /// The most rounds of one call.
    rounds: usize,
}

/// The next thread that comes by makes a round, because the tables are nearly full. Relaxed: a hint.
static WANTED: AtomicBool = AtomicBool::new(false);
/// New stacks for which there was no room. Relaxed: as above.
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// Gives all memory back that can be given back now. Never waits; where a thread is in the middle of an event, a later call goes on.
pub(crate) fn give_back(looked: Looked) {
    ROUNDS.give_back(looked);
}

/// Wants a round soon, where the tables are nearly full: after some ids have been given out, and now and then where there was no
/// room for a stack.
#[cold]
pub(crate) fn note_interned(id: Option<u32>) {
    let is_due = match id {
        Some(id) => (id as usize).is_multiple_of(IDS_BETWEEN),
        None => REFUSED.fetch_add(1, Ordering::Relaxed).is_multiple_of(256),
    };
    if is_due && memory::is_short() {
        WANTED.store(true, Ordering::Relaxed);
    }
}

/// Makes a round if one is [wanted](note_interned). After an event, by the thread that had it.
#[inline(always)]
pub(crate) fn give_back_if_wanted() {
    if unlikely(WANTED.load(Ordering::Relaxed)) {
        give_back_slow();
    }
}

#[cold]
#[inline(never)]
fn give_back_slow() {
    if WANTED.swap(false, Ordering::Relaxed) {
        give_back(EVENT);
    }
}

impl Rounds {
    pub(crate) const fn new() -> Rounds {
        Rounds { is_begun: AtomicBool::new(false), round: UnsafeCell::new(Round::new()) }
    }

    /// Implements [`give_back`].
    pub(crate) fn give_back(&self, looked: Looked) {
        let Some(state) = thread::current_or_make() else { return };
        // A signal handler has interrupted an event, or the call would wait for a fork.
        if state.flags() & BUSY != 0
            || !epoch::reclaims()
            || !process_barrier::is_available()
            || fork::is_closed()
        {
            return;
        }
        let Some(_inside) = fork::try_enter(state) else { return };
        // Acquire: pairs with the Release below.
        if self.is_begun.swap(true, Ordering::Acquire) {
            return;
        }
        // SAFETY: no other thread uses it before the store below. A signal handler of this one finds the mark.
        let round = unsafe { &mut *self.round.get() };
        for _ in 0..looked.rounds {
            round.is_begun = round.is_begun || round.begin(looked);
            if !round.is_begun || !round.has_passed() {
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
            unlinked: Unlinked::new(),
            looks: Looks::new(),
            is_begun: false,
            swept: 0,
            passed: 0,
            reached: None,
            page: 0,
            is_after_barrier: false,
            has_passed_stateless: false,
        }
    }

    /// Unlinks chunks whose ids are over, and closes those that may become so; false where there are none.
    fn begin(&mut self, looked: Looked) -> bool {
        let end = number(epoch::ended());
        let has_more = if end > self.swept {
            // Chunk 0 has the ids that no epoch ends.
            let begin = self.swept.max(1);
            let end = end.min(begin + looked.swept);
            let reached = (begin..end).find(|number| !self.unlinked.unlink(*number)).unwrap_or(end);
            self.reached = Some(reached);
            while (self.page + 1) * PAGE <= self.swept
                && self.unlinked.unlink_page(self.page * PAGE + PAGE - 1)
            {
                self.page += 1;
            }
            // Else a part of the map of stacks is locked just now.
            reached > self.swept
        } else {
            self.reached = None;
            let most = if memory::is_short() { looked.when_short } else { looked.usually };
            self.looks.look(most, looked.over, &mut self.unlinked)
        };
        self.is_after_barrier = false;
        has_more || !self.unlinked.is_empty()
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

    /// Frees the unlinked memory.
    fn end(&mut self) {
        // SAFETY: it was unlinked before a barrier, and after that each thread was seen outside: see the module.
        unsafe { self.unlinked.free() };
        if let Some(reached) = self.reached {
            (self.swept, self.passed) = (self.passed.min(reached), self.passed.max(reached));
        }
        self.is_begun = false;
    }
}
