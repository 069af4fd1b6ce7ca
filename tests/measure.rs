//! Tests `measure`, `measure_future` and the assertions of `testing`: eight tests that each assert their own counts run at the
//! same time, beside threads that allocate all the time.

#[macro_use]
#[path = "support/process.rs"]
mod process;

use std::future::Future;
use std::hint::black_box;
use std::panic::catch_unwind;
use std::pin::{Pin, pin};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use heapgauge::testing::{assert_allocates, assert_no_growth};
use heapgauge::{Measurement, measure, measure_future};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Runs a test while another thread allocates and frees.
fn beside_others<R>(test: impl FnOnce() -> R) -> R {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut kept = Vec::new();
            while !done.load(Ordering::Relaxed) {
                kept.push(black_box(vec![1_u8; 300]));
                if kept.len() > 50 {
                    kept.clear();
                }
            }
        });
        // Also where the test panics.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        test()
    })
}

/// Returns bytes and blocks allocated, freed, left, and the peak.
fn figures(work: Measurement) -> [i64; 7] {
    assert!(work.is_exact(), "{work:?}");
    [
        work.allocated_bytes as i64,
        work.allocations as i64,
        work.deallocated_bytes as i64,
        work.deallocations as i64,
        work.live_bytes,
        work.live_blocks,
        work.peak_bytes as i64,
    ]
}

/// Returns the message of the panic that a test ends with.
#[track_caller]
fn message(test: impl FnOnce() + std::panic::UnwindSafe) -> String {
    *catch_unwind(test).expect_err("it has to panic").downcast::<String>().unwrap()
}

#[test]
fn one_call_is_counted_exactly() {
    beside_others(|| {
        for round in 0..50 {
            let (kept, work) = measure(|| {
                drop(black_box(vec![0_u8; 10_000]));
                let kept = black_box(vec![0_u8; 100 + round]);
                drop(black_box(Box::new([0_u64; 4])));
                kept
            });
            let size = 100 + round as i64;
            assert_eq!(figures(work), [10_000 + size + 32, 3, 10_032, 2, size, 1, 10_000]);
            let ((), work) = measure(|| drop(kept));
            assert_eq!(figures(work), [0, 0, size, 1, -size, -1, 0]);
        }
    });
}

#[test]
fn the_peak_counts_a_resize_once() {
    beside_others(|| {
        for (first, second) in [(10, 20), (20, 10), (5_000, 9_000), (100_000, 300_000), (300_000, 100_000)] {
            let ((), work) = measure(|| {
                let mut block: Vec<u8> = black_box(Vec::with_capacity(first));
                match second > first {
                    true => block.reserve_exact(second),
                    false => block.shrink_to(second),
                }
                assert_eq!(black_box(&block).capacity(), second);
            });
            let (first, second) = (first as i64, second as i64);
            assert_eq!(figures(work), [first + second, 2, first + second, 2, 0, 0, first.max(second)]);
        }
    });
}

#[test]
fn measurements_nest() {
    beside_others(|| {
        let ((kept, inner), outer) = measure(|| {
            let first = black_box(vec![0_u8; 1_000]);
            let (second, inner) = measure(|| {
                drop(black_box(vec![0_u8; 500]));
                black_box(vec![0_u8; 200])
            });
            drop(first);
            drop(black_box(vec![0_u8; 900]));
            (second, inner)
        });
        assert_eq!(figures(inner), [700, 2, 500, 1, 200, 1, 500]);
        assert_eq!(figures(outer), [2_600, 4, 2_400, 3, 200, 1, 1_500]);
        drop(kept);
    });
}

/// A future that is ready at its second poll.
struct Twice(bool);

