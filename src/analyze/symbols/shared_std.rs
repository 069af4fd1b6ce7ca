//! Detects a program linked against the shared standard library: a line on stderr, and a word in `heap_build_info`.
//!
//! `libstd-….so` has its own calls of the system's allocator. heapgauge does not see the blocks that the standard
//! library allocates there, and some of them are freed through heapgauge, or the reverse. No library can mend that, so
//! it is reported.
#![forbid(unsafe_code)]

use super::loaded_modules;
use crate::record::control;
use crate::record::fork::Once;
use std::backtrace::Backtrace;
use std::io::Write;

/// Value of `heap_build_info{capture}` where a part of the program's blocks is not seen.
const PARTIAL: &str = "partial";

/// Returns the method of capture: the walker's, or [`PARTIAL`]. The first call looks, and reports it on stderr.
pub(crate) fn capture(walker: &'static str) -> &'static str {
    if is_shared() { PARTIAL } else { walker }
}

/// Returns whether the standard library is a shared one, whose blocks carry no tag. The first call looks, and reports
/// it on stderr.
pub(crate) fn is_shared() -> bool {
    static SHARED: Once<bool> = Once::new();
    let _own = control::internal();
    *SHARED.get_or_make(|| {
        let is_shared = look();
        if is_shared {
            let _ = writeln!(
                std::io::stderr(),
                "heapgauge: this program is linked against the shared standard library (-C prefer-dynamic), which allocates past its \
                 global allocator: figures are not right; build it without that flag"
            );
        }
        is_shared
    })
}

/// Returns whether a function of the standard library that is in no other crate lies in another module than this code.
fn look() -> bool {
    let modules = loaded_modules::list();
    let standard = loaded_modules::index_of(&modules, Backtrace::force_capture as fn() -> Backtrace as usize);
    let own = loaded_modules::main_module(&modules);
    standard.zip(own).is_some_and(|(standard, own)| modules[standard].low != own.low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_the_standard_library_inside() {
        assert!(!is_shared());
        assert_eq!(capture("cfi"), "cfi");
    }
}
