//! Every key is read, every error names the next step, and garbage never panics.

use wiretight_proxy::edge::settings::{Hsts, Limits, SiteSettings};
use wiretight_proxy::relay::settings::{DialSettings, ServiceSettings};

use super::section::SHAPES;
use super::value::duration_text;
use super::*;

const EXAMPLE: &str = include_str!("../../../../wiretight.toml");
const ACME_SERVER_LINES: &str =
    "[acme_server]\nname = \"acme.example.org\"\nnames = [\"*.example.org\"]";
const NODE_LINES: &str = "[node]\nname = \"db1\"\ntrust_domain = \"example.org\"";
const AUTHORITY_LINES: &str = "[authority]\nlisten = \"10.0.0.1:7400\"";
const SERVICE_LINES: &str = "[[service]]\nname = \"db\"\nlisten = \"10.0.0.5:7432\"\n\
                             forward = \"127.0.0.1:5432\"\nallow = \"service/web\"";
const DIAL_LINES: &str = "[[dial]]\nlisten = \"127.0.0.1:5432\"\nservice = \"db\"";
const INTERCEPT_LINES: &str = "[intercept]\nmode = \"strict\"";
const EXCEPTION_LINES: &str = "[[exception]]\nkind = \"pass\"\nwhat = \"udp out 10.0.0.9 514\"\n\
                               reason = \"r\"\nowner = \"o\"\nuntil = \"2027-03-31\"";
const EDGE_LINES: &str = "[edge]\ntrusted_proxies = [\"10.0.0.0/8\"]";
const SITE_LINES: &str = "[[site]]\nnames = [\"example.org\"]\nto = \"127.0.0.1:8080\"\n\
                          cert = \"/etc/a.pem\"\nkey = \"/etc/a.key\"";
/// Files, each with all its errors after `=> `, starting with the line number.
const BAD_FILES: &str = include_str!("bad_files.txt");

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("w.toml"), text)
}

/// All errors of a text that must be refused, one per line.
fn errors(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("accepted:\n{text}\n{config:#?}"),
        Err(errors) => errors.to_string(),
    }
}

/// The example with each `#key = value` and `#[section]` uncommented.
fn uncommented() -> String {
    let is_setting = |s: &str| s.starts_with(|c: char| c == '[' || c.is_ascii_lowercase());
    let lines = EXAMPLE.lines().map(|l| l.strip_prefix('#').filter(|s| is_setting(s)).unwrap_or(l));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_valid() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(config.path, Path::new("w.toml"));
    assert_eq!(config.relay.services.len(), 1);
    assert!(config.authority.is_none() && config.relay.dials.is_empty());
}

#[test]
fn the_example_has_every_key_and_is_valid_uncommented() {
    let all = uncommented();
    for shape in SHAPES {
        let header = all.lines().skip_while(|l| *l != shape.to_string());
        let section: Vec<_> = header.skip(1).take_while(|l| !l.starts_with('[')).collect();
        for (key, _) in shape.keys {
            let start = format!("{key} = ");
            assert!(section.iter().any(|l| l.starts_with(&start)), "{shape} lacks {key}");
        }
    }

    // The authority's address and [authority] exclude each other, so each is tried alone. The same is true for given and
    // issued certificates.
    let complaints = errors(&all);
    assert!(complaints.contains("remove one of the two"), "{complaints}");
    assert!(complaints.contains("remove them, or acme"), "{complaints}");
    assert!(complaints.ends_with("remove it, or clients"), "{complaints}");
    let apart = |l: &&str| !["acme =", "ask =", "client_ca ="].iter().any(|key| l.starts_with(key));
    let all: String = all.lines().filter(apart).map(|l| format!("{l}\n")).collect();
    let is_authority: Vec<_> = all
        .lines()
        .filter(|l| !l.starts_with("authority =") && !l.starts_with("join_token_file ="))
        .collect();
    let config = parse(&is_authority.join("\n")).unwrap();
    assert_eq!(config.warnings, [""; 0]);
    assert!(config.authority.is_some());
    let from = all.find("\n[authority]\n").unwrap();
    let to = all.find("\n[[service]]\n").unwrap();
    let end = all.find("\n[acme_server]\n").unwrap();
    let config = parse(&(all[..from].to_owned() + &all[to..end])).unwrap();
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(config.relay.dials.len(), 1);
}

