//! The thread that watches memory and writes dumps.
//!
//! It is a thread of its own: the server's may be reading names for a second. It sleeps until live bytes pass a mark, half
//! of what is left or a new peak, or until its own time is up, which is shorter the faster memory is taken. What it needs
//! near the limit was set aside before: there it allocates nothing, opens nothing but the dump, and waits for no lock of
//! another thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

use super::directory::Directory;
use super::largest::Largest;
use super::levels::{Levels, Rate, part};
use super::namer::Namer;
use super::peak::PeakKeeper;
use super::requests::{self, Answer};
use super::run::{self, RunFile};
use super::settings::DumpSettings;
use super::termination_log::{self, TerminationLog};
use super::text::{Past, SiteText};
use super::writer::Writer;
use crate::analyze::collector::budget;
use crate::analyze::dump_counts::{self, DumpReason};
use crate::analyze::memory_limit::{MemoryLimit, MemoryLimits};
use crate::analyze::symbols::StackFrames;
use crate::export::short_life::say;
use crate::record::control;
use crate::record::failure;
use crate::record::raw_snapshot::{self, RawStack};
use crate::record::wake_signal;
use crate::record::watermark;

/// Most stacks of a dump.
const MOST_STACKS: usize = 1000;
/// Most and least stacks of the kept peak, and the part of the overhead limit that they may take.
const MOST_PEAK_STACKS: usize = 8192;
const LEAST_STACKS: usize = 256;
const SHARE: u64 = 32;
/// Bytes of a dump: at most, in memory, and at least.
const MOST_BYTES: u64 = 16 << 20;
const MOST_IN_MEMORY: u64 = 256 << 10;
const LEAST_BYTES: u64 = 64 << 10;
/// Least bytes between two marks.
const LEAST_RISE: u64 = 256 << 10;
/// Interval between looks at a heap that hardly changes, and at one that does, and between reads of the list of modules and of the directory.
const TICK: Duration = Duration::from_secs(1);
const SHORT_TICK: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(60);
/// Age of the figures that growth is told from, at least.
const GROWTH_TIME: Duration = Duration::from_secs(10);
/// Least time between two dumps of a peak, and between a peak and its dump: it may still rise.
const PEAK_REST: Duration = Duration::from_secs(10);
const PEAK_SETTLES: Duration = Duration::from_secs(1);
/// Percent of the limit from which on the termination log has a text, below which it has none, and up to which there is
/// memory to read names.
const LOG_FROM: u64 = 80;
const LOG_UNTIL: u64 = 75;
const NAMES_UNTIL: u64 = 70;

/// Longest time that a dump waits for names, and time between two looks at them.
const NAMING_TIME: Duration = Duration::from_secs(3);
const NAMING_STEP: Duration = Duration::from_millis(20);

/// Dumps that are to be written and can wait for names.
#[derive(Default)]
struct Asked {
    by_signal: bool,
    requests: Vec<Sender<Answer>>,
    peak: bool,
    since: Option<Instant>,
}

/// State of the thread.
pub(super) struct Watch {
    settings: DumpSettings,
    limits: MemoryLimits,
    limit: MemoryLimit,
    rate: Rate,
    levels: Levels,
    directory: Option<Directory>,
    run_file: Option<RunFile>,
    writer: Writer,
    largest: Largest,
    frames: StackFrames,
    text: SiteText,
    /// Figures of 10 to 20 seconds ago, and of the last 10.
    past: [Past; 2],
    past_kept: Instant,
    log: Option<TerminationLog>,
    peak: PeakKeeper,
    peak_found: Option<Instant>,
    peak_written: Option<Instant>,
    peak_time: SystemTime,
    asked: Asked,
    namer: Namer,
    failures: u32,
    /// Live bytes at the last tick.
    published: i64,
    ticked: Option<Instant>,
    refreshed: Instant,
    /// Lines that were said, so that each problem is one.
    said: Vec<String>,
}

