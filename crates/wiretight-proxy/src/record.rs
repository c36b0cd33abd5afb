//! TLS 1.3 records after the handshake (RFC 8446, section 5). Records are encrypted and decrypted many at a time,
//! directly from one buffer into another; rustls processes them one by one with a copy and an allocation each.
//!
//! rustls does the handshake and derives the keys; this module uses them. No I/O, no clock, and no secrets except the
//! keys in use. Any violation of the RFC is an error with the alert to send; after an error nothing more is
//! decrypted.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets};

/// The length of a record header.
pub const HEADER: usize = 5;
/// The most plaintext in a record (section 5.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;
/// The overhead of a record: header, type, tag. (We do not pad.)
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// The longest record, header included (section 5.2).
pub const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + 256;
/// The length of a record with a KeyUpdate.
const KEY_UPDATE_RECORD: usize = OVERHEAD + 5;
/// The tag of each of the three AEADs.
const TAG: usize = 16;
/// The most records encrypted with one key: half of the limit of AES-GCM (section 5.5), for each AEAD. In tests of
/// this crate it is tiny, so that keys are updated often.
const RECORDS_A_KEY: u64 = if cfg!(test) { 7 } else { 2_u64.pow(23) };
/// The most consecutive records without data that a peer may send; they cost us work without traffic.
const MAX_IDLE_RECORDS: u8 = 32;
/// The longest handshake message. Only session tickets are long, and they are discarded.
const MAX_HANDSHAKE: u32 = 1 << 16;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

#[cfg(test)]
mod tests;

/// An error in the peer's records, or an alert from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The peer's fatal alert.
    #[error("received fatal alert: {0:?}")]
    Alert(AlertDescription),
    /// An unencrypted record, or one of unknown type.
    #[error("a record of type {0}, where only encrypted ones are allowed")]
    NotEncrypted(u8),
    /// A record over the length limit.
    #[error("a record that is longer than TLS allows")]
    Overflow,
    /// Not encrypted by the peer, or not the next record.
    #[error("a record that does not decrypt: altered, or out of order")]
    BadMac,
    /// A type or a message that is not allowed here.
    #[error("a TLS message that is not allowed here")]
    Unexpected,
    /// A message that does not parse.
    #[error("a malformed TLS message")]
    Decode,
    /// A KeyUpdate with an invalid request value.
    #[error("a KeyUpdate with an unknown request")]
    IllegalKeyUpdate,
    #[error("too many records in succession that carry no data")]
    Idle,
    /// The keys could not be derived or used. A local error.
    #[error("the keys of this connection cannot be used")]
    Keys,
}

impl RecordError {
    /// The alert to send (section 6.2); `None` if the error is the peer's own alert.
    pub fn alert(self) -> Option<AlertDescription> {
        Some(match self {
            RecordError::Alert(_) => return None,
            RecordError::NotEncrypted(_) | RecordError::Unexpected | RecordError::Idle => {
                AlertDescription::UnexpectedMessage
            }
            RecordError::Overflow => AlertDescription::RecordOverflow,
            RecordError::BadMac => AlertDescription::BadRecordMac,
            RecordError::Decode => AlertDescription::DecodeError,
            RecordError::IllegalKeyUpdate => AlertDescription::IllegalParameter,
            RecordError::Keys => AlertDescription::InternalError,
        })
    }
}

/// The direction of a KeyUpdate (section 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Our key, for encryption.
    Send,
    /// The peer's key, for decryption.
    Receive,
}

/// The traffic secrets, from which the next ones are derived.
pub trait Secrets {
    /// The next keys for this direction; record numbers restart at 0.
    fn next(&mut self, direction: Direction) -> Result<ConnectionTrafficSecrets, rustls::Error>;
    /// Whether the peer is the server and may send session tickets.
    fn peer_is_server(&self) -> bool;
}

impl Secrets for KernelConnection<ClientConnectionData> {
    fn next(&mut self, direction: Direction) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(match direction {
            Direction::Send => self.update_tx_secret()?.1,
            Direction::Receive => self.update_rx_secret()?.1,
        })
    }

    fn peer_is_server(&self) -> bool {
        true
    }
}

impl Secrets for KernelConnection<ServerConnectionData> {
    fn next(&mut self, direction: Direction) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(match direction {
            Direction::Send => self.update_tx_secret()?.1,
            Direction::Receive => self.update_rx_secret()?.1,
        })
    }

    fn peer_is_server(&self) -> bool {
        false
    }
}

