//! Maps and caches, two of each kind, and libraries that compute.

use crate::Heap;
use rayon::prelude::*;

const FILE: &str = "tests/own_line/containers.rs";

/// Fills two containers of a kind with `put`s at two lines. Checks that each has its share, and nothing is elsewhere.
fn two(lines: [u32; 2], first: impl Fn(u64), second: impl Fn(u64)) {
    let before = Heap::now();
    for number in 0..3_000 {
        first(number);
    }
    let between = Heap::now();
    for number in 0..1_000 {
        second(number);
    }
    let now = Heap::now();
    let of_first = between.all_at(&before, FILE, lines[0]..=lines[0]);
    let of_second = now.all_at(&between, FILE, lines[1]..=lines[1]);
    // Each entry has 100 bytes.
    assert!(of_first.0 >= 3_000 * 100 && of_second.0 >= 1_000 * 100, "{of_first:?} {of_second:?}");
    assert!(of_first.0 > of_second.0, "{of_first:?} {of_second:?}");
}

#[test]
fn dashmap() {
    own_process!();
    let (sessions, users) = (dashmap::DashMap::new(), dashmap::DashMap::new());
    let first = |number: u64| assert!(sessions.insert(number, [1u8; 100]).is_none());
    let second = |number: u64| assert!(users.insert(number, [2u8; 100]).is_none());
    two([line!() - 2, line!() - 1], first, second);
}

#[test]
fn moka() {
    own_process!();
    let (sessions, users) = (moka::sync::Cache::new(100_000), moka::sync::Cache::new(100_000));
    let first = |number: u64| sessions.insert(number, [1u8; 100]);
    let second = |number: u64| users.insert(number, [2u8; 100]);
    two([line!() - 2, line!() - 1], first, second);
}

#[test]
fn quick_cache() {
    own_process!();
    let (sessions, users) = (quick_cache::sync::Cache::new(100_000), quick_cache::sync::Cache::new(100_000));
    let first = |number: u64| sessions.insert(number, [1u8; 100]);
    let second = |number: u64| users.insert(number, [2u8; 100]);
    two([line!() - 2, line!() - 1], first, second);
}

#[test]
fn a_compiled_regex() {
    own_process!();
    let before = Heap::now();
    let pattern = regex::Regex::new(r"^(a|b)*c{2,20}$").unwrap();
    let line = line!() - 1;
    let now = Heap::now();
    let (bytes, _) = now.all_at(&before, FILE, line..=line);
    assert!(bytes > 1_000, "{bytes}");
    assert!(pattern.is_match("abcc"));
}

#[test]
fn a_parallel_map() {
    own_process!();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let _: Vec<u64> = pool.install(|| (0..1_000u64).into_par_iter().map(|number| number + 1).collect());
    let before = Heap::now();
    let boxes = pool.install(|| {
        #[rustfmt::skip]
        let boxes: Vec<Box<u64>> = (0..1_000).into_par_iter().map(Box::new).collect();
        boxes
    });
    let line = line!() - 3;
    let now = Heap::now();
    let (then, now) = (before.at(FILE, line..=line), now.at(FILE, line..=line));
    // The vector; the boxes are made by a function of the standard library on threads of the pool, where no frame is
    // the program's.
    assert!(now.0 - then.0 >= 1_000 * 8, "{then:?} {now:?}");
    drop(boxes);
}

/// The database's own memory comes from C's `malloc`.
#[test]
fn rows_of_a_database() {
    own_process!();
    let database = rusqlite::Connection::open_in_memory().unwrap();
    database.execute_batch("CREATE TABLE users (name TEXT)").unwrap();
    for number in 0..1_000 {
        let name = format!("{number:0100}");
        database.execute("INSERT INTO users VALUES (?)", [&name]).unwrap();
    }
    let mut statement = database.prepare("SELECT name FROM users").unwrap();
    let mut names: Vec<String> = Vec::with_capacity(1_000);
    let before = Heap::now();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        names.push(row.get(0).unwrap());
    }
    let line = line!() - 2;
    drop(rows);
    let now = Heap::now();
    let here = now.all_at(&before, FILE, line..=line);
    assert_eq!((here, now.via(FILE, line..=line)), ((1_000 * 100, 1_000), vec!["rusqlite"]));
    assert_eq!(names.len(), 1_000);
}
