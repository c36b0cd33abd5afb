//! Logging of hours and days, with a clock that the tests set.

use std::path::Path;

use async_trait::async_trait;
use wiretight_keys::claims::{ExceptionCount, Missed, Modes, NodeCount};
use wiretight_keys::logged;
use wiretight_scan::passive::totals::{Algorithm as Negotiated, Hour, Kind, Period, Sum, Way};
use wiretight_store::MemoryStore;
use wiretight_tlog::cosignature;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Cosigner, LogSigner, Policy, SignedCheckpoint};

use super::*;
use crate::control::report::{ExceptionKind, Explanation};
use crate::log::cosigning::{Answer, Witness};
use crate::log::sequencer::Params;
use crate::log::storage::Directory;

/// The start of a day.
const T: u64 = 1_700_006_400;
const LATE: u64 = 900;

/// Store and log of an authority.
struct World {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    key: String,
    witness: Option<Arc<Cosigner>>,
}

/// A witness that cosigns everything.
struct Signs(Arc<Cosigner>);

#[async_trait]
impl Witness for Signs {
    async fn add_checkpoint(&self, body: String) -> Result<Answer, String> {
        let (_, note) = body.split_once("\n\n").expect("a request");
        let signed = SignedCheckpoint::parse(note).expect("a checkpoint");
        let line = self.0.cosign(signed.unverified(), now()).expect("a signature");
        Ok(Answer::Cosigned(format!("{line}\n")))
    }
}