#[test]
fn an_acme_server_is_a_site_beside_an_authority() {
    let section = "[acme_server]\nname = \"acme.corp.internal\"\nnames = \"*.corp.internal\"\n";
    let alone = errors(&format!("{NODE_LINES}\n{section}"));
    assert!(alone.contains("there is no [authority] in this file"), "{alone}");
    let text = format!("{NODE_LINES}\n[authority]\nlisten = \"10.0.0.1:7400\"\n{section}");
    let config = parse(&text).unwrap();
    let acme = config.acme_server.unwrap();
    assert_eq!(acme.ttl, Duration::from_secs(86_400));
    let site = &config.edge.sites[0];
    assert_eq!(site.names, [acme.name]);
    assert_eq!(site.to[0].to_string(), "unix:/var/lib/wiretight/acme.sock");
    assert!(config.site_certificates.is_empty());
    let long = errors(&format!("{text}ttl = \"8d\"\n"));
    assert!(long.contains("is not from 1m to 7d"), "{long}");
    let wildcard = errors(&text.replace("\"acme.corp", "\"*.corp"));
    assert!(wildcard.contains("is not the name of one site"), "{wildcard}");
}

#[test]
fn the_example_shows_the_defaults() {
    let all = uncommented();
    let sections = ["[node]", "[authority]", "[[service]]", "[[dial]]", "[edge]", "[[site]]"];
    let mut keys = sections.map(|section| {
        let header = all.lines().skip_while(move |l| *l != section);
        header.skip(1).take_while(|l| !l.starts_with('[')).map(str::to_owned).collect::<Vec<_>>()
    });
    let no_default = |l: &String| {
        let given = [
            "authority =",
            "advertise =",
            "join_token_file =",
            "workers =",
            "max_staleness =",
            "as =",
            "acme =",
            "ask =",
            "client_ca =",
            "health =",
            "share =",
        ];
        let none = given.iter().chain(&["to = [\"10", "clients =", "trusted_proxies ="]);
        !none.into_iter().any(|k| l.starts_with(k))
    };
    keys.iter_mut().for_each(|k| k.retain(no_default));
    let keys = sections.iter().zip(keys).map(|(section, k)| format!("{section}\n{}", k.join("\n")));
    let given = parse(&keys.collect::<Vec<_>>().join("\n")).unwrap();
    let absent = parse(
        r#"
        node = { name = "db1", trust_domain = "example.org" }
        authority.listen = "10.0.0.1:7400"
        dial = [{ listen = "127.0.0.1:5433", service = "orders-db" }]
        [[site]]
        names = "example.org"
        to = "127.0.0.1:8080"
        cert = "/etc/wiretight/example.org.pem"
        key = "/etc/wiretight/example.org.key"
        [[service]]
        name = "db"
        listen = "10.0.0.5:7432"
        forward = "127.0.0.1:5432"
        allow = ["service/web", "node/ops1"]
        "#,
    )
    .unwrap();
    assert_eq!(given, absent);
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        [node]
        name = "db1"
        trust_domain = "example.org"
        state_dir = "/srv/wt"
        authority = ["10.0.0.1:7400", "authority.internal:7400"]
        join_token_file = "/etc/wiretight/token"
        admin = "[::1]:7491"
        landlock = false
        drain = "1m30s"
        workers = 2
        max_staleness = "10m"
        [witnesses]
        policy = "/etc/wiretight/log.policy"
        transparency = "off"
        ca = "/etc/wiretight/witness-ca.pem"
        [[service]]
        name = "db"
        listen = "10.0.0.5:7432"
        advertise = "db1.internal:7432"
        forward = ["127.0.0.1:5432", "unix:/run/pg.sock", "localhost:5433", "[::1]:5434"]
        allow = ["service/web", "node/ops1"]
        proxy_protocol = true
        idle_timeout = "500ms"
        max_connections_per_peer = 7
        [[service]]
        name = "cache"
        listen = "[::]:7379"
        forward = "127.0.0.1:6379"
        allow = "service/web"
        transparent = true
        [intercept]
        mode = "observe"
        port = 7492
        [[dial]]
        listen = "127.0.0.1:5432"
        service = "db"
        as = "web"
        to = ["10.0.0.5:7432", "db2.internal:7432"]
        idle_timeout = "1h"
        [[dial]]
        listen = "127.0.0.2:5432"
        service = "other"
        "#,
    )
    .unwrap();
    let node = Node {
        name: "db1".parse().unwrap(),
        trust_domain: "example.org".parse().unwrap(),
        state_dir: "/srv/wt".into(),
        admin: Some("[::1]:7491".parse().unwrap()),
        authority: ["10.0.0.1:7400", "authority.internal:7400"].map(|a| a.parse().unwrap()).into(),
        join_token_file: Some("/etc/wiretight/token".into()),
        landlock: false,
        drain: Duration::from_secs(90),
        workers: NonZeroUsize::new(2),
        max_staleness: Some(Duration::from_secs(600)),
    };
    assert_eq!(config.node, node);
    let witnesses = Witnesses {
        policy: "/etc/wiretight/log.policy".into(),
        required: false,
        ca: Some("/etc/wiretight/witness-ca.pem".into()),
    };
    assert_eq!((config.authority, config.witnesses), (None, Some(witnesses)));
    let db = ServiceSettings {
        name: "db".parse().unwrap(),
        listen: "10.0.0.5:7432".parse().unwrap(),
        forward: ["127.0.0.1:5432", "unix:/run/pg.sock", "localhost:5433", "[::1]:5434"]
            .map(|b| b.parse().unwrap())
            .into(),
        allow: ["service/web", "node/ops1"].map(|i| i.parse().unwrap()).into(),
        proxy_protocol: true,
        transparent: false,
        idle_timeout: Some(Duration::from_millis(500)),
        max_per_peer: 7,
        ports: vec![5432, 5433, 5434],
    };
    let cache = ServiceSettings {
        name: "cache".parse().unwrap(),
        listen: "[::]:7379".parse().unwrap(),
        forward: vec!["127.0.0.1:6379".parse().unwrap()],
        allow: vec!["service/web".parse().unwrap()],
        proxy_protocol: false,
        transparent: true,
        idle_timeout: None,
        max_per_peer: 10_000,
        ports: vec![6379],
    };
    assert_eq!(config.relay.services, [db, cache]);
    let web = DialSettings {
        listen: "127.0.0.1:5432".parse().unwrap(),
        service: "db".parse().unwrap(),
        identity: "service/web".parse().unwrap(),
        to: ["10.0.0.5:7432", "db2.internal:7432"].map(|a| a.parse().unwrap()).into(),
        idle_timeout: Some(Duration::from_secs(3600)),
    };
    let own = DialSettings {
        listen: "127.0.0.2:5432".parse().unwrap(),
        service: "other".parse().unwrap(),
        identity: "node/db1".parse().unwrap(),
        to: vec![],
        idle_timeout: None,
    };
    assert_eq!(config.relay.dials, [web, own]);
    let advertised = [
        ("cache".parse().unwrap(), None),
        ("db".parse().unwrap(), Some("db1.internal:7432".parse().unwrap())),
    ];
    assert_eq!(config.advertise, BTreeMap::from(advertised));
    assert_eq!(config.warnings, [""; 0]);

    let config = parse(
        r#"
        node = { name = "edge1", trust_domain = "example.org" }
        [edge]
        https = ["10.0.0.5:443", "[::]:443"]
        http = []
        http3 = false
        trusted_proxies = ["10.0.0.0/8", "fd00::1"]
        proxy_protocol = true
        share = "www"
        [[site]]
        names = ["Example.org", "*.example.org"]
        to = ["127.0.0.1:8080", "unix:/run/app.sock", "h2c://localhost:50051", "service/shop"]
        cert = "/a.pem"
        key = "/a.key"
        as = "web"
        hsts = false
        clients = "service/web"
        max_body_mb = 2
        timeout = "5m"
        [[site]]
        names = "b.example.org"
        to = "h2c://service/shop"
        cert = "/b.pem"
        key = "/b.key"
        client_ca = "/c.pem"
        health = "/up?full=1"
        "#,
    )
    .unwrap();
    let a = SiteSettings {
        names: ["example.org", "*.example.org"].map(|n| n.parse().unwrap()).into(),
        to: ["127.0.0.1:8080", "unix:/run/app.sock", "h2c://localhost:50051", "service/shop"]
            .map(|u| u.parse().unwrap())
            .into(),
        on_demand: false,
        default: false,
        identity: "service/web".parse().unwrap(),
        hsts: Hsts::Off,
        clients: Some(vec!["service/web".parse().unwrap()]),
        client_ca: None,
        health: None,
        max_body: 2 << 20,
        timeout: Duration::from_secs(300),
    };
    let b = SiteSettings {
        names: vec!["b.example.org".parse().unwrap()],
        to: vec!["h2c://service/shop".parse().unwrap()],
        on_demand: false,
        default: false,
        identity: "node/edge1".parse().unwrap(),
        hsts: Hsts::On,
        clients: None,
        client_ca: Some("/c.pem".into()),
        health: Some("/up?full=1".parse().unwrap()),
        max_body: 1 << 30,
        timeout: Duration::from_secs(60),
    };
    let edge = EdgeSettings {
        https: ["10.0.0.5:443", "[::]:443"].map(|a| a.parse().unwrap()).into(),
        http: vec![],
        http3: false,
        trusted_proxies: ["10.0.0.0/8", "fd00::1"].map(|n| n.parse().unwrap()).into(),
        proxy_protocol: true,
        limits: Limits::default(),
        sites: vec![a, b],
    };
    assert_eq!(config.edge, edge);
    assert_eq!(config.share, Some("www".parse().unwrap()));
    let files = |c: &str, k: &str| SiteSource::Files(SiteFiles { cert: c.into(), key: k.into() });
    assert_eq!(config.site_certificates, [files("/a.pem", "/a.key"), files("/b.pem", "/b.key")]);

    let authority = parse(&format!(
        "{NODE_LINES}\nadmin = \"off\"\n[authority]\nlisten = \"0.0.0.0:7400\"\n\
         advertise = \"a.example.org:7400\"\nsvid_ttl = \"10s\"\nintermediate_ttl = \"40s\"\n\
         require_release = true\nrelease_grace = \"2h\"\n[release]\npolicy = \"/etc/r.policy\""
    ))
    .unwrap();
    assert_eq!(authority.node.admin, None);
    let authority = authority.authority.unwrap();
    assert_eq!(authority.join_address().to_string(), "a.example.org:7400");
    assert_eq!(authority.svid_ttl, Duration::from_secs(10));
    assert_eq!(authority.intermediate_ttl, Duration::from_secs(40));
    assert!(authority.require_release);
    assert_eq!(authority.release_grace, Duration::from_secs(7200));
}

