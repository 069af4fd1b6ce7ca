//! Append-only list of `'static` items.
//!
//! Any thread may push and iterate at any time; neither waits.

use crate::base::atomics::{AtomicPtr, Ordering};
use std::ptr::null_mut;

/// An item with a link: it can be in one list.
pub(crate) trait Linked: Sized + Sync + 'static {
    /// Links to the item that was pushed before it; null outside of a list.
    fn next(&self) -> &AtomicPtr<Self>;
}

/// Head of an append-only list: the item that was pushed last.
pub(crate) struct List<T>(AtomicPtr<T>);

impl<T> List<T> {
    pub(crate) const fn new() -> List<T> {
        List(AtomicPtr::new(null_mut()))
    }
}

impl<T: Linked> List<T> {
    /// Pushes an item that is in no list yet.
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

    /// Iterates over all items, the latest first.
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

    /// Iterates over all items after a change of other data: a thread that pushes an item that is not found here sees
    /// the change from then on.
    pub(crate) fn iter_after(&self) -> impl Iterator<Item = &'static T> + use<T> {
        // Changes nothing, but comes before or behind each `push`. Release: pairs with the Acquire of one behind it.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, Some);
        self.iter()
    }
}
