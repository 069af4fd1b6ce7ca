//! Describes the detail that names can have, for the page and `heap_build_info`.
#![forbid(unsafe_code)]

/// Detail of the names of the module that holds this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quality {
    /// `lines`, `functions` or `none`.
    pub names: &'static str,
    pub lines: LineTables,
}

/// Line tables of a module, or the reason why they cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineTables {
    Available,
    Absent,
    /// They do not fit into the limit that was set.
    TooLarge,
    /// They are in other files, which are missing or of another build.
    PartsMissing,
}