#[test]
fn durations_are_strict() {
    for (good, ms) in [
        ("0s", 0),
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("7d", 604_800_000),
        ("1h30m", 5_400_000),
        ("1d2h3m4s5ms", 93_784_005),
    ] {
        let duration = Duration::from_millis(ms);
        assert_eq!(parse_duration(good), Some(duration));
        assert_eq!(duration_text(duration), good);
    }
    for bad in [
        "",
        "0",
        "30",
        "s",
        "30 s",
        " 30s",
        "30s ",
        "-1s",
        "+1s",
        "1.5h",
        "1H",
        "30sec",
        "1m1h",
        "1s1s",
        "1h 30m",
        "1\u{661}s",
        "99999999999999999999s",
        "18446744073709551615d",
    ] {
        assert_eq!(parse_duration(bad), None, "{bad:?} was accepted");
    }
}

/// Placeholders that keep the table short: `$NODE` stands for lines 1 to 3 of a file, and so on.
fn expand(text: &str) -> String {
    text.replace("$NODE", NODE_LINES)
        .replace("$SERVICE", SERVICE_LINES)
        .replace("$DIAL", DIAL_LINES)
        .replace("$INTERCEPT", INTERCEPT_LINES)
        .replace("$EXCEPTION", EXCEPTION_LINES)
        .replace("$EDGE", EDGE_LINES)
        .replace("$SITE", SITE_LINES)
        .replace("$AUTHORITY", AUTHORITY_LINES)
        .replace("$WITNESSES", "[witnesses]\npolicy = \"/etc/wiretight/log.policy\"")
        .replace("$ACME_SERVER", ACME_SERVER_LINES)
        .replace("$ACME", "[[acme]]\ndirectory = \"https://ca.example.org/directory\"")
}

