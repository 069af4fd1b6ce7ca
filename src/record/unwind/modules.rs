//! Address → the module that contains it, and the address of that module's unwind section.
//!
//! `_dl_find_object` (glibc 2.35) answers without a lock and without memory, in the allocator as anywhere. Without
//! it, the modules are listed before `main` and again by the read side when the loader's counts change; an address of
//! a newer module is unknown until then.
//!
//! Modules loaded before `main` stay. Later ones may be unloaded at any time, with another module at the same address
//! a moment after, and no query without a lock reports that. So a listed module of that kind is compared with the
//! mapping there, each time: its first page says where its segments and its unwind section are. A module with code on
//! the calling thread's stack cannot be unloaded meanwhile.

use crate::base::atomics::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::record::epoch;
use crate::record::memory;
use crate::record::thread::stack_bounds;
use std::ffi::{c_int, c_void};

/// A loaded module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Module {
    /// Addresses from `start` up to, not including, `end` belong to it.
    pub start: usize,
    pub end: usize,
    /// Address of its `.eh_frame_hdr`.
    pub unwind_header: usize,
}

/// A segment of a module that is mapped as a whole and never written, so that its bytes can be borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ConstantSegment {
    start: usize,
    end: usize,
}

impl ConstantSegment {
    /// Returns the bytes from an address to the end of the segment; none for an address outside of it.
    ///
    /// # Safety
    ///
    /// * The module stays loaded as long as the bytes are used.
    pub(super) unsafe fn bytes_from<'a>(self, address: usize) -> &'a [u8] {
        if !(self.start..self.end).contains(&address) {
            return &[];
        }
        debug_assert!(self.start <= address && address < self.end);
        // SAFETY: within one loaded segment, which the loader has mapped readable and not writable; the caller's duty.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), self.end - address) }
    }
}

impl Module {
    /// Finds the constant segment of the unwind header, by the program headers that the module has in memory: not its
    /// variables, which change, nor the holes between segments, where nothing is mapped.
    ///
    /// # Safety
    ///
    /// * The module is loaded.
    pub(super) unsafe fn constant_segment(&self) -> Option<ConstantSegment> {
        // The smallest page there is: the first of a module is mapped as a whole.
        const PAGE: usize = 4096;
        const SIZE: usize = size_of::<libc::Elf64_Phdr>();
        if self.start == 0 || !self.start.is_multiple_of(PAGE) {
            return None;
        }
        // SAFETY: the module is loaded from here on, the caller's duty, so that its first page is mapped; the record is
        // smaller, and any bytes are one.
        let file = unsafe { std::ptr::with_exposed_provenance::<libc::Elf64_Ehdr>(self.start).read() };
        let (first, count) = (file.e_phoff as usize, usize::from(file.e_phnum));
        let is_elf = file.e_ident.starts_with(b"\x7fELF") && usize::from(file.e_phentsize) == SIZE;
        let is_aligned = first.is_multiple_of(align_of::<libc::Elf64_Phdr>());
        if !is_elf || !is_aligned || first > PAGE || count > (PAGE - first) / SIZE {
            return None;
        }
        // SAFETY: aligned and within that page, as just checked.
        let headers = unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.start + first), count)
        };
        constant_segment(headers, self.start, self.unwind_header)
    }
}

/// Finds the segment that contains an address, if it is readable and never written. The file's own header is mapped
/// at `start`.
fn constant_segment(headers: &[libc::Elf64_Phdr], start: usize, address: usize) -> Option<ConstantSegment> {
    let mut segments = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let base = start.wrapping_sub(segments.clone().find(|header| header.p_offset == 0)?.p_vaddr as usize);
    let found = segments.find_map(|header| {
        let start = base.wrapping_add(header.p_vaddr as usize);
        let segment = ConstantSegment { start, end: start.wrapping_add(header.p_filesz as usize) };
        (segment.start..segment.end).contains(&address).then_some((header.p_flags, segment))
    });
    let is_constant = |flags: u32| flags & (libc::PF_R | libc::PF_W) == libc::PF_R;
    found.filter(|(flags, _)| is_constant(*flags)).map(|(_, segment)| segment)
}

