//! Verification of an archive. Everything in it is hostile until it is verified: sizes, times, texts and proofs.
//!
//! 1. The bytes are exactly those that the writer makes for these files.
//! 2. Each file has its hash in the manifest.
//! 3. The log part has a checkpoint. The caller decides by a policy whether it believes that ([`Opened::checkpoint`]).
//! 4. Each hour and day is in the tree of that checkpoint, and each day is the sum of its hours.
//! 5. What is computed from other files is computed again, if the same release wrote it.

use std::collections::BTreeMap;

use wiretight_keys::claims::{Amount, DAY, HOUR, MeshPeriod, PERIOD};
use wiretight_scan::report::clean;
use wiretight_tlog::tree::{MAX_PROOF, verify_inclusion};
use wiretight_tlog::{Checkpoint, Hash, Policy, SignedCheckpoint};

use super::archive::{self, Damage, File, MANIFEST, Read};
use super::{FACTS, HEAD, Head, Inputs, KIND, LOG, LogPart, PAGE, PROGRAM, VERSION, Window, named};
use crate::proof::facts::{Facts, LoggedPeriod};

/// The largest of the files that are parsed, in bytes. A year takes about 9 MB.
const MAX_LOG: usize = 24 << 20;
const MAX_FACTS: usize = 64 << 20;
const MAX_HEAD: usize = 4096;
/// An hour is logged and cosigned within this time after its end, in seconds.
const TO_LOG: u64 = 1800;
const HOURS_OF_DAY: usize = 24;
/// Of one kind of damage, so many are listed.
const LISTED: usize = 20;

/// An archive that was taken apart. Nothing of it is proved yet.
pub struct Opened<'a> {
    read: Option<Read<'a>>,
    head: Option<Head>,
    log: Option<(LogPart, SignedCheckpoint)>,
    damage: Vec<Damage>,
}

/// The result of a verification.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Where the archive is not what it should be. If there is any, it is to be refused.
    pub damage: Vec<Damage>,
    /// What was verified.
    pub verified: Vec<String>,
    /// What is only the operator's word.
    pub word: Vec<String>,
    /// What is not there, but should be.
    pub missing: Vec<String>,
}

/// Takes an archive apart, and compares the files with the manifest.
pub fn open(bytes: &[u8]) -> Opened<'_> {
    let mut opened = Opened { read: None, head: None, log: None, damage: Vec::new() };
    let read = match archive::read(bytes) {
        Ok(read) => read,
        Err(damage) => {
            opened.damage.push(damage);
            return opened;
        }
    };
    opened.damage = read.against_manifest();
    let head = part(&read, HEAD, MAX_HEAD).and_then(|bytes| {
        let head: Head = serde_json::from_slice(bytes).map_err(|e| Damage::new(HEAD, e.to_string()))?;
        match () {
            () if head.kind != KIND => Err(Damage::new(HEAD, "this is no archive of an audit")),
            () if head.version != VERSION => Err(Damage::new(
                HEAD,
                format!(
                    "the archive has version {} of the format, and this release knows only {VERSION}; verify it with the release {} or a later one",
                    head.version,
                    clean(&head.program)
                ),
            )),
            () if head.made != read.time => {
                Err(Damage::new(HEAD, "the files have another time than the export"))
            }
            () => match Window::new(head.window.from, head.window.to) {
                Ok(_) => Ok(head),
                Err(why) => Err(Damage::new(HEAD, why.to_string())),
            },
        }
    });
    let head = opened.keep(head);
    let log = part(&read, LOG, MAX_LOG).and_then(|bytes| {
        let log: LogPart = serde_json::from_slice(bytes).map_err(|e| Damage {
            period: near(bytes, e.column()),
            ..Damage::new(LOG, e.to_string())
        })?;
        if log.version != VERSION {
            return Err(Damage::new(LOG, "it has another version of the format"));
        }
        let signed = SignedCheckpoint::parse(&log.checkpoint);
        let signed = signed.map_err(|e| Damage::new(LOG, format!("its checkpoint: {e}")))?;
        Ok((log, signed))
    });
    opened.log = opened.keep(log);
    opened.head = head;
    opened.read = Some(read);
    opened
}

/// A file that is parsed.
fn part<'a>(read: &Read<'a>, name: &str, max: usize) -> Result<&'a [u8], Damage> {
    match read.get(name) {
        None => Err(Damage::new(name, "it is missing")),
        Some(bytes) if bytes.len() > max => {
            Err(Damage::new(name, format!("it is larger than {max} bytes")))
        }
        Some(bytes) => Ok(bytes),
    }
}

