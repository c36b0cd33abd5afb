//! Releases and their proofs.

use wiretight::release::entry::{Source, parse_files};
use wiretight::release::{
    Artifact, Entry, ReleasePolicy, ReleaseProof, SignedEntry, check as prove,
};
use wiretight_tlog::Hash;

/// A policy that no input is signed for.
const POLICY: &str = "log sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8
quorum none
publisher sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8
rebuilds 0
max-age any
";

/// Entries of a release log, the two files that a build writes, a release with its proofs, and a policy.
///
/// Properties checked: each value has exactly one encoding; names of files are names; and nothing is proved that nobody
/// has signed.
pub fn release(data: &[u8]) {
    if let Ok(proof) = ReleaseProof::parse(data) {
        assert_eq!(ReleaseProof::parse(proof.to_string().as_bytes()).ok().as_ref(), Some(&proof));
        let policy = ReleasePolicy::parse(POLICY.as_bytes()).expect("a policy");
        if let Entry::Release(release) = proof.release.entry.entry() {
            let file = release.files.first().expect("a release has files");
            let artifact = Artifact { sha256: file.sha256, size: file.size };
            assert!(prove(&policy, &proof, artifact, 1_800_000_000, None).is_err());
        }
    }
    let _ = ReleasePolicy::parse(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(entry) = SignedEntry::parse(text) {
        assert_eq!(entry.to_string(), text);
        assert_eq!(entry.leaf(), Hash::leaf(data));
        assert!(!entry.signed_by(&super::log_key()), "nobody has signed it");
    }
    if let Ok(entry) = Entry::parse(text) {
        assert_eq!(entry.to_string().trim_end(), text.trim_end());
    }
    if let Ok(files) = parse_files(text) {
        assert!(files.iter().all(|file| !file.name.contains(['/', '\0', '\n'])));
        assert!(files.is_sorted_by(|a, b| a.name < b.name));
    }
    if let Ok(source) = Source::parse(text) {
        assert_eq!(Source::parse(&source.to_string()), Ok(source));
    }
}
