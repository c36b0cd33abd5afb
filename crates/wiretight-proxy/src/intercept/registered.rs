//! The rules for the mesh as in the registry.

use std::net::IpAddr;

use wiretight_keys::Name;

use super::fallback;
use super::rules::Rules;
use crate::mesh::Mesh;
use crate::network::HostPort;

impl Rules {
    /// Completes these rules from the configuration with data of the mesh: the addresses of other nodes and of the
    /// authority are protected, and application addresses of instances are redirected. `node` is this node. The
    /// second result is whether addresses had to be grouped into networks because there are so many.
    ///
    /// If the rules can be applied without the registry, they can be applied with it, whatever the registry contains.
    pub fn for_mesh(mut self, node: &Name, authority: &[HostPort], mesh: &Mesh) -> (Rules, bool) {
        let registry = mesh.registry();
        let others = registry.services.values().flatten().filter(|i| i.node != *node);
        let addresses = others.map(|i| &i.addr).chain(authority);
        let addresses = addresses.filter_map(|addr| Some(addr.as_ip()?.ip().to_canonical()));
        let on_a_wire = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        let grouped;
        (self.protected, grouped) =
            fallback::protected(addresses.filter(on_a_wire), &self.protected);
        let redirected = mesh.redirected().into_iter();
        self.taken = redirected.filter(|to| on_a_wire(&to.ip())).collect();
        (self, grouped)
    }
}
