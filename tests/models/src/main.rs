//! The write side's atomics under loom: every order in which threads may run, and every value a load may then see.
//!
//! `counters.rs`, `hint.rs`, `list.rs`, `sample.rs`, `tracker.rs` and `unsampled.rs` are the crate's own files. What stands
//! in for those below them is `sync`, whose atomics loom controls, `memory` and `tag`. Threads' states, the way of an
//! event to its count and the order in which a reader reads are written down in `models` anew, after `thread.rs`,
//! `book.rs` and `raw.rs`, because those reach for the platform; the last check holds them to their originals.

#[path = "../../../src/counters.rs"]
mod counters;
#[path = "../../../src/hint.rs"]
mod hint;
#[path = "../../../src/list.rs"]
mod list;
mod memory;
mod models;
#[path = "../../../src/sample.rs"]
mod sample;
mod sync;
mod tag;
#[path = "../../../src/tracker.rs"]
mod tracker;
#[path = "../../../src/unsampled.rs"]
mod unsampled;

/// Runs the models whose name holds the argument, without one all.
fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for (name, model) in models::ALL_OF_THEM.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        let begun = std::time::Instant::now();
        match std::panic::catch_unwind(model) {
            Ok(what) => {
                println!("ok  {name}: {what} ({:.1} s)", begun.elapsed().as_secs_f64());
                passed += 1;
            }
            Err(_) => {
                println!("FAILED  {name}");
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0 || passed == 0));
}
