//! Scopes that come and go, and more of them than there is room for: bytes and blocks stay exact.

use crate::at_end::SetAtEnd;
use crate::scopes::{Held, KEEP, add, keep, read};
use crate::{nothing_is_lost, of_function, on_path, say, trap};
use heapgauge::{Collector, Scope, tracker_memory};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Returns the number that a variable of the environment asks for, else one for this build.
fn asked(variable: &str, debug: usize, release: usize) -> usize {
    let usual = if cfg!(debug_assertions) { debug } else { release };
    std::env::var(variable)
        .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// Values that are alive at once.
const ALIVE: usize = 100;

/// Ten million values over time, a hundred of them alive at once: each is counted exactly, memory does not grow, and none is
/// `[other]`. Beside a thread that reads all the time.
#[test]
fn ten_million_values() {
    trap("scope_life::ten_million_values", || {
        let all = asked("SCOPE_VALUES", 100_000, 10_000_000).max(50_000);
        let over = AtomicBool::new(false);
        let mut kept: VecDeque<Vec<u8>> = VecDeque::with_capacity(ALIVE + 1);
        let (mut early, mut most, mut checks) = (0, 0, 0);
        std::thread::scope(|threads| {
            let _end = SetAtEnd(&over);
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    black_box(Collector::new().collect());
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            for number in 0..all {
                let scope = Scope::new("tenant", number.to_string());
                if kept.len() == ALIVE {
                    kept.pop_front();
                }
                kept.push_back(scope.in_scope(|| keep(64)));
                if number % (all / 50) != all / 50 - 1 {
                    continue;
                }
                let memory = heapgauge::tracker_memory();
                if number <= all / 3 {
                    early = memory.max(early);
                }
                most = memory.max(most);
                let mut expected = Held::new();
                (number + 1 - ALIVE..=number)
                    .for_each(|tenant| add(&mut expected, &format!("tenant={tenant}"), KEEP, 64));
                let mut held = read();
                held.retain(|_, sum| sum.1 != 0);
                assert_eq!(held, expected, "after {number}");
                checks += 1;
            }
        });
        assert_eq!(of_function(KEEP), (64 * ALIVE as u64, ALIVE as u64));
        say(format_args!(
            "{all} values, {checks} checks: {} KiB in the first third, {} at most",
            early >> 10,
            most >> 10
        ));
        assert!(most < early + (2 << 20), "{early} bytes of tables in the first third, {most} later");
        drop(kept);
        nothing_is_lost();
    });
}

/// More combinations than there is room for: the rest are `[other]`, counted, and no byte is lost.
#[test]
fn more_combinations_than_fit() {
    trap("scope_life::more_combinations_than_fit", || {
        const TENANTS: usize = 5_000;
        const ROOM: usize = 4_096;
        let scopes: Vec<Scope> =
            (0..TENANTS).map(|tenant| Scope::new("tenant", tenant.to_string())).collect();
        let kept: Vec<_> = scopes.iter().map(|scope| scope.in_scope(|| keep(64))).collect();
        let held = read();
        let others = (TENANTS - ROOM) as u64;
        assert_eq!(held.get(&("tenant=[other]".to_owned(), KEEP)), Some(&(64 * others, others)));
        assert_eq!(held.len(), ROOM + 1);
        let dropped = Collector::new().collect().dropped;
        assert_eq!(dropped.scopes, others);
        assert_eq!((dropped.stacks, dropped.memory, dropped.threads, dropped.reentrant), (0, 0, 0, 0));
        assert_eq!(of_function(KEEP), (64 * TENANTS as u64, TENANTS as u64));
        // Once they are over there is room again.
        drop((scopes, kept));
        let acme = Scope::new("tenant", "acme");
        let kept = acme.in_scope(|| keep(64));
        assert_eq!(read().get(&("tenant=acme".to_owned(), KEEP)), Some(&(64, 1)));
        drop(kept);
    });
}

/// More pairs of stacks and scopes than there is memory for: the rest are of `[other]`, counted, and their stacks stay known.
#[test]
fn more_pairs_than_there_may_be() {
    trap("scope_life::more_pairs_than_there_may_be", || {
        const LIMIT: u64 = 8 << 20;
        const STACKS: usize = 512;
        const TENANTS: usize = 80;
        heapgauge::set_max_overhead(LIMIT).unwrap();
        let scopes: Vec<Scope> =
            (0..TENANTS).map(|tenant| Scope::new("tenant", tenant.to_string())).collect();
        let mut kept = Vec::with_capacity(STACKS * TENANTS);
        kept.extend((0..STACKS).map(|path| on_path(path, 9, &mut || keep(64))));
        for scope in &scopes {
            let _tenant = scope.enter();
            kept.extend((0..STACKS).map(|path| on_path(path, 9, &mut || keep(64))));
        }
        let blocks = (STACKS * (TENANTS + 1)) as u64;
        let held = read();
        let (others, without) =
            (held[&("tenant=[other]".to_owned(), KEEP)].1, held[&(String::new(), KEEP)].1);
        let dropped = Collector::new().collect().dropped;
        say(format_args!("{others} of {blocks} blocks in [other], {without} in none, {dropped:?}"));
        assert!(others > 1000 && without == STACKS as u64, "{others} {without}");
        assert_eq!(of_function("[unrecorded]"), (0, 0));
        assert!(dropped.scopes >= STACKS as u64, "{dropped:?}");
        assert_eq!(
            held.values().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1)),
            (64 * blocks, blocks)
        );
        assert_eq!(of_function(KEEP), (64 * blocks, blocks));
        assert!(tracker_memory() <= LIMIT);
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
    });
}

/// A stack in a scope takes as much memory as a stack.
#[test]
fn bytes_of_a_pair() {
    trap("scope_life::bytes_of_a_pair", || {
        const STACKS: usize = 256;
        const TENANTS: usize = 80;
        let scopes: Vec<Scope> =
            (0..TENANTS).map(|tenant| Scope::new("tenant", tenant.to_string())).collect();
        let grown_by = |run: &dyn Fn()| {
            let before = tracker_memory();
            run();
            tracker_memory() - before
        };
        // Tables grow by steps: each kind has the same number of stacks, from an empty process.
        let in_scopes = grown_by(&|| {
            for scope in &scopes {
                scope.in_scope(|| {
                    (0..STACKS).for_each(|path| std::mem::forget(on_path(path, 9, &mut || keep(64))))
                });
            }
        });
        let in_none = grown_by(&|| {
            (0..STACKS * TENANTS).for_each(|path| std::mem::forget(on_path(path, 15, &mut || keep(64))));
        });
        let each = |bytes: u64| bytes / (STACKS * TENANTS) as u64;
        say(format_args!(
            "a stack in a scope takes {} bytes, one in none {}",
            each(in_scopes),
            each(in_none)
        ));
        assert!(each(in_scopes) <= each(in_none) + 16);
    });
}
