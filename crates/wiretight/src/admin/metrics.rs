//! Prometheus metrics, computed from the node's counters at each scrape.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use wiretight_proxy::edge::SiteStatus;
use wiretight_proxy::intercept::listing::Flow;
use wiretight_proxy::intercept::rules::{Direction, Mode};
use wiretight_scan::passive::totals::{Count, Way};

use super::api::Status;
use crate::authority::ClaimsStatus;
use crate::intercept::InterceptStatus;
use crate::log::sequencer::LogStatus;
use crate::watch::host::WatchStatus;

/// All metrics, in the OpenMetrics text format.
pub(crate) fn render(status: Status) -> String {
    let mut registry = Registry::with_prefix("wiretight");
    registry.register_collector(Box::new(Snapshot(status)));
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, &registry) {
        Ok(()) => out,
        Err(fmt::Error) => String::new(), // writing to a String does not fail
    }
}

#[derive(Debug)]
struct Snapshot(Status);

type Labels = Vec<(&'static str, String)>;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot(status) = self;
        let sums = |value: fn(&wiretight_proxy::relay::Sums) -> u64| -> Vec<(Labels, u64)> {
            let labels = |s: &wiretight_proxy::relay::Sums| {
                vec![("side", s.side.word().to_owned()), ("service", s.service.to_string())]
            };
            status.relay.sums.iter().map(|s| (labels(s), value(s))).collect()
        };
        let e = &mut encoder;
        counter(e, "sessions", "Sessions started", sums(|s| s.sessions))?;
        counter(e, "sessions_failed", "Sessions that could not be opened", sums(|s| s.failed))?;
        counter(e, "handshakes", "Completed TLS handshakes", sums(|s| s.handshakes))?;
        counter(e, "sent_bytes", "Plaintext bytes sent to peers", sums(|s| s.bytes_out))?;
        counter(e, "received_bytes", "Plaintext bytes received from peers", sums(|s| s.bytes_in))?;
        gauge(e, "sessions_live", "Open sessions", sums(|s| s.live))?;
        gauge(
            e,
            "idle_connections",
            "Authenticated connections without a session",
            sums(|s| s.idle),
        )?;
        let refused = status.relay.refused.iter().map(|r| {
            let labels = vec![
                ("side", r.side.word().to_owned()),
                ("service", r.service.to_string()),
                ("reason", r.reason.to_string()),
            ];
            (labels, r.count)
        });
        counter(e, "refused", "Refused connections and sessions, by reason", refused.collect())?;
        edge(e, status)?;
        if let Some(of) = &status.intercept {
            intercept(e, of)?;
        }
        if let Some(of) = &status.watch {
            watch(e, of)?;
        }
        let errors = vec![(Vec::new(), status.relay.accept_errors + status.edge.accept_errors)];
        counter(e, "accept_errors", "Failed calls of accept, which are repeated", errors)?;
        let expiry =
            status.identities.iter().map(|i| (vec![("id", i.id.to_string())], i.not_after));
        gauge(
            e,
            "svid_not_after_seconds",
            "When the identity expires, in Unix time",
            expiry.collect(),
        )?;
        let flag = |on: bool| vec![(Vec::new(), u64::from(on))];
        gauge(e, "ready", "1 if identities and trust bundle are in force", flag(status.ready))?;
        if !status.authority_link.alone {
            let connected = status.authority_link.connected;
            gauge(e, "authority_connected", "1 if connected to the authority", flag(connected))?;
        }
        if let Some(of) = &status.log {
            log(e, of)?;
        }
        if let Some(of) = &status.publish {
            let help = "When the public proof page was last written, in Unix time";
            let at = vec![(Vec::new(), of.published_at.unwrap_or(0))];
            gauge(e, "publish_seconds", help, at)?;
            let help = "1 while the public proof page cannot be brought up to date";
            gauge(e, "publish_failed", help, flag(of.problem.is_some()))?;
        }
        if let Some(of) = &status.claims {
            claims(e, of)?;
        }
        let without = flag(status.transparency.without_news);
        gauge(
            e,
            "without_news",
            "1 if connections are refused because max_staleness has passed",
            without,
        )?;
        let version = vec![(vec![("version", status.process.version.clone())], 1)];
        gauge(e, "build_info", "The version of the running process", version)
    }
}

fn edge(e: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
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
    counter(e, "edge_requests", "Requests answered", requests.collect())?;
    let bytes = |value: fn(&SiteStatus) -> u64| {
        sites().map(|(site, s)| (vec![("site", site)], value(s))).collect()
    };
    counter(e, "edge_sent_bytes", "Response body bytes to clients", bytes(|s| s.bytes_out))?;
    counter(e, "edge_received_bytes", "Request body bytes from clients", bytes(|s| s.bytes_in))?;
    let handshakes = status
        .edge
        .handshakes
        .iter()
        .map(|h| (vec![("protocol", h.protocol.clone()), ("group", h.group.clone())], h.count));
    counter(e, "edge_handshakes", "TLS handshakes with clients", handshakes.collect())?;
    let refused = status.edge.refused.iter();
    let refused = refused.map(|r| (vec![("reason", r.reason.to_string())], r.count));
    counter(e, "edge_refused", "Refused connections and requests, by reason", refused.collect())?;
    let open = vec![(Vec::new(), status.edge.connections)];
    gauge(e, "edge_connections", "Open connections of clients", open)?;
    let expiry = sites().filter_map(|(site, s)| Some((vec![("site", site)], s.not_after?)));
    let help = "When the site's certificate expires, in Unix time";
    gauge(e, "edge_certificate_not_after_seconds", help, expiry.collect())
}

