//! Measures the service of `benches/service` under each allocator: CPU a request, by whole processes that take turns.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::Value;

use crate::build;
use crate::load;
use crate::processor::Bound;
use crate::requests::FILL;
use crate::sides;
use crate::stats::{median, quantile};

/// A build of the service: its feature, and the side it is divided by.
struct Kind {
    name: &'static str,
    base: Option<&'static str>,
}

const fn kind(name: &'static str, base: &'static str) -> Kind {
    Kind { name, base: Some(base) }
}

const KINDS: [Kind; 14] = [
    Kind { name: "system", base: None },
    kind("heapgauge", "system"),
    kind("heapgauge-sampled", "system"),
    kind(SCRAPED, "system"),
    kind("heapgauge-scopes", "system"),
    kind("heapgauge-paused", "system"),
    kind("heapgauge-off", "system"),
    kind("jemalloc", "system"),
    kind("heapgauge-jemalloc", "jemalloc"),
    kind("mimalloc", "system"),
    kind("heapgauge-mimalloc", "mimalloc"),
    kind("jemalloc-prof", "system"),
    kind("dhat", "system"),
    kind("heapscope", "system"),
];

/// Name of the side whose metrics are read each second; else it is `heapgauge`.
const SCRAPED: &str = "heapgauge-scraped";

/// A build that counts allocations, which is run once.
const COUNTING: &str = "counting";

/// Connections of the load generator.
const CONNECTIONS: u64 = 16;
/// Requests before those that are measured, the first orders included.
const WARM_UP: u64 = FILL + 5_000;
/// Path of heapgauge's metrics.
const METRICS: &str = "/heap/metrics";

/// Costs of a request in one process, and the process's resident bytes.
#[derive(Clone, Copy)]
struct Sample {
    user: f64,
    kernel: f64,
    a_second: f64,
    median: f64,
    p99: f64,
    resident: f64,
    allocations: f64,
}

/// Builds the named sides, or all, and measures them in so many rounds. Returns a table as Markdown, which is empty where
/// the service has none of these sides.
pub fn run(names: &[String], rounds: u32, requests: u64, rate: Option<f64>) -> Result<String, String> {
    // `heapgauge` brings the builds of it that no other workload has.
    let is_named = |name: &str| {
        let side = if sides::named(name).is_none() { "heapgauge" } else { name };
        names.is_empty() || names.iter().any(|other| other == side)
    };
    let is_base = |name| KINDS.iter().any(|kind| kind.base == Some(name) && is_named(kind.name));
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| is_named(kind.name) || is_base(kind.name)).collect();
    if kinds.is_empty() {
        return Ok(String::new());
    }
    for name in kinds.iter().map(|kind| kind.name).chain([COUNTING]) {
        eprintln!("        building the service, {name}");
        build::service(name).map_err(|reason| format!("{name}: {reason}"))?;
    }
    let counted = measure(COUNTING, 0, requests, None)?;
    let mut samples: Vec<Vec<Sample>> = vec![vec![]; kinds.len()];
    let mut failed: Vec<Option<String>> = vec![None; kinds.len()];
    for round in 0..rounds {
        eprintln!("        service, round {} of {rounds}", round + 1);
        // Each side comes first, second … equally often.
        for turn in 0..kinds.len() {
            let number = (turn + round as usize) % kinds.len();
            if failed[number].is_some() {
                continue;
            }
            match measure(kinds[number].name, round, requests, rate) {
                Ok(sample) => samples[number].push(sample),
                // A peer that does not survive it.
                Err(reason) if round == 0 => failed[number] = Some(reason),
                Err(reason) => return Err(format!("{}: {reason}", kinds[number].name)),
            }
        }
    }
    let mut text = table(&kinds, &samples, counted.allocations, rate);
    for (kind, reason) in kinds.iter().zip(failed) {
        if let Some(reason) = reason {
            writeln!(text, "\n{}: {reason}", kind.name).expect("a String takes everything");
        }
    }
    Ok(text)
}

