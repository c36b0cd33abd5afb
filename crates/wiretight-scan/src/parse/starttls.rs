//! Messages of servers before TLS: replies in lines, XMPP tags, and binary greetings of
//! databases and remote desktops.
//!
//! Each parser reads all bytes received so far, and decides whether they are a complete message, the
//! beginning of one, or something else. An announced length only decides how long to
//! wait, up to [`MAX_MESSAGE`].

use std::fmt::Write;

/// The maximum length of a message, and of all data before TLS.
pub const MAX_MESSAGE: usize = 64 << 10;
/// The maximum length of a line (SMTP and others allow 512 to 1000; IMAP's capabilities may be longer).
pub const MAX_LINE: usize = 8 << 10;

/// The result of parsing the beginning of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<T> {
    /// Incomplete.
    Partial,
    /// A message, and its length.
    Whole(T, usize),
    /// Not a message of this protocol; why.
    Not(&'static str),
}

/// Text from a peer for evidence: like [`printable`], but shortened.
pub fn shown(bytes: &[u8]) -> String {
    const MAX: usize = 500;
    let mut text = printable(&bytes[..bytes.len().min(MAX)]);
    if bytes.len() > MAX || text.len() > MAX {
        text.truncate(MAX);
        text.push_str("...");
    }
    text
}

/// Keeps printable ASCII, reduces white space to one space, and writes the rest in hex.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes.trim_ascii_end() {
        match byte {
            b'\t' | b'\r' | b'\n' if text.ends_with(' ') => {}
            b'\t' | b'\r' | b'\n' => text.push(' '),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// Whether this begins with a TLS alert, a TLS server's reply to other protocols.
pub fn is_alert(data: &[u8]) -> bool {
    matches!(data, [0x15, 3, 0..=4, 0, 2, 1 | 2, ..])
}

/// Whether this begins with a TLS handshake record.
pub fn is_handshake(data: &[u8]) -> bool {
    matches!(data, [0x16, 3, 0..=4, 0..=0x48, ..])
}

// ---- Lines.

/// A line without its line end (LF or CRLF).
pub fn line(data: &[u8]) -> Parsed<&[u8]> {
    let head = &data[..data.len().min(MAX_LINE)];
    match head.iter().position(|&b| b == b'\n') {
        Some(at) => {
            let text = &data[..at];
            Parsed::Whole(text.strip_suffix(b"\r").unwrap_or(text), at + 1)
        }
        None if data.len() >= MAX_LINE => Parsed::Not("a line does not end"),
        None => Parsed::Partial,
    }
}

/// A reply of SMTP (RFC 5321, section 4.2), FTP (RFC 959, section 4.2) or the first line of NNTP's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Three digits.
    pub code: u16,
    /// The text of each line, without the code.
    pub lines: Vec<String>,
}

impl Reply {
    /// The whole reply, in one line.
    pub fn shown(&self) -> String {
        shown(format!("{} {}", self.code, self.lines.join(" | ")).as_bytes())
    }
}

/// A reply of one or more lines. Each line begins with the code, except inner lines of FTP.
pub fn reply(data: &[u8]) -> Parsed<Reply> {
    let (code, len) = match reply_code(data) {
        Parsed::Whole(code, len) => (code, len),
        Parsed::Partial => return Parsed::Partial,
        Parsed::Not(why) => return Parsed::Not(why),
    };
    let lines = data[..len].split_inclusive(|b| *b == b'\n');
    let lines = lines.map(|line| printable(reply_text(code, line).trim_ascii())).collect();
    Parsed::Whole(Reply { code, lines }, len)
}

/// The code of a [`reply`], whose length is that of all its lines. Does not allocate.
pub fn reply_code(data: &[u8]) -> Parsed<u16> {
    let (mut used, mut code) = (0, None);
    loop {
        let (text, len) = match line(&data[used..]) {
            Parsed::Whole(text, len) => (text, len),
            Parsed::Partial => {
                // Recognize other protocols before the line ends.
                let start = &data[used..];
                let digits = start.iter().take(3).all(u8::is_ascii_digit);
                return match code {
                    None if !digits => Parsed::Not("a reply must begin with three digits"),
                    _ => Parsed::Partial,
                };
            }
            Parsed::Not(why) => return Parsed::Not(why),
        };
        used += len;
        let number = three_digits(text);
        let (first, goes_on) = match (code, number) {
            (None, None) => return Parsed::Not("a reply must begin with three digits"),
            (None, Some(number)) => (number, text.get(3) == Some(&b'-')),
            (Some(first), number) => (first, number != Some(first) || text.get(3) == Some(&b'-')),
        };
        code = Some(first);
        if !goes_on {
            return Parsed::Whole(first, used);
        }
    }
}

