//! The log's HTTP (C2SP tlog-tiles): `GET /checkpoint` for everybody; `GET /tile/…` for members of the mesh and auditors,
//! for entries name what they certify; or for everybody, if the configuration says so.

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

/// A log, and who may read it.
pub struct LogSite {
    /// The log.
    pub log: Log,
    /// Whose members may.
    pub mesh: Arc<Mesh>,
    /// Whether everybody may.
    pub public: bool,
    /// SHA-256 of the public keys of outsiders who may.
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
            return plain(StatusCode::METHOD_NOT_ALLOWED, "the log is read only\n".into());
        }
        match (path, Tile::parse(path)) {
            ("checkpoint", _) => self.checkpoint(),
            (_, None) => {
                let here = "here are /checkpoint and /tile/… (https://c2sp.org/tlog-tiles)\n";
                plain(StatusCode::NOT_FOUND, here.into())
            }
            (_, Some(_)) if !self.may_read(caller) => plain(
                StatusCode::FORBIDDEN,
                "entries are for members of the mesh and its auditors: show a certificate of one\n"
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
            let why = "the log has not been witnessed since it started: try again in a moment\n";
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
                tracing::error!("a tile cannot be served: {e}");
                return plain(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be read\n".into());
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
