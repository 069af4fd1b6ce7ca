//! Requests for a dump, from the threads that serve HTTP to the one that dumps.

use std::sync::mpsc::Sender;
#[cfg(feature = "http")]
use std::sync::mpsc::{Receiver, channel};

use crate::record::fork::mutex::ForkMutex;
#[cfg(feature = "http")]
use crate::record::watermark;

/// Answer to a request: the name of the dump, or the line about the problem.
pub(super) type Answer = Result<String, String>;

static WAITING: ForkMutex<Vec<Sender<Answer>>> = ForkMutex::new(Vec::new());

/// Asks for a dump. The answer comes some milliseconds later.
#[cfg(feature = "http")]
pub(crate) fn ask() -> Receiver<Answer> {
    let (sender, receiver) = channel();
    WAITING.lock().push(sender);
    watermark::wake();
    receiver
}

/// Takes all requests.
pub(super) fn take() -> Vec<Sender<Answer>> {
    std::mem::take(&mut *WAITING.lock())
}
