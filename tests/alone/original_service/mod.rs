//! Tests the service of the original blog post: a first snapshot, work, a last snapshot, and the ten largest differences
//! over HTTP. Every line of the answer is known, because nothing else is on the heap.

mod cache;
mod journal;
mod queue;

use crate::client;
use cache::Cache;
use journal::Journal;
use queue::Queue;
use std::net::SocketAddr;

/// Returns the part of a successful answer that is about the heap. The client is paused, because its allocations are not the service's.
fn get(addr: SocketAddr, path: &str) -> String {
    let _paused = heapgauge::pause();
    let answer = client::ask(addr, "GET", path, "");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    // Once resident memory was looked at, a line about it follows.
    let text = answer.text();
    text.find("# resident: ").map_or(text, |at| &text[..at]).to_owned()
}

/// Makes an untracked vector with room for that many blocks.
fn untracked(blocks: usize) -> Vec<Vec<u8>> {
    let _paused = heapgauge::pause();
    Vec::with_capacity(blocks)
}

pub fn first_snapshot_work_last_snapshot_top_ten() {
    heapgauge::clear_traces();
    // The figures of the blog post: 6,161 blocks of 616,765 bytes.
    let cache = Cache::of(6_160, 100, 765);
    let mut journal = Journal::of(30);
    // The first snapshot.
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let mut queue = Queue::new();
    queue.fill(12);
    journal.forget(20);

    let expected = "\
        48.00 new KiB, 48.00 total KiB, 12 new blocks, 12 total blocks\n\
        \x20 File \"tests/alone/original_service/queue.rs\", line 0\n\
        -20.00 new KiB, 10.00 total KiB, -20 new blocks, 10 total blocks\n\
        \x20 File \"tests/alone/original_service/journal.rs\", line 0\n\
        0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks\n\
        \x20 File \"tests/alone/original_service/cache.rs\", line 0\n\
        # other: 0.00 new KiB, 0.00 total KiB, 0 new blocks, 0 total blocks\n\
        # total: 28.00 new KiB, 660.31 total KiB, -8 new blocks, 6183 total blocks\n";
    for path in [
        "/memory/snapshots?top=10",
        "/memory/snapshots",
        "/memory/snapshots?top=10&group_by=file&since=first&sort=diff&format=text",
    ] {
        assert_eq!(get(addr, path), expected, "{path}");
    }

    // The remaining rows are summed in *other*; by line, rows have functions.
    assert_eq!(
        get(addr, "/memory/snapshots?top=1&group_by=line&sort=size"),
        format!(
            "0.00 new KiB, 601.56 total KiB, 0 new blocks, 6160 total blocks\n\
             \x20 File \"tests/alone/original_service/cache.rs\", line {}, in alone::original_service::cache::Cache::of\n\
             # other: 28.00 new KiB, 58.75 total KiB, -8 new blocks, 23 total blocks\n\
             # total: 28.00 new KiB, 660.31 total KiB, -8 new blocks, 6183 total blocks\n",
            Cache::MANY_LINE
        )
    );
    assert_eq!(
        get(addr, "/memory/snapshots?top=2&group_by=line&sort=growth"),
        format!(
            "48.00 new KiB, 48.00 total KiB, 12 new blocks, 12 total blocks\n\
             \x20 File \"tests/alone/original_service/queue.rs\", line {}, in alone::original_service::queue::Queue::fill\n\
             0.00 new KiB, 601.56 total KiB, 0 new blocks, 6160 total blocks\n\
             \x20 File \"tests/alone/original_service/cache.rs\", line {}, in alone::original_service::cache::Cache::of\n\
             # other: -20.00 new KiB, 10.75 total KiB, -20 new blocks, 11 total blocks\n\
             # total: 28.00 new KiB, 660.31 total KiB, -8 new blocks, 6183 total blocks\n",
            Queue::LINE,
            Cache::MANY_LINE
        )
    );

    // The work is freed, and its rows show that.
    drop((cache, journal, queue));
    assert_eq!(
        get(addr, "/memory/snapshots?top=10"),
        "-602.31 new KiB, 0.00 total KiB, -6161 new blocks, 0 total blocks\n\
         \x20 File \"tests/alone/original_service/cache.rs\", line 0\n\
         -30.00 new KiB, 0.00 total KiB, -30 new blocks, 0 total blocks\n\
         \x20 File \"tests/alone/original_service/journal.rs\", line 0\n\
         # other: 0.00 new KiB, 0.00 total KiB, 0 new blocks, 0 total blocks\n\
         # total: -632.31 new KiB, 0.00 total KiB, -6191 new blocks, 0 total blocks\n"
    );
}
