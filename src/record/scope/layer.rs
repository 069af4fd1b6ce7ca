//! A [`tower`](https://docs.rs/tower) layer that puts each request of a service into a scope.
//!
//! ```
//! use axum::extract::{MatchedPath, Request};
//! use axum::{Router, routing::get};
//! use heapgauge::{Scope, scope::ScopeLayer};
//!
//! fn of_route(request: &Request) -> Scope {
//!     let path = request.extensions().get::<MatchedPath>();
//!     Scope::new("route", path.map_or("[unmatched]", MatchedPath::as_str))
//! }
//!
//! let router: Router = Router::new()
//!     .route("/orders/{id}", get(|| async { "an order" }))
//!     .layer(ScopeLayer::new(of_route));
//! ```
//!
//! Take a value with few possibilities, as the pattern of a route: a path with the number of an order in it would be a
//! value of its own for each order, and appear in metrics.
//!
//! # Inside and outside
//!
//! In the scope are the call of the service and each poll of its future: the handler, its extractors, which read the body of the
//! request, and layers that were added before this one. Not in it are tasks that the handler spawns, unless by
//! [`in_current_scope`](crate::ScopeFutureExt::in_current_scope), the buffers of the connection, and the *pieces of a streamed
//! body*: the server asks for those after the future has ended. The page [`scopes`](crate::docs::scopes) has code for such bodies.

use crate::record::scope::Scope;
use crate::record::scope::future::{InScope, ScopeFutureExt};
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// Layer that puts each request into the scope that a function finds for it.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{Scope, scope::ScopeLayer};
/// use std::convert::Infallible;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main]
/// # async fn main() {
/// let echo = service_fn(|_: String| async { Ok::<_, Infallible>(format!("{:?}", Scope::current())) });
/// let service = ScopeLayer::new(|tenant: &String| Scope::new("tenant", tenant)).layer(echo);
/// assert_eq!(service.oneshot("acme".to_owned()).await.unwrap(), r#"Scope { tenant: "acme" }"#);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ScopeLayer<M> {
    scope_of: M,
}

impl<M> ScopeLayer<M> {
    /// Makes a layer from a function from a request to its scope, `Fn(&Request) -> Scope`. A closure names the type of its
    /// argument.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{Scope, scope::ScopeLayer};
    ///
    /// // One scope for everything behind it.
    /// let all = Scope::new("listener", "admin");
    /// let layer = ScopeLayer::new(move |_: &axum::extract::Request| all.clone());
    /// let router: axum::Router = axum::Router::new().layer(layer);
    /// ```
    pub fn new(scope_of: M) -> ScopeLayer<M> {
        ScopeLayer { scope_of }
    }
}

impl<S, M: Clone> Layer<S> for ScopeLayer<M> {
    type Service = ScopeService<S, M>;

    fn layer(&self, service: S) -> ScopeService<S, M> {
        ScopeService { service, scope_of: self.scope_of.clone() }
    }
}

/// Service of a [`ScopeLayer`].
#[derive(Clone, Copy, Debug)]
pub struct ScopeService<S, M> {
    service: S,
    scope_of: M,
}

impl<R, S: Service<R>, M: Fn(&R) -> Scope> Service<R> for ScopeService<S, M> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = InScope<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> InScope<S::Future> {
        let scope = (self.scope_of)(&request);
        // Services allocate in the call as well: axum puts the handler's future into a box there.
        let future = scope.in_scope(|| self.service.call(request));
        future.in_scope(scope)
    }
}
