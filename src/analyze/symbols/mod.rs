//! Turns the addresses of a stack into frames, the site they belong to, and a traceback.
//!
//! Read side only. The first look at an address takes microseconds (the very first one in a process tens of
//! milliseconds and, while it lasts, tens of megabytes), every later one a hash lookup. Any thread may ask; one
//! at a time looks names up, the others continue with the names known so far. Everything allocated here is booked as
//! heapgauge's own.
//!
//! Parsed debug information is dropped after every batch, and within one whenever the overhead limit is passed; kept
//! are only the names found, each text once. It is heapgauge's own: the cache of the crate `backtrace` is the
//! program's, and is asked, and emptied afterwards, only where the modules of the process cannot be listed (no `/proc`,
//! systems other than Linux). A share of the limit is for names alone. A module whose line tables cannot be opened
//! within the whole limit goes by its table of symbols, and where that does not fit either, by offsets. So does one
//! whose tables do not fit for now, but its lines are then lost, not final: they are looked for again when there is
//! more room. The tables of one compilation unit may pass the limit, and only while one address is looked up.
//!
//! Line tables (`debug = "line-tables-only"`) name an inlined function by its last segment alone: `insert`. The
//! path in front is then made from the file (`src/cache.rs` of crate `shop` → `shop::cache::insert`), and a
//! closure's from the generic arguments of its caller. Functions that were not inlined have their full path from
//! the symbol table, and `debug = "limited"` gives every path in full.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod debug_sections;
mod demangle;
#[cfg(target_os = "linux")]
mod dwarf_units;
mod elf;
mod function_starts;
#[cfg(all(test, target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
mod fuzz;
#[cfg(target_os = "linux")]
mod lines;
#[cfg(target_os = "linux")]
mod module_file;
#[cfg(target_os = "linux")]
mod section_bytes;
mod shared_std;
mod source_path;

use crate::analyze::frame::{Frame, Traceback, UNKNOWN};
use crate::record::control;
use crate::record::fork;
use crate::record::fork::mutex::{self, ForkGuard, ForkMutex};
use crate::record::trim;
use elf::{Functions, Image, Module};
use function_starts::FunctionStarts;
#[cfg(target_os = "linux")]
use lines::Lines;
use source_path::{Layout, Origin, Place};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub(crate) use shared_std::{capture, is_shared as is_standard_library_shared};
pub use source_path::LOOK_THROUGH;

/// Name of a stack whose addresses were lost.
const UNRECORDED: &str = "[unrecorded]";

/// Longest `function` label, characters.
const LABEL_CHARS: usize = 120;

/// Least number of addresses that a batch names whatever its time budget, so that every batch gets on.
const LEAST_PER_BATCH: usize = 16;

/// Number of addresses that are named in their own order, which keeps those of one compilation unit together: the data
/// parsed for the one serves the next, and can then be dropped.
const WINDOW: usize = 1024;

/// Size of a call's first window; each next one is twice as large, up to [`WINDOW`]: on a busy machine the time may be
/// up before the addresses of a large window are named, and then no stack would be whole.
const FIRST_WINDOW: usize = 64;

/// Time after which lines that were lost for want of memory are looked for again.
const LOST_FOR: Duration = Duration::from_secs(60);

/// Lowest address of code: there is none in the first page.
const LOWEST_CODE: usize = 4096;

/// Least number of addresses that a parse should serve: opening line tables anew takes some 50 ms, in an executable of
/// 300 MB half a second.
const LEAST_PER_PARSE: usize = 16;

/// Number of parses in a row that serve fewer, after which a module is too large for the overhead limit.
const IN_VAIN: usize = 4;

/// Bytes left over from a batch below which giving them back is not worth it.
const LEFT_OVER: usize = 8 << 20;

/// Default of the overhead limit, without `HEAPGAUGE_MAX_OVERHEAD`.
const DEFAULT_MAX_OVERHEAD: u64 = 64 << 20;

/// A (function, file, line) that holds heap, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// FNV-1a 64 over `function \0 file \0 line in decimal`.
    pub id: u64,
    /// Function, whole; `function_label` cuts it for a label.
    pub function: Arc<str>,
    pub file: Arc<str>,
    pub line: u32,
    pub krate: Arc<str>,
    /// Set if its line is not known for want of memory, and perhaps not even the frame that is the site.
    pub lost: Option<Lost>,
}

/// Duration of the loss of lines that no memory was left to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    /// They would not fit if nothing else were there: the name without them is final.
    ForGood,
    /// They may be found when there is more room. A name without them is not final.
    ForNow,
}

impl Site {
    /// Returns whether the id would be the same if there had been more memory when it was named.
    pub(crate) fn is_final(&self) -> bool {
        self.lost != Some(Lost::ForNow)
    }

    fn of(frame: &Frame) -> Site {
        let function: Arc<str> = match &frame.function {
            Some(function) => function.clone(),
            None => frame.name().into(),
        };
        Site {
            id: site_id(&function, &frame.file, frame.line),
            krate: frame.krate().into(),
            file: frame.file.clone(),
            line: frame.line,
            function,
            lost: None,
        }
    }

    /// Returns the id as 16 hex digits.
    pub(crate) fn label(&self) -> String {
        format!("{:016x}", self.id)
    }

    /// Returns at most 120 characters, keeping the end. There is no backslash: names are made without.
    pub(crate) fn function_label(&self) -> Cow<'_, str> {
        match self.function.char_indices().rev().nth(LABEL_CHARS - 1) {
            Some((at, _)) => Cow::Borrowed(&self.function[at..]),
            None => Cow::Borrowed(&self.function),
        }
    }
}

/// Returns FNV-1a 64 over `function \0 file \0 line in decimal`.
pub(crate) fn site_id(function: &str, file: &str, line: u32) -> u64 {
    let line = line.to_string();
    let bytes = [function.as_bytes(), b"\0", file.as_bytes(), b"\0", line.as_bytes()];
    bytes.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Progress of a call of [`Symbols::resolve`]: stacks that have their names, of those given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub named: usize,
    pub total: usize,
    /// True if the time was up: another call gets on, even if this one finished no stack.
    pub more: bool,
}

/// Frame with its position in its stack.
#[cfg(any(feature = "pprof", feature = "http"))]
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

/// Piece of code that is mapped from a file.
#[cfg(feature = "pprof")]
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub start: usize,
    /// First address behind it.
    pub limit: usize,
    /// Offset of `start` in the file.
    pub offset: u64,
    pub path: Arc<str>,
    /// Build id, hex; empty where the linker wrote none, or the file is no longer there.
    pub build_id: Arc<str>,
}

/// Names of this process's addresses.
///
/// A forked child has its parent's names, and every lock here free.
pub(crate) struct Symbols {
    /// Names found; held for moments, see [`Symbols::names`].
    names: ForkMutex<Names>,
    /// Process in which a thread looks names up, 0 when none does. One at a time, and for a whole batch, during which
    /// it may be forked: a child sees another process here, and begins a batch of its own.
    batch_of: AtomicU32,
    max_overhead: AtomicU64,
    /// Part of the limit that only names may use.
    share: AtomicU64,
    /// Number that changes when names that were lost for want of memory have been forgotten.
    lost_epoch: AtomicU64,
    /// True if the overhead limit was reached: addresses without a name yet go by module and offset.
    full: AtomicBool,
    over_limit: AtomicU64,
    quality: OnceLock<&'static str>,
}

