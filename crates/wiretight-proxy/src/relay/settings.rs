//! What the relay is told to do: the parsed form of `[[service]]` and `[[dial]]`.

use std::net::SocketAddr;
use std::time::Duration;

use wiretight_keys::{Id, Name};

use crate::network::{Backend, HostPort};

/// `[[service]]`: mesh connections in, plain connections out to the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    /// The service's name; its identity is `service/NAME`.
    pub name: Name,
    /// Where mesh and mutual TLS connections arrive.
    pub listen: SocketAddr,
    /// The program, one or more instances of it.
    pub forward: Vec<Backend>,
    /// Who may connect; nobody else may.
    pub allow: Vec<Id>,
    /// Send a PROXY protocol v2 header, with the peer's SPIFFE ID, ahead of the stream.
    pub proxy_protocol: bool,
    /// Connect the program from the caller's address. All of `forward` are addresses then, and what the program
    /// answers has to be routed back here: [`net::set_answered`](crate::net::set_answered).
    pub transparent: bool,
    /// Close a session in which nothing has moved for this long; never, if `None`.
    pub idle_timeout: Option<Duration>,
    /// Connections (idle and busy) that one peer identity may hold open.
    pub max_per_peer: u32,
    /// The ports of this host that programs elsewhere connect to when they mean it: where connections are
    /// intercepted, these are taken to it.
    pub ports: Vec<u16>,
}

/// `[[dial]]`: plain connections in from a local program, mesh connections out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialSettings {
    /// Where the local program connects.
    pub listen: SocketAddr,
    /// The service to reach.
    pub service: Name,
    /// The identity to show: a service that this node may claim, or the node itself.
    pub identity: Id,
    /// Given addresses; empty means those in the registry.
    pub to: Vec<HostPort>,
    /// Close a session in which nothing has moved for this long; never, if `None`.
    pub idle_timeout: Option<Duration>,
}

/// `[intercept]`: connections that the kernel has taken from local programs, mesh connections out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptSettings {
    /// The port of 127.0.0.1 and of ::1 to which the kernel sends them.
    pub port: u16,
    /// The identity to show: a service that this node may claim, or the node itself.
    pub identity: Id,
}

/// All that the relay is told by the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelaySettings {
    /// What is done with connections that the kernel takes from programs.
    pub intercept: Option<InterceptSettings>,
    /// The services that this node offers.
    pub services: Vec<ServiceSettings>,
    /// The services that this node's programs reach.
    pub dials: Vec<DialSettings>,
}
