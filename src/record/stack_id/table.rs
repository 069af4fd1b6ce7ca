//! Interner: a stack → its id, and an id → the stack's addresses.
//!
//! A thread asks the map only after a miss in its own cache. The map compares whole stacks and their scopes, so an id is exactly one
//! stack in one combination of scopes. It keeps their addresses packed, in a third of the bytes that they take in a walk. Readers follow ids to addresses without a lock.
//!
//! A recorded stack belongs to one id, whose place in the chunks leads to it, and to an entry of the map where that has this
//! id; it is freed with the chunk, see `reclaim`. Where a stack gets a new id, an id that is below the base hands its copy on,
//! and one of this epoch keeps it, as it may have live blocks.
//!
//! An id is stale below `epoch::base`, and where it is closed or over (see `life`): its stack gets a new one when it is met again.

use crate::base::atomics::{AtomicPtr, AtomicU32, Ordering};
use crate::record::bounded_wait::BoundedWait;
use crate::record::count::counters::{CHUNK, Shared, number};
use crate::record::dropped::{self, Reason};
use crate::record::epoch::{self, MAX_ADDRESSES};
use crate::record::fork;
use crate::record::memory::{self, UNIT};
use crate::record::scope::id::ScopeId;
use crate::record::scope::slots;
use crate::record::stack_id::packed::{self, LONGEST, Unpacked};
use crate::record::tag::SAMPLED;
use crate::record::thread::{BUSY, INTERNING, SHARED, StackBuffer, StackHeader, ThreadState};
use dashmap::{DashMap, SharedValue};
use std::alloc::Layout;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::ptr::{NonNull, null_mut};

/// A recorded stack. The number of its scopes, if it has any, and the packed bytes of its addresses go on behind it.
#[repr(C)]
struct Record {
    /// Hash of the stack: the map asks for it when it grows.
    hash: u64,
    /// Latest id of the stack. Relaxed: read and written under the lock of its shard.
    id: AtomicU32,
    /// Average bytes between samples of its blocks; 0: all are recorded.
    interval: u32,
    /// Number of packed bytes.
    len: u16,
    /// [`TRUNCATED`] and [`IN_SCOPE`].
    flags: u8,
    /// The first bytes of the number of its scopes or of the packed ones.
    first: [u8; 5],
}

/// The walk ended at its limit or at an unknown address.
const TRUNCATED: u8 = 1;
/// The number of the stack's scopes comes before its packed bytes.
const IN_SCOPE: u8 = 2;

/// Bytes from the beginning of a record to the bytes that go on behind it.
const PACKED_AT: usize = std::mem::offset_of!(Record, first);
const _: () = assert!(PACKED_AT + 5 == size_of::<Record>() && MAX_ADDRESSES * LONGEST <= u16::MAX as usize);

/// Returns the bytes that the number of a stack's scopes takes in its record.
fn scope_len(scope: ScopeId) -> usize {
    if scope.is_none() { 0 } else { size_of::<ScopeId>() }
}

/// Pointer to a recorded stack.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(NonNull<Record>);

// SAFETY: a recorded stack is never written again, but for its atomic id, and freed after its entry is gone.
unsafe impl Send for Key {}
// SAFETY: as above.
unsafe impl Sync for Key {}

impl Key {
    /// Returns the record without its packed bytes.
    fn record(&self) -> &Record {
        // SAFETY: a key points to a record, see the type.
        unsafe { self.0.as_ref() }
    }

    /// Returns the packed bytes of the addresses.
    fn packed(&self) -> &[u8] {
        let at = PACKED_AT + if self.is_in_scope() { size_of::<ScopeId>() } else { 0 };
        // SAFETY: `record` writes `len` bytes there.
        unsafe {
            let first = self.0.byte_add(at).cast::<u8>();
            std::slice::from_raw_parts(first.as_ptr(), self.record().len.into())
        }
    }

    fn is_in_scope(&self) -> bool {
        self.record().flags & IN_SCOPE != 0
    }

    fn is_truncated(&self) -> bool {
        self.record().flags & TRUNCATED != 0
    }

    /// Returns the scopes of the stack.
    fn scope(&self) -> ScopeId {
        if !self.is_in_scope() {
            return ScopeId::NONE;
        }
        // SAFETY: `record` writes them there, before the packed ones.
        let bytes = unsafe { self.0.byte_add(PACKED_AT).cast::<[u8; size_of::<ScopeId>()]>().read() };
        ScopeId::from_bytes(bytes)
    }

    /// Returns whether the stack in the buffer is this one.
    fn is(&self, sought: &StackBuffer) -> bool {
        let (record, header) = (self.record(), &sought.header);
        (record.hash, record.interval, self.is_truncated())
            == (header.hash, header.interval, header.truncated)
            && self.scope() == header.scope
            && Unpacked::new(self.packed()).eq(sought.addresses().iter().copied())
    }

    /// Returns the latest id of the stack.
    fn id(&self) -> u32 {
        self.record().id.load(Ordering::Relaxed)
    }

    /// Gives the stack a new id.
    fn publish(&self) -> Result<u32, Reason> {
        let id = publish(*self)?;
        self.record().id.store(id, Ordering::Relaxed);
        Ok(id)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.record().hash);
    }
}

