//! Prometheus metrics, computed from the node's counters at each scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use wiretight_keys::{Name, SpiffeId};
use wiretight_proxy::Reason;
use wiretight_proxy::edge::{HandshakeLatency, SiteLatency, SiteStatus};
use wiretight_proxy::intercept::listing::Flow;
use wiretight_proxy::intercept::rules::{Direction, Mode};
use wiretight_proxy::relay::{RelayLatency, Side, Sums};
use wiretight_scan::passive::totals::{Count, Way};

use super::api::Status;
use crate::authority::{CaStatus, ClaimsStatus, NodeInfo, ReleaseVerdict};
use crate::exposition::{self, Labels, counter, gauge, histogram, one};
use crate::intercept::InterceptStatus;
use crate::log::sequencer::LogStatus;
use crate::watch::host::{Cost, WatchStatus};

/// The response to a scrape with these headers.
pub(crate) fn answer(
    request: &HeaderMap,
    status: Status,
    measured: Measured,
) -> Response<Full<Bytes>> {
    exposition::answer(request, Box::new(Snapshot(status, measured)))
}

/// What only the metrics show.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) relay: Vec<RelayLatency>,
    pub(crate) sites: Vec<SiteLatency>,
    pub(crate) handshakes: Vec<HandshakeLatency>,
    /// Since when each identity is valid.
    pub(crate) not_before: Vec<(SpiffeId, u64)>,
    /// The roots of the trust bundle: fingerprint and end of validity.
    pub(crate) roots: Vec<(String, u64)>,
    pub(crate) configured: Option<Mode>,
    /// Of the file system of the state directory.
    pub(crate) disk: Option<Disk>,
    /// What the process that watches has used.
    pub(crate) watcher: Option<Cost>,
    /// On the authority's node.
    pub(crate) ca: Option<CaStatus>,
    pub(crate) nodes: Vec<NodeInfo>,
}

/// Bytes of a file system.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) available: u64,
    pub(crate) size: u64,
}

#[derive(Debug)]
struct Snapshot(Status, Measured);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot(status, measured) = self;
        let e = &mut encoder;
        relay(e, status, measured)?;
        edge(e, status, measured)?;
        if let Some(of) = &status.intercept {
            intercept(e, of, measured.configured)?;
        }
        exceptions(e, status)?;
        if let Some(of) = &status.watch {
            watch(e, of, measured.watcher)?;
        }
        node(e, status, measured)?;
        if let Some(of) = &status.log {
            log(e, of)?;
        }
        if let Some(of) = &measured.ca {
            mesh(e, of, &measured.nodes)?;
        }
        if let Some(of) = &status.publish {
            let help = "When the public proof page was last written, in Unix time";
            let at = of.published_at.map(|at| (Labels::new(), at));
            gauge(e, "publish_timestamp_seconds", help, at)?;
            let help = "1 while the public proof page cannot be brought up to date";
            gauge(e, "publish_failed", help, flag(of.problem.is_some()))?;
        }
        if let Some(of) = &status.claims {
            claims(e, of)?;
        }
        Ok(())
    }
}

fn flag(on: bool) -> [(Labels, u64); 1] {
    one(u64::from(on))
}

/// One series for each mode, with the value 1 for this one.
fn modes(chosen: Option<Mode>) -> impl Iterator<Item = (Labels, u64)> {
    let modes = [Mode::Observe, Mode::Permissive, Mode::Strict];
    modes
        .into_iter()
        .map(move |m| (vec![("mode", m.word().to_owned())], u64::from(chosen == Some(m))))
}

