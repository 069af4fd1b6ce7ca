//! Cache of names: each text once, each frame once, the frames of each address, the site of each stack.
#![forbid(unsafe_code)]

use super::function_starts::unnamed_frame;
use super::loaded_modules::{self, Module};
use super::site::{Lost, Site};
use super::site_rules::{Choice, CodeOwner, SiteRules, SiteSettings};
use crate::analyze::frame::{Frame, UNKNOWN};
use crate::record::fork;
use crate::record::raw_snapshot::RawStack;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

/// Lowest address of code: there is none in the first page.
pub(super) const LOWEST_CODE: usize = 4096;

/// Sites of dead stacks that are kept in any case.
const FEW_DEAD: usize = 4096;

/// Name of a stack whose addresses were lost.
pub(super) const UNRECORDED: &str = "[unrecorded]";

/// Names found: every text once, every frame once, and by address the frames that begin there.
pub(super) struct NameCache {
    rules: SiteRules,
    /// Epoch of the modules these names are from.
    pub(super) epoch: u64,
    texts: HashSet<Arc<str>>,
    text_bytes: usize,
    frames: Vec<(Arc<Frame>, CodeOwner)>,
    frame_index: HashMap<Arc<Frame>, u32>,
    /// Indices into `frames`, most recent first, address by address.
    chains: Vec<u32>,
    /// Range in `chains` by return address: its start and length.
    addresses: HashMap<usize, (u32, u32)>,
    /// Addresses that lack their lines for want of memory.
    pub(super) lost: HashMap<usize, Lost>,
    /// Time at which lines were first lost for now, and the least room that some of them would have needed.
    pub(super) lost_at: Option<Instant>,
    pub(super) lost_room: u64,
    sites: HashMap<(Arc<Frame>, Arc<str>), Arc<Site>>,
    /// Sites by id of the stack. No id is given out twice, so none can get the site of another stack.
    stacks: HashMap<u32, Arc<Site>>,
    /// Epoch of the traces that these stacks are of.
    stacks_epoch: u32,
    /// Start of the function, by a frame that goes by module and offset.
    pub(super) starts: HashMap<Frame, u64>,
    /// Modules, read when the first address has to go by module and offset.
    modules: OnceCell<Vec<Module>>,
}

impl Default for NameCache {
    fn default() -> NameCache {
        NameCache {
            rules: SiteRules::default(),
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
            stacks_epoch: 0,
            starts: HashMap::default(),
            modules: OnceCell::new(),
        }
    }
}

impl NameCache {
    /// Returns the site of the stack with this id, or `None` while it has no final name. `full`: nothing is kept, and an
    /// address without a name goes by module and offset.
    pub(super) fn site(&mut self, id: u32, addresses: &[usize], full: bool) -> Option<Arc<Site>> {
        if let Some(site) = self.stacks.get(&id) {
            return Some(site.clone());
        }
        let frames = self.frames(addresses, full)?;
        let choice = self.rules.choose(&frames);
        let frame = self.function_of(&frames[choice.site].0);
        let via = SiteRules::via(&frames, choice);
        if let Some(lost) = self.lost(addresses, full) {
            let site = Arc::new(Site { lost: Some(lost), ..Site::of(&frame, via) });
            if !full {
                self.stacks.insert(id, site.clone());
            }
            return Some(site);
        }
        let of = (frame, Arc::from(via));
        if let Some(site) = self.sites.get(&of) {
            let site = site.clone();
            self.stacks.insert(id, site.clone());
            return Some(site);
        }
        let site = Arc::new(Site::of(&of.0, via));
        if !full {
            self.sites.insert(of, site.clone());
            self.stacks.insert(id, site.clone());
        }
        Some(site)
    }

    /// Returns the nearest frame of a stack as a site, or `None` while it has no name.
    #[cfg(any(feature = "http", test))]
    pub(super) fn nearest(&self, addresses: &[usize], full: bool) -> Option<Site> {
        let frames = self.frames(addresses, full)?;
        let frame = self.function_of(&frames[self.rules.choose(&frames).nearest].0);
        Some(Site { lost: self.lost(addresses, full), ..Site::of(&frame, "") })
    }

