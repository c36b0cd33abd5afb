//! The programs of captured flows: each flow is looked up while it is current. What is not found then is not guessed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use wiretight_scan::passive::Transport;
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::summary::Programs;

use crate::intercept::{Finder, Groups};

/// Flows whose programs are remembered, and flows that are looked up at a time.
const REMEMBERED: usize = 100_000;
const AT_A_TIME: usize = 2000;

type Key = (Transport, SocketAddr, SocketAddr);

pub struct Owners {
    finder: Finder,
    known: HashMap<Key, Programs>,
    /// Which addresses are of this machine, and since when that is known.
    local: HashMap<IpAddr, bool>,
    since: Instant,
}

/// How long it is remembered which addresses are of this machine.
const ADDRESSES: Duration = Duration::from_secs(30);

impl Owners {
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn new() -> Result<Owners, Errno> {
        let (known, local) = (HashMap::new(), HashMap::new());
        Ok(Owners { finder: Finder::open()?, known, local, since: Instant::now() })
    }

    /// Looks up the programs of flows that are not known yet.
    pub fn look<'a>(&mut self, current: impl IntoIterator<Item = &'a Record>) {
        let new = current.into_iter().filter(|record| !self.known.contains_key(&key(record)));
        let new: Vec<&Record> = new.take(AT_A_TIME).collect();
        if new.is_empty() {
            return;
        }
        if self.known.len() + new.len() > REMEMBERED {
            self.known.clear();
        }
        if self.since.elapsed() > ADDRESSES {
            self.local.clear();
            self.since = Instant::now();
        }
        // Groups come and go, and reading all of them is cheap compared with the lookups.
        let groups = Groups::here();
        for record in new {
            let tcp = match record.transport {
                Transport::Tcp => true,
                Transport::Udp => false,
                _ => continue,
            };
            let (client, server) = (record.client, record.server);
            let (finder, local) = (&self.finder, &mut self.local);
            let mut of = |end: SocketAddr, other: Option<SocketAddr>| {
                // The kernel also finds a socket that is bound to all addresses, for an address elsewhere.
                if !*local.entry(end.ip()).or_insert_with(|| is_local(end.ip())) {
                    return None;
                }
                let socket = finder.find(tcp, end, other).ok()??;
                Some(Arc::<str>::from(groups.program(socket.group, socket.user).to_string()))
            };
            let programs = Programs {
                client: of(client, Some(server)),
                server: of(server, tcp.then_some(client)),
            };
            self.known.insert(key(record), programs);
        }
    }

    /// The programs of a flow, as far as they are known.
    pub fn of(&self, record: &Record) -> Programs {
        self.known.get(&key(record)).cloned().unwrap_or_default()
    }
}

fn key(record: &Record) -> Key {
    (record.transport, record.client, record.server)
}

/// Whether an address is of this machine.
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use wiretight_scan::judge::Level;
    use wiretight_scan::passive::{Grade, Seen};

    use super::*;

    fn record(transport: Transport, client: SocketAddr, server: SocketAddr) -> Record {
        Record {
            transport,
            client,
            server,
            first: jiff::Timestamp::UNIX_EPOCH,
            last: jiff::Timestamp::UNIX_EPOCH,
            packets: [1, 1],
            bytes: [1, 1],
            whole: true,
            seen: Arc::new(Seen {
                protocol: "unknown".into(),
                level: Level::Unknown,
                grade: Grade::Unknown,
                evidence: "".into(),
                starttls: None,
                sealed: None,
            }),
        }
    }

    #[test]
    fn only_ends_on_this_machine_have_a_program() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let server = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let stream = TcpStream::connect(server).unwrap();
        let _accepted = listener.accept().unwrap();
        let mut owners = Owners::new().unwrap();
        let here = record(Transport::Tcp, stream.local_addr().unwrap(), server);
        owners.look([&here]);
        let programs = owners.of(&here);
        assert!(programs.client.is_some() && programs.server.is_some(), "{programs:?}");
        // A server elsewhere, whose port a local program also serves.
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], server.port()));
        let other = record(Transport::Tcp, ([192, 0, 2, 2], 40_000).into(), elsewhere);
        owners.look([&other]);
        assert!(owners.of(&other).is_empty());
    }
}
