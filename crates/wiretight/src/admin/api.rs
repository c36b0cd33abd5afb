//! The types of the admin interface: requests, responses and the node's status. The node and the command line share
//! them.
//!
//! After an upgrade of the binary the command line may be newer than the running node. So a field that is added to a
//! response is an `Option` or has a default. Fields that the command line does not know are ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wiretight_keys::{Id, Name, SpiffeId, TrustDomain};
use wiretight_proxy::intercept::rules::Mode;
use wiretight_proxy::registry::Host;
use wiretight_proxy::{EdgeStatus, RelayStatus};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::totals::Period;

use crate::agent::AgentStatus;
use crate::authority::{ClaimsStatus, NodeInfo, PendingToken, ReleasesStatus};
use crate::control::report::Exception;
use crate::intercept::{InterceptStatus, TrialStatus};
use crate::log::sequencer::LogStatus;
use crate::proof::publish::folder::PublicFile;
use crate::release::Standing;
use crate::sandbox::Sandbox;
use crate::watch::host::WatchStatus;

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
    /// How long the token is valid.
    pub ttl_seconds: u64,
}

/// The response to [`TokenRequest`]. No `Debug`, because the token is secret.
#[derive(Serialize, Deserialize)]
pub struct TokenAnswer {
    pub token: String,
    /// The token's name, for `POST /v1/tokens/revoke`.
    pub id: String,
    pub node: Name,
    pub services: Vec<Name>,
    #[serde(default)]
    pub addresses: Vec<Host>,
    /// In seconds since 1970.
    pub expires: u64,
}

/// The response to `GET /v1/tokens`.
#[derive(Debug, Serialize, Deserialize)]
pub struct TokensAnswer {
    pub tokens: Vec<PendingToken>,
}

/// `POST /v1/tokens/revoke`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    /// The token's name, from `GET /v1/tokens`.
    pub id: String,
}

/// The response to [`RevokeTokenRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub struct RevokeTokenAnswer {
    pub revoked: String,
    /// The node that the token was for.
    pub node: Name,
}

/// The response to `GET /v1/nodes`.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodesAnswer {
    pub nodes: Vec<NodeInfo>,
}

/// `POST /v1/grant`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    pub node: Name,
    /// All the services that it may claim from now on; with `add`, additional ones.
    pub services: Vec<Name>,
    /// Whether the services that it may claim already are kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub add: bool,
}

/// The response to [`GrantRequest`], with the services of the request.
#[derive(Debug, Serialize, Deserialize)]
pub struct GrantAnswer {
    pub node: Name,
    pub services: Vec<Name>,
}

/// `POST /v1/addresses`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressesRequest {
    pub node: Name,
    /// All the addresses that it may announce besides the one that it connects from; with `add`, additional ones.
    pub addresses: Vec<Host>,
    /// Whether the addresses that it may announce already are kept.
    #[serde(default)]
    pub add: bool,
}

/// The response to [`AddressesRequest`], with the addresses of the request.
#[derive(Debug, Serialize, Deserialize)]
pub struct AddressesAnswer {
    pub node: Name,
    pub addresses: Vec<Host>,
}

/// `POST /v1/remove`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    pub node: Name,
}

/// The response to [`RemoveRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub struct RemoveAnswer {
    pub removed: Name,
}

/// `POST /v1/authority`: a step of a key rotation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// The step.
    pub step: RotateStep,
    /// Do it even if a node would lose its connection to the mesh.
    #[serde(default)]
    pub force: bool,
}

/// The steps of a key rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RotateStep {
    /// Replace the intermediate, effective at once.
    Intermediate,
    /// Create a second root and add it to every trust bundle.
    PrepareRoot,
    /// Issue certificates from the new root.
    ActivateRoot,
    /// Remove the old root from every trust bundle.
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
    /// Change nothing; only report which nodes would be affected.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/svid`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SvidRequest {
    /// PEM of the certificate request; the private key stays with the requester.
    pub csr: String,
}

/// The response to [`SvidRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub struct SvidAnswer {
    /// PEM, leaf first.
    pub chain: String,
    /// PEM of the trust bundle.
    pub bundle: String,
}

/// The response to `GET /v1/bundle`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BundleAnswer {
    /// PEM of the trust bundle.
    pub bundle: String,
}

/// The response to `POST /v1/reload`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    pub reloaded: bool,
    /// How many are configured now.
    pub services: usize,
    pub dials: usize,
    pub sites: usize,
    pub warnings: Vec<String>,
}

