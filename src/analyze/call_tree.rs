//! Builds a call tree of bounded size, oldest frame first, from stacks and their totals: pure functions on values.
//!
//! Any thread may use it. The tree is expanded where most is held, so the cost is one pass over the stacks for each of
//! their frames that matters: some 20 ms for 10,000 stacks.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use crate::analyze::frame::{Frame, Traceback};
use crate::analyze::snapshot::statistic::Totals;
use crate::base::error::Error;

/// Totals of one stack.
#[derive(Clone, Debug)]
pub(crate) struct StackTotals {
    /// `None` while the stack has no names.
    pub traceback: Option<Traceback>,
    pub totals: Totals,
}

/// Quantity that the width of a node shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Bytes,
    Blocks,
    /// Bytes gained by the stacks that gained any; those that lost some count nothing.
    Growth,
}

impl Value {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Value::Bytes => "bytes",
            Value::Blocks => "blocks",
            Value::Growth => "growth",
        }
    }

    fn of(self, totals: &Totals) -> u64 {
        match self {
            Value::Bytes => totals.size,
            Value::Blocks => totals.count,
            Value::Growth => totals.size_diff.max(0).unsigned_abs(),
        }
    }
}

impl FromStr for Value {
    type Err = Error;

    fn from_str(text: &str) -> Result<Value, Error> {
        [Value::Bytes, Value::Blocks, Value::Growth]
            .into_iter()
            .find(|value| value.name() == text)
            .ok_or_else(|| {
                Error::new(format_args!("value: {text:?} is not known, allowed are bytes, blocks, growth"))
            })
    }
}

/// Kind of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NodeKind {
    /// All stacks.
    Root,
    Frame(Arc<Frame>),
    /// Stacks whose oldest frames were cut off.
    Cut,
    /// Stacks without names.
    Unnamed,
    /// Remainder of the node above that found no room among its other nodes.
    Remainder,
    /// Part below the root, while blocks are sampled: bytes of the total that no sample accounts for.
    Other,
}

/// Node of the call tree: all stacks that pass through the same frames.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub kind: NodeKind,
    /// Totals of these stacks together, wherever they end: those of the children, and of the stacks that end here.
    pub totals: Totals,
    /// Width of the node; never less than that of the children together.
    pub value: u64,
    pub stacks: usize,
    /// Children, largest first; after them a rest, then *other*.
    pub children: Vec<Node>,
}

impl Node {
    /// Sets the total of the root; the part that estimated stacks leave of it becomes *other*.
    pub(crate) fn of_total(mut self, total: Totals, value: Value) -> Node {
        let (other, total) = self.totals.beside(total);
        if other != Totals::default() {
            let width = value.of(&other);
            self.totals = total;
            self.value = self.value.saturating_add(width);
            let (kind, stacks, children) = (NodeKind::Other, 0, Vec::new());
            self.children.push(Node { kind, totals: other, value: width, stacks, children });
        }
        self
    }
}

