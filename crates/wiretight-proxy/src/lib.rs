//! The data plane: mutual TLS 1.3 for unmodified TCP programs.
//!
//! - [`mesh`]: this node's view of the mesh: identities, trust bundle, registry; set by the control side
//! - [`tls`]: configurations and verifiers
//! - [`stream`]: a TLS connection on a socket
//! - [`record`]: TLS records
//! - [`wire`]: the frames between relays
//! - [`reason`]: why a connection, a session or a request is refused
//! - [`registry`]: addresses of services, as announced by nodes and checked record by record
//! - [`relay`]: services and dials
//! - [`edge`]: sites: public HTTPS
//! - [`net`], [`network`]: sockets and addresses
//! - [`latency`]: histograms of how long things take
//! - [`provider`], [`clock`]: cryptography providers for TLS, and the current time
//! - [`intercept`]: kernel rules that prevent plaintext from leaving the machine
//!
//! The data plane has no access to the store or the authority. It sends plaintext only to programs on this machine.

#[cfg(test)]
extern crate self as wiretight_proxy; // the rig uses this name

mod admission;
mod app;
mod buffer;
pub mod clock;
pub mod edge;
mod handshake;
pub mod intercept;
pub mod latency;
mod listeners;
pub mod mesh;
pub mod net;
pub mod network;
pub mod provider;
mod quota;
pub mod reason;
pub mod record;
pub mod registry;
pub mod relay;
#[cfg(test)]
#[path = "../tests/rig/mod.rs"]
mod rig;
pub mod stream;
pub mod tls;
pub mod wire;

pub use edge::{Certificates, Edge, EdgeStatus};
pub use latency::Latency;
pub use mesh::{Identity, IdentityError, Instance, Mesh, Registry};
pub use network::{Network, NetworkError};
pub use quota::LogQuota;
pub use reason::Reason;
pub use relay::{Relay, RelayStatus};
