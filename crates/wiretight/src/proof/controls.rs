//! Which controls of standards the facts are evidence for. One table, with its sources; docs/audit.md shows the same.
//!
//! The texts are in our words, and no replacement for the standards. No control is ever called met: an assessor decides
//! that. A control for which there is no evidence says so, and why.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wiretight_scan::judge;

/// A set of controls, as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    #[serde(rename = "pci-dss-4")]
    PciDss4,
    #[serde(rename = "nist-800-53")]
    Nist80053,
    Hipaa,
    #[serde(rename = "iso-27001")]
    Iso27001,
    Bcp195,
}

/// Not the name of a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown profile {0:?}; use pci-dss-4, nist-800-53, hipaa, iso-27001 or bcp195")]
pub struct UnknownProfile(String);

impl Profile {
    pub const ALL: [Self; 5] =
        [Self::PciDss4, Self::Nist80053, Self::Hipaa, Self::Iso27001, Self::Bcp195];

    /// The name on the command line; stable.
    pub fn name(self) -> &'static str {
        match self {
            Self::PciDss4 => "pci-dss-4",
            Self::Nist80053 => "nist-800-53",
            Self::Hipaa => "hipaa",
            Self::Iso27001 => "iso-27001",
            Self::Bcp195 => "bcp195",
        }
    }

    /// The standard, with its edition.
    pub fn title(self) -> &'static str {
        match self {
            Self::PciDss4 => "PCI DSS v4.0.1 (June 2024)",
            Self::Nist80053 => "NIST SP 800-53 Rev. 5 (updated December 2020)",
            Self::Hipaa => "HIPAA Security Rule, 45 CFR Part 164 Subpart C",
            Self::Iso27001 => "ISO/IEC 27001:2022, Annex A",
            Self::Bcp195 => "BCP 195: RFC 9325 and RFC 8996",
        }
    }

    pub fn controls(self) -> &'static [Control] {
        match self {
            Self::PciDss4 => PCI,
            Self::Nist80053 => NIST,
            Self::Hipaa => HIPAA,
            Self::Iso27001 => ISO,
            Self::Bcp195 => BCP,
        }
    }

    /// The scanner's profile that judges endpoints for these controls, and why it is that one.
    pub fn scanner(self) -> Option<(judge::Profile, &'static str)> {
        match self {
            Self::PciDss4 => Some((judge::Profile::PciDss4, "the same standard")),
            Self::Nist80053 => Some((
                judge::Profile::Nist80052r2,
                "SP 800-52 Rev. 2 is NIST's guide to TLS, to which SC-8 refers",
            )),
            Self::Hipaa => Some((
                judge::Profile::Nist80052r2,
                "the guidance of HHS on unsecured health information (74 FR 19006) names SP 800-52",
            )),
            Self::Iso27001 => None,
            Self::Bcp195 => Some((judge::Profile::Bcp195, "the same standard")),
        }
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        let found = Self::ALL.into_iter().find(|profile| profile.name() == text);
        found.ok_or_else(|| UnknownProfile(text.chars().take(50).collect()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A requirement of a standard, and what there is about it.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// As the standard numbers it.
    pub id: &'static str,
    /// What it asks for, in our words.
    pub about: &'static str,
    pub strength: Strength,
    pub evidence: &'static [Evidence],
    /// What the evidence does not show; without evidence, why there is none.
    pub limit: &'static str,
}

/// How much of a control there is evidence for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strength {
    /// For what it asks of traffic on the network.
    Direct,
    /// For a part of it.
    Part,
    None,
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Part => "part",
            Self::None => "none",
        })
    }
}

/// A kind of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// How the traffic was encrypted.
    Traffic,
    /// Which protocols and algorithms were negotiated.
    Algorithms,
    /// What is let through unencrypted, why, and until when.
    Exceptions,
    /// Which nodes enforce encryption, and when that changed.
    Modes,
    /// The keys of CA, log and witnesses.
    Keys,
    /// The log, and who cosigns it.
    Log,
    /// The members, and the versions that they run.
    Nodes,
    /// Scans of endpoints.
    Scans,
}

