//! Snapshots that tests make.

use super::{Addresses, AddressesAt, Carried, Counts, Dropped, RawSnapshot, RawStack, ScopeId, ScopeNames};
use std::time::{Instant, SystemTime};

impl RawStack {
    /// Makes an open id with these counts, exact and in no scope.
    pub(crate) fn sample(id: u32, counts: Counts) -> RawStack {
        RawStack {
            id,
            is_open: true,
            addresses: AddressesAt::default(),
            scope: ScopeId::NONE,
            truncated: false,
            counts,
            carried: Carried::default(),
            variance: 0.0,
        }
    }
}

impl RawSnapshot {
    /// Makes a snapshot of these stacks, which have no addresses.
    pub(crate) fn sample(taken: Instant, stacks: Vec<RawStack>) -> RawSnapshot {
        RawSnapshot {
            taken_at: SystemTime::UNIX_EPOCH,
            taken,
            tracking: true,
            traceback_limit: 32,
            epoch: 0,
            stacks,
            addresses: Addresses::default(),
            scopes: ScopeNames::default(),
            totals: Counts::default(),
            untracked_bytes: 0,
            overhead_bytes: 0,
            peak_bytes: 0,
            dropped: Dropped::default(),
            truncated_stacks: 0,
            fallback_walks: 0,
            sample_interval_bytes: 0,
            capture: "cfi",
        }
    }
}
