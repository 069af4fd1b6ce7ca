//! Stand-in without a kernel to ask: the C library gives the bounds.

pub(super) fn thread_pointer() -> usize {
    0
}

pub(super) fn is_readable(_address: usize) -> bool {
    false
}

pub(super) fn copy(_address: usize, _to: &mut [u8]) -> bool {
    false
}

pub(super) fn works() -> bool {
    false
}
