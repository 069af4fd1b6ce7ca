//! Finds the path at which a loaded module's very file can be read, though it may have been deleted or replaced.
//!
//! Read side only. A file at the same path that was put there later is never taken for it.
#![forbid(unsafe_code)]

use super::loaded_modules::Module;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Path of the running executable, also after its file was renamed or deleted.
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// Bytes of a file's head that tell builds apart: its headers and, as linkers put it, its build id.
const HEAD: usize = 4096;

/// Returns the path of the module's file; `None` where the file is gone.
pub(super) fn of(module: &Module) -> Option<PathBuf> {
    if is_program(&module.path) {
        let same = is_same_file(&module.path, Path::new(PROGRAM)) == Some(true);
        return Some(if same { module.path.clone() } else { PROGRAM.into() });
    }
    // Readable only with a capability that containers rarely have.
    let (low, high) = *module.ranges.first()?;
    let mapped = PathBuf::from(format!("/proc/self/map_files/{low:x}-{high:x}"));
    match is_same_file(&module.path, &mapped) {
        Some(true) => return Some(module.path.clone()),
        _ if File::open(&mapped).is_ok() => return Some(mapped),
        _ => {}
    }
    // The device is not compared: for a file of an overlay the kernel shows that of the layer below.
    let inode = fs::metadata(&module.path).ok()?.ino();
    let is_right = !module.deleted && inode == module.inode || has_same_head(module).unwrap_or(false);
    is_right.then(|| module.path.clone())
}

/// Returns whether the path is the executable's, not a library's.
pub(super) fn is_program(path: &Path) -> bool {
    fs::read_link(PROGRAM)
        .is_ok_and(|exe| exe.to_string_lossy().trim_end_matches(" (deleted)") == path.to_string_lossy())
}

/// Returns whether both are one file; `None` where one of them cannot be looked at.
fn is_same_file(path: &Path, other: &Path) -> Option<bool> {
    let (one, other) = (fs::metadata(path).ok()?, fs::metadata(other).ok()?);
    Some((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Returns whether the file at the module's path begins as the module does in memory.
fn has_same_head(module: &Module) -> Option<bool> {
    let (mut mapped, mut file) = ([0; HEAD], [0; HEAD]);
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut mapped, module.low as u64).ok()?;
    File::open(&module.path).ok()?.read_exact_at(&mut file, 0).ok()?;
    Some(mapped == file)
}
