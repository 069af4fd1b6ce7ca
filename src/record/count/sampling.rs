//! Sampling: the gaps between samples, and the weight of a sampled block.
//!
//! Sample points lie on the bytes that a thread allocates as a Poisson process does: the gaps between
//! them are exponential, [`SamplingConfig::interval`] bytes on average. A block is sampled when at least one point
//! lies in it, so one of `s` bytes with probability `p = 1 - exp(-s / interval)`, whatever came before.
//! It then counts as `1 / p` blocks and `s / p` bytes. Summed over the blocks that are live, each sum is
//! right on average (Horvitz and Thompson 1952), and `s² (1 - p) / p²`, summed over the sampled ones,
//! is on average the variance of the bytes.
//!
//! The weight belongs to each block and is a function of size and interval alone, so that a free takes
//! back, to the last bit, what the allocation gave. Weighting the sums instead would take a stack of
//! many small and few large blocks for one of a few of average size.
//!
//! Runs inside the allocator: nothing here allocates, locks or panics. Logarithm and exponential are
//! those of the C library, once a sample.

use crate::base::atomics::{AtomicU64, Ordering};
use crate::base::splitmix::{INCREMENT, mix};
use crate::record::tag::SMALL;
use std::cell::Cell;

/// The longest interval, bytes.
pub(crate) const MAX_INTERVAL: usize = 1 << 30;

/// Selects the blocks that are sampled, and how often. One word, so that no thread sees half of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct SamplingConfig(u64);

impl SamplingConfig {
    /// Every block is recorded.
    pub(crate) const EXACT: SamplingConfig = SamplingConfig(0);

    /// Samples every `interval` bytes on average, and records blocks of `exact_from` bytes or more
    /// without exception; where that is 0, from the interval on. With 0 and 1 bytes between samples
    /// every block is one.
    pub(crate) const fn new(interval: u32, exact_from: u32) -> SamplingConfig {
        if interval <= 1 {
            return SamplingConfig::EXACT;
        }
        let exact_from = if exact_from == 0 { interval } else { exact_from };
        SamplingConfig((interval as u64) << 32 | (exact_from - 1) as u64)
    }

    /// Returns the configuration as one word, see [`SamplingConfig::from_word`].
    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    /// Returns the configuration that [`SamplingConfig::word`] gave as a word.
    pub(crate) const fn from_word(word: u64) -> SamplingConfig {
        SamplingConfig(word)
    }

    /// Returns the average bytes between samples; 0 where every block is recorded.
    pub(crate) const fn interval(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Returns whether blocks of this size are sampled: of at least a byte, and below the threshold. One comparison,
    /// always false in exact mode. The sizes it is true for are below 2^30.
    #[inline(always)]
    pub(crate) fn is_sampled_size(self, size: usize) -> bool {
        (size as u64).wrapping_sub(1) < u64::from(self.largest_sampled())
    }

    /// Returns the largest size that is sampled; 0 in exact mode.
    fn largest_sampled(self) -> u32 {
        self.0 as u32
    }
}

/// Bits behind the point in [`Weight::bytes`]: sums reach 2^56 bytes.
pub(crate) const BYTES_FRACTION: u32 = 8;
/// Bits behind the point in [`Weight::blocks`] and [`Weight::variance`]: sums reach 2^48 blocks.
pub(crate) const FRACTION: u32 = 16;

/// Weight of a sampled block, in fixed-point numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// `s / p`
    pub bytes: u64,
    /// `1 / p`
    pub blocks: u64,
    /// `s² (1 - p) / p²`, in squares of the interval: between 0.92 and 1 for blocks below the interval.
    pub variance: u64,
}

/// Computes the weight of a block of `size` bytes, at least 1, sampled every `interval` bytes.
pub(crate) fn weight(size: u64, interval: u32) -> Weight {
    debug_assert!(size >= 1 && interval > 1, "a block of {size} bytes, sampled every {interval}");
    let interval = f64::from(interval.max(1));
    let share = size as f64 / interval;
    let probability = -(-share).exp_m1();
    let fixed = |value: f64, bits: u32| (value * f64::from(1u32 << bits)).round() as u64;
    Weight {
        bytes: fixed(size as f64 / probability, BYTES_FRACTION),
        blocks: fixed(1.0 / probability, FRACTION),
        variance: fixed(share * share * (1.0 - probability) / (probability * probability), FRACTION),
    }
}

/// Returns the whole bytes of a sum of [`Weight::bytes`].
pub(crate) fn whole_bytes(sum: u64) -> u64 {
    round(sum, BYTES_FRACTION)
}

/// Returns the whole blocks of a sum of [`Weight::blocks`].
pub(crate) fn whole_blocks(sum: u64) -> u64 {
    round(sum, FRACTION)
}

