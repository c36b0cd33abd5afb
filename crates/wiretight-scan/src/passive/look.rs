//! From the first bytes of a flow to what it is.
//!
//! Each protocol has a [`Recogniser`]. [`look`] asks those of the transport in a fixed order, the more specific first,
//! and the first one that does not say [`Verdict::No`] decides. A recogniser parses: lengths that fit, a valid
//! structure, an answer that fits its request. A port may only decide between two protocols that both fit.

mod brokers;
mod files;
mod http;
mod industry;
mod ipsec;
mod media;
mod names;
mod network;
mod others;
mod quic;
mod rdp;
mod sealed;
mod smb3;
mod ssh;
mod starttls;
mod text;
mod tls;
mod tunnels;
mod vpn;

use std::borrow::Cow;

use super::{Grade, Seen, Side, Transport, vocabulary};
use crate::judge::Level;
use crate::parse::starttls::printable;

/// The beginning of a flow, as far as it was captured.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    pub transport: Transport,
    /// Ports of the client and the server; 0 without ports.
    pub ports: (u16, u16),
    /// Who sent the first payload; `None` before any.
    pub first: Option<Side>,
    pub client: Half<'a>,
    pub server: Half<'a>,
    /// No more will be looked at: the flow ended, or a limit was reached. [`Look::More`] is no answer then.
    pub last: bool,
}

impl<'a> Opening<'a> {
    pub fn half(&self, side: Side) -> Half<'a> {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    /// Both directions, the one that sent first in front.
    fn halves(&self) -> [Half<'a>; 2] {
        let first = self.first.unwrap_or(Side::Client);
        [self.half(first), self.half(first.other())]
    }

    /// Whether one of the ports is this one. Not a proof of anything.
    fn has_port(&self, port: u16) -> bool {
        self.ports.0 == port || self.ports.1 == port
    }

    /// Whether the side that sent first begins like text.
    fn is_text(&self) -> bool {
        let first = self.halves().into_iter().find_map(|half| half.bytes.first());
        first.is_some_and(|b| matches!(b, b'\t' | b'\r' | b'\n' | b' '..=b'~'))
    }

    fn is_mid_flow(&self) -> bool {
        !(self.client.from_start || self.server.from_start)
    }

    /// The same flow, opened by the other side.
    fn swapped(&self) -> Self {
        Self {
            ports: (self.ports.1, self.ports.0),
            first: self.first.map(Side::other),
            client: self.server,
            server: self.client,
            ..*self
        }
    }

    /// The flow after the first bytes of each direction: what follows STARTTLS, or the request to a proxy.
    fn after(&self, client: usize, server: usize) -> Self {
        Self { client: self.client.after(client), server: self.server.after(server), ..*self }
    }
}

/// One direction of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Half<'a> {
    /// TCP: the first bytes in order, up to the first gap. Otherwise the first datagrams, one after the other.
    pub bytes: &'a [u8],
    /// Where each segment or datagram in `bytes` ends. Empty for a stream inside another one.
    pub ends: &'a [u16],
    /// Whether `bytes` begins at the beginning of the stream, because its SYN was captured. Always true without TCP,
    /// unless the capture began later.
    pub from_start: bool,
    /// Whether this direction can't grow: its end was captured, it has a gap, or a limit was reached.
    pub ended: bool,
}

impl<'a> Half<'a> {
    /// The datagrams (or segments), one by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (bytes, ends) = (self.bytes, self.ends);
        let mut start = 0;
        ends.iter().filter_map(move |&end| {
            let range = start..usize::from(end);
            start = range.end;
            bytes.get(range)
        })
    }

    fn after(&self, used: usize) -> Self {
        Self { bytes: self.bytes.get(used..).unwrap_or_default(), ends: &[], ..*self }
    }
}

/// The result of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Not decided yet: look again when either direction has grown.
    More,
    /// Decided; more bytes don't change it.
    Done(Seen),
}

/// What a recogniser says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not this protocol, whatever follows.
    No,
    /// Perhaps; more bytes will tell. It keeps recognisers further down the list from deciding, so a weak resemblance
    /// is not enough. After the last look it counts as [`Self::No`].
    Maybe,
    Done(Seen),
}

