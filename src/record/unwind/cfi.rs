//! Registers → return addresses, by the `.eh_frame` unwind rules of the code on the stack.
//!
//! Every stock release build has these rules, for panics; frame pointers it has not. A row of them
//! nearly always says "the frame's base is at the stack or frame pointer plus n, the caller's frame
//! pointer is at base plus m or unchanged, the return address is right below the base". [`gimli`]
//! parses such a row once a thread and address; it is kept packed and linked in [`crate::record::unwind::rule_cache`].
//!
//! What is read lies in the calling thread's own stack, between the stack pointer and the stack's
//! end, and every step rises. On a foreign stack (a coroutine, a signal stack) the end is unknown:
//! each step is held below [`FOREIGN_STEP`], and the kernel is asked whether a page is there before it
//! is read. (Code that switches stacks often has rules that know nothing of it.)

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

/// The largest frame believed on a stack whose bounds are unknown.
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

    /// The call has pushed the return address: it is right below the base.
    #[inline(always)]
    pub(super) fn return_address_place(base: usize, _rule: Rule) -> usize {
        base.wrapping_sub(WORD)
    }

    /// Where the caller's frame pointer is, if it was saved.
    #[inline(always)]
    pub(super) fn frame_pointer_place(base: usize, rule: Rule) -> Option<usize> {
        rule.saved().map(|saved| base.wrapping_add_signed(saved))
    }

    /// As loaded from the stack.
    #[inline(always)]
    pub(super) fn return_address(word: usize) -> usize {
        word
    }

    /// What a packed rule keeps of where the two are, from the base: the frame pointer's place.
    pub(super) fn saved(return_address: i64, frame_pointer: Option<i64>) -> Option<Option<i64>> {
        (return_address == -(WORD as i64)).then_some(frame_pointer)
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::WORD;
    use crate::record::unwind::rule_cache::Rule;
    use gimli::{AArch64, Register, Vendor};
    /// Without it the parser refuses the rows of functions that sign their return address.
    pub(super) const VENDOR: Vendor = Vendor::AArch64;
    pub(super) const STACK_POINTER: Register = AArch64::SP;
    pub(super) const FRAME_POINTER: Register = AArch64::X29;
    pub(super) const RETURN_ADDRESS: Register = AArch64::X30;

    /// The callee has saved the link register, where the rule says.
    #[inline(always)]
    pub(super) fn return_address_place(base: usize, rule: Rule) -> usize {
        base.wrapping_add_signed(rule.saved().unwrap_or(-(WORD as isize)) & !1)
    }

    /// A frame record: the frame pointer right below the link register.
    #[inline(always)]
    pub(super) fn frame_pointer_place(base: usize, rule: Rule) -> Option<usize> {
        let saved = rule.saved()?;
        (saved & 1 != 0).then(|| base.wrapping_add_signed((saved & !1) - WORD as isize))
    }

    /// What a packed rule keeps of where the two are, from the base: the link register's place, and
    /// in its lowest bit whether the frame pointer stands below it.
    pub(super) fn saved(return_address: i64, frame_pointer: Option<i64>) -> Option<Option<i64>> {
        match frame_pointer {
            None => Some(Some(return_address)),
            Some(place) => (place == return_address - WORD as i64).then_some(Some(return_address | 1)),
        }
    }

    /// Without the signature that pointer authentication puts into the upper bits.
    #[inline(always)]
    pub(super) fn return_address(word: usize) -> usize {
        word & ((1 << 48) - 1)
    }
}

/// Reads the word at this address of a stack.
///
/// It may be one that was never written: padding, or a variable that is dead. In the language such bytes are not
/// initialised, and an integer has to be. It is harmless here: the address comes from the stack pointer, which an
/// assembler block has given, and never lies in the frame of the function that reads. So the compiler cannot know which
/// variable it belongs to and has to load the bytes that are there, and takes any such bytes for defined. A word that was
/// only a guess is compared and added up; nothing else depends on it.
///
/// [`recognise`] reads words that it only guesses to be return addresses. Some lie between variables, where
/// AddressSanitizer ends the program at every load that it knows of.
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

