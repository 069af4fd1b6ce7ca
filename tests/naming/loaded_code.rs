//! Tests exact counts and complete stacks through code that `dlopen` loads and `dlclose` unloads.
//!
//! Two libraries of the same code with frames of different sizes take turns at the same address, so that a cached rule of
//! one is wrong for the other. The tests run again in a process that cannot ask the loader, as with glibc before 2.35.
#![cfg(target_os = "linux")]

use heapgauge::{GroupBy, Snapshot, traceback_of};
use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::MutexGuard;
use std::sync::mpsc;
use std::time::Duration;

use crate::process;

const FILE: &str = "tests/naming/loaded_code.rs";
const CYCLES: usize = 200;
const BLOCKS: usize = 7;

type Block = Box<[u64; 5]>;
type Callback = extern "C" fn(*mut c_void, usize);
type Enter = unsafe extern "C" fn(Callback, *mut c_void, usize);

/// `FRAME` needs four bytes in the instructions whatever its value here, so that the code of both
/// libraries has the same length, and return addresses the same offsets.
const SOURCE: &str = "
typedef void callback(void *, unsigned long);
__attribute__((noinline)) static void inner(callback *call, void *kept, unsigned long count) {
    volatile char room[FRAME];
    room[0] = 1;
    room[FRAME - 1] = 1;
    call(kept, count);
    room[0] = 2;
}
void enter(callback *call, void *kept, unsigned long count) {
    volatile char room[FRAME * 2];
    room[0] = 1;
    inner(call, kept, count);
    room[0] = 2;
}
";

/// Waits for other tests: those of the process that lists modules share it.
fn turn() -> MutexGuard<'static, ()> {
    if is_told_to_list() {
        heapgauge::list_modules();
    }
    process::turn()
}

/// In the environment of the process that has to do without `_dl_find_object`.
const LISTING: &str = "LOADED_CODE_LISTING";

/// Returns whether this is that process.
fn is_told_to_list() -> bool {
    std::env::var_os(LISTING).is_some()
}

/// Returns whether a module is known only from the next look on: in that process, and in all with a C library like that.
fn is_listing() -> bool {
    // SAFETY: a NUL-terminated name, the default scope.
    is_told_to_list() || unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) }.is_null()
}

/// Compiles a library with frames of this many bytes, and of twice as many.
fn library(name: &str, frame: usize) -> PathBuf {
    library_of(SOURCE, name, frame)
}

/// Compiles a library with so many functions more, so that its rules are farther from its code.
fn library_with(name: &str, frame: usize, functions: usize) -> PathBuf {
    let more: String = (0..functions)
        .map(|number| {
            format!(
                "int more{number}(int a) {{ volatile int room[{}]; room[0] = a; return room[0]; }}\n",
                9 + number % 50
            )
        })
        .collect();
    library_of(&format!("{SOURCE}{more}"), name, frame)
}

fn library_of(code: &str, name: &str, frame: usize) -> PathBuf {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(if is_told_to_list() { "listing" } else { "asking" });
    std::fs::create_dir_all(&directory).unwrap();
    let (source, library) = (directory.join(format!("{name}.c")), directory.join(format!("lib{name}.so")));
    std::fs::write(&source, code).unwrap();
    let compiled = Command::new(process::c_compiler())
        .args(["-g", "-O2", "-shared", "-fPIC", "-fasynchronous-unwind-tables", "-fomit-frame-pointer"])
        .args(["-fno-stack-protector", "-fno-stack-clash-protection"])
        .arg(format!("-DFRAME={frame}"))
        .arg("-o")
        .args([&library, &source])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

/// A loaded library.
struct Loaded {
    handle: *mut c_void,
    enter: Enter,
}

impl Loaded {
    fn open(path: &Path) -> Loaded {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a library of this file, whose only function has the type of `Enter`.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "dlopen {path:?}");
            let enter = libc::dlsym(handle, c"enter".as_ptr());
            assert!(!enter.is_null(), "dlsym enter");
            Loaded { handle, enter: std::mem::transmute::<*mut c_void, Enter>(enter) }
        }
    }

    /// Keeps `count` blocks more, allocated below the library's frames.
    #[inline(never)]
    fn fill(&self, kept: &mut Vec<Block>, count: usize) {
        // SAFETY: `keep` gets the vector back, and no other code uses it meanwhile.
        unsafe { (self.enter)(keep, (&raw mut *kept).cast(), count) };
        black_box(());
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: opened once, and none of its code is on a stack any more.
        assert_eq!(unsafe { libc::dlclose(self.handle) }, 0);
    }
}

/// Returns the addresses of a loaded library, from the first byte that is mapped of it to the last.
fn mapped(library: &Path) -> Range<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let (mut first, mut last) = (usize::MAX, 0);
    for line in maps.lines().filter(|line| line.ends_with(library.to_str().unwrap())) {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        first = first.min(usize::from_str_radix(start, 16).unwrap());
        last = last.max(usize::from_str_radix(end, 16).unwrap());
    }
    assert!(first < last, "{library:?} is not in\n{maps}");
    first..last
}

