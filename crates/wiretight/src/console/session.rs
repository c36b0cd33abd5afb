//! Who may look: links that work once, and the sessions that they open.
//!
//! Only hashes of secrets are kept, and only in memory: a restart of the node ends all sessions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use wiretight_keys::token::{secret_hash, secret_matches};

/// How long a link can be used.
pub const LINK: Duration = Duration::from_secs(300);
/// How long a session lasts, and how long it may be unused.
const SESSION: Duration = Duration::from_secs(12 * 3600);
const IDLE: Duration = Duration::from_secs(3600);
/// The most links and sessions at a time; a new one replaces the oldest.
const LINKS: usize = 16;
const SESSIONS: usize = 64;
const SECRET: usize = 32;

/// The links and sessions of a console.
#[derive(Default)]
pub struct Sessions {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    links: VecDeque<Link>,
    sessions: VecDeque<Session>,
}

struct Link {
    hash: String,
    until: Instant,
}

struct Session {
    hash: String,
    until: Instant,
    used: Instant,
}

impl Session {
    fn is_live(&self, now: Instant) -> bool {
        now < self.until && now.saturating_duration_since(self.used) < IDLE
    }
}

impl Sessions {
    /// The secret of a link that works once.
    pub fn link(&self, now: Instant) -> Result<String, getrandom::Error> {
        let secret = secret()?;
        let mut kept = self.kept.lock();
        kept.links.retain(|link| now < link.until);
        if kept.links.len() >= LINKS {
            kept.links.pop_front();
        }
        kept.links.push_back(Link { hash: secret_hash(&secret), until: now + LINK });
        Ok(secret)
    }

    /// Uses a link up. Returns the secret of a new session; `None` if there is no such link.
    pub fn enter(&self, link: &str, now: Instant) -> Result<Option<String>, getrandom::Error> {
        let mut kept = self.kept.lock();
        kept.links.retain(|link| now < link.until);
        let Some(place) = position(kept.links.iter().map(|l| &l.hash), link) else {
            return Ok(None);
        };
        kept.links.remove(place);
        let secret = secret()?;
        kept.sessions.retain(|session| session.is_live(now));
        if kept.sessions.len() >= SESSIONS {
            kept.sessions.pop_front();
        }
        let hash = secret_hash(&secret);
        kept.sessions.push_back(Session { hash, until: now + SESSION, used: now });
        Ok(Some(secret))
    }

    /// Whether this is the secret of a live session, which counts as a use of it.
    pub fn is_open(&self, secret: &str, now: Instant) -> bool {
        let mut kept = self.kept.lock();
        kept.sessions.retain(|session| session.is_live(now));
        let Some(place) = position(kept.sessions.iter().map(|s| &s.hash), secret) else {
            return false;
        };
        kept.sessions[place].used = now;
        true
    }
}

/// The place of a secret, compared with every hash in constant time.
fn position<'a>(hashes: impl Iterator<Item = &'a String>, secret: &str) -> Option<usize> {
    let mut found = None;
    for (place, hash) in hashes.enumerate() {
        if secret_matches(secret, hash) {
            found = Some(place);
        }
    }
    found
}

fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET];
    getrandom::fill(&mut bytes)?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_works_once_and_not_after_its_time() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let link = sessions.link(now).unwrap();
        assert_eq!(link.len(), 43);
        assert_ne!(link, sessions.link(now).unwrap());
        assert!(!sessions.is_open(&link, now), "a link is not a session");
        assert_eq!(sessions.enter("", now).unwrap(), None);
        let session = sessions.enter(&link, now).unwrap().unwrap();
        assert_eq!(sessions.enter(&link, now).unwrap(), None, "it was used");
        assert!(sessions.is_open(&session, now));
        assert_eq!(sessions.enter(&session, now).unwrap(), None, "a session is not a link");

        let late = sessions.link(now).unwrap();
        assert_eq!(sessions.enter(&late, now + LINK).unwrap(), None);
    }

    #[test]
    fn sessions_end_and_are_bounded() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let open = |at| sessions.enter(&sessions.link(at).unwrap(), at).unwrap().unwrap();
        let idle = open(start);
        assert!(!sessions.is_open(&idle, start + IDLE));

        let used = open(start);
        let mut at = start;
        while at < start + SESSION {
            assert!(sessions.is_open(&used, at));
            at += IDLE / 2;
        }
        assert!(!sessions.is_open(&used, at), "it ends, however much it is used");

        let first = open(at);
        let others: Vec<_> = (0..SESSIONS).map(|_| open(at)).collect();
        assert!(!sessions.is_open(&first, at));
        assert!(others.iter().all(|other| sessions.is_open(other, at)));
        let first = sessions.link(at).unwrap();
        let links: Vec<_> = (0..LINKS).map(|_| sessions.link(at).unwrap()).collect();
        assert_eq!(sessions.enter(&first, at).unwrap(), None);
        assert!(links.iter().all(|link| sessions.enter(link, at).unwrap().is_some()));
    }
}