fn relay(e: &mut DescriptorEncoder<'_>, status: &Status, measured: &Measured) -> fmt::Result {
    let sums = |value: fn(&Sums) -> u64| {
        let labels =
            |s: &Sums| vec![("side", s.side.word().to_owned()), ("service", s.service.to_string())];
        status.relay.sums.iter().map(move |s| (labels(s), value(s)))
    };
    counter(e, "sessions", "Sessions started", sums(|s| s.sessions))?;
    counter(e, "sessions_failed", "Sessions that could not be opened", sums(|s| s.failed))?;
    counter(e, "handshakes", "Completed TLS handshakes", sums(|s| s.handshakes))?;
    counter(e, "sent_bytes", "Plaintext bytes sent to peers", sums(|s| s.bytes_out))?;
    counter(e, "received_bytes", "Plaintext bytes received from peers", sums(|s| s.bytes_in))?;
    gauge(e, "sessions_live", "Open sessions", sums(|s| s.live))?;
    let help = "Authenticated connections without a session";
    gauge(e, "idle_connections", help, sums(|s| s.idle))?;
    let times = |value: fn(&RelayLatency) -> wiretight_proxy::Latency| {
        let labels = |l: &RelayLatency| {
            vec![("side", l.side.word().to_owned()), ("service", l.service.to_string())]
        };
        measured.relay.iter().map(move |l| (labels(l), value(l)))
    };
    let help = "Time of completed TLS handshakes with peers";
    histogram(e, "handshake_duration_seconds", help, times(|l| l.handshake))?;
    let help = "Time to connect: from a dial to the peer's relay, from a service to its backend";
    histogram(e, "connect_duration_seconds", help, times(|l| l.connect))?;
    let help = "Time that this side adds before the first byte: from a program's connection, or a \
                peer's request, until the session is open";
    histogram(e, "session_open_duration_seconds", help, times(|l| l.open))?;
    let refused = |side: Side, service: &Name, reason: Reason| {
        vec![
            ("side", side.word().to_owned()),
            ("service", service.to_string()),
            ("reason", reason.to_string()),
        ]
    };
    // From zero, so that the first certificate that is not in the log is an increase.
    let sums = status.relay.sums.iter();
    let zero = sums.map(|s| (refused(s.side, &s.service, Reason::NotLogged), 0));
    let counted = status.relay.refused.iter();
    let counted = counted.map(|r| (refused(r.side, &r.service, r.reason), r.count));
    let all: BTreeMap<Labels, u64> = zero.chain(counted).collect();
    counter(e, "refused", "Refused connections and sessions, by reason", all)?;
    let errors = one(status.relay.accept_errors + status.edge.accept_errors);
    counter(e, "accept_errors", "Failed calls of accept, which are repeated", errors)
}

/// The process, its identities and its contact with the authority.
fn node(e: &mut DescriptorEncoder<'_>, status: &Status, measured: &Measured) -> fmt::Result {
    let labels = vec![
        ("node", status.process.node.to_string()),
        ("trust_domain", status.process.trust_domain.to_string()),
    ];
    gauge(e, "node_info", "The name of this node", [(labels, 1u64)])?;
    let version = vec![("version", status.process.version.clone())];
    gauge(e, "build_info", "The version of the running process", [(version, 1u64)])?;
    let state = vec![("state", status.sandbox.word().to_owned())];
    gauge(e, "sandbox_info", "How far Landlock is enforced", [(state, 1u64)])?;
    gauge(e, "ready", "1 if identities and trust bundle are in force", flag(status.ready))?;

    let id = |id: &SpiffeId| vec![("id", id.to_string())];
    let start = measured.not_before.iter().map(|(i, at)| (id(i), *at));
    let help = "Since when the identity is valid, in Unix time";
    gauge(e, "svid_not_before_timestamp_seconds", help, start)?;
    let expiry = status.identities.iter().map(|i| (id(&i.id), i.not_after));
    let help = "When the identity expires, in Unix time";
    gauge(e, "svid_not_after_timestamp_seconds", help, expiry)?;
    let roots = measured.roots.iter().map(|(root, at)| (vec![("root", root.clone())], *at));
    let help = "When the root of the trust bundle expires, in Unix time";
    gauge(e, "root_not_after_timestamp_seconds", help, roots)?;

    let link = Some(&status.authority_link).filter(|link| !link.alone);
    let connected = link.map(|link| (Labels::new(), u64::from(link.connected)));
    gauge(e, "authority_connected", "1 if connected to the authority", connected)?;
    let contact = link.and_then(|link| Some((Labels::new(), link.last_contact?)));
    let help = "When the last message of the authority arrived, in Unix time";
    gauge(e, "authority_last_contact_timestamp_seconds", help, contact)?;
    let help = "The version of the mesh's state that this node uses";
    gauge(e, "state_version", help, link.map(|link| (Labels::new(), link.version)))?;
    let help = "1 if connections are refused because max_staleness has passed";
    gauge(e, "out_of_contact", help, flag(status.transparency.without_news))?;

    let disk =
        |value: fn(&Disk) -> u64| measured.disk.iter().map(move |d| (Labels::new(), value(d)));
    let help = "Free space in the file system of the state directory";
    gauge(e, "state_dir_available_bytes", help, disk(|d| d.available))?;
    let help = "Size of the file system of the state directory";
    gauge(e, "state_dir_size_bytes", help, disk(|d| d.size))
}

