//! The unavoidable cost: the cryptography of a handshake, with the library that Wiretight uses, and the load itself,
//! with clients connected directly to the backend.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rustls::crypto::{SupportedKxGroup, aws_lc_rs::kx_group};

use crate::load::Load;

pub(crate) const X25519: &dyn SupportedKxGroup = kx_group::X25519;
pub(crate) const MLKEM: &dyn SupportedKxGroup = kx_group::X25519MLKEM768;

pub(crate) struct Floor {
    /// Microseconds for a server's signature (P-256) and its side of the key exchange.
    pub(crate) x25519_us: f64,
    pub(crate) mlkem_us: f64,
    /// Requests a second over plain HTTP, without a proxy.
    pub(crate) direct_per_s: f64,
}

impl Floor {
    pub(crate) async fn measure(load: &Load) -> anyhow::Result<Self> {
        let sign = signature_us()?;
        Ok(Self {
            x25519_us: sign + exchange_us(X25519)?,
            mlkem_us: sign + exchange_us(MLKEM)?,
            direct_per_s: load.direct(Duration::from_secs(1)).await?,
        })
    }
}

fn signature_us() -> anyhow::Result<f64> {
    let refused = |_| anyhow!("P-256 does not work");
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(refused)?;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref())?;
    // The length of the signed data in TLS 1.3 with SHA-256 (RFC 8446, section 4.4.3).
    let message = [0x20; 64 + 33 + 1 + 32];
    least_us(|| key.sign(&random, &message).map(drop).map_err(refused))
}

fn exchange_us(group: &dyn SupportedKxGroup) -> anyhow::Result<f64> {
    let client = group.start()?;
    least_us(|| Ok(group.start_and_complete(client.pub_key()).map(drop)?))
}

/// The minimum of many runs: everything else on the machine only adds time.
fn least_us(mut once: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    const BATCH: u32 = 20;
    let mut least = Duration::MAX;
    for _ in 0..100 {
        let start = Instant::now();
        for _ in 0..BATCH {
            once()?;
        }
        least = least.min(start.elapsed());
    }
    Ok(least.as_secs_f64() * 1e6 / f64::from(BATCH))
}
