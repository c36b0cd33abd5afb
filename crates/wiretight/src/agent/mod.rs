//! The agent: a node's side of the control plane. It holds the node's keys, gets and renews their
//! certificates, and puts what the authority pushes into the [`Mesh`] that the data plane reads.
//!
//! - `state`: what is on the disk
//! - `link`: connections to the authority
//! - `run`: the loop
//! - `shared`: the store of what edges of a service share
//!
//! The authority may be down: the agent works from the disk until what is there expires, and keeps
//! trying. If the authority says that the node was removed, it drops every identity at once. A
//! private key is born here and never leaves.

mod link;
mod run;
mod shared;
mod state;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wiretight_keys::{
    Id, JoinToken, Name, PublicKey, Serial, Signer, SigningKey, Transparency, TrustDomain,
};
use wiretight_proxy::Mesh;
use wiretight_proxy::mesh::now;
use wiretight_proxy::relay::settings::HostPort;

use crate::config::Config;
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
/// Commands that wait for the loop.
const MAX_COMMANDS: usize = 64;

/// Why the agent does not start, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state folder is another node's.
    #[error(
        "{} belongs to {was}, and this node is {is}: correct name and trust_domain in [node]; or, to make this machine a new node, move the folder away and join again", .path.display()
    )]
    OtherNode {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        was: String,
        /// Who asks.
        is: String,
    },
    /// The token is for somebody else.
    #[error("{0}")]
    Token(String),
    /// The authority.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No key.
    #[error("a key could not be made")]
    Key(#[from] wiretight_keys::KeyError),
    /// It was refused, or did not come to pass in time.
    #[error("{0}")]
    Failed(String),
}

/// Deadlines and intervals. [`AgentTimes::default`] is what runs in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentTimes {
    /// The first wait before connecting again; doubled each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait before connecting again.
    pub backoff_max: Duration,
    /// The longest while this node has no valid identity and the authority's port does not answer: then nothing works
    /// here until it is back. An authority that answers and refuses, or is too slow, is given `backoff_max`.
    pub backoff_max_without_identity: Duration,
    /// Between attempts of a node that was removed.
    pub removed_retry: Duration,
    /// For one connection attempt, and for one answer.
    pub answer: Duration,
    /// Silence that ends a stream.
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

/// Where a join token comes from. It is looked at only when the node needs one.
#[derive(Clone, Default)]
pub enum TokenSource {
    /// There is none.
    #[default]
    None,
    /// A file, read each time.
    File(PathBuf),
    /// This one.
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
    read.map_err(|e| format!("the join token cannot be read from {}: {e}", path.display()))?;
    Ok(text)
}

/// A service that this node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The service.
    pub service: Name,
    /// Where the relay listens.
    pub listen: SocketAddr,
    /// What others are told instead.
    pub advertise: Option<HostPort>,
    /// Who may call.
    pub allow: Vec<Id>,
    /// The ports of this host that programs connect to when they mean it.
    pub ports: Vec<u16>,
}

/// What the agent is told at its start and at each reload.
#[derive(Clone)]
pub struct AgentParams {
    /// The trust domain; a change needs a restart.
    pub trust_domain: TrustDomain,
    /// The node's name; a change needs a restart.
    pub node: Name,
    /// STATE_DIR/identity; a change needs a restart.
    pub dir: PathBuf,
    /// Where the authority is; empty: where the token or the disk says.
    pub authority: Vec<HostPort>,
    /// For the first join, and after a removal.
    pub token: TokenSource,
    /// The services whose identity this node wants, besides its own.
    pub services: BTreeSet<Name>,
    /// What it offers.
    pub instances: Vec<Instance>,
    /// Whose host is advertised for a wildcard listener when the authority is reached over loopback:
    /// on the authority's own machine, the address that join tokens carry.
    pub own_host: Option<HostPort>,
    /// Whether certificates have to prove that they are logged, its own included.
    pub transparency: Transparency,
    /// After so long without news nobody but the authority is believed; `None`: never.
    pub max_staleness: Option<Duration>,
    /// Whether anything here takes an identity. A node that only serves sites to clients has no use for a mesh, unless
    /// it has joined one.
    pub needs_mesh: bool,
    /// Deadlines.
    pub times: AgentTimes,
}

