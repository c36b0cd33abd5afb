//! The console of a running authority: who gets in, what is refused, and that every link leads to a page.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use super::rig::*;

/// A response: status, head, body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

pub(crate) struct Browser {
    pub(crate) at: SocketAddr,
    /// `NAME=VALUE`; empty without a session.
    pub(crate) cookie: String,
}

impl Browser {
    pub(crate) fn at(at: SocketAddr) -> Browser {
        Browser { at, cookie: String::new() }
    }

    /// A new link to the console of a node.
    pub(crate) fn link(node: &Node) -> String {
        let printed = node.cli(&["console", "--print"]).good().out;
        printed.lines().next().unwrap().to_owned()
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut socket = TcpStream::connect(self.at).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text += &format!("Host: {}\r\n", self.at);
        }
        if !self.cookie.is_empty() {
            text += &format!("Cookie: other=1; {}\r\n", self.cookie);
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        socket.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        parsed(&String::from_utf8_lossy(&answer))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    /// Follows a link to a session.
    pub(crate) fn enter(&mut self, link: &str) {
        let path = link.strip_prefix(&format!("http://{}", self.at)).unwrap();
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("refresh"), Some("0; url=/"));
        let cookie = answer.header("set-cookie").unwrap();
        for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        self.cookie = cookie.split(';').next().unwrap().to_owned();
    }
}

fn parsed(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.into(), body: body.into() }
}

#[test]
fn the_console_shows_the_mesh_to_those_with_a_link_and_to_nobody_else() {
    let (world, listen, https) = (World::new(), free(), free());
    let mut auth = world.authority(&format!(
        "[console]\nlisten = \"{listen}\"\n[edge]\nhttps = \"{https}\"\nhttp = []\nhttp3 = false\n\
         [[site]]\nnames = [\"{SITE}\"]\nto = \"{listen}\"\nacme = \"internal\"\nclients = [\"node/db1\"]\n\
         [[site]]\nnames = [\"open.corp.internal\"]\nto = \"{listen}\"\nacme = \"internal\"\n"
    ));
    let db = world.joined(&auth, "db1", &["db"], "");
    let mut browser = Browser::at(listen);

    // Without a session.
    for path in ["/", "/nodes", "/log", "/log/entry/0/raw", "/enter/", "/enter/x", "/nowhere"] {
        let answer = browser.get(path);
        assert_eq!(answer.status, 403, "{path}");
        assert!(
            answer.body.contains("wiretight console") && !answer.body.contains("db1"),
            "{path}"
        );
    }
    let stranger = Browser { at: listen, cookie: format!("wiretight-console-{}=x", listen.port()) };
    assert_eq!(stranger.get("/").status, 403);

    // A link works once.
    let used = Browser::link(&auth);
    browser.enter(&used);
    let path = used.strip_prefix(&format!("http://{listen}")).unwrap();
    let again = Browser::at(listen).get(path);
    assert_eq!((again.status, again.header("set-cookie")), (403, None));

    let page = browser.get("/");
    assert_eq!(page.status, 200, "{}", page.body);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "{policy}");
    for (name, value) in [
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(page.header(name), Some(value));
    }
    assert_eq!(page.header("refresh"), None);
    assert_eq!(browser.get("/?live=1").header("refresh"), Some("30"));

    // What is refused even with a session.
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = browser.ask(method, "/", &[]);
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    for host in ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""] {
        let answer = browser.ask("GET", "/", &[("Host", host)]);
        assert_eq!(answer.status, 421, "{host:?}");
    }
    for host in [format!("localhost:{}", listen.port()), format!("[::1]:{}", listen.port())] {
        assert_eq!(browser.ask("GET", "/", &[("Host", &host)]).status, 200, "{host}");
    }
    for (site, status) in
        [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
    {
        assert_eq!(browser.ask("GET", "/", &[("Sec-Fetch-Site", site)]).status, status, "{site}");
    }
    let head = browser.ask("HEAD", "/", &[]);
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    // Every link leads to a page, and names nothing elsewhere.
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut waiting: VecDeque<String> = ["/".to_owned(), "/log?q=node/db1".to_owned()].into();
    while let Some(path) = waiting.pop_front() {
        if seen.contains_key(&path) {
            continue;
        }
        assert!(seen.len() < 400, "{:?}", seen.keys());
        let answer = browser.get(&path);
        // The entry after the last one is not there yet.
        let is_next = path.starts_with("/log/entry/") && answer.status == 404;
        assert!(answer.status == 200 || is_next, "{path}: {} {}", answer.status, answer.body);
        for part in answer.body.split("href=\"").skip(1).filter(|_| !path.contains("/raw")) {
            let href = part.split('"').next().unwrap().replace("&amp;", "&");
            assert!(href.starts_with('/') || href.starts_with('#'), "{href} in {path}");
            waiting.push_back(href.split('#').next().unwrap().to_owned());
        }
        waiting.retain(|path| !path.is_empty());
        seen.insert(path, answer.body);
    }
    for path in [
        "/change",
        "/services",
        "/nodes",
        "/history",
        "/witnesses",
        "/keys",
        "/exceptions",
        "/node/db1",
        "/expiring",
    ] {
        assert!(seen.contains_key(path), "{path}");
    }
    assert!(seen["/node/db1"].contains("connected"));
    let found = &seen["/log?q=node/db1"];
    assert!(found.contains("spiffe://example.org/node/db1"), "{found}");
    assert!(found.contains("A search proves no absence"), "{found}");

    // The proof of an entry is one, by our own verifier.
    let index = found.split("/log/entry/").nth(1).unwrap().split('"').next().unwrap();
    let entry = &seen[&format!("/log/entry/{index}")];
    assert!(entry.contains("The entry is in the log."), "{entry}");
    let proof = browser.get(&format!("/log/entry/{index}/proof"));
    assert_eq!(proof.header("content-type"), Some("application/octet-stream"));
    assert!(proof.body.starts_with("c2sp.org/tlog-proof@v1\n"), "{}", proof.body);
    assert!(proof.body.contains(&format!("index {index}\n")), "{}", proof.body);

    // A node without a console has no links.
    let other = db.cli(&["console", "--print"]);
    assert!(other.code == Some(1) && other.err.contains("add [console]"), "{other:?}");

    what_is_no_page_is_refused(&browser);
    through_the_edge(&world, &auth, &db, https);

    // A session does not outlive the process.
    assert_eq!(browser.get("/").status, 200, "the control");
    auth.kill();
    auth.start();
    auth.ready();
    assert_eq!(browser.get("/").status, 403);
}