/// The CA and the nodes, on the authority's node. One series for each node of the mesh.
fn mesh(e: &mut DescriptorEncoder<'_>, of: &CaStatus, nodes: &[NodeInfo]) -> fmt::Result {
    let help = "Since when the authority's intermediate is valid, in Unix time";
    gauge(e, "intermediate_not_before_timestamp_seconds", help, one(of.intermediate.issued_at))?;
    let help = "When the authority's intermediate expires, in Unix time";
    gauge(e, "intermediate_not_after_timestamp_seconds", help, one(of.intermediate.not_after))?;
    let help = "The newest version of the mesh's state";
    gauge(e, "authority_state_version", help, one(of.version))?;
    let help = "Connected nodes that do not use the newest state yet";
    gauge(e, "mesh_nodes_behind", help, one(of.behind.len()))?;
    let node = |n: &NodeInfo| vec![("node", n.name.to_string())];
    let connected = nodes.iter().map(|n| (node(n), u64::from(n.connected)));
    gauge(e, "mesh_node_connected", "1 if the node is connected to the authority", connected)?;
    let seen = nodes.iter().filter_map(|n| Some((node(n), n.last_seen?)));
    let help = "When the last message of the node arrived, in Unix time";
    gauge(e, "mesh_node_last_seen_timestamp_seconds", help, seen)?;
    let refused = nodes.iter().map(|n| (node(n), u64::from(n.refused.is_some())));
    let help = "1 while the authority rejects a service instance of the node";
    gauge(e, "mesh_node_refused", help, refused)?;
    let checked = nodes.iter().filter(|n| n.release.verdict != ReleaseVerdict::Unchecked);
    let proved = checked.map(|n| (node(n), u64::from(n.release.verdict.proved().is_some())));
    let help = "1 if the node says that it runs a release that the authority's policy accepts";
    gauge(e, "mesh_node_release_proved", help, proved)?;
    let info = nodes.iter().filter_map(|n| {
        let version = n.release.verdict.proved()?.version.to_string();
        Some((vec![("node", n.name.to_string()), ("version", version)], 1u64))
    });
    gauge(e, "mesh_node_release_info", "The proved release that the node says it runs", info)?;
    let left = nodes.iter().filter_map(|n| Some((node(n), n.release.refused_in?)));
    let help = "Time until the node gets no identities, because its release is not proved";
    gauge(e, "mesh_node_release_grace_left_seconds", help, left)
}

fn exceptions(e: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
    let labels = |of: &crate::control::report::Exception| {
        vec![("kind", of.kind.word().to_owned()), ("what", of.what.clone())]
    };
    // A set, because two settings may be written the same way.
    let all: BTreeSet<Labels> = status.exceptions.iter().map(labels).collect();
    let help = "What the configuration lets through unencrypted";
    gauge(e, "exception_info", help, all.into_iter().map(|labels| (labels, 1u64)))?;
    let until: BTreeMap<Labels, u64> = status
        .exceptions
        .iter()
        .filter_map(|of| Some((labels(of), of.explanation.as_ref()?.until)))
        .collect();
    let help = "When the [[exception]] ends, in Unix time";
    gauge(e, "exception_until_timestamp_seconds", help, until)
}

