//! Checks each record that a node announces: whether the node may offer the service, and whether the address is its own.
//!
//! A node offers services at the address that its stream comes from. The operator must grant any other address (behind
//! NAT, or of a second interface). Strict nodes stop plaintext to every announced address, so a node that could announce
//! any address could cut them off from it.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};

use wiretight_keys::Name;
use wiretight_proxy::network::HostPort;
use wiretight_proxy::registry::{Host, MAX_INSTANCES, Problems, check_address, check_lists};

use super::registry::may_not_claim;
use crate::control::{Code, Denial, Offer, Records};

/// The node that announces.
pub struct Announcer<'a> {
    pub node: &'a Name,
    /// The services that it may claim.
    pub services: &'a BTreeSet<Name>,
    /// The address that its stream comes from.
    pub from: IpAddr,
    /// Other addresses that it was granted.
    pub addresses: &'a BTreeSet<Host>,
    /// The node in this process may announce any address: the operator configured it on the authority itself.
    pub is_own: bool,
}

impl Announcer<'_> {
    /// Returns the accepted records, and why others were rejected.
    pub fn admit(&self, offers: Records<Offer>) -> (Vec<Offer>, Option<Denial>) {
        let (mut unclaimable, mut dropped, mut lists) =
            <(BTreeSet<String>, Problems, Problems)>::default();
        if offers.unreadable > 0 {
            dropped.add(|| format!("{} records are unreadable", offers.unreadable));
        }
        let mut all = offers.good;
        if all.len() > MAX_INSTANCES {
            dropped.add(|| {
                format!(
                    "{} instances announced, but {MAX_INSTANCES} are the limit; the rest is ignored",
                    all.len()
                )
            });
            all.truncate(MAX_INSTANCES);
        }
        let (mut seen, mut ports) = (BTreeSet::new(), 0);
        all.retain_mut(|o| {
            let Offer { service, addr, .. } = &*o;
            if !self.services.contains(service) {
                unclaimable.insert(service.to_string());
                return false;
            }
            if let Err(bad) = check_address(addr) {
                dropped.add(|| format!("service {service}: {bad}"));
                return false;
            }
            if !self.is_at(addr) {
                dropped.add(|| self.elsewhere(service, addr));
                return false;
            }
            if !seen.insert((service.clone(), addr.clone())) {
                return false;
            }
            let what = format!("service {service} at {addr}");
            if let Err(bad) = check_lists(&mut o.allow, &mut o.ports, &mut ports) {
                lists.add(|| format!("{what}: {bad}; this list is ignored"));
            }
            true
        });
        if !unclaimable.is_empty() {
            let names = unclaimable.into_iter().collect::<Vec<_>>().join(", ");
            dropped.add(|| may_not_claim(self.node, &names));
        }
        let (dropped, lists) = (dropped.into_lines(), lists.into_lines());
        let code = match (dropped.is_empty(), lists.is_empty()) {
            (true, true) => return (all, None),
            (true, false) => Code::BadRequest,
            (false, _) => Code::NotAllowed,
        };
        let message = [dropped, lists].concat().join("; ");
        (all, Some(Denial::new(code, message)))
    }

    fn is_at(&self, addr: &HostPort) -> bool {
        if self.is_own || self.addresses.contains(&Host::from(addr)) {
            return true;
        }
        let from = self.from.to_canonical();
        match addr.as_ip() {
            Some(at) => {
                let ip = at.ip().to_canonical();
                ip == from || is_this_machine(from) && is_this_machine(ip)
            }
            None => from.is_loopback() && addr.host().eq_ignore_ascii_case("localhost"),
        }
    }

    fn elsewhere(&self, service: &Name, addr: &HostPort) -> String {
        let Announcer { node, from, .. } = self;
        let (from, host) = (from.to_canonical(), Host::from(addr));
        format!(
            "service {service} at {addr}: node {node} connects from {from}, and may only announce that address. If {host} is also its own (NAT, a second interface, a DNS name), run on the authority: wiretight node grant {node} --add --address {host}"
        )
    }
}

