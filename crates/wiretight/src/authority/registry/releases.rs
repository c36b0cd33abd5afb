//! Which releases the nodes run, and who gets no identity because of that (`require_release`).
//!
//! A node says which program it runs, by its hash, and sends the proof of its release. The authority verifies the proof by
//! its own policy, and so knows that this program was published. That the node runs it is the node's own word.
//!
//! ```text
//! release/NAME       what a node says
//! released/minimum   the highest minimum version of all releases that were ever proved here
//! unproved/NAME      for how long a node has had no proved release
//! ```
//!
//! That time is counted only while this authority runs and requires releases, by the time since boot. So setting the clock
//! does not change it. Silence counts too, so a node cannot reset it by reporting nothing, nor by a new connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use semver::Version;
use serde::{Deserialize, Serialize};
use wiretight_keys::Name;
use wiretight_proxy::clock::now;
use wiretight_scan::report::clean;
use wiretight_store::{Error, Key, update};
use wiretight_tlog::Hash;

use super::{Registry, internal, json, key, read};
use crate::clock::uptime;
use crate::config::{self, Config};
use crate::control::report::{MAX_RELEASE_PROOF, ReportedRelease};
use crate::control::{Code, Denial};
use crate::logging::chain;
use crate::release::entry::{Entry, hash};
use crate::release::own::check_program;
use crate::release::policy::ReleasePolicyError;
use crate::release::{Artifact, Proved, ReleasePolicy, ReleaseProof};

const SAID: &str = "release/";
const UNPROVED: &str = "unproved/";
const MINIMUM: &str = "released/minimum";
/// The longest explanation that is kept, in bytes.
const MAX_WHY: usize = 500;
/// How often the log warns that the authority's own node is not proved.
const WARN: Duration = Duration::from_secs(3600);
/// How long its first report may take until then.
const FIRST_REPORT: Duration = Duration::from_secs(60);

/// What the authority does about the releases of nodes.
#[derive(Debug, Clone, Default)]
pub struct ReleaseParams {
    /// Who is believed about releases; `None`: releases are not checked.
    pub policy: Option<Arc<ReleasePolicy>>,
    /// How long a node may be without a proved release before it gets no identities; `None`: forever.
    pub grace: Option<Duration>,
}

impl ReleaseParams {
    /// `authority` is the section of `config`.
    pub fn from_config(
        config: &Config,
        authority: &config::Authority,
    ) -> Result<ReleaseParams, ReleasePolicyError> {
        let policy = config.release.as_ref().map(|of| ReleasePolicy::read(&of.policy));
        let policy = policy.transpose()?.map(Arc::new);
        let grace = authority.require_release.then_some(authority.release_grace);
        Ok(ReleaseParams { policy, grace })
    }
}

/// What is known of the release that a node runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRelease {
    /// SHA-256 of its program in hex, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    pub verdict: ReleaseVerdict,
    /// In how many seconds it gets no more identities; 0: now. `None`: it is proved, or that is not required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_in: Option<u64>,
}

impl NodeRelease {
    /// Whether nothing is known, and nothing follows.
    pub fn is_unknown(&self) -> bool {
        *self == NodeRelease::default()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseVerdict {
    /// A release that the authority's policy accepts.
    Proved(Box<Proved>),
    /// Why not.
    Unproved(String),
    /// The authority has no policy for releases.
    Unchecked,
    /// The node says nothing: it has not reported yet, or its program is too old for that.
    #[default]
    Unknown,
}

impl ReleaseVerdict {
    pub fn proved(&self) -> Option<&Proved> {
        match self {
            ReleaseVerdict::Proved(proved) => Some(proved),
            _ => None,
        }
    }

    #[cfg(test)]
    pub(crate) fn proved_example(version: &str) -> ReleaseVerdict {
        let version: Version = version.parse().expect("a version");
        ReleaseVerdict::Proved(Box::new(Proved {
            name: "wiretight".into(),
            minimum: version.clone(),
            version,
            expires: jiff::Timestamp::MAX,
            file: "wiretight".into(),
            sha256: "9d".repeat(32),
            tree: "5f".repeat(20),
            origin: "example.org/releases".into(),
            index: 7,
            witnessed: None,
            rebuilt: vec!["ngo".into(), "uni".into()],
            differ: Vec::new(),
        }))
    }

    /// Why the release is not proved.
    pub fn problem(&self) -> Option<&str> {
        match self {
            ReleaseVerdict::Proved(_) => None,
            ReleaseVerdict::Unproved(why) => Some(why),
            ReleaseVerdict::Unchecked => Some("this authority has no release policy"),
            ReleaseVerdict::Unknown => {
                Some("it does not say which release it runs: its program may be too old for that")
            }
        }
    }
}

/// The releases of all nodes, for `wiretight status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasesStatus {
    /// How long a node may be without a proved release, in seconds; `None`: that is not required.
    pub grace_seconds: Option<u64>,
    /// Nodes that run a proved release.
    pub proved: usize,
    /// The others.
    pub unproved: BTreeMap<Name, NodeRelease>,
}

/// What a node says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    release: ReportedRelease,
    /// Why that cannot be verified at all.
    invalid: Option<String>,
    /// Over both.
    digest: Hash,
}