/// The registers a walk needs: every packed rule counts from one of the last two.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    pc: usize,
    sp: usize,
    fp: usize,
}

impl Registers {
    /// Of the function this is inlined into.
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

/// See [`super::refresh`].
#[inline]
pub(super) fn refresh(tools: &mut OwnerState) {
    if tools.rules.epoch != epoch::rules_epoch() {
        tools.rules.forget();
        tools.layouts.forget();
        tools.rules.epoch = epoch::rules_epoch();
    }
}

/// What layouts are looked up by, and the bytes between the stack pointer and the stack's end. `None` on a foreign
/// stack, and where no word tells callers apart.
#[inline(always)]
fn key(tools: &OwnerState, stack_pointer: usize, entrance: Entrance) -> Option<(Key, usize)> {
    // More than the stack has, on a foreign one.
    let depth = tools.bounds.end.wrapping_sub(stack_pointer);
    let hint = tools.layouts.hints[entrance as usize].bytes();
    if depth > tools.bounds.size || hint >= depth {
        return None;
    }
    // SAFETY: between this thread's stack pointer and the end of its own stack, and both are aligned.
    let telling = unsafe { word(stack_pointer + hint) };
    Some((Key::new(depth, telling), depth))
}

/// What the stack is recognised by if it is of this layout; 0 where that is for a deeper stack.
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

/// See [`super::recognise`].
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

/// Of a known layout, but not the stack that was met last.
#[inline(never)]
fn recognise_another(layout: &mut Layout, cache: &StackCache, check: u64) -> u32 {
    let id = cache.get(check);
    if id != 0 {
        layout.met(check, id);
    }
    id
}

/// See [`super::recognise_slow`].
pub(super) fn recognise_slow(tools: &mut OwnerState, registers: Registers, entrance: Entrance) -> u32 {
    let Some((key, depth)) = key(tools, registers.sp, entrance) else { return 0 };
    let found = (0..2).find_map(|number| {
        let layout = tools.layouts.at(number, key)?;
        // SAFETY: as above.
        let check = unsafe { check(layout, registers, depth) };
        // Not the one that was met last: that may be stale.
        Some(recognise_another(layout, &tools.cache, check)).filter(|id| *id != 0)
    });
    found.unwrap_or(0)
}

/// Walks from `registers` on into the buffer of the tools, and learns the layout for [`recognise`] of an entrance.
/// `None` when a row on the way needs the other unwinder; the addresses before it are in the buffer.
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
    // What `recognise` will find of this stack.
    // SAFETY: finished above.
    let check = unsafe { check(&layout, registers, bounds.end - sp) };
    Some(if check == 0 { Fingerprint::of_addresses(sum) } else { Fingerprint { sum, check } })
}

/// Reads words of the stack that a stack pointer of the calling thread is on, without knowing where that ends.
fn read_foreign(stack_pointer: usize) -> impl FnMut(usize) -> Option<usize> {
    let mut pages = ForeignPages::from(stack_pointer);
    // SAFETY: the kernel has just said that the page can be read. Where the rules are right it is one of the stack that
    // this thread runs on.
    move |address| pages.contains(address).then(|| unsafe { word(address) })
}

/// Why a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// At the first frame of the thread.
    Whole,
    /// At the limit, at an unknown address, or where the next frame would not lie above this one.
    Cut,
    /// At a row that a packed rule cannot hold.
    Other,
}

/// The walk itself: rules from `rules`, else from `rule_of` (given the address and whether it is a
/// return address); the stack through `read`, which gives `None` where nothing can be read.
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
    // Where the frame pointer in `fp` was saved; `None` while it is the one the walk began with.
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
        // In one comparison: 0 < height <= room, also where there is no room left. A rule that is no step
        // has distance 0, so it ends here as well; words are aligned, so a base that is not was computed
        // from a wrong register, and a height of both is at least a word.
        if height.wrapping_sub(1) >= room || base % WORD != 0 {
            return ended_slow(rule);
        }
        let return_place = arch::return_address_place(base, rule);
        // On x86-64 this is known, and the compiler drops it.
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

