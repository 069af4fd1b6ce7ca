//! Site of each stack, by its id.
#![forbid(unsafe_code)]

use crate::analyze::symbols::Site;
use std::collections::HashMap;
use std::sync::Arc;

/// Number of stack ids in one page of [`SiteIndex`].
const PAGE: usize = 4096;

/// Number of pages without a live stack that are kept in any case.
const FEW_DEAD: usize = 16;

/// Site of each stack id. Ids of one epoch are dense, so pages answer without hashing;
/// ids far apart leave only the pages between them out.
#[derive(Default)]
pub(super) struct SiteIndex {
    /// Index into `sites` plus one; 0: not named yet.
    pages: Vec<Option<Box<[u32; PAGE]>>>,
    pub sites: Vec<Arc<Site>>,
    /// Site id, and whether it is final → index into `sites`.
    pub index: HashMap<(u64, bool), u32>,
}

impl SiteIndex {
    pub(super) fn get(&self, id: u32) -> Option<usize> {
        let id = id as usize;
        let slot = self.pages.get(id / PAGE)?.as_ref()?[id % PAGE];
        (slot as usize).checked_sub(1)
    }

    /// Forgets pages without one of these ids, once so many stacks that are alive do not need most of them.
    pub(super) fn forget_dead<I: Iterator<Item = u32>>(&mut self, alive: usize, ids: impl FnOnce() -> I) {
        let held = self.pages.iter().flatten().count();
        if held <= 2 * alive.div_ceil(PAGE) + FEW_DEAD {
            return;
        }
        let mut is_needed = vec![false; self.pages.len()];
        for id in ids() {
            if let Some(page) = is_needed.get_mut(id as usize / PAGE) {
                *page = true;
            }
        }
        let dead = self.pages.iter_mut().zip(is_needed).filter(|(_, is_needed)| !is_needed);
        dead.for_each(|(page, _)| *page = None);
    }

    /// Stores the site of a stack; two stacks of one site share its index.
    pub(super) fn insert(&mut self, id: u32, site: Arc<Site>) {
        let id = id as usize;
        if self.pages.len() <= id / PAGE {
            self.pages.resize_with(id / PAGE + 1, || None);
        }
        let page = self.pages[id / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        let index = *self.index.entry((site.id, site.is_final())).or_insert_with(|| {
            self.sites.push(site);
            self.sites.len() as u32 - 1
        });
        page[id % PAGE] = index + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::frame::Frame;

    #[test]
    fn sites_of_the_dead_are_forgotten_and_those_of_the_living_stay() {
        let mut names = SiteIndex::default();
        let site = Arc::new(Site::of(&Frame::new(Some("f"), "f.rs", 1), ""));
        let ids = || (0..100).map(|page| page * PAGE as u32 + 7);
        ids().for_each(|id| names.insert(id, site.clone()));
        let alive = || [7, 50 * PAGE as u32 + 7].into_iter();
        names.forget_dead(100 * PAGE, alive);
        assert!(ids().all(|id| names.get(id) == Some(0)), "few are dead");
        names.forget_dead(2, alive);
        assert_eq!(
            ids().filter(|id| names.get(*id).is_some()).collect::<Vec<_>>(),
            alive().collect::<Vec<_>>()
        );
        names.insert(7, site);
        assert_eq!(names.sites.len(), 1);
    }
}
