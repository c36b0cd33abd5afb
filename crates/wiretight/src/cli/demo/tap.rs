//! The network between the nodes: forwards bytes, and inspects them as anyone on the path could.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::traffic::CANARY;

/// First bytes of a direction that are kept, to detect the protocol.
const BEGINNING: usize = 16 * 1024;

#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) connections: u64,
    pub(super) bytes: u64,
    pub(super) canaries: u64,
    /// Connections with a TLS ServerHello.
    tls: u64,
    /// Connections whose first bytes were not TLS.
    plain: u64,
    pub(super) version: Option<u16>,
    pub(super) group: Option<String>,
    pub(super) cipher: Option<String>,
}

impl Seen {
    /// Judged by the first bytes of each connection.
    pub(super) fn protocol(&self) -> String {
        match (self.tls, self.plain, self.version) {
            (_, 0, Some(0x0304)) => "TLSv1.3".into(),
            (_, 0, Some(v)) => format!("TLS {v:#06x}"),
            (0, _, _) => "plaintext".into(),
            _ => "mixed".into(),
        }
    }
}

pub(super) struct Tap {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Tap {
    /// Listens on a free port and forwards everything to `to`.
    pub(super) async fn start(to: SocketAddr) -> anyhow::Result<Tap> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let tap = Tap { addr: listener.local_addr()?, seen: Arc::default() };
        let seen = tap.seen.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(pass(from, to, seen.clone()));
            }
        });
        Ok(tap)
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }
}

async fn pass(from: TcpStream, to: SocketAddr, seen: Arc<Mutex<Seen>>) {
    let Ok(to) = TcpStream::connect(to).await else { return };
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    seen.lock().connections += 1;
    let (from_read, from_write) = from.into_split();
    let (to_read, to_write) = to.into_split();
    tokio::join!(
        watch(from_read, to_write, seen.clone(), false),
        watch(to_read, from_write, seen.clone(), true),
    );
}

/// Forwards one direction; counts bytes and canaries, including canaries that span two reads.
async fn watch(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    seen: Arc<Mutex<Seen>>,
    server: bool,
) {
    let canary = CANARY.as_bytes();
    let keep = canary.len() - 1;
    let mut buf = vec![0; keep + 256 * 1024];
    let (mut held, mut beginning) = (0, Vec::new());
    let mut known = false;
    while let Ok(n) = from.read(&mut buf[held..]).await {
        if n == 0 {
            break;
        }
        let end = held + n;
        let found = find_all(&buf[..end], canary);
        {
            let mut seen = seen.lock();
            seen.bytes += n as u64;
            seen.canaries += found;
            if !known && server {
                let room = BEGINNING - beginning.len();
                beginning.extend_from_slice(&buf[held..end][..n.min(room)]);
                known = judge(&beginning, &mut seen) || beginning.len() == BEGINNING;
            }
        }
        if to.write_all(&buf[held..end]).await.is_err() {
            break;
        }
        // The last bytes may be the first part of a canary.
        let tail = keep.min(end);
        buf.copy_within(end - tail..end, 0);
        held = tail;
    }
    let _ = to.shutdown().await;
}

/// How often `needle` occurs in `hay`. The bytes held back from the last read are counted twice, but they are one byte
/// too short for a whole canary.
fn find_all(hay: &[u8], needle: &[u8]) -> u64 {
    let mut count = 0;
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|b| *b == needle[0]) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            count += 1;
        }
        rest = &rest[1..];
    }
    count
}

/// Detects the protocol of a direction by its first bytes; false if there are too few yet.
fn judge(beginning: &[u8], seen: &mut Seen) -> bool {
    if beginning.len() < 5 {
        return false;
    }
    let [kind, major, _, a, b] = beginning[..5] else { return false };
    if kind != 22 || major != 3 {
        seen.plain += 1;
        return true;
    }
    let len = usize::from(u16::from_be_bytes([a, b]));
    let Some(record) = beginning.get(5..5 + len) else { return false };
    match server_hello(record) {
        Some((version, suite, group)) => {
            seen.tls += 1;
            seen.version = Some(seen.version.map_or(version, |v| v.min(version)));
            for (seen, name) in
                [(&mut seen.cipher, suite_name(suite)), (&mut seen.group, group_name(group))]
            {
                let same = seen.as_ref().is_none_or(|s| *s == name);
                *seen = Some(if same { name } else { "mixed".into() });
            }
        }
        None => seen.plain += 1,
    }
    true
}

/// Version, cipher suite and group of a ServerHello (RFC 8446, section 4.1.3).
fn server_hello(record: &[u8]) -> Option<(u16, u16, u16)> {
    let u16_at = |b: &[u8], at: usize| Some(u16::from_be_bytes([*b.get(at)?, *b.get(at + 1)?]));
    if *record.first()? != 2 {
        return None;
    }
    let legacy_version = u16_at(record, 4)?;
    let session_id = usize::from(*record.get(38)?);
    let at = 39 + session_id;
    let suite = u16_at(record, at)?;
    let mut rest = record.get(at + 5..)?; // suite, compression, length of the extensions
    let (mut version, mut group) = (legacy_version, 0);
    while rest.len() >= 4 {
        let (kind, len) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let body = rest.get(4..4 + len)?;
        match kind {
            43 => version = u16_at(body, 0)?, // supported_versions
            51 => group = u16_at(body, 0)?,   // key_share
            _ => {}
        }
        rest = &rest[4 + len..];
    }
    Some((version, suite, group))
}

/// Names from the IANA TLS registries.
fn suite_name(suite: u16) -> String {
    match suite {
        0x1301 => "TLS_AES_128_GCM_SHA256".into(),
        0x1302 => "TLS_AES_256_GCM_SHA384".into(),
        0x1303 => "TLS_CHACHA20_POLY1305_SHA256".into(),
        other => format!("{other:#06x}"),
    }
}

fn group_name(group: u16) -> String {
    match group {
        0x11ec => "X25519MLKEM768".into(),
        0x001d => "X25519".into(),
        0x0017 => "secp256r1".into(),
        other => format!("{other:#06x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_found_across_reads_and_counted_once() {
        let stream = format!("xx{CANARY}yy{CANARY}");
        let keep = CANARY.len() - 1;
        for cut in 1..stream.len() {
            let (a, b) = stream.as_bytes().split_at(cut);
            let tail = &a[a.len().saturating_sub(keep)..];
            let second = [tail, b].concat();
            let n = find_all(a, CANARY.as_bytes()) + find_all(&second, CANARY.as_bytes());
            assert_eq!(n, 2, "cut at {cut}");
        }
    }

    #[test]
    fn without_a_server_hello_it_is_not_tls() {
        let mut seen = Seen::default();
        assert!(!judge(b"HTT", &mut seen));
        assert!(judge(b"HTTP/1.1 200 OK", &mut seen));
        assert!(judge(&[22, 3, 3, 0, 4, 1, 2, 3, 4], &mut seen));
        assert_eq!(seen.protocol(), "plaintext");
        for len in 0..80 {
            let mut record = vec![2; len];
            record.iter_mut().skip(38).for_each(|b| *b = 0xff);
            let _ = server_hello(&record);
        }
    }
}
