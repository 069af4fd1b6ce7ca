//! Address of a large block → its stack id: four bytes for each KiB of address space in use.
//!
//! Two live blocks of at least [`GRANULE`] bytes never begin in the same granule, so the granule
//! number of a block's address names it and no key need be stored, compared or locked: the map is a
//! two-level array. A leaf is reserved once and its pages appear as they are touched; a page of ids
//! covers 1 MiB of addresses, so the map costs 0.4 % where large blocks are side by side.
//!
//! The entry of a block belongs to the owner of the block, so Relaxed is enough throughout: handing
//! a block to another thread, or an address to the next block, synchronises already.
//!
//! No other block begins in the granules behind the first one of a block, and those of a block of at least [`MARKED`]
//! bytes tell its exact address and its size: so readers find every large block, see [`visit_marked`].

use crate::base::atomics::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Blocks of at least this size keep their id here.
pub(crate) const GRANULE: usize = 1 << GRANULE_BITS;
const GRANULE_BITS: u32 = 10;

/// Only where an address has few enough bits for a flat root, and memory can be reserved unused.
pub(crate) const AVAILABLE: bool = cfg!(all(target_os = "linux", target_pointer_width = "64"));

/// 2^20 ids a leaf: 4 MiB reserved for 1 GiB of addresses.
const LEAF_BITS: u32 = 20;
const LEAF_LEN: usize = 1 << LEAF_BITS;
/// Width of the addresses that Linux gives unless a program asks for more by name (x86-64 and aarch64: at most 48).
const ADDRESS_BITS: u32 = 48;
const ROOT_LEN: usize = if AVAILABLE { 1 << (ADDRESS_BITS - GRANULE_BITS - LEAF_BITS) } else { 1 };

type Leaf = [AtomicU32; LEAF_LEN];

/// 2 MiB of zero pages, of which a program touches one or two.
static ROOT: [AtomicPtr<Leaf>; ROOT_LEN] = [const { AtomicPtr::new(std::ptr::null_mut()) }; ROOT_LEN];

/// Marks each group of 64 root entries that has a leaf, so that a reader of all leaves passes over the others.
/// Relaxed: a leaf that has just been made may be missing from a sum.
static HAS_LEAVES: [AtomicU64; ROOT_LEN.div_ceil(64 * 64)] =
    [const { AtomicU64::new(0) }; ROOT_LEN.div_ceil(64 * 64)];

/// Removes the tag of a pointer from an address, as memory tagging puts one into the upper byte, which aarch64 ignores when
/// it follows a pointer: a block may come back with another tag.
#[inline(always)]
fn untagged(address: usize) -> usize {
    if cfg!(target_arch = "aarch64") { address & (usize::MAX >> 8) } else { address }
}

/// Marks a root entry whose leaf could not be mapped. It stays so: a block allocated without a
/// leaf must not find one when it is freed.
fn no_leaf() -> *mut Leaf {
    std::ptr::without_provenance_mut(1)
}

/// Keeps `id` for the block at `address`; false when there is no memory for it, now and for good.
#[inline(always)]
pub(crate) fn set(address: usize, id: u32) -> bool {
    let address = untagged(address);
    match entry(address) {
        Some(entry) => {
            entry.store(id, Ordering::Relaxed);
            true
        }
        None => match leaf_slow(address) {
            Some(leaf) => {
                leaf[index(address)].store(id, Ordering::Relaxed);
                true
            }
            None => false,
        },
    }
}

/// Returns the id that [`set`] kept last for this address, 0 if none.
#[inline(always)]
pub(crate) fn get(address: usize) -> u32 {
    entry(untagged(address)).map_or(0, |entry| entry.load(Ordering::Relaxed))
}

/// Returns the entry of an address, if its leaf is there.
#[inline(always)]
fn entry(address: usize) -> Option<&'static AtomicU32> {
    let leaf = ROOT.get(address >> (GRANULE_BITS + LEAF_BITS))?.load(Ordering::Acquire);
    if leaf.addr() <= 1 {
        return None;
    }
    debug_assert!(leaf.addr().is_multiple_of(SMALLEST_PAGE), "a leaf is a mapping");
    // SAFETY: neither null nor `no_leaf`, so a leaf published below, which is never unmapped. The
    // Acquire load pairs with the Release of that publication.
    Some(unsafe { &(*leaf)[index(address)] })
}