fn table(kinds: &[&Kind], samples: &[Vec<Sample>], allocations: f64, rate: Option<f64>) -> String {
    let speed = rate.map_or("at full speed".to_string(), |rate| format!("at {rate} requests a second"));
    let mut text = format!(
        "\nThe service {speed}, {allocations:.0} allocations and resizes a request, {CONNECTIONS} connections, \
         {} rounds; medians, ratios with quartiles.\n\n\
         | side | user CPU a request, µs | ratio | kernel, µs | ratio | requests a second | p50, ms | p99, ms | resident, MiB |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        samples.first().map_or(0, Vec::len),
    );
    for (kind, own) in kinds.iter().zip(samples).filter(|(_, own)| !own.is_empty()) {
        let of = |value: fn(&Sample) -> f64| own.iter().map(value).collect::<Vec<f64>>();
        let base = kinds.iter().position(|other| Some(other.name) == kind.base);
        let ratio = |value: fn(&Sample) -> f64| {
            let Some(base) = base else { return String::from("1") };
            let ratios: Vec<f64> =
                own.iter().zip(&samples[base]).map(|(own, base)| value(own) / value(base)).collect();
            let at = |share| quantile(&ratios, share);
            format!("{:.2} ({:.2}–{:.2}) of {}", at(0.5), at(0.25), at(0.75), kinds[base].name)
        };
        writeln!(
            text,
            "| {} | {:.1} | {} | {:.1} | {} | {:.0} | {:.2} | {:.2} | {:.1} |",
            kind.name,
            median(&of(|sample| sample.user)),
            ratio(|sample| sample.user),
            median(&of(|sample| sample.kernel)),
            ratio(|sample| sample.kernel),
            median(&of(|sample| sample.a_second)),
            median(&of(|sample| sample.median)),
            median(&of(|sample| sample.p99)),
            median(&of(|sample| sample.resident)),
        )
        .expect("a String takes everything");
    }
    text
}

/// Starts a service on one processor, sends the requests from the other, and ends it.
fn measure(name: &str, round: u32, requests: u64, rate: Option<f64>) -> Result<Sample, String> {
    let mut service = {
        let _bound = bound(round)?;
        Service::start(&build::service_binary(name))?
    };
    let _bound = bound(round + 1)?;
    let address = service.address;
    load::send(address, 0..WARM_UP, CONNECTIONS, None)?;
    if name == SCRAPED {
        // The first one reads the line tables.
        load::get(address, METRICS)?;
    }
    let before = service.used()?;
    let (answered, scraped) = std::thread::scope(|scope| {
        let (done, end) = mpsc::channel::<()>();
        let scrapes = scope.spawn(move || {
            // Until the other half is dropped.
            while name == SCRAPED
                && end.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout)
            {
                load::get(address, METRICS)?;
            }
            Ok::<(), String>(())
        });
        let answered = load::send(address, WARM_UP..WARM_UP + requests, CONNECTIONS, rate);
        drop(done);
        (answered, scrapes.join().expect("the thread that scrapes"))
    });
    let (answered, ()) = (answered?, scraped?);
    let after = service.used()?;
    let each = |key: &str| {
        let number = |of: &Value| of[key].as_f64().unwrap_or(f64::NAN);
        (number(&after) - number(&before)) / requests as f64
    };
    let at = |share: f64| answered.latencies[((requests - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    service.end();
    Ok(Sample {
        user: each("user_us"),
        kernel: each("kernel_us"),
        a_second: requests as f64 / answered.elapsed.as_secs_f64(),
        median: at(0.5),
        p99: at(0.99),
        resident: after["resident_bytes"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20),
        allocations: each("allocations"),
    })
}

fn bound(number: u32) -> Result<Bound, String> {
    Bound::to(number).map_err(|error| format!("binding it to a processor: {error}"))
}

/// A running service, killed when dropped.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start(binary: &Path) -> Result<Service, String> {
        let fail = |what: &str| format!("{}: {what}", binary.display());
        let mut child = Command::new(binary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| fail(&error.to_string()))?;
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
        match (read, line.trim().parse()) {
            (Ok(_), Ok(address)) => Ok(Service { child, address }),
            _ => {
                let _ = child.kill();
                Err(fail("it prints no address"))
            }
        }
    }

    fn used(&self) -> Result<Value, String> {
        let body = load::get(self.address, "/usage")?;
        serde_json::from_slice(&body).map_err(|error| format!("/usage: {error}"))
    }

    /// Ends it by the end of its input.
    fn end(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_base_is_a_side() {
        assert!(
            KINDS.iter().filter_map(|kind| kind.base).all(|base| KINDS.iter().any(|kind| kind.name == base))
        );
    }
}
