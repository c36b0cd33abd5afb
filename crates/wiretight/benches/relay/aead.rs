//! The cost of encryption alone: the same AEAD over the same bytes, in records of the same size, in memory.

use anyhow::anyhow;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::common::procfs;

const RECORD: usize = 16 * 1024;
/// The bytes that a pair of relays holds at a time.
const RECORDS: usize = 16;
const ROUNDS: usize = 2000;

/// CPU seconds to encrypt and to decrypt one GB (10^9 bytes).
pub(crate) fn cpu_s_per_gb() -> anyhow::Result<f64> {
    let failed = |_| anyhow!("AES-256-GCM failed");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed)?);
    let nonce = || Nonce::assume_unique_for_key([0; NONCE_LEN]); // nothing of it leaves this function
    let mut records = vec![[1; RECORD]; RECORDS];
    let before = procfs::thread_cpu()?;
    for _ in 0..ROUNDS {
        for record in &mut records {
            let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), record);
            let tag = tag.map_err(failed)?;
            key.open_in_place_separate_tag(nonce(), Aad::empty(), tag.as_ref(), record)
                .map_err(failed)?;
        }
    }
    let took = procfs::thread_cpu()? - before;
    Ok(took.as_secs_f64() / ((ROUNDS * RECORDS * RECORD) as f64 / 1e9))
}
