//! The first packets of flows, which the kernel copies to us (linux/netfilter/nfnetlink_log.h), and the table of rules
//! that makes it do so. Pure.

use crate::netlink::{ACK, Request, attributes};

/// NFNL_SUBSYS_ULOG, and its messages.
const SUBSYSTEM: u16 = 4 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIG: u16 = SUBSYSTEM | 1;
/// The size of struct nfgenmsg.
const FIXED: usize = 4;
/// Packets of each direction of a connection that are looked at.
const FIRST: u32 = 12;
/// Bytes of each of them.
const LENGTH: u32 = 2048;
/// Packets that the kernel collects before it wakes us, unless its buffer is full, and how long, in hundredths of a second.
pub(super) const BATCH: u32 = 512;
const PATIENCE: u32 = 10;
/// The kernel's buffer for a batch, in bytes.
const BUFFER: u32 = 128 << 10;
/// The name of a table starts like this.
pub(super) const TABLE: &str = "wiretight_watch";
pub(super) const CHAIN: &str = "first";
const COPY: &str = "copy";

/// A packet that the kernel has copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// From the IP header on; it may be cut.
    pub bytes: &'a [u8],
    /// Its length on the wire, from its header.
    pub length: usize,
    /// The kernel's number of it, without gaps unless packets were lost.
    pub number: Option<u32>,
}

/// A packet from a message's kind and body; `None` for other messages and malformed ones.
pub fn packet(kind: u16, body: &[u8]) -> Option<Packet<'_>> {
    if kind != PACKET {
        return None;
    }
    let (mut payload, mut number) = (None, None);
    for (kind, value) in attributes(body.get(FIXED..)?) {
        match kind {
            9 => payload = Some(value),
            12 => number = value.try_into().ok().map(u32::from_be_bytes),
            _ => {}
        }
    }
    let bytes = payload?;
    Some(Packet { bytes, length: length(bytes).max(bytes.len()), number })
}

/// What an IP header says; 0 if it does not.
fn length(bytes: &[u8]) -> usize {
    let at =
        |n: usize| bytes.get(n..n + 2).map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]));
    match bytes.first().map(|b| b >> 4) {
        Some(4) => at(2),
        // 0 is a jumbogram.
        Some(6) if at(4) > 0 => 40 + at(4),
        _ => 0,
    }
}

/// Requests that bind a group to a socket. The first one fails with `EBUSY` or `EPERM` if the group is in
/// use.
pub(super) fn bind(group: u16) -> [Request; 2] {
    let fixed = [0, 0, (group >> 8) as u8, group as u8];
    let config = || Request::new(CONFIG, ACK, &fixed);
    // NFULNL_CFG_CMD_BIND; NFULNL_COPY_PACKET; NFULNL_CFG_F_SEQ.
    let mode = [&LENGTH.to_be_bytes()[..], &[2, 0]].concat();
    [
        config().attribute(1, &[1]),
        config()
            .attribute(2, &mode)
            .attribute(3, &BUFFER.to_be_bytes())
            .attribute(4, &PATIENCE.to_be_bytes())
            .attribute(5, &BATCH.to_be_bytes())
            .attribute(6, &1u16.to_be_bytes()),
    ]
}

/// The rules, as one line of nft's syntax: copy the first packets of each direction. No rule has a verdict, and every
/// policy is `accept`, so no packet is dropped here. Packets without payload are not needed, except those that begin or end
/// a connection. A packet on loopback passes `output` and `input`; it is copied once.
pub(super) fn rules(table: &str, group: u16) -> String {
    let hook = |name: &str| {
        format!(
            "add chain inet {table} {name} {{ type filter hook {name} priority 10; policy accept; }}"
        )
    };
    // Most packets are none of the first, so that is checked first.
    let first = |direction: &str| {
        format!(
            "add rule inet {table} {CHAIN} ct direction {direction} \
             ct {direction} packets <= {FIRST} goto {COPY}"
        )
    };
    let copy = |rule: &str| format!("add rule inet {table} {COPY} {rule}");
    [
        format!("add chain inet {table} {CHAIN}"),
        format!("add chain inet {table} {COPY}"),
        hook("input"),
        hook("output"),
        hook("forward"),
        copy("meta l4proto tcp tcp flags & (syn|fin|rst|psh) == 0 meta length < 100 return"),
        copy(&format!("log group {group} snaplen {LENGTH} queue-threshold {BATCH}")),
        first("original"),
        first("reply"),
        format!("add rule inet {table} input iif != 1 jump {CHAIN}"),
        format!("add rule inet {table} output jump {CHAIN}"),
        format!("add rule inet {table} forward jump {CHAIN}"),
    ]
    .join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::conntrack::tests::attribute;
    use super::*;

    #[test]
    fn a_packet_is_read_with_its_whole_length() {
        let mut four = vec![0x45, 0, 5, 0xdc];
        four.resize(60, 7);
        let mut body = vec![2, 0, 0x16, 0x7a];
        body.extend(attribute(1, &[8, 0, 3, 0]));
        body.extend(attribute(12, &258u32.to_be_bytes()));
        body.extend(attribute(9, &four));
        let expected = Packet { bytes: &four, length: 1500, number: Some(258) };
        assert_eq!(packet(PACKET, &body), Some(expected));
        assert_eq!(packet(CONFIG, &body), None);
        for cut in 0..body.len() {
            assert!(packet(PACKET, &body[..cut]).is_none_or(|p| p == expected));
        }
        let mut six = vec![0x60, 0, 0, 0, 0, 100];
        six.resize(48, 0);
        assert_eq!((length(&six), length(&[]), length(&[0x45])), (140, 0, 0));
    }

    #[test]
    fn no_rule_can_drop_a_packet() {
        let rules = rules("wiretight_watch_1_0", 5754);
        for verdict in ["drop", "reject", "queue num", "queue to", "redirect", "dnat", "set "] {
            assert!(!rules.contains(verdict), "{verdict}");
        }
        assert_eq!(rules.matches("policy accept").count(), 3);
        assert!(!rules.contains('\n'));
    }
}
