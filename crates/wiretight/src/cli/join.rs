//! `wiretight join`

use std::io::{BufRead, IsTerminal, Read};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use wiretight_keys::JoinToken;

use super::{Output, Where};
use crate::agent::{self, AgentTimes};

/// Join the mesh with a token, once; `wiretight run` then needs none
///
/// The token is read from standard input unless it is given; on a command line, others on this machine
/// could see it. (`join_token_file` in the configuration does the same for machines that are set up
/// without hands.)
#[derive(Args)]
#[command(
    after_help = "Example:\n  ssh auth wiretight token create --node db1 --service db | wiretight join"
)]
pub(super) struct Join {
    /// The token; `-` or nothing reads standard input
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
        let mut token = zeroize::Zeroizing::new(self.token);
        if *token == "-" {
            token.clear();
            let limit = wiretight_keys::token::MAX_LEN as u64 + 64;
            let mut input = std::io::stdin().lock().take(limit);
            // A person ends a line, a file or pipe ends.
            let read = match std::io::stdin().is_terminal() {
                true => {
                    eprint!("join token (from `wiretight token create`): ");
                    input.read_line(&mut token)
                }
                false => input.read_to_string(&mut token),
            };
            read.context("reading the token")?;
        }
        let token = JoinToken::decode(&token)?;
        crate::private_dir::PrivateDir::open(&config.node.state_dir)?;
        let _lock = crate::node::process::lock(&config.node.state_dir).context(
            "cannot join beside a running node: stop it first, or put the token into its `join_token_file`",
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
                "{} has joined {}; now: wiretight run --config {}\n",
                config.node.name,
                config.node.trust_domain,
                config.path.display()
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
