//! The data plane: mutual TLS 1.3 around unmodified TCP programs.
//!
//! - [`mesh`]: what is known of the mesh: identities, trust bundle, registry; set by the control side
//! - [`tls`]: configurations and verifiers
//! - [`stream`]: a TLS connection on a socket
//! - [`record`]: its records
//! - [`wire`]: the frames between relays
//! - [`registry`]: where services are, as members say, checked record by record
//! - [`relay`]: services and dials
//! - [`edge`]: sites: HTTPS for everybody
//! - [`net`], [`network`]: sockets and addresses
//! - [`provider`], [`clock`]: the cryptography of TLS, the time
//! - [`intercept`]: the kernel's rules that let no plaintext out
//!
//! It sees no store and no authority, and no plaintext ever leaves it but to a program of this machine.

#[cfg(test)]
extern crate self as wiretight_proxy; // as the rig calls it

mod admission;
mod app;
mod buffer;
pub mod clock;
pub mod edge;
mod handshake;
pub mod intercept;
pub mod mesh;
pub mod net;
pub mod network;
pub mod provider;
mod quota;
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
pub use mesh::{Identity, IdentityError, Instance, Mesh, Registry};
pub use network::{Network, NetworkError};
pub use quota::LogQuota;
pub use relay::{Relay, RelayStatus};
