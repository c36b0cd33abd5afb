//! The names that totals may be published under. Names in totals come from other machines, and those of algorithms from the
//! network. So what is published has only protocols that [`look`](super::look()) recognises, and names of algorithms that
//! consist of words of the registries. Anything else is [`OTHER`].

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::totals::{Algorithm, OTHER, UNKNOWN};
use crate::Start;
use crate::judge::marks;
use crate::names::{GROUPS, SSL2_SUITES, suites};

/// The protocols without a [`Start`], sorted.
#[rustfmt::skip]
const PROTOCOLS: &[&str] = &[
    "9p", "a2s", "afp", "ah", "ajp", "amqp", "bacnet", "bgp", "bitcoin", "bittorrent", "bolt", "cassandra", "ceph",
    "clickhouse", "coap", "collectd", "dcerpc", "dhcp", "diameter", "dnp3", "dns", "drda", "dtls", "eigrp",
    "elasticsearch", "esp", "ethernet-ip", "fastcgi", "finger", "fins", "fix", "gearman", "giop", "git", "gnutella",
    "gquic", "graphite", "gtp", "h323", "haproxy", "hislip", "hl7", "hsrp", "http", "http2", "icmp", "ident", "iec104",
    "igmp", "ike", "influxdb", "ipfix", "ipmi", "iscsi", "jdwp", "kafka", "kerberos", "knx", "l2tp", "ldp", "llmnr",
    "m3ua", "mdns", "memcached", "mgcp", "mms", "modbus", "mongodb", "mount", "mqtt", "nats", "nbd", "nbns", "netbios",
    "netflow", "nfs", "nfs-acl", "nlockmgr", "nsm", "ntp", "opcua", "openflow", "openvpn", "oracle", "ospf", "pfcp",
    "pgm", "pim", "portmap", "pptp", "quic", "radius", "rdp", "redis", "rip", "rlogin", "rmi", "rpc", "rsvp", "rsync",
    "rtcp", "rtmp", "rtp", "rtps", "rtsp", "s7comm", "s7comm-plus", "sflow", "sip", "skinny", "slp", "smb", "smpp",
    "snmp", "socks", "ssdp", "ssh", "statsd", "stun", "svn", "syslog", "tacacs", "tarantool", "teamspeak", "telnet",
    "tftp", "thrift", "unknown", "vnc", "vrrp", "websocket", "whois", "wireguard", "wiretight", "ws-discovery", "x11",
    "zmtp", "zookeeper",
];

/// Words in names of algorithms that are in no table of TLS or IKE: of SSH (IANA, SSH Protocol Parameters), of versions, and
/// in the names that rustls uses.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "AEAD", "CCM", "DTLS", "IKE", "IKEv1", "IKEv2", "QUIC", "RC4", "RDP", "SMB", "SSH", "TLS13", "WireGuard", "X25519", "aes", "aes128",
    "aes192", "aes256", "arcfour", "arcfour128", "arcfour256", "bits", "blowfish", "cast128", "cbc", "chacha20", "ctr",
    "curve25519", "curve448", "des", "diffie", "draft", "ecdh", "etm", "exchange", "gcm", "group", "group1", "group14",
    "group15", "group16", "group17", "group18", "gss", "hellman", "hmac", "idea", "md5", "mlkem1024nistp384",
    "mlkem768nistp256", "mlkem768x25519", "nistp256", "nistp384", "nistp521", "none", "poly1305", "rijndael", "ripemd160",
    "rsa1024", "rsa2048", "serpent128", "serpent192", "serpent256", "sha1", "sha2", "sha256", "sha384", "sha512",
    "sntrup4591761x25519", "sntrup761x25519", "twofish", "twofish128", "twofish192", "twofish256", "umac",
];

/// The name of a protocol, or [`OTHER`].
pub fn protocol(name: &str) -> &str {
    let starts = || Start::ALL.iter().any(|start| start.scheme() == name);
    if PROTOCOLS.binary_search(&name).is_ok() || starts() { name } else { OTHER }
}

/// An algorithm with the names that are known, or [`OTHER`].
pub fn algorithm(of: &Algorithm) -> [&str; 3] {
    [version(&of.version), words(&of.key_exchange), words(&of.cipher)]
}

/// A version, or the name of a protocol whose version is not visible.
fn version(name: &str) -> &str {
    match protocol(name) {
        OTHER => words(name),
        name => name,
    }
}

fn words(name: &str) -> &str {
    static KNOWN: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let ike = (1..=6).flat_map(|kind| (0..=40).map(move |id| marks::ike(kind, id)));
        let ike = ike.map(|(name, _)| name.into_owned()).filter(|name| !name.contains('/'));
        let tls = suites().iter().map(|suite| suite.name);
        let tls = tls.chain(SSL2_SUITES.iter().map(|(_, name)| *name));
        let tls = tls.chain(GROUPS.iter().map(|group| group.name)).map(str::to_owned);
        let versions = crate::names::Version::ALL.iter().map(|version| version.name().to_owned());
        let own = WORDS.iter().chain(&[OTHER, UNKNOWN]).map(|word| (*word).to_owned());
        let all: Vec<String> = ike.chain(tls).chain(versions).chain(own).collect();
        all.iter().flat_map(|name| split(name)).map(str::to_owned).collect()
    });
    let mut of_name = split(name).peekable();
    let known = name.is_ascii()
        && of_name.peek().is_some()
        && of_name.all(|word| is_number(word) || KNOWN.contains(word));
    if known { name } else { OTHER }
}

fn split(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty())
}

/// A length, a part of a version, or a code of a registry (`0x1301`): too short for anything else.
fn is_number(word: &str) -> bool {
    let digits = |text: &str, most| text.len() <= most && text.bytes().all(|b| b.is_ascii_digit());
    let code = |text: &str| text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits(word, 5) || word.strip_prefix("0x").is_some_and(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_has_registered_are_not_published() {
        assert!(PROTOCOLS.is_sorted());
        for known in ["tls", "smtp", "wiretight", "unknown", OTHER] {
            assert_eq!(protocol(known), known);
        }
        for invented in ["", "call-me", "TLS", "tls ", "root:hunter2", "db.internal"] {
            assert_eq!(protocol(invented), OTHER, "{invented:?}");
        }
        for known in [
            "TLS 1.3",
            "QUIC 2",
            "TLS 1.3 draft 28",
            "DTLS 1.2",
            "0x7f17",
            "SMB 3.1.1",
            "IKEv2",
            "SSH 2.0",
            "WireGuard",
            "SSL 2.0",
            "wireguard",
            "X25519MLKEM768",
            "x25519",
            "0x11ec",
            "modp2048+ML-KEM-768",
            "diffie-hellman-group-exchange-sha256 (2048 bits)",
            "sntrup761x25519-sha512",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "SSL_CK_RC4_128_EXPORT40_WITH_MD5",
            "aes256-ctr, hmac-sha2-256-etm",
            "chacha20-poly1305",
            "AES-GCM-256, PRF-HMAC-SHA2-512",
            "ChaCha20-Poly1305",
            UNKNOWN,
            OTHER,
        ] {
            assert_eq!(version(known), known);
        }
        for invented in
            ["", " ", "aes256-ctr hunter2", "0xdeadbeef", "TLS 555123456", "db.internal", "aes-é"]
        {
            assert_eq!(version(invented), OTHER, "{invented:?}");
            assert_eq!(words(invented), OTHER, "{invented:?}");
        }
    }
}
