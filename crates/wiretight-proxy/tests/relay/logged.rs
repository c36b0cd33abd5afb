//! Log proofs: a certificate that does not prove that it is logged and cosigned by the quorum opens no connection in
//! either direction, even if it is signed by the CA's real key. Each rejection has an accepted counterpart.

use super::rig;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rig::tls::{Cert, Stranger};
use rig::*;
use rustls::AlertDescription;
use wiretight_keys::{Logged, Revocations, Tbs, Transparency, TrustBundle};
use wiretight_proxy::Identity;
use wiretight_proxy::clock::now;
use wiretight_proxy::relay::Side;
use wiretight_proxy::relay::settings::RelaySettings;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{Checkpoint, Cosigner, Frontier, Hash, LogSigner, Policy, Proof, TreeError};

/// A log and its witnesses, operated by the test.
struct Ledger {
    signer: LogSigner,
    witnesses: Vec<Cosigner>,
    leaves: Mutex<Vec<Hash>>,
}

/// How a proof is made.
#[derive(Clone, Copy)]
struct Made<'a> {
    /// The witnesses that cosign, and how many seconds ago.
    cosigned: &'a [(usize, u64)],
}

const TWO: Made<'static> = Made { cosigned: &[(0, 0), (1, 0)] };

impl Ledger {
    fn new() -> Ledger {
        let key = |text: &str| KeyName::new(text).unwrap();
        let witness = |n: u8| {
            let algorithm = if n == 2 { Algorithm::MlDsa44 } else { Algorithm::Ed25519 };
            Cosigner::from_seed(key(&format!("witness.example/{n}")), algorithm, &[n; 32]).unwrap()
        };
        let leaves = (0..70u8).map(|n| Hash::leaf(&[n])).collect();
        Ledger {
            signer: LogSigner::generate(key("test.example/log")).unwrap(),
            // The last one is in no policy.
            witnesses: (0..4).map(witness).collect(),
            leaves: Mutex::new(leaves),
        }
    }

    fn policy(&self) -> Policy {
        let mut text = format!("log {}\n", self.signer.public());
        for n in 0..3 {
            text.push_str(&format!("witness w{n} {}\n", self.witnesses[n].public()));
        }
        Policy::parse(format!("{text}group q 2 w0 w1 w2\nquorum q\n")).unwrap()
    }

    /// Logs a certificate, and others after it.
    fn append(&self, tbs: &Tbs) -> u64 {
        let mut leaves = self.leaves.lock().unwrap();
        let index = leaves.len();
        leaves.push(Hash::leaf(&tbs.entry().unwrap()));
        leaves.extend([Hash::leaf(b"another"), Hash::leaf(b"and another")]);
        index as u64
    }

    fn proof(&self, index: u64, made: Made<'_>) -> Proof {
        let leaves = self.leaves.lock().unwrap().clone();
        let (mut frontier, mut nodes) = (Frontier::default(), BTreeMap::new());
        for leaf in &leaves {
            frontier.append(*leaf, |n, hash| {
                nodes.insert((n.level, n.index), hash);
            });
        }
        let read = |n: Node| nodes.get(&(n.level, n.index)).copied().ok_or(TreeError::OutOfRange);
        let hashes = tree::inclusion_proof(index, frontier.size(), read).unwrap();
        let origin = self.signer.public().name().to_string();
        let (size, root, extensions) = (frontier.size(), frontier.root(), Vec::new());
        let mut checkpoint =
            Checkpoint { origin, size, root, extensions }.sign(&self.signer).unwrap();
        for (witness, ago) in made.cosigned {
            let time = now() - ago;
            let line = self.witnesses[*witness].cosign(checkpoint.unverified(), time).unwrap();
            checkpoint.add(line);
        }
        Proof { extra: None, index, hashes, checkpoint }
    }

    fn prove(&self, tbs: Tbs, made: Made<'_>) -> Tbs {
        let proof = self.proof(self.append(&tbs), made);
        tbs.proved(&proof).unwrap()
    }
}