/// A line of a [`reply`] with this code, without the code.
pub fn reply_text(code: u16, line: &[u8]) -> &[u8] {
    match three_digits(line) == Some(code) {
        true => line.get(4..).unwrap_or_default(),
        false => line,
    }
}

fn three_digits(text: &[u8]) -> Option<u16> {
    match text {
        [a, b, c, ..] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => {
            Some([a, b, c].iter().fold(0u16, |n, d| n * 10 + u16::from(**d - b'0')))
        }
        _ => None,
    }
}

/// Whether a capability is in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// It is in the list.
    Yes,
    /// It is not in the list.
    No,
    /// In its place is a word that looks like an overwritten keyword.
    Mangled(String),
    /// There is no list.
    NoList,
}

/// Looks for a keyword, or for a keyword that a device overwrote: Cisco's PIX and ASA write `XXXXXXXA` over
/// keywords that they remove; others change a letter or two.
pub fn listed<'a>(words: impl IntoIterator<Item = &'a str>, wanted: &str) -> Listed {
    let mut mangled = None;
    for word in words {
        if word.eq_ignore_ascii_case(wanted) {
            return Listed::Yes;
        }
        if mangled.is_none() && is_mangled(word, wanted) {
            mangled = Some(printable(word.as_bytes()));
        }
    }
    mangled.map_or(Listed::No, Listed::Mangled)
}

fn is_mangled(word: &str, wanted: &str) -> bool {
    let word = word.as_bytes();
    // Cisco counts up the last letter.
    let painted = match word {
        [mark @ (b'X' | b'x' | b'*' | b'#'), rest @ .., last] => {
            word.len() >= 4
                && rest.iter().all(|b| b == mark)
                && (last == mark || (*mark != b'*' && last.is_ascii_uppercase()))
        }
        _ => false,
    };
    let differences =
        word.iter().zip(wanted.as_bytes()).filter(|(a, b)| !a.eq_ignore_ascii_case(b)).count();
    let altered = wanted.len() >= 8 && word.len() == wanted.len() && (1..=2).contains(&differences);
    painted || altered
}

/// Whether an SMTP greeting was overwritten with asterisks by Cisco's `fixup protocol smtp`, which
/// keeps `2` and `0`.
pub fn is_painted_over(text: &str) -> bool {
    let stars = text.bytes().filter(|b| *b == b'*').count();
    stars >= 6 && text.bytes().all(|b| b"*20 ".contains(&b))
}

// ---- XMPP.

/// An XMPP server's message at the start of a stream (RFC 6120, sections 4 and 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xmpp {
    /// The stream features.
    Features {
        /// Whether `starttls` is one.
        starttls: Listed,
        /// The element names of all features.
        names: Vec<String>,
    },
    /// TLS may start.
    Proceed,
    /// TLS is rejected.
    Failure,
    /// A stream error with its condition.
    Error(String),
    /// The stream ends.
    End,
}

