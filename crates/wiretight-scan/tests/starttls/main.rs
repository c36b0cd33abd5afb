//! STARTTLS with real servers that the tests start on loopback: Postfix, Dovecot,
//! vsftpd, slapd, PostgreSQL, MariaDB, Prosody, InspIRCd, xrdp. NNTP, Telnet, SQL Server and most
//! servers with command injection are simulated.
//! If a program is missing, its test prints a note and passes; in CI, it
//! fails.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod mocks;
mod rig;
mod servers;

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use wiretight_scan::Start;
use wiretight_scan::active::starttls::{Why, facts, injection};
use wiretight_scan::facts::{Answer, Fact};

use mocks::{Hostile, Rest};
use rig::{
    LOCAL, NAME, Rewrite, ask, ask_within, between, reaches_tls, replaced, unchanged, within,
};

/// The answers for `starttls.offered`, `starttls.stripped` and `plaintext`.
async fn answers(port: u16, start: Start) -> [Answer; 3] {
    let facts = facts(&ask(port, start).await);
    ["starttls.offered", "starttls.stripped", "plaintext"].map(|id| facts.answer(id))
}

/// A server with TLS is upgraded up to the handshake; one without TLS is a no; a device on the path that
/// removes the offer is detected.
async fn trial(start: Start, tls: u16, plain: u16, strip: Rewrite) {
    use Answer::{No, Yes};
    let learnt = reaches_tls(tls, start).await;
    assert_eq!(learnt.stripped, None, "{start:?}");
    assert_eq!(answers(tls, start).await, [Yes, No, No], "{start:?}");

    let refused = ask(plain, start).await.expect_err("without TLS");
    assert_eq!(refused.why, Why::NotOffered, "{start:?}: {refused}");
    assert_eq!(answers(plain, start).await, [No, No, Yes], "{start:?}");

    let boxed = between(tls, strip, unchanged).await;
    match ask(boxed, start).await {
        Ok(upgrade) => assert!(upgrade.stripped.is_some(), "{start:?}: {}", upgrade.offer),
        Err(refused) => assert_eq!(refused.why, Why::Stripped, "{start:?}: {refused}"),
    }
    assert_eq!(answers(boxed, start).await[1], Yes, "{start:?}");
}

async fn injected(port: u16, start: Start) -> Fact {
    let connect = || TcpStream::connect(("127.0.0.1", port));
    injection(connect, start, NAME, LOCAL, within(15)).await
}

#[tokio::test]
async fn smtp_with_postfix() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::postfix(true), servers::postfix(false))
    else {
        return;
    };
    trial(Start::Smtp, tls, plain, |data| replaced(data, b"250-STARTTLS\r\n", b"")).await;
    assert!(reaches_tls(tls, Start::Smtp).await.greeting.contains("mail.test ESMTP"));

    // Like Cisco's devices: the keyword and the command are overwritten.
    let paint: Rewrite = |data| replaced(data, b"STARTTLS", b"XXXXXXXA");
    let boxed = between(tls, paint, paint).await;
    let refused = ask(boxed, Start::Smtp).await.expect_err("painted over");
    assert_eq!(refused.why, Why::Stripped, "{refused}");
    assert!(refused.evidence.contains("`XXXXXXXA`"), "{refused}");
    // The offer is unchanged, but the command does not arrive.
    let boxed = between(tls, unchanged, |data| replaced(data, b"STARTTLS", b"XXXXTTLS")).await;
    let refused = ask(boxed, Start::Smtp).await.expect_err("the command is removed");
    assert_eq!(refused.why, Why::Stripped, "{refused}");

    let fact = injected(tls, Start::Smtp).await;
    assert_eq!(fact.answer, Answer::No, "{fact:?}");
}

