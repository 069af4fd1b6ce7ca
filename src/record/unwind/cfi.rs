//! Registers → return addresses, by the `.eh_frame` unwind rules of the code on the stack.
//!
//! Every stock release build has these rules, for panics, but no frame pointers. A row of them nearly always says
//! "the frame's base is at the stack or frame pointer plus n, the caller's frame pointer is at base plus m or
//! unchanged, the return address is right below the base". [`gimli`] parses such a row once per thread and address;
//! it is kept packed and linked in [`crate::record::unwind::rule_cache`].
//!
//! A walk reads only the calling thread's own stack, between the stack pointer and the stack's end, and every step
//! ascends. On a foreign stack (a coroutine, a signal stack) the end is unknown: each step is limited to
//! [`FOREIGN_STEP`], and the kernel is asked whether a page is mapped before it is read. (Code that switches stacks
//! often has rules that do not describe the switch.)

pub(crate) use super::arch::Registers;
use super::arch::{self, WORD, frame_pointer, stack_pointer};
use super::eh_frame::{self, Lookup, Parser, RuleFound};
use super::{Entrance, Gather, fallback, modules};
use crate::base::hint::unlikely;
use crate::record::cache_counts::count_cache;
use crate::record::count::counters::{Direction, OwnerCounters, Table};
use crate::record::epoch::{self, MAX_ADDRESSES};
use crate::record::stack_id::cache::StackCache;
use crate::record::stack_id::fingerprint::Fingerprint;
pub(crate) use crate::record::stack_id::frame_layout::FrameLayout;
use crate::record::stack_id::frame_layout::SlotOffsets;
use crate::record::stack_id::frame_layout_cache::Key;
use crate::record::stack_id::stack_word::read as word;
use crate::record::thread::stack_bounds::{ForeignPages, StackBounds};
use crate::record::thread::{HotState, OwnerState};
use crate::record::unwind::rule_cache::{EntryRef, Rule, Rules};
use std::ptr::NonNull;

pub(super) const AVAILABLE: bool = true;

/// Largest frame accepted on a stack whose bounds are unknown, in bytes.
const FOREIGN_STEP: usize = 1 << 20;

/// Implements [`super::refresh`].
#[inline]
pub(super) fn refresh(owner: &mut OwnerState) {
    if owner.walk.rules.epoch != epoch::rules_epoch() {
        owner.walk.rules.forget();
        owner.walk.layouts.forget();
        owner.walk.rules.epoch = epoch::rules_epoch();
    }
}

/// Returns depth and discriminator of the layouts at this stack pointer. `None` on a foreign stack, and where the discriminator
/// would be beyond the stack's end.
#[inline(always)]
fn depth_and_discriminator(
    owner: &OwnerState,
    stack_pointer: usize,
    entrance: Entrance,
) -> Option<(usize, usize)> {
    // On a foreign stack this is more than the stack's size.
    let depth = owner.walk.bounds.end.wrapping_sub(stack_pointer);
    let offset = owner.walk.layouts.discriminators[entrance as usize] as usize;
    if unlikely(depth > owner.walk.bounds.size) || unlikely(offset >= depth) {
        count_cache!(out_of_bounds);
        return None;
    }
    // SAFETY: between this thread's stack pointer and the end of its own stack, and both are aligned.
    Some((depth, unsafe { word(stack_pointer + offset) }))
}

/// Returns the key of the layouts at this stack pointer, if there can be one.
fn key(owner: &OwnerState, stack_pointer: usize, entrance: Entrance) -> Option<Key> {
    depth_and_discriminator(owner, stack_pointer, entrance).map(|(depth, word)| Key::new(depth, word))
}

/// Result of a look-up whose stack is not the last one of the first layout of its key: that layout, if the key has one, with the
/// [`FrameLayout::words`] of the stack and the term of its scopes, in one sum. Valid as long as the thread stays busy.
pub(crate) type Missed = Option<(NonNull<FrameLayout>, u64)>;

