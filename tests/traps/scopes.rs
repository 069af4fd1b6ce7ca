//! Blocks of scopes: exact by scope, by site and by both, whatever threads do, and while scopes come and go.

use crate::at_end::SetAtEnd;
use crate::random::Random;
use crate::reclaim::{fork, spawn_signalled};
use crate::signals::set_handler;
use crate::{inner, nothing_is_lost, of_function, on_path, say, trap};
use heapgauge::{Scope, ScopeGuard, Snapshot};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Allocates for all tenants on one line.
#[inline(never)]
pub(crate) fn keep(size: usize) -> Vec<u8> {
    black_box(Vec::with_capacity(black_box(size)))
}
pub(crate) const KEEP: &str = "traps::scopes::keep";

/// Resizes for all tenants on one line.
#[inline(never)]
fn grow(block: &mut Vec<u8>, size: usize) {
    block.reserve_exact(size);
    black_box(block);
}
const GROW: &str = "traps::scopes::grow";

/// Bytes and blocks by the scope that they were allocated in, and by the function that asked for them.
pub(crate) type Held = BTreeMap<(String, &'static str), (u64, u64)>;

pub(crate) fn add(held: &mut Held, scope: &str, function: &'static str, size: usize) {
    let sum = held.entry((scope.to_owned(), function)).or_default();
    *sum = (sum.0 + size as u64, sum.1 + 1);
}

/// Reads bytes and blocks of the two functions by scope and function.
pub(crate) fn read() -> Held {
    let mut held = Held::new();
    for trace in Snapshot::take().unwrap().traces() {
        let is_in = |function: &str| trace.traceback.frames().any(|frame| frame.function() == Some(function));
        if let Some(function) = [KEEP, GROW].into_iter().find(|function| is_in(function)) {
            let sum = held.entry((trace.scope.to_string(), function)).or_default();
            *sum = (sum.0 + trace.size, sum.1 + trace.count);
        }
    }
    held
}

/// A block, with the scope and the function that it has to be counted at.
struct Block {
    bytes: Vec<u8>,
    scope: &'static str,
    function: &'static str,
}

/// Compares the counts with the blocks.
#[track_caller]
fn check<'a>(blocks: impl Iterator<Item = &'a Block>) {
    let mut expected = Held::new();
    for block in blocks {
        add(&mut expected, block.scope, block.function, block.bytes.capacity());
    }
    assert_eq!(read(), expected);
    for function in [KEEP, GROW] {
        let rows = expected.iter().filter(|((_, of), _)| *of == function);
        let sum = rows.fold((0, 0), |sum, (_, row)| (sum.0 + row.0, sum.1 + row.1));
        assert_eq!(of_function(function), sum, "{function}");
    }
}

