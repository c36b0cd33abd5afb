//! Complete handshakes with OpenSSL's server, in all its variants.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod openssl;

use openssl::{Keys, Server, have_openssl};
use wiretight_scan::active::handshake::{Failure, Incoming, tls12, tls13};
use wiretight_scan::active::{sessions, shown};
use wiretight_scan::facts::{Answer, Facts};
use wiretight_scan::names::{Version, suites};
use wiretight_scan::parse::{ContentType, extension};

#[tokio::test]
async fn tls1_3_works_with_every_suite_group_and_key() {
    if !have_openssl() {
        return;
    }
    let common =
        ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
    let curves = ["X25519", "P-256", "P-384", "P-521"];
    let all = common.iter().flat_map(|suite| curves.iter().map(move |group| (*suite, *group)));
    let rare = [
        ("TLS_AES_128_CCM_SHA256", "X25519"),
        ("TLS_AES_128_CCM_8_SHA256", "P-256"),
        ("TLS_AES_128_GCM_SHA256", "X448"),
        ("TLS_AES_256_GCM_SHA384", "ffdhe2048"),
    ];
    for (suite, group) in all.chain(rare) {
        let weak = ["-cipher", "ALL:@SECLEVEL=0"];
        let arguments = ["-tls1_3", "-ciphersuites", suite, "-groups", group, "-alpn", "h2"];
        let server = Server::start(Keys::Rsa, &[&arguments[..], &weak].concat());
        let prober = server.prober();
        let hello = shown::hello(&prober).alpn(&["http/1.1", "h2"]);
        let shown = shown::tls1_3(&prober, &hello).await.unwrap();
        assert_eq!(shown.certificates(), [server.certificate()]);
        assert_eq!(shown.scheme, Some(0x0804), "{suite} {group}");
        assert_eq!(shown.alpn().as_deref(), Some("h2"));
        assert_eq!(shown.retry.is_some(), group != "X25519");
    }
    for group in ["ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"] {
        let server = Server::start(Keys::Ecdsa, &["-tls1_3", "-groups", group]);
        let prober = server.prober();
        let shown = shown::tls1_3(&prober, &shown::hello(&prober)).await.unwrap();
        assert_eq!(shown.certificates(), [server.certificate()], "{group}");
    }
    for (keys, scheme) in [(Keys::Ecdsa, 0x0403), (Keys::Ed25519, 0x0807)] {
        let server = Server::start(keys, &["-tls1_3"]);
        let prober = server.prober();
        let shown = shown::tls1_3(&prober, &shown::hello(&prober)).await.unwrap();
        assert_eq!(shown.scheme, Some(scheme));
    }
}

#[tokio::test]
async fn data_flows_after_a_tls1_3_handshake() {
    if !have_openssl() {
        return;
    }
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"] {
        let weak = ["-cipher", "ALL:@SECLEVEL=0"];
        let arguments = ["-tls1_3", "-rev", "-ciphersuites", suite];
        let server = Server::start(Keys::Ecdsa, &[&arguments[..], &weak].concat());
        let prober = server.prober();
        let mut client = tls13::Client::new(prober.connect().await.unwrap(), shown::hello(&prober));
        client.handshake(None).await.unwrap();
        client.channel.send(ContentType::ApplicationData, b"abc\n").await.unwrap();
        loop {
            if let Incoming::Data(data) = client.channel.next().await.unwrap() {
                assert_eq!(data, b"cba\n");
                break;
            }
        }
    }
}

#[tokio::test]
async fn signature_schemes_are_found_one_by_one() {
    if !have_openssl() {
        return;
    }
    let server = Server::start(Keys::Rsa, &["-tls1_3"]);
    let prober = server.prober();
    let facts = shown::signatures(&prober, &shown::hello(&prober)).await;
    let mut names = facts.list("signatures.tls1_3").to_vec();
    names.sort();
    assert_eq!(names, ["rsa_pss_rsae_sha256", "rsa_pss_rsae_sha384", "rsa_pss_rsae_sha512"]);
}

