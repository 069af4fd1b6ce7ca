//! Every metric: name, type, unit, labels and help, in the order in which they are exposed.
//!
//! The only place where a metric's name is written. Constants, for every outlet.
#![forbid(unsafe_code)]

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Grows until the process ends or traces are forgotten.
    Counter,
    /// Grows and shrinks, and the values of several processes have a meaningful sum.
    Sum,
    /// Grows and shrinks.
    Gauge,
}

impl Kind {
    /// Tells counters from the other two, which are both gauges in Prometheus.
    #[cfg(any(feature = "prometheus", feature = "prometheus-client"))]
    pub(crate) fn is_counter(self) -> bool {
        self == Kind::Counter
    }
}

/// Unit of a value. In the Prometheus text the name says it; other outlets have units of their own.
#[allow(dead_code, reason = "read by the tests and by outlets that are features")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Blocks,
    Seconds,
    Sites,
    Events,
    Threads,
    /// Truth value, 0 or 1.
    Flag,
}

#[cfg(feature = "opentelemetry")]
impl Unit {
    /// Returns the unit in OpenTelemetry: a unit of UCUM, a word in braces that is no unit, or nothing. Not `1` for a
    /// flag: translated to Prometheus a gauge with it would be called a ratio.
    pub(crate) fn ucum(self) -> &'static str {
        match self {
            Unit::Bytes => "By",
            Unit::Blocks => "{block}",
            Unit::Seconds => "s",
            Unit::Sites => "{site}",
            Unit::Events => "{event}",
            Unit::Threads => "{thread}",
            Unit::Flag => "",
        }
    }
}

/// Description of one metric.
#[allow(dead_code, reason = "read by the tests and by outlets that are features")]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// Name in Prometheus.
    pub name: &'static str,
    /// Name in OpenTelemetry, whose translation to Prometheus makes `name` of it, the unit and the kind.
    pub otel: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn family(
    name: &'static str,
    otel: &'static str,
    kind: Kind,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, otel, kind, unit, labels, help }
}

use Kind::{Counter, Gauge, Sum};
use Unit::{Blocks, Bytes, Events, Flag, Seconds, Sites, Threads};

pub(crate) static TRACKING: Family = family(
    "heap_tracking",
    "heap.tracking",
    Gauge,
    Flag,
    &[],
    "1 while allocations are recorded, 0 while tracking is off or paused by configuration.",
);
pub(crate) static START: Family = family(
    "heap_start_timestamp_seconds",
    "heap.start_timestamp",
    Gauge,
    Seconds,
    &[],
    "Unix time at which heapgauge began in this program image; exec begins anew.",
);
pub(crate) static LIVE_BYTES: Family =
    family("heap_live_bytes", "heap.live", Sum, Bytes, &[], "Requested bytes of all live tracked blocks.");
pub(crate) static LIVE_BLOCKS: Family =
    family("heap_live_blocks", "heap.live_blocks", Sum, Blocks, &[], "Live tracked blocks.");
pub(crate) static PEAK_BYTES: Family = family(
    "heap_peak_bytes",
    "heap.peak",
    Gauge,
    Bytes,
    &[],
    "Highest heap_live_bytes so far, within 64 KiB for each thread.",
);
pub(crate) static ALLOCATED_BYTES: Family =
    family("heap_allocated_bytes_total", "heap.allocated", Counter, Bytes, &[], "Requested bytes allocated.");
pub(crate) static ALLOCATIONS: Family =
    family("heap_allocations_total", "heap.allocations", Counter, Blocks, &[], "Blocks allocated.");
pub(crate) static DEALLOCATED_BYTES: Family =
    family("heap_deallocated_bytes_total", "heap.deallocated", Counter, Bytes, &[], "Requested bytes freed.");
pub(crate) static DEALLOCATIONS: Family =
    family("heap_deallocations_total", "heap.deallocations", Counter, Blocks, &[], "Blocks freed.");
