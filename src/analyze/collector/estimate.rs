//! Sums of live counts, exact or estimated, and the error of an estimate.
#![forbid(unsafe_code)]

use std::ops::AddAssign;

use super::baselines::KeptCounts;
use crate::analyze::live::{Live, LiveChange};
use crate::record::raw_snapshot::RawStack;

/// Live counts of a site or of a scope, now and in the baseline, with their variances.
#[derive(Clone, Copy, Default)]
pub(super) struct Estimate {
    pub now: LiveTotals,
    pub then: LiveTotals,
    /// Variance of the bytes it holds now.
    pub variance: f64,
    /// Variance of the bytes it held then.
    pub then_variance: f64,
}

impl AddAssign for Estimate {
    fn add_assign(&mut self, other: Estimate) {
        self.now += other.now;
        self.then += other.then;
        self.variance += other.variance;
        self.then_variance += other.then_variance;
    }
}

impl Estimate {
    /// Adds counts of now; `variance` is 0 where they are exact.
    pub(super) fn add_now(&mut self, live: Live, variance: f64) {
        self.now.add(live, variance != 0.0);
        self.variance += variance;
    }

    /// Adds counts of the baseline.
    pub(super) fn add_then(&mut self, live: Live, variance: f64) {
        self.then.add(live, variance != 0.0);
        self.then_variance += variance;
    }

    pub(super) fn change(&self) -> LiveChange {
        LiveChange { now: self.now.all, since: self.then.all }
    }

    /// Returns the standard error of the bytes.
    pub(super) fn stderr(&self) -> u64 {
        self.variance.sqrt().round() as u64
    }

    /// Returns the standard error of the change of the bytes, at most: blocks that lived then and now are off alike.
    #[cfg(any(test, feature = "http"))]
    pub(super) fn diff_stderr(&self) -> u64 {
        (self.variance + self.then_variance).sqrt().round() as u64
    }
}

/// Live counts of one stack.
pub(super) struct LiveStack {
    pub id: u32,
    pub live: Live,
    /// Variance of the bytes, where they are an estimate; else 0.
    pub variance: f64,
}

impl From<&RawStack> for LiveStack {
    fn from(stack: &RawStack) -> LiveStack {
        let &RawStack { id, counts, variance, .. } = stack;
        LiveStack { id, live: counts.into(), variance }
    }
}

/// Live counts at one moment, and the estimated part of them.
#[derive(Clone, Copy, Default)]
pub(super) struct LiveTotals {
    pub all: Live,
    pub sampled: Live,
}

impl AddAssign for LiveTotals {
    fn add_assign(&mut self, other: LiveTotals) {
        self.all += other.all;
        self.sampled += other.sampled;
    }
}

impl LiveTotals {
    fn add(&mut self, live: Live, is_sampled: bool) {
        self.all += live;
        if is_sampled {
            self.sampled += live;
        }
    }
}

/// Returns the exact total now and in the baseline.
pub(super) fn total(now: Live, baseline: Option<&KeptCounts>) -> LiveChange {
    LiveChange { now, since: baseline.map_or_else(Live::default, |kept| kept.live) }
}

/// Scales the estimates down where rows would hold more than all there is: the total is known, so the part
/// above it is error, and rows and *other* have to add up. Now and then alike, so that an unchanged site stays so.
pub(super) fn fit(rows: &mut [Estimate], total: LiveChange) {
    fit_one(rows, |row| &mut row.now, total.now);
    fit_one(rows, |row| &mut row.then, total.since);
}

fn fit_one(rows: &mut [Estimate], of: fn(&mut Estimate) -> &mut LiveTotals, total: Live) {
    let mut sum = LiveTotals::default();
    for row in &mut *rows {
        let LiveTotals { all, sampled } = *of(row);
        sum.all += all;
        sum.sampled += sampled;
    }
    let bytes = excess(sum.all.bytes, total.bytes, sum.sampled.bytes);
    let blocks = excess(sum.all.blocks, total.blocks, sum.sampled.blocks);
    for row in rows.iter_mut().map(of) {
        row.all.bytes -= share(row.sampled.bytes, bytes);
        row.all.blocks -= share(row.sampled.blocks, blocks);
    }
}

/// Returns the excess of the rows over the total, and the estimated bytes that it can be taken from.
fn excess(rows: u64, total: u64, estimated: u64) -> (u64, u64) {
    (rows.saturating_sub(total).min(estimated), estimated)
}

/// Returns the part of the excess that a row has to give, rounded up.
fn share(estimated: u64, (excess, of): (u64, u64)) -> u64 {
    let share = (u128::from(estimated) * u128::from(excess)).div_ceil(u128::from(of.max(1)));
    share as u64
}
