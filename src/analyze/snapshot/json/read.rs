//! Reads a [`Snapshot`] from a JSON file of any origin, or returns the reason in one line.

use super::{Bounded, IN_ONE_PIECE, MAX_BYTES, MAX_FRAMES, MAX_PROBLEM, VERSION, Watched};
use crate::analyze::frame::{Frame, Traceback};
use crate::analyze::snapshot::{Snapshot, Trace};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Reads a file; the error is its text without the path.
pub(in crate::analyze::snapshot) fn read(
    path: &Path,
    bytes_read: &AtomicU64,
) -> Result<Snapshot, Box<dyn std::error::Error + Send + Sync>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_BYTES {
        return Err(format!("{length} bytes, allowed are at most {MAX_BYTES}").into());
    }
    let mut file = Bounded { inner: Watched { inner: file, read: bytes_read }, left: MAX_BYTES };
    let parsed = if length > 0 && length <= IN_ONE_PIECE {
        let mut bytes = Vec::with_capacity(length as usize + 1);
        file.read_to_end(&mut bytes)?;
        // A file with a fault is read again, for a description that has its place in the file.
        parse(serde_json::Deserializer::from_slice(&bytes), Frames::ByText)
            .or_else(|_| parse(serde_json::Deserializer::from_slice(&bytes), Frames::ByMember))
    } else {
        // A file without a known length, or one that would take too much of the memory.
        let file = BufReader::with_capacity(1 << 16, file);
        parse(serde_json::Deserializer::from_reader(file), Frames::ByMember)
    };
    parsed.map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "the file is truncated",
            serde_json::error::Category::Syntax => "not JSON",
            serde_json::error::Category::Data => "not a snapshot",
            serde_json::error::Category::Io => "reading failed",
        };
        format!("{what}: {}", short(&error.to_string())).into()
    })
}

/// Ways to read the frames of a trace.
#[derive(Clone, Copy, Default)]
pub(super) enum Frames {
    /// Looks the text of a frame up among those that were read before, as traces repeat the same frames. Needs the whole
    /// file in memory.
    ByText,
    #[default]
    ByMember,
}

pub(super) fn parse<'de, R: serde_json::de::Read<'de>>(
    mut json: serde_json::Deserializer<R>,
    frames: Frames,
) -> serde_json::Result<Snapshot> {
    let snapshot = SnapshotReader(frames).deserialize(&mut json)?;
    json.end().map(|()| snapshot)
}

/// Shortens a problem, which may hold a text of the file: its end, which gives the place, is more use than the middle.
pub(super) fn short(problem: &str) -> String {
    let length = problem.chars().count();
    if length <= MAX_PROBLEM {
        return problem.to_owned();
    }
    let begin: String = problem.chars().take(MAX_PROBLEM / 2).collect();
    let end: String = problem.chars().skip(length - MAX_PROBLEM / 2).collect();
    format!("{begin}…{end}")
}

/// Stores a member of an object; a second one of that name is an error.
fn once<T, E: de::Error>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), E> {
    match place.replace(value) {
        Some(_) => Err(de::Error::duplicate_field(name)),
        None => Ok(()),
    }
}