pub(crate) static SITE_LIVE_BYTES: Family = family(
    "heap_site_live_bytes",
    "heap.site.live",
    Sum,
    Bytes,
    &["site", "function"],
    "Requested bytes of the live blocks allocated at this line of code.",
);
pub(crate) static SITE_LIVE_BLOCKS: Family = family(
    "heap_site_live_blocks",
    "heap.site.live_blocks",
    Sum,
    Blocks,
    &["site", "function"],
    "Live blocks allocated at this line of code.",
);
pub(crate) static SITE_LIVE_DELTA_BYTES: Family = family(
    "heap_site_live_delta_bytes",
    "heap.site.live.delta",
    Gauge,
    Bytes,
    &["site", "function"],
    "Change of heap_site_live_bytes since the baseline, signed; its age is heap_delta_window_seconds.",
);
pub(crate) static SITE_LIVE_DELTA_BLOCKS: Family = family(
    "heap_site_live_delta_blocks",
    "heap.site.live.delta_blocks",
    Gauge,
    Blocks,
    &["site", "function"],
    "Change of heap_site_live_blocks since the baseline, signed; its age is heap_delta_window_seconds.",
);
pub(crate) static SITE_LIVE_STDERR_BYTES: Family = family(
    "heap_site_live_stderr_bytes",
    "heap.site.live.stderr",
    Gauge,
    Bytes,
    &["site", "function"],
    "Standard error of heap_site_live_bytes; absent while every allocation is recorded.",
);
pub(crate) static SITE_OLD_BYTES: Family = family(
    "heap_site_old_bytes",
    "heap.site.old",
    Sum,
    Bytes,
    &["site", "function"],
    "Live bytes of this line of code in blocks that are certain to be older than heap_old_age_seconds.",
);
pub(crate) static SITE_ALLOCATED_BYTES: Family = family(
    "heap_site_allocated_bytes_total",
    "heap.site.allocated",
    Counter,
    Bytes,
    &["site", "function"],
    "Requested bytes allocated at this line of code.",
);
pub(crate) static SITE_INFO: Family = family(
    "heap_site_info",
    "heap.site.info",
    Sum,
    Flag,
    &["site", "function", "file", "line", "crate", "via"],
    "1; the labels say which line of code a site is, and through which library it holds its blocks.",
);
pub(crate) static SCOPE_LIVE_BYTES: Family = family(
    "heap_scope_live_bytes",
    "heap.scope.live",
    Sum,
    Bytes,
    &["scope_key", "scope_value"],
    "Requested bytes of the live blocks allocated in a scope that has this key and value. Never sum over keys: a block is in each.",
);
pub(crate) static SCOPE_LIVE_BLOCKS: Family = family(
    "heap_scope_live_blocks",
    "heap.scope.live_blocks",
    Sum,
    Blocks,
    &["scope_key", "scope_value"],
    "Live blocks allocated in a scope that has this key and value. Never sum over keys: a block is in each.",
);
pub(crate) static SCOPE_LIVE_DELTA_BYTES: Family = family(
    "heap_scope_live_delta_bytes",
    "heap.scope.live.delta",
    Gauge,
    Bytes,
    &["scope_key", "scope_value"],
    "Change of heap_scope_live_bytes since the baseline, signed; its age is heap_delta_window_seconds. Never sum over keys.",
);
pub(crate) static SITES: Family =
    family("heap_sites", "heap.sites", Sum, Sites, &[], "Named lines of code that hold live blocks.");
pub(crate) static SITES_EXPORTED: Family = family(
    "heap_sites_exported",
    "heap.sites_exported",
    Sum,
    Sites,
    &[],
    "Lines of code that have series of their own here.",
);
pub(crate) static DELTA_WINDOW: Family = family(
    "heap_delta_window_seconds",
    "heap.delta_window",
    Gauge,
    Seconds,
    &[],
    "Age of the baseline the deltas are measured against.",
);
pub(crate) static OLD_AGE: Family = family(
    "heap_old_age_seconds",
    "heap.old_age",
    Gauge,
    Seconds,
    &[],
    "Age from which heap_site_old_bytes counts a block (HEAPGAUGE_OLD_AGE).",
);
pub(crate) static SNAPSHOT_TIMESTAMP: Family = family(
    "heap_snapshot_timestamp_seconds",
    "heap.snapshot_timestamp",
    Gauge,
    Seconds,
    &[],
    "Unix time of the snapshot all these values come from.",
);
pub(crate) static SNAPSHOT_DURATION: Family = family(
    "heap_snapshot_duration_seconds",
    "heap.snapshot_duration",
    Gauge,
    Seconds,
    &[],
    "Time it took to read and group the counts.",
);
pub(crate) static UNTRACKED_BYTES: Family = family(
    "heap_untracked_bytes",
    "heap.untracked",
    Sum,
    Bytes,
    &[],
    "Requested bytes of live blocks allocated while tracking was paused or off.",
);
pub(crate) static OVERHEAD_BYTES: Family =
    family("heap_overhead_bytes", "heap.overhead", Sum, Bytes, &[], "Memory of the tracker itself.");