/// `struct dl_find_object` of glibc, `dlfcn.h`.
#[repr(C)]
struct DlFindObject {
    flags: u64,
    map_start: *mut c_void,
    map_end: *mut c_void,
    link_map: *mut c_void,
    eh_frame: *mut c_void,
    reserved: [u64; 7],
}

type FindObject = unsafe extern "C" fn(*mut c_void, *mut DlFindObject) -> c_int;

/// Address of `_dl_find_object`, 0 where there is none. Relaxed: written before `main`, and a function's address
/// carries no data.
static FIND_OBJECT: AtomicUsize = AtomicUsize::new(0);

/// List of modules. Never freed or changed once published.
struct List {
    len: usize,
    modules: *mut Listed,
}

/// A module of a list, and its constant segment, which the loader's own program headers say.
#[derive(Clone, Copy)]
pub(super) struct Listed {
    pub(super) module: Module,
    pub(super) segment: Option<ConstantSegment>,
}

/// Modules that stay as long as the process: see [`prepare`].
static LASTING: AtomicPtr<List> = AtomicPtr::new(std::ptr::null_mut());

/// All modules, as last listed; null where there is `_dl_find_object`.
static LISTED: AtomicPtr<List> = AtomicPtr::new(std::ptr::null_mut());

/// Looks `_dl_find_object` up, and lists the modules that stay. Called before `main`.
///
/// If this code is in the executable, every module loaded now was loaded with it and stays. If it is in a library
/// that was loaded later, other modules may be unloaded again: only the executable and the library itself are known
/// to stay.
pub(super) fn prepare() {
    // SAFETY: a NUL-terminated name, the default scope.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) };
    FIND_OBJECT.store(symbol.addr(), Ordering::Relaxed);
    epoch();
    let here = prepare as fn() as usize;
    // The loader lists the executable first.
    let in_executable = list(|number, _| number == 0).and_then(|first| find_in(first, here)).is_some();
    let lasting =
        list(|number, module| in_executable || number == 0 || (module.start..module.end).contains(&here));
    if let Some(lasting) = lasting {
        // Release: publishes what was written.
        LASTING.store(std::ptr::from_ref(lasting).cast_mut(), Ordering::Release);
    }
}

/// Simulates a C library without `_dl_find_object`: for tests.
pub(super) fn forget_find_object() {
    FIND_OBJECT.store(0, Ordering::Relaxed);
    SEEN.store(0, Ordering::Relaxed);
    epoch();
}

/// Finds the module that contains an address.
pub(super) fn find(address: usize) -> Option<Module> {
    let function = FIND_OBJECT.load(Ordering::Relaxed);
    if function == 0 {
        return find_listed(address);
    }
    let mut found = DlFindObject {
        flags: 0,
        map_start: std::ptr::null_mut(),
        map_end: std::ptr::null_mut(),
        link_map: std::ptr::null_mut(),
        eh_frame: std::ptr::null_mut(),
        reserved: [0; 7],
    };
    // SAFETY: the loader's function of this name has had this signature since it exists; it looks the
    // address up, without following it, and fills the record, which is as long as glibc's.
    let failed = unsafe {
        let function = std::mem::transmute::<usize, FindObject>(function);
        function(std::ptr::without_provenance_mut(address), &raw mut found) != 0
    };
    (!failed && !found.eh_frame.is_null()).then(|| Module {
        start: found.map_start.addr(),
        end: found.map_end.addr(),
        unwind_header: found.eh_frame.addr(),
    })
}

/// Finds the module that contains an address if it stays loaded, so that the rules of its code stay valid: not outside of
/// all modules (one may be loaded there), nor in a module loaded after the start (it may be unloaded).
pub(super) fn find_lasting(address: usize) -> Option<Listed> {
    // Acquire: pairs with the Release of `prepare`.
    let list = LASTING.load(Ordering::Acquire);
    // SAFETY: null, or a list, which stays.
    find_in(unsafe { list.as_ref() }?, address)
}