impl Watch {
    /// Sets everything up. Allocates, reads the directory and settles what earlier runs have left.
    pub(super) fn new(settings: DumpSettings) -> Watch {
        let program = std::env::current_exe().ok();
        let program = program.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let room = usize::try_from(budget::limit() / SHARE).unwrap_or(usize::MAX) / size_of::<RawStack>();
        let stacks = room.clamp(LEAST_STACKS, MOST_STACKS);
        let largest = match settings.writes() {
            true => Largest::with_room_for(stacks),
            false => Largest::growing_to(stacks),
        };
        let mut watch = Watch {
            levels: Levels::new(&settings.at),
            limits: MemoryLimits::open(),
            limit: MemoryLimit::default(),
            rate: Rate::default(),
            directory: None,
            run_file: None,
            writer: Writer::new(&program),
            largest,
            frames: StackFrames::new(),
            text: SiteText::new(stacks, termination_log::LENGTH.min(failure::MOST_TEXT - failure::MOST_LINE)),
            past: [Past::with_room_for(stacks), Past::with_room_for(stacks)],
            past_kept: Instant::now(),
            log: None,
            peak: PeakKeeper::new(room.clamp(LEAST_STACKS, MOST_PEAK_STACKS)),
            peak_found: None,
            peak_written: None,
            peak_time: SystemTime::UNIX_EPOCH,
            asked: Asked::default(),
            namer: Namer::default(),
            failures: failure::count(),
            published: i64::MIN,
            ticked: None,
            refreshed: Instant::now(),
            said: Vec::new(),
            settings,
        };
        watch.open_directory(&program);
        watch.open_log();
        if let Some((name, number)) = watch.settings.signal
            && let Err(error) = wake_signal::handle(number)
        {
            watch.say_once(format!("HEAPGAUGE_DUMP_SIGNAL={name}: {error}, taking none"));
        }
        watch
    }

    fn open_directory(&mut self, program: &str) {
        let Some(path) = self.settings.directory.clone() else { return };
        let began = control::began_at().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let directory = Directory::new(&path, began, std::process::id());
        dump_counts::begin(run::previous(&path, program));
        match RunFile::create(&directory, program, std::process::id()) {
            Ok(file) => self.run_file = Some(file),
            Err(error) => self.say_once(format!("HEAPGAUGE_DUMP_DIR={}: {error}", path.display())),
        }
        if directory.is_in_memory {
            self.say_once(format!(
                "HEAPGAUGE_DUMP_DIR={}: it lies in memory, which counts against the limit; dumps have at most 256 KiB",
                path.display()
            ));
        }
        self.directory = Some(directory);
    }

    fn open_log(&mut self) {
        let Some(path) = self.settings.termination_log.clone() else { return };
        match TerminationLog::open(&path) {
            Ok(log) => self.log = Some(log),
            Err(error) => self.say_once(format!("HEAPGAUGE_TERMINATION_LOG={}: {error}", path.display())),
        }
    }

