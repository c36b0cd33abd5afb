//! Compares the passive classifier with two network analysers on their own test captures.
//!
//! - nDPI: a result for each flow. No flow that it calls `ClearText` may be called encrypted here. Differences are
//!   allowed only if `docs/watch-agreement.md` lists them with a reason, and each listed one must exist.
//! - Zeek: the name and folder of a capture say what it holds. A flow has that protocol's name, or `unknown`.
//!
//! The captures are not part of the repository. They are read from `../shared/captures` beside it, or from the folder in
//! `WIRETIGHT_CAPTURES`. Where they are missing, the tests are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use wiretight_scan::judge::Level;
use wiretight_scan::passive::Transport;
use wiretight_scan::passive::file::Capture;
use wiretight_scan::passive::flow::{Limits, Record, Table};

fn captures() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = match std::env::var_os("WIRETIGHT_CAPTURES") {
        Some(folder) => folder.into(),
        None => root.join("../shared/captures"),
    };
    match folder.is_dir() {
        true => Some(folder),
        false => {
            println!("skipped: {} does not exist", folder.display());
            None
        }
    }
}

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/watch-agreement.md");
    fs::read_to_string(page).expect("the page")
}

/// The flows of a capture.
fn flows(path: &Path) -> Vec<Record> {
    let mut table = Table::new(Limits { flows: 100_000, undecided: 20_000, sample: 1 });
    let mut records = Vec::new();
    let mut capture = match Capture::new(BufReader::new(File::open(path).expect("a capture"))) {
        Ok(capture) => capture,
        Err(e) => panic!("{}: {e}", path.display()),
    };
    while let Some(frame) = capture.next_frame() {
        // Some captures are cut off on purpose.
        let Ok(frame) = frame else { break };
        table.frame(frame.link, frame.at, frame.bytes, frame.length);
        records.append(&mut table.ended());
    }
    records.append(&mut table.finish());
    records
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the captures") {
        let path = entry.expect("the captures").path();
        match path.is_dir() {
            true => found.append(&mut files(&path)),
            false => found.push(path),
        }
    }
    found.retain(|path| {
        path.extension().is_some_and(|e| ["pcap", "pcapng", "cap"].iter().any(|known| e == *known))
    });
    found.sort();
    found
}

fn is_encrypted(level: Level) -> bool {
    matches!(level, Level::Weak | Level::Acceptable | Level::Strong)
}

/// Both ends, in an order that does not depend on the direction.
type Ends = (String, SocketAddr, SocketAddr);

fn ends(record: &Record) -> Ends {
    let transport = match record.transport {
        Transport::Tcp => "TCP".to_owned(),
        Transport::Udp => "UDP".to_owned(),
        Transport::Sctp => "132".to_owned(),
        Transport::Icmp if record.client.is_ipv4() => "1".to_owned(),
        Transport::Icmp => "58".to_owned(),
        Transport::Ip(number) => number.to_string(),
    };
    let (mut client, mut server) = (record.client, record.server);
    if record.transport == Transport::Sctp {
        // nDPI does not read its ports.
        client.set_port(0);
        server.set_port(0);
    }
    ordered(transport, client, server)
}

fn ordered(transport: String, a: SocketAddr, b: SocketAddr) -> Ends {
    (transport, a.min(b), a.max(b))
}

/// A flow as nDPI judged it.
#[derive(Debug)]
struct Judged {
    ends: Ends,
    /// As in its line.
    flow: String,
    /// `TLS.Google`.
    protocol: String,
    clear: bool,
}

impl Judged {
    /// A line like `1 TCP 10.0.0.1:5 <-> 10.0.0.2:6 [proto: 91/TLS][...][Encrypted]...`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix('\t')?.split_whitespace();
        words.next()?.parse::<u32>().ok()?;
        let transport = match words.next()? {
            "ICMP" => "1",
            "IGMP" => "2",
            "ESP" => "50",
            "ICMPV6" => "58",
            "OSPF" => "89",
            "VRRP" => "112",
            "PGM" => "113",
            "SCTP" => "132",
            other => other,
        };
        let (from, arrow, to) = (words.next()?, words.next()?, words.next()?);
        assert!(matches!(arrow, "<->" | "->"), "{line}");
        let protocol = line.split_once("[proto: ")?.1.split(']').next()?;
        let protocol = protocol.rsplit('/').next()?.to_owned();
        Some(Self {
            ends: ordered(transport.to_owned(), end(from)?, end(to)?),
            flow: format!("{transport} {from} {arrow} {to}"),
            protocol,
            clear: match (line.contains("][ClearText]"), line.contains("][Encrypted]")) {
                (true, false) => true,
                (false, true) => false,
                _ => panic!("neither or both: {line}"),
            },
        })
    }
}

