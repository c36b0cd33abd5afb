//! `wiretight rules`, `wiretight down`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use wiretight_proxy::intercept::rules::TABLE;

use super::confirm::Confirm;
use super::term;
use super::{Output, Where, plaintext};
use crate::intercept::{self, Shown};
use crate::private_dir::PrivateDir;

/// The kernel's rules that let no plaintext out
#[derive(Subcommand)]
pub(super) enum Rules {
    Load(Load),
    Show(Show),
}

/// Put the kept rules in force, before the network comes up
///
/// No node has to run. If there are none to put in force, or they cannot be read, that is an error: plaintext
/// could leave this machine.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight rules load                               as examples/wiretight-rules.service does at boot

Exit status: 0 if the rules are in force, 1 if not.")]
pub(super) struct Load {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Show the rules in force, and what they have dropped or seen
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight rules show
  wiretight rules show --json | jq '.counts.flows[] | select(.dropped)'

Exit status: 0 if the kernel has the kept rules, 1 if not.")]
pub(super) struct Show {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Take the kernel's rules away: from then on, plaintext may leave this machine
///
/// It removes our table and what is kept of it for the next boot, and nothing else. A running node puts them back
/// when it is started again.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  wiretight down\n  wiretight down --yes                               without a question"
)]
pub(super) struct Down {
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Keep the kernel's rules for the node that has started this
#[derive(Args)]
pub(super) struct RulesKeeper {
    /// The node's state directory
    state_dir: PathBuf,
    /// Do not confine the process with Landlock
    #[arg(long)]
    no_landlock: bool,
    /// Be the process that does it
    #[arg(long)]
    worker: Option<Worker>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Worker {
    First,
    /// In the place of one that died
    Again,
}

impl RulesKeeper {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.worker {
            None => intercept::serve(&self.state_dir, !self.no_landlock),
            Some(worker) => {
                let again = worker == Worker::Again;
                intercept::work(&self.state_dir, !self.no_landlock, again)
            }
        }
    }
}

impl Rules {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Rules::Load(load) => {
                let changed =
                    intercept::load(&PrivateDir::open_of_any_user(load.at.state_dir()?)?)?;
                load.out.print(&json!({ "in_force": true, "changed": changed }), |_| {
                    let how = if changed { "in force" } else { "in force already" };
                    format!("the rules are {how}\n")
                })?;
                Ok(ExitCode::SUCCESS)
            }
            Rules::Show(show) => {
                let shown = intercept::show(&PrivateDir::open_of_any_user(show.at.state_dir()?)?)?;
                show.out.print(&shown, |shown| term::fitted(&render(shown)))?;
                let good = shown.as_kept && shown.in_force;
                Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
        }
    }
}

impl Down {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state = PrivateDir::open_of_any_user(self.at.state_dir()?)?;
        self.confirm.ask(
            "This removes the protection: plaintext could leave this machine.",
            "Take the kernel's rules down?",
        )?;
        let removed = intercept::down(&state)?;
        if removed {
            log(
                "the kernel's rules were taken down by `wiretight down`: plaintext may leave this machine",
            );
        }
        self.out.print(&json!({ "removed": removed }), |_| match removed {
            true => "The kernel's rules are removed: plaintext may leave this machine.\n".into(),
            false => "There were no rules to remove.\n".into(),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// To the system's log, for who looks later; and to standard error, for who looks now.
fn log(text: &str) {
    let user = rustix::process::getuid().as_raw();
    eprintln!("wiretight: {text} (user {user})");
    // RFC 3164: authpriv.warning.
    let line = format!("<84>wiretight[{}]: {text} (user {user})", std::process::id());
    let socket = std::os::unix::net::UnixDatagram::unbound();
    // A machine may have no log.
    let _ = socket.and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(line.as_bytes(), "/dev/log")
    });
}

fn render(shown: &Shown) -> String {
    let mut out = match (shown.in_force, shown.as_kept) {
        (true, true) => format!("{}\n", term::good("the rules are in force")),
        (true, false) => format!(
            "{}\n",
            term::bad(&format!(
                "table inet {TABLE} is not what is kept: `wiretight rules load` (or a trial runs: `wiretight mode`)"
            ))
        ),
        (false, _) => format!("{}\n", term::bad("no rules are in force: plaintext may leave")),
    };
    if let Some(rules) = &shown.rules {
        let peers: Vec<String> =
            rules.peers.iter().map(|(ip, m)| format!("{ip} {}", m.word())).collect();
        let list = |items: Vec<String>| term::or_dash(&items.join(", "));
        out += &format!("mode        {}\n", rules.mode.word());
        out += &format!("but         {}\n", list(peers));
        let protected = rules.protected.iter().map(ToString::to_string).collect();
        out += &format!("protected   {}\n", list(protected));
        out += &format!("redirected  {} destinations\n", rules.taken.len());
        let management = rules.management.iter().map(ToString::to_string).collect();
        out += &format!("management  {}\n", list(management));
        out += &format!("passes      {}\n", rules.passes.len());
        if !rules.transparent.is_empty() {
            let backends = rules.transparent.iter().map(ToString::to_string).collect();
            out += &format!("transparent {}\n", list(backends));
        }
    }
    let table = plaintext::table(&shown.counts.flows, &[]);
    if !table.is_empty() {
        out += &format!("\n{table}");
    }
    out
}
