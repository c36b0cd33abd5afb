//! CAA records (RFC 8659): who may issue certificates for a name.

use std::borrow::Cow;
use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::CAA;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::time::{Instant, timeout_at};

use crate::facts::{Answer, Fact, Value};

/// The maximum number of records of one name.
const MOST_RECORDS: usize = 50;

/// Asks the system's resolver for `certificate.caa`.
pub async fn caa(name: &str, deadline: Instant) -> Fact {
    match Resolver::system() {
        Ok(resolver) => resolver.caa(name, deadline).await,
        Err(error) => fact(Answer::Inconclusive, None, format!("no resolver: {error}")),
    }
}

/// A DNS resolver with a cache.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

#[derive(Debug, thiserror::Error)]
#[error("the resolver cannot be set up")]
pub struct ResolverError(#[from] NetError);

impl Resolver {
    /// Uses /etc/resolv.conf.
    pub fn system() -> Result<Self, ResolverError> {
        Ok(Self(TokioResolver::builder_tokio()?.build()?))
    }

    /// Uses this server, by UDP, and by TCP if an answer is too long.
    pub fn at(server: SocketAddr) -> Result<Self, ResolverError> {
        let connections =
            [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
        let server = NameServerConfig::new(server.ip(), true, connections.into());
        let config = ResolverConfig::from_name_servers(vec![server]);
        let provider = TokioRuntimeProvider::default();
        Ok(Self(TokioResolver::builder_with_config(config, provider).build()?))
    }

    /// `certificate.caa` of a name, from the name itself or the nearest parent domain with records
    /// (RFC 8659, 3).
    ///
    /// - Yes: the records restrict issuers, even to none (`issue ";"`). The value lists the issuers.
    /// - No: there are no records up to the top, or none that restrict.
    /// - Inconclusive: an answer is missing. A CA may not issue in this case either.
    pub async fn caa(&self, name: &str, deadline: Instant) -> Fact {
        let Ok(mut at) = Name::from_ascii(name) else {
            return fact(Answer::Untested, None, "this is not a valid DNS name");
        };
        // Without search domains.
        at.set_fqdn(true);
        while !at.is_root() {
            let records = match timeout_at(deadline, self.records(&at)).await {
                Ok(Ok(records)) => records,
                Ok(Err(error)) => {
                    return fact(Answer::Inconclusive, None, format!("{}: {error}", shown(&at)));
                }
                Err(_) => {
                    let text = format!("{}: no answer in time", shown(&at));
                    return fact(Answer::Inconclusive, None, text);
                }
            };
            if !records.is_empty() {
                return read(&shown(&at), &records);
            }
            at = at.base_name();
        }
        fact(Answer::No, None, "no CAA record for the name or any parent domain")
    }

    /// Empty if the server says that there are none.
    async fn records(&self, name: &Name) -> Result<Vec<CAA>, NetError> {
        match self.0.lookup(name.clone(), RecordType::CAA).await {
            Ok(lookup) => {
                let records = lookup.answers().iter().filter_map(|record| match &record.data {
                    RData::CAA(caa) => Some(caa.clone()),
                    _ => None,
                });
                Ok(records.take(MOST_RECORDS).collect())
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}

/// Evaluates the records of a domain (RFC 8659, 4).
fn read(at: &str, records: &[CAA]) -> Fact {
    let mut issuers = Vec::new();
    let mut restricted = false;
    let mut lines = Vec::new();
    for record in records {
        let tag = record.tag.to_ascii_lowercase();
        let value = printable(&record.value);
        if tag == "issue" || tag == "issuewild" {
            restricted = true;
            let issuer = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            if !issuer.is_empty() && !issuers.contains(&issuer) {
                issuers.push(issuer);
            }
        } else if record.issuer_critical && !["iodef", "issuemail", "issuevmc"].contains(&&*tag) {
            // A CA that does not know a critical property may not issue (4.1).
            restricted = true;
        }
        if lines.len() < 10 {
            lines.push(format!("{} \"{value}\"", printable(tag.as_bytes())));
        }
    }
    let evidence = format!("{at}: {}", lines.join(", "));
    match restricted {
        true => fact(Answer::Yes, Some(Value::List(issuers)), evidence),
        false => fact(Answer::No, None, format!("{evidence}; no issuer is restricted")),
    }
}

/// Escapes untrusted DNS data.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().take(100).flat_map(|byte| byte.escape_ascii()).map(char::from).collect()
}

fn shown(name: &Name) -> String {
    let name = name.to_ascii();
    name.strip_suffix('.').unwrap_or(&name).to_owned()
}

fn fact(answer: Answer, value: Option<Value>, evidence: impl Into<Cow<'static, str>>) -> Fact {
    Fact { answer, value, evidence: evidence.into() }
}