fn given<T, E: de::Error>(place: Option<T>, name: &'static str) -> Result<T, E> {
    place.ok_or_else(|| de::Error::missing_field(name))
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum SnapshotMember {
    Version,
    TakenAt,
    TracebackLimit,
    BuildId,
    SampleInterval,
    Reason,
    Traces,
    #[serde(other)]
    Unknown,
}

struct SnapshotReader(Frames);

impl<'de> DeserializeSeed<'de> for SnapshotReader {
    type Value = Snapshot;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Snapshot, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for SnapshotReader {
    type Value = Snapshot;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a heapgauge snapshot")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Snapshot, M::Error> {
        let (mut version, mut taken_at, mut limit, mut build_id, mut traces) = (None, None, None, None, None);
        let (mut interval, mut reason) = (None, None);
        while let Some(member) = map.next_key()? {
            match member {
                SnapshotMember::Version => {
                    let found: u64 = map.next_value()?;
                    if found != VERSION {
                        return Err(de::Error::custom(format_args!(
                            "version {found} is not known, only {VERSION} is"
                        )));
                    }
                    once(&mut version, found, "version")?;
                }
                SnapshotMember::TakenAt => {
                    let seconds: f64 = map.next_value()?;
                    Duration::try_from_secs_f64(seconds).map_err(|_| {
                        de::Error::invalid_value(de::Unexpected::Float(seconds), &"seconds since 1970")
                    })?;
                    once(&mut taken_at, seconds, "taken_at")?;
                }
                SnapshotMember::TracebackLimit => once(&mut limit, map.next_value()?, "traceback_limit")?,
                SnapshotMember::BuildId => {
                    once::<Option<String>, _>(&mut build_id, map.next_value()?, "build_id")?;
                }
                SnapshotMember::SampleInterval => once(&mut interval, map.next_value()?, "sample_interval")?,
                SnapshotMember::Reason => {
                    once::<Option<String>, _>(&mut reason, map.next_value()?, "reason")?;
                }
                // Said before it is read: two would take twice the memory.
                SnapshotMember::Traces if traces.is_some() => {
                    return Err(de::Error::duplicate_field("traces"));
                }
                SnapshotMember::Traces => traces = Some(map.next_value_seed(Traces(self.0))?),
                SnapshotMember::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        given(version, "version")?;
        Ok(Snapshot {
            taken_at: given(taken_at, "taken_at")?,
            traceback_limit: given(limit, "traceback_limit")?,
            build_id: build_id.flatten(),
            sample_interval: interval.unwrap_or(0),
            reason: reason.flatten(),
            traces: given(traces, "traces")?,
        })
    }
}

/// Reader of the traces, one by one.
struct Traces(Frames);

impl<'de> DeserializeSeed<'de> for Traces {
    type Value = Vec<Trace>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Trace>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Traces {
    type Value = Vec<Trace>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of traces")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut traces: S) -> Result<Vec<Trace>, S::Error> {
        let mut read = Vec::new();
        let mut shared = Shared { frames_are_read: self.0, ..Shared::default() };
        while let Some(trace) =
            traces.next_element_seed(OneTrace { number: read.len(), shared: &mut shared })?
        {
            read.push(trace);
        }
        Ok(read)
    }
}

struct OneTrace<'a, 'de> {
    number: usize,
    shared: &'a mut Shared<'de>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum TraceMember {
    Domain,
    Size,
    Count,
    Stderr,
    TotalFrames,
    Site,
    Frames,
    #[serde(other)]
    Unknown,
}

impl<'de> DeserializeSeed<'de> for OneTrace<'_, 'de> {
    type Value = Trace;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Trace, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneTrace<'_, 'de> {
    type Value = Trace;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a trace")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Trace, M::Error> {
        let OneTrace { number, shared } = self;
        let (mut domain, mut size, mut count, mut total) = (None, None, None, None);
        let (mut stderr, mut site, mut has_frames) = (None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                TraceMember::Domain => once(&mut domain, map.next_value()?, "domain")?,
                TraceMember::Size => once(&mut size, map.next_value()?, "size")?,
                TraceMember::Count => once(&mut count, map.next_value()?, "count")?,
                TraceMember::Stderr => once(&mut stderr, map.next_value()?, "stderr")?,
                TraceMember::TotalFrames => once(&mut total, map.next_value()?, "total_frames")?,
                TraceMember::Site => once(&mut site, map.next_value()?, "site")?,
                TraceMember::Frames => {
                    once(&mut has_frames, (), "frames")?;
                    map.next_value_seed(OneTraceback { trace: number, shared })?;
                }
                TraceMember::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        given(has_frames, "frames")?;
        let (kept, total) = (shared.traceback.len(), given(total, "total_frames")?);
        if kept == 0 || total < kept {
            return Err(de::Error::custom(format_args!(
                "trace {number} has {kept} frames of {total}, allowed are 1 to {MAX_FRAMES} of at least as many"
            )));
        }
        let site: usize = site.unwrap_or(0);
        if site >= kept {
            return Err(de::Error::custom(format_args!(
                "trace {number} has its site at frame {site} of {kept}, allowed are 0 to {}",
                kept - 1
            )));
        }
        Ok(Trace {
            domain: given(domain, "domain")?,
            size: given(size, "size")?,
            count: given(count, "count")?,
            stderr: stderr.unwrap_or(0),
            traceback: Traceback::shared(shared.traceback.as_slice(), total).with_site(site),
        })
    }
}

/// Reader of the frames of one trace, into [`Shared::traceback`].
struct OneTraceback<'a, 'de> {
    trace: usize,
    shared: &'a mut Shared<'de>,
}

impl<'de> DeserializeSeed<'de> for OneTraceback<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OneTraceback<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of frames")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut frames: S) -> Result<(), S::Error> {
        let OneTraceback { trace, shared } = self;
        shared.traceback.clear();
        while let Some(frame) = shared.next_frame(&mut frames)? {
            if shared.traceback.len() == MAX_FRAMES {
                return Err(de::Error::custom(format_args!(
                    "trace {trace} has more than {MAX_FRAMES} frames, allowed are 1 to {MAX_FRAMES}"
                )));
            }
            shared.traceback.push(frame);
        }
        Ok(())
    }
}

struct OneFrame<'a, 'de>(&'a mut Shared<'de>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum FrameMember {
    Function,
    File,
    Line,
    Module,
    Offset,
    #[serde(other)]
    Unknown,
}

impl<'de> DeserializeSeed<'de> for OneFrame<'_, 'de> {
    type Value = Arc<Frame>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<Frame>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneFrame<'_, 'de> {
    type Value = Arc<Frame>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Arc<Frame>, M::Error> {
        let OneFrame(shared) = self;
        let (mut function, mut file, mut line, mut module, mut offset) = (None, None, None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                FrameMember::Function => {
                    once(&mut function, map.next_value_seed(MaybeText(shared))?, "function")?
                }
                FrameMember::File => once(&mut file, map.next_value_seed(Text(shared))?, "file")?,
                FrameMember::Line => once(&mut line, map.next_value()?, "line")?,
                FrameMember::Module => once(&mut module, map.next_value_seed(MaybeText(shared))?, "module")?,
                FrameMember::Offset => {
                    once::<Option<u64>, _>(&mut offset, map.next_value()?, "offset")?;
                }
                FrameMember::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(shared.frame(Frame {
            function: function.flatten(),
            file: given(file, "file")?,
            line: given(line, "line")?,
            module: module.flatten(),
            offset: offset.flatten(),
        }))
    }
}

/// Reader of a text, kept once however often it occurs.
struct Text<'a, 'de>(&'a mut Shared<'de>);

impl<'de> DeserializeSeed<'de> for Text<'_, 'de> {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text<'_, 'de> {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Arc<str>, E> {
        Ok(self.0.text(text))
    }
}

/// Reader of a text, or null.
struct MaybeText<'a, 'de>(&'a mut Shared<'de>);

impl<'de> DeserializeSeed<'de> for MaybeText<'_, 'de> {
    type Value = Option<Arc<str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for MaybeText<'_, 'de> {
    type Value = Option<Arc<str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<Arc<str>>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<Arc<str>>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
        Text(self.0).deserialize(deserializer).map(Some)
    }
}

/// Texts and frames that the traces of one file share.
#[derive(Default)]
struct Shared<'de> {
    frames_are_read: Frames,
    texts: HashSet<Arc<str>>,
    frames: HashMap<FrameKey, Arc<Frame>>,
    /// Frames by the text they are written as.
    written: HashMap<&'de str, Arc<Frame>>,
    /// Frames of the trace that is being read.
    traceback: Vec<Arc<Frame>>,
}

/// Key of a frame: the addresses of its texts. Each text is kept once, so equal texts have one address.
#[derive(PartialEq, Eq, Hash)]
struct FrameKey {
    function: Option<usize>,
    file: usize,
    line: u32,
    module: Option<usize>,
    offset: Option<u64>,
}

impl<'de> Shared<'de> {
    /// Returns the equal frame that was read before, if there is one; the texts are from [`Shared::text`].
    fn frame(&mut self, frame: Frame) -> Arc<Frame> {
        if matches!(self.frames_are_read, Frames::ByText) {
            // Its text is kept instead.
            return Arc::new(frame);
        }
        let place = |text: &Arc<str>| text.as_ptr() as usize;
        let key = FrameKey {
            function: frame.function.as_ref().map(place),
            file: place(&frame.file),
            line: frame.line,
            module: frame.module.as_ref().map(place),
            offset: frame.offset,
        };
        self.frames.entry(key).or_insert_with(|| Arc::new(frame)).clone()
    }

    fn next_frame<S: SeqAccess<'de>>(&mut self, frames: &mut S) -> Result<Option<Arc<Frame>>, S::Error> {
        match self.frames_are_read {
            Frames::ByMember => frames.next_element_seed(OneFrame(self)),
            Frames::ByText => match frames.next_element::<&'de RawValue>()? {
                Some(text) => self.frame_of(text.get()).map(Some).map_err(de::Error::custom),
                None => Ok(None),
            },
        }
    }

    /// Returns the frame that is written like this.
    fn frame_of(&mut self, text: &'de str) -> serde_json::Result<Arc<Frame>> {
        if let Some(frame) = self.written.get(text) {
            return Ok(frame.clone());
        }
        let frame = OneFrame(self).deserialize(&mut serde_json::Deserializer::from_str(text))?;
        self.written.insert(text, frame.clone());
        Ok(frame)
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.texts.get(text) {
            return kept.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}
