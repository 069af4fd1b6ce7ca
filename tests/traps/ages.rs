//! Renews the ids of stacks while blocks come and go: no block is lost, and no block comes to an id that was renewed.

mod load;

use crate::reclaim::fork;
use crate::{nothing_is_lost, of_function, on_path, say, trap};
use heapgauge::{Scope, StackById};
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::sync::mpsc::channel;

type Block = Box<[u64; 3]>;

/// Allocates a block. Its number differs from that of other such functions, which a release build would make one of.
#[inline(never)]
fn keep(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 9; 3]))
}
const KEEP: &str = "traps::ages::keep";

/// Keeps so many blocks of one stack.
#[inline(never)]
fn keep_all(blocks: &mut Vec<Block>, count: usize) {
    for number in 0..count {
        blocks.push(keep(number));
    }
}

/// Returns the ids of the stacks of a function, the oldest first.
fn ids_of(function: &str) -> Vec<StackById> {
    heapgauge::stacks_by_id(&mut HashMap::new())
        .into_iter()
        .filter(|stack| *stack.function == *function)
        .collect()
}

/// Returns blocks allocated and freed of each id of [`keep`], and whether it is open.
fn blocks_by_id() -> Vec<(u64, u64, bool)> {
    let of_id = |stack: StackById| {
        assert_eq!(stack.allocated_bytes, 24 * stack.allocated_blocks);
        assert_eq!(stack.freed_bytes, 24 * stack.freed_blocks);
        (stack.allocated_blocks, stack.freed_blocks, stack.is_open)
    };
    ids_of(KEEP).into_iter().map(of_id).collect()
}

/// Renews all ids that are open.
#[track_caller]
fn renew() {
    assert!(heapgauge::renew_stacks(|_| true) > 0, "nothing was renewed");
}

/// The thread has the id in its caches, and sleeps through two renewals.
#[test]
fn a_thread_sleeps_through_renewals() {
    trap("ages::a_thread_sleeps_through_renewals", || {
        let ((go, begun), (done, is_done)) = (channel::<()>(), channel::<()>());
        let sleeper = std::thread::spawn(move || {
            let mut kept = Vec::with_capacity(200);
            // From one line: blocks kept, and blocks left then.
            for (more, left) in black_box([(100, 100), (0, 60), (10, 70), (0, 0)]) {
                keep_all(&mut kept, more);
                kept.truncate(left);
                done.send(()).unwrap();
                begun.recv().unwrap();
            }
        });
        let steps: [(&[_], _); 4] = [
            (&[(100, 0, true)], (2_400, 100)),
            // It frees before it learns of the renewals: at the id of the block.
            (&[(100, 40, false)], (1_440, 60)),
            (&[(100, 40, false), (10, 0, true)], (1_680, 70)),
            (&[(100, 100, false), (10, 10, false)], (0, 0)),
        ];
        for (step, (ids, live)) in steps.into_iter().enumerate() {
            is_done.recv().unwrap();
            assert_eq!(blocks_by_id(), ids, "step {step}");
            assert_eq!(of_function(KEEP), live, "step {step}");
            for _ in 0..2 {
                heapgauge::renew_stacks(|_| true);
            }
            go.send(()).unwrap();
        }
        sleeper.join().unwrap();
        nothing_is_lost();
    });
}

/// Each cohort of a stack is exact, whatever order its blocks are freed in.
#[test]
fn cohorts_of_one_stack() {
    trap("ages::cohorts_of_one_stack", || {
        let mut kept = Vec::with_capacity(200);
        // From one line, here and below: else the stacks differ.
        for cohort in 1..=black_box(6) {
            keep_all(&mut kept, 10 * cohort);
            renew();
        }
        let all: Vec<_> = (1..=6).map(|cohort| (10 * cohort, 0, false)).collect();
        assert_eq!(blocks_by_id(), all);
        assert_eq!(of_function(KEEP), (24 * 210, 210));
        // Each third one, of all cohorts, in another thread.
        let (freed, mut kept): (Vec<_>, Vec<_>) =
            kept.into_iter().enumerate().partition(|(number, _)| number % 3 == 0);
        std::thread::spawn(|| drop(freed)).join().unwrap();
        let freed = [4, 6, 10, 14, 16, 20];
        let part: Vec<_> = all.iter().zip(freed).map(|(all, freed)| (all.0, freed, false)).collect();
        assert_eq!(blocks_by_id(), part);
        kept.clear();
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
    });
}

