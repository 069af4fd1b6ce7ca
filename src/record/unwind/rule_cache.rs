//! Per-thread cache from return addresses to unwind rules, linked in the order of calls.
//!
//! Each entry links to the entry of the caller seen last. A walk of the same path compares that entry's address with
//! the return address just loaded, and the processor, predicting the comparison, reads the next rule while the return
//! address is still on its way: 1.4 instead of 3.8 ns a frame. The table belongs to one thread; shared, its links
//! would travel between cores.

use crate::record::memory;
use std::ptr::NonNull;

/// Unwind rule: computes a frame's caller, packed in 8 bytes.
///
/// ```text
/// bit 0        the frame's base (CFA) counts from the frame pointer, else from the stack pointer
/// bit 1        the caller's frame pointer is saved at base + saved
/// bits 8..40   distance of the base, bytes; 0: no step can be made, and bits 2..4 say why
/// bits 40..64  saved, bytes, signed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule(u64);

impl Rule {
    /// Marks the first frame of its thread.
    pub(crate) const END: Rule = Rule(1 << 2);
    /// Marks a row that the packed form cannot hold: another unwinder has to do the walk.
    pub(crate) const OTHER: Rule = Rule(2 << 2);
    /// Marks an address without a rule: the walk ends here, cut short.
    pub(crate) const UNKNOWN: Rule = Rule(3 << 2);

    /// Packs a step: base = (frame or stack pointer) + `distance`; the frame pointer at base + `saved`. `None` if it
    /// does not fit.
    pub(crate) fn step(from_frame_pointer: bool, distance: u64, saved: Option<i64>) -> Option<Rule> {
        let fits = distance > 0
            && distance < 1 << 32
            && saved.is_none_or(|saved| (-(1 << 23)..1 << 23).contains(&saved));
        fits.then(|| {
            let saved_bits = saved.map_or(0, |saved| ((saved as u64) << 40) | 2);
            Rule(u64::from(from_frame_pointer) | (distance << 8) | saved_bits)
        })
    }

    /// Returns whether the base counts from the frame pointer.
    #[inline(always)]
    pub(crate) fn is_from_frame_pointer(self) -> bool {
        self.0 & 1 != 0
    }

    /// Returns the distance of the base, in bytes; 0 where no step can be made.
    #[inline(always)]
    pub(crate) fn distance(self) -> usize {
        (self.0 >> 8) as u32 as usize
    }

    /// Returns the offset of the caller's frame pointer from the base, if it was saved; on aarch64 the encoding of
    /// `cfi`.
    #[inline(always)]
    pub(crate) fn saved(self) -> Option<isize> {
        (self.0 & 2 != 0).then_some((self.0 as i64 >> 40) as isize)
    }
}

/// Rule of one address.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    /// Return address; 0, to which no code can return, marks an empty entry.
    pub address: usize,
    pub rule: Rule,
    link: *const Entry,
}

/// Target of a link before it is made: no address equals its 0.
struct Nowhere(Entry);
// SAFETY: never written; the pointer in it points to itself.
unsafe impl Sync for Nowhere {}
static NOWHERE: Nowhere = Nowhere(Entry { address: 0, rule: Rule::UNKNOWN, link: &raw const NOWHERE.0 });

/// Entries of the smallest table: 1.5 KiB.
const SMALLEST: usize = 64;
/// Entries of the table that a thread may have under any limit: 3 KiB, reserved with its state.
const GRANTED: usize = 128;
/// Entries of the largest table: 768 KiB, more return addresses than the paths to the allocator have in a large
/// service. A table that would need more is emptied and fills again.
const LARGEST: usize = 1 << 15;
/// Entries of the smallest useful table: 24 KiB. With fewer a thread would compute most of its rules again and again.
const NEEDED: usize = 1 << 10;

/// Reference to an entry in the table of one thread; valid until that table's next [`Rules::insert`], [`Rules::insert_transient`]
/// or [`Rules::forget`].
#[derive(Clone, Copy)]
pub(crate) struct EntryRef(NonNull<Entry>);

