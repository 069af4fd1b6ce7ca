//! Chooses the few sites that are exported: a pure function on values.
//!
//! Linear in the number of sites (selection, not sorting); only the chosen sites are sorted.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::time::Duration;

use crate::analyze::live::Live;

/// Figures of a site by which it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub id: u64,
    pub live: Live,
    pub delta_bytes: i64,
    /// Bytes an hour by which its old blocks grow, where it very likely leaks.
    pub old_growth: u64,
    /// Time since it was last chosen for its live bytes or for growth; `None`: never.
    pub top_ago: Option<Duration>,
}

/// Maximum number of sites of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub by_live: usize,
    pub by_delta: usize,
    pub by_old_growth: usize,
    pub sticky: usize,
    /// Time for which a site that was chosen is preferred to one that was not: its series are there already.
    pub sticky_for: Duration,
}

/// One chosen site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Index into the candidates.
    pub index: usize,
    /// True if the site was chosen only because it was at the top a while ago.
    pub sticky: bool,
}

/// Chooses the top by live bytes, the top by positive delta, the top by growth of old bytes, and those that were among them most recently;
/// most live bytes first. A site that was not among them lately has to beat one that was by a tenth: each site that comes and
/// goes costs series. A site without live blocks is never chosen. Ties go to the smaller id, so that equal numbers give
/// equal choices.
pub(crate) fn choose(candidates: &[Candidate], limits: Limits) -> Vec<Chosen> {
    let mut is_chosen = vec![false; candidates.len()];
    let mut chosen =
        Vec::with_capacity(limits.by_live + limits.by_delta + limits.by_old_growth + limits.sticky);
    let living = || (0..candidates.len()).filter(|&index| candidates[index].live.blocks > 0);

    let is_known = |candidate: &Candidate| candidate.top_ago.is_some_and(|ago| ago <= limits.sticky_for);
    let weight = |index: usize, bytes: u64| match is_known(&candidates[index]) {
        true => bytes.saturating_add(bytes / 10),
        false => bytes,
    };

    let by_live = first(living().collect(), limits.by_live, |index| {
        (Reverse(weight(index, candidates[index].live.bytes)), candidates[index].id)
    });
    let growing = living().filter(|&index| candidates[index].delta_bytes > 0);
    let by_delta = first(growing.collect(), limits.by_delta, |index| {
        (Reverse(weight(index, candidates[index].delta_bytes.unsigned_abs())), candidates[index].id)
    });
    let by_old_growth = living().filter(|&index| candidates[index].old_growth > 0);
    let by_old_growth = first(by_old_growth.collect(), limits.by_old_growth, |index| {
        (Reverse(weight(index, candidates[index].old_growth)), candidates[index].id)
    });
    for index in by_live.into_iter().chain(by_delta).chain(by_old_growth) {
        if !std::mem::replace(&mut is_chosen[index], true) {
            chosen.push(Chosen { index, sticky: false });
        }
    }

    let left = living().filter(|&index| !is_chosen[index] && is_known(&candidates[index]));
    let sticky = first(left.collect(), limits.sticky, |index| {
        let candidate = &candidates[index];
        (candidate.top_ago, Reverse(candidate.live.bytes), candidate.id)
    });
    chosen.extend(sticky.into_iter().map(|index| Chosen { index, sticky: true }));

    chosen.sort_unstable_by_key(|chosen| {
        (Reverse(candidates[chosen.index].live.bytes), candidates[chosen.index].id)
    });
    chosen
}

