//! The edge with typical software of the public web: a browser, command-line clients, load, and the scanners that
//! auditors run.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::edge::Edge;
use super::rig::*;
use super::traffic::curl;

pub(crate) const NAME: &str = "www.example.test";

// ---- A site.

/// A node with one site, whose certificate is from the test's own CA.
pub(crate) struct Site {
    node: Node,
    pub(crate) https: SocketAddr,
    ca: PathBuf,
    pub(crate) world: World,
}

/// A CA and its certificate for the site, like those of public CAs.
fn certificate(world: &World) -> [PathBuf; 3] {
    let [ca, ca_key, cert, key] =
        ["ca.pem", "ca.key", "site.pem", "site.key"].map(|f| world.path(f));
    let run = |subject: &str, out: &Path, key: &Path, more: &[&str]| {
        let mut command = Command::new(find("openssl").unwrap());
        command.args(["req", "-x509", "-nodes", "-days", "90", "-newkey", "ec", "-sha256"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", subject]).args(more);
        Ran::of(command.arg("-out").arg(out).arg("-keyout").arg(key), "").good();
    };
    let usage = "keyUsage=critical,keyCertSign,cRLSign";
    run("/CN=A CA of the test", &ca, &ca_key, &["-addext", usage]);
    let by = ["-CA", ca.to_str().unwrap(), "-CAkey", ca_key.to_str().unwrap()];
    let names = format!("subjectAltName=DNS:{NAME}");
    let leaf = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"];
    let more = ["-addext", &names, "-addext", leaf[0], "-addext", leaf[1]];
    let auth = ["-addext", "extendedKeyUsage=serverAuth"];
    run(&format!("/CN={NAME}"), &cert, &key, &[&by[..], &more, &auth].concat());
    [ca, cert, key]
}

impl Site {
    pub(crate) fn new(to: SocketAddr) -> Site {
        let world = World::new();
        let (https, http) = (free(), free());
        let [ca, cert, key] = certificate(&world);
        let sections = format!(
            "[authority]\nlisten = \"{}\"\n[edge]\nhttps = \"{https}\"\nhttp = \"{http}\"\n\
             [[site]]\nnames = [\"{NAME}\"]\nto = \"{to}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            free(),
            cert.display(),
            key.display()
        );
        let mut node = world.node("edge1", &sections);
        node.start();
        node.ready();
        wait_port(https);
        Site { node, https, ca, world }
    }
}

// ---- The program behind it.

/// A plain HTTP server with everything that the test pages use.
pub(crate) struct Backend {
    pub(crate) at: SocketAddr,
    /// The reports of the pages.
    results: Receiver<Value>,
    /// The headers of all requests.
    heads: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Served {
    results: Sender<Value>,
    heads: Arc<Mutex<Vec<String>>>,
    /// The last event that a page has received.
    seen: Arc<(Mutex<usize>, Condvar)>,
}

const EVENTS: usize = 5;

impl Backend {
    pub(crate) fn start() -> Backend {
        let (sender, results) = channel();
        let heads = Arc::default();
        let served = Served { results: sender, heads: Arc::clone(&heads), seen: Arc::default() };
        let at = serve(move |socket| served.answer(socket).unwrap_or(()));
        Backend { at, results, heads }
    }

    fn results(&self) -> Value {
        self.results.recv_timeout(2 * PATIENCE).expect("the page reports its results")
    }

    /// The header of the request for a path.
    fn head(&self, path: &str) -> Option<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().find(|h| h.split(' ').nth(1) == Some(path)).cloned()
    }
}

/// The value of a header; the name is in lower case.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|l| l.split_once(": "));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

impl Served {
    /// Serves one request per connection.
    fn answer(&self, socket: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(socket.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        self.heads.lock().unwrap().push(head.clone());
        let length = header(&head, "content-length").map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let text = || String::from_utf8_lossy(&body).into_owned();
        let target = head.split(' ').nth(1).unwrap_or_default();
        let (kind, answer) = match target.split('?').next().unwrap_or_default() {
            "/" => ("text/html", include_str!("page.html").into()),
            "/plain" => ("text/plain", "it is served".into()),
            "/echo" => return web_socket(reader, socket, &head, false),
            "/garble" => return web_socket(reader, socket, &head, true),
            "/events" => return self.events(socket),
            "/seen" => {
                *self.seen.0.lock().unwrap() = text().parse().unwrap();
                self.seen.1.notify_all();
                ("text/plain", String::new())
            }
            "/upload" => ("application/json", told(&body).to_string()),
            "/results" => {
                let _ = self.results.send(serde_json::from_str(&text())?);
                ("text/plain", String::new())
            }
            _ => ("text/plain", "what?".into()),
        };
        let length = answer.len();
        write!(
            &socket,
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{answer}"
        )?;
        socket.shutdown(Shutdown::Write)
    }

    /// Events in lockstep with the page: the next one is sent when the page has received the last one.
    fn events(&self, mut socket: TcpStream) -> std::io::Result<()> {
        *self.seen.0.lock().unwrap() = 0;
        write!(
            socket,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
             connection: close\r\n\r\n"
        )?;
        for n in 1..=EVENTS {
            write!(socket, "data: {n}\n\n")?;
            let seen = self.seen.0.lock().unwrap();
            let waited = self.seen.1.wait_timeout_while(seen, PATIENCE, |seen| *seen < n).unwrap();
            if waited.1.timed_out() {
                return Ok(());
            }
        }
        write!(socket, "event: end\ndata: \n\n")?;
        socket.shutdown(Shutdown::Write)
    }
}

/// The backend's response to an upload.
fn told(bytes: &[u8]) -> Value {
    let sum = digest::digest(&digest::SHA256, bytes);
    json!({ "length": bytes.len(), "sha256": STANDARD.encode(sum) })
}

/// A WebSocket server (RFC 6455) that echoes each message, or sends something else.
fn web_socket(
    mut reader: impl Read,
    mut writer: impl Write,
    head: &str,
    garble: bool,
) -> std::io::Result<()> {
    let key = header(head, "sec-websocket-key").unwrap_or_default();
    let key = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    write!(
        writer,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(accept)
    )?;
    loop {
        let (mut start, mut mask) = ([0; 2], [0; 4]);
        reader.read_exact(&mut start)?;
        let mut length = u64::from(start[1] & 0x7f);
        let long = match length {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if long > 0 {
            let mut bytes = [0; 8];
            reader.read_exact(&mut bytes[8 - long..])?;
            length = u64::from_be_bytes(bytes);
        }
        reader.read_exact(&mut mask)?;
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        let ends = start[0] & 15 == 8;
        if garble && !ends {
            payload[0] ^= 1;
        }
        let mut frame = vec![start[0]];
        match payload.len() {
            n @ ..126 => frame.push(n as u8),
            n @ 126..0x1_0000 => frame.extend([&[126][..], &(n as u16).to_be_bytes()].concat()),
            n => frame.extend([&[127][..], &(n as u64).to_be_bytes()].concat()),
        }
        frame.extend(payload);
        writer.write_all(&frame)?;
        if ends {
            return Ok(());
        }
    }
}

// ---- A browser.

/// Chromium without a window, controlled by the DevTools protocol over two pipes. It has its own profile and
/// certificate store.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    number: u64,
    session: Option<String>,
    /// The events that it sent between responses.
    events: Vec<Value>,
    log: PathBuf,
}

impl Browser {
    /// `trusted`: a CA that it trusts in addition to the public ones.
    fn start(home: &Path, trusted: Option<&Path>, args: &[String]) -> Browser {
        let store = home.join(".pki/nssdb");
        fs::create_dir_all(&store).unwrap();
        let store = format!("sql:{}", store.display());
        let certutil = |args: &[&str]| {
            let mut command = Command::new(find("certutil").unwrap());
            Ran::of(command.args(["-d", &store]).args(args), "").good();
        };
        certutil(&["-N", "--empty-password"]);
        if let Some(ca) = trusted {
            certutil(&["-A", "-n", "test", "-t", "C,,", "-i", ca.to_str().unwrap()]);
        }
        let log = home.join("log");
        let mut command = Command::new("sh");
        // It reads from descriptor 3 and writes to 4.
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >&2", "sh"]);
        command.arg(find("chromium").unwrap()).args([
            "--headless=new",
            "--remote-debugging-pipe",
            // The machine may be a container, and we may be root.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-breakpad",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // Only HSTS may turn http:// into https://.
            "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable",
        ]);
        command.arg(format!("--user-data-dir={}", home.join("profile").display())).args(args);
        command.env("HOME", home).env_remove("DISPLAY").process_group(0);
        let log_file = fs::File::create(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        let mut child = command.spawn().unwrap();
        let to = child.stdin.take().unwrap();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let (sender, from) = channel();
        thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                match reader.read_until(0, &mut message) {
                    Ok(n) if n > 0 => message.pop(),
                    _ => return,
                };
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let (number, session, events) = (0, None, Vec::new());
        let mut browser = Browser { child, to, from, number, session, events, log };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        browser.call("Page.enable", json!({}));
        browser.call("Network.enable", json!({}));
        browser
    }

    fn receive(&mut self) -> Value {
        self.from.recv_timeout(2 * PATIENCE).expect("the browser responds")
    }

    /// Sends a command and returns the response.
    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut got = self.receive();
            if got["id"] == self.number {
                assert!(got["error"].is_null(), "{method}: {got}");
                return got["result"].take();
            }
            self.events.push(got);
        }
    }

    /// Opens a page; returns the error if that fails.
    #[track_caller]
    fn open(&mut self, url: &str) -> Result<(), String> {
        self.events.clear();
        let answer = self.call("Page.navigate", json!({ "url": url }));
        answer["errorText"].as_str().map_or(Ok(()), |error| Err(error.to_owned()))
    }

    /// The first matching event since the page was opened.
    #[track_caller]
    fn event(&mut self, method: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + 2 * PATIENCE;
        let fits = |e: &&Value| e["method"] == method && fits(&e["params"]);
        loop {
            if let Some(event) = self.events.iter().find(fits) {
                return event["params"].clone();
            }
            assert!(Instant::now() < end, "no {method} in {:#?}", self.events);
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// A screenshot, as a PNG.
    fn screenshot(&mut self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let png = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
        png
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its processes form a process group.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        if thread::panicking() {
            say(format!(
                "---- the browser:\n{}",
                fs::read_to_string(&self.log).unwrap_or_default()
            ));
        }
    }
}

/// The problems in the results of a page.
fn wrong(results: &Value, protocol: &str) -> Vec<String> {
    let uploaded: Vec<u8> = (0..1_000_003_u32).map(|i| (i * 31 + (i >> 8)) as u8).collect();
    let events: Vec<String> = (1..=EVENTS).map(|n| n.to_string()).collect();
    let expected = [
        ("protocol", json!(protocol)),
        ("protocols", json!([protocol])),
        ("socket", json!("as sent")),
        ("events", json!(events)),
        ("upload", told(&uploaded)),
    ];
    let differs = expected.iter().filter(|(key, value)| results[key] != *value);
    differs.map(|(key, value)| format!("{key}: {}, not {value}", results[key])).collect()
}

/// The addresses of the site for the browser, with the usual ports.
fn resolver(https: SocketAddr, http: SocketAddr) -> String {
    format!("--host-resolver-rules=MAP {NAME}:443 {https}, MAP {NAME}:80 {http}, MAP * ~NOTFOUND")
}

fn in_a_browser(protocol: &str, args: &[&str]) {
    if !has(&["chromium", "certutil", "openssl"]) {
        return;
    }
    let backend = Backend::start();
    let site = Site::new(backend.at);
    // Every request that arrives here was sent in plaintext.
    let plain = Backend::start();
    let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    args.push(resolver(site.https, plain.at));
    let home = |name| site.world.path(name);
    let secure = format!("https://{NAME}/");

    // The control: without the CA the connection is rejected.
    let mut stranger = Browser::start(&home("stranger"), None, &args[args.len() - 1..]);
    let refused = stranger.open(&secure).unwrap_err();
    assert!(refused.contains("ERR_CERT_AUTHORITY_INVALID"), "{refused}");
    drop(stranger);
    assert_eq!(backend.head("/"), None);

    let mut browser = Browser::start(&home("home"), Some(&site.ca), &args);
    let blank = browser.screenshot();
    // Before the site has sent HSTS, the browser requests in plaintext.
    browser.open(&format!("http://{NAME}/plain?before")).unwrap();
    assert!(plain.head("/plain?before").is_some());

    browser.open(&secure).unwrap();
    let results = backend.results();
    assert_eq!(wrong(&results, protocol), [""; 0], "{results:#}");
    let came = browser.event("Network.responseReceived", |e| e["type"] == "Document");
    let security = &came["response"]["securityDetails"];
    let tls = if protocol == "h3" { "QUIC" } else { "TLS 1.3" };
    assert_eq!(security["protocol"], tls, "{came:#}");
    assert_eq!(security["keyExchangeGroup"], GROUP, "{came:#}");
    assert_eq!(header(&backend.head("/").unwrap(), "x-forwarded-proto"), Some("https"));
    let shot = browser.screenshot();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("browser-{protocol}.png"));
    fs::write(&file, &shot).unwrap();
    assert!(shot.len() > 2 * blank.len(), "{} bytes, blank {}", shot.len(), blank.len());
    say(format!("chromium over {protocol}: {}, {} bytes of picture", security, shot.len()));

    // The control: a wrong echo is detected.
    browser.open(&format!("{secure}?socket=/garble")).unwrap();
    let garbled = wrong(&backend.results(), protocol);
    assert_eq!(garbled, ["socket: \"other than sent\", not \"as sent\""]);

    // After HSTS the browser itself switches to HTTPS, and sends nothing in plaintext.
    browser.open(&format!("http://{NAME}/plain?after")).unwrap();
    let went = browser.event("Network.requestWillBeSent", |e| !e["redirectResponse"].is_null());
    let redirect = &went["redirectResponse"];
    assert_eq!(redirect["status"], 307, "{went:#}");
    assert_eq!(redirect["headers"]["Non-Authoritative-Reason"], "HSTS", "{went:#}");
    let head = backend.head("/plain?after").expect("the page is opened by HTTPS");
    assert_eq!(header(&head, "x-forwarded-proto"), Some("https"));
    assert_eq!(plain.head("/plain?after"), None);

    // Chromium has no WebSocket over HTTP/3.
    let socket = if protocol == "h2" { "h2" } else { "http/1.1" };
    for (path, http) in
        [("/", protocol), ("/events", protocol), ("/upload", protocol), ("/echo", socket)]
    {
        wait_for(&format!("the access log tells of {path} by {http}"), || {
            let fits = |l: &Value| {
                let got = [&l["side"], &l["path"], &l["http"], &l["end"]];
                got == ["edge", path, http, "done"]
            };
            site.node.access().iter().any(fits)
        });
    }
}

#[test]
fn chromium_loads_pages_over_http2() {
    in_a_browser("h2", &["--disable-quic"]);
}

#[test]
fn chromium_loads_pages_over_http3() {
    in_a_browser("h3", &[&format!("--origin-to-force-quic-on={NAME}:443")]);
}

/// Chromium leaves its side of the stream open after the server has ended a WebSocket: a server that waits for it soon
/// has no streams left.
#[test]
fn a_page_opens_and_closes_more_websockets_than_a_connection_has_streams() {
    if !has(&["chromium", "certutil", "openssl"]) {
        return;
    }
    let backend = Backend::start();
    let site = Site::new(backend.at);
    let args = [resolver(site.https, site.https), "--disable-quic".into()];
    let mut browser = Browser::start(&site.world.path("home"), Some(&site.ca), &args);
    browser.open(&format!("https://{NAME}/")).unwrap();
    assert_eq!(wrong(&backend.results(), "h2"), [""; 0]);
    let script = "(async () => {
        for (let i = 1; i <= 300; i++) {
            const end = await new Promise((yes) => {
                const socket = new WebSocket(`wss://${location.host}/echo`);
                socket.onopen = () => socket.send('x');
                socket.onmessage = () => socket.close(1000);
                socket.onclose = yes;
            });
            if (!end.wasClean) return `number ${i} ends with ${end.code}`;
        }
        return (await fetch('/plain')).text();
    })()";
    let how = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
    let done = browser.call("Runtime.evaluate", how);
    assert_eq!(done["result"]["value"], "it is served", "{done}");
    // The connection stays open during all of that, and the node has logged each event.
    let told = |l: &Value| {
        let got = [&l["side"], &l["path"], &l["http"], &l["end"]];
        got == ["edge", "/echo", "h2", "done"]
            && l["status"] == 200
            && l["bytes_out"].as_u64() > Some(0)
            && l["bytes_in"].as_u64() > Some(0)
    };
    wait_for("the access log tells of 301 WebSockets", || {
        site.node.access().iter().filter(|l| told(l)).count() == 301
    });
}

// ---- Programs.

#[test]
fn curl_uses_every_version_of_http_and_tls() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let backend = Backend::start();
    let site = Site::new(backend.at);
    let url = format!("https://{NAME}:{}/plain", site.https.port());
    let resolve = format!("{NAME}:{}:127.0.0.1", site.https.port());
    let ca = site.ca.to_str().unwrap();
    let fetch = |args: &[&str]| {
        let usual = ["-v", "-w", " by %{http_version}", "--resolve", &resolve, "--cacert", ca];
        curl(&[&usual, args, &[&url]].concat())
    };
    for (http, said) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for (tls, version) in [("1.2", "TLSv1.2 / ECDHE-ECDSA-"), ("1.3", "TLSv1.3 / TLS_")] {
            let ran = fetch(&[http, &format!("--tlsv{tls}"), "--tls-max", tls]).good();
            assert_eq!(ran.out, format!("it is served by {said}"));
            assert!(ran.err.contains(&format!("SSL connection using {version}")), "{}", ran.err);
        }
    }
    // The control: older versions are refused.
    let old = fetch(&["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"]);
    assert_eq!(old.code, Some(35), "{}", old.all());

    // Debian's has no HTTP/3; this is libcurl with ngtcp2, from PyPI.
    if !has(&["curl-cffi"]) {
        return;
    }
    let script = "