#[test]
fn every_error_names_the_place_the_problem_and_the_next_step() {
    for case in BAD_FILES.split("\n---\n") {
        let (expected, text): (Vec<_>, Vec<_>) = case.lines().partition(|l| l.starts_with("=> "));
        let expected: Vec<_> = expected.iter().map(|e| e.replacen("=> ", "w.toml:", 1)).collect();
        assert_eq!(errors(&expand(&text.join("\n"))), expected.join("\n"), "in:\n{case}");
    }
}

#[test]
fn advice_in_errors_is_valid() {
    let text = expand(
        "$NODE\n$AUTHORITY\n$WITNESSES\n[log]\npublic = false\n$SERVICE\n$DIAL\n$INTERCEPT\n$EXCEPTION\n[watch]\nkeep = \"2h\"\n[publish]\ntitle = \"a\"\n$EDGE\n$SITE\n$ACME\n$ACME_SERVER\n[console]\nlisten = \"127.0.0.1:7492\"\n[release]\npolicy = \"/a\"",
    );
    assert!(parse(&text).is_ok());
    for shape in SHAPES {
        for (key, example) in shape.keys {
            let line = format!("{key} = {example}");
            // Replaces the line with the same key, if there is one.
            let (head, section) = text.split_once(&format!("{shape}\n")).unwrap();
            let end = section.find("\n[").unwrap_or(section.len());
            let (section, tail) = section.split_at(end);
            let others = section.lines().filter(|l| !l.starts_with(&format!("{key} =")));
            let section = others.chain([&*line]).collect::<Vec<_>>().join("\n");
            let text = format!("{head}{shape}\n{section}{tail}");
            match parse(&text) {
                Ok(_) => {}
                // Valid, but not together with [authority], nor with cert and key.
                Err(e) => assert!(
                    [("node", "authority"), ("site", "acme"), ("site", "ask")]
                        .contains(&(shape.name, *key))
                        && e.as_slice().len() == 1,
                    "{line}: {e}"
                ),
            }
        }
    }
}

