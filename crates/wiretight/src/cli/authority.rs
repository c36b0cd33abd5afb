//! `wiretight authority`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use wiretight_keys::Name;
use wiretight_proxy::clock::now;

use super::term::{self, Table};
use super::{Output, Where};
use crate::admin::api::{RotateRequest, RotateStep};
use crate::admin::client::Received;
use crate::authority::{CaStatus, backup, log_signer};
use crate::config::Config;
use crate::private_dir::PrivateDir;

/// Manage the authority's keys and backups (run on the authority)
#[derive(Subcommand)]
pub(super) enum Authority {
    Status(Status),
    Rotate(Rotate),
    LogKey(LogKey),
    Backup(Backup),
    Restore(Restore),
}

/// Write a backup of the authority to one file; works while it runs or is stopped
///
/// The file contains a consistent snapshot of the CA keys, the registry and the whole log. It includes the root key, so
/// protect it as you would protect that key. It also includes the site certificates in the authority's store, with
/// the key that decrypts them. Back up often: to restore what was issued after the backup, you need a newer copy of the
/// log (see `restore`).
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight authority backup /mnt/safe/authority-$(date +%F).tar"
)]
pub(super) struct Backup {
    /// The file to write; it must not exist yet
    file: PathBuf,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Restore an authority from a backup (no node may be running with this configuration)
///
/// The whole backup is verified before anything is written. With [witnesses], the authority cannot start from a log
/// older than what the witnesses have cosigned: give a newer copy of the log with --log (the old machine's
/// STATE_DIR/authority/log, or a mirror; a log in a bucket is found automatically). Revocations in the newer copy are
/// applied again. Nodes that joined after the backup need new tokens, and later grants must be repeated.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight authority restore /mnt/safe/authority-2026-12-01.tar
  wiretight authority restore authority.tar --log /mnt/old/var/lib/wiretight/authority/log
  wiretight run                                    starts the authority, or says why it cannot")]
pub(super) struct Restore {
    /// A file written by `wiretight authority backup`
    file: PathBuf,
    /// A directory with a newer copy of the log
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    log: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Print the public key of the log; creates the key if there is none
///
/// Put it in the `log` line of the policy, and give it to witnesses and monitors. Run this before the authority's first
/// start if every certificate, from the first one on, shall be witnessed.
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight authority log-key --config /etc/wiretight/wiretight.toml"
)]
pub(super) struct LogKey {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Show the roots, the intermediate, and the nodes that are not up to date
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight authority status --json")]
pub(super) struct Status {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Replace CA keys without dropping connections
///
/// `intermediate` is one step; it also happens automatically at half of the intermediate's lifetime. A root takes
/// three steps: `prepare-root` adds a new root to every trust bundle. `activate-root` issues from it; all connected
/// nodes must have it. `retire-root` removes the old root; nothing issued under it may still be valid.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight authority rotate intermediate
  wiretight authority rotate prepare-root
  wiretight authority status                       repeat until no node is behind
  wiretight authority rotate activate-root
  wiretight authority rotate retire-root           after the lifetime of an SVID
  wiretight authority rotate retire-root --force   the old key was stolen: cut off nodes that still need it")]
pub(super) struct Rotate {
    /// The step
    step: RotateStep,
    /// Do it even if a node would be cut off
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Authority {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (status, out): (Received<CaStatus>, Output) = match self {
            Authority::LogKey(verb) => return verb.run(),
            Authority::Backup(verb) => return verb.run(),
            Authority::Restore(verb) => return verb.run(),
            Authority::Status(s) => (super::get(&s.at.state_dir()?, "/v1/authority")?, s.out),
            Authority::Rotate(r) => {
                let request = RotateRequest { step: r.step, force: r.force };
                (super::post(&r.at.state_dir()?, "/v1/authority", &request)?, r.out)
            }
        };
        out.print(&status, |status| render(status))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl LogKey {
    fn run(self) -> anyhow::Result<ExitCode> {
        let config = authority_config(&self.at)?;
        let state = PrivateDir::open(&config.node.state_dir)?;
        let dir = PrivateDir::open(state.path().join("authority"))?;
        let signer = log_signer(&config.node.trust_domain, &dir)?;
        let vkey = signer.public().to_string();
        self.out.print(&json!({ "vkey": vkey }), |_| format!("{vkey}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Backup {
    fn run(self) -> anyhow::Result<ExitCode> {
        let config = authority_config(&self.at)?;
        let state = PrivateDir::open(&config.node.state_dir)?;
        let storage = backup::storage_of(&config)?;
        let made = backup::backup(&state, &config.node.trust_domain, storage, &self.file);
        let made = super::block_on(made)?;
        self.out.print(&made, |made| {
            format!(
                "{}: backup of the authority of {}, with {} log entries. It contains the root key: keep it safe.\n",
                self.file.display(),
                made.trust_domain,
                made.entries
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Restore {
    fn run(self) -> anyhow::Result<ExitCode> {
        let config = authority_config(&self.at)?;
        let state = PrivateDir::open(&config.node.state_dir)?;
        let _lock = crate::node::process::lock(state.path())?;
        let restore = backup::Restore {
            state: &state,
            trust_domain: &config.node.trust_domain,
            storage: backup::storage_of(&config)?,
            newer: self.log,
        };
        let restored = super::block_on(restore.run(&self.file))?;
        self.out.print(&restored, |restored| {
            let mut text = format!(
                "Restored the authority of {} from a backup made {} ({} log entries).\n",
                restored.head.trust_domain,
                term::ago(restored.head.made),
                restored.head.entries
            );
            if restored.newer_entries > 0 {
                text += &format!(
                    "Added {} newer entries from the copy of the log; applied the {} revocations in them.\n",
                    restored.newer_entries, restored.revoked_again
                );
            }
            text + "Start it with `wiretight run`. Nodes that joined after the backup need new tokens, and later grants must be repeated.\n"
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn authority_config(at: &Where) -> anyhow::Result<Config> {
    let config = at.load()?;
    anyhow::ensure!(
        config.authority.is_some(),
        "{} has no [authority] section. Run this on the authority's machine.",
        config.path.display()
    );
    Ok(config)
}

fn render(status: &CaStatus) -> String {
    // Enough of a fingerprint to tell keys apart; --json has all of it.
    let short = |print: &str| print.chars().take(16).collect::<String>();
    let left = |at: u64| term::span(at.saturating_sub(now()));
    let mut table = Table::new(&["KEY", "FINGERPRINT", "STATE", "EXPIRES IN", "RENEWED IN"]);
    for root in &status.roots {
        let (print, standing) = (short(&root.fingerprint), root.standing.word().into());
        table.row(["root".into(), print, standing, left(root.not_after), "-".into()]);
    }
    let signer = &status.intermediate;
    let under = format!("under {}", short(&signer.root));
    let (expires, renews) = (left(signer.not_after), left(signer.renews_at));
    table.row(["intermediate".into(), short(&signer.fingerprint), under, expires, renews]);
    let behind: Vec<_> = status.behind.iter().map(Name::as_str).collect();
    let behind = match behind.is_empty() {
        true => "all connected nodes are up to date".to_owned(),
        false => format!("nodes still behind: {}", behind.join(", ")),
    };
    format!(
        "{}\n\n{table}\nstate version {}: {behind}\n{}log key:   {}\n",
        status.trust_domain,
        status.version,
        super::status::log(&status.log),
        status.log.vkey,
    )
}
