//! Prints the results as the Markdown tables of `benches/README.md`.

use std::fmt::Write;
use std::process::Command;

use serde_json::Value;

use crate::Results;
use crate::sides::{COLLECTOR, Role, Side};
use crate::stats::{median, quantile};
use crate::{COLLECT, RESIDENT};

/// Returns all tables that are not empty.
pub fn all(results: &Results, sides: &[&Side], rounds: u32, peer_rounds: u32, milliseconds: u64) -> String {
    let mut page = Page { text: machine(rounds, peer_rounds, milliseconds), remarks: vec![], results, sides };
    page.slowdown();
    page.deep();
    page.resident();
    page.tables();
    page.collections();
    page.footnotes();
    page.text
}

struct Page<'a> {
    text: String,
    /// Footnotes, in the order of their first mention.
    remarks: Vec<String>,
    results: &'a Results,
    sides: &'a [&'a Side],
}

/// Returns the first line of a command's output, or `unknown`.
fn said(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).current_dir(crate::build::root()).output();
    let text = output.ok().filter(|output| output.status.success());
    let text = text.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    text.lines().next().filter(|line| !line.is_empty()).unwrap_or("unknown").trim().to_string()
}

fn machine(rounds: u32, peer_rounds: u32, milliseconds: u64) -> String {
    let lscpu = Command::new("lscpu").env("LC_ALL", "C").output();
    let lscpu = lscpu.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let field = |name: &str| {
        let line = lscpu.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix(':'));
        line.map(str::trim).unwrap_or("unknown").to_string()
    };
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{date}: {model} (model {number}), {cores} cores, {arch}, Linux {kernel}, {glibc}, {rustc}; heapgauge {commit}; \
         {rounds} rounds ({peer_rounds} of the peers) of {milliseconds} ms; load average at the end {load}.\n",
        date = said("date", &["-u", "+%Y-%m-%d"]),
        model = field("Model name"),
        number = field("Model"),
        arch = said("uname", &["-m"]),
        kernel = said("uname", &["-r"]),
        glibc = said("getconf", &["GNU_LIBC_VERSION"]),
        rustc = said("rustc", &["--version"]),
        commit = said("git", &["describe", "--always", "--dirty"]),
        load = load.split(' ').next().unwrap_or("unknown"),
    )
}

/// Returns the version of a package in `Cargo.lock`.
fn version(package: &str) -> Option<&'static str> {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let after = LOCK.split_once(&format!("name = \"{package}\"\nversion = \""))?.1;
    after.split_once('"').map(|(version, _)| version)
}

fn numbers(values: &[Value], key: &str) -> Vec<f64> {
    values.iter().filter_map(|value| value[key].as_f64()).collect()
}

