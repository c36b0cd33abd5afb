//! The agent's files in STATE_DIR/identity, with which a node can restart without the authority:
//!
//! ```text
//! enrolment.key       the long-lived key that authenticates a rejoin
//! joined.json         trust domain, node, the authority's addresses, the token's ID
//! node.pem            the node's key and chain; service-NAME.pem for each service
//! bundle.pem          the roots of the trust bundle
//! state.json          the last pushed state
//! asked-keys          hashes of the public keys of certificate requests, for `wiretight svid keys`
//! contact             time of the authority's last message, in seconds since 1970; only with max_staleness
//! ```
//!
//! A key and its chain are in one file, so they change together. An unreadable file is renamed to `NAME.bad` and its
//! content is requested again; the content of a file never causes a failure.

use std::path::Path;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wiretight_keys::token::hex;
use wiretight_keys::x509::{from_pem, to_pem};
use wiretight_keys::{Id, Name, Signer, SigningKey, SpiffeId, TrustBundle, TrustDomain};
use wiretight_proxy::clock::now;
use wiretight_proxy::network::HostPort;
use wiretight_proxy::{Identity, Mesh};
use zeroize::Zeroizing;

use crate::control::{Blob, FromAuthority, Message, State};
use crate::private_dir::{FileError, PrivateDir};

const ENROLMENT: &str = "enrolment.key";
const JOINED: &str = "joined.json";
const BUNDLE: &str = "bundle.pem";
const STATE: &str = "state.json";
const ASKED: &str = "asked-keys";
/// The most lines in that file, for one identity and in total.
const MAX_ASKED: (usize, usize) = (64, 4096);
const CONTACT: &str = "contact";
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// The largest file of keys, chains or bundles.
const MAX_PEM: usize = 1 << 20;

/// A join of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub(super) trust_domain: TrustDomain,
    pub(super) node: Name,
    pub(super) authority: Vec<HostPort>,
    /// The ID of the token that it joined with, to recognise a new token.
    pub(super) token_id: String,
}

/// The data from disk.
#[derive(Default)]
pub(super) struct Saved {
    pub(super) enrolment: Option<SigningKey>,
    pub(super) membership: Option<Membership>,
    pub(super) identities: Vec<Identity>,
    pub(super) bundle: Vec<CertificateDer<'static>>,
    /// Its `version` is 0 if it may be incomplete.
    pub(super) state: Option<State>,
}

