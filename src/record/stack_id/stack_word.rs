//! One word of a stack.

/// Reads the word at this address of a stack.
///
/// The word may never have been written: padding, or a dead variable. In the language such bytes are uninitialised,
/// and an integer must not be. It is harmless here: the address comes from the stack pointer, which an assembler
/// block has given, and is never in the frame of the function that reads. So the compiler cannot know which variable
/// it belongs to, has to load the bytes that are there, and takes any such bytes for defined. A word that was only a
/// guess is compared and added up; nothing else depends on it.
///
/// A look-up by frame layout reads words that it only guesses to be return addresses. Some are between variables, where
/// AddressSanitizer ends the program at every load that it instruments.
///
/// # Safety
///
/// * It is aligned and lies on a stack that this thread may read.
#[inline(always)]
pub(crate) unsafe fn read(address: usize) -> usize {
    debug_assert!(address.is_multiple_of(align_of::<usize>()), "no word is at {address:#x}");
    #[cfg(not(heapgauge_sanitized))]
    // SAFETY: the caller's duty.
    unsafe {
        std::ptr::with_exposed_provenance::<usize>(address).read()
    }
    #[cfg(heapgauge_sanitized)]
    {
        let word;
        // SAFETY: one load; the caller's duty.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "mov {word}, [{address}]", word = lateout(reg) word, address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                "ldr {word}, [{address}]", word = lateout(reg) word, address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
        word
    }
}
