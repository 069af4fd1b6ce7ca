//! Writes a reading of the parts of memory as the JSON of `/debug/heap/allocator.json`, and as the line of `/memory/snapshots`.
//!
//! Pure functions on values.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::json;
use crate::analyze::memory_parts::{Arena, MemoryParts, Reading, SizeClass};

/// The parts, for `summary.json` as well.
#[derive(Serialize)]
pub(super) struct Parts {
    resident: Option<u64>,
    anonymous: Option<u64>,
    file: Option<u64>,
    shared: Option<u64>,
    live: u64,
    live_untouched: Option<u64>,
    untracked: u64,
    overhead: u64,
    internal_fragmentation: Option<u64>,
    allocator_free_resident: Option<u64>,
    foreign: Option<u64>,
    thread_stack: Option<u64>,
    unaccounted: Option<i64>,
    allocator_resident: Option<u64>,
    threads: Option<u64>,
}

impl From<&MemoryParts> for Parts {
    fn from(parts: &MemoryParts) -> Parts {
        Parts {
            resident: resident(parts),
            anonymous: parts.anonymous,
            file: parts.file,
            shared: parts.shared,
            live: parts.live,
            live_untouched: parts.live_untouched,
            untracked: parts.untracked,
            overhead: parts.overhead,
            internal_fragmentation: parts.internal_fragmentation,
            allocator_free_resident: parts.allocator_free_resident,
            foreign: parts.foreign,
            thread_stack: parts.thread_stack,
            unaccounted: parts.unaccounted,
            allocator_resident: parts.allocator_resident,
            threads: parts.threads,
        }
    }
}

fn resident(parts: &MemoryParts) -> Option<u64> {
    Some(parts.anonymous? + parts.file? + parts.shared?)
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    taken_at: f64,
    allocator: &'a str,
    state: &'static str,
    parts: Parts,
    mappings: Vec<Mappings>,
    arenas: Vec<ArenaRow>,
    mapped_blocks: Option<MappedBlocks>,
    usage: Option<Usage<'a>>,
    calls: Vec<Call>,
}

#[derive(Serialize)]
struct Mappings {
    kind: &'static str,
    count: u64,
    size: u64,
    resident: u64,
    anonymous: u64,
}

#[derive(Serialize)]
struct ArenaRow {
    name: String,
    size: u64,
    resident: Option<u64>,
    in_use: u64,
    free: u64,
    free_chunks: u64,
    size_classes: Vec<Class>,
}

#[derive(Serialize)]
struct Class {
    from: u64,
    to: u64,
    count: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct MappedBlocks {
    count: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Usage<'a> {
    name: &'a str,
    resident: Option<u64>,
    allocated: Option<u64>,
    cached: Option<u64>,
    metadata: Option<u64>,
}

#[derive(Serialize)]
struct Call {
    name: &'static str,
    seconds: f64,
    longest_seconds: f64,
}

/// Renders `allocator.json`.
pub(crate) fn allocator(reading: &Reading) -> String {
    let Reading { glibc, usage, .. } = reading;
    let resident = |number: usize| reading.arenas_resident.get(number).copied().flatten();
    json::text(&Document {
        version: json::VERSION,
        taken_at: json::unix_seconds(reading.taken_at),
        allocator: &reading.allocator,
        state: reading.state.word(),
        parts: Parts::from(&reading.parts),
        mappings: (reading.classes.iter())
            .map(|sum| Mappings {
                kind: sum.class.word(),
                count: sum.count,
                size: sum.size,
                resident: sum.resident,
                anonymous: sum.anonymous,
            })
            .collect(),
        arenas: (glibc.iter().flat_map(|glibc| glibc.arenas.iter().enumerate()))
            .map(|(number, arena)| arena_row(number, arena, resident(number)))
            .collect(),
        mapped_blocks: glibc
            .as_ref()
            .map(|glibc| MappedBlocks { count: glibc.mapped_count, bytes: glibc.mapped_bytes }),
        usage: usage.as_ref().map(|usage| Usage {
            name: usage.name(),
            resident: usage.resident_bytes(),
            allocated: usage.allocated_bytes(),
            cached: usage.cached_bytes(),
            metadata: usage.metadata_bytes(),
        }),
        calls: (reading.calls.iter())
            .map(|(name, time)| Call {
                name,
                seconds: time.total.as_secs_f64(),
                longest_seconds: time.longest.as_secs_f64(),
            })
            .collect(),
    })
}

fn arena_row(number: usize, arena: &Arena, resident: Option<u64>) -> ArenaRow {
    let class = |class: &SizeClass| {
        let SizeClass { from, to, count, bytes } = *class;
        Class { from, to, count, bytes }
    };
    ArenaRow {
        name: if number == 0 { "main".into() } else { number.to_string() },
        size: arena.size,
        resident,
        in_use: arena.in_use(),
        free: arena.free,
        free_chunks: arena.free_chunks,
        size_classes: arena.size_classes.iter().map(class).collect(),
    }
}

/// Renders the line with the parts, without its end; `None` where resident memory is not known.
pub(crate) fn line(parts: &MemoryParts) -> Option<String> {
    let kib = |bytes: i64| format!("{:.2}", bytes as f64 / 1024.0);
    let of = |part: Option<u64>| part.map(|bytes| bytes as i64);
    let untouched = parts.live_untouched.unwrap_or(0);
    let named = [
        ("live touched", of(parts.live.checked_sub(untouched))),
        ("untracked", of(Some(parts.untracked))),
        ("overhead", of(Some(parts.overhead))),
        ("internal fragmentation", of(parts.internal_fragmentation)),
        ("free in the allocator", of(parts.allocator_free_resident)),
        ("foreign", of(parts.foreign)),
        ("thread stacks", of(parts.thread_stack)),
        ("unaccounted", parts.unaccounted),
        ("files", of(parts.file)),
        ("shared", of(parts.shared)),
    ];
    let named: Vec<String> =
        named.iter().filter_map(|(name, bytes)| Some(format!("{} {name}", kib((*bytes)?)))).collect();
    Some(format!("# resident: {} KiB = {}", kib(resident(parts)? as i64), named.join(" + ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_parts_that_are_known() {
        let mut parts = MemoryParts::default();
        (parts.anonymous, parts.file, parts.shared) = (Some(10_240), Some(2_048), Some(0));
        (parts.live, parts.live_untouched, parts.unaccounted) = (8_192, Some(4_096), Some(-512));
        assert_eq!(
            line(&parts).unwrap(),
            "# resident: 12.00 KiB = 4.00 live touched + 0.00 untracked + 0.00 overhead + -0.50 unaccounted + 2.00 files \
             + 0.00 shared"
        );
        assert_eq!(line(&MemoryParts::default()), None);
    }
}
