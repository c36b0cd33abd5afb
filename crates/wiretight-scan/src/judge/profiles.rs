//! Requirements of standards, as far as a client can check them.
//!
//! A profile contains what its standard requires (MUST, shall), not what it recommends. A
//! requirement that is in the [table of rules](super::RULES) is reused, with the profile's citation.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use super::rules::{Finding, RULES, Rule, Seen, Test, in_short, named, old_suites, spoken};
use super::{Level, Reason, Verdict};
use crate::facts::Answer;
use crate::names::{Bulk, KeyExchange, Suite, Version};

macro_rules! profiles {
    ($($variant:ident $name:literal $title:literal $demands:ident,)*) => {
        /// A standard that an endpoint can meet.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Profile {
            $($variant,)*
        }

        impl Profile {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// `nist-800-52r2`; stable.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            fn demands(self) -> &'static [Demand] {
                match self { $(Self::$variant => $demands,)* }
            }
        }
    };
}

profiles! {
    Bcp195 "bcp195" "BCP 195: RFC 8996, RFC 9325 as RFC 10015 updates it" BCP195,
    Nist80052r2 "nist-800-52r2" "NIST SP 800-52 Rev. 2, government servers" NIST,
    MozillaModern "mozilla-modern" "Mozilla Server Side TLS 6.0, modern" MODERN,
    MozillaIntermediate "mozilla-intermediate" "Mozilla Server Side TLS 6.0, intermediate" INTERMEDIATE,
    PciDss4 "pci-dss-4" "PCI DSS 4.0.1, as far as a scan can check it" PCI,
    Cnsa2 "cnsa2" "CNSA 2.0 for TLS 1.3 (draft-becker-cnsa2-tls-profile-05)" CNSA2,
}

/// Not the name of a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown profile {0:?}; use one of {list}", list = names())]
pub struct UnknownProfile(String);

