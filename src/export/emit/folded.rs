//! [`Profile`] → folded stacks, the text flame graphs are drawn from: `main;load;parse 4096`.
//!
//! Any thread. Memory: each function's name once, and four bytes for each frame of each distinct line.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::analyze::frame::Frame;
use crate::analyze::profile::{Profile, ProfileValue};
use crate::analyze::symbols::{self, Placed};
use crate::record::control;

/// Number of stacks that are added up in one piece; some ten milliseconds.
const STACKS: usize = 2_048;
/// Length of a piece of the text, bytes; it ends at the next end of a line.
const PIECE: usize = 64 << 10;

impl Profile {
    /// Renders folded stacks: a line for each, functions from the thread's first to the site's with `;` between them, and
    /// the value. Most tools that draw flame graphs read it.
    ///
    /// Stacks that pass through the same functions are one line; the largest value comes first. A `;` in a name
    /// becomes a comma. The values add up to the total; a line that is not above zero is left out, which only a
    /// difference has.
    ///
    /// About 0.1 s for 10,000 stacks, and some hundred bytes each.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Profile, ProfileValue};
    ///
    /// let before = Profile::take()?;
    /// let kept = [Box::new(1u64), Box::new(2u64)];
    /// let folded = Profile::take()?.since(&before).to_folded(ProfileValue::LiveBlocks);
    /// let values = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    /// assert_eq!(values.map(|value| value.parse::<u64>().unwrap()).sum::<u64>(), 2);
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn to_folded(&self, value: ProfileValue) -> String {
        self.fold(value, false)
    }

    /// Renders [`to_folded`](Profile::to_folded) with a frame for each key and value of the [scope](crate::Scope) before the thread's
    /// first: `route=/search;tenant=acme;main;load;parse 4096`. Stacks in no scope have none.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Profile, ProfileValue, Scope};
    ///
    /// let kept = Scope::new("tenant", "acme").in_scope(|| vec![1u8; 4_096]);
    /// let folded = Profile::take()?.to_folded_with_scopes(ProfileValue::LiveBytes);
    /// assert!(folded.lines().any(|line| line.starts_with("tenant=acme;") && line.ends_with(" 4096")));
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn to_folded_with_scopes(&self, value: ProfileValue) -> String {
        self.fold(value, true)
    }

    fn fold(&self, value: ProfileValue, with_scopes: bool) -> String {
        let _own = control::internal();
        let mut folder = Folder::new(value, with_scopes);
        while folder.fold_piece(self) {}
        let mut lines = folder.finish();
        let mut out = String::new();
        while let Some(piece) = lines.next_piece() {
            out += &piece;
        }
        out
    }
}

/// Sums of folded stacks, while they are added up.
pub(crate) struct Folder {
    value: ProfileValue,
    /// Keys and values of the scope are frames, the first of a line.
    with_scopes: bool,
    /// Number of stacks that are added.
    done: usize,
    names: HashMap<Arc<str>, u32>,
    /// Sums by the numbers of the names, leaf first.
    sums: HashMap<Box<[u32]>, i64>,
}

impl Folder {
    pub(crate) fn new(value: ProfileValue, with_scopes: bool) -> Folder {
        Folder { value, with_scopes, done: 0, names: HashMap::new(), sums: HashMap::new() }
    }

    /// Adds some stacks of one profile. False: there are no more.
    pub(crate) fn fold_piece(&mut self, profile: &Profile) -> bool {
        let _own = control::internal();
        let symbols = symbols::global();
        self.fold(profile, &|stack| symbols.placed(stack, profile.traceback_limit))
    }

    fn fold(&mut self, profile: &Profile, placed: &dyn Fn(&[usize]) -> Vec<Placed>) -> bool {
        let end = profile.stacks.len().min(self.done + STACKS);
        for stack in &profile.stacks[self.done..end] {
            let amount = self.value.of(&stack.counts);
            if amount == 0 {
                continue;
            }
            let frames = placed(&profile.addresses(stack));
            let scope = if self.with_scopes { profile.scope(stack) } else { &[] };
            let roots = scope.iter().rev().map(|(key, value)| clean(&format!("{key}={value}")));
            let line = frames.iter().map(|placed| name(&placed.frame)).chain(roots).map(|name| {
                let next = self.names.len() as u32;
                *self.names.entry(name).or_insert(next)
            });
            *self.sums.entry(line.collect()).or_default() += amount;
        }
        self.done = end;
        end < profile.stacks.len()
    }

