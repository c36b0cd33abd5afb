//! `wiretight node`

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;
use wiretight_keys::Name;
use wiretight_proxy::registry::Host;

use super::confirm::Confirm;
use super::term::{self, Table};
use super::{Output, Where};
use crate::admin::api::{AddressesRequest, GrantRequest, RemoveRequest};

/// Manage the nodes of the mesh (run on the authority)
#[derive(Subcommand)]
pub(super) enum Node {
    List(List),
    Remove(Remove),
    Grant(Grant),
}

/// List the nodes: connection, services they may claim, instances they offer
#[derive(Args)]
#[command(after_help = "Examples:\n  wiretight node list\n  wiretight node list --json")]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Remove a node: revoke its identities and close its live connections on all nodes
#[derive(Args)]
#[command(
    after_help = "Examples:\n  wiretight node remove web1\n  wiretight node remove web1 --yes                   without asking"
)]
pub(super) struct Remove {
    /// The node
    name: Name,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// Set the services that a node may claim, or add to them; removed services are revoked
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight node grant web1 --add --service api      add one service, keep the others
  wiretight node grant web1 --service web            only this service; asks before it removes others
  wiretight node grant web1 --add --address 192.0.2.7
                                                     an address behind NAT, or of a second interface")]
pub(super) struct Grant {
    /// The node
    name: Name,
    /// A service; may be repeated. Without --add, all other services are removed
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<Name>,
    /// An address that the node may announce in addition to the one it connects from; may be repeated. Without --add,
    /// all other addresses are removed. Without --service, services are unchanged
    #[arg(long = "address", value_name = "HOST")]
    addresses: Vec<Host>,
    /// Add to the services and addresses that the node has
    #[arg(long)]
    add: bool,
    #[command(flatten)]
    confirm: Confirm,
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
                let state_dir = remove.at.state_dir()?;
                if let Some(there) = find(&state_dir, &remove.name)? {
                    let effect = format!(
                        "{} All its identities will be revoked, and its live connections closed on all nodes.",
                        there.standing()
                    );
                    remove.confirm.ask(&effect, "Remove it?")?;
                }
                let request = RemoveRequest { node: remove.name };
                let done: Value = super::post(&state_dir, "/v1/remove", &request)?;
                remove.out.print(&done, |_| {
                    format!("Removed {} and revoked its identities.\n", request.node)
                })?;
            }
            Node::Grant(grant) => {
                let state_dir = grant.at.state_dir()?;
                if !grant.addresses.is_empty() {
                    let (node, addresses) = (grant.name.clone(), grant.addresses.clone());
                    let request = AddressesRequest { node, addresses, add: grant.add };
                    let done: Value = super::post(&state_dir, "/v1/addresses", &request)?;
                    let all: Vec<_> = request.addresses.iter().map(ToString::to_string).collect();
                    let also = if request.add { "also " } else { "" };
                    grant.out.print(&done, |_| {
                        format!("{} may {also}announce: {}\n", request.node, all.join(", "))
                    })?;
                    if grant.services.is_empty() {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                let there = find(&state_dir, &grant.name)?;
                if let Some(there) = there.as_ref().filter(|_| !grant.add) {
                    let lost = there.services.iter().filter(|s| !grant.services.contains(s));
                    let lost: Vec<_> = lost.map(|name| format!("service/{name}")).collect();
                    if !lost.is_empty() {
                        let effect = format!(
                            "{} It loses {}. These identities of the node will be revoked, and their live connections \
                             closed on all nodes.",
                            there.standing(),
                            lost.join(", ")
                        );
                        grant.confirm.ask(&effect, "Remove these services?")?;
                    }
                }
                let Grant { name: node, services, add, .. } = grant;
                let request = GrantRequest { node, services, add };
                let done: Value = super::post(&state_dir, "/v1/grant", &request)?;
                let kept = there.filter(|_| add).map(|there| there.services).unwrap_or_default();
                grant.out.print(&done, |_| {
                    let mut all = kept;
                    all.extend(request.services);
                    all.sort();
                    all.dedup();
                    let all: Vec<_> = all.iter().map(Name::as_str).collect();
                    format!("{} may claim: {}\n", request.node, term::or_dash(&all.join(", ")))
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The fields that are used here of a node that has joined.
#[derive(Deserialize)]
pub(super) struct Joined {
    name: Name,
    services: Vec<Name>,
    connected: bool,
    last_seen: Option<u64>,
}

impl Joined {
    /// One sentence: `Node web1 is in the mesh (connected now).`
    pub(super) fn standing(&self) -> String {
        let seen = match (self.connected, self.last_seen) {
            (true, _) => "connected now".to_owned(),
            (false, Some(at)) => format!("last seen {}", term::ago(at)),
            (false, None) => "not connected".to_owned(),
        };
        format!("Node {} is in the mesh ({seen}).", self.name)
    }
}

pub(super) fn find(state_dir: &Path, name: &Name) -> anyhow::Result<Option<Joined>> {
    #[derive(Deserialize)]
    struct Nodes {
        nodes: Vec<Joined>,
    }
    let Nodes { nodes } = super::get(state_dir, "/v1/nodes")?;
    Ok(nodes.into_iter().find(|node| node.name == *name))
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
    let mut out = table.to_string();
    for node in nodes.as_array().into_iter().flatten() {
        if let (Some(name), Some(why)) = (node["name"].as_str(), node["refused"].as_str()) {
            out += &term::bad(&format!("{name}: instances rejected: {why}"));
            out.push('\n');
        }
    }
    out
}
