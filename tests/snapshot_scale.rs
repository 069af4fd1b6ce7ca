//! Tests that a snapshot of 100,000 tracebacks is loaded and saved in under two seconds and 200 MB; in a debug build, one of
//! 10,000 in under four seconds and 20 MB.

#[path = "support/counting.rs"]
mod counting;

use counting::{Counting, LIVE, PEAK, busy};
use heapgauge::Snapshot;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

#[global_allocator]
static ALLOC: Counting = Counting;

/// Without optimisation everything takes some twenty times as long, so there are fewer.
const TRACEBACKS: usize = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
const FRAMES: usize = 12;

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 2 });
const MOST: usize = if cfg!(debug_assertions) { 20_000_000 } else { 200_000_000 };

#[test]
fn very_many_tracebacks() {
    let directory = std::env::temp_dir().join(format!("heapgauge-scale-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (given, saved) = (directory.join("given.json"), directory.join("saved.json"));
    std::fs::write(&given, text()).unwrap();

    // The minimum of three: another program on the same core, or one that fills its caches, doubles the processor time.
    let mut least = Duration::MAX;
    for _ in 0..3 {
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let begin = busy();
        let snapshot = Snapshot::load(&given).unwrap();
        let loaded = busy() - begin;
        snapshot.save(&saved).unwrap();
        let both = busy() - begin;
        let peak = PEAK.load(Relaxed) - before;
        println!(
            "{} MB of JSON: load {loaded:?}, with save {both:?}, peak {} MB",
            std::fs::metadata(&given).unwrap().len() / 1_000_000,
            peak / 1_000_000
        );

        assert_eq!(snapshot.traces().len(), TRACEBACKS);
        assert_eq!(std::fs::read(&given).unwrap(), std::fs::read(&saved).unwrap());
        assert!(peak < MOST, "{peak} bytes");
        least = least.min(both);
        if least < LIMIT {
            break;
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(least < LIMIT, "{least:?}");
}

/// Writes tracebacks of 5,000 functions, each with three lines that call or allocate.
fn text() -> String {
    let mut text = String::from(
        r#"{"version":1,"taken_at":1793000000.25,"traceback_limit":32,"build_id":null,"traces":["#,
    );
    for trace in 0..TRACEBACKS {
        let comma = if trace == 0 { "" } else { "," };
        write!(
            text,
            r#"{comma}{{"domain":0,"size":{},"count":1,"total_frames":{FRAMES},"frames":["#,
            trace + 1
        )
        .unwrap();
        for frame in 0..FRAMES {
            let comma = if frame == 0 { "" } else { "," };
            let function = (trace / (frame + 1) + frame * 577) % 5000;
            let line = function % 50 * 40 + trace % 3;
            write!(
                text,
                r#"{comma}{{"function":"my_service::module_{}::Type::function_{function}","file":"crates/part/src/module_{}.rs","line":{line}}}"#,
                function / 50,
                function / 50
            )
            .unwrap();
        }
        text.push_str("]}");
    }
    text.push_str("]}\n");
    text
}
