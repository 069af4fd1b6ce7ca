//! Tests that a line of `/metrics` has the exact numbers of its allocations, over a real connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::client;

fn scrape(addr: SocketAddr) -> String {
    let answer = client::ask(addr, "GET", "/metrics", "");
    assert_eq!(answer.status, 200, "{}", answer.head);
    String::from_utf8(answer.body).unwrap()
}

/// Scrapes so late that the server takes a new snapshot.
fn scrape_anew(addr: SocketAddr) -> String {
    std::thread::sleep(Duration::from_millis(1_010));
    scrape(addr)
}

/// Returns the series by name with labels.
fn series(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(series, value)| (series, value.parse().unwrap()))
        .collect()
}

fn sites_of<'a>(text: &'a str, family: &str) -> BTreeSet<&'a str> {
    let start = format!("{family}{{site=\"");
    text.lines().filter_map(|line| line.strip_prefix(&start)?.get(..16)).collect()
}

/// Returns the label `site` of the only line of `heap_site_info` with these labels.
fn site<'a>(text: &'a str, file: &str, line: u32) -> Option<&'a str> {
    let labels = format!(",file=\"{file}\",line=\"{line}\",crate=\"http\",via=\"\"}} 1");
    let mut found = text.lines().filter(|line| line.ends_with(&labels));
    let site = found.next()?.strip_prefix("heap_site_info{site=\"")?.get(..16);
    assert_eq!(found.next(), None);
    site
}

fn check(text: &str) {
    let series = series(text);
    let value = |name: &str| series[name];
    let sum = |family: &str| -> f64 {
        series
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("{family}{{")))
            .map(|(_, value)| value)
            .sum()
    };
    assert_eq!(
        value("heap_live_bytes"),
        value("heap_allocated_bytes_total") - value("heap_deallocated_bytes_total")
    );
    assert_eq!(
        value("heap_live_blocks"),
        value("heap_allocations_total") - value("heap_deallocations_total")
    );
    assert!(sum("heap_site_live_bytes") <= value("heap_live_bytes"));
    assert!(sum("heap_site_live_blocks") <= value("heap_live_blocks"));
    assert!(value("heap_peak_bytes") >= value("heap_live_bytes"));
    let sites = sites_of(text, "heap_site_info");
    for family in [
        "heap_site_live_bytes",
        "heap_site_live_blocks",
        "heap_site_live_delta_bytes",
        "heap_site_live_delta_blocks",
    ] {
        assert_eq!(sites_of(text, family), sites, "{family}");
    }
    assert_eq!(value("heap_sites_exported"), sites.len() as f64);
    assert!(sites.len() <= 40);
    assert!(series.len() <= 260);
}

/// Computes FNV-1a 64 by its specification.
fn fnv(function: &str, file: &str, line: u32) -> String {
    let hash = format!("{function}\0{file}\0{line}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[allow(clippy::vec_box, reason = "blocks of their own are the point")]
#[inline(never)]
fn keep(blocks: usize) -> Vec<Box<[u8; 48]>> {
    let mut kept = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        kept.push(Box::new([7; 48]));
    }
    kept
}
const KEEP_LINE: u32 = line!() - 4;

#[test]
fn what_a_line_holds_is_what_a_scrape_shows() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    check(&scrape(addr));

    // Several threads, some of which end while their blocks live.
    let part = |blocks| std::thread::spawn(move || keep(blocks)).join().unwrap();
    let mut kept: Vec<_> = [5_000, 5_000, 2_000, 345].into_iter().map(part).collect();
    let text = scrape_anew(addr);
    check(&text);
    let id = site(&text, "tests/http/scrape.rs", KEEP_LINE).unwrap().to_owned();
    let function = "http::scrape::keep";
    assert_eq!(id, fnv(function, "tests/http/scrape.rs", KEEP_LINE));
    let shown = |text: &str, family: &str| {
        series(text).get(&*format!("{family}{{site=\"{id}\",function=\"{function}\"}}")).copied()
    };
    assert_eq!(shown(&text, "heap_site_live_blocks"), Some(12_345.0));
    assert_eq!(shown(&text, "heap_site_live_bytes"), Some(592_560.0));
    assert_eq!(shown(&text, "heap_site_live_delta_blocks"), Some(12_345.0));
    assert_eq!(shown(&text, "heap_site_live_delta_bytes"), Some(592_560.0));

    // Freed by another thread than allocated them.
    let first = kept.remove(0);
    std::thread::spawn(move || drop(first)).join().unwrap();
    let text = scrape_anew(addr);
    check(&text);
    assert_eq!(shown(&text, "heap_site_live_blocks"), Some(7_345.0));
    assert_eq!(shown(&text, "heap_site_live_bytes"), Some(352_560.0));
    assert_eq!(shown(&text, "heap_site_live_delta_bytes"), Some(352_560.0));

    // A site that holds nothing is absent, from every family.
    drop(kept);
    let text = scrape_anew(addr);
    check(&text);
    assert!(!text.contains(&id), "{text}");

    // A hundred scrapes of an idle program do not change the sites. The client's part of a scrape is paused here; a real
    // client is another process.
    let paused = heapgauge::pause();
    let values = |text: &str| -> Vec<String> {
        let wanted = ["heap_site_live_b", "heap_live_b", "heap_allocated", "heap_allocations"];
        text.lines()
            .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect()
    };
    scrape_anew(addr);
    let before = values(&scrape_anew(addr));
    for _ in 0..100 {
        scrape(addr);
    }
    assert_eq!(values(&scrape_anew(addr)), before);
    drop(paused);

    // While tracking is off, the answer has no sites.
    heapgauge::stop();
    let text = scrape_anew(addr);
    check(&text);
    assert!(text.contains("\nheap_tracking 0\n") && text.contains("\nheap_live_bytes 0\n"));
    assert_eq!(sites_of(&text, "heap_site_info"), BTreeSet::new());
    heapgauge::start(16).unwrap();
    let kept = keep(10);
    let text = scrape_anew(addr);
    check(&text);
    assert_eq!(shown(&text, "heap_site_live_blocks"), Some(10.0));
    drop(kept);
}
