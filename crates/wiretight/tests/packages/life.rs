//! From a fresh machine to the first encrypted query, and what follows in a machine's life.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::Packages;
use super::machine::{Machine, can};
use super::machines::{CANARY, Capture, Wire};
use super::rig::*;

/// What a person types, on all machines.
struct Typed {
    started: Instant,
    commands: Vec<String>,
}

impl Typed {
    fn on(&mut self, machine: &Machine, line: &str) -> Ran {
        self.note(line);
        machine.run(line)
    }

    fn note(&mut self, line: &str) {
        self.commands.push(format!("{:5.1} s  {line}", self.started.elapsed().as_secs_f32()));
    }
}

#[test]
fn a_fresh_debian_reaches_its_first_encrypted_query_and_lives_on() {
    if !can() || !has(&["postgres", "initdb", "psql"]) {
        return;
    }
    let packages = Packages::get();
    let (world, wire) = (World::new(), Wire::new());
    let (db, web) =
        (Machine::boot(&world, &wire.server, "db1"), Machine::boot(&world, &wire.client, "web1"));
    let _postgres = postgres(&world, &wire.server);
    let deb = db.copy(&packages.deb);
    web.copy(&packages.deb);

    // Must be short: this is what a newcomer does.
    let mut typed = Typed { started: Instant::now(), commands: Vec::new() };
    let install = format!("apt -y install {deb}");
    let said = typed.on(&db, &install).all();
    installed_and_nothing_runs(&db);
    assert!(said.contains("Setting up wiretight"), "{said}");
    typed.on(&web, &install);
    let offer = "--offer db=127.0.0.1:5432 --allow service/web";
    typed.on(&db, &format!("wiretight init authority --trust-domain example.org {offer}"));
    typed.note("systemctl start wiretight");
    let mut db_node = db.start();
    wait_for("the authority runs", || db.status()["ready"].is_boolean());
    let token = typed.on(&db, "wiretight token create --node web1 --service web").out;
    let init = "wiretight init node --token - --use db=127.0.0.1:5432 --as web";
    typed.note(init);
    web.run_with(init, &token);
    typed.note("systemctl start wiretight");
    let mut web_node = web.start();
    let capture = Capture::start(&wire, &world, "wire");
    wait_for("the query is answered", || ask(&wire.client).code == Some(0));
    typed.note("psql -h 127.0.0.1");
    let commands = typed.commands.len();
    say(format!(
        "from a fresh system to the first encrypted query: {commands} commands\n{}",
        typed.commands.join("\n")
    ));
    assert!(commands <= 8, "{commands} commands");
    let (plain, bytes) = capture.canaries();
    assert!(plain == 0 && bytes > 4000, "{plain} canaries in {bytes} bytes");

    units_are_in_order(&web);

    // An upgrade.
    let newer = packages.newer();
    let pids = [&db, &web].map(|machine| machine.status()["pid"].clone());
    let load = Load::start(&wire.client);
    for machine in [&db, &web] {
        let path = machine.copy(&newer);
        let said = machine.run(&format!("dpkg -i {path}")).all();
        assert!(said.contains("99.0-1"), "{said}");
        assert!(machine.reload().contains("has taken over"));
    }
    let [Ok(kept), Ok(new)] = load.stop() else { panic!("an upgrade disturbed the traffic") };
    say(format!("during the upgrades: {kept} queries on one connection, {new} on new ones"));
    assert!(kept > 20 && new > 2, "{kept} {new}");
    for (machine, before) in [&db, &web].into_iter().zip(&pids) {
        assert_ne!(machine.status()["pid"], *before);
    }
    // The control: what a restart does to the same load.
    let load = Load::start(&wire.client);
    thread::sleep(ms(500));
    web.run(&format!("kill -9 {}", web.status()["pid"]));
    wait_for("the connection is cut", || load.kept.is_finished());
    let [kept, _] = load.stop();
    assert!(kept.is_err(), "{kept:?}");
    drop(web_node);
    web_node = web.start();
    wait_for("the query is answered", || ask(&wire.client).code == Some(0));

    // Back to the older version.
    web.run(&format!("apt -y --allow-downgrades install {deb}"));
    assert!(web.reload().contains("has taken over"));
    wait_for("the query is answered", || ask(&wire.client).code == Some(0));

    // Removal. Only the table's name matters here: what the rules do is tested elsewhere.
    web.run("nft add table inet wiretight");
    web.run("systemctl enable wiretight-rules");
    web.run("test -L /etc/systemd/system/sysinit.target.wants/wiretight-guard.service");
    web.run("systemctl add-requires systemd-networkd.service wiretight-rules.service");
    let required = "/etc/systemd/system/systemd-networkd.service.requires/wiretight-rules.service";
    web.run(&format!("test -L {required}"));
    web.run(&format!("kill {}", web.status()["pid"]));
    web_node.kill();
    let said = web.run("apt -y remove wiretight").all();
    assert!(said.contains("nft delete table inet wiretight"), "{said}");
    web.run("nft list table inet wiretight");
    assert!(!web.exists("/usr/bin/wiretight") && has_state(&web));
    web.run(&format!("test ! -L {required}"));

    // Purging keeps the keys: nobody can be asked. So it continues as the same node.
    let said = web.run("dpkg --purge wiretight").all();
    assert!(said.contains("kept, with keys: /var/lib/wiretight"), "{said}");
    assert!(has_state(&web));
    web.run("nft delete table inet wiretight");
    web.run(&install);
    let web_node = web.start();
    wait_for("the query is answered", || ask(&wire.client).code == Some(0));
    drop(web_node);
    web.run(&format!("kill {}", web.status()["pid"]));

    // With an answer, but while the kernel has rules, they are kept as well.
    let answer = "echo wiretight wiretight/purge-state boolean true | debconf-set-selections";
    web.run(&format!("nft add table inet wiretight && {answer}"));
    let said = web.run("dpkg --purge wiretight").all();
    assert!(said.contains("kernel still has") && has_state(&web), "{said}");
    web.run("nft delete table inet wiretight");
    web.run(&format!("dpkg -i {deb} && {answer} && dpkg --purge wiretight"));
    assert!(!web.exists("/var/lib/wiretight") && !web.exists("/etc/wiretight"));

    // A key beside the configuration needs an answer too, when there is no state.
    web.run(&format!("dpkg -i {deb} && echo key >/etc/wiretight/auditor.key"));
    let said = web.run("dpkg --purge wiretight").all();
    assert!(said.contains("kept, with keys: /etc/wiretight"), "{said}");
    assert!(web.exists("/etc/wiretight/auditor.key"));
    db_node.kill();
}

