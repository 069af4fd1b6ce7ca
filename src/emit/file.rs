//! [`Snapshot`] → the bytes of its file, piece by piece.
//!
//! For any thread. In one piece 100,000 tracebacks would take some hundred megabytes, when memory may be
//! what is short.
#![forbid(unsafe_code)]

use crate::snapshot::Snapshot;

/// A piece is at least this long, but for the last.
const PIECE: usize = 64 << 10;

/// What [`Snapshot::save`] writes.
pub(crate) fn pieces(snapshot: Snapshot) -> impl Iterator<Item = Vec<u8>> {
    // The traces are the last member, so that everything else is what an empty file has before its end.
    let mut head = serde_json::to_vec(&snapshot.filtered(|_| false)).unwrap_or_default();
    head.truncate(head.len().saturating_sub("]}".len()));
    let (mut begun, mut next) = (Some(head), 0);
    std::iter::from_fn(move || {
        let mut piece = begun.take()?;
        for trace in &snapshot.traces()[next..] {
            if piece.len() >= PIECE {
                begun = Some(Vec::new());
                return Some(piece);
            }
            if next > 0 {
                piece.push(b',');
            }
            next += 1;
            // Strings and numbers alone: there is nothing it could refuse.
            let _ = serde_json::to_writer(&mut piece, trace);
        }
        piece.extend_from_slice(b"]}\n");
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, Traceback};
    use crate::snapshot::Trace;
    use std::time::SystemTime;

    #[test]
    fn the_pieces_are_the_file() {
        for count in [0, 1, 2, 5_000] {
            let traces = (0..count).map(|line| Trace {
                domain: 0,
                size: u64::from(line) + 1,
                count: 1,
                stderr: 0,
                traceback: Traceback::new([Frame::new(Some("app::<\"x\">"), "src/a.rs", line)]),
            });
            let snapshot = Snapshot::of(SystemTime::UNIX_EPOCH, 32, traces.collect());
            let whole = serde_json::to_string(&snapshot).unwrap() + "\n";
            let pieces: Vec<Vec<u8>> = pieces(snapshot).collect();
            assert!(pieces.iter().all(|piece| piece.len() < PIECE + 1_000));
            assert_eq!(pieces.len(), whole.len() / (PIECE + 1_000) + 1, "{count}");
            assert_eq!(String::from_utf8(pieces.concat()).unwrap(), whole);
        }
    }
}
