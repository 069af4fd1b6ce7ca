//! Checks that each source file imports only from files before it, and never through `lib.rs`. Reads files, nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "architecture/first_sentences.rs"]
mod first_sentences;

/// Folders of `src/`, lowest first, each with its files and folders in order: an entry imports only from entries
/// before it. `tag` means `tag.rs`, `tag/mod.rs` and each file of `tag/` that has no entry of its own.
/// `record/` is listed by file where folders use one another: `unwind/` needs a thread's state, which has caches of `stack_id/`.
const FOLDERS: &[(&str, &[&str])] = &[
    ("base", &["atomics", "error", "hint", "ready_hasher", "splitmix", "random_input"]),
    (
        "record",
        &[
            "stack_id/packed",
            "stack_id/addresses",
            "stack_id/stack_word",
            "stack_id/fingerprint",
            "append_list",
            "cache_counts",
            "bounded_wait",
            "file_map",
            "scope/id",
            "scope/slot",
            "scope/slots",
            "scope/unions",
            "scope/names",
            "thread/stack_bounds",
            "memory",
            "scope/entered",
            "tag/large",
            "count/chunk_table",
            "count/counters",
            "unwind/rule_cache",
            "unwind/start_code",
            "tag",
            "count/sampling",
            "count/unsampled",
            "count/unpublished",
            "stack_id/cache",
            "dropped",
            "watermark",
            "failure",
            "wake_signal",
            "file_lock",
            "peak",
            "epoch",
            "stack_id/frame_layout",
            "stack_id/frame_layout_cache",
            "thread",
            "fork",
            "scope/table",
            "scope/pass",
            "stack_id/sums",
            "stack_id/record",
            "stack_id/table",
            "stack_id/unlinked",
            "stack_id/life",
            "stack_id/renew",
            "stack_id/reclaim",
            "unwind",
            "own_frames",
            "event",
            "startup",
            "allocator",
            "test_blocks",
            "raw_snapshot",
            "scope",
            "scope/future",
            "scope/layer",
            "unlisted",
            "control",
            "measure",
            "global_allocator",
            "statm",
            "residency",
            "c_malloc",
            "trim",
        ],
    ),
    (
        "analyze",
        &[
            "frame",
            "leb128",
            "live",
            "scope",
            "memory_limit",
            "memory_parts",
            "dump_counts",
            "symbols",
            "merge_ids",
            "snapshot/domains",
            "profile",
            "snapshot",
            "snapshot/file_names",
            "traceback_of",
            "snapshot/filter",
            "snapshot/group",
            "snapshot/statistic",
            "snapshot/order",
            "snapshot/compare",
            "testing",
            "stacks_by_id",
            "call_tree",
            "ages",
            "collector",
        ],
    ),
    ("export", &["input", "short_life", "emit", "dump", "http", "server"]),
];

/// Files of `record/` that `analyze/` and `export/` may import.
const FACES: &[&str] = &[
    "raw_snapshot",
    "unlisted",
    "control",
    "measure",
    "global_allocator",
    "statm",
    "residency",
    "c_malloc",
    "trim",
    "file_map",
    "fork",
    "watermark",
    "failure",
    "wake_signal",
    "file_lock",
];

/// A source file of the crate.
struct Source {
    path: PathBuf,
    /// `export/emit/json` of `src/export/emit/json.rs`, `export/emit` of `src/export/emit/mod.rs`.
    module: String,
    text: String,
}

impl Source {
    /// Returns the code without comments and without its module of tests, which may use anything.
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

/// Lists all `.rs` files under a folder, in order.
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

/// Lists all Rust files of the project.
fn all_rust_files() -> Vec<PathBuf> {
    ["src", "tests", "examples", "benches", "cli"]
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .collect()
}

/// Lists the files of the four folders without their tests; `lib.rs` and `docs/` declare no code.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut sources = Vec::new();
    for path in rust_files(&src) {
        let inside = path.strip_prefix(&src).unwrap().with_extension("");
        let module = inside.to_str().unwrap().trim_end_matches("/mod").to_owned();
        if module != "lib"
            && !module.starts_with("docs")
            && !path.ends_with("tests.rs")
            && !module.contains("/tests")
        {
            sources.push(Source { text: fs::read_to_string(&path).unwrap(), path, module });
        }
    }
    assert!(sources.len() >= 15, "only {} sources found under {}", sources.len(), src.display());
    sources
}

