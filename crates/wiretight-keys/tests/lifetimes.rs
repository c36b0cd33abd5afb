//! The maximum age of a log entry when its certificate is verified, and the longest validity of certificates. Each
//! rejection is tested together with an accepted counterpart.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use rustls_pki_types::{CertificateDer, UnixTime};
use wiretight_keys::logged::MAX_DELAY;
use wiretight_keys::transparency::Place;
use wiretight_keys::verify::{MAX_INTERMEDIATE_LIFE, MAX_LEAF_LIFE};
use wiretight_keys::*;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Checkpoint, Cosigner, Hash, LogSigner, Policy, Proof};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

/// An authority, a log and its witness, with all keys in the hands of an attacker.
struct World {
    log: LogSigner,
    witness: Cosigner,
    root: (CertificateDer<'static>, SigningKey),
}

/// A certificate's validity, and when the witness cosigned its log entry.
#[derive(Clone, Copy, Debug)]
struct Made {
    period: Period,
    seen: u64,
}

impl Made {
    /// Valid for `life` seconds from now, logged now.
    fn lasting(life: u64) -> Made {
        Made { period: Period { not_before: NOW - 60, not_after: NOW - 60 + life }, seen: NOW }
    }
}

impl World {
    fn new() -> World {
        let name = |text: &str| KeyName::new(text).unwrap();
        let key = SigningKey::generate().unwrap();
        let period = Period { not_before: NOW - 3650 * DAY, not_after: NOW + 3650 * DAY };
        let profile = Profile::Root("example.org".parse().unwrap());
        let tbs = Tbs::new(&profile, &key.public_key(), period, [1; 16], None, key.algorithm());
        World {
            log: LogSigner::generate(name("example.org/log")).unwrap(),
            witness: Cosigner::from_seed(name("w.example"), Algorithm::Ed25519, &[1; 32]).unwrap(),
            root: (tbs.unwrap().sign(&key).unwrap(), key),
        }
    }

    /// The proof for a log with a single entry.
    fn proof(&self, tbs: &Tbs, seen: u64) -> Proof {
        let root = Hash::leaf(&tbs.entry().unwrap());
        let origin = self.log.public().name().to_string();
        let checkpoint = Checkpoint { origin, size: 1, root, extensions: Vec::new() };
        let mut signed = checkpoint.sign(&self.log).unwrap();
        signed.add(self.witness.cosign(&checkpoint, seen).unwrap());
        Proof { extra: None, index: 0, hashes: Vec::new(), checkpoint: signed }
    }

    fn chain(&self, intermediate: Made, leaf: Made) -> Vec<CertificateDer<'static>> {
        self.chain_with(intermediate, leaf, |proof| proof)
    }

    fn chain_with(
        &self,
        intermediate: Made,
        leaf: Made,
        change: impl Fn(Proof) -> Proof,
    ) -> Vec<CertificateDer<'static>> {
        let (root, root_key) = &self.root;
        let td: TrustDomain = "example.org".parse().unwrap();
        let (above, below) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let make = |profile, key: &SigningKey, made: Made, serial, issuer, signer: &SigningKey| {
            let spki = key.public_key();
            let algorithm = signer.algorithm();
            let tbs = Tbs::new(&profile, &spki, made.period, serial, Some(issuer), algorithm);
            let proof = change(self.proof(tbs.as_ref().unwrap(), made.seen));
            tbs.unwrap().proved(&proof).unwrap().sign(signer).unwrap()
        };
        let serial = |n: u8| Series::new([n; 8]).serial(0);
        let profile = Profile::Intermediate(td.clone());
        let ca = make(profile, &above, intermediate, serial(2), root, root_key);
        let profile = Profile::Leaf(SpiffeId::new(td, "service/db".parse().unwrap()));
        let leaf = make(profile, &below, leaf, serial(3), &ca, &above);
        vec![leaf, ca]
    }

    fn bundle(&self) -> TrustBundle {
        let td = "example.org".parse().unwrap();
        TrustBundle::new(td, vec![self.root.0.clone()], Revocations::default()).unwrap()
    }

    fn required(&self) -> Transparency {
        let (log, witness) = (self.log.public(), self.witness.public());
        let policy = Policy::parse(format!("log {log}\nwitness w {witness}\nquorum w\n")).unwrap();
        Transparency::required(policy)
    }

    fn demanding(&self) -> TrustBundle {
        self.bundle().with(self.required())
    }
}

