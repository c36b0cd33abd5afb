//! Flaws that a server shows by how it behaves. Each probe has a control: a correct twin of what is
//! sent, in the same run. None takes from a server more than its answer.

mod ccs_injection;
mod heartbleed;
mod poodle_tls;
mod robot;
mod ticketbleed;

use std::time::Duration;

pub use ccs_injection::ccs_injection;
pub use heartbleed::heartbleed;
pub use poodle_tls::poodle_tls;
pub use robot::robot;
pub use ticketbleed::ticketbleed;

use super::handshake::{Channel, Failure, Incoming};
use super::link::{Trouble, alert_name};
use super::{Prober, sessions};
use crate::facts::Facts;
use crate::parse::ClientHello;

/// All of them, one after the other. One hello for each version from TLS 1.0 to TLS 1.2 that is
/// spoken, the newest first, made by [`super::handshake::tls12::hello`].
pub async fn all(prober: &Prober, hellos: &[ClientHello]) -> Facts {
    let mut facts = Facts::default();
    if let Some(newest) = hellos.first() {
        facts.extend(heartbleed(prober, newest).await);
        facts.extend(ticketbleed(prober, newest).await);
        facts.extend(robot(prober, newest).await);
        facts.extend(ccs_injection(prober, hellos).await);
        facts.extend(poodle_tls(prober, hellos).await);
    }
    facts
}

/// What handshakes that are completed with this hello show: [`sessions`] but for renegotiation, which is
/// for the end, heartbeats and tickets; and RSA key transport, at the same time. And whether handshakes
/// come to their end.
pub(super) async fn with_sessions(
    prober: &Prober,
    hello: &ClientHello,
) -> (Facts, Result<(), String>) {
    let in_turn = async {
        let (mut facts, seen) = sessions::seen(prober, hello).await;
        match seen.heartbeat {
            Some(false) => facts.extend(heartbleed::without_extension()),
            _ => facts.extend(heartbleed(prober, hello).await),
        }
        facts.extend(ticketbleed::after(prober, hello, seen.tickets).await);
        (facts, seen.completes)
    };
    let ((mut facts, completes), robot) = tokio::join!(in_turn, robot(prober, hello));
    facts.extend(robot);
    (facts, completes)
}

/// The others, which need a hello for each version that is spoken.
pub(super) async fn of_versions(prober: &Prober, hellos: &[ClientHello]) -> Facts {
    if hellos.is_empty() {
        return Facts::default();
    }
    let (mut facts, poodle_tls) =
        tokio::join!(ccs_injection(prober, hellos), poodle_tls(prober, hellos));
    facts.extend(poodle_tls);
    facts
}

/// What a server does next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    Says(Incoming),
    Alert(u8, u8),
    Closes,
    Resets,
    IsSilent,
    Other(String),
}

impl std::fmt::Display for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Says(Incoming::Message(message)) => {
                write!(f, "handshake message {}", message.kind.0)
            }
            Self::Says(Incoming::ChangeCipherSpec) => f.write_str("ChangeCipherSpec"),
            Self::Says(Incoming::Heartbeat(_)) => f.write_str("a heartbeat"),
            Self::Says(_) => f.write_str("data"),
            Self::Alert(level, description) => f.write_str(&alert_name(*level, *description)),
            Self::Closes => f.write_str("closed without an alert"),
            Self::Resets => f.write_str("reset"),
            Self::IsSilent => f.write_str("silence"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Waits for what the server does, no longer than a second: what takes offence does so at once.
async fn next(channel: &mut Channel) -> Next {
    next_within(channel, Duration::from_secs(1)).await
}

async fn next_within(channel: &mut Channel, wait: Duration) -> Next {
    channel.link.patience = channel.link.patience.min(wait);
    match channel.next().await {
        Ok(Incoming::Alert(level, description)) => Next::Alert(level, description),
        Ok(incoming) => Next::Says(incoming),
        Err(Failure::Trouble(Trouble::Closed)) => Next::Closes,
        Err(Failure::Trouble(Trouble::Reset)) => Next::Resets,
        Err(Failure::Trouble(Trouble::TimedOut(_))) => Next::IsSilent,
        Err(failure) => Next::Other(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::active::handshake::tls12;
    use crate::active::handshake::tls12::mock::{EarlyCcs, Flaws, Heartbeat, start};
    use crate::facts::Answer;
    use crate::names::Version;

    /// What each probe says of a mock with these flaws.
    async fn answers(flaws: Flaws) -> [Answer; 3] {
        let prober = start(flaws).await;
        let hellos = [tls12::hello(&prober, Version::Tls1_2)];
        let mut facts = heartbleed(&prober, &hellos[0]).await;
        facts.extend(ccs_injection(&prober, &hellos).await);
        facts.extend(poodle_tls(&prober, &hellos).await);
        eprintln!("{flaws:?}: {facts:#?}");
        ["heartbleed", "ccs_injection", "poodle_tls"]
            .map(|name| facts.answer(&format!("vulnerability.{name}")))
    }

    #[tokio::test]
    async fn each_flaw_is_told_from_its_absence() {
        use Answer::{No, Yes};
        let right = Flaws::default();
        for (flaws, expected) in [
            (right, [No, No, No]),
            (Flaws { heartbeat: Heartbeat::Right, ..right }, [No, No, No]),
            (Flaws { heartbeat: Heartbeat::Bleeding, ..right }, [Yes, No, No]),
            (Flaws { heartbeat: Heartbeat::BleedingLate, ..right }, [Yes, No, No]),
            (Flaws { early_ccs: EarlyCcs::Taken, ..right }, [No, Yes, No]),
            (Flaws { early_ccs: EarlyCcs::AllTaken, ..right }, [No, Yes, No]),
            (Flaws { early_ccs: EarlyCcs::PassedOver, ..right }, [No, No, No]),
            (Flaws { early_ccs: EarlyCcs::AllPassedOver, ..right }, [No, No, No]),
            (Flaws { careless_padding: true, ..right }, [No, No, Yes]),
        ] {
            assert_eq!(answers(flaws).await, expected, "{flaws:?}");
        }
    }
}
