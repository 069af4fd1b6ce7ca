//! Judges from the old bytes of each site over time how likely it leaks.
//!
//! A site's *old bytes* are those in blocks that have surely survived four looks. A leak is growth of old bytes that is never lost again. So each step
//! between two looks is a trial: it succeeds where the least of all later old bytes is more than the least of those from the step's
//! beginning on; it fails where nothing grew, or where the growth was lost again. The score is the chance that the next step succeeds, too,
//! by Laplace's rule of succession: `(successes + 1) / (trials + 2)`. With nine steps that all succeed it is 0.91, with none 0.09.
//!
//! Noise must not succeed by chance. No step of a site does unless
//!
//! * its old bytes have risen by half a percent in all, and by more than twice the largest loss among these looks: a level that varies
//!   rises as often as it falls;
//! * they have risen by more than the largest loss that is remembered at all: a cache that is emptied every few hours rises as a leak does, until
//!   it is emptied once;
//! * its live bytes have risen by half as much above their least: the blocks of a cache become older where the load falls, and no more;
//! * they rise still: once they have been level for more than twice as long as ever between two steps that succeeded, they have levelled.
//!
//! The same is tried at four scales: each look, and the least of every 8, 64 and 512 looks, 32 of each. With looks every 15 seconds these reach
//! back 8 minutes, one hour, 8 hours and 3 days. A slow leak, or one that goes on in bursts, shows at a coarse scale first. The highest score counts.
//!
//! Used under the collector's lock; costs about a kilobyte a site.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Number of looks that a block has survived before it is old here.
pub(crate) const OLD_LOOKS: usize = 4;
/// Number of scales, of looks in one step of the next scale, and of steps remembered at each.
const SCALES: usize = 4;
const STEP: u64 = 8;
const RING: usize = 32;
/// Fewest steps that are judged: with these the score is above 0.9 or below 0.1 where all agree.
const TRIALS: usize = 9;
/// Share of the old bytes that they have to have risen by.
const LEAST_RISE: f32 = 0.005;
/// Number of looks of which the one with most live bytes stands for the present: blocks that turn over may be gone at a look.
const RECENT: usize = 3;
/// Score from which a site very likely leaks.
pub(crate) const LIKELY: f64 = 0.9;

/// Judgement about one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Judged {
    /// Likelihood of a leak, from 0 to 1.
    pub score: f64,
    /// Rate at which its old bytes have grown, where any step succeeded.
    pub bytes_per_second: f64,
    /// Bytes that they have grown by, as far as this is remembered.
    pub rise: f64,
}

/// The least old bytes and the least live bytes of a step.
#[derive(Clone, Copy, Debug)]
struct Least {
    old: f32,
    live: f32,
}

/// Bytes of one site at each scale, the latest last.
#[derive(Debug, Default)]
struct Series {
    rings: [Vec<Least>; SCALES],
    /// The least since the last step of each scale but the first.
    least: [Option<Least>; SCALES],
}

impl Series {
    fn push(&mut self, old: u64, live: u64, look: u64) {
        let bytes = Least { old: old as f32, live: live as f32 };
        push(&mut self.rings[0], bytes);
        let mut step = 1;
        for (ring, least) in self.rings.iter_mut().zip(&mut self.least).skip(1) {
            step *= STEP;
            let value = least.map_or(bytes, |least| Least {
                old: least.old.min(bytes.old),
                live: least.live.min(bytes.live),
            });
            *least = Some(value);
            if look.is_multiple_of(step) {
                push(ring, value);
                *least = None;
            }
        }
    }

    /// Returns the score and the rise at one scale; `None`: there are too few steps.
    fn judge(&self, scale: usize) -> Option<(f64, f32)> {
        let values: Vec<f32> = self.rings[scale].iter().map(|least| least.old).collect();
        let steps = values.len().checked_sub(1).filter(|steps| *steps >= TRIALS)?;
        // The least from each value on.
        let mut least = values.clone();
        least[steps] = self.since(scale).fold(least[steps], f32::min);
        for at in (0..steps).rev() {
            least[at] = least[at].min(least[at + 1]);
        }
        let rise = least[steps] - least[0];
        let remembered = (scale + 1..SCALES).map(|scale| self.loss(scale)).fold(0.0, f32::max);
        let is_more = rise > values[steps] * LEAST_RISE
            && rise > 2.0 * self.loss(scale)
            && rise > remembered
            && self.live_rise(scale) >= rise / 2.0;
        let successes = if is_more && !has_levelled(&least) {
            least.windows(2).filter(|pair| pair[1] > pair[0]).count()
        } else {
            0
        };
        let score = (successes + 1) as f64 / (steps + 2) as f64;
        Some((score, if successes > 0 { rise } else { 0.0 }))
    }

    /// Returns the least since the last step of a scale, where there was a look since.
    fn since(&self, scale: usize) -> impl Iterator<Item = f32> {
        self.least[scale].iter().map(|least| least.old)
    }

    /// Returns by how much the most live bytes of the last looks are above the least of a scale.
    fn live_rise(&self, scale: usize) -> f32 {
        let recent = self.rings[0].iter().rev().take(RECENT).map(|least| least.live).fold(0.0, f32::max);
        recent - self.rings[scale].iter().map(|least| least.live).fold(f32::MAX, f32::min)
    }

