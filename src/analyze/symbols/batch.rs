//! Looks names up in one thread at a time, within a budget of time and of memory.
//!
//! Data parsed meanwhile is dropped when a batch ends, and within one whenever the overhead limit is passed.
#![forbid(unsafe_code)]

use super::Symbols;
use super::elf::ElfImage;
use super::function_starts::{FunctionStarts, unnamed_frame};
use super::loaded_modules::{self, Module};
use super::module_symbols::{ModuleSymbols, NameDetail, SymbolFrame};
use super::site::Lost;
use super::site_rules::{CodeOwner, owner_of_module};
use crate::analyze::frame::Frame;
use crate::analyze::memory_limit;
use crate::record::control;
use crate::record::fork;
use crate::record::fork::mutex;
use crate::record::trim;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Least number of addresses that a batch names whatever its time budget. All addresses of its first stack are named as
/// well, so that every batch gets on, and the stack asked for first has its name first.
pub(super) const LEAST_PER_BATCH: usize = 16;

/// Least number of addresses that a parse should serve: opening line tables anew takes some 50 ms, in an executable of
/// 300 MB half a second.
const LEAST_PER_PARSE: usize = 16;

/// Number of parses in a row that serve fewer, after which a module is too large for the overhead limit.
const MAX_WASTED_PARSES: usize = 4;

/// Most bytes that may be left over from batches, freed but still resident: less is not worth giving back. They are also at most
/// this part of the overhead limit, as the system counts them.
const MAX_LEFT_OVER: u64 = 8 << 20;
const LEFT_OVER_PART: u64 = 8;
/// Bytes of one batch that are never worth giving back.
const LITTLE: usize = 1 << 20;

/// A run of name look-ups in one thread; the data it reads is dropped when it ends.
pub(super) struct Batch<'a> {
    symbols: &'a Symbols,
    modules: Vec<Module>,
    /// Modules by index, opened when their first address comes.
    opened: HashMap<usize, ModuleSymbols>,
    pub(super) named: usize,
    /// Addresses named since the parsed debug information was last dropped.
    named_since: usize,
    /// Most bytes that one address has added to it, but for those that opened a module.
    largest_step: u64,
    /// Module of the last address.
    last_module: Option<usize>,
    /// Number of times in a row that it was dropped after fewer than [`LEAST_PER_PARSE`] addresses.
    wasted_parses: usize,
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

