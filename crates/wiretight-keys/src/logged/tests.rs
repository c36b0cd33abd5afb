//! Only serial numbers of the mesh's form are accepted. This test is here because no public function makes others.

use rustls_pki_types::UnixTime;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Checkpoint, LogSigner, Policy};

use super::*;
use crate::key::{Signer, SigningKey};
use crate::spiffe::TrustDomain;
use crate::x509::{self, Leaf, Profile};
use crate::{Refusal, Role, Transparency, TrustBundle};

const NOW: u64 = 1_800_000_000;

struct World {
    log: LogSigner,
    td: TrustDomain,
    root: (CertificateDer<'static>, SigningKey),
}

impl World {
    fn new() -> World {
        let td: TrustDomain = "example.org".parse().unwrap();
        let key = SigningKey::generate().unwrap();
        let profile = Profile::Root(td.clone());
        let (spki, period) = (key.public_key(), World::period());
        let tbs = Tbs::new(&profile, &spki, period, [1; 16], None, key.algorithm()).unwrap();
        let log = LogSigner::generate(KeyName::new("example.org/log").unwrap()).unwrap();
        World { log, td, root: (tbs.sign(&key).unwrap(), key) }
    }

    fn period() -> Period {
        Period { not_before: NOW - 60, not_after: NOW + 3600 }
    }

    /// A certificate with these bytes as its serial number, with a log proof. If there are 16 bytes, the last 8 must
    /// be the index 0.
    fn certificate(
        &self,
        profile: &Profile,
        key: &SigningKey,
        serial: &[u8],
        issuer: (&CertificateDer<'static>, &SigningKey),
    ) -> (CertificateDer<'static>, Vec<u8>) {
        let (spki, algorithm) = (key.public_key(), issuer.1.algorithm());
        let (period, above) = (World::period(), Some(issuer.0));
        let tbs = Tbs::new(profile, &spki, period, [2; 16], above, algorithm).unwrap();
        let mut made = TbsCertificate::from_der(tbs.der()).unwrap();
        made.serial_number = SerialNumber::new(serial).unwrap();
        let entry = made.entry().unwrap();
        let origin = self.log.public().name().to_string();
        let (root, extensions) = (Hash::leaf(&entry), Vec::new());
        let checkpoint = Checkpoint { origin, size: 1, root, extensions }.sign(&self.log).unwrap();
        let proof = Proof { extra: None, index: 0, hashes: Vec::new(), checkpoint }.to_string();
        let value = Utf8StringRef::new(&proof).unwrap().to_der().unwrap();
        let extn_value = OctetString::new(value).unwrap();
        made.extensions.push(Extension { extn_id: ID_LOG_PROOF, critical: false, extn_value });
        let proved = tbs.with_der(made.to_der().unwrap()).unwrap();
        (proved.sign(issuer.1).unwrap(), entry)
    }

    fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<(), Refusal> {
        let bundle =
            TrustBundle::new(self.td.clone(), vec![self.root.0.clone()], Default::default());
        let policy = Policy::self_attested(self.log.public().clone());
        let bundle = bundle.unwrap().with(Transparency::required(policy));
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
        bundle.verify(chain, Role::Client, now).map(|_| ())
    }
}

#[test]
fn serial_numbers_that_revocations_cannot_name_are_rejected() {
    let w = World::new();
    let (root, root_key) = &w.root;
    let (above, below) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let leaf = Profile::Leaf("spiffe://example.org/service/db".parse().unwrap());
    let intermediate = Profile::Intermediate(w.td.clone());
    let ca = |serial: &[u8]| w.certificate(&intermediate, &above, serial, (root, root_key)).0;
    let of = |first: u8, len: usize| {
        let mut serial = vec![0; len];
        serial[1..len.min(8)].fill(0x99);
        serial[0] = first;
        serial
    };
    let good_ca = ca(&of(0x40, 16));
    let issue = |serial: &[u8]| w.certificate(&leaf, &below, serial, (&good_ca, &above));
    for first in [0x40, 0x55, 0x7f] {
        let serial = of(first, 16);
        let (certificate, entry) = issue(&serial);
        let read = Serial::from_bytes(&serial).unwrap();
        assert_eq!(Leaf::parse(&certificate).unwrap().serial, read);
        assert_eq!(x509::serial(&certificate), Some(read));
        assert_eq!(Serial::from_hex(&read.to_string()), Ok(read));
        assert_eq!(Series::try_from(read.series().to_string()), Ok(read.series()));
        let Ok(Entry::Certificate(logged)) = Entry::parse(&entry) else { panic!("{first:#x}") };
        assert_eq!(logged.series, Some(read.series()), "the monitor sees the same");
        assert_eq!(w.verify(&[certificate.clone(), good_ca.clone()]), Ok(()));
        let under = w.certificate(&leaf, &below, &of(0x40, 16), (&ca(&serial), &above)).0;
        assert_eq!(w.verify(&[under, ca(&serial)]).err(), None, "an intermediate, too");
    }
    // 16 bytes that start with 00 or another invalid byte, and shorter and longer numbers.
    for (first, len) in [
        (0x00, 16),
        (0x01, 16),
        (0x3f, 16),
        (0x40, 15),
        (0x40, 17),
        (0x7f, 20),
        (0x40, 8),
        (0x7f, 1),
    ] {
        let serial = of(first, len);
        assert!(Serial::from_bytes(&serial).is_err(), "{first:#x} {len}");
        let (certificate, entry) = issue(&serial);
        assert!(Leaf::parse(&certificate).is_err(), "{first:#x} {len}");
        assert_eq!(x509::serial(&certificate), None);
        assert!(Logged::from_certificate(&certificate).is_err());
        let Ok(Entry::Certificate(logged)) = Entry::parse(&entry) else { panic!("{first:#x}") };
        assert_eq!(logged.series, None, "{first:#x} {len}");
        let refused = w.verify(&[certificate, good_ca.clone()]);
        assert!(matches!(refused, Err(Refusal::NotAnSvid(_))), "{refused:?}");
        let bad = ca(&serial);
        let under = w.certificate(&leaf, &below, &of(0x40, 16), (&bad, &above)).0;
        let refused = w.verify(&[under, bad]);
        assert!(matches!(refused, Err(Refusal::BadChain { .. })), "{first:#x} {len}: {refused:?}");
    }
    for text in ["", "4", "40", "00112233445566778899aabbccddeeff", "4g"] {
        assert!(Serial::from_hex(text).is_err(), "{text}");
    }
    for text in ["0011223344556677", "8011223344556677", "4011223344556677aa", "401122334455667G"] {
        assert!(Series::try_from(text.to_owned()).is_err(), "{text}");
    }
}
