//! Branch-likelihood hints.

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
