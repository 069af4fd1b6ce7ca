//! Interner: a stack → its id, and an id → the stack's addresses.
//!
//! A thread asks the map only after a miss in its own cache. The map compares whole stacks and their scopes, so an id is exactly one
//! stack in one combination of scopes. A stack may have several ids, of which it is met at the latest. It keeps their addresses packed, in a third of the bytes that they take in a walk. Readers follow ids to addresses without a lock.
//!
//! A recorded stack belongs to one id, whose place in the chunks leads to it, and to an entry of the map where that has this
//! id; it is freed with the chunk, see `reclaim`. Where a stack gets a new id, an id that is below the base hands its copy on,
//! and one of this epoch keeps it, as it may have live blocks.
//!
//! An id is stale below `epoch::base`, and where it is renewed (see `renew`), closed or over (see `life`): its stack gets a new one
//! when it is met again.

use crate::base::atomics::{AtomicPtr, Ordering};
use crate::base::ready_hasher::ReadyHasher;
use crate::record::bounded_wait::BoundedWait;
use crate::record::count::counters::{CHUNK, Shared, number};
use crate::record::dropped::{self, Reason};
use crate::record::epoch;
use crate::record::fork;
use crate::record::memory;
use crate::record::scope::id::ScopeId;
use crate::record::scope::slots;
use crate::record::stack_id::packed::Unpacked;
use crate::record::stack_id::record::{CARRIED, Carried, Key, record, unrecord};
use crate::record::stack_id::sums::{Counts, allocated};
use crate::record::tag::SAMPLED;
use crate::record::thread::{BUSY, INTERNING, SHARED, StackBuffer, ThreadState};
use dashmap::{DashMap, SharedValue};
use std::hash::BuildHasherDefault;
use std::ptr::{NonNull, null_mut};

/// The stacks; their ids are in the records.
type Map = DashMap<Key, (), BuildHasherDefault<ReadyHasher>>;

/// Number of shards. Fixed, so that memory does not depend on the machine.
const SHARDS: usize = 32;

/// Initial capacity, in stacks. A table that grows while the program allocates its first blocks stays between them,
/// and the allocator can no longer place those in a row.
const ROOM: usize = SHARDS * 112;

/// Map of all stacks, null before [`map`] has made it. Its memory comes through the global allocator, from a thread marked
/// `INTERNING`, and is counted as overhead.
static MAP: AtomicPtr<Map> = AtomicPtr::new(null_mut());

/// Waits for the locks of the map, one for each shard.
static WAITS: [BoundedWait; SHARDS] = [const { BoundedWait::new() }; SHARDS];

/// Returns the map, made by the first thread that asks. Where two threads make one, one of them drops its own; none waits.
#[inline(always)]
fn map() -> &'static Map {
    // Acquire: pairs with the Release of `make_map`.
    let present = MAP.load(Ordering::Acquire);
    // SAFETY: null, or a map, never freed once published.
    unsafe { present.as_ref() }.unwrap_or_else(make_map)
}

/// Makes the map, or takes the one of a thread that was faster.
#[cold]
#[inline(never)]
fn make_map() -> &'static Map {
    let hasher = BuildHasherDefault::default();
    let map = Map::with_capacity_and_hasher_and_shard_amount(ROOM, hasher, SHARDS);
    let places: usize = map.shards().iter().map(|shard| shard.read().buckets()).sum();
    let fresh = Box::into_raw(Box::new(map));
    let present = match MAP.compare_exchange(null_mut(), fresh, Ordering::Release, Ordering::Acquire) {
        Ok(_) => {
            memory::map_grew(places * ENTRY);
            fresh
        }
        Err(earlier) => {
            // SAFETY: made above and never published.
            drop(unsafe { Box::from_raw(fresh) });
            earlier
        }
    };
    // SAFETY: a map, never freed once published.
    unsafe { &*present }
}

/// Bytes of a place in the map, with its byte of control.
const ENTRY: usize = size_of::<(Key, SharedValue<()>)>() + 1;

/// Returns how many of so many places, a power of two, can be taken: one in eight stays empty.
fn full(places: usize) -> usize {
    places / 8 * 7
}

/// Gives a stack that is in the map a new id, as the one that it has is stale. The caller holds the lock of its part of the map.
fn hand_on(key: &mut Key, base: u32, sought: &StackBuffer) -> Result<u32, Reason> {
    let stale = key.id();
    if stale >= base {
        // The counters and the copy of the old id stay: blocks of it may be live.
        let (copy, id) = record_and_publish(sought, true)?;
        key.record().id.store(id, Ordering::Relaxed);
        *key = copy;
        return Ok(id);
    }
    // It was seen before the last `clear`.
    let id = publish(*key)?;
    key.forget_carried();
    if let Some(chunk) = SHARED.chunk(number(stale)) {
        // Release: as in `publish`.
        chunk.stack(stale as usize).store(null_mut(), Ordering::Release);
    }
    Ok(id)
}

