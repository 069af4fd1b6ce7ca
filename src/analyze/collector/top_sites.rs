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
    /// Time since it was last chosen for its live bytes or its delta; `None`: never.
    pub top_ago: Option<Duration>,
}

/// Maximum number of sites of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub by_live: usize,
    pub by_delta: usize,
    pub sticky: usize,
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

/// Chooses the top by live bytes, the top by positive delta, and those that were among them most recently;
/// most live bytes first. A site without live blocks is never chosen. Ties go to the smaller id, so
/// that equal numbers give equal choices.
pub(crate) fn choose(candidates: &[Candidate], limits: Limits) -> Vec<Chosen> {
    let mut is_chosen = vec![false; candidates.len()];
    let mut chosen = Vec::with_capacity(limits.by_live + limits.by_delta + limits.sticky);
    let living = || (0..candidates.len()).filter(|&index| candidates[index].live.blocks > 0);

    let by_live = first(living().collect(), limits.by_live, |index| {
        (Reverse(candidates[index].live.bytes), candidates[index].id)
    });
    let growing = living().filter(|&index| candidates[index].delta_bytes > 0);
    let by_delta = first(growing.collect(), limits.by_delta, |index| {
        (Reverse(candidates[index].delta_bytes), candidates[index].id)
    });
    for index in by_live.into_iter().chain(by_delta) {
        if !std::mem::replace(&mut is_chosen[index], true) {
            chosen.push(Chosen { index, sticky: false });
        }
    }

    let left = living().filter(|&index| {
        !is_chosen[index] && candidates[index].top_ago.is_some_and(|ago| ago <= limits.sticky_for)
    });
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
    use std::collections::BTreeSet;

    const LIMITS: Limits =
        Limits { by_live: 25, by_delta: 7, sticky: 8, sticky_for: Duration::from_secs(1800) };

    /// Applies the rule of the specification by sorting alone.
    fn naive(candidates: &[Candidate], limits: Limits) -> Vec<(u64, bool)> {
        let mut living: Vec<Candidate> = candidates.iter().copied().filter(|c| c.live.blocks > 0).collect();
        living.sort_by_key(|c| (Reverse(c.live.bytes), c.id));
        let mut top: BTreeSet<u64> = living.iter().take(limits.by_live).map(|c| c.id).collect();
        let mut growing = living.clone();
        growing.retain(|c| c.delta_bytes > 0);
        growing.sort_by_key(|c| (Reverse(c.delta_bytes), c.id));
        top.extend(growing.iter().take(limits.by_delta).map(|c| c.id));
        let mut left: Vec<_> = living
            .iter()
            .filter(|c| !top.contains(&c.id) && c.top_ago.is_some_and(|ago| ago <= limits.sticky_for))
            .collect();
        left.sort_by_key(|c| (c.top_ago, Reverse(c.live.bytes), c.id));
        let sticky: BTreeSet<u64> = left.iter().take(limits.sticky).map(|c| c.id).collect();
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
                    top_ago: (!next(&mut state).is_multiple_of(3))
                        .then(|| Duration::from_secs(next(&mut state) % 2_400)),
                })
                .collect();
            let limits = if round % 2 == 0 {
                LIMITS
            } else {
                Limits {
                    by_live: (next(&mut state) % 26) as usize,
                    by_delta: (next(&mut state) % 8) as usize,
                    sticky: (next(&mut state) % 9) as usize,
                    ..LIMITS
                }
            };
            let chosen: Vec<(u64, bool)> = choose(&candidates, limits)
                .into_iter()
                .map(|chosen| (candidates[chosen.index].id, chosen.sticky))
                .collect();
            assert_eq!(chosen, naive(&candidates, limits), "round {round}");
            assert!(chosen.len() <= 40);
        }
    }

    #[test]
    fn at_most_forty_of_a_thousand() {
        let candidates: Vec<Candidate> = (0..1_000)
            .map(|site| Candidate {
                id: site,
                live: Live { bytes: 10_000 - site, blocks: 1 },
                delta_bytes: site as i64,
                top_ago: Some(Duration::from_secs(site)),
            })
            .collect();
        let chosen = choose(&candidates, LIMITS);
        assert_eq!(chosen.len(), 40);
        assert_eq!(chosen.iter().filter(|chosen| chosen.sticky).count(), 8);
        // The sticky ones are those that left last.
        assert_eq!(
            chosen.iter().filter(|chosen| chosen.sticky).map(|chosen| chosen.index).collect::<Vec<_>>(),
            (25..33).collect::<Vec<_>>()
        );
    }
}
