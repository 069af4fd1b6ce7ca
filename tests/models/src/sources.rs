//! Compares the repeated code of `state` and `live_bytes` with its originals.

use crate::live_bytes;

/// Returns a function without its comments.
fn body(text: &str, function: &str) -> String {
    let begin = text.find(&format!("fn {function}(")).unwrap_or_else(|| panic!("no fn {function}"));
    let begin = text[..begin].rfind('\n').unwrap() + 1;
    let indent = text[begin..].chars().take_while(|c| *c == ' ').count();
    let end = text[begin..].find(&format!("\n{}}}\n", " ".repeat(indent))).unwrap();
    text[begin..][..end].lines().map(|line| line.split("//").next().unwrap()).collect()
}

fn is_of_a_name(c: &char) -> bool {
    c.is_alphanumeric() || *c == '_'
}

/// Returns the words of a function that begin with one of these, in order.
fn names(text: &str, function: &str, beginnings: &[&str]) -> Vec<String> {
    let body = body(text, function);
    let at = body.char_indices().map(|(at, _)| &body[at..]);
    at.filter_map(|rest| {
        let beginning = beginnings.iter().find(|beginning| rest.starts_with(**beginning))?;
        Some(beginning.chars().chain(rest[beginning.len()..].chars().take_while(is_of_a_name)).collect())
    })
    .collect()
}

/// Returns the atomic operations of a function with their orderings: `taken.store(Release)`.
fn operations(text: &str, function: &str) -> Vec<String> {
    let body = body(text, function).replace("compare_exchange_weak", "compare_exchange");
    let calls = ["load(", "store(", "compare_exchange("];
    let called = |at: usize| calls.iter().find(|call| body[at..].starts_with(**call)).map(|call| (at, call));
    body.char_indices()
        .filter_map(|(at, _)| called(at))
        .map(|(at, call)| {
            let before = body[..at].trim_end_matches('.');
            let name = &before[before.rfind(|c| !is_of_a_name(&c)).map_or(0, |end| end + 1)..];
            let arguments = &body[at..at + body[at..].find(')').unwrap()];
            // Arguments with calls in them end before their orderings.
            let orders = match orderings(arguments) {
                orders if orders.is_empty() => orderings(&body[at..]).into_iter().take(2).collect(),
                orders => orders,
            };
            format!("{name}.{call}{})", orders.join(", "))
        })
        .collect()
}

fn orderings(text: &str) -> Vec<&str> {
    let after = text.split("Ordering::").skip(1);
    after.map(|order| order.split(|c: char| !c.is_alphabetic()).next().unwrap()).collect()
}

fn constants_of_stand_ins() {
    let tag = include_str!("../../../src/record/tag/mod.rs");
    let stand_in = include_str!("record/tag.rs");
    for constant in stand_in.lines().filter(|line| line.starts_with("pub(crate) const")) {
        assert!(tag.contains(constant), "{constant}");
    }
}

/// Checks that the repeated code has the same atomic operations with the same orderings as its original.
pub(crate) fn as_in_the_sources() -> String {
    let [here, registry, state, busy, sums, raw, event, alloc, sampled, event_free] = [
        include_str!("state.rs"),
        include_str!("../../../src/record/thread/registry.rs"),
        include_str!("../../../src/record/thread/state.rs"),
        include_str!("../../../src/record/thread/busy.rs"),
        include_str!("../../../src/record/stack_id/sums.rs"),
        include_str!("../../../src/record/raw_snapshot.rs"),
        include_str!("../../../src/record/event/mod.rs"),
        include_str!("../../../src/record/event/alloc.rs"),
        include_str!("../../../src/record/event/sampled.rs"),
        include_str!("../../../src/record/event/free.rs"),
    ];
    for function in ["make", "adopt", "release"] {
        let theirs: Vec<_> = operations(registry, function)
            .into_iter()
            // The hint.
            .filter(|operation| !operation.starts_with("RELEASED"))
            .collect();
        assert_eq!(operations(here, function), theirs, "{function}");
    }
    assert_eq!(operations(here, "has_passed"), operations(state, "has_passed"));
    let unsampled = ["unsampled.", "epoch::base", "epoch::generation", "epoch::unsampled"];
    for (source, function, beginnings) in [
        (registry, "make", &["enlist", "ALL"][..]),
        (registry, "all", &["ALL"]),
        (registry, "enter_at_generation", &["mark_busy", "epoch::generation", "unmark_busy"]),
        (busy, "mark_busy", &["flags.load", "compiler_fence"]),
        (busy, "unmark_busy", &["compiler_fence"]),
        (busy, "unmark_busy_unless", &["compiler_fence"]),
        (state, "publish_in", &unsampled),
        (alloc, "try_fast", &unsampled),
        (alloc, "refresh_and_record", &unsampled),
        (sampled, "record_sampled", &unsampled),
        (event, "unsampled", &unsampled),
        (event_free, "record_free", &unsampled),
        (event_free, "try_fast_free", &unsampled),
        (event_free, "record_free_other", &unsampled),
        (sums, "read_chunk", &["Direction::", "all", "SHARED"]),
        (raw, "read_at", &["read_chunk"]),
        (raw, "read_unsampled", &["unsampled::all", "unsampled.id", "Unsampled::", "read_at("]),
        (state, "forget_closed", &["epoch::closings"]),
        (raw, "read_epoch", &["epoch::base"]),
    ] {
        let theirs = names(source, function, beginnings);
        assert!(!theirs.is_empty(), "{function}");
        assert_eq!(names(here, function, beginnings), theirs, "{function}");
    }
    for function in live_bytes::AS_IN_THE_SOURCES {
        let [here, theirs] = [live_bytes::SOURCE, state].map(|text| names(text, function, live_bytes::WORDS));
        assert_eq!(here, theirs, "{function}");
    }
    constants_of_stand_ins();
    "the same operations with the same orderings".to_owned()
}