/// Builds the tree of these stacks, with at most `most` nodes below the root, and a rest below each.
pub(crate) fn tree(stacks: &[StackTotals], value: Value, most: usize) -> Node {
    let mut builder = Builder { stacks, value, frames: FrameIds::default() };
    let mut made = vec![builder.node(Key::Root, 0, (0..stacks.len() as u32).collect())];
    let mut next = BinaryHeap::from([(made[0].value, Reverse(0))]);
    while let Some((_, Reverse(at))) = next.pop() {
        let room = most + 1 - made.len();
        let (depth, members) = (made[at].depth, std::mem::take(&mut made[at].members));
        let (groups, rest) = builder.groups(&members, depth, room);
        for (key, members) in groups {
            let node = builder.node(key, depth + 1, members);
            let child = made.len();
            next.push((node.value, Reverse(child)));
            made.push(node);
            made[at].children.push(child);
        }
        made[at].rest = (!rest.is_empty()).then(|| builder.leaf(NodeKind::Remainder, &rest));
    }
    // Children come after their parent, so from the end each finds its own finished.
    let mut finished: Vec<Option<Node>> = Vec::new();
    finished.resize_with(made.len(), || None);
    for (at, node) in made.into_iter().enumerate().rev() {
        let children = node.children.iter().filter_map(|&child| finished[child].take()).chain(node.rest);
        finished[at] = Some(Node {
            kind: builder.frames.kind(node.key),
            totals: node.totals,
            value: node.value,
            stacks: node.stacks,
            children: children.collect(),
        });
    }
    finished.swap_remove(0).unwrap_or(Node {
        kind: NodeKind::Root,
        totals: Totals::default(),
        value: 0,
        stacks: 0,
        children: Vec::new(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Root,
    Cut,
    Unnamed,
    Frame(u32),
}

/// Node while the tree grows.
struct Growing {
    key: Key,
    depth: usize,
    /// Indices into the stacks; moved to the children once they are assigned.
    members: Vec<u32>,
    totals: Totals,
    value: u64,
    stacks: usize,
    children: Vec<usize>,
    rest: Option<Node>,
}

struct Builder<'a> {
    stacks: &'a [StackTotals],
    value: Value,
    frames: FrameIds,
}

impl Builder<'_> {
    fn sum(&self, members: &[u32]) -> (Totals, u64) {
        members.iter().fold((Totals::default(), 0), |(sum, value), &member| {
            let totals = self.stacks[member as usize].totals;
            (sum.plus(totals), value.saturating_add(self.value.of(&totals)))
        })
    }

    fn node(&self, key: Key, depth: usize, members: Vec<u32>) -> Growing {
        let (totals, value) = self.sum(&members);
        let stacks = members.len();
        Growing { key, depth, members, totals, value, stacks, children: Vec::new(), rest: None }
    }

    fn leaf(&self, kind: NodeKind, members: &[u32]) -> Node {
        let (totals, value) = self.sum(members);
        Node { kind, totals, value, stacks: members.len(), children: Vec::new() }
    }

    /// Returns the `room` groups that hold most of those whose stacks go on after `depth` steps, and the members
    /// that do not fit or hold nothing.
    fn groups(&mut self, members: &[u32], depth: usize, room: usize) -> (Vec<(Key, Vec<u32>)>, Vec<u32>) {
        let mut groups: Vec<(Key, Vec<u32>)> = Vec::new();
        let mut index: HashMap<Key, usize> = HashMap::new();
        // Deep down all stacks pass through the same frames: then nothing is looked up.
        let mut last: Option<(Step<'_>, usize)> = None;
        let mut rest = Vec::new();
        for &member in members {
            let step = step(self.stacks[member as usize].traceback.as_ref(), depth);
            if matches!(step, Step::End) {
                continue;
            }
            if room == 0 {
                rest.push(member);
                continue;
            }
            let at = match last {
                Some((before, at)) if before.is_same(step) => at,
                _ => {
                    let key = self.frames.key(step);
                    *index.entry(key).or_insert_with(|| {
                        groups.push((key, Vec::new()));
                        groups.len() - 1
                    })
                }
            };
            last = Some((step, at));
            groups[at].1.push(member);
        }
        let mut ordered: Vec<_> =
            groups.into_iter().map(|(key, members)| (self.sum(&members).1, key, members)).collect();
        // Ties in the order they were met, so that equal stacks give equal trees.
        ordered.sort_by_key(|&(value, ..)| Reverse(value));
        let kept = ordered.iter().take(room).take_while(|(value, ..)| *value > 0).count();
        rest.extend(ordered.split_off(kept).into_iter().flat_map(|(_, _, members)| members));
        (ordered.into_iter().map(|(_, key, members)| (key, members)).collect(), rest)
    }
}

/// Step of a stack from one depth to the next.
#[derive(Clone, Copy)]
enum Step<'a> {
    End,
    Cut,
    Unnamed,
    Frame(&'a Arc<Frame>),
}

impl Step<'_> {
    fn is_same(self, other: Step<'_>) -> bool {
        match (self, other) {
            (Step::Frame(one), Step::Frame(two)) => Arc::ptr_eq(one, two),
            (Step::Cut, Step::Cut) | (Step::Unnamed, Step::Unnamed) => true,
            _ => false,
        }
    }
}

fn step(traceback: Option<&Traceback>, depth: usize) -> Step<'_> {
    let Some(traceback) = traceback else {
        return if depth == 0 { Step::Unnamed } else { Step::End };
    };
    let frames = traceback.shared_frames();
    let is_cut = traceback.total_frames() > frames.len();
    if is_cut && depth == 0 {
        return Step::Cut;
    }
    match (frames.len() + usize::from(is_cut)).checked_sub(depth + 1) {
        Some(at) => Step::Frame(&frames[at]),
        None => Step::End,
    }
}

/// Numbers of frames: equal frames have equal numbers.
#[derive(Default)]
struct FrameIds {
    frames: Vec<Arc<Frame>>,
    by_value: HashMap<Arc<Frame>, u32>,
    /// Numbers by address of the frame: nearly every frame is shared by all stacks that show it.
    by_place: HashMap<usize, u32>,
}

