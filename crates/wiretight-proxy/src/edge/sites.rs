//! The configured sites, as one value that a reload replaces. Existing connections use the newest value for each
//! request.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyper::header::HeaderValue;
use wiretight_keys::Name;

use super::certificates::{Certificates, SiteCertificate};
use super::client_ca::ClientCa;
use super::hsts;
use super::live::{EdgeTable, SiteCounts};
use super::settings::{At, EdgeSettings, SiteName, SiteSettings, Upstream};
use crate::clock::now;
use crate::mesh::Mesh;
use crate::relay::ApplyError;
use crate::relay::balance::Balancer;
use crate::relay::dial::Dial;
use crate::relay::live::Table;
use crate::relay::settings::DialSettings;

/// A site, shared by all workers.
pub(crate) struct Site {
    pub(crate) settings: SiteSettings,
    pub(crate) counts: Arc<SiteCounts>,
    pub(crate) balancer: Arc<Balancer<Upstream>>,
    pub(crate) dials: BTreeMap<Name, Arc<Dial>>,
    /// The CA of its clients, if they are not members of the mesh.
    pub(crate) client_ca: Option<Arc<ClientCa>>,
    health: Arc<Health>,
}

/// Since when a site has been serving with a valid certificate; seconds since 1970, 0 if it has not.
#[derive(Default)]
pub(crate) struct Health(AtomicU64);

impl Site {
    /// Records a handshake with a valid or invalid certificate.
    pub(crate) fn shown(&self, valid: bool) {
        match valid {
            true => {
                let _ = self.health.0.compare_exchange(0, now(), Relaxed, Relaxed);
            }
            false => self.health.0.store(0, Relaxed),
        }
    }

    /// Whether this is the site's title.
    pub(crate) fn is(&self, title: &SiteName) -> bool {
        self.settings.names.first() == Some(title)
    }

    /// The backends that active health checks found down.
    pub(crate) fn down(&self) -> impl Iterator<Item = &Upstream> {
        let asked = self.settings.health.is_some();
        self.settings.to.iter().filter(move |u| asked && self.balancer.is_down(u))
    }

    pub(crate) fn healthy_since(&self) -> Option<u64> {
        Some(self.health.0.load(Relaxed)).filter(|since| *since > 0)
    }

    /// The current Strict-Transport-Security header.
    pub(crate) fn hsts(&self) -> Option<HeaderValue> {
        let healthy_for = self.healthy_since().map_or(0, |since| now().saturating_sub(since));
        hsts::value(self.settings.hsts, healthy_for).map(HeaderValue::from_static)
    }
}

#[derive(Default)]
pub(crate) struct Sites {
    by_name: HashMap<SiteName, Arc<Site>>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) settings: EdgeSettings,
}

/// The dependencies of sites.
pub(crate) struct Material<'a> {
    pub(crate) mesh: &'a Arc<Mesh>,
    pub(crate) relay: &'a Arc<Table>,
    pub(crate) table: &'a Arc<EdgeTable>,
    pub(crate) certificates: &'a Arc<Certificates>,
    /// Since when sites are healthy, from an earlier run.
    pub(crate) healthy_since: &'a BTreeMap<SiteName, u64>,
}

impl Sites {
    /// State in `before` (balancer, health) is kept.
    pub(crate) fn new(
        settings: &EdgeSettings,
        before: &Sites,
        material: &Material<'_>,
    ) -> Result<Sites, ApplyError> {
        let mut by_name = HashMap::new();
        for site in &settings.sites {
            let Some(title) = site.names.first() else { continue };
            let old = before.by_name.get(title);
            let mut dials = BTreeMap::new();
            for upstream in &site.to {
                if let At::Mesh(service) = &upstream.at {
                    let dial = mesh_dial(service, site, old.map(|o| &**o), material)?;
                    dials.insert(service.clone(), dial);
                }
            }
            let client_ca = site.client_ca.as_ref().map(|path| client_ca(path, old.map(|o| &**o)));
            let known = material.healthy_since.get(title).copied().unwrap_or(0);
            let health = || Arc::new(Health(AtomicU64::new(known)));
            let new = Arc::new(Site {
                settings: site.clone(),
                counts: material.table.counts(title),
                balancer: old.map(|o| o.balancer.clone()).unwrap_or_default(),
                health: old.map_or_else(health, |o| o.health.clone()),
                dials,
                client_ca: client_ca.transpose()?,
            });
            for name in &site.names {
                by_name.insert(name.clone(), new.clone());
            }
        }
        let certificates = material.certificates.clone();
        Ok(Sites { by_name, certificates, settings: settings.clone() })
    }

    /// The host of a handshake, in lower case: the client's server name, or the default.
    pub(crate) fn host(&self, named: Option<&str>) -> Option<String> {
        match named {
            Some(name) => Some(name.to_ascii_lowercase()),
            None => self.settings.default_host().map(str::to_owned),
        }
    }

    /// The site for a host, and its matching name. `host` must be in lower case.
    pub(crate) fn find(&self, host: &str) -> Option<(&SiteName, &Arc<Site>)> {
        let exact = self.by_name.get_key_value(host);
        exact.or_else(|| {
            let (_, rest) = host.split_once('.')?;
            let below = self.by_name.get_key_value(format!("*.{rest}").as_str());
            below.or_else(|| self.by_name.get_key_value("*"))
        })
    }

    /// A site's certificate for one of its hosts.
    pub(crate) fn certificate(
        &self,
        host: &str,
        (name, site): (&SiteName, &Arc<Site>),
    ) -> Option<Arc<SiteCertificate>> {
        match site.settings.on_demand {
            // An expired one is ignored, so that a new one is requested.
            true => self.certificates.get(host).filter(|c| c.is_valid()),
            false => self.certificates.get(name.as_str()),
        }
    }

    /// Each site once.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.settings.sites.iter().filter_map(|s| self.by_name.get(s.names.first()?))
    }
}

/// The CA in a file; reuses the previous one if it is the same.
fn client_ca(path: &Path, before: Option<&Site>) -> Result<Arc<ClientCa>, ApplyError> {
    let new = ClientCa::read(path)
        .map_err(|detail| ApplyError::ClientCa { path: path.to_owned(), detail })?;
    let old = before.and_then(|b| b.client_ca.as_ref()).filter(|old| old.is_same(&new));
    Ok(old.cloned().unwrap_or_else(|| Arc::new(new)))
}

/// The relay's dial for a service, without a listener: the edge's workers pass connections to it.
fn mesh_dial(
    service: &Name,
    site: &SiteSettings,
    before: Option<&Site>,
    material: &Material<'_>,
) -> Result<Arc<Dial>, rustls::Error> {
    let settings = DialSettings {
        listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        service: service.clone(),
        identity: site.identity.clone(),
        to: Vec::new(),
        idle_timeout: None,
    };
    let old = before.and_then(|b| b.dials.get(service));
    if let Some(same) = old.filter(|o| o.settings == settings) {
        return Ok(same.clone());
    }
    let dial = Dial::new(settings, material.mesh, material.relay, old.map(|o| &**o))?;
    Ok(Arc::new(dial))
}