import sys
from curl_cffi import CurlHttpVersion, CurlOpt, requests
url, ca, resolve = sys.argv[1:]
answer = requests.get(url, http_version=CurlHttpVersion.V3ONLY, verify=ca, timeout=30,
                      curl_options={CurlOpt.RESOLVE: [resolve]})
print(answer.text, answer.status_code, answer.http_version)";
    let python = find("curl-cffi").unwrap().with_file_name("python");
    let by_http3 = |ca: &str| {
        let mut command = Command::new(&python);
        Ran::of(command.args(["-c", script, &url, ca, &resolve]), "")
    };
    assert_eq!(by_http3(ca).good().out.trim(), "it is served 200 30");
    // The control: the certificate is checked over HTTP/3, too.
    let other = by_http3("/etc/ssl/certs/ca-certificates.crt");
    assert!(other.code != Some(0) && other.err.contains("certificate"), "{}", other.all());
}

#[test]
fn h2load_sees_no_error() {
    if !has(&["nginx", "h2load", "openssl"]) {
        return;
    }
    let edge = Edge::new();
    let run = |args: &[&str]| {
        let mut command = Command::new(find("h2load").unwrap());
        command.args(["-c", "50", "--connect-to", &edge.https.to_string()]).args(args);
        let url = format!("https://{NAME}:{}/", edge.https.port());
        Ran::of(command.arg(url), "").good().out
    };
    for (protocol, args) in
        [("h2", &["-n", "20000", "-m", "10"][..]), ("http/1.1", &["-n", "5000", "--h1"])]
    {
        let n = args[1];
        let out = run(args);
        for said in [
            format!("Application protocol: {protocol}"),
            format!("{n} succeeded, 0 failed, 0 errored, 0 timeout"),
            format!("status codes: {n} 2xx, 0 3xx, 0 4xx, 0 5xx"),
        ] {
            assert!(out.contains(&said), "no {said:?} in {out}");
        }
        let line = out.lines().find(|l| l.starts_with("finished in")).unwrap_or("?");
        say(format!("h2load, {n} requests by {protocol} over 50 connections: {line}"));
    }
}

