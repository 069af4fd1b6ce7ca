//! Hints to the compiler.

/// Moves the code that follows a true condition out of the way of the common case.
#[inline(always)]
pub(crate) fn unlikely(condition: bool) -> bool {
    #[cold]
    #[inline(always)]
    fn cold() {}
    if condition {
        cold();
    }
    condition
}

/// Returns a pointer that the compiler does not know to be the same.
#[inline(always)]
pub(crate) fn opaque<T>(pointer: *mut T) -> *mut T {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let same;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!(
                "/* {same} */",
                same = inlateout(reg) pointer => same,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        same
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    pointer
}