/// Finds a module in [`FOLDERS`], by the longest entry that contains it: folder, entry, name of the entry.
fn place(module: &str) -> Option<(usize, usize, &'static str)> {
    let (folder, rest) = module.split_once('/')?;
    let at = FOLDERS.iter().position(|(name, _)| *name == folder)?;
    FOLDERS[at]
        .1
        .iter()
        .enumerate()
        .filter(|(_, entry)| rest == **entry || rest.starts_with(&format!("{entry}/")))
        .max_by_key(|(_, entry)| entry.len())
        .map(|(index, entry)| (at, index, *entry))
}

/// Lists the paths behind each `crate::`, up to the braces: `crate::record::tag::{self, FIRST}` gives `record/tag`.
fn imports(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let preceded = code[..at].chars().next_back();
        if preceded.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let path: String =
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        paths.push(path.trim_end_matches(':').replace("::", "/"));
    }
    paths
}

#[test]
fn imports_are_read_from_every_form() {
    let code = "use crate::record::tag;\nuse crate::base::error::{Error, Kind};\nlet x = crate::record::event::f();\nmycrate::no();";
    assert_eq!(imports(code), ["record/tag", "base/error", "record/event/f"]);
}

#[test]
fn every_file_has_a_place() {
    let mut missing: Vec<_> = sources().into_iter().map(|source| source.module).collect();
    missing.retain(|module| {
        place(module).is_none() && !FOLDERS.iter().any(|(folder, _)| module.starts_with(folder))
    });
    assert!(missing.is_empty(), "give these a place in {}: {missing:?}", file!());

    let mut seen = BTreeMap::new();
    for (folder, entries) in FOLDERS {
        for entry in *entries {
            let path = root().join("src").join(folder).join(entry);
            assert!(seen.insert((folder, entry), ()).is_none(), "{folder}/{entry} is listed twice");
            assert!(path.is_dir() || path.with_extension("rs").exists(), "{folder}/{entry} does not exist");
        }
    }
    let top: Vec<_> =
        fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for name in top {
        let name = name.to_str().unwrap().to_owned();
        let known = FOLDERS.iter().any(|(folder, _)| *folder == name) || ["lib.rs", "docs"].contains(&&*name);
        assert!(known, "src/{name} is in none of the folders");
    }
}