/// Returns the names of this process.
pub(crate) fn global() -> &'static Symbols {
    static GLOBAL: OnceLock<Symbols> = OnceLock::new();
    fork::get_or_make(&GLOBAL, || {
        let _own = control::internal();
        Symbols::new()
    })
}

impl Symbols {
    fn new() -> Symbols {
        Symbols {
            names: ForkMutex::default(),
            batch_of: AtomicU32::new(0),
            max_overhead: AtomicU64::new(DEFAULT_MAX_OVERHEAD),
            share: AtomicU64::new(0),
            lost_epoch: AtomicU64::new(0),
            full: AtomicBool::new(false),
            over_limit: AtomicU64::new(0),
            quality: OnceLock::new(),
        }
    }

    /// Returns the site of a stack, or `None` while it has no final name.
    pub(crate) fn site(&self, addresses: &'static [usize]) -> Option<Arc<Site>> {
        let _own = control::internal();
        let mut names = self.names();
        let key = addresses.as_ptr() as usize;
        if let Some(site) = names.stacks.get(&(key, addresses.len())) {
            return Some(site.clone());
        }
        let frames = self.frames(&names, addresses)?;
        let (frame, _) = &frames[names.site_position(&frames)];
        let frame = &names.function_of(frame);
        if let Some(lost) = self.lost(&names, addresses) {
            let site = Arc::new(Site { lost: Some(lost), ..Site::of(frame) });
            if !self.full.load(Ordering::Relaxed) {
                names.stacks.insert((key, addresses.len()), site.clone());
            }
            return Some(site);
        }
        if let Some(site) = names.sites.get(frame) {
            let site = site.clone();
            names.stacks.insert((key, addresses.len()), site.clone());
            return Some(site);
        }
        let site = Arc::new(Site::of(frame));
        if !self.full.load(Ordering::Relaxed) {
            names.sites.insert(frame.clone(), site.clone());
            names.stacks.insert((key, addresses.len()), site.clone());
        }
        Some(site)
    }

    /// Returns whether the site of a stack was chosen among frames that lack their lines for want of memory.
    fn lost(&self, names: &Names, addresses: &[usize]) -> Option<Lost> {
        let full = self.full.load(Ordering::Relaxed);
        let lost = |address: &usize| match names.lost.get(address) {
            Some(lost) => Some(*lost),
            None => (full && !names.knows(*address)).then_some(Lost::ForNow),
        };
        let first = addresses.iter().position(|address| lost(address).is_some())?;
        // Where a frame before them is the site whatever they are, nothing is lost.
        let certain = self.frames(names, &addresses[..first]).filter(|_| first > 0).is_some_and(|frames| {
            let (frame, origin) = &frames[names.site_position(&frames)];
            names.is_first_choice(frame, *origin)
        });
        if certain { None } else { addresses[first..].iter().filter_map(lost).max() }
    }

    /// Returns a number that changes whenever names given before may get better: there was no memory for their lines.
    pub(crate) fn lost_epoch(&self) -> u64 {
        self.lost_epoch.load(Ordering::Relaxed)
    }

