//! The encrypted part of a TLS 1.3 server's handshake: its chain, its signature scheme, its extensions,
//! and its request for a client certificate.

use std::time::Duration;

use tokio::time::sleep;

use super::Prober;
use super::handshake::{Failure, GROUPS, tls13};
use super::link::{Trouble, alert_name};
use crate::facts::{Answer, Facts, Value};
use crate::names::{SignatureScheme, Version};
use crate::parse::{
    CertificateEntry, CertificateRequest, ClientHello, ServerHello, alpn, extension,
};

/// The messages of a TLS 1.3 server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub hello: ServerHello,
    /// The group requested in a HelloRetryRequest.
    pub retry: Option<u16>,
    /// The chain, each certificate with its extensions. Empty if it was compressed.
    pub chain: Vec<CertificateEntry>,
    /// The compression algorithm of the chain (RFC 8879).
    pub compressed: Option<u16>,
    pub scheme: Option<u16>,
    /// EncryptedExtensions.
    pub extensions: Vec<(u16, Vec<u8>)>,
    pub request: Option<CertificateRequest>,
}

impl Shown {
    pub(super) fn of(client: &tls13::Client) -> Option<Self> {
        Some(Self {
            hello: client.server.clone()?,
            retry: client.retry,
            chain: client.chain.clone(),
            compressed: client.compressed,
            scheme: client.scheme,
            extensions: client.extensions.clone(),
            request: client.request.clone(),
        })
    }

    /// The chain in DER.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        self.chain.iter().map(|entry| entry.certificate.clone()).collect()
    }

    /// The OCSP response that is stapled to the leaf (RFC 8446 section 4.4.2.1).
    pub fn ocsp(&self) -> Option<Vec<u8>> {
        crate::parse::certificate_status(self.of_leaf(extension::STATUS_REQUEST)?).ok()
    }

    /// The leaf's list of signed certificate timestamps.
    pub fn scts(&self) -> Option<Vec<u8>> {
        self.of_leaf(extension::SCT).map(<[u8]>::to_vec)
    }

    /// The selected application protocol.
    pub fn alpn(&self) -> Option<String> {
        let (_, body) = self.extensions.iter().find(|(kind, _)| *kind == extension::ALPN)?;
        alpn(body)
    }

    fn of_leaf(&self, kind: u16) -> Option<&[u8]> {
        let entry = self.chain.first()?;
        entry.extensions.iter().find(|(k, _)| *k == kind).map(|(_, body)| body.as_slice())
    }
}

/// A TLS 1.3 hello for a complete handshake, which also requests OCSP responses and SCTs.
pub fn hello(prober: &Prober) -> ClientHello {
    let schemes = prober.schemes(Version::Tls1_3);
    prober
        .hello(Version::Tls1_3)
        .suites(tls13::SUITES.iter().copied())
        .groups(GROUPS)
        .signatures(&schemes)
        .with(extension::STATUS_REQUEST, vec![1, 0, 0, 0, 0])
        .with(extension::SCT, Vec::new())
}

/// Performs a handshake with this hello: one from [`hello`], possibly with other schemes, another name
/// or other protocols.
pub async fn tls1_3(prober: &Prober, hello: &ClientHello) -> Result<Shown, Failure> {
    let client = patiently(async || {
        let mut client = tls13::Client::new(prober.connect().await?, hello.clone());
        client.handshake(None).await?;
        Ok(client)
    })
    .await?;
    Shown::of(&client).ok_or(Failure::Trouble(Trouble::Malformed("no ServerHello")))
}

/// `signatures.tls1_3`: the signature schemes of all the server's certificates. Takes one handshake for
/// each, and one more.
pub async fn signatures(prober: &Prober, hello: &ClientHello) -> Facts {
    signatures_after(prober, hello, None).await
}

/// The same, if a handshake with all schemes has already found the first.
pub(super) async fn signatures_after(
    prober: &Prober,
    hello: &ClientHello,
    first: Option<u16>,
) -> Facts {
    let mut facts = Facts::default();
    let mut left = prober.schemes(Version::Tls1_3);
    let mut found = Vec::new();
    if let Some(first) = first.filter(|first| left.contains(first)) {
        left.retain(|code| *code != first);
        found.push(scheme_name(first));
    }
    let (answer, evidence) = loop {
        let evidence = match tls1_3(prober, &hello.clone().signatures(&left)).await {
            Ok(Shown { scheme: Some(scheme), .. }) if left.contains(&scheme) => {
                left.retain(|code| *code != scheme);
                found.push(scheme_name(scheme));
                if left.is_empty() {
                    break (Answer::Yes, "all known schemes".to_owned());
                }
                continue;
            }
            // Some servers ignore the offered schemes.
            Ok(Shown { scheme: Some(scheme), .. }) => {
                let name = scheme_name(scheme);
                break (Answer::Yes, format!("then {name} was used without an offer"));
            }
            Ok(_) => "a handshake without a signature".to_owned(),
            Err(Failure::Alert(level, description)) => {
                let alert = alert_name(level, description);
                // Every handshake is signed, so a result without any scheme cannot be complete.
                let whole = !found.is_empty() && !prober.asks_plainly(Version::Tls1_3);
                let answer = if whole { Answer::Yes } else { Answer::Inconclusive };
                break (answer, format!("without them: {alert}"));
            }
            Err(failure) => failure.to_string(),
        };
        break (Answer::Inconclusive, evidence);
    };
    let value = (!found.is_empty()).then_some(Value::List(found));
    facts.set("signatures.tls1_3", answer, value, evidence);
    facts
}

/// Whether certificates are compressed (RFC 8879), and by which of zlib, brotli and zstd:
/// `extension.compress_certificate`.
pub async fn compression(prober: &Prober, hello: &ClientHello) -> Facts {
    compression_and_scheme(prober, hello).await.0
}

/// The same, and the signature scheme of that handshake.
pub(super) async fn compression_and_scheme(
    prober: &Prober,
    hello: &ClientHello,
) -> (Facts, Option<u16>) {
    let mut facts = Facts::default();
    let offer = hello.clone().with(extension::COMPRESS_CERTIFICATE, vec![6, 0, 2, 0, 1, 0, 3]);
    let shown = tls1_3(prober, &offer).await;
    let scheme = shown.as_ref().ok().and_then(|shown| shown.scheme);
    let (answer, value, evidence) = match shown {
        Ok(Shown { compressed: Some(how), .. }) => {
            let name = match how {
                1 => "zlib",
                2 => "brotli",
                3 => "zstd",
                _ => "unknown",
            };
            let evidence = format!("CompressedCertificate, algorithm {how}");
            (Answer::Yes, Some(Value::Text(name.into())), evidence)
        }
        Ok(_) => (Answer::No, None, "uncompressed, although compression was offered".to_owned()),
        Err(failure) => (Answer::Inconclusive, None, failure.to_string()),
    };
    facts.set("extension.compress_certificate", answer, value, evidence);
    (facts, scheme)
}

fn scheme_name(code: u16) -> String {
    match SignatureScheme::from_code(code) {
        Some(scheme) => scheme.name.to_owned(),
        None => format!("0x{code:04x}"),
    }
}

/// Retries if there was no answer. An alert, or a choice that the scanner cannot follow, is an answer.
pub(super) async fn patiently<T>(
    attempt: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut last = attempt().await;
    for pause in [200, 1000] {
        match &last {
            Err(Failure::Trouble(trouble)) if trouble.is_final() => return last,
            Err(Failure::Trouble(_)) => {}
            _ => return last,
        }
        sleep(Duration::from_millis(pause)).await;
        last = attempt().await;
    }
    last
}
