//! Request boundaries: nginx, HAProxy and Node.js behind the edge must see the same requests as the edge.
//!
//! Each probe is sent raw, with another request, `/smuggled`, hidden in its body, and one more, `/follow`, after it.
//! A program that sees other boundaries than the edge would log `/smuggled`, or respond out of order. The programs
//! are configured to be as lenient as possible.

use super::rig;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tempfile::TempDir;

use rig::edge::{EdgeRig, Raw, SITE};
use rig::foreign::{Program, missing};
use rig::frames::{self, *};
use rig::{Random, eventually, free};

/// The expected result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It arrives with a body of this length, and the following request arrives too.
    Served(Body),
    /// It arrives, and then the connection is closed, because of the client's header or HTTP version.
    Last(Body),
    /// It arrives; the data after it gets this status, and the connection is closed.
    Then(u16),
    /// It arrives, or the program rejects it; the following request arrives.
    Passed,
    /// The edge responds with this status and closes; nothing arrives.
    Refused(u16),
    /// The edge itself responds with this status, and it does not arrive; the following request may.
    Own(u16),
    /// Its body is malformed: the head may arrive, and nothing after it.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// The hidden request.
    Hidden,
    Bytes(usize),
}

use Body::{Bytes, Hidden};
use Fate::{Broken, Last, Own, Passed, Refused, Served, Then};

/// A probe: its description, its bytes, and the expected result. In the bytes, `@P` is its path, `@H` the name of the
/// site, `@S` the hidden request, `@L` the length of that, `@X` the length in hexadecimal, and `@M` the length plus
/// five.
struct Probe {
    what: String,
    template: String,
    fate: Fate,
}

/// The minimum number of probes.
const ENOUGH: usize = 100;

