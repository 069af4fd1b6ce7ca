//! Turns a path of the debug information into the path to show, the crate and the module; and finds the owner of code.
//!
//! Pure functions on text, read side only. Nothing here looks at the disk: a container has no sources, and
//! the same binary must give the same names on every host.
//!
//! A path is made relative by the first rule that fits:
//!
//! 1. the standard library's, under whatever prefix a distribution or a flag gave it (`/rustc/<hash>/`,
//!    `/usr/src/rustc-1.97.1/`, the sysroot's, a remapped one): `…/library/std/src/…` → `library/std/src/…`; the
//!    libraries it has inside, in `vendor/` or `deps/` beside it and in `/rust/deps/` → the rest;
//! 2. `…/registry/src/<index>-<hash>/…` → the rest (`serde_json-1.0.1/src/de.rs`);
//! 3. `…/git/checkouts/<name>-<hash>/<revision>/…` → the rest;
//! 4. the longest directory a Rust compilation unit of this module was compiled in (`DW_AT_comp_dir`): Cargo
//!    compiles a workspace's members in the workspace root, other packages in their own. `vendor/<package>`
//!    keeps the package's name, and a package outside the workspace gets its crate's name in front;
//! 5. from the last `src`, `examples`, `tests` or `benches` on;
//! 6. without `/home/<name>`, `/Users/<name>` or `/root` in front.
#![forbid(unsafe_code)]

use super::demangle::{STANDARD, first_segment};
use crate::analyze::frame::{Frame, without_version};

/// Home of the superuser, without the name of a user below it.
const SUPERUSER: &str = "/root";

/// Containers and codecs a site is looked for behind: the interesting line is the one that fills a `HashMap` or parses
/// a document, not the line in the library that grew the table. `Collector::builder().look_through(…)` replaces it.
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
pub(super) enum Origin {
    /// A program's or a library's: a site, unless its crate is looked through.
    Program,
    /// The standard library, and the code that runs before `main` and below a thread's first function.
    Standard,
    /// The functions the compiler puts between `alloc` and the global allocator.
    AllocatorShim,
    /// This crate. Its examples and tests are crates of their own.
    Heapgauge,
}

/// File, crate and module of a path in the debug information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Path to show.
    pub file: String,
    pub standard: bool,
    /// Crate, as far as the path gives it.
    pub krate: Option<String>,
    /// Path of the module by the rules of `mod`, beginning with the crate; empty when the crate is not known.
    pub module: String,
}

/// Directories of a module's crates, from its debug information.
#[derive(Default, Debug)]
pub(super) struct Layout {
    /// Directories Rust compilation units were compiled in.
    pub roots: Vec<String>,
    /// Root file of a crate as an absolute path, and the crate's name.
    pub crates: Vec<(String, String)>,
    /// Directories above `library/std/src/lib.rs` of the crate `std`.
    standard_roots: Vec<String>,
    /// Directories of packages outside the workspace, and the crate's name. Cargo names the root file of a crate of
    /// the workspace relative to the workspace, of any other by its whole path.
    pub outside: Vec<(String, String)>,
}

/// Packages of the standard library, by the names of their folders in `library/`.
const STANDARD_PACKAGES: &[&str] = &[
    "alloc",
    "alloctests",
    "backtrace",
    "compiler-builtins",
    "core",
    "coretests",
    "panic_abort",
    "panic_unwind",
    "portable-simd",
    "proc_macro",
    "profiler_builtins",
    "std",
    "std_detect",
    "stdarch",
    "test",
    "unwind",
];

/// Libraries that the standard library brings compiled in, without lines, for backtraces and its hash tables.
const IN_STANDARD: &[&str] = &[
    "addr2line",
    "adler",
    "adler2",
    "gimli",
    "hashbrown",
    "memchr",
    "miniz_oxide",
    "object",
    "rustc_demangle",
];

