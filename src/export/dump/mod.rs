//! Dumps: snapshots in files that outlive the process, and text that explains its end.
//!
//! A thread of heapgauge's own watches memory and writes them; the files and their settings are described at [`Dumps`].
#![forbid(unsafe_code)]

#[cfg(feature = "http")]
pub(crate) mod access;
mod directory;
mod largest;
mod levels;
mod namer;
pub(crate) mod peak;
mod requests;
mod run;
mod scope_texts;
pub(crate) mod settings;
mod termination_log;
mod text;
mod watch;
mod writer;

use std::path::Path;
#[cfg(feature = "http")]
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::base::error::Error;
use crate::export::input::Quoted;
use crate::export::short_life::say;
use crate::record::control;
use crate::record::fork::mutex::{self, ForkMutex};
use crate::record::watermark;
pub(crate) use settings::DumpSettings;

/// Longest wait for names that another thread keeps. Stacks go by module and offset then.
const WAIT_FOR_NAMES: Duration = Duration::from_millis(20);

/// The thread that watches memory, which is one for the process.
#[derive(Debug)]
struct Running {
    /// The process whose thread it is, see [`mutex::process`].
    process: u32,
    /// Number of the start, so that the handle of a thread that was replaced ends no other one.
    number: u64,
    settings: DumpSettings,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

static LIVE: ForkMutex<(u64, Option<Running>)> = ForkMutex::new((0, None));

/// Writer of dumps: snapshots of the heap in files that outlive the process. Dropping it ends its thread.
///
/// The thread of a [`Server`](crate::Server) does the same by the variables of the environment; this is for programs without
/// one, and for settings in code. A process has one writer.
///
/// Dumps are files `heap-<unix seconds>-<pid>-<reason>.json` of the form that [`Snapshot::save`](crate::Snapshot::save)
/// writes, with at most 1,000 stacks, largest first. They appear whole, by a rename, with mode 0640 and never through a
/// link. The reasons:
///
/// | reason | event |
/// |---|---|
/// | `limit` | memory passes a level of [`at`](DumpsBuilder::at); while the limit is less than two seconds away also each 5 % of it above 70 % |
/// | `peak` | live bytes are a tenth above the last kept peak, and have settled for a second |
/// | `signal` | the chosen signal |
/// | `failure` | the inner allocator has returned null, and the program went on |
/// | `request` | `POST /debug/heap/dump` |
///
/// A file `heap-<…>-run.txt` is locked while the process runs. A later process of the same program that finds it
/// unlocked reports the last dump as [`Report::previous_run`](crate::Report::previous_run). Where an allocation fails, the largest
/// sites are written to stderr and to this file at once, at most once a minute; it is then `heap-<…>-failure.txt`.
///
/// [`after_a_kill`](crate::docs::after_a_kill) says which memory counts against which limit.
///
/// # Examples
///
/// ```
/// let directory = std::env::temp_dir().join("heapgauge-example");
/// std::fs::create_dir_all(&directory)?;
/// let dumps = heapgauge::Dumps::builder().directory(&directory).start()?;
/// # drop(dumps);
/// # std::fs::remove_dir_all(directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the thread ends when this is dropped: give it a name that lives as long as the program"]
pub struct Dumps {
    process: u32,
    number: u64,
}

/// Settings of [`Dumps`].
///
/// # Examples
///
/// ```
/// let builder: heapgauge::DumpsBuilder = heapgauge::Dumps::builder().keep(2).max_bytes(1 << 20);
/// let refused = builder.at("120%").start().unwrap_err();
/// assert!(refused.to_string().contains("120%"));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `start`"]
pub struct DumpsBuilder {
    settings: DumpSettings,
    /// The first value that cannot be used.
    problem: Option<String>,
}

impl Dumps {
    /// Makes the settings of a writer, with the defaults of the environment's variables.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::builder().start()?; // keeps the peak, and writes nothing
    /// # drop(dumps);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn builder() -> DumpsBuilder {
        let _own = control::internal();
        DumpsBuilder { settings: DumpSettings::default(), problem: None }
    }

