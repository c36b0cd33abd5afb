//! The throughput of the sequencer: entries to the disk, entries and certificates to a witnessed proof; and a
//! verifier's cost of a proof.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, UnixTime};
use wiretight::log::cosigning::Witness;
use wiretight::log::sequencer::{Log, Params};
use wiretight::log::storage::Directory;
use wiretight::log::witness::client::HttpWitness;
use wiretight::web::client::{Client, Credentials, Url};
use wiretight_keys::{
    Id, Period, Profile, Role, Series, Signer, SigningKey, SpiffeId, Tbs, Transparency, TrustBundle,
};
use wiretight_store::SqliteStore;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::{Cosigner, LogSigner, Policy};

use super::rig::{Daemon, name, now};

/// A certificate's entry has about this many bytes.
const ENTRY: usize = 600;

/// A log in a directory, and its witnesses: separate processes with their own disks, reached over HTTP on loopback.
struct Bench {
    log: Log,
    policy: Policy,
    dir: tempfile::TempDir,
    _witnesses: Vec<Daemon>,
}

impl Bench {
    async fn start(witnesses: usize) -> Bench {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let signer = LogSigner::generate(name("bench.example/log")).unwrap();
        let mut text = format!("log {}\n", signer.public());
        let mut ways: Vec<Arc<dyn Witness>> = Vec::new();
        let mut daemons = Vec::new();
        for n in 0..witnesses {
            let key = name(&format!("witness.example/{n}"));
            let cosigner = Cosigner::from_seed(key, Algorithm::Ed25519, &[n as u8; 32]).unwrap();
            let (file, state) =
                (dir.path().join(format!("w{n}.key")), dir.path().join(format!("w{n}")));
            std::fs::write(&file, &*cosigner.to_private().unwrap()).unwrap();
            let (file, state) = (file.display().to_string(), state.display().to_string());
            let log = signer.public().to_string();
            let args = ["--key", &file, "--state", &state, "--log", &log];
            let daemon = Daemon::start(&args).unwrap();
            let url = Url::parse(&format!("http://{}", daemon.addr)).unwrap();
            let client = Client::new(&Credentials::default()).unwrap();
            ways.push(Arc::new(HttpWitness::new(client, &url)));
            daemons.push(daemon);
            text.push_str(&format!("witness w{n} {}\n", cosigner.public()));
        }
        let names: Vec<_> = (0..witnesses).map(|n| format!("w{n}")).collect();
        text.push_str(&match witnesses {
            0 => "quorum none\n".to_owned(),
            n => format!("group q {} {}\nquorum q\n", n / 2 + 1, names.join(" ")),
        });
        let policy = Policy::parse(&text).unwrap();
        let storage = Arc::new(Directory::open(dir.path().join("log")).unwrap());
        let store = Arc::new(SqliteStore::open(dir.path().join("store.db")).await.unwrap());
        let params = Params { signer, policy: policy.clone(), ways, storage, store };
        let log = Log::start(params).await.unwrap();
        Bench { log, policy, dir, _witnesses: daemons }
    }
}

/// What `clients` do repeatedly for a time: operations per second, and the duration of each.
async fn drive<F>(
    clients: usize,
    time: Duration,
    each: impl Fn(u64) -> F + Clone + Send + 'static,
) -> (f64, Vec<f64>)
where
    F: Future<Output = ()> + Send,
{
    let (start, done) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (done, each) = (done.clone(), each.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < time {
                let began = Instant::now();
                each(done.fetch_add(1, Ordering::Relaxed)).await;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            times
        });
    }
    let mut times: Vec<f64> = tasks.join_all().await.into_iter().flatten().collect();
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    (rate, times)
}

fn at(times: &[f64], share: f64) -> f64 {
    times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default()
}

fn entry(n: u64) -> Vec<u8> {
    let mut entry = vec![0x5a; ENTRY];
    entry[..8].copy_from_slice(&n.to_be_bytes());
    entry
}

