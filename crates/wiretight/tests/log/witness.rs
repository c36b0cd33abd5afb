//! The witness: every response of the specification over HTTP; and it never signs two histories, whatever happens.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wiretight::log::evidence::MAX_FILES;
use wiretight::log::witness::state::{Start, StateError};
use wiretight::log::witness::{Answer, OpenError, WitnessCore, origin_hash};
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Cosigner, Note, Signature, SignedCheckpoint, WitnessKey};

use super::rig::{Daemon, Log, Reply, cosigner, now, request, stderr, stdout, wait_for, wiretight};

/// A witness process with two keys, for these logs.
struct Witness {
    dir: tempfile::TempDir,
    keys: [String; 2],
    vkeys: Vec<WitnessKey>,
    logs: Vec<String>,
}

impl Witness {
    fn new(logs: &[&Log]) -> Witness {
        let dir = tempfile::tempdir().unwrap();
        let keygen = |file: &str, more: &[&str]| {
            let path = dir.path().join(file).display().to_string();
            let made = wiretight(
                &[&["witness", "keygen", "witness.example/w", "--out", &path], more].concat(),
            );
            assert!(made.status.success(), "{}", stderr(&made));
            (path, WitnessKey::parse(stdout(&made).trim()).unwrap())
        };
        let (ed25519, a) = keygen("ed25519.key", &[]);
        let (ml_dsa, b) = keygen("ml-dsa.key", &["--ml-dsa"]);
        let logs = logs.iter().map(|log| log.signer.public().to_string()).collect();
        Witness { keys: [ed25519, ml_dsa], vkeys: vec![a, b], logs, dir }
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    /// The first start creates the state; every later one must find it.
    fn start(&self) -> Result<Daemon, String> {
        self.start_as(if self.state().exists() { Start::Known } else { Start::New })
    }

    fn start_as(&self, start: Start) -> Result<Daemon, String> {
        let state = self.state().display().to_string();
        let mut args = vec!["--state", &state, "--key", &self.keys[0], "--key", &self.keys[1]];
        args.extend((start == Start::New).then_some("--new"));
        self.logs.iter().for_each(|log| args.extend(["--log", log]));
        Daemon::start(&args)
    }
}

/// The checkpoint with the signature lines of a response, as a client would combine them.
fn with(signed: &SignedCheckpoint, lines: &str) -> SignedCheckpoint {
    SignedCheckpoint::parse(&format!("{signed}{lines}")).unwrap()
}

#[test]
fn each_response_follows_the_specification() {
    let (log, other, unknown) =
        (Log::of("log.example/a", 300), Log::of("log.example/b", 9), Log::of("log.example/c", 9));
    let fork = log.forked(100, 300);
    let witness = Witness::new(&[&log, &other]);
    let daemon = witness.start().unwrap();
    let add =
        |body: &str| request(daemon.addr, "POST", "/add-checkpoint", body.as_bytes()).unwrap();
    let cosigned = |size: usize, body: &str| {
        let before = now();
        let reply = add(body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let signed = with(&log.signed(size), &reply.body);
        for key in &witness.vkeys {
            let time = key.cosigned(&signed).expect("each key cosigns");
            assert!((before..=now()).contains(&time));
        }
    };
    let refused = |status: u16, body: &str| {
        let reply = add(body);
        assert_eq!(reply.status, status, "{body}\n{}", reply.body);
        reply
    };
    // Nothing was cosigned yet: only size 0 is accepted.
    let reply = refused(409, &log.body(7, 100));
    assert!(reply.head.contains("content-type: text/x.tlog.size\r\n"), "{}", reply.head);
    assert_eq!(reply.body, "0\n");
    cosigned(100, &log.body(0, 100));
    cosigned(100, &log.body(100, 100));
    assert_eq!(refused(409, &log.body(0, 200)).body, "100\n");
    assert_eq!(refused(409, &log.body(50, 60)).body, "100\n");
    cosigned(256, &log.body(100, 256));
    // 404, 403, 400.
    refused(404, &unknown.body(0, 9));
    let stranger = Log { signer: Log::new("log.example/a").signer, entries: log.entries.clone() };
    refused(403, &stranger.body(256, 300));
    refused(400, &log.body(256, 300).replacen("old 256", "old 301", 1));
    for (from, to) in
        [("old 256", "old 0256"), ("old 256", "256"), ("old 256\n", "old 256\nAAAA\n")]
    {
        refused(400, &log.body(256, 300).replacen(from, to, 1));
    }
    let long = format!(
        "old 256\n{}\n{}",
        format!("{}\n", log.checkpoint(1).root).repeat(64),
        log.signed(300)
    );
    refused(400, &long);
    refused(400, "old 0\n\nno checkpoint\n");
    // 422: a proof that is too long, too short, or of another tree.
    let spare = format!("old 256\n{}\n\n{}", log.checkpoint(1).root, log.signed(256));
    refused(422, &spare);
    let proof_of = |of: &Log| of.body(256, 300).split("\n\n").next().unwrap().to_owned();
    refused(422, &format!("old 256\n\n{}", log.signed(300)));
    refused(422, &format!("{}\n\n{}", proof_of(&log), fork.signed(300)));
    refused(422, &fork.body(256, 300));
    // Another tree of the same size: 422; and 409 if the old size is not that of the last tree.
    assert!(refused(422, &fork.body(256, 256)).body.contains("two histories"));
    assert_eq!(refused(409, &fork.body(100, 256)).body, "256\n");
    // The empty tree with an impossible root; the signature is checked first.
    let nothing = |by: &Log| {
        let mut note =
            Note::new(format!("{}\n0\n{}\n", by.origin(), log.checkpoint(1).root)).unwrap();
        by.signer.sign(&mut note);
        format!("old 0\n\n{note}")
    };
    refused(422, &nothing(&log));
    refused(404, &nothing(&unknown));
    refused(403, &nothing(&stranger));
    // A valid and an invalid line of the log's key: the note is malformed. Lines of other keys do no harm.
    let junk = |name: KeyName, id| Signature { name, id, bytes: vec![7; 64] }.to_string();
    let key = log.signer.public();
    let body = log.body(256, 300);
    refused(403, &format!("{body}{}\n", junk(key.name().clone(), key.id())));
    let (text, line) = body.rsplit_once("\n\n").unwrap();
    refused(403, &format!("{text}\n\n{}\n{line}", junk(key.name().clone(), key.id())));
    // A valid checkpoint is still cosigned.
    let others = format!(
        "{}\n{}\n",
        junk(key.name().clone(), [7; 4]),
        junk(KeyName::new("log.example/z").unwrap(), key.id())
    );
    cosigned(300, &format!("{}{others}", log.body(256, 300)));
    let evidence: Vec<_> = std::fs::read_dir(witness.state().join("evidence")).unwrap().collect();
    let read = |word: &str| {
        let find = |f: &&std::io::Result<std::fs::DirEntry>| {
            f.as_ref().unwrap().file_name().into_string().unwrap().contains(word)
        };
        std::fs::read_to_string(evidence.iter().find(find).unwrap().as_ref().unwrap().path())
            .unwrap()
    };
    let kept = read("-fork-");
    assert!(kept.contains(&log.signed(256).to_string()), "what was cosigned before:\n{kept}");
    assert!(kept.contains(&fork.signed(256).to_string()), "and what came:\n{kept}");
    assert!(read("-not-proved-").contains(&log.signed(256).to_string()));
    // Two trees of size 300 without a proof, one of 256 with a spare hash, one forked.
    assert_eq!(evidence.len(), 4);

    // What a monitor requests: the last checkpoint with the signatures of the log and the cosignatures, and nothing else.
    let shown = |daemon: &Daemon, log: &Log| {
        let path = format!("/{}/checkpoint", origin_hash(&log.origin()));
        request(daemon.addr, "GET", &path, b"").unwrap()
    };
    let whole = |reply: &Reply| {
        assert_eq!(reply.status, 200, "{}", reply.body);
        let signed = SignedCheckpoint::parse(&reply.body).unwrap();
        assert_eq!(signed.verified_by(log.signer.public()), Some(&log.checkpoint(300)));
        let times = [0, 1].map(|n: usize| witness.vkeys[n].cosigned(&signed).expect("cosigned"));
        assert_eq!(signed.note().signatures().len(), 3);
        times
    };
    let times = whole(&shown(&daemon, &log));
    assert_eq!(shown(&daemon, &other).status, 404, "nothing was cosigned");
    assert_eq!(shown(&daemon, &unknown).status, 404);
    assert_eq!(request(daemon.addr, "GET", "/x/checkpoint", b"").unwrap().status, 404);

    let page = request(daemon.addr, "GET", "/", b"").unwrap();
    for line in [
        witness.vkeys[0].to_string(),
        "log log.example/a\nsize 300\n".into(),
        "log log.example/b\nnothing".into(),
        "4 checkpoints that may".into(),
    ] {
        assert!(page.body.contains(&line), "{line}:\n{}", page.body);
    }
    let metrics = request(daemon.addr, "GET", "/metrics", b"").unwrap().body;
    assert!(metrics.contains("wiretight_witness_requests_total{status=\"200\"} 4\n"), "{metrics}");
    assert!(
        metrics.contains("wiretight_witness_log_size{log=\"log.example/a\"} 300\n"),
        "{metrics}"
    );
    assert_eq!(request(daemon.addr, "GET", "/add-checkpoint", b"").unwrap().status, 405);
    assert_eq!(request(daemon.addr, "POST", "/", b"").unwrap().status, 405);
    assert_eq!(request(daemon.addr, "GET", "/x", b"").unwrap().status, 404);
    assert_eq!(
        request(daemon.addr, "POST", "/add-checkpoint", &vec![b'a'; 200_000]).unwrap().status,
        413
    );
    assert!(daemon.stop());
    let daemon = witness.start().unwrap();
    assert_eq!(whole(&shown(&daemon, &log)), times, "after a start, too");
}

#[test]
fn of_two_simultaneous_histories_only_one_is_signed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0..20 {
        let log = Log::of("log.example/a", 40);
        let forks: Vec<Log> = (0..8).map(|n| log.forked(20, 30 + n)).collect();
        let dir = tempfile::tempdir().unwrap();
        let core = WitnessCore::open(
            &dir.path().join("state"),
            Start::New,
            vec![log.signer.public().clone()],
            vec![cosigner(0)],
        );
        let core = Arc::new(core.unwrap());
        let signed = runtime.block_on(async {
            assert_eq!(core.add_checkpoint(log.body(0, 20).as_bytes(), now()).await.status(), 200);
            let mut tasks = tokio::task::JoinSet::new();
            for (n, fork) in forks.iter().enumerate() {
                let (core, body) = (core.clone(), fork.body(20, 30 + n));
                tasks.spawn(async move { core.add_checkpoint(body.as_bytes(), now()).await });
            }
            tasks.join_all().await
        });
        let good = signed.iter().filter(|a| matches!(a, Answer::Cosigned(_))).count();
        assert_eq!(good, 1, "round {round}: {signed:?}");
    }
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let logs: Vec<Log> = (0..4).map(|n| Log::of(&format!("log.example/{n}"), 600)).collect();
    let witness = Witness::new(&logs.iter().collect::<Vec<_>>());
    let acknowledged: Vec<AtomicU64> = logs.iter().map(|_| AtomicU64::new(0)).collect();
    for round in 0..12 {
        let daemon = witness.start().unwrap();
        let addr = daemon.addr;
        // The witness is at the acknowledged size, or one step further if a response was lost. It never signs a fork.
        for (log, acknowledged) in logs.iter().zip(&acknowledged) {
            let known = acknowledged.load(Ordering::SeqCst);
            let reply =
                request(addr, "POST", "/add-checkpoint", log.body(599, 600).as_bytes()).unwrap();
            assert_eq!(reply.status, 409);
            let size: u64 = reply.body.trim().parse().unwrap();
            assert!(
                (known..=known + 1).contains(&size),
                "round {round}: {size} after {known} was acknowledged"
            );
            acknowledged.store(size, Ordering::SeqCst);
            if size > 0 {
                let size = size as usize;
                let fork = log.forked(size - 1, size + 1);
                assert_eq!(
                    request(addr, "POST", "/add-checkpoint", fork.body(size, size).as_bytes())
                        .unwrap()
                        .status,
                    422
                );
                assert_eq!(
                    request(addr, "POST", "/add-checkpoint", fork.body(size, size + 1).as_bytes())
                        .unwrap()
                        .status,
                    422
                );
                let smaller = log.body(size - 1, size - 1);
                assert_eq!(
                    request(addr, "POST", "/add-checkpoint", smaller.as_bytes()).unwrap().status,
                    409
                );
            }
        }
        let stop = AtomicBool::new(false);
        let sizes = || acknowledged.iter().map(|a| a.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let begun = sizes();
        std::thread::scope(|scope| {
            for (log, acknowledged) in logs.iter().zip(&acknowledged) {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let size = acknowledged.load(Ordering::SeqCst) as usize;
                        if size + 1 >= 599 {
                            return;
                        }
                        match request(
                            addr,
                            "POST",
                            "/add-checkpoint",
                            log.body(size, size + 1).as_bytes(),
                        ) {
                            Some(reply) => {
                                assert_eq!(reply.status, 200, "{}", reply.body);
                                acknowledged.store(size as u64 + 1, Ordering::SeqCst);
                            }
                            None => return, // killed
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(40 + 17 * round));
            // On a busy machine that may be too short for a single checkpoint.
            let until = Instant::now() + Duration::from_secs(20);
            let moved =
                || sizes().iter().zip(&begun).all(|(now, then)| *now > *then || *now >= 598);
            while !moved() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            daemon.kill();
            stop.store(true, Ordering::SeqCst);
        });
    }
    let reached: Vec<u64> = acknowledged.iter().map(|a| a.load(Ordering::SeqCst)).collect();
    assert!(reached.iter().all(|size| *size >= 12), "{reached:?}: nothing was tested");
}

#[test]
fn a_witness_without_its_state_does_not_start() {
    let log = Log::of("log.example/a", 20);
    let witness = Witness::new(&[&log]);
    let daemon = witness.start().unwrap();
    assert_eq!(
        request(daemon.addr, "POST", "/add-checkpoint", log.body(0, 20).as_bytes()).unwrap().status,
        200
    );
    let refused = witness.start().err().unwrap();
    assert!(refused.contains("another witness is running"), "{refused}");
    assert!(daemon.stop());

    let file = witness.state().join("state");
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[60] ^= 1;
    for bad in [&good[..good.len() / 2], &good[..good.len() - 1], b"", &flipped] {
        std::fs::write(&file, bad).unwrap();
        let refused = witness.start().err().unwrap();
        assert!(refused.contains("is damaged"), "{refused}");
        assert_eq!(std::fs::read(&file).unwrap(), bad, "it is left as it was found");
    }
    std::fs::remove_file(&file).unwrap();
    let refused = witness.start().err().unwrap();
    assert!(refused.contains("has no witness state") && refused.contains("--new"), "{refused}");
    // Evidence shows that it has run before.
    let refused = witness.start_as(Start::New).err().unwrap();
    assert!(refused.contains("has run before"), "{refused}");
    // Everything is gone: an unmounted disk, or deleted.
    let aside = witness.dir.path().join("aside");
    std::fs::rename(witness.state(), &aside).unwrap();
    let refused = witness.start_as(Start::Known).err().unwrap();
    assert!(refused.contains("has no witness state") && refused.contains("mounted"), "{refused}");
    assert!(!witness.state().exists(), "nothing is made where a disk may be missing");
    std::fs::create_dir(witness.state()).unwrap();
    std::fs::set_permissions(witness.state(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let refused = witness.start_as(Start::Known).err().unwrap();
    assert!(refused.contains("has no witness state"), "{refused}");
    std::fs::remove_dir(witness.state()).unwrap();
    std::fs::rename(&aside, witness.state()).unwrap();
    // The controls.
    std::fs::write(&file, &good).unwrap();
    let refused = witness.start_as(Start::New).err().unwrap();
    assert!(refused.contains("has run before"), "{refused}");
    assert_eq!(std::fs::read(&file).unwrap(), good, "it is left as it was found");
    let daemon = witness.start().unwrap();
    assert_eq!(
        request(daemon.addr, "POST", "/add-checkpoint", log.body(0, 20).as_bytes()).unwrap().body,
        "20\n"
    );
}

#[test]
fn a_log_that_was_idle_for_a_while_is_not_forgotten() {
    let (a, b) = (Log::of("log.example/a", 20), Log::of("log.example/b", 20));
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let open_as = |start, log: &Log| {
        WitnessCore::open(&state, start, vec![log.signer.public().clone()], vec![cosigner(0)])
    };
    let open = |log: &Log| open_as(Start::Known, log).unwrap();
    drop(open_as(Start::New, &a).unwrap());
    let add = |core: &WitnessCore, body: String| {
        runtime.block_on(core.add_checkpoint(body.as_bytes(), now()))
    };
    assert_eq!(add(&open(&a), a.body(0, 9)).status(), 200);
    assert_eq!(add(&open(&b), b.body(0, 7)).status(), 200);
    let core = open(&a);
    assert_eq!(add(&core, a.body(0, 20)), Answer::Behind(9));
    assert_eq!(add(&core, b.body(0, 20)), Answer::UnknownLog);
    assert!(matches!(open_as(Start::Known, &a), Err(OpenError::State(StateError::InUse(_)))));
}

#[test]
fn a_failing_disk_stops_the_signing_and_not_the_witness() {
    let log = Log::of("log.example/a", 20);
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let open = |start| {
        WitnessCore::open(&state, start, vec![log.signer.public().clone()], vec![cosigner(0)])
    };
    let core = open(Start::New).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let add = |body: String| runtime.block_on(core.add_checkpoint(body.as_bytes(), now()));
    assert_eq!(add(log.body(0, 7)).status(), 200);
    // A directory in place of the file: no rename succeeds, not even for root.
    let (file, aside) = (state.join("state"), state.join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(add(log.body(7, 9)).status(), 503);
    assert_eq!(add(log.body(7, 9)).status(), 503, "not even again");
    assert_eq!(add(log.body(9, 9)), Answer::Behind(7), "what was not cosigned is not said to be");
    assert_eq!(add(log.body(7, 7)).status(), 200, "what was can be again");
    std::fs::remove_dir(&file).unwrap();
    assert_eq!(add(log.body(7, 9)).status(), 200);
    drop(core);
    let core = open(Start::Known).unwrap();
    assert_eq!(core.logs()[0].tree.unwrap().0, 9);
}

#[test]
fn beyond_loopback_a_witness_speaks_only_https() {
    let log = Log::of("log.example/a", 20);
    let witness = Witness::new(&[&log]);
    let state = witness.state().display().to_string();
    let args = [
        "witness",
        "run",
        "--listen",
        "0.0.0.0:0",
        "--state",
        &state,
        "--key",
        &witness.keys[0],
        "--log",
        &witness.logs[0],
    ];
    let refused = wiretight(&args);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("not a loopback address"), "{}", stderr(&refused));
    // A key file is not overwritten, and only its owner may read it.
    let again = wiretight(&["witness", "keygen", "x.example/w", "--out", &witness.keys[0]]);
    assert!(
        !again.status.success() && stderr(&again).contains("not overwritten"),
        "{}",
        stderr(&again)
    );
    let mode = std::fs::metadata(&witness.keys[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(&witness.keys[0]).unwrap();
    assert!(key.starts_with("PRIVATE+KEY+witness.example/w+"));
    assert_eq!(Cosigner::parse(&key).unwrap().public(), &witness.vkeys[0]);
}

/// Anyone can send signed checkpoints without a proof, as often as the log signs.
#[test]
fn a_fork_after_much_junk_is_still_recorded_and_logged() {
    let log = Log::of("log.example/a", 3 * MAX_FILES);
    let witness = Witness::new(&[&log]);
    let daemon = witness.start().unwrap();
    let add =
        |body: &str| request(daemon.addr, "POST", "/add-checkpoint", body.as_bytes()).unwrap();
    assert_eq!(add(&log.body(0, 10)).status, 200);
    for size in 11..2 * MAX_FILES {
        assert_eq!(add(&format!("old 10\n\n{}", log.signed(size))).status, 422);
    }
    let files = || -> Vec<String> {
        let files = std::fs::read_dir(witness.state().join("evidence")).unwrap();
        files.map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap()).collect()
    };
    let kept = |text: &str| files().iter().any(|file| file.contains(text));
    assert_eq!(files().len(), MAX_FILES);
    // A checkpoint that does not prove a fork by itself, and one that does.
    let (fork, other) = (log.forked(5, 20), log.forked(5, 10));
    assert_eq!(add(&fork.body(10, 20)).status, 422);
    assert!(kept(&fork.signed(20).to_string()));
    assert_eq!(add(&other.body(10, 10)).status, 422);
    assert!(kept(&other.signed(10).to_string()));
    wait_for("each is a line", || {
        let said = daemon.output();
        said.contains("\"size\":20") && said.contains("two different trees of the same size")
    });
    // The control: a valid checkpoint is still cosigned.
    assert_eq!(add(&log.body(10, 20)).status, 200);
}
