//! Events of a thread in each of its states, and the peak that they publish.

use super::Resized;
use super::alloc::{record_alloc, record_unattributed_shared, refresh_and_record, try_fast};
use super::free::record_free;
use super::realloc::{record_realloc, record_resized, resize_suspended, try_fast_realloc};
use crate::record::bounded_wait::LONGEST;
use crate::record::count::counters::CHUNK;
use crate::record::dropped::{self, Reason};
use crate::record::epoch::{self, Config, DEFAULT_FRAMES};
use crate::record::fork;
use crate::record::stack_id::table;
use crate::record::tag::{self, SMALL, UNTRACKED};
use crate::record::thread::{self, PAUSED, Suspension};
use crate::record::unwind::Entrance;
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const CONFIG: Config = Config {
    frames: DEFAULT_FRAMES as u8,
    start_disabled: false,
    sample_every: 0,
    exact_from: 0,
    reclaims: true,
    is_global: false,
};

/// Begins an epoch and serialises the tests, which share its counters.
fn started() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    crate::record::startup::ensure();
    epoch::start();
    guard
}

fn peak() -> u64 {
    epoch::peak(|| thread::unpublished_bytes(epoch::base()))
}

/// A tag that the program has written over may hold anything. Here it is freed by a thread without a state.
#[test]
fn a_tag_of_ones_belongs_to_no_thread() {
    let _one = started();
    let freed = std::thread::spawn(|| {
        record_free(u32::MAX.into(), 16);
        (thread::current().is_none(), thread::hot_state().unsampled.read_freed())
    });
    assert_eq!(freed.join().unwrap(), (true, (0, 0)));
    epoch::stop();
}

/// Records a small block as the allocator's methods do, and returns its tag.
fn allocated(size: usize) -> u32 {
    let mut block = [0u8; SMALL + 4];
    // SAFETY: room for the block and its tag.
    unsafe {
        let block = match try_fast(size) {
            Some(id) => return id,
            None => record_alloc(block.as_mut_ptr(), size, thread::hot_state(), &CONFIG, Entrance::Allocate),
        };
        tag::read(block, size)
    }
}

#[test]
fn every_change_ends_the_fast_path_at_the_next_block() {
    let _one = started();
    let unsampled = || thread::current().unwrap().hot.unsampled.id() as u32;
    epoch::set_sample_interval(1 << 30);
    allocated(16);
    assert_eq!((try_fast(16), try_fast(16)), (Some(unsampled()), Some(unsampled())));
    // Each of these is seen by the very next block; and the one after it passes again, or does not.
    let changes: [(fn(), bool); 5] = [
        (epoch::clear, true),
        (|| epoch::set_sample_interval(1 << 29), true),
        (|| drop(Suspension::new(PAUSED)), true),
        (|| epoch::set_sample_interval(0), false),
        (epoch::stop, false),
    ];
    for (number, (change, passes)) in changes.into_iter().enumerate() {
        change();
        assert_eq!(try_fast(16), None, "{number}");
        allocated(16);
        assert_eq!(try_fast(16).is_some(), passes, "{number}");
    }
    epoch::start();
    epoch::set_sample_interval(1 << 30);
    let suspension = Suspension::new(PAUSED);
    assert_eq!((allocated(16), try_fast(16)), (UNTRACKED, None));
    drop(suspension);
    // A budget would be granted anew: a block that could have been sampled changes its size.
    let id = allocated(16);
    let suspension = Suspension::new(PAUSED);
    assert_eq!((resize_suspended(id, 16, 32), try_fast(16)), (id, None));
    drop(suspension);
    epoch::set_sample_interval(0);
    epoch::stop();
}

/// A resize of a block of that epoch, like its free, must not make counters: no reader would ever look at them.
#[test]
fn a_suspended_thread_counts_nothing_of_an_epoch_that_is_over() {
    let _one = started();
    allocated(16);
    // Ids of a chunk that this thread has no counters for.
    let id = epoch::next_ids(64).unwrap();
    epoch::clear();
    let _suspension = Suspension::new(PAUSED);
    assert_eq!(resize_suspended(id, 16, 32), id);
    assert!(thread::current().unwrap().counters.chunk(id as usize / CHUNK).is_none());
    epoch::stop();
}

