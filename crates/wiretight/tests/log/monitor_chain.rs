//! Days of ordinary renewals raise no alert; a stolen CA key does, and so does a log that hides it.
//!
//! `WIRETIGHT_DAYS=10 cargo test -p wiretight --test log renewals` for ten simulated days.

use std::sync::Arc;
use std::time::Duration;

use wiretight::log::monitor::alarm::Alarm;
use wiretight::log::monitor::follow::{Follower, Look};
use wiretight::log::monitor::{Source, Watched};
use wiretight::log::reader::Reader;
use wiretight::private_dir::PrivateDir;
use wiretight_keys::token::hex;
use wiretight_keys::{Csr, KeyLink, Period, Profile, PublicKey, Signer, SigningKey, SpiffeId, Tbs};
use wiretight_tlog::Policy;

use super::rig::{Log, cosigner, policy, write};

const HALF_HOUR: u64 = 1800;

/// An identity of a node.
struct Holder {
    id: SpiffeId,
    key: SigningKey,
}

impl Holder {
    fn new(id: &str) -> Holder {
        Holder { id: id.parse().unwrap(), key: SigningKey::generate().unwrap() }
    }

    fn line(&self) -> String {
        let key = PublicKey::new(self.key.public_key()).unwrap();
        format!("{} sha256:{}\n", self.id.id, hex(&key.hash()))
    }

    /// Its certificate request.
    fn ask(&self, next: &SigningKey) -> Csr {
        let link = link(&self.id, &self.key, next);
        Csr::parse(&Csr::create_linked(&self.id, next, Some(&link)).unwrap()).unwrap()
    }

    /// The entry of its next certificate, whose key it uses from then on.
    fn renew(&mut self, now: u64) -> Vec<u8> {
        let next = SigningKey::generate().unwrap();
        let csr = self.ask(&next);
        self.key = next;
        issue(&csr.id, &csr.key, csr.link.as_ref(), now)
    }
}

fn link(id: &SpiffeId, before: &SigningKey, next: &SigningKey) -> KeyLink {
    let previous = PublicKey::new(before.public_key()).unwrap();
    KeyLink::new(id, previous, &next.public_key(), |message| before.sign(message)).unwrap()
}

/// The log entry of a certificate that the CA key can sign.
fn issue(id: &SpiffeId, key: &PublicKey, link: Option<&KeyLink>, now: u64) -> Vec<u8> {
    let period = Period { not_before: now, not_after: now + 2 * HALF_HOUR };
    let algorithm = SigningKey::generate().unwrap().algorithm();
    let profile = Profile::Leaf(id.clone());
    let tbs = Tbs::new(&profile, key.spki(), period, [0x47; 16], None, algorithm).unwrap();
    let tbs = match link {
        Some(link) => tbs.linked(link).unwrap(),
        None => tbs,
    };
    tbs.entry().unwrap()
}

/// A log, its monitor and a clock.
struct World {
    dir: tempfile::TempDir,
    log: Log,
    now: u64,
}

impl World {
    fn new(log: Log) -> World {
        World { dir: tempfile::tempdir().unwrap(), log, now: 1_800_000_000 }
    }

    fn monitor(&self) -> Follower {
        let policy = Policy::parse(policy(&self.log, &[&cosigner(0)])).unwrap();
        let source = Source {
            origin: self.log.origin(),
            policy,
            reader: Some(Reader::directory(self.dir.path().join("log"))),
            shares_place: false,
        };
        let watched = Watched {
            max_silence: Duration::from_secs(3600),
            expect: Some(self.dir.path().join("expect")),
            watch: ["service/db", "service/web"].map(|name| name.parse().unwrap()).into(),
        };
        Follower::open(&self.dir.path().join("state"), source, Arc::new(watched)).unwrap()
    }

    fn publish(&self) {
        let size = self.log.entries.len();
        let signed = self.log.cosigned(size, &[&cosigner(0)], self.now);
        self.log.publish(&self.dir.path().join("log"), &signed);
    }

