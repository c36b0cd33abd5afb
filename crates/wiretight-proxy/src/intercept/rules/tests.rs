use super::*;

fn rules(mode: Mode) -> Rules {
    let ip = |s: &str| s.parse::<IpAddr>().unwrap();
    Rules {
        mode,
        peers: [(ip("10.0.0.9"), Mode::Observe), (ip("fd00::9"), Mode::Strict)].into(),
        mark: 0x7717,
        port: 7417,
        listens: [7432, 7433].into(),
        taken: ["10.0.0.2:5432".parse().unwrap(), "[fd00::2]:5432".parse().unwrap()].into(),
        protected: ["10.0.0.0/24", "fd00::/64", "10.0.0.7"].map(|n| n.parse().unwrap()).into(),
        passes: vec![
            pass_of(Protocol::Tcp, "10.0.0.0/24", Some(9100), Direction::In),
            pass_of(Protocol::Udp, "fd00::/64", None, Direction::Out),
            pass_of(Protocol::Icmp, "10.0.0.3", None, Direction::Out),
            pass_of(Protocol::Icmp, "::/0", None, Direction::In),
            pass_of(Protocol::Number(50), "0.0.0.0/0", None, Direction::In),
        ],
        resolvers: vec![ip("10.0.0.53"), ip("fd00::53")],
        management: vec![22],
        cgroups: Vec::new(),
        transparent: ["127.0.0.1:5432".parse().unwrap(), "[::1]:5432".parse().unwrap()].into(),
    }
}

fn pass_of(protocol: Protocol, network: &str, port: Option<u16>, direction: Direction) -> Pass {
    Pass { protocol, network: network.parse().unwrap(), port, direction }
}

#[test]
fn rules_that_would_let_plaintext_pass_are_rejected() {
    let with = |change: fn(&mut Rules)| {
        let mut rules = rules(Mode::Strict);
        change(&mut rules);
        rules.replace().err()
    };
    assert_eq!(with(|_| {}), None, "control");
    assert_eq!(with(|r| r.mark = 0), Some(RulesError::NoMark));
    assert_eq!(with(|r| r.management.push(7432)), Some(RulesError::PortForBoth(7432)));
    assert_eq!(with(|r| r.management.push(7417)), Some(RulesError::PortForBoth(7417)));
    for change in [
        (|r: &mut Rules| r.port = 0) as fn(&mut Rules),
        |r| r.listens = [0].into(),
        |r| r.taken = ["127.0.0.1:80".parse().unwrap()].into(),
        |r| r.taken = ["10.0.0.1:0".parse().unwrap()].into(),
        |r| r.taken = ["0.0.0.0:80".parse().unwrap()].into(),
        |r| r.peers = [("::1".parse().unwrap(), Mode::Strict)].into(),
        |r| r.management = vec![0],
        |r| r.passes = vec![pass_of(Protocol::Tcp, "10.0.0.1", Some(0), Direction::In)],
        |r| r.passes = vec![pass_of(Protocol::Tcp, "::ffff:10.0.0.0/104", None, Direction::In)],
        |r| r.passes = vec![pass_of(Protocol::Number(50), "10.0.0.1", Some(1), Direction::In)],
        |r| r.passes = vec![pass_of(Protocol::Number(1), "10.0.0.1", None, Direction::In)],
        |r| r.passes = vec![pass_of(Protocol::Number(17), "10.0.0.1", None, Direction::In)],
        |r| r.passes = vec![pass_of(Protocol::Number(58), "10.0.0.1", None, Direction::In)],
        |r| r.protected = vec!["::ffff:10.0.0.0/104".parse().unwrap()],
        |r| r.passes = vec![pass_of(Protocol::Number(6), "10.0.0.1", None, Direction::In)],
        |r| r.passes = vec![pass_of(Protocol::Icmp, "10.0.0.1", Some(1), Direction::In)],
        |r| r.cgroups = vec!["a\" accept; x".into()],
        |r| r.cgroups = vec!["../a".into()],
        |r| r.cgroups = vec!["/a".into()],
        |r| r.listens = (1..10_000).collect(),
        |r| r.transparent = ["10.0.0.1:80".parse().unwrap()].into(),
        |r| r.transparent = ["[::ffff:127.0.0.1]:80".parse().unwrap()].into(),
        |r| r.transparent = ["127.0.0.1:0".parse().unwrap()].into(),
    ] {
        assert!(with(change).is_some());
    }
}

