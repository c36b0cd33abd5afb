//! The program that runs: which file it is, and where its proof lies.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::check::Artifact;

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
