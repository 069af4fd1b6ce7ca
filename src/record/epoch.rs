//! Tracking state that all threads share: the base id of the present epoch, sampling, traceback depth, the peak.
//!
//! Any thread may call anything here, inside or outside the allocator; nothing blocks.

use crate::base::atomics::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::record::count::sampling::SamplingConfig;
use crate::record::count::unsampled;
use crate::record::peak::{self, Peak};
use crate::record::tag;
use crate::record::watermark;

/// Base while tracking is off: no id is at or above it.
const OFF: u32 = u32::MAX;
/// Ids of stacks end here. The rest below [`tag::SAMPLED`] is for epochs, two each, which are never
/// refused.
const LAST_STACK: u32 = tag::SAMPLED - (1 << 21);

/// Read by every allocation that is recorded and written by hardly anything: a cache line of its own.
#[repr(align(128))]
struct Hot {
    base: AtomicU32,
    limit: AtomicU32,
    rules_epoch: AtomicU32,
    /// [`SamplingConfig::word`].
    sampling: AtomicU64,
    /// Changes after base, sampling or rules epoch.
    generation: AtomicU32,
}

static HOT: Hot = Hot {
    base: AtomicU32::new(OFF),
    limit: AtomicU32::new(32 + EXTRA_ADDRESSES),
    rules_epoch: AtomicU32::new(0),
    sampling: AtomicU64::new(SamplingConfig::EXACT.word()),
    generation: AtomicU32::new(GENERATION),
};

/// The next id in the low half; in the high half the newest base that a `clear` or `start` has taken. One word, so that the
/// thread that takes an id knows the epoch that it belongs to.
static NEXT: AtomicU64 = AtomicU64::new(tag::FIRST as u64);
/// The ids below it, but for the first, are over: each thread that marks itself busy from now on finds that.
static ENDED: AtomicU32 = AtomicU32::new(0);
/// Moves of the base: those in flight in the lower half, all that have begun in the upper half.
static MOVES: AtomicU64 = AtomicU64::new(0);
/// Times that ids were closed, see `stack_id::life`.
static CLOSINGS: AtomicU32 = AtomicU32::new(0);
/// The memory of ids that are over is given back. Relaxed: a switch.
static RECLAIMS: AtomicBool = AtomicBool::new(true);
/// Relaxed: only compared with itself.
static SAMPLINGS: AtomicU32 = AtomicU32::new(0);
static FRAMES: AtomicU32 = AtomicU32::new(DEFAULT_FRAMES);
static CONFIGURED: AtomicU8 = AtomicU8::new(0);
/// 1 once an instance was asked for a block; 2 once one was that is the program's global allocator. Relaxed: it only
/// grows, and its meaning holds from the program's beginning.
static ASKED: AtomicU8 = AtomicU8::new(0);
/// The configured `.exact_from(bytes)`, 0 for the interval.
static EXACT_FROM: AtomicU32 = AtomicU32::new(0);

pub(crate) const DEFAULT_FRAMES: u32 = 32;
pub(crate) const MAX_FRAMES: u32 = 64;
/// Addresses stored beyond the configured frames, to get through the frames of the allocator, of
/// the standard library and of looked-through crates before the site: a debug build puts about
/// twenty of them under a growing `Vec` inside a map.
const EXTRA_ADDRESSES: u32 = 32;
/// The most addresses a stack can have.
pub(crate) const MAX_ADDRESSES: usize = (MAX_FRAMES + EXTRA_ADDRESSES) as usize;

/// Returns the id from which on ids are valid, [`u32::MAX`] while tracking is off. It is itself the id of the stack
/// `[unrecorded]` of the present epoch.
#[inline(always)]
pub(crate) fn base() -> u32 {
    // Relaxed: an event near a `clear` may count on either side of it; ids carry no other data (the
    // stack behind an id is published by the table that holds it).
    HOT.base.load(Ordering::Relaxed)
}

/// Returns the id of the blocks that were not sampled, in the epoch of this base.
#[inline(always)]
pub(crate) fn unsampled_id(base: u32) -> u32 {
    // Not where tracking is off; an event that sees it go off meanwhile is counted as untracked.
    base.wrapping_add(1)
}

/// Returns the sampling configuration.
#[inline(always)]
pub(crate) fn sampling() -> SamplingConfig {
    // Relaxed: an event near a change may be decided either way; its weight is in its tag's stack.
    SamplingConfig::from_word(HOT.sampling.load(Ordering::Relaxed))
}

