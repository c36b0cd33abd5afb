//! State shared by all workers of the edge, and state shared by the connections of one worker.

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

/// State shared by all workers.
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

/// State shared by a worker's connections.
pub(crate) struct WorkerContext {
    pub(crate) sites: Arc<ArcSwap<Sites>>,
    pub(crate) table: Arc<EdgeTable>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) pools: Rc<Pools>,
    /// Set when the drain is over: remaining connections are closed.
    pub(crate) cut: watch::Receiver<bool>,
}
