//! The fuzz targets: every parser of bytes that a peer or an operator supplies. Each function takes any bytes. It
//! panics if the parser panics or if one of the listed properties does not hold.

mod archive;
mod release;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use rustls_pki_types::{CertificateDer, UnixTime};
use wiretight::acme_server::jws::{Jwk, Sender, Signed};
use wiretight::authority::offers::Announcer;
use wiretight::config::Config;
use wiretight::control::{self, Frames, FromAuthority, FromNode, FromStranger, Message};
use wiretight::log::monitor::expect::Expected;
use wiretight::log::witness::request::Request as AddCheckpoint;
use wiretight::web::client::Url;
use wiretight_keys::claims::{DAY, MeshPeriod};
use wiretight_keys::logged::Entry;
use wiretight_keys::web::is_host_name;
use wiretight_keys::{Csr, JoinToken, Leaf, Logged, Name, Role, TrustBundle, WebCsr};
use wiretight_proxy::edge::proxy_protocol::{self, Header};
use wiretight_proxy::edge::quic_tls;
use wiretight_proxy::edge::strict::Framing;
use wiretight_proxy::intercept::rules::{Mode, Rules};
use wiretight_proxy::network::HostPort;
use wiretight_proxy::record::{Direction, RecordError, Records, Secrets};
use wiretight_proxy::registry::{
    Host, MAX_ALLOWED, MAX_INSTANCES, MAX_PORTS, MAX_PORTS_OF_NODE, MAX_REDIRECTED, check_address,
};
use wiretight_proxy::wire::{Cutter, Event, Frame, HEADER, MAX_OPEN, Open, WireError};
use wiretight_proxy::{Mesh, Registry};
use wiretight_scan::certificate::{Presented, Roots, Stores, examine};
use wiretight_scan::parse::quic::{self, Crypto, InitialKeys, Packet};
use wiretight_scan::parse::starttls::{self as before_tls, Parsed};
use wiretight_scan::parse::{self, ClientHello, Handshakes, NewSessionTicket, ServerHello};
use wiretight_tlog::tile::{Kind, Tile};
use wiretight_tlog::{Hash, LogKey, Policy, Proof, Signature, SignedCheckpoint, WitnessKey};

pub use archive::archive;
pub use release::release;
pub use watch::{capture, flows, look, netlink};

/// The frames between relays. The first byte decides how the rest is cut into chunks.
///
/// Properties checked: the result does not depend on the cuts; a header is the same after it is written and read
/// again; and so is an [`Open`].
pub fn frames(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else { return };
    let whole = cut([stream]);
    assert_eq!(cut(chunks(stream, *how)), whole, "chunks by {how}");
    for (frame, body) in &whole.frames {
        assert_eq!(Frame::parse(frame.header()), Ok(*frame));
        if let Frame::Open(len) = frame
            && body.len() == *len
            && let Ok(open) = Open::parse(body)
        {
            assert_eq!(Open::parse(&open.encode()[HEADER..]), Ok(open));
        }
    }
    // Parsed without a frame header, so only the body's own limit applies.
    assert!(Open::parse(stream).is_err() || stream.len() <= MAX_OPEN);
}

/// The frames of a stream, each with the part of its body that was present, and how the stream ended.
#[derive(Debug, PartialEq, Eq)]
struct Stream {
    frames: Vec<(Frame, Vec<u8>)>,
    error: Option<WireError>,
    body_left: usize,
    between_frames: bool,
}

fn cut<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Stream {
    let mut cutter = Cutter::default();
    let (mut frames, mut error): (Vec<(Frame, Vec<u8>)>, _) = (Vec::new(), None);
    'stream: for mut chunk in chunks {
        loop {
            match cutter.next(&mut chunk) {
                Ok(Some(Event::Frame(frame))) => frames.push((frame, Vec::new())),
                Ok(Some(Event::Body(part))) => {
                    assert!(!part.is_empty());
                    frames.last_mut().expect("a body follows its frame").1.extend_from_slice(part);
                }
                Ok(None) => break,
                Err(e) => {
                    error = Some(e);
                    break 'stream;
                }
            }
        }
        assert!(chunk.is_empty(), "None means that all input was consumed");
    }
    let (body_left, between_frames) = (cutter.body_left(), cutter.between_frames());
    Stream { frames, error, body_left, between_frames }
}

