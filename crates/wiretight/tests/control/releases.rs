//! Nodes that show which release they run, and an authority that requires a proved one.

use serde_json::{Value, json};
use wiretight::authority::{NodeRelease, ReleaseVerdict};
use wiretight::control::report::{NodeReport, ReportedRelease};
use wiretight::release;

use super::*;

#[path = "publisher.rs"]
mod publisher;
use publisher::{Publisher, sha256};

const PROGRAM: &[u8] = b"the program";
const BACKDOOR: &[u8] = b"the program with a back door";

fn said(program: &[u8], proof: Option<String>) -> Option<Box<ReportedRelease>> {
    Some(Box::new(ReportedRelease { sha256: sha256(program), proof }))
}

fn report(release: Option<Box<ReportedRelease>>) -> NodeReport {
    NodeReport { version: "1.4.0".into(), release, ..NodeReport::default() }
}

async fn release_of(authority: &AuthorityHandle, node: &str) -> NodeRelease {
    let nodes = authority.list_nodes().await.unwrap();
    nodes.into_iter().find(|n| n.name == name(node)).unwrap().release
}

async fn until_known(authority: &AuthorityHandle, node: &str, is: impl Fn(&NodeRelease) -> bool) {
    until_async("the release is known", || async { is(&release_of(authority, node).await) }).await;
}

fn is_proved(of: &NodeRelease) -> bool {
    of.verdict.proved().is_some()
}

fn with_policy(publisher: &Publisher, grace: Option<Duration>) -> World {
    let policy = Some(Arc::new(publisher.policy()));
    World { releases: ReleaseParams { policy, grace }, ..World::new() }
}

/// A node whose identities live for a moment only, so that it must renew or rejoin all the time.
fn hasty(world: World) -> World {
    let ttls = Ttls { svid: Duration::from_secs(4), intermediate: HOUR };
    World { ttls, ..world }
}

#[tokio::test]
async fn a_node_with_an_unlogged_program_gets_no_identity_after_the_grace_and_others_do() {
    let publisher = Publisher::new();
    let world = hasty(with_policy(&publisher, Some(Duration::from_secs(3))));
    let authority = world.authority().await;
    let good = world.joined(&authority, "good", &[]).await;
    let bad = world.joined(&authority, "bad", &[]).await;
    let silent = world.joined(&authority, "silent", &[]).await;
    let proof = publisher.proof(PROGRAM, |_| {});
    good.agent.report(report(said(PROGRAM, Some(proof.clone())))).await;
    // All three have got an identity during the time of grace. `bad` shows a proof of another program.
    bad.agent.report(report(said(BACKDOOR, Some(proof.clone())))).await;
    until_known(&authority, "good", is_proved).await;
    until_known(&authority, "bad", |of| of.verdict != ReleaseVerdict::Unknown).await;
    let known = release_of(&authority, "bad").await;
    let why = known.verdict.problem().unwrap().to_owned();
    assert!(why.contains(&sha256(BACKDOOR)) && why.contains("other files"), "{why}");
    assert!(known.refused_in.is_some_and(|left| left <= 3));

    let denied = "requires a proved release";
    assert!(bad.error(denied).await.contains(&sha256(BACKDOOR)));
    assert!(silent.error(denied).await.contains("does not say"));
    until("the last identity has expired", || !bad.agent.status().ready).await;
    good.ready().await;
    let before = good.identity("node/good").leaf().serial;
    until("it is renewed", || good.identity("node/good").leaf().serial != before).await;

    // A restart of the authority does not start the time again, and keeps what was proved.
    let authority = world.restart(authority).await;
    assert!(is_proved(&release_of(&authority, "good").await));
    assert!(release_of(&authority, "bad").await.refused_in.is_some_and(|left| left <= 1));
    until_async("refused again", || async {
        release_of(&authority, "bad").await.refused_in == Some(0)
    })
    .await;
    assert!(!bad.agent.status().ready);

    // The operator installs the release. The node has no certificate left, so it shows the proof when it rejoins.
    bad.agent.report(report(said(PROGRAM, Some(proof)))).await;
    bad.ready().await;
    until_known(&authority, "bad", is_proved).await;
    assert_eq!(release_of(&authority, "silent").await.refused_in, Some(0));
    until("the last identity has expired", || !silent.agent.status().ready).await;
}

