//! Renews the ids of stacks while blocks come and go: no block is lost, and no block comes to an id that was renewed.

use crate::at_end::SetAtEnd;
use crate::random::Random;
use crate::reclaim::{fork, handler, live_shortly, read, read_stacks, sleep_and_work, spawn_signalled};
use crate::signals::set_handler;
use crate::{inner, nothing_is_lost, of_function, on_path, say, trap};
use heapgauge::{Scope, StackById};
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

type Block = Box<[u64; 3]>;

#[inline(never)]
fn keep(number: usize) -> Block {
    black_box(Box::new([number as u64; 3]))
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
            for step in 0..4 {
                match step {
                    0 => keep_all(&mut kept, 100),
                    1 => kept.truncate(60),
                    2 => keep_all(&mut kept, 10),
                    _ => kept.clear(),
                }
                done.send(()).unwrap();
                begun.recv().unwrap();
            }
        });
        let steps: [(&[_], _); 4] = [
            (&[(100, 0, true)], (2_400, 100)),
            // It frees before it learns of the renewals: at the id of the block.
            (&[(100, 40, false)], (1_440, 60)),
            (&[(100, 40, false), (10, 0, true)], (1_680, 70)),
            (&[(10, 10, false)], (0, 0)),
        ];
        for (step, (ids, live)) in steps.into_iter().enumerate() {
            is_done.recv().unwrap();
            if step == 3 {
                // The second id is renewed before its blocks are freed; neither has a block any more.
                assert!(blocks_by_id().iter().all(|(allocated, freed, _)| allocated == freed));
            } else {
                assert_eq!(blocks_by_id(), ids, "step {step}");
            }
            assert_eq!(of_function(KEEP), live, "step {step}");
            renew();
            heapgauge::renew_stacks(|_| true);
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
        for cohort in 1..=6 {
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
        keep_all(&mut kept, 50);
        renew();
        fork(child);
        assert_eq!(blocks_by_id(), [(50, 0, false)]);
        keep_all(&mut kept, 7);
        assert_eq!(blocks_by_id(), [(50, 0, false), (7, 0, true)]);
        fork(child);
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
    });
}

#[test]
fn a_clear_or_a_stop_ends_renewed_ids() {
    trap("ages::a_clear_or_a_stop_ends_renewed_ids", || {
        let mut kept = Vec::with_capacity(200);
        keep_all(&mut kept, 50);
        renew();
        heapgauge::clear_traces();
        assert_eq!(blocks_by_id(), []);
        keep_all(&mut kept, 5);
        assert_eq!(blocks_by_id(), [(5, 0, true)]);
        renew();
        keep_all(&mut kept, 6);
        kept.drain(..52);
        assert_eq!(blocks_by_id(), [(5, 2, false), (6, 0, true)]);
        heapgauge::stop();
        assert_eq!(heapgauge::renew_stacks(|_| true), 0);
        heapgauge::start(32).unwrap();
        keep_all(&mut kept, 8);
        assert_eq!(blocks_by_id(), [(8, 0, true)]);
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
        keep_all(&mut kept, 3_000);
        let before = ids_of(KEEP);
        assert_eq!(before.len(), 1);
        renew();
        keep_all(&mut kept, 3_000);
        let after = ids_of(KEEP);
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
        grow(&mut block, 100);
        renew();
        grow(&mut block, 120);
        grown(&[(100, 100, false), (120, 0, true)]);
        renew();
        let paused = heapgauge::pause();
        grow(&mut block, 150);
        drop(paused);
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
        for (round, tenant) in ["acme", "globex", "acme", "globex"].into_iter().enumerate() {
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
        for _ in 0..2 {
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

/// Works until the end on some hundred stacks; some blocks are kept long.
fn work(worker: usize, over: &AtomicBool, events: &AtomicUsize) {
    let mut kept: VecDeque<Block> = VecDeque::with_capacity(512);
    let mut random = Random(worker as u64);
    while !over.load(Ordering::Relaxed) {
        if kept.len() == 512 {
            kept.drain(..if random.below(7) == 0 { 500 } else { 100 });
        }
        let path = random.below(300);
        kept.push_back(on_path(path, 16, &mut || keep(path)));
        events.fetch_add(1, Ordering::Relaxed);
    }
}

/// Renews some ids until the end. Returns how many were.
fn renew_until(over: &AtomicBool) -> usize {
    let (mut renewed, mut random) = (0, Random(7));
    while !over.load(Ordering::Relaxed) {
        let one_in = 1 + random.below(8);
        renewed += heapgauge::renew_stacks(|_| random.below(one_in) == 0);
        std::thread::sleep(Duration::from_micros(random.below(3_000) as u64));
    }
    renewed
}

/// Renews ids in a forked child whose parent's threads were in the middle of anything. Returns the number of the failed check.
fn child_of_many() -> i32 {
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(100) };
    heapgauge::set_sample_interval(0).unwrap();
    let live = || heapgauge::traced_memory().current;
    let mut kept = Vec::with_capacity(900);
    let before = live();
    for round in 1..=3 {
        kept.extend((0..300).map(|path| on_path(path, 10, &mut || keep(path))));
        heapgauge::renew_stacks(|_| true);
        if live() != before + 24 * 300 * round {
            return 1;
        }
    }
    kept.clear();
    if live() == before { 0 } else { 2 }
}

/// Ids are renewed all the time, while threads work, sleep, begin and exit, handlers allocate, processes fork, the sample interval
/// changes, ids end with their epoch and other threads read.
#[test]
fn ids_are_renewed_while_everything_goes_on() {
    trap("ages::ids_are_renewed_while_everything_goes_on", || {
        let _no_locks = inner::no_locks();
        set_handler(handler, libc::SIGUSR1, 0);
        let (over, events, renewed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let (mut reads, mut forks) = (0, 0);
        std::thread::scope(|scope| {
            let _end = SetAtEnd(&over);
            let (over, events, renewed) = (&over, &events, &renewed);
            spawn_signalled(scope, over, |worker| work(worker, over, events));
            scope.spawn(move || sleep_and_work(5, over));
            scope.spawn(|| live_shortly(over));
            scope.spawn(|| renewed.store(renew_until(over), Ordering::Relaxed));
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end || forks < 3 {
                (0..100).for_each(|_| read());
                fork(child_of_many);
                (reads, forks) = (reads + 100, forks + 1);
                match forks % 8 {
                    2 => heapgauge::set_sample_interval(512).unwrap(),
                    4 => heapgauge::set_sample_interval(0).unwrap(),
                    6 => heapgauge::clear_traces(),
                    _ => {}
                }
            }
            read_stacks();
        });
        heapgauge::set_sample_interval(0).unwrap();
        heapgauge::clear_traces();
        let kept: Vec<_> = (0..300).map(|number| on_path(number, 4, &mut || keep(number))).collect();
        assert_eq!(of_function(KEEP), (24 * 300, 300));
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
        let renewed = renewed.into_inner();
        assert!(renewed > 1_000, "{renewed} renewed");
        say(format_args!("{} events, {reads} reads, {forks} forks, {renewed} renewals", events.into_inner()));
    });
}