/// Finds the module of an address in the lists.
fn find_listed(address: usize) -> Option<Module> {
    if let Some(listed) = find_lasting(address) {
        return Some(listed.module);
    }
    // Acquire: pairs with the Release of `epoch`.
    let list = LISTED.load(Ordering::Acquire);
    // SAFETY: as above.
    let listed = find_in(unsafe { list.as_ref() }?, address)?;
    is_still_there(listed.module).then_some(listed.module)
}

/// Finds the module of an address in a list.
fn find_in(list: &List, address: usize) -> Option<Listed> {
    debug_assert!(!list.modules.is_null());
    (0..list.len)
        // SAFETY: below `len`.
        .map(|index| unsafe { *list.modules.add(index) })
        .find(|listed: &Listed| (listed.module.start..listed.module.end).contains(&address))
}

/// Returns whether the mapping at its start is still this very module, by the headers of an ELF file in its first
/// page. The kernel copies them: there may be nothing mapped.
fn is_still_there(module: Module) -> bool {
    let mut head = [0; 1024];
    stack_bounds::copy(module.start, &mut head) && described(&head, module.start) == Some(module)
}

/// Reads a module from the beginning of its ELF file, mapped at `start`. `object` parses whole files, with a table of sections,
/// which is not mapped.
fn described(head: &[u8], start: usize) -> Option<Module> {
    const HEADER: usize = size_of::<libc::Elf64_Phdr>();
    let bytes = |at: usize| head.get(at..)?.first_chunk::<8>().copied();
    let word = |at: usize| bytes(at).map(|bytes| u64::from_ne_bytes(bytes) as usize);
    let half = |at: usize| bytes(at).map(|[low, high, ..]| usize::from(u16::from_ne_bytes([low, high])));
    if !head.starts_with(b"\x7fELF\x02") || half(54)? != HEADER {
        return None;
    }
    // Offset of the program headers in the file, and their number.
    let (first, count) = (word(32)?, half(56)?);
    let header = |number: usize| {
        let at = first.checked_add(number * HEADER)?;
        let kind = u32::from_ne_bytes(*head.get(at..)?.first_chunk::<4>()?);
        Some((kind, word(at.checked_add(16)?)?, word(at.checked_add(40)?)?))
    };
    let mut lowest = None;
    for number in 0..count {
        let (kind, place, _) = header(number)?;
        if kind == libc::PT_LOAD && lowest.is_none_or(|lowest| place < lowest) {
            lowest = Some(place);
        }
    }
    let base = start.wrapping_sub(lowest?);
    Some(Module::of(base, (0..count).filter_map(header)))
}

/// Combined counts of the loader, as last seen.
static SEEN: AtomicU64 = AtomicU64::new(0);
static SEEN_UNLOADED: AtomicU64 = AtomicU64::new(0);

/// Returns a number that changes when modules are loaded or unloaded; after an unload all threads drop their rules.
pub(super) fn epoch() -> u64 {
    let mut seen = Counts { loaded: 0, unloaded: 0 };
    // SAFETY: the callback fits and its data outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(read_counts), (&raw mut seen).cast()) };
    let now = (seen.loaded << 32) ^ seen.unloaded;
    if SEEN.swap(now, Ordering::Relaxed) != now && FIND_OBJECT.load(Ordering::Relaxed) == 0 {
        if let Some(listed) = list(|_, _| true) {
            // Release: publishes what was written.
            LISTED.store(std::ptr::from_ref(listed).cast_mut(), Ordering::Release);
        }
        // An address that was unknown may be known now.
        epoch::bump_rules_epoch();
    }
    if SEEN_UNLOADED.swap(seen.unloaded, Ordering::Relaxed) != seen.unloaded {
        epoch::bump_rules_epoch();
    }
    now
}

struct Counts {
    loaded: u64,
    unloaded: u64,
}

