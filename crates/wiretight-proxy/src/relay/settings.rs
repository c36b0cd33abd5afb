//! The relay's settings: the parsed form of `[[service]]`, `[[dial]]` and `[intercept]`.

use std::net::SocketAddr;
use std::time::Duration;

use wiretight_keys::{Id, Name};

use crate::network::{Backend, HostPort};

/// `[[service]]`: accepts mesh connections and connects to the program in plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    /// The service's name; its identity is `service/NAME`.
    pub name: Name,
    /// The address for mesh and mutual TLS connections.
    pub listen: SocketAddr,
    /// The program's addresses: one for each instance.
    pub forward: Vec<Backend>,
    /// The identities that may connect; all others are refused.
    pub allow: Vec<Id>,
    /// Send a PROXY protocol v2 header with the peer's SPIFFE ID before the stream.
    pub proxy_protocol: bool,
    /// Connect to the program from the caller's address. Then all of `forward` are IP addresses, and the program's
    /// answers must be routed back here: [`net::set_answered`](crate::net::set_answered).
    pub transparent: bool,
    /// Close a session after this time without data; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// The largest number of connections, idle and busy, of one peer identity.
    pub max_per_peer: u32,
    /// The ports of this host on which programs on other nodes reach the service. Where connections are intercepted,
    /// connections to these ports go to this service.
    pub ports: Vec<u16>,
}

/// `[[dial]]`: accepts plaintext connections from a local program and makes mesh connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialSettings {
    /// The address for the local program.
    pub listen: SocketAddr,
    /// The service to connect to.
    pub service: Name,
    /// The identity to authenticate with: a service that this node may use, or the node itself.
    pub identity: Id,
    /// Fixed addresses of the service; if empty, those in the registry are used.
    pub to: Vec<HostPort>,
    /// Close a session after this time without data; `None`: never.
    pub idle_timeout: Option<Duration>,
}

/// `[intercept]`: accepts connections that the kernel redirected from local programs, and makes mesh connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptSettings {
    /// The port on 127.0.0.1 and ::1 to which the kernel redirects them.
    pub port: u16,
    /// The identity to authenticate with: a service that this node may use, or the node itself.
    pub identity: Id,
}

/// All settings of the relay, from the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelaySettings {
    pub intercept: Option<InterceptSettings>,
    /// The services on this node.
    pub services: Vec<ServiceSettings>,
    /// The services that programs on this node connect to.
    pub dials: Vec<DialSettings>,
}
