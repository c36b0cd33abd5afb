//! The edge with foreign programs: curl, wrk and openssl as clients, nginx as backend.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::rig::*;
use super::traffic::{curl, nginx};

const NAME: &str = "www.example.test";

/// A node with one site, with nginx as the backend.
pub(crate) struct Edge {
    pub(crate) node: Node,
    pub(crate) https: SocketAddr,
    http: SocketAddr,
    cert: PathBuf,
    key: PathBuf,
    _nginx: Kid,
    _world: World,
}

/// A self-signed certificate made by openssl.
fn certificate(cert: &Path, key: &Path, how: &[&str]) {
    let mut command = Command::new(find("openssl").unwrap());
    command.args(["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=x"]).args(how);
    command.args(["-addext", &format!("subjectAltName=DNS:{NAME},DNS:localhost")]);
    Ran::of(command.arg("-out").arg(cert).arg("-keyout").arg(key), "").good();
}

const P256: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

impl Edge {
    pub(crate) fn new() -> Edge {
        let world = World::new();
        let origin = free();
        let nginx = nginx(
            &world,
            "origin",
            &format!(
                "http {{ access_log off; keepalive_requests 10000000; client_max_body_size 1g; \
                 client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; \
                 uwsgi_temp_path uwsgi; scgi_temp_path scgi; server {{ listen {origin}; \
                 location / {{ return 200 \"$http_x_forwarded_proto $http_host $http_x_forwarded_for\"; }} }} }}"
            ),
        );
        wait_port(origin);
        let (https, http) = (free(), free());
        let (cert, key) = (world.path("site.pem"), world.path("site.key"));
        certificate(&cert, &key, &P256);
        let sections = format!(
            "[authority]\nlisten = \"{}\"\n[edge]\nhttps = \"{https}\"\nhttp = \"{http}\"\n[[site]]\nnames = [\"{NAME}\", \"localhost\"]\n\
             to = \"{origin}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            free(),
            cert.display(),
            key.display()
        );
        let mut node = world.node("edge1", &sections);
        node.start();
        node.ready();
        wait_port(https);
        Edge { node, https, http, cert, key, _nginx: nginx, _world: world }
    }

    fn curl(&self, args: &[&str], path: &str) -> Ran {
        self.client()(args, &[path])
    }

    /// curl on a separate thread: all paths on one connection.
    pub(crate) fn client(&self) -> impl Fn(&[&str], &[&str]) -> Ran + Send + 'static {
        let (port, address) = (self.https.port(), self.https.ip());
        let (resolve, cert) = (format!("{NAME}:{port}:{address}"), self.cert.clone());
        move |args, paths| {
            let urls: Vec<_> =
                paths.iter().map(|path| format!("https://{NAME}:{port}{path}")).collect();
            let urls: Vec<_> = urls.iter().map(String::as_str).collect();
            let trust = ["--resolve", &resolve, "--cacert", cert.to_str().unwrap()];
            curl(&[&trust, args, &urls].concat())
        }
    }

    /// The output of openssl for a handshake.
    fn s_client(&self, args: &[&str]) -> Ran {
        let at = self.https.to_string();
        let mut command = Command::new(find("openssl").unwrap());
        command.args(["s_client", "-connect", &at, "-servername", NAME]).args(args);
        Ran::of(&mut command, "")
    }
}

#[test]
fn curl_uses_http1_and_http2_and_the_node_reports_it() {
    if !has(&["nginx", "curl", "openssl"]) {
        return;
    }
    let edge = Edge::new();
    let expected = format!("https {NAME}:{} 127.0.0.1", edge.https.port());
    for (version, told) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let ran = edge.curl(&[version, "-w", " %{http_version}"], "/").good();
        assert_eq!(ran.out, format!("{expected} {told}"));
    }
    let head = edge.curl(&["-D", "-", "-o", "/dev/null"], "/").good().out;
    assert!(head.contains("strict-transport-security: max-age=300\r\n"), "{head}");
    assert!(head.contains(&format!("alt-svc: h3=\":{}\"", edge.https.port())), "{head}");

    let plain = format!("http://{}/a?b=c", edge.http);
    let host = format!("Host: {NAME}");
    let ran = curl(&["-D", "-", "-H", &host, &plain]).good();
    assert!(ran.out.starts_with("HTTP/1.1 308 "), "{}", ran.out);
    let to = format!("location: https://{NAME}:{}/a?b=c\r\n", edge.https.port());
    assert!(ran.out.contains(&to), "{}", ran.out);

    let status = edge.node.status();
    let site = &status["edge"]["sites"][0];
    assert_eq!(site["names"][0], NAME);
    let days = site["expires_in_seconds"].as_i64().unwrap() / 86_400;
    assert!((29..=30).contains(&days), "{site}");
    let shown = edge.node.cli(&["status"]).good().out;
    assert!(shown.contains(NAME) && shown.contains("TLSv1.3"), "{shown}");
    let metrics = edge.node.probe("/metrics").unwrap().1;
    for line in [
        &format!("wiretight_edge_requests_total{{site=\"{NAME}\",http=\"h2\",status=\"2xx\"}} 2"),
        &format!(
            "wiretight_edge_requests_total{{site=\"{NAME}\",http=\"http/1.1\",status=\"2xx\"}} 1"
        ),
        "wiretight_edge_handshakes_total{protocol=\"TLSv1.3\",group=\"X25519\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let access = edge.node.access();
    let line = access.iter().find(|l| l["side"] == "edge").unwrap();
    let got = ["site", "http", "method", "path"].map(|k| line[k].as_str().unwrap().to_owned());
    assert_eq!(got, [NAME, "http/1.1", "GET", "/"]);
    assert_eq!((&line["status"], &line["end"]), (&200.into(), &"done".into()));
}