/// The hour or day at a place in a damaged log part; or the one before, if the place itself cannot be read.
fn near(bytes: &[u8], place: usize) -> Option<String> {
    const END: &[u8] = b"]},";
    let before = bytes.get(..place).unwrap_or(bytes);
    let end_of_entry = |text: &[u8]| text.windows(END.len()).rposition(|end| end == END);
    let Some(end) = end_of_entry(before) else { return period_of(bytes) };
    let after = || {
        let start = end_of_entry(&before[..end]).map_or(0, |at| at + END.len());
        Some(format!("after the {}", period_of(&before[start..])?))
    };
    period_of(&bytes[end + END.len()..]).or_else(after)
}

/// The hour or day of the first entry in a text.
fn period_of(text: &[u8]) -> Option<String> {
    let entry = String::from_utf8_lossy(text.get(..1024).unwrap_or(text));
    // The entry is a string in JSON, so its quotes are escaped.
    let number = |name: &str| {
        let digits = entry.split(name).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u64>().ok()
    };
    let (start, length) = (number("\\\"start\\\":")?, number("\\\"length\\\":")?);
    // A digit may be what was changed.
    let whole = [HOUR, DAY].contains(&length) && start.is_multiple_of(length);
    whole.then(|| named(start, length))
}

impl Opened<'_> {
    fn keep<T>(&mut self, found: Result<T, Damage>) -> Option<T> {
        match found {
            Ok(value) => Some(value),
            Err(damage) => {
                self.damage.push(damage);
                None
            }
        }
    }

    /// The checkpoint of the log part, without any verification.
    pub fn checkpoint(&self) -> Option<&SignedCheckpoint> {
        self.log.as_ref().map(|(_, signed)| signed)
    }

    /// The archive's own policy. Whoever made the archive chose it.
    pub fn own_policy(&self) -> Option<Policy> {
        Policy::parse(&self.log.as_ref()?.0.policy).ok()
    }

    /// Verifies the rest. `believed` is the checkpoint, if a policy accepts it: without it, nothing is proved.
    pub fn check(self, believed: Option<&Checkpoint>) -> Checked {
        let Self { read, head, log, damage } = self;
        let mut checked = Checked { damage, ..Checked::default() };
        let (Some(read), Some(head), Some((log, _))) = (read, head, log) else { return checked };
        checked.scope(&head);
        let Some(periods) = checked.periods(&log, &head, believed) else { return checked };
        checked.missing(&periods, &head);
        checked.computed(&read, head, log, &periods);
        checked
    }
}

impl Checked {
    fn damaged(&mut self, damage: Damage) {
        let same = self.damage.iter().filter(|d| d.file == damage.file).count();
        if same < LISTED {
            self.damage.push(damage);
        }
    }

    fn scope(&mut self, head: &Head) {
        let Head { profile, window: Window { from, to }, made, trust_domain, program, .. } = head;
        self.word.push(format!(
            "that this is the trust domain {trust_domain}, from {from} to {to}, for the profile {profile}, exported at {} by release {}",
            moment(*made),
            clean(program)
        ));
    }

