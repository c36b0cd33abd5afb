//! Flows made here: by rustls in memory, and of messages put together for what no library offers any more.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs as provider};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::super::sealed::look_at;
use super::*;
use crate::names::{Group, Suite, Version};
use crate::parse::{ClientHello, HandshakeType, Message, record, ssl2_client_hello};
use crate::passive::{Seen, Transport};

/// What each side sent, in order.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Flow(pub Vec<(Side, Vec<u8>)>);

impl Flow {
    pub fn sends(mut self, side: Side, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.push((side, bytes.into()));
        self
    }

    fn sent(&self, by: Side) -> Vec<u8> {
        self.0.iter().filter(|(side, _)| *side == by).flat_map(|(_, b)| b.clone()).collect()
    }

    fn only(&self, by: Side) -> Self {
        Self(self.0.iter().filter(|(side, _)| *side == by).cloned().collect())
    }

    /// Looks after each piece, as the table of flows does.
    pub fn look(&self) -> Option<Seen> {
        self.look_from(true)
    }

    fn look_from(&self, from_start: bool) -> Option<Seen> {
        let (mut sent, first) = ([Vec::new(), Vec::new()], self.0.first().map(|(side, _)| *side));
        for (i, (side, bytes)) in self.0.iter().enumerate() {
            sent[usize::from(*side == Side::Server)].extend_from_slice(bytes);
            let half = |bytes| Half { bytes, ends: &[], from_start, ended: false };
            let opening = Opening {
                transport: Transport::Tcp,
                ports: (40000, 443),
                first,
                client: half(&sent[0]),
                server: half(&sent[1]),
                last: i + 1 == self.0.len(),
            };
            match super::look(&opening) {
                Verdict::Maybe => {}
                Verdict::Done(seen) => return Some(seen),
                Verdict::No => return None,
            }
        }
        None
    }
}

