//! Obtains cosignatures for checkpoints (C2SP tlog-witness, the log's side).
//!
//! Each witness has its own task, which takes the newest round when it has finished the previous one: a slow witness
//! misses rounds but delays none. When a witness reports that it holds another size, the consistency proof is computed
//! from that size.
//!
//! Responses of witnesses are not trusted. One cosignature of each is kept, verified and with a time close to now; the
//! rest of the response is dropped. A misbehaving witness is named and does not affect the others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use wiretight_proxy::clock::now;
use wiretight_tlog::policy::MAX_CLOCK_SKEW;
use wiretight_tlog::{Hash, Policy, Signature, SignedCheckpoint, TreeError, WitnessKey};

use super::sequencer::read_nodes;
use super::storage::Storage;

/// How long a witness may take to respond.
const DEADLINE: Duration = Duration::from_secs(10);
/// How far a cosignature's time may differ from this machine's clock: half of the verifiers' tolerance, so that verifiers
/// whose own clocks are slightly wrong accept it as well.
const MAX_OFF: u64 = MAX_CLOCK_SKEW / 2;
/// The most lines of a response that are read.
const MAX_LINES: usize = 64;
/// The shortest and longest pause between attempts with a witness that does not respond.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// A witness's response to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The witness cosigned it: signature lines.
    Cosigned(String),
    /// The witness holds another size than the proof starts from.
    Holds(u64),
    /// The proof is not valid for the tree that the witness has cosigned, or it has cosigned another tree of this size.
    /// The reason is for people.
    Inconsistent(String),
    /// The witness refuses. The reason is for people.
    Refused(String),
}

/// A connection to a witness.
#[async_trait]
pub trait Witness: Send + Sync {
    /// Sends an `add-checkpoint` request. An error means that there was no response.
    async fn add_checkpoint(&self, body: String) -> Result<Answer, String>;

    /// The last checkpoint of this log that the witness has cosigned, if it publishes that.
    async fn latest(&self, _origin: &str) -> Option<SignedCheckpoint> {
        None
    }
}

/// The status of a witness, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessStatus {
    /// Its name in the policy.
    pub name: String,
    /// The size of the last checkpoint that it cosigned.
    pub size: Option<u64>,
    /// When it did, in seconds since 1970.
    pub cosigned_at: Option<u64>,
    /// What is wrong with its last response, or that there was none.
    pub problem: Option<String>,
}

/// A checkpoint that is to be cosigned.
struct Round {
    number: u64,
    signed: SignedCheckpoint,
    /// The previous size, and the consistency proof from there.
    from: (u64, Vec<Hash>),
}

/// A witness that holds a larger or another tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    pub witness: String,
    /// The size of its tree.
    pub holds: u64,
}

/// The witnesses of a policy.
pub struct Cosigning {
    policy: Policy,
    round: watch::Sender<Option<Arc<Round>>>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    round: u64,
    /// The verified cosignatures of this round, by the witness's index.
    cosigned: BTreeMap<usize, Signature>,
    /// The witnesses that have reported what they hold.
    heard: BTreeMap<usize, ()>,
    /// The witnesses that claim to hold a larger or another tree, and whether they have proved it.
    ahead: BTreeMap<usize, (Ahead, bool)>,
    status: Vec<WitnessStatus>,
}

impl Cosigning {
    /// Starts the tasks for the witnesses of a policy; `ways` are in its order.
    pub fn start(
        policy: Policy,
        ways: Vec<Arc<dyn Witness>>,
        storage: Arc<dyn Storage>,
    ) -> Cosigning {
        let (shared, mut tasks) = (Arc::new(Shared::default()), JoinSet::new());
        let status = |name: &str| WitnessStatus { name: name.to_owned(), ..Default::default() };
        shared.state.lock().status = policy.witnesses().iter().map(|w| status(&w.name)).collect();
        let round = watch::channel(None).0;
        for (place, way) in ways.into_iter().enumerate() {
            let talk = Talk {
                place,
                way,
                storage: storage.clone(),
                policy: policy.clone(),
                shared: shared.clone(),
                holds: None,
            };
            tasks.spawn(talk.run(round.subscribe()));
        }
        Cosigning { policy, round, shared, _tasks: tasks }
    }

    /// The status of each witness.
    pub fn status(&self) -> Vec<WitnessStatus> {
        self.shared.state.lock().status.clone()
    }