pub fn run(seconds: u64) {
    let time = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    println!("{:<44}{:>12}{:>10}{:>10}", "", "a second", "p50 ms", "p99 ms");
    let row = |what: &str, rate: f64, times: &[f64]| {
        println!("{what:<44}{rate:>12.0}{:>10.1}{:>10.1}", at(times, 0.5), at(times, 0.99));
    };
    runtime.block_on(async {
        let bench = Bench::start(0).await;
        let log = bench.log.clone();
        let (rate, times) = drive(8192, time, move |n| {
            let log = log.clone();
            async move { drop(log.append(entry(n)).await.unwrap()) }
        })
        .await;
        row("entries to the disk, one a request", rate, &times);
        overhead(&bench);
        bench.log.close().await;

        let bench = Bench::start(0).await;
        let log = bench.log.clone();
        let (rate, times) = drive(16, time, move |n| {
            let log = log.clone();
            let entries = (0..1000).map(|i| entry(n * 1000 + i)).collect();
            async move { drop(log.append_all(entries).await.unwrap()) }
        })
        .await;
        row("entries to the disk, 1,000 a request", rate * 1000.0, &times);
        bench.log.close().await;

        for clients in [1, 64] {
            let bench = Bench::start(3).await;
            let log = bench.log.clone();
            let (rate, times) = drive(clients, time, move |n| {
                let log = log.clone();
                async move { drop(log.append(entry(n)).await.unwrap()) }
            })
            .await;
            row(&format!("entries to a proof by 2 of 3, {clients} waiting"), rate, &times);
            bench.log.close().await;
        }

        let bench = Bench::start(3).await;
        let ca = Arc::new(Ca::new());
        let log = bench.log.clone();
        let issue = ca.clone();
        let (rate, times) = drive(2048, time, move |_| {
            let (log, ca) = (log.clone(), issue.clone());
            async move { drop(ca.issue(&log).await) }
        })
        .await;
        row("certificates, proved by 2 of 3, 2,048 waiting", rate, &times);
        verify(&bench, &ca).await;
        bench.log.close().await;
    });
}

/// The stored bytes besides the entries' content.
fn overhead(bench: &Bench) {
    fn files(path: &Path) -> u64 {
        let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
        entries
            .map(|e| match e.file_type().unwrap().is_dir() {
                true => files(&e.path()),
                false => e.metadata().unwrap().len(),
            })
            .sum()
    }
    let size = bench.log.status().size;
    let stored = files(&bench.dir.path().join("log")) as f64 / size as f64;
    println!(
        "{:<44}{:>12.1} bytes of files, of {size} entries",
        "overhead an entry",
        stored - ENTRY as f64
    );
}

struct Ca {
    root: CertificateDer<'static>,
    key: SigningKey,
    leaf: SigningKey,
}

impl Ca {
    fn new() -> Ca {
        let key = SigningKey::generate().unwrap();
        let period = Period { not_before: now() - 60, not_after: now() + 86_400 };
        let profile = Profile::Root("bench.example".parse().unwrap());
        let tbs = Tbs::new(&profile, &key.public_key(), period, [1; 16], None, key.algorithm());
        let root = tbs.unwrap().sign(&key).unwrap();
        Ca { root, key, leaf: SigningKey::generate().unwrap() }
    }

    fn tbs(&self) -> Tbs {
        let id =
            SpiffeId::new("bench.example".parse().unwrap(), Id::Service("web".parse().unwrap()));
        let period = Period { not_before: now() - 60, not_after: now() + 3600 };
        let serial = Series::new([7; 8]).serial(0);
        let (profile, spki) = (Profile::Leaf(id), self.leaf.public_key());
        Tbs::new(&profile, &spki, period, serial, Some(&self.root), self.key.algorithm()).unwrap()
    }

    /// The authority's whole work for a certificate.
    async fn issue(&self, log: &Log) -> CertificateDer<'static> {
        let tbs = self.tbs();
        let proof = log.append(tbs.entry().unwrap()).await.unwrap();
        tbs.proved(&proof).unwrap().sign(&self.key).unwrap()
    }
}

/// The additional cost of proofs when a chain is verified in a handshake with a new peer.
async fn verify(bench: &Bench, ca: &Ca) {
    let plain = ca.tbs().sign(&ca.key).unwrap();
    let proved = ca.issue(&bench.log).await;
    let td = "bench.example".parse().unwrap();
    let bundle = TrustBundle::new(td, vec![ca.root.clone()], Default::default()).unwrap();
    let asks = Transparency::required(bench.policy.clone());
    let rounds = 2000;
    let cost = |bundle: &dyn Fn() -> TrustBundle, chain: &CertificateDer<'static>| {
        let bundles: Vec<_> = (0..rounds).map(|_| bundle()).collect();
        let start = Instant::now();
        for bundle in &bundles {
            bundle.verify(std::slice::from_ref(chain), Role::Client, UnixTime::now()).unwrap();
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
    };
    let (mut bare, mut known, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        bare.push(cost(&|| bundle.clone(), &plain));
        known.push(cost(&|| bundle.clone().with(asks.clone()), &proved));
        let policy = bench.policy.clone();
        new.push(cost(&|| bundle.clone().with(Transparency::required(policy.clone())), &proved));
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (bare, known, new) = (median(bare), median(known), median(new));
    println!(
        "{:<44}{:>12.1} us for a certificate without proof, {:+.1} us with one whose checkpoint is known, {:+.1} us with a new checkpoint ({} bytes of certificate against {})",
        "verification",
        bare,
        known - bare,
        new - bare,
        proved.len(),
        plain.len()
    );
}