    /// Forgets names without lines if there is room for their lines now, at most once in [`LOST_FOR`].
    fn look_again_for_lost(&self) {
        let tables = control::tracker_memory().saturating_sub(self.memory_bytes());
        let mut names = self.names();
        let is_time = names.lost_at.is_some_and(|at| at.elapsed() >= LOST_FOR);
        if !is_time || names.lost_room > room_for_names(self, tables).saturating_sub(names.bytes() as u64) {
            return;
        }
        names.forget();
        self.full.store(false, Ordering::Relaxed);
        self.lost_epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns at most `limit` frames from the site's on, or `None` while the stack has no names. `truncated`: the walk
    /// ended before the thread's first frame.
    pub(crate) fn traceback(
        &self,
        addresses: &'static [usize],
        limit: usize,
        truncated: bool,
    ) -> Option<Traceback> {
        let _own = control::internal();
        let names = self.names();
        let frames = self.frames(&names, addresses)?;
        let frames = &frames[names.site_position(&frames)..];
        let kept = &frames[..frames.len().min(limit.max(1))];
        let cut = truncated || kept.len() < frames.len();
        let kept: Arc<[Arc<Frame>]> = kept.iter().map(|(frame, _)| frame.clone()).collect();
        let total = kept.len() + usize::from(cut);
        Some(Traceback::shared(kept, total))
    }

    /// Returns at most `limit` frames from the site's on, like [`traceback`](Symbols::traceback). An address that has
    /// no name goes by module and offset, so that every stack can be shown.
    #[cfg(any(feature = "pprof", feature = "http"))]
    pub(crate) fn placed(&self, addresses: &'static [usize], limit: usize) -> Vec<Placed> {
        let _own = control::internal();
        let names = self.names();
        let (mut frames, mut places) = (Vec::new(), Vec::new());
        let mut each = |at: usize, frame: Arc<Frame>, origin: Origin| {
            let inlined = match places.last() {
                Some(&(before, inlined)) if before == at => inlined + 1,
                _ => 0,
            };
            frames.push((frame, origin));
            places.push((at, inlined));
        };
        // With `true` there is nothing it would give up for.
        let _ = self.each_frame(&names, addresses, true, &mut each);
        let begin = names.site_position(&frames);
        let kept = places.into_iter().zip(frames).skip(begin).take(limit.max(1));
        kept.map(|((at, inlined), (frame, _))| Placed { at, inlined, frame }).collect()
    }

    /// Returns whether every address of the stack has its final name.
    #[cfg(any(feature = "pprof", feature = "http"))]
    pub(crate) fn is_named(&self, addresses: &'static [usize]) -> bool {
        self.full.load(Ordering::Relaxed) || self.names().missing(addresses).is_empty()
    }

    /// Names stacks in the given order until all are or the time is used up; some of it may be spent waiting for the
    /// batch of another thread.
    pub(crate) fn resolve(
        &self,
        stacks: &mut dyn Iterator<Item = &'static [usize]>,
        budget: Duration,
    ) -> Progress {
        let _own = control::internal();
        self.follow_modules();
        self.look_again_for_lost();
        let mut wanted = FIRST_WINDOW;
        let begin = Instant::now();
        let mut progress = Progress::default();
        let mut batch: Option<Batch<'_>> = None;
        let mut over = false;
        let mut window = Vec::new();
        loop {
            window.clear();
            let mut missing = Vec::new();
            for stack in &mut *stacks {
                window.push(stack);
                missing.extend(self.names().missing(stack));
                if missing.len() >= wanted {
                    break;
                }
            }
            wanted = (2 * wanted).min(WINDOW);
            if window.is_empty() {
                progress.more = over && progress.named < progress.total;
                return progress;
            }
            missing.sort_unstable();
            missing.dedup();
            for (at, address) in missing.iter().enumerate() {
                if self.full.load(Ordering::Relaxed) {
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
                over = batch.named >= LEAST_PER_BATCH && begin.elapsed() >= budget;
            }
            let names = self.names();
            let is_named = |stack: &&&[usize]| names.missing(stack).is_empty();
            progress.total += window.len();
            progress.named += match self.full.load(Ordering::Relaxed) {
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

    /// Replaces the list of crates a site is looked for behind. Sites already given out may change.
    pub(crate) fn set_look_through(&self, crates: &[String]) {
        let _own = control::internal();
        let mut names = self.names();
        names.look_through = crates.iter().map(|krate| krate.replace('-', "_")).collect();
        names.stacks.clear();
    }

    /// Returns the bytes that opening the program's own line tables takes, an estimate. The first call reads the
    /// executable's headers.
    pub(crate) fn lines_cost(&self) -> u64 {
        static COST: OnceLock<u64> = OnceLock::new();
        *fork::get_or_make(&COST, || {
            let _own = control::internal();
            main_module(&elf::modules()).and_then(Image::open).map_or(0, |image| image.lines_cost())
        })
    }

    /// Sets the bytes heapgauge may hold, and the part of them that only names may use, before new addresses go by
    /// module and offset.
    pub(crate) fn set_budget(&self, bytes: u64, share: u64) {
        self.share.store(share, Ordering::Relaxed);
        self.set_max_overhead(bytes);
    }

    /// Sets the bytes heapgauge may hold before new addresses go by module and offset.
    pub(crate) fn set_max_overhead(&self, bytes: u64) {
        let before = self.max_overhead.swap(bytes, Ordering::Relaxed);
        self.full.store(false, Ordering::Relaxed);
        if bytes > before && self.over_limit() > 0 {
            // Addresses that went by offset may have a name now.
            let _own = control::internal();
            self.names().forget();
        }
    }

    /// Returns the kind of names of the module that holds this code: `lines`, `functions` or `none`. The first call
    /// reads its headers.
    pub(crate) fn quality(&self) -> &'static str {
        fork::get_or_make::<&'static str>(&self.quality, || {
            let _own = control::internal();
            let modules = elf::modules();
            let Some(image) = main_module(&modules).and_then(Image::open) else {
                return if modules.is_empty() { "lines" } else { "none" };
            };
            let limit = self.max_overhead.load(Ordering::Relaxed);
            let room = limit.saturating_sub(control::tracker_memory());
            if fits_never(image.lines_cost(), limit) {
                if image.functions().are_known() { "functions" } else { "none" }
            } else if Layout::of(image.units(room)).covers_program() && !image.lacks_split_units(room) {
                "lines"
            } else if image.functions().are_known() {
                "functions"
            } else {
                "none"
            }
        })
    }

    fn names(&self) -> ForkGuard<'_, Names> {
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

    /// Returns all frames of a stack, `None` while one of its addresses has no name.
    fn frames(&self, names: &Names, addresses: &[usize]) -> Option<Vec<(Arc<Frame>, Origin)>> {
        let mut frames = Vec::with_capacity(addresses.len() * 2);
        let mut each = |_: usize, frame: Arc<Frame>, origin: Origin| frames.push((frame, origin));
        self.each_frame(names, addresses, self.full.load(Ordering::Relaxed), &mut each)?;
        Some(frames)
    }

    /// Passes at least one frame to `each`, most recent first, with the index of its address in the stack. `None`: an
    /// address has no name, and `without_names` did not say that it may go by module and offset.
    fn each_frame(
        &self,
        names: &Names,
        addresses: &[usize],
        without_names: bool,
        each: &mut dyn FnMut(usize, Arc<Frame>, Origin),
    ) -> Option<()> {
        if addresses.is_empty() {
            each(0, Arc::new(Frame::new(Some(UNRECORDED), UNKNOWN, 0)), Origin::Program);
            return Some(());
        }
        let mut any = false;
        for (at, address) in addresses.iter().enumerate() {
            // Some walks put a small number behind the thread's first frame.
            if *address <= LOWEST_CODE {
                continue;
            }
            match names.addresses.get(address) {
                Some(&(from, count)) => {
                    for &index in &names.chains[from as usize..][..count as usize] {
                        let (frame, origin) = &names.frames[index as usize];
                        each(at, frame.clone(), *origin);
                        any = true;
                    }
                }
                None if without_names => {
                    let modules = names.modules.get_or_init(|| fork::outside(elf::modules));
                    let (frame, origin) = unnamed(modules, None, address - 1);
                    each(at, Arc::new(frame), origin);
                    any = true;
                }
                None => return None,
            }
        }
        if !any {
            each(0, Arc::new(Frame::new(None, UNKNOWN, 0)), Origin::Standard);
        }
        Some(())
    }
}

/// Returns the bytes that names and the making of them may take beside everything else, `tables`: the rest of the
/// limit, and at least their share.
fn room_for_names(symbols: &Symbols, tables: u64) -> u64 {
    let left = symbols.max_overhead.load(Ordering::Relaxed).saturating_sub(tables);
    left.max(symbols.share.load(Ordering::Relaxed))
}

/// Returns whether something of this size would not fit into the limit if hardly anything else were there. Depends on
/// nothing but the program and its settings.
fn fits_never(cost: u64, limit: u64) -> bool {
    cost > limit / 8 * 7
}

/// Returns all code of this process that comes from files, that of the module with this code first. Reads the head
/// of each file.
#[cfg(feature = "pprof")]
pub(crate) fn mappings() -> Vec<Mapping> {
    let _own = control::internal();
    let mut modules = elf::modules();
    modules.retain(|module| !module.code.is_empty());
    // The order of the rest is that of their addresses.
    let own = main_module(&modules).map(|module| module.low);
    modules.sort_by_key(|module| Some(module.low) != own);
    let mut mappings = Vec::new();
    for module in &modules {
        let id = hex(&elf::build_id(module).unwrap_or_default());
        let (path, build_id) = (Arc::from(module.path.to_string_lossy()), Arc::from(id));
        mappings.extend(module.code.iter().map(|&(start, limit, offset)| Mapping {
            start,
            limit,
            offset,
            path: Arc::clone(&path),
            build_id: Arc::clone(&build_id),
        }));
    }
    mappings
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the build id of the module that holds this code, hex; `None` where the linker wrote none.
pub(crate) fn build_id() -> Option<String> {
    static ID: OnceLock<Option<String>> = OnceLock::new();
    let _own = control::internal();
    fork::get_or_make(&ID, || Some(hex(&elf::build_id(main_module(&elf::modules())?)?))).clone()
}

/// Returns the module that holds this code: the executable, or a library in somebody else's program, or in one that
/// was started through the loader.
fn main_module(modules: &[Module]) -> Option<&Module> {
    elf::module_of(modules, elf::modules as fn() -> Vec<Module> as usize).map(|at| &modules[at])
}

/// Returns the frame of an address without a name. One that is in no file or in the C library is no site; nor is one
/// in a function of heapgauge's, as far as the table of the module's functions is at hand.
fn unnamed(modules: &[Module], starts: Option<&FunctionStarts>, address: usize) -> (Frame, Origin) {
    let unknown = Frame::new(None, UNKNOWN, 0);
    let Some(module) = elf::module_of(modules, address).map(|at| &modules[at]) else {
        return (unknown, Origin::Standard);
    };
    let offset = starts.map_or((address - module.low) as u64, |starts| starts.linked(address));
    let frame = Frame { module: Some(module.name.clone()), offset: Some(offset), ..unknown };
    let is_own = starts.is_some_and(|starts| starts.start(address).is_some_and(|start| starts.is_own(start)));
    (frame, if is_own { Origin::Heapgauge } else { source_path::module_origin(&module.name) })
}

/// Names found: every text once, every frame once, and by address the frames that begin there.
struct Names {
    /// Crates a site is looked for behind.
    look_through: HashSet<String>,
    /// Epoch of the modules these names are from.
    epoch: u64,
    texts: HashSet<Arc<str>>,
    text_bytes: usize,
    frames: Vec<(Arc<Frame>, Origin)>,
    frame_index: HashMap<Arc<Frame>, u32>,
    /// Indices into `frames`, most recent first, address by address.
    chains: Vec<u32>,
    /// Range in `chains` by return address: its start and length.
    addresses: HashMap<usize, (u32, u32)>,
    /// Addresses that lack their lines for want of memory.
    lost: HashMap<usize, Lost>,
    /// Time at which lines were last lost for now, and the room they would have needed.
    lost_at: Option<Instant>,
    lost_room: u64,
    sites: HashMap<Arc<Frame>, Arc<Site>>,
    /// Sites by address and length of a stack's interned addresses.
    stacks: HashMap<(usize, usize), Arc<Site>>,
    /// Start of the function, by a frame that goes by module and offset.
    starts: HashMap<Frame, u64>,
    /// Modules, read when the first address has to go by module and offset.
    modules: OnceCell<Vec<Module>>,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            look_through: LOOK_THROUGH.iter().map(|krate| (*krate).to_owned()).collect(),
            epoch: 0,
            texts: HashSet::default(),
            text_bytes: 0,
            frames: Vec::new(),
            frame_index: HashMap::default(),
            chains: Vec::new(),
            addresses: HashMap::default(),
            lost: HashMap::default(),
            lost_at: None,
            lost_room: u64::MAX,
            sites: HashMap::default(),
            stacks: HashMap::default(),
            starts: HashMap::default(),
            modules: OnceCell::new(),
        }
    }
}

impl Names {
    /// Returns the position of the site's frame: the most recent of a program or library that is not looked through;
    /// failing that of one that is; failing that the most recent of the standard library that says more than that it
    /// allocates; failing that the most recent after the allocator's; else the most recent of all.
    fn site_position(&self, frames: &[(Arc<Frame>, Origin)]) -> usize {
        // All before the compiler's shim runs inside the global allocator, whatever crate it is of.
        let shim = frames.iter().position(|(_, origin)| *origin == Origin::AllocatorShim);
        let begin = shim.map_or(0, |at| at + 1);
        let after = || frames.iter().enumerate().skip(begin);
        let program = || after().filter(|(_, (_, origin))| *origin == Origin::Program);
        let looked_through = |frame: &Frame| self.look_through.contains(&*frame.krate().replace('-', "_"));
        program()
            .find(|(_, (frame, _))| !looked_through(frame))
            .or_else(|| program().next())
            .or_else(|| {
                after().find(|(_, (frame, origin))| {
                    *origin == Origin::Standard && !source_path::only_allocates(frame)
                })
            })
            .or_else(|| after().find(|(_, (_, origin))| *origin == Origin::Standard))
            .map_or(0, |(at, _)| at)
    }

