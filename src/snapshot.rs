//! Raw snapshot and names → [`Snapshot`]; to a file and back.
//!
//! For any thread. Taking one copies counters and names every stack to the end: microseconds for each stack met
//! before, and some milliseconds or more where many are new. Nobody is stopped.
#![forbid(unsafe_code)]

use crate::frame::{Frame, Traceback, UNKNOWN};
use crate::symbols::{self, Symbols};
use crate::{Error, control, domains, raw};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The one version of the file there is.
const VERSION: u64 = 1;

/// Longest file that is read or written.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Most frames of one traceback in a file, as many as `tracemalloc` ever stores.
const MAX_FILE_FRAMES: usize = 65_535;

/// Blocks that are alive and share a traceback.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trace {
    /// 0 for the allocator's memory, else what was given to [`track`](crate::track).
    pub domain: u32,
    /// Live bytes, as requested, of all the blocks.
    pub size: u64,
    /// Live blocks.
    pub count: u64,
    /// Where they were allocated.
    pub traceback: Traceback,
}

/// The live blocks of the program at one moment, by traceback.
///
/// # Examples
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{GroupBy, Snapshot};
///
/// let before = Snapshot::take()?;
/// let kept = vec![1u8; 1 << 20];
/// let after = Snapshot::take()?;
/// let most = &after.compare_to(&before, GroupBy::Traceback)[0];
/// assert_eq!((most.size_diff, most.count_diff), (1 << 20, 1));
/// # drop(kept);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    taken_at: f64,
    traceback_limit: usize,
    build_id: Option<String>,
    traces: Vec<Trace>,
}

impl Snapshot {
    /// Takes one now, with every name final.
    ///
    /// The first one in a process reads the debug information of everything that allocated: up to a second in a
    /// large program. Later ones with 10,000 stacks take some 20 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let kept = String::from("kept");
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// assert!(snapshot.traces().iter().map(|trace| trace.size).sum::<u64>() >= 4);
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If tracking is off.
    pub fn take() -> Result<Snapshot, Error> {
        let _own = control::own();
        let raw = raw::take();
        if !raw.tracking {
            return Err(Error::new("Snapshot::take: tracking is off, heapgauge::start turns it on"));
        }
        let symbols = symbols::global();
        let mut stacks = raw.stacks;
        stacks.retain(|stack| stack.counts.live_blocks() > 0);
        stacks.sort_by_key(|stack| (std::cmp::Reverse(stack.counts.live_bytes()), stack.id));
        let domains = domains::stacks();
        let addresses = stacks.iter().map(|stack| stack.addresses);
        let mut addresses = addresses.chain(domains.iter().map(|stack| stack.addresses));
        symbols.resolve(&mut addresses, Duration::MAX);
        let limit = raw.traceback_limit;
        let allocated = stacks.iter().map(|stack| Trace {
            domain: 0,
            size: stack.counts.live_bytes(),
            count: stack.counts.live_blocks(),
            traceback: named(symbols, stack.addresses, limit, stack.truncated),
        });
        let tracked = domains.iter().map(|stack| Trace {
            domain: stack.domain,
            size: stack.size,
            count: stack.count,
            traceback: named(symbols, stack.addresses, limit, false),
        });
        Ok(Snapshot::of(raw.taken_at, limit, allocated.chain(tracked).collect()))
    }

    /// One of traces that were put together elsewhere, of this process.
    pub(crate) fn of(taken_at: SystemTime, traceback_limit: usize, traces: Vec<Trace>) -> Snapshot {
        Snapshot {
            taken_at: taken_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            traceback_limit,
            build_id: symbols::build_id(),
            traces,
        }
    }

