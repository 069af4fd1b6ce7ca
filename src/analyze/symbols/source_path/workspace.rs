//! Tells the program's own code from that of its dependencies, by the directories that its crates were compiled in.
//!
//! Cargo compiles the members of a workspace in the workspace's root and names their root files relative to it; every
//! other package is compiled in its own directory, by an absolute path. Where other tools or flags make all paths
//! relative (Bazel, `trim-paths`), directories of vendored packages and versions in their names tell them apart.
#![forbid(unsafe_code)]

use super::{after, below_cargos_home, clean, ends_in_hash, holds};
use crate::analyze::frame::without_version;
use std::collections::HashSet;

/// Directories of packages that the program depends on.
const VENDORED: &[&str] = &["vendor", "third_party", "third-party", "cargo-vendor-dir", ".cargo"];

/// Own crates of a module.
#[derive(Default, Debug)]
pub(super) struct Workspace {
    /// Directories that own crates were compiled in; empty text where paths are relative.
    roots: Vec<String>,
    /// Names of own crates that have a compilation unit.
    crates: HashSet<String>,
    /// Directories below a root that hold packages of others.
    vendored: Vec<String>,
}

/// Compilation unit of a crate.
pub(super) struct Unit {
    pub directory: String,
    /// Root file of the crate, as it was given to the compiler.
    pub file: String,
    pub krate: String,
}

impl Workspace {
    pub(super) fn of(units: &[Unit]) -> Workspace {
        let is_member = |unit: &&Unit| {
            let path = if unit.file.starts_with('/') { unit.file.clone() } else { unit.path() };
            !is_packaged(&path) && !unit.file.starts_with('/') && !holds(&unit.directory, &unit.file)
        };
        let mut members: Vec<&Unit> = units.iter().filter(is_member).collect();
        // A tool that compiles each package in a directory of its own (crate2nix): that of the program has no version, or
        // a root file of a program.
        let is_versioned = |directory: &str| without_version(last(directory)).is_some();
        let programs: HashSet<&str> =
            members.iter().filter(|unit| unit.is_program()).map(|unit| &*unit.directory).collect();
        if members.iter().any(|unit| !is_versioned(&unit.directory)) || !programs.is_empty() {
            members.retain(|unit| !is_versioned(&unit.directory) || programs.contains(&*unit.directory));
        }
        let mut roots: Vec<String> = members.iter().map(|unit| unit.directory.clone()).collect();
        roots.sort();
        roots.dedup();
        let outside =
            units.iter().filter(|unit| unit.file.starts_with('/') && !roots.contains(&unit.directory));
        let beside = |unit: &Unit| unit.directory.rsplit_once('/').map(|(above, _)| above.to_owned());
        let mut vendored: Vec<String> = outside.filter_map(beside).collect();
        vendored.retain(|directory| roots.iter().any(|root| holds(root, directory)));
        vendored.sort();
        vendored.dedup();
        Workspace { roots, crates: members.iter().map(|unit| unit.krate.clone()).collect(), vendored }
    }

    /// Returns whether a cleaned path is of own code. `root` is the longest directory of a compilation unit that holds it.
    pub(super) fn holds_path(&self, path: &str, root: Option<&str>) -> bool {
        if let Some(package) = package_of_build_script(path) {
            return self.crates.contains(&package);
        }
        let root = root.unwrap_or("");
        if !self.roots.iter().any(|own| own == root) || is_packaged(path) {
            return false;
        }
        let inside = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
        !self.vendored.iter().any(|directory| holds(directory, path))
            && !inside.split('/').any(|part| VENDORED.contains(&part) || without_version(part).is_some())
            && !inside.starts_with("external/")
            && (!path.starts_with('/') || !root.is_empty())
    }

    /// Returns whether a crate is an own one that has a compilation unit.
    pub(super) fn holds_crate(&self, krate: &str) -> bool {
        self.crates.contains(krate)
    }
}

