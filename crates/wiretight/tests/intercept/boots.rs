//! The rules before and without a node: at boot.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use wiretight_proxy::intercept::rules::{Mode, Rules};

use super::rig::{CANARY, KilledOnDrop, Net, can, rules, say, wait_for};

/// With WIRETIGHT_TEST_LONG (`scripts/test --long`) there are 100 boots, and each has a control.
#[test]
fn booting_machines_send_no_plaintext_and_without_the_rules_they_do() {
    if !can() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/boots");
    let long = std::env::var_os("WIRETIGHT_TEST_LONG").is_some();
    let args: &[&str] = if long { &["100"] } else { &["8", "--controls", "2"] };
    let binary = env!("CARGO_BIN_EXE_wiretight");
    let mut boots = Command::new("python3");
    boots.arg(script).args(args).args(["--json", "--binary", binary]);
    let out = boots.stdin(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let (said, problems) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{problems}");
    let seen: Value = serde_json::from_str(&said).unwrap();
    say(&seen);
    assert_eq!((&seen["canaries"], &seen["plaintext_delivered"]), (&json!(0), &json!(0)));
    let enough =
        |key: &str, least: u64| assert!(seen[key].as_u64() >= Some(least), "{key}: {seen}");
    enough("boots", if long { 100 } else { 8 });
    enough("encrypted", 10);
    enough("control_leaked", if long { 50 } else { 2 });
}

fn guard_tables(net: &Net) -> usize {
    net.nft(&["list", "tables"]).1.matches("wiretight_guard").count()
}

fn guard_of(net: &Net) -> KilledOnDrop {
    let mut command = net.on("c", env!("CARGO_BIN_EXE_wiretight"));
    command.args(["rules", "guard", "--config"]).arg(net.config()).stdin(Stdio::null());
    let log = fs::File::options().create(true).append(true).open(net.path("log")).unwrap();
    KilledOnDrop(command.stderr(log).spawn().unwrap())
}

#[test]
fn the_guard_outlives_a_flush_and_follows_nodes_and_down() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let strict = rules(Mode::Strict);
    net.write(&strict);
    let guard = guard_of(&net);
    wait_for("the guard table is there", || guard_tables(&net) == 1);
    assert_eq!(net.listing().unwrap().canonical(), strict.expected());
    let _flood = net.flood("c", json!({"addr": "10.77.0.2", "port": 5000, "payload": CANARY}));
    let wire = net.record();
    for _ in 0..3 {
        assert_eq!(net.nft(&["flush ruleset"]).0, 0);
        assert_eq!(guard_tables(&net), 1);
        wait_for("it is restored", || net.listing().is_some());
    }
    assert_eq!(wire.found(CANARY).0, 0);
    assert!(net.log().contains("it was restored"), "{}", net.log());

    // A node changes the mode, and stops.
    let mut keeper = net.keeper();
    keeper.apply(&Rules { mode: Mode::Permissive, ..strict.clone() });
    wait_for("permissive mode needs no guard", || guard_tables(&net) == 0);
    keeper.apply(&strict);
    wait_for("both have one", || guard_tables(&net) == 2);
    // A mode on trial is not changed.
    keeper.apply(&Rules { mode: Mode::Permissive, ..strict.clone() });
    assert_eq!(keeper.ask(&json!({"try": {"mode": "strict", "seconds": 600}})), json!("done"));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(net.listing().unwrap().canonical(), strict.expected());
    // It is confirmed, so the file changes and the table does not.
    keeper.apply(&strict);
    wait_for("both have one again", || guard_tables(&net) == 2);
    drop(keeper);
    wait_for("the node's is gone", || guard_tables(&net) == 1);

    let (code, said) = net.cli(&["down", "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!((net.listing().is_none(), guard_tables(&net)), (true, 0));
    // At the next boot the operator's wish still applies.
    drop(guard);
    let mut guard = guard_of(&net);
    wait_for("it has started", || net.log().contains("`wiretight down` removed"));
    assert_eq!((net.listing().is_none(), guard_tables(&net)), (true, 0));
    let mut keeper = net.keeper();
    let done = keeper.ask(&json!({"apply": {"rules": strict, "anew": true}}));
    assert_eq!(done, json!("done"));
    drop(keeper);
    wait_for("it returns with the next node", || guard_tables(&net) == 1);

    // A file that this version cannot read: the service manager starts the process again, from a new binary.
    fs::write(net.state().join("rules.json"), r#"{"later": true}"#).unwrap();
    net.nft(&["delete table inet wiretight"]);
    assert_eq!(guard.wait().unwrap().code(), Some(1));
    assert!(net.log().contains("is unreadable"), "{}", net.log());
}

/// While a transaction of another process is being checked, some kernels list its table, without its content.
#[test]
fn a_starting_node_looks_at_the_table_only_while_nobody_changes_it() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let lock = fs::File::create(net.state().join("rules.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(net.nft(&["add table inet wiretight"]).0, 0);
    thread::scope(|scope| {
        let keeper = scope.spawn(|| net.keeper());
        thread::sleep(Duration::from_secs(1));
        assert_eq!(net.nft(&["delete table inet wiretight"]).0, 0);
        lock.unlock().unwrap();
        keeper.join().unwrap();
    });
}

#[test]
fn the_stricter_of_file_and_saved_rules_is_loaded_even_if_one_is_invalid() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let node = fs::read_to_string(net.config()).unwrap();
    let configured = |mode: &str| {
        format!(
            "{node}[intercept]\nmode = \"{mode}\"\nprotect = [\"10.77.0.0/16\", \"fd77::/16\"]\n"
        )
    };
    let spec = json!({"proto": "udp", "addr": "10.77.0.2", "port": 5000, "payload": "x"});
    let _server = net.serve("s", json!([{"proto": "udp", "addr": "10.77.0.2", "port": 5000}]));
    let mode = || {
        let (code, said) = net.cli(&["rules", "show", "--json"]);
        let shown: Value = serde_json::from_str(&said).unwrap();
        (code, shown["rules"]["mode"].as_str().unwrap().to_owned())
    };
    for (saved, file, loaded) in [
        (Mode::Permissive, "strict", "strict"),
        (Mode::Strict, "observe", "strict"),
        (Mode::Permissive, "observe", "permissive"),
    ] {
        net.nft(&["flush ruleset"]);
        net.write(&rules(saved));
        fs::write(net.config(), configured(file)).unwrap();
        let (code, said) = net.cli(&["rules", "load"]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(mode(), (0, loaded.to_owned()));
        let sent = if loaded == "strict" { "late" } else { "ok x" };
        assert_eq!(net.probe_one("c", spec.clone()), sent, "{saved:?} {file}");
    }
    // An invalid configuration file: the saved rules, exactly.
    net.write(&rules(Mode::Strict));
    for file in
        [node.clone() + "[intercep]\n", node.clone() + "[intercept\n", node.replace("name", "nam")]
    {
        net.nft(&["flush ruleset"]);
        fs::write(net.config(), &file).unwrap();
        let (code, said) = net.cli(&["rules", "load"]);
        assert!(code == 0 && said.contains("without the configuration"), "{said}");
        assert_eq!(net.listing().unwrap().canonical(), rules(Mode::Strict).expected());
    }
    // Unreadable saved rules: those of the file, and a failure.
    net.nft(&["flush ruleset"]);
    fs::write(net.config(), configured("strict")).unwrap();
    fs::write(net.state().join("rules.json"), "{").unwrap();
    let (code, said) = net.cli(&["rules", "load"]);
    assert!(code == 1 && said.contains("rules of the configuration file are in force"), "{said}");
    assert_eq!(net.probe_one("c", spec.clone()), "late");
    // The same for lost ones, but not after `wiretight down`.
    for (lost, code, sent) in [(true, 1, "late"), (false, 4, "ok x")] {
        net.nft(&["flush ruleset"]);
        match lost {
            true => fs::remove_file(net.state().join("rules.json")).unwrap(),
            false => {
                net.load(&rules(Mode::Strict));
                assert_eq!(net.cli(&["down", "--yes"]).0, 0);
            }
        }
        let (ended, said) = net.cli(&["rules", "load"]);
        assert_eq!(ended, code, "{said}");
        assert_eq!(said.contains("rules of the configuration file are in force"), lost, "{said}");
        assert_eq!(net.probe_one("c", spec.clone()), sent, "{said}");
    }
    // Once rules are saved again, their loss is a loss.
    let mut keeper = net.keeper();
    keeper.apply(&rules(Mode::Strict));
    drop(keeper);
    net.nft(&["flush ruleset"]);
    fs::remove_file(net.state().join("rules.json")).unwrap();
    let (_, said) = net.cli(&["rules", "load"]);
    assert!(said.contains("rules of the configuration file are in force"), "{said}");
    assert_eq!(net.probe_one("c", spec.clone()), "late");
    // With a configuration that drops nothing, nothing is loaded.
    net.nft(&["flush ruleset"]);
    fs::write(net.config(), configured("permissive")).unwrap();
    let (code, said) = net.cli(&["rules", "load"]);
    assert!(code == 1 && said.contains("plaintext may leave"), "{said}");
    assert!(net.listing().is_none());
    // Both.
    fs::write(net.state().join("rules.json"), "{").unwrap();
    net.nft(&["flush ruleset"]);
    fs::write(net.config(), "[node").unwrap();
    let (code, said) = net.cli(&["rules", "load"]);
    assert_eq!(code, 2, "{said}");
    assert_eq!(net.probe_one("c", spec), "ok x", "the control");
}