    /// Runs until `stop` is set.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        let mut wait = Duration::ZERO;
        loop {
            watermark::wait(wait);
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // A fault of ours costs this turn only.
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn()));
            wait = turn.unwrap_or(TICK);
        }
        watermark::remove();
        failure::forget();
        if let Some(log) = &mut self.log {
            let _ = log.empty();
        }
        if let Some(file) = &self.run_file {
            file.remove();
        }
    }

    /// Does all that is due, the most urgent first. Returns the time until the next turn.
    fn turn(&mut self) -> Duration {
        let now = Instant::now();
        let published = raw_snapshot::published_bytes();
        let is_tick = self.is_time_to_tick(now, published);
        let is_tracking = raw_snapshot::epoch() != u32::MAX;
        // A peak may be over in a moment, and to keep it takes no system call.
        if is_tracking {
            self.look_at_peak(now);
        }
        self.look_at_limit(now, is_tracking);
        if failure::count() != self.failures {
            self.failures = failure::count();
            let _ = self.dump_now(DumpReason::Failure, MOST_BYTES);
        }
        self.asked.by_signal |= wake_signal::take();
        self.asked.requests.append(&mut requests::take());
        self.answer_asked(now);
        if is_tick {
            self.ticked = Some(now);
            self.tick(now, published);
        }
        if self.set_mark(published) {
            return Duration::ZERO;
        }
        let wait = self.rate.wait(self.limit.headroom());
        if self.asked.since.is_some() { wait.min(NAMING_STEP) } else { wait }
    }

    /// Writes the dumps that can wait for names, once these are known or have taken too long.
    fn answer_asked(&mut self, now: Instant) {
        let Asked { by_signal, requests, peak, since } = &mut self.asked;
        if !*by_signal && requests.is_empty() && !*peak {
            return;
        }
        let since = *since.get_or_insert(now);
        match *peak {
            true => self.peak_time = self.peak.copy_to(&mut self.largest),
            false => self.largest.read(),
        }
        let is_named = !self.has_room_for_names() || self.namer.name(&self.largest);
        if !is_named && now.saturating_duration_since(since) < NAMING_TIME {
            return;
        }
        let Asked { by_signal, requests, peak, .. } = std::mem::take(&mut self.asked);
        if peak && self.directory.is_some() {
            let _ = self.dump(DumpReason::Peak, self.peak_time, MOST_BYTES);
        }
        if by_signal {
            let _ = self.dump_now(DumpReason::Signal, MOST_BYTES);
        }
        for answer in requests {
            let written = self.dump_now(DumpReason::Request, MOST_BYTES);
            let name = self.directory.as_ref().map(|directory| directory.last_name().to_owned());
            // The client may have gone.
            let _ = answer.send(written.map(|()| name.unwrap_or_default()));
        }
    }

    fn has_room_for_names(&self) -> bool {
        match self.limit {
            MemoryLimit { limit: Some(limit), usage: Some(usage) } => usage < part(limit, NAMES_UNTIL),
            _ => true,
        }
    }

    /// Returns whether there is a tick: after a second, or earlier where the heap has changed much since the last one.
    fn is_time_to_tick(&self, now: Instant, published: i64) -> bool {
        let Some(ticked) = self.ticked else { return true };
        let since = now.saturating_duration_since(ticked);
        let change = published.abs_diff(self.published);
        since >= TICK || (since >= SHORT_TICK && change > self.published.unsigned_abs() / 8)
    }

    /// Reads the use of memory, and dumps if it has come close to the limit.
    fn look_at_limit(&mut self, now: Instant, is_tracking: bool) {
        self.limit = self.limits.closest(self.settings.memory_limit);
        let MemoryLimit { limit, usage: Some(usage) } = self.limit else { return };
        self.rate.note(now, usage);
        failure::set_largest(limit.unwrap_or(u64::MAX));
        if !is_tracking {
            return;
        }
        if self.levels.is_due(usage, limit, &self.rate) && self.directory.is_some() {
            // The file is in memory until the kernel has written it.
            let most = self.limit.headroom().map_or(MOST_BYTES, |left| left / 4);
            let _ = self.dump_now(DumpReason::Limit, most.clamp(LEAST_BYTES, MOST_BYTES));
        }
        let Some((limit, log)) = limit.zip(self.log.as_mut()) else { return };
        if usage >= part(limit, LOG_FROM) && log.is_due() {
            self.largest.read();
            let text = self.text.make(&self.largest, &self.past[0], self.limit, &mut self.frames);
            let written = log.write(text);
            self.note_log(written);
        } else if usage < part(limit, LOG_UNTIL) {
            let emptied = log.empty();
            self.note_log(emptied);
        }
    }

    fn note_log(&mut self, written: std::io::Result<()>) {
        if let Err(error) = written {
            let path = self.settings.termination_log.clone().unwrap_or_default();
            self.say_once(format!("HEAPGAUGE_TERMINATION_LOG={}: {error}", path.display()));
        }
    }

    fn look_at_peak(&mut self, now: Instant) {
        let was_new = self.peak.is_new;
        self.peak.look();
        if !self.peak.is_new {
            return;
        }
        if !was_new {
            self.peak_found = Some(now);
        }
        let is_settled =
            self.peak_found.is_none_or(|found| now.saturating_duration_since(found) >= PEAK_SETTLES);
        let is_time = self.peak_written.is_none_or(|last| now.saturating_duration_since(last) >= PEAK_REST);
        if is_settled && is_time {
            self.peak.is_new = false;
            self.peak_written = Some(now);
            self.asked.peak = self.directory.is_some();
        }
    }

    /// Does what can wait: names, the text for a failed allocation, the directory.
    fn tick(&mut self, now: Instant, published: i64) {
        if now.saturating_duration_since(self.refreshed) >= SELDOM {
            self.refreshed = now;
            self.limits = MemoryLimits::open();
            self.frames.refresh();
            self.prune();
        }
        let is_kept_long = now.saturating_duration_since(self.past_kept) >= GROWTH_TIME;
        let has_new_names = self.namer.has_finished();
        if published == self.published && !is_kept_long && !has_new_names {
            return;
        }
        self.published = published;
        self.largest.read();
        if is_kept_long {
            self.past.swap(0, 1);
            self.past[1].keep(&self.largest);
            self.past_kept = now;
        }
        let text = self.text.make(&self.largest, &self.past[0], self.limit, &mut self.frames);
        failure::prepare(text.as_bytes());
        if self.has_room_for_names() && self.settings.writes() {
            self.namer.name(&self.largest);
        }
    }

    /// Sets the mark of live bytes that ends the wait: half of what is left, or a new peak. True if it is passed already:
    /// threads that passed it before it was set wake no thread.
    fn set_mark(&mut self, published: i64) -> bool {
        let rise = self.limit.headroom().map(|left| (left / 2).max(LEAST_RISE).min(i64::MAX as u64) as i64);
        let of_limit = rise.map_or(i64::MAX, |rise| published.saturating_add(rise));
        let mark = of_limit.min(self.peak.mark());
        watermark::set(mark);
        raw_snapshot::published_bytes() > mark
    }

    /// Dumps the heap as it is now.
    fn dump_now(&mut self, reason: DumpReason, most: u64) -> Result<(), String> {
        self.largest.read();
        self.dump(reason, SystemTime::now(), most)
    }

    /// Dumps the stacks that were read. Err: the line about the problem, which was said and counted.
    fn dump(&mut self, reason: DumpReason, taken_at: SystemTime, most: u64) -> Result<(), String> {
        let Some(directory) = &mut self.directory else {
            return Err("no directory for dumps, HEAPGAUGE_DUMP_DIR names one".into());
        };
        let most = if directory.is_in_memory { most.min(MOST_IN_MEMORY) } else { most };
        let heap = (taken_at, &self.largest);
        match self.writer.write(directory, reason, heap, self.limit, &mut self.frames, most) {
            Ok(()) => {
                dump_counts::count(reason);
                if reason != DumpReason::Limit {
                    self.prune();
                }
                Ok(())
            }
            Err(error) => {
                dump_counts::count_failure();
                let line = format!("HEAPGAUGE_DUMP_DIR={}: {error}", directory.path().display());
                self.say_once(line.clone());
                Err(line)
            }
        }
    }

    fn prune(&mut self) {
        let DumpSettings { keep, max_bytes, .. } = self.settings;
        if let Some(directory) = &self.directory {
            // A directory that cannot be listed is said with the next dump.
            let _ = directory.prune(keep, max_bytes);
        }
    }

    fn say_once(&mut self, line: String) {
        if !self.said.contains(&line) {
            say(&line);
            self.said.push(line);
        }
    }
}

/// Starts the thread. It ends when the flag is set and it is woken.
pub(super) fn spawn(
    settings: DumpSettings,
    stop: Arc<AtomicBool>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (ready, outcome) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        control::internal_for_life();
        touch_stack();
        // The first turn makes the text for a failed allocation, which may be the next one.
        let set_up = || {
            let mut watch = Watch::new(settings);
            watch.turn();
            watch
        };
        let watch = catch_unwind(AssertUnwindSafe(set_up));
        let _ = ready.send(());
        if let Ok(watch) = watch {
            watch.run(&stop);
        }
    })?;
    // Set up before the program goes on: what it does first may be what ends it.
    let _ = crate::record::fork::outside(|| outcome.recv());
    Ok(thread)
}

/// Stack of the thread, and the part of it that is touched at the beginning: near the limit a new page may not be had.
const STACK: usize = 512 << 10;
const TOUCHED: usize = 128 << 10;

#[inline(never)]
fn touch_stack() {
    let mut pages = [0u8; TOUCHED];
    for page in pages.chunks_mut(1 << 10) {
        page[0] = 1;
    }
    std::hint::black_box(&mut pages);
}
