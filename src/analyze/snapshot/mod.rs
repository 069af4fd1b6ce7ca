//! Takes a [`Snapshot`] of raw counts and names, and writes it to a file and reads it back.
//!
//! Any thread may use it. Taking a snapshot copies counters and names every stack to the end: microseconds for each
//! stack named before, and some milliseconds or more where many are new. No thread is stopped.
#![forbid(unsafe_code)]

pub(crate) mod compare;
pub(crate) mod domains;
pub(crate) mod file_names;
pub(crate) mod filter;
pub(crate) mod group;
mod json;
pub(crate) mod order;
pub(crate) mod statistic;

use crate::analyze::frame::{Frame, Traceback, UNKNOWN};
use crate::analyze::merge_ids::merge_ids;
use crate::analyze::scope::{LabelsByScope, ScopeLabels};
use crate::analyze::snapshot::domains::DomainStack;
use crate::analyze::symbols::{self, Symbols};
use crate::base::error::Error;
use crate::record::control;
use crate::record::raw_snapshot::{self, RawSnapshot};
#[cfg(feature = "http")]
pub(crate) use json::FileFrames;
pub(crate) use json::dump;
#[cfg(feature = "http")]
pub(crate) use json::pieces;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Blocks that are alive and share a traceback and a scope.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// for trace in heapgauge::Snapshot::take()?.traces() {
///     println!("{}: {} bytes in {} blocks", trace.traceback, trace.size, trace.count);
/// }
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trace {
    /// Domain: 0 for the allocator's memory, else the number given to [`track`](crate::track).
    pub domain: u32,
    /// Live bytes, as requested, of all the blocks.
    pub size: u64,
    /// Live blocks.
    pub count: u64,
    /// Standard error of `size` where it is an [estimate](crate::docs::sampling), in bytes; 0 where it is exact.
    pub stderr: u64,
    /// Traceback of the allocations.
    pub traceback: Traceback,
    /// Scope that they were allocated in.
    pub scope: ScopeLabels,
}

/// Live blocks of the program at one moment, by traceback.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{GroupBy, Snapshot};
///
/// let before = Snapshot::take()?;
/// let kept = vec![1u8; 1 << 20];
/// let after = Snapshot::take()?;
/// let most = &after.compare_to(&before, GroupBy::Traceback)[0];
/// assert_eq!((most.size_diff, most.count_diff), (1 << 20, 1));
/// # drop(kept);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    taken_at: f64,
    traceback_limit: usize,
    build_id: Option<String>,
    sample_interval: u64,
    reason: Option<String>,
    /// Least age in seconds of the blocks that it has; `None`: it has all.
    older_than: Option<f64>,
    traces: Vec<Trace>,
}

impl Snapshot {
    /// Takes a snapshot now, with every name final.
    ///
    /// The first one in a process reads the debug information of everything that allocated: up to a second in a
    /// large program. Later ones with 10,000 stacks take some 20 ms.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let kept = String::from("kept");
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// assert!(snapshot.traces().iter().map(|trace| trace.size).sum::<u64>() >= 4);
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If tracking is off, or no [`TrackingAllocator`](crate::TrackingAllocator) is in use.
    pub fn take() -> Result<Snapshot, Error> {
        let _own = control::internal();
        let raw = raw_snapshot::take();
        if !raw.tracking {
            return Err(Error::tracking_off(format_args!("Snapshot::take: {}", control::off_reason())));
        }
        Ok(Snapshot::of_raw(raw, domains::stacks()))
    }

    /// Builds a snapshot of what was read now, with every name final, and of blocks of other domains.
    pub(crate) fn of_raw(raw: RawSnapshot, domains: Vec<DomainStack>) -> Snapshot {
        // A process whose figures are not right gets a line on stderr.
        symbols::capture(raw.capture);
        let symbols = symbols::global();
        let mut stacks = merge_ids(raw.stacks, &raw.addresses);
        stacks.retain(|stack| stack.counts.live_blocks() > 0);
        stacks.sort_by_key(|stack| (std::cmp::Reverse(stack.counts.live_bytes()), stack.id));
        let addresses: Vec<Vec<usize>> =
            stacks.iter().map(|stack| raw.addresses.to_vec(stack.addresses)).collect();
        let tracked = domains.iter().map(|stack| &*stack.addresses);
        symbols.resolve(&mut addresses.iter().map(|stack| &**stack).chain(tracked), Duration::MAX);
        let (limit, mut labels) = (raw.traceback_limit, LabelsByScope::default());
        let allocated = stacks.iter().zip(&addresses).map(|(stack, addresses)| Trace {
            domain: 0,
            size: stack.counts.live_bytes(),
            count: stack.counts.live_blocks(),
            stderr: stack.variance.sqrt().round() as u64,
            traceback: named(symbols, addresses, limit, stack.truncated),
            scope: labels.labels(&raw.scopes, stack.scope),
        });
        let tracked = domains.iter().map(|stack| Trace {
            domain: stack.domain,
            size: stack.size,
            count: stack.count,
            stderr: 0,
            traceback: named(symbols, &stack.addresses, limit, false),
            scope: ScopeLabels::default(),
        });
        let traces = allocated.chain(tracked).collect();
        Snapshot::of(raw.taken_at, limit, traces).sampled_every(raw.sample_interval_bytes)
    }

    /// Builds a snapshot of traces that were put together elsewhere, of this process.
    pub(crate) fn of(taken_at: SystemTime, traceback_limit: usize, traces: Vec<Trace>) -> Snapshot {
        Snapshot {
            taken_at: taken_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            traceback_limit,
            build_id: symbols::build_id(),
            sample_interval: 0,
            reason: None,
            older_than: None,
            traces,
        }
    }