    /// Returns whether the site of a stack was chosen among frames that lack their lines for want of memory.
    fn lost(&self, addresses: &[usize], full: bool) -> Option<Lost> {
        let lost = |address: &usize| match self.lost.get(address) {
            // The C library's and the like are no sites, with lines or without.
            Some(_) if self.is_standard(*address) => None,
            Some(lost) => Some(*lost),
            None => (full && !self.knows(*address)).then_some(Lost::ForNow),
        };
        let first = addresses.iter().position(|address| lost(address).is_some())?;
        // Where a frame before them is the site whatever they are, nothing is lost.
        let frames = self.frames(&addresses[..first], full).filter(|_| first > 0);
        let certain = frames.is_some_and(|frames| self.rules.choose(&frames).is_certain);
        if certain { None } else { addresses[first..].iter().filter_map(lost).max() }
    }

    /// Returns all frames of a stack, `None` while one of its addresses has no name. `full`: one without a name goes by
    /// module and offset.
    pub(super) fn frames(&self, addresses: &[usize], full: bool) -> Option<Vec<(Arc<Frame>, CodeOwner)>> {
        let mut frames = Vec::with_capacity(addresses.len() * 2);
        let mut each = |_: usize, frame: Arc<Frame>, owner: CodeOwner| frames.push((frame, owner));
        self.each_frame(addresses, full, &mut each)?;
        Some(frames)
    }

    /// Passes at least one frame to `each`, most recent first, with the index of its address in the stack. `None`: an
    /// address has no name, and `without_names` did not say that it may go by module and offset.
    pub(super) fn each_frame(
        &self,
        addresses: &[usize],
        without_names: bool,
        each: &mut dyn FnMut(usize, Arc<Frame>, CodeOwner),
    ) -> Option<()> {
        if addresses.is_empty() {
            each(0, Arc::new(Frame::new(Some(UNRECORDED), UNKNOWN, 0)), CodeOwner::Program);
            return Some(());
        }
        let mut any = false;
        for (at, address) in addresses.iter().enumerate() {
            // Some walks put a small number behind the thread's first frame.
            if *address <= LOWEST_CODE {
                continue;
            }
            match self.addresses.get(address) {
                Some(&(from, count)) => {
                    for &index in &self.chains[from as usize..][..count as usize] {
                        let (frame, owner) = &self.frames[index as usize];
                        each(at, frame.clone(), *owner);
                        any = true;
                    }
                }
                None if without_names => {
                    let modules = self.modules.get_or_init(|| fork::outside(loaded_modules::list));
                    let (frame, owner) = unnamed_frame(modules, None, address - 1);
                    each(at, Arc::new(frame), owner);
                    any = true;
                }
                None => return None,
            }
        }
        if !any {
            each(0, Arc::new(Frame::new(None, UNKNOWN, 0)), CodeOwner::Standard);
        }
        Some(())
    }

    /// Returns the frames of an address, most recent first, without looking anything up.
    pub(super) fn known_frames(
        &self,
        address: usize,
    ) -> Option<impl Iterator<Item = &(Arc<Frame>, CodeOwner)>> {
        let &(from, count) = self.addresses.get(&address)?;
        let chain = &self.chains[from as usize..][..count as usize];
        Some(chain.iter().map(|&index| &self.frames[index as usize]))
    }

    /// Returns the site of the stack with this id, if it was found before.
    pub(super) fn known_site(&self, id: u32) -> Option<&Arc<Site>> {
        self.stacks.get(&id)
    }

    /// Returns whether all frames of an address are the standard library's or of what runs below it.
    fn is_standard(&self, address: usize) -> bool {
        let chain = self
            .addresses
            .get(&address)
            .map(|&(from, count)| &self.chains[from as usize..][..count as usize]);
        chain.is_some_and(|chain| chain.iter().all(|at| self.frames[*at as usize].1 == CodeOwner::Standard))
    }

    pub(super) fn knows(&self, address: usize) -> bool {
        address <= LOWEST_CODE || self.addresses.contains_key(&address)
    }