/// Returns the index of an address in its leaf.
#[inline(always)]
fn index(address: usize) -> usize {
    (address >> GRANULE_BITS) & (LEAF_LEN - 1)
}

/// Makes the leaf of an address, or takes the one of a faster thread; `None` where it cannot be mapped.
#[cold]
#[inline(never)]
fn leaf_slow(address: usize) -> Option<&'static Leaf> {
    let number = address >> (GRANULE_BITS + LEAF_BITS);
    let root = ROOT.get(number)?;
    // Relaxed: only to know that there is nothing to reserve for. A value that is not null stays.
    if root.load(Ordering::Relaxed) == no_leaf() {
        return None;
    }
    let fresh = reserve().unwrap_or_else(no_leaf);
    // Release publishes the (zero) leaf to `entry`; Acquire takes over the one of a thread that was
    // faster. Losing costs an unmap, once.
    let leaf = match root.compare_exchange(std::ptr::null_mut(), fresh, Ordering::Release, Ordering::Acquire)
    {
        Ok(_) => {
            if let Some(bits) = HAS_LEAVES.get(number / (64 * 64)) {
                bits.fetch_or(1 << (number / 64 % 64), Ordering::Relaxed);
            }
            fresh
        }
        Err(earlier) => {
            debug_assert!(!earlier.is_null(), "the exchange failed with what it expected");
            if fresh != no_leaf() {
                unreserve(fresh);
            }
            earlier
        }
    };
    // SAFETY: as in `entry`.
    if leaf == no_leaf() { None } else { Some(unsafe { &*leaf }) }
}

// ── Marks of the largest blocks ─────────────────────────────────────────────────────────────────

/// Blocks of at least this size have a mark: three of their entries.
pub(crate) const MARKED: usize = 64 << 10;
const _: () = assert!(MARKED >= 5 * GRANULE);

/// The second entry of a marked block, with the place of the block in its first granule in the lower bits: no id of a stack
/// is that high.
const MARK: u32 = !(GRANULE as u32 - 1);

/// Marks a block of at least [`MARKED`] bytes. Where there is no memory for it, it has no mark.
#[cold]
pub(crate) fn mark(address: usize, size: usize) {
    let address = untagged(address);
    // Both are lower than a mark: they stay when the block is freed.
    let (whole, rest) = ((size >> GRANULE_BITS) as u32, (size & (GRANULE - 1)) as u32);
    if whole < MARK && set(address + 2 * GRANULE, whole) && set(address + 3 * GRANULE, rest) {
        set(address + GRANULE, MARK | (address & (GRANULE - 1)) as u32);
    }
}

/// Takes the mark away, before the block is freed.
#[cold]
pub(crate) fn unmark(address: usize) {
    if let Some(entry) = entry(untagged(address) + GRANULE) {
        entry.store(0, Ordering::Relaxed);
    }
}

/// Passes the address, the size and the id of every marked block to `visit`. Blocks that come or go meanwhile may be missing,
/// or gone. Looks at those pages of the map that are resident.
pub(crate) fn visit_marked(visit: &mut dyn FnMut(usize, usize, u32)) {
    each_leaf(&mut |number, leaf| {
        visit_pages(leaf, &mut |range| {
            for index in range {
                // SAFETY: `leaf` is a published one, see `entry`.
                let entry: &AtomicU32 = unsafe { &(*leaf)[index] };
                let mark = entry.load(Ordering::Relaxed);
                if mark < MARK {
                    continue;
                }
                let granule = ((number << LEAF_BITS) + index).wrapping_sub(1) << GRANULE_BITS;
                let address = granule | mark as usize & (GRANULE - 1);
                let (whole, rest) = (get(address + 2 * GRANULE), get(address + 3 * GRANULE));
                visit(address, (whole as usize) << GRANULE_BITS | rest as usize, get(address));
            }
        });
    });
}

