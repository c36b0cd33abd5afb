//! Landlock: restricts file access of this process. It can read its configuration and what name resolution needs, and
//! write its own state. A compromised process can access nothing else.
//!
//! The network is not restricted, because a reload may change the ports.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};

/// The newest Landlock version that is used; older kernels support a part of it ("best effort").
const KNOWN: ABI = ABI::V5;

/// Paths that name resolution (libc), time zones and clocks read.
const SYSTEM: &[&str] =
    &["/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/run/resolvconf"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    Enforced,
    /// The kernel supports only a part.
    Partly,
    /// The kernel has no Landlock.
    Unsupported,
    /// `landlock = false`.
    Off,
}

impl Sandbox {
    pub fn word(self) -> &'static str {
        match self {
            Sandbox::Enforced => "enforced",
            Sandbox::Partly => "partly",
            Sandbox::Unsupported => "unsupported",
            Sandbox::Off => "off",
        }
    }
}

/// Confines the calling thread and everything that it starts. Call it before another thread exists. The directories of
/// `reads` are readable, because such files may be created later or replaced by rename. `public`: the folder that is
/// published, which is replaced as a whole, so that its directory must be writable.
pub fn enter(
    config: &Path,
    state: &Path,
    reads: &[PathBuf],
    public: Option<&Path>,
) -> anyhow::Result<Sandbox> {
    let read = AccessFs::from_read(KNOWN) & !AccessFs::Execute;
    let own = AccessFs::from_all(KNOWN) & !AccessFs::Execute;
    let mut readable: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    readable.push("/proc/self".into());
    // Both the directory of the path and that of a symbolic link's target (a configuration in a package store, or a
    // resolv.conf that a network manager writes).
    let files = reads.iter().map(PathBuf::as_path).chain([config, Path::new("/etc/resolv.conf")]);
    for file in files {
        let directory = |file: &Path| match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        readable.push(directory(file));
        readable.extend(file.canonicalize().ok().map(|file| directory(&file)));
    }
    // Paths that do not exist are ignored.
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(["/dev/urandom"], AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([state], own))?
        .add_rules(path_beneath_rules(public.and_then(Path::parent), own))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Sandbox::Enforced,
        RulesetStatus::PartiallyEnforced => Sandbox::Partly,
        RulesetStatus::NotEnforced => Sandbox::Unsupported,
    })
}

/// For a program that reads hostile input, and has opened what it writes. It may still read files, and use the network.
pub(crate) fn read_only() -> Result<(), landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(["/"], AccessFs::from_read(KNOWN) & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .restrict_self()?;
    Ok(())
}

/// For children with CAP_NET_ADMIN: they may read and run every file, but write only in these directories.
pub(crate) fn write_only_in(directories: &[&Path]) -> Result<(), landlock::RulesetError> {
    let all = AccessFs::from_all(KNOWN);
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(["/"], AccessFs::from_read(KNOWN)))?
        .add_rules(path_beneath_rules(directories, all))?
        .restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Write};

    use super::*;
    use crate::proof::publish::folder;

    #[test]
    fn only_needed_files_are_accessible() {
        let temp = tempfile::tempdir().unwrap();
        let (state, other) = (temp.path().join("state"), temp.path().join("other"));
        let public = temp.path().join("srv/proof");
        let config = temp.path().join("etc/wiretight.toml");
        let token = temp.path().join("later/token");
        let (etc, later) = (temp.path().join("etc"), temp.path().join("later"));
        for dir in [&state, &other, &etc, &later, &temp.path().join("srv")] {
            fs::create_dir(dir).unwrap();
        }
        let (token_writer, write) = std::sync::mpsc::channel();
        let (tell_written, written) = std::sync::mpsc::channel();
        let to = token.clone();
        for file in [&config, &other.join("secret")] {
            fs::write(file, "x").unwrap();
        }
        // Landlock confines only this thread and what it starts, so other tests are not affected.
        let confined = std::thread::spawn(move || {
            assert!(fs::read(other.join("secret")).is_ok(), "the control: not confined yet");
            let sandbox =
                enter(&config, &state, std::slice::from_ref(&token), Some(&public)).unwrap();
            if sandbox == Sandbox::Unsupported {
                assert!(std::env::var_os("CI").is_none(), "this kernel has no Landlock");
                let _ = writeln!(std::io::stderr(), "skipped: this kernel has no Landlock");
                return;
            }
            // A file that is created later, by rename.
            token_writer.send(()).unwrap();
            written.recv().unwrap();
            assert!(fs::read(&token).is_ok());
            assert!(fs::read(&config).is_ok());
            assert!(fs::write(state.join("new"), "x").is_ok());
            let file =
                |text: &str| folder::PublicFile { name: "index.html".into(), text: text.into() };
            let manifest = format!("{}  index.html\n", "0".repeat(64));
            let manifest = folder::PublicFile { name: folder::MANIFEST.into(), text: manifest };
            for text in ["one", "two"] {
                folder::write(&public, &[file(text), manifest.clone()]).unwrap();
            }
            let denied = |e: std::io::Error| e.kind() == ErrorKind::PermissionDenied;
            assert!(fs::read(other.join("secret")).is_err_and(denied));
            assert!(fs::write(other.join("new"), "x").is_err_and(denied));
            assert!(fs::write(&config, "x").is_err_and(denied));
            assert!(std::process::Command::new("/bin/true").status().is_err_and(denied));
        });
        if write.recv().is_ok() {
            fs::write(to.with_extension("new"), "x").unwrap();
            fs::rename(to.with_extension("new"), to).unwrap();
            tell_written.send(()).unwrap();
        }
        confined.join().unwrap();
    }
}
