//! HTTP/1.1 for the log, its witnesses and its monitors.
//!
//! - `client`: reaches other logs, witnesses and webhooks
//! - `server`: what a log and a witness have in common towards a network

pub mod client;
pub mod server;
