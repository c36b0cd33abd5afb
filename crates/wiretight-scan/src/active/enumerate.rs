//! Finds all items (suites, groups, schemes) that a server accepts: offers all, removes the one that the
//! server chose, and offers the rest, until the server rejects it.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::handshake;
use super::ordinary::{self, Asked};
use super::probe::{Flight, Outcome, Prober, Until};
use crate::names::{Bulk, GROUPS, Group, GroupKind, KeyExchange, SCHEMES, Suite, Version, suites};
use crate::parse::{ClientHello, Exchange, extension};

/// The items that a server accepted.
#[derive(Debug, Clone)]
pub struct Taken<T> {
    /// In the order in which the server chose them, each with its answer.
    pub items: Vec<(T, Flight)>,
    pub end: End,
}

/// Why the search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server rejected the rest; how.
    Refused(String),
    /// There may be more; why.
    Unclear(String),
}

impl<T: Copy> Taken<T> {
    pub fn list(&self) -> Vec<T> {
        self.items.iter().map(|(item, _)| *item).collect()
    }
}

/// Offers these items, fewer and fewer of them.
///
/// - `chosen` returns the item that an answer chose; `None`, if the server ignored the offer, ends the
///   search like a rejection.
/// - `split` removes items that are tested separately after a rejection without a reason.
/// - `widened` corrects other parts of the hello that may have caused the rejection. It returns whether
///   it changed anything.
/// - `at_a_time` is the maximum number of items in a hello.
#[allow(clippy::too_many_arguments, reason = "the kinds of lists differ in all of them")]
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
    // Lists that remain, the next one last. There is one, unless long hellos are lost or rejected.
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
                            let why = "it chose an item that was not offered";
                            taken.end = End::Unclear(why.to_owned());
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
                    // Without a reason: the server may have chosen a suite on which it failed, which
                    // would hide the others.
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
                    taken.end = End::Unclear("even short hellos are lost on the path".to_owned());
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

/// The latest end, unless an earlier one was unclear.
fn end(before: End, now: End) -> End {
    match before {
        End::Unclear(_) => before,
        End::Refused(_) => now,
    }
}

/// All suites to test with this version, the best first: those of TLS 1.3, or all others.
pub fn suites_of(version: Version) -> Vec<u16> {
    let tls1_3 = version == Version::Tls1_3;
    let mut all: Vec<Suite> =
        suites().iter().copied().filter(|s| s.is_tls1_3() == tls1_3).collect();
    // DHE comes after all other sound suites, because servers without a prime fail on it.
    let rank = |s: &Suite| {
        let sound = s.bits() >= 128 && !s.is_anonymous() && s.bulk() != Bulk::Rc4;
        (!sound, s.key_exchange() == KeyExchange::Dhe, !s.is_forward_secret(), !s.is_aead())
    };
    all.sort_by_key(rank);
    all.into_iter().map(|s| s.code).collect()
}

/// Splits off DHE suites, if there are others.
fn without_dhe(list: &mut Vec<u16>) -> Option<Vec<u16>> {
    let dhe = |code: &u16| agrees_by(*code, KeyExchange::Dhe);
    let (dhe, others): (Vec<u16>, Vec<u16>) = list.iter().partition(|code| dhe(code));
    if dhe.is_empty() || others.is_empty() {
        return None;
    }
    *list = others;
    Some(dhe)
}

/// A hello of this version with these suites and the extensions that every server needs.
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
            // Some servers reject TLS 1.2 without it.
            .with(extension::EXTENDED_MASTER_SECRET, Vec::new()),
    }
}

/// Protocols to offer by ALPN.
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

/// Groups that TLS 1.3 allows, and groups that it forbids (RFC 8446 section 4.2.7). Some servers accept the
/// latter; others reject the whole hello because of them.
pub fn groups_tls1_3() -> (Vec<u16>, Vec<u16>) {
    let sound = |code: &u16| !matches!(code, 0x0001..=0x0016 | 0x001a..=0x001c | 0xff01..=0xff02);
    GROUPS.iter().map(|g| g.code).partition(sound)
}

/// Curves to test with TLS 1.2 and earlier. The groups of RFC 7919 are left out: a server that sees them
/// may not use its own prime, which the scan wants to know.
pub fn curves() -> Vec<u16> {
    let curve = |g: &&Group| {
        g.kind == GroupKind::Elliptic && !g.name.ends_with("tls13") && !g.name.starts_with("GC")
    };
    GROUPS.iter().filter(curve).map(|g| g.code).collect()
}