/// Generations are odd multiples of this.
pub(crate) const GENERATION: u32 = 16;

/// Returns a number that changes whenever a thread's copy of base, sampling and unwind rules is out of date; never 0.
#[inline(always)]
pub(crate) fn generation() -> u32 {
    // Relaxed: as for the base. `generation_slow` reads everything that depends on it again.
    HOT.generation.load(Ordering::Relaxed)
}

/// Returns the [`generation`], before base, sampling and rules epoch are read.
pub(crate) fn generation_slow() -> u32 {
    // Acquire: pairs with the Release of `next_generation`.
    HOT.generation.load(Ordering::Acquire)
}

/// Returns the number that threads note for this generation if blocks are sampled in it. It is not that of any generation, so
/// that no event takes the path of known stacks, which does not ask what sizes are sampled.
pub(crate) fn generation_of_samples(generation: u32) -> u32 {
    debug_assert!(generation % (2 * GENERATION) == GENERATION, "no generation: {generation}");
    // An even multiple. 0, which a fresh state has, belongs to the first generation, in which none are.
    generation ^ GENERATION
}

/// Begins a generation: each thread's copies of base, sampling and rules are out of date.
fn next_generation() {
    // In steps that pass 0 by.
    HOT.generation.fetch_add(2 * GENERATION, Ordering::Release);
}

/// Begins a generation and revokes all budgets, after base or sampling have changed.
fn next_generation_and_revoke() {
    next_generation();
    unsampled::revoke_all();
}

/// Sets the average bytes between samples from now on; 0: every block is recorded.
pub(crate) fn set_sample_interval(interval: u32) {
    let sampling = SamplingConfig::new(interval, EXACT_FROM.load(Ordering::Relaxed));
    HOT.sampling.store(sampling.word(), Ordering::Relaxed);
    SAMPLINGS.fetch_add(1, Ordering::Relaxed);
    next_generation_and_revoke();
}

/// Returns how often the sample interval has been set.
pub(crate) fn samplings() -> u32 {
    SAMPLINGS.load(Ordering::Relaxed)
}

/// Returns whether new allocations are recorded.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    base() != OFF
}

/// Returns the number of addresses that a walk may store.
#[inline(always)]
pub(crate) fn address_limit() -> usize {
    HOT.limit.load(Ordering::Relaxed) as usize
}

/// Returns the configured `.frames(n)`.
pub(crate) fn frames() -> usize {
    FRAMES.load(Ordering::Relaxed) as usize
}

/// Returns a number that changes when unwind rules may have become wrong: a module was unloaded.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(always)]
pub(crate) fn rules_epoch() -> u32 {
    HOT.rules_epoch.load(Ordering::Relaxed)
}

/// Makes every thread forget its unwind rules before it walks again.
pub(crate) fn bump_rules_epoch() {
    HOT.rules_epoch.fetch_add(1, Ordering::Relaxed);
    next_generation();
}

/// Configuration of an instance; the first that allocates decides for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub frames: u8,
    /// Tracking is off until `start`.
    pub start_disabled: bool,
    /// Average bytes between samples, 0 for none.
    pub sample_every: u32,
    /// Blocks of that size are recorded without exception, 0 for the interval.
    pub exact_from: u32,
    /// The memory of ids that are over is given back, see `reclaim`.
    pub reclaims: bool,
    /// The instance is the program's global allocator, by its declaration.
    pub is_global: bool,
}

/// Returns whether an instance has ever allocated outside the fast path, as it does for the first block of each thread.
pub(crate) fn has_been_asked() -> bool {
    ASKED.load(Ordering::Relaxed) != 0
}

/// Returns whether an instance that is the program's global allocator was.
pub(crate) fn is_global_allocator() -> bool {
    ASKED.load(Ordering::Relaxed) == 2
}

/// Returns whether an instance was ever asked for a block, or tracking was started.
pub(crate) fn is_configured() -> bool {
    CONFIGURED.load(Ordering::Relaxed) != 0
}

/// Returns whether [`configure`] has nothing to do for an instance of this configuration.
#[inline(always)]
pub(crate) fn is_configured_by(config: &Config) -> bool {
    ASKED.load(Ordering::Relaxed) >= asked_by(config)
}

/// Returns the value of [`ASKED`] once an instance of this configuration was asked for a block.
fn asked_by(config: &Config) -> u8 {
    if config.is_global { 2 } else { 1 }
}

