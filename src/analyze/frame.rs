//! Names of code places as values: [`Frame`], [`Traceback`] and how they and byte sizes are printed.
//!
//! Nothing here looks anything up; `symbols` makes these from addresses and `snapshot` from files.
//! Any thread may use them. Cloning is O(1): the text behind them is shared.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Value of `file` where no file is known, and of `crate` where no crate is.
pub(crate) const UNKNOWN: &str = "<unknown>";

/// One place in the code: function, file and line.
///
/// Inlined functions have frames of their own. Two frames compare by file, then line, then the rest,
/// as `tracemalloc` orders them.
///
/// # Examples
///
/// ```
/// use heapgauge::Frame;
///
/// let frame = Frame::new(Some("my_service::cache::Cache::insert"), "src/cache.rs", 42);
/// assert_eq!(frame.to_string(), "src/cache.rs:42");
/// assert_eq!(frame.crate_name(), "my_service");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    pub(crate) function: Option<Arc<str>>,
    pub(crate) file: Arc<str>,
    pub(crate) line: u32,
    pub(crate) module: Option<Arc<str>>,
    pub(crate) offset: Option<u64>,
}

impl Frame {
    /// Creates a named frame; see [`Frame::function`] and [`Frame::file`] for the form of the two names.
    ///
    /// # Examples
    ///
    /// ```
    /// let frame = heapgauge::Frame::new(None, "a.rs", 5);
    /// assert_eq!((frame.name().as_ref(), frame.line()), ("<unknown>", 5));
    /// ```
    pub fn new(function: Option<&str>, file: &str, line: u32) -> Frame {
        Frame { function: function.map(Arc::from), file: file.into(), line, module: None, offset: None }
    }

    /// Returns the demangled path of the function without crate hash and without generic arguments; `None` where no
    /// symbol is known.
    ///
    /// # Examples
    ///
    /// ```
    /// let frame = heapgauge::Frame::new(Some("app::load"), "a.rs", 5);
    /// assert_eq!(frame.function(), Some("app::load"));
    /// ```
    pub fn function(&self) -> Option<&str> {
        self.function.as_deref()
    }

    /// Returns the file, relative to the workspace, the registry or git checkout, or beginning with `library/` for the
    /// standard library; `<unknown>` without line tables.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::Frame::new(None, "src/cache.rs", 42).file(), "src/cache.rs");
    /// ```
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Returns the line, 1-based; 0 where it is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::Frame::new(None, "src/cache.rs", 42).line(), 42);
    /// ```
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Returns the file name of the executable or shared library, given only where the function is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::Frame::new(Some("app::load"), "a.rs", 5).module(), None);
    /// ```
    pub fn module(&self) -> Option<&str> {
        self.module.as_deref()
    }

    /// Returns the offset in the module, as linked: the address that `addr2line` takes. Given only with the module.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::Frame::new(Some("app::load"), "a.rs", 5).offset(), None);
    /// ```
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Returns the function, or `module+0xoffset`, or `<unknown>`.
    ///
    /// # Examples
    ///
    /// ```
    /// let frame = heapgauge::Frame::new(Some("app::load"), "a.rs", 5);
    /// assert_eq!(frame.name(), "app::load");
    /// ```
    pub fn name(&self) -> Cow<'_, str> {
        match (&self.function, &self.module, self.offset) {
            (Some(function), ..) => Cow::Borrowed(function),
            (None, Some(module), Some(offset)) => Cow::Owned(format!("{module}+{offset:#x}")),
            _ => Cow::Borrowed(UNKNOWN),
        }
    }

    /// Returns the crate the function belongs to: the first segment of its path, or the crate that the file name gives
    /// (`library/alloc/…`, `serde_json-1.0.1/…`), or `<unknown>`.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::Frame;
    ///
    /// assert_eq!(Frame::new(Some("alloc::vec::Vec::push"), "library/alloc/src/vec/mod.rs", 1).crate_name(), "alloc");
    /// assert_eq!(Frame::new(Some("arena_new"), "tikv-jemalloc-sys-0.7.0/src/arena.c", 1).crate_name(), "tikv-jemalloc-sys");
    /// assert_eq!(Frame::new(Some("main"), "<unknown>", 0).crate_name(), "<unknown>");
    /// ```
    pub fn crate_name(&self) -> &str {
        if let Some((first, _)) = self.function.as_deref().and_then(|function| function.split_once("::"))
            && first.chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            return first;
        }
        let mut directories = self.file.split('/');
        match (directories.next(), directories.next(), directories.next()) {
            (Some("library"), Some(library), Some(_)) => library,
            (Some(package), Some(_), _) => without_version(package).unwrap_or(UNKNOWN),
            _ => UNKNOWN,
        }
    }
}

