//! The service: a shop's orders in memory and in SQLite.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tower_http::compression::CompressionLayer;
use tower_http::trace::TraceLayer;

#[derive(Clone, Serialize, Deserialize)]
pub struct Item {
    sku: String,
    count: u32,
    price: f64,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Order {
    #[serde(default)]
    id: u64,
    customer: String,
    city: String,
    items: Vec<Item>,
    #[serde(default)]
    notes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Search {
    customer: String,
    sort: Option<String>,
}

#[derive(Serialize)]
struct Found {
    customer: String,
    total: f64,
    orders: Vec<Order>,
}

#[derive(Serialize)]
struct Row {
    id: u64,
    customer: String,
    city: String,
    items: usize,
    total: String,
}

/// Orders that are kept; the oldest goes when another comes.
const KEPT: usize = 20_000;

struct Shop {
    orders: BTreeMap<u64, Order>,
    by_customer: HashMap<String, VecDeque<u64>>,
    recent: VecDeque<u64>,
    next: u64,
    /// Answers of searches until the customer's next order.
    found: LruCache<String, Arc<str>>,
}

struct Service {
    shop: Mutex<Shop>,
    database: Mutex<rusqlite::Connection>,
    pages: minijinja::Environment<'static>,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
}

const PAGE: &str = r#"<!doctype html>
<html><head><title>{{ title }}</title></head><body><h1>{{ title }}</h1>
<table>{% for row in rows %}
<tr class="{{ loop.cycle('odd', 'even') }}"><td>{{ row.id }}</td><td>{{ row.customer|title }}</td><td>{{ row.city }}</td>
<td>{{ row.items }}</td><td>{{ row.total }}</td></tr>{% endfor %}
</table></body></html>"#;

const TABLE: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total REAL);
    CREATE INDEX by_customer ON orders (customer)";

/// Returns the scope of a request: its route.
#[cfg(feature = "heapgauge-scopes")]
fn route_of(request: &Request) -> heapgauge::Scope {
    let path = request.extensions().get::<axum::extract::MatchedPath>();
    heapgauge::Scope::new("route", path.map_or("other", axum::extract::MatchedPath::as_str))
}

/// Returns the service.
pub fn router() -> Router {
    finish(routes::<0>())
}

/// Copies of the five routes in [`fifty_routes`].
pub const COPIES: u64 = 10;

/// Returns a service of fifty routes, at `/0` to `/9`: ten times the five, each with handlers of its own.
pub fn fifty_routes() -> Router {
    let copies: [fn() -> Router<Arc<Service>>; COPIES as usize] = [
        routes::<0>,
        routes::<1>,
        routes::<2>,
        routes::<3>,
        routes::<4>,
        routes::<5>,
        routes::<6>,
        routes::<7>,
        routes::<8>,
        routes::<9>,
    ];
    let nest = |router: Router<Arc<Service>>, (copy, routes): (usize, &fn() -> Router<Arc<Service>>)| {
        router.nest(&format!("/{copy}"), routes())
    };
    finish(copies.iter().enumerate().fold(Router::new(), nest))
}

/// Returns the routes of the service, with handlers of this copy's own.
fn routes<const COPY: usize>() -> Router<Arc<Service>> {
    // Handlers alone are in a scope.
    #[cfg(feature = "heapgauge-scopes")]
    let scopes = heapgauge::scope::ScopeLayer::new(route_of);
    #[cfg(not(feature = "heapgauge-scopes"))]
    let scopes = tower::layer::util::Identity::new();
    Router::new()
        .route("/orders", post(add::<COPY>))
        .route("/orders/{id}", get(one::<COPY>))
        .route("/search", get(search::<COPY>))
        .route("/recent", get(recent::<COPY>))
        .route("/spent/{customer}", get(spent::<COPY>))
        .layer((CompressionLayer::new(), scopes))
        .layer(from_fn(measured))
        .layer(TraceLayer::new_for_http())
}

/// Adds state and the routes that the harness reads.
fn finish(router: Router<Arc<Service>>) -> Router {
    // Logs are formatted and thrown away, so that no disk is measured.
    let _ = tracing_subscriber::fmt().with_writer(std::io::sink).with_ansi(false).try_init();
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _ = metrics::set_global_recorder(recorder);
    let database = rusqlite::Connection::open_in_memory().expect("a database in memory");
    database.execute_batch(TABLE).expect("a fresh database takes a table");
    let mut pages = minijinja::Environment::new();
    pages.add_template("recent", PAGE).expect("the template is right");
    let shop = Shop {
        orders: BTreeMap::new(),
        by_customer: HashMap::new(),
        recent: VecDeque::new(),
        next: 1,
        found: LruCache::new(NonZeroUsize::new(500).expect("not zero")),
    };
    let service = Service { shop: Mutex::new(shop), database: Mutex::new(database), pages, metrics };
    let router = router
        .route("/metrics", get(async |State(service): State<Arc<Service>>| service.metrics.render()))
        .route("/usage", get(async || Json(crate::usage::now())))
        .with_state(Arc::new(service));
    #[cfg(feature = "heapgauge-scraped")]
    let router = router.nest("/heap", heapgauge::http::router(&heapgauge::Collector::new()));
    router
}

/// Counts each request and its time, by method, path and status.
async fn measured(request: Request, next: Next) -> Response {
    let method = request.method().to_string();
    let path = request
        .extensions()
        .get::<axum::extract::MatchedPath>()
        .map_or_else(|| "other".to_string(), |path| path.as_str().to_string());
    let begin = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!("requests_total", "method" => method, "path" => path.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("request_seconds", "path" => path).record(begin.elapsed().as_secs_f64());
    response
}

/// Keeps the code of the copies of a handler apart: a compiler takes one for all that are alike.
#[inline(always)]
fn copy_of<const COPY: usize>() {
    std::hint::black_box(COPY);
}

fn total(order: &Order) -> f64 {
    order.items.iter().map(|item| item.price * f64::from(item.count)).sum()
}

#[tracing::instrument(skip_all, fields(customer = %order.customer))]
async fn add<const COPY: usize>(
    State(service): State<Arc<Service>>,
    Json(mut order): Json<Order>,
) -> Result<Response, (StatusCode, String)> {
    copy_of::<COPY>();
    if order.items.is_empty() {
        return Err((
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("an order of {} has no items", order.customer),
        ));
    }
    let total = total(&order);
    {
        let mut shop = service.shop.lock();
        order.id = shop.next;
        shop.next += 1;
        shop.found.pop(&order.customer);
        shop.by_customer.entry(order.customer.clone()).or_default().push_back(order.id);
        shop.recent.push_back(order.id);
        shop.orders.insert(order.id, order.clone());
        if shop.recent.len() > KEPT
            && let Some(oldest) = shop.recent.pop_front()
            && let Some(gone) = shop.orders.remove(&oldest)
            && let Some(ids) = shop.by_customer.get_mut(&gone.customer)
        {
            ids.pop_front();
        }
    }
    service
        .database
        .lock()
        .prepare_cached("INSERT INTO orders VALUES (?1, ?2, ?3)")
        .and_then(|mut insert| insert.execute((order.id as i64, &order.customer, total)))
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    tracing::info!(id = order.id, items = order.items.len(), total, "added");
    Ok((StatusCode::CREATED, [("location", format!("/orders/{}", order.id))], Json(order)).into_response())
}

#[tracing::instrument(skip(service))]
async fn one<const COPY: usize>(
    State(service): State<Arc<Service>>,
    Path(id): Path<u64>,
) -> Result<Json<Order>, StatusCode> {
    copy_of::<COPY>();
    let order = service.shop.lock().orders.get(&id).cloned();
    order.map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn search<const COPY: usize>(
    State(service): State<Arc<Service>>,
    Query(search): Query<Search>,
) -> Response {
    copy_of::<COPY>();
    let mut shop = service.shop.lock();
    let known = shop.found.get(&search.customer).cloned();
    // The cache holds answers in the usual order.
    let text = match known.filter(|_| search.sort.is_none()) {
        Some(text) => text,
        None => {
            let ids = shop.by_customer.get(&search.customer).cloned().unwrap_or_default();
            let mut orders: Vec<Order> =
                ids.iter().rev().take(5).filter_map(|id| shop.orders.get(id).cloned()).collect();
            if search.sort.as_deref() == Some("total") {
                orders.sort_by(|a, b| total(a).total_cmp(&total(b)));
            }
            let found =
                Found { customer: search.customer.clone(), total: orders.iter().map(total).sum(), orders };
            let text: Arc<str> =
                serde_json::to_string(&found).expect("an answer can be written as JSON").into();
            shop.found.put(search.customer, text.clone());
            text
        }
    };
    ([("content-type", "application/json")], text.to_string()).into_response()
}

async fn recent<const COPY: usize>(
    State(service): State<Arc<Service>>,
) -> Result<Html<String>, (StatusCode, String)> {
    copy_of::<COPY>();
    let rows: Vec<Row> = {
        let shop = service.shop.lock();
        let newest = shop.recent.iter().rev().take(15).filter_map(|id| shop.orders.get(id));
        newest
            .map(|order| Row {
                id: order.id,
                customer: order.customer.clone(),
                city: order.city.clone(),
                items: order.items.len(),
                total: format!("{:.2}", total(order)),
            })
            .collect()
    };
    let page = service.pages.get_template("recent");
    page.and_then(|page| page.render(minijinja::context! { title => "Recent orders", rows => rows }))
        .map(Html)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[tracing::instrument(skip(service))]
async fn spent<const COPY: usize>(
    State(service): State<Arc<Service>>,
    Path(customer): Path<String>,
) -> Result<Json<serde_json::Value>, (StatusCode, String)> {
    copy_of::<COPY>();
    let database = service.database.lock();
    let row = database
        .prepare_cached("SELECT count(*), coalesce(sum(total), 0) FROM orders WHERE customer = ?1")
        .and_then(|mut sum| {
            sum.query_row([&customer], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, f64>(1)?)))
        });
    let (orders, spent) = row.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(serde_json::json!({ "customer": customer, "orders": orders, "spent": spent, "currency": "EUR" })))
}