/// The response to `POST /v1/renew`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewAnswer {
    pub renewed: bool,
}

/// The response to a request that failed.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorAnswer {
    pub error: String,
}

/// `POST /v1/mode`: a step of a mode change.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModeRequest {
    /// Apply a mode for a limited time.
    Try {
        mode: Mode,
        /// The length of the trial.
        seconds: u64,
    },
    /// The trial is being confirmed: the file is about to be written.
    Hold,
    /// The file was written: apply it.
    TakeUp,
    /// End the trial and return to the configured mode.
    Undo,
}

/// The response to [`ModeRequest`] and to `GET /v1/mode`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModeStatus {
    /// The mode in force; `None` if no rules are loaded.
    pub in_force: Option<Mode>,
    /// The mode in the node's configuration.
    pub configured: Mode,
    pub trial: Option<TrialStatus>,
    /// Why the rules are not as they should be.
    pub error: Option<String>,
    /// The configuration file of the node.
    pub file: PathBuf,
    /// Whether the file differs from the configuration in force, and how.
    pub pending: Option<String>,
}

/// `POST /v1/watch`: the traffic of this machine. The response is a [`Listing`](crate::watch::host::Listing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// Only rows of this level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// At most so many rows.
    pub rows: usize,
}

/// `POST /v1/watch/hours`: totals of this machine by the hour, or with `mesh`, on the authority's node, of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoursRequest {
    /// The first and the last second, in seconds since 1970.
    pub from: u64,
    pub to: u64,
    #[serde(default)]
    pub mesh: bool,
}

/// The response to [`HoursRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoursAnswer {
    /// By node, with the oldest first. Totals of a mesh that are older than a month are those of a day.
    pub nodes: BTreeMap<Name, Vec<Period>>,
}

/// `POST /v1/publish`, on the authority's node: makes the public folder, and logs it unless it is a preview.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    #[serde(default)]
    pub preview: bool,
}

/// The response to [`PublishRequest`]. The one who asked writes the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishAnswer {
    /// In seconds since 1970.
    pub at: u64,
    /// The index of the publication in the log; `None` for a preview.
    pub index: Option<u64>,
    pub files: Vec<PublicFile>,
}

impl PublishAnswer {
    /// The size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.text.len() as u64).sum()
    }
}

/// The public folder, if `dir` in `[publish]` is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishStatus {
    pub dir: PathBuf,
    /// When it was last written, in seconds since 1970; `None`: not since the start.
    pub published_at: Option<u64>,
    /// The index of that publication in the log.
    pub index: Option<u64>,
    /// The size of all files.
    pub bytes: u64,
    /// Why it is not up to date.
    pub problem: Option<String>,
}

impl PublishStatus {
    pub(crate) fn new(dir: &Path) -> PublishStatus {
        let dir = dir.to_owned();
        PublishStatus { dir, published_at: None, index: None, bytes: 0, problem: None }
    }
}

/// The response to `POST /v1/console`: a link that works once. No `Debug`, because it is secret.
#[derive(Serialize, Deserialize)]
pub struct ConsoleAnswer {
    pub link: String,
    /// The same at sites of the edge that lead to the console. Only one of all these can be used.
    pub sites: Vec<String>,
    /// For how long they can be used.
    pub seconds: u64,
}

/// What `wiretight status --json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    #[serde(flatten)]
    pub process: ProcessStatus,
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
    /// The proof of logging that peers must provide.
    #[serde(default)]
    pub transparency: TransparencyStatus,
    /// The transparency log, if this node is the authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStatus>,
    /// What the authority logs about the traffic of the mesh, if this node is the authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<ClaimsStatus>,
    /// The releases that nodes run, if this node is the authority and has a policy for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases: Option<ReleasesStatus>,
    /// The services that this node offers.
    pub services: Vec<ServiceStatus>,
    /// The services that programs on this node call.
    pub dials: Vec<DialStatus>,
    /// Connections, totals and refusals.
    pub relay: RelayStatus,
    /// Sites and what they serve.
    pub edge: EdgeStatus,
    /// Why a site's certificate is not renewed, or its certificate files are not in use, by site.
    pub site_errors: BTreeMap<String, String>,
    /// The state of transparent interception, if it is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intercept: Option<InterceptStatus>,
    /// What the configuration lets through unencrypted, with its `[[exception]]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
    /// What flows, and how much of it is encrypted, if `[watch]` is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<WatchStatus>,
    /// The public proof page, if the authority on this node keeps one up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<PublishStatus>,
    /// How far Landlock is enforced.
    pub sandbox: Sandbox,
    /// The program that runs, and whether it is proved to be a release. `None`: an older program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Standing>,
}

