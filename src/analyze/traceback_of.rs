//! A value the program holds → the traceback of its heap block.
//!
//! For any thread; costs a look at the block's tag, and naming a stack where it is new.
#![forbid(unsafe_code)]

use crate::analyze::frame::Traceback;
use crate::analyze::symbols;
use crate::record::control;
use std::time::Duration;

/// A value that owns one block of the global allocator: `Box`, `Vec` and `String`. Sealed.
pub trait Traced: sealed::Block {}

mod sealed {
    /// Where the block is, its size and its alignment; `None` where there is no block.
    pub trait Block {
        fn block(&self) -> Option<(*const u8, usize, usize)>;
    }
}

use sealed::Block;

impl<T: ?Sized> Traced for Box<T> {}
impl<T> Traced for Vec<T> {}
impl Traced for String {}

impl<T: ?Sized> Block for Box<T> {
    fn block(&self) -> Option<(*const u8, usize, usize)> {
        let value: &T = self;
        (size_of_val(value) != 0)
            .then(|| ((&raw const *value).cast(), size_of_val(value), align_of_val(value)))
    }
}

impl<T> Block for Vec<T> {
    fn block(&self) -> Option<(*const u8, usize, usize)> {
        let size = self.capacity() * size_of::<T>();
        // The capacity of a vector of zero-sized values is endless, and nothing is allocated.
        (size_of::<T>() != 0 && size != 0).then(|| (self.as_ptr().cast(), size, align_of::<T>()))
    }
}

impl Block for String {
    fn block(&self) -> Option<(*const u8, usize, usize)> {
        (self.capacity() != 0).then(|| (self.as_ptr(), self.capacity(), 1))
    }
}

/// Where the block of `value` was allocated, or was last resized.
///
/// `None` for capacity 0, for zero-sized types, for blocks that are not traced, and where heapgauge is not the
/// global allocator.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::traceback_of;
///
/// let kept = String::from("kept");
/// let traceback = traceback_of(&kept).expect("traced");
/// println!("allocated at {traceback}");
/// assert_eq!(traceback_of(&String::new()), None);
/// ```
pub fn traceback_of<T: Traced + ?Sized>(value: &T) -> Option<Traceback> {
    let (address, size, align) = value.block()?;
    let _own = control::own();
    let stack = control::address_info(address, size, align)?;
    let symbols = symbols::global();
    symbols.resolve(&mut std::iter::once(stack.addresses), Duration::MAX);
    symbols.traceback(stack.addresses, control::traceback_limit(), stack.truncated)
}
