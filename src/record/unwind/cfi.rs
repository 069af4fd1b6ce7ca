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

use super::{Entrance, Gather, fallback, modules};
use crate::base::atomics::{AtomicPtr, Ordering};
use crate::record::epoch::{self, MAX_ADDRESSES};
use crate::record::memory;
use crate::record::stack_id::cache::StackCache;
use crate::record::stack_id::fingerprint::Fingerprint;
use crate::record::stack_id::frame_layout::{Layout, Places};
use crate::record::stack_id::frame_layout_cache::Key;
use crate::record::thread::OwnerState;
use crate::record::thread::stack_bounds::{ForeignPages, StackBounds};
use crate::record::unwind::rule_cache::{At, Rule, Rules};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, NativeEndian, Register, RegisterRule,
    UnwindContext, UnwindContextStorage, UnwindSection, UnwindTableRow,
};

pub(super) const AVAILABLE: bool = true;

/// Largest frame accepted on a stack whose bounds are unknown, in bytes.
const FOREIGN_STEP: usize = 1 << 20;

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::WORD;
    use crate::record::unwind::rule_cache::Rule;
    use gimli::{Register, Vendor, X86_64};
    pub(super) const VENDOR: Vendor = Vendor::Default;
    pub(super) const STACK_POINTER: Register = X86_64::RSP;
    pub(super) const FRAME_POINTER: Register = X86_64::RBP;
    pub(super) const RETURN_ADDRESS: Register = X86_64::RA;

    /// Returns the address of the return address, which the call pushed right below the base.
    #[inline(always)]
    pub(super) fn return_address_place(base: usize, _rule: Rule) -> usize {
        base.wrapping_sub(WORD)
    }

    /// Returns the address of the caller's frame pointer, if it was saved.
    #[inline(always)]
    pub(super) fn frame_pointer_place(base: usize, rule: Rule) -> Option<usize> {
        rule.saved().map(|saved| base.wrapping_add_signed(saved))
    }

    /// Returns the word as loaded from the stack.
    #[inline(always)]
    pub(super) fn return_address(word: usize) -> usize {
        word
    }

    /// Encodes the saved registers for a packed rule: the frame pointer's offset from the base. `None` if the return
    /// address is not right below the base.
    pub(super) fn saved(return_address: i64, frame_pointer: Option<i64>) -> Option<Option<i64>> {
        (return_address == -(WORD as i64)).then_some(frame_pointer)
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::WORD;
    use crate::record::unwind::rule_cache::Rule;
    use gimli::{AArch64, Register, Vendor};
    /// Vendor of the rules: without it the parser rejects the rows of functions that sign their return address.
    pub(super) const VENDOR: Vendor = Vendor::AArch64;
    pub(super) const STACK_POINTER: Register = AArch64::SP;
    pub(super) const FRAME_POINTER: Register = AArch64::X29;
    pub(super) const RETURN_ADDRESS: Register = AArch64::X30;

    /// Returns the address of the link register, which the callee saved as the rule says.
    #[inline(always)]
    pub(super) fn return_address_place(base: usize, rule: Rule) -> usize {
        base.wrapping_add_signed(rule.saved().unwrap_or(-(WORD as isize)) & !1)
    }

    /// Returns the address of the caller's frame pointer in a frame record: right below the link register.
    #[inline(always)]
    pub(super) fn frame_pointer_place(base: usize, rule: Rule) -> Option<usize> {
        let saved = rule.saved()?;
        (saved & 1 != 0).then(|| base.wrapping_add_signed((saved & !1) - WORD as isize))
    }

    /// Encodes the saved registers for a packed rule: the link register's offset from the base, with the lowest bit
    /// set if the frame pointer is right below it. `None` if that is saved elsewhere.
    pub(super) fn saved(return_address: i64, frame_pointer: Option<i64>) -> Option<Option<i64>> {
        match frame_pointer {
            None => Some(Some(return_address)),
            Some(place) => (place == return_address - WORD as i64).then_some(Some(return_address | 1)),
        }
    }

    /// Removes the signature that pointer authentication puts into the upper bits.
    #[inline(always)]
    pub(super) fn return_address(word: usize) -> usize {
        word & ((1 << 48) - 1)
    }
}

