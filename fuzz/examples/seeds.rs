//! Rewrites the seeds: `cargo run --example seeds` in this folder. Run it after a format changes. The private keys of
//! the certificates are not kept. Seeds with other names (inputs that failed once) are left as they are.

use std::error::Error;
use std::fs;
use std::path::Path;

use wiretight::control::report::{
    Exception, ExceptionKind, Explanation, NodeReport, ReportedRelease,
};
use wiretight::control::{
    Blob, Code, Denial, FromAuthority, FromNode, FromStranger, Join, Message, Offer, Rejoin,
    SharedRecord, State, encode,
};
use wiretight::log::witness::request::Request as AddCheckpoint;
use wiretight::proof::audit::{Evidence, Inputs, LogPart, ProvedPeriod, Window, archive};
use wiretight::proof::controls::Profile as Standard;
use wiretight_fuzz::NOW;
use wiretight_keys::claims::{Amount, HOUR, Levels, MeshPeriod, NodeCount, Protocol, Publication};
use wiretight_keys::{
    Csr, Id, JoinToken, Leaf, Period, Profile, Revocation, Series, Signer, SigningKey, SpiffeId,
    Tbs, WebCsr,
};
use wiretight_proxy::intercept::rules::Mode;
use wiretight_proxy::wire::{Frame, Open, Refused};
use wiretight_proxy::{Instance, Registry};
use wiretight_scan::names::Version;
use wiretight_scan::parse::{self, ClientHello, ContentType, HandshakeType, quic};
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tile::{Kind, Tile, push_entry, subtree};
use wiretight_tlog::tree::Node;
use wiretight_tlog::{Checkpoint, Cosigner, Frontier, Hash, LogSigner, Proof, TreeError};
use zeroize::Zeroizing;

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> Result {
    frames()?;
    records()?;
    token()?;
    control()?;
    http()?;
    proxy()?;
    starttls()?;
    acme()?;
    tlog()?;
    archive()?;
    scan()?;
    quic()?;
    watch()?;
    look()?;
    certificate()
}

/// The other seeds in seeds/acme, signed with keys of each type, were made with openssl; this leaves them as they
/// are.
fn acme() -> Result {
    let names = ["a.example.org".to_owned(), "b.example.org".to_owned()];
    write("acme", "request.der", &WebCsr::create(&names, &SigningKey::generate()?)?)
}

