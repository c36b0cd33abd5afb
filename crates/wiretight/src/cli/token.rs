//! `wiretight token`

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use wiretight_keys::Name;
use wiretight_proxy::registry::Host;

use super::confirm::Confirm;
use super::term::{self, Table};
use super::{Output, Where, node};
use crate::admin::api::{RevokeTokenRequest, TokenRequest};

/// Join tokens: how a new node gets in (on the authority)
#[derive(Subcommand)]
pub(super) enum Token {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// List the join tokens that can still be used
///
/// Those that were used or have expired are not shown. The secret part of a token is shown once, by `token create`.
#[derive(Args)]
#[command(after_help = "Examples:\n  wiretight token list\n  wiretight token list --json")]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Revoke a join token that nobody has used
///
/// To take out a node that has joined already: `wiretight node remove`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight token revoke 5f0c2d9a7b3e4186             an ID from `wiretight token list`"
)]
pub(super) struct Revoke {
    /// The token's ID, from `token list`
    id: String,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Make a single-use join token for one node, and the services that it may claim
///
/// The token is a secret until it is used: hand it over as you would a password. It names the
/// authority by its fingerprint, so the node knows whom it talks to from the first byte.
///
/// A machine that joins with the name of a node takes that node's place, so this asks if there is one.
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
    /// Another address that it may announce, behind NAT or of a second interface: without it, services are announced at
    /// the address that the node connects from. May be given again
    #[arg(long = "address", value_name = "HOST")]
    addresses: Vec<Host>,
    /// How long the token holds
    #[arg(long, default_value = "1h", value_parser = term::duration)]
    ttl: Duration,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    out: Output,
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let create = match self {
            Token::Create(create) => create,
            Token::List(list) => {
                let tokens: Value = super::get(&list.at.state_dir()?, "/v1/tokens")?;
                list.out.print(&tokens, |v| table(&v["tokens"]))?;
                return Ok(ExitCode::SUCCESS);
            }
            Token::Revoke(revoke) => {
                let request = RevokeTokenRequest { id: revoke.id };
                let state_dir = revoke.at.state_dir()?;
                let done: Value = super::post(&state_dir, "/v1/tokens/revoke", &request)?;
                revoke.out.print(&done, |done| {
                    let node = done["node"].as_str().unwrap_or_default();
                    format!("the join token for {node} is revoked: nobody can join with it\n")
                })?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        let state_dir = create.at.state_dir()?;
        if let Some(there) = node::find(&state_dir, &create.node)? {
            let effect = format!(
                "{} A machine that joins with this token takes its place: all its identities will be revoked, and its \
                 live connections cut.",
                there.standing()
            );
            create.confirm.ask(&effect, "Make a join token for this name?")?;
        }
        let request = TokenRequest {
            node: create.node,
            services: create.services,
            addresses: create.addresses,
            ttl_seconds: create.ttl.as_secs(),
        };
        let made: Value = super::post(&state_dir, "/v1/tokens", &request)?;
        create
            .out
            .print(&made, |made| format!("{}\n", made["token"].as_str().unwrap_or_default()))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(tokens: &Value) -> String {
    let mut table = Table::new(&["ID", "NODE", "MAY CLAIM", "EXPIRES IN"]);
    for token in tokens.as_array().into_iter().flatten() {
        let text = |key: &str| token[key].as_str().unwrap_or_default().to_owned();
        let services = token["services"].as_array().into_iter().flatten();
        let services: Vec<_> = services.filter_map(Value::as_str).collect();
        let left = token["expires"].as_u64().unwrap_or(0);
        let left = left.saturating_sub(wiretight_proxy::mesh::now());
        table.row([
            text("id"),
            text("node"),
            term::or_dash(&services.join(", ")),
            term::span(left),
        ]);
    }
    if table.is_empty() { "no unused join tokens\n".into() } else { table.to_string() }
}
