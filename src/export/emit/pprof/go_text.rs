//! [`Profile`] → the text that Go writes for people.
//!
//! Any thread.

use std::fmt::Write as _;

use crate::analyze::profile::{Profile, ProfileValue};
use crate::analyze::symbols::{self, Placed};
use crate::record::control;
use crate::record::raw_snapshot::Counts;

/// Most stacks that are listed, a few megabytes at most; the others are summed up.
pub(super) const LISTED: usize = 1_000;

/// Renders the text Go writes with `?debug=1`: the stacks that hold most first, each with its frames.
#[cfg(feature = "http")]
pub(crate) fn text(profile: &Profile) -> String {
    let _own = control::internal();
    let symbols = symbols::global();
    render(profile, LISTED, &|stack| symbols.placed(stack, profile.traceback_limit))
}

/// Renders the text, by the frames that `placed` gives.
pub(super) fn render(profile: &Profile, listed: usize, placed: &dyn Fn(&[usize]) -> Vec<Placed>) -> String {
    let four = |counts: &Counts| {
        let [allocations, allocated, blocks, bytes] = ProfileValue::ALL.map(|value| value.of(counts));
        format!("{blocks}: {bytes} [{allocations}: {allocated}] @")
    };
    // Go names twice its interval here, and its reader scales such counts up; ours are scaled already.
    let kind = if profile.sample_interval_bytes == 0 { "heap/2" } else { "heapprofile" };
    let mut out = format!("heap profile: {} {kind}\n", four(&profile.totals()));
    let stacks = profile.largest_first();
    let (shown, others) = stacks.split_at(stacks.len().min(listed));
    for stack in shown {
        let addresses = profile.addresses(stack);
        let frames = placed(&addresses);
        let address = |frame: &Placed| addresses.get(frame.at).copied().unwrap_or(0);
        out += &four(&stack.counts);
        for call in frames.chunk_by(|one, next| one.at == next.at) {
            // Writing to a text cannot fail, here and below.
            let _ = write!(out, " {:#x}", address(&call[0]));
        }
        out.push('\n');
        if !profile.scope(stack).is_empty() {
            let labels: Vec<String> =
                profile.scope(stack).iter().map(|(key, value)| format!("{key:?}:{value:?}")).collect();
            let _ = writeln!(out, "# labels: {{{}}}", labels.join(", "));
        }
        for placed in &frames {
            let frame = &placed.frame;
            // A symbol may hold anything, and a line here is a line.
            let [name, file] = [&*frame.name(), &*frame.file].map(|text| text.replace(char::is_control, " "));
            let _ = writeln!(out, "#\t{:#x}\t{name}\t{file}:{}", address(placed), frame.line);
        }
        out.push('\n');
    }
    if !others.is_empty() {
        let mut rest = Counts::default();
        others.iter().for_each(|stack| rest += stack.counts);
        let _ = writeln!(out, "{}\n#\t{} other stacks", four(&rest), others.len());
    }
    out
}
