//! What goes through the admin interface: requests, answers and the node's status. The node serializes these types, and
//! the command line reads them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wiretight_keys::{Id, Name, SpiffeId, TrustDomain};
use wiretight_proxy::intercept::rules::Mode;
use wiretight_proxy::registry::Host;
use wiretight_proxy::{EdgeStatus, RelayStatus};

use crate::agent::AgentStatus;
use crate::intercept::{InterceptStatus, TrialStatus};
use crate::log::sequencer::LogStatus;
use crate::sandbox::Sandbox;

/// `POST /v1/tokens`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The node that may join.
    pub node: Name,
    /// The services that it may claim.
    pub services: Vec<Name>,
    /// Addresses that it may announce besides the one that it connects from.
    #[serde(default)]
    pub addresses: Vec<Host>,
    /// How long the token holds.
    pub ttl_seconds: u64,
}

/// `POST /v1/tokens/revoke`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    /// The token's name, from `GET /v1/tokens`.
    pub id: String,
}

/// `POST /v1/grant`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// The node.
    pub node: Name,
    /// All the services that it may claim from now on; with `add`, more of them.
    pub services: Vec<Name>,
    /// Whether the others that it may claim stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub add: bool,
}

/// `POST /v1/addresses`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressesRequest {
    /// The node.
    pub node: Name,
    /// All the addresses that it may announce besides the one that it connects from; with `add`, more of them.
    pub addresses: Vec<Host>,
    /// Whether the others stay.
    #[serde(default)]
    pub add: bool,
}

/// `POST /v1/remove`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// The node.
    pub node: Name,
}

/// `POST /v1/authority`: a step of a rotation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Which.
    pub step: RotateStep,
    /// Even if a node would be left behind.
    #[serde(default)]
    pub force: bool,
}

/// The steps by which keys are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RotateStep {
    /// A new intermediate, at once.
    Intermediate,
    /// A second root enters every trust bundle.
    PrepareRoot,
    /// Certificates come from the new root.
    ActivateRoot,
    /// The old root leaves every trust bundle.
    RetireRoot,
}

/// `POST /v1/revoke`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The first index.
    pub from: u64,
    /// The last one.
    pub to: u64,
    /// Change nothing, and say what it would cut.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/svid`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SvidRequest {
    /// PEM of the certificate request; the key stays with whoever asks.
    pub csr: String,
}

/// The answer to [`SvidRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub struct SvidAnswer {
    /// PEM, leaf first.
    pub chain: String,
    /// PEM of the trust bundle.
    pub bundle: String,
}

/// `GET /v1/bundle`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BundleAnswer {
    /// PEM of the trust bundle.
    pub bundle: String,
}

/// `POST /v1/mode`: a step of a change.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModeRequest {
    /// Put a mode in force for a time.
    Try {
        /// It.
        mode: Mode,
        /// How long.
        seconds: u64,
    },
    /// The trial is being confirmed: the file is about to be written.
    Hold,
    /// The file was written: take it up.
    TakeUp,
    /// End the trial.
    Undo,
}

/// The answer to it, and to `GET /v1/mode`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModeStatus {
    /// What is in force; `None`: no rules are.
    pub in_force: Option<Mode>,
    /// What the node's configuration says.
    pub configured: Mode,
    /// A trial that is running.
    pub trial: Option<TrialStatus>,
    /// Why rules are not what they should be.
    pub error: Option<String>,
    /// The file that the node has read.
    pub file: PathBuf,
    /// What stands in the file and is not in force, if anything.
    pub pending: Option<String>,
}

/// What `wiretight status --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The version that runs.
    pub version: &'static str,
    /// The node's name.
    pub node: Name,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether the process before this one could still go on in its place: an upgrade is under way.
    pub taking_over: bool,
    /// Whether identities and trust bundle are in force.
    pub ready: bool,
    /// What is missing, if not.
    pub not_ready: Option<String>,
    /// This node's identities.
    pub identities: Vec<IdentityStatus>,
    /// The stream to the authority.
    pub authority_link: AgentStatus,
    /// Whether this node is the authority.
    pub is_authority: bool,
    /// What peers have to prove.
    pub transparency: TransparencyStatus,
    /// The log of the authority, if this node is it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStatus>,
    /// The services that this node offers.
    pub services: Vec<ServiceStatus>,
    /// The services that its programs reach.
    pub dials: Vec<DialStatus>,
    /// Connections, sums and refusals.
    pub relay: RelayStatus,
    /// Sites and what they serve.
    pub edge: EdgeStatus,
    /// Why a site's certificate is not renewed, or its files are not in force, by site.
    pub site_errors: BTreeMap<String, String>,
    /// What the kernel's rules do, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intercept: Option<InterceptStatus>,
    /// How far Landlock holds.
    pub sandbox: Sandbox,
}

/// What peers of the mesh have to prove here, besides their identity.
#[derive(Debug, Clone, Serialize)]
pub struct TransparencyStatus {
    /// Whether a peer is refused whose certificates do not prove that they are logged.
    pub required: bool,
    /// The quorum of witnesses; `"none"`: the log's own word is enough.
    pub quorum: Option<String>,
    /// Seconds since there was news of revocations; `None`: none since the start.
    pub news_age_seconds: Option<u64>,
    /// Whether the node makes and takes no connections, for that is too long.
    pub without_news: bool,
}

/// An identity of this node.
#[derive(Debug, Clone, Serialize)]
pub struct IdentityStatus {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// When it expires, seconds since 1970.
    pub not_after: u64,
    /// How long that is from now; negative if it has.
    pub expires_in_seconds: i64,
    /// Its serial number.
    pub serial: String,
}

/// A service that this node offers.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: Name,
    /// Where it listens.
    pub listen: String,
    /// Where its traffic goes.
    pub forward: Vec<String>,
    /// Who may call.
    pub allow: Vec<Id>,
}

/// A service that this node's programs reach.
#[derive(Debug, Clone, Serialize)]
pub struct DialStatus {
    /// The service.
    pub service: Name,
    /// Where programs connect.
    pub listen: String,
    /// The identity that is shown.
    pub identity: Id,
    /// Where its instances are, as given or as registered.
    pub instances: Vec<String>,
}