pub(crate) static UNNAMED_BYTES: Family = family(
    "heap_unnamed_bytes",
    "heap.unnamed",
    Sum,
    Bytes,
    &["state"],
    "Live bytes without a line of code: pending, no final name yet; lost, for want of memory (HEAPGAUGE_MAX_OVERHEAD).",
);
pub(crate) static DROPPED_EVENTS: Family = family(
    "heap_dropped_events_total",
    "heap.dropped_events",
    Counter,
    Events,
    &["reason"],
    "Events without their line of code, by reason; their bytes are in the totals, at [unrecorded] or in no site.",
);
pub(crate) static TRUNCATED_STACKS: Family = family(
    "heap_truncated_stacks_total",
    "heap.truncated_stacks",
    Counter,
    Events,
    &[],
    "Stacks that were cut short at the depth limit.",
);
pub(crate) static FALLBACK_WALKS: Family = family(
    "heap_fallback_walks_total",
    "heap.fallback_walks",
    Counter,
    Events,
    &[],
    "Stacks that were walked the slow way.",
);
pub(crate) static RESIDENT_BYTES: Family =
    family("heap_resident_bytes", "heap.resident", Sum, Bytes, &[], "Resident memory of the process.");
pub(crate) static RESIDENT_ANONYMOUS: Family = family(
    "heap_resident_anonymous_bytes",
    "heap.resident_anonymous",
    Sum,
    Bytes,
    &[],
    "Resident memory with no file behind it; with those down to heap_unaccounted_bytes of one reading, at most 10 s old.",
);
pub(crate) static RESIDENT_FILE: Family = family(
    "heap_resident_file_bytes",
    "heap.resident_file",
    Sum,
    Bytes,
    &[],
    "Resident pages of files, which the kernel can drop.",
);
pub(crate) static RESIDENT_SHARED: Family =
    family("heap_resident_shared_bytes", "heap.resident_shared", Sum, Bytes, &[], "Resident shared memory.");
pub(crate) static ALLOCATOR_INFO: Family = family(
    "heap_allocator_info",
    "heap.allocator.info",
    Sum,
    Flag,
    &["allocator", "state"],
    "1; the labels say which allocator is inside the tracking one, and whether its figures are read, rare, skipped or unknown.",
);
pub(crate) static ALLOCATOR_RESIDENT: Family = family(
    "heap_allocator_resident_bytes",
    "heap.allocator.resident",
    Sum,
    Bytes,
    &[],
    "Resident memory that the inner allocator and malloc of C have from the kernel.",
);
pub(crate) static ALLOCATOR_FREE: Family = family(
    "heap_allocator_free_resident_bytes",
    "heap.allocator.free_resident",
    Sum,
    Bytes,
    &[],
    "Resident memory of the allocators in no block; with mimalloc internal fragmentation included.",
);
pub(crate) static INTERNAL_FRAGMENTATION: Family = family(
    "heap_allocator_internal_fragmentation_bytes",
    "heap.allocator.internal_fragmentation",
    Sum,
    Bytes,
    &[],
    "Bytes of live blocks beyond those asked for: rounding, headers and tags; estimated with glibc.",
);
pub(crate) static FOREIGN: Family = family(
    "heap_foreign_bytes",
    "heap.foreign",
    Sum,
    Bytes,
    &[],
    "Blocks that did not come through heapgauge: of C and C++ libraries.",
);
pub(crate) static THREADS: Family =
    family("heap_process_threads", "heap.process_threads", Sum, Threads, &[], "Threads of the process.");