    pub(crate) fn finish(self) -> Lines {
        let _own = control::internal();
        let mut names: Vec<(u32, Arc<str>)> = self.names.into_iter().map(|(name, at)| (at, name)).collect();
        names.sort_unstable_by_key(|&(at, _)| at);
        let mut lines: Vec<(Box<[u32]>, i64)> = self.sums.into_iter().filter(|(_, sum)| *sum > 0).collect();
        // Names are numbered as they come, so the order is the same each time.
        lines.sort_unstable_by(|one, other| (Reverse(one.1), &one.0).cmp(&(Reverse(other.1), &other.0)));
        Lines { names: names.into_iter().map(|(_, name)| name).collect(), lines: lines.into_iter() }
    }
}

/// Lines that have not been written yet.
pub(crate) struct Lines {
    names: Vec<Arc<str>>,
    /// Places in `names`, leaf first, and the value; in the order they are written.
    lines: std::vec::IntoIter<(Box<[u32]>, i64)>,
}

impl Lines {
    /// Returns some whole lines; `None` at the end.
    pub(crate) fn next_piece(&mut self) -> Option<String> {
        let _own = control::internal();
        let mut out = String::new();
        while out.len() < PIECE {
            let Some((line, value)) = self.lines.next() else { break };
            for (at, &name) in line.iter().rev().enumerate() {
                out.push_str(if at == 0 { "" } else { ";" });
                out.push_str(&self.names[name as usize]);
            }
            // Writing to a text cannot fail.
            let _ = writeln!(out, " {value}");
        }
        (!out.is_empty()).then_some(out)
    }
}

/// Cleans a name, so that nothing in it can be taken for the end of a frame or of a line.
fn name(frame: &Frame) -> Arc<str> {
    let unsafe_here = |c: char| c == ';' || c.is_control();
    match &frame.function {
        Some(function) if !function.contains(unsafe_here) => function.clone(),
        _ => clean(&frame.name()),
    }
}