/// Reads the word at this address of a stack.
///
/// The word may never have been written: padding, or a dead variable. In the language such bytes are uninitialised,
/// and an integer must not be. It is harmless here: the address comes from the stack pointer, which an assembler
/// block has given, and is never in the frame of the function that reads. So the compiler cannot know which variable
/// it belongs to, has to load the bytes that are there, and takes any such bytes for defined. A word that was only a
/// guess is compared and added up; nothing else depends on it.
///
/// [`recognise`] reads words that it only guesses to be return addresses. Some are between variables, where
/// AddressSanitizer ends the program at every load that it instruments.
///
/// # Safety
///
/// * It is aligned and lies on a stack that this thread may read.
#[inline(always)]
unsafe fn word(address: usize) -> usize {
    #[cfg(not(heapgauge_sanitized))]
    // SAFETY: the caller's duty.
    unsafe {
        std::ptr::with_exposed_provenance::<usize>(address).read()
    }
    #[cfg(heapgauge_sanitized)]
    {
        let word;
        // SAFETY: one load; the caller's duty.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "mov {word}, [{address}]", word = lateout(reg) word, address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                "ldr {word}, [{address}]", word = lateout(reg) word, address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
        word
    }
}

/// Registers of a walk: every packed rule counts from one of the last two.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    pc: usize,
    sp: usize,
    fp: usize,
}

impl Registers {
    /// Reads the registers of the function this is inlined into.
    #[inline(always)]
    pub(crate) fn here() -> Registers {
        let (pc, sp, fp): (usize, usize, usize);
        // SAFETY: copies registers; no memory, no flags.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "lea {pc}, [rip]", "mov {sp}, rsp", "mov {fp}, rbp",
                pc = out(reg) pc, sp = out(reg) sp, fp = out(reg) fp,
                options(nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                "adr {pc}, .", "mov {sp}, sp", "mov {fp}, x29",
                pc = out(reg) pc, sp = out(reg) sp, fp = out(reg) fp,
                options(nomem, nostack, preserves_flags)
            );
        }
        Registers { pc, sp, fp }
    }
}

/// Implements [`super::refresh`].
#[inline]
pub(super) fn refresh(tools: &mut OwnerState) {
    if tools.rules.epoch != epoch::rules_epoch() {
        tools.rules.forget();
        tools.layouts.forget();
        tools.rules.epoch = epoch::rules_epoch();
    }
}

/// Returns the key of the layouts at this stack pointer, and the depth in bytes: from the stack pointer to the
/// stack's end. `None` on a foreign stack, and where the discriminator would be beyond the end.
#[inline(always)]
fn key(tools: &OwnerState, stack_pointer: usize, entrance: Entrance) -> Option<(Key, usize)> {
    // On a foreign stack this is more than the stack's size.
    let depth = tools.bounds.end.wrapping_sub(stack_pointer);
    let hint = tools.layouts.hints[entrance as usize].bytes();
    if depth > tools.bounds.size || hint >= depth {
        return None;
    }
    // SAFETY: between this thread's stack pointer and the end of its own stack, and both are aligned.
    let telling = unsafe { word(stack_pointer + hint) };
    Some((Key::new(depth, telling), depth))
}

/// Computes the check of the stack under this layout; 0 if the layout needs a deeper stack.
///
/// # Safety
///
/// * The layout comes from [`Places::finish`].
#[inline(always)]
unsafe fn check(layout: &Layout, Registers { sp, fp, .. }: Registers, depth: usize) -> u64 {
    if layout.reach() > depth {
        return 0;
    }
    // SAFETY: the layout is finished, and ends below `depth`: so the words lie on this thread's own stack, between
    // its stack pointer and its end. They are aligned because the stack pointer is.
    unsafe { layout.check(sp, fp, |place| word(sp + place * WORD)) }
}