#[test]
fn limits_are_inclusive_and_control_groups_are_plain_paths() {
    let management = |n: u16| {
        let management = (1..=n).collect();
        Rules { management, ..rules(Mode::Strict) }.check()
    };
    assert_eq!(management(64), Ok(()));
    assert_eq!(management(65), Err(RulesError::TooMany(65, "management ports", 64)));
    let cgroup = |path: &str| {
        let cgroups = vec![path.to_owned()];
        Rules { cgroups, ..rules(Mode::Strict) }.check().is_ok()
    };
    for good in ["a", "a/b", "system.slice/A-9_@:x.service", "..a", &"a".repeat(255)] {
        assert!(cgroup(good), "{good}");
    }
    for bad in
        ["", "/", "a/", "/a", "a//b", ".", "a/..", "./a", "a b", "a\"", "a\n", &"a".repeat(256)]
    {
        assert!(!cgroup(bad), "{bad}");
    }
}

/// If nothing is redirected, the kernel need not track connections; if nothing is dropped, no guard table is needed.
#[test]
fn what_is_done_depends_on_every_mode_in_use() {
    for (mode, peer, redirects, drops) in [
        (Mode::Observe, Mode::Observe, false, false),
        (Mode::Observe, Mode::Permissive, true, false),
        (Mode::Observe, Mode::Strict, true, true),
        (Mode::Permissive, Mode::Observe, true, false),
        (Mode::Permissive, Mode::Strict, true, true),
        (Mode::Strict, Mode::Observe, true, true),
    ] {
        let peers = [("10.0.0.9".parse().unwrap(), peer)].into();
        let rules = Rules { peers, ..rules(mode) };
        assert_eq!((rules.redirects(), rules.drops()), (redirects, drops), "{mode:?} {peer:?}");
        assert!(!Rules { taken: BTreeSet::new(), ..rules }.redirects());
    }
}

#[test]
fn a_changed_set_keeps_chains_and_counters() {
    let old = rules(Mode::Strict);
    assert_eq!(old.change(&old), Ok(None));
    let mut new = old.clone();
    new.protected.push("10.1.0.0/16".parse().unwrap());
    new.taken.pop_first();
    let change = new.change(&old).unwrap().unwrap();
    let told: Vec<String> = change["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            let (verb, what) = c.as_object().unwrap().iter().next().unwrap();
            let (kind, body) = what.as_object().unwrap().iter().next().unwrap();
            format!("{verb} {kind} {}", body["name"].as_str().unwrap())
        })
        .collect();
    assert_eq!(told, ["flush set protected4", "add element protected4", "flush set taken4"]);
    // Removing the last element also removes the chain, and with it connection tracking.
    new.taken.clear();
    assert!(old.redirects() && !new.redirects());
    new.mode = Mode::Observe;
    let change = new.change(&old).unwrap().unwrap().to_string();
    assert!(!change.contains("seen_in4\",\"type"), "sets of flows are not recreated");
    assert!(!change.contains("{\"delete\":{\"table"), "{change}");
}

