//! The protocol between a node and the authority: messages and their framing (docs/wire.md, section 5). Only [`Reader`]
//! does I/O.
//!
//! A message is a 4-byte length followed by that many bytes of JSON. Each side limits the size of what it reads; memory
//! grows with the bytes received, never with the announced length. Authorization is not decided here.

pub mod report;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use tokio::io::{AsyncRead, AsyncReadExt};
use wiretight_keys::{Id, Name, Revocations, Series, TrustBundle, TrustDomain};
use wiretight_proxy::network::HostPort;
use wiretight_proxy::{Instance, Registry};
use wiretight_scan::passive::totals::Hour;
use zeroize::Zeroizing;

use report::{MAX_RELEASE_PROOF, NodeReport, ReportedRelease};

/// The TLS exporter label (RFC 8446, section 7.5) that binds proofs of the enrolment key to a connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-wiretight-control";
/// What the enrolment key signs at a first join, before the exporter's bytes.
pub const JOIN_CONTEXT: &[u8] = b"wiretight join\0";
/// What the enrolment key signs at a rejoin, before the exporter's bytes.
pub const REJOIN_CONTEXT: &[u8] = b"wiretight rejoin\0";

/// The largest record that edges share, in bytes. With the rest of its message it stays below the authority's limit.
pub const MAX_SHARED_VALUE: usize = 90 << 10;

/// How many bytes are read from the stream at a time.
const CHUNK: usize = 16 * 1024;
const HEADER: usize = 4;

/// The most SVID requests that a node may have open. The authority signs waiting requests together, so that they share a
/// batch of the log.
pub const MAX_SIGN: usize = 32;

/// Why reading or writing a message failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The message exceeds the limit of its reader.
    #[error("a message of {announced} bytes exceeds the limit of {max} bytes")]
    TooLarge { announced: usize, max: usize },
    /// The message is not the expected JSON.
    #[error("malformed message: {0}")]
    Malformed(serde_json::Error),
    #[error("the other side closed the connection")]
    Closed,
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Bytes as base64 (RFC 4648, section 4: standard, padded).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl Blob {
    /// The bytes as a certificate, unchecked.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.clone().into()
    }
}

impl From<&CertificateDer<'_>> for Blob {
    fn from(cert: &CertificateDer<'_>) -> Blob {
        Blob(cert.to_vec())
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        STANDARD.decode(text).map(Blob).map_err(serde::de::Error::custom)
    }
}

/// Why a request was refused, as a fixed word for programs. The message is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The message is malformed or unexpected.
    BadMessage,
    /// The message has a type that this side does not know.
    UnknownType,
    /// There is no such token, or the secret is wrong.
    UnknownToken,
    /// The token has expired.
    TokenExpired,
    /// Another node has used the token.
    TokenUsed,
    /// The token is for another node name.
    WrongNode,
    /// The trust domain is another one.
    WrongTrustDomain,
    /// The enrolment key's signature is not valid for this connection.
    BadProof,
    /// The certificate request is malformed or names another identity.
    BadRequest,
    /// The node is not allowed to have that.
    NotAllowed,
    /// No node of this name is enrolled with this key.
    NotEnrolled,
    /// The node was removed from the mesh, or another node took its name.
    Removed,
    /// A newer connection of the same node replaced this one.
    Superseded,
    /// The certificate of this connection has expired.
    Expired,
    /// Try again later.
    Busy,
    /// A limit is reached.
    Full,
    /// The node has not shown that it runs a release that the authority accepts.
    UnprovedRelease,
    /// An internal error of the authority; see its log.
    Internal,
    /// A code that this side does not know.
    #[serde(other)]
    Other,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A refusal: a code and a sentence with the next step. Both are sent to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    /// The fixed word.
    pub code: Code,
    /// The sentence.
    pub message: String,
}

impl Denial {
    pub fn new(code: Code, message: impl Into<String>) -> Denial {
        Denial { code, message: message.into() }
    }
}

/// An instance of a service, as a node announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub service: Name,
    /// Where others reach it.
    pub addr: HostPort,
    /// The identities that may connect.
    pub allow: Vec<Id>,
    /// The ports of this host under which programs connect to the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// A list of records that are parsed one by one: a record that this release cannot read does not affect the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records<T> {
    /// The readable records.
    pub good: Vec<T>,
    /// The number of unreadable records.
    pub unreadable: usize,
}

