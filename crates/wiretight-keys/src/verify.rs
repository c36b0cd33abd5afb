//! Verifies a peer's chain. The result is a [`VerifiedPeer`] or a [`Refusal`] with the reason. Nothing else makes a
//! `VerifiedPeer`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, aws_lc_rs as algs};

use crate::error::X509Error;
use crate::logged::{MAX_PROOF, NotLogged};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::transparency::{Place, Transparency};
use crate::x509::{self, Leaf, Period, Serial, Series};

/// Certificate signature algorithms accepted: ECDSA on P-256 (ours), Ed25519 (for a threshold root).
static ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] =
    &[algs::ECDSA_P256_SHA256, algs::ED25519];

/// The longest chain accepted: leaf, intermediate, an optional root, and one to spare.
const MAX_CHAIN: usize = 4;
/// The largest certificate accepted, in bytes: the largest proof, and the rest.
const MAX_CERT: usize = MAX_PROOF + 2 * 1024;
/// The longest validity of a leaf, in seconds: the largest `svid_ttl` (a day), and an hour for rounding. It also
/// limits what anyone with the CA key can issue.
pub const MAX_LEAF_LIFE: u64 = 25 * 3600;
/// The longest validity of an intermediate, in seconds: the largest `intermediate_ttl` (a year), and a day.
pub const MAX_INTERMEDIATE_LIFE: u64 = 366 * 86_400;

/// The side of the handshake that presented the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The peer accepted our connection.
    Server,
    /// The peer connected to us.
    Client,
}

/// SHA-256 of a root certificate.
pub type Fingerprint = [u8; 32];

/// A peer that passed verification in its handshake: chain, time, trust domain, revocation and, if required, log
/// proofs. Clones share the data, because each connection of the peer has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer(Arc<Known>);

#[derive(Debug, PartialEq, Eq)]
struct Known {
    id: SpiffeId,
    serial: Serial,
    /// Serial numbers of the intermediates in its chain.
    issuers: Vec<Serial>,
    root: Fingerprint,
    /// When the whole chain is valid: the certificates, and the proofs if required.
    holds: Period,
}

impl VerifiedPeer {
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }

    /// The last second in which its whole chain is valid, including the proofs if required (seconds since 1970).
    pub fn not_after(&self) -> u64 {
        self.0.holds.not_after
    }

    /// Whether its whole chain is valid at this time, including the proofs if required.
    pub fn holds_at(&self, now: u64) -> bool {
        (self.0.holds.not_before..=self.0.holds.not_after).contains(&now)
    }
}

/// Why a peer is rejected. For our own log only: the peer receives just a TLS alert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it presented no certificate")]
    NoCertificate,
    /// Its certificate is not an SVID.
    #[error("its certificate is not an SVID: {0}")]
    NotAnSvid(#[from] X509Error),
    /// Too many or too large certificates.
    #[error("its certificate chain is too large ({0})")]
    ChainTooLarge(&'static str),
    /// Its certificate names another trust domain.
    #[error("it claims to be {theirs}, but our trust domain is {ours}")]
    WrongTrustDomain {
        /// The identity in its certificate.
        theirs: SpiffeId,
        /// Our trust domain.
        ours: TrustDomain,
    },
    /// No chain to a root in the trust bundle.
    #[error(
        "the chain of {0} leads to no root in our trust bundle: another authority issued it, or a trust bundle is out of date"
    )]
    Untrusted(SpiffeId),
    #[error(
        "the certificate of {id} expired {ago} s ago: its node is out of contact with the authority, or a clock is wrong"
    )]
    Expired {
        /// The identity in the certificate.
        id: SpiffeId,
        /// Seconds since it expired.
        ago: u64,
    },
    #[error(
        "the certificate of {id} is not valid for another {ahead} s: one of the two clocks is probably wrong"
    )]
    NotYetValid {
        /// The identity in the certificate.
        id: SpiffeId,
        /// Seconds until it becomes valid.
        ahead: u64,
    },
    /// A certificate in its chain was revoked, for example because its node was removed.
    #[error("{what} of {id} was revoked: {why}")]
    Revoked {
        /// The identity in the certificate.
        id: SpiffeId,
        /// The revoked certificate.
        what: &'static str,
        /// The likely reason.
        why: &'static str,
    },
    /// A certificate is valid for longer than an authority ever issues them.
    #[error(
        "{which} of {id} is valid for {life} s; nodes accept at most {allowed} s, regardless of who signed it. Set a shorter lifetime in [authority], or find out who issued it"
    )]
    LivesTooLong {
        /// The identity in the certificate.
        id: SpiffeId,
        /// The certificate in question.
        which: &'static str,
        /// Its validity, in seconds.
        life: u64,
        /// The longest validity allowed, in seconds.
        allowed: u64,
    },
    /// A certificate in its chain has no valid log proof.
    #[error("{which} of {id} is not proven to be logged, which this node requires: {why}")]
    NotLogged {
        /// The identity in the certificate.
        id: SpiffeId,
        /// The certificate in question.
        which: &'static str,
        why: NotLogged,
    },
    /// This node is out of contact with the authority, so its list of revocations may be out of date.
    #[error(
        "this node has been out of contact with the authority for longer than max_staleness; it accepts no connections until contact is restored"
    )]
    NoNews,
    /// A valid certificate, but of another identity than expected.
    #[error("expected {expected}, but the peer is {found}")]
    WrongPeer {
        /// The identity that we connected to.
        expected: SpiffeId,
        /// The identity in the peer's certificate.
        found: SpiffeId,
    },
    /// The chain is invalid for another reason.
    #[error("the certificate chain of {id} is invalid: {detail}")]
    BadChain {
        /// The identity in the certificate.
        id: SpiffeId,
        /// The verifier's message.
        detail: String,
    },
}

