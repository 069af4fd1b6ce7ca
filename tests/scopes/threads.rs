//! Threads and pools of threads: a scope is entered in them.

use crate::{NO_SCOPE, current, held};
use heapgauge::{Scope, ScopeFutureExt};
use rayon::prelude::*;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::mpsc::sync_channel;
use std::task::{Context, Poll, Waker};

const FILE: &str = "tests/scopes/threads.rs";

/// Line that allocates in most of these tests.
const LINE: u32 = line!() + 4;

#[inline(never)]
fn block() -> Box<[u8; 48]> {
    Box::new([1; 48])
}

#[test]
fn threads_that_enter_a_scope() {
    let scope = Scope::new("thread", "plain").with("job", "count");
    let mut kept = Vec::new();
    std::thread::scope(|threads| {
        let begun: Vec<_> = (0..10)
            .map(|_| {
                threads.spawn(|| {
                    assert_eq!(current(), NO_SCOPE, "a thread begins without a scope");
                    let inside = scope.in_scope(|| [block(), block()]);
                    (inside, block())
                })
            })
            .collect();
        kept.extend(begun.into_iter().map(|thread| thread.join().unwrap()));
    });
    assert_eq!(held(FILE, LINE, "thread", "plain"), (20 * 48, 20));
    assert_eq!(held(FILE, LINE, "job", "count"), (20 * 48, 20));
    drop(kept);
    assert_eq!(held(FILE, LINE, "thread", "plain"), (0, 0));
}

#[test]
fn a_pool_of_rayon() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let (large, small) = (Scope::new("thread", "rayon large"), Scope::new("thread", "rayon small"));
    let kept: Vec<_> = pool.install(|| {
        (0..1_000)
            .into_par_iter()
            .map(|number| if number % 10 == 0 { small.in_scope(block) } else { large.in_scope(block) })
            .collect()
    });
    assert_eq!(held(FILE, LINE, "thread", "rayon large"), (900 * 48, 900));
    assert_eq!(held(FILE, LINE, "thread", "rayon small"), (100 * 48, 100));
    // Freed by the threads of the pool, which are in no scope.
    pool.install(|| kept.into_par_iter().for_each(drop));
    assert_eq!(held(FILE, LINE, "thread", "rayon large"), (0, 0));
    assert_eq!(held(FILE, LINE, "thread", "rayon small"), (0, 0));
}

#[test]
fn blocking_work_of_tokio() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let kept = runtime.block_on(async {
        let scope = Scope::new("thread", "blocking");
        let mut kept = Vec::new();
        for _ in 0..20 {
            let scope = scope.clone();
            kept.push(tokio::task::spawn_blocking(move || scope.in_scope(block)).await.unwrap());
            kept.push(tokio::task::spawn_blocking(block).await.unwrap());
        }
        kept
    });
    assert_eq!((held(FILE, LINE, "thread", "blocking"), kept.len()), ((20 * 48, 20), 40));
}

/// Rests until the next poll.
async fn rest() {
    let mut is_later = false;
    poll_fn(|_| {
        let polled = if is_later { Poll::Ready(()) } else { Poll::Pending };
        is_later = true;
        polled
    })
    .await;
}

