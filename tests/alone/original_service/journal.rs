//! Shrinks.

pub struct Journal {
    pages: Vec<Vec<u8>>,
}

impl Journal {
    #[inline(never)]
    pub fn of(pages: usize) -> Journal {
        let mut journal = Journal { pages: super::untracked(pages) };
        for _ in 0..pages {
            journal.pages.push(Vec::with_capacity(1_024));
        }
        journal
    }

    pub fn forget(&mut self, pages: usize) {
        self.pages.truncate(self.pages.len() - pages);
    }
}