/// Returns whether an id was ever kept for a block between two addresses.
pub(crate) fn holds_blocks(start: usize, end: usize) -> bool {
    let mut found = false;
    each_leaf(&mut |number, leaf| {
        let first = number << LEAF_BITS;
        let wanted = (start >> GRANULE_BITS).max(first)..(end >> GRANULE_BITS).min(first + LEAF_LEN);
        if found || wanted.is_empty() {
            return;
        }
        visit_pages(leaf, &mut |range| {
            let range = (first + range.start).max(wanted.start)..(first + range.end).min(wanted.end);
            // SAFETY: `leaf` is a published one, see `entry`.
            let leaf: &Leaf = unsafe { &*leaf };
            found = found || range.into_iter().any(|at| leaf[at - first].load(Ordering::Relaxed) != 0);
        });
    });
    found
}

/// Passes the number of each root entry that has a leaf, and the leaf.
fn each_leaf(act: &mut dyn FnMut(usize, *mut Leaf)) {
    for (word, bits) in HAS_LEAVES.iter().enumerate() {
        let mut bits = bits.load(Ordering::Relaxed);
        while bits != 0 {
            let first = (word * 64 + bits.trailing_zeros() as usize) * 64;
            bits &= bits - 1;
            for (number, root) in ROOT.iter().enumerate().skip(first).take(64) {
                // Acquire: pairs with the publication, so that the mapping exists for the reader.
                let leaf = root.load(Ordering::Acquire);
                if leaf.addr() > 1 {
                    act(number, leaf);
                }
            }
        }
    }
}

/// Maps a leaf of zeroes.
#[cfg(target_os = "linux")]
fn reserve() -> Option<*mut Leaf> {
    #[cfg(test)]
    if !tests::may_map() {
        return None;
    }
    // SAFETY: a fresh anonymous mapping; it touches no memory that exists.
    let pointer = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Leaf>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if pointer == libc::MAP_FAILED {
        return None;
    }
    // A huge page would turn the first id into 2 MiB of memory. Advice only: nothing depends on it.
    // SAFETY: the mapping just made.
    unsafe { libc::madvise(pointer, size_of::<Leaf>(), libc::MADV_NOHUGEPAGE) };
    Some(pointer.cast())
}

/// Unmaps a leaf that was never published.
#[cfg(target_os = "linux")]
fn unreserve(leaf: *mut Leaf) {
    // SAFETY: a mapping of `reserve` that lost the race and that no other thread has seen.
    unsafe { libc::munmap(leaf.cast(), size_of::<Leaf>()) };
}

#[cfg(not(target_os = "linux"))]
fn reserve() -> Option<*mut Leaf> {
    None
}

#[cfg(not(target_os = "linux"))]
fn unreserve(_leaf: *mut Leaf) {}

/// Returns the bytes of the map that are resident now. Asks the kernel once for each leaf.
pub(crate) fn resident_bytes() -> u64 {
    let mut pages = 0;
    each_leaf(&mut |_, leaf| pages += residency(leaf).iter().map(|page| u64::from(page & 1)).sum::<u64>());
    pages * page_bytes() as u64
}

/// Returns the bytes of a page, as the system says.
#[cfg(unix)]
pub(crate) fn page_bytes() -> usize {
    // SAFETY: a plain query.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(SMALLEST_PAGE)
}

#[cfg(not(unix))]
pub(crate) fn page_bytes() -> usize {
    SMALLEST_PAGE
}

const SMALLEST_PAGE: usize = 4096;

/// Passes the indices of the entries of each page of a leaf that is resident.
fn visit_pages(leaf: *mut Leaf, act: &mut dyn FnMut(std::ops::Range<usize>)) {
    let of_page = page_bytes() / size_of::<AtomicU32>();
    for (page, _) in residency(leaf).iter().enumerate().filter(|(_, page)| **page & 1 != 0) {
        act(page * of_page..(page + 1) * of_page);
    }
}