/// The part of [`Status`] that `wiretight upgrade` reads. The process it replaces may be of any older version, so these
/// fields must not change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The version of the running process.
    pub version: String,
    pub node: Name,
    pub trust_domain: TrustDomain,
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether an upgrade is in progress: the previous process could still resume.
    pub taking_over: bool,
}

/// What mesh peers have to prove besides their identity.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TransparencyStatus {
    /// Whether peers are refused whose certificates carry no proof of logging.
    pub required: bool,
    /// The quorum of witnesses; `"none"`: the log's own signature is enough.
    pub quorum: Option<String>,
    /// Seconds since the last contact with the authority, and so the age of the revocation list; `None` if there was
    /// none since the start.
    pub news_age_seconds: Option<u64>,
    /// Whether that is longer than `max_staleness`, so that the node makes and accepts no connections.
    pub without_news: bool,
}

/// An identity of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdentityStatus {
    pub id: SpiffeId,
    /// When it expires, in seconds since 1970.
    pub not_after: u64,
    /// Seconds until then; negative if it has expired.
    pub expires_in_seconds: i64,
    /// Its serial number.
    pub serial: String,
}

/// A service that this node offers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: Name,
    /// Where it listens.
    pub listen: String,
    /// Where its traffic goes.
    pub forward: Vec<String>,
    /// The identities that may connect.
    pub allow: Vec<Id>,
}

/// A service that programs on this node call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DialStatus {
    pub service: Name,
    /// Where programs connect.
    pub listen: String,
    /// The identity that the node presents.
    pub identity: Id,
    /// The addresses of its instances, configured or registered.
    pub instances: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status with every optional part. The keys and their order are also what scripts read.
    #[test]
    fn a_full_status_is_written_and_read_without_loss() {
        let text = include_str!("status.json");
        for missing in ["null", "[]", "{}"] {
            assert!(!text.contains(missing), "a part is missing from status.json: {missing}");
        }
        let status: Status = serde_json::from_str(text).unwrap();
        let written = serde_json::to_string(&status).unwrap();
        let again: Status = serde_json::from_str(&written).unwrap();
        assert_eq!(format!("{again:?}"), format!("{status:?}"));
        assert_eq!(serde_json::to_string_pretty(&again).unwrap(), text.trim_end());
    }

    /// The response of an older process, also without what the first builds of 0.1.0 lacked; and with what a later
    /// version may add.
    #[test]
    fn the_status_of_another_version_is_read() {
        let text = include_str!("status-old.json");
        let old: Status = serde_json::from_str(text).unwrap();
        assert_eq!((old.process.pid, old.process.version.as_str()), (32555, "0.1.0"));
        assert_eq!(serde_json::to_string_pretty(&old).unwrap(), text.trim_end());

        let mut other: serde_json::Value = serde_json::from_str(text).unwrap();
        other.as_object_mut().unwrap().remove("transparency");
        let link = other["authority_link"].as_object_mut().unwrap();
        for key in ["alone", "unused", "refused"] {
            link.remove(key).unwrap();
        }
        link.insert("later".into(), true.into());
        other["relay"]["refused"] = serde_json::json!([
            { "side": "dial", "service": "db", "reason": "of_a_later_version", "count": 1 }
        ]);
        other["later"] = serde_json::json!({ "a": [1] });
        let other: Status = serde_json::from_value(other).unwrap();
        assert!(!other.transparency.required && !other.authority_link.alone);
        assert_eq!(other.relay.refused[0].reason, wiretight_proxy::Reason::Other);
    }

    /// `wiretight upgrade` reads no other part, so it works even if the rest has changed.
    #[test]
    fn upgrade_reads_only_the_part_about_the_process() {
        let text = r#"{"version":"0.1.0","node":"a","trust_domain":"b.example","pid":7,"uptime_seconds":1,
            "taking_over":false,"relay":"unknown"}"#;
        assert_eq!(serde_json::from_str::<ProcessStatus>(text).unwrap().pid, 7);
        assert!(serde_json::from_str::<Status>(text).is_err());
    }
}