fn edge(e: &mut DescriptorEncoder<'_>, status: &Status, measured: &Measured) -> fmt::Result {
    let sites =
        || status.edge.sites.iter().map(|s| (s.names.first().cloned().unwrap_or_default(), s));
    let requests = sites().flat_map(|(site, s)| {
        s.requests.iter().map(move |r| {
            let labels = vec![
                ("site", site.clone()),
                ("http", r.http.word().to_owned()),
                ("status", format!("{}xx", r.class)),
            ];
            (labels, r.count)
        })
    });
    counter(e, "edge_requests", "Requests answered", requests)?;
    let site = |site: &str| vec![("site", site.to_owned())];
    let bytes = |value: fn(&SiteStatus) -> u64| {
        sites().map(move |(site, s)| (vec![("site", site)], value(s)))
    };
    counter(e, "edge_sent_bytes", "Response body bytes to clients", bytes(|s| s.bytes_out))?;
    counter(e, "edge_received_bytes", "Request body bytes from clients", bytes(|s| s.bytes_in))?;
    let handshakes = status
        .edge
        .handshakes
        .iter()
        .map(|h| (vec![("protocol", h.protocol.clone()), ("group", h.group.clone())], h.count));
    counter(e, "edge_handshakes", "TLS handshakes with clients", handshakes)?;
    let times = measured
        .handshakes
        .iter()
        .map(|h| (vec![("protocol", h.protocol.clone()), ("group", h.group.clone())], h.latency));
    let help = "Time of completed TLS handshakes with clients";
    histogram(e, "edge_handshake_duration_seconds", help, times)?;
    let times = measured.sites.iter().map(|s| (site(&s.site), s.latency));
    let help = "Time of requests, from the head to the end of the response; without upgraded \
                connections (WebSocket)";
    histogram(e, "edge_request_duration_seconds", help, times)?;
    let help = "Backends of the site that fail health checks";
    let down = sites().map(|(site, s)| (vec![("site", site)], s.down.len()));
    gauge(e, "edge_backends_down", help, down)?;
    let refused = status.edge.refused.iter();
    let refused = refused.map(|r| (vec![("reason", r.reason.to_string())], r.count));
    counter(e, "edge_refused", "Refused connections and requests, by reason", refused)?;
    let open = one(status.edge.connections);
    gauge(e, "edge_connections", "Open connections of clients", open)?;
    let start = sites().filter_map(|(site, s)| Some((vec![("site", site)], s.not_before?)));
    let help = "Since when the site's certificate is valid, in Unix time";
    gauge(e, "edge_certificate_not_before_timestamp_seconds", help, start)?;
    let expiry = sites().filter_map(|(site, s)| Some((vec![("site", site)], s.not_after?)));
    let help = "When the site's certificate expires, in Unix time";
    gauge(e, "edge_certificate_not_after_timestamp_seconds", help, expiry)?;
    let failed = status.site_errors.keys().map(|name| (site(name), 1u64));
    let help = "1 while the certificate of the site is not renewed, or its files are not in use";
    gauge(e, "edge_certificate_failed", help, failed)
}