/// The next of these messages; the stream header is ignored.
pub fn xmpp(data: &[u8]) -> Parsed<Xmpp> {
    let mut at = 0;
    // The enclosing element, and the names of the elements in it.
    let mut open: Option<(&'static str, Vec<String>)> = None;
    loop {
        let rest = &data[at..];
        at += rest.iter().position(|b| *b == b'<').unwrap_or(rest.len());
        if open.is_none() && !rest[..rest.len() - (data.len() - at)].trim_ascii().is_empty() {
            return Parsed::Not("text where XML elements are expected");
        }
        let Some(len) = tag(&data[at..]) else {
            return match data.len() - at >= MAX_LINE {
                true => Parsed::Not("a tag does not end"),
                false => Parsed::Partial,
            };
        };
        let inner = &data[at + 1..at + len - 1];
        at += len;
        if matches!(inner.first(), Some(b'?' | b'!')) {
            continue;
        }
        let (closing, inner) = match inner.strip_prefix(b"/") {
            Some(inner) => (true, inner),
            None => (false, inner),
        };
        let empty = inner.ends_with(b"/");
        let name =
            inner.split(|b| b.is_ascii_whitespace() || *b == b'/').next().unwrap_or_default();
        let name = name.rsplit(|b| *b == b':').next().unwrap_or_default();
        let ended = match (&mut open, name) {
            (None, b"stream") if closing => return Parsed::Whole(Xmpp::End, at),
            (None, b"features") => Some(("features", Vec::new())),
            (None, b"proceed") => Some(("proceed", Vec::new())),
            (None, b"failure") => Some(("failure", Vec::new())),
            (None, b"error") => Some(("error", Vec::new())),
            (None, _) => None,
            (Some((what, names)), name) => {
                if !closing {
                    names.push(shown(&name[..name.len().min(64)]));
                } else if name == what.as_bytes() {
                    let (what, names) = (*what, std::mem::take(names));
                    return Parsed::Whole(xmpp_element(what, names), at);
                }
                None
            }
        };
        if let Some((what, names)) = ended {
            if empty || closing {
                return Parsed::Whole(xmpp_element(what, names), at);
            }
            open = Some((what, names));
        }
    }
}

fn xmpp_element(what: &str, names: Vec<String>) -> Xmpp {
    match what {
        "features" => {
            let starttls = listed(names.iter().map(String::as_str), "starttls");
            Xmpp::Features { starttls, names }
        }
        "proceed" => Xmpp::Proceed,
        "failure" => Xmpp::Failure,
        _ => Xmpp::Error(names.into_iter().next().unwrap_or_default()),
    }
}

/// The length of the tag at the beginning; a `>` in quotes does not end it.
fn tag(data: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, &byte) in data.iter().enumerate().take(MAX_LINE) {
        match (quote, byte) {
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(mark), byte) if mark == byte => quote = None,
            (None, b'>') => return Some(at + 1),
            _ => {}
        }
    }
    None
}

// ---- LDAP.

/// The answer to an extended operation (RFC 4511, section 4.12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// The ID of the answered message; 0 for a notice of disconnection.
    pub id: u8,
    /// 0 is success.
    pub code: u8,
    /// The server's text.
    pub message: String,
}

/// An LDAP message with an ExtendedResponse.
pub fn ldap(data: &[u8]) -> Parsed<Extended> {
    let (body, len) = match tlv(data, 0x30) {
        Parsed::Whole(body, len) => (body, len),
        Parsed::Partial => return Parsed::Partial,
        Parsed::Not(why) => return Parsed::Not(why),
    };
    // The message is complete, so a short field is an error.
    let inner = || {
        let (id, rest) = part(body, 0x02)?;
        let (response, _) = part(rest, 0x78)?;
        let (code, rest) = part(response, 0x0a)?;
        let (_, rest) = part(rest, 0x04)?;
        let (message, _) = part(rest, 0x04)?;
        let ([id], [code]) = (id, code) else { return None };
        Some(Extended { id: *id, code: *code, message: shown(message) })
    };
    match inner() {
        Some(extended) => Parsed::Whole(extended, len),
        None => Parsed::Not("an LDAP message without an ExtendedResponse"),
    }
}

fn part(data: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    match tlv(data, wanted) {
        Parsed::Whole(content, len) => Some((content, &data[len..])),
        _ => None,
    }
}

/// The content of a BER element with this tag and a definite length (RFC 4511, section 5.1).
fn tlv(data: &[u8], wanted: u8) -> Parsed<&[u8]> {
    let (header, len) = match *data {
        [] => return Parsed::Partial,
        [found, ..] if found != wanted => return Parsed::Not("another BER tag than expected"),
        [_, len @ 0..=0x7f, ..] => (2, usize::from(len)),
        [_, octets @ 0x81..=0x84, ref rest @ ..] => {
            let octets = usize::from(octets & 0x7f);
            let Some(octets) = rest.get(..octets) else { return Parsed::Partial };
            (2 + octets.len(), octets.iter().fold(0, |len, o| len << 8 | usize::from(*o)))
        }
        [_] => return Parsed::Partial,
        _ => return Parsed::Not("a BER length that LDAP does not allow"),
    };
    if len > MAX_LINE {
        return Parsed::Not("a BER element that is too long");
    }
    match data.get(header..header + len) {
        Some(content) => Parsed::Whole(content, header + len),
        None => Parsed::Partial,
    }
}

// ---- Databases.

/// The first packet of MySQL and MariaDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mysql {
    /// The initial handshake, version 10.
    Greeting {
        /// `8.0.36`, `11.4.2-MariaDB`.
        version: String,
        /// Whether CLIENT_SSL is among its capabilities.
        ssl: bool,
    },
    /// An error instead: too many connections, or the host is not allowed.
    Error {
        /// MySQL's error number.
        code: u16,
        /// Its text.
        message: String,
    },
}

