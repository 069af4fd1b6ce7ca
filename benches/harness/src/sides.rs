//! The sides there are: what each is called, built from, and divided by.

use clap::builder::PossibleValuesParser;

/// What a side is to the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An allocator alone: what others are divided by.
    Bare,
    Heapgauge,
    /// heapgauge with its read side, for the collections only.
    Collector,
    Peer,
}

pub struct Side {
    pub name: &'static str,
    /// The crate that makes the side, as `Cargo.lock` calls it.
    pub package: &'static str,
    pub role: Role,
    pub base: Option<&'static str>,
    pub frame_pointers: bool,
}

const fn side(name: &'static str, package: &'static str, role: Role, base: Option<&'static str>) -> Side {
    Side { name, package, role, base, frame_pointers: false }
}

const fn peer(name: &'static str, package: &'static str) -> Side {
    side(name, package, Role::Peer, Some("system"))
}

const fn with_frame_pointers(side: Side) -> Side {
    Side { frame_pointers: true, ..side }
}

/// In the order of the tables.
pub const SIDES: [Side; 12] = [
    side("system", "", Role::Bare, None),
    side("heapgauge", "heapgauge", Role::Heapgauge, Some("system")),
    with_frame_pointers(peer("heapscope", "heapscope")),
    with_frame_pointers(peer("pprof-alloc", "pprof-alloc")),
    peer("dhat", "dhat"),
    peer("alloc-track", "alloc-track"),
    peer("re-memory", "re_memory"),
    peer("jemalloc-prof", "tikv-jemallocator"),
    side("jemalloc", "tikv-jemallocator", Role::Bare, None),
    side("heapgauge-jemalloc", "heapgauge", Role::Heapgauge, Some("jemalloc")),
    side("mimalloc", "mimalloc", Role::Bare, None),
    side("heapgauge-mimalloc", "heapgauge", Role::Heapgauge, Some("mimalloc")),
];

/// A build of its own, so that the timed sides stay without the read side's dependencies.
pub const COLLECTOR: Side = side("heapgauge-collect", "heapgauge", Role::Collector, None);

pub fn named(name: &str) -> Option<&'static Side> {
    SIDES.iter().find(|side| side.name == name)
}

pub fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(SIDES.iter().map(|side| side.name))
}
