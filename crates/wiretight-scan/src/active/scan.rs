//! A scan of one address: the order of the probes.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::caa::caa;
use super::certificates::certificates;
use super::enumerate::{
    End, Seen, enumerate_curves, enumerate_groups, enumerate_schemes, enumerate_suites,
    has_own_order, offer, prime,
};
use super::first::{First, first};
use super::handshake::tls12;
use super::hidden::hidden;
use super::http::{host_header, http, redirect};
use super::identity::ClientIdentity;
use super::link::Trouble;
use super::older::{self, Asked};
use super::pace::Paces;
use super::probe::{Outcome, Prober, Until};
use super::quic::quic;
use super::quic_only::quic_only;
use super::spoken::Spoken;
use super::vulnerabilities;
use super::{derived, ssl2, starttls};
use super::{extensions, settle, unasked};
use crate::certificate::{Presented, Stores, examine};
use crate::facts::{Answer, Fact, Facts, Reached, Value};
use crate::names::{Group, KeyExchange, SignatureScheme, Suite, Version, common_prime};
use crate::parse::ClientHello;
use crate::target::{Host, Start, Target};
use crate::{Report, invariant, judge};

/// How long to wait for an HTTP response on a port that need not be a web server.
const PERHAPS_WEB: Duration = Duration::from_secs(2);

/// The pause before a second attempt that confirms the first.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(300);

/// Options of a scan.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time limit for any single answer.
    pub timeout: Duration,
    /// Time limit for one address. Facts that are open by then are inconclusive.
    pub max_time: Duration,
    /// Maximum number of simultaneous connections to one address.
    pub connections: u32,
    /// The rate limits, which several scans can share.
    pub paces: Arc<Paces>,
    /// The trusted roots.
    pub stores: Arc<Stores>,
    /// The address of all targets, instead of resolving their names.
    pub address: Option<IpAddr>,
    /// The client certificate.
    pub identity: Option<Arc<ClientIdentity>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_time: Duration::from_secs(120),
            timeout: Duration::from_secs(10),
            connections: 5,
            paces: Arc::default(),
            stores: Arc::default(),
            address: None,
            identity: None,
        }
    }
}

/// The addresses of a target, each once.
pub async fn resolve(target: &Target, options: &Options) -> Result<Vec<SocketAddr>, String> {
    let timeout = options.timeout;
    if let Some(address) = options.address {
        return Ok(vec![SocketAddr::new(address, target.port)]);
    }
    match &target.host {
        Host::Address(IpAddr::V6(address), Some(zone)) => {
            let text = format!("[{address}%{zone}]:{}", target.port);
            lookup(text, timeout).await
        }
        Host::Address(address, _) => Ok(vec![SocketAddr::new(*address, target.port)]),
        Host::Name(name) => lookup(format!("{name}:{}", target.port), timeout).await,
    }
}

async fn lookup(text: String, timeout: Duration) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::time::timeout(timeout, tokio::net::lookup_host(&text)).await;
    let found = found.map_err(|_| format!("{text}: the resolver did not answer"))?;
    let mut all: Vec<_> = found.map_err(|e| format!("{text}: {e}"))?.collect();
    all.sort_unstable();
    all.dedup();
    match all.is_empty() {
        true => Err(format!("{text}: the name has no address")),
        false => Ok(all),
    }
}