#[test]
fn questionable_settings_cause_warnings() {
    let text = "$NODE\njoin_token_file = \"/x\"\n$AUTHORITY\n$SERVICE\n[[service]]\nname = \"a\"\n\
                listen = \"10.0.0.5:1\"\nforward = \"unix:/a\"\n[[service]]\nname = \"b\"\n\
                listen = \"10.0.0.5:2\"\nforward = \"unix:/b\"\nallow = []";
    let warnings = parse(&expand(text)).unwrap().warnings;
    let expected = [
        "w.toml:4: node.join_token_file: not used: this node is the authority ([authority] on line 5); remove the key",
        "w.toml:12: [[service]] \"a\": allow: nobody may connect; list the identities that may, for example allow = [\"service/web\"]",
        "w.toml:20: [[service]] \"b\": allow: nobody may connect; list the identities that may, for example allow = [\"service/web\"]",
    ];
    assert_eq!(warnings, expected);
}

#[test]
fn interception_is_read_completely_and_has_defaults() {
    use wiretight_proxy::intercept::rules::{Direction, Mode, Pass, Protocol};
    let text = "$NODE\n[intercept]\nmode = \"observe\"\nas = \"web\"\nport = 7000\n\
                protect = [\"10.0.0.0/24\", \"fd00::/64\"]\nstrict = \"10.0.0.9\"\n\
                permissive = [\"::ffff:10.0.0.8\"]\npass = [\"udp out 10.0.0.1 123\", \"icmp in 10.0.0.0/24\", \"50 in 10.0.0.1\"]\n\
                resolvers = \"10.0.0.2\"\nmanagement = []\ncgroups = \"system.slice/app.service\"";
    let config = parse(&expand(text)).unwrap();
    let settings = config.relay.intercept.unwrap();
    assert_eq!((settings.port, settings.identity.to_string()), (7000, "service/web".into()));
    let pass = |protocol, direction, network: &str, port| Pass {
        protocol,
        direction,
        network: network.parse().unwrap(),
        port,
    };
    let expected = Intercept {
        mode: Mode::Observe,
        peers: [("10.0.0.9", Mode::Strict), ("10.0.0.8", Mode::Permissive)]
            .map(|(ip, mode)| (ip.parse().unwrap(), mode))
            .into(),
        protect: ["10.0.0.0/24", "fd00::/64"].map(|n| n.parse().unwrap()).into(),
        passes: vec![
            pass(Protocol::Udp, Direction::Out, "10.0.0.1", Some(123)),
            pass(Protocol::Icmp, Direction::In, "10.0.0.0/24", None),
            pass(Protocol::Number(50), Direction::In, "10.0.0.1", None),
        ],
        resolvers: Some(vec!["10.0.0.2".parse().unwrap()]),
        management: vec![],
        cgroups: vec!["system.slice/app.service".into()],
    };
    assert_eq!(config.intercept.unwrap(), expected);
    let config = parse(&expand("$NODE\n$INTERCEPT")).unwrap();
    let (intercept, settings) = (config.intercept.unwrap(), config.relay.intercept.unwrap());
    assert_eq!((intercept.mode, intercept.management), (Mode::Strict, vec![22]));
    assert_eq!((settings.port, settings.identity.to_string()), (7491, "node/db1".into()));
    assert!(intercept.resolvers.is_none() && intercept.protect.is_empty());
}