/// Rule cache of one thread. Zeroed memory is an empty one.
pub(crate) struct Rules {
    entries: *mut Entry,
    /// Number of entries, a power of two, or 0.
    len: usize,
    used: usize,
    /// Entry that the last walk began at; null, or valid as an [`EntryRef`] is.
    start: *const Entry,
    /// Entry of [`Rules::insert_transient`]; null until first needed. Allocated apart: entries are used beside `&mut self`.
    transient: *mut Entry,
    /// Rules epoch of these rules: see `epoch::rules_epoch`.
    pub epoch: u32,
}

impl Rules {
    pub(crate) const fn new() -> Rules {
        Rules {
            entries: std::ptr::null_mut(),
            len: 0,
            used: 0,
            start: std::ptr::null(),
            transient: std::ptr::null_mut(),
            epoch: 0,
        }
    }

    /// Returns whether an entry is in the table, or is the transient one: it may be written.
    fn holds(&self, entry: *const Entry) -> bool {
        let distance = entry.addr().wrapping_sub(self.entries.addr());
        distance.is_multiple_of(size_of::<Entry>()) && distance / size_of::<Entry>() < self.len
            || std::ptr::eq(entry, self.transient)
    }

    /// Returns whether an entry may be read: a return address of 0, which no code has, leads to [`NOWHERE`].
    fn is_valid(&self, entry: *const Entry) -> bool {
        self.holds(entry) || std::ptr::eq(entry, &raw const NOWHERE.0)
    }

    /// Returns the rule of an entry.
    #[inline(always)]
    pub(crate) fn rule(&self, at: EntryRef) -> Rule {
        debug_assert!(self.is_valid(at.0.as_ptr()), "a reference from before a change of the table");
        // SAFETY: `EntryRef` comes from this table, and its documentation bounds its validity.
        unsafe { at.0.as_ref() }.rule
    }

    /// Follows the link of an entry, if it leads to `address`.
    #[inline(always)]
    pub(crate) fn linked(&self, at: EntryRef, address: usize) -> Option<EntryRef> {
        debug_assert!(self.holds(at.0.as_ptr()), "a reference from before a change of the table");
        // SAFETY: as in `rule`.
        let link = unsafe { at.0.as_ref() }.link;
        debug_assert!(self.is_valid(link), "a link from before a change of the table");
        // SAFETY: a link points to NOWHERE or into the same table: `insert` and `forget`, which move
        // or empty the table, reset every link with it.
        let met = unsafe { (*link).address } == address;
        // SAFETY: neither kind of target is null.
        met.then(|| EntryRef(unsafe { NonNull::new_unchecked(link.cast_mut()) }))
    }

    /// Returns the entry of [`Rules::set_start`], if its address is `address`.
    #[inline(always)]
    pub(crate) fn start(&self, address: usize) -> Option<EntryRef> {
        let start = NonNull::new(self.start.cast_mut())?;
        debug_assert!(self.holds(self.start), "a start from before a change of the table");
        // SAFETY: not null, so set to a place of this table after its last change.
        (unsafe { start.as_ref() }.address == address).then_some(EntryRef(start))
    }

    /// Sets the entry that [`Rules::start`] tries.
    pub(crate) fn set_start(&mut self, at: EntryRef) {
        debug_assert!(self.holds(at.0.as_ptr()), "a reference from before a change of the table");
        self.start = at.0.as_ptr();
    }

    /// Looks an address up, and links the entry it was reached from to its entry.
    pub(crate) fn find(&mut self, from: Option<EntryRef>, address: usize) -> Option<EntryRef> {
        let at = self.lookup(address)?;
        if let Some(mut from) = from {
            debug_assert!(self.holds(from.0.as_ptr()), "a reference from before a change of the table");
            // SAFETY: as in `rule`, and `&mut self` makes it the only access.
            unsafe { from.0.as_mut() }.link = at.0.as_ptr();
        }
        Some(at)
    }