// ---- Scanners.

/// A server that accepts everything that openssl still supports: the scanners must report it.
pub(crate) fn weak_server(world: &World) -> (SocketAddr, Kid) {
    let at = free();
    let mut command = Command::new(find("openssl").unwrap());
    command.args(["s_server", "-www", "-cipher", "ALL:@SECLEVEL=0", "-accept", &at.to_string()]);
    command.arg("-cert").arg(world.path("site.pem")).arg("-key").arg(world.path("site.key"));
    let kid = Kid::start(&mut command, &world.path("s_server.log"));
    wait_port(at);
    (at, kid)
}

/// Suites with ephemeral keys and AEAD, by their standard names (RFC 8446, RFC 5289, RFC 7905).
const CIPHERS: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// The results of sslyze for a server: its JSON, and its verdict on Mozilla's "intermediate" configuration. (It tests
/// most of TLS 1.2 with an OpenSSL that is older than the extended master secret, without which the edge refuses TLS
/// 1.2. So it sees fewer suites than testssl.sh does.)
fn sslyze(sslyze: &Path, at: SocketAddr, world: &World) -> (Value, Ran) {
    let file = world.path("sslyze.json");
    let mut command = Command::new(sslyze);
    command.args(["--sni", NAME, "--mozilla_config", "intermediate", "--http_headers"]);
    command.arg("--early_data").arg("--certinfo").arg("--certinfo_ca_file");
    command.arg(world.path("ca.pem")).arg("--json_out").arg(&file).arg(at.to_string());
    let ran = Ran::of(&mut command, "");
    let json = fs::read(file).unwrap_or_else(|e| panic!("{e}: {}", ran.all()));
    (serde_json::from_slice(&json).unwrap(), ran)
}