impl<T> From<Vec<T>> for Records<T> {
    fn from(good: Vec<T>) -> Records<T> {
        Records { good, unreadable: 0 }
    }
}

impl<T> Default for Records<T> {
    fn default() -> Records<T> {
        Vec::new().into()
    }
}

impl<T: Serialize> Serialize for Records<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.good.serialize(s)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Records<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Record<T> {
            Good(T),
            Unreadable(IgnoredAny),
        }
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Records<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Records<T>, A::Error> {
                let mut records = Records::default();
                while let Some(record) = list.next_element::<Record<T>>()? {
                    match record {
                        Record::Good(record) => records.good.push(record),
                        Record::Unreadable(IgnoredAny) => records.unreadable += 1,
                    }
                }
                Ok(records)
            }
        }
        d.deserialize_seq(List(PhantomData))
    }
}

/// A record that edges share, or its deletion. `Debug` omits the contents, as some are encrypted secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedRecord {
    /// Its key, below the service's folder: `site/www.example.org`.
    pub key: String,
    /// The revision of its last change.
    pub revision: u64,
    /// Its value; absent if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Blob>,
}

/// `join`: a first join with a token. It has no `Debug`, as it holds the secret.
#[derive(Serialize, Deserialize)]
pub struct Join {
    /// The token's name.
    pub token_id: String,
    pub secret: Zeroizing<String>,
    pub node: Name,
    /// The trust domain that it expects.
    pub trust_domain: TrustDomain,
    /// PKCS#10 for `node/NAME`.
    pub csr: Blob,
    /// `SubjectPublicKeyInfo` of the node's long-lived enrolment key.
    pub enrolment_key: Blob,
    /// That key's signature over [`JOIN_CONTEXT`] and 32 bytes of the TLS exporter.
    pub proof: Blob,
}

/// `rejoin`: an enrolled node whose certificate has expired or is no longer accepted.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rejoin {
    /// The node's release, after a refusal with [`Code::UnprovedRelease`]: without a certificate it cannot report it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "report::lenient"
    )]
    pub release: Option<Box<ReportedRelease>>,
    pub node: Name,
    /// The trust domain that it expects.
    pub trust_domain: TrustDomain,
    /// PKCS#10 for `node/NAME`.
    pub csr: Blob,
    /// The enrolment key's signature over [`REJOIN_CONTEXT`] and 32 bytes of the TLS exporter.
    pub proof: Blob,
}

/// The messages of a client without a certificate to the authority.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromStranger {
    /// A first join.
    Join(Join),
    /// An enrolled node.
    Rejoin(Rejoin),
    /// A type that this release does not know.
    #[serde(other)]
    Unknown,
}

/// The messages of a node to the authority.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// The first message.
    Hello {
        /// The version of the state in force at the node; 0 if none.
        have: u64,
        /// That state's digest.
        #[serde(default)]
        digest: String,
        /// All instances that the node offers.
        instances: Records<Offer>,
    },
    /// Replaces the list of offered instances.
    Announce {
        /// All instances that the node offers.
        instances: Records<Offer>,
    },
    /// Requests an SVID.
    Sign {
        /// The node's number for the request, from 1.
        request: u64,
        /// PKCS#10.
        csr: Blob,
    },
    /// The state of this version is in force at the node.
    Ack { version: u64 },
    /// Requests all shared records of a service's edges, and their changes from then on. A newer request replaces it.
    Follow {
        /// The node's number for the request.
        request: u64,
        service: Name,
    },
    /// Writes a record that edges share.
    Write {
        /// The node's number for the request.
        request: u64,
        service: Name,
        /// The record's key, below the service's folder.
        key: String,
        /// The revision that the record must have; 0 if it must not exist.
        expected: u64,
        /// The new value; absent to delete the record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<Blob>,
    },
    /// What the node has counted of its traffic. Totals of an hour replace earlier ones.
    Totals {
        /// The node's number for the request.
        request: u64,
        hours: Records<Hour>,
    },
    /// What the node says of itself. It replaces what it said before.
    Report {
        /// The node's number for the request.
        request: u64,
        report: Box<NodeReport>,
    },
    /// Asks for a [`Self::Pong`], to check the connection.
    Ping,
    /// The answer to [`Self::Ping`].
    Pong,
    /// A type that this release does not know.
    #[serde(other)]
    Unknown,
}

