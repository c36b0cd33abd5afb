//! Whether a file is what its publisher made in public and others made too.

use std::collections::BTreeMap;
use std::io::{self, Read};

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use semver::Version;
use serde::{Deserialize, Serialize};
use wiretight_keys::token::hex;
use wiretight_tlog::{Hash, ProofError, Refused, Witnessed};

use super::entry::{Entry, File, Rebuild, Release, Source};
use super::policy::ReleasePolicy;
use super::proof::{Proven, ReleaseProof};

/// A file by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Artifact {
    pub sha256: Hash,
    /// In bytes.
    pub size: u64,
}

impl Artifact {
    /// Reads everything.
    pub fn of(mut file: impl Read) -> io::Result<Artifact> {
        let (mut context, mut size) = (Context::new(&SHA256), 0);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            context.update(&buffer[..n]);
            size += n as u64;
        }
        let sha256 = Hash::from_slice(context.finish().as_ref());
        Ok(Artifact { sha256: sha256.ok_or(io::ErrorKind::InvalidData)?, size })
    }
}

/// What was proved about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proved {
    /// The name of what was released.
    pub name: String,
    pub version: Version,
    /// From this release on, no older version may be installed.
    pub minimum: Version,
    pub expires: Timestamp,
    /// The name of the file in the release.
    pub file: String,
    /// SHA-256, in hex.
    pub sha256: String,
    /// The git tree of the source.
    pub tree: String,
    /// The log.
    pub origin: String,
    /// The index of the release in the log.
    pub index: u64,
    /// When the witnesses had cosigned, in seconds since 1970; `None` if the policy requires no witnesses.
    pub witnessed: Option<u64>,
    /// The rebuilders of the policy that made the same file.
    pub rebuilt: Vec<String>,
    /// Those that made another.
    pub differ: Vec<String>,
}

/// Why a file is not proved.
#[derive(Debug, thiserror::Error)]
pub enum NotProved {
    #[error(
        "the proof is for other files: the SHA-256 of this one is {sha256}, and {release} has {files}"
    )]
    OtherFile { sha256: String, release: String, files: String },
    #[error("the {what} was not signed by the policy's publisher, {publisher}")]
    NotByPublisher { what: &'static str, publisher: String },
    #[error("the {what}: {error}")]
    NotLogged { what: String, error: ProofError },
    #[error("{0}")]
    Checkpoint(Refused),
    #[error("the {what} is in another log than the release")]
    OtherLog { what: &'static str },
    #[error("the release was not made from the source that comes with it")]
    OtherSource,
    #[error("the source was logged after the release, so nobody could have built it before")]
    SourceAfterRelease,
    #[error("{}", rebuilds(.needed, .rebuilt, .differ, .missing))]
    NotRebuilt { needed: usize, rebuilt: Vec<String>, differ: Vec<String>, missing: Vec<String> },
    #[error(
        "version {version} expired at {expires}: install a newer one, which the publisher must have made by now"
    )]
    Expired { version: Version, expires: Timestamp },
    #[error(
        "version {version} is older than {minimum}, the oldest that may be installed since a later release: it has a known fault"
    )]
    TooOld { version: Version, minimum: Version },
}

fn rebuilds(needed: &usize, same: &[String], differ: &[String], missing: &[String]) -> String {
    let list = |names: &[String]| if names.is_empty() { "nobody".into() } else { names.join(", ") };
    let mut text = format!(
        "{} of the {needed} rebuilders that the policy requires made the same file ({})",
        same.len(),
        list(same)
    );
    if !differ.is_empty() {
        text += &format!("; ANOTHER FILE from the same source: {}", list(differ));
    }
    if !missing.is_empty() {
        text += &format!("; nothing from: {}", list(missing));
    }
    text
}

