//! Landlock: what this process may touch in the file system from now on. It reads its configuration and
//! what name resolution needs, and writes its own state; a hole in a parser opens nothing else.
//!
//! It does not narrow the network: which ports are used may change with a reload.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};

/// Newer kernels' further rights are taken as they are known to the library ("best effort").
const KNOWN: ABI = ABI::V5;

/// What name resolution (libc), time zones and clocks read.
const SYSTEM: &[&str] =
    &["/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/run/resolvconf"];

/// How far the sandbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// All that was asked is enforced.
    Enforced,
    /// The kernel knows a part of it.
    Partly,
    /// The kernel has no Landlock.
    Unsupported,
    /// `landlock = false`.
    Off,
}

/// Confines the calling thread and all that it starts: to be called before any other thread exists.
pub fn enter(config: &Path, state: &Path, reads: &[PathBuf]) -> anyhow::Result<Sandbox> {
    let read = AccessFs::from_read(KNOWN) & !AccessFs::Execute;
    let own = AccessFs::from_all(KNOWN) & !AccessFs::Execute;
    let config_dir =
        config.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut readable: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    readable.push(config_dir.to_owned());
    readable.push("/proc/self".into());
    readable.extend_from_slice(reads);
    // Paths that do not exist make no rule.
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(["/dev/urandom"], AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([state], own))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Sandbox::Enforced,
        RulesetStatus::PartiallyEnforced => Sandbox::Partly,
        RulesetStatus::NotEnforced => Sandbox::Unsupported,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{ErrorKind, Write};

    use super::*;

    #[test]
    fn what_is_not_needed_cannot_be_touched() {
        let temp = tempfile::tempdir().unwrap();
        let (state, other) = (temp.path().join("state"), temp.path().join("other"));
        let config = temp.path().join("etc/wiretight.toml");
        for dir in [&state, &other, &temp.path().join("etc")] {
            fs::create_dir(dir).unwrap();
        }
        for file in [&config, &other.join("secret")] {
            fs::write(file, "x").unwrap();
        }
        // Landlock confines a thread and what it starts, so the rest of the tests stay free.
        let confined = std::thread::spawn(move || {
            assert!(fs::read(other.join("secret")).is_ok(), "the control: not confined yet");
            let sandbox = enter(&config, &state, &[]).unwrap();
            if sandbox == Sandbox::Unsupported {
                let _ = writeln!(std::io::stderr(), "skipped: this kernel has no Landlock");
                return;
            }
            assert!(fs::read(&config).is_ok());
            assert!(fs::write(state.join("new"), "x").is_ok());
            let denied = |e: std::io::Error| e.kind() == ErrorKind::PermissionDenied;
            assert!(fs::read(other.join("secret")).is_err_and(denied));
            assert!(fs::write(other.join("new"), "x").is_err_and(denied));
            assert!(fs::write(&config, "x").is_err_and(denied));
            assert!(std::process::Command::new("/bin/true").status().is_err_and(denied));
        });
        confined.join().unwrap();
    }
}
