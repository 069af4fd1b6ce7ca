//! Turns the addresses of a stack into frames, the site they belong to, and a traceback.
//!
//! Read side only. The first look at an address takes microseconds (the very first one in a process tens of milliseconds and,
//! while it lasts, tens of megabytes), every later one a hash lookup. One thread at a time looks names up, the others go on
//! with those known so far. Everything allocated here is counted as heapgauge's own.
//!
//! Parsed debug information is dropped after every batch, and within one whenever the overhead limit is passed; names are
//! kept, each text once. The cache of the crate `backtrace` is the program's, and is asked, and emptied afterwards, only where
//! the modules of the process cannot be listed (no `/proc`, systems other than Linux). A share of the limit is for names
//! alone. A module whose line tables cannot be opened within the whole limit goes by its table of symbols, and where that
//! does not fit either, by offsets. So does one whose tables do not fit for now, but its lines are then lost, not final: they
//! are looked for again when there is more room. The tables of one compilation unit may pass the limit for a moment.
#![forbid(unsafe_code)]

mod batch;
mod cache;
#[cfg(target_os = "linux")]
mod debug_files;
#[cfg(target_os = "linux")]
mod debug_sections;
mod demangle;
mod derived;
#[cfg(target_os = "linux")]
mod dwarf_units;
#[cfg_attr(not(target_os = "linux"), path = "no_elf.rs")]
mod elf;
#[cfg_attr(not(target_os = "linux"), path = "no_file_names.rs")]
mod file_names;
mod function_starts;
#[cfg(all(test, target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
mod fuzz;
mod known_names;
#[cfg(target_os = "linux")]
mod lines;
mod loaded_modules;
#[cfg_attr(not(all(target_os = "linux", feature = "mini-debug-info")), path = "no_mini_debug_info.rs")]
mod mini_debug_info;
#[cfg(target_os = "linux")]
mod module_file;
mod module_symbols;
mod quality;
#[cfg(target_os = "linux")]
mod section_bytes;
mod shared_std;
mod site;
mod site_rules;
mod source_path;
#[cfg_attr(not(target_os = "linux"), path = "no_unwind_table.rs")]
mod unwind_table;

use crate::analyze::frame::{Frame, Traceback};
use crate::base::error::Error;
use crate::record::control;
use crate::record::fork::Once;
use crate::record::fork::mutex::{ForkGuard, ForkMutex};
use crate::record::raw_snapshot::{self, RawStack};
use batch::{Batch, LEAST_PER_BATCH, fits_never, headroom_of_cgroup, room_for_names};
use cache::NameCache;
use elf::ElfImage;
use site_rules::{Choice, CodeOwner};
use source_path::DebugRoots;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) use file_names::{FileNames, module_of, offset_in};
pub(crate) use known_names::{KnownFrame, StackFrames};
pub(crate) use loaded_modules::build_id;
#[cfg(feature = "pprof")]
pub(crate) use loaded_modules::{Mapping, mappings};
pub(crate) use quality::{LineTables, Quality};
pub(crate) use shared_std::{capture, is_shared as is_standard_library_shared};
#[cfg(test)]
pub(crate) use site::Lost;
pub(crate) use site::{SITE_SCHEME, Site, Unnamed};
pub(crate) use site_rules::SiteSettings;
#[cfg(feature = "http")]
pub(crate) use site_rules::signed;
pub use site_rules::{LOOK_THROUGH, SiteFrame};

/// Number of addresses that are named in their own order, which keeps those of one compilation unit together: the data
/// parsed for the one serves the next, and can then be dropped.
const WINDOW: usize = 1024;

/// Size of a call's first window after that of its first stack; each next one is twice as large, up to [`WINDOW`]: on a
/// busy machine the time may be up before a large window is named, and then no more stacks would be whole.
const FIRST_WINDOW: usize = 64;

/// Time after which lines that were lost for want of memory are looked for again.
const LOST_FOR: Duration = Duration::from_secs(60);

/// Default of the overhead limit, without `HEAPGAUGE_MAX_OVERHEAD`.
pub(crate) const DEFAULT_MAX_OVERHEAD: u64 = 64 << 20;

/// Progress of a call of [`Symbols::resolve`]: stacks that have their names, of those given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub named: usize,
    pub total: usize,
    /// True if the time was up: another call gets on, even if this one finished no stack.
    pub more: bool,
}

/// Frame with its position in its stack.
// Folded stacks read the frame alone.
#[cfg_attr(not(feature = "pprof"), allow(dead_code))]
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// Index of its address in the stack.
    pub at: usize,
    /// Index among the frames of that address, the most recently inlined first.
    pub inlined: usize,
    pub frame: Arc<Frame>,
}

