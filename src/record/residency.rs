//! Tells which pages of this process are in memory, and copies memory that may not be mapped.
//!
//! Part of the border, because it calls the system; the read side uses it. Nothing here touches the memory it is asked
//! about.

/// Pages asked for in one call: the kernel looks at as many of 4 KiB while it holds the lock of the address space.
#[cfg(target_os = "linux")]
const PAGES: usize = 4096;

/// Returns the bytes of the pages from `start` up to `end` that are in memory, both rounded down to pages; `None` where a
/// part of them is not mapped or the system does not tell.
#[cfg(target_os = "linux")]
pub(crate) fn resident_bytes(start: usize, end: usize) -> Option<u64> {
    let page = page_bytes();
    let mut at = start & !(page - 1);
    let end = end & !(page - 1);
    let mut is_resident = [0u8; PAGES];
    let mut pages = 0;
    while at < end {
        let count = ((end - at) / page).min(PAGES);
        // SAFETY: the array has a byte for each of the pages; those that are not mapped are an error.
        let failed = unsafe {
            libc::mincore(std::ptr::without_provenance_mut(at), count * page, is_resident.as_mut_ptr())
        } != 0;
        if failed {
            return None;
        }
        pages += is_resident[..count].iter().map(|page| u64::from(page & 1)).sum::<u64>();
        at += count * page;
    }
    Some(pages * page as u64)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn resident_bytes(_start: usize, _end: usize) -> Option<u64> {
    None
}

/// Returns the bytes of a page, as the system says.
pub(crate) fn page_bytes() -> usize {
    crate::record::tag::large::page_bytes()
}

/// Copies words from an address that may not be mapped; `None` where it is not.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn words<const N: usize>(address: usize) -> Option<[usize; N]> {
    let mut bytes = [[0u8; size_of::<usize>()]; N];
    crate::record::thread::stack_bounds::copy(address, bytes.as_flattened_mut())
        .then(|| bytes.map(usize::from_ne_bytes))
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub(crate) fn words<const N: usize>(_address: usize) -> Option<[usize; N]> {
    None
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_touched_are_in_memory_and_others_are_not() {
        let page = page_bytes();
        let length = (PAGES + 10) * page;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping, without huge pages, of which seven pages are written; its end is below.
        let start = unsafe {
            let start = libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            libc::madvise(start, length, libc::MADV_NOHUGEPAGE);
            for number in [0, 1, 2, 77, PAGES - 1, PAGES, PAGES + 9] {
                start.cast::<u8>().add(number * page).write(1);
            }
            start
        };
        assert_eq!(resident_bytes(start.addr(), start.addr() + length), Some(7 * page as u64));
        assert_eq!(resident_bytes(start.addr() + 3, start.addr() + page + 3), Some(page as u64));
        // SAFETY: the mapping above.
        unsafe { libc::munmap(start, length) };
        assert_eq!(resident_bytes(start.addr(), start.addr() + length), None);
    }

    #[test]
    fn words_are_copied_where_there_are_some() {
        let known = [3usize, 5];
        if let Some(copied) = words::<2>((&raw const known).addr()) {
            assert_eq!(copied, known);
        }
        assert_eq!(words::<1>(64), None);
    }
}
