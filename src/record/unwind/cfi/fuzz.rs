//! Fuzz tests of malformed unwind sections and random stacks: no fault, no read out of bounds, and an end.

use super::*;
use crate::base::random_input::{Random, inputs};
use crate::record::unwind::eh_frame::{Context, description_place, row_rule};
use std::cell::Cell;

/// Copy of this executable's own unwind sections.
struct Sections {
    /// Address of their first byte.
    base: usize,
    header: usize,
    bytes: Vec<u8>,
    /// Return addresses that have rules.
    addresses: Vec<usize>,
}

impl Sections {
    fn of_this_executable() -> Sections {
        modules::prepare();
        let here = Sections::of_this_executable as *const () as usize;
        let listed = modules::find_lasting(here).unwrap();
        let header = listed.module.unwind_header;
        // SAFETY: the module of this very code.
        let whole = unsafe { listed.segment.unwrap().bytes_from(header) };
        // Header, table and frames follow each other. The frames end with a length of zero; a megabyte of them is
        // more than enough for the addresses below to be found in.
        let bytes = whole[..whole.len().min(24 << 20)].to_vec();
        let functions = [
            here,
            Sections::rule as *const () as usize,
            self_test as *const () as usize,
            Random::new as *const () as usize,
            prepare as *const () as usize,
        ];
        let addresses = functions.iter().flat_map(|&begin| (0..40).map(move |at| begin + at)).collect();
        Sections { base: header, header, bytes, addresses }
    }

    fn rule(&self, context: &mut Context, address: usize) -> Rule {
        row_rule(context, self.header, address, |start| {
            start.checked_sub(self.base).and_then(|at| self.bytes.get(at..)).unwrap_or(&[])
        })
    }

    /// Returns the offset in `bytes` of the description of an address.
    fn description(&self, address: usize) -> Option<usize> {
        let (_, place) = description_place(&self.bytes, self.header, address)?;
        place?.checked_sub(self.base)
    }
}

#[test]
fn broken_unwind_sections_give_a_rule_or_none() {
    let mut sections = Sections::of_this_executable();
    let mut context = Context::new_in();
    let mut random = Random::new();
    let whole: Vec<Rule> =
        sections.addresses.iter().map(|&address| sections.rule(&mut context, address)).collect();
    let known = whole.iter().filter(|&&rule| rule != Rule::UNKNOWN).count();
    assert!(known > whole.len() / 2, "{known} of {}", whole.len());
    let places: Vec<usize> =
        sections.addresses.iter().filter_map(|&address| sections.description(address)).collect();
    assert!(places.len() > 100);
    let mut changed = 0;
    for _ in 0..inputs(60_000) {
        let at = random.below(sections.addresses.len());
        let address = sections.addresses[at];
        let mut undo = Vec::new();
        for _ in 0..=random.below(6) {
            // The header, the description of some function, and the common part before it.
            let near = match random.below(8) {
                0 => random.below(12),
                1 => 12 + random.below(64),
                _ => {
                    let place = places[random.below(places.len())];
                    let common = place.saturating_sub(u32::from_ne_bytes(
                        sections.bytes[place + 4..place + 8].try_into().unwrap(),
                    ) as usize)
                        + 4;
                    let from = if random.below(3) == 0 { common } else { place };
                    from + random.below(40)
                }
            };
            let count = random.one(&[1usize, 1, 2, 4, 8]);
            let new = random.edge().to_le_bytes();
            for (offset, byte) in new.iter().take(count).enumerate() {
                if let Some(old) = sections.bytes.get_mut(near + offset) {
                    undo.push((near + offset, std::mem::replace(old, *byte)));
                }
            }
        }
        let rule = sections.rule(&mut context, address);
        changed += usize::from(rule != whole[at]);
        if rule != Rule::END && rule != Rule::OTHER && rule != Rule::UNKNOWN {
            assert!(rule.distance() > 0);
        }
        for (at, byte) in undo.into_iter().rev() {
            sections.bytes[at] = byte;
        }
    }
    assert!(changed > 100, "{changed}");
    for (&address, &rule) in sections.addresses.iter().zip(&whole) {
        assert_eq!(sections.rule(&mut context, address), rule);
    }
}