fn log(e: &mut DescriptorEncoder<'_>, of: &LogStatus) -> fmt::Result {
    gauge(e, "log_size", "Entries in the authority's log", one(of.size))?;
    let witnessed = of.witnessed.map_or(0, |(size, _)| size);
    gauge(e, "log_witnessed_size", "Entries cosigned by the quorum", one(witnessed))?;
    let at = one(of.witnessed.map_or(0, |(_, at)| at));
    let help = "When the quorum last cosigned, in Unix time; 0: never";
    gauge(e, "log_witnessed_timestamp_seconds", help, at)?;
    let help = "When the files of the log were last compared with what was signed, in Unix time";
    let verified = of.verified.map(|(_, at)| (Labels::new(), at));
    gauge(e, "log_verified_timestamp_seconds", help, verified)?;
    let waiting = u64::from(of.waiting_since.is_some() || of.problem.is_some());
    gauge(e, "log_blocked", "1 while no certificates can be issued", one(waiting))?;
    let damaged = one(of.damaged.len());
    gauge(e, "log_damaged", "Missing or damaged files of the log", damaged)?;
    let witness = |name: &str| vec![("witness", name.to_owned())];
    let up = of.witnesses.iter().map(|w| (witness(&w.name), u64::from(w.problem.is_none())));
    gauge(e, "log_witness_up", "1 if the witness's last response was valid", up)?;
    let at = of.witnesses.iter().filter_map(|w| Some((witness(&w.name), w.cosigned_at?)));
    let help = "When the witness last cosigned, in Unix time";
    gauge(e, "log_witness_cosigned_timestamp_seconds", help, at)
}

fn claims(e: &mut DescriptorEncoder<'_>, of: &ClaimsStatus) -> fmt::Result {
    let help = "When the newest logged hour of the mesh's traffic ended, in Unix time";
    let until = of.logged_until.map(|at| (Labels::new(), at));
    gauge(e, "claims_logged_until_timestamp_seconds", help, until)?;
    let help = "Hours and days of the mesh's traffic that were logged";
    counter(e, "claims_logged", help, one(of.logged))?;
    let help = "Hours that were not logged, because the authority did not run or its clock was set";
    counter(e, "claims_missed", help, one(of.missed))?;
    let help = "Hours and days that the log has not accepted yet";
    gauge(e, "claims_waiting", help, one(of.waiting))?;
    gauge(e, "reports_held", "Reports of nodes that are known", one(of.reports))?;
    let help = "Reports of nodes that were rejected";
    counter(e, "reports_rejected", help, one(of.reports_rejected))
}

/// The number of series is that of the flows, which the kernel limits; each is kept for a day.
fn intercept(
    e: &mut DescriptorEncoder<'_>,
    of: &InterceptStatus,
    configured: Option<Mode>,
) -> fmt::Result {
    let taken = one(of.counts.redirected.packets);
    counter(e, "intercept_connections", "Connections redirected to the relay", taken)?;
    let help = "Times that the rules were restored after another program had changed them";
    counter(e, "intercept_restored", help, one(of.mended))?;
    gauge(e, "intercept_mode", "1 for the mode in force", modes(of.mode))?;
    let help = "1 for the mode in the configuration";
    gauge(e, "intercept_configured_mode", help, modes(configured))?;
    let help = "1 if the interception rules are in force";
    gauge(e, "intercept_rules_in_force", help, flag(of.mode.is_some()))?;
    gauge(e, "intercept_trial", "1 during a trial of a mode", flag(of.trial.is_some()))?;
    let help = "1 if the process that maintains the interception rules is running";
    gauge(e, "intercept_keeper_alive", help, flag(of.keeper_alive))?;
    let help = "1 if a guard table drops plaintext while the rules are missing";
    gauge(e, "intercept_guarded", help, flag(of.guarded))?;
    let help = "1 if rules are in force and strict mode would block nothing that was seen";
    gauge(e, "intercept_strict_ready", help, flag(of.strict.ready))?;
    let help = "Plaintext flows of the last day that strict mode would drop";
    gauge(e, "intercept_strict_would_stop", help, one(of.strict.would_stop.len()))?;
    let help = "Connections that the relay would get in strict mode and that would fail there";
    gauge(e, "intercept_strict_would_fail", help, one(of.strict.would_fail.len()))?;
    let ways = |[inward, outward]: [u64; 2]| {
        let way = |way: &str| vec![("direction", way.to_owned())];
        [(way("in"), inward), (way("out"), outward)]
    };
    let counts = &of.counts;
    let passed = ways([counts.seen_in.packets, counts.seen_out.packets]);
    let help = "Plaintext packets from and to machines of the mesh that passed";
    counter(e, "intercept_passed_packets", help, passed)?;
    let dropped = ways([counts.dropped_in.packets, counts.dropped_out.packets]);
    let help = "Packets from and to machines of the mesh that were dropped";
    counter(e, "intercept_dropped_packets", help, dropped)?;
    let flows = |value: fn(&Flow) -> u64| {
        let labels = |f: &Flow| {
            let programs: Vec<String> = f.programs.iter().map(ToString::to_string).collect();
            let direction = if f.direction == Direction::Out { "out" } else { "in" };
            vec![
                ("peer", f.peer.to_string()),
                ("protocol", f.protocol.clone()),
                ("direction", direction.to_owned()),
                ("port", f.port.to_string()),
                ("program", programs.join(", ")),
                ("verdict", if f.dropped { "dropped" } else { "passed" }.to_owned()),
            ]
        };
        of.counts.flows.iter().map(move |f| (labels(f), value(f)))
    };
    let help = "Plaintext packets to and from machines of the mesh";
    counter(e, "plaintext_packets", help, flows(|f| f.packets))?;
    let help = "Plaintext bytes to and from machines of the mesh, including IP headers";
    counter(e, "plaintext_bytes", help, flows(|f| f.bytes))
}

