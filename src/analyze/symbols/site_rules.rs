//! Chooses the frame of a stack that a block is charged to, by the owner of each frame's code.
//!
//! Read side only. The site is the most recent frame of own code; where there is none, the nearest frame: the most recent
//! of a library that is not looked through.
#![forbid(unsafe_code)]

use super::demangle::{STANDARD, first_segment};
use super::source_path::SourcePath;
use crate::analyze::frame::{Frame, via_of};
use std::borrow::Cow;
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
    /// A program's, of the workspace that it was built from.
    Own,
    /// Own code that a derive made: it counts for its caller.
    Derived,
    /// The standard library, and the code that runs before `main` and below a thread's first function.
    Standard,
    /// The functions the compiler puts between `alloc` and the global allocator.
    AllocatorShim,
    /// This crate. Its examples and tests are crates of their own.
    Heapgauge,
}

impl CodeOwner {
    /// Returns whether it is a program's or a library's.
    fn is_programs(self) -> bool {
        matches!(self, CodeOwner::Program | CodeOwner::Own | CodeOwner::Derived)
    }
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

/// Returns the name of a crate as code spells it. Allocates only where a package spells it otherwise.
fn with_underscores(krate: &str) -> Cow<'_, str> {
    if krate.contains('-') { Cow::Owned(krate.replace('-', "_")) } else { Cow::Borrowed(krate) }
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

/// Returns the position behind the frames of the global allocator.
fn first_outside_of_allocator(frames: &[(Arc<Frame>, CodeOwner)]) -> usize {
    // All before the compiler's shim runs inside the global allocator, whatever crate it is of.
    if let Some(shim) = frames.iter().position(|(_, owner)| *owner == CodeOwner::AllocatorShim) {
        return shim + 1;
    }
    // A walk by the platform's unwinder begins in the walker. The shim has no frame where it was inlined, or ends by a jump.
    let is_walker = |(frame, _): &(Arc<Frame>, CodeOwner)| {
        frame.function.as_deref().is_some_and(|function| function.starts_with("heapgauge::record::unwind::"))
    };
    let Some(walker) = frames.iter().position(is_walker) else { return 0 };
    let trackers = frames[walker..].iter().take_while(|(_, owner)| *owner == CodeOwner::Heapgauge);
    walker + trackers.count()
}

/// Returns whether it is a C function below `main` or below a thread's first function.
fn is_runtime(function: &str) -> bool {
    matches!(
        function,
        "main" | "_start" | "start_thread" | "clone" | "clone3" | "__clone" | "__clone3" | "_dl_start_user"
    ) || function.starts_with("__libc_start_")
}

/// Frame of a stack that a block is charged to.
///
/// # Examples
///
/// ```
/// use heapgauge::SiteFrame;
///
/// heapgauge::set_site_frame(SiteFrame::Nearest); // the library's line
/// heapgauge::set_site_frame(SiteFrame::default()); // the program's own line
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SiteFrame {
    /// The most recent frame of own code, where there is one; else the nearest.
    #[default]
    Own,
    /// The most recent frame that is not the standard library's, the allocator's or a looked-through crate's.
    Nearest,
}

/// Changes of the rules; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SiteSettings {
    pub frame: Option<SiteFrame>,
    pub own_crates: Option<Vec<String>>,
    pub look_through: Option<Vec<String>>,
}

impl SiteSettings {
    /// Returns the first name that is none, after the names that are allowed.
    pub(super) fn wrong(&self) -> Option<(&'static str, &str)> {
        let own_crates = self.own_crates.iter().flatten().find(|name| signed(name).is_none());
        let look_through = self.look_through.iter().flatten();
        let look_through =
            look_through.into_iter().find(|name| !is_path(name.trim_start_matches(['+', '-'])));
        let of_own = own_crates
            .map(|name| ("crates and modules with + or - before them, such as -common::cache", name));
        let of_look_through =
            look_through.map(|name| ("crates, such as bytes, with + or - before them or not", name));
        of_own.or(of_look_through).map(|(allowed, name)| (allowed, name.as_str()))
    }
}

/// Splits `+shop` and `-common::cache` into whether it is added, and the name.
pub(crate) fn signed(text: &str) -> Option<(bool, &str)> {
    let (is_added, name) = match text.strip_prefix('+') {
        Some(name) => (true, name),
        None => (false, text.strip_prefix('-')?),
    };
    is_path(name).then_some((is_added, name))
}

/// Returns whether it can be the name of a crate or the path of a module.
fn is_path(text: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    text.split("::").all(is_name)
}

/// Positions in a stack of the nearest frame and of the site's frame, which is not before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub nearest: usize,
    pub site: usize,
    /// True if it is the same whatever frames come behind the site's.
    pub is_certain: bool,
}

