//! Report → bytes or gauges: text formats, recorders and meters, the HTTP paths, and the server.
#![forbid(unsafe_code)]

pub mod dump;
pub mod emit;
#[cfg(feature = "http")]
pub mod http;
// Each feature reads other values.
#[cfg_attr(not(feature = "http"), allow(dead_code))]
pub(crate) mod input;
#[cfg(feature = "http")]
pub(crate) mod server;
#[cfg_attr(not(feature = "prometheus"), allow(dead_code))]
pub(crate) mod short_life;
