//! CAA look-ups against a real DNS server.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../../../tests/ports.rs"]
mod ports;

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ports::free;
use tokio::time::Instant;
use wiretight_scan::active::caa::Resolver;
use wiretight_scan::facts::{Answer, Fact, Value};

/// dnsmasq with a zone `test.`, stopped when dropped.
struct Dns {
    process: Child,
    address: SocketAddr,
}

/// Flags, tag and value of a CAA record.
type Caa<'a> = (u8, &'a str, &'a str);

impl Dns {
    /// Starts it on a free port and waits until it answers. Returns `None` and prints a note if dnsmasq is not installed.
    async fn start(records: &[(&str, &[Caa<'_>])]) -> Option<Self> {
        // Another program may take the port in between, by UDP or by TCP; then dnsmasq ends.
        for _ in 0..10 {
            let mut dns = Self::start_once(records)?;
            let resolver = Resolver::at(dns.address).unwrap();
            while dns.process.try_wait().unwrap().is_none() {
                let fact = resolver.caa("test", Instant::now() + Duration::from_secs(2)).await;
                if fact.answer == Answer::No {
                    return Some(dns);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        panic!("dnsmasq did not start ten times");
    }

    fn start_once(records: &[(&str, &[Caa<'_>])]) -> Option<Self> {
        let address = free();
        let mut command = Command::new("dnsmasq");
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{path}:/usr/sbin"))
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--no-resolv"])
            .args(["--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1", "--user="])
            .args(["--local=/test/", "--log-facility=-", &format!("--port={}", address.port())])
            .arg("--address=/www.plain.test/192.0.2.1")
            .stderr(Stdio::null());
        for (name, set) in records {
            for (flags, tag, value) in *set {
                // RFC 8659, 4.1: flags, the length of the tag, tag, value.
                let rdata = [&[*flags, tag.len() as u8], tag.as_bytes(), value.as_bytes()].concat();
                let hex: String = rdata.iter().map(|byte| format!("{byte:02x}")).collect();
                command.arg(format!("--dns-rr={name},257,{hex}"));
            }
        }
        match command.spawn() {
            Ok(process) => Some(Self { process, address }),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "dnsmasq: {error}");
                let _ = writeln!(std::io::stderr(), "skipped: dnsmasq is not installed");
                None
            }
        }
    }

    async fn ask(&self, name: &str) -> Fact {
        let resolver = Resolver::at(self.address).unwrap();
        resolver.caa(name, Instant::now() + Duration::from_secs(60)).await
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn issuers(fact: &Fact) -> Vec<&str> {
    match &fact.value {
        Some(Value::List(names)) => names.iter().map(String::as_str).collect(),
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_nearest_domain_with_caa_records_is_found() {
    let Some(dns) = Dns::start(&[
        ("caa.test", &[(0, "issue", "ca.example; account=7"), (0, "ISSUEWILD", "Other.example")]),
        ("none.caa.test", &[(0, "issue", ";")]),
        ("iodef.test", &[(0, "iodef", "mailto:a@b.example")]),
        ("critical.test", &[(128, "tbs", "Unknown\u{1b}")]),
    ])
    .await
    else {
        return;
    };
    for (name, issued_by) in [
        ("caa.test", &["ca.example", "other.example"][..]),
        ("a.b.c.caa.test", &["ca.example", "other.example"]),
        ("none.caa.test", &[]),
        ("www.none.caa.test", &[]),
        ("critical.test", &[]),
    ] {
        let fact = dns.ask(name).await;
        assert_eq!(fact.answer, Answer::Yes, "{name}: {fact:?}");
        let mut found = issuers(&fact);
        found.sort_unstable();
        assert_eq!(found, issued_by, "{name}: {fact:?}");
        assert!(fact.evidence.chars().all(|c| !c.is_control()), "{name}: {fact:?}");
    }
    for (name, why) in [
        ("www.plain.test", "no CAA record for the name"),
        ("nowhere.test", "no CAA record for the name"),
        ("www.iodef.test", "no issuer is restricted"),
    ] {
        let fact = dns.ask(name).await;
        assert_eq!(fact.answer, Answer::No, "{name}: {fact:?}");
        assert!(fact.evidence.contains(why), "{name}: {fact:?}");
    }
    // Refused: the server answers for `test` only.
    let resolver = Resolver::at(dns.address).unwrap();
    let fact = resolver.caa("example.com", Instant::now() + Duration::from_secs(5)).await;
    assert_eq!(fact.answer, Answer::Inconclusive, "{fact:?}");
    assert!(fact.evidence.to_lowercase().contains("refused"), "{fact:?}");
}

#[tokio::test]
async fn silence_is_inconclusive_and_ends_at_the_deadline() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolver = Resolver::at(silent.local_addr().unwrap()).unwrap();
    let started = Instant::now();
    let fact = resolver.caa("example.com", started + Duration::from_millis(200)).await;
    assert_eq!(fact.answer, Answer::Inconclusive, "{fact:?}");
    // The resolver's own time-out is longer.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let fact = resolver.caa("not a name..", Instant::now()).await;
    assert_eq!(fact.answer, Answer::Untested, "{fact:?}");
}
