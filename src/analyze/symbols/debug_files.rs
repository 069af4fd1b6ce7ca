//! Finds the files that hold a module's debug information: its separate debug file, the file that several share, its
//! package of split units.
//!
//! Read side only. A file that was made for another build is not taken.
#![forbid(unsafe_code)]

use super::elf::{Elf, build_id_in};
use object::Object;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Directory in which distributions put separate debug files.
const DEBUG_FILES: &str = "/usr/lib/debug";

/// Finds a separate debug file, by build id, then by debug link. One that was made for another build is none.
pub(super) fn separate(elf: &Elf<'_>, module: &Path) -> Option<PathBuf> {
    let id = elf.build_id().ok().flatten();
    if let Some(path) = id.and_then(by_build_id) {
        return Some(path);
    }
    let (name, checksum) = elf.gnu_debuglink().ok()??;
    let name = std::str::from_utf8(name).ok()?;
    // Resolves the directory, because the file may have been deleted.
    let directory = &std::fs::canonicalize(module.parent()?).ok()?;
    let module = directory.join(module.file_name()?);
    let below = directory.strip_prefix("/").unwrap_or(directory);
    let is_right = |path: &Path| match (id, build_id_in(path)) {
        (Some(id), Some(other)) => id == other,
        _ => checksum_of(path) == Some(checksum),
    };
    [directory.join(name), directory.join(".debug").join(name), Path::new(DEBUG_FILES).join(below).join(name)]
        .into_iter()
        .find(|path| path.is_file() && *path != module && is_right(path))
}

/// Computes the checksum of a file that a debug link names: CRC-32 of IEEE 802.3, in the documentation of GDB under "Separate
/// Debug Files". A crate for it would be one more without features.
fn checksum_of(path: &Path) -> Option<u32> {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut remainder = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                remainder = if remainder & 1 == 0 { remainder >> 1 } else { remainder >> 1 ^ 0xedb8_8320 };
                bit += 1;
            }
            table[byte] = remainder;
            byte += 1;
        }
        table
    };
    let mut file = File::open(path).ok()?;
    let (mut piece, mut sum) = (vec![0; 64 << 10], u32::MAX);
    loop {
        let length = file.read(&mut piece).ok()?;
        if length == 0 {
            return Some(!sum);
        }
        for byte in &piece[..length] {
            sum = TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8;
        }
    }
}

fn by_build_id(id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = Path::new(DEBUG_FILES).join(format!(".build-id/{first:02x}/{rest}.debug"));
    path.is_file().then_some(path)
}

/// Returns the path of a file's package: `shop.dwp` for `shop`.
pub(super) fn package(path: &Path) -> Option<PathBuf> {
    let mut package = path.as_os_str().to_owned();
    package.push(".dwp");
    Some(PathBuf::from(package)).filter(|package| package.is_file())
}

/// Finds the file of names that `dwz` took out of several debug files, by its path and else by its build id.
pub(super) fn supplement(elf: &Elf<'_>, debug: &Path) -> Option<PathBuf> {
    let (name, id) = elf.gnu_debugaltlink().ok()??;
    let directory = std::fs::canonicalize(debug).ok()?;
    // An absolute name replaces the directory.
    let path = directory.parent()?.join(std::str::from_utf8(name).ok()?);
    let path = if path.is_file() { Some(path) } else { by_build_id(id) };
    path.filter(|path| build_id_in(path).is_none_or(|other| other == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_debug_links() {
        let path = std::env::temp_dir().join(format!("heapgauge-checksum-{}", std::process::id()));
        for (text, sum) in [("", 0), ("123456789", 0xcbf4_3926)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(checksum_of(&path), Some(sum), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(checksum_of(&path), None);
    }
}
