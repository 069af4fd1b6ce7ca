//! Site of a block: the function, file and line it is charged to, the library it came through, and the id of the four.
#![forbid(unsafe_code)]

use crate::analyze::frame::Frame;
use crate::analyze::frame::Traceback;
use std::borrow::Cow;
use std::sync::Arc;

/// Longest `function` label, characters.
const LABEL_CHARS: usize = 120;

/// Version of the way in which sites are chosen and named: ids of another version are of other sites.
pub(crate) const SITE_SCHEME: &str = "2";

/// A (function, file, line) that holds heap, perhaps by way of a library, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// See [`site_id`].
    pub id: u64,
    /// Function, whole; `function_label` cuts it for a label.
    pub function: Arc<str>,
    pub file: Arc<str>,
    pub line: u32,
    pub krate: Arc<str>,
    /// Crate of the nearest frame, where that is another one; else empty.
    pub via: Arc<str>,
    /// Set if its line is not known for want of memory, and perhaps not even the frame that is the site.
    pub lost: Option<Lost>,
}

/// Duration of the loss of lines that no memory was left to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    /// They would not fit if nothing else were there: the name without them is final.
    ForGood,
    /// They may be found when there is more room. A name without them is not final.
    ForNow,
}

/// Stack that is to be named.
#[derive(Debug)]
pub(crate) struct Unnamed {
    pub id: u32,
    pub addresses: Box<[usize]>,
}

impl AsRef<[usize]> for Unnamed {
    fn as_ref(&self) -> &[usize] {
        &self.addresses
    }
}

impl Site {
    /// Returns whether the id would be the same if there had been more memory when it was named.
    pub(crate) fn is_final(&self) -> bool {
        self.lost != Some(Lost::ForNow)
    }

    /// Returns the site of a traceback that was read from a file.
    pub(crate) fn of_traceback(traceback: &Traceback) -> Site {
        Site::of(traceback.site(), traceback.via())
    }

    pub(crate) fn of(frame: &Frame, via: &str) -> Site {
        let function: Arc<str> = match &frame.function {
            Some(function) => function.clone(),
            None => frame.name().into(),
        };
        Site {
            id: site_id(&function, &frame.file, frame.line, via),
            krate: frame.crate_name().into(),
            via: via.into(),
            file: frame.file.clone(),
            line: frame.line,
            function,
            lost: None,
        }
    }

    /// Returns the id as 16 hex digits.
    pub(crate) fn label(&self) -> String {
        format!("{:016x}", self.id)
    }

    /// Returns at most 120 characters, keeping the end. There is no backslash: names are made without.
    pub(crate) fn function_label(&self) -> Cow<'_, str> {
        match self.function.char_indices().rev().nth(LABEL_CHARS - 1) {
            Some((at, _)) => Cow::Borrowed(&self.function[at..]),
            None => Cow::Borrowed(&self.function),
        }
    }
}

/// Returns FNV-1a 64 over `function \0 file \0 line in decimal`, and `\0 via` behind it where that is not empty.
pub(crate) fn site_id(function: &str, file: &str, line: u32, via: &str) -> u64 {
    let line = line.to_string();
    let between: &[u8] = if via.is_empty() { b"" } else { b"\0" };
    let parts: [&[u8]; 7] =
        [function.as_bytes(), b"\0", file.as_bytes(), b"\0", line.as_bytes(), between, via.as_bytes()];
    parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_site_is_fnv_1a() {
        // Reference values of FNV-1a 64 for the empty text and for "a", then the three parts.
        let fnv = |bytes: &[u8]| {
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            })
        };
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(site_id("f", "a.rs", 42, ""), fnv(b"f\0a.rs\x0042"));
        assert_eq!(site_id("f", "a.rs", 42, "tokio"), fnv(b"f\0a.rs\x0042\0tokio"));
        let site = Site::of(&Frame::new(Some("shop::run"), "src/main.rs", 7), "");
        assert_eq!(site.label(), format!("{:016x}", fnv(b"shop::run\0src/main.rs\x007")));
        assert_eq!((&*site.krate, site.label().len()), ("shop", 16));
    }

    #[test]
    fn a_label_keeps_the_end_of_a_long_function() {
        let long = format!("shop::{}::ende", "ä".repeat(200));
        let site = Site::of(&Frame::new(Some(&long), "a.rs", 1), "");
        assert_eq!(site.function_label().chars().count(), 120);
        assert!(long.ends_with(&*site.function_label()));
        assert_eq!(&*site.function, long);
        let exact = "x".repeat(120);
        assert_eq!(Site::of(&Frame::new(Some(&exact), "a.rs", 1), "").function_label(), exact);
    }
}
