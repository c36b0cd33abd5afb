//! Foreign software at either end, with the PEM files of `wiretight svid fetch`: openssl, curl, stunnel, nginx.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::rig::*;
use super::traffic::{curl, http_server, nginx};

const HELLO: &str = "hello from the backend";

/// A mesh whose nodes fetch SVIDs for foreign software, and what that software needs.
struct Foreign {
    auth: Node,
    /// Offers `api` (HTTP) and `echo` to `service/web`.
    db: Node,
    api: SocketAddr,
    echo: SocketAddr,
    /// Where `svid fetch` is run.
    box1: Node,
    world: World,
}

impl Foreign {
    fn new(authority: &str) -> Foreign {
        let world = World::new();
        let auth = world.authority(authority);
        let (api, at) = (free(), free());
        let offers = service("api", api, http_server(HELLO), "\"service/web\"")
            + &service("echo", at, echo(), "\"service/web\"");
        let db = world.joined(&auth, "db1", &["api", "echo"], &offers);
        let box1 = world.joined(&auth, "box1", &["web", "stranger", "legacy"], "");
        Foreign { auth, db, api, echo: at, box1, world }
    }

    /// The directory of a service's PEM files.
    fn svid(&self, service: &str) -> Pem {
        let dir = self.world.path(&format!("svid-{service}"));
        let out = dir.to_str().unwrap();
        self.box1.cli(&["svid", "fetch", "--service", service, "--out", out]).good();
        Pem { dir }
    }

    /// A node that dials `legacy`, which is at a given address: a foreign server.
    fn app(&self, to: SocketAddr) -> (Node, SocketAddr) {
        let entry = free();
        let file = dial(entry, "legacy", "web") + &format!("to = [\"{to}\"]\n");
        (self.world.joined(&self.auth, "app1", &["web"], &file), entry)
    }

    /// Checks that `db1` served `service` to `service/web` without our ALPN.
    fn assert_served(&self, service: &str) {
        let name = format!("spiffe://{TD}/service/web");
        let of = |l: &Value| l["service"] == service && l["peer"] == *name && l["end"] == "done";
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let lines = self.db.access();
            if lines.iter().any(of) {
                return;
            }
            assert!(std::time::Instant::now() < end, "the access log lacks it: {lines:#?}");
            std::thread::sleep(ms(20));
        }
    }
}

struct Pem {
    dir: PathBuf,
}

impl Pem {
    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn svid(&self) -> String {
        self.file("svid.pem")
    }

    fn key(&self) -> String {
        self.file("key.pem")
    }

    fn bundle(&self) -> String {
        self.file("bundle.pem")
    }

    /// The options for `openssl s_client` and `s_server`.
    fn openssl(&self) -> Vec<String> {
        let (svid, key, bundle) = (self.svid(), self.key(), self.bundle());
        ["-cert", &svid, "-key", &key, "-cert_chain", &svid, "-CAfile", &bundle]
            .map(String::from)
            .to_vec()
    }
}

fn dns(service: &str) -> String {
    format!("{service}.service.{TD}")
}

fn openssl() -> Command {
    Command::new(find("openssl").unwrap())
}

/// `openssl s_client`: sends a line, and reads until the line has come back.
fn s_client(to: SocketAddr, name: &str, pem: &[String], line: &str) -> (bool, String) {
    let mut command = openssl();
    command.args(["s_client", "-connect", &to.to_string(), "-servername", name]);
    command.args(["-verify_return_error", "-verify_hostname", name, "-brief"]).args(pem);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(line.as_bytes());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    // It may wait forever: then it is killed, and the read ends.
    let (expected, (tell, done)) = (line.as_bytes().to_vec(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        let _ = tell.send(out.read_exact(&mut got).is_ok() && got == expected);
    });
    let echoed = done.recv_timeout(PATIENCE).unwrap_or(false);
    drop(stdin);
    let _ = child.kill();
    let _ = child.wait();
    let mut said = String::new();
    let _ = err.read_to_string(&mut said);
    (echoed, said)
}

