//! Return routes for `transparent`: packets that a backend on loopback sends to a caller's address are delivered to this
//! machine.
//!
//! For each backend there is a policy routing rule, "packets from 127.0.0.1, TCP port 5432, use table 87". In that table
//! every address is local. Other traffic is routed as before. (Like Cloudflare's mmproxy, but by port.)
//!
//! The table's number, the rules' priority and their "protocol" (origin) are all [`OURS`]. If another program uses them,
//! nothing is changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::program;
use super::{ForeignError, InterceptError, MachineError};

/// "W". Its priority is before the rules of VPNs and the like. It is below 256, so that it fits the table field of the
/// kernel's notifications.
pub(super) const OURS: u8 = 87;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Our rules and routes in one address family.
#[derive(PartialEq, Eq)]
struct There {
    backends: BTreeSet<SocketAddr>,
    route: bool,
}

/// Fails if there is no program `ip`.
pub(super) fn can() -> Result<(), InterceptError> {
    Ok(program::find("ip").map(drop).ok_or(MachineError::NoIp)?)
}

/// Sets rules and routes for these backends and removes our other ones. If another program uses our numbers, nothing is
/// changed. If the kernel rejects a change, all of ours are removed.
pub(super) fn put(backends: &BTreeSet<SocketAddr>) -> Result<(), InterceptError> {
    // Without `ip`, we cannot have added any entries.
    if backends.is_empty() && can().is_err() {
        return Ok(());
    }
    let families = [Family::V4, Family::V6];
    // Check for another program's entries before any change.
    families.iter().try_for_each(|f| f.there(f.wanted(backends).route).map(drop))?;
    let done = families.iter().try_for_each(|family| family.put(backends));
    if done.is_err() && !backends.is_empty() {
        let _ = put(&BTreeSet::new()); // the first error is the one to report
    }
    done
}

/// Whether the kernel has exactly these.
pub(super) fn are(backends: &BTreeSet<SocketAddr>) -> Result<bool, InterceptError> {
    if backends.is_empty() {
        return Ok(true); // leftovers are removed when rules are loaded
    }
    for family in [Family::V4, Family::V6] {
        let wanted = family.wanted(backends);
        if family.there(wanted.route)? != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Family {
    fn option(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    fn wanted(self, backends: &BTreeSet<SocketAddr>) -> There {
        let own = backends.iter().filter(|b| b.is_ipv4() == (self == Family::V4));
        let backends: BTreeSet<SocketAddr> = own.copied().collect();
        There { route: !backends.is_empty(), backends }
    }

    fn put(self, backends: &BTreeSet<SocketAddr>) -> Result<(), InterceptError> {
        let wanted = self.wanted(backends);
        let there = self.there(wanted.route)?;
        if wanted.route && !there.route {
            self.route("add")?;
        }
        for backend in wanted.backends.difference(&there.backends) {
            self.rule("add", *backend)?;
        }
        for backend in there.backends.difference(&wanted.backends) {
            self.rule("del", *backend)?;
        }
        if there.route && !wanted.route {
            self.route("del")?;
        }
        Ok(())
    }

    fn route(self, verb: &str) -> Result<(), InterceptError> {
        let all = match self {
            Family::V4 => "0.0.0.0/0",
            Family::V6 => "::/0",
        };
        self.ip(&format!("route {verb} local {all} dev lo table {OURS} protocol {OURS}")).map(drop)
    }

    fn rule(self, verb: &str, of: SocketAddr) -> Result<(), InterceptError> {
        let (ip, port) = (of.ip(), of.port());
        let line = format!(
            "rule {verb} priority {OURS} from {ip} iif lo ipproto 6 sport {port} lookup {OURS} protocol {OURS}"
        );
        self.ip(&line).map(drop)
    }

    /// Our entries. An entry of another program under our numbers is an error if we need them.
    fn there(self, wanted: bool) -> Result<There, InterceptError> {
        let mut there = There { backends: BTreeSet::new(), route: false };
        let mut foreign = None;
        let rules = match self.list("rule list") {
            // The kernel has no IPv6, or `ip` has no JSON output: there are no entries of ours.
            Err(InterceptError::Machine(MachineError::Routes(_))) if !wanted => return Ok(there),
            rules => rules?,
        };
        for rule in rules {
            match our_rule(&rule) {
                Some(backend) => drop(there.backends.insert(backend)),
                None if rule["priority"] == OURS || is_ours(&rule["table"]) => foreign = Some(rule),
                None => {}
            }
        }
        let routes = match self.list(&format!("route show table {OURS}")) {
            Err(InterceptError::Machine(MachineError::Routes(why)))
                if !wanted || why.contains("table does not exist") =>
            {
                Vec::new()
            }
            routes => routes?,
        };
        for route in routes {
            let all = route["type"] == "local" && route["dst"] == "default" && route["dev"] == "lo";
            match all && is_ours(&route["protocol"]) {
                true => there.route = true,
                false => foreign = Some(route),
            }
        }
        match foreign.filter(|_| wanted) {
            Some(foreign) => {
                let shown = foreign.to_string().chars().take(300).collect();
                Err(ForeignError::Routes(shown).into())
            }
            None => Ok(there),
        }
    }

    fn list(self, line: &str) -> Result<Vec<Value>, InterceptError> {
        let said = self.ip_with(&["-j"], line)?;
        // Some versions print nothing for an empty list.
        if said.iter().all(u8::is_ascii_whitespace) {
            return Ok(Vec::new());
        }
        let unread =
            |e| MachineError::Routes(format!("cannot parse the output of `ip {line}`: {e}"));
        Ok(serde_json::from_slice(&said).map_err(unread)?)
    }

    fn ip(self, line: &str) -> Result<Vec<u8>, InterceptError> {
        self.ip_with(&[], line)
    }

    fn ip_with(self, options: &[&str], line: &str) -> Result<Vec<u8>, InterceptError> {
        let words: Vec<&str> =
            [self.option()].iter().chain(options).copied().chain(line.split(' ')).collect();
        let refused = |why| MachineError::Routes(format!("`ip {line}`: {why}"));
        program::run("ip", &words, "").map_err(|e| e.explain(MachineError::NoIp, refused))
    }
}

/// The backend, if the rule is one of ours.
fn our_rule(rule: &Value) -> Option<SocketAddr> {
    let known = ["priority", "src", "iif", "ipproto", "sport", "table", "protocol"];
    let object = rule.as_object().filter(|o| o.len() == known.len())?;
    let tcp = ["tcp", "ipproto-6", "6"]
        .iter()
        .any(|name| object.get("ipproto").is_some_and(|p| p == name));
    let ours = rule["priority"] == OURS
        && rule["iif"] == "lo"
        && tcp
        && is_ours(&rule["table"])
        && is_ours(&rule["protocol"]);
    let ip: IpAddr = rule["src"].as_str()?.parse().ok()?;
    let port = rule["sport"].as_u64()?.try_into().ok()?;
    ours.then(|| SocketAddr::new(ip, port))
}

/// A name instead of a number means that the machine's configuration uses the number for something else.
fn is_ours(number: &Value) -> bool {
    number.as_str().is_some_and(|text| text == OURS.to_string()) || *number == OURS
}