    /// Returns whether a frame is the site wherever it is met first, whatever comes behind it.
    fn is_first_choice(&self, frame: &Frame, origin: Origin) -> bool {
        origin == Origin::Program && !self.look_through.contains(&*frame.krate().replace('-', "_"))
    }

    fn knows(&self, address: usize) -> bool {
        address <= LOWEST_CODE || self.addresses.contains_key(&address)
    }

    /// Notes that lines were lost which would have needed so much room.
    fn lose(&mut self, room: u64) {
        self.lost_at = Some(Instant::now());
        self.lost_room = self.lost_room.min(room);
    }

    /// Returns the frame itself or, without a name, its function: a site is not one call among those of a function.
    fn function_of(&self, frame: &Arc<Frame>) -> Arc<Frame> {
        match self.starts.get(&**frame) {
            Some(start) => Arc::new(Frame { offset: Some(*start), ..(**frame).clone() }),
            None => frame.clone(),
        }
    }

    /// Forgets all names.
    fn forget(&mut self) {
        let look_through = std::mem::take(&mut self.look_through);
        let names = Names { epoch: self.epoch, look_through, ..Names::default() };
        // It may take milliseconds to free them.
        let forgotten = std::mem::replace(self, names);
        fork::outside(|| drop(forgotten));
    }

    fn missing(&self, addresses: &[usize]) -> Vec<usize> {
        addresses.iter().copied().filter(|address| !self.knows(*address)).collect()
    }

    fn insert(&mut self, address: usize, frames: Vec<(Frame, Origin)>) {
        let from = self.chains.len() as u32;
        let count = frames.len() as u32;
        for (frame, origin) in frames {
            let at = self.frame(frame, origin);
            self.chains.push(at);
        }
        self.addresses.insert(address, (from, count));
    }

    fn frame(&mut self, frame: Frame, origin: Origin) -> u32 {
        if let Some(at) = self.frame_index.get(&frame) {
            return *at;
        }
        let frame = Arc::new(Frame {
            function: frame.function.map(|text| self.text(text)),
            file: self.text(frame.file),
            module: frame.module.map(|text| self.text(text)),
            ..frame
        });
        let at = self.frames.len() as u32;
        self.frames.push((frame.clone(), origin));
        self.frame_index.insert(frame, at);
        at
    }

    fn text(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(kept) = self.texts.get(&text) {
            return kept.clone();
        }
        self.text_bytes += text.len();
        self.texts.insert(text.clone());
        text
    }

    fn bytes(&self) -> usize {
        // A hash table's bucket is its entry and a byte of control; two counters lie before an Arc's value.
        const COUNTERS: usize = 16;
        fn buckets<T>(capacity: usize) -> usize {
            capacity * 8 / 7 * (size_of::<T>() + 1)
        }
        self.text_bytes
            + self.texts.len() * COUNTERS
            + buckets::<Arc<str>>(self.texts.capacity())
            + self.frames.capacity() * size_of::<(Arc<Frame>, Origin)>()
            + self.frames.len() * (size_of::<Frame>() + COUNTERS)
            + buckets::<(Arc<Frame>, u32)>(self.frame_index.capacity())
            + self.chains.capacity() * size_of::<u32>()
            + buckets::<(usize, (u32, u32))>(self.addresses.capacity())
            + buckets::<(usize, Lost)>(self.lost.capacity())
            + buckets::<(Arc<Frame>, Arc<Site>)>(self.sites.capacity())
            + self.sites.len() * (size_of::<Site>() + COUNTERS)
            + buckets::<((usize, usize), Arc<Site>)>(self.stacks.capacity())
            + buckets::<(Frame, u64)>(self.starts.capacity())
    }
}

/// A run of name look-ups in one thread; the data it reads is dropped when it ends.
struct Batch<'a> {
    symbols: &'a Symbols,
    modules: Vec<Module>,
    /// Modules by index, opened when their first address comes.
    opened: HashMap<usize, Opened>,
    named: usize,
    /// Addresses named since the parsed debug information was last dropped.
    named_since: usize,
    /// Most bytes that one address has added to it, but for those that opened a module.
    largest_step: u64,
    /// Module of the last address.
    last_module: Option<usize>,
    /// Number of times in a row that it was dropped after fewer than [`LEAST_PER_PARSE`] addresses.
    in_vain: usize,
    /// True if the cache of `backtrace` holds answers to this batch.
    asked_backtrace: bool,
    /// Bytes of heapgauge's memory but for the names and the parsed data, when the batch began.
    tables: u64,
    /// Part of `tables` that `control::own_bytes` does not count.
    tag_map: u64,
    /// Bytes of the process's memory then.
    resident: usize,
}