/// The record layer of one connection after its handshake.
pub struct Records {
    send: Key,
    receive: Key,
    secrets: Box<dyn Secrets>,
    /// The peer requested a KeyUpdate; it is sent before the next data (section 4.6.3).
    update_due: bool,
    handshake: Handshake,
    idle: u8,
    /// Set when nothing more will be decrypted: by close_notify or by an error.
    end: Option<Result<(), RecordError>>,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Records {
    /// From the keys of a handshake and the numbers of the next records.
    pub fn new(
        keys: rustls::ExtractedSecrets,
        secrets: Box<dyn Secrets>,
    ) -> Result<Records, RecordError> {
        Ok(Records {
            send: Key::new(keys.tx.1, keys.tx.0)?,
            receive: Key::new(keys.rx.1, keys.rx.0)?,
            secrets,
            update_due: false,
            handshake: Handshake::default(),
            idle: 0,
            end: None,
        })
    }

    /// Encrypts as much of `plaintext` as fits into `out`, in full records and a last one with the rest. Returns the
    /// number of bytes used from `plaintext` and written to `out`.
    pub fn seal(
        &mut self,
        plaintext: &[u8],
        out: &mut [u8],
    ) -> Result<(usize, usize), RecordError> {
        let (mut used, mut filled) = (0, 0);
        for piece in plaintext.chunks(MAX_PLAINTEXT) {
            let renewal = if self.is_renewal_due() { KEY_UPDATE_RECORD } else { 0 };
            if out.len() - filled < renewal + OVERHEAD + piece.len() {
                break;
            }
            if renewal > 0 {
                filled += self.renew(&mut out[filled..])?;
            }
            filled += self.send.seal(APPLICATION_DATA, piece, &mut out[filled..])?;
            used += piece.len();
        }
        Ok((used, filled))
    }

    /// Encrypts an alert. Returns the length of its record, 0 if it does not fit into `out`.
    pub fn seal_alert(
        &mut self,
        alert: AlertDescription,
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
        if out.len() < OVERHEAD + 2 {
            return Ok(0);
        }
        self.send.seal(ALERT, &[level, alert.into()], out)
    }

    /// Whether a KeyUpdate must precede the next data: the peer requested it, or the key reached its limit.
    fn is_renewal_due(&self) -> bool {
        self.update_due || self.send.number >= RECORDS_A_KEY
    }

    /// Writes a KeyUpdate and switches to the new key.
    fn renew(&mut self, out: &mut [u8]) -> Result<usize, RecordError> {
        const NOT_REQUESTED: u8 = 0;
        let n = self.send.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, NOT_REQUESTED], out)?;
        self.send = self.next(Direction::Send)?;
        self.update_due = false;
        Ok(n)
    }

    fn next(&mut self, direction: Direction) -> Result<Key, RecordError> {
        Key::new(self.secrets.next(direction).map_err(|_| RecordError::Keys)?, 0)
    }

    /// Decrypts the complete records at the front of `input`, and writes their data to `out`, concatenated. Stops
    /// early if the next record does not fit into `out`, or if the peer's direction ended. Returns the number of
    /// bytes used from `input` and written to `out`; an error only if there is no data before it.
    pub fn open(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), RecordError> {
        let (mut used, mut filled) = (0, 0);
        while self.end.is_none() {
            match self.open_one(&input[used..], &mut out[filled..]) {
                Ok(Some((length, data))) => (used, filled) = (used + length, filled + data),
                Ok(None) => break,
                Err(error) => self.end = Some(Err(error)),
            }
        }
        match self.end {
            Some(Err(error)) if filled == 0 => Err(error),
            _ => Ok((used, filled)),
        }
    }

    /// Whether nothing more will be decrypted: the peer sent close_notify, and what follows is ignored (section 6.1),
    /// or there was an error, which [`Records::open`] returns from then on.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Decrypts the record at the front, if it is complete and `out` has space for its length. Returns its length,
    /// and the length of the data in it.
    fn open_one(
        &mut self,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Option<(usize, usize)>, RecordError> {
        let Some(record) = record(input)?.filter(|record| record.len() <= out.len()) else {
            return Ok(None);
        };
        let (kind, len) = self.receive.open(record, out)?;
        match kind {
            APPLICATION_DATA | ALERT if !self.handshake.is_between() => {
                return Err(RecordError::Unexpected);
            }
            APPLICATION_DATA => {}
            HANDSHAKE if len > 0 => self.handshake(&out[..len])?,
            ALERT => self.alert(&out[..len])?,
            _ => return Err(RecordError::Unexpected),
        }
        let data = if kind == APPLICATION_DATA { len } else { 0 };
        self.idle = if data == 0 { self.idle + 1 } else { 0 };
        if self.idle > MAX_IDLE_RECORDS {
            return Err(RecordError::Idle);
        }
        Ok(Some((record.len(), data)))
    }

    fn alert(&mut self, body: &[u8]) -> Result<(), RecordError> {
        // The level has no meaning in TLS 1.3 (section 6).
        let description = match *body {
            [_, description] => description,
            [] => return Err(RecordError::Unexpected), // section 5.4
            _ => return Err(RecordError::Decode),
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => self.end = Some(Ok(())),
            AlertDescription::UserCanceled => {} // close_notify follows
            other => return Err(RecordError::Alert(other)),
        }
        Ok(())
    }

    fn handshake(&mut self, mut body: &[u8]) -> Result<(), RecordError> {
        while let Some(message) = self.handshake.next(&mut body)? {
            match message {
                // Sessions are not resumed, so tickets are ignored.
                NEW_SESSION_TICKET if self.secrets.peer_is_server() => {}
                KEY_UPDATE if !body.is_empty() => return Err(RecordError::Unexpected), // section 5.1
                KEY_UPDATE => {
                    match self.handshake.last {
                        0 => {}
                        1 => self.update_due = true,
                        _ => return Err(RecordError::IllegalKeyUpdate),
                    }
                    self.receive = self.next(Direction::Receive)?;
                }
                _ => return Err(RecordError::Unexpected),
            }
        }
        Ok(())
    }
}

