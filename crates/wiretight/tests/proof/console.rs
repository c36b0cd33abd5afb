//! The console of a running authority: who gets in, what is refused, and that every link leads to a page.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::rig::*;

/// A response: status, head, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

struct Browser {
    at: SocketAddr,
    cookie: String,
}

impl Browser {
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
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.into(), body: body.into() }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    /// Follows a link to a session.
    fn enter(&mut self, link: &str) {
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

#[test]
fn the_console_shows_the_mesh_to_those_with_a_link_and_to_nobody_else() {
    let (world, listen) = (World::new(), free());
    let auth = world.authority(&format!("[console]\nlisten = \"{listen}\"\n"));
    let _db = world.joined(&auth, "db1", &["db"], "");
    let link = || {
        let printed = auth.cli(&["console", "--print"]).good().out;
        printed.lines().next().unwrap().to_owned()
    };
    let mut browser = Browser { at: listen, cookie: String::new() };

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
    let used = link();
    browser.enter(&used);
    let path = used.strip_prefix(&format!("http://{listen}")).unwrap();
    let again = Browser { at: listen, cookie: String::new() }.get(path);
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
    let other = _db.cli(&["console", "--print"]);
    assert!(other.code == Some(1) && other.err.contains("add [console]"), "{other:?}");
}
