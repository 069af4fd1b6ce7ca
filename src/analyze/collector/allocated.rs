//! Counts the bytes ever allocated by each site, from the counts of its stacks.
//!
//! Used under the collector's lock. A stack's counts vanish once it has died, and all do at a `clear`: so what each stack has allocated since the
//! last look is added to its site. About four bytes a stack are kept, and two words a site.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::site_index::SiteIndex;
use crate::analyze::leb128::{pack, unpack};
use crate::record::raw_snapshot::RawStack;

/// Bytes ever allocated, by site.
#[derive(Debug, Default)]
pub(super) struct AllocatedBySite {
    sites: HashMap<u64, u64>,
    /// Ids of the stacks that are counted, ascending, as steps, each with its allocated bytes; in LEB128.
    counted: Vec<u8>,
}

impl AllocatedBySite {
    /// Adds what was allocated since the last look. A stack without a final name is counted once it has one.
    pub(super) fn look(&mut self, names: &SiteIndex, stacks: &[RawStack]) {
        let before = std::mem::take(&mut self.counted);
        let mut before = counted(&before).peekable();
        let mut last = 0;
        for stack in stacks {
            while before.next_if(|(id, _)| *id < stack.id).is_some() {}
            let before = before.next_if(|(id, _)| *id == stack.id).map(|(_, bytes)| bytes);
            let Some(site) =
                names.get(stack.id).map(|index| &names.sites[index]).filter(|site| site.is_final())
            else {
                continue;
            };
            let bytes = stack.counts.allocated_bytes;
            *self.sites.entry(site.id).or_default() += bytes.saturating_sub(before.unwrap_or(0));
            pack(&mut self.counted, u64::from(stack.id - last));
            pack(&mut self.counted, bytes);
            last = stack.id;
        }
    }

    /// Returns the bytes that a site has ever allocated, as far as they were seen.
    pub(super) fn of(&self, site: u64) -> u64 {
        self.sites.get(&site).copied().unwrap_or(0)
    }
}

fn counted(mut packed: &[u8]) -> impl Iterator<Item = (u32, u64)> {
    let mut id = 0_u32;
    std::iter::from_fn(move || {
        id = id.wrapping_add(unpack(&mut packed)? as u32);
        Some((id, unpack(&mut packed)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::frame::Frame;
    use crate::analyze::symbols::Site;
    use crate::record::raw_snapshot::Counts;
    use std::sync::Arc;

    fn stack(id: u32, allocated_bytes: u64) -> RawStack {
        RawStack::sample(id, Counts { allocated_bytes, ..Counts::default() })
    }

    #[test]
    fn the_bytes_of_a_site_never_fall_and_wait_for_names() {
        let [first, second] = [1, 2].map(|line| Arc::new(Site::of(&Frame::new(Some("f"), "f.rs", line), "")));
        let mut names = SiteIndex::default();
        names.insert(2, first.clone());
        names.insert(9_000, first.clone());
        let mut allocated = AllocatedBySite::default();
        let mut look = |names: &SiteIndex, stacks: &[(u32, u64)]| {
            let stacks: Vec<RawStack> = stacks.iter().map(|&(id, bytes)| stack(id, bytes)).collect();
            allocated.look(names, &stacks);
            (allocated.of(first.id), allocated.of(second.id))
        };
        assert_eq!(look(&names, &[(2, 100), (3, 50), (9_000, 10)]), (110, 0));
        assert_eq!(look(&names, &[(2, 130), (3, 60), (9_000, 10)]), (140, 0));
        names.insert(3, second.clone());
        assert_eq!(look(&names, &[(2, 130), (3, 70), (9_000, 10)]), (140, 70));
        // A stack dies, and another one of its site is born; then all are forgotten.
        assert_eq!(look(&names, &[(3, 70), (9_000, 11)]), (141, 70));
        assert_eq!(look(&names, &[]), (141, 70));
        names.insert(9_001, first.clone());
        assert_eq!(look(&names, &[(9_001, 5)]), (146, 70));
    }
}