    /// Verifies each period; `None` if one is not what it says.
    fn periods(
        &mut self,
        log: &LogPart,
        head: &Head,
        believed: Option<&Checkpoint>,
    ) -> Option<Vec<LoggedPeriod>> {
        let (before, mut periods) = (self.damage.len(), Vec::<LoggedPeriod>::new());
        for proved in &log.periods {
            let index = proved.index;
            let period = match MeshPeriod::parse(proved.entry.as_bytes()) {
                Ok(period) => period,
                Err(why) => {
                    let last = periods.last().map(|last| &last.period);
                    let after = last.map(|p| format!("after the {}", named(p.start, p.length)));
                    let text = serde_json::to_vec(proved).unwrap_or_default();
                    let damage = Damage::new(LOG, format!("entry {index}: {why}"));
                    self.damaged(Damage { period: period_of(&text).or(after), ..damage });
                    continue;
                }
            };
            let name = named(period.start, period.length);
            let mut wrong = |what: String| {
                self.damaged(Damage { period: Some(name.clone()), ..Damage::new(LOG, what) });
            };
            if let Some(tree) = believed
                && let Err(why) = included(proved, tree)
            {
                wrong(format!("it is not entry {index} of the log: {why}"));
            }
            let order = |p: &MeshPeriod| (p.start, p.length);
            let last = periods.last().map(|last| order(&last.period));
            if last.is_some_and(|last| last >= order(&period)) {
                wrong("it is there twice, or in the wrong place".into());
            }
            if !head.window.contains(&period) || period.start + period.length > head.made {
                wrong("it is not in the period of the archive, or ends after the export".into());
            }
            periods.push(LoggedPeriod { index, period });
        }
        let count = |length| periods.iter().filter(|p| p.period.length == length).count();
        if self.damage.len() > before {
            return None;
        }
        self.days(&periods);
        if self.damage.len() > before {
            return None;
        }
        if let Some(tree) = believed {
            self.verified.push(format!(
                "{} hours and {} days of totals are entries of the log {}, as they were when it had {} entries",
                count(HOUR),
                count(DAY),
                clean(&tree.origin),
                tree.size
            ));
        }
        self.word.push(
            "that nodes counted correctly: the log shows that the authority claimed these totals, and did not change them later".into(),
        );
        Some(periods)
    }

    /// Compares each day with its hours, if any of them are here.
    fn days(&mut self, periods: &[LoggedPeriod]) {
        let mut hours: BTreeMap<u64, Vec<MeshPeriod>> = BTreeMap::new();
        for LoggedPeriod { period, .. } in periods.iter().filter(|p| p.period.length == HOUR) {
            hours.entry(period.start / DAY * DAY).or_default().push(period.clone());
        }
        let mut equal = 0;
        for LoggedPeriod { period: day, .. } in periods.iter().filter(|p| p.period.length == DAY) {
            let Some(hours) = hours.get(&day.start) else { continue };
            let sum = MeshPeriod::day(day.start, hours);
            let name = named(day.start, DAY);
            if sum == *day {
                equal += 1;
            } else if hours.len() < HOURS_OF_DAY && at_most(&sum, day) {
                self.missing.push(format!(
                    "hours of the {name} that the log has: the day's entry has more than the hours that are here"
                ));
            } else {
                self.damaged(Damage {
                    period: Some(name),
                    ..Damage::new(LOG, "the day's entry contradicts its hours")
                });
            }
        }
        if equal > 0 {
            self.verified.push(format!("{equal} of the days are the sums of their hours"));
        }
    }

    /// Names the hours without totals.
    fn missing(&mut self, periods: &[LoggedPeriod], head: &Head) {
        let by_start = |length| -> BTreeMap<u64, &MeshPeriod> {
            let of = periods.iter().filter(|p| p.period.length == length);
            of.map(|p| (p.period.start, &p.period)).collect()
        };
        let (hours, days) = (by_start(HOUR), by_start(DAY));
        let end = head.window.end().min(head.made.saturating_sub(TO_LOG) / HOUR * HOUR);
        let (mut absent, mut silent) = (Vec::new(), Vec::new());
        let mut only_days = 0;
        for day in (head.window.start()..end).step_by(DAY as usize) {
            let hours_of_day = (day..end.min(day + DAY)).step_by(HOUR as usize);
            let has_hours = hours.range(day..day + DAY).next().is_some();
            if days.contains_key(&day) && !has_hours {
                only_days += 1;
                continue;
            }
            if has_hours && !days.contains_key(&day) && day + DAY + HOUR <= head.made {
                self.missing.push(format!("the entry of the {}", named(day, DAY)));
            }
            for hour in hours_of_day {
                match hours.get(&hour) {
                    None => absent.push(hour),
                    Some(period) if period.nodes.reported == 0 => silent.push(hour),
                    Some(_) => {}
                }
            }
        }
        for (first, count) in runs(&absent) {
            self.missing.push(format!("totals of {}: nothing is logged", span(first, count)));
        }
        for (first, count) in runs(&silent) {
            self.missing.push(format!("totals of {}: logged without any node", span(first, count)));
        }
        let fewer = |p: &&MeshPeriod| p.nodes.reported > 0 && p.nodes.reported < p.nodes.members;
        let partly = hours.values().filter(|p| fewer(p)).count();
        if partly > 0 {
            self.missing.push(format!(
                "totals of some nodes in {partly} hours: fewer nodes reported than there were members"
            ));
        }
        if only_days > 0 {
            self.word.push(format!(
                "which hours of {only_days} days have no totals: only the days' entries are here, because the authority keeps hours for 31 days"
            ));
        }
    }

