//! The admin interface: HTTP/1.1 with JSON.
//!
//! Two doors. The TCP one (`admin = "127.0.0.1:7490"`, loopback only) answers what a probe or Prometheus
//! asks: `/healthz`, `/readyz`, `/metrics`. The Unix socket `STATE_DIR/admin.sock` (0600) answers those
//! and all that the command line does: who may open the file may operate the node.
//!
//! - [`api`]: requests, answers and the status
//! - [`client`]: how the command line asks
//! - `metrics`: the status for Prometheus
//!
//! The server is `node/admin`.

pub mod api;
pub mod client;
pub(crate) mod metrics;

use std::path::{Path, PathBuf};

/// Where the Unix socket is.
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.sock")
}
