//! Probes for flaws in a server's behaviour. Each has a control in the same run: the same probe in a correct form. No
//! probe keeps data that a server leaks.

mod ccs_injection;
pub(super) mod heartbleed;
mod poodle_tls;
pub(super) mod robot;
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
use crate::facts::{Answer, Facts};
use crate::names::Version;
use crate::parse::{ClientHello, extension};

/// All probes, one after the other. `hellos` contains one hello from [`super::handshake::tls12::hello`] for
/// each supported version from TLS 1.0 to TLS 1.2, the newest first.
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

/// The probes with complete handshakes: [`sessions`] (except renegotiation, which comes last), heartbeats,
/// tickets; and RSA key transport in parallel. Also returns whether handshakes can be completed.
pub(super) async fn with_sessions(
    prober: &Prober,
    hello: &ClientHello,
) -> (Facts, Result<(), String>) {
    let in_turn = async {
        let (mut facts, seen) = sessions::seen(prober, hello).await;
        match seen.heartbeat {
            Some(false) => facts.extend(heartbleed::without_extension()),
            _ => facts.extend(Box::pin(heartbleed(prober, hello)).await),
        }
        facts.extend(ticketbleed::after(prober, hello, seen.tickets).await);
        (facts, seen.completes)
    };
    let ((mut facts, completes), robot) = tokio::join!(in_turn, robot(prober, hello));
    facts.extend(robot);
    (facts, completes)
}

/// The same flaws with an older version.
pub(super) async fn of_older(
    prober: &Prober,
    hello: &ClientHello,
    greeting: &ClientHello,
) -> Facts {
    let in_turn = async {
        // One handshake shows whether the server supports these extensions.
        let offer = hello
            .clone()
            .with(extension::HEARTBEAT, vec![1])
            .with(extension::SESSION_TICKET, Vec::new());
        let (client, ended) = Box::pin(sessions::complete(prober, &offer, None)).await;
        let answered = |kind| client.server.as_ref().map(|server| server.extension(kind).is_some());
        let heartbeats = answered(extension::HEARTBEAT);
        let tickets = match (answered(extension::SESSION_TICKET), &client.session) {
            (Some(false), _) => Some(false),
            (_, Some(session)) => Some(session.ticket.is_some()),
            _ => None,
        };
        match ended {
            Ok(()) => client.channel.close().await,
            Err(_) => drop(client),
        }
        let mut facts = match heartbeats {
            Some(false) => heartbleed::without_extension(),
            _ => Box::pin(heartbleed(prober, hello)).await,
        };
        facts.extend(match tickets {
            Some(false) => ticketbleed::without_tickets(),
            _ => Box::pin(ticketbleed(prober, hello)).await,
        });
        facts
    };
    let (mut facts, robot) = tokio::join!(in_turn, robot::of_known(prober, greeting));
    facts.extend(robot);
    facts
}

/// Repeats ROBOT with the accepted suites, if the first probe was inconclusive, or was rejected although
/// there are such suites.
pub(super) async fn robot_of_known(prober: &Prober, hello: &ClientHello, said: &Facts) -> Facts {
    let known = said.get("vulnerability.robot");
    let settled = known.is_some_and(|fact| match fact.answer {
        Answer::Yes => true,
        Answer::No => !fact.evidence.starts_with(robot::NOT_ACCEPTED) || !robot::transported(hello),
        _ => false,
    });
    match settled {
        true => Facts::default(),
        false => robot::of_known(prober, hello).await,
    }
}

/// Combines the answers of several versions: a flaw in one version is a flaw, and a "no" requires all of
/// them.
fn worst(answers: Vec<(Version, Answer, String)>) -> (Answer, String) {
    let rank = |answer: Answer| match answer {
        Answer::Yes => 3,
        Answer::Inconclusive => 2,
        Answer::No => 1,
        Answer::Untested => 0,
    };
    let worst = answers.iter().map(|(_, answer, _)| *answer).max_by_key(|answer| rank(*answer));
    let worst = worst.unwrap_or(Answer::Untested);
    let said = answers.into_iter().filter(|(_, answer, _)| *answer == worst);
    let said: Vec<String> =
        said.map(|(version, _, evidence)| format!("{version}: {evidence}")).collect();
    (worst, said.join("; "))
}

fn version_of(hello: &ClientHello) -> Version {
    Version::from_code(hello.version).unwrap_or(Version::Tls1_2)
}

/// The probes that need a hello for each supported version.
pub(super) async fn of_versions(prober: &Prober, greetings: &[ClientHello]) -> Facts {
    if greetings.is_empty() {
        return Facts::default();
    }
    let (mut facts, poodle_tls) =
        tokio::join!(ccs_injection(prober, greetings), poodle_tls(prober, greetings));
    facts.extend(poodle_tls);
    facts
}

/// The server's next action.
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

/// Waits up to one second for the server's next action: a server that rejects something does so at once.
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
    use futures_util::future::join_all;

    use super::*;
    use crate::active::handshake::tls12;
    use crate::active::handshake::tls12::mock::{EarlyCcs, Flaws, Heartbeat, start};
    use crate::facts::Answer;
    use crate::names::Version;

    /// The result of each probe for a mock with these flaws.
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
    async fn each_flaw_is_distinguished_from_its_absence() {
        use Answer::{Inconclusive, No, Yes};
        let right = Flaws::default();
        let cases = [
            (right, [No, No, No]),
            (Flaws { heartbeat: Heartbeat::Right, ..right }, [No, No, No]),
            (Flaws { heartbeat: Heartbeat::Bleeding, ..right }, [Yes, No, No]),
            (Flaws { heartbeat: Heartbeat::BleedingLate, ..right }, [Yes, No, No]),
            (Flaws { heartbeat: Heartbeat::BleedingAndStrict, ..right }, [Yes, No, No]),
            (Flaws { heartbeat: Heartbeat::BleedingSlowly, ..right }, [Yes, No, No]),
            (Flaws { heartbeat: Heartbeat::Strict, ..right }, [No, No, No]),
            (Flaws { heartbeat: Heartbeat::Once, ..right }, [Inconclusive, No, No]),
            (Flaws { heartbeat: Heartbeat::Deaf, ..right }, [Inconclusive, No, No]),
            (Flaws { early_ccs: EarlyCcs::Taken, ..right }, [No, Yes, No]),
            (Flaws { early_ccs: EarlyCcs::AllTaken, ..right }, [No, Yes, No]),
            (Flaws { early_ccs: EarlyCcs::PassedOver, ..right }, [No, No, No]),
            (Flaws { early_ccs: EarlyCcs::AllPassedOver, ..right }, [No, No, No]),
            (Flaws { careless_padding: true, ..right }, [No, No, Yes]),
        ];
        // In parallel, because some of them are silent for seconds.
        let all = join_all(cases.map(|(flaws, expected)| {
            Box::pin(async move { (answers(flaws).await, flaws, expected) })
        }));
        for (answers, flaws, expected) in all.await {
            assert_eq!(answers, expected, "{flaws:?}");
        }
    }
}