    /// Starts the writer that the environment asks for. `None` where it names neither a directory nor a termination log.
    ///
    /// Reads `HEAPGAUGE_DUMP_DIR`, `…_AT`, `…_KEEP`, `…_MAX_BYTES`, `…_SIGNAL`, `HEAPGAUGE_TERMINATION_LOG` and
    /// `HEAPGAUGE_MEMORY_LIMIT`. A malformed variable is one line on stderr, and its default is taken.
    /// [`serve_from_env`](crate::serve_from_env) does this itself.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::from_env()?;
    /// assert!(dumps.is_none()); // nothing is set here
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`DumpsBuilder::start`].
    pub fn from_env() -> Result<Option<Dumps>, Error> {
        let _own = control::internal();
        let mut settings = DumpSettings::default();
        for key in settings::KEYS.into_iter().chain(["HEAPGAUGE_MEMORY_LIMIT"]) {
            let Some(value) = std::env::var_os(key) else { continue };
            let value = value.to_string_lossy();
            if let Err(allowed) = settings.apply(key, value.trim()) {
                say(&format_args!("{key}={}: {allowed}", Quoted(&value)));
            }
        }
        if settings.writes() { start(settings, "Dumps::from_env").map(Some) } else { Ok(None) }
    }
}

impl DumpsBuilder {
    /// Sets the directory of the dumps. It has to exist; without one nothing is written there.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let dumps = heapgauge::Dumps::builder().directory("/var/lib/shop/heap").start()?;
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn directory(mut self, path: impl AsRef<Path>) -> DumpsBuilder {
        let _own = control::internal();
        self.settings.directory = Some(path.as_ref().to_owned());
        self
    }

    /// Sets the levels of use at which a dump is written: percentages of the limit and sizes, such as `"80%,900MiB"`;
    /// default: `"80%,90%"`. [`start`](DumpsBuilder::start) refuses others.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::builder().at("75%, 2GiB").start()?;
    /// # drop(dumps);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn at(self, levels: &str) -> DumpsBuilder {
        self.apply("at", "HEAPGAUGE_DUMP_AT", levels)
    }

    /// Sets the number of dumps that are kept of each reason, 1 to 1000; default: 5. The oldest go first.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::builder().keep(2).start()?;
    /// # drop(dumps);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn keep(self, dumps: usize) -> DumpsBuilder {
        self.apply("keep", "HEAPGAUGE_DUMP_KEEP", &dumps.to_string())
    }

    /// Sets the bytes that all dumps may have together, at least 64 KiB; default: 64 MiB. The newest stays, however large.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::builder().max_bytes(1 << 20).start()?;
    /// # drop(dumps);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn max_bytes(self, bytes: u64) -> DumpsBuilder {
        self.apply("max_bytes", "HEAPGAUGE_DUMP_MAX_BYTES", &bytes.to_string())
    }

    /// Dumps on a signal: `SIGUSR1`, `SIGUSR2`, `SIGHUP` or `SIGQUIT`. One that the program handles or ignores is refused by
    /// a line on stderr.
    ///
    /// # Examples
    ///
    /// ```
    /// let refused = heapgauge::Dumps::builder().on_signal("SIGKILL").start().unwrap_err();
    /// assert_eq!(
    ///     refused.to_string(),
    ///     "dumps: on_signal SIGKILL: allowed are SIGUSR1, SIGUSR2, SIGHUP, SIGQUIT, taking none"
    /// );
    /// ```
    pub fn on_signal(self, name: &str) -> DumpsBuilder {
        self.apply("on_signal", "HEAPGAUGE_DUMP_SIGNAL", name)
    }

    /// Sets the file that gets the largest and the fastest growing sites as text from 80 % of the limit on, such as
    /// `/dev/termination-log` in a container of Kubernetes.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let dumps = heapgauge::Dumps::builder().termination_log("/dev/termination-log").start()?;
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn termination_log(mut self, path: impl AsRef<Path>) -> DumpsBuilder {
        let _own = control::internal();
        self.settings.termination_log = Some(path.as_ref().to_owned());
        self
    }

    /// Sets the limit of this process in bytes, for where its cgroup has none or a wider one.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::builder().memory_limit(512 << 20).start()?;
    /// # drop(dumps);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn memory_limit(mut self, bytes: u64) -> DumpsBuilder {
        self.settings.memory_limit = Some(bytes);
        self
    }

    fn apply(mut self, setter: &str, key: &str, value: &str) -> DumpsBuilder {
        let _own = control::internal();
        if let Err(allowed) = self.settings.apply(key, value) {
            self.problem.get_or_insert(format!("dumps: {setter} {}: {allowed}", Quoted(value)));
        }
        self
    }

    /// Starts the thread. A directory or file that cannot be used is a line on stderr, counts in
    /// [`DumpCounts::failures`](crate::DumpCounts::failures) with each dump, and ends nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// let dumps = heapgauge::Dumps::builder().start()?;
    /// let second = heapgauge::Dumps::builder().start().unwrap_err();
    /// assert_eq!(second.to_string(), "dumps: a writer runs already, drop that first");
    /// # drop(dumps);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A value that cannot be used, a writer that runs in this process already, or a thread that cannot be started. A
    /// server's writer that has no settings of its own gives way.
    pub fn start(self) -> Result<Dumps, Error> {
        let _own = control::internal();
        match self.problem {
            Some(problem) => Err(Error::new(format_args!("{problem}"))),
            None => start(self.settings, "dumps"),
        }
    }
}

