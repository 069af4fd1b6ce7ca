//! Compares random operations on four threads with a map of the live blocks: equal to the byte while no thread works. The
//! peak differs from that of plain sums by at most 64 KiB a thread.
//!
//! In every other round threads take turns, so that the plain sums know each heap there was. In two of four they are paused now and then. In the last four of sixteen
//! rounds blocks are sampled; then totals and the peak are compared, and no rows.
//!
//! Ids of stacks are renewed all the time, and the ages of blocks compared as well: see `ages`.
//!
//! `DIFFERENTIAL_OPERATIONS` is their number and `DIFFERENTIAL_SEED` their seed; `tests/README.md` has results.

mod ages;

use self::ages::{Born, Looks, note_resized};
use crate::random::Random;
use crate::{ALLOC, on_path, say, trap};
use heapgauge::{Collector, DroppedEvents, GroupBy, Snapshot};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

const THREADS: usize = 4;

/// The rounds of sixteen in which blocks are sampled, with their intervals.
const SAMPLED: std::ops::Range<usize> = 12..16;
const INTERVALS: [usize; 4] = [4 << 10, 512 << 10, 1 << 30, 100];

/// Defines a site of each kind. The string differs in each function, or the optimizer would merge them.
macro_rules! sites {
    ($($module:ident)*) => {
        mod sites {
            $(pub mod $module {
                use super::super::*;

                #[inline(never)]
                pub fn get(layout: Layout) -> *mut u8 {
                    black_box(concat!(module_path!(), "get"));
                    // SAFETY: freed with this layout.
                    black_box(unsafe { ALLOC.alloc(layout) })
                }

                #[inline(never)]
                pub fn get_zeroed(layout: Layout) -> *mut u8 {
                    black_box(concat!(module_path!(), "get_zeroed"));
                    // SAFETY: freed with this layout.
                    black_box(unsafe { ALLOC.alloc_zeroed(layout) })
                }

                #[inline(never)]
                pub fn resize(block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
                    black_box(concat!(module_path!(), "resize"));
                    // SAFETY: a block that has this layout.
                    black_box(unsafe { ALLOC.realloc(block, layout, size) })
                }
            })*
        }
        const SITES: &[Site] = &[$(Site {
            name: concat!(module_path!(), "::sites::", stringify!($module)),
            get: sites::$module::get,
            get_zeroed: sites::$module::get_zeroed,
            resize: sites::$module::resize,
        },)*];
    };
}

struct Site {
    name: &'static str,
    get: fn(Layout) -> *mut u8,
    get_zeroed: fn(Layout) -> *mut u8,
    resize: fn(*mut u8, Layout, usize) -> *mut u8,
}

sites!(a b c d e f g h i j k l m n o p);

/// Random sizes and alignments.
trait RandomLayout {
    fn size(&mut self) -> usize;
    fn align(&mut self) -> usize;
}

impl RandomLayout for Random {
    fn size(&mut self) -> usize {
        match self.below(1000) {
            0..600 => self.below(128),
            600..900 => self.below(1_500),
            900..990 => self.below(10_000),
            990..999 => self.below(100_000),
            _ => self.below(1_000_000),
        }
    }

    fn align(&mut self) -> usize {
        match self.below(50) {
            0 => 1 << self.below(13),
            _ => 1 << self.below(5),
        }
    }
}

