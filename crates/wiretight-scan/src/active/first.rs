//! The first contact: whether anything is there, whether it speaks TLS, and a hello that it answers.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::enumerate::{offer, schemes, suites_of};
use super::link::{Trouble, alert_name, printable};
use super::probe::{Prober, Reply, Until};
use crate::Reached;
use crate::names::{Suite, Version};
use crate::parse::{ClientHello, extension};
use crate::target::Start;

/// What the first hellos brought.
pub enum First {
    /// A hello was answered.
    Answered,
    /// TLS is spoken, but each hello was refused: what the last refusal was.
    Refused(String),
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
pub async fn first(prober: &Prober) -> First {
    let mut hellos = hellos(prober).into_iter();
    let Some(small) = hellos.next() else { return First::Refused(String::new()) };
    let mut reply = prober.ask(&small, Until::Hello).await;
    if matches!(reply, Reply::Trouble(Trouble::Reset | Trouble::Closed)) {
        // Chance, or a limit: once more, after a pause.
        sleep(Duration::from_millis(300)).await;
        reply = prober.ask(&small, Until::Hello).await;
    }
    let silent = match &reply {
        Reply::Trouble(trouble @ Trouble::TimedOut(_)) => Some(trouble.clone()),
        _ => None,
    };
    let mut refused = match reply {
        Reply::Hello(_) => {
            let _ = prober.control.set(small);
            return First::Answered;
        }
        Reply::Alert(level, description) => Some(alert_name(level, description)),
        Reply::Trouble(Trouble::TimedOut(_)) => None,
        Reply::Trouble(trouble) => match nothing(prober, &trouble).await {
            Some(reached) => return First::Nothing(reached),
            None => None,
        },
    };
    // The others at the same time, and with them whether something else is spoken, so that a silent
    // host does not take a time-out for each.
    let rest: Vec<ClientHello> = hellos.collect();
    let asked = join_all(rest.iter().map(|hello| prober.ask(hello, Until::Hello)));
    let in_the_clear = async {
        match &silent {
            Some(trouble) => nothing(prober, trouble).await,
            None => None,
        }
    };
    let (in_the_clear, replies) = tokio::join!(in_the_clear, asked);
    let mut last = String::new();
    for (reply, hello) in replies.into_iter().zip(&rest) {
        match reply {
            Reply::Hello(_) => {
                let _ = prober.control.set(hello.clone());
                return First::Answered;
            }
            Reply::Alert(level, description) => refused = Some(alert_name(level, description)),
            Reply::Trouble(trouble) => last = trouble.to_string(),
        }
    }
    match (refused, in_the_clear) {
        (Some(why), _) => First::Refused(why),
        (None, Some(reached)) => First::Nothing(reached),
        (None, None) => {
            First::Nothing(Reached::Unknown { evidence: format!("every hello: {last}") })
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

/// What leaves nothing to scan.
async fn nothing(prober: &Prober, trouble: &Trouble) -> Option<Reached> {
    match trouble {
        Trouble::Unreachable(why) => Some(Reached::Unreachable { evidence: why.clone() }),
        Trouble::NotTls(bytes) => Some(no_tls(bytes, "a hello was answered with")),
        Trouble::Start(why) => Some(Reached::Unknown { evidence: why.clone() }),
        // Nothing at all came. What waits for the client to speak its own protocol may answer that.
        Trouble::TimedOut(_) | Trouble::Closed | Trouble::Reset
            if matches!(prober.start, Start::Direct | Start::Https) =>
        {
            speaks_in_the_clear(prober).await
        }
        _ => None,
    }
}

/// Whether the port says something by itself, or answers a line.
async fn speaks_in_the_clear(prober: &Prober) -> Option<Reached> {
    let mut link = match prober.connect().await {
        Ok(link) => link,
        Err(Trouble::TimedOut(after)) => {
            let evidence = format!("no connection within {:.0} s", after.as_secs_f64());
            return Some(Reached::Unreachable { evidence });
        }
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
    Some(no_tls(said, "it says"))
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
