//! The `.eh_frame` section of a module → the unwind rule of an address, packed. [`gimli`] parses the row.

use crate::base::atomics::{AtomicPtr, Ordering};
use crate::record::memory;
use crate::record::unwind::arch::{self, WORD};
use crate::record::unwind::modules;
use crate::record::unwind::rule_cache::Rule;
use crate::record::unwind::start_code;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, NativeEndian, Register, RegisterRule,
    UnwindContext, UnwindContextStorage, UnwindSection, UnwindTableRow,
};
use std::ptr::{NonNull, null_mut};

/// Address to look a rule up for.
#[derive(Clone, Copy)]
pub(super) enum Lookup {
    /// Program counter.
    Here(usize),
    /// Return address; the call itself is before it, perhaps in another row.
    ReturnAddress(usize),
}

/// Rule of an address, and whether it may be cached: in code that may be unloaded, another function with another
/// frame can be at the same address by the next walk.
pub(super) struct RuleFound {
    pub(super) rule: Rule,
    pub(super) stays: bool,
}

/// Storage for the registers and remembered rows that compilers use. More is an error of the parser, and the row is
/// then left to the other unwinder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fixed;

impl UnwindContextStorage<usize> for Fixed {
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Fixed>; 4];
}

pub(super) type Context = UnwindContext<usize, Fixed>;

/// Unwind-rule parser with its working memory, which is too large for a small thread's stack.
pub(super) struct Parser {
    /// Taken when it is first needed.
    context: Option<NonNull<Context>>,
}

impl Parser {
    pub(super) fn new() -> Parser {
        Parser { context: None }
    }

    /// Looks up the rule of an address.
    #[cold]
    #[inline(never)]
    pub(super) fn rule(&mut self, lookup: Lookup) -> RuleFound {
        let (Lookup::Here(address) | Lookup::ReturnAddress(address)) = lookup;
        let address =
            if matches!(lookup, Lookup::ReturnAddress(_)) { address.wrapping_sub(1) } else { address };
        let lasting = modules::find_lasting(address);
        let stays = lasting.is_some();
        let without_rule = if start_code::contains(address) { Rule::END } else { Rule::UNKNOWN };
        let unknown = RuleFound { rule: without_rule, stays };
        let (module, segment) = match lasting {
            Some(listed) => (listed.module, listed.segment),
            None => {
                let Some(module) = modules::find(address) else { return unknown };
                // SAFETY: the module has code on this thread's stack, or is the one that this code is in, so that it
                // stays loaded until that has returned.
                (module, unsafe { module.constant_segment() })
            }
        };
        let Some(context) = self.context() else { return unknown };
        let Some(segment) = segment else { return RuleFound { rule: Rule::OTHER, stays } };
        // SAFETY: the module stays loaded, or as above.
        let section = |start: usize| unsafe { segment.bytes_from(start) };
        match row_rule(context, module.unwind_header, address, section) {
            Rule::UNKNOWN => unknown,
            rule => RuleFound { rule, stays },
        }
    }

    /// Borrows the parser's working memory; `None` without memory.
    fn context(&mut self) -> Option<&mut Context> {
        let mut context = match self.context {
            Some(context) => context,
            None => spare().or_else(fresh)?,
        };
        self.context = Some(context);
        // SAFETY: a context, which this parser alone has until it ends.
        Some(unsafe { context.as_mut() })
    }

    /// Gives the working memory back. `Drop` does not do this, because its cleanup would make each walk longer.
    #[inline(always)]
    pub(super) fn end(self) {
        if let Some(context) = self.context {
            give_back(context);
        }
    }
}

/// Contexts that no parser has at the moment: a thread needs one only where it meets code for the first time.
static SPARE: [AtomicPtr<Context>; 4] = [const { AtomicPtr::new(null_mut()) }; 4];

/// Takes a context that no parser has.
fn spare() -> Option<NonNull<Context>> {
    // Acquire: pairs with the Release of `give_back`, after which the context was last used.
    SPARE.iter().find_map(|place| NonNull::new(place.swap(null_mut(), Ordering::Acquire)))
}

/// Gives a context back that no parser uses any more.
#[cold]
#[inline(never)]
fn give_back(context: NonNull<Context>) {
    // Relaxed: of a place that is taken nothing is read. Release: pairs with the Acquire of `spare`.
    let takes = |place: &AtomicPtr<Context>| {
        place.compare_exchange(null_mut(), context.as_ptr(), Ordering::Release, Ordering::Relaxed).is_ok()
    };
    if !SPARE.iter().any(takes) {
        // SAFETY: made by `fresh` as one context, which nothing uses any more.
        unsafe { memory::free_array(context.as_ptr(), 1) };
    }
}