/// Returns for each page of a leaf whether it is resident, in the lowest bit. Pages may be larger than [`SMALLEST_PAGE`]: then the
/// last ones are 0.
fn residency(leaf: *mut Leaf) -> [u8; size_of::<Leaf>() / SMALLEST_PAGE] {
    let mut resident = [0u8; size_of::<Leaf>() / SMALLEST_PAGE];
    debug_assert!(resident.len() * page_bytes() >= size_of::<Leaf>(), "pages without a byte for them");
    #[cfg(target_os = "linux")]
    // SAFETY: `leaf` is a mapping of this size; the array has a byte for each page of the smallest size there is (fewer
    // are written where pages are larger).
    if unsafe { libc::mincore(leaf.cast(), size_of::<Leaf>(), resident.as_mut_ptr()) } != 0 {
        resident.fill(0);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (leaf, &mut resident);
    resident
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// Leaves that this thread has asked for, and whether it is refused more.
        static ASKED: Cell<u32> = const { Cell::new(0) };
        static REFUSED: Cell<bool> = const { Cell::new(false) };
    }

    /// Returns whether the system would give a mapping.
    pub(super) fn may_map() -> bool {
        ASKED.set(ASKED.get() + 1);
        !REFUSED.get()
    }

    #[test]
    fn a_leaf_that_failed_is_not_asked_for_again() {
        let base = 0x2345_6789_0000;
        REFUSED.set(true);
        assert!(!set(base, 7));
        REFUSED.set(false);
        let asked = ASKED.get();
        for block in 1..100 {
            assert!(!set(base + block * GRANULE, 7));
            assert_eq!(get(base + block * GRANULE), 0);
        }
        assert_eq!(ASKED.get(), asked, "each block asks the system");
    }

    #[test]
    fn neighbours_keep_their_own_ids() {
        let base = 0x1234_5678_9010;
        assert_eq!(get(base), 0);
        for block in 0..3000 {
            assert!(set(base + block * GRANULE, block as u32 + 7));
        }
        for block in 0..3000 {
            assert_eq!(get(base + block * GRANULE), block as u32 + 7);
        }
        assert!(resident_bytes() >= 12_000 && resident_bytes() < 1 << 20);
    }

    #[test]
    fn marked_blocks_are_found_with_their_sizes_until_they_are_freed() {
        // The last one's mark is in the next leaf.
        let leaf = GRANULE * LEAF_LEN;
        let blocks = [
            (0x3456_7890_0010, MARKED),
            (0x3456_7892_0ff0, (5 << 32) + 77),
            (0x3456_8000_0000 / leaf * leaf + leaf - 1000, 1 << 20),
        ];
        let found = || {
            let mut found = Vec::new();
            visit_marked(&mut |address, size, id| {
                if id == 7 {
                    found.push((address, size));
                }
            });
            found.retain(|(address, _)| blocks.iter().any(|(block, _)| block == address));
            found
        };
        for (address, size) in blocks {
            assert!(set(address, 7));
            mark(address, size);
        }
        assert_eq!(found(), blocks);
        unmark(blocks[1].0);
        assert_eq!(found(), [blocks[0], blocks[2]]);
        assert!(blocks.iter().all(|(address, _)| get(*address) == 7));
    }

    #[test]
    fn leaves_anywhere_in_the_map_are_in_its_bytes() {
        let leaf = GRANULE * LEAF_LEN;
        for number in [3, 64 * 64 - 1, 64 * 64, ROOT_LEN / 2 + 63, ROOT_LEN - 1] {
            let before = resident_bytes();
            for page in 0..8 {
                assert!(set(number * leaf + page * (GRANULE << 10), 7));
            }
            assert!(resident_bytes() >= before + (8 << 12), "leaf {number}");
        }
    }

    /// As where glibc tags its blocks.
    #[cfg(target_arch = "aarch64")]
    #[test]
    fn the_tag_of_a_pointer_does_not_count() {
        let base = 0x1234_9876_0000;
        assert!(set(base | 3 << 56, 7));
        assert_eq!((get(base), get(base | 11 << 56)), (7, 7));
    }

    #[test]
    fn an_address_beyond_the_map_is_untracked_on_both_sides() {
        assert!(!set(1 << 52, 9));
        assert_eq!(get(1 << 52), 0);
    }
}
