//! IMAP (RFC 9051), POP3 (RFC 1939, 2595), Sieve (RFC 5804) and IRC (RFC 2812): lines, with answers that are marked.

use super::{Lines, Offer, clear, is_one_of, mentions, started, verb_shown, words};
use crate::Start;
use crate::parse::starttls::{Listed, is_handshake, listed};
use crate::passive::look::{Opening, Verdict, quoted};
use crate::passive::{Grade, Side};

fn starts(data: &[u8], with: &[u8]) -> bool {
    let known = data.len().min(with.len());
    data.get(..known)
        .is_some_and(|head| head.eq_ignore_ascii_case(with.get(..known).unwrap_or_default()))
}

/// The list of capabilities in a line, as words.
fn list(text: &[u8]) -> impl Iterator<Item = &str> {
    let words = text.split(|b| matches!(b, b' ' | b'[' | b']' | b'\r'));
    words.filter_map(|word| std::str::from_utf8(word).ok())
}

/// Whether both directions can't grow.
fn over(opening: &Opening<'_>) -> bool {
    opening.last || (opening.client.ended && opening.server.ended)
}

// ---- IMAP.

const IMAP: &[&str] = &[
    "CAPABILITY",
    "NOOP",
    "LOGOUT",
    "STARTTLS",
    "AUTHENTICATE",
    "LOGIN",
    "ENABLE",
    "SELECT",
    "EXAMINE",
    "CREATE",
    "LIST",
    "NAMESPACE",
    "STATUS",
    "APPEND",
    "IDLE",
    "CLOSE",
    "FETCH",
    "STORE",
    "COPY",
    "UID",
    "ID",
    "SEARCH",
    "LSUB",
    "CHECK",
    "EXPUNGE",
    "DELETE",
    "SUBSCRIBE",
    "GETQUOTAROOT",
    "COMPRESS",
];

pub(in super::super) fn imap(opening: &Opening<'_>) -> Verdict {
    let mut client = Lines::new(opening.client.bytes);
    let mut server = Lines::new(opening.server.bytes);
    let greeted =
        [&b"* OK"[..], b"* PREAUTH", b"* BYE"].iter().any(|hello| starts(server.data, hello));
    if !greeted && (opening.client.bytes.len() < 3 || !is_imap_command(opening.client.bytes)) {
        return Verdict::No;
    }
    if !client.data.is_empty() && !is_imap_command(client.data) {
        return Verdict::No;
    }
    let greeting = server.line();
    if client.data.is_empty() {
        let complete = greeting.is_some_and(|text| text.len() > 8);
        return match (opening.last || opening.client.ended) && complete {
            true => server_only(opening),
            false => Verdict::Maybe,
        };
    }
    if server.data.is_empty() && !opening.last && !opening.server.ended {
        return Verdict::Maybe;
    }
    let shown = || greeting.map_or_else(|| "no greeting seen".to_owned(), quoted);
    let mut offer = Offer::default();
    if let Some(text) = greeting.filter(|text| mentions(text, "[CAPABILITY")) {
        offer.listed = Some(listed(list(text), "STARTTLS"));
    }
    let mut commands = 0;
    while let Some(command) = client.line() {
        let (tag, rest) = words(command);
        let (verb, _) = words(rest);
        commands += 1;
        // All lines up to the one with the tag of this command.
        let mut answer = None;
        let before = server;
        while let Some(text) = server.line() {
            let (first, rest) = words(text);
            if let Some(text) = rest.strip_prefix(b"CAPABILITY ").filter(|_| first == b"*") {
                offer.listed = Some(listed(list(text), "STARTTLS"));
            }
            if first == tag {
                answer = Some(words(rest).0);
                break;
            }
        }
        let is_start = verb.eq_ignore_ascii_case(b"STARTTLS");
        match answer {
            Some(b"OK" | b"Ok" | b"ok") if is_start => {
                return started(opening, Start::Imap, client.used, server.used);
            }
            Some(_) if is_start => offer.refused = true,
            None if is_start && (is_handshake(client.rest()) || is_handshake(before.rest())) => {
                return started(opening, Start::Imap, client.used, before.used);
            }
            None if is_one_of(verb, &["CAPABILITY", "STARTTLS", "ID"]) => break,
            _ if is_one_of(verb, &["CAPABILITY", "ID", "NOOP"]) => {}
            _ if is_one_of(verb, IMAP) => {
                let grade = if server.data.is_empty() { Grade::Guessed } else { Grade::Seen };
                let text = format!("{}; then {}", shown(), verb_shown(verb));
                return clear(Start::Imap, offer.declined(), grade, text);
            }
            _ => return Verdict::No,
        }
    }
    match over(opening) {
        false => Verdict::Maybe,
        true if commands > 0 || greeting.is_some() => {
            let grade = if server.data.is_empty() { Grade::Guessed } else { Grade::Seen };
            clear(Start::Imap, offer.open(), grade, shown())
        }
        true => Verdict::No,
    }
}

