//! The way back of `transparent`: what a backend on loopback sends to a caller's address is given to this machine.
//!
//! For each backend there is a rule of policy routing, "what is sent from 127.0.0.1, TCP port 5432, looks into table
//! 87", and in that table every address is this machine's. Nothing else of the machine is routed otherwise. (As in
//! Cloudflare's mmproxy, but by port.)
//!
//! The table's number, the rules' priority and their mark of origin ("protocol") are all [`OURS`]. Who else is there is
//! left alone, and nothing is applied.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::InterceptError;
use super::program::{self, ProgramError};

/// "W". Ahead of the tables of VPNs and the like, and below 256, so that the kernel's notices tell it.
pub(super) const OURS: u8 = 87;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// What the kernel has of ours in one family.
#[derive(PartialEq, Eq)]
struct There {
    backends: BTreeSet<SocketAddr>,
    route: bool,
}

/// Whether `ip` is to be found.
pub(super) fn can() -> Result<(), InterceptError> {
    program::find("ip").map(drop).ok_or(InterceptError::NoIp)
}

/// Makes rules and routes for these backends, and takes away those of ours for others: all of it. Where somebody else
/// is in our place nothing is touched; where the kernel refuses, nothing is left of ours.
pub(super) fn put(backends: &BTreeSet<SocketAddr>) -> Result<(), InterceptError> {
    // Whoever has no `ip` has never made any.
    if backends.is_empty() && can().is_err() {
        return Ok(());
    }
    let families = [Family::V4, Family::V6];
    // Who else is there, before anything is touched.
    families.iter().try_for_each(|f| f.there(f.wanted(backends).route).map(drop))?;
    let done = families.iter().try_for_each(|family| family.put(backends));
    if done.is_err() && !backends.is_empty() {
        let _ = put(&BTreeSet::new()); // the first error is the one that is told
    }
    done
}

/// Whether the kernel has just these.
pub(super) fn are(backends: &BTreeSet<SocketAddr>) -> Result<bool, InterceptError> {
    if backends.is_empty() {
        return Ok(true); // what is left of others is taken away when rules are put in force
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

    /// What is there of ours. Something of others in our place is an error where we want the place.
    fn there(self, wanted: bool) -> Result<There, InterceptError> {
        let mut there = There { backends: BTreeSet::new(), route: false };
        let mut foreign = None;
        let rules = match self.list("rule list") {
            // Without IPv6 in the kernel there is nothing of it; with an `ip` that does not know JSON, nothing of ours.
            Err(InterceptError::Routes(_)) if !wanted => return Ok(there),
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
            Err(InterceptError::Routes(why)) if !wanted || why.contains("table does not exist") => {
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
                Err(InterceptError::RoutesNotOurs(shown))
            }
            None => Ok(there),
        }
    }

    fn list(self, line: &str) -> Result<Vec<Value>, InterceptError> {
        let said = self.ip_with(&["-j"], line)?;
        // Of nothing, some versions say nothing.
        if said.iter().all(u8::is_ascii_whitespace) {
            return Ok(Vec::new());
        }
        let unread = |e| InterceptError::Routes(format!("`ip {line}` cannot be read: {e}"));
        serde_json::from_slice(&said).map_err(unread)
    }

    fn ip(self, line: &str) -> Result<Vec<u8>, InterceptError> {
        self.ip_with(&[], line)
    }

    fn ip_with(self, options: &[&str], line: &str) -> Result<Vec<u8>, InterceptError> {
        let words: Vec<&str> =
            [self.option()].iter().chain(options).copied().chain(line.split(' ')).collect();
        program::run("ip", &words, "").map_err(|e| match e {
            ProgramError::Missing => InterceptError::NoIp,
            ProgramError::NotPermitted => InterceptError::NotPermitted,
            ProgramError::Refused(why) => InterceptError::Routes(format!("`ip {line}`: {why}")),
            ProgramError::Late(what) => InterceptError::Late(what),
        })
    }
}

/// The backend of a rule that says just what ours say.
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

/// A number to which the machine gives a name is somebody else's.
fn is_ours(number: &Value) -> bool {
    number.as_str().is_some_and(|text| text == OURS.to_string()) || *number == OURS
}
