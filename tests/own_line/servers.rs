//! A server and a client that keep bodies.

use crate::{Heap, run};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::post;
use http_body_util::BodyExt;
use std::sync::{Arc, Mutex};

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
        let grown = now.changes(&before).into_iter().filter(|(_, then, now)| now.0 > then.0);
        let elsewhere = grown.filter(|((file, ..), ..)| !file.starts_with("tests/own_line/"));
        let elsewhere: u64 = elsewhere.map(|(_, then, now)| now.0 - then.0).sum();
        // But for stacks of a build without optimisation that are cut at 96 addresses before a line of the program.
        assert!(elsewhere < 5_000, "{:#?}", now.changes(&before));
        drop((answers, kept));
    });
}