fn config(groups: &[&'static dyn SupportedKxGroup]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..provider::default_provider() })
}

/// A handshake of rustls with itself, and a request and a response.
fn rustls_flow(
    version: &'static rustls::SupportedProtocolVersion,
    groups: &[&'static dyn SupportedKxGroup],
    alpn: &[u8],
) -> Flow {
    let signed = rcgen::generate_simple_self_signed(vec!["db.example".to_owned()]).unwrap();
    let key =
        rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(config(groups))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(signed.cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(config(groups))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![alpn.to_vec()];
    server.alpn_protocols = vec![alpn.to_vec()];
    let name = "db.example".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut flow = Flow::default();
    for round in 0..6 {
        if round == 3 {
            use std::io::Write;
            client.writer().write_all(b"request").unwrap();
            server.writer().write_all(b"response").unwrap();
        }
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        pass(&sent, |bytes| server.read_tls(bytes).unwrap());
        server.process_new_packets().unwrap();
        // As segments: a hello with a post-quantum share needs two.
        flow = sent.chunks(1400).fold(flow, |flow, piece| flow.sends(Side::Client, piece));
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent).unwrap();
        }
        pass(&sent, |bytes| client.read_tls(bytes).unwrap());
        client.process_new_packets().unwrap();
        flow = sent.chunks(1400).fold(flow, |flow, piece| flow.sends(Side::Server, piece));
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    flow
}

fn pass(mut bytes: &[u8], mut read: impl FnMut(&mut &[u8]) -> usize) {
    while !bytes.is_empty() {
        read(&mut bytes);
    }
}

pub(in super::super) fn post_quantum() -> Flow {
    rustls_flow(&rustls::version::TLS13, &[provider::kx_group::X25519MLKEM768], b"h2")
}

#[test]
fn a_post_quantum_handshake_in_several_segments_is_strong() {
    let flow = post_quantum();
    assert!(flow.0.iter().filter(|(side, _)| *side == Side::Client).count() > 2);
    let seen = flow.look().unwrap();
    assert_eq!((&*seen.protocol, seen.level, seen.grade), ("tls", Level::Strong, Grade::Seen));
    assert_eq!(seen.evidence, "ServerHello: TLS 1.3, TLS_AES_256_GCM_SHA384, X25519MLKEM768");
    let sealed = seen.sealed.unwrap();
    assert_eq!(sealed.version, "TLS 1.3");
    assert_eq!(sealed.group.as_deref(), Some("X25519MLKEM768"));
    assert_eq!((sealed.post_quantum, sealed.forward_secrecy), (Some(true), Some(true)));
    assert_eq!(sealed.server_name.as_deref(), Some("db.example"));
    assert_eq!(sealed.alpn.as_deref(), Some("h2"));
    assert_eq!(sealed.resumed, Some(false));
}

#[test]
fn a_classical_handshake_is_acceptable_and_a_relay_is_recognized() {
    let flow = rustls_flow(&rustls::version::TLS13, &[provider::kx_group::X25519], b"wiretight/1");
    let seen = flow.look().unwrap();
    assert_eq!((&*seen.protocol, seen.level), ("wiretight", Level::Acceptable));
    assert_eq!(seen.sealed.unwrap().post_quantum, Some(false));
}

#[test]
fn tls_1_2_shows_group_signature_and_certificate() {
    let flow = rustls_flow(&rustls::version::TLS12, &[provider::kx_group::SECP256R1], b"h2");
    let seen = flow.look().unwrap();
    assert_eq!((seen.level, seen.grade), (Level::Acceptable, Grade::Seen), "{}", seen.evidence);
    let sealed = seen.sealed.unwrap();
    assert_eq!(sealed.version, "TLS 1.2");
    assert_eq!(sealed.group.as_deref(), Some("secp256r1"));
    assert_eq!(sealed.signature.as_deref(), Some("ecdsa_secp256r1_sha256"));
    assert_eq!(sealed.alpn.as_deref(), Some("h2"), "the server's choice");
    assert_eq!(sealed.client_certificate, Some(false));
    let leaf = sealed.certificate.unwrap();
    assert_eq!((&*leaf.key, leaf.self_signed), ("ecdsa-p256", true));
}

#[test]
fn a_handshake_that_did_not_complete_has_no_level() {
    for flow in
        [post_quantum(), rustls_flow(&rustls::version::TLS12, &[provider::kx_group::X25519], b"h2")]
    {
        let whole = flow.look().unwrap();
        assert!(whole.level > Level::Weak);
        let done = flow.0.iter().rposition(|(side, _)| *side == Side::Client).unwrap();
        let mut decided = 0;
        for n in 1..flow.0.len() {
            let seen = Flow(flow.0[..n].to_vec()).look().unwrap();
            assert!(matches!(seen.level, Level::Unknown) || seen.level == whole.level);
            decided += usize::from(seen.level == whole.level);
        }
        assert!(decided < done, "some cuts leave it incomplete");
        let hellos = Flow(flow.0.iter().take(3).cloned().collect()).only(Side::Client);
        let seen = hellos.look().unwrap();
        assert_eq!((seen.level, seen.grade), (Level::Unknown, Grade::Guessed));
        assert!(!seen.sealed.unwrap().offered_groups.is_empty());
    }
}

#[test]
fn one_side_is_enough_only_if_it_is_the_servers() {
    let flow = post_quantum();
    let server = flow.only(Side::Server).look().unwrap();
    assert_eq!((server.level, server.grade), (Level::Strong, Grade::Seen));
    assert!(server.evidence.contains("only the server's side"), "{}", server.evidence);
    let client = flow.only(Side::Client).look().unwrap();
    assert_eq!((client.level, client.grade), (Level::Unknown, Grade::Guessed));
    let old = rustls_flow(&rustls::version::TLS12, &[provider::kx_group::X25519], b"h2");
    assert_eq!(old.only(Side::Server).look().unwrap().level, Level::Acceptable);
    assert_eq!(old.only(Side::Client).look().unwrap().level, Level::Unknown);
}

#[test]
fn records_without_a_handshake_are_a_guess() {
    let flow = post_quantum();
    let client = flow.sent(Side::Client);
    let start = client.windows(3).rposition(|w| w == [23, 3, 3]).unwrap();
    let one = Flow::default().sends(Side::Client, &client[start..]);
    assert_eq!(one.look_from(false), None, "one header can be chance");
    let two = record(ContentType::ApplicationData, 0x0303, &[7; 40]).repeat(2);
    let seen = Flow::default().sends(Side::Client, two.clone()).look_from(false).unwrap();
    assert_eq!((seen.level, seen.grade), (Level::Unknown, Grade::Guessed));
    let mut wrong = two;
    wrong[45] = 0x99;
    assert_eq!(Flow::default().sends(Side::Client, wrong).look_from(false), None);
}

// ---- Handshakes of messages put together here.

/// A hello that offers only these suites.
fn hello(version: Version, suites: &[&str]) -> ClientHello {
    let codes = suites.iter().map(|name| Suite::from_name(name).unwrap().code);
    ClientHello::new(version, [5; 32])
        .suites(codes)
        .server_name("old.example")
        .groups(&[0x11ec, 29, 23, 0x0010])
}

/// A ServerHello with these extensions.
fn answer(version: u16, suite: &str, extensions: &[u8]) -> Vec<u8> {
    let suite = match u16::from_str_radix(suite, 16) {
        Ok(code) => code,
        Err(_) => Suite::from_name(suite).unwrap().code,
    };
    let mut body = version.to_be_bytes().to_vec();
    body.extend([9; 32]);
    body.push(0);
    body.extend(suite.to_be_bytes());
    body.push(0);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    Message::new(HandshakeType::SERVER_HELLO, &body).bytes
}

/// `supported_versions` and a key share.
fn share(group: &str) -> Vec<u8> {
    let mut out = vec![0, 43, 0, 2, 3, 4, 0, 51, 0, 6];
    out.extend(Group::from_name(group).unwrap().code.to_be_bytes());
    out.extend([0, 2, 1, 1]);
    out
}

fn exchange(group: &str, scheme: u16) -> Vec<u8> {
    let mut body = vec![3];
    body.extend(Group::from_name(group).unwrap().code.to_be_bytes());
    body.extend([1, 4]);
    body.extend(scheme.to_be_bytes());
    body.extend([0, 1, 1]);
    Message::new(HandshakeType::SERVER_KEY_EXCHANGE, &body).bytes
}

fn certificate() -> Vec<u8> {
    let signed = rcgen::generate_simple_self_signed(vec!["old.example".to_owned()]).unwrap();
    let der = signed.cert.der();
    let mut body = Vec::new();
    body.extend(&(der.len() as u32 + 3).to_be_bytes()[1..]);
    body.extend(&(der.len() as u32).to_be_bytes()[1..]);
    body.extend(der.as_ref());
    Message::new(HandshakeType::CERTIFICATE, &body).bytes
}

fn sealed_record() -> Vec<u8> {
    record(ContentType::Handshake, 0x0303, &[0xa5; 40])
}

fn change() -> Vec<u8> {
    record(ContentType::ChangeCipherSpec, 0x0303, &[1])
}

/// A handshake up to TLS 1.2, with these messages of the server after its hello.
fn old(version: Version, suite: &str, messages: &[Vec<u8>]) -> Flow {
    let done = Message::new(HandshakeType::SERVER_HELLO_DONE, &[]).bytes;
    let flight = [&[answer(version.code(), suite, &[])], messages, &[done]].concat().concat();
    let keys = Message::new(HandshakeType::CLIENT_KEY_EXCHANGE, &[0; 20]).bytes;
    let keys = record(ContentType::Handshake, 0x0303, &keys);
    Flow::default()
        .sends(Side::Client, hello(version, &[suite]).record())
        .sends(Side::Server, record(ContentType::Handshake, version.code(), &flight))
        .sends(Side::Client, [keys, change(), sealed_record()].concat())
        .sends(Side::Server, [change(), sealed_record()].concat())
}

/// A handshake of TLS 1.3 with these extensions of the ServerHello.
fn new(suite: &str, extensions: &[u8]) -> Flow {
    let hello = hello(Version::Tls1_3, &["TLS_AES_128_GCM_SHA256"]);
    let answer = answer(0x0303, suite, extensions);
    let data = record(ContentType::ApplicationData, 0x0303, &[7; 60]);
    Flow::default()
        .sends(Side::Client, hello.record())
        .sends(Side::Server, record(ContentType::Handshake, 0x0303, &answer))
        .sends(Side::Server, [change(), data.clone()].concat())
        .sends(Side::Client, [change(), data].concat())
}

fn level(flow: &Flow) -> Level {
    flow.look().unwrap().level
}

#[test]
fn the_level_is_that_of_the_weakest_part() {
    let certificate = certificate();
    let ecdhe = |scheme| [certificate.clone(), exchange("x25519", scheme)];
    let with = [certificate.clone()];
    let cases = [
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", &ecdhe(0x0403)[..], Level::Acceptable),
        ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", &ecdhe(0x0403), Level::Acceptable),
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", &ecdhe(0x0203), Level::Weak),
        ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", &ecdhe(0x0403), Level::Weak),
        ("TLS_RSA_WITH_AES_128_GCM_SHA256", &with, Level::Weak),
        ("TLS_RSA_WITH_NULL_SHA256", &with, Level::Plaintext),
        ("TLS_DH_anon_WITH_AES_128_CBC_SHA", &[], Level::Unknown),
    ];
    for (suite, messages, expected) in cases {
        assert_eq!(level(&old(Version::Tls1_2, suite, messages)), expected, "{suite}");
    }
    let unsigned = [3, 0, 29, 1, 4];
    let anonymous = [Message::new(HandshakeType::SERVER_KEY_EXCHANGE, &unsigned).bytes];
    let suite = "TLS_ECDH_anon_WITH_AES_128_CBC_SHA";
    assert_eq!(level(&old(Version::Tls1_2, suite, &anonymous)), Level::Weak);
    let short = [certificate.clone(), exchange("secp160r1", 0x0403)];
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    assert_eq!(level(&old(Version::Tls1_2, suite, &short)), Level::Weak);
    let suite = "TLS_RSA_WITH_AES_128_CBC_SHA";
    assert_eq!(level(&old(Version::Ssl3, suite, &with)), Level::Weak);
    assert_eq!(level(&new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768"))), Level::Strong);
    assert_eq!(level(&new("TLS_AES_128_GCM_SHA256", &share("x25519"))), Level::Acceptable);
}

#[test]
fn integrity_without_encryption_is_plaintext() {
    let mut flow = new("c0b4", &share("x25519"));
    let hello = hello(Version::Tls1_3, &[]).suites([0xc0b4]);
    flow.0[0].1 = hello.record();
    assert_eq!(level(&flow), Level::Plaintext);
}

#[test]
fn resumption_without_a_key_share_has_no_forward_secrecy() {
    let psk = [0, 43, 0, 2, 3, 4, 0, 41, 0, 2, 0, 0];
    let seen = new("TLS_AES_128_GCM_SHA256", &psk).look().unwrap();
    let sealed = seen.sealed.unwrap();
    assert_eq!((sealed.forward_secrecy, sealed.resumed), (Some(false), Some(true)));
    assert_eq!(seen.level, Level::Acceptable);
}

#[test]
fn a_choice_that_was_not_offered_has_no_level() {
    for (suite, extensions, why) in [
        ("TLS_AES_256_GCM_SHA384", share("X25519MLKEM768"), "suite"),
        ("TLS_AES_128_GCM_SHA256", share("secp521r1"), "group"),
        ("TLS_AES_128_GCM_SHA256", vec![0, 43, 0, 2, 3, 4], "neither a key share"),
    ] {
        let seen = new(suite, &extensions).look().unwrap();
        assert_eq!(seen.level, Level::Unknown, "{why}");
        assert!(seen.evidence.contains(why), "{}", seen.evidence);
    }
}

#[test]
fn a_retry_request_is_followed_to_the_second_hellos() {
    let flow = new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768"));
    let mut retry =
        answer(0x0303, "TLS_AES_128_GCM_SHA256", &[0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0x11, 0xec]);
    let random = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"HelloRetryRequest");
    retry[6..38].copy_from_slice(random.as_ref());
    let mut again = flow.0[0].1.clone();
    again.splice(0..0, change());
    let retry = [record(ContentType::Handshake, 0x0303, &retry), change()].concat();
    let mut pieces = vec![flow.0[0].clone(), (Side::Server, retry), (Side::Client, again)];
    assert_eq!(level(&Flow(pieces.clone())), Level::Unknown, "only requested");
    pieces.extend_from_slice(&flow.0[1..]);
    let seen = Flow(pieces).look().unwrap();
    assert_eq!(seen.level, Level::Strong, "{}", seen.evidence);
}

#[test]
fn what_is_not_tls_after_a_hello_is_not_encrypted() {
    let hello = hello(Version::Tls1_3, &["TLS_AES_128_GCM_SHA256"]).record();
    let asked = Flow::default().sends(Side::Client, hello.clone());
    let http = asked.clone().sends(Side::Server, *b"HTTP/1.1 400 Bad Request\r\n").look().unwrap();
    assert_eq!((&*http.protocol, http.level), ("http", Level::Plaintext));
    let garbage = asked.clone().sends(Side::Server, [0x99; 80]).look().unwrap();
    assert_eq!((garbage.level, garbage.grade), (Level::Unknown, Grade::Unknown));
    let banner = Flow::default()
        .sends(Side::Server, *b"220 mail.example ESMTP\r\n")
        .sends(Side::Client, hello.clone());
    assert_eq!(banner.look(), None, "a plaintext protocol");

    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xee; 64]] {
        let mut flow = new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768"));
        assert_eq!(level(&flow), Level::Strong);
        flow.0[2].1 = garbage.to_vec();
        assert_eq!(level(&flow), Level::Unknown, "instead of the server's records");
        let mut flow = new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768"));
        flow.0[3].1 = garbage.to_vec();
        assert_eq!(level(&flow), Level::Unknown, "instead of the client's records");
    }
}

#[test]
fn a_refused_handshake_is_not_encrypted() {
    let hello = hello(Version::Tls1_2, &["TLS_RSA_WITH_AES_128_CBC_SHA"]).record();
    let alert = record(ContentType::Alert, 0x0303, &[2, 40]);
    let refused = Flow::default().sends(Side::Client, hello).sends(Side::Server, alert.clone());
    let seen = refused.look().unwrap();
    assert_eq!((seen.level, seen.grade), (Level::Unknown, Grade::Seen));
    assert!(seen.evidence.contains("handshake_failure"), "{}", seen.evidence);

    let mut flow = new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768"));
    flow.0[3].1 = alert;
    let seen = flow.look().unwrap();
    assert_eq!(seen.level, Level::Unknown, "the client rejected the certificate");
    let encrypted = record(ContentType::ApplicationData, 0x0303, &[7; 19]);
    flow.0[3].1 = encrypted;
    assert_eq!(level(&flow), Level::Unknown, "the same, encrypted");
    let mut flow = old(Version::Tls1_2, "TLS_RSA_WITH_NULL_SHA", &[certificate()]);
    flow.0[3].1 = record(ContentType::Alert, 0x0303, &[2, 51]);
    assert_eq!(level(&flow), Level::Unknown);
}

#[test]
fn the_clients_role_may_be_the_servers_of_the_flow() {
    let flow = new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768"));
    let turned = Flow(flow.0.into_iter().map(|(side, bytes)| (side.other(), bytes)).collect());
    assert_eq!(level(&turned), Level::Strong);
}

#[test]
fn ssl_2_is_weak_and_its_hello_may_lead_to_tls() {
    let hello = ssl2_client_hello(&[0x010080], [9; 16]);
    let body = [4, 0, 1, 0, 2, 0, 2, 0, 3, 0, 1, 0xde, 0xad, 1, 0, 0x80, 7];
    let reply = [&[0x80, body.len() as u8][..], &body].concat();
    let key = [0x80, 20, 2, 1, 0, 0x80, 0, 0, 0, 1, 0, 0, 7];
    let flow = Flow::default().sends(Side::Client, hello.clone()).sends(Side::Server, reply);
    assert_eq!(level(&flow), Level::Unknown);
    let seen = flow.sends(Side::Client, key).look().unwrap();
    assert_eq!(seen.level, Level::Weak);
    assert_eq!(seen.sealed.unwrap().suite.as_deref(), Some("SSL_CK_RC4_128_WITH_MD5"));

    let mut tls = old(Version::Tls1_0, "TLS_RSA_WITH_AES_128_CBC_SHA", &[certificate()]);
    tls.0[0].1 = ssl2_client_hello(&[0x00002f], [9; 16]);
    let seen = tls.look().unwrap();
    assert_eq!((seen.level, &*seen.sealed.unwrap().version), (Level::Weak, "TLS 1.0"));
}

/// A generator of numbers that look random (xorshift).
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

#[test]
fn random_bytes_are_not_encrypted() {
    let mut next = numbers(42);
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..200).map(|_| next() as u8).collect();
        let flow =
            Flow::default().sends(Side::Client, &bytes[..100]).sends(Side::Server, &bytes[100..]);
        let seen = flow.look();
        assert!(seen.is_none_or(|seen| seen.level == Level::Unknown));
    }
}

