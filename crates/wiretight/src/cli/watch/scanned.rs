//! `wiretight watch --scan`: asks each TLS server that was seen, once and slowly, for what TLS 1.3 hides.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use wiretight_scan::active::{Options, Paces, scan_address};
use wiretight_scan::certificate::{Roots, Stores};
use wiretight_scan::passive::blockers::is_private;
use wiretight_scan::passive::summary::{Row, Scanned};
use wiretight_scan::passive::{StartTls, Transport};
use wiretight_scan::report::{self, FlowReport};
use wiretight_scan::{Host, Reached, Start, Target};

/// Servers that are scanned.
const MOST: usize = 200;
/// Names that are asked for at one server.
const NAMES: usize = 4;
/// New connections a second, over all servers.
const RATE: f64 = 10.0;
const TIME: Duration = Duration::from_secs(60);

/// An address, the protocol before TLS, and the name to ask for.
type Wanted = BTreeMap<(SocketAddr, Option<String>), Start>;

/// Scans the servers of all rows, one after the other, and adds what was found to the rows.
pub(super) fn join(report: &mut FlowReport, public: bool) -> anyhow::Result<()> {
    let wanted = wanted(&report.rows, public);
    if wanted.is_empty() {
        return Ok(());
    }
    let stores = Stores { roots: Some(Roots::system()?), mesh: None };
    let paces = Arc::new(Paces::with_rate(RATE));
    let options = Options {
        connections: 1,
        max_time: TIME,
        paces,
        stores: Arc::new(stores),
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let left_out = wanted.len().saturating_sub(MOST);
    let mut found: BTreeMap<SocketAddr, Vec<Scanned>> = BTreeMap::new();
    let interrupted = runtime.block_on(async {
        let stopped = tokio::signal::ctrl_c();
        tokio::pin!(stopped);
        for ((address, name), start) in wanted.into_iter().take(MOST) {
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[Kscanning {address} ...");
                let _ = std::io::stderr().flush();
            }
            let host = name.clone().map_or(Host::Address(address.ip(), None), Host::Name);
            let target = Target { host, port: address.port(), start };
            let scanned = tokio::select! {
                scanned = scan_address(&target, address, &options) => scanned,
                _ = &mut stopped => return true,
            };
            // A server that is gone by now adds nothing.
            if scanned.reached != Reached::Tls {
                continue;
            }
            let certificate = |rule: &str| rule.starts_with("certificate");
            let judged = &scanned.judgement;
            found.entry(address).or_default().push(Scanned {
                server_name: name,
                at: scanned.started,
                level: judged.level,
                summary: report::summary(&scanned),
                reasons: judged.reasons.iter().filter(|r| certificate(&r.rule)).cloned().collect(),
            });
        }
        false
    });
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    if interrupted {
        eprintln!("wiretight: the scan was interrupted; rows show what was found so far");
    }
    if left_out > 0 {
        eprintln!("wiretight: {left_out} servers were not scanned: {MOST} is the limit");
    }
    let rows = report.rows.iter_mut().chain(report.blockers.iter_mut().map(|b| &mut b.row));
    for row in rows.filter(|row| has_tls(row)) {
        row.scanned = found.get(&row.key.server).cloned().unwrap_or_default();
    }
    Ok(())
}

fn has_tls(row: &Row) -> bool {
    let tls = |version: &str| version.starts_with("TLS") || version.starts_with("SSL ");
    row.key.transport == Transport::Tcp
        && row.seen.iter().filter_map(|seen| seen.sealed.as_ref()).any(|s| tls(&s.version))
}

/// The servers to scan, each once for each name that clients asked for.
fn wanted(rows: &[Row], public: bool) -> Wanted {
    let mut wanted = Wanted::new();
    for row in rows.iter().filter(|row| has_tls(row)) {
        let server = row.key.server;
        if !public && !is_private(server.ip()) {
            continue;
        }
        let mut names = 0;
        for seen in &row.seen {
            let Some(sealed) = &seen.sealed else { continue };
            let start = match seen.starttls {
                Some((start, StartTls::Used)) => start,
                _ => Start::Direct,
            };
            // The name is from a packet: only one that is a valid target is asked for.
            let name = sealed.server_name.as_deref().filter(|_| !sealed.ech);
            let name = name.and_then(|name| match format!("tls://{name}:1").parse::<Target>() {
                Ok(Target { host: Host::Name(parsed), .. })
                    if parsed.eq_ignore_ascii_case(name) =>
                {
                    Some(parsed)
                }
                _ => None,
            });
            let key = (server, name);
            if names < NAMES && !wanted.contains_key(&key) {
                wanted.insert(key, start);
                names += 1;
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    use wiretight_scan::judge::Level;
    use wiretight_scan::passive::flow::Record;
    use wiretight_scan::passive::summary::{By, Rows};
    use wiretight_scan::passive::{Grade, Sealed, Seen};

    fn rows(server: &str, version: &'static str, name: &str) -> Vec<Row> {
        let sealed = Sealed {
            version: version.into(),
            server_name: Some(name.to_owned()),
            ..Sealed::default()
        };
        let seen = Seen {
            protocol: "tls".into(),
            level: Level::Acceptable,
            grade: Grade::Seen,
            evidence: "ServerHello".into(),
            starttls: None,
            sealed: Some(Box::new(sealed)),
        };
        let record = Record {
            transport: Transport::Tcp,
            client: "10.0.0.7:40000".parse().unwrap(),
            server: server.parse().unwrap(),
            first: jiff::Timestamp::UNIX_EPOCH,
            last: jiff::Timestamp::UNIX_EPOCH,
            packets: [1, 1],
            bytes: [1, 1],
            whole: true,
            seen: Arc::new(seen),
        };
        let mut rows = Rows::new(By::Service, 10);
        rows.add(&record.into());
        rows.list()
    }

    #[test]
    fn only_private_servers_are_scanned_unless_public_ones_are_wanted() {
        let count =
            |server: &str, public| wanted(&rows(server, "TLS 1.3", "a.example"), public).len();
        assert_eq!((count("10.0.0.5:443", false), count("192.0.2.5:443", false)), (1, 0));
        assert_eq!(count("192.0.2.5:443", true), 1);
        assert!(wanted(&rows("10.0.0.5:22", "SSH 2.0", "a.example"), false).is_empty());
    }

    #[test]
    fn a_name_from_a_packet_is_asked_for_only_if_it_is_one() {
        let name = |text: &str| {
            let wanted = wanted(&rows("10.0.0.5:443", "TLS 1.2", text), false);
            wanted.into_keys().next().unwrap().1
        };
        assert_eq!(name("web.example").as_deref(), Some("web.example"));
        for wrong in ["192.0.2.1", "a b", "x/../y", "\u{1b}[2J", ""] {
            assert_eq!(name(wrong), None, "{wrong:?}");
        }
    }
}
