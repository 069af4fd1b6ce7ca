//! Renews ids under load, for long, and measures what that takes.

use super::{Block, KEEP, keep, renew};
use crate::at_end::SetAtEnd;
use crate::random::Random;
use crate::reclaim::{fork, handler, live_shortly, read, read_stacks, sleep_and_work, spawn_signalled};
use crate::signals::set_handler;
use crate::{are_counted, inner, nothing_is_lost, of_function, on_path, say, trap};
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
    trap("ages::load::ids_are_renewed_while_everything_goes_on", || {
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
        are_counted(KEEP, keep);
        let renewed = renewed.into_inner();
        assert!(renewed > 1_000, "{renewed} renewed");
        say(format_args!("{} events, {reads} reads, {forks} forks, {renewed} renewals", events.into_inner()));
    });
}

#[inline(never)]
fn leak(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 3; 3]))
}
const LEAK: &str = "traps::ages::load::leak";

/// Renews ids for as many rounds as a month has of 15 s (`AGES_ROUNDS=175000`): of stacks that turn over each time, of stacks that
/// leak as often as a reader that lets old ids be rarer the more there are. Memory stays.
#[test]
fn a_month_of_renewals() {
    trap("ages::load::a_month_of_renewals", || {
        const STACKS: usize = 512;
        let usual = if cfg!(debug_assertions) { 80 } else { 10_000 };
        let rounds =
            std::env::var("AGES_ROUNDS").map_or(usual, |text| text.parse().expect("AGES_ROUNDS is a number"));
        let mut leaked: Vec<Block> = Vec::with_capacity(2 * rounds);
        let mut kept: VecDeque<Block> = VecDeque::with_capacity(3 * STACKS);
        let mut functions = HashMap::new();
        let (mut early, mut most, mut next, mut ids) = (0, 0, 1, 0);
        let mut leaking: Vec<u32> = Vec::new();
        for round in 1..=rounds {
            kept.drain(..kept.len().saturating_sub(2 * STACKS));
            for path in 0..STACKS {
                // Two stacks leak, and have their ids among the others.
                match path % 256 {
                    255 => leaked.push(on_path(path, 10, &mut || leak(path))),
                    _ => kept.push_back(on_path(path, 10, &mut || keep(path))),
                }
            }
            if leaking.is_empty() {
                functions.clear();
                let stacks = heapgauge::stacks_by_id(&mut functions);
                ids = stacks.len();
                let open = stacks.into_iter().filter(|stack| stack.is_open && *stack.function == *LEAK);
                leaking.extend(open.map(|stack| stack.id));
            }
            if round >= next {
                renew();
                leaking.clear();
                next = round + 1 + round / 16;
            } else {
                let mut number = round % 4;
                heapgauge::renew_stacks(|id| {
                    number += 1;
                    number % 4 == 0 && !leaking.contains(&id)
                });
            }
            most = heapgauge::tracker_memory().max(most);
            if round == rounds / 4 {
                early = most;
            }
        }
        let live = (leaked.len() + kept.len()) as u64;
        assert_eq!(of_function(KEEP).1 + of_function(LEAK).1, live);
        say(format_args!(
            "{rounds} rounds, {} blocks leaked: {} KiB in the first quarter, {} at most, {ids} ids at the end",
            leaked.len(),
            early >> 10,
            most >> 10
        ));
        assert!(most < early + (2 << 20), "{early} bytes of tables in the first quarter, {most} later");
        drop((leaked, kept));
        assert_eq!((of_function(KEEP), of_function(LEAK)), ((0, 0), (0, 0)));
        nothing_is_lost();
    });
}

/// Returns the time of the calling thread on a processor.
fn processor_time() -> Duration {
    // SAFETY: zeroes are a time.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a place to write to.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Measures what a renewal of 256 of 20,000 stacks, every 15 s, costs a thread that has met all of them.
#[test]
fn a_renewal_of_256_of_20_000_stacks() {
    trap("ages::load::a_renewal_of_256_of_20_000_stacks", || {
        const STACKS: usize = 20_000;
        let mut kept: Vec<Block> = Vec::with_capacity(4 * STACKS);
        let mut took = Vec::new();
        let mut renewed = 0;
        for round in 0..black_box(9) {
            let begin = processor_time();
            for path in 0..STACKS {
                kept.push(on_path(path, 15, &mut || keep(path)));
            }
            took.push(processor_time() - begin);
            kept.clear();
            // In every other round from the third on: the stacks are known then.
            if round % 2 == 0 && round > 1 {
                let mut number = 0;
                renewed = heapgauge::renew_stacks(|_| {
                    number += 1;
                    number % 78 == 0
                });
            }
        }
        let median = |rounds: &[usize]| {
            let mut times: Vec<Duration> = rounds.iter().map(|round| took[*round]).collect();
            times.sort();
            times[times.len() / 2]
        };
        let (without, with) = (median(&[2, 4, 6, 8]), median(&[3, 5, 7]));
        let more = with.saturating_sub(without);
        say(format_args!(
            "{renewed} of {STACKS} stacks renewed: {with:?} for one block of each, {without:?} without"
        ));
        assert!((200..320).contains(&renewed), "{renewed}");
        // One hundredth of 15 s of a thread that does nothing but allocate.
        assert!(more < Duration::from_millis(150), "a renewal takes {more:?}");
        nothing_is_lost();
    });
}
