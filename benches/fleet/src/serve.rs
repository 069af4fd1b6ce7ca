//! Answers scrapes: one address, a path for each process. Simulated time runs `--speed` times as fast as the clock.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::process::Process;
use crate::service::Plan;
use crate::{Options, target, truth};

struct Fleet<'a> {
    plan: &'a Plan,
    /// One for each life; `None` until it is first asked for.
    processes: Vec<Mutex<Option<Process<'a>>>>,
    seed: u64,
    speed: f64,
    begun: Instant,
    begun_unix: f64,
    port: u16,
    minutes: i64,
}

/// Serves until the time is over; then the process ends, with its connections.
pub fn serve(plan: &Plan, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(("127.0.0.1", options.port))?;
    let mut fleet = Fleet {
        plan,
        processes: plan.lives.iter().map(|_| Mutex::new(None)).collect(),
        seed: options.seed,
        speed: options.speed,
        begun: Instant::now(),
        begun_unix: 0.0,
        port: listener.local_addr()?.port(),
        minutes: options.minutes,
    };
    // The day before is lived before the clock starts.
    for (index, life) in plan.lives.iter().enumerate() {
        if life.begin <= 0 && life.end > 0 {
            fleet.with(index, 0, |_| ());
        }
    }
    fleet.begun = Instant::now();
    fleet.begun_unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    println!("listening on http://127.0.0.1:{}", fleet.port);
    let seconds = options.seconds;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds));
            std::process::exit(0);
        });
        for stream in listener.incoming().flatten() {
            let fleet = &fleet;
            // A scraper keeps a connection for each target.
            let _ = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, move || {
                let _ = fleet.answer(stream);
            });
        }
    });
    Ok(())
}

impl<'a> Fleet<'a> {
    fn minute(&self) -> i64 {
        ((self.begun.elapsed().as_secs_f64() * self.speed / 60.0) as i64).min(self.minutes - 1)
    }

    fn seconds(&self, minute: i64) -> f64 {
        self.begun_unix + minute as f64 * 60.0 / self.speed
    }

    fn with<T>(&self, index: usize, minute: i64, use_it: impl FnOnce(&Process) -> T) -> T {
        let life = &self.plan.lives[index];
        let mut process = self.processes[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let process =
            process.get_or_insert_with(|| Process::new(self.seed, &self.plan.services[life.service], life));
        process.advance(minute);
        use_it(process)
    }

    /// Answers the requests of one connection.
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut out = stream.try_clone()?;
        let mut lines = BufReader::new(stream).lines();
        while let Some(request) = lines.next().transpose()? {
            while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
            let path = request.split(' ').nth(1).unwrap_or("");
            let (status, kind, body) = self.page(path);
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            out.write_all((head + &body).as_bytes())?;
        }
        Ok(())
    }

    fn page(&self, path: &str) -> (&'static str, &'static str, String) {
        let minute = self.minute();
        let text = "text/plain; version=0.0.4; charset=utf-8";
        match path {
            "/targets" => return ("200 OK", "application/json", self.targets(minute)),
            "/truth" => return ("200 OK", "application/json", truth(self.plan, minute)),
            "/minute" => return ("200 OK", text, minute.to_string()),
            _ => {}
        }
        let index = path.strip_prefix("/p/").and_then(|rest| rest.strip_suffix("/metrics"));
        let life = index.and_then(|index| index.parse().ok()).filter(|index: &usize| {
            self.plan.lives.get(*index).is_some_and(|life| life.begin <= minute && minute < life.end)
        });
        let Some(index) = life else {
            return ("404 Not Found", text, String::new());
        };
        let mut body = String::with_capacity(32 << 10);
        self.with(index, minute, |process| {
            process.series(&|minute| self.seconds(minute), 60.0 / self.speed, &mut |name, labels, value| {
                let _ = writeln!(body, "{name}{labels} {value}");
            });
        });
        ("200 OK", text, body)
    }

    fn targets(&self, minute: i64) -> String {
        let mut text = String::from("[");
        for (index, life) in self.plan.lives.iter().enumerate() {
            if life.begin > minute || minute >= life.end {
                continue;
            }
            let comma = if text.len() > 1 { "," } else { "" };
            let _ = write!(
                text,
                "{comma}{{\"targets\":[\"127.0.0.1:{}\"],\"labels\":{{\"__metrics_path__\":\"/p/{index}/metrics\"",
                self.port
            );
            for (label, value) in target(&self.plan.services[life.service], life) {
                let _ = write!(text, ",\"{label}\":\"{value}\"");
            }
            text += "}}";
        }
        text + "]"
    }
}
