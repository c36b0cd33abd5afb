//! Line-based protocols.

use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::{Wire, text_line};
use super::{Offer, Refused, Said, Why, refused, verdict};
use crate::parse::starttls::{Listed, Reply, is_painted_over, listed, reply};

/// SMTP (RFC 3207), and LMTP with another greeting (RFC 2033).
pub(super) async fn smtp<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    hello: &str,
    local: Option<IpAddr>,
) -> Result<Offer, Refused> {
    let banner = greeting_with_code(wire, &[220]).await?;
    let painted = banner.lines.iter().any(|text| is_painted_over(text));
    // An address literal (RFC 5321, section 4.1.3).
    let literal = match local.map(|a| a.to_canonical()).unwrap_or(Ipv4Addr::LOCALHOST.into()) {
        IpAddr::V4(address) => format!("[{address}]"),
        IpAddr::V6(address) => format!("[IPv6:{address}]"),
    };
    wire.send(format!("{hello} {literal}\r\n").as_bytes()).await?;
    let capabilities = wire.message(reply).await?;
    let mut list = match capabilities.code {
        250 => {
            // The first line is the server's name.
            let words = capabilities.lines.iter().skip(1);
            listed(words.filter_map(|text| text.split_whitespace().next()), "STARTTLS")
        }
        500 | 502 => Listed::NoList,
        _ => return Err(refused(Why::NotNow, format!("{hello}: {}", capabilities.shown()))),
    };
    wire.send_last(b"STARTTLS\r\n").await?;
    let answer = wire.message(reply).await?;
    let said = match answer.code {
        220 => Said::Go,
        500 | 502 => Said::Unknown,
        501..600 => Said::No,
        _ => Said::Later,
    };
    if painted && matches!(list, Listed::No | Listed::NoList) {
        list = Listed::Mangled(banner.lines.join(" "));
    }
    let seen = format!("STARTTLS: {}; {hello}: {}", answer.shown(), capabilities.shown());
    verdict("STARTTLS", list, said, seen)
}

/// FTP (RFC 4217). A server that accepts AUTH must list it with its mechanisms, but many list only AUTH, or
/// nothing. So only an overwritten word is a sign of a device on the path.
pub(super) async fn ftp<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    greeting_with_code(wire, &[220]).await?;
    wire.send(b"FEAT\r\n").await?;
    let features = wire.message(reply).await?;
    let list = match features.code {
        211 => {
            let kinds = features.lines.iter().filter_map(|text| {
                let mut words = text.split([' ', ';', ',']);
                let auth = words.next()?.eq_ignore_ascii_case("AUTH");
                let tls = words.any(|w| w.to_ascii_uppercase().starts_with("TLS"));
                (auth && tls).then_some("AUTH TLS")
            });
            let first = |text: &String| text.split(' ').next().unwrap_or_default().to_owned();
            let words: Vec<_> = features.lines.iter().map(first).collect();
            let all = kinds.chain(words.iter().map(String::as_str));
            match listed(all, "AUTH TLS") {
                Listed::No => Listed::NoList,
                found => found,
            }
        }
        421 => return Err(refused(Why::NotNow, features.shown())),
        _ => Listed::NoList,
    };
    wire.send_last(b"AUTH TLS\r\n").await?;
    let answer = wire.message(reply).await?;
    let said = match answer.code {
        234 => Said::Go,
        500 | 502 => Said::Unknown,
        501..600 => Said::No,
        _ => Said::Later,
    };
    let seen = format!("AUTH TLS: {}; FEAT: {}", answer.shown(), features.shown());
    verdict("AUTH TLS", list, said, seen)
}

/// NNTP (RFC 4642).
pub(super) async fn nntp<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    greeting_with_code(wire, &[200, 201]).await?;
    wire.send(b"CAPABILITIES\r\n").await?;
    let first = wire.message(reply).await?;
    let (list, words) = match first.code {
        101 => {
            let lines = until_dot(wire).await?;
            (listed(first_words(&lines), "STARTTLS"), lines.join(" | "))
        }
        400 => return Err(refused(Why::NotNow, first.shown())),
        _ => (Listed::NoList, String::new()),
    };
    wire.send_last(b"STARTTLS\r\n").await?;
    let answer = wire.message(reply).await?;
    let said = match answer.code {
        382 => Said::Go,
        500 => Said::Unknown,
        501..600 => Said::No,
        _ => Said::Later,
    };
    let seen = format!("STARTTLS: {}; CAPABILITIES: {} {words}", answer.shown(), first.shown());
    verdict("STARTTLS", list, said, seen)
}

/// The greeting of a protocol with codes.
async fn greeting_with_code<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    ready: &[u16],
) -> Result<Reply, Refused> {
    let mut first = wire.greeting(reply).await?;
    // FTP: "service ready in nnn minutes".
    if first.code == 120 {
        first = wire.message(reply).await?;
    }
    wire.greeting = first.shown();
    match first.code {
        code if ready.contains(&code) => Ok(first),
        400..600 => Err(refused(Why::NotNow, first.shown())),
        _ => Err(refused(Why::NotThisProtocol, first.shown())),
    }
}