/// Returns the key of a module in [`Batch::opened`].
fn key(module: Option<usize>) -> usize {
    module.unwrap_or(usize::MAX)
}

/// Data of one module's file beside its line tables.
#[derive(Default)]
struct Opened {
    starts: Option<Option<FunctionStarts>>,
    layout: Layout,
    bias: usize,
    image: Option<Image>,
    functions: Option<Functions>,
    #[cfg(target_os = "linux")]
    lines: Option<Lines>,
    /// True if there are no line tables, or they cannot be read.
    without_lines: bool,
    places: HashMap<(String, Option<String>), Place>,
    /// True if the data that names are made from is in memory.
    parsed: bool,
    detail: Detail,
    /// Reason why `detail` is less than lines, where it is for want of memory; and the room that lines would need.
    lost: Option<Lost>,
    lost_room: u64,
}

/// Detail of a module's names that the overhead limit has room for.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Detail {
    #[default]
    Lines,
    /// Whole functions, from the table of symbols, which takes less.
    Functions,
    Offsets,
}

impl Detail {
    fn less(self) -> Detail {
        if self == Detail::Lines { Detail::Functions } else { Detail::Offsets }
    }
}

/// Frame as debug information gives it.
struct Found {
    name: Option<String>,
    file: Option<String>,
    line: u32,
}

impl<'a> Batch<'a> {
    /// Begins a batch; `None` if another thread's batch has not ended by then.
    fn begin(symbols: &'a Symbols, since: Instant, budget: Duration) -> Option<Batch<'a>> {
        let process = mutex::process();
        loop {
            let other = symbols.batch_of.load(Ordering::Relaxed);
            let free = other != process;
            // Acquire and the Release at the end: batches are one after the other in every thread's view.
            if free
                && symbols
                    .batch_of
                    .compare_exchange(other, process, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                break;
            }
            if !free && since.elapsed() >= budget {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let modules = elf::modules();
        Some(Batch {
            symbols,
            modules,
            opened: HashMap::new(),
            named: 0,
            named_since: 0,
            largest_step: 0,
            last_module: None,
            in_vain: 0,
            asked_backtrace: false,
            tag_map: control::tracker_memory().saturating_sub(control::own_bytes()),
            tables: control::tracker_memory().saturating_sub(symbols.memory_bytes()),
            resident: trim::private_bytes(),
        })
    }

    fn name(&mut self, address: usize) {
        // Names that fill the budget leave no room to look for more.
        if self.kept() > self.limit() {
            self.symbols.full.store(true, Ordering::Relaxed);
            self.symbols.over_limit.fetch_add(1, Ordering::Relaxed);
            // Worth another try when there is room for a quarter more names.
            let held = self.symbols.memory_bytes();
            self.symbols.names().lose(held / 4);
            return;
        }
        let module = elf::module_of(&self.modules, address - 1);
        self.open(module);
        if self.named_since > 0 && self.held().saturating_add(self.largest_step) > self.limit() {
            self.make_room(module);
        }
        let before = self.held();
        let frames = self.frames(module, address - 1);
        let start = match &frames[..] {
            [(frame, _)] if frame.offset.is_some() => self
                .starts(module)
                .and_then(|starts| starts.start(address - 1))
                .map(|start| (frame.clone(), start)),
            _ => None,
        };
        let lost = self.opened.get(&key(module)).and_then(|opened| Some((opened.lost?, opened.lost_room)));
        {
            let mut names = self.symbols.names();
            names.insert(address, frames);
            names.starts.extend(start);
            if let Some((lost, room)) = lost {
                names.lost.insert(address, lost);
                if lost == Lost::ForNow {
                    names.lose(room);
                }
            }
        }
        self.named += 1;
        self.named_since += 1;
        // The first address of a module opens it.
        if self.last_module == Some(key(module)) && self.named_since > 1 {
            self.largest_step = self.largest_step.max(self.held().saturating_sub(before));
        }
        self.last_module = Some(key(module));
        if self.held() > self.limit() {
            self.make_room(module);
        }
    }

    /// Drops the parsed data. If that happens again and again after a few addresses each, the module is too large, and
    /// gets less detail.
    fn make_room(&mut self, module: Option<usize>) {
        self.in_vain = if self.named_since < LEAST_PER_PARSE { self.in_vain + 1 } else { 0 };
        if self.in_vain >= IN_VAIN {
            let room = 2 * self.room();
            if let Some(opened) = self.opened.get_mut(&key(module)) {
                opened.detail = opened.detail.less();
                opened.lost = Some(Lost::ForNow);
                opened.lost_room = room;
            }
            self.in_vain = 0;
            self.largest_step = 0;
        }
        self.drop_parsed();
    }

    /// Chooses the detail of a module that there is room for, and drops other parsed data where both do not fit.
    fn open(&mut self, module: Option<usize>) {
        let whole = self.symbols.max_overhead.load(Ordering::Relaxed);
        let limit = self.tables.saturating_add(room_for_names(self.symbols, self.tables));
        let own = limit.saturating_sub(self.tables + self.symbols.memory_bytes());
        let opened = self
            .opened
            .entry(key(module))
            .or_insert_with(|| Opened::of(module.map(|at| &self.modules[at]), own));
        if opened.parsed {
            return;
        }
        let image = opened.image.as_ref();
        let cost = |detail| match detail {
            Detail::Lines => image.map_or(0, Image::lines_cost),
            Detail::Functions => image.map_or(0, Image::functions_cost),
            Detail::Offsets => 0,
        };
        let [address_space, private] = trim::memory_headroom();
        let room = own.min(private / 2);
        let maps = image.map_or(0, Image::length);
        while cost(opened.detail) > room && opened.detail != Detail::Offsets
            || opened.detail == Detail::Lines && cost(opened.detail).saturating_add(maps) > address_space / 2
        {
            let for_good = fits_never(cost(opened.detail), whole);
            opened.lost = opened.lost.max(Some(if for_good { Lost::ForGood } else { Lost::ForNow }));
            // Where it is the system that has no more, room within the limit does not help.
            opened.lost_room = if cost(Detail::Lines) > own { cost(Detail::Lines) } else { u64::MAX };
            opened.detail = opened.detail.less();
        }
        opened.parsed = true;
        let cost = cost(opened.detail);
        if self.held().saturating_add(cost) > limit {
            self.drop_parsed();
            if let Some(opened) = self.opened.get_mut(&key(module)) {
                opened.parsed = true;
            }
        }
    }

    fn limit(&self) -> u64 {
        self.tables.saturating_add(room_for_names(self.symbols, self.tables))
    }

    fn room(&self) -> u64 {
        self.limit().saturating_sub(self.kept())
    }

    /// Returns the bytes that will be held when the batch is over.
    fn kept(&self) -> u64 {
        self.tables + self.symbols.memory_bytes()
    }

    /// Returns the bytes held now.
    fn held(&self) -> u64 {
        (control::own_bytes() + self.tag_map).max(self.kept())
    }

    fn drop_parsed(&mut self) {
        self.clear_backtrace();
        for opened in self.opened.values_mut() {
            opened.drop_parsed();
        }
        self.named_since = 0;
    }

    fn frames(&mut self, module: Option<usize>, address: usize) -> Vec<(Frame, Origin)> {
        let detail = self.opened.get(&key(module)).map_or(Detail::Offsets, |opened| opened.detail);
        if detail != Detail::Lines {
            self.symbols.over_limit.fetch_add(1, Ordering::Relaxed);
        }
        let opened = self.opened.get_mut(&key(module)).filter(|_| detail != Detail::Offsets);
        if self.modules.is_empty() && detail == Detail::Lines {
            self.asked_backtrace = true;
            let found = look_up(address);
            if let Some(opened) = opened
                && found.iter().any(|frame| frame.name.is_some())
            {
                return opened.name(&found, address);
            }
        } else if let Some(opened) = opened {
            let found = opened.look_up(address, detail);
            if found.iter().any(|frame| frame.name.is_some()) {
                return opened.name(&found, address);
            }
        }
        self.starts(module);
        let starts = self.opened.get(&key(module)).and_then(|opened| opened.starts.as_ref()?.as_ref());
        vec![unnamed(&self.modules, starts, address)]
    }

    /// Returns the table of the module's functions, opened when its first address without a name comes.
    fn starts(&mut self, module: Option<usize>) -> Option<&FunctionStarts> {
        let of = &self.modules[module?];
        let opened = self.opened.get_mut(&key(module))?;
        opened.starts.get_or_insert_with(|| FunctionStarts::open(of)).as_ref()
    }

    fn clear_backtrace(&mut self) {
        if std::mem::take(&mut self.asked_backtrace) {
            let _inside = fork::enter();
            backtrace::clear_symbol_cache();
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.clear_backtrace();
        self.opened.clear();
        trim::trim_if_grown(self.resident, LEFT_OVER);
        self.symbols.batch_of.store(0, Ordering::Release);
    }
}

fn look_up(address: usize) -> Vec<Found> {
    let _inside = fork::enter();
    let mut found = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        found.push(Found {
            name: symbol.name().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()),
            file: symbol.filename().map(|path| path.to_string_lossy().into_owned()),
            line: symbol.lineno().unwrap_or(0),
        });
    });
    found
}

impl Opened {
    /// Opens a module's file. `room`: bytes that may be used meanwhile.
    fn of(module: Option<&Module>, room: u64) -> Opened {
        let Some((module, image)) = module.and_then(|module| Some((module, Image::open(module)?))) else {
            return Opened::default();
        };
        Opened {
            layout: Layout::of(image.units(room)),
            bias: image.bias(module),
            image: Some(image),
            ..Opened::default()
        }
    }