/// Scans one address of a target.
pub async fn scan_address(target: &Target, address: SocketAddr, options: &Options) -> Report {
    let (started, clock) = (jiff::Timestamp::now(), Instant::now());
    let prober = prober(target, address, options);
    let mut facts = Facts::default();
    let mut presented = Vec::new();
    let reached = Box::pin(ask_all(&prober, target, &mut facts, &mut presented)).await;
    let spoken = reached == Reached::Tls;
    if spoken {
        if let Some(why) = prober.contact.stopped() {
            settle::after_it_stopped(&mut facts, why);
        }
        settle::observations(&mut facts, &prober.observed);
        derived::derive(&mut facts);
    }
    settle::slow_start(&mut facts, prober.slowest_start(), prober.connections());
    let examined = examine(&presented, Some(&target.host), started, &options.stores);
    facts.extend(examined.facts);
    let observed = settle::report(&prober.observed);
    if spoken {
        unasked::give_reasons(&mut facts, &prober);
        invariant::enforce(&mut facts, &observed, !examined.chains.is_empty());
    }
    let chains = examined.chains;
    let judgement = Arc::new(judge::judge(&reached, &facts, &chains));
    Report {
        target: target.clone(),
        address: Some(address.ip()),
        started,
        seconds: clock.elapsed().as_secs_f64(),
        connections: prober.connections(),
        reached,
        observed,
        facts,
        chains,
        judgement,
    }
}

/// Creates the prober for a target's address.
pub(super) fn prober(target: &Target, address: SocketAddr, options: &Options) -> Prober {
    let name = match &target.host {
        Host::Name(name) => Some(name.clone()),
        Host::Address(..) => None,
    };
    let pace = options.paces.of(address.ip(), options.connections);
    let mut prober = Prober::new(address, name, target.start, options.timeout, pace);
    prober.end = Instant::now() + options.max_time;
    prober.identity = options.identity.clone();
    prober
}

async fn ask_all(
    prober: &Prober,
    target: &Target,
    facts: &mut Facts,
    presented: &mut Vec<Presented>,
) -> Reached {
    if !matches!(prober.start, Start::Direct | Start::Https) {
        match Box::pin(start_facts(prober)).await {
            Ok(found) => facts.extend(found),
            Err(Trouble::Unreachable(evidence)) => return Reached::Unreachable { evidence },
            Err(trouble) => tracing::debug!(%trouble, "STARTTLS"),
        }
        if facts.yes("plaintext") {
            let evidence = facts.get("starttls.offered").map(|f| f.evidence.clone());
            return Reached::Plaintext { evidence: evidence.unwrap_or_default().into_owned() };
        }
    }
    // In parallel, so that a host that is down does not cost the time of both.
    let web = matches!(prober.start, Start::Direct | Start::Https);
    let mut quic = timed("QUIC", async {
        match web {
            true => {
                quic(prober.address, prober.name.as_deref(), prober.timeout, &prober.pace).await
            }
            false => Facts::default(),
        }
    });
    let mut quic_found = None;
    let contact = {
        let mut contact = timed("first", first(prober));
        tokio::select! {
            biased;
            contact = &mut contact => contact,
            found = &mut quic => {
                quic_found = Some(found);
                contact.await
            }
        }
    };
    let quic = async {
        match quic_found {
            Some(found) => found,
            None => quic.await,
        }
    };
    let mut refused = None;
    match contact {
        First::Answered => {}
        First::Refused { why, wants_name: true } => {
            settle::nothing_told(facts, prober, &why, true);
            return Reached::Tls;
        }
        First::Refused { why, wants_name: false } => {
            facts.extend(ssl2::ssl2(prober).await);
            tracing::debug!(%why, "every hello was rejected");
            refused = Some(why);
        }
        First::Nothing(Reached::Unreachable { evidence }) => {
            return Box::pin(quic_only(prober, facts, quic.await, evidence)).await;
        }
        First::Nothing(reached) => {
            let ssl2 = match reached {
                Reached::Unknown { .. } => ssl2::ssl2(prober).await,
                _ => Facts::default(),
            };
            match &reached {
                _ if ssl2.yes("protocol.ssl2") => facts.extend(ssl2),
                Reached::Plaintext { evidence } => {
                    facts.set("plaintext", Answer::Yes, None, evidence.clone());
                    return reached;
                }
                _ => return reached,
            }
        }
    }
    if facts.answer("plaintext") != Answer::No {
        facts.set("plaintext", Answer::No, None, "TLS is supported");
    }
    // In parallel: all versions with their suites, and then everything that depends on them; the checks
    // outside of TLS; and, as soon as TLS 1.2 is known to be supported, the complete handshakes, which
    // take the most round trips.
    let ssl2_known = facts.get("protocol.ssl2").is_some();
    let (knows, known) = oneshot::channel();
    let (completed, early) = oneshot::channel();
    let early_handshakes = async {
        let seen = match known.await {
            Ok(()) => {
                let hello = tls12::hello(prober, Version::Tls1_2);
                Some(vulnerabilities::with_sessions(prober, &hello).await)
            }
            Err(_) => None,
        };
        let _ = completed.send(seen);
    };
    let ((), (), around, found) = tokio::join!(
        timed("control", again(prober)),
        timed("handshakes", early_handshakes),
        timed("around", around(prober, target, quic)),
        timed("TLS", tls(prober, ssl2_known, knows, early)),
    );
    facts.extend(around);
    facts.extend(found.facts);
    presented.extend(found.presented);
    // Last, because a server that serves one connection at a time, and pauses after a rejection, would
    // delay all other probes.
    let renegotiation = older::renegotiation(prober, &found.asked, found.completes);
    facts.extend(Box::pin(renegotiation).await);
    again(prober).await;
    if let Some(why) = refused {
        settle::nothing_told(facts, prober, &why, false);
    }
    if facts.yes("client_certificate.required") {
        // Without a client certificate these could not be tested, so they are not inconclusive.
        facts.untest("session.");
        facts.untest("http.");
    }
    Reached::Tls
}

