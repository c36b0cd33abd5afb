//! Permanently drops capabilities, for this process and all that it starts.
//!
//! Linux capabilities are per thread, so call these functions before a second thread exists.

use std::io;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use socket2::{Domain, SockRef, Socket, Type};
use wiretight_proxy::net;

/// The capabilities that a node keeps, if it has them. A reload may add a port below 1024 or refer to files of other users,
/// which root is expected to read (Landlock limits the directories). The node writes only its own files.
const NODE: CapabilitySet = CapabilitySet::NET_BIND_SERVICE.union(CapabilitySet::DAC_READ_SEARCH);

/// Disables core dumps, so that keys in memory are not written to disk in a crash. The limit is one byte, not zero: for
/// dumps that are piped to a program, the kernel ignores zero, but takes one byte as "no dump" (core(5)).
///
/// Not PR_SET_DUMPABLE, which would also hide /proc/PID/exe from `wiretight upgrade`.
pub(crate) fn no_core_dumps() {
    let none = Rlimit { current: Some(1), maximum: Some(1) };
    // If the hard limit is zero it cannot be raised; then there are no dumps to files anyway.
    if setrlimit(Resource::Core, none).is_err() {
        let zero = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = setrlimit(Resource::Core, zero);
    }
}

/// For a node, after it has started its children. `intercepts`: it marks its sockets, and may use callers' addresses.
pub(crate) fn keep_what_a_node_needs(intercepts: bool) -> anyhow::Result<()> {
    let failed = "cannot drop capabilities; a system call filter may forbid capset";
    let have = capabilities(None).context(failed)?;
    let mut needed = NODE;
    if intercepts {
        needed |= CapabilitySet::NET_RAW;
        // Before Linux 5.17, setting the mark needs CAP_NET_ADMIN.
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

/// For a program that has opened everything that needs capabilities.
pub(crate) fn keep_nothing() -> io::Result<()> {
    keep_only(CapabilitySet::empty(), CapabilitySet::empty())
}

/// For the child that maintains the kernel's rules, and for the `nft` and `ip` that it runs. Returns whether it has the
/// capability.
pub(crate) fn keep_net_admin_only() -> io::Result<bool> {
    const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN;
    if !capabilities(None)?.permitted.contains(NEEDED) {
        return Ok(false);
    }
    keep_only(NEEDED, NEEDED)?;
    Ok(true)
}

/// `started`: the capabilities of programs that this one starts.
fn keep_only(kept: CapabilitySet, started: CapabilitySet) -> io::Result<()> {
    // Otherwise programs started by root would get all capabilities again. This needs CAP_SETPCAP; a process without it
    // has only what the service manager granted.
    for bit in (0..64).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
        if !kept.contains(bit) && remove_capability_from_bounding_set(bit).is_err() {
            break;
        }
    }
    // Capabilities that are not inheritable are also removed from the ambient set.
    let only = CapabilitySets { effective: kept, permitted: kept, inheritable: started };
    // Skip the call if nothing would change: a system call filter may forbid it.
    if capabilities(None)? != only {
        set_capabilities(None, only)?;
    }
    // Needed if the user is not root.
    if !started.is_empty() {
        configure_capability_in_ambient_set(started, true)?;
    }
    Ok(set_no_new_privs(true)?)
}
