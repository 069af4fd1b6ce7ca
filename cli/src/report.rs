//! Snapshot file or running program → a report as text.

use crate::arguments::{Report, Scope, Subject};
use crate::failure::Failure;
use crate::file::Dump;
use crate::heap::{Figures, Heap, ScopeRow, Scopes, Site, Sites, Stacks, Summary, bounds};
use crate::text::{bytes, change, one_line, percent, print, span, time, whole};
use crate::url::Client;
use crate::{file, progress, table};

/// Parts of resident memory, and the rest that is known of it, in the order in which they are shown.
const PARTS: [(&str, &str); 20] = [
    ("memory_limit_bytes", "memory limit"),
    ("memory_limit_usage_bytes", "counts against the limit"),
    ("resident_bytes", "resident"),
    ("resident_anonymous_bytes", "  anonymous"),
    ("resident_file_bytes", "  of files"),
    ("resident_shared_bytes", "  shared"),
    ("size", "live blocks"),
    ("live_untouched_bytes", "  never touched"),
    ("untracked_bytes", "untracked blocks"),
    ("overhead_bytes", "heapgauge itself"),
    ("internal_fragmentation_bytes", "lost inside blocks"),
    ("allocator_internal_fragmentation_bytes", "lost inside blocks"),
    ("allocator_resident_bytes", "the allocator's"),
    ("allocator_free_resident_bytes", "  free in the allocator"),
    ("foreign_bytes", "C and C++ libraries"),
    ("process_threads", "threads"),
    ("thread_stack_bytes", "stacks of threads"),
    ("unaccounted_bytes", "unaccounted"),
    ("peak_bytes", "highest live"),
    ("old_age_seconds", "old from"),
];

/// Ages of blocks, youngest first.
const AGES: [&str; 6] = ["<1m", "<10m", "<1h", "<6h", "<1d", ">=1d"];

pub fn run(options: &Report) -> Result<(), Failure> {
    let (heap, of, dump, mut notes) = match &options.subject {
        Subject::Url(url) => (Heap::Program(Client::new(url)), url.to_string(), Dump::default(), Vec::new()),
        Subject::Files(files) => {
            let loaded = file::load(files)?;
            (Heap::File(Box::new(loaded.page)), files.file.display().to_string(), loaded.dump, loaded.notes)
        }
    };
    let summary = progress::during(&format!("waiting for {of}"), || named_summary(&heap))?;
    if summary.tracking == Some(false) {
        return Err(Failure::Other(format!("{of}: tracking is off there, nothing is recorded")));
    }
    let scope = options.scope.as_ref();
    let sites = heap.sites(&summary, "size", options.top, scope)?;
    let grown = match summary.growth_seconds() {
        Some(_) => Some(heap.sites(&summary, "growth", options.top, scope)?),
        None => None,
    };
    let scopes = heap.scopes(&summary, options.top)?;
    let stacks = heap.stacks(&summary, options.top, scope)?;
    let unnamed = stacks.rows.iter().flat_map(|stack| &stack.frames).filter(|frame| frame.function.is_none());
    if notes.is_empty()
        && matches!(heap, Heap::File(_))
        && unnamed.clone().any(|frame| frame.offset.is_some())
    {
        notes.push("frames that go by module and offset are named by --binary or --debug-file".into());
    }
    let mut text = head(&of, &summary, &dump, &notes);
    text += &memory(&summary);
    if let Some(Scope { key, value }) = scope {
        let of = bytes(sites.total.size as f64);
        text += &format!("\nOnly blocks allocated in {}: {of}\n", one_line(&format!("{key}={value}")));
    }
    text += &lines("Lines that hold most", &sites, &sites.rows, &summary);
    text += &other(&sites);
    if let Some(grown) = &grown {
        let rows: Vec<&Site> = grown.rows.iter().filter(|row| row.figures.size_diff > 0).collect();
        match rows.is_empty() {
            true => text += "\nNo line has grown\n",
            false => text += &lines("Lines that grew most", grown, rows, &summary),
        }
    }
    if let Some(scopes) = &scopes {
        text += &self::scopes(scopes, &summary);
    }
    text += &self::stacks(&stacks, &summary);
    print(&text)
}