#[test]
fn openssl_gets_strong_parameters_only() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let edge = Edge::new();
    let strong = edge.s_client(&["-brief"]);
    assert!(strong.all().contains("TLSv1.3"), "{}", strong.all());
    let tls12 = edge.s_client(&["-brief", "-tls1_2"]);
    assert!(tls12.all().contains("ECDHE-ECDSA-AES"), "{}", tls12.all());
    assert!(tls12.all().contains("GCM"), "{}", tls12.all());
    for weak in [
        &["-tls1_1"][..],
        &["-tls1"],
        &["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA:AES128-GCM-SHA256:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"],
        &["-servername", "other.example.test"],
        &["-noservername"],
    ] {
        let mut args = vec!["-brief"];
        args.extend(weak);
        let ran = match weak {
            ["-noservername"] => {
                let at = edge.https.to_string();
                let mut command = Command::new(find("openssl").unwrap());
                command.args(["s_client", "-connect", &at, "-brief", "-noservername"]);
                Ran::of(&mut command, "")
            }
            _ => edge.s_client(&args),
        };
        assert_ne!(ran.code, Some(0), "{weak:?}: {}", ran.all());
    }
}

#[test]
fn wrk_sees_no_error() {
    if !has(&["nginx", "wrk", "openssl"]) {
        return;
    }
    let edge = Edge::new();
    for headers in [&[][..], &["-H", "Connection: close"]] {
        let mut command = Command::new(find("wrk").unwrap());
        command.args(["-t", "1", "-c", "32", "-d", "2s"]).args(headers);
        // wrk resolves the name.
        let url = format!("https://localhost:{}/", edge.https.port());
        let ran = Ran::of(command.arg(url), "").good();
        assert!(!ran.out.contains("Non-2xx"), "{}", ran.out);
        assert!(!ran.out.contains("Socket errors"), "{}", ran.out);
        let line = ran.out.lines().find(|l| l.contains("requests in")).unwrap_or("?");
        assert!(!line.trim().starts_with("0 "), "{}", ran.out);
        let kind = if headers.is_empty() { "kept" } else { "new" };
        say(format!("wrk, {kind} connections to the edge: {}", line.trim()));
    }
}

#[test]
fn a_renewed_certificate_is_loaded_and_an_invalid_one_is_not() {
    if !has(&["nginx", "curl", "openssl"]) {
        return;
    }
    let edge = Edge::new();
    edge.curl(&[], "/").good();
    // A key that is too short: the valid certificate stays in use, and the status has the reason.
    let old = fs::read(&edge.cert).unwrap();
    let (weak, weak_key) = (edge.cert.with_extension("weak"), edge.key.with_extension("weak-key"));
    certificate(&weak, &weak_key, &["-newkey", "rsa:1024"]);
    let good_key = fs::read(&edge.key).unwrap();
    fs::rename(&weak, &edge.cert).unwrap();
    fs::rename(&weak_key, &edge.key).unwrap();
    wait_for("the status tells of the short key", || {
        let error = edge.node.status()["site_errors"][NAME].to_string();
        error.contains("1024 bits")
    });
    let at = edge.cert.with_extension("old");
    fs::write(&at, &old).unwrap();
    let port = edge.https.port();
    let resolve = format!("{NAME}:{port}:127.0.0.1");
    let url = format!("https://{NAME}:{port}/");
    curl(&["--resolve", &resolve, "--cacert", at.to_str().unwrap(), &url]).good();
    // A reload with it is rejected.
    assert!(edge.node.cli(&["reload"]).all().contains("1024 bits"));
    fs::write(&edge.key, good_key).unwrap();
    fs::write(&edge.cert, &old).unwrap();
    wait_for("it is valid again", || edge.node.status()["site_errors"][NAME].is_null());
    let (new, new_key) = (edge.cert.with_extension("new"), edge.key.with_extension("new-key"));
    certificate(&new, &new_key, &["-newkey", "rsa:2048"]);
    fs::rename(&new, &edge.cert).unwrap();
    fs::rename(&new_key, &edge.key).unwrap();
    wait_for("the new one is served", || edge.curl(&[], "/").code == Some(0));
    edge.node.cli(&["reload"]).good();
}

#[test]
fn hsts_durations_grow_across_restarts_and_start_over_if_the_file_is_damaged() {
    if !has(&["nginx", "curl", "openssl"]) {
        return;
    }
    let mut edge = Edge::new();
    let promise = |edge: &Edge| {
        let head = edge.curl(&["-D", "-", "-o", "/dev/null"], "/").good().out;
        let line = head.lines().find_map(|l| l.strip_prefix("strict-transport-security: "));
        line.unwrap().to_owned()
    };
    let file = edge.node.state().join("sites.json");
    assert_eq!(promise(&edge), "max-age=300");
    let restart = |edge: &mut Edge| {
        edge.node.kid().signal(Signal::TERM);
        assert!(edge.node.kid().ended(ms(60_000)).is_some(), "it does not end");
        let kept: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        kept
    };
    let mut kept = restart(&mut edge);
    let since = kept["healthy_since"][NAME].as_u64().unwrap();
    assert!(since <= kept["at"].as_u64().unwrap());
    // As two hours later; time while it was stopped does not count.
    kept["healthy_since"][NAME] = (since - 7200).into();
    fs::write(&file, kept.to_string()).unwrap();
    edge.node.start();
    edge.node.ready();
    assert_eq!(promise(&edge), "max-age=86400");
    restart(&mut edge);
    fs::write(&file, "{ torn").unwrap();
    edge.node.start();
    edge.node.ready();
    assert_eq!(promise(&edge), "max-age=300");
    assert!(edge.node.log().contains("HSTS durations start over"));
}
