//! `wiretight rules`, `wiretight down`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use sd_notify::NotifyState;
use serde_json::json;
use wiretight_proxy::intercept::rules::TABLE;

use super::confirm::Confirm;
use super::term;
use super::{Output, Where, plaintext};
use crate::config::Config;
use crate::intercept::{self, InterceptError, OperatorError, Shown};
use crate::private_dir::PrivateDir;

/// Load or show the kernel's packet filter rules
#[derive(Subcommand)]
pub(super) enum Rules {
    Load(Load),
    Guard(Guard),
    Show(Show),
}

/// Exit status of `rules load` after `wiretight down`. It is no failure of the unit, which the network may require.
const REMOVED: u8 = 4;

/// Load the saved rules into the kernel, before the network comes up
///
/// The node need not be running. If no rules are in force yet, and the configuration file is stricter than the saved rules,
/// it applies. It is an error if there are no saved rules or they are unreadable. Then, if the configuration file has
/// strict mode, its own rules are loaded, unless `wiretight down` removed the rules.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight rules load                               as wiretight-rules.service does at boot

Exit status: 0 if the rules are loaded, 4 if `wiretight down` removed them, 1 if they are not loaded for another reason.")]
pub(super) struct Load {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Load the saved rules, and keep other programs from removing them until this process is stopped
///
/// The same as `rules load`. Then it holds a second table, the guard table, which drops the same plaintext and which no
/// other program can remove, also not by `nft flush ruleset`. A table that was removed is loaded again. It follows every
/// change that a node makes, and `wiretight down`: then it waits until a node loads rules. Run it as the user of the node.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight rules guard                              as wiretight-guard.service does from the boot on

Exit status: 1 if the rules cannot be loaded. It reports to systemd when they are loaded (Type=notify).")]
pub(super) struct Guard {
    #[command(flatten)]
    at: Where,
}

/// Show the loaded rules, and the plaintext that they dropped or counted
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight rules show
  wiretight rules show --json | jq '.counts.flows[] | select(.dropped)'

Exit status: 0 if the kernel has the saved rules, 1 if not.")]
pub(super) struct Show {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Remove the kernel's rules: from then on, plaintext may leave this machine
///
/// Removes only Wiretight's nftables table and the copy saved for the next boot. The node loads its rules again when it
/// is next started.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  wiretight down\n  wiretight down --yes                               without asking"
)]
pub(super) struct Down {
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Maintain the kernel's rules for the node that started this process
#[derive(Args)]
pub(super) struct RulesKeeper {
    /// The node's state directory
    state_dir: PathBuf,
    /// Do not confine the process with Landlock
    #[arg(long)]
    no_landlock: bool,
    /// Run as the worker process
    #[arg(long)]
    worker: Option<Worker>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Worker {
    /// The first worker
    First,
    /// The replacement of a worker that died
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
                let (state_dir, config) = saved_at(&load.at)?;
                let state = PrivateDir::open_of_any_user(state_dir)?;
                let changed = match intercept::load(&state, config.as_ref()) {
                    Err(InterceptError::Operator(error @ OperatorError::TakenDown)) => {
                        eprintln!("wiretight: {error}");
                        return Ok(ExitCode::from(REMOVED));
                    }
                    changed => changed?,
                };
                load.out.print(&json!({ "in_force": true, "changed": changed }), |_| {
                    let how = if changed { "loaded" } else { "already loaded" };
                    format!("The rules are {how}.\n")
                })?;
                Ok(ExitCode::SUCCESS)
            }
            Rules::Guard(guard) => {
                let (state_dir, config) = saved_at(&guard.at)?;
                let ready = || {
                    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                        tracing::debug!(%error, "cannot notify systemd");
                    }
                };
                match intercept::guard(&state_dir, config.as_ref(), ready)? {}
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

/// The state directory and the configuration. If the file is invalid, the saved rules must be loaded all the same.
fn saved_at(at: &Where) -> anyhow::Result<(PathBuf, Option<Config>)> {
    match at.load() {
        Ok(config) => Ok((config.node.state_dir.clone(), Some(config))),
        Err(errors) => {
            let state_dir = Config::state_dir_despite_errors(&at.config);
            if !intercept::are_saved(&state_dir) {
                return Err(errors.into());
            }
            eprintln!("{errors}\nwiretight: the saved rules are used without the configuration");
            Ok((state_dir, None))
        }
    }
}

impl Down {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state = PrivateDir::open_of_any_user(self.at.state_dir()?)?;
        self.confirm.ask(
            "This removes the protection: plaintext could leave this machine.",
            "Remove the kernel's rules?",
        )?;
        let removed = intercept::down(&state)?;
        if removed {
            log("`wiretight down` removed the kernel's rules: plaintext may leave this machine");
        }
        self.out.print(&json!({ "removed": removed }), |_| match removed {
            true => "The kernel's rules are removed: plaintext may leave this machine.\n".into(),
            false => "There were no rules to remove.\n".into(),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes to standard error and to the system log.
fn log(text: &str) {
    let user = rustix::process::getuid().as_raw();
    eprintln!("wiretight: {text} (user {user})");
    // RFC 3164: authpriv.warning.
    let line = format!("<84>wiretight[{}]: {text} (user {user})", std::process::id());
    let socket = std::os::unix::net::UnixDatagram::unbound();
    // The machine may have no system log.
    let _ = socket.and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(line.as_bytes(), "/dev/log")
    });
}

fn render(shown: &Shown) -> String {
    let mut out = match (shown.in_force, shown.as_kept) {
        (true, true) => format!("{}\n", term::good("the rules are loaded")),
        (true, false) => format!(
            "{}\n",
            term::bad(&format!(
                "table inet {TABLE} differs from the saved rules. If no trial is running (`wiretight mode`), run `wiretight rules load`."
            ))
        ),
        (false, _) => {
            format!("{}\n", term::bad("no rules are loaded: plaintext may leave this machine"))
        }
    };
    if let Some(rules) = &shown.rules {
        let peers: Vec<String> =
            rules.peers.iter().map(|(ip, m)| format!("{ip} {}", m.word())).collect();
        let list = |items: Vec<String>| term::or_dash(&items.join(", "));
        out += &format!("mode        {}\n", rules.mode.word());
        out += &format!("exceptions  {}\n", list(peers));
        let protected = rules.protected.iter().map(ToString::to_string).collect();
        out += &format!("protected   {}\n", list(protected));
        out += &format!("redirected  {} destinations\n", rules.taken.len());
        let management = rules.management.iter().map(ToString::to_string).collect();
        out += &format!("management  {}\n", list(management));
        out += &format!("allowed     {} flows\n", rules.passes.len());
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
