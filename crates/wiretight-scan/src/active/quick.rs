//! The quick scan: one hello to each host, to see what a modern client gets.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::contact::Contact;
use super::derived::set_post_quantum;
use super::first::no_tls;
use super::link::{Trouble, alert_name};
use super::probe::{Flight, Prober, Reply, Until};
use super::scan::{Options, prober};
use super::{ordinary, settle};
use crate::facts::{Answer, Facts, Reached};
use crate::names::{Group, Suite, Version};
use crate::parse::{ClientHello, extension};
use crate::target::Target;
use crate::{Report, judge};

/// Sends one hello to an address. Facts that this cannot determine stay untested.
pub async fn quick(target: &Target, address: SocketAddr, options: &Options) -> Report {
    let (started, clock) = (jiff::Timestamp::now(), Instant::now());
    let mut prober = prober(target, address, options);
    // In large scans, most addresses do not answer, so try only once.
    prober.contact = Contact::new(1);
    let mut facts = Facts::default();
    let mut reply = prober.ask(&hello(&prober), Until::Hello).await;
    if let Reply::Trouble(Trouble::NotTls(bytes)) = &reply
        && let Reached::Plaintext { .. } = no_tls(bytes, "")
    {
        // The result "not encrypted" requires two answers.
        reply = prober.ask(&ordinary::hello(&prober, Version::Tls1_2), Until::Hello).await;
    }
    let reached = match reply {
        Reply::Hello(flight) => {
            chosen(&flight, &mut facts);
            Reached::Tls
        }
        // An alert shows that TLS is supported.
        Reply::Alert(level, description) => {
            settle::nothing_told(
                &mut facts,
                &prober,
                &alert_name(level, description),
                description == 112,
            );
            Reached::Tls
        }
        Reply::Trouble(Trouble::Unreachable(evidence)) => Reached::Unreachable { evidence },
        Reply::Trouble(Trouble::NotTls(bytes)) => {
            let reached = no_tls(&bytes, "a hello was answered with");
            if let Reached::Plaintext { evidence } = &reached {
                facts.set("plaintext", Answer::Yes, None, evidence.clone());
            }
            reached
        }
        Reply::Trouble(trouble) => Reached::Unknown { evidence: trouble.to_string() },
    };
    if reached == Reached::Tls {
        facts.set("plaintext", Answer::No, None, "TLS is supported");
    }
    let judgement = judge::judge_in_short(&reached, &facts);
    Report {
        target: target.clone(),
        address: Some(address.ip()),
        started,
        seconds: clock.elapsed().as_secs_f64(),
        connections: prober.connections(),
        reached,
        facts,
        observed: Vec::new(),
        chains: Vec::new(),
        judgement,
    }
}

/// The hello of a current browser, but without key shares, so that the server requests its group.
fn hello(prober: &Prober) -> ClientHello {
    prober
        .hello(Version::Tls1_3)
        .supported_versions(&[0x0304, 0x0303])
        .suites([
            0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014,
            0x009c, 0x009d, 0x002f, 0x0035,
        ])
        .groups(&[0x11ec, 0x001d, 0x0017, 0x0018])
        .with(extension::EC_POINT_FORMATS, vec![1, 0])
        .signatures(&[0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601, 0x0807])
        .key_shares(&[])
        .with(extension::RENEGOTIATION_INFO, vec![0])
}

fn chosen(flight: &Flight, facts: &mut Facts) {
    let Some(version) = flight.hello.version() else { return };
    let suite = Suite::from_code(flight.hello.suite).map_or("an unknown suite", |s| s.name);
    let evidence = format!("the server chose {suite}");
    facts.set(format!("protocol.{}", version.key()), Answer::Yes, None, evidence);
    facts.set(format!("suite.{}.{suite}", version.key()), Answer::Yes, None, "chosen");
    if let Some(group) = flight.group().and_then(Group::from_code) {
        facts.set(format!("group.{}", group.name), Answer::Yes, None, "chosen");
        if group.is_post_quantum() {
            set_post_quantum(facts, vec![group.name.to_owned()]);
        }
    }
}
