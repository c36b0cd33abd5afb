//! Which of many things a server takes: offer all, take out the one that it chose, and offer the
//! rest, until it refuses.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::handshake;
use super::ordinary::{self, Asked};
use super::probe::{Flight, Outcome, Prober, Until};
use crate::names::{Bulk, GROUPS, Group, GroupKind, KeyExchange, SCHEMES, Suite, Version, suites};
use crate::parse::{ClientHello, Exchange, extension};

/// What a server took, in the order in which it chose.
#[derive(Debug, Clone)]
pub struct Taken<T> {
    /// In the order of choice, with what came along.
    pub items: Vec<(T, Flight)>,
    /// What ended it.
    pub end: End,
}

/// Why no more were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server refused the rest; its word for it.
    Refused(String),
    /// It could not be told whether there are more.
    Unclear(String),
}

impl<T: Copy> Taken<T> {
    /// Without what came along.
    pub fn list(&self) -> Vec<T> {
        self.items.iter().map(|(item, _)| *item).collect()
    }
}

/// Offers these, less and less of them. `chosen` says which one an answer chose; `None` is the
/// answer of a server that went around the offer, which ends it like a refusal. `split` takes out
/// those that are to be asked for by themselves when a refusal has no reason. `widened` says whether
/// a refusal may be of something else in the hello, that is now as it should be. `at_a_time` is how
/// many a hello offers at most.
#[allow(clippy::too_many_arguments, reason = "what the kinds of lists differ in")]
pub async fn enumerate<T: Copy + PartialEq>(
    prober: &Prober,
    offer: Vec<T>,
    at_a_time: usize,
    until: impl Fn() -> Until,
    hello: impl Fn(&[T]) -> ClientHello,
    chosen: impl Fn(&Flight) -> Option<T>,
    split: impl Fn(&mut Vec<T>) -> Option<Vec<T>>,
    widened: impl Fn() -> bool,
) -> Taken<T> {
    let mut taken = Taken { items: Vec::new(), end: End::Refused("none was offered".to_owned()) };
    // Lists to go on with, the next one last: one, unless long hellos are lost on the way, or refused.
    let mut lists: Vec<Vec<T>> = offer.chunks(at_a_time).rev().map(<[T]>::to_vec).collect();
    while let Some(mut list) = lists.pop() {
        while !list.is_empty() {
            match Box::pin(prober.probe(&hello(&list), until())).await {
                Outcome::Taken(flight) => {
                    match chosen(&flight).filter(|item| list.contains(item)) {
                        Some(item) => {
                            list.retain(|other| *other != item);
                            taken.items.push((item, *flight));
                        }
                        None if widened() => {}
                        None if flight.hello.version() == Some(Version::Tls1_3)
                            && chosen(&flight).is_some() =>
                        {
                            taken.end = End::Unclear("it chose what was not offered".to_owned());
                            return taken;
                        }
                        None => {
                            let version =
                                flight.hello.version().map(|v| format!("answered with {v}"));
                            taken.end = end(taken.end, End::Refused(version.unwrap_or_default()));
                            break;
                        }
                    }
                }
                Outcome::Refused { .. } if widened() => {}
                Outcome::Refused { why, of_hello } => {
                    // Without a reason, one suite that the server chose and broke down over may
                    // have hidden the others.
                    if !of_hello && let Some(rest) = split(&mut list) {
                        lists.push(rest);
                        continue;
                    }
                    taken.end = end(taken.end, End::Refused(why));
                    break;
                }
                Outcome::TooLarge if list.len() > 8 => {
                    lists.push(list.split_off(list.len() / 2));
                }
                Outcome::TooLarge => {
                    taken.end = End::Unclear("even short hellos are lost on the way".to_owned());
                    return taken;
                }
                Outcome::Unclear(why) => {
                    taken.end = End::Unclear(why);
                    return taken;
                }
            }
        }
    }
    taken
}

/// The last word, unless something was unclear before.
fn end(before: End, now: End) -> End {
    match before {
        End::Unclear(_) => before,
        End::Refused(_) => now,
    }
}

/// All suites that this version may be asked for, the best first: those of TLS 1.3 alone, or all
/// others.
pub fn suites_of(version: Version) -> Vec<u16> {
    let tls1_3 = version == Version::Tls1_3;
    let mut all: Vec<Suite> =
        suites().iter().copied().filter(|s| s.is_tls1_3() == tls1_3).collect();
    // DHE comes after all that is sound: servers without a prime for it break down over it.
    let rank = |s: &Suite| {
        let sound = s.bits() >= 128 && !s.is_anonymous() && s.bulk() != Bulk::Rc4;
        (!sound, s.key_exchange() == KeyExchange::Dhe, !s.is_forward_secret(), !s.is_aead())
    };
    all.sort_by_key(rank);
    all.into_iter().map(|s| s.code).collect()
}

