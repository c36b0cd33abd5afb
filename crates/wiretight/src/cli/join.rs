//! `wiretight join`

use std::io::{BufRead, IsTerminal, Read};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use wiretight_keys::JoinToken;
use zeroize::Zeroizing;

use super::{Output, Where};
use crate::agent::{self, AgentTimes};

/// Join the mesh with a token; needed once, before the first `wiretight run`
///
/// The token is read from standard input by default, because other users of this machine can see command lines. For
/// unattended setup, use `join_token_file` in the configuration instead.
#[derive(Args)]
#[command(
    after_help = "Example:\n  ssh auth wiretight token create --node db1 --service db | wiretight join"
)]
pub(super) struct Join {
    /// The token; `-` reads standard input
    #[arg(default_value = "-")]
    token: String,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Join {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.at.load()?;
        let token = read_token(self.token)?;
        let token = JoinToken::decode(&token)?;
        crate::private_dir::PrivateDir::open(&config.node.state_dir)?;
        let _lock = crate::node::process::lock(&config.node.state_dir).context(
            "cannot join while the node is running. Stop it first, or put the token into its `join_token_file`.",
        )?;
        agent::token_fits(&token, &config.node.trust_domain, &config.node.name)
            .map_err(anyhow::Error::msg)?;
        let (dir, authority) = (config.node.state_dir.join("identity"), &config.node.authority);
        let times = AgentTimes::default();
        let asks = crate::log::transparency(&config)?;
        let passes = crate::intercept::pass_own_rules(&config.node.state_dir);
        let joined = super::block_on(async {
            Ok(agent::join_once(&token, &dir, authority, &asks, times).await?)
        });
        joined.map_err(|error| match passes {
            Ok(()) => error,
            Err(why) => error.context(why),
        })?;
        let joined = json!({
            "joined": config.node.trust_domain,
            "node": config.node.name,
            "state_dir": config.node.state_dir,
        });
        self.out.print(&joined, |_| {
            format!(
                "{} has joined {}. Next: wiretight run --config {}\n",
                config.node.name,
                config.node.trust_domain,
                config.path.display()
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The token of an argument; for `-`, from standard input.
pub(super) fn read_token(argument: String) -> anyhow::Result<Zeroizing<String>> {
    let mut token = Zeroizing::new(argument);
    if *token == "-" {
        token.clear();
        let limit = wiretight_keys::token::MAX_LEN as u64 + 64;
        let mut input = std::io::stdin().lock().take(limit);
        // On a terminal the token ends with the line; from a file or pipe, at end of file.
        let read = match std::io::stdin().is_terminal() {
            true => {
                eprint!("join token (from `wiretight token create`): ");
                input.read_line(&mut token)
            }
            false => input.read_to_string(&mut token),
        };
        read.context("cannot read the token")?;
    }
    Ok(token)
}