impl Layout {
    /// Collects the directories from `units`: `DW_AT_comp_dir` and `DW_AT_name` of the Rust compilation units. rustc's
    /// names are `src/main.rs/@/my_service.90932d36a0c74be8-cgu.7`.
    pub(super) fn of(units: impl IntoIterator<Item = (String, String)>) -> Layout {
        let mut layout = Layout::default();
        let mut inside = Vec::new();
        for (directory, name) in units {
            let directory = clean(&directory);
            if let Some((file, unit)) = name.split_once("/@/") {
                let file = clean(file);
                if !file.starts_with('/') {
                    inside.push(directory.clone());
                } else if holds(&directory, &file) {
                    let krate = unit.split('.').next().unwrap_or(unit).to_owned();
                    layout.outside.push((directory.clone(), krate));
                }
                let file = if file.starts_with('/') { file } else { join(&directory, &file) };
                let krate = unit.split('.').next().unwrap_or(unit).to_owned();
                layout.crates.push((file, krate));
            }
            layout.roots.push(directory);
        }
        layout.roots.sort();
        layout.roots.dedup();
        layout.crates.sort();
        layout.crates.dedup();
        let standard = layout.named(|root| root.ends_with("/library/std/src/lib.rs"));
        let roots = standard.filter(|(_, krate)| *krate == "std").filter_map(|(root, _)| {
            let root = root.strip_suffix("/library/std/src/lib.rs")?;
            Some(root.to_owned())
        });
        layout.standard_roots = roots.collect();
        layout.outside.retain(|(directory, _)| !inside.contains(directory));
        layout.outside.sort();
        layout.outside.dedup();
        layout
    }

    /// Returns whether line tables cover more than the standard library.
    pub(super) fn covers_program(&self) -> bool {
        match self.crates.is_empty() {
            true => self.roots.iter().any(|root| !is_compilers_folder(root)),
            false => self.crates.iter().any(|(file, _)| self.standard(file).is_none()),
        }
    }

    /// Returns the place of a path. `near` is the crate of the function the frame was compiled into, a last resort
    /// where one directory holds the roots of several crates.
    pub(super) fn place(&self, path: &str, near: Option<&str>) -> Place {
        let path = clean(path);
        let (file, standard) = self.relative(&path);
        let named = if standard { None } else { self.within_package(&path, file) };
        let file = named.as_deref().unwrap_or(file);
        let krate = if standard { standard_crate(file) } else { self.crate_of(&path, file, near) };
        let module = match &krate {
            Some(krate) if path.ends_with(".rs") => self.module_of(&path, file, krate),
            _ => String::new(),
        };
        Place { file: file.to_owned(), standard, krate, module }
    }

    /// Puts the name of the crate in front, for a package outside the workspace: `src/lib.rs` alone would be ambiguous.
    fn within_package(&self, path: &str, file: &str) -> Option<String> {
        let root = self.root_of(path).filter(|root| path.len() == root.len() + 1 + file.len())?;
        let mut crates = self.outside.iter().filter(|(directory, _)| directory == root);
        let (_, krate) = crates.next()?;
        // Several crates in one directory, which no package of Cargo's has: the directory's name.
        let name = if crates.next().is_some() { root.rsplit('/').next()? } else { krate };
        Some(format!("{name}/{file}"))
    }

    /// Returns whether a function of this path that has no line is the standard library's: the program's own copy of
    /// that crate would have a compilation unit here.
    pub(super) fn is_copy_of_standard(&self, function: &str) -> bool {
        first_segment(function).is_some_and(|krate| {
            IN_STANDARD.contains(&krate) && !self.crates.iter().any(|(_, other)| other == krate)
        })
    }