/// Takes the stacks of a chunk whose ids are over out of the map. Returns their places, a bit for each; `None` where that has to
/// wait, because a part of the map is locked. The caller is inside the fork lock, and no other thread calls this meanwhile.
///
/// With the counts of the chunk, whose ids are of the present epoch: those of a stack that has a new id are carried on to it.
///
/// A stack that a thread is just interning may come to its place later: it has no bit, stays in the map with an id that is
/// stale, and is handed on.
pub(crate) fn take_out(state: &ThreadState, chunk: &Shared, counts: Option<&[Counts; CHUNK]>) -> Option<u64> {
    const { assert!(CHUNK == u64::BITS as usize) };
    (0..CHUNK).try_fold(0, |taken, place| {
        let counts = counts.map(|counts| &counts[place..]);
        take_out_one(state, chunk.stack(place), counts).map(|is_taken| taken | u64::from(is_taken) << place)
    })
}

/// Takes the stack to which this place leads out of the map, as [`take_out`] does. Returns whether it was.
fn take_out_one(state: &ThreadState, place: &AtomicPtr<()>, counts: Option<&[Counts]>) -> Option<bool> {
    let stack = || NonNull::new(place.load(Ordering::Acquire)).map(|stack| Key(stack.cast()));
    let Some(key) = stack() else { return Some(false) };
    let (map, hash) = (map(), key.record().hash);
    let index = map.determine_shard(hash as usize);
    let (shard, wait) = map.shards().get(index).zip(WAITS.get(index))?;
    let _interning = state.enter(BUSY | INTERNING);
    let Some(mut shard) = shard.try_write() else {
        // A thread has probably left the lock by a jump, so the stack stays.
        return wait.has_given_up().then_some(false);
    };
    // It may have been handed on meanwhile.
    let Some(key) = stack() else { return Some(false) };
    let removed = shard.remove_entry(hash, |(other, _)| *other == key);
    if let Some(counts) = counts.filter(|_| removed.is_none())
        // Once, though a lock that is taken may have the whole chunk taken out again.
        && key.record().id.swap(CARRIED, Ordering::Relaxed) != CARRIED
        && let Some((latest, _)) = shard.get(hash, |(other, _)| other.is_same_stack(&key))
    {
        let (bytes, blocks) = allocated(counts, key.record().interval);
        latest.carry(Carried { bytes, blocks });
        latest.carry(key.carried());
    }
    Some(true)
}

/// Iterates over the stacks of these places of a chunk, a bit for each.
pub(crate) fn stacks_of(chunk: &Shared, places: u64) -> impl Iterator<Item = NonNull<()>> {
    let is_asked = move |place: &usize| places >> place & 1 == 1;
    let stack = |place| NonNull::new(chunk.stack(place).load(Ordering::Acquire));
    (0..CHUNK).filter(is_asked).filter_map(stack)
}

/// Returns whether all stacks of a chunk, one at least, are of scopes that are over: none of them is met again. In a round.
pub(crate) fn are_of_ended_scopes(chunk: &Shared) -> bool {
    let mut scopes = stacks_of(chunk, u64::MAX).map(|stack| Key(stack.cast()).scope()).peekable();
    scopes.peek().is_some() && scopes.all(slots::is_over)
}

/// Returns whether all stacks of the chunk of this number, one at least, were renewed and have new ids by now: none of them is met
/// again at the old one. In a round.
///
/// A stack that was not met since it was renewed keeps its id, as if it had not been, until it is met or has died.
pub(crate) fn are_renewed(chunk: &Shared, number: usize) -> bool {
    let open = chunk.life.open();
    let has_new_id = |(place, stack): (usize, NonNull<()>)| {
        let latest = Key(stack.cast()).id();
        open >> place & 1 == 0 && latest as usize != number * CHUNK + place
    };
    let stack = |place| NonNull::new(chunk.stack(place).load(Ordering::Acquire)).map(|stack| (place, stack));
    let mut stacks = (0..CHUNK).filter_map(stack).peekable();
    stacks.peek().is_some() && stacks.all(has_new_id)
}

/// Frees a recorded stack.
///
/// # Safety
///
/// * It was [taken out](take_out), and nothing follows the pointer any more.
pub(crate) unsafe fn free(stack: NonNull<()>) {
    unrecord(Key(stack.cast()));
}

/// Creates the map before it is needed.
pub(crate) fn prepare() {
    map();
}

