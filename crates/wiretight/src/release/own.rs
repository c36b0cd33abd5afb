//! The program that runs: which file it is, whether it is proved, and what may become the next one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use semver::Version;
use serde::{Deserialize, Serialize};
use wiretight_keys::token::hex;

use super::check::{Artifact, NotProved, Proved, check};
use super::entry::Entry;
use super::kept::{Kept, NEXT_PROOF, PROOF};
use super::policy::ReleasePolicy;
use super::proof::{MAX_PROOF, ReleaseProof};
use crate::config;
use crate::log::read_bounded;
use crate::logging::chain;
use crate::private_dir::PrivateDir;

/// The name of the program in its releases, and of its file there.
pub const PROGRAM: &str = "wiretight";
/// The largest file that can be a program, in bytes.
pub const MAX_PROGRAM: u64 = 1 << 30;

/// The file of the program of this process. It is right also after the file was replaced.
pub fn running() -> io::Result<Artifact> {
    program(File::open("/proc/self/exe")?)
}

/// A file that may be a program.
pub fn program(file: impl Read) -> io::Result<Artifact> {
    let artifact = Artifact::of(file.take(MAX_PROGRAM + 1))?;
    match artifact.size > MAX_PROGRAM {
        true => Err(io::Error::other("it is larger than 1 GiB, which no release is")),
        false => Ok(artifact),
    }
}

/// Where the proof of a file lies: beside it, `FILE.proof`.
pub fn proof_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".proof");
    name.into()
}

/// The same as [`check()`] for this program: the proof of another file of the release is not enough.
pub fn check_program(
    policy: &ReleasePolicy,
    proof: &ReleaseProof,
    artifact: Artifact,
    now: u64,
    floor: Option<&Version>,
) -> Result<Proved, NotProved> {
    let proved = check(policy, proof, artifact, now, floor)?;
    match proved.name == PROGRAM && proved.file == PROGRAM {
        true => Ok(proved),
        false => Err(NotProved::OtherProgram { file: proved.file, name: proved.name }),
    }
}

/// What a process says of its own program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub version: String,
    /// SHA-256 of the file that runs, in hex.
    pub sha256: String,
    /// The text of the proof that is for this file, whether or not the policy accepts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    pub verdict: Verdict,
}

/// By the policy of the process itself, when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Proved(Box<Proved>),
    /// Why not.
    Unproved(String),
    /// There is no `[release]` in the configuration.
    NoPolicy,
}

impl Standing {
    /// The same without the text of the proof.
    pub fn short(&self) -> Standing {
        Standing { proof: None, ..self.clone() }
    }
}

/// Reads the program of this process, and judges it. `now`: seconds since 1970. Call it before the sandbox, which hides
/// these files.
pub fn standing(settings: Option<&config::Release>, dir: &PrivateDir, now: u64) -> Standing {
    let (version, proof) = (env!("CARGO_PKG_VERSION").to_owned(), None);
    let artifact = match running() {
        Ok(artifact) => artifact,
        Err(error) => {
            let verdict = Verdict::Unproved(format!("cannot read the program's own file: {error}"));
            return Standing { version, sha256: String::new(), proof, verdict };
        }
    };
    let exe = std::env::current_exe().unwrap_or_default();
    let (proof, problem) = match find_proof(&places(settings, dir, &exe), artifact) {
        Ok(proof) => (Some(proof), None),
        Err(problem) => (None, Some(problem)),
    };
    let sha256 = hex(artifact.sha256.as_bytes());
    let verdict = match &proof {
        Some(proof) => judge(settings, dir, Some(proof), artifact, now),
        None => judge(settings, dir, None, artifact, now).because(problem),
    };
    Standing { version, sha256, proof: proof.map(|proof| proof.to_string()), verdict }
}

impl Verdict {
    fn because(self, problem: Option<String>) -> Verdict {
        match (self, problem) {
            (Verdict::Unproved(why), Some(problem)) => {
                Verdict::Unproved(format!("{why}: {problem}"))
            }
            (verdict, _) => verdict,
        }
    }
}

const NO_PROOF: &str = "there is no proof";

/// Judges a program by the policy of the configuration, and by what is remembered.
pub fn judge(
    settings: Option<&config::Release>,
    dir: &PrivateDir,
    proof: Option<&ReleaseProof>,
    artifact: Artifact,
    now: u64,
) -> Verdict {
    let kept = Kept::read(dir);
    let sha256 = hex(artifact.sha256.as_bytes());
    let accepted = kept.as_ref().is_ok_and(|kept| kept.accepts(&sha256));
    let why = match (settings, proof) {
        (None, _) if accepted => "there is no release policy".to_owned(),
        (None, _) => return Verdict::NoPolicy,
        (Some(_), None) => NO_PROOF.to_owned(),
        (Some(settings), Some(proof)) => {
            let proved = ReleasePolicy::read(&settings.policy).map_err(|e| chain(&e));
            let proved = proved.and_then(|policy| {
                let kept = kept.map_err(|e| chain(&e))?;
                let proved = check_program(&policy, proof, artifact, now, kept.minimum.as_ref());
                proved.map_err(|e| chain(&e))
            });
            match proved {
                Ok(proved) => return Verdict::Proved(Box::new(proved)),
                Err(why) => why,
            }
        }
    };
    Verdict::Unproved(match accepted {
        true => format!("the operator accepted it with --unproved; {why}"),
        false => why,
    })
}

/// Where the proof of a program may be.
pub fn places(settings: Option<&config::Release>, dir: &PrivateDir, exe: &Path) -> Vec<PathBuf> {
    let installed = settings.and_then(|s| s.proof.clone()).unwrap_or_else(|| proof_of(exe));
    let kept = [PROOF, NEXT_PROOF].map(|name| dir.path().join(name));
    [installed].into_iter().chain(kept).collect()
}

/// The first proof that is for this file; otherwise the problem.
pub fn find_proof(places: &[PathBuf], artifact: Artifact) -> Result<ReleaseProof, String> {
    let mut problems = Vec::new();
    for path in places {
        let shown = path.display();
        let bytes = match read_bounded(path, MAX_PROOF) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => {
                problems.push(format!("cannot read {shown}: {e}"));
                continue;
            }
        };
        match ReleaseProof::parse(&bytes) {
            Ok(proof) if is_for(&proof, artifact) => return Ok(proof),
            Ok(_) => problems.push(format!("{shown} is for other files")),
            Err(e) => problems.push(format!("{shown}: {}", chain(&e))),
        }
    }
    if problems.is_empty()
        && let Some(first) = places.first()
    {
        problems.push(format!("{} does not exist", first.display()));
    }
    Err(problems.join("; "))
}

fn is_for(proof: &ReleaseProof, artifact: Artifact) -> bool {
    match proof.release.entry.entry() {
        Entry::Release(release) => release.file(artifact.sha256).is_some(),
        Entry::Source(_) | Entry::Rebuild(_) => false,
    }
}
