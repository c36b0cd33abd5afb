//! POODLE against TLS (CVE-2014-8730): if a server does not check the padding of CBC records, an attacker on
//! the path can decrypt them, as in SSL 3.0.

use futures_util::future::join_all;

use super::{version_of, worst};
use crate::active::Prober;
use crate::active::handshake::tls12::{Client, Faults, can_complete};
use crate::active::handshake::{BadPadding, Failure};
use crate::active::link::Trouble;
use crate::active::sessions::{complete, complete_with};
use crate::active::shown::patiently;
use crate::facts::{Answer, Facts};
use crate::names::{Suite, suites};
use crate::parse::ClientHello;

/// `vulnerability.poodle_tls`: handshakes that are correct except for the padding in the record of our
/// Finished; its length and MAC are correct. A server that then sends its own Finished did not check. This is
/// tested with each hello for which the server accepts a CBC suite.
pub async fn poodle_tls(prober: &Prober, hellos: &[ClientHello]) -> Facts {
    let mut facts = Facts::default();
    let (answer, evidence) = ask(prober, hellos).await;
    facts.set("vulnerability.poodle_tls", answer, None, evidence);
    facts
}

async fn ask(prober: &Prober, hellos: &[ClientHello]) -> (Answer, String) {
    let answers = join_all(hellos.iter().map(|hello| in_version(prober, hello))).await;
    let answers = hellos.iter().zip(answers);
    worst(answers.map(|(hello, (answer, why))| (version_of(hello), answer, why)).collect())
}

async fn in_version(prober: &Prober, hello: &ClientHello) -> (Answer, String) {
    let mut cbc = hello.clone();
    let usable = |suite: Suite| suite.is_cbc() && can_complete(suite);
    cbc.suites.retain(|code| Suite::from_code(*code).is_some_and(usable));
    let ended = match cbc.suites.is_empty() {
        true => None,
        false => Some(complete(prober, &cbc, None).await.1),
    };
    match ended {
        Some(Ok(())) => match wrong(prober, &cbc).await {
            Ok(found) => found,
            Err(failure) => (Answer::Inconclusive, failure.to_string()),
        },
        // handshake_failure, insufficient_security: no suite in common.
        None | Some(Err(Failure::Alert(2, 40 | 71))) => match other_suite(prober, hello).await {
            Ok(Some(suite)) => {
                let evidence = format!(
                    "{suite} is accepted, but this scanner cannot complete a handshake with it"
                );
                (Answer::Inconclusive, evidence)
            }
            Ok(None) => (Answer::No, "no CBC suite is accepted".to_owned()),
            Err(failure) => (Answer::Inconclusive, failure.to_string()),
        },
        Some(Err(failure)) => (Answer::Inconclusive, failure.to_string()),
    }
}

/// An accepted CBC suite for which the scanner cannot complete a handshake. `None` requires an alert.
async fn other_suite(
    prober: &Prober,
    hello: &ClientHello,
) -> Result<Option<&'static str>, Failure> {
    let cbc = suites().iter().filter(|suite| suite.is_cbc() && !can_complete(**suite));
    let offer = hello.clone().suites(cbc.map(|suite| suite.code));
    let client = patiently(async || {
        let mut client = Client::new(prober.connect().await?, offer.clone());
        client.greet().await?;
        Ok(client)
    });
    match client.await {
        Ok(client) => {
            let suite = client.server.and_then(|server| Suite::from_code(server.suite));
            Ok(suite.map(|suite| suite.name))
        }
        Err(Failure::Alert(..)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn wrong(prober: &Prober, hello: &ClientHello) -> Result<(Answer, String), Failure> {
    let mut refused = Vec::new();
    for (padding, which) in
        [(BadPadding::All, "all bytes wrong"), (BadPadding::First, "the first byte wrong")]
    {
        let faults = Faults { padding: Some(padding) };
        let (client, ended) = complete_with(prober, hello, None, faults).await;
        match ended {
            Ok(()) => {
                let evidence = format!("Finished was accepted with wrong padding ({which})");
                return Ok((Answer::Yes, evidence));
            }
            Err(
                failure @ (Failure::Alert(..) | Failure::Trouble(Trouble::Closed | Trouble::Reset)),
            ) if client.finished => refused.push(format!("wrong padding ({which}): {failure}")),
            Err(failure) => return Err(failure),
        }
    }
    Ok((Answer::No, refused.join("; ")))
}
