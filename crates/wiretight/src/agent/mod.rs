//! The agent: a node's side of the control plane. It holds the node's keys, gets and renews their certificates, and puts
//! the state that the authority pushes into the [`Mesh`], which the data plane reads.
//!
//! - `state`: the files on disk
//! - `link`: connections to the authority
//! - `run`: the main loop
//! - `shared`: the store of records that edges of a service share
//!
//! When the authority is down, the agent works with the state on disk until that expires, and keeps trying. When the
//! authority says that the node was removed, the agent drops every identity at once. Private keys are generated here and
//! never leave the machine.

mod link;
mod run;
mod shared;
mod state;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wiretight_keys::{
    Id, JoinToken, Name, PublicKey, Serial, Signer, SigningKey, Transparency, TrustDomain,
};
use wiretight_proxy::Mesh;
use wiretight_proxy::clock::now;
use wiretight_proxy::network::HostPort;
use wiretight_scan::passive::totals::Hour;

use crate::config::Config;
use crate::control::report::NodeReport;
use crate::control::{Denial, Offer};
use crate::log;
use crate::private_dir::FileError;
use link::Ticket;
use run::{Command, Run};
use state::{Disk, Membership};

pub use link::LinkError;
pub use shared::{Errands, SharedStore, SharedTimes};
pub use state::{follow, keys};

/// How long [`AgentHandle::renew_now`] and [`AgentHandle::sign`] wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Commands that are queued for the loop.
const MAX_COMMANDS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{} belongs to {was}, but this node is {is}. Correct name and trust_domain in [node]. To make this machine a new node instead, move the directory away and join again.", .path.display()
    )]
    OtherNode { path: PathBuf, was: String, is: String },
    /// The token is for another node.
    #[error("{0}")]
    Token(String),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot create a key")]
    Key(#[from] wiretight_keys::KeyError),
    /// The request was refused or timed out.
    #[error("{0}")]
    Failed(String),
}

/// Deadlines and intervals. Production uses [`AgentTimes::default`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentTimes {
    /// The first wait before reconnecting; doubled each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait before reconnecting.
    pub backoff_max: Duration,
    /// The longest wait while this node has no valid identity and cannot reach the authority: nothing works here then. If
    /// the authority responds but refuses or is slow, `backoff_max` applies.
    pub backoff_max_without_identity: Duration,
    /// Between attempts of a node that was removed.
    pub removed_retry: Duration,
    /// For one connection attempt, and for one response.
    pub answer: Duration,
    /// A stream that is silent for this long is closed.
    pub silence: Duration,
    /// Between pings.
    pub ping: Duration,
}

impl Default for AgentTimes {
    fn default() -> AgentTimes {
        AgentTimes {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            backoff_max_without_identity: Duration::from_secs(4),
            removed_retry: Duration::from_secs(30),
            answer: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            ping: Duration::from_secs(20),
        }
    }
}

/// The source of the join token. It is read only when the node needs a token.
#[derive(Clone, Default)]
pub enum TokenSource {
    #[default]
    None,
    /// A file, read each time.
    File(PathBuf),
    Given(Arc<JoinToken>),
}

impl TokenSource {
    fn load(&self) -> Result<Option<Arc<JoinToken>>, String> {
        match self {
            TokenSource::None => Ok(None),
            TokenSource::Given(token) => Ok(Some(token.clone())),
            TokenSource::File(path) => {
                let text = read_token(path)?;
                let token = JoinToken::decode(&text);
                token.map(|t| Some(Arc::new(t))).map_err(|e| format!("{}: {e}", path.display()))
            }
        }
    }
}

fn read_token(path: &Path) -> Result<zeroize::Zeroizing<String>, String> {
    use std::io::Read;
    let mut text = zeroize::Zeroizing::new(String::new());
    let limit = wiretight_keys::token::MAX_LEN as u64 + 64;
    let read = std::fs::File::open(path).and_then(|f| f.take(limit).read_to_string(&mut text));
    read.map_err(|e| format!("cannot read the join token from {}: {e}", path.display()))?;
    Ok(text)
}