/// Blocks of ids that are given back stay in the counts of their stacks, in exact and in sampled ones, and memory stays.
#[test]
fn counts_are_carried_to_the_latest_id() {
    trap("ages::counts_are_carried_to_the_latest_id", || {
        const STACKS: usize = 300;
        let rounds = if cfg!(debug_assertions) { 90 } else { 1_500 };
        let mut kept: VecDeque<Block> = VecDeque::with_capacity(4 * STACKS);
        let (mut most, mut early) = (0, 0);
        for round in 1..=rounds {
            if kept.len() == 3 * STACKS {
                kept.drain(..STACKS);
            }
            kept.extend((0..STACKS).map(|path| on_path(path, 9, &mut || keep(path))));
            renew();
            let ids = ids_of(KEEP);
            let sum = |of: fn(&StackById) -> u64| ids.iter().map(of).sum::<u64>();
            let (blocks, bytes) = (
                sum(|id| id.allocated_blocks + id.carried_blocks),
                sum(|id| id.allocated_bytes + id.carried_bytes),
            );
            let all = (round * STACKS) as u64;
            assert_eq!((blocks, bytes), (all, 24 * all), "round {round}");
            assert_eq!(sum(|id| id.allocated_blocks - id.freed_blocks), kept.len() as u64);
            most = most.max(ids.len());
            if round == rounds / 3 {
                early = heapgauge::tracker_memory();
            }
        }
        assert_eq!(of_function(KEEP), (24 * kept.len() as u64, kept.len() as u64));
        let traces = heapgauge::Snapshot::take().unwrap();
        let is_kept = |trace: &&heapgauge::Trace| {
            trace.traceback.frames().next().is_some_and(|frame| frame.function() == Some(KEEP))
        };
        assert_eq!(traces.traces().iter().filter(is_kept).count(), STACKS, "each stack is one trace");
        drop(traces);
        let late = heapgauge::tracker_memory();
        say(format_args!(
            "{rounds} renewals of {STACKS} stacks: {most} ids at once at most, {} and {} KiB",
            early >> 10,
            late >> 10
        ));
        assert!(most <= 16 * STACKS, "{most} ids at once");
        assert!(late < early + (256 << 10), "{early} bytes of tables after a third, {late} at the end");
        kept.clear();
        assert_eq!(of_function(KEEP), (0, 0));

        heapgauge::set_sample_interval(64).unwrap();
        let sampled = |allocated: bool| -> u64 {
            let of = |id: &StackById| {
                if allocated { id.allocated_bytes + id.carried_bytes } else { id.allocated_bytes }
            };
            ids_of(KEEP).iter().map(of).sum()
        };
        let before = sampled(true);
        for _ in 0..100 {
            (0..STACKS).for_each(|path| drop(on_path(path, 10, &mut || keep(path))));
            renew();
        }
        let (with, without) = (sampled(true) - before, sampled(false));
        let estimate = with as f64 / (24 * 100 * STACKS) as f64;
        assert!(
            (0.9..1.1).contains(&estimate),
            "{with} bytes with those that were carried, {without} without"
        );
        heapgauge::set_sample_interval(0).unwrap();
        nothing_is_lost();
    });
}

/// Allocates and frees in a forked child, which renews ids as well. Returns the number of the failed check.
fn child() -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(100) };
    let mut kept = Vec::with_capacity(200);
    let before = of_function(KEEP).1;
    keep_all(&mut kept, 20);
    // Another thread may have had an id renewed just before the fork, and none is open.
    heapgauge::renew_stacks(|_| true);
    keep_all(&mut kept, 30);
    let open: u64 = ids_of(KEEP).iter().filter(|id| id.is_open).map(|id| id.allocated_blocks).sum();
    if open != 30 {
        return 2;
    }
    drop(kept);
    if of_function(KEEP).1 == before { 0 } else { 3 }
}

