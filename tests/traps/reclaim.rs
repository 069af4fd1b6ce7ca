//! Gives the memory of ids that are over back while blocks come and go.

use crate::at_end::SetAtEnd;
use crate::signals::set_handler;
use crate::{are_counted, inner, nothing_is_lost, on_path, say, trap};
use heapgauge::{Collector, Snapshot};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread::Scope;
use std::time::{Duration, Instant};

type Block = Box<[u64; 3]>;

#[inline(never)]
fn keep(number: usize) -> Block {
    black_box(Box::new([number as u64; 3]))
}
const KEEP: &str = "traps::reclaim::keep";

/// Allocates and frees on some dozens of stacks until the test is over; some blocks outlive a clear.
fn work(worker: usize, over: &AtomicBool, events: &AtomicU64) {
    let mut kept: Vec<Block> = Vec::with_capacity(64);
    let mut number = worker;
    while !over.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        if kept.len() == 64 {
            kept.drain(16..);
        }
        kept.push(on_path(number >> 40, 4, &mut || keep(number)));
        events.fetch_add(1, Ordering::Relaxed);
    }
}

/// Clears all the time while four threads work: each clear ends ids, and their memory is used again. How much of it waits depends on
/// how long a thread lies in the middle of an event without a processor; where all threads rest now and then, it is none.
#[test]
fn clears_without_end() {
    trap("reclaim::clears_without_end", || {
        const PARTS: u64 = 20;
        let clears: u64 = std::env::var("RECLAIM_CLEARS").map_or_else(
            |_| if cfg!(debug_assertions) { 20_000 } else { 1_000_000 },
            |text| text.parse().expect("RECLAIM_CLEARS is a number"),
        );
        let (rests, over, events) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        let turn = Barrier::new(5);
        let (mut at_rest, mut most) = (Vec::new(), 0);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (rests, over, events, turn) = (&rests, &over, &events, &turn);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        work(worker, rests, events);
                        turn.wait();
                        turn.wait();
                    }
                });
            }
            for part in 1..=PARTS {
                for round in 0..clears / PARTS {
                    heapgauge::clear_traces();
                    if round % 100 == 0 {
                        most = heapgauge::tracker_memory().max(most);
                    }
                }
                rests.store(true, Ordering::Relaxed);
                turn.wait();
                heapgauge::clear_traces();
                at_rest.push(heapgauge::tracker_memory());
                rests.store(false, Ordering::Relaxed);
                over.store(part == PARTS, Ordering::Relaxed);
                turn.wait();
            }
        });
        heapgauge::clear_traces();
        let last = heapgauge::tracker_memory();
        say(format_args!(
            "{clears} clears, {} events: {most} bytes at most, {at_rest:?} at rest, {last} at the end",
            events.into_inner(),
        ));
        let flat = at_rest[0] + (256 << 10);
        assert!(
            at_rest.iter().all(|memory| *memory < flat) && last < flat,
            "{at_rest:?} bytes of tables, {last} at the end"
        );
        are_counted(KEEP, keep);
        nothing_is_lost();
    });
}

/// More than all threads can hold at once: a negative number that wrapped around is far above.
const MOST: u64 = 64 << 20;

/// Checks that no total is negative.
pub(crate) fn read() {
    let memory = heapgauge::traced_memory();
    assert!(memory.current <= MOST && memory.peak <= MOST, "{memory:?}");
}

/// Checks that no figure of a stack is negative.
pub(crate) fn read_stacks() {
    if let Ok(snapshot) = Snapshot::take() {
        assert!(snapshot.traces().iter().all(|trace| trace.size <= MOST && trace.count <= MOST));
    }
    let report = Collector::new().collect();
    assert!(report.allocated_bytes >= report.deallocated_bytes, "{report:#?}");
    assert!(report.allocations >= report.deallocations, "{report:#?}");
}

/// Ends ids in a forked child, and counts in it. Returns the number of the failed check.
fn child() -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(100) };
    heapgauge::set_sample_interval(0).unwrap();
    heapgauge::start(20).unwrap();
    for _ in 0..200 {
        heapgauge::clear_traces();
    }
    let live = || heapgauge::traced_memory().current;
    let before = live();
    let kept: Vec<_> = (0..300).map(|number| on_path(number, 4, &mut || keep(number))).collect();
    if live() != before + (300 * 24 + kept.capacity() * size_of::<Block>()) as u64 {
        return 1;
    }
    drop(kept);
    if live() == before { 0 } else { 2 }
}

