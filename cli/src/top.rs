//! Running program → its largest lines, again and again.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::terminal;
use serde_json::Value;
#[cfg(unix)]
use signal_hook::consts::SIGHUP;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::arguments::{By, Top};
use crate::failure::Failure;
use crate::heap::{Heap, Sites, Summary};
use crate::screen::Screen;
use crate::table;
use crate::text::{bytes, change, print, span, time, whole};
use crate::url::Client;

/// Lines of a table where the terminal does not decide.
const ROWS: usize = 20;
/// Lines above the table.
const HEAD: usize = 4;
/// Time between two looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// Signals that end the program, once the terminal is as it was.
const SIGNALS: &[i32] = &[
    SIGTERM,
    SIGINT,
    #[cfg(unix)]
    SIGHUP,
];

/// Heap at one moment.
struct Sample {
    summary: Summary,
    sites: Sites,
    by: By,
}

pub fn run(options: &Top) -> Result<(), Failure> {
    if io::stdout().is_terminal() && io::stdin().is_terminal() {
        return on_screen(options);
    }
    let heap = Heap::Program(Client::new(&options.url));
    let interval = options.interval.unwrap_or(Duration::from_secs(1));
    let count = options.count.or(options.interval.is_none().then_some(1));
    let mut number = 0;
    loop {
        let begun = Instant::now();
        let sample = sample(&heap, options.by, options.rows.unwrap_or(ROWS), options)?;
        let between = if number > 0 { "\n" } else { "" };
        print(&format!("{between}{}", shown(&sample, options, None)))?;
        number += 1;
        if count.is_some_and(|count| number >= count) {
            return Ok(());
        }
        thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
}

fn sample(heap: &Heap, by: By, rows: usize, options: &Top) -> Result<Sample, Failure> {
    let summary = heap.summary()?;
    if summary.tracking == Some(false) {
        return Err(Failure::Other(format!("{}: tracking is off there, nothing is recorded", options.url)));
    }
    let order = if by == By::Bytes { "size" } else { "growth" };
    let sites = heap.sites(&summary, order, rows, options.scope.as_ref())?;
    Ok(Sample { summary, sites, by })
}

/// Formats a moment: three lines, an empty one, and the table.
fn shown(sample: &Sample, options: &Top, width: Option<u16>) -> String {
    let Sample { summary, sites, by } = sample;
    let keys = if width.is_some() { "   b bytes  g growth  q end" } else { "" };
    let order = if *by == By::Bytes { "live bytes" } else { "growth" };
    let scope =
        options.scope.as_ref().map_or(String::new(), |scope| format!(" in {}={}", scope.key, scope.value));
    let mut text = format!("{} at {}{scope}, by {order}{keys}\n", options.url, time(summary.taken_at));
    let window = summary.growth_seconds().unwrap_or_default();
    text += &format!(
        "live {} in {} blocks, {} in {}",
        bytes(summary.size as f64),
        whole(summary.count),
        change(summary.size_diff as f64),
        span(window)
    );
    if let Some(peak) = summary.bytes("peak_bytes") {
        text += &format!(", peak {}", bytes(peak));
    }
    text.push('\n');
    let mut more = Vec::new();
    match (summary.bytes("resident_bytes"), summary.bytes("memory_limit_bytes")) {
        (Some(resident), Some(limit)) => {
            more.push(format!("resident {} of {}", bytes(resident), bytes(limit)))
        }
        (Some(resident), None) => more.push(format!("resident {}", bytes(resident))),
        _ => {}
    }
    if let Some(naming) = summary.naming.as_ref().filter(|naming| naming.named < naming.total) {
        more.push(format!("{} of {} stacks have names so far", whole(naming.named), whole(naming.total)));
    }
    if let Some(age) = summary.bytes("old_age_seconds") {
        more.push(format!("old is older than {}", span(age)));
    }
    if sites.other.size > 0 {
        more.push(format!("{} at other lines", bytes(sites.other.size as f64)));
    }
    text += &(more.join(", ") + "\n\n");
    // A program of an older version tells no ages.
    let has_ages = sites.rows.iter().any(|row| row.old_bytes.is_some());
    let rows: Vec<Vec<String>> = sites
        .rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                bytes(row.figures.size as f64),
                whole(row.figures.count),
                change(row.figures.size_diff as f64),
                sites.a_minute(row.figures.size_diff).map_or("-".into(), change),
            ];
            // The least of them, as in the metrics.
            let least = row.old_bytes.as_ref().and_then(|old| old.get(0)).and_then(Value::as_f64);
            cells.extend(has_ages.then(|| least.map_or("-".into(), bytes)));
            cells.push(row.name());
            cells
        })
        .collect();
    let mut head = vec!["LIVE", "BLOCKS", "GROWTH", "A MINUTE"];
    head.extend(has_ages.then_some("OLD"));
    head.push("SITE");
    text + &table::format(&head, &rows, width)
}

