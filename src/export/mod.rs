//! Report → bytes or gauges: text formats, recorders and meters, the HTTP paths, and the server.
#![forbid(unsafe_code)]

pub mod emit;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "http")]
pub(crate) mod input;
#[cfg(feature = "http")]
pub(crate) mod server;
#[cfg(feature = "prometheus")]
pub(crate) mod short_life;
