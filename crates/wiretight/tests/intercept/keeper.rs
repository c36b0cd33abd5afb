//! The child process that maintains the rules.

use std::time::{Duration, Instant};

use serde_json::json;
use wiretight_proxy::intercept::rules::{Mode, Rules};

use wiretight::intercept::{ForeignError, InterceptError, Keeper, OperatorError};

use rustix::process::Signal;

use super::rig::{CANARY, Keeper as Child, Net, can, good, rules, say, wait_for, worker_of};

#[test]
fn the_keeper_has_one_capability_and_its_programs_have_no_more() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut keeper = net.keeper();
    keeper.apply(&rules(Mode::Strict));
    for pid in [keeper.child.id(), keeper.worker().as_raw_nonzero().get() as u32] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        // CAP_NET_ADMIN is 12.
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000001000", "{set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
    }
    let kept = std::fs::metadata(net.state().join("rules.json")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&kept.permissions()) & 0o7777, 0o600);
}

#[test]
fn a_changed_table_is_restored_within_a_second_and_counted() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut keeper = net.keeper();
    let mut rules = rules(Mode::Strict);
    rules.taken = ["10.77.0.2:5432".parse().unwrap()].into();
    keeper.apply(&rules);
    let whole = net.listing().unwrap().canonical();
    assert_eq!(keeper.health()["guarded"], json!(true));
    let spec = json!({"addr": "10.77.0.2", "port": 5000, "payload": CANARY});
    let _flood = net.flood("c", spec);
    let table = "inet wiretight";
    let mut worst = Duration::ZERO;
    let mut times = 0;
    for harm in [
        format!("delete table {table}"),
        "flush ruleset".into(),
        format!("flush table {table}"),
        format!("flush chain {table} postrouting"),
        format!("delete element {table} protected4 {{ 10.77.0.0/16 }}"),
        format!("add element {table} management {{ 5000 }}"),
        format!("insert rule {table} postrouting accept"),
        format!("add table {table} {{ flags dormant; }}"),
        format!("delete table {table}; add table {table}"),
        format!("delete table {table}; add table {table}; add chain {table} made_by_wiretight"),
    ] {
        let wire = net.record();
        let begun = Instant::now();
        let (code, said) = net.nft(&[&harm]);
        // From the table that replaces ours below.
        assert_eq!(code, 0, "{harm}: {said}");
        if harm.ends_with(&format!("add table {table}")) {
            wait_for("it is reported", || !keeper.health()["error"].is_null());
            assert!(net.listing().is_some_and(|l| !l.is_ours()), "a foreign table is not touched");
            net.nft(&[&format!("delete table {table}")]);
        }
        times += 1;
        wait_for(&harm, || keeper.health()["mended"] == times);
        let took = begun.elapsed();
        assert_eq!(net.listing().unwrap().canonical(), whole, "{harm}");
        assert_eq!(wire.found(CANARY).0, 0, "{harm}: the second table does not guard");
        say(format!("{harm}: mended and seen to be after {took:?}"));
        if !harm.ends_with(&format!("add table {table}")) {
            worst = worst.max(took);
        }
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}\n{}", net.log());
    // No other program may change the second table. The control: without it, plaintext leaves until ours is restored.
    let tables = net.nft(&["list", "tables", "inet"]).1;
    let guard = tables.split_whitespace().find(|name| name.starts_with("wiretight_guard_"));
    let guard = guard.expect("there is a second table");
    assert_ne!(net.nft(&["delete", "table", "inet", guard]).0, 0);
    let child_of = |pid: &str| {
        let children = format!("/proc/{pid}/task/{pid}/children");
        std::fs::read_to_string(children).unwrap().trim().to_owned()
    };
    let holder = child_of(&child_of(&keeper.child.id().to_string()));
    let both_gone = format!("kill -9 {}; nft delete table {table}", holder.trim());
    let wire = net.record();
    good(net.on("c", "sh").args(["-c", &both_gone]));
    times += 1;
    wait_for("it is restored", || keeper.health()["mended"] == times);
    let (leaked, _) = wire.found(CANARY);
    say(format!("without the second table: {leaked} datagrams leaked"));
    assert!(leaked > 0);
    wait_for("it is restored", || keeper.health()["guarded"] == json!(true));
    let wire = net.record();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(wire.found(CANARY).0, 0, "dormant or not, it drops again");
    assert!(net.log().contains("it was restored"), "{}", net.log());
    // Changes of other programs to their own tables are ignored.
    net.nft(&["add table inet other; flush table inet other; delete table inet other"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(keeper.health()["mended"], times);
    assert_eq!(keeper.health()["error"], json!(null));
}

#[test]
fn nothing_leaks_while_rules_change_and_counting_continues() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut keeper = net.keeper();
    let mut rules = rules(Mode::Strict);
    keeper.apply(&rules);
    let _flood = net.flood("c", json!({"addr": "10.77.0.2", "port": 5000, "payload": CANARY}));
    wait_for("something is dropped", || net.dropped().1 > 10);
    let wire = net.record();
    let mut before = net.dropped().1;
    for n in 0..20u8 {
        // Sets, chains, and the whole table in turn.
        match n % 3 {
            0 => drop(rules.taken.insert(([10, 77, 0, n], 80).into())),
            1 => rules.protected.push(format!("10.78.{n}.0/24").parse().unwrap()),
            _ => rules.port += 1,
        }
        keeper.apply(&rules);
        let now = net.dropped().1;
        assert!(now >= before, "counts were lost: {before} {now}");
        before = now;
    }
    assert_eq!(wire.found(CANARY).0, 0);
    assert_eq!(net.listing().unwrap().canonical(), rules.expected());
    // The control: in another mode plaintext crosses; after switching back, the counts continue.
    let wire = net.record();
    rules.mode = Mode::Permissive;
    keeper.apply(&rules);
    std::thread::sleep(Duration::from_millis(200));
    assert!(wire.found(CANARY).0 > 10);
    rules.mode = Mode::Strict;
    keeper.apply(&rules);
    assert!(net.dropped().1 >= before);
    // The same if the process that changes the table does not know it.
    drop(keeper);
    let wire = net.record();
    for n in 0..20u16 {
        rules.listens.insert(8000 + n);
        net.load(&rules);
    }
    assert_eq!(wire.found(CANARY).0, 0);
    assert!(net.dropped().1 >= before);
}