const SITE: &str = "console.corp.internal";

/// With a session.
fn what_is_no_page_is_refused(browser: &Browser) {
    for path in [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/style.css/../../nodes",
        "//evil.example/",
        "/node/../auth",
        "/node/%3Cscript%3E",
        "/node/<script>alert(1)</script>",
        "/service?server=<script>",
        "/flow?node=auth&server=10.0.0.5:1&via=tcp&protocol=%00&level=weak",
        "/scan?target=db1&address=10.0.0.5",
        "/scan?target=%3Cscript%3E",
        "/period?start=18446744073709551615&length=3600",
        "/log/entry/18446744073709551615",
        "/log/entry/-1",
        "/log/entry/0/raw/x",
        "/log/entry/0x0",
        "/enter",
    ] {
        let answer = browser.get(path);
        // Brackets must be escaped in a path.
        let expected = if path.contains('<') { 400 } else { 404 };
        assert_eq!(answer.status, expected, "{path}: {}", answer.body);
        assert!(!answer.body.contains("<script"), "{path}: {}", answer.body);
    }
    // What is too long is refused or ignored, and what is odd is text.
    let long = "x".repeat(8_000);
    for (path, contains) in [
        (format!("/services?q={long}"), "Services, and who talks to whom"),
        ("/services?q=%3Cscript%3Ealert(1)%3C/script%3E".into(), "&lt;script&gt;alert(1)"),
        ("/log?q=%22onfocus=alert(1)%20autofocus=%22".into(), "&quot;onfocus=alert(1)"),
        ("/log?before=18446744073709551615".into(), "The log"),
        ("/nodes?page=18446744073709551615&show=%00".into(), "nodes"),
        ("/history?length=1".into(), "History"),
    ] {
        let answer = browser.get(&path);
        assert_eq!(answer.status, 200, "{}: {}", &path[..path.len().min(99)], answer.body);
        assert!(answer.body.contains(contains) && !answer.body.contains("<script"), "{path}");
    }
    // A longer head is not read to its end, so the connection may be reset.
    let mut socket = TcpStream::connect(browser.at).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET /?q={} HTTP/1.1\r\nHost: {}\r\n", "x".repeat(600_000), browser.at);
    let _ = socket.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    let cookies = format!("{}; a={}", browser.cookie, "x".repeat(5000));
    let none = Browser { at: browser.at, cookie: String::new() };
    assert_eq!(none.ask("GET", "/", &[("Cookie", &cookies)]).status, 403);
    assert_eq!(none.ask("GET", "/", &[("Cookie", &browser.cookie)]).status, 200, "the control");
}

