//! The calling thread → the bounds of its stack, without a lock and without memory.
//!
//! `pthread_getattr_np` takes the thread's own lock and allocates, and the standard library calls it as a thread
//! begins: a signal handler that interrupts that, and is the first in its thread to allocate, would wait for itself. So
//! where the thread pointer is known to lie at the end of a thread's stack (glibc puts it there, on a stack that the
//! program brought too), the end is that, and how far down it is the same stack is found out as stacks are walked: page
//! by page, by asking the kernel whether there is something to read. A page that cannot be read is the guard page, and below
//! it are foreign stacks: of coroutines, of signal handlers.
//!
//! A thread without a guard page may take a foreign stack right below its own for its own. Then, too, all that lies
//! between a stack pointer and the end could be read when it was looked at.

use crate::base::atomics::{AtomicBool, AtomicUsize, Ordering};

/// Bounds of the calling thread's stack, as far as is known.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct StackBounds {
    /// Highest address, exclusive; 0 when unknown.
    pub end: usize,
    /// Bytes from the lowest address that is known to be the stack's to the highest.
    pub size: usize,
    /// Whether more than `size` bytes may belong to it: nothing below them was looked at.
    pub may_grow: bool,
}

impl StackBounds {
    /// Returns whether a stack pointer is on this stack, as far as is known.
    #[inline(always)]
    pub(crate) fn contains(&self, stack_pointer: usize) -> bool {
        // 0 < distance <= size.
        self.end.wrapping_sub(stack_pointer).wrapping_sub(1) < self.size
    }

    /// Extends the bounds to a stack pointer of the calling thread, if that is on this stack.
    pub(crate) fn extend_to(&mut self, stack_pointer: usize) -> bool {
        self.contains(stack_pointer) || self.extend_to_slow(stack_pointer, is_readable)
    }

    /// Looks page by page whether all between the known part and a stack pointer can be read.
    #[cold]
    #[inline(never)]
    fn extend_to_slow(&mut self, stack_pointer: usize, is_readable: impl Fn(usize) -> bool) -> bool {
        let main = main_stack();
        if main.contains(stack_pointer) {
            *self = main;
            return true;
        }
        debug_assert!(self.size <= self.end, "{self:x?}");
        let low = self.end - self.size;
        // In one comparison: 0 < distance <= FARTHEST, so that one above the end is foreign too.
        if !self.may_grow || low.wrapping_sub(stack_pointer).wrapping_sub(1) >= FARTHEST {
            return false;
        }
        // A page at a time, because between two that can be read one may lie that cannot.
        let mut page = low;
        while page > stack_pointer {
            // That of the last byte below.
            page = (page - 1) & !(page_size() - 1);
            if !is_readable(page) {
                // Nor will it be: a guard page stays.
                self.may_grow = false;
                return false;
            }
            self.size = self.end - page;
        }
        debug_assert!(self.contains(stack_pointer), "{stack_pointer:#x} is outside of {self:x?}");
        true
    }
}

/// Bytes of a page, as the system says. Relaxed: written before `main`; the smallest there are until then, which is
/// right for larger ones too.
static PAGE_SIZE: AtomicUsize = AtomicUsize::new(4096);

/// Returns the bytes of a page.
fn page_size() -> usize {
    PAGE_SIZE.load(Ordering::Relaxed)
}

/// A stack pointer farther below what is known than this is a foreign stack's. A frame of as much is more than
/// any thread has room for unless it asks; to look through it once takes a millisecond.
const FARTHEST: usize = 16 << 20;

/// `__libc_stack_end`: where the main thread's stack ends; 0 if not known. Relaxed, as the next: written before `main`.
static MAIN_STACK_END: AtomicUsize = AtomicUsize::new(0);

/// Whether the thread pointer tells where the stack is, and the kernel whether an address can be read.
static CAN_ASK: AtomicBool = AtomicBool::new(false);

/// Whether the kernel tells if an address can be read. Relaxed: written before `main`.
static CAN_ASK_KERNEL: AtomicBool = AtomicBool::new(false);

/// Returns the bounds of the main thread's stack. It grows down as far as it is let; the size only tells a foreign stack
/// from it, and none is that close below.
fn main_stack() -> StackBounds {
    match MAIN_STACK_END.load(Ordering::Relaxed) {
        0 => StackBounds::default(),
        end => StackBounds { end, size: 8 << 20, may_grow: false },
    }
}