/// Allocates a block at each of so many polls.
async fn keep(polls: usize) -> Vec<Box<[u8; 48]>> {
    let mut kept = Vec::with_capacity(polls);
    for _ in 0..polls {
        kept.push(block());
        rest().await;
    }
    kept
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Each poll is on another thread than the one before, which has been in other scopes.
#[test]
fn a_future_that_two_threads_poll_in_turn() {
    let mut future = Box::pin(keep(100).in_scope(Scope::new("thread", "in turn")));
    let (to_other, at_other) = sync_channel(1);
    let (to_first, at_first) = sync_channel(1);
    let other = std::thread::spawn(move || {
        let elsewhere = Scope::new("thread", "elsewhere").with("other", "key");
        while let Ok(mut future) = at_other.recv() {
            let polled = elsewhere.in_scope(|| poll(Pin::as_mut(&mut future)));
            assert_eq!(current(), NO_SCOPE);
            to_first.send((future, polled)).unwrap();
        }
    });
    let kept = loop {
        if let Poll::Ready(kept) = poll(future.as_mut()) {
            break kept;
        }
        to_other.send(future).unwrap();
        let (back, polled) = at_first.recv().unwrap();
        if let Poll::Ready(kept) = polled {
            break kept;
        }
        future = back;
    };
    drop(to_other);
    other.join().unwrap();
    assert_eq!(held(FILE, LINE, "thread", "in turn"), (100 * 48, 100));
    assert_eq!(
        held(FILE, LINE, "thread", "elsewhere"),
        (0, 0),
        "the future's own value of the key is the last"
    );
    assert_eq!(held(FILE, LINE, "other", "key"), (50 * 48, 50), "other keys around a poll stay");
    drop(kept);
}

/// The combination around a future is another one at each poll.
#[test]
fn scopes_around_a_poll_that_change() {
    let mut future = pin!(six_polls().in_scope(Scope::new("task", "inner")));
    let outer = [Scope::new("outer", "a"), Scope::new("outer", "b")];
    assert!(poll(future.as_mut()).is_pending());
    for scope in [&outer[0], &outer[0], &outer[1], &outer[0]] {
        assert!(scope.in_scope(|| poll(future.as_mut())).is_pending());
    }
    let Poll::Ready(seen) = poll(future.as_mut()) else { panic!("six polls") };
    let inner = r#"Scope { task: "inner" }"#;
    let [a, b] = ["a", "b"].map(|outer| format!("Scope {{ outer: {outer:?}, task: \"inner\" }}"));
    assert_eq!(seen, [inner, &a, &a, &b, &a, inner]);
    assert_eq!(current(), NO_SCOPE);
}

/// A guard that was entered before a poll is dropped inside it.
#[test]
fn a_scope_around_a_poll_that_is_left_inside_it() {
    let outer = Scope::new("outer", "left inside");
    let mut around = Some(outer.enter());
    let leaving = poll_fn(|_| {
        let before = (current(), block());
        drop(around.take());
        Poll::Ready([before, (current(), block())])
    });
    let Poll::Ready([before, after]) = poll(pin!(leaving.in_scope(Scope::new("task", "leaving")))) else {
        panic!("one poll")
    };
    assert_eq!(before.0, r#"Scope { outer: "left inside", task: "leaving" }"#);
    assert_eq!((&*after.0, &*current()), (r#"Scope { task: "leaving" }"#, NO_SCOPE));
    assert_eq!(held(FILE, LINE, "outer", "left inside"), (48, 1));
    assert_eq!(held(FILE, LINE, "task", "leaving"), (2 * 48, 2));
}

/// Returns the scopes that six polls see.
async fn six_polls() -> Vec<String> {
    let mut seen = Vec::new();
    poll_fn(|_| {
        seen.push(current());
        if seen.len() == 6 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    seen
}

#[test]
fn a_poll_that_panics_leaves_the_scope() {
    let outer = Scope::new("outer", "around a panic");
    outer.in_scope(|| {
        let before = current();
        let failing = async {
            assert!(current().contains("failing"), "{}", current());
            let inside = Scope::new("task", "inside");
            let _entered = inside.enter();
            panic!("as planned");
        };
        let mut failing = pin!(failing.in_scope(Scope::new("task", "failing")));
        let polled = catch_unwind(AssertUnwindSafe(|| poll::<_>(failing.as_mut()).map(|(): ()| ())));
        assert!(polled.is_err());
        assert_eq!(current(), before);
    });
    assert_eq!(current(), NO_SCOPE);
}

/// A guard that is held across an await stays on its thread until it is dropped there; the future's own scope does not.
#[test]
fn a_guard_across_an_await_stays_on_its_thread() {
    let guarded = async {
        let scope = Scope::new("guard", "held");
        let _guard = scope.enter();
        let mut seen = vec![current()];
        rest().await;
        seen.push(current());
        seen
    };
    let mut guarded = pin!(guarded.in_scope(Scope::new("task", "guarded")));
    assert!(poll(guarded.as_mut()).is_pending());
    assert_eq!(current(), r#"Scope { guard: "held" }"#);
    let Poll::Ready(seen) = poll(guarded.as_mut()) else { panic!("two polls") };
    assert_eq!(seen, [r#"Scope { guard: "held", task: "guarded" }"#; 2]);
    assert_eq!(current(), NO_SCOPE);
}