#[tokio::test]
async fn every_old_version_key_exchange_and_cipher_completes() {
    if !have_openssl() {
        return;
    }
    let all = ["-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0", "-www"];
    let mut completed = std::collections::BTreeSet::new();
    for keys in [Keys::Rsa, Keys::Ecdsa] {
        let server = Server::start(keys, &all);
        let prober = server.prober();
        for version in [Version::Tls1_0, Version::Tls1_1, Version::Tls1_2] {
            for suite in suites().iter().filter(|suite| tls12::can_complete(**suite)) {
                let hello = tls12::hello(&prober, version).suites([suite.code]);
                let mut client = tls12::Client::new(prober.connect().await.unwrap(), hello);
                match client.handshake(None, tls12::Faults::default()).await {
                    Ok(()) => {}
                    // Not possible with this version or this key.
                    Err(Failure::Alert(2, 40)) => continue,
                    Err(e) => panic!("{version} {}: {e}", suite.name),
                }
                let get = b"GET / HTTP/1.0\r\n\r\n";
                client.channel.send(ContentType::ApplicationData, get).await.unwrap();
                let mut answer = Vec::new();
                while !answer.starts_with(b"HTTP/1.0 200") {
                    // TLS 1.0: each record is preceded by an empty record or one of one byte.
                    match client.channel.next().await {
                        Ok(Incoming::Data(data)) => answer.extend(data),
                        other => panic!("{version} {}: {other:?}", suite.name),
                    }
                }
                completed.insert((version, suite.name));
            }
        }
    }
    for (version, name) in [
        (Version::Tls1_0, "TLS_RSA_WITH_AES_128_CBC_SHA"),
        (Version::Tls1_0, "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"),
        (Version::Tls1_1, "TLS_DHE_RSA_WITH_AES_256_CBC_SHA"),
        (Version::Tls1_1, "TLS_RSA_WITH_NULL_SHA"),
        (Version::Tls1_2, "TLS_DH_anon_WITH_AES_128_GCM_SHA256"),
        (Version::Tls1_2, "TLS_RSA_WITH_AES_256_CBC_SHA256"),
        (Version::Tls1_2, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384"),
        (Version::Tls1_2, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
        (Version::Tls1_2, "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
        (Version::Tls1_2, "TLS_RSA_WITH_AES_128_CCM"),
        (Version::Tls1_2, "TLS_DHE_RSA_WITH_AES_256_CCM_8"),
        (Version::Tls1_2, "TLS_ECDHE_ECDSA_WITH_AES_256_CCM"),
        (Version::Tls1_2, "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8"),
    ] {
        assert!(completed.contains(&(version, name)), "{version} {name}: {completed:?}");
    }
}

#[tokio::test]
async fn every_old_curve_completes_with_and_without_extended_master_secret() {
    if !have_openssl() {
        return;
    }
    for curve in [
        "X25519",
        "P-256",
        "P-384",
        "P-521",
        "X448",
        "brainpoolP256r1",
        "brainpoolP384r1",
        "brainpoolP512r1",
        "secp256k1",
    ] {
        let server = Server::start(Keys::Rsa, &["-groups", curve]);
        let prober = server.prober();
        for extended in [true, false] {
            let mut hello = tls12::hello(&prober, Version::Tls1_2).suites([0xc02f]);
            if !extended {
                hello = hello.without(extension::EXTENDED_MASTER_SECRET);
            }
            let mut client = tls12::Client::new(prober.connect().await.unwrap(), hello);
            client.handshake(None, tls12::Faults::default()).await.unwrap();
        }
    }
}

/// The facts about a TLS 1.2 server with these additional arguments.
async fn old_sessions(keys: Keys, arguments: &[&str]) -> Facts {
    let server = Server::start(keys, &[&["-tls1_2", "-rev"], arguments].concat());
    let prober = server.prober();
    let facts = sessions::tls1_2(&prober, &tls12::hello(&prober, Version::Tls1_2)).await;
    for (id, fact) in facts.iter() {
        eprintln!("{arguments:?} {id}: {} {:?} ({})", fact.answer, fact.value, fact.evidence);
    }
    facts
}

async fn new_sessions(arguments: &[&str]) -> Facts {
    let server = Server::start(Keys::Ecdsa, &[&["-tls1_3"], arguments].concat());
    let prober = server.prober();
    let facts = sessions::tls1_3(&prober, &shown::hello(&prober)).await;
    for (id, fact) in facts.iter() {
        eprintln!("{arguments:?} {id}: {} {:?} ({})", fact.answer, fact.value, fact.evidence);
    }
    facts
}

#[tokio::test]
async fn tls1_2_resumption_by_id_and_ticket_is_recognized() {
    if !have_openssl() {
        return;
    }
    let facts = old_sessions(Keys::Rsa, &[]).await;
    assert!(facts.yes("session.id") && facts.yes("session.ticket"));
    assert_eq!(facts.number("session.ticket"), Some(7200));
    let facts = old_sessions(Keys::Rsa, &["-no_ticket", "-no_cache"]).await;
    assert_eq!(facts.answer("session.id"), Answer::No);
    assert_eq!(facts.answer("session.ticket"), Answer::No);
}

#[tokio::test]
async fn all_kinds_of_renegotiation_are_recognized() {
    if !have_openssl() {
        return;
    }
    for (arguments, by_client, insecure) in [
        (&["-no_renegotiation"] as &[&str], Answer::No, Answer::No),
        (&["-client_renegotiation"], Answer::Yes, Answer::No),
        (&["-client_renegotiation", "-legacy_renegotiation"], Answer::Yes, Answer::Yes),
    ] {
        let facts = old_sessions(Keys::Rsa, arguments).await;
        assert_eq!(facts.answer("renegotiation.by_client"), by_client, "{arguments:?}");
        let id = "vulnerability.insecure_renegotiation";
        assert_eq!(facts.answer(id), insecure, "{arguments:?}");
    }
}

#[tokio::test]
async fn tls1_3_early_data_and_resumption_without_key_exchange_are_recognized() {
    if !have_openssl() {
        return;
    }
    for (arguments, psk, without_dhe, early) in [
        (&[] as &[&str], Answer::Yes, Answer::No, Answer::No),
        (&["-early_data", "-max_early_data", "5000"], Answer::Yes, Answer::No, Answer::Yes),
        (&["-allow_no_dhe_kex"], Answer::Yes, Answer::Yes, Answer::No),
        (&["-num_tickets", "0"], Answer::No, Answer::No, Answer::No),
        (&["-ciphersuites", "TLS_AES_128_CCM_SHA256"], Answer::Yes, Answer::No, Answer::No),
        // With a HelloRetryRequest.
        (&["-groups", "X448"], Answer::Yes, Answer::No, Answer::No),
        (&["-groups", "ffdhe2048"], Answer::Yes, Answer::No, Answer::No),
        (&["-groups", "P-384"], Answer::Yes, Answer::No, Answer::No),
    ] {
        let facts = new_sessions(arguments).await;
        assert_eq!(facts.answer("session.psk"), psk, "{arguments:?}");
        assert_eq!(facts.answer("session.psk_without_dhe"), without_dhe, "{arguments:?}");
        assert_eq!(facts.answer("session.early_data"), early, "{arguments:?}");
        assert_eq!(facts.answer("client_certificate.requested"), Answer::No);
    }
}

#[tokio::test]
async fn requested_and_required_client_certificates_are_distinguished() {
    if !have_openssl() {
        return;
    }
    for (verify, required) in [("-verify", Answer::No), ("-Verify", Answer::Yes)] {
        let authorities = openssl::authority();
        let arguments = [verify, "1", "-CAfile", authorities.to_str().unwrap()];
        let told = [old_sessions(Keys::Rsa, &arguments).await, new_sessions(&arguments).await];
        let _ = std::fs::remove_file(&authorities);
        for facts in told {
            assert!(facts.yes("client_certificate.requested"));
            assert_eq!(facts.answer("client_certificate.required"), required);
            assert_eq!(facts.list("client_certificate.authorities"), ["CN=An Authority,O=Example"]);
        }
    }
}

/// rustls supports ML-KEM, OpenSSL 3.0 does not.
#[tokio::test]
async fn post_quantum_groups_complete_with_rustls() {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    if !have_openssl() {
        return;
    }
    let keys = Server::start(Keys::Ecdsa, &[]);
    for (group, code) in [
        (kx_group::X25519MLKEM768, 0x11ec),
        (kx_group::SECP256R1MLKEM768, 0x11eb),
        (kx_group::MLKEM768, 0x0201),
        (kx_group::MLKEM1024, 0x0202),
    ] {
        let mut provider = default_provider();
        provider.kx_groups = vec![group];
        let config = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(keys.certificate())],
                PrivateKeyDer::from_pem_file(keys.key()).unwrap(),
            )
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let prober = openssl::prober(listener.local_addr().unwrap());
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.map(drop)
        });
        let shown = shown::tls1_3(&prober, &shown::hello(&prober)).await.unwrap();
        assert_eq!(shown.retry, Some(code));
        assert_eq!(shown.certificates(), [keys.certificate()]);
        // Our Finished is correct, too.
        server.await.unwrap().unwrap();
    }
}