/// The problems of a server in these results. A missing check is a problem, too.
fn faults_by_sslyze(report: &Value) -> Vec<String> {
    let scan = &report["server_scan_results"][0]["scan_result"];
    let mut faults = Vec::new();
    let versions = ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3"];
    for (version, good) in versions.iter().zip([false, false, false, false, true, true]) {
        let result = &scan[format!("{version}_cipher_suites")]["result"];
        if result["is_tls_version_supported"] != good {
            faults.push(format!("{version}: {}", result["is_tls_version_supported"]));
        }
        let suites = result["accepted_cipher_suites"].as_array().into_iter().flatten();
        let names = suites.map(|s| s["cipher_suite"]["name"].as_str().unwrap());
        let weak = names.filter(|name| !CIPHERS.contains(name));
        faults.extend(weak.map(|name| format!("{version}: {name}")));
    }
    let curves = scan["elliptic_curves"]["result"]["supported_curves"].as_array();
    for name in curves.into_iter().flatten().map(|c| c["name"].as_str().unwrap()) {
        if !["X25519", "secp256r1", "secp384r1"].contains(&name) {
            faults.push(format!("curve: {name}"));
        }
    }
    for (check, key, good) in [
        ("heartbleed", "is_vulnerable_to_heartbleed", json!(false)),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", json!(false)),
        ("robot", "robot_result", json!("NOT_VULNERABLE_RSA_NOT_SUPPORTED")),
        ("tls_compression", "supports_compression", json!(false)),
        ("tls_1_3_early_data", "supports_early_data", json!(false)),
        ("tls_fallback_scsv", "supports_fallback_scsv", json!(true)),
        ("tls_extended_master_secret", "supports_ems_extension", json!(true)),
        ("session_renegotiation", "supports_secure_renegotiation", json!(true)),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", json!(false)),
        // The max-age that a site sends in its first hour.
        (
            "http_headers",
            "strict_transport_security_header",
            json!({ "max_age": 300,
            "preload": false, "include_subdomains": false }),
        ),
    ] {
        let got = &scan[check]["result"][key];
        if *got != good {
            faults.push(format!("{check}: {key}: {got}"));
        }
    }
    faults
}