/// Returns the frame layout of the stack if it is cached and the stack is the last one that had it: with the stack's id, which may
/// be stale, or 0 where there was none yet, and its count in this thread. Stores nothing in the buffer. The thread's caches are up
/// to date: see [`super::refresh`]. The stack is that of the function that this is inlined into, `hot` the thread's.
#[inline(always)]
pub(crate) fn lookup_last<'a>(
    hot: &HotState,
    owner: &'a mut OwnerState,
    entrance: Entrance,
) -> Result<&'a FrameLayout, Missed> {
    let sp = stack_pointer();
    let Some((depth, word)) = depth_and_discriminator(owner, sp, entrance) else { return Err(None) };
    let layout = owner.walk.layouts.likely(Key::new(depth, word), depth, word).ok_or(None)?;
    debug_assert!(
        // SAFETY: a valid layout, of this thread alone.
        unsafe { (*layout).extent() } <= owner.walk.bounds.end - sp,
        "a layout that ends behind the stack"
    );
    // SAFETY: finished by `learn`, at a depth that was not above this one: the lower halves of the two are equal. So its
    // words are between this stack pointer and the stack's end, and aligned as the stack pointer is. It is borrowed from
    // `owner`, which is not used meanwhile. The term is this thread's own.
    let (words, layout) = unsafe {
        let base = (&raw const *hot).cast();
        FrameLayout::words_here::<{ HotState::SCOPE_TERM }>(layout, sp, base, frame_pointer)
    };
    if unlikely(!layout.is_last(words)) {
        return Err(Some((NonNull::from(layout), words)));
    }
    count_cache!(layout_last);
    Ok(layout)
}

/// Looks up a stack that [`lookup_last`] has missed, in the stack cache. The thread has been busy since.
#[inline(always)]
pub(crate) fn lookup_missed<'a>(
    owner: &'a mut OwnerState,
    counters: &'static Table<OwnerCounters>,
    missed: Missed,
) -> Option<&'a FrameLayout> {
    let (mut layout, words) = missed?;
    // SAFETY: borrowed from `owner` by `lookup_last`, and the thread is still busy: no other event has changed its layouts.
    let layout = unsafe { layout.as_mut() };
    lookup_other(layout, &owner.cache, counters, words).then_some(layout)
}

/// Looks up a stack that [`lookup_last`] and [`lookup_missed`] have missed, by the second layout of its key, if it has another one
/// than the first. The registers are those of the function that [`lookup_last`] was inlined into.
pub(crate) fn lookup_by_second_layout<'a>(
    hot: &HotState,
    owner: &'a mut OwnerState,
    counters: &'static Table<OwnerCounters>,
    missed: Missed,
    registers: Registers,
    entrance: Entrance,
) -> Option<&'a FrameLayout> {
    let (first, _) = missed?;
    let key = key(owner, registers.sp, entrance)?;
    let layout = owner.walk.layouts.at(1, key).filter(|layout| !std::ptr::eq(*layout, first.as_ptr()))?;
    debug_assert!(
        layout.extent() <= owner.walk.bounds.end - registers.sp,
        "a layout that ends behind the stack"
    );
    // SAFETY: as in `lookup_last`.
    let words = unsafe { layout.words(registers.sp, registers.fp) }.wrapping_add(hot.scope_term());
    let is_last = layout.is_last(words) && layout.id() != 0;
    (is_last || lookup_other(layout, &owner.cache, counters, words)).then_some(layout)
}

/// Looks up, in the stack cache, a stack of a known layout that is not the layout's last one, and makes it the last one.
/// False where it is not in the cache, or has no counters in this thread yet.
#[inline(always)]
fn lookup_other(
    layout: &mut FrameLayout,
    cache: &StackCache,
    counters: &'static Table<OwnerCounters>,
    words: u64,
) -> bool {
    let id = cache.get(layout.check(words));
    let count = if id == 0 { None } else { counters.count(id, Direction::Allocated) };
    if let Some(count) = count {
        layout.set_last(words, id, count);
    }
    count.is_some()
}