    fn relative<'a>(&self, path: &'a str) -> (&'a str, bool) {
        if let Some(rest) = self.standard(path) {
            return (rest, true);
        }
        if let Some(rest) = after(path, "registry/src/", 1) {
            return (rest, false);
        }
        if let Some(rest) = after(path, "git/checkouts/", 2) {
            return (rest, false);
        }
        if !path.starts_with('/') {
            return (path, false);
        }
        if let Some(root) = self.root_of(path) {
            let vendored = root.rsplit_once('/').filter(|(above, _)| above.ends_with("/vendor"));
            let strip = vendored.map_or(root, |(above, _)| above);
            return (&path[strip.len() + 1..], false);
        }
        let conventional = ["/src/", "/examples/", "/tests/", "/benches/"];
        if path.ends_with(".rs")
            && let Some(at) = conventional.iter().filter_map(|directory| path.rfind(directory)).max()
        {
            return (&path[at + 1..], false);
        }
        for home in ["/home/", "/Users/"] {
            if let Some((_, rest)) = path.strip_prefix(home).and_then(|rest| rest.split_once('/')) {
                return (rest, false);
            }
        }
        (path.strip_prefix(SUPERUSER).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path), false)
    }

    /// Returns the part to show of a path of the standard library; `None` for any other path.
    fn standard<'a>(&self, path: &'a str) -> Option<&'a str> {
        if let Some(rest) = path.strip_prefix("/rust/deps/") {
            return Some(rest);
        }
        for part in ["library/", "vendor/", "deps/"] {
            for (at, _) in path.match_indices(part) {
                let Some(above) = path[..at].strip_suffix('/').or((at == 0).then_some("")) else { continue };
                let rest = &path[at..];
                let is_known =
                    self.standard_roots.iter().any(|root| root == above) || is_compilers_folder(above);
                match part {
                    "library/" if is_known || self.is_standard_library(above, rest) => {
                        let vendored = rest.strip_prefix("library/vendor/");
                        return Some(vendored.unwrap_or(rest));
                    }
                    "vendor/" | "deps/" if is_known => return Some(&rest[part.len()..]),
                    _ => {}
                }
            }
        }
        // The compiler's own sources: `/rustc/<hash>/compiler/…`.
        let (_, rest) = path.strip_prefix("/rustc/")?.split_once('/')?;
        Some(rest)
    }

    /// Returns whether `library/…` in an unknown folder is the standard library: it has the form, and no
    /// crate of another kind was compiled in that folder. (A program's own `library/core` is beside its `src`.)
    fn is_standard_library(&self, above: &str, rest: &str) -> bool {
        let is_package = |rest: &str| {
            let mut parts = rest.split('/').skip(1);
            parts.next().is_some_and(|package| STANDARD_PACKAGES.contains(&package))
                && parts.any(|part| part == "src")
        };
        let is_programs = |root: &str| {
            root.strip_prefix(above)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| !is_package(rest))
        };
        let is_package_of_a_registry =
            after(above, "registry/src/", 1).is_some() || after(above, "git/checkouts/", 2).is_some();
        is_package(rest)
            && !is_package_of_a_registry
            && (above.is_empty() || !self.crates.iter().any(|(root, _)| is_programs(root)))
    }

    /// Returns the longest of the directories that holds the file.
    fn root_of(&self, path: &str) -> Option<&str> {
        self.roots
            .iter()
            .filter(|root| root.len() > 1 && holds(root, path))
            .max_by_key(|root| root.len())
            .map(String::as_str)
    }

    fn crate_of(&self, path: &str, file: &str, near: Option<&str>) -> Option<String> {
        // The root file itself; two targets of one package may share it.
        let of_root = |krates: &[&str]| match krates {
            [] => None,
            [only] => Some((*only).to_owned()),
            several => {
                near.filter(|near| several.contains(near)).or(several.first().copied()).map(String::from)
            }
        };
        let exact: Vec<&str> = self.named(|root| root == path).map(|(_, krate)| krate).collect();
        if let Some(krate) = of_root(&exact) {
            return Some(krate);
        }
        // The crates whose root file lies in the nearest directory above.
        let nearest = self.named(|root| directory(root).is_some_and(|above| holds(above, path)));
        let nearest: Vec<(&str, &str)> = nearest.collect();
        let longest = nearest.iter().filter_map(|(root, _)| directory(root)).map(str::len).max();
        let nearest = nearest.iter().filter(|(root, _)| directory(root).map(str::len) == longest);
        let (roots, krates): (Vec<&str>, Vec<&str>) = nearest.copied().unzip();
        let library = roots.iter().position(|root| root.ends_with("/lib.rs")).map(|at| krates[at]);
        if let Some(near) = near.filter(|near| krates.contains(near)) {
            return Some(near.to_owned());
        }
        if let Some(library) = library {
            return Some(library.to_owned());
        }
        if krates.len() == 1 && !is_target_directory(file) {
            return Some(krates[0].to_owned());
        }
        by_convention(file).or_else(|| near.map(String::from))
    }

    fn named(&self, fits: impl Fn(&str) -> bool) -> impl Iterator<Item = (&str, &str)> {
        self.crates.iter().filter(move |(root, _)| fits(root)).map(|(root, krate)| (&**root, &**krate))
    }

    fn module_of(&self, path: &str, file: &str, krate: &str) -> String {
        let is_root = self.named(|root| root == path).any(|(_, of)| of == krate);
        let below_root = self
            .named(|root| directory(root).is_some_and(|above| holds(above, path)))
            .filter(|(_, of)| *of == krate)
            .filter_map(|(root, _)| directory(root))
            .max_by_key(|above| above.len())
            .map(|above| &path[above.len() + 1..]);
        let inside = below_root.unwrap_or_else(|| match file.rfind("src/") {
            Some(at) if at == 0 || file[..at].ends_with('/') => &file[at + "src/".len()..],
            _ => "",
        });
        let mut module = krate.to_owned();
        if is_root {
            return module;
        }
        let inside = inside.strip_suffix(".rs").unwrap_or(inside);
        let inside = inside.strip_suffix("/mod").unwrap_or(inside);
        if !inside.starts_with("bin/") && !matches!(inside, "lib" | "main" | "mod") {
            for segment in inside.split('/').filter(|segment| !segment.is_empty()) {
                module.push_str("::");
                module.push_str(segment);
            }
        }
        module
    }
}

