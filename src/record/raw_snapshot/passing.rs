//! Readings of all stacks that end combinations of scopes on the way.

use super::{RawStack, StackSink, read_epoch};
use crate::record::scope::pass::Pass;
use crate::record::stack_id::reclaim;
use crate::record::stack_id::sums::Counts;
use crate::record::thread::{self, Suspension};

/// Notes the stacks that have live blocks for a pass, and hands them on.
struct Passing<'a, S> {
    sink: &'a mut S,
    pass: Pass,
}

impl<S: StackSink> StackSink for Passing<'_, S> {
    fn begin(&mut self, most: usize) {
        self.sink.begin(most);
    }

    fn add(&mut self, stack: RawStack, packed: &[u8]) {
        // Where its blocks are sampled, the counts are weights, and as equal as the blocks are.
        if !stack.counts.is_drained() {
            self.pass.note_live(stack.scope);
        }
        self.sink.add(stack, packed);
    }

    fn end(&mut self) {
        self.sink.end();
    }
}

/// Reads all stacks of the present epoch, as [`read_epoch`] does, and ends the combinations of scopes that are over. Returns how
/// many as well.
pub(super) fn read_epoch_and_pass(sink: &mut impl StackSink) -> (u32, Counts, usize) {
    let Some(pass) = Pass::begin() else {
        let (base, totals) = read_epoch(sink);
        return (base, totals, 0);
    };
    let mut passing = Passing { sink, pass };
    let (base, totals) = read_epoch(&mut passing);
    (base, totals, passing.pass.end(base))
}

/// Ends the combinations of scopes that are over, where a new one has found no slot, and gives the memory of their stacks back.
pub(crate) fn end_scopes() {
    let _internal = Suspension::new(thread::INTERNAL);
    if read_epoch_and_pass(&mut ()).2 > 0 {
        reclaim::give_back(reclaim::SCOPES);
    }
}
