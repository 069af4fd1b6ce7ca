//! Scopes of the largest stacks as the JSON that a dump has of them, in memory that is set aside.

use std::io::{self, Write};

#[cfg(feature = "http")]
use crate::analyze::scope::ScopeLabels;
use crate::record::raw_snapshot::{self, ScopeId};

/// Bytes set aside for the text of a scope, on average.
const TEXT: usize = 64;

/// Texts of scopes: objects with their keys and values. A scope that found no room has none.
#[derive(Clone, Debug, Default)]
pub(super) struct ScopeTexts {
    /// Scopes, ascending, and the places of their texts.
    known: Vec<(ScopeId, usize, usize)>,
    texts: Vec<u8>,
}

impl ScopeTexts {
    /// Sets memory aside for so many scopes.
    pub(super) fn with_room_for(scopes: usize) -> ScopeTexts {
        ScopeTexts { known: Vec::with_capacity(scopes), texts: Vec::with_capacity(scopes * TEXT) }
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.texts.clear();
    }

    /// Keeps the text of a scope of which a stack has just been read. Allocates only if it `is_growing`.
    pub(super) fn keep(&mut self, scope: ScopeId, is_growing: bool) {
        if scope == ScopeId::NONE {
            return;
        }
        let Err(place) = self.known.binary_search_by_key(&scope, |(known, ..)| *known) else { return };
        if self.known.len() == self.known.capacity() && !is_growing {
            return;
        }
        let begin = self.texts.len();
        let mut within = Within { texts: &mut self.texts, is_growing, is_full: false };
        raw_snapshot::with_scope(scope, |pairs| {
            // Texts alone, into memory: there is nothing it could refuse.
            let _ = write_object(&mut within, pairs);
        });
        if within.is_full || self.texts.len() == begin {
            self.texts.truncate(begin);
        } else {
            self.known.insert(place, (scope, begin, self.texts.len()));
        }
    }

    /// Takes over the texts of other ones, as far as there is room.
    pub(super) fn copy_from(&mut self, other: &ScopeTexts, is_growing: bool) {
        self.clear();
        for &(scope, begin, end) in &other.known {
            let has_room = self.known.len() < self.known.capacity()
                && end - begin <= self.texts.capacity() - self.texts.len();
            if has_room || is_growing {
                self.known.push((scope, self.texts.len(), self.texts.len() + end - begin));
                self.texts.extend_from_slice(&other.texts[begin..end]);
            }
        }
    }

    /// Returns the text of a scope.
    pub(super) fn get(&self, scope: ScopeId) -> Option<&str> {
        let place = self.known.binary_search_by_key(&scope, |(known, ..)| *known).ok()?;
        let (_, begin, end) = self.known[place];
        str::from_utf8(&self.texts[begin..end]).ok()
    }

    /// Returns the keys and values of a scope.
    #[cfg(feature = "http")]
    pub(super) fn labels(&self, scope: ScopeId) -> ScopeLabels {
        let pairs: Option<std::collections::BTreeMap<String, String>> =
            self.get(scope).and_then(|text| serde_json::from_str(text).ok());
        let pairs = pairs.unwrap_or_default().into_iter();
        ScopeLabels::new(pairs.map(|(key, value)| (key.into(), value.into())).collect())
    }
}

fn write_object(
    out: &mut Within<'_>,
    pairs: &mut dyn Iterator<Item = (&str, &str)>,
) -> Result<(), serde_json::Error> {
    let mut before: &[u8] = b"{";
    for (key, value) in pairs {
        out.put(before);
        serde_json::to_writer(&mut *out, key)?;
        out.put(b":");
        serde_json::to_writer(&mut *out, value)?;
        before = b",";
    }
    if before == b"," {
        out.put(b"}");
    }
    Ok(())
}

/// Writer that drops what finds no room. An error would be allocated.
struct Within<'a> {
    texts: &'a mut Vec<u8>,
    is_growing: bool,
    is_full: bool,
}

impl Within<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if self.is_growing || self.texts.capacity() - self.texts.len() >= bytes.len() {
            self.texts.extend_from_slice(bytes);
        } else {
            self.is_full = true;
        }
    }
}

impl Write for Within<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(texts: &mut ScopeTexts, number: u64, pairs: &[(&str, &str)], is_growing: bool) -> bool {
        let begin = texts.texts.len();
        let mut within = Within { texts: &mut texts.texts, is_growing, is_full: false };
        write_object(&mut within, &mut pairs.iter().copied()).unwrap();
        if within.is_full {
            texts.texts.truncate(begin);
            return false;
        }
        texts.known.push((ScopeId::sample(number), begin, texts.texts.len()));
        true
    }

    #[test]
    fn texts_stay_in_the_memory_that_was_set_aside() {
        let mut texts = ScopeTexts::with_room_for(2);
        let room = texts.texts.capacity();
        assert!(put(&mut texts, 1, &[("route", "/\"a\""), ("tenant", "ä")], false));
        assert!(!put(&mut texts, 2, &[("tenant", &"x".repeat(room))], false));
        assert_eq!(texts.get(ScopeId::sample(1)), Some(r#"{"route":"/\"a\"","tenant":"ä"}"#));
        assert_eq!((texts.get(ScopeId::sample(2)), texts.texts.capacity()), (None, room));
        let mut copy = ScopeTexts::default();
        copy.copy_from(&texts, false);
        assert_eq!(copy.get(ScopeId::sample(1)), None);
        copy.copy_from(&texts, true);
        assert_eq!(copy.get(ScopeId::sample(1)), texts.get(ScopeId::sample(1)));
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_text_is_read_back() {
        let mut texts = ScopeTexts::default();
        assert!(put(&mut texts, 7, &[("a", "1"), ("b", "x\u{1}y")], true));
        assert_eq!(texts.labels(ScopeId::sample(7)).to_string(), "a=1,b=x\u{1}y");
        assert!(texts.labels(ScopeId::NONE).is_empty());
    }
}