/// Names of this process's addresses.
///
/// A forked child has its parent's names, and every lock here free.
pub(crate) struct Symbols {
    /// Names found; held for moments, see [`Symbols::names`].
    names: ForkMutex<NameCache>,
    /// Process in which a thread looks names up, 0 when none does. One at a time, and for a whole batch, during which
    /// it may be forked: a child sees another process here, and begins a batch of its own.
    batch_of: AtomicU32,
    max_overhead: AtomicU64,
    /// The limit that was set, or the usual one: `max_overhead` may be less where the system had little memory left.
    nominal: AtomicU64,
    /// Part of the limit that only names may use.
    share: AtomicU64,
    /// Bytes by which the process has grown during batches since its free memory was last given back; changed by the thread
    /// that has the batch.
    left_over: AtomicU64,
    /// Number that changes when names that were lost for want of memory have been forgotten, and with the rules.
    lost_epoch: AtomicU64,
    /// True if the overhead limit was reached: addresses without a name yet go by module and offset.
    full: AtomicBool,
    over_limit: AtomicU64,
    quality: Once<Quality>,
}

/// Changes or replaces the list of crates whose frames are passed over while a later frame exists, for the whole process.
///
/// `+name` adds a crate to the published list, [`LOOK_THROUGH`], `-name` takes one from it, and names without a sign replace
/// it. Sites that were reported before may change.
///
/// # Examples
///
/// ```
/// heapgauge::set_look_through(["+my_containers", "-bytes"])?;
/// # Ok::<(), heapgauge::Error>(())
/// ```
///
/// # Errors
///
/// If a name can be none of a crate. The message names it.
pub fn set_look_through<S: Into<String>>(crates: impl IntoIterator<Item = S>) -> Result<(), Error> {
    let _own = control::internal();
    let look_through = Some(crates.into_iter().map(Into::into).collect());
    change_rules("set_look_through", SiteSettings { look_through, ..SiteSettings::default() })
}

/// Sets crates and modules that are own code, or not, beside those of the workspace, for the whole process.
///
/// The longest name that fits decides. Without line tables the workspace is not known, and only these are own code. Sites
/// that were reported before may change.
///
/// # Examples
///
/// ```
/// heapgauge::set_own_crates(["+company_tasks", "-common::cache"])?;
/// # Ok::<(), heapgauge::Error>(())
/// ```
///
/// # Errors
///
/// If a name has no sign, or can be none of a crate or module. The message names it.
pub fn set_own_crates<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Result<(), Error> {
    let _own = control::internal();
    let own_crates = Some(names.into_iter().map(Into::into).collect());
    change_rules("set_own_crates", SiteSettings { own_crates, ..SiteSettings::default() })
}

/// Sets the frame that blocks are charged to, for the whole process. Sites that were reported before may change.
///
/// # Examples
///
/// ```
/// heapgauge::set_site_frame(heapgauge::SiteFrame::Own); // which is the default
/// ```
pub fn set_site_frame(frame: SiteFrame) {
    let settings = SiteSettings { frame: Some(frame), ..SiteSettings::default() };
    global().set_site_rules(&settings);
}

fn change_rules(setter: &str, settings: SiteSettings) -> Result<(), Error> {
    if let Some((allowed, name)) = settings.wrong() {
        return Err(Error::new(format_args!("{setter}: {name:?} is none, allowed are {allowed}")));
    }
    global().set_site_rules(&settings);
    Ok(())
}

/// Returns the names of this process.
pub(crate) fn global() -> &'static Symbols {
    static GLOBAL: Once<Symbols> = Once::new();
    GLOBAL.get_or_make(Symbols::new)
}

impl Symbols {
    fn new() -> Symbols {
        let _own = control::internal();
        Symbols {
            names: ForkMutex::default(),
            batch_of: AtomicU32::new(0),
            max_overhead: AtomicU64::new(DEFAULT_MAX_OVERHEAD),
            nominal: AtomicU64::new(DEFAULT_MAX_OVERHEAD),
            share: AtomicU64::new(0),
            left_over: AtomicU64::new(0),
            lost_epoch: AtomicU64::new(0),
            full: AtomicBool::new(false),
            over_limit: AtomicU64::new(0),
            quality: Once::new(),
        }
    }

    /// Returns the site of the stack with this id, or `None` while it has no final name.
    pub(crate) fn site(&self, id: u32, addresses: &[usize]) -> Option<Arc<Site>> {
        let _own = control::internal();
        let mut names = self.names();
        names.follow_epoch(raw_snapshot::epoch());
        names.site(id, addresses, self.is_full())
    }

    /// Forgets the sites of stacks that have died: those that are not among these, ascending by id.
    pub(crate) fn forget_dead(&self, alive: &[RawStack]) {
        let _own = control::internal();
        self.names().forget_dead(alive);
    }

