//! Lists the sides with their names, packages and bases.

use clap::builder::PossibleValuesParser;

/// The role of a side in the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An allocator alone, the base of other sides.
    Bare,
    Heapgauge,
    /// heapgauge with its read side, for the collections only.
    Collector,
    Peer,
}

pub struct Side {
    pub name: &'static str,
    /// The crate of the side, by its name in `Cargo.lock`.
    pub package: &'static str,
    pub role: Role,
    pub base: Option<&'static str>,
    pub frame_pointers: bool,
    /// A remark that a reader needs to compare it with the others.
    pub remark: &'static str,
}

const fn side(name: &'static str, package: &'static str, role: Role, base: Option<&'static str>) -> Side {
    Side { name, package, role, base, frame_pointers: false, remark: "" }
}

const fn peer(name: &'static str, package: &'static str) -> Side {
    side(name, package, Role::Peer, Some("system"))
}

const fn with_frame_pointers(side: Side) -> Side {
    Side { frame_pointers: true, ..side }
}

const fn remarked(side: Side, remark: &'static str) -> Side {
    Side { remark, ..side }
}

/// All sides in the order of the tables.
pub const SIDES: [Side; 13] = [
    side("system", "", Role::Bare, None),
    side("heapgauge", "heapgauge", Role::Heapgauge, Some("system")),
    remarked(
        side("heapgauge-sampled", "heapgauge", Role::Heapgauge, Some("system")),
        "samples one stack per 512 KiB; totals are exact",
    ),
    with_frame_pointers(peer("heapscope", "heapscope")),
    remarked(
        with_frame_pointers(peer("pprof-alloc", "pprof-alloc")),
        "set to record every block; its default is one per 512 KiB",
    ),
    remarked(peer("dhat", "dhat"), "keeps 10 frames of a stack, its default"),
    peer("alloc-track", "alloc-track"),
    remarked(peer("re_memory", "re_memory"), "set to record every block; its default leaves out small ones"),
    remarked(
        peer("jemalloc-prof", "tikv-jemallocator"),
        "samples one stack per 512 KiB (lg_prof_sample 19); much of the difference to System is jemalloc itself",
    ),
    side("jemalloc", "tikv-jemallocator", Role::Bare, None),
    side("heapgauge-jemalloc", "heapgauge", Role::Heapgauge, Some("jemalloc")),
    side("mimalloc", "mimalloc", Role::Bare, None),
    side("heapgauge-mimalloc", "heapgauge", Role::Heapgauge, Some("mimalloc")),
];

/// A separate build, so that the timed sides do not contain the dependencies of the read side.
pub const COLLECTOR: Side = side("heapgauge-collect", "heapgauge", Role::Collector, None);

pub fn named(name: &str) -> Option<&'static Side> {
    SIDES.iter().find(|side| side.name == name)
}

pub fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(SIDES.iter().map(|side| side.name))
}
