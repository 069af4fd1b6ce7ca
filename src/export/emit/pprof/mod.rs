//! [`Profile`] → pprof's `profile.proto`, compressed, or the text Go writes for people.
//!
//! Any thread. Some 40 ms for 10,000 stacks, and in proportion for more. Memory meanwhile: each distinct
//! address, function and text once, and the compressed samples.
#![forbid(unsafe_code)]

#[cfg(any(feature = "http", test))]
mod go_text;
mod profile_proto;
mod protobuf;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::analyze::frame::{Frame, UNKNOWN};
use crate::analyze::profile::{Profile, ProfileValue};
use crate::analyze::symbols::{self, Mapping, Placed};
use crate::record::control;
#[cfg(feature = "http")]
pub(crate) use go_text::text;
use profile_proto as proto;
use prost::Message as _;

/// Number of stacks that are encoded in one piece; some ten milliseconds.
const PIECE: usize = 2_048;
impl Profile {
    /// Encodes this profile in pprof's format, gzipped, as `go tool pprof` and most profile stores read it.
    ///
    /// Each sample has the four values of a Go heap profile: `alloc_objects`, `alloc_space`, `inuse_objects`,
    /// `inuse_space`; `shown` is the one a tool shows first. The keys and values of its [scope](crate::Scope) are labels of a sample:
    /// `go tool pprof -tagfocus tenant=acme`, `-tagroot tenant`. Frames of the standard library and of containers above
    /// the site are left out. The mappings name the files of the executable and its libraries with their paths.
    ///
    /// 10,000 stacks take some 40 ms and come to about 100 KB.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Profile, ProfileValue};
    ///
    /// let profile = Profile::take()?.to_pprof(ProfileValue::LiveBytes);
    /// assert_eq!(profile[..2], [0x1f, 0x8b]); // gzip
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn to_pprof(&self, shown: ProfileValue) -> Vec<u8> {
        let _own = control::internal();
        let mut encoder = Encoder::new(self, shown);
        while encoder.encode_piece(self) {}
        encoder.finish()
    }
}

/// Profile that is being encoded.
///
/// Samples go through the compressor piece by piece: messages of one kind may follow each other in protobuf, and the
/// samples would otherwise be held twice, as messages and as bytes.
pub(crate) struct Encoder {
    gzip: GzEncoder<Vec<u8>>,
    /// Number of stacks that are encoded.
    done: usize,
    head: proto::Profile,
    mappings: Vec<Mapping>,
    texts: Texts,
    /// Ids of functions, by name and file.
    functions: HashMap<(i64, i64), u64>,
    /// Ids of locations, by address, number of its inlined frames left out, and number of those there. A stack may begin or end amid
    /// the frames of one address.
    locations: HashMap<(usize, usize, usize), u64>,
    /// Locations without a name, by their place in `head.location`.
    unnamed: Vec<(usize, Arc<Frame>)>,
}

impl Encoder {
    pub(crate) fn new(profile: &Profile, shown: ProfileValue) -> Encoder {
        Encoder::with_mappings(profile, shown, symbols::mappings())
    }

    fn with_mappings(profile: &Profile, shown: ProfileValue, mappings: Vec<Mapping>) -> Encoder {
        let mut texts = Texts::new();
        let mut value_type = |name: &str, unit: &str| proto::ValueType {
            r#type: texts.index(&Arc::from(name)),
            unit: texts.index(&Arc::from(unit)),
        };
        let sample_type: Vec<proto::ValueType> =
            ProfileValue::ALL.iter().map(|value| value_type(name(*value), unit(*value))).collect();
        let period_type = value_type("space", "bytes");
        let taken_at = profile.taken_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mapping = mappings.iter().enumerate().map(|(at, mapping)| proto::Mapping {
            id: at as u64 + 1,
            memory_start: mapping.start as u64,
            memory_limit: mapping.limit as u64,
            file_offset: mapping.offset,
            filename: texts.index(&mapping.path),
            build_id: texts.index(&mapping.build_id),
            ..proto::Mapping::default()
        });
        let head = proto::Profile {
            sample_type,
            mapping: mapping.collect(),
            time_nanos: taken_at.as_nanos() as i64,
            duration_nanos: profile.over.map_or(0, |over| over.as_nanos() as i64),
            period_type: Some(period_type),
            // An event is a byte: 1 is each of them.
            period: profile.sample_interval_bytes.max(1) as i64,
            default_sample_type: texts.index(&Arc::from(name(shown))),
            ..proto::Profile::default()
        };
        Encoder {
            gzip: GzEncoder::new(Vec::new(), Compression::fast()),
            done: 0,
            head,
            mappings,
            texts,
            functions: HashMap::new(),
            locations: HashMap::new(),
            unnamed: Vec::new(),
        }
    }

    /// Encodes some stacks of the profile it was made for. False: there are no more.
    pub(crate) fn encode_piece(&mut self, profile: &Profile) -> bool {
        let _own = control::internal();
        let symbols = symbols::global();
        self.encode(profile, &|stack| symbols.placed(stack, profile.traceback_limit))
    }

    fn encode(&mut self, profile: &Profile, placed: &dyn Fn(&[usize]) -> Vec<Placed>) -> bool {
        let end = profile.stacks.len().min(self.done + PIECE);
        let mut sample = Vec::with_capacity(end - self.done);
        for stack in &profile.stacks[self.done..end] {
            let value = ProfileValue::ALL.iter().map(|value| value.of(&stack.counts)).collect();
            let addresses = profile.addresses(stack);
            let location_id = self.location_ids(&addresses, &placed(&addresses));
            let label = self.labels(profile.scope(stack));
            sample.push(proto::Sample { location_id, value, label });
        }
        self.done = end;
        self.write(&proto::Profile { sample, ..proto::Profile::default() });
        end < profile.stacks.len()
    }

