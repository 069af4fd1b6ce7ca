//! A web service as people write them: orders as JSON in and out, pages by a template, gzip, a cache, a database, logs and
//! metrics. Its global allocator is chosen by a feature.
//!
//! ```text
//! service                  serves on a free port of 127.0.0.1, whose address is its first line, until its input ends
//! service inside N         answers N requests without a network: for callgrind, and to see where user time goes
//! service fifty N          the same, of fifty routes with a handler each, instead of five
//! ```

mod allocator;
mod app;
mod inside;
mod requests;
mod usage;

use std::io::Read;

fn main() {
    allocator::start();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(allocator::start_thread)
        .enable_all()
        .build()
        .expect("a runtime of one thread");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {
            let listener = runtime
                .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
                .expect("a free port of 127.0.0.1");
            println!("{}", listener.local_addr().expect("a bound listener has an address"));
            runtime.spawn(async move { axum::serve(listener, app::router()).await });
            // Until the harness has no more requests, or is gone.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
        }
        [routes @ ("inside" | "fifty"), requests] => {
            let requests = requests.parse().expect("usage: service inside REQUESTS");
            let (router, copies) = match *routes {
                "fifty" => (app::fifty_routes(), Some(app::COPIES)),
                _ => (app::router(), None),
            };
            let answered = runtime.block_on(runtime.spawn(inside::answer(router, requests, copies)));
            println!("{}", answered.expect("no request panics"));
        }
        _ => {
            eprintln!("usage: service [inside REQUESTS | fifty REQUESTS]");
            std::process::exit(2);
        }
    }
    // Not by returning: the runtime would wait for open connections.
    std::process::exit(0)
}