/// Makes two tenants, and combinations of them with a route.
fn scopes() -> [(Scope, &'static str); 4] {
    let (acme, globex) = (Scope::new("tenant", "acme"), Scope::new("tenant", "globex"));
    let (search, index) = (acme.clone().with("route", "/search"), globex.clone().with("route", "/index"));
    [
        (acme, "tenant=acme"),
        (globex, "tenant=globex"),
        (search, "route=/search,tenant=acme"),
        (index, "route=/index,tenant=globex"),
    ]
}

/// Allocates, frees blocks of other threads, and resizes some in another scope than that of the allocation.
fn work(worker: usize, scopes: &[(Scope, &'static str); 4], blocks: &Mutex<Vec<Block>>) {
    let mut random = Random(worker as u64);
    for number in 0..500 {
        let of = |number: usize| {
            &scopes[usize::from(!number.is_multiple_of(10)) + 2 * usize::from(number.is_multiple_of(3))]
        };
        let (scope, name) = of(number);
        let bytes = scope.in_scope(|| on_path(number % 4, 4, &mut || keep(100 + number % 7 * 300)));
        let block = Block { bytes, scope: name, function: KEEP };
        let mut blocks = blocks.lock().unwrap();
        blocks.push(block);
        if number % 2 == 0 {
            let at = random.below(blocks.len());
            drop(blocks.swap_remove(at));
        }
        if number % 5 == 0 && !blocks.is_empty() {
            let at = random.below(blocks.len());
            let mut block = blocks.swap_remove(at);
            let (scope, name) = of(random.below(100));
            let size = block.bytes.capacity() + 500;
            scope.in_scope(|| grow(&mut block.bytes, size));
            blocks.push(Block { bytes: block.bytes, scope: name, function: GROW });
        }
    }
}

/// Over threads, with frees elsewhere and resizes in another scope; across a clear, a stop and a fork.
#[test]
fn two_tenants_on_one_line() {
    trap("scopes::two_tenants_on_one_line", || {
        let (scopes, blocks) = (scopes(), Mutex::new(Vec::with_capacity(4096)));
        for round in 0..6 {
            std::thread::scope(|threads| {
                let (scopes, blocks) = (&scopes, &blocks);
                (0..4)
                    .for_each(|worker| drop(threads.spawn(move || work(round * 4 + worker, scopes, blocks))));
            });
            let mut blocks = blocks.lock().unwrap();
            check(blocks.iter());
            fork(|| {
                // The child has its own copy of all of it.
                let acme = Scope::new("tenant", "acme");
                let before = read();
                let kept = acme.in_scope(|| keep(77));
                let key = ("tenant=acme".to_owned(), KEEP);
                let (bytes, count) = before.get(&key).copied().unwrap_or_default();
                let is_counted = read().get(&key) == Some(&(bytes + 77, count + 1));
                drop(kept);
                if is_counted && read() == before { 0 } else { 1 }
            });
            match round {
                1 => heapgauge::clear_traces(),
                3 => {
                    heapgauge::stop();
                    scopes[0].0.in_scope(|| drop(keep(10)));
                    heapgauge::start(32).unwrap();
                }
                _ => continue,
            }
            // The blocks from before are not traced any more, and neither is their free.
            assert_eq!(read(), Held::new());
            blocks.clear();
            assert_eq!(read(), Held::new());
        }
        let left = blocks.into_inner().unwrap();
        assert!(left.len() > 1000);
        say(format_args!("{} blocks, {:?}", left.len(), read()));
        drop(left);
        assert!(read().values().all(|held| *held == (0, 0)), "{:?}", read());
        nothing_is_lost();
    });
}

/// Guards go in any order, and the scope is that of those that are left.
#[test]
fn guards_in_any_order() {
    trap("scopes::guards_in_any_order", || {
        let mut random = Random(24);
        let keys = ["tenant", "route", "job"];
        let all: Vec<(Scope, BTreeMap<&str, String>)> = (0..12)
            .map(|number| {
                let (key, value) = (keys[number % 3], (number / 3).to_string());
                let scope = Scope::new(key, &value);
                let names = BTreeMap::from([(key, value)]);
                if number % 4 != 3 {
                    return (scope, names);
                }
                let both = names.into_iter().chain([("zone", "a".to_owned())]).collect();
                (scope.with("zone", "a"), both)
            })
            .collect();
        let mut guards: Vec<(ScopeGuard<'_>, usize)> = Vec::with_capacity(64);
        let mut deepest = 0;
        for step in 0..20_000 {
            // Now up to fifty deep, now none.
            if guards.len() < 50 && random.below(100) < if step / 500 % 2 == 0 { 60 } else { 40 } {
                let chosen = random.below(all.len());
                guards.push((all[chosen].0.enter(), chosen));
            } else if !guards.is_empty() {
                let last = guards.len() - 1;
                let at = if random.below(2) == 0 { last } else { random.below(guards.len()) };
                drop(guards.remove(at));
            }
            deepest = guards.len().max(deepest);
            let mut expected = BTreeMap::new();
            for (_, entered) in &guards {
                expected.extend(all[*entered].1.iter().map(|(key, value)| (*key, value.clone())));
            }
            let shown: Vec<_> = expected.iter().map(|(key, value)| format!("{key}: {value:?}")).collect();
            let shown = if shown.is_empty() {
                "Scope {}".into()
            } else {
                format!("Scope {{ {} }}", shown.join(", "))
            };
            assert_eq!(format!("{:?}", Scope::current()), shown, "step {step}");
            if step % 1000 == 0 {
                let names: Vec<_> = expected.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let kept = keep(64 + step);
                let held = read();
                assert_eq!(held.get(&(names.join(","), KEEP)), Some(&(64 + step as u64, 1)), "{held:?}");
                drop(kept);
            }
        }
        drop(guards);
        assert_eq!(format!("{:?}", Scope::current()), "Scope {}");
        say(format_args!("{deepest} scopes at once"));
        nothing_is_lost();
    });
}

/// Threads that exit in a scope: the next thread, which takes the state over, is in none, and their combinations end.
#[test]
fn threads_that_forget_their_guards() {
    trap("scopes::threads_that_forget_their_guards", || {
        let route = Scope::new("route", "/search");
        for thread in 0..6_000 {
            let run = || {
                assert_eq!(format!("{:?}", Scope::current()), "Scope {}");
                std::mem::forget(route.enter());
                let tenant = Scope::new("tenant", thread.to_string());
                std::mem::forget(tenant.enter());
                assert_eq!(
                    format!("{:?}", Scope::current()),
                    format!("Scope {{ route: \"/search\", tenant: \"{thread}\" }}")
                );
                keep(10)
            };
            drop(std::thread::scope(|threads| threads.spawn(run).join().unwrap()));
        }
        nothing_is_lost();
    });
}

static IN_HANDLER: OnceLock<Scope> = OnceLock::new();
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// Enters a scope and allocates in it.
extern "C" fn handler(_signal: libc::c_int) {
    if let Some(scope) = IN_HANDLER.get() {
        drop(scope.in_scope(|| keep(32)));
        drop(Scope::current());
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Signal handlers enter scopes while threads do: the threads' own scopes stay as they are.
#[test]
fn handlers_enter_scopes_while_everything_goes_on() {
    trap("scopes::handlers_enter_scopes_while_everything_goes_on", || {
        let _no_locks = inner::no_locks();
        drop(IN_HANDLER.set(Scope::new("handler", "yes")));
        set_handler(handler, libc::SIGUSR1, 0);
        let (scopes, over, rounds) = (scopes(), AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|threads| {
            let _end = SetAtEnd(&over);
            spawn_signalled(threads, &over, |worker| {
                for round in worker.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (outer, inner) = (&scopes[round % 4].0, &scopes[(round + worker) % 4].0);
                    let _outer = outer.enter();
                    let kept = inner.in_scope(|| on_path(round % 8, 3, &mut || keep(round % 100)));
                    drop(kept);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
                black_box(read());
            }
        });
        let held = read();
        assert!(held.values().all(|sum| *sum == (0, 0)), "{held:?}");
        assert_eq!(format!("{:?}", Scope::current()), "Scope {}");
        let (handled, rounds) = (HANDLED.load(Ordering::Relaxed), rounds.into_inner());
        say(format_args!("{handled} signals, {rounds} rounds"));
        assert!(handled > 10 && rounds > 100);
    });
}

/// Threads meet new combinations at once: each has one number, and the sums are right.
#[test]
fn many_threads_make_the_same_scopes() {
    trap("scopes::many_threads_make_the_same_scopes", || {
        let turn = Barrier::new(4);
        let work = || {
            (0..300)
                .map(|number| {
                    turn.wait();
                    let scope = Scope::new("tenant", (number % 50).to_string())
                        .with("part", (number / 50).to_string());
                    scope.in_scope(|| keep(64))
                })
                .collect::<Vec<_>>()
        };
        let kept: Vec<_> = std::thread::scope(|threads| {
            let workers: Vec<_> = (0..4).map(|_| threads.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        let held = read();
        assert_eq!(held.len(), 300);
        assert!(held.values().all(|sum| *sum == (64 * 4, 4)), "{held:?}");
        drop(kept);
        nothing_is_lost();
    });
}
