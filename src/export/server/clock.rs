//! Time → baselines when they are due, names for stacks without one, and a line for each limit that was reached.
//!
//! On the server's thread, beside its connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::time::sleep;

use super::say;
use crate::analyze::collector::Collector;
use crate::analyze::memory_parts::{self, State};
use crate::analyze::symbols;
use crate::record::raw_snapshot::{self, Dropped};

/// Interval between two looks for stacks that the last collection left unnamed.
const CLOCK_STEP: Duration = Duration::from_secs(1);
/// Rest between two slices of naming, so that the thread leaves most of a core to others.
const NAMING_REST: Duration = Duration::from_millis(10);

/// Keeps the collector's baselines in time, and names stacks that were left unnamed.
pub(super) async fn keep_time(collector: &Collector) {
    let mut losses = Losses::default();
    loop {
        // A fault of ours costs this turn only.
        let turn = |act: &dyn Fn() -> Option<Duration>| catch_unwind(AssertUnwindSafe(act)).ok().flatten();
        let due = turn(&|| Some(collector.tick())).unwrap_or(CLOCK_STEP);
        while turn(&|| collector.name_slice().then_some(NAMING_REST)).is_some() {
            sleep(NAMING_REST).await;
        }
        losses.look(raw_snapshot::dropped(), symbols::global().over_limit());
        losses.look_at_allocator();
        sleep(due.clamp(Duration::from_millis(10), CLOCK_STEP)).await;
    }
}

/// Limits that have been reached so far. Each is one line on stderr, once.
#[derive(Default)]
struct Losses {
    tables: bool,
    names: bool,
    stacks: bool,
    scopes: bool,
    allocator: bool,
}

impl Losses {
    /// Says once that the allocator's figures have a price that the program is spared.
    fn look_at_allocator(&mut self) {
        // One slow call may be chance, on a busy machine.
        let is_spared = memory_parts::latest().is_some_and(|reading| match reading.state {
            State::Rare => reading.slow_in_a_row > 1,
            state => state == State::Skipped,
        });
        if is_spared && !std::mem::replace(&mut self.allocator, true) {
            say(
                &"asking the allocator for its free memory takes more than 5 ms: it is asked less often, or not at all, \
                 see /debug/heap/allocator.json",
            );
        }
    }

    fn look(&mut self, dropped: Dropped, over_limit: u64) {
        for (said, count, line) in [
            (
                &mut self.tables,
                dropped.memory,
                "no more memory for tables (HEAPGAUGE_MAX_OVERHEAD): new stacks are counted at [unrecorded]",
            ),
            (
                &mut self.names,
                over_limit,
                "no more memory for names (HEAPGAUGE_MAX_OVERHEAD): the lines of some sites are lost, \
                 see heap_unnamed_bytes",
            ),
            (&mut self.stacks, dropped.stacks, "no more stack ids: new stacks are counted at [unrecorded]"),
            (&mut self.scopes, dropped.scopes, "no more room for scopes: new ones are counted at [other]"),
        ] {
            if count > 0 && !std::mem::replace(said, true) {
                say(&line);
            }
        }
    }
}