    /// Notes that lines were lost which would have needed so much room. The time of the first such loss counts: in a
    /// program that always meets new code, the last one would never be long ago.
    pub(super) fn lose(&mut self, room: u64) {
        self.lost_at.get_or_insert_with(Instant::now);
        self.lost_room = self.lost_room.min(room);
    }

    /// Returns the frame itself or, without a name, its function: a site is not one call among those of a function.
    fn function_of(&self, frame: &Arc<Frame>) -> Arc<Frame> {
        match self.starts.get(&**frame) {
            Some(start) => Arc::new(Frame { offset: Some(*start), ..(**frame).clone() }),
            None => frame.clone(),
        }
    }

    /// Returns the positions of the nearest frame and of the site's in a stack.
    pub(super) fn choose(&self, frames: &[(Arc<Frame>, CodeOwner)]) -> Choice {
        self.rules.choose(frames)
    }

    /// Changes the rules that sites are chosen by. Sites already given out may change.
    pub(super) fn set_rules(&mut self, settings: &SiteSettings) {
        self.rules.set(settings);
        self.stacks.clear();
    }

    /// Forgets the sites of stacks that are not among these, ascending by id, once most kept sites are such.
    pub(super) fn forget_dead(&mut self, alive: &[RawStack]) {
        if self.stacks.len() > 2 * alive.len() + FEW_DEAD {
            self.stacks.retain(|id, _| alive.binary_search_by_key(id, |stack| stack.id).is_ok());
            self.stacks.shrink_to(2 * alive.len());
        }
    }

    /// Forgets the sites of stacks of another epoch: the same stacks have new ids.
    pub(super) fn follow_epoch(&mut self, epoch: u32) {
        if self.stacks_epoch != epoch {
            self.stacks_epoch = epoch;
            self.stacks.clear();
        }
    }

    /// Forgets all names.
    pub(super) fn forget(&mut self) {
        let rules = std::mem::take(&mut self.rules);
        let names = NameCache { epoch: self.epoch, rules, ..NameCache::default() };
        // It may take milliseconds to free them.
        let forgotten = std::mem::replace(self, names);
        fork::outside(|| drop(forgotten));
    }

    pub(super) fn missing(&self, addresses: &[usize]) -> Vec<usize> {
        addresses.iter().copied().filter(|address| !self.knows(*address)).collect()
    }

    pub(super) fn insert(&mut self, address: usize, frames: Vec<(Frame, CodeOwner)>) {
        let from = self.chains.len() as u32;
        let count = frames.len() as u32;
        for (frame, owner) in frames {
            let at = self.frame(frame, owner);
            self.chains.push(at);
        }
        self.addresses.insert(address, (from, count));
    }

    fn frame(&mut self, frame: Frame, owner: CodeOwner) -> u32 {
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
        self.frames.push((frame.clone(), owner));
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

    pub(super) fn bytes(&self) -> usize {
        // A hash table's bucket is its entry and a byte of control; two counters lie before an Arc's value.
        const COUNTERS: usize = 16;
        fn buckets<T>(capacity: usize) -> usize {
            capacity * 8 / 7 * (size_of::<T>() + 1)
        }
        self.text_bytes
            + self.texts.len() * COUNTERS
            + buckets::<Arc<str>>(self.texts.capacity())
            + self.frames.capacity() * size_of::<(Arc<Frame>, CodeOwner)>()
            + self.frames.len() * (size_of::<Frame>() + COUNTERS)
            + buckets::<(Arc<Frame>, u32)>(self.frame_index.capacity())
            + self.chains.capacity() * size_of::<u32>()
            + buckets::<(usize, (u32, u32))>(self.addresses.capacity())
            + buckets::<(usize, Lost)>(self.lost.capacity())
            + buckets::<((Arc<Frame>, Arc<str>), Arc<Site>)>(self.sites.capacity())
            + self.sites.len() * (size_of::<Site>() + COUNTERS)
            + buckets::<(u32, Arc<Site>)>(self.stacks.capacity())
            + buckets::<(Frame, u64)>(self.starts.capacity())
    }
}