/// Reads the loader's counts from the first record.
unsafe extern "C" fn read_counts(info: *mut libc::dl_phdr_info, _size: usize, seen: *mut c_void) -> c_int {
    // SAFETY: the loader's record, and the `Counts` of `epoch`.
    unsafe {
        *seen.cast::<Counts>() = Counts { loaded: (*info).dlpi_adds, unloaded: (*info).dlpi_subs };
    }
    // The counts are the same in every record: one is enough.
    1
}

/// Lists the modules that are wanted, by their number in the loader's order. Earlier lists are not freed: a walk may
/// be reading one.
fn list(wanted: impl Fn(usize, &Module) -> bool) -> Option<&'static List> {
    let mut count = 0usize;
    // SAFETY: the callback fits and its data outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(count_one), (&raw mut count).cast()) };
    // Spare entries, for a module loaded between the two rounds; more than these are left out.
    let capacity = count + 8;
    let (modules, list) = (memory::zeroed_array::<Listed>(capacity), memory::zeroed::<List>());
    if modules.is_null() || list.is_null() {
        return None;
    }
    let mut filling = Filling { list: List { len: 0, modules }, capacity, number: 0, wanted: &wanted };
    // SAFETY: as above.
    unsafe { libc::dl_iterate_phdr(Some(list_one), (&raw mut filling).cast()) };
    // SAFETY: fresh memory of the right size, which is never freed.
    unsafe {
        list.write(filling.list);
        Some(&*list)
    }
}

struct Filling<'a> {
    list: List,
    capacity: usize,
    /// Modules seen.
    number: usize,
    wanted: &'a dyn Fn(usize, &Module) -> bool,
}

/// Counts a module.
unsafe extern "C" fn count_one(_info: *mut libc::dl_phdr_info, _size: usize, count: *mut c_void) -> c_int {
    // SAFETY: the counter of `list`.
    unsafe { *count.cast::<usize>() += 1 };
    0
}

/// Adds a module to the list if it is wanted.
unsafe extern "C" fn list_one(info: *mut libc::dl_phdr_info, _size: usize, filling: *mut c_void) -> c_int {
    // SAFETY: the `Filling` of `list`, and the loader's record with its program headers.
    let (filling, headers, base) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (&mut *filling.cast::<Filling<'_>>(), headers, info.dlpi_addr as usize)
    };
    let parts =
        headers.iter().map(|header| (header.p_type, header.p_vaddr as usize, header.p_memsz as usize));
    let module = Module::of(base, parts);
    let is_wanted = (filling.wanted)(filling.number, &module);
    filling.number += 1;
    if is_wanted && module.unwind_header != 0 && filling.list.len < filling.capacity {
        let segment = constant_segment(headers, module.start, module.unwind_header);
        debug_assert!(filling.list.modules.is_aligned());
        // SAFETY: below the capacity the array was made with.
        unsafe { filling.list.modules.add(filling.list.len).write(Listed { module, segment }) };
        filling.list.len += 1;
    }
    0
}