/// Returns the id of the stack in the buffer, whose `hash` and `interval` are set here.
///
/// A stack whose blocks are sampled is a distinct one for each interval, so that an id determines the weight of its
/// blocks. It has [`IDS_PER_SAMPLED_STACK`] ids: see there.
///
/// `state` is the calling thread's, and marked `INTERNING`: allocations of the map are overhead. Takes a lock of the map, under
/// which nothing else is locked. Only threads in this function and in [`take_out`] hold it, so it is free soon; where it is not, the
/// stack gets an id apart after a [bounded time](BoundedWait), and where a fork does not end it is lost.
pub(crate) fn intern(
    state: &'static ThreadState,
    buffer: &mut StackBuffer,
    hash: u64,
    interval: u32,
) -> Result<u32, Reason> {
    debug_assert!(
        state.flags() & (BUSY | INTERNING) == BUSY | INTERNING,
        "not interning: {:#x}",
        state.flags()
    );
    (buffer.header.hash, buffer.header.interval) = (hash, interval);
    let sought = &*buffer;
    let _inside = fork::try_enter(state).ok_or(Reason::Reentrant)?;
    let map = map();
    let base = epoch::base();
    let index = map.determine_shard(hash as usize);
    let (shard, wait) = map.shards().get(index).zip(WAITS.get(index)).ok_or(Reason::Stacks)?;
    // By trying, not by waiting in the lock's queue: a thread that does so for the first time gets memory of the C
    // library, which a signal handler may not ask for, and the program's own locks may use the same queue.
    let Some(shared) = wait.until(|| shard.try_read()) else { return intern_apart(sought) };
    let known = shared.get(hash, |(key, _)| key.is(sought)).map(|(key, _)| key.id());
    drop(shared);
    let is_present = |id: u32| id >= base && SHARED.is_open(id);
    if let Some(id) = known.filter(|id| is_present(*id)) {
        return Ok(id);
    }
    let Some(mut shard) = wait.until(|| shard.try_write()) else { return intern_apart(sought) };
    let known = shard.get_mut(hash, |(key, _)| key.is(sought)).map(|(key, _)| key);
    // Another thread may have been faster.
    if let Some(id) = known.as_ref().map(|key| key.id()).filter(|id| is_present(*id)) {
        return Ok(id);
    }
    if let Some(key) = known {
        let stale = key.id();
        let refused = match has_room(sought).and_then(|()| hand_on(key, base, sought)) {
            Ok(id) => return Ok(id),
            Err(refused) => refused,
        };
        return if reopen(stale, base) { Ok(stale) } else { Err(refused) };
    }
    has_room(sought)?;
    let before = shard.buckets();
    // Where fewer than half of the places are taken, the rest are of stacks that were taken out, and are made free again.
    let grows = shard.len() == shard.capacity() && shard.len() >= full(before) / 2;
    if grows && !memory::has_room(2 * before * ENTRY) {
        return Err(Reason::Memory);
    }
    // `DashMap::insert` would end the process where the map cannot grow.
    shard.try_reserve(1, |(key, _)| key.record().hash).map_err(|_| Reason::Memory)?;
    if shard.buckets() != before {
        memory::map_grew((shard.buckets() - before) * ENTRY);
    }
    let (recorded, id) = record_and_publish(sought, false)?;
    shard.insert_entry(hash, (recorded, SharedValue::new(())), |(key, _)| key.record().hash);
    Ok(id)
}

/// Returns an error where there is no room for one more stack.
fn has_room(sought: &StackBuffer) -> Result<(), Reason> {
    if !memory::may_grow() {
        return Err(Reason::Memory);
    }
    let scope = sought.header.scope;
    if scope.is_none() || has_room_in_scope(scope) { Ok(()) } else { Err(Reason::Scopes) }
}

/// Opens the id of a stack again for which there is no room at a new one; false unless it was renewed, and is present. The caller
/// holds the lock of its part of the map, and is in an event: a round that closes the chunk just now waits for the end of that, and
/// then finds the block.
#[cold]
#[inline(never)]
fn reopen(stale: u32, base: u32) -> bool {
    stale >= base && SHARED.chunk(number(stale)).is_some_and(|chunk| chunk.life.reopen(stale as usize))
}

/// Returns whether there is room for one more stack in these scopes.
#[cold]
#[inline(never)]
fn has_room_in_scope(scope: ScopeId) -> bool {
    memory::may_grow_in_scope() || slots::other_of(scope) == scope
}

/// Gives a stack an id without the map, whose lock for it stays locked: no other thread finds this id, and the stack may get
/// several.
#[cold]
#[inline(never)]
fn intern_apart(sought: &StackBuffer) -> Result<u32, Reason> {
    if !memory::may_grow() {
        return Err(Reason::Memory);
    }
    record_and_publish(sought, false).map(|(_, id)| id)
}