/// A tag and a command (RFC 9051, section 2.2.1), as far as there is one.
fn is_imap_command(data: &[u8]) -> bool {
    let tag = data.iter().take(33).take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count();
    match data.get(tag..) {
        None | Some([]) => tag <= 32,
        Some([b' ', rest @ ..]) if tag > 0 => {
            let verb = rest.iter().take(16).take_while(|b| b.is_ascii_alphabetic()).count();
            match rest.get(verb) {
                None => verb < 16,
                Some(b' ' | b'\r' | b'\n') => is_one_of(rest.get(..verb).unwrap_or_default(), IMAP),
                Some(_) => false,
            }
        }
        Some(_) => false,
    }
}

fn server_only(opening: &Opening<'_>) -> Verdict {
    let mut server = Lines::new(opening.server.bytes);
    let Some(greeting) = server.line() else { return Verdict::No };
    // Also the answer of other protocols begins with "* OK"; the words of this one decide.
    if !mentions(greeting, "IMAP") && !mentions(greeting, "CAPABILITY") && !opening.has_port(143) {
        return Verdict::No;
    }
    let mut offer = Offer::default();
    while let Some(text) = server.line() {
        let (first, rest) = words(text);
        if let Some(text) = rest.strip_prefix(b"CAPABILITY ").filter(|_| first == b"*") {
            offer.listed = Some(listed(list(text), "STARTTLS"));
        }
        if first != b"*" && starts(rest, b"OK") && is_handshake(server.rest()) {
            return started(opening, Start::Imap, 0, server.used);
        }
    }
    clear(Start::Imap, offer.open(), Grade::Seen, quoted(greeting))
}

// ---- POP3.

const POP3: &[&str] = &[
    "CAPA", "STLS", "USER", "PASS", "APOP", "AUTH", "QUIT", "NOOP", "STAT", "LIST", "UIDL", "RETR",
];

pub(in super::super) fn pop3(opening: &Opening<'_>) -> Verdict {
    let mut client = Lines::new(opening.client.bytes);
    let mut server = Lines::new(opening.server.bytes);
    if !starts(server.data, b"+OK") && !starts(server.data, b"-ERR") {
        return Verdict::No;
    }
    if server.data.is_empty() {
        // USER is FTP's too: without an answer only commands of POP3 alone count.
        let verb = client.line().map(|text| words(text).0).unwrap_or_default();
        return match is_one_of(verb, &["APOP", "STLS", "CAPA", "UIDL"]) {
            false => Verdict::No,
            true if over(opening) || opening.server.ended => {
                clear(Start::Pop3, None, Grade::Guessed, verb_shown(verb))
            }
            true => Verdict::Maybe,
        };
    }
    if !client.data.is_empty() {
        let letters = client.data.iter().take(5).take_while(|b| b.is_ascii_alphabetic()).count();
        match client.data.get(letters) {
            Some(b' ' | b'\r' | b'\n')
                if is_one_of(client.data.get(..letters).unwrap_or_default(), POP3) => {}
            None if letters < 5 => {}
            _ => return Verdict::No,
        }
    }
    let greeting = server.line();
    let greets = greeting.is_some_and(|text| {
        mentions(text, "POP") || (text.contains(&b'<') && text.contains(&b'@'))
    });
    let mut offer = Offer::default();
    let shown = || greeting.map(pop3_greeting).unwrap_or_default();
    while let Some(command) = client.line() {
        let (verb, rest) = words(command);
        // AUTH alone asks for the mechanisms (RFC 5034, section 4).
        let asks = verb.eq_ignore_ascii_case(b"AUTH") && rest.is_empty();
        let is_list = asks || verb.eq_ignore_ascii_case(b"CAPA");
        let is_start = verb.eq_ignore_ascii_case(b"STLS");
        let before = server;
        let answer = if is_list { capa(&mut server, &mut offer, asks) } else { server.line() };
        match answer {
            Some(text) if is_start && starts(text, b"+OK") => {
                return started(opening, Start::Pop3, client.used, server.used);
            }
            Some(_) if is_start => offer.refused = true,
            None if is_start && (is_handshake(client.rest()) || is_handshake(before.rest())) => {
                return started(opening, Start::Pop3, client.used, before.used);
            }
            None if is_start || is_list => break,
            _ if is_list || verb.eq_ignore_ascii_case(b"NOOP") => {}
            _ if is_one_of(verb, POP3) => {
                let text = format!("{}; then {}", shown(), verb_shown(verb));
                return clear(Start::Pop3, offer.declined(), Grade::Seen, text);
            }
            // AUTH's continuation.
            _ => break,
        }
    }
    match over(opening) || (client.data.is_empty() && opening.client.ended) {
        false => Verdict::Maybe,
        true if greets || client.used > 0 => clear(Start::Pop3, offer.open(), Grade::Seen, shown()),
        true if opening.has_port(110) => clear(Start::Pop3, None, Grade::Guessed, shown()),
        true => Verdict::No,
    }
}

