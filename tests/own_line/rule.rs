//! Which frame is the site: switches of the program.

use crate::Heap;
use heapgauge::{Collector, GroupBy, SiteFrame, Snapshot};

const FILE: &str = "tests/own_line/rule.rs";

mod cache {
    /// Puts a text into a cache of the company's, which every service uses.
    #[inline(never)]
    pub fn put(text: &mut Vec<Box<[u8]>>, size: usize) -> u32 {
        text.push(vec![7; size].into_boxed_slice());
        line!() - 1
    }
}

#[inline(never)]
fn fill(text: &mut Vec<Box<[u8]>>) -> (u32, u32) {
    let inside = cache::put(text, 12_345);
    (inside, line!() - 1)
}

/// Returns the line of this file that has the block, and its library.
fn site() -> (String, u32, String) {
    let snapshot = Snapshot::take().unwrap();
    let trace = snapshot.traces().iter().find(|trace| trace.size == 12_345).unwrap();
    let (site, via) = (trace.traceback.site(), trace.traceback.via());
    (site.file().to_owned(), site.line(), via.to_owned())
}

#[test]
fn a_module_of_the_programs_can_be_taken_out() {
    own_process!();
    let mut text = Vec::with_capacity(10);
    let (inside, outside) = fill(&mut text);
    assert_eq!(site(), (FILE.to_owned(), inside, String::new()));
    heapgauge::set_own_crates(["-own_line::rule::cache"]).unwrap();
    assert_eq!(site(), (FILE.to_owned(), outside, String::new()));
    heapgauge::set_own_crates([""; 0]).unwrap();
    assert_eq!(site(), (FILE.to_owned(), inside, String::new()));
}

#[test]
fn the_nearest_frame_is_a_view_and_a_setting() {
    own_process!();
    let mut set = crate::run(async { tokio::task::JoinSet::<()>::new() });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let line = line!() + 2;
    for _ in 0..1_000 {
        set.spawn_on(std::future::pending(), runtime.handle());
    }
    let snapshot = Snapshot::take().unwrap();
    let mine = format!("{FILE}:{line}");
    let lines = snapshot.statistics(GroupBy::Line);
    let of_line = lines.iter().find(|row| row.name() == mine).unwrap();
    let nearest = snapshot.statistics(GroupBy::Nearest);
    assert!(nearest.iter().all(|row| row.name() != mine));
    let by_library: u64 =
        nearest.iter().filter(|row| row.name().starts_with("tokio-1.")).map(|row| row.size).sum();
    assert!(by_library >= of_line.size && of_line.size > 100_000, "{by_library} {of_line}");
    let via = snapshot.statistics(GroupBy::Via);
    assert!(via.iter().any(|row| row.name() == "tokio" && row.size >= of_line.size));

    heapgauge::set_site_frame(SiteFrame::Nearest);
    let lines = Snapshot::take().unwrap().statistics(GroupBy::Line);
    assert!(lines.iter().all(|row| row.name() != mine));
}

/// A library that calls itself fills the 96 addresses of a stack.
#[test]
fn a_stack_that_is_cut_before_an_own_line_has_one_site_at_any_depth() {
    own_process!();
    let collector = Collector::new();
    let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let texts = [lists(1), lists(100), lists(120)];
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let line = line!() - 1;
    drop(parse(&texts[0]));
    let mut seen = Vec::new();
    for text in &texts[1..] {
        let before = Heap::now();
        let lists = parse(text);
        let now = Heap::now();
        let grown: Vec<_> =
            now.changes(&before).into_iter().filter(|(_, then, now)| now.0 > then.0).collect();
        let blocks = |at: &str| -> u64 {
            let here = grown.iter().filter(|((file, ..), ..)| file == at);
            here.map(|(_, then, now)| now.1 - then.1).sum()
        };
        let cut: Vec<_> =
            grown.iter().filter(|((file, ..), ..)| file != FILE).map(|(key, ..)| *key).collect();
        assert_eq!(cut.len(), 1, "{grown:#?}");
        assert!(cut[0].0.starts_with("serde_json-1."), "{cut:?}");
        assert_eq!(now.at(FILE, line..=line).1 - before.at(FILE, line..=line).1, blocks(FILE));
        seen.push((cut[0].clone(), blocks(FILE), blocks(&cut[0].0)));
        drop(lists);
    }
    // The innermost list is empty and has no block. The deeper text has more blocks on cut stacks, and no more on others.
    let [(at, whole, cut), deeper] = &seen[..] else { unreachable!() };
    assert_eq!((whole + cut, deeper), (99, &(at.clone(), *whole, cut + 20)));
    assert!(collector.collect().truncated_stacks > 0);
}
