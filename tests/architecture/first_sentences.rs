//! Checks that first sentences are plain: a verb and a noun, no clause and no fragment.

use std::fs;

use super::all_rust_files;

/// Plain words: a first sentence is a verb and a noun, not a clause or a fragment.
#[test]
fn first_sentences_are_sentences() {
    let mut wrong = Vec::new();
    for path in all_rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let mut before = "";
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let of = |line: &str| ["//! ", "/// "].into_iter().find(|mark| line.starts_with(mark));
            if let Some(mark) = of(line)
                && !before.starts_with(mark.trim_end())
                && ["What ", "Who ", "Whose ", "Of ", "For ", "The same"]
                    .iter()
                    .any(|word| line[4..].starts_with(word))
            {
                wrong.push(format!("{}:{}: {line}", path.display(), at + 1));
            }
            before = line;
        }
        let wrong_verbs =
            documented_functions(&text).into_iter().filter(|(_, first)| !begins_with_a_verb(first));
        wrong.extend(
            wrong_verbs.map(|(at, first)| format!("{}:{}: no verb: {first}", path.display(), at + 1)),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Lists the functions that are no tests and have a comment of documentation: number and text of its first line.
fn documented_functions(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut first = None;
    for (at, line) in text.lines().map(str::trim_start).enumerate() {
        if let Some(text) = line.strip_prefix("///") {
            first.get_or_insert((at, text.trim_start()));
        } else if line.starts_with('#') && !line.ends_with("test]") {
            // An attribute is between comment and function.
        } else {
            let is_function = line.split("fn ").next().is_some_and(|before| {
                before.split_whitespace().all(|word| {
                    word.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word)
                })
            });
            found.extend(first.take().filter(|_| is_function && line.contains("fn ")));
        }
    }
    found
}

/// Returns whether the first word may be a verb in the third person: it has the ending, and is not a noun found there before.
fn begins_with_a_verb(sentence: &str) -> bool {
    const NOUNS: &[&str] = &[
        "Address",
        "Addresses",
        "As",
        "Bytes",
        "Events",
        "Families",
        "Files",
        "Functions",
        "Ids",
        "Is",
        "Its",
        "Lines",
        "Paths",
        "Pieces",
        "Series",
        "Stacks",
        "This",
        "Threads",
        "Values",
        "Words",
    ];
    let word = sentence.split_whitespace().next().unwrap_or_default().trim_end_matches([',', '.']);
    word.starts_with(char::is_uppercase) && word.ends_with('s') && !NOUNS.contains(&word)
}

#[test]
fn functions_are_found_with_their_first_sentence() {
    let text = "/// Reads a word.\n///\n/// More.\n#[inline]\nfn one() {\n/// Bytes of it.\npub(crate) unsafe fn two() {\n\
                /// Any text.\n#[test]\nfn three() {\n/// A field.\nfield: u8,\nfn four() {";
    let found = documented_functions(text);
    assert_eq!(found, [(0, "Reads a word."), (5, "Bytes of it.")]);
    assert!(begins_with_a_verb(found[0].1) && !begins_with_a_verb(found[1].1));
}