impl Future for Twice {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[test]
fn a_future_is_measured_in_its_polls_alone() {
    beside_others(|| {
        let mut future = pin!(measure_future(async {
            let first = black_box(vec![0_u8; 700]);
            Twice(false).await;
            drop(first);
            black_box(vec![0_u8; 300])
        }));
        let mut context = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        let between = black_box(vec![0_u8; 50_000]);
        let Poll::Ready((kept, work)) = future.as_mut().poll(&mut context) else { panic!("not ready") };
        assert_eq!(figures(work), [1_000, 2, 700, 1, 300, 1, 700]);
        drop((kept, between));
    });
}

#[test]
fn what_is_kept_is_growth_and_named() {
    beside_others(|| {
        let mut kept: Vec<Box<[u8; 24]>> = Vec::with_capacity(100);
        let line = line!() + 2;
        let said = message(std::panic::AssertUnwindSafe(|| {
            assert_no_growth(|| kept.push(black_box(Box::new([0; 24]))));
        }));
        let expected = format!(
            "assert_no_growth: 8 calls kept 192 bytes in 8 blocks, as the 8 before did; they were allocated at\n  \
             tests/measure.rs:{line}: 192 bytes in 8 blocks\n"
        );
        assert_eq!(said, expected);
        assert_eq!(kept.len(), 17);
    });
}

#[test]
fn what_is_filled_once_is_no_growth() {
    static ONCE: OnceLock<String> = OnceLock::new();
    beside_others(|| {
        let mut room = Vec::new();
        let mut cache = [const { None }; 4];
        let mut calls = 0;
        assert_no_growth(|| {
            assert_eq!(ONCE.get_or_init(|| "once".to_owned()), "once");
            room.extend_from_slice(&[1_u8; 1_000]);
            room.clear();
            cache[calls % 4] = Some(black_box(vec![0_u8; 100]));
            calls += 1;
        });
    });
}

#[test]
fn allocations_are_in_the_range_or_named() {
    beside_others(|| {
        assert_eq!(
            assert_allocates(2..=2, || [black_box("a".to_owned()), black_box("b".to_owned())].len()),
            2
        );
        assert_allocates(..1, || black_box(5) + 5);
        let line = line!() + 1;
        let said = message(|| drop(assert_allocates(1..3, || [(); 3].map(|()| black_box(vec![0_u8; 11])))));
        assert_eq!(
            said,
            format!(
                "assert_allocates: the call allocated 3 blocks of 33 bytes, allowed are 1..3; they were allocated at\n  \
                 tests/measure.rs:{line}: 33 bytes in 3 blocks\n"
            )
        );
    });
}

/// A panic inside ends the measurement, and the thread is exact afterwards.
#[test]
fn a_panic_ends_a_measurement() {
    beside_others(|| {
        let caught = catch_unwind(|| measure(|| std::panic::resume_unwind(Box::new(5))).0);
        assert_eq!(caught.err().and_then(|value| value.downcast::<i32>().ok()).as_deref(), Some(&5));
        let ((), work) = measure(|| drop(black_box(vec![0_u8; 123])));
        assert_eq!(figures(work), [123, 1, 123, 1, 0, 0, 123]);
    });
}

#[test]
fn nothing_passes_where_nothing_is_measured() {
    own_process!();
    let refused = || message(|| assert_no_growth(|| ()));
    let said = "assert_no_growth: nothing can be said here: ";
    heapgauge::set_sample_interval(1 << 20).unwrap();
    assert_eq!(
        refused(),
        format!("{said}blocks are sampled, heapgauge::set_sample_interval(0) records each")
    );
    assert!(!measure(|| ()).1.is_exact());
    heapgauge::set_sample_interval(0).unwrap();
    let paused = heapgauge::pause();
    assert_eq!(refused(), format!("{said}this thread is paused, drop the guard of heapgauge::pause first"));
    drop(paused);
    heapgauge::stop();
    assert_eq!(refused(), format!("{said}tracking is off, heapgauge::start turns it on"));
    assert!(message(|| assert_allocates(.., || ())).contains("tracking is off"));
    heapgauge::start(32).unwrap();
    assert_no_growth(|| ());
    let changes: [fn(); 3] = [
        heapgauge::clear_traces,
        || {
            let _paused = heapgauge::pause();
            std::mem::forget(black_box(vec![1u8; 10]));
        },
        || {
            heapgauge::set_sample_interval(1 << 30).unwrap();
            std::mem::forget(black_box(vec![1u8; 10]));
            heapgauge::set_sample_interval(0).unwrap();
        },
    ];
    for change in changes {
        let said = message(|| assert_no_growth(change));
        assert!(said.contains("tracking was changed meanwhile"), "{said}");
        assert!(message(|| assert_allocates(.., change)).contains("tracking was changed meanwhile"));
    }
    let paused = heapgauge::pause();
    assert!(!measure(|| drop(paused)).1.is_exact(), "a pause that ends inside");
    let place = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&place);
    std::panic::set_hook(Box::new(move |panic| {
        *noted.lock().unwrap() = panic.location().unwrap().file().to_owned()
    }));
    message(|| assert_no_growth(heapgauge::clear_traces));
    let _ = std::panic::take_hook();
    assert!(place.lock().unwrap().ends_with("measure.rs"), "{place:?}");
}

/// Runs the eight tests above that share a process, side by side, several times: `MEASURE_RUNS`, by default 5.
#[test]
fn every_run_passes() {
    if process::is_started_for_one_test() {
        return;
    }
    let runs = std::env::var("MEASURE_RUNS").map_or(5, |runs| runs.parse().unwrap());
    for run in 0..runs {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--test-threads=8", "--skip", "every_run", "--skip", "nothing_passes"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("8 passed"), "run {run}:\n{text}");
    }
}
