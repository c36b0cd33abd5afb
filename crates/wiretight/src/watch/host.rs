//! The traffic of this machine: which connections there are, what of them is encrypted, how well, and whose they are.
//! Started by `[watch]`. Nothing here drops, delays or changes a packet.

mod census;
mod child;
pub mod conntrack;
pub mod interfaces;
pub mod nflog;
mod programs;
mod ring;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wiretight_proxy::Relay;
use wiretight_proxy::intercept::listing::Program;
use wiretight_proxy::relay::{Connection, Side};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::summary::{self, By, Flow, Programs};
use wiretight_scan::passive::totals::{Count, Gaps, Period, Totals, Way};
use wiretight_scan::passive::{Grade, Sealed, Seen, Transport};

use crate::agent::AgentHandle;
use crate::config::{self, Config};
use crate::exposition;
use crate::private_dir::PrivateDir;
use crate::program::{self, Helper};
use census::{Own, Session};
use child::{Answer, Ask, Report, Rows};
use ring::Ring;

pub use child::{serve, work};

/// How often the child is asked for what it has counted.
const ROUND: Duration = Duration::from_secs(10);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 20;
/// The most rows in an answer.
const MAX_ROWS: usize = 20_000;

/// All connections between a client and a server that are the same in direction, protocol, level and program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub way: Way,
    pub transport: Transport,
    pub client: IpAddr,
    /// As the client addressed it. The port is 0 if the transport has none.
    pub server: SocketAddr,
    /// The program on this machine; `None` if it is not known, or elsewhere. For a connection within this machine it is
    /// the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
    /// Connections since the node started to watch, and how many of them are open.
    pub connections: u64,
    pub open: u64,
    /// Packets and bytes of IP, from the client and from the server.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub first: jiff::Timestamp,
    pub last: jiff::Timestamp,
    /// What was seen of the newest connection.
    #[serde(flatten)]
    pub seen: Seen,
}

impl Row {
    /// As a flow that is the sum of its connections.
    pub(crate) fn flow(&self) -> Flow {
        let program: Option<Arc<str>> =
            self.program.as_ref().map(|program| program.to_string().into());
        let programs = match self.way {
            Way::Out => Programs { client: program, server: None },
            _ => Programs { client: None, server: program },
        };
        let record = Record {
            transport: self.transport,
            client: (self.client, 0).into(),
            server: self.server,
            first: self.first,
            last: self.last,
            packets: self.packets,
            bytes: self.bytes,
            whole: true,
            seen: Arc::new(self.seen.clone()),
        };
        Flow { record, programs }
    }
}

/// The state of watching, and what it has found, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// Since when, in seconds since 1970; `None` if it has not started.
    pub since: Option<u64>,
    /// Open connections.
    pub open: u64,
    /// What crossed a network since then, by level. `unknown` includes what was missed.
    pub levels: BTreeMap<Level, Count>,
    pub gaps: Gaps,
    /// Totals of complete hours that the authority does not have yet, up to 8.
    pub unsent_hours: usize,
    /// Why nothing, or not everything, is seen.
    pub problems: Vec<String>,
    /// What was counted since then and will not change, for metrics.
    #[serde(skip)]
    pub settled: Totals,
}

/// What the process that watches has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Processor time, in microseconds.
    pub(crate) cpu_micros: u64,
    pub(crate) resident_bytes: u64,
}

impl Cost {
    /// Of this process.
    fn now() -> Cost {
        Cost {
            cpu_micros: u64::try_from(exposition::cpu_time().as_micros()).unwrap_or(u64::MAX),
            resident_bytes: exposition::resident_memory().unwrap_or(0),
        }
    }
}

/// What the node knows now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub status: WatchStatus,
    /// Since `status.since`.
    pub totals: Totals,
    /// Those with the most bytes first.
    pub rows: Vec<Row>,
    /// Rows that fit the request and are not in `rows`.
    pub left_out: u64,
    /// Rows that were forgotten because there were too many; they are in `totals`.
    pub forgotten: u64,
}

impl Listing {
    /// Who talks to whom over a network, the worst and largest first. What is not known comes after what is known to be
    /// bad.
    pub(crate) fn pairs(&self) -> Vec<summary::Row> {
        let mut rows = summary::Rows::new(By::Pair, MAX_ROWS);
        for row in self.rows.iter().filter(|row| row.way.crosses_network()) {
            rows.add_many(&row.flow(), row.connections);
        }
        let mut rows = rows.list();
        rows.sort_by_key(|row| match row.key.level {
            Level::Plaintext => 0,
            Level::Weak => 1,
            Level::Unknown => 2,
            Level::Acceptable => 3,
            Level::Strong => 4,
        });
        rows
    }
}

