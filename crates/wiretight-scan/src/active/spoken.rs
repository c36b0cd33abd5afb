//! The supported versions and suites, for the probes that follow.

use super::enumerate::{Seen, agrees_by};
use crate::names::{KeyExchange, Version};

/// The supported versions and suites, for the probes that follow.
pub struct Spoken {
    pub(super) versions: Vec<(Version, Vec<u16>)>,
    pub(super) seen: Vec<(Version, Seen)>,
    /// Versions that may be supported, or may accept more suites.
    pub(super) unclear: Vec<Version>,
}

impl Spoken {
    /// The suites that are accepted with a version; none if it is not supported.
    pub fn suites(&self, version: Version) -> &[u16] {
        self.versions.iter().find(|(v, _)| *v == version).map_or(&[], |(_, suites)| suites)
    }

    /// Other observations with a version.
    pub(super) fn seen(&self, version: Version) -> Option<&Seen> {
        self.seen.iter().find(|(v, _)| *v == version).map(|(_, seen)| seen)
    }

    /// The supported versions, the oldest first.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = Version> {
        self.versions.iter().filter(|(_, suites)| !suites.is_empty()).map(|(v, _)| *v)
    }

    /// A version among these that may be supported, or may accept more suites than are known.
    pub fn unclear(&self, among: impl Fn(Version) -> bool) -> Option<Version> {
        self.unclear.iter().copied().find(|version| among(*version))
    }

    /// The newest version before TLS 1.3, with its suites.
    pub fn newest_before_tls1_3(&self) -> Option<(Version, &[u16])> {
        let version = self.versions().rev().find(|v| *v < Version::Tls1_3)?;
        Some((version, self.suites(version)))
    }

    /// The newest version before TLS 1.3 with suites of this key exchange, and those suites.
    pub fn agreeing_by(&self, kx: KeyExchange) -> Option<(Version, Vec<u16>)> {
        self.versions().rev().filter(|v| *v < Version::Tls1_3).find_map(|version| {
            let suites = self.suites(version).iter().copied();
            let suites: Vec<u16> = suites.filter(|code| agrees_by(*code, kx)).collect();
            (!suites.is_empty()).then_some((version, suites))
        })
    }
}
