//! The sources → whether they keep to the one way street: a module uses those below it, never those above.
//!
//! Reads files and nothing else; no module is loaded, so it takes some milliseconds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of the house, lowest first; a module imports only from floors below its own. A folder of
/// `src/` is one module, whose files may use each other.
const FLOORS: &[&[&str]] = &[
    // The write side: runs inside somebody's malloc.
    &["sync", "error", "fingerprint", "fuzz", "hint"],
    &["bounds", "list", "memory", "gate", "tag_map"],
    &["counters", "rules", "tag"],
    &["sample"],
    &["unsampled"],
    &["stack_cache", "tracker"],
    &["layout"],
    &["layouts"],
    &["thread"],
    &["stack"],
    &["stacks"],
    &["book", "init"],
    &["alloc"],
    // The border: raw counts and addresses cross, nothing else.
    &["raw"],
    &["control", "trim"],
    // The read side: ordinary safe Rust.
    &["frame"],
    &["symbols", "domains", "process"],
    &["profile", "snapshot", "traced"],
    &["filter", "statistics"],
    &["tree"],
    &["collector"],
    &["emit"],
    &["config", "outlets"],
    &["http"],
    &["serve"],
];

/// The first floor of the read side: from here up, no module holds unsafe code.
const READ_SIDE: &str = "frame";

/// A source file of the crate.
struct Source {
    path: PathBuf,
    /// `emit` of `src/emit/text.rs`.
    module: String,
    text: String,
}

impl Source {
    /// Code without comments and without its module of tests, which may use anything.
    fn code(&self) -> String {
        let mut code = self.text.clone();
        while let Some(begin) = code.find("#[cfg(test)]\nmod ") {
            let end = code[begin..].find("\n}\n").map_or(code.len(), |length| begin + length + 3);
            // `mod tests;` is one line.
            let line = code[begin..].find(";\n").map_or(end, |length| begin + length + 2);
            let end = if code[begin..line].contains('{') { end } else { line };
            code.replace_range(begin..end, "");
        }
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All `.rs` files under a folder, in order.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Everything under `src/` but tests, and its root, which only lists the modules and what is public.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut sources = Vec::new();
    for path in rust_files(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs").to_owned();
        if module != "lib" && !path.ends_with("tests.rs") {
            sources.push(Source { text: fs::read_to_string(&path).unwrap(), path, module });
        }
    }
    assert!(sources.len() >= 15, "only {} sources found under {}", sources.len(), src.display());
    sources
}

/// Public names at the root of the crate → the module each comes from: `pub use error::Error;`.
fn public_names() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut names = BTreeMap::new();
    for statement in text.split(';') {
        let Some((_, path)) = statement.rsplit_once("pub use ") else { continue };
        let module: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        for name in path.split(|c: char| !c.is_alphanumeric() && c != '_') {
            names.insert(name.to_owned(), module.clone());
        }
    }
    names
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// Names after each `crate::`, those in braces too: `crate::{raw, error::Error}` gives `raw` and `error`.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let preceded = code[..at].chars().next_back();
        if preceded.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let Some(list) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (index, c) in list.char_indices() {
            if begins && depth == 0 && !c.is_whitespace() && c != '}' {
                names.push(word(&list[index..]));
                begins = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ => {}
            }
        }
    }
    names
}

#[test]
fn imports_are_read_from_every_form() {
    let code = "use crate::raw;\nuse crate::{\n  error::{Error, Kind},\n  tag,\n};\nlet x = crate::alloc::f();\nmycrate::no();";
    assert_eq!(imports(code), ["raw", "error", "tag", "alloc"]);
}

#[test]
fn every_module_has_a_floor() {
    let mut missing: Vec<_> =
        sources().into_iter().map(|source| source.module).filter(|module| floor(module).is_none()).collect();
    missing.dedup();
    assert!(missing.is_empty(), "give these a floor in {}: {missing:?}", file!());

    let mut seen = BTreeMap::new();
    for module in FLOORS.iter().copied().flatten() {
        assert!(seen.insert(module, ()).is_none(), "{module} stands on two floors");
        let exists =
            root().join(format!("src/{module}.rs")).exists() || root().join("src").join(module).exists();
        assert!(exists, "{module} has a floor but no file");
    }
}

#[test]
fn modules_import_only_from_lower_floors() {
    let public = public_names();
    let mut wrong = Vec::new();
    for source in sources() {
        let own = floor(&source.module).expect("see every_module_has_a_floor");
        let code = source.code();
        for name in imports(&code) {
            let module = public.get(&name).filter(|_| floor(&name).is_none()).unwrap_or(&name);
            let allowed = *module == source.module || floor(module).is_some_and(|other| other < own);
            if !allowed {
                wrong.push(format!("{} imports crate::{name}", source.path.display()));
            }
        }
        // The other ways to the root of the crate, which would pass the check above by.
        if code.contains("super::super") || code.lines().any(|line| line.starts_with("use super::")) {
            let inside_folder = source.path.parent() != Some(&root().join("src"));
            let one_up = inside_folder && !code.contains("super::super") && !source.path.ends_with("mod.rs");
            if !one_up {
                wrong.push(format!("{} reaches the root of the crate by super::", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_read_side_forbids_unsafe_code() {
    let first = floor(READ_SIDE).unwrap();
    let without: Vec<_> = sources()
        .into_iter()
        // What a folder's own file forbids is forbidden in the others.
        .filter(|source| source.path.parent() == Some(&root().join("src")) || source.path.ends_with("mod.rs"))
        .filter(|source| floor(&source.module) >= Some(first))
        .filter(|source| !source.text.lines().any(|line| line == "#![forbid(unsafe_code)]"))
        .map(|source| source.path)
        .collect();
    assert!(without.is_empty(), "no #![forbid(unsafe_code)] in {without:#?}");
}

#[test]
fn every_file_says_what_it_is_and_is_finished() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "examples"] {
        files.extend(rust_files(&root().join(folder)));
    }
    assert!(files.len() >= 20, "only {} files found", files.len());
    // In two pieces, so that this file does not hold what it forbids.
    let unfinished = [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["#[igno", "re"]];
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        if !text.starts_with("//! ") {
            wrong.push(format!("{} does not begin with //!", path.display()));
        }
        for [first, second] in unfinished {
            let word = format!("{first}{second}");
            if let Some(line) = text.lines().position(|line| line.contains(&word)) {
                wrong.push(format!("{}:{} holds {word}", path.display(), line + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
