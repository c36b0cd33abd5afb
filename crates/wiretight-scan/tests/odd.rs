//! Servers behind an obstacle, and servers that are known to cause problems for scanners: each fact of a scan is
//! correct or inconclusive.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod servers;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use servers::proxies::{Ban, banning};
use servers::{How, all, config, scans, start};
use wiretight_scan::active::{ClientIdentity, Options};
use wiretight_scan::facts::{Answer, Fact, Facts, Value};
use wiretight_scan::judge::Level;
use wiretight_scan::{Host, Reached, Report, Start, Target};

/// Obstacles behind which a scan must still find all versions and suites.
const MILD: &[&str] = &[
    "throttled",
    "slow",
    "drips",
    "eats-alerts-hangs",
    "eats-alerts-closes",
    "resets-each-third",
    "resets-big-hellos",
    "swallows-big-hellos",
    "refuses-long-lists-40",
    "refuses-long-lists-50",
    "clear-at-first",
    "clear-to-tls1_3",
    "other-alert",
];

/// The quality of a fact behind an obstacle, compared with the same fact without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Right,
    Inconclusive,
    Wrong,
}

/// The fact that says whether the whole family was tested: only then are unlisted items known to be rejected.
fn whole(id: &str) -> Option<String> {
    let mut parts = id.split('.');
    match (parts.next()?, parts.next()?) {
        ("suite", version) => Some(format!("suites.{version}")),
        _ => None,
    }
}

fn worth(id: &str, clear: Option<&Fact>, troubled: Option<&Fact>, all: &Facts) -> Worth {
    let told = |fact: Option<&Fact>| fact.map_or(Answer::Untested, |fact| fact.answer);
    match (told(clear), told(troubled)) {
        (_, Answer::Inconclusive) => {
            // The facts that the scan did observe are still correct.
            let seen = troubled.and_then(|f| f.value.as_ref());
            match (clear.and_then(|f| f.value.as_ref()), seen) {
                (Some(Value::List(all)), Some(Value::List(some)))
                    if !some.iter().all(|one| all.contains(one)) =>
                {
                    Worth::Wrong
                }
                _ => Worth::Inconclusive,
            }
        }
        (Answer::Untested, Answer::Untested) => Worth::Right,
        // Accepted items are listed; rejected items are `no` only if the list is complete.
        (Answer::Yes, Answer::Untested) if id.starts_with("group.") => {
            let lists = ["groups.tls1_2", "groups.tls1_3", "groups.quic"];
            match lists.iter().any(|list| all.answer(list) == Answer::Inconclusive)
                || lists.iter().all(|list| all.answer(list) == Answer::Untested)
            {
                true => Worth::Inconclusive,
                false => Worth::Wrong,
            }
        }
        (Answer::Yes, Answer::Untested) => match whole(id) {
            Some(list) if matches!(all.answer(&list), Answer::Yes | Answer::No) => Worth::Wrong,
            _ => Worth::Inconclusive,
        },
        (Answer::No | Answer::Inconclusive, Answer::Untested) => Worth::Inconclusive,
        (Answer::Inconclusive, _) => Worth::Right,
        (clear, troubled) if clear == troubled => Worth::Right,
        _ => Worth::Wrong,
    }
}

/// The sorted list of a fact that is `yes`.
fn sorted(fact: Option<&Fact>) -> Option<Vec<String>> {
    match fact.filter(|f| f.answer == Answer::Yes)?.value.clone()? {
        Value::List(mut list) => {
            list.sort_unstable();
            Some(list)
        }
        _ => None,
    }
}

fn lists_differ(id: &str, clear: Option<&Fact>, troubled: Option<&Fact>) -> bool {
    match (sorted(clear), sorted(troubled)) {
        (Some(clear), Some(troubled)) => !id.starts_with("http.") && clear != troubled,
        _ => false,
    }
}