/// Looks the stack up as [`lookup_last`] and [`lookup_missed`] do, but under every layout of its key, and on a part of the stack that was not
/// looked at before. Returns its id, 0 where it is not cached.
pub(crate) fn lookup_by_every_layout(
    hot: &HotState,
    owner: &mut OwnerState,
    counters: &'static Table<OwnerCounters>,
    registers: Registers,
    entrance: Entrance,
) -> u32 {
    // The first event of a thread that has adopted a state: its layouts and stacks are those of the thread before.
    if !owner.walk.bounds.extend_to(registers.sp) {
        return 0;
    }
    // That may have found that this is the main thread's stack, whose end is elsewhere.
    owner.walk.layouts.move_to(owner.walk.bounds.end);
    let Some(key) = key(owner, registers.sp, entrance) else { return 0 };
    let found = (0..2).find_map(|number| {
        let layout = owner.walk.layouts.at(number, key)?;
        // SAFETY: as above.
        let words = unsafe { layout.words(registers.sp, registers.fp) }.wrapping_add(hot.scope_term());
        let check = layout.check(words);
        // From the stack cache, not the layout's last id: that may be stale.
        lookup_other(layout, &owner.cache, counters, words);
        Some(owner.cache.get(check)).filter(|id| *id != 0)
    });
    found.unwrap_or(0)
}

/// Walks from `registers` on into the thread's buffer, and stores the layout for [`lookup_last`] of an entrance. `None`
/// when a row on the way needs the other unwinder; the addresses before it are in the buffer.
pub(super) fn walk_and_learn(
    owner: &mut OwnerState,
    registers: Registers,
    limit: usize,
    entrance: Option<Entrance>,
) -> Option<Fingerprint> {
    refresh(owner);
    let sp = registers.sp;
    let is_own_stack = owner.walk.bounds.extend_to(sp);
    let bounds = owner.walk.bounds;
    let mut gather = Gather::new(&mut owner.buffer.addresses, limit);
    // SAFETY: `walk` asks for words between the stack pointer and the stack's end, which the running
    // thread may read.
    let read = |address: usize| Some(unsafe { word(address) });
    let mut parser = Parser::new();
    let rule_of = |address| parser.rule(address);
    let mut places = SlotOffsets::new();
    let ended = if is_own_stack {
        walk::<false>(&mut owner.walk.rules, registers, bounds, &mut gather, &mut places, read, rule_of)
    } else {
        let read = read_foreign(sp);
        walk::<true>(&mut owner.walk.rules, registers, bounds, &mut gather, &mut places, read, rule_of)
    };
    parser.end();
    let sum = gather.sum();
    debug_assert!(gather.len <= MAX_ADDRESSES && places.return_addresses().len() <= gather.len);
    owner.buffer.header.len = gather.len as u16;
    owner.buffer.header.truncated = ended == Ended::Cut;
    if ended == Ended::Other {
        return None;
    }
    let first_two = std::array::from_fn(|number| places.return_addresses().get(number).copied().unwrap_or(0));
    // A deeper stack than this could share its key with a shallow one.
    let may_learn = is_own_stack && bounds.end - sp <= u32::MAX as usize;
    let Some(layout) = places.finish(bounds.end).filter(|_| may_learn) else {
        return Some(Fingerprint::of_addresses(sum));
    };
    debug_assert!(layout.extent() <= bounds.end - sp, "a layout that ends behind the stack");
    owner.walk.layouts.move_to(bounds.end);
    if let Some(entrance) = entrance {
        owner.walk.layouts.learn_discriminator(entrance as usize, owner.buffer.addresses[0], first_two);
        if let Some(key) = key(owner, sp, entrance) {
            owner.walk.layouts.learn(key, &layout);
        }
    }
    // The check that a look-up will compute for this stack.
    // SAFETY: finished above, of words that the walk has read.
    let check = layout.check(unsafe { layout.words(sp, registers.fp) });
    Some(Fingerprint { sum, check })
}

