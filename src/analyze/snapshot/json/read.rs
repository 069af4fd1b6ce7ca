//! Reads a [`Snapshot`] from a JSON file of any origin, or returns the reason in one line.

use super::read_parts::{Frames, OneScope, Shared, given, once};
use super::{Bounded, IN_ONE_PIECE, MAX_BYTES, MAX_FRAMES, MAX_PROBLEM, VERSION, Watched};
use crate::analyze::frame::Traceback;
use crate::analyze::snapshot::{Snapshot, Trace};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
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

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum SnapshotMember {
    Version,
    TakenAt,
    TracebackLimit,
    BuildId,
    SampleInterval,
    Reason,
    OlderThan,
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
        let (mut interval, mut reason, mut older_than) = (None, None, None);
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
                    once(&mut taken_at, seconds(map.next_value()?, "seconds since 1970")?, "taken_at")?;
                }
                SnapshotMember::TracebackLimit => once(&mut limit, map.next_value()?, "traceback_limit")?,
                SnapshotMember::BuildId => {
                    once::<Option<String>, _>(&mut build_id, map.next_value()?, "build_id")?;
                }
                SnapshotMember::SampleInterval => once(&mut interval, map.next_value()?, "sample_interval")?,
                SnapshotMember::Reason => {
                    once::<Option<String>, _>(&mut reason, map.next_value()?, "reason")?;
                }
                SnapshotMember::OlderThan => {
                    let age = map.next_value::<Option<f64>>()?;
                    let age = age.map(|age| seconds(age, "seconds of an age")).transpose()?;
                    once(&mut older_than, age, "older_than")?;
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
            older_than: older_than.flatten(),
            traces: given(traces, "traces")?,
        })
    }
}

/// Checks that a number is of seconds as they are known here: neither negative nor beyond all times.
fn seconds<E: de::Error>(seconds: f64, expected: &'static str) -> Result<f64, E> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(_) => Ok(seconds),
        Err(_) => Err(de::Error::invalid_value(de::Unexpected::Float(seconds), &expected)),
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
        let mut shared = Shared::new(self.0);
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
    Scope,
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
        let (mut stderr, mut scope, mut site, mut has_frames) = (None, None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                TraceMember::Domain => once(&mut domain, map.next_value()?, "domain")?,
                TraceMember::Size => once(&mut size, map.next_value()?, "size")?,
                TraceMember::Count => once(&mut count, map.next_value()?, "count")?,
                TraceMember::Stderr => once(&mut stderr, map.next_value()?, "stderr")?,
                TraceMember::Scope => once(&mut scope, map.next_value_seed(OneScope(shared))?, "scope")?,
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
            scope: scope.unwrap_or_default(),
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
