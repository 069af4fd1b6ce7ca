//! Descriptors of heapgauge's threads → closed in a forked child, where these threads do not exist.
//!
//! An open listener would keep the address: it would accept connections that no thread answers, and could not be served
//! again. An open file would keep its lock. A descriptor is opened and noted, or forgotten and closed, inside the fork lock:
//! a fork never comes between the two, so what a child closes is heapgauge's.

use crate::record::fork;
#[cfg(unix)]
use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
#[cfg(unix)]
use std::os::fd::AsRawFd;
#[cfg(unix)]
use std::sync::atomic::{AtomicI32, Ordering};
#[cfg(feature = "http")]
use std::task::Poll;

/// Descriptors there may be at a time: more than a server has listeners and connections.
#[cfg(unix)]
const MOST: usize = 256;

/// Descriptors plus one, 0 where there is none. Relaxed: the fork lock orders them with a fork.
#[cfg(unix)]
static OPEN: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];

#[cfg(unix)]
thread_local! {
    /// Whether this is the thread of a server.
    static SERVES: Cell<bool> = const { Cell::new(false) };
}

/// Marks the calling thread as a server's: a child that it forks, in a signal handler, keeps the descriptors it is using.
#[cfg(feature = "http")]
pub(crate) fn serve_on_this_thread() {
    #[cfg(unix)]
    SERVES.set(true);
}

/// Closes the descriptors of the parent's threads, in a forked child.
#[cfg(unix)]
pub(crate) fn close_in_child() {
    if SERVES.try_with(Cell::get).unwrap_or(false) {
        return;
    }
    for place in &OPEN {
        let noted = place.swap(0, Ordering::Relaxed);
        if noted != 0 {
            // SAFETY: a descriptor that `ClosedInChild` of a missing thread owns: no code of this process uses it, or
            // closes it again. A fork does not come between its closing and its place in the table, see the module.
            unsafe { libc::close(noted - 1) };
        }
    }
}

/// Notes a descriptor in the table, and returns its place.
#[cfg(unix)]
fn note(descriptor: &impl AsRawFd) -> io::Result<usize> {
    let noted = descriptor.as_raw_fd() + 1;
    let is_free =
        |place: &AtomicI32| place.compare_exchange(0, noted, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    OPEN.iter().position(is_free).ok_or_else(|| io::Error::other("too many descriptors"))
}

/// A type with a descriptor, on systems that have them.
#[cfg(unix)]
pub(crate) trait Descriptor: AsRawFd {}
#[cfg(unix)]
impl<S: AsRawFd> Descriptor for S {}
#[cfg(not(unix))]
pub(crate) trait Descriptor {}
#[cfg(not(unix))]
impl<S> Descriptor for S {}

#[cfg(not(unix))]
fn note(_descriptor: &impl Descriptor) -> io::Result<usize> {
    Ok(0)
}

/// Gives a place back.
fn forget(_place: usize) {
    #[cfg(unix)]
    OPEN[_place].store(0, Ordering::Relaxed);
}

/// A descriptor that a forked child closes. Belongs to a thread of heapgauge's, which the child does not have.
#[derive(Debug)]
pub(crate) struct ClosedInChild<S: Descriptor> {
    descriptor: ManuallyDrop<S>,
    place: usize,
}

impl<S: Descriptor> ClosedInChild<S> {
    /// Opens a descriptor by `make`, which does not wait.
    pub(crate) fn new(make: impl FnOnce() -> io::Result<S>) -> io::Result<ClosedInChild<S>> {
        let _inside = fork::enter();
        ClosedInChild::noted(make()?)
    }

    /// Opens a descriptor by `make`, which may have none yet.
    #[cfg(feature = "http")]
    pub(crate) fn poll_new(make: impl FnOnce() -> Poll<io::Result<S>>) -> Poll<io::Result<ClosedInChild<S>>> {
        let _inside = fork::enter();
        make().map(|made| ClosedInChild::noted(made?))
    }

    /// Notes a descriptor that was opened inside the fork lock.
    fn noted(descriptor: S) -> io::Result<ClosedInChild<S>> {
        Ok(ClosedInChild { place: note(&descriptor)?, descriptor: ManuallyDrop::new(descriptor) })
    }

    /// Turns it into another type with the same descriptor; `turn` closes it if it fails, and does not wait.
    #[cfg(feature = "http")]
    pub(crate) fn try_map<T: Descriptor>(
        self,
        turn: impl FnOnce(S) -> io::Result<T>,
    ) -> io::Result<ClosedInChild<T>> {
        let _inside = fork::enter();
        forget(self.place);
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used again, nor dropped.
        let descriptor = unsafe { ManuallyDrop::take(&mut this.descriptor) };
        ClosedInChild::noted(turn(descriptor)?)
    }
}

impl<S: Descriptor> Drop for ClosedInChild<S> {
    fn drop(&mut self) {
        let _inside = fork::enter();
        forget(self.place);
        // SAFETY: it is dropped once, here: `try_map` keeps what it has taken from being dropped.
        unsafe { ManuallyDrop::drop(&mut self.descriptor) };
    }
}

impl<S: Descriptor> Deref for ClosedInChild<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.descriptor
    }
}

impl<S: Descriptor> DerefMut for ClosedInChild<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.descriptor
    }
}
