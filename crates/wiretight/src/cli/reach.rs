//! Options for reaching a log or a witness by HTTPS.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use zeroize::Zeroizing;

use crate::log::read_bounded;
use crate::web::client::Credentials;

/// The largest certificate file, in bytes.
const MAX_FILE: usize = 1 << 20;

#[derive(Args)]
pub(super) struct Reach {
    /// CA certificates (PEM) to trust in addition to the system's; for the log of a mesh, its trust bundle
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// The client certificate chain (PEM) for the log's server; the log of a mesh requires one
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "key")]
    cert: Option<PathBuf>,
    /// The key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "cert")]
    key: Option<PathBuf>,
    /// The name in the server's certificate, if it is not the URL's host
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

    /// For the log's witnesses: the same CA certificates, but no client certificate and no server name.
    pub(super) fn witnesses(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials { identity: None, server_name: None, ..self.credentials()? })
    }
}