/// Takes DHE out, where it stands among others.
fn without_dhe(list: &mut Vec<u16>) -> Option<Vec<u16>> {
    let dhe = |code: &u16| agrees_by(*code, KeyExchange::Dhe);
    let (dhe, others): (Vec<u16>, Vec<u16>) = list.iter().partition(|code| dhe(code));
    if dhe.is_empty() || others.is_empty() {
        return None;
    }
    *list = others;
    Some(dhe)
}

/// A hello of this version with what every server wants to see beside suites.
pub fn offer(prober: &Prober, version: Version, suites: &[u16]) -> ClientHello {
    let hello = prober.hello(version).suites(suites.iter().copied());
    match version {
        // No extensions in SSL 3.0: secure renegotiation is signalled by a suite (RFC 5746).
        Version::Ssl2 | Version::Ssl3 => {
            let hello = hello.suites(suites.iter().copied().chain([0x00ff]));
            ClientHello { extensions: Vec::new(), ..hello }
        }
        Version::Tls1_3 => {
            let groups = match prober.asks_plainly(version) {
                true => ordinary::GROUPS.to_vec(),
                false => groups_tls1_3().0,
            };
            let hello = hello.groups(&groups).signatures(&prober.schemes(version));
            prober.shares(hello, &groups)
        }
        _ => hello
            .groups(&match prober.asks_plainly(version) {
                true => ordinary::GROUPS.to_vec(),
                false => curves(),
            })
            .with(extension::EC_POINT_FORMATS, vec![1, 0])
            .signatures(&prober.schemes(version))
            .with(extension::RENEGOTIATION_INFO, vec![0])
            // Some refuse TLS 1.2 without it.
            .with(extension::EXTENDED_MASTER_SECRET, Vec::new()),
    }
}

/// Protocols that are asked for by ALPN.
pub const PROTOCOLS: [&str; 14] = [
    "h2",
    "http/1.1",
    "http/1.0",
    "spdy/3.1",
    "postgresql",
    "imap",
    "pop3",
    "managesieve",
    "ftp",
    "xmpp-client",
    "xmpp-server",
    "mqtt",
    "dot",
    "wiretight/1",
];

/// All signature schemes.
pub fn schemes() -> Vec<u16> {
    SCHEMES.iter().map(|s| s.code).collect()
}

/// Groups that TLS 1.3 may be asked for; and those that it forbids (RFC 8446 section 4.2.7), which a
/// server may take yet, and for which others refuse the whole hello.
pub fn groups_tls1_3() -> (Vec<u16>, Vec<u16>) {
    let sound = |code: &u16| !matches!(code, 0x0001..=0x0016 | 0x001a..=0x001c | 0xff01..=0xff02);
    GROUPS.iter().map(|g| g.code).partition(sound)
}

/// Curves that TLS 1.2 and before may be asked for. The primes of RFC 7919 are left out: a server
/// that sees them offered may not use one of its own, which is to be seen.
pub fn curves() -> Vec<u16> {
    let curve = |g: &&Group| {
        g.kind == GroupKind::Elliptic && !g.name.ends_with("tls13") && !g.name.starts_with("GC")
    };
    GROUPS.iter().filter(curve).map(|g| g.code).collect()
}

/// What the answers to offers of suites show beside.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Groups that were chosen, in that order, each no longer offered then.
    pub groups: Vec<u16>,
    /// Signature schemes, likewise.
    pub schemes: Vec<u16>,
    /// Primes of DHE, with the suite.
    pub primes: Vec<(u16, Vec<u8>)>,
}

/// How offers of suites are narrowed, so that what a server chooses beside a suite is another each
/// time. Where it runs out of that, everything is offered again.
struct Narrow {
    version: Version,
    /// Groups to offer; `None` is all.
    groups: Option<Vec<u16>>,
    schemes: Option<Vec<u16>>,
    /// Whether more than the ServerHello is worth to be waited for.
    flights: bool,
    seen: Seen,
}

/// Servers take three suites in TLS 1.3: after so many, a refusal shall be of the suites alone.
const NARROWED_TLS1_3: usize = 3;

