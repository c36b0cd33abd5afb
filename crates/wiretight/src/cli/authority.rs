//! `wiretight authority`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use wiretight_proxy::mesh::now;

use super::term::{self, Table};
use super::{Output, Where};
use crate::admin::api::{RotateRequest, RotateStep};
use crate::authority::{backup, log_signer};
use crate::config::Config;
use crate::private_dir::PrivateDir;

/// The authority's own keys (on the authority)
#[derive(Subcommand)]
pub(super) enum Authority {
    Status(Status),
    Rotate(Rotate),
    LogKey(LogKey),
    Backup(Backup),
    Restore(Restore),
}

/// Write a backup of the authority to one file, while it runs or not
///
/// The file has the keys of the CA, the registry and the whole log, as they were at one moment. It contains the root's
/// key: keep it where you would keep that. Certificates of sites that the authority's store holds are in it too, with
/// the key that opens them. Make a new backup often: what was issued after it has to come from a newer copy of the log
/// (see `restore`).
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight authority backup /mnt/safe/authority-$(date +%F).tar"
)]
pub(super) struct Backup {
    /// The file to write, which must not exist
    file: PathBuf,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Restore an authority from a backup, on a machine where no node runs with this configuration
///
/// All of the backup is verified before anything is put in place. With [witnesses], the authority may not start from a
/// log that is older than what the witnesses have seen: give a newer copy of the log with --log (the old machine's
/// STATE_DIR/authority/log, or a mirror; a log in a bucket is found by itself). What was revoked since is then revoked
/// again. Nodes that joined after the backup need new tokens, and grants made after it have to be made again.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight authority restore /mnt/safe/authority-2026-12-01.tar
  wiretight authority restore authority.tar --log /mnt/old/var/lib/wiretight/authority/log
  wiretight run                                    goes on, or says why it must not")]
pub(super) struct Restore {
    /// A file that `wiretight authority backup` has written
    file: PathBuf,
    /// A directory with a newer copy of the log
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Print the public key of the log, which is made if there is none
///
/// It is what the line `log` of a policy holds, and what witnesses and monitors are told. It may be asked for before
/// the authority's first start, so that nothing is ever issued which is not witnessed.
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

/// Show the roots and the intermediate, and which nodes have not caught up
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight authority status --json")]
pub(super) struct Status {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Replace keys, with nothing dropped
///
/// `intermediate` is one step, and happens by itself at half of its life. A root takes three:
/// `prepare-root` puts a new one into every trust bundle; `activate-root` issues from it, once all
/// connected nodes have it; `retire-root` takes the old one out, once nothing issued under it is left.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight authority rotate intermediate
  wiretight authority rotate prepare-root
  wiretight authority status                       until no node is behind
  wiretight authority rotate activate-root
  wiretight authority rotate retire-root           after the lifetime of an SVID
  wiretight authority rotate retire-root --force   its key is stolen: whoever hangs from it is cut off")]
pub(super) struct Rotate {
    /// The step
    step: RotateStep,
    /// Even if a node would be left behind
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Authority {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (status, out): (Value, Output) = match self {
            Authority::LogKey(verb) => return verb.run(),
            Authority::Backup(verb) => return verb.run(),
            Authority::Restore(verb) => return verb.run(),
            Authority::Status(s) => (super::get(&s.at.state_dir()?, "/v1/authority")?, s.out),
            Authority::Rotate(r) => {
                let request = RotateRequest { step: r.step, force: r.force };
                (super::post(&r.at.state_dir()?, "/v1/authority", &request)?, r.out)
            }
        };
        out.print(&status, render)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl LogKey {
    fn run(self) -> anyhow::Result<ExitCode> {
        let config = authority_config(&self.at)?;
        let state = PrivateDir::open(&config.node.state_dir)?;
        let dir = PrivateDir::open(state.path().join("authority"))?;
        let signer = log_signer(&config.node.trust_domain, &dir)?;
        let key = json!({ "vkey": signer.public().to_string() });
        self.out.print(&key, |key| format!("{}\n", key["vkey"].as_str().unwrap_or_default()))?;
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
                "{}: the authority of {}, with the {} entries of its log. It contains the root's key: keep it safe.\n",
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
                "restored the authority of {} as it was {} ({} entries in its log)\n",
                restored.head.trust_domain,
                term::ago(restored.head.made),
                restored.head.entries
            );
            if restored.newer_entries > 0 {
                text += &format!(
                    "{} newer entries come from the copy of the log; {} revocations in them are in force again\n",
                    restored.newer_entries, restored.revoked_again
                );
            }
            text + "Start it with `wiretight run`. Nodes that joined since need new tokens, and grants made since have to be made again.\n"
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The configuration, of a machine with an authority.
fn authority_config(at: &Where) -> anyhow::Result<Config> {
    let config = at.load()?;
    anyhow::ensure!(
        config.authority.is_some(),
        "{} has no [authority]: run this on the authority's machine",
        config.path.display()
    );
    Ok(config)
}

fn render(status: &Value) -> String {
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    // Enough of a fingerprint to tell them apart; --json has the whole.
    let short = |v: &Value| text(v).chars().take(16).collect::<String>();
    let left = |v: &Value| term::span(v.as_u64().unwrap_or(0).saturating_sub(now()));
    let mut table = Table::new(&["KEY", "FINGERPRINT", "STANDING", "EXPIRES IN", "RENEWED IN"]);
    for root in status["roots"].as_array().into_iter().flatten() {
        let (print, standing) = (short(&root["fingerprint"]), text(&root["standing"]));
        table.row(["root".into(), print, standing, left(&root["not_after"]), "-".into()]);
    }
    let signer = &status["intermediate"];
    let under = format!("under {}", short(&signer["root"]));
    let (expires, renews) = (left(&signer["not_after"]), left(&signer["renews_at"]));
    table.row(["intermediate".into(), short(&signer["fingerprint"]), under, expires, renews]);
    let behind: Vec<_> = status["behind"].as_array().into_iter().flatten().map(text).collect();
    let behind = match behind.is_empty() {
        true => "all connected nodes have it".to_owned(),
        false => format!("not yet in force at: {}", behind.join(", ")),
    };
    format!(
        "{}\n\n{table}\nstate version {}: {behind}\n{}log key:   {}\n",
        text(&status["trust_domain"]),
        status["version"],
        super::status::log(&status["log"]),
        text(&status["log"]["vkey"]),
    )
}
