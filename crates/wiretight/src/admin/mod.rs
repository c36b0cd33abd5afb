//! The admin interface: HTTP/1.1 with JSON.
//!
//! It has two sockets. The TCP socket (`admin = "127.0.0.1:7490"`, loopback only) serves health checks and Prometheus:
//! `/healthz`, `/readyz`, `/metrics`. The Unix socket `STATE_DIR/admin.sock` (mode 0600) serves those and every request
//! of the command line: whoever may open it may operate the node.
//!
//! - [`api`]: requests, responses and the status
//! - [`client`]: the client, used by the command line
//! - `metrics`: the status as Prometheus metrics
//!
//! The server is `node/admin`.

pub mod api;
pub mod client;
pub(crate) mod metrics;

use std::path::{Path, PathBuf};

/// The path of the Unix socket.
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.sock")
}