/// The messages of the authority to a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAuthority {
    /// The answer to `join` and `rejoin`.
    Joined {
        /// The node's SVID and its intermediate.
        chain: Vec<Blob>,
        /// The roots of the trust bundle.
        bundle: Vec<Blob>,
    },
    /// The last message was refused, or the connection ends, for this reason.
    Error(Denial),
    /// An SVID.
    Signed {
        /// The request that this answers.
        request: u64,
        /// The SVID and its intermediate.
        chain: Vec<Blob>,
    },
    /// A request was refused; request 0 means the announcement.
    Refused {
        /// The request that this answers.
        request: u64,
        #[serde(flatten)]
        denial: Denial,
    },
    /// The limits of this stream.
    Limits {
        /// The most SVID requests that a node may have open.
        sign: u32,
    },
    /// The complete state of the mesh.
    State(State),
    /// A part of the shared records of a service's edges.
    Records {
        /// The request that this answers.
        request: u64,
        /// The revision of the complete set.
        at: u64,
        /// The records of this part.
        records: Vec<SharedRecord>,
        /// Whether this is the last part.
        done: bool,
    },
    /// Changes of shared records since then, in order.
    Changes {
        /// The request that this answers.
        request: u64,
        changes: Vec<SharedRecord>,
    },
    /// A record was written.
    Written {
        /// The request that this answers.
        request: u64,
        /// The revision of the change.
        revision: u64,
    },
    /// The totals, or the report, are stored.
    Kept {
        /// The request that this answers.
        request: u64,
    },
    /// A record was not written because its revision is not the expected one.
    Conflict {
        /// The request that this answers.
        request: u64,
        /// The record's revision; 0 if it does not exist.
        found: u64,
    },
    /// Asks for a [`Self::Pong`], to check the connection.
    Ping,
    /// The answer to [`Self::Ping`].
    Pong,
    /// A type that this release does not know.
    #[serde(other)]
    Unknown,
}

/// The state of the mesh at one version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "ReadState")]
pub struct State {
    pub version: u64,
    /// SHA-256 of everything else, in hex. Two states are equal if version and digest are equal. (An authority that was
    /// restored from a backup may use a version number again.)
    pub digest: String,
    /// The roots of the trust bundle.
    pub bundle: Vec<Blob>,
    /// Nodes and services.
    pub registry: Registry,
    /// Revoked series of certificates.
    pub revoked: BTreeSet<Series>,
    /// SHA-256 of roots that were retired before the certificates they had signed had expired.
    pub revoked_roots: Vec<Blob>,
    /// Revoked certificates by the indexes of their log entries, as inclusive ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked_indexes: Vec<(u64, u64)>,
    /// The number of records that this release could not read and has left out.
    #[serde(skip)]
    pub unreadable: usize,
}

/// [`State`] as it is parsed: an unreadable record does not affect the others.
#[derive(Deserialize)]
struct ReadState {
    version: u64,
    digest: String,
    bundle: Records<Blob>,
    registry: ReadRegistry,
    revoked: Records<Series>,
    revoked_roots: Records<Blob>,
    #[serde(default)]
    revoked_indexes: Records<(u64, u64)>,
}

#[derive(Deserialize)]
struct ReadRegistry {
    services: BTreeMap<String, Records<Instance>>,
    nodes: Records<Name>,
}

impl From<ReadState> for State {
    fn from(read: ReadState) -> State {
        let mut unreadable = 0;
        fn good<T>(records: Records<T>, unreadable: &mut usize) -> Vec<T> {
            *unreadable += records.unreadable;
            records.good
        }
        let mut services = BTreeMap::new();
        for (name, instances) in read.registry.services {
            match Name::try_from(name) {
                Ok(name) => drop(services.insert(name, good(instances, &mut unreadable))),
                Err(_) => unreadable += 1,
            }
        }
        let nodes = good(read.registry.nodes, &mut unreadable).into_iter().collect();
        State {
            version: read.version,
            digest: read.digest,
            bundle: good(read.bundle, &mut unreadable),
            registry: Registry { services, nodes },
            revoked: good(read.revoked, &mut unreadable).into_iter().collect(),
            revoked_roots: good(read.revoked_roots, &mut unreadable),
            revoked_indexes: good(read.revoked_indexes, &mut unreadable),
            unreadable,
        }
    }
}

