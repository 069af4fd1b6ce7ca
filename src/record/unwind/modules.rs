//! Address → the module it lies in and where that module's unwind section is.
//!
//! `_dl_find_object` (glibc 2.35) answers without a lock and without memory, in the allocator as
//! anywhere. Elsewhere the modules are listed before `main` and again by the read side when the
//! loader's counts change; an address of a newer module is unknown until then.
//!
//! What was loaded before `main` stays. What came later may go at any time, with other code in its
//! place a moment after, and nothing tells of it that can be asked without a lock.

use crate::base::atomics::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::record::epoch;
use crate::record::memory;
use std::ffi::{c_int, c_void};

/// A loaded module.
#[derive(Clone, Copy)]
pub(super) struct Module {
    /// Addresses from `start` up to, not including, `end` belong to it.
    pub start: usize,
    pub end: usize,
    /// Its `.eh_frame_hdr`.
    pub unwind_header: usize,
}

/// `struct dl_find_object` of glibc, `dlfcn.h`.
#[repr(C)]
struct Found {
    flags: u64,
    map_start: *mut c_void,
    map_end: *mut c_void,
    link_map: *mut c_void,
    eh_frame: *mut c_void,
    reserved: [u64; 7],
}

type FindObject = unsafe extern "C" fn(*mut c_void, *mut Found) -> c_int;

/// `_dl_find_object`, 0 where there is none. Relaxed: written before `main`, and a function's
/// address carries no data.
static FIND_OBJECT: AtomicUsize = AtomicUsize::new(0);

/// The modules as they were when last listed: before `main`, and where there is no
/// `_dl_find_object` whenever they have changed.
struct List {
    len: usize,
    modules: *mut Module,
}
static LIST: AtomicPtr<List> = AtomicPtr::new(std::ptr::null_mut());

/// Before `main`: finds out how to ask.
pub(super) fn prepare() {
    // SAFETY: a NUL-terminated name, the default scope.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) };
    FIND_OBJECT.store(symbol.addr(), Ordering::Relaxed);
    epoch();
    list();
}

/// The module an address lies in.
pub(super) fn find(address: usize) -> Option<Module> {
    let function = FIND_OBJECT.load(Ordering::Relaxed);
    if function == 0 {
        return find_listed(address);
    }
    let mut found = Found {
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

/// Whether what is known of an address holds for good, or until [`epoch`] finds a change: not where
/// no module is (one may come), nor in a module that came after the start (it may go).
pub(super) fn stays(address: usize) -> bool {
    FIND_OBJECT.load(Ordering::Relaxed) == 0 || find_listed(address).is_some()
}

fn find_listed(address: usize) -> Option<Module> {
    // Acquire: pairs with the Release of `list`.
    let list = LIST.load(Ordering::Acquire);
    // SAFETY: null, or a list that is never freed or changed once published.
    let list = unsafe { list.as_ref() }?;
    (0..list.len)
        // SAFETY: below `len`.
        .map(|index| unsafe { *list.modules.add(index) })
        .find(|module| (module.start..module.end).contains(&address))
}

/// The loader's counts as last seen, combined.
static SEEN: AtomicU64 = AtomicU64::new(0);
static SEEN_UNLOADED: AtomicU64 = AtomicU64::new(0);

/// A number that changes when modules are loaded or unloaded; rules are forgotten after the latter.
pub(super) fn epoch() -> u64 {
    let mut seen = Counts { loaded: 0, unloaded: 0 };
    // SAFETY: the callback fits and its data outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(read_counts), (&raw mut seen).cast()) };
    let now = (seen.loaded << 32) ^ seen.unloaded;
    if SEEN.swap(now, Ordering::Relaxed) != now && FIND_OBJECT.load(Ordering::Relaxed) == 0 {
        list();
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

unsafe extern "C" fn read_counts(info: *mut libc::dl_phdr_info, _size: usize, seen: *mut c_void) -> c_int {
    // SAFETY: the loader's record, and the `Counts` of `epoch`.
    unsafe {
        *seen.cast::<Counts>() = Counts { loaded: (*info).dlpi_adds, unloaded: (*info).dlpi_subs };
    }
    // The counts are the same in every record: one is enough.
    1
}

/// Lists the modules anew. The old list stays: a walk may be reading it.
fn list() {
    let mut count = 0usize;
    // SAFETY: the callback fits and its data outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(count_one), (&raw mut count).cast()) };
    // Some to spare, for one that is loaded between the two rounds; what does not fit is left out.
    let capacity = count + 8;
    let (modules, list) = (memory::zeroed_array::<Module>(capacity), memory::zeroed::<List>());
    if modules.is_null() || list.is_null() {
        return;
    }
    let mut filling = Filling { list: List { len: 0, modules }, capacity };
    // SAFETY: as above.
    unsafe { libc::dl_iterate_phdr(Some(list_one), (&raw mut filling).cast()) };
    // SAFETY: fresh memory of the right size.
    unsafe { list.write(filling.list) };
    // Release: publishes what was written.
    LIST.store(list, Ordering::Release);
}

struct Filling {
    list: List,
    capacity: usize,
}

unsafe extern "C" fn count_one(_info: *mut libc::dl_phdr_info, _size: usize, count: *mut c_void) -> c_int {
    // SAFETY: the counter of `list`.
    unsafe { *count.cast::<usize>() += 1 };
    0
}

unsafe extern "C" fn list_one(info: *mut libc::dl_phdr_info, _size: usize, filling: *mut c_void) -> c_int {
    // SAFETY: the `Filling` of `list`, and the loader's record with its program headers.
    let (filling, headers, base) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (&mut *filling.cast::<Filling>(), headers, info.dlpi_addr as usize)
    };
    let mut module = Module { start: usize::MAX, end: 0, unwind_header: 0 };
    for header in headers {
        let start = base.wrapping_add(header.p_vaddr as usize);
        match header.p_type {
            libc::PT_LOAD => {
                module.start = module.start.min(start);
                module.end = module.end.max(start.wrapping_add(header.p_memsz as usize));
            }
            libc::PT_GNU_EH_FRAME => module.unwind_header = start,
            _ => {}
        }
    }
    if module.unwind_header != 0 && filling.list.len < filling.capacity {
        // SAFETY: below the capacity the array was made with.
        unsafe { filling.list.modules.add(filling.list.len).write(module) };
        filling.list.len += 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_same_modules() {
        prepare();
        list();
        for address in
            [find as fn(usize) -> Option<Module> as usize, libc::dl_iterate_phdr as *const () as usize]
        {
            let listed = find_listed(address).unwrap();
            let asked = find(address).unwrap();
            assert_eq!(listed.unwind_header, asked.unwind_header);
            assert!((listed.start..listed.end).contains(&address));
            assert!((asked.start..asked.end).contains(&address));
        }
        assert!(find(16).is_none() && find_listed(16).is_none());
        assert!(stays(find as fn(usize) -> Option<Module> as usize) && !stays(16));
    }
}
