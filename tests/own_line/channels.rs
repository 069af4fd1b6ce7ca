//! Channels whose consumer is slow, each beside one that is drained.

use crate::Heap;

const FILE: &str = "tests/own_line/channels.rs";
const MESSAGES: u64 = 10_000;

/// Fills one channel with `send` at `line`, and drains another of its kind with `pass`. Checks that what waits is at the
/// line of the `send`.
fn slow_consumer(line: u32, via: &[&str], send: impl Fn([u64; 8]), mut pass: impl FnMut([u64; 8])) {
    // The first message allocates the channel's own blocks.
    pass([0; 8]);
    let before = Heap::now();
    for number in 0..MESSAGES {
        pass([number; 8]);
    }
    let between = Heap::now();
    for number in 0..MESSAGES {
        send([number; 8]);
    }
    let now = Heap::now();
    let (bytes, _) = now.all_at(&between, FILE, line..=line);
    assert!(bytes >= MESSAGES * 64, "{bytes}");
    assert!(between.all.0.abs_diff(before.all.0) < bytes / 10, "{:#?}", between.changes(&before));
    assert_eq!(now.via(FILE, line..=line), via);
}

#[test]
fn of_tokio() {
    own_process!();
    let (fill, _slow) = tokio::sync::mpsc::unbounded_channel();
    let (drained, mut quick) = tokio::sync::mpsc::unbounded_channel();
    let send = |message| fill.send(message).unwrap();
    slow_consumer(line!() - 1, &["tokio"], send, |message| {
        drained.send(message).unwrap();
        quick.try_recv().unwrap();
    });
}

#[test]
fn of_futures() {
    own_process!();
    let (fill, _slow) = futures_channel::mpsc::unbounded();
    let (drained, mut quick) = futures_channel::mpsc::unbounded();
    let send = |message| fill.unbounded_send(message).unwrap();
    slow_consumer(line!() - 1, &["futures_channel"], send, |message| {
        drained.unbounded_send(message).unwrap();
        quick.try_recv().unwrap();
    });
}

#[test]
fn of_async_channel() {
    own_process!();
    let (fill, _slow) = async_channel::unbounded();
    let (drained, quick) = async_channel::unbounded();
    let send = |message| fill.try_send(message).unwrap();
    slow_consumer(line!() - 1, &["concurrent_queue", "event_listener"], send, |message| {
        drained.try_send(message).unwrap();
        quick.try_recv().unwrap();
    });
}

/// Looked through: they are containers, and the nearest line is the program's own.
#[test]
fn of_flume() {
    own_process!();
    let (fill, _slow) = flume::unbounded();
    let (drained, quick) = flume::unbounded();
    let send = |message| fill.send(message).unwrap();
    slow_consumer(line!() - 1, &[""], send, |message| {
        drained.send(message).unwrap();
        quick.try_recv().unwrap();
    });
}

#[test]
fn of_crossbeam() {
    own_process!();
    let (fill, _slow) = crossbeam_channel::unbounded();
    let (drained, quick) = crossbeam_channel::unbounded();
    let send = |message| fill.send(message).unwrap();
    slow_consumer(line!() - 1, &[""], send, |message| {
        drained.send(message).unwrap();
        quick.try_recv().unwrap();
    });
}

#[test]
fn of_the_standard_library() {
    own_process!();
    let (fill, _slow) = std::sync::mpsc::channel();
    let (drained, quick) = std::sync::mpsc::channel();
    let send = |message| fill.send(message).unwrap();
    slow_consumer(line!() - 1, &[""], send, |message| {
        drained.send(message).unwrap();
        quick.try_recv().unwrap();
    });
}

/// The buffer of a broadcast belongs to the line that made the channel.
#[test]
fn broadcast_and_watch() {
    own_process!();
    let before = Heap::now();
    let (sender, _receiver) = tokio::sync::broadcast::channel::<[u64; 8]>(1_024);
    let line = line!() - 1;
    let between = Heap::now();
    let (bytes, _) = between.all_at(&before, FILE, line..=line);
    assert!(bytes > 1_024 * 64, "{bytes}");
    for _ in 0..5_000u64 {
        sender.send([1; 8]).unwrap();
    }
    let (sender, _receiver) = tokio::sync::watch::channel([0u64; 100]);
    let line = line!() - 1;
    for _ in 0..100 {
        sender.send([2; 100]).unwrap();
    }
    let now = Heap::now();
    let (bytes, _) = now.all_at(&between, FILE, line..=line);
    assert!(bytes > 800, "{bytes}");
    assert_eq!(now.via(FILE, line..=line), ["tokio"]);
}