/// Cuts into pieces of 1 to 16 bytes; `how` decides where.
fn chunks(stream: &[u8], how: u8) -> Vec<&[u8]> {
    let (mut rest, mut chunks, mut state) = (stream, Vec::new(), u32::from(how) | 0x100);
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let longest = if how < 16 { usize::from(how) } else { (state >> 28) as usize };
        let (chunk, tail) = rest.split_at(longest.clamp(1, rest.len()));
        chunks.push(chunk);
        rest = tail;
    }
    chunks
}

/// TLS records of a peer that has the keys, so their decryption succeeds. The first byte decides how the stream is
/// cut into chunks, the second whether the peer is the server. The records follow, each as type, length and content;
/// type 255 means bytes that are sent unencrypted, as they are.
///
/// Properties checked: the data read and the verdict do not depend on the cuts; no more bytes come out than went in;
/// after an error, every later call returns the same error.
pub fn records(data: &[u8]) {
    let Some((&[how, is_server], mut script)) = data.split_first_chunk() else { return };
    let is_server = is_server & 1 == 1;
    let (mut stream, mut number) = (Vec::new(), 0);
    while let Some((&[kind, len], rest)) = script.split_first_chunk() {
        let (body, rest) = rest.split_at(usize::from(len).min(rest.len()));
        script = rest;
        match kind {
            255 => stream.extend_from_slice(body),
            _ => stream.extend_from_slice(&sealed(&mut number, kind, body)),
        }
    }
    let whole = opened([&stream[..]], is_server);
    assert_eq!(opened(chunks(&stream, how), is_server), whole, "chunks by {how}");
    assert!(whole.0.len() <= stream.len());
}

/// One key for everything, also after key updates.
const KEY: [u8; 32] = [7; 32];
const IV: [u8; NONCE_LEN] = [9; NONCE_LEN];

struct SameKey {
    peer_is_server: bool,
}

impl SameKey {
    fn keys() -> ConnectionTrafficSecrets {
        ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from(KEY), iv: Iv::new(IV) }
    }
}

impl Secrets for SameKey {
    fn next(&mut self, _: Direction) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(SameKey::keys())
    }

    fn peer_is_server(&self) -> bool {
        self.peer_is_server
    }
}

fn sealed(number: &mut u64, kind: u8, body: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("a key of 32 bytes"));
    let mut nonce = IV;
    nonce[4..].iter_mut().zip(number.to_be_bytes()).for_each(|(byte, n)| *byte ^= n);
    *number = if body.starts_with(&[24, 0, 0, 1]) { 0 } else { *number + 1 };
    let mut inner = [body, &[kind]].concat();
    let [high, low] = (inner.len() as u16 + 16).to_be_bytes();
    let header = [23, 3, 3, high, low];
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(header),
        &mut inner,
    )
    .expect("a short record");
    [&header[..], &inner].concat()
}

/// The decrypted data, and how the stream ends.
fn opened<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    peer_is_server: bool,
) -> (Vec<u8>, Result<bool, RecordError>) {
    let keys = ExtractedSecrets { tx: (0, SameKey::keys()), rx: (0, SameKey::keys()) };
    let mut records = Records::new(keys, Box::new(SameKey { peer_is_server })).expect("keys");
    let (mut plaintext, mut waiting) = (Vec::new(), Vec::new());
    for chunk in chunks {
        waiting.extend_from_slice(chunk);
        loop {
            // Room for at least one record, so that the data before an error is read.
            let mut out = vec![0; 300];
            match records.open(&waiting, &mut out) {
                Ok((0, _)) => break,
                Ok((used, filled)) => {
                    plaintext.extend_from_slice(&out[..filled]);
                    waiting.drain(..used);
                }
                Err(error) => {
                    assert_eq!(records.open(&[], &mut []), Err(error), "forgotten");
                    return (plaintext, Err(error));
                }
            }
        }
    }
    (plaintext, Ok(records.has_ended()))
}

/// HTTP/1 requests as the edge checks them. The first byte decides how the rest is cut into chunks.
///
/// Properties checked: the bytes released and the verdict do not depend on the cuts; only bytes that were checked are
/// released; and bytes that were released are released again when they are checked alone.
pub fn http(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else { return };
    let feed = |chunks: Vec<&[u8]>| {
        let (mut framing, mut through, mut looked) = (Framing::default(), 0, 0);
        for mut chunk in chunks {
            while !chunk.is_empty() {
                let fed = framing.feed(chunk);
                looked += fed.used;
                through += fed.release;
                assert!(through <= looked);
                if fed.refused.is_some() {
                    return (through, fed.refused);
                }
                chunk = &chunk[fed.used..];
                // As if the program had declined to switch protocols.
                framing.resume();
            }
        }
        (through, None)
    };
    let (through, refused) = feed(vec![stream]);
    assert_eq!(feed(chunks(stream, *how)), (through, refused), "chunks by {how}");
    assert_eq!(feed(vec![&stream[..through]]), (through, None));
}