impl Evidence {
    pub const ALL: [Self; 8] = [
        Self::Traffic,
        Self::Algorithms,
        Self::Exceptions,
        Self::Modes,
        Self::Keys,
        Self::Log,
        Self::Nodes,
        Self::Scans,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::Algorithms => "algorithms",
            Self::Exceptions => "exceptions",
            Self::Modes => "modes",
            Self::Keys => "keys",
            Self::Log => "log",
            Self::Nodes => "nodes",
            Self::Scans => "scans",
        }
    }
}

use Evidence::{Algorithms, Exceptions, Keys, Log, Modes, Nodes, Scans, Traffic};

const fn direct(
    id: &'static str,
    about: &'static str,
    evidence: &'static [Evidence],
    limit: &'static str,
) -> Control {
    Control { id, about, strength: Strength::Direct, evidence, limit }
}

const fn part(
    id: &'static str,
    about: &'static str,
    evidence: &'static [Evidence],
    limit: &'static str,
) -> Control {
    Control { id, about, strength: Strength::Part, evidence, limit }
}

const fn none(id: &'static str, about: &'static str, limit: &'static str) -> Control {
    Control { id, about, strength: Strength::None, evidence: &[], limit }
}

const WHAT_DATA: &str = "Counts do not show which connections carry the data that the standard protects. Traffic of machines that run no node is seen only at the other end.";
const NO_PEOPLE: &str =
    "It is a duty of people: policies, training, reviews. The mesh knows nothing of it.";

const PCI: &[Control] = &[
    part(
        "1.2.6",
        "Insecure services that are in use are known, and their risk is mitigated",
        &[Traffic, Exceptions],
        "Plaintext and weak traffic is counted by protocol, and exceptions have an owner and an end. What else mitigates the risk is not known.",
    ),
    part(
        "2.2.7",
        "Administrative access over the network is encrypted with strong cryptography",
        &[Traffic, Scans],
        "Which connections are administrative is not known. SSH and RDP are counted with their levels.",
    ),
    none(
        "4.1.1",
        "Policies and procedures about transmission are written, kept, used and known",
        NO_PEOPLE,
    ),
    direct(
        "4.2.1",
        "Card data is encrypted with strong cryptography when it crosses open, public networks: trusted keys and certificates only, secure versions, no fallback, sufficient strength",
        &[Traffic, Algorithms, Exceptions, Modes, Scans],
        WHAT_DATA,
    ),
    part(
        "4.2.1.1",
        "There is an inventory of the trusted keys and certificates that protect card data in transmission",
        &[Keys, Log, Nodes],
        "Keys of CA, log and witnesses are listed here. Certificates of nodes and services are entries of the log: `wiretight monitor` and a copy of the log list them. Keys of other programs are not known.",
    ),
    none(
        "4.2.1.2",
        "Wireless networks that transmit card data use good practice for authentication and encryption",
        "Nodes see IP packets, not the radio link below them.",
    ),
    none(
        "4.2.2",
        "Card data that is sent by messaging of end users is encrypted with strong cryptography",
        "Contents of messages are never read, and no message is recognised as having card data.",
    ),
    part(
        "8.3.2",
        "Authentication factors are unreadable when they are transmitted and stored",
        &[Traffic, Scans],
        "Only transmission is seen, and which connections carry passwords is not known. Storage is not seen.",
    ),
    part(
        "12.3.3",
        "Protocols and cipher suites in use are listed with their purpose, and reviewed once a year; there is a plan for changes",
        &[Algorithms, Nodes, Scans],
        "The list of what was negotiated is here. Reviews and plans are work of people.",
    ),
];

