//! The kernel's notifications of changed tables (netlink: NFNLGRP_NFTABLES for nftables, RTNLGRP_* for routes). They only
//! trigger a check with `nft` or `ip`. A message that cannot be parsed counts as a change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, netlink as families, recv};
use wiretight_proxy::intercept::rules::TABLE;

use super::routes;
use crate::netlink;

/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h, as a mask.
const NFTABLES: u32 = 1 << (7 - 1);
/// RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE and RTNLGRP_IPV6_RULE of linux/rtnetlink.h.
const ROUTES: u32 = 1 << (7 - 1) | 1 << (8 - 1) | 1 << (11 - 1) | 1 << (19 - 1);
/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u8 = 10;
/// From linux/netfilter/nf_tables.h. NEWTABLE is also sent when an existing table becomes dormant.
const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
/// Offset of the table in struct rtmsg and struct fib_rule_hdr.
const ROUTE_TABLE: usize = 4;
/// The size of struct nfgenmsg.
const FAMILY: usize = 4;

/// What happened to our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Heard {
    Nothing,
    Changed,
    /// It was deleted, or became dormant or active.
    Gone,
}

/// A netlink socket with the parser for its messages.
pub(super) struct Notices {
    socket: OwnedFd,
    read: fn(&[u8]) -> Heard,
}

impl Notices {
    pub(super) fn of_table() -> Result<Notices, Errno> {
        Notices::open(Some(families::NETFILTER), NFTABLES, read)
    }

    pub(super) fn of_routes() -> Result<Notices, Errno> {
        Notices::open(None, ROUTES, read_routes) // NETLINK_ROUTE is 0
    }

    fn open(
        protocol: Option<rustix::net::Protocol>,
        groups: u32,
        read: fn(&[u8]) -> Heard,
    ) -> Result<Notices, Errno> {
        let socket = netlink::open(protocol, groups, SocketFlags::NONBLOCK)?;
        Ok(Notices { socket, read })
    }

    /// Reads all waiting notifications.
    pub(super) fn take(&self) -> Heard {
        let mut buffer = vec![0; 64 << 10];
        let mut heard = Heard::Nothing;
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::AGAIN) => return heard,
                Ok((length, whole)) if whole <= length => {
                    heard = heard.max((self.read)(&buffer[..length]));
                }
                Err(Errno::INTR) => {}
                // A message longer than the buffer, or lost messages (ENOBUFS).
                Ok(_) | Err(_) => heard = heard.max(Heard::Changed),
            }
        }
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Parses the messages of one datagram.
fn read(mut bytes: &[u8]) -> Heard {
    let mut heard = Heard::Nothing;
    while !bytes.is_empty() {
        let Some((message, rest)) = netlink::message(bytes) else {
            return heard.max(Heard::Changed);
        };
        bytes = rest;
        let [kind, SUBSYSTEM] = message.kind.to_le_bytes() else { continue };
        let body = message.body.get(FAMILY..).unwrap_or_default();
        // The first attribute of every message is the table's name (a number in NEWGEN).
        if names_us(body) {
            heard = heard.max(match kind {
                NEWTABLE | DELTABLE => Heard::Gone,
                _ => Heard::Changed,
            });
        }
    }
    heard
}

/// The same for routes and routing rules: whether one is in our table.
fn read_routes(mut bytes: &[u8]) -> Heard {
    while !bytes.is_empty() {
        let Some((message, rest)) = netlink::message(bytes) else { return Heard::Changed };
        bytes = rest;
        if message.body.get(ROUTE_TABLE).is_none_or(|table| *table == routes::OURS) {
            return Heard::Changed;
        }
    }
    Heard::Nothing
}

fn names_us(body: &[u8]) -> bool {
    let first = netlink::attributes(body).next();
    first.is_some_and(|(_, value)| value.strip_suffix(b"\0") == Some(TABLE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::HEADER;

    const ATTRIBUTE: usize = 4;

    fn of(kind: u8, table: &str) -> Vec<u8> {
        let mut attribute = vec![0; ATTRIBUTE];
        attribute.extend(table.bytes().chain([0]));
        let length = attribute.len() as u16;
        attribute[..2].copy_from_slice(&length.to_ne_bytes());
        attribute[2..4].copy_from_slice(&1u16.to_ne_bytes());
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let length = (HEADER + FAMILY + attribute.len()) as u32;
        let kind = u16::from_le_bytes([kind, SUBSYSTEM]);
        let mut out = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &[0; 4]].concat();
        out.extend(attribute);
        out
    }

    #[test]
    fn notices_of_our_routes_are_heard_and_others_are_not() {
        let of = |table: u8| {
            let body = [2, 0, 0, 0, table, 0, 0, 0, 0, 0, 0, 0];
            [&28u32.to_ne_bytes()[..], &[24, 0], &[0; 10], &body].concat()
        };
        assert_eq!(read_routes(&of(254)), Heard::Nothing);
        assert_eq!(read_routes(&of(routes::OURS)), Heard::Changed);
        assert_eq!(read_routes(&[of(254), of(routes::OURS)].concat()), Heard::Changed);
        for cut in 1..28 {
            assert_eq!(read_routes(&of(254)[..cut]), Heard::Changed);
        }
    }

    #[test]
    fn notices_of_our_table_are_heard_and_others_are_not() {
        assert_eq!(read(&of(DELTABLE, TABLE)), Heard::Gone);
        assert_eq!(read(&of(6, TABLE)), Heard::Changed);
        assert_eq!(read(&of(DELTABLE, "docker")), Heard::Nothing);
        let both = [of(DELTABLE, "docker"), of(8, TABLE)].concat();
        assert_eq!(read(&both), Heard::Changed);
        let whole = of(DELTABLE, "docker");
        for cut in 1..whole.len() {
            assert_eq!(
                read(&whole[..cut]),
                Heard::Changed,
                "a truncated message counts as a change"
            );
        }
    }
}
