//! The program's global allocator → whether it is heapgauge's, and the recorded stack of one of its blocks.
//!
//! Any thread may call these at any time. A block's tag is read only where the program declared its allocator with
//! [`global_allocator!`](crate::global_allocator): then every block of `Box`, `Vec` and `String` has a tag. No probe
//! can prove that. An allocator of the program's own may send one layout to a `TrackingAllocator` and another to a
//! mapping that ends with the block, and reading behind that block is a fault by itself.

use crate::record::control;
use crate::record::epoch;
use crate::record::stack_id::table;
use crate::record::tag::{self, FIRST, SAMPLED};
use crate::record::thread::Reading;
use std::hint::black_box;

/// Declares the program's global allocator, so that [`traceback_of`](crate::traceback_of) can tell where a value was
/// allocated.
///
/// The static gets `#[global_allocator]`. Its type is a [`TrackingAllocator`](crate::TrackingAllocator), around any
/// other allocator. Everything else works as well with an ordinary static that has the attribute.
///
/// # Examples
///
/// ```standalone_crate
/// heapgauge::global_allocator! {
///     static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// }
///
/// fn main() {
///     let kept = vec![0u8; 1000];
///     println!("allocated at {}", heapgauge::traceback_of(&kept).expect("traced"));
/// }
/// ```
///
/// An allocator of another type is refused, because its blocks need not come from heapgauge:
///
/// ```compile_fail,E0308
/// heapgauge::global_allocator! {
///     static ALLOC: std::alloc::System = std::alloc::System;
/// }
/// ```
#[macro_export]
macro_rules! global_allocator {
    ($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $allocator:expr $(;)?) => {
        $(#[$attribute])*
        #[global_allocator]
        $visibility static $name: $type = {
            let allocator: $type = $allocator;
            // SAFETY: the attribute makes the static that this value initialises the program's global allocator.
            unsafe { $crate::TrackingAllocator::declared_global(allocator) }
        };
    };
}

/// Kind of the program's global allocator, as far as it can be determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GlobalAllocator {
    /// It is a `TrackingAllocator`, by its declaration.
    Heapgauge,
    /// Some `TrackingAllocator` is in use: it is the global allocator, or the program asks it by itself.
    Probable,
    /// It is not a `TrackingAllocator`, and none was ever asked for a block.
    Other,
}

/// Determines the kind of the program's global allocator. Allocates one small block to find out.
pub(crate) fn global_allocator() -> GlobalAllocator {
    if !epoch::is_global_allocator() {
        // A block of heapgauge's own never takes the fast path, so it reports its allocator.
        let _internal = control::internal();
        drop(black_box(Box::new(black_box(0u64))));
    }
    match (epoch::is_global_allocator(), epoch::has_been_asked()) {
        (true, _) => GlobalAllocator::Heapgauge,
        (false, true) => GlobalAllocator::Probable,
        (false, false) => GlobalAllocator::Other,
    }
}

/// A value that owns one block of the global allocator: `Box`, `Vec` and `String`. Sealed.
///
/// # Examples
///
/// ```standalone_crate
/// heapgauge::global_allocator! {
///     static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// }
///
/// fn tell(value: &impl heapgauge::Traced) {
///     let traceback = heapgauge::traceback_of(value).expect("tracking is on");
///     println!("allocated at {}", traceback.site().name());
/// }
///
/// tell(&vec![0u8; 100]);
/// tell(&"text".to_owned());
/// ```
pub trait Traced: sealed::Block {}

mod sealed {
    /// Returns the address of the block and its size; `None` where there is no block.
    pub trait Block {
        fn block(&self) -> Option<(*const u8, usize)>;
    }
}

use sealed::Block;

impl<T: ?Sized> Traced for Box<T> {}
impl<T> Traced for Vec<T> {}
impl Traced for String {}

impl<T: ?Sized> Block for Box<T> {
    fn block(&self) -> Option<(*const u8, usize)> {
        let value: &T = self;
        (size_of_val(value) != 0).then(|| ((&raw const *value).cast(), size_of_val(value)))
    }
}

impl<T> Block for Vec<T> {
    fn block(&self) -> Option<(*const u8, usize)> {
        let size = self.capacity() * size_of::<T>();
        // The capacity of a vector of zero-sized values is endless, and nothing is allocated.
        (size_of::<T>() != 0 && size != 0).then(|| (self.as_ptr().cast(), size))
    }
}

impl Block for String {
    fn block(&self) -> Option<(*const u8, usize)> {
        (self.capacity() != 0).then(|| (self.as_ptr(), self.capacity()))
    }
}

/// Stack of one block.
pub(crate) struct BlockStack {
    /// Return addresses, most recent first.
    pub addresses: Vec<usize>,
    /// Set if the walk ended at its limit or at an unknown address.
    pub truncated: bool,
}

/// Returns the recorded stack of the block that `value` owns. `None` if the block is not traced, and where the
/// program has not declared heapgauge as its global allocator: then nothing behind the block is read.
pub(crate) fn stack_of<T: Traced + ?Sized>(value: &T) -> Option<BlockStack> {
    let (block, size) = value.block()?;
    if global_allocator() != GlobalAllocator::Heapgauge {
        return None;
    }
    // SAFETY: `value` is borrowed, so its block lives and keeps its size. Only `Box`, `Vec` and `String` are `Block`s;
    // theirs come from the global allocator, which is a `TrackingAllocator` by its declaration.
    let id = unsafe { tag::read(block, size) } & !SAMPLED;
    let _reading = Reading::new();
    if id < FIRST || id < epoch::base() || id >= epoch::end_id() {
        return None;
    }
    let recorded = table::recorded(id)?;
    Some(BlockStack { addresses: recorded.addresses().to_vec(), truncated: recorded.truncated })
}
