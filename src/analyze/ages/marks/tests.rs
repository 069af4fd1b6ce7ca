//! Marks beside a record of the birth of each block, and the memory that they take.
#![forbid(unsafe_code)]

use super::*;
use crate::base::random_input::Random;
use std::collections::BTreeMap;

const SPACING: Duration = Duration::from_secs(15);
const PACE: Pace = Pace { spacing: SPACING, old_age: Duration::from_secs(3_600) };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Blocks of one id with their births, and its counts.
#[derive(Default)]
struct Twin {
    /// Bytes and second of birth, oldest first.
    blocks: Vec<(u64, u64)>,
    freed: Live,
    is_closed: bool,
}

impl Twin {
    fn allocate(&mut self, bytes: u64, at: u64) {
        self.blocks.push((bytes, at));
    }

    fn free(&mut self, place: usize) {
        let (bytes, _) = self.blocks.remove(place);
        self.freed += Live { bytes, blocks: 1 };
    }

    fn older_than(&self, age: u64, now: u64) -> Live {
        let old = self.blocks.iter().filter(|(_, born)| now - born > age);
        old.fold(Live::default(), |mut sum, &(bytes, _)| {
            sum += Live { bytes, blocks: 1 };
            sum
        })
    }

    fn now(&self, id: u32) -> StackNow {
        let live = self.blocks.iter().map(|(bytes, _)| bytes).sum();
        StackNow { id, live: Live { bytes: live, blocks: self.blocks.len() as u64 }, freed: self.freed }
    }
}

fn is_within(least: Live, value: Live, most: Live) -> bool {
    least.bytes <= value.bytes
        && least.blocks <= value.blocks
        && value.bytes <= most.bytes
        && value.blocks <= most.blocks
}

/// Random allocations, frees and renewals; stacks die and others are born; looks are late now and then.
#[test]
fn bounds_hold_whatever_is_freed_and_are_exact_for_ids_without_new_blocks() {
    let mut random = Random::new();
    let start = Instant::now();
    let (mut checked, mut exact, mut closed_spans) = (0, 0, BTreeMap::new());
    for round in 0..12 {
        let mut marks = Marks::new();
        marks.clear(Some(start));
        let mut twins: BTreeMap<u32, Twin> = (2..12).map(|id| (id, Twin::default())).collect();
        let (mut next, mut now, mut look) = (12, 0, 0);
        let max_bytes = if round % 3 == 2 { 600 } else { usize::MAX };
        for _ in 0..3_000 {
            now += random.below(4) as u64;
            let ids: Vec<u32> = twins.keys().copied().collect();
            let id = random.one(&ids);
            let twin = twins.get_mut(&id).unwrap();
            let count = twin.blocks.len();
            match random.below(10) {
                0..5 if !twin.is_closed => twin.allocate(1 + random.below(1_000) as u64, now),
                5..7 if count > 0 => twin.free(random.below(count)),
                7 if count > 0 => twin.free(count - 1),
                8 if count > 0 => twin.free(0),
                9 if random.below(5) == 0 => {
                    twin.is_closed = true;
                    closed_spans.insert((round, id), now);
                    twins.insert(next, Twin::default());
                    next += 1;
                }
                _ => {}
            }
            twins.retain(|_, twin| !(twin.is_closed && twin.blocks.is_empty()));
            let stacks: Vec<StackNow> = twins.iter().map(|(&id, twin)| twin.now(id)).collect();
            let at = start + seconds(now);
            if now >= look {
                marks.push((at, at), &stacks, PACE, max_bytes);
                look = now + 15 + random.below(3) as u64;
            }
            if random.below(20) > 0 {
                continue;
            }
            // Between whole seconds, at which blocks are born.
            let mut ages =
                [0; 4].map(|_| seconds(random.below(now as usize + 60) as u64) + Duration::from_millis(500));
            ages.sort();
            marks.bounds(at, &stacks, &ages, |age, place, AgeTotals { lower, upper }| {
                let (id, twin) = (stacks[place].id, &twins[&stacks[place].id]);
                let truth = twin.older_than(ages[age].as_secs(), now);
                assert!(
                    is_within(lower, truth, upper),
                    "{id} {:?}: {lower:?} {truth:?} {upper:?}",
                    ages[age]
                );
                checked += 1;
                // A closed id is exact for ages back to its renewal, as far as there is a mark between.
                let closed = closed_spans.get(&(round, id)).map(|closed| now - closed);
                let precision = marks.precision(ages[age], at);
                if let (Some(closed), Some(precision)) = (closed, precision)
                    && ages[age] + precision < seconds(closed)
                {
                    assert_eq!((lower, upper), (truth, truth));
                    exact += 1;
                }
            });
        }
        assert!(max_bytes == usize::MAX || marks.bytes() <= max_bytes || marks.count() == 2);
    }
    assert!(checked > 10_000 && exact > 1_000, "{checked} {exact}");
}