/// Forks, and waits for the child.
pub(crate) fn fork(child: fn() -> i32) {
    // SAFETY: the child does what this test is about, and then leaves at once.
    let process = unsafe { libc::fork() };
    assert!(process >= 0, "fork");
    if process == 0 {
        let status = std::panic::catch_unwind(child).unwrap_or(9);
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    let mut status = -1;
    // SAFETY: a place to write to.
    assert_eq!(unsafe { libc::waitpid(process, &raw mut status, 0) }, process);
    assert_eq!(status, 0, "the failed check of a child, in the upper byte");
}

/// Allocates from the handler of a signal: blocks that it frees at once.
pub(crate) extern "C" fn handler(_signal: libc::c_int) {
    drop(keep(7));
}

/// Works until the end, and sleeps now and then longer than a clear takes, with blocks and stacks from before it.
pub(crate) fn sleep_and_work(worker: usize, over: &AtomicBool) {
    let mut kept = Vec::with_capacity(40);
    while !over.load(Ordering::Relaxed) {
        kept.extend((0..20).map(|path| on_path(path + worker, 4, &mut || keep(path))));
        std::thread::sleep(Duration::from_millis(7));
        kept.truncate(10);
    }
}

/// Lets threads live for moments, which adopt each other's states, until the end.
pub(crate) fn live_shortly(over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let blocks =
            std::thread::spawn(|| (0..10).map(|path| on_path(path, 4, &mut || keep(path))).collect());
        let blocks: Vec<Block> = blocks.join().unwrap();
        drop(blocks);
    }
}

