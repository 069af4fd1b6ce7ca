//! Judges from the old bytes of each site over time how likely it leaks.
//!
//! A site's *old bytes* are here the most that may be in blocks that have survived four looks. A leak is growth of old bytes that is never lost again. So each step
//! between two looks is a trial: it succeeds where the least of all later old bytes is more than the least of those from the step's
//! beginning on; it fails where nothing grew, or where the growth was lost again. The score is the chance that the next step succeeds, too,
//! by Laplace's rule of succession: `(successes + 1) / (trials + 2)`. With nine steps that all succeed it is 0.91, with none 0.09.
//!
//! Why the upper bound: the lower one falls to nothing where most blocks of a line are freed and some leak. Old bytes are lost as well where one
//! block is replaced by a larger one, as when a map grows. So the trough of live bytes over four looks is judged in the same way, which is not lost then; and the
//! higher score counts. Old bytes show a leak beside blocks of the same line that come and go.
//!
//! Noise must not succeed by chance. No step of a site does unless
//!
//! * its old bytes have risen by half a percent in all, and by more than twice the largest loss among these looks: a level that varies
//!   rises as often as it falls;
//! * they have risen by half as much again as the largest loss that is remembered at all: a cache that is emptied every few hours rises as a leak
//!   does, until it is emptied once;
//! * a quarter of that is surely old: blocks that live shortly may be old for all that the bounds say, and become more with the load;
//! * its live bytes have risen by half as much above their least: the blocks of a cache become older where the load falls, and no more;
//! * half of all steps succeed: a level that settles rises now and then;
//! * they rise still: once they have been level for more than twice as long as ever between two steps that succeeded, they have levelled.
//!
//! Steps are judged at four scales: from look to look, and between the least of every 8, 64 and 512 looks. The latest 32 values of each scale are
//! kept: with looks every 15 seconds these reach back 8 minutes, one hour, 8 hours and 3 days. A slow leak, or one that goes on in bursts, shows at a coarse scale first. The highest score counts.
//!
//! Where nothing else is missing than that a quarter is surely old, a low score would say more than is known: there is none.
//!
//! Used under a lock; costs about a kilobyte a site.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::AgeBounds;

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

/// The least bytes of a step.
#[derive(Clone, Copy, Debug)]
struct Least {
    /// Old bytes.
    old: f32,
    /// Live bytes.
    live: f32,
    /// The least live bytes of the looks that a block has to survive: the trough.
    trough: f32,
}

impl Least {
    fn least(self, other: Least) -> Least {
        Least {
            old: self.old.min(other.old),
            live: self.live.min(other.live),
            trough: self.trough.min(other.trough),
        }
    }
}

/// Chooses the bytes of a step that are judged: old ones, or the trough of live ones.
type Judge = fn(&Least) -> f32;

/// Bytes of one site at each scale, the latest last.
#[derive(Debug, Default)]
struct Series {
    rings: [Vec<Least>; SCALES],
    /// The least since the last step of each scale but the first.
    least: [Option<Least>; SCALES],
    /// Bytes that were surely old at the last look.
    surely_old: f32,
}

/// Judgement at one scale.
struct Steps {
    score: f64,
    rise: f32,
    /// The site may leak as well: what grows is not surely old.
    is_unsure: bool,
}

/// One site at a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SiteLook {
    pub id: u64,
    /// Bounds of its old bytes.
    pub old: AgeBounds,
    pub live_bytes: u64,
}

impl Series {
    fn push(&mut self, SiteLook { old, live_bytes, .. }: SiteLook, look: u64) {
        let AgeBounds { lower_bytes, upper_bytes } = old;
        self.surely_old = lower_bytes as f32;
        let live = live_bytes as f32;
        let survived = self.rings[0].iter().rev().take(OLD_LOOKS);
        let trough = survived.map(|least| least.live).fold(live, f32::min);
        let bytes = Least { old: upper_bytes as f32, live, trough };
        push(&mut self.rings[0], bytes);
        let mut step = 1;
        for (ring, least) in self.rings.iter_mut().zip(&mut self.least).skip(1) {
            step *= STEP;
            let value = least.map_or(bytes, |least| least.least(bytes));
            *least = Some(value);
            if look.is_multiple_of(step) {
                push(ring, value);
                *least = None;
            }
        }
    }

