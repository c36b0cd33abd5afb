//! Connections that the kernel would redirect to the relay and that would fail there. Without this, a node could be
//! reported as strict-ready although the other side would refuse its programs.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use wiretight_keys::{Id, Name};
use wiretight_proxy::Reason;
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::listing::Flow;
use wiretight_proxy::intercept::rules::{Direction, Mode, Rules};
use wiretight_proxy::mesh::Mesh;
use wiretight_proxy::relay::{Refusal, Side};

use crate::config::Config;

/// Older flows and refusals do not count, in seconds.
const DAY: u64 = 86_400;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// This node's identity is not in the service's `allow`.
    NotAllowed,
    /// This node does not have the identity that `as` names.
    NoIdentity,
    /// Two services claim the address.
    Contested,
}

/// An address whose connections are redirected to the relay and fail there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WouldFail {
    /// The address that programs connect to.
    pub to: SocketAddr,
    /// The service there.
    pub service: Name,
    /// The node that offers it.
    pub node: Name,
    /// The identity that this node uses for the connection.
    pub shows: Id,
    pub why: Failure,
    /// The identities that the service allows.
    pub allow: Vec<Id>,
    /// Another identity of this node that is allowed.
    pub instead: Option<Id>,
    /// When a program last tried to connect there, in seconds since 1970; `None` if not in the last day.
    pub last_seen: Option<u64>,
}

/// All addresses that would fail, whether or not a program uses them.
pub(super) fn all(config: &Config, mesh: &Mesh) -> Vec<WouldFail> {
    let Some(settings) = &config.relay.intercept else { return Vec::new() };
    let shows = &settings.identity;
    let (registry, identities) = (mesh.registry(), mesh.identities());
    let has_identity = mesh.identity(shows).is_some();
    let mut all = Vec::new();
    for (service, instances) in &registry.services {
        for instance in instances.iter().filter(|i| i.node != config.node.name) {
            let Some(at) = instance.addr.as_ip() else { continue };
            for port in instance.ports.iter().filter(|port| **port != at.port()) {
                let to = SocketAddr::new(at.ip().to_canonical(), *port);
                let why = if mesh.meant(to).is_none() {
                    Failure::Contested
                } else if !instance.allow.contains(shows) {
                    Failure::NotAllowed
                } else if !has_identity {
                    Failure::NoIdentity
                } else {
                    continue;
                };
                let mut others = identities.keys().filter(|id| instance.allow.contains(id));
                let instead = others.next().filter(|_| why == Failure::NotAllowed);
                all.push(WouldFail {
                    to,
                    service: service.clone(),
                    node: instance.node.clone(),
                    shows: shows.clone(),
                    why,
                    allow: instance.allow.clone(),
                    instead: instead.cloned(),
                    last_seen: None,
                });
            }
        }
    }
    all
}

/// The relevant part of `all`: a program connected there or was refused; or this node has an identity that is allowed
/// but does not use it.
pub(super) fn in_use(
    all: &[WouldFail],
    rules: &Rules,
    flows: &[Flow],
    refusals: &[Refusal],
) -> Vec<WouldFail> {
    let taken = |f: &&WouldFail| rules.peers.get(&f.to.ip()) != Some(&Mode::Observe);
    let used = all.iter().filter(taken).filter_map(|failing| {
        let flows = flows.iter().filter(|flow| {
            flow.direction == Direction::Out
                && flow.protocol == "tcp"
                && SocketAddr::new(flow.peer, flow.port) == failing.to
        });
        let refused = refusals.iter().filter(|r| {
            let reason = match failing.why {
                Failure::NotAllowed => Reason::NotAllowed,
                Failure::NoIdentity => Reason::NoIdentity,
                Failure::Contested => Reason::NoInstance,
            };
            r.side == Side::Dial && r.service == failing.service && r.reason == reason
        });
        let last = flows.map(|f| f.last_seen).chain(refused.map(|r| r.at)).max();
        let last_seen = last.filter(|at| now().saturating_sub(*at) <= DAY);
        // If the operator has set `as`, only actual connections show that the setting is wrong.
        let chosen = matches!(failing.shows, Id::Service(_));
        let counts = last_seen.is_some() || (failing.instead.is_some() && !chosen);
        counts.then(|| WouldFail { last_seen, ..failing.clone() })
    });
    used.collect()
}