/// Finds out how to ask; called before `main` where that is possible.
pub(crate) fn prepare() {
    // SAFETY: a plain query.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if let Some(page) = usize::try_from(page).ok().filter(|page| page.is_power_of_two()) {
        PAGE_SIZE.store(page, Ordering::Relaxed);
    }
    CAN_ASK_KERNEL.store(probe::works(), Ordering::Relaxed);
    // SAFETY: a NUL-terminated name, the default scope.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_stack_end".as_ptr()) };
    if !symbol.is_null() {
        // SAFETY: glibc's variable of this name is a pointer, set before any constructor.
        MAIN_STACK_END.store(unsafe { *symbol.cast::<usize>() }, Ordering::Relaxed);
        CAN_ASK.store(cfg!(target_env = "gnu") && CAN_ASK_KERNEL.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Returns the bounds of the calling thread's stack, before any of it was looked at. In a thread that has just begun.
pub(crate) fn of_this_thread() -> StackBounds {
    if CAN_ASK.load(Ordering::Relaxed) {
        return StackBounds {
            end: probe::thread_pointer() & !(align_of::<usize>() - 1),
            size: 0,
            may_grow: true,
        };
    }
    as_told()
}

/// Returns whether the word at an address can be read, as the kernel says.
fn is_readable(address: usize) -> bool {
    probe::is_readable(address)
}

/// Copies memory of this process that may not be there, from an address. False where it is not, and where the kernel
/// cannot be asked.
pub(crate) fn copy(address: usize, to: &mut [u8]) -> bool {
    probe::copy(address, to)
}

/// Readable pages of a foreign stack: asked one at a time, as a walk comes to them. Without a kernel to ask,
/// all are taken to be.
pub(crate) struct ForeignPages {
    /// The last one that can be read.
    page: usize,
}

impl ForeignPages {
    /// Begins at a stack pointer of the calling thread, whose own page is there.
    pub(crate) fn from(stack_pointer: usize) -> ForeignPages {
        ForeignPages { page: stack_pointer & !(page_size() - 1) }
    }

    /// Returns whether the word at an aligned address can be read.
    #[inline]
    pub(crate) fn contains(&mut self, address: usize) -> bool {
        debug_assert!(address.is_multiple_of(align_of::<usize>()), "no word is at {address:#x}");
        let page = address & !(page_size() - 1);
        page == self.page || self.contains_slow(page)
    }

    /// Asks whether a page can be read, and remembers one that can.
    #[cold]
    fn contains_slow(&mut self, page: usize) -> bool {
        let holds = !CAN_ASK_KERNEL.load(Ordering::Relaxed) || is_readable(page);
        if holds {
            self.page = page;
        }
        holds
    }
}

// A processor whose thread pointer we know how to read, with system calls as a Linux kernel has them.
#[cfg_attr(any(miri, not(target_pointer_width = "64")), path = "stack_bounds/no_probe.rs")]
mod probe;

/// Asks the C library for the bounds: in the main thread by a file, in the others under a lock of the thread.
fn as_told() -> StackBounds {
    // SAFETY: plain queries.
    let is_main = unsafe { libc::getpid() == libc::syscall(libc::SYS_gettid) as libc::pid_t };
    if is_main && MAIN_STACK_END.load(Ordering::Relaxed) != 0 {
        return main_stack();
    }
    let mut attribute = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the attribute is initialised by the first call, read by the second and, if it was
    // initialised, destroyed by the third: it holds memory.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attribute.as_mut_ptr()) != 0 {
            return StackBounds::default();
        }
        let failed = libc::pthread_attr_getstack(attribute.as_ptr(), &raw mut low, &raw mut size) != 0;
        libc::pthread_attr_destroy(attribute.as_mut_ptr());
        if failed {
            return StackBounds::default();
        }
    }
    // A program may have brought a stack of its own, of any size; what is read of it is whole words.
    StackBounds { end: (low.addr() + size) & !(align_of::<usize>() - 1), size, may_grow: false }
}