/// Starts the thread of a server, which keeps the peak at least. `None` where one runs already that does the same.
#[cfg(feature = "http")]
pub(crate) fn start_for_server(settings: DumpSettings) -> Result<Option<Dumps>, Error> {
    let is_same = |running: &Running| !settings.writes() || running.settings == settings;
    if LIVE.lock().1.as_ref().is_some_and(|running| running.process == mutex::process() && is_same(running)) {
        return Ok(None);
    }
    start(settings, "serve").map(Some)
}

fn start(settings: DumpSettings, caller: &str) -> Result<Dumps, Error> {
    let mut live = LIVE.lock();
    let process = mutex::process();
    // In a child it is the parent's.
    if live.1.as_ref().is_some_and(|running| running.process != process) {
        std::mem::forget(live.1.take());
    }
    if let Some(running) = live.1.take() {
        if running.settings.writes() || !settings.writes() {
            live.1 = Some(running);
            return Err(Error::new(format_args!("{caller}: a writer runs already, drop that first")));
        }
        end(running);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let thread = watch::spawn(settings.clone(), stop.clone())
        .map_err(|error| Error::with_source(format_args!("{caller}: no thread"), error))?;
    live.0 += 1;
    let number = live.0;
    live.1 = Some(Running { process, number, settings, stop, thread });
    Ok(Dumps { process, number })
}

/// Ends a thread of this process and waits for it.
fn end(running: Running) {
    running.stop.store(true, Ordering::Relaxed);
    watermark::wake();
    // It never panics outside what it catches; if it did, it is over all the same.
    let _ = crate::record::fork::outside(|| running.thread.join());
}

impl Drop for Dumps {
    fn drop(&mut self) {
        if self.process != mutex::process() {
            return;
        }
        let _own = control::internal();
        let mut live = LIVE.lock();
        if live.1.as_ref().is_some_and(|running| running.number == self.number)
            && let Some(running) = live.1.take()
        {
            end(running);
        }
    }
}

/// Returns the directory of the writer that runs in this process, if it has one.
#[cfg(feature = "http")]
fn directory() -> Option<PathBuf> {
    let live = LIVE.lock();
    let running = live.1.as_ref().filter(|running| running.process == mutex::process())?;
    running.settings.directory.clone()
}