#[test]
fn what_is_in_the_way_never_changes_an_answer() {
    let begun = Instant::now();
    let behind: BTreeMap<&str, &str> = all()
        .into_iter()
        .filter_map(|config| match config.how {
            How::Behind(real, _) => Some((config.name, real)),
            _ => None,
        })
        .collect();
    let names: Vec<&'static str> = behind.keys().copied().chain(behind.values().copied()).collect();
    // Because of a hard limit on the rate, a whole scan takes five minutes; the others only wait.
    let usual = scans::options();
    let shorter = Options { max_time: Duration::from_secs(90), ..usual.clone() };
    let reports = scans::each(names, 16, |name| {
        let server = start(name)?;
        let options = if name == "throttled-hard" { &shorter } else { &usual };
        Some(scans::scan_server(&server, options))
    });
    let mut wrong = Vec::new();
    for (name, real) in &behind {
        let (Some(report), Some(clear)) = (reports.get(name), reports.get(real)) else { continue };
        let mut counts = BTreeMap::<Worth, Vec<&str>>::new();
        let ids: Vec<&str> =
            report.facts.iter().chain(clear.facts.iter()).map(|(id, _)| id).collect();
        let ids: std::collections::BTreeSet<&str> = ids.into_iter().collect();
        for id in ids {
            let (without, with) = (clear.facts.get(id), report.facts.get(id));
            let mut worth = worth(id, without, with, &report.facts);
            if worth == Worth::Right && lists_differ(id, without, with) {
                // If the list of suites is incomplete, facts that depend on it use the suites that were seen.
                let of_suites =
                    ["weak.", "vulnerability.", "forward_"].iter().any(|p| id.starts_with(p));
                let partial = report.facts.iter().any(|(id, fact)| {
                    id.starts_with("suites.") && fact.answer == Answer::Inconclusive
                });
                worth = if of_suites && partial { Worth::Inconclusive } else { Worth::Wrong };
            }
            let essential = id.starts_with("protocol.tls")
                || id.starts_with("protocol.ssl")
                || id.starts_with("suite");
            if worth == Worth::Wrong || (essential && MILD.contains(name) && worth != Worth::Right)
            {
                wrong.push(format!("{name}: {id} is {}, not {}", shown(with), shown(without)));
            }
            counts.entry(worth).or_default().push(id);
        }
        let count = |worth| counts.get(&worth).map_or(0, Vec::len);
        println!(
            "{name:22} {:5.1} s, {:3} connections: {:3} right, {:2} inconclusive, {} wrong {:?}",
            report.seconds,
            report.connections,
            count(Worth::Right),
            count(Worth::Inconclusive),
            count(Worth::Wrong),
            counts.get(&Worth::Inconclusive).into_iter().flatten().take(12).collect::<Vec<_>>()
        );
        if report.reached != clear.reached {
            wrong.push(format!("{name}: {:?}", report.reached));
        }
    }
    println!("{} servers, {:.1} s", reports.len(), begun.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn shown(fact: Option<&Fact>) -> String {
    match fact {
        Some(fact) => format!("{} {:?} ({})", fact.answer, fact.value, fact.evidence),
        None => "not there".to_owned(),
    }
}

/// A server, and some of its facts: `yes`, `no`, or a list (`=a,b`) in alphabetical order.
const STANDALONE: &[(&str, &[(&str, &str)])] = &[
    (
        "openssl-client-requested",
        &[
            ("client_certificate.requested", "yes"),
            ("client_certificate.required", "no"),
            ("client_certificate.authorities", "yes"),
            ("protocol.tls1_2", "yes"),
            ("protocol.tls1_3", "no"),
            ("suites.tls1_2", "yes"),
            ("certificate.trusted", "yes"),
        ],
    ),
    (
        "openssl-client-required",
        &[
            ("client_certificate.requested", "yes"),
            ("client_certificate.required", "yes"),
            ("protocol.tls1_1", "no"),
            ("protocol.tls1_2", "yes"),
            ("protocol.tls1_3", "yes"),
            ("suites.tls1_2", "yes"),
            ("suites.tls1_3", "yes"),
            ("groups.tls1_3", "yes"),
            ("certificate.trusted", "yes"),
            ("certificate.name", "yes"),
        ],
    ),
    (
        "nginx-client-required",
        &[
            ("client_certificate.requested", "yes"),
            // nginx sends HTTP status 400 after the handshake.
            ("client_certificate.required", "no"),
            ("http.status", "yes"),
            ("protocol.tls1_2", "yes"),
            ("protocol.tls1_3", "no"),
            ("certificate.trusted", "yes"),
        ],
    ),
    (
        "ipv6-only",
        &[
            ("protocol.tls1_1", "no"),
            ("protocol.tls1_2", "yes"),
            ("protocol.tls1_3", "yes"),
            ("suites.tls1_2", "yes"),
            (
                "suites.tls1_3",
                "=TLS_AES_128_GCM_SHA256,TLS_AES_256_GCM_SHA384,TLS_CHACHA20_POLY1305_SHA256",
            ),
            ("certificate.trusted", "yes"),
            ("certificate.name", "yes"),
        ],
    ),
    (
        "tlslite-pq-only",
        &[
            ("protocol.tls1_2", "no"),
            ("protocol.tls1_3", "yes"),
            ("groups.tls1_3", "=X25519MLKEM768"),
            ("post_quantum", "=X25519MLKEM768"),
            ("suites.tls1_3", "yes"),
            ("certificate.trusted", "yes"),
            ("certificate.keys", "=rsa-2048"),
            ("signatures.tls1_3", "yes"),
        ],
    ),
    (
        "tlslite-pq-p384-only",
        &[
            ("protocol.tls1_2", "no"),
            ("protocol.tls1_3", "yes"),
            ("groups.tls1_3", "=SecP384r1MLKEM1024"),
            ("post_quantum", "=SecP384r1MLKEM1024"),
            ("suites.tls1_3", "yes"),
            ("certificate.trusted", "yes"),
            ("certificate.keys", "=ecdsa-p256"),
        ],
    ),
    (
        "tlslite-brainpool",
        &[
            ("groups.tls1_3", "=brainpoolP384r1tls13"),
            ("certificate.trusted", "yes"),
            ("certificate.keys", "=rsa-2048"),
            ("signatures.tls1_3", "yes"),
        ],
    ),
    (
        "openssl-tls1_3",
        &[
            ("protocol.ssl2", "no"),
            ("protocol.ssl3", "no"),
            ("protocol.tls1_0", "no"),
            ("protocol.tls1_1", "no"),
            ("protocol.tls1_2", "no"),
            ("protocol.tls1_3", "yes"),
            (
                "suites.tls1_3",
                "=TLS_AES_128_GCM_SHA256,TLS_AES_256_GCM_SHA384,TLS_CHACHA20_POLY1305_SHA256",
            ),
            ("post_quantum", "no"),
            ("forward_secrecy.all", "yes"),
            ("certificate.trusted", "yes"),
            ("certificate.keys", "=ecdsa-p256"),
        ],
    ),
    (
        "openssl-cookies",
        &[("protocol.tls1_3", "yes"), ("protocol.tls1_2", "no"), ("suites.tls1_3", "yes")],
    ),
    (
        "nginx-by-name-only",
        &[
            ("plaintext", "no"),
            ("sni.required", "yes"),
            ("protocol.ssl3", "inconclusive"),
            ("protocol.tls1_2", "inconclusive"),
            ("protocol.tls1_3", "inconclusive"),
            ("vulnerability.poodle_ssl", "inconclusive"),
            ("forward_secrecy.any", "inconclusive"),
        ],
    ),
    (
        "openssl-ccm",
        &[
            ("protocol.tls1_2", "yes"),
            ("vulnerability.heartbleed", "no"),
            ("vulnerability.ccs_injection", "no"),
            ("vulnerability.robot", "no"),
            ("vulnerability.poodle_tls", "no"),
            ("vulnerability.ticketbleed", "no"),
            ("vulnerability.insecure_renegotiation", "no"),
            ("renegotiation.by_client", "no"),
            ("session.id", "yes"),
            ("session.ticket", "yes"),
            ("client_certificate.requested", "no"),
            ("certificate.trusted", "yes"),
        ],
    ),
    (
        "openssl-ccm-tls1_3",
        &[
            ("suites.tls1_3", "=TLS_AES_128_CCM_SHA256"),
            ("certificate.trusted", "yes"),
            ("certificate.name", "yes"),
            ("certificate.keys", "=ecdsa-p256"),
            ("signatures.tls1_3", "yes"),
            ("session.psk", "yes"),
            ("session.early_data", "no"),
            ("client_certificate.requested", "no"),
        ],
    ),
    (
        "openssl-x448",
        &[
            ("groups.tls1_3", "=x448"),
            ("certificate.trusted", "yes"),
            ("certificate.keys", "=ecdsa-p256"),
            ("signatures.tls1_3", "yes"),
            ("session.psk", "yes"),
        ],
    ),
    (
        "openssl-ffdhe",
        &[
            ("groups.tls1_3", "=ffdhe3072"),
            ("certificate.trusted", "yes"),
            ("certificate.keys", "=ecdsa-p256"),
            ("signatures.tls1_3", "yes"),
            ("session.psk", "yes"),
        ],
    ),
    (
        // The scanner cannot complete a handshake with this suite, so facts that need a handshake are not "no".
        "openssl-camellia",
        &[
            ("vulnerability.heartbleed", "no"),
            ("vulnerability.ccs_injection", "no"),
            ("vulnerability.poodle_tls", "inconclusive"),
            ("vulnerability.ticketbleed", "inconclusive"),
            ("vulnerability.insecure_renegotiation", "inconclusive"),
            ("renegotiation.by_client", "inconclusive"),
            ("session.id", "inconclusive"),
            ("session.ticket", "inconclusive"),
            ("client_certificate.requested", "no"),
        ],
    ),
    ("plain-http", &[("plaintext", "yes")]),
    ("plain-banner", &[("plaintext", "yes")]),
    ("plain-echo", &[("plaintext", "yes")]),
];

#[test]
fn servers_that_scanners_stumble_over_are_seen_as_they_are() {
    let begun = Instant::now();
    let names = STANDALONE.iter().map(|(name, _)| *name).chain(["hostile-silence"]);
    let reports = scans::each(names, 6, |name| {
        let server = start(name)?;
        Some(scans::scan_server(&server, &scans::options()))
    });
    let mut wrong = Vec::new();
    for (name, facts) in STANDALONE {
        let Some(report) = reports.get(name) else { continue };
        println!("{name:26} {:5.1} s, {:3} connections", report.seconds, report.connections);
        for (id, expected) in *facts {
            let fact = report.facts.get(id);
            let right = match expected.strip_prefix('=') {
                Some(list) => {
                    let list = list.split(',').map(str::to_owned).collect();
                    fact.is_some_and(|f| {
                        f.answer == Answer::Yes && f.value == Some(Value::List(list))
                    })
                }
                None => fact.is_some_and(|f| f.answer.to_string() == *expected),
            };
            if !right {
                wrong.push(format!("{name}: {id} is {}, not {expected}", shown(fact)));
            }
        }
        // An inconclusive fact is not acceptable.
        let told = ["nginx-by-name-only", "openssl-camellia"].contains(name);
        if told && report.judgement.level != wiretight_scan::judge::Level::Unknown {
            wrong.push(format!("{name} is {}", report.judgement.level));
        }
        let plain = matches!(report.reached, Reached::Plaintext { .. });
        if plain != name.starts_with("plain-") {
            wrong.push(format!("{name}: {:?}", report.reached));
        }
    }
    if let Some(Report { reached, facts, .. }) = reports.get("hostile-silence") {
        // A server that sends nothing does not reveal its protocol.
        if !matches!(reached, Reached::Unknown { .. }) {
            wrong.push(format!("silence: {reached:?}"));
        }
        let claimed = facts.iter().filter(|(_, f)| matches!(f.answer, Answer::Yes | Answer::No));
        wrong.extend(claimed.map(|(id, f)| format!("silence: {id} {}: {}", f.answer, f.evidence)));
    }
    println!("{} servers, {:.1} s", reports.len(), begun.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn there_is_a_server_for_each_trouble() {
    let troubles = all().into_iter().filter(|c| matches!(c.how, How::Behind(..))).count();
    assert!(troubles >= 10, "{troubles}");
    assert!(MILD.iter().all(|name| matches!(config(name).how, How::Behind(..))));
}

/// Two different servers behind one address; each connection reaches one of them.
#[test]
fn servers_that_differ_behind_one_address_are_noticed() {
    let (Some(old), Some(new)) = (start("openssl-tls1_2"), start("openssl-tls1_3")) else { return };
    let report = scans::behind_one_address(&[old.address, new.address], &scans::options());
    let shown: Vec<String> = ["consistent", "protocol.tls1_2", "protocol.tls1_3"]
        .map(|id| format!("{id}: {}", shown(report.facts.get(id))))
        .into();
    println!("{shown:#?}");
    assert_eq!(report.facts.answer("consistent"), Answer::No, "{shown:#?}");
    for id in ["protocol.tls1_2", "protocol.tls1_3"] {
        assert!(report.facts.yes(id), "{shown:#?}");
    }
    let reasons = &report.judgement.reasons;
    assert!(reasons.iter().any(|reason| reason.rule == "inconsistent"), "{reasons:#?}");
}

fn at(address: SocketAddr, start: Start) -> Target {
    Target { host: Host::Address(address.ip(), None), port: address.port(), start }
}

fn impatient() -> Options {
    Options { timeout: Duration::from_secs(1), ..scans::options() }
}

/// No SYN is answered: the scan tries twice, and the report says that.
#[test]
fn a_dead_address_is_given_up_after_one_retry() {
    let (address, _host) = banning("127.0.0.1:1".parse().unwrap(), 0, Ban::Drops);
    // Until the queue of the listener is full.
    while TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok() {}
    for start in [Start::Https, Start::Smtp] {
        let report = scans::scan(&at(address, start), address, &impatient());
        let Reached::Unreachable { evidence } = &report.reached else {
            panic!("{start:?}: {:?}", report.reached)
        };
        assert!(evidence.contains("no answer within 2.0 s, in 2 attempts"), "{evidence}");
        assert_eq!(report.connections, 2, "{start:?}");
        assert_eq!(report.judgement.level, Level::Unknown);
    }
}

/// Each way to ban the scanner, early and late: open facts are inconclusive with the reason, and a "no" is reported
/// only if it is also reported without the ban.
#[test]
fn an_address_that_bans_the_scanner_is_given_up_and_nothing_is_denied() {
    let Some(server) = start("nginx-modern") else { return };
    let clear = scans::scan_server(&server, &scans::options());
    let no = |report: &Report, id: &str| report.facts.answer(id) == Answer::No;
    assert!(no(&clear, "protocol.tls1_2"), "the control");
    let banned = |ban: Ban, after: usize| {
        let (address, _host) = banning(server.address, after, ban);
        let report = scans::scan(&at(address, Start::Https), address, &impatient());
        println!(
            "{ban:?} after {after}: {} connections, {:.1} s",
            report.connections, report.seconds
        );
        (format!("{ban:?} after {after}"), after, report)
    };
    let banned = &banned;
    let reports: Vec<_> = std::thread::scope(|scope| {
        let cases = [Ban::Refuses, Ban::Drops, Ban::IsSilent].into_iter();
        let cases = cases.flat_map(|ban| [(ban, 2), (ban, 25)]);
        let scans: Vec<_> =
            cases.map(|(ban, after)| scope.spawn(move || banned(ban, after))).collect();
        scans.into_iter().map(|scan| scan.join().unwrap()).collect()
    });
    for (how, after, report) in &reports {
        let says = |text: &str| report.facts.iter().any(|(_, fact)| fact.evidence.contains(text));
        assert!(says("the address stopped answering after"), "{how}: {:#?}", report.facts);
        assert!(!says("the time limit of this scan was reached"), "{how}: {:#?}", report.facts);
        // Far fewer connections than a complete scan; these are controls of some probes.
        assert!(report.connections < *after as u64 + 60, "{how}: {}", report.connections);
        for (id, fact) in report.facts.iter().filter(|(id, _)| no(report, id)) {
            assert!(no(&clear, id), "{how}: {id} is no: {}", fact.evidence);
        }
        // The result depends on the probes that were open when the server started to block. After a late block a
        // level may still be reached.
        let level = report.judgement.level;
        match *after < 10 {
            true => assert_eq!(level, Level::Unknown, "{how}"),
            false => assert!(level <= Level::Acceptable, "{how}: {level}"),
        }
    }
}

/// Servers that require a client certificate are tested further with one, in TLS 1.2 and 1.3.
#[test]
fn with_a_certificate_servers_that_demand_one_are_told_of_whole() {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let identity = |name: &str| {
        let file = |end: &str| servers::pki::folder().join(format!("{name}.{end}"));
        let chain = CertificateDer::pem_file_iter(file("chain")).unwrap();
        let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
        ClientIdentity::new(chain.collect::<Result<_, _>>().unwrap(), key).map(Arc::new)
    };
    for name in ["openssl-client-required", "nginx-client-required"] {
        let Some(server) = start(name) else { continue };
        let told = |facts: &Facts, id: &str| {
            matches!(facts.answer(id), Answer::Yes | Answer::No).then_some(()).ok_or(id.to_owned())
        };
        let asked = ["session.ticket", "session.psk", "http.status", "vulnerability.heartbleed"];
        // The control: without a client certificate, facts that need a completed handshake stay unknown. (nginx
        // completes the handshake, and then reports that it requires a certificate.)
        let in_tls = name == "openssl-client-required";
        let without = scans::scan_server(&server, &scans::options());
        match in_tls {
            true => {
                assert!(without.facts.yes("client_certificate.required"));
                assert!(told(&without.facts, "session.psk").is_err());
                assert!(told(&without.facts, "http.status").is_err());
            }
            false => assert_eq!(without.facts.number("http.status"), Some(400)),
        }
        for key in ["client", "rsa"] {
            let identity = Some(identity(key).unwrap());
            let with = scans::scan_server(&server, &Options { identity, ..scans::options() });
            let missing: Vec<_> =
                asked.iter().filter_map(|id| told(&with.facts, id).err()).collect();
            let shown: Vec<_> = asked.map(|id| shown(with.facts.get(id))).into();
            assert!(missing.is_empty(), "{name} {key}: {missing:?} {shown:#?}");
            assert!(with.facts.yes("client_certificate.requested"), "{name} {key}");
            assert_ne!(with.facts.number("http.status"), Some(400), "{name} {key}");
        }
        // A client certificate that the server rejects: no fact is reported that the server did not show.
        let stranger = Some(identity("self").unwrap());
        let refused =
            scans::scan_server(&server, &Options { identity: stranger, ..scans::options() });
        if in_tls {
            assert!(told(&refused.facts, "session.psk").is_err());
        }
    }
    // A key that does not match the certificate is not a valid identity.
    let chain = CertificateDer::pem_file_iter(servers::pki::folder().join("rsa.chain")).unwrap();
    let other = PrivateKeyDer::from_pem_file(servers::pki::folder().join("client.key")).unwrap();
    assert!(ClientIdentity::new(chain.collect::<Result<_, _>>().unwrap(), other).is_err());
}

/// If a server sends no greeting within the time-out, the scan sends nothing to it, not even at the end of its time.
#[test]
fn a_server_that_has_not_greeted_hears_nothing_when_the_time_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let scan = |timeout, max_time| {
        let options = Options { timeout, max_time, ..scans::options() };
        let report = scans::scan(&at(address, Start::Smtp), address, &options);
        assert!(matches!(report.reached, Reached::Unknown { .. }), "{:?}", report.reached);
        listener.set_nonblocking(true).unwrap();
        let mut heard = 0;
        while let Ok((mut client, _)) = listener.accept() {
            client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            heard += std::io::copy(&mut client, &mut std::io::sink()).unwrap();
        }
        heard
    };
    assert_eq!(scan(Duration::from_secs(10), Duration::from_millis(1_500)), 0);
    // The control: after the time-out, the scanner offers TLS.
    assert!(scan(Duration::from_millis(300), Duration::from_secs(5)) > 0);
}
