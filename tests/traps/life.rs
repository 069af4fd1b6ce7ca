//! Gives the memory of stacks that have died back while others are born.

use crate::at_end::SetAtEnd;
use crate::random::Random;
use crate::reclaim::{fork, handler, live_shortly, read, read_stacks, sleep_and_work, spawn_signalled};
use crate::signals::set_handler;
use crate::{are_counted, inner, nothing_is_lost, of_function, on_path, say, trap};
use heapgauge::Collector;
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Block = Box<[u64; 3]>;

/// Allocates a block. Its number differs from that of other such functions, which a release build would make one of.
#[inline(never)]
fn keep(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 8; 3]))
}
const KEEP: &str = "traps::life::keep";

/// Returns the number that a variable of the environment asks for, else one for this build.
fn asked(variable: &str, debug: usize, release: usize) -> usize {
    let usual = if cfg!(debug_assertions) { debug } else { release };
    std::env::var(variable)
        .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// Ends the process at a panic, as other threads may wait for the one that panics.
fn end_at_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::abort();
    }));
}

/// Two threads.
const WORKERS: usize = 2;
/// Stacks that are alive at once, in both.
const ALIVE: usize = 1000;
/// New stacks between two checks.
const BATCH: usize = 20_000;

/// Ten million stacks, of which a thousand are alive at once: all are known, each check is exact, and memory does not grow.
#[test]
fn ten_million_stacks() {
    trap("life::ten_million_stacks", || {
        // A third of them has to fill three quarters of the room, where rounds begin.
        let all = asked("LIFE_STACKS", 600_000, 10_000_000).max(15 * BATCH);
        let (made, over, turn) = (AtomicUsize::new(0), AtomicBool::new(false), Barrier::new(WORKERS + 1));
        end_at_panic();
        let (mut early, mut most, mut checks) = (0, 0, 0u64);
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (made, over, turn) = (&made, &over, &turn);
                scope.spawn(move || {
                    let mut kept: VecDeque<Block> = VecDeque::with_capacity(ALIVE / WORKERS + 1);
                    let mut path = worker;
                    loop {
                        turn.wait();
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        for _ in 0..BATCH / WORKERS {
                            if kept.len() == ALIVE / WORKERS {
                                kept.pop_front();
                            }
                            kept.push_back(on_path(path, 24, &mut || keep(path)));
                            path += WORKERS;
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                        turn.wait();
                    }
                });
            }
            let before = Collector::new().collect();
            while made.load(Ordering::Relaxed) < all {
                turn.wait();
                turn.wait();

                let (made, memory) = (made.load(Ordering::Relaxed), heapgauge::tracker_memory());
                if made <= all / 3 {
                    early = memory.max(early);
                }
                most = memory.max(most);
                // Each from a collector of its own: one gives the same report again for a moment.
                let report = Collector::new().collect();
                let expected = (24 * ALIVE as u64, ALIVE as u64);
                assert_eq!(of_function(KEEP), expected, "after {made} stacks, {:?}", report.dropped);
                assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
                let allocations = report.allocations - before.allocations;
                assert!(allocations >= made as u64, "{allocations} allocations after {made} stacks");
                checks += 1;
            }
            over.store(true, Ordering::Relaxed);
            turn.wait();
        });
        assert_eq!(of_function(KEEP), (0, 0));
        let last = heapgauge::tracker_memory();
        say(format_args!(
            "{} stacks, {checks} checks: {} KiB in the first third, {} at most, {} at the end",
            made.into_inner(),
            early >> 10,
            most >> 10,
            last >> 10
        ));
        // Rounds begin where three quarters of the room are taken, and may have to wait.
        assert!(most < early + (10 << 20), "{early} bytes of tables in the first third, {most} later");
        nothing_is_lost();
    });
}

/// Milliseconds of an hour in the simulated service.
const HOUR: u64 = 40;

/// Serves an hour: a thread for each of some clients, on stacks that are those of the day, and of a part that stays. Some blocks
/// are kept for hours.
fn serve(hour: usize, sessions: &mut VecDeque<Vec<Block>>, made: &mut u64) {
    let day = hour / 24;
    for client in 0..4 {
        let serve = move || {
            let mut session = Vec::with_capacity(256);
            for request in 0..200 {
                // As of code that is loaded anew each day.
                drop(on_path((day << 10) + (hour * 7 + request * 5 + client) % 1024, 20, &mut || {
                    keep(request)
                }));
                let block = on_path(1 << 19 | request, 20, &mut || keep(request));
                if request % 8 == 0 {
                    session.push(block);
                }
            }
            session
        };
        sessions.push_back(std::thread::spawn(serve).join().unwrap());
        *made += 400;
    }
    // They are kept for nine hours.
    while sessions.len() > 36 {
        sessions.pop_front();
    }
}

