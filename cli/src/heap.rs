//! JSON of `/debug/heap`, from a running program or made from a file.
//!
//! Members that are not there are not shown: a file has fewer, and so has an older program.

use heapgauge::http::SnapshotPage;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::arguments::Scope;
use crate::failure::Failure;
use crate::text::bytes;
use crate::url::{Client, encoded};

/// Version of the JSON that is read.
const VERSION: u64 = 1;

/// Heap of a program, or of a file.
pub enum Heap {
    Program(Client),
    File(Box<SnapshotPage>),
}

impl Heap {
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        match self {
            Heap::Program(client) => client.get(path),
            Heap::File(page) => {
                let text = page.json(path).map_err(Failure::Other)?;
                serde_json::from_str(&text).map_err(Failure::other)
            }
        }
    }

    /// Returns the totals of now.
    pub fn summary(&self) -> Result<Summary, Failure> {
        let summary: Summary = self.get("/debug/heap/summary.json")?;
        match summary.version {
            VERSION => Ok(summary),
            other => Err(Failure::Other(format!(
                "version {other} of /debug/heap/summary.json is not known, only {VERSION} is: this heapgauge is older than the program's"
            ))),
        }
    }

    /// Returns the first sites of the moment that a summary is about, of all blocks or of one scope.
    pub fn sites(
        &self,
        summary: &Summary,
        order: &str,
        top: usize,
        scope: Option<&Scope>,
    ) -> Result<Sites, Failure> {
        let (at, scope) = (summary.number, in_query(scope));
        self.get(&format!("/debug/heap/sites.json?at={at}&sort={order}&top={top}&history=0{scope}"))
    }

    /// Returns the first stacks of that moment.
    pub fn stacks(&self, summary: &Summary, top: usize, scope: Option<&Scope>) -> Result<Stacks, Failure> {
        let (at, scope) = (summary.number, in_query(scope));
        self.get(&format!("/debug/heap/stacks.json?at={at}&sort=size&top={top}{scope}"))
    }

    /// Returns the first keys and values of scopes of that moment; `None` where no scope holds memory.
    pub fn scopes(&self, summary: &Summary, top: usize) -> Result<Option<Scopes>, Failure> {
        let at = summary.number;
        let path = format!("/debug/heap/scopes.json?at={at}&sort=size&top={top}");
        summary.scopes.map(|_| self.get(&path)).transpose()
    }
}

/// Returns a scope as a parameter behind others; nothing without one.
fn in_query(scope: Option<&Scope>) -> String {
    scope.map_or(String::new(), |Scope { key, value }| format!("&scope={}:{}", encoded(key), encoded(value)))
}

/// `summary.json`.
#[derive(Deserialize)]
pub struct Summary {
    pub version: u64,
    pub number: u64,
    pub taken_at: f64,
    pub size: u64,
    pub count: u64,
    pub size_diff: i64,
    pub since: Option<f64>,
    pub tracking: Option<bool>,
    pub delta_window_seconds: Option<f64>,
    pub started_at: Option<f64>,
    pub sample_interval_bytes: Option<u64>,
    pub naming: Option<Naming>,
    pub leak: Option<Leak>,
    /// Least age of the blocks in a file that has no others.
    pub older_than_seconds: Option<f64>,
    /// Number of scopes that hold memory.
    pub scopes: Option<u64>,
    pub file: Option<String>,
    pub reason: Option<String>,
    pub build: Build,
    /// Other figures, such as the parts of resident memory.
    #[serde(flatten)]
    pub figures: Map<String, Value>,
}

impl Summary {
    /// Returns a figure of bytes, where it is given.
    pub fn bytes(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?.as_f64()
    }

    /// Returns the seconds that growth is measured over; `None` where there is none.
    pub fn growth_seconds(&self) -> Option<f64> {
        match self.since {
            Some(since) => Some(self.taken_at - since),
            None => self.delta_window_seconds,
        }
    }
}

/// Stacks that have names, of all that hold memory.
#[derive(Deserialize)]
pub struct Naming {
    pub named: u64,
    pub total: u64,
}

