//! The write side's atomics under loom: every order in which threads may run, and every value a load may then see.
//!
//! `counters.rs` and `tracker.rs` are the crate's own files. What stands in for them is `sync`, whose atomics loom
//! controls, and `memory`. The list of threads and the order in which a reader reads are written down in `models` anew,
//! after `thread.rs` and `raw.rs`, because those reach for the platform; the last check holds them to their originals.

#[path = "../../../src/counters.rs"]
mod counters;
mod memory;
mod models;
mod sync;
mod tag;
#[path = "../../../src/tracker.rs"]
mod tracker;

fn main() {
    let mut failed = 0;
    for (name, model) in models::ALL_OF_THEM {
        let begun = std::time::Instant::now();
        match std::panic::catch_unwind(model) {
            Ok(what) => println!("ok  {name}: {what} ({:.1} s)", begun.elapsed().as_secs_f64()),
            Err(_) => {
                println!("FAILED  {name}");
                failed += 1;
            }
        }
    }
    println!("{} passed, {failed} failed", models::ALL_OF_THEM.len() - failed);
    std::process::exit(i32::from(failed > 0));
}
