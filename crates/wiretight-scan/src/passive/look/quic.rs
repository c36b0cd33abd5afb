//! QUIC (RFC 9000, RFC 9369): the hellos in its Initial packets, which anyone on the path can open.
//!
//! The keys depend on what the client sent first. So a capture of the server's side alone shows QUIC, but no hello.

use std::borrow::Cow;

use super::sealed::seen;
use super::tls::{Flavour, Negotiated, Offer, offered};
use super::{Half, Opening, Verdict};
use crate::judge::Level;
use crate::parse::quic::{
    Crypto, Frame, Initial, InitialKeys, Kind, MIN_DATAGRAM, Packet, Version, frames, kind, packet,
};
use crate::passive::{Grade, Sealed, Side};

/// What the datagrams of one side are, by their headers.
#[derive(Debug, Default)]
struct Headers {
    /// The version of its last long header.
    version: Option<Version>,
    /// A version that is not known here.
    other: Option<u32>,
    initial: bool,
    negotiation: bool,
    /// Handshake packets, or 1-RTT packets after long headers.
    beyond: bool,
}

pub(super) fn look(opening: &Opening<'_>) -> Verdict {
    let Some(client) = headers(&opening.client) else { return google(opening) };
    let Some(server) = headers(&opening.server) else { return Verdict::No };
    let complete = client.beyond && server.beyond;
    // Each look opens all packets again, so it waits until there is enough.
    let settled = opening.last || opening.client.ended && opening.server.ended;
    if !complete && !settled {
        return Verdict::Maybe;
    }
    match client.version.or(server.version) {
        Some(_) if client.initial => opened(opening, &client, &server),
        Some(version) => {
            let sealed = Sealed { version: version.name().into(), ..Sealed::default() };
            let evidence = "QUIC packets, without the client's first one";
            Verdict::Done(seen("quic", Level::Unknown, Grade::Guessed, evidence, Some(sealed)))
        }
        None => {
            let evidence = match client.other.or(server.other) {
                _ if client.negotiation || server.negotiation => {
                    "QUIC: a Version Negotiation without a handshake".into()
                }
                Some(code) => Cow::Owned(format!("QUIC: the unknown version {code:#010x}")),
                None => return Verdict::No,
            };
            Verdict::Done(seen("quic", Level::Unknown, Grade::Guessed, evidence, None))
        }
    }
}

/// `None` if it is not QUIC.
fn headers(half: &Half<'_>) -> Option<Headers> {
    let mut headers = Headers::default();
    for datagram in half.datagrams() {
        let mut rest = datagram;
        while !rest.is_empty() {
            let long = headers.version.is_some() || headers.other.is_some() || headers.negotiation;
            match kind(rest)? {
                // Several packets may share a datagram. The last may have a short header, or be no packet.
                _ if rest.len() < datagram.len() && rest[0] & 0x40 == 0 => break,
                Kind::OneRtt if !long => return None,
                Kind::OneRtt => {
                    headers.beyond |= rest[0] & 0x40 != 0 && rest.len() > 20;
                    break;
                }
                Kind::VersionNegotiation => headers.negotiation = true,
                Kind::Unknown(code) if is_version(code) => {
                    headers.other = Some(code);
                    break;
                }
                Kind::Unknown(_) => return None,
                Kind::Initial(version) => {
                    headers.version = Some(version);
                    headers.initial = true;
                }
                Kind::Handshake(version) => {
                    headers.version = Some(version);
                    headers.beyond = true;
                }
                Kind::ZeroRtt(version) | Kind::Retry(version) => headers.version = Some(version),
            }
            match packet(rest) {
                Ok((_, after)) => rest = after,
                // The rest of a datagram that was cut off by the capture.
                Err(_) if rest.len() < datagram.len() || long => break,
                Err(_) => return None,
            }
        }
    }
    Some(headers)
}

/// Versions of the IETF's drafts and of implementations, and those reserved to provoke a negotiation.
fn is_version(code: u32) -> bool {
    // 0xfaceb001 is mvfst.
    code >> 8 == 0x00ff_0000
        || code & 0x0f0f_0f0f == 0x0a0a_0a0a
        || code & 0xffff_fff0 == 0xface_b000
}

/// The CRYPTO data of both sides.
#[derive(Default)]
struct Opened {
    keys: Vec<InitialKeys>,
    client: Crypto,
    server: Crypto,
    largest: [Option<u64>; 2],
    /// Packets that could not be opened.
    failed: usize,
    /// Why a side closed the connection, in Initials.
    closed: Option<(Side, u64)>,
}

impl Opened {
    /// The most keys that are derived for a flow: one pair after each Retry and each new version.
    const MOST_KEYS: usize = 4;
    /// A datagram can have many packets, and trying to open one is costly.
    const MOST_FAILED: usize = 16;

