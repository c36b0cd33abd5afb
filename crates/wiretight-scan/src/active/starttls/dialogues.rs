//! XMPP, and binary protocols.

use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::Wire;
use super::{Offer, Refused, Said, Why, refused, verdict};
use crate::parse::starttls::{
    self as parse, Encryption, Extended, Mysql, Parsed, Rdp, TELNET_START_TLS, Telnet, Xmpp,
};

/// XMPP (RFC 6120, section 5), for clients or between servers.
pub(super) async fn xmpp<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    namespace: &str,
    name: Option<&str>,
) -> Result<Offer, Refused> {
    wire.send(xmpp_header(namespace, name).as_bytes()).await?;
    let (list, names) = match xmpp_answer(wire).await? {
        Xmpp::Features { starttls, names } => (starttls, names.join(" ")),
        other => return Err(refused(Why::NotThisProtocol, format!("{other:?}"))),
    };
    wire.send_last(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
    let (said, answer) = match xmpp_answer(wire).await {
        Ok(Xmpp::Proceed) => (Said::Go, "proceed".to_owned()),
        Ok(Xmpp::Failure) => (Said::No, "failure".to_owned()),
        Ok(other) => return Err(refused(Why::NotThisProtocol, format!("{other:?}"))),
        // An unexpected element ends the stream (section 4.9.3).
        Err(e) if e.why == Why::NotNow && list != parse::Listed::Yes => (Said::No, e.evidence),
        Err(e) => return Err(e),
    };
    verdict("starttls", list, said, format!("starttls: {answer}; features: {names}"))
}

/// The stream header for this domain.
pub(super) fn xmpp_header(namespace: &str, name: Option<&str>) -> String {
    // Names of targets need no escapes; skip names that would.
    let plain =
        |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    let to = name.filter(plain).map(|name| format!(" to='{name}'")).unwrap_or_default();
    format!(
        "<?xml version='1.0'?><stream:stream{to} version='1.0' xmlns='{namespace}' \
         xmlns:stream='http://etherx.jabber.org/streams'>"
    )
}

async fn xmpp_answer<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Xmpp, Refused> {
    match wire.message(parse::xmpp).await? {
        Xmpp::Error(condition) => {
            Err(refused(Why::NotNow, format!("the stream error {condition}")))
        }
        Xmpp::End => Err(refused(Why::Closed, "the stream ended without an error")),
        other => Ok(other),
    }
}

/// LDAP's extended operation StartTLS (RFC 4511, section 4.14).
pub(super) async fn ldap<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    const OID: &[u8; 22] = b"1.3.6.1.4.1.1466.20037";
    // LDAPMessage { messageID 1, ExtendedRequest { requestName } }.
    let head = [0x30, 0x1d, 0x02, 0x01, 0x01, 0x77, 0x18, 0x80, OID.len() as u8];
    wire.send_last(&[&head[..], OID].concat()).await?;
    let Extended { id, code, message } = wire.message(parse::ldap).await?;
    let seen = format!("StartTLS: result {code} {message}");
    match (id, code) {
        (1, 0) => Ok(Offer { how: seen, stripped: None }),
        // A notice of disconnection, operationsError, busy, unavailable, other.
        (0, _) | (_, 1 | 51 | 52 | 80) => Err(refused(Why::NotNow, seen)),
        _ => Err(refusal(wire, seen).await),
    }
}

/// PostgreSQL's SSLRequest ("Message Flow: SSL Session Encryption").
pub(super) async fn postgres<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    // Length 8, then 1234 and 5679 in place of the protocol version.
    wire.send_last(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await?;
    let answer = wire
        .message(|data| match data {
            [] => Parsed::Partial,
            [byte @ (b'S' | b'N'), ..] => Parsed::Whole(*byte, 1),
            [b'E', ..] => Parsed::Whole(b'E', 0),
            _ => Parsed::Not("neither S nor N"),
        })
        .await?;
    let more = parse::shown(wire.waiting());
    match answer {
        b'E' => Err(refused(Why::NotNow, format!("SSLRequest: {more}"))),
        // Another protocol's banner that begins with one of the letters: `SSH-2.0-`.
        letter if !more.is_empty() => {
            let evidence = format!("SSLRequest: {}{more}", char::from(letter));
            Err(refused(Why::NotThisProtocol, evidence))
        }
        b'S' => Ok(Offer { how: "SSLRequest: S".to_owned(), stripped: None }),
        _ => Err(refusal(wire, "SSLRequest: N".to_owned()).await),
    }
}

/// MySQL and MariaDB: an SSLRequest in answer to a greeting with CLIENT_SSL ("Connection Phase").
pub(super) async fn mysql<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    let (version, ssl) = match wire.greeting(parse::mysql).await? {
        Mysql::Greeting { version, ssl } => (version, ssl),
        Mysql::Error { code, message } => {
            return Err(refused(Why::NotNow, format!("error {code}: {message}")));
        }
    };
    wire.greeting = version;
    if !wire.waiting().is_empty() {
        let more = parse::shown(wire.waiting());
        return Err(refused(Why::NotThisProtocol, format!("after the greeting: {more}")));
    }
    // CLIENT_PROTOCOL_41, CLIENT_SSL, CLIENT_SECURE_CONNECTION; packets of 16 MiB; utf8.
    let mut request = [0u8; 36];
    request[..4].copy_from_slice(&[32, 0, 0, 1]);
    request[4..8].copy_from_slice(&0x8a00u32.to_le_bytes());
    request[8..12].copy_from_slice(&0x0100_0000u32.to_le_bytes());
    request[12] = 33;
    wire.send_last(&request).await?;
    match ssl {
        true => Ok(Offer { how: "CLIENT_SSL is set in the greeting".to_owned(), stripped: None }),
        false => Err(refusal(wire, "CLIENT_SSL is not set in the greeting".to_owned()).await),
    }
}

