//! Finds the start of the function at an address in a module without symbols, from the table of unwind rules that every
//! module has, stripped or not; and whether the function is heapgauge's own.
//!
//! The file is read by parts: a look-up is a binary search with some 15 reads of 8 bytes.
#![forbid(unsafe_code)]

use super::loaded_modules::{self, Module};
use super::site_rules::{self, CodeOwner};
use super::unwind_table::UnwindTable;
use crate::analyze::frame::{Frame, UNKNOWN};
use crate::record::control;
use std::collections::HashSet;

/// Table of one module, and functions of it that are skipped.
pub(super) struct FunctionStarts {
    table: UnwindTable,
    /// Starts of those functions, as linked.
    own: HashSet<u64>,
}

impl FunctionStarts {
    pub(super) fn open(module: &Module) -> Option<FunctionStarts> {
        let table = UnwindTable::open(module)?;
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

/// Returns the frame of an address without a name. One that is in no file or in the C library is no site; nor is one
/// in a function of heapgauge's, as far as the table of the module's functions is at hand.
pub(super) fn unnamed_frame(
    modules: &[Module],
    starts: Option<&FunctionStarts>,
    address: usize,
) -> (Frame, CodeOwner) {
    let unknown = Frame::new(None, UNKNOWN, 0);
    let Some(module) = loaded_modules::index_of(modules, address).map(|at| &modules[at]) else {
        return (unknown, CodeOwner::Standard);
    };
    let offset = starts.map_or((address - module.low) as u64, |starts| starts.linked(address));
    let frame = Frame { module: Some(module.name.clone()), offset: Some(offset), ..unknown };
    let is_own = starts.is_some_and(|starts| starts.start(address).is_some_and(|start| starts.is_own(start)));
    (frame, if is_own { CodeOwner::Heapgauge } else { site_rules::owner_of_module(&module.name) })
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
        let modules = loaded_modules::list();
        let at = here as fn(usize) -> usize as usize;
        let module = &modules[loaded_modules::index_of(&modules, at).unwrap()];
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