/// Implements [`super::recognise`].
#[inline(always)]
pub(super) fn recognise(tools: &mut OwnerState, registers: Registers, entrance: Entrance) -> u32 {
    let Some((key, depth)) = key(tools, registers.sp, entrance) else { return 0 };
    let Some(layout) = tools.layouts.likely(key) else { return 0 };
    // SAFETY: only finished ones are learnt.
    let check = unsafe { check(layout, registers, depth) };
    match layout.id_of(check) {
        0 => recognise_another(layout, &tools.cache, check),
        id => id,
    }
}

/// Looks up, in the stack cache, a stack of a known layout that is not the layout's last one.
#[inline(never)]
fn recognise_another(layout: &mut Layout, cache: &StackCache, check: u64) -> u32 {
    let id = cache.get(check);
    if id != 0 {
        layout.met(check, id);
    }
    id
}

/// Implements [`super::recognise_slow`].
pub(super) fn recognise_slow(tools: &mut OwnerState, registers: Registers, entrance: Entrance) -> u32 {
    let Some((key, depth)) = key(tools, registers.sp, entrance) else { return 0 };
    let found = (0..2).find_map(|number| {
        let layout = tools.layouts.at(number, key)?;
        // SAFETY: as above.
        let check = unsafe { check(layout, registers, depth) };
        // From the stack cache, not the layout's last id: that may be stale.
        Some(recognise_another(layout, &tools.cache, check)).filter(|id| *id != 0)
    });
    found.unwrap_or(0)
}

