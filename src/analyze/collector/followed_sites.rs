//! Keeps every site that was ever chosen, with its live counts of now: for outlets that cannot take a series back.
//!
//! Used under the collector's lock; costs a look-up for each site followed.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use super::report::SiteRow;
use crate::analyze::symbols::Site;

/// Sites that were chosen once. With a limit of 0, which is the default, it is off and costs nothing.
#[derive(Default)]
pub(crate) struct Followed {
    limit: usize,
    /// Sites in the order in which they were chosen first.
    sites: Vec<Arc<Site>>,
    ids: HashSet<u64>,
    /// Sites that came when there was no place left.
    refused: HashSet<u64>,
}

impl Followed {
    /// Raises the limit. True if it was lower.
    #[cfg(any(feature = "prometheus", test))]
    pub(crate) fn raise(&mut self, limit: usize) -> bool {
        let is_more = self.limit < limit;
        self.limit = self.limit.max(limit);
        is_more
    }

    /// Follows the chosen sites as far as there is room, and returns the rows of all followed sites. A chosen site has
    /// the figures of its row; `row` makes those of the others.
    pub(crate) fn rows(&mut self, chosen: &[SiteRow], row: impl Fn(&Arc<Site>) -> SiteRow) -> Vec<SiteRow> {
        if self.limit == 0 {
            return Vec::new();
        }
        for row in chosen {
            if self.ids.contains(&row.id()) {
                continue;
            }
            if self.sites.len() < self.limit {
                self.ids.insert(row.id());
                self.sites.push(row.named().clone());
            } else {
                self.refused.insert(row.id());
            }
        }
        let chosen_or = |site: &Arc<Site>| {
            let chosen = chosen.iter().find(|row| row.id() == site.id);
            chosen.cloned().unwrap_or_else(|| row(site))
        };
        self.sites.iter().map(chosen_or).collect()
    }

    /// Returns the number of sites that found no place.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.len() as u64
    }
}