struct World {
    ledger: Ledger,
    pair: Pair,
    told: mpsc::Receiver<()>,
}

/// Two relays that require proofs, with identities that have them.
fn world() -> World {
    let ledger = Ledger::new();
    let ca = Ca::with(TRUST_DOMAIN, |tbs| ledger.prove(tbs, TWO));
    let (tell, told) = mpsc::channel();
    let addr = backend(move |socket| {
        let _ = tell.send(());
        echo(socket);
    });
    let pair = Pair::of(ca, &[addr], |_, _| {});
    for (mesh, id) in [(&pair.mesh_a, "service/web"), (&pair.mesh_b, "service/db")] {
        let (chain, key) = pair.ca.issue_with(id, 3600, |tbs| ledger.prove(tbs, TWO));
        let identity = Arc::new(Identity::new(chain, &key).unwrap());
        mesh.set_identities(BTreeMap::from([(id.parse().unwrap(), identity)]));
        mesh.set_transparency(Transparency::required(ledger.policy()));
    }
    World { ledger, pair, told }
}

impl World {
    fn good(&self, id: &str) -> Cert {
        self.pair.ca.issue_with(id, 3600, |tbs| self.ledger.prove(tbs, TWO))
    }

    /// Rejected as a client and as a server, with no data in any direction; afterwards good certificates are
    /// accepted.
    fn assert_refused(&self, what: &str, issue: impl Fn(&str) -> Cert, reason: Reason, why: &str) {
        let pair = &self.pair;
        let unknown = Some(AlertDescription::CertificateUnknown);
        let to = pair.service.listen;
        assert_eq!(Stranger::new(issue("service/web")).alert(to), unknown, "{what}");
        expect_refused(&pair.b, Side::Service, reason);
        assert!(self.told.try_recv().is_err(), "{what}: it reached a backend");

        let (tell, told) = mpsc::channel();
        let addr = tls::server(issue("service/db"), true, move |mut tls| {
            let _ = tell.send(tls.read(&mut [0]).map(|_| ()));
        });
        let dials = vec![pair.dial.clone(), dial(free(), &[addr])];
        let entry = dials[1].listen;
        pair.a.apply(&RelaySettings { services: vec![], dials, intercept: None }).unwrap();
        assert!(is_reset(&mut connect(entry)), "{what}");
        expect_refused(&pair.a, Side::Dial, reason);
        let error = told.recv_timeout(Duration::from_secs(10)).unwrap().unwrap_err();
        assert_eq!(tls::alert(&error), unknown, "{what}: {error}");

        // Check that it was rejected for the intended reason.
        let chain = issue("service/web").0;
        let time = rustls_pki_types::UnixTime::now();
        let refused = pair.mesh_b.verify(&chain, wiretight_keys::Role::Client, time).unwrap_err();
        assert!(refused.to_string().contains(why), "{what}: {refused}");

        self.assert_accepted();
    }