impl Said {
    fn new(mut release: ReportedRelease) -> Said {
        let mut invalid = None;
        if hash(&release.sha256).is_none() {
            invalid = Some("what it says is not the SHA-256 of a program".to_owned());
            release = ReportedRelease { sha256: String::new(), proof: None };
        }
        if let Some(proof) = release.proof.take_if(|proof| proof.len() > MAX_RELEASE_PROOF) {
            let length = proof.len();
            invalid =
                Some(format!("its proof has {length} bytes, but the limit is {MAX_RELEASE_PROOF}"));
        }
        let proof = release.proof.as_deref().unwrap_or_default();
        let why = invalid.as_deref().unwrap_or_default();
        let digest = Hash::of(format!("{}\0{why}\0{proof}", release.sha256).as_bytes());
        Said { release, invalid, digest }
    }

    fn judge(
        &self,
        policy: &ReleasePolicy,
        now: u64,
        minimum: Option<&Version>,
    ) -> Result<Proved, String> {
        if let Some(why) = &self.invalid {
            return Err(why.clone());
        }
        let sha256 = hash(&self.release.sha256).ok_or("it does not say which program it runs")?;
        let proof = self.release.proof.as_ref();
        let proof =
            proof.ok_or("it has sent no proof: FILE.proof is missing beside its program")?;
        let proof = ReleaseProof::parse(proof.as_bytes())
            .map_err(|e| format!("its proof is invalid: {}", chain(&e)))?;
        let size = match proof.release.entry.entry() {
            Entry::Release(release) => release.file(sha256).map(|file| file.size),
            Entry::Source(_) | Entry::Rebuild(_) => None,
        };
        // The hash decides. If the release has no such file, the size does not matter.
        let artifact = Artifact { sha256, size: size.unwrap_or_default() };
        check_program(policy, &proof, artifact, now, minimum).map_err(|e| chain(&e))
    }
}

/// For how long a node has had no proved release.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unproved {
    /// Until `since`, or until this process started.
    before: Duration,
    /// By [`uptime`], while it has none.
    since: Option<Duration>,
    /// What the store has.
    stored: Option<Duration>,
}

impl Unproved {
    fn note(&mut self, is_proved: bool, uptime: Duration) {
        match is_proved {
            true => (self.before, self.since) = (Duration::ZERO, None),
            false => {
                self.since.get_or_insert(uptime);
            }
        }
    }

    fn total(&self, uptime: Duration) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| uptime.saturating_sub(since))
    }
}

#[derive(Default)]
struct Known {
    /// A new enrolment, which needs a token of the operator, starts with a new time of grace.
    enrolment: String,
    said: Option<Arc<Said>>,
    unproved: Unproved,
}

#[derive(Default)]
struct State {
    nodes: HashMap<Name, Known>,
    minimum: Option<Version>,
    minimum_stored: Option<Version>,
    /// Of this minute, by [`Said::digest`]. Many nodes run the same release.
    verdicts: HashMap<Hash, ReleaseVerdict>,
    minute: u64,
    /// When the log warned of the authority's own node, by [`uptime`].
    warned: Option<Duration>,
}

#[derive(Default)]
pub(super) struct Releases {
    params: RwLock<ReleaseParams>,
    state: Mutex<State>,
}

#[derive(Serialize, Deserialize)]
struct UnprovedRecord {
    enrolment: String,
    milliseconds: u64,
}