/// The PROXY protocol header at the start of a connection.
///
/// Properties checked: the parser asks for more bytes only below the maximum length; and a header that was found is
/// found again when exactly its bytes are parsed.
pub fn proxy(data: &[u8]) {
    match proxy_protocol::parse(data) {
        Ok(Header::Partial) => assert!(data.len() < proxy_protocol::MAX_V2),
        Ok(Header::Whole { len, from }) => {
            assert!((1..=data.len()).contains(&len));
            let whole = Ok(Header::Whole { len, from });
            assert_eq!(proxy_protocol::parse(&data[..len]), whole);
            assert_eq!(proxy_protocol::parse(&data[..len - 1]), Ok(Header::Partial));
        }
        Err(_) => {}
    }
}

/// The first handshake message of a QUIC connection, and the key share group that we choose from it.
///
/// Properties checked: neither parser panics; a server name is found only in the complete message.
pub fn hello(data: &[u8]) {
    let _ = quic_tls::group(data);
    if quic_tls::server_name(data).is_some() {
        assert_eq!(quic_tls::server_name(&data[..data.len() - 1]), None);
    }
}

/// What servers send before TLS, parsed by each protocol that supports STARTTLS.
///
/// Properties checked: a message lies within the bytes received, and stays the same when more bytes follow; the part
/// that is shown is short, printable ASCII.
pub fn starttls(data: &[u8]) {
    fn whole<T: PartialEq + std::fmt::Debug>(data: &[u8], parse: impl Fn(&[u8]) -> Parsed<T>) {
        if let Parsed::Whole(message, len) = parse(data) {
            assert!((1..=data.len()).contains(&len));
            assert_eq!(parse(&data[..len]), Parsed::Whole(message, len));
        }
    }
    whole(data, |data| match before_tls::line(data) {
        Parsed::Whole(text, len) => Parsed::Whole(text.to_vec(), len),
        Parsed::Partial => Parsed::Partial,
        Parsed::Not(why) => Parsed::Not(why),
    });
    whole(data, before_tls::reply);
    whole(data, before_tls::xmpp);
    whole(data, before_tls::ldap);
    whole(data, before_tls::mysql);
    whole(data, before_tls::tds_prelogin);
    whole(data, before_tls::rdp);
    whole(data, before_tls::telnet);
    assert!(!(before_tls::is_alert(data) && before_tls::is_handshake(data)));
    let text = before_tls::shown(data);
    assert!(text.len() <= 503 && text.bytes().all(|b| (b' '..=b'~').contains(&b)), "{text}");
    let text = before_tls::printable(data);
    let _ = before_tls::listed(text.split(' '), "STARTTLS");
    let _ = before_tls::is_painted_over(&text);
}

/// What a scanned server sends. The first byte decides how the rest is cut into chunks. The rest is parsed as a
/// stream of records that contain handshake messages; as a handshake message; as the body of one; and as an SSL 2.0
/// answer.
///
/// Properties checked: the result does not depend on the cuts; a ClientHello that was parsed is the same after it is
/// written and parsed again; and no more bytes come out than went in.
pub fn scan(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else { return };
    let whole = flight([stream]);
    assert_eq!(flight(chunks(stream, *how)), whole, "chunks by {how}");
    for message in &whole.1 {
        scan_body(message.body());
    }
    scan_body(stream);
    for message in [stream, stream.get(5..).unwrap_or_default()] {
        if let Ok(hello) = ClientHello::parse(message) {
            assert_eq!(ClientHello::parse(&hello.message()), Ok(hello));
        }
    }
    // An answer that was found is found again when more bytes follow.
    let answer = parse::ssl2_reply(stream);
    if let Ok(Some(_)) = answer {
        assert_eq!(parse::ssl2_reply(&[stream, b"more"].concat()), answer);
    }
    let _ = parse::alert(stream);
}

/// The records with the offset where each ends, the messages in them, and whether records and messages ended without
/// an error.
fn flight<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<usize>, Vec<parse::Message>, [bool; 2]) {
    let (mut buffer, mut handshakes) = (Vec::new(), Handshakes::default());
    let (mut ends, mut messages, mut sound) = (Vec::new(), Vec::new(), [true; 2]);
    let mut end = 0;
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        while sound[0] {
            match parse::next_record(&buffer) {
                Ok(None) => break,
                Err(_) => sound[0] = false,
                Ok(Some((record, length))) => {
                    assert!(record.fragment.len() <= parse::MAX_FRAGMENT);
                    assert_eq!(length, record.fragment.len() + 5);
                    if record.content == parse::ContentType::Handshake && sound[1] {
                        handshakes.push(record.fragment);
                        loop {
                            match handshakes.message() {
                                Ok(Some(message)) => messages.push(message),
                                Ok(None) => break,
                                Err(_) => {
                                    sound[1] = false;
                                    break;
                                }
                            }
                        }
                    }
                    end += length;
                    ends.push(end);
                    buffer.drain(..length);
                }
            }
        }
    }
    (ends, messages, sound)
}

