//! Sends requests to a service, over a fixed number of connections, and measures how long each answer takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::requests::{Asked, request};

/// The answers to a range of requests.
pub struct Answered {
    pub elapsed: Duration,
    /// From the time at which a request was due, in order.
    pub latencies: Vec<Duration>,
}

/// Sends the requests of these numbers, in order, each over the next free connection; at full speed or so many a second.
pub fn send(
    address: SocketAddr,
    numbers: std::ops::Range<u64>,
    connections: u64,
    rate: Option<f64>,
) -> Result<Answered, String> {
    let ready = Barrier::new(connections as usize);
    // Taken one by one, so that none is sent long after its neighbours: requests refer to earlier orders.
    let next = AtomicU64::new(numbers.start);
    let begin = Instant::now();
    let of_one = || {
        let connection = Connection::open(address);
        ready.wait();
        let (begin, mut connection) = (Instant::now(), connection?);
        let mut latencies = vec![];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(latencies);
            }
            let due = match rate {
                Some(rate) => begin + Duration::from_secs_f64((number - numbers.start) as f64 / rate),
                None => Instant::now(),
            };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            connection.ask(&request(number))?;
            latencies.push(due.elapsed());
        }
    };
    let all: Vec<Result<Vec<Duration>, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(of_one)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a connection's thread")).collect()
    });
    let elapsed = begin.elapsed();
    let mut latencies = vec![];
    for of_one in all {
        latencies.extend(of_one?);
    }
    latencies.sort_unstable();
    Ok(Answered { elapsed, latencies })
}

/// Asks for a path on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>, String> {
    let asked = Asked { method: "GET", path: path.into(), is_gzip: false, body: String::new() };
    let mut connection = Connection::open(address)?;
    connection.ask(&asked)?;
    Ok(connection.body)
}

/// One connection that stays open.
struct Connection {
    stream: BufReader<TcpStream>,
    head: String,
    /// The body of the last answer.
    body: Vec<u8>,
}

/// No answer takes longer, or something is wrong.
const LIMIT: Duration = Duration::from_secs(20);

impl Connection {
    fn open(address: SocketAddr) -> Result<Connection, String> {
        let open = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(stream)
        };
        let stream = open().map_err(|error: std::io::Error| format!("{address}: {error}"))?;
        Ok(Connection {
            stream: BufReader::with_capacity(64 << 10, stream),
            head: String::new(),
            body: vec![],
        })
    }

    fn ask(&mut self, asked: &Asked) -> Result<(), String> {
        let answered =
            self.try_ask(asked).map_err(|error| format!("{} {}: {error}", asked.method, asked.path))?;
        match answered.strip_prefix("HTTP/1.1 2") {
            Some(_) => Ok(()),
            None => Err(format!("{} {}: {}", asked.method, asked.path, answered.trim())),
        }
    }

    /// Sends a request, reads the answer, and returns its first line.
    fn try_ask(&mut self, asked: &Asked) -> std::io::Result<String> {
        let accept = if asked.is_gzip { "accept-encoding: gzip\r\n" } else { "" };
        let sent = format!(
            "{} {} HTTP/1.1\r\nhost: shop.example\r\nuser-agent: harness\r\naccept: */*\r\n{accept}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
            asked.method,
            asked.path,
            asked.body.len(),
            asked.body
        );
        self.stream.get_mut().write_all(sent.as_bytes())?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let (mut length, mut is_chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
                Some(("transfer-encoding", _)) => is_chunked = true,
                Some(_) => {}
                None => break,
            }
        }
        self.body.clear();
        if !is_chunked {
            self.read(length)?;
            return Ok(status);
        }
        loop {
            let length = usize::from_str_radix(self.line()?, 16).unwrap_or(0);
            self.read(length)?;
            self.line()?;
            if length == 0 {
                return Ok(status);
            }
        }
    }

    fn line(&mut self) -> std::io::Result<&str> {
        self.head.clear();
        if self.stream.read_line(&mut self.head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.head.trim())
    }

    fn read(&mut self, length: usize) -> std::io::Result<()> {
        let before = self.body.len();
        self.body.resize(before + length, 0);
        self.stream.read_exact(&mut self.body[before..])
    }
}
