//! Words of a stack → the 64 bits it is recognised by.
//!
//! Pure arithmetic; any thread. No word waits for another, as in a chained hash: it is the time from the first
//! word to the sum that counts where a program does little but allocate.

/// Words are taken in groups of this many, the last group filled up: a loop whose end the processor predicts,
/// most stacks being of one to four groups.
pub(crate) const GROUP: usize = 8;

/// The most words there can be.
pub(crate) const MOST: usize = 104;

/// One number of no pattern for each place. Odd, so that a difference in one word always shows; differences in
/// several cancel with probability 2^-60.
static FACTORS: [u64; MOST] = factors();

const fn factors() -> [u64; MOST] {
    let mut factors = [0; MOST];
    let mut state = 0x6865_6170_6761_7567_u64;
    let mut i = 0;
    while i < MOST {
        // splitmix64, Steele, Lea, Flood 2014.
        state = state.wrapping_add(MIX);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        factors[i] = (z ^ (z >> 31)) | 1;
        i += 1;
    }
    factors
}

const SAMPLED: u64 = 0xd6e8_feb8_6659_fd93;
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Σ word × factor, modulo 2^64. The words are those at `places`, whose number is a multiple of [`GROUP`] and at
/// most [`MOST`].
#[inline(always)]
pub(crate) fn sum<P: Copy>(places: &[P], word: impl Fn(P) -> usize) -> u64 {
    let mut sum = 0u64;
    for (places, factors) in places.chunks_exact(GROUP).zip(FACTORS.chunks_exact(GROUP)) {
        for i in 0..GROUP {
            sum = sum.wrapping_add((word(places[i]) as u64).wrapping_mul(factors[i]));
        }
    }
    sum
}

/// What a stack is recognised by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fingerprint {
    /// Of the addresses: two stacks share it with probability 2^-60.
    pub sum: u64,
    /// Within a thread: of the addresses and of where they stand on the stack, see `layouts`; of the
    /// addresses alone where nobody looked. Never 0.
    pub check: u64,
}

impl Fingerprint {
    /// Of a stack whose places nobody looked at.
    pub(crate) fn of_addresses(sum: u64) -> Fingerprint {
        Fingerprint { sum, check: sum | 1 }
    }

    /// The same stack, as one whose blocks are sampled every `interval` bytes.
    pub(crate) fn sampled_every(self, interval: u32) -> Fingerprint {
        let term = u64::from(interval).wrapping_mul(SAMPLED);
        // Even, so that a check stays odd.
        Fingerprint { sum: self.sum.wrapping_add(term), check: self.check.wrapping_add(term << 1) }
    }

    /// The hash of the stack, the same in all threads.
    #[inline(always)]
    pub(crate) fn hash(self) -> u64 {
        let product = u128::from(self.sum) * u128::from(MIX);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn of(words: &[usize]) -> u64 {
        sum(words, |word| word)
    }

    #[test]
    fn every_place_counts_otherwise() {
        let factors: HashSet<u64> = (0..96)
            .map(|place| {
                let mut words = [0; 96];
                words[place] = 1;
                of(&words)
            })
            .collect();
        assert_eq!(factors.len(), 96);
        assert!(factors.iter().all(|factor| factor % 2 == 1), "a difference in one word may not show");
    }

    /// What recognition takes apart again: what frame pointers count relative to the stack pointer.
    #[test]
    fn sums_are_linear() {
        let words: Vec<usize> = (0..24).map(|i| 0x5555_0000_1234 + i * i * 977).collect();
        let others: Vec<usize> = (0..24).map(|i| i * 0x7fff_1234_5671).collect();
        let both: Vec<usize> = words.iter().zip(&others).map(|(a, b)| a.wrapping_add(*b)).collect();
        assert_eq!(of(&words).wrapping_add(of(&others)), of(&both));
    }

    /// Addresses of calls close to each other, in any two of 24 frames, and frames that change places.
    #[test]
    fn neighbouring_calls_do_not_meet() {
        let base: Vec<usize> = (0..24).map(|frame| 0x5555_5560_0000 + frame * 0x140).collect();
        let mut seen = HashSet::from([of(&base)]);
        let mut tried = 1;
        for (first, second) in (0..24).flat_map(|first| (0..first).map(move |second| (first, second))) {
            for step in 1..40 {
                let mut words = base.clone();
                words[first] += step;
                words[second] -= step;
                seen.insert(of(&words));
                words[first] += step * 3;
                seen.insert(of(&words));
                tried += 2;
            }
            let mut words = base.clone();
            words.swap(first, second);
            seen.insert(of(&words));
            tried += 1;
        }
        assert_eq!(seen.len(), tried);
    }
}