/// Parses the body of a handshake message as every message type.
fn scan_body(body: &[u8]) {
    if let Ok(hello) = ServerHello::parse(body) {
        let _ = (hello.is_retry(), hello.version(), hello.key_share(), hello.alpn());
    }
    if let Ok(chain) = parse::certificates(body) {
        assert!(chain.iter().map(Vec::len).sum::<usize>() <= body.len());
    }
    if let Ok(chain) = parse::certificates_tls1_3(body) {
        assert!(chain.iter().map(|entry| entry.certificate.len()).sum::<usize>() <= body.len());
    }
    if let Ok(response) = parse::certificate_status(body) {
        assert!(response.len() <= body.len());
    }
    for elliptic in [true, false] {
        for (signed, version) in [(true, 0x0303), (true, 0x0301), (false, 0x0303)] {
            let read = parse::ServerKeyExchange::parse(body, elliptic, signed, version);
            assert!(read.is_err() || read.is_ok_and(|read| body.starts_with(&read.parameters)));
        }
    }
    let _ = parse::CertificateRequest::parse(body, 0x0303);
    let _ = parse::CertificateRequest::parse(body, 0x0301);
    let _ = parse::CertificateRequest::parse_tls1_3(body);
    let _ = NewSessionTicket::parse(body);
    let _ = NewSessionTicket::parse_tls1_3(body);
    let _ = parse::extensions(body);
}

/// What a scanned QUIC server sends: as a datagram, and as the payload of an Initial packet from a peer that has the
/// keys. The first byte decides how the rest is cut into CRYPTO frames.
///
/// Properties checked: the iteration over the packets of a datagram ends; a packet that was encrypted is decrypted;
/// and the handshake does not depend on the order of its frames and never exceeds its length limit.
pub fn quic(data: &[u8]) {
    let keys = InitialKeys::new(b"original");
    let (mut rest, mut packets) = (data, 0);
    while !rest.is_empty() {
        let Ok((packet, after)) = quic::packet(rest) else { break };
        assert!(after.len() < rest.len() && rest.ends_with(after));
        match packet {
            Packet::Initial(initial) => {
                for largest in [None, Some(0), Some(u64::MAX)] {
                    if let Some((_, payload)) = initial.open(&keys.server, largest) {
                        handshake(&payload);
                    }
                }
            }
            Packet::Retry(retry) => {
                let _ = retry.verify(retry.source);
            }
            Packet::VersionNegotiation(found) => assert!(found.versions.len() * 4 <= rest.len()),
            Packet::Other => {}
        }
        rest = after;
        packets += 1;
    }
    assert!(packets <= data.len());

    handshake(data);
    let Some((how, stream)) = data.split_first() else { return };
    let id = &stream[..stream.len().min(usize::from(how % 21))];
    if data.len() <= 2000 {
        let number = u32::from(*how) << 16;
        let header = quic::Header { destination: id, source: id, token: id, number };
        let sealed = quic::initial(&keys.client, header, data);
        let Ok((Packet::Initial(initial), [])) = quic::packet(&sealed) else {
            panic!("our own packet was not recognized")
        };
        assert_eq!((initial.destination, initial.source, initial.token), (id, id, id));
        let (opened, payload) = initial.open(&keys.client, None).expect("our own packet");
        assert!(opened == u64::from(number) && payload.starts_with(data));
        assert!(payload[data.len()..].iter().all(|byte| *byte == 0));
        assert!(initial.open(&keys.server, None).is_none());
    }

    // At most as many pieces as may be buffered.
    let stream = &stream[..stream.len().min(64)];
    let mut pieces: Vec<_> = Vec::new();
    let mut offset = 0;
    for piece in chunks(stream, *how) {
        pieces.push((offset, piece));
        offset += piece.len() as u64;
    }
    let half = pieces.len() / 2;
    pieces.rotate_left(half);
    pieces.reverse();
    let (mut crypto, mut read) = (Crypto::default(), Vec::new());
    for (offset, piece) in pieces {
        crypto.push(offset, piece).expect("a short handshake");
        read.extend(crypto.read());
    }
    assert_eq!(read, stream);
}