/// `10.0.0.1:80`, `[::1]:80`.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(address, port.parse().ok()?))
}

/// The rows of the table under a heading of the page: the cells, without marks.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let part = page
        .split_once(&format!("## {heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading:?}"))
        .1;
    let part = part.split("\n## ").next().unwrap_or_default();
    let rows = part.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn no_flow_that_ndpi_calls_clear_is_called_encrypted_and_each_difference_has_a_reason() {
    let Some(folder) = captures() else { return };
    let page = page();
    let listed: BTreeSet<(String, String)> = rows(&page, "Clear there, encrypted here")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let encrypted_there: BTreeSet<(String, String)> =
        rows(&page, "Encrypted there, plaintext here")
            .into_iter()
            .map(|row| (row[0].clone(), row[1].clone()))
            .collect();
    let named: BTreeSet<(String, String)> = rows(&page, "Other names")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();

    let mut matrix: BTreeMap<(String, String, Level), u32> = BTreeMap::new();
    let (mut compared, mut missing) = (0, 0);
    let (mut conflicts, mut found) = (Vec::new(), BTreeSet::new());
    let mut found_plain: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut found_names: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut levels: BTreeMap<(&str, Level), u32> = BTreeMap::new();
    for path in files(&folder.join("ndpi/pcap")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut ours: BTreeMap<Ends, Vec<Record>> = BTreeMap::new();
        for record in flows(&path) {
            ours.entry(ends(&record)).or_default().push(record);
        }
        let result = fs::read_to_string(folder.join(format!("ndpi/result/{name}.out"))).unwrap();
        for theirs in result.lines().filter_map(Judged::parse) {
            let Some(records) = ours.get(&theirs.ends) else {
                missing += 1;
                println!("no such flow: {name}: {} [{}]", theirs.flow, theirs.protocol);
                continue;
            };
            compared += 1;
            for record in records {
                let seen = &record.seen;
                let place = (name.clone(), theirs.flow.clone());
                let said = if theirs.clear { "ClearText" } else { "Encrypted" };
                *levels.entry((said, seen.level)).or_default() += 1;
                *matrix
                    .entry((theirs.protocol.clone(), seen.protocol.to_string(), seen.level))
                    .or_default() += 1;
                let shown = format!(
                    "{name}: {}: nDPI {said} {}, here {} {} ({})",
                    theirs.flow, theirs.protocol, seen.level, seen.protocol, seen.evidence
                );
                if std::env::var_os("WIRETIGHT_FLOWS").is_some() {
                    println!("flow {shown}");
                }
                if theirs.clear && is_encrypted(seen.level) {
                    match listed.contains(&place) {
                        true => drop(found.insert(place)),
                        false => conflicts.push(shown),
                    }
                } else if !theirs.clear && seen.level == Level::Plaintext {
                    let pair = (theirs.protocol.clone(), seen.protocol.to_string());
                    found_plain.entry(pair).or_default().push(shown);
                } else if !is_same(&theirs.protocol, &seen.protocol) {
                    let pair = (theirs.protocol.clone(), seen.protocol.to_string());
                    found_names.entry(pair).or_default().push(shown);
                }
            }
        }
    }

    println!("{compared} flows compared, {missing} of nDPI's not found");
    for ((said, level), count) in &levels {
        println!("| {said} | {level} | {count} |");
    }
    println!("| nDPI | here | level | flows |\n|---|---|---|---|");
    for ((theirs, ours, level), count) in &matrix {
        println!("| {theirs} | {ours} | {level} | {count} |");
    }
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(conflicts.is_empty(), "ClearText for nDPI, encrypted here:\n{}", conflicts.join("\n"));
    assert!(
        stale.is_empty(),
        "docs/watch-agreement.md lists flows that do not differ any more: {stale:?}"
    );
    check("Encrypted there, plaintext here", &encrypted_there, &found_plain);
    check("Other names", &named, &found_names);
    assert!(
        compared > 3000 && missing * 50 < compared,
        "{compared} flows compared, {missing} not found"
    );
}