fn clean(name: &str) -> Arc<str> {
    let clean = |c: char| match c {
        ';' => ',',
        c if c.is_control() => ' ',
        c => c,
    };
    name.chars().map(clean).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::profile::{Calls, sample, sample_in_scopes};
    use crate::base::random_input::{Random, inputs};

    const ONE: &[usize] = &[0x1000_0001, 0x1000_0002];
    const TWO: &[usize] = &[0x1000_0003, 0x1000_0002];
    const THREE: &[usize] = &[0x1000_0004];

    /// Returns the function names by address, most recent first.
    fn placed(stack: &[usize]) -> Vec<Placed> {
        let functions: &[(usize, usize, &str)] = match stack[0] {
            0x1000_0001 => &[(0, 0, "shop::inlined"), (0, 1, "shop::load"), (1, 0, "shop::main")],
            0x1000_0003 => &[(0, 0, "shop::inlined"), (0, 1, "shop::load"), (1, 0, "shop::main")],
            _ => &[(0, 0, "a;b\nc")],
        };
        let frame = |name| Arc::new(Frame::new(Some(name), "a.rs", 1));
        functions.iter().map(|&(at, inlined, name)| Placed { at, inlined, frame: frame(name) }).collect()
    }

    fn lines(profile: &Profile, value: ProfileValue, placed: &dyn Fn(&[usize]) -> Vec<Placed>) -> Lines {
        let mut folder = Folder::new(value, true);
        while folder.fold(profile, placed) {}
        folder.finish()
    }

    fn folded(value: ProfileValue) -> String {
        let profile = sample(&[(ONE, [100, 10, 40, 4]), (TWO, [8, 1, 0, 0]), (THREE, [500, 2, 300, 1])]);
        let mut lines = lines(&profile, value, &placed);
        std::iter::from_fn(|| lines.next_piece()).collect()
    }

    #[test]
    fn equal_lines_are_one_and_no_name_ends_one() {
        assert_eq!(folded(ProfileValue::LiveBytes), "a,b c 200\nshop::main;shop::load;shop::inlined 68\n");
        assert_eq!(folded(ProfileValue::LiveBlocks), "shop::main;shop::load;shop::inlined 7\na,b c 1\n");
        assert_eq!(
            folded(ProfileValue::AllocatedBytes),
            "a,b c 500\nshop::main;shop::load;shop::inlined 108\n"
        );
    }

    #[test]
    fn scopes_are_the_first_frames_where_they_are_asked_for() {
        let one = [100, 10, 40, 4];
        let profile = sample_in_scopes(&[(ONE, one, "acme"), (ONE, one, ""), (TWO, one, "acme")]);
        let text = |with_scopes| {
            let mut folder = Folder::new(ProfileValue::LiveBytes, with_scopes);
            while folder.fold(&profile, &placed) {}
            folder.finish().next_piece().unwrap()
        };
        assert_eq!(text(false), "shop::main;shop::load;shop::inlined 180\n");
        assert_eq!(
            text(true),
            "route=/a,b;tenant=acme;shop::main;shop::load;shop::inlined 120\nshop::main;shop::load;shop::inlined 60\n"
        );
    }

    #[test]
    fn long_texts_come_in_pieces_of_whole_lines() {
        let addresses: Vec<[usize; 1]> = (1..=20_000).map(|at| [at << 16]).collect();
        let stacks: Vec<(&[usize], [u64; 4])> = addresses.iter().map(|at| (&at[..], [1, 1, 0, 0])).collect();
        let profile = sample(&stacks);
        let own = |stack: &[usize]| {
            let frame = Arc::new(Frame::new(Some(&format!("f{}", stack[0] >> 16)), "a.rs", 1));
            vec![Placed { at: 0, inlined: 0, frame }]
        };
        let mut lines = lines(&profile, ProfileValue::LiveBytes, &own);
        let pieces: Vec<String> = std::iter::from_fn(|| lines.next_piece()).collect();
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.ends_with(" 1\n")), "{}", pieces.len());
        assert_eq!(pieces.concat().lines().count(), 20_000);
    }

    #[test]
    fn a_stack_without_names_is_not_lost() {
        // In no module: it has no name and never will have one.
        let profile = sample(&[(THREE, [500, 2, 300, 1])]);
        assert_eq!(profile.to_folded(ProfileValue::LiveBytes), "<unknown> 200\n");
    }

    /// A line is its frames and its value, whatever the functions are called, and the values add up.
    #[test]
    fn any_profile_is_lines_that_add_up() {
        let mut random = Random::new();
        let calls = Calls::new(&mut random);
        for _ in 0..inputs(600) {
            let profile = calls.profile(&mut random);
            for value in ProfileValue::ALL {
                let mut expected: HashMap<Vec<String>, i64> = HashMap::new();
                for stack in &profile.stacks {
                    let names =
                        calls.placed(&profile.addresses(stack)).into_iter().rev().map(|placed| {
                            placed.frame.name().replace(';', ",").replace(char::is_control, " ")
                        });
                    *expected.entry(names.collect()).or_default() += value.of(&stack.counts);
                }
                expected.retain(|_, sum| *sum > 0);
                let mut lines = lines(&profile, value, &|stack| calls.placed(stack));
                let text: String = std::iter::from_fn(|| lines.next_piece()).collect();
                let read = text.split_terminator('\n').map(|line| {
                    let (names, value) = line.rsplit_once(' ').unwrap();
                    let names = names.split(';').map(str::to_owned);
                    (names.collect::<Vec<String>>(), value.parse::<i64>().unwrap())
                });
                assert_eq!(read.collect::<HashMap<_, _>>(), expected, "{text}");
            }
        }
    }
}