impl State {
    fn verdict(
        &mut self,
        said: Option<&Said>,
        policy: Option<&ReleasePolicy>,
        now: u64,
    ) -> ReleaseVerdict {
        let Some(policy) = policy else { return ReleaseVerdict::Unchecked };
        let Some(said) = said else { return ReleaseVerdict::Unknown };
        if std::mem::replace(&mut self.minute, now / 60) != now / 60 {
            self.verdicts.clear();
        }
        if let Some(verdict) = self.verdicts.get(&said.digest) {
            return verdict.clone();
        }
        let verdict = match said.judge(policy, now, self.minimum.as_ref()) {
            Ok(proved) => ReleaseVerdict::Proved(Box::new(proved)),
            Err(why) => {
                let mut why = clean(&why).into_owned();
                why.truncate(why.floor_char_boundary(MAX_WHY));
                ReleaseVerdict::Unproved(why)
            }
        };
        if let Some(proved) = verdict.proved()
            && self.minimum.as_ref().is_none_or(|minimum| *minimum < proved.minimum)
        {
            self.minimum = Some(proved.minimum.clone());
            // Others may be too old now.
            self.verdicts.clear();
        }
        self.verdicts.insert(said.digest, verdict.clone());
        verdict
    }

    /// What is known of a node now. `enrolment`: its current one, if the caller knows it.
    fn look(
        &mut self,
        node: &Name,
        enrolment: Option<&str>,
        params: &ReleaseParams,
        (now, uptime): (u64, Duration),
    ) -> NodeRelease {
        let known = self.nodes.entry(node.clone()).or_default();
        if let Some(enrolment) = enrolment
            && known.enrolment != enrolment
        {
            let stored = known.unproved.stored;
            *known = Known { enrolment: enrolment.to_owned(), ..Known::default() };
            known.unproved.stored = stored;
        }
        let said = known.said.clone();
        let verdict = self.verdict(said.as_deref(), params.policy.as_deref(), now);
        let known = self.nodes.entry(node.clone()).or_default();
        let is_proved = verdict.proved().is_some();
        known.unproved.note(is_proved || params.grace.is_none(), uptime);
        let left = |grace: Duration| grace.saturating_sub(known.unproved.total(uptime));
        NodeRelease {
            sha256: said.map(|said| said.release.sha256.clone()).filter(|text| !text.is_empty()),
            // The last part of a second counts, so that 0 means now.
            refused_in: params
                .grace
                .filter(|_| !is_proved)
                .map(|g| left(g).as_millis().div_ceil(1000) as u64),
            verdict,
        }
    }
}

impl Registry {
    pub(in crate::authority) fn set_releases(&self, params: ReleaseParams) {
        *self.releases.params.write() = params;
        self.releases.state.lock().verdicts.clear();
    }

    /// Reads what was known before the start.
    pub(in crate::authority) async fn load_releases(&self) -> Result<(), Error> {
        let said = self.folder::<ReportedRelease>(SAID).await?;
        let unproved = self.folder::<UnprovedRecord>(UNPROVED).await?;
        let minimum = self.store.get(&key(MINIMUM.into())).await?;
        let minimum: Option<Version> = minimum.and_then(|entry| read(&entry.value));
        let nodes = self.nodes().await?;
        let mut state = self.releases.state.lock();
        (state.minimum, state.minimum_stored) = (minimum.clone(), minimum);
        for (name, record) in nodes {
            let said = said.get(name.as_str()).cloned().map(|said| Arc::new(Said::new(said)));
            let stored = unproved.get(name.as_str());
            let stored = stored.filter(|stored| stored.enrolment == record.enrolment);
            let before = stored.map(|stored| Duration::from_millis(stored.milliseconds));
            let unproved =
                Unproved { before: before.unwrap_or_default(), since: None, stored: before };
            state.nodes.insert(name, Known { enrolment: record.enrolment, said, unproved });
        }
        Ok(())
    }

