//! The largest stacks of the heap, chosen without allocating: the memory for them is set aside.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::scope_texts::ScopeTexts;
#[cfg(feature = "http")]
use crate::analyze::scope::ScopeLabels;
use crate::record::raw_snapshot::{self, Addresses, Counts, RawStack, StackSink, Unpacked};

/// Bytes set aside for the packed addresses of a stack, on average.
const PACKED: usize = 200;
/// Most scopes whose keys and values memory is set aside for.
const MOST_SCOPES: usize = 256;

/// Stack in the order of its live bytes; of equal ones the older id comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct BySize(pub RawStack);

impl BySize {
    fn key(&self) -> (u64, Reverse<u32>) {
        (self.0.counts.live_bytes(), Reverse(self.0.id))
    }
}

impl PartialEq for BySize {
    fn eq(&self, other: &BySize) -> bool {
        self.key() == other.key()
    }
}

impl Eq for BySize {}

impl PartialOrd for BySize {
    fn partial_cmp(&self, other: &BySize) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BySize {
    fn cmp(&self, other: &BySize) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// At most so many stacks with live blocks, and the totals of the heap that they are of.
#[derive(Clone, Debug, Default)]
pub(super) struct Largest {
    most: usize,
    /// The smallest is the first to go.
    heap: BinaryHeap<Reverse<BySize>>,
    /// Largest first.
    pub stacks: Vec<Reverse<BySize>>,
    addresses: Addresses,
    scopes: ScopeTexts,
    /// Whether memory for more addresses may be allocated.
    is_growing: bool,
    pub totals: Counts,
    pub epoch: u32,
}

impl StackSink for Largest {
    fn begin(&mut self, _most: usize) {
        self.heap.clear();
    }

    fn add(&mut self, stack: RawStack, _packed: &[u8]) {
        if stack.counts.live_blocks() == 0 {
            return;
        }
        let stack = Reverse(BySize(stack));
        if self.heap.len() < self.most {
            self.heap.push(stack);
        } else if let Some(mut smallest) = self.heap.peek_mut()
            && stack.0 > smallest.0
        {
            *smallest = stack;
        }
    }

    fn end(&mut self) {
        self.stacks = std::mem::take(&mut self.heap).into_vec();
        if self.stacks.iter().any(|Reverse(BySize(stack))| !stack.is_open) {
            merge_ids(&mut self.stacks);
        }
        self.stacks.sort_unstable();
        self.addresses.clear();
        self.scopes.clear();
        if self.is_growing {
            // The stacks have room for so many: both grow at the same time, and so as rarely.
            self.addresses.reserve(self.stacks.capacity(), PACKED);
        }
        for Reverse(BySize(stack)) in &mut self.stacks {
            raw_snapshot::with_addresses(stack.id, |packed| {
                keep(&mut self.addresses, stack, packed, self.is_growing);
            });
            self.scopes.keep(stack.scope, self.is_growing);
        }
    }
}

/// Adds up the ids of each stack, which has several where its id was renewed. Allocates nothing.
fn merge_ids(stacks: &mut Vec<Reverse<BySize>>) {
    let order = |Reverse(BySize(one)): &Reverse<BySize>, Reverse(BySize(other)): &Reverse<BySize>| {
        let by_addresses = raw_snapshot::with_addresses(one.id, |one| {
            raw_snapshot::with_addresses(other.id, |other| one.cmp(other))
        });
        by_addresses.then((one.scope, one.truncated).cmp(&(other.scope, other.truncated)))
    };
    // The latest of a stack first.
    stacks.sort_unstable_by(|one, other| order(one, other).then(other.0.0.id.cmp(&one.0.0.id)));
    stacks.dedup_by(|next, sum| {
        let is_same = order(next, sum).is_eq();
        if is_same {
            let (Reverse(BySize(next)), Reverse(BySize(sum))) = (next, sum);
            sum.counts += next.counts;
            sum.variance += next.variance;
        }
        is_same
    });
}

/// Keeps the addresses of a stack, as far as there is room. Those cut off are the first of its thread.
fn keep(kept: &mut Addresses, stack: &mut RawStack, packed: &[u8], is_growing: bool) {
    if is_growing {
        stack.addresses = kept.push(packed);
    } else {
        let (at, is_whole) = kept.push_within(packed);
        stack.addresses = at;
        stack.truncated |= !is_whole;
    }
}

impl Largest {
    /// Sets memory aside for so many stacks.
    pub(super) fn with_room_for(most: usize) -> Largest {
        Largest {
            most,
            heap: BinaryHeap::with_capacity(most),
            addresses: Addresses::with_room_for(most, PACKED),
            scopes: ScopeTexts::with_room_for(most.min(MOST_SCOPES)),
            ..Largest::default()
        }
    }

    /// Makes one whose memory grows as it is needed, for at most so many stacks.
    pub(super) fn growing_to(most: usize) -> Largest {
        Largest { most, is_growing: true, ..Largest::default() }
    }

    /// Reads the heap.
    pub(super) fn read(&mut self) {
        let stacks = std::mem::take(&mut self.stacks);
        self.heap = self.emptied(stacks);
        (self.epoch, self.totals) = raw_snapshot::visit(self);
    }

    /// Returns the memory that is set aside, which is in either of the two.
    fn emptied(&mut self, mut stacks: Vec<Reverse<BySize>>) -> BinaryHeap<Reverse<BySize>> {
        let heap = std::mem::take(&mut self.heap);
        if heap.capacity() >= stacks.capacity() {
            return heap;
        }
        stacks.clear();
        BinaryHeap::from(stacks)
    }

    /// Takes over the stacks and totals of another one, as far as there is room.
    pub(super) fn copy_from(&mut self, other: &Largest) {
        let mut stacks = std::mem::take(&mut self.heap).into_vec();
        if stacks.capacity() < self.stacks.capacity() {
            stacks = std::mem::take(&mut self.stacks);
        }
        stacks.clear();
        stacks.extend(other.stacks.iter().take(self.most));
        self.addresses.clear();
        for Reverse(BySize(stack)) in &mut stacks {
            keep(&mut self.addresses, stack, other.addresses(&*stack).packed(), self.is_growing);
        }
        self.scopes.copy_from(&other.scopes, self.is_growing);
        (self.stacks, self.totals, self.epoch) = (stacks, other.totals, other.epoch);
    }

    /// Iterates over the stacks, largest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &RawStack> {
        self.stacks.iter().map(|Reverse(BySize(stack))| stack)
    }

    /// Returns the scope of one of its stacks as JSON; `None` where it has none, or found no room.
    pub(super) fn scope(&self, stack: &RawStack) -> Option<&str> {
        self.scopes.get(stack.scope)
    }

    /// Returns the keys and values of that scope.
    #[cfg(feature = "http")]
    pub(super) fn scope_labels(&self, stack: &RawStack) -> ScopeLabels {
        self.scopes.labels(stack.scope)
    }

    /// Returns the addresses of one of its stacks, most recent first.
    pub(super) fn addresses(&self, stack: &RawStack) -> Unpacked<'_> {
        self.addresses.of(stack.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::test_blocks::{allocate, free};

    fn stack(id: u32, bytes: u64) -> RawStack {
        let counts = Counts { allocated_bytes: bytes, allocated_blocks: 1, ..Counts::default() };
        RawStack::sample(id, counts)
    }

    #[test]
    fn the_largest_stay_in_the_memory_that_was_set_aside() {
        let mut largest = Largest::with_room_for(3);
        let room = largest.heap.capacity();
        for round in 0..3 {
            let stacks = std::mem::take(&mut largest.stacks);
            largest.heap = largest.emptied(stacks);
            largest.begin(100);
            for id in 0..100 {
                largest.add(stack(id, u64::from((id * 37 + round) % 100)), &[]);
            }
            largest.end();
            let bytes: Vec<u64> = largest.iter().map(|stack| stack.counts.live_bytes()).collect();
            assert_eq!(bytes, [99, 98, 97]);
            assert_eq!(largest.stacks.capacity(), room);
        }
    }

    #[test]
    fn stacks_without_blocks_are_left_out() {
        let mut largest = Largest::with_room_for(3);
        largest.add(RawStack { counts: Counts::default(), ..stack(1, 0) }, &[]);
        assert!(largest.heap.is_empty());
    }

    #[test]
    fn a_stack_of_several_ids_is_one() {
        let mut blocks = Vec::new();
        // From one line.
        for _ in 0..4 {
            blocks.push(allocate(40 << 20));
            let stacks = raw_snapshot::take().stacks;
            let is_here = |stack: &&RawStack| stack.is_open && stack.counts.live_bytes() == 40 << 20;
            let ids: Vec<u32> = stacks.iter().filter(is_here).map(|stack| stack.id).collect();
            assert_eq!(raw_snapshot::renew(&ids), ids.len());
            assert_eq!(ids.len(), 1, "one cohort");
        }
        let mut largest = Largest::with_room_for(4);
        largest.read();
        let first = largest.iter().next().unwrap();
        assert_eq!((first.counts.live_bytes(), first.counts.live_blocks()), (160 << 20, 4));
        let is_same = |stack: &&RawStack| largest.addresses(stack).eq(largest.addresses(first));
        assert_eq!(largest.iter().filter(is_same).count(), 1);
        blocks.into_iter().for_each(free);
    }
}