pub(super) struct Disk {
    dir: PrivateDir,
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<Disk, FileError> {
        Ok(Disk { dir: PrivateDir::open(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Loads everything that is readable.
    pub(super) fn load(&self, trust_domain: &TrustDomain) -> Result<Saved, FileError> {
        let mut saved = Saved {
            enrolment: self.file(ENROLMENT, MAX_PEM, |pem| {
                SigningKey::from_pem(pem).map_err(|e| e.to_string())
            })?,
            membership: self.file(JOINED, MAX_PEM, json)?,
            state: self.file(STATE, 2 * FromAuthority::MAX, json)?,
            ..Saved::default()
        };
        let bundle = self.file(BUNDLE, MAX_PEM, |pem| from_pem(pem).map_err(|e| e.to_string()))?;
        saved.bundle = match (bundle, &mut saved.state) {
            (Some(bundle), Some(state)) => {
                // A crash between the two writes, or a join with a new token: request the whole state.
                if !bundle.iter().map(Blob::from).eq(state.bundle.iter().cloned()) {
                    state.version = 0;
                }
                bundle
            }
            (Some(bundle), None) => bundle,
            // Use the copy in the state until everything is requested again.
            (None, Some(state)) => {
                state.version = 0;
                state.bundle.iter().map(|b| b.certificate()).collect()
            }
            (None, None) => Vec::new(),
        };
        for name in self.dir.names()? {
            let Some(id) = id_of(&name, &saved) else { continue };
            let expected = id.map(|id| SpiffeId::new(trust_domain.clone(), id));
            let identity = self.file(&name, MAX_PEM, |pem| identity(pem, expected.as_ref()))?;
            saved.identities.extend(identity);
        }
        Ok(saved)
    }

    pub(super) fn save_enrolment(&self, key: &SigningKey) -> Result<(), FileError> {
        self.dir.write(ENROLMENT, key.to_pem().as_bytes())
    }

    pub(super) fn save_membership(&self, membership: &Membership) -> Result<(), FileError> {
        let json = serde_json::to_vec(membership).expect("a membership is plain data");
        self.dir.write(JOINED, &json)
    }

    pub(super) fn save_identity(
        &self,
        id: &Id,
        key: &SigningKey,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), FileError> {
        let mut pem = Zeroizing::new(key.to_pem().to_string());
        pem.push_str(&to_pem(chain));
        self.dir.write(&file_of(id), pem.as_bytes())
    }

    /// Saves the hashes of these keys before certificates are requested for them: the certificates are in the log even if
    /// the responses are lost.
    pub(super) fn note_asked(&self, keys: &[(Id, [u8; 32])]) -> Result<(), FileError> {
        let new: Vec<_> =
            keys.iter().map(|(id, key)| (asked_line(id, key), format!("{id} "))).collect();
        let text = self.dir.read(ASKED, MAX_PEM)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<&str> = text.lines().collect();
        for (line, same) in &new {
            lines.retain(|known| known != line);
            let of_id = lines.iter().filter(|known| known.starts_with(same)).count();
            if of_id >= MAX_ASKED.0
                && let Some(oldest) = lines.iter().position(|known| known.starts_with(same))
            {
                lines.remove(oldest);
            }
            lines.push(line);
        }
        let newest = &lines[lines.len().saturating_sub(MAX_ASKED.1)..];
        self.dir.write(ASKED, (newest.join("\n") + "\n").as_bytes())
    }

    pub(super) fn remove_identity(&self, id: &Id) -> Result<(), FileError> {
        self.dir.remove(&file_of(id))
    }

    /// Removes every SVID and its key, because this node was removed from the mesh.
    pub(super) fn remove_identities(&self) -> Result<(), FileError> {
        for name in self.dir.names()? {
            if name == NODE || (name.starts_with(SERVICE) && name.ends_with(".pem")) {
                self.dir.remove(&name)?;
            }
        }
        Ok(())
    }

    pub(super) fn save_bundle(&self, roots: &[CertificateDer<'static>]) -> Result<(), FileError> {
        self.dir.write(BUNDLE, to_pem(roots).as_bytes())
    }

    /// Writes the bundle first: after a crash in between, the whole state is requested again.
    pub(super) fn save_state(&self, state: &State) -> Result<(), FileError> {
        let roots: Vec<_> = state.bundle.iter().map(|b| b.certificate()).collect();
        self.save_bundle(&roots)?;
        let json = serde_json::to_vec(state).expect("the state is plain data");
        self.dir.write(STATE, &json)
    }

    pub(super) fn save_contact(&self, at: u64) -> Result<(), FileError> {
        self.dir.write(CONTACT, at.to_string().as_bytes())
    }

    /// Reads and parses a file; an invalid one is renamed.
    fn file<T>(
        &self,
        name: &str,
        max: usize,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<Option<T>, FileError> {
        let Some(bytes) = self.dir.read(name, max)? else { return Ok(None) };
        match parse(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(why) => {
                let path = self.dir.path().join(name);
                tracing::error!(file = %path.display(),
                    "the file is invalid ({why}); it is renamed to {name}.bad, and its content is requested again");
                self.dir.rename(name, &format!("{name}.bad"))?;
                Ok(None)
            }
        }
    }
}

fn asked_line(id: &Id, key: &[u8; 32]) -> String {
    format!("{id} sha256:{}", hex(key))
}

/// The keys of a node's identities, then those of its certificate requests, each as `NAME sha256:HEX`. `dir` is
/// STATE_DIR/identity.
pub fn keys(dir: &Path) -> Result<Vec<String>, FileError> {
    let dir = PrivateDir::open(dir)?;
    let mut lines = Vec::new();
    for name in dir.names()? {
        let is_identity = name == NODE || (name.starts_with(SERVICE) && name.ends_with(".pem"));
        let Some(pem) = dir.read(&name, MAX_PEM)?.filter(|_| is_identity) else { continue };
        match identity(&pem, None) {
            Ok(held) => lines.push(asked_line(&held.id().id, &held.leaf().key.hash())),
            Err(why) => tracing::warn!(file = name, "the file is invalid: {why}"),
        }
    }
    let asked = dir.read(ASKED, MAX_PEM)?.unwrap_or_default();
    for line in String::from_utf8_lossy(&asked).lines() {
        if !lines.iter().any(|known| known == line) {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

const NODE: &str = "node.pem";
const SERVICE: &str = "service-";

fn file_of(id: &Id) -> String {
    match id {
        Id::Service(name) => format!("{SERVICE}{name}.pem"),
        Id::Node(_) | Id::Authority => NODE.into(),
    }
}

/// How often to check whether another process has written.
const FOLLOW: Duration = Duration::from_millis(250);

/// For a process that another process of this node has taken over from: applies the state that the other process receives
/// from the authority, so that revoked peers are cut off here, too. The same holds for `max_staleness`. Runs until
/// dropped.
pub async fn follow(dir: &Path, mesh: &Mesh, max_staleness: Option<Duration>) {
    let file = dir.join(STATE);
    let (mut known, since) = (None, now());
    loop {
        tokio::time::sleep(FOLLOW).await;
        if let Some(limit) = max_staleness {
            // The file is updated only at this interval.
            let limit = limit + contact_interval(limit);
            let silent = now().saturating_sub(read_contact(dir).unwrap_or(since));
            if mesh.set_without_news(silent > limit.as_secs()) && mesh.is_without_news() {
                tracing::error!(
                    silent_seconds = silent,
                    "the process that has taken over is out of contact with the authority: connections are closed (max_staleness)"
                );
            }
        }
        let written = std::fs::metadata(&file).and_then(|m| m.modified()).ok();
        if written.is_none() || written == known {
            continue;
        }
        match read_state(dir, mesh.trust_domain()) {
            Ok((state, bundle)) => {
                known = written;
                mesh.set_bundle(bundle);
                mesh.set_registry(state.registry);
            }
            // The other process handles it; the trust bundle here stays unchanged.
            Err(why) => tracing::warn!(why, "the saved state of the authority is unreadable"),
        }
    }
}

/// How often the time of contact with the authority is saved.
pub(super) fn contact_interval(limit: Duration) -> Duration {
    (limit / 10).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

fn read_contact(dir: &Path) -> Option<u64> {
    let bytes = PrivateDir::open(dir).ok()?.read(CONTACT, 32).ok()??;
    str::from_utf8(&bytes).ok()?.parse().ok()
}

fn read_state(dir: &Path, trust_domain: &TrustDomain) -> Result<(State, TrustBundle), String> {
    let dir = PrivateDir::open(dir).map_err(|e| e.to_string())?;
    let bytes = dir.read(STATE, 2 * FromAuthority::MAX).map_err(|e| e.to_string())?;
    let state: State = json(&bytes.ok_or("it is gone")?)?;
    let bundle = state.trust_bundle(trust_domain)?;
    Ok((state, bundle))
}

/// The identity in a file: `None` if it is another kind of file, `Some(None)` if the file's name does not contain it.
fn id_of(file: &str, saved: &Saved) -> Option<Option<Id>> {
    if file == NODE {
        return Some(saved.membership.as_ref().map(|m| Id::Node(m.node.clone())));
    }
    let name = file.strip_prefix(SERVICE)?.strip_suffix(".pem")?;
    Some(Some(Id::Service(name.parse().ok()?)))
}

fn identity(pem: &[u8], expected: Option<&SpiffeId>) -> Result<Identity, String> {
    let split = pem.windows(CERTIFICATE.len()).position(|w| w == CERTIFICATE);
    let (key, chain) = pem.split_at(split.ok_or("it holds no certificate")?);
    let key = SigningKey::from_pem(key).map_err(|e| e.to_string())?;
    let chain = from_pem(chain).map_err(|e| e.to_string())?;
    let identity = Identity::new(chain, &key).map_err(|e| e.to_string())?;
    match expected {
        Some(expected) if expected != identity.id() => {
            Err(format!("it holds {}, not {expected}", identity.id()))
        }
        _ => Ok(identity),
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// The enrolment key's public half, as `join` carries it.
pub(super) fn public_der(key: &SigningKey) -> Vec<u8> {
    wiretight_keys::PublicKey::new(key.public_key()).expect("a key of ours is a P-256 key").to_der()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_draining_process_closes_connections_when_the_next_one_is_out_of_contact() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("identity")).unwrap();
        let mesh = Mesh::new("example.org".parse().unwrap());
        let limit = Some(Duration::from_secs(60));
        let followed = async |at: u64, too_old: bool| {
            disk.save_contact(at).unwrap();
            let mut changes = mesh.changes();
            let told = async {
                while mesh.is_without_news() != too_old {
                    changes.changed().await.unwrap();
                }
            };
            tokio::select! {
                () = follow(disk.path(), &mesh, limit) => unreachable!("it never ends"),
                told = tokio::time::timeout(Duration::from_secs(10), told) => told.unwrap(),
            }
        };
        followed(now() - 600, true).await;
        followed(now(), false).await;
    }
}
