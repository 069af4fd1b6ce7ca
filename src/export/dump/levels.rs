//! Use of memory, as it rises → the moments at which a dump is due.
//!
//! Pure: the caller reads the memory and the clock.

use std::time::{Duration, Instant};

use super::settings::DumpAt;

/// Part of the limit by which use has to fall below a level before it can be passed again.
const HYSTERESIS: u64 = 20;
/// Percent of the limit from which on there are steps while use rises fast, and their height.
const FIRST_STEP: u64 = 70;
const STEP: u64 = 5;
/// Time to the limit below which use rises fast.
const SOON: f64 = 2.0;
/// Least time between two looks, and longest.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Speed at which memory is taken.
#[derive(Debug, Default)]
pub(super) struct Rate {
    last: Option<(Instant, u64)>,
    /// Bytes a second; 0 while use does not rise.
    per_second: f64,
}

impl Rate {
    /// Notes the use at a moment.
    pub(super) fn note(&mut self, now: Instant, usage: u64) {
        if let Some((then, before)) = self.last {
            let seconds = now.saturating_duration_since(then).as_secs_f64();
            if seconds < 0.005 {
                return;
            }
            let latest = usage.saturating_sub(before) as f64 / seconds;
            // A pause of some moments is not the end of a rise.
            self.per_second = latest.max(self.per_second * 0.5f64.powf(seconds * 4.0));
        }
        self.last = Some((now, usage));
    }

    /// Returns the seconds until so many bytes are taken.
    fn seconds_until(&self, bytes: u64) -> f64 {
        if self.per_second < 1.0 { f64::INFINITY } else { bytes as f64 / self.per_second }
    }

    /// Returns the time until the next look, where so many bytes are left.
    pub(super) fn wait(&self, headroom: Option<u64>) -> Duration {
        let seconds = headroom.map_or(f64::INFINITY, |left| self.seconds_until(left) / 10.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_WAIT).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }
}

/// Levels of use, and those that were passed.
#[derive(Debug)]
pub(super) struct Levels {
    levels: Vec<(DumpAt, bool)>,
    /// Number of steps above the first one that use has been at.
    step: u64,
}

impl Levels {
    pub(super) fn new(levels: &[DumpAt]) -> Levels {
        Levels { levels: levels.iter().map(|level| (*level, false)).collect(), step: 0 }
    }

    /// Returns whether a dump is due at this use: it has passed a level, or another step while it rises so fast that the
    /// limit is near.
    pub(super) fn is_due(&mut self, usage: u64, limit: Option<u64>, rate: &Rate) -> bool {
        let mut is_due = false;
        for (level, passed) in &mut self.levels {
            let (bytes, slack) = match (*level, limit) {
                (DumpAt::Percent(percent), Some(limit)) => (part(limit, percent.into()), limit / HYSTERESIS),
                (DumpAt::Percent(_), None) => continue,
                (DumpAt::Bytes(bytes), _) => (bytes, bytes / HYSTERESIS),
            };
            if usage >= bytes {
                is_due |= !std::mem::replace(passed, true);
            } else if usage < bytes.saturating_sub(slack) {
                *passed = false;
            }
        }
        let Some(limit) = limit else { return is_due };
        let step = match (usage as u128 * 100 / u128::from(limit.max(1))) as u64 {
            percent @ FIRST_STEP.. => (percent - FIRST_STEP) / STEP + 1,
            _ => 0,
        };
        let is_near = rate.seconds_until(limit.saturating_sub(usage)) < SOON;
        is_due |= is_near && step > self.step;
        if step > self.step || step + 1 < self.step {
            self.step = step;
        }
        is_due
    }
}

/// Returns a part of the limit, in percent.
pub(super) fn part(limit: u64, percent: u64) -> u64 {
    (u128::from(limit) * u128::from(percent) / 100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_level_is_passed_once_until_use_has_fallen() {
        let mut levels = Levels::new(&[DumpAt::Percent(80), DumpAt::Bytes(950)]);
        let slow = Rate::default();
        let mut due = |usage| levels.is_due(usage, Some(1000), &slow);
        assert_eq!(
            [700, 799, 800, 900, 790, 810, 960, 970].map(&mut due),
            [false, false, true, false, false, false, true, false]
        );
        assert_eq!([740, 805, 1000].map(due), [false, true, true]);
    }

    #[test]
    fn a_fast_rise_has_a_dump_at_each_step() {
        let mut levels = Levels::new(&[DumpAt::Percent(80), DumpAt::Percent(90)]);
        let (mut rate, begun) = (Rate::default(), Instant::now());
        let mut dumps = Vec::new();
        // 50 MiB a second, in a limit of 200, looked at every 50 ms.
        for look in 0..80_u32 {
            let usage = u64::from(look) * 5 * MIB / 2;
            rate.note(begun + Duration::from_millis(50) * look, usage);
            if levels.is_due(usage, Some(200 * MIB), &rate) {
                dumps.push(usage / (2 * MIB));
            }
        }
        assert_eq!(dumps, [70, 75, 80, 85, 90, 95]);
    }

    #[test]
    fn looks_are_rare_while_nothing_rises_and_frequent_near_the_limit() {
        let (mut rate, begun) = (Rate::default(), Instant::now());
        rate.note(begun, 10 * MIB);
        assert_eq!(rate.wait(Some(5 * MIB)), LONGEST_WAIT);
        assert_eq!(rate.wait(None), LONGEST_WAIT);
        rate.note(begun + Duration::from_secs(1), 60 * MIB);
        assert_eq!(rate.wait(Some(1 << 40)), LONGEST_WAIT);
        assert_eq!(rate.wait(Some(50 * MIB)), Duration::from_millis(100));
        assert_eq!(rate.wait(Some(0)), SHORTEST_WAIT);
        // It is over after some seconds.
        rate.note(begun + Duration::from_secs(10), 60 * MIB);
        assert_eq!(rate.wait(Some(MIB)), LONGEST_WAIT);
    }

    #[test]
    fn without_a_limit_only_sizes_count() {
        let mut levels = Levels::new(&[DumpAt::Percent(1), DumpAt::Bytes(100)]);
        assert!(!levels.is_due(99, None, &Rate::default()) && levels.is_due(100, None, &Rate::default()));
    }
}