#[test]
fn a_changed_handshake_never_gets_a_better_level() {
    let flows = [
        new("TLS_AES_128_GCM_SHA256", &share("X25519MLKEM768")),
        old(
            Version::Tls1_2,
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            &[certificate(), exchange("x25519", 0x0403)],
        ),
        old(Version::Tls1_2, "TLS_RSA_WITH_AES_128_GCM_SHA256", &[certificate()]),
        old(Version::Tls1_2, "TLS_RSA_WITH_NULL_SHA", &[certificate()]),
        old(Version::Ssl3, "TLS_RSA_WITH_AES_128_CBC_SHA", &[certificate()]),
    ];
    let mut next = numbers(7);
    for flow in flows {
        let before = level(&flow);
        let mut worse = 0;
        for _ in 0..3000 {
            let mut changed = flow.clone();
            for _ in 0..1 + next() % 3 {
                let piece = next() as usize % changed.0.len();
                let bytes = &mut changed.0[piece].1;
                let at = next() as usize % bytes.len();
                match next() % 8 {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, next() as u8),
                    _ => bytes[at] = next() as u8,
                }
            }
            let after = changed.look().map_or(Level::Unknown, |seen| seen.level);
            // A hello that is text at its start may be answered in plaintext.
            assert!(after <= before || after == Level::Plaintext, "{before} {after} {changed:?}");
            worse += usize::from(after < before);
        }
        assert!(worse > 100, "the changes matter: {worse}");
    }
}