/// The thread that was about to revoke it is not in the child.
#[cfg(all(unix, not(miri)))]
#[test]
fn a_forked_child_revokes_every_budget() {
    let _one = started();
    epoch::set_sample_interval(1 << 30);
    allocated(16);
    assert!(try_fast(16).is_some());
    // SAFETY: the child makes no call that takes a lock or allocates.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let passes = try_fast(16).is_some();
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(passes)) };
    }
    let mut status = -1;
    // SAFETY: a place to write to.
    assert_eq!((child > 0, unsafe { libc::waitpid(child, &raw mut status, 0) }), (true, child));
    assert_eq!(status, 0, "a block passed");
    assert!(try_fast(16).is_some());
    epoch::set_sample_interval(0);
    epoch::stop();
}

#[test]
fn the_peak_is_told_of_blocks_that_shrink() {
    let _one = started();
    epoch::set_sample_interval(1 << 30);
    let tags: Vec<u32> = (0..200).map(|_| allocated(1_000)).collect();
    let mut block = [0u8; SMALL + 4];
    let told = tags.into_iter().filter(|&id| {
        let is_due = try_fast_realloc(id, 1_000, 1).is_none();
        if is_due {
            // SAFETY: room for a block of one byte and its tag.
            unsafe { record_realloc(block.as_mut_ptr(), id, 1_000, 1, &CONFIG) };
        }
        is_due
    });
    // Every 64 KiB.
    assert!(told.count() >= 2);
    epoch::set_sample_interval(0);
    epoch::stop();
}

#[test]
fn the_peak_is_told_of_what_is_lost() {
    let _one = started();
    epoch::clear();
    let id = record_unattributed_shared(1 << 20, Resized::NONE);
    assert!(peak() >= 1 << 20);
    record_free(id.into(), 1 << 20);
    epoch::stop();
}

#[test]
fn what_was_forgotten_does_not_raise_the_peak_when_it_grows() {
    let _one = started();
    let mut block = vec![0u8; 1 << 20];
    // SAFETY: a block of this size that no other code tags.
    let id = unsafe {
        tag::read(
            record_alloc(block.as_mut_ptr(), block.len(), thread::hot_state(), &CONFIG, Entrance::Allocate),
            block.len(),
        )
    };
    assert!(peak() >= 1 << 20);
    epoch::clear();
    let suspension = Suspension::new(PAUSED);
    for _ in 0..10 {
        // SAFETY: as above.
        let now = unsafe { record_realloc(block.as_mut_ptr(), id, block.len(), block.len(), &CONFIG) };
        // SAFETY: as above.
        assert_eq!(unsafe { tag::read(now, block.len()) }, id);
    }
    drop(suspension);
    assert_eq!(peak(), 0);
    epoch::stop();
}

/// A function of an event that the decision table leaves out, or a name in it that no function has any more.
#[test]
fn the_decision_table_names_each_function() {
    let table: String = include_str!("mod.rs").lines().take_while(|line| line.starts_with("//!")).collect();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let in_table: Vec<&str> = table.split(|c| !is_name(c)).collect();
    for source in [
        include_str!("alloc.rs"),
        include_str!("free.rs"),
        include_str!("realloc.rs"),
        include_str!("sampled.rs"),
        include_str!("write_tag.rs"),
    ] {
        for (at, _) in source.match_indices("fn ").filter(|(at, _)| !source[..*at].ends_with('_')) {
            let name = source[at + 3..].split(|c| !is_name(c)).next().unwrap();
            let is_function = source[at + 3 + name.len()..].starts_with('(');
            assert!(!is_function || in_table.contains(&name), "{name} is not in the table");
        }
    }
    let sources = [
        include_str!("mod.rs"),
        include_str!("alloc.rs"),
        include_str!("free.rs"),
        include_str!("realloc.rs"),
        include_str!("sampled.rs"),
        include_str!("write_tag.rs"),
    ];
    for name in in_table.into_iter().filter(|name| name.starts_with("record_") || name.starts_with("count_"))
    {
        assert!(sources.iter().any(|source| source.contains(&format!("fn {name}("))), "no function {name}");
    }
}