/// Verifies without the network that `artifact` is a file of a release that the policy accepts. `now`: seconds since 1970.
/// `floor`: the highest minimum version that was ever proved here.
pub fn check(
    policy: &ReleasePolicy,
    proof: &ReleaseProof,
    artifact: Artifact,
    now: u64,
    floor: Option<&Version>,
) -> Result<Proved, NotProved> {
    let (source, source_at) = logged(policy, &proof.source, "source")?;
    let (release, release_at) = logged(policy, &proof.release, "release")?;
    let (Entry::Source(source), Entry::Release(release)) = (source, release) else {
        return Err(NotProved::OtherSource);
    };
    for (what, proven) in [("source", &proof.source), ("release", &proof.release)] {
        if !proven.entry.signed_by(&policy.publisher) {
            let publisher = policy.publisher.name().to_string();
            return Err(NotProved::NotByPublisher { what, publisher });
        }
    }
    let origin = &release_at.checkpoint().origin;
    if source_at.checkpoint().origin != *origin {
        return Err(NotProved::OtherLog { what: "source" });
    }
    same_source(source, release, proof)?;
    let file = release.file(artifact.sha256).filter(|file| file.size == artifact.size);
    let file = file.ok_or_else(|| other_file(release, artifact))?;

    let (rebuilt, differ) = rebuilt(policy, proof, file, origin);
    if rebuilt.len() < policy.rebuilds {
        let heard = |name: &String| rebuilt.contains(name) || differ.contains(name);
        let missing = policy.rebuilders.iter().map(|r| r.name.clone()).filter(|n| !heard(n));
        let (needed, missing) = (policy.rebuilds, missing.collect());
        return Err(NotProved::NotRebuilt { needed, rebuilt, differ, missing });
    }

    let allowed = policy.max_age.map_or(u64::MAX, |age| age.as_secs());
    release_at.fresh(now, allowed).map_err(NotProved::Checkpoint)?;
    // If our clock is behind, the witnesses' clocks still count.
    let now = now.max(release_at.time().unwrap_or_default());
    let (version, minimum) = (release.version.clone(), release.minimum.clone());
    if i64::try_from(now).is_ok_and(|now| now >= release.expires.as_second()) {
        return Err(NotProved::Expired { version, expires: release.expires });
    }
    if let Some(floor) = floor.into_iter().chain([&minimum]).max()
        && version < *floor
    {
        return Err(NotProved::TooOld { version, minimum: floor.clone() });
    }
    Ok(Proved {
        name: release.name.clone(),
        version,
        minimum,
        expires: release.expires,
        file: file.name.clone(),
        sha256: hex(file.sha256.as_bytes()),
        tree: source.tree.clone(),
        origin: origin.clone(),
        index: proof.release.proof.index,
        witnessed: release_at.time(),
        rebuilt,
        differ,
    })
}

/// The entry, if it is in a log of the policy.
fn logged<'a>(
    policy: &ReleasePolicy,
    proven: &'a Proven,
    what: &str,
) -> Result<(&'a Entry, Witnessed), NotProved> {
    let witnessed = proven.proof.verify(&policy.log, proven.entry.leaf());
    let not_logged = |error| NotProved::NotLogged { what: what.to_owned(), error };
    Ok((proven.entry.entry(), witnessed.map_err(not_logged)?))
}

fn same_source(source: &Source, release: &Release, proof: &ReleaseProof) -> Result<(), NotProved> {
    if release.source != proof.source.entry.id()
        || release.version != source.version
        || release.name != source.name
    {
        return Err(NotProved::OtherSource);
    }
    if proof.source.proof.index >= proof.release.proof.index {
        return Err(NotProved::SourceAfterRelease);
    }
    Ok(())
}

/// The rebuilders that made this file, and those that made another. Of each, the newest entry counts. An entry that does
/// not verify, or that nobody in the policy signed, costs only itself.
fn rebuilt(
    policy: &ReleasePolicy,
    proof: &ReleaseProof,
    file: &File,
    origin: &str,
) -> (Vec<String>, Vec<String>) {
    let mut newest: BTreeMap<&str, (u64, bool)> = BTreeMap::new();
    for proven in &proof.rebuilds {
        let Some(by) = policy.rebuilders.iter().find(|r| proven.entry.signed_by(&r.key)) else {
            continue;
        };
        let Ok((Entry::Rebuild(rebuild), at)) = logged(policy, proven, "rebuild") else { continue };
        if rebuild.source != proof.source.entry.id() || at.checkpoint().origin != origin {
            continue;
        }
        let index = proven.proof.index;
        let Some(same) = made(rebuild, file) else { continue };
        if newest.get(by.name.as_str()).is_none_or(|(last, _)| *last <= index) {
            newest.insert(&by.name, (index, same));
        }
    }
    let of = |wanted: bool| {
        let with = newest.iter().filter(|(_, (_, same))| *same == wanted);
        with.map(|(name, _)| (*name).to_owned()).collect()
    };
    (of(true), of(false))
}

/// Whether the rebuild has this file; `None` if it says nothing of it.
fn made(rebuild: &Rebuild, file: &File) -> Option<bool> {
    let theirs = rebuild.files.iter().find(|f| f.name == file.name)?;
    Some(theirs.sha256 == file.sha256 && theirs.size == file.size)
}

fn other_file(release: &Release, artifact: Artifact) -> NotProved {
    let files: Vec<&str> = release.files.iter().map(|file| file.name.as_str()).collect();
    NotProved::OtherFile {
        sha256: hex(artifact.sha256.as_bytes()),
        release: format!("{} {}", release.name, release.version),
        files: files.join(", "),
    }
}
