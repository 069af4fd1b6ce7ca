//! Choice of ids, in simulated programs.
#![forbid(unsafe_code)]

use super::*;
use crate::record::raw_snapshot::{Addresses, Counts};

const SPACING: Duration = Duration::from_secs(15);

/// Ids of a few stacks: the stack, and the counts.
struct Program {
    ids: BTreeMap<u32, (usize, Counts, bool)>,
    addresses: Addresses,
    next: u32,
    start: Instant,
}

impl Program {
    fn new() -> Program {
        Program { ids: BTreeMap::new(), addresses: Addresses::default(), next: 2, start: Instant::now() }
    }

    fn allocate(&mut self, stack: usize, bytes: u64) {
        let open = self.ids.values_mut().find(|(of, _, is_open)| *of == stack && *is_open);
        let counts = match open {
            Some((_, counts, _)) => counts,
            None => {
                self.next += 1;
                &mut self.ids.entry(self.next).or_insert((stack, Counts::default(), true)).1
            }
        };
        counts.allocated_bytes += bytes;
        counts.allocated_blocks += 1;
    }

    /// Frees from the oldest id on.
    fn free(&mut self, stack: usize, mut bytes: u64) {
        for (_, counts, _) in self.ids.values_mut().filter(|(of, ..)| *of == stack) {
            let now = bytes.min(counts.live_bytes());
            counts.freed_bytes += now;
            if counts.live_bytes() == 0 {
                counts.freed_blocks = counts.allocated_blocks;
            }
            bytes -= now;
        }
    }

    fn raw(&mut self, second: u64) -> RawSnapshot {
        self.ids.retain(|_, (_, counts, is_open)| *is_open || counts.live_blocks() > 0);
        self.addresses.clear();
        let addresses = &mut self.addresses;
        let stacks: Vec<RawStack> = self
            .ids
            .iter()
            .map(|(&id, &(stack, counts, is_open))| RawStack {
                is_open,
                addresses: addresses.push_stack(&[stack, 77]),
                ..RawStack::sample(id, counts)
            })
            .collect();
        let taken = self.start + Duration::from_secs(second);
        RawSnapshot { addresses: self.addresses.clone(), ..RawSnapshot::sample(taken, stacks) }
    }

    fn renew(&mut self, ids: &[u32]) {
        ids.iter().for_each(|id| self.ids.get_mut(id).unwrap().2 = false);
    }

    fn ids_of(&self, stack: usize) -> usize {
        self.ids.values().filter(|(of, ..)| *of == stack).count()
    }
}

const LIMIT: u64 = 64 << 20;

#[test]
fn a_cache_gets_cohorts_of_half_a_percent_and_a_leak_and_small_stacks_none() {
    const LEAK: usize = 1;
    const CACHE: usize = 2;
    const SMALL: usize = 3;
    let (mut program, mut cohorts) = (Program::new(), Cohorts::new());
    let mut renewed_of_cache = 0;
    for look in 1..2_000_u64 {
        program.allocate(LEAK, 10_000);
        // Entries live for an hour.
        program.allocate(CACHE, 1_000_000);
        if look > 240 {
            program.free(CACHE, 1_000_000);
        }
        program.allocate(SMALL, 1_000);
        program.free(SMALL, 1_000);
        let raw = program.raw(15 * look);
        let chosen = cohorts.choose(&raw, SPACING, LIMIT);
        renewed_of_cache += chosen.iter().filter(|id| program.ids[id].0 == CACHE).count();
        program.renew(&chosen);
        assert_eq!((program.ids_of(LEAK), program.ids_of(SMALL)), (1, 1));
        if look > 600 {
            let widest = program
                .ids
                .values()
                .filter(|(of, ..)| *of == CACHE)
                .map(|(_, counts, _)| counts.allocated_bytes);
            // Half a percent of 240 MB, and a round more.
            assert!(widest.max().unwrap() <= 4_000_000);
            assert!((60..=250).contains(&program.ids_of(CACHE)), "{}", program.ids_of(CACHE));
        }
    }
    assert!(renewed_of_cache > 300, "{renewed_of_cache}");
}

/// One stack that turns over and leaks: its cohorts are never empty. A month, of which the looks are made at which a round is due.
#[test]
fn cohorts_that_leak_end_at_a_fixed_number() {
    const DAY: u64 = 86_400;
    let (mut program, mut cohorts, limit) = (Program::new(), Cohorts::new(), 4 << 20);
    let (mut held, mut second) = (Vec::new(), 0);
    while second < 30 * DAY {
        program.allocate(1, 2_000_000);
        // Half of what is allocated in a round is freed in the next one, all but ten bytes.
        for (_, counts, is_open) in program.ids.values_mut() {
            let left = if *is_open { counts.allocated_bytes / 2 } else { 10 };
            counts.freed_bytes = counts.allocated_bytes - left;
        }
        let raw = program.raw(second);
        let chosen = cohorts.choose(&raw, SPACING, limit);
        program.renew(&chosen);
        let ids = program.ids.len() as u64;
        let next = second + rarer(SPACING, ids, most_held(limit)).as_secs().next_multiple_of(15).max(15);
        if next / DAY > second / DAY {
            held.push(ids);
        }
        second = next;
    }
    println!("ids held at the end of each day: {held:?}");
    assert!(held[0] > 300 && held[held.len() - 1] < most_held(limit), "{held:?}");
    assert!(held[held.len() - 1] - held[held.len() / 2] < held[0] / 3, "{held:?}");
}

#[test]
fn rounds_become_rarer_by_what_is_held() {
    let of = |held| rarer(SPACING, held, 16_384).as_secs();
    assert_eq!((of(0), of(2_048), of(16_384), of(100_000)), (11, 37, 44_710, 44_710));
}
