//! Keeps allocated counts by stack id over time, and bounds the blocks of an id that are older than an age.
//!
//! Let `A(t)` and `F(t)` be the bytes and blocks of an id that were ever allocated and freed until the time `t`. Then of its blocks that are older than `T`
//!
//! ```text
//! at least  max(0, A(t - T) - F(t))            are live: each free took one of them, at worst
//! at most   the least that was live since t - T  are live: they were live at each of those times
//! ```
//!
//! Both hold for an id that stands for several stacks, and for the sums over ids. Once an id gets no more blocks, `A` does not change, so both
//! are equal from then on: the blocks of a renewed id are older than its renewal.
//!
//! A *mark* is `A` at one moment, and the least that was live from then until the next mark. Marks become rarer with their age, see
//! [`Marks::thin`]. The newest mark has all ids with live blocks; each other has the ids whose values differ from those of the mark after it, so
//! that stacks at rest take no room. An id that a mark lacks had no live block then: `A` was `F` there, so that nothing is older.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{AgeTotals, StackNow};
use crate::analyze::leb128::{pack, unpack};
use crate::analyze::live::Live;

/// Longest age that is told apart.
pub(crate) const HORIZON: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Steps by which marks become rarer: the time between two neighbours is at most their age times these tenths. The first one that
/// fits into the budget is used.
const COARSENESS: [u32; 7] = [1, 2, 5, 10, 30, 100, 1_000];

/// Number of looks that are always kept: what has survived them is old to leak scores.
const YOUNG: u32 = 4;

/// Times by which marks are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Time between two looks.
    pub spacing: Duration,
    /// Age from which blocks count as old.
    pub old_age: Duration,
}

/// Counts of one id in a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    id: u32,
    /// Allocated until the mark; nothing: the id is absent.
    allocated: Live,
    /// The least that was live from the mark until the one after it.
    least: Live,
}

impl Entry {
    fn absent(id: u32) -> Entry {
        Entry { id, allocated: Live::default(), least: Live::default() }
    }
}

/// Entries, ascending by id: four times the step from the id before, plus 1 where the id is absent, plus 2 where the least is all that
/// was allocated; then allocated bytes and blocks, least bytes and blocks as far as they are not told yet. Each in LEB128.
#[derive(Debug, Default)]
struct Packed(Box<[u8]>);

impl Packed {
    fn new(entries: impl Iterator<Item = Entry>) -> Packed {
        let (mut packed, mut before) = (Vec::new(), 0);
        for Entry { id, allocated, least } in entries {
            let is_absent = allocated.is_nothing();
            let is_whole = !is_absent && least == allocated;
            pack(&mut packed, u64::from(id - before) << 2 | u64::from(is_whole) << 1 | u64::from(is_absent));
            before = id;
            for live in [(!is_absent, allocated), (!is_absent && !is_whole, least)] {
                if live.0 {
                    pack(&mut packed, live.1.bytes);
                    pack(&mut packed, live.1.blocks);
                }
            }
        }
        Packed(packed.into())
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let mut rest = &self.0[..];
        let mut id = 0_u32;
        std::iter::from_fn(move || {
            let step = unpack(&mut rest)?;
            id = id.wrapping_add((step >> 2) as u32);
            let mut live = || Some(Live { bytes: unpack(&mut rest)?, blocks: unpack(&mut rest)? });
            Some(match step & 3 {
                0 => Entry { id, allocated: live()?, least: live()? },
                2 => {
                    let allocated = live()?;
                    Entry { id, allocated, least: allocated }
                }
                _ => Entry::absent(id),
            })
        })
    }
}

/// One look at the counts.
#[derive(Debug)]
struct Mark {
    /// Times between which the counts were read.
    begun: Instant,
    read: Instant,
    packed: Packed,
}

/// Looks at the counts of one epoch, the oldest first.
#[derive(Debug)]
pub(crate) struct Marks {
    marks: VecDeque<Mark>,
    /// Index into [`COARSENESS`].
    coarseness: usize,
    /// Time before which no block of the epoch was allocated, where that is known.
    begun: Option<Instant>,
}

impl Marks {
    pub(crate) const fn new() -> Marks {
        Marks { marks: VecDeque::new(), coarseness: 0, begun: None }
    }

    /// Forgets all marks. No block of the epoch that begins now was allocated before `begun`.
    pub(crate) fn clear(&mut self, begun: Option<Instant>) {
        *self = Marks { begun, ..Marks::new() };
    }