    /// Looks an address up.
    #[inline]
    fn lookup(&self, address: usize) -> Option<EntryRef> {
        if self.len == 0 {
            return None;
        }
        let mut index = home(address, self.len);
        loop {
            // SAFETY: the index is below `len`; the table is never full, so an empty entry ends this.
            let entry = unsafe { NonNull::new_unchecked(self.entries.add(index)) };
            // SAFETY: zeroed or written by `insert`.
            let found = unsafe { entry.as_ref() }.address;
            if found == address {
                return Some(EntryRef(entry));
            }
            if found == 0 {
                return None;
            }
            index = (index + 1) & (self.len - 1);
        }
    }

    /// Inserts a rule. Every [`EntryRef`] returned before is invalid afterwards. `None` without memory.
    #[cold]
    pub(crate) fn insert(&mut self, address: usize, rule: Rule) -> Option<EntryRef> {
        if address == 0 {
            return None;
        }
        if let Some(mut at) = self.lookup(address) {
            // SAFETY: a place of this table, `&mut self`.
            unsafe { at.0.as_mut() }.rule = rule;
            return Some(at);
        }
        if self.used * 2 >= self.len {
            self.make_room()?;
        }
        self.used += 1;
        debug_assert!(
            self.used <= self.len && self.len.is_power_of_two(),
            "{} of {} entries",
            self.used,
            self.len
        );
        Some(self.put(address, rule))
    }

    /// Stores a transient rule, which must not outlive the walk it is needed in: it is never found again, and the
    /// next such rule overwrites it. `None` without memory.
    #[cold]
    pub(crate) fn insert_transient(&mut self, address: usize, rule: Rule) -> Option<EntryRef> {
        if self.transient.is_null() {
            self.transient = memory::zeroed::<Entry>();
        }
        let transient = NonNull::new(self.transient)?;
        // SAFETY: made for one entry, of this table alone.
        unsafe { transient.write(Entry { address, rule, link: &raw const NOWHERE.0 }) };
        Some(EntryRef(transient))
    }

    /// Stores a rule in the first empty entry from its home on. The table has one.
    fn put(&mut self, address: usize, rule: Rule) -> EntryRef {
        let mut index = home(address, self.len);
        loop {
            // SAFETY: the index is below `len`, and half of the table is empty.
            let entry = unsafe { &mut *self.entries.add(index) };
            if entry.address == 0 {
                *entry = Entry { address, rule, link: &raw const NOWHERE.0 };
                return EntryRef(NonNull::from(entry));
            }
            index = (index + 1) & (self.len - 1);
        }
    }

    /// Makes room for one more rule: in a table twice as large, or by forgetting all rules. `None` without memory.
    fn make_room(&mut self) -> Option<()> {
        if self.len >= LARGEST {
            self.forget();
            return Some(());
        }
        let len = (self.len * 2).max(SMALLEST);
        let may = if len <= SMALLEST {
            memory::always
        } else if len <= GRANTED {
            memory::always_doubled
        } else if len <= NEEDED {
            memory::fits
        } else {
            memory::thread_may_grow
        };
        let entries = memory::zeroed_array_of_thread::<Entry>(len, may);
        if entries.is_null() {
            // The table is at most half full, so emptying it makes room; without a table there is none.
            self.forget();
            return (self.len != 0).then_some(());
        }
        let epoch = self.epoch;
        let transient = self.transient;
        let old = std::mem::replace(self, Rules { entries, len, epoch, transient, ..Rules::new() });
        for index in 0..old.len {
            // SAFETY: within the old table.
            let entry = unsafe { *old.entries.add(index) };
            if entry.address != 0 {
                self.used += 1;
                self.put(entry.address, entry.rule);
            }
        }
        if !old.entries.is_null() {
            // SAFETY: made here with `old.len`; places into it are invalid by contract.
            unsafe { memory::free_array_of_thread(old.entries, old.len) };
        }
        Some(())
    }