#[test]
fn rules_outlive_the_child_and_the_parent() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let rules = rules(Mode::Strict);
    let mut keeper = net.keeper();
    keeper.apply(&rules);
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();
    assert_eq!(net.listing().unwrap().canonical(), rules.expected());
    // Another keeper finds them unchanged, with their counts.
    let spec = json!({"proto": "udp", "addr": "10.77.0.2", "port": 5000, "payload": CANARY});
    assert_eq!(net.probe_one("c", spec.clone()), "late");
    let dropped = net.dropped();
    let mut keeper = net.keeper();
    assert_eq!(keeper.health()["mode"], "strict");
    assert_eq!(net.dropped(), dropped);
    // Half a request, then the parent is gone.
    keeper.hang_up();
    let begun = Instant::now();
    assert!(keeper.child.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(net.listing().unwrap().canonical(), rules.expected());
    let wire = net.record();
    assert_eq!(net.probe_one("c", spec), "late");
    assert_eq!(wire.found(CANARY).0, 0);
}

#[test]
fn invalid_rules_are_refused_and_change_nothing() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut keeper = net.keeper();
    let rules = rules(Mode::Strict);
    keeper.apply(&rules);
    let mut bad = rules.clone();
    bad.mark = 0;
    let said = keeper.ask(&json!({"apply": {"rules": bad, "anew": false}}));
    assert!(said["failed"]["own"].as_str().unwrap().contains("mark is 0"), "{said}");
    let mut bad = json!(rules);
    bad["cgroups"] = json!(["x\" accept; add rule inet wiretight postrouting accept #"]);
    let said = keeper.ask(&json!({"apply": {"rules": bad, "anew": false}}));
    assert!(said["failed"]["own"].as_str().unwrap().starts_with("invalid rules: "), "{said}");
    let said = keeper.ask(&json!({"nft": "flush ruleset"}));
    assert!(said["failed"]["own"].as_str().unwrap().starts_with("invalid rules: "), "{said}");
    let mut bad = json!(rules);
    bad["transparent"] = json!(["10.0.0.1:80"]);
    let said = keeper.ask(&json!({"apply": {"rules": bad, "anew": false}}));
    assert!(said["failed"]["own"].as_str().unwrap().contains("not on loopback"), "{said}");
    assert_eq!(net.listing().unwrap().canonical(), rules.expected());
}