    /// Returns the gzipped profile.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let _own = control::internal();
        self.name_the_unnamed();
        let mut head = std::mem::take(&mut self.head);
        head.string_table = std::mem::take(&mut self.texts).in_order();
        self.write(&head);
        // Into memory: there is nothing it could refuse.
        self.gzip.finish().unwrap_or_default()
    }

    fn write(&mut self, part: &proto::Profile) {
        // As in `finish`.
        let _ = self.gzip.write_all(&part.encode_to_vec());
    }

    /// Returns the labels of a scope, a text each.
    fn labels(&mut self, scope: &[(&'static str, Arc<str>)]) -> Vec<proto::Label> {
        let label = |(key, value): &(&'static str, Arc<str>)| proto::Label {
            key: self.texts.index(&Arc::from(*key)),
            str: self.texts.index(value),
        };
        scope.iter().map(label).collect()
    }

    /// Returns the ids of the locations, leaf first. Frames of one address, the inlined ones, are one location.
    fn location_ids(&mut self, addresses: &[usize], frames: &[Placed]) -> Vec<u64> {
        let calls = frames.chunk_by(|one, next| one.at == next.at);
        calls
            .map(|frames| {
                // Return addresses: the call is before them.
                let address = addresses.get(frames[0].at).map_or(0, |address| address.saturating_sub(1));
                let key = (address, frames[0].inlined, frames.len());
                match self.locations.get(&key) {
                    Some(&id) => id,
                    None => {
                        let id = self.new_location(address, frames);
                        self.locations.insert(key, id);
                        id
                    }
                }
            })
            .collect()
    }

    fn new_location(&mut self, address: usize, frames: &[Placed]) -> u64 {
        let id = self.head.location.len() as u64 + 1;
        let mapping =
            self.mappings.iter().position(|mapping| (mapping.start..mapping.limit).contains(&address));
        let mut line = Vec::with_capacity(frames.len());
        for frame in frames.iter().map(|placed| &placed.frame) {
            let Some(function) = &frame.function else {
                self.unnamed.push((self.head.location.len(), frame.clone()));
                continue;
            };
            let file = (*frame.file != *UNKNOWN).then_some(&frame.file);
            let function_id = self.function_id(function, file);
            line.push(proto::Line { function_id, line: i64::from(frame.line) });
            if let Some(at) = mapping {
                // A tool does not look up for itself the parts that are marked here. It would do so for all of a
                // mapping's locations, and start-up code, which has no lines, is in every program: so one is enough.
                let mapping = &mut self.head.mapping[at];
                mapping.has_functions = true;
                mapping.has_filenames |= file.is_some();
                mapping.has_line_numbers |= frame.line > 0;
                mapping.has_inline_frames |= frame.line > 0;
            }
        }
        let mapping_id = mapping.map_or(0, |at| at as u64 + 1);
        self.head.location.push(proto::Location { id, mapping_id, address: address as u64, line });
        id
    }

    fn function_id(&mut self, name: &Arc<str>, file: Option<&Arc<str>>) -> u64 {
        let (name, filename) = (self.texts.index(name), file.map_or(0, |file| self.texts.index(file)));
        let id = self.functions.len() as u64 + 1;
        *self.functions.entry((name, filename)).or_insert_with(|| {
            // No `system_name`: where it is the name, tools try to demangle it once more.
            self.head.function.push(proto::Function { id, name, filename });
            id
        })
    }

    /// Names addresses by module and offset where no tool will look a name up.
    fn name_the_unnamed(&mut self) {
        for (at, frame) in std::mem::take(&mut self.unnamed) {
            let mapping = (self.head.location[at].mapping_id as usize).checked_sub(1);
            let looked_up = mapping.is_some_and(|mapping| !self.head.mapping[mapping].has_functions);
            if !looked_up {
                let function_id = self.function_id(&Arc::from(frame.name()), None);
                self.head.location[at].line.push(proto::Line { function_id, line: 0 });
            }
        }
    }
}

/// Table of texts, each once, by its place; the first is empty.
#[derive(Default)]
struct Texts {
    places: HashMap<Arc<str>, i64>,
}

impl Texts {
    fn new() -> Texts {
        let mut texts = Texts::default();
        texts.index(&Arc::from(""));
        texts
    }

    fn index(&mut self, text: &Arc<str>) -> i64 {
        if let Some(&at) = self.places.get(text) {
            return at;
        }
        let at = self.places.len() as i64;
        self.places.insert(text.clone(), at);
        at
    }

    fn in_order(self) -> Vec<String> {
        let mut texts: Vec<(i64, Arc<str>)> = self.places.into_iter().map(|(text, at)| (at, text)).collect();
        texts.sort_unstable_by_key(|&(at, _)| at);
        texts.into_iter().map(|(_, text)| text.to_string()).collect()
    }
}

/// Returns Go's name of a value.
fn name(value: ProfileValue) -> &'static str {
    match value {
        ProfileValue::AllocatedBlocks => "alloc_objects",
        ProfileValue::AllocatedBytes => "alloc_space",
        ProfileValue::LiveBlocks => "inuse_objects",
        ProfileValue::LiveBytes => "inuse_space",
    }
}

fn unit(value: ProfileValue) -> &'static str {
    match value {
        ProfileValue::AllocatedBlocks | ProfileValue::LiveBlocks => "count",
        ProfileValue::AllocatedBytes | ProfileValue::LiveBytes => "bytes",
    }
}
