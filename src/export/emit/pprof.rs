//! [`Profile`] → pprof's `profile.proto`, compressed, or the text Go writes for people.
//!
//! Any thread. Some 40 ms for 10,000 stacks, and in proportion for more. What is held meanwhile is each distinct
//! address, function and text once, and the compressed samples.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::profile_proto as proto;
use super::protobuf::Message as _;
use crate::analyze::frame::{Frame, UNKNOWN};
use crate::analyze::profile::{Profile, ProfileValue};
use crate::analyze::symbols::{self, Mapping, Placed};
use crate::record::control;
use crate::record::raw_snapshot::RawStack;

/// Stacks that are encoded in one piece; some ten milliseconds.
const PIECE: usize = 2_048;
/// The text lists this many stacks, a few megabytes at most, and sums up the others.
#[cfg(any(feature = "http", test))]
const LISTED: usize = 1_000;

impl Profile {
    /// This profile in pprof's format, gzipped, as `go tool pprof` and most profile stores read it.
    ///
    /// Each sample has the four values of a Go heap profile: `alloc_objects`, `alloc_space`, `inuse_objects`,
    /// `inuse_space`; `shown` is the one a tool shows first. Frames of the standard library and of containers above
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
        let _own = control::own();
        let mut encoder = Encoder::new(self, shown);
        while encoder.encode_piece(self) {}
        encoder.finish()
    }
}

