//! The command line: one file per verb. Verbs that print take `--json`. Errors say what happened, the likely cause and
//! the next step.

mod audit;
mod authority;
mod check;
mod confirm;
mod console;
mod demo;
mod init;
mod join;
mod man;
mod mode;
mod monitor;
mod node;
mod plaintext;
mod publish;
mod reach;
mod release;
mod revoke;
mod rules;
mod run;
mod scan;
mod shell;
mod status;
mod svid;
mod term;
mod token;
mod upgrade;
mod verify;
mod verify_release;
mod watch;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::admin::client::AdminError;
use crate::config::{Config, ConfigErrors};
use crate::logging::chain;

const DEFAULT_CONFIG: &str = "/etc/wiretight/wiretight.toml";

/// Encrypts all traffic between your machines, and lets outsiders verify it.
///
/// Each machine runs this one binary with one short configuration file. Traffic between your programs then crosses the
/// network as mutually authenticated TLS 1.3 with post-quantum key exchange. The programs do not change.
#[derive(Parser)]
#[command(
    name = "wiretight",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  wiretight demo                                     try it, without any setup
  wiretight init                                     write a first configuration file for this machine
  wiretight check wiretight.toml                     check a configuration file
  wiretight run --config wiretight.toml              run this node
  wiretight token create --node db1 --service db     create a token for a new node to join with
  wiretight status                                   show what is encrypted, between which peers, and how
  wiretight scan example.com                         assess the TLS of a server
  wiretight watch --interface any                    show what flows here, and what of it is encrypted

Exit status: 0 success, 1 failure, 2 wrong usage or invalid configuration, 3 no node is running here."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Init(init::Init),
    Run(run::Run),
    Check(check::Check),
    Status(status::Status),
    Console(console::Console),
    Reload(run::Reload),
    Upgrade(upgrade::Upgrade),
    Mode(mode::Mode),
    Join(join::Join),
    #[command(subcommand)]
    Token(token::Token),
    #[command(subcommand)]
    Node(node::Node),
    #[command(subcommand)]
    Svid(svid::Svid),
    #[command(subcommand)]
    Authority(authority::Authority),
    Revoke(revoke::Revoke),
    #[command(subcommand)]
    Rules(rules::Rules),
    Down(rules::Down),
    #[command(subcommand)]
    Witness(witness::Witness),
    Monitor(Box<monitor::Monitor>),
    Verify(verify::Verify),
    #[command(subcommand)]
    Audit(audit::Audit),
    Publish(publish::Publish),
    #[command(subcommand)]
    Release(release::Release),
    Rebuild(release::Rebuild),
    Scan(Box<scan::Scan>),
    Watch(Box<watch::Watch>),
    Demo(demo::Demo),
    Completions(shell::Completions),
    Man(man::Man),
    #[command(hide = true)]
    DnsHook(run::DnsHook),
    #[command(hide = true)]
    RulesKeeper(rules::RulesKeeper),
    #[command(hide = true)]
    Watcher(run::Watcher),
}

#[derive(Args, Clone)]
struct Where {
    /// The node's configuration file
    #[arg(
        long,
        value_name = "FILE", value_hint = clap::ValueHint::FilePath,
        env = "WIRETIGHT_CONFIG",
        default_value = DEFAULT_CONFIG
    )]
    config: PathBuf,
}

impl Where {
    fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(&self.config)
    }

    fn state_dir(&self) -> Result<PathBuf, ConfigErrors> {
        Ok(self.load()?.node.state_dir)
    }
}

#[derive(Args, Clone, Copy)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Prints JSON if asked for, otherwise the text from `human`.
    fn print<T: Serialize>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        print(&match self.json {
            true => serde_json::to_string_pretty(value)? + "\n",
            false => human(value),
        })
    }
}

/// Writes to standard output. A closed pipe is not an error: the reader (`head`, for example) has seen enough.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// `1 site`, `2 sites`
fn count(n: usize, name: &str) -> String {
    format!("{n} {name}{}", if n == 1 { "" } else { "s" })
}