#[test]
fn a_dead_worker_is_restarted_and_repairs_changed_rules() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut rules = rules(Mode::Strict);
    rules.transparent = ["127.0.0.1:5000".parse().unwrap()].into();
    let mut keeper = net.keeper();
    keeper.apply(&rules);
    let kill = |keeper: &Child| {
        let worker = keeper.worker();
        rustix::process::kill_process(worker, Signal::KILL).unwrap();
        worker
    };
    // The control: without a process that repairs it, it stays changed.
    let parent = rustix::process::Pid::from_child(&keeper.child);
    rustix::process::kill_process(parent, Signal::STOP).unwrap();
    let dead = kill(&keeper);
    good(net.on("c", "nft").args(["flush", "ruleset"]));
    good(net.on("c", "ip").args(["rule", "del", "priority", "87"]));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(net.listing().is_none());
    rustix::process::kill_process(parent, Signal::CONT).unwrap();
    wait_for("the table is there", || {
        net.listing().is_some_and(|l| l.canonical() == rules.expected())
    });
    let routes = || good(net.on("c", "ip").arg("rule"));
    wait_for("the routing rule is there", || routes().contains("sport 5000 lookup 87"));
    assert_ne!(keeper.worker(), dead);
    assert!(net.log().contains("has died and is restarted"), "{}", net.log());
    assert_eq!(keeper.begun()["answer"], "begun");
    assert_eq!(keeper.health()["mode"], "strict");
    good(net.on("c", "nft").args(["flush", "ruleset"]));
    wait_for("and is maintained", || {
        net.listing().is_some_and(|l| l.canonical() == rules.expected())
    });
    // Rules that were removed while there was no keeper are not restored.
    assert_eq!(net.cli(&["down", "--yes"]).0, 0);
    assert!(!routes().contains("lookup 87"));
    kill(&keeper);
    assert_eq!(keeper.begun()["answer"], "begun");
    assert_eq!(keeper.health()["taken_down"], true);
    let said = keeper.ask(&json!({"apply": {"rules": rules, "anew": false}}));
    assert_eq!(said["failed"]["operator"], "taken_down");
    assert!(net.listing().is_none());
}

#[test]
fn after_down_nothing_is_restored_until_rules_are_loaded_again() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let rules = rules(Mode::Strict);
    let mut keeper = net.keeper();
    keeper.apply(&rules);
    let (code, said) = net.cli(&["down", "--yes"]);
    assert_eq!(code, 0, "{said}");
    wait_for("it is noticed", || keeper.health()["taken_down"] == true);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(net.listing().is_none());
    assert_eq!(keeper.health()["mended"], 0);
    let said = keeper.ask(&json!({"apply": {"rules": rules, "anew": false}}));
    assert_eq!(said["failed"]["operator"], "taken_down");
    assert!(net.listing().is_none());
    assert_eq!(keeper.ask(&json!({"apply": {"rules": rules, "anew": true}})), json!("done"));
    assert_eq!(net.listing().unwrap().canonical(), rules.expected());
    // The rules are maintained again.
    good(net.on("c", "nft").args(["delete", "table", "inet", "wiretight"]));
    wait_for("it is restored", || keeper.health()["mended"] == 1);
}

#[test]
fn a_node_uses_the_keeper_and_notices_its_death() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let start = || {
        let mut command = net.on("c", env!("CARGO_BIN_EXE_wiretight"));
        command.arg("rules-keeper").arg(net.state());
        Keeper::start_by(command)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rules = rules(Mode::Strict);
    let keeper = start().unwrap();
    runtime.block_on(async {
        assert_eq!(keeper.report().await.unwrap().health.mode, None);
        keeper.apply(&rules).await.unwrap();
        let spec = json!({"proto": "udp", "addr": "10.77.0.2", "port": 5000, "payload": "x"});
        assert_eq!(net.probe_one("c", spec), "late");
        let report = keeper.report().await.unwrap();
        assert_eq!(report.health.mode, Some(Mode::Strict));
        assert_eq!((report.counts.dropped_out.packets, report.counts.flows.len()), (1, 1));
        let mut bad = rules.clone();
        bad.mark = 0;
        let refused = keeper.apply(&bad).await.unwrap_err();
        assert!(refused.to_string().starts_with("invalid rules: "), "{refused}");
        assert_eq!(net.cli(&["down", "--yes"]).0, 0);
        assert_eq!(keeper.apply(&rules).await, Err(OperatorError::TakenDown.into()));
        keeper.apply_anew(&rules).await.unwrap();
        // Only this process is killed, by its id. Its worker ends with it.
        let pids = good(net.on("c", "sh").args(["-c", "ip netns pids $(ip netns identify $$)"]));
        let keepers = pids.split_whitespace().filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("rules-keeper"))
        });
        let keepers: Vec<u32> = keepers.map(|pid| pid.parse().unwrap()).collect();
        let [pid, _] = keepers[..] else { panic!("{keepers:?}") };
        let worker = worker_of(pid);
        // Only the worker is killed: requests go to the next one, including one in progress.
        rustix::process::kill_process(worker, Signal::STOP).unwrap();
        let asked = tokio::time::timeout(Duration::from_millis(200), keeper.report()).await;
        assert!(asked.is_err(), "control: a stopped worker does not respond");
        let kill = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            rustix::process::kill_process(worker, Signal::KILL).unwrap();
        };
        let (report, ()) = tokio::join!(keeper.report(), kill);
        assert_eq!(report.unwrap().health.mode, Some(Mode::Strict));
        keeper.apply(&rules).await.unwrap();
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        assert!(matches!(keeper.report().await, Err(InterceptError::Gone(_))));
        assert!(matches!(keeper.apply(&rules).await, Err(InterceptError::Gone(_))));
    });
    assert_eq!(net.listing().unwrap().canonical(), rules.expected());
    assert_eq!(net.nft(&["delete table inet wiretight; add table inet wiretight"]).0, 0);
    assert_eq!(start().err(), Some(ForeignError::Table.into()));
}

