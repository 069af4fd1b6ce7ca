//! Compared statistics → text and JSON for people and scripts.
//!
//! Pure functions on values; linear in the rows shown.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use serde::Serialize;

use super::ages_json::AgesOfRow;
use super::unix_seconds;
use crate::analyze::collector::RowAges;
use crate::analyze::frame::Traceback;
use crate::analyze::snapshot::FileFrames;
use crate::analyze::snapshot::group::GroupBy;
use crate::analyze::snapshot::statistic::{StatisticDiff, Top, Totals};

/// Renders one entry a group, then the rest and the total.
pub(crate) fn text(top: &Top, group_by: GroupBy) -> String {
    let mut out = String::new();
    for row in &top.rows {
        out += &format!("{}\n", Figures::from(row).line());
        // A crate has no file: its name is in the place of a function's. A scope has no place in the code at all.
        let lines = match group_by {
            GroupBy::Crate | GroupBy::Via => {
                let frame = row.traceback.most_recent();
                vec![format!("  File \"{}\", line {}, in {}", frame.file, frame.line, row.name())]
            }
            GroupBy::Scope => vec![format!("  Scope {}", row.name().replace(char::is_control, " "))],
            _ => row.traceback.format(None, false),
        };
        for line in lines {
            out += &line;
            out.push('\n');
        }
    }
    let (other, total) = (Figures::from(&top.other), Figures::from(&top.total));
    out + &format!("# other: {}\n# total: {}\n", other.line(), total.line())
}

/// Renders the rows as JSON, with the words of the snapshot file.
///
/// `ages` are those of the rows, in their order, where they are known.
pub(crate) fn json(
    top: &Top,
    ages: &[RowAges],
    taken_at: SystemTime,
    since: SystemTime,
    sample_interval: u64,
) -> String {
    let rows: Vec<Row<'_>> = top
        .rows
        .iter()
        .enumerate()
        .map(|(at, row)| Row {
            ages: ages.get(at).map(|ages| AgesOfRow::of(ages, row.size)),
            ..Row::new(row.name().into_owned(), Figures::from(row), &row.traceback)
        })
        .collect();
    let document = Document {
        version: 1,
        taken_at: unix_seconds(taken_at),
        since: unix_seconds(since),
        sample_interval: Some(sample_interval).filter(|interval| *interval != 0),
        rows,
        other: Figures::from(&top.other),
        total: Figures::from(&top.total),
    };
    // Strings and numbers alone: there is nothing it could refuse.
    serde_json::to_string(&document).unwrap_or_default() + "\n"
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    taken_at: f64,
    since: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_interval: Option<u64>,
    rows: Vec<Row<'a>>,
    other: Figures,
    total: Figures,
}

#[derive(Serialize)]
pub(super) struct Row<'a> {
    name: String,
    #[serde(flatten)]
    figures: Figures,
    #[serde(flatten)]
    ages: Option<AgesOfRow>,
    total_frames: usize,
    frames: FileFrames<'a>,
}

