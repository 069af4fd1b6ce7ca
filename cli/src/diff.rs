//! Two snapshot files → a row for each group, as `tracemalloc` prints them.

use std::io::{self, BufWriter, Write};

use crate::arguments::Diff;
use crate::failure::Failure;
use crate::file::read;

pub fn run(options: &Diff) -> Result<(), Failure> {
    let (old, new) = (read(&options.old)?, read(&options.new)?);
    let mut out = BufWriter::new(io::stdout().lock());
    for row in new.compare_to(&old, options.group_by).iter().take(options.top) {
        writeln!(out, "{row}").map_err(Failure::of_output)?;
    }
    out.flush().map_err(Failure::of_output)
}
