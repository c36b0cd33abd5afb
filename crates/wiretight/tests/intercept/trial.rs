//! Trials of a mode: the process that maintains the rules ends them, whatever happens to the process that started them.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wiretight_proxy::intercept::rules::{Mode, Rules};

use super::rig::{Keeper, Net, can, rules, wait_for};

fn kept(net: &Net) -> Rules {
    serde_json::from_slice(&fs::read(net.state().join("rules.json")).unwrap()).unwrap()
}

fn in_force(net: &Net) -> Value {
    net.listing().unwrap().canonical()
}

fn strict_for(keeper: &mut Keeper, seconds: u64) -> Value {
    keeper.ask(&json!({"try": {"mode": "strict", "seconds": seconds}}))
}

#[test]
fn a_trial_ends_in_time_even_if_the_mesh_changes() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let mut keeper = net.keeper();
    assert_eq!(strict_for(&mut keeper, 5)["failed"]["operator"], "no_rules");
    let mut rules = rules(Mode::Permissive);
    keeper.apply(&rules);
    let strict = |rules: &Rules| Rules { mode: Mode::Strict, ..rules.clone() }.expected();
    assert_eq!(strict_for(&mut keeper, 0)["failed"]["operator"]["trial_length"]["seconds"], 0);
    assert_eq!(strict_for(&mut keeper, 3), json!("done"));
    let begun = Instant::now();
    assert_eq!(in_force(&net), strict(&rules));
    assert_eq!(strict_for(&mut keeper, 3)["failed"]["operator"]["trial_runs"], "strict");
    rules.protected.push("10.78.0.0/24".parse().unwrap());
    keeper.apply(&rules);
    assert_eq!(in_force(&net), strict(&rules), "the mode of the trial, with the new rules");
    assert_eq!(kept(&net), rules, "the saved rules have the old mode");
    let health = keeper.health();
    assert_eq!(
        (&health["mode"], &health["trial"]["instead_of"]),
        (&json!("strict"), &json!("permissive"))
    );
    // Another program removes it: the mode of the trial is restored.
    net.nft(&["delete table inet wiretight"]);
    wait_for("it is restored", || keeper.health()["mended"] == 1);
    assert_eq!(in_force(&net), strict(&rules));
    wait_for("the trial ends", || in_force(&net) == rules.expected());
    assert!(begun.elapsed() >= Duration::from_secs(3));
    let health = keeper.health();
    assert_eq!((&health["mode"], &health["trial"]), (&json!("permissive"), &json!(null)));
    assert_eq!(keeper.ask(&json!("hold"))["failed"]["operator"], "no_trial", "too late to confirm");
    assert_eq!(keeper.ask(&json!("undo"))["failed"]["operator"], "no_trial");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(keeper.health()["mended"], 1, "our own changes are not counted");
}

#[test]
fn rules_with_another_mode_end_a_trial_and_stay() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    for other in [Mode::Strict, Mode::Observe] {
        let mut keeper = net.keeper();
        let rules = rules(Mode::Permissive);
        keeper.apply(&rules);
        assert_eq!(strict_for(&mut keeper, 2), json!("done"));
        assert_eq!(keeper.ask(&json!("hold")), json!("done"));
        // The trial does not end while it is being confirmed.
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(keeper.health()["mode"], "strict");
        let confirmed = Rules { mode: other, ..rules };
        keeper.apply(&confirmed);
        assert_eq!(keeper.health()["trial"], json!(null));
        keeper.hang_up();
        assert!(keeper.child.wait().unwrap().success());
        assert_eq!((in_force(&net), kept(&net)), (confirmed.expected(), confirmed));
    }
}

#[test]
fn a_trial_ends_with_the_parent_and_down_stays_down() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let rules = rules(Mode::Permissive);
    let mut keeper = net.keeper();
    keeper.apply(&rules);
    let before = in_force(&net);
    assert_eq!(strict_for(&mut keeper, 600), json!("done"));
    assert_ne!(in_force(&net), before);
    keeper.hang_up();
    assert!(keeper.child.wait().unwrap().success());
    assert_eq!(in_force(&net), before);
    // A killed keeper cannot end the trial: the next one does.
    let mut keeper = net.keeper();
    assert_eq!(strict_for(&mut keeper, 600), json!("done"));
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();
    assert_ne!(in_force(&net), before, "the control");
    let mut keeper = net.keeper();
    keeper.apply(&rules);
    assert_eq!(in_force(&net), before);
    // Rules that the operator removes during a trial stay removed at its end.
    assert_eq!(strict_for(&mut keeper, 1), json!("done"));
    assert_eq!(net.cli(&["down", "--yes"]).0, 0);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(net.listing().is_none());
    assert_eq!(keeper.health()["trial"], json!(null));
    assert_eq!(strict_for(&mut keeper, 1)["failed"]["operator"], "taken_down");
    keeper.hang_up();
    assert!(keeper.child.wait().unwrap().success());
    assert!(net.listing().is_none());
}