#[test]
fn sslyze_finds_no_problem() {
    if !has(&["sslyze", "openssl"]) {
        return;
    }
    let site = Site::new(Backend::start().at);
    let program = find("sslyze").unwrap();
    let (report, ran) = sslyze(&program, site.https, &site.world);
    assert_eq!(faults_by_sslyze(&report), [""; 0], "{}", ran.all());
    // The tool's own verdict, including the chain: Mozilla recommends "intermediate" for nearly all sites.
    assert!(ran.good().out.contains("OK - Compliant"));

    // The control: for a weak server, the same tool finds many problems.
    let (weak, _kid) = weak_server(&site.world);
    let (report, ran) = sslyze(&program, weak, &site.world);
    let faults = faults_by_sslyze(&report);
    for fault in ["tls_1_0: true", "tls_1_2: TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"] {
        assert!(faults.iter().any(|f| f == fault), "no {fault:?} in {faults:#?}");
    }
    assert_ne!(ran.code, Some(0), "{}", ran.all());
    say(format!("sslyze: no fault of the edge, {} of a weak server", faults.len()));
}

/// The findings of testssl.sh for a server.
fn testssl(at: SocketAddr, world: &World, checks: &[&str]) -> Vec<Value> {
    let file = world.path(&format!("testssl-{}.json", at.port()));
    let mut command = Command::new(find("testssl").unwrap());
    command.args(["--warnings", "off", "--quiet", "--color", "0", "--nodns", "none"]);
    command.args(["--ip", "127.0.0.1", "--jsonfile"]).arg(&file);
    command.arg("--add-ca").arg(world.path("ca.pem")).args(checks);
    command.arg(format!("{NAME}:{}", at.port()));
    let mut kid = Kid::start(&mut command, &world.path(&format!("testssl-{}.log", at.port())));
    // It starts thousands of short processes, which is slow on a busy machine.
    assert!(kid.ended(10 * PATIENCE).is_some(), "testssl does not end: {}", kid.log());
    let json = fs::read(file).unwrap_or_else(|e| panic!("{e}: {}", kid.log()));
    serde_json::from_slice(&json).unwrap()
}