/// Returns the owner of a frame's code, from its final name and place.
pub(super) fn origin(function: &str, place: Option<&Place>) -> Origin {
    let last = function.rsplit("::").next().unwrap_or(function);
    if ["__rust_alloc", "__rust_realloc", "__rust_dealloc", "__rust_alloc_zeroed"].contains(&last)
        || last.starts_with("__rg_")
        || last.starts_with("__rdl_")
    {
        return Origin::AllocatorShim;
    }
    let krate = first_segment(function);
    match place {
        Some(place) if place.standard => Origin::Standard,
        Some(place) if place.krate.as_deref() == Some("heapgauge") => Origin::Heapgauge,
        _ if krate == Some("heapgauge") => Origin::Heapgauge,
        Some(place) if place.file.ends_with(".rs") || !is_runtime(function) => Origin::Program,
        _ if krate.is_some_and(|krate| STANDARD.contains(&krate)) || is_runtime(function) => Origin::Standard,
        // `<[T]>::to_vec` and the like, which only the standard library can define.
        None if matches!(
            function.split("::").next(),
            Some("slice" | "str" | "array" | "pointer" | "tuple" | "fn")
        ) && krate.is_some() =>
        {
            Origin::Standard
        }
        _ => Origin::Program,
    }
}

/// Returns whether a folder holds the sources of a release of Rust, by its name: `/rustc/<hash>`,
/// `/usr/src/rustc-1.97.1`, `rustc-1.97.1-src` of a tarball, `…/lib/rustlib/src/rust` of a sysroot.
fn is_compilers_folder(folder: &str) -> bool {
    let last = folder.rsplit('/').next().unwrap_or_default();
    let version = last.strip_prefix("rustc-").or_else(|| last.strip_prefix("rust-")).unwrap_or_default();
    folder.strip_prefix("/rustc/").is_some_and(|hash| !hash.is_empty() && !hash.contains('/'))
        || folder.ends_with("/rustlib/src/rust")
        || version.starts_with(|first: char| first.is_ascii_digit())
        || version.starts_with("nightly")
        || version.starts_with("beta")
}

/// Returns the owner of the code of a module without names.
pub(super) fn module_origin(name: &str) -> Origin {
    let runtime = ["libc.", "libc-", "ld-", "libpthread", "libm.", "libgcc_s", "libstd-", "libdl", "librt"];
    if runtime.iter().any(|begin| name.starts_with(begin)) { Origin::Standard } else { Origin::Program }
}