/// The first packet of a MySQL server.
pub fn mysql(data: &[u8]) -> Parsed<Mysql> {
    let Some(&[a, b, c, sequence]) = data.first_chunk() else { return Parsed::Partial };
    let len = u32::from_le_bytes([a, b, c, 0]) as usize;
    if sequence != 0 || !(3..=MAX_LINE).contains(&len) {
        return Parsed::Not("not the first packet of a MySQL server");
    }
    if !matches!(data.get(4), None | Some(10 | 0xff)) {
        return Parsed::Not("the MySQL protocol version is not 10");
    }
    let Some(packet) = data.get(4..4 + len) else { return Parsed::Partial };
    if let [0xff, low, high, text @ ..] = packet {
        let code = u16::from_le_bytes([*low, *high]);
        return Parsed::Whole(Mysql::Error { code, message: shown(text) }, 4 + len);
    }
    let greeting = || {
        let end = packet.iter().position(|b| *b == 0)?;
        // After the version: thread 4, salt 8, a zero, and the lower half of the capabilities.
        let flags = packet.get(end + 14..end + 16)?;
        let ssl = u16::from_le_bytes([flags[0], flags[1]]) & 0x0800 != 0;
        Some(Mysql::Greeting { version: shown(packet.get(1..end)?), ssl })
    };
    match greeting() {
        Some(greeting) => Parsed::Whole(greeting, 4 + len),
        None => Parsed::Not("the MySQL greeting is too short"),
    }
}

/// SQL Server's encryption option (MS-TDS, section 2.2.6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Only for the login.
    Off,
    /// For the whole connection.
    On,
    /// No encryption.
    NotSupported,
    Required,
}

/// The answer to a PRELOGIN packet.
pub fn tds_prelogin(data: &[u8]) -> Parsed<Encryption> {
    let Some(&[kind, _, high, low, ..]) = data.first_chunk::<8>() else {
        return match data.first() {
            None | Some(0x04) => Parsed::Partial,
            _ => Parsed::Not("not a TDS packet"),
        };
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if kind != 0x04 || !(8..=MAX_LINE).contains(&len) {
        return Parsed::Not("not a TDS response");
    }
    let Some(payload) = data.get(8..len) else { return Parsed::Partial };
    let mut options = payload;
    while let [token @ 0..=0xfe, a, b, c, d, rest @ ..] = options {
        let at = usize::from(u16::from_be_bytes([*a, *b]));
        if *token == 1 {
            let value = match (u16::from_be_bytes([*c, *d]), payload.get(at)) {
                (1, Some(0)) => Encryption::Off,
                (1, Some(1)) => Encryption::On,
                (1, Some(2)) => Encryption::NotSupported,
                (1, Some(3)) => Encryption::Required,
                _ => return Parsed::Not("an invalid ENCRYPTION option in a TDS response"),
            };
            return Parsed::Whole(value, len);
        }
        options = rest;
    }
    Parsed::Not("a TDS response without the ENCRYPTION option")
}

// ---- Remote desktops and terminals.

/// An RDP server's choice (MS-RDPBCGR, section 2.2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rdp {
    /// A security protocol: 0 standard RDP security, 1 TLS, 2 CredSSP, 8 CredSSP with early
    /// authorization.
    Selected(u32),
    /// The server rejects all requested protocols; the failure code.
    Failed(u32),
    /// The server does not support negotiation, so it has only standard RDP security.
    Unaware,
}

/// An X.224 Connection Confirm in its TPKT.
pub fn rdp(data: &[u8]) -> Parsed<Rdp> {
    let Some(&[version, _, high, low]) = data.first_chunk() else {
        return match data.first() {
            None | Some(3) => Parsed::Partial,
            _ => Parsed::Not("not a TPKT"),
        };
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if version != 3 || !(11..=512).contains(&len) {
        return Parsed::Not("not a TPKT");
    }
    let Some(packet) = data.get(4..len) else { return Parsed::Partial };
    match packet {
        [_, 0xd0..=0xdf, _, _, _, _, _] => Parsed::Whole(Rdp::Unaware, len),
        [_, 0xd0..=0xdf, _, _, _, _, _, kind @ (2 | 3), _, 8, 0, a, b, c, d, ..] => {
            let value = u32::from_le_bytes([*a, *b, *c, *d]);
            let said = if *kind == 2 { Rdp::Selected(value) } else { Rdp::Failed(value) };
            Parsed::Whole(said, len)
        }
        _ => Parsed::Not("not an X.224 Connection Confirm"),
    }
}

/// Telnet's option START_TLS (draft-altman-telnet-starttls).
pub const TELNET_START_TLS: u8 = 46;

/// A Telnet server's message (RFC 854), as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Telnet {
    /// DO START_TLS.
    Do,
    /// DONT START_TLS.
    Dont,
    /// START_TLS FOLLOWS: TLS starts after this.
    Follows,
    /// A command about another option.
    Other,
    /// Text for the user.
    Text(String),
}

