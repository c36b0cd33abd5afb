//! Captures of handshakes that other projects have collected, in a folder beside the repository that may be missing.

use std::fs::File;
use std::path::{Path, PathBuf};

use wiretight_scan::judge::Level;
use wiretight_scan::passive::file::Capture;
use wiretight_scan::passive::flow::{Limits, Record, Table};

/// The folder of captures; `None`, and a note, if it is missing.
fn captures() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/captures");
    let found = root.is_dir().then_some(root);
    if found.is_none() {
        eprintln!("SKIPPED: ../shared/captures is missing");
    }
    found
}

fn flows(path: &Path) -> Vec<Record> {
    let file = File::open(path).expect("a capture of the folder");
    let mut capture = Capture::new(file).expect("a capture file");
    let mut table = Table::new(Limits { flows: 10_000, undecided: 1000, sample: 1 });
    while let Some(Ok(frame)) = capture.next_frame() {
        table.frame(frame.link, frame.at, frame.bytes, frame.length);
    }
    table.finish()
}

/// Capture, protocol, level, and the beginning of the evidence of one of its flows.
const EXPECTED: &[(&str, &str, Level, &str)] = {
    use Level::*;
    &[
        (
            "zeek/tls/tls13_wolfssl.pcap",
            "tls",
            Acceptable,
            "ServerHello: TLS 1.3, TLS_AES_256_GCM_SHA384, secp256r1",
        ),
        (
            "zeek/tls/tls13_psk_succesfull.pcap",
            "tls",
            Acceptable,
            "ServerHello: TLS 1.3, TLS_CHACHA20_POLY1305_SHA256, x25519, resumed",
        ),
        (
            "zeek/tls/tls12-decryption.pcap",
            "tls",
            Acceptable,
            "ServerHello: TLS 1.2, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, x25519",
        ),
        (
            "zeek/tls/ecdsa-cert.pcap",
            "tls",
            Acceptable,
            "ServerHello: TLS 1.2, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, secp384r1",
        ),
        // Static RSA, RC4; a short prime; a leaf that is signed with SHA-1.
        ("zeek/tls/tls1.2.pcap", "tls", Weak, "ServerHello: TLS 1.2, TLS_RSA_WITH_RC4_128_MD5"),
        (
            "zeek/tls/cert-no-cn.pcap",
            "tls",
            Weak,
            "ServerHello: TLS 1.0, TLS_DHE_RSA_WITH_AES_256_CBC_SHA, dh-512",
        ),
        (
            "zeek/tls/google-duplicate.pcap",
            "tls",
            Weak,
            "ServerHello: TLS 1.2, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, secp256r1",
        ),
        (
            "zeek/tls/tls-13draft19-early-data.pcap",
            "tls",
            Acceptable,
            "ServerHello: TLS 1.3 draft 19",
        ),
        (
            "zeek/tls/dtls1_0.pcap",
            "dtls",
            Weak,
            "ServerHello: DTLS 1.0, TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, secp256r1",
        ),
        (
            "zeek/tls/webrtc-stun.pcap",
            "dtls",
            Weak,
            "ServerHello: DTLS 1.0, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, secp256r1, keys for SRTP",
        ),
        (
            "ndpi/pcap/stun_google_meet.pcapng",
            "dtls",
            Acceptable,
            "ServerHello: DTLS 1.2, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, x25519, keys for SRTP",
        ),
        (
            "zeek/quic/quic_win11_firefox_google.pcap",
            "quic",
            Acceptable,
            "ServerHello: QUIC 1, TLS_AES_128_GCM_SHA256, x25519",
        ),
        (
            "zeek/quic/chromium-115.0.5790.110-api-cirrus-com.pcap",
            "quic",
            Acceptable,
            "ServerHello: QUIC 1, TLS_AES_128_GCM_SHA256, x25519, resumed",
        ),
        ("ndpi/pcap/quic-forcing-vn-with-data.pcapng", "quic", Acceptable, "ServerHello: QUIC 1"),
        (
            "zeek/ssh/ssh_kex_mlkem.pcap",
            "ssh",
            Strong,
            "KEXINIT: mlkem768x25519-sha256, ssh-ed25519, chacha20-poly1305@openssh.com",
        ),
        (
            "zeek/ssh/ssh_kex_dh_group18.pcap",
            "ssh",
            Acceptable,
            "KEXINIT: diffie-hellman-group18-sha512",
        ),
        (
            "zeek/ssh/single-conn.pcap",
            "ssh",
            Weak,
            "KEXINIT: diffie-hellman-group-exchange-sha1, ssh-rsa, aes128-cbc, hmac-md5",
        ),
        ("zeek/rdp/rdp-proprietary-encryption.pcap", "rdp", Unknown, "standard RDP security"),
        // What did not complete, or is no TLS after all.
        ("zeek/tls/certificate-request-failed.pcap", "tls", Unknown, "ServerHello: TLS 1.2"),
        ("zeek/tls/tls1.2-late-protocol-error.pcap", "tls", Unknown, "ServerHello: TLS 1.2"),
        (
            "zeek/tls/tls-1.2-protocol-error.pcap",
            "tls",
            Unknown,
            "a ClientHello, answered with something else",
        ),
        (
            "zeek/tls/tls13draft16-ff52.a01-aborted.pcap",
            "tls",
            Unknown,
            "the server refused the handshake",
        ),
        (
            "zeek/tls/ssl-to-http-server.pcap",
            "http",
            Plaintext,
            "a ClientHello, answered in plaintext",
        ),
        (
            "ndpi/pcap/tls_1.3_unidirectional_client.pcapng",
            "tls",
            Unknown,
            "a ClientHello without an answer",
        ),
        (
            "ndpi/pcap/tls_1.3_unidirectional_server.pcapng",
            "tls",
            Acceptable,
            "ServerHello: TLS 1.3",
        ),
        ("ndpi/pcap/quic046.pcap", "gquic", Unknown, "Google QUIC, version Q046"),
    ]
};

#[test]
fn captured_handshakes_have_the_level_of_what_was_negotiated() {
    let Some(root) = captures() else { return };
    for (name, protocol, level, evidence) in EXPECTED {
        let flows = flows(&root.join(name));
        let found = flows.iter().any(|flow| {
            let seen = &flow.seen;
            seen.protocol == *protocol
                && seen.level == *level
                && seen.evidence.starts_with(evidence)
        });
        let all: Vec<_> =
            flows.iter().map(|f| (&f.seen.protocol, f.seen.level, &f.seen.evidence)).collect();
        assert!(found, "{name}: {protocol} {level} {evidence}, among {all:#?}");
    }
}
