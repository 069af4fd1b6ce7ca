//! Memory of this process as the kernel counts it, from `/proc/self/statm`.
//!
//! Read side, any thread. The kernel sums the counts of each processor only now and then, so they may be off by some
//! pages per thread. Reading allocates nothing: memory may be what the caller is about to run out of.

use crate::record::tag::large;
use std::fs::File;
use std::io::Read;

/// Bytes of this process's address space and of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statm {
    /// Address space.
    pub size: u64,
    /// In memory.
    pub resident: u64,
    /// In memory, with a file behind them or shared.
    pub shared: u64,
    /// Private, writable address space: what `RLIMIT_DATA` limits.
    pub data: u64,
}

impl Statm {
    /// Reads the counts; `None` where the system has none.
    pub(crate) fn read() -> Option<Statm> {
        // Seven numbers of at most 20 digits.
        let mut text = [0; 160];
        let mut file = File::open("/proc/self/statm").ok()?;
        let len = file.read(&mut text).ok()?;
        Statm::parse(std::str::from_utf8(text.get(..len)?).ok()?, large::page_bytes() as u64)
    }

    /// Returns the bytes in memory that have no file behind them.
    pub(crate) fn private(&self) -> u64 {
        self.resident.saturating_sub(self.shared)
    }

    /// Parses the numbers, which count pages: size, resident, shared, text, lib, data, dt.
    fn parse(text: &str, page_bytes: u64) -> Option<Statm> {
        let mut fields =
            text.split_ascii_whitespace().map(|pages| pages.parse::<u64>().ok()?.checked_mul(page_bytes));
        let mut next = || fields.next()?;
        let (size, resident, shared) = (next()?, next()?, next()?);
        let (_text, _lib, data) = (next()?, next()?, next()?);
        Some(Statm { size, resident, shared, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_pages() {
        let statm = Statm::parse("5000 1234 600 1 0 300 0\n", 4096).unwrap();
        assert_eq!(
            statm,
            Statm { size: 20_480_000, resident: 5_054_464, shared: 2_457_600, data: 1_228_800 }
        );
        assert_eq!(statm.private(), 2_596_864);
        for wrong in
            ["", "5000", "5000 x 600 1 0 300 0", "5000 1234 600 1 0", "9223372036854775807 1 1 1 1 1 1"]
        {
            assert_eq!(Statm::parse(wrong, 4096), None, "{wrong}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_in_memory() {
        let statm = Statm::read().unwrap();
        assert!(statm.resident > 0 && statm.resident <= statm.size && statm.data <= statm.size, "{statm:?}");
    }
}