/// Findings of testssl.sh worse than "INFO" that are expected here.
const EXPECTED: [(&str, &str); 3] = [
    // The test's CA has no revocation.
    ("cert_revocation", "Neither CRL nor OCSP URI provided"),
    // A new site sends HSTS for 5 minutes, and for longer when it has worked for a while.
    ("HSTS_time", "max-age too short. 0 days (=300 seconds) < 15552000 seconds"),
    // The pages' own policies are up to the program.
    ("security_headers", "--"),
];

/// The problems of a server in these findings: each one that is neither good nor expected.
fn faults_by_testssl(findings: &[Value], offered: &[(&str, bool)]) -> Vec<String> {
    let text = |f: &Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
    let mut faults = Vec::new();
    for f in findings {
        let (id, severity, finding) = (text(f, "id"), text(f, "severity"), text(f, "finding"));
        let expected = EXPECTED.iter().any(|(i, said)| *i == id && *said == finding);
        // "WARN" marks checks that testssl.sh could not do, because the openssl here is too new for it.
        if !["OK", "INFO", "WARN"].contains(&severity.as_str()) && !expected {
            faults.push(format!("{severity} {id}: {finding}"));
        }
        if id == "PFS_ciphers" {
            let aead = |c: &str| c.contains("GCM") || c.contains("CHACHA20");
            let strong = |c: &&str| aead(c) && (c.starts_with("TLS_") || c.starts_with("ECDHE-"));
            let weak: Vec<_> = finding.split_whitespace().filter(|c| !strong(c)).collect();
            if !weak.is_empty() {
                faults.push(format!("{id}: {weak:?}"));
            }
        }
    }
    for (id, good) in offered {
        let finding = findings.iter().find(|f| f["id"] == *id).map(|f| text(f, "finding"));
        if finding.as_ref().is_none_or(|f| f.starts_with("offered") != *good) {
            faults.push(format!("{id}: {finding:?}"));
        }
    }
    faults
}