/// Returns the `count` smallest by `key`, in any order.
fn first<K: Ord>(mut indices: Vec<usize>, count: usize, key: impl Fn(usize) -> K) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    if indices.len() > count {
        indices.select_nth_unstable_by_key(count - 1, |&index| key(index));
        indices.truncate(count);
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::ages::AgeBounds;
    use crate::analyze::ages::leak_score::{LeakScores, SiteLook};
    use std::collections::BTreeSet;
    use std::time::Instant;

    const LIMITS: Limits = Limits {
        by_live: 25,
        by_delta: 4,
        by_old_growth: 4,
        sticky: 8,
        sticky_for: Duration::from_secs(1800),
    };

    /// Applies the rule of the specification by sorting alone.
    fn naive(candidates: &[Candidate], limits: Limits) -> Vec<(u64, bool)> {
        let known = |c: &Candidate| c.top_ago.is_some_and(|ago| ago <= limits.sticky_for);
        let tenths = |c: &Candidate, bytes: u64| if known(c) { bytes + bytes / 10 } else { bytes };
        let mut living: Vec<Candidate> = candidates.iter().copied().filter(|c| c.live.blocks > 0).collect();
        living.sort_by_key(|c| (Reverse(tenths(c, c.live.bytes)), c.id));
        let mut top: BTreeSet<u64> = living.iter().take(limits.by_live).map(|c| c.id).collect();
        let mut growing = living.clone();
        growing.retain(|c| c.delta_bytes > 0);
        growing.sort_by_key(|c| (Reverse(tenths(c, c.delta_bytes as u64)), c.id));
        top.extend(growing.iter().take(limits.by_delta).map(|c| c.id));
        let mut ageing = living.clone();
        ageing.retain(|c| c.old_growth > 0);
        ageing.sort_by_key(|c| (Reverse(tenths(c, c.old_growth)), c.id));
        top.extend(ageing.iter().take(limits.by_old_growth).map(|c| c.id));
        let mut left: Vec<_> = living.iter().filter(|c| !top.contains(&c.id) && known(c)).collect();
        left.sort_by_key(|c| (c.top_ago, Reverse(c.live.bytes), c.id));
        let sticky: BTreeSet<u64> = left.iter().take(limits.sticky).map(|c| c.id).collect();
        living.sort_by_key(|c| (Reverse(c.live.bytes), c.id));
        living
            .iter()
            .filter(|c| top.contains(&c.id) || sticky.contains(&c.id))
            .map(|c| (c.id, sticky.contains(&c.id)))
            .collect()
    }

    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn the_same_as_sorting_everything() {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        for round in 0..2_000 {
            let sites = next(&mut state) % 120;
            // Few distinct values, so that ties are common.
            let values = 1 + next(&mut state) % 50;
            let candidates: Vec<Candidate> = (0..sites)
                .map(|site| Candidate {
                    id: site.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                    live: Live { bytes: next(&mut state) % values, blocks: next(&mut state) % 4 },
                    delta_bytes: (next(&mut state) % values) as i64 - values as i64 / 2,
                    old_growth: (next(&mut state) % values).saturating_sub(values / 2),
                    top_ago: (!next(&mut state).is_multiple_of(3))
                        .then(|| Duration::from_secs(next(&mut state) % 2_400)),
                })
                .collect();
            let limits = if round % 2 == 0 {
                LIMITS
            } else {
                Limits {
                    by_live: (next(&mut state) % 26) as usize,
                    by_delta: (next(&mut state) % 5) as usize,
                    by_old_growth: (next(&mut state) % 5) as usize,
                    sticky: (next(&mut state) % 9) as usize,
                    ..LIMITS
                }
            };
            let chosen: Vec<(u64, bool)> = choose(&candidates, limits)
                .into_iter()
                .map(|chosen| (candidates[chosen.index].id, chosen.sticky))
                .collect();
            assert_eq!(chosen, naive(&candidates, limits), "round {round}");
            assert!(chosen.len() <= 41);
        }
    }

    #[test]
    fn at_most_forty_one_of_a_thousand() {
        let candidates: Vec<Candidate> = (0..1_000)
            .map(|site| Candidate {
                id: site,
                live: Live { bytes: 10_000 - site, blocks: 1 },
                delta_bytes: site as i64,
                old_growth: 1_000 - 1_000_u64.abs_diff(2 * site),
                top_ago: Some(Duration::from_secs(site)),
            })
            .collect();
        let chosen = choose(&candidates, LIMITS);
        assert_eq!(chosen.len(), 41);
        assert_eq!(chosen.iter().filter(|chosen| chosen.sticky).count(), 8);
        // The sticky ones are those that left last.
        assert_eq!(
            chosen.iter().filter(|chosen| chosen.sticky).map(|chosen| chosen.index).collect::<Vec<_>>(),
            (25..33).collect::<Vec<_>>()
        );
    }

    /// Lives a day of a program with 600 lines whose bytes vary around their means, and returns how many sites were chosen
    /// that had not been before, after the first hour.
    fn newcomers_of_a_day(limits: Limits) -> usize {
        let mut state = 0x1234_5678_9abc_def1;
        let mut unit = move || (next(&mut state) >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        let mut noise = vec![0.0; 600];
        let (mut scores, start) = (LeakScores::new(), Instant::now());
        let mut past: Vec<Vec<u64>> = Vec::new();
        let (mut chosen_at, mut seen, mut newcomers) = (vec![None; 600], BTreeSet::new(), 0);
        for minute in 0..1440u64 {
            let load = 1.0 + 0.3 * (minute as f64 / 1440.0 * std::f64::consts::TAU).sin();
            for noise in &mut noise {
                *noise = 0.9 * *noise + 0.2 * unit();
            }
            let live: Vec<u64> = (noise.iter().enumerate())
                .map(|(site, noise)| (1e8 * load * (1.0 + noise) / (1.0 + site as f64).powf(1.5)) as u64)
                .collect();
            let before = past.get(past.len().saturating_sub(5)).unwrap_or(&live).clone();
            // Entries turn over so slowly that those of five minutes ago are old.
            let recent = &past[past.len().saturating_sub(5)..];
            let old = |site: usize| recent.iter().map(|live| live[site]).min().unwrap_or(0).min(live[site]);
            let now = start + Duration::from_secs(60 * minute);
            let exact = |bytes| AgeBounds { lower_bytes: bytes, upper_bytes: bytes };
            let look = |site| SiteLook { id: site as u64, old: exact(old(site)), live_bytes: live[site] };
            scores.look(now, (0..600).map(look), 1_024);
            let candidates: Vec<Candidate> = (0..600)
                .map(|site| Candidate {
                    id: site as u64,
                    live: Live { bytes: live[site], blocks: 1 },
                    delta_bytes: live[site] as i64 - before[site] as i64,
                    old_growth: scores.growth(site as u64, live.iter().sum()),
                    top_ago: chosen_at[site].map(|at: u64| Duration::from_secs(60 * (minute - at))),
                })
                .collect();
            for site in choose(&candidates, limits) {
                newcomers += usize::from(seen.insert(site.index) && minute >= 60);
                if !site.sticky {
                    chosen_at[site.index] = Some(minute);
                }
            }
            past.push(live);
        }
        newcomers
    }

    /// A newcomer is five series; 100 new series a process a day are twenty of them.
    #[test]
    fn few_sites_enter_in_a_day() {
        let day = Limits {
            by_live: 16,
            by_delta: 4,
            by_old_growth: 4,
            sticky: 8,
            sticky_for: Duration::from_secs(86_400),
        };
        let newcomers = newcomers_of_a_day(day);
        println!("sites that entered in a day: {newcomers}"); // benches/fleet/run reads it
        assert!(newcomers <= 20, "{newcomers}");
    }
}