/// Telnet's option START_TLS (draft-altman-telnet-starttls-02): either side may begin.
pub(super) async fn telnet<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    const IAC: u8 = 255;
    const WILL: [u8; 3] = [IAC, 251, TELNET_START_TLS];
    const FOLLOWS: [u8; 6] = [IAC, 250, TELNET_START_TLS, 1, IAC, 240];
    // Servers that ask for START_TLS do so first and soon.
    let by = wire.soon(1, 4);
    let mut offered = "in answer to WILL";
    loop {
        match wire.message_by(by, parse::telnet).await {
            Ok(Telnet::Do) => {
                offered = "without being asked";
                break;
            }
            Ok(said) => note(wire, &said),
            Err(e) if e.why == Why::TimedOut => break,
            Err(e) => return Err(e),
        }
    }
    wire.send(&WILL).await?;
    if offered == "in answer to WILL" {
        loop {
            match wire.message(parse::telnet).await? {
                Telnet::Do => break,
                Telnet::Dont => {
                    let greeting = &wire.greeting;
                    return Err(refused(Why::NotOffered, format!("DONT START_TLS; {greeting}")));
                }
                said => note(wire, &said),
            }
        }
    }
    wire.send_last(&FOLLOWS).await?;
    loop {
        match wire.message(parse::telnet).await? {
            Telnet::Follows => break,
            Telnet::Dont => return Err(refused(Why::NotNow, "DO, then DONT START_TLS")),
            said => note(wire, &said),
        }
    }
    Ok(Offer { how: format!("DO START_TLS {offered}"), stripped: None })
}

/// Keeps the first text as the greeting.
fn note<S>(wire: &mut Wire<S>, said: &Telnet) {
    if let (Telnet::Text(text), true) = (said, wire.greeting.is_empty()) {
        wire.greeting = text.clone();
    }
}

/// RDP's negotiation of security (MS-RDPBCGR, section 5.4.2.1).
pub(super) async fn rdp<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    // TPKT, X.224 Connection Request, RDP_NEG_REQ for TLS, CredSSP and CredSSP with early
    // authorization: the server selects the strongest that it supports, and all of them start with TLS.
    let request = [3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0x0b, 0, 0, 0];
    wire.send_last(&request).await?;
    let standard = "standard RDP security only (RC4, and no proof of the server's identity)";
    let seen = match wire.message(parse::rdp).await? {
        Rdp::Selected(1) => "PROTOCOL_SSL is selected",
        Rdp::Selected(2) => "PROTOCOL_HYBRID (CredSSP in TLS) is selected",
        Rdp::Selected(8) => "PROTOCOL_HYBRID_EX (CredSSP in TLS) is selected",
        Rdp::Selected(0) => return Err(refusal(wire, format!("PROTOCOL_RDP: {standard}")).await),
        Rdp::Unaware => return Err(refusal(wire, format!("no negotiation: {standard}")).await),
        Rdp::Failed(2) => {
            let seen = format!("SSL_NOT_ALLOWED_BY_SERVER: {standard}");
            return Err(refusal(wire, seen).await);
        }
        Rdp::Failed(3) => {
            let seen = format!("SSL_CERT_NOT_ON_SERVER: {standard}");
            return Err(refusal(wire, seen).await);
        }
        Rdp::Failed(code) => {
            return Err(refused(Why::NotNow, format!("negotiation failure {code}")));
        }
        Rdp::Selected(other) => {
            return Err(refused(Why::NotThisProtocol, format!("protocol {other} is selected")));
        }
    };
    Ok(Offer { how: seen.to_owned(), stripped: None })
}

/// SQL Server's PRELOGIN (MS-TDS, section 2.2.6.5). Requests TLS for the whole connection, not only for the
/// login.
pub(super) async fn mssql<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Offer, Refused> {
    const OPTIONS: [u8; 26] = [
        0, 0, 26, 0, 6, // VERSION
        1, 0, 32, 0, 1, // ENCRYPTION
        2, 0, 33, 0, 1, // INSTOPT
        3, 0, 34, 0, 4, // THREADID
        4, 0, 38, 0, 1, // MARS
        0xff,
    ];
    const VALUES: [u8; 13] = [17, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let len = 8 + OPTIONS.len() + VALUES.len();
    let header = [0x12, 1, 0, len as u8, 0, 0, 1, 0];
    wire.send_last(&[&header[..], &OPTIONS, &VALUES].concat()).await?;
    let framed = |len: usize| {
        let [high, low] = ((8 + len) as u16).to_be_bytes();
        vec![0x12, 1, high, low, 0, 0, 1, 0]
    };
    let seen = match wire.message(parse::tds_prelogin).await? {
        Encryption::On => "ENCRYPT_ON",
        Encryption::Required => "ENCRYPT_REQ",
        Encryption::Off => "ENCRYPT_OFF, in answer to ON: TLS for the login",
        Encryption::NotSupported => {
            return Err(refusal_with(wire, "ENCRYPT_NOT_SUP".to_owned(), framed).await);
        }
    };
    Ok(Offer { how: format!("PRELOGIN: {seen}"), stripped: None })
}

/// Handles a rejection. A ClientHello shows whether it comes from the server itself.
async fn refusal<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, seen: String) -> Refused {
    refusal_with(wire, seen, |_| Vec::new()).await
}

async fn refusal_with<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    seen: String,
    header: fn(usize) -> Vec<u8>,
) -> Refused {
    match wire.answers_hello(header).await {
        true => refused(Why::Stripped, format!("{seen}; but a ClientHello is answered with TLS")),
        false => refused(Why::NotOffered, seen),
    }
}