/// Two weeks of a service whose code changes every day and whose threads come and go, an hour in 40 ms.
#[test]
fn two_weeks() {
    trap("life::two_weeks", || {
        end_at_panic();
        let days = asked("LIFE_DAYS", 3, 14).max(3);
        heapgauge::set_idle_time(HOUR);
        let (mut sessions, mut made) = (VecDeque::with_capacity(64), 0);
        let before = Collector::new().collect();
        let (mut early, mut most, mut by_day) = (0, 0, Vec::with_capacity(days));
        for hour in 0..days * 24 {
            // Mostly every block is recorded, at night one in 4 KiB.
            match hour % 24 {
                1 => heapgauge::set_sample_interval(4096).unwrap(),
                4 => heapgauge::set_sample_interval(0).unwrap(),
                _ => {}
            }
            serve(hour, &mut sessions, &mut made);
            std::thread::sleep(Duration::from_millis(HOUR));
            let report = Collector::new().collect();
            assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
            assert!(report.allocations - before.allocations >= made, "hour {hour}");
            if hour % 24 == 20 {
                let blocks = 25 * sessions.len() as u64;
                assert_eq!(of_function(KEEP), (24 * blocks, blocks), "hour {hour}");
            }
            let memory = heapgauge::tracker_memory();
            if hour < 48 {
                early = memory.max(early);
            }
            most = memory.max(most);
            if hour % 24 == 0 {
                by_day.push(memory >> 10);
            }
        }
        let hours = days * 24;
        say(format_args!(
            "{hours} hours, {made} blocks: {} KiB in the first two days, {} at most; by day {by_day:?}",
            early >> 10,
            most >> 10
        ));
        assert!(most < early + (1 << 20), "{early} bytes of tables in the first two days, {most} later");
        drop(sessions);
        nothing_is_lost();
    });
}

/// Counts in a forked child, where stacks die as well. Returns the number of the failed check.
fn child() -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(100) };
    heapgauge::set_sample_interval(0).unwrap();
    let live = || heapgauge::traced_memory().current;
    let before = live();
    let kept: Vec<_> = (0..300).map(|path| on_path(path | 1 << 12, 13, &mut || keep(path))).collect();
    for round in 0..20 {
        drop(on_path(round | 1 << 13, 14, &mut || keep(round)));
        heapgauge::look_for_dead_stacks();
    }
    if live() != before + (300 * 24 + kept.capacity() * size_of::<Block>()) as u64 {
        return 1;
    }
    drop(kept);
    if live() == before { 0 } else { 2 }
}

/// Works until the end on some hundred stacks, which are others after a while; some blocks are kept long.
fn work(worker: usize, over: &AtomicBool, events: &AtomicUsize) {
    let mut kept: VecDeque<Block> = VecDeque::with_capacity(512);
    let mut random = Random(worker as u64);
    for event in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        if kept.len() == 512 {
            kept.drain(..if event % 7 == 0 { 500 } else { 100 });
        }
        let path = (event >> 12 << 6) + random.below(200);
        kept.push_back(on_path(path, 16, &mut || keep(path)));
        events.fetch_add(1, Ordering::Relaxed);
    }
}

/// Stacks die all the time, while threads work, sleep, begin and exit, handlers allocate, processes fork, the sample interval
/// changes and other threads read.
#[test]
fn stacks_die_while_everything_goes_on() {
    trap("life::stacks_die_while_everything_goes_on", || {
        let _no_locks = inner::no_locks();
        set_handler(handler, libc::SIGUSR1, 0);
        heapgauge::set_idle_time(0);
        let (over, events) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (mut reads, mut forks, mut changes) = (0, 0, 0);
        std::thread::scope(|scope| {
            let _end = SetAtEnd(&over);
            let (over, events) = (&over, &events);
            spawn_signalled(scope, over, |worker| work(worker, over, events));
            scope.spawn(move || sleep_and_work(5, over));
            scope.spawn(|| live_shortly(over));
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end || forks < 3 {
                for _ in 0..100 {
                    read();
                    heapgauge::look_for_dead_stacks();
                }
                fork(child);
                (reads, forks) = (reads + 100, forks + 1);
                if forks % 4 == 0 {
                    changes += 1;
                    heapgauge::set_sample_interval([0, 512, 0, 100_000][changes % 4]).unwrap();
                }
            }
            read_stacks();
        });
        heapgauge::set_sample_interval(0).unwrap();
        heapgauge::clear_traces();
        are_counted(KEEP, keep);
        say(format_args!(
            "{} events, {reads} reads, {forks} forks, {changes} intervals",
            events.into_inner()
        ));
    });
}
