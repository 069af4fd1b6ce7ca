//! Divides the overhead limit into the shares of heapgauge's parts.
//!
//! One for the process: the latest limit counts. Names have a share that tables cannot take, large enough for
//! the line tables of the program where half of the limit is; tables may fill the rest, as far as names and baselines
//! leave it.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::analyze::memory_limit;
use crate::analyze::symbols::{self, DEFAULT_MAX_OVERHEAD};
use crate::base::error::Error;
use crate::record::control;
use crate::record::raw_snapshot;

/// Lowest limit allowed. Below this not even the tables of a few threads would fit beside some names.
pub(crate) const MIN_MAX_OVERHEAD: u64 = 1 << 20;

/// Relaxed: both are settings, and late by a collection at most.
static LIMIT: AtomicU64 = AtomicU64::new(0);
static NAMES: AtomicU64 = AtomicU64::new(0);

/// Returns the share of names: a quarter of the limit, or the size of the program's line tables and a sixteenth for the
/// names found, but no more than half.
fn share_of_names(limit: u64, lines_cost: u64) -> u64 {
    (lines_cost + lines_cost / 4 + limit / 16).clamp(limit / 4, limit / 2)
}

/// Returns the budget of tables, given the bytes of the read side: an eighth is for baselines, snapshots, ages and answers.
fn of_tables(limit: u64, names: u64, read_side: u64) -> u64 {
    (limit - names - limit / 8).min(limit.saturating_sub(read_side.saturating_add(limit / 16)))
}

/// Returns the bytes that the baselines may hold; the snapshots kept on request may hold as much again, and so may the marks of ages.
pub(super) fn of_baselines(limit: u64) -> usize {
    usize::try_from(limit / 24).unwrap_or(usize::MAX)
}

/// Returns the bytes that the marks of ages may hold.
pub(super) fn of_marks(limit: u64) -> usize {
    of_baselines(limit)
}

/// Returns the number of sites whose old bytes are remembered over time, for about a hundredth of the limit.
pub(super) fn scored_sites(limit: u64) -> usize {
    (limit >> 16).clamp(16, 1_024) as usize
}

/// Returns the limit of the process, bytes.
pub(crate) fn limit() -> u64 {
    match LIMIT.load(Ordering::Relaxed) {
        0 => DEFAULT_MAX_OVERHEAD,
        limit => limit,
    }
}

/// Sets the bytes heapgauge may hold: at least 1 MiB, by default 64 MiB, or a quarter of what the process's cgroup leaves
/// free when the first collector is made, if that is less (up to half, where the line tables of the program need it). The
/// limit is one for the process.
///
/// Three to five eighths of it are for the tables of the write side; beyond them new stacks are counted at `[unrecorded]`,
/// which counts as dropped for want of memory. A quarter to half is for names, which may also use space that tables leave.
/// A site whose line finds no room is not exported: it counts in [`Report::other`](crate::Report::other) and in
/// [`UnnamedBytes::lost`](crate::UnnamedBytes::lost), and is looked for again when there is more room. Where the
/// line tables would not fit into the whole limit that was set, or into 64 MiB where none was, sites are exported by function,
/// and count in `UnnamedBytes::lost` too.
///
/// # Examples
///
/// ```
/// heapgauge::set_max_overhead(32 << 20)?;
/// assert!(heapgauge::set_max_overhead(32).is_err()); // meant to be 32 MiB
/// # Ok::<(), heapgauge::Error>(())
/// ```
///
/// # Errors
///
/// If the limit is below 1 MiB; the message names the range.
pub fn set_max_overhead(bytes: u64) -> Result<(), Error> {
    if bytes < MIN_MAX_OVERHEAD {
        return Err(Error::new(format_args!(
            "set_max_overhead: {bytes} is out of range, allowed are {MIN_MAX_OVERHEAD} bytes (1 MiB) and more"
        )));
    }
    let _own = control::internal();
    divide(bytes, bytes);
    Ok(())
}