fn probes() -> Vec<Probe> {
    let mut all = Vec::new();
    let mut add = |what: &str, template: String, fate| {
        let what = what.to_owned();
        all.push(Probe { what, template, fate });
    };
    let post =
        |lines: &str, body: &str| format!("POST @P HTTP/1.1\r\nHost: @H\r\n{lines}\r\n{body}");
    let whole = "@X\r\n@S\r\n0\r\n\r\n";
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let line = |line: &str| format!("{line}\r\nHost: @H\r\nContent-Length: @L\r\n\r\n@S");

    // Well-formed counterparts.
    add("a length", post("Content-Length: @L\r\n", "@S"), Served(Hidden));
    add("a length in a GET", line("GET @P HTTP/1.1"), Served(Hidden));
    add("a length in a DELETE", line("DELETE @P HTTP/1.1"), Served(Hidden));
    add("a length in a HEAD", line("HEAD @P HTTP/1.1"), Served(Hidden));
    add("an OPTIONS with a body", line("OPTIONS @P HTTP/1.1"), Served(Hidden));
    add("no body", post("", ""), Served(Bytes(0)));
    add("a HEAD", "HEAD @P HTTP/1.1\r\nHost: @H\r\n\r\n".into(), Served(Bytes(0)));
    add("a GET", "GET @P HTTP/1.1\r\nHost: @H\r\n\r\n".into(), Served(Bytes(0)));
    add("length 0", post("Content-Length: 0\r\n", ""), Served(Bytes(0)));
    add("a length in lower case", post("content-length: @L\r\n", "@S"), Served(Hidden));
    add("a length after a tab", post("Content-Length:\t@L\r\n", "@S"), Served(Hidden));
    add("a length without white space", post("Content-Length:@L\r\n", "@S"), Served(Hidden));
    add("a length before white space", post("Content-Length: @L \t \r\n", "@S"), Served(Hidden));
    add("a length after white space", post("Content-Length:  \t @L\r\n", "@S"), Served(Hidden));
    add("a length with zeros", post("Content-Length: 0000@L\r\n", "@S"), Served(Hidden));
    add("chunks", chunked(whole), Served(Hidden));
    add("no chunk", chunked("0\r\n\r\n"), Served(Bytes(0)));
    add("chunks in a GET", chunked(whole).replacen("POST", "GET", 1), Served(Hidden));
    add("Chunked", post("Transfer-Encoding: Chunked\r\n", whole), Served(Hidden));
    add("CHUNKED", post("TRANSFER-ENCODING: CHUNKED\r\n", whole), Served(Hidden));
    add(
        "chunked before white space",
        post("Transfer-Encoding: chunked \t\r\n", whole),
        Served(Hidden),
    );
    add("chunked after a tab", post("Transfer-Encoding:\tchunked\r\n", whole), Served(Hidden));
    add(
        "chunked without white space",
        post("Transfer-Encoding:chunked\r\n", whole),
        Served(Hidden),
    );
    add("two chunks", chunked("1\r\nx\r\n1\r\ny\r\n0\r\n\r\n"), Served(Bytes(2)));
    add("a size with zeros", chunked("0000@X\r\n@S\r\n000\r\n\r\n"), Served(Hidden));
    add("a size in upper case", chunked("A\r\n0123456789\r\n0\r\n\r\n"), Served(Bytes(10)));
    add("a size in lower case", chunked("a\r\n0123456789\r\n0\r\n\r\n"), Served(Bytes(10)));
    add("a trailer", chunked("@X\r\n@S\r\n0\r\nx: y\r\n\r\n"), Served(Hidden));
    add("Host in a trailer", chunked("@X\r\n@S\r\n0\r\nHost: b\r\n\r\n"), Served(Hidden));
    add("an extension", chunked("@X;a=b\r\n@S\r\n0\r\n\r\n"), Served(Hidden));
    add("an extension in quotes", chunked("@X;a=\"\\\" ;\"\r\n@S\r\n0;b\r\n\r\n"), Served(Hidden));
    add("an absolute target", line("POST https://@H@P HTTP/1.1"), Served(Hidden));
    add("an absolute target, http", line("POST http://@H@P HTTP/1.1"), Served(Hidden));
    let expect = "Expect: 100-continue\r\nContent-Length: @L\r\n";
    add("100-continue", post(expect, "@S"), Served(Hidden));
    let expect = "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n";
    add("100-continue with chunks", post(expect, whole), Served(Hidden));
    let close = "Connection: close\r\nContent-Length: @L\r\n";
    add("close", post(close, "@S"), Last(Hidden));
    add("HTTP/1.0", line("POST @P HTTP/1.0"), Last(Hidden));
    let keep =
        "POST @P HTTP/1.0\r\nHost: @H\r\nConnection: keep-alive\r\nContent-Length: @L\r\n\r\n@S";
    add("HTTP/1.0 that keeps alive", keep.into(), Served(Hidden));

    // Two lengths, and invalid lengths.
    let twice =
        |a: &str, b: &str| post(&format!("Content-Length: {a}\r\nContent-Length: {b}\r\n"), "@S");
    add("the same length twice", twice("@L", "@L"), Refused(400));
    add("two lengths, 0 first", twice("0", "@L"), Refused(400));
    add("two lengths, 0 last", twice("@L", "0"), Refused(400));
    for bad in [
        "@L, @L",
        "@L,0",
        "0,@L",
        "+@L",
        "-@L",
        "0x@X",
        "@L.0",
        "@L @L",
        "@L;",
        "\"@L\"",
        "",
        " ",
        "@La",
        "99999999999999999999",
        "18446744073709551678",
        "0000000000000000000000000@L",
        "1e2",
        "@L_0",
        "\u{664}\u{662}",
    ] {
        let lines = format!("Content-Length: {bad}\r\n");
        add(&format!("length {bad:?}"), post(&lines, "@S"), Refused(400));
    }
    add("a length after VT", post("Content-Length: \x0b@L\r\n", "@S"), Refused(400));
    add("a length before NUL", post("Content-Length: @L\0\r\n", "@S"), Refused(400));
    add("a length beyond the site's", post("Content-Length: 99999999999\r\n", "@S"), Refused(413));
    add("white space before a length's colon", post("Content-Length : @L\r\n", "@S"), Refused(400));

    // A length and chunks.
    let both = "Content-Length: @M\r\nTransfer-Encoding: chunked\r\n";
    add("length, chunks, cut by the length", post(both, "0\r\n\r\n@S"), Refused(400));
    let both = "Transfer-Encoding: chunked\r\nContent-Length: @M\r\n";
    add("chunks, length, cut by the length", post(both, "0\r\n\r\n@S"), Refused(400));
    let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n";
    add("length, chunks, cut by the chunks", post(both, whole), Refused(400));
    let both = "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n";
    add("length 0 and chunks", post(both, whole), Refused(400));
    let both = "Content-Length: @M\r\nTransfer-Encoding: identity\r\n";
    add("length and identity", post(both, "0\r\n\r\n@S"), Refused(400));
    let both = "Content-Length: @M\r\nTransfer-Encoding: xchunked\r\n";
    add("length and no coding", post(both, "0\r\n\r\n@S"), Refused(400));
    let both = "Content-Length: @M\r\nTransfer_Encoding: chunked\r\n";
    add("length and Transfer_Encoding", post(both, "0\r\n\r\n@S"), Served(Bytes(5)));

    // Transfer codings that only some parsers support.
    for bad in [
        "chunked, identity",
        "identity, chunked",
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "xchunked",
        "chunkedx",
        "chunked;q=1",
        "\"chunked\"",
        "'chunked'",
        "",
        "ch unked",
        "chunked x",
        "chun\u{212a}ed",
        "chunked\u{a0}",
    ] {
        let lines = format!("Transfer-Encoding: {bad}\r\n");
        add(&format!("coding {bad:?}"), post(&lines, whole), Refused(400));
    }
    for bad in
        ["chunked\x0b", "\x0bchunked", "chunked\0", "\x0cchunked", "chunked\x7f", "chunked\x08"]
    {
        let lines = format!("Transfer-Encoding: {bad}\r\n");
        add(&format!("coding {bad:?}"), post(&lines, whole), Refused(400));
    }
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
    add("chunked twice", post(twice, whole), Refused(400));
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n";
    add("chunked and identity", post(twice, whole), Refused(400));
    add(
        "white space before its colon",
        post("Transfer-Encoding : chunked\r\n", whole),
        Refused(400),
    );
    add("a tab before its colon", post("Transfer-Encoding\t: chunked\r\n", whole), Refused(400));
    add("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n", whole), Refused(400));
    add(
        "a line before it ends with LF only",
        post("x: y\nTransfer-Encoding: chunked\r\n", whole),
        Refused(400),
    );
    add("in HTTP/1.0", chunked(whole).replacen("/1.1", "/1.0", 1), Refused(400));

    // Lines.
    let lf =
        |from: &str, to: &str| post("Content-Length: @L\r\nx: y\r\n", "@S").replacen(from, to, 1);
    add("LF ends the request line", lf("HTTP/1.1\r\n", "HTTP/1.1\n"), Refused(400));
    add("CR ends the request line", lf("HTTP/1.1\r\n", "HTTP/1.1\r"), Refused(400));
    add("CR CR LF ends the request line", lf("HTTP/1.1\r\n", "HTTP/1.1\r\r\n"), Refused(400));
    add("LF ends a header", lf("Host: @H\r\n", "Host: @H\n"), Refused(400));
    add("LF ends the last header", lf("x: y\r\n", "x: y\n"), Refused(400));
    add("CR ends a header", lf("x: y\r\n", "x: y\rz: 1\r\n"), Refused(400));
    add("LF ends the head", lf("x: y\r\n\r\n", "x: y\r\n\n"), Refused(400));
    add("LF LF ends the head", lf("x: y\r\n\r\n", "x: y\n\n"), Refused(400));
    add("CR CR ends the head", lf("x: y\r\n\r\n", "x: y\r\n\r\r"), Refused(400));
    add("LF ends every line", lf("", "").replace("\r\n", "\n"), Refused(400));
    add("a folded header", lf("x: y\r\n", "x: y\r\n z\r\n"), Refused(400));
    add(
        "a header folded by a tab",
        lf("x: y\r\n", "x: y\r\n\tContent-Length: 0\r\n"),
        Refused(400),
    );
    add("a folded first header", lf("HTTP/1.1\r\n", "HTTP/1.1\r\n x: y\r\n"), Refused(400));
    add("an empty line first", format!("\r\n{}", lf("", "")), Refused(400));
    add("LF first", format!("\n{}", lf("", "")), Refused(400));

    // Names and values.
    for bad in [
        "x : y",
        "x\t: y",
        ": y",
        "x",
        "x y: z",
        "x\0: y",
        "\x01: y",
        "x\x7f: y",
        "(x): y",
        "x;: y",
        "\u{e9}: y",
        "x: a\0b",
        "x: a\x0bb",
        "x: a\x1bb",
        "x: a\x7fb",
        "x: \x08",
    ] {
        let lines = format!("{bad}\r\nContent-Length: @L\r\n");
        add(&format!("header {bad:?}"), post(&lines, "@S"), Refused(400));
    }
    add("a value of other letters", lf("x: y", "x: \u{e9}"), Served(Hidden));
    add("an empty value", lf("x: y", "x:"), Served(Hidden));

    // Request lines.
    for (bad, status) in [
        ("POST  @P HTTP/1.1", 400),
        ("POST @P  HTTP/1.1", 400),
        (" POST @P HTTP/1.1", 400),
        ("POST\t@P HTTP/1.1", 400),
        ("POST @P\tHTTP/1.1", 400),
        ("POST @P HTTP/1.1 ", 505),
        ("POST @P?a b HTTP/1.1", 400),
        ("POST @P", 400),
        ("POST @P HTTP/1.2", 505),
        ("POST @P HTTP/2.0", 505),
        ("POST @P HTTP/0.9", 505),
        ("POST @P HTTP/1.10", 505),
        ("POST @P http/1.1", 400),
        ("POST @P HTTP/1,1", 505),
        ("POST @P HTTPS/1.1", 505),
        ("PO ST @P HTTP/1.1", 400),
        ("PO{ST @P HTTP/1.1", 400),
        ("POST @P\0 HTTP/1.1", 400),
        ("POST @P\u{e9} HTTP/1.1", 400),
        ("POST @P\x7f HTTP/1.1", 400),
        ("POST @P HTTP/+1.1", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n", 505),
        ("POST @P#x HTTP/1.1\x0b", 505),
        ("", 400),
    ] {
        add(&format!("request line {bad:?}"), line(bad), Refused(status));
    }
    add("a method in lower case", line("post @P HTTP/1.1"), Passed);
    add("an unknown method", line("SMUGGLE @P HTTP/1.1"), Passed);
    add("a target with a fragment", line("POST @P#x HTTP/1.1"), Passed);
    add("TRACE with a body", line("TRACE @P HTTP/1.1"), Passed);

    // Hosts.
    let host = |host: &str| format!("POST @P HTTP/1.1\r\n{host}Content-Length: @L\r\n\r\n@S");
    add("no Host", host(""), Refused(400));
    add("two Hosts", host("Host: @H\r\nHost: @H\r\n"), Refused(400));
    add("an empty Host", host("Host:\r\n"), Refused(400));
    add("a Host with a user", host("Host: a@@H\r\n"), Refused(400));
    add("a Host of two", host("Host: @H, other.example\r\n"), Refused(400));
    add("another Host", host("Host: other.example\r\n"), Own(421));
    add("another Host, no body", "GET @P HTTP/1.1\r\nHost: other.example\r\n\r\n".into(), Own(421));
    add(
        "a target that is not the Host",
        line("POST https://other.example@P HTTP/1.1"),
        Refused(400),
    );
    add("a target with a user", line("POST https://a@@H@P HTTP/1.1"), Refused(400));
    add("CONNECT", line("CONNECT @H:443 HTTP/1.1"), Own(405));
    add("CONNECT without a body", "CONNECT @H:443 HTTP/1.1\r\nHost: @H\r\n\r\n".into(), Own(405));

    // Hop-by-hop headers, and headers that the client declares to be so.
    for (named, lines, body) in [
        ("content-length", "Content-Length: @L", "@S"),
        ("Content-Length, x", "Content-Length: @L", "@S"),
        ("transfer-encoding", "Transfer-Encoding: chunked", whole),
        ("host", "Content-Length: @L", "@S"),
        ("x-forwarded-for, forwarded", "Content-Length: @L", "@S"),
        (
            "content-length, transfer-encoding, host, keep-alive",
            "Transfer-Encoding: chunked",
            whole,
        ),
    ] {
        let lines = format!("Connection: {named}\r\n{lines}\r\n");
        add(&format!("Connection: {named}"), post(&lines, body), Served(Hidden));
    }
    for (asked, lines, body) in [
        ("websocket", "Content-Length: @L", "@S"),
        ("h2c", "Content-Length: @L", "@S"),
        ("h2c, websocket", "Transfer-Encoding: chunked", whole),
        ("HTTP/2.0", "Content-Length: @L", "@S"),
        ("TLS/1.0", "Transfer-Encoding: chunked", whole),
    ] {
        for connection in ["Connection: upgrade\r\n", ""] {
            let lines = format!("{connection}Upgrade: {asked}\r\n{lines}\r\n");
            let what = format!("Upgrade: {asked}, with {:?}", connection.trim_end());
            add(&what, post(&lines, body), Served(Hidden));
        }
    }
    let get = "GET @P HTTP/1.1\r\nHost: @H\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
               HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    add("a formally correct upgrade to HTTP/2", get.into(), Served(Bytes(0)));

    // Chunks.
    for bad in [
        "0x@X\r\n@S\r\n0\r\n\r\n",
        "-@X\r\n@S\r\n0\r\n\r\n",
        "+@X\r\n@S\r\n0\r\n\r\n",
        " @X\r\n@S\r\n0\r\n\r\n",
        "@X \r\n@S\r\n0\r\n\r\n",
        "@X\t\r\n@S\r\n0\r\n\r\n",
        "@X_\r\n@S\r\n0\r\n\r\n",
        "0_0\r\n@S\r\n0\r\n\r\n",
        "@Xg\r\n@S\r\n0\r\n\r\n",
        "\r\n@S\r\n0\r\n\r\n",
        ";a\r\n@S\r\n0\r\n\r\n",
        "@X\n@S\r\n0\r\n\r\n",
        "@X\r@S\r\n0\r\n\r\n",
        "@X\r\r\n@S\r\n0\r\n\r\n",
        "@X\r\n@S\n0\r\n\r\n",
        "@X\r\n@S0\r\n\r\n",
        "@X\r\n@S\r0\r\n\r\n",
        "@X\r\n@S\rX0\r\n\r\n",
        "@X\r\n@SXX\r\n0\r\n\r\n",
        "10000000000000000\r\n@S\r\n0\r\n\r\n",
        "100000000000000@X\r\n@S\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n@S\r\n0\r\n\r\n",
        "@X;a\nb\r\n@S\r\n0\r\n\r\n",
        "@X;a\rb\r\n@S\r\n0\r\n\r\n",
        "@X;a\0\r\n@S\r\n0\r\n\r\n",
        "@X;\n@S\r\n0\r\n\r\n",
        "@X a=b\r\n@S\r\n0\r\n\r\n",
        "@X\r\n@S\r\n0\r\n",
        "@X\r\n@S\r\n0\n\n",
        "@X\r\n@S\r\n0\r\n\n",
        "@X\r\n@S\r\n0\r\n\rX",
        "@X\r\n@S\r\n0\r\nContent-Length: @L\r\n\r\n",
        "@X\r\n@S\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "@X\r\n@S\r\n0\r\nx: y\n\r\n",
        "@X\r\n@S\r\n0\r\n x: y\r\n\r\n",
        "@X\r\n@S\r\n0\r\nx : y\r\n\r\n",
        "@X\r\n@S\r\n0\r\nx: \0\r\n\r\n",
        "@X\r\n@S\r\n0\r\nx\r\n\r\n",
        "@S",
    ] {
        add(&format!("chunks {bad:?}"), chunked(bad), Broken);
    }
    add("a long extension", chunked(&format!("@X;{}\r\n@S\r\n0\r\n\r\n", "x".repeat(300))), Broken);

    // After a good request, on the same connection.
    for (behind, status) in [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("\r\n", 400),
        ("\0", 400),
        ("0\r\n\r\n", 400),
        ("POST / HTTP/1.1\nHost: @H\n\n@S", 400),
        ("POST / HTTP/1.1\r\nHost: @H\r\nContent-Length: 0\r\nContent-Length: @L\r\n\r\n@S", 400),
        ("GET / HTTP/1.1\r\nHost: @H\r\nx: y\r\n z\r\n\r\n@S", 400),
    ] {
        let good = post("Content-Length: @L\r\n", "@S");
        add(&format!("after a length: {behind:?}"), good + behind, Then(status));
        add(&format!("after chunks: {behind:?}"), chunked(whole) + behind, Then(status));
    }

    // Sizes.
    let long = |n: usize| lf("x: y", &format!("x: {}", "y".repeat(n)));
    add("a long header", long(6000), Served(Hidden));
    add("a header that is too long", long(40_000), Refused(431));
    add(
        "a target that is too long",
        line(&format!("POST @P?{} HTTP/1.1", "y".repeat(40_000))),
        Refused(431),
    );
    add("too many headers", lf("x: y\r\n", &"x: y\r\n".repeat(120)), Refused(431));
    all
}