#[test]
fn the_guard_table_drops_but_does_not_redirect() {
    let has = |rules: Rules, text: &str| rules.guard(GUARD).unwrap().to_string().contains(text);
    let chain = format!(r#""name":"{GUARD_CHAIN}""#);
    assert!(has(rules(Mode::Strict), &chain) && has(rules(Mode::Observe), &chain));
    assert!(has(rules(Mode::Strict), r#"{"drop":null}"#));
    assert!(!has(rules(Mode::Strict), "redirect\":"));
    assert!(!has(rules(Mode::Strict), r#""table":"wiretight""#));
    assert!(rules(Mode::Strict).create().unwrap().to_string().contains("redirect\":"));
}

#[test]
fn protected_networks_do_not_overlap_and_include_peers() {
    let mut rules = rules(Mode::Strict);
    rules.peers.insert("192.0.2.1".parse().unwrap(), Mode::Strict);
    rules.peers.insert("::ffff:192.0.2.2".parse().unwrap(), Mode::Strict);
    let expected = rules.expected();
    let four = json!(["192.0.2.1", "192.0.2.2", {"prefix": {"addr": "10.0.0.0", "len": 24}}]);
    assert_eq!(expected["set"]["protected4"]["elem"], four);
}

#[test]
fn a_network_of_ipv6_with_32_bits_is_not_one_address() {
    let mut rules = rules(Mode::Strict);
    rules.protected = vec!["2001:db8::/32".parse().unwrap(), "2001:db9::1".parse().unwrap()];
    rules.peers.clear();
    let six = json!(["2001:db9::1", {"prefix": {"addr": "2001:db8::", "len": 32}}]);
    assert_eq!(rules.expected()["set"]["protected6"]["elem"], six);
}

#[test]
fn rules_round_trip_as_json_and_unknown_keys_are_rejected() {
    let mut rules = rules(Mode::Permissive);
    let mut json = serde_json::to_value(&rules).unwrap();
    assert_eq!(serde_json::from_value::<Rules>(json.clone()).unwrap(), rules);
    // Older files do not contain this key.
    json.as_object_mut().unwrap().remove("transparent");
    rules.transparent.clear();
    assert_eq!(serde_json::from_value::<Rules>(json.clone()).unwrap(), rules);
    assert_eq!(serde_json::to_value(&rules).unwrap(), json);
    json["protekted"] = json!([]);
    assert!(serde_json::from_value::<Rules>(json).is_err());
}

/// An expression of a rule, about as `nft` writes it.
fn text(value: &Value) -> String {
    let words = |value: &Value, between: &str| match value {
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(between),
        one => text(one),
    };
    let Some((kind, body)) = value.as_object().and_then(|o| o.iter().next()) else {
        return value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    };
    let part = |name: &str| text(&body[name]);
    match kind.as_str() {
        "match" => format!("{} {} {}", part("left"), part("op"), part("right")),
        "payload" => format!("{} {}", part("protocol"), part("field")),
        "meta" | "socket" => format!("{kind} {}", part("key")),
        "fib" => format!("fib {} {}", words(&body["flags"], " "), part("result")),
        "concat" => words(body, " . "),
        "&" => format!("{} & ({})", text(&body[0]), words(&body[1], "|")),
        "set" if body["op"].is_string() => {
            format!("{} {} {{ {} }}", part("op"), part("set"), part("elem"))
        }
        "set" => format!("{{ {} }}", words(body, ", ")),
        "prefix" => format!("{}/{}", part("addr"), part("len")),
        "goto" => format!("goto {}", part("target")),
        "redirect" => format!("redirect to :{}", part("port")),
        "counter" if body.is_string() => format!("counter {}", text(body)),
        _ => kind.clone(),
    }
}

/// One line for each object and rule of a transaction, without the command `add`.
fn lines(transaction: &Value) -> Vec<String> {
    let all = transaction["nftables"].as_array().unwrap().iter();
    let line = all.map(|command| {
        let (verb, what) = command.as_object().unwrap().iter().next().unwrap();
        let (kind, body) = what.as_object().unwrap().iter().next().unwrap();
        let of = |key: &str| body.get(key).map(|v| format!(" {}", text(v))).unwrap_or_default();
        let list = |key: &str, between: &str| {
            let all = body.get(key).and_then(Value::as_array).into_iter().flatten();
            all.map(text).collect::<Vec<_>>().join(between)
        };
        let verb = if verb == "add" { String::new() } else { format!("{verb} ") };
        match kind.as_str() {
            "rule" => {
                let comment = of("comment").replacen(' ', "  # ", 1);
                format!("{verb}{}: {}{comment}", of("chain").trim(), list("expr", "; "))
            }
            "chain" => format!(
                "{verb}chain{}{}{}{}{}",
                of("name"),
                of("type"),
                of("hook"),
                of("prio"),
                of("policy")
            ),
            _ => {
                let of_type = if body["type"].is_array() {
                    format!(" {}", list("type", " . "))
                } else {
                    of("type")
                };
                let flags = list("flags", ",");
                format!(
                    "{verb}{kind}{}{of_type} {flags}{}{}: {}",
                    of("name"),
                    of("size"),
                    of("timeout"),
                    list("elem", ", ")
                )
                .trim_end_matches([' ', ':'])
                .to_owned()
            }
        }
    });
    line.collect()
}

/// The commands of a transaction that are not rules, those of one kind in one line.
fn brief(transaction: &Value) -> Vec<String> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for command in transaction["nftables"].as_array().unwrap() {
        let (verb, what) = command.as_object().unwrap().iter().next().unwrap();
        let (kind, body) = what.as_object().unwrap().iter().next().unwrap();
        let (head, name) = (format!("{verb} {kind}"), text(&body["name"]));
        match all.last_mut() {
            _ if kind == "rule" => {}
            Some((last, names)) if *last == head => names.push(name),
            _ => all.push((head, vec![name])),
        }
    }
    all.into_iter().map(|(head, names)| format!("{head} {}", names.join(", "))).collect()
}

/// The lines of `new` that are not in `old`, and the other way round.
fn difference(old: &[String], new: &[String]) -> Vec<String> {
    let only = |sign: char, these: &[String], others: &[String]| {
        let only = these.iter().filter(|line| !others.contains(line));
        only.map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
    };
    [only('-', old, new), only('+', new, old)].concat()
}

fn rules_in(transaction: &Value) -> Vec<&Value> {
    let all = transaction["nftables"].as_array().unwrap().iter();
    all.filter_map(|command| command["add"].get("rule")).collect()
}

/// Everything that the kernel is told, to be read as a whole. A change of the rules shows here as a change in the
/// kernel. `WIRETIGHT_WRITE=1` rewrites the file.
#[test]
fn the_rules_are_those_in_rules_txt() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/intercept/rules/rules.txt");
    let strict = rules(Mode::Strict);
    let created = |rules: &Rules| lines(&rules.create().unwrap());
    let mut all = vec!["# strict".to_owned()];
    all.extend(created(&strict));
    let mut section = |title: &str, lines: Vec<String>| {
        all.extend([String::new(), format!("# {title}")]);
        all.extend(lines);
    };
    for mode in [Mode::Permissive, Mode::Observe] {
        section(mode.word(), difference(&created(&strict), &created(&rules(mode))));
    }
    let with = |change: fn(&mut Rules)| {
        let mut rules = strict.clone();
        change(&mut rules);
        rules
    };
    let idle = with(|r| r.taken.clear());
    section("strict, nothing redirected", difference(&created(&strict), &created(&idle)));
    let opaque = with(|r| r.transparent.clear());
    section("strict, no transparent service", difference(&created(&strict), &created(&opaque)));
    let by_cgroup = with(|r| r.cgroups = vec!["a.slice/b.service".into(), "c".into()]);
    section("strict, control groups", difference(&created(&strict), &created(&by_cgroup)));
    let picked =
        by_cgroup.pick(by_cgroup.cgroups.iter().map(String::as_str).chain(["a b", "../a"]));
    section(
        "strict, control groups: the second transaction",
        picked.lines().map(str::to_owned).collect(),
    );
    let guard = strict.guard(GUARD).unwrap();
    let own = difference(&created(&strict), &lines(&guard)).into_iter();
    let own = own.filter(|line| line.starts_with('+'));
    section("strict, the guard table", brief(&guard).into_iter().chain(own).collect());
    section("replace", brief(&strict.replace().unwrap()));
    section("refill", brief(&strict.refill().unwrap()));
    let refilled = |rules: &Rules| brief(&rules.refill().unwrap());
    let unlike = difference(&refilled(&strict), &refilled(&idle));
    section("refill, nothing redirected", unlike);
    let other = with(|r| {
        r.cgroups = vec!["d".into()];
        r.management.push(2222);
        r.passes.clear();
    });
    for (title, from, to) in [
        ("from strict to observe", &strict, &rules(Mode::Observe)),
        ("from nothing redirected to something", &idle, &strict),
        ("from something redirected to nothing", &strict, &idle),
        ("from all programs to control groups", &strict, &by_cgroup),
        ("from control groups to others", &by_cgroup, &other),
        ("from control groups to all programs", &by_cgroup, &strict),
    ] {
        let change = to.change(from).unwrap().unwrap();
        section(title, brief(&change));
        let (created, refilled) = (to.create().unwrap(), to.refill().unwrap());
        assert!(rules_in(&change) == rules_in(&created), "{title}");
        assert!(rules_in(&refilled) == rules_in(&created), "{title}");
    }
    let text = all.join("\n") + "\n";
    if std::env::var_os("WIRETIGHT_WRITE").is_some() {
        return std::fs::write(FILE, &text).unwrap();
    }
    let expected = include_str!("rules.txt");
    for (n, (now, then)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(now, then, "line {}", n + 1);
    }
    assert_eq!(text.len(), expected.len());
}