// ---- DTLS.

/// A record of DTLS 1.2.
fn datagram(content: ContentType, epoch: u16, fragment: &[u8]) -> Vec<u8> {
    let mut out = vec![content.code(), 0xfe, 0xfd];
    out.extend(epoch.to_be_bytes());
    out.extend([0; 6]);
    out.extend((fragment.len() as u16).to_be_bytes());
    out.extend(fragment);
    out
}

/// A message in pieces of this size, each in a record.
fn pieces(message: &[u8], number: u16, size: usize) -> Vec<Vec<u8>> {
    let mut offset = 0_u32;
    let mut out = Vec::new();
    for piece in message[4..].chunks(size) {
        let mut fragment = message[..4].to_vec();
        fragment.extend(number.to_be_bytes());
        fragment.extend(&offset.to_be_bytes()[1..]);
        fragment.extend(&(piece.len() as u32).to_be_bytes()[1..]);
        fragment.extend(piece);
        out.push(datagram(ContentType::Handshake, 0, &fragment));
        offset += piece.len() as u32;
    }
    out
}

fn look_at_datagrams(flow: &Flow) -> Option<Seen> {
    look_at(super::dtls, Transport::Udp, (40000, 4433), &flow.0)
}

/// A handshake of DTLS 1.2, whose messages are cut into pieces; `reversed` sends the pieces in the wrong order.
fn dtls_flow(suite: &str, srtp: &[u8], reversed: bool) -> Flow {
    let mut hello = hello(Version::Tls1_2, &[suite]).message();
    // The version of DTLS, and an empty cookie after the empty session ID.
    hello[4..6].copy_from_slice(&[0xfe, 0xfd]);
    hello.insert(39, 0);
    hello[3] += 1;
    let mut flow = Flow::default();
    for piece in pieces(&hello, 0, 500) {
        flow = flow.sends(Side::Client, piece);
    }
    let done = Message::new(HandshakeType::SERVER_HELLO_DONE, &[]).bytes;
    let messages = [answer(0xfefd, suite, srtp), certificate(), exchange("x25519", 0x0403)];
    let numbered = messages.iter().zip(0..);
    let mut records: Vec<_> = numbered.flat_map(|(m, n)| pieces(m, n, 100)).collect();
    let mut last = done[..4].to_vec();
    last.extend([0, 3, 0, 0, 0, 0, 0, 0]);
    records.push(datagram(ContentType::Handshake, 0, &last));
    if reversed {
        records.reverse();
    }
    for record in records {
        flow = flow.sends(Side::Server, record);
    }
    let finished = datagram(ContentType::Handshake, 1, &[0xa5; 48]);
    let changed = [datagram(ContentType::ChangeCipherSpec, 0, &[1]), finished].concat();
    flow.sends(Side::Client, changed.clone()).sends(Side::Server, changed)
}