    /// Computes the other files again.
    fn computed(&mut self, read: &Read<'_>, head: Head, log: LogPart, periods: &[LoggedPeriod]) {
        // Each damaged file would make others look wrong.
        if !self.damage.is_empty() {
            return;
        }
        let sure = "names, versions and modes of nodes, the reasons of exceptions, and who holds which key (facts.json)";
        self.word.push(sure.into());
        let scans: Vec<Vec<u8>> = read
            .files
            .iter()
            .filter(|f| f.name.starts_with("scans/"))
            .map(|f| f.bytes.to_vec())
            .collect();
        if !scans.is_empty() {
            self.word.push(format!("the results of {} reports of scans", scans.len()));
        }
        if head.program != PROGRAM {
            self.word.push(format!(
                "that {PAGE}, controls.json and the other computed files show what log.json and facts.json have: release {} wrote them, and this is {PROGRAM}",
                clean(&head.program)
            ));
            return;
        }
        let facts = part(read, FACTS, MAX_FACTS).and_then(|bytes| {
            serde_json::from_slice::<Facts>(bytes).map_err(|e| Damage::new(FACTS, e.to_string()))
        });
        let facts = match facts {
            Ok(facts) => facts,
            Err(damage) => return self.damaged(damage),
        };
        if facts.at != head.made || facts.trust_domain != head.trust_domain {
            return self.damaged(Damage::new(FACTS, "it is of another time or trust domain"));
        }
        let expected = Inputs { head, facts, log, scans }.files(periods);
        let names = |n: usize| expected.get(n).map_or(MANIFEST, |file| file.name.as_str());
        for (n, File { name, bytes }) in read.files.iter().enumerate() {
            if name == MANIFEST && n == expected.len() {
                break;
            }
            if *name != names(n) {
                let what = format!("{} should be in its place", names(n));
                return self.damaged(Damage::new(name, what));
            }
            if expected.get(n).is_none_or(|file| file.bytes != *bytes) {
                let what = "it does not show what the other files contain";
                self.damaged(Damage::new(name, what));
            }
        }
        if read.files.len() != expected.len() + 1 {
            return self.damaged(Damage::new(names(read.files.len()), "it is missing"));
        }
        self.verified.push(format!(
            "{PAGE}, controls.json, totals.json, modes.json, exceptions.json and nodes.json show what log.json, facts.json and the scans contain"
        ));
    }
}

fn included(proved: &super::ProvedPeriod, tree: &Checkpoint) -> Result<(), String> {
    if proved.proof.len() > MAX_PROOF {
        return Err("its proof is too long".into());
    }
    let hashes: Option<Vec<Hash>> = proved.proof.iter().map(|h| Hash::from_base64(h)).collect();
    let hashes = hashes.ok_or("its proof is not made of hashes")?;
    let entry = [&PERIOD.to_be_bytes()[..], proved.entry.as_bytes()].concat();
    verify_inclusion(Hash::leaf(&entry), proved.index, tree.size, &hashes, tree.root)
        .map_err(|why| why.to_string())
}

/// Whether no counter of a sum is larger than that of the day.
fn at_most(sum: &MeshPeriod, day: &MeshPeriod) -> bool {
    let amounts = |p: &MeshPeriod| {
        let l = p.levels;
        [l.unknown, l.plaintext, l.weak, l.acceptable, l.strong, p.carried, p.post_quantum]
    };
    let fits = |(a, b): (Amount, Amount)| a.connections <= b.connections && a.bytes <= b.bytes;
    amounts(sum).into_iter().zip(amounts(day)).all(fits)
        && sum.watched_seconds <= day.watched_seconds
}

/// Runs of hours: the first, and how many.
fn runs(hours: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for hour in hours {
        match runs.last_mut() {
            Some((first, count)) if *first + *count * HOUR == *hour => *count += 1,
            _ => runs.push((*hour, 1)),
        }
    }
    runs
}

fn span(first: u64, count: u64) -> String {
    match count {
        1 => format!("the {}", named(first, HOUR)),
        _ => format!("{count} hours from {} to {}", moment(first), moment(first + count * HOUR)),
    }
}

fn moment(at: u64) -> String {
    let text = named(at, HOUR);
    text.strip_prefix("hour ").unwrap_or(&text).to_owned()
}
