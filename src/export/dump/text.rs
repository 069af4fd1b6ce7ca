//! Largest and fastest growing sites as text, in memory that is set aside: for the termination log and for a failure.

use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use super::WAIT_FOR_NAMES;
use super::largest::Largest;
use crate::analyze::memory_limit::MemoryLimit;
use crate::analyze::symbols::{self, KnownFrame, StackFrames};
use crate::record::raw_snapshot::RawStack;

/// Sites listed by size, and by growth.
const LISTED: usize = 10;
/// Most characters of a function or file in a line.
const LONGEST_NAME: usize = 160;

/// Sum over the stacks of a site.
struct SiteSum {
    key: u64,
    bytes: u64,
    growth: i64,
    /// Index of its largest stack.
    stack: usize,
}

/// Sums by site, and the text that is made from them.
pub(super) struct SiteText {
    sums: Vec<SiteSum>,
    text: String,
    most: usize,
}

impl SiteText {
    /// Sets memory aside for so many stacks, and a text of so many bytes.
    pub(super) fn new(stacks: usize, most: usize) -> SiteText {
        SiteText { sums: Vec::with_capacity(stacks), text: String::with_capacity(most + 1024), most }
    }

    /// Makes the text: use of the limit, then sites by size and by growth since `then`, most important first.
    pub(super) fn make(
        &mut self,
        largest: &Largest,
        then: &Past,
        limit: MemoryLimit,
        frames: &mut StackFrames,
    ) -> &str {
        self.sum(largest, then, frames);
        self.text.clear();
        let live = (largest.totals.live_bytes(), largest.totals.live_blocks());
        let _ = self.write(live, largest, then, limit, frames);
        if self.text.len() > self.most {
            // Whole lines.
            let end = self.text.as_bytes()[..self.most].iter().rposition(|byte| *byte == b'\n');
            self.text.truncate(end.map_or(0, |at| at + 1));
        }
        &self.text
    }

    fn sum(&mut self, largest: &Largest, then: &Past, frames: &mut StackFrames) {
        self.sums.clear();
        for (stack, raw) in largest.iter().enumerate() {
            let names = symbols::global().known(WAIT_FOR_NAMES);
            let site = names.as_ref().and_then(|names| names.site(raw.id));
            let key = match site {
                Some(site) => site.id,
                None => {
                    frames.read(largest.addresses(raw), names.as_ref());
                    frames.place_of_site()
                }
            };
            let bytes = raw.counts.live_bytes();
            let growth = bytes as i64 - then.bytes(key_of_stack(largest, raw)) as i64;
            self.sums.push(SiteSum { key, bytes, growth, stack });
        }
        self.sums.sort_unstable_by_key(|sum| (sum.key, sum.stack));
        self.sums.dedup_by(|next, sum| {
            let is_same = next.key == sum.key;
            if is_same {
                sum.bytes += next.bytes;
                sum.growth += next.growth;
            }
            is_same
        });
    }

    fn write(
        &mut self,
        (bytes, blocks): (u64, u64),
        largest: &Largest,
        then: &Past,
        limit: MemoryLimit,
        frames: &mut StackFrames,
    ) -> fmt::Result {
        let SiteText { sums, text, most } = self;
        if let MemoryLimit { limit: Some(limit), usage: Some(usage) } = limit {
            write!(text, "heapgauge: {} of {} used, ", Size(usage as i64), Size(limit as i64))?;
        } else {
            text.push_str("heapgauge: ");
        }
        writeln!(text, "{} live in {blocks} blocks\nlargest:", Size(bytes as i64))?;
        sums.sort_unstable_by_key(|sum| (std::cmp::Reverse(sum.bytes), sum.stack));
        for sum in sums.iter().take(LISTED) {
            write!(text, "  {}", Size(sum.bytes as i64))?;
            write_site(text, largest, sum.stack, frames)?;
        }
        let seconds = then.kept.elapsed().as_secs_f64();
        sums.sort_unstable_by_key(|sum| (std::cmp::Reverse(sum.growth), sum.stack));
        let mut growing = sums.iter().filter(|sum| sum.growth > 0).take(LISTED).peekable();
        if growing.peek().is_some() {
            writeln!(text, "growing, in {seconds:.1} s:")?;
            for sum in growing {
                if text.len() > *most {
                    break;
                }
                write!(text, "  +{}", Size(sum.growth))?;
                write_site(text, largest, sum.stack, frames)?;
            }
        }
        Ok(())
    }
}