/// The function that a live block is counted at; `None` if it is not tracked.
type Place = Option<(usize, &'static str)>;

#[derive(Clone, Copy)]
struct Held {
    layout: Layout,
    place: Place,
    born: Born,
}

impl Held {
    /// Returns its size in the live bytes.
    fn traced(self) -> i64 {
        traced(self.place, self.layout.size())
    }
}

/// Returns the size of a block of this place in the live bytes.
fn traced(place: Place, size: usize) -> i64 {
    if place.is_some() { size as i64 } else { 0 }
}

/// Live bytes and their peak as plain sums: from below, where a change counts when it is certain to have been counted, and
/// from above, where it counts as soon as it may have been.
struct Sums {
    from_below: AtomicI64,
    from_above: AtomicI64,
    peak_from_below: AtomicI64,
    peak_from_above: AtomicI64,
    turn: Mutex<()>,
}

static SUMS: Sums = Sums {
    from_below: AtomicI64::new(0),
    from_above: AtomicI64::new(0),
    peak_from_below: AtomicI64::new(0),
    peak_from_above: AtomicI64::new(0),
    turn: Mutex::new(()),
};

impl Sums {
    fn reset(&self, live: i64) {
        for sum in [&self.from_below, &self.from_above, &self.peak_from_below, &self.peak_from_above] {
            sum.store(live, Ordering::SeqCst);
        }
    }

    /// Runs an operation that changes the live bytes by so many. With turns, no other thread changes them meanwhile.
    fn around<T>(&self, change: i64, has_turns: bool, act: impl FnOnce() -> T) -> T {
        let _turn = has_turns.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let raise = |sum: &AtomicI64, peak: &AtomicI64| {
            let live = sum.fetch_add(change, Ordering::SeqCst) + change;
            peak.fetch_max(live, Ordering::SeqCst);
        };
        let (first, last) = if change > 0 {
            ((&self.from_above, &self.peak_from_above), (&self.from_below, &self.peak_from_below))
        } else {
            ((&self.from_below, &self.peak_from_below), (&self.from_above, &self.peak_from_above))
        };
        raise(first.0, first.1);
        let done = act();
        raise(last.0, last.1);
        done
    }

    /// Compares with heapgauge's totals, while nothing changes.
    fn compare(&self, what: (usize, usize)) -> u64 {
        let heapgauge::TracedMemory { current, peak } = heapgauge::traced_memory();
        let load = |sum: &AtomicI64| sum.load(Ordering::SeqCst);
        assert_eq!(current as i64, load(&self.from_below), "seed, round {what:?}: live bytes");
        assert_eq!(current as i64, load(&self.from_above), "seed, round {what:?}: live bytes");
        let (below, above, peak) = (load(&self.peak_from_below), load(&self.peak_from_above), peak as i64);
        assert!(
            (below - UNPUBLISHED..=above + UNPUBLISHED).contains(&peak),
            "seed, round {what:?}: peak {peak}, of plain sums {below} to {above}"
        );
        if peak < below { (below - peak) as u64 } else { (peak - above).max(0) as u64 }
    }
}

/// Allowed error of the peak: 64 KiB for each thread that allocates, and for the two of the harness.
const UNPUBLISHED: i64 = (THREADS as i64 + 2) * (64 << 10);

/// A thread's share of the model.
#[derive(Default)]
struct Model {
    live: HashMap<usize, Held>,
    /// The addresses of the live blocks, to choose from.
    order: Vec<usize>,
}

impl Model {
    /// Makes a model with room for all it will hold: it does not allocate while live bytes are compared.
    fn with_room() -> Model {
        Model { live: HashMap::with_capacity(1 << 13), order: Vec::with_capacity(1 << 13) }
    }

    fn add(&mut self, block: *mut u8, held: Held) {
        assert!(self.live.insert(block.addr(), held).is_none(), "two live blocks at one address");
        self.order.push(block.expose_provenance());
    }

    fn remove(&mut self, at: usize) -> (*mut u8, Held) {
        let address = self.order.swap_remove(at);
        let held = self.live.remove(&address).unwrap();
        (std::ptr::with_exposed_provenance_mut(address), held)
    }
}

/// Writes the address of a block into its first and last bytes.
const ENDS: usize = 24;

fn ends(size: usize) -> impl Iterator<Item = usize> {
    (0..size.min(ENDS)).chain(size.saturating_sub(ENDS).max(ENDS.min(size))..size)
}

fn byte(home: usize, at: usize) -> u8 {
    ((home >> 4).wrapping_mul(31).wrapping_add(at)) as u8
}

fn fill(block: *mut u8, size: usize) {
    for at in ends(size) {
        // SAFETY: below the block's size.
        unsafe { block.add(at).write(byte(block.addr(), at)) };
    }
}

/// Returns whether the bytes up to `size` are those that `fill` wrote into a block of `filled` bytes at `home`.
fn check(block: *mut u8, home: usize, filled: usize, size: usize) {
    for at in ends(filled).filter(|at| *at < size) {
        // SAFETY: below the block's size.
        let found = unsafe { block.add(at).read() };
        assert_eq!(found, byte(home, at), "byte {at} of {filled}, of which {size} are left");
    }
}

/// Runs a thread's part of a round, with the model of an earlier thread.
fn work(
    mut model: Model,
    mut random: Random,
    operations: usize,
    round: usize,
    inbox: &Receiver<(usize, Held)>,
    posts: &[SyncSender<(usize, Held)>],
) -> Model {
    let mut silence = None;
    let (has_turns, has_pauses) = (round % 2 == 1, round % 4 < 2);
    for _ in 0..operations {
        if has_pauses && random.below(100) == 0 {
            silence = if silence.is_none() { Some(heapgauge::pause()) } else { None };
        }
        let site = random.below(SITES.len());
        let (path, depth) = (random.next() as usize, random.below(8));
        // Up to some hundreds of live blocks.
        match random.below(100) {
            0..44 if model.order.len() < 600 => {
                let size = random.size();
                let layout = Layout::from_size_align(size, random.align()).unwrap();
                let zeroed = random.below(4) == 0;
                let Site { get, get_zeroed, .. } = &SITES[site];
                let place = (site, if zeroed { "get_zeroed" } else { "get" });
                let place = silence.is_none().then_some(place);
                let traced = traced(place, size);
                let get = if zeroed { get_zeroed } else { get };
                let (block, born) = Born::around(|| {
                    SUMS.around(traced, has_turns, || on_path(path, depth, &mut || get(layout)))
                });
                let held = Held { layout, place, born };
                assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()));
                // SAFETY: within the block.
                assert!(!zeroed || ends(size).all(|at| unsafe { block.add(at).read() } == 0));
                fill(block, layout.size());
                model.add(block, held);
            }
            44..84 if !model.order.is_empty() => {
                let (block, held) = model.remove(random.below(model.order.len()));
                check(block, block.addr(), held.layout.size(), held.layout.size());
                // SAFETY: a live block and its layout.
                SUMS.around(-held.traced(), has_turns, || unsafe { ALLOC.dealloc(block, held.layout) });
            }
            84..95 if !model.order.is_empty() => {
                let (block, held) = model.remove(random.below(model.order.len()));
                let (home, before, size) = (block.addr(), held.layout.size(), random.size());
                let Site { resize, .. } = SITES[site];
                let layout = Layout::from_size_align(size, held.layout.align()).unwrap();
                // A paused thread leaves a block at its line.
                let place = if silence.is_some() { held.place } else { Some((site, "resize")) };
                if silence.is_some() {
                    note_resized(place);
                }
                let change = traced(place, size) - held.traced();
                let mut resize = || resize(block, held.layout, size);
                let (block, born) =
                    Born::around(|| SUMS.around(change, has_turns, || on_path(path, depth, &mut resize)));
                let now = Held { layout, place, born };
                assert!(!block.is_null());
                check(block, home, before, size.min(before));
                fill(block, size);
                model.add(block, now);
            }
            95.. if !model.order.is_empty() => {
                let (block, held) = model.remove(random.below(model.order.len()));
                let sent = (block.expose_provenance(), held);
                if posts[random.below(posts.len())].try_send(sent).is_err() {
                    model.add(block, held);
                }
            }
            _ => {}
        }
        if let Ok((address, held)) = inbox.try_recv() {
            model.add(std::ptr::with_exposed_provenance_mut(address), held);
        }
    }
    model
}

