//! Tests counts of a whole process: one after the other, on the main thread, while no other thread allocates.
//!
//! Has no harness, because the threads of a harness allocate. Its output and its arguments are those of a harness: words
//! select the checks whose names contain one of them.

mod block;
#[cfg(feature = "http")]
#[path = "../support/client.rs"]
mod client;
mod inner;
mod life_cycle;
#[cfg(feature = "http")]
mod original_service;
#[path = "../support/random.rs"]
mod random;

use std::panic::catch_unwind;
use std::process::ExitCode;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<inner::Inner> = heapgauge::TrackingAllocator::new(inner::Inner);

type Check = (&'static str, fn());

macro_rules! checks {
    ($($(#[$when:meta])* $module:ident::$name:ident),* $(,)?) => {
        &[$($(#[$when])* (stringify!($name), $module::$name)),*]
    };
}

const CHECKS: &[Check] = checks![
    life_cycle::case_34_an_allocation_and_its_free,
    life_cycle::case_35_reset_peak_and_clear,
    life_cycle::case_36_stop_start_and_what_is_no_depth,
    life_cycle::case_37_resized_in_place_and_moved,
    life_cycle::case_37_a_resize_that_fails_changes_nothing,
    life_cycle::case_37_zeroed_blocks_count_once,
    life_cycle::case_40_freed_by_another_thread,
    life_cycle::case_40_threads_at_random_add_up,
    life_cycle::case_41_whoever_reads_a_snapshot_may_allocate,
    life_cycle::case_42_totals_hold_nothing_of_heapgauge,
    life_cycle::case_44_a_pause_silences_allocations_alone,
    life_cycle::case_44_stop_and_clear_forget,
    #[cfg(feature = "http")]
    original_service::first_snapshot_work_last_snapshot_top_ten,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        CHECKS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let chosen: Vec<&Check> = CHECKS.iter().filter(|(name, _)| is_chosen(name)).collect();
    let mut failed = 0;
    for (name, check) in &chosen {
        println!("test {name} ...");
        match catch_unwind(check) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    let (word, passed, filtered) =
        (if failed == 0 { "ok" } else { "FAILED" }, chosen.len() - failed, CHECKS.len() - chosen.len());
    println!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