pub(crate) static THREAD_STACK: Family = family(
    "heap_thread_stack_bytes",
    "heap.thread_stack",
    Sum,
    Bytes,
    &[],
    "Resident memory of the stacks of threads.",
);
pub(crate) static LIVE_UNTOUCHED: Family = family(
    "heap_live_untouched_bytes",
    "heap.live_untouched",
    Sum,
    Bytes,
    &[],
    "Live bytes whose pages are not in memory, of blocks of at least 64 KiB.",
);
pub(crate) static UNACCOUNTED: Family = family(
    "heap_unaccounted_bytes",
    "heap.unaccounted",
    Gauge,
    Bytes,
    &[],
    "Anonymous memory in no part, signed: mappings of the program, variables of modules.",
);
pub(crate) static MEMORY_LIMIT_BYTES: Family = family(
    "heap_memory_limit_bytes",
    "heap.memory_limit",
    Sum,
    Bytes,
    &[],
    "Tightest memory limit, of a cgroup or HEAPGAUGE_MEMORY_LIMIT; absent without one.",
);
pub(crate) static MEMORY_LIMIT_USAGE_BYTES: Family = family(
    "heap_memory_limit_usage_bytes",
    "heap.memory_limit_usage",
    Sum,
    Bytes,
    &[],
    "Memory that counts against the limit and cannot be reclaimed; pages of files are not in it.",
);
pub(crate) static DUMPS: Family = family(
    "heap_dumps_total",
    "heap.dumps",
    Counter,
    Events,
    &["reason"],
    "Dumps of the heap that were written, by reason; absent without a directory for them.",
);
pub(crate) static DUMP_FAILURES: Family = family(
    "heap_dump_failures_total",
    "heap.dump_failures",
    Counter,
    Events,
    &[],
    "Dumps of the heap that could not be written; absent without a directory for them.",
);
pub(crate) static PREVIOUS_RUN_INFO: Family = family(
    "heap_previous_run_info",
    "heap.previous_run.info",
    Gauge,
    Flag,
    &["reason", "function", "site"],
    "1; the labels say what held most in the last dump of an earlier run that was killed or crashed.",
);
pub(crate) static SAMPLE_INTERVAL_BYTES: Family = family(
    "heap_sample_interval_bytes",
    "heap.sample_interval",
    Gauge,
    Bytes,
    &[],
    "Average bytes between sampled allocations; 0 when every allocation is recorded.",
);
pub(crate) static BUILD_INFO: Family = family(
    "heap_build_info",
    "heap.build_info",
    Sum,
    Flag,
    &["version", "build_id", "release", "site_scheme", "capture", "symbols"],
    "1; the labels say what was built and how well it can be named.",
);

/// Lists all families in the order in which they are exposed.
#[allow(dead_code, reason = "not every outlet needs those without series")]
pub(crate) static ALL: [&Family; 52] = [
    &TRACKING,
    &START,
    &LIVE_BYTES,
    &LIVE_BLOCKS,
    &PEAK_BYTES,
    &ALLOCATED_BYTES,
    &ALLOCATIONS,
    &DEALLOCATED_BYTES,
    &DEALLOCATIONS,
    &SITE_LIVE_BYTES,
    &SITE_LIVE_BLOCKS,
    &SITE_LIVE_DELTA_BYTES,
    &SITE_LIVE_DELTA_BLOCKS,
    &SITE_LIVE_STDERR_BYTES,
    &SITE_OLD_BYTES,
    &SITE_ALLOCATED_BYTES,
    &SITE_INFO,
    &SCOPE_LIVE_BYTES,
    &SCOPE_LIVE_BLOCKS,
    &SCOPE_LIVE_DELTA_BYTES,
    &SITES,
    &SITES_EXPORTED,
    &DELTA_WINDOW,
    &OLD_AGE,
    &SNAPSHOT_TIMESTAMP,
    &SNAPSHOT_DURATION,
    &UNTRACKED_BYTES,
    &OVERHEAD_BYTES,
    &UNNAMED_BYTES,
    &DROPPED_EVENTS,
    &TRUNCATED_STACKS,
    &FALLBACK_WALKS,
    &RESIDENT_BYTES,
    &RESIDENT_ANONYMOUS,
    &RESIDENT_FILE,
    &RESIDENT_SHARED,
    &ALLOCATOR_INFO,
    &ALLOCATOR_RESIDENT,
    &ALLOCATOR_FREE,
    &INTERNAL_FRAGMENTATION,
    &FOREIGN,
    &THREADS,
    &THREAD_STACK,
    &LIVE_UNTOUCHED,
    &UNACCOUNTED,
    &MEMORY_LIMIT_BYTES,
    &MEMORY_LIMIT_USAGE_BYTES,
    &DUMPS,
    &DUMP_FAILURES,
    &PREVIOUS_RUN_INFO,
    &SAMPLE_INTERVAL_BYTES,
    &BUILD_INFO,
];

#[cfg(test)]
mod tests;