/// The results about TLS.
struct Found {
    facts: Facts,
    presented: Vec<Presented>,
    /// The versions that are tested separately.
    asked: Vec<Asked>,
    /// Whether handshakes with the newest of them can be completed.
    completes: Result<(), String>,
}

/// The results of the early TLS 1.2 handshakes, if there were any.
type Early = Option<(Facts, Result<(), String>)>;

async fn tls(
    prober: &Prober,
    ssl2_known: bool,
    knows: oneshot::Sender<()>,
    early: oneshot::Receiver<Early>,
) -> Found {
    let mut facts = Facts::default();
    let ssl2 = async {
        match ssl2_known {
            true => Facts::default(),
            false => ssl2::ssl2(prober).await,
        }
    };
    let (ssl2, ssl3, tls1_0, tls1_1, tls1_2, tls1_3) = tokio::join!(
        ssl2,
        timed("SSL 3.0", version(prober, Version::Ssl3, None)),
        timed("TLS 1.0", version(prober, Version::Tls1_0, None)),
        timed("TLS 1.1", version(prober, Version::Tls1_1, None)),
        timed("TLS 1.2", version(prober, Version::Tls1_2, Some(knows))),
        timed("TLS 1.3", version(prober, Version::Tls1_3, None)),
    );
    facts.extend(ssl2);
    let versions = [ssl3, tls1_0, tls1_1, tls1_2, tls1_3];
    let mut spoken = Spoken { versions: Vec::new(), seen: Vec::new(), unclear: Vec::new() };
    for (version, taken, seen, found) in versions {
        facts.extend(found);
        spoken.versions.push((version, taken));
        spoken.seen.push((version, seen));
    }
    let unclear = |version: &Version| {
        facts.answer(&format!("suites.{}", version.key())) == Answer::Inconclusive
    };
    spoken.unclear = Version::ALL.into_iter().filter(unclear).collect();
    let asked = older::asked(prober, &spoken);
    let greetings: Vec<ClientHello> = asked.iter().map(|asked| asked.greeting.clone()).collect();
    let handshakes = async {
        let first = match early.await {
            Ok(Some((facts, Ok(())))) => Some(facts),
            // Try again later, with suites that are known to be accepted.
            _ => None,
        };
        older::handshakes(prober, &asked, first).await
    };
    let (
        groups,
        curves,
        schemes,
        primes,
        extensions,
        (shown, sni),
        hidden,
        (handshakes, completes),
        flaws,
        (older_chains, older),
    ) = tokio::join!(
        timed("groups", groups(prober, &spoken)),
        timed("curves", curves(prober, &spoken)),
        timed("schemes", schemes(prober, &spoken)),
        timed("primes", primes(prober, &spoken)),
        timed("extensions", extensions::extensions(prober, &spoken)),
        timed("certificates", certificates(prober, &spoken)),
        timed("hidden", hidden(prober, &spoken)),
        timed("sessions", handshakes),
        timed("flaws", vulnerabilities::of_versions(prober, &greetings)),
        timed("older versions", older::shown(prober, &spoken)),
    );
    let mut presented = shown;
    presented.extend(hidden.0);
    presented.extend(older_chains);
    let found = [groups, curves, schemes, primes, extensions, sni, handshakes, flaws, hidden.1];
    // One version may request a client certificate while another does not: keep a yes.
    let certificates_asked: Vec<(&str, Fact)> = [
        "client_certificate.requested",
        "client_certificate.required",
        "client_certificate.authorities",
    ]
    .into_iter()
    .filter_map(|id| Some((id, first_yes(&found, id)?)))
    .collect();
    found.into_iter().for_each(|found| facts.extend(found));
    for (id, Fact { answer, value, evidence }) in certificates_asked {
        facts.set(id, answer, value, evidence);
    }
    for (version, found) in older {
        older::add_worse(&mut facts, version, found);
    }
    Found { facts, presented, asked, completes }
}