impl Probe {
    fn bytes(&self, n: usize) -> String {
        let hidden = hidden(n);
        let len = hidden.len();
        self.template
            .replace("@P", &format!("/probe-{n:03}"))
            .replace("@H", SITE)
            .replace("@S", &hidden)
            .replace("@L", &len.to_string())
            .replace("@X", &format!("{len:x}"))
            .replace("@M", &(len + 5).to_string())
    }

    fn is_head(&self) -> bool {
        self.template.starts_with("HEAD ")
    }
}

fn hidden(n: usize) -> String {
    format!("GET /smuggled-{n:03} HTTP/1.1\r\nHost: {SITE}\r\n\r\n")
}

/// A program behind the edge, and its log.
struct Backend {
    // Dropped before its folder, as fields drop in this order.
    _program: Program,
    at: SocketAddr,
    dir: TempDir,
    /// Whether it reads a body before it responds, and logs its length.
    reads: bool,
}

impl Backend {
    fn start(program: &str, reads: bool, conf: &str, args: &[&str]) -> Backend {
        let (at, dir) = (free(), tempfile::tempdir().unwrap());
        let path = dir.path().join("conf.js");
        let conf = conf
            .replace("@DIR", dir.path().to_str().unwrap())
            .replace("@PORT", &at.port().to_string());
        std::fs::write(&path, conf).unwrap();
        let known = ["/usr/sbin", "/usr/local/sbin"].map(|dir| PathBuf::from(dir).join(program));
        let found = known.into_iter().find(|p| p.exists()).unwrap_or_else(|| program.into());
        let mut command = Command::new(found);
        command.args(args).arg(&path);
        let log = File::create(dir.path().join("log")).unwrap();
        let program = Program::start_into(&mut command, log);
        eventually("the program listens", || TcpStream::connect(at).is_ok());
        Backend { _program: program, at, dir, reads }
    }

