//! The first contact: whether the port answers, whether it supports TLS, and which hello it answers.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::enumerate::{offer, schemes, suites_of};
use super::link::{Trouble, alert_name, printable};
use super::probe::{Prober, Reply, Until};
use crate::facts::Reached;
use crate::names::{Suite, Version};
use crate::parse::{ClientHello, extension};
use crate::target::Start;

/// The result of the first hellos.
pub enum First {
    /// A hello was answered.
    Answered,
    /// The port supports TLS, but rejected every hello.
    Refused {
        /// The last rejection.
        why: String,
        /// Whether the server does not know the name, or requires one (unrecognized_name).
        wants_name: bool,
    },
    /// There is nothing to scan.
    Nothing(Reached),
}

/// Groups, suites and schemes of a small hello that nearly every server answers.
const GROUPS: [u16; 8] = [0x001d, 0x0017, 0x0018, 0x0019, 0x11ec, 0x001e, 0x0100, 0x001a];
const SUITES: [u16; 22] = [
    0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc009, 0xc013, 0xc00a,
    0xc014, 0x009e, 0x009f, 0x0033, 0x0039, 0x009c, 0x009d, 0x002f, 0x0035, 0x000a,
];

/// Looks for a hello that is answered, starting with the most likely one.
///
/// If the first one is not answered, the others are sent as well. A single plaintext answer, close or
/// reset can be accidental, or be caused by a limit or by the content of that hello.
pub async fn first(prober: &Prober) -> First {
    let mut hellos = hellos(prober).into_iter();
    let Some(small) = hellos.next() else {
        return First::Refused { why: String::new(), wants_name: false };
    };
    let mut reply = prober.ask(&small, Until::Hello).await;
    let mut seen = Seen::default();
    if matches!(reply, Reply::Trouble(Trouble::Reset | Trouble::Closed | Trouble::NotTls(_))) {
        seen.take(reply);
        sleep(BEFORE_ANOTHER).await;
        reply = prober.ask(&small, Until::Hello).await;
    }
    match reply {
        Reply::Hello(_) => {
            let _ = prober.control.set(small);
            return First::Answered;
        }
        Reply::Trouble(Trouble::Unreachable(evidence)) => {
            return First::Nothing(Reached::Unreachable { evidence });
        }
        Reply::Trouble(Trouble::Start(evidence)) => {
            return First::Nothing(Reached::Unknown { evidence });
        }
        reply => seen.take(reply),
    }
    if let Some(why) = seen.wants_name {
        return First::Refused { why, wants_name: true };
    }
    // Send the others in parallel, together with the test for a plaintext protocol, so that a silent host
    // costs one time-out instead of one for each.
    let rest: Vec<ClientHello> = hellos.collect();
    let asked = join_all(rest.iter().map(|hello| prober.ask(hello, Until::Hello)));
    let web = matches!(prober.start, Start::Direct | Start::Https);
    let in_the_clear = async {
        match seen.silent && web {
            true => speaks_in_the_clear(prober).await,
            false => None,
        }
    };
    let (mut in_the_clear, replies) = tokio::join!(in_the_clear, asked);
    for (reply, hello) in replies.into_iter().zip(&rest) {
        match reply {
            Reply::Hello(_) => {
                let _ = prober.control.set(hello.clone());
                return First::Answered;
            }
            reply => seen.take(reply),
        }
    }
    if let Some(why) = seen.wants_name {
        return First::Refused { why, wants_name: true };
    }
    if let Some(why) = seen.refused {
        return First::Refused { why, wants_name: false };
    }
    if let Some(Reached::Plaintext { .. }) = in_the_clear {
        // This result requires two answers.
        sleep(BEFORE_ANOTHER).await;
        in_the_clear = speaks_in_the_clear(prober).await;
    }
    First::Nothing(match (seen.not_tls, in_the_clear) {
        (Some((bytes, times)), None) => match no_tls(&bytes, "hellos were answered with") {
            Reached::Plaintext { evidence } if times < 2 => {
                let evidence = format!("once, {evidence}; then: {}", seen.last);
                Reached::Unknown { evidence }
            }
            reached => reached,
        },
        (_, Some(reached)) => reached,
        (None, None) => Reached::Unknown { evidence: format!("every hello: {}", seen.last) },
    })
}

/// The pause before a second attempt that confirms the first.
const BEFORE_ANOTHER: Duration = Duration::from_millis(300);

