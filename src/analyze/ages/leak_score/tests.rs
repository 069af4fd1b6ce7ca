//! Scores of the patterns that programs have.
#![forbid(unsafe_code)]

use super::*;
use crate::base::random_input::Random;

const SPACING: Duration = Duration::from_secs(15);
const MIB: u64 = 1 << 20;

/// Returns a site whose old bytes are known exactly.
fn exact(id: u64, old: u64, live_bytes: u64) -> SiteLook {
    SiteLook { id, old: AgeBounds { lower_bytes: old, upper_bytes: old }, live_bytes }
}

/// Returns the judgement about a site after so many looks at its old bytes.
fn judged(looks: u64, old: impl FnMut(u64) -> u64) -> Option<Judged> {
    let mut old = old;
    let (mut scores, start) = (LeakScores::new(), Instant::now());
    for look in 0..looks {
        let old = old(look);
        scores.look(start + SPACING * look as u32, [exact(7, old, old + MIB)].into_iter(), 16);
    }
    scores.judge(7)
}

fn score(looks: u64, old: impl FnMut(u64) -> u64) -> f64 {
    judged(looks, old).unwrap().score
}

#[test]
fn nothing_is_said_before_nine_steps() {
    assert_eq!(judged(9, |look| look * 100), None);
    assert_eq!(judged(10, |look| look * 100).map(|judged| judged.score > LIKELY), Some(true));
    assert_eq!(judged(10, |_| 100).map(|judged| judged.score < 0.1), Some(true));
}

#[test]
fn a_leak_has_its_rate_and_one_that_ends_is_none() {
    let leak = |look: u64| 50 * MIB + look * 15 * 1024 * 8;
    let Judged { score, bytes_per_second, .. } = judged(17, leak).unwrap();
    assert!(score > 0.9 && (bytes_per_second - 8192.0).abs() < 1.0, "{score} {bytes_per_second}");
    assert!(super::tests::score(40, |look| leak(look.min(25))) < 0.1);
}

#[test]
fn bursts_and_slow_leaks_show_at_a_coarser_scale() {
    // A block every two minutes.
    assert!(score(16, |look| MIB + look / 8 * 100_000) < 0.4);
    assert!(score(8 * 10, |look| MIB + look / 8 * 100_000) > 0.9);
    // 0.2 % an hour is found within a day; a table that gets an entry now and then never is.
    assert!(score(4 * 60, |look| 1000 * MIB + look * 2 * MIB / 240) < 0.1);
    assert!(score(24 * 240, |look| 1000 * MIB + look * 2 * MIB / 240) > 0.9);
    assert!(score(24 * 240, |look| 1000 * MIB + look * 100) < 0.1);
}

/// Random noise of a cache in steady state, of several kinds, and levels that go up and down with the time of day.
#[test]
fn noise_is_no_leak() {
    let mut random = Random::new();
    let mut above = [0; 3];
    const RUNS: usize = 400;
    for _ in 0..RUNS {
        let mut unit = || random.below(1 << 20) as f64 / f64::from(1 << 20) - 0.5;
        let independent = score(17, |_| (1e8 * (1.0 + 0.04 * unit())) as u64);
        let mut last = 0.0;
        let lasting = score(17, |_| {
            last = 0.8 * last + 0.04 * unit();
            (1e8 * (1.0 + last)) as u64
        });
        let mut recent = [0.0; 4];
        let mut at = 0;
        let windows = score(17, |_| {
            recent[at % 4] = unit();
            at += 1;
            (1e8 * (1.0 - 0.02 * recent.iter().sum::<f64>())) as u64
        });
        for (above, score) in above.iter_mut().zip([independent, lasting, windows]) {
            *above += usize::from(score >= 0.1);
        }
    }
    println!("scores of 0.1 and more in {RUNS} runs of five minutes: {above:?}");
    assert!(above.iter().all(|&above| above <= RUNS / 25), "{above:?}");
}

#[test]
fn a_sawtooth_is_no_leak_after_its_first_fall() {
    for period in [2, 4, 8, 12] {
        let falls = |look: u64| look % period * MIB;
        assert!(score(20, falls) < 0.1, "{period}");
    }
    // A cache that is emptied every three hours: as far as anybody can know it leaks until then.
    let hours = |look: u64| MIB + look % 720 * 10_000;
    assert!(score(700, hours) > 0.9);
    for looks in [760, 1_000, 1_400, 3_000] {
        assert!(score(looks, hours) < 0.1, "{looks}");
    }
}

#[test]
fn a_load_that_follows_the_day_is_no_leak_after_its_first_day() {
    let day = |look: u64| (1e8 * (1.0 + 0.3 * (look as f64 / 5_760.0 * std::f64::consts::TAU).sin())) as u64;
    for looks in (5_760..4 * 5_760).step_by(480) {
        assert!(score(looks, day) < 0.1, "{looks}");
    }
    // A leak of 4 % a day beside it shows once it has grown by more than a day's swing.
    assert!(score(5_760 * 3, |look| day(look) + look * 100_000) > 0.5);
}

