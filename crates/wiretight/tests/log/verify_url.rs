//! Verification of a served log, comparison with its witnesses, and copies.

use std::net::SocketAddr;
use std::path::PathBuf;

use wiretight::log::witness::origin_hash;
use wiretight_tlog::{Cosigner, SignedCheckpoint};

use super::monitor;
use super::rig::{Log, cosigner, gzip, nginx, now, serve, stderr, stdout, wiretight, write};

/// A log and two witnesses, with a quorum of one; all are served from files.
struct World {
    dir: tempfile::TempDir,
    log: Log,
    witnesses: [Cosigner; 2],
    addr: SocketAddr,
}

impl World {
    fn new(size: usize) -> World {
        let (dir, log) = (tempfile::tempdir().unwrap(), Log::of("log.example/a", size));
        let witnesses = [cosigner(0), cosigner(2)];
        let addr = serve(dir.path().to_owned());
        let [a, b] = witnesses.each_ref().map(Cosigner::public);
        let text = format!(
            "log {}\nwitness w0 {a} http://{addr}/w0\nwitness w1 {b} http://{addr}/w1\ngroup g any w0 w1\nquorum g\n",
            log.signer.public()
        );
        write(dir.path(), "policy", text);
        World { dir, log, witnesses, addr }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets what the log shows.
    fn shows(&self, log: &Log, size: usize) {
        let _ = std::fs::remove_dir_all(self.path("log"));
        log.publish(&self.path("log"), &log.cosigned(size, &[&self.witnesses[0]], now()));
    }

    /// Sets what a witness shows.
    fn saw(&self, n: usize, signed: &SignedCheckpoint) {
        let dir = self.path(&format!("w{n}/{}", origin_hash(&self.log.origin())));
        std::fs::create_dir_all(&dir).unwrap();
        write(&dir, "checkpoint", signed.to_string());
    }

    fn verify(&self, args: &[&str]) -> (i32, String) {
        let (policy, url) = (self.path("policy"), format!("http://{}/log", self.addr));
        let policy = policy.display().to_string();
        let output = wiretight(&[&["verify", &url, "--policy", &policy], args].concat());
        (output.status.code().unwrap(), stdout(&output) + &stderr(&output))
    }

    #[track_caller]
    fn is(&self, code: i32, args: &[&str], words: &[&str]) {
        let (ended, text) = self.verify(args);
        assert_eq!(ended, code, "{text}");
        words.iter().for_each(|w| assert!(text.contains(w), "{w}: {text}"));
    }
}

#[test]
fn a_log_that_differs_from_what_its_witnesses_saw_is_refused() {
    let world = World::new(700);
    let [one, two] = &world.witnesses;
    let (log, long_ago) = (&world.log, now() - 600);
    world.shows(log, 600);
    // No witness shows anything: the output says so.
    world.is(
        0,
        &[],
        &["all 600 entries and all tiles", "not verified: what the witness w0 saw", "w1 saw"],
    );
    world.saw(0, &log.cosigned(600, &[one], long_ago));
    world.saw(1, &log.cosigned(300, &[two], long_ago));
    world.is(0, &[], &["w0 saw 600 entries", "w1 saw 300 entries", "the log shows the same"]);
    // Another history, of the same size and smaller.
    for size in [600, 300] {
        let fork = log.forked(250, size);
        world.saw(1, &fork.cosigned(size, &[two], long_ago));
        let signed = fork.signed(size).to_string();
        world.is(1, &[], &["FORK: the witness w1 saw", signed.lines().nth(2).unwrap()]);
    }
    // More than the log shows, for longer than a moment.
    world.saw(1, &log.cosigned(700, &[two], long_ago));
    world.is(1, &[], &["w1 saw 700 entries", "it withholds"]);
    world.saw(1, &log.cosigned(700, &[two], now()));
    world.is(0, &[], &["not verified: the witness w1 saw 700 entries", "does not show yet"]);
    // Without proof there is no accusation.
    let stranger = Log::of("log.example/a", 900);
    world.saw(1, &stranger.cosigned(900, &[two], long_ago));
    world.is(0, &[], &["is not signed by the log"]);
    world.saw(1, &log.cosigned(700, &[one], long_ago));
    world.is(0, &[], &["is not cosigned by the witness's key"]);
    // A tile that is not served; and an unreachable server.
    std::fs::remove_file(world.path("log/tile/entries/001")).unwrap();
    world.is(1, &[], &["does not exist"]);
    let policy = world.path("policy").display().to_string();
    let nobody = wiretight(&["verify", "http://127.0.0.1:1/log", "--policy", &policy]);
    assert_eq!(nobody.status.code(), Some(2), "{}", stderr(&nobody));
}

#[test]
fn a_copy_grows_with_the_log_and_refuses_another_history() {
    let world = World::new(1400);
    let log = &world.log;
    let copy = world.path("copy");
    let dir = copy.display().to_string();
    let mirror = ["--mirror", &dir];
    let policy = world.path("policy").display().to_string();
    let whole = |size: usize| {
        let output = wiretight(&["verify", &dir, "--policy", &policy]);
        let text = stdout(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.contains(&format!("all {size} entries and all tiles")), "{text}");
    };
    world.shows(log, 700);
    world.is(0, &mirror, &["it had 0 entries, 700 were added"]);
    whole(700);
    world.is(0, &mirror, &["it had 512 entries"]);
    world.shows(log, 1300);
    world.is(0, &mirror, &["it had 512 entries, 788 were added"]);
    whole(1300);
    assert!(!copy.join("tile/0/002.p").exists(), "a full one has taken its place");
    // A damaged copy: hashes are computed again, entries are fetched again.
    std::fs::remove_file(copy.join("tile/0/001")).unwrap();
    std::fs::write(copy.join("tile/0/002"), "x").unwrap();
    world.is(0, &mirror, &["it had 1280 entries"]);
    whole(1300);
    let bundle = copy.join("tile/entries/001");
    let mut bytes = std::fs::read(&bundle).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&bundle, bytes).unwrap();
    world.is(0, &mirror, &["it had 0 entries, 1300 were added"]);
    whole(1300);
    std::fs::remove_file(&bundle).unwrap();
    world.is(0, &mirror, &["it had 256 entries"]);
    whole(1300);
    // Fewer entries, another history, another log: the copy stays unchanged.
    world.shows(log, 1000);
    world.is(1, &mirror, &["shows 1000 entries", "has 1300"]);
    let fork = log.forked(1250, 1400);
    world.shows(&fork, 1400);
    world.is(1, &mirror, &["FORK", "forked-checkpoint-1400"]);
    let kept = std::fs::read_to_string(copy.join("forked-checkpoint-1400")).unwrap();
    assert!(kept.contains(&fork.checkpoint(1400).root.to_string()));
    whole(1300);
    // A copy is for one log.
    let (code, text) = world.verify(&["--mirror", &dir, &dir]);
    assert!(code == 2 && text.contains("one log"), "{text}");
    // A copy can be copied.
    let second = world.path("second").display().to_string();
    let copied = wiretight(&["verify", &dir, "--policy", &policy, "--mirror", &second]);
    assert!(copied.status.success(), "{}", stdout(&copied));
}