/// IMAP (RFC 9051, section 6.2.1).
pub(super) async fn imap<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    let greeting = wire.greeting(text_line).await?;
    wire.greeting = greeting.clone();
    let kind = greeting.strip_prefix("* ").and_then(|text| text.split(' ').next());
    match kind.unwrap_or_default().to_ascii_uppercase().as_str() {
        "OK" | "PREAUTH" => {}
        "BYE" => return Err(refused(Why::NotNow, greeting)),
        _ => return Err(refused(Why::NotThisProtocol, greeting)),
    }
    wire.send(b"a1 CAPABILITY\r\n").await?;
    let (untagged, answer) = imap_answer(wire, "a1").await?;
    let capabilities: Vec<_> = untagged
        .iter()
        .filter_map(|text| {
            let (head, words) = text.strip_prefix("* ")?.split_once(' ')?;
            head.eq_ignore_ascii_case("CAPABILITY").then_some(words)
        })
        .collect();
    let list = match capabilities.is_empty() {
        true => Listed::NoList,
        false => listed(capabilities.iter().flat_map(|words| words.split(' ')), "STARTTLS"),
    };
    let had = if capabilities.is_empty() { answer } else { capabilities.join(" ") };
    wire.send_last(b"a2 STARTTLS\r\n").await?;
    let (_, answer) = imap_answer(wire, "a2").await?;
    let said = match answer.split(' ').nth(1).unwrap_or_default().to_ascii_uppercase().as_str() {
        "OK" => Said::Go,
        "NO" if answer.to_ascii_uppercase().contains("[UNAVAILABLE]") => Said::Later,
        "NO" => Said::No,
        "BAD" => Said::Unknown,
        _ => return Err(refused(Why::NotThisProtocol, answer)),
    };
    verdict("STARTTLS", list, said, format!("STARTTLS: {answer}; CAPABILITY: {had}"))
}

/// The untagged lines before the answer to a command, and the answer.
async fn imap_answer<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    tag: &str,
) -> Result<(Vec<String>, String), Refused> {
    let mut untagged = Vec::new();
    loop {
        let text = wire.line().await?;
        match text.split(' ').next().unwrap_or_default() {
            // A server that cannot read our tag answers `* BAD`.
            first if first == tag => return Ok((untagged, text)),
            "*" if text.to_ascii_uppercase().starts_with("* BYE") => {
                return Err(refused(Why::NotNow, text));
            }
            "*" if text.to_ascii_uppercase().starts_with("* BAD") => return Ok((untagged, text)),
            "*" => untagged.push(text),
            _ => return Err(refused(Why::NotThisProtocol, text)),
        }
    }
}

/// POP3 (RFC 2595, section 4).
pub(super) async fn pop3<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    let greeting = wire.greeting(text_line).await?;
    wire.greeting = greeting.clone();
    match greeting.split(' ').next() {
        Some("+OK") => {}
        Some("-ERR") => return Err(refused(Why::NotNow, greeting)),
        _ => return Err(refused(Why::NotThisProtocol, greeting)),
    }
    wire.send(b"CAPA\r\n").await?;
    let first = wire.line().await?;
    let (list, words) = match first.starts_with("+OK") {
        true => {
            let lines = until_dot(wire).await?;
            // STLS is too short to recognize if it was overwritten.
            (listed(first_words(&lines), "STLS"), lines.join(" | "))
        }
        false => (Listed::NoList, first),
    };
    wire.send_last(b"STLS\r\n").await?;
    let answer = wire.line().await?;
    let said = match answer.split(' ').next() {
        Some("+OK") => Said::Go,
        // RFC 3206, section 4.
        Some("-ERR") if answer.contains("[SYS/TEMP]") => Said::Later,
        // POP3 has no code for an unknown command.
        Some("-ERR") if says_unknown(&answer) => Said::Unknown,
        Some("-ERR") => Said::No,
        _ => return Err(refused(Why::NotThisProtocol, answer)),
    };
    verdict("STLS", list, said, format!("STLS: {answer}; CAPA: {words}"))
}

fn says_unknown(answer: &str) -> bool {
    let answer = answer.to_ascii_lowercase();
    ["unknown", "unrecognized", "unrecognised", "invalid", "not implemented"]
        .iter()
        .any(|word| answer.contains(word))
}