    /// Keeps what a node says of its release. `None`: it says nothing. What cannot be verified is kept as that.
    pub(super) async fn keep_release(
        &self,
        node: &Name,
        enrolment: &str,
        release: Option<ReportedRelease>,
    ) -> Result<(), Denial> {
        let before = self.said(node);
        let is_the_same = |said: &Said, new: &ReportedRelease| {
            new.proof.is_none() && new.sha256 == said.release.sha256
        };
        let said = match (&before, release) {
            (Some(before), Some(new)) if is_the_same(before, &new) => Some(before.clone()),
            (_, new) => new.map(|new| Arc::new(Said::new(new))),
        };
        if said != before {
            let record = said.as_ref().map(|said| json(&said.release));
            let write = |_: Option<&[u8]>| Ok::<_, Error>(record.clone());
            update(&*self.store, &said_key(node), write).await.map_err(internal)?;
        }
        let params = self.releases.params.read().clone();
        let mut state = self.releases.state.lock();
        // A new enrolment is noted first, because it forgets what was said.
        state.look(node, Some(enrolment), &params, (now(), uptime()));
        state.nodes.entry(node.clone()).or_default().said = said;
        let known = state.look(node, None, &params, (now(), uptime()));
        drop(state);
        if let (Some(_), Some(why)) = (&params.policy, known.verdict.problem()) {
            tracing::debug!(%node, "the release of the node is not proved: {why}");
        }
        Ok(())
    }

    fn said(&self, node: &Name) -> Option<Arc<Said>> {
        self.releases.state.lock().nodes.get(node)?.said.clone()
    }

    /// Keeps what a node without an identity says. It must have proved that it is enrolled.
    pub(super) async fn keep_release_of_stranger(
        &self,
        node: &Name,
        enrolment: &str,
        release: ReportedRelease,
    ) -> Result<(), Denial> {
        if !self.may_report(node, Instant::now()) {
            let message = "this node tells too often which release it runs: try again later";
            return Err(Denial::new(Code::Busy, message));
        }
        self.keep_release(node, enrolment, Some(release)).await
    }

    /// Whether a node may get identities, as far as its release is concerned.
    pub(super) fn admits(&self, node: &Name, enrolment: &str) -> Result<(), Denial> {
        let params = self.releases.params.read().clone();
        let Some(grace) = params.grace else { return Ok(()) };
        let mut state = self.releases.state.lock();
        let known = state.look(node, Some(enrolment), &params, (now(), uptime()));
        let (Some(0), Some(why)) = (known.refused_in, known.verdict.problem()) else {
            return Ok(());
        };
        let grace = jiff::SignedDuration::try_from(grace).unwrap_or_default();
        let message = format!(
            "this mesh requires a proved release, and node {node} has had none for more than {grace:#} (release_grace): {why}. Install a release that the authority's policy accepts, with its proof beside it (docs/release.md), and start it. `wiretight node list` on the authority shows what it knows."
        );
        Err(Denial::new(Code::UnprovedRelease, message))
    }

    /// What is known of the releases of all nodes.
    pub(in crate::authority) fn releases(&self) -> BTreeMap<Name, NodeRelease> {
        let params = self.releases.params.read().clone();
        let mut state = self.releases.state.lock();
        let names: Vec<Name> = state.nodes.keys().cloned().collect();
        let at = (now(), uptime());
        names
            .into_iter()
            .map(|name| {
                let known = state.look(&name, None, &params, at);
                (name, known)
            })
            .collect()
    }

    /// The same in short; `None` without a policy.
    pub(in crate::authority) fn releases_status(&self) -> Option<ReleasesStatus> {
        let params = self.releases.params.read().clone();
        params.policy?;
        let (proved, unproved): (BTreeMap<_, _>, _) =
            self.releases().into_iter().partition(|(_, of)| of.verdict.proved().is_some());
        let grace_seconds = params.grace.map(|grace| grace.as_secs());
        Some(ReleasesStatus { grace_seconds, proved: proved.len(), unproved })
    }

    /// Stores for how long nodes have had no proved release, and warns of the node in this process. `all`: also what has
    /// changed only a little.
    pub(in crate::authority) async fn save_releases(&self, all: bool) -> Result<(), Error> {
        let known = self.releases();
        let grace = self.releases.params.read().grace;
        if let Some(own) = self.own.get() {
            self.warn_of_own(own, known.get(own).cloned().unwrap_or_default());
        }
        // A restart of the authority gives the nodes at most this much more.
        let step = match grace {
            Some(grace) if !all => {
                (grace / 100).clamp(Duration::from_secs(1), Duration::from_secs(600))
            }
            _ => Duration::ZERO,
        };
        let mut changed = Vec::new();
        let raised = {
            let mut state = self.releases.state.lock();
            let uptime = uptime();
            for (name, Known { enrolment, unproved, .. }) in &mut state.nodes {
                let total = unproved.total(uptime);
                let stored = unproved.stored.unwrap_or_default();
                if total.is_zero() && unproved.stored.is_some() {
                    changed.push((name.clone(), None));
                    unproved.stored = None;
                } else if total.abs_diff(stored) > step {
                    let milliseconds = total.as_millis().try_into().unwrap_or(u64::MAX);
                    let record = UnprovedRecord { enrolment: enrolment.clone(), milliseconds };
                    changed.push((name.clone(), Some(json(&record))));
                    unproved.stored = Some(total);
                }
            }
            let raised = state.minimum.clone().filter(|m| state.minimum_stored.as_ref() != Some(m));
            state.minimum_stored = state.minimum.clone();
            raised
        };
        for (name, record) in changed {
            update(&*self.store, &unproved_key(&name), |_| Ok::<_, Error>(record.clone())).await?;
        }
        if let Some(minimum) = raised {
            tracing::info!(%minimum, "a release with a higher minimum version was proved: older ones are not accepted");
            let minimum = json(&minimum);
            let write = |_: Option<&[u8]>| Ok::<_, Error>(Some(minimum.clone()));
            update(&*self.store, &key(MINIMUM.into()), write).await?;
        }
        Ok(())
    }