/// Walks from `registers` on into the thread's buffer, and stores the layout for [`recognise`] of an entrance. `None`
/// when a row on the way needs the other unwinder; the addresses before it are in the buffer.
pub(super) fn walk_and_learn(
    tools: &mut OwnerState,
    registers: Registers,
    limit: usize,
    entrance: Option<Entrance>,
) -> Option<Fingerprint> {
    refresh(tools);
    let sp = registers.sp;
    let is_own_stack = tools.bounds.extend_to(sp);
    let bounds = tools.bounds;
    let mut gather = Gather::new(&mut tools.buffer.addresses, limit);
    // SAFETY: `walk` asks for words between the stack pointer and the stack's end, which the running
    // thread may read.
    let read = |address: usize| Some(unsafe { word(address) });
    let mut parser = Parser { memory: &mut tools.parser };
    let rule_of = |address| parser.rule(address);
    let mut places = Places::new();
    let ended = if is_own_stack {
        walk::<false>(&mut tools.rules, registers, bounds, &mut gather, &mut places, read, rule_of)
    } else {
        let read = read_foreign(sp);
        walk::<true>(&mut tools.rules, registers, bounds, &mut gather, &mut places, read, rule_of)
    };
    let sum = gather.sum();
    tools.buffer.header.len = gather.len as u16;
    tools.buffer.header.truncated = ended == Ended::Cut;
    if ended == Ended::Other {
        return None;
    }
    let first_two = std::array::from_fn(|number| places.return_addresses().get(number).copied().unwrap_or(0));
    let Some(layout) = places.finish().filter(|_| is_own_stack) else {
        return Some(Fingerprint::of_addresses(sum));
    };
    if let Some(entrance) = entrance {
        tools.layouts.hints[entrance as usize].learn(tools.buffer.addresses[0], first_two);
        if let Some((key, _)) = key(tools, sp, entrance) {
            tools.layouts.learn(key, &layout);
        }
    }
    // The check that `recognise` will compute for this stack.
    // SAFETY: finished above.
    let check = unsafe { check(&layout, registers, bounds.end - sp) };
    Some(if check == 0 { Fingerprint::of_addresses(sum) } else { Fingerprint { sum, check } })
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

/// Walks the stack. Rules come from `rules`, else from `rule_of` (given the address and whether it is a return
/// address); words come from `read`, which gives `None` where nothing can be read.
#[inline(always)]
fn walk<const FOREIGN: bool>(
    rules: &mut Rules,
    registers: Registers,
    bounds: StackBounds,
    gather: &mut Gather<'_>,
    places: &mut Places,
    mut read: impl FnMut(usize) -> Option<usize>,
    mut rule_of: impl FnMut(Sought) -> Found,
) -> Ended {
    let Registers { pc, mut sp, mut fp } = registers;
    let first = sp;
    // Address that `fp` was loaded from; `None` while it is the frame pointer the walk began with.
    let mut fp_place = None;
    let mut at = match rules.start(pc) {
        Some(at) => at,
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
        sp = base;
        places.push((return_place - first) / WORD);
        let more = gather.push(return_address);
        at = match rules.follow(at, return_address) {
            Some(next) => next,
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

const WORD: usize = size_of::<usize>();

/// Address to look a rule up for.
#[derive(Clone, Copy)]
enum Sought {
    /// Program counter.
    Here(usize),
    /// Return address; the call itself is before it, perhaps in another row.
    ReturnAddress(usize),
}

/// Rule of an address, and whether it may be cached: in code that may be unloaded, another function with another
/// frame can be at the same address by the next walk.
struct Found {
    rule: Rule,
    stays: bool,
}

#[cold]
#[inline(never)]
fn start_slow(rules: &mut Rules, pc: usize, rule_of: &mut impl FnMut(Sought) -> Found) -> Option<At> {
    if rules.find(None, pc).is_none() {
        // The address is in this very code, which stays loaded as long as it runs.
        rules.insert(pc, rule_of(Sought::Here(pc)).rule)?;
    }
    let at = rules.find(None, pc)?;
    rules.set_start(at);
    Some(at)
}

#[cold]
#[inline(never)]
fn next_slow(
    rules: &mut Rules,
    at: At,
    address: usize,
    rule_of: &mut impl FnMut(Sought) -> Found,
) -> Option<At> {
    match rules.find(Some(at), address) {
        Some(next) => Some(next),
        // `at` is invalid after this; the link is made the next time this path is walked.
        None => match rule_of(Sought::ReturnAddress(address)) {
            Found { rule, stays: true } => rules.insert(address, rule),
            Found { rule, stays: false } => rules.pass(address, rule),
        },
    }
}

#[cold]
#[inline(never)]
fn ended_slow(rule: Rule) -> Ended {
    match rule {
        Rule::END => Ended::Whole,
        Rule::OTHER => Ended::Other,
        _ => Ended::Cut,
    }
}

// ── Rules from .eh_frame ────────────────────────────────────────────────────────────────────────

/// Storage for the registers and remembered rows that compilers use. More is an error of the parser, and the row is
/// then left to the other unwinder.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Fixed;

impl UnwindContextStorage<usize> for Fixed {
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Fixed>; 4];
}

type Context = UnwindContext<usize, Fixed>;

/// Unwind-rule parser with its working memory, which is too large for a small thread's stack.
struct Parser<'a> {
    /// Pointer in the thread's state: null until first needed.
    memory: &'a mut *mut u8,
}

impl Parser<'_> {
    /// Looks up the rule of an address.
    #[cold]
    #[inline(never)]
    fn rule(&mut self, sought: Sought) -> Found {
        let (Sought::Here(address) | Sought::ReturnAddress(address)) = sought;
        let address =
            if matches!(sought, Sought::ReturnAddress(_)) { address.wrapping_sub(1) } else { address };
        let stays = modules::stays(address);
        let unknown = Found { rule: Rule::UNKNOWN, stays };
        let Some(module) = modules::find(address) else { return unknown };
        let Some(context) = self.context() else { return unknown };
        // SAFETY: the module has code on this thread's stack, or is the one that this code is in, so that it stays
        // loaded until that has returned.
        let Some(segment) = (unsafe { module.constant_segment() }) else {
            return Found { rule: Rule::OTHER, stays };
        };
        // SAFETY: as above.
        let section = |start: usize| unsafe { segment.bytes_from(start) };
        Found { rule: row_rule(context, module.unwind_header, address, section), stays }
    }

    fn context(&mut self) -> Option<&mut Context> {
        if self.memory.is_null() {
            let memory = memory::zeroed::<Context>();
            if memory.is_null() {
                return None;
            }
            // Acquire: pairs with the Release of `prepare`.
            let fresh = FRESH.load(Ordering::Acquire);
            if fresh.is_null() {
                // SAFETY: fresh memory of its size and alignment.
                unsafe { memory.write(Context::new_in()) };
            } else {
                // SAFETY: both are a `Context`, which holds its rows within itself: a copy byte by byte is
                // another one, and neither is ever dropped.
                unsafe { memory.copy_from_nonoverlapping(fresh, 1) };
            }
            *self.memory = memory.cast();
        }
        // SAFETY: not null, so written above, in memory that only this thread's state refers to.
        Some(unsafe { &mut *self.memory.cast::<Context>() })
    }
}

/// Fresh context to copy, null until prepared. A debug build makes one by way of several copies on the stack, and a
/// thread's stack may be small: a copy from here takes none of it.
static FRESH: AtomicPtr<Context> = AtomicPtr::new(std::ptr::null_mut());

/// Looks the row of `address` up in the module whose `.eh_frame_hdr` is at `header`, and packs it. `section` gives
/// the bytes from an address to the end of the header's segment, none for an address outside of it.
fn row_rule<'a>(
    context: &mut Context,
    header: usize,
    address: usize,
    section: impl Fn(usize) -> &'a [u8],
) -> Rule {
    let Some((start, place)) = description_place(section(header), header, address) else {
        return Rule::OTHER;
    };
    // No compiler counts from the text's base here.
    let bases = BaseAddresses::default().set_eh_frame_hdr(header as u64).set_eh_frame(start as u64);
    let mut frames = EhFrame::from(EndianSlice::new(section(start), NativeEndian));
    frames.set_vendor(arch::VENDOR);
    let Some(offset) = place.checked_sub(start) else { return Rule::UNKNOWN };
    let Ok(description) = frames.fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset)
    else {
        return Rule::UNKNOWN;
    };
    if !description.contains(address as u64) {
        return Rule::UNKNOWN;
    }
    if description.is_signal_trampoline() {
        // The stack ends at the handler. The signal may have come between any two instructions, where rules are not
        // all right: compilers move instructions without them, and an unwinder that follows such a rule reads
        // anywhere.
        return Rule::UNKNOWN;
    }
    match description.unwind_info_for_address(&frames, &bases, context, address as u64) {
        Ok(row) => pack(row).unwrap_or(Rule::OTHER),
        Err(_) => Rule::OTHER,
    }
}