const NIST: &[Control] = &[
    part(
        "AC-17(2)",
        "Remote access is encrypted and protected against changes",
        &[Traffic, Algorithms],
        "Which connections are remote access is not known.",
    ),
    part(
        "AU-9(3)",
        "Audit records are protected against changes by cryptography",
        &[Log],
        "The records of the log are: certificates, revocations, hourly and daily totals. Logs of programs are not in it.",
    ),
    part(
        "AU-10",
        "Who has done something cannot deny it",
        &[Log],
        "What the authority has logged and witnesses have cosigned cannot be denied or changed later. Actions of users and programs are not recorded.",
    ),
    part(
        "CA-7",
        "Controls are monitored all the time, and reported",
        &[Traffic, Modes],
        "Encryption in transit is measured each hour. Other controls are not monitored.",
    ),
    part(
        "CM-6",
        "Settings are enforced; deviations are identified, documented and approved",
        &[Exceptions, Modes],
        "Only the settings of encryption. That somebody approved an exception is the operator's word.",
    ),
    part(
        "CM-8",
        "There is an inventory of the components of the system",
        &[Nodes],
        "Only machines that run a node.",
    ),
    part(
        "IA-3(1)",
        "Devices authenticate each other by cryptography before they connect",
        &[Traffic, Keys, Log],
        "Connections between relays (`carried` in the totals) are mutually authenticated. For others, the level says nothing about the client.",
    ),
    direct(
        "SC-8",
        "What is transmitted is confidential and protected against changes",
        &[Traffic, Algorithms, Exceptions, Modes, Scans],
        WHAT_DATA,
    ),
    direct(
        "SC-8(1)",
        "Cryptography protects what is transmitted",
        &[Traffic, Algorithms, Exceptions, Modes, Scans],
        WHAT_DATA,
    ),
    none(
        "SC-8(2)",
        "Information is protected while it is prepared for transmission and after its reception",
        "Only what crosses a network is seen, not what programs do before and after.",
    ),
    part(
        "SC-8(3)",
        "Cryptography protects message externals, such as headers and routing",
        &[Algorithms],
        "TLS does not hide addresses, times and sizes. QUIC, WireGuard and IPsec hide more, and are counted as protocols.",
    ),
    none(
        "SC-8(4)",
        "Patterns of communication are concealed or made random",
        "Wiretight conceals no traffic patterns.",
    ),
    none(
        "SC-8(5)",
        "A protected distribution system protects the transmission physically",
        "Cables and rooms are not seen.",
    ),
    part(
        "SC-12",
        "Keys are made, distributed, stored and destroyed as required",
        &[Keys, Log, Nodes],
        "Keys of CA, log and witnesses, who holds them and what they can do are listed; each certificate is logged before it is signed. How the machines store keys is the operator's word.",
    ),
    none(
        "SC-12(1)",
        "Information stays available if users lose keys",
        "Keys in transit are not kept, so that recorded traffic stays unreadable.",
    ),
    part(
        "SC-13",
        "Where cryptography is needed, and which types of it, is determined and implemented",
        &[Algorithms, Traffic, Scans],
        "The algorithms are listed. Wiretight makes no claim that a module is validated (FIPS 140), neither its own nor those of other programs.",
    ),
    part(
        "SC-17",
        "Public key certificates are issued under a policy, or come from an approved provider",
        &[Keys, Log],
        "Certificates of the mesh are in the log. Whether the rules for them are those that the organisation wants is not known.",
    ),
    direct(
        "SC-23",
        "The authenticity of sessions is protected",
        &[Traffic, Algorithms, Modes],
        "TLS and SSH protect the session below the program. Sessions inside of a program, such as cookies, are not seen.",
    ),
    part(
        "SC-23(5)",
        "Only chosen certificate authorities are accepted for protected sessions",
        &[Keys, Log],
        "Between relays only the roots that are listed here are accepted. Other programs have their own lists.",
    ),
    none("SC-28", "Information at rest is protected", "Storage is not seen."),
];

