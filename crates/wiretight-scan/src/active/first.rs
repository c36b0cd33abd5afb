//! The first contact: whether anything is there, whether it speaks TLS, and a hello that it answers.

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

/// What the first hellos brought.
pub enum First {
    /// A hello was answered.
    Answered,
    /// TLS is spoken, but each hello was refused.
    Refused {
        /// What the last refusal was.
        why: String,
        /// Whether a server says that it does not know the name, or wants one (unrecognized_name).
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

/// Looks for a hello that is answered, from the one most likely to be.
///
/// Whatever else the first one meets, the others are sent as well: a single answer in the clear, a
/// close, a reset may come of chance, of a limit, or of what that hello offers.
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
    // The others at the same time, and with them whether something else is spoken, so that a silent
    // host does not take a time-out for each.
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
        // It takes two answers to say so.
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

/// Between two tries of which the second shows whether the first was chance.
const BEFORE_ANOTHER: Duration = Duration::from_millis(300);

/// What hellos met that were not answered.
#[derive(Default)]
struct Seen {
    /// The last refusal.
    refused: Option<String>,
    /// An alert that says that the name is not known.
    wants_name: Option<String>,
    /// The first answer that was no TLS, and how many were none.
    not_tls: Option<(Vec<u8>, u32)>,
    /// Whether nothing came, or the connection ended without a word.
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
    // Before TLS 1.2 there were fewer suites, and servers that hang with too many.
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

/// Whether the port says something by itself, or answers a line.
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
    // The first byte of a record is no plaintext protocol.
    if matches!(said, [20..=24, ..]) {
        return None;
    }
    if speaks_of_tls(said) {
        return Some(Reached::Unknown {
            evidence: format!(
                "no hello was answered, and a request in the clear: {}",
                printable(said)
            ),
        });
    }
    Some(no_tls(said, "it says"))
}

/// What servers of HTTPS answer to a request in the clear: nginx, Apache, Go.
fn speaks_of_tls(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(&said[..said.len().min(4096)]).to_lowercase();
    ["https port", "ssl-enabled server port", "https server"].iter().any(|text| said.contains(text))
}

/// What is no TLS is plaintext where it is text. Bytes that nobody can read may be anything: SSL 2.0,
/// another protocol that encrypts, noise.
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