/// Parses random bytes in place of the sections.
#[test]
fn bytes_that_are_no_unwind_sections_give_none() {
    let mut context = Context::new_in();
    let mut random = Random::new();
    for _ in 0..inputs(60_000) {
        let mut bytes: Vec<u8> = (0..random.below(400)).map(|_| random.edge() as u8).collect();
        // A header that begins as one should, most of the time: version and encodings.
        for (byte, right) in bytes.iter_mut().zip([1, 0x1b, 0x03, 0x3b]) {
            if random.below(4) > 0 {
                *byte = right;
            }
        }
        let base = 0x10_0000;
        let address = base + random.below(1_000);
        row_rule(&mut context, base, address, |start| {
            start.checked_sub(base).and_then(|at| bytes.get(at..)).unwrap_or(&[])
        });
    }
}

/// Walks random words by random rules: the walk reads the stack between its pointer and its end, each time above the
/// last frame, and ends.
#[test]
fn walks_of_arbitrary_stacks_stay_inside_and_end() {
    let mut random = Random::new();
    let mut rules = Rules::new();
    let mut addresses = [0; MAX_ADDRESSES];
    let (mut gathered, mut longest) = (0u64, 0);
    let count = inputs(60_000);
    for number in 0..count {
        if number % 64 == 0 {
            rules.forget();
        }
        // Few different addresses, so that walks meet rules they know.
        let size = 1 + random.below(300);
        let sp = 0x7fff_0000_0000 + random.below(1 << 16) * WORD;
        let end = sp + size * WORD;
        let words: Vec<usize> = (0..size)
            .map(|at| match random.below(4) {
                0 => sp + (at + random.below(40)) * WORD,
                1 => random.edge() as usize,
                _ => 0x40_0000 + random.below(200),
            })
            .collect();
        let foreign = random.below(2) == 0;
        let last = Cell::new(sp);
        let read = |address: usize| {
            assert!(address >= sp && address.is_multiple_of(WORD), "{address:x} of {sp:x}");
            if foreign {
                // A foreign stack has an unknown end; here it continues with more such words.
                assert!(address < last.get() + 2 * FOREIGN_STEP);
            } else {
                assert!(address + WORD <= end, "{address:x} of {sp:x}..{end:x}");
            }
            last.set(last.get().max(address));
            Some(words[(address - sp) / WORD % words.len()])
        };
        let seed = random.next();
        let rule_of = |lookup: Lookup| {
            let (Lookup::Here(address) | Lookup::ReturnAddress(address)) = lookup;
            let mut random = (address as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |end: u64| {
                random = random.rotate_left(23).wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
                (random >> 32) % end
            };
            let rule = match below(20) {
                0 => Rule::END,
                1 => Rule::OTHER,
                2 => Rule::UNKNOWN,
                3 => Rule::step(below(2) == 0, below(1 << 32), Some(below(1 << 23) as i64 - (1 << 22)))
                    .unwrap_or(Rule::UNKNOWN),
                _ => {
                    let saved = (below(2) == 0).then(|| -8 - 8 * below(6) as i64);
                    Rule::step(below(3) == 0, 8 + 8 * below(12), saved).unwrap_or(Rule::UNKNOWN)
                }
            };
            RuleFound { rule, stays: below(8) > 0 }
        };
        let registers = Registers { pc: 0x40_0000 + random.below(200), sp, fp: sp + random.below(64) * 4 };
        let limit = 1 + random.below(MAX_ADDRESSES);
        let mut gather = Gather::new(&mut addresses, limit);
        let mut places = SlotOffsets::new();
        let bounds = StackBounds { end, size: end - (sp - random.below(1 << 12)), may_grow: false };
        if foreign {
            walk::<true>(&mut rules, registers, bounds, &mut gather, &mut places, read, rule_of);
        } else {
            walk::<false>(&mut rules, registers, bounds, &mut gather, &mut places, read, rule_of);
        }
        assert!(gather.len <= limit);
        gathered += gather.len as u64;
        longest = longest.max(gather.len);
        for &place in places.return_addresses() {
            assert!(foreign || usize::from(place) < size);
        }
    }
    rules.free();
    assert!(gathered > count && longest > 20, "{gathered} addresses, at most {longest}");
}