/// Returns whether a frame is of the standard library's containers and ways to the allocator, which give no reason.
/// The frame that called them is `std::thread::…` or `test::…`.
pub(super) fn only_allocates(frame: &Frame) -> bool {
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

/// Returns the rest after `marker` and `levels` directories, where the first of them ends in a hash as Cargo's do.
fn after<'a>(path: &'a str, marker: &str, levels: usize) -> Option<&'a str> {
    let (at, _) = path.rmatch_indices(marker).find(|&(at, _)| {
        let named = path[at + marker.len()..].split('/').next().unwrap_or_default();
        let hash = named.rsplit_once('-').map_or("", |(_, hash)| hash);
        (at == 0 || path[..at].ends_with('/'))
            && hash.len() == 16
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })?;
    let mut rest = &path[at + marker.len()..];
    for _ in 0..levels {
        rest = rest.split_once('/')?.1;
    }
    Some(rest)
}

fn standard_crate(file: &str) -> Option<String> {
    // `library/alloc/src/…`, `library/stdarch/crates/core_arch/src/…`, `hashbrown-0.16.1/src/…`
    let above = file.find("/src/").map_or(file, |at| &file[..at]);
    let package = above.rsplit('/').next()?;
    Some(without_version(package).unwrap_or(package).replace('-', "_"))
}

/// Returns the crate by Cargo's own naming of targets, for files of crates that left no compilation unit.
fn by_convention(file: &str) -> Option<String> {
    let stem = |name: &str| name.strip_suffix(".rs").unwrap_or(name).replace('-', "_");
    let parts: Vec<&str> = file.split('/').collect();
    let at = parts.iter().rposition(|part| matches!(*part, "src" | "examples" | "tests" | "benches"))?;
    match (parts[at], &parts[at + 1..]) {
        ("src", ["bin", target, ..]) => Some(stem(target)),
        ("src", _) => {
            let package = parts[..at].last()?;
            Some(without_version(package).unwrap_or(package).replace('-', "_"))
        }
        (_, [target]) | (_, [target, "main.rs"]) => Some(stem(target)),
        _ => None,
    }
}

/// Returns whether every file here is a crate of its own, so that one crate's root says nothing about its neighbour.
fn is_target_directory(file: &str) -> bool {
    let above = directory(file).unwrap_or_default();
    let last = above.rsplit('/').next().unwrap_or_default();
    matches!(last, "examples" | "tests" | "benches" | "bin")
}

fn directory(file: &str) -> Option<&str> {
    file.rsplit_once('/').map(|(above, _)| above)
}