#[test]
fn openssl_and_curl_call_our_service() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let mesh = Foreign::new("");
    let pem = mesh.svid("web");
    // openssl verifies the files on its own.
    let mut verify = openssl();
    verify.args([
        "verify",
        "-x509_strict",
        "-purpose",
        "sslclient",
        "-verify_hostname",
        &dns("web"),
    ]);
    verify.args(["-CAfile", &pem.bundle(), "-untrusted", &pem.svid(), &pem.svid()]);
    Ran::of(&mut verify, "").good();

    let (echoed, said) = s_client(mesh.echo, &dns("echo"), &pem.openssl(), "over openssl\n");
    assert!(echoed && said.contains("Protocol version: TLSv1.3"), "{said}");
    assert!(said.contains("Verification: OK") && said.contains(&dns("echo")), "{said}");

    let (name, port) = (dns("api"), mesh.api.port());
    let url = format!("https://{name}:{port}/");
    let resolve = format!("{name}:{port}:127.0.0.1");
    let (svid, key, bundle) = (pem.svid(), pem.key(), pem.bundle());
    let args = ["--cert", &svid, "--key", &key, "--cacert", &bundle, "--tlsv1.3"];
    let args = |more: &[&str]| -> Vec<String> {
        let ours = [&args[..], &["--resolve", &resolve], more, &[&url]].concat();
        ours.into_iter().map(String::from).collect()
    };
    let run = |args: Vec<String>| curl(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run(args(&["--no-alpn"])).good().out, HELLO);
    mesh.assert_served("api");
    // As in the help of `svid fetch`: curl offers ALPN http/1.1 and h2, of which we select none.
    assert_eq!(run(args(&[])).good().out, HELLO);
    // curl checks the name: the same server under another name is refused.
    let other = dns("other");
    let wrong = curl(&[
        "--cert",
        &svid,
        "--key",
        &key,
        "--cacert",
        &bundle,
        "--no-alpn",
        "--resolve",
        &format!("{other}:{port}:127.0.0.1"),
        &format!("https://{other}:{port}/"),
    ]);
    assert_eq!(wrong.code, Some(60), "{wrong:?}");
}

#[test]
fn a_foreign_client_without_permission_or_certificate_is_refused() {
    if !has(&["openssl"]) {
        return;
    }
    let mesh = Foreign::new("");
    let good = mesh.svid("web").openssl();
    let stranger = mesh.svid("stranger").openssl();
    let nothing = ["-CAfile".to_owned(), mesh.svid("web").bundle()];
    for (pem, reason) in [
        (&stranger[..], Some("not_allowed")),
        (&nothing[..], Some("no_certificate")),
        (&good[..], None),
    ] {
        let (echoed, said) = s_client(mesh.echo, &dns("echo"), pem, "is anybody there\n");
        assert_eq!(echoed, reason.is_none(), "{reason:?}: {said}");
        // An outsider learns no more than TLS reveals.
        assert!(!said.contains("allow"), "{said}");
        let Some(reason) = reason else { continue };
        wait_for(reason, || {
            let status = mesh.db.status();
            let all = status["relay"]["refusals"].as_array().unwrap().clone();
            all.iter().any(|r| r["reason"] == reason && r["service"] == "echo")
        });
    }
}

#[test]
fn stunnel_calls_our_service_and_serves_our_dial() {
    if !has(&["stunnel4", "curl"]) {
        return;
    }
    let mesh = Foreign::new("");
    let (web, legacy) = (mesh.svid("web"), mesh.svid("legacy"));
    let (accept, server) = (free(), free());
    let conf = format!(
        "foreground = yes\npid =\nsyslog = no\ndebug = info\nsslVersion = TLSv1.3\n\
         [out]\nclient = yes\naccept = {accept}\nconnect = {}\ncert = {}\nkey = {}\nCAfile = {}\n\
         verifyChain = yes\ncheckHost = {}\nsni = {}\n\
         [in]\nclient = no\naccept = {server}\nconnect = {}\ncert = {}\nkey = {}\nCAfile = {}\n\
         verifyChain = yes\nrequireCert = yes\ncheckHost = {}\n",
        mesh.api,
        web.svid(),
        web.key(),
        web.bundle(),
        dns("api"),
        dns("api"),
        http_server("behind stunnel"),
        legacy.svid(),
        legacy.key(),
        legacy.bundle(),
        dns("web"),
    );
    let file = mesh.world.path("stunnel.conf");
    fs::write(&file, conf).unwrap();
    let mut command = Command::new(find("stunnel4").unwrap());
    let _stunnel = Kid::start(command.arg(&file), &mesh.world.path("stunnel.log"));
    wait_port(accept);
    wait_port(server);
    for _ in 0..20 {
        assert_eq!(curl(&[&format!("http://{accept}/")]).good().out, HELLO);
    }
    mesh.assert_served("api");
    serves_our_dial(&mesh, server, "behind stunnel");
}

#[test]
fn nginx_stream_calls_our_service_and_serves_our_dial() {
    if !has(&["nginx", "ngx_stream_module.so", "curl"]) {
        return;
    }
    let mesh = Foreign::new("");
    let (web, legacy) = (mesh.svid("web"), mesh.svid("legacy"));
    let (accept, server) = (free(), free());
    let body = format!(
        "stream {{
           server {{ listen {accept}; proxy_pass {}; proxy_ssl on; proxy_ssl_protocols TLSv1.3;
             proxy_ssl_certificate {}; proxy_ssl_certificate_key {};
             proxy_ssl_trusted_certificate {}; proxy_ssl_verify on; proxy_ssl_verify_depth 3;
             proxy_ssl_server_name on; proxy_ssl_name {}; }}
           server {{ listen {server} ssl; proxy_pass {}; ssl_protocols TLSv1.3;
             ssl_certificate {}; ssl_certificate_key {};
             ssl_client_certificate {}; ssl_verify_client on; ssl_verify_depth 3; }}
         }}",
        mesh.api,
        web.svid(),
        web.key(),
        web.bundle(),
        dns("api"),
        http_server("behind nginx"),
        legacy.svid(),
        legacy.key(),
        legacy.bundle(),
    );
    let _nginx = nginx(&mesh.world, "nginx", &body);
    wait_port(accept);
    wait_port(server);
    for _ in 0..20 {
        assert_eq!(curl(&[&format!("http://{accept}/")]).good().out, HELLO);
    }
    mesh.assert_served("api");
    serves_our_dial(&mesh, server, "behind nginx");
}