    fn nginx() -> Backend {
        let conf = "daemon off;\nmaster_process off;\npid @DIR/pid;\nerror_log @DIR/errors;\nevents {}\n\
            http {\n log_format it '$request';\n access_log @DIR/log it;\n\
            client_body_temp_path @DIR/a;\n proxy_temp_path @DIR/b;\n fastcgi_temp_path @DIR/c;\n\
            uwsgi_temp_path @DIR/d;\n scgi_temp_path @DIR/e;\n\
            keepalive_requests 100000;\n keepalive_timeout 600s;\n\
            ignore_invalid_headers off;\n underscores_in_headers on;\n merge_slashes off;\n\
            server {\n listen 127.0.0.1:@PORT;\n large_client_header_buffers 8 64k;\n\
            add_header x-path $uri always;\n return 200 $uri;\n }\n}\n";
        Backend::start("nginx", false, conf, &["-e", "stderr", "-c"])
    }

    fn haproxy() -> Backend {
        let conf = "global\n nbthread 1\n tune.bufsize 65536\n log stdout format raw daemon\n\
            defaults\n mode http\n log global\n option dontlognull\n option accept-invalid-http-request\n\
            timeout client 600s\n timeout http-keep-alive 600s\n timeout http-request 600s\n\
            frontend it\n bind 127.0.0.1:@PORT\n log-format \"%HM %[var(txn.path)] %[var(txn.len)]\"\n\
            http-request set-var(txn.path) path\n\
            http-request wait-for-body time 60s\n http-request set-var(txn.len) req.body_len\n\
            http-request return status 200 content-type text/plain hdr x-path \"%[path]\" lf-string \"%[path]\"\n";
        Backend::start("haproxy", true, conf, &["-db", "-f"])
    }