/// A service that this node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub service: Name,
    /// The address of the relay's listener.
    pub listen: SocketAddr,
    /// The address to announce instead.
    pub advertise: Option<HostPort>,
    /// The identities that may connect.
    pub allow: Vec<Id>,
    /// The ports of this host that programs use for this service.
    pub ports: Vec<u16>,
}

/// The agent's settings, at its start and at each reload.
#[derive(Clone)]
pub struct AgentParams {
    /// A change needs a restart.
    pub trust_domain: TrustDomain,
    /// The node's name; a change needs a restart.
    pub node: Name,
    /// STATE_DIR/identity; a change needs a restart.
    pub dir: PathBuf,
    /// The authority's addresses; if empty, those in the token or on disk.
    pub authority: Vec<HostPort>,
    /// For the first join, and after a removal.
    pub token: TokenSource,
    /// The services whose identity this node needs, besides its own identity.
    pub services: BTreeSet<Name>,
    /// The instances that it offers.
    pub instances: Vec<Instance>,
    /// On the authority's machine, the address in join tokens. Its host is announced for a wildcard listener, because the
    /// agent reaches the authority over loopback.
    pub own_host: Option<HostPort>,
    /// Whether certificates must carry proofs that they are logged, including this node's own.
    pub transparency: Transparency,
    /// How long this node may be out of contact with the authority; `None`: forever.
    pub max_staleness: Option<Duration>,
    /// Whether the configuration needs an identity. A node that only serves sites to clients needs no mesh, unless it has
    /// joined one.
    pub needs_mesh: bool,
    pub times: AgentTimes,
}

impl AgentParams {
    /// From the configuration file. On the authority's own machine the caller adds `token`, and the addresses by
    /// [`AgentParams::own_authority`].
    ///
    /// # Errors
    /// The policy of `[witnesses]` is unreadable.
    pub fn from_config(config: &Config) -> Result<AgentParams, log::PolicyFileError> {
        let services = config.shown_services();
        let instances = config.relay.services.iter().map(|s| Instance {
            service: s.name.clone(),
            listen: s.listen,
            advertise: config.advertise.get(&s.name).cloned().flatten(),
            allow: s.allow.clone(),
            ports: s.ports.clone(),
        });
        let token = config.node.join_token_file.clone();
        Ok(AgentParams {
            trust_domain: config.node.trust_domain.clone(),
            node: config.node.name.clone(),
            dir: config.node.state_dir.join("identity"),
            authority: config.node.authority.clone(),
            token: token.map_or(TokenSource::None, TokenSource::File),
            services,
            instances: instances.collect(),
            own_host: None,
            transparency: log::transparency(config)?,
            max_staleness: config.node.max_staleness,
            needs_mesh: config.needs_mesh(),
            times: AgentTimes::default(),
        })
    }

    /// On the authority's own machine the agent reaches it over loopback. `join`: the address that join tokens carry.
    pub fn own_authority(&mut self, loopback: HostPort, join: HostPort) {
        self.authority = vec![loopback];
        self.own_host = Some(join);
    }
}

/// An identity that the node has or needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityStatus {
    pub id: Id,
    /// Of the certificate in use; `None` if there is none.
    pub serial: Option<Serial>,
    /// In seconds since 1970.
    pub not_before: Option<u64>,
    pub not_after: Option<u64>,
    /// When it is renewed, or the renewal is tried again.
    pub next_renewal: Option<u64>,
    /// Why the last renewal failed, if it did.
    pub error: Option<String>,
}

/// The agent, for `wiretight status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub node: Name,
    pub trust_domain: TrustDomain,
    pub connected: bool,
    /// The authority's address, of the current or last stream.
    pub authority: Option<HostPort>,
    /// When the last message of the authority arrived.
    pub last_contact: Option<u64>,
    /// The version of the state in use; 0 if none.
    pub version: u64,
    /// The authority has said that this node was removed.
    pub removed: bool,
    /// This node is not in a mesh, and its configuration does not need one.
    #[serde(default)]
    pub alone: bool,
    /// Trust bundle, node identity and all needed identities are valid.
    pub ready: bool,
    /// Every identity that it has or needs.
    pub identities: Vec<IdentityStatus>,
    /// The announced instances.
    pub instances: Vec<Offer>,
    /// Which of them the authority rejected, and why.
    pub refused: Option<Denial>,
    /// Which records of the pushed registry are not used here, and why.
    #[serde(default)]
    pub unused: Vec<String>,
    pub last_error: Option<String>,
}

