//! Return addresses of a stack, packed: each as its distance from the one before, in as many bytes as it takes.
//!
//! Most calls of a stack lie in one module, some megabytes apart at most, so an address takes two to four bytes instead of
//! eight. A distance is signed, with its sign in the lowest bit, and written by seven bits, the lower ones first; the
//! highest bit of a byte says that more follow. The first distance is from 0. Any address fits, wherever it lies.

/// Most bytes of one address.
pub(crate) const LONGEST: usize = (usize::BITS as usize).div_ceil(7);

/// Returns the distance of an address from the one before it, with the sign in the lowest bit.
#[inline(always)]
fn distance(last: usize, address: usize) -> usize {
    let distance = address.wrapping_sub(last);
    distance << 1 ^ (distance >> (usize::BITS - 1)).wrapping_neg()
}

/// Returns the number of bytes that a stack takes.
pub(crate) fn len(addresses: &[usize]) -> usize {
    let (mut len, mut last) = (0, 0);
    for &address in addresses {
        let bits = usize::BITS - (distance(last, address) | 1).leading_zeros();
        len += bits.div_ceil(7) as usize;
        last = address;
    }
    len
}

/// Packs a stack into as many bytes as [`len`] returns.
pub(crate) fn pack(addresses: &[usize], into: &mut [u8]) {
    debug_assert_eq!(into.len(), len(addresses));
    let (mut places, mut last) = (into.iter_mut(), 0);
    for &address in addresses {
        let mut bits = distance(last, address);
        last = address;
        while bits > 0x7f {
            let Some(place) = places.next() else { return };
            *place = bits as u8 | 0x80;
            bits >>= 7;
        }
        let Some(place) = places.next() else { return };
        *place = bits as u8;
    }
}

/// Returns as many whole addresses, from the first on, as fit into so many bytes.
pub(crate) fn cut(packed: &[u8], room: usize) -> &[u8] {
    let fitting = packed.get(..room).unwrap_or(packed);
    let whole = fitting.iter().rposition(|byte| byte & 0x80 == 0).map_or(0, |last| last + 1);
    &fitting[..whole]
}

/// Return addresses of a packed stack, most recent first.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked<'a> {
    bytes: &'a [u8],
    last: usize,
}

impl<'a> Unpacked<'a> {
    /// Unpacks these bytes. Bytes that [`pack`] did not make are some addresses, or none.
    pub(crate) fn new(bytes: &'a [u8]) -> Unpacked<'a> {
        Unpacked { bytes, last: 0 }
    }

    /// Copies the addresses.
    pub(crate) fn to_vec(&self) -> Vec<usize> {
        let mut addresses = Vec::with_capacity(self.bytes.iter().filter(|byte| **byte & 0x80 == 0).count());
        addresses.extend(self.clone());
        addresses
    }

    /// Returns the packed bytes of those that have not been taken; of all, before the first.
    pub(crate) fn packed(&self) -> &'a [u8] {
        self.bytes
    }
}

impl Iterator for Unpacked<'_> {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let mut bits = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            bits |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        self.last = self.last.wrapping_add(bits >> 1 ^ (bits & 1).wrapping_neg());
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random_input::{Random, inputs};

    fn packed(addresses: &[usize]) -> Vec<u8> {
        let mut packed = vec![0; len(addresses)];
        pack(addresses, &mut packed);
        assert!(packed.len() <= addresses.len() * LONGEST);
        packed
    }

    #[test]
    fn any_stack_comes_back_as_it_was() {
        let mut random = Random::new();
        for _ in 0..inputs(20_000) {
            let addresses: Vec<usize> = (0..random.below(97)).map(|_| random.edge() as usize).collect();
            let packed = packed(&addresses);
            assert_eq!(Unpacked::new(&packed).collect::<Vec<_>>(), addresses);
            let cut = Unpacked::new(cut(&packed, random.below(packed.len() + 9)));
            let whole = cut.clone().count();
            assert!(cut.eq(addresses.iter().copied().take(whole)));
        }
        for addresses in [&[][..], &[0], &[usize::MAX], &[0, usize::MAX, 1 << 63, 0], &[usize::MAX; 3]] {
            assert_eq!(Unpacked::new(&packed(addresses)).collect::<Vec<_>>(), addresses);
        }
    }

    #[test]
    fn bytes_that_are_no_stack_end() {
        let mut random = Random::new();
        for _ in 0..inputs(20_000) {
            let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
            assert!(Unpacked::new(&bytes).count() <= bytes.len());
        }
        assert_eq!(Unpacked::new(&[0xff; 9]).next(), None);
    }

    #[test]
    fn two_stacks_have_different_bytes() {
        let mut random = Random::new();
        for _ in 0..inputs(20_000) {
            let mut stack = || -> Vec<usize> { (0..random.below(4)).map(|_| random.below(300)).collect() };
            let (one, other) = (stack(), stack());
            assert_eq!(packed(&one) == packed(&other), one == other, "{one:?} {other:?}");
        }
    }

    /// In a program of 60 MB, with one library elsewhere.
    #[test]
    fn an_address_takes_four_bytes_or_less() {
        let mut random = Random::new();
        for _ in 0..inputs(1_000) {
            let mut stack: Vec<usize> = (0..40).map(|_| 0x5555_5560_0000 + random.below(60 << 20)).collect();
            stack[39] = 0x7fff_f7a0_0000 + random.below(1 << 20);
            assert!(packed(&stack).len() <= 7 + 38 * 4 + 7, "{stack:x?}");
        }
    }
}
