//! Path and query → outlet.
//!
//! | path | answer |
//! |---|---|
//! | `GET /` | on loopback: to the page |
//! | `GET /metrics` | Prometheus text, or OpenMetrics where `Accept` prefers it |
//! | `GET /health` | `ok` |
//! | `GET /memory/snapshots` | how the heap differs from an earlier one, as text or JSON |
//! | `POST /memory/snapshots` | keeps a snapshot of now; JSON: `id`, `taken_at`, `size`, `count` |
//! | `GET /debug/heap` | a page for people, made from the JSON below and nothing else |
//! | `GET /debug/heap/summary.json` | totals, history, kept snapshots, progress of naming |
//! | `GET /debug/heap/sites.json` | lines of code, and the memory they hold: `top`, `since`, `sort`, `at`, `history` |
//! | `GET /debug/heap/scopes.json` | keys and values of scopes, and the memory of their blocks: `top`, `since`, `sort`, `at` |
//! | `GET /debug/heap/stacks.json` | stacks: `site`, `function`, `file`, `line`, `crate`, `top`, `since`, `sort`, `at` |
//! | `GET /debug/heap/tree.json` | the call tree of a flame graph: `value`, `nodes`, `since`, `at` |
//! | `GET /debug/heap/snapshot.json` | the file that [`Snapshot::save`](crate::Snapshot::save) writes, `?older_than=1h` |
//! | `GET /debug/heap/folded` | folded stacks for flame graphs, `?value=bytes` or `blocks`, `?scopes=on`, `?older_than=1h` |
//! | `GET /debug/heap/peak` | what held memory at the highest point so far: `group_by`, `sort`, `top`, `format` |
//! | `GET /debug/heap/allocator.json` | where resident memory is: its parts, mappings, arenas |
//! | `POST /debug/heap/trim` | gives free pages back, see [`trim`](crate::trim); JSON: `returned` (bytes), `seconds` |
//! | `POST /debug/heap/dump` | writes a dump, see [`Dumps`](crate::Dumps); JSON: `name` |
//! | `GET /debug/heap/dumps`, `/debug/heap/dumps/NAME` | the dumps as JSON, newest first, and one of them |
//! | `GET /debug/pprof/heap`, `/debug/pprof/allocs` | profiles (feature `pprof`), `?seconds=1` to 59 or `?debug=1`; `heap` also `?older_than=1h` |
//!
//! # The JSON of `/debug/heap`
//!
//! `size` and `count` are live bytes and live blocks, `size_diff` and `count_diff` their change since an
//! earlier moment, times seconds since 1970. `version` is 1; members may be added.
//!
//! * **summary.json**: `number` and `taken_at` of the moment it is about; `tracking`; `size`, `count`,
//!   `size_diff`, `count_diff` (since the baseline, `delta_window_seconds` ago); `started_at`; the values of the metrics
//!   of the same name (`peak_bytes`, `allocated_bytes`, `allocations`, `deallocated_bytes`,
//!   `deallocations`, `untracked_bytes`, `overhead_bytes`, `unnamed_bytes` (`pending` and `lost`), `resident_bytes`,
//!   `memory_limit_bytes`, `memory_limit_usage_bytes`, `sample_interval_bytes`, `dropped_events`, `build`); `naming`: stacks that are `named`, of the `total`
//!   that hold memory; `history` and `snapshots`: `taken_at`, `size` and `count` of the snapshots kept for baselines
//!   and on request, oldest first, the latter with the `id` that `since` takes; `paths`: the paths that are served here;
//!   `source_url`: the template of links to sources, or null; `previous_run`: null, or `reason`, `function`, `site` and `dump` (its
//!   name) of the last dump of an earlier run that was killed or crashed; `dumps`: null without a directory for them, or the
//!   list of `/debug/heap/dumps`: `name`, `reason`, `bytes`, `modified`; `parts`: null before the first reading, or as in
//!   `allocator.json`; `old_age_seconds`: the age from which blocks count as old; `leak`: null, or the site that very likely leaks and
//!   grows fastest: `site`, `function`, `file`, `line`, `bytes_per_second`, `until_limit_seconds` (null without a limit), and all of it
//!   as `text`.
//! * **allocator.json**: the last reading, at most 10 s old: `parts`, the fields of [`MemoryParts`](crate::MemoryParts) and
//!   `resident`, null where not known; `allocator`, the label of `heap_allocator_info`; `state`: `read`, `rare` (a call took
//!   more than 5 ms, the next ones come later), `skipped` (glibc would have held a lock for longer, so it was not asked) or
//!   `unknown` (the allocator says nothing); `mappings` by `kind`: `heap`, `arena`, `allocator` (that have its name), `stack`,
//!   `anonymous` (others), `image` (variables of modules), `file`, `shared`, `other`, each with `count`, `size`, `resident` and
//!   `anonymous`; `arenas` of glibc: `name`, `size`, `resident` (null where it cannot be told), `in_use`, `free`, `free_chunks` and `size_classes` of free
//!   chunks (`from`, `to`, `count`, `bytes`); `mapped_blocks` of glibc, mappings of their own: `count`, `bytes`; `usage`: the figures of the
//!   program's [`AllocatorStatistics`](crate::AllocatorStatistics); `calls`: the `seconds` that each source took, and the `longest_seconds` for which it
//!   may have held a lock that the program needs.
//! * **sites.json**: `rows`, each `site`, `function`, `file`, `line`, `crate`, the four figures and `history`
//!   (live bytes at the moments `history_at`, of which there are at most `history`, 0 to 64, default 16), and
//!   where they are [estimates](crate::docs::sampling) `stderr` and `diff_stderr`, the standard errors of `size` and
//!   `size_diff`; `ages`: live bytes by [age](crate::docs::ages), `<1m`, `<10m`, `<1h`, `<6h`, `<1d` and `>=1d`, each the least and the
//!   most that is possible, as are `old_bytes`, those older than `old_age_seconds`; `leak_score`: the likelihood of a leak, from 0
//!   to 1, or null;
//!   `other` is the rest beside the `top` rows (1 to 10000, default 100), so that they add up to `total`;
//!   `sites` says how many there are. Stacks without a name count in `other`.
//! * **scopes.json**: `rows`, each `key`, `value`, the four figures of the blocks whose [scope](crate::Scope) has that key with that
//!   value, and their errors as above; `pairs` says how many there are, `total` is that of all blocks. A block whose scope has several
//!   keys is in a row of each: rows of different keys do not add up. `summary.json` has the number of `scopes` that hold memory, if any do.
//! * **stacks.json**: `rows` as `/memory/snapshots?format=json` has them, of the sites that have all that is
//!   asked for; `stacks` says how many there are, `other` is the rest beside the `top` rows.
//! * **tree.json**: `nodes`, a list in which each comes after its `parent` (an index; `null` for the root).
//!   `kind` is `root`; `frame`, with an index into `frames`; `cut`, stacks whose oldest frames were not
//!   recorded; `unnamed`; `rest`, the part of a node beside the children that found room (`nodes`, 1 to 20000,
//!   default 2000); or `other`, below the root, the bytes that no sample represents. `value` is its width: bytes, blocks, or
//!   growth, the sum over the stacks that grew, as asked for by `value`; `stacks` says how many pass through it. The root has
//!   the four figures of the total, and each node at least the `size` and `count` of its children together. The
//!   oldest frame comes first, and frames beyond the traceback limit are there, too.
//!
//! `scope=tenant:acme` restricts sites, stacks, the tree, and the rows of `/memory/snapshots` and `/debug/heap/peak`, to blocks that were
//! allocated in such a scope; then `total` is theirs.
//!
//! `older_than=1h`, an age from `1s` to `7d`, restricts sites, scopes, stacks, the tree and the rows of `/memory/snapshots` to blocks
//! that are certain to be older; then `total` is theirs, and no change of them is known, so that each `…_diff` is 0 and the default
//! `sort` of `/memory/snapshots` is `size`. `ages` are still those of all blocks, whose bytes are in `live_bytes`.
//!
//! `since` and `sort` are those of `/memory/snapshots`, whose rows as JSON have `ages`, `old_bytes` and `leak_score`, too; here the defaults are `previous` and `size`. `at` is one of
//! the last four `number`s of `summary.json`, for a minute: answers with the same `at` are about the same moment
//! and add up, and do not wait for names. Without it they are of now, and wait up to 20 s until every stack has one.
//!
//! # Compression
//!
//! Every answer of at least 1 KiB but the profiles, which are compressed already, is compressed by gzip where
//! `Accept-Encoding` asks for it. At most eight at a time; others are sent as they are.
//!
//! # Access and costs
//!
//! On a loopback address of a server of heapgauge's everything but `/metrics` and `/health` is there too; elsewhere only
//! where the program exposes it. With the feature `axum`, `router` has these two for a program's own axum server, and
//! `debug_router` the others. Answers take what they need in slices of about 0.1 s and let
//! others run in between; nothing here waits for a lock longer than such a slice. With 10,000 stacks an answer
//! takes some 50 ms at most; with 100,000 the tree takes a second, half of it in one go.
#![forbid(unsafe_code)]

