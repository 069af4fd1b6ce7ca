//! Fingerprint of a stack: 64-bit sum of its words, each times a factor of its position.
//!
//! Pure arithmetic; any thread. Four chains take turns, and each multiplies by a factor of its own at each step: Horner's
//! rule, with no table of factors and no word that waits for the one before it. Where a program does little but allocate,
//! the time from the first word to the sum is the cost.

#[cfg(all(target_os = "linux", any(target_arch = "aarch64", miri)))]
use crate::record::stack_id::stack_word::read;

/// Number of words in a group, one for each chain. The last group may have fewer.
const GROUP: usize = 4;

/// Largest number of words in a sum.
pub(crate) const MOST: usize = 104;
// The block of assembler below has as many groups.
const _: () = assert!(MOST == 26 * GROUP);

/// Factors of the chains. A word's factor is a power of its chain's, by the number of its group, from one on.
///
/// They are odd, so that a difference in one word always shows; prime, so that differences in two words of the first group cancel
/// only where they are 2^30 and more; random, so that other differences cancel with a probability of 2^-60, and three in the first
/// group, whose factors have 31 bits, of about 2^-45; 5 modulo 8, so that powers repeat after 2^62 only; and short enough for a field
/// of the multiplication's instruction.
const FACTORS: [i32; GROUP] = [0x431e_14f5, 0x6502_c8cd, 0x59e5_4fa5, 0x6be0_fe9d];

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const SAMPLED: u64 = 0xd6e8_feb8_6659_fd93;

/// Computes Σ word × factor, modulo 2^64, over the words at `places`, at most [`MOST`].
pub(crate) fn sum<P: Copy>(places: &[P], word: impl Fn(P) -> usize) -> u64 {
    debug_assert!(places.len() <= MOST, "{} words", places.len());
    let mut chains = [0u64; GROUP];
    let mut add = |group: &[P]| {
        for (chain, (place, factor)) in chains.iter_mut().zip(group.iter().zip(FACTORS)) {
            // The factor of the last group is multiplied at the end: this way aarch64 takes one instruction for the two.
            *chain = chain.wrapping_mul(factor as u64).wrapping_add(word(*place) as u64);
        }
    };
    let (whole, rest) = places.split_at(places.len() - places.len() % GROUP);
    add(rest);
    whole.rchunks_exact(GROUP).for_each(add);
    chains
        .into_iter()
        .zip(FACTORS)
        .fold(0, |sum, (chain, factor)| sum.wrapping_add(chain.wrapping_mul(factor as u64)))
}

/// Bytes of code for each word in `sum_of_words`.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
const WORD_CODE: usize = 15;

/// Returns the bytes of code that a sum of so many words takes.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) const fn code_of(words: usize) -> u16 {
    (words * WORD_CODE) as u16
}

/// Returns the number of words whose sum takes so many bytes of code.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) const fn words_of(code: u16) -> usize {
    code as usize / WORD_CODE
}

/// Bytes from the offsets to the address that displacements of one byte count from.
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
const BIAS: usize = 127;

/// Sums words by assembler: so many bytes of code, with offsets that lie [`BIAS`] bytes before `$places`, from the register
/// `$stack`; and runs the instruction `$last` on the sum in r8. Leaves `$places` as it is.
///
/// Each word takes three instructions of [`WORD_CODE`] bytes. They stand in a row, those of the last word first, and the jump skips
/// the words that the stack does not have. A loop in Rust takes a sixth more instructions, and more registers, which
/// `record_alloc` would have to save.
///
/// `notrack`: the target is no address that has been taken, so a processor that tracks indirect jumps has to be told.
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
macro_rules! sum_of_words {
    ($stack:literal, $last:literal, $code:expr, $places:ident, $sum:ident, $($operand:tt)*) => {
        std::arch::asm!(
            "lea rax, [rip + 2f]",
            "sub rax, r8",
            "xor r8d, r8d",
            "xor r9d, r9d",
            "xor r10d, r10d",
            "xor r11d, r11d",
            "notrack jmp rax",
            ".irp group, 25,24,23,22,21,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0",
            // Displacements of one byte, none of which is 0: that would have a shorter form.
            "movzx eax, word ptr [rcx + (8 * \\group - 121)]",
            concat!("add r11, qword ptr [", $stack, " + 8 * rax]"),
            "imul r11, r11, {f3}",
            "movzx eax, word ptr [rcx + (8 * \\group - 123)]",
            concat!("add r10, qword ptr [", $stack, " + 8 * rax]"),
            "imul r10, r10, {f2}",
            "movzx eax, word ptr [rcx + (8 * \\group - 125)]",
            concat!("add r9, qword ptr [", $stack, " + 8 * rax]"),
            "imul r9, r9, {f1}",
            "movzx eax, word ptr [rcx + (8 * \\group - 127)]",
            concat!("add r8, qword ptr [", $stack, " + 8 * rax]"),
            "imul r8, r8, {f0}",
            ".endr",
            "2:",
            "add r8, r9",
            "add r10, r11",
            "add r8, r10",
            $last,
            f0 = const FACTORS[0],
            f1 = const FACTORS[1],
            f2 = const FACTORS[2],
            f3 = const FACTORS[3],
            inout("rcx") $places,
            inout("r8") u64::from($code) => $sum,
            $($operand)*,
            out("rax") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            options(pure, readonly, nostack),
        )
    };
}

