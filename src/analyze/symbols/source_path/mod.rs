//! Turns a path of the debug information into the path to show, the crate and the module.
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
//! 5. from the last `src`, `examples`, `tests` or `benches` on. It is a package outside the workspace that left no unit of
//!    its own, as one of generic code alone, and gets the name of its folder in front, which is mostly the package's;
//! 6. without `/home/<name>`, `/Users/<name>` or `/root` in front.
#![forbid(unsafe_code)]

mod workspace;

use super::demangle::first_segment;
use crate::analyze::frame::without_version;
use workspace::{Unit, Workspace};

/// Folders of a package that files of crates are in.
const TARGETS: [&str; 4] = ["src/", "examples/", "tests/", "benches/"];

/// Folders of the homes of users.
const HOMES: [&str; 2] = ["/home/", "/Users/"];

/// Home of the superuser, without the name of a user below it.
const SUPERUSER: &str = "/root";

/// File, crate and module of a path in the debug information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourcePath {
    /// Path to show.
    pub file: String,
    pub standard: bool,
    /// True if it is a file of the workspace that the program was built from.
    pub own: bool,
    /// Crate, as far as the path gives it.
    pub krate: Option<String>,
    /// Path of the module by the rules of `mod`, beginning with the crate; empty when the crate is not known.
    pub module: String,
}

/// Directories of a module's crates, from its debug information.
#[derive(Default, Debug)]
pub(super) struct DebugRoots {
    /// Directories Rust compilation units were compiled in.
    pub roots: Vec<String>,
    /// Root file of a crate as an absolute path, and the crate's name.
    pub crates: Vec<(String, String)>,
    /// Directories above `library/std/src/lib.rs` of the crate `std`.
    standard_roots: Vec<String>,
    /// Directories of packages outside the workspace, and the crate's name. Cargo names the root file of a crate of
    /// the workspace relative to the workspace, of any other by its whole path.
    pub outside: Vec<(String, String)>,
    workspace: Workspace,
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

impl DebugRoots {
    /// Collects the directories from `units`: `DW_AT_comp_dir` and `DW_AT_name` of the Rust compilation units. rustc's
    /// names are `src/main.rs/@/my_service.90932d36a0c74be8-cgu.7`; the number may have been dropped.
    pub(super) fn of(units: impl IntoIterator<Item = (String, String)>) -> DebugRoots {
        let mut found = DebugRoots::default();
        let (mut inside, mut all) = (Vec::new(), Vec::new());
        for (directory, name) in units {
            let directory = clean(&directory);
            if let Some((file, unit)) = name.split_once("/@/") {
                let file = clean(file);
                if !file.starts_with('/') {
                    inside.push(directory.clone());
                } else if holds(&directory, &file) {
                    let krate = unit.split('.').next().unwrap_or(unit).to_owned();
                    found.outside.push((directory.clone(), krate));
                }
                let krate = unit.split('.').next().unwrap_or(unit).to_owned();
                all.push(Unit { directory: directory.clone(), file: file.clone(), krate: krate.clone() });
                let file = if file.starts_with('/') { file } else { join(&directory, &file) };
                found.crates.push((file, krate));
            }
            found.roots.push(directory);
        }
        found.roots.sort();
        found.roots.dedup();
        found.crates.sort();
        found.crates.dedup();
        let standard = found.named(|root| root.ends_with("/library/std/src/lib.rs"));
        let standard = standard.filter(|(_, krate)| *krate == "std").filter_map(|(root, _)| {
            let root = root.strip_suffix("/library/std/src/lib.rs")?;
            Some(root.to_owned())
        });
        found.standard_roots = standard.collect();
        found.outside.retain(|(directory, _)| !inside.contains(directory));
        found.outside.sort();
        found.outside.dedup();
        all.retain(|unit| match unit.file.starts_with('/') {
            true => found.standard(&unit.file).is_none(),
            false => found.standard(&join(&unit.directory, &unit.file)).is_none(),
        });
        found.workspace = Workspace::of(&all);
        found
    }

    /// Returns whether a crate is of the workspace and has a compilation unit.
    pub(super) fn holds_own_crate(&self, krate: &str) -> bool {
        self.workspace.holds_crate(krate)
    }

    /// Returns whether line tables cover more than the standard library.
    pub(super) fn covers_program(&self) -> bool {
        match self.crates.is_empty() {
            true => self.roots.iter().any(|root| !is_compilers_folder(root)),
            false => self.crates.iter().any(|(file, _)| self.standard(file).is_none()),
        }
    }

    /// Returns the file, crate and module of a path. `fallback_crate` is the crate of the function the frame was compiled into, a last resort
    /// where one directory holds the roots of several crates.
    pub(super) fn source_path(&self, path: &str, fallback_crate: Option<&str>) -> SourcePath {
        let path = clean(path);
        let (file, standard) = self.relative(&path);
        let named = if standard { None } else { self.within_package(&path, file) };
        let file = named.as_deref().unwrap_or(file);
        let krate = if standard { standard_crate(file) } else { self.crate_of(&path, file, fallback_crate) };
        let module = match &krate {
            Some(krate) if path.ends_with(".rs") => self.module_of(&path, file, krate),
            _ => String::new(),
        };
        let own = !standard && self.workspace.holds_path(&path, self.root_of(&path));
        SourcePath { file: file.to_owned(), standard, own, krate, module }
    }

