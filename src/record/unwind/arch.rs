//! Registers of the architecture, and where a frame keeps those of its caller.

pub(super) use this::*;

/// Bytes of a word on the stack.
pub(super) const WORD: usize = size_of::<usize>();

/// Registers of a walk: every packed rule counts from one of the last two.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    pub(super) pc: usize,
    pub(super) sp: usize,
    pub(super) fp: usize,
}

impl Registers {
    /// Reads the registers of the function this is inlined into.
    #[inline(always)]
    pub(crate) fn here() -> Registers {
        let pc;
        // SAFETY: copies a register; no memory, no flags. Any program counter of the function will do.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("lea {pc}, [rip]", pc = out(reg) pc, options(nomem, nostack, preserves_flags));
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("adr {pc}, .", pc = out(reg) pc, options(nomem, nostack, preserves_flags));
        }
        Registers { pc, sp: stack_pointer(), fp: frame_pointer() }
    }
}

/// Reads the stack pointer of the function this is inlined into.
#[inline(always)]
pub(super) fn stack_pointer() -> usize {
    let sp;
    // SAFETY: copies a register, whose value is the same in the whole function: so it is pure.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("mov {sp}, rsp", sp = out(reg) sp, options(pure, nomem, nostack, preserves_flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("mov {sp}, sp", sp = out(reg) sp, options(pure, nomem, nostack, preserves_flags));
    }
    sp
}

/// Reads the frame pointer of the function this is inlined into.
#[inline(always)]
pub(super) fn frame_pointer() -> usize {
    let fp;
    // SAFETY: copies a register. Any place will do: where the function uses the register for something else, it has saved it, and the
    // walk takes the saved one.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("mov {fp}, rbp", fp = out(reg) fp, options(pure, nomem, nostack, preserves_flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("mov {fp}, x29", fp = out(reg) fp, options(pure, nomem, nostack, preserves_flags));
    }
    fp
}

#[cfg(target_arch = "x86_64")]
mod this {
    use super::WORD;
    use crate::record::unwind::rule_cache::Rule;
    use gimli::{Register, Vendor, X86_64};
    pub(in crate::record::unwind) const VENDOR: Vendor = Vendor::Default;
    pub(in crate::record::unwind) const STACK_POINTER: Register = X86_64::RSP;
    pub(in crate::record::unwind) const FRAME_POINTER: Register = X86_64::RBP;
    pub(in crate::record::unwind) const RETURN_ADDRESS: Register = X86_64::RA;

    /// Returns the address of the return address, which the call pushed right below the base.
    #[inline(always)]
    pub(in crate::record::unwind) fn return_address_place(base: usize, _rule: Rule) -> usize {
        base.wrapping_sub(WORD)
    }

    /// Returns the address of the caller's frame pointer, if it was saved.
    #[inline(always)]
    pub(in crate::record::unwind) fn frame_pointer_place(base: usize, rule: Rule) -> Option<usize> {
        rule.saved().map(|saved| base.wrapping_add_signed(saved))
    }

    /// Returns the word as loaded from the stack.
    #[inline(always)]
    pub(in crate::record::unwind) fn return_address(word: usize) -> usize {
        word
    }

    /// Encodes the saved registers for a packed rule: the frame pointer's offset from the base. `None` if the return
    /// address is not right below the base.
    pub(in crate::record::unwind) fn saved(
        return_address: i64,
        frame_pointer: Option<i64>,
    ) -> Option<Option<i64>> {
        (return_address == -(WORD as i64)).then_some(frame_pointer)
    }
}

#[cfg(target_arch = "aarch64")]
mod this {
    use super::WORD;
    use crate::record::unwind::rule_cache::Rule;
    use gimli::{AArch64, Register, Vendor};
    /// Vendor of the rules: without it the parser rejects the rows of functions that sign their return address.
    pub(in crate::record::unwind) const VENDOR: Vendor = Vendor::AArch64;
    pub(in crate::record::unwind) const STACK_POINTER: Register = AArch64::SP;
    pub(in crate::record::unwind) const FRAME_POINTER: Register = AArch64::X29;
    pub(in crate::record::unwind) const RETURN_ADDRESS: Register = AArch64::X30;

    /// Returns the address of the link register, which the callee saved as the rule says.
    #[inline(always)]
    pub(in crate::record::unwind) fn return_address_place(base: usize, rule: Rule) -> usize {
        base.wrapping_add_signed(rule.saved().unwrap_or(-(WORD as isize)) & !1)
    }

    /// Returns the address of the caller's frame pointer in a frame record: right below the link register.
    #[inline(always)]
    pub(in crate::record::unwind) fn frame_pointer_place(base: usize, rule: Rule) -> Option<usize> {
        let saved = rule.saved()?;
        (saved & 1 != 0).then(|| base.wrapping_add_signed((saved & !1) - WORD as isize))
    }

    /// Encodes the saved registers for a packed rule: the link register's offset from the base, with the lowest bit
    /// set if the frame pointer is right below it. `None` if that is saved elsewhere.
    pub(in crate::record::unwind) fn saved(
        return_address: i64,
        frame_pointer: Option<i64>,
    ) -> Option<Option<i64>> {
        match frame_pointer {
            None => Some(Some(return_address)),
            Some(place) => (place == return_address - WORD as i64).then_some(Some(return_address | 1)),
        }
    }

    /// Removes the signature that pointer authentication puts into the upper bits: how many those are is up to the
    /// kernel. Encoded as a hint, `xpaclri` does nothing on a processor that signs nothing.
    #[inline(always)]
    pub(in crate::record::unwind) fn return_address(word: usize) -> usize {
        let address: usize;
        // SAFETY: changes the link register, which is declared; no memory, no flags.
        unsafe {
            std::arch::asm!(
                "hint #7", // xpaclri
                inlateout("x30") word => address,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        address
    }
}