    /// Returns the nearest frame of a stack as a site, or `None` while it has no name.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn nearest(&self, addresses: &[usize]) -> Option<Site> {
        let _own = control::internal();
        self.names().nearest(addresses, self.is_full())
    }

    /// Returns a number that changes whenever names given before may be others: there was no memory for their lines, or
    /// the rules have changed.
    pub(crate) fn lost_epoch(&self) -> u64 {
        self.lost_epoch.load(Ordering::Relaxed)
    }

    /// Forgets names without lines if there is room for their lines now, at most once in [`LOST_FOR`]. Each collection asks: where
    /// all stacks have names, however poor, none is resolved.
    pub(crate) fn look_again_for_lost(&self) {
        let _own = control::internal();
        let is_time = self.names().lost_at.is_some_and(|at| at.elapsed() >= LOST_FOR);
        if !is_time {
            return;
        }
        let tables = control::tracker_memory().saturating_sub(self.memory_bytes());
        let mut names = self.names();
        let room = room_for_names(self, tables).saturating_sub(names.bytes() as u64);
        if names.lost_room > room.min(headroom_of_cgroup() / 2) {
            return;
        }
        names.forget();
        self.full.store(false, Ordering::Relaxed);
        self.lost_epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns at most `limit` frames from the nearest on, and as many as it takes to the site's; `None` while the stack
    /// has no names. `truncated`: the walk ended before the thread's first frame.
    pub(crate) fn traceback(&self, addresses: &[usize], limit: usize, truncated: bool) -> Option<Traceback> {
        let _own = control::internal();
        let names = self.names();
        let frames = names.frames(addresses, self.is_full())?;
        let choice = names.choose(&frames);
        let (frames, site) = (&frames[choice.nearest..], choice.site - choice.nearest);
        let kept = &frames[..frames.len().min(limit.max(site + 1))];
        let cut = truncated || kept.len() < frames.len();
        let kept: Arc<[Arc<Frame>]> = kept.iter().map(|(frame, _)| frame.clone()).collect();
        let total = kept.len() + usize::from(cut);
        Some(Traceback::shared(kept, total).with_site(site))
    }

    /// Returns at most `limit` frames from the nearest on, like [`traceback`](Symbols::traceback). An address that has
    /// no name goes by module and offset, so that every stack can be shown.
    pub(crate) fn placed(&self, addresses: &[usize], limit: usize) -> Vec<Placed> {
        let _own = control::internal();
        let names = self.names();
        let (mut frames, mut places) = (Vec::new(), Vec::new());
        let mut each = |at: usize, frame: Arc<Frame>, owner: CodeOwner| {
            let inlined = match places.last() {
                Some(&(before, inlined)) if before == at => inlined + 1,
                _ => 0,
            };
            frames.push((frame, owner));
            places.push((at, inlined));
        };
        // With `true` there is nothing it would give up for.
        let _ = names.each_frame(addresses, true, &mut each);
        let Choice { nearest, site, .. } = names.choose(&frames);
        let kept = places.into_iter().zip(frames).skip(nearest).take(limit.max(site - nearest + 1));
        kept.map(|((at, inlined), (frame, _))| Placed { at, inlined, frame }).collect()
    }

    /// Returns whether every address of the stack has its final name.
    pub(crate) fn is_named(&self, addresses: &[usize]) -> bool {
        self.is_full() || self.names().missing(addresses).is_empty()
    }

    /// Names stacks in the given order until all are or the time is used up; some of it may be spent waiting for the
    /// batch of another thread.
    pub(crate) fn resolve<S: AsRef<[usize]>>(
        &self,
        stacks: &mut dyn Iterator<Item = S>,
        budget: Duration,
    ) -> Progress {
        let _own = control::internal();
        self.follow_modules();
        self.look_again_for_lost();
        // The first window is one stack.
        let mut wanted = 1;
        let begin = Instant::now();
        let mut progress = Progress::default();
        let mut batch: Option<Batch<'_>> = None;
        let mut over = false;
        let mut window = Vec::new();
        loop {
            window.clear();
            let mut missing = Vec::new();
            for stack in &mut *stacks {
                missing.extend(self.names().missing(stack.as_ref()));
                window.push(stack);
                if missing.len() >= wanted {
                    break;
                }
            }
            let is_first = wanted == 1;
            wanted = (2 * wanted).clamp(FIRST_WINDOW, WINDOW);
            if window.is_empty() {
                progress.more = over && progress.named < progress.total;
                return progress;
            }
            missing.sort_unstable();
            missing.dedup();
            for (at, address) in missing.iter().enumerate() {
                over |= !is_first
                    && begin.elapsed() >= budget
                    && batch.as_ref().is_some_and(|batch| batch.named >= LEAST_PER_BATCH);
                if self.is_full() {
                    self.over_limit.fetch_add((missing.len() - at) as u64, Ordering::Relaxed);
                    break;
                }
                if over {
                    break;
                }
                if batch.is_none() {
                    batch = Batch::begin(self, begin, budget);
                }
                let Some(batch) = &mut batch else {
                    over = true;
                    break;
                };
                batch.name(*address);
            }
            let names = self.names();
            let is_named = |stack: &&S| names.missing(stack.as_ref()).is_empty();
            progress.total += window.len();
            progress.named += match self.is_full() {
                true => window.len(),
                false => window.iter().filter(is_named).count(),
            };
        }
    }

    /// Returns the bytes of the names kept, an estimate from capacities; part of `tracker_memory`.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.names().bytes() as u64
    }

    /// Returns the number of times that an address had to go by module and offset because the overhead limit was
    /// reached. It grows with every `resolve` that meets one.
    pub(crate) fn over_limit(&self) -> u64 {
        self.over_limit.load(Ordering::Relaxed)
    }

    /// Changes the rules that sites are chosen by. Sites already given out may change.
    pub(crate) fn set_site_rules(&self, settings: &SiteSettings) {
        if *settings == SiteSettings::default() {
            return;
        }
        let _own = control::internal();
        self.names().set_rules(settings);
        self.lost_epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the bytes that opening the program's own line tables takes, an estimate. The first call reads the
    /// executable's headers.
    pub(crate) fn lines_cost(&self) -> u64 {
        static COST: Once<u64> = Once::new();
        *COST.get_or_make(|| {
            let _own = control::internal();
            loaded_modules::main_module(&loaded_modules::list())
                .and_then(ElfImage::open)
                .map_or(0, |image| image.lines_cost())
        })
    }

    /// Sets the bytes heapgauge may hold, and the part of them that only names may use, before new addresses go by
    /// module and offset. `nominal`: the limit without regard to the memory that the system has left.
    pub(crate) fn set_budget(&self, bytes: u64, share: u64, nominal: u64) {
        self.share.store(share, Ordering::Relaxed);
        // Before the limit: lines that do not fit into it are lost for now, not for good.
        self.nominal.store(nominal, Ordering::Relaxed);
        let before = self.max_overhead.swap(bytes, Ordering::Relaxed);
        self.full.store(false, Ordering::Relaxed);
        if bytes > before && self.over_limit() > 0 {
            // Addresses that went by offset may have a name now.
            let _own = control::internal();
            self.names().forget();
        }
    }

    /// Returns the limit that was set, or the usual one.
    fn nominal(&self) -> u64 {
        self.nominal.load(Ordering::Relaxed)
    }

    /// Sets the bytes heapgauge may hold before new addresses go by module and offset.
    #[cfg(test)]
    fn set_max_overhead(&self, bytes: u64) {
        self.set_budget(bytes, self.share.load(Ordering::Relaxed), bytes);
    }

    /// Returns the detail of the names of the module that holds this code. The first call reads its headers.
    pub(crate) fn quality(&self) -> Quality {
        *self.quality.get_or_make(|| {
            let _own = control::internal();
            let modules = loaded_modules::list();
            let Some(image) = loaded_modules::main_module(&modules).and_then(ElfImage::open) else {
                // On other systems names come from `backtrace`; on Linux without `/proc` it finds none, either.
                return match modules.is_empty() && !cfg!(target_os = "linux") {
                    true => Quality { names: "lines", lines: LineTables::Available },
                    false => Quality { names: "none", lines: LineTables::Absent },
                };
            };
            let lines = self.line_tables(&image);
            let names = match lines {
                LineTables::Available => "lines",
                _ if image.has_functions() => "functions",
                _ => "none",
            };
            Quality { names, lines }
        })
    }

    fn line_tables(&self, image: &ElfImage) -> LineTables {
        if fits_never(image.lines_cost(), self.nominal()) {
            return LineTables::TooLarge;
        }
        let room = self.max_overhead.load(Ordering::Relaxed).saturating_sub(control::tracker_memory());
        let units = image.units(room);
        match units.lacks_parts {
            // It depends on the moment.
            _ if units.lacks_room => LineTables::Available,
            true => LineTables::PartsMissing,
            false if DebugRoots::of(units.found).covers_program() => LineTables::Available,
            false => LineTables::Absent,
        }
    }

    /// Returns whether the overhead limit was reached: addresses without a name yet go by module and offset.
    fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn names(&self) -> ForkGuard<'_, NameCache> {
        // Nothing here leaves a value half changed where it could panic.
        self.names.lock()
    }

    /// Forgets the names of modules that have come or gone since.
    fn follow_modules(&self) {
        let epoch = control::modules_epoch();
        let mut names = self.names();
        if names.epoch != epoch {
            names.forget();
            names.epoch = epoch;
        }
    }
}

#[cfg(test)]
mod tests;
