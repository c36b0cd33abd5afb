//! The query of a request, parsed. What cannot be read counts as absent.

use std::net::{IpAddr, SocketAddr};

use wiretight_scan::Target;
use wiretight_scan::judge::Level;

/// The longest text of a value, in bytes: a host name with protocol and port.
const MAX: usize = 300;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// From 1.
    pub page: usize,
    /// What is searched for.
    pub text: String,
    pub level: Option<Level>,
    pub server: Option<SocketAddr>,
    pub client: Option<SocketAddr>,
    /// What was scanned.
    pub target: Option<Target>,
    pub address: Option<IpAddr>,
    /// A transport.
    pub via: String,
    pub protocol: String,
    pub node: String,
    /// A selection of a list.
    pub show: String,
    /// In the log: entries before this index.
    pub before: Option<u64>,
    /// A period.
    pub start: Option<u64>,
    pub length: Option<u64>,
    /// Whether the page shall reload by itself.
    pub live: bool,
}

impl Query {
    pub fn parse(query: &str) -> Query {
        let mut parsed = Query { page: 1, ..Query::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.len() > MAX {
                continue;
            }
            let text = || value.clone().into_owned();
            match &*name {
                "page" => parsed.page = value.parse().unwrap_or(1),
                "q" => parsed.text = value.trim().to_owned(),
                "level" => parsed.level = value.parse().ok(),
                "server" => parsed.server = value.parse().ok(),
                "client" => parsed.client = value.parse().ok(),
                "target" => parsed.target = value.parse().ok(),
                "address" => parsed.address = value.parse().ok(),
                "via" => parsed.via = text(),
                "protocol" => parsed.protocol = text(),
                "node" => parsed.node = text(),
                "show" => parsed.show = text(),
                "before" => parsed.before = value.parse().ok(),
                "start" => parsed.start = value.parse().ok(),
                "length" => parsed.length = value.parse().ok(),
                "live" => parsed.live = value == "1",
                _ => {}
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_counts_as_absent() {
        let query = Query::parse(
            "page=3&q=a%26b+c&level=weak&server=%5B%3A%3A1%5D%3A443&client=x&via=udp&level2=1",
        );
        assert_eq!((query.page, query.text.as_str(), query.level), (3, "a&b c", Some(Level::Weak)));
        assert_eq!(query.server, Some("[::1]:443".parse().unwrap()));
        assert_eq!((query.client, query.via.as_str(), query.live), (None, "udp", false));
        let long = format!("q={}&page=-1&level=WEAK", "x".repeat(MAX + 1));
        assert_eq!(Query::parse(&long), Query { page: 1, ..Query::default() });
        assert_eq!(Query::parse("%ff=%00&&=&page").page, 1);
        let scan = Query::parse("target=smtp%3A%2F%2Fmail.example%3A25&address=10.0.0.5");
        assert_eq!(scan.target, "mail.example:25".parse().ok());
        assert_eq!(scan.address, "10.0.0.5".parse().ok());
        assert_eq!(Query::parse("target=<b>&address=x"), Query { page: 1, ..Query::default() });
    }
}
