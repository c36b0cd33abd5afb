//! Hosts that get their certificate when their first client connects.

use super::rig;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::AlertDescription;
use tokio::sync::mpsc::Receiver;
use wiretight_proxy::edge::settings::{Limits, SiteName};
use wiretight_proxy::edge::{Demand, Source};

use rig::edge::{EdgeRig, Raw, SITE, http_backend, site};

const SHOP: &str = "shop.service.test.example";

/// An edge with a named site and one for any host, and the queue of demands for certificates.
fn any() -> (EdgeRig, Receiver<Demand>) {
    let to = [http_backend("one", false).to_string()];
    let mut rig = EdgeRig::with(&to, |settings| {
        settings.limits = Limits { handshake: Duration::from_secs(2), ..Limits::default() };
    });
    let mut any = site(SITE, &to);
    (any.names, any.on_demand) = (vec![SiteName::any()], true);
    rig.settings.sites.push(any);
    rig.edge.apply(&rig.settings).unwrap();
    let demands = rig.certificates.demands();
    (rig, demands)
}

/// The result for a client of a host, while `serve` handles the demands.
fn fetch(
    rig: &EdgeRig,
    host: &str,
    look: impl FnOnce() + Send,
) -> Result<String, Option<AlertDescription>> {
    std::thread::scope(|scope| {
        scope.spawn(look);
        let mut raw = Raw::over(rig::connect(rig.https()), rig.client(&["http/1.1"]), host);
        let get = format!("GET /name HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        raw.0.write_all(get.as_bytes()).map_err(|error| rig::tls::alert(&error))?;
        Ok(raw.rest())
    })
}

#[test]
fn a_host_is_served_once_it_has_a_certificate_and_rejected_without() {
    let (rig, mut demands) = any();
    let give = |demand: &Demand, secs| {
        let certificate = Arc::new(rig.certificate(&demand.host, secs));
        rig.certificates.set(Source::Acme, BTreeMap::from([(demand.host.clone(), certificate)]));
    };
    // First denied, then granted; names are in lower case.
    let no = Err(Some(AlertDescription::InternalError));
    assert_eq!(fetch(&rig, SHOP, || drop(demands.blocking_recv().unwrap())), no);
    let upper = SHOP.to_uppercase();
    let answer = fetch(&rig, &upper, || {
        let demand = demands.blocking_recv().unwrap();
        assert_eq!(demand.host.as_str(), SHOP);
        give(&demand, 2);
    });
    assert!(answer.unwrap().ends_with("one"));
    // There is no demand while it is valid, nor ever for a named site.
    for host in [SHOP, SITE] {
        assert!(fetch(&rig, host, || ()).unwrap().ends_with("one"), "{host}");
    }
    assert!(demands.try_recv().is_err());
    let status = rig.edge.status();
    let hosts: Vec<_> = status.sites.iter().map(|s| s.hosts).collect();
    assert_eq!(hosts, [None, Some(1)]);
    assert!(status.sites[1].not_after < status.sites[0].not_after);
    // An expired certificate is requested again.
    std::thread::sleep(Duration::from_millis(3100));
    let anew = fetch(&rig, SHOP, || give(&demands.blocking_recv().unwrap(), 3600));
    assert!(anew.unwrap().ends_with("one"));
    // A request for another host than that of the handshake is misdirected, even if both belong to the same site.
    let mut raw = Raw::over(rig::connect(rig.https()), rig.client(&["http/1.1"]), SHOP);
    raw.send("GET /name HTTP/1.1\r\nHost: b.example.org\r\nConnection: close\r\n\r\n");
    assert!(raw.rest().starts_with("HTTP/1.1 421"));
}

#[test]
fn waiting_for_certificates_is_limited_in_time_and_number() {
    let (rig, mut demands) = any();
    let begun = Instant::now();
    let mut kept = None;
    let late = fetch(&rig, SHOP, || kept = demands.blocking_recv());
    assert_eq!(late, Err(Some(AlertDescription::InternalError)));
    assert!(kept.is_some() && begun.elapsed() >= Duration::from_millis(1500));
    // Nobody handles demands: above the limit, clients are rejected at once, and the named site is still served.
    let waits = |_| {
        let mut raw = Raw::over(rig::connect(rig.https()), rig.client(&["http/1.1"]), SHOP);
        let _ = raw.0.conn.write_tls(&mut raw.0.sock);
        raw
    };
    let waiting: Vec<Raw> = (0..64).map(waits).collect();
    rig::eventually("all of them wait", || demands.len() == 64);
    assert_eq!(fetch(&rig, SHOP, || ()), Err(Some(AlertDescription::InternalError)));
    assert!(fetch(&rig, SITE, || ()).unwrap().ends_with("one"));
    drop(waiting);
}