/// Event of the terminal that the table follows.
enum Key {
    By(By),
    End,
    Redraw,
}

/// Shows the table on the terminal's other screen until a key or a signal ends it.
fn on_screen(options: &Top) -> Result<(), Failure> {
    // The first answer decides whether there is anything to show.
    let heap = Heap::Program(Client::new(&options.url));
    let mut latest = sample(&heap, options.by, rows(options), options)?;
    let signalled = Arc::new(AtomicUsize::new(0));
    for &signal in SIGNALS {
        signal_hook::flag::register_usize(signal, signalled.clone(), signal as usize)
            .map_err(Failure::other)?;
    }
    let failed = |error: io::Error| Failure::Other(format!("terminal: {error}"));
    let screen = Screen::enter().map_err(failed)?;
    let (samples, ask) = collect(heap, options);
    let (mut by, mut problem, mut number) = (options.by, None, 1);
    let mut is_new = true;
    let ended = loop {
        if is_new {
            is_new = false;
            let (width, _) = terminal::size().map_err(failed)?;
            let mut text = shown(&latest, options, Some(width));
            if let Some(problem) = &problem {
                text = format!("{problem}; trying again\n{text}");
            }
            screen.show(&text).map_err(failed)?;
            if options.count.is_some_and(|count| number >= count) {
                break 0;
            }
        }
        let signal = signalled.load(Ordering::Relaxed);
        if signal != 0 {
            break signal;
        }
        match key().map_err(failed)? {
            Some(Key::End) => break 0,
            Some(Key::By(order)) => {
                by = order;
                let _ = ask.send((by, rows(options)));
            }
            Some(Key::Redraw) => {
                is_new = true;
                let _ = ask.send((by, rows(options)));
            }
            None => {}
        }
        for sample in samples.try_iter() {
            is_new = true;
            match sample {
                Ok(sample) => {
                    (latest, problem) = (sample, None);
                    number += 1;
                }
                Err(Failure::Other(line) | Failure::Usage(line)) => problem = Some(line),
                Err(Failure::BrokenPipe) => {}
            }
        }
    };
    drop(screen);
    if ended != 0 {
        // Ends as the signal would have, now that the terminal is as it was.
        let _ = signal_hook::low_level::emulate_default_handler(ended as i32);
    }
    Ok(())
}

/// Samples as they come, and the place to ask for one in another order and of another length.
type Samples = (mpsc::Receiver<Result<Sample, Failure>>, mpsc::Sender<(By, usize)>);

/// Asks for a sample each interval, and at once for one in another order. The thread ends with the program: it may be waiting for an
/// answer.
fn collect(heap: Heap, options: &Top) -> Samples {
    let (send, samples) = mpsc::channel();
    let (ask, asked) = mpsc::channel();
    let mut wanted = (options.by, rows(options));
    let interval = options.interval.unwrap_or(Duration::from_secs(1));
    let options = Top { url: options.url.clone(), scope: options.scope.clone(), ..*options };
    thread::spawn(move || {
        loop {
            match asked.recv_timeout(interval) {
                Ok(order) => wanted = order,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let (by, rows) = wanted;
            if send.send(sample(&heap, by, rows, &options)).is_err() {
                return;
            }
        }
    });
    (samples, ask)
}

/// Returns the number of lines that there is room for.
fn rows(options: &Top) -> usize {
    let height = terminal::size().map_or(24, |(_, height)| usize::from(height));
    // One for the head of the table, and one for a problem.
    options.rows.unwrap_or(height.saturating_sub(HEAD + 2).max(1))
}

/// Waits a moment for an event of the terminal.
fn key() -> io::Result<Option<Key>> {
    if !event::poll(LOOK)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Resize(..) => Some(Key::Redraw),
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::End),
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::End),
            KeyCode::Char('b') => Some(Key::By(By::Bytes)),
            KeyCode::Char('g') => Some(Key::By(By::Growth)),
            _ => None,
        },
        _ => None,
    })
}
