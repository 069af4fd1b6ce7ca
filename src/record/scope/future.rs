//! A future → the same future in a scope: entered before each poll, left after it, on whatever thread.
//!
//! A poll touches nothing that threads share: the future holds its scope, and the combination that the scope makes over the one
//! around it, which is interned again only where that one has changed.

use crate::record::scope::Scope;
use crate::record::scope::id::ScopeId;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Puts futures into scopes: blocks that a poll allocates belong to the scope, on whatever thread it runs.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{Scope, ScopeFutureExt};
///
/// # #[tokio::main]
/// # async fn main() {
/// let load = async {
///     tokio::task::yield_now().await; // perhaps on another thread from here on
///     format!("{:?}", Scope::current())
/// };
/// let seen = tokio::spawn(load.in_scope(Scope::new("tenant", "acme"))).await.unwrap();
/// assert_eq!(seen, r#"Scope { tenant: "acme" }"#);
/// # }
/// ```
pub trait ScopeFutureExt: Future + Sized {
    /// Enters a scope before each poll, and leaves it after the poll, also where that panics.
    ///
    /// The memory of the future itself does not belong to the scope, nor do blocks that its destructor allocates. A scope around the
    /// poll keeps its other keys, as with [`Scope::enter`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{Scope, ScopeFutureExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let lines = async { "one\ntwo".lines().count() };
    /// assert_eq!(lines.in_scope(Scope::new("job", "count")).await, 2);
    /// # }
    /// ```
    fn in_scope(self, scope: Scope) -> InScope<Self> {
        InScope { future: self, scope, combined: None }
    }

    /// Enters at each poll the scope that this thread is in now: for a future that is spawned.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{Scope, ScopeFutureExt};
    ///
    /// async fn seen() -> String {
    ///     format!("{:?}", Scope::current())
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let request = async {
    ///     let outside = tokio::spawn(seen()).await.unwrap();
    ///     let inside = tokio::spawn(seen().in_current_scope()).await.unwrap();
    ///     (outside, inside)
    /// };
    /// let (outside, inside) = request.in_scope(Scope::new("route", "/search")).await;
    /// assert_eq!((&*outside, &*inside), ("Scope {}", r#"Scope { route: "/search" }"#));
    /// # }
    /// ```
    fn in_current_scope(self) -> InScope<Self> {
        self.in_scope(Scope::current())
    }
}

impl<F: Future> ScopeFutureExt for F {}

/// Future of [`ScopeFutureExt::in_scope`]: each poll of the inner future is in the scope.
///
/// # Examples
///
/// ```
/// use heapgauge::{InScope, Scope, ScopeFutureExt};
///
/// // A task that a program keeps.
/// struct Job<F> {
///     work: InScope<F>,
/// }
///
/// let job = Job { work: async { "done" }.in_scope(Scope::new("job", "reindex")) };
/// # drop(job.work);
/// ```
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct InScope<F> {
    future: F,
    scope: Scope,
    /// Combination around the last poll that was inside one, and its union with the scope. An id is never used again, so it is
    /// compared without a hold.
    combined: Option<(ScopeId, Scope)>,
}

impl<F: Future> Future for InScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is never moved out of a pinned value, which has no `Drop` of its own and is `Unpin` only where
        // `future` is.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: as above; it is pinned as long as `self` is.
        let future = unsafe { Pin::new_unchecked(&mut this.future) };
        let _entered = this.scope.enter_combined(combined(&this.scope, &mut this.combined));
        future.poll(context)
    }
}

/// Returns the combination that a scope makes over the thread's present one.
fn combined<'a>(scope: &'a Scope, kept: &'a mut Option<(ScopeId, Scope)>) -> &'a Scope {
    let outer = Scope::current_id();
    if outer == ScopeId::NONE {
        return scope;
    }
    if kept.as_ref().is_none_or(|(of, _)| *of != outer) {
        *kept = Some((outer, scope.combined_with_current()));
    }
    kept.as_ref().map_or(scope, |(_, combined)| combined)
}