/// What is revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Certificates, by series: their node was removed, or may no longer use the identity.
    pub series: BTreeSet<Series>,
    /// Roots that were retired before the certificates under them expired.
    pub roots: BTreeSet<Fingerprint>,
    /// Certificates, by the index of their log entry: inclusive ranges.
    pub indexes: Vec<(u64, u64)>,
}

impl Revocations {
    fn holds(&self, serial: &Serial) -> bool {
        let index = serial.index();
        let by_index = self.indexes.iter().any(|(from, to)| (*from..=*to).contains(&index));
        by_index || self.series.contains(&serial.series())
    }
}

/// The trusted roots of a trust domain, the revocations, and whether log proofs are required.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Revocations,
    transparency: Transparency,
}

impl TrustBundle {
    /// Each root must be a well-formed certificate.
    pub fn new(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        revoked: Revocations,
    ) -> Result<TrustBundle, X509Error> {
        let anchor = |cert| anchor_from_trusted_cert(cert).map(|a| a.to_owned());
        let anchors = roots.iter().map(anchor).collect::<Result<Vec<_>, _>>();
        let anchors = anchors.map_err(|e| X509Error::Malformed {
            what: "root certificate",
            detail: e.to_string(),
        })?;
        let transparency = Transparency::NotRequired;
        Ok(TrustBundle { trust_domain, roots, anchors, revoked, transparency })
    }

    /// The same bundle with this requirement for log proofs.
    pub fn with(self, transparency: Transparency) -> TrustBundle {
        TrustBundle { transparency, ..self }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.holds(serial)
    }

    /// Whether a peer that was verified earlier, by this bundle or a previous one, is still not revoked. Expiry is
    /// not checked: a session may outlive the certificate from its handshake.
    pub fn stands_by(&self, peer: &VerifiedPeer) -> bool {
        self.standing(peer).is_ok()
    }

    /// The same; the error says which certificate was revoked.
    pub fn standing(&self, peer: &VerifiedPeer) -> Result<(), Refusal> {
        let Known { serial, issuers, root, .. } = &*peer.0;
        let (what, why) = if self.revoked.roots.contains(root) {
            let why = "the root was retired before its certificates expired; the node gets a new certificate automatically";
            ("the root certificate", why)
        } else if issuers.iter().any(|serial| self.is_revoked(serial)) {
            let why = "all certificates below it are revoked with it; the node gets a new certificate automatically";
            ("the intermediate certificate", why)
        } else if self.is_revoked(serial) {
            let why = "its node was removed from the mesh, or may no longer use this identity, or an operator revoked the certificate (`wiretight revoke`)";
            ("the certificate", why)
        } else {
            return Ok(());
        };
        Err(Refusal::Revoked { id: peer.id().clone(), what, why })
    }