    fn assert_accepted(&self) {
        ping(&mut self.pair.connect(), b"the right ones").unwrap();
        self.told.recv_timeout(Duration::from_secs(10)).unwrap();
        let mut tls =
            Stranger::new(self.good("service/web")).connect(self.pair.service.listen).unwrap();
        let open = wiretight_proxy::wire::Open { service: name("db"), destination: None };
        tls.write_all(&open.encode()).unwrap();
        tls.read_exact(&mut [0; 4]).unwrap();
        self.told.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}

#[test]
fn an_unlogged_certificate_signed_by_the_ca_is_rejected() {
    let w = world();
    let issue = |id: &str| w.pair.ca.issue(id, 3600);
    w.assert_refused("unlogged", issue, Reason::NotLogged, "carries no proof");
    // Without the requirement it would be accepted.
    w.pair.mesh_b.set_transparency(Transparency::NotRequired);
    let mut tls = Stranger::new(issue("service/web")).connect(w.pair.service.listen).unwrap();
    let open = wiretight_proxy::wire::Open { service: name("db"), destination: None };
    tls.write_all(&open.encode()).unwrap();
    w.told.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_proof_of_another_entry_is_rejected() {
    let w = world();
    let ca = &w.pair.ca;
    // The proof of another certificate, with another name or another key.
    let issue = |id: &str| {
        let mut other = None;
        ca.issue_with("service/other", 3600, |tbs| {
            other = Some(w.ledger.proof(w.ledger.append(&tbs), TWO));
            tbs
        });
        ca.issue_with(id, 3600, |tbs| tbs.proved(&other.unwrap()).unwrap())
    };
    w.assert_refused("another entry", issue, Reason::NotLogged, "is not at index");
    // Its own entry, but the index of another.
    let issue = |id: &str| {
        ca.issue_with(id, 3600, |tbs| {
            let mut proof = w.ledger.proof(w.ledger.append(&tbs), TWO);
            proof.index -= 1;
            tbs.proved(&proof).unwrap()
        })
    };
    w.assert_refused("another index", issue, Reason::NotLogged, "is not at index");
    // Logged, and then signed again with a longer validity.
    let issue = |id: &str| {
        let mut proof = None;
        ca.issue_with(id, 60, |tbs| {
            proof = Some(w.ledger.proof(w.ledger.append(&tbs), TWO));
            tbs
        });
        ca.issue_with(id, 36_000, |tbs| tbs.proved(&proof.unwrap()).unwrap())
    };
    w.assert_refused("for longer", issue, Reason::NotLogged, "is not at index");
}

#[test]
fn a_proof_of_another_log_is_rejected() {
    let w = world();
    let other = Ledger::new();
    let issue = |id: &str| w.pair.ca.issue_with(id, 3600, |tbs| other.prove(tbs, TWO));
    w.assert_refused("another log", issue, Reason::NotLogged, "no log in the policy signed");
}

#[test]
fn too_few_or_unknown_witnesses_are_rejected() {
    let w = world();
    let (ca, ledger) = (&w.pair.ca, &w.ledger);
    let by = |cosigned: &'static [(usize, u64)]| {
        move |id: &str| ca.issue_with(id, 3600, |tbs| ledger.prove(tbs, Made { cosigned }))
    };
    for (what, cosigned) in [
        ("nobody", &[][..]),
        ("one", &[(0, 0)]),
        ("one, twice", &[(0, 0), (0, 1)]),
        ("one, and one that is not in the policy", &[(1, 0), (3, 0)]),
    ] {
        w.assert_refused(what, by(cosigned), Reason::NotLogged, "is not a quorum");
    }
    for cosigned in [&[(0, 0), (2, 0)][..], &[(1, 0), (2, 0)], &[(0, 0), (1, 0), (2, 0), (3, 0)]] {
        let to = w.pair.service.listen;
        Stranger::new(by(cosigned)("service/web")).connect(to).expect("a quorum is accepted");
    }
}

#[test]
fn a_stale_checkpoint_is_rejected() {
    let w = world();
    let (ca, ledger) = (&w.pair.ca, &w.ledger);
    let ago = |cosigned: &'static [(usize, u64)]| {
        move |id: &str| ca.issue_with(id, 3600, |tbs| ledger.prove(tbs, Made { cosigned }))
    };
    // Logged two days ago, or long before notBefore.
    let days = ago(&[(0, 2 * 86_400), (1, 0)]);
    w.assert_refused("two days old", days, Reason::NotLogged, "s are allowed");
    let before = ago(&[(0, 1000), (1, 1000)]);
    w.assert_refused("made ahead of time", before, Reason::NotLogged, "s are allowed");
    // The cosignature of a third witness makes it fresh again.
    let fresh = ago(&[(0, 2 * 86_400), (1, 0), (2, 0)]);
    Stranger::new(fresh("service/web")).connect(w.pair.service.listen).unwrap();
}