/// The next command, or the text before it.
pub fn telnet(data: &[u8]) -> Parsed<Telnet> {
    const IAC: u8 = 255;
    match *data {
        [] | [IAC] => Parsed::Partial,
        [IAC, 253, TELNET_START_TLS, ..] => Parsed::Whole(Telnet::Do, 3),
        [IAC, 254, TELNET_START_TLS, ..] => Parsed::Whole(Telnet::Dont, 3),
        [IAC, 251..=254, _, ..] => Parsed::Whole(Telnet::Other, 3),
        [IAC, 251..=254] => Parsed::Partial,
        [IAC, 250, ref rest @ ..] => {
            let Some(end) = rest.windows(2).position(|pair| pair == [IAC, 240]) else {
                return match rest.len() >= MAX_LINE {
                    true => Parsed::Not("a subnegotiation does not end"),
                    false => Parsed::Partial,
                };
            };
            let said = match rest[..end] {
                [TELNET_START_TLS, 1] => Telnet::Follows,
                _ => Telnet::Other,
            };
            Parsed::Whole(said, 2 + end + 2)
        }
        [IAC, ..] => Parsed::Whole(Telnet::Other, 2),
        _ => {
            let end = data.iter().position(|b| *b == IAC).unwrap_or(data.len());
            Parsed::Whole(Telnet::Text(shown(&data[..end])), end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keywords that devices overwrote, and extensions that only look similar.
    #[test]
    fn an_overwritten_keyword_is_distinguished_from_an_unknown_one() {
        for word in ["XXXXXXXA", "XXXXXXXX", "XXXB", "********", "STARTTLX", "XTARTTLS", "startxxs"]
        {
            assert_eq!(listed([word], "STARTTLS"), Listed::Mangled(word.to_owned()), "{word}");
        }
        for word in ["XCLIENT", "XEXCH50", "X-LINK2STATE", "XXX", "PIPELINING", "8BITMIME", "", "X"]
        {
            assert_eq!(listed([word], "STARTTLS"), Listed::No, "{word}");
        }
        assert_eq!(listed(["XXXXXXXA", "starttls"], "STARTTLS"), Listed::Yes);
        assert!(is_painted_over("****************2******0***"));
        assert!(!is_painted_over("*** welcome ***") && !is_painted_over("mail.example ESMTP"));
    }

    #[test]
    fn replies_of_many_lines_end_where_the_code_says() {
        let ftp =
            b"211-Features:\r\n AUTH TLS\r\n 211 is not the end\r\n211-nor this\r\n211 End\r\nx";
        let Parsed::Whole(reply, len) = reply(ftp) else { panic!("no reply") };
        assert_eq!((reply.code, reply.lines.len(), len), (211, 5, ftp.len() - 1));
        assert_eq!(reply.lines[1], "AUTH TLS");
        assert!(matches!(super::reply(b"HTTP/1.1 400"), Parsed::Not(_)));
        assert!(matches!(super::reply(b"220 \x1b[31m hi"), Parsed::Partial));
        assert_eq!(shown(b"220 \x1b[31m\xff hi\r\n"), "220 \\x1b[31m\\xff hi");
    }

    #[test]
    fn xmpp_elements_are_parsed_with_any_prefix() {
        let features: &[u8] = b"<?xml version='1.0'?><stream:stream id='a>b' version='1.0'>\
            <stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
            </stream:features>";
        let Parsed::Whole(Xmpp::Features { starttls, names }, len) = xmpp(features) else {
            panic!("no features")
        };
        assert_eq!((starttls, len), (Listed::Yes, features.len()));
        assert_eq!(names, ["starttls", "required"]);
        for end in 0..features.len() {
            assert_eq!(xmpp(&features[..end]), Parsed::Partial, "{end}");
        }
        let error = b"<stream:error><host-unknown xmlns='x'/></stream:error></stream:stream>";
        assert_eq!(xmpp(error), Parsed::Whole(Xmpp::Error("host-unknown".into()), 54));
        assert!(matches!(xmpp(b"HTTP/1.1 400 Bad Request"), Parsed::Not(_)));
    }
}