    fn drop_parsed(&mut self) {
        self.functions = None;
        #[cfg(target_os = "linux")]
        {
            self.lines = None;
        }
        self.parsed = false;
    }

    /// Returns the frames of an address from line tables, else the function from the table of symbols.
    fn look_up(&mut self, address: usize, detail: Detail) -> Vec<Found> {
        let mut found = if detail == Detail::Lines { self.lines_at(address) } else { Vec::new() };
        match found.last_mut() {
            None => found.extend(self.symbol(address)),
            // Line tables without functions: assembly, or split debug information whose files are not there.
            Some(outermost) if outermost.name.is_none() => {
                outermost.name = self.symbol(address).and_then(|symbol| symbol.name);
                self.without_inlined(outermost);
            }
            Some(_) => {}
        }
        found
    }

    /// Drops a line that is of another crate than the function: it is that of a function inlined there, which has no
    /// name.
    fn without_inlined(&mut self, frame: &mut Found) {
        let Some(function) = frame.name.as_deref().and_then(demangle) else { return };
        let function = demangle::normalise(&function, None);
        let krate = demangle::first_segment(&function);
        let home = frame.file.as_deref().and_then(|file| self.place(file, krate).krate);
        if home.as_deref() != krate {
            (frame.file, frame.line) = (None, 0);
        }
    }

    #[cfg(target_os = "linux")]
    fn lines_at(&mut self, address: usize) -> Vec<Found> {
        let address = address.wrapping_sub(self.bias) as u64;
        if self.lines.is_none() && !self.without_lines {
            self.lines = self.image.as_ref().and_then(Image::lines);
            self.without_lines = self.lines.is_none();
        }
        let Some(lines) = &self.lines else { return Vec::new() };
        let image = self.image.as_ref();
        let functions = &mut self.functions;
        let mut function =
            || image.and_then(|image| functions.get_or_insert_with(|| image.functions()).range_at(address));
        lines.frames(address, &mut function)
    }

    #[cfg(not(target_os = "linux"))]
    fn lines_at(&mut self, _address: usize) -> Vec<Found> {
        self.without_lines = true;
        Vec::new()
    }

    /// Returns the final names of the frames of one address; the last is the function the address is in, the others
    /// were inlined into it.
    fn name(&mut self, found: &[Found], address: usize) -> Vec<(Frame, Origin)> {
        let outermost = found.last().and_then(|frame| self.compiled(frame.name.as_deref()?, address));
        let near = outermost.as_deref().map(|path| demangle::normalise(path, None));
        let near = near.as_deref().and_then(demangle::first_segment);
        let mut named = Vec::with_capacity(found.len());
        for (at, frame) in found.iter().enumerate() {
            let place = frame.file.as_deref().map(|path| self.place(path, near));
            let Some(name) = &frame.name else { continue };
            let home = place.as_ref().and_then(|place| place.krate.as_deref());
            let symbol = match &outermost {
                Some(path) if at + 1 == found.len() => Some(path.clone()),
                _ => demangle(name),
            };
            let function = match symbol {
                Some(path) => demangle::normalise(&path, home),
                None => {
                    let caller = found.get(at + 1).and_then(|caller| caller.name.as_deref());
                    qualify(name, place.as_ref(), caller)
                }
            };
            let mut origin = source_path::origin(&function, place.as_ref());
            if origin == Origin::Program && place.is_none() && self.layout.is_copy_of_standard(&function) {
                origin = Origin::Standard;
            }
            let file = place.as_ref().map_or(UNKNOWN, |place| &place.file);
            let line = if place.is_some() { frame.line } else { 0 };
            named.push((Frame::new(Some(&function), file, line), origin));
        }
        named
    }

    /// Returns the function from the table of symbols, without its inlined ones and without lines.
    fn symbol(&mut self, address: usize) -> Option<Found> {
        let bias = self.bias;
        let name = self.functions()?.names_at(address.wrapping_sub(bias) as u64).into_iter().next()?;
        Some(Found { name: Some(name), file: None, line: 0 })
    }

    fn functions(&mut self) -> Option<&Functions> {
        let image = self.image.as_ref()?;
        Some(self.functions.get_or_insert_with(|| image.functions()))
    }

    /// Returns the demangled symbol of the function that holds the address.
    fn compiled(&mut self, name: &str, address: usize) -> Option<String> {
        if let Some(path) = demangle(name) {
            return Some(path);
        }
        let bare = demangle::normalise(name, None);
        let bias = self.bias;
        let symbols = self.functions()?.names_at(address.wrapping_sub(bias) as u64);
        symbols
            .iter()
            .filter_map(|symbol| demangle(symbol))
            .find(|path| demangle::same_function(&demangle::normalise(path, None), &bare))
    }