/// The first of these facts that is `yes`.
fn first_yes(found: &[Facts], id: &str) -> Option<Fact> {
    found.iter().filter_map(|facts| facts.get(id)).find(|f| f.answer == Answer::Yes).cloned()
}

/// Logs how long a part took.
///
/// Each part is boxed, because all parts together would overflow a thread's stack.
fn timed<T>(
    part: &'static str,
    asked: impl Future<Output = T>,
) -> Pin<Box<impl Future<Output = T>>> {
    Box::pin(async move {
        let begun = Instant::now();
        let found = asked.await;
        tracing::debug!(part, seconds = begun.elapsed().as_secs_f64(), "part finished");
        found
    })
}

/// Repeats the control probe, to see whether it gets the same answer.
async fn again(prober: &Prober) {
    if let Some(control) = prober.control.get() {
        let _ = prober.ask(control, Until::Hello).await;
    }
}

/// The facts from an attempt of STARTTLS. The most serious results (no encryption, or a removed offer)
/// require a second attempt with the same result.
async fn start_facts(prober: &Prober) -> Result<Facts, Trouble> {
    let mut found = prober.start_facts().await?;
    if !found.yes("plaintext") && !found.yes("starttls.stripped") {
        return Ok(found);
    }
    sleep(BETWEEN_ATTEMPTS).await;
    let again = prober.start_facts().await;
    for id in ["starttls.offered", "starttls.stripped", "plaintext"] {
        let Some(fact) = found.get(id).cloned() else { continue };
        let then = match &again {
            Ok(again) if again.answer(id) == fact.answer => continue,
            Ok(again) => again.get(id).map(|fact| fact.evidence.to_string()).unwrap_or_default(),
            Err(trouble) => trouble.to_string(),
        };
        let evidence = format!("{}; second attempt: {then}", fact.evidence);
        found.set(id, Answer::Inconclusive, None, evidence);
    }
    Ok(found)
}

