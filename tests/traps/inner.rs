//! Provides the inner allocator of the traps: the system's, which can refuse requests or work without a lock, and which ends
//! the process when a block is freed with another layout or was written past its end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The inner allocator, see the module.
pub struct Inner;

/// The words behind every block: its layout, to detect another layout at the free and any byte written behind the block.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seal {
    size: usize,
    align: usize,
}

thread_local! {
    /// Requests of this size up to, not including, that one are refused to this thread, and how many were.
    static REFUSED: [Cell<usize>; 3] = const { [const { Cell::new(0) }; 3] };
}

/// Refuses requests of its thread whose size is in a range, until it is dropped; sizes include the tracker's tag.
pub struct Refuse;

impl Refuse {
    pub fn sizes(from: usize, to: usize) -> Refuse {
        REFUSED.with(|[begin, end, _]| (begin.set(from), end.set(to)));
        Refuse
    }

    pub fn times() -> usize {
        REFUSED.with(|[.., times]| times.get())
    }
}

impl Drop for Refuse {
    fn drop(&mut self) {
        REFUSED.with(|[_, end, _]| end.set(0));
    }
}

thread_local! {
    /// Bytes that this thread holds more than when [`most_held`] began, and the most that they were.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Runs `act` and returns the most bytes that this thread had allocated and not freed meanwhile, tags included.
pub fn most_held<R>(act: impl FnOnce() -> R) -> (R, isize) {
    HELD.set((0, 0));
    let result = act();
    (result, HELD.get().1)
}

fn hold(bytes: usize, freed: usize) {
    let _ = HELD.try_with(|held| {
        let (before, most) = held.get();
        let now = before.wrapping_add_unsigned(bytes).wrapping_sub_unsigned(freed);
        held.set((now, most.max(now)));
    });
}

fn is_refused(size: usize) -> bool {
    let check = |[begin, end, times]: &[Cell<usize>; 3]| {
        let is_refused = (begin.get()..end.get()).contains(&size);
        times.set(times.get() + usize::from(is_refused));
        is_refused
    };
    REFUSED.try_with(check).unwrap_or(false)
}

/// An arena of blocks that are never freed: no lock and no system call, so that signal handlers may use it. Null before
/// [`no_locks`].
static ARENA: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static SERVING: AtomicBool = AtomicBool::new(false);
static USED: AtomicUsize = AtomicUsize::new(0);
const ARENA_SIZE: usize = 4 << 30;

/// Takes blocks from the arena, until it is dropped.
pub struct NoLocks;

impl Drop for NoLocks {
    fn drop(&mut self) {
        SERVING.store(false, Ordering::SeqCst);
    }
}

/// Takes all blocks from the arena from now on. Once a process.
pub fn no_locks() -> NoLocks {
    // SAFETY: a fresh mapping.
    let arena = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            ARENA_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(arena, libc::MAP_FAILED);
    ARENA.store(arena.cast(), Ordering::SeqCst);
    SERVING.store(true, Ordering::SeqCst);
    NoLocks
}

fn arena() -> Option<*mut u8> {
    SERVING.load(Ordering::Relaxed).then(|| ARENA.load(Ordering::Relaxed))
}

fn is_of_arena(block: *mut u8) -> bool {
    let arena = ARENA.load(Ordering::Relaxed);
    !arena.is_null() && block.addr().wrapping_sub(arena.addr()) < ARENA_SIZE
}

fn from_arena(arena: *mut u8, layout: Layout) -> *mut u8 {
    let mut used = USED.load(Ordering::Relaxed);
    loop {
        let from = used.next_multiple_of(layout.align());
        let to = from + layout.size();
        if to > ARENA_SIZE {
            return std::ptr::null_mut();
        }
        match USED.compare_exchange_weak(used, to, Ordering::Relaxed, Ordering::Relaxed) {
            // The arena begins at a page, so it has no larger alignments.
            Ok(_) => return arena.wrapping_add(from),
            Err(now) => used = now,
        }
    }
}

/// Returns the layout with room for the seal; `None` if that is too large.
fn sealed(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size().checked_add(size_of::<Seal>())?, layout.align()).ok()
}

/// Writes a seal behind a block.
///
/// # Safety
///
/// * `block` is null or was made for `sealed(layout)`.
unsafe fn seal(block: *mut u8, layout: Layout) -> *mut u8 {
    if !block.is_null() {
        let seal = Seal { size: layout.size() ^ block.addr(), align: layout.align() };
        // SAFETY: the room for it is behind the block.
        unsafe { block.add(layout.size()).cast::<Seal>().write_unaligned(seal) };
    }
    block
}

/// Ends the process if a block's seal is broken.
///
/// # Safety
///
/// * `block` is one of these, and alive.
unsafe fn check(block: *mut u8, layout: Layout) {
    // SAFETY: if the layout is the right one it is in bounds; if not, this process ends anyhow.
    let found = unsafe { block.add(layout.size()).cast::<Seal>().read_unaligned() };
    if found != (Seal { size: layout.size() ^ block.addr(), align: layout.align() }) {
        let line = b"a block came back with another layout, or was written over\n";
        // SAFETY: writes a constant and ends.
        unsafe {
            libc::write(2, line.as_ptr().cast(), line.len());
            libc::abort();
        }
    }
}

// SAFETY: blocks of the system's allocator or of the arena, longer than asked for and aligned as asked for.
unsafe impl GlobalAlloc for Inner {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(longer) = sealed(layout).filter(|_| !is_refused(layout.size())) else {
            return std::ptr::null_mut();
        };
        let block = match arena() {
            Some(arena) => from_arena(arena, longer),
            // SAFETY: the size is not zero, with the seal.
            None => unsafe { System.alloc(longer) },
        };
        hold(if block.is_null() { 0 } else { layout.size() }, 0);
        // SAFETY: just made.
        unsafe { seal(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if arena().is_some() {
            // SAFETY: as the caller promised; the arena's pages are zero and used once.
            return unsafe { self.alloc(layout) };
        }
        let Some(longer) = sealed(layout).filter(|_| !is_refused(layout.size())) else {
            return std::ptr::null_mut();
        };
        // SAFETY: the size is not zero, with the seal.
        let block = unsafe { System.alloc_zeroed(longer) };
        hold(if block.is_null() { 0 } else { layout.size() }, 0);
        // SAFETY: just made.
        unsafe { seal(block, layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        hold(0, layout.size());
        // SAFETY: the caller's word that it is one of these blocks.
        unsafe {
            check(block, layout);
            if !is_of_arena(block) {
                System.dealloc(block, sealed(layout).unwrap_unchecked());
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `dealloc`.
        unsafe { check(block, layout) };
        let Some(new) = Layout::from_size_align(size, layout.align()).ok() else {
            return std::ptr::null_mut();
        };
        if is_of_arena(block) || arena().is_some() {
            // SAFETY: two blocks, and the smaller size of both.
            unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, size.min(layout.size()));
                    self.dealloc(block, layout);
                }
                return moved;
            }
        }
        let Some(longer) = sealed(new).filter(|_| !is_refused(size)) else { return std::ptr::null_mut() };
        // SAFETY: the layout it was made with, and a size that was checked.
        let moved = unsafe { System.realloc(block, sealed(layout).unwrap_unchecked(), longer.size()) };
        if !moved.is_null() {
            hold(size, layout.size());
        }
        // SAFETY: just made.
        unsafe { seal(moved, new) }
    }
}