fn names() -> String {
    Profile::ALL.iter().map(|profile| profile.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        let found = Self::ALL.iter().copied().find(|profile| profile.name() == text);
        found.ok_or_else(|| UnknownProfile(text.chars().take(50).collect()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rules that are part of every profile.
const ALWAYS: [&str; 4] = ["plaintext", "unreachable", "name-wanted", "inconsistent"];

/// One requirement of a profile.
enum Demand {
    /// A rule of the table, by id, with the citation of this profile's standard.
    Rule(&'static str, &'static str),
    /// A rule that is not in the table.
    Own(Rule),
}

impl Profile {
    /// Whether an endpoint meets it: no if it violates a requirement, inconclusive if one could not
    /// be checked, untested if there is no TLS.
    pub fn verdict(self, seen: &Seen<'_>) -> Verdict {
        let rules = self.rules();
        self.verdict_of(rules.iter().filter_map(|rule| rule.reason(seen)).collect(), seen)
    }

    /// The same, with only the worst of the open reasons.
    pub(super) fn verdict_in_short(self, seen: &Seen<'_>) -> Verdict {
        static RULES_OF: LazyLock<Vec<Vec<Rule>>> =
            LazyLock::new(|| Profile::ALL.iter().map(|profile| profile.rules()).collect());
        let at = Self::ALL.iter().position(|profile| *profile == self);
        let rules = at.map_or(&[][..], |at| RULES_OF[at].as_slice());
        self.verdict_of(in_short(rules, seen), seen)
    }

    fn verdict_of(self, reasons: Vec<Reason>, seen: &Seen<'_>) -> Verdict {
        let verdict = |answer, reasons| Verdict { profile: self.name().into(), answer, reasons };
        let answer = match reasons.iter().any(|reason| reason.answer == Answer::Yes) {
            true => Answer::No,
            false if !reasons.is_empty() => Answer::Inconclusive,
            false if spoken(seen) => Answer::Yes,
            false => Answer::Untested,
        };
        verdict(answer, reasons)
    }

    /// The requirements, as rules that cite the profile's standard.
    pub fn rules(self) -> Vec<Rule> {
        let always = ALWAYS.map(|id| Demand::Rule(id, self.title()));
        always.iter().chain(self.demands()).filter_map(Demand::rule).collect()
    }
}

impl Demand {
    fn rule(&self) -> Option<Rule> {
        match self {
            Self::Own(rule) => Some(*rule),
            Self::Rule(id, standard) => {
                let rule = RULES.iter().find(|rule| rule.id == *id)?;
                Some(Rule { standard, ..*rule })
            }
        }
    }
}

const fn own(
    id: &'static str,
    check: fn(&Seen<'_>) -> Finding,
    what: &'static str,
    standard: &'static str,
    change: &'static str,
) -> Demand {
    let test = Test::Check(check);
    Demand::Own(Rule { id, level: Level::Weak, test, what, standard, change })
}

const BCP195: &[Demand] = {
    use Demand::Rule;
    &[
        Rule("ssl2", "RFC 9325 section 3.1.1"),
        Rule("ssl3", "RFC 9325 section 3.1.1"),
        Rule("tls1_0", "RFC 9325 section 3.1.1; RFC 8996 section 4"),
        Rule("tls1_1", "RFC 9325 section 3.1.1; RFC 8996 section 5"),
        Rule("versions", "RFC 9325 section 3.1.1"),
        Rule("suites-not-told", "RFC 9325 section 4.1"),
        Rule("null", "RFC 9325 section 4.1"),
        Rule("anonymous", "RFC 5246 appendix A.5; RFC 10015 section 2"),
        Rule("export", "RFC 9325 section 4.1"),
        Rule("rc4", "RFC 9325 section 4.1"),
        Rule("des", "RFC 9325 section 4.1"),
        Rule("static-rsa", "RFC 10015 section 4"),
        own(
            "static-dh-finite",
            static_dh_finite,
            "Static finite-field Diffie-Hellman is accepted",
            "RFC 10015 section 2",
            "Remove TLS_DH_ suites from the server's cipher list",
        ),
        Rule("dhe", "RFC 10015 section 3"),
        Rule("curves", "RFC 9325 section 4.5"),
        Rule("no-forward-secrecy", "RFC 9325 section 4.1"),
        Rule("renegotiation", "RFC 9325 section 3.5"),
        Rule("extended-master-secret", "RFC 9325 section 3.5"),
        Rule("signature-hash", "RFC 9325 section 4.5"),
        Rule("certificate-signature", "RFC 9325 section 4.5"),
        Rule("certificate-key", "RFC 9325 section 4.5"),
        // Clients must reject this certificate, so no client can use the server as the other rules require.
        Rule("certificate-untrusted", "RFC 5280 section 6"),
        Rule("certificate-name", "RFC 9525 section 6"),
        Rule("certificate-validity", "RFC 5280 section 6.1.3"),
    ]
};

const NIST: &[Demand] = {
    use Demand::Rule;
    &[
        Rule("ssl2", "NIST SP 800-52 Rev. 2 section 3.1"),
        Rule("ssl3", "NIST SP 800-52 Rev. 2 section 3.1"),
        Rule("tls1_0", "NIST SP 800-52 Rev. 2 section 3.1"),
        Rule("no-tls1_3", "NIST SP 800-52 Rev. 2 section 3.1"),
        Rule("suites-not-told", "NIST SP 800-52 Rev. 2 section 3.3.1"),
        own(
            "nist-suites",
            nist_suites,
            "Cipher suites with unapproved algorithms are accepted",
            "NIST SP 800-52 Rev. 2 section 3.3.1",
            "Allow only ECDHE and DHE suites with AES in GCM, CCM or CBC mode",
        ),
        own(
            "nist-curves",
            nist_curves,
            "Neither P-256 nor P-384 is accepted",
            "NIST SP 800-52 Rev. 2 section 3.4.2.2",
            "Add secp256r1 or secp384r1 to the server's list of groups",
        ),
        Rule("dh-short", "NIST SP 800-52 Rev. 2 section 3.3.1"),
        Rule("certificate-key", "NIST SP 800-52 Rev. 2 section 3.2.1"),
        Rule("certificate-signature", "NIST SP 800-52 Rev. 2 section 3.2.1"),
        Rule("certificate-untrusted", "NIST SP 800-52 Rev. 2 section 3.2"),
        Rule("certificate-name", "NIST SP 800-52 Rev. 2 section 3.2.1"),
        Rule("certificate-validity", "NIST SP 800-52 Rev. 2 section 3.2.1"),
        Rule("renegotiation", "NIST SP 800-52 Rev. 2 section 3.4.1.1"),
        Rule("extended-master-secret", "NIST SP 800-52 Rev. 2 section 3.4.1.3"),
        Rule("compression", "NIST SP 800-52 Rev. 2 section 3.7"),
    ]
};

const MODERN: &[Demand] = {
    use Demand::Rule;
    const SOURCE: &str = "Mozilla Server Side TLS 6.0, modern";
    &[
        Rule("ssl2", "Mozilla Server Side TLS 6.0, modern: tls_versions"),
        Rule("ssl3", "Mozilla Server Side TLS 6.0, modern: tls_versions"),
        Rule("tls1_0", "Mozilla Server Side TLS 6.0, modern: tls_versions"),
        Rule("tls1_1", "Mozilla Server Side TLS 6.0, modern: tls_versions"),
        own(
            "modern-tls1_2",
            tls1_2,
            "TLS 1.2 is supported",
            "Mozilla Server Side TLS 6.0, modern: tls_versions",
            "Turn off TLS 1.2",
        ),
        Rule("no-tls1_3", "Mozilla Server Side TLS 6.0, modern: tls_versions"),
        Rule("suites-not-told", "Mozilla Server Side TLS 6.0, modern: ciphersuites"),
        own(
            "mozilla-suites-tls1_3",
            mozilla_new_suites,
            "TLS 1.3 accepts other suites than the three that Mozilla lists",
            "Mozilla Server Side TLS 6.0, modern: ciphersuites",
            "Allow only TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384 and TLS_CHACHA20_POLY1305_SHA256",
        ),
        own(
            "mozilla-groups",
            mozilla_groups,
            "Other groups than X25519MLKEM768, x25519, secp256r1 and secp384r1 are accepted",
            "Mozilla Server Side TLS 6.0, modern: tls_curves",
            "Allow only these four groups",
        ),
        own(
            "modern-key",
            modern_key,
            "The certificate's key is not ECDSA on P-256 or P-384",
            "Mozilla Server Side TLS 6.0, modern: certificate_types, certificate_curves",
            "Generate a P-256 key, and get a certificate for it",
        ),
        own(
            "modern-lifespan",
            modern_lifespan,
            "The certificate is valid for more than 90 days",
            "Mozilla Server Side TLS 6.0, modern: maximum_certificate_lifespan",
            "Get certificates by ACME, and automate their renewal",
        ),
        own(
            "mozilla-hsts",
            mozilla_hsts,
            "HTTP Strict Transport Security is set for less than two years",
            "Mozilla Server Side TLS 6.0, modern: hsts_min_age",
            "Send `Strict-Transport-Security: max-age=63072000` in each response",
        ),
        Rule(
            "certificate-signature",
            "Mozilla Server Side TLS 6.0, modern: certificate_signatures",
        ),
        Rule("certificate-untrusted", SOURCE),
        Rule("certificate-name", SOURCE),
        Rule("certificate-validity", SOURCE),
    ]
};

const INTERMEDIATE: &[Demand] = {
    use Demand::Rule;
    const SOURCE: &str = "Mozilla Server Side TLS 6.0, intermediate";
    &[
        Rule("ssl2", "Mozilla Server Side TLS 6.0, intermediate: tls_versions"),
        Rule("ssl3", "Mozilla Server Side TLS 6.0, intermediate: tls_versions"),
        Rule("tls1_0", "Mozilla Server Side TLS 6.0, intermediate: tls_versions"),
        Rule("tls1_1", "Mozilla Server Side TLS 6.0, intermediate: tls_versions"),
        Rule("no-tls1_3", "Mozilla Server Side TLS 6.0, intermediate: tls_versions"),
        Rule("suites-not-told", "Mozilla Server Side TLS 6.0, intermediate: ciphers"),
        own(
            "mozilla-suites-tls1_3",
            mozilla_new_suites,
            "TLS 1.3 accepts other suites than the three that Mozilla lists",
            "Mozilla Server Side TLS 6.0, intermediate: ciphersuites",
            "Allow only TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384 and TLS_CHACHA20_POLY1305_SHA256",
        ),
        own(
            "intermediate-suites",
            mozilla_old_suites,
            "TLS 1.2 accepts other suites than the six that Mozilla lists",
            "Mozilla Server Side TLS 6.0, intermediate: ciphers",
            "Allow only ECDHE suites with AES-GCM or ChaCha20-Poly1305",
        ),
        own(
            "mozilla-groups",
            mozilla_groups,
            "Other groups than X25519MLKEM768, x25519, secp256r1 and secp384r1 are accepted",
            "Mozilla Server Side TLS 6.0, intermediate: tls_curves",
            "Allow only these four groups",
        ),
        Rule("certificate-key", "Mozilla Server Side TLS 6.0, intermediate: rsa_key_size"),
        own(
            "intermediate-key",
            intermediate_key,
            "The certificate's key is neither RSA nor ECDSA on P-256 or P-384",
            "Mozilla Server Side TLS 6.0, intermediate: certificate_types, certificate_curves",
            "Generate a P-256 key, and get a certificate for it",
        ),
        own(
            "intermediate-lifespan",
            intermediate_lifespan,
            "The certificate is valid for more than 366 days",
            "Mozilla Server Side TLS 6.0, intermediate: maximum_certificate_lifespan",
            "Get certificates by ACME, and automate their renewal",
        ),
        own(
            "mozilla-hsts",
            mozilla_hsts,
            "HTTP Strict Transport Security is set for less than two years",
            "Mozilla Server Side TLS 6.0, intermediate: hsts_min_age",
            "Send `Strict-Transport-Security: max-age=63072000` in each response",
        ),
        Rule(
            "certificate-signature",
            "Mozilla Server Side TLS 6.0, intermediate: certificate_signatures",
        ),
        Rule("certificate-untrusted", SOURCE),
        Rule("certificate-name", SOURCE),
        Rule("certificate-validity", SOURCE),
    ]
};

const PCI: &[Demand] = {
    use Demand::Rule;
    &[
        Rule("ssl2", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("ssl3", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("tls1_0", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("tls1_1", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("versions", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("suites-not-told", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("null", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule("anonymous", "PCI DSS 4.0.1 requirement 4.2.1: trusted keys and certificates"),
        Rule("export", "PCI DSS 4.0.1 requirement 4.2.1, glossary: strong cryptography"),
        Rule("rc4", "PCI DSS 4.0.1 requirement 4.2.1, glossary: strong cryptography"),
        Rule("des", "PCI DSS 4.0.1 requirement 4.2.1, glossary: strong cryptography"),
        Rule("sweet32", "PCI DSS 4.0.1 requirement 4.2.1: no insecure algorithms"),
        Rule("dh-short", "PCI DSS 4.0.1 requirement 4.2.1, glossary: strong cryptography"),
        Rule("certificate-key", "PCI DSS 4.0.1 requirement 4.2.1, glossary: strong cryptography"),
        Rule("certificate-signature", "PCI DSS 4.0.1 requirement 4.2.1"),
        Rule(
            "certificate-untrusted",
            "PCI DSS 4.0.1 requirement 4.2.1: trusted keys and certificates",
        ),
        Rule(
            "certificate-name",
            "PCI DSS 4.0.1 requirement 4.2.1: certificates are confirmed as valid",
        ),
        Rule("certificate-validity", "PCI DSS 4.0.1 requirement 4.2.1: not expired or revoked"),
        Rule("certificate-ocsp", "PCI DSS 4.0.1 requirement 4.2.1: not expired or revoked"),
        Rule("compression", "PCI DSS 4.0.1 requirement 4.2.1: secure configurations"),
        Rule("renegotiation", "PCI DSS 4.0.1 requirement 4.2.1: secure configurations"),
        Rule("heartbleed", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("ccs-injection", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("ticketbleed", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("robot", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("drown", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("poodle-tls", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("logjam", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("insecure-renegotiation", "PCI DSS 4.0.1 requirement 6.3.3"),
        Rule("starttls-injection", "PCI DSS 4.0.1 requirement 6.3.3"),
    ]
};

const CNSA2: &[Demand] = {
    use Demand::Rule;
    &[
        Rule("ssl2", "draft-becker-cnsa2-tls-profile-05: TLS 1.3 only"),
        Rule("ssl3", "draft-becker-cnsa2-tls-profile-05: TLS 1.3 only"),
        Rule("tls1_0", "draft-becker-cnsa2-tls-profile-05: TLS 1.3 only"),
        Rule("tls1_1", "draft-becker-cnsa2-tls-profile-05: TLS 1.3 only"),
        own(
            "cnsa2-tls1_2",
            tls1_2,
            "TLS 1.2 is supported",
            "draft-becker-cnsa2-tls-profile-05: TLS 1.3 only",
            "Turn off TLS 1.2",
        ),
        Rule("no-tls1_3", "draft-becker-cnsa2-tls-profile-05: TLS 1.3 only"),
        Rule("suites-not-told", "CNSA 2.0 FAQ (NSA, 2024), table of algorithms: AES-256, SHA-384"),
        own(
            "cnsa2-suites",
            cnsa2_suites,
            "Other suites than TLS_AES_256_GCM_SHA384 are accepted",
            "CNSA 2.0 FAQ (NSA, 2024), table of algorithms: AES-256, SHA-384",
            "Allow only TLS_AES_256_GCM_SHA384",
        ),
        own(
            "cnsa2-groups",
            cnsa2_groups,
            "MLKEM1024 is not the only accepted group",
            "CNSA 2.0 FAQ (NSA, 2024), table of algorithms: ML-KEM-1024",
            "Allow only the group MLKEM1024",
        ),
        own(
            "cnsa2-signatures",
            cnsa2_signatures,
            "Handshakes are signed with other algorithms than ML-DSA-87",
            "CNSA 2.0 FAQ (NSA, 2024), table of algorithms: ML-DSA-87",
            "Use a certificate with an ML-DSA-87 key",
        ),
        own(
            "cnsa2-key",
            cnsa2_key,
            "The certificate's key is not ML-DSA-87",
            "CNSA 2.0 FAQ (NSA, 2024), table of algorithms: ML-DSA-87",
            "Use a certificate with an ML-DSA-87 key",
        ),
        Rule("early-data", "draft-becker-cnsa2-tls-profile-05: no early data"),
        Rule("certificate-untrusted", "RFC 5280 section 6"),
        Rule("certificate-name", "RFC 9525 section 6"),
        Rule("certificate-validity", "RFC 5280 section 6.1.3"),
    ]
};

// ---- The checks.

fn tls1_2(seen: &Seen<'_>) -> Finding {
    Test::MustNot("protocol.tls1_2").run(seen)
}

/// Values in a fact's list that are not allowed; open if the fact is inconclusive.
fn outside(seen: &Seen<'_>, id: &'static str, allowed: impl Fn(&str) -> bool) -> Finding {
    let other: Vec<_> = seen.facts.list(id).iter().filter(|n| !allowed(n)).cloned().collect();
    match seen.facts.answer(id) {
        _ if !other.is_empty() => Finding::wrong(id, other),
        Answer::Inconclusive => Finding::open(seen, id),
        _ => Finding::Fine,
    }
}

/// TLS 1.3 suites that are accepted and not in `allowed`.
fn new_suites(seen: &Seen<'_>, allowed: &[&str]) -> Finding {
    let prefix = format!("suite.{}.", Version::Tls1_3.key());
    let taken = seen.facts.iter().filter(|(_, fact)| fact.answer == Answer::Yes);
    let names = taken.filter_map(|(id, _)| id.strip_prefix(&prefix));
    let other = names.filter(|name| !allowed.contains(name)).map(str::to_owned).collect();
    Finding::any("suites.tls1_3", other)
}

const NEW: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

fn mozilla_new_suites(seen: &Seen<'_>) -> Finding {
    new_suites(seen, &NEW)
}

fn cnsa2_suites(seen: &Seen<'_>) -> Finding {
    new_suites(seen, &["TLS_AES_256_GCM_SHA384"])
}

/// Static DH in a finite field: forbidden (MUST NOT), while static ECDH is only discouraged.
fn static_dh_finite(seen: &Seen<'_>) -> Finding {
    let is = |suite: &Suite| suite.key_exchange() == KeyExchange::Dh;
    Finding::any("weak.static_dh", named(old_suites(seen).filter(is)))
}

fn mozilla_old_suites(seen: &Seen<'_>) -> Finding {
    let allowed = |suite: &Suite| {
        let sealed = suite.name.ends_with("_WITH_AES_128_GCM_SHA256")
            || suite.name.ends_with("_WITH_AES_256_GCM_SHA384")
            || suite.name.ends_with("_WITH_CHACHA20_POLY1305_SHA256");
        sealed && suite.key_exchange() == KeyExchange::Ecdhe && !suite.is_anonymous()
    };
    old_outside(seen, allowed)
}

/// SP 800-52 section 3.3.1: AES, with signed or static DH key exchange.
fn nist_suites(seen: &Seen<'_>) -> Finding {
    let new = new_suites(
        seen,
        &[
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_256_GCM_SHA384",
            "TLS_AES_128_CCM_SHA256",
            "TLS_AES_128_CCM_8_SHA256",
        ],
    );
    let old = old_outside(seen, |suite| {
        use KeyExchange::*;
        suite.bulk() == Bulk::Aes
            && matches!(suite.key_exchange(), Ecdhe | Dhe | Dh | Ecdh | Psk | DhePsk | EcdhePsk)
            && !suite.is_anonymous()
            && !suite.name.ends_with("_MD5")
    });
    if new == Finding::Fine { old } else { new }
}

fn old_outside(seen: &Seen<'_>, allowed: impl Fn(&Suite) -> bool) -> Finding {
    let mut other: Vec<_> =
        old_suites(seen).filter(|s| !allowed(s)).map(|s| s.name.to_owned()).collect();
    other.sort_unstable();
    other.dedup();
    Finding::any("suites.tls1_2", other)
}

fn nist_curves(seen: &Seen<'_>) -> Finding {
    let ids = ["groups.tls1_3", "groups.tls1_2"];
    let mut taken = ids.iter().flat_map(|id| seen.facts.list(id));
    let ok = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("secp256r1") || name.starts_with("secp384r1")
    };
    if !spoken(seen) || taken.any(|name| ok(name)) {
        return Finding::Fine;
    }
    match ids.iter().find(|id| seen.facts.answer(id) == Answer::Inconclusive) {
        Some(id) => Finding::open(seen, *id),
        None if seen.facts.yes(ids[0]) => Finding::wrong(ids[0], seen.facts.list(ids[0]).to_vec()),
        // No curve is accepted at all, so no curve is wrong.
        None => Finding::Fine,
    }
}

fn mozilla_groups(seen: &Seen<'_>) -> Finding {
    let allowed = ["X25519MLKEM768", "x25519", "secp256r1", "secp384r1"];
    let fields = |name: &str| name.starts_with("ffdhe");
    match outside(seen, "groups.tls1_3", |name| allowed.contains(&name)) {
        // The profile forbids DHE by its suites, so FFDHE groups are not reported here.
        Finding::Fine => outside(seen, "groups.tls1_2", |n| allowed.contains(&n) || fields(n)),
        other => other,
    }
}

fn cnsa2_groups(seen: &Seen<'_>) -> Finding {
    let id = "groups.tls1_3";
    match outside(seen, id, |name| name == "MLKEM1024") {
        Finding::Fine if !spoken(seen) || !seen.facts.list(id).is_empty() => Finding::Fine,
        Finding::Fine if seen.facts.answer(id) == Answer::Untested => Finding::open(seen, id),
        Finding::Fine => Finding::wrong(id, Vec::new()),
        other => other,
    }
}

fn cnsa2_signatures(seen: &Seen<'_>) -> Finding {
    outside(seen, "signatures.tls1_3", |name| name == "mldsa87")
}

fn cnsa2_key(seen: &Seen<'_>) -> Finding {
    outside(seen, "certificate.keys", |key| key == "mldsa-87")
}

fn modern_key(seen: &Seen<'_>) -> Finding {
    outside(seen, "certificate.keys", |key| matches!(key, "ecdsa-p256" | "ecdsa-p384"))
}

fn intermediate_key(seen: &Seen<'_>) -> Finding {
    let allowed = |key: &str| matches!(key, "ecdsa-p256" | "ecdsa-p384") || key.starts_with("rsa-");
    outside(seen, "certificate.keys", allowed)
}

fn modern_lifespan(seen: &Seen<'_>) -> Finding {
    lifespan(seen, 90)
}

fn intermediate_lifespan(seen: &Seen<'_>) -> Finding {
    lifespan(seen, 366)
}

fn lifespan(seen: &Seen<'_>, most: i64) -> Finding {
    let leaves = seen.chains.iter().filter_map(|chain| chain.certificates.first());
    let days = leaves.filter_map(|leaf| {
        // The validity period includes both ends (RFC 5280 section 4.1.2.5).
        let seconds = leaf.not_after?.as_second() - leaf.not_before?.as_second() + 1;
        Some(seconds.div_euclid(86_400))
    });
    let long = days.filter(|days| *days > most).map(|days| format!("{days} days")).collect();
    Finding::any("certificate.valid", long)
}

fn mozilla_hsts(seen: &Seen<'_>) -> Finding {
    let id = "http.hsts";
    match (seen.facts.answer(id), seen.facts.number(id)) {
        (Answer::Yes, Some(seconds)) if seconds < 63_072_000 => {
            Finding::wrong(id, vec![format!("{seconds} s")])
        }
        _ => Test::No(id).run(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_names_a_rule_and_every_name_parses() {
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse::<Profile>().as_ref(), Ok(profile));
            let demands = profile.demands().len();
            let all = demands + ALWAYS.len();
            assert_eq!(profile.rules().len(), all, "{profile} names a rule that does not exist");
        }
        let error = "nist".parse::<Profile>().unwrap_err().to_string();
        assert!(error.contains("nist-800-52r2"), "{error}");
    }
}