/// As a site of the edge, for one client certificate.
fn through_the_edge(world: &World, auth: &Node, db: &Node, https: SocketAddr) {
    if !has(&["curl"]) {
        return;
    }
    for (node, dir) in [(db, "db-svid"), (auth, "auth-svid")] {
        let out = world.path(dir);
        node.cli(&["svid", "fetch", "--out", out.to_str().unwrap()]).good();
    }
    let jar = world.path("cookies");
    let curl = |svid: Option<&str>, host: &str, path: &str| {
        let mut curl = Command::new("curl");
        let port = https.port();
        curl.args([
            "-sSi",
            "-m",
            "30",
            "--http1.1",
            "--resolve",
            &format!("{host}:{port}:127.0.0.1"),
        ]);
        curl.arg("--cacert")
            .arg(world.path("db-svid/bundle.pem"))
            .arg("-b")
            .arg(&jar)
            .arg("-c")
            .arg(&jar);
        if let Some(svid) = svid {
            curl.arg("--cert").arg(world.path(svid).join("svid.pem"));
            curl.arg("--key").arg(world.path(svid).join("key.pem"));
        }
        Ran::of(curl.arg(format!("https://{host}:{port}{path}")), "")
    };
    let printed = auth.cli(&["console", "--print"]).good().out;
    let start = format!("or https://{SITE}:{}/enter/", https.port());
    let link = printed.lines().find_map(|line| line.strip_prefix(&start));
    let link = format!("/enter/{}", link.unwrap_or_else(|| panic!("{start} is not in {printed}")));
    assert!(!printed.contains("open.corp.internal"), "{printed}");

    wait_for("the site has its certificate", || curl(Some("db-svid"), SITE, "/").code == Some(0));
    // Without a certificate there is no connection, and that of another node is refused, also with the link.
    for path in ["/", &link] {
        let none = curl(None, SITE, path);
        assert!(none.code != Some(0) && none.out.is_empty(), "{path}: {none:?}");
        let other = curl(Some("auth-svid"), SITE, path);
        assert!(other.out.is_empty() || other.out.starts_with("HTTP/1.1 403 "), "{other:?}");
        assert!(!other.out.contains("onsole") && !other.out.contains("set-cookie"), "{other:?}");
    }
    // With it, a session is needed as well.
    let answer = parsed(&curl(Some("db-svid"), SITE, "/").good().out);
    assert!(answer.status == 403 && answer.body.contains("Open the console by its link"));
    let answer = parsed(&curl(Some("db-svid"), SITE, &link).good().out);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
    let answer = parsed(&curl(Some("db-svid"), SITE, "/nodes").good().out);
    assert!(answer.status == 200 && answer.body.contains("db1"), "{}", answer.body);
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    // The session does not replace the certificate.
    let answer = curl(None, SITE, "/nodes");
    assert!(answer.code != Some(0) && answer.out.is_empty(), "{answer:?}");
    // A site for everybody does not lead to the console.
    let answer = parsed(&curl(None, "open.corp.internal", "/nodes").good().out);
    assert_eq!(answer.status, 421, "{}", answer.body);
}