impl Unit {
    fn path(&self) -> String {
        clean(&format!("{}/{}", self.directory, self.file))
    }

    /// Returns whether it is the root of a program: `src/main.rs`, or a file that Cargo makes a program of.
    fn is_program(&self) -> bool {
        self.file.ends_with("main.rs")
            || ["src/bin/", "examples/", "tests/", "benches/"].iter().any(|folder| self.file.contains(folder))
    }
}

/// Returns whether a path is that of a package from a registry or a git checkout, or vendored.
fn is_packaged(path: &str) -> bool {
    after(path, "registry/src/", 1).is_some()
        || after(path, "git/checkouts/", 2).is_some()
        || path.split('/').any(|part| part == "vendor" || part == "cargo-vendor-dir")
        || path.trim_start_matches('/').starts_with("external/")
        || below_cargos_home(path).is_some()
}

/// Returns the crate of a package whose build script wrote the file: `…/build/<package>-<hash>/out/…`.
fn package_of_build_script(path: &str) -> Option<String> {
    let (above, _) = path.split_once("/out/")?;
    let (above, named) = above.rsplit_once('/')?;
    let (package, _) = named.rsplit_once('-')?;
    (last(above) == "build" && ends_in_hash(named)).then(|| package.replace('-', "_"))
}

fn last(directory: &str) -> &str {
    directory.rsplit('/').next().unwrap_or(directory)
}

#[cfg(test)]
mod tests {
    use super::super::DebugRoots;

    const REGISTRY: &str = "/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";

    fn roots(units: &[(&str, &str, &str)]) -> DebugRoots {
        DebugRoots::of(units.iter().map(|(directory, file, krate)| {
            ((*directory).to_owned(), format!("{file}/@/{krate}.90932d36a0c74be8-cgu.7"))
        }))
    }

    #[track_caller]
    fn check(roots: &DebugRoots, own: &[&str], others: &[&str]) {
        for path in own {
            assert!(roots.source_path(path, None).own, "{path}");
        }
        for path in others {
            assert!(!roots.source_path(path, None).own, "{path}");
        }
    }

    #[test]
    fn own_code_is_the_workspaces() {
        let serde = format!("{REGISTRY}/serde-1.0.1");
        let root = format!("{serde}/src/lib.rs");
        let roots = roots(&[
            ("/home/ann/shop", "src/main.rs", "shop"),
            ("/home/ann/shop", "crates/cache/src/lib.rs", "cache"),
            (&serde, &root, "serde"),
            ("/home/ann/shop/vendor/tiny", "/home/ann/shop/vendor/tiny/src/lib.rs", "tiny"),
            ("/home/ann/shop/packages/a", "/home/ann/shop/packages/a/src/lib.rs", "a"),
            ("/home/ann/other", "/home/ann/other/src/lib.rs", "other"),
            ("/rustc/1.97.1", "library/std/src/lib.rs", "std"),
        ]);
        check(
            &roots,
            &[
                "/home/ann/shop/src/main.rs",
                "/home/ann/shop/crates/cache/src/lru/mod.rs",
                // Without a compilation unit, as a crate of generic code.
                "/home/ann/shop/crates/traits/src/lib.rs",
                "/home/ann/shop/csrc/arena.c",
                "/home/ann/shop/target/release/build/cache-0123456789abcdef/out/gen.rs",
            ],
            &[
                &root,
                &format!("{REGISTRY}/bytes-1.0.1/src/lib.rs"),
                "/home/ann/.cargo/git/checkouts/engine-a1b2c3d4e5f60718/0a1b2c3/src/lib.rs",
                // A home of Cargo's inside the workspace.
                "/home/ann/shop/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/a-1.0.0/src/lib.rs",
                "/home/ann/shop/vendor/tiny/src/lib.rs",
                "/home/ann/shop/vendor/generic/src/lib.rs",
                // Vendored in a folder of another name, the second without a compilation unit.
                "/home/ann/shop/packages/a/src/lib.rs",
                "/home/ann/shop/packages/b/src/lib.rs",
                "/home/ann/shop/target/release/build/serde-0123456789abcdef/out/gen.rs",
                "/home/ann/other/src/lib.rs",
                "/rustc/1.97.1/library/std/src/thread/mod.rs",
                "/usr/include/zlib.h",
            ],
        );
        assert!(roots.holds_own_crate("cache") && !roots.holds_own_crate("serde"));
    }

