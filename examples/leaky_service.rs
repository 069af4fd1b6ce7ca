//! Runs an axum service with one planted leak: it receives documents as JSON, indexes, searches and drops them.
//!
//! It sends itself traffic over loopback at a bounded rate, and its own collector prints the leaking line: `leak: examples/leaky_service.rs:41 Cache::insert +3.1 MiB/min`. Try `-- --help`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Number of documents the library keeps; the oldest is dropped for the next.
const KEPT: usize = 128;
/// Time between two rounds of traffic; a round is one new document and one search.
const ROUND: Duration = Duration::from_millis(20);
/// Time between two collections.
const LOOK: Duration = Duration::from_secs(4);

/// A cache of answers. Its key should be the question; it is the number of the request, which never repeats, and no entry is
/// ever removed.
#[derive(Default)]
struct Cache {
    answers: HashMap<u64, Vec<u8>>,
}

impl Cache {
    // Inlined, it would be called `insert`: line tables name an inlined function without its type.
    #[inline(never)]
    fn insert(&mut self, request: u64, answer: &[u8], copies: usize) {
        self.answers.insert(request, answer.repeat(copies)); // the planted leak
    }
}

/// The number of bytes that the leak may still take: `rate` a second, saved up for at most five seconds.
struct Budget {
    rate: f64,
    bytes: f64,
    since: Instant,
}

impl Budget {
    fn new(bytes_per_second: u64) -> Budget {
        Budget { rate: bytes_per_second as f64, bytes: 0.0, since: Instant::now() }
    }

    /// Takes as many pieces of `size` bytes as allowed now. Returns their number.
    fn take(&mut self, size: usize) -> usize {
        let now = Instant::now();
        self.bytes += self.rate * now.duration_since(self.since).as_secs_f64().min(5.0);
        self.since = now;
        let pieces = (self.bytes / size as f64).floor();
        self.bytes -= pieces * size as f64;
        pieces as usize
    }
}

/// A received document.
#[derive(Deserialize, Serialize)]
struct Document {
    title: String,
    author: String,
    tags: Vec<String>,
    text: String,
}

/// The last [`KEPT`] documents, and an index from words to documents.
#[derive(Default)]
struct Library {
    documents: BTreeMap<u64, Document>,
    index: HashMap<String, BTreeSet<u64>>,
    next: u64,
}

impl Library {
    fn add(&mut self, document: Document) -> u64 {
        let id = self.next;
        self.next += 1;
        for word in words(&document.text) {
            self.index.entry(word).or_default().insert(id);
        }
        self.documents.insert(id, document);
        if self.documents.len() > KEPT {
            self.drop_oldest();
        }
        id
    }

    fn drop_oldest(&mut self) {
        let Some((id, document)) = self.documents.pop_first() else { return };
        for word in words(&document.text) {
            if let Some(holders) = self.index.get_mut(&word) {
                holders.remove(&id);
                if holders.is_empty() {
                    self.index.remove(&word);
                }
            }
        }
    }

    /// Returns the documents that contain every word of the question, newest first.
    fn search(&self, question: &str) -> Vec<Hit<'_>> {
        let mut ids: Option<BTreeSet<u64>> = None;
        for word in words(question) {
            let holders = self.index.get(&word).cloned().unwrap_or_default();
            ids = Some(match ids {
                Some(ids) => &ids & &holders,
                None => holders,
            });
        }
        let newest_first = ids.unwrap_or_default().into_iter().rev().take(10);
        newest_first.filter_map(|id| self.documents.get(&id).map(|document| Hit::new(id, document))).collect()
    }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(|word| word.trim_matches('.').to_lowercase())
}

#[derive(Serialize)]
struct Hit<'a> {
    id: u64,
    title: &'a str,
    author: &'a str,
    excerpt: String,
}

impl<'a> Hit<'a> {
    fn new(id: u64, document: &'a Document) -> Hit<'a> {
        let excerpt = document.text.chars().take(60).collect();
        Hit { id, title: &document.title, author: &document.author, excerpt }
    }
}

struct Service {
    library: Library,
    cache: Cache,
    budget: Budget,
    requests: u64,
}

type Shared = Arc<Mutex<Service>>;

/// An error: a status, and one line that explains it.
type Refusal = (StatusCode, String);

async fn add(State(service): State<Shared>, body: Bytes) -> Result<(StatusCode, String), Refusal> {
    let document = serde_json::from_slice(&body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("not a document: {error}\n")))?;
    let id = service.lock().unwrap().library.add(document);
    Ok((StatusCode::CREATED, id.to_string()))
}

async fn search(State(service): State<Shared>, RawQuery(query): RawQuery) -> Result<Vec<u8>, Refusal> {
    let question = query.as_deref().and_then(|query| query.strip_prefix("q="));
    let question =
        question.ok_or((StatusCode::BAD_REQUEST, "words are missing, as in ?q=heap+leak\n".to_owned()))?;
    let service = &mut *service.lock().unwrap();
    service.requests += 1;
    let hits = service.library.search(&question.replace('+', " "));
    let answer = serde_json::to_vec(&hits).expect("hits are plain strings and numbers");
    let copies = service.budget.take(answer.len());
    if copies > 0 {
        service.cache.insert(service.requests, &answer, copies);
    }
    Ok(answer)
}