/// Other observations in the answers to offers of suites.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Chosen groups in that order, each removed from the next offer.
    pub groups: Vec<u16>,
    /// Signature schemes, in the same way.
    pub schemes: Vec<u16>,
    /// Primes of DHE, with the suite.
    pub primes: Vec<(u16, Vec<u8>)>,
}

/// Narrows the offered groups and schemes along with the suites, so that each answer shows a new one. When
/// none is left, all are offered again.
struct Narrow {
    version: Version,
    /// Groups to offer; `None` means all.
    groups: Option<Vec<u16>>,
    schemes: Option<Vec<u16>>,
    /// Whether to wait for more than the ServerHello.
    flights: bool,
    seen: Seen,
}

/// Servers usually accept three suites in TLS 1.3. After this many, all groups are offered again, so that a
/// rejection is about the suites only.
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

    /// Offers all groups and schemes, and reads primes.
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

    /// The chosen suite, if the version is the right one.
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

    /// Offers all again. Returns whether that is more than before.
    fn widen(&mut self) -> bool {
        let groups = self.groups.take().is_some() && !self.seen.groups.is_empty();
        let schemes = self.schemes.take().is_some() && !self.seen.schemes.is_empty();
        groups || schemes
    }
}

/// Moves the chosen item from `left` to `seen`. Stops narrowing if it was not in `left`.
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

/// The suites that a server accepts with a version. With TLS 1.2, `knows` is signalled when the first is
/// found.
///
/// If the server rejects our hello, an ordinary client's hello is tried: the server may reject the long
/// lists and not the version.
pub async fn enumerate_suites(
    prober: &Prober,
    version: Version,
    knows: Option<oneshot::Sender<()>>,
) -> (Taken<u16>, Seen) {
    // Boxed, because all futures together would overflow a thread's stack.
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
        // The observation counts, although the suite's own probe was rejected.
        Ok(flight) if !taken.items.iter().any(|(suite, _)| *suite == flight.hello.suite) => {
            let why =
                "a suite that was chosen for an ordinary client was rejected in its own probe";
            taken.end = End::Unclear(why.to_owned());
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
    // Offer all suites; then again, with the chosen one last. If the server then chooses another, it
    // follows our order. It has no order to find out, so parts of the list can be tested in parallel.
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

/// A part of the list that is tested separately.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Ecdhe,
    Dhe,
    OtherAead,
    Other,
}

/// Tests the kinds of key exchange and cipher in parallel.
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
        // ECDHE shows curves and signature schemes. Reading primes (DHE) requires whole flights.
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
    let now = || narrow.lock();
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
    (taken, narrow.into_inner().seen)
}

/// Whether the server has its own order of suites, or follows the client's. `taken` contains the accepted
/// suites in the order in which the server chose them.
pub async fn has_own_order(prober: &Prober, version: Version, taken: &[u16]) -> Option<bool> {
    let (first, last) = (*taken.first()?, *taken.last()?);
    if first == last {
        return None;
    }
    // Some servers with their own order prefer ChaCha20 if the client puts it first.
    let chacha = |code: &u16| Suite::from_code(*code).is_some_and(|s| s.name.contains("CHACHA20"));
    let mut reversed: Vec<u16> = taken.iter().rev().copied().collect();
    if let Some(at) = reversed.iter().position(|code| !chacha(code)) {
        reversed[..=at].rotate_right(1);
    }
    match prober.probe(&offer(prober, version, &reversed), Until::Hello).await {
        Outcome::Taken(flight) => Some(flight.hello.suite != reversed[0]),
        Outcome::Refused { why, of_hello: true } => {
            let what = "suites that were chosen before were rejected later";
            prober.observed.differs(format!("{version}: {what}: {why}"));
            None
        }
        _ => None,
    }
}

/// The items that are not known yet.
fn unknown(mut list: Vec<u16>, known: &[u16]) -> Vec<u16> {
    list.retain(|code| !known.contains(code));
    list
}

/// Puts an ordinary client's items first, if few are offered at a time.
fn in_order(mut list: Vec<u16>, ordinary: &[u16], plain: bool) -> Vec<u16> {
    list.sort_by_key(|code| plain && !ordinary.contains(code));
    list
}

/// The groups that a server accepts in TLS 1.3, except `known` ones. A hello without key shares makes the
/// server request one.
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
        // This server needs key shares, so only groups that the scanner can create shares for are tested.
        let shared = |group: &u16| handshake::GROUPS.contains(group);
        let mut taken = ask(sound.into_iter().filter(shared).collect()).await;
        let others = "the server does not answer hellos without key shares: only groups that the \
                      scanner can create shares for were tested";
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

/// The curves that a server accepts in TLS 1.2 or earlier, except `known` ones.
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

/// The schemes with which a server signs TLS 1.2 key exchanges, except `known` ones.
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
