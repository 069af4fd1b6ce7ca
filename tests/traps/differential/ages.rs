//! Bounds of ages from counts by id, against the time at which each block was allocated: at each comparison, as of looks before it.
//!
//! Some looks are taken while threads work; then a block that was allocated meanwhile may be older than the look or not. After
//! the others all ids of some functions are renewed: from there on the two bounds are one, and equal to the blocks, unless a
//! paused thread has resized one at its id.

use super::{Held, Model, Place, SITES};
use crate::random::Random;
use heapgauge::StackById;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Time that begins and ends of looks pass.
static CLOCK: AtomicU64 = AtomicU64::new(1);

/// Kinds of allocations of a site.
const KINDS: [&str; 3] = ["get", "get_zeroed", "resize"];

/// Time of the last resize of a block of each site and kind in a paused thread.
static RESIZED: [[AtomicU64; 3]; 16] = [const { [const { AtomicU64::new(0) }; 3] }; 16];

/// Most looks that a comparison goes back to.
const LOOKS: usize = 12;

/// Times before and after a block was allocated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Born {
    begin: u64,
    end: u64,
}

impl Born {
    /// Allocates, and notes the time.
    pub(super) fn around<T>(allocate: impl FnOnce() -> T) -> (T, Born) {
        let begin = CLOCK.load(Ordering::SeqCst);
        let made = allocate();
        (made, Born { begin, end: CLOCK.load(Ordering::SeqCst) })
    }
}

