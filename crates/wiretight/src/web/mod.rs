//! HTTP/1.1 for the log, witnesses and monitors.
//!
//! - `client`: the client for logs, witnesses and webhooks
//! - `server`: the server that serves logs and witnesses

pub mod client;
pub mod server;