    /// Judges one scale; `None`: there are too few steps.
    fn judge(&self, scale: usize, judged: Judge) -> Option<Steps> {
        let values: Vec<f32> = self.rings[scale].iter().map(judged).collect();
        let steps = values.len().checked_sub(1).filter(|steps| *steps >= TRIALS)?;
        // The least from each value on.
        let mut least = values.clone();
        least[steps] = self.since(scale, judged).fold(least[steps], f32::min);
        for at in (0..steps).rev() {
            least[at] = least[at].min(least[at + 1]);
        }
        let rise = least[steps] - least[0];
        let remembered = (scale + 1..SCALES).map(|scale| self.loss(scale, judged)).fold(0.0, f32::max);
        let is_more = rise > values[steps] * LEAST_RISE
            && rise > 2.0 * self.loss(scale, judged)
            && rise > 1.5 * remembered
            && self.live_rise(scale) >= rise / 2.0;
        let rises = least.windows(2).filter(|pair| pair[1] > pair[0]).count();
        let goes_on = is_more && rises * 2 >= steps && !has_levelled(&least);
        let is_sure = self.surely_old >= rise / 4.0;
        let successes = if goes_on && is_sure { rises } else { 0 };
        let score = (successes + 1) as f64 / (steps + 2) as f64;
        Some(Steps { score, rise: if successes > 0 { rise } else { 0.0 }, is_unsure: goes_on && !is_sure })
    }

    /// Returns the least since the last step of a scale, where there was a look since.
    fn since(&self, scale: usize, judged: Judge) -> impl Iterator<Item = f32> {
        self.least[scale].iter().map(judged)
    }

    /// Returns by how much the most live bytes of the last looks are above the least of a scale.
    fn live_rise(&self, scale: usize) -> f32 {
        let recent = self.rings[0].iter().rev().take(RECENT).map(|least| least.live).fold(0.0, f32::max);
        recent - self.rings[scale].iter().map(|least| least.live).fold(f32::MAX, f32::min)
    }

    /// Returns the largest fall from a value of a scale to a later one.
    fn loss(&self, scale: usize, judged: Judge) -> f32 {
        let (mut most, mut loss) = (f32::MIN, 0.0_f32);
        for value in self.rings[scale].iter().map(judged).chain(self.since(scale, judged)) {
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
#[derive(Debug)]
pub(crate) struct LeakScores {
    series: BTreeMap<u64, Series>,
    /// Times of the steps of each scale.
    times: [VecDeque<Instant>; SCALES],
    looks: u64,
    last: Option<Instant>,
}

impl LeakScores {
    pub(crate) const fn new() -> LeakScores {
        let times = [const { VecDeque::new() }; SCALES];
        LeakScores { series: BTreeMap::new(), times, looks: 0, last: None }
    }

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
        *self = LeakScores::new();
    }

    /// Adds a look at sites, each once. Remembers as many sites as `most`, those with most old bytes first.
    pub(crate) fn look(&mut self, now: Instant, sites: impl Iterator<Item = SiteLook>, most: usize) {
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
        let is_followed = |site: &SiteLook| site.live_bytes > 0 || self.series.contains_key(&site.id);
        let mut held: BTreeMap<u64, SiteLook> =
            sites.filter(is_followed).map(|site| (site.id, site)).collect();
        for &id in self.series.keys() {
            held.entry(id).or_insert(SiteLook { id, old: AgeBounds::default(), live_bytes: 0 });
        }
        let mut ranked: Vec<SiteLook> = held.into_values().collect();
        if ranked.len() > most {
            ranked.select_nth_unstable_by_key(most, |site| {
                Reverse((site.old.upper_bytes, site.live_bytes, site.id))
            });
            ranked[most..].iter().for_each(|site| drop(self.series.remove(&site.id)));
            ranked.truncate(most);
        }
        for site in ranked {
            self.series.entry(site.id).or_default().push(site, self.looks);
        }
    }

    /// Judges a site; `None` where too little is known of it: before nine steps, or where what grows may be old or not.
    pub(crate) fn judge(&self, id: u64) -> Option<Judged> {
        self.judge_series(self.series.get(&id)?)
    }

    /// Returns the likelihood that a site leaks; `None` as for [`judge`](LeakScores::judge).
    pub(crate) fn score(&self, id: u64) -> Option<f64> {
        self.judge(id).map(|judged| judged.score)
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
        let (mut best, mut may_leak) = (None::<Judged>, false);
        let both: [Judge; 2] = [|least| least.old, |least| least.trough];
        let scales = || self.times.iter().enumerate();
        for (judged, (scale, times)) in
            both.into_iter().flat_map(|judged| scales().map(move |at| (judged, at)))
        {
            let Some(Steps { score, rise, is_unsure }) = series.judge(scale, judged) else { continue };
            may_leak |= is_unsure;
            let steps = series.rings[scale].len() - 1;
            let first = times.len().checked_sub(steps + 1).and_then(|first| times.get(first));
            let seconds = match (first, times.back()) {
                (Some(&first), Some(&last)) => last.saturating_duration_since(first).as_secs_f64(),
                _ => 0.0,
            };
            let bytes_per_second = if seconds > 0.0 { f64::from(rise) / seconds } else { 0.0 };
            // Where scores are equal the finer scale counts: its rate is the present one.
            if best.is_none_or(|best| score > best.score) {
                best = Some(Judged { score, bytes_per_second, rise: f64::from(rise) });
            }
        }
        best.filter(|judged| judged.score > LIKELY || !may_leak)
    }
}

#[cfg(test)]
mod tests;
