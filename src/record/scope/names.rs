//! Keys and values of combinations, as the program hands them over and as readers get them.

use crate::record::scope::id::ScopeId;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Value of a key where there was no room for the combination.
pub(crate) const OTHER: &str = "[other]";

/// Most characters of a key and of a value.
const MOST_CHARS: usize = 64;

/// Most keys of a combination.
pub(crate) const MOST_KEYS: usize = 16;

/// Keys with their values, ascending by key.
pub(crate) type Names = Arc<[(&'static str, Arc<str>)]>;

/// Returns a key as it is shown: `?` for one that is empty, too long, or has a colon, `=`, a backslash or a character that is not
/// printable.
pub(crate) fn shown_key(key: &'static str) -> &'static str {
    if is_plain(key, |byte| byte != b'=') {
        return key;
    }
    let is_shown = |c: char| is_printable(c) && !matches!(c, ':' | '=' | '\\');
    let may_be_shown = !key.is_empty() && key.chars().all(is_shown) && key.chars().nth(MOST_CHARS).is_none();
    if may_be_shown { key } else { "?" }
}

/// Returns whether a key or a value is short and of letters, digits and the like alone, as most are, and of bytes that may be in it.
#[inline]
fn is_plain(text: &str, may_be: impl Fn(u8) -> bool) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b':' && byte != b'\\' && may_be(byte);
    (1..=MOST_CHARS).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Returns a value as it is shown: its first 64 characters, each that is not printable as `?`; `?` for an empty one. A backslash, which
/// metrics do not allow everywhere, is a slash.
#[inline]
pub(crate) fn shown_value(value: &str) -> Cow<'_, str> {
    if is_plain(value, |_| true) { value.into() } else { shown_value_slow(value) }
}

#[inline(never)]
fn shown_value_slow(value: &str) -> Cow<'_, str> {
    if value.is_empty() {
        return "?".into();
    }
    let end = value.char_indices().nth(MOST_CHARS).map_or(value.len(), |(at, _)| at);
    let kept = &value[..end];
    if kept.chars().all(|c| is_printable(c) && c != '\\') {
        return kept.into();
    }
    let shown = |c: char| match c {
        '\\' => '/',
        c if is_printable(c) => c,
        _ => '?',
    };
    kept.chars().map(shown).collect::<String>().into()
}

/// Returns whether a character is one that a reader sees: no control, no separator of lines, no change of direction, and none without
/// width, with which two values would look alike.
fn is_printable(c: char) -> bool {
    let is_hidden = matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
    );
    !c.is_control() && !is_hidden
}

/// A key with a borrowed value.
pub(crate) type Pair<'a> = (&'static str, &'a str);