/// Makes a context.
fn fresh() -> Option<NonNull<Context>> {
    let memory = NonNull::new(memory::zeroed::<Context>())?;
    // Acquire: pairs with the Release of `prepare`.
    let fresh = FRESH.load(Ordering::Acquire);
    if fresh.is_null() {
        // SAFETY: fresh memory of its size and alignment.
        unsafe { memory.write(Context::new_in()) };
    } else {
        // SAFETY: both are a `Context`, which holds its rows within itself: a copy byte by byte is
        // another one, and neither is ever dropped.
        unsafe { memory.as_ptr().copy_from_nonoverlapping(fresh, 1) };
    }
    Some(memory)
}

/// Fresh context to copy, null until prepared. A debug build makes one by way of several copies on the stack, and a
/// thread's stack may be small: a copy from here takes none of it.
static FRESH: AtomicPtr<Context> = AtomicPtr::new(null_mut());

/// Looks the row of `address` up in the module whose `.eh_frame_hdr` is at `header`, and packs it. `section` gives
/// the bytes from an address to the end of the header's segment, none for an address outside of it.
pub(super) fn row_rule<'a>(
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
    let Some(offset) = place.and_then(|place| place.checked_sub(start)) else { return Rule::UNKNOWN };
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
/// address, if there is one. `None` where the header is not in the one form that linkers write.
///
/// `gimli`'s own search adds without a check for overflow, which in a debug build would be a panic.
pub(super) fn description_place(
    bytes: &[u8],
    header: usize,
    address: usize,
) -> Option<(usize, Option<usize>)> {
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
    let found = after.checked_sub(1).and_then(|before| pairs.get(before));
    Some((from(header + form.len(), *start), found.map(|&[.., a, b, c, d]| from(header, [a, b, c, d]))))
}

/// Packs the row in 8 bytes; `None` if it does not fit.
pub(super) fn pack(row: &UnwindTableRow<usize, Fixed>) -> Option<Rule> {
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

/// Makes the context that threads copy. Before `main`.
pub(super) fn prepare() {
    let fresh = memory::zeroed::<Context>();
    if !fresh.is_null() {
        // SAFETY: fresh memory of its size and alignment.
        unsafe { fresh.write(Context::new_in()) };
        // Release: publishes the context; pairs with the Acquire of `Parser::context`.
        FRESH.store(fresh, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the rule behind an instruction of a made section: the return address lies right below the base, which is 16 bytes
    /// above the stack pointer.
    fn rule_behind(instruction: u8) -> Rule {
        rule_at(8, instruction)
    }

    /// Returns the rule of an address as far behind the first function of a made section.
    fn rule_at(behind: isize, instruction: u8) -> Rule {
        const HEADER: usize = 0x20_0000;
        const CODE: usize = 0x10_0000;
        let (stack, ra) = (arch::STACK_POINTER.0 as u8, arch::RETURN_ADDRESS.0 as u8);
        let to_code = |from: usize| (CODE as i32 - from as i32).to_le_bytes();
        let mut bytes = vec![1, 0x1b, 0x03, 0x3b, 16, 0, 0, 0, 1, 0, 0, 0];
        bytes.extend(to_code(HEADER));
        bytes.extend([44, 0, 0, 0]);
        // The common part, from 20 on.
        bytes.extend([20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, ra, 1, 0x1b]);
        bytes.extend([0x0c, stack, 16, 0x80 | ra, 1, 0, 0]);
        // The description, from 44 on.
        bytes.extend([16, 0, 0, 0, 28, 0, 0, 0]);
        bytes.extend(to_code(HEADER + bytes.len()));
        bytes.extend([64, 0, 0, 0, 0, 0x44, instruction, 0, 0, 0, 0, 0]);
        row_rule(&mut Context::new_in(), HEADER, CODE.wrapping_add_signed(behind), |start| {
            &bytes[start - HEADER..]
        })
    }

    /// Code before and behind all functions has no rule, as has that of some C libraries at the start of the program: no other
    /// unwinder knows one.
    #[test]
    fn code_outside_of_all_functions_has_no_rule() {
        assert_eq!([rule_at(-4, 0), rule_at(64, 0)], [Rule::UNKNOWN; 2]);
        assert!(![Rule::END, Rule::OTHER, Rule::UNKNOWN].contains(&rule_at(63, 0)));
    }

    /// Signing the return address is followed; signing it by the address of the instruction is left to the platform's unwinder, which
    /// counts.
    #[test]
    fn unknown_instructions_are_left_to_the_platforms_unwinder() {
        let step = rule_behind(0);
        assert!(![Rule::END, Rule::OTHER, Rule::UNKNOWN].contains(&step), "{step:?}");
        assert_eq!(rule_behind(0x2c), Rule::OTHER);
        let signed = if cfg!(target_arch = "aarch64") { step } else { Rule::OTHER };
        assert_eq!(rule_behind(0x2d), signed);
    }
}