/// The frames of an Initial packet, and the handshake data in them.
fn handshake(payload: &[u8]) {
    let (frames, _) = quic::frames(payload);
    assert!(frames.len() <= payload.len());
    let (mut crypto, mut read) = (Crypto::default(), 0);
    for frame in &frames {
        if let quic::Frame::Crypto(offset, data) = frame
            && crypto.push(*offset, data).is_ok()
        {
            read += crypto.read().len();
        }
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        assert_eq!(quic::frames(&bytes), (vec![frame.clone()], Ok(())));
    }
    assert!(read as u64 <= quic::MAX_CRYPTO && read <= payload.len());
}

/// The configuration file.
///
/// Properties checked: a rejected file has at least one error; each error has a line number of the file, a problem
/// and advice, and is one line of text; and the errors are sorted by line.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Err(errors) = Config::parse(Path::new("wiretight.toml"), text) else { return };
    let errors = errors.as_slice();
    assert!(!errors.is_empty());
    assert!(errors.is_sorted_by_key(|e| e.line));
    let lines = text.split('\n').count();
    for error in errors {
        assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "{error}");
        assert!(!error.problem.is_empty() && !error.advice.is_empty(), "{error}");
        assert!(!error.to_string().contains(|c: char| c.is_control()), "{error:?}");
    }
}

/// A join token: as it is, and as the JSON of a token with a correct checksum.
///
/// Property checked: a token that was read is the same after it is written and read again.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let sum = wiretight_keys::token::secret_hash(text); // SHA-256 in hex, of any text
    let sum = u32::from_str_radix(&sum[..8], 16).expect("8 hex digits");
    let framed = [data, &sum.to_be_bytes()].concat();
    for text in [text.to_owned(), format!("wtj1_{}", URL_SAFE_NO_PAD.encode(framed))] {
        let Ok(token) = JoinToken::decode(&text) else { continue };
        let written = token.encode();
        // A hand-written text may be shorter than the text that we write for it, and ours may then exceed the limit
        // for reading.
        if written.len() <= wiretight_keys::token::MAX_LEN {
            let again = JoinToken::decode(&written).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(again.encode(), written);
        }
    }
}

/// The messages between a node and the authority, in each direction. The first byte decides how the rest is cut into
/// chunks.
///
/// Properties checked: the result does not depend on the cuts; a message that was read is the same after it is
/// written and read again; and a valid report of a node stays valid when its rows are removed.
pub fn control(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else { return };
    messages::<FromStranger>(stream, *how);
    messages::<FromNode>(stream, *how);
    messages::<FromAuthority>(stream, *how);
    let json = stream.get(4..).unwrap_or_default();
    if let Ok(FromNode::Report { mut report, .. }) = control::decode(json)
        && report.check().is_ok()
    {
        report.count_unreadable();
        assert_eq!(report.without_rows().check(), Ok(()));
    }
}

/// What a member announces, as the authority checks it: JSON of a message. The first byte decides from which address
/// the member connects and which addresses it may announce.
///
/// Properties checked: each accepted record is of a service that the member may announce, at an address of the
/// member, and within the limits; the accepted records are all accepted when they are checked again; and it reports
/// when it leaves out an entry.
pub fn announcement(data: &[u8]) {
    let Some((how, json)) = data.split_first() else { return };
    let (FromNode::Hello { instances, .. } | FromNode::Announce { instances }) =
        (match control::decode(json) {
            Ok(message) => message,
            Err(_) => return,
        })
    else {
        return;
    };
    let name = |s: &str| s.parse::<Name>().expect("a name");
    let granted: BTreeSet<Host> = match how & 1 {
        0 => BTreeSet::new(),
        _ => ["192.0.2.77", "db.example.org"].map(|h| h.parse().expect("a host")).into(),
    };
    let announcer = Announcer {
        node: &name("bad"),
        services: &["db", "web"].map(name).into(),
        // Addresses that no machine has, so that the result is the same on every machine.
        from: if how & 2 == 0 { "192.0.2.5" } else { "2001:db8::5" }.parse().expect("an address"),
        addresses: &granted,
        is_own: how & 4 != 0,
    };
    let announced = instances.good.len();
    let (taken, denial) = announcer.admit(instances.clone());
    assert!(taken.len() <= announced.min(MAX_INSTANCES));
    assert!(instances.unreadable == 0 || denial.is_some());
    let mut ports = 0;
    for offer in &taken {
        assert!(announcer.services.contains(&offer.service));
        assert_eq!(check_address(&offer.addr), Ok(()));
        let host = Host::from(&offer.addr);
        let own = Host::from(&HostPort::from(SocketAddr::new(announcer.from, 1)));
        assert!(announcer.is_own || host == own || granted.contains(&host), "{}", offer.addr);
        assert!(offer.ports.len() <= MAX_PORTS && !offer.ports.contains(&0));
        assert!(offer.allow.len() <= MAX_ALLOWED);
        ports += offer.ports.len();
    }
    assert!(ports <= MAX_PORTS_OF_NODE);
    let (again, denial) = announcer.admit(taken.clone().into());
    assert!(again == taken && denial.is_none(), "{denial:?}");
}