    fn node() -> Backend {
        let conf = "const log = (...words) => require('fs').appendFileSync('@DIR/log', words.join(' ') + '\\n');\n\
            const options = { insecureHTTPParser: true, keepAliveTimeout: 600000, requestTimeout: 0,\n\
              headersTimeout: 600000, maxHeaderSize: 65536 };\n\
            require('http').createServer(options, (request, response) => {\n\
              const path = request.url.split('?')[0];\n\
              let size = 0;\n\
              log(request.method, path);\n\
              request.on('data', (data) => { size += data.length; });\n\
              request.on('end', () => {\n\
                log('body', path, size);\n\
                response.setHeader('x-path', path);\n\
                response.end(path);\n\
              });\n\
            }).listen(@PORT, '127.0.0.1');\n";
        Backend::start("node", true, conf, &[])
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The requests of a probe that it has logged, in order, with the lengths of their bodies.
    fn seen(log: &str, n: usize) -> (Vec<String>, Vec<(String, usize)>) {
        let (mut paths, mut bodies) = (Vec::new(), Vec::new());
        for line in log.lines() {
            let mut words = line.split(' ');
            let (Some(method), Some(target)) = (words.next(), words.next()) else { continue };
            if !target.contains(&format!("-{n:03}")) {
                continue;
            }
            let target = target.split(['?', '#']).next().unwrap();
            if let Some(size) = words.next().and_then(|w| w.parse().ok()) {
                bodies.push((target.to_owned(), size));
            }
            if method != "body" {
                paths.push(target.to_owned());
            }
        }
        (paths, bodies)
    }
}

/// A response: its status, and the path for which the program responded, if it was the program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    path: Option<String>,
}

