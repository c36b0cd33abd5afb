//! Encoding and decoding without I/O, for input from hostile servers. Nothing here
//! allocates according to lengths that a peer announces, and nothing panics.

mod client_hello;
mod messages;
pub mod quic;
mod reader;
mod record;
mod ssl2;
pub mod starttls;

pub use client_hello::{ClientHello, extension};
pub(crate) use messages::alpn;
pub use messages::{
    CertificateEntry, CertificateRequest, Exchange, HandshakeType, Handshakes, MAX_HANDSHAKE,
    Message, NewSessionTicket, ServerHello, ServerKeyExchange, certificate_status, certificates,
    certificates_tls1_3, extensions,
};
pub use reader::{Malformed, Reader};
pub use record::{ContentType, MAX_FRAGMENT, Record, alert, next_record, record};
pub use ssl2::{Ssl2Answer, Ssl2ServerHello, ssl2_client_hello, ssl2_reply};
