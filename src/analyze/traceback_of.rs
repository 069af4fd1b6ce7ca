//! Returns the traceback of the heap block behind a value.
//!
//! Any thread may call it. It costs a look at the block's tag, and naming a stack where it is new.
#![forbid(unsafe_code)]

use crate::analyze::frame::Traceback;
use crate::analyze::symbols;
use crate::record::control;
use crate::record::global_allocator::{self, Traced};
use std::time::Duration;

/// Returns where the block of `value` was allocated, or was last resized.
///
/// `None` for capacity 0, for zero-sized types, for blocks that are not traced, and where the program did not declare
/// its allocator with [`global_allocator!`](crate::global_allocator): only then are the bytes behind a block certain to
/// be heapgauge's. `None` too in a program that is linked against the shared standard library.
///
/// # Examples
///
/// ```standalone_crate
/// use heapgauge::traceback_of;
///
/// heapgauge::global_allocator! {
///     static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// }
///
/// let kept = String::from("kept");
/// let traceback = traceback_of(&kept).expect("traced");
/// println!("allocated at {traceback}");
/// assert_eq!(traceback_of(&String::new()), None);
/// ```
pub fn traceback_of<T: Traced + ?Sized>(value: &T) -> Option<Traceback> {
    let _own = control::internal();
    // A vector made inside a shared standard library comes from that library's own allocator, and has no tag behind it.
    if symbols::is_standard_library_shared() {
        return None;
    }
    let stack = global_allocator::stack_of(value)?;
    let symbols = symbols::global();
    symbols.resolve(&mut std::iter::once(&stack.addresses), Duration::MAX);
    symbols.traceback(&stack.addresses, control::traceback_limit(), stack.truncated)
}
