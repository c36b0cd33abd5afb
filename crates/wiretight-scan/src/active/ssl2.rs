//! The probe for SSL 2.0, whose hellos have their own format.

use std::sync::atomic::Ordering::Relaxed;

use super::link::{Trouble, alert_name, printable};
use super::probe::{Prober, Reply, Until};
use crate::facts::{Answer, Facts, Value};
use crate::names::SSL2_SUITES;
use crate::parse::{Malformed, Ssl2Answer, alert, next_record, ssl2_client_hello, ssl2_reply};

/// Whether SSL 2.0 is supported, and with which ciphers.
pub async fn ssl2(prober: &Prober) -> Facts {
    let mut facts = Facts::default();
    let (answer, ciphers, evidence) = match ask(prober).await {
        Ok(Ssl2Answer::Hello(hello)) => {
            let known = |code: &u32| {
                let known = SSL2_SUITES.iter().find(|(c, _)| c == code);
                known.map_or_else(|| format!("0x{code:06x}"), |(_, name)| (*name).to_owned())
            };
            let names: Vec<String> = hello.ciphers.iter().take(64).map(known).collect();
            (Answer::Yes, names, "the server sent an SSL 2.0 SERVER-HELLO".to_owned())
        }
        Ok(Ssl2Answer::Error(code)) => {
            (Answer::Yes, Vec::new(), format!("the server sent an SSL 2.0 ERROR: {code}"))
        }
        Err((answer, evidence)) => (answer, Vec::new(), evidence),
    };
    prober.speaks_ssl2.store(answer == Answer::Yes, Relaxed);
    for name in &ciphers {
        facts.set(format!("suite.ssl2.{name}"), Answer::Yes, None, "listed in the SERVER-HELLO");
    }
    let listed = if ciphers.is_empty() && answer == Answer::Yes { Answer::No } else { answer };
    let value = (!ciphers.is_empty()).then_some(Value::List(ciphers));
    facts.set("suites.ssl2", listed, value, evidence.clone());
    facts.set("protocol.ssl2", answer, None, evidence);
    facts
}

/// Whether the server currently answers an SSL 2.0 hello.
pub async fn is_answered(prober: &Prober) -> bool {
    matches!(once(prober).await, Ok(Ok(_)))
}

/// An SSL 2.0 answer, or what another reply means.
async fn ask(prober: &Prober) -> Result<Ssl2Answer, (Answer, String)> {
    let mut last = String::new();
    // Current servers close, or send a TLS alert. If there is no reply, try again.
    for _ in 0..2 {
        match once(prober).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(said)) => return Err((Answer::No, said)),
            Err(trouble) => last = trouble.to_string(),
        }
        let Some(control) = prober.control.get() else { break };
        if matches!(prober.ask(control, Until::Hello).await, Reply::Hello(_)) {
            let evidence = format!("{last}; a control handshake after it was answered");
            return Err((Answer::No, evidence));
        }
    }
    Err((Answer::Inconclusive, last))
}

async fn once(prober: &Prober) -> Result<Result<Ssl2Answer, String>, Trouble> {
    let mut challenge = [0; 16];
    let _ = aws_lc_rs::rand::fill(&mut challenge);
    let codes: Vec<u32> = SSL2_SUITES.iter().map(|(code, _)| *code).collect();
    let mut link = prober.connect().await?;
    link.send(&ssl2_client_hello(&codes, challenge)).await?;
    loop {
        match ssl2_reply(link.buffered()) {
            Ok(Some(answer)) => return Ok(Ok(answer)),
            Ok(None) => {}
            Err(Malformed(_)) => match next_record(link.buffered()) {
                Ok(Some((record, _))) => {
                    return Ok(Err(match alert(record.fragment) {
                        Ok((level, description)) => alert_name(level, description),
                        Err(_) => "the server answered with TLS".to_owned(),
                    }));
                }
                Ok(None) => {}
                Err(_) => return Ok(Err(format!("not SSL: {}", printable(link.buffered())))),
            },
        }
        if !link.more().await? {
            return Err(Trouble::Closed);
        }
    }
}