/// A state that an authority pushes, as a node handles it: JSON of a message.
///
/// Properties checked: for every registry, the firewall rules that result can be applied, and so can the stricter
/// rules that replace them for a time; cleaning up the registry a second time removes nothing.
pub fn pushed(data: &[u8]) {
    let Ok(FromAuthority::State(state)) = control::decode(data) else { return };
    let domain = "example.org".parse().expect("a trust domain");
    let _ = state.trust_bundle(&domain);
    let mesh = Mesh::new(domain);
    let total: usize = state.registry.services.values().map(Vec::len).sum();
    mesh.set_registry(state.registry);
    let registry = mesh.registry();
    let left: usize = registry.services.values().map(Vec::len).sum();
    assert!(left <= total);
    assert!(Registry::clone(&registry).tidy().is_empty(), "the rest is valid");
    let redirected = registry.services.values().flatten().map(|i| i.ports.len()).sum::<usize>();
    assert!(redirected <= MAX_REDIRECTED);
    let own = Rules {
        mode: Mode::Strict,
        peers: BTreeMap::new(),
        mark: 1,
        port: 7491,
        listens: [7432].into(),
        taken: BTreeSet::new(),
        protected: vec!["10.0.0.0/24".parse().expect("a network")],
        passes: Vec::new(),
        resolvers: Vec::new(),
        management: vec![22],
        cgroups: Vec::new(),
        transparent: BTreeSet::new(),
    };
    let (rules, _) = own.clone().for_mesh(&"n".parse().expect("a name"), &[], &mesh);
    assert_eq!(rules.check(), Ok(()));
    for replacement in
        [rules.no_looser_than(&own), own.no_looser_than(&rules), rules.only_stopping()]
    {
        assert_eq!(replacement.check(), Ok(()));
        let missing = rules
            .protected
            .iter()
            .find(|n| !replacement.protected.iter().any(|wider| wider.contains(n.first())));
        assert_eq!(missing, None, "it is less strict");
    }
}

fn messages<M: Message>(stream: &[u8], how: u8) {
    let whole = read::<M>([stream]);
    assert!(read::<M>(chunks(stream, how)) == whole, "chunks by {how}");
    // Also the JSON alone, so that a wrong length field does not keep the parser from it.
    if let Ok(message) = control::decode::<M>(stream) {
        written_again(&message);
    }
}

/// Each message as it is written again, and the error that ended the stream.
fn read<'a, M: Message>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Option<Vec<u8>>>, Option<String>) {
    let (mut frames, mut messages) = (Frames::default(), Vec::new());
    for chunk in chunks {
        frames.push(chunk);
        loop {
            match frames.take::<M>() {
                Ok(Some(message)) => messages.push(written_again(&message)),
                Ok(None) => break,
                Err(e) => return (messages, Some(e.to_string())),
            }
        }
    }
    (messages, None)
}

/// `None` if the message is too long to write.
fn written_again<M: Message>(message: &M) -> Option<Vec<u8>> {
    let frame = control::encode(message).ok()?;
    let again: M = control::decode(&frame[HEADER..]).expect("what we write, we read");
    assert!(control::encode(&again).expect("it was written once") == frame);
    Some(frame.to_vec())
}

/// Seconds since 1970; the certificates of seeds/certificate are valid at this time.
pub const NOW: u64 = 1_790_000_000;

/// What ACME clients send: signed requests, and certificate requests.
///
/// Properties checked: a certificate request that was accepted is within the limits; a key is the same after it was
/// stored; and names are sorted and are host names.
pub fn acme(data: &[u8]) {
    if let Ok(signed) = Signed::parse(data)
        && let Sender::Key(key) = &signed.from
    {
        let kept = serde_json::to_vec(key).expect("a key encodes");
        assert_eq!(serde_json::from_slice::<Jwk>(&kept).ok().as_ref(), Some(key));
        assert_eq!(key.thumbprint().len(), 43);
        let _ = signed.verify(key);
    }
    if let Ok(csr) = WebCsr::parse(data) {
        assert!(csr.names().is_sorted() && csr.names().iter().all(|n| is_host_name(n)));
        assert!(!csr.names().is_empty() && csr.names().len() <= WebCsr::MAX_NAMES);
    }
}