/// A profile that is being encoded.
///
/// Samples go through the compressor piece by piece: messages of one kind may follow each other in protobuf, and the
/// samples would otherwise be held twice, as messages and as bytes.
pub(crate) struct Encoder {
    gzip: GzEncoder<Vec<u8>>,
    /// Stacks that are encoded.
    done: usize,
    head: proto::Profile,
    mappings: Vec<Mapping>,
    texts: Texts,
    /// Name and file → id.
    functions: HashMap<(i64, i64), u64>,
    /// Address, how many of its inlined frames were left out, how many are there → id. A stack may begin or end amid
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
        let _own = control::own();
        let symbols = symbols::global();
        self.encode(profile, &|stack| symbols.placed(stack.addresses, profile.traceback_limit))
    }

    fn encode(&mut self, profile: &Profile, placed: &dyn Fn(&RawStack) -> Vec<Placed>) -> bool {
        let end = profile.stacks.len().min(self.done + PIECE);
        let mut sample = Vec::with_capacity(end - self.done);
        for stack in &profile.stacks[self.done..end] {
            let value = ProfileValue::ALL.iter().map(|value| value.of(&stack.counts)).collect();
            sample.push(proto::Sample {
                location_id: self.location_ids(stack.addresses, &placed(stack)),
                value,
            });
        }
        self.done = end;
        self.write(&proto::Profile { sample, ..proto::Profile::default() });
        end < profile.stacks.len()
    }

    /// The gzipped profile.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let _own = control::own();
        self.name_the_unnamed();
        let mut head = std::mem::take(&mut self.head);
        head.string_table = std::mem::take(&mut self.texts).in_order();
        self.write(&head);
        // Into memory: there is nothing it could refuse.
        self.gzip.finish().unwrap_or_default()
    }

    fn write(&mut self, part: &proto::Profile) {
        // As in `finish`.
        let mut bytes = Vec::new();
        part.encode(&mut bytes);
        let _ = self.gzip.write_all(&bytes);
    }

    /// Leaf first. Frames of one address, the inlined ones, are one location.
    fn location_ids(&mut self, addresses: &[usize], frames: &[Placed]) -> Vec<u64> {
        let calls = frames.chunk_by(|one, next| one.at == next.at);
        calls
            .map(|frames| {
                // Return addresses: the call is what lies before them.
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
                // What is told here of a mapping, a tool does not look up for itself. It would do so for all of a
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

    /// Where no tool will look a name up, an address goes by module and offset.
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

/// Every text once, by its place; the first is empty.
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

/// Go's names.
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

/// The text Go writes with `?debug=1`: the stacks that hold most first, each with its frames.
#[cfg(any(feature = "http", test))]
pub(crate) fn text(profile: &Profile) -> String {
    let _own = control::own();
    let symbols = symbols::global();
    render(profile, LISTED, &|stack| symbols.placed(stack.addresses, profile.traceback_limit))
}

#[cfg(any(feature = "http", test))]
fn render(profile: &Profile, listed: usize, placed: &dyn Fn(&RawStack) -> Vec<Placed>) -> String {
    use crate::record::raw_snapshot::Counts;
    use std::fmt::Write as _;

    let four = |counts: &Counts| {
        let [allocations, allocated, blocks, bytes] = ProfileValue::ALL.map(|value| value.of(counts));
        format!("{blocks}: {bytes} [{allocations}: {allocated}] @")
    };
    // Go names twice its interval here, and its reader scales such counts up; ours are scaled already.
    let kind = if profile.sample_interval_bytes == 0 { "heap/2" } else { "heapprofile" };
    let mut out = format!("heap profile: {} {kind}\n", four(&profile.totals()));
    let stacks = profile.largest_first();
    let (shown, others) = stacks.split_at(stacks.len().min(listed));
    for stack in shown {
        let frames = placed(stack);
        let address = |frame: &Placed| stack.addresses.get(frame.at).copied().unwrap_or(0);
        out += &four(&stack.counts);
        for call in frames.chunk_by(|one, next| one.at == next.at) {
            // Writing to a text cannot fail, here and below.
            let _ = write!(out, " {:#x}", address(&call[0]));
        }
        out.push('\n');
        for placed in &frames {
            let frame = &placed.frame;
            // A symbol may hold anything, and a line here is a line.
            let [name, file] = [&*frame.name(), &*frame.file].map(|text| text.replace(char::is_control, " "));
            let _ = writeln!(out, "#\t{:#x}\t{name}\t{file}:{}", address(placed), frame.line);
        }
        out.push('\n');
    }
    if !others.is_empty() {
        let mut rest = Counts::default();
        others.iter().for_each(|stack| rest += stack.counts);
        let _ = writeln!(out, "{}\n#\t{} other stacks", four(&rest), others.len());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::protobuf;
    use super::*;
    use crate::analyze::profile::{Calls, sample};
    use crate::base::random_input::{Random, inputs};
    use std::io::Read as _;
    use std::time::Duration;

    /// Return addresses; the module of the tests lies from 0x10000 to 0x20000, another one behind it.
    const FIRST: &[usize] = &[0x10101, 0x10201];
    const SECOND: &[usize] = &[0x10101, 0x10301];
    const NAMELESS: &[usize] = &[0x10401, 0x20101, 0x50001];
    const LOST: &[usize] = &[];

    fn mappings() -> Vec<Mapping> {
        let mapping = |start, path: &str, build_id: &str| Mapping {
            start,
            limit: start + 0x10000,
            offset: 0x1000,
            path: path.into(),
            build_id: build_id.into(),
        };
        vec![mapping(0x10000, "/srv/shop", "ab12"), mapping(0x20000, "/lib/libc.so.6", "")]
    }

    fn placed(stack: &RawStack) -> Vec<Placed> {
        let named = |at, inlined, function, line| Placed {
            at,
            inlined,
            frame: Arc::new(Frame::new(Some(function), "src/main.rs", line)),
        };
        let nameless = |at, module: &str, offset| Placed {
            at,
            inlined: 0,
            frame: Arc::new(Frame {
                module: Some(module.into()),
                offset: Some(offset),
                ..Frame::new(None, UNKNOWN, 0)
            }),
        };
        match stack.addresses {
            FIRST => vec![
                named(0, 0, "shop::inlined", 5),
                named(0, 1, "shop::load", 7),
                named(1, 0, "shop::main", 9),
            ],
            // The same call, but what was inlined there is no site of this stack.
            SECOND => vec![named(0, 1, "shop::load", 7), named(1, 0, "shop::main", 11)],
            NAMELESS => {
                let unknown = Arc::new(Frame::new(None, UNKNOWN, 0));
                let outside = Placed { at: 2, inlined: 0, frame: unknown };
                vec![nameless(0, "shop", 0x400), nameless(1, "libc.so.6", 0x100), outside]
            }
            _ => vec![Placed {
                at: 0,
                inlined: 0,
                frame: Arc::new(Frame::new(Some("[unrecorded]"), UNKNOWN, 0)),
            }],
        }
    }

    fn heap() -> Profile {
        sample(&[
            (FIRST, [100, 10, 40, 4]),
            (SECOND, [8, 1, 0, 0]),
            (NAMELESS, [70, 7, 70, 7]),
            (LOST, [3, 3, 2, 2]),
        ])
    }

    fn encoded(profile: &Profile, shown: ProfileValue) -> proto::Profile {
        let mut encoder = Encoder::with_mappings(profile, shown, mappings());
        while encoder.encode(profile, &placed) {}
        decoded(&encoder.finish())
    }

    fn decoded(gzipped: &[u8]) -> proto::Profile {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(gzipped).read_to_end(&mut bytes).unwrap();
        protobuf::decode(&bytes).unwrap()
    }

    fn text(profile: &proto::Profile, at: i64) -> &str {
        &profile.string_table[at as usize]
    }

    /// Function, file, line.
    type Named<'a> = (&'a str, &'a str, i64);

    /// Address, number of its mapping and lines of each location of a sample, leaf first.
    fn stack<'a>(profile: &'a proto::Profile, sample: &proto::Sample) -> Vec<(u64, u64, Vec<Named<'a>>)> {
        let location = |id: &u64| profile.location.iter().find(|location| location.id == *id).unwrap();
        let line = |line: &proto::Line| {
            let function = profile.function.iter().find(|function| function.id == line.function_id).unwrap();
            (text(profile, function.name), text(profile, function.filename), line.line)
        };
        let locations = sample.location_id.iter().map(location);
        locations
            .map(|location| (location.address, location.mapping_id, location.line.iter().map(line).collect()))
            .collect()
    }

    #[test]
    fn case_58_the_head_is_that_of_a_go_heap_profile() {
        let heap = heap();
        for (shown, default) in
            [(ProfileValue::LiveBytes, "inuse_space"), (ProfileValue::AllocatedBytes, "alloc_space")]
        {
            let profile = encoded(&heap, shown);
            let types: Vec<_> = profile
                .sample_type
                .iter()
                .map(|value| (text(&profile, value.r#type), text(&profile, value.unit)))
                .collect();
            assert_eq!(
                types,
                [
                    ("alloc_objects", "count"),
                    ("alloc_space", "bytes"),
                    ("inuse_objects", "count"),
                    ("inuse_space", "bytes")
                ]
            );
            let period = profile.period_type.unwrap();
            assert_eq!((text(&profile, period.r#type), text(&profile, period.unit)), ("space", "bytes"));
            assert_eq!((profile.period, text(&profile, profile.default_sample_type)), (1, default));
            assert_eq!(text(&profile, 0), "");
            assert_eq!((profile.time_nanos, profile.duration_nanos), (1_793_000_000_250_000_000, 0));
        }
        let mut during = heap;
        (during.over, during.sample_interval_bytes) = (Some(Duration::from_millis(5_001)), 524_288);
        let profile = encoded(&during, ProfileValue::LiveBytes);
        assert_eq!((profile.duration_nanos, profile.period), (5_001_000_000, 524_288));
    }

    #[test]
    fn case_58_samples_are_leaf_first_and_addresses_lie_in_the_call() {
        let profile = encoded(&heap(), ProfileValue::LiveBytes);
        let values: Vec<&[i64]> = profile.sample.iter().map(|sample| &*sample.value).collect();
        assert_eq!(values, [[10, 100, 6, 60], [1, 8, 1, 8], [7, 70, 0, 0], [3, 3, 1, 1]]);
        let stacks: Vec<_> = profile.sample.iter().map(|sample| stack(&profile, sample)).collect();
        assert_eq!(
            stacks[0],
            [
                (0x10100, 1, vec![("shop::inlined", "src/main.rs", 5), ("shop::load", "src/main.rs", 7)]),
                (0x10200, 1, vec![("shop::main", "src/main.rs", 9)]),
            ]
        );
        assert_eq!(
            stacks[1],
            [
                (0x10100, 1, vec![("shop::load", "src/main.rs", 7)]),
                (0x10300, 1, vec![("shop::main", "src/main.rs", 11)]),
            ]
        );
        // A name is made where no tool will look for one: in a mapping that has names, and outside all.
        assert_eq!(
            stacks[2],
            [
                (0x10400, 1, vec![("shop+0x400", "", 0)]),
                (0x20100, 2, vec![]),
                (0x50000, 0, vec![("<unknown>", "", 0)]),
            ]
        );
        assert_eq!(stacks[3], [(0, 0, vec![("[unrecorded]", "", 0)])]);
        // Each function once, though `shop::load` stands in two locations.
        let names: Vec<&str> =
            profile.function.iter().map(|function| text(&profile, function.name)).collect();
        assert_eq!(
            names,
            ["shop::inlined", "shop::load", "shop::main", "[unrecorded]", "shop+0x400", "<unknown>"]
        );
    }

    #[test]
    fn case_58_every_mapping_has_its_build_id() {
        let profile = encoded(&heap(), ProfileValue::LiveBytes);
        let [program, libc] = &profile.mapping[..] else { panic!("{:?}", profile.mapping) };
        assert_eq!(
            (program.id, program.memory_start, program.memory_limit, program.file_offset),
            (1, 0x10000, 0x20000, 0x1000)
        );
        assert_eq!(
            (text(&profile, program.filename), text(&profile, program.build_id)),
            ("/srv/shop", "ab12")
        );
        assert_eq!((text(&profile, libc.filename), libc.build_id), ("/lib/libc.so.6", 0));
        let resolved = |mapping: &proto::Mapping| {
            [
                mapping.has_functions,
                mapping.has_filenames,
                mapping.has_line_numbers,
                mapping.has_inline_frames,
            ]
        };
        assert_eq!((resolved(program), resolved(libc)), ([true; 4], [false; 4]));
    }

    /// More stacks than go into one piece, of this process.
    #[test]
    fn case_58_pieces_are_one_profile() {
        let begin = Encoder::finish as *const () as usize;
        let stacks: Vec<(&'static [usize], [u64; 4])> =
            (1..=2 * PIECE + 1).map(|at| (&*vec![begin + at % 7].leak(), [at as u64, 1, 0, 0])).collect();
        let profile = sample(&stacks);
        let profile = decoded(&profile.to_pprof(ProfileValue::LiveBytes));
        assert_eq!(profile.sample.len(), stacks.len());
        let bytes: i64 = profile.sample.iter().map(|sample| sample.value[3]).sum();
        assert_eq!(bytes, (1..=2 * PIECE as i64 + 1).sum::<i64>());
        // No name was looked up: the address says where it lies, in the program, which comes first.
        assert_eq!(profile.location.len(), 7);
        let program = &profile.mapping[0];
        assert!(
            text(&profile, program.filename).contains("/heapgauge-"),
            "{}",
            text(&profile, program.filename)
        );
        assert_eq!(Some(text(&profile, program.build_id)), symbols::build_id().as_deref());
        assert!(profile.location.iter().all(|location| {
            let at = profile.mapping.iter().find(|mapping| mapping.id == location.mapping_id).unwrap();
            (at.memory_start..at.memory_limit).contains(&location.address) && at.filename == program.filename
        }));
    }

    #[test]
    fn case_58_the_text_is_that_of_go() {
        let text = render(&heap(), 2, &placed);
        assert_eq!(
            text,
            "heap profile: 8: 69 [21: 181] @ heap/2\n\
             6: 60 [10: 100] @ 0x10101 0x10201\n\
             #\t0x10101\tshop::inlined\tsrc/main.rs:5\n\
             #\t0x10101\tshop::load\tsrc/main.rs:7\n\
             #\t0x10201\tshop::main\tsrc/main.rs:9\n\
             \n\
             1: 8 [1: 8] @ 0x10101 0x10301\n\
             #\t0x10101\tshop::load\tsrc/main.rs:7\n\
             #\t0x10301\tshop::main\tsrc/main.rs:11\n\
             \n\
             1: 1 [10: 73] @\n\
             #\t2 other stacks\n"
        );
    }

    /// Whatever the frames are called and the counts are, samples, names and numbers are there when it is read back.
    #[test]
    fn any_profile_reads_back() {
        let mut random = Random::new();
        let calls = Calls::new(&mut random);
        for _ in 0..inputs(600) {
            let heap = calls.profile(&mut random);
            let mut encoder = Encoder::with_mappings(&heap, ProfileValue::LiveBytes, mappings());
            while encoder.encode(&heap, &|stack| calls.placed(stack)) {}
            let profile = decoded(&encoder.finish());
            assert_eq!(profile.sample.len(), heap.stacks.len());
            for (sample, held) in profile.sample.iter().zip(&heap.stacks) {
                assert_eq!(sample.value, ProfileValue::ALL.map(|value| value.of(&held.counts)));
                let placed = calls.placed(held);
                let read = stack(&profile, sample);
                let expected: Vec<&[Placed]> = placed.chunk_by(|one, next| one.at == next.at).collect();
                assert_eq!(read.len(), expected.len());
                for ((address, mapping, lines), frames) in read.iter().zip(expected) {
                    assert_eq!(*address, held.addresses[frames[0].at] as u64 - 1);
                    let mapping = profile.mapping.iter().find(|at| at.id == *mapping);
                    let lies = |at: &proto::Mapping| (at.memory_start..at.memory_limit).contains(address);
                    assert_eq!(mapping, profile.mapping.iter().find(|at| lies(at)));
                    let named = frames.iter().filter_map(|placed| placed.frame.function.as_deref());
                    let names: Vec<&str> = lines.iter().map(|(name, ..)| *name).collect();
                    let named: Vec<&str> = named.collect();
                    // Those without a name have one made up, at the end, where no tool would look for one.
                    assert_eq!(names[..named.len()], named);
                    assert!(names.len() == named.len() || names.len() == frames.len());
                    assert!(!names.is_empty() || mapping.is_some_and(|at| !at.has_functions));
                }
            }

            let text = render(&heap, 5, &|stack| calls.placed(stack));
            let totals = text.lines().filter(|line| !line.starts_with('#') && line.contains('@'));
            let bytes = totals.map(|line| line.trim_start_matches("heap profile: ").split([' ', ':']).nth(2));
            let bytes: Vec<i64> = bytes.map(|number| number.unwrap().parse().unwrap()).collect();
            assert_eq!(bytes[0], bytes[1..].iter().sum::<i64>(), "{text}");
            assert_eq!(bytes.len(), 1 + heap.stacks.len().min(6), "{text}");
        }
    }
}