/// Decides whether a flow is one protocol. Must not allocate before it is [`Verdict::Done`].
pub(crate) type Recogniser = fn(&Opening<'_>) -> Verdict;

/// In the order in which they are asked. TLS is first because it is the most frequent.
const TCP_SEALED: &[Recogniser] = &[tls::look, ssh::look, rdp::look, smb3::look, vpn::openvpn];
/// Asked if the side that sent first begins like text.
const TCP_TEXT: &[Recogniser] = &[
    http::http1,
    http::http2,
    starttls::replies,
    starttls::imap,
    starttls::pop3,
    starttls::sieve,
    starttls::xmpp,
    http::sip,
    http::rtsp,
    text::redis,
    text::nats,
    text::git,
    text::rsync,
    text::svn,
    text::fix,
    text::gnutella,
    text::syslog,
    others::teamspeak,
];
/// Also those that begin with a word.
const TCP_BINARY: &[Recogniser] = &[
    starttls::mssql,
    starttls::postgres,
    starttls::mysql,
    files::smb,
    files::rpc,
    files::kerberos,
    files::dcerpc,
    starttls::ldap,
    names::tcp,
    text::memcached,
    text::hl7,
    others::rfb,
    others::rmi,
    others::jdwp,
    others::giop,
    others::ceph,
    others::bitcoin,
    others::fastcgi,
    others::ajp,
    others::x11,
    others::rlogin,
    network::bgp,
    network::ldp,
    network::pptp,
    media::bittorrent,
    media::stun,
    brokers::amqp,
    brokers::mqtt,
    brokers::zmtp,
    brokers::nbd,
    brokers::elasticsearch,
    brokers::mongodb,
    brokers::cassandra,
    brokers::zookeeper,
    brokers::thrift,
    brokers::drda,
    brokers::oracle,
    files::iscsi,
    industry::opcua,
    industry::iso,
    industry::dnp3,
    industry::iec104,
    industry::fins,
    industry::hislip,
    industry::ethernet_ip,
    network::diameter,
    starttls::telnet,
    text::nine_p,
    brokers::bolt,
    brokers::clickhouse,
    brokers::tarantool,
    brokers::gearman,
    brokers::redis_bus,
    network::tacacs,
    network::openflow,
    network::smpp,
    others::skinny,
    others::afp,
    industry::modbus,
    media::rtmp,
    brokers::kafka,
    files::rpc_reply,
];
/// Text whose form is that of other text.
const TCP_VAGUE: &[Recogniser] = &[starttls::irc, text::ident, text::metrics, text::whois];
const UDP: &[Recogniser] = &[
    quic::look,
    tls::dtls,
    ipsec::ike,
    vpn::wireguard,
    vpn::openvpn,
    names::udp,
    media::stun,
    http::ssdp,
    http::sip,
    http::ws_discovery,
    network::dhcp,
    network::snmp,
    files::kerberos,
    files::netbios_datagram,
    files::rpc,
    starttls::ldap,
    text::syslog,
    text::statsd,
    text::mgcp,
    text::memcached,
    media::bittorrent,
    industry::bacnet,
    industry::dnp3,
    industry::ethernet_ip,
    industry::fins,
    network::flow_export,
    network::collectd,
    network::radius,
    network::tftp,
    network::gtp,
    network::pfcp,
    network::hsrp,
    network::rip,
    network::l2tp,
    network::ldp,
    network::slp,
    network::ipmi,
    network::knx,
    brokers::rtps,
    others::game_query,
    media::rtcp,
    network::ntp,
    network::coap,
    media::rtp,
    files::rpc_reply,
    ipsec::esp_in_udp,
];
const SCTP: &[Recogniser] = &[network::diameter, network::m3ua];
/// All other transports.
const IP: &[Recogniser] = &[ipsec::esp, network::by_number];

/// When no recogniser says more than no, and this many bytes of a direction were looked at, no more are needed.
const ENOUGH: usize = 1024;

/// Decides what a flow is. A pure function: the same opening has the same result, and a longer one may be decided where
/// a shorter one is not.
pub fn look(opening: &Opening<'_>) -> Look {
    let look = decide(opening);
    if let Look::Done(Seen { protocol, .. }) = &look {
        debug_assert_eq!(vocabulary::protocol(protocol), protocol, "it is not in the vocabulary");
    }
    look
}

fn decide(opening: &Opening<'_>) -> Look {
    let without_ports = matches!(opening.transport, Transport::Icmp | Transport::Ip(_));
    if opening.client.bytes.is_empty() && opening.server.bytes.is_empty() && !without_ports {
        return match opening.last {
            true => Look::Done(not_known("no payload")),
            false => Look::More,
        };
    }
    let tunnelled = match opening.transport {
        Transport::Tcp => tunnels::tunnel(opening),
        _ => Verdict::No,
    };
    let verdict = match tunnelled {
        Verdict::Maybe if opening.last => recognise(opening),
        Verdict::No => recognise(opening),
        verdict => verdict,
    };
    let verdict = match verdict {
        // A capture that began later does not show who opened the flow.
        Verdict::No if opening.is_mid_flow() => recognise(&opening.swapped()),
        verdict => verdict,
    };
    let enough = opening.last || opening.halves().iter().any(|half| half.bytes.len() >= ENOUGH);
    match verdict {
        Verdict::Done(seen) => Look::Done(seen),
        Verdict::Maybe => Look::More,
        Verdict::No if !enough => Look::More,
        Verdict::No => match text::readable(opening) {
            Verdict::Done(seen) => Look::Done(seen),
            _ => Look::Done(not_known("no known protocol")),
        },
    }
}

/// What follows the agreement on TLS: a handshake, or something else.
fn tls_within(opening: &Opening<'_>) -> Verdict {
    tls::look_within(opening)
}

/// The answer of the recognisers of a transport.
fn recognise(opening: &Opening<'_>) -> Verdict {
    match opening.transport {
        Transport::Tcp => {
            let lists = match opening.is_text() {
                true => [TCP_SEALED, TCP_TEXT, TCP_BINARY, TCP_VAGUE],
                false => [TCP_SEALED, TCP_BINARY, &[], &[]],
            };
            lists
                .into_iter()
                .map(|list| ask(opening, list))
                .find(|v| *v != Verdict::No)
                .unwrap_or(Verdict::No)
        }
        Transport::Udp => ask(opening, UDP),
        Transport::Sctp => ask(opening, SCTP),
        Transport::Icmp | Transport::Ip(_) => ask(opening, IP),
    }
}

/// The first answer that is not no.
fn ask(opening: &Opening<'_>, recognisers: &[Recogniser]) -> Verdict {
    for recogniser in recognisers {
        match recogniser(opening) {
            Verdict::No => {}
            Verdict::Maybe if opening.last => {}
            verdict => return verdict,
        }
    }
    Verdict::No
}

fn not_known(why: &'static str) -> Seen {
    Seen {
        protocol: Cow::Borrowed("unknown"),
        level: Level::Unknown,
        grade: Grade::Unknown,
        evidence: Cow::Borrowed(why),
        starttls: None,
        sealed: None,
    }
}

/// A protocol without encryption.
fn plaintext(
    protocol: &'static str,
    grade: Grade,
    evidence: impl Into<Cow<'static, str>>,
) -> Verdict {
    recognised(protocol, Level::Plaintext, grade, evidence.into())
}

/// A protocol whose packets do not show whether their content is encrypted.
fn undetermined(
    protocol: &'static str,
    grade: Grade,
    evidence: impl Into<Cow<'static, str>>,
) -> Verdict {
    recognised(protocol, Level::Unknown, grade, evidence.into())
}

fn recognised(
    protocol: &'static str,
    level: Level,
    grade: Grade,
    evidence: Cow<'static, str>,
) -> Verdict {
    let protocol = Cow::Borrowed(protocol);
    Verdict::Done(Seen { protocol, level, grade, evidence, starttls: None, sealed: None })
}

/// Text of a peer as evidence: printable, and short.
fn quoted(bytes: &[u8]) -> String {
    const MAX: usize = 100;
    let line = bytes.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
    let mut text = printable(line.get(..MAX).unwrap_or(line));
    text.truncate(MAX);
    text
}

#[cfg(test)]
mod tests;