    #[test]
    fn a_prefix_that_a_flag_gave_changes_nothing() {
        for top in ["/w", "/build/shop-1.2.3", "/proc/self/cwd"] {
            let deps = format!("{top}-deps/serde-1.0.1");
            let root = format!("{deps}/src/lib.rs");
            let roots = roots(&[(top, "src/main.rs", "shop"), (&deps, &root, "serde")]);
            check(
                &roots,
                &[&format!("{top}/src/cart.rs")],
                &[&root, &format!("{top}-deps/bytes-1.0.0/src/lib.rs")],
            );
        }
    }

    #[test]
    fn where_all_paths_are_relative_packages_are_known_by_their_folders() {
        // `trim-paths`: a package's directory is its name and version.
        let trimmed =
            roots(&[(".", "src/main.rs", "shop"), ("serde-1.0.1", "serde-1.0.1/src/lib.rs", "serde")]);
        check(
            &trimmed,
            &["src/main.rs", "./src/cart.rs"],
            &["serde-1.0.1/src/de.rs", "bytes-1.0.1/src/lib.rs"],
        );
        let cart = trimmed.source_path("./src/cart.rs", None);
        assert_eq!((cart.krate.as_deref(), &*cart.module), (Some("shop"), "shop::cart"));
        // Without the folder that a registry and checkouts are in.
        let index = "index.crates.io-1949cf8c6b5b557f";
        let (serde, generic) = (format!("{index}/serde-1.0.1"), format!("{index}/bytes-1.0.1/src/lib.rs"));
        let root = format!("{serde}/src/lib.rs");
        let engine = "engine-a1b2c3d4e5f60718/0a1b2c3/src/lib.rs";
        let trimmed = roots(&[(".", "src/main.rs", "shop"), (&serde, &root, "serde")]);
        check(&trimmed, &["src/main.rs"], &[&root, &generic, engine]);
        let shown = |path| trimmed.source_path(path, None).file;
        assert_eq!([shown(&root), shown(engine)], ["serde-1.0.1/src/lib.rs", "engine/src/lib.rs"]);
        // `--remap-path-prefix=$PWD=`.
        let bare = roots(&[("", "src/main.rs", "shop"), ("", "crates/cache/src/lib.rs", "cache")]);
        check(
            &bare,
            &["src/main.rs", "crates/cache/src/a.rs"],
            &["vendor/tiny/src/lib.rs", "/usr/include/a.h"],
        );
        // Bazel compiles everything in one directory.
        let bazel = roots(&[
            ("/proc/self/cwd", "shop/src/main.rs", "shop"),
            ("/proc/self/cwd", "external/crates__serde-1.0.1/src/lib.rs", "serde"),
        ]);
        check(
            &bazel,
            &["/proc/self/cwd/shop/src/main.rs"],
            &[
                "/proc/self/cwd/external/crates__serde-1.0.1/src/lib.rs",
                "/proc/self/cwd/third_party/rust/a/src/lib.rs",
            ],
        );
        // crate2nix compiles each package in a directory of its own, by a relative path.
        let nix =
            roots(&[("/build/shop", "src/main.rs", "shop"), ("/build/serde-1.0.1", "src/lib.rs", "serde")]);
        check(&nix, &["/build/shop/src/main.rs"], &["/build/serde-1.0.1/src/lib.rs"]);
    }

    #[test]
    fn without_compilation_units_nothing_is_own() {
        check(&DebugRoots::default(), &[], &["/home/ann/shop/src/main.rs", "src/main.rs"]);
    }
}
