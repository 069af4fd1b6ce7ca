//! Ages, scores and leaks of simulated programs, second by second, beside the birth of each block.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::ages::{AGES, AgeBounds};
use crate::analyze::snapshot::order::Order;
use crate::base::random_input::Random;
use std::collections::VecDeque;

const MIB: u64 = 1 << 20;

/// Block: bytes, second of birth, and the id it is counted at.
type Block = (u64, u64, u32);

/// Program whose lines have one stack each.
struct Program {
    fake: Fake,
    collector: Collector,
    blocks: BTreeMap<u32, VecDeque<Block>>,
    next: u32,
    second: u64,
}

impl Program {
    fn new() -> Program {
        let fake = Fake::new();
        let collector = fake.collector(16, 300);
        Program { fake, collector, blocks: BTreeMap::new(), next: 2, second: 0 }
    }

    fn allocate(&mut self, line: u32, bytes: u64) {
        let mut heap = self.fake.heap();
        let Heap { stacks, addresses, sites, .. } = &mut *heap;
        let open = stacks
            .values()
            .find(|stack| stack.is_open && addresses.to_vec(stack.addresses) == [line as usize]);
        let id = open.map_or(self.next, |stack| stack.id);
        self.next = self.next.max(id + 1);
        let stack = stacks.entry(id).or_insert_with(|| {
            sites.insert(line as usize, site(line));
            let addresses = addresses.push_stack(&[line as usize]);
            RawStack { addresses, ..RawStack::sample(id, Counts::default()) }
        });
        stack.counts.allocated_bytes += bytes;
        stack.counts.allocated_blocks += 1;
        self.blocks.entry(line).or_default().push_back((bytes, self.second, id));
    }

    /// Frees a block of a line, by its place.
    fn free(&mut self, line: u32, place: usize) {
        let (bytes, _, id) = self.blocks.get_mut(&line).unwrap().remove(place).unwrap();
        let mut heap = self.fake.heap();
        let stack = heap.stacks.get_mut(&id).unwrap();
        stack.counts.freed_bytes += bytes;
        stack.counts.freed_blocks += 1;
        if !stack.is_open && stack.counts.live_blocks() == 0 {
            heap.stacks.remove(&id);
        }
    }

    fn free_all(&mut self, line: u32) {
        while self.count(line) > 0 {
            self.free(line, 0);
        }
    }

    fn count(&self, line: u32) -> usize {
        self.blocks.get(&line).map_or(0, VecDeque::len)
    }

    /// Runs until a second, with `act` in each, and the server's clock after it.
    fn run(&mut self, end: u64, mut act: impl FnMut(&mut Program, u64)) {
        while self.second < end {
            self.second += 1;
            self.fake.at(self.second);
            act(self, self.second);
            self.collector.tick();
        }
    }

    fn report(&self) -> Arc<Report> {
        let report = self.collector.collect();
        check(&report);
        report
    }

    fn row(report: &Report, line: u32) -> SiteRow {
        report
            .sites
            .iter()
            .find(|row| row.line() == line)
            .unwrap_or_else(|| panic!("{line}: {report:?}"))
            .clone()
    }

    fn older_than(&self, line: u32, age: u64) -> u64 {
        let blocks = self.blocks.get(&line).into_iter().flatten();
        blocks.filter(|(_, born, _)| born + age <= self.second).map(|(bytes, ..)| bytes).sum()
    }

    /// Checks the bounds of a row against the birth of each block.
    fn check_bounds(&self, row: &SiteRow) {
        for (age, AgeBounds { lower_bytes, upper_bytes }) in AGES.into_iter().zip(row.ages) {
            let truth = self.older_than(row.line(), age.as_secs());
            assert!((lower_bytes..=upper_bytes).contains(&truth), "{age:?} {truth} {row:?}");
        }
    }

    /// Returns the lines that hold blocks surely older than an age, with their bytes.
    fn lines_older_than(&self, age: u64) -> Vec<(u32, u64)> {
        let older_than = Some(Duration::from_secs(age));
        let query = ViewQuery { at: None, since: Since::Previous, nearest: false, scope: None, older_than };
        let sites = self.collector.sites(query, Order::Size, 100, 4).unwrap();
        assert_eq!(sites.total.size, sites.rows.iter().map(|row| row.totals.size).sum::<u64>());
        assert!(sites.rows.iter().all(|row| row.totals.size_diff == 0 && row.history == [row.totals.size]));
        sites.rows.iter().map(|row| (row.site.line, row.totals.size)).collect()
    }
}