/// Converts a sum of [`Weight::variance`] to bytes squared.
pub(crate) fn square_bytes(sum: u64, interval: u32) -> f64 {
    let interval = f64::from(interval);
    sum as f64 / f64::from(1u32 << FRACTION) * interval * interval
}

/// Rounds a fixed-point number with so many bits behind the point.
fn round(sum: u64, bits: u32) -> u64 {
    (sum >> bits) + (sum >> (bits - 1) & 1)
}

/// Position of one thread between two sample points. All zero bytes are a fresh one.
pub(crate) struct Sampler {
    /// Bytes to the next sample point, from the end of the budget that was granted last.
    bytes_until_sample: Cell<i64>,
    /// Configuration that the gap was drawn for.
    config: Cell<SamplingConfig>,
    /// State of the generator, 0 before it is seeded.
    random: Cell<u64>,
}

/// Bytes of blocks that are not sampled, allocated or freed, between two publications to the peak. Less than 64 KiB:
/// the rest is for the blocks that are recorded meanwhile.
pub(crate) const PEAK_STEP: u32 = 60 << 10;

impl Sampler {
    /// Decides whether to sample a block that does not fit in the budget, of which `left` bytes remain.
    ///
    /// If so, the next gap begins behind the block, and it is drawn before anything else can go wrong: were
    /// a sample that cannot be taken kept for the next block, that block would count for too much.
    #[cold]
    pub(crate) fn decide(&self, config: SamplingConfig, size: usize, left: i64) -> bool {
        let left = if self.config.replace(config) == config {
            self.bytes_until_sample.get() + left
        } else {
            // A gap has no memory, so one drawn for another interval may be dropped anywhere.
            self.draw(config)
        };
        debug_assert!(config.is_sampled_size(size), "blocks of {size} bytes are not sampled");
        let left = left - size as i64;
        self.bytes_until_sample.set(if left < 0 { self.draw(config) } else { left });
        left < 0
    }

    /// Takes the next budget off the gap: blocks below [`SMALL`] bytes are not looked at as long as they fit in what
    /// remains of so many bytes.
    pub(crate) fn next_budget(&self) -> u32 {
        let until_sample = self.bytes_until_sample.get();
        // Where some of those are recorded without exception, they must not fit.
        let most = match self.config.get().largest_sampled() {
            largest if (largest as usize) < SMALL - 1 => largest,
            _ => PEAK_STEP,
        };
        let budget = until_sample.min(i64::from(most));
        debug_assert!((0..=i64::from(PEAK_STEP)).contains(&budget), "a budget of {budget} bytes");
        self.bytes_until_sample.set(until_sample - budget);
        budget as u32
    }

    /// Draws a gap: the whole bytes of an exponential one, so that it is less than `s` with
    /// probability `1 - exp(-s / interval)` exactly.
    fn draw(&self, config: SamplingConfig) -> i64 {
        // From 2^-53 to 1.
        let uniform = ((self.next() >> 11) + 1) as f64 * (1.0 / (1u64 << 53) as f64);
        (-uniform.ln() * f64::from(config.interval())) as i64
    }

    /// Returns the next pseudo-random number, and seeds the generator before the first.
    fn next(&self) -> u64 {
        let before = match self.random.get() {
            // Relaxed: each thread gets a number of its own, nothing else.
            0 => mix(SEED.fetch_add(INCREMENT, Ordering::Relaxed)),
            before => before,
        };
        let state = before.wrapping_add(INCREMENT);
        self.random.set(state);
        mix(state)
    }

    /// Seeds the generator: the same seed gives the same sequence.
    pub(crate) fn seed(&self, seed: u64) {
        self.random.set(mix(seed) | 1);
        // Another one than any that samples, so the next decision draws a gap.
        self.config.set(SamplingConfig::EXACT);
    }
}

static SEED: AtomicU64 = AtomicU64::new(0x6865_6170_6761_7567);

