//! A stream to the authority: opened with a Hello, then messages in both directions until it fails.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout};
use wiretight_keys::{Id, Serial};
use wiretight_proxy::Identity;
use wiretight_proxy::clock::now;
use wiretight_proxy::network::HostPort;
use wiretight_scan::passive::totals::Hour;

use super::errands::Sharing;
use super::report::Reported;
use super::{Command, Pending, Reply, Run, TICK, Trouble, next, now_ms};
use crate::agent::Instance;
use crate::agent::link::{self, LinkError, Stream};
use crate::clock::uptime;
use crate::control::{Blob, Code, Denial, FromAuthority, FromNode, MAX_SIGN, Offer, Reader};

/// Open certificate requests at a time, if the authority does not say how many it accepts.
const IN_FLIGHT: usize = 4;
/// Pause between announcements while certificates are being requested.
const GATHER: Duration = Duration::from_secs(1);

/// A live stream.
pub(super) struct Link {
    pub(super) reader: Reader<ReadHalf<Stream>>,
    pub(super) writer: WriteHalf<Stream>,
    pub(super) limit: Duration,
    pub(super) pending: BTreeMap<u64, (Pending, Instant)>,
    /// How many open requests the authority accepts.
    pub(super) most: usize,
    pub(super) sharing: Sharing,
    pub(super) reported: Reported,
    pub(super) announced: Option<Vec<Offer>>,
    pub(super) announced_at: Instant,
    pub(super) local: Option<IpAddr>,
    /// The authority has sent a message, so it accepted the certificate.
    pub(super) confirmed: bool,
    /// Of that certificate.
    pub(super) serial: Option<Serial>,
    /// From then on, reconnect with a newer certificate if there is one.
    pub(super) stale_at: u64,
}

impl Link {
    /// How many more certificates may be requested now.
    pub(super) fn room(&self) -> usize {
        self.most.saturating_sub(self.pending.len())
    }

    /// The authority does not know a type of message. If totals were sent, it is older than they are.
    fn refuse_totals(&mut self) {
        refuse_totals(&mut self.pending);
    }

    pub(super) async fn send(&mut self, message: &FromNode) -> Result<(), Trouble> {
        match timeout(self.limit, link::send(&mut self.writer, message)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Trouble::Retry("the authority does not read".into())),
        }
    }
}

fn refuse_totals(pending: &mut BTreeMap<u64, (Pending, Instant)>) {
    let totals = pending.extract_if(.., |_, (pending, _)| matches!(pending, Pending::Totals(_)));
    for (_, (pending, _)) in totals {
        if let Pending::Totals(reply) = pending {
            let why = "the authority is an older version, which does not store totals: update it";
            let _ = reply.send(Err(why.into()));
        }
    }
}

impl Run {
    /// Connects to the authority and serves the stream until it fails.
    pub(super) async fn attempt(&mut self) -> Result<std::convert::Infallible, Trouble> {
        let own = Id::Node(self.params.node.clone());
        if self.distrusted || self.mesh.identity(&own).is_none() {
            self.enter().await?;
        }
        let addresses = self.addresses(None);
        let limit = self.params.times.answer;
        let opened = link::open(&addresses, &self.mesh, &self.params.node, limit).await;
        match opened {
            Ok((stream, addr)) => {
                let mut link = self.link(stream);
                let trouble = match self.stream(&mut link, addr).await {
                    Ok(never) => match never {},
                    Err(trouble) => trouble,
                };
                for (pending, _) in std::mem::take(&mut link.pending).into_values() {
                    let why = "the connection to the authority failed. Try again in a moment.";
                    match pending {
                        Pending::Fetch(reply) => drop(reply.send(Err(why.into()))),
                        Pending::Totals(reply) => drop(reply.send(Err(why.into()))),
                        Pending::Renew { .. } | Pending::Report => {}
                    }
                }
                // In TLS 1.3 the client learns only after the handshake that its certificate was refused.
                self.distrusted = !link.confirmed;
                Err(trouble)
            }
            Err(e) => {
                // The authority has another root: try a new token, if there is one.
                self.distrusted = matches!(e, LinkError::NotTheAuthority { .. });
                Err(e.into())
            }
        }
    }

    // ---- The stream.

    pub(super) fn own(&self) -> Option<&Arc<Identity>> {
        self.identities.get(&Id::Node(self.params.node.clone()))
    }