#[test]
fn dtls_is_assembled_from_fragments_after_stun() {
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let srtp = [0, 14, 0, 5, 0, 2, 0, 1, 0];
    for reversed in [false, true] {
        let mut flow = dtls_flow(suite, &srtp, reversed);
        let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        stun.extend([7; 12]);
        flow.0.insert(0, (Side::Client, stun.clone()));
        flow.0.insert(1, (Side::Server, stun.clone()));
        let seen = look_at_datagrams(&flow).unwrap();
        assert_eq!((&*seen.protocol, seen.level), ("dtls", Level::Acceptable), "{}", seen.evidence);
        assert!(seen.evidence.ends_with("x25519, keys for SRTP"), "{}", seen.evidence);
        let sealed = seen.sealed.unwrap();
        assert_eq!(
            (&*sealed.version, &*sealed.certificate.unwrap().key),
            ("DTLS 1.2", "ecdsa-p256")
        );
        assert_eq!(look_at_datagrams(&Flow::default().sends(Side::Client, stun)), None);
    }
    let turned = dtls_flow(suite, &[], false);
    let turned = Flow(turned.0.into_iter().map(|(side, bytes)| (side.other(), bytes)).collect());
    assert_eq!(look_at_datagrams(&turned).unwrap().level, Level::Acceptable);
}

#[test]
fn dtls_without_encryption_or_without_an_end_is_not_encrypted() {
    let null = dtls_flow("TLS_ECDHE_ECDSA_WITH_NULL_SHA", &[], false);
    assert_eq!(look_at_datagrams(&null).unwrap().level, Level::Plaintext);
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let null = dtls_flow(suite, &[0, 14, 0, 5, 0, 2, 0, 5, 0], false);
    assert_eq!(
        look_at_datagrams(&null).unwrap().level,
        Level::Plaintext,
        "SRTP without encryption"
    );
    let flow = dtls_flow(suite, &[], false);
    for n in 1..flow.0.len() {
        let level = look_at_datagrams(&Flow(flow.0[..n].to_vec())).map(|seen| seen.level);
        assert_eq!(level, Some(Level::Unknown), "{n} of {}", flow.0.len());
    }
    let mut refused = flow;
    let last = refused.0.len() - 1;
    refused.0[last].1 = datagram(ContentType::Alert, 0, &[2, 40]);
    assert_eq!(look_at_datagrams(&refused).unwrap().level, Level::Unknown);
}