#[tokio::test]
async fn imap_pop3_lmtp_and_sieve_with_dovecot() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::dovecot(true), servers::dovecot(false))
    else {
        return;
    };
    let trials: [(Start, Rewrite); 4] = [
        (Start::Imap, |data| replaced(data, b" STARTTLS", b"")),
        (Start::Pop3, |data| replaced(data, b"STLS\r\n", b"")),
        // It is the last one in the list.
        (Start::Lmtp, |data| replaced(data, b"250 STARTTLS", b"250 VRFY")),
        (Start::Sieve, |data| replaced(data, b"\"STARTTLS\"\r\n", b"")),
    ];
    for (i, (start, strip)) in trials.into_iter().enumerate() {
        trial(start, tls[i], plain[i], strip).await;
        let fact = injected(tls[i], start).await;
        assert_eq!(fact.answer, Answer::No, "{start:?}: {fact:?}");
    }
}

#[tokio::test]
async fn ftp_with_vsftpd() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::vsftpd(true), servers::vsftpd(false))
    else {
        return;
    };
    trial(Start::Ftp, tls, plain, |data| replaced(data, b" AUTH TLS", b" XXXX XXA")).await;
    // Many servers accept AUTH, but list it without mechanisms or not at all: this is not a sign of a device.
    for listed in [&b" AUTH\r\n"[..], b" AUTH SSL\r\n", b""] {
        let rewrite: Rewrite = match listed.len() {
            0 => |data| replaced(data, b" AUTH TLS\r\n", b""),
            7 => |data| replaced(data, b" AUTH TLS\r\n", b" AUTH\r\n"),
            _ => |data| replaced(data, b" AUTH TLS\r\n", b" AUTH SSL\r\n"),
        };
        let server = between(tls, rewrite, unchanged).await;
        let upgrade = ask(server, Start::Ftp).await.unwrap();
        assert_eq!(upgrade.stripped, None, "{listed:?}: {}", upgrade.offer);
    }
    let fact = injected(tls, Start::Ftp).await;
    assert_eq!(fact.answer, Answer::No, "{fact:?}");
}

#[tokio::test]
async fn ldap_with_slapd() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::slapd(true), servers::slapd(false)) else {
        return;
    };
    // The success becomes "protocolError".
    trial(Start::Ldap, tls, plain, |data| replaced(data, &[10, 1, 0], &[10, 1, 2])).await;
}

#[tokio::test]
async fn postgres() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::postgres(true), servers::postgres(false))
    else {
        return;
    };
    trial(
        Start::Postgres,
        tls,
        plain,
        |data| if data == b"S" { b"N".to_vec() } else { data.to_vec() },
    )
    .await;
    assert_eq!(injected(tls, Start::Postgres).await.answer, Answer::Untested);
}

#[tokio::test]
async fn mysql_with_mariadb() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::mariadb(true), servers::mariadb(false))
    else {
        return;
    };
    let without_ssl: Rewrite = |data| {
        let mut data = data.to_vec();
        if data.get(3..5) == Some(&[0, 10]) {
            let end = 5 + data[5..].iter().position(|b| *b == 0).unwrap();
            data[end + 15] &= !0x08;
        }
        data
    };
    trial(Start::Mysql, tls, plain, without_ssl).await;
    assert!(reaches_tls(tls, Start::Mysql).await.greeting.contains("MariaDB"));
}

#[tokio::test]
async fn xmpp_with_prosody() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::prosody(true), servers::prosody(false))
    else {
        return;
    };
    let strip: Rewrite = |data| {
        let data = replaced(data, b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", b"");
        replaced(&data, b"<starttls xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"/>", b"")
    };
    for (i, start) in [Start::XmppClient, Start::XmppServer].into_iter().enumerate() {
        trial(start, tls[i], plain[i], strip).await;
        let fact = injected(tls[i], start).await;
        assert_eq!(fact.answer, Answer::No, "{start:?}: {fact:?}");
    }
}

#[tokio::test]
async fn irc_with_inspircd() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::inspircd(true), servers::inspircd(false))
    else {
        return;
    };
    trial(Start::Irc, tls, plain, |data| replaced(data, b"tls", b"abc")).await;
    // Version 3.15 answers data after STARTTLS inside TLS; verified with another client too.
    let fact = injected(tls, Start::Irc).await;
    match servers::version("inspircd").contains("InspIRCd-3.15.") {
        true => assert_eq!(fact.answer, Answer::Yes, "{fact:?}"),
        false => assert!(matches!(fact.answer, Answer::Yes | Answer::No), "{fact:?}"),
    }
}