    /// Returns the largest fall from a value of a scale to a later one.
    fn loss(&self, scale: usize) -> f32 {
        let (mut most, mut loss) = (f32::MIN, 0.0_f32);
        for value in self.rings[scale].iter().map(|least| least.old).chain(self.since(scale)) {
            most = most.max(value);
            loss = loss.max(most - value);
        }
        loss
    }
}

fn push(ring: &mut Vec<Least>, value: Least) {
    if ring.len() == RING {
        ring.remove(0);
    }
    ring.push(value);
}

/// Returns whether values that never fall have stayed the same at the end for more than twice as long as ever between two rises.
fn has_levelled(values: &[f32]) -> bool {
    let (mut level, mut longest, mut has_risen) = (0, 0, false);
    for pair in values.windows(2) {
        if pair[1] > pair[0] {
            longest = if has_risen { longest.max(level) } else { longest };
            (level, has_risen) = (0, true);
        } else {
            level += 1;
        }
    }
    level > 2 * longest + 2
}

/// Old bytes of the sites that hold most of them, over time.
#[derive(Debug, Default)]
pub(crate) struct LeakScores {
    series: HashMap<u64, Series>,
    /// Times of the steps of each scale.
    times: [VecDeque<Instant>; SCALES],
    looks: u64,
    last: Option<Instant>,
}

impl LeakScores {
    /// Returns the time until the next look; zero: now.
    pub(crate) fn due_in(&self, now: Instant, spacing: Duration) -> Duration {
        self.last.map_or(Duration::ZERO, |last| spacing.saturating_sub(now.saturating_duration_since(last)))
    }

    /// Leaves a look out: too little is known yet.
    pub(crate) fn leave_out(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = LeakScores::default();
    }

    /// Adds a look: sites with their old and live bytes, each once. Remembers as many sites as `most`, those with most old bytes first.
    pub(crate) fn look(&mut self, now: Instant, sites: impl Iterator<Item = (u64, u64, u64)>, most: usize) {
        self.last = Some(now);
        self.looks += 1;
        let mut step = 1;
        for times in &mut self.times {
            if self.looks.is_multiple_of(step) {
                times.push_back(now);
                if times.len() > RING {
                    times.pop_front();
                }
            }
            step *= STEP;
        }
        let mut held: HashMap<u64, (u64, u64)> = HashMap::new();
        for (id, old, live) in sites {
            if live > 0 || self.series.contains_key(&id) {
                held.insert(id, (old, live));
            }
        }
        let missing: Vec<u64> = self.series.keys().filter(|id| !held.contains_key(id)).copied().collect();
        held.extend(missing.into_iter().map(|id| (id, (0, 0))));
        let mut ranked: Vec<(u64, u64, u64)> =
            held.into_iter().map(|(id, (old, live))| (old, live, id)).collect();
        if ranked.len() > most {
            ranked.select_nth_unstable_by(most, |a, b| b.cmp(a));
            ranked[most..].iter().for_each(|(_, _, id)| drop(self.series.remove(id)));
            ranked.truncate(most);
        }
        for (old, live, id) in ranked {
            self.series.entry(id).or_default().push(old, live, self.looks);
        }
    }

    /// Judges a site; `None` where too little is known of it.
    pub(crate) fn judge(&self, id: u64) -> Option<Judged> {
        self.judge_series(self.series.get(&id)?)
    }

    /// Iterates over the sites that very likely leak.
    pub(crate) fn likely(&self) -> impl Iterator<Item = (u64, Judged)> {
        let judged = self.series.iter().filter_map(|(&id, series)| Some((id, self.judge_series(series)?)));
        judged.filter(|(_, judged)| judged.score > LIKELY)
    }

    /// Returns the rate at which the old bytes of a site grow, bytes an hour, where it very likely leaks and they have risen by a thousandth of all
    /// live bytes; else 0.
    pub(crate) fn growth(&self, id: u64, live_bytes: u64) -> u64 {
        let judged = self
            .judge(id)
            .filter(|judged| judged.score > LIKELY && judged.rise >= live_bytes as f64 / 1_000.0);
        judged.map_or(0, |judged| (judged.bytes_per_second * 3_600.0) as u64)
    }

    fn judge_series(&self, series: &Series) -> Option<Judged> {
        let mut best: Option<Judged> = None;
        for (scale, times) in self.times.iter().enumerate() {
            let Some((score, rise)) = series.judge(scale) else { continue };
            let steps = series.rings[scale].len() - 1;
            let first = times.len().checked_sub(steps + 1).and_then(|first| times.get(first));
            let seconds = match (first, times.back()) {
                (Some(&first), Some(&last)) => last.saturating_duration_since(first).as_secs_f64(),
                _ => 0.0,
            };
            let bytes_per_second = if seconds > 0.0 { f64::from(rise) / seconds } else { 0.0 };
            // Of equal scores that of the finer scale: its rate is the present one.
            if best.is_none_or(|best| score > best.score) {
                best = Some(Judged { score, bytes_per_second, rise: f64::from(rise) });
            }
        }
        best
    }
}

#[cfg(test)]
mod tests;