/// The record at the front of the input; `None` until it is complete.
fn record(input: &[u8]) -> Result<Option<&[u8]>, RecordError> {
    let &[kind, _, _, high, low, ..] = input else { return Ok(None) };
    if kind != APPLICATION_DATA {
        return Err(RecordError::NotEncrypted(kind));
    }
    let len = HEADER + usize::from(u16::from_be_bytes([high, low]));
    match len > MAX_RECORD {
        true => Err(RecordError::Overflow),
        false => Ok(input.get(..len)),
    }
}

/// Extracts handshake messages from records; keeps only its parse state.
#[derive(Default)]
struct Handshake {
    header: [u8; 4],
    have: usize,
    left: u32,
    /// The last byte of a body so far.
    last: u8,
}

impl Handshake {
    /// Consumes input up to the end of a message and returns its type; `None` if the message is incomplete.
    fn next(&mut self, body: &mut &[u8]) -> Result<Option<u8>, RecordError> {
        while self.have < self.header.len() {
            let Some((byte, rest)) = body.split_first() else { return Ok(None) };
            (self.header[self.have], *body) = (*byte, rest);
            self.have += 1;
            if self.have == self.header.len() {
                let [kind, a, b, c] = self.header;
                self.left = u32::from_be_bytes([0, a, b, c]);
                match (kind, self.left) {
                    (NEW_SESSION_TICKET, 0..=MAX_HANDSHAKE) | (KEY_UPDATE, 1) => {}
                    (NEW_SESSION_TICKET | KEY_UPDATE, _) => return Err(RecordError::Decode),
                    _ => return Err(RecordError::Unexpected),
                }
            }
        }
        let take = body.len().min(self.left as usize);
        let (taken, rest) = body.split_at(take);
        self.last = taken.last().copied().unwrap_or(self.last);
        *body = rest;
        self.left -= take as u32;
        if self.left > 0 {
            return Ok(None);
        }
        self.have = 0;
        Ok(Some(self.header[0]))
    }

    fn is_between(&self) -> bool {
        self.have == 0
    }
}

/// A key and its nonces: each record number is used once (section 5.3).
struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    number: u64,
}

impl Key {
    fn new(secrets: ConnectionTrafficSecrets, number: u64) -> Result<Key, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Keys),
        };
        let aead = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Keys)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Keys)?;
        Ok(Key { aead: LessSafeKey::new(aead), iv, number })
    }

    /// The nonce of the next record.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        self.number = self.number.checked_add(1).ok_or(RecordError::Keys)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Encrypts one record into `out`, which must have space for it. Returns its length.
    fn seal(&mut self, kind: u8, plaintext: &[u8], out: &mut [u8]) -> Result<usize, RecordError> {
        let len = plaintext.len() + 1 + TAG;
        let [high, low] = (len as u16).to_be_bytes(); // at most MAX_PLAINTEXT + 17
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let (head, body) = out[..HEADER + len].split_at_mut(HEADER);
        let (body, tail) = body.split_at_mut(plaintext.len());
        head.copy_from_slice(&header);
        let (nonce, aad) = (self.nonce()?, Aad::from(header));
        let sealed =
            self.aead.seal_out_of_place_scatter(nonce, aad, plaintext, body, &[kind], tail);
        sealed.map(|()| HEADER + len).map_err(|_| RecordError::Keys)
    }

    /// Decrypts one record into `out`, which is at least as long. Returns the type and length of its content.
    fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (header, body) = record.split_at(HEADER);
        let len = body.len().checked_sub(TAG).ok_or(RecordError::BadMac)?;
        let (body, tag) = body.split_at(len);
        let (nonce, aad) = (self.nonce()?, Aad::from(header));
        let opened = self.aead.open_separate_gather(nonce, aad, body, tag, &mut out[..len]);
        if opened.is_err() {
            out[..len].fill(0); // unauthenticated plaintext must not be used
            return Err(RecordError::BadMac);
        }
        // Padding may follow the type (section 5.4).
        let end = out[..len].iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
        match len > MAX_PLAINTEXT + 1 {
            true => Err(RecordError::Overflow),
            false => Ok((out[end], end)),
        }
    }
}
