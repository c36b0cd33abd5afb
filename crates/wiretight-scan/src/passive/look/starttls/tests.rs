//! Dialogues, and how far TLS got in each.

use super::*;
use crate::judge::Level;
use crate::passive::Transport::Tcp;
use crate::passive::look::tests::Flow;
use crate::passive::look::tls::tests::post_quantum;
use crate::passive::{Look, StartTls};
use Side::{Client as C, Server as S};

type Sent<'a> = Vec<(Side, &'a [u8])>;

/// The dialogue, and then what follows it.
fn flow(start: Start, dialogue: &[(Side, &[u8])], then: &[(Side, Vec<u8>)]) -> Flow {
    let mut flow = Flow::new(Tcp, start.port(), dialogue);
    flow.sent.extend(then.iter().cloned());
    flow
}

fn is_encrypted(level: Level) -> bool {
    matches!(level, Level::Weak | Level::Acceptable | Level::Strong)
}

/// Where TLS was agreed on.
fn upgrades() -> Vec<(Start, Sent<'static>)> {
    vec![
        (Start::Smtp, vec![
            (S, b"220 mail.example ESMTP\r\n"),
            (C, b"EHLO a.example\r\n"),
            (S, b"250-mail.example\r\n250-SIZE 1000\r\n250 STARTTLS\r\n"),
            (C, b"STARTTLS\r\n"),
            (S, b"220 2.0.0 Ready to start TLS\r\n"),
        ]),
        (Start::Lmtp, vec![
            (S, b"220 mail.example LMTP\r\n"),
            (C, b"LHLO a.example\r\n"),
            (S, b"250-mail.example\r\n250 STARTTLS\r\n"),
            (C, b"STARTTLS\r\n"),
            (S, b"220 go\r\n"),
        ]),
        (Start::Imap, vec![
            (S, b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n"),
            (C, b"a1 STARTTLS\r\n"),
            (S, b"a1 OK Begin TLS negotiation now.\r\n"),
        ]),
        (Start::Pop3, vec![
            (S, b"+OK POP3 ready <1.2@a.example>\r\n"),
            (C, b"AUTH\r\n"),
            (S, b"-ERR Unrecognized command.\r\n"),
            (C, b"CAPA\r\n"),
            (S, b"+OK\r\nTOP\r\nSTLS\r\n.\r\n"),
            (C, b"STLS\r\n"),
            (S, b"+OK Begin TLS negotiation\r\n"),
        ]),
        (Start::Sieve, vec![
            (S, b"\"IMPLEMENTATION\" \"Dovecot Pigeonhole\"\r\n\"STARTTLS\"\r\nOK \"ready\"\r\n"),
            (C, b"STARTTLS\r\n"),
            (S, b"OK \"Begin TLS negotiation now.\"\r\n"),
        ]),
        (Start::Ftp, vec![
            (S, b"220 FTP\r\n"),
            (C, b"FEAT\r\n"),
            (S, b"211-Features:\r\n AUTH TLS\r\n PBSZ\r\n211 End\r\n"),
            (C, b"AUTH TLS\r\n"),
            (S, b"234 Proceed with negotiation.\r\n"),
        ]),
        (Start::Nntp, vec![
            (S, b"200 news.example NNTP\r\n"),
            (C, b"CAPABILITIES\r\n"),
            (S, b"101 list:\r\nVERSION 2\r\nSTARTTLS\r\n.\r\n"),
            (C, b"STARTTLS\r\n"),
            (S, b"382 Continue with TLS negotiation\r\n"),
        ]),
        (Start::Irc, vec![
            (C, b"CAP LS 302\r\n"),
            (S, b":irc.example CAP * LS :multi-prefix tls\r\n"),
            (C, b"STARTTLS\r\n"),
            (S, b":irc.example 670 * :STARTTLS successful, proceed with TLS handshake\r\n"),
        ]),
        (Start::XmppClient, vec![
            (C, b"<?xml version='1.0'?><stream:stream to='a.example' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"),
            (S, b"<?xml version='1.0'?><stream:stream id='1' xmlns='jabber:client' version='1.0'><stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>"),
            (C, b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
            (S, b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
        ]),
        (Start::Ldap, vec![
            (C, b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"),
            (S, b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00"),
        ]),
        (Start::Postgres, vec![(C, b"\0\0\0\x08\x04\xd2\x16\x2f"), (S, b"S")]),
        (Start::Mysql, vec![
            (S, MYSQL),
            (C, b"\x20\0\0\x01\x05\xae\x03\x00\0\0\0\x01\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ]),
        (Start::Telnet, vec![
            (S, b"\xff\xfd\x2e\xff\xfd\x18"),
            (C, b"\xff\xfb\x2e\xff\xfa\x2e\x01\xff\xf0"),
            (S, b"\xff\xfa\x2e\x01\xff\xf0"),
        ]),
    ]
}

/// With CLIENT_SSL.
const MYSQL: &[u8] =
    b"\x27\0\0\0\x0a8.0.36\0\x07\0\0\0saltsalt\0\xff\xff\x21\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0";

#[test]
fn what_follows_the_agreement_is_judged_as_tls() {
    let tls = post_quantum();
    for (start, dialogue) in upgrades() {
        let Look::Done(seen) = flow(start, &dialogue, &tls.0).look(true, true) else {
            panic!("{start:?}")
        };
        assert_eq!(seen.protocol, start.scheme(), "{seen:?}");
        assert_eq!(seen.starttls, Some((start, StartTls::Used)), "{seen:?}");
        assert_eq!(seen.level, Level::Strong, "{seen:?}");
    }
}

/// Nothing is decided while TLS may still start, and nothing is encrypted until it has.
#[test]
fn no_part_of_a_dialogue_is_called_encrypted() {
    for (start, dialogue) in upgrades() {
        for end in 1..=dialogue.len() {
            let part = flow(start, &dialogue[..end], &[]);
            assert_eq!(part.look(false, true), Look::More, "{start:?}: {end} parts");
            let Look::Done(seen) = part.look(true, true) else { panic!("{start:?}") };
            assert!(!is_encrypted(seen.level), "{start:?}: {end} parts: {seen:?}");
            assert_ne!(seen.starttls, Some((start, StartTls::Used)));
        }
        // Something else than TLS follows.
        let junk = [(C, b"\x9f\x8e\x7d\x6c\x5b\x4a\x39".to_vec())];
        let Look::Done(seen) = flow(start, &dialogue, &junk).look(true, true) else {
            panic!("{start:?}")
        };
        assert!(!is_encrypted(seen.level), "{start:?}: {seen:?}");
    }
}

#[test]
fn a_client_that_goes_on_without_tls_is_in_the_clear() {
    use StartTls::{NotOffered, Refused, Stripped, Unused};
    let mysql_without_ssl = &*MYSQL
        .iter()
        .enumerate()
        .map(|(at, b)| if at == 26 { b & !0x08 } else { *b })
        .collect::<Vec<_>>();
    let login: &[u8] = b"\x28\0\0\x01\x05\xa6\x03\x00\0\0\0\x01\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0root\0\0\0\0";
    let startup: &[u8] = b"\0\0\0\x13\0\x03\0\0user\0root\0\0";
    let cases: Vec<(Start, Option<StartTls>, Sent<'_>)> = vec![
        (Start::Smtp, Some(Unused), vec![(S, b"220 a ESMTP\r\n"), (C, b"EHLO b\r\n"), (S, b"250-a\r\n250 STARTTLS\r\n"), (C, b"MAIL FROM:<a@b>\r\n")]),
        (Start::Smtp, Some(NotOffered), vec![(S, b"220 a ESMTP\r\n"), (C, b"EHLO b\r\n"), (S, b"250-a\r\n250 SIZE\r\n"), (C, b"AUTH PLAIN AGJvYgBzZWNyZXQ=\r\n")]),
        (Start::Smtp, Some(Stripped), vec![(S, b"220 a ESMTP\r\n"), (C, b"EHLO b\r\n"), (S, b"250-a\r\n250 XXXXXXXA\r\n"), (C, b"MAIL FROM:<a@b>\r\n")]),
        (Start::Smtp, Some(Stripped), vec![(S, b"220 ****************2******0***\r\n"), (C, b"EHLO b\r\n"), (S, b"500 unknown\r\n"), (C, b"HELO b\r\n"), (S, b"250 a\r\n"), (C, b"MAIL FROM:<a@b>\r\n")]),
        (Start::Smtp, Some(Refused), vec![(S, b"220 a ESMTP\r\n"), (C, b"EHLO b\r\n"), (S, b"250-a\r\n250 STARTTLS\r\n"), (C, b"STARTTLS\r\n"), (S, b"454 not now\r\n"), (C, b"MAIL FROM:<a@b>\r\n")]),
        (Start::Smtp, None, vec![(S, b"220 a ESMTP\r\n"), (C, b"HELO b\r\n"), (S, b"250 a\r\n"), (C, b"MAIL FROM:<a@b>\r\n")]),
        (Start::Lmtp, Some(NotOffered), vec![(S, b"220 a LMTP\r\n"), (C, b"LHLO b\r\n"), (S, b"250-a\r\n250 SIZE\r\n"), (C, b"MAIL FROM:<a@b>\r\n")]),
        (Start::Imap, Some(Unused), vec![(S, b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n"), (C, b"a1 LOGIN bob secret\r\n")]),
        (Start::Imap, Some(NotOffered), vec![(S, b"* OK ready\r\n"), (C, b"a1 CAPABILITY\r\n"), (S, b"* CAPABILITY IMAP4rev1\r\na1 OK done\r\n"), (C, b"a2 LOGIN bob secret\r\n")]),
        (Start::Imap, Some(Refused), vec![(S, b"* OK ready\r\n"), (C, b"a1 STARTTLS\r\n"), (S, b"a1 BAD no\r\n"), (C, b"a2 LOGIN bob secret\r\n")]),
        (Start::Imap, Some(Stripped), vec![(S, b"* OK [CAPABILITY IMAP4rev1 XTARTTLS] ready\r\n"), (C, b"a1 LOGIN bob secret\r\n")]),
        (Start::Pop3, Some(Unused), vec![(S, b"+OK POP3\r\n"), (C, b"CAPA\r\n"), (S, b"+OK\r\nSTLS\r\n.\r\n"), (C, b"USER bob\r\n")]),
        (Start::Pop3, None, vec![(S, b"+OK POP3\r\n"), (C, b"USER bob\r\n"), (S, b"+OK\r\n"), (C, b"PASS secret\r\n")]),
        (Start::Ftp, Some(NotOffered), vec![(S, b"220 FTP\r\n"), (C, b"FEAT\r\n"), (S, b"211-Features:\r\n UTF8\r\n211 End\r\n"), (C, b"USER bob\r\n")]),
        (Start::Ftp, Some(Refused), vec![(S, b"220 (vsFTPd 3.0.3)\r\n"), (C, b"AUTH TLS\r\n"), (S, b"530 Please login with USER and PASS.\r\n"), (C, b"USER bob\r\n")]),
        (Start::Nntp, Some(NotOffered), vec![(S, b"200 a NNTP\r\n"), (C, b"CAPABILITIES\r\n"), (S, b"101 list:\r\nVERSION 2\r\n.\r\n"), (C, b"GROUP a.b\r\n")]),
        (Start::Sieve, Some(NotOffered), vec![(S, b"\"IMPLEMENTATION\" \"x\"\r\nOK\r\n"), (C, b"AUTHENTICATE \"PLAIN\" \"AGJvYgBzZWNyZXQ=\"\r\n")]),
        (Start::Postgres, Some(Refused), vec![(C, b"\0\0\0\x08\x04\xd2\x16\x2f"), (S, b"N"), (C, startup), (S, b"R\0\0\0\x08\0\0\0\0")]),
        (Start::Postgres, None, vec![(C, startup), (S, b"R\0\0\0\x08\0\0\0\0")]),
        (Start::Mysql, Some(Unused), vec![(S, MYSQL), (C, login)]),
        (Start::Mysql, Some(NotOffered), vec![(S, mysql_without_ssl), (C, login)]),
        (Start::Ldap, Some(Refused), vec![
            (C, b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"),
            (S, b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x02\x04\x00\x04\x00"),
            (C, b"\x30\x16\x02\x01\x02\x60\x11\x02\x01\x03\x04\x04cn=a\x80\x06secret"),
        ]),
        (Start::Mssql, Some(NotOffered), vec![(C, PRELOGIN), (S, b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\x02")]),
        (Start::Mssql, Some(Unused), vec![(C, PRELOGIN), (S, b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\0")]),
        (Start::Telnet, None, vec![(S, b"\xff\xfd\x18\xff\xfd\x20"), (C, b"\xff\xfb\x18\xff\xfc\x20")]),
        (Start::XmppClient, Some(NotOffered), vec![
            (C, b"<stream:stream to='a' xmlns='jabber:client' version='1.0'>"),
            (S, b"<stream:stream id='1' version='1.0'><stream:features><mechanisms xmlns='x'/></stream:features>"),
            (C, b"<auth mechanism='PLAIN'>AGJvYgBzZWNyZXQ=</auth>"),
        ]),
        (Start::Irc, Some(NotOffered), vec![(C, b"CAP LS 302\r\n"), (S, b":a CAP * LS :multi-prefix\r\n"), (C, b"NICK bob\r\nUSER bob 0 * :b\r\n"), (S, b":a 001 bob :hi\r\n")]),
    ];
    for (start, state, dialogue) in cases {
        let Look::Done(seen) = flow(start, &dialogue, &[]).look(true, true) else {
            panic!("{start:?}")
        };
        assert_eq!((&*seen.protocol, seen.level), (start.scheme(), Level::Plaintext), "{seen:?}");
        assert_eq!(seen.starttls, state.map(|state| (start, state)), "{seen:?}");
        assert_eq!(seen.grade, Grade::Seen, "{seen:?}");
        for secret in ["secret", "AGJv", "bob"] {
            assert!(!seen.evidence.contains(secret), "{seen:?}");
        }
    }
}

const PRELOGIN: &[u8] =
    b"\x12\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\x00";

#[test]
fn tls_in_packets_of_tds_is_found() {
    let answer: &[u8] =
        b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x10\0\0\0\x01";
    let wrapped: Vec<_> = post_quantum()
        .0
        .iter()
        .map(|(side, bytes)| {
            let len = u16::try_from(bytes.len() + 8).unwrap().to_be_bytes();
            (*side, [&[0x12, 1, len[0], len[1], 0, 0, 0, 0], &**bytes].concat())
        })
        .collect();
    let Look::Done(seen) =
        flow(Start::Mssql, &[(C, PRELOGIN), (S, answer)], &wrapped).look(true, true)
    else {
        panic!()
    };
    assert_eq!(seen.starttls, Some((Start::Mssql, StartTls::Used)), "{seen:?}");
    assert!(is_encrypted(seen.level), "{seen:?}");
}

#[test]
fn one_side_of_a_dialogue_tells_what_it_can() {
    let Look::Done(seen) =
        flow(Start::Smtp, &[(C, b"EHLO b\r\nMAIL FROM:<a@b>\r\n")], &[]).look(true, true)
    else {
        panic!()
    };
    assert_eq!(
        (&*seen.protocol, seen.level, seen.starttls),
        ("smtp", Level::Plaintext, None),
        "{seen:?}"
    );
    let server: &[u8] = b"220 a ESMTP\r\n250-a\r\n250 STARTTLS\r\n250 ok\r\n354 go\r\n";
    let Look::Done(seen) = flow(Start::Smtp, &[(S, server)], &[]).look(true, true) else {
        panic!()
    };
    assert_eq!(seen.starttls, Some((Start::Smtp, StartTls::Unused)), "{seen:?}");
    // Only the client's side: a ClientHello is no handshake.
    let hello: Vec<_> = post_quantum().0.into_iter().filter(|(side, _)| *side == C).collect();
    let Look::Done(seen) =
        flow(Start::Smtp, &[(C, b"EHLO b\r\nSTARTTLS\r\n")], &hello).look(true, true)
    else {
        panic!()
    };
    assert_eq!((&*seen.protocol, seen.level), ("smtp", Level::Unknown), "{seen:?}");
}