/// Hasher that passes on the stored hash, which is well mixed already.
#[derive(Default)]
struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The stacks; their ids are in the records.
type Map = DashMap<Key, (), BuildHasherDefault<Ready>>;

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
fn renew(key: &mut Key, base: u32, sought: &StackBuffer) -> Result<u32, Reason> {
    let stale = key.id();
    if stale >= base {
        // The counters and the copy of the old id stay: blocks of it may be live.
        let (copy, id) = record_and_publish(sought)?;
        *key = copy;
        return Ok(id);
    }
    // It was seen before the last `clear`.
    let id = key.publish()?;
    if let Some(chunk) = SHARED.chunk(number(stale)) {
        // Release: as in `publish`.
        chunk.stack(stale as usize).store(null_mut(), Ordering::Release);
    }
    Ok(id)
}

/// Takes the stacks of a chunk whose ids are over out of the map. Returns their places, a bit for each; `None` where that has to
/// wait, because a part of the map is locked. The caller is inside the fork lock, and no other thread calls this meanwhile.
///
/// A stack that a thread is just interning may come to its place later: it has no bit, stays in the map with an id that is
/// stale, and is handed on.
pub(crate) fn take_out(state: &ThreadState, chunk: &Shared) -> Option<u64> {
    const { assert!(CHUNK == u64::BITS as usize) };
    (0..CHUNK).try_fold(0, |taken, place| {
        take_out_one(state, chunk.stack(place)).map(|is_taken| taken | u64::from(is_taken) << place)
    })
}

/// Takes the stack to which this place leads out of the map, as [`take_out`] does. Returns whether it was.
fn take_out_one(state: &ThreadState, place: &AtomicPtr<()>) -> Option<bool> {
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
    let Some(Key(stack)) = stack() else { return Some(false) };
    shard.remove_entry(hash, |(Key(other), _)| *other == stack);
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
    if !memory::may_grow() {
        return Err(Reason::Memory);
    }
    let scope = sought.header.scope;
    if !scope.is_none() && !memory::may_grow_in_scope() && slots::other_of(scope) != scope {
        return Err(Reason::Scopes);
    }
    if let Some(key) = known {
        return renew(key, base, sought);
    }
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
    let (recorded, id) = record_and_publish(sought)?;
    shard.insert_entry(hash, (recorded, SharedValue::new(())), |(key, _)| key.record().hash);
    Ok(id)
}

/// Gives a stack an id without the map, whose lock for it stays locked: no other thread finds this id, and the stack may get
/// several.
#[cold]
#[inline(never)]
fn intern_apart(sought: &StackBuffer) -> Result<u32, Reason> {
    if !memory::may_grow() {
        return Err(Reason::Memory);
    }
    record_and_publish(sought).map(|(_, id)| id)
}

/// Copies a stack to memory of its own, and gives it an id.
fn record_and_publish(sought: &StackBuffer) -> Result<(Key, u32), Reason> {
    let recorded = record(sought).ok_or(Reason::Memory)?;
    match recorded.publish() {
        Ok(id) => {
            if recorded.is_truncated() {
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

/// Returns the layout of a recorded stack that so many bytes go on behind.
fn layout(len: usize) -> Option<Layout> {
    // A record takes so much anyway, see `memory`.
    let size = (PACKED_AT + len).next_multiple_of(UNIT);
    Layout::from_size_align(size, align_of::<Record>()).ok()
}

/// Copies a stack to permanent memory. It has no id yet.
fn record(stack: &StackBuffer) -> Option<Key> {
    let len = packed::len(stack.addresses());
    let StackHeader { hash, scope, interval, truncated, .. } = stack.header;
    let copy = NonNull::new(memory::zeroed_bytes(layout(scope_len(scope) + len)?))?;
    debug_assert!(copy.cast::<Record>().is_aligned());
    let cut = if truncated { TRUNCATED } else { 0 };
    let flags = cut | if scope.is_none() { 0 } else { IN_SCOPE };
    let record = Record { hash, id: AtomicU32::new(0), interval, len: len as u16, flags, first: [0; 5] };
    // SAFETY: fresh memory, as long as the layout says: at least a record, and from its `first` bytes on those of the number of its
    // scopes and `len` packed ones.
    let bytes = unsafe {
        copy.cast::<Record>().write(record);
        std::slice::from_raw_parts_mut(copy.byte_add(PACKED_AT).as_ptr(), scope_len(scope) + len)
    };
    let (before, packed) = bytes.split_at_mut(scope_len(scope));
    if !before.is_empty() {
        before.copy_from_slice(&scope.to_bytes());
        slots::note_recorded(scope);
    }
    packed::pack(stack.addresses(), packed);
    Some(Key(copy.cast()))
}

/// Frees a copy of [`record`] that was never published.
fn unrecord(stack: Key) {
    if let Some(layout) = layout(scope_len(stack.scope()) + stack.packed().len()) {
        // SAFETY: made by `record` with the same layout.
        unsafe { memory::free_bytes(stack.0.as_ptr().cast(), layout) };
    }
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

/// A recorded stack.
#[derive(Clone, Copy)]
pub(crate) struct Recorded {
    /// Packed return addresses, see `packed`.
    pub packed: &'static [u8],
    /// Set if the walk ended at its limit or at an unknown address.
    pub truncated: bool,
    /// Average bytes between samples of its blocks; 0: all are recorded.
    pub interval: u32,
    /// Scopes that its blocks were allocated in.
    pub scope: ScopeId,
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
    Some(Recorded { packed, truncated: key.is_truncated(), interval, scope: key.scope() })
}