/// Strips the version of a package: `serde_json-1.0.1` → `serde_json`; `None` when there is no version at the end.
pub(crate) fn without_version(package: &str) -> Option<&str> {
    let at = package.match_indices('-').map(|(at, _)| at).find(|&at| {
        let version = &package[at + 1..];
        version.starts_with(|c: char| c.is_ascii_digit()) && version.contains('.')
    })?;
    Some(&package[..at])
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl Ord for Frame {
    fn cmp(&self, other: &Frame) -> Ordering {
        let key = |frame: &Frame| (frame.line, frame.offset);
        (&self.file, self.line).cmp(&(&other.file, other.line)).then_with(|| {
            (&self.function, &self.module, key(self)).cmp(&(&other.function, &other.module, key(other)))
        })
    }
}

impl PartialOrd for Frame {
    fn partial_cmp(&self, other: &Frame) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Returns the crate of the nearest frame, where it is another one than the site's; else the empty text.
pub(crate) fn via_of<'a>(nearest: &'a Frame, site: &Frame) -> &'a str {
    let (krate, via) = (site.crate_name(), nearest.crate_name());
    if krate == via {
        return "";
    }
    // Code without names goes by its file.
    nearest.module.as_deref().filter(|_| via == UNKNOWN).unwrap_or(via)
}

/// Frames of an allocation, most recent first, beginning with the nearest: the most recent that is not the standard
/// library's, the allocator's or that of a container. [`Traceback::site`] is the one that the block is charged to.
///
/// It prints as its most recent frame. Two tracebacks compare from the oldest frame on, as
/// `tracemalloc` orders them; [`Traceback::is_truncated`] takes no part in it.
///
/// # Examples
///
/// ```
/// use heapgauge::{Frame, Traceback};
///
/// let traceback = Traceback::new([Frame::new(None, "a.rs", 2), Frame::new(None, "b.rs", 4)]);
/// assert_eq!(traceback.to_string(), "a.rs:2");
/// assert_eq!(traceback.frames().map(|frame| frame.line()).collect::<Vec<_>>(), [2, 4]);
/// ```
#[derive(Clone)]
pub struct Traceback {
    // A frame is shared by every traceback that passes through it: 8 bytes here against 72.
    frames: Arc<[Arc<Frame>]>,
    total_frames: usize,
    /// Index of the site's frame.
    site: usize,
}

impl Traceback {
    /// Creates a traceback of these frames, most recent first, of which none were cut.
    ///
    /// # Panics
    ///
    /// When there is no frame.
    ///
    /// # Examples
    ///
    /// ```
    /// let traceback = heapgauge::Traceback::new([heapgauge::Frame::new(None, "a.rs", 2)]);
    /// assert!(!traceback.is_truncated());
    /// ```
    pub fn new(frames: impl IntoIterator<Item = Frame>) -> Traceback {
        let frames: Vec<Arc<Frame>> = frames.into_iter().map(Arc::new).collect();
        let total_frames = frames.len();
        Traceback::shared(frames, total_frames)
    }

    pub(crate) fn shared(frames: impl Into<Arc<[Arc<Frame>]>>, total_frames: usize) -> Traceback {
        let frames = frames.into();
        assert!(!frames.is_empty(), "a traceback has at least one frame");
        Traceback { frames, total_frames, site: 0 }
    }

    /// Makes the frame at this index the site's; the last where there are fewer.
    pub(crate) fn with_site(self, site: usize) -> Traceback {
        Traceback { site: site.min(self.frames.len() - 1), ..self }
    }

    /// Returns the index of the site's frame.
    pub(crate) fn site_index(&self) -> usize {
        self.site
    }

