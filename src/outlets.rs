//! Outlets.
#![forbid(unsafe_code)]

#[cfg(feature = "opentelemetry")]
pub use crate::emit::opentelemetry;
#[cfg(feature = "prometheus-client")]
pub use crate::emit::prometheus_client;
#[cfg(feature = "prometheus")]
pub use crate::emit::{Facade, Reporter, metrics, render_with};
