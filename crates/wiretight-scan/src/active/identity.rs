//! The client certificate of a scan.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{Signer, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The maximum size of a chain in bytes: its message must fit into one record.
const MAX_CHAIN: usize = 12 << 10;

/// A certificate chain and its key.
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    private: PrivateKeyDer<'static>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the file contains no certificate")]
    Empty,
    /// The chain does not fit into a record.
    #[error("the chain has more than {MAX_CHAIN} bytes")]
    TooLarge,
    /// The key is unsupported, or does not match the certificate.
    #[error("the key cannot be used with the certificate: {0}")]
    Key(rustls::Error),
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity")
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

impl ClientIdentity {
    /// The leaf must come first in `chain`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        private: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        if chain.is_empty() {
            return Err(IdentityError::Empty);
        }
        if chain.iter().map(|der| der.len()).sum::<usize>() > MAX_CHAIN {
            return Err(IdentityError::TooLarge);
        }
        let key = any_supported_type(&private).map_err(IdentityError::Key)?;
        let pair = rustls::sign::CertifiedKey::new(chain.clone(), key.clone());
        match pair.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(IdentityError::Key(error)),
        }
        Ok(Self { chain, key, private })
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        self.private.clone_key()
    }

    /// A signer for one of these schemes; `None` if the key supports none of them.
    pub(super) fn signer(&self, schemes: &[u16]) -> Option<Box<dyn Signer>> {
        let schemes: Vec<SignatureScheme> =
            schemes.iter().copied().map(SignatureScheme::from).collect();
        self.key.choose_scheme(&schemes)
    }
}