/// The result of `wiretight join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JoinSummary {
    pub node: Name,
    pub trust_domain: TrustDomain,
    /// The authority's addresses.
    pub authority: Vec<HostPort>,
    /// When the node's first certificate expires.
    pub not_after: u64,
}

pub struct Agent;

/// A running agent. Clones refer to the same one; it runs until [`AgentHandle::shutdown`].
#[derive(Clone)]
pub struct AgentHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<AgentStatus>,
    stop: watch::Sender<bool>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Agent {
    /// Loads the saved state into `mesh` and starts the loop. The saved state is in use when this returns, whether or not
    /// the authority is up.
    pub async fn start(params: AgentParams, mesh: Arc<Mesh>) -> Result<AgentHandle, AgentError> {
        Agent::start_sharing(params, mesh, None).await
    }

    /// The same, for a node whose edge shares its certificates with others.
    pub async fn start_sharing(
        params: AgentParams,
        mesh: Arc<Mesh>,
        errands: Option<Errands>,
    ) -> Result<AgentHandle, AgentError> {
        let disk = Disk::open(&params.dir)?;
        let saved = disk.load(&params.trust_domain)?;
        same_node(&disk, saved.membership.as_ref(), &params.trust_domain, &params.node)?;
        mesh.set_transparency(params.transparency.clone());
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let (stop, stopped) = watch::channel(false);
        let (run, status) = Run::new(params, mesh, disk, saved, inbox, errands);
        let task = tokio::spawn(run.run(stopped));
        Ok(AgentHandle { commands, status, stop, task: Arc::new(Mutex::new(Some(task))) })
    }
}

impl AgentHandle {
    /// Applies a reload.
    pub async fn update(&self, params: AgentParams) {
        let _ = self.commands.send(Command::Update(Box::new(params))).await;
    }

    /// Renews every identity now, and returns when all new ones are in use.
    pub async fn renew_now(&self) -> Result<(), AgentError> {
        self.ask(Command::Renew).await
    }

    /// Sends totals to the authority. Returns whether it has stored them; if not, it will never accept them.
    pub async fn totals(&self, hour: Hour) -> Result<bool, AgentError> {
        self.ask(|reply| Command::Totals(Box::new(hour), reply)).await
    }

    /// Sets the report about this node, which the authority gets as soon as there is a stream, and on each new one.
    pub async fn report(&self, report: NodeReport) {
        let _ = self.commands.send(Command::Report(Box::new(report))).await;
    }

    /// Has a certificate request (DER) signed. For `wiretight svid fetch`, which keeps the key. Returns leaf and
    /// intermediate.
    pub async fn sign(&self, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, AgentError> {
        self.ask(|reply| Command::Sign(csr, reply)).await
    }

    pub fn status(&self) -> AgentStatus {
        let mut status = self.status.borrow().clone();
        status.ready = is_ready(&status);
        status
    }

    pub fn watch(&self) -> watch::Receiver<AgentStatus> {
        self.status.clone()
    }

    /// Whether trust bundle, node identity and all needed identities are valid now.
    pub fn ready(&self) -> bool {
        is_ready(&self.status.borrow())
    }

    /// Waits until [`AgentHandle::ready`]. Never returns if the agent stops before.
    pub async fn wait_ready(&self) {
        let mut status = self.status.clone();
        if status.wait_for(is_ready).await.is_err() {
            std::future::pending().await
        }
    }

    /// Ends the stream and the loop. The mesh is unchanged.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().take();
        if let Some(mut task) = task
            && timeout(Duration::from_secs(5), &mut task).await.is_err()
        {
            task.abort();
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command,
    ) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let stopped = || AgentError::Failed("the agent has stopped".into());
            self.commands.send(command(reply)).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| stopped())?.map_err(AgentError::Failed)
        };
        match timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => {
                let last = self.status.borrow().last_error.clone();
                let why = last.map(|e| format!(": {e}")).unwrap_or_default();
                Err(AgentError::Failed(format!("not done within {PATIENCE:?}{why}")))
            }
        }
    }
}