    /// The authority's node is refused like any other one. Its operator must not learn that from an outage.
    fn warn_of_own(&self, own: &Name, known: NodeRelease) {
        let (Some(left), Some(why)) = (known.refused_in, known.verdict.problem()) else { return };
        let mut state = self.releases.state.lock();
        let uptime = uptime();
        let is_silent = known.verdict == ReleaseVerdict::Unknown;
        let due = match state.warned {
            Some(at) => uptime >= at + WARN,
            None if is_silent => {
                let waits = state.nodes.get(own).map(|of| of.unproved.total(uptime));
                waits.is_some_and(|waits| waits >= FIRST_REPORT)
            }
            None => true,
        };
        if due {
            state.warned = Some(uptime);
            tracing::error!(
                node = %own,
                seconds_left = left,
                "THE AUTHORITY'S OWN NODE RUNS NO PROVED RELEASE, but require_release is on: {why}. Without one, this node gets no identity after that time, and its services stop. The authority itself continues."
            );
        }
    }

    pub(super) async fn forget_release(&self, node: &Name) -> Result<(), Error> {
        self.releases.state.lock().nodes.remove(node);
        self.delete_key(&said_key(node)).await?;
        self.delete_key(&unproved_key(node)).await
    }
}

fn said_key(node: &Name) -> Key {
    key(format!("{SAID}{node}"))
}

fn unproved_key(node: &Name) -> Key {
    key(format!("{UNPROVED}{node}"))
}

#[cfg(test)]
use crate::release;
#[cfg(test)]
#[path = "../../../tests/control/publisher.rs"]
mod publisher;

#[cfg(test)]
mod tests {
    use super::publisher::{Publisher, sha256};
    use super::*;

    const PROGRAM: &[u8] = b"the program";
    const NOW: Duration = Duration::from_secs(1000);

    fn said(sha256: String, proof: Option<String>) -> Said {
        Said::new(ReportedRelease { sha256, proof })
    }

    fn known(said: Option<Said>) -> State {
        let mut state = State::default();
        let known = state.nodes.entry("a".parse().unwrap()).or_default();
        (known.said, known.enrolment) = (said.map(Arc::new), "1".into());
        state
    }

    fn look(state: &mut State, enrolment: &str, params: &ReleaseParams, at: u64) -> NodeRelease {
        let node = "a".parse().unwrap();
        state.look(&node, Some(enrolment), params, (now(), NOW + Duration::from_secs(at)))
    }

