//! `wiretight token`

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use wiretight_keys::Name;
use wiretight_proxy::registry::Host;

use super::confirm::Confirm;
use super::term::{self, Table};
use super::{Output, Where, node};
use crate::admin::api::{
    RevokeTokenAnswer, RevokeTokenRequest, TokenAnswer, TokenRequest, TokensAnswer,
};
use crate::admin::client::Received;
use crate::authority::PendingToken;

/// Manage the tokens that new nodes join with (run on the authority)
#[derive(Subcommand)]
pub(super) enum Token {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// List the join tokens that can still be used
///
/// Used and expired tokens are not listed. Only `token create` shows the token itself, once.
#[derive(Args)]
#[command(after_help = "Examples:\n  wiretight token list\n  wiretight token list --json")]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Revoke an unused join token
///
/// To remove a node that has already joined, use `wiretight node remove`.
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

/// Create a single-use join token for one node and the services that it may claim
///
/// The token is secret until it is used: handle it like a password. It contains the authority's fingerprint, so that
/// the node can authenticate the authority when it joins.
///
/// A machine that joins under the name of an existing node replaces that node. The command asks before it creates a
/// token for such a name.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight token create --node db1 --service db --service metrics
  wiretight token create --node web1 --service web --ttl 10m | ssh web1 wiretight join")]
pub(super) struct Create {
    #[command(flatten)]
    at: Where,
    /// The name of the node ([node] name in its configuration)
    #[arg(long)]
    node: Name,
    /// A service that the node may offer, or act as; may be repeated
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<Name>,
    /// An address that the node may announce in addition to the one it connects from (behind NAT, or of a second
    /// interface); may be repeated
    #[arg(long = "address", value_name = "HOST")]
    addresses: Vec<Host>,
    /// How long the token is valid
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
                let answer: Received<TokensAnswer> =
                    super::get(&list.at.state_dir()?, "/v1/tokens")?;
                list.out.print(&answer, |answer| table(&answer.tokens))?;
                return Ok(ExitCode::SUCCESS);
            }
            Token::Revoke(revoke) => {
                let request = RevokeTokenRequest { id: revoke.id };
                let state_dir = revoke.at.state_dir()?;
                let done: Received<RevokeTokenAnswer> =
                    super::post(&state_dir, "/v1/tokens/revoke", &request)?;
                revoke.out.print(&done, |done| {
                    format!("Revoked the join token for {}. It can no longer be used.\n", done.node)
                })?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        let state_dir = create.at.state_dir()?;
        if let Some(there) = node::find(&state_dir, &create.node)? {
            let effect = format!(
                "{} A machine that joins with this token replaces it: all identities of the node will then be revoked, \
                 and its live connections closed.",
                node::standing(&there)
            );
            create.confirm.ask(&effect, "Create a join token for this name?")?;
        }
        let request = TokenRequest {
            node: create.node,
            services: create.services,
            addresses: create.addresses,
            ttl_seconds: create.ttl.as_secs(),
        };
        let made: Received<TokenAnswer> = super::post(&state_dir, "/v1/tokens", &request)?;
        create.out.print(&made, |made| format!("{}\n", made.token))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(tokens: &[PendingToken]) -> String {
    let mut table = Table::new(&["ID", "NODE", "MAY CLAIM", "EXPIRES IN"]);
    for token in tokens {
        let services: Vec<_> = token.services.iter().map(Name::as_str).collect();
        table.row([
            token.id.clone(),
            token.node.to_string(),
            term::or_dash(&services.join(", ")),
            term::span(token.expires.saturating_sub(wiretight_proxy::clock::now())),
        ]);
    }
    if table.is_empty() { "no unused join tokens\n".into() } else { table.to_string() }
}