/// `1 service, 0 dials, 2 sites`
fn counted(services: usize, dials: usize, sites: usize) -> String {
    [count(services, "service"), count(dials, "dial"), count(sites, "site")].join(", ")
}

/// Parses the command line and runs the verb.
pub fn main() -> ExitCode {
    // A process started through /proc/self/exe would appear as `exe` in ps, top and the kernel log.
    let _ = rustix::thread::set_name(c"wiretight");
    crate::exposition::started();
    crate::privilege::no_core_dumps();
    let cli = Cli::parse();
    let json = std::env::args_os().any(|argument| argument == "--json");
    let done = match cli.verb {
        Verb::Init(verb) => verb.run(),
        Verb::Run(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Status(verb) => verb.run(),
        Verb::Console(verb) => verb.run(),
        Verb::Reload(verb) => verb.run(),
        Verb::Upgrade(verb) => verb.run(),
        Verb::Mode(verb) => verb.run(),
        Verb::Join(verb) => verb.run(),
        Verb::Token(verb) => verb.run(),
        Verb::Node(verb) => verb.run(),
        Verb::Svid(verb) => verb.run(),
        Verb::Authority(verb) => verb.run(),
        Verb::Revoke(verb) => verb.run(),
        Verb::Rules(verb) => verb.run(),
        Verb::Down(verb) => verb.run(),
        Verb::Witness(verb) => verb.run(),
        Verb::Monitor(verb) => verb.run(),
        Verb::Verify(verb) => verb.run(),
        Verb::Audit(verb) => verb.run(),
        Verb::Publish(verb) => verb.run(),
        Verb::Release(verb) => verb.run(),
        Verb::Rebuild(verb) => verb.run(),
        Verb::Scan(verb) => verb.run(),
        Verb::Watch(verb) => verb.run(),
        Verb::Demo(verb) => verb.run(),
        Verb::Completions(verb) => verb.run(&Cli::command()),
        Verb::Man(verb) => verb.run(&Cli::command()),
        Verb::DnsHook(verb) => verb.run(),
        Verb::RulesKeeper(verb) => verb.run(),
        Verb::Watcher(verb) => verb.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let code = match () {
                () if error.is::<ConfigErrors>() => 2,
                () if matches!(error.downcast_ref(), Some(AdminError::NotRunning { .. })) => 3,
                () => 1,
            };
            match (json, error.downcast_ref::<ConfigErrors>()) {
                (true, errors) => eprintln!("{}", as_json(&error, errors)),
                (false, Some(errors)) => eprintln!("{errors}"),
                (false, None) => eprintln!("wiretight: {}", chain(error.as_ref())),
            }
            ExitCode::from(code)
        }
    }
}

/// An error as one line of JSON, for standard error.
fn as_json(error: &anyhow::Error, config: Option<&ConfigErrors>) -> serde_json::Value {
    match config {
        Some(errors) => serde_json::json!({
            "error": errors.to_string(),
            "errors": errors.as_slice().iter().map(check::error_json).collect::<Vec<_>>(),
        }),
        None => serde_json::json!({ "error": chain(error.as_ref()) }),
    }
}

/// Runs one request. On a terminal, says so if it takes longer than a second.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    use std::io::IsTerminal;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        tokio::pin!(future);
        let patience = std::time::Duration::from_secs(1);
        if let Ok(done) = tokio::time::timeout(patience, &mut future).await {
            return done;
        }
        if std::io::stderr().is_terminal() {
            eprintln!("waiting for the response ...");
        }
        future.await
    })
}

/// Sends a GET to the node's admin socket.
fn get<T: serde::de::DeserializeOwned>(state_dir: &Path, path: &str) -> anyhow::Result<T> {
    let request = crate::admin::client::request(state_dir, hyper::Method::GET, path, None::<&()>);
    block_on(async { Ok(request.await?) })
}

/// Sends a POST to the node's admin socket.
fn post<T: serde::de::DeserializeOwned>(
    state_dir: &Path,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let request = crate::admin::client::request(state_dir, hyper::Method::POST, path, Some(body));
    block_on(async { Ok(request.await?) })
}
