//! How a log or a witness is reached by HTTPS.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use zeroize::Zeroizing;

use crate::log::read_bounded;
use crate::web::client::Credentials;

/// The largest file of certificates.
const MAX_FILE: usize = 1 << 20;

#[derive(Args)]
pub(super) struct Reach {
    /// Authorities (PEM) that are trusted besides the system's: a mesh's trust bundle, for its log
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate chain (PEM) to show to the log's server: a mesh's log is for identified clients
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name in the server's certificate, when it is not the URL's host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl Reach {
    pub(super) fn credentials(&self) -> anyhow::Result<Credentials> {
        let read = |path: &PathBuf| {
            read_bounded(path, MAX_FILE).with_context(|| format!("cannot read {}", path.display()))
        };
        let identity = match self.cert.as_ref().zip(self.key.as_ref()) {
            Some((cert, key)) => Some((read(cert)?, Zeroizing::new(read(key)?))),
            None => None,
        };
        let roots = self.ca.as_ref().map(read).transpose()?;
        Ok(Credentials { roots, identity, server_name: self.server_name.clone() })
    }

    /// The same for the log's witnesses: the same authorities, but neither our certificate nor the log's name.
    pub(super) fn witnesses(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials { identity: None, server_name: None, ..self.credentials()? })
    }
}
