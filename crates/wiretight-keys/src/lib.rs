//! Identities, certificates and tokens of Wiretight. No I/O, no clock, no tokio: the caller passes the time, and keys
//! come from the crypto library's random generator.
//!
//! - [`spiffe`]: names and identities
//! - [`key`]: private keys, and the [`key::Signer`] interface of the root
//! - [`link`]: a signature by the previous key over the new one, made at renewal
//! - [`x509`]: certificate requests and certificates
//! - [`claims`]: log entries about the traffic of the mesh, and about what is published
//! - [`logged`]: log entries, and certificates that carry the proof that they are logged
//! - [`transparency`]: whether that proof is required, and by which policy
//! - [`verify`]: verifies a peer's chain; returns a [`VerifiedPeer`] or a [`Refusal`]
//! - [`token`]: join tokens
//! - [`web`]: certificates of web sites, and requests for those that the authority issues
//! - [`mod@seal`]: encrypts secrets that pass through the authority's store

pub mod claims;
mod error;
pub mod key;
pub mod link;
pub mod logged;
pub mod seal;
pub mod spiffe;
pub mod token;
pub mod transparency;
pub mod verify;
pub mod web;
pub mod x509;

pub use error::X509Error;
pub use key::{KeyError, PublicKey, Signer, SigningKey};
pub use link::KeyLink;
pub use logged::{Logged, NotLogged, Revocation};
pub use seal::{SealError, SealKey, seal};
pub use spiffe::{Id, Name, NameError, SpiffeId, TrustDomain};
pub use token::{JoinToken, TokenError};
pub use transparency::Transparency;
pub use verify::{Fingerprint, Refusal, Revocations, Role, TrustBundle, VerifiedPeer};
pub use web::{WebCsr, WebLeaf};
pub use x509::{Csr, Leaf, Period, Profile, Serial, Series, Tbs};