/// Compresses the files of a log in place.
fn compress(dir: &std::path::Path) {
    for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()) {
        if file.is_dir() {
            compress(&file);
            continue;
        }
        let packed = file.with_file_name(format!("{}.gz", file.file_name().unwrap().display()));
        std::fs::write(packed, gzip(&std::fs::read(&file).unwrap())).unwrap();
        std::fs::remove_file(file).unwrap();
    }
}

/// C2SP tlog-tiles allows gzip, and a bucket may hold only compressed files.
#[test]
fn a_compressed_log_is_followed_verified_and_copied() {
    let mut world = monitor::World::new(700);
    let root = world.dir.path().display();
    let Some(server) = nginx(&format!(
        "default_type application/octet-stream;\n\
         location /packed/ {{ alias {root}/log/; gzip_static always; gunzip on; }}\n\
         location /asked/ {{ alias {root}/log/; gzip on; gzip_types *; gzip_min_length 1; }}"
    )) else {
        return eprintln!("skipped: no nginx");
    };
    let policy = world.path("policy");
    for (n, place) in ["asked", "packed"].into_iter().enumerate() {
        world.url = format!("http://{}/{place}", server.addr);
        world.publish(&world.log, 300 + 200 * n, now());
        if place == "packed" {
            compress(&world.dir.path().join("log"));
        }
        world.quiet(&[]);
        assert_eq!(world.rows().len(), 300 + 200 * n);
        let copy = world.path(&format!("copy{n}"));
        let verified = wiretight(&["verify", &world.url, "--policy", &policy, "--mirror", &copy]);
        let text = stdout(&verified) + &stderr(&verified);
        assert_eq!(verified.status.code(), Some(0), "{text}");
        let all = format!("all {} entries", 300 + 200 * n);
        assert!(text.contains(&all), "{text}");
        let verified = wiretight(&["verify", &copy, "--policy", &policy]);
        assert_eq!(verified.status.code(), Some(0), "{}", stdout(&verified));
    }
    // The control: it was compressed.
    let packed = |path: &str, status: &str, coding: &str| {
        path.contains("tile/entries") && status == "200" && coding == "gzip"
    };
    for place in ["/asked/", "/packed/"] {
        let access = server.access();
        assert!(
            access.iter().any(|(path, s, c)| path.starts_with(place) && packed(path, s, c)),
            "{access:?}"
        );
    }
}
