//! Protocols in which TLS can be started, and how far that got. This file: SMTP, LMTP, FTP and NNTP, whose servers
//! answer with codes. `tagged`: IMAP, POP3, Sieve, IRC. `binary`: the rest.
//!
//! A dialogue is followed until the client does something that it would do only without TLS, or until TLS starts. What
//! follows the start is another opening, for the TLS recogniser.

mod binary;
mod tagged;

pub(super) use binary::{ber, ldap, mssql, mysql, postgres, telnet, xmpp};
pub(super) use tagged::{imap, irc, pop3, sieve};

use std::borrow::Cow;

use super::{Opening, Verdict, plaintext, quoted, tls_within, undetermined};
use crate::Start;
use crate::parse::starttls::{
    Listed, Parsed, is_handshake, is_painted_over, line, listed, reply_code, reply_text,
};
use crate::passive::{Grade, Seen, Side, StartTls};

/// What is known of TLS in a dialogue.
#[derive(Debug, Default)]
struct Offer {
    listed: Option<Listed>,
    refused: bool,
    stripped: bool,
}

impl Offer {
    /// The state, once the client has gone on without TLS.
    fn declined(&self) -> Option<StartTls> {
        match (&self.listed, self.refused) {
            (Some(Listed::Mangled(_)), _) => Some(StartTls::Stripped),
            _ if self.stripped => Some(StartTls::Stripped),
            (_, true) => Some(StartTls::Refused),
            (Some(Listed::Yes), false) => Some(StartTls::Unused),
            (Some(Listed::No), false) => Some(StartTls::NotOffered),
            (Some(Listed::NoList) | None, false) => None,
        }
    }

    /// The state when the client was not seen to go on: an offer may still be used.
    fn open(&self) -> Option<StartTls> {
        self.declined().filter(|state| *state != StartTls::Unused)
    }
}

/// The dialogue is not encrypted, and TLS got this far.
fn clear(start: Start, state: Option<StartTls>, grade: Grade, evidence: String) -> Verdict {
    match plaintext(start.scheme(), grade, evidence) {
        Verdict::Done(seen) => {
            Verdict::Done(Seen { starttls: state.map(|state| (start, state)), ..seen })
        }
        other => other,
    }
}

/// TLS was agreed on, and starts after these bytes of the client and the server.
pub(super) fn started(
    opening: &Opening<'_>,
    start: Start,
    client: usize,
    server: usize,
) -> Verdict {
    let inner = opening.after(client, server);
    if inner.client.bytes.is_empty() && inner.server.bytes.is_empty() && !opening.last {
        return Verdict::Maybe;
    }
    match tls_within(&inner) {
        Verdict::Maybe if !opening.last => Verdict::Maybe,
        Verdict::Done(seen) => Verdict::Done(Seen {
            protocol: Cow::Borrowed(start.scheme()),
            starttls: Some((start, StartTls::Used)),
            ..seen
        }),
        _ => undetermined(
            start.scheme(),
            Grade::Seen,
            "TLS was agreed on, but its handshake was not seen",
        ),
    }
}

/// The lines, or replies, of one direction.
#[derive(Debug, Clone, Copy)]
struct Lines<'a> {
    data: &'a [u8],
    used: usize,
}

impl<'a> Lines<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { data, used: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.data.get(self.used..).unwrap_or_default()
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        match line(self.rest()) {
            Parsed::Whole(text, len) => {
                self.used += len;
                Some(text)
            }
            _ => None,
        }
    }

    /// A reply's code, and all its lines.
    fn reply(&mut self) -> Option<(u16, &'a [u8])> {
        match reply_code(self.rest()) {
            Parsed::Whole(code, len) => {
                let text = self.rest().get(..len)?;
                self.used += len;
                Some((code, text))
            }
            _ => None,
        }
    }
}

/// The first word of a line, and the rest.
fn words(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let (first, rest) = line.split_at(end);
    (first, rest.trim_ascii())
}

