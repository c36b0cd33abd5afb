//! Checkpoints that a witness cosigns per second: as a library, and as a process over HTTP on loopback. Every response
//! is checked, and each cosignature is on disk before it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wiretight::log::witness::state::Start;
use wiretight::log::witness::{Answer, WitnessCore};
use wiretight::web::client::{Client, Credentials, Limit, Url};
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::{Cosigner, LogKey};

use super::rig::{Daemon, Log, name, now};

struct Case {
    logs: usize,
    /// One checkpoint of each log; each tree is one entry larger than the last one.
    steps: usize,
    clients: usize,
    ml_dsa: bool,
}

pub fn run(seconds: u64) {
    println!(
        "{:<10}{:>8}{:>10}{:>9}{:>14}{:>12}{:>12}",
        "driven", "logs", "clients", "ml-dsa", "cosigned/s", "p50 ms", "p99 ms"
    );
    for case in [
        Case { logs: 1, steps: 4000, clients: 1, ml_dsa: false },
        Case { logs: 64, steps: 800, clients: 64, ml_dsa: false },
        Case { logs: 1000, steps: 60, clients: 256, ml_dsa: false },
        Case { logs: 1000, steps: 60, clients: 256, ml_dsa: true },
    ] {
        for over_http in [false, true] {
            case.run(over_http, Duration::from_secs(seconds));
        }
    }
}

impl Case {
    fn run(&self, over_http: bool, time: Duration) {
        let logs: Vec<Log> =
            (0..self.logs).map(|n| Log::of(&format!("log.example/{n}"), self.steps)).collect();
        let bodies: Vec<Vec<String>> =
            logs.iter().map(|log| (0..self.steps).map(|n| log.body(n, n + 1)).collect()).collect();
        let keys: Vec<LogKey> = logs.iter().map(|log| log.signer.public().clone()).collect();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let state = dir.path().join("state");
        let algorithm = if self.ml_dsa { Algorithm::MlDsa44 } else { Algorithm::Ed25519 };
        let cosigner = Cosigner::from_seed(name("witness.example/w"), algorithm, &[1; 32]).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _daemon;
        let target = match over_http {
            false => Target::Core(Arc::new(
                WitnessCore::open(&state, Start::New, keys, vec![cosigner]).unwrap(),
            )),
            true => {
                let key = dir.path().join("key");
                std::fs::write(&key, &*cosigner.to_private().unwrap()).unwrap();
                let policy = dir.path().join("policy");
                // A policy has 64 logs; more logs need more policies.
                let mut args = vec![
                    "--new".into(),
                    "--key".into(),
                    key.display().to_string(),
                    "--state".into(),
                    state.display().to_string(),
                ];
                for (n, part) in keys.chunks(64).enumerate() {
                    let lines: String = part.iter().map(|key| format!("log {key}\n")).collect();
                    let path = policy.with_extension(n.to_string());
                    std::fs::write(&path, lines + "quorum none\n").unwrap();
                    args.extend(["--policy".into(), path.display().to_string()]);
                }
                let daemon =
                    Daemon::start(&args.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
                let url = Url::parse(&format!("http://{}/add-checkpoint", daemon.addr)).unwrap();
                _daemon = daemon;
                Target::Http(Client::new(&Credentials::default()).unwrap(), url)
            }
        };
        let (done, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let (bodies, steps) = (Arc::new(bodies), self.steps);
        let mut times: Vec<Duration> = runtime.block_on(async {
            let mut clients = tokio::task::JoinSet::new();
            for client in 0..self.clients.min(self.logs) {
                let (bodies, done, target) = (bodies.clone(), done.clone(), target.clone());
                let every = self.clients.min(self.logs);
                clients.spawn(async move {
                    let mut times = Vec::new();
                    for step in 0..steps {
                        for log in (client..bodies.len()).step_by(every) {
                            if start.elapsed() > time {
                                return times;
                            }
                            let asked = Instant::now();
                            target.ask(&bodies[log][step]).await;
                            times.push(asked.elapsed());
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    times
                });
            }
            clients.join_all().await.into_iter().flatten().collect()
        });
        let rate = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        times.sort();
        let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64() * 1e3;
        let driven = if over_http { "HTTP" } else { "library" };
        println!(
            "{driven:<10}{:>8}{:>10}{:>9}{rate:>14.0}{:>12.2}{:>12.2}",
            self.logs,
            self.clients,
            self.ml_dsa,
            at(0.5),
            at(0.99)
        );
    }
}

#[derive(Clone)]
enum Target {
    Core(Arc<WitnessCore>),
    Http(Client, Url),
}

impl Target {
    async fn ask(&self, body: &str) {
        match self {
            Target::Core(core) => {
                let answer = core.add_checkpoint(body.as_bytes(), now()).await;
                assert!(matches!(answer, Answer::Cosigned(_)), "{answer:?}");
            }
            Target::Http(client, url) => {
                let limit = Limit { time: Duration::from_secs(30), body: 64 * 1024 };
                let answer = client.post(url, "text/plain", body.to_owned(), limit).await.unwrap();
                assert_eq!(answer.status, 200, "{:?}", answer.body);
            }
        }
    }
}