#[test]
fn ids_are_renewed_across_a_fork() {
    trap("ages::ids_are_renewed_across_a_fork", || {
        let mut kept = Vec::with_capacity(200);
        let mut expected = Vec::new();
        for count in black_box([50, 7, 9]) {
            keep_all(&mut kept, count);
            expected.push((count as u64, 0, true));
            assert_eq!(blocks_by_id(), expected);
            fork(child);
            assert_eq!(blocks_by_id(), expected);
            renew();
            expected.last_mut().unwrap().2 = false;
            fork(child);
        }
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
    });
}

#[test]
fn a_clear_or_a_stop_ends_renewed_ids() {
    trap("ages::a_clear_or_a_stop_ends_renewed_ids", || {
        let mut kept = Vec::with_capacity(200);
        for step in 0..black_box(4) {
            keep_all(&mut kept, 5 + step);
            match step {
                0 => {
                    assert_eq!(blocks_by_id(), [(5, 0, true)]);
                    renew();
                    heapgauge::clear_traces();
                    assert_eq!(blocks_by_id(), []);
                }
                1 => {
                    assert_eq!(blocks_by_id(), [(6, 0, true)]);
                    renew();
                }
                2 => {
                    kept.drain(..7);
                    assert_eq!(blocks_by_id(), [(6, 2, false), (7, 0, true)]);
                    heapgauge::stop();
                    assert_eq!(heapgauge::renew_stacks(|_| true), 0);
                    heapgauge::start(32).unwrap();
                }
                _ => assert_eq!(blocks_by_id(), [(8, 0, true)]),
            }
        }
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
    });
}

/// The four ids of a sampled stack are renewed as one.
#[test]
fn sampled_stacks_are_renewed() {
    trap("ages::sampled_stacks_are_renewed", || {
        heapgauge::set_sample_interval(64).unwrap();
        let mut kept = Vec::with_capacity(9_000);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for _ in 0..black_box(2) {
            keep_all(&mut kept, 3_000);
            before = std::mem::replace(&mut after, ids_of(KEEP));
            heapgauge::renew_stacks(|_| before.is_empty());
        }
        assert_eq!(before.iter().map(|id| id.is_open).collect::<Vec<_>>(), [true]);
        assert_eq!(after.iter().map(|id| id.is_open).collect::<Vec<_>>(), [false, true]);
        assert_eq!(after[0].allocated_bytes, before[0].allocated_bytes);
        for id in &after {
            let estimate = id.allocated_bytes as f64 / 72_000.0;
            assert!((0.8..1.2).contains(&estimate), "{id:?}");
        }
        kept.drain(..3_000);
        let after = ids_of(KEEP);
        assert!(after.iter().all(|id| id.is_open || id.freed_bytes == id.allocated_bytes), "{after:?}");
        drop(kept);
        heapgauge::set_sample_interval(0).unwrap();
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
    });
}

/// A resize begins a new age: at an id of its own stack, also where the block stays in place. A paused thread leaves a block
/// at the renewed id.
#[test]
fn resized_blocks() {
    trap("ages::resized_blocks", || {
        #[inline(never)]
        fn grow(block: &mut Vec<u8>, by: usize) {
            block.reserve_exact(by);
            black_box(block);
        }
        const GROW: &str = "traps::ages::resized_blocks::grow";
        let grown = |expected: &[(u64, u64, bool)]| {
            let ids: Vec<_> =
                ids_of(GROW).iter().map(|id| (id.allocated_bytes, id.freed_bytes, id.is_open)).collect();
            assert_eq!(ids, expected);
        };
        let mut block = Vec::new();
        for (step, by) in black_box([100, 120, 150]).into_iter().enumerate() {
            let paused = (step == 2).then(heapgauge::pause);
            grow(&mut block, by);
            drop(paused);
            match step {
                0 => grown(&[(100, 0, true)]),
                1 => grown(&[(100, 100, false), (120, 0, true)]),
                _ => {}
            }
            heapgauge::renew_stacks(|_| step < 2);
        }
        let ids = ids_of(GROW);
        let last = ids.last().unwrap();
        assert_eq!((last.allocated_bytes, last.freed_bytes, last.is_open), (270, 120, false));
        assert_eq!(of_function(GROW), (150, 1));
        drop(block);
        assert_eq!(of_function(GROW), (0, 0));
        nothing_is_lost();
    });
}