/// Notes that a paused thread resizes a block of this place, which keeps its id.
pub(super) fn note_resized(place: Place) {
    if let Some((site, kind)) = place {
        let kind = KINDS.iter().position(|one| *one == kind).unwrap();
        RESIZED[site][kind].fetch_max(CLOCK.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// Bytes and blocks.
type Sum = [u64; 2];

/// Counts of one id.
#[derive(Clone, Copy)]
struct Counts {
    allocated: Sum,
    freed: Sum,
    place: (usize, usize),
}

impl Counts {
    fn live(&self) -> Sum {
        [0, 1].map(|at| self.allocated[at].checked_sub(self.freed[at]).expect("live is never negative"))
    }
}

/// Counts of all ids with live blocks, as a reader keeps them.
struct Look {
    begin: u64,
    end: u64,
    ids: HashMap<u32, Counts>,
    /// Sites and kinds of which all ids were renewed right after it.
    renewed: Vec<(usize, usize)>,
}

/// Looks of the present epoch.
#[derive(Default)]
pub(super) struct Looks {
    looks: Vec<Look>,
    /// Functions by id.
    functions: HashMap<u32, Arc<str>>,
    pub(super) bounds: usize,
    pub(super) exact: usize,
    pub(super) renewals: usize,
}

impl Looks {
    /// Forgets all: their ids are of an epoch that is over.
    pub(super) fn clear(&mut self) {
        let _untracked = heapgauge::pause();
        self.looks.clear();
        self.functions.clear();
    }

    /// Looks at all ids, and renews some of them. `rests`: no thread works.
    pub(super) fn look_and_renew(&mut self, random: &mut Random, rests: bool) {
        let _untracked = heapgauge::pause();
        let by_place = random.below(3);
        let look = self.look();
        let places: HashMap<u32, (usize, usize)> =
            look.ids.iter().map(|(id, counts)| (*id, counts.place)).collect();
        let all: Vec<(usize, usize)> =
            (0..SITES.len()).flat_map(|site| (0..KINDS.len()).map(move |kind| (site, kind))).collect();
        let chosen: Vec<_> = all.into_iter().filter(|_| random.below(3) == 0).collect();
        // Ids of the harness, and those that have no live block, are renewed now and then.
        self.renewals += heapgauge::renew_stacks(|id| match places.get(&id) {
            Some(place) if by_place > 0 || rests => chosen.contains(place),
            _ => random.below(3) == 0,
        });
        self.looks.push(Look { renewed: if rests { chosen } else { Vec::new() }, ..look });
        if self.looks.len() > LOOKS {
            self.looks.remove(random.below(LOOKS / 2));
        }
    }

    /// Compares the bounds of each function as of each look with the blocks that there are, while no thread works.
    pub(super) fn compare(&mut self, models: &[Model], what: (usize, usize)) {
        let _untracked = heapgauge::pause();
        let look = self.look();
        self.looks.push(look);
        let now = self.looks.len() - 1;
        let blocks: Vec<&Held> = models.iter().flat_map(|model| model.live.values()).collect();
        // The least that each id had since: what is in none of the looks after one had nothing left.
        let mut least: HashMap<u32, Sum> = HashMap::new();
        for at in (0..=now).rev() {
            let (look, last) = (&self.looks[at], &self.looks[now]);
            least = look
                .ids
                .iter()
                .map(|(id, counts)| {
                    let [bytes, blocks] = counts.live();
                    let since =
                        if at == now { [u64::MAX; 2] } else { least.get(id).copied().unwrap_or_default() };
                    (*id, [bytes.min(since[0]), blocks.min(since[1])])
                })
                .collect();
            let mut bounds: HashMap<(usize, usize), [Sum; 2]> = HashMap::new();
            for (id, counts) in &look.ids {
                let [lower, upper] = bounds.entry(counts.place).or_default();
                let freed = last.ids.get(id).map(|counts| counts.freed);
                for part in 0..2 {
                    lower[part] +=
                        freed.map_or(0, |freed| counts.allocated[part].saturating_sub(freed[part]));
                    upper[part] += least[id][part];
                }
            }
            for (site, resized) in RESIZED.iter().enumerate().take(SITES.len()) {
                for (kind, name) in KINDS.iter().enumerate() {
                    let of_place = |held: &&&Held| held.place == Some((site, *name));
                    let sum = |is_older: &dyn Fn(&Born) -> bool| {
                        let older = blocks.iter().filter(of_place).filter(|held| is_older(&held.born));
                        older.fold([0, 0], |[bytes, blocks], held| {
                            [bytes + held.layout.size() as u64, blocks + 1]
                        })
                    };
                    let [fewest, most] =
                        [sum(&|born| born.end < look.begin), sum(&|born| born.begin < look.end)];
                    let [lower, upper] = bounds.get(&(site, kind)).copied().unwrap_or_default();
                    let is_exact = look.renewed.contains(&(site, kind))
                        && resized[kind].load(Ordering::SeqCst) < look.begin;
                    for part in 0..2 {
                        assert!(
                            lower[part] <= most[part] && fewest[part] <= upper[part],
                            "seed, round {what:?}, look {at} of {now}, {site} {name}: {lower:?} to {upper:?}, \
                             the blocks are {fewest:?} to {most:?}"
                        );
                    }
                    self.bounds += 1;
                    if is_exact {
                        assert_eq!(
                            [lower, upper],
                            [most, fewest],
                            "seed, round {what:?}, look {at} of {now}, {site} {name}: renewed"
                        );
                        self.exact += 1;
                    }
                }
            }
        }
        self.looks.pop();
    }

    /// Looks at the ids of the sites that have live blocks.
    fn look(&mut self) -> Look {
        let begin = CLOCK.fetch_add(1, Ordering::SeqCst) + 1;
        let stacks = heapgauge::stacks_by_id(&mut self.functions);
        let end = CLOCK.fetch_add(1, Ordering::SeqCst) + 1;
        let ids = stacks.iter().filter_map(|stack| Some((stack.id, counts(stack)?)));
        let ids: HashMap<u32, Counts> = ids.filter(|(_, counts)| counts.live() != [0, 0]).collect();
        Look { begin, end, ids, renewed: Vec::new() }
    }
}

/// Returns the counts of an id; `None` where it is of no site.
fn counts(stack: &StackById) -> Option<Counts> {
    let (module, kind) = stack.function.rsplit_once("::")?;
    let site = SITES.iter().position(|site| site.name == module)?;
    let kind = KINDS.iter().position(|name| *name == kind)?;
    Some(Counts {
        allocated: [stack.allocated_bytes, stack.allocated_blocks],
        freed: [stack.freed_bytes, stack.freed_blocks],
        place: (site, kind),
    })
}
