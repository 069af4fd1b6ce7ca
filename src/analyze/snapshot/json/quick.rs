//! Reads a file in the form [`Snapshot::save`] writes, in a third of the time.
//!
//! Any thread may use it. Traces repeat the same frames: the text of each is parsed once, and looked up when it
//! comes again. Only a window of the file is in memory. All this is a short cut: a file in another form, or with
//! a fault, gives `None` here, and is left to the reader beside this, which describes the fault.

use super::read::{Shared, parse};
use super::{MAX_FRAMES, MOST_TEXT};
use crate::analyze::frame::{Frame, Traceback};
use crate::analyze::snapshot::{Snapshot, Trace};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

/// Size of the window: small enough for a processor's own cache.
const WINDOW: usize = 256 << 10;

/// Largest window, for a trace longer than that. It may be an array of digits, each eight times as long when read.
const LARGEST_WINDOW: usize = 4 << 20;

/// Text before the traces. No text of the file can hold it, as its quotes would have to be escaped.
const BEFORE_TRACES: &[u8] = b",\"traces\":[";

/// Longest text before the traces, as the rest of a snapshot is shorter.
const LONGEST_HEAD: usize = 4 << 10;

/// Returns the snapshot that the other reader would return, or nothing.
pub(super) fn read(file: impl Read) -> Option<Snapshot> {
    Window { file, bytes: vec![0; WINDOW], begin: 0, end: 0 }.snapshot()
}

/// Window of a file.
struct Window<F> {
    file: F,
    bytes: Vec<u8>,
    /// Start of the bytes that are read from the file and not yet looked at,
    begin: usize,
    /// and their end.
    end: usize,
}

impl<F: Read> Window<F> {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.begin..self.end]
    }

    /// Reads more of the file; false at its end; `None` where it cannot be read, or the rest fills the largest window.
    fn more(&mut self) -> Option<bool> {
        self.bytes.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        if self.end == self.bytes.len() {
            let larger = 2 * self.bytes.len();
            if larger > LARGEST_WINDOW {
                return None;
            }
            self.bytes.resize(larger, 0);
        }
        let before = self.end;
        while self.end < self.bytes.len() {
            match self.file.read(&mut self.bytes[self.end..]).ok()? {
                0 => break,
                read => self.end += read,
            }
        }
        Some(self.end > before)
    }

    /// Returns the next byte, `Some(None)` at the end of the file.
    fn peek(&mut self) -> Option<Option<u8>> {
        if self.begin == self.end && !self.more()? {
            return Some(None);
        }
        Some(Some(self.bytes[self.begin]))
    }

    /// Steps over the next byte if it is this one, and returns whether it was.
    fn skip(&mut self, byte: u8) -> Option<bool> {
        let found = self.peek()? == Some(byte);
        self.begin += usize::from(found);
        Some(found)
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        self.more()?;
        let begin = &self.rest()[..self.rest().len().min(LONGEST_HEAD)];
        let at = begin.windows(BEFORE_TRACES.len()).position(|bytes| bytes == BEFORE_TRACES)?;
        // Read as a file without traces: then they are a member of the file itself, the only one of that name, and
        // nothing else is missing or wrong.
        let head = [&begin[..at + BEFORE_TRACES.len()], b"]}"].concat();
        let mut snapshot = parse(serde_json::Deserializer::from_slice(&head)).ok()?;
        self.begin = at + BEFORE_TRACES.len();

        let mut frames = Frames::default();
        let mut ended = self.skip(b']')?;
        while !ended {
            snapshot.traces.push(self.trace(&mut frames)?);
            ended = self.skip(b']')?;
            if !ended && !self.skip(b',')? {
                return None;
            }
        }
        if !self.skip(b'}')? {
            return None;
        }
        while let Some(byte) = self.peek()? {
            if !b" \t\r\n".contains(&byte) {
                return None;
            }
            self.begin += 1;
        }
        Some(snapshot)
    }

    fn trace(&mut self, frames: &mut Frames) -> Option<Trace> {
        // A derived reader accepts an array, too.
        if self.peek()? != Some(b'{') {
            return None;
        }
        loop {
            let mut values = serde_json::Deserializer::from_slice(self.rest()).into_iter::<TraceText>();
            let error = match values.next()? {
                Ok(text) => {
                    let trace = frames.trace(text)?;
                    self.begin += values.byte_offset();
                    return Some(trace);
                }
                Err(error) => error,
            };
            if !error.is_eof() || !self.more()? {
                return None;
            }
        }
    }
}

/// Trace with its frames as they are written.
#[derive(Deserialize)]
struct TraceText<'a> {
    domain: u32,
    size: u64,
    count: u64,
    #[serde(default)]
    stderr: u64,
    total_frames: usize,
    #[serde(default)]
    site: usize,
    #[serde(borrow)]
    frames: Vec<&'a RawValue>,
}