    async fn look(&self, monitor: &mut Follower) -> Look {
        let dir = PrivateDir::open(self.dir.path().join("alarm")).unwrap();
        let alarm = Alarm::open(dir, None, Duration::from_secs(3600)).unwrap();
        monitor.look(self.now, &alarm).await
    }

    /// Adds this entry to the log; returns the alerts of the monitor within a minute.
    async fn sees(&mut self, monitor: &mut Follower, entry: Vec<u8>) -> usize {
        self.now += 20;
        self.log.entries.push(entry);
        self.publish();
        let look = self.look(monitor).await;
        assert_eq!((look.problem, look.entries), (None, 1));
        look.alerts
    }
}

#[tokio::test]
async fn days_of_renewals_raise_no_alert_and_a_stolen_authority_is_reported_within_a_minute() {
    let days: usize = std::env::var("WIRETIGHT_DAYS").map_or(1, |days| days.parse().unwrap());
    let mut world = World::new(Log::of("log.example/a", 0));
    let mut holders = [
        Holder::new("spiffe://example.org/service/db"),
        Holder::new("spiffe://example.org/service/db"),
        Holder::new("spiffe://example.org/service/web"),
    ];
    let list: String = holders.iter().map(Holder::line).collect();
    write(world.dir.path(), "expect", &list);
    let mut monitor = world.monitor();
    for holder in &holders {
        let key = PublicKey::new(holder.key.public_key()).unwrap();
        world.log.entries.push(issue(&holder.id, &key, None, world.now));
    }
    for step in 0..days * 48 {
        world.now += HALF_HOUR;
        for (n, holder) in holders.iter_mut().enumerate() {
            // A certificate that never arrives: the node requests one again with another key.
            if (step + n).is_multiple_of(10) {
                let lost = holder.ask(&SigningKey::generate().unwrap());
                let entry = issue(&lost.id, &lost.key, lost.link.as_ref(), world.now);
                world.log.entries.push(entry);
            }
            world.log.entries.push(holder.renew(world.now));
        }
        world.publish();
        if step % 20 == 19 {
            drop(monitor); // it is restarted from time to time
            monitor = world.monitor();
        }
        let look = world.look(&mut monitor).await;
        assert!(look.is_quiet(), "after {step} half hours: {look:?}");
    }

    // A thief with the CA key has no node's key. Whatever link they put into a certificate, it is reported.
    let [db, _, web] = &holders;
    let thief = SigningKey::generate().unwrap();
    let key = PublicKey::new(thief.public_key()).unwrap();
    let next = SigningKey::generate().unwrap();
    let seen = db.ask(&next).link.unwrap();
    let (own, others) = (link(&db.id, &thief, &thief), link(&db.id, &web.key, &thief));
    for link in [None, Some(&seen), Some(&own), Some(&others)] {
        let entry = issue(&db.id, &key, link, world.now);
        assert_eq!(world.sees(&mut monitor, entry).await, 1, "{link:?}");
    }
    // The control: ordinary renewals still raise no alert, also after these.
    for holder in &mut holders {
        let entry = holder.renew(world.now);
        assert_eq!(world.sees(&mut monitor, entry).await, 0);
    }
    // The same with a log that withholds entries: the monitor knows that it could not read all signed entries.
    world.now += 20;
    let entry = issue(&holders[0].id, &key, None, world.now);
    world.log.entries.push(entry);
    world.publish();
    std::fs::remove_dir_all(world.dir.path().join("log/tile/entries")).unwrap();
    let look = world.look(&mut monitor).await;
    assert!(look.problem.is_some() && !look.is_quiet(), "{look:?}");
    world.publish();
    assert_eq!(world.look(&mut monitor).await.alerts, 1);

    // Removing a key from the list also removes all keys that followed it.
    let without: String = list.lines().skip(1).map(|line| format!("{line}\n")).collect();
    write(world.dir.path(), "expect", without);
    for (n, holder) in holders.iter_mut().enumerate() {
        let entry = holder.renew(world.now);
        assert_eq!(world.sees(&mut monitor, entry).await, usize::from(n == 0), "{n}");
    }
}
