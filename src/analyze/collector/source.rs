//! Heap and clock that a collector reads: those of this process, or a test's own.
#![forbid(unsafe_code)]

use super::budget;
use crate::analyze::ages::Ages;
#[cfg(any(feature = "http", test))]
use crate::analyze::frame::Traceback;
use crate::analyze::memory_limit::{self, MemoryLimit};
use crate::analyze::memory_parts::{self, Reading};
use crate::analyze::symbols::{self, Progress, Quality, Site};
use crate::record::control;
use crate::record::fork;
use crate::record::fork::mutex::ForkMutex;
use crate::record::raw_snapshot::{self, RawSnapshot, RawStack};
use crate::record::statm::Statm;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Surroundings of a collection, so that tests can bring their own heap and their own clock.
pub(crate) trait HeapSource: Send {
    fn now(&self) -> Instant;
    fn take(&self) -> RawSnapshot;
    /// Returns a number that changes when names given before may be wrong.
    fn names_epoch(&self) -> u64;
    fn site(&self, id: u32, addresses: &[usize]) -> Option<Arc<Site>>;
    /// Returns the nearest frame of a stack as a site.
    #[cfg(any(feature = "http", test))]
    fn nearest(&self, addresses: &[usize]) -> Option<Arc<Site>>;
    fn resolve(&self, stacks: &mut dyn Iterator<Item = &[usize]>, budget: Duration) -> Progress;
    #[cfg(any(feature = "http", test))]
    fn traceback(&self, addresses: &[usize], truncated: bool, limit: usize) -> Option<Traceback>;
    fn symbols(&self) -> Quality;
    fn resident_bytes(&self) -> Option<u64>;
    /// Returns the last reading of the parts of memory, and has the next one made if it is due.
    fn memory_parts(&self) -> Option<Arc<Reading>>;
    /// Returns the memory limit, `own` among the candidates, and what counts against it.
    fn memory_limit(&self, own: Option<u64>) -> MemoryLimit;
    /// Returns what is known of the ages of the heap's blocks, for all collectors that read it.
    fn ages(&self) -> &ForkMutex<Ages>;
    /// Gives the stacks of these ids new ones, where that is possible.
    fn renew(&self, ids: &[u32]);
}

/// Ages of this process's blocks.
static AGES: ForkMutex<Ages> = ForkMutex::new(Ages::new());

/// The heap and the clock of this process. A fork need not wait for slow operations here: between two calls nothing of
/// a collector is half changed that a child could not go on with.
pub(super) struct ThisProcess;

impl HeapSource for ThisProcess {
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn take(&self) -> RawSnapshot {
        let mut raw = fork::outside(raw_snapshot::take);
        // An address that no memory was left to name is attribution lost for want of memory, too.
        raw.dropped.memory += symbols::global().over_limit();
        symbols::global().forget_dead(&raw.stacks);
        budget::fit_tables(raw.stacks.capacity() * size_of::<RawStack>() + raw.addresses.bytes());
        raw
    }
    fn names_epoch(&self) -> u64 {
        fork::outside(|| symbols::global().look_again_for_lost());
        // Asks the loader, whose lock a thread that forks may hold. Either changes the names of stacks.
        fork::outside(control::modules_epoch).wrapping_add(symbols::global().lost_epoch() << 48)
    }
    fn site(&self, id: u32, addresses: &[usize]) -> Option<Arc<Site>> {
        symbols::global().site(id, addresses)
    }
    #[cfg(any(feature = "http", test))]
    fn nearest(&self, addresses: &[usize]) -> Option<Arc<Site>> {
        symbols::global().nearest(addresses).map(Arc::new)
    }
    fn resolve(&self, stacks: &mut dyn Iterator<Item = &[usize]>, budget: Duration) -> Progress {
        fork::outside(|| symbols::global().resolve(stacks, budget))
    }
    #[cfg(any(feature = "http", test))]
    fn traceback(&self, addresses: &[usize], truncated: bool, limit: usize) -> Option<Traceback> {
        symbols::global().traceback(addresses, limit, truncated)
    }
    fn symbols(&self) -> Quality {
        fork::outside(|| symbols::global().quality())
    }
    fn resident_bytes(&self) -> Option<u64> {
        fork::outside(|| Statm::read().map(|statm| statm.resident))
    }
    fn memory_parts(&self) -> Option<Arc<Reading>> {
        fork::outside(memory_parts::latest)
    }
    fn memory_limit(&self, own: Option<u64>) -> MemoryLimit {
        fork::outside(|| memory_limit::memory_limit(own))
    }
    fn ages(&self) -> &ForkMutex<Ages> {
        &AGES
    }
    fn renew(&self, ids: &[u32]) {
        raw_snapshot::renew(ids);
    }
}
