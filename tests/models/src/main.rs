//! Runs the write side's atomics under loom: every order of the threads, and every value that a load may then see.
//!
//! `append_list.rs`, `hint.rs`, `splitmix.rs`, `epoch.rs`, `peak.rs`, `scope/slot.rs` and the files of `record/count/` are the crate's own. Stand-ins
//! replace `base::atomics`, whose atomics loom controls here, `record::memory` and `record::tag`. `state` repeats the thread states, the way of an event to its counter and the
//! order of reading from `record/thread`, `record/event` and `record/raw_snapshot.rs`, because those use the platform;
//! the last check compares them with their originals.

mod base;
mod carries;
mod life;
mod live_bytes;
mod models;
mod reclaim;
mod record;
mod renew;
mod scopes;
mod sources;
mod state;

/// Runs the models whose names contain the argument, or all.
fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    let all = models::ALL_OF_THEM.into_iter().chain(carries::ALL_OF_THEM).chain(life::ALL_OF_THEM);
    let all = all.chain(renew::ALL_OF_THEM).chain(scopes::ALL_OF_THEM);
    for (name, model) in all.filter(|(name, _)| name.contains(&wanted)) {
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
