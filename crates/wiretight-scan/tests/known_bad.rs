//! Servers with a known weakness, and counterparts without it: a full scan reports the weakness of the former, and its
//! absence for the latter, without false alarms.
//!
//! Real servers are used where they are still available: OpenSSL 0.9.8e (SSL 2.0 and 3.0, export suites, single
//! DES, RC4, compression, renegotiation without RFC 5746), OpenSSL 3.0 at security level 0, GnuTLS with everything
//! enabled, tlslite-ng. Other weaknesses are simulated; [`PLAYED`] says why.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod servers;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::aws_lc_rs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use servers::{Kind, all, config, pki, scans, start};
use wiretight_scan::facts::Answer::{self, No, Yes};
use wiretight_scan::facts::TABLE;
use wiretight_scan::parse::{ClientHello, ContentType, record};
use wiretight_scan::{Host, Start, Target};

/// A fact, its answer for a weak server, servers with this answer, and counterparts with the opposite answer.
type Pair = (&'static str, Answer, &'static [&'static str], &'static [&'static str]);

const PAIRS: &[Pair] = &[
    // Flaws in a server's behaviour.
    (
        "vulnerability.heartbleed",
        Yes,
        &["tlslite-heartbleed"],
        // The first in the list supports heartbeats.
        &["tlslite-hybrids", "tlslite-no-ems", "openssl-default", "old-default"],
    ),
    (
        "vulnerability.ccs_injection",
        Yes,
        &["tlslite-ccs"],
        &["tlslite-rc4", "openssl-default", "gnutls-default", "nginx-old"],
    ),
    (
        "vulnerability.ticketbleed",
        Yes,
        &["tlslite-ticketbleed"],
        &["openssl-tls1_2", "nginx-old", "gnutls-default"],
    ),
    (
        "vulnerability.robot",
        Yes,
        &["tlslite-robot", "tlslite-robot-timeout"],
        &["tlslite-no-ems", "openssl-static-rsa", "gnutls-default", "old-default", "openssl-ecdsa"],
    ),
    (
        "vulnerability.poodle_tls",
        Yes,
        &["tlslite-poodle"],
        &["tlslite-no-ems", "openssl-no-etm", "gnutls-tls1_0", "openssl-tls1_3"],
    ),
    // Flaws in what a server accepts.
    ("vulnerability.drown", Yes, &["old-ssl2"], &["old-ssl3", "openssl-default", "tlslite-rc4"]),
    (
        "vulnerability.poodle_ssl",
        Yes,
        &["tlslite-ssl3", "old-ssl3"],
        &["openssl-everything", "gnutls-default", "openssl-tls1_3"],
    ),
    (
        "vulnerability.freak",
        Yes,
        &["old-everything"],
        &["openssl-everything", "openssl-tls1_3", "tlslite-rc4"],
    ),
    (
        "vulnerability.logjam",
        Yes,
        &["old-everything", "openssl-dhe-1024", "nginx-old"],
        &["openssl-dhe-2048", "openssl-tls1_3", "openssl-static-rsa"],
    ),
    (
        "vulnerability.sweet32",
        Yes,
        &["tlslite-rc4", "gnutls-legacy", "old-default"],
        &["openssl-everything", "openssl-tls1_3"],
    ),
    ("vulnerability.crime", Yes, &["old-compression"], &["openssl-everything", "openssl-tls1_3"]),
    (
        "vulnerability.beast",
        Yes,
        &["openssl-tls1_0", "tlslite-ssl3"],
        &["openssl-tls1_1", "openssl-tls1_2", "openssl-tls1_3"],
    ),
    (
        "vulnerability.lucky13",
        Yes,
        &["openssl-no-etm", "openssl-default"],
        &["nginx-intermediate", "openssl-tls1_3"],
    ),
    (
        "vulnerability.rc4",
        Yes,
        &["tlslite-rc4", "old-default", "gnutls-legacy"],
        &["openssl-everything", "openssl-tls1_3"],
    ),
    ("vulnerability.roca", Yes, &["played-roca"], &["openssl-static-rsa", "openssl-ecdsa"]),
    (
        "vulnerability.insecure_renegotiation",
        Yes,
        &["openssl-renegotiation"],
        &[
            "openssl-default",
            "openssl-tls1_2",
            "gnutls-default",
            "tlslite-insecure-renegotiation",
            // Red Hat added RFC 5746 to it.
            "old-default",
        ],
    ),
    // Suites.
    (
        "weak.null",
        Yes,
        &["openssl-null", "openssl-everything"],
        &["openssl-default", "openssl-tls1_3"],
    ),
    (
        "weak.anonymous",
        Yes,
        &["openssl-anonymous", "openssl-everything"],
        &["openssl-default", "openssl-tls1_3"],
    ),
    ("weak.export", Yes, &["old-everything"], &["openssl-everything", "openssl-tls1_3"]),
    (
        "weak.rc4",
        Yes,
        &["tlslite-rc4", "old-everything"],
        &["openssl-everything", "openssl-tls1_3"],
    ),
    ("weak.des", Yes, &["old-everything"], &["openssl-everything", "openssl-tls1_3"]),
    (
        "weak.static_rsa",
        Yes,
        &["openssl-static-rsa", "old-default"],
        &["openssl-ecdsa", "openssl-tls1_3", "nginx-intermediate"],
    ),
    (
        "weak.static_dh",
        Yes,
        &["played-static-dh", "played-static-ecdh"],
        &["openssl-everything", "openssl-tls1_3"],
    ),
    ("weak.cbc", Yes, &["openssl-default"], &["nginx-intermediate", "openssl-tls1_3"]),
    ("forward_secrecy.all", No, &["openssl-static-rsa"], &["nginx-intermediate", "openssl-ecdsa"]),
    ("forward_secrecy.any", No, &["openssl-static-rsa"], &["openssl-default", "openssl-tls1_3"]),
    ("dh.safe", No, &["openssl-dhe-1024", "nginx-old"], &["openssl-dhe-2048"]),
    // Versions.
    ("protocol.ssl2", Yes, &["old-ssl2"], &["old-ssl3", "openssl-default"]),
    (
        "protocol.ssl3",
        Yes,
        &["old-ssl3", "tlslite-ssl3"],
        &["openssl-everything", "openssl-tls1_3"],
    ),
    ("protocol.tls1_0", Yes, &["openssl-tls1_0"], &["openssl-tls1_1", "openssl-tls1_3"]),
    ("protocol.tls1_1", Yes, &["openssl-tls1_1"], &["openssl-tls1_2", "openssl-tls1_3"]),
    ("protocol.tls1_2", No, &["openssl-tls1_1"], &["openssl-tls1_2"]),
    ("protocol.tls1_3", No, &["openssl-tls1_2"], &["openssl-tls1_3"]),
    // The rest of the protocol.
    ("compression", Yes, &["old-compression"], &["openssl-everything", "openssl-tls1_3"]),
    (
        "renegotiation.secure",
        No,
        &["tlslite-insecure-renegotiation"],
        &["openssl-default", "tlslite-rc4", "gnutls-default", "old-default"],
    ),
    (
        "renegotiation.by_client",
        Yes,
        &["openssl-renegotiation", "old-default"],
        &["openssl-tls1_2", "nginx-intermediate"],
    ),
    (
        "fallback_scsv",
        No,
        &["played-fallback"],
        &["openssl-everything", "gnutls-default", "old-default"],
    ),
    (
        "extension.extended_master_secret",
        No,
        &["tlslite-no-ems", "old-default"],
        &["tlslite-rc4", "openssl-tls1_2"],
    ),
    ("extension.encrypt_then_mac", No, &["openssl-no-etm", "old-default"], &["openssl-tls1_2"]),
    (
        "session.psk_without_dhe",
        Yes,
        &["openssl-psk-modes"],
        &["openssl-tls1_3", "openssl-default"],
    ),
    ("session.early_data", Yes, &["openssl-early-data"], &["openssl-tls1_3", "openssl-default"]),
    (
        "starttls.injection",
        Yes,
        &["played-injection"],
        &["played-no-injection", "postfix", "dovecot-imap"],
    ),
    (
        "plaintext",
        Yes,
        &["plain-http", "plain-banner"],
        &["openssl-default", "old-ssl2", "old-ssl3"],
    ),
    // Certificates.
    ("certificate.valid", No, &["openssl-expired"], &["openssl-default"]),
    ("certificate.name", No, &["openssl-other-name"], &["openssl-default"]),
    ("certificate.self_signed", Yes, &["openssl-self-signed"], &["openssl-default"]),
    ("certificate.complete", No, &["openssl-incomplete"], &["openssl-default"]),
    (
        "certificate.trusted",
        No,
        &["openssl-self-signed", "openssl-incomplete", "openssl-expired"],
        &["openssl-default", "openssl-tls1_3"],
    ),
    ("certificate.weak_signature", Yes, &["openssl-weak-certificate"], &["openssl-default"]),
    ("certificate.must_staple", Yes, &["openssl-must-staple"], &["openssl-default"]),
    (
        "certificate.ocsp_stapled",
        No,
        &["openssl-must-staple"],
        &["nginx-stapled", "openssl-stapled"],
    ),
    ("certificate.wildcard", Yes, &["openssl-other-name"], &["openssl-default"]),
];

/// The simulated servers, and why.
const PLAYED: &[(&str, &str)] = &[
    ("tlslite-heartbleed", "no current package contains OpenSSL 1.0.1 to 1.0.1f"),
    (
        "tlslite-ccs",
        "no current package contains OpenSSL before 1.0.1h; servers with 0.9.8 are not affected",
    ),
    ("tlslite-ticketbleed", "F5's TMOS is not available"),
    ("tlslite-robot", "the affected devices are not available"),
    ("tlslite-robot-timeout", "the affected devices are not available"),
    ("tlslite-poodle", "the affected devices are not available"),
    (
        "played-roca",
        "keys of Infineon's library are not available: a modulus with their pattern is used",
    ),
    ("played-static-dh", "nobody issues certificates with DH keys, and no library accepts them"),
    ("played-static-ecdh", "OpenSSL 3.0, GnuTLS and tlslite-ng do not support static ECDH"),
    ("played-fallback", "all available servers support RFC 7507"),
    ("played-injection", "no current package contains Postfix from before 2011"),
    ("played-no-injection", "the counterpart of a simulated server"),
];

#[test]
fn every_weakness_is_distinguished_from_its_absence_without_false_alarms() {
    let begun = Instant::now();
    let in_pairs = PAIRS.iter().flat_map(|(_, _, bad, good)| bad.iter().chain(*good).copied());
    let real = all().into_iter().filter(|c| c.kind == Kind::Real).map(|c| c.name);
    let options = scans::options();
    let reports = scans::each(in_pairs.chain(real), 12, |name| match name.starts_with("played-") {
        true => {
            let (target, address) = play(name);
            Some(scans::scan(&target, address, &options))
        }
        false => start(name).map(|server| scans::scan_server(&server, &options)),
    });

    let mut wrong = Vec::new();
    let (mut asked, mut real, mut unclear) = (0, 0, 0);
    for (id, bad, with, without) in PAIRS {
        let other = if *bad == Yes { No } else { Yes };
        let expected = with.iter().map(|n| (*n, *bad)).chain(without.iter().map(|n| (*n, other)));
        for (name, expected) in expected {
            let Some(report) = reports.get(name) else { continue };
            asked += 1;
            real += usize::from(is_real(name));
            let fact = report.facts.get(id);
            let answer = fact.map_or(Answer::Untested, |fact| fact.answer);
            // A flaw that a version cannot have is untested, which is not an alarm.
            let moot = expected == other && *bad == Yes && answer == Answer::Untested;
            if answer != expected && !moot {
                let evidence = fact.map_or("", |fact| fact.evidence.as_ref());
                wrong.push(format!("{name}: {id} is {answer}, not {expected}: {evidence}"));
            }
        }
    }
    // No false alarms.
    for (name, report) in &reports {
        // None of these servers counts as several servers at one address.
        if let Some(fact) = report.facts.get("consistent").filter(|fact| fact.answer == No) {
            wrong.push(format!("{name} differs: {:?}", fact.value));
        }
        let mut alarms: Vec<&str> = Vec::new();
        for (id, fact) in report.facts.iter() {
            match (id.strip_prefix("vulnerability."), fact.answer) {
                (Some(id), Yes) => alarms.push(id),
                (Some(_), Answer::Inconclusive) => {
                    unclear += 1;
                    println!("{name}: {id} is inconclusive: {}", fact.evidence);
                }
                _ => {}
            }
        }
        let expected = ALARMS.iter().find(|(n, _)| n == name).map_or("", |(_, expected)| expected);
        let mut expected: Vec<&str> = expected.split_whitespace().collect();
        if expected.is_empty() && report.facts.yes("weak.cbc") {
            expected.push(CBC);
        }
        if alarms != expected {
            let evidence: Vec<String> = alarms
                .iter()
                .filter(|alarm| !expected.contains(alarm))
                .map(|alarm| {
                    let fact = report.facts.get(&format!("vulnerability.{alarm}"));
                    format!("{alarm}: {}", fact.unwrap().evidence)
                })
                .collect();
            wrong.push(format!("{name}: {alarms:?}, not {expected:?} {evidence:?}"));
        }
    }
    let mut slow: Vec<_> = reports.iter().map(|(name, report)| (report.seconds, *name)).collect();
    slow.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    println!("the slowest: {:.1?}", &slow[..slow.len().min(10)]);
    println!(
        "{} servers, {asked} answers of pairs ({real} of real servers), {unclear} vulnerabilities inconclusive, {:.1} s",
        reports.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn is_real(name: &str) -> bool {
    !name.starts_with("played-") && config(name).kind != Kind::Mock
}

#[test]
fn the_table_contains_every_weakness_and_a_reason_for_each_simulation() {
    for id in TABLE.iter().map(|entry| entry.id) {
        if id.starts_with("vulnerability.") || id.starts_with("weak.") {
            let pair = PAIRS.iter().find(|pair| pair.0 == id);
            let (_, _, with, without) = pair.unwrap_or_else(|| panic!("{id} has no servers"));
            assert!(!with.is_empty() && without.iter().any(|name| is_real(name)), "{id}");
        }
    }
    for (id, _, with, without) in PAIRS {
        for name in with.iter().chain(*without) {
            let said = PLAYED.iter().any(|(played, _)| played == name);
            assert_eq!(said, !is_real(name), "{id}: {name}");
        }
    }
    let reports: BTreeMap<&str, &str> = ALARMS.iter().copied().collect();
    assert_eq!(reports.len(), ALARMS.len(), "duplicate server");
}

/// All vulnerabilities of each server. Servers that are not listed have none, except [`CBC`] if they accept CBC suites.
const ALARMS: &[(&str, &str)] = &[
    ("gnutls-default", "beast lucky13"),
    ("gnutls-legacy", "beast lucky13 rc4 sweet32"),
    ("gnutls-no-tickets", "beast lucky13"),
    ("gnutls-tls1_0", "beast lucky13"),
    ("nginx-old", "beast logjam lucky13"),
    ("old-compression", "beast crime logjam lucky13 poodle_ssl rc4 sweet32"),
    ("old-default", "beast logjam lucky13 poodle_ssl rc4 sweet32"),
    ("old-everything", "beast freak logjam lucky13 poodle_ssl rc4 sweet32"),
    ("old-ssl2", "drown"),
    ("old-ssl3", "beast logjam lucky13 poodle_ssl rc4 sweet32"),
    ("openssl-anonymous", "beast logjam lucky13"),
    ("openssl-dhe-1024", "beast logjam lucky13"),
    ("openssl-everything", "beast logjam lucky13"),
    ("openssl-psk", "beast lucky13"),
    ("openssl-renegotiation", "insecure_renegotiation lucky13"),
    ("openssl-rsa-1024", "beast logjam lucky13"),
    ("openssl-tls1_0", "beast logjam lucky13"),
    ("openssl-tls1_1", "logjam lucky13"),
    ("openssl-weak-certificate", "beast lucky13"),
    ("played-roca", "lucky13 roca"),
    ("postfix", "beast logjam lucky13"),
    ("postfix-old", "beast logjam lucky13"),
    ("postgres-old", "beast lucky13"),
    ("slapd", "beast lucky13"),
    ("tlslite-ccs", "beast ccs_injection lucky13 sweet32"),
    ("tlslite-heartbleed", "beast heartbleed lucky13 sweet32"),
    ("tlslite-hybrids", "beast lucky13 sweet32"),
    ("tlslite-insecure-renegotiation", "beast lucky13 sweet32"),
    ("tlslite-no-ems", "beast lucky13 sweet32"),
    ("tlslite-poodle", "beast lucky13 poodle_tls"),
    ("tlslite-rc4", "beast lucky13 rc4 sweet32"),
    ("tlslite-robot", "beast lucky13 robot sweet32"),
    ("tlslite-robot-timeout", "beast lucky13 robot sweet32"),
    ("tlslite-ssl3", "beast lucky13 poodle_ssl rc4 sweet32"),
    ("tlslite-ticketbleed", "beast lucky13 sweet32 ticketbleed"),
];

/// MAC-then-encrypt: every server with CBC suites is exposed to it.
const CBC: &str = "lucky13";

/// Starts a simulated server, which ends with the process.
fn play(name: &str) -> (Target, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve: Arc<dyn Fn(TcpStream) + Send + Sync> = match name {
        "played-roca" => Arc::new(|client| answer(client, &[0x002f, 0x0035], marked())),
        // TLS_DH_RSA_WITH_AES_128_CBC_SHA, and the same with ECDH_ECDSA and ECDH_RSA.
        "played-static-dh" => Arc::new(|client| answer(client, &[0x0031], leaf("rsa"))),
        "played-static-ecdh" => Arc::new(|client| answer(client, &[0xc004, 0xc00e], leaf("ecdsa"))),
        "played-fallback" => Arc::new(|client| answer(client, &[0x002f], leaf("rsa"))),
        "played-injection" => Arc::new(|client| mail(client, true)),
        "played-no-injection" => Arc::new(|client| mail(client, false)),
        _ => panic!("{name} is not played here"),
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || {
                let _ = client.set_read_timeout(Some(Duration::from_secs(20)));
                serve(client);
            });
        }
    });
    let start = if name.ends_with("injection") { Start::Smtp } else { Start::Https };
    let target = Target { host: Host::Address(address.ip(), None), port: address.port(), start };
    (target, address)
}

/// The first flight of a TLS 1.1 or 1.2 server with a static key in its certificate, which needs no signature.
fn answer(mut client: TcpStream, suites: &[u16], certificate: Vec<u8>) {
    let mut header = [0; 5];
    if client.read_exact(&mut header).is_err() || header[0] != 22 {
        return;
    }
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    if client.read_exact(&mut hello).is_err() {
        return;
    }
    let hello = ClientHello::parse(&hello).unwrap();
    let suite = suites.iter().find(|suite| hello.suites.contains(suite));
    let Some(suite) = suite.filter(|_| hello.version >= 0x0302) else {
        let _ = client.write_all(&record(ContentType::Alert, 0x0303, &[2, 40]));
        return;
    };
    let mut body = hello.version.min(0x0303).to_be_bytes().to_vec();
    body.extend([0x5a; 32]);
    body.push(0);
    body.extend(suite.to_be_bytes());
    body.push(0);
    let mut flight = handshake(2, &body);
    let one = [&(certificate.len() as u32).to_be_bytes()[1..], &certificate].concat();
    flight.extend(handshake(11, &[&(one.len() as u32).to_be_bytes()[1..], &one].concat()));
    flight.extend(handshake(14, &[]));
    let _ = client.write_all(&record(ContentType::Handshake, 0x0303, &flight));
    // This server has no key to continue with.
    if matches!(client.read(&mut [0; 4096]), Ok(1..)) {
        let _ = client.write_all(&record(ContentType::Alert, 0x0303, &[2, 51]));
    }
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = kind;
    message.extend(body);
    message
}

fn leaf(name: &str) -> Vec<u8> {
    let file = pki::folder().join(format!("{name}.pem"));
    CertificateDer::from_pem_file(file).unwrap().to_vec()
}

/// The leaf with a modulus that is 1 modulo all small primes: 1 is a power of 65537, which is the ROCA pattern.
fn marked() -> Vec<u8> {
    let mut leaf = leaf("rsa");
    let mut product = num_bigint::BigUint::from(1_u8);
    for prime in (2_u32..=167).filter(|n| (2..*n).all(|d| !n.is_multiple_of(d))) {
        product *= prime;
    }
    // INTEGER of 257 bytes, the first of them zero.
    let at = leaf.windows(5).position(|w| w == [2, 0x82, 1, 1, 0]).unwrap() + 5;
    let shift = 2048 - product.bits();
    let modulus = ((product << shift) + 1_u8).to_bytes_be();
    leaf[at..at + 256].copy_from_slice(&modulus);
    leaf
}

/// An SMTP server. A vulnerable one reads ahead, like Postfix before 2.8: it treats plaintext sent with STARTTLS as
/// the first data inside TLS.
fn mail(client: TcpStream, injects: bool) {
    let _ = try_mail(client, injects);
}

fn try_mail(mut client: TcpStream, injects: bool) -> std::io::Result<()> {
    client.write_all(b"220 localhost ESMTP\r\n")?;
    let mut reader = BufReader::new(client.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end().to_ascii_uppercase() {
            line if line == "STARTTLS" => break,
            line if line.starts_with("EHLO") => {
                client.write_all(b"250-localhost\r\n250 STARTTLS\r\n")?;
            }
            line if line == "QUIT" => return client.write_all(b"221 bye\r\n"),
            _ => client.write_all(b"250 ok\r\n")?,
        }
    }
    let ahead = reader.buffer().to_vec();
    client.write_all(b"220 go ahead\r\n")?;
    let chain = CertificateDer::pem_file_iter(pki::folder().join("rsa.chain")).unwrap();
    let chain: Vec<_> = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(pki::folder().join("rsa.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), client);
    tls.conn.complete_io(&mut tls.sock)?;
    if injects {
        for _ in ahead.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            tls.write_all(b"250 ok\r\n")?;
        }
    }
    let mut reader = BufReader::new(tls);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        reader.get_mut().write_all(b"250 ok\r\n")?;
    }
}