fn is_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(service: &str, addr: &str, ports: impl IntoIterator<Item = u16>) -> Offer {
        Offer {
            service: service.parse().unwrap(),
            addr: addr.parse().unwrap(),
            allow: vec![],
            ports: ports.into_iter().collect(),
        }
    }

    fn admit(from: &str, granted: &[&str], offers: Vec<Offer>) -> (Vec<Offer>, Option<Denial>) {
        let node = "n".parse().unwrap();
        let announcer = Announcer {
            node: &node,
            services: &["db", "web"].map(|s| s.parse().unwrap()).into(),
            from: from.parse().unwrap(),
            addresses: &granted.iter().map(|a| a.parse().unwrap()).collect(),
            is_own: false,
        };
        announcer.admit(offers.into())
    }

    #[test]
    fn a_node_may_announce_its_own_and_granted_addresses() {
        for (from, granted, addr, may) in [
            ("192.0.2.5", &[][..], "192.0.2.5:1", true),
            ("192.0.2.5", &[], "[::ffff:192.0.2.5]:1", true),
            ("::ffff:192.0.2.5", &[], "192.0.2.5:1", true),
            ("192.0.2.5", &[], "192.0.2.6:123", false),
            ("192.0.2.5", &[], "127.0.0.1:1", false),
            ("192.0.2.5", &[], "[2001:db8::5]:1", false),
            ("192.0.2.5", &[], "db.example:1", false),
            ("192.0.2.5", &[], "localhost:1", false),
            ("192.0.2.5", &["192.0.2.6"], "192.0.2.6:1", true),
            ("192.0.2.5", &["db.example"], "DB.Example:1", true),
            ("192.0.2.5", &["192.0.2.6"], "192.0.2.7:1", false),
            ("127.0.0.1", &[], "127.0.0.2:1", true),
            ("127.0.0.1", &[], "[::1]:1", true),
            ("127.0.0.1", &[], "localhost:1", true),
            ("127.0.0.1", &[], "192.0.2.5:1", false),
        ] {
            let (good, denial) = admit(from, granted, vec![offer("db", addr, [])]);
            assert_eq!((good.len(), denial.is_none()), (usize::from(may), may), "{from} {addr}");
        }
        let (_, denial) = admit("192.0.2.5", &[], vec![offer("db", "192.0.2.6:123", [])]);
        let why = denial.unwrap().message;
        assert!(why.contains("wiretight node grant n --add --address 192.0.2.6"), "{why}");
    }

    #[test]
    fn an_invalid_record_does_not_affect_the_others() {
        let at = "192.0.2.5:1";
        let good = offer("db", at, [5432]);
        let (all, denial) = admit(
            "192.0.2.5",
            &[],
            vec![
                offer("db", "0.0.0.0:1", []),
                offer("secret", at, []),
                good.clone(),
                good.clone(),
                offer("web", at, 1..=16_500),
                offer("web", "192.0.2.5:2", [0]),
                offer("db", "255.255.255.255:1", []),
            ],
        );
        assert_eq!(all, [good, offer("web", at, []), offer("web", "192.0.2.5:2", [])]);
        let denial = denial.unwrap();
        assert_eq!(denial.code, Code::NotAllowed);
        for part in
            ["0.0.0.0:1", "may not claim secret", "16500 ports", "contain 0", "255.255.255.255"]
        {
            assert!(denial.message.contains(part), "{denial} lacks {part}");
        }
        // If only lists are invalid, the code differs, because the instance is still reachable.
        let (all, denial) = admit("192.0.2.5", &[], vec![offer("web", at, [0])]);
        assert_eq!((all.len(), denial.unwrap().code), (1, Code::BadRequest));
        let many =
            (0..5000).map(|n| offer("db", &format!("192.0.2.5:{}", n + 1), [1, 2])).collect();
        let (all, denial) = admit("192.0.2.5", &[], many);
        assert_eq!(all.len(), MAX_INSTANCES);
        assert_eq!(all.iter().map(|o| o.ports.len()).sum::<usize>(), 4096);
        assert!(denial.unwrap().message.len() < 8000);
    }
}
