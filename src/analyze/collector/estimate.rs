//! Sums of live counts, exact or estimated, and the error of an estimate.
#![forbid(unsafe_code)]

use super::baselines::KeptCounts;
use super::report::Sum;
use crate::record::raw_snapshot::RawStack;

/// Live counts of a site, now and in the baseline, with their variances.
#[derive(Clone, Copy, Default)]
pub(super) struct Estimate {
    pub now: LiveTotals,
    pub then: LiveTotals,
    /// Variance of the bytes it holds now.
    pub variance: f64,
    /// Variance of the bytes it held then.
    pub then_variance: f64,
}

impl Estimate {
    pub(super) fn sum(&self) -> Sum {
        Sum {
            live_bytes: self.now.bytes,
            live_blocks: self.now.blocks,
            delta_bytes: self.now.bytes as i64 - self.then.bytes as i64,
            delta_blocks: self.now.blocks as i64 - self.then.blocks as i64,
        }
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
    pub bytes: u64,
    pub blocks: u64,
    /// Variance of the bytes, where they are an estimate; else 0.
    pub variance: f64,
}

impl From<&RawStack> for LiveStack {
    fn from(stack: &RawStack) -> LiveStack {
        let &RawStack { id, counts, variance, .. } = stack;
        LiveStack { id, bytes: counts.live_bytes(), blocks: counts.live_blocks(), variance }
    }
}

/// Bytes and blocks at one moment, and the estimated part of them.
#[derive(Clone, Copy, Default)]
pub(super) struct LiveTotals {
    pub bytes: u64,
    pub blocks: u64,
    pub sampled_bytes: u64,
    pub sampled_blocks: u64,
}

impl LiveTotals {
    pub(super) fn add(&mut self, bytes: u64, blocks: u64, is_sampled: bool) {
        self.bytes += bytes;
        self.blocks += blocks;
        if is_sampled {
            self.sampled_bytes += bytes;
            self.sampled_blocks += blocks;
        }
    }
}

/// Returns the exact total: live bytes and blocks, and their change since the baseline.
pub(super) fn total((live_bytes, live_blocks): (u64, u64), baseline: Option<&KeptCounts>) -> Sum {
    let (then_bytes, then_blocks) = baseline.map_or((0, 0), |kept| (kept.live_bytes, kept.live_blocks));
    Sum {
        live_bytes,
        live_blocks,
        delta_bytes: live_bytes as i64 - then_bytes as i64,
        delta_blocks: live_blocks as i64 - then_blocks as i64,
    }
}

/// Scales the estimates down where rows would hold more than all there is: the total is known, so the part
/// above it is error, and rows and *other* have to add up. Now and then alike, so that an unchanged site stays so.
pub(super) fn fit(rows: &mut [Estimate], total: Sum) {
    let then = |now: u64, delta: i64| now.wrapping_sub_signed(delta);
    fit_one(rows, |row| &mut row.now, total.live_bytes, total.live_blocks);
    fit_one(
        rows,
        |row| &mut row.then,
        then(total.live_bytes, total.delta_bytes),
        then(total.live_blocks, total.delta_blocks),
    );
}

fn fit_one(rows: &mut [Estimate], of: fn(&mut Estimate) -> &mut LiveTotals, bytes: u64, blocks: u64) {
    let mut all = LiveTotals::default();
    for row in &mut *rows {
        let LiveTotals { bytes, blocks, sampled_bytes, sampled_blocks } = *of(row);
        all.bytes += bytes;
        all.blocks += blocks;
        all.sampled_bytes += sampled_bytes;
        all.sampled_blocks += sampled_blocks;
    }
    let (bytes, blocks) =
        (excess(all.bytes, bytes, all.sampled_bytes), excess(all.blocks, blocks, all.sampled_blocks));
    for row in rows.iter_mut().map(of) {
        row.bytes -= share(row.sampled_bytes, bytes);
        row.blocks -= share(row.sampled_blocks, blocks);
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