/// Makes one gap of the address space the highest that a library fits in, for libraries of every size.
///
/// The kernel maps a library at the upper end of the highest gap that is large enough. Where a smaller gap is
/// above, only small libraries are mapped there, and none overlaps a large one.
fn leave_one_gap() {
    const GAP: usize = 16 << 20;
    let reserve = |bytes: usize| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes, which no code accesses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        start
    };
    let gap = reserve(GAP);
    // Each gap above is smaller than this one. They are filled from the largest piece to a page, for good.
    let mut bytes = GAP / 2;
    while bytes >= 4_096 {
        while reserve(bytes) > gap {}
        bytes /= 2;
    }
    // SAFETY: the mapping made above, whole.
    assert_eq!(unsafe { libc::munmap(gap, GAP) }, 0);
}

extern "C" fn keep(kept: *mut c_void, count: usize) {
    // SAFETY: what `fill` passed.
    let kept = unsafe { &mut *kept.cast::<Vec<Block>>() };
    for number in 0..count {
        kept.push(Box::new([number as u64; 5]));
    }
}
/// The line of the allocation in `keep`.
const LINE: u32 = line!() - 4;

/// Returns live bytes and blocks of that line.
fn at_line() -> (u64, u64) {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let row = rows.iter().find(|row| row.name() == format!("{FILE}:{LINE}"));
    row.map_or((0, 0), |row| (row.size, row.count))
}

/// Loads and unloads the two in turn, and says how often one stood where the other had been.
#[inline(never)]
fn cycle(
    libraries: &[PathBuf; 2],
    kept: &mut Vec<Block>,
    mut after: impl FnMut(usize, &Vec<Block>),
) -> usize {
    let mut before = 0;
    let mut replaced = 0;
    for number in 0..CYCLES {
        let loaded = Loaded::open(&libraries[number % 2]);
        loaded.fill(kept, BLOCKS);
        replaced += usize::from(loaded.enter as usize == before);
        before = loaded.enter as usize;
        after(number, kept);
    }
    replaced
}