/// Rules by which the frame of a site is chosen.
pub(super) struct SiteRules {
    frame: SiteFrame,
    /// Crates whose frames are passed over while a later frame exists.
    look_through: HashSet<String>,
    /// Those of them that the program has named: they are not own code either.
    named: HashSet<String>,
    /// Crates and modules that are own code or not, whatever the workspace; the longest first.
    own_crates: Vec<(String, bool)>,
}

impl Default for SiteRules {
    fn default() -> SiteRules {
        SiteRules {
            frame: SiteFrame::Own,
            look_through: LOOK_THROUGH.iter().map(|krate| (*krate).to_owned()).collect(),
            named: HashSet::new(),
            own_crates: Vec::new(),
        }
    }
}

impl SiteRules {
    /// Applies changes.
    pub(super) fn set(&mut self, settings: &SiteSettings) {
        self.frame = settings.frame.unwrap_or(self.frame);
        if let Some(names) = &settings.look_through {
            // Names without a sign replace the list.
            let replaces = names.is_empty() || names.iter().any(|name| signed(name).is_none());
            let published = LOOK_THROUGH.iter().filter(|_| !replaces);
            self.look_through = published.map(|krate| (*krate).to_owned()).collect();
            self.named.clear();
            for name in names {
                let (is_added, name) = signed(name).unwrap_or((true, name));
                let name = name.replace('-', "_");
                if is_added {
                    self.look_through.insert(name.clone());
                    self.named.insert(name);
                } else {
                    self.look_through.remove(&name);
                }
            }
        }
        if let Some(names) = &settings.own_crates {
            let names = names.iter().filter_map(|name| signed(name));
            self.own_crates = names.map(|(is_own, name)| (name.replace('-', "_"), is_own)).collect();
            self.own_crates.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        }
    }

    /// Chooses the frames of a stack.
    ///
    /// The nearest is the most recent of a program or library that is not looked through; failing that of one that is;
    /// failing that the most recent of the standard library that says more than that it allocates; failing that the most
    /// recent after the allocator's; else the most recent of all. The site's is the most recent of own code, one that was
    /// written rather than derived if there is such; failing that the nearest.
    pub(super) fn choose(&self, frames: &[(Arc<Frame>, CodeOwner)]) -> Choice {
        let begin = first_outside_of_allocator(frames);
        let after = || frames.iter().enumerate().skip(begin);
        let programs = || after().filter(|(_, (_, owner))| owner.is_programs());
        let first = programs().find(|(_, (frame, _))| !self.is_looked_through(frame));
        let nearest = first
            .or_else(|| programs().next())
            .or_else(|| {
                after().find(|(_, (frame, owner))| *owner == CodeOwner::Standard && !only_allocates(frame))
            })
            .or_else(|| after().find(|(_, (_, owner))| *owner == CodeOwner::Standard))
            .map_or(0, |(at, _)| at);
        if self.frame == SiteFrame::Nearest {
            return Choice { nearest, site: nearest, is_certain: first.is_some() };
        }
        let own = || programs().filter(|(_, (frame, owner))| self.is_own(frame, *owner));
        let written = own().find(|(_, (_, owner))| *owner != CodeOwner::Derived);
        let site = written.or_else(|| own().next()).map_or(nearest, |(at, _)| at);
        Choice { nearest: nearest.min(site), site, is_certain: written.is_some() }
    }

    /// Returns the crate of the nearest frame, where it is another one than the site's; else the empty text.
    pub(super) fn via(frames: &[(Arc<Frame>, CodeOwner)], choice: Choice) -> &str {
        via_of(&frames[choice.nearest].0, &frames[choice.site].0)
    }

    fn is_looked_through(&self, frame: &Frame) -> bool {
        self.look_through.contains(&*with_underscores(frame.crate_name()))
    }

