//! A number → the one processor on which everything that is started meanwhile runs.
//!
//! Processors of a shared machine are not equally fast: what one of them does for its neighbours, the others do not
//! have to. Two single threads that are compared run on the same.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that were allowed before; allowed again when this goes.
pub struct Bound(CpuSet);

impl Bound {
    /// To one of the allowed processors, another for each number until it starts over.
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
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.0);
    }
}
