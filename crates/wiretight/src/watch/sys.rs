//! Packet sockets with a ring that the kernel fills (packet(7), linux/if_packet.h): the calls and the memory for which
//! there is no safe function.
//!
//! The ring consists of blocks. A block belongs to the kernel until its status says `USER`, and to us until we set the
//! status back. Only [`Block`] gives access to one, and returns it when it is dropped.

#![allow(
    unsafe_code,
    reason = "socket options of packet sockets, and memory that is shared with the kernel"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// From linux/if_packet.h.
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_RX_RING: i32 = 5;
const PACKET_STATISTICS: i32 = 6;
const PACKET_VERSION: i32 = 10;
const PACKET_FANOUT: i32 = 18;
const PACKET_MR_PROMISC: u16 = 1;
const TPACKET_V3: i32 = 2;
const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;
const FANOUT_HASH: u32 = 0;
const FANOUT_FLAG_DEFRAG: u32 = 0x8000;
/// Where the status is in struct tpacket_block_desc.
const STATUS: usize = 8;
/// The fields of a block after its status, and where they start in it.
pub(super) const AFTER_STATUS: usize = 12;

/// struct tpacket_req3
#[repr(C)]
struct Request {
    block_size: u32,
    blocks: u32,
    frame_size: u32,
    frames: u32,
    /// After this time, in milliseconds, a block is passed on even if it is not full.
    timeout: u32,
    private: u32,
    features: u32,
}

/// struct packet_mreq
#[repr(C)]
struct Membership {
    interface: i32,
    kind: u16,
    length: u16,
    address: [u8; 8],
}

/// What the kernel counted since the last time: struct tpacket_stats_v3.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Statistics {
    /// Packets, including those that were dropped.
    pub(super) packets: u32,
    /// Packets for which the ring had no room.
    pub(super) dropped: u32,
    /// How often the ring was full.
    pub(super) freezes: u32,
}

/// A packet socket and its ring.
pub(super) struct Ring {
    socket: Socket,
    memory: MmapRaw,
    block_size: usize,
    blocks: usize,
    /// The next block that the kernel will fill.
    next: usize,
}

impl Ring {
    /// A socket that receives nothing yet: packets without their link layer header, for SOCK_DGRAM.
    pub(super) fn new(
        block_size: usize,
        blocks: usize,
        timeout: u32,
        filter: &[SockFilter],
    ) -> io::Result<Ring> {
        // Protocol 0: nothing arrives before `bind`, when the filter and the interface are set.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.attach_filter(filter)?;
        set(&socket, PACKET_VERSION, &TPACKET_V3)?;
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let number = |n: usize| u32::try_from(n).map_err(too_large);
        // Blocks contain packets of any size; the kernel only checks that frames would divide them.
        let frame_size = 1 << 11;
        let request = Request {
            block_size: number(block_size)?,
            blocks: number(blocks)?,
            frame_size: number(frame_size)?,
            frames: number(block_size / frame_size * blocks)?,
            timeout,
            private: 0,
            features: 0,
        };
        set(&socket, PACKET_RX_RING, &request)?;
        let memory = MmapOptions::new().len(block_size * blocks).map_raw(&socket)?;
        Ok(Ring { socket, memory, block_size, blocks, next: 0 })
    }

    /// Starts to receive: from one interface by its index, or with 0 from all.
    pub(super) fn bind(&self, interface: u32) -> io::Result<()> {
        // SAFETY: all fields of sockaddr_ll are integers, for which zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to a sockaddr_ll of this length, which the kernel only reads.
        let bound =
            unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Has the interface receive frames for other machines too, as long as the socket exists.
    pub(super) fn promiscuous(&self, interface: u32) -> io::Result<()> {
        let interface = i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
        let wanted = Membership { interface, kind: PACKET_MR_PROMISC, length: 0, address: [0; 8] };
        set(&self.socket, PACKET_ADD_MEMBERSHIP, &wanted)
    }

    /// Shares packets with the other sockets of this group. Both directions of a flow arrive at the same socket, and
    /// fragments at that of their flow.
    pub(super) fn share(&self, group: u16) -> io::Result<()> {
        let how = u32::from(group) | (FANOUT_HASH | FANOUT_FLAG_DEFRAG) << 16;
        set(&self.socket, PACKET_FANOUT, &how)
    }

    /// The counters since the last call.
    pub(super) fn statistics(&self) -> io::Result<Statistics> {
        let mut found = Statistics::default();
        let mut length = size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `found`, a repr(C) struct of integers of that size.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                (&raw mut found).cast(),
                &raw mut length,
            )
        };
        if got == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
    }

    /// The next block, if the kernel has filled it.
    pub(super) fn block(&mut self) -> Option<Block<'_>> {
        let start = self.next * self.block_size;
        debug_assert!(self.next < self.blocks && self.block_size > AFTER_STATUS);
        // SAFETY: `new` mapped `block_size * blocks` bytes and `next` is less than `blocks`, so this is in the mapping,
        // which lives as long as `self`.
        let block = unsafe { self.memory.as_mut_ptr().add(start) };
        // SAFETY: the block and the status in it are aligned to 4 bytes. The kernel and we access it only atomically.
        let status = unsafe { AtomicU32::from_ptr(block.add(STATUS).cast()) };
        if status.load(Ordering::Acquire) & TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: these bytes are in the mapping, see above, and do not include the status. The status gave the block to
        // us: the kernel does not write to it until `Block` is dropped. `self` is borrowed until then, so there is no
        // second `Block`.
        let bytes = unsafe {
            std::slice::from_raw_parts(block.add(AFTER_STATUS), self.block_size - AFTER_STATUS)
        };
        self.next = (self.next + 1) % self.blocks;
        Some(Block { bytes, status })
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A block that the kernel has filled.
pub(super) struct Block<'a> {
    /// What follows the status.
    pub(super) bytes: &'a [u8],
    status: &'a AtomicU32,
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        self.status.store(TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// Sets an option of packet sockets. `T` is what packet(7) names for it: an integer, or one of the structs above.
fn set<T>(socket: &Socket, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points to `length` bytes, which the kernel only reads.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