#[test]
fn nothing_is_older_than_the_epoch_and_nothing_surely_older_than_the_first_mark() {
    let start = Instant::now();
    let at = |second| start + seconds(second);
    let stacks = [StackNow { id: 2, live: Live { bytes: 8, blocks: 1 }, freed: Live::default() }];
    let bounds = |marks: &Marks, age| {
        let mut found = AgeTotals::default();
        marks.bounds(at(100), &stacks, &[seconds(age)], |_, _, bounds| found = bounds);
        (found.lower.bytes, found.upper.bytes)
    };
    let mut marks = Marks::new();
    assert_eq!(bounds(&marks, 10), (0, 8));
    marks.push((at(40), at(40)), &stacks, PACE, usize::MAX);
    assert_eq!([bounds(&marks, 60), bounds(&marks, 61)], [(8, 8), (0, 8)]);
    marks.clear(Some(at(30)));
    marks.push((at(40), at(40)), &stacks, PACE, usize::MAX);
    assert_eq!([bounds(&marks, 60), bounds(&marks, 61), bounds(&marks, 71)], [(8, 8), (0, 8), (0, 0)]);
    // A look that another collector has made since.
    marks.push((at(200), at(200)), &[], PACE, usize::MAX);
    assert_eq!([bounds(&marks, 60), bounds(&marks, 61), bounds(&marks, 71)], [(8, 8), (0, 8), (0, 0)]);
}

/// The share of marks in the default limit of 64 MiB.
const MAX_BYTES: usize = (64 << 20) / 24;

/// Returns the marks of so many stacks, of which one in `busy` turns over between two looks, and the time of the last.
fn filled(count: u32, busy: u32, looks: u64) -> (Marks, Instant) {
    let (mut marks, start) = (Marks::new(), Instant::now());
    let mut stacks: Vec<StackNow> = (0..count)
        .map(|at| StackNow {
            id: 2 + at,
            live: Live { bytes: 48 * u64::from(at % 500), blocks: 1 + u64::from(at % 50) },
            freed: Live::default(),
        })
        .collect();
    let mut now = start;
    for look in 0..looks {
        now = start + SPACING * look as u32;
        for (at, stack) in stacks.iter_mut().enumerate() {
            if (at as u32).is_multiple_of(busy) {
                stack.freed += Live { bytes: 480, blocks: 10 };
                stack.live.bytes = 1_000 + (look * 7 + at as u64) % 300;
            }
        }
        marks.push((now, now), &stacks, PACE, MAX_BYTES);
    }
    (marks, now)
}

/// Returns the widest time between marks around an age, as a share of that age, over all ages from five minutes on.
fn coarsest(marks: &Marks, now: Instant) -> f64 {
    let ages = (0..1_000).map(|step| 300.0 * 1.01_f64.powi(step));
    let shares = ages.map_while(|age| {
        let precision = marks.precision(Duration::from_secs_f64(age), now)?;
        Some(precision.as_secs_f64() / age)
    });
    shares.fold(0.0, f64::max)
}

/// The table in the documentation of `ages`.
#[test]
fn memory_and_precision_by_the_number_of_stacks() {
    let is_fast = !cfg!(debug_assertions);
    for (count, busy, looks, share) in [
        (100, 1, if is_fast { 40_320 } else { 5_760 }, 0.11),
        (10_000, 10, if is_fast { 40_320 } else { 120 }, 0.25),
        (10_000, 1, if is_fast { 11_520 } else { 80 }, 3.0),
        (100_000, 100, if is_fast { 1_440 } else { 20 }, 0.25),
        (100_000, 1, if is_fast { 200 } else { 10 }, 100.0),
    ] {
        let begun = Instant::now();
        let (marks, now) = filled(count, busy, looks);
        let spent = begun.elapsed() / looks as u32;
        let found = coarsest(&marks, now);
        let reach = now.saturating_duration_since(marks.marks.front().unwrap().begun);
        println!(
            "{count} stacks, one in {busy} busy, {looks} looks: {} marks reach {:.1} h, {} bytes, coarsest {found:.2}, {spent:?} a look",
            marks.count(),
            reach.as_secs_f64() / 3_600.0,
            marks.bytes()
        );
        assert!(marks.bytes() <= MAX_BYTES && found <= share, "{count} {busy}: {found}");
        // Old blocks are known to a fifth of their age.
        let hour = Duration::from_secs(3_600);
        let old = marks.precision(hour, now).filter(|_| looks > 300 && !(busy == 1 && count == 100_000));
        assert!(old.is_none_or(|old| old <= hour / 5), "{count} {busy}: {old:?}");
        // Younger ages are known to a look or two.
        let young = marks.precision(Duration::from_secs(60), now).unwrap();
        assert!(young <= SPACING * 2 || busy == 1 && count == 100_000, "{young:?}");
    }
}
