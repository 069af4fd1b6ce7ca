//! Servers and clients that keep bodies and messages.

use crate::{Heap, run};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::post;
use bytes::{Buf, BufMut};
use http_body_util::BodyExt;
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, client, server, transport};

const FILE: &str = "tests/own_line/servers.rs";
const BODY: usize = 200_000;

/// Keeps a copy of each body. Returns the line that makes it.
async fn keep(kept: Arc<Mutex<Vec<Bytes>>>, body: Body) -> String {
    let collected = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let copy = Bytes::copy_from_slice(&collected);
    let line = line!() - 1;
    kept.lock().unwrap().extend([collected, copy]);
    line.to_string()
}

/// Checks that hardly anything has grown but lines of the program: all tasks run inside its functions.
#[track_caller]
fn only_own_lines(now: &Heap, before: &Heap) {
    let grown = now.changes(before).into_iter().filter(|(_, then, now)| now.0 > then.0);
    let elsewhere = grown.filter(|((file, ..), ..)| !file.starts_with("tests/own_line/"));
    let elsewhere: u64 = elsewhere.map(|(_, then, now)| now.0 - then.0).sum();
    // Stacks of a build without optimisation that are cut at 96 addresses before a line of the program.
    assert!(elsewhere < 5_000, "{:#?}", now.changes(before));
}

#[test]
fn bodies_of_a_server_and_of_a_client() {
    own_process!();
    run(async {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let state = kept.clone();
        let router = Router::new().route("/", post(move |body| keep(state.clone(), body)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let stream = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let before = Heap::now();
        let mut line = 0;
        let mut answers = Vec::new();
        for _ in 0..20 {
            let request = hyper::Request::post("/").header("host", "here");
            let request = request.body(Body::from(vec![7u8; BODY])).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            line = std::str::from_utf8(&body).unwrap().parse().unwrap();
            answers.push(body);
        }
        let now = Heap::now();
        let of_bodies = 20 * BODY as u64;
        assert_eq!(now.at(FILE, line..=line).0, of_bodies, "{:#?}", now.changes(&before));
        // Blocks of the libraries are at lines of the program, too, because all of them run inside its functions.
        assert!(now.since(&before).0 >= 2 * of_bodies);
        only_own_lines(&now, &before);
        drop((answers, kept));
    });
}

/// Body of as many pieces of 10,000 bytes, which arrive one by one.
struct Pieces(usize);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Pieces>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.0.checked_sub(1);
        self.0 = left.unwrap_or(0);
        Poll::Ready(left.map(|_| Ok(Frame::data(Bytes::from_static(&[7; 10_000])))))
    }
}

/// The client puts the pieces of a body together, in a block of its length.
#[test]
fn bodies_of_reqwest() {
    own_process!();
    run(async {
        let router =
            Router::new().route("/", axum::routing::get(|| async { Body::new(Pieces(BODY / 10_000)) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = reqwest::Client::new();
        // The first request opens the connection.
        client.get(&address).send().await.unwrap().bytes().await.unwrap();
        let before = Heap::now();
        let mut bodies = Vec::with_capacity(20);
        for _ in 0..20 {
            let answer = client.get(&address).send().await.unwrap();
            bodies.push(answer.bytes().await.unwrap());
        }
        let line = line!() - 2;
        let now = Heap::now();
        let (then, bytes) = (before.at(FILE, line..=line).0, now.at(FILE, line..=line).0);
        assert_eq!(bytes - then, 20 * BODY as u64, "{:#?}", now.changes(&before));
        only_own_lines(&now, &before);
        drop(bodies);
    });
}

/// Messages as bytes, without a description of them.
#[derive(Clone, Default)]
struct Bare;

impl Codec for Bare {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bare;
    type Decoder = Bare;

    fn encoder(&mut self) -> Bare {
        Bare
    }

    fn decoder(&mut self) -> Bare {
        Bare
    }
}

impl Encoder for Bare {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

/// Line of the decoder that makes the message.
const DECODED: u32 = line!() + 7;

impl Decoder for Bare {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// Keeps each message, and answers with their number.
fn answer(kept: &Mutex<Vec<Vec<u8>>>, message: Vec<u8>) -> Vec<u8> {
    let mut kept = kept.lock().unwrap();
    kept.push(message);
    kept.len().to_string().into_bytes()
}

#[test]
fn messages_of_a_tonic_server() {
    own_process!();
    run(async {
        let kept = Arc::new(Mutex::new(Vec::with_capacity(20)));
        let state = kept.clone();
        let service = tower::service_fn(move |request: hyper::Request<tonic::body::Body>| {
            let state = state.clone();
            let keep = tower::service_fn(move |request: Request<Vec<u8>>| {
                let answer = answer(&state, request.into_inner());
                async move { Ok::<_, Status>(Response::new(answer)) }
            });
            async move { Ok::<_, Infallible>(server::Grpc::new(Bare).unary(keep, request).await) }
        });
        let incoming = transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = format!("http://{}/", incoming.local_addr().unwrap());
        tokio::spawn(transport::Server::builder().serve_with_incoming(service, incoming));
        let channel = transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        let mut client = client::Grpc::new(channel);
        let before = Heap::now();
        for number in 0..20u8 {
            client.ready().await.unwrap();
            let path = "/keeper.Keeper/Keep".parse().unwrap();
            let answer = client.unary(Request::new(vec![number; BODY]), path, Bare).await.unwrap();
            assert!(!answer.into_inner().is_empty());
        }
        let now = Heap::now();
        assert_eq!(now.at(FILE, DECODED..=DECODED).0, 20 * BODY as u64, "{:#?}", now.changes(&before));
        only_own_lines(&now, &before);
        assert_eq!(kept.lock().unwrap().len(), 20);
    });
}
