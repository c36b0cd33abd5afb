//! The TLS handshake, with rustls. Its results are the keys for [`Records`] and the peer's certificates.
//!
//! rustls gets one record at a time, so that it never sees bytes after the handshake: [`Records`] reads those.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{Acceptor, ClientHello, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::{
    CipherSuite, ClientConfig, CommonState, Error, NamedGroup, PeerIncompatible, ProtocolVersion,
    ServerConfig,
};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::reason::Reason;
use crate::record::{self, Records};
use crate::tls;

/// The time limit for sending the alert of a failed handshake: the peer may be gone or not reading.
const ALERT: Duration = Duration::from_secs(1);
/// The most bytes to discard after the alert for a rejected client hello.
const MAX_THROWN_AWAY: usize = 256 << 10;
/// The size of one read.
const READ: usize = 8192;

/// The parameters that a handshake negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Whether `wiretight/1` was negotiated; otherwise the connection is a raw stream.
    pub alpn: bool,
    pub group: NamedGroup,
    pub suite: CipherSuite,
    pub version: ProtocolVersion,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A TLS error, or a rejection by our own verifier.
    #[error(transparent)]
    Tls(#[from] Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It timed out.
    #[error("the handshake did not finish within {} s", .0.as_secs())]
    Stalled(Duration),
}

pub(crate) struct CompletedHandshake {
    pub(crate) records: Records,
    /// Bytes received after the handshake.
    pub(crate) rest: Vec<u8>,
    pub(crate) negotiated: Negotiated,
    /// The peer's certificates; the verifier accepted them.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// Handshakes as the client, expecting the server `name`. If the handshake fails, an alert was sent.
pub(crate) async fn connect(
    socket: &TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    deadline: Duration,
) -> Result<CompletedHandshake, HandshakeError> {
    let tls = UnbufferedClientConnection::new(config, name)?;
    let shaken = timeout(deadline, shake(socket, tls, Vec::new())).await;
    shaken.unwrap_or(Err(HandshakeError::Stalled(deadline)))
}

/// Handshakes as the server. `choose` picks the configuration for the client hello. Otherwise like [`connect`].
pub(crate) async fn accept(
    socket: &TcpStream,
    choose: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
    deadline: Duration,
) -> Result<CompletedHandshake, HandshakeError> {
    let shaken = timeout(deadline, async {
        let (config, input) = hello(socket, choose).await?;
        shake(socket, UnbufferedServerConnection::new(config)?, input).await
    });
    shaken.await.unwrap_or(Err(HandshakeError::Stalled(deadline)))
}

/// Reads the client hello and picks the configuration. Also returns the bytes read, which are not yet processed.
async fn hello(
    socket: &TcpStream,
    choose: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
) -> Result<(Arc<ServerConfig>, Vec<u8>), HandshakeError> {
    let (mut acceptor, mut input) = (Acceptor::default(), Vec::new());
    loop {
        let before = input.len();
        read(socket, &mut input).await?;
        let mut new = &input[before..];
        while !new.is_empty() {
            // It accepts up to about 64 KiB; our clients need less than a tenth of that.
            if let Err(error) = acceptor.read_tls(&mut new) {
                send_alert(socket, &DECODE_ERROR).await;
                return Err(error.into());
            }
        }
        match acceptor.accept() {
            Ok(None) => continue,
            Ok(Some(accepted)) => return Ok((choose(&accepted.client_hello()), input)),
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                let _ = alert.write_all(&mut bytes); // into memory
                if bytes.is_empty() {
                    bytes.extend_from_slice(&DECODE_ERROR); // no alert is made for malformed messages
                }
                send_alert(socket, &bytes).await;
                return Err(error.into());
            }
        }
    }
}

/// An unencrypted record with the fatal alert `decode_error`.
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// Sends an alert if that is possible without waiting, and discards what the peer is still sending for a moment. If a
/// socket is closed with unread bytes, the kernel sends a reset, and the peer may lose the alert.
async fn send_alert(socket: &TcpStream, alert: &[u8]) {
    if socket.try_write(alert).is_err() || SockRef::from(socket).shutdown(Shutdown::Write).is_err()
    {
        return;
    }
    let rest = async {
        let mut thrown_away = [0; 4096];
        for _ in 0..MAX_THROWN_AWAY / thrown_away.len() {
            if socket.readable().await.is_err() {
                return;
            }
            match socket.try_read(&mut thrown_away) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = timeout(ALERT, rest).await;
}

/// Runs the handshake to completion; `input` is what was already read.
async fn shake<S: Side>(
    socket: &TcpStream,
    mut tls: S,
    mut input: Vec<u8>,
) -> Result<CompletedHandshake, HandshakeError> {
    let mut output = Vec::new();
    let mut shown = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = tls.process(&mut input[..shown]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut output, |out| data.encode(out))?;
                Step::On
            }
            // The output is sent when there is no more of it, in one packet instead of two.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::On
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Write,
            Ok(_) => Step::Failed(Error::General("traffic within the handshake".into())),
            Err(error) => Step::Failed(error),
        };
        input.drain(..discard);
        shown -= discard;
        match step {
            Step::On => {}
            Step::Read => shown += another(socket, &mut input, shown, &mut output).await?,
            // A server may write before it has verified the client.
            Step::Write if tls.common().is_handshaking() => {
                shown += another(socket, &mut input, shown, &mut output).await?;
            }
            Step::Write => {
                send(socket, &mut output).await?;
                return done(tls, input);
            }
            Step::Failed(error) => {
                while let Ok(ConnectionState::EncodeTlsData(mut data)) =
                    tls.process(&mut input[..shown]).state
                {
                    encode(&mut output, |out| data.encode(out))?;
                }
                let _ = timeout(ALERT, send(socket, &mut output)).await;
                return Err(error.into());
            }
        }
    }
}

