//! The rules for a mesh as the registry knows it.

use std::net::IpAddr;

use wiretight_keys::Name;

use super::fallback;
use super::rules::Rules;
use crate::mesh::Mesh;
use crate::network::HostPort;

impl Rules {
    /// These rules of a configuration, with what is known of the mesh: the addresses of other nodes and of the authority
    /// are protected, and what instances stand for is redirected. `node`: this one. Also whether there were so many
    /// addresses that neighbours are protected with them.
    ///
    /// Whatever the registry holds, rules that could be applied without it can be applied with it.
    pub fn for_mesh(mut self, node: &Name, authority: &[HostPort], mesh: &Mesh) -> (Rules, bool) {
        let registry = mesh.registry();
        let others = registry.services.values().flatten().filter(|i| i.node != *node);
        let addresses = others.map(|i| &i.addr).chain(authority);
        let addresses = addresses.filter_map(|addr| Some(addr.as_ip()?.ip().to_canonical()));
        let on_a_wire = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        let grouped;
        (self.protected, grouped) =
            fallback::protected(addresses.filter(on_a_wire), &self.protected);
        let stood_for = mesh.stood_for().into_iter();
        self.taken = stood_for.filter(|to| on_a_wire(&to.ip())).collect();
        (self, grouped)
    }
}