const HIPAA: &[Control] = &[
    none("164.308(a)(1)(ii)(A)", "Risks to health information are assessed", NO_PEOPLE),
    none(
        "164.312(a)(2)(iv)",
        "Health information can be encrypted and decrypted (addressable)",
        "It belongs to access control, and is mostly read as encryption at rest. Storage is not seen. For transmission, see (e)(2)(ii).",
    ),
    part(
        "164.312(b)",
        "Activity in systems with health information is recorded and examined",
        &[Log, Traffic],
        "Certificates and totals are recorded, not what users do in programs.",
    ),
    part(
        "164.312(d)",
        "Who seeks access is verified to be who it claims to be",
        &[Traffic, Keys, Log],
        "Between relays (`carried` in the totals), machines and services are verified at both ends. Persons are not.",
    ),
    direct(
        "164.312(e)(1)",
        "Health information that is transmitted over a network is guarded against unauthorised access",
        &[Traffic, Algorithms, Exceptions, Modes, Scans],
        WHAT_DATA,
    ),
    direct(
        "164.312(e)(2)(i)",
        "Transmitted health information is not changed without detection (addressable)",
        &[Traffic, Algorithms, Scans],
        "The levels acceptable and strong include integrity. What happens to data before and after transmission is not seen.",
    ),
    direct(
        "164.312(e)(2)(ii)",
        "Health information is encrypted where appropriate (addressable)",
        &[Traffic, Algorithms, Exceptions, Modes, Scans],
        WHAT_DATA,
    ),
    part(
        "164.316(b)(2)(i)",
        "Documentation is kept for six years",
        &[Log],
        "Daily totals stay in the log as long as it exists. This archive is kept by you.",
    ),
];

const ISO: &[Control] = &[
    part(
        "A.5.14",
        "Information transfer is secured by rules, procedures and agreements",
        &[Traffic, Exceptions],
        "Only transfer over networks, and only how it is encrypted. Rules and agreements are not known.",
    ),
    part(
        "A.5.16",
        "The life cycle of identities is managed",
        &[Nodes, Log],
        "Identities of machines and services. Those of people are not known.",
    ),
    part(
        "A.5.28",
        "Evidence of events is identified, collected and preserved",
        &[Log],
        "Entries of the log, with the cosignatures of witnesses. Other events are not recorded.",
    ),
    part(
        "A.5.33",
        "Records cannot be lost, altered or read by others",
        &[Log],
        "Falsification of the log's entries is detected. Protection against loss is a copy of the log (`wiretight verify --mirror`), kept by you.",
    ),
    none("A.5.36", "Compliance with policies and standards is reviewed regularly", NO_PEOPLE),
    part(
        "A.8.9",
        "Configurations are established, documented, implemented, monitored and reviewed",
        &[Modes, Exceptions, Nodes],
        "Only modes of interception, exceptions and versions of Wiretight.",
    ),
    part(
        "A.8.16",
        "Networks and systems are monitored for anomalous behaviour",
        &[Traffic],
        "How traffic is encrypted is measured each hour. Anomalies of other kinds are not looked for.",
    ),
    direct(
        "A.8.20",
        "Networks and network devices are secured, managed and controlled",
        &[Traffic, Exceptions, Modes, Nodes],
        "Only the protection of what is transmitted. Management of network devices is not seen.",
    ),
    direct(
        "A.8.21",
        "It is known how each network service is protected, and this is in place and watched",
        &[Traffic, Algorithms, Scans],
        "Encryption and authentication only. Availability and service levels are not measured.",
    ),
    none(
        "A.8.22",
        "Groups of services, users and systems are segregated in networks",
        "Who may call whom is decided by identity, in each node's configuration. Those lists are not in this archive.",
    ),
    direct(
        "A.8.24",
        "Rules for the use of cryptography, key management included, are defined and implemented",
        &[Algorithms, Traffic, Keys, Scans],
        "What is implemented is shown. The organisation's rules are not known.",
    ),
];