/// Returns whether these pairs, ascending by key, are the names.
pub(crate) fn are(pairs: &[Pair<'_>], names: &Names) -> bool {
    pairs.len() == names.len()
        && pairs.iter().zip(names.iter()).all(|(pair, (key, value))| pair.0 == *key && pair.1 == &**value)
}

/// Copies pairs.
pub(crate) fn to_names(pairs: &[Pair<'_>]) -> Names {
    pairs.iter().map(|(key, value)| (*key, Arc::from(*value))).collect()
}

/// Keys with borrowed values, ascending by key, while a combination is made.
pub(crate) struct Pairs<'a> {
    pairs: [Pair<'a>; MOST_KEYS],
    len: usize,
}

impl<'a> Pairs<'a> {
    /// Makes a combination without a key.
    pub(crate) fn new() -> Pairs<'a> {
        Pairs { pairs: [("", ""); MOST_KEYS], len: 0 }
    }

    /// Borrows those of a combination.
    pub(crate) fn of(names: &'a Names) -> Pairs<'a> {
        let mut pairs = Pairs::new();
        for (key, value) in names.iter() {
            pairs.set(key, value);
        }
        pairs
    }

    /// Sets the value of a key; false where there is no room for another key.
    pub(crate) fn set(&mut self, key: &'static str, value: &'a str) -> bool {
        let at = self.as_slice().partition_point(|(other, _)| *other < key);
        match self.pairs[..self.len].get_mut(at) {
            Some((other, present)) if *other == key => *present = value,
            _ if self.len == MOST_KEYS => return false,
            _ => {
                self.pairs.copy_within(at..self.len, at + 1);
                self.pairs[at] = (key, value);
                self.len += 1;
            }
        }
        true
    }

    /// Makes the same keys with `[other]` as the value of each.
    pub(crate) fn others(pairs: &[Pair<'_>]) -> Pairs<'static> {
        let mut others = Pairs::new();
        for (key, _) in pairs {
            others.set(key, OTHER);
        }
        others
    }

    pub(crate) fn as_slice(&self) -> &[Pair<'a>] {
        &self.pairs[..self.len]
    }
}

/// Keys and values of the combinations of a reading.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScopeNames(BTreeMap<ScopeId, Names>);

impl ScopeNames {
    /// Makes them of some combinations.
    pub(crate) fn new(names: impl IntoIterator<Item = (ScopeId, Names)>) -> ScopeNames {
        ScopeNames(names.into_iter().collect())
    }

    /// Makes them of these, for tests.
    #[cfg(test)]
    pub(crate) fn sample(all: &[(ScopeId, &[(&'static str, &str)])]) -> ScopeNames {
        let names = |pairs: &[(&'static str, &str)]| {
            let mut all = Pairs::new();
            pairs.iter().for_each(|(key, value)| assert!(all.set(key, value)));
            to_names(all.as_slice())
        };
        ScopeNames::new(all.iter().map(|(id, pairs)| (*id, names(pairs))))
    }

    /// Returns the keys and values of a combination, ascending by key; none for [`ScopeId::NONE`], and for one that was over.
    pub(crate) fn of(&self, id: ScopeId) -> &[(&'static str, Arc<str>)] {
        self.0.get(&id).map_or(&[], |names| names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_shown_plainly() {
        assert_eq!(shown_key("tenant"), "tenant");
        for key in [
            "",
            "a:b",
            "a=b",
            "a\\b",
            "a\nb",
            "a\u{202e}",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            assert_eq!(shown_key(key), "?", "{key:?}");
        }
        assert_eq!(shown_value("acme"), "acme");
        assert_eq!(shown_value(""), "?");
        assert_eq!(shown_value("a\tb\u{2028}ü\\c"), "a?b?ü/c");
        assert_eq!(shown_value("acme\u{200b}\u{200d}\u{2060}\u{ad}"), "acme????");
        assert_eq!(shown_value(&"ü".repeat(100)), "ü".repeat(64));
        assert_eq!(shown_value(&"\0".repeat(100)), "?".repeat(64));
    }

    #[test]
    fn a_key_has_one_value() {
        let mut pairs = Pairs::new();
        for (key, value) in [("tenant", "acme"), ("route", "/"), ("tenant", "other"), ("zone", "a")] {
            assert!(pairs.set(key, value));
        }
        assert_eq!(pairs.as_slice(), [("route", "/"), ("tenant", "other"), ("zone", "a")]);
        let others = Pairs::others(pairs.as_slice());
        assert_eq!(others.as_slice(), [("route", OTHER), ("tenant", OTHER), ("zone", OTHER)]);
        let names = to_names(pairs.as_slice());
        let is = |pairs: &Pairs<'_>| are(pairs.as_slice(), &names);
        assert!(is(&pairs) && !is(&others) && is(&Pairs::of(&names)) && !is(&Pairs::new()));
        let all = ScopeNames::new([(ScopeId::new(1, 1), names)]);
        assert_eq!(all.of(ScopeId::new(1, 1)).len(), 3);
        assert!(all.of(ScopeId::NONE).is_empty() && all.of(ScopeId::new(1, 2)).is_empty());
    }

    #[test]
    fn keys_are_bounded() {
        const KEYS: [&str; 17] =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"];
        let mut pairs = Pairs::new();
        assert!(KEYS[..16].iter().rev().all(|key| pairs.set(key, "1")) && !pairs.set("q", "1"));
        assert!(pairs.set("c", "2") && pairs.as_slice()[2] == ("c", "2"));
        assert!(pairs.as_slice().is_sorted());
    }
}