#[cfg(all(test, target_env = "gnu", not(miri)))]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const END: usize = 0x7f00_0012_3450;
    const PAGE: usize = 4096;

    fn begun() -> StackBounds {
        StackBounds { end: END, size: 0, may_grow: true }
    }

    #[test]
    fn a_stack_is_looked_at_once_and_down_to_its_guard_page() {
        let guard = (END & !(PAGE - 1)) - 10 * PAGE;
        let asked = RefCell::new(Vec::new());
        let is_readable = |address: usize| {
            asked.borrow_mut().push(address);
            address != guard
        };
        let mut bounds = begun();
        let mut extend_to = |sp| bounds.contains(sp) || bounds.extend_to_slow(sp, is_readable);
        assert!(
            !extend_to(END)
                && !extend_to(END + 8)
                && !extend_to(END + (1 << 30))
                && !extend_to(END - FARTHEST - 8)
        );
        assert!(asked.take().is_empty());
        assert!(extend_to(END - 8) && extend_to(END - 0x450));
        assert_eq!(asked.take(), [END - 0x450]);
        assert!(extend_to(END - 0x458) && extend_to(END - 0x1450) && extend_to(END - 0x300));
        assert_eq!(asked.take(), [END - 0x1450]);
        assert!(extend_to(guard + PAGE));
        assert_eq!(asked.take().len(), 8);
        assert!(!extend_to(guard - 5 * PAGE));
        assert_eq!(asked.take(), [guard]);
        assert!(
            !extend_to(guard - 5 * PAGE)
                && !extend_to(guard + PAGE - 8)
                && extend_to(guard + PAGE)
                && extend_to(END - 8)
        );
        assert!(asked.take().is_empty());
    }

    #[test]
    fn what_can_be_read_is_told_from_what_cannot() {
        if !probe::works() {
            return;
        }
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping of two pages, one of which cannot be read; its end is below.
        let pages = unsafe {
            let pages = libc::mmap(std::ptr::null_mut(), 2 * PAGE, libc::PROT_READ, kind, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(pages.byte_add(PAGE), PAGE, libc::PROT_NONE), 0);
            pages.addr()
        };
        // SAFETY: the calling thread's, twice.
        unsafe { *libc::__errno_location() = 77 };
        let read = [pages, pages + PAGE - 8, pages + PAGE, 0, 8, usize::MAX & !7].map(is_readable);
        assert_eq!(read, [true, true, false, false, false, false]);
        // SAFETY: as above.
        assert_eq!(unsafe { *libc::__errno_location() }, 77);
        // SAFETY: the mapping above.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(pages), 2 * PAGE) };
        assert!(!is_readable(pages));
    }

    #[test]
    fn memory_that_is_not_there_is_not_copied() {
        let (mut to, from) = ([0u8; 16], [7u8; 16]);
        if !copy((&raw const from).addr(), &mut to) {
            return;
        }
        assert_eq!(to, from);
        assert!(!copy(16, &mut to) && !copy(usize::MAX & !7, &mut to));
    }

    #[test]
    fn pages_of_a_foreign_stack_are_asked_for() {
        prepare();
        if !probe::works() {
            return;
        }
        let size = page_size();
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping of three pages, the second of which cannot be read; its end is below.
        let pages = unsafe {
            let pages = libc::mmap(std::ptr::null_mut(), 3 * size, libc::PROT_READ, kind, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(pages.byte_add(size), size, libc::PROT_NONE), 0);
            pages.addr()
        };
        let mut foreign = ForeignPages::from(pages + 128);
        assert!(foreign.contains(pages) && foreign.contains(pages + size - 8));
        assert!(!foreign.contains(pages + size) && !foreign.contains(pages + 2 * size - 8));
        assert!(foreign.contains(pages + 2 * size) && foreign.contains(pages));
        // SAFETY: the mapping above.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(pages), 3 * size) };
    }

    /// Reaches deeper and deeper, against what the C library tells.
    #[inline(never)]
    fn down(depth: usize, bounds: &mut StackBounds, told: StackBounds) {
        let room = std::hint::black_box([depth; 100]);
        let here = (&raw const room).addr();
        assert!(bounds.extend_to(here) && told.contains(here));
        assert!(bounds.end <= told.end && bounds.end - bounds.size >= (told.end - told.size) & !(PAGE - 1));
        if depth > 0 {
            down(depth - 1, bounds, told);
        }
        std::hint::black_box(&room);
    }

    #[test]
    fn a_threads_stack_is_found() {
        prepare();
        let run = || {
            let (mut bounds, told) = (of_this_thread(), as_told());
            // As in a handler on a stack of its own that is the first to allocate in its thread.
            let elsewhere = Box::new([0u8; 100]);
            assert!(!bounds.extend_to((&raw const *elsewhere).addr()));
            down(1_000, &mut bounds, told);
            let size = bounds.size;
            assert!(size > 800_000);
            assert!(
                !bounds.extend_to((&raw const *elsewhere).addr())
                    && !bounds.extend_to(told.end - told.size - PAGE)
            );
            assert!(bounds.extend_to((&raw const size).addr()));
        };
        std::thread::spawn(run).join().unwrap();
    }

    /// Neither does glibc put a guard page below it, nor need its ends be those of pages or words.
    #[test]
    fn a_stack_that_the_program_brought_is_found() {
        extern "C" fn run(_: *mut libc::c_void) -> *mut libc::c_void {
            let (mut bounds, told) = (of_this_thread(), as_told());
            down(100, &mut bounds, told);
            assert!(!bounds.extend_to(told.end + 16));
            std::ptr::null_mut()
        }
        prepare();
        let mut room = vec![0u8; 512 << 10];
        // SAFETY: the room is the thread's alone until it is joined.
        unsafe {
            let (mut thread, mut attribute) = (0, std::mem::zeroed());
            assert_eq!(libc::pthread_attr_init(&raw mut attribute), 0);
            let low = room.as_mut_ptr().add(40);
            assert_eq!(libc::pthread_attr_setstack(&raw mut attribute, low.cast(), room.len() - 77), 0);
            assert_eq!(
                libc::pthread_create(&raw mut thread, &raw const attribute, run, std::ptr::null_mut()),
                0
            );
            assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
            libc::pthread_attr_destroy(&raw mut attribute);
        }
    }
}