    fn link(&self, stream: Stream) -> Link {
        let local = stream.get_ref().0.local_addr().ok().map(|a| a.ip());
        let leaf = self.own().map(|i| i.leaf());
        let stale = leaf.map(|l| l.period).map(|p| p.not_after - (p.not_after - p.not_before) / 5);
        let (reader, writer) = tokio::io::split(stream);
        Link {
            reader: Reader::new(reader),
            writer,
            limit: self.params.times.answer,
            pending: BTreeMap::new(),
            most: IN_FLIGHT,
            sharing: Sharing::default(),
            reported: Reported::default(),
            announced: None,
            announced_at: Instant::now(),
            local,
            confirmed: false,
            serial: leaf.map(|l| l.serial),
            stale_at: stale.unwrap_or(u64::MAX),
        }
    }

    async fn stream(
        &mut self,
        link: &mut Link,
        addr: HostPort,
    ) -> Result<std::convert::Infallible, Trouble> {
        let instances = self.offers(link.local);
        self.announced.clone_from(&instances);
        link.announced = Some(instances.clone());
        link.announced_at = Instant::now();
        self.report(|s| s.refused = None);
        let (have, digest) = (self.state.version, self.state.digest.clone());
        link.send(&FromNode::Hello { have, digest, instances: instances.into() }).await?;
        // A response means that the certificate was accepted.
        link.send(&FromNode::Ping).await?;
        let times = self.params.times;
        let (mut heard, mut ping_at) = (Instant::now(), Instant::now() + times.ping);
        loop {
            if self.look_at_the_clock() {
                link.stale_at = 0;
            }
            self.begin_requests(link).await?;
            self.announce(link).await?;
            self.send_report(link).await?;
            let due = Instant::now() + self.next_due(link);
            let may_share = link.confirmed && link.sharing.has_room();
            tokio::select! {
                message = link.reader.next::<FromAuthority>() => {
                    heard = Instant::now();
                    if !link.confirmed {
                        link.confirmed = message.is_ok();
                    }
                    let message = message?;
                    let first = !self.status.borrow().connected;
                    if first {
                        tracing::info!(authority = %addr, "connected to the authority");
                    }
                    if link.confirmed && self.membership.is_none() {
                        let joined = self.remember(vec![addr.clone()]);
                        self.membership = Some(joined.clone());
                        self.save(move |disk| disk.save_membership(&joined)).await;
                    }
                    let read = self.messages(link, message).await;
                    self.put_new();
                    read?;
                    self.heard = uptime();
                    self.note_contact().await;
                    self.report(|s| {
                        (s.connected, s.last_contact) = (true, Some(now()));
                        s.authority = Some(addr.clone());
                        if first {
                            s.last_error = None;
                        }
                    });
                }
                Some(command) = self.inbox.recv() => {
                    let given = self.params.authority.clone();
                    match command {
                        Command::Totals(hour, reply) => self.totals(link, *hour, reply).await?,
                        command => self.command(command).await,
                    }
                    let new = &self.params.authority;
                    if *new != given && !new.is_empty() && !new.contains(&addr) {
                        return Err(Trouble::Again);
                    }
                }
                Some(errand) = next(&mut self.errands), if may_share => {
                    self.errand(link, errand).await?;
                }
                () = sleep_until(ping_at) => {
                    ping_at = Instant::now() + times.ping;
                    link.send(&FromNode::Ping).await?;
                }
                () = sleep_until(due) => self.report(|_| {}),
            }
            if heard.elapsed() >= times.silence {
                let why =
                    format!("no message from the authority at {addr} for {:?}", times.silence);
                return Err(Trouble::Retry(why));
            }
            if link.pending.values().any(|(_, asked)| asked.elapsed() >= times.silence) {
                return Err(Trouble::Retry("the authority does not respond to a request".into()));
            }
            // Reconnect with a newer certificate before the old one expires.
            let newer = self.own().is_some_and(|i| {
                i.is_valid() && link.serial.as_ref().is_some_and(|s| *s != i.leaf().serial)
            });
            if now() >= link.stale_at && newer && link.pending.is_empty() {
                return Err(Trouble::Again);
            }
        }
    }

    /// How long the loop may sleep without events.
    fn next_due(&self, link: &Link) -> Duration {
        let room = link.room() > 0;
        let idle = self.renewals.values().filter(|r| room && !r.in_flight);
        let now_ms = now_ms();
        idle.map(|r| r.wait(now_ms)).min().unwrap_or(TICK).min(TICK)
    }

