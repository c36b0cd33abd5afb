//! `[intercept]`: connections of local programs that the kernel redirects here on their way to a service of the mesh;
//! they are carried over its mutual TLS.
//!
//! The service follows from the original destination address. An instance can claim only addresses of its own host.
//! So whatever a node announces, a connection goes to the intended machine or fails. Connections to an address that
//! no instance claims are aborted with RST.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use wiretight_keys::Name;

use super::dial::{Dial, Pool};
use super::live::{Side, Table};
use super::settings::{DialSettings, InterceptSettings};
use crate::app::App;
use crate::mesh::{Mesh, Resolved};
use crate::reason::Reason;

/// The interception listener's state, shared by all workers.
pub(crate) struct Intercept {
    pub(crate) settings: InterceptSettings,
    mesh: Arc<Mesh>,
    table: Arc<Table>,
    /// By original destination.
    dials: Mutex<HashMap<SocketAddr, Arc<Dial>>>,
}

impl Intercept {
    pub(crate) fn new(
        settings: InterceptSettings,
        mesh: &Arc<Mesh>,
        table: &Arc<Table>,
    ) -> Intercept {
        let dials = Mutex::default();
        Intercept { settings, mesh: mesh.clone(), table: table.clone(), dials }
    }

    /// The dial for an original destination.
    fn dial(&self, to: SocketAddr, meant: &Resolved) -> Result<Arc<Dial>, rustls::Error> {
        let settings = DialSettings {
            listen: to,
            service: meant.service.clone(),
            identity: self.settings.identity.clone(),
            to: vec![meant.at.clone()],
            idle_timeout: None,
        };
        let mut dials = self.dials.lock();
        let old = dials.get(&to);
        if let Some(same) = old.filter(|old| old.settings == settings) {
            return Ok(same.clone());
        }
        let dial = Dial::to(settings, Some(to), &self.mesh, &self.table, None)?;
        let dial = Arc::new(dial);
        dials.retain(|to, _| self.mesh.meant(*to).is_some());
        dials.insert(to, dial.clone());
        Ok(dial)
    }

    fn refuse(&self, from: SocketAddr, reason: Reason, detail: String, socket: TcpStream) {
        let name = Name::try_from("intercept".to_owned()).expect("a name");
        self.table.refuse(Side::Dial, &name, from, None, reason, detail);
        App::Tcp(socket).abort();
    }
}

/// A worker's pools, by original destination.
#[derive(Default)]
pub(crate) struct Pools {
    by_address: HashMap<SocketAddr, Rc<Pool>>,
}

impl Pools {
    /// Serves one intercepted connection.
    pub(crate) fn serve(&mut self, of: &Arc<Intercept>, socket: TcpStream, from: SocketAddr) {
        let Some(to) = original(&socket) else {
            let detail =
                "a program connected to this port directly; the kernel did not redirect it"
                    .to_owned();
            return of.refuse(from, Reason::NotIntercepted, detail, socket);
        };
        let Some(meant) = of.mesh.meant(to) else {
            let detail = format!("no instance of a service has the address {to} (any more)");
            return of.refuse(from, Reason::NoInstance, detail, socket);
        };
        let dial = match of.dial(to, &meant) {
            Ok(dial) => dial,
            Err(error) => return of.refuse(from, Reason::Broken, error.to_string(), socket),
        };
        let current = self.by_address.get(&to).filter(|pool| Arc::ptr_eq(pool.dial(), &dial));
        let pool = match current {
            Some(pool) => pool.clone(),
            None => {
                let pool = Pool::new(dial);
                if let Some(old) = self.by_address.insert(to, pool.clone()) {
                    old.close();
                }
                pool
            }
        };
        spawn_local(pool.serve(App::Tcp(socket), from));
    }

    /// Called every second: closes unneeded connections, and pools of addresses that no instance claims any more.
    pub(crate) fn sweep(&mut self, of: &Arc<Intercept>) {
        self.by_address.retain(|to, pool| {
            let is_claimed = of.mesh.meant(*to).is_some();
            if is_claimed {
                pool.sweep();
            } else {
                pool.close();
            }
            is_claimed
        });
    }

    pub(crate) fn close(&mut self) {
        for (_, pool) in self.by_address.drain() {
            pool.close();
        }
    }
}

/// The original destination, if the kernel redirected the connection.
fn original(socket: &TcpStream) -> Option<SocketAddr> {
    let here = socket.local_addr().ok()?;
    let socket = SockRef::from(socket);
    let original = match here {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    original.ok()?.as_socket().filter(|to| *to != here)
}