impl FrameIds {
    fn key(&mut self, step: Step<'_>) -> Key {
        match step {
            Step::Cut => Key::Cut,
            Step::Unnamed => Key::Unnamed,
            Step::End => Key::Root,
            Step::Frame(frame) => {
                let place = Arc::as_ptr(frame) as usize;
                Key::Frame(*self.by_place.entry(place).or_insert_with(|| {
                    *self.by_value.entry(frame.clone()).or_insert_with(|| {
                        self.frames.push(frame.clone());
                        self.frames.len() as u32 - 1
                    })
                }))
            }
        }
    }

    fn kind(&self, key: Key) -> NodeKind {
        match key {
            Key::Root => NodeKind::Root,
            Key::Cut => NodeKind::Cut,
            Key::Unnamed => NodeKind::Unnamed,
            Key::Frame(at) => NodeKind::Frame(self.frames[at as usize].clone()),
        }
    }
}

/// Adds up stacks with the same frames, in the order of first occurrence.
pub(crate) fn merge_equal_stacks(stacks: Vec<StackTotals>) -> Vec<StackTotals> {
    let mut frames = FrameIds::default();
    let mut index: HashMap<Vec<Key>, usize> = HashMap::new();
    let mut merged: Vec<StackTotals> = Vec::new();
    for held in stacks {
        let mut path = Vec::new();
        while let step @ (Step::Cut | Step::Unnamed | Step::Frame(_)) =
            step(held.traceback.as_ref(), path.len())
        {
            path.push(frames.key(step));
        }
        match index.get(&path) {
            Some(&at) => merged[at].totals = merged[at].totals.plus(held.totals),
            None => {
                index.insert(path, merged.len());
                merged.push(held);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(size: u64, count: u64, size_diff: i64, count_diff: i64) -> Totals {
        Totals { size, size_diff, count, count_diff }
    }

    /// Builds a stack from a path, most recent frame first; the last letter is the oldest frame.
    fn held(path: &str, totals: Totals) -> StackTotals {
        let frames = path.chars().map(|name| Frame::new(Some(&name.to_string()), "a.rs", 1));
        StackTotals { traceback: Some(Traceback::new(frames)), totals }
    }

    /// Prints a node as `name value(children)`.
    fn shown(node: &Node) -> String {
        let name = match &node.kind {
            NodeKind::Root => "all".into(),
            NodeKind::Cut => "cut".into(),
            NodeKind::Unnamed => "unnamed".into(),
            NodeKind::Remainder => "rest".into(),
            NodeKind::Other => "other".into(),
            NodeKind::Frame(frame) => frame.name().into_owned(),
        };
        let children: Vec<String> = node.children.iter().map(shown).collect();
        match children.is_empty() {
            true => format!("{name} {}", node.value),
            false => format!("{name} {}({})", node.value, children.join(" ")),
        }
    }

    /// Checks that in each figure the children hold no more than their node; the remainder ends at the node.
    fn check(node: &Node) {
        let below = node.children.iter().fold(Totals::default(), |sum, child| sum.plus(child.totals));
        assert!(below.size <= node.totals.size && below.count <= node.totals.count, "{}", shown(node));
        assert!(node.children.iter().map(|child| child.value).sum::<u64>() <= node.value);
        assert!(node.children.iter().map(|child| child.stacks).sum::<usize>() <= node.stacks);
        node.children.iter().for_each(check);
    }

    fn some() -> Vec<StackTotals> {
        vec![
            held("cba", totals(100, 1, 10, 1)),
            held("dba", totals(50, 2, -5, 0)),
            held("ba", totals(7, 1, 0, 0)),
            held("ea", totals(300, 3, 300, 3)),
            held("x", totals(1, 90, 0, 0)),
        ]
    }

    #[test]
    fn the_oldest_frame_comes_first_and_most_before_less() {
        let all = tree(&some(), Value::Bytes, 100);
        assert_eq!(shown(&all), "all 458(a 457(e 300 b 157(c 100 d 50)) x 1)");
        assert_eq!((all.totals, all.stacks), (totals(458, 97, 305, 4), 5));
        check(&all);
        let blocks = tree(&some(), Value::Blocks, 100);
        assert_eq!(shown(&blocks), "all 97(x 90 a 7(b 4(d 2 c 1) e 3))");
        check(&blocks);
    }

    #[test]
    fn growth_is_what_grew_and_the_figures_say_the_difference() {
        let all = tree(&some(), Value::Growth, 100);
        assert_eq!(shown(&all), "all 310(a 310(e 300 b 10(c 10 rest 0)) rest 0)");
        assert_eq!(all.totals.size_diff, 305);
        check(&all);
        assert_eq!(shown(&tree(&[held("a", totals(9, 1, -1, 0))], Value::Growth, 100)), "all 0(rest 0)");
    }

    #[test]
    fn the_root_is_the_exact_total_beside_estimates() {
        let of = |value, total| tree(&some(), value, 1).of_total(total, value);
        let exact = of(Value::Bytes, totals(458, 97, 305, 4));
        assert_eq!(shown(&exact), "all 458(a 457(rest 457) rest 1)");
        let more = of(Value::Bytes, totals(1_000, 100, 300, 5));
        assert_eq!(shown(&more), "all 1000(a 457(rest 457) rest 1 other 542)");
        assert_eq!((more.totals, more.stacks), (totals(1_000, 100, 300, 5), 5));
        check(&more);
        let growth = of(Value::Growth, totals(1_000, 100, 400, 5));
        assert_eq!(shown(&growth), "all 405(a 310(rest 310) rest 0 other 95)");
        check(&growth);
        // Estimates above all there is are the total.
        let less = of(Value::Bytes, totals(400, 90, 305, 4));
        assert_eq!((shown(&less), less.totals), (shown(&exact), exact.totals));
        check(&less);
    }

    #[test]
    fn few_nodes_show_what_holds_most() {
        for (most, expected) in [
            (0, "all 458(rest 458)"),
            (1, "all 458(a 457(rest 457) rest 1)"),
            (2, "all 458(a 457(rest 457) x 1)"),
            (3, "all 458(a 457(e 300 rest 157) x 1)"),
            (4, "all 458(a 457(e 300 b 157(rest 150)) x 1)"),
            (5, "all 458(a 457(e 300 b 157(c 100 rest 50)) x 1)"),
        ] {
            let all = tree(&some(), Value::Bytes, most);
            assert_eq!(all.totals, totals(458, 97, 305, 4));
            assert_eq!(shown(&all), expected, "{most}");
            check(&all);
        }
    }

    #[test]
    fn cut_and_nameless_stacks_are_below_the_root() {
        let frames: Arc<[Arc<Frame>]> = Arc::new([Arc::new(Frame::new(Some("b"), "a.rs", 1))]);
        let cut = StackTotals { traceback: Some(Traceback::shared(frames, 2)), totals: totals(5, 1, 5, 1) };
        let nameless = StackTotals { traceback: None, totals: totals(3, 1, 3, 1) };
        let all = tree(&[cut.clone(), nameless.clone(), held("b", totals(1, 1, 1, 1))], Value::Bytes, 100);
        assert_eq!(shown(&all), "all 9(cut 5(b 5) unnamed 3 b 1)");
        assert_eq!(shown(&tree(&[], Value::Bytes, 100)), "all 0");
        let merged = merge_equal_stacks(vec![
            cut.clone(),
            nameless.clone(),
            cut,
            held("b", totals(1, 1, 1, 1)),
            nameless,
        ]);
        let sizes: Vec<u64> = merged.iter().map(|held| held.totals.size).collect();
        assert_eq!(sizes, [10, 6, 1]);
    }

    #[test]
    fn equal_frames_are_one_wherever_they_lie() {
        let stacks = [held("ba", totals(1, 1, 0, 0)), held("ba", totals(2, 1, 0, 0))];
        assert_eq!(shown(&tree(&stacks, Value::Bytes, 100)), "all 3(a 3(b 3))");
        assert_eq!(merge_equal_stacks(stacks.to_vec()).len(), 1);
    }

    /// Builds a tree of 100,000 stacks without common frames, which has no more nodes than asked for.
    #[test]
    fn a_hundred_thousand_stacks_stay_bounded() {
        let stacks: Vec<StackTotals> = (0..100_000_u32)
            .map(|at| {
                let frames = (0..3).map(|depth| Frame::new(Some("f"), "a.rs", at % 10_u32.pow(5 - depth)));
                StackTotals { traceback: Some(Traceback::new(frames)), totals: totals(10, 1, 1, 0) }
            })
            .collect();
        let all = tree(&stacks, Value::Bytes, 3_000);
        fn count(node: &Node) -> usize {
            1 + node.children.iter().map(count).sum::<usize>()
        }
        assert!(count(&all) <= 2 * 3_000 + 2, "{}", count(&all));
        assert_eq!(all.totals, totals(1_000_000, 100_000, 100_000, 0));
        check(&all);
    }
}