    /// Handles a message and those that arrived with it, so that the mesh is updated only once.
    async fn messages(&mut self, link: &mut Link, first: FromAuthority) -> Result<(), Trouble> {
        self.message(link, first).await?;
        for _ in 0..MAX_SIGN {
            let Some(message) = link.reader.arrived().await else { break };
            self.message(link, message?).await?;
        }
        Ok(())
    }

    async fn message(&mut self, link: &mut Link, message: FromAuthority) -> Result<(), Trouble> {
        let Some(message) = link.sharing.answer(message) else { return Ok(()) };
        match message {
            FromAuthority::Limits { sign } => {
                link.most = usize::try_from(sign).unwrap_or(MAX_SIGN).clamp(1, MAX_SIGN);
            }
            FromAuthority::State(state) => {
                let version = state.version;
                match self.apply(state).await {
                    Ok(()) => link.send(&FromNode::Ack { version }).await?,
                    Err(e) => {
                        tracing::error!(version, "the pushed state is invalid: {e}");
                        self.report(|s| s.last_error = Some(e));
                    }
                }
            }
            FromAuthority::Signed { request, chain } => {
                let chain = chain.iter().map(Blob::certificate).collect();
                match link.pending.remove(&request) {
                    Some((Pending::Fetch(reply), _)) => drop(reply.send(Ok(chain))),
                    Some((Pending::Renew { id, key }, _)) => {
                        self.renewed(request, id, key, chain).await;
                    }
                    Some((Pending::Totals(_) | Pending::Report, _)) | None => {}
                }
            }
            FromAuthority::Refused { request: 0, denial } => {
                tracing::error!(code = %denial.code, "the authority rejected what this node offers, or a part of it: {denial}");
                self.report(|s| s.refused = Some(denial));
            }
            FromAuthority::Kept { request } => {
                link.reported.answered(request);
                if let Some((Pending::Totals(reply), _)) = link.pending.remove(&request) {
                    let _ = reply.send(Ok(true));
                }
            }
            FromAuthority::Refused { request, denial } => match link.pending.remove(&request) {
                Some((Pending::Totals(reply), _)) => {
                    let _ = reply.send(match denial.code {
                        Code::BadRequest => {
                            tracing::warn!("the authority refuses the totals of an hour: {denial}");
                            Ok(false)
                        }
                        _ => Err(denial.message),
                    });
                }
                Some((Pending::Report, _)) => {
                    link.reported.refused(request);
                    tracing::warn!(code = %denial.code, "the authority refuses the report about this node: {denial}");
                }
                Some((Pending::Fetch(reply), _)) => drop(reply.send(Err(denial.message))),
                Some((Pending::Renew { id, .. }, _)) => self.not_renewed(&id, denial.message),
                None => link.sharing.refused(request, &denial.message),
            },
            FromAuthority::Error(denial) => {
                if denial.code == Code::UnknownType {
                    if link.reported.unknown_type() {
                        link.pending.retain(|_, (p, _)| !matches!(p, Pending::Report));
                        tracing::debug!("the authority is older and takes no reports");
                        return Ok(());
                    }
                    link.sharing.unknown_type();
                    link.refuse_totals();
                }
                return self.error(denial);
            }
            FromAuthority::Ping => link.send(&FromNode::Pong).await?,
            FromAuthority::Pong | FromAuthority::Unknown => {}
            // `sharing` has handled the last four above, if they were expected.
            FromAuthority::Joined { .. }
            | FromAuthority::Records { .. }
            | FromAuthority::Changes { .. }
            | FromAuthority::Written { .. }
            | FromAuthority::Conflict { .. } => {
                return Err(Trouble::Retry("the authority sent an unexpected message".into()));
            }
        }
        Ok(())
    }

    fn error(&mut self, denial: Denial) -> Result<(), Trouble> {
        match denial.code {
            Code::Removed | Code::NotEnrolled => Err(Trouble::Removed(denial.message)),
            Code::Expired => Err(Trouble::Again),
            Code::UnknownType | Code::Other => {
                tracing::warn!(code = %denial.code, "error from the authority: {denial}");
                Ok(())
            }
            _ => Err(Trouble::Retry(format!("error from the authority: {denial}"))),
        }
    }

