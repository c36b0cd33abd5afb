//! Collects the facts from the authority.

use std::collections::BTreeSet;

use wiretight_keys::token::hex;
use wiretight_keys::x509::{fingerprint, key_hash};
use wiretight_proxy::clock::now;
use wiretight_tlog::cosignature::Algorithm;

use super::facts::{Facts, KeyFacts, NodeFacts};
use crate::authority::{AuthorityError, AuthorityHandle, CaStatus, RootStanding};

/// What the authority knows now, with the claims that overlap a time; `to` is its last second.
pub async fn collect(
    authority: &AuthorityHandle,
    from: u64,
    to: u64,
) -> Result<Facts, AuthorityError> {
    let ca = authority.ca_status();
    let mut reports = authority.reports();
    let nodes = authority.list_nodes().await?.into_iter().map(|node| {
        let known = reports.remove(&node.name).unwrap_or_default();
        let services: BTreeSet<_> = node.instances.into_iter().map(|i| i.service).collect();
        NodeFacts {
            joined_at: node.joined_at,
            connected: node.connected,
            last_seen: node.last_seen,
            current: node.connected.then(|| !ca.behind.contains(&node.name)),
            services: services.into_iter().collect(),
            report: known.report,
            reported_at: known.at,
            last_hour: known.last_hour,
            release: node.release,
            name: node.name,
        }
    });
    Ok(Facts {
        at: now(),
        trust_domain: ca.trust_domain.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nodes: nodes.collect(),
        periods: authority.claims(from, to).await?,
        since: authority.claims_since().await?,
        keys: keys(authority, &ca),
        ca,
    })
}

/// Who holds which key. This release keeps all keys of the authority in files.
fn keys(authority: &AuthorityHandle, ca: &CaStatus) -> Vec<KeyFacts> {
    let key_of = |der: &[u8]| key_hash(der).map(|hash| hex(&hash)).unwrap_or_default();
    let roots = authority.roots().into_iter().map(|root| {
        let print = hex(&fingerprint(&root));
        let status = ca.roots.iter().find(|r| r.fingerprint == print);
        let name = match status.map(|r| r.standing) {
            Some(standing) if standing != RootStanding::Active => {
                format!("root ({})", standing.word())
            }
            _ => "root".to_owned(),
        };
        KeyFacts {
            name,
            algorithm: "P-256".into(),
            holder: "The operator of the authority, in a file on the authority's machine. The file is read when an intermediate is issued.".into(),
            power: "Can issue any identity of the mesh. A node that requires transparency accepts only identities that are in the log.".into(),
            fingerprint: key_of(&root),
            expires: status.map(|r| r.not_after),
        }
    });
    let intermediate = KeyFacts {
        name: "intermediate".into(),
        algorithm: "P-256".into(),
        holder: "The operator of the authority, in a file on the authority's machine and in the memory of the running authority.".into(),
        power: "Can issue any identity of the mesh until it expires. It is replaced at half of its lifetime.".into(),
        fingerprint: key_of(&authority.intermediate()),
        expires: Some(ca.intermediate.not_after),
    };
    let policy = authority.log().policy();
    let alone = match policy.wants_witnesses() {
        true => {
            "Signs the log. To show two readers different logs, it would also need a quorum of the witnesses."
        }
        false => {
            "Signs the log. There are no witnesses, so it could show two readers different logs."
        }
    };
    let log = KeyFacts {
        name: "log".into(),
        algorithm: "Ed25519".into(),
        holder: "The operator of the authority, in a file on the authority's machine and in the memory of the running authority.".into(),
        power: alone.into(),
        fingerprint: ca.log.vkey.clone(),
        expires: None,
    };
    let witnesses = policy.witnesses().iter().map(|witness| KeyFacts {
        name: format!("witness {}", witness.name),
        algorithm: match witness.key.algorithm() {
            Algorithm::Ed25519 => "Ed25519".into(),
            Algorithm::MlDsa44 => "ML-DSA-44".into(),
        },
        holder: format!("The operator of the witness {}. Whether that is somebody else than the operator of the authority cannot be seen here.", witness.name),
        power: "Confirms that the log only grows. It cannot issue identities or change the log.".into(),
        fingerprint: witness.key.to_string(),
        expires: None,
    });
    let witnesses: Vec<_> = witnesses.collect();
    roots.chain([intermediate, log]).chain(witnesses).collect()
}