/// Splits the received data into responses, by their lengths; anything else fails the test. `heads` says which of
/// them are to HEAD.
fn answers(mut text: &str, heads: &[bool]) -> Result<Vec<Answer>, String> {
    let mut all = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").ok_or("half a head")?;
        let status = head.strip_prefix("HTTP/1.").and_then(|t| t.get(2..5)?.parse::<u16>().ok());
        let status = status.ok_or_else(|| format!("no answer: {head:?}"))?;
        text = rest;
        if status / 100 == 1 {
            continue;
        }
        let value = |name: &str| {
            head.lines().find_map(|line| {
                let (n, v) = line.split_once(':')?;
                n.eq_ignore_ascii_case(name).then(|| v.trim().to_owned())
            })
        };
        let path = value("x-path");
        let is_head = heads.get(all.len()).copied().unwrap_or_default();
        let mut body = String::new();
        if is_head {
        } else if let Some(length) = value("content-length").and_then(|l| l.parse().ok()) {
            let (now, rest) = text.split_at_checked(length).ok_or("half a body")?;
            body.push_str(now);
            text = rest;
        } else {
            loop {
                let (size, rest) = text.split_once("\r\n").ok_or("half a chunk")?;
                let size =
                    usize::from_str_radix(size, 16).map_err(|_| format!("no size: {size:?}"))?;
                let (now, rest) = rest.split_at_checked(size).ok_or("half a chunk")?;
                body.push_str(now);
                text = rest.strip_prefix("\r\n").ok_or("no end of a chunk")?;
                if size == 0 {
                    break;
                }
            }
        }
        if let Some(path) = &path
            && status == 200
            && !is_head
            && body != *path
        {
            return Err(format!("{body:?} for {path:?}"));
        }
        all.push(Answer { status, path });
    }
    Ok(all)
}

/// In one piece, or in many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    One,
    Many,
}

/// Sends a probe and the following request; returns everything received.
fn send(mut raw: Raw, bytes: &str, pieces: Pieces, random: &mut Random) -> String {
    let mut left = bytes.as_bytes();
    while !left.is_empty() {
        let n = match pieces {
            Pieces::One => left.len(),
            Pieces::Many => {
                left.len().min(1 + random.below(if left.len() > 2000 { 4000 } else { 24 }))
            }
        };
        // The edge may reject it and close before everything was sent.
        if raw.0.write_all(&left[..n]).and_then(|()| raw.0.flush()).is_err() {
            break;
        }
        left = &left[n..];
    }
    raw.rest()
}

