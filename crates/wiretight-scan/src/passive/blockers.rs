//! Why traffic is not `strong`, and what to change: the rules of the scanner, applied to what was seen of a flow.
//!
//! A scan asks what a server accepts; a flow shows only what was negotiated once. So the texts differ, but ids, standards
//! and advice are those of [`RULES`].

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Serialize;

use super::flow::Record;
use super::summary::{Key, Row};
use super::{Sealed, StartTls, Transport};
use crate::facts::{Answer, WEAK_SUITES};
use crate::judge::rules::{Finding, RULES, Rule, Test};
use crate::judge::{Level, Reason, marks, worst_first};
use crate::names::{Group, KeyExchange, Suite, Version};

/// Rules for what a scan does not see.
pub const MORE_RULES: &[Rule] = &[
    more(
        "flow-unknown",
        Level::Unknown,
        "It is not known whether this traffic is encrypted",
        "Find out which program it belongs to; if it is plaintext, put a relay that encrypts in front of it",
    ),
    more(
        "flow-ssh",
        Level::Acceptable,
        "SSH uses algorithms that are not the best",
        "Use OpenSSH 9.9 or newer at both ends, with its default algorithms (KexAlgorithms mlkem768x25519-sha256)",
    ),
    more(
        "flow-algorithms",
        Level::Acceptable,
        "Algorithms that are not the best were negotiated",
        "Allow only current algorithms in the configuration of the server, with a post-quantum key exchange",
    ),
];

const fn more(id: &'static str, level: Level, what: &'static str, change: &'static str) -> Rule {
    let test = Test::Check(|_| Finding::Fine);
    Rule { id, level, test, what, standard: "no standard: seen in a capture", change }
}

/// All rules that a [reason](reasons) may name.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    RULES.iter().chain(MORE_RULES)
}

/// A row that is not `strong`, and leaves the machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Blocker {
    #[serde(flatten)]
    pub row: Row,
    /// Whether both ends have private addresses, so that both are probably yours.
    pub own: bool,
}

/// Whether strict mode would have to do without it. That is not so for traffic on loopback, which does not leave the
/// machine, and ICMP: strict mode lets errors and neighbour discovery pass.
pub fn blocks(key: &Key) -> bool {
    key.level != Level::Strong && !key.server.ip().is_loopback() && key.transport != Transport::Icmp
}

/// The rows that strict mode would have to do without, the worst and largest first.
pub fn blockers(rows: Vec<Row>) -> Vec<Blocker> {
    let mut found: Vec<Blocker> = rows
        .into_iter()
        .filter(|row| blocks(&row.key))
        .map(|row| {
            let own =
                is_private(row.key.server.ip()) && row.clients.iter().copied().all(is_private);
            Blocker { row, own }
        })
        .collect();
    found.sort_by_key(|b| {
        (worst_first(b.row.key.level), u64::MAX - b.row.total(), b.row.key.clone())
    });
    found
}

/// Private, unique local, link-local, shared (RFC 6598), multicast and loopback addresses.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || matches!(v4.octets(), [100, 64..128, ..])
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
        }
    }
}

/// Why a flow's level is not better; empty for `strong`. The worst comes first.
pub fn reasons(record: &Record) -> Vec<Reason> {
    let mut reasons = match record.seen.level {
        Level::Strong => Vec::new(),
        Level::Plaintext => vec![plaintext(record)],
        Level::Unknown => vec![unknown(record)],
        Level::Weak | Level::Acceptable => encrypted(record),
    };
    reasons.sort_by_key(|reason| worst_first(reason.level));
    reasons
}

/// A reason with the level, standard and advice of a rule.
fn reason(id: &'static str, answer: Answer, what: String) -> Reason {
    let rule = rules().find(|rule| rule.id == id);
    debug_assert!(rule.is_some(), "{id} is not a rule");
    Reason {
        rule: id.into(),
        fact: rule.and_then(|rule| rule.test.fact()).unwrap_or(id).into(),
        answer,
        level: rule.map_or(Level::Unknown, |rule| rule.level),
        what,
        standard: rule.map_or("", |rule| rule.standard).into(),
        change: rule.map_or("", |rule| rule.change).into(),
    }
}

