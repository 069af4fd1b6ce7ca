//! Parses a 100 kB HTML page into a tree, selects in it and drops it: a fifth of the allocations a millisecond of `json`.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use scraper::{Html, Selector};
use serde_json::Value;

use crate::timing::{Numbers, measure};
use crate::turns::Turns;

pub fn run(time: Duration, turns: &Turns) -> Value {
    let page = page();
    let links = Selector::parse("li.entry > a[href]").expect("a valid selector");
    let mut report = measure(time, turns, || {
        let tree = Html::parse_document(black_box(&page));
        let found = tree.select(&links).map(|link| link.text().map(str::len).sum::<usize>() as u64);
        let checksum = found.fold(0, |sum, length| sum * 31 % 1_000_003 + length);
        drop(black_box(tree));
        checksum
    })
    .report(1);
    report["document_bytes"] = page.len().into();
    report
}

/// Generates a page about as dense as an encyclopedia's: some 90 bytes an element.
fn page() -> String {
    let mut numbers = Numbers::new(2);
    let mut text = String::from("<!DOCTYPE html><html><head><title>List</title></head><body>");
    while text.len() < 100_000 {
        write!(text, "<h2 id=s{0}>Section {0}</h2><p>", numbers.below(10_000))
            .expect("a String takes everything");
        for _ in 0..60 + numbers.below(240) {
            write!(text, "word{} ", numbers.below(2_000)).expect("a String takes everything");
        }
        text.push_str("&amp; so on.</p><ul>");
        for _ in 0..3 + numbers.below(9) {
            write!(
                text,
                r#"<li class="entry c{}"><a href="/item/{}?ref=list" title="Item">Item <b>{}</b></a> since {}</li>"#,
                numbers.below(8),
                numbers.below(100_000),
                numbers.below(100_000),
                1990 + numbers.below(36),
            )
            .expect("a String takes everything");
        }
        text.push_str("</ul><table><tr><td>a<td>b<tr><td>c<td>d</table>");
    }
    text.push_str("</body></html>");
    text
}