    async fn totals(
        &mut self,
        link: &mut Link,
        hour: Hour,
        reply: Reply<bool>,
    ) -> Result<(), Trouble> {
        let request = self.next_request;
        self.next_request += 1;
        link.pending.insert(request, (Pending::Totals(reply), Instant::now()));
        link.send(&FromNode::Totals { request, hours: vec![hour].into() }).await
    }

    async fn announce(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let instances = self.offers(link.local);
        if link.announced.as_ref() == Some(&instances) {
            return Ok(());
        }
        // Announce identities together that arrive shortly after one another.
        if !link.pending.is_empty() && link.announced_at.elapsed() < GATHER {
            return Ok(());
        }
        self.announced.clone_from(&instances);
        link.announced = Some(instances.clone());
        link.announced_at = Instant::now();
        self.report(|s| s.refused = None);
        link.send(&FromNode::Announce { instances: instances.into() }).await
    }

    /// The instances to announce: services whose identity this node has.
    fn offers(&self, local: Option<IpAddr>) -> Vec<Offer> {
        let holds = |i: &&Instance| self.identities.contains_key(&Id::Service(i.service.clone()));
        let offer = |i: &Instance| {
            let addr = address(i, local, self.params.own_host.as_ref());
            if addr.is_none() {
                tracing::warn!(service = %i.service, "cannot determine an address to announce: set `advertise`");
            }
            let (service, allow, ports) = (i.service.clone(), i.allow.clone(), i.ports.clone());
            Some(Offer { service, addr: addr?, allow, ports })
        };
        self.params.instances.iter().filter(holds).filter_map(offer).collect()
    }
}

/// The address at which others can connect to an instance.
fn address(
    instance: &Instance,
    local: Option<IpAddr>,
    own_host: Option<&HostPort>,
) -> Option<HostPort> {
    if let Some(given) = &instance.advertise {
        return Some(given.clone());
    }
    let port = instance.listen.port();
    if !instance.listen.ip().is_unspecified() {
        return Some(instance.listen.into());
    }
    let local = local.map(|ip| ip.to_canonical());
    if let Some(host) = own_host
        && local.is_none_or(|ip| ip.is_loopback())
    {
        return match host.as_ip() {
            Some(addr) => Some(std::net::SocketAddr::new(addr.ip(), port).into()),
            None => format!("{}:{port}", host.host()).parse().ok(),
        };
    }
    local.map(|ip| std::net::SocketAddr::new(ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_that_an_older_authority_does_not_know_are_not_stored() {
        let (totals, mut answer) = tokio::sync::oneshot::channel();
        let (fetch, mut other) = tokio::sync::oneshot::channel();
        let mut pending = BTreeMap::from([
            (1, (Pending::Totals(totals), Instant::now())),
            (2, (Pending::Fetch(fetch), Instant::now())),
        ]);
        refuse_totals(&mut pending);
        let why = answer.try_recv().unwrap().unwrap_err();
        assert!(why.contains("older") && why.contains("update"), "{why}");
        // The control: another request is still open.
        assert_eq!((pending.len(), other.try_recv().is_err()), (1, true));
    }

    #[test]
    fn a_wildcard_listener_is_announced_with_a_reachable_address() {
        let instance = |listen: &str, advertise: Option<&str>| Instance {
            service: "db".parse().unwrap(),
            listen: listen.parse().unwrap(),
            advertise: advertise.map(|a| a.parse().unwrap()),
            allow: vec![],
            ports: vec![],
        };
        let ip = |s: &str| Some(s.parse().unwrap());
        let own: HostPort = "auth.example.org:7400".parse().unwrap();
        for (listen, advertise, local, own_host, expected) in [
            ("10.0.0.5:1", None, ip("10.9.9.9"), None, Some("10.0.0.5:1")),
            ("10.0.0.5:1", Some("db:2"), ip("10.9.9.9"), None, Some("db:2")),
            ("0.0.0.0:1", None, ip("10.9.9.9"), Some(&own), Some("10.9.9.9:1")),
            ("[::]:1", None, ip("::ffff:10.9.9.9"), None, Some("10.9.9.9:1")),
            ("0.0.0.0:1", None, ip("127.0.0.1"), Some(&own), Some("auth.example.org:1")),
            ("0.0.0.0:1", None, ip("127.0.0.1"), None, Some("127.0.0.1:1")),
            ("0.0.0.0:1", None, None, None, None),
        ] {
            let found = address(&instance(listen, advertise), local, own_host);
            assert_eq!(found.map(|a| a.to_string()).as_deref(), expected);
        }
    }
}