#[test]
fn an_altered_proof_is_rejected() {
    let w = world();
    let ca = &w.pair.ca;
    let altered = |id: &str| {
        ca.issue_with(id, 3600, |tbs| {
            let mut proof = w.ledger.proof(w.ledger.append(&tbs), TWO);
            proof.hashes[0] = Hash::leaf(b"altered");
            tbs.proved(&proof).unwrap()
        })
    };
    w.assert_refused("a hash", altered, Reason::NotLogged, "is not at index");
    // Altered after it was signed: the signature no longer matches, even if nobody checks the proof.
    let (mut chain, key) = w.good("service/web");
    let mut der = chain[0].to_vec();
    let at = der.windows(6).position(|bytes| bytes == b"index ").unwrap() + 6;
    der[at] ^= 1;
    chain[0] = der.into();
    let alert = Stranger::new((chain, key)).alert(w.pair.service.listen);
    assert!(alert.is_some());
    expect_refused(&w.pair.b, Side::Service, Reason::Untrusted);
    w.assert_accepted();
}

#[test]
fn an_unlogged_intermediate_is_rejected_with_all_below_it() {
    let w = world();
    // The root has signed it unlogged, and then another one, which is logged.
    let ledger = &w.ledger;
    let secret = Ca::new(TRUST_DOMAIN);
    let logged = Ca::with(TRUST_DOMAIN, |tbs| ledger.prove(tbs, TWO));
    for mesh in [&w.pair.mesh_a, &w.pair.mesh_b] {
        let roots = vec![w.pair.ca.root.clone(), secret.root.clone(), logged.root.clone()];
        mesh.set_bundle(TrustBundle::new(w.pair.ca.td.clone(), roots, Default::default()).unwrap());
    }
    let issue = |id: &str| secret.issue_with(id, 3600, |tbs| ledger.prove(tbs, TWO));
    w.assert_refused("intermediate", issue, Reason::NotLogged, "the intermediate of");
    let cert = logged.issue_with("service/web", 3600, |tbs| ledger.prove(tbs, TWO));
    Stranger::new(cert).connect(w.pair.service.listen).unwrap();
}

#[test]
fn a_certificate_revoked_by_index_is_disconnected() {
    let w = world();
    let cert = w.good("service/web");
    let index = Logged::from_certificate(&cert.0[0]).unwrap().proof.index;
    let stays = w.good("service/web");
    let to = w.pair.service.listen;
    let again = wiretight_keys::SigningKey::from_pem(cert.1.to_pem().as_bytes()).unwrap();
    let (gone, again) = (Stranger::new((cert.0.clone(), again)), Stranger::new(cert));
    let mut stays = Stranger::new(stays).connect(to).unwrap();
    let open = wiretight_proxy::wire::Open { service: name("db"), destination: None }.encode();
    let mut live = gone.connect(to).unwrap();
    for tls in [&mut live, &mut stays] {
        tls.write_all(&open).unwrap();
        tls.read_exact(&mut [0; 4]).unwrap();
    }
    let roots = vec![w.pair.ca.root.clone()];
    let revoked = Revocations { indexes: vec![(index, index)], ..Default::default() };
    let began = Instant::now();
    w.pair.mesh_b.set_bundle(TrustBundle::new(w.pair.ca.td.clone(), roots, revoked).unwrap());
    w.pair.b.cut_revoked();
    let ended = live.read(&mut [0; 16]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(again.alert(to), Some(AlertDescription::CertificateUnknown));
    expect_refused(&w.pair.b, Side::Service, Reason::Revoked);
    // The next certificate in the log is not affected.
    let mut out = wiretight_proxy::wire::Frame::Data(2).header().to_vec();
    out.extend_from_slice(b"on");
    stays.write_all(&out).unwrap();
    let mut echoed = [0; 6];
    stays.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed[4..], b"on");
}

