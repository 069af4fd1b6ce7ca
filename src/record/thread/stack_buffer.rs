//! Return addresses of one walk, with all that tells the stack from others.

use crate::record::epoch::MAX_ADDRESSES;
use crate::record::scope::id::ScopeId;

/// Return addresses of one walk.
pub(crate) struct StackBuffer {
    pub header: StackHeader,
    pub addresses: [usize; MAX_ADDRESSES],
}

impl StackBuffer {
    /// Returns the addresses that were found, most recent first.
    pub(crate) fn addresses(&self) -> &[usize] {
        debug_assert!(usize::from(self.header.len) <= MAX_ADDRESSES, "{} addresses", self.header.len);
        self.addresses.get(..self.header.len.into()).unwrap_or_default()
    }
}

/// Header of the addresses of a stack.
#[derive(Clone, Copy)]
pub(crate) struct StackHeader {
    pub hash: u64,
    /// Scopes that the thread was in.
    pub scope: ScopeId,
    /// Average bytes between samples when its blocks were sampled; 0 where all are recorded.
    pub interval: u32,
    pub len: u16,
    /// The walk ended at its limit or at an unknown address, not at the thread's first frame.
    pub truncated: bool,
}