    /// The witnesses that have not cosigned a tree of this size, and why, for people.
    pub fn waiting_for(&self, size: u64) -> String {
        let why = |w: &WitnessStatus| match &w.problem {
            Some(problem) => format!("{} ({problem})", w.name),
            None => format!("{} (no response yet)", w.name),
        };
        let status = self.status();
        let late = status.iter().filter(|w| w.problem.is_some() || w.size != Some(size));
        late.map(why).collect::<Vec<_>>().join(", ")
    }

    /// Waits until the policy accepts the checkpoint, however long that takes, and adds all cosignatures received until
    /// then, one of each witness.
    ///
    /// With `everyone`, it also waits until a witness of every possible quorum has reported what it holds. It fails if one
    /// proves, with a checkpoint signed by the log, that it holds a larger or another tree. So no checkpoint that was ever
    /// accepted by a verifier is lost here. Claims without proof are ignored as long as a quorum is possible without those
    /// witnesses. (Without `everyone`, such a witness only raises an alarm, and the quorum decides.)
    pub async fn cosign(
        &self,
        signed: SignedCheckpoint,
        from: (u64, Vec<Hash>),
        everyone: bool,
    ) -> Result<SignedCheckpoint, Ahead> {
        let number = {
            let mut state = self.shared.state.lock();
            state.round += 1;
            state.cosigned.clear();
            state.round
        };
        self.round.send_replace(Some(Arc::new(Round { number, signed: signed.clone(), from })));
        loop {
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.state.lock();
                let ahead = &state.ahead;
                let proved = ahead.values().find(|(_, proved)| *proved);
                let all = self.policy.is_in_every_quorum(|n| ahead.contains_key(&n));
                let stops = proved.or_else(|| ahead.values().next().filter(|_| all));
                if let Some((ahead, _)) = stops.filter(|_| everyone) {
                    return Err(ahead.clone());
                }
                let enough = self.policy.is_quorum(|n| state.cosigned.contains_key(&n));
                let heard =
                    !everyone || self.policy.is_in_every_quorum(|n| state.heard.contains_key(&n));
                if enough && heard {
                    let mut cosigned = signed.clone();
                    state.cosigned.values().cloned().for_each(|s| cosigned.add(s));
                    // The same check that verifiers make.
                    match self.policy.witnessed(&cosigned) {
                        Ok(_) => return Ok(cosigned),
                        Err(e) => tracing::error!("verifiers would refuse the cosignatures: {e}"),
                    }
                }
            }
            changed.await;
        }
    }
}

impl Shared {}

/// The task for one witness.
struct Talk {
    place: usize,
    way: Arc<dyn Witness>,
    storage: Arc<dyn Storage>,
    policy: Policy,
    shared: Arc<Shared>,
    /// The size that the witness holds, once it has reported it.
    holds: Option<u64>,
}

/// The result of checking a witness's response.
struct Cosigned {
    /// Verified, with a time close to now.
    signature: Signature,
    /// What is wrong with the rest of the response.
    fault: Option<String>,
}

impl Cosigned {
    /// Checks the signature lines of a response. The error says what is wrong if none is usable.
    fn read(
        key: &WitnessKey,
        signed: &SignedCheckpoint,
        lines: &str,
        now: u64,
    ) -> Result<Cosigned, String> {
        let lines = lines.lines().take(MAX_LINES).filter_map(|line| Signature::parse(line).ok());
        let (mut best, mut junk, mut off) = (None, 0, None);
        for signature in lines.filter(|s| key.is_named_by(s)) {
            let mut cosigned = signed.clone();
            cosigned.add(signature.clone());
            match key.cosigned(&cosigned) {
                None => junk += 1,
                Some(time) if time.abs_diff(now) > MAX_OFF => off = Some(time),
                Some(time) => {
                    if best.as_ref().is_none_or(|(newest, _)| time > *newest) {
                        best = Some((time, signature));
                    }
                }
            }
        }
        let off = off.map(|time| {
            let (by, way) = (time.abs_diff(now), if time > now { "ahead of" } else { "behind" });
            format!(
                "its cosignature has a time that is {by} s {way} this machine's clock, so nodes would refuse it: one of the two clocks is probably wrong (check with `timedatectl`)"
            )
        });
        let junk = (junk > 0).then(|| {
            format!("{junk} lines of its response have its key ID but are not its cosignatures; they were dropped")
        });
        let nothing = || "its response contains no cosignature by the key in the policy".to_owned();
        match best {
            Some((_, signature)) => Ok(Cosigned { signature, fault: junk.or(off) }),
            None => Err(off.or(junk).unwrap_or_else(nothing)),
        }
    }
}

