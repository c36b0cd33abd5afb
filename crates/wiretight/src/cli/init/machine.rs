//! What `wiretight init` finds out about this machine, and how it writes files there.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::chown;
use std::path::Path;

use rustix::process::{getegid, geteuid};
use wiretight_keys::Name;

use crate::private_dir::{self, Owner};

/// Addresses for documentation (RFC 5737, RFC 3849), which only the default route leads to.
const FAR: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];
const UNIT_DIRS: [&str; 3] =
    ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

fn host_name() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_ascii_lowercase()
}

/// The host name without its domain, if a node can have it.
pub(super) fn node_name() -> Option<Name> {
    let name = host_name();
    let first = name.split('.').next()?;
    first.parse().ok().filter(|_| first != "localhost")
}

/// The DNS domain of this machine, if its host name has one.
pub(super) fn domain() -> Option<String> {
    let name = host_name();
    let (_, domain) = name.split_once('.')?;
    (domain.contains('.') && domain != "localdomain").then(|| domain.to_owned())
}

/// The address that other machines probably reach this one at: the one that leads to one of `towards` (`HOST:PORT`), else
/// that of the default route, else one in a network that this machine is connected to.
pub(super) fn address(towards: &[String]) -> Option<IpAddr> {
    let to = towards.iter().map(String::as_str).filter_map(source_towards);
    let far = FAR.into_iter().filter_map(source_towards);
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let near = neighbours(&routes).into_iter().filter_map(|at| source_towards(&format!("{at}:9")));
    let mut all: Vec<_> = to.chain(far).chain(near).collect();
    // Loopback only if there is nothing else, for an authority on the same machine.
    all.sort_by_key(IpAddr::is_loopback);
    all.into_iter().next()
}

/// The source address of packets to there. Nothing is sent, except for the lookup of a name.
fn source_towards(to: &str) -> Option<IpAddr> {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    let from = socket.local_addr().ok()?.ip();
    (!from.is_unspecified()).then_some(from)
}

/// An address in each connected network, from /proc/net/route.
fn neighbours(routes: &str) -> Vec<Ipv4Addr> {
    let network = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let hex = |field: &str| u32::from_str_radix(field, 16).ok();
        let (to, gateway) = (hex(fields.next()?)?, hex(fields.next()?)?);
        // The kernel writes the address as a number in the order of this machine.
        let first = u32::from_be_bytes(to.to_ne_bytes()).checked_add(1)?;
        (to != 0 && gateway == 0).then(|| Ipv4Addr::from(first))
    };
    routes.lines().filter_map(network).collect()
}

/// Whether systemd runs here and has this unit.
pub(super) fn has_unit(name: &str) -> bool {
    Path::new("/run/systemd/system").is_dir()
        && UNIT_DIRS.iter().any(|dir| Path::new(dir).join(name).exists())
}

/// User and group of a unit, if this process may give files to them and they exist.
fn ids(user: &str) -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    ids_in(&fs::read_to_string("/etc/passwd").ok()?, user)
}

fn ids_in(passwd: &str, user: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    let mut ids = line.split(':').skip(2).map(|field| field.parse().ok());
    Some((ids.next()??, ids.next()??))
}

/// A command as the user of a unit, who owns the state directory.
pub(super) fn as_user(user: &str, command: &str) -> String {
    match ids(user) {
        Some(_) => format!("runuser -u {user} -- {command}"),
        None => command.to_owned(),
    }
}

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// This user, and the group of the unit. It holds no secret.
    Group,
    /// Only the user of the unit; without such a user, this one.
    Secret,
}

/// Writes a file for the unit of a user, by rename. An existing one is an error unless it is to be replaced.
pub(super) fn put(
    path: &Path,
    bytes: &[u8],
    user: &str,
    access: Access,
    replace: bool,
) -> io::Result<()> {
    let own = (geteuid().as_raw(), getegid().as_raw());
    let owner = match (access, ids(user)) {
        (Access::Group, Some((_, gid))) => Owner { uid: own.0, gid, mode: 0o640 },
        (Access::Group, None) => Owner { uid: own.0, gid: own.1, mode: 0o640 },
        (Access::Secret, Some((uid, gid))) => Owner { uid, gid, mode: 0o600 },
        (Access::Secret, None) => Owner { uid: own.0, gid: own.1, mode: 0o600 },
    };
    match replace {
        true => private_dir::replace(path, bytes, Some(owner)),
        false => private_dir::create(path, bytes, Some(owner)),
    }
}

/// Gives a private file, or a directory with everything in it, to the user of a unit.
pub(super) fn hand_over(path: &Path, user: &str) -> io::Result<()> {
    let Some((uid, gid)) = ids(user) else { return Ok(()) };
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            hand_over(&entry?.path(), user)?;
        }
    }
    chown(path, Some(uid), Some(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_from_the_table_of_routes() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t00000000\t0101000A\t0003\t0\t0\t0\t00000000\n\
            eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
            eth1\t0005A8C0\t0100000A\t0003\t0\t0\t0\t00FFFFFF\nx\n";
        let expected = if cfg!(target_endian = "little") { "10.0.0.1" } else { "0.0.0.11" };
        assert_eq!(neighbours(routes), [expected.parse::<Ipv4Addr>().unwrap()]);
    }

    #[test]
    fn the_user_of_a_unit_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nwiretight2:x:7:7::/:/bin/sh\n";
        assert_eq!(ids_in(passwd, "wiretight"), None);
        let with = format!("{passwd}wiretight:x:998:997::/var/lib/wiretight:/usr/sbin/nologin\n");
        assert_eq!(ids_in(&with, "wiretight"), Some((998, 997)));
        assert_eq!(ids_in("wiretight:x:many:997::/:/", "wiretight"), None);
    }
}
