//! `wiretight node`

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use wiretight_keys::Name;
use wiretight_proxy::registry::Host;
use wiretight_scan::report::clean;

use super::confirm::Confirm;
use super::term::{self, Table};
use super::{Output, Where};
use crate::admin::api::{
    AddressesAnswer, AddressesRequest, GrantAnswer, GrantRequest, NodesAnswer, RemoveAnswer,
    RemoveRequest,
};
use crate::admin::client::Received;
use crate::authority::{NodeInfo, NodeRelease, ReleaseVerdict};

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
                let answer: Received<NodesAnswer> = super::get(&list.at.state_dir()?, "/v1/nodes")?;
                list.out.print(&answer, |answer| table(&answer.nodes))?;
            }
            Node::Remove(remove) => {
                let state_dir = remove.at.state_dir()?;
                if let Some(there) = find(&state_dir, &remove.name)? {
                    let effect = format!(
                        "{} All its identities will be revoked, and its live connections closed on all nodes.",
                        standing(&there)
                    );
                    remove.confirm.ask(&effect, "Remove it?")?;
                }
                let request = RemoveRequest { node: remove.name };
                let done: Received<RemoveAnswer> = super::post(&state_dir, "/v1/remove", &request)?;
                remove.out.print(&done, |_| {
                    format!("Removed {} and revoked its identities.\n", request.node)
                })?;
            }
            Node::Grant(grant) => {
                let state_dir = grant.at.state_dir()?;
                if !grant.addresses.is_empty() {
                    let (node, addresses) = (grant.name.clone(), grant.addresses.clone());
                    let request = AddressesRequest { node, addresses, add: grant.add };
                    let done: Received<AddressesAnswer> =
                        super::post(&state_dir, "/v1/addresses", &request)?;
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
                            standing(there),
                            lost.join(", ")
                        );
                        grant.confirm.ask(&effect, "Remove these services?")?;
                    }
                }
                let Grant { name: node, services, add, .. } = grant;
                let request = GrantRequest { node, services, add };
                let done: Received<GrantAnswer> = super::post(&state_dir, "/v1/grant", &request)?;
                let kept = there.filter(|_| add).map(|there| there.services).unwrap_or_default();
                grant.out.print(&done, |_| {
                    let mut all = kept;
                    all.extend(request.services);
                    let all: Vec<_> = all.iter().map(Name::as_str).collect();
                    format!("{} may claim: {}\n", request.node, term::or_dash(&all.join(", ")))
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One sentence: `Node web1 is in the mesh (connected now).`
pub(super) fn standing(node: &NodeInfo) -> String {
    let seen = match (node.connected, node.last_seen) {
        (true, _) => "connected now".to_owned(),
        (false, Some(at)) => format!("last seen {}", term::ago(at)),
        (false, None) => "not connected".to_owned(),
    };
    format!("Node {} is in the mesh ({seen}).", node.name)
}

pub(super) fn find(state_dir: &Path, name: &Name) -> anyhow::Result<Option<NodeInfo>> {
    let NodesAnswer { nodes } = super::get(state_dir, "/v1/nodes")?;
    Ok(nodes.into_iter().find(|node| node.name == *name))
}

fn release(verdict: &ReleaseVerdict) -> String {
    match verdict {
        ReleaseVerdict::Proved(proved) => format!("{} proved", proved.version),
        ReleaseVerdict::Unproved(_) => term::bad("not proved"),
        ReleaseVerdict::Unchecked | ReleaseVerdict::Unknown => "-".into(),
    }
}

/// Why the release of a node is not proved, and what follows; `None` if nothing follows and nothing is wrong.
pub(super) fn unproved(node: &Name, of: &NodeRelease) -> Option<String> {
    let why = clean(of.verdict.problem()?);
    match (of.refused_in, &of.verdict) {
        (Some(0), _) => {
            Some(term::bad(&format!("{node} gets no identity: its release is not proved: {why}")))
        }
        (Some(left), _) => Some(term::bad(&format!(
            "{node} gets no identity after {}: its release is not proved: {why}",
            term::span(left)
        ))),
        (None, ReleaseVerdict::Unproved(_)) => {
            Some(format!("{node}: its release is not proved: {why}"))
        }
        (None, _) => None,
    }
}

fn table(nodes: &[NodeInfo]) -> String {
    let heads = ["NODE", "CONNECTED", "LAST SEEN", "RELEASE", "MAY CLAIM", "OFFERS"];
    let mut table = Table::new(&heads);
    for node in nodes {
        let services: Vec<_> = node.services.iter().map(Name::as_str).collect();
        let offers: Vec<_> =
            node.instances.iter().map(|o| format!("{} at {}", o.service, o.addr)).collect();
        table.row([
            node.name.to_string(),
            if node.connected { "yes".into() } else { "no".into() },
            node.last_seen.map_or("never".into(), term::ago),
            release(&node.release.verdict),
            term::or_dash(&services.join(", ")),
            term::or_dash(&offers.join(", ")),
        ]);
    }
    let mut out = table.to_string();
    for node in nodes {
        if let Some(why) = unproved(&node.name, &node.release) {
            out += &format!("{why}\n");
        }
        if let Some(why) = &node.refused {
            out += &term::bad(&format!("{}: instances rejected: {why}", node.name));
            out.push('\n');
        }
    }
    out
}
