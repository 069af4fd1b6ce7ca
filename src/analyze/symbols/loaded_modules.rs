//! Lists the executable and the libraries of this process, with the addresses of their code.
//!
//! Read side only, from `/proc/self/maps`. Empty where there is no such file.
#![forbid(unsafe_code)]

use super::elf;
use crate::record::control;
use crate::record::fork::Once;
use std::path::PathBuf;
use std::sync::Arc;

/// One loaded executable or library.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// The file's name, without directories.
    pub name: Arc<str>,
    pub path: PathBuf,
    /// The address that it was loaded at: of the mappings that begin with the file, the last below its code. A program
    /// may have mapped the same file elsewhere too, as the standard library does to print a backtrace.
    pub low: usize,
    /// Inode number of the file; another file at the same path has another.
    pub inode: u64,
    /// Mapped ranges, ascending.
    pub ranges: Vec<(usize, usize)>,
    /// Ranges of code, each with its place in the file.
    pub code: Vec<(usize, usize, u64)>,
    /// True if the file was deleted or replaced since; another may be at `path` now.
    pub deleted: bool,
}

/// Returns everything `/proc/self/maps` shows that has a file behind it. Empty where there is no such file, and on other systems
/// than Linux: Wine shows a program for Windows that of the process around it.
pub(super) fn list() -> Vec<Module> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        return Vec::new();
    }
    std::fs::read_to_string("/proc/self/maps").map(|maps| parse_maps(&maps)).unwrap_or_default()
}

/// Parses the list of mappings. A file is a module for each time its first byte is mapped and code follows: a program
/// may map a library twice, or as a file to read, as readers of symbols do.
fn parse_maps(maps: &str) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut has_code = Vec::new();
    for line in maps.lines() {
        // 55d96c4bf000-55d96c4c5000 r-xp 00001000 fe:00 1234   /path/with blanks
        let Some(at) = line.find('/') else { continue };
        let path = line[at..].trim_end_matches(" (deleted)");
        let deleted = line.ends_with(" (deleted)");
        let columns: Vec<&str> = line[..at].split_ascii_whitespace().collect();
        let [range, permissions, offset, _, inode] = columns[..] else { continue };
        let hex = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((Some(low), Some(high))) = range.split_once('-').map(|(low, high)| (hex(low), hex(high)))
        else {
            continue;
        };
        let (offset, inode) = (u64::from_str_radix(offset, 16).unwrap_or(0), inode.parse().unwrap_or(0));
        let known = modules.iter().rposition(|module| {
            module.inode == inode && module.deleted == deleted && module.path.as_os_str() == path
        });
        let at = match known {
            Some(at) if offset > 0 => at,
            _ => {
                let name = path.rsplit('/').next().unwrap_or(path).replace('\\', "/");
                modules.push(Module {
                    name: name.into(),
                    path: path.into(),
                    low,
                    inode,
                    ranges: Vec::new(),
                    code: Vec::new(),
                    deleted,
                });
                has_code.push(false);
                modules.len() - 1
            }
        };
        let module = &mut modules[at];
        module.ranges.push((low, high));
        if permissions.contains('x') {
            has_code[at] = true;
            module.code.push((low, high, offset));
        }
    }
    let mut has_code = has_code.into_iter();
    modules.retain(|_| has_code.next().unwrap_or(false));
    modules
}

/// Returns a module of this file at these addresses.
#[cfg(all(test, target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
pub(super) fn at_path(path: &std::path::Path, addresses: std::ops::Range<usize>) -> Module {
    let name = path.to_string_lossy().into_owned();
    let (low, high) = (addresses.start, addresses.end);
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let mut modules = parse_maps(&format!("{low:x}-{high:x} r-xp 00000000 fe:00 {inode}   {name}\n"));
    modules.remove(0)
}

/// Returns the index of the module that holds `address`.
pub(super) fn index_of(modules: &[Module], address: usize) -> Option<usize> {
    modules.iter().position(|module| module.ranges.iter().any(|&(low, high)| (low..high).contains(&address)))
}

/// Piece of code that is mapped from a file.
#[cfg(feature = "pprof")]
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub start: usize,
    /// First address behind it.
    pub limit: usize,
    /// Offset of `start` in the file.
    pub offset: u64,
    pub path: Arc<str>,
    /// Build id, hex; empty where the linker wrote none, or the file is no longer there.
    pub build_id: Arc<str>,
}