impl World {
    fn new() -> World {
        let signer = LogSigner::generate(KeyName::new("example.org/log/0").unwrap()).unwrap();
        let key = signer.to_private().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        World { dir, store: Arc::new(MemoryStore::new()), key, witness: None }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new process: the log and the task.
    async fn start(&self) -> Claims {
        let signer = LogSigner::parse(&self.key).unwrap();
        let log = signer.public().clone();
        let (policy, ways) = match &self.witness {
            None => (Policy::self_attested(log), Vec::new()),
            Some(witness) => {
                let key = witness.public();
                let text = format!("log {log}\nwitness w {key}\nquorum w\n");
                let way: Arc<dyn Witness> = Arc::new(Signs(witness.clone()));
                (Policy::parse(text).unwrap(), vec![way])
            }
        };
        let storage = Arc::new(Directory::open(self.path()).unwrap());
        let store = self.store.clone();
        let log = Log::start(Params { signer, policy, ways, storage, store }).await.unwrap();
        while log.checkpoint().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        let times = Times { late: Duration::from_secs(LATE), ..Times::default() };
        Claims::open(self.store.clone(), log, times, Arc::default()).await.unwrap()
    }

    /// The periods in the log, each with its index.
    async fn logged(&self, claims: &Claims) -> Vec<(u64, MeshPeriod)> {
        let mut found = Vec::new();
        for (index, entry) in (0..).zip(claims.log.bundle(0).await.unwrap()) {
            if let Ok(logged::Entry::Period(period)) = logged::Entry::parse(&entry) {
                found.push((index, *period));
            }
        }
        found
    }

    async fn recorded(&self, length: u64, start: u64) -> Option<Record> {
        let entry = self.store.get(&period_key(length, start)).await.unwrap()?;
        serde_json::from_slice(&entry.value).ok()
    }
}

fn period(start: u64, bytes: u64) -> MeshPeriod {
    let mut period = MeshPeriod::new(start, HOUR);
    period.nodes = NodeCount { members: 2, reported: 1 };
    period.watched_seconds = HOUR;
    period.levels.strong = Amount { connections: 1, bytes };
    period
}

#[tokio::test]
async fn an_hour_is_logged_once_whenever_the_process_dies() {
    let world = World::new();
    // It dies after it has decided.
    let mut claims = world.start().await;
    claims.settle(&period(T, 5)).await.unwrap();
    claims.log.close().await;
    let mut claims = world.start().await;
    // What arrives later is not claimed, and a second claim is not made.
    claims.settle(&period(T, 6)).await.unwrap();
    claims.append(T + HOUR).await.unwrap();
    assert_eq!(world.logged(&claims).await, [(0, period(T, 5))]);
    assert_eq!(world.recorded(HOUR, T).await.unwrap().index, Some(0));

    // It dies after the entry was appended, before the store knows that.
    claims.log.append(b"\x7f\x7fother".to_vec()).await.unwrap();
    claims.settle(&period(T + HOUR, 7)).await.unwrap();
    claims.log.append(period(T + HOUR, 7).entry()).await.unwrap();
    claims.log.close().await;
    let mut claims = world.start().await;
    assert_eq!(world.recorded(HOUR, T + HOUR).await.unwrap().index, None);
    claims.append(T + 2 * HOUR).await.unwrap();
    assert_eq!(world.logged(&claims).await, [(0, period(T, 5)), (2, period(T + HOUR, 7))]);
    assert_eq!(world.recorded(HOUR, T + HOUR).await.unwrap().index, Some(2));
    assert_eq!(claims.status.lock().logged_until, Some(T + 2 * HOUR));

    // A process that starts later knows what was logged, and appends nothing.
    claims.log.close().await;
    let mut claims = world.start().await;
    claims.settle(&period(T + HOUR, 8)).await.unwrap();
    claims.append(T + 3 * HOUR).await.unwrap();
    assert_eq!(world.logged(&claims).await.len(), 2);
    assert_eq!(claims.status.lock().logged_until, Some(T + 2 * HOUR));
}

#[tokio::test]
async fn only_the_last_hour_is_logged_and_only_soon_after_its_end() {
    let world = World::new();
    let mut claims = world.start().await;
    // The first start is in this hour: nothing is known of earlier ones.
    assert_eq!(claims.due(T + 60, false).await.unwrap(), None);
    assert_eq!(claims.due(T + HOUR - 1, false).await.unwrap(), None);
    assert_eq!(claims.due(T + HOUR, false).await.unwrap(), Some(T));
    assert_eq!(claims.due(T + HOUR + LATE, false).await.unwrap(), Some(T));
    // Another process, a little later; and one that is too late.
    claims.log.close().await;
    let mut claims = world.start().await;
    assert_eq!(claims.due(T + HOUR + LATE, false).await.unwrap(), Some(T));
    assert_eq!(claims.due(T + HOUR + LATE + 1, false).await.unwrap(), None);
    assert_eq!(claims.status.lock().missed, 1);
    assert_eq!(claims.due(T + HOUR + LATE, false).await.unwrap(), None);
    // The next one is logged.
    assert_eq!(claims.due(T + 2 * HOUR, false).await.unwrap(), Some(T + HOUR));
    // Out of order for three hours.
    assert_eq!(claims.due(T + 4 * HOUR, false).await.unwrap(), None);
    assert_eq!(claims.status.lock().missed, 1 + 3);
}

#[tokio::test]
async fn a_clock_that_is_set_logs_no_hour_of_the_future_and_none_twice() {
    let world = World::new();
    let mut claims = world.start().await;
    claims.due(T + 600, false).await.unwrap();
    // Set to the next hour: this one is not over.
    assert_eq!(claims.due(T + HOUR + 60, true).await.unwrap(), None);
    // Set back: it is logged when it is over.
    assert_eq!(claims.due(T + 700, true).await.unwrap(), None);
    assert_eq!(claims.due(T + HOUR, false).await.unwrap(), Some(T));
    claims.settle(&period(T, 5)).await.unwrap();
    claims.append(T + HOUR).await.unwrap();
    claims.run_in(T + HOUR).await.unwrap();
    // Set back once more: the hour is over again, and was logged.
    assert_eq!(claims.due(T + 60, true).await.unwrap(), None);
    assert_eq!(claims.due(T + HOUR, false).await.unwrap(), None);
    assert_eq!(claims.status.lock().missed, 1);
    assert_eq!(world.logged(&claims).await, [(0, period(T, 5))]);

    // An hour was decided by a clock that was ahead, and the clock is right now: it is decided again when it is over.
    claims.settle(&period(T + 5 * HOUR, 0)).await.unwrap();
    claims.append(T + 2 * HOUR).await.unwrap();
    assert!(world.recorded(HOUR, T + 5 * HOUR).await.is_none());
    claims.settle(&period(T + 5 * HOUR, 9)).await.unwrap();
    claims.append(T + 6 * HOUR).await.unwrap();
    assert_eq!(world.logged(&claims).await[1..], [(1, period(T + 5 * HOUR, 9))]);
}

#[tokio::test]
async fn witnesses_must_agree_that_an_hour_is_over() {
    let mut world = World::new();
    let name = KeyName::new("witness.example/w").unwrap();
    let witness = Cosigner::from_seed(name, cosignature::Algorithm::Ed25519, &[1; 32]).unwrap();
    world.witness = Some(Arc::new(witness));
    let mut claims = world.start().await;
    let current = now() / HOUR * HOUR;
    claims.settle(&period(current + HOUR, 1)).await.unwrap();
    // This machine's clock is ahead by hours.
    claims.append(current + 2 * HOUR).await.unwrap();
    assert!(world.logged(&claims).await.is_empty());
    assert_eq!((claims.waiting.len(), claims.log.status().size), (1, 0));
    // It is set right.
    claims.append(now()).await.unwrap();
    assert!(claims.waiting.is_empty());
    // The control: an hour that is over by all clocks.
    claims.settle(&period(current - HOUR, 1)).await.unwrap();
    claims.append(now()).await.unwrap();
    assert_eq!(world.logged(&claims).await, [(0, period(current - HOUR, 1))]);
}

#[tokio::test]
async fn a_day_is_the_sum_of_its_logged_hours() {
    let world = World::new();
    let mut claims = world.start().await;
    let mut hours = Vec::new();
    for n in (0..24).filter(|n| *n != 7) {
        hours.push(period(T + n * HOUR, n));
        claims.settle(&hours[hours.len() - 1]).await.unwrap();
        claims.run_in(T + (n + 1) * HOUR - 1).await.unwrap();
        claims.append(T + (n + 1) * HOUR).await.unwrap();
        claims.settle_days().await.unwrap();
    }
    assert!(world.recorded(DAY, T).await.is_none(), "the day is not over");
    claims.run_in(T + DAY).await.unwrap();
    claims.settle_days().await.unwrap();
    claims.append(T + DAY).await.unwrap();
    let logged = world.logged(&claims).await;
    assert_eq!(logged[23], (23, MeshPeriod::day(T, &hours)));
    assert_eq!(logged[23].1.levels.strong.bytes, (0..24).sum::<u64>() - 7);
    // Not again, also by a new process.
    claims.settle_days().await.unwrap();
    claims.log.close().await;
    let mut claims = world.start().await;
    claims.run_in(T + DAY + HOUR).await.unwrap();
    claims.settle_days().await.unwrap();
    claims.append(T + DAY + HOUR).await.unwrap();
    assert_eq!(world.logged(&claims).await, logged);

    // Its hours are kept for a month, and the day for longer.
    claims.prune(T + HOURS + DAY - 1).await.unwrap();
    assert!(world.recorded(HOUR, T).await.is_some());
    claims.prune(T + HOURS + DAY).await.unwrap();
    assert!(world.recorded(HOUR, T).await.is_none() && world.recorded(DAY, T).await.is_some());
}

#[tokio::test]
async fn claims_of_a_newer_log_are_restored() {
    let world = World::new();
    let mut claims = world.start().await;
    claims.settle(&period(T, 1)).await.unwrap();
    // The backup is older than the entry, and decided about something else.
    claim_again(&*world.store, &period(T, 2), 17).await.unwrap();
    claim_again(&*world.store, &period(T, 3), 18).await.unwrap();
    let record = world.recorded(HOUR, T).await.unwrap();
    assert_eq!((record.index, record.period()), (Some(17), Some(period(T, 2))));
    claims.log.close().await;
    let mut claims = world.start().await;
    claims.append(T + HOUR).await.unwrap();
    assert!(world.logged(&claims).await.is_empty());
}

fn totals(level: Level, grade: Grade, bytes: u64) -> Sum {
    let kind = Kind { way: Way::Out, level, grade, protocol: "tls".into() };
    let mut sum = Sum::default();
    sum.add(kind, Count { connections: 1, bytes });
    sum
}

fn member(report: Option<NodeReport>, watched_seconds: u32, sum: Option<Sum>) -> Member {
    let hour = |s: Sum| Hour { start: T, watched_seconds, totals: s.totals() };
    Member { report: report.map(Arc::new), totals: sum.map(|s| Period::from(hour(s))) }
}

fn report(version: &str, mode: Option<Mode>, exceptions: Vec<Exception>) -> NodeReport {
    let (version, exceptions) = (version.to_owned(), exceptions.into());
    NodeReport { version, mode, watching: true, exceptions, ..NodeReport::default() }
}

#[test]
fn an_hour_counts_all_members_and_what_they_sent() {
    let exception = |until: Option<u64>| Exception {
        kind: ExceptionKind::Pass,
        what: "10.0.0.8".into(),
        explanation: until.map(|until| Explanation {
            reason: "a printer".into(),
            owner: "ops".into(),
            until,
        }),
    };
    let all = vec![exception(None), exception(Some(T + HOUR)), exception(Some(T + HOUR - 1))];
    let mut mixed = totals(Level::Strong, Grade::Carried, 100);
    for (way, level) in [
        (Way::In, Level::Plaintext),
        (Way::Forwarded, Level::Weak),
        // These do not cross a network.
        (Way::Loopback, Level::Plaintext),
        (Way::Relay, Level::Plaintext),
    ] {
        let kind = Kind { way, level, grade: Grade::Seen, protocol: "http".into() };
        mixed.add(kind, Count { connections: 2, bytes: 10 });
    }
    mixed.gaps.missed_bytes = 7;
    mixed.gaps.resyncs = 1;
    let unreadable = NodeReport { more_exceptions: 2, ..report("1.2.3+mine", None, vec![]) };
    let members = [
        member(Some(report("0.1.0", Some(Mode::Strict), all)), 3600, Some(mixed)),
        // An older node sends no report.
        member(None, 1800, Some(totals(Level::Strong, Grade::Seen, 50))),
        // A silent one.
        member(Some(unreadable), 0, None),
        member(Some(report("secret project", Some(Mode::Observe), vec![])), 0, None),
    ];
    let hour = sum(T, &members);
    assert_eq!(hour.nodes, NodeCount { members: 4, reported: 2 });
    assert_eq!(hour.watched_seconds, 5400);
    let amount = |connections, bytes| Amount { connections, bytes };
    let expected = Levels {
        unknown: amount(0, 7),
        plaintext: amount(2, 10),
        weak: amount(2, 10),
        acceptable: amount(0, 0),
        strong: amount(2, 150),
    };
    assert_eq!((hour.levels, hour.carried), (expected, amount(1, 100)));
    assert_eq!(hour.missed, Missed { bytes: 7, resyncs: 1, lost_packets: 0 });
    assert_eq!(hour.modes, Modes { strict: 1, permissive: 0, observe: 1, none: 2 });
    assert_eq!(hour.exceptions, ExceptionCount { explained: 1, expired: 1, unexplained: 3 });
    let releases: Vec<_> = hour.releases.iter().map(|r| (&*r.version, r.nodes)).collect();
    assert_eq!(releases, [("0.1.0", 1), ("1.2.3", 1), ("other", 1)]);
    let of_protocols = hour.protocols.iter().map(|p| p.amount.bytes).sum::<u64>();
    assert_eq!(of_protocols + 7, 177);
    assert_eq!(MeshPeriod::parse(&hour.entry()[2..]).unwrap(), hour);
}

#[test]
fn algorithms_of_all_nodes_are_added_up() {
    let negotiated = |key_exchange: &'static str, post_quantum, bytes| {
        let mut sum = totals(Level::Strong, Grade::Seen, bytes);
        let algorithm = Negotiated {
            version: "TLS 1.3".into(),
            key_exchange: key_exchange.into(),
            cipher: "TLS_AES_128_GCM_SHA256".into(),
            post_quantum,
        };
        sum.add_algorithm(algorithm, Count { connections: 1, bytes });
        member(None, 3600, Some(sum))
    };
    let members = [
        negotiated("X25519", false, 5),
        negotiated("X25519MLKEM768", true, 20),
        negotiated("X25519", false, 4),
    ];
    let hour = sum(T, &members);
    let rows: Vec<_> = hour.algorithms.iter().map(|a| (&*a.key_exchange, a.amount.bytes)).collect();
    assert_eq!(rows, [("X25519MLKEM768", 20), ("X25519", 9)]);
    assert_eq!(hour.post_quantum, Amount { connections: 1, bytes: 20 });
    assert_eq!(MeshPeriod::parse(&hour.entry()[2..]).unwrap(), hour);
}

