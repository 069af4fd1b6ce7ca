//! Names found so far, for a reader that must neither allocate nor wait: memory is about to run out.
#![forbid(unsafe_code)]

use super::Symbols;
use super::cache::{LOWEST_CODE, NameCache, UNRECORDED};
use super::loaded_modules::{self, Module};
use super::site::Site;
use super::site_rules::{self, Choice, CodeOwner};
use crate::analyze::frame::{Frame, UNKNOWN};
use crate::record::control;
use crate::record::fork::mutex::ForkGuard;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Frames of a stack that there is room for. A longer one, with many inlined calls, is cut.
const MOST_FRAMES: usize = 512;

/// Names of this process, held for moments.
pub(crate) struct KnownNames<'a>(ForkGuard<'a, NameCache>);

/// Frames of one stack, read into memory that is kept for the next one, and the modules of addresses without a name.
pub(crate) struct StackFrames {
    frames: Vec<(Arc<Frame>, CodeOwner)>,
    /// By frame, the address that has no name; 0 where the frame is its name.
    unnamed: Vec<usize>,
    modules: Vec<Module>,
    unknown: Arc<Frame>,
    unrecorded: Arc<Frame>,
    choice: Choice,
}

/// One frame: with a name, or the place in its module.
pub(crate) enum KnownFrame<'a> {
    Named(&'a Frame),
    Unnamed { module: &'a str, offset: u64 },
}

impl Symbols {
    /// Returns the names found so far. `None` if another thread keeps them for longer than `wait`.
    pub(crate) fn known(&self, wait: Duration) -> Option<KnownNames<'_>> {
        self.names.try_lock_for(wait).map(KnownNames)
    }
}

impl KnownNames<'_> {
    /// Returns the site of the stack with this id, if it has been asked for before.
    pub(crate) fn site(&self, id: u32) -> Option<&Arc<Site>> {
        self.0.known_site(id)
    }
}

impl StackFrames {
    /// Sets memory aside, and reads the list of modules. Allocates.
    pub(crate) fn new() -> StackFrames {
        let _own = control::internal();
        StackFrames {
            frames: Vec::with_capacity(MOST_FRAMES),
            unnamed: Vec::with_capacity(MOST_FRAMES),
            modules: loaded_modules::list(),
            unknown: Arc::new(Frame::new(None, UNKNOWN, 0)),
            unrecorded: Arc::new(Frame::new(Some(UNRECORDED), UNKNOWN, 0)),
            choice: Choice { nearest: 0, site: 0, is_certain: false },
        }
    }

    /// Reads the list of modules again. Allocates.
    pub(crate) fn refresh(&mut self) {
        let _own = control::internal();
        self.modules = loaded_modules::list();
    }

    /// Reads the frames of a stack; without names all of them go by module and offset.
    pub(crate) fn read(
        &mut self,
        addresses: impl IntoIterator<Item = usize>,
        names: Option<&KnownNames<'_>>,
    ) {
        self.frames.clear();
        self.unnamed.clear();
        let mut addresses = addresses.into_iter().peekable();
        if addresses.peek().is_none() {
            self.frames.push((self.unrecorded.clone(), CodeOwner::Program));
            self.unnamed.push(0);
        }
        for address in addresses.filter(|address| *address > LOWEST_CODE) {
            if self.frames.len() == MOST_FRAMES {
                break;
            }
            if let Some(chain) = names.and_then(|names| names.0.known_frames(address)) {
                for (frame, owner) in chain.take(MOST_FRAMES - self.frames.len()) {
                    self.frames.push((frame.clone(), *owner));
                    self.unnamed.push(0);
                }
                continue;
            }
            let module = loaded_modules::index_of(&self.modules, address - 1).map(|at| &self.modules[at]);
            let owner =
                module.map_or(CodeOwner::Standard, |module| site_rules::owner_of_module(&module.name));
            self.frames.push((self.unknown.clone(), owner));
            self.unnamed.push(address);
        }
        if self.frames.is_empty() {
            self.frames.push((self.unknown.clone(), CodeOwner::Standard));
            self.unnamed.push(0);
        }
        let nearest = Choice { nearest: 0, site: 0, is_certain: false };
        self.choice = names.map_or(nearest, |names| names.0.choose(&self.frames));
    }

    /// Returns the positions of the frames from the nearest on: at most `limit`, and as many as it takes to the site's.
    pub(crate) fn shown(&self, limit: usize) -> Range<usize> {
        let Choice { nearest, site, .. } = self.choice;
        nearest..self.frames.len().min(nearest + limit.max(site - nearest + 1))
    }

    /// Returns the index of the site's frame among those that are shown.
    pub(crate) fn site_index(&self) -> usize {
        self.choice.site - self.choice.nearest
    }

    /// Returns a number that is the same for stacks with the same site's frame, by its address or its name.
    pub(crate) fn place_of_site(&self) -> u64 {
        let at = self.choice.site;
        match self.unnamed[at] {
            0 => Arc::as_ptr(&self.frames[at].0) as u64,
            address => address as u64,
        }
    }

    /// Returns the number of frames.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns the frame of a position.
    pub(crate) fn frame(&self, at: usize) -> KnownFrame<'_> {
        // The call is before the address it returns to.
        let address = self.unnamed[at].wrapping_sub(1);
        match loaded_modules::index_of(&self.modules, address) {
            Some(module) if self.unnamed[at] != 0 => {
                let Module { name, low, .. } = &self.modules[module];
                KnownFrame::Unnamed { module: name, offset: (address - low) as u64 }
            }
            _ => KnownFrame::Named(&self.frames[at].0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of this test are read by another thread's batch or by none: either way it goes by what is known.
    #[test]
    fn an_address_without_a_name_goes_by_its_module() {
        let mut frames = StackFrames::new();
        let here = an_address_without_a_name_goes_by_its_module as fn() as usize + 1;
        frames.read([here, 1], None);
        assert_eq!((frames.len(), frames.shown(32), frames.site_index()), (1, 0..1, 0));
        let KnownFrame::Unnamed { module, offset } = frames.frame(0) else { panic!("it has a name") };
        assert!(!module.is_empty() && offset > 0);
        frames.read([], None);
        assert!(matches!(frames.frame(0), KnownFrame::Named(frame) if frame.name() == UNRECORDED));
        frames.read([1], None);
        assert!(matches!(frames.frame(0), KnownFrame::Named(frame) if frame.name() == UNKNOWN));
    }

    #[test]
    fn names_that_were_found_are_read_without_looking_them_up() {
        let stack = &[names_that_were_found_are_read_without_looking_them_up as fn() as usize + 1];
        let symbols = Symbols::new();
        symbols.resolve(&mut std::iter::once(stack), Duration::MAX);
        let site = symbols.site(7, stack).unwrap();
        let names = symbols.known(Duration::ZERO).unwrap();
        assert_eq!(names.site(7).unwrap().id, site.id);
        let mut frames = StackFrames::new();
        frames.read(*stack, Some(&names));
        let shown: Vec<_> = frames.shown(32).map(|at| frames.frame(at)).collect();
        assert!(matches!(shown[frames.site_index()], KnownFrame::Named(frame) if frame.line() == site.line));
        assert!(symbols.known(Duration::ZERO).is_none(), "the names are held");
    }
}