    /// Sets the average bytes between samples.
    pub(crate) fn sampled_every(self, sample_interval: u64) -> Snapshot {
        Snapshot { sample_interval, ..self }
    }

    /// Sets the reason for which the process wrote it without being asked.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn with_reason(self, reason: &str) -> Snapshot {
        Snapshot { reason: Some(reason.to_owned()), ..self }
    }

    /// Says that it has only the blocks that are certain to be older than `age`.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn of_older_than(self, age: Duration) -> Snapshot {
        Snapshot { older_than: Some(age.as_secs_f64()), ..self }
    }

    /// Returns every traceback that holds live blocks; the allocator's first, most bytes first. While blocks are
    /// [sampled](crate::docs::sampling): every one that was met, with estimates.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// assert!(snapshot.traces().is_sorted_by_key(|trace| std::cmp::Reverse(trace.size)));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn traces(&self) -> &[Trace] {
        &self.traces
    }

    /// Returns the maximum number of frames that a traceback shows.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// assert_eq!(heapgauge::Snapshot::take()?.traceback_limit(), 32);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn traceback_limit(&self) -> usize {
        self.traceback_limit
    }

    /// Returns the average bytes between sampled allocations when it was taken; 0: every allocation was recorded.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// assert_eq!(heapgauge::Snapshot::take()?.sample_interval(), 0);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn sample_interval(&self) -> u64 {
        self.sample_interval
    }

    /// Returns the time at which it was taken, by the clock of the host that took it.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// assert!(snapshot.taken_at() <= std::time::SystemTime::now());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn taken_at(&self) -> SystemTime {
        let since = Duration::try_from_secs_f64(self.taken_at).unwrap_or_default();
        UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
    }

    /// Returns the linker's id of the executable it was taken from, hex; `None` where there is none.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let (one, two) = (heapgauge::Snapshot::take()?, heapgauge::Snapshot::take()?);
    /// assert_eq!(one.build_id(), two.build_id());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// Returns the event that made a process dump it: `limit`, `peak`, `signal`, `failure` or `request`, or a word of a later
    /// version; `None` for a snapshot that is no dump.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// assert_eq!(heapgauge::Snapshot::take()?.reason(), None);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns the age that every block in it is certain to have, where younger blocks were left out; `None`: it has all live blocks.
    /// A server writes such files, at `/debug/heap/snapshot.json?older_than=1h`; see [`ages`](crate::docs::ages).
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// assert_eq!(heapgauge::Snapshot::take()?.older_than(), None);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn older_than(&self) -> Option<Duration> {
        self.older_than.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// Returns the snapshot with only those traces that `keep` accepts.
    pub(crate) fn filtered(&self, keep: impl Fn(&Trace) -> bool) -> Snapshot {
        let _own = control::internal();
        Snapshot {
            traces: self.traces.iter().filter(|trace| keep(trace)).cloned().collect(),
            build_id: self.build_id.clone(),
            reason: self.reason.clone(),
            ..*self
        }
    }

    /// Writes the snapshot to `path` as JSON, whole or not at all: a file that is there is replaced in one step.
    ///
    /// 100,000 tracebacks of twelve frames take a fifth of a second.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// # let directory = std::env::temp_dir().join(format!("heapgauge-save-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory)?;
    /// # let path = directory.join("heap.json");
    /// let snapshot = heapgauge::Snapshot::take()?;
    /// snapshot.save(&path)?;
    /// assert_eq!(heapgauge::Snapshot::load(&path)?, snapshot);
    /// # std::fs::remove_dir_all(&directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or would be longer than the 1 GiB that [`Snapshot::load`] reads.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let _own = control::internal();
        let path = path.as_ref();
        json::write(self, path)
            .map_err(|error| Error::with_source(format_args!("save snapshot to {}", path.display()), error))
    }

    /// Reads a file that [`Snapshot::save`] wrote, or anything of that form.
    ///
    /// Members that are not known are ignored; all that are known must be there with their types, except
    /// `build_id`, `sample_interval`, `reason`, `older_than`, a trace's `stderr` and `scope`, and a frame's `function`, `module` and `offset`. 100,000 tracebacks take
    /// half a second, and as much memory as the file is long; a file above 256 MiB is read by pieces, in more than twice the time.
    ///
    /// # Examples
    ///
    /// ```
    /// let error = heapgauge::Snapshot::load("no/such/file.json").unwrap_err();
    /// assert!(error.to_string().starts_with("load snapshot from no/such/file.json: "));
    /// ```
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is longer than 1 GiB, is not JSON of this form or of another version, ends
    /// too early, or holds a traceback without frames or with more than 65,535.
    pub fn load(path: impl AsRef<Path>) -> Result<Snapshot, Error> {
        Snapshot::load_watched(path, &AtomicU64::new(0))
    }

    /// Does the work of [`load`](Snapshot::load), and counts the bytes that were read, for another thread that shows them.
    #[doc(hidden)]
    pub fn load_watched(path: impl AsRef<Path>, bytes_read: &AtomicU64) -> Result<Snapshot, Error> {
        let _own = control::internal();
        let path = path.as_ref();
        json::read(path, bytes_read)
            .map_err(|error| Error::with_source(format_args!("load snapshot from {}", path.display()), error))
    }
}

/// Returns the traceback of a stack, with names looked up again if the program loaded a library meanwhile.
pub(crate) fn named(symbols: &Symbols, addresses: &[usize], limit: usize, truncated: bool) -> Traceback {
    for _ in 0..3 {
        if let Some(traceback) = symbols.traceback(addresses, limit, truncated) {
            return traceback;
        }
        symbols.resolve(&mut std::iter::once(addresses), Duration::MAX);
    }
    Traceback::new([Frame::new(None, UNKNOWN, 0)])
}
