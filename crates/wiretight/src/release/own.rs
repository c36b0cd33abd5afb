//! The program that runs: which file it is, and where its proof lies.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use semver::Version;

use super::check::{Artifact, NotProved, Proved, check};
use super::policy::ReleasePolicy;
use super::proof::ReleaseProof;

/// The name of the program in its releases, and of its file there.
pub const PROGRAM: &str = "wiretight";

/// The file of the program of this process. It is right also after the file was replaced.
pub fn running() -> io::Result<Artifact> {
    Artifact::of(File::open("/proc/self/exe")?)
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