impl State {
    /// All revocations. An invalid fingerprint is left out, so that the other revocations still apply.
    pub fn revocations(&self) -> Revocations {
        let print = |b: &Blob| {
            let print = b.0.as_slice().try_into();
            let invalid = "an entry of the revoked roots is not a fingerprint and is ignored";
            print.inspect_err(|_| tracing::error!("{invalid}")).ok()
        };
        let roots = self.revoked_roots.iter().filter_map(print).collect();
        let (series, indexes) = (self.revoked.clone(), self.revoked_indexes.clone());
        Revocations { series, roots, indexes }
    }

    /// The trust bundle. An invalid root is left out as long as there is a valid one.
    pub fn trust_bundle(&self, trust_domain: &TrustDomain) -> Result<TrustBundle, String> {
        let bundle = |roots: Vec<CertificateDer<'static>>, revoked| {
            TrustBundle::new(trust_domain.clone(), roots, revoked).map_err(|e| e.to_string())
        };
        let all: Vec<_> = self.bundle.iter().map(Blob::certificate).collect();
        let Err(why) = bundle(all.clone(), Revocations::default()) else {
            return bundle(all, self.revocations());
        };
        let is_root =
            |r: &CertificateDer<'static>| bundle(vec![r.clone()], Revocations::default()).is_ok();
        let good: Vec<_> = all.into_iter().filter(is_root).collect();
        if good.is_empty() {
            return Err(why);
        }
        tracing::error!("a root of the trust bundle is invalid and is ignored: {why}");
        bundle(good, self.revocations())
    }
}

/// The messages of one direction.
pub trait Message: Serialize + DeserializeOwned {
    /// The largest message that the reader accepts, in bytes of JSON.
    const MAX: usize;
}

impl Message for FromStranger {
    /// A release proof is JSON in JSON, so it becomes longer.
    const MAX: usize = (8 << 10) + MAX_RELEASE_PROOF / 2 * 3;
}
impl Message for FromNode {
    const MAX: usize = 1 << 20;
}
impl Message for FromAuthority {
    const MAX: usize = 16 << 20;
}

/// The bytes to send: length and JSON. Fails with [`ControlError::TooLarge`] if the reader would refuse it.
pub fn encode<M: Message>(message: &M) -> Result<Zeroizing<Vec<u8>>, ControlError> {
    let mut frame = Zeroizing::new(vec![0; HEADER]);
    serde_json::to_writer(&mut *frame, message).map_err(ControlError::Malformed)?;
    let announced = frame.len() - HEADER;
    if announced > M::MAX {
        return Err(ControlError::TooLarge { announced, max: M::MAX });
    }
    // MAX is far below 2^32.
    frame[..HEADER].copy_from_slice(&(announced as u32).to_be_bytes());
    Ok(frame)
}

/// Parses the JSON of one message.
pub fn decode<M: Message>(body: &[u8]) -> Result<M, ControlError> {
    serde_json::from_slice(body).map_err(ControlError::Malformed)
}

/// Splits a byte stream into messages.
#[derive(Default)]
pub struct Frames {
    buffer: Zeroizing<Vec<u8>>,
}

impl Frames {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next complete message; `None` if more bytes are needed.
    pub fn take<M: Message>(&mut self) -> Result<Option<M>, ControlError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*header) as usize;
        if announced > M::MAX {
            return Err(ControlError::TooLarge { announced, max: M::MAX });
        }
        let end = HEADER + announced;
        let Some(body) = self.buffer.get(HEADER..end) else { return Ok(None) };
        let message = decode(body);
        self.buffer.drain(..end);
        if self.buffer.capacity() > 4 * CHUNK {
            self.buffer.shrink_to(CHUNK);
        }
        message.map(Some)
    }
}

/// Reads messages from a stream.
pub struct Reader<R> {
    stream: R,
    frames: Frames,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Reader<R> {
        Reader { stream, frames: Frames::default() }
    }

    /// Returns the stream. Bytes that were read ahead are lost.
    pub fn into_stream(self) -> R {
        self.stream
    }

    /// The next message, if it has arrived.
    pub async fn arrived<M: Message>(&mut self) -> Option<Result<M, ControlError>> {
        tokio::select! {
            biased;
            message = self.next() => Some(message),
            () = std::future::ready(()) => None,
        }
    }