    /// Every traceback that holds live blocks; the allocator's first, most bytes first.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// assert!(snapshot.traces().is_sorted_by_key(|trace| std::cmp::Reverse(trace.size)));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn traces(&self) -> &[Trace] {
        &self.traces
    }

    /// How many frames a traceback shows at most.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// assert_eq!(heapgauge::Snapshot::take()?.traceback_limit(), 32);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn traceback_limit(&self) -> usize {
        self.traceback_limit
    }

    /// When it was taken, by the clock of the host that took it.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// assert!(snapshot.taken_at() <= std::time::SystemTime::now());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn taken_at(&self) -> SystemTime {
        let since = Duration::try_from_secs_f64(self.taken_at).unwrap_or_default();
        UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
    }

    /// The linker's id of the executable it was taken from, hex; `None` where there is none.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let (one, two) = (heapgauge::Snapshot::take()?, heapgauge::Snapshot::take()?);
    /// assert_eq!(one.build_id(), two.build_id());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The same snapshot with only those traces that `keep` says.
    pub(crate) fn filtered(&self, keep: impl Fn(&Trace) -> bool) -> Snapshot {
        let _own = control::own();
        Snapshot {
            traces: self.traces.iter().filter(|trace| keep(trace)).cloned().collect(),
            build_id: self.build_id.clone(),
            ..*self
        }
    }

    /// Writes it to `path` as JSON, whole or not at all: a file that is there is replaced in one step.
    ///
    /// 100,000 tracebacks take well below a second.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// # let directory = std::env::temp_dir().join(format!("heapgauge-save-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory)?;
    /// # let path = directory.join("heap.json");
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// snapshot.save(&path)?;
    /// assert_eq!(heapgauge::Snapshot::load(&path)?, snapshot);
    /// # std::fs::remove_dir_all(&directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or would be longer than the 1 GiB that [`Snapshot::load`] reads.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let _own = control::own();
        let path = path.as_ref();
        let beside = beside(path);
        let written = self.write(&beside).and_then(|()| std::fs::rename(&beside, path));
        written.map_err(|error| {
            // Nothing to say if it is not there.
            let _ = std::fs::remove_file(&beside);
            Error::with_source(format_args!("save snapshot to {}", path.display()), error)
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let mut bounded = Bounded { file: BufWriter::with_capacity(1 << 16, file), left: MAX_FILE_BYTES };
        serde_json::to_writer(&mut bounded, self)?;
        bounded.write_all(b"\n")?;
        bounded.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    /// Reads a file that [`Snapshot::save`] wrote, or anything of that form.
    ///
    /// Members that are not known are ignored; all that are known must be there with their types, except
    /// `build_id` and a frame's `function`, `module` and `offset`. 100,000 tracebacks take about a second.
    ///
    /// # Examples
    ///
    /// ```
    /// let error = heapgauge::Snapshot::load("no/such/file.json").unwrap_err();
    /// assert!(error.to_string().starts_with("load snapshot from no/such/file.json: "));
    /// ```
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is longer than 1 GiB, is not JSON of this form or of another version, ends
    /// too early, or holds a traceback without frames or with more than 65,535.
    pub fn load(path: impl AsRef<Path>) -> Result<Snapshot, Error> {
        let _own = control::own();
        let path = path.as_ref();
        read(path)
            .map_err(|error| Error::with_source(format_args!("load snapshot from {}", path.display()), error))
    }
}

/// Its names, looked up again if the program loaded a library meanwhile.
fn named(symbols: &Symbols, addresses: &'static [usize], limit: usize, truncated: bool) -> Traceback {
    for _ in 0..3 {
        if let Some(traceback) = symbols.traceback(addresses, limit, truncated) {
            return traceback;
        }
        symbols.resolve(&mut std::iter::once(addresses), Duration::MAX);
    }
    Traceback::new([Frame::new(None, UNKNOWN, 0)])
}

/// A name in the same directory that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{number}.tmp", std::process::id()))
}

/// A file that grows up to a limit.
struct Bounded {
    file: BufWriter<File>,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            io::Error::other(format!("more than {MAX_FILE_BYTES} bytes, which is what load reads"))
        })?;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn read(path: &Path) -> Result<Snapshot, Box<dyn std::error::Error + Send + Sync>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("{length} bytes, allowed are at most {MAX_FILE_BYTES}").into());
    }
    // By parts: in one piece it parses a third quicker and takes its own length in memory.
    let file = BufReader::with_capacity(1 << 16, file.take(MAX_FILE_BYTES));
    let mut json = serde_json::Deserializer::from_reader(file);
    let parsed = Snapshot::deserialize(&mut json).and_then(|snapshot| json.end().map(|()| snapshot));
    parsed.map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "the file is truncated",
            serde_json::error::Category::Syntax => "not JSON",
            serde_json::error::Category::Data => "not a snapshot",
            serde_json::error::Category::Io => "reading failed",
        };
        format!("{what}: {error}").into()
    })
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut file = serializer.serialize_struct("Snapshot", 5)?;
        file.serialize_field("version", &VERSION)?;
        file.serialize_field("taken_at", &self.taken_at)?;
        file.serialize_field("traceback_limit", &self.traceback_limit)?;
        file.serialize_field("build_id", &self.build_id)?;
        file.serialize_field("traces", &self.traces)?;
        file.end()
    }
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut trace = serializer.serialize_struct("Trace", 5)?;
        trace.serialize_field("domain", &self.domain)?;
        trace.serialize_field("size", &self.size)?;
        trace.serialize_field("count", &self.count)?;
        trace.serialize_field("total_frames", &self.traceback.total_frames())?;
        trace.serialize_field("frames", &FileFrames(self.traceback.frames()))?;
        trace.end()
    }
}