/// The differences that were found are those that the page lists.
fn check(
    heading: &str,
    listed: &BTreeSet<(String, String)>,
    found: &BTreeMap<(String, String), Vec<String>>,
) {
    let new: Vec<_> = found.iter().filter(|(pair, _)| !listed.contains(pair)).collect();
    let text = new
        .iter()
        .map(|(pair, flows)| format!("{pair:?}: {} flows, as {}", flows.len(), flows[0]))
        .collect::<Vec<_>>();
    assert!(text.is_empty(), "differences that {heading:?} does not list:\n{}", text.join("\n"));
    let stale: Vec<_> = listed.iter().filter(|pair| !found.contains_key(pair)).collect();
    assert!(stale.is_empty(), "{heading:?} lists differences that do not exist: {stale:?}");
}

/// Whether both names are of one protocol. nDPI adds a service after a dot, and a tunnel before a colon.
fn is_same(theirs: &str, ours: &str) -> bool {
    if ours == "unknown" || theirs == "Unknown" {
        return true;
    }
    let theirs = theirs.rsplit(':').next().unwrap_or(theirs);
    theirs.split('.').any(|part| {
        let part = part.to_ascii_lowercase();
        part == ours || ALIASES.iter().any(|(a, b)| *a == part && *b == ours)
    })
}

/// Names of nDPI, in lower case, and ours.
const ALIASES: &[(&str, &str)] = &[
    ("corba", "giop"),
    ("doh_dot", "tls"),
    ("ethernetip", "ethernet-ip"),
    ("ftp_control", "ftp"),
    ("gtp_c", "gtp"),
    ("http_proxy", "http"),
    ("icmpv6", "icmp"),
    ("iec60870", "iec104"),
    ("imaps", "imap"),
    ("imaps", "tls"),
    ("ipsec", "esp"),
    ("ipsec", "ike"),
    ("iso9506-1-mms", "mms"),
    ("jabber", "xmpp"),
    ("jrmi", "rmi"),
    ("mssql-tds", "mssql"),
    ("netbios", "nbns"),
    ("pops", "pop3"),
    ("pops", "tls"),
    ("postgresql", "postgres"),
    ("quic", "gquic"),
    ("s7commplus", "s7comm-plus"),
    ("service_location_protocol", "slp"),
    ("smbv1", "smb"),
    ("smbv23", "smb"),
    ("smtps", "smtp"),
    ("smtps", "tls"),
    ("usenet", "nntp"),
    ("whois-das", "whois"),
];

