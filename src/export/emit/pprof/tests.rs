//! Profiles are encoded and read back.

use super::go_text::render;
use super::*;
use crate::analyze::profile::{Calls, sample, sample_in_scopes};
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

fn placed(stack: &[usize]) -> Vec<Placed> {
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
    match stack {
        FIRST => {
            vec![named(0, 0, "shop::inlined", 5), named(0, 1, "shop::load", 7), named(1, 0, "shop::main", 9)]
        }
        // The call is the same, but the inlined function is no site of this stack.
        SECOND => vec![named(0, 1, "shop::load", 7), named(1, 0, "shop::main", 11)],
        NAMELESS => {
            let unknown = Arc::new(Frame::new(None, UNKNOWN, 0));
            let outside = Placed { at: 2, inlined: 0, frame: unknown };
            vec![nameless(0, "shop", 0x400), nameless(1, "libc.so.6", 0x100), outside]
        }
        _ => {
            vec![Placed { at: 0, inlined: 0, frame: Arc::new(Frame::new(Some("[unrecorded]"), UNKNOWN, 0)) }]
        }
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
    proto::Profile::decode(&*bytes).unwrap()
}

fn text(profile: &proto::Profile, at: i64) -> &str {
    &profile.string_table[at as usize]
}

/// Function, file, line.
type Named<'a> = (&'a str, &'a str, i64);

/// Returns address, number of the mapping and lines of each location of a sample, leaf first.
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
    // Each function once, though `shop::load` is in two locations.
    let names: Vec<&str> = profile.function.iter().map(|function| text(&profile, function.name)).collect();
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
    assert_eq!((text(&profile, program.filename), text(&profile, program.build_id)), ("/srv/shop", "ab12"));
    assert_eq!((text(&profile, libc.filename), libc.build_id), ("/lib/libc.so.6", 0));
    let resolved = |mapping: &proto::Mapping| {
        [mapping.has_functions, mapping.has_filenames, mapping.has_line_numbers, mapping.has_inline_frames]
    };
    assert_eq!((resolved(program), resolved(libc)), ([true; 4], [false; 4]));
}

/// More stacks than go into one piece, of this process.
#[test]
fn case_58_pieces_are_one_profile() {
    let begin = Encoder::finish as *const () as usize;
    let addresses: Vec<[usize; 1]> = (1..=2 * PIECE + 1).map(|at| [begin + at % 7]).collect();
    let stacks: Vec<(&[usize], [u64; 4])> =
        (1..).zip(&addresses).map(|(at, stack)| (&stack[..], [at, 1, 0, 0])).collect();
    let profile = sample(&stacks);
    let profile = decoded(&profile.to_pprof(ProfileValue::LiveBytes));
    assert_eq!(profile.sample.len(), stacks.len());
    let bytes: i64 = profile.sample.iter().map(|sample| sample.value[3]).sum();
    assert_eq!(bytes, (1..=2 * PIECE as i64 + 1).sum::<i64>());
    // No name was looked up: the address says where it lies, in the program, which comes first.
    assert_eq!(profile.location.len(), 7);
    let program = &profile.mapping[0];
    assert!(text(&profile, program.filename).contains("/heapgauge-"), "{}", text(&profile, program.filename));
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

/// Encodes a stack in two scopes as two samples, each with the keys and values of its scope.
#[test]
fn a_sample_has_the_labels_of_its_scope() {
    let counts = [100, 10, 40, 4];
    let heap = sample_in_scopes(&[(FIRST, counts, "acme"), (FIRST, counts, ""), (FIRST, counts, "b")]);
    let profile = encoded(&heap, ProfileValue::LiveBytes);
    let labels = |sample: &proto::Sample| -> Vec<(String, String)> {
        let label =
            |label: &proto::Label| (text(&profile, label.key).into(), text(&profile, label.str).into());
        sample.label.iter().map(label).collect()
    };
    let expected = |tenant: &str| vec![("route".into(), "/a;b".into()), ("tenant".into(), tenant.into())];
    let shown: Vec<_> = profile.sample.iter().map(labels).collect();
    assert_eq!(shown, [expected("acme"), vec![], expected("b")]);
    assert_eq!(profile.sample[0].location_id, profile.sample[2].location_id);
    let text = render(&heap, 1, &placed);
    let lines: Vec<&str> = text.lines().skip(1).take(3).collect();
    assert_eq!(
        lines,
        [
            "6: 60 [10: 100] @ 0x10101 0x10201",
            "# labels: {\"route\":\"/a;b\", \"tenant\":\"acme\"}",
            "#\t0x10101\tshop::inlined\tsrc/main.rs:5"
        ]
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
            let placed = calls.placed(&heap.addresses(held));
            let read = stack(&profile, sample);
            let expected: Vec<&[Placed]> = placed.chunk_by(|one, next| one.at == next.at).collect();
            assert_eq!(read.len(), expected.len());
            for ((address, mapping, lines), frames) in read.iter().zip(expected) {
                assert_eq!(*address, heap.addresses(held)[frames[0].at] as u64 - 1);
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