/// Frames in the words of the file.
pub(crate) struct FileFrames<'a>(pub(crate) &'a [Arc<Frame>]);

impl Serialize for FileFrames<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut frames = serializer.serialize_seq(Some(self.0.len()))?;
        for frame in self.0 {
            frames.serialize_element(&FileFrame {
                function: frame.function.as_deref().map(Cow::Borrowed),
                file: Cow::Borrowed(&frame.file),
                line: frame.line,
                module: frame.module.as_deref().map(Cow::Borrowed),
                offset: frame.offset,
            })?;
        }
        frames.end()
    }
}

#[derive(Serialize, Deserialize)]
struct FileFrame<'a> {
    #[serde(borrow, default)]
    function: Option<Cow<'a, str>>,
    #[serde(borrow)]
    file: Cow<'a, str>,
    line: u32,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    module: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

#[derive(Deserialize)]
struct FileTrace<'a> {
    domain: u32,
    size: u64,
    count: u64,
    total_frames: usize,
    #[serde(borrow)]
    frames: Vec<FileFrame<'a>>,
}

impl<'de> Deserialize<'de> for Snapshot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Snapshot, D::Error> {
        deserializer.deserialize_map(SnapshotVisitor)
    }
}

struct SnapshotVisitor;

impl<'de> Visitor<'de> for SnapshotVisitor {
    type Value = Snapshot;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a heapgauge snapshot")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Snapshot, M::Error> {
        let (mut version, mut taken_at, mut limit, mut build_id, mut traces) = (None, None, None, None, None);
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match &*name {
                "version" => {
                    let found: u64 = once(&mut version, map.next_value()?, "version")?;
                    if found != VERSION {
                        return Err(de::Error::custom(format_args!(
                            "version {found} is not known, only {VERSION} is"
                        )));
                    }
                }
                "taken_at" => {
                    let seconds = once(&mut taken_at, map.next_value()?, "taken_at")?;
                    Duration::try_from_secs_f64(seconds).map_err(|_| {
                        de::Error::invalid_value(de::Unexpected::Float(seconds), &"seconds since 1970")
                    })?;
                }
                "traceback_limit" => {
                    once(&mut limit, map.next_value()?, "traceback_limit")?;
                }
                "build_id" => {
                    once::<Option<String>, _>(&mut build_id, map.next_value()?, "build_id")?;
                }
                "traces" if traces.is_some() => return Err(de::Error::duplicate_field("traces")),
                "traces" => traces = Some(map.next_value_seed(Traces)?),
                _ => {
                    map.next_value::<de::IgnoredAny>()?;
                }
            }
        }
        version.ok_or_else(|| de::Error::missing_field("version"))?;
        Ok(Snapshot {
            taken_at: taken_at.ok_or_else(|| de::Error::missing_field("taken_at"))?,
            traceback_limit: limit.ok_or_else(|| de::Error::missing_field("traceback_limit"))?,
            build_id: build_id.flatten(),
            traces: traces.ok_or_else(|| de::Error::missing_field("traces"))?,
        })
    }
}

fn once<T: Clone, E: de::Error>(place: &mut Option<T>, value: T, name: &'static str) -> Result<T, E> {
    match place.replace(value.clone()) {
        Some(_) => Err(de::Error::duplicate_field(name)),
        None => Ok(value),
    }
}

