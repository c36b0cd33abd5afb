//! Encoding and decoding without I/O, for input from hostile servers. Nothing here
//! allocates according to lengths that a peer announces, and nothing panics.

mod client_hello;
mod messages;
pub mod quic;
mod reader;
mod record;
mod ssl2;
pub mod starttls;

pub use client_hello::{ClientHello, ClientHelloRef, extension};
pub(crate) use messages::alpn;
pub use messages::{
    CertificateEntry, CertificateRequest, Exchange, Extensions, HandshakeType, Handshakes,
    MAX_HANDSHAKE, Message, NewSessionTicket, ServerHello, ServerHelloRef, ServerKeyExchange,
    certificate_status, certificates, certificates_tls1_3, extensions, first_certificate,
};
pub use reader::{Malformed, Reader, u16s};
pub use record::{
    BegunRecord, ContentType, MAX_FRAGMENT, Record, alert, begun_record, next_record, record,
};
pub use ssl2::{
    Ssl2Answer, Ssl2ClientHello, Ssl2ServerHello, ssl2_client_hello, ssl2_parse_client_hello,
    ssl2_reply,
};