impl<'a> Batch<'a> {
    /// Begins a batch; `None` if another thread's batch has not ended by then.
    pub(super) fn begin(symbols: &'a Symbols, since: Instant, budget: Duration) -> Option<Batch<'a>> {
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
        let modules = loaded_modules::list();
        Some(Batch {
            symbols,
            modules,
            opened: HashMap::new(),
            named: 0,
            named_since: 0,
            largest_step: 0,
            last_module: None,
            wasted_parses: 0,
            asked_backtrace: false,
            tag_map: control::tracker_memory().saturating_sub(control::own_bytes()),
            tables: control::tracker_memory().saturating_sub(symbols.memory_bytes()),
            resident: trim::private_bytes(),
        })
    }

    pub(super) fn name(&mut self, address: usize) {
        // Names that fill the budget leave no room to look for more.
        if self.kept() > self.limit() {
            self.symbols.full.store(true, Ordering::Relaxed);
            self.symbols.over_limit.fetch_add(1, Ordering::Relaxed);
            // Worth another try when there is room for a quarter more names.
            let held = self.symbols.memory_bytes();
            self.symbols.names().lose(held / 4);
            return;
        }
        let module = loaded_modules::index_of(&self.modules, address - 1);
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
        self.wasted_parses = if self.named_since < LEAST_PER_PARSE { self.wasted_parses + 1 } else { 0 };
        if self.wasted_parses >= MAX_WASTED_PARSES {
            let room = 2 * self.headroom();
            if let Some(opened) = self.opened.get_mut(&key(module)) {
                opened.detail = opened.detail.less();
                opened.lost = Some(Lost::ForNow);
                opened.lost_room = room;
            }
            self.wasted_parses = 0;
            self.largest_step = 0;
        }
        self.drop_parsed();
    }

    /// Chooses the detail of a module that there is room for, and drops other parsed data where both do not fit.
    fn open(&mut self, module: Option<usize>) {
        let nominal = self.symbols.nominal();
        let limit = self.tables.saturating_add(room_for_names(self.symbols, self.tables));
        let own = limit.saturating_sub(self.tables + self.symbols.memory_bytes());
        let [address_space, private] = trim::memory_headroom();
        let cgroup = headroom_of_cgroup();
        let private = private.min(cgroup);
        if !self.opened.contains_key(&key(module)) {
            let of = module.map(|at| &self.modules[at]);
            let image = of.and_then(ElfImage::open);
            let units_cost = image.as_ref().map_or(0, ElfImage::units_cost);
            if units_cost > 0 && self.held().saturating_add(units_cost) > limit {
                self.drop_parsed();
            }
            let room = limit.saturating_sub(self.held()).min(private / 2);
            let of = module.map(|at| &self.modules[at]);
            let mut opened = ModuleSymbols::of(of.zip(image), room);
            if units_cost > LITTLE as u64 {
                // They were inflated, and are free again.
                self.trim_left_over();
            }
            if opened.lacks_roots {
                // Lines without the directories of crates would be other names.
                opened.detail = NameDetail::Functions;
                opened.lose(units_cost, nominal, units_cost);
            }
            self.opened.insert(key(module), opened);
        }
        let Some(opened) = self.opened.get_mut(&key(module)) else { return };
        if opened.parsed {
            return;
        }
        let image = opened.image.as_ref();
        let of_lines = image.map_or(0, ElfImage::lines_cost);
        let of_functions = image.map_or(0, ElfImage::functions_cost);
        let maps = image.map_or(0, ElfImage::length);
        let cost = |detail| match detail {
            NameDetail::Lines => of_lines,
            NameDetail::Functions => of_functions,
            NameDetail::Offsets => 0,
        };
        let room = own.min(private / 2);
        while cost(opened.detail) > room && opened.detail != NameDetail::Offsets
            || opened.detail == NameDetail::Lines
                && cost(opened.detail).saturating_add(maps) > address_space / 2
        {
            // Where it is a limit of the process that leaves no more, room within the overhead limit does not help.
            let room = if of_lines > own || of_lines > cgroup / 2 { of_lines } else { u64::MAX };
            opened.lose(cost(opened.detail), nominal, room);
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

    fn headroom(&self) -> u64 {
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
        self.trim_left_over();
    }

    fn frames(&mut self, module: Option<usize>, address: usize) -> Vec<(Frame, CodeOwner)> {
        let detail = self.opened.get(&key(module)).map_or(NameDetail::Offsets, |opened| opened.detail);
        // The C library's and the like are no sites, with lines or without.
        let is_runtime =
            module.is_some_and(|at| owner_of_module(&self.modules[at].name) == CodeOwner::Standard);
        if detail != NameDetail::Lines && !is_runtime {
            self.symbols.over_limit.fetch_add(1, Ordering::Relaxed);
        }
        let opened = self.opened.get_mut(&key(module)).filter(|_| detail != NameDetail::Offsets);
        if self.modules.is_empty() && detail == NameDetail::Lines {
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
        vec![unnamed_frame(&self.modules, starts, address)]
    }

    /// Returns the table of the module's functions, opened when its first address without a name comes.
    fn starts(&mut self, module: Option<usize>) -> Option<&FunctionStarts> {
        let of = &self.modules[module?];
        let opened = self.opened.get_mut(&key(module))?;
        opened.starts.get_or_insert_with(|| FunctionStarts::open(of)).as_ref()
    }

    /// Returns the memory that this batch has freed to the system, and that of earlier ones where it has become much: each thread
    /// that names has a heap of its own in the C library, and may leave its share. Returns the bytes that are still left over.
    fn trim_left_over(&self) -> u64 {
        let grown = || trim::private_bytes().saturating_sub(self.resident);
        let limit = self.symbols.max_overhead.load(Ordering::Relaxed);
        // The names found are among these bytes, and a batch of few names has freed little. Earlier batches of this thread have
        // left free memory that is not in memory: as much as the limit at most, and blocks are taken from there first.
        trim::trim_thread_heap(usize::try_from(limit).unwrap_or(usize::MAX), &|| grown() <= LITTLE);
        let left_over = self.symbols.left_over.load(Ordering::Relaxed).saturating_add(grown() as u64);
        let most = (limit / LEFT_OVER_PART).min(MAX_LEFT_OVER);
        if left_over > most && trim::malloc_trim_if_small() { 0 } else { left_over }
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
        self.symbols.left_over.store(self.trim_left_over(), Ordering::Relaxed);
        self.symbols.batch_of.store(0, Ordering::Release);
    }
}

fn look_up(address: usize) -> Vec<SymbolFrame> {
    let _inside = fork::enter();
    let mut found = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        found.push(SymbolFrame {
            name: symbol.name().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()),
            file: symbol.filename().map(|path| path.to_string_lossy().into_owned()),
            line: symbol.lineno().unwrap_or(0),
            #[cfg(target_os = "linux")]
            entry: None,
        });
    });
    found
}

/// Returns the bytes that names and the making of them may take beside everything else, `tables`: the rest of the
/// limit, and at least their share.
pub(super) fn room_for_names(symbols: &Symbols, tables: u64) -> u64 {
    let left = symbols.max_overhead.load(Ordering::Relaxed).saturating_sub(tables);
    left.max(symbols.share.load(Ordering::Relaxed))
}

/// Returns the bytes that the process's cgroup leaves it now. The program may have grown since the overhead limit was set,
/// and the kernel could end it. Names are looked for again when there is room. No memory is reserved for them early: it would be
/// as much as the line tables, for the whole life of the process.
pub(super) fn headroom_of_cgroup() -> u64 {
    memory_limit::memory_headroom_bytes().unwrap_or(u64::MAX)
}

/// Returns whether something of this size would not fit into the limit if hardly anything else were there. `limit` is the
/// one that was set, or the usual one: then the answer depends on nothing but the program and its settings.
pub(super) fn fits_never(cost: u64, limit: u64) -> bool {
    cost > limit / 8 * 7
}
