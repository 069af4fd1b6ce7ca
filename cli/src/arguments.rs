//! Command line → a command with its options.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use heapgauge::GroupBy;
use lexopt::prelude::*;

use crate::failure::Failure;
use crate::url::Url;

const HELP: &str = "\
Shows which lines of a program hold its heap, and which grow.

Usage: heapgauge COMMAND

  top URL              the largest lines of a running program, again every second
  diff OLD NEW         the difference of two snapshot files, as tracemalloc prints it
  report FILE|URL      a report of a snapshot, a dump or a running program, as text
  page FILE            the page /debug/heap of a snapshot or a dump, on loopback

URL is the address of heapgauge's server, as http://127.0.0.1:9898 or the port that `kubectl port-forward` prints.
FILE is a snapshot: a dump of HEAPGAUGE_DUMP_DIR, /debug/heap/snapshot.json, or a file of Snapshot::save.

top:
  --by bytes|growth    order of the lines: live bytes (the default), or what they gained since the baseline
  --interval SECONDS   0.1 to 3600 (default 1). Without it, and where the output is no terminal, one table is printed
  --count N            ends after so many tables
  --rows N             lines of a table (default: the terminal's height, else 20)
  --scope KEY:VALUE    only blocks allocated in such a scope, as tenant:acme
  Keys in a terminal: b by bytes, g by growth, q ends.

diff:
  --group-by KEY       file, line (the default), traceback, function, crate, nearest, via, scope
  --cumulative         counts each block at every frame of its stack
  --top N              the first rows only
  --scope KEY:VALUE    only blocks allocated in such a scope

report and page:
  --since OLD          shows growth since an older snapshot file
  --binary PATH        names frames that go by module and offset, from the executable
  --debug-file PATH    the same, from its separate debug file
report:
  --top N              lines, scopes and stacks shown (default 20)
  --scope KEY:VALUE    only lines and stacks of blocks allocated in such a scope
page:
  --addr HOST:PORT     address on loopback (default 127.0.0.1:0, a free port)

  -h, --help           prints this
  -V, --version        prints the version

Ends with 0, with 2 where the command line is wrong, and with 1 where anything else is; the reason is one line on stderr.
";

/// Order of the lines of `top`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Bytes,
    Growth,
}

/// Key and value of a scope.
#[derive(Clone)]
pub struct Scope {
    pub key: String,
    pub value: String,
}

impl Scope {
    fn parse(value: &OsStr) -> Result<Scope, Failure> {
        let pair = value.to_str().and_then(|text| text.split_once(':')).filter(|(key, _)| !key.is_empty());
        let (key, text) =
            pair.ok_or_else(|| wrong("--scope", value, "a key and a value such as tenant:acme"))?;
        Ok(Scope { key: key.into(), value: text.into() })
    }
}

/// Options of `top`.
pub struct Top {
    pub url: Url,
    pub by: By,
    pub interval: Option<Duration>,
    pub count: Option<u64>,
    pub rows: Option<usize>,
    pub scope: Option<Scope>,
}

/// Options of `diff`.
pub struct Diff {
    pub old: PathBuf,
    pub new: PathBuf,
    pub group_by: GroupBy,
    pub top: usize,
    pub scope: Option<Scope>,
}

/// Snapshot file, the one it is compared with, and the files that name its frames.
#[derive(Default)]
pub struct Files {
    pub file: PathBuf,
    pub since: Option<PathBuf>,
    pub binary: Option<PathBuf>,
    pub debug_file: Option<PathBuf>,
}

impl Files {
    /// Returns the place of an option's value.
    fn option(&mut self, name: &str) -> &mut Option<PathBuf> {
        match name {
            "since" => &mut self.since,
            "binary" => &mut self.binary,
            _ => &mut self.debug_file,
        }
    }
}

/// Subject of a report.
pub enum Subject {
    Url(Url),
    Files(Files),
}

/// Options of `report`.
pub struct Report {
    pub subject: Subject,
    pub top: usize,
    pub scope: Option<Scope>,
}

/// Options of `page`.
pub struct Page {
    pub files: Files,
    pub addr: SocketAddr,
}

/// Work to do.
pub enum Command {
    Print(String),
    Top(Top),
    Diff(Diff),
    Report(Report),
    Page(Page),
}