const BCP: &[Control] = &[
    direct(
        "RFC 8996 section 4, 5",
        "TLS 1.0 and 1.1 are not used",
        &[Algorithms, Traffic, Scans],
        "Traffic shows what was negotiated; that a server would accept more is found by scans only. These versions are `weak`.",
    ),
    direct(
        "RFC 9325 section 3.1",
        "TLS 1.2 is supported, TLS 1.3 preferred; older versions are not negotiated",
        &[Algorithms, Traffic, Scans],
        "As for RFC 8996.",
    ),
    direct(
        "RFC 9325 section 3.2",
        "No fallback to plaintext: strict TLS, also where STARTTLS exists",
        &[Traffic, Exceptions, Modes, Scans],
        "STARTTLS that was offered and not used counts as plaintext. Strict mode refuses plaintext in the kernel.",
    ),
    part(
        "RFC 9325 section 3.3-3.5",
        "No compression; safe resumption and renegotiation",
        &[Scans],
        "Only scans test them. Traffic does not show them.",
    ),
    none(
        "RFC 9325 section 3.10",
        "Data in 0-RTT is sent only if the application allows for replay",
        "What programs send in 0-RTT is not told apart. Relays never use 0-RTT.",
    ),
    direct(
        "RFC 9325 section 4.1-4.3",
        "Cipher suites with forward secrecy and AEAD; no NULL, RC4, export or anonymous suites, no static RSA",
        &[Algorithms, Traffic, Scans],
        "Suites without forward secrecy are `weak`. Suites in CBC mode are `acceptable`.",
    ),
    part(
        "RFC 9325 section 4.4",
        "Keys are changed before the limits of a cipher",
        &[Nodes],
        "Relays of Wiretight change keys in time. Of other programs nothing is known.",
    ),
    part(
        "RFC 9325 section 4.5",
        "Keys and curves are long enough; signatures use SHA-256 or better",
        &[Algorithms, Keys, Scans],
        "The group of the key exchange is visible. Certificates of other servers are visible before TLS 1.3, and to scans.",
    ),
    part(
        "RFC 9325 section 7.1",
        "Clients verify the server's name",
        &[Traffic, Scans],
        "Relays do (`carried` in the totals). Of other clients, no traffic shows it; a scan shows whether they could.",
    ),
    part(
        "RFC 9325 section 7.5",
        "Revoked certificates are not accepted",
        &[Log],
        "Relays refuse revoked certificates of the mesh. Of other clients nothing is known.",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;

    use super::*;

    /// The table of docs/audit.md for a profile.
    fn table(profile: Profile) -> String {
        let mut text = String::from(
            "| control | what it asks for | evidence | what that does not show |\n|---|---|---|---|\n",
        );
        for control in profile.controls() {
            let words: Vec<_> = control.evidence.iter().map(|e| e.word()).collect();
            let evidence = match control.strength {
                Strength::None => "none".to_owned(),
                strength => format!("{strength}: {}", words.join(", ")),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {evidence} | {} |",
                control.id, control.about, control.limit
            );
        }
        text
    }

    #[test]
    fn the_documentation_has_the_table() {
        let doc = include_str!("../../../../docs/audit.md");
        for profile in Profile::ALL {
            let part = format!("### `{profile}`: {}\n\n{}", profile.title(), table(profile));
            assert!(doc.contains(&part), "docs/audit.md lacks:\n\n{part}");
        }
    }

    #[test]
    fn every_control_is_told_apart_and_has_evidence_or_says_why_not() {
        for profile in Profile::ALL {
            let mut ids = BTreeSet::new();
            for control in profile.controls() {
                let Control { id, about, strength, evidence, limit } = *control;
                assert!(ids.insert(id) && !about.is_empty() && !limit.is_empty(), "{profile} {id}");
                assert_eq!(evidence.is_empty(), strength == Strength::None, "{profile} {id}");
                let kinds: BTreeSet<_> = evidence.iter().collect();
                assert_eq!(kinds.len(), evidence.len(), "{profile} {id}");
                assert!(!about.contains('|') && !limit.contains('|'));
            }
            assert!(profile.controls().iter().any(|c| c.strength == Strength::None), "{profile}");
            assert_eq!(profile.name().parse::<Profile>(), Ok(profile));
            let json = serde_json::to_string(&profile).unwrap();
            assert_eq!(json, format!("\"{profile}\""));
        }
        assert!("pci".parse::<Profile>().is_err());
    }
}
