//! Tests that ten thousand allocating lines leave the number of series bounded, as `dashboards/README.md` promises.
//!
//! A program of its own: other tests would read the debug information of its ten thousand functions. Takes half a minute.

#![cfg(feature = "http")]

#[path = "support/client.rs"]
mod client;

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

type Allocate = fn(usize) -> Box<[u8]>;

/// Calls the inner macro ten times with different names.
macro_rules! ten {
    ($inner:ident) => {
        $inner!(a);
        $inner!(b);
        $inner!(c);
        $inner!(d);
        $inner!(e);
        $inner!(f);
        $inner!(g);
        $inner!(h);
        $inner!(i);
        $inner!(j);
    };
}

/// Defines a function that allocates. The string differs in each, or the optimizer would merge them.
macro_rules! site {
    ($name:ident) => {
        #[inline(never)]
        pub fn $name(size: usize) -> Box<[u8]> {
            black_box(concat!(module_path!(), stringify!($name)));
            vec![1; size].into_boxed_slice()
        }
    };
}

/// Defines a module of ten results of the inner macro, with a list of all.
macro_rules! module {
    ($name:ident, $inner:ident, |$into:ident| $list:expr) => {
        pub mod $name {
            use super::*;
            ten!($inner);
            pub fn list($into: &mut Vec<Allocate>) {
                $list
            }
        }
    };
}

macro_rules! ten_sites {
    ($name:ident) => {
        module!($name, site, |into| into.extend([a as Allocate, b, c, d, e, f, g, h, i, j]));
    };
}

macro_rules! hundred_sites {
    ($name:ident) => {
        module!($name, ten_sites, |into| {
            for list in
                [a::list, b::list, c::list, d::list, e::list, f::list, g::list, h::list, i::list, j::list]
            {
                list(into)
            }
        });
    };
}

macro_rules! thousand_sites {
    ($name:ident) => {
        module!($name, hundred_sites, |into| {
            for list in
                [a::list, b::list, c::list, d::list, e::list, f::list, g::list, h::list, i::list, j::list]
            {
                list(into)
            }
        });
    };
}

mod sites {
    use super::*;
    ten!(thousand_sites);
    pub fn all() -> Vec<Allocate> {
        let mut all = Vec::with_capacity(10_000);
        for list in [a::list, b::list, c::list, d::list, e::list, f::list, g::list, h::list, i::list, j::list]
        {
            list(&mut all)
        }
        all
    }
}

/// Returns the series of one exposition.
fn scrape(address: SocketAddr) -> Vec<String> {
    let answer = client::ask(address, "GET", "/metrics", "");
    assert_eq!(answer.status, 200, "{}", answer.head);
    answer.text().lines().filter(|line| line.starts_with("heap_")).map(str::to_owned).collect()
}

fn value(series: &[String], name: &str) -> usize {
    let line = series.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Reads the promise in `dashboards/README.md`: series a process, series an exported site, and their maximum.
fn promised() -> [usize; 3] {
    let page = include_str!("../dashboards/README.md");
    let (before, after) = page.split_once(" series a process and ").unwrap();
    let (each, after) = after.split_once(" for each exported site: at most ").unwrap();
    let most = &after[..after.find(|c: char| !c.is_ascii_digit()).unwrap()];
    [before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap(), each, most]
        .map(|number| number.parse().unwrap())
}

/// Exported sites at most: 25 by live bytes, 4 by growth, 4 that very likely leak, and 8 of the last day.
const MOST: usize = 41;
/// Those of them that very likely leak. None here, as there are too few looks.
const LEAKS: usize = 4;

#[test]
fn series_stay_bounded_when_ten_thousand_sites_come_and_go() {
    let [fixed, each, most] = promised();
    assert_eq!(fixed + MOST * each, most);
    let all = sites::all();
    assert_eq!(all.len(), 10_000);
    // The 25 largest exist before the first snapshot, which is the baseline, so they do not grow.
    let held: Vec<_> = all[..25].iter().map(|allocate| allocate(1_000_000)).collect();
    let collector = heapgauge::Collector::builder().top_n(25).build().unwrap();
    let server = heapgauge::Server::builder().collector(&collector).serve("127.0.0.1:0").unwrap();

    let scrape_until = |phase: usize, few: usize, many: usize| {
        // A snapshot is at most a second old, and naming may take a few of them.
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            std::thread::sleep(Duration::from_millis(1_050));
            let series = scrape(server.local_addr());
            let exported = value(&series, "heap_sites_exported ");
            let limited = series.iter().any(|line| line.starts_with("heap_memory_limit_bytes"));
            assert!(exported <= MOST, "phase {phase}: {exported} sites");
            assert_eq!(
                series.len(),
                fixed - usize::from(!limited) + each * exported,
                "phase {phase}: {series:#?}"
            );
            if (few..=many).contains(&value(&series, "heap_sites ")) {
                return exported;
            }
            assert!(Instant::now() < end, "phase {phase}: {} sites", value(&series, "heap_sites "));
        }
    };

    // Each phase adds 1,000 smaller sites: 4 of them are exported as the fastest growing, and 8 of
    // earlier phases, of which each phase adds 2. A little
    // of each stays.
    let mut kept = Vec::with_capacity(10_000);
    let mut exported = Vec::new();
    for (phase, sites) in all.chunks(1_000).enumerate() {
        let large: Vec<_> = sites.iter().enumerate().map(|(i, allocate)| allocate(10_000 + i)).collect();
        kept.extend(sites.iter().map(|allocate| allocate(16)));
        let sites_so_far = 1_000 * (phase + 1);
        exported.push(scrape_until(phase, sites_so_far, sites_so_far + 50));
        drop(large);
    }
    assert_eq!(exported[4..], [MOST - LEAKS; 6], "{exported:?}");
    drop((held, kept));
    scrape_until(10, 0, 50);
}
