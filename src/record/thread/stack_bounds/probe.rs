//! The calling thread and the kernel → the bounds of a stack and its readable pages, without the C library.

/// Reads the thread pointer. glibc keeps its data of a thread there, at the upper end of the thread's stack: all frames are
/// below. In the main thread it is elsewhere.
pub(super) fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reads a register that stays; on x86-64 what it points to begins with that very address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "mov {pointer}, fs:0", pointer = out(reg) pointer,
            options(readonly, nostack, preserves_flags)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "mrs {pointer}, tpidr_el0", pointer = out(reg) pointer,
            options(nomem, nostack, preserves_flags)
        );
    }
    pointer
}

/// Returns whether the eight bytes at an address can be read; they are within one page.
///
/// `rt_sigprocmask` reads the set before it finds that nothing can be done with it so: it fails as it must with
/// an address that cannot be read, and otherwise with an unknown way to change the mask. It changes nothing.
/// Without the C library, which would leave the error in `errno`: a program reads that after we have run.
pub(super) fn is_readable(address: usize) -> bool {
    const NO_WAY_TO_CHANGE: usize = usize::MAX;
    let result: isize;
    // SAFETY: this system call writes nothing where it is given no place for the old mask, and changes no mask.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall", inlateout("rax") libc::SYS_rt_sigprocmask as isize => result,
            in("rdi") NO_WAY_TO_CHANGE, in("rsi") address, in("rdx") 0usize, in("r10") 8usize,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0", inlateout("x0") NO_WAY_TO_CHANGE => result,
            in("x1") address, in("x2") 0usize, in("x3") 8usize, in("x8") libc::SYS_rt_sigprocmask,
            options(nostack)
        );
    }
    result == -(libc::EINVAL as isize)
}

/// Copies memory of this process from an address; false where some of it cannot be read, or the kernel will not.
///
/// `process_vm_readv` of the process itself: where another thread takes the memory away at that moment, it fails.
pub(super) fn copy(address: usize, to: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: to.len() };
    // SAFETY: asks for a number.
    let process = unsafe { libc::getpid() };
    let result: isize;
    // SAFETY: this system call writes to `to` alone, as many bytes as it has, and reads the two descriptions.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall", inlateout("rax") libc::SYS_process_vm_readv as isize => result,
            in("rdi") process as isize, in("rsi") &raw const local, in("rdx") 1usize, in("r10") &raw const remote,
            in("r8") 1usize, in("r9") 0usize, lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0", inlateout("x0") process as isize => result,
            in("x1") &raw const local, in("x2") 1usize, in("x3") &raw const remote, in("x4") 1usize,
            in("x5") 0usize, in("x8") libc::SYS_process_vm_readv, options(nostack)
        );
    }
    result == to.len() as isize
}

/// Returns whether the probe is right about readable memory and about a page that cannot be read.
pub(super) fn works() -> bool {
    let here = 0usize;
    // SAFETY: a fresh mapping, that no other code knows of, and its end.
    let guard = unsafe {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let size = super::page_size();
        let page = libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, kind, -1, 0);
        let guard = page != libc::MAP_FAILED && !is_readable(page.addr());
        if page != libc::MAP_FAILED {
            libc::munmap(page, size);
        }
        guard
    };
    guard && is_readable((&raw const here).addr())
}