    /// Returns the frame that the block is charged to: the most recent of own code; where there is none, the first.
    ///
    /// # Examples
    ///
    /// ```
    /// let traceback = heapgauge::Traceback::new([heapgauge::Frame::new(None, "a.rs", 2)]);
    /// assert_eq!((traceback.site().line(), traceback.via()), (2, ""));
    /// ```
    pub fn site(&self) -> &Frame {
        &self.frames[self.site]
    }

    /// Returns the crate through which the site's frame holds the block: that of the first frame, where it is another
    /// one; else the empty text.
    ///
    /// # Examples
    ///
    /// ```
    /// let traceback = heapgauge::Traceback::new([heapgauge::Frame::new(None, "a.rs", 2)]);
    /// assert_eq!(traceback.via(), "");
    /// ```
    pub fn via(&self) -> &str {
        via_of(&self.frames[0], self.site())
    }

    /// Iterates over the frames kept, most recent first; at least one.
    ///
    /// # Examples
    ///
    /// ```
    /// let traceback = heapgauge::Traceback::new([heapgauge::Frame::new(None, "a.rs", 2)]);
    /// assert_eq!(traceback.frames().len(), 1);
    /// ```
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &Frame> + DoubleEndedIterator + Clone {
        self.frames.iter().map(|frame| &**frame)
    }

    /// Returns the frames as they are shared between tracebacks.
    pub(crate) fn shared_frames(&self) -> &[Arc<Frame>] {
        &self.frames
    }

    /// Returns whether the limit cut older frames off.
    ///
    /// # Examples
    ///
    /// ```
    /// let traceback = heapgauge::Traceback::new([heapgauge::Frame::new(None, "a.rs", 2)]);
    /// assert!(!traceback.is_truncated());
    /// ```
    pub fn is_truncated(&self) -> bool {
        self.total_frames > self.frames.len()
    }

    /// Returns the number of frames as the snapshot file gives it, kept ones and others.
    pub(crate) fn total_frames(&self) -> usize {
        self.total_frames
    }

    /// Returns the first frame.
    ///
    /// # Examples
    ///
    /// ```
    /// let traceback = heapgauge::Traceback::new([heapgauge::Frame::new(None, "a.rs", 2)]);
    /// assert_eq!(traceback.most_recent().line(), 2);
    /// ```
    pub fn most_recent(&self) -> &Frame {
        &self.frames[0]
    }

    /// Formats one line a frame, oldest first unless `most_recent_first`.
    ///
    /// A positive `limit` keeps that many of the most recent frames, a negative one that many of the
    /// oldest, 0 none.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{Frame, Traceback};
    ///
    /// let traceback = Traceback::new([Frame::new(Some("app::load"), "a.rs", 2), Frame::new(None, "b.rs", 4)]);
    /// assert_eq!(traceback.format(None, false), [r#"  File "b.rs", line 4"#, r#"  File "a.rs", line 2, in app::load"#]);
    /// assert_eq!(traceback.format(Some(1), false), [r#"  File "a.rs", line 2, in app::load"#]);
    /// assert_eq!(traceback.format(Some(-1), false), [r#"  File "b.rs", line 4"#]);
    /// ```
    pub fn format(&self, limit: Option<isize>, most_recent_first: bool) -> Vec<String> {
        let kept = limit.map_or(usize::MAX, isize::unsigned_abs).min(self.frames.len());
        let frames = match limit {
            Some(limit) if limit < 0 => &self.frames[self.frames.len() - kept..],
            _ => &self.frames[..kept],
        };
        let mut lines: Vec<String> = frames
            .iter()
            .map(|frame| {
                let place = format!("  File \"{}\", line {}", frame.file, frame.line);
                match frame.name() {
                    name if name == UNKNOWN => place,
                    name => format!("{place}, in {name}"),
                }
            })
            .collect();
        if !most_recent_first {
            lines.reverse();
        }
        lines
    }
}

impl fmt::Display for Traceback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.most_recent().fmt(f)
    }
}

impl fmt::Debug for Traceback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.frames.iter().map(ToString::to_string)).finish()
    }
}

impl PartialEq for Traceback {
    fn eq(&self, other: &Traceback) -> bool {
        self.frames == other.frames
    }
}

