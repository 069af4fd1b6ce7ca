//! Writes the JSON file of a [`Snapshot`], whole or not at all.

use super::shared::pieces;
use super::{Bounded, MAX_BYTES, VERSION};
use crate::analyze::frame::Frame;
use crate::analyze::scope::ScopeLabels;
use crate::analyze::snapshot::{Snapshot, Trace};
use serde::ser::{SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Writes a file beside `path` and renames it, so that there is always a whole file or none.
pub(in crate::analyze::snapshot) fn write(snapshot: &Snapshot, path: &Path) -> io::Result<()> {
    let (beside, file) = beside(path)?;
    let written = write_to(snapshot, file).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // Nothing to say if that fails too: the first error is the one that counts.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Creates a new file in that directory. Other processes may have left theirs behind, or be writing: in containers
/// every process has the same id.
fn beside(path: &Path) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short, so that any name a file may have can be saved to.
        let beside = path.with_file_name(format!(".heapgauge-{}-{number}.tmp", std::process::id()));
        match File::options().write(true).create_new(true).open(&beside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => {}
            opened => return opened.map(|file| (beside, file)),
        }
    }
}

fn write_to(snapshot: &Snapshot, file: File) -> io::Result<()> {
    let mut bounded = Bounded { inner: file, left: MAX_BYTES };
    pieces(snapshot).try_for_each(|piece| bounded.write_all(&piece))?;
    bounded.inner.sync_all()
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let optional = [self.sample_interval != 0, self.reason.is_some(), self.older_than.is_some()];
        let length = 5 + optional.into_iter().filter(|is_there| *is_there).count();
        let mut file = serializer.serialize_struct("Snapshot", length)?;
        file.serialize_field("version", &VERSION)?;
        file.serialize_field("taken_at", &self.taken_at)?;
        file.serialize_field("traceback_limit", &self.traceback_limit)?;
        file.serialize_field("build_id", &self.build_id)?;
        if self.sample_interval != 0 {
            file.serialize_field("sample_interval", &self.sample_interval)?;
        }
        if let Some(reason) = &self.reason {
            file.serialize_field("reason", reason)?;
        }
        if let Some(seconds) = &self.older_than {
            file.serialize_field("older_than", seconds)?;
        }
        file.serialize_field("traces", &self.traces)?;
        file.end()
    }
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_frames(self, &FileFrames(self.traceback.shared_frames()), serializer)
    }
}

/// Serializes a trace with its frames written by `frames`.
pub(super) fn with_frames<S: Serializer>(
    trace: &Trace,
    frames: &impl Serialize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let site = trace.traceback.site_index();
    let optional = [trace.stderr != 0, !trace.scope.is_empty(), site != 0];
    let length = 5 + optional.into_iter().filter(|is_there| *is_there).count();
    let mut members = serializer.serialize_struct("Trace", length)?;
    members.serialize_field("domain", &trace.domain)?;
    members.serialize_field("size", &trace.size)?;
    members.serialize_field("count", &trace.count)?;
    if trace.stderr != 0 {
        members.serialize_field("stderr", &trace.stderr)?;
    }
    if !trace.scope.is_empty() {
        members.serialize_field("scope", &FileScope(&trace.scope))?;
    }
    members.serialize_field("total_frames", &trace.traceback.total_frames())?;
    if site != 0 {
        members.serialize_field("site", &site)?;
    }
    members.serialize_field("frames", frames)?;
    members.end()
}

/// Scope in the form of the file: an object with its keys and values.
struct FileScope<'a>(&'a ScopeLabels);

impl Serialize for FileScope<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

/// Frames in the form of the file.
pub(crate) struct FileFrames<'a>(pub(crate) &'a [Arc<Frame>]);

impl Serialize for FileFrames<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut frames = serializer.serialize_seq(Some(self.0.len()))?;
        for frame in self.0 {
            frames.serialize_element(&FileFrame(frame))?;
        }
        frames.end()
    }
}

pub(super) struct FileFrame<'a>(pub(super) &'a Frame);

impl Serialize for FileFrame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let FileFrame(frame) = self;
        let mut fields = serializer.serialize_struct("Frame", 5)?;
        fields.serialize_field("function", &frame.function.as_deref())?;
        fields.serialize_field("file", &*frame.file)?;
        fields.serialize_field("line", &frame.line)?;
        if let Some(module) = &frame.module {
            fields.serialize_field("module", &**module)?;
        }
        if let Some(offset) = &frame.offset {
            fields.serialize_field("offset", offset)?;
        }
        fields.end()
    }
}
