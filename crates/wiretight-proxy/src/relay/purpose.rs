//! What a listener is for, as a reload replaces it.

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

/// What a listener is for; replaced in place by a reload.
pub(crate) enum Purpose {
    Service(Arc<Service>),
    Dial(Arc<Dial>),
    Intercept(Arc<Intercept>),
}

/// A service as it is configured now. A reload makes a new one; sessions that run keep the old.
pub(crate) struct Service {
    pub(crate) settings: ServiceSettings,
    pub(super) mesh: Arc<Mesh>,
    pub(super) table: Arc<Table>,
    pub(super) totals: Arc<Totals>,
    pub(super) tls: Arc<ServerConfig>,
    /// The same without an ALPN.
    pub(super) raw_tls: Arc<ServerConfig>,
    /// The same with `h2`.
    pub(super) h2_tls: Arc<ServerConfig>,
    pub(super) balancer: Arc<Balancer<Backend>>,
}

/// What a listener is for, and until when: one for all of its connections.
pub(crate) struct Terms {
    pub(super) purpose: Arc<ArcSwap<Purpose>>,
    pub(super) removed: watch::Receiver<bool>,
    pub(super) draining: watch::Receiver<bool>,
}

impl Terms {
    /// The newest configuration of its service, if it still is a service's.
    pub(crate) fn service(&self) -> Option<Arc<Service>> {
        newest(&self.purpose)
    }

    /// Ends when the service was removed from the configuration, or the process is about to stop.
    pub(crate) async fn over(&self) {
        let (mut removed, mut draining) = (self.removed.clone(), self.draining.clone());
        tokio::select! {
            _ = removed.wait_for(|r| *r) => {}
            _ = draining.wait_for(|d| *d) => {}
        }
    }

    /// Whether that is so now.
    pub(crate) fn are_over(&self) -> bool {
        self.is_removed() || *self.draining.borrow()
    }

    /// Whether the service was removed.
    pub(crate) fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }
}

/// The newest configuration of a service, if the listener still is that service.
pub(crate) fn newest(slot: &Arc<ArcSwap<Purpose>>) -> Option<Arc<Service>> {
    match &**slot.load() {
        Purpose::Service(service) => Some(service.clone()),
        _ => None,
    }
}