    /// Returns the time at which the newest mark was begun.
    pub(crate) fn newest(&self) -> Option<Instant> {
        self.marks.back().map(|mark| mark.begun)
    }

    /// Returns the time at which the mark so many marks before the newest had been read.
    pub(crate) fn read_before(&self, before: usize) -> Option<Instant> {
        self.marks.iter().rev().nth(before).map(|mark| mark.read)
    }

    /// Returns the bytes of all marks.
    pub(crate) fn bytes(&self) -> usize {
        self.marks.iter().map(|mark| mark.packed.0.len() + size_of::<Mark>()).sum()
    }

    /// Returns the number of marks.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.marks.len()
    }

    /// Returns how much older than `age` the blocks must be, at most, to be surely told from younger ones, where nothing but marks tells
    /// them apart: the time between the marks around that age. `None`: no mark is that old.
    #[cfg(test)]
    pub(crate) fn precision(&self, age: Duration, now: Instant) -> Option<Duration> {
        let old = self.marks.iter().rposition(|mark| since(now, mark.read) >= Some(age))?;
        let younger = self.marks.get(old + 1).map_or(now, |mark| mark.begun);
        Some(younger.saturating_duration_since(self.marks[old].begun))
    }

    /// Adds a look, whose counts were read between two times. `stacks` ascends by id; those without live blocks are left out.
    pub(crate) fn push(
        &mut self,
        (begun, read): (Instant, Instant),
        stacks: &[StackNow],
        pace: Pace,
        max_bytes: usize,
    ) {
        let entries = || {
            let live = stacks.iter().filter(|stack| !stack.live.is_nothing());
            live.map(|stack| Entry { id: stack.id, allocated: stack.allocated(), least: stack.live })
        };
        if let Some(before) = self.marks.back_mut() {
            before.packed = Packed::new(differences(before.packed.entries(), entries()));
        }
        self.marks.push_back(Mark { begun, read, packed: Packed::new(entries()) });
        self.thin(pace);
        let fits = |marks: &Marks, share: usize| marks.bytes() <= max_bytes / share;
        while !fits(self, 1) && self.coarseness + 1 < COARSENESS.len() {
            self.coarseness += 1;
            self.thin(pace);
        }
        while !fits(self, 1) && self.marks.len() > 2 {
            self.marks.pop_front();
        }
        // Marks that are gone do not come back, so the ones to come may be closer again.
        if fits(self, 3) {
            self.coarseness = self.coarseness.saturating_sub(1);
        }
    }

    /// Drops marks whose neighbours are close to each other: at most two looks, or a tenth of their age, whichever is more. Its least
    /// goes to the mark before it. Up to the age of old blocks they stay a fifth of that apart even where they have to be rare, as the age
    /// that metrics and alerts go by, and the latest looks stay; unless a few marks fill the budget.
    fn thin(&mut self, Pace { spacing, old_age }: Pace) {
        let Some(now) = self.newest() else { return };
        while self.marks.get(1).is_some_and(|second| since(now, second.begun) >= Some(HORIZON)) {
            self.marks.pop_front();
        }
        let tenths = COARSENESS[self.coarseness];
        let mut at = 1;
        while at + 1 < self.marks.len() {
            let (older, younger) = (self.marks[at - 1].begun, self.marks[at + 1].begun);
            let age = now.saturating_duration_since(younger);
            // A look is never dropped for being a little early.
            let closest = spacing + spacing / 2;
            let most = match age {
                _ if self.coarseness + 1 == COARSENESS.len() => Duration::MAX,
                age if age < spacing * YOUNG => closest,
                age if age < old_age => old_age / 5,
                _ => Duration::MAX,
            };
            let longest = closest.max((age.saturating_mul(tenths) / 10).min(most));
            if younger.saturating_duration_since(older) > longest {
                at += 1;
                continue;
            }
            if let Some(dropped) = self.marks.remove(at) {
                let older = &mut self.marks[at - 1];
                older.packed = Packed::new(merged(older.packed.entries(), dropped.packed.entries()));
            }
        }
    }

    /// Passes the bounds of each stack at each age to `each`, by the places of the age and of the stack. `ages` and `stacks` ascend; the
    /// counts of the stacks were read at `now`.
    pub(crate) fn bounds(
        &self,
        now: Instant,
        stacks: &[StackNow],
        ages: &[Duration],
        mut each: impl FnMut(usize, usize, AgeTotals),
    ) {
        let mut walk = Walk::new(stacks);
        let mut next = 0;
        for mark in self.marks.iter().rev() {
            if next == ages.len() {
                return;
            }
            walk.go_to(mark);
            let (Some(read), Some(begun)) = (since(now, mark.read), since(now, mark.begun)) else {
                // Younger than the counts.
                continue;
            };
            while ages.get(next).is_some_and(|&age| age <= read && age < begun) {
                walk.pass(next, &mut each);
                next += 1;
            }
            walk.bound();
            while ages.get(next).is_some_and(|&age| age <= read) {
                walk.pass(next, &mut each);
                next += 1;
            }
        }
        walk.go_to_the_beginning();
        for (at, &age) in ages.iter().enumerate().skip(next) {
            // Nothing is older than the epoch.
            if self.begun.is_some_and(|begun| since(now, begun) < Some(age)) {
                walk.least_since.fill(Live::default());
            }
            walk.pass(at, &mut each);
        }
    }
}