    /// The next message. It is safe to drop the future: received bytes are kept. There is no timeout; set one in the
    /// caller.
    pub async fn next<M: Message>(&mut self) -> Result<M, ControlError> {
        loop {
            if let Some(message) = self.frames.take()? {
                return Ok(message);
            }
            // The stream is read only while the buffer holds no complete message, so it never holds more
            // than the limit and a chunk.
            self.frames.buffer.reserve(CHUNK);
            if self.stream.read_buf(&mut *self.frames.buffer).await? == 0 {
                return Err(ControlError::Closed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: Option<Blob>) -> FromNode {
        let (service, key) = ("www".parse().unwrap(), "site/www.example.org".into());
        FromNode::Write { request: 3, service, key, expected: 7, value }
    }

    fn messages() -> Vec<Zeroizing<Vec<u8>>> {
        let blob = || Blob(vec![1, 2, 3]);
        let offer = Offer {
            service: "db".parse().unwrap(),
            addr: "10.0.0.1:7432".parse().unwrap(),
            allow: vec!["service/web".parse().unwrap()],
            ports: Vec::new(),
        };
        vec![
            encode(&FromNode::Hello {
                have: 7,
                digest: "ab".into(),
                instances: vec![offer.clone()].into(),
            })
            .unwrap(),
            encode(&FromNode::Announce { instances: vec![offer].into() }).unwrap(),
            encode(&FromNode::Sign { request: 1, csr: blob() }).unwrap(),
            encode(&FromNode::Ack { version: u64::MAX }).unwrap(),
            encode(&FromNode::Follow { request: 2, service: "www".parse().unwrap() }).unwrap(),
            encode(&write(Some(blob()))).unwrap(),
            encode(&write(None)).unwrap(),
            encode(&FromNode::Ping).unwrap(),
        ]
    }

    #[test]
    fn messages_are_encoded_as_documented() {
        let text = |frame: &[u8]| String::from_utf8(frame[4..].to_vec()).unwrap();
        assert_eq!(
            text(&messages()[0]),
            r#"{"type":"hello","have":7,"digest":"ab","instances":[{"service":"db","addr":"10.0.0.1:7432","allow":["service/web"]}]}"#
        );
        let refused =
            FromAuthority::Refused { request: 3, denial: Denial::new(Code::NotAllowed, "no") };
        assert_eq!(
            text(&encode(&refused).unwrap()),
            r#"{"type":"refused","request":3,"code":"not_allowed","message":"no"}"#
        );
        let error = FromAuthority::Error(Denial::new(Code::TokenUsed, "used"));
        assert_eq!(
            text(&encode(&error).unwrap()),
            r#"{"type":"error","code":"token_used","message":"used"}"#
        );
        assert_eq!(text(&encode(&FromNode::Ping).unwrap()), r#"{"type":"ping"}"#);
        assert_eq!(
            text(&encode(&write(Some(Blob(vec![1])))).unwrap()),
            r#"{"type":"write","request":3,"service":"www","key":"site/www.example.org","expected":7,"value":"AQ=="}"#
        );
        let gone = SharedRecord { key: "member/a".into(), revision: 9, value: None };
        assert_eq!(
            text(&encode(&FromAuthority::Changes { request: 2, changes: vec![gone] }).unwrap()),
            r#"{"type":"changes","request":2,"changes":[{"key":"member/a","revision":9}]}"#
        );
    }

    #[test]
    fn the_largest_record_fits_into_a_message() {
        let (service, key) = ("s".repeat(63).parse().unwrap(), "k".repeat(300));
        let write = |len| {
            let (service, key) = (Name::clone(&service), key.clone());
            let value = Some(Blob(vec![0; len]));
            let request = u64::MAX;
            encode(&FromNode::Write { request, service, key, expected: u64::MAX, value })
        };
        assert!(write(MAX_SHARED_VALUE).is_ok());
        assert!(matches!(write(800 << 10), Err(ControlError::TooLarge { .. })));
    }

    #[test]
    fn unknown_types_codes_and_members_are_not_errors() {
        let unknown = decode::<FromNode>(br#"{"type":"dance","with":[1,{}]}"#).unwrap();
        assert!(matches!(unknown, FromNode::Unknown));
        let extra = decode::<FromNode>(br#"{"type":"ack","version":3,"mood":"good"}"#).unwrap();
        assert!(matches!(extra, FromNode::Ack { version: 3 }));
        let code = br#"{"type":"error","code":"tired","message":"later"}"#;
        let FromAuthority::Error(denial) = decode(code).unwrap() else { panic!() };
        assert_eq!(denial.code, Code::Other);
    }

    #[test]
    fn an_unreadable_record_does_not_affect_the_others() {
        let hello = br#"{"type":"hello","have":0,"instances":[{"service":"db","addr":"10.0.0.1:0","allow":[]},
            {"service":"db","addr":"10.0.0.1:7432","allow":["service/web"]},null,{"service":"db","addr":"10.0.0.1:1",
            "allow":["customer/x"]},7,[]]}"#;
        let FromNode::Hello { instances, .. } = decode(hello).unwrap() else { panic!() };
        assert_eq!((instances.good.len(), instances.unreadable), (1, 5));
        let state = br#"{"type":"state","version":1,"digest":"","bundle":["AQ==","!"],"registry":{"services":{
            "db":[{"node":"a","addr":"10.0.0.1:7432","allow":[]},{"node":"a","addr":"?","allow":[]}],
            "Not A Name":[]},"nodes":["a","B C"]},"revoked":["4000000000000001",5],
            "revoked_roots":["AQ=="],"revoked_indexes":[[1,2],[3]]}"#;
        let FromAuthority::State(state) = decode(state).unwrap() else { panic!() };
        assert_eq!(state.unreadable, 6);
        assert_eq!((state.bundle.len(), state.revoked.len()), (1, 1));
        assert_eq!(state.revoked_indexes, [(1, 2)]);
        assert_eq!(state.registry.services.len(), 1);
        // Anything but a list of records is still an error.
        assert!(decode::<FromNode>(br#"{"type":"announce","instances":{}}"#).is_err());
        assert!(decode::<FromNode>(br#"{"type":"announce","instances":7}"#).is_err());
    }

    #[test]
    fn messages_are_reassembled_from_any_chunks() {
        let all: Vec<u8> = messages().iter().flat_map(|m| m.to_vec()).collect();
        for step in [1, 2, 3, 7, 64, all.len()] {
            let (mut frames, mut count) = (Frames::default(), 0);
            for chunk in all.chunks(step) {
                frames.push(chunk);
                while frames.take::<FromNode>().unwrap().is_some() {
                    count += 1;
                }
            }
            assert_eq!(count, messages().len());
            assert!(frames.buffer.is_empty());
        }
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_its_bytes_arrive() {
        let max = FromStranger::MAX as u32;
        assert!(max <= 128 << 10);
        for (announced, good) in [(max, true), (max + 1, false), (u32::MAX, false)] {
            let mut frames = Frames::default();
            frames.push(&u32::to_be_bytes(announced));
            let next = frames.take::<FromStranger>();
            assert_eq!(matches!(next, Ok(None)), good);
            assert!(frames.buffer.capacity() < 64);
        }
    }

    #[test]
    fn truncated_and_altered_messages_never_panic() {
        for frame in messages() {
            for end in 0..frame.len() {
                let mut frames = Frames::default();
                frames.push(&frame[..end]);
                assert!(frames.take::<FromNode>().unwrap().is_none(), "cut at {end}");
                let _ = decode::<FromNode>(&frame[4.min(end)..end]);
            }
            for i in 0..frame.len() {
                for flip in [0x01, 0x20, 0x80, 0xff] {
                    let mut altered = frame.to_vec();
                    altered[i] ^= flip;
                    let mut frames = Frames::default();
                    frames.push(&altered);
                    let _ = frames.take::<FromNode>();
                    let mut frames = Frames::default();
                    frames.push(&altered);
                    let _ = frames.take::<FromStranger>();
                    let _ = decode::<FromAuthority>(&altered[4..]);
                }
            }
        }
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(decode::<FromAuthority>(&deep).is_err());
    }

    #[tokio::test]
    async fn an_interrupted_reader_loses_nothing() {
        use tokio::io::AsyncWriteExt;
        let (mut theirs, ours) = tokio::io::duplex(1 << 16);
        let mut reader = Reader::new(ours);
        let frame = &messages()[0];
        for byte in frame.iter() {
            let wait = std::time::Duration::from_millis(1);
            assert!(tokio::time::timeout(wait, reader.next::<FromNode>()).await.is_err());
            theirs.write_all(&[*byte]).await.unwrap();
        }
        assert!(matches!(reader.next().await.unwrap(), FromNode::Hello { have: 7, .. }));
        drop(theirs);
        assert!(matches!(reader.next::<FromNode>().await, Err(ControlError::Closed)));
    }
}
