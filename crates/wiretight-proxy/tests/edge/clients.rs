//! Clients with a certificate, for each protocol: which are allowed, what the program is told, and when access ends.

use super::rig;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use hyper::Request;
use hyper::body::Buf;
use rig::edge::{EdgeRig, Raw, SITE, http_backend, run};
use rig::{Ca, TRUST_DOMAIN};
use rustls::ClientConfig;
use rustls_pki_types::PrivateKeyDer;
use wiretight_keys::{Revocations, TrustBundle, x509};
use wiretight_proxy::Reason;

type Shows<'a> = Option<(&'a Ca, &'a str)>;

fn config(rig: &EdgeRig, alpn: &str, shows: Shows<'_>) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rig.ca.root.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(wiretight_proxy::provider::edge())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some((ca, id)) => {
            let (chain, key) = ca.issue(id, 3600);
            builder.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key.to_pkcs8())).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

/// Status and body of `/headers`; `None` if the connection failed.
fn by_http1(rig: &EdgeRig, shows: Shows<'_>) -> Option<(u16, String)> {
    let mut raw = Raw::over(rig::connect(rig.https()), config(rig, "http/1.1", shows), SITE);
    let request = format!("GET /headers HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n");
    let _ = raw.0.write_all(request.as_bytes());
    let answer = raw.rest();
    Some((answer.get(9..12)?.parse().unwrap(), answer))
}

fn by_http2(rig: &EdgeRig, shows: Shows<'_>) -> Option<(u16, String)> {
    run(async {
        use http_body_util::BodyExt;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config(rig, "h2", shows)));
        let socket = tokio::net::TcpStream::connect(rig.https()).await.unwrap();
        let tls = connector.connect(SITE.try_into().unwrap(), socket).await.ok()?;
        let (executor, io) =
            (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(tls));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.ok()?;
        tokio::spawn(connection);
        let request = Request::get(format!("https://{SITE}/headers"));
        let answer = sender.send_request(request.body(rig::edge::full("")).unwrap()).await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    })
}

