//! Reads the blocks and tables that are in no stack's counts: untracked ones, heapgauge's own, and the largest by address.
//!
//! Read side, any thread; no thread is stopped.

use crate::record::epoch;
use crate::record::memory;
use crate::record::raw_snapshot::{Counts, read_one};
use crate::record::tag::{self, OVERHEAD, UNTRACKED, large};
use crate::record::thread::{self, Suspension};

/// Live blocks that are in no stack's counts, and heapgauge's memory that is in no block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unlisted {
    /// Blocks allocated while paused or off.
    pub untracked: Counts,
    /// heapgauge's own blocks.
    pub own: Counts,
    /// Bytes of heapgauge's tables that are mappings, as far as they are resident.
    pub own_mapped_bytes: u64,
}

/// Reads the blocks that are in no stack's counts.
pub(crate) fn read() -> Unlisted {
    let _internal = Suspension::new(thread::INTERNAL);
    Unlisted {
        untracked: read_one(UNTRACKED),
        own: read_one(OVERHEAD),
        own_mapped_bytes: memory::bytes() + large::resident_bytes(),
    }
}

/// Owner of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// The program: the block is live or untracked.
    Program,
    Heapgauge,
    /// The program, but the block was forgotten by `clear` or `stop`.
    Forgotten,
}

/// Passes the address and size of every block of at least 64 KiB to `visit`, and whose it is. Blocks that come or go meanwhile
/// may be missing, or gone.
pub(crate) fn visit_large_blocks(visit: &mut dyn FnMut(usize, usize, Owner)) {
    let base = epoch::base();
    large::visit_marked(&mut |address, size, id| {
        let owner = match id & !tag::SAMPLED {
            UNTRACKED => Owner::Program,
            OVERHEAD => Owner::Heapgauge,
            id if id >= base => Owner::Program,
            _ => Owner::Forgotten,
        };
        visit(address, size, owner);
    });
}

/// Returns whether a block of at least 1 KiB was ever between two addresses.
pub(crate) fn holds_blocks(start: usize, end: usize) -> bool {
    large::holds_blocks(start, end)
}