/// ManageSieve (RFC 5804, sections 1.7 and 2.2).
pub(super) async fn sieve<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    let first = wire.greeting(text_line).await?;
    wire.greeting = first.clone();
    let mut lines = vec![first];
    loop {
        let last = lines.last().map(String::as_str).unwrap_or_default();
        match last.split([' ', '(']).next().unwrap_or_default().to_ascii_uppercase().as_str() {
            "OK" => break,
            "NO" | "BYE" => return Err(refused(Why::NotNow, last)),
            _ if last.starts_with('"') => lines.push(wire.line().await?),
            _ => return Err(refused(Why::NotThisProtocol, last)),
        }
    }
    let words = lines.iter().filter_map(|text| text.strip_prefix('"')?.split('"').next());
    let list = listed(words, "STARTTLS");
    wire.send_last(b"STARTTLS\r\n").await?;
    let answer = wire.line().await?;
    let said = match answer.split([' ', '(']).next().unwrap_or_default() {
        "OK" => Said::Go,
        "NO" if answer.contains("TRYLATER") => Said::Later,
        "NO" if says_unknown(&answer) => Said::Unknown,
        "NO" => Said::No,
        "BYE" => Said::Later,
        _ => return Err(refused(Why::NotThisProtocol, answer)),
    };
    verdict("STARTTLS", list, said, format!("STARTTLS: {answer}; {}", lines.join(" | ")))
}

/// IRC: the command STARTTLS, and the capability `tls` that announces it (IRCv3).
pub(super) async fn irc<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    wire.send(b"CAP LS 302\r\n").await?;
    // Some servers send nothing before a client has registered.
    let by = wire.soon(1, 3);
    let mut capabilities = None::<String>;
    loop {
        let text = match wire.message_by(by, text_line).await {
            Ok(text) => text,
            Err(e) if e.why == Why::TimedOut => break,
            Err(e) => return Err(e),
        };
        let IrcLine { command, parameters, trailing } = irc_line(wire, &text).await?;
        match command {
            "CAP" if parameters.contains(&"LS") => {
                let words = capabilities.get_or_insert_default();
                words.push_str(trailing);
                words.push(' ');
                // A `*` before the last parameter: more lines follow.
                if parameters.last() != Some(&"*") {
                    break;
                }
            }
            "421" | "451" => break,
            _ => {}
        }
    }
    let list = capabilities.as_deref().map_or(Listed::NoList, |words| {
        let names = words.split_whitespace().map(|word| word.split('=').next().unwrap_or_default());
        listed(names, "tls")
    });
    wire.send_last(b"STARTTLS\r\n").await?;
    // Before a client has registered, some servers ignore unknown commands. Silence is a rejection if
    // known commands before and after it are answered.
    let by = wire.soon(1, 2);
    let mut silent = false;
    let (said, answer) = loop {
        let by = if silent { wire.soon(1, 1) } else { by };
        let text = match wire.message_by(by, text_line).await {
            Ok(text) => text,
            Err(e) if e.why == Why::TimedOut && !silent && list != Listed::NoList => {
                silent = true;
                wire.send(b"CAP LIST\r\n").await?;
                continue;
            }
            Err(e) => return Err(e),
        };
        let IrcLine { command, parameters, .. } = irc_line(wire, &text).await?;
        let said = match command {
            "670" => Said::Go,
            "691" => Said::No,
            "421" => Said::Unknown,
            // ERR_NOTREGISTERED: the server does not accept it before registration.
            "451" => Said::No,
            "CAP" if silent && parameters.contains(&"LIST") => {
                break (Said::Unknown, "silence, and an answer to CAP LIST".to_owned());
            }
            _ => continue,
        };
        break (said, text);
    };
    let had = capabilities.unwrap_or_else(|| "none".to_owned());
    verdict("STARTTLS", list, said, format!("STARTTLS: {answer}; CAP LS: {}", had.trim()))
}

struct IrcLine<'a> {
    command: &'a str,
    parameters: Vec<&'a str>,
    trailing: &'a str,
}

/// Parses a message (RFC 2812, section 2.3.1). Answers a PING, and fails on an ERROR.
async fn irc_line<'a, S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    text: &'a str,
) -> Result<IrcLine<'a>, Refused> {
    if wire.greeting.is_empty() {
        wire.greeting = text.to_owned();
    }
    let (head, trailing) = text.split_once(" :").unwrap_or((text, ""));
    let mut words = head.split(' ').filter(|word| !word.is_empty());
    let prefixed = head.starts_with(':');
    let command = if prefixed { words.nth(1) } else { words.next() }.unwrap_or_default();
    let parameters: Vec<_> = words.collect();
    match command {
        "PING" => {
            let token = parameters.first().copied().unwrap_or(trailing);
            wire.send(format!("PONG :{token}\r\n").as_bytes()).await?;
        }
        "ERROR" => return Err(refused(Why::NotNow, text)),
        _ if command.is_empty() || !command.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            return Err(refused(Why::NotThisProtocol, text));
        }
        // Replies have a prefix. Without a prefix, only these messages belong to the protocol.
        "NOTICE" | "CAP" | "AUTHENTICATE" => {}
        _ if !prefixed => return Err(refused(Why::NotThisProtocol, text)),
        _ => {}
    }
    Ok(IrcLine { command, parameters, trailing })
}

/// The lines up to a single dot.
async fn until_dot<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Vec<String>, Refused> {
    let mut lines = Vec::new();
    loop {
        match wire.line().await? {
            text if text == "." => return Ok(lines),
            text => lines.push(text),
        }
    }
}

fn first_words(lines: &[String]) -> impl Iterator<Item = &str> {
    lines.iter().filter_map(|text| text.split_whitespace().next())
}
