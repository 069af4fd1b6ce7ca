//! Says on stderr that a guard was dropped soon after it was made: `let _ =` does that, and the compiler does not warn.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::Write as _;
use std::time::Duration;

use crate::record::control;

/// Shortest life of a guard that was not dropped by mistake, most likely.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// Writes a line to stderr; `eprintln` would panic where it is closed.
pub(crate) fn say(line: &dyn fmt::Display) {
    let _ = writeln!(std::io::stderr(), "heapgauge: {line}");
}

/// Says on stderr that `what` was stopped at once, if it lived for less than a second, the program still runs a second later,
/// and there is no other one then: a program that ends has dropped it on purpose. `keeps`: the line that would keep it.
pub(crate) fn say_if_short(
    lived: Duration,
    what: String,
    keeps: &'static str,
    is_replaced: impl FnOnce() -> bool + Send + 'static,
) {
    if lived >= SHORT_LIFE || std::thread::panicking() {
        return;
    }
    let said = move || {
        control::internal_for_life();
        std::thread::sleep(SHORT_LIFE);
        if !is_replaced() {
            say(&format_args!(
                "{what} was stopped after {} ms, because its value was dropped; `{keeps}` keeps it",
                lived.as_millis()
            ));
        }
    };
    // Where no thread can be had there are more urgent problems than this one.
    let _ = std::thread::Builder::new().spawn(said);
}
