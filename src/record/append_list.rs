//! Things that are there for good → a list of them, which only grows.
//!
//! Anybody may put something in or read at any time; nothing waits.

use crate::base::atomics::{AtomicPtr, Ordering};
use std::ptr::null_mut;

/// What can stand in a list, and in one only.
pub(crate) trait Linked: Sized + Sync + 'static {
    /// Of the list's; null before.
    fn next(&self) -> &AtomicPtr<Self>;
}

/// See the module. Its head.
pub(crate) struct List<T>(AtomicPtr<T>);

impl<T> List<T> {
    pub(crate) const fn new() -> List<T> {
        List(AtomicPtr::new(null_mut()))
    }
}

impl<T: Linked> List<T> {
    /// Puts in what is in no list yet.
    pub(crate) fn push(&self, item: &'static T) {
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            item.next().store(head, Ordering::Relaxed);
            // Release: pairs with the Acquire of `iter`; what is in the item is seen. Acquire: see `iter_after`.
            match self.0.compare_exchange(
                head,
                (&raw const *item).cast_mut(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// All there are, the latest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static T> + use<T> {
        // Acquire: pairs with the Release of `push`.
        let mut next = self.0.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: null, or an item, which is there for good; its `next` was written before it was pushed.
            let item = unsafe { next.as_ref() }?;
            next = item.next().load(Ordering::Relaxed);
            Some(item)
        })
    }

    /// The same for one who has changed something before: whoever puts in an item that is not found here, sees the
    /// change from then on.
    pub(crate) fn iter_after(&self) -> impl Iterator<Item = &'static T> + use<T> {
        // Changes nothing, but comes before or behind each `push`. Release: pairs with the Acquire of one behind it.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, Some);
        self.iter()
    }
}
