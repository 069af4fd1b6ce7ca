//! Atomics of the write side: all of its code imports them from here, so that a model checker can replace them.

pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
    Ordering, compiler_fence,
};

/// Adds a block to two fields of a struct, bytes and blocks, that only this thread writes, each by one instruction where
/// there is one; both are Releases.
///
/// A macro, because the offset of a field is part of the instruction.
macro_rules! add_block_to_own {
    ($struct:ty, $this:expr, $bytes:ident, $blocks:ident, $size:expr) => {{
        let (this, size): (&$struct, usize) = ($this, $size);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: the words are aligned, alive and writable; that they are atomic keeps other code from seeing half
        // of one, as x86-64 stores eight aligned bytes at once. No other thread writes them, so no lock is needed.
        // They are Releases, as every store here is (the assembler block is one for the compiler).
        unsafe {
            std::arch::asm!(
                "add qword ptr [{this} + {bytes}], {size}",
                "add qword ptr [{this} + {blocks}], 1",
                this = in(reg) this,
                size = in(reg) size,
                bytes = const std::mem::offset_of!($struct, $bytes),
                blocks = const std::mem::offset_of!($struct, $blocks),
                options(nostack),
            );
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            // Release: pairs with the Acquire of the reader.
            this.$bytes.fetch_add(size as u64, Ordering::Release);
            this.$blocks.fetch_add(1, Ordering::Release);
        }
    }};
}
pub(crate) use add_block_to_own;

/// Changes the bits of a field that only this thread writes, by one instruction where there is one: `or`, `and` or `xor`
/// with a value or a constant. A signal handler of this thread that sets bits for good comes before or after it.
///
/// An atomic load and store would be two instructions in a debug build, and on aarch64 in every build.
macro_rules! change_own_bits {
    ($struct:ty, $this:expr, $field:ident, $instruction:literal, $operation:ident, const $bits:expr) => {
        change_own_bits!(@ $struct, $this, $field, $instruction, "{bits}", $operation, (const ($bits) as i32), $bits)
    };
    ($struct:ty, $this:expr, $field:ident, $instruction:literal, $operation:ident, $bits:expr) => {
        change_own_bits!(@ $struct, $this, $field, $instruction, "{bits:e}", $operation, (in(reg) $bits), $bits)
    };
    (@ $struct:ty, $this:expr, $field:ident, $instruction:literal, $operand:literal, $operation:ident,
        ($($source:tt)*), $bits:expr) => {{
        let this: &$struct = $this;
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: the word is aligned, alive and writable, and x86-64 stores four aligned bytes at once. No other thread
        // writes it, so no lock is needed.
        unsafe {
            std::arch::asm!(
                concat!($instruction, " dword ptr [{this} + {field}], ", $operand),
                this = in(reg) this,
                field = const std::mem::offset_of!($struct, $field),
                bits = $($source)*,
                options(nostack),
            );
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        // Relaxed: against the same thread's signal handler only the compiler can reorder.
        this.$field.$operation($bits, Ordering::Relaxed);
    }};
}
pub(crate) use change_own_bits;
