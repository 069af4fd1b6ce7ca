//! Report with every field in use, for the tests of the outlets.
#![forbid(unsafe_code)]

use crate::analyze::ages::AgeBounds;
use crate::analyze::collector::{BuildInfo, DroppedEvents, Report, ScopeRow, SiteRow, UnnamedBytes};
use crate::analyze::live::{Live, LiveChange};
use crate::analyze::memory_parts::MemoryParts;
use crate::analyze::scope::OTHER;
use crate::analyze::symbols::{LineTables, Site};
use crate::record::raw_snapshot::Counts;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Builds a report with every field in use, for the tests of the outlets.
pub(crate) fn sample_report() -> Report {
    let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds);
    Report {
        number: 1,
        taken_at: at(1_793_000_300.25),
        duration: Duration::from_micros(1_500),
        old_age: Duration::from_secs(3_600),
        leak: None,
        started_at: at(1_793_000_000.0),
        tracking: true,
        live: change(600_000, 12_500, -952, -9),
        peak_bytes: 700_000,
        allocated_bytes: 1_000_000,
        allocations: 20_000,
        deallocated_bytes: 400_000,
        deallocations: 7_500,
        sites: vec![
            sample_row(42, "app::cache::Cache::insert", 592_560, 12_345, 48, 1),
            sample_row(7, "app::load\\it", 5_000, 50, -1_000, -10),
        ],
        scopes: vec![
            ScopeRow::new("route", "/search", change(500_000, 12_000, 16, 1)),
            ScopeRow::new("tenant", "acme", change(450_000, 11_000, -8, -1)),
            ScopeRow::new("tenant", OTHER, change(50_000, 1_000, 24, 2)),
        ],
        other: change(2_440, 105, 0, 0),
        sites_with_blocks: 17,
        delta_window: Duration::from_millis(300_500),
        untracked_bytes: 64,
        overhead_bytes: 4_096,
        unnamed: UnnamedBytes { pending: 128, lost: 256 },
        dropped: DroppedEvents { stacks: 1, memory: 2, threads: 3, series: 4, reentrant: 5, scopes: 8 },
        truncated_stacks: 6,
        fallback_walks: 7,
        sample_interval_bytes: 0,
        resident_bytes: Some(8_192),
        memory_limit_bytes: Some(134_217_728),
        memory_limit_usage_bytes: Some(7_168),
        memory_parts: Some(MemoryParts::sample()),
        allocator: Some(("glibc".into(), "read")),
        dumps: None,
        previous_run: None,
        build: BuildInfo {
            version: "0.1.0",
            build_id: "ab12".into(),
            release: "2.4".into(),
            site_scheme: "2",
            capture: "cfi",
            symbols: "lines",
            lines: LineTables::Available,
        },
        followed: Vec::new(),
        followed_scopes: Vec::new(),
        forgotten: Counts::default(),
    }
}

pub(crate) fn sample_row(
    line: u32,
    function: &str,
    live_bytes: u64,
    live_blocks: u64,
    delta_bytes: i64,
    delta_blocks: i64,
) -> SiteRow {
    let site = Site {
        id: 0xfeed_0000_0000_0000 + u64::from(line),
        function: function.into(),
        file: "src\\app\\cache.rs".into(),
        line,
        krate: "app".into(),
        via: "".into(),
        lost: None,
    };
    let change = change(live_bytes, live_blocks, delta_bytes, delta_blocks);
    let mut row = SiteRow::new(Arc::new(site), change, 0);
    row.old = AgeBounds { lower_bytes: live_bytes / 2, upper_bytes: live_bytes };
    row.allocated_bytes = live_bytes.wrapping_mul(3);
    row
}

fn change(bytes: u64, blocks: u64, delta_bytes: i64, delta_blocks: i64) -> LiveChange {
    let now = Live { bytes, blocks };
    let since = Live {
        bytes: bytes.wrapping_sub(delta_bytes as u64),
        blocks: blocks.wrapping_sub(delta_blocks as u64),
    };
    LiveChange { now, since }
}
