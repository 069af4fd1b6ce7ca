//! Copies of stacks' addresses, for readers: the tables of the write side may free theirs after a reading.

use crate::record::stack_id::packed::{self, Unpacked};

/// Packed addresses of many stacks, each found by the place that [`Addresses::push`] has returned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// Packed addresses: of each stack, the number of its bytes and then the bytes.
    bytes: Vec<u8>,
}

/// Place of a stack in the [`Addresses`] that it was pushed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressesAt(usize);

/// Bytes of the number before a stack.
const HEAD: usize = size_of::<u16>();

impl Addresses {
    /// Sets memory aside for so many stacks, whose packed addresses have this many bytes on average.
    pub(crate) fn with_room_for(stacks: usize, average: usize) -> Addresses {
        Addresses { bytes: Vec::with_capacity(stacks * (HEAD + average)) }
    }

    /// Sets memory aside as [`Addresses::with_room_for`] does.
    pub(crate) fn reserve(&mut self, stacks: usize, average: usize) {
        self.bytes.reserve(stacks * (HEAD + average));
    }

    /// Appends a stack by its packed addresses.
    pub(crate) fn push(&mut self, packed: &[u8]) -> AddressesAt {
        let at = AddressesAt(self.bytes.len());
        debug_assert!(packed.len() <= u16::MAX.into(), "{} bytes", packed.len());
        self.bytes.extend_from_slice(&(packed.len() as u16).to_ne_bytes());
        self.bytes.extend_from_slice(packed);
        at
    }

    /// Appends as many of a stack's addresses, most recent first, as fit into the memory that was set aside. Returns whether
    /// these are all.
    pub(crate) fn push_within(&mut self, packed: &[u8]) -> (AddressesAt, bool) {
        let room = self.bytes.capacity() - self.bytes.len();
        let Some(room) = room.checked_sub(HEAD) else { return (AddressesAt(usize::MAX), packed.is_empty()) };
        let fitting = packed::cut(packed, room);
        (self.push(fitting), fitting.len() == packed.len())
    }

    /// Appends a stack.
    #[cfg(test)]
    pub(crate) fn push_stack(&mut self, addresses: &[usize]) -> AddressesAt {
        let mut packed = vec![0; packed::len(addresses)];
        packed::pack(addresses, &mut packed);
        self.push(&packed)
    }

    /// Returns the addresses of a stack, most recent first; none for `[unrecorded]`.
    pub(crate) fn of(&self, AddressesAt(at): AddressesAt) -> Unpacked<'_> {
        let packed = self.bytes.get(at..).and_then(|bytes| {
            let (len, packed) = bytes.split_first_chunk::<HEAD>()?;
            packed.get(..u16::from_ne_bytes(*len).into())
        });
        Unpacked::new(packed.unwrap_or_default())
    }

    /// Copies the addresses of a stack.
    pub(crate) fn to_vec(&self, at: AddressesAt) -> Vec<usize> {
        self.of(at).to_vec()
    }

    /// Forgets all stacks, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Returns the bytes that are set aside.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stack_is_found_at_its_place() {
        let mut all = Addresses::default();
        let stacks: [&[usize]; 4] = [&[0x1000, 0x2000], &[], &[usize::MAX], &[7; 96]];
        let places = stacks.map(|stack| all.push_stack(stack));
        for (stack, at) in stacks.into_iter().zip(places) {
            assert_eq!(all.to_vec(at), stack);
        }
        assert_eq!(all.to_vec(AddressesAt(usize::MAX)), [0; 0]);
    }

    #[test]
    fn a_stack_is_cut_where_there_is_no_room_for_all_of_it() {
        let stack = [0x5555_0000_0000, 0x5555_0100_0000, 0x5555_0200_0000];
        let mut bytes = vec![0; packed::len(&stack)];
        packed::pack(&stack, &mut bytes);
        let mut all = Addresses::with_room_for(1, bytes.len() * 2 - 1);
        let room = all.bytes();
        let (first, second, third) =
            (all.push_within(&bytes), all.push_within(&bytes), all.push_within(&bytes));
        assert!(first.1 && !third.1 && all.bytes() == room);
        assert_eq!(all.to_vec(first.0), stack);
        let kept = all.to_vec(second.0);
        assert!(stack.starts_with(&kept) && (kept.len() < 3) != second.1, "{kept:x?}");
    }
}