/// Returns live bytes and blocks by function, according to the models.
fn expected(models: &[Model]) -> BTreeMap<String, (u64, u64)> {
    let mut expected = BTreeMap::new();
    for held in models.iter().flat_map(|model| model.live.values()) {
        if let Some((site, kind)) = held.place {
            let sum: &mut (u64, u64) = expected.entry(format!("{}::{kind}", SITES[site].name)).or_default();
            sum.0 += held.layout.size() as u64;
            sum.1 += 1;
        }
    }
    expected
}

/// Returns live bytes and blocks by function, according to heapgauge. Checks that its parts add up.
fn found() -> BTreeMap<String, (u64, u64)> {
    let snapshot = Snapshot::take().unwrap();
    let current = heapgauge::traced_memory().current;
    assert_eq!(current, snapshot.traces().iter().map(|trace| trace.size).sum::<u64>());
    let prefix = concat!(module_path!(), "::sites::");
    let rows = snapshot.statistics(GroupBy::Function);
    let ours = rows.iter().filter(|row| row.name().starts_with(prefix));
    ours.map(|row| (row.name().into_owned(), (row.size, row.count))).collect()
}

fn number(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}

/// Lets each thread work on its model for a round. Returns the models, and how far the peak was off at most.
fn round(
    models: Vec<Model>,
    random: &mut Random,
    share: usize,
    (seed, round): (usize, usize),
    looks: &mut Looks,
) -> (Vec<Model>, u64) {
    let (posts, boxes): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| sync_channel(1_000)).unzip();
    // All threads meet when the round is prepared, when they may begin, when their work is done, and when it has
    // been compared.
    let meeting = Arc::new(Barrier::new(THREADS + 1));
    let workers: Vec<_> = models
        .into_iter()
        .zip(boxes)
        .map(|(model, inbox)| {
            let (posts, random, meeting) = (posts.clone(), Random(random.next()), meeting.clone());
            std::thread::spawn(move || {
                meeting.wait();
                meeting.wait();
                let work = || work(model, random, share, round, &inbox, &posts);
                let model = catch_unwind(AssertUnwindSafe(work));
                meeting.wait();
                meeting.wait();
                (model.unwrap_or_else(|panic| resume_unwind(panic)), inbox)
            })
        })
        .collect();
    meeting.wait();
    heapgauge::reset_peak();
    SUMS.reset(heapgauge::traced_memory().current as i64);
    meeting.wait();
    for _ in 0..random.below(3) {
        looks.look_and_renew(random, false);
    }
    meeting.wait();
    let off = SUMS.compare((seed, round));
    meeting.wait();
    // All threads end first: a working one may still post something.
    let join = |worker: JoinHandle<_>| worker.join().unwrap_or_else(|_| panic!("seed {seed}, round {round}"));
    let ended: Vec<(Model, Receiver<_>)> = workers.into_iter().map(join).collect();
    let receive = |(mut model, inbox): (Model, Receiver<_>)| {
        for (address, held) in inbox.try_iter() {
            model.add(std::ptr::with_exposed_provenance_mut(address), held);
        }
        model
    };
    (ended.into_iter().map(receive).collect(), off)
}