/// The next step for rustls.
enum Step {
    On,
    Read,
    Write,
    Failed(Error),
}

/// Reads until there is one more complete record, and returns its length. Sends the output before it waits for the
/// peer.
async fn another(
    socket: &TcpStream,
    input: &mut Vec<u8>,
    shown: usize,
    output: &mut Vec<u8>,
) -> Result<usize, HandshakeError> {
    loop {
        match input[shown..] {
            [20..=23, _, _, high, low, ..] => {
                let len = record::HEADER + usize::from(u16::from_be_bytes([high, low]));
                if len > record::MAX_RECORD {
                    return Ok(input.len() - shown);
                }
                if shown + len <= input.len() {
                    return Ok(len);
                }
            }
            // Not TLS; rustls returns the error.
            [_, _, _, _, _, ..] => return Ok(input.len() - shown),
            _ => {}
        }
        send(socket, output).await?;
        read(socket, input).await?;
    }
}

/// Reads once and appends the bytes.
async fn read(socket: &TcpStream, input: &mut Vec<u8>) -> Result<(), HandshakeError> {
    loop {
        socket.readable().await?;
        let before = input.len();
        input.resize(before + READ, 0);
        let read = socket.try_read(&mut input[before..]);
        input.truncate(before + read.as_ref().map_or(0, |n| *n));
        match read {
            Ok(0) => return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Sends all of the output and empties it.
async fn send(socket: &TcpStream, output: &mut Vec<u8>) -> io::Result<()> {
    let mut left = &output[..];
    while !left.is_empty() {
        socket.writable().await?;
        match socket.try_write(left) {
            Ok(n) => left = &left[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    output.clear();
    Ok(())
}

/// Appends the output of rustls.
fn encode(
    output: &mut Vec<u8>,
    mut data: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), Error> {
    let before = output.len();
    let unusable = |e: EncodeError| Error::General(e.to_string());
    match data(&mut []) {
        Ok(_) => {}
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            output.resize(before + required_size, 0);
            let n = data(&mut output[before..]).map_err(unusable)?;
            output.truncate(before + n);
        }
        Err(error) => return Err(unusable(error)),
    }
    Ok(())
}

fn done<S: Side>(tls: S, mut rest: Vec<u8>) -> Result<CompletedHandshake, HandshakeError> {
    let common = tls.common();
    let negotiated = Negotiated {
        alpn: common.alpn_protocol() == Some(crate::tls::ALPN_RELAY),
        group: common.negotiated_key_exchange_group().map_or(NamedGroup::Unknown(0), |g| g.name()),
        suite: common.negotiated_cipher_suite().map_or(CipherSuite::Unknown(0), |s| s.suite()),
        version: common.protocol_version().unwrap_or(ProtocolVersion::Unknown(0)),
    };
    // No configuration of ours allows another version, and `Records` supports only this one.
    if negotiated.version != ProtocolVersion::TLSv1_3 {
        return Err(Error::General(format!("{:?} was negotiated", negotiated.version)).into());
    }
    let chain = common.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    rest.shrink_to_fit();
    Ok(CompletedHandshake { records: tls.into_records()?, rest, negotiated, chain })
}

/// The client or the server side of a handshake.
trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
    fn into_records(self) -> Result<Records, Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_records(self) -> Result<Records, Error> {
        let (keys, secrets) = self.dangerous_into_kernel_connection()?;
        Records::new(keys, Box::new(secrets)).map_err(|e| Error::General(e.to_string()))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn into_records(self) -> Result<Records, Error> {
        let (keys, secrets) = self.dangerous_into_kernel_connection()?;
        Records::new(keys, Box::new(secrets)).map_err(|e| Error::General(e.to_string()))
    }
}

/// The reason and an explanation of a failed handshake, for our own log.
pub(crate) fn explain(error: &HandshakeError) -> (Reason, String) {
    let detail = error.to_string();
    let error = match error {
        HandshakeError::Stalled(_) => return (Reason::HandshakeStalled, detail),
        HandshakeError::Io(_) => return (Reason::Disconnected, detail),
        HandshakeError::Tls(error) => error,
    };
    if let Some(refusal) = tls::refusal(error) {
        return (refusal.into(), refusal.to_string());
    }
    match error {
        Error::NoCertificatesPresented => {
            (Reason::NoCertificate, "the client presented no certificate".into())
        }
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => (Reason::TlsVersion, format!("the peer does not support TLS 1.3: {detail}")),
        Error::PeerIncompatible(_) => (Reason::TlsIncompatible, detail),
        Error::InvalidMessage(_) => (
            Reason::NotTls,
            format!("the peer did not send TLS, but perhaps plaintext to a TLS port: {detail}"),
        ),
        Error::AlertReceived(_) => (
            Reason::RefusedByPeer,
            format!("the peer rejected this node; see the peer's log: {detail}"),
        ),
        Error::General(_) => (
            Reason::NoIdentity,
            format!(
                "this node has no valid certificate to present; the authority may be unreachable: {detail}"
            ),
        ),
        _ => (Reason::Tls, detail),
    }
}
