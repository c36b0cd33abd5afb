//! What is said to `wiretight init`, and the sections of the configuration file that follow from it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use wiretight_keys::{Id, Name, TrustDomain};
use wiretight_proxy::network::Backend;

use crate::config::{Config, ConfigError};

/// An address of no machine (RFC 5737), which no program listens on.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A program on this machine. A port alone is one on 127.0.0.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program(pub(super) Backend);

impl FromStr for Program {
    type Err = String;
    fn from_str(text: &str) -> Result<Program, String> {
        let text = text.trim();
        let full = match text.parse::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => text.to_owned(),
        };
        let program: Backend = full.parse().map_err(|_| {
            format!("{text:?} is not an address. Write for example 127.0.0.1:5432, 5432 or unix:/run/app.sock.")
        })?;
        let as_service = service_section("a", &program, (ELSEWHERE, 1).into(), &[]);
        fits(&as_service)?;
        Ok(Program(program))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `NAME=PROGRAM`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) service: Name,
    pub(super) to: Backend,
}

impl FromStr for Offer {
    type Err = String;
    fn from_str(text: &str) -> Result<Offer, String> {
        let (service, to) = pair(text)?;
        Ok(Offer { service, to: to.parse::<Program>()?.0 })
    }
}

/// `NAME=ADDRESS`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) service: Name,
    pub(super) at: SocketAddr,
}

impl FromStr for Use {
    type Err = String;
    fn from_str(text: &str) -> Result<Use, String> {
        let (service, at) = pair(text)?;
        let at = match (at.parse::<u16>(), at.parse()) {
            (Ok(port), _) => (Ipv4Addr::LOCALHOST, port).into(),
            (_, Ok(at)) => at,
            _ => {
                return Err(format!("{at:?} is not an address. Write for example 127.0.0.1:5432."));
            }
        };
        fits(&dial_section(&service, at, None))?;
        Ok(Use { service, at })
    }
}

/// A service's name and the rest, of `NAME=REST`.
fn pair(text: &str) -> Result<(Name, &str), String> {
    let (name, rest) = text.trim().split_once('=').ok_or_else(|| {
        format!("{text:?} is not NAME=ADDRESS. Write for example db=127.0.0.1:5432.")
    })?;
    let name = name.trim().parse().map_err(|e| format!("{name:?} is not a name: {e}"))?;
    Ok((name, rest.trim()))
}

/// Whether the parser of the configuration file accepts these sections below a `[node]`; if not, why and what to do.
pub(super) fn fits(sections: &str) -> Result<(), String> {
    let text = format!("[node]\nname = \"a\"\ntrust_domain = \"a.example\"\n{sections}");
    let read = Config::parse(Path::new(""), &text);
    read.map(drop).map_err(|errors| {
        let one = |e: &ConfigError| format!("{}; {}", e.problem, e.advice);
        errors.as_slice().iter().map(one).collect::<Vec<_>>().join("\n")
    })
}

/// A value in TOML.
pub(super) fn toml(value: impl fmt::Display) -> String {
    toml_edit::Value::from(value.to_string()).to_string()
}

pub(super) fn node_section(name: &Name, trust_domain: &TrustDomain) -> String {
    format!(
        "# Written by `wiretight init`. `wiretight check --example` explains every setting.\n\
         [node]\nname = {}\ntrust_domain = {}\n",
        toml(name),
        toml(trust_domain)
    )
}

pub(super) fn service_section(
    name: &str,
    to: &Backend,
    listen: SocketAddr,
    allow: &[Id],
) -> String {
    let allow: Vec<_> = allow.iter().map(toml).collect();
    format!(
        "\n[[service]]\nname = {}\nlisten = {}\nforward = {}\nallow = [{}]\n",
        toml(name),
        toml(listen),
        toml(to),
        allow.join(", ")
    )
}

pub(super) fn dial_section(service: &Name, listen: SocketAddr, identity: Option<&Name>) -> String {
    let mut text = format!("\n[[dial]]\nlisten = {}\nservice = {}\n", toml(listen), toml(service));
    text.extend(identity.map(|name| format!("as = {}\n", toml(name))));
    text
}