mod allocator;
mod debug_heap;
mod dumps;
mod guard;
mod heap_query;
mod negotiation;
mod profiles;
mod query;
mod response;
mod response_budget;
#[cfg(feature = "axum")]
mod router;
mod routes;
mod snapshot_page;
mod snapshots;
#[cfg(feature = "axum")]
mod worker_thread;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::{HeaderMap, StatusCode};

use crate::analyze::collector::{Collector, Since};
use crate::export::emit::prometheus::{self, Cached};
use crate::record::control;
use crate::record::fork::mutex::PerProcess;
pub(crate) use guard::Access;
pub use guard::Expose;
use profiles::ProfileSlots;
use response::{Refusal, Response, answer, catch_panic};
#[cfg(feature = "axum")]
pub use router::{debug_router, router};
pub(crate) use routes::App;
#[doc(hidden)]
pub use snapshot_page::SnapshotPage;

/// Time limit from a request's head (at first: from the connection) until its answer begins, and from there until the next
/// request's head. A client that does not read its answer ends here too.
pub(crate) const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Longest wait of a request for names; stacks without one by then show as unknown.
const NAMING_TIME: Duration = Duration::from_secs(20);
/// Line for a request whose wait for names was not long enough.
const NAMED_LATE: &str =
    "names are still being read, try again in a moment; /debug/heap/summary.json says how far";
