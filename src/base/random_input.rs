//! Random malformed inputs from a seed, for the tests of code that reads input from outside.
//!
//! Tests only. `FUZZ_INPUTS` says how many inputs each of them tries, `FUZZ_SEED` which; the runs made so far are in
//! `tests/README.md`.
#![forbid(unsafe_code)]

use crate::base::splitmix::{INCREMENT, mix};

/// Generator of pseudo-random numbers.
pub(crate) struct Random(u64);

impl Random {
    /// Starts from `FUZZ_SEED`, 1 by default.
    pub(crate) fn new() -> Random {
        Random(number("FUZZ_SEED", 1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(INCREMENT);
        mix(self.0)
    }

    /// Returns a number below `end`, 0 where that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Returns a number of the kind programs get wrong: near 0, near a power of two, or any.
    pub(crate) fn edge(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() % 16,
            1 => (1u64 << self.below(64)).wrapping_add(self.next() % 5).wrapping_sub(2),
            2 => u64::MAX - self.next() % 16,
            _ => self.next(),
        }
    }

    /// Changes a few things: bits, bytes, numbers, pieces that are repeated, moved, cut out or put in.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>, words: &[&[u8]]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(16)).min(bytes.len());
            match self.below(8) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.next() as u8,
                2 => {
                    let number = self.edge().to_le_bytes();
                    let end = (at + self.one(&[1, 2, 4, 8])).min(bytes.len());
                    bytes[at..end].copy_from_slice(&number[..end - at]);
                }
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, piece);
                }
                5 => bytes.truncate(at),
                _ => {
                    let word = if words.is_empty() { &[0xff; 2][..] } else { self.one(words) };
                    bytes.splice(at..at, word.iter().copied());
                }
            }
        }
    }

    /// Returns a text of these words and of characters that are hard to write.
    pub(crate) fn text(&mut self, words: &[&str]) -> String {
        let mut text = String::new();
        for _ in 0..self.below(12) {
            match self.below(5) {
                0 => text.push(self.one(&[
                    '"',
                    '\\',
                    '\n',
                    '\r',
                    '\0',
                    '{',
                    '}',
                    '<',
                    '>',
                    ':',
                    'ä',
                    '\u{10ffff}',
                ])),
                1 => text.extend(char::from_u32(self.next() as u32 % 0x11_0000)),
                _ if words.is_empty() => text.push('x'),
                _ => text += self.one(words),
            }
        }
        text
    }
}

/// Returns the number of inputs that a test tries: `FUZZ_INPUTS`, or this many.
pub(crate) fn inputs(lean: u64) -> u64 {
    number("FUZZ_INPUTS", lean)
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}
