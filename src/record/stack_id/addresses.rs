//! Copies of stacks' addresses, for readers: the tables of the write side may free theirs after a reading.

/// Return addresses of many stacks, each found by the place that [`Addresses::push`] has returned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// By stack: the number of its addresses, and the addresses, most recent first.
    words: Vec<usize>,
}

/// Place of a stack in the [`Addresses`] that it was pushed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressesAt(usize);

impl Addresses {
    /// Sets memory aside for so many words.
    pub(crate) fn with_capacity(words: usize) -> Addresses {
        Addresses { words: Vec::with_capacity(words) }
    }

    /// Appends a stack.
    pub(crate) fn push(&mut self, addresses: &[usize]) -> AddressesAt {
        let at = AddressesAt(self.words.len());
        self.words.push(addresses.len());
        self.words.extend_from_slice(addresses);
        at
    }

    /// Appends as many of a stack's addresses, most recent first, as fit into the memory that was set aside. Returns whether
    /// that are all.
    pub(crate) fn push_within(&mut self, addresses: &[usize]) -> (AddressesAt, bool) {
        let room = self.words.capacity() - self.words.len();
        let Some(room) = room.checked_sub(1) else { return (AddressesAt(usize::MAX), addresses.is_empty()) };
        let fitting = &addresses[..addresses.len().min(room)];
        (self.push(fitting), fitting.len() == addresses.len())
    }

    /// Returns the addresses of a stack, most recent first; none for `[unrecorded]`.
    pub(crate) fn of(&self, AddressesAt(at): AddressesAt) -> &[usize] {
        let stack = self.words.get(at..).and_then(|words| {
            let (len, addresses) = words.split_first()?;
            addresses.get(..*len)
        });
        stack.unwrap_or_default()
    }

    /// Forgets all stacks, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.words.clear();
    }

    /// Returns the bytes that are set aside.
    pub(crate) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<usize>()
    }
}