const OLD: [(&str, bool); 6] = [
    ("TLS1", false),
    ("TLS1_1", false),
    ("cipherlist_NULL", false),
    ("cipherlist_aNULL", false),
    ("cipherlist_AVERAGE", false),
    ("cipherlist_STRONG", true),
];

/// With its own handshakes, which support protocols that no openssl supports any more. They lack the extended master
/// secret, which TLS 1.2 requires here, so it sees TLS 1.2 only with openssl.
#[test]
fn testssl_finds_no_problem_with_its_own_handshakes() {
    if !has(&["testssl", "openssl"]) {
        return;
    }
    let site = Site::new(Backend::start().at);
    let older = ["SSLv2", "SSLv3", "TLS1_2", "cipherlist_EXPORT", "cipherlist_LOW"];
    let offered = [&OLD[..], &older.map(|id| (id, false)), &[("TLS1_3", true)]].concat();
    let findings = testssl(site.https, &site.world, &["-p", "-s", "-S", "-h", "-U"]);
    assert_eq!(faults_by_testssl(&findings, &offered), [""; 0]);

    // The control: for a weak server, the same tool finds the old versions.
    let (weak, _kid) = weak_server(&site.world);
    let faults = faults_by_testssl(&testssl(weak, &site.world, &["-p"]), &offered);
    for fault in ["LOW TLS1: offered (deprecated)", "LOW TLS1_1: offered (deprecated)"] {
        assert!(faults.iter().any(|f| f == fault), "no {fault:?} in {faults:#?}");
    }
    say(format!("testssl, its own handshakes: {} findings, none bad", findings.len()));
}

#[test]
fn testssl_finds_no_problem_with_openssl() {
    if !has(&["testssl", "openssl"]) {
        return;
    }
    let site = Site::new(Backend::start().at);
    let offered = [&OLD[..], &[("TLS1_2", true), ("TLS1_3", true)]].concat();
    let findings = testssl(site.https, &site.world, &["--ssl-native", "-p", "-s", "-f", "-R"]);
    assert_eq!(faults_by_testssl(&findings, &offered), [""; 0]);
    assert!(findings.iter().any(|f| f["id"] == "PFS_ciphers"), "{findings:#?}");

    // The control: for a weak server, the same tool finds CBC.
    let (weak, _kid) = weak_server(&site.world);
    let faults = faults_by_testssl(&testssl(weak, &site.world, &["--ssl-native", "-s"]), &offered);
    let fault = "LOW cipherlist_AVERAGE: offered";
    assert!(faults.iter().any(|f| f == fault), "no {fault:?} in {faults:#?}");
    say(format!("testssl, by openssl: {} findings, none bad", findings.len()));
}
