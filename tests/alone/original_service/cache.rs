//! Keeps its size.

pub struct Cache {
    _entries: Vec<Vec<u8>>,
}

impl Cache {
    /// Makes a cache of that many entries of one size, and one of another.
    #[inline(never)]
    pub fn of(many: usize, size: usize, last: usize) -> Cache {
        let mut entries = super::untracked(many + 1);
        for _ in 0..many {
            entries.push(Vec::with_capacity(size));
        }
        entries.push(Vec::with_capacity(last));
        Cache { _entries: entries }
    }
    pub const MANY_LINE: u32 = line!() - 5;
}
