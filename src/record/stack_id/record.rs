//! Memory of one recorded stack: its scopes and packed addresses, the latest id, and what was allocated at earlier ones.

use crate::base::atomics::{AtomicU32, AtomicU64, Ordering};
use crate::record::epoch::MAX_ADDRESSES;
use crate::record::memory::{self, UNIT};
use crate::record::scope::id::ScopeId;
use crate::record::scope::slots;
use crate::record::stack_id::packed::{self, LONGEST, Unpacked};
use crate::record::thread::{StackBuffer, StackHeader};
use std::alloc::Layout;
use std::hash::{Hash, Hasher};
use std::ptr::NonNull;

/// A recorded stack. The number of its scopes, if it has any, and the packed bytes of its addresses go on behind it.
#[repr(C)]
pub(super) struct Record {
    /// Hash of the stack: the map asks for it when it grows.
    pub hash: u64,
    /// Id of the stack that was the latest when this record left the map, or now; [`CARRIED`]. Relaxed: written under the lock of its
    /// shard.
    pub id: AtomicU32,
    /// Average bytes between samples of its blocks; 0: all are recorded.
    pub interval: u32,
    /// Number of packed bytes.
    len: u16,
    /// [`TRUNCATED`], [`IN_SCOPE`] and [`CARRIES`].
    flags: u8,
    /// The first bytes of the number of its scopes or of the packed ones.
    first: [u8; 5],
}

/// The walk ended at its limit or at an unknown address.
const TRUNCATED: u8 = 1;
/// The number of the stack's scopes comes before its packed bytes.
const IN_SCOPE: u8 = 2;

/// [`Carried`] counts come after the packed bytes.
const CARRIES: u8 = 4;

/// In place of an id: the counts of the record's own id are among the carried ones of a later record.
pub(super) const CARRIED: u32 = 0;

/// Bytes and blocks that were allocated at earlier ids of a stack that are over, and freed.
pub(super) type CarriedCounts = [AtomicU64; 2];