impl Narrow {
    fn new(version: Version) -> Self {
        let (groups, schemes) = match version {
            Version::Tls1_3 => (Some(groups_tls1_3().0), None),
            Version::Tls1_2 => (Some(curves()), Some(schemes())),
            _ => (None, None),
        };
        let flights = version == Version::Tls1_2;
        Self { version, groups, schemes, flights, seen: Seen::default() }
    }

    /// That offers all, and reads primes.
    fn wide(version: Version) -> Self {
        Self { groups: None, schemes: None, ..Self::new(version) }
    }

    fn until(&self) -> Until {
        if self.flights { Until::Shown } else { Until::Hello }
    }

    fn hello(&self, prober: &Prober, suites: &[u16]) -> ClientHello {
        let mut hello = offer(prober, self.version, suites);
        if let Some(groups) = &self.groups {
            hello = hello.groups(groups);
        }
        if let Some(schemes) = &self.schemes {
            hello = hello.signatures(schemes);
        }
        hello
    }

    /// The suite that was chosen, where it is one of this version.
    fn read(&mut self, flight: &Flight) -> Option<u16> {
        if flight.hello.version() != Some(self.version) {
            return None;
        }
        let suite = flight.hello.suite;
        if let Some(prime) = prime(flight) {
            self.seen.primes.push((suite, prime.to_vec()));
        }
        if self.flights && !flight.done {
            (self.flights, self.groups, self.schemes) = (false, None, None);
        }
        let scheme = flight.key_exchange.as_ref().and_then(|exchange| exchange.scheme);
        take_out(&mut self.groups, flight.group(), &mut self.seen.groups);
        take_out(&mut self.schemes, scheme, &mut self.seen.schemes);
        if self.version == Version::Tls1_3 && self.seen.groups.len() >= NARROWED_TLS1_3 {
            self.groups = None;
        }
        Some(suite)
    }

    /// Offers all again; whether that is more than before.
    fn widen(&mut self) -> bool {
        let groups = self.groups.take().is_some() && !self.seen.groups.is_empty();
        let schemes = self.schemes.take().is_some() && !self.seen.schemes.is_empty();
        groups || schemes
    }
}

/// Moves what was chosen from what is left to what was seen; what was not left to choose ends it.
fn take_out(left: &mut Option<Vec<u16>>, chosen: Option<u16>, seen: &mut Vec<u16>) {
    let Some(list) = left else { return };
    match chosen.and_then(|chosen| list.iter().position(|code| *code == chosen)) {
        Some(at) => seen.push(list.remove(at)),
        None => *left = None,
    }
    if left.as_ref().is_some_and(Vec::is_empty) {
        *left = None;
    }
}

/// The suites that a server takes with a version; in TLS 1.2, `knows` is told of the first.
///
/// Where our hello is refused, an ordinary client's asks again: the refusal may be of all that ours
/// offers, and not of the version.
pub async fn enumerate_suites(
    prober: &Prober,
    version: Version,
    knows: Option<oneshot::Sender<()>>,
) -> (Taken<u16>, Seen) {
    // In memory of their own: together they would be more than a thread's stack bears.
    let (mut taken, seen) = Box::pin(enumerate_all_suites(prober, version, knows)).await;
    let (End::Refused(why), true) = (&taken.end, taken.items.is_empty()) else {
        return (taken, seen);
    };
    let spoken = match Box::pin(ordinary::ask(prober, version, why)).await {
        Asked::Refused(why) => {
            taken.end = End::Refused(why);
            return (taken, seen);
        }
        Asked::Unclear(why) => {
            taken.end = End::Unclear(why);
            return (taken, seen);
        }
        Asked::Spoken(flight) => Ok(flight),
        Asked::Perhaps(why) => Err(why),
    };
    prober.ask_plainly(version);
    let narrow = Narrow { flights: version == Version::Tls1_2, ..Narrow::wide(version) };
    let asked = Box::pin(narrowing(prober, ordinary::in_turn(version), narrow));
    let (mut taken, mut seen) = asked.await;
    match spoken {
        Err(why) if taken.items.is_empty() => taken.end = end(taken.end, End::Refused(why)),
        // Seen is seen, whatever was said when it was asked for again.
        Ok(flight) if !taken.items.iter().any(|(suite, _)| *suite == flight.hello.suite) => {
            let again = "refused when it was asked for by itself";
            taken.end =
                End::Unclear(format!("what an ordinary client's hello was given was {again}"));
            seen.primes.extend(prime(&flight).map(|p| (flight.hello.suite, p.to_vec())));
            taken.items.push((flight.hello.suite, *flight));
        }
        _ => {}
    }
    (taken, seen)
}

