//! Who is at the other end: a presented chain becomes a [`VerifiedPeer`], or a [`Refusal`] that says
//! why. There is no other way to make a `VerifiedPeer`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, aws_lc_rs as algs};

use crate::error::X509Error;
use crate::logged::{MAX_PROOF, NotLogged};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::transparency::{Place, Transparency};
use crate::x509::{self, Leaf, Period, Serial, Series};

/// Certificate signatures we accept: ECDSA on P-256 (ours), Ed25519 (a threshold root).
static ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] =
    &[algs::ECDSA_P256_SHA256, algs::ED25519];

/// The longest chain a peer may present: leaf, intermediate, and a root that need not be there.
const MAX_CHAIN: usize = 4;
/// The largest certificate a peer may present, in bytes: the largest proof, and the rest.
const MAX_CERT: usize = MAX_PROOF + 2 * 1024;
/// The longest life of a leaf, in seconds: the longest `svid_ttl`, a day, and an hour for how it is rounded. Whoever has
/// the CA's key can make none that outlasts it.
pub const MAX_LEAF_LIFE: u64 = 25 * 3600;
/// The longest life of an intermediate, in seconds: the longest `intermediate_ttl`, a year, and a day.
pub const MAX_INTERMEDIATE_LIFE: u64 = 366 * 86_400;

/// Which end of the handshake the certificate was shown by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The peer accepted our connection.
    Server,
    /// The peer connected to us.
    Client,
}

/// SHA-256 of a root certificate.
pub type Fingerprint = [u8; 32];

/// A peer whose chain, time, trust domain, standing and, where they are required, proofs were checked when it shook
/// hands. Clones share what is known: there is one for each connection of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer(Arc<Known>);

#[derive(Debug, PartialEq, Eq)]
struct Known {
    id: SpiffeId,
    serial: Serial,
    /// Of the intermediates that vouch for it.
    issuers: Vec<Serial>,
    root: Fingerprint,
    /// When all of it holds: the certificates, and the proofs where they are required.
    holds: Period,
}

impl VerifiedPeer {
    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// The serial number of its certificate.
    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }

    /// The last second in which its whole chain holds, and its proofs where they are required (seconds since 1970).
    pub fn not_after(&self) -> u64 {
        self.0.holds.not_after
    }

    /// Whether its whole chain holds at this time, and its proofs where they are required.
    pub fn holds_at(&self, now: u64) -> bool {
        (self.0.holds.not_before..=self.0.holds.not_after).contains(&now)
    }
}

/// Why a peer is not let in. For our own log: the peer itself learns no more than a TLS alert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It showed no certificate.
    #[error("it showed no certificate")]
    NoCertificate,
    /// What it showed is not an SVID.
    #[error("its certificate is not an SVID: {0}")]
    NotAnSvid(#[from] X509Error),
    /// Too many or too large certificates.
    #[error("its chain is larger than any of ours ({0})")]
    ChainTooLarge(&'static str),
    /// It belongs (or claims to) to another trust domain.
    #[error("it says it is {theirs}, of another trust domain than ours ({ours})")]
    WrongTrustDomain {
        /// What its certificate claims.
        theirs: SpiffeId,
        /// Ours.
        ours: TrustDomain,
    },
    /// No chain to a root of the trust bundle.
    #[error(
        "no root of our trust bundle vouches for {0}: another authority issued it, or a bundle is out of date"
    )]
    Untrusted(SpiffeId),
    /// The certificate has expired.
    #[error(
        "the certificate of {id} expired {ago} s ago: is its node cut off from the authority, or a clock wrong?"
    )]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// Seconds since it expired.
        ago: u64,
    },
    /// The certificate is not valid yet.
    #[error("the certificate of {id} begins in {ahead} s: is a clock wrong?")]
    NotYetValid {
        /// Whose.
        id: SpiffeId,
        /// Seconds until it begins.
        ahead: u64,
    },
    /// Its node was removed, or a certificate of its chain was revoked.
    #[error("{what} of {id} was revoked: {why}")]
    Revoked {
        /// Whose.
        id: SpiffeId,
        /// Which certificate.
        what: &'static str,
        /// Why that is done, most likely.
        why: &'static str,
    },
    /// A certificate that holds for longer than any that an authority makes.
    #[error(
        "{which} of {id} is valid for {life} s, and {allowed} s is the longest that a node accepts, regardless of who signed it: set a shorter lifetime in [authority], or find out who made it"
    )]
    LivesTooLong {
        /// Whose.
        id: SpiffeId,
        /// Which certificate.
        which: &'static str,
        /// How long it holds.
        life: u64,
        /// How long it may.
        allowed: u64,
    },
    /// A certificate of its chain has no proof that it stands in the log, or not one that we believe.
    #[error("{which} of {id} is not provably in the log, and this node demands it: {why}")]
    NotLogged {
        /// Whose.
        id: SpiffeId,
        /// Which certificate.
        which: &'static str,
        /// What is missing.
        why: NotLogged,
    },
    /// This node knows too little of what was revoked meanwhile.
    #[error(
        "this node has had no news from the authority for longer than its max_staleness: connections wait until it has"
    )]
    NoNews,
    /// A good certificate, but not of whom we called.
    #[error("we called {expected}, and {found} answered")]
    WrongPeer {
        /// Whom we wanted.
        expected: SpiffeId,
        /// Who is there.
        found: SpiffeId,
    },
    /// The chain is broken in another way.
    #[error("the chain of {id} does not verify: {detail}")]
    BadChain {
        /// Whose.
        id: SpiffeId,
        /// What the verifier said.
        detail: String,
    },
}

