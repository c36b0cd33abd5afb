//! The certificate that a scan shows to servers that ask for one.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{Signer, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The largest chain, in bytes: the message that holds it has to fit into a record.
const MAX_CHAIN: usize = 12 << 10;

/// A chain and its key. Clones of the `Arc` around it are cheap; the key is not shown.
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    private: PrivateKeyDer<'static>,
}

/// Why there is no such identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No certificate.
    #[error("there is no certificate")]
    Empty,
    /// More than a record holds.
    #[error("the chain has more than {MAX_CHAIN} bytes")]
    TooLarge,
    /// A key that cannot be used, or that is not the certificate's.
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
    /// The leaf first, and its key.
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

    /// The chain, the leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        self.private.clone_key()
    }

    /// Who signs with one of these schemes; `None` where the key can make none of them.
    pub(super) fn signer(&self, schemes: &[u16]) -> Option<Box<dyn Signer>> {
        let schemes: Vec<SignatureScheme> =
            schemes.iter().copied().map(SignatureScheme::from).collect();
        self.key.choose_scheme(&schemes)
    }
}