impl Eq for Traceback {}

impl std::hash::Hash for Traceback {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.frames.hash(state);
    }
}

impl Ord for Traceback {
    fn cmp(&self, other: &Traceback) -> Ordering {
        self.frames.iter().rev().cmp(other.frames.iter().rev())
    }
}

impl PartialOrd for Traceback {
    fn partial_cmp(&self, other: &Traceback) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Formats bytes as `tracemalloc` prints them: three digits below 100 units, four or five from there on.
pub(crate) fn format_size(bytes: f64, sign: bool) -> String {
    let mut size = bytes;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    loop {
        let unit = units.next().unwrap_or("TiB");
        let digits = if size.abs() < 100.0 && unit != "B" { 1 } else { 0 };
        if digits == 1 || size.abs() < 10.0 * 1024.0 || unit == "TiB" {
            return if sign { format!("{size:+.digits$} {unit}") } else { format!("{size:.digits$} {unit}") };
        }
        size /= 1024.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_54_sizes() {
        let expected = [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (10239.0, "10239 B"),
            (10240.0, "10.0 KiB"),
            (102399.0, "100.0 KiB"),
            (102400.0, "100 KiB"),
            (616765.0, "602 KiB"),
            (10485759.0, "10240 KiB"),
            (10485760.0, "10.0 MiB"),
            (123456789.0, "118 MiB"),
            (1e12, "931 GiB"),
            (1e15, "909 TiB"),
            // Halves go to the even neighbour, as printf does.
            (0.5, "0 B"),
            (1.5, "2 B"),
            (2.5, "2 B"),
            (10496.0, "10.2 KiB"),
        ];
        for (bytes, text) in expected {
            assert_eq!(format_size(bytes, false), text, "{bytes}");
        }
        assert_eq!(format_size(0.0, true), "+0 B");
        assert_eq!(format_size(-66.0, true), "-66 B");
        assert_eq!(format_size(-10240.0, true), "-10.0 KiB");
        assert_eq!(format_size(5000.0, true), "+5000 B");
    }

    #[test]
    fn case_56_format_with_limit_and_order() {
        let traceback = Traceback::new([
            Frame::new(None, "a.rs", 2),
            Frame::new(Some("app::middle"), "m.rs", 3),
            Frame::new(None, "b.rs", 4),
        ]);
        let a = r#"  File "a.rs", line 2"#;
        let m = r#"  File "m.rs", line 3, in app::middle"#;
        let b = r#"  File "b.rs", line 4"#;
        assert_eq!(traceback.format(None, false), [b, m, a]);
        assert_eq!(traceback.format(None, true), [a, m, b]);
        assert_eq!(traceback.format(Some(1), false), [a]);
        assert_eq!(traceback.format(Some(-1), false), [b]);
        assert_eq!(traceback.format(Some(2), true), [a, m]);
        assert_eq!(traceback.format(Some(-2), true), [m, b]);
        assert_eq!(traceback.format(Some(0), false), [""; 0]);
        assert_eq!(traceback.format(Some(isize::MIN), true), [a, m, b]);
        assert_eq!(traceback.format(Some(isize::MAX), true), [a, m, b]);
    }

    #[test]
    fn tracebacks_compare_from_the_oldest_frame() {
        let of = |frames: &[(&str, u32)]| {
            Traceback::new(frames.iter().map(|&(file, line)| Frame::new(None, file, line)))
        };
        assert!(of(&[("z", 1), ("a", 1)]) < of(&[("a", 1), ("b", 1)]));
        assert!(of(&[("a", 1)]) < of(&[("a", 1), ("a", 1)]));
        assert!(of(&[("a", 9)]) < of(&[("a", 10)]));
    }

    #[test]
    fn an_unnamed_frame_is_called_by_its_module() {
        let frame =
            Frame { module: Some("my_service".into()), offset: Some(0x1a2b), ..Frame::new(None, UNKNOWN, 0) };
        assert_eq!(frame.name(), "my_service+0x1a2b");
        assert_eq!(frame.crate_name(), UNKNOWN);
        assert_eq!(
            Traceback::new([frame]).format(None, true),
            [r#"  File "<unknown>", line 0, in my_service+0x1a2b"#]
        );
    }
}