#[test]
fn stacks_in_scopes_are_renewed() {
    trap("ages::stacks_in_scopes_are_renewed", || {
        let mut kept = Vec::with_capacity(300);
        for (round, tenant) in black_box(["acme", "globex", "acme", "globex"]).into_iter().enumerate() {
            let scope = Scope::new("tenant", tenant);
            let _in_scope = scope.enter();
            keep_all(&mut kept, 10 + round);
            renew();
        }
        assert_eq!(blocks_by_id(), [(10, 0, false), (11, 0, false), (12, 0, false), (13, 0, false)],);
        let of = |tenant: &str| -> u64 {
            let snapshot = heapgauge::Snapshot::take().unwrap();
            let traces = snapshot.traces().iter().filter(|trace| trace.scope.get("tenant") == Some(tenant));
            traces.map(|trace| trace.count).sum()
        };
        assert_eq!((of("acme"), of("globex")), (22, 24));
        drop(kept);
        assert_eq!((of("acme"), of("globex")), (0, 0));
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
    });
}

/// Renewed ids open again where there is no room for new ones when their stacks are met.
#[test]
fn there_is_no_room_for_new_ids() {
    trap("ages::there_is_no_room_for_new_ids", || {
        const STACKS: usize = 256;
        const UNRECORDED: &str = "[unrecorded]";
        #[inline(never)]
        fn other(number: usize) -> Block {
            black_box(Box::new([number as u64 ^ 5; 3]))
        }
        heapgauge::set_max_overhead(8 << 20).unwrap();
        let mut kept: Vec<Block> = Vec::with_capacity(1 << 17);
        let (mut others, mut lost) = (0, (0, 0));
        for round in 1..=3 {
            // From one line: the stacks of a round are those of the others.
            let meet = || (0..STACKS).map(|path| on_path(path, 8, &mut || keep(path))).collect();
            let met: Vec<Block> = std::thread::spawn(meet).join().unwrap();
            kept.extend(met);
            if round == 1 {
                renew();
                while others < 1 << 17 && lost.1 == 0 {
                    kept.extend((others..others + 1_024).map(|path| on_path(path, 17, &mut || other(path))));
                    others += 1_024;
                    lost = of_function(UNRECORDED);
                }
                assert!(lost.1 > 0, "there is still room after {others} stacks");
                assert_eq!(heapgauge::renew_stacks(|_| true), 0, "ids are renewed where room is short");
            }
            assert_eq!(of_function(UNRECORDED), lost, "a renewal has lost blocks");
            let ids = blocks_by_id();
            assert_eq!(ids.len(), STACKS);
            assert!(ids.iter().all(|id| *id == (round, 0, round > 1)), "round {round}: {ids:?}");
        }
        drop(kept);
        assert_eq!((of_function(KEEP), of_function(UNRECORDED)), ((0, 0), (0, 0)));
        say(format_args!("{others} stacks filled 8 MiB, {} blocks without a known place", lost.1));
    });
}

#[test]
fn nothing_is_renewed_where_nothing_is_given_back() {
    trap("ages::nothing_is_renewed_where_nothing_is_given_back", || {
        let mut kept = Vec::with_capacity(10);
        heapgauge::set_reclaims(false);
        for _ in 0..black_box(2) {
            keep_all(&mut kept, 5);
            assert_eq!(heapgauge::renew_stacks(|_| true), 0);
        }
        assert_eq!(blocks_by_id(), [(10, 0, true)]);
        heapgauge::set_reclaims(true);
        renew();
        assert_eq!(blocks_by_id(), [(10, 0, false)]);
        drop(kept);
        nothing_is_lost();
    });
}
