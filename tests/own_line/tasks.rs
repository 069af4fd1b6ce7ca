//! Tasks that nobody joins, and blocking work that waits.

use crate::{Heap, run};
use std::future::pending;
use std::hint::black_box;
use tokio::task::JoinSet;

const FILE: &str = "tests/own_line/tasks.rs";

#[test]
fn tasks_of_a_set_that_is_never_joined() {
    own_process!();
    run(async {
        let mut set = JoinSet::new();
        let before = Heap::now();
        let line = line!() + 2;
        for number in 0..5_000 {
            set.spawn(async move {
                pending::<()>().await;
                black_box(number)
            });
        }
        let now = Heap::now();
        let (_, blocks) = now.all_at(&before, FILE, line..=line);
        // The task and its entry in the set.
        assert!((10_000..10_100).contains(&blocks), "{blocks}");
        assert_eq!(now.via(FILE, line..=line), ["tokio"]);
    });
}

async fn idle(bytes: [u8; 200]) {
    pending::<()>().await;
    black_box(bytes);
}

#[inline(never)]
fn often() -> u32 {
    tokio::spawn(idle([1; 200]));
    line!() - 1
}

#[inline(never)]
fn seldom() -> u32 {
    tokio::spawn(idle([2; 200]));
    line!() - 1
}

#[test]
fn detached_tasks_of_two_lines() {
    own_process!();
    run(async {
        let before = Heap::now();
        let mut lines = (0, 0);
        for number in 0..10_000 {
            if number % 10 == 0 {
                lines.1 = seldom();
            } else {
                lines.0 = often();
            }
        }
        let now = Heap::now();
        now.all_at(&before, FILE, lines.0..=lines.1);
        let (often, seldom) = (now.at(FILE, lines.0..=lines.0), now.at(FILE, lines.1..=lines.1));
        // The queue of the runtime grew at one of them.
        assert!(
            (9_000..9_010).contains(&often.1) && (1_000..1_010).contains(&seldom.1),
            "{often:?} {seldom:?}"
        );
    });
}

#[test]
fn blocking_work_that_waits() {
    own_process!();
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let _inside = runtime.enter();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || {
        begun.send(()).unwrap();
        let _ = wait.recv();
    });
    begins.recv().unwrap();
    let before = Heap::now();
    let line = line!() + 2;
    for number in 0..1_000u64 {
        tokio::task::spawn_blocking(move || black_box(number));
    }
    // The worker's wait may take its block only now.
    let now = Heap::now();
    now.all_at(&before, FILE, line - 10..=line);
    let (_, blocks) = now.at(FILE, line..=line);
    assert!((1_000..1_010).contains(&blocks), "{blocks}");
    drop(go);
}