/// At most one series for each direction, level and evidence.
fn watch(e: &mut DescriptorEncoder<'_>, of: &WatchStatus, cost: Option<Cost>) -> fmt::Result {
    let mut sums: BTreeMap<(String, String, String), Count> = BTreeMap::new();
    for share in &of.settled.shares {
        let way = match share.kind.way {
            Way::In => "in",
            Way::Out => "out",
            Way::Forwarded => "forwarded",
            Way::Loopback => "loopback",
            Way::Relay => "relay",
        };
        let labels = (way.into(), share.kind.level.to_string(), share.kind.grade.to_string());
        sums.entry(labels).or_default().add(share.count);
    }
    let values = |value: fn(&Count) -> u64| {
        let labels = |(way, level, grade): &(String, String, String)| {
            vec![("way", way.clone()), ("level", level.clone()), ("grade", grade.clone())]
        };
        sums.iter().map(move |(of, count)| (labels(of), value(count)))
    };
    let help = "Connections of this machine, by level of encryption";
    counter(e, "flow_connections", help, values(|count| count.connections))?;
    let help = "Bytes of connections of this machine, including IP headers, by level of encryption";
    counter(e, "flow_bytes", help, values(|count| count.bytes))?;
    gauge(e, "flow_open", "Open connections", one(of.open))?;
    let gaps = &of.settled.gaps;
    let help = "Bytes that crossed the network interfaces, without headers of the link layer";
    counter(e, "flow_interface_bytes", help, one(gaps.interface_bytes))?;
    // Of everything that is known now: what is settled lacks the connections that are open.
    let help = "Of these, the bytes since the start that belong to no known connection";
    gauge(e, "flow_missed_bytes", help, one(of.gaps.missed_bytes))?;
    let help = "Times that the kernel dropped notifications of connections";
    counter(e, "flow_resyncs", help, one(gaps.resyncs))?;
    let help = "First packets of connections that the kernel could not deliver";
    counter(e, "flow_lost_packets", help, one(gaps.lost_packets))?;
    let help = "1 if the traffic of this machine is being watched without a known problem";
    let good = of.since.is_some() && of.problems.is_empty();
    gauge(e, "flow_watching", help, flag(good))?;
    let help = "Totals of an hour, up to 8, that the authority does not have yet";
    gauge(e, "flow_unsent_totals", help, one(of.unsent_hours))?;
    let cpu = cost.map(|cost| (Labels::new(), cost.cpu_micros as f64 / 1e6));
    let help = "Processor time used by the process that watches";
    counter(e, "watch_cpu_seconds", help, cpu)?;
    let memory = cost.map(|cost| (Labels::new(), cost.resident_bytes));
    let help = "Resident memory of the process that watches";
    gauge(e, "watch_resident_memory_bytes", help, memory)
}
