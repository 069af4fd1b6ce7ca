//! Tests short threads, and blocks that outlive them.

use crate::{nothing_is_lost, of_function, say, trap};
use std::hint::black_box;
use std::sync::mpsc;
use std::thread;

type Block = Box<[u64; 6]>;

#[inline(never)]
fn keep(number: usize) -> Block {
    black_box(Box::new([number as u64; 6]))
}
const KEEP: &str = "traps::threads::keep";

#[inline(never)]
fn give(number: usize) -> Block {
    black_box(Box::new([number as u64 + 1; 6]))
}
const GIVE: &str = "traps::threads::give";

fn small(body: impl FnOnce() -> Vec<Block> + Send + 'static) -> thread::JoinHandle<Vec<Block>> {
    thread::Builder::new().stack_size(128 << 10).spawn(body).unwrap()
}

/// Threads live for some microseconds, many at once, so that states are made, released and adopted all the time.
#[test]
fn case_40_ten_thousand_short_threads() {
    trap("threads::case_40_ten_thousand_short_threads", || {
        const ROUNDS: usize = 250;
        const AT_ONCE: usize = 40;
        let mut kept: Vec<Block> = Vec::new();
        for round in 1..=ROUNDS {
            let threads: Vec<_> = (0..AT_ONCE)
                .map(|number| {
                    small(move || {
                        let mut blocks: Vec<_> = (0..8).map(|at| keep(number + at)).collect();
                        blocks.truncate(2);
                        blocks
                    })
                })
                .collect();
            for thread in threads {
                kept.extend(thread.join().unwrap());
            }
            if round % 50 == 0 {
                let blocks = (round * AT_ONCE * 2) as u64;
                assert_eq!(of_function(KEEP), (48 * blocks, blocks));
            }
        }
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
        say(format_args!("{} threads, {} blocks", ROUNDS * AT_ONCE, ROUNDS * AT_ONCE * 8));
    });
}

/// Threads in a line: each frees the blocks of the thread before it, which may have ended.
#[test]
fn case_40_blocks_that_outlive_their_threads() {
    trap("threads::case_40_blocks_that_outlive_their_threads", || {
        const LINKS: usize = 400;
        const EACH: usize = 100;
        let (first, mut inbox) = mpsc::channel::<Block>();
        for number in 0..EACH {
            first.send(give(number)).unwrap();
        }
        drop(first);
        let mut ended = Vec::new();
        for link in 0..LINKS {
            let (send, next) = mpsc::channel();
            let before = std::mem::replace(&mut inbox, next);
            let thread = small(move || {
                let mut freed = 0;
                for block in before {
                    freed += 1;
                    drop(block);
                    send.send(give(link)).unwrap();
                }
                assert_eq!(freed, EACH);
                (0..3).map(keep).collect()
            });
            if link % 2 == 0 {
                ended.push(thread.join().unwrap());
            } else {
                ended.push(Vec::new());
                // This one may run while the next one already frees.
                drop(thread);
            }
        }
        let last: Vec<Block> = inbox.iter().collect();
        // The sender is dropped, so every link has sent all; threads that are not joined may still run.
        assert_eq!(of_function(GIVE), (48 * EACH as u64, EACH as u64));
        drop(last);
        assert_eq!(of_function(GIVE), (0, 0));
        let kept: usize = ended.iter().map(Vec::len).sum();
        assert_eq!(kept, LINKS / 2 * 3);
        // The others drop their blocks when they end.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while of_function(KEEP) != (48 * kept as u64, kept as u64) {
            assert!(std::time::Instant::now() < end, "{:?}", of_function(KEEP));
            thread::sleep(std::time::Duration::from_millis(5));
        }
        thread::spawn(move || drop(ended)).join().unwrap();
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
        say(format_args!("{LINKS} threads, {} blocks freed by another", LINKS * EACH));
    });
}
