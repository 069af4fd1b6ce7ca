//! Paths of compilers, registries, workspaces and distributions, as debug information gives them.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::symbols::site_rules::{self, CodeOwner};

const RUSTC: &str = "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860";

fn roots() -> DebugRoots {
    let unit = |directory: &str, root: &str, krate: &str| {
        (directory.to_owned(), format!("{root}/@/{krate}.90932d36a0c74be8-cgu.7"))
    };
    let registry = "/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
    DebugRoots::of([
        unit("/home/ann/projects/shop", "src/main.rs", "shop"),
        unit("/home/ann/projects/shop", "src/lib.rs", "shop_core"),
        unit("/home/ann/projects/shop", "crates/cache/src/lib.rs", "cache"),
        unit("/home/ann/projects/shop", "examples/leaky_service.rs", "leaky_service"),
        unit("/home/ann/projects/other", "/home/ann/projects/other/src/lib.rs", "other"),
        unit("/home/ann/projects/shop/vendor/tiny", "/home/ann/projects/shop/vendor/tiny/src/lib.rs", "tiny"),
        unit(&format!("{registry}/gimli-0.34.0"), &format!("{registry}/gimli-0.34.0/src/lib.rs"), "gimli"),
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
        (
            "/rust/deps/hashbrown-0.16.1/src/raw/mod.rs".into(),
            "hashbrown-0.16.1/src/raw/mod.rs",
            true,
            "hashbrown::raw",
        ),
        (
            format!("{registry}/serde_json-1.0.154/src/de.rs"),
            "serde_json-1.0.154/src/de.rs",
            false,
            "serde_json::de",
        ),
        (
            "/usr/local/cargo/registry/src/github.com-1ecc6299db9ec823/foo-bar-0.1.0-rc.2/src/a/b.rs".into(),
            "foo-bar-0.1.0-rc.2/src/a/b.rs",
            false,
            "foo_bar::a::b",
        ),
        (
            "/home/ann/.cargo/git/checkouts/engine-a1b2c3d4e5f60718/0a1b2c3/crates/engine-core/src/lib.rs"
                .into(),
            "crates/engine-core/src/lib.rs",
            false,
            "engine_core",
        ),
        ("/home/ann/projects/shop/src/main.rs".into(), "src/main.rs", false, "shop"),
        ("/home/ann/projects/shop/./src/cart.rs".into(), "src/cart.rs", false, "shop_core::cart"),
        ("/home/ann/projects/shop/src/bin/tool.rs".into(), "src/bin/tool.rs", false, "shop_core"),
        (
            "/home/ann/projects/shop/crates/cache/src/lru/mod.rs".into(),
            "crates/cache/src/lru/mod.rs",
            false,
            "cache::lru",
        ),
        (
            "/home/ann/projects/shop/crates/no-unit/src/lib.rs".into(),
            "crates/no-unit/src/lib.rs",
            false,
            "no_unit",
        ),
        (
            "/home/ann/projects/shop/examples/leaky_service.rs".into(),
            "examples/leaky_service.rs",
            false,
            "leaky_service",
        ),
        ("/home/ann/projects/shop/examples/second.rs".into(), "examples/second.rs", false, "second"),
        ("/home/ann/projects/shop/tests/a_b.rs".into(), "tests/a_b.rs", false, "a_b"),
        ("/home/ann/projects/other/src/deep/er.rs".into(), "other/src/deep/er.rs", false, "other::deep::er"),
        ("/home/ann/projects/shop/vendor/tiny/src/x.rs".into(), "tiny/src/x.rs", false, "tiny::x"),
        ("/home/bob/elsewhere/arena.c".into(), "elsewhere/arena.c", false, ""),
        (format!("{SUPERUSER}/arena.c"), "arena.c", false, ""),
        ("./csu/../sysdeps/x86_64/start.S".into(), "sysdeps/x86_64/start.S", false, ""),
        ("src/main.rs".into(), "src/main.rs", false, ""),
    ];
    for (path, file, standard, module) in expected {
        let place = roots().source_path(&path, None);
        assert_eq!(
            (place.file.as_str(), place.standard, place.module.as_str()),
            (file, standard, module),
            "{path}"
        );
    }
}

/// As one of generic code alone.
#[test]
fn a_package_without_a_unit_outside_the_workspace_goes_by_its_folder() {
    for (path, file, module) in [
        ("/home/bob/elsewhere/thing-core/src/lib.rs", "thing_core/src/lib.rs", "thing_core"),
        ("/home/bob/elsewhere/other/src/a/b.rs", "other/src/a/b.rs", "other::a::b"),
        (
            "/home/ann/.cargo/git/checkouts/engine-core-a1b2c3d4e5f60718/0a1b2c3/src/a.rs",
            "engine_core/src/a.rs",
            "engine_core::a",
        ),
        // A home, and the root of the file system, are no packages.
        ("/home/bob/src/lib.rs", "src/lib.rs", ""),
        (&format!("{SUPERUSER}/src/lib.rs"), "src/lib.rs", ""),
        ("/src/lib.rs", "src/lib.rs", ""),
    ] {
        let place = roots().source_path(path, None);
        assert_eq!((&*place.file, place.standard, &*place.module), (file, false, module), "{path}");
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
    let debian = DebugRoots::of([
        ("/usr/src/rustc-1.97.1".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
        ("/home/ann/shop".to_owned(), "src/main.rs/@/shop.1-cgu.0".to_owned()),
    ]);
    for roots in [roots(), debian, DebugRoots::default()] {
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
                let place = roots.source_path(&path, None);
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
            let place = roots.source_path(vendored, None);
            let seen = (&*place.file, place.standard, &*place.module);
            assert_eq!(seen, ("hashbrown-0.16.1/src/raw/mod.rs", true, "hashbrown::raw"), "{vendored}");
        }
    }
    // A prefix that only a flag knows: the crate `std` was compiled there.
    let remapped = DebugRoots::of([
        ("/s".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
        ("/home/ann/shop".to_owned(), "src/main.rs/@/shop.1-cgu.0".to_owned()),
    ]);
    assert!(remapped.source_path("/s/vendor/hashbrown-0.16.1/src/raw/mod.rs", None).standard);
    assert!(!remapped.source_path("/t/vendor/hashbrown-0.16.1/src/raw/mod.rs", None).standard);
}

#[test]
fn a_programs_own_folder_called_library_is_its_own() {
    let own = DebugRoots::of([
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
        let place = own.source_path(path, None);
        assert_eq!((&*place.file, place.standard), (file, false), "{path}");
    }
    assert!(own.covers_program());
    let standard = DebugRoots::of([
        ("/usr/src/rustc-1.97.1".to_owned(), "library/std/src/lib.rs/@/std.1-cgu.0".to_owned()),
        ("/usr/src/rustc-1.97.1".to_owned(), "vendor/gimli-0.32.0/src/lib.rs/@/gimli.1-cgu.0".to_owned()),
    ]);
    assert!(!standard.covers_program(), "line tables of the standard library alone");
}

#[test]
fn the_longest_directory_wins_and_the_build_host_does_not_show() {
    let roots = |top: &str| {
        DebugRoots::of([
            (format!("{top}/repo"), format!("{top}/repo/src/lib.rs/@/lib_under_test.1-cgu.0")),
            (format!("{top}/repo/demo"), "src/main.rs/@/demo.2-cgu.0".to_owned()),
        ])
    };
    for top in ["/home/ann", "/builds/17", "/root"] {
        let place = roots(top).source_path(&format!("{top}/repo/demo/src/main.rs"), None);
        assert_eq!((place.file.as_str(), place.module.as_str()), ("src/main.rs", "demo"));
        let place = roots(top).source_path(&format!("{top}/repo/src/part.rs"), None);
        let expected = ("lib_under_test/src/part.rs", "lib_under_test::part");
        assert_eq!((place.file.as_str(), place.module.as_str()), expected);
    }
}

#[test]
fn packages_outside_the_workspace_have_their_name_in_front() {
    let unit = |directory: &str, krate: &str| {
        (directory.to_owned(), format!("{directory}/src/lib.rs/@/{krate}.1-cgu.0"))
    };
    let roots = DebugRoots::of([
        ("/srv/app".to_owned(), "src/main.rs/@/app.2-cgu.0".to_owned()),
        unit("/srv/left-hand", "left"),
        unit("/srv/right", "right"),
    ]);
    let file = |path: &str| roots.source_path(path, None).file;
    assert_eq!(file("/srv/app/src/main.rs"), "src/main.rs");
    assert_eq!(file("/srv/left-hand/src/lib.rs"), "left/src/lib.rs");
    assert_eq!(file("/srv/right/src/lib.rs"), "right/src/lib.rs");
    assert_eq!(roots.source_path("/srv/right/src/a.rs", None).module, "right::a");
}

#[test]
fn copies_of_crates_in_the_standard_library_are_told_from_the_programs() {
    let bare = DebugRoots::default();
    let function = "gimli::read::abbrev::Abbreviations::insert";
    assert!(bare.is_copy_of_standard(function, false));
    assert!(!bare.is_copy_of_standard("shop::gimli", true));
    // The program's own `gimli` has a compilation unit: it is that one, unless it would have a line then.
    assert!(!roots().is_copy_of_standard(function, false));
    assert!(roots().is_copy_of_standard(function, true));
}

#[test]
fn two_crates_of_one_directory_are_told_apart_by_the_compiled_function() {
    let path = "/home/ann/projects/shop/src/cart.rs";
    assert_eq!(roots().source_path(path, Some("shop")).module, "shop::cart");
    assert_eq!(roots().source_path(path, Some("cache")).module, "shop_core::cart");
}

#[test]
fn code_belongs_to_the_program_the_standard_library_the_shim_or_heapgauge() {
    let place = |path: &str| roots().source_path(path, None);
    let main = place("/home/ann/projects/shop/src/main.rs");
    let vec = place(&format!("{RUSTC}/library/alloc/src/vec/mod.rs"));
    let std_map = place("/rust/deps/hashbrown-0.16.1/src/raw/mod.rs");
    let own =
        place("/home/ann/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/heapgauge-0.1.0/src/alloc.rs");
    // The compiler gives the shims the line of the `#[global_allocator]`.
    assert_eq!(site_rules::owner_of("shop::__rust_alloc", Some(&main)), CodeOwner::AllocatorShim);
    assert_eq!(site_rules::owner_of("__rustc::__rust_alloc", None), CodeOwner::AllocatorShim);
    assert_eq!(site_rules::owner_of("__rustc::__rg_alloc", None), CodeOwner::AllocatorShim);
    assert_eq!(site_rules::owner_of("shop::main", Some(&main)), CodeOwner::Program);
    assert_eq!(site_rules::owner_of("shop::main", None), CodeOwner::Program);
    assert_eq!(site_rules::owner_of("alloc::vec::Vec::push", Some(&vec)), CodeOwner::Standard);
    assert_eq!(site_rules::owner_of("alloc::vec::Vec::push", None), CodeOwner::Standard);
    assert_eq!(site_rules::owner_of("slice::to_vec", None), CodeOwner::Standard);
    assert_eq!(
        site_rules::owner_of("hashbrown::raw::RawTable::reserve", Some(&std_map)),
        CodeOwner::Standard
    );
    assert_eq!(
        site_rules::owner_of("heapgauge::alloc::TrackingAllocator::alloc", Some(&own)),
        CodeOwner::Heapgauge
    );
    assert_eq!(
        site_rules::owner_of("heapgauge::alloc::TrackingAllocator::alloc", None),
        CodeOwner::Heapgauge
    );
    assert_eq!(site_rules::owner_of("main", None), CodeOwner::Standard);
    assert_eq!(site_rules::owner_of("__libc_start_call_main", None), CodeOwner::Standard);
    assert_eq!(site_rules::owner_of("sqlite3_step", None), CodeOwner::Program);
}
