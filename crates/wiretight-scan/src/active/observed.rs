//! Records everything that the server chose during a scan.
//!
//! This has two uses. Facts must not contradict it ([`settle`](super::settle)). And a single server always
//! answers the same hello in the same way, so if answers differ, several servers share the address.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use super::link::alert_name;
use crate::names::{Group, Suite, Version};
use crate::parse::{ClientHello, ServerHello, extension};

/// The maximum number of differences to keep; one is enough for a warning.
const MOST_DIFFERENCES: usize = 4;

#[derive(Debug, Default)]
pub struct Observed(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    chosen: BTreeMap<(Version, u16), u64>,
    /// The first answer to each hello, without its variable parts.
    answers: HashMap<Question, String>,
    /// The number of repeated hellos that were answered.
    repeated: u64,
    differences: Vec<String>,
    /// The highest number of suites in an answered hello.
    longest: usize,
}

/// A hello without its variable parts.
type Question = (u16, Vec<u16>, Vec<u8>, Vec<(u16, Vec<u8>)>);

impl Observed {
    /// Records a ServerHello or HelloRetryRequest.
    pub fn hello(&self, asked: &ClientHello, server: &ServerHello) {
        let Some(version) = server.version().filter(|version| offers(asked, *version)) else {
            return;
        };
        let mut seen = self.0.lock();
        *seen.chosen.entry((version, server.suite)).or_default() += 1;
        seen.longest = seen.longest.max(asked.suites.len());
        seen.answer(asked, || shown(version, server));
    }

    /// Records a fatal alert about the hello.
    pub fn refused(&self, asked: &ClientHello, level: u8, description: u8) {
        self.0.lock().answer(asked, || alert_name(level, description));
    }

    /// Records that answers differ, and how.
    pub fn differs(&self, how: String) {
        let mut seen = self.0.lock();
        if seen.differences.len() < MOST_DIFFERENCES && !seen.differences.contains(&how) {
            seen.differences.push(how);
        }
    }

    /// How answers to the same hello differed.
    pub fn differences(&self) -> Vec<String> {
        self.0.lock().differences.clone()
    }

    /// The number of repeated hellos that were answered.
    pub fn repeated(&self) -> u64 {
        self.0.lock().repeated
    }

    /// The highest number of suites in an answered hello.
    pub fn longest(&self) -> usize {
        self.0.lock().longest
    }

    /// Each chosen version and suite, and how often.
    pub fn chosen(&self) -> Vec<(Version, u16, u64)> {
        self.0.lock().chosen.iter().map(|((version, suite), n)| (*version, *suite, *n)).collect()
    }
}

impl Seen {
    fn answer(&mut self, asked: &ClientHello, answer: impl FnOnce() -> String) {
        let Some(question) = question(asked) else { return };
        let answer = answer();
        match self.answers.get(&question) {
            None => drop(self.answers.insert(question, answer)),
            Some(first) => {
                self.repeated += 1;
                let how = format!("the same hello was answered with {first} and with {answer}");
                if *first != answer
                    && self.differences.len() < MOST_DIFFERENCES
                    && !self.differences.contains(&how)
                {
                    self.differences.push(how);
                }
            }
        }
    }
}

fn offers(asked: &ClientHello, version: Version) -> bool {
    match asked.extensions.iter().find(|(kind, _)| *kind == extension::SUPPORTED_VERSIONS) {
        Some((_, body)) => body
            .get(1..)
            .unwrap_or_default()
            .chunks_exact(2)
            .any(|pair| u16::from_be_bytes([pair[0], pair[1]]) == version.code()),
        None => version.code() <= asked.version,
    }
}

/// `None` if the hello offers to resume a session, because the answer depends on the session too.
fn question(asked: &ClientHello) -> Option<Question> {
    let tls1_3 = asked.extensions.iter().any(|(kind, _)| *kind == extension::SUPPORTED_VERSIONS);
    if !tls1_3 && !asked.session_id.is_empty() {
        return None;
    }
    let mut extensions = asked.extensions.clone();
    for (kind, body) in &mut extensions {
        match *kind {
            extension::PRE_SHARED_KEY | extension::COOKIE => return None,
            extension::SESSION_TICKET if !body.is_empty() => return None,
            // Keys and random data are new each time; only the groups matter.
            extension::KEY_SHARE => *body = groups_of_shares(body),
            extension::ENCRYPTED_CLIENT_HELLO => body.clear(),
            _ => {}
        }
    }
    Some((asked.version, asked.suites.clone(), asked.compressions.clone(), extensions))
}

fn groups_of_shares(body: &[u8]) -> Vec<u8> {
    let (mut groups, mut rest) = (Vec::new(), body.get(2..).unwrap_or_default());
    while let [a, b, high, low, after @ ..] = rest {
        groups.extend([*a, *b]);
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        rest = after.get(length..).unwrap_or_default();
    }
    groups
}

/// The constant part of a server's answer. Stapling and tickets may change.
fn shown(version: Version, server: &ServerHello) -> String {
    let suite = Suite::from_code(server.suite).map_or("an unknown suite", |suite| suite.name);
    let mut text = format!("{version} {suite}");
    if let Some((group, _)) = server.key_share() {
        let name = Group::from_code(group).map_or("an unknown group", |group| group.name);
        text.push_str(&format!(" {name}"));
    }
    for (kind, name) in [
        (extension::HEARTBEAT, "heartbeat"),
        (extension::EXTENDED_MASTER_SECRET, "extended master secret"),
        (extension::ENCRYPT_THEN_MAC, "encrypt-then-MAC"),
        (extension::RENEGOTIATION_INFO, "secure renegotiation"),
    ] {
        if server.extension(kind).is_some() {
            text.push_str(&format!(", {name}"));
        }
    }
    if server.compression != 0 {
        text.push_str(", compression");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(suite: u16, extensions: &[u16]) -> ServerHello {
        ServerHello {
            version: 0x0303,
            random: [1; 32],
            session_id: Vec::new(),
            suite,
            compression: 0,
            extensions: extensions.iter().map(|kind| (*kind, Vec::new())).collect(),
        }
    }

    #[test]
    fn different_answers_to_the_same_hello_are_recorded() {
        let observed = Observed::default();
        let hello = |random| ClientHello::new(Version::Tls1_2, [random; 32]).suites([0xc02f, 0x2f]);
        observed.hello(&hello(1), &server(0xc02f, &[extension::RENEGOTIATION_INFO]));
        // A new stapled response is not a difference.
        let again = server(0xc02f, &[extension::RENEGOTIATION_INFO, extension::STATUS_REQUEST]);
        observed.hello(&hello(2), &again);
        assert_eq!((observed.repeated(), observed.differences()), (1, Vec::new()));
        observed.hello(&hello(3), &server(0x2f, &[extension::RENEGOTIATION_INFO]));
        observed.refused(&hello(4), 2, 40);
        assert_eq!(observed.differences().len(), 2, "{:?}", observed.differences());
        assert_eq!(observed.chosen(), [(Version::Tls1_2, 0x2f, 1), (Version::Tls1_2, 0xc02f, 2)]);
        // Versions that were not offered, and hellos with a session, do not count.
        observed.hello(&ClientHello::new(Version::Tls1_0, [0; 32]), &server(0x2f, &[]));
        let resuming = |random| ClientHello { session_id: vec![1], ..hello(random) };
        observed.hello(&resuming(5), &server(0xc02f, &[]));
        observed.hello(&resuming(6), &server(0x2f, &[]));
        assert_eq!((observed.chosen().len(), observed.repeated()), (2, 3));
    }
}