/// What logs, witnesses and submitters send: the body of `add-checkpoint`, proofs, checkpoints, policies, keys, paths
/// of tiles, tiles, and entries; and the list of expected keys.
///
/// Properties checked: each value has exactly one encoding, so a value that was read is written with the same bytes;
/// sizes are within their limits; and a tile has as many hashes or entries as its name says.
pub fn tlog(data: &[u8]) {
    match Entry::parse(data) {
        Ok(Entry::Period(period)) => {
            assert_eq!(period.entry(), data);
            let day = MeshPeriod::day(period.start / DAY * DAY, std::slice::from_ref(&*period));
            assert!(MeshPeriod::parse(&day.entry()[2..]).is_ok());
        }
        Ok(Entry::Publication(publication)) => assert_eq!(publication.entry(), data),
        _ => {}
    }
    if let Ok(logged) = Logged::from_certificate(&CertificateDer::from(data)) {
        // If the stricter parser also accepts it, it finds the same index.
        let serial = wiretight_keys::x509::serial(data);
        assert!(serial.is_none_or(|serial| serial.index() == logged.proof.index));
    }
    for tile in [1, 2, 256].map(|width| Tile { kind: Kind::Entries, index: 0, width }) {
        if let Ok(entries) = tile.entries(data) {
            assert_eq!(entries.len(), usize::from(tile.width));
        }
        let hashes = Tile { kind: Kind::Hashes { level: 0 }, ..tile }.hashes(data);
        assert!(hashes.is_err() || data.len() == 32 * usize::from(tile.width));
    }
    let Ok(text) = std::str::from_utf8(data) else {
        assert!(AddCheckpoint::parse(data).is_err());
        return;
    };
    if let Ok(request) = AddCheckpoint::parse(data) {
        assert_eq!(request.to_string(), text);
        assert!(request.proof.len() <= 63);
    }
    if let Ok(proof) = Proof::parse(text) {
        assert_eq!(proof.to_string(), text);
        let nobody = Policy::self_attested(log_key());
        assert!(proof.verify(&nobody, Hash::leaf(b"")).is_err(), "nobody has signed it");
    }
    if let Ok(signed) = SignedCheckpoint::parse(text) {
        assert_eq!(signed.to_string(), text);
        assert_eq!(signed.verified_by(&log_key()), None, "nobody has signed it");
    }
    if let Some(tile) = Tile::parse(text) {
        assert_eq!(tile.path(), text);
        assert!((1..=256).contains(&tile.width) && !text.contains(".."));
    }
    if let Ok(policy) = Policy::parse(text) {
        assert_eq!(Policy::parse(policy.to_string()).as_ref(), Ok(&policy));
        let all = policy.is_quorum(|_| true);
        assert!(all && policy.is_in_every_quorum(|_| true));
        assert_eq!(policy.is_quorum(|_| false), !policy.wants_witnesses());
        for log in policy.logs() {
            assert_eq!(LogKey::parse(&log.key.to_string()).as_ref(), Ok(&log.key));
        }
    }
    if let Ok(signature) = Signature::parse(text) {
        assert_eq!(signature.to_string(), text);
    }
    let _ = (LogKey::parse(text), WitnessKey::parse(text), Expected::parse(text));
    if let Ok(url) = Url::parse(text) {
        assert_eq!(Url::parse(&url.to_string()).as_ref(), Ok(&url));
    }
}

/// The key of Go's checksum database; no input is signed with it.
fn log_key() -> LogKey {
    let vkey = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
    LogKey::parse(vkey).expect("a vkey")
}

