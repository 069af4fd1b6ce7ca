//! Anonymous mappings of the system, for large tables and for the chunks of small ones.

/// Returns zeroed memory, or null.
pub(super) fn make(size: usize) -> *mut u8 {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh anonymous mapping; it touches no memory that exists.
    let pointer = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
    if pointer == libc::MAP_FAILED { std::ptr::null_mut() } else { pointer.cast() }
}

/// Unmaps memory.
///
/// # Safety
///
/// * `pointer` came from `make(size)`, and it is not read any more.
pub(super) unsafe fn end(pointer: *mut u8, size: usize) {
    debug_assert!(!pointer.is_null() && size != 0, "no mapping: {pointer:?}, {size} bytes");
    // SAFETY: the caller's duties. It fails only where a mapping in the middle of others cannot be cut out, and
    // then stays.
    unsafe { libc::munmap(pointer.cast(), size) };
}