fn holds(directory: &str, path: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn join(directory: &str, file: &str) -> String {
    format!("{}/{file}", directory.trim_end_matches('/'))
}

/// Removes `.`, `..`, doubled and backward slashes.
fn clean(path: &str) -> String {
    let path = path.replace('\\', "/");
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if path.starts_with('/') { format!("/{joined}") } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUSTC: &str = "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860";

    fn layout() -> Layout {
        let unit = |directory: &str, root: &str, krate: &str| {
            (directory.to_owned(), format!("{root}/@/{krate}.90932d36a0c74be8-cgu.7"))
        };
        let registry = "/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        Layout::of([
            unit("/home/ann/projects/shop", "src/main.rs", "shop"),
            unit("/home/ann/projects/shop", "src/lib.rs", "shop_core"),
            unit("/home/ann/projects/shop", "crates/cache/src/lib.rs", "cache"),
            unit("/home/ann/projects/shop", "examples/leaky_service.rs", "leaky_service"),
            unit("/home/ann/projects/other", "/home/ann/projects/other/src/lib.rs", "other"),
            unit(
                "/home/ann/projects/shop/vendor/tiny",
                "/home/ann/projects/shop/vendor/tiny/src/lib.rs",
                "tiny",
            ),
            unit(
                &format!("{registry}/gimli-0.34.0"),
                &format!("{registry}/gimli-0.34.0/src/lib.rs"),
                "gimli",
            ),
            unit(RUSTC, &format!("{RUSTC}/library/std/src/lib.rs"), "std"),
        ])
    }

    #[test]
    fn files_are_relative_and_never_in_a_home_directory() {
        let registry = "/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        let sysroot = "/home/ann/.rustup/toolchains/stable-x86_64-unknown-linux-gnu/lib/rustlib/src/rust";
        // path, file shown, standard library, module
        let expected = [
            (format!("{RUSTC}/library/alloc/src/vec/mod.rs"), "library/alloc/src/vec/mod.rs", true, "alloc::vec"),
            (format!("{sysroot}/library/core/src/option.rs"), "library/core/src/option.rs", true, "core::option"),
            (
                format!("{RUSTC}/library/stdarch/crates/core_arch/src/x86/sse2.rs"),
                "library/stdarch/crates/core_arch/src/x86/sse2.rs",
                true,
                "core_arch::x86::sse2",
            ),
            ("/rust/deps/hashbrown-0.16.1/src/raw/mod.rs".into(), "hashbrown-0.16.1/src/raw/mod.rs", true, "hashbrown::raw"),
            (format!("{registry}/serde_json-1.0.154/src/de.rs"), "serde_json-1.0.154/src/de.rs", false, "serde_json::de"),
            (
                "/usr/local/cargo/registry/src/github.com-1ecc6299db9ec823/foo-bar-0.1.0-rc.2/src/a/b.rs".into(),
                "foo-bar-0.1.0-rc.2/src/a/b.rs",
                false,
                "foo_bar::a::b",
            ),
            (
                "/home/ann/.cargo/git/checkouts/engine-a1b2c3d4e5f60718/0a1b2c3/crates/engine-core/src/lib.rs".into(),
                "crates/engine-core/src/lib.rs",
                false,
                "engine_core",
            ),
            ("/home/ann/projects/shop/src/main.rs".into(), "src/main.rs", false, "shop"),
            ("/home/ann/projects/shop/./src/cart.rs".into(), "src/cart.rs", false, "shop_core::cart"),
            ("/home/ann/projects/shop/src/bin/tool.rs".into(), "src/bin/tool.rs", false, "shop_core"),
            ("/home/ann/projects/shop/crates/cache/src/lru/mod.rs".into(), "crates/cache/src/lru/mod.rs", false, "cache::lru"),
            ("/home/ann/projects/shop/crates/no-unit/src/lib.rs".into(), "crates/no-unit/src/lib.rs", false, "no_unit"),
            ("/home/ann/projects/shop/examples/leaky_service.rs".into(), "examples/leaky_service.rs", false, "leaky_service"),
            ("/home/ann/projects/shop/examples/second.rs".into(), "examples/second.rs", false, "second"),
            ("/home/ann/projects/shop/tests/a_b.rs".into(), "tests/a_b.rs", false, "a_b"),
            ("/home/ann/projects/other/src/deep/er.rs".into(), "other/src/deep/er.rs", false, "other::deep::er"),
            ("/home/ann/projects/shop/vendor/tiny/src/x.rs".into(), "tiny/src/x.rs", false, "tiny::x"),
            ("/home/bob/elsewhere/thing/src/lib.rs".into(), "src/lib.rs", false, ""),
            ("/home/bob/elsewhere/arena.c".into(), "elsewhere/arena.c", false, ""),
            (format!("{SUPERUSER}/arena.c"), "arena.c", false, ""),
            ("./csu/../sysdeps/x86_64/start.S".into(), "sysdeps/x86_64/start.S", false, ""),
            ("src/main.rs".into(), "src/main.rs", false, ""),
        ];
        for (path, file, standard, module) in expected {
            let place = layout().place(&path, None);
            assert_eq!(
                (place.file.as_str(), place.standard, place.module.as_str()),
                (file, standard, module),
                "{path}"
            );
        }
    }

    /// Recognises the library by its form, not by one spelling: distributions and flags put other folders in front.
    #[test]
    fn the_standard_library_is_known_under_any_prefix() {
        let prefixes = [
            "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860",
            "/rustc/1.97.1",
            "/usr/src/rustc-1.97.1",
            "/usr/src/rustc-1.97.1+dfsg1",
            "/builddir/build/BUILD/rust-1.97.1-build/rustc-1.97.1-src",
            "/build/rustc-nightly-src",
            "/usr/lib/rustlib/src/rust",
            "/home/ann/.rustup/toolchains/stable/lib/rustlib/src/rust",
            "/build/rust",
            "/remapped",
            "",
        ];
        // Units as Debian's compiler leaves them, those of a prefix that a flag made, and none at all.
        let debian = Layout::of([
            ("/usr/src/rustc-1.97.1".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
            ("/home/ann/shop".to_owned(), "src/main.rs/@/shop.1-cgu.0".to_owned()),
        ]);
        for layout in [layout(), debian, Layout::default()] {
            for prefix in prefixes {
                for (path, file, module) in [
                    ("library/alloc/src/alloc.rs", "library/alloc/src/alloc.rs", "alloc::alloc"),
                    ("library/std/src/thread/mod.rs", "library/std/src/thread/mod.rs", "std::thread"),
                    (
                        "library/stdarch/crates/core_arch/src/x86/sse2.rs",
                        "library/stdarch/crates/core_arch/src/x86/sse2.rs",
                        "core_arch::x86::sse2",
                    ),
                ] {
                    let path = if prefix.is_empty() { path.to_owned() } else { format!("{prefix}/{path}") };
                    let place = layout.place(&path, None);
                    assert!(place.standard, "{path}");
                    assert_eq!((&*place.file, &*place.module), (file, module), "{path}");
                }
            }
            for vendored in [
                "/usr/src/rustc-1.97.1/vendor/hashbrown-0.16.1/src/raw/mod.rs",
                "/usr/lib/rustlib/src/rust/library/vendor/hashbrown-0.16.1/src/raw/mod.rs",
                "/rust/deps/hashbrown-0.16.1/src/raw/mod.rs",
                "/rustc/1.97.1/deps/hashbrown-0.16.1/src/raw/mod.rs",
            ] {
                let place = layout.place(vendored, None);
                let seen = (&*place.file, place.standard, &*place.module);
                assert_eq!(seen, ("hashbrown-0.16.1/src/raw/mod.rs", true, "hashbrown::raw"), "{vendored}");
            }
        }
        // A prefix that only a flag knows: the crate `std` was compiled there.
        let remapped = Layout::of([
            ("/s".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
            ("/home/ann/shop".to_owned(), "src/main.rs/@/shop.1-cgu.0".to_owned()),
        ]);
        assert!(remapped.place("/s/vendor/hashbrown-0.16.1/src/raw/mod.rs", None).standard);
        assert!(!remapped.place("/t/vendor/hashbrown-0.16.1/src/raw/mod.rs", None).standard);
    }

    #[test]
    fn a_programs_own_folder_called_library_is_its_own() {
        let own = Layout::of([
            ("/home/ann/shop".to_owned(), "src/main.rs/@/shop.1-cgu.0".to_owned()),
            ("/home/ann/shop".to_owned(), "library/core/src/lib.rs/@/shop_core.1-cgu.0".to_owned()),
            ("/usr/src/rustc-1.97.1".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
        ]);
        for (path, file) in [
            ("/home/ann/shop/library/core/src/cart.rs", "library/core/src/cart.rs"),
            ("/home/ann/shop/library/search/src/lib.rs", "library/search/src/lib.rs"),
            (
                "/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/a-1.0.0/library/core/src/lib.rs",
                "a-1.0.0/library/core/src/lib.rs",
            ),
        ] {
            let place = own.place(path, None);
            assert_eq!((&*place.file, place.standard), (file, false), "{path}");
        }
        assert!(own.covers_program());
        let standard = Layout::of([
            ("/usr/src/rustc-1.97.1".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
            ("/usr/src/rustc-1.97.1".to_owned(), "vendor/gimli-0.32.0/src/lib.rs/@/gimli.1-cgu.0".to_owned()),
        ]);
        assert!(!standard.covers_program(), "line tables of the standard library alone");
    }

    #[test]
    fn the_longest_directory_wins_and_the_build_host_does_not_show() {
        let layout = |top: &str| {
            Layout::of([
                (format!("{top}/repo"), format!("{top}/repo/src/lib.rs/@/lib_under_test.1-cgu.0")),
                (format!("{top}/repo/demo"), "src/main.rs/@/demo.2-cgu.0".to_owned()),
            ])
        };
        for top in ["/home/ann", "/builds/17", "/root"] {
            let place = layout(top).place(&format!("{top}/repo/demo/src/main.rs"), None);
            assert_eq!((place.file.as_str(), place.module.as_str()), ("src/main.rs", "demo"));
            let place = layout(top).place(&format!("{top}/repo/src/part.rs"), None);
            let expected = ("lib_under_test/src/part.rs", "lib_under_test::part");
            assert_eq!((place.file.as_str(), place.module.as_str()), expected);
        }
    }

    #[test]
    fn packages_outside_the_workspace_have_their_name_in_front() {
        let unit = |directory: &str, krate: &str| {
            (directory.to_owned(), format!("{directory}/src/lib.rs/@/{krate}.1-cgu.0"))
        };
        let layout = Layout::of([
            ("/work/app".to_owned(), "src/main.rs/@/app.2-cgu.0".to_owned()),
            unit("/work/left-hand", "left"),
            unit("/work/right", "right"),
        ]);
        let file = |path: &str| layout.place(path, None).file;
        assert_eq!(file("/work/app/src/main.rs"), "src/main.rs");
        assert_eq!(file("/work/left-hand/src/lib.rs"), "left/src/lib.rs");
        assert_eq!(file("/work/right/src/lib.rs"), "right/src/lib.rs");
        assert_eq!(layout.place("/work/right/src/a.rs", None).module, "right::a");
    }

    #[test]
    fn copies_of_crates_in_the_standard_library_are_told_from_the_programs() {
        let bare = Layout::default();
        assert!(bare.is_copy_of_standard("gimli::read::abbrev::Abbreviations::insert"));
        assert!(!bare.is_copy_of_standard("shop::gimli"));
        // The program's own `gimli` has a compilation unit.
        assert!(!layout().is_copy_of_standard("gimli::read::abbrev::Abbreviations::insert"));
    }

    #[test]
    fn two_crates_of_one_directory_are_told_apart_by_the_compiled_function() {
        let path = "/home/ann/projects/shop/src/cart.rs";
        assert_eq!(layout().place(path, Some("shop")).module, "shop::cart");
        assert_eq!(layout().place(path, Some("cache")).module, "shop_core::cart");
    }

    #[test]
    fn whose_frame_it_is() {
        let place = |path: &str| layout().place(path, None);
        let main = place("/home/ann/projects/shop/src/main.rs");
        let vec = place(&format!("{RUSTC}/library/alloc/src/vec/mod.rs"));
        let std_map = place("/rust/deps/hashbrown-0.16.1/src/raw/mod.rs");
        let own = place(
            "/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/heapgauge-0.1.0/src/alloc.rs",
        );
        // The compiler gives the shims the line of the `#[global_allocator]`.
        assert_eq!(origin("shop::__rust_alloc", Some(&main)), Origin::AllocatorShim);
        assert_eq!(origin("__rustc::__rust_alloc", None), Origin::AllocatorShim);
        assert_eq!(origin("__rustc::__rg_alloc", None), Origin::AllocatorShim);
        assert_eq!(origin("shop::main", Some(&main)), Origin::Program);
        assert_eq!(origin("shop::main", None), Origin::Program);
        assert_eq!(origin("alloc::vec::Vec::push", Some(&vec)), Origin::Standard);
        assert_eq!(origin("alloc::vec::Vec::push", None), Origin::Standard);
        assert_eq!(origin("slice::to_vec", None), Origin::Standard);
        assert_eq!(origin("hashbrown::raw::RawTable::reserve", Some(&std_map)), Origin::Standard);
        assert_eq!(origin("heapgauge::alloc::TrackingAllocator::alloc", Some(&own)), Origin::Heapgauge);
        assert_eq!(origin("heapgauge::alloc::TrackingAllocator::alloc", None), Origin::Heapgauge);
        assert_eq!(origin("main", None), Origin::Standard);
        assert_eq!(origin("__libc_start_call_main", None), Origin::Standard);
        assert_eq!(origin("sqlite3_step", None), Origin::Program);
    }
}
