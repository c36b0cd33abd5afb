//! What a certificate has to prove beyond its chain: that it stands in a log which enough witnesses have seen.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::CertificateDer;
use wiretight_tlog::policy::MAX_CLOCK_SKEW;
use wiretight_tlog::{Hash, Policy, ProofError, Witnessed};

use crate::logged::{Logged, NotLogged};
use crate::x509::Period;

/// The oldest proof of a leaf, in seconds: an SVID holds for a day at most.
pub const MAX_LEAF_AGE: u64 = 86_400;
/// The oldest proof of an intermediate, in seconds.
pub const MAX_INTERMEDIATE_AGE: u64 = 400 * 86_400;
/// Checkpoints that are remembered, so that a handshake pays for the hashes of a proof rather than for signatures.
const REMEMBERED: usize = 1024;

/// What holds whenever it is asked for.
const ALWAYS: Period = Period { not_before: 0, not_after: u64::MAX };

/// Whether certificates of the mesh need a proof.
#[derive(Clone, Default)]
pub enum Transparency {
    /// They do not: whoever has the key of the CA can make one in secret.
    #[default]
    NotRequired,
    /// Without a proof by this policy there is no connection.
    Required(Arc<Pinned>),
}

impl Transparency {
    /// Requires proofs by this policy.
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

    /// Whether a certificate, by itself, would be believed to be logged.
    pub fn believes(&self, certificate: &CertificateDer<'_>, place: Place, now: u64) -> bool {
        self.check(certificate, place, now).is_ok()
    }

    /// Checks one certificate of a chain that was verified. Returns when that holds.
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

/// The same demands; what was remembered does not matter.
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

/// Where a certificate stands in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the peer's own.
    Leaf,
    /// It signed another one.
    Intermediate,
}

/// A policy that was pinned by the configuration, and the checkpoints that it has believed.
pub struct Pinned {
    policy: Policy,
    /// By the hash of the whole note, signatures included: what is believed does not depend on what was seen before.
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
        let known = self.believed().get(&note).cloned();
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
        let mut believed = self.believed();
        if believed.len() >= REMEMBERED {
            believed.clear();
        }
        believed.insert(note, witnessed);
        Ok(holds)
    }

    fn believed(&self) -> std::sync::MutexGuard<'_, HashMap<Hash, Witnessed>> {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
