//! What a listener is for. A reload can replace it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::watch;

use super::balance::Balancer;
use super::dial::Dial;
use super::intercept::Intercept;
use super::live::{Table, Totals};
use super::settings::ServiceSettings;
use crate::mesh::Mesh;
use crate::network::Backend;

/// What a listener is for. A reload replaces it in place.
pub(crate) enum Purpose {
    Service(Arc<Service>),
    Dial(Arc<Dial>),
    Intercept(Arc<Intercept>),
}

/// A service with its current configuration. A reload makes a new one; running sessions keep the old one.
pub(crate) struct Service {
    pub(crate) settings: ServiceSettings,
    pub(super) mesh: Arc<Mesh>,
    pub(super) table: Arc<Table>,
    pub(super) totals: Arc<Totals>,
    pub(super) tls: Arc<ServerConfig>,
    /// The same without ALPN.
    pub(super) raw_tls: Arc<ServerConfig>,
    /// The same with `h2`.
    pub(super) h2_tls: Arc<ServerConfig>,
    pub(super) balancer: Arc<Balancer<Backend>>,
}

/// What a listener is for, and the signals that end its use. Shared by all of its connections.
pub(crate) struct Terms {
    pub(super) purpose: Arc<ArcSwap<Purpose>>,
    pub(super) removed: watch::Receiver<bool>,
    pub(super) draining: watch::Receiver<bool>,
}

impl Terms {
    /// The current configuration of the service, if the listener is still for a service.
    pub(crate) fn service(&self) -> Option<Arc<Service>> {
        newest(&self.purpose)
    }

    /// Returns when the service was removed from the configuration or the process is stopping.
    pub(crate) async fn over(&self) {
        let (mut removed, mut draining) = (self.removed.clone(), self.draining.clone());
        tokio::select! {
            _ = removed.wait_for(|r| *r) => {}
            _ = draining.wait_for(|d| *d) => {}
        }
    }

    /// Whether [`over`](Self::over) would return now.
    pub(crate) fn are_over(&self) -> bool {
        self.is_removed() || *self.draining.borrow()
    }

    /// Whether the service was removed from the configuration.
    pub(crate) fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }
}

/// The current configuration of a service, if the listener is still for a service.
pub(crate) fn newest(slot: &Arc<ArcSwap<Purpose>>) -> Option<Arc<Service>> {
    match &**slot.load() {
        Purpose::Service(service) => Some(service.clone()),
        _ => None,
    }
}