impl AgentParams {
    /// From the configuration file. On the authority's own machine the caller adds `token`, and the addresses by
    /// [`AgentParams::own_authority`].
    ///
    /// # Errors
    /// The policy of `[witnesses]` cannot be read.
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

/// An identity that the node has or wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityStatus {
    /// Whose.
    pub id: Id,
    /// Serial number of the certificate in force; `None` if there is none.
    pub serial: Option<Serial>,
    /// When it began (seconds since 1970).
    pub not_before: Option<u64>,
    /// When it ends.
    pub not_after: Option<u64>,
    /// When it is renewed, or tried again.
    pub next_renewal: Option<u64>,
    /// Why the last renewal failed, if it did.
    pub error: Option<String>,
}

/// The agent, for `wiretight status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// The node.
    pub node: Name,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Whether the stream is up.
    pub connected: bool,
    /// The authority's address, of the stream or of the last one.
    pub authority: Option<HostPort>,
    /// When the authority last said something.
    pub last_contact: Option<u64>,
    /// The version of the state in force; 0 if none.
    pub version: u64,
    /// Whether the authority has said that this node was removed.
    pub removed: bool,
    /// Whether this node is in no mesh, and its configuration needs none.
    pub alone: bool,
    /// Whether bundle, node identity and every wanted identity hold.
    pub ready: bool,
    /// Every identity that it has or wants.
    pub identities: Vec<IdentityStatus>,
    /// What it has announced.
    pub instances: Vec<Offer>,
    /// What of it the authority refuses, and why.
    pub refused: Option<Denial>,
    /// What of the pushed registry is not used here, and why.
    pub unused: Vec<String>,
    /// What last went wrong.
    pub last_error: Option<String>,
}

/// What `wiretight join` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JoinSummary {
    /// The node.
    pub node: Name,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The authority's addresses.
    pub authority: Vec<HostPort>,
    /// When the node's first certificate ends.
    pub not_after: u64,
}

/// Starts agents.
pub struct Agent;

/// A running agent. Clones are the same one; it runs until [`AgentHandle::shutdown`].
#[derive(Clone)]
pub struct AgentHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<AgentStatus>,
    stop: watch::Sender<bool>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Agent {
    /// Loads what is on the disk, puts it into `mesh`, and goes to work. What the disk holds is in
    /// force when this returns, whether or not the authority is up.
    pub async fn start(params: AgentParams, mesh: Arc<Mesh>) -> Result<AgentHandle, AgentError> {
        Agent::start_sharing(params, mesh, None).await
    }

    /// The same, of a node whose edge shares its certificates with others.
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
    /// A reload.
    pub async fn update(&self, params: AgentParams) {
        let _ = self.commands.send(Command::Update(Box::new(params))).await;
    }

    /// Renews every identity now, and returns when all are in force.
    pub async fn renew_now(&self) -> Result<(), AgentError> {
        self.ask(Command::Renew).await
    }

    /// Has a certificate request (DER) signed: for `wiretight svid fetch`, whose key stays with it.
    /// Returns leaf and intermediate.
    pub async fn sign(&self, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, AgentError> {
        self.ask(|reply| Command::Sign(csr, reply)).await
    }

    /// How things stand.
    pub fn status(&self) -> AgentStatus {
        let mut status = self.status.borrow().clone();
        status.ready = is_ready(&status);
        status
    }

    /// Follows how things stand.
    pub fn watch(&self) -> watch::Receiver<AgentStatus> {
        self.status.clone()
    }

    /// Whether bundle, node identity and every wanted identity hold now.
    pub fn ready(&self) -> bool {
        is_ready(&self.status.borrow())
    }

    /// Waits until [`AgentHandle::ready`]; for ever, if that never comes.
    pub async fn wait_ready(&self) {
        let mut status = self.status.clone();
        if status.wait_for(is_ready).await.is_err() {
            std::future::pending().await
        }
    }

    /// Ends the stream and the loop. What is in the mesh stays there.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
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

/// `wiretight join`: joins with a token and leaves what it got on the disk, for `wiretight run`.
/// `dir` is STATE_DIR/identity; `authority` goes before the token's own addresses.
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
            // On the disk first: if the answer is lost, the same key asks again.
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

/// The node's configuration and the token must mean the same node; else nothing is sent.
pub(crate) fn token_fits(
    token: &JoinToken,
    trust_domain: &TrustDomain,
    node: &Name,
) -> Result<(), String> {
    if token.trust_domain != *trust_domain {
        return Err(format!(
            "the join token is for trust domain {}, and [node] says {trust_domain}: correct trust_domain, or make a token on the right authority",
            token.trust_domain
        ));
    }
    if token.node != *node {
        return Err(format!(
            "the join token is for node {}, and [node] says {node}: correct name, or make a token with `wiretight token create` for {node}",
            token.node
        ));
    }
    if token.expires < now() {
        tracing::warn!("by this machine's clock the join token has expired; the authority decides");
    }
    Ok(())
}
