//! What is known of a program but not to its compiler.

/// Has the compiler put what follows where it is true out of the way: a jump there and back again would cost the
/// common case more than what is done.
#[inline(always)]
pub(crate) fn is_seldom(condition: bool) -> bool {
    #[cold]
    #[inline(always)]
    fn seldom() {}
    if condition {
        seldom();
    }
    condition
}
