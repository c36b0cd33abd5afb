//! Whether a certificate must prove that it is in a log that enough witnesses have cosigned.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use wiretight_tlog::policy::MAX_CLOCK_SKEW;
use wiretight_tlog::{Hash, Policy, ProofError, Witnessed};

use crate::logged::{Logged, NotLogged};
use crate::x509::Period;

/// The maximum age of a leaf's proof, in seconds: an SVID is valid for a day at most.
pub const MAX_LEAF_AGE: u64 = 86_400;
/// The maximum age of an intermediate's proof, in seconds.
pub const MAX_INTERMEDIATE_AGE: u64 = 400 * 86_400;
/// The number of verified checkpoints to cache, so that most handshakes compute hashes only and verify no signatures.
const REMEMBERED: usize = 1024;

/// Valid at all times.
const ALWAYS: Period = Period { not_before: 0, not_after: u64::MAX };

/// Whether certificates of the mesh need a log proof.
#[derive(Clone, Default)]
pub enum Transparency {
    /// Not needed. Anyone with the CA key can issue certificates unseen.
    #[default]
    NotRequired,
    /// Connections require a proof according to this policy.
    Required(Arc<Pinned>),
}

impl Transparency {
    pub fn required(policy: Policy) -> Transparency {
        Transparency::Required(Arc::new(Pinned { policy, believed: Mutex::default() }))
    }

    /// The policy, if proofs are required.
    pub fn policy(&self) -> Option<&Policy> {
        match self {
            Transparency::NotRequired => None,
            Transparency::Required(pinned) => Some(&pinned.policy),
        }
    }

    /// Whether the certificate, considered alone, has a valid proof or needs none.
    pub fn believes(&self, certificate: &CertificateDer<'_>, place: Place, now: u64) -> bool {
        self.check(certificate, place, now).is_ok()
    }

    /// Checks one certificate of a verified chain. Returns the period in which its proof is valid.
    pub(crate) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        place: Place,
        now: u64,
    ) -> Result<Period, NotLogged> {
        match self {
            Transparency::NotRequired => Ok(ALWAYS),
            Transparency::Required(pinned) => pinned.check(certificate, place, now),
        }
    }
}

/// Equal if the requirements are equal; the cache does not matter.
impl PartialEq for Transparency {
    fn eq(&self, other: &Transparency) -> bool {
        self.policy() == other.policy()
    }
}

impl fmt::Debug for Transparency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transparency::NotRequired => f.write_str("NotRequired"),
            Transparency::Required(pinned) => {
                write!(f, "Required({})", pinned.policy.quorum_text())
            }
        }
    }
}

/// The place of a certificate in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The peer's own.
    Leaf,
    /// Signed another certificate of the chain.
    Intermediate,
}

/// A policy set in the configuration, and the checkpoints that it has accepted.
pub struct Pinned {
    policy: Policy,
    /// Keyed by the hash of the whole note, signatures included, so that the result is independent of earlier
    /// checkpoints.
    believed: Mutex<HashMap<Hash, Witnessed>>,
}

impl Pinned {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        place: Place,
        now: u64,
    ) -> Result<Period, NotLogged> {
        let logged = Logged::from_certificate(certificate)?;
        let note = Hash::of(logged.proof.checkpoint.to_string().as_bytes());
        let known = self.believed.lock().get(&note).cloned();
        let witnessed = match known {
            Some(witnessed) => witnessed,
            None => {
                let checkpoint = &logged.proof.checkpoint;
                self.policy.witnessed(checkpoint).map_err(ProofError::Refused)?
            }
        };
        logged.proof.verify_in(&witnessed, logged.leaf)?;
        let allowed = match place {
            Place::Leaf => MAX_LEAF_AGE,
            Place::Intermediate => MAX_INTERMEDIATE_AGE,
        };
        let allowed = allowed + MAX_CLOCK_SKEW;
        witnessed.fresh(now, allowed).map_err(ProofError::Refused)?;
        logged.is_timely(&witnessed)?;
        let holds = witnessed.time().map_or(ALWAYS, |time| Period {
            not_before: time.saturating_sub(MAX_CLOCK_SKEW),
            not_after: time.saturating_add(allowed),
        });
        let mut believed = self.believed.lock();
        if believed.len() >= REMEMBERED {
            believed.clear();
        }
        believed.insert(note, witnessed);
        Ok(holds)
    }
}
