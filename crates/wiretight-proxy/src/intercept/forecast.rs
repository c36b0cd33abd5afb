//! Forecasts what strict mode would drop, from the plaintext that was observed.
//!
//! A flow is listed for a day. Flows that have an exception by now, or that would now go to the relay, are not
//! counted.

use super::listing::Flow;
use super::rules::{Direction, Pass, Protocol, Rules};

impl Rules {
    /// Whether this plaintext passed but would be dropped if the default mode were strict. Peers with their own mode
    /// keep it.
    pub fn strict_would_stop(&self, flow: &Flow) -> bool {
        !flow.dropped
            && !self.peers.contains_key(&flow.peer)
            && !self.takes(flow)
            && !self.excepts(flow)
    }

    /// Whether its next connection will be redirected to the relay, in any mode except observe.
    fn takes(&self, flow: &Flow) -> bool {
        flow.protocol == "tcp"
            && flow.direction == Direction::Out
            && self.cgroups.is_empty()
            && self.taken.contains(&(flow.peer, flow.port).into())
    }

    fn excepts(&self, flow: &Flow) -> bool {
        let ported = matches!(flow.protocol.as_str(), "tcp" | "udp");
        let dns = ported && flow.port == 53 && flow.direction == Direction::Out;
        let management = flow.protocol == "tcp" && flow.direction == Direction::In;
        (dns && self.resolvers.contains(&flow.peer))
            || (management && self.management.contains(&flow.port))
            || self.passes.iter().any(|pass| covers(pass, flow))
    }
}

fn covers(pass: &Pass, flow: &Flow) -> bool {
    let name = flow.protocol.as_str();
    let same = match pass.protocol {
        Protocol::Tcp => name == "tcp",
        Protocol::Udp => name == "udp",
        // Replies are listed as a separate flow.
        Protocol::Icmp => matches!(name, "icmp" | "ipv6-icmp" | "icmpv6"),
        Protocol::Number(number) => name == number.to_string() || name == named(number),
    };
    let direction = pass.protocol == Protocol::Icmp || pass.direction == flow.direction;
    let port = pass.port.is_none_or(|port| port == flow.port);
    same && direction && port && pass.network.contains(flow.peer)
}

/// The name that nft uses for a protocol (/etc/protocols), for those that are likely in an exception.
fn named(number: u8) -> &'static str {
    match number {
        47 => "gre",
        50 => "esp",
        51 => "ah",
        132 => "sctp",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Mode;
    use super::*;

    #[test]
    fn only_flows_that_strict_mode_would_drop_are_reported() {
        let pass = |protocol, network: &str, port, direction| Pass {
            protocol,
            network: network.parse().unwrap(),
            port,
            direction,
        };
        let rules = Rules {
            mode: Mode::Observe,
            peers: [("10.0.0.9".parse().unwrap(), Mode::Observe)].into(),
            mark: 1,
            port: 7491,
            listens: [].into(),
            taken: ["10.0.0.2:5432".parse().unwrap()].into(),
            protected: vec!["10.0.0.0/24".parse().unwrap()],
            passes: vec![
                pass(Protocol::Udp, "10.0.0.1", Some(123), Direction::Out),
                pass(Protocol::Number(50), "10.0.0.0/24", None, Direction::In),
            ],
            resolvers: vec!["10.0.0.53".parse().unwrap()],
            management: vec![22],
            cgroups: Vec::new(),
            transparent: Default::default(),
        };
        let flow = |peer: &str, protocol: &str, port, direction| Flow {
            peer: peer.parse().unwrap(),
            protocol: protocol.into(),
            port,
            direction,
            dropped: false,
            packets: 1,
            bytes: 1,
            last_seen: 0,
            programs: Vec::new(),
        };
        let (within, out) = (Direction::In, Direction::Out);
        for (peer, protocol, port, direction, stops) in [
            ("10.0.0.2", "tcp", 5432, out, false),
            ("10.0.0.2", "tcp", 5433, out, true),
            ("10.0.0.2", "udp", 5432, out, true),
            ("10.0.0.2", "tcp", 5432, within, true),
            ("10.0.0.1", "udp", 123, out, false),
            ("10.0.0.1", "udp", 123, within, true),
            ("10.0.0.1", "udp", 124, out, true),
            ("10.0.0.3", "udp", 123, out, true),
            ("10.0.0.3", "esp", 0, within, false),
            ("10.0.0.3", "esp", 0, out, true),
            ("10.0.0.53", "udp", 53, out, false),
            ("10.0.0.2", "udp", 53, out, true),
            ("10.0.0.2", "tcp", 22, within, false),
            ("10.0.0.2", "tcp", 22, out, true),
            ("10.0.0.9", "tcp", 80, out, false),
        ] {
            let flow = flow(peer, protocol, port, direction);
            assert_eq!(rules.strict_would_stop(&flow), stops, "{flow:?}");
            assert!(!rules.strict_would_stop(&Flow { dropped: true, ..flow }));
        }
        // If only some programs are redirected, it is not known whether this one is.
        let some = Rules { cgroups: vec!["a".into()], ..rules };
        assert!(some.strict_would_stop(&flow("10.0.0.2", "tcp", 5432, out)));
    }
}