#[test]
fn rules_that_cannot_be_applied_leave_the_stricter_of_old_and_new() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut keeper = net.keeper();
    let old = Rules { protected: vec!["10.77.0.2".parse().unwrap()], ..rules(Mode::Strict) };
    keeper.apply(&old);
    // What a member must not be able to cause: the rules are refused, including a service that was added later.
    let bad = Rules {
        mode: Mode::Observe,
        protected: vec!["10.77.0.53".parse().unwrap()],
        taken: ["10.77.0.9:80".parse().unwrap(), "10.77.0.9:0".parse().unwrap()].into(),
        ..rules(Mode::Strict)
    };
    let apply = |keeper: &mut Child, rules: &Rules, no_looser: bool| {
        keeper.ask(&json!({"apply": {"rules": rules, "anew": true, "no_looser": no_looser}}))
    };
    let in_force = || {
        let (code, said) = net.nft(&["list", "table", "inet", "wiretight"]);
        assert_eq!(code, 0, "{said}");
        let set = said.split("set protected4").nth(1).unwrap();
        let set = set.split("elements = {").nth(1).unwrap().split('}').next().unwrap();
        let mut all: Vec<String> = set.split(',').map(|ip| ip.trim().to_owned()).collect();
        all.sort();
        all
    };
    assert_eq!(in_force(), ["10.77.0.2"]);
    let answer = apply(&mut keeper, &bad, false);
    assert!(answer["failed"]["own"].as_str().unwrap().contains("port 0"), "{answer}");
    assert_eq!(in_force(), ["10.77.0.2", "10.77.0.53"]);
    assert_eq!(keeper.health()["mode"], json!("strict"));
    // Repeated, as a node does: nothing changes any more.
    let looks = net.listing().unwrap().canonical();
    apply(&mut keeper, &bad, false);
    assert_eq!(net.listing().unwrap().canonical(), looks);

    // After a restart without the table: the saved rules, and what the configuration protects.
    drop(keeper);
    wait_for("the keeper is gone", || !net.nft(&["list", "tables"]).1.contains("wiretight_guard"));
    net.nft(&["flush", "ruleset"]);
    net.write(&old);
    let mut keeper = net.keeper();
    apply(&mut keeper, &bad, false);
    assert_eq!(in_force(), ["10.77.0.2", "10.77.0.53"]);
    assert_eq!(keeper.health()["mode"], json!("strict"));

    // A node that does not know the mesh yet does not loosen the saved rules either.
    drop(keeper);
    wait_for("the keeper is gone", || !net.nft(&["list", "tables"]).1.contains("wiretight_guard"));
    net.nft(&["flush", "ruleset"]);
    net.write(&old);
    let mut keeper = net.keeper();
    let own = Rules { protected: vec!["10.77.0.53".parse().unwrap()], ..rules(Mode::Permissive) };
    assert_eq!(apply(&mut keeper, &own, true), json!("done"));
    assert_eq!(in_force(), ["10.77.0.2", "10.77.0.53"]);
    assert_eq!(keeper.health()["mode"], json!("strict"));
    // The control: once the mesh is known, the node's rules apply.
    assert_eq!(apply(&mut keeper, &own, false), json!("done"));
    assert_eq!(in_force(), ["10.77.0.53"]);
    assert_eq!(keeper.health()["mode"], json!("permissive"));
}