#[test]
fn names_that_a_node_invents_are_not_logged() {
    let mut sum = totals(Level::Strong, Grade::Seen, 100);
    let kind = Kind {
        way: Way::Out,
        level: Level::Strong,
        grade: Grade::Seen,
        protocol: "call-555-0100-and-ask-for-bob".into(),
    };
    sum.add(kind, Count { connections: 1, bytes: 7 });
    let names = |version: &'static str, key_exchange: &'static str, cipher: &'static str| {
        let [version, key_exchange, cipher] = [version, key_exchange, cipher].map(Into::into);
        Negotiated { version, key_exchange, cipher, post_quantum: false }
    };
    sum.add_algorithm(
        names("TLS 1.3", "x25519", "db-password is hunter2"),
        Count { connections: 1, bytes: 5 },
    );
    sum.add_algorithm(
        names("SSH 2.0", "x25519@internal.example", "aes256-ctr"),
        Count { connections: 1, bytes: 3 },
    );
    // The control: such totals are accepted, and kept as they are.
    Hour { start: T, watched_seconds: 3600, totals: sum.totals() }.check().unwrap();
    let member = member(None, 3600, Some(sum));
    let stored = serde_json::to_string(&member.totals).unwrap();
    for invented in ["bob", "hunter2", "internal"] {
        assert!(stored.contains(invented), "{stored}");
    }
    let hour = super::sum(T, &[member]);
    let protocols: Vec<_> = hour.protocols.iter().map(|p| (&*p.protocol, p.amount.bytes)).collect();
    assert_eq!(protocols, [("tls", 100), ("other", 7)]);
    let algorithms: Vec<_> =
        hour.algorithms.iter().map(|a| (&*a.version, &*a.key_exchange, &*a.cipher)).collect();
    assert_eq!(algorithms, [("TLS 1.3", "x25519", "other"), ("SSH 2.0", "other", "aes256-ctr")]);
    assert_eq!(hour.levels.strong.bytes, 107);
}

#[test]
fn a_node_that_lies_cannot_make_the_hour_invalid_or_claim_more_than_one_node_can() {
    let liar = || {
        let mut sum = totals(Level::Strong, Grade::Carried, u64::MAX);
        sum.gaps.missed_bytes = u64::MAX;
        member(None, u32::MAX, Some(sum))
    };
    let honest = member(None, 3600, Some(totals(Level::Plaintext, Grade::Seen, 10)));
    let hour = sum(T, &[liar(), honest, liar()]);
    assert_eq!(hour.watched_seconds, 3 * HOUR);
    // It can hide itself in a flood, but not what the others have sent.
    assert_eq!(hour.levels.plaintext.bytes, 10);
    assert_eq!(hour.levels.strong.bytes, u64::MAX);
    MeshPeriod::parse(&hour.entry()[2..]).unwrap();
    // An empty mesh.
    let none = sum(T, &[]);
    assert_eq!(none.nodes, NodeCount::default());
    MeshPeriod::parse(&none.entry()[2..]).unwrap();
}