/// Copies a stack to memory of its own, and gives it an id. `has_earlier`: it had one before.
fn record_and_publish(sought: &StackBuffer, has_earlier: bool) -> Result<(Key, u32), Reason> {
    let recorded = record(sought, has_earlier).ok_or(Reason::Memory)?;
    match publish(recorded) {
        Ok(id) => {
            if recorded.is_truncated() && !has_earlier {
                dropped::count_truncated();
            }
            Ok((recorded, id))
        }
        Err(reason) => {
            unrecord(recorded);
            Err(reason)
        }
    }
}

/// Holds the locks of all shards, inside the fork lock, as a thread does that jumps out of [`intern`].
#[cfg(test)]
pub(crate) fn lock_all_while(act: impl FnOnce()) {
    let _inside = fork::enter();
    let _shards: Vec<_> = map().shards().iter().map(|shard| shard.write()).collect();
    act();
}

// ── Id → stack ──────────────────────────────────────────────────────────────────────────────────

/// Number of ids of a stack whose blocks are sampled: consecutive, in one chunk of counters. The first counts its
/// blocks at their size, the others count their weight; always in the counters that threads share: see `event`.
pub(crate) const IDS_PER_SAMPLED_STACK: u32 = 4;
const _: () = assert!(CHUNK.is_multiple_of(IDS_PER_SAMPLED_STACK as usize));

/// Assigns the stack an id that leads to it, and makes counters in which frees of it can always be counted.
#[inline(always)]
fn publish(stack: Key) -> Result<u32, Reason> {
    let ids = if stack.record().interval == 0 { 1 } else { IDS_PER_SAMPLED_STACK };
    // An id once taken is never returned, so none is taken without memory: this makes the slot of the next ids,
    // unless another thread takes those first.
    let expected = epoch::first_id(epoch::end_id(), ids);
    let mut slot = place(expected).ok_or(Reason::Memory)?;
    let id = epoch::next_ids(ids).ok_or(Reason::Stacks)?;
    if id != expected {
        slot = place(id).ok_or(Reason::Memory)?;
    }
    debug_assert!(slot.load(Ordering::Relaxed).is_null(), "the id {id} leads to a stack already");
    stack.record().id.store(id, Ordering::Relaxed);
    // Release: pairs with the Acquire of `recorded`.
    slot.store(stack.0.as_ptr().cast(), Ordering::Release);
    Ok(id)
}

/// Returns the slot from which an id leads to its stack. Makes it if need be, with the counters that blocks with this
/// id or one of the ids after it need: those of a whole chunk, see [`IDS_PER_SAMPLED_STACK`].
#[inline(always)]
fn place(id: u32) -> Option<&'static AtomicPtr<()>> {
    debug_assert!(id < SAMPLED, "{id:#x} is a tag, not an id");
    SHARED.make(id).then(|| SHARED.chunk(number(id))).flatten().map(|chunk| chunk.stack(id as usize))
}

/// A recorded stack. The default is that of `[unrecorded]`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Recorded {
    /// Packed return addresses, see `packed`.
    pub packed: &'static [u8],
    /// Set if the walk ended at its limit or at an unknown address.
    pub truncated: bool,
    /// Average bytes between samples of its blocks; 0: all are recorded.
    pub interval: u32,
    /// Scopes that its blocks were allocated in.
    pub scope: ScopeId,
    /// Counts of earlier ids of the stack.
    pub carried: Carried,
    /// The counts of this id are among the carried ones of a later one.
    pub is_carried: bool,
}

impl Recorded {
    /// Returns the return addresses, most recent first.
    pub(crate) fn addresses(&self) -> Unpacked<'static> {
        Unpacked::new(self.packed)
    }
}

/// Returns the stack of an id; `None` for an id that no stack has (those of `[unrecorded]`, for example). In an event, or in
/// [`thread::Reading`].
pub(crate) fn recorded(id: u32) -> Option<Recorded> {
    // Acquire: pairs with the Release of `publish`.
    let stack = SHARED.chunk(number(id))?.stack(id as usize).load(Ordering::Acquire);
    let key = Key(NonNull::new(stack)?.cast());
    // SAFETY: a recorded stack is never written again, and freed after the event or the reading has ended. Callers keep no address
    // longer.
    let packed = unsafe { std::mem::transmute::<&[u8], &'static [u8]>(key.packed()) };
    let interval = key.record().interval;
    debug_assert!(interval == 0 || id.is_multiple_of(IDS_PER_SAMPLED_STACK), "{id} counts a weight");
    Some(Recorded {
        packed,
        truncated: key.is_truncated(),
        interval,
        scope: key.scope(),
        carried: key.carried(),
        is_carried: key.id() == CARRIED,
    })
}