#[test]
fn nothing_is_published_by_default_and_no_name_without_a_setting() {
    assert_eq!(parse(&expand("$NODE\n$AUTHORITY")).unwrap().publish, None);
    let config = parse(&expand("$NODE\n$AUTHORITY\n[publish]\ndir = \"/srv/proof\"")).unwrap();
    let publish = config.publish.unwrap();
    assert_eq!(publish, Publish { dir: Some("/srv/proof".into()), ..Publish::default() });
    assert!(!publish.public_services);
    for (line, problem) in [
        ("dir = \"proof\"", "absolute"),
        ("dir = \"/\"", "does not end with a name"),
        ("title = \"\"", "is not a line"),
        ("contact = \"a\\nb\"", "is not a line"),
        ("public_nodes = true", "no such key"),
    ] {
        let text = expand(&format!("$NODE\n$AUTHORITY\n[publish]\n{line}"));
        assert!(errors(&text).contains(problem), "{line}: {}", errors(&text));
    }
    let elsewhere = errors(&expand("$NODE\n$SERVICE\n[publish]\ntitle = \"a\""));
    assert!(elsewhere.contains("the authority's machine"), "{elsewhere}");
}

#[test]
fn watch_is_enabled_by_its_section_and_has_defaults() {
    let config = parse(&expand("$NODE\n[watch]")).unwrap();
    let hours = |n: u64| Duration::from_secs(n * 3600);
    assert_eq!(config.watch, Some(Watch { interfaces: vec![], keep: hours(48) }));
    let config = parse(&expand("$NODE\n[watch]\ninterfaces = \"eth0.7\"\nkeep = \"7d\""));
    let given = Watch { interfaces: vec!["eth0.7".into()], keep: hours(168) };
    assert_eq!(config.unwrap().watch, Some(given));
    assert_eq!(parse(&expand("$NODE\n$SERVICE")).unwrap().watch, None);
}

#[test]
fn a_node_cannot_offer_more_services_than_the_authority_accepts() {
    let services = |n: usize| {
        let service = |i| {
            let listen = format!("10.0.0.5:{}", 10_000 + i);
            SERVICE_LINES.replace("10.0.0.5:7432", &listen).replace("\"db\"", &format!("\"s{i}\""))
        };
        format!("{NODE_LINES}\n{}", (0..n).map(service).collect::<Vec<_>>().join("\n"))
    };
    assert!(parse(&services(4096)).is_ok());
    assert_eq!(
        errors(&services(4097)),
        "w.toml:20484: service: this is service 4097 of 4097, but a node may offer only 4096; \
         offer the others from another node, with its own configuration file and state_dir"
    );
}