fn verify(bundle: &TrustBundle, chain: &[CertificateDer<'_>], now: u64) -> Result<(), String> {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    let verified = bundle.verify(chain, Role::Client, now);
    verified.map(|_| ()).map_err(|refusal| format!("{refusal:?}: {refusal}"))
}

#[test]
fn certificates_that_are_valid_for_too_long_are_rejected() {
    let w = World::new();
    let (year, hour) = (Made::lasting(MAX_INTERMEDIATE_LIFE), Made::lasting(3600));
    let day = Made::lasting(MAX_LEAF_LIFE);
    // With log proofs and without.
    for bundle in [w.bundle(), w.demanding()] {
        verify(&bundle, &w.chain(year, day), NOW).unwrap();
        let long = w.chain(year, Made::lasting(MAX_LEAF_LIFE + 1));
        let refused = verify(&bundle, &long, NOW).unwrap_err();
        assert!(
            refused.starts_with("LivesTooLong") && refused.contains(": the certificate"),
            "{refused}"
        );
        let ten_years = w.chain(year, Made::lasting(3650 * DAY));
        assert!(verify(&bundle, &ten_years, NOW).unwrap_err().starts_with("LivesTooLong"));
        let long = w.chain(Made::lasting(MAX_INTERMEDIATE_LIFE + 1), hour);
        let refused = verify(&bundle, &long, NOW).unwrap_err();
        assert!(
            refused.starts_with("LivesTooLong") && refused.contains(": the intermediate"),
            "{refused}"
        );
    }
}

/// Entries stay in the log, so anyone with the CA key can get a new checkpoint cosigned: a new proof for an old
/// entry.
#[test]
fn a_new_proof_of_an_old_entry_is_rejected() {
    let w = World::new();
    let good = Made::lasting(3600);
    let old = |age| Made {
        period: Period { not_before: NOW - age, not_after: NOW - age + MAX_LEAF_LIFE },
        seen: NOW,
    };
    let year = |age| Made {
        period: Period { not_before: NOW - age, not_after: NOW - age + MAX_INTERMEDIATE_LIFE },
        seen: NOW,
    };
    let bundle = w.demanding();
    verify(&bundle, &w.chain(good, old(MAX_DELAY)), NOW).unwrap();
    verify(&bundle, &w.chain(year(MAX_DELAY), good), NOW).unwrap();
    for age in [MAX_DELAY + 1, 3600, DAY] {
        let refused = verify(&bundle, &w.chain(good, old(age)), NOW).unwrap_err();
        assert!(refused.contains("the certificate of") && refused.contains("not issued when"));
        let refused = verify(&bundle, &w.chain(year(age), good), NOW).unwrap_err();
        assert!(refused.contains("the intermediate of") && refused.contains("not issued when"));
    }
    // With its original proof it is valid until it expires: an intermediate for a year.
    let then = Made { seen: NOW - DAY, ..old(DAY) };
    verify(&bundle, &w.chain(good, then), NOW).unwrap();
    let then = Made { seen: NOW - 300 * DAY, ..year(300 * DAY) };
    verify(&bundle, &w.chain(then, good), NOW).unwrap();
    // notBefore may not be long after the proof either.
    let ahead = |by| Made {
        period: Period { not_before: NOW - 60, not_after: NOW + 3600 },
        seen: NOW - 60 - by,
    };
    verify(&bundle, &w.chain(good, ahead(300)), NOW).unwrap();
    let refused = verify(&bundle, &w.chain(good, ahead(301)), NOW).unwrap_err();
    assert!(refused.contains("301 s ago"), "{refused}");
}

#[test]
fn a_proof_with_extra_data_is_rejected() {
    let (w, good) = (World::new(), Made::lasting(3600));
    let with = |extra: Option<&[u8]>| {
        let extra = extra.map(<[u8]>::to_vec);
        w.chain_with(good, good, |proof| Proof { extra: extra.clone(), ..proof })
    };
    verify(&w.demanding(), &with(None), NOW).unwrap();
    for extra in [&b""[..], b"anything"] {
        let refused = verify(&w.demanding(), &with(Some(extra)), NOW).unwrap_err();
        assert!(refused.starts_with("NotLogged") && refused.contains("extra data"), "{refused}");
    }
}

/// A verified chain is valid as long as its certificates and its proofs are.
#[test]
fn a_verified_peer_expires_with_its_proofs() {
    let w = World::new();
    // The earliest proof and the longest validity allowed: the proof expires before the certificate.
    let seen = NOW - 350;
    let leaf = Made { seen, ..Made::lasting(MAX_LEAF_LIFE) };
    let chain = w.chain(Made::lasting(30 * DAY), leaf);
    let time = |secs| UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs));
    let peer = w.demanding().verify(&chain, Role::Client, time(NOW)).unwrap();
    let last = seen + DAY + 300;
    assert!(last < leaf.period.not_after);
    for at in [NOW - 61, NOW - 60, NOW, last, last + 1, leaf.period.not_after] {
        assert_eq!(peer.holds_at(at), verify(&w.demanding(), &chain, at).is_ok(), "{at}");
    }
    assert_eq!(peer.not_after(), last);
    // If proofs are not required, only the certificates count.
    let peer = w.bundle().verify(&chain, Role::Client, time(NOW)).unwrap();
    assert_eq!(peer.not_after(), leaf.period.not_after);
}

