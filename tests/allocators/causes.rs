//! Grows the memory of this process in one known way, and counts by how much.
//!
//!     glibc CAUSE FILE    the cause `file` writes and maps FILE
//!
//! Prints `listening on ADDRESS`. On a line of standard input it grows, and prints `PART BYTES` for each part that grows,
//! then `grown`. The end of standard input ends it.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;
use std::sync::{Arc, Barrier};
use std::thread;

const MIB: usize = 1 << 20;
/// With heapgauge's tag, and a header where there is one, all three allocators have a size of 1,024 for it.
const BLOCK: usize = 1_000;
const THREADS: usize = 16;

/// Bytes that a part gains, or loses.
type Truth = Vec<(&'static str, isize)>;

pub fn run() {
    let mut arguments = std::env::args().skip(1);
    let cause = arguments.next().expect("a cause");
    let file = arguments.next().expect("a file");
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    println!("listening on {}", server.local_addr());
    if !next_line() {
        return;
    }
    for (part, bytes) in grow(&cause, &file) {
        println!("{part} {bytes}");
    }
    println!("grown");
    while next_line() {}
}

fn next_line() -> bool {
    io::stdout().flush().unwrap();
    io::stdin().read_line(&mut String::new()).unwrap() > 0
}

fn grow(cause: &str, file: &str) -> Truth {
    match cause {
        "fragments" => fragments(),
        "foreign" => foreign(),
        "file" => mapped_file(file),
        "shared" => shared_memory(),
        "anonymous" => anonymous_mapping(),
        "threads" => thread_stacks(),
        "large" => large_blocks_freed(),
        "huge" => huge_pages(),
        "untouched" => untouched_blocks(),
        _ => panic!("no cause is called {cause}"),
    }
}

/// Fills an arena for each thread, and then frees three blocks of four.
fn fragments() -> Truth {
    let each = 8 * MIB / BLOCK;
    let step = Arc::new(Barrier::new(THREADS + 1));
    for _ in 0..THREADS {
        let step = Arc::clone(&step);
        thread::spawn(move || {
            let mut blocks: Vec<Option<Vec<u8>>> = (0..each).map(|_| Some(vec![1; BLOCK])).collect();
            // No thread takes memory that another one has freed.
            step.wait();
            for (number, block) in blocks.iter_mut().enumerate() {
                if number % 4 != 0 {
                    *block = None;
                }
            }
            step.wait();
            park(blocks);
        });
    }
    step.wait();
    step.wait();
    let kept = each.div_ceil(4);
    let list = each * size_of::<Option<Vec<u8>>>();
    truth([("free", THREADS * (each - kept) * BLOCK), ("live", THREADS * (kept * BLOCK + list))])
}

/// Allocates as a C library does.
fn foreign() -> Truth {
    let blocks = 64 * MIB / BLOCK;
    for _ in 0..blocks {
        // SAFETY: a block of that size, which is written whole and never freed.
        unsafe {
            let block = libc::malloc(BLOCK);
            assert!(!block.is_null());
            black_box(libc::memset(block, 1, BLOCK));
        }
    }
    truth([("foreign", blocks * BLOCK)])
}

fn mapped_file(path: &str) -> Truth {
    let size = 64 * MIB;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    for _ in 0..size / MIB {
        (&file).write_all(&[1; MIB]).unwrap();
    }
    read_all(map(size, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd()), size);
    truth([("file", size)])
}

fn shared_memory() -> Truth {
    let size = 64 * MIB;
    // SAFETY: the name ends with a NUL, and nothing else closes the descriptor that comes back.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"causes".as_ptr(), 0)) };
    file.set_len(size as u64).unwrap();
    write_all(map(size, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd()), size);
    truth([("shared", size)])
}

fn anonymous_mapping() -> Truth {
    let size = 64 * MIB;
    // With a hole on either side, so that the kernel joins it with no mapping of the allocator.
    let whole =
        map(size + 2 * MIB, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    let inside = whole.wrapping_add(MIB);
    for end in [whole, inside.wrapping_add(size)] {
        // SAFETY: a part of the mapping above, which nothing uses.
        assert_eq!(unsafe { libc::munmap(end.cast(), MIB) }, 0);
    }
    write_all(inside, size);
    truth([("unaccounted", size)])
}

/// Parks threads that have touched a mebibyte of their stacks.
fn thread_stacks() -> Truth {
    let threads = 64;
    let done = Arc::new(Barrier::new(threads + 1));
    for _ in 0..threads {
        let done = Arc::clone(&done);
        thread::Builder::new()
            .stack_size(2 * MIB)
            .spawn(move || {
                touch_stack();
                done.wait();
                park(());
            })
            .unwrap();
    }
    done.wait();
    truth([("stacks", threads * MIB)])
}

#[inline(never)]
fn touch_stack() {
    black_box(&mut [1_u8; MIB]);
}

/// Frees large blocks below one that stays. Free memory grows by the pages that were not in memory before.
fn large_blocks_freed() -> Truth {
    // glibc maps blocks as large as this one, until it was freed: from then on they are in its heap.
    let first = Pages::allocate(8 * MIB, false);
    let (address, before) = (first.address, first.resident());
    first.write(first.size);
    drop(first);
    let mut gained = resident(address, 8 * MIB).saturating_sub(before);
    let blocks: Vec<Pages> = (0..32).map(|_| Pages::allocate(2 * MIB, false)).collect();
    for block in &blocks {
        gained += block.size - block.resident();
        block.write(block.size);
    }
    std::mem::forget(black_box(vec![1_u8; 64 << 10])); // at the top of the heap
    drop(blocks);
    truth([("free", gained)])
}

/// Touches a byte in each huge page, and asks the kernel for the pages that it gave for it.
fn huge_pages() -> Truth {
    let (size, page) = (64 * MIB, 2 * MIB);
    let block = Pages::allocate(size, false);
    let before = block.resident();
    let aligned = block.address.wrapping_add(4096 - block.address.addr() % 4096);
    // SAFETY: whole pages of the block; the advice changes no contents. A kernel without huge pages refuses it.
    unsafe { libc::madvise(aligned.cast(), size - 4096, libc::MADV_HUGEPAGE) };
    for at in (0..size).step_by(page) {
        // SAFETY: inside the block.
        unsafe { block.address.add(at).write_volatile(1) };
    }
    of_untouched(block, before)
}

/// Allocates blocks whose pages stay untouched, but for the first half of each.
fn untouched_blocks() -> Truth {
    let blocks = (0..8).map(|number| {
        // An allocator may have to write zeros: where memory was free before, which the first blocks take.
        let is_zeroed = number >= 4;
        let block = Pages::allocate(16 * MIB, is_zeroed);
        let before = if is_zeroed { 0 } else { block.resident() };
        block.write(block.size / 2);
        of_untouched(block, before)
    });
    let sum = |sum: Truth, one: Truth| {
        sum.iter().zip(one).map(|((part, all), (_, bytes))| (*part, all + bytes)).collect()
    };
    blocks.reduce(sum).unwrap()
}

/// Keeps a block of which so many bytes were in memory before it was touched: they were free.
fn of_untouched(block: Pages, before: usize) -> Truth {
    let touched = block.resident();
    let truth = truth([("live", touched), ("untouched", block.size - touched), ("free", before)]);
    std::mem::forget(block);
    truth.into_iter().map(|(part, bytes)| (part, if part == "free" { -bytes } else { bytes })).collect()
}

/// A large block.
struct Pages {
    address: *mut u8,
    size: usize,
}

impl Pages {
    fn allocate(size: usize, is_zeroed: bool) -> Pages {
        let layout = Layout::from_size_align(size, 16).unwrap();
        // SAFETY: a layout with a size.
        let address = unsafe { if is_zeroed { alloc_zeroed(layout) } else { alloc(layout) } };
        assert!(!address.is_null());
        Pages { address, size }
    }

    fn write(&self, bytes: usize) {
        write_all(self.address, bytes);
    }

    fn resident(&self) -> usize {
        resident(self.address, self.size)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, by `allocate`.
        unsafe { dealloc(self.address, Layout::from_size_align(self.size, 16).unwrap()) };
    }
}

fn truth<const PARTS: usize>(parts: [(&'static str, usize); PARTS]) -> Truth {
    parts.into_iter().map(|(part, bytes)| (part, bytes as isize)).collect()
}

/// Keeps a value and its thread until the end of the process.
fn park<T>(held: T) {
    black_box(&held);
    loop {
        thread::park();
    }
}

fn map(size: usize, access: i32, flags: i32, file: i32) -> *mut u8 {
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let mapping = unsafe { libc::mmap(null_mut(), size, access, flags, file, 0) };
    assert_ne!(mapping, libc::MAP_FAILED);
    mapping.cast()
}

fn write_all(memory: *mut u8, size: usize) {
    // SAFETY: memory of that size, which only the caller uses.
    unsafe { memory.write_bytes(1, size) };
    black_box(memory);
}

fn read_all(memory: *const u8, size: usize) {
    for at in (0..size).step_by(4096) {
        // SAFETY: inside the mapping of that size.
        black_box(unsafe { memory.add(at).read_volatile() });
    }
}

/// Returns the bytes of these pages that are in memory; 0 where they are not mapped any more.
fn resident(memory: *mut u8, size: usize) -> usize {
    let before = memory.addr() % 4096;
    let mut pages = vec![0_u8; (before + size).div_ceil(4096)];
    // SAFETY: a byte for each page; the kernel looks at no contents.
    if unsafe { libc::mincore(memory.wrapping_sub(before).cast(), before + size, pages.as_mut_ptr()) } != 0 {
        return 0;
    }
    size.min(4096 * pages.iter().filter(|page| **page & 1 == 1).count())
}
