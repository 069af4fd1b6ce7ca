//! Takes scopes from the spans of `tracing`: blocks that are allocated inside a span with the field `tenant` belong to that
//! tenant. Prints bytes and blocks of each.
//!
//! A program that has such spans needs the layer `TenantScopes` and nothing else.

use std::cell::RefCell;
use std::fmt::Debug;

use heapgauge::{GroupBy, Scope, ScopeGuard, Snapshot};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

thread_local! {
    /// Spans that this thread is in and that have a scope.
    static ENTERED: RefCell<Vec<(Id, ScopeGuard<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// Layer that enters a scope with each span that has the field `tenant`.
struct TenantScopes;

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TenantScopes {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut tenant = Tenant(None);
        attributes.record(&mut tenant);
        if let (Some(tenant), Some(span)) = (tenant.0, context.span(id)) {
            span.extensions_mut().insert(Scope::new("tenant", tenant));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let scope = context.span(id).and_then(|span| span.extensions().get::<Scope>().cloned());
        if let Some(scope) = scope {
            ENTERED.with_borrow_mut(|entered| {
                entered.reserve(1); // not inside the scope
                entered.push((id.clone(), scope.entered()));
            });
        }
    }

    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        // Spans may be left in any order.
        ENTERED.with_borrow_mut(|entered| {
            if let Some(at) = entered.iter().rposition(|(of, _)| of == id) {
                drop(entered.remove(at));
            }
        });
    }
}

/// Value of the field `tenant`.
struct Tenant(Option<String>);

impl Visit for Tenant {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "tenant" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "tenant" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

#[tracing::instrument]
async fn serve(tenant: &'static str) -> Vec<u8> {
    // The span is left here, and entered again after it.
    tokio::task::yield_now().await;
    vec![0; 1_000] // kept by the caller
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::registry().with(TenantScopes).try_init()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let kept = runtime.block_on(async {
        let tenant = |request| if request % 10 == 0 { "initech" } else { "acme" };
        let requests: Vec<_> = (0..1_000).map(|request| tokio::spawn(serve(tenant(request)))).collect();
        let mut kept = Vec::new();
        for request in requests {
            kept.push(request.await?);
        }
        Ok::<_, tokio::task::JoinError>(kept)
    })?;
    for row in Snapshot::take()?.statistics(GroupBy::Scope) {
        println!("{row}");
    }
    drop(kept);
    Ok(())
}