    fn read(&mut self, half: &Half<'_>, side: Side) {
        for datagram in half.datagrams() {
            let mut rest = datagram;
            while let Ok((found, after)) = packet(rest) {
                rest = after;
                if let Packet::Initial(initial) = found
                    && let Some(payload) = self.open(&initial, side)
                {
                    self.add(&payload, side);
                }
                if rest.is_empty() {
                    break;
                }
            }
        }
    }

    fn open(&mut self, initial: &Initial<'_>, side: Side) -> Option<Vec<u8>> {
        if self.failed == Self::MOST_FAILED {
            return None;
        }
        let opened = self.open_with_known(initial, side).or_else(|| match side {
            Side::Client => self.open_with_new(initial),
            Side::Server => None,
        });
        self.failed += usize::from(opened.is_none());
        opened
    }

    fn open_with_known(&mut self, initial: &Initial<'_>, side: Side) -> Option<Vec<u8>> {
        let largest = &mut self.largest[usize::from(side == Side::Server)];
        self.keys.iter().rev().find_map(|keys| {
            let keys = if side == Side::Client { &keys.client } else { &keys.server };
            let (number, payload) = initial.open(keys, *largest)?;
            *largest = Some(largest.map_or(number, |before| before.max(number)));
            Some(payload)
        })
    }

    /// The first Initial of a connection, after a Retry, or of another version.
    fn open_with_new(&mut self, initial: &Initial<'_>) -> Option<Vec<u8>> {
        if self.keys.len() == Self::MOST_KEYS {
            return None;
        }
        let keys = InitialKeys::of(initial.version, initial.destination);
        let (_, payload) = initial.open(&keys.client, None)?;
        // A new connection in the same flow.
        *self =
            Self { keys: std::mem::take(&mut self.keys), failed: self.failed, ..Self::default() };
        self.keys.push(keys);
        Some(payload)
    }

    fn add(&mut self, payload: &[u8], side: Side) {
        for frame in frames(payload).0 {
            match frame {
                Frame::Crypto(offset, data) => {
                    let crypto = match side {
                        Side::Client => &mut self.client,
                        Side::Server => &mut self.server,
                    };
                    // What exceeds the limits stays unread.
                    let _ = crypto.push(offset, data);
                }
                Frame::Close { code, .. } => self.closed = self.closed.or(Some((side, code))),
                Frame::Ping | Frame::Ack(_) => {}
            }
        }
    }
}

fn opened(opening: &Opening<'_>, client: &Headers, server: &Headers) -> Verdict {
    let mut opened = Opened::default();
    opened.read(&opening.client, Side::Client);
    opened.read(&opening.server, Side::Server);
    let version = client.version.unwrap_or(Version::V1);
    let flavour = Flavour::Quic(version.name());
    let (asked, answered) = (opened.client.read(), opened.server.read());
    let offer = Offer::in_messages(&asked, flavour);
    let negotiated = Negotiated::from_messages(&answered, offer.as_ref(), flavour, false);
    let Some(negotiated) = negotiated else {
        let (grade, evidence) = match (opened.keys.is_empty(), opened.closed) {
            (true, _) => (Grade::Guessed, "QUIC Initials that could not be opened".into()),
            (false, Some((Side::Server, code))) => {
                (Grade::Seen, format!("the server refused the handshake: error {code:#x}").into())
            }
            (false, _) => (
                Grade::Guessed,
                Cow::Borrowed("a ClientHello in QUIC, without a ServerHello that was captured"),
            ),
        };
        let sealed = match &offer {
            Some(offer) => offered(offer, flavour),
            None => Sealed { version: version.name().into(), ..Sealed::default() },
        };
        return Verdict::Done(seen("quic", Level::Unknown, grade, evidence, Some(sealed)));
    };
    let mut evidence = negotiated.evidence();
    let level = match (negotiated.problem, opened.closed) {
        (Some(problem), _) => {
            evidence.push_str(", but ");
            evidence.push_str(problem);
            Level::Unknown
        }
        (None, Some((side, code))) => {
            let side = if side == Side::Client { "client" } else { "server" };
            evidence.push_str(&format!("; the {side} ended it: error {code:#x}"));
            Level::Unknown
        }
        // The other side's part may not have been captured.
        (None, None) if !negotiated.retry && server.beyond => negotiated.level(),
        (None, None) => {
            evidence.push_str("; the handshake was not seen to complete");
            Level::Unknown
        }
    };
    Verdict::Done(seen("quic", level, Grade::Seen, evidence, Some(negotiated.sealed())))
}