fn log(e: &mut DescriptorEncoder<'_>, of: &LogStatus) -> fmt::Result {
    let one = |value: u64| vec![(Vec::new(), value)];
    gauge(e, "log_size", "Entries in the authority's log", one(of.size))?;
    let witnessed = of.witnessed.map_or(0, |(size, _)| size);
    gauge(e, "log_witnessed_size", "Entries cosigned by the quorum", one(witnessed))?;
    let at = of.witnessed.map_or(0, |(_, at)| at);
    gauge(e, "log_witnessed_seconds", "When the quorum last cosigned, in Unix time", one(at))?;
    let waiting = u64::from(of.waiting_since.is_some() || of.problem.is_some());
    gauge(e, "log_blocked", "1 while no certificates can be issued", one(waiting))?;
    let damaged = one(of.damaged.len() as u64);
    gauge(e, "log_damaged", "Missing or damaged files of the log", damaged)?;
    let witnesses = of
        .witnesses
        .iter()
        .map(|w| (vec![("witness", w.name.clone())], u64::from(w.problem.is_none())));
    gauge(e, "log_witness_up", "1 if the witness's last response was valid", witnesses.collect())
}

fn claims(e: &mut DescriptorEncoder<'_>, of: &ClaimsStatus) -> fmt::Result {
    let one = |value: u64| vec![(Vec::new(), value)];
    let help = "When the newest logged hour of the mesh's traffic ended, in Unix time";
    gauge(e, "claims_logged_until_seconds", help, one(of.logged_until.unwrap_or(0)))?;
    let help = "Hours and days of the mesh's traffic that were logged";
    counter(e, "claims_logged", help, one(of.logged))?;
    let help = "Hours that were not logged, because the authority did not run or its clock was set";
    counter(e, "claims_missed", help, one(of.missed))?;
    let help = "Hours and days that the log has not accepted yet";
    gauge(e, "claims_waiting", help, one(of.waiting as u64))?;
    gauge(e, "reports_held", "Reports of nodes that are known", one(of.reports as u64))?;
    let help = "Reports of nodes that were rejected";
    counter(e, "reports_rejected", help, one(of.reports_rejected))
}

/// The number of series is that of the flows, which the kernel limits; each is kept for a day.
fn intercept(e: &mut DescriptorEncoder<'_>, of: &InterceptStatus) -> fmt::Result {
    let one = |value: u64| vec![(Vec::new(), value)];
    let taken = one(of.counts.redirected.packets);
    counter(e, "intercept_connections", "Connections redirected to the relay", taken)?;
    let help = "Times that the rules were restored after another program had changed them";
    counter(e, "intercept_mended", help, one(of.mended))?;
    let modes = [Mode::Observe, Mode::Permissive, Mode::Strict];
    let modes = modes.map(|m| (vec![("mode", m.word().to_owned())], u64::from(of.mode == Some(m))));
    gauge(e, "intercept_mode", "1 for the mode in force", modes.into())?;
    let flag = |on: bool| one(u64::from(on));
    let help = "1 if the interception rules are in force";
    gauge(e, "intercept_rules_in_force", help, flag(of.mode.is_some()))?;
    gauge(e, "intercept_trial", "1 during a trial of a mode", flag(of.trial.is_some()))?;
    let help = "1 if the process that maintains the interception rules is running";
    gauge(e, "intercept_keeper_alive", help, flag(of.keeper_alive))?;
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
        of.counts.flows.iter().map(|f| (labels(f), value(f))).collect()
    };
    let help = "Plaintext packets to and from machines of the mesh";
    counter(e, "plaintext_packets", help, flows(|f| f.packets))?;
    let help = "Plaintext bytes to and from machines of the mesh, including IP headers";
    counter(e, "plaintext_bytes", help, flows(|f| f.bytes))
}

/// At most one series for each direction, level and evidence.
fn watch(e: &mut DescriptorEncoder<'_>, of: &WatchStatus) -> fmt::Result {
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
        sums.iter().map(|(of, count)| (labels(of), value(count))).collect()
    };
    let help = "Connections of this machine, by level of encryption";
    counter(e, "flow_connections", help, values(|count| count.connections))?;
    let help = "Bytes of connections of this machine, including IP headers, by level of encryption";
    counter(e, "flow_bytes", help, values(|count| count.bytes))?;
    let one = |value: u64| vec![(Vec::new(), value)];
    gauge(e, "flow_open", "Open connections", one(of.open))?;
    let gaps = &of.settled.gaps;
    let help = "Bytes that crossed the network interfaces, without headers of the link layer";
    counter(e, "flow_interface_bytes", help, one(gaps.interface_bytes))?;
    let help = "Of these, the bytes since the start that belong to no counted connection";
    gauge(e, "flow_missed_bytes", help, one(gaps.missed_bytes))?;
    let help = "Times that the kernel dropped notifications of connections";
    counter(e, "flow_resyncs", help, one(gaps.resyncs))?;
    let help = "First packets of connections that the kernel could not deliver";
    counter(e, "flow_lost_packets", help, one(gaps.lost_packets))?;
    let help = "1 if the traffic of this machine is being watched without a known problem";
    let good = of.since.is_some() && of.problems.is_empty();
    gauge(e, "flow_watching", help, one(good.into()))
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: Vec<(Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