/// Returns the totals of a moment whose stacks have names, as far as they could be read.
fn named_summary(heap: &Heap) -> Result<Summary, Failure> {
    let summary = heap.summary()?;
    match &summary.naming {
        Some(naming) if naming.named < naming.total && summary.tracking != Some(false) => {
            // An answer about now waits for names.
            let _: Sites = heap.get("/debug/heap/sites.json?top=1&history=0")?;
            heap.summary()
        }
        _ => Ok(summary),
    }
}

fn head(of: &str, summary: &Summary, dump: &Dump, notes: &[String]) -> String {
    let mut facts = vec![("taken", time(summary.taken_at))];
    if let Some(reason) = &summary.reason {
        let why = match reason.as_str() {
            "limit" => ": the memory limit was near",
            "peak" => ": live bytes were at a new high",
            "signal" => ": a signal asked for it",
            "failure" => ": the allocator had no memory to give",
            "request" => ": it was asked for",
            _ => "",
        };
        facts.push(("reason", format!("{reason}{why}")));
    }
    if let Some(program) = &dump.program {
        facts.push(("program", program.clone()));
    }
    if let Some(limit) = dump.memory_limit {
        let used =
            dump.memory_limit_usage.map(|used| (bytes(used as f64), percent(used as f64, limit as f64)));
        let used = used.map_or(String::new(), |(used, part)| format!(", {used} count against it ({part})"));
        facts.push(("limit", bytes(limit as f64) + &used));
    }
    if let Some(started) = summary.started_at {
        facts.push(("started", format!("{}, {} before", time(started), span(summary.taken_at - started))));
    }
    if let Some(release) = summary.build.release.as_ref().filter(|release| !release.is_empty()) {
        facts.push(("release", release.clone()));
    }
    if let Some(id) = summary.build.build_id.as_ref().filter(|id| !id.is_empty()) {
        facts.push(("build id", id.clone()));
    }
    if summary.file.is_none() {
        facts.push(("heapgauge", summary.build.version.clone()));
    }
    let grown = match summary.growth_seconds() {
        Some(seconds) => format!(", {} in {}", change(summary.size_diff as f64), span(seconds)),
        None => String::new(),
    };
    let size = bytes(summary.size as f64);
    facts.push((
        "live",
        format!("{size} ({} bytes) in {} blocks{grown}", whole(summary.size), whole(summary.count)),
    ));
    if let Some(rest) = dump.rest.as_ref().filter(|rest| rest.count > 0) {
        let size = bytes(rest.size as f64);
        facts.push((
            "besides",
            format!("{size} in {} blocks of stacks that found no room in the dump", whole(rest.count)),
        ));
    }
    if let Some(seconds) = summary.older_than_seconds {
        facts.push(("ages", format!("only blocks older than {}", span(seconds))));
    }
    if let Some(leak) = &summary.leak {
        facts.push(("leak", leak.text.clone()));
    }
    if let Some(interval) = summary.sample_interval_bytes.filter(|interval| *interval > 0) {
        let interval = bytes(interval as f64);
        facts.push(("sampled", format!("one stack per {interval}: bytes of lines and stacks are estimates")));
    }
    facts.extend(notes.iter().map(|note| ("names", note.clone())));
    let mut text = format!("Heap of {}\n", one_line(of));
    for (name, value) in facts {
        text += &format!("  {name:<10} {}\n", one_line(&value));
    }
    text
}

/// Lists the parts of resident memory, as far as they are given.
fn memory(summary: &Summary) -> String {
    // A file has no process.
    let Some(resident) = summary.bytes("resident_bytes") else { return String::new() };
    let mut text = "\nMemory of the process\n".to_owned();
    for (name, label) in PARTS {
        let value = if name == "size" { Some(summary.size as f64) } else { summary.bytes(name) };
        let Some(value) = value else { continue };
        text += &match name {
            "process_threads" => format!("  {label:<26} {value:>10.0}\n"),
            "old_age_seconds" => format!("  {label:<26} {:>10}\n", span(value)),
            "resident_bytes" | "memory_limit_bytes" | "peak_bytes" => {
                format!("  {label:<26} {:>10}\n", bytes(value))
            }
            _ => format!("  {label:<26} {:>10}  {} of resident\n", bytes(value), percent(value, resident)),
        };
    }
    text
}