async fn enumerate_all_suites(
    prober: &Prober,
    version: Version,
    knows: Option<oneshot::Sender<()>>,
) -> (Taken<u16>, Seen) {
    let mut narrow = Narrow::new(version);
    let mut offered = suites_of(version);
    if version != Version::Tls1_2 {
        return narrowing(prober, offered, narrow).await;
    }
    // What is chosen of all; and again, offered last. A server that then chooses something else
    // follows our order, so that there is none of its own to be seen, and parts of the list may be
    // asked for at the same time.
    let mut items = Vec::new();
    match prober.probe(&narrow.hello(prober, &offered), narrow.until()).await {
        Outcome::Taken(flight) => {
            let suite = narrow.read(&flight).filter(|suite| offered.contains(suite));
            if let Some(suite) = suite {
                items.push((suite, *flight));
            }
        }
        Outcome::Refused { why, of_hello: true } => {
            return (Taken { items, end: End::Refused(why) }, narrow.seen);
        }
        _ => {}
    }
    let Some((first, _)) = items.first() else {
        return narrowing(prober, offered, narrow).await;
    };
    let first = *first;
    knows.and_then(|knows| knows.send(()).ok());
    offered.retain(|suite| *suite != first);
    let mut first_last = offered.clone();
    first_last.push(first);
    let hello = offer(prober, version, &first_last);
    let mut follows = false;
    if let Outcome::Taken(flight) = prober.probe(&hello, Until::Hello).await
        && flight.hello.version() == Some(version)
        && offered.contains(&flight.hello.suite)
    {
        follows = true;
        offered.retain(|suite| *suite != flight.hello.suite);
        items.push((flight.hello.suite, *flight));
    }
    let (mut taken, seen) = match follows {
        false => narrowing(prober, offered, narrow).await,
        true => in_parts(prober, offered, narrow).await,
    };
    items.append(&mut taken.items);
    (Taken { items, end: taken.end }, seen)
}

/// A part of a list that is asked for by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Ecdhe,
    Dhe,
    OtherAead,
    Other,
}

/// By the kinds of key exchange and cipher, at the same time.
async fn in_parts(prober: &Prober, offered: Vec<u16>, narrow: Narrow) -> (Taken<u16>, Seen) {
    let version = narrow.version;
    let mut parts: BTreeMap<Part, Vec<u16>> = BTreeMap::new();
    for suite in offered.into_iter().filter_map(Suite::from_code) {
        let part = match suite.key_exchange() {
            KeyExchange::Ecdhe => Part::Ecdhe,
            KeyExchange::Dhe => Part::Dhe,
            _ if suite.is_aead() => Part::OtherAead,
            _ => Part::Other,
        };
        parts.entry(part).or_default().push(suite.code);
    }
    let mut narrow = Some(narrow);
    let asked = parts.into_iter().map(|(part, suites)| {
        // What is signed with which curve is seen with ECDHE; to read primes takes whole flights.
        let narrow = match part {
            Part::Ecdhe => narrow.take(),
            _ => None,
        };
        let wide = || Narrow { flights: part == Part::Dhe, ..Narrow::wide(version) };
        narrowing(prober, suites, narrow.unwrap_or_else(wide))
    });
    let mut taken = Taken { items: Vec::new(), end: End::Refused("none was offered".to_owned()) };
    let mut seen = Seen::default();
    for (more, beside) in join_all(asked).await {
        taken.items.extend(more.items);
        taken.end = end(taken.end, more.end);
        seen.groups.extend(beside.groups);
        seen.schemes.extend(beside.schemes);
        seen.primes.extend(beside.primes);
    }
    (taken, seen)
}

async fn narrowing(prober: &Prober, offered: Vec<u16>, narrow: Narrow) -> (Taken<u16>, Seen) {
    let narrow = Mutex::new(narrow);
    let now = || narrow.lock().unwrap_or_else(PoisonError::into_inner);
    let at_a_time = prober.at_a_time(now().version);
    let taken = enumerate(
        prober,
        offered,
        at_a_time,
        || now().until(),
        |list| now().hello(prober, list),
        |flight| now().read(flight),
        without_dhe,
        || now().widen(),
    )
    .await;
    (taken, narrow.into_inner().unwrap_or_else(PoisonError::into_inner).seen)
}

