//! Site certificates from the mesh's authority, on the authority's machine: for private names, without delay. Clients
//! trust them by the mesh's trust bundle. They are kept only in memory and renewed at half of their lifetime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use wiretight_keys::{Signer, SigningKey, x509};
use wiretight_proxy::Certificates;
use wiretight_proxy::clock::now;
use wiretight_proxy::edge::{SiteCertificate, Source};

use crate::authority::AuthorityHandle;
use crate::config::InternalSite;
use crate::logging::chain;

/// How often certificates are checked for renewal.
const TICK: Duration = Duration::from_secs(10);

/// Manages the certificates that the authority issues for sites.
pub(crate) struct InternalCertificates {
    authority: AuthorityHandle,
    edge: Arc<Certificates>,
    sites: Mutex<Vec<InternalSite>>,
    errors: Mutex<BTreeMap<String, String>>,
    held: tokio::sync::Mutex<Vec<Held>>,
    woken: Notify,
}

struct Held {
    site: InternalSite,
    certificate: Arc<SiteCertificate>,
    renew_at: u64,
}

impl InternalCertificates {
    pub(crate) fn new(authority: AuthorityHandle, edge: Arc<Certificates>) -> Arc<Self> {
        let (sites, errors, held, woken) = Default::default();
        Arc::new(InternalCertificates { authority, edge, sites, errors, held, woken })
    }

    /// Sets the sites that need certificates. When this returns, each has one or an error.
    pub(crate) async fn update(&self, sites: Vec<InternalSite>) {
        *self.sites.lock() = sites;
        self.step().await;
        self.woken.notify_one();
    }

    /// Why a site has no new certificate, by the site's first name.
    pub(crate) fn errors(&self) -> BTreeMap<String, String> {
        self.errors.lock().clone()
    }

    /// Renews certificates forever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.woken.notified() => {}
            }
            self.step().await;
        }
    }

    async fn step(&self) {
        let mut held = self.held.lock().await;
        let sites = self.sites.lock().clone();
        let before = held.len();
        held.retain(|h| sites.contains(&h.site));
        let (mut changed, mut errors) = (held.len() != before, BTreeMap::new());
        for site in sites {
            let at = held.iter().position(|h| h.site == site);
            if at.is_some_and(|i| held[i].renew_at > now() && held[i].certificate.is_valid()) {
                continue;
            }
            match self.issue(&site).await {
                Ok(certificate) => {
                    let life = certificate.period().not_after.saturating_sub(now());
                    let renew_at = now() + life / 2;
                    held.extend(at.is_none().then(|| Held {
                        site: site.clone(),
                        certificate: certificate.clone(),
                        renew_at,
                    }));
                    if let Some(i) = at {
                        (held[i].certificate, held[i].renew_at) = (certificate, renew_at);
                    }
                    changed = true;
                }
                Err(error) => {
                    let error = chain(&*error);
                    let title = site.names.first().map(ToString::to_string).unwrap_or_default();
                    tracing::error!(site = title, error, "cannot issue a site certificate");
                    errors.insert(title, error);
                }
            }
        }
        *self.errors.lock() = errors;
        if changed {
            let by_name = held.iter().flat_map(|h| {
                h.site.names.iter().map(|name| (name.clone(), h.certificate.clone()))
            });
            self.edge.set(Source::Authority, by_name.collect());
        }
    }

    async fn issue(&self, site: &InternalSite) -> anyhow::Result<Arc<SiteCertificate>> {
        let (key, names) =
            (SigningKey::generate()?, site.names.iter().map(ToString::to_string).collect());
        let issued = self.authority.issue_web(names, &key.public_key(), site.ttl).await?;
        let (pem, key) = (x509::to_pem(&issued), key.to_pem());
        let certificate = SiteCertificate::from_pem(pem.as_bytes(), key.as_bytes(), &site.names)?;
        Ok(Arc::new(certificate))
    }
}
