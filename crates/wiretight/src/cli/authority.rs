//! `wiretight authority`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use wiretight_proxy::mesh::now;

use super::term::{self, Table};
use super::{Output, Where};
use crate::admin::{RotateRequest, RotateStep};
use crate::authority::log_signer;
use crate::private_dir::PrivateDir;

/// The authority's own keys (on the authority)
#[derive(Subcommand)]
pub(super) enum Authority {
    Status(Status),
    Rotate(Rotate),
    LogKey(LogKey),
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
        let config = self.at.load()?;
        anyhow::ensure!(
            config.authority.is_some(),
            "{} has no [authority]: run this on the authority's machine",
            config.path.display()
        );
        let state = PrivateDir::open(&config.node.state_dir)?;
        let dir = PrivateDir::open(state.path().join("authority"))?;
        let signer = log_signer(&config.node.trust_domain, &dir)?;
        let key = json!({ "vkey": signer.public().to_string() });
        self.out.print(&key, |key| format!("{}\n", key["vkey"].as_str().unwrap_or_default()))?;
        Ok(ExitCode::SUCCESS)
    }
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