/// Reads the traces one by one, so that equal frames and equal texts are kept once.
struct Traces;

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
        let mut shared = Shared::default();
        while let Some(trace) = traces.next_element::<FileTrace<'de>>()? {
            let (kept, total) = (trace.frames.len(), trace.total_frames);
            if kept == 0 || kept > MAX_FILE_FRAMES || total < kept {
                return Err(de::Error::custom(format_args!(
                    "trace {} has {kept} frames of {total}, allowed are 1 to {MAX_FILE_FRAMES} of at least as many",
                    read.len()
                )));
            }
            let frames: Arc<[Arc<Frame>]> =
                trace.frames.into_iter().map(|frame| shared.frame(frame)).collect();
            read.push(Trace {
                domain: trace.domain,
                size: trace.size,
                count: trace.count,
                traceback: Traceback::shared(frames, total),
            });
        }
        Ok(read)
    }
}

#[derive(Default)]
struct Shared {
    texts: HashSet<Arc<str>>,
    /// By where the text of the file's name lies, and line.
    frames: HashMap<(usize, u32), Vec<Arc<Frame>>>,
}

impl Shared {
    fn frame(&mut self, frame: FileFrame<'_>) -> Arc<Frame> {
        let file = self.text(&frame.file);
        let key = (file.as_ptr() as usize, frame.line);
        let is_same = |known: &&Arc<Frame>| {
            known.offset == frame.offset
                && known.function.as_deref() == frame.function.as_deref()
                && known.module.as_deref() == frame.module.as_deref()
        };
        if let Some(known) = self.frames.get(&key).and_then(|known| known.iter().find(is_same)) {
            return known.clone();
        }
        let new = Arc::new(Frame {
            function: frame.function.map(|text| self.text(&text)),
            line: frame.line,
            module: frame.module.map(|text| self.text(&text)),
            offset: frame.offset,
            file,
        });
        self.frames.entry(key).or_default().push(new.clone());
        new
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Random, inputs};

    /// A file that was cut, changed or put together anew is read as what it says, or is an error; and what was read
    /// is written and read again as the same.
    #[test]
    fn any_file_is_a_snapshot_or_an_error() {
        let parse = |bytes: &[u8]| {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            Snapshot::deserialize(&mut json).and_then(|snapshot| json.end().map(|()| snapshot))
        };
        let seed = br#"{"version": 1, "taken_at": 1793000000.25, "traceback_limit": 32, "build_id": "ab", "traces": [
            {"domain": 0, "size": 30, "count": 3, "total_frames": 3, "frames": [
                {"function": "app::load", "file": "a.rs", "line": 2}, {"function": null, "file": "<unknown>", "line": 0,
                "module": "app", "offset": 17}]},
            {"domain": 7, "size": 0, "count": 1, "total_frames": 1, "frames": [{"file": "b.rs", "line": 4}]}]}"#;
        parse(seed).unwrap();
        let words: [&[u8]; 16] = [
            b"{",
            b"}",
            b"[",
            b"]",
            b"\"",
            b",",
            b"null",
            b"-1",
            b"1e999",
            b"18446744073709551616",
            b"\\u0000",
            b"\\ud800",
            b"\"version\": 1,",
            b"\"frames\": [],",
            b"\"traces\": [],",
            b"\xff\xfe",
        ];
        let mut random = Random::new();
        let mut read = 0;
        for number in 0..inputs(60_000) {
            let mut bytes = seed.to_vec();
            random.mutate(&mut bytes, &words);
            let Ok(snapshot) = parse(&bytes) else { continue };
            read += 1;
            let written = serde_json::to_vec(&snapshot).unwrap();
            assert_eq!(parse(&written).unwrap(), snapshot, "{}", String::from_utf8_lossy(&bytes));
            if number % 16 == 0 {
                for group_by in
                    [crate::GroupBy::Line, crate::GroupBy::Traceback, crate::GroupBy::CumulativeFile]
                {
                    for row in snapshot.compare_to(&parse(seed).unwrap(), group_by) {
                        assert!(!row.to_string().is_empty());
                    }
                }
            }
        }
        assert!(read > 100, "{read}");
        // Deeper than a parser's stack.
        for bracket in ["[", "{\"traces\":", "{\"a\":["] {
            assert!(parse(bracket.repeat(200_000).as_bytes()).is_err());
        }
    }
}