/// Finds the start of `.eh_frame`, and in it the description of the last function that begins at or before the
/// address. `None` where the header is not in the one form that linkers write.
///
/// `gimli`'s own search adds without a check for overflow, which in a debug build would be a panic.
fn description_place(bytes: &[u8], header: usize, address: usize) -> Option<(usize, usize)> {
    // Version and encodings: an address relative to itself, a count, and a sorted table of pairs relative to the
    // header, of 4 bytes each.
    let (form, rest) = bytes.split_first_chunk::<4>()?;
    if *form != [1, 0x1b, 0x03, 0x3b] {
        return None;
    }
    let (start, rest) = rest.split_first_chunk::<4>()?;
    let (count, table) = rest.split_first_chunk::<4>()?;
    let from =
        |place: usize, distance: [u8; 4]| place.wrapping_add_signed(i32::from_ne_bytes(distance) as isize);
    let table = table.get(..(u32::from_ne_bytes(*count) as usize).checked_mul(8)?)?;
    let (pairs, _) = table.as_chunks::<8>();
    let after = pairs.partition_point(|&[a, b, c, d, ..]| from(header, [a, b, c, d]) <= address);
    let &[.., a, b, c, d] = pairs.get(after.checked_sub(1)?)?;
    Some((from(header + form.len(), *start), from(header, [a, b, c, d])))
}