/// The program's build.
#[derive(Deserialize)]
pub struct Build {
    pub version: String,
    pub build_id: Option<String>,
    pub release: Option<String>,
}

/// Figures of a row.
#[derive(Clone, Copy, Default, Deserialize)]
pub struct Figures {
    pub size: u64,
    pub size_diff: i64,
    pub count: u64,
    #[serde(default)]
    pub stderr: u64,
    #[serde(default)]
    pub diff_stderr: u64,
}

/// `sites.json`.
#[derive(Deserialize)]
pub struct Sites {
    pub taken_at: f64,
    pub since: f64,
    pub sites: u64,
    pub rows: Vec<Site>,
    pub other: Figures,
    pub total: Figures,
}

impl Sites {
    /// Returns a change of bytes in a minute, where there is a time between.
    pub fn a_minute(&self, diff: i64) -> Option<f64> {
        let minutes = (self.taken_at - self.since) / 60.0;
        (minutes > 0.0).then(|| diff as f64 / minutes)
    }
}

/// Line of code that holds memory.
#[derive(Deserialize)]
pub struct Site {
    pub function: String,
    pub file: String,
    pub line: u32,
    #[serde(default)]
    pub via: String,
    #[serde(flatten)]
    pub figures: Figures,
    /// Live bytes by age, and those that count as old: each as the least and the most that is possible.
    #[serde(default)]
    pub ages: Map<String, Value>,
    pub old_bytes: Option<Value>,
    pub leak_score: Option<f64>,
}

/// Formats bytes between two bounds: one figure where both are the same.
pub fn bounds(value: Option<&Value>) -> String {
    let figure = |at: usize| value.and_then(|value| value.get(at)).and_then(Value::as_f64);
    match (figure(0), figure(1)) {
        (Some(least), Some(most)) if least < most => format!("{}–{}", bytes(least), bytes(most)),
        (Some(least), _) => bytes(least),
        _ => "-".into(),
    }
}

/// Site that very likely leaks.
#[derive(Deserialize)]
pub struct Leak {
    /// Place, function, rate and the time until the memory limit.
    pub text: String,
}

impl Site {
    /// Returns place, function and the crate it came through.
    pub fn name(&self) -> String {
        let place = if self.line > 0 { format!("{}:{} ", self.file, self.line) } else { String::new() };
        let via = if self.via.is_empty() { String::new() } else { format!(" via {}", self.via) };
        crate::text::one_line(&format!("{place}{}{via}", self.function))
    }
}

/// `scopes.json`.
#[derive(Deserialize)]
pub struct Scopes {
    pub pairs: u64,
    pub rows: Vec<ScopeRow>,
    pub total: Figures,
}

/// Key and value of scopes, and the blocks allocated in them.
#[derive(Deserialize)]
pub struct ScopeRow {
    pub key: String,
    pub value: String,
    #[serde(flatten)]
    pub figures: Figures,
}

/// `stacks.json`.
#[derive(Deserialize)]
pub struct Stacks {
    pub stacks: usize,
    pub rows: Vec<Stack>,
    pub other: Figures,
    pub total: Figures,
}

/// Stack that holds memory.
#[derive(Deserialize)]
pub struct Stack {
    #[serde(flatten)]
    pub figures: Figures,
    pub total_frames: usize,
    pub frames: Vec<Frame>,
}

/// Frame of a stack.
#[derive(Deserialize)]
pub struct Frame {
    pub function: Option<String>,
    pub file: String,
    pub line: u32,
    pub module: Option<String>,
    pub offset: Option<u64>,
}

impl Frame {
    /// Returns the function, or module and offset, and the place.
    pub fn name(&self) -> String {
        let name = match (&self.function, &self.module, self.offset) {
            (Some(function), ..) => function.clone(),
            (None, Some(module), Some(offset)) => format!("{module}+{offset:#x}"),
            _ => "<unknown>".into(),
        };
        let place = if self.line > 0 { format!("  {}:{}", self.file, self.line) } else { String::new() };
        crate::text::one_line(&(name + &place))
    }
}
