//! Why the relay or the edge refuses a connection, a session or a request.
//!
//! The words appear in `status`, in the log, in the metrics and in the operator guide. A test compares the guide's
//! tables with the one here.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wiretight_keys::Refusal;

use Place::{Dial, Edge, Service};

/// Where a connection, a session or a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The relay, as the side that offers a service.
    Service,
    /// The relay, as the side that calls a service.
    Dial,
    /// The edge.
    Edge,
}

/// In the order of the words, because status and metrics list them in the order of this enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    BackendUnavailable,
    BadCertificate,
    BadChain,
    Broken,
    Disconnected,
    Draining,
    Expired,
    HandshakeFailed,
    HandshakeStalled,
    HungUp,
    Late,
    LivesTooLong,
    MalformedHttp,
    NoCertificate,
    NoIdentity,
    NoInstance,
    NoNews,
    NoPostQuantum,
    NoProxyHeader,
    NoSuchService,
    NoTurn,
    NotAllowed,
    NotAnSvid,
    NotIntercepted,
    NotLogged,
    NotTls,
    NotYetValid,
    /// The peer sent a code of a later version; or a later version's word, when a status is read.
    Other,
    ProtocolError,
    RefusedByPeer,
    Revoked,
    Stalled,
    TakenBack,
    Tls,
    TlsIncompatible,
    TlsVersion,
    TooManyConnections,
    TooManyHandshakes,
    TooManyWaiting,
    Unreachable,
    UnrecognizedName,
    Untrusted,
    WrongPeer,
    WrongTrustDomain,
}

struct Row {
    reason: Reason,
    word: &'static str,
    sides: &'static [Place],
    /// The meaning and the next step, if the relay refuses.
    relay: &'static str,
    /// The same, if the edge refuses.
    edge: &'static str,
}

const fn relay(
    reason: Reason,
    word: &'static str,
    sides: &'static [Place],
    relay: &'static str,
) -> Row {
    Row { reason, word, sides, relay, edge: "" }
}

const fn edge(reason: Reason, word: &'static str, edge: &'static str) -> Row {
    Row { reason, word, sides: &[Edge], relay: "", edge }
}