/// Answers that real servers send.
fn starttls() -> Result {
    let seeds: &[(&str, &[u8])] = &[
        ("smtp", b"250-mail.example\r\n250-SIZE 10240000\r\n250-XXXXXXXA\r\n250 STARTTLS\r\n"),
        ("smtp-banner", b"220 ****************2******0***\r\n"),
        ("ftp", b"211-Features:\r\n AUTH TLS\r\n PBSZ\r\n211 End\r\n"),
        ("imap", b"* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\na1 OK done\r\n"),
        (
            "xmpp",
            b"<?xml version='1.0'?><stream:stream id='1' version='1.0'><stream:features>\
              <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>",
        ),
        ("xmpp-proceed", b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
        ("xmpp-error", b"<stream:error><host-unknown xmlns='x'/></stream:error></stream:stream>"),
        ("ldap", b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00"),
        ("ldap-long", b"\x30\x84\0\0\0\x10\x02\x01\x01\x78\x84\0\0\0\x07\x0a\x01\x02\x04\x00\x04\x00"),
        (
            "mysql",
            b"\x27\0\0\0\x0a8.0.36\0\x07\0\0\0saltsalt\0\xff\xff\x21\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0",
        ),
        ("mysql-error", b"\x17\0\0\0\xff\x10\x04Too many connections"),
        (
            "tds",
            b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\x01",
        ),
        ("rdp", b"\x03\0\0\x13\x0e\xd0\0\0\x12\x34\0\x02\x1f\x08\0\x01\0\0\0"),
        ("rdp-old", b"\x03\0\0\x0b\x06\xd0\0\0\x12\x34\0"),
        ("telnet", b"\xff\xfd\x2e\xff\xfa\x2e\x01\xff\xf0login: "),
        ("telnet-follows", b"\xff\xfa\x2e\x01\xff\xf0"),
        ("alert", b"\x15\x03\x03\0\x02\x02\x46"),
    ];
    seeds.iter().try_for_each(|(name, bytes)| write("starttls", name, bytes))
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}

fn frames() -> Result {
    let mut open = Open { service: "db".parse()?, destination: None }.encode();
    write("frames", "open", &[&[3], &*open].concat())?;
    open = Open { destination: Some("[fe80::1%7]:5432".parse()?), service: "db".parse()? }.encode();
    let data = [&Frame::Data(5).header(), &b"hello"[..]].concat();
    let session = [&[200], &*open, &Frame::Opened.header(), &data, &Frame::Fin.header()].concat();
    write("frames", "session", &session)?;
    // With two options of a later version.
    open.extend_from_slice(&[9, 2, 0xff, 0xfe, 8, 0]);
    open[3] += 6;
    write("frames", "options", &[&[0], &*open].concat())?;
    let refused = [&[1], &Refused::Draining.encode()[..], &Frame::Reset.header()].concat();
    write("frames", "refused", &refused)?;
    write("frames", "too-long", &[5, 1, 0, 2, 1])?;
    write("frames", "not-ours", b"\x09GET / HTTP/1.1\r\n\r\n")
}

/// How to cut the stream, which side the peer is, then records: type, length, content.
fn records() -> Result {
    let (data, close) = (b"\x17\x05hello", b"\x15\x02\x01\x00");
    let update = b"\x16\x05\x18\x00\x00\x01\x01";
    let session = [b"\x03\x00", &data[..], update, data, update, data, close, data].concat();
    write("records", "session", &session)?;
    let ticket = b"\x16\x03\x04\x00\x00\x16\x04\x03abc";
    write("records", "ticket", &[b"\xc8\x01", &ticket[..], data].concat())?;
    write("records", "alert", &[b"\x00\x00", &data[..], b"\x15\x02\x02\x2a"].concat())?;
    write("records", "padded", b"\x01\x00\x00\x05hi\x17\x00\x00\x17\x00")?;
    write("records", "in-the-clear", b"\x02\x00\xff\x07\x15\x03\x03\x00\x02\x02\x28")
}

fn http() -> Result {
    let head = "POST /a?b HTTP/1.1\r\nHost: example.org\r\n";
    let get = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";
    let chunks = "5;x=y\r\nhello\r\n0\r\nt: 1\r\n\r\n";
    let seeds = [
        ("length", format!("\x03{head}Content-Length: 5\r\n\r\nhello{get}")),
        ("chunked", format!("\x01{head}Transfer-Encoding: chunked\r\n\r\n{chunks}{get}")),
        ("upgrade", format!("\x05{head}Upgrade: websocket\r\nConnection: upgrade\r\n\r\n{get}")),
        (
            "both",
            format!("\x7f{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"),
        ),
        ("bare-lf", format!("\x02{head}x: y\n\n{get}")),
        ("old", "\0GET / HTTP/1.0\r\n\r\n".to_owned()),
    ];
    seeds.iter().try_for_each(|(name, text)| write("http", name, text.as_bytes()))
}

fn proxy() -> Result {
    write("proxy", "v1", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n\x16\x03\x01")?;
    write("proxy", "unknown", b"PROXY UNKNOWN\r\n")?;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x01\xc0\0\x02\x02\x12\x34\x01\xbb\x04\0\x01\0";
    write("proxy", "v2", v2)?;
    let v6 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24"[..], &[0x20; 36]].concat();
    write("proxy", "v2-ipv6", &v6)?;
    write("proxy", "local", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")
}

/// A ServerHello with the given extensions.
fn server_hello(random: [u8; 32], suite: u16, extensions: &[u8]) -> Vec<u8> {
    let length = (extensions.len() as u16).to_be_bytes();
    [&[3, 3][..], &random, &[0], &suite.to_be_bytes(), &[0], &length, extensions].concat()
}

fn scan() -> Result {
    let id = SpiffeId { trust_domain: "example.org".parse()?, id: Id::Service("web".parse()?) };
    let leaf = certificates(&id)?.2;
    let length = |n: usize| (n as u32).to_be_bytes()[1..].to_vec();
    let entry = [length(leaf.len()), leaf].concat();
    let chain = [length(entry.len()), entry.clone()].concat();
    let chain_tls1_3 = [vec![0], length(entry.len() + 2), entry, vec![0, 0]].concat();
    let ecdhe = [&[3, 0, 29, 32][..], &[9; 32], &[4, 3, 0, 2, 7, 7]].concat();
    let dhe = vec![0, 3, 0, 251, 251, 0, 1, 2, 0, 2, 5, 5, 4, 1, 0, 1, 7];
    let request = vec![2, 1, 64, 0, 2, 4, 3, 0, 4, 0, 2, 0x30, 0];
    let ticket = [&[0, 0, 14, 16, 0, 4][..], &[8; 4]].concat();
    let ticket_tls1_3 =
        vec![0, 0, 14, 16, 1, 2, 3, 4, 1, 0, 0, 2, 8, 8, 0, 8, 0, 42, 0, 4, 0, 0, 64, 0];
    let hello = server_hello([5; 32], 0xc02f, &[0xff, 1, 0, 1, 0, 0, 16, 0, 5, 0, 3, 2, 104, 50]);
    let messages = [
        (HandshakeType::SERVER_HELLO, hello),
        (HandshakeType::CERTIFICATE, chain),
        (HandshakeType::CERTIFICATE_STATUS, vec![1, 0, 0, 2, 0x30, 0]),
        (HandshakeType::SERVER_KEY_EXCHANGE, ecdhe),
        (HandshakeType::CERTIFICATE_REQUEST, request),
        (HandshakeType::SERVER_HELLO_DONE, Vec::new()),
    ];
    let messages = messages.map(|(kind, body)| parse::Message::new(kind, &body).bytes).concat();
    let record = |kind, bytes: &[u8]| parse::record(kind, 0x0303, bytes);
    let pieces = messages.chunks(300).map(|piece| record(ContentType::Handshake, piece));
    let alert = record(ContentType::Alert, &[2, 40]);
    write("scan", "flight", &[vec![3], pieces.flatten().collect(), alert].concat())?;
    for (name, body) in [
        ("certificate-tls1_3", chain_tls1_3),
        ("dhe", dhe),
        ("ticket", ticket),
        ("ticket-tls1_3", ticket_tls1_3),
        ("request-tls1_3", vec![0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]),
        ("ssl2", vec![0x80, 15, 4, 0, 1, 0, 2, 0, 1, 0, 3, 0, 0, 0xde, 7, 0, 0xc0]),
    ] {
        write("scan", name, &[vec![40], body].concat())?;
    }
    let hello = ClientHello::new(Version::Tls1_3, [7; 32])
        .suites([0x1301, 0xc02f])
        .server_name("example.org")
        .groups(&[0x11ec, 29])
        .signatures(&[0x0403])
        .key_shares(&[(29, &[1; 32])])
        .alpn(&["h2"]);
    write("scan", "client-hello", &[vec![1], hello.record()].concat())
}

fn quic() -> Result {
    use parse::quic::{Frame, Header, InitialKeys, initial, retry};
    let hello = server_hello([5; 32], 0x1301, &[0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 29]);
    let hello = parse::Message::new(HandshakeType::SERVER_HELLO, &hello).bytes;
    let mut frames = Vec::new();
    let (first, second) = hello.split_at(20);
    for frame in [
        Frame::Ack(0),
        Frame::Crypto(20, second),
        Frame::Ping,
        Frame::Crypto(0, first),
        Frame::Close { code: 0x128, reason: b"no" },
    ] {
        frame.write(&mut frames);
    }
    write("quic", "frames", &frames)?;
    let keys = InitialKeys::new(b"original");
    let header = Header { destination: b"client", source: b"server", token: &[], number: 1 };
    let sealed = initial(&keys.server, header, &frames);
    write("quic", "initial", &sealed)?;
    let coalesced = [&sealed[..], &[0xe0, 0, 0, 0, 1, 0, 0, 2, 1, 2, 0x40, 1]].concat();
    write("quic", "coalesced", &coalesced)?;
    write("quic", "retry", &retry(b"server", b"client", b"server", b"token"))?;
    let versions = b"\x80\0\0\0\0\x06client\x06server\0\0\0\x01\x6b\x33\x43\xcf";
    write("quic", "version-negotiation", versions)
}

fn tlog() -> Result {
    let name = |text| KeyName::new(text).ok_or("a name");
    let log = LogSigner::generate(name("log.example/a")?)?;
    let witness = |n: u8, algorithm| {
        Cosigner::from_seed(name("witness.example/w")?, algorithm, &[n; 32])
            .map_err(Box::<dyn Error>::from)
    };
    let witnesses = [witness(1, Algorithm::Ed25519)?, witness(2, Algorithm::MlDsa44)?];
    let leaves: Vec<Hash> = (0..5u8).map(|n| Hash::leaf(&[n])).collect();
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|leaf| frontier.append(*leaf, |_, _| {}));
    let (size, root) = (frontier.size(), frontier.root());
    let checkpoint =
        Checkpoint { origin: "log.example/a".into(), size, root, extensions: vec!["more".into()] };
    let mut signed = checkpoint.sign(&log)?;
    signed.add(witnesses[0].cosign(&checkpoint, NOW)?);
    write("tlog", "checkpoint", signed.to_string().as_bytes())?;
    let read = |node: Node| {
        let width = 1 << node.level;
        let start = node.index as usize * width;
        subtree(&leaves[start..start + width]).ok_or(TreeError::OutOfRange)
    };
    let hashes = wiretight_tlog::tree::inclusion_proof(3, size, read)?;
    let proof =
        Proof { extra: Some(b"extra".to_vec()), index: 3, hashes, checkpoint: signed.clone() };
    write("tlog", "proof", proof.to_string().as_bytes())?;
    let id = SpiffeId { trust_domain: "example.org".parse()?, id: Id::Service("web".parse()?) };
    let (period, key) =
        (Period { not_before: NOW, not_after: NOW + 3600 }, SigningKey::generate()?);
    let spki = wiretight_keys::Signer::public_key(&key);
    let algorithm = wiretight_keys::Signer::algorithm(&key);
    let root = certificates(&id)?.0.into();
    let tbs = Tbs::new(&Profile::Leaf(id), &spki, period, [3; 16], Some(&root), algorithm)?;
    let own = Proof { extra: None, ..proof.clone() };
    write("tlog", "certificate", &tbs.proved(&own)?.sign(&key)?)?;
    let request = AddCheckpoint {
        old: 3,
        proof: wiretight_tlog::tree::consistency_proof(3, size, read)?,
        checkpoint: signed.clone(),
    };
    write("tlog", "add-checkpoint", request.to_string().as_bytes())?;
    signed.add(witnesses[1].cosign(&checkpoint, NOW)?);
    write("tlog", "ml-dsa", signed.to_string().as_bytes())?;
    let [a, b] = witnesses.each_ref().map(Cosigner::public);
    let policy = format!(
        "# ours\nlog {} https://log.example/a\nwitness a {a}\nwitness b {b} https://b.example\n",
        log.public()
    );
    write("tlog", "policy", format!("{policy}group all 1 a b\nquorum all\n").as_bytes())?;
    write("tlog", "policy-none", format!("log {}\nquorum none\n", log.public()).as_bytes())?;
    for (name, tile) in [
        ("path", Tile { kind: Kind::Entries, index: 1_234_067, width: 7 }),
        ("path-full", Tile { kind: Kind::Hashes { level: 3 }, index: 5, width: 256 }),
    ] {
        write("tlog", name, tile.path().as_bytes())?;
    }
    let mut bundle = Vec::new();
    push_entry(&mut bundle, b"one")?;
    push_entry(&mut bundle, b"")?;
    write("tlog", "bundle", &bundle)?;
    let signer = SigningKey::generate()?;
    let period = Period { not_before: NOW, not_after: NOW + 3600 };
    let id = "spiffe://example.org/service/db".parse()?;
    let tbs = Tbs::new(
        &Profile::Leaf(id),
        &signer.public_key(),
        period,
        [7; 16],
        None,
        signer.algorithm(),
    )?;
    write("tlog", "entry-certificate", &tbs.entry()?)?;
    write(
        "tlog",
        "entry-revocation",
        &Revocation { at: NOW, indexes: vec![(1, 4)], series: vec![Series::new([7; 8])] }.entry(),
    )?;
    let amount = Amount { connections: 3, bytes: 4000 };
    let hour = MeshPeriod {
        levels: Levels { strong: amount, ..Levels::default() },
        protocols: vec![Protocol { protocol: "tls".into(), level: "strong".into(), amount }],
        ..MeshPeriod::new(NOW / 3600 * 3600, 3600)
    };
    write("tlog", "entry-period", &hour.entry())?;
    write("tlog", "entry-publication", &Publication::new(NOW, b"a manifest").entry())?;
    write("tlog", "expect", format!("# ours\nservice/db sha256:{}\n", "5d".repeat(32)).as_bytes())?;
    write("tlog", "url", b"https://log.example:7400/a/b")
}

/// An archive of an hour and its day, and the files from which it is computed.
fn archive() -> Result {
    let log = LogSigner::generate(KeyName::new("log.example/a").ok_or("a name")?)?;
    const START: u64 = 1_793_404_800;
    let hour = MeshPeriod {
        nodes: NodeCount { members: 2, reported: 1 },
        watched_seconds: 3600,
        ..MeshPeriod::new(START, HOUR)
    };
    let periods = [MeshPeriod::day(START, std::slice::from_ref(&hour)), hour];
    let leaves: Vec<Hash> = periods.iter().map(|p| Hash::leaf(&p.entry())).collect();
    let mut frontier = Frontier::default();
    leaves.iter().for_each(|leaf| frontier.append(*leaf, |_, _| {}));
    let (size, root) = (frontier.size(), frontier.root());
    let checkpoint =
        Checkpoint { origin: "log.example/a".into(), size, root, extensions: Vec::new() };
    let proved = |n: usize| -> Result<ProvedPeriod> {
        Ok(ProvedPeriod {
            index: n as u64,
            entry: String::from_utf8(periods[n].entry()[2..].to_vec())?,
            proof: vec![leaves[1 - n].to_string()],
        })
    };
    let log = LogPart {
        version: 1,
        checkpoint: checkpoint.sign(&log)?.to_string(),
        policy: format!("log {}\nquorum none\n", log.public()),
        periods: vec![proved(1)?, proved(0)?],
    };
    let facts = include_str!("../../crates/wiretight/src/proof/audit/example.json");
    let evidence = Evidence { facts: serde_json::from_str(facts)?, log };
    let window = Window::new("2026-10-31".parse()?, "2026-10-31".parse()?)?;
    let inputs = Inputs::new(evidence, Standard::Bcp195, window, Vec::new());
    let bytes = inputs.archive()?;
    let read = archive::read(&bytes).map_err(|damage| damage.to_string())?;
    let names = ["audit.json", "facts.json", "log.json"];
    let parts = names.map(|name| read.get(name).unwrap_or_default());
    // Only the files that are parsed, and of another release: a replay would compute the page thousands of times.
    let files = names
        .iter()
        .zip(parts)
        .map(|(name, bytes)| archive::File { name: (*name).to_owned(), bytes: bytes.to_vec() });
    let tar = archive::write(files.collect(), read.time)?;
    write("archive", "tar", &[&[0], &tar[..]].concat())?;
    let parts =
        String::from_utf8(parts.join(&b'\n'))?.replace("\"program\":\"", "\"program\":\"0-");
    write("archive", "parts", &[&[1], parts.as_bytes()].concat())
}

fn token() -> Result {
    let token = JoinToken {
        trust_domain: "example.org".parse()?,
        node: "db1".parse()?,
        authority: vec!["10.0.0.1:7400".into(), "authority.example.org:7400".into()],
        root: [0xa7; 32],
        id: "k3v9".into(),
        secret: Zeroizing::new("not a secret".into()),
        expires: NOW,
    };
    write("token", "whole", token.encode().as_bytes())?;
    write("token", "json", &json(&token)?)?;
    write("token", "json-sequence", br#"["example.org","db1",[],"00","i","s",1]"#)?;
    write("token", "cut", &token.encode().as_bytes()[..40])
}

/// The JSON of a token, without its encoding as text.
fn json(token: &JoinToken) -> Result<Vec<u8>> {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = token.encode();
    let mut bytes = URL_SAFE_NO_PAD.decode(text.trim_start_matches("wtj1_"))?;
    bytes.truncate(bytes.len() - 4);
    Ok(bytes)
}

fn control() -> Result {
    fn one<M: Message>(name: &str, message: &M) -> Result {
        write("control", name, &[&[40], &**encode(message)?].concat())
    }
    let key = SigningKey::generate()?;
    let id = SpiffeId { trust_domain: "example.org".parse()?, id: Id::Node("db1".parse()?) };
    let csr = || -> Result<Blob> { Ok(Blob(Csr::create(&id, &key)?)) };
    let offer = Offer {
        service: "db".parse()?,
        addr: "10.0.0.5:7432".parse()?,
        allow: vec!["service/web".parse()?, "node/ops1".parse()?],
        ports: vec![5432],
    };
    let join = Join {
        token_id: "k3v9".into(),
        secret: Zeroizing::new("not a secret".into()),
        node: "db1".parse()?,
        trust_domain: "example.org".parse()?,
        csr: csr()?,
        enrolment_key: Blob(vec![1; 91]),
        proof: Blob(vec![2; 71]),
    };
    one("join", &FromStranger::Join(join))?;
    let release = || {
        let (sha256, proof) = ("9d".repeat(32), Some("{\"format\":\"\"}\n".into()));
        Some(Box::new(ReportedRelease { sha256, proof }))
    };
    let rejoin = Rejoin {
        release: release(),
        node: "db1".parse()?,
        trust_domain: "example.org".parse()?,
        csr: csr()?,
        proof: Blob(vec![2; 71]),
    };
    one("rejoin", &FromStranger::Rejoin(rejoin))?;
    one(
        "hello",
        &FromNode::Hello { have: 7, digest: "ab".into(), instances: vec![offer.clone()].into() },
    )?;
    one("announce", &FromNode::Announce { instances: vec![offer].into() })?;
    one("sign", &FromNode::Sign { request: 1, csr: csr()? })?;
    let report = NodeReport {
        version: "0.1.0".into(),
        mode: Some(Mode::Strict),
        watching: true,
        exceptions: vec![Exception {
            kind: ExceptionKind::Pass,
            what: "udp 10.0.0.9:514".into(),
            explanation: Some(Explanation {
                reason: "a printer".into(),
                owner: "ops".into(),
                until: NOW,
            }),
        }]
        .into(),
        release: release(),
        ..NodeReport::default()
    };
    one("report", &FromNode::Report { request: 5, report: Box::new(report) })?;
    one("ack", &FromNode::Ack { version: u64::MAX })?;
    one("follow", &FromNode::Follow { request: 2, service: "www".parse()? })?;
    let put = |request, key: &str, expected, value| -> Result<FromNode> {
        let (service, key) = ("www".parse()?, key.to_owned());
        Ok(FromNode::Write { request, service, key, expected, value })
    };
    one("write", &put(3, "site/www.example.org", 7, Some(Blob(vec![5; 20])))?)?;
    one("delete", &put(4, "account/00ff", 9, None)?)?;
    let record = |key: &str, revision, value| SharedRecord { key: key.into(), revision, value };
    let site = || record("site/www.example.org", 7, Some(Blob(vec![5; 20])));
    let gone = record("member/db1", 9, None);
    let (request, at, done) = (2, 8, true);
    one("records", &FromAuthority::Records { request, at, records: vec![site()], done })?;
    one("changes", &FromAuthority::Changes { request, changes: vec![site(), gone] })?;
    one("written", &FromAuthority::Written { request: 3, revision: 10 })?;
    one("conflict", &FromAuthority::Conflict { request: 3, found: 0 })?;
    let mut pings = vec![1];
    for _ in 0..3 {
        pings.extend_from_slice(&encode(&FromNode::Ping)?);
    }
    write("control", "pings", &pings)?;
    let chain = || vec![Blob(vec![3; 20]), Blob(vec![4; 20])];
    one("joined", &FromAuthority::Joined { chain: chain(), bundle: chain() })?;
    one("signed", &FromAuthority::Signed { request: 1, chain: chain() })?;
    let denial = Denial::new(Code::NotAllowed, "no");
    one("error", &FromAuthority::Error(denial.clone()))?;
    one("refused", &FromAuthority::Refused { request: 3, denial })?;
    let leaf = Leaf::parse(&certificates(&id)?.2)?;
    let instance = Instance {
        node: "db1".parse()?,
        addr: "10.0.0.5:7432".parse()?,
        allow: vec!["service/web".parse()?],
        ports: Vec::new(),
    };
    let state = State {
        version: 12,
        bundle: chain(),
        registry: Registry {
            services: [("db".parse()?, vec![instance])].into(),
            nodes: ["db1".parse()?].into(),
        },
        digest: "ab".into(),
        revoked: [leaf.serial.series()].into(),
        revoked_roots: vec![Blob(vec![7; 32])],
        revoked_indexes: vec![(1, 4)],
        unreadable: 0,
    };
    one("state", &FromAuthority::State(state))
}

fn certificate() -> Result {
    let id = SpiffeId { trust_domain: "example.org".parse()?, id: Id::Service("web".parse()?) };
    let (root, intermediate, leaf) = certificates(&id)?;
    write("certificate", "root.der", &root)?;
    write("certificate", "intermediate.der", &intermediate)?;
    write("certificate", "leaf.der", &leaf)?;
    // The other seeds in seeds/chain were made with openssl; this leaves them as they are.
    let items = [&leaf, &intermediate].map(|der| {
        let len = u16::try_from(der.len()).expect("it is short").to_be_bytes();
        [&[0][..], &len, der].concat()
    });
    write("chain", "mesh", &[&[1][..], &items.concat()].concat())?;
    write("certificate", "request.der", &Csr::create(&id, &SigningKey::generate()?)?)
}

/// A root, an intermediate and a leaf, as the authority issues them.
fn certificates(id: &SpiffeId) -> Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let period = Period { not_before: NOW - 3600, not_after: NOW + 3600 };
    let keys = [SigningKey::generate()?, SigningKey::generate()?, SigningKey::generate()?];
    let [root_key, key, leaf_key] = &keys;
    let spki = |k: &SigningKey| wiretight_keys::Signer::public_key(k);
    let algorithm = || wiretight_keys::Signer::algorithm(key);
    let domain = || id.trust_domain.clone();
    let root =
        Tbs::new(&Profile::Root(domain()), &spki(root_key), period, [1; 16], None, algorithm())?
            .sign(root_key)?;
    let profile = Profile::Intermediate(domain());
    let intermediate = Tbs::new(&profile, &spki(key), period, [2; 16], Some(&root), algorithm())?
        .sign(root_key)?;
    let profile = Profile::Leaf(id.clone());
    let leaf =
        Tbs::new(&profile, &spki(leaf_key), period, [3; 16], Some(&intermediate), algorithm())?
            .sign(key)?;
    Ok((root.to_vec(), intermediate.to_vec(), leaf.to_vec()))
}

/// Frames for a table of flows, and the same as files.
fn watch() -> Result {
    let v4 = |protocol: u8, id: u8, part: [u8; 2], body: &[u8]| {
        let length = (20 + body.len() as u16).to_be_bytes();
        let start = [0x45, 0, length[0], length[1], 0, id, part[0], part[1], 64, protocol, 0, 0];
        [&start[..], &[10, 0, 0, 1, 10, 0, 0, 2], body].concat()
    };
    let tcp = |from: u16, to: u16, sequence: u32, flags: u8, payload: &[u8]| {
        let (ports, sequence) = ([from, to].map(u16::to_be_bytes), sequence.to_be_bytes());
        let rest = [0, 0, 0, 101, 0x50, flags, 255, 255, 0, 0, 0, 0];
        [ports.as_flattened(), &sequence, &rest, payload].concat()
    };
    let udp = |to: u16, payload: &[u8]| {
        let header = [40_000, to, 8 + payload.len() as u16, 0].map(u16::to_be_bytes);
        [header.as_flattened(), payload].concat()
    };
    let ether = |kind: u16, body: &[u8]| [&[2; 12][..], &kind.to_be_bytes(), body].concat();
    let whole = [0, 0];
    let get = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let client =
        |sequence, flags, payload: &[u8]| v4(6, 1, whole, &tcp(4000, 80, sequence, flags, payload));
    let server =
        |sequence, flags, payload: &[u8]| v4(6, 1, whole, &tcp(80, 4000, sequence, flags, payload));
    let connection = [
        client(100, 2, b""),
        server(500, 18, b""),
        client(111, 16, &get[10..]),
        client(101, 16, &get[..20]),
        client(101, 16, &get[..20]),
        client(105, 16, b"other bytes"),
        server(501, 17, b"HTTP/1.1 204 \r\n\r\n"),
        client(138, 17, b""),
        client(9000, 2, b""),
        client(9001, 4, b""),
    ];
    let datagram = udp(53, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01");
    let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0], &ether(0x0800, &connection[0])[..]].concat();
    let geneve = [&[0, 0, 0x65, 0x58, 0, 0, 7, 0], &ether(0x0800, &connection[2])[..]].concat();
    let gre = [
        &[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &ether(0x0800, &connection[3])[..],
    ]
    .concat();
    let v6 = |next: u8, body: &[u8]| {
        let length = body.len() as u8;
        [&[0x60, 0, 0, 0, 0, length, next, 64][..], &[0xfd; 31], &[1], body].concat()
    };
    let tunnels = [
        v4(17, 2, whole, &udp(4789, &vxlan)),
        v4(17, 3, whole, &udp(6081, &geneve)),
        v4(47, 4, whole, &gre),
        v4(4, 5, whole, &v4(4, 6, whole, &connection[0])),
        v6(41, &v6(17, &datagram)),
        v6(0, &[&[60, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0], &datagram[..]].concat()),
    ];
    let fragments = [
        v4(17, 7, [0x20, 2], &datagram[16..24]),
        v4(17, 7, [0x20, 0], &datagram[..16]),
        v4(17, 7, [0, 3], &datagram[24..]),
        v4(17, 8, [0x20, 0], &datagram[..16]),
        v4(17, 8, [0x20, 1], &datagram[16..]),
        v6(44, &[&[17, 0, 0, 1, 1, 2, 3, 4], &datagram[..16]].concat()),
        v6(44, &[&[17, 0, 0, 16, 1, 2, 3, 4], &datagram[16..]].concat()),
    ];
    let lost = [&connection[..3], &tunnels[..1], &connection[4..7]].concat();
    for (name, frames, small) in [
        ("connection", &connection[..], 0x3f),
        ("tunnels", &tunnels, 0x3f),
        ("fragments", &fragments, 0x3f),
        ("full", &lost, 0),
        ("sample", &connection, 0xff),
    ] {
        let mut script = vec![small];
        for (n, frame) in frames.iter().enumerate() {
            let (link, frame) = match n % 3 {
                2 => (1, ether(if frame[0] == 0x45 { 0x0800 } else { 0x86dd }, frame)),
                _ => (0, frame.clone()),
            };
            let length = (frame.len() as u16).to_be_bytes();
            script.extend([link, if n == 5 { 202 } else { 1 }, length[0], length[1]]);
            script.extend(frame);
        }
        write("flows", name, &script)?;
    }
    let mut pcap = [
        &0xa1b2_c3d4_u32.to_le_bytes()[..],
        &[2, 0, 4, 0],
        &[0; 8],
        &[255, 255, 0, 0, 101, 0, 0, 0],
    ]
    .concat();
    let mut nanoseconds = [
        &0xa1b2_3c4d_u32.to_be_bytes()[..],
        &[0, 2, 0, 4],
        &[0; 8],
        &[0, 0, 255, 255, 0, 0, 0, 101],
    ]
    .concat();
    let block = |kind: u32, body: &[u8]| {
        let body = [body, &[0; 3][..body.len().next_multiple_of(4) - body.len()]].concat();
        let total = (body.len() as u32 + 12).to_le_bytes();
        [&kind.to_le_bytes()[..], &total, &body, &total].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[255; 8]].concat();
    let interface = [
        101, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 9, 0, 0, 0, 14, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0,
    ];
    let mut pcapng = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
    for (n, frame) in connection.iter().enumerate() {
        let (n, length) = (n as u32, frame.len() as u32);
        pcap.extend([n, n, length, length].map(u32::to_le_bytes).as_flattened());
        pcap.extend(frame);
        nanoseconds.extend([n, n, length, length].map(u32::to_be_bytes).as_flattened());
        nanoseconds.extend(frame);
        let header = [0, n, n, length, length].map(u32::to_le_bytes);
        pcapng.extend(block(6, &[header.as_flattened(), frame].concat()));
    }
    pcapng.extend(block(3, &[&[40, 0, 0, 0], &connection[0][..]].concat()));
    pcapng.extend(block(2, &[&[0; 12][..], &[40, 0, 0, 0, 40, 0, 0, 0], &connection[0]].concat()));
    pcapng.extend(block(5, &[&[0; 12][..], &[5, 0, 8, 0, 3, 0, 0, 0, 0, 0, 0, 0]].concat()));
    write("capture", "pcap", &pcap)?;
    write("capture", "nanoseconds", &nanoseconds)?;
    write("capture", "pcapng", &pcapng)
}

/// Beginnings of flows: who sends what, after the transport and the port.
fn look() -> Result {
    const TCP: u8 = 0;
    const UDP: u8 = 3;
    let flow = |name: &str, transport: u8, port: u16, sent: &[(bool, &[u8])]| {
        let mut script = vec![transport];
        script.extend(port.to_be_bytes());
        for (server, bytes) in sent {
            // A piece has 8 n + 1 bytes.
            for piece in bytes.chunks(1 + 8 * 0x7f) {
                let (whole, rest) = piece.split_at((piece.len() - 1) / 8 * 8 + 1);
                let sender = u8::from(*server) << 7;
                script.push(sender | (whole.len() / 8) as u8);
                script.extend(whole);
                for byte in rest {
                    script.extend([sender, *byte]);
                }
            }
        }
        write("look", name, &script)
    };
    // ---- With encryption.
    let hello = ClientHello::new(Version::Tls1_3, [7; 32])
        .suites([0x1301])
        .server_name("a.example")
        .groups(&[0x11ec, 29])
        .alpn(&["h2"]);
    let handshake = |body: &[u8]| parse::record(ContentType::Handshake, 0x0303, body);
    let data = parse::record(ContentType::ApplicationData, 0x0303, &[9; 53]);
    let message = |kind: u8, body: &[u8]| {
        [&[kind][..], &(body.len() as u32).to_be_bytes()[1..], body].concat()
    };
    let answer = |version: u16, suite: u16, extensions: &[u8]| {
        let mut body = version.to_be_bytes().to_vec();
        body.extend([8; 32]);
        body.push(0);
        body.extend(suite.to_be_bytes());
        body.push(0);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        message(2, &body)
    };
    let share = [0, 43, 0, 2, 3, 4, 0, 51, 0, 6, 0x11, 0xec, 0, 2, 1, 1];
    let answered = handshake(&answer(0x0303, 0x1301, &share));
    flow(
        "tls1_3",
        TCP,
        443,
        &[(false, &hello.record()), (true, &answered), (true, &data), (false, &data)],
    )?;
    let old = ClientHello::new(Version::Tls1_2, [7; 32]).suites([0xc013]).groups(&[29]);
    let exchange = message(12, &[3, 0, 29, 1, 4, 4, 1, 0, 1, 1]);
    let flight = [answer(0x0303, 0xc013, &[]), message(11, &[0, 0, 0]), exchange, message(14, &[])];
    let finished = [&b"\x14\x03\x03\0\x01\x01"[..], &handshake(&[0xa5; 40])].concat();
    flow(
        "tls1_2",
        TCP,
        443,
        &[
            (false, &old.record()),
            (true, &handshake(&flight.concat())),
            (false, &finished),
            (true, &finished),
        ],
    )?;
    let keys = quic::InitialKeys::new(b"original");
    let sealed = |keys: &quic::Keys, to: &[u8], crypto: &[u8]| {
        let mut frames = Vec::new();
        quic::Frame::Crypto(0, crypto).write(&mut frames);
        let header = quic::Header { destination: to, source: b"me", token: b"", number: 0 };
        quic::initial(keys, header, &frames)
    };
    flow(
        "quic",
        UDP,
        443,
        &[
            (false, &sealed(&keys.client, b"original", &hello.message())),
            (true, &sealed(&keys.server, b"me", &answer(0x0303, 0x1301, &share))),
        ],
    )?;
    let mut dtls = old.message();
    dtls[4..6].copy_from_slice(&[0xfe, 0xfd]);
    dtls.insert(39, 0);
    dtls[3] += 1;
    let datagram = |message: &[u8]| {
        let length = (message.len() as u16 + 8).to_be_bytes();
        let header = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, length[0], length[1]];
        let fragment = [&message[..4], &[0; 5], &message[1..4], &message[4..]].concat();
        [&header[..], &fragment].concat()
    };
    let reply = datagram(&answer(0xfefd, 0xc013, &[0, 14, 0, 5, 0, 2, 0, 1, 0]));
    flow("dtls", UDP, 5061, &[(false, &datagram(&dtls)), (true, &reply)])?;
    let mut kexinit = vec![20];
    kexinit.extend([7; 16]);
    for list in
        ["curve25519-sha256", "ssh-ed25519", "aes128-ctr", "aes128-ctr", "hmac-md5", "hmac-md5"]
    {
        kexinit.extend((list.len() as u32).to_be_bytes());
        kexinit.extend(list.as_bytes());
    }
    kexinit.resize(kexinit.len() + 21, 0);
    let packed = |payload: &[u8]| {
        let padding = 12 - (payload.len() + 9) % 8;
        let length = ((payload.len() + 1 + padding) as u32).to_be_bytes();
        [&length[..], &[padding as u8], payload, &vec![0; padding]].concat()
    };
    let ssh = [&b"SSH-2.0-a\r\n"[..], &packed(&kexinit), &packed(&[30]), &packed(&[21])].concat();
    flow("ssh", TCP, 22, &[(false, &ssh), (true, &ssh)])?;
    let wireguard = |kind: u8, length: usize, rest: &[u8]| {
        let mut out = [&[kind, 0, 0, 0][..], rest].concat();
        out.resize(length, 0);
        out
    };
    flow(
        "wireguard",
        UDP,
        51820,
        &[
            (false, &wireguard(1, 148, b"meme")),
            (true, &wireguard(2, 92, b"peermeme")),
            (false, &wireguard(4, 32, b"peer")),
        ],
    )?;
    let ike = |responder: u8, exchange: u8, body: &[u8]| {
        let mut out = [[1; 8], [responder; 8]].concat();
        out.extend([33, 0x20, exchange, 8, 0, 0, 0, 0]);
        out.extend((28 + body.len() as u32).to_be_bytes());
        out.extend(body);
        out
    };
    let sa = b"\0\0\0\x30\0\0\0\x2c\x01\x01\0\x04\x03\0\0\x0c\x01\0\0\x14\x80\x0e\0\x80\x03\0\0\x08\x02\0\0\x05\x03\0\0\x08\x04\0\0\x1f\0\0\0\x08\x06\0\0\x24";
    flow(
        "ike",
        UDP,
        500,
        &[
            (false, &ike(0, 34, sa)),
            (true, &ike(2, 34, sa)),
            (false, &ike(2, 35, &[7; 9])),
            (true, &ike(2, 35, &[7; 9])),
        ],
    )?;
    let openvpn =
        b"\x40\x02\x02\x02\x02\x02\x02\x02\x02\x01\0\0\0\0\x01\x01\x01\x01\x01\x01\x01\x01\0\0\0\0";
    let control =
        [&b"\x20\x01\x01\x01\x01\x01\x01\x01\x01\0\0\0\0\x01"[..], &hello.record()].concat();
    flow(
        "openvpn",
        UDP,
        1194,
        &[
            (false, b"\x38\x01\x01\x01\x01\x01\x01\x01\x01\0\0\0\0\0"),
            (true, openvpn),
            (false, &control),
        ],
    )?;
    flow(
        "rdp",
        TCP,
        3389,
        &[
            (false, b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0"),
            (true, b"\x03\0\0\x13\x0e\xd0\0\0\0\0\0\x02\0\x08\0\0\0\0\0\x03\0\0\x20McDn\x0c\x02\x0c\x0c\0\x02\0\0\0\x02\0\0\0"),
        ],
    )?;
    let mut negotiated = b"\0\0\0\x8c\xfeSMB".to_vec();
    negotiated.resize(4 + 64 + 64, 0);
    negotiated[4 + 64] = 65;
    negotiated[4 + 68..4 + 72].copy_from_slice(&[0x11, 3, 1, 0]);
    negotiated[4 + 124] = 128;
    negotiated.extend(b"\x02\0\x04\0\0\0\0\0\x01\0\x02\0");
    let encrypted = b"\0\0\0\x08\xfdSMB1234";
    flow("smb3", TCP, 445, &[(false, encrypted), (true, &negotiated), (true, encrypted)])?;
    flow(
        "esp",
        7,
        50,
        &[
            (false, b"\x01\x02\x03\x04\0\0\0\x01\0\x35\0\x63\0\x0a\0\0\x07\x07\x01\x02\x02\x11123456789012"),
            (false, b"\x01\x02\x03\x04\0\0\0\x02\0\x35\0\x63\0\x0a\0\0\x07\x07\x01\x02\x02\x11123456789012"),
        ],
    )?;

    flow(
        "http",
        TCP,
        80,
        &[(false, b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n"), (true, b"HTTP/1.1 200 OK\r\n\r\n")],
    )?;
    flow(
        "smtp",
        TCP,
        25,
        &[
            (true, b"220 a ESMTP\r\n"),
            (false, b"EHLO b\r\n"),
            (true, b"250-a\r\n250 STARTTLS\r\n"),
            (false, b"STARTTLS\r\n"),
            (true, b"220 go\r\n"),
            (false, b"\x16\x03\x01\0\x05\x01\0\0\x01\x03"),
        ],
    )?;
    flow(
        "imap",
        TCP,
        143,
        &[(true, b"* OK [CAPABILITY STARTTLS] hi\r\n"), (false, b"a LOGIN b c\r\n")],
    )?;
    flow(
        "pop3",
        TCP,
        110,
        &[
            (true, b"+OK POP3\r\n"),
            (false, b"CAPA\r\n"),
            (true, b"+OK\r\nSTLS\r\n.\r\n"),
            (false, b"STLS\r\n"),
            (true, b"+OK\r\n"),
        ],
    )?;
    flow("irc", TCP, 6667, &[(false, b"CAP LS\r\nNICK a\r\n"), (true, b":a CAP * LS :tls\r\n")])?;
    flow(
        "ldap",
        TCP,
        389,
        &[
            (false, b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"),
            (true, b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00"),
        ],
    )?;
    flow(
        "postgres",
        TCP,
        5432,
        &[
            (false, b"\0\0\0\x08\x04\xd2\x16\x2f"),
            (true, b"N"),
            (false, b"\0\0\0\x13\0\x03\0\0user\0root\0\0"),
            (true, b"R\0\0\0\x08\0\0\0\0"),
        ],
    )?;
    flow(
        "tds",
        TCP,
        1433,
        &[
            (
                false,
                b"\x12\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\x01",
            ),
            (
                true,
                b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\x01",
            ),
            (false, b"\x12\x01\0\x0d\0\0\0\0\x16\x03\x01\0\x01"),
        ],
    )?;
    flow(
        "vnc",
        TCP,
        5900,
        &[
            (true, b"RFB 003.008\n"),
            (false, b"RFB 003.008\n"),
            (true, b"\x02\x01\x13"),
            (false, b"\x13"),
            (true, b"\0\x02"),
        ],
    )?;
    flow("rpc", TCP, 2049, &[(false, b"\x80\0\0\x28\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x01\x86\xa3\0\0\0\x04\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0\0")])?;
    flow(
        "socks",
        TCP,
        1080,
        &[
            (false, b"\x05\x01\x02"),
            (true, b"\x05\x02"),
            (false, b"\x01\x01a\x01b"),
            (true, b"\x01\0"),
            (false, b"\x05\x01\0\x03\x01a\0\x50"),
            (true, b"\x05\0\0\x01\0\0\0\0\0\0"),
            (false, b"GET / HTTP/1.1\r\n\r\n"),
        ],
    )?;
    flow("proxy", TCP, 80, &[(false, b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0*1\r\n$4\r\nPING\r\n"), (true, b"+PONG\r\n")])?;
    flow("dns", UDP, 53, &[(false, b"\xab\xcd\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01"), (true, b"\xab\xcd\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x02\x03\x04")])?;
    flow("snmp", UDP, 161, &[(false, b"\x30\x1e\x02\x01\x03\x30\x0e\x02\x01\x05\x02\x02\x05\xdc\x04\x01\x07\x02\x01\x03\x04\x05\x30\x03\x04\x01\x00\x04\x02\xaa\xbb")])?;
    flow(
        "stun",
        UDP,
        3478,
        &[
            (false, b"\0\x01\0\0\x21\x12\xa4\x42abcdefghijkl"),
            (true, b"\x80\0\0\x01\0\0\0\x01\0\0\0\x01x"),
        ],
    )?;
    flow("syslog", UDP, 514, &[(false, b"<34>1 2003-10-11T22:14:15.003Z a su - ID47 - failed")])
}