/// Packs the row in 8 bytes; `None` if it does not fit.
fn pack(row: &UnwindTableRow<usize, Fixed>) -> Option<Rule> {
    let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return None };
    let from_frame_pointer = match register {
        arch::STACK_POINTER => false,
        arch::FRAME_POINTER => true,
        _ => return None,
    };
    let is_word = |place: i64| place % WORD as i64 == 0;
    let return_address = match row.register(arch::RETURN_ADDRESS) {
        Some(RegisterRule::Undefined) => return Some(Rule::END),
        Some(RegisterRule::Offset(place)) if is_word(place) => place,
        _ => return None,
    };
    let frame_pointer = match row.register(arch::FRAME_POINTER) {
        // A register that calls preserve is unchanged if the row does not mention it.
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => None,
        Some(RegisterRule::Offset(place)) if is_word(place) => Some(place),
        _ => return None,
    };
    Rule::step(from_frame_pointer, u64::try_from(offset).ok()?, arch::saved(return_address, frame_pointer)?)
}

// ── Before main ─────────────────────────────────────────────────────────────────────────────────

pub(super) fn prepare() {
    modules::prepare();
    let fresh = memory::zeroed::<Context>();
    if !fresh.is_null() {
        // SAFETY: fresh memory of its size and alignment.
        unsafe { fresh.write(Context::new_in()) };
        // Release: publishes the context; pairs with the Acquire of `Parser::context`.
        FRESH.store(fresh, Ordering::Release);
    }
}

pub(super) fn modules_epoch() -> u64 {
    modules::epoch()
}

pub(super) fn forget_find_object() {
    modules::forget_find_object();
    epoch::bump_rules_epoch();
}

/// Returns whether this walker and the platform's unwinder find the same addresses from here.
#[inline(never)]
pub(super) fn self_test() -> bool {
    let mut rules = Rules::new();
    let mut parser_memory = std::ptr::null_mut();
    let mut addresses = [0; MAX_ADDRESSES];
    let mut gather = Gather::new(&mut addresses, MAX_ADDRESSES);
    let mut parser = Parser { memory: &mut parser_memory };
    // The bounds of this stack may not be known yet; the test is about the rules.
    let registers = Registers::here();
    let read = read_foreign(registers.sp);
    let mut places = Places::new();
    let bounds = StackBounds::default();
    let rule_of = |address| parser.rule(address);
    let ended = walk::<true>(&mut rules, registers, bounds, &mut gather, &mut places, read, rule_of);
    let found = gather.len;
    let mut reference = [0; MAX_ADDRESSES];
    let mut reference_gather = Gather::new(&mut reference, MAX_ADDRESSES);
    fallback::walk(&mut reference_gather, addresses.first().copied());
    let expected = reference_gather.len;
    // Frames above `main`'s caller may have no rules (`_start` of some C libraries).
    let common = found.min(expected);
    rules.free();
    if !parser_memory.is_null() {
        // SAFETY: made by `Parser::context` as one `Context`, and not used any more.
        unsafe { memory::free_array(parser_memory.cast::<Context>(), 1) };
    }
    ended != Ended::Other && common >= 2 && addresses[..common] == reference[..common]
}

#[cfg(test)]
mod fuzz;