/// Posts a document and searches for one of its words, in rounds, until the program ends.
async fn traffic(service: SocketAddr) -> io::Result<()> {
    let mut connection = BufReader::new(TcpStream::connect(service).await?);
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for number in 0_u64.. {
        rounds.tick().await;
        let document = serde_json::to_string(&invent(number)).expect("a document is plain strings");
        ask(&mut connection, "POST /documents", &document).await?;
        ask(&mut connection, &format!("GET /search?q={}", word(number)), "").await?;
    }
    Ok(())
}

/// Sends a request and reads its answer to the end. The connection stays open for the next.
async fn ask(connection: &mut BufReader<TcpStream>, request: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let message = format!("{request} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}");
    connection.write_all(message.as_bytes()).await?;
    let (mut line, mut length) = (String::new(), 0);
    // The empty line ends the head.
    while connection.read_line(&mut line).await? > "\r\n".len() {
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    connection.read_exact(&mut vec![0; length]).await?;
    Ok(())
}

const WORDS: [&str; 24] = [
    "heap", "stack", "block", "frame", "leak", "page", "cache", "index", "queue", "buffer", "arena", "chunk",
    "slab", "trace", "line", "byte", "owner", "scope", "root", "map", "tree", "list", "key", "pool",
];

fn word(number: u64) -> &'static str {
    WORDS[(number % WORDS.len() as u64) as usize]
}

/// Makes the document of a number, which is the same in every run.
fn invent(number: u64) -> Document {
    let length = 60 + number * 7 % 40;
    let text: Vec<&str> = (0..length).map(|i| word(number.wrapping_mul(31) + i * i)).collect();
    Document {
        title: format!("Report {number} on the {}", word(number)),
        author: format!("author-{}", number % 17),
        tags: (1..4).map(|i| word(number + i).to_owned()).collect(),
        text: text.join(" "),
    }
}

/// Watches the sites and prints a sentence for each that leaks, again every half minute: the collector's own, once it has looked at
/// the ages of blocks for long enough to tell a leak, and until then that of a site that only grows.
fn watch(collector: heapgauge::Collector) {
    let mut courses: HashMap<u64, Course> = HashMap::new();
    loop {
        std::thread::sleep(LOOK);
        let report = collector.collect();
        for site in &report.sites {
            let course =
                courses.entry(site.id()).or_insert(Course { live: [site.live.now.bytes; 4], said: None });
            course.live.rotate_left(1);
            course.live[3] = site.live.now.bytes;
            let rate = site.live.delta_bytes() as f64 / report.delta_window.as_secs_f64();
            let sentence = match (&report.leak, site.leak_score) {
                (Some(leak), _) if leak.site() == site.site() => Some(leak.to_string()),
                (_, score) if score.is_none_or(|score| score > 0.9) => {
                    let leaks = course.leaks(site.live.delta_bytes(), rate);
                    leaks.then(|| growing(&report, site, rate))
                }
                _ => None,
            };
            let is_news = course.said.is_none_or(|said| said.elapsed() > Duration::from_secs(30));
            if let Some(sentence) = sentence.filter(|_| is_news) {
                course.said = Some(Instant::now());
                println!("leak: {sentence}");
            }
        }
    }
}

/// Formats the place and the rate of a site, and the time until the memory limit, where there is one.
fn growing(report: &heapgauge::Report, site: &heapgauge::SiteRow, bytes_per_second: f64) -> String {
    let (file, line, function) = (site.file(), site.line(), short(site.function()));
    let left = report.memory_limit_bytes.zip(report.memory_limit_usage_bytes);
    let left = left.map(|(limit, usage)| limit.saturating_sub(usage) as f64 / bytes_per_second / 60.0);
    let left = left.map_or(String::new(), |left| match left as u64 {
        minutes @ 0..60 => format!(", limit in {minutes} min"),
        minutes => format!(", limit in {} h {} min", minutes / 60, minutes % 60),
    });
    format!("{file}:{line} {function} {}/min{left}", signed(bytes_per_second * 60.0))
}

/// The live bytes of a site at the last four collections, and the time of its last report.
struct Course {
    live: [u64; 4],
    said: Option<Instant>,
}

impl Course {
    /// Returns whether it rose at every collection, and at least half as fast as on average since the baseline: a cache that
    /// fills up becomes slower, and a cache that is emptied falls in between. All documents together are below the least rise,
    /// however slowly they come on a busy machine.
    fn leaks(&self, delta_bytes: i64, rate: f64) -> bool {
        let rises = self.live.is_sorted_by(|before, after| before < after);
        let lately = self.live[3].saturating_sub(self.live[0]) as f64 / (3.0 * LOOK.as_secs_f64());
        rises && lately > rate / 2.0 && delta_bytes > 128 << 10
    }
}