/// Whether the server has an order of its own: `Some(true)`, or follows the client's. The list is
/// what it takes, in the order in which it chose when offered in another.
pub async fn has_own_order(prober: &Prober, version: Version, taken: &[u16]) -> Option<bool> {
    let (first, last) = (*taken.first()?, *taken.last()?);
    if first == last {
        return None;
    }
    // Some servers put ChaCha20 first where the client does, whatever their order is.
    let chacha = |code: &u16| Suite::from_code(*code).is_some_and(|s| s.name.contains("CHACHA20"));
    let mut reversed: Vec<u16> = taken.iter().rev().copied().collect();
    if let Some(at) = reversed.iter().position(|code| !chacha(code)) {
        reversed[..=at].rotate_right(1);
    }
    match prober.probe(&offer(prober, version, &reversed), Until::Hello).await {
        Outcome::Taken(flight) => Some(flight.hello.suite != reversed[0]),
        Outcome::Refused { why, of_hello: true } => {
            let again = "the suites that were chosen were refused when they were offered again";
            prober.observed.differs(format!("{version}: {again}: {why}"));
            None
        }
        _ => None,
    }
}

/// Those of a list that are not known yet.
fn unknown(mut list: Vec<u16>, known: &[u16]) -> Vec<u16> {
    list.retain(|code| !known.contains(code));
    list
}

/// With those of an ordinary client before the others, where few are offered at a time.
fn in_order(mut list: Vec<u16>, ordinary: &[u16], plain: bool) -> Vec<u16> {
    list.sort_by_key(|code| plain && !ordinary.contains(code));
    list
}

/// The groups that a server takes in TLS 1.3, beside those that are known: a hello without key shares
/// makes it name one.
pub async fn enumerate_groups(prober: &Prober, suites: &[u16], known: &[u16]) -> Taken<u16> {
    let version = Version::Tls1_3;
    let (sound, forbidden) = groups_tls1_3();
    let plain = prober.asks_plainly(version);
    let ask = async |groups: Vec<u16>| {
        enumerate(
            prober,
            unknown(groups, known),
            if plain { 1 } else { usize::MAX },
            || Until::Hello,
            |list| prober.shares(offer(prober, version, suites).groups(list), list),
            Flight::group,
            |_| None,
            || false,
        )
        .await
    };
    if plain {
        // A group has to come with a share there, so those alone are asked for that have one here.
        let shared = |group: &u16| handshake::GROUPS.contains(group);
        let mut taken = ask(sound.into_iter().filter(shared).collect()).await;
        let others = "a hello without key shares is not answered: only groups that have keys here \
                      were asked for";
        taken.end = end(End::Unclear(others.to_owned()), taken.end);
        return taken;
    }
    let mut taken = ask(sound).await;
    let more = ask(forbidden).await;
    taken.items.extend(more.items);
    if let End::Unclear(_) = more.end {
        taken.end = more.end;
    }
    taken
}

/// The curves that a server takes in TLS 1.2 or before, beside those that are known.
pub async fn enumerate_curves(
    prober: &Prober,
    version: Version,
    suites: &[u16],
    known: &[u16],
) -> Taken<u16> {
    enumerate(
        prober,
        in_order(unknown(curves(), known), &ordinary::GROUPS, prober.asks_plainly(version)),
        prober.at_a_time(version),
        || Until::Done,
        |list| offer(prober, version, suites).groups(list),
        Flight::group,
        |_| None,
        || false,
    )
    .await
}

/// The signature schemes that a server signs a key exchange of TLS 1.2 with, beside those that are
/// known.
pub async fn enumerate_schemes(prober: &Prober, suites: &[u16], known: &[u16]) -> Taken<u16> {
    enumerate(
        prober,
        in_order(
            unknown(schemes(), known),
            &ordinary::SCHEMES,
            prober.asks_plainly(Version::Tls1_2),
        ),
        prober.at_a_time(Version::Tls1_2),
        || Until::Done,
        |list| offer(prober, Version::Tls1_2, suites).signatures(list),
        |flight| flight.key_exchange.as_ref()?.scheme,
        |_| None,
        || false,
    )
    .await
}

/// The prime of a DHE key exchange.
pub fn prime(flight: &Flight) -> Option<&[u8]> {
    match &flight.key_exchange.as_ref()?.exchange {
        Exchange::Dhe { p, .. } => Some(p),
        _ => None,
    }
}

/// Whether a suite's key exchange is this one.
pub fn agrees_by(code: u16, kx: KeyExchange) -> bool {
    Suite::from_code(code).is_some_and(|s| s.key_exchange() == kx)
}
