//! The metrics of a monitor, for Prometheus.

use std::fmt;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustls::pki_types::CertificateDer;

use super::AlertKind;
use super::alarm::Alarm;
use super::status::{LogStatus, State, Status};
use super::watch::Shown;
use crate::exposition::{self, Labels, counter, gauge, one};
use crate::web::server::{Site, plain};

/// Answers `GET /metrics` of a monitor.
pub struct Page {
    pub(super) shown: Arc<Shown>,
    pub(super) alarm: Alarm,
}

impl Site for Page {
    async fn answer(
        &self,
        _caller: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => {
                let status = self.shown.status();
                let raised = self.alarm.raised();
                exposition::answer(request.headers(), Box::new(Snapshot { status, raised }))
            }
            _ => plain(StatusCode::NOT_FOUND, "only GET /metrics is served here\n".into()),
        }
    }
}

#[derive(Debug)]
struct Snapshot {
    status: Status,
    /// How often each alert was raised since the start, by log.
    raised: Vec<(AlertKind, String, u64)>,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let Snapshot { status, raised } = self;
        let log = |of: &LogStatus| vec![("log", of.log.clone())];
        let all =
            |value: fn(&LogStatus) -> u64| status.logs.iter().map(move |of| (log(of), value(of)));
        let known = |value: fn(&LogStatus) -> Option<u64>| {
            status.logs.iter().filter_map(move |of| Some((log(of), value(of)?)))
        };
        gauge(e, "monitor_log_size", "Entries that the log has signed", all(|of| of.size))?;
        gauge(e, "monitor_log_read", "Entries that the monitor has read", all(|of| of.read))?;
        let help = "When the witnesses had cosigned the newest checkpoint, in Unix time";
        gauge(e, "monitor_log_witnessed_timestamp_seconds", help, known(|of| of.witnessed_at))?;
        let help = "When the log was last read completely, in Unix time";
        gauge(e, "monitor_log_complete_timestamp_seconds", help, known(|of| of.complete_at))?;
        let blind =
            |of: &LogStatus| (log(of), u64::from(status.of_log(of, status.time) == State::Blind));
        let help = "1 while the log cannot be read to its signed size";
        gauge(e, "monitor_log_blind", help, status.logs.iter().map(blind))?;
        let help = "1 if the last check found that the log misbehaves";
        gauge(e, "monitor_log_misconduct", help, all(|of| of.misconduct.into()))?;
        // From zero, so that the first alert is an increase.
        let raised = status.logs.iter().flat_map(|of| {
            AlertKind::ALL.map(|kind| {
                let is_it = |(k, log, _): &&(AlertKind, String, u64)| *k == kind && *log == of.log;
                let count = raised.iter().find(is_it).map_or(0, |(_, _, count)| *count);
                (vec![("log", of.log.clone()), ("kind", kind.as_str().to_owned())], count)
            })
        });
        counter(e, "monitor_alerts", "Alerts raised, by kind", raised)?;
        let help = "Alerts that the webhook has not accepted yet";
        gauge(e, "monitor_alerts_waiting", help, one(status.waiting_alerts))?;
        let version: Labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauge(e, "build_info", "The version of the running process", [(version, 1u64)])
    }
}