/// The checks outside of TLS: DNS, HTTP, QUIC, and the protocol before STARTTLS.
async fn around(prober: &Prober, target: &Target, quic: impl Future<Output = Facts>) -> Facts {
    let mut facts = Facts::default();
    let caa = async {
        let deadline = prober.end.min(Instant::now() + prober.timeout);
        match &prober.name {
            Some(name) => Some(caa(name, deadline).await),
            None => None,
        }
    };
    let injection = async {
        match prober.start {
            Start::Direct | Start::Https => None,
            start => {
                let connect = || prober.stream();
                let name = prober.name.as_deref();
                let time = starttls::injection_time(prober.timeout);
                let deadline = Instant::now() + time;
                let asked = starttls::injection(connect, start, name, None, deadline);
                Some(timeout_at(prober.end, asked).await.unwrap_or_else(|_| Fact {
                    answer: Answer::Inconclusive,
                    value: None,
                    evidence: Trouble::TimeIsUp.to_string().into(),
                }))
            }
        }
    };
    let (name, host) = (prober.name.as_deref(), host_header(target));
    // A request has three steps, with a time-out each.
    let left = prober.end.saturating_duration_since(Instant::now()) / 3;
    let web = async {
        let mut facts = Facts::default();
        if !matches!(target.start, Start::Direct | Start::Https) {
            return facts;
        }
        let address = prober.address;
        // This need not be a web server, so no answer is not a finding.
        let perhaps = target.start == Start::Direct && target.port != 443;
        let timeout = match perhaps {
            true => prober.timeout.min(PERHAPS_WEB),
            false => prober.timeout,
        };
        let timeout = timeout.min(left);
        let to_port_80 = async {
            match target.port {
                443 => redirect((address.ip(), 80).into(), &host, timeout).await,
                _ => Facts::default(),
            }
        };
        let (http, quic, redirect) = {
            let identity = prober.identity.as_deref();
            tokio::join!(http(address, name, &host, timeout, identity), quic, to_port_80)
        };
        for found in [http, quic, redirect] {
            facts.extend(found);
        }
        if perhaps && !facts.yes("http.status") {
            facts.untest("http.");
        }
        facts
    };
    let (caa, injection, web) = tokio::join!(caa, injection, web);
    facts.extend(web);
    for (id, fact) in [("certificate.caa", caa), ("starttls.injection", injection)] {
        if let Some(Fact { answer, value, evidence }) = fact {
            facts.set(id, answer, value, evidence);
        }
    }
    facts
}

/// Whether a version is supported, and with which suites. `knows` is signalled as soon as the first is
/// known.
async fn version(
    prober: &Prober,
    version: Version,
    knows: Option<oneshot::Sender<()>>,
) -> (Version, Vec<u16>, Seen, Facts) {
    let mut facts = Facts::default();
    let (taken, seen) = enumerate_suites(prober, version, knows).await;
    let key = version.key();
    let list = taken.list();
    let name = |code: u16| {
        Suite::from_code(code).map_or_else(|| format!("0x{code:04x}"), |s| s.name.to_owned())
    };
    let spoken = format!("protocol.{key}");
    match (list.first(), &taken.end) {
        (Some(code), _) => {
            facts.set(spoken, Answer::Yes, None, format!("the server chose {}", name(*code)));
        }
        (None, End::Refused(why)) => facts.set(spoken, Answer::No, None, why.clone()),
        (None, End::Unclear(why)) => facts.set(spoken, Answer::Inconclusive, None, why.clone()),
    }
    for code in &list {
        let id = format!("suite.{key}.{}", name(*code));
        facts.set(id, Answer::Yes, None, "chosen when offered");
    }
    let order = match list.len() {
        0 | 1 => None,
        _ => Some(has_own_order(prober, version, &list).await),
    };
    let preference = format!("preference.{key}");
    match order {
        Some(Some(true)) => {
            facts.set(preference, Answer::Yes, None, "it chose the same suite from another order");
        }
        Some(Some(false)) => {
            facts.set(preference, Answer::No, None, "it chose the first suite offered");
        }
        Some(None) => facts.set(
            preference,
            Answer::Inconclusive,
            None,
            "no answer to an offer in another order",
        ),
        None if list.is_empty() => {}
        None => facts.set(preference, Answer::Untested, None, "only one suite is accepted"),
    }
    set_list(&mut facts, format!("suites.{key}"), &list, &taken.end, name);
    (version, list, seen, facts)
}

