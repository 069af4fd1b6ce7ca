//! The HTTP client of the tests: one request a connection, and the whole answer.
#![allow(dead_code, reason = "not each test program uses all of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One answer.
pub struct Answer {
    pub status: u16,
    /// The status line and the headers, each line with its end.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Returns the body as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Opens a connection on which no read takes longer than two minutes.
pub fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

/// Sends these bytes, and reads until the answer is whole or the server closes.
#[track_caller]
pub fn send(addr: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = connect(addr);
    stream.write_all(request).unwrap();
    read_answer(&mut stream)
}

/// Sends a request with these headers, each with its line end.
#[track_caller]
pub fn ask(addr: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\n{headers}Connection: close\r\n\r\n");
    send(addr, request.as_bytes())
}

/// Sends a request by HTTP/1.0, so that a streamed body has no chunks in it and ends with the connection.
#[track_caller]
pub fn ask_unchunked(addr: SocketAddr, method: &str, path: &str) -> Answer {
    send(addr, format!("{method} {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes())
}

/// Reads one answer: as many bytes as its `Content-Length` says, else until the server closes.
#[track_caller]
pub fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    let mut whole = None;
    while whole.is_none_or(|whole| received.len() < whole) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => received.extend_from_slice(&buffer[..read]),
            Err(error) => panic!("no answer: {error}"),
        }
        if whole.is_none()
            && let Some(end) = end_of_head(&received)
        {
            let answer = answer(received[..end].to_vec(), end);
            let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
            whole = Some(length.map_or(usize::MAX, |length| end + length));
        }
    }
    let end = end_of_head(&received).unwrap_or(received.len());
    answer(received, end)
}

/// Returns the offset of the body, once all of the head is there.
fn end_of_head(received: &[u8]) -> Option<usize> {
    received.windows(4).position(|window| window == b"\r\n\r\n").map(|end| end + 4)
}

fn answer(mut received: Vec<u8>, end: usize) -> Answer {
    let body = received.split_off(end);
    let mut head = String::from_utf8_lossy(&received).into_owned();
    if head.ends_with("\r\n\r\n") {
        head.truncate(head.len() - 2);
    }
    let status = head.get(9..12).map_or(0, |status| status.parse().unwrap());
    Answer { status, head, body }
}