/// Certificates and certificate requests, as DER, in each position of a chain where a peer can place them.
///
/// Properties checked: no certificate is accepted except exactly the bytes that our authority signed; and the peer's
/// identity is the one in the certificate.
pub fn certificate(data: &[u8]) {
    let genuine = include_bytes!("../seeds/certificate/leaf.der").as_slice();
    let intermediate = include_bytes!("../seeds/certificate/intermediate.der").as_slice();
    let root = include_bytes!("../seeds/certificate/root.der").as_slice();
    let bundle = |root: &[u8]| {
        let domain = "example.org".parse().expect("a trust domain");
        TrustBundle::new(domain, vec![CertificateDer::from(root.to_vec())], Default::default())
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let verify = |bundle: &TrustBundle, chain: &[&[u8]], role| {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        bundle.verify(&chain, role, now)
    };

    let leaf = Leaf::parse(data);
    let _ = Csr::parse(data);
    let _ = wiretight_keys::x509::not_after(data);
    if let Ok(web) = wiretight_keys::WebLeaf::parse(&CertificateDer::from(data)) {
        let _ = web.is_for("example.org");
    }
    // As the certificate of a client of a site, and as that of a server that must answer a challenge for its name.
    let der = CertificateDer::from(data);
    let _ = wiretight_keys::web::ClientLeaf::parse(&der);
    let _ = wiretight_keys::web::spki(&der);
    assert!(
        !wiretight_keys::web::answers_challenge(&der, "example.org", &[7; 32]),
        "accepted a guess"
    );
    let ours = bundle(root).expect("our root is a certificate");
    for role in [Role::Server, Role::Client] {
        if let Ok(peer) = verify(&ours, &[data, intermediate], role) {
            assert!(data == genuine, "a forged leaf was accepted");
            let leaf = leaf.as_ref().expect("it was parsed to be verified");
            assert_eq!((peer.id(), peer.serial()), (&leaf.id, &leaf.serial));
        }
        if verify(&ours, &[genuine, data], role).is_ok() {
            assert!(data == intermediate, "a forged intermediate was accepted");
        }
        // Together with the genuine certificates, and alone.
        let _ = verify(&ours, &[genuine, data, intermediate], role);
        let _ = verify(&ours, &[data], role);
    }
    if let Ok(theirs) = bundle(data) {
        let _ = verify(&theirs, &[genuine, intermediate], Role::Client);
        let _ = verify(&theirs, &[data], Role::Client);
    }
}

/// What servers present to a scan. The first byte selects the time: that of the web's root or that of the mesh's.
/// Then come certificates (0), OCSP responses (1) and SCT lists (2) of one ClientHello, and the start of the next
/// (3), each with its length.
///
/// Properties checked: the certificates are described, whatever the bytes are, in text that is safe to print to a
/// terminal; and only leaves that the owners of the roots signed are trusted.
pub fn chain(data: &[u8]) {
    let Some((&time, mut rest)) = data.split_first() else { return };
    let mut presented = vec![Presented { when: "default".to_owned(), ..Presented::default() }];
    while let [kind, high, low, after @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (bytes, after) = after.split_at(len);
        rest = after;
        let hello = presented.last_mut().expect("there is always one");
        match kind % 4 {
            0 => hello.certificates.push(bytes.to_vec()),
            1 => hello.ocsp = Some(bytes.to_vec()),
            2 => hello.scts = Some(bytes.to_vec()),
            _ => presented.push(Presented { when: "next".to_owned(), ..Presented::default() }),
        }
    }
    let (web, web_leaf) =
        (include_bytes!("../seeds/chain/root.der"), include_bytes!("../seeds/chain/leaf.der"));
    let (mesh, mesh_leaf) = (
        include_bytes!("../seeds/certificate/root.der"),
        include_bytes!("../seeds/certificate/leaf.der"),
    );
    let roots = |der: &[u8]| Roots::from_der([CertificateDer::from(der.to_vec())]).expect("a root");
    let stores = Stores { roots: Some(roots(web)), mesh: Some(roots(mesh)) };
    let seconds = if time == 0 { 1_800_000_000 } else { NOW };
    let now = jiff::Timestamp::from_second(seconds.cast_signed()).expect("a time");
    let host = "www.example.org".parse().expect("a name");
    let examined = examine(&presented, Some(&host), now, &stores);

    let leaves = || presented.iter().filter_map(|hello| hello.certificates.first());
    for (id, root, leaf) in [
        ("certificate.trusted", web.as_slice(), web_leaf.as_slice()),
        ("certificate.trusted_by_mesh", mesh, mesh_leaf),
    ] {
        if examined.facts.yes(id) {
            assert!(
                leaves().all(|der| der == root || der == leaf),
                "{id}: a forged leaf was accepted"
            );
        }
    }
    let text = |text: &str| {
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.len() < 20_000, "{} bytes", text.len());
    };
    for (_, fact) in examined.facts.iter() {
        text(&fact.evidence);
    }
    for chain in &examined.chains {
        text(&chain.evidence);
        for c in &chain.certificates {
            let words = [&c.subject, &c.issuer, &c.serial, &c.key, &c.signature];
            words.into_iter().chain(&c.names).chain(&c.problems).for_each(|t| text(t));
        }
    }
}
