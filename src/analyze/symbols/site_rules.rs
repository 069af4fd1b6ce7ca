//! Chooses the frame of a stack that a block is charged to, by the owner of each frame's code.
//!
//! Read side only. The site is the most recent frame of the program or of a library that is not looked through.
#![forbid(unsafe_code)]

use super::demangle::{STANDARD, first_segment};
use super::source_path::SourcePath;
use crate::analyze::frame::Frame;
use std::collections::HashSet;
use std::sync::Arc;

/// Containers and codecs a site is looked for behind: the interesting line is the one that fills a `HashMap` or parses
/// a document, not the line in the library that grew the table. [`set_look_through`](crate::set_look_through) replaces it.
///
/// # Examples
///
/// ```
/// assert!(heapgauge::LOOK_THROUGH.contains(&"hashbrown"));
/// ```
pub const LOOK_THROUGH: &[&str] = &[
    "ahash",
    "arc_swap",
    "arrayvec",
    "base64",
    "bincode",
    "bitvec",
    "bstr",
    "bumpalo",
    "bytes",
    "compact_str",
    "crossbeam_channel",
    "crossbeam_queue",
    "crossbeam_utils",
    "dashmap",
    "either",
    "equivalent",
    "flume",
    "fnv",
    "futures_util",
    "generic_array",
    "hashbrown",
    "heapless",
    "hex",
    "im",
    "indexmap",
    "itertools",
    "lru",
    "memchr",
    "once_cell",
    "parking_lot",
    "petgraph",
    "postcard",
    "prost",
    "quick_xml",
    "rmp_serde",
    "rustc_hash",
    "ryu",
    "serde",
    "serde_core",
    "serde_json",
    "serde_urlencoded",
    "serde_yaml",
    "simd_json",
    "slab",
    "slotmap",
    "smallvec",
    "smol_str",
    "thread_local",
    "tinyvec",
    "toml",
    "triomphe",
    "zerocopy",
];

/// Owner of a frame's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CodeOwner {
    /// A program's or a library's: a site, unless its crate is looked through.
    Program,
    /// The standard library, and the code that runs before `main` and below a thread's first function.
    Standard,
    /// The functions the compiler puts between `alloc` and the global allocator.
    AllocatorShim,
    /// This crate. Its examples and tests are crates of their own.
    Heapgauge,
}

/// Returns the owner of a frame's code, from its final name and path.
pub(super) fn owner_of(function: &str, path: Option<&SourcePath>) -> CodeOwner {
    let last = function.rsplit("::").next().unwrap_or(function);
    if ["__rust_alloc", "__rust_realloc", "__rust_dealloc", "__rust_alloc_zeroed"].contains(&last)
        || last.starts_with("__rg_")
        || last.starts_with("__rdl_")
    {
        return CodeOwner::AllocatorShim;
    }
    let krate = first_segment(function);
    match path {
        Some(path) if path.standard => CodeOwner::Standard,
        Some(path) if path.krate.as_deref() == Some("heapgauge") => CodeOwner::Heapgauge,
        _ if krate == Some("heapgauge") => CodeOwner::Heapgauge,
        Some(path) if path.file.ends_with(".rs") || !is_runtime(function) => CodeOwner::Program,
        _ if krate.is_some_and(|krate| STANDARD.contains(&krate)) || is_runtime(function) => {
            CodeOwner::Standard
        }
        // `<[T]>::to_vec` and the like, which only the standard library can define.
        None if matches!(
            function.split("::").next(),
            Some("slice" | "str" | "array" | "pointer" | "tuple" | "fn")
        ) && krate.is_some() =>
        {
            CodeOwner::Standard
        }
        _ => CodeOwner::Program,
    }
}

/// Returns the owner of the code of a module without names.
pub(super) fn owner_of_module(name: &str) -> CodeOwner {
    let runtime = ["libc.", "libc-", "ld-", "libpthread", "libm.", "libgcc_s", "libstd-", "libdl", "librt"];
    if runtime.iter().any(|begin| name.starts_with(begin)) { CodeOwner::Standard } else { CodeOwner::Program }
}

/// Returns whether a frame is of the standard library's containers and ways to the allocator, which give no reason.
/// The frame that called them is `std::thread::…` or `test::…`.
fn only_allocates(frame: &Frame) -> bool {
    let function = frame.function.as_deref().unwrap_or_default();
    let module = |path: &str| function.strip_prefix(path).is_some_and(|rest| rest.starts_with("::"));
    ["alloc", "core::alloc", "hashbrown", "std::alloc"].into_iter().any(module)
        || frame.file.starts_with("library/alloc/src/")
        || ["library/core/src/alloc/", "library/std/src/alloc.rs"]
            .iter()
            .any(|file| frame.file.starts_with(file))
}

/// Returns whether it is a C function below `main` or below a thread's first function.
fn is_runtime(function: &str) -> bool {
    matches!(
        function,
        "main" | "_start" | "start_thread" | "clone" | "clone3" | "__clone" | "__clone3" | "_dl_start_user"
    ) || function.starts_with("__libc_start_")
}

/// Crates whose frames are passed over while a later frame exists.
pub(super) struct SiteRules {
    look_through: HashSet<String>,
}

impl Default for SiteRules {
    fn default() -> SiteRules {
        SiteRules::new(LOOK_THROUGH.iter().copied())
    }
}

impl SiteRules {
    pub(super) fn new<'a>(crates: impl IntoIterator<Item = &'a str>) -> SiteRules {
        SiteRules { look_through: crates.into_iter().map(|krate| krate.replace('-', "_")).collect() }
    }

    /// Returns the position of the site's frame: the most recent of a program or library that is not looked through;
    /// failing that of one that is; failing that the most recent of the standard library that says more than that it
    /// allocates; failing that the most recent after the allocator's; else the most recent of all.
    pub(super) fn site_position(&self, frames: &[(Arc<Frame>, CodeOwner)]) -> usize {
        // All before the compiler's shim runs inside the global allocator, whatever crate it is of.
        let shim = frames.iter().position(|(_, owner)| *owner == CodeOwner::AllocatorShim);
        let begin = shim.map_or(0, |at| at + 1);
        let after = || frames.iter().enumerate().skip(begin);
        let program = || after().filter(|(_, (_, owner))| *owner == CodeOwner::Program);
        let looked_through =
            |frame: &Frame| self.look_through.contains(&*frame.crate_name().replace('-', "_"));
        program()
            .find(|(_, (frame, _))| !looked_through(frame))
            .or_else(|| program().next())
            .or_else(|| {
                after().find(|(_, (frame, owner))| *owner == CodeOwner::Standard && !only_allocates(frame))
            })
            .or_else(|| after().find(|(_, (_, owner))| *owner == CodeOwner::Standard))
            .map_or(0, |(at, _)| at)
    }

    /// Returns whether a frame is the site wherever it is met first, whatever comes behind it.
    pub(super) fn is_first_choice(&self, frame: &Frame, owner: CodeOwner) -> bool {
        owner == CodeOwner::Program && !self.look_through.contains(&*frame.crate_name().replace('-', "_"))
    }
}
