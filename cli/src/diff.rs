//! Two snapshot files → a row for each group, as `tracemalloc` prints them.

use std::io::{self, BufWriter, Write};

use heapgauge::Filter;

use crate::arguments::{Diff, Scope};
use crate::failure::Failure;
use crate::file::read;

pub fn run(options: &Diff) -> Result<(), Failure> {
    let (mut old, mut new) = (read(&options.old)?, read(&options.new)?);
    if let Some(Scope { key, value }) = &options.scope {
        let filter = [Filter::include("*").scope(key, value)];
        (old, new) = (old.filter_traces(&filter), new.filter_traces(&filter));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    for row in new.compare_to(&old, options.group_by).iter().take(options.top) {
        writeln!(out, "{row}").map_err(Failure::of_output)?;
    }
    out.flush().map_err(Failure::of_output)
}