/// Lists sites with their growth and ages, as far as these are given.
fn lines<'a>(
    title: &str,
    sites: &Sites,
    rows: impl IntoIterator<Item = &'a Site>,
    summary: &Summary,
) -> String {
    let rows: Vec<&Site> = rows.into_iter().collect();
    let has_growth = summary.growth_seconds().is_some();
    let ages: Vec<&str> =
        AGES.into_iter().filter(|age| rows.iter().any(|row| row.ages.contains_key(*age))).collect();
    let has_scores = rows.iter().any(|row| row.leak_score.is_some());
    let mut head = vec!["LIVE", "SHARE", "BLOCKS"];
    head.extend([["GROWTH", "A MINUTE"]].into_iter().filter(|_| has_growth).flatten());
    head.extend(&ages);
    head.extend(["LEAK"].into_iter().filter(|_| has_scores));
    head.push("SITE");
    let row = |row: &&Site| {
        let Figures { size, count, size_diff, .. } = row.figures;
        let total = sites.total.size as f64;
        let mut cells = vec![live(row.figures), percent(size as f64, total), whole(count)];
        if has_growth {
            cells.push(grown(row.figures));
            cells.push(sites.a_minute(size_diff).map_or("-".into(), change));
        }
        cells.extend(ages.iter().map(|age| bounds(row.ages.get(*age))));
        if has_scores {
            cells.push(row.leak_score.map_or("-".into(), |score| format!("{score:.2}")));
        }
        cells.push(row.name());
        cells
    };
    let cells: Vec<Vec<String>> = rows.iter().map(row).collect();
    format!("\n{title}\n{}", table::format(&head, &cells, None))
}

/// Says how much the lines that are not shown hold.
fn other(sites: &Sites) -> String {
    let hidden = sites.sites.saturating_sub(sites.rows.len() as u64);
    if hidden == 0 {
        return String::new();
    }
    let [other, total] = [sites.other, sites.total].map(|figures| bytes(figures.size as f64));
    format!("{other} at {} other lines, {total} in all\n", whole(hidden))
}

/// Lists keys and values of scopes.
fn scopes(scopes: &Scopes, summary: &Summary) -> String {
    let has_growth = summary.growth_seconds().is_some();
    let mut head = vec!["LIVE", "SHARE", "BLOCKS"];
    head.extend(["GROWTH"].into_iter().filter(|_| has_growth));
    head.push("SCOPE");
    let row = |row: &ScopeRow| {
        let Figures { size, count, .. } = row.figures;
        let share = percent(size as f64, scopes.total.size as f64);
        let mut cells = vec![live(row.figures), share, whole(count)];
        cells.extend(has_growth.then(|| grown(row.figures)));
        cells.push(one_line(&format!("{}={}", row.key, row.value)));
        cells
    };
    let cells: Vec<Vec<String>> = scopes.rows.iter().map(row).collect();
    let mut text = format!(
        "\nScopes that hold most; a block is in each of its keys\n{}",
        table::format(&head, &cells, None)
    );
    let hidden = scopes.pairs.saturating_sub(scopes.rows.len() as u64);
    if hidden > 0 {
        text += &format!("and {} more\n", whole(hidden));
    }
    text
}

fn live(figures: Figures) -> String {
    with_error(bytes(figures.size as f64), figures.stderr)
}

fn grown(figures: Figures) -> String {
    with_error(change(figures.size_diff as f64), figures.diff_stderr)
}

/// Adds the standard error of an estimate.
fn with_error(figure: String, error: u64) -> String {
    if error > 0 { format!("{figure} ±{}", bytes(error as f64)) } else { figure }
}

fn stacks(stacks: &Stacks, summary: &Summary) -> String {
    let shown = stacks.rows.len();
    let mut text =
        format!("\nStacks that hold most, {} of {}\n", whole(shown as u64), whole(stacks.stacks as u64));
    for (at, stack) in stacks.rows.iter().enumerate() {
        let Figures { size, count, .. } = stack.figures;
        let share = percent(size as f64, stacks.total.size as f64);
        let grown = match summary.growth_seconds() {
            Some(_) => format!(", {}", change(stack.figures.size_diff as f64)),
            None => String::new(),
        };
        text += &format!("\n{}. {}, {share}, {} blocks{grown}\n", at + 1, live(stack.figures), whole(count));
        for frame in &stack.frames {
            text += &format!("   {}\n", frame.name());
        }
        if stack.total_frames > stack.frames.len() {
            text += "   … older frames were not kept\n";
        }
    }
    if stacks.stacks > shown {
        let more = whole((stacks.stacks - shown) as u64);
        text += &format!("\n{} in {more} other stacks\n", bytes(stacks.other.size as f64));
    }
    text
}