#[tokio::test]
async fn rdp_with_xrdp() {
    let (Some((_a, tls)), Some((_b, plain))) = (servers::xrdp(true), servers::xrdp(false)) else {
        return;
    };
    // "TLS" becomes SSL_NOT_ALLOWED_BY_SERVER.
    let strip: Rewrite = |data| match data.get(11) {
        Some(2) if data.len() == 19 => [&data[..11], &[3, 0, 8, 0, 2, 0, 0, 0]].concat(),
        _ => data.to_vec(),
    };
    trial(Start::Rdp, tls, plain, strip).await;
    let refused = ask(plain, Start::Rdp).await.unwrap_err();
    assert!(refused.evidence.contains("standard RDP security only"), "{refused}");
}

/// NNTP, simulated.
#[tokio::test]
async fn nntp() {
    let tls = mocks::lines(Start::Nntp, Rest::Dropped).await;
    let plain =
        mocks::script(&["200 hi\r\n", "101 list\r\nREADER\r\n.\r\n", "500 what?\r\n"]).await;
    trial(Start::Nntp, tls, plain, |data| replaced(data, b"STARTTLS\r\n", b"")).await;
    let fact = injected(tls, Start::Nntp).await;
    assert_eq!(fact.answer, Answer::No, "{fact:?}");
}

/// Telnet, simulated. A device that changes DO to DONT cannot be distinguished from a server.
#[tokio::test]
async fn telnet() {
    for asks in [true, false] {
        let port = mocks::telnet(true, asks).await;
        assert!(reaches_tls(port, Start::Telnet).await.greeting.contains("login"), "{asks}");
    }
    let port = mocks::telnet(false, false).await;
    let refused = ask(port, Start::Telnet).await.expect_err("without TLS");
    assert_eq!(refused.why, Why::NotOffered, "{refused}");
}

/// SQL Server, simulated: the TLS 1.2 handshake in TDS packets, then bare TLS.
#[tokio::test]
async fn mssql() {
    let (required, plain) = (mocks::mssql(3).await, mocks::mssql(2).await);
    let strip: Rewrite = |data| match data {
        [4, .., 3] => [&data[..data.len() - 1], &[2]].concat(),
        _ => data.to_vec(),
    };
    trial(Start::Mssql, required, plain, strip).await;
    for encryption in [0, 1] {
        reaches_tls(mocks::mssql(encryption).await, Start::Mssql).await;
    }
    rig::echoes_inside_tls(required, Start::Mssql).await;
}

/// A temporary rejection is not an answer about TLS.
#[tokio::test]
async fn a_temporary_rejection_is_not_a_no() {
    let cases: [(Start, &'static [&'static str]); 14] = [
        (Start::Smtp, &["421 too busy\r\n"]),
        (Start::Smtp, &["554 no service for you\r\n"]),
        (Start::Smtp, &["220 hi\r\n", "451 greylisted\r\n"]),
        (Start::Smtp, &["220 hi\r\n", "250-hi\r\n250 STARTTLS\r\n", "454 later\r\n"]),
        (Start::Smtp, &["220 hi\r\n", "250-hi\r\n250 STARTTLS\r\n", "530 no key\r\n"]),
        (Start::Imap, &["* BYE too many\r\n"]),
        (Start::Imap, &["* OK hi\r\n", "* BYE too many\r\n"]),
        (Start::Pop3, &["-ERR too many\r\n"]),
        (Start::Sieve, &["BYE \"too many\"\r\n"]),
        (Start::Ftp, &["421 too many\r\n"]),
        (Start::Nntp, &["400 later\r\n"]),
        (Start::Irc, &["ERROR :Closing link: throttled\r\n"]),
        (Start::XmppClient, &["", "<stream:stream><stream:error><host-unknown/></stream:error>"]),
        (Start::Postgres, &["", "Esorry, too many clients already\0"]),
    ];
    for (start, says) in cases {
        let refused = ask(mocks::script(says).await, start).await.expect_err("refused");
        assert_eq!(refused.why, Why::NotNow, "{start:?} {says:?}: {refused}");
    }
    let error = b"\x17\0\0\0\xff\x10\x04Too many connections";
    let port = rig::serve(move |mut stream| async move {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, error).await;
    })
    .await;
    let refused = ask(port, Start::Mysql).await.expect_err("refused");
    assert_eq!(refused.why, Why::NotNow, "{refused}");
}