/// Clears, or stops and starts, after some rounds: live blocks are not tracked any more then.
fn forget_after(round: usize, models: &mut [Model], looks: &mut Looks) {
    match round % 16 {
        7 | 15 => heapgauge::clear_traces(),
        11 => {
            heapgauge::stop();
            heapgauge::start(32).unwrap();
        }
        _ => return,
    }
    looks.clear();
    models.iter_mut().flat_map(|model| model.live.values_mut()).for_each(|held| held.place = None);
}

fn free_all(models: Vec<Model>) {
    for mut model in models {
        while !model.order.is_empty() {
            let (block, held) = model.remove(0);
            check(block, block.addr(), held.layout.size(), held.layout.size());
            // SAFETY: a live block and its layout.
            unsafe { ALLOC.dealloc(block, held.layout) };
        }
    }
}

#[test]
fn case_40_random_operations_against_a_map() {
    trap("differential::case_40_random_operations_against_a_map", || {
        let operations =
            number("DIFFERENTIAL_OPERATIONS", if cfg!(debug_assertions) { 400_000 } else { 2_000_000 });
        let seed = number("DIFFERENTIAL_SEED", 1);
        let rounds = (operations / 100_000).max(SAMPLED.end);
        // Each `clear` keeps the tables of earlier ids, and there are many here.
        heapgauge::set_max_overhead(16 << 30).unwrap();
        let collector = Collector::new();
        let begun = Instant::now();
        let mut random = Random(seed as u64);
        let mut models: Vec<Model> = (0..THREADS).map(|_| Model::with_room()).collect();
        let (mut most, mut compared, mut off, mut looks) = (0, 0, 0, Looks::default());
        for number in 0..rounds {
            let interval = SAMPLED.contains(&(number % 16)).then(|| INTERVALS[number % 4]);
            heapgauge::set_sample_interval(interval.unwrap_or(0)).unwrap();
            let off_by;
            (models, off_by) =
                round(models, &mut random, operations / rounds / THREADS, (seed, number), &mut looks);
            off = off.max(off_by);
            let expected = expected(&models);
            if interval.is_none() {
                assert_eq!(expected, found(), "seed {seed}, round {number}");
                looks.compare(&models, (seed, number));
            }
            looks.look_and_renew(&mut random, true);
            compared += expected.len();
            most = most.max(expected.values().map(|(bytes, _)| bytes).sum());
            forget_after(number, &mut models, &mut looks);
        }
        heapgauge::set_sample_interval(0).unwrap();
        heapgauge::clear_traces();
        free_all(models);
        assert_eq!(found(), BTreeMap::new());
        std::thread::sleep(std::time::Duration::from_millis(1_100)); // a younger collection is given out again
        let report = collector.collect();
        assert_eq!(report.dropped, DroppedEvents::default());
        assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
        say(format_args!(
            "{operations} operations, seed {seed}, {rounds} comparisons of {compared} rows in all, at most {} KiB live, \
             the peak off by {} KiB at most, {} MiB of tables, {} renewals, {} bounds of ages, {} of them exact, {:.1} s",
            most >> 10,
            off >> 10,
            heapgauge::tracker_memory() >> 20,
            looks.renewals,
            looks.bounds,
            looks.exact,
            begun.elapsed().as_secs_f64()
        ));
    });
}
