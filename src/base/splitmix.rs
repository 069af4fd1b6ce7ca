//! SplitMix64: a generator of pseudo-random numbers whose state is a counter (Steele, Lea, Flood 2014).
#![forbid(unsafe_code)]

/// Step of the counter.
pub(crate) const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the number of a value of the counter.
#[inline]
pub(crate) fn mix(counter: u64) -> u64 {
    let z = (counter ^ (counter >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of seed 1234567, as other implementations give them.
    #[test]
    fn the_sequence_is_that_of_the_paper() {
        let numbers = [1, 2, 3].map(|step| mix(INCREMENT.wrapping_mul(step).wrapping_add(1_234_567)));
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