#[tokio::test]
async fn without_the_requirement_a_node_with_an_unlogged_program_goes_on() {
    let publisher = Publisher::new();
    let world = hasty(with_policy(&publisher, None));
    let authority = world.authority().await;
    let bad = world.joined(&authority, "bad", &[]).await;
    bad.agent.report(report(said(BACKDOOR, Some(publisher.proof(PROGRAM, |_| {}))))).await;
    until_known(&authority, "bad", |of| matches!(of.verdict, ReleaseVerdict::Unproved(_))).await;
    assert_eq!(release_of(&authority, "bad").await.refused_in, None);
    for _ in 0..3 {
        let before = bad.identity("node/bad").leaf().serial;
        until("it is renewed", || bad.identity("node/bad").leaf().serial != before).await;
    }
    // Nor is anything said of releases without a policy.
    authority.update(world.ttls, None, ReleaseParams::default());
    assert_eq!(release_of(&authority, "bad").await.verdict, ReleaseVerdict::Unchecked);
}

#[tokio::test]
async fn a_bad_release_in_a_report_costs_nothing_but_itself() {
    let publisher = Publisher::new();
    let world = with_policy(&publisher, Some(HOUR));
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    let other = world.joined(&authority, "b", &[]).await;
    node.agent.shutdown().await;
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();
    let proof = publisher.proof(PROGRAM, |_| {});
    other.agent.report(report(said(PROGRAM, Some(proof.clone())))).await;
    until_known(&authority, "b", is_proved).await;

    let flipped = {
        let at = proof.find("file ").unwrap() + 5;
        let mut bytes = proof.clone().into_bytes();
        bytes[at] ^= 1;
        String::from_utf8(bytes).unwrap()
    };
    let expired = publisher.proof(PROGRAM, |release| {
        release.expires = jiff::Timestamp::from_second(1_700_000_000).unwrap();
    });
    let package = json!({ "sha256": sha256(b"package"), "proof": proof });
    let of = |proof: &str| json!({ "sha256": sha256(PROGRAM), "proof": proof });
    let records: [(Value, &str); 9] = [
        (of("garbage"), "its proof is invalid"),
        (of("\u{1b}[2J{\"\u{202e}\":1}"), "its proof is invalid"),
        (of(&"x".repeat(70_000)), "70000 bytes"),
        (of(&flipped), "does not lead to the root hash"),
        (of(&expired), "expired"),
        (package, "wiretight.deb"),
        (json!({ "sha256": "<b>", "proof": proof }), "not the SHA-256"),
        (json!({ "sha256": sha256(PROGRAM).to_uppercase(), "proof": 7 }), "does not say"),
        (json!([1, 2]), "does not say"),
    ];
    for (n, (record, expected)) in records.iter().enumerate() {
        let version = format!("0.{n}.0");
        let report = json!({ "version": version, "release": record });
        let message = json!({ "type": "report", "request": 3, "report": report });
        let said = exchange(&authority, &config, &message).await;
        assert!(said.contains(r#""kept","request":3"#), "{said}");
        // The rest of the report is kept.
        let reports = authority.reports();
        assert_eq!(reports[&name("a")].report.as_ref().unwrap().version, version);
        let known = release_of(&authority, "a").await;
        let why = known.verdict.problem().expect("it is not proved");
        assert!(why.contains(expected), "{n}: {why}");
        assert!(!why.contains(char::is_control) && why.len() <= 500, "{why:?}");
        assert!(is_proved(&release_of(&authority, "b").await));
    }
    // Control: the good one, and then the same without its proof, which the authority has.
    for record in [of(&proof), json!({ "sha256": sha256(PROGRAM) })] {
        let report = json!({ "version": "1.4.0", "release": record });
        exchange(&authority, &config, &json!({ "type": "report", "request": 3, "report": report }))
            .await;
        assert!(is_proved(&release_of(&authority, "a").await));
    }
    // Another program is not proved by the proof of the one before.
    let report = json!({ "version": "1.4.0", "release": { "sha256": sha256(BACKDOOR) } });
    exchange(&authority, &config, &json!({ "type": "report", "request": 3, "report": report }))
        .await;
    assert!(release_of(&authority, "a").await.verdict.problem().unwrap().contains("no proof"));

    // A newer release says that 1.4.0 has a known fault. From then on, it is refused everywhere, also after a restart.
    let newer = publisher.proof(b"newer", |release| {
        release.version = "1.5.0".parse().unwrap();
        release.minimum = "1.4.1".parse().unwrap();
    });
    let record = json!({ "sha256": sha256(b"newer"), "proof": newer });
    let report = json!({ "version": "1.5.0", "release": record });
    exchange(&authority, &config, &json!({ "type": "report", "request": 3, "report": report }))
        .await;
    assert!(is_proved(&release_of(&authority, "a").await));
    let too_old =
        |of: &NodeRelease| of.verdict.problem().is_some_and(|why| why.contains("older than 1.4.1"));
    until_known(&authority, "b", too_old).await;
    authority.remove_node(name("a")).await.unwrap();
    let authority = world.restart(authority).await;
    until_known(&authority, "b", too_old).await;
    let stored = world.store.list("release/").await.unwrap().0;
    assert_eq!(stored.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["release/b"]);
}
