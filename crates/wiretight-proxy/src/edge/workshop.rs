//! What the workers of the edge share, and what the connections of one worker share.

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::backend::Pools;
use super::live::EdgeTable;
use super::quic_tls::Secrets;
use super::sites::Sites;
use super::tls::Configs;
use crate::mesh::Mesh;

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) sites: Arc<ArcSwap<Sites>>,
    pub(crate) table: Arc<EdgeTable>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) configs: Arc<Configs>,
    pub(crate) quic: Arc<Secrets>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) cut: watch::Receiver<bool>,
}

/// What a worker's connections share.
pub(crate) struct Workshop {
    pub(crate) sites: Arc<ArcSwap<Sites>>,
    pub(crate) table: Arc<EdgeTable>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) pools: Rc<Pools>,
    /// The drain is over: what still runs is cut.
    pub(crate) cut: watch::Receiver<bool>,
}
