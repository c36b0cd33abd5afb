//! Totals of nodes at the authority.

use wiretight_proxy::clock::now;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::Grade;
use wiretight_scan::passive::totals::{Count, Hour, Kind, Period, Sum, Way};

use super::*;

const HOUR_SECONDS: u64 = 3600;
const DAY: u64 = 86_400;

fn hour(start: u64, bytes: u64) -> Hour {
    let kind =
        Kind { way: Way::Out, level: Level::Strong, grade: Grade::Seen, protocol: "tls".into() };
    let mut sum = Sum::default();
    sum.add(kind, Count { connections: 1, bytes });
    Hour { start, watched_seconds: 3600, totals: sum.totals() }
}

fn bytes(periods: &[Period]) -> Vec<u64> {
    periods.iter().map(|p| p.totals.by_level()[&Level::Strong].bytes).collect()
}

#[tokio::test]
async fn totals_are_kept_by_node_and_only_replaced_by_the_same_node() {
    let world = World::new();
    let authority = world.authority().await;
    let (a, b) =
        (world.joined(&authority, "a", &[]).await, world.joined(&authority, "b", &[]).await);
    let last = now() / HOUR_SECONDS * HOUR_SECONDS - HOUR_SECONDS;
    assert!(a.agent.totals(hour(last, 5)).await.unwrap());
    assert!(a.agent.totals(hour(last - DAY, 6)).await.unwrap());
    assert!(b.agent.totals(hour(last, 100)).await.unwrap());
    assert!(a.agent.totals(hour(last, 7)).await.unwrap());
    let all = authority.totals(0, u64::MAX).await.unwrap();
    assert_eq!(bytes(&all[&name("a")]), [6, 7]);
    assert_eq!(bytes(&all[&name("b")]), [100]);
    assert_eq!(authority.totals(last, last).await.unwrap()[&name("a")].len(), 1);

    // They are refused and change nothing if they are too old, in the future, or invalid.
    let mut unseen = hour(last, 1);
    unseen.totals.shares[0].kind.grade = Grade::Unknown;
    let odd = hour(last + 1, 1);
    for bad in [hour(last - 9 * DAY, 1), hour(last + 3 * HOUR_SECONDS, 1), unseen, odd] {
        assert!(!a.agent.totals(bad).await.unwrap());
    }
    assert_eq!(authority.totals(0, u64::MAX).await.unwrap(), all);
    // They survive a restart.
    let authority = world.restart(authority).await;
    assert_eq!(authority.totals(0, u64::MAX).await.unwrap(), all);
}

#[tokio::test]
async fn a_stored_day_that_is_unreadable_is_kept_and_does_not_hold_up_other_days() {
    let world = World::new();
    let authority = world.authority().await;
    let a = world.joined(&authority, "a", &[]).await;
    let last = now() / HOUR_SECONDS * HOUR_SECONDS - HOUR_SECONDS;
    let day = last / DAY * DAY;
    let key = Key::new(format!("watch/a/{day:010}")).unwrap();
    let newer = br#"[{"start":0,"length":3600,"watched_seconds":9,"totals_by_group":{}}]"#.to_vec();
    world.store.create(&key, newer.clone()).await.unwrap();
    let why = a.agent.totals(hour(last, 5)).await.unwrap_err().to_string();
    assert!(why.contains(key.as_str()) && why.contains("Update the authority"), "{why}");
    assert_eq!(world.store.get(&key).await.unwrap().unwrap().value, newer);
    // The control: the stream continues, and another day is stored.
    assert!(a.agent.totals(hour(day - HOUR_SECONDS, 6)).await.unwrap());
    let all = authority.totals(0, u64::MAX).await.unwrap();
    assert_eq!(bytes(&all[&name("a")]), [6]);
}

#[tokio::test]
async fn malformed_totals_are_refused_and_do_not_end_the_stream() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    node.agent.shutdown().await;
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();
    let last = now() / HOUR_SECONDS * HOUR_SECONDS - HOUR_SECONDS;
    let many: Vec<Hour> = (0..25).map(|n| hour(last - n * HOUR_SECONDS, 1)).collect();
    let good = serde_json::to_value(hour(last, 1)).unwrap();
    let mut later = good.clone();
    later["shares"][0]["way"] = "sideways".into();
    let mut impossible = good.clone();
    impossible["shares"][0]["bytes"] = (1u64 << 51).into();
    for (hours, why) in [
        (serde_json::json!([{ "start": "x" }]), "newer version"),
        (serde_json::json!([later]), "newer version"),
        (serde_json::json!([impossible]), "more than a machine can transfer"),
        (serde_json::to_value(many).unwrap(), "more than 24 hours"),
        // The control.
        (serde_json::json!([good]), "kept"),
    ] {
        let totals = serde_json::json!({ "type": "totals", "request": 7, "hours": hours });
        let said = exchange(&authority, &config, &totals).await;
        assert!(said.contains(why), "{said}");
    }
    let kept = authority.totals(0, u64::MAX).await.unwrap();
    assert_eq!(bytes(&kept[&name("a")]), [1]);
}

#[tokio::test]
async fn old_days_are_merged_and_very_old_ones_deleted() {
    let world = World::new();
    let today = now() / DAY * DAY;
    let day = |age: u64| {
        let start = today - age * DAY;
        let hours: Vec<Period> =
            (0..24).map(|n| hour(start + n * HOUR_SECONDS, n).into()).collect();
        let key = Key::new(format!("watch/gone/{start:010}")).unwrap();
        (key, serde_json::to_vec(&hours).unwrap())
    };
    for age in [2, 40, 400] {
        let (key, value) = day(age);
        world.store.create(&key, value).await.unwrap();
    }
    let authority = world.authority().await;
    let all = authority.totals(0, u64::MAX).await.unwrap();
    let lengths: Vec<(u64, usize)> = {
        let mut lengths = BTreeMap::new();
        for period in &all[&name("gone")] {
            *lengths.entry(period.length).or_insert(0) += 1;
        }
        lengths.into_iter().collect()
    };
    assert_eq!(lengths, [(HOUR_SECONDS, 24), (DAY, 1)]);
    assert_eq!(bytes(&all[&name("gone")]).iter().sum::<u64>(), 2 * 276);
}