    /// Puts the name of the crate in front, for a package outside the workspace: `src/lib.rs` alone would be ambiguous.
    fn within_package(&self, path: &str, file: &str) -> Option<String> {
        let Some(root) = self.root_of(path) else { return below_folder(path, file) };
        if path.len() != root.len() + 1 + file.len() {
            return None;
        }
        let mut crates = self.outside.iter().filter(|(directory, _)| directory == root);
        let (_, krate) = crates.next()?;
        // Several crates in one directory, which no package of Cargo's has: the directory's name.
        let name = if crates.next().is_some() { root.rsplit('/').next()? } else { krate };
        Some(format!("{name}/{file}"))
    }

    /// Returns whether a function of this path that has no line is the standard library's. Its copies of crates are built
    /// without debug information; the program's own copy of one has lines, where the program has. `has_lines`: lines
    /// were looked for.
    pub(super) fn is_copy_of_standard(&self, function: &str, has_lines: bool) -> bool {
        first_segment(function).is_some_and(|krate| {
            IN_STANDARD.contains(&krate)
                && (has_lines || !self.crates.iter().any(|(_, other)| other == krate))
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
        if let Some(rest) = below_cargos_home(path) {
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
        let of_targets = TARGETS.iter().filter_map(|directory| path.rfind(&format!("/{directory}")));
        if path.ends_with(".rs")
            && let Some(at) = of_targets.max()
        {
            return (&path[at + 1..], false);
        }
        for home in HOMES {
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

    fn crate_of(&self, path: &str, file: &str, fallback_crate: Option<&str>) -> Option<String> {
        // The root file itself; two targets of one package may share it.
        let of_root = |krates: &[&str]| match krates {
            [] => None,
            [only] => Some((*only).to_owned()),
            several => fallback_crate
                .filter(|fallback_crate| several.contains(fallback_crate))
                .or(several.first().copied())
                .map(String::from),
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
        if let Some(fallback_crate) = fallback_crate.filter(|fallback_crate| krates.contains(fallback_crate))
        {
            return Some(fallback_crate.to_owned());
        }
        if let Some(library) = library {
            return Some(library.to_owned());
        }
        if krates.len() == 1 && !is_target_directory(file) {
            return Some(krates[0].to_owned());
        }
        by_convention(file).or_else(|| fallback_crate.map(String::from))
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

/// Returns the rest after `marker` and `levels` directories, where the first of them ends in a hash as Cargo's do.
fn after<'a>(path: &'a str, marker: &str, levels: usize) -> Option<&'a str> {
    let (at, _) = path.rmatch_indices(marker).find(|&(at, _)| {
        let named = path[at + marker.len()..].split('/').next().unwrap_or_default();
        (at == 0 || path[..at].ends_with('/')) && ends_in_hash(named)
    })?;
    let mut rest = &path[at + marker.len()..];
    for _ in 0..levels {
        rest = rest.split_once('/')?.1;
    }
    Some(rest)
}

/// Returns the rest of a path without `registry/src` or `git/checkouts` in front, as `trim-paths` leaves it:
/// `index.crates.io-<hash>/serde-1.0.1/…`, `engine-<hash>/<revision>/…`.
fn below_cargos_home(path: &str) -> Option<&str> {
    let (first, rest) = path.split_once('/')?;
    let (second, inside) = rest.split_once('/')?;
    let is_revision = second.len() >= 7 && second.bytes().all(|byte| byte.is_ascii_hexdigit());
    ends_in_hash(first).then_some(if is_revision { inside } else { rest })
}

/// Returns whether a folder's name ends as Cargo's do: `engine-a1b2c3d4e5f60718`.
fn ends_in_hash(folder: &str) -> bool {
    let hash = folder.rsplit_once('-').map_or("", |(_, hash)| hash);
    hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn standard_crate(file: &str) -> Option<String> {
    // `library/alloc/src/…`, `library/stdarch/crates/core_arch/src/…`, `hashbrown-0.16.1/src/…`
    let above = file.find("/src/").map_or(file, |at| &file[..at]);
    let package = above.rsplit('/').next()?;
    Some(without_version(package).unwrap_or(package).replace('-', "_"))
}

/// Puts the name of a package's folder in front of a file, written as crates are: a crate's own name is there as soon as it
/// leaves a compilation unit. The folder of a git checkout is its revision, and the repository's name above.
fn below_folder(path: &str, file: &str) -> Option<String> {
    let above = path.strip_suffix(file)?.strip_suffix('/')?;
    let (parent, folder) = above.rsplit_once('/')?;
    let name = match after(path, "git/checkouts/", 2).or_else(|| below_cargos_home(path)) {
        Some(rest) if rest == file => parent.rsplit('/').next()?.rsplit_once('-')?.0,
        _ => folder,
    };
    let is_home = above == SUPERUSER || HOMES.iter().any(|homes| homes.trim_end_matches('/') == parent);
    let is_target = TARGETS.iter().any(|directory| file.starts_with(directory));
    (is_target && !is_home && !name.is_empty()).then(|| format!("{}/{file}", name.replace('-', "_")))
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
    match directory {
        "" => file.to_owned(),
        _ => format!("{}/{file}", directory.trim_end_matches('/')),
    }
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
mod tests;