/// The load falls: the blocks of a full cache become older, and no more. Beside a leak, live bytes that turn over hide nothing.
#[test]
fn a_cache_that_turns_over_more_slowly_is_no_leak() {
    let (mut scores, start) = (LeakScores::new(), Instant::now());
    let mut random = Random::new();
    for look in 0..40_u64 {
        let slower = exact(7, 20 * MIB + look * MIB / 4, 40 * MIB);
        let leaks = exact(8, look * 15_000, look * 15_000 + random.below(100 << 20) as u64);
        scores.look(start + SPACING * look as u32, [slower, leaks].into_iter(), 16);
    }
    let score = |id| scores.judge(id).unwrap().score;
    assert!(score(7) < 0.1 && score(8) > 0.9, "{} {}", score(7), score(8));
}

/// Returns the judgement about a site of which so many bytes are surely old, and so many may be.
fn judged_between(bounds: impl Fn(u64) -> (u64, u64)) -> Option<f64> {
    let (mut scores, start) = (LeakScores::new(), Instant::now());
    for look in 0..28 {
        let (lower_bytes, upper_bytes) = bounds(look);
        let site = SiteLook { id: 7, old: AgeBounds { lower_bytes, upper_bytes }, live_bytes: upper_bytes };
        scores.look(start + SPACING * look as u32, [site].into_iter(), 16);
    }
    scores.judge(7).map(|judged| judged.score)
}

/// A line that frees nine of ten blocks, where nothing tells which: as far as its leak is not seen, nothing is said.
#[test]
fn bounds_that_are_far_apart() {
    let level = judged_between(|look| (0, 100_000 + look % 3 * 1_000)).unwrap();
    assert!(level < 0.1, "{level}: no more can be old than before");
    assert_eq!(judged_between(|look| (0, 100_000 + look * 1_000)), None, "the load may have grown");
    // More is freed in four looks than leaks.
    let leaks = judged_between(|look| ((look * 10_000).saturating_sub(100_000), look * 10_000));
    assert!(leaks > Some(0.9), "{leaks:?}");
    // A map of texts: its table doubles, and the blocks of the new one are young.
    let map = judged_between(|look| (look * 1_000 - if look % 9 < 4 { look * 500 } else { 0 }, look * 1_500));
    assert!(map > Some(0.9), "{map:?}");
}

/// A map whose texts leak: its table doubles, and what was old of it is gone.
#[test]
fn a_map_that_grows_leaks() {
    let (mut scores, start) = (LeakScores::new(), Instant::now());
    for look in 0..60_u64 {
        let (texts, doublings) = (look * 1_300, (look + 1).ilog2());
        let is_young = (0..4).any(|ago| look > ago && (look + 1 - ago).ilog2() < doublings);
        let table = 3_200 << doublings;
        let old = texts + if is_young { 0 } else { table };
        scores.look(start + SPACING * look as u32, [exact(7, old, texts + table)].into_iter(), 16);
        let score = scores.judge(7).map_or(1.0, |judged| judged.score);
        assert!(look < 40 || score > 0.9, "{look}: {score}");
    }
}

/// An LRU cache whose hot entries grow old one by one.
#[test]
fn a_level_that_settles_is_no_leak() {
    let settles =
        |look: u64| MIB + [0, 0, 40, 40, 40, 70, 70, 70, 70, 90][(look / 16).min(9) as usize] * 1_000;
    for looks in 80..400 {
        assert!(score(looks, settles) < 0.1, "{looks}");
    }
}

#[test]
fn growth_counts_where_it_is_likely_a_leak_and_large() {
    let (mut scores, start) = (LeakScores::new(), Instant::now());
    for look in 0..20 {
        let sites = [15_000 * look, 15_000 * (look % 2)];
        let sites = [exact(7, sites[0], sites[0] + 1), exact(8, sites[1], sites[1] + 1)];
        scores.look(start + SPACING * look as u32, sites.into_iter(), 16);
    }
    let rise = 19 * 15_000;
    assert_eq!((scores.growth(7, 1_000 * rise), scores.growth(7, 1_000 * rise + 1_000)), (3_600_000, 0));
    assert_eq!((scores.growth(8, 0), scores.growth(9, 0)), (0, 0));
}

#[test]
fn the_sites_with_most_old_bytes_are_remembered() {
    let (mut scores, start) = (LeakScores::new(), Instant::now());
    for look in 0..12 {
        let sites = (0..100).map(|site| exact(site, site * 1_000 + look, 1));
        scores.look(start + SPACING * look as u32, sites, 16);
    }
    assert_eq!(scores.series.len(), 16);
    assert_eq!((scores.judge(83), scores.judge(84).is_some()), (None, true));
    scores.look(start, [exact(0, 5, 5)].into_iter(), 16);
    assert_eq!((scores.series.len(), scores.series.contains_key(&0)), (16, true));
}
