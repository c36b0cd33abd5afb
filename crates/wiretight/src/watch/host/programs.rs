//! The programs of connections: asked when a connection begins, because later it may be gone. What is not found then is
//! not guessed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use wiretight_proxy::intercept::listing::Program;
use wiretight_scan::passive::Transport;
use wiretight_scan::passive::totals::Way;

use super::census::Begun;
use super::conntrack::transport;
use crate::intercept::{Finder, Groups};

/// How long the program that serves a port, and the name of a program, are remembered.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How often the control groups are read at most.
const READ: Duration = Duration::from_secs(5);
/// Remembered ports and programs.
const MAX: usize = 4096;

pub(super) struct Programs {
    finder: Finder,
    groups: Groups,
    read: Instant,
    /// By address, and whether it is TCP.
    served: HashMap<(bool, SocketAddr), (Instant, Found)>,
    /// By control group and user.
    named: HashMap<(Option<u64>, u32), (Instant, Arc<Program>)>,
}

type Found = Option<Arc<Program>>;

impl Programs {
    pub(super) fn new() -> Result<Programs, Errno> {
        Ok(Programs {
            finder: Finder::open()?,
            groups: Groups::here(),
            read: Instant::now(),
            served: HashMap::new(),
            named: HashMap::new(),
        })
    }

    /// The program here of a connection that has just begun: the server, or the client of a connection to elsewhere.
    pub(super) fn of(&mut self, begun: &Begun) -> Option<Arc<Program>> {
        let tcp = match transport(begun.key.protocol) {
            Transport::Tcp => true,
            Transport::Udp => false,
            _ => return None,
        };
        match begun.way {
            Way::Forwarded => None,
            Way::Out => self.find(tcp, begun.key.client, Some(begun.key.server)),
            Way::In | Way::Loopback | Way::Relay => {
                let at = (tcp, begun.answers);
                if let Some((since, program)) = self.served.get(&at)
                    && since.elapsed() < REMEMBERED
                {
                    return program.clone();
                }
                let program = self.find(tcp, begun.answers, None);
                if self.served.len() >= MAX {
                    self.served.clear();
                }
                self.served.insert(at, (Instant::now(), program.clone()));
                program
            }
        }
    }

    fn find(
        &mut self,
        tcp: bool,
        local: SocketAddr,
        remote: Option<SocketAddr>,
    ) -> Option<Arc<Program>> {
        let found = self.finder.find(tcp, local, remote);
        let socket =
            found.inspect_err(|error| tracing::debug!(%error, "cannot find a socket")).ok()??;
        let whose = (socket.group, socket.user);
        if let Some((since, program)) = self.named.get(&whose)
            && since.elapsed() < REMEMBERED
        {
            return Some(program.clone());
        }
        let unknown = socket.group.is_some_and(|group| !self.groups.has(group));
        if unknown && self.read.elapsed() >= READ {
            (self.groups, self.read) = (Groups::here(), Instant::now());
        }
        let program = Arc::new(self.groups.program(socket.group, socket.user));
        if self.named.len() >= MAX {
            self.named.clear();
        }
        self.named.insert(whose, (Instant::now(), program.clone()));
        Some(program)
    }
}