/// Returns a reader of the foreign stack at this stack pointer, whose end is unknown.
fn read_foreign(stack_pointer: usize) -> impl FnMut(usize) -> Option<usize> {
    let mut pages = ForeignPages::from(stack_pointer);
    // SAFETY: the kernel has just said that the page can be read. Where the rules are right it is one of the stack that
    // this thread runs on.
    move |address| pages.contains(address).then(|| unsafe { word(address) })
}

/// Reason for the end of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// At the first frame of the thread.
    Whole,
    /// At the limit, at an unknown address, or where the next frame would not be above this one.
    Cut,
    /// At a row that a packed rule cannot hold.
    Other,
}

/// Walks the stack from `registers` on: addresses go to `gather`, offsets of the words they depend on to `places`. Returns why
/// it ended. Rules come from `rules`, else from `rule_of` (given the address and whether it is a return address); words come
/// from `read`, which gives `None` where nothing can be read.
#[inline(always)]
fn walk<const FOREIGN: bool>(
    rules: &mut Rules,
    registers: Registers,
    bounds: StackBounds,
    gather: &mut Gather<'_>,
    places: &mut SlotOffsets,
    mut read: impl FnMut(usize) -> Option<usize>,
    mut rule_of: impl FnMut(Lookup) -> RuleFound,
) -> Ended {
    let Registers { pc, mut sp, mut fp } = registers;
    let first = sp;
    // Address that `fp` was loaded from; `None` while it is the frame pointer the walk began with.
    let mut fp_place = None;
    let mut at = match rules.start(pc) {
        Some(at) => {
            count_cache!(rule_linked);
            at
        }
        None => match start_slow(rules, pc, &mut rule_of) {
            Some(at) => at,
            None => return Ended::Cut,
        },
    };
    loop {
        let rule = rules.rule(at);
        let base = if rule.is_from_frame_pointer() { fp } else { sp }.wrapping_add(rule.distance());
        if rule.is_from_frame_pointer() {
            match fp_place {
                Some(place) => places.push_frame_pointer((place - first) / WORD),
                None => places.depends_on_first(),
            }
        }
        let height = base.wrapping_sub(sp);
        let room = if FOREIGN { FOREIGN_STEP } else { bounds.end.wrapping_sub(sp) };
        // One comparison for 0 < height <= room, also where no room is left. A rule that is no step has distance 0,
        // so it ends here as well. Words are aligned, so a base that is not was computed from a wrong register, and a
        // height above 0 is at least a word.
        if height.wrapping_sub(1) >= room || base % WORD != 0 {
            return ended_slow(rule);
        }
        let return_place = arch::return_address_place(base, rule);
        // Never true on x86-64, where the compiler drops it.
        if return_place.wrapping_sub(sp) > height - WORD {
            return Ended::Cut;
        }
        let Some(return_address) = read(return_place) else { return Ended::Cut };
        let return_address = arch::return_address(return_address);
        if let Some(place) = arch::frame_pointer_place(base, rule) {
            // The frame pointer was saved inside this frame.
            if place.wrapping_sub(sp) > height - WORD {
                return Ended::Cut;
            }
            let Some(saved) = read(place) else { return Ended::Cut };
            fp = saved;
            fp_place = Some(place);
        }
        debug_assert!(base > sp && base.is_multiple_of(WORD), "a step from {sp:#x} to {base:#x}");
        sp = base;
        places.push((return_place - first) / WORD);
        let more = gather.push(return_address);
        debug_assert!(bounds.contains(sp - WORD) || FOREIGN, "a walk left its stack");
        at = match rules.linked(at, return_address) {
            Some(next) => {
                count_cache!(rule_linked);
                next
            }
            None => match next_slow(rules, at, return_address, &mut rule_of) {
                Some(next) => next,
                None => return Ended::Cut,
            },
        };
        if !more {
            return if rules.rule(at) == Rule::END { Ended::Whole } else { Ended::Cut };
        }
    }
}

