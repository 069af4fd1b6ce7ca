//! Fingerprint of a stack: 64-bit sum of its words, each times a factor of its position.
//!
//! Pure arithmetic; any thread. Unlike in a chained hash, no word waits for another: where a program does little but
//! allocate, the latency from the first word to the sum is the cost.

/// Number of words in a group. The last group is padded: the processor predicts the end of a loop over groups, most
/// stacks having one to four.
pub(crate) const GROUP: usize = 8;

/// Largest number of words in a sum.
pub(crate) const MOST: usize = 104;

/// Random factor for each position. Odd, so that a difference in one word always shows; differences in several cancel
/// with probability 2^-60.
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

/// Computes Σ word × factor, modulo 2^64, over the words at `places`. Their number is a multiple of [`GROUP`] and at
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

/// Fingerprint of a stack: shared by all threads (`sum`), and within one thread (`check`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fingerprint {
    /// Sum over the addresses: two stacks share it with probability 2^-60.
    pub sum: u64,
    /// Sum over the addresses and the frame layout, see `frame_layout`; over the addresses alone where the layout is
    /// unknown. Compared within one thread. Never 0.
    pub check: u64,
}

impl Fingerprint {
    /// Makes the fingerprint of a stack whose frame layout is unknown.
    pub(crate) fn of_addresses(sum: u64) -> Fingerprint {
        Fingerprint { sum, check: sum | 1 }
    }

    /// Returns the fingerprint of this stack with blocks sampled every `interval` bytes.
    pub(crate) fn sampled_every(self, interval: u32) -> Fingerprint {
        let term = u64::from(interval).wrapping_mul(SAMPLED);
        // Even, so that a check stays odd.
        Fingerprint { sum: self.sum.wrapping_add(term), check: self.check.wrapping_add(term << 1) }
    }

    /// Hashes the sum; the hash is the same in all threads.
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

    /// Checks the linearity by which `Layout::check` makes frame pointers relative to the stack pointer.
    #[test]
    fn sums_are_linear() {
        let words: Vec<usize> = (0..24).map(|i| 0x5555_0000_1234 + i * i * 977).collect();
        let others: Vec<usize> = (0..24).map(|i| i * 0x7fff_1234_5671).collect();
        let both: Vec<usize> = words.iter().zip(&others).map(|(a, b)| a.wrapping_add(*b)).collect();
        assert_eq!(of(&words).wrapping_add(of(&others)), of(&both));
    }

    /// Tries addresses of neighbouring calls in any two of 24 frames, and frames that change places.
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