/// Returns the last two segments of a path: `Cache::insert` for `leaky_service::Cache::insert`.
fn short(function: &str) -> &str {
    function.rmatch_indices("::").nth(1).map_or(function, |(at, _)| &function[at + 2..])
}

/// Formats bytes with sign and unit, as `+3.1 MiB`.
fn signed(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB"] {
        if value.abs() < 1024.0 {
            return format!("{value:+.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:+.1} GiB")
}

const HELP: &str = "\
An axum service with a planted leak and its own traffic, watched by heapgauge.

Usage: leaky_service [OPTIONS]

  --listen HOST:PORT               address of heapgauge's server [HEAPGAUGE_ADDR, else 127.0.0.1:9898]
  --service-listen HOST:PORT       address of the service itself [127.0.0.1:0]
  --quiet-traffic                  serve without own traffic
  --leak-rate BYTES_PER_SECOND     what the planted leak keeps; 0: nothing [54000]
  --for SECONDS                    end after that time
  --help                           print this";

struct Options {
    listen: Option<String>,
    service_listen: String,
    quiet_traffic: bool,
    leak_rate: u64,
    length: Option<Duration>,
}

impl Options {
    /// Parses the arguments. Returns `None` for `--help`.
    fn parse() -> Result<Option<Options>, lexopt::Error> {
        use lexopt::prelude::*;

        let mut options = Options {
            listen: None,
            service_listen: "127.0.0.1:0".to_owned(),
            quiet_traffic: false,
            leak_rate: 54_000,
            length: None,
        };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => options.listen = Some(arguments.value()?.parse_with(address)?),
                Long("service-listen") => options.service_listen = arguments.value()?.parse_with(address)?,
                Long("quiet-traffic") => options.quiet_traffic = true,
                Long("leak-rate") => options.leak_rate = arguments.value()?.parse_with(bytes)?,
                Long("for") => options.length = Some(arguments.value()?.parse_with(seconds)?),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(options))
    }
}

/// Checks the form HOST:PORT; binding shows whether the host has an address.
fn address(text: &str) -> Result<String, &'static str> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("an address is HOST:PORT, as 127.0.0.1:9898"),
    }
}

/// Parses a rate of at most 1 GiB a second, so that the leak does not exhaust the machine.
fn bytes(text: &str) -> Result<u64, &'static str> {
    let bytes = text.parse().ok().filter(|bytes| *bytes <= 1 << 30);
    bytes.ok_or("--leak-rate is a whole number of bytes a second, at most 1073741824")
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or("--for is a number of seconds")
}

fn main() {
    let options = match Options::parse() {
        Ok(Some(options)) => options,
        Ok(None) => return println!("{HELP}"),
        Err(error) => {
            eprintln!("leaky_service: {error}; see --help");
            std::process::exit(2);
        }
    };
    if let Some(listen) = &options.listen {
        // SAFETY: no other thread has been started yet, so none can read the environment meanwhile.
        unsafe { std::env::set_var("HEAPGAUGE_ADDR", listen) };
    }
    #[cfg(unix)]
    end_on_signals();
    let server = heapgauge::serve_from_env();
    if let (None, Some(listen), true) = (&server, &options.listen, heapgauge::is_tracing()) {
        // heapgauge has printed the reason.
        eprintln!("leaky_service: no numbers on --listen {listen}");
        std::process::exit(1);
    }
    if let Some(server) = &server {
        println!("listening on http://{}", server.local_addr());
        println!("numbers: http://{}/metrics", server.local_addr());
        println!("page: http://{}/debug/heap", server.local_addr());
        let collector = server.collector().clone();
        std::thread::spawn(move || watch(collector));
    }
    if let Err(error) = run(&options) {
        eprintln!("leaky_service: {error}");
        std::process::exit(1);
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let service = Service {
        library: Library::default(),
        cache: Cache::default(),
        budget: Budget::new(options.leak_rate),
        requests: 0,
    };
    let routes = Router::new()
        .route("/documents", post(add))
        .route("/search", get(search))
        .with_state(Arc::new(Mutex::new(service)));
    let listener = TcpListener::bind(&options.service_listen)
        .await
        .map_err(|error| format!("cannot serve on {}: {error}", options.service_listen))?;
    let address = listener.local_addr()?;
    println!("documents are served at http://{address}/search?q=heap");
    if !options.quiet_traffic {
        tokio::spawn(traffic(address));
    }
    // The end does not wait for open connections: that of the traffic stays open.
    tokio::select! {
        served = axum::serve(listener, routes) => Ok(served?),
        () = tokio::time::sleep(options.length.unwrap_or(Duration::MAX)) => Ok(()),
    }
}

/// Ends the program with 0 on ctrl-c and SIGTERM, also as the first process of a container. Threads inherit the mask, so this
/// comes before any.
#[cfg(unix)]
fn end_on_signals() {
    // SAFETY: the set is a plain value that is filled in first, and both calls get pointers to locals.
    let set = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: as above; it returns when one of the signals is there.
        unsafe { libc::sigwait(&set, &mut signal) };
        std::process::exit(0);
    });
}
