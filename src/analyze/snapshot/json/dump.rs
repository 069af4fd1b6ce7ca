//! Writes the JSON of a dump into memory that is set aside, stack by stack: what a
//! [`Snapshot`](crate::analyze::snapshot::Snapshot) saves, without making one.
//!
//! Nothing here allocates as long as the buffer has room for a piece.

use super::VERSION;
use crate::analyze::symbols::{KnownFrame, StackFrames};
use crate::record::raw_snapshot::RawStack;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::ops::Range;

/// Members of a dump before its stacks.
#[derive(Serialize)]
pub(crate) struct DumpHead<'a> {
    pub taken_at: f64,
    pub traceback_limit: usize,
    pub build_id: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    pub sample_interval: u64,
    pub reason: &'a str,
    /// File name of the program.
    pub program: &'a str,
    /// Name of the run: the time at which it began, and the process id.
    pub run: &'a str,
    pub memory_limit: Option<u64>,
    pub memory_limit_usage: Option<u64>,
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u64,
    #[serde(flatten)]
    head: &'a DumpHead<'a>,
}

/// Members of a dump behind its stacks: the rest of the heap, which found no room.
#[derive(Serialize)]
struct Rest {
    size: u64,
    count: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Appends everything before the stacks.
pub(crate) fn begin(buffer: &mut Vec<u8>, head: &DumpHead<'_>) {
    // Numbers and texts: there is nothing that it could refuse.
    let _ = serde_json::to_writer(&mut *buffer, &Versioned { version: VERSION, head });
    buffer.truncate(buffer.len().saturating_sub("}".len()));
    buffer.extend_from_slice(b",\"traces\":[");
}

/// Appends a stack, with a comma before it unless it is the first.
pub(crate) fn add(buffer: &mut Vec<u8>, is_first: bool, stack: &DumpStack<'_>, limit: usize) {
    if !is_first {
        buffer.push(b',');
    }
    let shown = stack.frames.shown(limit);
    let is_cut = stack.stack.truncated || shown.end < stack.frames.len();
    let scope = stack.scope.and_then(|text| serde_json::from_str(text).ok());
    let trace = DumpTrace { stack: stack.stack, frames: stack.frames, scope, shown, is_cut };
    let _ = serde_json::to_writer(buffer, &trace);
}

/// Stack of a dump.
pub(crate) struct DumpStack<'a> {
    pub stack: &'a RawStack,
    pub frames: &'a StackFrames,
    /// Scope as JSON.
    pub scope: Option<&'a str>,
}

/// Appends everything behind the stacks: the bytes and blocks of stacks that were left out.
pub(crate) fn end(buffer: &mut Vec<u8>, size: u64, count: u64) {
    buffer.extend_from_slice(b"],\"rest\":");
    let _ = serde_json::to_writer(&mut *buffer, &Rest { size, count });
    buffer.extend_from_slice(b"}\n");
}

struct DumpTrace<'a> {
    stack: &'a RawStack,
    frames: &'a StackFrames,
    scope: Option<&'a RawValue>,
    shown: Range<usize>,
    is_cut: bool,
}

impl Serialize for DumpTrace<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let DumpTrace { stack, frames, scope, shown, is_cut } = self;
        let (stderr, site) = (stack.variance.sqrt().round() as u64, frames.site_index());
        let optional = [stderr != 0, scope.is_some(), site != 0];
        let length = 5 + optional.into_iter().filter(|is_there| *is_there).count();
        let mut members = serializer.serialize_struct("Trace", length)?;
        members.serialize_field("domain", &0)?;
        members.serialize_field("size", &stack.counts.live_bytes())?;
        members.serialize_field("count", &stack.counts.live_blocks())?;
        if stderr != 0 {
            members.serialize_field("stderr", &stderr)?;
        }
        if let Some(scope) = scope {
            members.serialize_field("scope", scope)?;
        }
        members.serialize_field("total_frames", &(shown.len() + usize::from(*is_cut)))?;
        if site != 0 {
            members.serialize_field("site", &site)?;
        }
        members.serialize_field("frames", &DumpFrames { frames, shown: shown.clone() })?;
        members.end()
    }
}

struct DumpFrames<'a> {
    frames: &'a StackFrames,
    shown: Range<usize>,
}

impl Serialize for DumpFrames<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.shown.clone().map(|at| DumpFrame(self.frames.frame(at))))
    }
}

struct DumpFrame<'a>(KnownFrame<'a>);

impl Serialize for DumpFrame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            KnownFrame::Named(frame) => super::write::FileFrame(frame).serialize(serializer),
            KnownFrame::Unnamed { module, offset } => {
                let mut fields = serializer.serialize_struct("Frame", 5)?;
                fields.serialize_field("function", &None::<&str>)?;
                fields.serialize_field("file", crate::analyze::frame::UNKNOWN)?;
                fields.serialize_field("line", &0)?;
                fields.serialize_field("module", module)?;
                fields.serialize_field("offset", &offset)?;
                fields.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::snapshot::Snapshot;
    use crate::record::raw_snapshot::Counts;

    #[test]
    fn a_dump_is_a_snapshot_file() {
        let head = DumpHead {
            taken_at: 1_793_000_000.25,
            traceback_limit: 32,
            build_id: Some("abcd"),
            sample_interval: 0,
            reason: "limit",
            program: "shop",
            run: "1793000000-7",
            memory_limit: Some(1000),
            memory_limit_usage: None,
        };
        let here = &[a_dump_is_a_snapshot_file as fn() as usize + 1];
        let counts = Counts { allocated_bytes: 70, allocated_blocks: 3, freed_bytes: 20, freed_blocks: 1 };
        let stack = RawStack { truncated: true, variance: 16.0, ..RawStack::sample(2, counts) };
        let mut frames = StackFrames::new();
        frames.read(*here, None);
        let mut buffer = Vec::new();
        begin(&mut buffer, &head);
        let mut trace = DumpStack { stack: &stack, frames: &frames, scope: Some(r#"{"tenant":"a\"b"}"#) };
        add(&mut buffer, true, &trace, 32);
        trace.scope = None;
        add(&mut buffer, false, &trace, 32);
        end(&mut buffer, 5, 1);
        assert!(
            buffer.starts_with(b"{\"version\":1,\"taken_at\":1793000000.25,"),
            "{:?}",
            str::from_utf8(&buffer)
        );
        let path = std::env::temp_dir().join(format!("heapgauge-dump-{}.json", std::process::id()));
        std::fs::write(&path, &buffer).unwrap();
        let read = Snapshot::load(&path);
        std::fs::remove_file(&path).unwrap();
        let read = read.unwrap();
        assert_eq!((read.reason(), read.build_id(), read.traces().len()), (Some("limit"), Some("abcd"), 2));
        let trace = &read.traces()[0];
        assert_eq!((trace.size, trace.count, trace.stderr), (50, 2, 4));
        assert_eq!((trace.scope.get("tenant"), read.traces()[1].scope.is_empty()), (Some("a\"b"), true));
        assert!(trace.traceback.is_truncated() && trace.traceback.most_recent().module().is_some());
    }
}