/// Divides the default limit where none was set yet.
pub(crate) fn divide_default() {
    if LIMIT.load(Ordering::Relaxed) == 0 {
        let limit = default_limit(memory_limit::memory_headroom_bytes(), symbols::global().lines_cost());
        divide(limit, DEFAULT_MAX_OVERHEAD);
    }
}

/// Returns the limit of a process that sets none: a quarter of what its cgroup leaves it now, where that is less than the
/// usual default; up to half where the line tables of the program need that. With the usual default near the cgroup's limit, the
/// kernel could end the process.
fn default_limit(headroom: Option<u64>, lines_cost: u64) -> u64 {
    let Some(headroom) = headroom else { return DEFAULT_MAX_OVERHEAD };
    let lines = lines_cost + lines_cost / 4 + MIN_MAX_OVERHEAD;
    (headroom / 4).max(lines.min(headroom / 2)).clamp(MIN_MAX_OVERHEAD, DEFAULT_MAX_OVERHEAD)
}

/// Sets the limit. `nominal`: what it would be if the system had enough memory.
fn divide(limit: u64, nominal: u64) {
    let names = share_of_names(limit, symbols::global().lines_cost());
    LIMIT.store(limit, Ordering::Relaxed);
    NAMES.store(names, Ordering::Relaxed);
    symbols::global().set_budget(limit, names, nominal);
    fit_tables(0);
}

/// Lets tables grow as far as the read side leaves room, but for `transient` bytes that it holds for a moment.
pub(super) fn fit_tables(transient: usize) {
    let limit = LIMIT.load(Ordering::Relaxed);
    if limit != 0 {
        let read_side = raw_snapshot::read_side_bytes().saturating_sub(transient as u64);
        raw_snapshot::set_table_limit(of_tables(limit, NAMES.load(Ordering::Relaxed), read_side));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_parts_are_never_more_than_the_whole() {
        for limit in [MIB, 8 * MIB, 64 * MIB, 16 << 30, u64::MAX] {
            for lines_cost in [0, MIB, 20 * MIB, 1 << 40] {
                let names = share_of_names(limit, lines_cost);
                assert!((limit / 4..=limit / 2).contains(&names));
                let tables = of_tables(limit, names, 0);
                assert!(tables >= limit / 8 * 3 && names + tables + limit / 8 <= limit);
                // The states of threads may pass the limit of the other tables by a sixteenth of it.
                assert!(names + tables + tables / 16 + limit / 16 <= limit);
                assert!(of_tables(limit, names, limit) == 0);
            }
        }
    }

    #[test]
    fn the_default_is_a_quarter_of_what_a_cgroup_leaves() {
        assert_eq!(default_limit(None, MIB), 64 * MIB);
        assert_eq!(default_limit(Some(1 << 40), MIB), 64 * MIB);
        assert_eq!(default_limit(Some(100 * MIB), MIB), 25 * MIB);
        assert_eq!(default_limit(Some(0), MIB), MIB);
        // Line tables get up to half.
        assert_eq!(default_limit(Some(100 * MIB), 28 * MIB), 36 * MIB);
        assert_eq!(default_limit(Some(100 * MIB), 60 * MIB), 50 * MIB);
        assert_eq!(default_limit(Some(1 << 40), 60 * MIB), 64 * MIB);
    }

    #[test]
    fn names_get_what_the_lines_of_the_program_take() {
        assert_eq!(share_of_names(64 * MIB, 0), 16 * MIB);
        assert_eq!(share_of_names(64 * MIB, 16 * MIB), 24 * MIB);
        assert_eq!(share_of_names(64 * MIB, 100 * MIB), 32 * MIB);
        assert_eq!(of_tables(64 * MIB, 16 * MIB, 0), 40 * MIB);
        // Names that found room while tables were small keep it.
        assert_eq!(of_tables(64 * MIB, 16 * MIB, 40 * MIB), 20 * MIB);
    }
}