/// Google's QUIC, which came before that of the IETF: the version is text in the client's first packets.
fn google(opening: &Opening<'_>) -> Verdict {
    let Some(first) = opening.client.datagrams().next() else { return Verdict::No };
    let version = match *first {
        // A long header, up to Q050.
        [0x80..=0xff, a, b, c, d, ..] if is_google([a, b, c, d]) => [a, b, c, d],
        // Public flags: a version, and a connection ID of eight bytes.
        [0x09 | 0x0d, _, _, _, _, _, _, _, _, a, b, c, d, ..] if is_google([a, b, c, d]) => {
            [a, b, c, d]
        }
        _ => return Verdict::No,
    };
    if first.len() < MIN_DATAGRAM / 4 && !opening.last {
        return Verdict::Maybe;
    }
    let evidence =
        format!("Google QUIC, version {}", version.map(char::from).iter().collect::<String>());
    Verdict::Done(seen("gquic", Level::Unknown, Grade::Guessed, evidence, None))
}

fn is_google([kind, digits @ ..]: [u8; 4]) -> bool {
    matches!(kind, b'Q' | b'T') && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::sync::Arc;

    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

    use super::super::sealed::look_at;
    use super::*;
    use crate::parse::ClientHello;
    use crate::parse::quic::{Header, initial, retry};
    use crate::passive::{Seen, Transport};

    /// Datagrams by their sender, in order.
    #[derive(Default, Clone)]
    struct Flow(Vec<(Side, Vec<u8>)>);

    impl Flow {
        fn sends(mut self, side: Side, datagram: impl Into<Vec<u8>>) -> Self {
            self.0.push((side, datagram.into()));
            self
        }

        fn only(&self, by: Side) -> Self {
            Self(self.0.iter().filter(|(side, _)| *side == by).cloned().collect())
        }

        /// Looks after each datagram.
        fn look(&self) -> Option<Seen> {
            look_at(super::look, Transport::Udp, (40000, 443), &self.0)
        }
    }

    /// A connection of quinn with itself, through a socket that records. With `retry`, the server validates the
    /// client's address first.
    fn connection(with_retry: bool) -> Flow {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let signed = rcgen::generate_simple_self_signed(vec!["h3.example".to_owned()]).unwrap();
            let key = rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der());
            let groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
            let provider = rustls::crypto::CryptoProvider {
                kx_groups: groups,
                ..rustls::crypto::aws_lc_rs::default_provider()
            };
            let provider = Arc::new(provider);
            let versions = [&rustls::version::TLS13];
            let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&versions)
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![signed.cert.der().clone()], key.unwrap())
                .unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(signed.cert.der().clone()).unwrap();
            let mut client = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            (server.alpn_protocols, client.alpn_protocols) =
                (vec![b"h3".to_vec()], vec![b"h3".to_vec()]);
            let server = QuicServerConfig::try_from(server).unwrap();
            let server = quinn::ServerConfig::with_crypto(Arc::new(server));
            let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let server = quinn::Endpoint::server(server, any).unwrap();
            let client_config =
                quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
            let client = quinn::Endpoint::client(any).unwrap();
            let middle = UdpSocket::bind(any).unwrap();
            let (to, of) = (middle.local_addr().unwrap(), client.local_addr().unwrap());
            let at = server.local_addr().unwrap();
            let wait = Some(std::time::Duration::from_millis(300));
            middle.set_read_timeout(wait).unwrap();
            let recorder = std::thread::spawn(move || {
                let (mut flow, mut buffer) = (Flow::default(), [0; 2048]);
                while let Ok((n, from)) = middle.recv_from(&mut buffer) {
                    let (side, next) =
                        if from == of { (Side::Client, at) } else { (Side::Server, of) };
                    flow = flow.sends(side, &buffer[..n]);
                    middle.send_to(&buffer[..n], next).unwrap();
                }
                flow
            });
            let accepting = tokio::spawn(async move {
                while let Some(incoming) = server.accept().await {
                    if with_retry && !incoming.remote_address_validated() {
                        incoming.retry().unwrap();
                        continue;
                    }
                    return (incoming.await.unwrap(), server);
                }
                unreachable!("the endpoint is not closed");
            });
            let connection =
                client.connect_with(client_config, to, "h3.example").unwrap().await.unwrap();
            let (accepted, server) = accepting.await.unwrap();
            let flow = tokio::task::spawn_blocking(move || recorder.join().unwrap()).await.unwrap();
            drop((connection, accepted, server));
            flow
        })
    }

    #[test]
    fn a_connection_is_strong_in_any_order_and_after_a_retry() {
        for with_retry in [false, true] {
            let flow = connection(with_retry);
            let seen = flow.look().unwrap();
            assert_eq!((&*seen.protocol, seen.level), ("quic", Level::Strong), "{}", seen.evidence);
            assert_eq!(seen.grade, Grade::Seen);
            let sealed = seen.sealed.unwrap();
            assert_eq!(
                (&*sealed.version, sealed.group.as_deref()),
                ("QUIC 1", Some("X25519MLKEM768"))
            );
            assert_eq!(sealed.server_name.as_deref(), Some("h3.example"));
            assert_eq!(sealed.alpn.as_deref(), Some("h3"));

            let client = flow.only(Side::Client).look().unwrap();
            assert_eq!((client.level, client.grade), (Level::Unknown, Grade::Guessed));
            let server = flow.only(Side::Server).look().unwrap();
            assert_eq!((&*server.protocol, server.level), ("quic", Level::Unknown));
        }
        // The hello is in two datagrams, which may arrive in the wrong order.
        let mut flow = connection(false);
        flow.0.swap(0, 1);
        assert!(flow.0[..2].iter().all(|(side, _)| *side == Side::Client));
        assert_eq!(flow.look().unwrap().level, Level::Strong);
    }

    #[test]
    fn changed_packets_are_never_called_encrypted() {
        let flow = connection(false);
        for byte in (0..200).step_by(7) {
            let mut changed = flow.clone();
            // All of them: on a busy machine, the server sends its hello again.
            for (_, datagram) in changed.0.iter_mut().filter(|(side, _)| *side == Side::Server) {
                datagram.iter_mut().skip(byte).take(1).for_each(|b| *b ^= 0x55);
            }
            let level = changed.look().map_or(Level::Unknown, |seen| seen.level);
            assert_eq!(level, Level::Unknown, "byte {byte}");
        }
    }

    fn hello() -> Vec<u8> {
        ClientHello::new(crate::names::Version::Tls1_3, [1; 32])
            .suites([0x1301])
            .groups(&[29])
            .message()
    }

    fn crypto(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Frame::Crypto(0, data).write(&mut out);
        out
    }

    #[test]
    fn a_refused_connection_is_not_encrypted() {
        let keys = InitialKeys::new(b"original");
        let header = Header { destination: b"original", source: b"me", token: b"", number: 0 };
        let asked = initial(&keys.client, header, &crypto(&hello()));
        let mut close = Vec::new();
        Frame::Close { code: 0x128, reason: b"" }.write(&mut close);
        let header = Header { destination: b"me", source: b"server", ..header };
        let refused = initial(&keys.server, header, &close);
        let seen =
            Flow::default().sends(Side::Client, asked).sends(Side::Server, refused).look().unwrap();
        assert_eq!((seen.level, seen.grade), (Level::Unknown, Grade::Seen));
        assert!(seen.evidence.contains("0x128"), "{}", seen.evidence);
    }

    #[test]
    fn version_2_is_opened_and_other_versions_are_named() {
        // As `initial` does, for version 2 (RFC 9369 section 3).
        let keys = InitialKeys::of(Version::V2, b"original");
        let mut packet = vec![0xd3, 0x6b, 0x33, 0x43, 0xcf, 8];
        packet.extend(b"original");
        packet.extend([0, 0]);
        let mut body = crypto(&hello());
        body.resize(1200, 0);
        let number_at = packet.len() + 2;
        packet.extend((0x4000 | (4 + body.len() + 16) as u16).to_be_bytes());
        packet.extend([0; 4]);
        let tag = keys.client.packet.encrypt_in_place(0, &packet, &mut body).unwrap();
        packet.append(&mut body);
        packet.extend(tag.as_ref());
        let (before, sample) = packet.split_at_mut(number_at + 4);
        let (first, number) = before.split_at_mut(number_at);
        keys.client.header.encrypt_in_place(&sample[..16], &mut first[0], number).unwrap();
        let seen = Flow::default().sends(Side::Client, packet.clone()).look().unwrap();
        let sealed = seen.sealed.unwrap();
        assert_eq!(
            (&*sealed.version, &sealed.offered_groups[..]),
            ("QUIC 2", &["x25519".into()][..])
        );
        packet[4] = 0x0f;
        assert_eq!(Flow::default().sends(Side::Client, packet.clone()).look(), None);
        packet[1..5].copy_from_slice(&[0xff, 0, 0, 23]);
        let seen = Flow::default().sends(Side::Client, packet).look().unwrap();
        assert_eq!((&*seen.protocol, seen.level), ("quic", Level::Unknown));
        let mut google = b"\x0d12345678Q043".to_vec();
        google.resize(1350, 0);
        let seen = Flow::default().sends(Side::Client, google).look().unwrap();
        assert_eq!((&*seen.protocol, seen.level), ("gquic", Level::Unknown));
    }

    #[test]
    fn what_only_resembles_quic_is_not_quic() {
        let mut state = 1_u64;
        for _ in 0..2000 {
            let datagram: Vec<u8> = (0..1200)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            assert_eq!(Flow::default().sends(Side::Client, datagram).look(), None);
        }
        let retry = retry(b"original", b"me", b"server", b"token");
        let seen = Flow::default().sends(Side::Server, retry).look().unwrap();
        assert_eq!(seen.level, Level::Unknown);
    }
}
