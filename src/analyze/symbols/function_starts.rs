//! Finds the start of the function at an address in a module without symbols, from the table of unwind rules that every
//! module has, stripped or not; and whether the function is heapgauge's own.
//!
//! The file is read by parts: a look-up is a binary search with some 15 reads of 8 bytes.
#![forbid(unsafe_code)]

use super::elf::{self, Module};
use crate::record::control;
use std::collections::HashSet;

/// Table of one module, and functions of it that are skipped.
pub(super) struct FunctionStarts {
    table: elf::UnwindTable,
    /// Starts of those functions, as linked.
    own: HashSet<u64>,
}

impl FunctionStarts {
    pub(super) fn open(module: &Module) -> Option<FunctionStarts> {
        let table = elf::UnwindTable::open(module)?;
        let holds = |address: usize| module.ranges.iter().any(|&(low, high)| (low..high).contains(&address));
        let mut own = HashSet::new();
        let own_frames = control::own_frames();
        own.extend(own_frames.functions.into_iter().filter(|at| holds(*at)).filter_map(|at| table.start(at)));
        let asking = holds(own_frames.asking).then(|| table.start(own_frames.asking)).flatten();
        for stack in &own_frames.stacks {
            let starts = stack.iter().map(|address| {
                let address = address.wrapping_sub(1);
                (address, holds(address).then(|| table.start(address)).flatten())
            });
            let starts: Vec<_> = starts.collect();
            // Without the function that asked, nothing tells where the program's frames would begin.
            let Some(end) = starts.iter().position(|(_, start)| start.is_some() && *start == asking) else {
                continue;
            };
            own.extend(starts[..end].iter().filter_map(|(_, start)| *start));
        }
        Some(FunctionStarts { table, own })
    }

    /// Converts an address of the running process to the address as linked: the one that `addr2line` takes.
    pub(super) fn linked(&self, address: usize) -> u64 {
        self.table.linked(address)
    }

    /// Returns the start, as linked, of the function that holds an address of the running process.
    pub(super) fn start(&self, address: usize) -> Option<u64> {
        self.table.start(address)
    }

    /// Returns whether a function is heapgauge's, or one of the standard library's that allocate for others.
    pub(super) fn is_own(&self, start: u64) -> bool {
        self.own.contains(&start)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[inline(never)]
    fn here(number: usize) -> usize {
        std::hint::black_box(number) + 1
    }

    #[test]
    fn functions_begin_where_their_pointers_say() {
        let modules = elf::modules();
        let at = here as fn(usize) -> usize as usize;
        let module = &modules[elf::module_of(&modules, at).unwrap()];
        let starts = FunctionStarts::open(module).unwrap();
        let start = starts.start(at).unwrap();
        assert_eq!(start, starts.linked(at));
        assert_eq!((starts.start(at + 1), starts.start(at + 4)), (Some(start), Some(start)));
        assert_eq!(starts.start(module.low), None, "the headers of the file");
        assert!(!starts.is_own(start));
        let own = control::own_frames().functions;
        assert!(own.into_iter().all(|at| starts.is_own(starts.start(at).unwrap())));
    }
}