/// A reason of both, with a meaning for each.
const fn both(
    reason: Reason,
    word: &'static str,
    sides: &'static [Place],
    [relay, edge]: [&'static str; 2],
) -> Row {
    Row { reason, word, sides, relay, edge }
}

/// A certificate of the mesh is rejected: by a relay, or by a site whose clients are members of the mesh.
const fn svid(reason: Reason, word: &'static str, meaning: &'static str) -> Row {
    both(reason, word, &[Service, Dial, Edge], [meaning, MEMBER])
}

const MEMBER: &str = "the site has `clients`, and the client's certificate is not valid in the mesh. See What a refusal means";

static TABLE: [Row; Reason::WrongTrustDomain as usize + 1] = [
    relay(
        Reason::BackendUnavailable,
        "backend_unavailable",
        &[Service, Dial],
        "The program behind the service does not accept connections. With `transparent`: there is no backend for the caller's address family, or the routes are not in force",
    ),
    edge(Reason::BadCertificate, "bad_certificate", "the client's certificate cannot be parsed"),
    svid(Reason::BadChain, "bad_chain", "A certificate, but not a valid one of a mesh"),
    both(
        Reason::Broken,
        "broken",
        &[Dial, Edge],
        [
            "TCP failed",
            "that backend closed the connection, or sent a response with ambiguous length (Content-Length beside Transfer-Encoding)",
        ],
    ),
    relay(
        Reason::Disconnected,
        "disconnected",
        &[Service, Dial],
        "No more data came: a port scan, a health check or a firewall",
    ),
    relay(
        Reason::Draining,
        "draining",
        &[Dial],
        "The other side is stopping. Another instance is tried",
    ),
    svid(
        Reason::Expired,
        "expired",
        "By this machine's clock. Check whether the peer's node is out of contact with the authority",
    ),
    edge(
        Reason::HandshakeFailed,
        "handshake_failed",
        "no common version or cipher, or the client closed the connection (a client that does not trust the certificate does this)",
    ),
    relay(
        Reason::HandshakeStalled,
        "handshake_stalled",
        &[Service, Dial],
        "No more data came: a port scan, a health check or a firewall",
    ),
    relay(
        Reason::HungUp,
        "hung_up",
        &[Dial],
        "The other side closed before it answered: it is stopping, or we hold too many connections. Another instance is tried",
    ),
    edge(Reason::Late, "late", "that backend did not respond within `timeout`"),
    svid(
        Reason::LivesTooLong,
        "lives_too_long",
        "A certificate is valid for longer than any that an authority makes (leaf 25 h, intermediate 366 d). Somebody has the CA key",
    ),
    edge(
        Reason::MalformedHttp,
        "malformed_http",
        "HTTP/1, or an HTTP/2 or HTTP/3 header, that another parser might read differently. Answered 400, 431 or 505",
    ),
    both(
        Reason::NoCertificate,
        "no_certificate",
        &[Service, Dial, Edge],
        [
            "The caller showed no certificate: it is not a member, or not configured as one",
            "the site has had no valid certificate yet; or the site requires a client certificate and the client showed none",
        ],
    ),
    relay(
        Reason::NoIdentity,
        "no_identity",
        &[Service, Dial],
        "This node has no valid certificate. Check that the authority is reachable",
    ),
    relay(
        Reason::NoInstance,
        "no_instance",
        &[Dial],
        "No instance of the service is in the registry",
    ),
    svid(
        Reason::NoNews,
        "no_news",
        "This node has been out of contact with the authority for longer than `max_staleness`",
    ),
    relay(
        Reason::NoPostQuantum,
        "no_post_quantum",
        &[Service, Dial],
        "The peer speaks `wiretight/1` without X25519MLKEM768: not one of our builds",
    ),
    edge(
        Reason::NoProxyHeader,
        "no_proxy_header",
        "`proxy_protocol` is on, but a trusted balancer sent no PROXY protocol header",
    ),
    relay(
        Reason::NoSuchService,
        "no_such_service",
        &[Service, Dial],
        "The port belongs to another service. Check `to` or `advertise`",
    ),
    relay(
        Reason::NoTurn,
        "no_turn",
        &[Dial],
        "A burst: other sessions connected to the same instance for 30 s, or 8192 sessions waited already. Consider more instances",
    ),
    both(
        Reason::NotAllowed,
        "not_allowed",
        &[Service, Dial, Edge],
        [
            "The caller's identity is not in the service's `allow`. Add it there if it should be",
            "a member that the site does not list, or a client whose certificate is no longer valid. Answered 403",
        ],
    ),
    svid(Reason::NotAnSvid, "not_an_svid", "A certificate, but not a valid one of a mesh"),
    relay(
        Reason::NotIntercepted,
        "not_intercepted",
        &[Dial],
        "A program connected directly to the port for intercepted connections. Configure it with the address of the service",
    ),
    svid(
        Reason::NotLogged,
        "not_logged",
        "A certificate of the chain does not prove, by this node's policy, that it is in the log. Shortly after `[witnesses]` or its policy changed, the peer may not have renewed yet: run `wiretight svid renew` there. Otherwise somebody has the CA key",
    ),
    relay(Reason::NotTls, "not_tls", &[Service, Dial], "Plaintext or garbage came to the TLS port"),
    svid(
        Reason::NotYetValid,
        "not_yet_valid",
        "By this machine's clock. Check whether the peer's node is out of contact with the authority",
    ),
    relay(
        Reason::Other,
        "other",
        &[Dial],
        "The other side has a later version and a reason that this version does not know. Its log has the reason",
    ),
    relay(
        Reason::ProtocolError,
        "protocol_error",
        &[Service, Dial],
        "The peer violates `docs/wire.md`",
    ),
    relay(
        Reason::RefusedByPeer,
        "refused_by_peer",
        &[Service, Dial],
        "The other side rejected this node. Its log has the reason",
    ),
    both(
        Reason::Revoked,
        "revoked",
        &[Service, Dial, Edge],
        [
            "The message says which: the node was removed, may no longer use that identity, its log entry was revoked, its intermediate was revoked, or its root was retired by force. In the last two cases its node gets another certificate by itself",
            "a member whose identity was revoked, also while it is connected. Cut",
        ],
    ),
    edge(
        Reason::Stalled,
        "stalled",
        "one of: a handshake or request head took longer than 10 s; the client did not read a response for 60 s (over HTTP/2 and HTTP/3 that one request is reset, and the connection continues); over HTTP/1.1, the client sent more than 64 KiB ahead of a response that did not come for 60 s",
    ),
    edge(
        Reason::TakenBack,
        "taken_back",
        "an HTTP/2 or HTTP/3 client cancelled 1,000 requests more than it waited for. The connection is closed",
    ),
    relay(
        Reason::Tls,
        "tls",
        &[Service, Dial],
        "Another TLS error, such as a message out of order. The detail names it",
    ),
    relay(
        Reason::TlsIncompatible,
        "tls_incompatible",
        &[Service, Dial],
        "No TLS 1.3, or no common parameters",
    ),
    relay(
        Reason::TlsVersion,
        "tls_version",
        &[Service, Dial],
        "No TLS 1.3, or no common parameters",
    ),
    relay(
        Reason::TooManyConnections,
        "too_many_connections",
        &[Service, Dial],
        "The caller's node already has `max_connections_per_peer` connections with this identity. The caller sees `hung_up`",
    ),
    both(
        Reason::TooManyHandshakes,
        "too_many_handshakes",
        &[Service, Edge],
        [
            "More than 256 unfinished handshakes from that IPv4 address or IPv6 /64 (or 1024 from all) on one worker, and no slot became free within 10 s (or the peer sent nothing for 1 s)",
            "1024 at a time on one worker, or 256 from one IPv4 address or IPv6 /64 that is no trusted proxy. A client that has sent its hello waits up to 10 s for a slot (2048 from one address, 4096 in all); a silent one is reset after 1 s",
        ],
    ),
    relay(
        Reason::TooManyWaiting,
        "too_many_waiting",
        &[Dial],
        "A burst: other sessions connected to the same instance for 30 s, or 8192 sessions waited already. Consider more instances",
    ),
    both(
        Reason::Unreachable,
        "unreachable",
        &[Dial, Edge],
        ["TCP failed", "the backend named there did not accept the connection"],
    ),
    edge(
        Reason::UnrecognizedName,
        "unrecognized_name",
        "the client asked for a name that no site has, or for none (`default = true` on a site accepts clients without a name)",
    ),
    svid(
        Reason::Untrusted,
        "untrusted",
        "Another authority issued the certificate, or one side has an old trust bundle",
    ),
    relay(
        Reason::WrongPeer,
        "wrong_peer",
        &[Dial],
        "The server at that address has another identity than the service that was called",
    ),
    svid(Reason::WrongTrustDomain, "wrong_trust_domain", "The peer belongs to another mesh"),
];

// Each reason has its row at its own place.
const _: () = {
    let mut at = 0;
    while at < TABLE.len() {
        assert!(TABLE[at].reason as usize == at);
        at += 1;
    }
};

impl Reason {
    pub fn all() -> impl Iterator<Item = Reason> {
        TABLE.iter().map(|row| row.reason)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// For status, log and metrics.
    pub fn word(self) -> &'static str {
        self.row().word
    }

    /// Where it occurs.
    pub fn sides(self) -> &'static [Place] {
        self.row().sides
    }

    /// The meaning and the next step, in Markdown; empty for a place where it does not occur.
    pub fn meaning(self, at: Place) -> &'static str {
        match at {
            Service | Dial => self.row().relay,
            Edge => self.row().edge,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        let word = String::deserialize(deserializer)?;
        Ok(Reason::all().find(|reason| reason.word() == word).unwrap_or(Reason::Other))
    }
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Reason {
        match refusal {
            Refusal::NoCertificate => Reason::NoCertificate,
            Refusal::NotAnSvid(_) | Refusal::ChainTooLarge(_) => Reason::NotAnSvid,
            Refusal::WrongTrustDomain { .. } => Reason::WrongTrustDomain,
            Refusal::Untrusted(_) => Reason::Untrusted,
            Refusal::Expired { .. } => Reason::Expired,
            Refusal::NotYetValid { .. } => Reason::NotYetValid,
            Refusal::Revoked { .. } => Reason::Revoked,
            Refusal::LivesTooLong { .. } => Reason::LivesTooLong,
            Refusal::NotLogged { .. } => Reason::NotLogged,
            Refusal::NoNews => Reason::NoNews,
            Refusal::WrongPeer { .. } => Reason::WrongPeer,
            Refusal::BadChain { .. } => Reason::BadChain,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The rows of a table of the operator guide: each word with its meaning, links as plain text.
    fn guide(from: &str) -> BTreeMap<&'static str, String> {
        let text = include_str!("../../../docs/operator.md");
        let table = text.split(from).nth(1).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let mut meanings = BTreeMap::new();
        for row in rows {
            let (words, meaning) = row.strip_prefix("| ").unwrap().split_once(" | ").unwrap();
            let meaning = meaning.strip_suffix(" |").unwrap();
            let meaning = meaning.replace("](#what-a-refusal-means)", "").replace("[What", "What");
            for word in words.split('`').skip(1).step_by(2) {
                assert_eq!(meanings.insert(word, meaning.clone()), None, "{word} is there twice");
            }
        }
        meanings
    }

    #[test]
    fn the_operator_guide_has_each_reason_with_its_meaning_and_no_other() {
        for (table, places) in [
            ("| reason | meaning and next step |", &[Service, Dial][..]),
            ("| edge refusal | meaning |", &[Edge]),
        ] {
            let occurs = |r: &Reason| r.sides().iter().any(|side| places.contains(side));
            let ours: BTreeMap<_, _> = Reason::all()
                .filter(occurs)
                .map(|r| (r.word(), r.meaning(places[0]).to_owned()))
                .collect();
            let guide = guide(table);
            assert!(ours.len() > 10 && ours.values().all(|meaning| !meaning.is_empty()));
            for word in ours.keys().chain(guide.keys()) {
                assert_eq!(ours.get(word), guide.get(word), "`{word}` in \"{table}\"");
            }
        }
    }

    #[test]
    fn reasons_have_the_order_of_their_words() {
        assert!(Reason::all().map(Reason::word).is_sorted());
    }

    #[test]
    fn a_reason_is_serialised_as_its_word_and_an_unknown_word_is_read_as_other() {
        for reason in Reason::all() {
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(json, format!("\"{}\"", reason.word()));
            assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason);
        }
        assert_eq!(
            serde_json::from_str::<Reason>("\"of_a_later_version\"").unwrap(),
            Reason::Other
        );
    }
}
