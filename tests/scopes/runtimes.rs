//! Tasks of tokio's runtimes and of smol's.

use crate::{NO_SCOPE, current, held};
use heapgauge::{Scope, ScopeFutureExt};
use std::future::poll_fn;
use std::task::Poll;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

const FILE: &str = "tests/scopes/runtimes.rs";

/// Rests once, in any runtime.
async fn rest() {
    let mut is_later = false;
    poll_fn(|context| {
        if is_later {
            return Poll::Ready(());
        }
        is_later = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Line that allocates in all of these tests.
const LINE: u32 = line!() + 8;
const ROUNDS: usize = 20;
const SIZE: usize = 64;

/// Allocates a block at each of its polls. Returns them, with the thread of each.
async fn keep() -> Vec<(Box<[u8; SIZE]>, ThreadId)> {
    let mut kept = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let block = Box::new([1; SIZE]);
        kept.push((block, thread::current().id()));
        rest().await;
    }
    kept
}

/// Returns live bytes and blocks of so many tasks.
fn of(tasks: usize) -> (u64, u64) {
    ((tasks * ROUNDS * SIZE) as u64, (tasks * ROUNDS) as u64)
}

/// Returns the scope of a task: one in ten is of the small tenant.
fn tenant(runtime: &str, task: usize) -> Scope {
    Scope::new(
        "tenant",
        if task.is_multiple_of(10) { format!("{runtime} small") } else { format!("{runtime} large") },
    )
}

/// Checks that two tenants hold 9 : 1 on one line, with so many tasks together.
#[track_caller]
fn is_nine_to_one(runtime: &str, tasks: usize) {
    for (name, tasks) in [("large", tasks - tasks / 10), ("small", tasks / 10)] {
        assert_eq!(held(FILE, LINE, "tenant", &format!("{runtime} {name}")), of(tasks), "{runtime} {name}");
    }
}

#[test]
fn tasks_of_tokio_that_migrate_between_workers() {
    let runtime = Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let begun = Instant::now();
    loop {
        let kept = runtime.block_on(async {
            let tasks: Vec<_> =
                (0..100).map(|task| tokio::spawn(keep().in_scope(tenant("workers", task)))).collect();
            let mut kept = Vec::new();
            for task in tasks {
                kept.push(task.await.unwrap());
            }
            kept
        });
        is_nine_to_one("workers", 100);
        let has_moved = kept.iter().any(|task| task.iter().any(|(_, thread)| *thread != task[0].1));
        drop(kept);
        is_nine_to_one("workers", 0);
        if has_moved {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "no task has changed its thread");
    }
}

#[test]
fn tasks_of_tokio_on_one_thread() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let kept = runtime.block_on(async {
        let tasks: Vec<_> = (0..100).map(|task| tokio::spawn(keep().in_scope(tenant("one", task)))).collect();
        let mut kept = Vec::new();
        for task in tasks {
            kept.push(task.await.unwrap());
        }
        kept
    });
    assert_eq!(current(), NO_SCOPE);
    is_nine_to_one("one", 100);
    drop(kept);
    is_nine_to_one("one", 0);
}

#[test]
fn tasks_of_a_local_set() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let kept = local.block_on(&runtime, async {
        let mut tasks = Vec::new();
        for task in 0..100 {
            // Not `Send`.
            let name = std::rc::Rc::new(task);
            let work = async move { (keep().await, name) };
            tasks.push(tenant("local", task).in_scope(|| tokio::task::spawn_local(work.in_current_scope())));
        }
        let mut kept = Vec::new();
        for task in tasks {
            kept.push(task.await.unwrap());
        }
        kept
    });
    is_nine_to_one("local", 100);
    drop(kept);
}

#[test]
fn tasks_of_smol() {
    let executor = smol::Executor::new();
    let tasks: Vec<_> = (0..100).map(|task| executor.spawn(keep().in_scope(tenant("smol", task)))).collect();
    let (stop, stopped) = smol::channel::unbounded::<()>();
    let kept = thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| smol::block_on(executor.run(stopped.recv())));
        }
        let kept: Vec<_> = smol::block_on(async {
            let mut kept = Vec::new();
            for task in tasks {
                kept.push(task.await);
            }
            kept
        });
        drop(stop);
        kept
    });
    is_nine_to_one("smol", 100);
    drop(kept);
    is_nine_to_one("smol", 0);
}

#[test]
fn two_futures_of_one_task() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let both = async {
        tokio::join!(
            keep().in_scope(Scope::new("tenant", "join first")),
            keep().in_scope(Scope::new("tenant", "join second"))
        )
    };
    let kept = runtime.block_on(both.in_scope(Scope::new("path", "/join")));
    for value in ["join first", "join second"] {
        assert_eq!(held(FILE, LINE, "tenant", value), of(1));
    }
    assert_eq!(held(FILE, LINE, "path", "/join"), of(2), "both keys");
    drop(kept);
}

#[test]
fn tasks_that_a_request_spawns() {
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let request = async {
        let with = tokio::spawn(keep().in_current_scope());
        let without = tokio::spawn(keep());
        (with.await.unwrap(), without.await.unwrap())
    };
    let scope = Scope::new("tenant", "spawning").with("path", "/spawning");
    let kept = runtime.block_on(async { tokio::spawn(request.in_scope(scope)).await.unwrap() });
    assert_eq!(held(FILE, LINE, "tenant", "spawning"), of(1));
    assert_eq!(held(FILE, LINE, "path", "/spawning"), of(1));
    drop(kept);
}

#[test]
fn a_task_that_panics_leaves_its_scope() {
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let failing = async {
            rest().await;
            assert_eq!(current(), NO_SCOPE, "as planned");
        };
        let failed = tokio::spawn(failing.in_scope(Scope::new("tenant", "failing"))).await;
        assert!(failed.unwrap_err().is_panic());
        assert_eq!(current(), NO_SCOPE);
        assert_eq!(tokio::spawn(async { current() }).await.unwrap(), NO_SCOPE);
    });
}

/// A task that ends before its future has, while it waits.
#[test]
fn a_task_that_is_aborted() {
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let (begun, begins) = tokio::sync::oneshot::channel();
        let waiting = async move {
            let kept = keep().await;
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(kept);
        };
        let task = tokio::spawn(waiting.in_scope(Scope::new("tenant", "aborted")));
        begins.await.unwrap();
        assert_eq!(held(FILE, LINE, "tenant", "aborted"), of(1));
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    });
    assert_eq!(held(FILE, LINE, "tenant", "aborted"), of(0));
}
