//! Site of each stack, by its id.
#![forbid(unsafe_code)]

use crate::analyze::symbols::Site;
use std::collections::HashMap;
use std::sync::Arc;

/// Number of stack ids in one page of [`SiteIndex`].
const PAGE: usize = 4096;

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