/// Without the banner's timestamp, which APOP hashes with the password.
fn pop3_greeting(text: &[u8]) -> String {
    quoted(text.split(|b| *b == b'<').next().unwrap_or_default())
}

/// The answer to CAPA, or the mechanisms of AUTH; `None` while it is not complete.
fn capa<'a>(server: &mut Lines<'a>, offer: &mut Offer, mechanisms: bool) -> Option<&'a [u8]> {
    let mut ahead = *server;
    let status = ahead.line()?;
    if starts(status, b"+OK") {
        let mut found = Listed::No;
        loop {
            let text = ahead.line()?;
            if text == b"." {
                break;
            }
            match listed(list(text).take(1), "STLS") {
                Listed::No => {}
                other if found == Listed::No => found = other,
                _ => {}
            }
        }
        if !mechanisms {
            offer.listed = Some(found);
        }
    }
    *server = ahead;
    Some(status)
}

// ---- Sieve.

pub(in super::super) fn sieve(opening: &Opening<'_>) -> Verdict {
    let mut client = Lines::new(opening.client.bytes);
    let mut server = Lines::new(opening.server.bytes);
    if server.data.is_empty() || !starts(server.data, b"\"IMPLEMENTATION\" ") {
        return Verdict::No;
    }
    let Some(greeting) = server.line() else { return Verdict::Maybe };
    let mut offer = Offer { listed: Some(Listed::No), ..Offer::default() };
    let complete = loop {
        let Some(text) = server.line() else { break false };
        if starts(text, b"OK") {
            break true;
        }
        let name = text.strip_prefix(b"\"").unwrap_or_default().split(|b| *b == b'"').next();
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        match listed(name, "STARTTLS") {
            Listed::No => {}
            found => offer.listed = Some(found),
        }
    };
    if !complete {
        return if over(opening) {
            clear(Start::Sieve, None, Grade::Seen, quoted(greeting))
        } else {
            Verdict::Maybe
        };
    }
    while let Some(command) = client.line() {
        let (verb, _) = words(command);
        let is_start = verb.eq_ignore_ascii_case(b"STARTTLS");
        match server.line() {
            Some(text) if is_start && starts(text, b"OK") => {
                return started(opening, Start::Sieve, client.used, server.used);
            }
            Some(_) if is_start => offer.refused = true,
            None if is_start => break,
            _ if is_one_of(verb, &["NOOP", "CAPABILITY"]) => {}
            _ => {
                let text = format!("{}; then {}", quoted(greeting), verb_shown(verb));
                return clear(Start::Sieve, offer.declined(), Grade::Seen, text);
            }
        }
    }
    match over(opening) || opening.client.ended {
        true => clear(Start::Sieve, offer.open(), Grade::Seen, quoted(greeting)),
        false => Verdict::Maybe,
    }
}

// ---- IRC.

const IRC: &[&str] = &[
    "NICK",
    "USER",
    "PASS",
    "CAP",
    "JOIN",
    "PRIVMSG",
    "PING",
    "PONG",
    "MODE",
    "WHO",
    "NOTICE",
    "PART",
    "QUIT",
    "TOPIC",
    "ISON",
    "PROTOCTL",
    "SERVER",
    "USERHOST",
    "WHOIS",
    "AWAY",
    "NAMES",
    "LIST",
    "STARTTLS",
    "AUTHENTICATE",
];
/// Those that open a session, and that no other protocol has with these arguments.
const IRC_FIRST: &[&str] = &["NICK", "CAP", "JOIN", "PRIVMSG", "STARTTLS"];