#[test]
fn files_import_only_from_files_before_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = place(&source.module);
        let code = source.code();
        for name in imports(&code) {
            let path = source.path.display();
            match (own, place(&name)) {
                (_, None) => wrong
                    .push(format!("{path} imports {name} through lib.rs, or from a file without a place")),
                // `mod.rs` of a whole folder only declares its files.
                (None, Some(_)) => wrong.push(format!("{path} imports {name}")),
                (Some((folder, entry, _)), Some((other_folder, other, face))) => {
                    let before = (other_folder, other) <= (folder, entry);
                    let is_face = FOLDERS[other_folder].0 != "record"
                        || other_folder == folder
                        || FACES.contains(&face);
                    if !before || !is_face {
                        wrong.push(format!("{path} imports {name}"));
                    }
                }
            }
        }
        if code.contains("super::super") {
            wrong.push(format!("{} goes up two folders by super::", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn analyze_and_export_forbid_unsafe_code() {
    for folder in ["analyze", "export"] {
        let path = root().join("src").join(folder).join("mod.rs");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().any(|line| line == "#![forbid(unsafe_code)]"), "{}", path.display());
    }
    let base: Vec<_> = sources().into_iter().filter(|source| source.module.starts_with("base/")).collect();
    for source in base.iter().filter(|source| source.code().contains("unsafe ")) {
        // One exception: its macro writes two words by one instruction each, for code of `record/`.
        assert_eq!(source.module, "base/atomics", "unsafe code outside record/: {}", source.path.display());
    }
}

/// A forked child waits for ever for a lock, or a cell's first value, that another thread held; not for those of `record/fork`.
#[test]
fn locks_and_cells_are_those_that_a_forked_child_can_use() {
    const BLOCKING: &[&str] =
        &["OnceLock", "LazyLock", "Mutex", "RwLock", "Condvar", "Barrier", "call_once", "lazy_static"];
    let mut wrong = Vec::new();
    // That one fills its cell inside the fork lock.
    for source in sources().iter().filter(|source| source.module != "record/fork") {
        // Tests of `export/emit/opentelemetry` have a module under a condition of their own.
        let code = source.code();
        let code = code.split("#[cfg(all(test").next().unwrap_or_default();
        for line in code.lines() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            // A cell of one thread, behind a lock or in a local, blocks no one.
            let is_filled = line.contains(".get_or_init(") && !code.contains("use std::cell::OnceCell;");
            if words.any(|word| BLOCKING.contains(&word)) || is_filled {
                wrong.push(format!("{}: {}", source.path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "use record::fork's ForkMutex and Once:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_is_finished() {
    let files = all_rust_files();
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

/// `strip = true`, which many profiles have, undoes the line tables that the documentation tells a user to ask for.
#[test]
fn line_tables_are_shown_together_with_strip() {
    let is_of_users = |text: &str| text.contains("debug = \"line-tables-only\"");
    for file in [
        "README.md",
        "dashboards/README.md",
        "src/docs/production.md",
        "src/lib.rs",
        "src/export/http/page.html",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(is_of_users(&text), "{file} shows no line tables");
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_of_users(line)) {
            let near = [*line, lines.get(at + 1).copied().unwrap_or_default()];
            assert!(near.iter().any(|line| line.contains("strip = \"none\"")), "{file}:{}: {line}", at + 1);
        }
    }
}

/// Most lines of a file, with its tests beside it.
const MOST_LINES: usize = 500;

/// Most lines of a function, from its first to its last.
const MOST_LINES_OF_A_FUNCTION: usize = 79;

/// Lists the functions of a formatted file with their lengths: a function ends with the next brace as far to the right as it begins.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let before_name = code.split("fn ").next().unwrap_or_default();
        let is_function = code.contains("fn ")
            && before_name.split_whitespace().all(|word| {
                word.starts_with("pub")
                    || ["const", "async", "unsafe", "extern", "\"C\"", "in"].contains(&word)
            });
        if !is_function || code.ends_with([';', '}']) {
            continue;
        }
        let indent = &line[..line.len() - code.len()];
        let end = lines[at..].iter().position(|line| {
            line.strip_prefix(indent)
                .is_some_and(|rest| rest == "}" || rest.starts_with(')') && rest.ends_with(';'))
        });
        let name: String =
            code[before_name.len() + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        found.push((name, end.map_or(lines.len() - at, |end| end + 1)));
    }
    found
}

#[test]
fn functions_are_measured_to_their_last_brace() {
    let text = "impl A {\n    pub(crate) fn one(\n        &self,\n    ) {\n        let f = || {\n        };\n    }\n}\n\
                fn two() {}\nunsafe fn three() {\n}\n// a fn of no file\ntrait T {\n    fn four(\n    );\n}\n";
    assert_eq!(functions(text), [("one".into(), 6), ("three".into(), 2), ("four".into(), 2)]);
}

#[test]
fn files_and_functions_are_short() {
    let mut lengths = BTreeMap::new();
    for path in all_rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        for (function, length) in functions(&text) {
            let longest =
                lengths.entry(format!("{name}: {function}")).or_insert((0, MOST_LINES_OF_A_FUNCTION));
            longest.0 = longest.0.max(length);
        }
        lengths.insert(name, (text.lines().count(), MOST_LINES));
    }
    assert!(lengths.len() > 1_000, "only {} files and functions found", lengths.len());
    let wrong: Vec<String> = lengths
        .iter()
        .filter(|(_, (length, most))| length > most)
        .map(|(name, (length, most))| format!("{name} has {length} lines, allowed are {most}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
