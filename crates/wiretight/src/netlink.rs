//! Netlink messages and attributes (netlink(7), linux/netlink.h). Parsing is pure, and accepts every byte: what is
//! truncated is not returned.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv,
    send, socket_with,
};

/// How long an answer of the kernel may take; a whole list, too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Kinds of messages.
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
/// Flags of requests.
pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
/// Sizes of struct nlmsghdr and struct nlattr.
pub(crate) const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// The bits of an attribute's type that are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const FLAGS: u16 = 0xc000;

pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: &'a [u8],
}

/// The first message, and the bytes after it.
pub(crate) fn message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, flags, body }, rest))
}

/// The messages of a datagram, up to a truncated one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (message, rest) = message(bytes)?;
        bytes = rest;
        Some(message)
    })
}

/// Attributes with their types, up to a truncated one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !FLAGS;
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The error of a message of kind [`NLMSG_ERROR`]; `None` for an acknowledgement.
pub(crate) fn error(body: &[u8]) -> Option<Errno> {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    match code.saturating_neg() {
        0 => None,
        number @ 1..4096 => Some(Errno::from_raw_os_error(number)),
        _ => Some(Errno::INVAL),
    }
}

/// A request, built from its parts.
pub(crate) struct Request(Vec<u8>);

impl Request {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut out = vec![0; HEADER];
        out[4..6].copy_from_slice(&kind.to_ne_bytes());
        out[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        out.extend(fixed);
        Request(out)
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self
    }

    pub(crate) fn send(mut self, socket: &OwnedFd) -> Result<(), Errno> {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        send(socket, &self.0, SendFlags::empty()).map(drop)
    }
}

/// A socket that receives the notifications of `groups` (a mask). `protocol`: `None` for NETLINK_ROUTE, which is 0.
pub(crate) fn open(
    protocol: Option<Protocol>,
    groups: u32,
    flags: SocketFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Asks for a list, and calls `see` for the body of each message of a kind.
pub(crate) fn list(
    socket: &OwnedFd,
    request: Request,
    kind: u16,
    mut see: impl FnMut(&[u8]),
) -> Result<(), Errno> {
    set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
    request.send(socket)?;
    let mut buffer = vec![0; 64 << 10];
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let length = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?.0,
        };
        for message in messages(buffer.get(..length).unwrap_or_default()) {
            match message.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(error(message.body).unwrap_or(Errno::INVAL)),
                other if other == kind => see(message.body),
                _ => {}
            }
        }
    }
    Err(Errno::TIMEDOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_messages_and_attributes_are_not_returned() {
        let mut bytes = vec![0; HEADER];
        bytes[4] = 7;
        bytes.extend([9, 0, 0x15, 0x80, b'a', b'b', b'c', b'd', b'e', 0, 0, 0]);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let twice = [&bytes[..], &bytes].concat();
        let read: Vec<_> = messages(&twice).collect();
        assert_eq!(read.iter().map(|m| m.kind).collect::<Vec<_>>(), [7, 7]);
        assert_eq!(attributes(read[0].body).collect::<Vec<_>>(), [(0x15, &b"abcde"[..])]);
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0);
            assert_eq!(messages(&twice[..bytes.len() + cut]).count(), 1);
        }
        for cut in 0..9 {
            assert_eq!(attributes(&read[0].body[..cut]).count(), 0);
        }
        // Lengths that are too short, or beyond the end.
        for length in [0u32, 15, 1000, u32::MAX] {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(message(&bytes).is_none());
        }
        for length in [0u16, 3, 1000] {
            assert_eq!(attributes(&[&length.to_ne_bytes()[..], &[1, 0, 5, 6]].concat()).count(), 0);
        }
    }

    #[test]
    fn requests_are_read_as_they_were_built() {
        let request =
            Request::new(0x401, ACK, &[0, 0, 1, 2]).attribute(3, b"x").attribute(4, b"yz");
        let mut bytes = request.0;
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let (message, rest) = message(&bytes).unwrap();
        assert_eq!((message.kind, message.flags, rest.len()), (0x401, ACK | REQUEST, 0));
        let read: Vec<_> = attributes(&message.body[4..]).collect();
        assert_eq!(read, [(3, &b"x"[..]), (4, &b"yz"[..])]);
    }

    #[test]
    fn an_error_is_told_from_an_acknowledgement() {
        assert_eq!(error(&0i32.to_ne_bytes()), None);
        assert_eq!(error(&(-16i32).to_ne_bytes()), Some(Errno::BUSY));
        assert_eq!(error(&[]), None);
        for strange in [i32::MIN, -4096, 1, i32::MAX] {
            assert_eq!(error(&strange.to_ne_bytes()), Some(Errno::INVAL));
        }
    }
}