#[test]
fn a_node_out_of_contact_for_too_long_opens_and_accepts_no_connections() {
    let w = world();
    let mut live = w.pair.connect();
    ping(&mut live, b"before").unwrap();
    assert!(w.pair.mesh_b.set_without_news(true));
    w.pair.b.cut_revoked();
    assert!(ping(&mut live, b"after").is_err());
    assert!(is_reset(&mut w.pair.connect()));
    expect_refused(&w.pair.b, Side::Service, Reason::NoNews);
    w.pair.mesh_b.set_without_news(false);
    ping(&mut w.pair.connect(), b"again").unwrap();
}

#[test]
fn the_age_of_a_proof_is_checked_again_for_cached_chains() {
    let w = world();
    // The earliest time allowed, so that the proof expires before the certificate.
    let made = Made { cosigned: &[(0, 350), (1, 350)] };
    let issue = |tbs| w.ledger.prove(tbs, made);
    let chain = w.pair.ca.issue_with("service/web", 89_900, issue).0;
    let mesh = &w.pair.mesh_b;
    let at = |secs| rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(secs));
    let client = wiretight_keys::Role::Client;
    let begun = now();
    mesh.verify(&chain, client, at(begun)).unwrap();
    let fresh = begun - 350 + 86_400 + 300;
    for late in [fresh + 5, fresh + 20] {
        let by_bundle = mesh.bundle().verify(&chain, client, at(late)).unwrap_err();
        assert_eq!(Reason::from(&by_bundle), Reason::NotLogged, "{by_bundle}");
        assert_eq!(mesh.verify(&chain, client, at(late)), Err(by_bundle));
    }
    // It is also rejected by a clock before that time.
    for early in [begun - 3600, begun - 700] {
        let by_bundle = mesh.bundle().verify(&chain, client, at(early)).unwrap_err();
        assert_eq!(mesh.verify(&chain, client, at(early)), Err(by_bundle));
    }
    mesh.verify(&chain, client, at(begun)).unwrap();
}

/// Five ML-DSA-44 cosignatures in each certificate of the chain, in real handshakes.
#[test]
fn certificates_with_five_post_quantum_cosignatures_open_connections() {
    let name = |text: String| KeyName::new(&text).unwrap();
    let witness = |n: u8| {
        let name = name(format!("witness.example/{n}"));
        Cosigner::from_seed(name, Algorithm::MlDsa44, &[n; 32]).unwrap()
    };
    let ledger = Ledger { witnesses: (0..5).map(witness).collect(), ..Ledger::new() };
    let mut text = format!("log {}\n", ledger.signer.public());
    let mut names = String::new();
    for (n, witness) in ledger.witnesses.iter().enumerate() {
        text.push_str(&format!("witness w{n} {}\n", witness.public()));
        names.push_str(&format!(" w{n}"));
    }
    let policy = Policy::parse(format!("{text}group q all{names}\nquorum q\n")).unwrap();
    assert!(policy.largest_proof() <= wiretight_keys::logged::MAX_PROOF);
    let all = Made { cosigned: &[(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)] };
    let ca = Ca::with(TRUST_DOMAIN, |tbs| ledger.prove(tbs, all));
    let addr = backend(echo);
    let pair = Pair::of(ca, &[addr], |_, _| {});
    for (mesh, id) in [(&pair.mesh_a, "service/web"), (&pair.mesh_b, "service/db")] {
        let (chain, key) = pair.ca.issue_with(id, 3600, |tbs| ledger.prove(tbs, all));
        assert!(chain[0].len() > 16 * 1024);
        let identity = Arc::new(Identity::new(chain, &key).unwrap());
        mesh.set_identities(BTreeMap::from([(id.parse().unwrap(), identity)]));
        mesh.set_transparency(Transparency::required(policy.clone()));
    }
    ping(&mut pair.connect(), b"five of five").unwrap();
}