/// Sets the fact about a list: yes if the list is complete.
fn set_list(
    facts: &mut Facts,
    id: impl Into<Cow<'static, str>>,
    taken: &[u16],
    end: &End,
    name: impl Fn(u16) -> String,
) {
    let names: Vec<String> = taken.iter().copied().map(name).collect();
    let found = match names.len() {
        0 => None,
        _ => Some(Value::List(names)),
    };
    let (answer, why) = match (&found, end) {
        (Some(_), End::Refused(why)) => (Answer::Yes, format!("all others were rejected: {why}")),
        (None, End::Refused(why)) => (Answer::No, why.clone()),
        (Some(_), End::Unclear(why)) => (Answer::Inconclusive, format!("there may be more: {why}")),
        (None, End::Unclear(why)) => (Answer::Inconclusive, why.clone()),
    };
    facts.set(id, answer, found, why);
}

/// An empty list is implausible for something that the server must use, so it is unclear.
fn not_none(list: &[u16], end: End, why: &str) -> End {
    match end {
        End::Refused(refused) if list.is_empty() => End::Unclear(format!("{why}: {refused}")),
        end => end,
    }
}

fn group_name(code: u16) -> String {
    Group::from_code(code).map_or_else(|| format!("0x{code:04x}"), |g| g.name.to_owned())
}

async fn groups(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let suites = spoken.suites(Version::Tls1_3);
    if suites.is_empty() {
        return facts;
    }
    let mut list = spoken.seen(Version::Tls1_3).map_or_else(Vec::new, |seen| seen.groups.clone());
    let taken = enumerate_groups(prober, suites, &list).await;
    list.extend(taken.list());
    for code in &list {
        facts.set(
            format!("group.{}", group_name(*code)),
            Answer::Yes,
            None,
            "requested in a HelloRetryRequest",
        );
    }
    if let [first, .., last] = list.as_slice() {
        let reversed: Vec<u16> = list.iter().rev().copied().collect();
        let hello = offer(prober, Version::Tls1_3, suites).groups(&reversed);
        match prober.probe(&hello, Until::Hello).await {
            Outcome::Taken(flight) if flight.group() == Some(*last) => {
                facts.set(
                    "preference.groups",
                    Answer::No,
                    None,
                    "it requested the first group offered",
                );
            }
            Outcome::Taken(_) => {
                let evidence = format!("{} is preferred even if offered last", group_name(*first));
                facts.set("preference.groups", Answer::Yes, None, evidence);
            }
            Outcome::Refused { why, .. } | Outcome::Unclear(why) => {
                facts.set("preference.groups", Answer::Inconclusive, None, why);
            }
            Outcome::TooLarge => {}
        }
    }
    let end = not_none(&list, taken.end, "TLS 1.3 is supported, but no group was found");
    set_list(&mut facts, "groups.tls1_3", &list, &end, group_name);
    facts
}

async fn curves(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let Some((version, suites)) = spoken.agreeing_by(KeyExchange::Ecdhe) else { return facts };
    let mut list = spoken.seen(version).map_or_else(Vec::new, |seen| seen.groups.clone());
    let taken = enumerate_curves(prober, version, &suites, &list).await;
    list.extend(taken.list());
    for code in &list {
        let evidence = format!("chosen in {version}");
        facts.set(format!("group.{}", group_name(*code)), Answer::Yes, None, evidence);
    }
    let end = not_none(&list, taken.end, "ECDHE suites are accepted, but no curve was found");
    set_list(&mut facts, "groups.tls1_2", &list, &end, group_name);
    facts
}

async fn schemes(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    let mut signed: Vec<u16> = spoken.suites(Version::Tls1_2).to_vec();
    signed.retain(|code| {
        let suite = Suite::from_code(*code);
        suite.is_some_and(|s| {
            matches!(s.key_exchange(), KeyExchange::Ecdhe | KeyExchange::Dhe) && !s.is_anonymous()
        })
    });
    if signed.is_empty() {
        return facts;
    }
    let mut list = spoken.seen(Version::Tls1_2).map_or_else(Vec::new, |seen| seen.schemes.clone());
    let taken = enumerate_schemes(prober, &signed, &list).await;
    list.extend(taken.list());
    let name = |code: u16| {
        SignatureScheme::from_code(code)
            .map_or_else(|| format!("0x{code:04x}"), |s| s.name.to_owned())
    };
    let end = not_none(&list, taken.end, "key exchanges are signed, but no scheme was found");
    set_list(&mut facts, "signatures.tls1_2", &list, &end, name);
    facts
}