/// Frames of one file, by the text they are written as.
#[derive(Default)]
struct Frames {
    known: HashMap<Box<str>, Arc<Frame>>,
    /// Length of all those texts.
    known_text: usize,
    shared: Shared,
}

impl Frames {
    fn trace(&mut self, text: TraceText) -> Option<Trace> {
        let kept = text.frames.len();
        if kept == 0 || kept > MAX_FRAMES || text.total_frames < kept || text.site >= kept {
            return None;
        }
        let mut frames = Vec::with_capacity(kept);
        for frame in text.frames {
            frames.push(self.frame(frame.get())?);
        }
        Some(Trace {
            domain: text.domain,
            size: text.size,
            count: text.count,
            stderr: text.stderr,
            traceback: Traceback::shared(frames, text.total_frames).with_site(text.site),
        })
    }

    fn frame(&mut self, text: &str) -> Option<Arc<Frame>> {
        if let Some(frame) = self.known.get(text) {
            return Some(frame.clone());
        }
        let frame = self.shared.frame_of(text)?;
        if self.known_text + text.len() <= MOST_TEXT {
            self.known_text += text.len();
            self.known.insert(text.into(), frame.clone());
        }
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random_input::{Random, inputs};
    use std::io;

    /// Reader that gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], &'a mut Random);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = (1 + self.1.below(50)).min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(read);
            buffer[..read].copy_from_slice(now);
            self.0 = later;
            Ok(read)
        }
    }

    fn careful(bytes: &[u8]) -> serde_json::Result<Snapshot> {
        parse(serde_json::Deserializer::from_slice(bytes))
    }

    const SEED: &str = concat!(
        r#"{"version":1,"taken_at":1793000000.25,"traceback_limit":32,"build_id":"ab","sample_interval":7,"traces":["#,
        r#"{"domain":0,"size":30,"count":3,"stderr":2,"total_frames":3,"frames":["#,
        r#"{"function":"app::{{closure}}","file":"a.rs","line":2},{"function":"ä","file":"a.rs","line":2}]},"#,
        r#"{"domain":7,"size":0,"count":1,"total_frames":2,"site":1,"frames":["#,
        r#"{"function":"app::{{closure}}","file":"a.rs","line":2},"#,
        r#"{"function":null,"file":"<unknown>","line":0,"module":"app","offset":17}]}]}"#,
        "\n"
    );

    #[test]
    fn what_is_written_is_read_like_this() {
        assert_eq!(read(SEED.as_bytes()).unwrap(), careful(SEED.as_bytes()).unwrap());
        let mut written = serde_json::to_vec(&careful(SEED.as_bytes()).unwrap()).unwrap();
        written.push(b'\n');
        assert_eq!(String::from_utf8(written).unwrap(), SEED);
        let (head, _) = SEED.split_once('[').unwrap();
        assert_eq!(read(format!("{head}[]}}").as_bytes()).unwrap().traces(), []);
        // Where the same frame comes again, it is the same.
        let snapshot = read(SEED.as_bytes()).unwrap();
        let [first, second] = snapshot.traces() else { panic!("{snapshot:?}") };
        assert!(Arc::ptr_eq(&first.traceback.shared_frames()[0], &second.traceback.shared_frames()[0]));
    }

    /// Compares both readers: a file that this one reads gives the same with the other, which alone judges the rest.
    #[test]
    fn a_short_cut_ends_where_the_way_does() {
        let words: [&[u8]; 16] = [
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b" ",
            b"\n",
            b"null",
            b"-1",
            b"1e999",
            b"18446744073709551616",
            b"\\ud800",
            b"\"x\":[{}],",
            b",\"traces\":[",
            b"\"frames\":[],",
            b"\xff\xfe",
        ];
        let mut random = Random::new();
        let (mut read, mut left) = (0, 0);
        for _ in 0..inputs(60_000) {
            let mut bytes = SEED.as_bytes().to_vec();
            random.mutate(&mut bytes, &words);
            let quick = Window {
                bytes: vec![0; 200 + random.below(600)],
                file: Slow(&bytes, &mut random),
                begin: 0,
                end: 0,
            }
            .snapshot();
            let careful = careful(&bytes);
            match quick {
                Some(snapshot) => {
                    let careful = careful.unwrap();
                    let text = |snapshot: &Snapshot| serde_json::to_string(snapshot).unwrap();
                    assert_eq!(text(&snapshot), text(&careful), "{}", String::from_utf8_lossy(&bytes));
                    read += 1;
                }
                None => left += usize::from(careful.is_ok()),
            }
        }
        // As good as everything that can be read at all.
        assert!(read > 100 && left < read / 20, "{read} {left}");
    }
}