#[test]
fn rules_that_the_kernel_would_refuse_are_rejected_with_the_file() {
    let refused = |keys: &str, why: &str| {
        let text = expand(&format!("$NODE\n$SERVICE\n$INTERCEPT\n{keys}"));
        let expected = format!("w.toml:9: intercept: the kernel's rules would be invalid: {why}");
        let found = errors(&text);
        assert!(found.starts_with(&expected), "{found}\n{expected}");
    };
    let passes = |n: usize| vec!["\"udp out 10.0.0.1 123\""; n].join(", ");
    refused(&format!("pass = [{}]", passes(257)), "257 exceptions; the limit is 256");
    for port in [7432, 7491] {
        refused(&format!("management = [{port}]"), &format!("TCP port {port} is both"));
    }
    let fits = format!("$NODE\n$SERVICE\n$INTERCEPT\npass = [{}]\nmanagement = [22]", passes(256));
    assert!(parse(&expand(&fits)).is_ok());
}

#[test]
fn listeners_with_different_families_addresses_or_ports_do_not_conflict() {
    for (first, second) in [
        ("10.0.0.5:7432", "10.0.0.6:7432"),
        ("0.0.0.0:7432", "10.0.0.5:7433"),
        ("0.0.0.0:7432", "[fd00::5]:7432"),
        ("[::1]:7432", "127.0.0.1:7432"),
    ] {
        let services = SERVICE_LINES.replace("10.0.0.5:7432", first)
            + "\n"
            + &SERVICE_LINES.replace("10.0.0.5:7432", second).replace("\"db\"", "\"b\"");
        assert!(parse(&format!("{NODE_LINES}\n{services}")).is_ok(), "{first} and {second}");
    }
}

#[test]
fn a_backend_may_use_a_port_of_the_mesh_on_another_address() {
    let text = expand("$NODE\n$SERVICE").replace("127.0.0.1:5432", "127.0.0.1:7432");
    assert!(parse(&text).is_ok());
}

#[test]
fn unreadable_files_report_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let load = |path: &Path| {
        let error = Config::load(path).unwrap_err();
        assert_eq!(error.as_slice()[0].file, path);
        error.to_string().replace(dir.path().to_str().unwrap(), "DIR")
    };
    let file = dir.path().join("w.toml");
    assert_eq!(
        load(&file),
        "DIR/w.toml: no such file; check the path; `wiretight check --example` prints a commented example"
    );
    assert_eq!(load(dir.path()), "DIR: this is a directory; give the path of the file in it");
    std::fs::write(&file, b"[node]\nname = \"\xff\"\n").unwrap();
    assert_eq!(load(&file), "DIR/w.toml: line 2 is not UTF-8 text; save the file as UTF-8");
    let mut large = format!("{NODE_LINES}\n#").into_bytes();
    large.resize(MAX_FILE + 1, b'x');
    std::fs::write(&file, &large).unwrap();
    assert_eq!(
        load(&file),
        "DIR/w.toml: larger than 1 MiB; check that this is the configuration file"
    );
    assert!(parse(std::str::from_utf8(&large).unwrap()).is_err());
    std::fs::write(&file, &large[..MAX_FILE]).unwrap();
    assert!(Config::load(&file).is_ok());
    assert_eq!(
        load(Path::new("/proc/self/mem")).split(':').next(),
        Some("/proc/self/mem"),
        "other failures are told too"
    );
}

#[test]
fn files_with_a_byte_order_mark_and_crlf_are_read() {
    let text = format!("\u{feff}{}", expand("$NODE\n$SERVICE").replace('\n', "\r\n"));
    assert_eq!(parse(&text), parse(&expand("$NODE\n$SERVICE")));
    let error = errors(&text.replace("7432", "0"));
    assert!(error.starts_with("w.toml:6: [[service]] \"db\": listen: "), "{error}");
}