/// Computes the [`sum`] of the words at these offsets from the stack pointer, counted in words.
///
/// # Safety
///
/// * They are at most [`MOST`], and the words can be read.
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
pub(crate) unsafe fn sum_of_stack(places: &[u16], stack_pointer: usize) -> u64 {
    debug_assert!(places.len() <= MOST, "{} words", places.len());
    debug_assert!(stack_pointer.is_multiple_of(align_of::<usize>()), "no stack is at {stack_pointer:#x}");
    let mut biased = places.as_ptr().wrapping_byte_add(BIAS);
    let sum: u64;
    // SAFETY: reads memory only, by the caller's duty; the jump leads to the first instruction of a word, or to the end.
    unsafe { sum_of_words!("rdx", "", code_of(places.len()), biased, sum, in("rdx") stack_pointer) };
    let _ = biased;
    sum
}

/// Computes the sum as [`sum_of_stack`] does, from the stack pointer of the function that this is inlined into, of the words that
/// take so many bytes of code, and adds the term that lies `TERM` bytes behind `base`.
///
/// Returns the address of the offsets as well. The compiler, which does not know that it is the same, need not keep it twice. Nor
/// would it make the term part of the instruction that adds it.
///
/// # Safety
///
/// * As for [`sum_of_stack`]; the code is [`code_of`] their number. The term can be read, and no other thread writes it.
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub(crate) unsafe fn sum_of_this_stack<const TERM: usize>(
    places: *const u16,
    code: u16,
    _stack_pointer: usize,
    base: *const u8,
) -> (u64, *const u16) {
    let mut biased = places.wrapping_byte_add(BIAS);
    let sum: u64;
    // SAFETY: as in `sum_of_stack`, and by the caller's duty for the term.
    unsafe {
        sum_of_words!(
            "rsp", "add r8, qword ptr [{base} + {term}]", code, biased, sum,
            base = in(reg) base, term = const TERM
        )
    };
    (sum, biased.wrapping_byte_sub(BIAS))
}

/// Computes the [`sum`] of the words at these offsets from the stack pointer, counted in words.
///
/// # Safety
///
/// * The words can be read.
#[cfg(all(target_os = "linux", any(target_arch = "aarch64", miri)))]
#[inline(always)]
pub(crate) unsafe fn sum_of_stack(places: &[u16], stack_pointer: usize) -> u64 {
    // SAFETY: the caller's duty.
    sum(places, |place| unsafe { read(stack_pointer + usize::from(place) * size_of::<usize>()) })
}

/// Computes the sum as [`sum_of_stack`] does, of the words that take so many bytes of code, and adds the term that lies `TERM` bytes
/// behind `base`. Returns the address of the offsets as well.
///
/// # Safety
///
/// * As for [`sum_of_stack`]; the code is [`code_of`] their number. The term can be read, and no other thread writes it.
#[cfg(all(target_os = "linux", any(target_arch = "aarch64", miri)))]
#[inline(always)]
pub(crate) unsafe fn sum_of_this_stack<const TERM: usize>(
    places: *const u16,
    code: u16,
    stack_pointer: usize,
    base: *const u8,
) -> (u64, *const u16) {
    // SAFETY: the caller's duty.
    unsafe {
        let sum = sum_of_stack(std::slice::from_raw_parts(places, words_of(code)), stack_pointer);
        (sum.wrapping_add(base.byte_add(TERM).cast::<u64>().read()), places)
    }
}