fn plaintext(record: &Record) -> Reason {
    let seen = &record.seen;
    let name = &seen.protocol;
    let (server, client) = (record.server.ip(), record.client.ip());
    if let Some((_, StartTls::Stripped)) = seen.starttls {
        let what = format!("{name} in plaintext: the STARTTLS offer is removed on the way");
        return reason("starttls-stripped", Answer::Yes, what);
    }
    let (why, change): (&str, Option<Cow<'static, str>>) = match seen.starttls.map(|(_, state)| state) {
        Some(StartTls::Unused) => (
            ": the server offers TLS, and the client does not use it",
            Some("Configure the client to require TLS (STARTTLS); then have the server refuse plaintext".into()),
        ),
        Some(StartTls::Refused) => (
            ": the client requested TLS, and the server refused",
            Some("Turn on TLS on the server: it lacks a certificate, or TLS is off".into()),
        ),
        _ if server.is_multicast() || is_broadcast(server) => (
            " to a multicast or broadcast address",
            Some("A relay cannot encrypt it: turn the protocol off if nothing needs it".into()),
        ),
        _ if &**name == "dns" => (
            "",
            Some("Use DNS over TLS to the resolver (systemd-resolved: DNSOverTLS=yes), or a resolver on this machine".into()),
        ),
        _ if is_private(server) && is_private(client) => {
            let port = record.server.port();
            (
                "",
                Some(format!(
                    "Encrypt it with Wiretight: offer port {port} as a [[service]] on {server}, and on {client} connect \
                     through a [[dial]], or set `protect = [\"{server}\"]` in [intercept]"
                ).into()),
            )
        }
        _ => ("", None),
    };
    let mut reason = reason("plaintext", Answer::Yes, format!("{name} in plaintext{why}"));
    if let Some(change) = change {
        reason.change = change;
    }
    reason
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

fn unknown(record: &Record) -> Reason {
    let seen = &record.seen;
    let why = match (record.whole, seen.evidence.is_empty()) {
        (false, true) => "the capture started in the middle of it",
        (true, true) => "nothing that shows it was captured",
        (_, false) => &seen.evidence,
    };
    let what = format!("It is not known whether this traffic is encrypted: {why}");
    let mut reason = reason("flow-unknown", Answer::Inconclusive, what);
    if !record.whole {
        reason.change = "Capture it from the start of its connections: restart the program, or wait for a new connection".into();
    }
    reason
}

fn encrypted(record: &Record) -> Vec<Reason> {
    let seen = &record.seen;
    let Some(sealed) = &seen.sealed else {
        let what = format!("{}: {}", seen.protocol, seen.evidence);
        return vec![Reason { level: seen.level, ..reason("flow-algorithms", Answer::Yes, what) }];
    };
    let mut found = tls(sealed, record);
    // A reason explains the level, and does not lower it.
    found.retain(|reason| reason.level >= seen.level);
    // What only the classifier knows.
    if !found.iter().any(|reason| reason.level <= seen.level) {
        let id = if sealed.version.starts_with("SSH") { "flow-ssh" } else { "flow-algorithms" };
        let what = match seen.evidence.is_empty() {
            true => format!("{} {}", seen.protocol, sealed.version),
            false => format!("{}: {}", seen.protocol, seen.evidence),
        };
        found.push(Reason { level: seen.level, ..reason(id, Answer::Yes, what) });
    }
    found
}

/// The rules of TLS that a handshake shows to be broken.
fn tls(sealed: &Sealed, record: &Record) -> Vec<Reason> {
    let mut found = Vec::new();
    let mut add = |id, what: String| found.push(reason(id, Answer::Yes, what));
    let version = Version::ALL.into_iter().find(|version| version.to_string() == sealed.version);
    match version {
        Some(Version::Tls1_3) | None => {}
        Some(Version::Tls1_2) => add("no-tls1_3", "TLS 1.2 was negotiated, not TLS 1.3".to_owned()),
        Some(old) => add(old.key(), format!("{old} was negotiated")),
    }
    match sealed.version.as_ref() {
        "DTLS 1.0" => add("tls1_1", "DTLS 1.0 was negotiated".to_owned()),
        "DTLS 1.2" => add("no-tls1_3", "DTLS 1.2 was negotiated, not DTLS 1.3".to_owned()),
        _ => {}
    }
    if let Some(suite) = sealed.suite.as_deref().and_then(Suite::from_name) {
        let weak = WEAK_SUITES.iter().filter(|(_, is)| is(suite));
        let of_fact = |fact: &str| RULES.iter().find(|rule| rule.test.fact() == Some(fact));
        let of_table = weak.filter_map(|(fact, _)| of_fact(fact)).map(|rule| rule.id);
        let small = suite.has_small_blocks().then_some("sweet32");
        let dhe = matches!(suite.key_exchange(), KeyExchange::Dhe | KeyExchange::DhePsk);
        let dhe = (dhe && !suite.is_anonymous()).then_some("dhe");
        for id in of_table.chain(small).chain(dhe) {
            add(id, format!("{} was negotiated", suite.name));
        }
    }
    let tls = version.is_some()
        || sealed.version.starts_with("DTLS")
        || sealed.version.starts_with("QUIC");
    if let Some(group) = sealed.group.as_deref().filter(|_| tls) {
        match marks::group(group) {
            Level::Weak => add("curves", format!("The group {group} was negotiated")),
            _ if Group::from_name(group).is_some_and(|group| !group.is_post_quantum()) => {
                add("no-post-quantum", format!("{group} was negotiated: not post-quantum"));
            }
            _ => {}
        }
    }
    if sealed.signature.as_deref().is_some_and(|name| marks::signature(name) == Level::Weak) {
        let name = sealed.signature.as_deref().unwrap_or_default();
        add("signature-hash", format!("The key exchange is signed with {name}"));
    }
    if sealed.early_data {
        add("early-data", "0-RTT data was sent, which can be replayed".to_owned());
    }
    if let Some(certificate) = &sealed.certificate {
        if certificate.not_after < record.last {
            let ended = certificate.not_after.strftime("%F");
            add("certificate-validity", format!("The certificate expired on {ended}"));
        }
        let signature = &certificate.signature;
        if !certificate.self_signed && marks::certificate_signature(signature) == Level::Weak {
            add("certificate-signature", format!("The certificate is signed with {signature}"));
        }
        if marks::certificate_key(&certificate.key) == Level::Weak {
            add("certificate-key", format!("The certificate's key is {}", certificate.key));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::summary::{By, Coverage, Filter, Flow, Rows, Share};
    use super::super::{Grade, Seen};
    use super::*;
    use crate::Start;

    fn record(server: &str, level: Level, sealed: Option<Sealed>) -> Record {
        Record {
            transport: Transport::Tcp,
            client: "10.0.0.7:40000".parse().unwrap(),
            server: server.parse().unwrap(),
            first: "2026-11-30T10:00:00Z".parse().unwrap(),
            last: "2026-11-30T10:00:10Z".parse().unwrap(),
            packets: [10, 12],
            bytes: [1000, 2000],
            whole: true,
            seen: std::sync::Arc::new(Seen {
                protocol: if sealed.is_some() { "tls".into() } else { "redis".into() },
                level,
                grade: Grade::Seen,
                evidence: "PING".into(),
                starttls: None,
                sealed: sealed.map(Box::new),
            }),
        }
    }

    fn sealed(version: &'static str, suite: &'static str, group: &'static str) -> Option<Sealed> {
        Some(Sealed {
            version: version.into(),
            suite: Some(suite.into()),
            group: Some(group.into()),
            ..Sealed::default()
        })
    }

    fn rules(record: &Record) -> Vec<String> {
        reasons(record).iter().map(|reason| reason.rule.to_string()).collect()
    }

    #[test]
    fn each_level_below_strong_has_a_reason_with_advice() {
        let clear = record("10.0.0.5:6379", Level::Plaintext, None);
        let found = reasons(&clear);
        assert_eq!(rules(&clear), ["plaintext"]);
        assert!(
            found[0].change.contains("[[dial]]") && found[0].change.contains("6379"),
            "{found:?}"
        );
        // Not both ends are ours: the scanner's advice.
        let public = record("192.0.2.5:6379", Level::Plaintext, None);
        assert!(reasons(&public)[0].change.starts_with("Turn on TLS"), "{:?}", reasons(&public));
        let mut stripped = clear.clone();
        std::sync::Arc::make_mut(&mut stripped.seen).starttls =
            Some((Start::Smtp, StartTls::Stripped));
        assert_eq!(rules(&stripped), ["starttls-stripped"]);

        let old = sealed("TLS 1.0", "TLS_RSA_WITH_3DES_EDE_CBC_SHA", "x25519");
        let old = record("10.0.0.5:443", Level::Weak, old);
        assert_eq!(rules(&old), ["tls1_0", "static-rsa", "sweet32", "cbc", "no-post-quantum"]);
        let usual = sealed("TLS 1.3", "TLS_AES_128_GCM_SHA256", "x25519");
        assert_eq!(rules(&record("10.0.0.5:443", Level::Acceptable, usual)), ["no-post-quantum"]);
        let ssh = sealed("SSH 2.0", "aes128-cbc hmac-md5", "diffie-hellman-group1-sha1");
        assert_eq!(rules(&record("10.0.0.5:22", Level::Weak, ssh)), ["flow-ssh"]);
        let mut unknown = record("10.0.0.5:99", Level::Unknown, None);
        unknown.whole = false;
        assert_eq!(reasons(&unknown)[0].answer, Answer::Inconclusive);
        // The control.
        let best = sealed("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768");
        assert!(reasons(&record("10.0.0.5:443", Level::Strong, best)).is_empty());
        for more in MORE_RULES {
            assert!(RULES.iter().all(|rule| rule.id != more.id), "{} is a rule already", more.id);
        }
    }

    #[test]
    fn rows_add_up_to_the_coverage_and_blockers_are_sorted() {
        let flows: Vec<Flow> = [
            record(
                "10.0.0.5:443",
                Level::Strong,
                sealed("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
            ),
            record(
                "10.0.0.5:443",
                Level::Acceptable,
                sealed("TLS 1.3", "TLS_AES_128_GCM_SHA256", "x25519"),
            ),
            record("10.0.0.5:6379", Level::Plaintext, None),
            record("10.0.0.5:6379", Level::Plaintext, None),
            record("10.0.0.5:99", Level::Unknown, None),
            record("127.0.0.1:6379", Level::Plaintext, None),
        ]
        .map(Flow::from)
        .to_vec();
        let mut coverage = Coverage::default();
        let mut rows = Rows::new(By::Service, 100);
        for flow in &flows {
            coverage.add(&flow.record);
            rows.add(flow);
        }
        coverage.miss("malformed", 2, 500);
        assert_eq!(coverage.share(Level::Plaintext), Share { flows: 3, bytes: 9000 });
        assert_eq!(coverage.share(Level::Unknown), Share { flows: 1, bytes: 3500 });
        assert_eq!(coverage.total(), Share { flows: 6, bytes: 18_500 });
        let listed = rows.list();
        for level in Level::ALL {
            let of = listed.iter().filter(|row| row.key.level == level);
            let sum: u64 = of.map(|row| row.flows).sum();
            assert_eq!(sum, coverage.share(level).flows, "{level}");
            let filter = Filter { levels: vec![level], ..Filter::default() };
            let of_filter = flows_of(&flows, &filter);
            assert_eq!(of_filter, sum, "{level}");
        }
        let found = blockers(listed);
        let levels: Vec<_> = found.iter().map(|b| b.row.key.level).collect();
        assert_eq!(levels, [Level::Plaintext, Level::Unknown, Level::Acceptable]);
        assert_eq!((found[0].row.flows, found[0].row.total(), found[0].own), (2, 6000, true));
    }

    fn flows_of(flows: &[Flow], filter: &Filter) -> u64 {
        flows.iter().filter(|flow| filter.matches(flow)).count() as u64
    }

    #[test]
    fn full_rows_say_what_they_left_out() {
        let mut rows = Rows::new(By::Flow, 3);
        for port in 0..5 {
            rows.add(&record(&format!("10.0.0.5:{port}"), Level::Plaintext, None).into());
        }
        assert_eq!((rows.list().len(), rows.left_out.flows, rows.left_out.bytes), (3, 2, 6000));
    }

    #[test]
    fn filters_select_by_network_port_program_and_text() {
        let mut flow: Flow = record("10.0.0.5:6379", Level::Plaintext, None).into();
        flow.programs.client = Some("curl (session-3.scope)".into());
        let with = |set: fn(&mut Filter)| {
            let mut filter = Filter::default();
            set(&mut filter);
            filter.matches(&flow)
        };
        assert!(with(|_| {}));
        assert!(with(|f| f.ports = vec![6379]) && !with(|f| f.ports = vec![80]));
        assert!(with(|f| f.programs = vec!["curl".into()]));
        assert!(!with(|f| f.programs = vec!["psql".into()]));
        assert!(with(|f| f.protocols = vec!["tcp".into()]));
        assert!(with(|f| f.text = "PinG".into()) && !with(|f| f.text = "pong".into()));
    }
}