const LEAK: u32 = 10;
const CHURN: u32 = 20;
const CACHE: u32 = 30;
const SAWTOOTH: u32 = 40;
const RING: u32 = 50;
const TABLES: u32 = 60;

/// Allocates 10 MiB, and frees all of it every tenth second.
fn churn(program: &mut Program, second: u64) {
    if second.is_multiple_of(10) {
        program.free_all(CHURN);
    }
    program.allocate(CHURN, 10 * MIB);
}

#[test]
fn a_leak_of_a_kibibyte_a_second_is_named_beside_100_mib_that_turn_over() {
    let mut program = Program::new();
    program.run(300, |program, second| {
        churn(program, second);
        program.allocate(LEAK, 1024);
    });
    // From the mark a look before: 60 to 75 seconds old.
    let [(line, bytes)] = program.lines_older_than(60)[..] else { panic!("the leak alone") };
    assert_eq!((line, bytes), (LEAK, program.older_than(LEAK, 60)));
    let report = program.report();
    let (leak, churn) = (Program::row(&report, LEAK), Program::row(&report, CHURN));
    program.check_bounds(&leak);
    program.check_bounds(&churn);
    println!("scores after five minutes: leak {:?}, churn {:?}", leak.leak_score, churn.leak_score);
    assert!(leak.leak_score > Some(0.9) && churn.leak_score < Some(0.1) && churn.leak_score.is_some());
    assert_eq!(churn.ages[0], AgeBounds::default());
    assert_eq!((leak.ages[0].lower_bytes, leak.ages[0].upper_bytes), (240 * 1024, 240 * 1024));
    assert_eq!((leak.allocated_bytes, churn.allocated_bytes), (300 * 1024, 3_000 * MIB));
    let found = report.leak.as_ref().unwrap();
    assert_eq!(found.to_string(), "src/app.rs:10 app::line_10 +60.0 KiB/min");
    let query = CompareQuery { older_than: Some(Duration::from_secs(60)), ..Since::First.into() };
    let compared = program.collector.compare(query).unwrap();
    let sizes = |snapshot: &crate::Snapshot| snapshot.traces().iter().map(|trace| trace.size).sum::<u64>();
    assert_eq!((sizes(&compared.new), sizes(&compared.old), compared.total.size), (bytes, bytes, bytes));
}

#[test]
fn caches_sawteeth_rings_and_tables_do_not_leak() {
    let (mut program, mut random) = (Program::new(), Random::new());
    let mut act = |program: &mut Program, second: u64| {
        program.allocate(LEAK, 1024);
        churn(program, second);
        // Entries of different sizes; a full cache from the beginning.
        for _ in 0..if second == 1 { 64 } else { 1 + random.below(3) } {
            program.allocate(CACHE, MIB / 2 + random.below(MIB as usize) as u64);
        }
        while program.blocks[&CACHE].iter().map(|block| block.0).sum::<u64>() > 64 * MIB {
            program.free(CACHE, 0);
        }
        if second.is_multiple_of(70) {
            program.free_all(SAWTOOTH);
        }
        program.allocate(SAWTOOTH, MIB);
        if program.count(RING) == 90 {
            program.free(RING, 0);
        }
        for _ in program.count(RING)..90 {
            program.allocate(RING, MIB);
        }
        if second == 1 {
            (0..30).for_each(|_| program.allocate(TABLES, MIB));
        }
    };
    program.run(300, &mut act);
    for seconds in [300, 600, 1_200] {
        program.run(seconds, &mut act);
        let report = program.report();
        let scores = [LEAK, CHURN, CACHE, SAWTOOTH, RING, TABLES]
            .map(|line| Program::row(&report, line).leak_score.unwrap());
        println!("scores after {seconds} s: leak, churn, cache, sawtooth, ring, tables {scores:.3?}");
        assert!(scores[0] > 0.9 && scores[1..].iter().all(|&score| score < 0.1), "{scores:?}");
        report.sites.iter().for_each(|row| program.check_bounds(row));
        let named = report.leak.as_ref().map(|leak| leak.line());
        assert_eq!(named, Some(LEAK));
    }
}

