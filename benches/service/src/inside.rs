//! Answers requests without a network.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::json;
use tower::ServiceExt;

/// Answers the first requests of the mix, by one copy of the service after the other if there are any, and returns the CPU of
/// all as JSON.
pub async fn answer(router: Router, requests: u64, copies: Option<u64>) -> serde_json::Value {
    let before = crate::usage::now();
    let mut bytes = 0;
    for number in 0..requests {
        let mut asked = crate::requests::request(number);
        if let Some(copies) = copies {
            asked.path = format!("/{}{}", number % copies, asked.path);
        }
        let mut request =
            Request::builder().method(asked.method).uri(&asked.path).header("host", "shop.example");
        if asked.is_gzip {
            request = request.header("accept-encoding", "gzip");
        }
        if !asked.body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Body::from(asked.body)).expect("a request of the mix is one");
        let response = router.clone().oneshot(request).await.expect("the router answers everything");
        assert!(response.status().is_success(), "{} {}: {}", asked.method, asked.path, response.status());
        bytes += to_bytes(response.into_body(), usize::MAX).await.expect("a body in memory").len();
    }
    json!({ "before": before, "after": crate::usage::now(), "requests": requests, "bytes": bytes })
}
