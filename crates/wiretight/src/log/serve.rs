//! Serves the log over HTTP (C2SP tlog-tiles). `GET /checkpoint` is public. `GET /tile/…` is for members of the mesh and
//! auditors, as entries contain the names of services and nodes, or public if so configured.

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use rustls::pki_types::{CertificateDer, UnixTime};
use wiretight_keys::{Role, x509};
use wiretight_proxy::Mesh;
use wiretight_tlog::tile::Tile;

use super::sequencer::Log;
use crate::web::server::{Site, plain};

/// A log and who may read it.
pub struct LogSite {
    pub log: Log,
    /// The mesh whose members may read it.
    pub mesh: Arc<Mesh>,
    /// Whether everyone may read it.
    pub public: bool,
    /// SHA-256 of the public keys of auditors, who may read it.
    pub auditors: Vec<[u8; 32]>,
}

impl Site for LogSite {
    async fn answer(
        &self,
        caller: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path().strip_prefix('/').unwrap_or_default();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "the log is read-only: use GET or HEAD\n".into(),
            );
        }
        match (path, Tile::parse(path)) {
            ("checkpoint", _) => self.checkpoint(),
            (_, None) => {
                let here =
                    "only /checkpoint and /tile/… are served here (https://c2sp.org/tlog-tiles)\n";
                plain(StatusCode::NOT_FOUND, here.into())
            }
            (_, Some(_)) if !self.may_read(caller) => plain(
                StatusCode::FORBIDDEN,
                "only members of the mesh and its auditors may read entries: use a client certificate of one\n"
                    .into(),
            ),
            (_, Some(tile)) => self.tile(tile).await,
        }
    }
}

impl LogSite {
    fn may_read(&self, caller: &[CertificateDer<'static>]) -> bool {
        let Some(leaf) = caller.first() else { return self.public };
        let is_auditor = || x509::key_hash(leaf).is_some_and(|hash| self.auditors.contains(&hash));
        let is_member = || self.mesh.verify(caller, Role::Client, UnixTime::now()).is_ok();
        self.public || is_auditor() || is_member()
    }

    fn checkpoint(&self) -> Response<Full<Bytes>> {
        let Some(checkpoint) = self.log.checkpoint() else {
            let why = "no checkpoint has been cosigned since the log started: try again later\n";
            return plain(StatusCode::SERVICE_UNAVAILABLE, why.into());
        };
        let mut answer = plain(StatusCode::OK, checkpoint.to_string());
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=2"));
        answer
    }

    async fn tile(&self, tile: Tile) -> Response<Full<Bytes>> {
        let bytes = match self.log.tile(tile).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return plain(StatusCode::NOT_FOUND, "there is no such tile\n".into()),
            Err(e) => {
                tracing::error!("cannot serve a tile: {e}");
                return plain(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the tile cannot be read or is damaged\n".into(),
                );
            }
        };
        let mut answer = Response::new(Full::from(bytes));
        let caching = match self.public {
            true => "public, max-age=31536000, immutable",
            false => "private, max-age=31536000, immutable",
        };
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(caching));
        answer
    }
}