/// Ends ids in every way there is, until the end.
fn end_ids(over: &AtomicBool) {
    for round in 0u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        match round % 50 {
            10 => heapgauge::stop(),
            11 => heapgauge::start(20).unwrap(),
            20 => heapgauge::set_sample_interval(512).unwrap(),
            30 => heapgauge::set_sample_interval(100_000).unwrap(),
            40 => heapgauge::set_sample_interval(0).unwrap(),
            _ => heapgauge::clear_traces(),
        }
        if round % 100 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Spawns three threads that work, and one that sends them signals until the end.
pub(super) fn spawn_signalled<'scope>(
    scope: &'scope Scope<'scope, '_>,
    over: &'scope AtomicBool,
    work: impl Fn(usize) + Copy + Send + 'scope,
) {
    let (tell, told) = std::sync::mpsc::channel();
    for worker in 0..3 {
        let tell = tell.clone();
        scope.spawn(move || {
            // SAFETY: a plain query.
            tell.send(unsafe { libc::gettid() }).unwrap();
            work(worker);
        });
    }
    let workers: Vec<_> = told.iter().take(3).collect();
    scope.spawn(move || {
        while !over.load(Ordering::Relaxed) {
            for worker in &workers {
                // SAFETY: numbers; a thread that has ended is not found.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), *worker, libc::SIGUSR1) };
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    });
}

/// Threads that work, sleep, begin and exit, handlers, forks and readers, while ids end all the time.
#[test]
fn ids_end_while_everything_goes_on() {
    trap("reclaim::ids_end_while_everything_goes_on", || {
        let _no_locks = inner::no_locks();
        set_handler(handler, libc::SIGUSR1, 0);
        let (over, events) = (AtomicBool::new(false), AtomicU64::new(0));
        let (mut reads, mut forks) = (0, 0);
        std::thread::scope(|scope| {
            let _end = SetAtEnd(&over);
            let (over, events) = (&over, &events);
            spawn_signalled(scope, over, |worker| work(worker, over, events));
            (0..2).for_each(|worker| _ = scope.spawn(move || sleep_and_work(worker, over)));
            scope.spawn(|| live_shortly(over));
            scope.spawn(|| end_ids(over));
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end || forks < 3 {
                (0..100).for_each(|_| read());
                fork(child);
                (reads, forks) = (reads + 100, forks + 1);
            }
            read_stacks();
        });
        heapgauge::start(20).unwrap();
        heapgauge::set_sample_interval(0).unwrap();
        heapgauge::clear_traces();
        are_counted(KEEP, keep);
        say(format_args!("{} events, {reads} reads, {forks} forks", events.into_inner()));
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

/// Durations of allocations, without rounds beside them and with.
#[derive(Default)]
struct Durations {
    by_clock: [Vec<u32>; 2],
    of_processor: [Vec<u32>; 2],
}

/// Allocates until the end, half of the time by the clock and half by the processor's time for this thread.
fn measure(worker: usize, depth: usize, over: &AtomicBool, reclaims: &AtomicBool, all: &Mutex<Durations>) {
    const MOST: usize = 1 << 20;
    let mut durations = Durations::default();
    for list in durations.by_clock.iter_mut().chain(&mut durations.of_processor) {
        list.reserve(MOST);
    }
    let mut number = worker;
    while !over.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        let phase = usize::from(reclaims.load(Ordering::Relaxed));
        let by_clock = number >> 60 & 1 == 0;
        let (list, took) = on_path(number >> 40, depth, &mut || {
            let took = if by_clock {
                let begin = Instant::now();
                drop(keep(number));
                begin.elapsed()
            } else {
                let begin = processor_time();
                drop(keep(number));
                processor_time() - begin
            };
            (by_clock, took)
        });
        let list = if list { &mut durations.by_clock } else { &mut durations.of_processor };
        if list[phase].len() < MOST {
            list[phase].push(took.as_nanos() as u32);
        }
    }
    let mut all = all.lock().unwrap();
    for phase in 0..2 {
        all.by_clock[phase].append(&mut durations.by_clock[phase]);
        all.of_processor[phase].append(&mut durations.of_processor[phase]);
    }
}

/// Returns the number of durations, their median, the one that one in ten thousand exceeds, and the longest, in nanoseconds.
fn figures(mut durations: Vec<u32>) -> [u32; 4] {
    durations.sort_unstable();
    let at = |share: f64| durations[((durations.len() - 1) as f64 * share) as usize];
    [durations.len() as u32, at(0.5), at(0.9999), at(1.0)]
}

/// Measures allocations of four threads beside clears, of which every other hundred gives memory back.
#[test]
fn rounds_delay_no_allocation() {
    trap("reclaim::rounds_delay_no_allocation", || delay(2, heapgauge::clear_traces));
}

/// Measures them beside looks for stacks that have died: here those without a block.
#[test]
fn deaths_delay_no_allocation() {
    trap("reclaim::deaths_delay_no_allocation", || {
        heapgauge::set_idle_time(0);
        delay(9, heapgauge::look_for_dead_stacks);
    });
}

/// Measures allocations of four threads on stacks of so many calls, beside that which ends the life of ids.
fn delay(depth: usize, end_life: fn()) {
    let seconds = std::env::var("RECLAIM_SECONDS").map_or(4, |text| text.parse().expect("a number"));
    let (over, reclaims) = (AtomicBool::new(false), AtomicBool::new(false));
    let all = Mutex::new(Durations::default());
    std::thread::scope(|scope| {
        let _end = SetAtEnd(&over);
        for worker in 0..4 {
            let (over, reclaims, all) = (&over, &reclaims, &all);
            scope.spawn(move || measure(worker, depth, over, reclaims, all));
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        for round in 0u64.. {
            if round % 100 == 0 {
                if Instant::now() > end {
                    break;
                }
                let reclaim = round / 100 % 2 == 1;
                heapgauge::set_reclaims(reclaim);
                reclaims.store(reclaim, Ordering::Relaxed);
            }
            end_life();
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    heapgauge::set_reclaims(true);
    let Durations { by_clock, of_processor } = all.into_inner().unwrap();
    let [[off, on], [off_processor, on_processor]] = [by_clock, of_processor].map(|both| both.map(figures));
    for (kind, off, on) in [("clock", off, on), ("processor", off_processor, on_processor)] {
        say(format_args!(
            "by the {kind}, without and with rounds: {} and {} allocations, median {} and {} ns, one in 10,000 above {} and \
                 {} ns, longest {} and {} ns",
            off[0], on[0], off[1], on[1], off[2], on[2], off[3], on[3]
        ));
    }
    // Processor time does not depend on other programs. A round that made allocations wait would spin or sleep for as
    // long as another thread is busy, and each clear makes one.
    assert!(
        on_processor[2] < 4 * off_processor[2] + 50_000,
        "{on_processor:?} beside rounds, {off_processor:?} without"
    );
    nothing_is_lost();
}
