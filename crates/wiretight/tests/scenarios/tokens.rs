//! Join tokens on the command line: each works once, before it expires, unaltered, and for its node.

use std::thread;

use wiretight_keys::JoinToken;

use super::rig::*;

/// `wiretight join` on a new node of this name, with the token on standard input.
fn join(world: &World, folder: &str, name: &str, more: &str, token: &str) -> (Node, Ran) {
    let node = world.node_in(folder, name, more);
    let ran = node.cli_with(&["join"], token);
    (node, ran)
}

#[track_caller]
fn refused(ran: &Ran, why: &str) {
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let last = ran.err.trim_end().lines().last().unwrap_or_default();
    assert!(last.starts_with("wiretight: ") && last.contains(why), "not {why:?}: {}", ran.err);
    assert!(ran.out.is_empty() && !ran.err.contains("panicked"), "{ran:?}");
}

#[test]
fn a_token_works_once() {
    let world = World::new();
    let auth = world.authority("");
    let token = auth.token("n1", &["web"]);
    let (mut first, ran) = join(&world, "first", "n1", "", &token);
    assert!(ran.good().out.contains("n1 has joined example.org. Next: wiretight run"));
    let (_, ran) = join(&world, "thief", "n1", "", &token);
    refused(&ran, "used before");
    wait_for("the authority logs it as well", || {
        auth.log().contains("join of node n1 refused (token_used)")
    });
    // The first node may use it again, as after a crash, and works.
    first.cli_with(&["join"], &token).good();
    first.start();
    first.ready();
    let nodes = auth.cli(&["node", "list", "--json"]).good().json();
    let known = nodes["nodes"].as_array().unwrap();
    let n1 = known.iter().find(|n| n["name"] == "n1").unwrap();
    assert_eq!(n1["services"], serde_json::json!(["web"]));
}

#[test]
fn an_expired_token_is_refused_and_a_new_one_accepted() {
    let world = World::new();
    let auth = world.authority("");
    let made = |ttl: &str| auth.cli(&["token", "create", "--node", "n1", "--ttl", ttl]).good().out;
    let token = made("1s");
    thread::sleep(ms(2500));
    let (node, ran) = join(&world, "n1", "n1", "", &token);
    refused(&ran, "expired");
    wait_for("the authority logs it as well", || {
        auth.log().contains("join of node n1 refused (token_expired)")
    });
    let token = made("1m");
    node.cli_with(&["join"], &token).good();
    for ttl in ["0s", "31d", "soon"] {
        let ran = auth.cli(&["token", "create", "--node", "n1", "--ttl", ttl]);
        assert!(matches!(ran.code, Some(1 | 2)) && ran.out.is_empty(), "{ran:?}");
    }
}

#[test]
fn an_altered_token_is_refused() {
    let world = World::new();
    let auth = world.authority("");
    let token = auth.token("n1", &["web"]);
    let token = token.trim();
    let node = world.node("n1", "");
    let with = |token: &str| node.cli_with(&["join"], token);
    for at in [5, 20, token.len() / 2, token.len() - 2] {
        let other = if &token[at..=at] == "A" { "B" } else { "A" };
        refused(&with(&format!("{}{other}{}", &token[..at], &token[at + 1..])), "damaged");
    }
    refused(&with(&token[..token.len() - 1]), "damaged");
    refused(&with(&format!("{token}{token}")), "damaged");
    refused(&with("hello"), "not a join token");
    refused(&with(""), "not a join token");

    // Altered with a correct checksum: the authority knows its tokens, and the node its authority.
    let alter = |change: fn(&mut JoinToken)| {
        let mut token = JoinToken::decode(token).ok().unwrap();
        change(&mut token);
        token.encode()
    };
    refused(&with(&alter(|t| t.id = "0".repeat(16))), "unknown join token");
    refused(&with(&alter(|t| t.secret = "guess".to_owned().into())), "unknown join token");
    refused(&with(&alter(|t| t.root = [7; 32])), "authority");
    // The authority's record decides when it expires, not the token's text.
    with(&alter(|t| t.expires += 1_000_000)).good();
}

#[test]
fn a_token_for_another_node_is_refused() {
    let world = World::new();
    let auth = world.authority("");
    let token = auth.token("n1", &["web"]);
    let (_, ran) = join(&world, "other-name", "n2", "", &token);
    refused(&ran, "is for node n1");
    // The text changed to the other name: the authority's record is for n1.
    let mut forged = JoinToken::decode(&token).ok().unwrap();
    forged.node = "n2".parse().unwrap();
    let (_, ran) = join(&world, "forged-name", "n2", "", &forged.encode());
    refused(&ran, "is for node \"n1\"");

    // Another authority of the same trust domain.
    let other_world = World::new();
    let other = other_world.authority("");
    let mut led_astray = JoinToken::decode(&token).ok().unwrap();
    led_astray.authority = vec![other.listen.unwrap().to_string()];
    let (_, ran) = join(&world, "astray", "n1", "", &led_astray.encode());
    refused(&ran, "authority");
    assert!(!ran.err.contains("unknown join token"), "it told a stranger the secret: {ran:?}");

    // Another trust domain: nothing is sent.
    let mut domain = JoinToken::decode(&token).ok().unwrap();
    domain.trust_domain = "other.example".parse().unwrap();
    let (_, ran) = join(&world, "domain", "n1", "", &domain.encode());
    refused(&ran, "is for trust domain other.example");

    let (_, ran) = join(&world, "right", "n1", "", &token);
    ran.good();
    // Refused joins created no nodes.
    let nodes = auth.cli(&["node", "list", "--json"]).good().json();
    let names: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|n| &n["name"]).collect();
    assert_eq!(names, ["auth", "n1"]);
}

#[test]
fn an_invalid_token_file_is_reported_and_a_new_one_is_read() {
    let world = World::new();
    let auth = world.authority("");
    let mut node = world.node("n1", "");
    std::fs::write(node.token_file(), auth.token("n2", &[])).unwrap();
    node.start();
    wait_for(
        "the reason is shown",
        || matches!(node.probe("/readyz"), Ok((503, why)) if why.contains("is for node n2")),
    );
    std::fs::write(node.token_file(), auth.token("n1", &[])).unwrap();
    node.ready();
}
