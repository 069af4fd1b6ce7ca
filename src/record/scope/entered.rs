//! Scopes that a thread is in, in the order in which it entered them, and the combination that they make.
//!
//! A thread's own, changed while it is busy. Memory comes from `memory`, so that a signal handler may enter and leave.

use crate::record::memory;
use crate::record::scope::id::ScopeId;
use crate::record::scope::slots;
use std::ptr::NonNull;

/// A scope that was entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The combination that was entered. Its guard borrows a holder of it.
    pub given: ScopeId,
    /// The combination from here on: of the scopes before and this one.
    pub both: ScopeId,
    /// Term of `both`.
    pub term: u64,
    /// This entry holds `both`; otherwise a holder of `given`, the entry before, or the future that is polled does.
    pub is_holder: bool,
    /// Number that tells its guard from others of this thread.
    pub token: u32,
}

impl Entry {
    fn release(self) {
        if self.is_holder {
            slots::release(self.both);
        }
    }
}

/// Entries of the smallest list.
const SMALLEST: usize = 8;

/// Scopes of one thread. Zeroed memory is one that is in none.
pub(crate) struct Entered {
    entries: *mut Entry,
    len: usize,
    capacity: usize,
    /// The last token that was given out.
    token: u32,
}

/// Result of [`Entered::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// It was the last, or there was none.
    Last,
    /// Others were entered after it: from this place on their combinations have to be made anew.
    Before(usize),
}