/// Takes over the configuration of the first instance that allocates, and starts tracking unless it
/// says otherwise. True if this was that call; later calls do nothing.
#[inline(always)]
pub(crate) fn configure(config: &Config) -> bool {
    !(is_configured_by(config) && is_configured()) && configure_slow(config)
}

/// Applies the configuration if no other instance did. True if it was the first.
#[cold]
#[inline(never)]
fn configure_slow(config: &Config) -> bool {
    let asked = asked_by(config);
    if ASKED.load(Ordering::Relaxed) < asked {
        ASKED.fetch_max(asked, Ordering::Relaxed);
    }
    let is_first = CONFIGURED.load(Ordering::Relaxed) == 0
        && CONFIGURED.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if is_first {
        set_frames(config.frames.into());
        EXACT_FROM.store(config.exact_from, Ordering::Relaxed);
        set_reclaims(config.reclaims);
        set_sample_interval(config.sample_every);
        if !config.start_disabled {
            start();
        }
    }
    is_first
}

/// Sets how many frames a traceback shows from now on; `frames` is within 1..=[`MAX_FRAMES`].
pub(crate) fn set_frames(frames: u32) {
    let frames = frames.clamp(1, MAX_FRAMES);
    FRAMES.store(frames, Ordering::Relaxed);
    if HOT.limit.swap(frames + EXTRA_ADDRESSES, Ordering::Relaxed) != frames + EXTRA_ADDRESSES {
        // Threads remember how far they walked.
        bump_rules_epoch();
    }
}

/// Starts a new epoch if tracking is off. True if it was.
pub(crate) fn start() -> bool {
    // The configuration of an instance no longer matters.
    CONFIGURED.store(1, Ordering::Relaxed);
    move_base(|base| base == OFF)
}

/// Ends tracking and forgets all blocks.
pub(crate) fn stop() {
    let moving = Move::begin();
    // AcqRel: pairs with `move_base`; the totals below follow the base.
    HOT.base.swap(OFF, Ordering::AcqRel);
    let end = end_id();
    next_generation_and_revoke();
    moving.end_ids(end);
    PEAK.begin(OFF, self::base);
}

/// Forgets all blocks and begins a new epoch, if tracking is on.
pub(crate) fn clear() {
    move_base(|base| base != OFF);
}

/// Begins a new epoch if `when` accepts the present base; false where it does not.
fn move_base(when: impl Fn(u32) -> bool) -> bool {
    let moving = Move::begin();
    loop {
        // AcqRel/Acquire: two callers see each other's base in order, and never move it back.
        let base = HOT.base.load(Ordering::Acquire);
        if !when(base) {
            return false;
        }
        // Every epoch has ids of its own for `[unrecorded]` and for what is not sampled, so that what was
        // counted there before is stale like anything else.
        let take = |word: u64| {
            let next = word as u32;
            // The sums of two epochs in a row have to differ by their marks.
            let newest = if peak::mark(next) == peak::mark(base) { (word >> 32) as u32 } else { next };
            Some(join_next(next.wrapping_add(2), newest))
        };
        let Ok(before) = NEXT.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) else { continue };
        let next = before as u32;
        if peak::mark(next) == peak::mark(base) {
            continue;
        }
        let moved = HOT.base.compare_exchange(base, next, Ordering::AcqRel, Ordering::Acquire);
        // A thread that took an id meanwhile may have moved it to the same base, see `next_ids`.
        if moved.is_ok() || moved == Err(next) {
            next_generation_and_revoke();
            moving.end_ids(next);
            PEAK.begin(next, self::base);
            return true;
        }
    }
}

/// A move of the base, from before it reads one.
struct Move {
    /// [`MOVES`] before it.
    before: u64,
}

impl Move {
    /// Adds one to each half of [`MOVES`].
    const ONE: u64 = 1 << 32 | 1;

    fn begin() -> Move {
        // AcqRel: a move whose base comes from before that of this one is seen by the load below.
        Move { before: MOVES.fetch_add(Move::ONE, Ordering::AcqRel) }
    }

    /// Ends all ids below this one, after base and generation have changed: a thread of the new generation looks up no count of
    /// theirs. Not where another move is in flight, or was since this one began: it may still set a base below. A later move ends
    /// them then. One that begins after the load below takes its base after `end` was read, so that is not below.
    fn end_ids(&self, end: u32) {
        if self.before as u32 == 0 && MOVES.load(Ordering::Acquire) == self.before.wrapping_add(Move::ONE) {
            // AcqRel: pairs with the Acquire of `ended`.
            ENDED.fetch_max(end, Ordering::AcqRel);
        }
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        // A forked child has begun to count anew.
        let in_flight = |moves: u64| (moves as u32 != 0).then(|| moves - 1);
        let _ = MOVES.fetch_update(Ordering::AcqRel, Ordering::Acquire, in_flight);
    }
}

