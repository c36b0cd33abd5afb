//! TLS 1.3 records after the handshake (RFC 8446, section 5): sealed and opened many at a time, straight
//! from one buffer into another, where rustls takes them one by one with a copy and an allocation each.
//!
//! rustls shakes hands and makes the keys; here they are used. Pure: no I/O, no clock, and no secret but the
//! keys in use. Whatever is not what the RFC allows is an error that names the alert for it, and after it
//! nothing more is opened.

use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ConnectionTrafficSecrets};

/// Length of a record's header.
pub const HEADER: usize = 5;
/// The most plaintext in a record (section 5.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;
/// What a record has more than its plaintext: header, type, tag. (We do not pad.)
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// The longest record, header included (section 5.2).
pub const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + 256;
/// A record with a KeyUpdate.
const KEY_UPDATE_RECORD: usize = OVERHEAD + 5;
/// The tag of each of the three AEADs.
const TAG: usize = 16;
/// Records that are sealed with one key: half of what AES-GCM is good for (section 5.5), for each AEAD. In
/// tests of this crate every connection renews its key over and over.
const RECORDS_A_KEY: u64 = if cfg!(test) { 7 } else { 1 << 23 };
/// Records without data that a peer may send in succession: what they cost is not paid for by traffic.
const MAX_IDLE_RECORDS: u8 = 32;
/// The longest handshake message. Only session tickets are long, and nothing is kept of them.
const MAX_HANDSHAKE: u32 = 1 << 16;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

#[cfg(test)]
mod tests;

/// What is wrong with what a peer sent, or that it told us of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The peer's fatal alert.
    #[error("received fatal alert: {0:?}")]
    Alert(AlertDescription),
    /// A record that is not protected, or of an unknown type.
    #[error("a record of type {0}, where only encrypted ones may come")]
    NotEncrypted(u8),
    /// More than a record may hold.
    #[error("a record that is longer than TLS allows")]
    Overflow,
    /// It was not sealed by the peer, or not as the next one.
    #[error("a record that does not decrypt: altered, or out of order")]
    BadMac,
    /// A type or a message that has no place here.
    #[error("a TLS message that does not belong here")]
    Unexpected,
    /// A message that does not parse.
    #[error("a malformed TLS message")]
    Decode,
    /// A KeyUpdate that asks for neither of the two things.
    #[error("a KeyUpdate with an unknown request")]
    IllegalKeyUpdate,
    /// One record after another, and nothing in them.
    #[error("too many records in succession that carry no data")]
    Idle,
    /// Keys could not be made, or used. This is about us.
    #[error("the keys of this connection cannot be used")]
    Keys,
}

impl RecordError {
    /// What the peer is told (section 6.2); nothing, if it told us.
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

/// Whose keys come next, after a KeyUpdate (section 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Ours, to seal.
    Send,
    /// The peer's, to open.
    Receive,
}

/// Keeps the traffic secrets, and makes of each the next one.
pub trait Secrets {
    /// The next keys of that direction, which count from record 0.
    fn next(&mut self, direction: Direction) -> Result<ConnectionTrafficSecrets, rustls::Error>;
    /// Whether the peer is the server, and may send session tickets.
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

/// The record layer of one connection, from the end of its handshake on.
pub struct Records {
    send: Key,
    receive: Key,
    secrets: Box<dyn Secrets>,
    /// The peer asked for a KeyUpdate: it goes ahead of what we send next (section 4.6.3).
    update_due: bool,
    handshake: Handshake,
    idle: u8,
    /// No more will be opened: the peer said close_notify, or this.
    end: Option<Result<(), RecordError>>,
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Records {
    /// From the keys that a handshake made, and the numbers of the next records.
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

    /// Seals as much of `plaintext` as `out` has room for, in full records and a last one with the rest.
    /// Returns how much of the first is used and how much of the second is filled.
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

    /// Seals an alert. Returns the length of its record, 0 if `out` has no room for it.
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

    /// Whether a KeyUpdate goes ahead of the next data: the peer asked for it, or the key is worn.
    fn is_renewal_due(&self) -> bool {
        self.update_due || self.send.number >= RECORDS_A_KEY
    }

    /// Says KeyUpdate, and takes new keys.
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

    /// Opens the whole records at the front of `input`, and puts the data in them into `out`, one piece
    /// behind the other. Ends early where `out` has no room for one more, or the peer's direction ends.
    /// Returns how much of the first is used and how much of the second is filled; an error, when there is
    /// no data before it.
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

    /// Whether no more will be opened: the peer has said close_notify, and what comes behind it is not
    /// looked at (section 6.1); or there was an error, which [`Records::open`] returns from then on.
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Opens the record at the front, if it is whole and `out` has room for as much. Returns its length, and
    /// how much data there was in it.
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
        // The level says nothing any more (section 6).
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
                // Nothing is resumed.
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

/// The record at the front of the input; `None` until all of it is there.
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

/// Cuts handshake messages out of records, and keeps nothing of them but where it stands.
#[derive(Default)]
struct Handshake {
    header: [u8; 4],
    have: usize,
    left: u32,
    /// The last byte that was taken of a body.
    last: u8,
}

impl Handshake {
    /// Takes up to and with the end of a message; returns its type.
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

/// A key with its nonces: the number of a record is used once (section 5.3).
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

    /// Seals one record into `out`, which has room for it. Returns its length.
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

    /// Opens one record into `out`, which is as long at least. Returns the type of what is in it, and its
    /// length.
    fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (header, body) = record.split_at(HEADER);
        let len = body.len().checked_sub(TAG).ok_or(RecordError::BadMac)?;
        let (body, tag) = body.split_at(len);
        let (nonce, aad) = (self.nonce()?, Aad::from(header));
        let opened = self.aead.open_separate_gather(nonce, aad, body, tag, &mut out[..len]);
        if opened.is_err() {
            out[..len].fill(0); // nobody reads what nobody has vouched for
            return Err(RecordError::BadMac);
        }
        // Behind the type there may be padding (section 5.4).
        let end = out[..len].iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
        match len > MAX_PLAINTEXT + 1 {
            true => Err(RecordError::Overflow),
            false => Ok((out[end], end)),
        }
    }
}