/// The replies to hellos that were not answered with a ServerHello.
#[derive(Default)]
struct Seen {
    /// The last rejection.
    refused: Option<String>,
    /// The alert that says that the name is unknown.
    wants_name: Option<String>,
    /// The first answer that was not TLS, and the number of such answers.
    not_tls: Option<(Vec<u8>, u32)>,
    /// Whether there was a time-out, or a connection was closed or reset.
    silent: bool,
    last: String,
}

impl Seen {
    fn take(&mut self, reply: Reply) {
        match reply {
            Reply::Hello(_) => {}
            Reply::Alert(level, description) => {
                let why = alert_name(level, description);
                // unrecognized_name
                if description == 112 {
                    self.wants_name = Some(why.clone());
                }
                self.refused = Some(why);
            }
            Reply::Trouble(trouble) => {
                self.last = trouble.to_string();
                match trouble {
                    Trouble::NotTls(bytes) => match &mut self.not_tls {
                        Some((_, times)) => *times += 1,
                        None => self.not_tls = Some((bytes, 1)),
                    },
                    Trouble::TimedOut(_) | Trouble::Closed | Trouble::Reset => self.silent = true,
                    _ => {}
                }
            }
        }
    }
}

fn hellos(prober: &Prober) -> Vec<ClientHello> {
    let small = prober
        .hello(Version::Tls1_3)
        .suites(SUITES)
        .supported_versions(&[0x0304, 0x0303])
        .groups(&GROUPS)
        .with(extension::EC_POINT_FORMATS, vec![1, 0])
        .signatures(&schemes()[3..22])
        .key_shares(&[])
        .with(extension::RENEGOTIATION_INFO, vec![0]);
    let small_1_2 = offer(prober, Version::Tls1_2, &SUITES[3..]).groups(&GROUPS[..4]);
    let wide = |version| offer(prober, version, &suites_of(version));
    // Old servers hang if there are too many suites, so leave out those of TLS 1.2.
    let old: Vec<u16> = suites_of(Version::Ssl3)
        .into_iter()
        .filter(|code| Suite::from_code(*code).is_some_and(|s| !s.needs_tls1_2()))
        .collect();
    vec![
        small,
        small_1_2,
        wide(Version::Tls1_3),
        wide(Version::Tls1_2),
        offer(prober, Version::Tls1_0, &old),
        offer(prober, Version::Ssl3, &old),
    ]
}

/// Whether the port sends something first, or answers a plaintext line.
async fn speaks_in_the_clear(prober: &Prober) -> Option<Reached> {
    let mut link = match prober.connect().await {
        Ok(link) => link,
        Err(_) => return None,
    };
    link.patience = link.patience.min(Duration::from_secs(2));
    if !matches!(link.more().await, Ok(true)) {
        link.send(b"HEAD / HTTP/1.0\r\n\r\n").await.ok()?;
        if !matches!(link.more().await, Ok(true)) {
            return None;
        }
    }
    let said = link.buffered();
    // This is a TLS record.
    if matches!(said, [20..=24, ..]) {
        return None;
    }
    if speaks_of_tls(said) {
        return Some(Reached::Unknown {
            evidence: format!(
                "no hello was answered; the answer to a plaintext request: {}",
                printable(said)
            ),
        });
    }
    Some(no_tls(said, "it says"))
}

/// Whether this is the answer of an HTTPS server (nginx, Apache, Go) to a plaintext request.
fn speaks_of_tls(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(&said[..said.len().min(4096)]).to_lowercase();
    ["https port", "ssl-enabled server port", "https server"].iter().any(|text| said.contains(text))
}

/// Classifies an answer that is not TLS: readable text is plaintext. Other bytes may be anything: SSL 2.0,
/// another encrypted protocol, noise.
pub(super) fn no_tls(bytes: &[u8], how: &str) -> Reached {
    let first = &bytes[..bytes.len().min(64)];
    let readable = |b: &&u8| matches!(**b, b'\t' | b'\r' | b'\n' | b' '..=b'~');
    let text = first.iter().filter(readable).count();
    let evidence = format!("{how} {}", printable(bytes));
    match first.len() >= 4 && text * 10 >= first.len() * 9 {
        true => Reached::Plaintext { evidence },
        false => Reached::Unknown { evidence },
    }
}
