//! Line on stderr that shows that work goes on, where stderr is a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Time of work after which the line appears, and between its changes.
const STEP: Duration = Duration::from_millis(500);

/// Does some work, and shows since when once it takes longer than a moment.
pub fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    with_part(what, &|| None, work)
}

/// Does some work, and shows since when and which part of it is done.
pub fn with_part<T>(what: &str, part: &(impl Fn() -> Option<f64> + Sync), work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let what = crate::text::one_line(what);
    let (done, is_done) = mpsc::channel::<()>();
    let begun = Instant::now();
    thread::scope(|scope| {
        // Dropped where the work panics, too: the thread ends.
        let done = done;
        scope.spawn(move || {
            let mut is_shown = false;
            while is_done.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                is_shown = true;
                let part = part().map_or(String::new(), |part| format!("{:.0} %, ", 100.0 * part));
                let seconds = begun.elapsed().as_secs_f64().max(1.0);
                let _ = write!(io::stderr(), "\r{what}: {part}{seconds:.0} s\x1b[K");
            }
            if is_shown {
                // Erases the line.
                let _ = write!(io::stderr(), "\r\x1b[K");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
