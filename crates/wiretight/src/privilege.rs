//! Capabilities: what a process of ours gives up for good, for itself and for all that it starts.
//!
//! Linux counts them by thread: these are to be called before there is a second one.

use std::io;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use socket2::{Domain, SockRef, Socket, Type};
use wiretight_proxy::net;

/// What a node keeps of what it has. A reload may listen on a port under 1024, and may name files of other users,
/// which root is expected to read (Landlock says in which directories). It writes only what is its own.
const NODE: CapabilitySet = CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::DAC_READ_SEARCH);

/// Keys in memory do not go to a disk when a process crashes. The limit is one byte and not zero: the kernel ignores
/// zero for dumps that it pipes to a program, and takes one byte as "no dump" for those too (core(5)).
///
/// The limit and not PR_SET_DUMPABLE, which would also hide /proc/PID/exe from `wiretight upgrade`.
pub(crate) fn no_core_dumps() {
    let none = Rlimit { current: Some(1), maximum: Some(1) };
    // A lower hard limit that cannot be raised to one byte is zero: then there are no dumps to files either.
    if setrlimit(Resource::Core, none).is_err() {
        let zero = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = setrlimit(Resource::Core, zero);
    }
}

/// For a node that has started its children. `intercepts`: its sockets have the mark, and some a caller's address.
pub(crate) fn keep_what_a_node_needs(intercepts: bool) -> anyhow::Result<()> {
    let failed = "capabilities cannot be given up: does a system call filter forbid capset?";
    let have = capabilities(None).context(failed)?;
    let mut needed = NODE;
    if intercepts {
        needed |= CapabilitySet::NET_RAW;
        // Before Linux 5.17 the mark takes more.
        if !can_mark_with(needed, have).context(failed)? {
            needed |= CapabilitySet::NET_ADMIN;
        }
    }
    keep_only(needed & have.permitted, CapabilitySet::empty()).context(failed)
}

fn can_mark_with(needed: CapabilitySet, have: CapabilitySets) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    set_capabilities(None, CapabilitySets { effective: needed & have.permitted, ..have })?;
    let marked = net::mark(&SockRef::from(&socket)).is_ok();
    set_capabilities(None, have)?;
    Ok(marked)
}

/// For the child that keeps the kernel's rules, and for the `nft` and `ip` that it runs. Whether it has it.
pub(crate) fn keep_net_admin_only() -> io::Result<bool> {
    const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN;
    if !capabilities(None)?.permitted.contains(NEEDED) {
        return Ok(false);
    }
    keep_only(NEEDED, NEEDED)?;
    Ok(true)
}

/// `started`: what programs have that this one starts.
fn keep_only(kept: CapabilitySet, started: CapabilitySet) -> io::Result<()> {
    // A program that root starts would have all of these again. This takes CAP_SETPCAP; who does not have it has
    // no more than the service manager gave.
    for bit in (0..64).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
        if !kept.contains(bit) && remove_capability_from_bounding_set(bit).is_err() {
            break;
        }
    }
    // What is not inheritable leaves the ambient set, too.
    let only = CapabilitySets { effective: kept, permitted: kept, inheritable: started };
    // A service manager's system call filter may forbid it where it has been done already.
    if capabilities(None)? != only {
        set_capabilities(None, only)?;
    }
    // For who is not root.
    if !started.is_empty() {
        configure_capability_in_ambient_set(started, true)?;
    }
    Ok(set_no_new_privs(true)?)
}
