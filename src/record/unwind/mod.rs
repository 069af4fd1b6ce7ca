//! The calling thread's registers → its return addresses, most recent first, and their fingerprint.
//!
//! [`lookup_last`] looks the stack up by its frame layout; on a miss, [`walk`] unwinds it. Both use [`cfi`] where
//! unwind rules are available (Linux on x86-64 and aarch64); [`walk`] uses [`fallback`] elsewhere, and for the rare
//! row that a packed rule cannot hold. Called inside the allocator: it neither allocates through it, nor locks, nor
//! panics.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod eh_frame;
mod fallback;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod modules;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) mod rule_cache;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod start_code;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod cfi;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "unsupported.rs"]
mod cfi;

use crate::base::atomics::{AtomicU8, Ordering};
use crate::record::dropped;
use crate::record::epoch::{self, MAX_ADDRESSES};
use crate::record::stack_id::fingerprint::{self, Fingerprint};
use crate::record::thread::OwnerState;

/// Return addresses of a walk as they are gathered.
struct Gather<'a> {
    addresses: &'a mut [usize; MAX_ADDRESSES],
    len: usize,
    limit: usize,
}

impl<'a> Gather<'a> {
    fn new(addresses: &'a mut [usize; MAX_ADDRESSES], limit: usize) -> Gather<'a> {
        Gather { addresses, len: 0, limit: limit.clamp(1, MAX_ADDRESSES) }
    }

    /// Adds an address; returns false when there is no room for another.
    #[inline(always)]
    fn push(&mut self, address: usize) -> bool {
        debug_assert!(self.len <= self.limit, "{} of {} addresses", self.len, self.limit);
        if let Some(place) = self.addresses.get_mut(self.len) {
            *place = address;
            self.len += 1;
        }
        self.len < self.limit
    }

    /// Computes the [`fingerprint::sum`] of the addresses.
    fn sum(&self) -> u64 {
        fingerprint::sum(&self.addresses[..self.len], |address| address)
    }
}

const CFI: u8 = 0;
const BACKTRACE: u8 = 1;
/// Walker in use: [`CFI`] from the moment it is prepared and has passed its self-test, before `main`; what other
/// constructors allocate earlier is walked by [`BACKTRACE`], the slow one.
static WALKER: AtomicU8 = AtomicU8::new(BACKTRACE);

/// Entry point of the allocator: each has frames of its own below the program's.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Entrance {
    Allocate = 0,
    AllocateZeroed = 1,
    Reallocate = 2,
}

pub(crate) use cfi::{
    FrameLayout, Missed, Registers, lookup_by_every_layout, lookup_by_second_layout, lookup_last,
    lookup_missed,
};

/// Drops the thread's rules and layouts if they have become outdated since its last walk: see [`epoch::rules_epoch`].
#[inline]
pub(crate) fn refresh(owner: &mut OwnerState) {
    cfi::refresh(owner);
}

/// Walks the calling thread's stack from `registers` on into the buffer of its state, with the scopes that it is in. The first address is the one
/// that the function of the registers returns to.
///
/// With an entrance, the frame layout is stored for [`lookup_last`]. That is called only with `registers` from one
/// place in the code: the offset of the first return address depends on it.
#[inline(never)]
pub(crate) fn walk(owner: &mut OwnerState, registers: Registers, entrance: Option<Entrance>) -> Fingerprint {
    let limit = epoch::address_limit();
    debug_assert!((1..=MAX_ADDRESSES).contains(&limit), "{limit} addresses");
    let scope = owner.entered.current();
    (owner.buffer.header.len, owner.buffer.header.scope) = (0, scope);
    let quick = match WALKER.load(Ordering::Relaxed) {
        CFI => cfi::walk_and_learn(owner, registers, limit, entrance),
        _ => None,
    };
    let stack = quick.unwrap_or_else(|| walk_slow(owner, limit));
    if scope.is_none() { stack } else { stack.in_scope(scope.term()) }
}

/// Walks by the platform's unwinder.
#[cold]
#[inline(never)]
fn walk_slow(owner: &mut OwnerState, limit: usize) -> Fingerprint {
    dropped::count_fallback();
    // If the quick walk ended at a row it could not follow, its first address is the one that the allocator's entry
    // returns to: from that frame on, the slow walk's frames are the program's.
    let from = (owner.buffer.header.len > 0).then_some(owner.buffer.addresses[0]);
    let mut gather = Gather::new(&mut owner.buffer.addresses, limit);
    let truncated = fallback::walk(&mut gather, from);
    let (sum, len) = (gather.sum(), gather.len);
    owner.buffer.header.len = len as u16;
    owner.buffer.header.truncated = truncated;
    Fingerprint::of_addresses(sum)
}

/// Returns the name of the walker in use, as in `heap_build_info{capture}`.
pub(crate) fn walker() -> &'static str {
    if WALKER.load(Ordering::Relaxed) == CFI { "cfi" } else { "backtrace" }
}

/// Makes the preparations that may read files or allocate in the C library, and compares the two walkers on this very
/// stack; where they differ the slow one is used, and `heap_build_info` says so.
pub(crate) fn prepare() {
    cfi::prepare();
    if cfi::AVAILABLE && cfi::self_test() {
        WALKER.store(CFI, Ordering::Relaxed);
    }
}

/// Looks for modules loaded or unloaded since the last call; returns a number that changes with
/// every change. Read side only: takes the loader's lock.
pub(crate) fn modules_epoch() -> u64 {
    cfi::modules_epoch()
}

/// Simulates a C library without `_dl_find_object`: for tests.
pub(crate) fn forget_find_object() {
    cfi::forget_find_object();
}

#[cfg(all(test, target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests;