/// Returns all code of this process that comes from files, that of the module with this code first. Reads the head
/// of each file.
#[cfg(feature = "pprof")]
pub(crate) fn mappings() -> Vec<Mapping> {
    let _own = control::internal();
    let mut modules = list();
    modules.retain(|module| !module.code.is_empty());
    // The order of the rest is that of their addresses.
    let own = main_module(&modules).map(|module| module.low);
    modules.sort_by_key(|module| Some(module.low) != own);
    let mut mappings = Vec::new();
    for module in &modules {
        let id = hex(&elf::build_id(module).unwrap_or_default());
        let (path, build_id) = (Arc::from(module.path.to_string_lossy()), Arc::from(id));
        mappings.extend(module.code.iter().map(|&(start, limit, offset)| Mapping {
            start,
            limit,
            offset,
            path: Arc::clone(&path),
            build_id: Arc::clone(&build_id),
        }));
    }
    mappings
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the build id of the module that holds this code, hex; `None` where the linker wrote none.
pub(crate) fn build_id() -> Option<String> {
    static ID: Once<Option<String>> = Once::new();
    let _own = control::internal();
    ID.get_or_make(|| Some(hex(&elf::build_id(main_module(&list())?)?))).clone()
}

/// Returns the module that holds this code: the executable, or a library in somebody else's program, or in one that
/// was started through the loader.
pub(super) fn main_module(modules: &[Module]) -> Option<&Module> {
    index_of(modules, list as fn() -> Vec<Module> as usize).map(|at| &modules[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_become_modules() {
        let maps = "\
55d96c4b0000-55d96c4b5000 r--p 00000000 fe:00 1234   /srv/my service/shop (deleted)
55d96c4b5000-55d96c4c5000 r-xp 00005000 fe:00 1234   /srv/my service/shop (deleted)
55d96d000000-55d96d021000 rw-p 00000000 00:00 0      [heap]
7f00b3600000-7f00b3626000 r--p 00000000 fe:00 99     /lib/x86_64-linux-gnu/libc.so.6
7f00b3626000-7f00b3700000 r-xp 00026000 fe:00 99     /lib/x86_64-linux-gnu/libc.so.6
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0      [stack]
";
        let modules = parse_maps(maps);
        let names: Vec<&str> = modules.iter().map(|module| &*module.name).collect();
        assert_eq!(names, ["shop", "libc.so.6"]);
        assert_eq!(modules[0].low, 0x55d96c4b0000);
        assert_eq!(index_of(&modules, 0x55d96c4b5001), Some(0));
        assert_eq!(index_of(&modules, 0x55d96c4c5000), None);
        assert_eq!(index_of(&modules, 0x7f00b3626000), Some(1));
        assert_eq!(index_of(&modules, 0x55d96d000010), None);
        assert_eq!(modules[0].code, [(0x55d96c4b5000, 0x55d96c4c5000, 0x5000)]);
        assert_eq!(modules[1].code, [(0x7f00b3626000, 0x7f00b3700000, 0x26000)]);
        assert_eq!((modules[0].deleted, modules[1].deleted), (true, false));

        // A panic's backtrace maps the whole file once more: here below, and above.
        let mapped = format!(
            "55d900000000-55d900020000 r--p 00000000 fe:00 1234   /srv/my service/shop (deleted)\n{maps}"
        );
        let again = "7f00b4000000-7f00b4200000 r--p 00000000 fe:00 99     /lib/x86_64-linux-gnu/libc.so.6\n";
        let modules = parse_maps(&format!("{mapped}{again}"));
        assert_eq!((modules[0].low, modules[1].low), (0x55d96c4b0000, 0x7f00b3600000));
        assert_eq!((modules[0].code.len(), modules[1].code.len()), (1, 1));
    }

    #[test]
    fn a_file_mapped_to_be_read_and_one_that_replaced_another_are_not_the_module() {
        let maps = "\
500000000000-500000100000 r--p 00000000 fe:00 1234   /srv/shop
55d96c4b0000-55d96c4b5000 r--p 00000000 fe:00 1234   /srv/shop
55d96c4b5000-55d96c4c5000 r-xp 00005000 fe:00 1234   /srv/shop
7f00b3600000-7f00b3626000 r--p 00000000 fe:00 98     /srv/plug.so (deleted)
7f00b3626000-7f00b3700000 r-xp 00026000 fe:00 98     /srv/plug.so (deleted)
7f00b4600000-7f00b4626000 r--p 00000000 fe:00 99     /srv/plug.so
7f00b4626000-7f00b4700000 r-xp 00026000 fe:00 99     /srv/plug.so
";
        let modules = parse_maps(maps);
        let lows: Vec<(usize, bool)> = modules.iter().map(|module| (module.low, module.deleted)).collect();
        assert_eq!(lows, [(0x55d96c4b0000, false), (0x7f00b3600000, true), (0x7f00b4600000, false)]);
    }
}
