//! The messages of pprof's `profile.proto`, as far as they are written here.
//!
//! Names and numbers are those of the format, which is published at
//! <https://github.com/google/pprof/blob/main/proto/profile.proto> under the Apache License 2.0, © Google Inc.
//! The fields are described there. A number in place of a text is the text's place in `string_table`, whose first text is empty.
#![forbid(unsafe_code)]

use super::protobuf::{field, list, message, optional};

message! {
    pub(super) struct Profile {
        1: sample_type: Vec<ValueType>,
        2: sample: Vec<Sample>,
        3: mapping: Vec<Mapping>,
        4: location: Vec<Location>,
        5: function: Vec<Function>,
        6: string_table: Vec<String>,
        9: time_nanos: i64,
        10: duration_nanos: i64,
        11: period_type: Option<ValueType>,
        12: period: i64,
        14: default_sample_type: i64,
    }
}

message! {
    #[derive(Copy)]
    pub(super) struct ValueType {
        1: r#type: i64,
        2: unit: i64,
    }
}

message! {
    pub(super) struct Sample {
        1: location_id: Vec<u64>,
        2: value: Vec<i64>,
        3: label: Vec<Label>,
    }
}

message! {
    #[derive(Copy)]
    pub(super) struct Label {
        1: key: i64,
        2: str: i64,
    }
}

message! {
    pub(super) struct Mapping {
        1: id: u64,
        2: memory_start: u64,
        3: memory_limit: u64,
        4: file_offset: u64,
        5: filename: i64,
        6: build_id: i64,
        7: has_functions: bool,
        8: has_filenames: bool,
        9: has_line_numbers: bool,
        10: has_inline_frames: bool,
    }
}

message! {
    pub(super) struct Location {
        1: id: u64,
        2: mapping_id: u64,
        3: address: u64,
        4: line: Vec<Line>,
    }
}

message! {
    #[derive(Copy)]
    pub(super) struct Line {
        1: function_id: u64,
        2: line: i64,
    }
}

message! {
    pub(super) struct Function {
        1: id: u64,
        2: name: i64,
        4: filename: i64,
    }
}