fn has_state(machine: &Machine) -> bool {
    machine.exists("/var/lib/wiretight/identity") && machine.exists("/etc/wiretight/wiretight.toml")
}

fn installed_and_nothing_runs(machine: &Machine) {
    machine.run("getent passwd wiretight wiretight-witness wiretight-monitor");
    machine.run("test \"$(stat -c '%U %a' /var/lib/wiretight)\" = 'wiretight 700'");
    machine.run("dpkg --verify wiretight");
    machine.run("wiretight --version");
    assert_eq!(Ran::of(&mut machine.shell("pidof wiretight"), "").code, Some(1), "nothing runs");
    assert_eq!(machine.run("nft list ruleset").out, "");
    // At the next start of the machine it runs, if it is configured.
    assert!(machine.exists("/etc/systemd/system/multi-user.target.wants/wiretight.service"));
    for page in ["man1/wiretight.1.gz", "man1/wiretight-rules-guard.1.gz"] {
        assert!(machine.exists(&format!("/usr/share/man/{page}")), "{page}");
    }
    machine.run("bash -n /usr/share/bash-completion/completions/wiretight");
    machine.run("grep -q '^Of aws-lc-sys ' /usr/share/doc/wiretight/copyright");
    machine.run("zgrep -q '^## Install' /usr/share/doc/wiretight/operator.md.gz");
    machine.run("wiretight check /usr/share/doc/wiretight/examples/wiretight.toml");
}

