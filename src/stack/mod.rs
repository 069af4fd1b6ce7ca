//! The calling thread's registers → its return addresses, most recent first, and their fingerprint.
//!
//! One entry, [`capture`]; behind it [`cfi`] where unwind rules can be had (Linux on x86-64 and
//! aarch64), and [`fallback`] elsewhere and for the rare row that a packed rule cannot hold. Called
//! inside the allocator: it neither allocates through it, nor locks, nor panics.

mod fallback;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod modules;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod cfi;
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "no_cfi.rs"]
mod cfi;

use crate::stack_cache::Fingerprint;
use crate::sync::{AtomicU8, Ordering};
use crate::thread::Tools;
use crate::tracker::{self, MAX_ADDRESSES};

/// One random odd number for each place in a stack. The fingerprint is the 128-bit sum of address ×
/// number: as integers, not modulo, so that one differing address always shows, and two cancel with
/// probability 2^-60; and no term waits for another, unlike in a chained hash.
static FACTORS: [u64; MAX_ADDRESSES] = factors();

const fn factors() -> [u64; MAX_ADDRESSES] {
    let mut factors = [0; MAX_ADDRESSES];
    let mut state = 0x6865_6170_6761_7567_u64;
    let mut i = 0;
    while i < MAX_ADDRESSES {
        // splitmix64, Steele, Lea, Flood 2014.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        factors[i] = (z ^ (z >> 31)) | 1;
        i += 1;
    }
    factors
}

/// The addresses of a walk as they are gathered.
struct Gather<'a> {
    addresses: &'a mut [usize; MAX_ADDRESSES],
    len: usize,
    limit: usize,
    sum: u128,
}

impl<'a> Gather<'a> {
    fn new(addresses: &'a mut [usize; MAX_ADDRESSES], limit: usize) -> Gather<'a> {
        Gather { addresses, len: 0, limit: limit.min(MAX_ADDRESSES), sum: 0 }
    }

    /// Takes one more address; false when that was the last one there is room for.
    #[inline(always)]
    fn push(&mut self, address: usize) -> bool {
        debug_assert!(self.len < MAX_ADDRESSES);
        let place = self.len % MAX_ADDRESSES;
        self.addresses[place] = address;
        self.sum = self.sum.wrapping_add(u128::from(FACTORS[place]) * address as u128);
        self.len += 1;
        self.len < self.limit
    }

    #[inline(always)]
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint { low: self.sum as u64, high: (self.sum >> 64) as u64, depth: self.len as u32 }
    }
}

const CFI: u8 = 0;
const BACKTRACE: u8 = 1;
/// Which walker is used. The quick one from the moment it has been prepared and has passed its test,
/// before `main`; what other constructors allocate earlier is walked by the slow one.
static WALKER: AtomicU8 = AtomicU8::new(BACKTRACE);

/// Walks the calling thread's stack into the buffer of its tools.
///
/// Inlined into its caller, so that the walk begins at that caller's frame: the first address is the
/// one the caller returns to.
#[inline(always)]
pub(crate) fn capture(tools: &mut Tools) -> Fingerprint {
    let limit = tracker::address_limit();
    if WALKER.load(Ordering::Relaxed) == CFI {
        let registers = cfi::Registers::here();
        if let Some(fingerprint) = cfi::capture(tools, registers, limit) {
            return fingerprint;
        }
    } else {
        tools.buffer.header.len = 0;
    }
    capture_slow(tools, limit)
}

#[cold]
#[inline(never)]
fn capture_slow(tools: &mut Tools, limit: usize) -> Fingerprint {
    tracker::count_fallback();
    // What the quick walk found before it met a row it could not follow begins with the address the
    // allocator's entry returns to: there the slow walk's frames begin to be the program's.
    let from = (tools.buffer.header.len > 0).then_some(tools.buffer.addresses[0]);
    let mut gather = Gather::new(&mut tools.buffer.addresses, limit);
    let truncated = fallback::walk(&mut gather, from);
    let fingerprint = gather.fingerprint();
    tools.buffer.header.len = fingerprint.depth;
    tools.buffer.header.truncated = truncated;
    fingerprint
}

/// How stacks are walked, as `heap_build_info{capture}` says it.
pub(crate) fn walker() -> &'static str {
    if WALKER.load(Ordering::Relaxed) == CFI { "cfi" } else { "backtrace" }
}

/// Gets ready what may read files or allocate in the C library, and compares the two walkers on this
/// very stack; where they differ the slow one is used, and `heap_build_info` says so.
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
