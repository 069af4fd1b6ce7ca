//! Hits and misses of the calling thread's caches of rules, frame layouts and stacks, by cause. Counted in unit tests only.

#[cfg(test)]
use std::cell::Cell;

/// Hits and misses of a thread.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CacheCounts {
    /// Rules found by the link of the frame before.
    pub rule_linked: usize,
    /// Rules found by their address: another frame followed the last time.
    pub rule_found: usize,
    /// Rules that were not cached and had to be parsed.
    pub rule_parsed: usize,
    /// Stacks found as the last one of their layout.
    pub layout_last: usize,
    /// Look-ups beyond the part of the thread's stack that is known so far: there is no key.
    pub out_of_bounds: usize,
    /// Look-ups of a key without a layout.
    pub layout_missed: usize,
    /// Stacks of a known layout found in the first bucket of the stack cache.
    pub stack_first: usize,
    /// Stacks found in the second bucket.
    pub stack_second: usize,
    /// Stacks that the stack cache did not have.
    pub stack_missed: usize,
}

#[cfg(test)]
thread_local! {
    /// Counts of this thread.
    pub(crate) static COUNTS: Cell<CacheCounts> = Cell::default();
}

/// Returns the calling thread's counts, and begins anew.
#[cfg(test)]
pub(crate) fn take() -> CacheCounts {
    COUNTS.take()
}

/// Counts one hit or miss of this cause; nothing outside unit tests.
macro_rules! count_cache {
    ($cause:ident) => {
        #[cfg(test)]
        {
            let _ = crate::record::cache_counts::COUNTS.try_with(|counts| {
                let mut now = counts.get();
                now.$cause += 1;
                counts.set(now);
            });
        }
    };
}
pub(crate) use count_cache;
