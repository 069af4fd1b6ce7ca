//! Memory that was unlinked from the tables by id, until it is freed: see `reclaim`.

use crate::record::count::chunk_table::Page;
use crate::record::count::counters::{CHUNK, OwnerCounters, Shared};
use crate::record::memory;
use crate::record::stack_id::sums::read_chunk;
use crate::record::stack_id::table;
use crate::record::thread::{self, SHARED};
use std::ptr::NonNull;

/// Chunks and pages that are unlinked at most.
const MOST: usize = 2048;

/// A piece of memory.
#[derive(Clone, Copy)]
enum Piece {
    Own(NonNull<OwnerCounters>),
    Shared(NonNull<Shared>),
    OwnPage(NonNull<Page<OwnerCounters>>),
    SharedPage(NonNull<Page<Shared>>),
    Stack(NonNull<()>),
}

impl Piece {
    /// Frees it.
    ///
    /// # Safety
    ///
    /// * Nothing follows the pointer any more.
    unsafe fn free(self) {
        // SAFETY: each came from a table, which makes it in this way; and the caller's duty.
        unsafe {
            match self {
                Piece::Own(chunk) => OwnerCounters::free(chunk),
                Piece::Shared(chunk) => memory::free_array(chunk.as_ptr(), 1),
                Piece::OwnPage(page) => memory::free_array_of_thread(page.as_ptr(), 1),
                Piece::SharedPage(page) => memory::free_array(page.as_ptr(), 1),
                Piece::Stack(stack) => table::free(stack),
            }
        }
    }
}

/// Pieces of memory that were unlinked. One thread at a time unlinks.
pub(super) struct Unlinked {
    pieces: [Option<Piece>; MOST],
    len: usize,
}

impl Unlinked {
    pub(super) const fn new() -> Unlinked {
        Unlinked { pieces: [None; MOST], len: 0 }
    }

    /// Returns whether nothing is to be freed.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Unlinks the chunks of this number, those of threads after the shared one; false where some may be left.
    pub(super) fn unlink(&mut self, number: usize) -> bool {
        self.unlink_shared(number, false) && self.unlink_own(number)
    }

    /// Unlinks the shared chunk of this number and the stacks of its ids; false, and it is not unlinked, where that has to wait.
    /// `carries`: the ids are of the present epoch, and the counts of stacks that have new ones go there.
    pub(super) fn unlink_shared(&mut self, number: usize, carries: bool) -> bool {
        let Some(chunk) = SHARED.chunk(number) else { return true };
        let is_room = MOST - self.len > CHUNK + 1;
        let counts = if carries { read_chunk(number) } else { None };
        let taken_out = || thread::current().and_then(|state| table::take_out(state, chunk, counts.as_ref()));
        let Some(stacks) = is_room.then(taken_out).flatten() else { return false };
        // These are in the map no more, so none is handed on any more.
        self.add_all(table::stacks_of(chunk, stacks).map(Piece::Stack))
            && self.add_all(SHARED.unlink(number).into_iter().map(Piece::Shared))
    }

    /// Unlinks the threads' chunks of this number; false where some may be left.
    pub(super) fn unlink_own(&mut self, number: usize) -> bool {
        self.add_all(thread::all().filter_map(|state| state.counters.unlink(number).map(Piece::Own)))
    }

    /// Unlinks the pages of this number of a chunk, which has no chunk; false where some may be left.
    pub(super) fn unlink_page(&mut self, number: usize) -> bool {
        let own = thread::all().filter_map(|state| state.counters.unlink_page(number).map(Piece::OwnPage));
        let shared = || SHARED.unlink_page(number).map(Piece::SharedPage);
        self.add_all(own) && self.add_all(std::iter::from_fn(shared))
    }

    /// Adds pieces that are unlinked one by one; false where there is no room for more.
    fn add_all(&mut self, mut unlinked: impl Iterator<Item = Piece>) -> bool {
        while let Some(place) = self.pieces.get_mut(self.len) {
            let Some(one) = unlinked.next() else { return true };
            *place = Some(one);
            self.len += 1;
        }
        false
    }

    /// Frees all.
    ///
    /// # Safety
    ///
    /// * Nothing follows a pointer to them any more.
    pub(super) unsafe fn free(&mut self) {
        for piece in self.pieces[..self.len].iter_mut().filter_map(Option::take) {
            // SAFETY: the caller's duty.
            unsafe { piece.free() };
        }
        self.len = 0;
    }
}