/// Returns the time since then; `None` where that is later.
fn since(now: Instant, then: Instant) -> Option<Duration> {
    now.checked_duration_since(then)
}

/// State of a way from the newest mark back, by stack.
struct Walk<'a> {
    stacks: &'a [StackNow],
    /// Values of the mark it is at.
    allocated: Vec<Live>,
    least: Vec<Live>,
    /// The least of the marks passed, and of now.
    least_since: Vec<Live>,
}

impl<'a> Walk<'a> {
    fn new(stacks: &'a [StackNow]) -> Walk<'a> {
        Walk {
            stacks,
            allocated: vec![Live::default(); stacks.len()],
            least: vec![Live::default(); stacks.len()],
            least_since: stacks.iter().map(|stack| stack.live).collect(),
        }
    }

    /// Takes the values of the next older mark, where they differ.
    fn go_to(&mut self, mark: &Mark) {
        let mut at = 0;
        for entry in mark.packed.entries() {
            while self.stacks.get(at).is_some_and(|stack| stack.id < entry.id) {
                at += 1;
            }
            if self.stacks.get(at).is_some_and(|stack| stack.id == entry.id) {
                (self.allocated[at], self.least[at]) = (entry.allocated, entry.least);
            }
        }
    }

    /// Goes to the time before all marks, when nothing is known to have been allocated.
    fn go_to_the_beginning(&mut self) {
        self.allocated.fill(Live::default());
    }

    fn bound(&mut self) {
        for (since, least) in self.least_since.iter_mut().zip(&self.least) {
            *since = since.least(*least);
        }
    }

    fn pass(&self, age: usize, each: &mut impl FnMut(usize, usize, AgeTotals)) {
        for (at, stack) in self.stacks.iter().enumerate() {
            let upper = self.least_since[at];
            // Counts are read while blocks come and go.
            let lower = self.allocated[at].minus(stack.freed).least(upper);
            each(age, at, AgeTotals { lower, upper });
        }
    }
}

/// Returns the entries of `older` that differ from those of `younger`; those that only the younger one has are absent.
fn differences(
    older: impl Iterator<Item = Entry>,
    younger: impl Iterator<Item = Entry>,
) -> impl Iterator<Item = Entry> {
    joined(older, younger).filter_map(|pair| match pair {
        (Some(older), Some(younger)) => (older != younger).then_some(older),
        (Some(older), None) => Some(older),
        (None, younger) => younger.map(|younger| Entry::absent(younger.id)),
    })
}

/// Returns the entries of a mark and of the one after it as one mark: a value that only one of them has is the other's, too.
fn merged(
    older: impl Iterator<Item = Entry>,
    younger: impl Iterator<Item = Entry>,
) -> impl Iterator<Item = Entry> {
    joined(older, younger).filter_map(|pair| match pair {
        // The least of an absent one is nothing.
        (Some(older), Some(younger)) => Some(Entry { least: older.least.least(younger.least), ..older }),
        (older, younger) => older.or(younger),
    })
}

/// Joins two lists of entries by id. Both ascend.
fn joined(
    older: impl Iterator<Item = Entry>,
    younger: impl Iterator<Item = Entry>,
) -> impl Iterator<Item = (Option<Entry>, Option<Entry>)> {
    let (mut older, mut younger) = (older.peekable(), younger.peekable());
    std::iter::from_fn(move || {
        let id = [older.peek(), younger.peek()].into_iter().flatten().map(|entry| entry.id).min()?;
        Some((older.next_if(|entry| entry.id == id), younger.next_if(|entry| entry.id == id)))
    })
}

#[cfg(test)]
mod tests;