/// Makes the state behind the answers of one server.
pub(crate) fn outlet(collector: &Collector, source_url: Option<String>) -> Arc<Outlet> {
    Arc::new(Outlet {
        collector: collector.clone(),
        source_url,
        metrics: Cached::default(),
        profile_slots: PerProcess::default(),
    })
}

/// State behind the answers of one server or router.
pub(crate) struct Outlet {
    collector: Collector,
    /// Template of links from lines of code to their source.
    source_url: Option<String>,
    metrics: Cached,
    profile_slots: PerProcess<ProfileSlots>,
}

async fn metrics(outlet: &Outlet, headers: &HeaderMap) -> Response {
    let report = loop {
        match catch_panic(|| outlet.collector.collect_slice()) {
            Ok(Some(report)) => break report,
            Ok(None) => tokio::task::yield_now().await,
            Err(failed) => return *failed,
        }
    };
    catch_panic(|| {
        let _own = control::internal();
        let text = outlet.metrics.text(&report);
        match negotiation::prefers_open_metrics(headers) {
            true => answer(StatusCode::OK, prometheus::OPEN_METRICS, prometheus::open_metrics(&text)),
            false => answer(StatusCode::OK, prometheus::CONTENT_TYPE, text.to_string()),
        }
    })
    .unwrap_or_else(|failed| *failed)
}

/// Names all stacks, for as long as a client would wait. False: there are more.
async fn name_all(collector: &Collector, since: Since) -> Result<bool, Refusal> {
    let begun = Instant::now();
    loop {
        match catch_panic(|| collector.name_all_slice(since))? {
            false if begun.elapsed() < NAMING_TIME => tokio::task::yield_now().await,
            all => return Ok(all),
        }
    }
}