/// Sends all probes to an edge in front of this program, and checks the results.
fn probe(backend: &Backend) {
    let rig = EdgeRig::new(&[backend.at.to_string()]);
    let probes = probes();
    assert!(probes.len() >= ENOUGH, "{} probes", probes.len());
    let cases: Vec<_> = [Pieces::One, Pieces::Many]
        .into_iter()
        .flat_map(|pieces| probes.iter().map(move |probe| (pieces, probe)))
        .collect();
    assert!(cases.len() < 1000, "three digits");
    let (next, results) = (AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (rig, cases, next, results) = (&rig, &cases, &next, &results);
            scope.spawn(move || {
                let mut random = Random::new(seed + 1);
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    let Some((pieces, probe)) = cases.get(n) else { break };
                    let follow = format!(
                        "GET /follow-{n:03} HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n"
                    );
                    let text = send(rig.raw(), &(probe.bytes(n) + &follow), *pieces, &mut random);
                    results.lock().unwrap().push((n, text));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    // Every request that got a response is logged eventually.
    let answered = |n, text: &str, log: &str| {
        let (paths, _) = Backend::seen(log, n);
        let probe = cases[n].1;
        let told = answers(text, &[probe.is_head()]).unwrap_or_default();
        told.iter().filter_map(|a| a.path.as_ref()).all(|p| paths.contains(p))
    };
    eventually("all is logged", || {
        let log = backend.log();
        results.iter().all(|(n, text)| answered(*n, text, &log))
    });
    let log = backend.log();
    assert!(!log.contains("smuggled"), "{log}");
    let mut wrong = Vec::new();
    for (n, text) in &results {
        let (pieces, probe) = cases[*n];
        if let Err(why) = judge(backend, probe, pieces, *n, text, &log) {
            wrong.push(format!("{} ({pieces:?}): {why}", probe.what));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(results.len(), cases.len());
}

fn judge(
    backend: &Backend,
    probe: &Probe,
    pieces: Pieces,
    n: usize,
    text: &str,
    log: &str,
) -> Result<(), String> {
    let (paths, bodies) = Backend::seen(log, n);
    let answers = answers(text, &[probe.is_head()])?;
    let told: Vec<_> = answers.iter().filter_map(|a| a.path.as_deref()).collect();
    let (first, second) = (format!("/probe-{n:03}"), format!("/follow-{n:03}"));
    let both = [first.as_str(), second.as_str()];
    let statuses: Vec<_> = answers.iter().map(|a| a.status).collect();
    // The edge closes after a rejection; a client that is still sending may lose the response to a reset.
    let hasty = answers.is_empty() && pieces == Pieces::Many
        || text.is_empty() && probe.template.len() > 16_000;
    let arrived = |body: Body| {
        let size = match body {
            Hidden => hidden(n).len(),
            Bytes(size) if probe.template.contains("@M") => size + hidden(n).len(),
            Bytes(size) => size,
        };
        !backend.reads || bodies.contains(&(first.clone(), size))
    };
    let right = match probe.fate {
        Served(body) => paths == both && told == both && statuses == [200, 200] && arrived(body),
        Last(body) => paths == both[..1] && told == both[..1] && statuses == [200] && arrived(body),
        Then(status) => {
            let refused = statuses == [200, status] || statuses == [200] && pieces == Pieces::Many;
            let told = told == both[..1] && paths == both[..1] && refused && arrived(Hidden);
            told || hasty && (paths.is_empty() || paths == both[..1])
        }
        Passed => {
            let last = statuses.last() == Some(&200) && told.last() == Some(&both[1]);
            last && paths.last() == Some(&second) && answers.len() == 2 && paths.len() <= 2
        }
        Refused(status) => paths.is_empty() && (statuses == [status] || hasty),
        Own(status) => {
            let follows = told == both[1..] && paths == both[1..] && statuses == [status, 200];
            follows || paths.is_empty() && (statuses == [status] || hasty)
        }
        Broken => {
            let head = paths.is_empty() || paths == both[..1];
            // A program that responds without reading the body may have done so.
            let early = !backend.reads && statuses == [200] && told == both[..1];
            head && (statuses == [400] && told.is_empty() || early || hasty)
        }
    };
    match right {
        true => Ok(()),
        false => Err(format!(
            "{:?} was expected: saw {paths:?} {bodies:?}, answered {answers:?}",
            probe.fate
        )),
    }
}

#[test]
fn nginx_sees_the_same_requests_as_the_edge() {
    if !missing("nginx") {
        probe(&Backend::nginx());
    }
}

#[test]
fn haproxy_sees_the_same_requests_as_the_edge() {
    if !missing("haproxy") {
        probe(&Backend::haproxy());
    }
}

#[test]
fn node_sees_the_same_requests_as_the_edge() {
    if !missing("node") {
        probe(&Backend::node());
    }
}

/// A faulty proxy: it splits by Content-Length and forwards the head unchanged.
fn naive(to: SocketAddr) -> String {
    rig::backend(move |mut client| {
        let mut server = rig::connect(to);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let length = text.split("content-length: ").nth(1).and_then(|t| t.lines().next());
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        client.read_exact(&mut body).unwrap();
        server.write_all(&[head, body].concat()).unwrap();
        let mut answer = [0; 4096];
        let n = server.read(&mut answer).unwrap();
        client.write_all(&answer[..n]).unwrap();
        // Further data from the server is discarded.
        let _ = server.read(&mut answer);
    })
}

/// Behind a faulty proxy the hidden request appears, so these tests can detect it.
#[test]
fn a_naive_proxy_lets_the_hidden_request_through() {
    // Only one of the two treats this as a length.
    let sloppy = "POST @P HTTP/1.1\r\nHost: @H\r\nX-Content-Length: @L\r\n\r\n@S";
    // One uses the length, the other the chunks. The other two programs reject this themselves.
    let both = "POST @P HTTP/1.1\r\nHost: @H\r\nContent-Length: @M\r\nTransfer-Encoding: chunked\r\n\r\n\
                0\r\n\r\n@S";
    for program in ["nginx", "haproxy", "node"] {
        if missing(program) {
            continue;
        }
        let (backend, templates) = match program {
            "nginx" => (Backend::nginx(), vec![sloppy]),
            "haproxy" => (Backend::haproxy(), vec![sloppy]),
            _ => (Backend::node(), vec![sloppy, both]),
        };
        for (n, template) in templates.into_iter().enumerate() {
            let what = program.to_owned();
            let probe = Probe { what, template: template.to_owned(), fate: Passed };
            let mut socket = rig::connect(naive(backend.at).parse().unwrap());
            socket.write_all(probe.bytes(n).as_bytes()).unwrap();
            let mut answer = [0; 4096];
            let len = socket.read(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer[..len]);
            assert!(answer.contains(&format!("/probe-{n:03}")), "{program}: {answer}");
            let smuggled = format!("/smuggled-{n:03}");
            eventually("the hidden request is logged", || backend.log().contains(&smuggled));
            let (paths, _) = Backend::seen(&backend.log(), n);
            assert_eq!(paths, [format!("/probe-{n:03}"), smuggled], "{program}");
        }
    }
}

type Fields = Vec<(String, String)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrives {
    Yes,
    No,
    /// The HTTP/3 library (h3 0.0.8) accepts it: one request arrives, or none.
    Lax,
}

use Arrives::{Lax, No, Yes};

/// HTTP/2 and HTTP/3 requests that would have another meaning in HTTP/1: their fields, with `@P`, `@H` and `@S` as
/// above, and whether they may arrive. The body is always the hidden request.
fn downgrades() -> Vec<(String, Fields, Arrives)> {
    let plain = [(":method", "POST"), (":scheme", "https"), (":authority", "@H"), (":path", "@P")];
    let mut all = Vec::new();
    let mut add = |fields: &[(&str, &str)], arrives| {
        let own = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        let fields: Fields = fields.iter().map(own).collect();
        all.push((format!("{fields:?}"), fields, arrives));
    };
    let with = |extra: &[(&'static str, &'static str)]| [&plain[..], extra].concat();
    let but = |n: usize, value: &'static str| {
        let mut fields = plain;
        fields[n].1 = value;
        fields
    };
    add(&plain, Yes);
    add(&with(&[("content-length", "@L")]), Yes);
    add(&with(&[("te", "trailers")]), Yes);
    add(&with(&[("expect", "100-continue")]), Yes);
    add(&with(&[("cookie", "a=1"), ("cookie", "b=2")]), Yes);
    for length in ["0", "1", "999", "+@L", "-@L", "@L, @L", "0x3e", "", "99999999999999999999"] {
        add(&with(&[("content-length", length)]), No);
    }
    add(&with(&[("content-length", "@L"), ("content-length", "0")]), No);
    add(&with(&[("content-length", "0"), ("content-length", "@L")]), No);
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("transfer-encoding ", "chunked"),
        ("content-length\0", "0"),
        ("x: y\r\ntransfer-encoding", "chunked"),
        ("x\r\n\r\n@S", "y"),
        ("x", "y\r\ntransfer-encoding: chunked"),
        ("x", "y\r\n\r\n@S"),
        ("x", "y\n\n@S"),
        ("x", "y\rz"),
        ("x", "y\0z"),
        ("", "y"),
        (":x", "y"),
    ] {
        add(&with(&[(name, value)]), No);
    }
    for path in ["@P HTTP/1.1\r\nHost: @H\r\n\r\n@S", "@P x", "", "@P\0", "@P\r\n", "@P\tx"] {
        add(&but(3, path), No);
    }
    for method in
        ["GET /smuggled HTTP/1.1\r\nHost: @H\r\n\r\nPOST", "PO ST", "", "POST\r\n", "POST\0"]
    {
        add(&but(0, method), No);
    }
    for authority in ["@H\r\nx: y", "@H x", "", "a@@H", "other.example", "@H/other", "@H\r\n\r\n@S"]
    {
        add(&but(2, authority), No);
    }
    add(&with(&[("host", "other.example")]), No);
    add(&[plain[0], plain[1], plain[2]], No);
    add(&plain[1..], No);
    add(&[plain[0], plain[1], plain[2], ("x", "y"), plain[3]], Lax);
    add(&with(&[(":path", "/other")]), Lax);
    add(&with(&[(":status", "200")]), Lax);
    all
}

/// Sends one of these and a following request, with HTTP/2 or HTTP/3. The responses are ignored; the program's log is
/// checked.
async fn send_by_frames(rig: &EdgeRig, http3: bool, n: usize, fields: &[(String, String)]) {
    let hidden = hidden(n);
    let fill = |text: &str| {
        let text = text.replace("@P", &format!("/probe-{n:03}")).replace("@H", SITE);
        text.replace("@S", &hidden).replace("@L", &hidden.len().to_string())
    };
    let fields: Vec<_> = fields.iter().map(|(n, v)| (fill(n), fill(v))).collect();
    let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let follow = format!("/follow-{n:03}");
    if http3 {
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
        let head = frame3(1, &qpack(&fields));
        let probe = [head, frame3(0, hidden.as_bytes())].concat();
        let follow = frame3(1, &qpack(&frames::fields("GET", &follow)));
        for bytes in [probe, follow] {
            let Ok((mut send, mut recv)) = connection.open_bi().await else { return };
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            let _ = recv.read_to_end(100_000).await;
        }
        return;
    }
    let mut client = Http2::open(rig).await;
    let head = frame(HEADERS, END_HEADERS, 1, &hpack(&fields));
    let probe = [head, frame(DATA, END_STREAM, 1, hidden.as_bytes())].concat();
    for (stream, bytes) in [(1, probe), (3, get(3, &follow))] {
        if client.send(&bytes).await.is_err() {
            return;
        }
        loop {
            let Some(frame) = client.next().await else { return };
            let ends = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            if frame.stream == stream && (ends || frame.kind == RST_STREAM) {
                break;
            }
        }
    }
}

fn downgrade(backend: &Backend) {
    let rig = EdgeRig::new(&[backend.at.to_string()]);
    let cases = downgrades();
    rig::edge::run(async {
        for (n, (_, fields, _)) in cases.iter().enumerate() {
            send_by_frames(&rig, false, n, fields).await;
            send_by_frames(&rig, true, n + cases.len(), fields).await;
        }
    });
    // When this is logged, so are the earlier ones.
    assert!(rig.get("GET /end HTTP/1.1\r\n").ends_with("/end"));
    eventually("all is logged", || backend.log().contains("/end"));
    let log = backend.log();
    assert!(!log.contains("smuggled"), "{log}");
    let mut wrong = Vec::new();
    for (n, (what, _, arrives)) in cases.iter().chain(&cases).enumerate() {
        let (paths, bodies) = Backend::seen(&log, n);
        let (first, second) = (format!("/probe-{n:03}"), format!("/follow-{n:03}"));
        let size = bodies.contains(&(first.clone(), hidden(n).len()));
        let right = match arrives {
            Yes => paths == [first, second] && (size || !backend.reads),
            Lax => n >= cases.len() || !size,
            // Its head may have arrived, but not the body that it announces.
            No => paths.iter().all(|p| *p == second || *p == first) && !size && paths.len() <= 2,
        };
        if !right {
            let http = if n < cases.len() { 2 } else { 3 };
            wrong.push(format!("HTTP/{http} {what}: saw {paths:?} {bodies:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), 2 * cases.len(), wrong.join("\n"));
}

#[test]
fn requests_hidden_in_http2_and_3_do_not_reach_node() {
    if !missing("node") {
        downgrade(&Backend::node());
    }
}

#[test]
fn requests_hidden_in_http2_and_3_do_not_reach_haproxy() {
    if !missing("haproxy") {
        downgrade(&Backend::haproxy());
    }
}