impl Module {
    /// Makes a module from the program headers of a file that is loaded at this distance from its linked addresses:
    /// kind, linked address, bytes in memory.
    fn of(base: usize, headers: impl Iterator<Item = (u32, usize, usize)>) -> Module {
        let mut module = Module { start: usize::MAX, end: 0, unwind_header: 0 };
        for (kind, place, size) in headers {
            let start = base.wrapping_add(place);
            match kind {
                libc::PT_LOAD => {
                    module.start = module.start.min(start);
                    module.end = module.end.max(start.wrapping_add(size));
                }
                libc::PT_GNU_EH_FRAME => module.unwind_header = start,
                _ => {}
            }
        }
        module
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_same_modules() {
        prepare();
        let listed = list(|_, _| true).unwrap();
        for address in
            [find as fn(usize) -> Option<Module> as usize, libc::dl_iterate_phdr as *const () as usize]
        {
            let listed = find_in(listed, address).unwrap().module;
            let asked = find(address).unwrap();
            assert_eq!(listed.unwind_header, asked.unwind_header);
            assert!((listed.start..listed.end).contains(&address));
            assert!((asked.start..asked.end).contains(&address));
            let lasting = find_lasting(address).unwrap();
            assert_eq!(lasting.module, listed);
            // SAFETY: a module that stays.
            assert_eq!(lasting.segment, unsafe { listed.constant_segment() });
        }
        assert!(find(16).is_none() && find_in(listed, 16).is_none() && find_lasting(16).is_none());
    }

    /// Excludes the variables of a module, which other threads write, and the holes between its segments, where
    /// nothing is mapped.
    #[test]
    fn constant_bytes_are_of_one_segment_that_is_not_written() {
        static VARIABLE: AtomicUsize = AtomicUsize::new(1);
        prepare();
        // The C library leaves the file's own header out where there is a hole before the code, so the list is asked.
        let Listed { module, segment } = find_lasting(find as fn(usize) -> Option<Module> as usize).unwrap();
        let segment = segment.unwrap();
        // SAFETY: the module of this very code, which stays.
        let bytes = |address| unsafe { segment.bytes_from(address) }.len();
        assert_eq!(bytes(module.unwind_header), segment.end - module.unwind_header);
        let variable = (&raw const VARIABLE).addr();
        assert!(variable >= module.start);
        assert_eq!(
            [bytes(variable), bytes(segment.end), bytes(segment.start.wrapping_sub(1)), bytes(0)],
            [0; 4]
        );
        // Every byte of it can be read.
        // SAFETY: as above.
        assert!(unsafe { segment.bytes_from(segment.start) }.iter().any(|byte| *byte != 0));

        let header = |p_type, p_flags, p_vaddr, p_filesz| libc::Elf64_Phdr {
            p_type,
            p_flags,
            p_offset: p_vaddr,
            p_vaddr,
            p_paddr: 0,
            p_filesz,
            p_memsz: p_filesz + 50,
            p_align: 1,
        };
        let headers = [
            header(libc::PT_LOAD, libc::PF_R, 0, 100),
            header(libc::PT_LOAD, libc::PF_R | libc::PF_X, 1_000, 100),
            header(libc::PT_LOAD, libc::PF_R | libc::PF_W, 2_000, 100),
            header(libc::PT_DYNAMIC, libc::PF_R, 3_000, 100),
        ];
        let found =
            |address| constant_segment(&headers, 10_000, address).map(|found| (found.start, found.end));
        assert_eq!([found(10_000), found(10_099)], [Some((10_000, 10_100)); 2]);
        assert_eq!(found(11_050), Some((11_000, 11_100)));
        assert_eq!([found(10_100), found(12_050), found(13_050), found(50)], [None; 4]);
    }

    #[test]
    fn a_listed_module_is_compared_with_what_is_mapped_now() {
        let listed = list(|_, _| true).unwrap();
        let here = find_in(listed, list_one as *const () as usize).unwrap().module;
        if !stack_bounds::copy(here.start, &mut [0; 1024]) {
            return;
        }
        assert!(is_still_there(here));
        let libc = find_in(listed, libc::dl_iterate_phdr as *const () as usize).unwrap().module;
        assert!(is_still_there(libc));
        // Another module at its place, one of another size, one with its rules elsewhere, none, and no ELF file.
        let elsewhere = libc.start.wrapping_sub(here.start);
        let others = [
            Module {
                start: libc.start,
                end: here.end + elsewhere,
                unwind_header: here.unwind_header + elsewhere,
            },
            Module { end: here.end - 8, ..here },
            Module { unwind_header: here.unwind_header + 4, ..here },
            Module { start: 16, ..here },
            Module { start: here.start + 0x1000, ..here },
        ];
        for other in others {
            assert!(!is_still_there(other), "{other:x?} of {here:x?}");
        }
        let head = [0xff; 1024];
        assert_eq!(described(&head, here.start), None);
        let mut head = [0xff; 1024];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        head[54..56].copy_from_slice(&56u16.to_ne_bytes());
        assert_eq!(described(&head, here.start), None, "headers far outside");
    }
}
