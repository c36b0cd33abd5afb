//! Rules to use when the wanted rules cannot be applied; they never let more plaintext through than before.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::rules::{MAX_PROTECTED, Mode, Rules};
use crate::network::Network;
use crate::registry::MAX_REDIRECTED;

/// The prefix lengths to which addresses are grouped if there are more than the kernel sets should contain: for IPv4
/// and IPv6.
const STEPS: [(u8, u8); 5] = [(24, 64), (16, 48), (8, 32), (4, 16), (0, 0)];

/// The addresses and networks to protect, at most [`MAX_PROTECTED`]. If there are more, neighbouring addresses are
/// grouped into networks, so that every address stays protected, and some others with them. The second result is
/// whether that was necessary.
pub fn protected(
    addresses: impl IntoIterator<Item = IpAddr>,
    networks: &[Network],
) -> (Vec<Network>, bool) {
    let usable =
        |n: &Network| !matches!(n.first(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let networks: BTreeSet<Network> = networks.iter().copied().filter(usable).collect();
    let addresses: BTreeSet<Network> = addresses.into_iter().map(Network::from).collect();
    let all: BTreeSet<Network> = addresses.union(&networks).copied().collect();
    if all.len() <= MAX_PROTECTED {
        return (all.into_iter().collect(), false);
    }
    for (four, six) in STEPS {
        let grouped = all.iter().map(|n| n.wider(if n.first().is_ipv4() { four } else { six }));
        let grouped = Network::widest(grouped);
        if grouped.len() <= MAX_PROTECTED {
            return (grouped, true);
        }
    }
    unreachable!("two networks cover all addresses")
}

impl Rules {
    /// The stricter of these rules and `old`, in each respect. Used when these rules cannot be applied, so anything
    /// in them that cannot be applied is left out.
    pub fn no_looser_than(&self, old: &Rules) -> Rules {
        let both =
            |a: &[IpAddr], b: &[IpAddr]| a.iter().filter(|x| b.contains(x)).copied().collect();
        let mode_of = |rules: &Rules, ip: &IpAddr| {
            let protected = rules.protected.iter().any(|n| n.contains(*ip)).then_some(rules.mode);
            rules.peers.get(ip).copied().or(protected)
        };
        let peer = |ip: &IpAddr| {
            let mode: Mode = mode_of(self, ip).max(mode_of(old, ip))?;
            Some((*ip, mode))
        };
        let networks: Vec<Network> = self.protected.iter().chain(&old.protected).copied().collect();
        let (protected, _) = protected([], &networks);
        let management = self.management.iter().filter(|port| old.management.contains(port));
        let mut rules = Rules {
            mode: self.mode.max(old.mode),
            peers: self.peers.keys().chain(old.peers.keys()).filter_map(peer).collect(),
            mark: self.mark,
            port: self.port,
            listens: self.listens.clone(),
            taken: self.taken.union(&old.taken).copied().collect(),
            protected,
            passes: self.passes.iter().filter(|p| old.passes.contains(p)).cloned().collect(),
            resolvers: both(&self.resolvers, &old.resolvers),
            management: management.copied().collect(),
            cgroups: match self.cgroups == old.cgroups {
                true => self.cgroups.clone(),
                false => Vec::new(),
            },
            transparent: self.transparent.union(&old.transparent).copied().collect(),
        };
        rules.leave_out_what_cannot_be();
        rules
    }

    /// Only the part that blocks plaintext; nothing is redirected.
    pub fn only_stopping(&self) -> Rules {
        let mut rules = Rules { taken: BTreeSet::new(), cgroups: Vec::new(), ..self.clone() };
        rules.protected = protected([], &rules.protected).0;
        rules.leave_out_what_cannot_be();
        rules
    }

    /// Removes addresses and ports from other nodes that [`Rules::check`] would reject.
    fn leave_out_what_cannot_be(&mut self) {
        let nowhere = |ip: IpAddr| {
            let ip = ip.to_canonical();
            ip.is_unspecified() || ip.is_loopback()
        };
        self.peers.retain(|ip, _| !nowhere(*ip));
        self.taken.retain(|to| to.port() != 0 && !nowhere(to.ip()));
        self.taken = std::mem::take(&mut self.taken).into_iter().take(MAX_REDIRECTED).collect();
        self.listens.remove(&0);
        let (listens, port) = (&self.listens, self.port);
        self.management.retain(|p| *p != 0 && !listens.contains(p) && *p != port);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::{Direction, Pass, Protocol};
    use super::*;

    fn rules(mode: Mode) -> Rules {
        Rules {
            mode,
            peers: Default::default(),
            mark: 1,
            port: 7491,
            listens: [7432].into(),
            taken: Default::default(),
            protected: Vec::new(),
            passes: Vec::new(),
            resolvers: Vec::new(),
            management: vec![22],
            cgroups: Vec::new(),
            transparent: Default::default(),
        }
    }

    #[test]
    fn the_stricter_of_old_and_new_is_used_everywhere() {
        let pass = |port| Pass {
            protocol: Protocol::Tcp,
            network: "10.0.0.1".parse().unwrap(),
            port: Some(port),
            direction: Direction::Out,
        };
        let old = Rules {
            protected: vec!["10.0.0.0/24".parse().unwrap()],
            passes: vec![pass(1), pass(2)],
            taken: ["10.0.0.5:80".parse().unwrap()].into(),
            peers: [("10.9.9.9".parse().unwrap(), Mode::Strict)].into(),
            ..rules(Mode::Strict)
        };
        let new = Rules {
            protected: vec!["10.0.1.7".parse().unwrap()],
            passes: vec![pass(2), pass(3)],
            // Data from other nodes must not make the rules invalid.
            taken: [
                "10.0.1.7:81".parse().unwrap(),
                "10.0.1.7:0".parse().unwrap(),
                "0.0.0.0:81".parse().unwrap(),
            ]
            .into(),
            peers: [
                ("10.0.0.9".parse().unwrap(), Mode::Observe),
                ("10.7.7.7".parse().unwrap(), Mode::Observe),
            ]
            .into(),
            management: vec![22, 80],
            ..rules(Mode::Observe)
        };
        assert!(new.check().is_err());
        let kept = new.no_looser_than(&old);
        assert_eq!(kept.check(), Ok(()));
        assert_eq!(kept.mode, Mode::Strict);
        let holds = |ip: &str| kept.protected.iter().any(|n| n.contains(ip.parse().unwrap()));
        assert!(holds("10.0.0.200") && holds("10.0.1.7") && !holds("10.0.1.8"));
        assert_eq!(kept.passes, [pass(2)]);
        assert_eq!(kept.management, [22]);
        assert_eq!(kept.taken.len(), 2);
        let peer = |ip: &str| kept.peers.get(&ip.parse().unwrap()).copied();
        assert_eq!(peer("10.9.9.9"), Some(Mode::Strict));
        assert_eq!(peer("10.0.0.9"), Some(Mode::Strict), "protected by the old rules");
        assert_eq!(peer("10.7.7.7"), Some(Mode::Observe), "not in the old rules");
        assert_eq!(new.only_stopping().check(), Ok(()));
    }

    #[test]
    fn too_many_addresses_are_grouped_into_networks() {
        let address = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let few = protected((0..100).map(address), &[]);
        assert!(few.0.len() == 100 && !few.1);
        let (networks, grouped) =
            protected((0..200_000).map(|n| address(n * 3)), &["192.0.2.0/28".parse().unwrap()]);
        assert!(grouped && networks.len() <= MAX_PROTECTED, "{}", networks.len());
        for n in (0..200_000).step_by(997) {
            assert!(networks.iter().any(|net| net.contains(address(n * 3))));
        }
        assert!(networks.iter().any(|net| net.contains("192.0.2.15".parse().unwrap())));
        assert!(!networks.iter().any(|net| net.contains("172.16.0.1".parse().unwrap())));
        let sparse = (0..200_000u32).map(|n| IpAddr::V4(n.wrapping_mul(2_654_435_761).into()));
        assert!(protected(sparse, &[]).0.len() <= MAX_PROTECTED);
    }
}
