//! `wiretight token`

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use wiretight_keys::Name;

use super::{Output, Where, term};
use crate::admin::TokenRequest;

/// Join tokens: how a new node gets in (on the authority)
#[derive(Subcommand)]
pub(super) enum Token {
    Create(Create),
}

/// Make a single-use join token for one node, and the services that it may claim
///
/// The token is a secret until it is used: hand it over as you would a password. It names the
/// authority by its fingerprint, so the node knows whom it talks to from the first byte.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight token create --node db1 --service db --service metrics
  wiretight token create --node web1 --service web --ttl 10m | ssh web1 wiretight join")]
pub(super) struct Create {
    #[command(flatten)]
    at: Where,
    /// The name of the node ([node] name in its file)
    #[arg(long)]
    node: Name,
    /// A service that it may offer, or act as; may be given again
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<Name>,
    /// How long the token holds
    #[arg(long, default_value = "1h", value_parser = term::duration)]
    ttl: Duration,
    #[command(flatten)]
    out: Output,
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Token::Create(create) = self;
        let state_dir = create.at.state_dir()?;
        let request = TokenRequest {
            node: create.node,
            services: create.services,
            ttl_seconds: create.ttl.as_secs(),
        };
        let made: Value = super::post(&state_dir, "/v1/tokens", &request)?;
        create
            .out
            .print(&made, |made| format!("{}\n", made["token"].as_str().unwrap_or_default()))?;
        Ok(ExitCode::SUCCESS)
    }
}