    fn is_own(&self, frame: &Frame, owner: CodeOwner) -> bool {
        let is_workspaces = matches!(owner, CodeOwner::Own | CodeOwner::Derived);
        if self.own_crates.is_empty() && self.named.is_empty() {
            return is_workspaces;
        }
        let krate = with_underscores(frame.crate_name());
        let function = frame.function.as_deref().unwrap_or_default();
        let is_in = |name: &str| {
            name == krate
                || function.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        match self.own_crates.iter().find(|(name, _)| is_in(name)) {
            Some((_, is_own)) => *is_own,
            None => is_workspaces && !self.named.contains(&*krate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CodeOwner::{AllocatorShim, Derived, Heapgauge, Own, Program, Standard};

    type Stack = Vec<(Arc<Frame>, CodeOwner)>;

    fn stack(frames: &[(&str, CodeOwner)]) -> Stack {
        let frame = |function: &str| Arc::new(Frame::new(Some(function), "src/a.rs", 1));
        frames.iter().map(|&(function, owner)| (frame(function), owner)).collect()
    }

    fn rules(settings: SiteSettings) -> SiteRules {
        let mut rules = SiteRules::default();
        rules.set(&settings);
        rules
    }

    fn own_crates(names: &[&str]) -> SiteSettings {
        SiteSettings {
            own_crates: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(rules: &SiteRules, stack: &Stack, nearest: usize, site: usize, via: &str) {
        let choice = rules.choose(stack);
        assert_eq!((choice.nearest, choice.site, SiteRules::via(stack, choice)), (nearest, site, via));
    }

    #[test]
    fn the_site_is_the_most_recent_own_frame_and_the_library_it_came_through() {
        let usual = SiteRules::default();
        let spawn = stack(&[
            ("alloc::boxed::Box::new", Standard),
            ("tokio::runtime::task::core::Cell::new", Program),
            ("tokio::task::spawn::spawn", Program),
            ("shop::worker::start", Own),
            ("shop::main", Own),
        ]);
        check(&usual, &spawn, 1, 3, "tokio");
        let nearest = rules(SiteSettings { frame: Some(SiteFrame::Nearest), ..SiteSettings::default() });
        check(&nearest, &spawn, 1, 1, "");
        // Looked through: the nearest frame is the own one.
        check(&usual, &stack(&[("hashbrown::raw::reserve", Program), ("shop::fill", Own)]), 1, 1, "");
        // No own frame.
        check(&usual, &stack(&[("bytes::BytesMut::reserve", Program), ("hyper::poll", Program)]), 1, 1, "");
        check(&usual, &stack(&[("std::thread::spawn", Standard)]), 0, 0, "");
        // An own crate of a name that is looked through by default.
        check(&usual, &stack(&[("bytes::grow", Own), ("shop::main", Own)]), 0, 0, "");
    }

    #[test]
    fn frames_inside_of_the_allocator_are_no_site() {
        let walker = [
            ("backtrace::backtrace::win64::trace", Program),
            ("heapgauge::record::unwind::fallback::walk", Heapgauge),
            ("heapgauge::record::allocator::alloc_slow", Heapgauge),
        ];
        let library = ("serde_json::de::from_str", Program);
        check(&SiteRules::default(), &stack(&[&walker[..], &[library]].concat()), 3, 3, "");
        let shim = ("__rustc::__rust_alloc", AllocatorShim);
        check(&SiteRules::default(), &stack(&[&walker[..], &[shim, library]].concat()), 4, 4, "");
    }

    #[test]
    fn derived_code_stands_for_its_caller() {
        let copied = stack(&[("shop::Order::clone", Derived), ("shop::orders::copy", Own)]);
        check(&SiteRules::default(), &copied, 0, 1, "");
        check(&SiteRules::default(), &stack(&[("shop::Order::clone", Derived)]), 0, 0, "");
    }

    #[test]
    fn crates_and_modules_are_made_own_or_not() {
        let stack = stack(&[
            ("tokio::spawn", Program),
            ("company_tasks::spawn", Program),
            ("common::cache::Cache::put", Own),
            ("common::run", Own),
            ("shop::main", Own),
        ]);
        check(&SiteRules::default(), &stack, 0, 2, "tokio");
        check(&rules(own_crates(&["+company-tasks"])), &stack, 0, 1, "tokio");
        check(&rules(own_crates(&["-common::cache"])), &stack, 0, 3, "tokio");
        check(&rules(own_crates(&["-common"])), &stack, 0, 4, "tokio");
        check(&rules(own_crates(&["-common", "+common::cache"])), &stack, 0, 2, "tokio");
        check(&rules(own_crates(&["-common::cach"])), &stack, 0, 2, "tokio");
        check(&rules(own_crates(&["-common", "-shop"])), &stack, 0, 0, "");
    }

    #[test]
    fn the_list_that_is_looked_through_is_changed_or_replaced() {
        let look_through = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            rules(SiteSettings { look_through: Some(names), ..SiteSettings::default() })
        };
        let stack = stack(&[("hashbrown::grow", Program), ("arena::grow", Program), ("shop::fill", Own)]);
        check(&SiteRules::default(), &stack, 1, 2, "arena");
        check(&look_through(&["+arena"]), &stack, 2, 2, "");
        check(&look_through(&["-hashbrown"]), &stack, 0, 2, "hashbrown");
        check(&look_through(&["arena"]), &stack, 0, 2, "hashbrown");
        // The program's own, because it was named.
        check(&look_through(&["+shop"]), &stack, 1, 1, "");
    }

    #[test]
    fn names_are_crates_or_modules_with_a_sign() {
        for (text, expected) in [
            ("+shop", Some((true, "shop"))),
            ("-common::cache", Some((false, "common::cache"))),
            ("+my-crate", Some((true, "my-crate"))),
            ("shop", None),
            ("+", None),
            ("-a::", None),
            ("+a b", None),
            ("", None),
        ] {
            assert_eq!(signed(text), expected, "{text}");
        }
    }
}