/// Parses the command line.
pub fn parse(mut words: lexopt::Parser) -> Result<Command, Failure> {
    let command = match words.next()? {
        Some(Long("help") | Short('h')) => return Ok(Command::Print(HELP.into())),
        Some(Long("version") | Short('V')) => {
            return Ok(Command::Print(format!("heapgauge {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Some(Value(command)) => command,
        Some(other) => return Err(other.unexpected().into()),
        None => {
            return Err(Failure::usage(format_args!(
                "no command, allowed are {COMMANDS}; see heapgauge --help"
            )));
        }
    };
    match command.to_str() {
        Some("help") => Ok(Command::Print(HELP.into())),
        Some("top") => top(words),
        Some("diff") => diff(words),
        Some("report") => report(words),
        Some("page") => page(words),
        _ => Err(Failure::usage(format_args!(
            "command {}: allowed are {COMMANDS}; see heapgauge --help",
            command.to_string_lossy()
        ))),
    }
}

const COMMANDS: &str = "top, diff, report, page";

fn top(mut words: lexopt::Parser) -> Result<Command, Failure> {
    let (mut url, mut by, mut interval, mut count, mut rows) = (Vec::new(), By::Bytes, None, None, None);
    let mut scope = None;
    while let Some(word) = words.next()? {
        match word {
            Long("by") => {
                let value = words.value()?;
                by = match value.to_str() {
                    Some("bytes") => By::Bytes,
                    Some("growth") => By::Growth,
                    _ => return Err(wrong("--by", &value, "bytes, growth")),
                };
            }
            Long("interval") => {
                let value = words.value()?;
                let seconds = value.to_str().and_then(|text| text.parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| (0.1..=3600.0).contains(seconds));
                let seconds =
                    seconds.ok_or_else(|| wrong("--interval", &value, "seconds from 0.1 to 3600"))?;
                interval = Some(Duration::from_secs_f64(seconds));
            }
            Long("count") => count = Some(number("--count", &words.value()?, u32::MAX as usize)? as u64),
            Long("rows") => rows = Some(number("--rows", &words.value()?, 10_000)?),
            Long("scope") => scope = Some(Scope::parse(&words.value()?)?),
            Value(value) => url.push(value),
            other => return help_or(other),
        }
    }
    let [url] = given("top", "URL", url)?;
    Ok(Command::Top(Top { url: Url::parse(&url)?, by, interval, count, rows, scope }))
}

fn diff(mut words: lexopt::Parser) -> Result<Command, Failure> {
    let (mut files, mut group_by, mut cumulative, mut top) = (Vec::new(), GroupBy::Line, false, usize::MAX);
    let mut scope = None;
    while let Some(word) = words.next()? {
        match word {
            Long("group-by") => {
                let value = words.value()?;
                let parsed: Result<GroupBy, _> = value.to_string_lossy().parse();
                group_by = parsed.map_err(|error| Failure::usage(format_args!("--group-by: {error}")))?;
            }
            Long("cumulative") => cumulative = true,
            Long("top") => top = number("--top", &words.value()?, usize::MAX)?,
            Long("scope") => scope = Some(Scope::parse(&words.value()?)?),
            Value(value) => files.push(value),
            other => return help_or(other),
        }
    }
    if cumulative {
        group_by =
            group_by.cumulative().map_err(|error| Failure::usage(format_args!("--cumulative: {error}")))?;
    }
    let [old, new] = given("diff", "OLD and NEW", files)?;
    Ok(Command::Diff(Diff { old: old.into(), new: new.into(), group_by, top, scope }))
}

fn report(mut words: lexopt::Parser) -> Result<Command, Failure> {
    let (mut subject, mut files, mut top, mut scope) = (Vec::new(), Files::default(), 20, None);
    while let Some(word) = words.next()? {
        match word {
            Long("top") => top = number("--top", &words.value()?, 10_000)?,
            Long("scope") => scope = Some(Scope::parse(&words.value()?)?),
            Value(value) => subject.push(value),
            Long(name @ ("since" | "binary" | "debug-file")) => {
                let place = files.option(name);
                *place = Some(words.value()?.into());
            }
            other => return help_or(other),
        }
    }
    let [subject] = given("report", "FILE or URL", subject)?;
    let subject = if Url::is_one(&subject) {
        let of_file =
            [("--since", &files.since), ("--binary", &files.binary), ("--debug-file", &files.debug_file)];
        if let Some((option, _)) = of_file.iter().find(|(_, value)| value.is_some()) {
            return Err(Failure::usage(format_args!(
                "{option} is for a FILE: a running program compares and names itself"
            )));
        }
        Subject::Url(Url::parse(&subject)?)
    } else {
        Subject::Files(Files { file: subject.into(), ..files })
    };
    Ok(Command::Report(Report { subject, top, scope }))
}

fn page(mut words: lexopt::Parser) -> Result<Command, Failure> {
    let (mut file, mut files) = (Vec::new(), Files::default());
    let mut addr = SocketAddr::from(([127, 0, 0, 1], 0));
    while let Some(word) = words.next()? {
        match word {
            Long("addr") => {
                let value = words.value()?;
                let parsed = value.to_str().map(|text| text.replace("localhost:", "127.0.0.1:"));
                let parsed = parsed.and_then(|text| text.parse::<SocketAddr>().ok());
                addr = parsed.filter(|addr| addr.ip().is_loopback()).ok_or_else(|| {
                    wrong("--addr", &value, "127.0.0.1:PORT, [::1]:PORT and localhost:PORT")
                })?;
            }
            Value(value) => file.push(value),
            Long(name @ ("since" | "binary" | "debug-file")) => {
                let place = files.option(name);
                *place = Some(words.value()?.into());
            }
            other => return help_or(other),
        }
    }
    let [file] = given("page", "FILE", file)?;
    Ok(Command::Page(Page { files: Files { file: file.into(), ..files }, addr }))
}

fn help_or(word: lexopt::Arg<'_>) -> Result<Command, Failure> {
    match word {
        Long("help") | Short('h') => Ok(Command::Print(HELP.into())),
        other => Err(other.unexpected().into()),
    }
}

fn wrong(option: &str, value: &OsStr, allowed: &str) -> Failure {
    Failure::usage(format_args!("{option} {}: allowed are {allowed}", value.to_string_lossy()))
}

fn number(option: &str, value: &OsStr, most: usize) -> Result<usize, Failure> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    let allowed = match most {
        usize::MAX => "numbers from 1 on".to_owned(),
        most => format!("1 to {most}"),
    };
    parsed.filter(|number| (1..=most).contains(number)).ok_or_else(|| wrong(option, value, &allowed))
}

/// Returns exactly so many words that are no options.
fn given<const N: usize>(command: &str, what: &str, words: Vec<OsString>) -> Result<[OsString; N], Failure> {
    let count = words.len();
    words.try_into().map_err(|_| {
        Failure::usage(format_args!("{command} takes {what}, and {count} were given; see heapgauge --help"))
    })
}
