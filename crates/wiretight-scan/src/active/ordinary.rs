//! ClientHellos like those of ordinary clients.
//!
//! A scan offers all suites, groups and signature schemes, and sends no key shares. Some servers reject
//! a hello for that alone. So before a version is reported as unsupported, the scan tries an ordinary
//! client's hello. If the server answers it, the scan continues with such hellos, which offer only a
//! few items at a time.

use std::sync::atomic::Ordering::Relaxed;

use super::enumerate::suites_of;
use super::probe::{Flight, Outcome, Prober, Reply, Until};
use super::quic::with_shares;
use crate::names::{Suite, Version};
use crate::parse::{ClientHello, extension};

/// In the evidence of every version that is unsupported because of an alert.
pub const TOO: &str = "also to an ordinary client's hello";

/// The number of suites, groups or schemes in a hello to a server that rejects long lists.
const FEW: usize = 20;
/// A server that answers a hello with this many suites does not reject long lists.
const MANY: usize = 200;

const MODERN: [u16; 16] = [
    0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc009, 0xc013, 0xc00a, 0xc014, 0x009e, 0x009c,
    0x009d, 0x002f, 0x0035, 0x000a,
];
const OLD: [u16; 14] = [
    0xc009, 0xc013, 0xc00a, 0xc014, 0x0033, 0x0039, 0x002f, 0x0035, 0xc012, 0x0016, 0x000a, 0x0005,
    0x0004, 0x0032,
];
/// x25519, secp256r1, secp384r1, secp521r1.
pub const GROUPS: [u16; 4] = [0x001d, 0x0017, 0x0018, 0x0019];
/// Groups with a key share.
const SHARED: [u16; 2] = [0x001d, 0x0017];
pub const SCHEMES: [u16; 13] = [
    0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601, 0x0807, 0x0603, 0x0203, 0x0201,
    0x0202,
];

/// The hello of an ordinary client of this version's time. For TLS 1.3, it also offers TLS 1.2.
pub fn hello(prober: &Prober, version: Version) -> ClientHello {
    let hello = prober.hello(version);
    match version {
        Version::Ssl2 | Version::Ssl3 => {
            let suites = OLD.into_iter().chain([0x00ff]);
            ClientHello { extensions: Vec::new(), ..hello }.suites(suites)
        }
        Version::Tls1_0 | Version::Tls1_1 => beside(hello.suites(OLD)),
        Version::Tls1_2 => beside(hello.suites(MODERN)).signatures(&SCHEMES),
        Version::Tls1_3 => {
            let suites = [0x1301, 0x1302, 0x1303].into_iter().chain(MODERN);
            let hello = beside(hello.suites(suites))
                .supported_versions(&[0x0304, 0x0303])
                .signatures(&SCHEMES)
                .with(extension::PSK_KEY_EXCHANGE_MODES, vec![1, 1]);
            with_shares(hello, &SHARED)
        }
    }
}

fn beside(hello: ClientHello) -> ClientHello {
    hello
        .groups(&GROUPS)
        .with(extension::EC_POINT_FORMATS, vec![1, 0])
        .with(extension::EXTENDED_MASTER_SECRET, Vec::new())
        .with(extension::RENEGOTIATION_INFO, vec![0])
}

/// The result of an ordinary client's hello, after ours was rejected.
pub enum Asked {
    /// The version is supported.
    Spoken(Box<Flight>),
    /// The version is not supported: the evidence.
    Refused(String),
    /// The version is not supported, unless with suites that ordinary clients do not offer. This needs
    /// short lists, because the server rejects long ones.
    Perhaps(String),
    /// Could not be determined.
    Unclear(String),
}

/// Tests a version like an ordinary client; `ours` says how our own hello was rejected.
pub async fn ask(prober: &Prober, version: Version, ours: &str) -> Asked {
    // Probing for silence is slow. If the server has answered a long list, the silence is not caused by
    // the length, so a second probe is not needed.
    if !ours.starts_with("alert") && prober.observed.longest() >= MANY {
        return Asked::Refused(ours.to_owned());
    }
    match prober.probe(&hello(prober, version), Until::Hello).await {
        Outcome::Taken(flight) if flight.hello.version() == Some(version) => Asked::Spoken(flight),
        Outcome::Taken(flight) => {
            let other = flight.hello.version().map(|v| v.to_string()).unwrap_or_default();
            Asked::Refused(format!("{ours}; an ordinary client's hello is answered with {other}"))
        }
        Outcome::Refused { why, of_hello } => {
            let evidence = match why == ours {
                true => format!("{why}, {TOO}"),
                false => format!("{ours}; {why}, {TOO}"),
            };
            // protocol_version
            let version_alone = of_hello && why.contains("(70)");
            match version_alone || version == Version::Tls1_3 || takes_many(prober).await {
                true => Asked::Refused(evidence),
                false => Asked::Perhaps(evidence),
            }
        }
        Outcome::Unclear(why) => Asked::Unclear(format!("{ours}; an ordinary client's: {why}")),
        Outcome::TooLarge => Asked::Unclear("even short hellos are lost on the path".to_owned()),
    }
}

/// Whether the server answers a hello with hundreds of suites.
async fn takes_many(prober: &Prober) -> bool {
    if prober.observed.longest() >= MANY {
        return true;
    }
    let Some(control) = prober.control.get() else { return false };
    let mut known = control.suites.clone();
    known.extend(suites_of(Version::Tls1_2).into_iter().filter(|s| !control.suites.contains(s)));
    matches!(prober.ask(&control.clone().suites(known), Until::Hello).await, Reply::Hello(_))
}

impl Prober {
    /// From now on, test this version with an ordinary client's hellos.
    pub(super) fn ask_plainly(&self, version: Version) {
        self.plain.fetch_or(1 << version as u32, Relaxed);
    }

    pub(super) fn asks_plainly(&self, version: Version) -> bool {
        self.plain.load(Relaxed) & (1 << version as u32) != 0
    }

    /// The maximum number of suites, groups or schemes in one hello of this version.
    pub(super) fn at_a_time(&self, version: Version) -> usize {
        if self.asks_plainly(version) { FEW } else { usize::MAX }
    }

    /// Signature schemes to offer if they are not what is tested.
    pub(super) fn schemes(&self, version: Version) -> Vec<u16> {
        match self.asks_plainly(version) {
            true => SCHEMES.to_vec(),
            false => super::enumerate::schemes(),
        }
    }

    /// Adds key shares, if the server does not answer TLS 1.3 hellos without them.
    pub(super) fn shares(&self, hello: ClientHello, groups: &[u16]) -> ClientHello {
        match self.asks_plainly(Version::Tls1_3) {
            true => with_shares(hello, groups),
            false => hello.key_shares(&[]),
        }
    }
}

/// All suites in the order in which they are tested in short lists: those of ordinary clients first.
pub fn in_turn(version: Version) -> Vec<u16> {
    let mut all = suites_of(version);
    let ordinary: &[u16] = match version {
        Version::Tls1_2 => &MODERN,
        _ => &OLD,
    };
    let late = |code: &u16| {
        let needs_newer = Suite::from_code(*code).is_some_and(Suite::needs_tls1_2);
        (!ordinary.contains(code), version < Version::Tls1_2 && needs_newer)
    };
    all.sort_by_key(late);
    all
}