/// Finds the rule of the program counter that a walk begins with, parsed where it is not cached.
#[cold]
#[inline(never)]
fn start_slow(
    rules: &mut Rules,
    pc: usize,
    rule_of: &mut impl FnMut(Lookup) -> RuleFound,
) -> Option<EntryRef> {
    if rules.find(None, pc).is_some() {
        count_cache!(rule_found);
    } else {
        count_cache!(rule_parsed);
        // The address is in this very code, which stays loaded as long as it runs.
        rules.insert(pc, rule_of(Lookup::Here(pc)).rule)?;
    }
    let at = rules.find(None, pc)?;
    rules.set_start(at);
    Some(at)
}

/// Finds the rule of a return address that the link does not lead to, parsed where it is not cached.
#[cold]
#[inline(never)]
fn next_slow(
    rules: &mut Rules,
    at: EntryRef,
    address: usize,
    rule_of: &mut impl FnMut(Lookup) -> RuleFound,
) -> Option<EntryRef> {
    match rules.find(Some(at), address) {
        Some(next) => {
            count_cache!(rule_found);
            Some(next)
        }
        // `at` is invalid after this; the link is made the next time this path is walked.
        None => {
            count_cache!(rule_parsed);
            match rule_of(Lookup::ReturnAddress(address)) {
                RuleFound { rule, stays: true } => rules.insert(address, rule),
                RuleFound { rule, stays: false } => rules.insert_transient(address, rule),
            }
        }
    }
}

/// Returns why a walk ends at a rule that makes no step.
#[cold]
#[inline(never)]
fn ended_slow(rule: Rule) -> Ended {
    match rule {
        Rule::END => Ended::Whole,
        Rule::OTHER => Ended::Other,
        _ => Ended::Cut,
    }
}

// ── Before main ─────────────────────────────────────────────────────────────────────────────────

/// Lists the modules, and makes the parser's context.
pub(super) fn prepare() {
    modules::prepare();
    eh_frame::prepare();
}

/// Implements [`super::modules_epoch`].
pub(super) fn modules_epoch() -> u64 {
    modules::epoch()
}

/// Implements [`super::forget_find_object`].
pub(super) fn forget_find_object() {
    modules::forget_find_object();
    epoch::bump_rules_epoch();
}

/// Returns whether this walker and the platform's unwinder find the same addresses from here.
#[inline(never)]
pub(super) fn self_test() -> bool {
    let mut rules = Rules::new();
    let mut addresses = [0; MAX_ADDRESSES];
    let mut gather = Gather::new(&mut addresses, MAX_ADDRESSES);
    let mut parser = Parser::new();
    // The bounds of this stack may not be known yet; the test is about the rules.
    let registers = Registers::here();
    let read = read_foreign(registers.sp);
    let mut places = SlotOffsets::new();
    let bounds = StackBounds::default();
    let rule_of = |address| parser.rule(address);
    let ended = walk::<true>(&mut rules, registers, bounds, &mut gather, &mut places, read, rule_of);
    let found = gather.len;
    parser.end();
    let mut reference = [0; MAX_ADDRESSES];
    let mut reference_gather = Gather::new(&mut reference, MAX_ADDRESSES);
    fallback::walk(&mut reference_gather, addresses.first().copied());
    let expected = reference_gather.len;
    // Frames above `main`'s caller may have no rules (`_start` of some C libraries).
    let common = found.min(expected);
    rules.free();
    ended != Ended::Other && common >= 2 && addresses[..common] == reference[..common]
}

#[cfg(test)]
mod fuzz;