/// `db1 would refuse node/web1 (service/db at 10.0.0.5:5432): set as = "web" in [intercept], or ...`
impl std::fmt::Display for WouldFail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WouldFail { to, service, node, shows, allow, .. } = self;
        match self.why {
            Failure::NotAllowed => {
                write!(f, "{node} would refuse {shows} (service/{service} at {to}): ")?;
                let own = match &self.instead {
                    Some(Id::Service(name)) => format!("set as = \"{name}\" in [intercept] here"),
                    Some(Id::Node(_)) => "remove as from [intercept] here".into(),
                    _ => {
                        let may = allow.iter().filter(|id| matches!(id, Id::Service(_)));
                        let may: Vec<_> = may.take(3).map(ToString::to_string).collect();
                        match may.is_empty() {
                            true => "set as in [intercept] here to an allowed service".into(),
                            false => {
                                format!("set as in [intercept] here (allowed: {})", may.join(", "))
                            }
                        }
                    }
                };
                write!(f, "{own}, or add \"{shows}\" to allow of service {service} on {node}")
            }
            Failure::NoIdentity => write!(
                f,
                "this node has no valid identity {shows} for {node} (service/{service} at {to}); see `wiretight status`"
            ),
            Failure::Contested => write!(
                f,
                "two services claim {to}, so connections to it are refused: set ports in one of the [[service]] sections on {node}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(instead: Option<&str>) -> WouldFail {
        WouldFail {
            to: "10.0.0.5:5432".parse().unwrap(),
            service: "db".parse().unwrap(),
            node: "db1".parse().unwrap(),
            shows: "node/web1".parse().unwrap(),
            why: Failure::NotAllowed,
            allow: vec!["service/web".parse().unwrap()],
            instead: instead.map(|id| id.parse().unwrap()),
            last_seen: None,
        }
    }

    fn rules() -> Rules {
        Rules {
            mode: Mode::Observe,
            peers: [].into(),
            mark: 1,
            port: 7491,
            listens: [].into(),
            taken: ["10.0.0.5:5432".parse().unwrap()].into(),
            protected: Vec::new(),
            passes: Vec::new(),
            resolvers: Vec::new(),
            management: Vec::new(),
            cgroups: Vec::new(),
            transparent: Default::default(),
        }
    }

    fn flow(peer: &str, port: u16, direction: Direction, ago: u64) -> Flow {
        Flow {
            peer: peer.parse().unwrap(),
            protocol: "tcp".into(),
            port,
            direction,
            dropped: false,
            packets: 1,
            bytes: 1,
            last_seen: now() - ago,
            programs: Vec::new(),
        }
    }

    #[test]
    fn a_refusal_counts_if_a_program_connects_there_or_another_identity_would_be_allowed() {
        let (none, own) = ([failing(None)], [failing(Some("service/web"))]);
        let count =
            |all: &[WouldFail], flows: &[Flow], rules: &Rules| in_use(all, rules, flows, &[]).len();
        let out = Direction::Out;
        assert_eq!(count(&none, &[], &rules()), 0);
        assert_eq!(count(&own, &[], &rules()), 1);
        assert_eq!(count(&none, &[flow("10.0.0.5", 5432, out, 60)], &rules()), 1);
        for other in [
            flow("10.0.0.5", 5433, out, 60),
            flow("10.0.0.6", 5432, out, 60),
            flow("10.0.0.5", 5432, Direction::In, 60),
            flow("10.0.0.5", 5432, out, 2 * DAY),
        ] {
            assert_eq!(count(&none, &[other], &rules()), 0);
        }
        // Connections to a peer that is only observed are never redirected.
        let observed =
            Rules { peers: [("10.0.0.5".parse().unwrap(), Mode::Observe)].into(), ..rules() };
        assert_eq!(count(&own, &[flow("10.0.0.5", 5432, out, 60)], &observed), 0);
    }

    #[test]
    fn the_text_names_both_sides_and_both_solutions() {
        assert_eq!(
            failing(Some("service/web")).to_string(),
            "db1 would refuse node/web1 (service/db at 10.0.0.5:5432): set as = \"web\" in [intercept] here, or add \
             \"node/web1\" to allow of service db on db1"
        );
        assert!(failing(None).to_string().contains("(allowed: service/web)"));
        let chosen = WouldFail {
            shows: "service/web".parse().unwrap(),
            instead: Some("node/web1".parse().unwrap()),
            ..failing(None)
        };
        assert!(chosen.to_string().contains("remove as from [intercept] here"), "{chosen}");
        assert!(in_use(&[chosen], &rules(), &[], &[]).is_empty(), "the operator has chosen it");
    }
}