#[test]
fn garbage_never_panics_and_every_refusal_is_complete() {
    let check = |text: &str| {
        if let Err(errors) = parse(text) {
            assert!(!errors.as_slice().is_empty());
            let lines = text.split('\n').count();
            for e in errors.as_slice() {
                assert!(e.line.is_some_and(|l| l <= lines), "{e}");
                assert!(!e.problem.is_empty() && !e.advice.is_empty(), "{e}");
                assert!(!e.to_string().contains(['\n', '\0']), "{e:?}");
            }
        }
    };
    // Without comments, so that mutations hit relevant text.
    let all = uncommented();
    let base: Vec<_> = all.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    let base = base.join("\n");
    (0..=base.len()).filter_map(|n| base.get(..n)).for_each(check);
    (0..=EXAMPLE.len()).step_by(7).filter_map(|n| EXAMPLE.get(..n)).for_each(check);

    // xorshift64: the same garbage in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let pieces = [
        "[",
        "]",
        "[[",
        "\"",
        "'",
        "\"\"\"",
        "=",
        ".",
        ",",
        "{",
        "}",
        "#",
        "\n",
        "\r",
        "\0",
        "\\u",
        "node",
        "[[service]]\n",
        "[service]\n",
        "[[dial]]\n",
        "a.b=1\n",
        "true",
        "0x",
        "1e9",
        "nan",
        "-1",
        "99999999999999999999",
        "1979-05-27",
        "[]",
        "[[]]",
        "\u{e9}",
        "\u{1f512}",
        ":",
        "0s",
    ];
    for _ in 0..20_000 {
        let mut bytes = base.clone().into_bytes();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.drain(at..(at + random(40)).min(bytes.len()))),
                2 => {
                    let piece = pieces[random(pieces.len())].bytes();
                    drop(bytes.splice(at..at, piece));
                }
                _ => {
                    let line = base.lines().nth(random(30)).unwrap_or_default();
                    drop(bytes.splice(at..at, line.bytes()));
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        check(&String::from_utf8_lossy(&bytes));
    }
    for piece in pieces {
        check(&piece.repeat(5_000));
        check(&format!("x = {}", piece.repeat(5_000)));
        check(&format!("{NODE_LINES}\nstate_dir = {}", piece.repeat(5_000)));
    }
}

#[test]
fn the_files_in_examples_are_valid() {
    let files = [
        ("auth1.toml", include_str!("../../../../examples/postgres/auth1.toml")),
        ("db1.toml", include_str!("../../../../examples/postgres/db1.toml")),
        ("web1.toml", include_str!("../../../../examples/postgres/web1.toml")),
    ];
    for (name, text) in files {
        let config = Config::parse(Path::new(name), text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.warnings, [""; 0], "{name}");
    }
}

#[test]
fn every_identity_used_in_a_file_is_requested() {
    let node = "[node]\nname = \"a\"\ntrust_domain = \"b.example\"\n";
    let shown = |sections: &str| {
        let config = Config::parse("f".as_ref(), &format!("{node}{sections}")).unwrap();
        let names: Vec<String> = config.shown_services().iter().map(ToString::to_string).collect();
        (names, config.needs_mesh())
    };
    let site = "[[site]]\nnames = [\"a.example\"]\ncert = \"/c\"\nkey = \"/k\"\n";
    for (sections, names, needs_mesh) in [
        (
            "[[service]]\nname = \"db\"\nlisten = \"10.0.0.5:1\"\nforward = \"127.0.0.1:2\"\n"
                .to_owned(),
            &["db"][..],
            true,
        ),
        (
            "[[dial]]\nlisten = \"127.0.0.1:1\"\nservice = \"db\"\nas = \"web\"\n".to_owned(),
            &["web"],
            true,
        ),
        ("[[dial]]\nlisten = \"127.0.0.1:1\"\nservice = \"db\"\n".to_owned(), &[], true),
        ("[intercept]\nmode = \"observe\"\nas = \"web\"\n".to_owned(), &["web"], true),
        ("[intercept]\nmode = \"observe\"\n".to_owned(), &[], true),
        ("[watch]\n".to_owned(), &[], false),
        ("[watch]\n[[dial]]\nlisten = \"127.0.0.1:1\"\nservice = \"db\"\n".to_owned(), &[], true),
        (format!("{site}to = \"service/db\"\nas = \"web\"\n"), &["web"], true),
        (format!("{site}to = \"127.0.0.1:1\"\n"), &[], false),
        (format!("{site}to = \"127.0.0.1:1\"\nclients = [\"service/web\"]\n"), &[], true),
        (String::new(), &[], true),
    ] {
        assert_eq!(
            shown(&sections),
            (names.iter().map(ToString::to_string).collect(), needs_mesh),
            "{sections}"
        );
    }
}