impl Entered {
    fn entries(&self) -> &[Entry] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: so many entries of the list are written, and only this thread has them.
        unsafe { std::slice::from_raw_parts(self.entries, self.len) }
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as above, and `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.entries, self.len) }
    }

    /// Returns the combination that the thread is in.
    #[inline]
    pub(crate) fn current(&self) -> ScopeId {
        self.entries().last().map_or(ScopeId::NONE, |entry| entry.both)
    }

    /// Returns the term of that combination.
    #[inline]
    pub(crate) fn term(&self) -> u64 {
        self.entries().last().map_or(0, |entry| entry.term)
    }

    /// Returns the entry at this place.
    pub(crate) fn get(&self, at: usize) -> Option<Entry> {
        self.entries().get(at).copied()
    }

    /// Returns the combination before the entry at this place.
    pub(crate) fn before(&self, at: usize) -> ScopeId {
        at.checked_sub(1).and_then(|before| self.get(before)).map_or(ScopeId::NONE, |entry| entry.both)
    }

    /// Adds a scope of this term whose combination with the others is itself. Returns its token; `None`, and nothing is changed, where
    /// that may not be so, or the list is full.
    #[inline]
    pub(crate) fn push_alone(&mut self, given: ScopeId, term: u64) -> Option<u32> {
        let outer = self.current();
        if outer.is_none() || outer == given { self.push_combined(given, given, term) } else { None }
    }

    /// Adds a scope whose combination with the others is known, and is held for as long as its guard lives. Returns its token; `None`,
    /// and nothing is changed, where the list is full.
    #[inline]
    pub(crate) fn push_combined(&mut self, given: ScopeId, both: ScopeId, term: u64) -> Option<u32> {
        (self.len < self.capacity).then(|| self.write(given, both, term, false))
    }

    /// Adds a scope, and returns its token; `None`, and nothing is changed, without memory.
    pub(crate) fn push(&mut self, given: ScopeId, both: ScopeId, is_holder: bool) -> Option<u32> {
        if self.len == self.capacity && !self.grow() {
            return None;
        }
        Some(self.write(given, both, both.term(), is_holder))
    }

    /// Writes an entry to a list that has room, and returns its token.
    #[inline]
    fn write(&mut self, given: ScopeId, both: ScopeId, term: u64, is_holder: bool) -> u32 {
        debug_assert!(self.len < self.capacity && term == both.term());
        self.token = self.token.wrapping_add(1);
        let entry = Entry { given, both, term, is_holder, token: self.token };
        // SAFETY: within the list, of this thread alone.
        unsafe { self.entries.add(self.len).write(entry) };
        self.len += 1;
        self.token
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self) -> bool {
        let capacity = (self.capacity * 2).max(SMALLEST);
        let fresh = memory::zeroed_array_of_thread::<Entry>(capacity, memory::thread_may_grow);
        let Some(fresh) = NonNull::new(fresh) else { return false };
        // SAFETY: the fresh list is longer, and another one.
        unsafe { fresh.as_ptr().copy_from_nonoverlapping(self.entries().as_ptr(), self.len) };
        if self.capacity != 0 {
            // SAFETY: made here with this length, and nothing refers to it any more.
            unsafe { memory::free_array_of_thread(self.entries, self.capacity) };
        }
        (self.entries, self.capacity) = (fresh.as_ptr(), capacity);
        true
    }

    /// Removes the scope of this token if it is the last, and returns the combination that it held, which is to be released. `None`,
    /// and nothing is changed, where it is not.
    #[inline]
    pub(crate) fn pop(&mut self, token: u32) -> Option<ScopeId> {
        let last = *self.entries().last().filter(|last| last.token == token)?;
        self.len -= 1;
        Some(if last.is_holder { last.both } else { ScopeId::NONE })
    }

    /// Removes the scope of this token.
    pub(crate) fn remove(&mut self, token: u32) -> Removed {
        let Some(at) = self.entries().iter().rposition(|entry| entry.token == token) else {
            return Removed::Last;
        };
        let entries = self.entries_mut();
        entries[at].release();
        entries.copy_within(at + 1.., at);
        self.len -= 1;
        if at == self.len { Removed::Last } else { Removed::Before(at) }
    }

    /// Gives the entry at this place another combination, if it is still this one; false where it is not.
    pub(crate) fn replace(&mut self, at: usize, entry: Entry, both: ScopeId, is_holder: bool) -> bool {
        let present = self.entries_mut().get_mut(at).filter(|present| **present == entry);
        let is_present = present.is_some();
        if let Some(present) = present {
            (present.both, present.term, present.is_holder) = (both, both.term(), is_holder);
            entry.release();
        }
        is_present
    }

    /// Leaves all scopes.
    pub(crate) fn clear(&mut self) {
        self.entries().iter().for_each(|entry| entry.release());
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Entered {
        // SAFETY: numbers and a null pointer, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn scopes_are_left_in_any_order() {
        let mut entered = empty();
        let id = |slot| ScopeId::new(slot, 1 << 30);
        assert_eq!((entered.current(), entered.remove(0)), (ScopeId::NONE, Removed::Last));
        let tokens: Vec<u32> = (0..20).map(|at| entered.push(id(at), id(at), false).unwrap()).collect();
        assert_eq!((entered.current(), entered.before(1), entered.before(0)), (id(19), id(0), ScopeId::NONE));
        assert_eq!(entered.remove(tokens[3]), Removed::Before(3));
        assert_eq!((entered.get(3).unwrap().given, entered.current()), (id(4), id(19)));
        let last = entered.get(18).unwrap();
        assert!(entered.replace(18, last, id(7), false) && !entered.replace(18, last, id(8), false));
        assert_eq!(entered.current(), id(7));
        assert_eq!((entered.remove(tokens[19]), entered.current()), (Removed::Last, id(18)));
        assert_eq!(entered.remove(tokens[19]), Removed::Last);
        assert_eq!(entered.entries().len(), 18);
        entered.clear();
        assert_eq!((entered.current(), entered.term()), (ScopeId::NONE, 0));
        let token = entered.push_alone(id(1), id(1).term()).unwrap();
        assert!(entered.push_alone(id(2), id(2).term()).is_none() && entered.term() == id(1).term());
        let again = entered.push_alone(id(1), id(1).term()).unwrap();
        let popped = [token, again, token, token].map(|token| entered.pop(token));
        assert_eq!(popped, [None, Some(ScopeId::NONE), Some(ScopeId::NONE), None]);
    }
}