impl<'a> Row<'a> {
    pub(super) fn new(name: String, figures: Figures, traceback: &'a Traceback) -> Row<'a> {
        let (total_frames, frames) = (traceback.total_frames(), FileFrames(traceback.shared_frames()));
        Row { name, figures, ages: None, total_frames, frames }
    }
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct Figures {
    size: u64,
    size_diff: i64,
    count: u64,
    count_diff: i64,
    /// Standard error of the live bytes; 0 where they are exact.
    #[serde(skip_serializing_if = "is_zero")]
    stderr: u64,
    #[serde(skip_serializing_if = "is_zero")]
    diff_stderr: u64,
}

fn is_zero(error: &u64) -> bool {
    *error == 0
}

impl Figures {
    /// Adds the standard errors of the bytes and of their change.
    #[cfg(feature = "http")]
    pub(super) fn estimated(totals: &Totals, stderr: u64, diff_stderr: u64) -> Figures {
        Figures { stderr, diff_stderr, ..totals.into() }
    }

    /// Renders the line; estimates have their standard errors behind them.
    fn line(self) -> String {
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        let error = match (self.diff_stderr, self.stderr) {
            (0, 0) => String::new(),
            (diff, size) => format!(", ±{:.2} new KiB, ±{:.2} total KiB", kib(diff), kib(size)),
        };
        format!(
            "{:.2} new KiB, {:.2} total KiB, {} new blocks, {} total blocks{error}",
            self.size_diff as f64 / 1024.0,
            kib(self.size),
            self.count_diff,
            self.count
        )
    }
}

impl From<&StatisticDiff> for Figures {
    fn from(row: &StatisticDiff) -> Figures {
        let StatisticDiff { size, size_diff, count, count_diff, stderr, diff_stderr, .. } = *row;
        Figures { size, size_diff, count, count_diff, stderr, diff_stderr }
    }
}

impl From<&Totals> for Figures {
    fn from(totals: &Totals) -> Figures {
        let Totals { size, size_diff, count, count_diff, .. } = *totals;
        Figures { size, size_diff, count, count_diff, stderr: 0, diff_stderr: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::frame::{Frame, Traceback};
    use crate::analyze::snapshot::{Snapshot, Trace};

    /// Function, file, line.
    type Place = (&'static str, &'static str, u32);

    fn snapshot(traces: &[(u64, u64, &[Place])]) -> Snapshot {
        let traces = traces.iter().map(|&(size, count, frames)| Trace {
            domain: 0,
            size,
            count,
            stderr: 0,
            traceback: Traceback::new(
                frames.iter().map(|&(function, file, line)| Frame::new(Some(function), file, line)),
            ),
            scope: Default::default(),
        });
        Snapshot::of(SystemTime::UNIX_EPOCH, 32, traces.collect())
    }

    const INSERT: Place = ("my_service::cache::Cache::insert", "src/cache.rs", 42);
    const MAIN: Place = ("my_service::main", "src/main.rs", 7);

    fn compared(group_by: GroupBy, rows: usize) -> Top {
        let old = snapshot(&[(616_765, 6_161, &[INSERT, MAIN]), (2_048, 2, &[MAIN])]);
        let new = snapshot(&[(616_765, 6_161, &[INSERT, MAIN]), (1_024, 1, &[MAIN])]);
        let mut all = new.compare_to(&old, group_by);
        crate::analyze::snapshot::order::Order::Size.sort(&mut all);
        Top::of(all, rows)
    }

    /// Case 25, with the figures of the post the project began with.
    #[test]
    fn case_25_the_line_of_the_post() {
        assert_eq!(
            text(&compared(GroupBy::Line, 10), GroupBy::Line),
            "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks\n\
             \x20 File \"src/cache.rs\", line 42, in my_service::cache::Cache::insert\n\
             -1.00 new KiB, 1.00 total KiB, -1 new blocks, 1 total blocks\n\
             \x20 File \"src/main.rs\", line 7, in my_service::main\n\
             # other: 0.00 new KiB, 0.00 total KiB, 0 new blocks, 0 total blocks\n\
             # total: -1.00 new KiB, 603.31 total KiB, -1 new blocks, 6162 total blocks\n"
        );
    }

    #[test]
    fn each_grouping_shows_what_its_groups_have_in_common() {
        for (group_by, places) in [
            (GroupBy::File, ["  File \"src/cache.rs\", line 0", "  File \"src/main.rs\", line 0"]),
            (
                GroupBy::Function,
                [
                    "  File \"src/cache.rs\", line 0, in my_service::cache::Cache::insert",
                    "  File \"src/main.rs\", line 0, in my_service::main",
                ],
            ),
        ] {
            let text = text(&compared(group_by, 10), group_by);
            assert_eq!([1, 3].map(|line| text.lines().nth(line).unwrap()), places);
        }
        assert_eq!(
            text(&compared(GroupBy::Crate, 10), GroupBy::Crate),
            "-1.00 new KiB, 603.31 total KiB, -1 new blocks, 6162 total blocks\n\
             \x20 File \"<unknown>\", line 0, in my_service\n\
             # other: 0.00 new KiB, 0.00 total KiB, 0 new blocks, 0 total blocks\n\
             # total: -1.00 new KiB, 603.31 total KiB, -1 new blocks, 6162 total blocks\n"
        );
        // As `tracemalloc` prints a traceback: the most recent call last.
        assert_eq!(
            text(&compared(GroupBy::Traceback, 1), GroupBy::Traceback),
            "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks\n\
             \x20 File \"src/main.rs\", line 7, in my_service::main\n\
             \x20 File \"src/cache.rs\", line 42, in my_service::cache::Cache::insert\n\
             # other: -1.00 new KiB, 1.00 total KiB, -1 new blocks, 1 total blocks\n\
             # total: -1.00 new KiB, 603.31 total KiB, -1 new blocks, 6162 total blocks\n"
        );
    }

    #[test]
    fn estimates_have_their_errors_behind_them() {
        let sampled = |size, stderr| {
            let mut traces = snapshot(&[(size, 61, &[INSERT, MAIN]), (512, 1, &[MAIN])]).traces().to_vec();
            traces[0].stderr = stderr;
            Snapshot::of(SystemTime::UNIX_EPOCH, 32, traces)
        };
        let mut rows = sampled(4 << 20, 4 << 10).compare_to(&sampled(3 << 20, 3 << 10), GroupBy::Line);
        crate::analyze::snapshot::order::Order::Size.sort(&mut rows);
        // The total is exact: 5 MiB in 100 blocks.
        let mut total = Totals::default();
        (total.size, total.size_diff, total.count, total.count_diff) = (5 << 20, 1 << 20, 100, 7);
        let shown = Top::of(rows.clone(), 1).of_total(total);
        assert_eq!(
            text(&shown, GroupBy::Line),
            "1024.00 new KiB, 4096.00 total KiB, 0 new blocks, 61 total blocks, ±5.00 new KiB, ±4.00 total KiB\n\
             \x20 File \"src/cache.rs\", line 42, in my_service::cache::Cache::insert\n\
             # other: 0.00 new KiB, 1024.00 total KiB, 7 new blocks, 39 total blocks\n\
             # total: 1024.00 new KiB, 5120.00 total KiB, 7 new blocks, 100 total blocks\n"
        );
        let at = SystemTime::UNIX_EPOCH;
        let json: serde_json::Value = serde_json::from_str(&json(&shown, &[], at, at, 524_288)).unwrap();
        assert_eq!((&json["sample_interval"], &json["rows"][0]["stderr"]), (&524_288.into(), &4_096.into()));
        assert_eq!(json["rows"][0]["diff_stderr"], 5_120);
        assert!(json["other"].get("stderr").is_none());
        // Where the rows are estimated to hold more, the total is theirs and nothing is left.
        total.size = 4 << 20;
        let shown = Top::of(rows, 2).of_total(total);
        assert_eq!((shown.total.size, shown.other.size), ((4 << 20) + 512, 0));
    }

    #[test]
    fn json_has_the_words_of_the_file() {
        let at = |millis| SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis);
        assert_eq!(
            json(&compared(GroupBy::Line, 1), &[], at(1_793_000_000_250), at(1_792_999_700_000), 0),
            "{\"version\":1,\"taken_at\":1793000000.25,\"since\":1792999700.0,\"rows\":[{\"name\":\"src/cache.rs:42\",\"size\":616765,\"size_diff\":0,\
             \"count\":6161,\"count_diff\":0,\"total_frames\":1,\"frames\":[{\"function\":\
             \"my_service::cache::Cache::insert\",\"file\":\"src/cache.rs\",\"line\":42}]}],\
             \"other\":{\"size\":1024,\"size_diff\":-1024,\"count\":1,\"count_diff\":-1},\
             \"total\":{\"size\":617789,\"size_diff\":-1024,\"count\":6162,\"count_diff\":-1}}\n"
        );
    }
}
