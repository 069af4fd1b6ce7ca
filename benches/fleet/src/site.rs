//! One line of code in one process: blocks are born at the rate of the load, and each has a lifetime.
//!
//! Live bytes are what is born and has not died; nothing else shapes them. The births of each minute are kept for as long as
//! one of its blocks may live, so the age of every live block is known.

use std::collections::VecDeque;

use crate::random::Random;

/// Parts of the births of a minute; each part has one lifetime, a quantile of the distribution.
const PARTS: u64 = 8;

/// Minutes back to which the age of a leaked block is known.
const OLDEST: usize = 70;

/// How long the blocks of a site live.
#[derive(Clone, Debug)]
pub enum Lifetime {
    /// Exponential, with this mean in minutes: what requests and connections hold.
    Mean(f64),
    /// Exactly so many minutes: a cache with a time to live.
    Fixed(usize),
    /// Until the cache is cleared, every so many minutes.
    UntilCleared(usize),
}

/// Blocks of a site that never die.
#[derive(Clone, Debug)]
pub struct Leak {
    /// Blocks a minute at a load of 1.
    pub blocks: f64,
    /// They come together, every so many minutes.
    pub every: usize,
}

/// Properties of a site that all processes of a service share.
#[derive(Clone, Debug)]
pub struct SiteSpec {
    pub id: String,
    pub function: String,
    pub file: String,
    pub line: u32,
    /// Bytes of a block.
    pub block: u64,
    /// Blocks a minute at a load of 1.
    pub blocks: f64,
    pub lifetime: Lifetime,
}

/// The blocks of a site in one process.
pub struct Site {
    /// Lifetime of each part, in minutes.
    lifetimes: [usize; PARTS as usize],
    /// Births of the latest minutes, the present one first.
    births: VecDeque<u64>,
    clear_every: usize,
    live: u64,
    leaked: u64,
    /// Blocks that were ever born.
    pub allocated: u64,
    /// Leaked blocks at the end of the latest minutes, the present one first.
    leaked_then: VecDeque<u64>,
}

impl Site {
    pub fn new(spec: &SiteSpec) -> Site {
        let mut lifetimes = [0; PARTS as usize];
        let mut clear_every = 0;
        for (part, lifetime) in lifetimes.iter_mut().enumerate() {
            let quantile = (part as f64 + 0.5) / PARTS as f64;
            *lifetime = match spec.lifetime {
                Lifetime::Mean(mean) => (-mean * (1.0 - quantile).ln()).round().max(1.0) as usize,
                Lifetime::Fixed(minutes) => minutes,
                Lifetime::UntilCleared(minutes) => {
                    clear_every = minutes;
                    minutes
                }
            };
        }
        Site {
            lifetimes,
            births: VecDeque::new(),
            clear_every,
            live: 0,
            leaked: 0,
            allocated: 0,
            leaked_then: VecDeque::new(),
        }
    }

    /// Lives one minute. Returns the blocks that were born and that died.
    pub fn step(
        &mut self,
        spec: &SiteSpec,
        leak: Option<&Leak>,
        age: usize,
        load: f64,
        random: &mut Random,
    ) -> (u64, u64) {
        let born = random.poisson(spec.blocks * load);
        self.births.push_front(born);
        self.live += born;
        let mut died = 0;
        if self.clear_every > 0 {
            if age.is_multiple_of(self.clear_every) {
                died = self.live;
                self.births.clear();
            }
        } else {
            // The parts of n are n in all: floor((n + k) / 8) for k from 0 to 7.
            died = (0..PARTS)
                .zip(self.lifetimes)
                .map(|(part, lifetime)| self.births.get(lifetime).map_or(0, |born| (born + part) / PARTS))
                .sum();
            self.births.truncate(1 + self.lifetimes[PARTS as usize - 1]);
        }
        self.live -= died;
        let mut leaked = 0;
        if let Some(leak) = leak.filter(|leak| age.is_multiple_of(leak.every)) {
            leaked = random.poisson(leak.blocks * leak.every as f64 * load);
            self.leaked += leaked;
        }
        self.allocated += born + leaked;
        self.leaked_then.push_front(self.leaked);
        self.leaked_then.truncate(1 + OLDEST);
        (born + leaked, died)
    }

    /// Loads blocks that stay.
    pub fn load(&mut self, blocks: u64) {
        self.leaked += blocks;
        self.allocated += blocks;
    }

    pub fn blocks(&self) -> u64 {
        self.live + self.leaked
    }

    /// Returns the live blocks that were born more than `age` minutes ago, at most `OLDEST`.
    pub fn blocks_older_than(&self, age: usize) -> u64 {
        let part_of = |part: u64, born: &u64| (born + part) / PARTS;
        let living: u64 = if self.clear_every > 0 {
            self.births.iter().skip(age).sum()
        } else {
            // A part that was born so many minutes ago lives for its lifetime.
            (0..PARTS)
                .zip(self.lifetimes)
                .map(|(part, lifetime)| {
                    let minutes = lifetime.saturating_sub(age);
                    self.births.iter().skip(age).take(minutes).map(|born| part_of(part, born)).sum::<u64>()
                })
                .sum()
        };
        living + self.leaked_then.get(age).unwrap_or(&0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(lifetime: Lifetime) -> SiteSpec {
        let (id, function, file) = Default::default();
        SiteSpec { id, function, file, line: 1, block: 1, blocks: 1000.0, lifetime }
    }

    fn live_after(minutes: usize, lifetime: Lifetime, leak: Option<Leak>) -> u64 {
        let (spec, mut random) = (spec(lifetime), Random::new(7, 7));
        let mut site = Site::new(&spec);
        for age in 1..=minutes {
            site.step(&spec, leak.as_ref(), age, 1.0, &mut random);
        }
        site.blocks()
    }

    fn near(found: u64, expected: f64) {
        assert!((found as f64 / expected - 1.0).abs() < 0.05, "{found}, expected {expected}");
    }

    #[test]
    fn live_is_rate_times_lifetime() {
        near(live_after(1000, Lifetime::Fixed(60), None), 60_000.0);
        near(live_after(30, Lifetime::Fixed(60), None), 30_000.0);
        near(live_after(1000, Lifetime::Mean(20.0), None), 20_000.0);
    }

    #[test]
    fn old_blocks_are_those_that_lived_so_long() {
        let at = |minutes, lifetime, leak: Option<Leak>, age| {
            let (spec, mut random) = (spec(lifetime), Random::new(7, 7));
            let mut site = Site::new(&spec);
            for minute in 1..=minutes {
                site.step(&spec, leak.as_ref(), minute, 1.0, &mut random);
            }
            assert_eq!(site.blocks_older_than(0), site.blocks());
            site.blocks_older_than(age)
        };
        near(at(1000, Lifetime::Fixed(180), None, 60), 120_000.0);
        assert_eq!(at(1000, Lifetime::Fixed(50), None, 60), 0);
        near(at(110, Lifetime::UntilCleared(120), None, 60), 50_000.0);
        let leak = Some(Leak { blocks: 10.0, every: 1 });
        near(at(300, Lifetime::Fixed(1), leak, 60), 2_400.0);
    }

    #[test]
    fn a_cleared_cache_is_a_sawtooth_and_a_leak_stays() {
        near(live_after(59, Lifetime::UntilCleared(60), None), 59_000.0);
        assert_eq!(live_after(60, Lifetime::UntilCleared(60), None), 0);
        let leak = Leak { blocks: 10.0, every: 20 };
        near(live_after(120, Lifetime::UntilCleared(60), Some(leak)), 1_200.0);
    }
}