impl Page<'_> {
    fn slowdown(&mut self) {
        let columns = ["json-1", "json-2", "html", "script", "branch", "deep-25"];
        let columns: Vec<_> = columns.into_iter().filter(|workload| self.measured(workload)).collect();
        if columns.is_empty() {
            return;
        }
        let heads: Vec<String> = columns
            .iter()
            .map(|workload| match *workload {
                "json-1" => "JSON, 1 thread".into(),
                "json-2" => "JSON, 2 threads".into(),
                "html" => "HTML".into(),
                "branch" => "20,000 stacks".into(),
                "deep-25" => "under 25 frames, ns more".into(),
                other => other.to_string(),
            })
            .collect();
        self.heading("Time: ratio to the bare allocator", &["side", "against", "build"], &heads);
        for side in self.sides.iter().filter(|side| side.base.is_some()) {
            let build = if side.frame_pointers { "with frame pointers" } else { "stock" };
            let name = self.name(side);
            let mut row = format!("| {name} | {} | {build} |", side.base.unwrap_or_default());
            for workload in &columns {
                let cell = match self.results.pairs.get(&(side.name, *workload)) {
                    Some(pairs) if !self.has_failed(side, workload) => {
                        let (side, base): (Vec<Value>, Vec<Value>) = pairs.iter().cloned().unzip();
                        let (side, base) = (numbers(&side, "ns"), numbers(&base, "ns"));
                        let minus = *workload == "deep-25";
                        let apart = |side: f64, base: f64| if minus { side - base } else { side / base };
                        let each: Vec<f64> =
                            side.iter().zip(&base).map(|(side, base)| apart(*side, *base)).collect();
                        spread(median(&each), &each, minus)
                    }
                    _ => self.reason(side, workload),
                };
                write!(row, " {cell} |").expect("a String takes everything");
            }
            self.text.push_str(&row);
            self.text.push('\n');
        }
    }

    fn deep(&mut self) {
        let depths = ["deep-5", "deep-25", "deep-60"];
        if !depths.iter().all(|workload| self.measured(workload)) {
            return;
        }
        let heads = ["5 frames", "25 frames", "60 frames", "a frame, 5 to 25"];
        self.heading("Nanoseconds to allocate and free one `Box`", &["side"], &heads);
        for side in self.sides.iter().filter(|side| side.role != Role::Collector) {
            let name = self.name(side);
            let at: Vec<Option<f64>> =
                depths.iter().map(|workload| self.nanoseconds(side, workload)).collect();
            let mut row = format!("| {name} |");
            for (workload, nanoseconds) in depths.iter().zip(&at) {
                let cell = nanoseconds.map_or_else(|| self.reason(side, workload), |ns| format!("{ns:.1}"));
                write!(row, " {cell} |").expect("a String takes everything");
            }
            match (at[0], at[1]) {
                (Some(five), Some(more)) => writeln!(row, " {:.2} |", (more - five) / 20.0),
                _ => writeln!(row, " – |"),
            }
            .expect("a String takes everything");
            self.text.push_str(&row);
        }
        let own = |side: &str, workload: &'static str| {
            let said = self.results.alone.iter().find(|((name, of), _)| *name == side && *of == workload);
            said.map(|(_, values)| median(&numbers(values, "ns")))
        };
        if let (Some(five), Some(middle), Some(more)) =
            (own("heapgauge", "frames-5"), own("heapgauge", "frames-25"), own("heapgauge", "frames-45"))
        {
            let line = format!(
                "\nWith up to 64 frames recorded, one more frame costs heapgauge {:.2} ns (5 to 25) and {:.2} ns (25 to 45).\n",
                (middle - five) / 20.0,
                (more - middle) / 20.0,
            );
            self.text.push_str(&line);
        }
    }

    fn resident(&mut self) {
        let shapes: Vec<_> = RESIDENT.into_iter().filter(|workload| self.measured(workload)).collect();
        if shapes.is_empty() {
            return;
        }
        let bases: Vec<&Side> = self.sides.iter().copied().filter(|side| side.role == Role::Bare).collect();
        let heads: Vec<String> = bases
            .iter()
            .flat_map(|base| {
                let name = if base.name == "system" { "glibc" } else { base.name };
                [name.to_string(), "with heapgauge".to_string()]
            })
            .collect();
        self.heading("Resident bytes a live block", &["block"], &heads);
        for shape in &shapes {
            let what = match *shape {
                "rss-0" => "8 to 128 bytes".to_string(),
                "rss-1" => "4,096 aligned to 4,096".to_string(),
                other => other.trim_start_matches("rss-").to_string(),
            };
            let mut row = format!("| {what} |");
            for base in &bases {
                let bare = self.bytes(base.name, shape);
                let cell = bare.map_or_else(|| self.reason(base, shape), |bytes| format!("{bytes:.1}"));
                let tracked = self
                    .sides
                    .iter()
                    .find(|side| side.role == Role::Heapgauge && side.base == Some(base.name));
                let with = match (bare, tracked, tracked.and_then(|side| self.bytes(side.name, shape))) {
                    (Some(bare), _, Some(bytes)) => {
                        format!("{bytes:.1} ({:+.1}, {:+.1} %)", bytes - bare, (bytes / bare - 1.0) * 100.0)
                    }
                    (_, Some(side), _) => self.reason(side, shape),
                    _ => "–".to_string(),
                };
                write!(row, " {cell} | {with} |").expect("a String takes everything");
            }
            self.text.push_str(&row);
            self.text.push('\n');
        }
        let bare = self.bytes("system", "rss-0");
        let peers: Vec<_> = self.sides.iter().copied().filter(|side| side.role == Role::Peer).collect();
        if let Some(bare) = bare.filter(|_| !peers.is_empty()) {
            let more: Vec<String> = peers
                .into_iter()
                .map(|side| {
                    let bytes = self.bytes(side.name, "rss-0");
                    let more = bytes
                        .map_or_else(|| self.reason(side, "rss-0"), |bytes| format!("{:+.0}", bytes - bare));
                    format!("{} {more}", self.name(side))
                })
                .collect();
            let line = format!(
                "\nBytes more than glibc alone for a block of 8 to 128 bytes: {}.\n",
                more.join(", ")
            );
            self.text.push_str(&line);
        }
    }

    fn tables(&mut self) {
        if !self.measured("tables") || !self.sides.iter().any(|side| side.name == "heapgauge") {
            return;
        }
        let heads = ["by `tracker_memory`", "resident, more than the bare side"];
        self.heading("Bytes of heapgauge's own", &["for"], &heads);
        for (what, key) in [
            ("a distinct stack of 16 frames", "stack"),
            ("an idle thread", "thread"),
            ("a stack in one more thread", "thread_stack"),
        ] {
            let of = |name: &str, place: usize| -> Option<f64> {
                let (_, values) =
                    self.results.alone.iter().find(|((side, of), _)| *side == name && *of == "tables")?;
                let each: Vec<f64> = values.iter().filter_map(|value| value[key][place].as_f64()).collect();
                (!each.is_empty()).then(|| median(&each))
            };
            let own = of("heapgauge", 0).map_or("–".to_string(), |bytes| format!("{bytes:.0}"));
            let resident = match (of("heapgauge", 1), of("system", 1)) {
                (Some(with), Some(bare)) => format!("{:.0}", with - bare),
                _ => "–".to_string(),
            };
            writeln!(self.text, "| {what} | {own} | {resident} |").expect("a String takes everything");
        }
        if let Some(side) = self.sides.iter().find(|side| side.name == "heapgauge")
            && self.has_failed(side, "tables")
        {
            let mark = self.reason(side, "tables");
            writeln!(self.text, "\nheapgauge: {mark}").expect("a String takes everything");
        }
    }

    fn collections(&mut self) {
        let counts: Vec<_> = COLLECT
            .into_iter()
            .filter(|workload| self.measured(workload) || self.has_failed(&COLLECTOR, workload))
            .collect();
        if counts.is_empty() || !self.sides.iter().any(|side| side.role == Role::Collector) {
            return;
        }
        let heads = [
            "ms of CPU, first time",
            "ms of CPU, names cached",
            "lost by a thread that allocates, while collections follow each other",
        ];
        self.heading("A collection, stacks counted in 2 threads", &["stacks"], &heads);
        for workload in counts {
            let count = workload.trim_start_matches("collect-");
            let values = self.results.alone.get(&(COLLECTOR.name, workload));
            let row = match values.filter(|values| !values.is_empty()) {
                Some(values) => format!(
                    "{:.2} | {:.2} | {:.1} %",
                    median(&numbers(values, "first_ms")),
                    median(&numbers(values, "ms")),
                    median(&numbers(values, "loss")) * 100.0,
                ),
                None => format!("{} | – | –", self.reason(&COLLECTOR, workload)),
            };
            writeln!(self.text, "| {count} | {row} |").expect("a String takes everything");
        }
    }

    fn footnotes(&mut self) {
        if !self.remarks.is_empty() {
            self.text.push('\n');
        }
        for (number, remark) in self.remarks.iter().enumerate() {
            // Two spaces: a line break in Markdown.
            writeln!(self.text, "[{}] {remark}  ", number + 1).expect("a String takes everything");
        }
    }

    fn heading(&mut self, title: &str, left: &[&str], right: &[impl AsRef<str>]) {
        let mut line = format!("\n**{title}**\n\n|");
        for head in left.iter().copied().chain(right.iter().map(AsRef::as_ref)) {
            write!(line, " {head} |").expect("a String takes everything");
        }
        line.push_str("\n|");
        line.push_str(&"---|".repeat(left.len()));
        line.push_str(&"---:|".repeat(right.len()));
        line.push('\n');
        self.text.push_str(&line);
    }

    /// Returns whether any side has a number for a workload.
    fn measured(&self, workload: &str) -> bool {
        let pairs = self.results.pairs.keys().any(|(_, of)| *of == workload);
        pairs || self.results.alone.keys().any(|(_, of)| *of == workload)
    }

    fn has_failed(&self, side: &Side, workload: &str) -> bool {
        self.results
            .failures
            .keys()
            .any(|(name, of)| *name == side.name && (of.is_empty() || *of == workload))
    }

    fn bytes(&self, side: &str, shape: &str) -> Option<f64> {
        let (_, values) = self.results.alone.iter().find(|((name, of), _)| *name == side && *of == shape)?;
        let values = numbers(values, "bytes_per_block");
        (!values.is_empty()).then(|| median(&values))
    }

    fn nanoseconds(&self, side: &Side, workload: &str) -> Option<f64> {
        let pairs = self.results.pairs.iter().find(|((name, of), _)| *name == side.name && *of == workload);
        let values: Vec<Value> = match pairs {
            Some((_, pairs)) => pairs.iter().map(|(of_side, _)| of_side.clone()).collect(),
            None => {
                let alone = self.results.alone.iter();
                alone
                    .filter(|((name, of), _)| *name == side.name && *of == workload)
                    .flat_map(|(_, v)| v.clone())
                    .collect()
            }
        };
        let values = numbers(&values, "ns");
        (!values.is_empty()).then(|| median(&values))
    }

    /// Returns the side with its version, and a footnote mark for its remarks.
    fn name(&mut self, side: &Side) -> String {
        let version = version(side.package).filter(|_| side.role == Role::Peer || side.role == Role::Bare);
        let mut name = match version {
            Some(version) => format!("{} {version}", side.name),
            None => side.name.to_string(),
        };
        let note = self.results.notes.get(side.name).map_or("", String::as_str);
        for remark in [side.remark, note].into_iter().filter(|remark| !remark.is_empty()) {
            name.push(' ');
            name.push_str(&self.remark(format!("{}: {remark}", side.name)));
        }
        name
    }

    /// Returns the footnote mark of a missing number.
    fn reason(&mut self, side: &Side, workload: &str) -> String {
        let failures = &self.results.failures;
        let all = failures.iter().find(|((name, of), _)| *name == side.name && of.is_empty());
        let this = failures.iter().find(|((name, of), _)| *name == side.name && *of == workload);
        match (all, this) {
            (Some((_, reason)), _) => format!("– {}", self.remark(format!("{} {reason}", side.name))),
            (None, Some((_, reason))) => {
                format!("– {}", self.remark(format!("{}, {workload}: {reason}", side.name)))
            }
            (None, None) => "–".to_string(),
        }
    }

    fn remark(&mut self, text: String) -> String {
        let place = self.remarks.iter().position(|remark| *remark == text).unwrap_or_else(|| {
            self.remarks.push(text);
            self.remarks.len() - 1
        });
        format!("[{}]", place + 1)
    }
}

/// Formats a median and its quartiles with three digits.
fn spread(middle: f64, each: &[f64], signed: bool) -> String {
    let digits = match middle.abs() {
        size if size < 10.0 && !signed => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    let show = |value: f64| {
        if signed { format!("{value:+.digits$}") } else { format!("{value:.digits$}") }
    };
    if each.len() < 2 {
        return show(middle);
    }
    format!("{} ({}–{})", show(middle), show(quantile(each, 0.25)), show(quantile(each, 0.75)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_shows_three_digits_and_the_quartiles() {
        assert_eq!(spread(1.452, &[1.4, 1.45, 1.5], false), "1.45 (1.42–1.48)");
        assert_eq!(spread(42.04, &[40.0, 42.0, 44.0], true), "+42.0 (+41.0–+43.0)");
        assert_eq!(spread(5100.4, &[5100.4], true), "+5100");
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        assert_eq!(version("dhat"), Some("0.3.3"));
        assert_eq!(version("no such package"), None);
    }
}