    fn place(&mut self, path: &str, near: Option<&str>) -> Place {
        let key = (path.to_owned(), near.map(String::from));
        self.places.entry(key).or_insert_with(|| self.layout.place(path, near)).clone()
    }
}

/// Demangles a Rust name; `None` for any other: a C function, or the bare name that line tables give.
fn demangle(name: &str) -> Option<String> {
    if !["_ZN", "_R", "ZN", "__ZN", "__R"].iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let path = format!("{:#}", backtrace::SymbolName::new(name.as_bytes()));
    (path != name).then_some(path)
}

/// Makes a path of a bare name, from its file or, for a closure, from its caller's generic arguments.
fn qualify(name: &str, place: Option<&Place>, caller: Option<&str>) -> String {
    let bare = demangle::normalise(name, None);
    let Some(place) = place.filter(|place| place.file.ends_with(".rs")) else { return bare };
    caller
        .and_then(|caller| demangle::closure_path(&bare, caller, place.krate.as_deref()))
        .unwrap_or_else(|| demangle::within(&place.module, &bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> &'static [usize] {
        let mut addresses = Vec::new();
        backtrace::trace(|frame| {
            addresses.push(frame.ip() as usize);
            true
        });
        addresses.leak()
    }

    /// Stacks of one address each, all different, in the middle of this program's code.
    fn code(count: usize) -> Vec<&'static [usize]> {
        let begin = Symbols::resolve as *const () as usize;
        (1..=count).map(|at| &*vec![begin + at].leak()).collect()
    }

    #[test]
    fn the_id_of_a_site_is_fnv_1a() {
        // Reference values of FNV-1a 64 for the empty text and for "a", then the three parts.
        let fnv = |bytes: &[u8]| {
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            })
        };
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(site_id("f", "a.rs", 42), fnv(b"f\0a.rs\x0042"));
        let site = Site::of(&Frame::new(Some("shop::run"), "src/main.rs", 7));
        assert_eq!(site.label(), format!("{:016x}", fnv(b"shop::run\0src/main.rs\x007")));
        assert_eq!((&*site.krate, site.label().len()), ("shop", 16));
    }

    #[test]
    fn a_label_keeps_the_end_of_a_long_function() {
        let long = format!("shop::{}::ende", "ä".repeat(200));
        let site = Site::of(&Frame::new(Some(&long), "a.rs", 1));
        assert_eq!(site.function_label().chars().count(), 120);
        assert!(long.ends_with(&*site.function_label()));
        assert_eq!(&*site.function, long);
        let exact = "x".repeat(120);
        assert_eq!(Site::of(&Frame::new(Some(&exact), "a.rs", 1)).function_label(), exact);
    }

    #[test]
    fn a_real_stack_is_named() {
        let symbols = Symbols::new();
        let (stack, line) = (here(), line!());
        assert_eq!(symbols.site(stack), None);
        assert!(symbols.traceback(stack, 64, false).is_none());
        let progress = symbols.resolve(&mut std::iter::once(stack), Duration::MAX);
        assert_eq!(progress, Progress { named: 1, total: 1, more: false });

        let all = symbols.frames(&symbols.names(), stack).unwrap();
        let this = "heapgauge::analyze::symbols::tests::a_real_stack_is_named";
        let (frame, origin) = all.iter().find(|(frame, _)| frame.function.as_deref() == Some(this)).unwrap();
        assert_eq!(
            (&*frame.file, frame.line, *origin),
            ("src/analyze/symbols/mod.rs", line, Origin::Heapgauge)
        );
        for (frame, _) in &all {
            assert!(!frame.file.starts_with('/'), "{frame}");
        }
        let (harness, origin) = all.iter().find(|(frame, _)| frame.name().starts_with("test::")).unwrap();
        assert_eq!((harness.file.starts_with("library/test/src/"), *origin), (true, Origin::Standard));

        // `backtrace` is a library like any other, and the most recent that is not std or heapgauge.
        let site = symbols.site(stack).unwrap();
        assert_eq!(&*site.krate, "backtrace");
        assert!(site.file.starts_with("backtrace-0.3."), "{}", site.file);
        let traceback = symbols.traceback(stack, 2, false).unwrap();
        assert_eq!((traceback.frames().len(), traceback.total_frames()), (2, 3));
        assert_eq!(traceback.most_recent().name(), &*site.function);
        let whole = symbols.traceback(stack, usize::MAX, false).unwrap();
        assert_eq!(whole.total_frames(), whole.frames().len());
        let truncated = symbols.traceback(stack, usize::MAX, true).unwrap();
        assert_eq!(truncated.total_frames(), truncated.frames().len() + 1);
        assert!(symbols.memory_bytes() > 0);

        symbols.set_look_through(&["backtrace".to_owned()]);
        let again = symbols.site(stack).unwrap();
        assert_eq!(&*again.krate, "backtrace", "looked through only when a later frame exists");
    }

    #[test]
    fn a_stack_of_the_standard_library_alone_goes_by_the_frame_that_wanted_the_block() {
        let standard =
            |function: &str, file: &str| (Arc::new(Frame::new(Some(function), file, 7)), Origin::Standard);
        let ways = [
            standard("alloc::alloc::Global::alloc_impl_runtime", "library/alloc/src/alloc.rs"),
            standard("core::alloc::Allocator::allocate", "library/core/src/alloc/mod.rs"),
            standard("std::alloc::Global::alloc", "library/std/src/alloc.rs"),
            standard("finish_grow", "library/alloc/src/raw_vec/mod.rs"),
            standard("alloc::raw_vec::RawVec::grow_one", UNKNOWN),
            standard("alloc::sync::Arc::new", "library/alloc/src/sync.rs"),
            standard("hashbrown::raw::alloc::inner::do_alloc", "hashbrown-0.16.1/src/raw/alloc.rs"),
        ];
        let wanted = [
            standard("std::thread::lifecycle::spawn_unchecked", "library/std/src/thread/lifecycle.rs"),
            standard("start_thread", "sysdeps/nptl/pthread_create.c"),
        ];
        let names = Names::default();
        assert_eq!(names.site_position(&[&ways[..], &wanted].concat()), ways.len());
        assert_eq!(names.site_position(&ways), 0, "nothing else is there");
    }

    #[cfg(any(feature = "pprof", feature = "http"))]
    #[test]
    fn case_58_frames_above_the_site_are_left_out_unless_nothing_would_remain() {
        let symbols = Symbols::new();
        let stack = here();
        // Without names every address is a frame, by module and offset; a name comes with `resolve`.
        let unnamed = symbols.placed(stack, usize::MAX);
        assert!(!symbols.is_named(stack) && unnamed.iter().all(|placed| placed.frame.function.is_none()));
        symbols.resolve(&mut std::iter::once(stack), Duration::MAX);
        assert!(symbols.is_named(stack));

        let traceback = symbols.traceback(stack, usize::MAX, false).unwrap();
        let placed = symbols.placed(stack, usize::MAX);
        let frames: Vec<&Arc<Frame>> = placed.iter().map(|placed| &placed.frame).collect();
        assert_eq!(frames, traceback.frames().iter().collect::<Vec<_>>());
        assert_eq!(symbols.placed(stack, 2).len(), 2);
        // Each frame has its position: at ascending addresses, and below them inlined in turn.
        for pair in placed.windows(2) {
            let next = (pair[1].at, pair[1].inlined);
            assert!(
                next == (pair[0].at, pair[0].inlined + 1) || (next.0 > pair[0].at && next.1 == 0),
                "{pair:?}"
            );
        }

        // The harness and the runtime alone: no frame is a program's, and all are there.
        let last = &placed[placed.len() - 1];
        let standard = &stack[last.at..];
        let all = symbols.placed(standard, usize::MAX);
        assert_eq!((all[0].at, all[0].inlined), (0, 0));
        assert_eq!(all[all.len() - 1].frame, last.frame);
        let lost = symbols.placed(&[], usize::MAX);
        assert_eq!((lost.len(), &*lost[0].frame.name()), (1, UNRECORDED));
    }

    #[cfg(all(feature = "pprof", target_os = "linux", target_env = "gnu"))]
    #[test]
    fn case_58_mappings_hold_the_code_of_every_module() {
        let mappings = mappings();
        let here = case_58_mappings_hold_the_code_of_every_module as *const () as usize;
        let program = &mappings[0];
        assert!(mappings.iter().any(|mapping| {
            (mapping.start..mapping.limit).contains(&here) && mapping.path == program.path
        }));
        assert_eq!(Some(&*program.build_id), build_id().as_deref());
        let libc = mappings.iter().find(|mapping| mapping.path.contains("/libc.so")).unwrap();
        assert!(libc.build_id.len() >= 16 && libc.build_id != program.build_id, "{libc:?}");
    }

    #[test]
    fn a_stack_that_was_lost_has_a_name_at_once() {
        let symbols = Symbols::new();
        let site = symbols.site(&[]).unwrap();
        assert_eq!((&*site.function, &*site.file, site.line), ("[unrecorded]", "<unknown>", 0));
        assert_eq!(site.id, site_id("[unrecorded]", "<unknown>", 0));
        let progress = symbols.resolve(&mut std::iter::once(&[][..]), Duration::ZERO);
        assert_eq!(progress, Progress { named: 1, total: 1, more: false });
    }

    #[test]
    fn beyond_the_limit_a_stack_goes_by_module_and_offset() {
        let symbols = Symbols::new();
        symbols.set_max_overhead(0);
        let stacks = code(40);
        let progress = symbols.resolve(&mut stacks.iter().copied(), Duration::MAX);
        assert_eq!(progress, Progress { named: stacks.len(), total: stacks.len(), more: false });
        assert_eq!(symbols.over_limit(), 40);

        let site = symbols.site(stacks[39]).unwrap();
        assert!(site.function.starts_with("heapgauge-"), "{}", site.function);
        assert!(site.function.contains("+0x"), "{}", site.function);
        assert_eq!((&*site.file, site.line, &*site.krate), ("<unknown>", 0, "<unknown>"));
        let memory = symbols.memory_bytes();
        let more = code(100).split_off(40);
        assert_eq!(symbols.resolve(&mut more.iter().copied(), Duration::MAX).named, more.len());
        assert!(more.iter().all(|stack| symbols.site(stack).is_some()));
        assert_eq!((symbols.memory_bytes(), symbols.over_limit()), (memory, 100));

        // With more room it is as if nothing had been asked before.
        symbols.set_max_overhead(DEFAULT_MAX_OVERHEAD);
        assert_eq!(symbols.site(stacks[39]), None);
        symbols.resolve(&mut stacks.iter().copied(), Duration::MAX);
        assert_eq!(&*symbols.site(stacks[39]).unwrap().krate, "heapgauge");
    }

    /// Sets a limit of half the bytes needed each time, and far more than the names found.
    #[test]
    fn a_module_too_large_for_lines_goes_by_functions_and_then_by_offsets() {
        let stacks = code(40);
        let cost = {
            let modules = elf::modules();
            let image = main_module(&modules).and_then(Image::open).unwrap();
            [image.lines_cost(), image.functions_cost()]
        };
        assert!(cost[0] > 2 * cost[1] && cost[1] > 1 << 17, "{cost:?}");
        for (room, name) in
            [(cost[0] / 2, "heapgauge::analyze::symbols::Symbols::resolve"), (cost[1] / 2, "+0x")]
        {
            let symbols = Symbols::new();
            symbols.set_max_overhead(control::tracker_memory() + room);
            let progress = symbols.resolve(&mut stacks.iter().copied(), Duration::MAX);
            assert_eq!(progress, Progress { named: 40, total: 40, more: false });
            assert_eq!(symbols.over_limit(), 40);
            assert!(!symbols.full.load(Ordering::Relaxed));
            let site = symbols.site(stacks[0]).unwrap();
            assert!(site.function.contains(name), "{}", site.function);
            assert_eq!((&*site.file, site.line), ("<unknown>", 0));
        }
    }

    #[test]
    fn a_batch_stops_when_its_time_is_up_and_the_next_goes_on() {
        let symbols = Symbols::new();
        let stacks = code(4 * LEAST_PER_BATCH);
        for round in 1..=4 {
            let progress = symbols.resolve(&mut stacks.iter().copied(), Duration::ZERO);
            let (named, total) = (round * LEAST_PER_BATCH, stacks.len());
            assert_eq!(progress, Progress { named, total, more: round < 4 });
        }
    }

    #[test]
    fn a_stack_that_needs_several_batches_is_gone_on_with() {
        let symbols = Symbols::new();
        let addresses: Vec<usize> = code(3 * LEAST_PER_BATCH).into_iter().flatten().copied().collect();
        let stack: &'static [usize] = addresses.leak();
        let resolve = || symbols.resolve(&mut std::iter::once(stack), Duration::ZERO);
        for _ in 1..3 {
            assert_eq!(resolve(), Progress { named: 0, total: 1, more: true });
            assert!(symbols.traceback(stack, 32, false).is_none());
        }
        assert_eq!(resolve(), Progress { named: 1, total: 1, more: false });
        assert!(symbols.traceback(stack, 32, false).is_some());
    }

    #[test]
    fn another_threads_batch_is_waited_for_as_long_as_there_is_time() {
        let symbols = Symbols::new();
        let stack = here();
        let resolve = |budget| symbols.resolve(&mut std::iter::once(stack), budget);
        let other = Batch::begin(&symbols, Instant::now(), Duration::ZERO).unwrap();
        let begun = Instant::now();
        let budget = Duration::from_millis(20);
        assert_eq!(resolve(budget), Progress { named: 0, total: 1, more: true });
        assert!(begun.elapsed() >= budget);
        drop(other);
        assert_eq!(resolve(budget), Progress { named: 1, total: 1, more: false });
    }

    #[test]
    fn two_threads_may_name_at_once() {
        let symbols = Symbols::new();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let stack = here();
                    let progress = symbols.resolve(&mut std::iter::once(stack), Duration::MAX);
                    assert_eq!(progress, Progress { named: 1, total: 1, more: false });
                });
            }
        });
    }

    #[test]
    fn the_test_executable_has_lines_and_a_build_id() {
        assert_eq!(global().quality(), "lines");
        if let Some(id) = build_id() {
            assert!(id.len() >= 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
        assert!(std::ptr::eq(global(), global()));
    }
}
