//! The authority's own log: its settings, its key, its witnesses.

use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use wiretight_keys::TrustDomain;
use wiretight_keys::logged::MAX_PROOF;
use wiretight_proxy::net;
use wiretight_store::Store;
use wiretight_tlog::{LogSigner, Policy};

use super::{AuthorityError, CaError, backup, ca};
use crate::config::{self, Config};
use crate::log;
use crate::log::cosigning::Witness;
use crate::log::sequencer::{self, Log};
use crate::log::storage::{Directory, Storage};
use crate::log::witness::client;
use crate::logging::chain;
use crate::private_dir::{FileError, PrivateDir};
use crate::web::client::{Client, Credentials};

/// The log's private key, in the authority's directory.
pub(super) const LOG_KEY: &str = "log.key";
/// A log's key file has a few hundred bytes.
const MAX_KEY_FILE: usize = 4096;
/// The largest file of CA certificates for the witnesses.
const MAX_CA_FILE: usize = 1 << 20;

/// The log's witnesses and storage.
#[derive(Clone, Default)]
pub struct LogParams {
    /// The witnesses and their quorum; `None`: no witnesses.
    pub policy: Option<Policy>,
    /// Whether the authority, too, requires proofs in the certificates of nodes.
    pub required: bool,
    /// A client for each witness, in the policy's order.
    pub ways: Vec<Arc<dyn Witness>>,
    /// Storage of the tiles; `None`: STATE_DIR/authority/log.
    pub storage: Option<Arc<dyn Storage>>,
    /// Where and to whom the log is served.
    pub served: config::Log,
}

impl LogParams {
    /// From the configuration; the policy has the URLs of the witnesses.
    pub(super) fn from_config(config: &Config) -> Result<LogParams, AuthorityError> {
        let served = config.log.clone();
        let storage = backup::storage_of(config)?;
        let Some(witnesses) = &config.witnesses else {
            return Ok(LogParams { served, storage, ..LogParams::default() });
        };
        let policy = log::read_policy(&witnesses.policy)?;
        let client = witness_client(witnesses.ca.as_deref())?;
        let ways = client::ways(&policy, &client).map_err(|why| {
            AuthorityError::Refused(format!("{}: {why}", witnesses.policy.display()))
        })?;
        Ok(LogParams { policy: Some(policy), required: witnesses.required, ways, storage, served })
    }
}

/// The HTTPS client for the witnesses: it trusts the system's CA certificates and those of `ca` in `[witnesses]`.
fn witness_client(ca: Option<&Path>) -> Result<Client, AuthorityError> {
    let unusable = |path: &Path, why: &dyn std::fmt::Display| {
        AuthorityError::Refused(format!(
            "cannot use {} (`ca` in [witnesses]): {why}. It must contain the CA certificates (PEM) for the witnesses' server certificates.",
            path.display()
        ))
    };
    let roots = match ca {
        None => None,
        Some(path) => Some(log::read_bounded(path, MAX_CA_FILE).map_err(|e| unusable(path, &e))?),
    };
    let client = Client::new(&Credentials { roots, ..Credentials::default() });
    client.map_err(|e| match ca {
        Some(path) => unusable(path, &chain(&e)),
        None => AuthorityError::Refused(chain(&e)),
    })
}

/// The listener for readers of the log.
pub(super) async fn log_listener(
    served: &config::Log,
) -> Result<Option<TcpListener>, AuthorityError> {
    let Some(addr) = served.listen else { return Ok(None) };
    let bind = |source| AuthorityError::Bind { addr, source };
    let listener = net::Sockets::default().bind(addr, 1).map_err(bind)?.remove(0);
    Ok(Some(TcpListener::from_std(listener).map_err(bind)?))
}

/// Opens or creates the log. A new key is on disk before anything is signed with it.
pub(super) async fn open_log(
    trust_domain: &TrustDomain,
    dir: &PrivateDir,
    store: Arc<dyn Store>,
    params: LogParams,
) -> Result<Log, AuthorityError> {
    let signer = log_signer(trust_domain, dir)?;
    let key = signer.public().clone();
    let LogParams { policy, ways, storage, .. } = params;
    let policy = match policy {
        Some(policy) if !policy.logs().is_empty() && policy.logs().iter().all(|l| l.key != key) => {
            return Err(AuthorityError::Refused(format!(
                "the policy in [witnesses] does not name this authority's log. Add the line
log {key}"
            )));
        }
        Some(policy) => policy.for_log(key),
        None => Policy::self_attested(key),
    };
    let largest = policy.largest_proof();
    if largest > MAX_PROOF {
        return Err(AuthorityError::Refused(format!(
            "with the policy in [witnesses] a proof can have {largest} bytes, but a certificate has room for {MAX_PROOF} only. Use fewer witnesses with ML-DSA-44 keys."
        )));
    }
    let storage = match storage {
        Some(storage) => storage,
        None => {
            let path = dir.path().join("log");
            let opened = Directory::open(&path);
            Arc::new(opened.map_err(|source| FileError { doing: "create", path, source })?)
        }
    };
    let params = sequencer::Params { signer, policy, ways, storage, store };
    Log::start(params).await.map_err(|e| AuthorityError::Ca(CaError::Log(e)))
}

/// The log's private key; created if there is none.
pub fn log_signer(
    trust_domain: &TrustDomain,
    dir: &PrivateDir,
) -> Result<LogSigner, AuthorityError> {
    let path = || dir.path().join(LOG_KEY).display().to_string();
    if let Some(file) = dir.read(LOG_KEY, MAX_KEY_FILE)? {
        let text = str::from_utf8(&file).ok();
        return text
            .and_then(|t| LogSigner::parse(t).ok())
            .ok_or_else(|| AuthorityError::Ca(CaError::KeyMissing { path: path() }));
    }
    let crypto = |e| AuthorityError::Refused(format!("cannot create a key for the log: {e}"));
    let origin = sequencer::new_origin(trust_domain.as_str(), ca::random()?);
    let origin = origin.ok_or_else(|| {
        AuthorityError::Refused("the trust domain cannot be used in a log's name".into())
    })?;
    let signer = LogSigner::generate(origin).map_err(crypto)?;
    let mut private = signer.to_private().map_err(crypto)?;
    private.push('\n');
    dir.write(LOG_KEY, private.as_bytes())?;
    Ok(signer)
}
