//! Clients with a certificate: members of the mesh, or clients of the site's own CA.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use wiretight_keys::web::ClientLeaf;
use wiretight_keys::{Role, VerifiedPeer};

use super::client_ca::ClientCa;
use super::sites::Site;
use crate::clock::now;
use crate::mesh::Mesh;
use crate::reason::Reason;

/// A client's verified identity.
pub(crate) struct Peer {
    who: Who,
    /// For the log.
    pub(crate) name: Arc<str>,
    /// For programs: the value of `X-Forwarded-Client-Cert`.
    pub(crate) header: Box<str>,
}

enum Who {
    Member(VerifiedPeer),
    Vouched { chain: Vec<CertificateDer<'static>>, not_after: u64, by: Arc<ClientCa> },
}

impl Peer {
    /// The client that presented this chain in a handshake for the site; `None` if the site does not require
    /// certificates. The error is the reason and the detail.
    pub(crate) fn of(
        site: &Site,
        mesh: &Mesh,
        chain: Option<&[CertificateDer<'static>]>,
    ) -> Result<Option<Peer>, (Reason, String)> {
        let none = || (Reason::NoCertificate, "the client presented no certificate".to_owned());
        if site.settings.clients.is_some() {
            let peer = mesh.verify(chain.ok_or_else(none)?, Role::Client, UnixTime::now());
            let peer = peer.map_err(|refusal| (Reason::from(&refusal), refusal.to_string()))?;
            let name = peer.id().to_string();
            let header = format!("URI={name}").into();
            return Ok(Some(Peer { who: Who::Member(peer), name: name.into(), header }));
        }
        let Some(by) = site.client_ca.clone() else { return Ok(None) };
        let chain = chain.ok_or_else(none)?.to_vec();
        let leaf = chain.first().ok_or_else(none)?;
        let leaf = ClientLeaf::parse(leaf).map_err(|e| (Reason::BadCertificate, e.to_string()))?;
        // Without a URI: a URI from the site's own CA must not be mistaken for the identity of a mesh member.
        let header = format!("Hash={};Subject=\"{}\"", leaf.sha256, escaped(&leaf.subject)).into();
        let name = escaped(&leaf.subject).into();
        let who = Who::Vouched { not_after: leaf.not_after, chain, by };
        Ok(Some(Peer { who, name, header }))
    }

    /// Whether the client may use the site now: identities can expire, be revoked, or be removed from the list.
    pub(crate) fn may(&self, site: &Site, mesh: &Mesh) -> bool {
        match (&self.who, &site.settings.clients, &site.client_ca) {
            (Who::Member(peer), Some(clients), _) => {
                now() <= peer.not_after() && mesh.stands_by(peer) && clients.contains(&peer.id().id)
            }
            (Who::Vouched { chain, not_after, by }, None, Some(ca)) => {
                now() <= *not_after && (Arc::ptr_eq(by, ca) || ca.vouches_for(chain))
            }
            _ => false,
        }
    }

    /// Waits until the client is no longer trusted by the mesh.
    pub(crate) async fn lost(&self, mesh: &Mesh) {
        let Who::Member(peer) = &self.who else { return std::future::pending().await };
        let mut changes = mesh.changes();
        while mesh.stands_by(peer) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// For a quoted string in a header: percent-encodes what could end the string and anything except printable ASCII.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | b'%' | b';' => out += &format!("%{byte:02X}"),
            0x20..0x7F => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_cannot_break_out_of_its_quotes() {
        assert_eq!(escaped("CN=Ada,O=x"), "CN=Ada,O=x");
        assert_eq!(escaped("a\";URI=spiffe://x\r\nä%"), "a%22%3BURI=spiffe://x%0D%0A%C3%A4%25");
    }
}
