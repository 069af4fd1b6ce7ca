//! Simulates a fleet of services with heapgauge, for the alert rules and the dashboard: `fleet --help`.

mod process;
mod random;
mod serve;
mod service;
mod site;

use std::fmt::Write as _;
use std::io::Write as _;

use process::Process;
use service::{Life, Plan, Service};

const HELP: &str = "\
Simulates a fleet of services with heapgauge. The same seed is the same fleet.

    fleet serve     answers scrapes on 127.0.0.1:
                      /targets                 the pods that live, for http_sd_configs
                      /p/N/metrics             one process
                      /truth                   what leaks, as JSON
    fleet backfill  writes the history to standard output, for `/api/v1/import` of VictoriaMetrics, or with
                    --openmetrics for `promtool tsdb create-blocks-from openmetrics`

    --seed N        seed (1)
    --services N    services (20); the first six leak
    --pods N        pods of each service (50)
    --minutes N     simulated minutes (360)
    --speed N       serve: simulated minutes in a real one (1)
    --port N        serve: port (0: a free one)
    --for N         serve: ends after so many real seconds (600)
    --end N         backfill: Unix time of the last minute (now)
    --everything    backfill: families that no rule reads as well";

struct Options {
    seed: u64,
    services: usize,
    pods: usize,
    minutes: i64,
    speed: f64,
    port: u16,
    seconds: u64,
    end: i64,
    everything: bool,
    openmetrics: bool,
}

fn main() {
    if let Err(error) = run() {
        eprintln!("fleet: {error}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    use lexopt::prelude::*;

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() as i64;
    let mut options = Options {
        seed: 1,
        services: 20,
        pods: 50,
        minutes: 360,
        speed: 1.0,
        port: 0,
        seconds: 600,
        end: now,
        everything: false,
        openmetrics: false,
    };
    let mut command = None;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Value(name) if command.is_none() => command = Some(name.string()?),
            Long("seed") => options.seed = arguments.value()?.parse()?,
            Long("services") => options.services = arguments.value()?.parse()?,
            Long("pods") => options.pods = arguments.value()?.parse()?,
            Long("minutes") => options.minutes = arguments.value()?.parse()?,
            Long("speed") => options.speed = arguments.value()?.parse()?,
            Long("port") => options.port = arguments.value()?.parse()?,
            Long("for") => options.seconds = arguments.value()?.parse()?,
            Long("end") => options.end = arguments.value()?.parse()?,
            Long("everything") => options.everything = true,
            Long("openmetrics") => options.openmetrics = true,
            Long("help") | Short('h') => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let plan = Plan::new(options.seed, options.services, options.pods, options.minutes);
    match command.as_deref() {
        Some("serve") => serve::serve(&plan, &options),
        Some("backfill") if options.openmetrics => openmetrics(&plan, &options),
        Some("backfill") => backfill(&plan, &options),
        _ => Err("serve or backfill is wanted; --help says more".into()),
    }
}

/// Returns the labels of a target, without braces.
fn target(service: &Service, life: &Life) -> [(&'static str, String); 5] {
    [
        ("cluster", "east".into()),
        ("namespace", "shop".into()),
        ("pod", life.pod.clone()),
        ("job", service.job.clone()),
        ("instance", life.instance.clone()),
    ]
}

/// Returns, for each service, what leaks and in how many of the processes that live at `minute`.
fn truth(plan: &Plan, minute: i64) -> String {
    let mut text = String::from("[");
    for (number, service) in plan.services.iter().enumerate() {
        let living = |life: &&Life| life.service == number && life.begin <= minute && minute < life.end;
        let lives: Vec<&Life> = match minute {
            i64::MAX => {
                plan.lives.iter().filter(|life| life.service == number && life.end == i64::MAX).collect()
            }
            _ => plan.lives.iter().filter(living).collect(),
        };
        let function = service.leaks.first().map(|(site, _)| service.sites[*site].function.as_str());
        let leaking = if function.is_some() { lives.iter().filter(|life| life.leaks).count() } else { 0 };
        let _ = write!(
            text,
            "{}{{\"job\": \"{}\", \"kind\": \"{:?}\", \"function\": \"{}\", \"processes\": {}, \"leaking\": {leaking}, \
             \"from\": {}}}",
            if number > 0 { ",\n " } else { "" },
            service.job,
            service.kind,
            function.unwrap_or(""),
            lives.len(),
            service.leaks_from,
        );
    }
    text + "]"
}

/// Returns whether rules read the family; the other families are a third of the series.
fn is_read(name: &str) -> bool {
    !["_blocks", "_allocations_total", "_deallocations_total", "snapshot_duration_seconds"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Returns the first and last minute of a life within the simulation.
fn span(life: &Life, minutes: i64) -> std::ops::Range<i64> {
    life.begin.max(0)..life.end.min(minutes)
}

/// Writes a JSON line for each series: its values and timestamps.
fn backfill(plan: &Plan, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let time = |minute: i64| (options.end - 60 * (options.minutes - 1 - minute)) as f64;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
    for life in &plan.lives {
        let service = &plan.services[life.service];
        let mut process = Process::new(options.seed, service, life);
        let mut all: std::collections::BTreeMap<(String, String), Vec<(i64, f64)>> = Default::default();
        for minute in span(life, options.minutes) {
            process.advance(minute);
            process.series(&time, 60.0, &mut |name, labels, value| {
                if options.everything || is_read(name) {
                    all.entry((name.into(), labels.into())).or_default().push((minute, value));
                }
            });
        }
        for ((name, labels), samples) in all {
            write!(out, "{{\"metric\":{{\"__name__\":\"{name}\"")?;
            for (label, value) in target(service, life) {
                write!(out, ",\"{label}\":\"{value}\"")?;
            }
            for pair in labels.trim_matches(['{', '}']).split(',').filter(|pair| !pair.is_empty()) {
                write!(out, ",\"{}", pair.replacen('=', "\":", 1))?;
            }
            let list = |text: Vec<String>| text.join(",");
            let values = list(samples.iter().map(|(_, value)| value.to_string()).collect());
            let times =
                list(samples.iter().map(|(minute, _)| (1000.0 * time(*minute)).to_string()).collect());
            writeln!(out, "}},\"values\":[{values}],\"timestamps\":[{times}]}}")?;
        }
    }
    Ok(out.flush()?)
}

/// Writes OpenMetrics with timestamps, family by family as its readers want it.
fn openmetrics(plan: &Plan, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let time = |minute: i64| (options.end - 60 * (options.minutes - 1 - minute)) as f64;
    let mut families: std::collections::BTreeMap<String, String> = Default::default();
    for life in &plan.lives {
        let service = &plan.services[life.service];
        let mut process = Process::new(options.seed, service, life);
        let common: Vec<String> =
            target(service, life).iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let common = common.join(",");
        for minute in span(life, options.minutes) {
            process.advance(minute);
            process.series(&time, 60.0, &mut |name, labels, value| {
                if options.everything || is_read(name) {
                    let own = labels.trim_matches(['{', '}']);
                    let comma = if own.is_empty() { "" } else { "," };
                    let text = families.entry(name.into()).or_default();
                    let _ = writeln!(text, "{name}{{{common}{comma}{own}}} {value} {}", time(minute));
                }
            });
        }
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (name, text) in families {
        let (family, kind) = match name.strip_suffix("_total") {
            Some(family) => (family, "counter"),
            None => (name.as_str(), "gauge"),
        };
        write!(out, "# TYPE {family} {kind}\n{text}")?;
    }
    writeln!(out, "# EOF")?;
    Ok(out.flush()?)
}