/// What the node does about `[watch]`.
pub(crate) struct Watching {
    /// `Err`: why the child could not be started.
    helper: Result<tokio::sync::Mutex<Helper>, String>,
    settings: config::Watch,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    report: Option<Report>,
    ring: Ring,
    /// Why the child does not answer, or the totals cannot be saved.
    gone: Option<String>,
    unsaved: Option<String>,
    /// Why the authority does not have all totals.
    unsent: Option<String>,
}

impl Watching {
    /// Starts the child. Call it before entering the sandbox. `None` without `[watch]`. A child that cannot start does not
    /// keep the node from running.
    pub(crate) fn begin(config: &Config) -> Option<Watching> {
        let settings = config.watch.clone()?;
        let mut command = program::own_program();
        command.arg("watcher").args((!config.node.landlock).then_some("--no-landlock"));
        let helper = Helper::start(command).map(tokio::sync::Mutex::new);
        let helper = helper.map_err(|e| format!("cannot start the process that watches: {e}"));
        Some(Watching { helper, settings, known: Mutex::default() })
    }

    /// Collects what the child counts, keeps it by the hour and sends complete hours to the authority, until `stop`.
    pub(crate) async fn run(
        self: Arc<Self>,
        config: impl Fn() -> Arc<Config>,
        relay: Arc<Relay>,
        agent: AgentHandle,
        dir: PrivateDir,
        mut stop: watch::Receiver<bool>,
    ) {
        self.known.lock().ring = Ring::load(&dir, self.settings.keep);
        loop {
            self.round(&config(), &relay).await;
            self.save(&dir, false);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = async { self.send(&agent).await; tokio::time::sleep(ROUND).await } => {}
            }
        }
        self.round(&config(), &relay).await;
        self.save(&dir, true);
    }

    async fn send(&self, agent: &AgentHandle) {
        if !agent.status().connected {
            return;
        }
        let unsent = self.known.lock().ring.unsent();
        for hour in unsent {
            let start = hour.start;
            match agent.totals(hour).await {
                // An hour that the authority refuses is not sent again.
                Ok(_) => self.known.lock().sent(start),
                Err(error) => {
                    tracing::debug!(%error, "the totals of an hour were not sent");
                    return self.known.lock().not_sent(start, &error);
                }
            }
        }
    }

    async fn round(&self, config: &Config, relay: &Relay) {
        let own = Box::new(own(config, relay));
        let ask = Ask::Watch { interfaces: self.settings.interfaces.clone(), own };
        let answered = self.ask(&ask).await;
        let mut known = self.known.lock();
        match answered {
            Ok(Answer::Report(report)) => {
                known.gone = None;
                known.note(*report);
            }
            Ok(Answer::Failed(why)) | Err(why) => known.gone = Some(why),
            Ok(Answer::Begun | Answer::Rows(_)) => {}
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        let helper = self.helper.as_ref().map_err(Clone::clone)?;
        let gone = |e: &dyn std::fmt::Display| format!("the process that watches is gone ({e})");
        let begun = |answer: &Answer| matches!(answer, Answer::Begun);
        let asking = async { helper.lock().await.ask(ask, MAX_ANSWER, begun).await };
        let answered = tokio::time::timeout(PATIENCE, asking).await;
        answered.map_err(|_| gone(&"it does not respond"))?.map_err(|e| gone(&e))
    }

    fn save(&self, dir: &PrivateDir, last: bool) {
        let mut known = self.known.lock();
        known.unsaved = known.ring.save(dir, last).err().map(|e| crate::logging::chain(&e));
    }

    pub(crate) fn status(&self) -> WatchStatus {
        let known = self.known.lock();
        let report = known.report.as_ref();
        let mut problems = report.map(|r| r.problems.clone()).unwrap_or_default();
        problems
            .extend([&known.gone, &known.unsaved, &known.unsent].into_iter().flatten().cloned());
        let totals = report.map(|r| r.totals.clone()).unwrap_or_default();
        WatchStatus {
            since: report.and_then(|r| r.since),
            open: report.map_or(0, |r| r.open),
            levels: totals.by_level(),
            gaps: totals.gaps,
            unsent_hours: known.ring.unsent().len(),
            problems,
            settled: report.map(|r| r.settled.clone()).unwrap_or_default(),
        }
    }

    /// What the process that watches has used, a few seconds ago.
    pub(crate) fn cost(&self) -> Option<Cost> {
        self.known.lock().report.as_ref().map(|report| report.cost)
    }

    /// The rows with the most bytes, now.
    pub(crate) async fn listing(
        &self,
        level: Option<Level>,
        most: usize,
    ) -> Result<Listing, String> {
        let most = most.min(MAX_ROWS);
        match self.ask(&Ask::Rows { level, most }).await? {
            Answer::Rows(rows) => {
                let Rows { rows, left_out, forgotten, report } = *rows;
                let totals = report.totals.clone();
                self.known.lock().note(report);
                Ok(Listing { status: self.status(), totals, rows, left_out, forgotten })
            }
            Answer::Failed(why) => Err(why),
            Answer::Begun | Answer::Report(_) => {
                Err("the process that watches sent a response to another request".into())
            }
        }
    }

    /// Totals by the hour.
    pub(crate) fn hours(&self, from: u64, to: u64) -> Vec<Period> {
        self.known.lock().ring.between(from, to)
    }
}