/// Why an attempt failed.
enum Failed {
    /// Try again at once: the size that the witness holds is known now.
    Again,
    /// Try again later.
    Later(String),
    /// The witness holds a larger or another tree.
    Ahead(u64),
}

impl Talk {
    async fn run(mut self, mut rounds: watch::Receiver<Option<Arc<Round>>>) {
        let (mut done, mut pause, mut again) = (0, RETRY.0, 0);
        loop {
            let round = rounds.borrow_and_update().clone();
            let Some(round) = round.filter(|r| r.number != done) else {
                match rounds.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            match self.submit(&round).await {
                Ok(cosigned) => {
                    (done, pause, again) = (round.number, RETRY.0, 0);
                    self.cosigned(&round, cosigned);
                }
                // A witness that reports a new size each time is treated like one that does not respond.
                Err(Failed::Again) if again < 3 => again += 1,
                Err(Failed::Ahead(holds)) => {
                    done = round.number;
                    let proved = self.proves_ahead(&round).await;
                    self.ahead(&round, holds, proved);
                }
                Err(failed) => {
                    let why = match failed {
                        Failed::Later(why) => why,
                        _ => "it reports a different size at each request".into(),
                    };
                    self.problem(why);
                    again = 0;
                    tokio::select! {
                        () = sleep(pause) => pause = (pause * 2).min(RETRY.1),
                        changed = rounds.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    }

    async fn submit(&mut self, round: &Round) -> Result<Cosigned, Failed> {
        let later = |e: &dyn fmt::Display| Failed::Later(e.to_string());
        let checkpoint = round.signed.unverified();
        let size = checkpoint.size;
        // A witness that has reported nothing yet most likely holds the previous size.
        let old = self.holds.unwrap_or(round.from.0).min(size);
        let proof = if old == round.from.0 {
            round.from.1.clone()
        } else {
            let prove = |read: &mut dyn FnMut(_) -> Result<Hash, TreeError>| {
                wiretight_tlog::tree::consistency_proof(old, size, read)
            };
            read_nodes(&*self.storage, size, prove).await.map_err(|e| later(&e))?
        };
        let mut body = format!("old {old}\n");
        proof.iter().for_each(|hash| body.push_str(&format!("{hash}\n")));
        body.push_str(&format!("\n{}", round.signed));
        let answer = timeout(DEADLINE, self.way.add_checkpoint(body)).await;
        match answer.map_err(|_| later(&"it does not respond"))?.map_err(|e| later(&e))? {
            Answer::Cosigned(lines) => {
                let key = &self.policy.witnesses()[self.place].key;
                let cosigned = Cosigned::read(key, &round.signed, &lines, now());
                let cosigned = cosigned.map_err(Failed::Later)?;
                self.holds = Some(size);
                Ok(cosigned)
            }
            // A larger tree, or another one of the offered size.
            Answer::Holds(held) if held > size || held == old => Err(Failed::Ahead(held)),
            Answer::Holds(held) => {
                self.holds = Some(held);
                self.shared.state.lock().heard.insert(self.place, ());
                Err(Failed::Again)
            }
            // It has cosigned another tree of the offered size.
            Answer::Inconsistent(_) if old == size && size > 0 => Err(Failed::Ahead(size)),
            Answer::Inconsistent(why) | Answer::Refused(why) => Err(Failed::Later(why)),
        }
    }

    fn cosigned(&self, round: &Round, cosigned: Cosigned) {
        let mut state = self.shared.state.lock();
        state.heard.insert(self.place, ());
        state.ahead.remove(&self.place);
        if state.round == round.number {
            state.cosigned.insert(self.place, cosigned.signature);
        }
        let status = &mut state.status[self.place];
        match (status.problem.take(), cosigned.fault) {
            (Some(problem), None) => {
                tracing::info!(witness = %status.name, "the witness cosigns again (problem before: {problem})");
            }
            (problem, Some(fault)) => {
                if problem.as_ref() != Some(&fault) {
                    tracing::warn!(witness = %status.name, "the witness misbehaves: {fault}");
                }
                status.problem = Some(fault);
            }
            (None, None) => {}
        }
        status.size = Some(round.signed.unverified().size);
        status.cosigned_at = Some(now());
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Whether the witness has a checkpoint signed by the log, of a larger or another tree.
    async fn proves_ahead(&self, round: &Round) -> bool {
        let own = round.signed.unverified();
        let shown = timeout(DEADLINE, self.way.latest(&own.origin)).await.ok().flatten();
        let log = |shown: &SignedCheckpoint| {
            let logs = self.policy.logs().iter();
            logs.into_iter().any(|log| shown.verified_by(&log.key).is_some())
        };
        shown.filter(log).is_some_and(|shown| {
            let shown = shown.unverified();
            shown.origin == own.origin
                && (shown.size > own.size || shown.size == own.size && shown.root != own.root)
        })
    }

    fn ahead(&self, round: &Round, holds: u64, proved: bool) {
        let size = round.signed.unverified().size;
        let what = if holds > size { "a larger" } else { "another" };
        let proof =
            if proved { "proves it with the log's signature" } else { "gives no proof of it" };
        let why = format!(
            "it holds {what} tree of {holds} entries, while this log has {size}; it {proof}"
        );
        tracing::error!(
            "ALARM: the log was signed elsewhere or reset to an older state, or the witness is wrong: {why}"
        );
        self.problem(why);
        let mut state = self.shared.state.lock();
        let witness = state.status[self.place].name.clone();
        state.ahead.insert(self.place, (Ahead { witness, holds }, proved));
        drop(state);
        self.shared.changed.notify_waiters();
    }

    fn problem(&self, why: String) {
        let mut state = self.shared.state.lock();
        let status = &mut state.status[self.place];
        if status.problem.as_ref() != Some(&why) {
            tracing::warn!(witness = %status.name, "the witness does not cosign: {why}");
            status.problem = Some(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wiretight_tlog::cosignature::Algorithm;
    use wiretight_tlog::note::KeyName;
    use wiretight_tlog::{Checkpoint, Cosigner, LogSigner};

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn one_verified_current_cosignature_of_a_response_is_kept_and_the_rest_is_reported() {
        let name = |text: &str| KeyName::new(text).unwrap();
        let log = LogSigner::generate(name("log.example/a")).unwrap();
        let checkpoint = |size| Checkpoint {
            origin: "log.example/a".into(),
            size,
            root: Hash::leaf(b"x"),
            extensions: Vec::new(),
        };
        let witness =
            Cosigner::from_seed(name("witness.example/w"), Algorithm::Ed25519, &[1; 32]).unwrap();
        let signed = checkpoint(7).sign(&log).unwrap();
        let good = |time| witness.cosign(&checkpoint(7), time).unwrap();
        let junk = |n: u8| Signature { bytes: vec![n; 72], ..good(NOW) };
        let read = |lines: &[Signature]| {
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let read = Cosigned::read(witness.public(), &signed, &lines, NOW);
            read.map(|c| (c.signature, c.fault))
        };
        assert_eq!(read(&[good(NOW)]), Ok((good(NOW), None)));
        // Several valid ones are no fault: the newest is kept.
        assert_eq!(read(&[good(NOW - 5), good(NOW), good(NOW - 9)]), Ok((good(NOW), None)));
        for edge in [NOW - MAX_OFF, NOW + MAX_OFF] {
            assert_eq!(read(&[good(edge)]), Ok((good(edge), None)));
        }
        // Junk under the same key is dropped and reported, however much and wherever it is.
        for at in [0, 20] {
            let mut lines: Vec<_> = (0..20).map(junk).collect();
            lines.insert(at, good(NOW));
            let (kept, fault) = read(&lines).unwrap();
            assert_eq!(kept, good(NOW));
            assert!(fault.unwrap().contains("20 lines"));
        }
        // A cosignature of another time or another checkpoint is useless.
        for (time, word) in
            [(1, "behind"), (NOW - MAX_OFF - 1, "behind"), (NOW + MAX_OFF + 1, "ahead of")]
        {
            assert!(read(&[good(time)]).unwrap_err().contains(word), "{time}");
            let (kept, fault) = read(&[good(time), good(NOW)]).unwrap();
            assert!(kept == good(NOW) && fault.unwrap().contains(word));
        }
        let other = witness.cosign(&checkpoint(8), NOW).unwrap();
        assert!(read(&[other]).unwrap_err().contains("not its cosignatures"));
        assert!(read(&[]).is_err());
    }
}
