//! Serializes a [`Snapshot`] to the bytes of its file, piece by piece.
//!
//! Any thread may use it. In one piece 100,000 tracebacks would take some hundred megabytes, when memory may be
//! scarce. Tracebacks share frames: the text of each is made once, and copied wherever it comes again.

use super::MOST_TEXT;
use super::write::{FileFrame, with_frames};
use crate::analyze::frame::Frame;
use crate::analyze::snapshot::{Snapshot, Trace};
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Length of a piece at least, but for the last.
const PIECE: usize = 64 << 10;

/// Returns the bytes that [`Snapshot::save`] writes, in pieces.
pub(crate) fn pieces(snapshot: impl Borrow<Snapshot>) -> impl Iterator<Item = Vec<u8>> {
    // The traces are the last member, so that everything else is the same as in an empty file before its end.
    let mut head = serde_json::to_vec(&snapshot.borrow().filtered(|_| false)).unwrap_or_default();
    head.truncate(head.len().saturating_sub("]}".len()));
    let (mut begun, mut next, texts) = (Some(head), 0, RefCell::default());
    std::iter::from_fn(move || {
        let mut piece = begun.take()?;
        for trace in &snapshot.borrow().traces[next..] {
            if piece.len() >= PIECE {
                begun = Some(Vec::with_capacity(PIECE + PIECE / 4));
                return Some(piece);
            }
            if next > 0 {
                piece.push(b',');
            }
            next += 1;
            // Strings and numbers alone: there is nothing it could refuse.
            let _ = serde_json::to_writer(&mut piece, &WithTexts { of: trace, texts: &texts });
        }
        piece.extend_from_slice(b"]}\n");
        Some(piece)
    })
}

/// Texts of frames, by the frame's address, which no other frame has as long as the snapshot exists.
#[derive(Default)]
struct Texts {
    known: HashMap<usize, Box<RawValue>>,
    /// Length of all texts.
    length: usize,
}

impl Texts {
    /// Returns the text of a frame, unless it comes but once, or there are too many.
    fn of(&mut self, frame: &Arc<Frame>) -> Option<&RawValue> {
        match self.known.entry(Arc::as_ptr(frame) as usize) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(_) if self.length >= MOST_TEXT || Arc::strong_count(frame) == 1 => None,
            Entry::Vacant(place) => {
                let text = to_raw_value(&FileFrame(frame)).ok()?;
                self.length += text.get().len();
                Some(place.insert(text))
            }
        }
    }
}

/// Value whose frames are written from ready texts; the output is the same as without them.
struct WithTexts<'a, T: ?Sized> {
    of: &'a T,
    texts: &'a RefCell<Texts>,
}

impl Serialize for WithTexts<'_, Trace> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let frames = WithTexts { of: self.of.traceback.shared_frames(), texts: self.texts };
        with_frames(self.of, &frames, serializer)
    }
}

impl Serialize for WithTexts<'_, [Arc<Frame>]> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.of.iter().map(|frame| WithTexts { of: frame, texts: self.texts }))
    }
}

impl Serialize for WithTexts<'_, Arc<Frame>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.texts.borrow_mut().of(self.of) {
            Some(text) => text.serialize(serializer),
            None => FileFrame(self.of).serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::frame::{Frame, Traceback};
    use crate::analyze::scope::ScopeLabels;
    use crate::analyze::snapshot::Trace;
    use std::time::SystemTime;

    #[test]
    fn the_pieces_are_the_file() {
        let shared = Arc::new(Frame::new(None, "src/ä.rs", 7));
        for count in [0, 1, 2, 5_000] {
            let traces = (0..count).map(|line| {
                let frame = Arc::new(Frame::new(Some("app::<\"x\">"), "src/a.rs", line));
                Trace {
                    domain: 0,
                    size: u64::from(line) + 1,
                    count: 1,
                    stderr: u64::from(line % 2),
                    traceback: Traceback::shared([shared.clone(), frame, shared.clone()], 4),
                    scope: ScopeLabels::new(
                        (0..line % 3).map(|key| (key.to_string().into(), "ä\"".into())).collect(),
                    ),
                }
            });
            let mut snapshot = Snapshot::of(SystemTime::UNIX_EPOCH, 32, traces.collect());
            if count > 1 {
                snapshot = snapshot.with_reason("limit");
            }
            let whole = serde_json::to_string(&snapshot).unwrap() + "\n";
            let pieces: Vec<Vec<u8>> = pieces(snapshot).collect();
            assert!(pieces.iter().all(|piece| piece.len() < PIECE + 1_000));
            assert_eq!(pieces.len(), whole.len() / (PIECE + 1_000) + 1, "{count}");
            assert_eq!(String::from_utf8(pieces.concat()).unwrap(), whole);
        }
    }
}