/// Forgets, in a forked child, moves of threads that it does not have.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn forget_moves() {
    MOVES.fetch_and(!u64::from(u32::MAX), Ordering::AcqRel);
}

/// Makes every thread forget ids that were closed, before it looks one up again.
pub(crate) fn ids_closed() {
    // Release: pairs with the Acquire of `closings`.
    CLOSINGS.fetch_add(1, Ordering::Release);
    next_generation();
}

/// Returns how often ids were closed; read after the generation.
pub(crate) fn closings() -> u32 {
    CLOSINGS.load(Ordering::Acquire)
}

/// Sets whether the memory of ids that are over is given back from now on.
pub(crate) fn set_reclaims(reclaims: bool) {
    RECLAIMS.store(reclaims, Ordering::Relaxed);
}

/// Returns whether the memory of ids that are over is given back.
pub(crate) fn reclaims() -> bool {
    RECLAIMS.load(Ordering::Relaxed)
}

/// Returns the id below which all are over, but for the first.
pub(crate) fn ended() -> u32 {
    ENDED.load(Ordering::Acquire)
}

/// Packs the next id and the newest base in the word of [`NEXT`].
fn join_next(next: u32, newest: u32) -> u64 {
    u64::from(newest) << 32 | u64::from(next)
}

/// Takes `count` fresh ids, a power of two, and returns the first, a multiple of `count`; `None` when they are used up.
///
/// An id taken between the two steps of a `clear` is of the new epoch, while the base is still the old one: its bytes would
/// be published to a sum that ends. So the base is moved here, too.
#[inline(always)]
pub(crate) fn next_ids(count: u32) -> Option<u32> {
    let after = |word: u64| {
        let id = word as u32;
        (id < LAST_STACK).then(|| join_next(first_id(id, count) + count, (word >> 32) as u32))
    };
    // Acquire: pairs with the taking of a base in `move_base`.
    let word = NEXT.fetch_update(Ordering::AcqRel, Ordering::Acquire, after).ok()?;
    let newest = (word >> 32) as u32;
    let base = HOT.base.load(Ordering::Acquire);
    if base < newest {
        // While tracking is off the base is above all others. Where this fails, it has been moved by another thread.
        let _ = HOT.base.compare_exchange(base, newest, Ordering::AcqRel, Ordering::Relaxed);
    }
    let first = first_id(word as u32, count);
    debug_assert!(first >= tag::FIRST && first < tag::SAMPLED - count, "{first} is no id of a stack");
    Some(first)
}

/// Returns the next multiple of `count`, a power of two.
#[inline(always)]
pub(crate) fn first_id(id: u32, count: u32) -> u32 {
    debug_assert!(count.is_power_of_two(), "{count} ids");
    (id + (count - 1)) & !(count - 1)
}

/// Returns the id after the last one given out.
pub(crate) fn end_id() -> u32 {
    NEXT.load(Ordering::Acquire) as u32
}

// ── Peak ────────────────────────────────────────────────────────────────────────────────────────

/// Largest number of unpublished bytes of a thread, either way.
pub(crate) const PUBLISH_BYTES: i64 = 64 << 10;

/// Live bytes as far as threads have published them, and the most of them.
static PEAK: Peak = Peak::new();

/// Adds a net change of the epoch of this base and raises the peak.
pub(crate) fn publish(epoch: u32, net: i64) {
    // Else the epoch ended just now, and its sum with it.
    if epoch != OFF
        && let Some(live) = PEAK.publish(epoch, base, net)
    {
        watermark::compare(live);
    }
}

/// Returns the live bytes as far as threads have published them.
pub(crate) fn published() -> i64 {
    PEAK.published(base())
}

/// Raises the peak to the present live bytes and returns it. `unpublished` are those that threads have not published.
pub(crate) fn peak(unpublished: impl FnOnce() -> i64) -> u64 {
    PEAK.raise(base(), base, unpublished)
}

/// Sets the peak to the present live bytes.
pub(crate) fn reset_peak(unpublished: impl FnOnce() -> i64) {
    PEAK.reset(base(), base, unpublished);
}