/// Bytes and blocks that were allocated at earlier ids of a stack, and freed: those whose memory was given back.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Carried {
    pub bytes: u64,
    pub blocks: u64,
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, other: Carried) {
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

/// Bytes from the beginning of a record to the bytes that go on behind it.
const PACKED_AT: usize = std::mem::offset_of!(Record, first);
const _: () = assert!(PACKED_AT + 5 == size_of::<Record>() && MAX_ADDRESSES * LONGEST <= u16::MAX as usize);

/// Returns the bytes that the number of a stack's scopes takes in its record.
fn scope_len(scope: ScopeId) -> usize {
    if scope.is_none() { 0 } else { size_of::<ScopeId>() }
}

/// Pointer to a recorded stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(pub NonNull<Record>);

// SAFETY: a recorded stack is never written again, but for its atomics, and freed after its entry is gone.
unsafe impl Send for Key {}
// SAFETY: as above.
unsafe impl Sync for Key {}

impl Key {
    /// Returns the record without its packed bytes.
    pub(super) fn record(&self) -> &Record {
        // SAFETY: a key points to a record, see the type.
        unsafe { self.0.as_ref() }
    }

    /// Returns the packed bytes of the addresses.
    pub(super) fn packed(&self) -> &[u8] {
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

    pub(super) fn is_truncated(&self) -> bool {
        self.record().flags & TRUNCATED != 0
    }

    /// Returns the scopes of the stack.
    pub(super) fn scope(&self) -> ScopeId {
        if !self.is_in_scope() {
            return ScopeId::NONE;
        }
        // SAFETY: `record` writes them there, before the packed ones.
        let bytes = unsafe { self.0.byte_add(PACKED_AT).cast::<[u8; size_of::<ScopeId>()]>().read() };
        ScopeId::from_bytes(bytes)
    }

    /// Returns the number of bytes that go on behind the record, without carried counts.
    fn len(&self) -> usize {
        scope_len(self.scope()) + usize::from(self.record().len)
    }

    /// Returns the place of carried counts; `None` where the record has none.
    fn carried_counts(&self) -> Option<&CarriedCounts> {
        if self.record().flags & CARRIES == 0 {
            return None;
        }
        // SAFETY: `record` has made room for them there, of zeroes.
        Some(unsafe { self.0.byte_add(carried_at(self.len())).cast::<CarriedCounts>().as_ref() })
    }

    /// Returns the carried counts.
    pub(super) fn carried(&self) -> Carried {
        // Acquire: pairs with the Releases of `carry`.
        self.carried_counts().map_or(Carried::default(), |[bytes, blocks]| Carried {
            bytes: bytes.load(Ordering::Acquire),
            blocks: blocks.load(Ordering::Acquire),
        })
    }

    /// Adds to the carried counts, if the record has a place for them.
    pub(super) fn carry(&self, Carried { bytes, blocks }: Carried) {
        if let Some([in_bytes, in_blocks]) = self.carried_counts() {
            in_bytes.fetch_add(bytes, Ordering::Release);
            in_blocks.fetch_add(blocks, Ordering::Release);
        }
    }

    /// Forgets the carried counts: they are of an epoch that is over.
    pub(super) fn forget_carried(&self) {
        self.carried_counts().into_iter().flatten().for_each(|count| count.store(0, Ordering::Release));
    }

    /// Returns whether both are records of one stack.
    pub(super) fn is_same_stack(&self, other: &Key) -> bool {
        let head = |key: &Key| (key.record().hash, key.record().interval, key.is_truncated(), key.scope());
        head(self) == head(other) && self.packed() == other.packed()
    }

    /// Returns whether the stack in the buffer is this one.
    pub(super) fn is(&self, sought: &StackBuffer) -> bool {
        let (record, header) = (self.record(), &sought.header);
        (record.hash, record.interval, self.is_truncated())
            == (header.hash, header.interval, header.truncated)
            && self.scope() == header.scope
            && Unpacked::new(self.packed()).eq(sought.addresses().iter().copied())
    }

    /// Returns the latest id of the stack.
    pub(super) fn id(&self) -> u32 {
        self.record().id.load(Ordering::Relaxed)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.record().hash);
    }
}

/// Returns the place of carried counts in a record that so many bytes go on behind.
fn carried_at(len: usize) -> usize {
    (PACKED_AT + len).next_multiple_of(align_of::<CarriedCounts>())
}

/// Returns the layout of a recorded stack that so many bytes go on behind, and carried counts.
fn layout(len: usize, carries: bool) -> Option<Layout> {
    let size = if carries { carried_at(len) + size_of::<CarriedCounts>() } else { PACKED_AT + len };
    // A record takes so much anyway, see `memory`.
    Layout::from_size_align(size.next_multiple_of(UNIT), align_of::<Record>()).ok()
}

/// Copies a stack to permanent memory. It has no id yet. `carries`: it is to have a place for counts of earlier ids.
pub(super) fn record(stack: &StackBuffer, carries: bool) -> Option<Key> {
    let len = packed::len(stack.addresses());
    let StackHeader { hash, scope, interval, truncated, .. } = stack.header;
    let copy = NonNull::new(memory::zeroed_bytes(layout(scope_len(scope) + len, carries)?))?;
    debug_assert!(copy.cast::<Record>().is_aligned());
    let cut = if truncated { TRUNCATED } else { 0 };
    let flags = cut | if scope.is_none() { 0 } else { IN_SCOPE } | if carries { CARRIES } else { 0 };
    let record = Record { hash, id: AtomicU32::new(0), interval, len: len as u16, flags, first: [0; 5] };
    // SAFETY: fresh memory, as long as the layout says: at least a record, and from its `first` bytes on those of the number of its
    // scopes and `len` packed ones.
    let packed = unsafe {
        copy.cast::<Record>().write(record);
        if !scope.is_none() {
            record_scope(copy.byte_add(PACKED_AT), scope);
        }
        std::slice::from_raw_parts_mut(copy.byte_add(PACKED_AT + scope_len(scope)).as_ptr(), len)
    };
    packed::pack(stack.addresses(), packed);
    Some(Key(copy.cast()))
}

/// Writes the number of a stack's scopes to its record.
///
/// # Safety
///
/// * There are so many bytes to write to.
#[cold]
#[inline(never)]
unsafe fn record_scope(place: NonNull<u8>, scope: ScopeId) {
    // SAFETY: the caller's duty.
    unsafe { place.cast().write(scope.to_bytes()) };
    slots::note_recorded(scope);
}

/// Frees a copy of [`record`] that was never published.
pub(super) fn unrecord(stack: Key) {
    if let Some(layout) = layout(stack.len(), stack.record().flags & CARRIES != 0) {
        // SAFETY: made by `record` with the same layout.
        unsafe { memory::free_bytes(stack.0.as_ptr().cast(), layout) };
    }
}