    /// Verifies the chain that a peer presented, leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<VerifiedPeer, Refusal> {
        let leaf_der = chain.first().ok_or(Refusal::NoCertificate)?;
        if chain.len() > MAX_CHAIN {
            return Err(Refusal::ChainTooLarge("too many certificates"));
        }
        if chain.iter().any(|c| c.len() > MAX_CERT) {
            return Err(Refusal::ChainTooLarge("a certificate is larger than 26 KiB"));
        }
        let Leaf { id, serial, period, .. } = Leaf::parse(leaf_der)?;
        if id.trust_domain != self.trust_domain {
            let ours = self.trust_domain.clone();
            return Err(Refusal::WrongTrustDomain { theirs: id, ours });
        }
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        let bad_chain = |e: webpki::Error| {
            let (id, now) = (id.clone(), now.as_secs());
            match e {
                webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                    Refusal::Untrusted(id)
                }
                webpki::Error::CertExpired { .. } if period.not_after < now => {
                    Refusal::Expired { id, ago: now - period.not_after }
                }
                webpki::Error::CertNotValidYet { .. } if period.not_before > now => {
                    Refusal::NotYetValid { id, ahead: period.not_before - now }
                }
                e => Refusal::BadChain { id, detail: e.to_string() },
            }
        };
        let cert = EndEntityCert::try_from(leaf_der).map_err(bad_chain)?;
        let path = cert
            .verify_for_usage(ALGORITHMS, &self.anchors, &chain[1..], now, usage, None, None)
            .map_err(bad_chain)?;
        // The period in which one certificate of the chain and its proof are valid.
        let holds = |certificate: &CertificateDer<'_>, place: Place, period: Period| {
            let (which, allowed) = match place {
                Place::Leaf => ("the certificate", MAX_LEAF_LIFE),
                Place::Intermediate => ("the intermediate", MAX_INTERMEDIATE_LIFE),
            };
            let (id, life) = (id.clone(), period.not_after.saturating_sub(period.not_before));
            if life > allowed {
                return Err(Refusal::LivesTooLong { id, which, life, allowed });
            }
            let checked = self.transparency.check(certificate, place, now.as_secs());
            let proof = checked.map_err(|why| Refusal::NotLogged { id, which, why })?;
            Ok(both(period, proof))
        };
        let mut all = holds(leaf_der, Place::Leaf, period)?;
        let mut issuers = Vec::new();
        for issuer in path.intermediate_certificates() {
            let der = issuer.der();
            let read = x509::period(&der).zip(x509::serial(&der));
            let (period, serial) = read.ok_or_else(|| Refusal::BadChain {
                id: id.clone(),
                detail: "its intermediate was not issued by a Wiretight authority: its serial number is not 16 bytes that start with 0x40 to 0x7f".into(),
            })?;
            all = both(all, holds(&der, Place::Intermediate, period)?);
            issuers.push(serial);
        }
        let used = self.anchors.iter().position(|a| a == path.anchor());
        let Some(root) = used.and_then(|n| self.roots.get(n)).map(x509::fingerprint) else {
            return Err(Refusal::Untrusted(id));
        };
        let peer = VerifiedPeer(Arc::new(Known { id, serial, issuers, root, holds: all }));
        self.standing(&peer).map(|()| peer)
    }
}

/// The intersection of two periods.
fn both(a: Period, b: Period) -> Period {
    Period { not_before: a.not_before.max(b.not_before), not_after: a.not_after.min(b.not_after) }
}

/// For a first join, when only the root's fingerprint is known: finds that root in the chain that the server
/// presented, and returns a bundle with this root only.
pub fn bundle_by_fingerprint(
    trust_domain: &TrustDomain,
    fingerprint: &[u8; 32],
    chain: &[CertificateDer<'_>],
) -> Option<TrustBundle> {
    let root = chain.iter().take(MAX_CHAIN).find(|c| x509::fingerprint(c) == *fingerprint)?;
    let root = root.clone().into_owned();
    TrustBundle::new(trust_domain.clone(), vec![root], Revocations::default()).ok()
}