/// Fingerprint of a stack: shared by all threads (`sum`), and within one thread (`check`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fingerprint {
    /// Sum over the addresses: two stacks share it with probability 2^-60.
    pub sum: u64,
    /// Sum over the addresses and the frame layout, see `frame_layout`; over the addresses alone where the layout is
    /// unknown. Compared within one thread. Never 0.
    pub check: u64,
}

impl Fingerprint {
    /// Makes the fingerprint of a stack whose frame layout is unknown.
    pub(crate) fn of_addresses(sum: u64) -> Fingerprint {
        Fingerprint { sum, check: sum | 1 }
    }

    /// Returns the fingerprint of this stack with blocks sampled every `interval` bytes.
    pub(crate) fn sampled_every(self, interval: u32) -> Fingerprint {
        let term = u64::from(interval).wrapping_mul(SAMPLED);
        // Even, so that a check stays odd.
        Fingerprint { sum: self.sum.wrapping_add(term), check: self.check.wrapping_add(term << 1) }
    }

    /// Returns the fingerprint of this stack in the scopes of this term, which is even.
    pub(crate) fn in_scope(self, term: u64) -> Fingerprint {
        debug_assert!(term.is_multiple_of(2), "a check stays odd");
        Fingerprint { sum: self.sum.wrapping_add(term), check: self.check.wrapping_add(term) }
    }

    /// Hashes the sum; the hash is the same in all threads.
    #[inline(always)]
    pub(crate) fn hash(self) -> u64 {
        let product = u128::from(self.sum) * u128::from(MIX);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random_input::Random;
    use std::collections::HashSet;

    fn of(words: &[usize]) -> u64 {
        sum(words, |word| word)
    }

    #[test]
    fn every_place_counts_otherwise() {
        let factors: HashSet<u64> = (0..96)
            .map(|place| {
                let mut words = [0; 96];
                words[place] = 1;
                of(&words)
            })
            .collect();
        assert_eq!(factors.len(), 96);
        assert!(factors.iter().all(|factor| factor % 2 == 1), "a difference in one word may not show");
    }

    #[test]
    fn a_sum_of_the_stack_is_the_sum_of_its_words() {
        let stack: Vec<usize> =
            (0..1 << 16).map(|i: usize| i.wrapping_mul(MIX as usize).rotate_left(29)).collect();
        let mut random = Random::new();
        for len in 0..=MOST {
            let places: Vec<u16> = (0..len).map(|_| random.next() as u16).collect();
            // SAFETY: the words are those of `stack`, which has as many as offsets can have values.
            let found = unsafe { sum_of_stack(&places, stack.as_ptr().expose_provenance()) };
            assert_eq!(found, sum(&places, |place| stack[usize::from(place)]), "{len} words");
        }
    }

    /// Checks the linearity by which `FrameLayout::check` makes frame pointers relative to the stack's end.
    #[test]
    fn sums_are_linear() {
        let words: Vec<usize> = (0..24).map(|i| 0x5555_0000_1234 + i * i * 977).collect();
        let others: Vec<usize> = (0..24).map(|i| i * 0x7fff_1234_5671).collect();
        let both: Vec<usize> = words.iter().zip(&others).map(|(a, b)| a.wrapping_add(*b)).collect();
        assert_eq!(of(&words).wrapping_add(of(&others)), of(&both));
    }

    /// Tries addresses of neighbouring calls in any two of 24 frames, and frames that change places.
    #[test]
    fn neighbouring_calls_do_not_meet() {
        let base: Vec<usize> = (0..24).map(|frame| 0x5555_5560_0000 + frame * 0x140).collect();
        let mut seen = HashSet::from([of(&base)]);
        let mut tried = 1;
        for (first, second) in (0..24).flat_map(|first| (0..first).map(move |second| (first, second))) {
            for step in 1..40 {
                let mut words = base.clone();
                words[first] += step;
                words[second] -= step;
                seen.insert(of(&words));
                words[first] += step * 3;
                seen.insert(of(&words));
                tried += 2;
            }
            let mut words = base.clone();
            words.swap(first, second);
            seen.insert(of(&words));
            tried += 1;
        }
        assert_eq!(seen.len(), tried);
    }
}