pub(in super::super) fn irc(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client, opening.server);
    let (says, answers) =
        (irc_lines(client.bytes, irc_command), irc_lines(server.bytes, irc_message));
    let (Some(said), Some(answered)) = (says, answers) else { return Verdict::No };
    if said + answered == 0 {
        return match client.bytes.len() + server.bytes.len() < 600 && !opening.last {
            true => Verdict::Maybe,
            false => Verdict::No,
        };
    }
    // USER and PASS alone are FTP's and POP3's too.
    let opens = client
        .bytes
        .split(|b| *b == b'\n')
        .any(|text| is_one_of(words(text.trim_ascii_end()).0, IRC_FIRST));
    let shown = || "IRC: ".to_owned() + &irc_shown(client.bytes, server.bytes);
    let clear = |offer: &Offer, grade| clear(Start::Irc, offer.declined(), grade, shown());
    let mut offer = Offer::default();
    if let Some(at) = find(client.bytes, b"STARTTLS") {
        let used = at
            + client
                .bytes
                .get(at..)
                .and_then(|rest| rest.iter().position(|b| *b == b'\n'))
                .map_or(8, |n| n + 1);
        let mut lines = Lines::new(server.bytes);
        while let Some(text) = lines.line() {
            match irc_words(text).next() {
                Some(b"670") => return started(opening, Start::Irc, used, lines.used),
                Some(b"691" | b"421" | b"451") => offer.refused = true,
                _ => {}
            }
        }
        if !offer.refused && !over(opening) {
            return Verdict::Maybe;
        }
    }
    let ls = server
        .bytes
        .split(|b| *b == b'\n')
        .find(|text| irc_words(text).next() == Some(b"CAP") && mentions(text, " LS "));
    if let Some(text) = ls {
        let names = text.rsplit(|b| *b == b':').next().unwrap_or_default();
        let names = list(names).map(|name| name.split('=').next().unwrap_or_default());
        offer.listed = Some(match names.into_iter().any(|name| name == "tls") {
            true => Listed::Yes,
            false => Listed::No,
        });
    }
    let registers = client.bytes.split(|b| *b == b'\n').any(|text| {
        is_one_of(words(text.trim_ascii_end()).0, &["NICK", "USER", "JOIN", "PRIVMSG"])
    });
    match (said > 0 && opens, answered > 0) {
        (true, true) if registers || over(opening) => clear(&offer, Grade::Seen),
        (true, _) if said >= 2 && over(opening) => clear(&offer, Grade::Seen),
        (_, true) if answered >= 2 && over(opening) => clear(&offer, Grade::Seen),
        _ if over(opening)
            && opening.first == Some(Side::Client)
            && opens
            && opening.has_port(6667) =>
        {
            clear(&offer, Grade::Guessed)
        }
        _ if over(opening) => Verdict::No,
        _ => Verdict::Maybe,
    }
}

fn find(data: &[u8], wanted: &[u8]) -> Option<usize> {
    data.windows(wanted.len()).position(|part| part == wanted)
}

/// How many complete lines there are, if all of the first few are messages of IRC.
fn irc_lines(data: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<usize> {
    let mut lines = Lines::new(data);
    let mut count = 0;
    while count < 4
        && let Some(text) = lines.line()
    {
        // TLS may follow.
        if count > 0 && !text.iter().all(|b| *b >= b' ' || *b < 0x10) {
            break;
        }
        if !text.is_empty() && !fits(text) {
            return None;
        }
        count += 1;
    }
    let printable = |b: &u8| *b >= b' ' || matches!(b, b'\r' | b'\n' | 1..=0x1f);
    (count > 0 || data.iter().take(64).all(printable)).then_some(count)
}

fn irc_command(text: &[u8]) -> bool {
    is_one_of(words(text).0, IRC) || (text.starts_with(b":") && irc_message(text))
}

/// The words after the prefix.
fn irc_words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let skip = usize::from(text.starts_with(b":"));
    text.split(|b| *b == b' ').filter(|word| !word.is_empty()).skip(skip)
}

/// A server's message: a prefix and a numeric reply or command, or a command.
fn irc_message(text: &[u8]) -> bool {
    let text = match text.strip_prefix(b"@") {
        Some(tagged) => tagged.splitn(2, |b| *b == b' ').nth(1).unwrap_or_default(),
        None => text,
    };
    let mut words = irc_words(text.trim_ascii_end());
    let Some(command) = words.next() else { return false };
    let numeric = command.len() == 3 && command.iter().all(u8::is_ascii_digit);
    match text.first() {
        Some(b':') => numeric || is_one_of(command, IRC),
        _ => is_one_of(command, &["NOTICE", "PING", "ERROR", "CAP", "AUTHENTICATE"]),
    }
}

/// The command of the client, or of the server, without arguments.
fn irc_shown(client: &[u8], server: &[u8]) -> String {
    let first = |data: &[u8]| {
        let line = data.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii();
        irc_words(line).next().map(verb_shown).unwrap_or_default()
    };
    match client.is_empty() {
        true => first(server),
        false => first(client),
    }
}