/// Cisco's `fixup protocol smtp`: the banner is asterisks, and EHLO is unknown.
#[tokio::test]
async fn an_overwritten_banner_is_a_sign_of_a_device() {
    let says = &["220 *****************2*******0*****\r\n", "500 what?\r\n", "500 what?\r\n"];
    let refused = ask(mocks::script(says).await, Start::Smtp).await.expect_err("refused");
    assert_eq!(refused.why, Why::Stripped, "{refused}");
    // A server without ESMTP is not a sign of a device.
    let says = &["220 old.test\r\n", "500 what?\r\n", "500 what?\r\n"];
    let refused = ask(mocks::script(says).await, Start::Smtp).await.expect_err("refused");
    assert_eq!(refused.why, Why::NotOffered, "{refused}");
}

/// The attempt always ends by the deadline, with an error that describes the behaviour.
#[tokio::test]
async fn hostile_servers_are_bounded() {
    let mut trials = tokio::task::JoinSet::new();
    for start in Start::ALL.iter().copied().skip(2) {
        for hostile in Hostile::ALL {
            let port = hostile.serve(start).await;
            trials.spawn(async move {
                let begun = Instant::now();
                let outcome = ask_within(port, start, 5).await;
                (start, hostile, begun.elapsed(), outcome.map(|upgrade| upgrade.offer))
            });
        }
    }
    while let Some(trial) = trials.join_next().await {
        let (start, hostile, took, outcome) = trial.unwrap();
        let case = format!("{start:?} {hostile:?} {took:?}: {outcome:?}");
        // A deadline for each step would take twice as long; the rest is for a busy machine.
        assert!(took < Duration::from_millis(9900), "{case}");
        let refused = outcome.expect_err(&case);
        assert!(refused.evidence.len() < 600 && refused.evidence.is_ascii(), "{case}");
        assert!(!refused.evidence.contains(|c: char| c.is_ascii_control()), "{case}");
        let as_expected = match hostile {
            Hostile::Silent => refused.why == Why::TimedOut,
            Hostile::Closes => matches!(refused.why, Why::Closed | Why::Reset),
            // Telnet allows any text for the user.
            Hostile::Http => {
                refused.why == Why::NotThisProtocol
                    || start == Start::Telnet && refused.why == Why::TimedOut
            }
            Hostile::Tls => refused.why == Why::SpeaksTls,
            Hostile::Slow | Hostile::EndlessLine | Hostile::EndlessLines | Hostile::Garbage => {
                !matches!(refused.why, Why::NotOffered | Why::Stripped | Why::SpeaksTls)
            }
        };
        assert!(as_expected, "{case}");
    }
}

/// Simulated servers that process plaintext inside TLS, or do not.
#[tokio::test]
async fn command_injection_is_detected() {
    for start in [
        Start::Smtp,
        Start::Lmtp,
        Start::Imap,
        Start::Pop3,
        Start::Sieve,
        Start::Ftp,
        Start::Nntp,
        Start::Irc,
        Start::XmppClient,
        Start::XmppServer,
    ] {
        let leaky = injected(mocks::lines(start, Rest::Kept).await, start).await;
        assert_eq!(leaky.answer, Answer::Yes, "{start:?}: {leaky:?}");
        let tight = injected(mocks::lines(start, Rest::Dropped).await, start).await;
        assert_eq!(tight.answer, Answer::No, "{start:?}: {tight:?}");
    }
    let silent = Hostile::Silent.serve(Start::Smtp).await;
    let connect = || TcpStream::connect(("127.0.0.1", silent));
    let fact = injection(connect, Start::Smtp, NAME, LOCAL, within(3)).await;
    assert_eq!(fact.answer, Answer::Inconclusive, "{fact:?}");
}
