//! The calling thread's registers → its return addresses, most recent first, and their fingerprint.
//!
//! [`recognise`] where the stack lies as before, else [`walk`]; behind them [`cfi`] where unwind rules can be had (Linux on x86-64 and
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

use crate::layouts::GROUP;
use crate::stack_cache::Fingerprint;
use crate::sync::{AtomicU8, Ordering};
use crate::thread::Tools;
use crate::tracker::{self, MAX_ADDRESSES};

/// One random odd number for each place in a stack.
static FACTORS: [u64; MAX_ADDRESSES] = factors();

/// Σ address × factor, modulo 2^64: one address that differs always shows, because its factor is odd;
/// several cancel with probability 2^-60. No term waits for another, unlike in a chained hash.
///
/// The addresses are the words at `places`, whose number is a multiple of [`GROUP`].
#[inline(always)]
fn fingerprint<P: Copy>(places: &[P], word: impl Fn(P) -> usize) -> u64 {
    let mut sum = 0u64;
    for (places, factors) in places.chunks_exact(GROUP).zip(FACTORS.chunks_exact(GROUP)) {
        for i in 0..GROUP {
            sum = sum.wrapping_add((word(places[i]) as u64).wrapping_mul(factors[i]));
        }
    }
    sum
}

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
}

impl<'a> Gather<'a> {
    fn new(addresses: &'a mut [usize; MAX_ADDRESSES], limit: usize) -> Gather<'a> {
        Gather { addresses, len: 0, limit: limit.clamp(1, MAX_ADDRESSES) }
    }

    /// Takes one more address; false when that was the last one there is room for.
    #[inline(always)]
    fn push(&mut self, address: usize) -> bool {
        if let Some(place) = self.addresses.get_mut(self.len) {
            *place = address;
            self.len += 1;
        }
        self.len < self.limit
    }

    /// See [`fingerprint`].
    fn fingerprint(&mut self) -> u64 {
        let padded = self.len.next_multiple_of(GROUP).min(MAX_ADDRESSES);
        if self.len > 0 {
            let last = self.addresses[self.len - 1];
            self.addresses[self.len..padded].fill(last);
        }
        fingerprint(&self.addresses[..padded], |address| address)
    }
}

const CFI: u8 = 0;
const BACKTRACE: u8 = 1;
/// Which walker is used. The quick one from the moment it has been prepared and has passed its test,
/// before `main`; what other constructors allocate earlier is walked by the slow one.
static WALKER: AtomicU8 = AtomicU8::new(BACKTRACE);

/// How the allocator was entered: each has frames of its own below the program's.
#[derive(Clone, Copy)]
pub(crate) enum Entrance {
    Allocate = 0,
    AllocateZeroed = 1,
    Reallocate = 2,
    Other = 3,
}

pub(crate) use cfi::Registers;

/// The id of the stack, if its frames lie as they lay before and it was met since `base`.
/// Nothing is stored in the buffer.
#[inline(always)]
pub(crate) fn recognise(
    tools: &mut Tools,
    registers: Registers,
    entrance: Entrance,
    base: u32,
) -> Option<u32> {
    cfi::recognise(tools, registers, entrance, base)
}

/// Walks the calling thread's stack from `registers` on into the buffer of its tools. The first
/// address is the one that the function of the registers returns to.
#[inline(never)]
pub(crate) fn walk(tools: &mut Tools, registers: Registers, entrance: Entrance) -> Fingerprint {
    let limit = tracker::address_limit();
    tools.buffer.header.len = 0;
    if WALKER.load(Ordering::Relaxed) == CFI
        && let Some(fingerprint) = cfi::walk_and_learn(tools, registers, limit, entrance)
    {
        return fingerprint;
    }
    walk_slow(tools, limit)
}

#[cold]
#[inline(never)]
fn walk_slow(tools: &mut Tools, limit: usize) -> Fingerprint {
    tracker::count_fallback();
    // What the quick walk found before it met a row it could not follow begins with the address the
    // allocator's entry returns to: there the slow walk's frames begin to be the program's.
    let from = (tools.buffer.header.len > 0).then_some(tools.buffer.addresses[0]);
    let mut gather = Gather::new(&mut tools.buffer.addresses, limit);
    let truncated = fallback::walk(&mut gather, from);
    let (sum, len) = (gather.fingerprint(), gather.len);
    tools.buffer.header.len = len as u16;
    tools.buffer.header.truncated = truncated;
    Fingerprint { sum, layout: 0 }
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

#[cfg(test)]
mod tests;