/// Appends function, file and line of a stack's site, and its id where it has one.
fn write_site(text: &mut String, largest: &Largest, stack: usize, frames: &mut StackFrames) -> fmt::Result {
    let Some(raw) = largest.iter().nth(stack) else { return Ok(()) };
    let names = symbols::global().known(WAIT_FOR_NAMES);
    if let Some(site) = names.as_ref().and_then(|names| names.site(raw.id)) {
        let function = shortened(&site.function);
        return writeln!(
            text,
            "  {function}  {}:{}  site={:016x}",
            shortened(&site.file),
            site.line,
            site.id
        );
    }
    frames.read(largest.addresses(raw), names.as_ref());
    match frames.frame(frames.shown(1).start + frames.site_index()) {
        KnownFrame::Named(frame) => {
            let function = frame.function().map_or("<unknown>", shortened);
            writeln!(text, "  {function}  {}:{}", shortened(frame.file()), frame.line())
        }
        KnownFrame::Unnamed { module, offset } => writeln!(text, "  {module}+{offset:#x}"),
    }
}

/// Returns the end of a long name, which says most.
fn shortened(name: &str) -> &str {
    match name.char_indices().rev().nth(LONGEST_NAME - 1) {
        Some((at, _)) => &name[at..],
        None => name,
    }
}

/// Displays bytes by the largest unit, without allocating.
pub(super) struct Size(pub i64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0.unsigned_abs() {
            0..1024 => write!(f, "{} B", self.0),
            1024..1_048_576 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", bytes / 1_048_576.0),
            _ => write!(f, "{:.1} GiB", bytes / 1_073_741_824.0),
        }
    }
}

/// Returns a hash of addresses and scope, which a stack keeps when it gets a new id.
fn key_of_stack(largest: &Largest, stack: &RawStack) -> u64 {
    let mut hasher = DefaultHasher::new();
    largest.addresses(stack).packed().hash(&mut hasher);
    stack.scope.hash(&mut hasher);
    hasher.finish()
}

/// Live bytes of the largest stacks some seconds ago.
pub(super) struct Past {
    /// By the key of the stack, ascending.
    stacks: Vec<(u64, u64)>,
    kept: Instant,
}

impl Past {
    /// Makes an empty one, of now: all that there will be has grown since.
    pub(super) fn with_room_for(stacks: usize) -> Past {
        Past { stacks: Vec::with_capacity(stacks), kept: Instant::now() }
    }

    /// Keeps the present bytes.
    pub(super) fn keep(&mut self, largest: &Largest) {
        self.stacks.clear();
        self.stacks
            .extend(largest.iter().map(|stack| (key_of_stack(largest, stack), stack.counts.live_bytes())));
        self.stacks.sort_unstable();
        self.kept = Instant::now();
    }

    fn bytes(&self, key: u64) -> u64 {
        self.stacks.binary_search_by_key(&key, |(key, _)| *key).map_or(0, |at| self.stacks[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let text = |bytes| Size(bytes).to_string();
        assert_eq!(
            [text(0), text(1023), text(1536), text(-(5 << 20)), text(3 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "-5.0 MiB", "3.0 GiB"]
        );
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        let long = format!("{}::ende", "ä".repeat(200));
        assert_eq!(shortened(&long).chars().count(), LONGEST_NAME);
        assert!(shortened(&long).ends_with("::ende"));
        assert_eq!(shortened("short"), "short");
    }
}
