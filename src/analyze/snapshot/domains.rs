//! Traces memory that does not come from the allocator (`mmap`, a GPU), under domains of its own.
//!
//! Any thread may call these; they take one lock for a moment and allocate, so not from inside an allocator.
#![forbid(unsafe_code)]

use crate::base::error::Error;
use crate::record::control;
use crate::record::fork;
use crate::record::fork::mutex::ForkMutex;
use crate::record::raw_snapshot;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One block that [`track`] was told of.
#[derive(Clone, Debug)]
struct Block {
    size: u64,
    addresses: Arc<[usize]>,
}

/// Tracked blocks, by domain and address, since the last `clear`.
#[derive(Debug, Default)]
struct Table {
    epoch: u32,
    blocks: HashMap<(u32, usize), Block>,
    /// Addresses of the stacks of blocks, each stack once.
    stacks: HashSet<Arc<[usize]>>,
}

impl Table {
    /// Returns the kept addresses of a stack.
    fn stack(&mut self, addresses: Vec<usize>) -> Arc<[usize]> {
        if let Some(kept) = self.stacks.get(&*addresses) {
            return kept.clone();
        }
        let kept: Arc<[usize]> = addresses.into();
        self.stacks.insert(kept.clone());
        kept
    }
}

/// All blocks of one domain that were reported from one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainStack {
    pub domain: u32,
    pub addresses: Arc<[usize]>,
    pub size: u64,
    pub count: u64,
}

/// Reports `size` bytes at `address` that do not come from the global allocator. They belong to the
/// caller's stack and show in snapshots under `domain`; `heap_*` metrics count the allocator's domain 0 only.
///
/// An address that is tracked in this domain already is replaced. [`clear_traces`](crate::clear_traces) and
/// [`stop`](crate::stop) forget these as they forget all others. Costs a stack walk and a lock.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::Snapshot;
///
/// const GPU: u32 = 7;
/// heapgauge::track(GPU, 0x1000, 4096)?;
/// let snapshot = Snapshot::take()?;
/// let trace = snapshot.traces().iter().find(|trace| trace.domain == GPU).unwrap();
/// assert_eq!((trace.size, trace.count), (4096, 1));
/// heapgauge::untrack(GPU, 0x1000);
/// # Ok::<(), heapgauge::Error>(())
/// ```
///
/// # Errors
///
/// If `domain` is 0, which is the allocator's, or if tracking is off.
pub fn track(domain: u32, address: usize, size: usize) -> Result<(), Error> {
    if domain == 0 {
        return Err(Error::new("track: domain 0 is the allocator's, allowed are 1 to 4294967295"));
    }
    if !control::is_tracing() {
        return Err(Error::tracking_off(format_args!("track: {}", control::off_reason())));
    }
    let addresses = raw_snapshot::capture();
    with_table(|table| {
        let addresses = table.stack(addresses);
        table.blocks.insert((domain, address), Block { size: size as u64, addresses })
    });
    Ok(())
}

/// Takes back a report of [`track`] for `address` in this domain. Does nothing if nothing is tracked there.
///
/// # Examples
///
/// ```
/// heapgauge::untrack(7, 0x1000);
/// heapgauge::untrack(7, 0x1000);
/// ```
pub fn untrack(domain: u32, address: usize) {
    with_table(|table| table.blocks.remove(&(domain, address)));
}

/// Returns the blocks tracked now, by domain and stack, in a fixed order.
pub(crate) fn stacks() -> Vec<DomainStack> {
    let _own = control::internal();
    let mut sums: HashMap<(u32, usize), DomainStack> = HashMap::new();
    let mut add = |table: &Table| {
        for (&(domain, _), block) in &table.blocks {
            let none = || DomainStack { domain, addresses: block.addresses.clone(), size: 0, count: 0 };
            // The address decides, for each stack is kept once.
            let sum = sums.entry((domain, Arc::as_ptr(&block.addresses).addr())).or_insert_with(none);
            sum.size = sum.size.saturating_add(block.size);
            sum.count += 1;
        }
    };
    // There may be many, and nothing of the table changes meanwhile.
    with_table(|table| fork::outside(|| add(table)));
    let mut sums: Vec<DomainStack> = sums.into_values().collect();
    sums.sort_by(|one, other| (one.domain, &one.addresses).cmp(&(other.domain, &other.addresses)));
    sums
}

fn with_table<T>(use_it: impl FnOnce(&mut Table) -> T) -> T {
    static TABLE: ForkMutex<Option<Table>> = ForkMutex::new(None);
    let _own = control::internal();
    let mut table = TABLE.lock();
    let table = table.get_or_insert_default();
    let epoch = control::epoch_base();
    if table.epoch != epoch {
        *table = Table { epoch, ..Table::default() };
    }
    use_it(table)
}