#[test]
fn a_flow_of_zeeks_captures_has_the_name_of_its_capture_or_none() {
    let Some(folder) = captures() else { return };
    let folder = folder.join("zeek");
    let mut wrong = Vec::new();
    let mut matrix: BTreeMap<(String, String, Level), u32> = BTreeMap::new();
    for path in files(&folder) {
        let name = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
        for record in flows(&path) {
            let group = name.split_once('/').map_or("(top)", |(group, _)| group);
            *matrix
                .entry((group.to_owned(), record.seen.protocol.to_string(), record.seen.level))
                .or_default() += 1;
            let shown = format!(
                "{name}: {:?} {} -> {}: {} {} ({})",
                record.transport,
                record.client,
                record.server,
                record.seen.level,
                record.seen.protocol,
                record.seen.evidence
            );
            if std::env::var_os("WIRETIGHT_FLOWS").is_some() {
                println!("flow {shown}");
            }
            if !is_expected(&name, &record) {
                wrong.push(shown);
            }
        }
    }
    println!("| folder | here | level | flows |\n|---|---|---|---|");
    for ((group, ours, level), count) in &matrix {
        println!("| {group} | {ours} | {level} | {count} |");
    }
    assert!(wrong.is_empty(), "{} flows:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is in Zeek's captures: the longest beginning of a capture's name decides. Captures were made on networks with
/// other traffic: its protocols stand behind the one that the capture is about.
const IN_ZEEK: &[(&str, &[&str])] = &[
    ("", &[]),
    ("auth_change_session_keys", &["dnp3"]),
    ("chksums/", &["http", "icmp"]),
    ("communityid/", &["http", "icmp", "smtp"]),
    ("conn-size", &["http", "icmp", "slp"]),
    // MS-RPC over TCP, in SMB, and over HTTP.
    ("dce-rpc/", &["dcerpc", "smb", "http", "dns", "kerberos", "syslog"]),
    ("dhcp/", &["dhcp"]),
    ("dnp3/", &["dnp3"]),
    ("dns", &["dns", "mdns"]),
    ("dns/", &["dns", "mdns", "icmp", "igmp"]),
    ("dnssec/", &["dns"]),
    ("erspan", &["dns", "http", "icmp", "llmnr", "nbns", "dhcp"]),
    ("fake-syslog", &["syslog"]),
    ("finger/", &["finger"]),
    ("ftp/", &["ftp"]),
    // GridFTP's data connection has TLS without a cipher.
    ("globus", &["ftp", "tls"]),
    ("gnutella/", &["gnutella"]),
    // A proxy's captures have what was tunnelled.
    ("http", &["http", "tls", "icmp"]),
    ("http/connect-with-smtp", &["smtp", "http"]),
    ("http/get-to-ssh", &["http", "ssh"]),
    ("http/http-to-ssh", &["http", "ssh"]),
    ("icmp", &["icmp"]),
    ("igmp/", &["igmp", "mdns", "ssdp"]),
    ("ip6_esp", &["esp", "icmp"]),
    ("ipv4/", &["ftp"]),
    ("ipv6-fragmented-dns", &["dns"]),
    ("ipv6-http", &["http", "icmp"]),
    ("ipv6_zero_len_ah", &["icmp", "ah"]),
    ("irc", &["irc"]),
    ("krb/", &["kerberos", "smb"]),
    ("ldap/", &["ldap", "kerberos", "smb", "dns"]),
    // Scanners tried other protocols at port 502.
    ("modbus/", &["modbus", "dns"]),
    ("modbus/modbus-and-non-modbus", &["modbus", "dcerpc", "http", "nfs", "tls", "smb", "rdp"]),
    ("mount/", &["mount", "nfs", "portmap"]),
    ("mysql/", &["mysql"]),
    ("ncp", &["http", "nbns"]),
    ("netbios/", &["smb", "netbios"]),
    ("nflog-http", &["http"]),
    ("nfs/", &["nfs", "mount", "portmap"]),
    ("nmap-vsn", &["dns"]),
    ("ntp/", &["ntp", "dns"]),
    ("pe/", &["ftp"]),
    ("pop3/", &["pop3"]),
    ("postgresql/", &["postgres"]),
    ("pppoe", &["dhcp", "icmp", "tls"]),
    ("q-in-q", &["bacnet"]),
    ("quic/", &["quic"]),
    ("quic/merlinc2", &["quic", "dns"]),
    ("radius/", &["radius"]),
    ("raw_layer", &["icmp"]),
    ("raw_packets", &["dns", "icmp", "ssdp", "tls"]),
    ("rdp/", &["rdp"]),
    ("redis/", &["redis"]),
    ("rfb/", &["vnc"]),
    ("rpc-portmap", &["portmap", "rpc"]),
    ("sip/", &["sip"]),
    ("smb/", &["smb", "netbios"]),
    ("smtp", &["smtp"]),
    ("smtp.pcap", &["smtp", "dns", "icmp", "netbios", "tls"]),
    ("snmp/", &["snmp"]),
    ("socks", &["socks", "http"]),
    ("ssh/", &["ssh"]),
    ("syslog", &["syslog"]),
    ("tcp", &["http", "icmp"]),
    ("tcp-syslog", &["syslog"]),
    ("telnet", &["telnet"]),
    ("ticks-dns", &["dns"]),
    ("tls/", &["tls"]),
    ("tls/dtls", &["dtls"]),
    ("tls/imap", &["imap"]),
    ("tls/irc", &["irc"]),
    ("tls/ocsp", &["http", "tls"]),
    ("tls/pop3", &["pop3"]),
    // HTTP answered a ClientHello.
    ("tls/ssl-to-http", &["http", "tls"]),
    ("tls/webrtc", &["stun", "dtls"]),
    ("tls/xmpp", &["xmpp-server"]),
    ("trunc/", &["icmp"]),
    ("tunnels/", &["dhcp", "dns", "gtp", "http", "icmp", "nbns", "netbios", "tls", "llmnr"]),
    ("var-services", &["dns", "ftp", "http", "mdns", "ntp", "ssh"]),
    // Also what is inside.
    ("websocket/", &["websocket"]),
    ("wikipedia", &["dns", "http", "llmnr", "mdns", "nbns"]),
    ("workshop_2011", &["http"]),
    ("www-odd-url", &["http"]),
    ("zip/", &["http"]),
];

fn is_expected(name: &str, record: &Record) -> bool {
    let longest = IN_ZEEK
        .iter()
        .filter(|(start, _)| name.starts_with(start))
        .max_by_key(|(start, _)| start.len());
    let named = &*record.seen.protocol;
    named == "unknown" || longest.is_some_and(|(_, names)| names.contains(&named))
}
