//! The one door through which the write side reaches atomics, so that a model checker can stand in.

pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};

/// Adds to a word that only this thread writes, by one instruction where there is one; a Release.
#[inline(always)]
pub(crate) fn add_to_own(word: &AtomicU64, amount: u64) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the word is aligned, alive and writable; that it is atomic keeps other code from seeing half
    // of it, as x86-64 stores eight aligned bytes at once. No other thread writes it, so no lock is needed.
    // It is a Release, as every store here is (the assembler block is one for the compiler).
    unsafe {
        std::arch::asm!(
            "add qword ptr [{word}], {amount}",
            word = in(reg) word.as_ptr(),
            amount = in(reg) amount,
            options(nostack),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // Release: pairs with the Acquire of whoever reads the word.
    word.fetch_add(amount, Ordering::Release);
}