fn is_one_of(word: &[u8], of: &[&str]) -> bool {
    of.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether a word of the text is this one, in any case.
fn mentions(text: &[u8], wanted: &str) -> bool {
    text.windows(wanted.len()).any(|part| part.eq_ignore_ascii_case(wanted.as_bytes()))
}

// ---- SMTP (RFC 5321, 3207), LMTP (RFC 2033), FTP (RFC 959, 4217), NNTP (RFC 3977, 4642).

const SMTP: &[&str] = &["EHLO", "HELO"];
const LMTP: &[&str] = &["LHLO"];
const FTP: &[&str] =
    &["USER", "AUTH", "FEAT", "HOST", "CLNT", "SYST", "OPTS", "PASV", "ACCT", "PBSZ"];
const NNTP: &[&str] = &[
    "CAPABILITIES",
    "MODE",
    "GROUP",
    "AUTHINFO",
    "ARTICLE",
    "XOVER",
    "IHAVE",
    "CHECK",
    "NEWGROUPS",
];
/// Commands after the beginning, for a capture that starts later.
const SMTP_LATER: &[&str] = &["MAIL", "RCPT", "BDAT"];
const FTP_LATER: &[&str] = &["PORT", "EPSV", "EPRT", "RETR", "STOR", "MLSD", "CWD"];

/// The protocols whose servers answer with a code of three digits.
pub(super) fn replies(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let greeting = match reply_code(server) {
        Parsed::Not(_) => return Verdict::No,
        Parsed::Partial => None,
        Parsed::Whole(code, len) => Some((code, server.get(..len).unwrap_or_default())),
    };
    if !is_command(client) || (client.is_empty() && server.is_empty()) {
        return Verdict::No;
    }
    let complete = opening.last || opening.client.ended;
    let Some((start, grade)) = which(opening, greeting, complete) else {
        // A greeting fits several protocols; the client's command decides.
        let may =
            greeting.is_none_or(|(code, _)| matches!(code, 120 | 200 | 201 | 220 | 421 | 554));
        return if may && opening.first != Some(Side::Client) {
            Verdict::Maybe
        } else {
            Verdict::No
        };
    };
    let shown = quoted_greeting(greeting);
    if greeting.is_none() && server.is_empty() && !opening.last && !opening.server.ended {
        return Verdict::Maybe;
    }
    if client.is_empty() {
        return match complete {
            true => server_only(opening, start, grade, shown),
            false => Verdict::Maybe,
        };
    }
    dialogue(opening, start, grade, shown)
}

/// The greeting as evidence, made when it is needed.
fn quoted_greeting(greeting: Option<(u16, &[u8])>) -> impl Fn() -> String {
    move || greeting.map_or_else(|| "no greeting seen".to_owned(), |(_, text)| quoted(text))
}

/// Whether this begins like a command: a word of letters.
fn is_command(client: &[u8]) -> bool {
    let letters = client.iter().take(13).take_while(|b| b.is_ascii_alphabetic()).count();
    match client.get(letters) {
        None => true,
        Some(b' ' | b'\r' | b'\n') => (3..=12).contains(&letters),
        // Telnet's interrupt, with which an FTP client aborts (RFC 959, section 4.1.3); not as a first command.
        Some(_) => false,
    }
}

/// By the client's first command, else by the words of the greeting, else by the port.
fn which(
    opening: &Opening<'_>,
    greeting: Option<(u16, &[u8])>,
    complete: bool,
) -> Option<(Start, Grade)> {
    let client = opening.client.bytes;
    let has_answer = greeting.is_some();
    if let Some(text) = Lines::new(client).line() {
        let (verb, rest) = words(text);
        let known = [
            (Start::Smtp, SMTP, 25),
            (Start::Lmtp, LMTP, 24),
            (Start::Ftp, FTP, 21),
            (Start::Nntp, NNTP, 119),
            (Start::Smtp, SMTP_LATER, 25),
            (Start::Ftp, FTP_LATER, 21),
        ];
        for (start, verbs, port) in known {
            if !is_one_of(verb, verbs) {
                continue;
            }
            let fits = match greeting {
                // `MODE READER`; IRC has MODE too.
                Some((code, _)) => start != Start::Nntp || matches!(code, 200 | 201 | 400 | 502),
                None => {
                    let has_argument = !rest.is_empty();
                    opening.has_port(port)
                        || matches!(start, Start::Smtp | Start::Lmtp) && has_argument
                }
            };
            if fits {
                return Some((start, if has_answer { Grade::Seen } else { Grade::Guessed }));
            }
        }
    }
    let (code, text) = greeting?;
    let by_words = match code {
        220 | 421 | 554 if mentions(text, "LMTP") => Some(Start::Lmtp),
        220 | 421 | 554 if mentions(text, "SMTP") => Some(Start::Smtp),
        220 | 421 | 530 if mentions(text, "FTP") => Some(Start::Ftp),
        200 | 201 | 400 | 502 if mentions(text, "NNTP") || mentions(text, "InterNetNews") => {
            Some(Start::Nntp)
        }
        _ => None,
    };
    let by_port = || match (code, opening.ports.1) {
        (220 | 421 | 554, 25 | 587 | 2525) => Some(Start::Smtp),
        (220 | 421 | 554, 24) => Some(Start::Lmtp),
        (220 | 421 | 530, 21) => Some(Start::Ftp),
        (200 | 201 | 400 | 502, 119) => Some(Start::Nntp),
        _ => None,
    };
    let start = by_words.or_else(|| by_port().filter(|_| complete))?;
    // A greeting with its own name describes itself; with a command of the client it is a dialogue.
    Some((
        start,
        if by_words.is_some() || !client.is_empty() { Grade::Seen } else { Grade::Guessed },
    ))
}

/// Follows commands and replies.
fn dialogue(
    opening: &Opening<'_>,
    start: Start,
    grade: Grade,
    greeting: impl Fn() -> String,
) -> Verdict {
    let (mut client, mut server) =
        (Lines::new(opening.client.bytes), Lines::new(opening.server.bytes));
    // A capture that began later, or on the client's side only, has no greeting.
    let answers = !server.data.is_empty();
    let mut offer = Offer::default();
    if opening.server.from_start
        && let Some((_, text)) = server.reply()
    {
        let text = reply_text(220, text);
        offer.stripped = std::str::from_utf8(text.trim_ascii()).is_ok_and(is_painted_over);
    }
    while let Some(command) = client.line() {
        let (verb, rest) = words(command);
        let is_start = match start {
            Start::Ftp => verb.eq_ignore_ascii_case(b"AUTH"),
            _ => verb.eq_ignore_ascii_case(b"STARTTLS"),
        };
        let is_list = is_one_of(verb, &["EHLO", "LHLO", "FEAT", "CAPABILITIES"]);
        let before = server.used;
        let answer = match is_list && start == Start::Nntp {
            true => dotted_list(&mut server),
            false => server.reply(),
        };
        // Cisco's PIX also overwrites the client's command.
        offer.stripped |= verb.len() >= 4 && verb.iter().all(|b| matches!(b, b'X' | b'x'));
        match answer {
            None if answers && !opening.server.ended && !opening.last && (is_start || is_list) => {
                return Verdict::Maybe;
            }
            Some((220 | 234 | 382, _)) if is_start && start_of_tls(start, rest) => {
                return started(opening, start, client.used, server.used);
            }
            Some((334, _)) if is_start && start == Start::Ftp => {
                let how = "FTP with GSSAPI (RFC 2228): whether commands are sealed was not seen";
                return undetermined("ftp", Grade::Seen, how);
            }
            Some((code, _)) if is_start => offer.refused |= code >= 400,
            // The answer was not captured, but what follows it was.
            None if is_start && (is_handshake(client.rest()) || is_handshake(server.rest())) => {
                return started(opening, start, client.used, before);
            }
            None if is_start => break,
            None if is_list => {}
            Some((code, text)) if is_list => {
                if matches!(code, 250 | 211 | 101) {
                    offer.listed = Some(capability(start, text));
                }
            }
            _ if is_one_of(
                verb,
                &["HELO", "NOOP", "RSET", "HELP", "HOST", "CLNT", "OPTS", "SYST"],
            ) => {}
            _ if verb.eq_ignore_ascii_case(b"MODE") => {}
            _ => {
                let text = format!("{}; then {}", greeting(), verb_shown(verb));
                return clear(start, offer.declined(), grade, text);
            }
        }
    }
    match opening.last {
        false if !opening.client.ended || !opening.server.ended => Verdict::Maybe,
        _ => clear(start, offer.open(), grade, greeting()),
    }
}

/// A command without its arguments, which may be secret.
fn verb_shown(verb: &[u8]) -> String {
    quoted(verb.get(..verb.len().min(12)).unwrap_or_default()).to_uppercase()
}

fn start_of_tls(start: Start, argument: &[u8]) -> bool {
    start != Start::Ftp || is_one_of(argument, &["TLS", "SSL", "TLS-C", "TLS-P"])
}

/// Whether STARTTLS, or AUTH TLS, is in a list of features.
fn capability(start: Start, text: &[u8]) -> Listed {
    let lines = text.split(|b| *b == b'\n').skip(1);
    let texts = lines.map(|line| match start {
        Start::Smtp | Start::Lmtp => reply_text(250, line),
        _ => line,
    });
    let texts = texts.filter_map(|line| std::str::from_utf8(line.trim_ascii()).ok());
    match start {
        Start::Ftp => {
            let tls = texts.filter_map(|text| text.strip_prefix("AUTH")).any(|methods| {
                methods
                    .split([' ', ';'])
                    .any(|m| m.eq_ignore_ascii_case("TLS") || m.eq_ignore_ascii_case("SSL"))
            });
            if tls { Listed::Yes } else { Listed::No }
        }
        _ => listed(texts, "STARTTLS"),
    }
}

/// The reply to CAPABILITIES, up to its line with a dot.
fn dotted_list<'a>(server: &mut Lines<'a>) -> Option<(u16, &'a [u8])> {
    let mut ahead = *server;
    let (code, _) = ahead.reply()?;
    if code == 101 {
        while ahead.line()? != b"." {}
    }
    let text = server.rest().get(..ahead.used - server.used)?;
    *server = ahead;
    Some((code, text))
}

/// Only the server's side was captured: a second greeting is the answer to STARTTLS.
fn server_only(
    opening: &Opening<'_>,
    start: Start,
    grade: Grade,
    greeting: impl Fn() -> String,
) -> Verdict {
    let mut server = Lines::new(opening.server.bytes);
    let mut offer = Offer::default();
    let mut count = 0;
    while let Some((code, text)) = server.reply() {
        count += 1;
        match code {
            220 | 234 | 382 if count > 1 && is_handshake(server.rest()) => {
                return started(opening, start, 0, server.used);
            }
            250 | 211 if offer.listed.is_none() && text.contains(&b'-') => {
                offer.listed = Some(capability(start, text));
            }
            354 | 331 | 334 => return clear(start, offer.declined(), grade, greeting()),
            _ => {}
        }
    }
    clear(start, offer.open(), grade, greeting())
}

#[cfg(test)]
mod tests;