/// An address whose rule is sought.
#[derive(Clone, Copy)]
enum Sought {
    /// Where the processor is.
    Here(usize),
    /// Where a call returns to; the call itself is before it, perhaps in another row.
    ReturnAddress(usize),
}

/// The rule of an address, and whether it may be remembered: in code that may be unloaded, another
/// function with another frame can stand at the same address by the next walk.
struct Found {
    rule: Rule,
    stays: bool,
}

#[cold]
#[inline(never)]
fn start_slow(rules: &mut Rules, pc: usize, rule_of: &mut impl FnMut(Sought) -> Found) -> Option<At> {
    if rules.find(None, pc).is_none() {
        // In this very code, which stays as long as it runs.
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

/// Room for the registers and remembered rows that compilers use. More is an error of the parser,
/// and the row then belongs to the other unwinder.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Fixed;

impl UnwindContextStorage<usize> for Fixed {
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Fixed>; 4];
}

type Context = UnwindContext<usize, Fixed>;

/// The unwind-rule parser with its working memory, which is too large for a small thread's stack.
struct Parser<'a> {
    /// Of the thread's tools: null until first needed.
    memory: &'a mut *mut u8,
}

impl Parser<'_> {
    /// The rule of an address.
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
        // SAFETY: not null, so written above, in memory that only this thread's tools refer to.
        Some(unsafe { &mut *self.memory.cast::<Context>() })
    }
}

/// A context as it is new, null until prepared. A debug build makes one by way of several copies on
/// the stack, and a thread's stack may be small: copied from here it takes none.
static FRESH: AtomicPtr<Context> = AtomicPtr::new(std::ptr::null_mut());

/// Looks the row of `address` up in the module whose `.eh_frame_hdr` is at `header`, and packs it.
/// `section` gives the bytes from an address to the end of the header's segment, none for one that lies elsewhere.
fn row_rule<'a>(
    context: &mut Context,
    header: usize,
    address: usize,
    section: impl Fn(usize) -> &'a [u8],
) -> Rule {
    let Some((start, place)) = description_place(section(header), header, address) else {
        return Rule::OTHER;
    };
    // The text's base is what no compiler counts from here.
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
        // The stack ends at the handler. What it has interrupted may be between any two instructions, where rules are
        // not all right: compilers move instructions without them, and an unwinder that follows such a rule reads
        // anywhere.
        return Rule::UNKNOWN;
    }
    match description.unwind_info_for_address(&frames, &bases, context, address as u64) {
        Ok(row) => pack(row).unwrap_or(Rule::OTHER),
        Err(_) => Rule::OTHER,
    }
}

/// Where `.eh_frame` begins, and where in it the description of the last function stands that begins at or before
/// the address. `None` where the header is not in the one form that linkers write.
///
/// `gimli`'s own search does sums without a check, which in a debug build would be a panic.
fn description_place(bytes: &[u8], header: usize, address: usize) -> Option<(usize, usize)> {
    // Version; addresses from here, a count, and a sorted table of pairs from the header on, of 4 bytes each.
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

/// The row in 8 bytes; `None` if it does not fit.
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
        // No word about a register that calls preserve means that it is unchanged.
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
        // Release: publishes what was written.
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

/// Whether this walker finds the addresses that the platform's unwinder finds, from here.
#[inline(never)]
pub(super) fn self_test() -> bool {
    let mut rules = Rules::new();
    let mut parser_memory = std::ptr::null_mut();
    let mut addresses = [0; MAX_ADDRESSES];
    let mut gather = Gather::new(&mut addresses, MAX_ADDRESSES);
    let mut parser = Parser { memory: &mut parser_memory };
    // The bounds of this stack may not be known yet; the rules are what is being tested.
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
    // What lies above `main`'s caller may have no rules (`_start` of some C libraries).
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