#[test]
fn openssl_serves_our_dial() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let mesh = Foreign::new("");
    let legacy = mesh.svid("legacy");
    fs::write(mesh.world.path("page"), "behind openssl").unwrap();
    let at = free();
    let mut command = openssl();
    // -Verify: a client certificate is required. -WWW: it serves files as an HTTP server does.
    command.args(["s_server", "-accept", &at.to_string(), "-tls1_3", "-Verify", "3"]);
    command.args(["-verify_return_error", "-WWW", "-quiet"]).args(legacy.openssl());
    let dir = mesh.world.path("page").parent().unwrap().to_owned();
    let _server = Kid::start(command.current_dir(dir), &mesh.world.path("s_server.log"));
    wait_port(at);
    let (app, entry) = mesh.app(at);
    let page = curl(&[&format!("http://{entry}/page")]);
    assert_eq!(page.out, "behind openssl", "{page:?}\n{:#}", app.status()["relay"]["refusals"]);
    dialled(&app);
}

/// Programs reach a foreign server through our dial, but not a server with another name.
fn serves_our_dial(mesh: &Foreign, server: SocketAddr, answer: &str) {
    let (mut app, entry) = mesh.app(server);
    for _ in 0..20 {
        assert_eq!(curl(&[&format!("http://{entry}/")]).good().out, answer);
    }
    dialled(&app);
    // It proves to be service/legacy: a dial for service/other does not connect.
    let other = free();
    app.write(&(dial(other, "other", "web") + &format!("to = [\"{server}\"]\n")));
    app.cli(&["reload"]).good();
    let refused = curl(&[&format!("http://{other}/")]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    let status = app.status();
    let last = status["relay"]["refusals"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["side"], &last["service"]), (&"dial".into(), &"other".into()), "{last:#}");
    assert!(last["detail"].as_str().unwrap().contains("legacy"), "{last:#}");
    app.kill();
}

/// The access log of a node says that it dialled `legacy`, with accepted TLS parameters.
fn dialled(app: &Node) {
    let legacy = format!("spiffe://{TD}/service/legacy");
    wait_for("it is in the access log", || {
        let lines = app.access();
        lines.iter().any(|l| l["peer"] == *legacy && l["side"] == "dial" && l["end"] == "done")
    });
    let lines = app.access();
    let line = lines.iter().find(|l| l["peer"] == *legacy).unwrap();
    assert!(line["cipher"].as_str().unwrap().starts_with("TLS_"), "{line:#}");
    assert!(
        ["X25519", "X25519MLKEM768", "secp256r1"].contains(&line["group"].as_str().unwrap()),
        "{line:#}"
    );
}

#[test]
fn watched_svid_files_stay_fresh_and_valid() {
    if !has(&["openssl"]) {
        return;
    }
    let mesh = Foreign::new("svid_ttl = \"10s\"\nintermediate_ttl = \"60s\"\n");
    let pem = Pem { dir: mesh.world.path("watched") };
    let ran = mesh.world.path("executed");
    let mut command = wiretight();
    command.args(["svid", "fetch", "--service", "web", "--watch", "--out"]).arg(&pem.dir);
    command.arg("--exec").arg(format!("echo again >> {}", ran.display()));
    command.arg("--config").arg(mesh.box1.file());
    let mut watch = Kid::start(&mut command, &mesh.world.path("watch.log"));
    wait_for("the files are there", || Path::new(&pem.svid()).exists());
    let mut seen = vec![fs::read(pem.svid()).unwrap()];
    let end = Instant::now() + PATIENCE;
    while seen.len() < 4 {
        assert!(Instant::now() < end, "renewed {} times: {}", seen.len() - 1, watch.log());
        assert!(watch.ended(ms(0)).is_none(), "{}", watch.log());
        // At every moment there is a pair that the service accepts. (Two files cannot be replaced atomically, so a
        // reader that reads in between tries again.)
        let taken = || s_client(mesh.echo, &dns("echo"), &pem.openssl(), "still me\n");
        let (echoed, said) = taken();
        let (echoed, said) = if echoed { (echoed, said) } else { taken() };
        assert!(echoed, "{said}\n{}", watch.log());
        let now = fs::read(pem.svid()).unwrap();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        thread::sleep(ms(100));
    }
    wait_for("--exec ran each time", || {
        fs::read_to_string(&ran).unwrap_or_default().lines().count() >= 3
    });
    use std::os::unix::fs::PermissionsExt;
    for file in [pem.svid(), pem.key(), pem.bundle()] {
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
}