/// Runs it on a thread of its own; an error if it takes longer than two minutes.
fn within_two_minutes(run: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let runner = std::thread::spawn(move || {
        run();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => runner.join().unwrap(),
    }
}

#[test]
fn libraries_that_take_turns_at_one_address() {
    own_process!();
    let _turn = turn();
    let libraries = [library("narrow", 1_000), library("wide", 5_000)];
    within_two_minutes(move || {
        let mut kept = Vec::with_capacity(CYCLES * BLOCKS);
        let replaced = cycle(&libraries, &mut kept, |number, kept| {
            let blocks = (number + 1) * BLOCKS;
            assert_eq!(kept.len(), blocks);
            // Each look reads every name again, because modules have changed: a few have to do.
            if number < 6 {
                // The stack goes on behind the library's two frames: through it, not into the void.
                let traceback = traceback_of(&kept[blocks - 1]).unwrap();
                let names: Vec<_> = traceback.frames().map(|frame| frame.name()).collect();
                assert_eq!(names[0], "naming::loaded_code::keep", "{names:#?}");
                if is_listing() && names.len() < 4 {
                    // It was not listed yet.
                    return;
                }
                assert_eq!(
                    names.get(3).unwrap(),
                    "naming::loaded_code::Loaded::fill",
                    "cycle {number}: {names:#?}"
                );
                assert!(names[4].starts_with("naming::loaded_code::cycle"), "{names:#?}");
            }
            if number % 50 == 49 {
                assert_eq!(at_line(), (40 * blocks as u64, blocks as u64));
            }
        });
        // Without this the test would not show what it is for.
        assert!(
            is_listing() || replaced > CYCLES / 2,
            "{replaced} of {CYCLES} were loaded where the one before had been"
        );
        assert_eq!(at_line(), (40 * (CYCLES * BLOCKS) as u64, (CYCLES * BLOCKS) as u64));
        drop(kept);
        assert_eq!(at_line(), (0, 0));
    });
}

/// The listed module of one library is gone, or is another one, when the other library runs.
#[test]
fn libraries_of_other_sizes_take_turns() {
    own_process!();
    let _turn = turn();
    let libraries = [library_with("much", 1_000, 2_000), library_with("little", 5_000, 0)];
    within_two_minutes(move || {
        let mut kept = Vec::with_capacity(CYCLES * BLOCKS);
        let mut overlaps = 0;
        let mut before = 0..0;
        leave_one_gap();
        for number in 0..CYCLES {
            let library = &libraries[number % 2];
            let loaded = Loaded::open(library);
            loaded.fill(&mut kept, BLOCKS);
            let addresses = mapped(library);
            overlaps += usize::from(addresses.start < before.end && before.start < addresses.end);
            before = addresses;
            if number < 6 {
                // Lists it.
                assert_eq!(at_line().1, (BLOCKS * (number + 1)) as u64);
                loaded.fill(&mut kept, 1);
                drop(kept.pop());
            }
        }
        assert!(overlaps > CYCLES / 2, "{overlaps} of {CYCLES} were loaded over the one before");
        let blocks = (CYCLES * BLOCKS) as u64;
        assert_eq!(at_line(), (40 * blocks, blocks));
    });
}

/// Its list is as old as the last look, and a module of it may have gone: what it says of an address is compared with
/// what is mapped there.
#[test]
fn all_of_it_where_the_loader_cannot_be_asked() {
    if is_told_to_list() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    // Each in a process of its own: a test that has taken too long leaves its thread behind, and that one's blocks are at the
    // line of the other test.
    for test in ["libraries_that_take_turns_at_one_address", "libraries_of_other_sizes_take_turns"] {
        let done = Command::new(&program)
            .args(["--exact", &format!("loaded_code::{test}")])
            .envs([(LISTING, "1"), (process::OWN_PROCESS, "1")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{:?}\n{said}{}", done.status, String::from_utf8_lossy(&done.stderr));
        assert!(said.contains("1 passed"), "{said}");
    }
}

/// Returns names and places of a block's frames.
fn frames(block: &Block) -> Vec<(String, String, u32)> {
    let traceback = traceback_of(block).unwrap();
    let frames = traceback.frames();
    frames.map(|frame| (frame.name().into_owned(), frame.file().to_owned(), frame.line())).collect()
}

#[test]
fn a_library_loaded_after_names_were_read_has_lines() {
    own_process!();
    let _turn = turn();
    drop(Snapshot::take().unwrap());
    let loaded = Loaded::open(&library("late", 1_000));
    let mut kept = Vec::with_capacity(3);
    loaded.fill(&mut kept, 3);
    let frames = frames(&kept[2]);
    let calls = SOURCE.lines().position(|line| line.contains("    call(kept")).unwrap() as u32 + 1;
    let (name, file, line) = &frames[1];
    assert_eq!((name.as_str(), *line), ("inner", calls), "{frames:#?}");
    assert!(file.ends_with("late.c"), "{frames:#?}");
    assert_eq!(frames[2].0, "enter");
    drop(kept);
}

/// Returns whether the kernel lets a mapped file be read that has no name any more, which takes a capability.
fn mapped_files_can_be_read() -> bool {
    let mut mapped = std::fs::read_dir("/proc/self/map_files").into_iter().flatten().flatten();
    mapped.next().is_some_and(|entry| std::fs::File::open(entry.path()).is_ok())
}

/// Allocates in a library whose file `change` changes once it is loaded: the library's own line where the mapped file can be
/// read, and else an offset.
fn names_are_of_what_is_mapped(name: &str, change: impl FnOnce(&Path)) {
    let path = library(name, 1_000);
    let loaded = Loaded::open(&path);
    change(&path);
    let mut kept = Vec::with_capacity(3);
    loaded.fill(&mut kept, 3);
    let frames = frames(&kept[2]);
    let (function, file, _) = &frames[1];
    if mapped_files_can_be_read() {
        assert_eq!((function.as_str(), file.ends_with(&format!("{name}.c"))), ("inner", true), "{frames:#?}");
    } else {
        let is_offset = function.starts_with(&format!("lib{name}.so+0x"));
        assert_eq!((is_offset, file.as_str()), (true, "<unknown>"), "{frames:#?}");
    }
    drop(kept);
}

#[test]
fn a_library_whose_file_was_replaced_has_no_names_of_the_new_one() {
    own_process!();
    let _turn = turn();
    names_are_of_what_is_mapped("replaced", |path| {
        let other = library_of(&SOURCE.replace("inner", "wrong"), "other", 5_000);
        std::fs::rename(other, path).unwrap();
    });
}

#[test]
fn a_library_whose_file_was_deleted_keeps_its_names() {
    own_process!();
    let _turn = turn();
    names_are_of_what_is_mapped("deleted", |path| std::fs::remove_file(path).unwrap());
}

#[test]
fn loading_while_others_load_and_snapshots_are_taken() {
    own_process!();
    let _turn = turn();
    let libraries = [library("first", 1_000), library("second", 5_000)];
    within_two_minutes(move || {
        let fillers: Vec<_> = (0..3)
            .map(|_| {
                let libraries = libraries.clone();
                std::thread::spawn(move || {
                    let mut kept = Vec::with_capacity(CYCLES * BLOCKS);
                    cycle(&libraries, &mut kept, |_, _| {});
                    kept
                })
            })
            .collect();
        while fillers.iter().any(|filler| !filler.is_finished()) {
            // Bytes and blocks are read one after the other while more are allocated.
            assert!(at_line().1 <= 3 * (CYCLES * BLOCKS) as u64);
        }
        let kept: Vec<_> = fillers.into_iter().map(|filler| filler.join().unwrap()).collect();
        let blocks = 3 * (CYCLES * BLOCKS) as u64;
        assert_eq!(at_line(), (40 * blocks, blocks));
        drop(kept);
        assert_eq!(at_line(), (0, 0));
    });
}