/// The primes of DHE, with and without export suites.
async fn primes(prober: &Prober, spoken: &Spoken) -> Facts {
    let mut facts = Facts::default();
    // Libraries choose the prime by the size of the certificate's key, or by the cipher's if there is no
    // certificate, and use a short prime for export suites. So test one suite of each kind, in the newest
    // version that accepts it.
    let mut kinds: Vec<(_, Version, Vec<u16>)> = Vec::new();
    for version in spoken.versions().rev().filter(|v| *v < Version::Tls1_3) {
        for code in spoken.suites(version) {
            let suite = Suite::from_code(*code).filter(|s| s.key_exchange() == KeyExchange::Dhe);
            let Some(suite) = suite else { continue };
            let strong = suite.is_anonymous() && suite.bits() >= 256;
            let kind = (suite.is_export(), suite.authentication(), strong);
            match kinds.iter_mut().find(|(known, ..)| *known == kind) {
                Some((_, newest, suites)) if *newest == version => suites.push(*code),
                Some(_) => {}
                None => kinds.push((kind, version, vec![*code])),
            }
        }
    }
    if kinds.is_empty() {
        if let Some(version) = spoken.unclear(|v| (Version::Ssl3..Version::Tls1_3).contains(&v)) {
            let evidence = format!("it is not known which suites {version} accepts");
            facts.set("dh.bits", Answer::Inconclusive, None, evidence);
        } else if spoken.newest_before_tls1_3().is_some() {
            facts.set("dh.bits", Answer::No, None, "no DHE suite is accepted");
        }
        return facts;
    }
    let mut smallest: Option<(u64, Vec<u8>)> = None;
    let mut smaller = |p: &[u8]| {
        let bits = bits(p);
        if smallest.as_ref().is_none_or(|(least, _)| bits < *least) {
            smallest = Some((bits, p.to_vec()));
        }
    };
    for (_, version, suites) in kinds {
        // Primes that were found while testing suites need no further probe.
        let seen = spoken.seen(version).map_or(&[][..], |seen| seen.primes.as_slice());
        let known = seen.iter().filter(|(suite, _)| suites.contains(suite));
        let mut asked = false;
        known.for_each(|(_, p)| {
            asked = true;
            smaller(p);
        });
        if asked {
            continue;
        }
        match prober.probe(&offer(prober, version, &suites), Until::Done).await {
            Outcome::Taken(flight) => {
                let Some(p) = prime(&flight) else { continue };
                smaller(p);
            }
            Outcome::Refused { why, .. } | Outcome::Unclear(why) => {
                facts.set("dh.bits", Answer::Inconclusive, None, why);
                return facts;
            }
            Outcome::TooLarge => {}
        }
    }
    let Some((bits, p)) = smallest else {
        facts.set("dh.bits", Answer::Inconclusive, None, "no key exchange could be read");
        return facts;
    };
    facts.set("dh.bits", Answer::Yes, Some(Value::Number(bits)), format!("a prime of {bits} bits"));
    match common_prime(&p) {
        Some(name) => {
            let value = Some(Value::Text(name.to_owned()));
            facts.set("dh.common_prime", Answer::Yes, value, format!("the prime of {name}"));
        }
        None => facts.set("dh.common_prime", Answer::No, None, "it is not a known prime"),
    }
    let safe = if bits >= 2048 { Answer::Yes } else { Answer::No };
    facts.set("dh.safe", safe, None, format!("{bits} bits"));
    facts
}

fn bits(p: &[u8]) -> u64 {
    let leading = p.first().map_or(0, |b| b.leading_zeros());
    (p.len() as u64 * 8).saturating_sub(leading.into())
}