fn is_ready(status: &AgentStatus) -> bool {
    let holds = |i: &IdentityStatus| {
        i.not_before.is_some_and(|t| t <= now()) && i.not_after.is_some_and(|t| t >= now())
    };
    status.ready && status.identities.iter().all(holds)
}

/// `wiretight join`: joins with a token and saves the result on disk for `wiretight run`. `dir` is STATE_DIR/identity. The
/// addresses in `authority` are tried before those in the token.
pub async fn join_once(
    token: &JoinToken,
    dir: &Path,
    authority: &[HostPort],
    asks: &Transparency,
    times: AgentTimes,
) -> Result<JoinSummary, AgentError> {
    let disk = Disk::open(dir)?;
    let saved = disk.load(&token.trust_domain)?;
    same_node(&disk, saved.membership.as_ref(), &token.trust_domain, &token.node)?;
    let enrolment = match saved.enrolment {
        Some(key) => key,
        None => {
            // Saved first: if the response is lost, the join is repeated with the same key.
            let key = SigningKey::generate()?;
            disk.save_enrolment(&key)?;
            key
        }
    };
    let membership = membership(token);
    let addresses: Vec<_> = authority.iter().chain(&membership.authority).cloned().collect();
    let (td, node) = (&token.trust_domain, &token.node);
    let ticket = Ticket::Token(token);
    let id = Id::Node(node.clone());
    let key = SigningKey::generate()?;
    disk.note_asked(&[(id.clone(), PublicKey::new(key.public_key())?.hash())])?;
    let before = saved.identities.iter().find(|identity| identity.id().id == id);
    let question = link::Question {
        trust_domain: td,
        node,
        enrolment: &enrolment,
        ticket: &ticket,
        key: &key,
        before,
        release: None,
    };
    let entry = link::enter(&addresses, &question, asks, times.answer).await?;
    disk.save_bundle(&entry.bundle)?;
    disk.save_identity(&id, &key, entry.identity.chain())?;
    disk.save_membership(&membership)?;
    Ok(JoinSummary {
        node: node.clone(),
        trust_domain: td.clone(),
        authority: addresses,
        not_after: entry.identity.leaf().period.not_after,
    })
}

fn membership(token: &JoinToken) -> Membership {
    Membership {
        trust_domain: token.trust_domain.clone(),
        node: token.node.clone(),
        authority: token.authority.iter().filter_map(|a| a.parse().ok()).collect(),
        token_id: token.id.clone(),
    }
}

fn same_node(
    disk: &Disk,
    membership: Option<&Membership>,
    trust_domain: &TrustDomain,
    node: &Name,
) -> Result<(), AgentError> {
    match membership {
        Some(m) if m.node != *node || m.trust_domain != *trust_domain => {
            Err(AgentError::OtherNode {
                path: disk.path().into(),
                was: format!("node {} of {}", m.node, m.trust_domain),
                is: format!("node {node} of {trust_domain}"),
            })
        }
        _ => Ok(()),
    }
}

/// Checks before anything is sent that configuration and token are for the same node.
pub(crate) fn token_fits(
    token: &JoinToken,
    trust_domain: &TrustDomain,
    node: &Name,
) -> Result<(), String> {
    if token.trust_domain != *trust_domain {
        return Err(format!(
            "the join token is for trust domain {}, but [node] has {trust_domain}. Correct trust_domain, or create a token on the right authority.",
            token.trust_domain
        ));
    }
    if token.node != *node {
        return Err(format!(
            "the join token is for node {}, but [node] has {node}. Correct name, or create a token for {node} with `wiretight token create`.",
            token.node
        ));
    }
    if token.expires < now() {
        tracing::warn!("the join token has expired by this machine's clock; trying it anyway");
    }
    Ok(())
}
