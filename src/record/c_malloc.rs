//! Asks the C library's allocator: whether it is glibc's own, and glibc for its arenas.
//!
//! Part of the border, because it calls the C library; the read side uses it. glibc locks one arena after the other and
//! walks through its free chunks, some nanoseconds to a tenth of a microsecond each, during which threads that need that
//! arena wait. It prints its findings with no arena locked.

/// Returns whether `malloc` is glibc's, and not that of a library that was preloaded or linked before it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn is_glibc() -> bool {
    // The loader knows nothing of a static program. There `malloc_info` below brings `malloc`, which is in the same object.
    if cfg!(target_feature = "crt-static") {
        return true;
    }
    let module = |address: *const libc::c_void| {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: a place for the answer, which is there if the call says so.
        unsafe {
            (libc::dladdr(address, info.as_mut_ptr()) != 0).then(|| info.assume_init().dli_fbase.addr())
        }
    };
    let malloc = module(libc::malloc as *const libc::c_void);
    malloc.is_some() && malloc == module(libc::gnu_get_libc_version as *const libc::c_void)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn is_glibc() -> bool {
    false
}

/// Passes the text of `malloc_info` to `take`, in pieces as they are printed: between the piece that begins an arena and
/// the next one, that arena was locked. False where the C library has none.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn malloc_info(mut take: &mut dyn FnMut(&[u8])) -> bool {
    /// Functions of a stream, as glibc's `cookie_io_functions_t`.
    #[repr(C)]
    struct Functions {
        read: *const libc::c_void,
        write: extern "C" fn(*mut libc::c_void, *const libc::c_char, usize) -> isize,
        seek: *const libc::c_void,
        close: *const libc::c_void,
    }

    unsafe extern "C" {
        fn fopencookie(
            cookie: *mut libc::c_void,
            mode: *const libc::c_char,
            functions: Functions,
        ) -> *mut libc::FILE;
    }

    extern "C" fn write(cookie: *mut libc::c_void, text: *const libc::c_char, length: usize) -> isize {
        // SAFETY: the cookie is `take` below, which lives as long as the stream and is reached through it alone; the
        // text has so many bytes. A panic ends the process at this function's edge.
        unsafe {
            let take = &mut *cookie.cast::<&mut dyn FnMut(&[u8])>();
            take(std::slice::from_raw_parts(text.cast(), length));
        }
        length as isize
    }

    let none = std::ptr::null();
    let functions = Functions { read: none, write, seek: none, close: none };
    // SAFETY: the stream is opened, used and closed here, by this thread alone; without a buffer of its own, each piece
    // is passed on as it is printed.
    unsafe {
        let stream = fopencookie((&raw mut take).cast(), c"w".as_ptr(), functions);
        if stream.is_null() {
            return false;
        }
        libc::setvbuf(stream, std::ptr::null_mut(), libc::_IONBF, 0);
        let failed = libc::malloc_info(0, stream) != 0;
        libc::fclose(stream);
        !failed
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn malloc_info(_take: &mut dyn FnMut(&[u8])) -> bool {
    false
}

/// Returns the room of new blocks of so many bytes, without heapgauge's tag: the least of several that live at once, up to the first
/// that is `enough`. Others are larger, where the rest of a free chunk was too small for a chunk of its own.
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
pub(crate) fn usable_size(size: usize, enough: impl Fn(usize) -> bool) -> usize {
    let (mut blocks, mut least) = (Vec::new(), usize::MAX);
    while blocks.len() < 50_000 && !enough(least) {
        // SAFETY: a block of its own, freed once below.
        unsafe {
            blocks.push(libc::malloc(size));
            least = least.min(libc::malloc_usable_size(blocks[blocks.len() - 1]));
        }
    }
    // SAFETY: as above.
    blocks.into_iter().for_each(|block| unsafe { libc::free(block) });
    least
}

#[cfg(all(test, target_os = "linux", target_env = "gnu", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn glibc_says_what_it_has() {
        assert!(is_glibc());
        let (mut text, mut pieces) = (Vec::new(), 0);
        assert!(malloc_info(&mut |piece| {
            text.extend_from_slice(piece);
            pieces += 1;
        }));
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("<malloc version=\"1\">") && text.trim_end().ends_with("</malloc>"),
            "{text}"
        );
        assert!(pieces > 5, "{pieces} pieces: an arena's beginning is not told from the rest");
    }
}
