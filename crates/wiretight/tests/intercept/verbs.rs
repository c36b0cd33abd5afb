//! `wiretight rules` and `wiretight down`, and what they refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use wiretight_proxy::Network;
use wiretight_proxy::intercept::rules::{Direction, Mode, Pass, Protocol};

use super::rig::{Net, can, finish, good, rules};

#[test]
fn listed_rules_equal_the_loaded_ones() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    for mode in [Mode::Observe, Mode::Permissive, Mode::Strict] {
        for other in [Mode::Observe, Mode::Permissive, Mode::Strict] {
            let mut rules = rules(mode);
            rules.peers = ["10.77.0.9", "fd77::9"].map(|ip| (ip.parse().unwrap(), other)).into();
            let more = ["10.0.0.0/25", "10.0.0.128/25", "2001:db8::1", "10.0.0.5"];
            rules.protected.extend(more.map(|n| n.parse::<Network>().unwrap()));
            rules.taken = ["192.0.2.1:80", "[2001:db8::1]:443"].map(|a| a.parse().unwrap()).into();
            let pass = |protocol, network: &str, port, direction| Pass {
                protocol,
                network: network.parse().unwrap(),
                port,
                direction,
            };
            for direction in [Direction::In, Direction::Out] {
                rules.passes.extend([
                    pass(Protocol::Tcp, "10.0.0.0/8", Some(80), direction),
                    pass(Protocol::Udp, "fd00::/8", None, direction),
                    pass(Protocol::Icmp, "::/0", None, direction),
                    pass(Protocol::Icmp, "10.0.0.1", None, direction),
                    pass(Protocol::Number(253), "0.0.0.0/0", None, direction),
                ]);
            }
            net.load(&rules);
            let listed = net.listing().unwrap();
            assert!(listed.is_ours());
            assert_eq!(listed.canonical(), rules.expected(), "{mode:?} {other:?}");
            // All addresses of a family are a network as well.
            rules.protected = ["0.0.0.0/0", "::/0"].map(|n| n.parse().unwrap()).into();
            net.load(&rules);
            assert_eq!(net.listing().unwrap().canonical(), rules.expected());
        }
    }
}

#[test]
fn load_show_and_down_report_what_they_do() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let file = net.state().join("rules.json");
    let (code, said) = net.cli(&["rules", "load"]);
    assert_eq!(code, 1);
    assert!(said.contains("rules.json") && said.contains("plaintext may leave"), "{said}");
    let (code, said) = net.cli(&["rules", "show"]);
    assert!(code == 1 && said.contains("no rules are loaded"), "{said}");

    let rules = rules(Mode::Strict);
    net.load(&rules);
    let (code, said) = net.cli(&["rules", "load"]);
    assert!(code == 0 && said.contains("already loaded"), "{said}");
    let (code, said) = net.cli(&["rules", "show"]);
    assert!(code == 0 && said.contains("strict") && said.contains("10.77.0.0/16"), "{said}");
    net.probe_one("c", json!({"proto": "udp", "addr": "10.77.0.2", "port": 9, "payload": "x"}));
    let (code, said) = net.cli(&["rules", "show"]);
    let flow = said.lines().find(|line| line.starts_with("10.77.0.2")).unwrap_or_default();
    assert!(code == 0 && flow.contains("udp") && flow.ends_with("dropped"), "{said}");
    let (code, said) = net.cli(&["rules", "show", "--json"]);
    let shown: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &shown["in_force"], &shown["as_kept"]), (0, &json!(true), &json!(true)));
    assert_eq!(shown["counts"]["flows"][0]["peer"], "10.77.0.2");

    // A truncated file: the rules in force stay, and nothing of the file is applied.
    let whole = fs::read(&file).unwrap();
    for torn in [&whole[..whole.len() / 2], b"", b"{}", b"\xff"] {
        fs::write(&file, torn).unwrap();
        let (code, said) = net.cli(&["rules", "load"]);
        assert!(code == 1 && said.contains("is unreadable"), "{said}");
        assert_eq!(net.listing().unwrap().canonical(), rules.expected());
    }
    fs::write(&file, whole).unwrap();

    // There is no terminal to ask for confirmation.
    let (code, said) = net.cli(&["down"]);
    assert!(code == 1 && said.contains("--yes"), "{said}");
    assert!(net.listing().is_some());
    net.nft(&["add table inet other"]);
    let (code, said) = net.cli(&["down", "--yes"]);
    assert!(code == 0 && said.contains("plaintext may leave"), "{said}");
    assert!(net.listing().is_none() && !file.exists());
    assert_eq!(net.nft(&["list", "table", "inet", "other"]).0, 0, "others' tables stay");
    let (code, said) = net.cli(&["down", "--yes"]);
    assert!(code == 0 && said.contains("no rules to remove"), "{said}");
}