/// Reseeds the generators of threads to come, so that no two processes sample alike.
pub(crate) fn reseed(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB_512: u32 = 512 << 10;

    fn sampler(seed: u64) -> Sampler {
        let sampler = Sampler {
            bytes_until_sample: Cell::new(0),
            config: Cell::new(SamplingConfig::EXACT),
            random: Cell::new(0),
        };
        sampler.seed(seed);
        sampler
    }

    /// Counts the sampled blocks among `count` of that size.
    fn sampled(sampler: &Sampler, config: SamplingConfig, size: usize, count: u64) -> u64 {
        let mut left = 0;
        let mut is_sampled = || {
            if (size as i64) <= left {
                left -= size as i64;
                return false;
            }
            let is_sampled = sampler.decide(config, size, left);
            left = sampler.next_budget().into();
            is_sampled
        };
        (0..count).filter(|_| is_sampled()).count() as u64
    }

    /// Estimates blocks and bytes from `blocks` sampled blocks of `bytes` bytes together.
    fn scaled(blocks: u64, bytes: u64, interval: u32) -> (u64, u64) {
        if blocks == 0 {
            return (0, 0);
        }
        let one = weight(bytes / blocks, interval);
        // Whole numbers by cutting off, as the goldens were made.
        ((blocks * one.blocks) >> FRACTION, (blocks * one.bytes) >> BYTES_FRACTION)
    }

    #[test]
    fn case_46_the_goldens_of_go() {
        assert_eq!(scaled(4, 4_096, KIB_512), (2_050, 2_099_200));
        assert_eq!(scaled(3, 3_072, KIB_512), (1_537, 1_574_400));
        assert_eq!(scaled(1, 524_288, KIB_512), (1, 829_411));
        assert_eq!(scaled(0, 0, KIB_512), (0, 0));
        for interval in [0, 1] {
            assert_eq!(SamplingConfig::new(interval, 0), SamplingConfig::EXACT);
            assert!((0..5_000).all(|size| !SamplingConfig::new(interval, 0).is_sampled_size(size)));
        }
    }

    /// Small blocks are only compared with the budget, so none of the size from which all are recorded may fit.
    #[test]
    fn a_budget_is_smaller_than_a_block_that_is_always_recorded() {
        for (exact_from, most) in [(2, 1), (100, 99), (SMALL as u32 - 1, SMALL as u32 - 2)] {
            let (sampler, config) = (sampler(7), SamplingConfig::new(KIB_512, exact_from));
            for _ in 0..10_000 {
                sampler.decide(config, 1, 0);
                assert!(sampler.next_budget() <= most, "{exact_from}");
            }
        }
        // Where all small blocks are sampled, it is as large as it can be.
        let (sampler, config) = (sampler(7), SamplingConfig::new(KIB_512, SMALL as u32));
        let longest = (0..100).map(|_| {
            sampler.decide(config, 1, 0);
            sampler.next_budget()
        });
        assert_eq!(longest.max(), Some(PEAK_STEP));
    }

    #[test]
    fn case_47_the_goldens_of_jemalloc() {
        let small = weight(8, 1 << 20);
        assert_eq!((whole_bytes(small.bytes), small.blocks >> FRACTION), (1_048_580, 131_072));
        let large = weight(8 << 20, 1 << 20);
        assert_eq!(whole_bytes(large.bytes), 8_391_423);
        assert_eq!((large.blocks as f64 / 65_536.0 * 1e4).round(), 10_003.0);
    }

    /// jemalloc's `prof_bias`, with large blocks sampled like small ones: 32 Mi blocks of 16 bytes and 16 of
    /// 32 MiB. Its estimator before 5.3, which weights the sums, fails what ours passes.
    #[test]
    fn case_48_weights_of_blocks_and_not_of_sums() {
        let config = SamplingConfig::new(KIB_512, u32::MAX);
        let sampler = sampler(48);
        let (mut bytes, mut blocks, mut sampled_bytes, mut sampled_blocks) = (0, 0, 0u64, 0u64);
        for (size, count) in [(16, 32u64 << 20), (32 << 20, 16)] {
            let hits = sampled(&sampler, config, size, count);
            let one = weight(size as u64, KIB_512);
            bytes += (hits * one.bytes) >> BYTES_FRACTION;
            blocks += (hits * one.blocks) >> FRACTION;
            sampled_bytes += hits * size as u64;
            sampled_blocks += hits;
        }
        // σ: √(512 KiB × 512 MiB) bytes, all of it from the small ones.
        let error = (512.0 * 1024.0 * 512.0 * 1048576.0f64).sqrt();
        let is_right = |bytes: f64, blocks: f64| {
            (bytes - 1073741824.0).abs() <= 3.0 * error && (blocks - 33554448.0).abs() <= 3.0 * error / 16.0
        };
        assert!(is_right(bytes as f64, blocks as f64), "{bytes} bytes, {blocks} blocks");
        let average = sampled_bytes as f64 / sampled_blocks as f64;
        let scale = 1.0 / (1.0 - (-average / f64::from(KIB_512)).exp());
        let (bytes, blocks) = (sampled_bytes as f64 * scale, sampled_blocks as f64 * scale);
        assert!(!is_right(bytes, blocks), "weighted sums: {bytes} bytes, {blocks} blocks");
        assert_eq!((bytes / 1073741824.0 * 100.0).round(), 80.0, "{bytes} bytes of 1 GiB");
        assert_eq!((blocks / 33554448.0 * 1e5).round(), 5.0, "{blocks} blocks of 32 Mi");
    }

    /// Golang #26618: no size may be certain to be sampled and weigh more than 1.
    #[test]
    fn case_49_no_step_at_the_interval() {
        const INTERVAL: usize = 1 << 12;
        let config = SamplingConfig::new(INTERVAL as u32, 0);
        let count = 40_000u64;
        for size in [INTERVAL - 1, INTERVAL, INTERVAL + 1] {
            let (bytes, variance) = if config.is_sampled_size(size) {
                let hits = sampled(&sampler(49), config, size, count);
                let one = weight(size as u64, INTERVAL as u32);
                ((hits * one.bytes) >> BYTES_FRACTION, square_bytes(hits * one.variance, INTERVAL as u32))
            } else {
                (count * size as u64, 0.0)
            };
            let error = bytes as f64 - (count * size as u64) as f64;
            assert!(error.abs() <= 3.0 * variance.sqrt(), "{size}: {error} of {}", variance.sqrt());
            assert_eq!(variance > 0.0, size < INTERVAL);
        }
    }

    /// With a threshold beyond the interval blocks around it are sampled, and weighted.
    #[test]
    fn case_49_nor_where_larger_blocks_are_sampled_too() {
        const INTERVAL: u32 = 1 << 12;
        let config = SamplingConfig::new(INTERVAL, 1 << 20);
        for size in [4_095, 4_096, 4_097, 20_000] {
            let hits = sampled(&sampler(1), config, size, 40_000) as f64;
            let one = weight(size as u64, INTERVAL);
            let bytes = hits * one.bytes as f64 / 256.0;
            let error = bytes - 40_000.0 * size as f64;
            let expected = (square_bytes(one.variance, INTERVAL) * hits).sqrt();
            assert!(error.abs() <= 3.0 * expected, "{size}: {error} of {expected}");
        }
    }

    #[test]
    fn case_52_gaps_are_drawn_anew_and_nothing_is_too_small() {
        let config = SamplingConfig::new(1_000, 0);
        let sampler = sampler(52);
        // A sample point that could not be used, as in a reentrant allocation, is gone: the blocks after
        // it are sampled as often as any.
        let (mut after, rounds) = (0, 20_000);
        for _ in 0..rounds {
            while !sampler.decide(config, 10, 0) {}
            after += u32::from(sampler.decide(config, 100, 0));
        }
        let p = 1.0 - (-0.1f64).exp();
        let error = f64::from(after) - f64::from(rounds) * p;
        assert!(error.abs() <= 3.0 * (f64::from(rounds) * p * (1.0 - p)).sqrt(), "{error}");
        // Nor is one byte; no byte has none that could be hit, so such a block is recorded like a large one.
        let smallest = sampled(&sampler, config, 1, 1_000_000) as f64;
        assert!((smallest - 999.5).abs() <= 3.0 * 999.5f64.sqrt(), "{smallest}");
        assert!(!config.is_sampled_size(0) && config.is_sampled_size(1));
        assert!(config.is_sampled_size(999) && !config.is_sampled_size(1_000));
    }

    #[test]
    fn a_changed_configuration_drops_the_gap() {
        let sampler = sampler(7);
        let (rare, often) = (SamplingConfig::new(1 << 30, 0), SamplingConfig::new(64, 0));
        assert_eq!(sampled(&sampler, rare, 8, 1_000), 0);
        let hits = sampled(&sampler, often, 8, 100_000) as f64;
        let p = 1.0 - (-0.125f64).exp();
        assert!((hits - 1e5 * p).abs() <= 3.0 * (1e5 * p * (1.0 - p)).sqrt(), "{hits}");
    }

    #[test]
    fn the_variance_of_small_blocks_is_the_interval_squared() {
        for size in [1, 16, 4_096, 100_000, 524_287] {
            let one = square_bytes(weight(size, KIB_512).variance, 1);
            assert!((0.92..=1.0).contains(&one), "{size}: {one}");
        }
        assert_eq!(square_bytes(weight(16, KIB_512).variance, KIB_512), (524_288.0f64).powi(2));
    }

    /// Sums of the largest weights there are stay far from the end of their words.
    #[test]
    fn weights_of_the_longest_interval() {
        let one = weight(1, MAX_INTERVAL as u32);
        assert_eq!(whole_bytes(one.bytes), (1 << 30) + 1);
        assert_eq!(one.blocks, (1 << 46) + (1 << 15));
        assert_eq!(one.variance, 1 << FRACTION);
        assert!(weight(u64::MAX, 2).bytes > 0);
    }
}