#[test]
fn each_certificate_is_believed_by_its_own_proof() {
    let (w, other) = (World::new(), World::new());
    let required = w.required();
    let day = Made { seen: NOW - 2 * DAY, ..Made::lasting(3600) };
    let old = Made { period: Period { not_before: NOW - 2 * DAY, ..day.period }, ..day };
    for (world, made, place, believed) in [
        (&w, Made::lasting(3600), Place::Leaf, true),
        (&w, Made::lasting(3600), Place::Intermediate, true),
        (&w, old, Place::Leaf, false),
        (&w, old, Place::Intermediate, true),
        (&other, Made::lasting(3600), Place::Leaf, false),
    ] {
        let chain = world.chain(made, made);
        let certificate = &chain[usize::from(place == Place::Intermediate)];
        assert_eq!(required.believes(certificate, place, NOW), believed, "{place:?} {made:?}");
        assert!(Transparency::NotRequired.believes(certificate, place, NOW));
    }
    assert!(required == w.required() && required.policy().is_some());
    assert!(required != other.required() && required != Transparency::NotRequired);
}

/// The refusal blames the leaf only if the leaf itself is not valid now.
#[test]
fn an_intermediate_that_is_not_valid_now_is_a_bad_chain() {
    let w = World::new();
    let from = |not_before, not_after| Made { period: Period { not_before, not_after }, seen: NOW };
    let (expired, future) = (from(NOW - 3600, NOW - 1), from(NOW + 1, NOW + 3600));
    let valid = [from(NOW - 60, NOW + 60), from(NOW - 60, NOW), from(NOW, NOW + 60)];
    for leaf in valid {
        verify(&w.bundle(), &w.chain(from(NOW, NOW), leaf), NOW).unwrap();
        for intermediate in [expired, future] {
            let refused = verify(&w.bundle(), &w.chain(intermediate, leaf), NOW).unwrap_err();
            assert!(refused.starts_with("BadChain"), "{refused}");
        }
    }
    for (leaf, reason) in [(expired, "Expired"), (future, "NotYetValid")] {
        let refused = verify(&w.bundle(), &w.chain(valid[0], leaf), NOW).unwrap_err();
        assert!(refused.starts_with(reason), "{refused}");
    }
}