/// An HTTP/3 connection that is open as long as the value exists.
struct Http3 {
    send: h3::client::SendRequest<h3_quinn::OpenStreams, hyper::body::Bytes>,
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Http3 {
    async fn connect(rig: &EdgeRig, shows: Shows<'_>) -> Option<Http3> {
        let tls = config(rig, "h3", shows);
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        let connection = endpoint.connect(rig.https(), SITE).unwrap().await.ok()?;
        let quic = h3_quinn::Connection::new(connection.clone());
        let (mut driver, send) = h3::client::new(quic).await.ok()?;
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        Some(Http3 { send, connection, _endpoint: endpoint })
    }

    async fn get(&mut self) -> Option<(u16, String)> {
        let request = Request::get(format!("https://{SITE}/headers")).body(()).unwrap();
        let mut stream = self.send.send_request(request).await.ok()?;
        stream.finish().await.ok()?;
        let status = stream.recv_response().await.ok()?.status().as_u16();
        let mut body = Vec::new();
        while let Some(mut data) = stream.recv_data().await.ok()? {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

fn by_http3(rig: &EdgeRig, shows: Shows<'_>) -> Option<(u16, String)> {
    run(async { Http3::connect(rig, shows).await?.get().await })
}

type By = fn(&EdgeRig, Shows<'_>) -> Option<(u16, String)>;
const ALL: [By; 3] = [by_http1, by_http2, by_http3];

#[test]
fn only_members_are_allowed_on_each_protocol() {
    let rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
        settings.sites[0].clients = Some(vec!["service/web".parse().unwrap()]);
    });
    let stranger = Ca::new(TRUST_DOMAIN);
    for by in ALL {
        let (status, answer) = by(&rig, Some((&rig.ca, "service/web"))).unwrap();
        let says = "x-forwarded-client-cert: URI=spiffe://test.example/service/web\n";
        assert!(status == 200 && answer.contains(says), "{status} {answer}");
        assert_eq!(by(&rig, Some((&rig.ca, "service/other"))).unwrap().0, 403);
        assert_eq!(by(&rig, Some((&stranger, "service/web"))), None);
        assert_eq!(by(&rig, None), None);
    }
    let groups = rig.edge.status().handshakes;
    assert!(
        groups.iter().any(|h| h.protocol == "QUIC" && h.group == "X25519MLKEM768"),
        "{groups:?}"
    );
}

#[test]
fn a_sites_own_ca_allows_its_clients_but_not_mesh_members() {
    let (ours, next) = (Ca::new(TRUST_DOMAIN), Ca::new("next.example"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clients.pem");
    let write = |ca: &Ca| std::fs::write(&file, x509::to_pem([&ca.root])).unwrap();
    write(&ours);
    let mut rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
        settings.sites[0].client_ca = Some(file.clone());
    });
    for by in ALL {
        // It contains the name of a mesh member, which must have no effect.
        let (status, answer) = by(&rig, Some((&ours, "service/admin"))).unwrap();
        let line = answer.lines().find(|l| l.starts_with("x-forwarded-client-cert: ")).unwrap();
        assert_eq!(status, 200);
        assert!(line.contains(": Hash=") && line.contains(";Subject=\""), "{line}");
        assert!(!line.contains("spiffe") && !line.contains("URI"), "{line}");
        assert_eq!(by(&rig, Some((&rig.ca, "service/web"))), None);
        assert_eq!(by(&rig, Some((&next, "service/web"))), None);
        assert_eq!(by(&rig, None), None);
    }
    run(async {
        let mut live = Http3::connect(&rig, Some((&ours, "service/a"))).await.unwrap();
        assert_eq!(live.get().await.unwrap().0, 200);
        // A reload with the same CA changes nothing; with another CA, earlier clients are rejected.
        rig.edge.apply(&rig.settings).unwrap();
        assert_eq!(live.get().await.unwrap().0, 200);
        write(&next);
        rig.edge.apply(&rig.settings).unwrap();
        assert_eq!(live.get().await.unwrap().0, 403);
    });
    for by in ALL {
        assert_eq!(by(&rig, Some((&next, "service/web"))).unwrap().0, 200);
        assert_eq!(by(&rig, Some((&ours, "service/web"))), None);
    }
    // An unreadable CA file rejects the whole reload, and the old settings stay.
    std::fs::write(&file, "no certificate").unwrap();
    let error = rig.edge.apply(&rig.settings).unwrap_err().to_string();
    assert!(error.contains("clients.pem: it contains no certificate"), "{error}");
    rig.settings.sites[0].client_ca = Some("/dev/zero".into());
    let error = rig.edge.apply(&rig.settings).unwrap_err().to_string();
    assert!(error.contains("/dev/zero: it is not a regular file"), "{error}");
    rig.settings.sites[0].client_ca = Some(dir.path().join("none.pem"));
    let error = rig.edge.apply(&rig.settings).unwrap_err().to_string();
    assert!(error.contains("none.pem: No such file"), "{error}");
    assert_eq!(by_http3(&rig, Some((&next, "service/web"))).unwrap().0, 200);
}

#[test]
fn a_revoked_members_streams_end_at_once_and_others_continue() {
    let rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
        settings.sites[0].clients =
            Some(["service/web", "service/app"].map(|id| id.parse().unwrap()).into());
    });
    // Two members, each with an endless stream of events.
    let open = |id: &'static str| {
        let (chain, key) = rig.ca.issue(id, 3600);
        let serial = x509::Leaf::parse(&chain[0]).unwrap().serial;
        let mut config = config(&rig, "http/1.1", None);
        let key = PrivateKeyDer::Pkcs8(key.to_pkcs8());
        let provider = config.crypto_provider().clone();
        let certified = rustls::sign::CertifiedKey::from_der(chain, key, &provider).unwrap();
        config.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        let mut raw = Raw::over(rig::connect(rig.https()), config, SITE);
        raw.send(&format!("GET /events HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
        raw.until("data: 1\n\n\r\n");
        (raw, serial)
    };
    let ((mut web, serial), (mut app, _)) = (open("service/web"), open("service/app"));
    let mut live = run_on(Http3::connect(&rig, Some((&rig.ca, "service/app")))).unwrap();
    let series: BTreeSet<_> = [serial.series()].into();
    let revoked = Revocations { series, ..Default::default() };
    let roots = vec![rig.ca.root.clone()];
    rig.mesh.set_bundle(TrustBundle::new(rig.ca.td.clone(), roots, revoked).unwrap());
    web.rest();
    rig::eventually("it is counted", || rig.refused(Reason::Revoked) == 1);
    // The other's stream is still open: a read times out.
    app.0.sock.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let waits = std::io::Read::read(&mut app.0, &mut [0; 64]).unwrap_err();
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(run_on(live.get()).unwrap().0, 200);
    live.connection.close(0u32.into(), b"");
}

/// One shared runtime, for objects that outlive a call.
fn run_on<T>(future: impl Future<Output = T>) -> T {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> = std::sync::LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    RUNTIME.block_on(future)
}