/// Runs a cache whose entries live for about an hour, and a leak in the same stack as blocks that live for seconds. Returns the widest gap
/// between bounds, as a share of live bytes, and the number of ids.
fn widest_gap(cohorts: bool) -> (f64, usize) {
    const MIXED: u32 = 70;
    let (mut program, mut random) = (Program::new(), Random::new());
    program.fake.1.lock().settings.cohorts = cohorts;
    let mut act = |program: &mut Program, second: u64| {
        program.allocate(CACHE, 100_000);
        // Any entry, not the oldest.
        while program.count(CACHE) > 3_600 {
            let place = random.below(program.count(CACHE));
            program.free(CACHE, place);
        }
        program.allocate(MIXED, 1_000);
        if program.count(MIXED) > 5 && !second.is_multiple_of(5) {
            let place = program.count(MIXED) - 5;
            program.free(MIXED, place);
        }
        program.allocate(MIXED, 2 * MIB);
        if program.count(MIXED) > 3 {
            let place = program.count(MIXED) - 2;
            program.free(MIXED, place);
        }
    };
    let mut widest = 0.0_f64;
    for hours in 2..5 {
        program.run(3_600 * hours, &mut act);
        let report = program.report();
        for row in [CACHE, MIXED].map(|line| Program::row(&report, line)) {
            program.check_bounds(&row);
            let live = report.live.now.bytes as f64;
            let gaps = row.ages.map(|age| (age.upper_bytes - age.lower_bytes) as f64 / live);
            println!("cohorts {cohorts}, {hours} h: line {}: gaps as shares of live {gaps:.4?}", row.line());
            widest = gaps.into_iter().fold(widest, f64::max);
        }
    }
    let ids = program.fake.heap().stacks.len();
    println!("cohorts {cohorts}: ids {ids}, renewed {}", program.fake.heap().renewed);
    (widest, ids)
}

#[test]
fn cohorts_tell_the_ages_of_what_turns_over() {
    let ((with, ids), (without, two)) = (widest_gap(true), widest_gap(false));
    assert!(with <= 0.006 && ids < 900, "{with} {ids}");
    assert!(without > 0.1 && two == 2, "{without} {two}");
}

/// The server's clock is late now and then: no step of a leak is missed for that.
#[test]
fn a_leak_is_found_where_looks_are_late() {
    let (mut program, mut random) = (Program::new(), Random::new());
    let mut next = 0;
    while program.second < 500 {
        program.second += 1;
        program.fake.at(program.second);
        program.allocate(LEAK, 1024);
        if program.second >= next {
            program.collector.tick();
            next = program.second + 15 + random.below(16) as u64;
        }
    }
    let score = Program::row(&program.report(), LEAK).leak_score;
    assert!(score > Some(0.9), "{score:?}");
}

#[test]
fn without_cohorts_there_are_bounds_alone() {
    let mut program = Program::new();
    program.fake.1.lock().settings.cohorts = false;
    program.run(600, |program, _| {
        program.allocate(CACHE, MIB);
        if program.count(CACHE) > 100 {
            program.free(CACHE, 0);
        }
    });
    assert_eq!(program.fake.heap().renewed, 0);
    let row = Program::row(&program.report(), CACHE);
    program.check_bounds(&row);
    assert!(row.ages[0].lower_bytes < row.ages[0].upper_bytes);
}

#[test]
fn marks_begin_anew_at_a_clear_and_allocated_bytes_go_on() {
    let mut program = Program::new();
    program.run(210, |program, _| program.allocate(LEAK, 1_000));
    let before = Program::row(&program.report(), LEAK);
    assert_eq!((before.ages[0].lower_bytes, before.allocated_bytes), (program.older_than(LEAK, 60), 210_000));
    program.fake.clear();
    program.blocks.clear();
    program.run(240, |program, _| program.allocate(LEAK, 1_000));
    let after = Program::row(&program.report(), LEAK);
    // Nothing is older than the clear.
    assert_eq!((after.ages[0], after.leak_score), (AgeBounds::default(), None));
    assert_eq!((after.live.now.bytes, after.allocated_bytes), (30_000, 240_000));
}

#[test]
fn a_leak_says_when_the_limit_is_reached() {
    let fake = Fake::new();
    let mut options = CollectorBuilder::default().memory_limit(2_048 + 600 * MIB).options;
    options.old_age = Some(Duration::from_secs(600));
    let collector = Collector::with_source(options, Box::new(fake.clone()));
    let mut program = Program { fake, collector, blocks: BTreeMap::new(), next: 2, second: 0 };
    program.run(300, |program, _| {
        program.allocate(LEAK, MIB);
        program.allocate(CHURN, MIB);
    });
    let report = program.report();
    assert_eq!(report.old_age, Duration::from_secs(600));
    let leak = report.leak.as_ref().unwrap();
    // Both leak, so that the limit is near twice as soon.
    let seconds = leak.until_limit.unwrap().as_secs_f64();
    assert!(
        (leak.bytes_per_second / MIB as f64 - 1.0).abs() < 0.01 && (seconds - 300.0).abs() < 3.0,
        "{leak:?}"
    );
    assert!(leak.to_string().ends_with("+60.0 MiB/min, limit in 5 min"), "{leak}");
}
