//! Sample reports as from scans of real servers: modern, old, unencrypted, unreachable, throttling, and with
//! hostile text in its certificate.

#![allow(dead_code, reason = "each test program takes what it needs")]

use wiretight_scan::certificate::{Certificate, Chain};
use wiretight_scan::facts::Answer::{Inconclusive, No, Untested, Yes};
use wiretight_scan::facts::{Answer, Facts, Value};
use wiretight_scan::judge::judge;
use wiretight_scan::{Reached, Report};

pub fn all() -> Vec<Report> {
    vec![modern(), mail(), old(), plaintext(), throttled(), unreachable(), hostile()]
}

/// TLS 1.3 with a hybrid group, TLS 1.2 with ECDHE and AEAD, a certificate like those of Let's Encrypt.
pub fn modern() -> Report {
    report("https://www.example.com", "192.0.2.10", Reached::Tls, modern_facts(), chains())
}

/// Like most servers today: fine, but without post-quantum groups and with CBC; by STARTTLS.
pub fn mail() -> Report {
    let mut f = modern_facts();
    f.set("starttls.offered", Yes, None, "250-STARTTLS");
    f.set("starttls.injection", No, None, "NOOP sent with STARTTLS was dropped");
    f.set("post_quantum", No, None, "handshake_failure (40) to each of 9 groups");
    f.set("groups.tls1_3", Yes, list(&["x25519", "secp256r1", "secp384r1"]), "in 4 hellos");
    suite(&mut f, "tls1_2", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384");
    f.set("weak.cbc", Yes, list(&["TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384"]), "taken");
    f.set("vulnerability.lucky13", Yes, None, "CBC without encrypt-then-MAC");
    for id in ["http.status", "http.hsts", "http.redirect", "http.hsts.preload"] {
        f.set(id, Untested, None, "not HTTP");
    }
    report("smtp://mail.example.com:25", "192.0.2.25", Reached::Tls, f, chains())
}

/// A device without updates since 2012.
pub fn old() -> Report {
    let mut f = Facts::default();
    f.set("protocol.ssl2", Yes, None, "SSLv2 ServerHello with 2 ciphers");
    f.set("protocol.ssl3", Yes, None, "ServerHello chose SSL 3.0");
    f.set("protocol.tls1_0", Yes, None, "ServerHello chose TLS 1.0");
    f.set("protocol.tls1_1", No, None, "ServerHello chose TLS 1.0");
    f.set("protocol.tls1_2", No, None, "ServerHello chose TLS 1.0");
    f.set("protocol.tls1_3", No, None, "ServerHello chose TLS 1.0");
    f.set("protocol.quic", No, None, "no answer between two answered controls");
    f.set("suites.ssl2", Yes, list(&["SSL_CK_RC4_128_WITH_MD5"]), "ServerHello");
    f.set("suite.ssl2.SSL_CK_RC4_128_WITH_MD5", Yes, None, "ServerHello");
    let suites = [
        "TLS_RSA_WITH_RC4_128_SHA",
        "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
        "TLS_RSA_WITH_AES_128_CBC_SHA",
        "TLS_RSA_EXPORT_WITH_RC4_40_MD5",
        "TLS_DHE_RSA_WITH_AES_128_CBC_SHA",
        "TLS_DH_anon_WITH_RC4_128_MD5",
        "TLS_RSA_WITH_NULL_SHA",
        "TLS_RSA_WITH_DES_CBC_SHA",
    ];
    for version in ["ssl3", "tls1_0"] {
        f.set(format!("suites.{version}"), Yes, list(&suites), "9 hellos, the last was refused");
        f.set(format!("preference.{version}"), No, None, "it chose the first suite offered");
        for name in suites {
            suite(&mut f, version, name);
        }
    }
    f.set("dh.bits", Yes, Some(Value::Number(1024)), "ServerKeyExchange");
    f.set("dh.safe", No, None, "1024 bits, not of RFC 7919");
    f.set("dh.common_prime", Yes, Some(Value::Text("Apache 2.2".into())), "known prime");
    f.set("post_quantum", No, None, "no TLS 1.3");
    f.set("groups.tls1_2", Yes, list(&["secp160r1", "secp256r1"]), "3 hellos");
    f.set("signatures.tls1_2", Untested, None, "no TLS 1.2");
    f.set("forward_secrecy.all", No, None, "TLS_RSA_WITH_RC4_128_SHA");
    f.set("forward_secrecy.any", Yes, None, "TLS_DHE_RSA_WITH_AES_128_CBC_SHA");
    f.set("weak.null", Yes, list(&["TLS_RSA_WITH_NULL_SHA"]), "taken");
    f.set("weak.anonymous", Yes, list(&["TLS_DH_anon_WITH_RC4_128_MD5"]), "taken");
    f.set("weak.export", Yes, list(&["TLS_RSA_EXPORT_WITH_RC4_40_MD5"]), "taken");
    f.set("weak.rc4", Yes, list(&["TLS_RSA_WITH_RC4_128_SHA"]), "taken");
    f.set("weak.des", Yes, list(&["TLS_RSA_WITH_DES_CBC_SHA"]), "taken");
    f.set("weak.static_rsa", Yes, list(&["TLS_RSA_WITH_AES_128_CBC_SHA"]), "taken");
    f.set("weak.static_dh", No, None, "refused");
    f.set("weak.cbc", Yes, list(&["TLS_RSA_WITH_AES_128_CBC_SHA"]), "taken");
    f.set("certificate.trusted", No, None, "self-signed");
    f.set("certificate.trusted_by_mesh", No, None, "self-signed");
    f.set("certificate.self_signed", Yes, None, "issuer and subject are the same");
    f.set("certificate.name", No, None, "localhost.localdomain");
    f.set("certificate.valid", No, Some(Value::Number(0)), "ended 2013-05-01");
    f.set("certificate.weak_signature", No, None, "a root's own signature does not count");
    f.set("certificate.keys", Yes, list(&["rsa-1024"]), "Certificate");
    f.set("certificate.key_bits", Yes, Some(Value::Number(1024)), "Certificate");
    f.set("certificate.complete", Yes, None, "one certificate");
    f.set("certificate.ordered", Yes, None, "one certificate");
    f.set("certificate.revocation", No, None, "no CRL, no OCSP");
    f.set("session.id", Yes, None, "the same ID came back");
    f.set("session.ticket", No, None, "no ticket");
    f.set("compression", Yes, None, "ServerHello chose DEFLATE");
    f.set("renegotiation.secure", No, None, "no renegotiation_info");
    f.set("renegotiation.by_client", Yes, None, "ServerHello after HelloRequest");
    f.set("extension.heartbeat", Yes, None, "answered");
    for (name, answer, evidence) in [
        ("heartbleed", Yes, "16384 bytes for a request of 1"),
        ("ccs_injection", Yes, "no alert to an early ChangeCipherSpec"),
        ("ticketbleed", Untested, "no tickets"),
        ("robot", Inconclusive, "answers differ from run to run"),
        ("drown", Yes, "SSL 2.0 with this key"),
        ("poodle_ssl", Yes, "CBC with SSL 3.0"),
        ("poodle_tls", No, "bad_record_mac (20)"),
        ("freak", Yes, "RSA export"),
        ("logjam", Yes, "1024 bits"),
        ("sweet32", Yes, "3DES"),
        ("crime", Yes, "DEFLATE"),
        ("beast", Yes, "CBC with TLS 1.0"),
        ("lucky13", Yes, "CBC without encrypt-then-MAC"),
        ("rc4", Yes, "RC4"),
        ("insecure_renegotiation", Yes, "renegotiated without RFC 5746"),
    ] {
        f.set(format!("vulnerability.{name}"), answer, None, evidence);
    }
    let mut leaf = certificate("CN=localhost.localdomain,O=SomeOrganization,C=--", "rsa-1024");
    leaf.issuer = leaf.subject.clone();
    leaf.names = Vec::new();
    leaf.signature = "rsa-pkcs1-sha1".into();
    leaf.sha256 = "0d".repeat(32);
    leaf.spki_sha256 = "0e".repeat(32);
    leaf.not_before = Some(time("2012-05-01T00:00:00Z"));
    leaf.not_after = Some(time("2013-05-01T00:00:00Z"));
    let chain = Chain {
        when: vec!["default".into()],
        certificates: vec![leaf],
        trusted: No,
        evidence: "self-signed".into(),
    };
    report("https://legacy.example.com:8443", "192.0.2.12", Reached::Tls, f, vec![chain])
}

pub fn plaintext() -> Report {
    let said = "it answered with `+PONG`".to_owned();
    let mut f = Facts::default();
    f.set("plaintext", Yes, None, said.clone());
    let reached = Reached::Plaintext { evidence: said };
    report("tls://cache.example.com:6379", "192.0.2.63", reached, f, Vec::new())
}

pub fn unreachable() -> Report {
    let reached = Reached::Unreachable { evidence: "connection refused (os error 111)".into() };
    report("gone.example.com", "192.0.2.99", reached, Facts::default(), Vec::new())
}

/// A server that answers the first hellos and resets the others.
pub fn throttled() -> Report {
    let mut f = Facts::default();
    let reset = "connection reset, also after 8 s";
    f.set("protocol.tls1_3", Yes, None, "ServerHello chose TLS 1.3");
    f.set("protocol.tls1_2", Yes, None, "ServerHello chose TLS 1.2");
    for id in ["ssl2", "ssl3", "tls1_0", "tls1_1"] {
        f.set(format!("protocol.{id}"), Inconclusive, None, reset);
    }
    f.set("suites.tls1_3", Yes, list(&["TLS_AES_256_GCM_SHA384"]), "2 hellos");
    suite(&mut f, "tls1_3", "TLS_AES_256_GCM_SHA384");
    f.set("suites.tls1_2", Inconclusive, None, reset);
    f.set("groups.tls1_3", Inconclusive, list(&["X25519MLKEM768"]), reset);
    f.set("group.X25519MLKEM768", Yes, None, "HelloRetryRequest");
    f.set("post_quantum", Yes, list(&["X25519MLKEM768"]), "HelloRetryRequest");
    f.set("certificate.trusted", Yes, None, "ISRG Root X1");
    f.set("certificate.name", Yes, None, "www.example.com");
    f.set("certificate.valid", Yes, Some(Value::Number(48)), "until 2027-01-13");
    report("www.example.net:443", "2001:db8::443", Reached::Tls, f, chains())
}

/// A certificate with control sequences for terminals and markup for browsers.
pub fn hostile() -> Report {
    let mut report = modern();
    let evil = "CN=\u{1b}]0;owned\u{7}\u{1b}[2J<script>alert(1)</script>\u{202e}gpj.exe\r\n&\"'";
    let leaf = &mut report.chains[0].certificates[0];
    leaf.subject = evil.into();
    leaf.issuer = "\u{9b}31mCN=red".into();
    leaf.names = vec![evil.into(), "[click](http://evil.example)".into()];
    report.facts.set("certificate.name", No, None, evil);
    report.facts.set("http.header.server", Yes, Some(Value::Text(evil.into())), evil);
    report.target = "https://hostile.example.com".parse().unwrap_or_else(|e| panic!("{e}"));
    report.judgement = judge(&report.reached, &report.facts, &report.chains).into();
    report
}

pub fn modern_facts() -> Facts {
    let mut f = Facts::default();
    for old in ["ssl2", "ssl3", "tls1_0", "tls1_1"] {
        f.set(format!("protocol.{old}"), No, None, "alert protocol_version (70)");
    }
    f.set("protocol.tls1_2", Yes, None, "ServerHello chose TLS 1.2");
    f.set("protocol.tls1_3", Yes, None, "ServerHello chose TLS 1.3");
    f.set("protocol.quic", Yes, None, "ServerHello in an Initial packet");
    let new = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    f.set("suites.tls1_3", Yes, list(&new), "4 hellos, the last was refused");
    for name in new {
        suite(&mut f, "tls1_3", name);
    }
    let old = [
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ];
    f.set("suites.tls1_2", Yes, list(&old), "4 hellos, the last was refused");
    for name in old {
        suite(&mut f, "tls1_2", name);
    }
    f.set("preference.tls1_3", Yes, None, "it chose the same suite from another order");
    f.set("preference.tls1_2", Yes, None, "it chose the same suite from another order");
    let groups = ["X25519MLKEM768", "x25519", "secp256r1", "secp384r1"];
    f.set("groups.tls1_3", Yes, list(&groups), "5 hellos, the last was refused");
    for name in groups {
        f.set(format!("group.{name}"), Yes, None, "HelloRetryRequest");
    }
    f.set("groups.tls1_2", Yes, list(&groups[1..]), "4 hellos, the last was refused");
    f.set("preference.groups", Yes, None, "HelloRetryRequest for a group without key share");
    f.set("post_quantum", Yes, list(&["X25519MLKEM768"]), "HelloRetryRequest");
    f.set("dh.bits", No, None, "no DHE suite");
    let schemes = list(&["ecdsa_secp256r1_sha256"]);
    f.set("signatures.tls1_2", Yes, schemes.clone(), "31 hellos");
    f.set("signatures.tls1_3", Yes, schemes, "CertificateVerify");
    f.set("forward_secrecy.all", Yes, None, "ECDHE alone");
    f.set("forward_secrecy.any", Yes, None, "ECDHE alone");
    for name in ["null", "anonymous", "export", "rc4", "des", "static_rsa", "static_dh", "cbc"] {
        f.set(format!("weak.{name}"), No, None, "rejected: handshake_failure (40)");
    }
    f.set("certificate.trusted", Yes, None, "ISRG Root X2");
    f.set("certificate.trusted_by_mesh", Untested, None, "no trust bundle was given");
    f.set("certificate.name", Yes, None, "www.example.com");
    f.set("certificate.valid", Yes, Some(Value::Number(48)), "until 2027-01-13");
    f.set("certificate.ordered", Yes, None, "2 certificates");
    f.set("certificate.complete", Yes, None, "2 certificates");
    f.set("certificate.self_signed", No, None, "2 certificates");
    f.set("certificate.weak_signature", No, None, "ecdsa-sha384");
    f.set("certificate.key_bits", Yes, Some(Value::Number(256)), "ecdsa-p256");
    f.set("certificate.keys", Yes, list(&["ecdsa-p256"]), "Certificate");
    f.set("certificate.scts", Yes, Some(Value::Number(2)), "in the certificate");
    f.set("certificate.must_staple", No, None, "no TLS feature extension");
    f.set("certificate.ocsp_stapled", No, None, "no CertificateStatus");
    f.set("certificate.revocation", Yes, None, "http://e8.c.lencr.org/1.crl");
    f.set("certificate.wildcard", No, None, "www.example.com");
    f.set("session.id", No, None, "another ID");
    f.set("session.ticket", Yes, Some(Value::Number(7200)), "NewSessionTicket");
    f.set("session.psk", Yes, None, "pre_shared_key in ServerHello");
    f.set("session.psk_without_dhe", No, None, "full handshake");
    f.set("session.early_data", No, None, "no early_data in NewSessionTicket");
    f.set("extension.extended_master_secret", Yes, None, "in ServerHello");
    f.set("extension.heartbeat", No, None, "not in ServerHello");
    f.set("renegotiation.secure", Yes, None, "renegotiation_info");
    f.set("renegotiation.by_client", No, None, "alert no_renegotiation (100)");
    f.set("compression", No, None, "NULL chosen");
    f.set("fallback_scsv", Yes, None, "alert inappropriate_fallback (86)");
    f.set("alpn", Yes, list(&["h2", "http/1.1"]), "2 hellos");
    f.set("tolerance.version", Yes, None, "ServerHello chose TLS 1.3");
    f.set("tolerance.grease", Yes, None, "ServerHello");
    f.set("client_certificate.requested", No, None, "no CertificateRequest");
    f.set("sni.required", No, None, "a certificate without a name");
    f.set("http.status", Yes, Some(Value::Number(200)), "HTTP/1.1 200 OK");
    f.set("http.hsts", Yes, Some(Value::Number(63_072_000)), "max-age=63072000; includeSubDomains");
    f.set("http.hsts.subdomains", Yes, None, "includeSubDomains");
    f.set("http.hsts.preload", No, None, "max-age=63072000; includeSubDomains");
    f.set("http.redirect", Yes, None, "301 to https://www.example.com/");
    let all =
        wiretight_scan::facts::TABLE.iter().filter_map(|e| e.id.strip_prefix("vulnerability."));
    for name in all {
        f.set(format!("vulnerability.{name}"), No, None, "refused");
    }
    f
}

pub fn chains() -> Vec<Chain> {
    let mut issuer = certificate("CN=E8,O=Let's Encrypt,C=US", "ecdsa-p384");
    issuer.issuer = "CN=ISRG Root X2,O=Internet Security Research Group,C=US".into();
    issuer.ca = true;
    issuer.names = Vec::new();
    issuer.serial = "63de5a7dc9ee4cd1b2ef5d0a1c".into();
    issuer.sha256 = "ab".repeat(32);
    issuer.spki_sha256 = "ac".repeat(32);
    issuer.not_before = Some(time("2024-03-13T00:00:00Z"));
    issuer.not_after = Some(time("2027-03-12T23:59:59Z"));
    vec![Chain {
        when: vec!["default".into(), "without a server name".into()],
        certificates: vec![certificate("CN=www.example.com", "ecdsa-p256"), issuer],
        trusted: Yes,
        evidence: "ISRG Root X2".into(),
    }]
}

pub fn certificate(subject: &str, key: &str) -> Certificate {
    let bits = key.trim_start_matches(|c: char| !c.is_ascii_digit());
    Certificate {
        subject: subject.into(),
        issuer: "CN=E8,O=Let's Encrypt,C=US".into(),
        serial: "04a1b2c3d4e5f60718293a4b5c6d7e8f9012".into(),
        not_before: Some(time("2026-10-15T08:00:01Z")),
        not_after: Some(time("2027-01-13T08:00:00Z")),
        key: key.into(),
        key_bits: bits.parse().unwrap_or(256),
        signature: "ecdsa-sha384".into(),
        names: vec!["www.example.com".into(), "example.com".into()],
        sha256: "5f".repeat(32),
        spki_sha256: "7e".repeat(32),
        ca: false,
        superfluous: false,
        problems: Vec::new(),
    }
}

pub fn report(
    target: &str,
    address: &str,
    reached: Reached,
    facts: Facts,
    chains: Vec<Chain>,
) -> Report {
    let judgement = judge(&reached, &facts, &chains);
    Report {
        target: target.parse().unwrap_or_else(|e| panic!("{e}")),
        address: address.parse().ok(),
        started: time("2026-11-26T12:00:00Z"),
        seconds: 1.25,
        connections: 41,
        reached,
        facts,
        observed: Vec::new(),
        chains,
        judgement: judgement.into(),
    }
}

pub fn suite(facts: &mut Facts, version: &str, name: &str) {
    facts.set(format!("suite.{version}.{name}"), Answer::Yes, None, "ServerHello chose it");
}

pub fn list(names: &[&str]) -> Option<Value> {
    Some(Value::List(names.iter().map(|name| (*name).to_owned()).collect()))
}

fn time(text: &str) -> jiff::Timestamp {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}
