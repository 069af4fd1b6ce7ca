//! Binds the processes that start meanwhile to one processor.
//!
//! Processors of a shared machine are not equally fast, because their neighbours differ. Two single threads that are compared
//! run on the same one.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that were allowed before, and are again when this is dropped.
pub struct Bound(CpuSet);

impl Bound {
    /// Binds to one of the allowed processors, in turn by number.
    pub fn to(number: u32) -> rustix::io::Result<Bound> {
        let before = sched_getaffinity(None)?;
        let allowed: Vec<usize> =
            (0..CpuSet::MAX_CPU).filter(|processor| before.is_set(*processor)).collect();
        let mut one = CpuSet::new();
        one.set(allowed[number as usize % allowed.len()]);
        sched_setaffinity(None, &one)?;
        Ok(Bound(before))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // This set was allowed before.
        let _ = sched_setaffinity(None, &self.0);
    }
}