impl Refusal {
    /// A short fixed word for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NoCertificate => "no_certificate",
            Refusal::NotAnSvid(_) | Refusal::ChainTooLarge(_) => "not_an_svid",
            Refusal::WrongTrustDomain { .. } => "wrong_trust_domain",
            Refusal::Untrusted(_) => "untrusted",
            Refusal::Expired { .. } => "expired",
            Refusal::NotYetValid { .. } => "not_yet_valid",
            Refusal::Revoked { .. } => "revoked",
            Refusal::LivesTooLong { .. } => "lives_too_long",
            Refusal::NotLogged { .. } => "not_logged",
            Refusal::NoNews => "no_news",
            Refusal::WrongPeer { .. } => "wrong_peer",
            Refusal::BadChain { .. } => "bad_chain",
        }
    }
}

/// What is believed no longer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Certificates, by series: their node was removed, or may not claim the identity any more.
    pub series: BTreeSet<Series>,
    /// Roots that were given up before what they had signed had expired.
    pub roots: BTreeSet<Fingerprint>,
    /// Certificates, by the index of their entry in the log: ranges with both ends.
    pub indexes: Vec<(u64, u64)>,
}

impl Revocations {
    fn holds(&self, serial: &Serial) -> bool {
        let index = serial.index();
        let by_index = self.indexes.iter().any(|(from, to)| (*from..=*to).contains(&index));
        by_index || self.series.contains(&serial.series())
    }
}

/// The roots that a trust domain is believed by, and what of it is revoked.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Revocations,
    transparency: Transparency,
}

impl TrustBundle {
    /// A bundle of roots; each must be a well-formed certificate.
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

    /// The same bundle, which asks for proofs from now on.
    pub fn with(self, transparency: Transparency) -> TrustBundle {
        TrustBundle { transparency, ..self }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Whether this certificate was revoked.
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.holds(serial)
    }

    /// Whether a peer that was verified once, by this bundle or an earlier one, is still believed. Its
    /// time is not looked at: a session may outlive the certificate that it began with.
    pub fn stands_by(&self, peer: &VerifiedPeer) -> bool {
        self.standing(peer).is_ok()
    }

    /// The same, and which certificate was revoked if it is not.
    pub fn standing(&self, peer: &VerifiedPeer) -> Result<(), Refusal> {
        let Known { serial, issuers, root, .. } = &*peer.0;
        let (what, why) = if self.revoked.roots.contains(root) {
            let why = "that root was retired before its certificates had expired; its node gets another certificate by itself";
            ("the root certificate", why)
        } else if issuers.iter().any(|serial| self.is_revoked(serial)) {
            let why = "all certificates below that one are revoked with it; its node gets another certificate by itself";
            ("the intermediate certificate", why)
        } else if self.is_revoked(serial) {
            let why = "its node was removed from the mesh, or may not claim it any more, or an operator revoked this certificate (`wiretight revoke`)";
            ("the certificate", why)
        } else {
            return Ok(());
        };
        Err(Refusal::Revoked { id: peer.id().clone(), what, why })
    }

    /// Checks the chain that a peer showed, leaf first.
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
            return Err(Refusal::ChainTooLarge("a certificate of more than 26 KiB"));
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
        // When one certificate of the chain holds, and its proof.
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
                detail: "its intermediate is not one of ours: its serial number does not have 16 bytes of which the first is 0x40 to 0x7f".into(),
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

/// When both hold.
fn both(a: Period, b: Period) -> Period {
    Period { not_before: a.not_before.max(b.not_before), not_after: a.not_after.min(b.not_after) }
}

/// For a first join, where all that is known is a root's fingerprint: picks that root out of the
/// chain which the server showed and makes a bundle of it alone.
pub fn bundle_by_fingerprint(
    trust_domain: &TrustDomain,
    fingerprint: &[u8; 32],
    chain: &[CertificateDer<'_>],
) -> Option<TrustBundle> {
    let root = chain.iter().take(MAX_CHAIN).find(|c| x509::fingerprint(c) == *fingerprint)?;
    let root = root.clone().into_owned();
    TrustBundle::new(trust_domain.clone(), vec![root], Revocations::default()).ok()
}
