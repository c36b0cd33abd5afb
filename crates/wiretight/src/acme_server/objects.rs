//! Stored accounts and orders, one record each.
//!
//! ```text
//! acme-server/account/THUMBPRINT       an account, by the thumbprint of its key
//! acme-server/order/THUMBPRINT/ID      an order with its authorizations and finally its certificate
//! ```
//!
//! An order is one record, so that each of its steps is one compare-and-swap. Its status is not stored but derived.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::jws::Jwk;

pub(super) const ACCOUNTS: &str = "acme-server/account/";
pub(super) const ORDERS: &str = "acme-server/order/";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) key: Jwk,
    pub(super) contact: Vec<String>,
    /// When it was created or last used for an order; accurate to a day.
    pub(super) used: u64,
    pub(super) deactivated: bool,
}

impl Account {
    pub(super) fn json(&self) -> Value {
        let status = if self.deactivated { "deactivated" } else { "valid" };
        json!({ "status": status, "contact": self.contact })
    }
}

/// Validation methods (RFC 8555, section 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// By a file on port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Method {
    pub(super) const ALL: [Method; 2] = [Method::Http01, Method::TlsAlpn01];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Method::Http01 => "http-01",
            Method::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// The result of a validation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tried {
    pub(super) method: Method,
    pub(super) at: u64,
    /// The problem document; `None` if it succeeded.
    pub(super) error: Option<Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Authorization {
    pub(super) name: String,
    pub(super) token: String,
    /// The only attempt: after a failure, the client must create a new order.
    pub(super) tried: Option<Tried>,
    pub(super) deactivated: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) expires: u64,
    pub(super) not_after: Option<u64>,
    pub(super) authorizations: Vec<Authorization>,
    /// PEM, leaf first.
    pub(super) certificate: Option<String>,
    #[serde(default)]
    pub(super) revoked: bool,
}

impl Authorization {
    pub(super) fn status(&self, expired: bool) -> &'static str {
        match &self.tried {
            _ if self.deactivated => "deactivated",
            Some(Tried { error: Some(_), .. }) => "invalid",
            _ if expired => "expired",
            Some(Tried { error: None, .. }) => "valid",
            None => "pending",
        }
    }
}

impl Order {
    pub(super) fn status(&self, now: u64) -> &'static str {
        let expired = self.expires < now;
        if self.certificate.is_some() {
            return "valid";
        }
        let all: Vec<_> = self.authorizations.iter().map(|a| a.status(expired)).collect();
        match all {
            all if all.iter().all(|s| *s == "valid") => "ready",
            all if all.iter().all(|s| matches!(*s, "valid" | "pending")) => "pending",
            _ => "invalid",
        }
    }
}
