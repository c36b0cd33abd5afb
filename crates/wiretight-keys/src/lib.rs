//! Identities, certificates and tokens of Wiretight. Pure: no I/O, no clock, no tokio; time is passed
//! in, and keys come from the crypto library's own generator.
//!
//! - [`spiffe`]: names, and who a certificate speaks for
//! - [`key`]: private keys, and the narrow [`key::Signer`] behind which the root sits
//! - [`link`]: a renewal that is proved by the key before it
//! - [`x509`]: requests and certificates
//! - [`logged`]: entries of the log, and certificates that carry the proof that they are in it
//! - [`transparency`]: whether that proof is demanded, and by which policy
//! - [`verify`]: a presented chain becomes a [`VerifiedPeer`] or a [`Refusal`]
//! - [`token`]: join tokens
//! - [`web`]: certificates of web sites, and requests for those that we issue
//! - [`mod@seal`]: secrets that pass through somebody else's store

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