/// Allocates a block on two stacks that are new in this epoch, in a thread of its own, and returns its ids and how long
/// they took. Ends the test run where the thread does not end.
fn on_new_stacks() -> ([u32; 2], Duration) {
    epoch::clear();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let begin = Instant::now();
        let ids = [(); 2].map(|()| allocated(16));
        let _ = tell.send((ids, begin.elapsed()));
    });
    told.recv_timeout(Duration::from_secs(30)).expect("a new stack waits for a lock without end")
}

/// A fork waits for a lock of the C library, which a thread holds that meets a new stack in a signal handler: both waited
/// for ever.
#[test]
fn a_new_stack_does_not_wait_for_a_fork_without_end() {
    let _one = started();
    let (forks, forking) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let fork = std::thread::spawn(move || {
        fork::close();
        forks.send(()).unwrap();
        let _ = ended.recv();
        fork::open();
    });
    forking.recv().unwrap();
    let before = dropped::events(Reason::Reentrant);
    let (ids, time) = on_new_stacks();
    assert_eq!(ids, [epoch::base(); 2], "[unrecorded]");
    assert!(dropped::events(Reason::Reentrant) >= before + 2);
    // The second block of that fork did not wait again.
    assert!(time < 2 * LONGEST, "{time:?}");
    drop(end);
    fork.join().unwrap();
    assert!(on_new_stacks().0.iter().all(|id| *id > epoch::base()), "after the fork");
    epoch::stop();
}

/// A thread that has left the map of stacks by a jump out of a signal handler holds its locks for ever. Here it is one
/// that waits, inside the fork lock, too.
#[test]
fn a_lock_of_the_map_that_stays_locked_loses_no_stack_and_stops_neither_events_nor_forks() {
    let _one = started();
    let (forks, locked) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let state = thread::current_or_make().unwrap();
        let _interning = state.enter(thread::BUSY | thread::INTERNING);
        table::lock_all_while(|| {
            forks.send(()).unwrap();
            let _ = ended.recv();
        });
    });
    locked.recv().unwrap();
    let before = dropped::events(Reason::Reentrant);
    // Ids apart from the map.
    assert!(on_new_stacks().0.iter().all(|id| *id > epoch::base()), "[unrecorded]");
    assert_eq!(dropped::events(Reason::Reentrant), before);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        fork::close();
        fork::open();
        let _ = tell.send(());
    });
    told.recv_timeout(Duration::from_secs(30)).expect("a fork waits for a thread that does not come back");
    drop(end);
    holder.join().unwrap();
    assert!(on_new_stacks().0.iter().all(|id| *id > epoch::base()), "afterwards");
    epoch::stop();
}

/// The old bytes were taken off the sum of an epoch that never had them.
#[test]
fn a_block_resized_across_a_clear_is_in_the_next_epoch_at_its_new_size() {
    let _one = started();
    epoch::clear();
    let before_a_clear = || {
        let resized = Resized::new(allocated(1_000), 1_000);
        assert_eq!(resized.bytes_in(epoch::base()), 1_000);
        epoch::clear();
        thread::revoke_unpublished();
        resized
    };
    // In a thread without a state, and in one with it.
    record_unattributed_shared(600, before_a_clear());
    assert_eq!(peak(), 600);
    let state = thread::current().unwrap();
    let resized = before_a_clear();
    record_resized(state, resized, |registers| {
        refresh_and_record(state, registers, 600, resized.bytes, None)
    });
    assert_eq!(peak(), 600);
    epoch::stop();
}