/// systemd of the machine reads the units. The thresholds are what they have, rounded up: 0 is best, 100 worst.
fn units_are_in_order(machine: &Machine) {
    for (unit, threshold) in [
        ("wiretight.service", 20),
        ("wiretight-rules.service", 45),
        ("wiretight-guard.service", 45),
        ("wiretight-witness@.service", 15),
        ("wiretight-monitor@.service", 15),
    ] {
        let ran =
            Ran::of(&mut machine.shell(&format!("systemd-analyze verify --man=no {unit}")), "");
        assert!(ran.code == Some(0) && ran.all().is_empty(), "{unit}: {ran:?}");
        machine.run(&format!(
            "systemd-analyze security --no-pager --offline=yes --threshold={threshold} {unit}"
        ));
        let page = machine.run(&format!(
            "sed -n 's/^Documentation=man:\\(.*\\)(1)$/\\1/p' /lib/systemd/system/{unit}"
        ));
        let page = format!("/usr/share/man/man1/{}.1.gz", page.out.trim());
        assert!(machine.exists(&page), "{unit}: {page}");
    }
    // The controls.
    let bad = "sed 's/^NoNewPrivileges=.*/NoNewPrivilege=yes/;/^Protect/d;/^SystemCall/d' /lib/systemd/system/wiretight.service >/root/bad.service";
    machine.run(bad);
    let ran = Ran::of(&mut machine.shell("systemd-analyze verify --man=no ./bad.service"), "");
    assert!(ran.all().contains("'NoNewPrivilege'"), "{ran:?}");
    let line = "systemd-analyze security --no-pager --offline=yes --threshold=20 ./bad.service";
    assert_eq!(Ran::of(&mut machine.shell(line), "").code, Some(1));
}

/// A server of the host, in the machine's network, as its programs see it.
fn postgres(world: &World, netns: &str) -> Kid {
    let dir = world.path("postgres");
    fs::create_dir(&dir).unwrap();
    Ran::of(Command::new("chown").arg("postgres").arg(&dir), "").good();
    Ran::of(Command::new("chmod").arg("755").arg(world.path("")), "").good();
    let script = r#"cd "$1"
        "$2" --username=postgres --auth=trust --no-sync --locale=C -D data >log
        exec "$3" -D data -k "$1" -h 127.0.0.1 -F -p 5432"#;
    let mut command = Command::new(find("setpriv").unwrap());
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh", "-ec", script]);
    command.arg("sh").arg(&dir).arg(find("initdb").unwrap()).arg(find("postgres").unwrap());
    let kid = Kid::start(&mut within(Some(netns), command), &world.path("postgres.log"));
    let at: SocketAddr = ([127, 0, 0, 1], 5432).into();
    let listens = on(netns, move || wait_port(at));
    listens.join().unwrap();
    kid
}

/// A client of PostgreSQL, through the node of the machine.
fn psql(netns: &str) -> Command {
    let mut psql = Command::new(find("psql").unwrap());
    psql.args(["-h", "127.0.0.1", "-U", "postgres", "-At"]);
    psql.env("PGCONNECT_TIMEOUT", "5").env("PGSSLMODE", "disable");
    within(Some(netns), psql)
}

fn ask(netns: &str) -> Ran {
    Ran::of(psql(netns).args(["-c", &format!("SELECT '{CANARY}'")]), "")
}

/// Queries until it is stopped: on a connection that stays, and on a new connection each. Counts those that were answered.
struct Load {
    stop: Arc<AtomicBool>,
    kept: JoinHandle<Result<u32, u32>>,
    new: JoinHandle<Result<u32, u32>>,
}

impl Load {
    fn start(netns: &str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, ended) = (netns.to_owned(), stop.clone());
        let new = thread::spawn({
            let (netns, ended) = (netns.clone(), ended.clone());
            move || {
                let mut count = 0;
                while !ended.load(Relaxed) {
                    if ask(&netns).code != Some(0) {
                        return Err(count);
                    }
                    count += 1;
                }
                Ok(count)
            }
        });
        let kept = thread::spawn(move || kept(&netns, &ended));
        Load { stop, kept, new }
    }

    /// How many queries were answered on the connection that stayed, and on new ones; `Err` if one was not.
    fn stop(self) -> [Result<u32, u32>; 2] {
        self.stop.store(true, Relaxed);
        [self.kept.join().unwrap(), self.new.join().unwrap()]
    }
}

fn kept(netns: &str, ended: &AtomicBool) -> Result<u32, u32> {
    let mut client = psql(netns);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = KilledOnDrop(client.spawn().unwrap());
    let mut queries = client.stdin.take().unwrap();
    let mut answers = BufReader::new(client.stdout.take().unwrap());
    let mut count = 0;
    while !ended.load(Relaxed) {
        let mut answer = String::new();
        let asked = writeln!(queries, "SELECT {count};");
        if asked.and_then(|()| answers.read_line(&mut answer)).is_err()
            || answer.trim() != count.to_string()
        {
            return Err(count);
        }
        count += 1;
        thread::sleep(ms(5));
    }
    Ok(count)
}
