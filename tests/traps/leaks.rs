//! Tells a leak from what turns over, in a process that does both: five minutes, fifteen times as fast.

use crate::{say, trap};
use heapgauge::{Collector, SiteRow};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KIB: usize = 1024;

type Block = Box<[u8]>;

/// Returns a block of this line's caller: one function a pattern, so that each is a site. Each fills it with a byte of its own: a release build would make
/// one function of those that are alike.
macro_rules! pattern {
    ($name:ident, $byte:literal) => {
        #[inline(never)]
        fn $name(bytes: usize) -> Block {
            black_box(vec![$byte; bytes].into_boxed_slice())
        }
    };
}

pattern!(leak, 1);
pattern!(churn, 2);
pattern!(cache, 3);
pattern!(sawtooth, 4);
pattern!(ring, 5);
pattern!(tables, 6);

const PATTERNS: [&str; 6] = ["leak", "churn", "cache", "sawtooth", "ring", "tables"];

/// Everything but the leak: what a program does that holds memory and turns it over.
#[derive(Default)]
struct Turnover {
    churned: Vec<Block>,
    cached: VecDeque<Block>,
    grown: Vec<Block>,
    slots: VecDeque<Block>,
    step: usize,
    entries: usize,
}

impl Turnover {
    /// Goes on for a fiftieth of a second.
    fn go_on(&mut self) {
        self.step += 1;
        // 10 MiB in two thirds of a second, all freed then.
        if self.step.is_multiple_of(33) {
            self.churned.clear();
        }
        self.churned.extend((0..20).map(|_| churn(16 * KIB)));
        // A full cache of entries of several sizes.
        while self.cached.len() < 400 || self.step.is_multiple_of(2) && self.cached.len() < 402 {
            self.entries += 1;
            self.cached.push_back(cache(KIB * (12 + self.entries % 9)));
        }
        self.cached.drain(..self.cached.len() - 400);
        // Grows for four and a half seconds, and begins anew.
        if self.step.is_multiple_of(225) {
            self.grown.clear();
        }
        self.grown.push(sawtooth(16 * KIB));
        while self.slots.len() < 150 {
            self.slots.push_back(ring(16 * KIB));
        }
        self.slots.pop_front();
    }
}

fn find<'a>(sites: &'a [SiteRow], name: &str) -> Option<&'a SiteRow> {
    let function = format!("traps::leaks::{name}");
    sites.iter().find(|site| site.function() == function)
}

#[test]
fn a_leak_is_told_from_what_turns_over() {
    trap("leaks::a_leak_is_told_from_what_turns_over", || {
        let collector = Collector::builder().old_age(Duration::from_secs(1)).build().unwrap();
        let over = AtomicBool::new(false);
        let report = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let kept: Vec<Block> = (0..100).map(|_| tables(40 * KIB)).collect();
                let (mut leaked, mut turnover) = (Vec::new(), Turnover::default());
                while !over.load(Ordering::Relaxed) {
                    turnover.go_on();
                    // 15 KiB a second.
                    leaked.extend((turnover.step % 2 == 0).then(|| leak(600)));
                    std::thread::sleep(Duration::from_millis(20));
                }
                (kept, leaked, turnover)
            });
            // A look a second: twenty once all have names, which takes longer where the machine is busy.
            let (mut report, mut looks) = (collector.collect(), 0);
            while looks < 20 {
                std::thread::sleep(Duration::from_millis(1_020));
                report = collector.collect();
                let are_named = || PATTERNS.iter().all(|name| find(&report.sites, name).is_some());
                looks += u32::from(looks > 0 || are_named());
            }
            over.store(true, Ordering::Relaxed);
            drop(worker.join().unwrap());
            report
        });
        let rows =
            PATTERNS.map(|name| find(&report.sites, name).unwrap_or_else(|| panic!("{name}: {report:?}")));
        let scores = rows.map(|row| row.leak_score.unwrap_or_else(|| panic!("{row:?}")));
        say(format_args!("scores of {PATTERNS:?} after twenty looks: {scores:.3?}"));
        assert!(scores[0] > 0.9 && scores[1..].iter().all(|&score| score < 0.1), "{scores:?} {report:?}");
        let named = report.leak.as_ref().unwrap();
        assert_eq!(named.site(), rows[0].site(), "{named}");
        say(format_args!("leak: {named}"));
        let tables = rows[5];
        assert_eq!((tables.old.lower_bytes, tables.old.upper_bytes), (4_096_000, 4_096_000));
        let old = rows[0].old;
        assert!(old.lower_bytes > 100_000 && old.lower_bytes < rows[0].live.now.bytes, "{:?}", rows[0]);
        assert!(rows[1].allocated_bytes > 100 << 20, "{:?}", rows[1]);
    });
}