#[test]
fn a_foreign_table_is_refused_and_not_changed() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    net.write(&rules(Mode::Strict));
    let foreign = "add table inet wiretight; add chain inet wiretight theirs; add rule inet wiretight theirs counter";
    assert_eq!(net.nft(&[foreign]).0, 0);
    let (_, before) = net.nft(&["-s", "list", "ruleset"]);
    for verb in [&["rules", "load"][..], &["rules", "show"], &["down", "--yes"]] {
        let (code, said) = net.cli(verb);
        assert!(
            code == 1
                && said.contains("was not created by Wiretight")
                && said.contains("nft list table"),
            "{said}"
        );
        assert_eq!(net.nft(&["-s", "list", "ruleset"]).1, before, "{verb:?}");
    }
    assert!(net.state().join("rules.json").exists(), "nothing half done");
    let (code, said) = keeper(&net, &[]);
    assert!(code == 1 && said.contains(r#"{"foreign":"table"}"#), "{said}");
}

/// The child process, without any request.
fn keeper(net: &Net, around: &[&str]) -> (i32, String) {
    let line = [around, &[env!("CARGO_BIN_EXE_wiretight"), "rules-keeper"]].concat();
    finish(net.on("c", line[0]).args(&line[1..]).arg(net.state()))
}

#[test]
fn without_root_or_nft_nothing_is_applied_and_the_next_step_is_named() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    net.write(&rules(Mode::Strict));
    // Copy the binary to where every user may run it.
    let place = tempfile::Builder::new().prefix("wiretight-bin-").tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bin = place.path().join("wiretight");
    fs::copy(env!("CARGO_BIN_EXE_wiretight"), &bin).unwrap();
    let without: &[&str] = &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all"];
    let wiretight = bin.to_str().unwrap();
    let config = net.config();
    let config = config.to_str().unwrap();
    let load = |around: &[&str]| {
        let line = [around, &[wiretight, "rules", "load", "--config", config]].concat();
        finish(net.on("c", line[0]).args(&line[1..]))
    };
    for (around, hint) in [
        (without, "CAP_NET_ADMIN"),
        (&["env", "PATH=/nonexistent"][..], "Install the package nftables"),
        (&["env", "-u", "PATH"], "Install the package nftables"),
    ] {
        let (code, said) = load(around);
        assert!(code == 1 && said.contains(hint) && said.contains("were applied"), "{said}");
        assert!(net.listing().is_none());
        let (code, said) = keeper(&net, around);
        assert!(code == 1 && (said.contains("not_permitted") || said.contains("no_nft")), "{said}");
    }
    // An nft with fewer features.
    let old = place.path().join("nft");
    fs::write(&old, "#!/bin/sh\ncase \"$*\" in *list*) echo No such file or directory >&2; exit 1;; esac\necho 'syntax error, unexpected socket' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("PATH={}:/usr/bin:/bin", place.path().display());
    let (code, said) = load(&["env", &path]);
    assert!(
        code == 1 && said.contains("unexpected socket") && said.contains("nft 1.0.6"),
        "{said}"
    );
    // Without `ip`, programs do not see callers' addresses, and everything else is in force.
    let mut with_routes = rules(Mode::Strict);
    with_routes.transparent = ["127.0.0.1:5432", "[::1]:5432"].map(|b| b.parse().unwrap()).into();
    net.write(&with_routes);
    let only = place.path().join("only");
    fs::create_dir(&only).unwrap();
    let nft = good(std::process::Command::new("sh").args(["-c", "command -v nft"]));
    std::os::unix::fs::symlink(nft.trim(), only.join("nft")).unwrap();
    let (code, said) = load(&["env", &format!("PATH={}", only.display())]);
    assert!(code == 1 && said.contains("Install the package iproute2"), "{said}");
    assert_eq!(net.listing().unwrap().canonical(), with_routes.expected());
    let (code, said) = load(&["env"]);
    assert_eq!(code, 0, "the control: {said}");
    assert_eq!(net.cli(&["down", "--yes"]).0, 0);
    net.write(&rules(Mode::Strict));
    // A user with only that capability can load rules.
    let user = net.path("");
    fs::set_permissions(&user, fs::Permissions::from_mode(0o755)).unwrap();
    for path in [net.state(), net.state().join("rules.json"), net.state().join("rules.lock")] {
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    }
    let user: &[&str] = &[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
    ];
    let (code, said) = load(user);
    assert_eq!(code, 0, "{said}");
    assert!(net.listing().is_some_and(|l| l.is_ours()));
}