    /// Forgets all rules and links.
    pub(crate) fn forget(&mut self) {
        self.used = 0;
        self.start = std::ptr::null();
        for index in 0..self.len {
            // SAFETY: within the table.
            unsafe { (*self.entries.add(index)).address = 0 };
        }
    }

    /// Frees the table's memory.
    pub(crate) fn free(self) {
        if !self.transient.is_null() {
            // SAFETY: made by `insert_transient` as one entry; `self` ends here, and the place with it.
            unsafe { memory::free_array(self.transient, 1) };
        }
        if !self.entries.is_null() {
            // SAFETY: made by `make_room` with `self.len`; `self` ends here, and places with it.
            unsafe { memory::free_array_of_thread(self.entries, self.len) };
        }
    }
}

/// Returns the index at which the search for an address begins.
#[inline(always)]
fn home(address: usize, len: usize) -> usize {
    ((address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (len - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_rule_comes_back_as_it_went_in() {
        for (from_frame_pointer, distance, saved) in [
            (false, 8, None),
            (true, 16, Some(-16)),
            (false, 1 << 31, Some(-(1 << 23))),
            (false, 4104, Some(8)),
        ] {
            let rule = Rule::step(from_frame_pointer, distance, saved).unwrap();
            assert_eq!(rule.is_from_frame_pointer(), from_frame_pointer);
            assert_eq!(rule.distance() as u64, distance);
            assert_eq!(rule.saved(), saved.map(|saved| saved as isize));
        }
        assert_eq!(Rule::step(false, 0, None), None);
        assert_eq!(Rule::step(false, 1 << 32, None), None);
        assert_eq!(Rule::step(false, 8, Some(1 << 23)), None);
        for rule in [Rule::END, Rule::OTHER, Rule::UNKNOWN] {
            assert_eq!(rule.distance(), 0);
        }
    }

    #[test]
    fn agrees_with_a_map_and_follows_links() {
        let mut rules = Rules::new();
        let mut naive = HashMap::new();
        for step in 0..10_000u64 {
            let address = 0x40_0000 + (step * 7919 % 3001) as usize;
            let rule = *naive.entry(address).or_insert(Rule::step(false, step + 1, None).unwrap());
            let at = match rules.find(None, address) {
                Some(at) => at,
                None => rules.insert(address, rule).unwrap(),
            };
            assert_eq!(rules.rule(at), rule);
        }
        let from = rules.find(None, 0x40_0001).unwrap();
        assert!(rules.linked(from, 0x40_0002).is_none());
        rules.find(Some(from), 0x40_0002).unwrap();
        let to = rules.linked(from, 0x40_0002).unwrap();
        assert_eq!(rules.rule(to), naive[&0x40_0002]);
        assert!(rules.linked(from, 0x40_0003).is_none());
        assert!(rules.insert(0, Rule::END).is_none());
        rules.forget();
        assert!(rules.find(None, 0x40_0001).is_none());
    }

    #[test]
    fn a_rule_that_passes_is_not_found_again() {
        let mut rules = Rules::new();
        let (first, second) = (Rule::step(false, 8, None).unwrap(), Rule::step(false, 16, None).unwrap());
        let before = rules.insert(0x40_0001, first).unwrap();
        let at = rules.insert_transient(0x50_0001, second).unwrap();
        assert_eq!(rules.rule(at), second);
        assert!(rules.linked(before, 0x50_0001).is_none());
        assert!(rules.find(Some(at), 0x40_0001).is_some());
        assert!(rules.linked(at, 0x40_0001).is_some());
        assert!(rules.find(None, 0x50_0001).is_none());
        let again = rules.insert_transient(0x50_0001, first).unwrap();
        assert_eq!(rules.rule(again), first);
        assert!(rules.linked(again, 0x40_0001).is_none());
    }

    #[test]
    fn a_table_that_is_full_for_good_starts_again() {
        let mut rules = Rules::new();
        for address in 1..=LARGEST * 2 {
            assert!(rules.insert(address, Rule::END).is_some());
        }
        assert_eq!(rules.len, LARGEST);
    }
}