    #[test]
    fn only_the_release_of_this_program_is_proved() {
        let publisher = Publisher::new();
        let policy = publisher.policy();
        let proof = publisher.proof(PROGRAM, |_| {});
        let judge = |said: Said, minimum: Option<&str>| {
            let minimum = minimum.map(|m| m.parse::<Version>().unwrap());
            said.judge(&policy, now(), minimum.as_ref())
        };
        let own = || said(sha256(PROGRAM), Some(proof.clone()));
        let proved = judge(own(), Some("1.4.0")).unwrap();
        assert_eq!((proved.version.to_string(), proved.index), ("1.4.0".into(), 1));

        let refused = |said, expected: &str| {
            let why = judge(said, None).unwrap_err();
            assert!(why.contains(expected), "{why}");
        };
        refused(said(sha256(b"other"), Some(proof.clone())), "other files");
        refused(said(sha256(b"package"), Some(proof.clone())), "wiretight.deb");
        refused(said(sha256(PROGRAM), None), "no proof");
        refused(said("9d".into(), Some(proof.clone())), "not the SHA-256");
        refused(said(sha256(PROGRAM), Some("{}".into())), "invalid");
        refused(said(sha256(PROGRAM), Some(" ".repeat(MAX_RELEASE_PROOF + 1))), "65537 bytes");
        assert!(judge(own(), Some("1.4.1")).unwrap_err().contains("older than 1.4.1"));
        let expired = publisher.proof(PROGRAM, |release| {
            release.expires = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        });
        refused(said(sha256(PROGRAM), Some(expired)), "expired");
        let renamed = publisher.proof(PROGRAM, |release| release.name = "other".into());
        refused(said(sha256(PROGRAM), Some(renamed)), "of other");
        // The same publisher's name with another key.
        refused(said(sha256(PROGRAM), Some(Publisher::new().proof(PROGRAM, |_| {}))), "source");
        // No bit of what is signed may differ. (The last signature line ends the text.)
        for (at, _) in proof.match_indices("wiretight").chain(proof.match_indices("minimum 1")) {
            let mut bytes = proof.clone().into_bytes();
            bytes[at + 8] ^= 1;
            judge(said(sha256(PROGRAM), Some(String::from_utf8(bytes).unwrap())), None)
                .unwrap_err();
        }
    }

    #[test]
    fn the_time_of_grace_is_counted_without_a_proved_release_only() {
        let publisher = Publisher::new();
        let good = Arc::new(said(sha256(PROGRAM), Some(publisher.proof(PROGRAM, |_| {}))));
        let policy = Some(Arc::new(publisher.policy()));
        let grace = Some(Duration::from_secs(60));
        let params = ReleaseParams { policy, grace };
        // Silence, and a program without a proof, count alike.
        for said in [None, Some(said(sha256(b"other"), None))] {
            let mut state = known(said);
            assert_eq!(look(&mut state, "1", &params, 0).refused_in, Some(60));
            assert_eq!(look(&mut state, "1", &params, 59).refused_in, Some(1));
            assert_eq!(look(&mut state, "1", &params, 60).refused_in, Some(0));
            // A new enrolment starts again, and then a proved release ends it.
            assert_eq!(look(&mut state, "2", &params, 100).refused_in, Some(60));
            assert_eq!(look(&mut state, "2", &params, 130).refused_in, Some(30));
            state.nodes.values_mut().for_each(|known| known.said = Some(good.clone()));
            let proved = look(&mut state, "2", &params, 300);
            assert!(proved.verdict.proved().is_some() && proved.refused_in.is_none());
            // When it is not proved any more, the time starts again.
            state.nodes.values_mut().for_each(|known| known.said = None);
            assert_eq!(look(&mut state, "2", &params, 400).refused_in, Some(60));
            // Without the requirement nothing is counted.
            let off = ReleaseParams { grace: None, ..params.clone() };
            assert_eq!(look(&mut state, "2", &off, 500).refused_in, None);
            assert_eq!(look(&mut state, "2", &params, 600).refused_in, Some(60));
        }
        // What was counted before a restart.
        let mut state = known(None);
        state.nodes.values_mut().for_each(|known| known.unproved.before = Duration::from_secs(50));
        assert_eq!(look(&mut state, "1", &params, 0).refused_in, Some(10));
        assert_eq!(look(&mut state, "1", &params, 10).refused_in, Some(0));
    }

    #[test]
    fn a_higher_minimum_refuses_what_was_proved_before() {
        let publisher = Publisher::new();
        let params = ReleaseParams { policy: Some(Arc::new(publisher.policy())), grace: None };
        let mut state = known(Some(said(sha256(PROGRAM), Some(publisher.proof(PROGRAM, |_| {})))));
        assert!(look(&mut state, "1", &params, 0).verdict.proved().is_some());
        let newer = publisher.proof(b"newer", |release| {
            release.version = Version::new(2, 0, 0);
            release.minimum = Version::new(2, 0, 0);
        });
        let newer = said(sha256(b"newer"), Some(newer));
        assert!(state.verdict(Some(&newer), params.policy.as_deref(), now()).proved().is_some());
        let old = look(&mut state, "1", &params, 0).verdict;
        assert!(old.problem().unwrap().contains("older than 2.0.0"), "{old:?}");
        assert_eq!(state.minimum, Some(Version::new(2, 0, 0)));
    }
}