impl Known {
    fn sent(&mut self, hour: u64) {
        self.ring.sent(hour);
        if self.ring.failures() == 0 {
            self.unsent = None;
        }
    }

    fn not_sent(&mut self, hour: u64, why: &dyn std::fmt::Display) {
        self.ring.failed(hour);
        let hours = self.ring.failures();
        self.unsent = Some(format!(
            "the authority has not stored the totals of {hours} hours, which are kept here and sent again: {why}"
        ));
    }

    fn note(&mut self, report: Report) {
        if let Some(since) = report.since {
            self.ring.count(since, &report.hours);
        }
        self.report = Some(report);
    }
}

/// What the node itself carries.
fn own(config: &Config, relay: &Relay) -> Own {
    let redirected = config.relay.intercept.iter().flat_map(|i| {
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            .map(|ip| SocketAddr::new(ip, i.port))
    });
    let dials = config.relay.dials.iter().map(|d| d.listen).chain(redirected);
    let sessions = relay.status(usize::MAX).connections;
    Own {
        dials: dials.collect(),
        edge: config.edge.https.clone(),
        sessions: sessions.into_iter().filter_map(session).collect(),
    }
}

/// Who talks to whom through the relay now. This is known exactly without a watch, and nothing else is: the bytes are those
/// of programs, of the connections that are open.
pub(crate) fn carried(relay: &Relay) -> Vec<summary::Row> {
    let mut rows = summary::Rows::new(By::Pair, MAX_ROWS);
    let now = jiff::Timestamp::now();
    for of in relay.status(usize::MAX).connections {
        let (side, age) = (of.side, jiff::SignedDuration::from_secs(of.age_seconds as i64));
        let (sent, received) = (of.bytes_out, of.bytes_in);
        let Some(Session { local, peer, seen }) = session(of) else { continue };
        let (client, server, bytes) = match side {
            Side::Dial => (local, peer, [sent, received]),
            Side::Service => (peer, local, [received, sent]),
        };
        rows.add(&Flow::from(Record {
            transport: Transport::Tcp,
            client,
            server,
            first: now.checked_sub(age).unwrap_or(now),
            last: now,
            packets: [0, 0],
            bytes,
            whole: true,
            seen: Arc::new(seen),
        }));
    }
    rows.list()
}

/// A connection of the relay, as it was negotiated.
fn session(of: Connection) -> Option<Session> {
    let local = of.local?;
    let post_quantum = of.group == "X25519MLKEM768";
    let version = of.protocol.replace("TLSv", "TLS ");
    let evidence = format!(
        "carried by this node, {} {}, to {}: {version}, {}, {}",
        of.side.word(),
        of.service,
        of.peer,
        of.cipher,
        of.group
    );
    let seen = Seen {
        protocol: "wiretight".into(),
        level: if post_quantum { Level::Strong } else { Level::Acceptable },
        grade: Grade::Carried,
        evidence: evidence.into(),
        starttls: None,
        sealed: Some(Box::new(Sealed {
            version: version.into(),
            suite: Some(of.cipher.into()),
            group: Some(of.group.into()),
            post_quantum: Some(post_quantum),
            forward_secrecy: Some(true),
            client_certificate: Some(true),
            ..Sealed::default()
        })),
    };
    Some(Session { local, peer: of.address, seen })
}
