//! `wiretight node`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;
use wiretight_keys::Name;

use super::term::{self, Table};
use super::{Output, Where};
use crate::admin::{GrantRequest, RemoveRequest};

/// The nodes of the mesh (on the authority)
#[derive(Subcommand)]
pub(super) enum Node {
    List(List),
    Remove(Remove),
    Grant(Grant),
}

/// List the nodes: whether they are connected, what they may claim, what they offer
#[derive(Args)]
#[command(after_help = "Examples:\n  wiretight node list\n  wiretight node list --json")]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Remove a node: its identities are revoked, and its live connections cut everywhere
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight node remove web1")]
pub(super) struct Remove {
    /// The node
    name: Name,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Set the services that a node may claim; what it may no longer claim is revoked
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight node grant web1 --service web --service api")]
pub(super) struct Grant {
    /// The node
    name: Name,
    /// A service; may be given again. All that are not named are taken away
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<Name>,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Node {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Node::List(list) => {
                let nodes: Value = super::get(&list.at.state_dir()?, "/v1/nodes")?;
                list.out.print(&nodes, |v| table(&v["nodes"]))?;
            }
            Node::Remove(remove) => {
                let request = RemoveRequest { node: remove.name };
                let done: Value = super::post(&remove.at.state_dir()?, "/v1/remove", &request)?;
                remove.out.print(&done, |_| {
                    format!("{} is removed; its identities are revoked\n", request.node)
                })?;
            }
            Node::Grant(grant) => {
                let request = GrantRequest { node: grant.name, services: grant.services };
                let done: Value = super::post(&grant.at.state_dir()?, "/v1/grant", &request)?;
                grant.out.print(&done, |_| {
                    let services: Vec<_> = request.services.iter().map(Name::as_str).collect();
                    format!("{} may claim: {}\n", request.node, term::or_dash(&services.join(", ")))
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(nodes: &Value) -> String {
    let mut table = Table::new(&["NODE", "CONNECTED", "LAST SEEN", "MAY CLAIM", "OFFERS"]);
    for node in nodes.as_array().into_iter().flatten() {
        let texts = |v: &Value, f: fn(&Value) -> String| {
            let all: Vec<_> = v.as_array().into_iter().flatten().map(f).collect();
            term::or_dash(&all.join(", "))
        };
        let plain = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let offer = |v: &Value| {
            format!(
                "{} at {}",
                v["service"].as_str().unwrap_or("?"),
                v["addr"].as_str().unwrap_or("?")
            )
        };
        table.row([
            plain(&node["name"]),
            if node["connected"] == true { "yes".into() } else { "no".into() },
            node["last_seen"].as_u64().map_or("never".into(), term::ago),
            texts(&node["services"], plain),
            texts(&node["instances"], offer),
        ]);
    }
    table.to_string()
}
