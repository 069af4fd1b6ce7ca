//! A web service as people write them: orders as JSON in and out, pages by a template, gzip, a cache, a database, logs and
//! metrics. Its global allocator is chosen by a feature.
//!
//! ```text
//! service                  serves on a free port of 127.0.0.1, whose address is its first line, until its input ends
//! service inside N         answers N requests without a network: for callgrind, and to see where user time goes
//! service inside N COPIES  the same, of as many copies of the service: five routes each
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
        ["inside", requests] => {
            let requests = requests.parse().expect("usage: service inside REQUESTS");
            let answered = runtime.block_on(runtime.spawn(inside::answer(app::router(), requests, None)));
            println!("{}", answered.expect("no request panics"));
        }
        ["inside", requests, copies] => {
            let [requests, copies] = [requests, copies].map(|number| number.parse().expect("a number"));
            let router = app::copies(copies);
            let answered = runtime.block_on(runtime.spawn(inside::answer(router, requests, Some(copies))));
            println!("{}", answered.expect("no request panics"));
        }
        _ => {
            eprintln!("usage: service [inside REQUESTS [COPIES]]");
            std::process::exit(2);
        }
    }
    // Not by returning: the runtime would wait for open connections.
    std::process::exit(0)
}
