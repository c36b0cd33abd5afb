//! Faults under traffic: two strict machines and an authority on one wire, programs on both that keep trying to reach the
//! other in plaintext, and one fault after another. Nothing of theirs may cross in plaintext, and encrypted traffic must
//! recover.
//!
//! `scripts/chaos` makes the long run. WIRETIGHT_CHAOS_CYCLES sets the number of faults, WIRETIGHT_CHAOS_SEED selects them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::hostile::{announce, hostile_records};
use super::machines::{CANARY, Clock, Wire, address, hosts, ip};
use super::rig::*;
use super::wire::Watch;
use log::LogSide;

mod log;

const CYCLES: u64 = 45;
const SEED: u64 = 7;
const AUTHORITY: u16 = 7400;
const MESH: u16 = 7080;
/// The first is a service of the mesh; programs listen on the others as well.
const COVERED: u16 = 9000;
const UNCOVERED: u16 = 9001;
const UDP: u16 = 9002;
const NEW: &str = "new connections";
const NAMES: [&str; 2] = ["client", "server"];

struct Fault {
    name: &'static str,
    /// How often it occurs per round.
    weight: u64,
    /// Causes the fault and repairs what does not recover, such as a killed process.
    run: fn(&mut Rig, side: usize),
}

const FAULTS: &[Fault] = &[
    Fault { name: "killed and started", weight: 5, run: killed },
    Fault { name: "stopped in order and started", weight: 3, run: terminated },
    Fault { name: "stands still for a while", weight: 5, run: stands_still },
    Fault { name: "upgraded", weight: 4, run: upgraded },
    Fault { name: "an upgrade that is killed", weight: 2, run: upgrade_killed },
    Fault { name: "authority upgraded", weight: 1, run: authority_upgraded },
    Fault { name: "who keeps the rules killed", weight: 2, run: worker_killed },
    Fault { name: "and who starts that one anew", weight: 1, run: keeper_killed },
    Fault { name: "table flushed", weight: 3, run: table_flushed },
    Fault { name: "table deleted", weight: 3, run: table_deleted },
    Fault { name: "table switched off", weight: 2, run: table_switched_off },
    Fault { name: "ruleset flushed", weight: 3, run: ruleset_flushed },
    Fault { name: "authority killed", weight: 3, run: authority_killed },
    Fault { name: "authority stands still", weight: 3, run: authority_stands_still },
    Fault { name: "removed and joined again", weight: 2, run: removed },
    Fault { name: "link down and up", weight: 3, run: link_down },
    Fault { name: "boot", weight: 2, run: boot },
    Fault { name: "reload", weight: 3, run: reload },
    Fault { name: "intermediate or root replaced", weight: 2, run: rotated },
    Fault { name: "identities expired", weight: 1, run: expired },
    Fault { name: "a clock is wrong, then right", weight: 3, run: clock_set },
    Fault { name: "a member gone bad announces hostile records", weight: 2, run: member_gone_bad },
    Fault { name: "a witness gone bad", weight: 2, run: log::witness_gone_bad },
    Fault { name: "a log that withholds", weight: 1, run: log::log_withholds },
];

// ---- Faults, one function each.

fn killed(rig: &mut Rig, side: usize) {
    rig.nodes[side].kill();
    rig.pause(0, 300);
    rig.nodes[side].start();
}

fn terminated(rig: &mut Rig, side: usize) {
    let node = &mut rig.nodes[side];
    node.kid().signal(Signal::TERM);
    assert!(node.kid().ended(ms(20_000)).is_some(), "it does not stop");
    rig.pause(0, 300);
    rig.nodes[side].start();
}

fn stands_still(rig: &mut Rig, side: usize) {
    rig.nodes[side].kid().signal(Signal::STOP);
    rig.pause(200, 1000);
    rig.nodes[side].kid().signal(Signal::CONT);
}

fn upgraded(rig: &mut Rig, side: usize) {
    rig.nodes[side].upgrade();
}

fn upgrade_killed(rig: &mut Rig, side: usize) {
    let mut new = rig.nodes[side].successor();
    rig.pause(0, 400);
    new.kill();
    // The new process may have taken over already.
    let answers = |node: &Node| matches!(node.http("GET", "/healthz", ""), Ok((200, _)));
    wait_for("at most one of the two is the node", || {
        answers(&rig.nodes[side]) || rig.nodes[side].kid().ended(ms(0)).is_some()
    });
    if !answers(&rig.nodes[side]) {
        rig.nodes[side].start();
    }
}

fn authority_upgraded(rig: &mut Rig, _: usize) {
    rig.authority.upgrade();
}

/// The process that maintains the rules of a node.
fn keeper_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let keeper = children.split_whitespace().find(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("rules-keeper")
    });
    keeper?.parse().ok()
}

fn kill_9(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn worker_killed(rig: &mut Rig, side: usize) {
    let keeper = keeper_of(rig.nodes[side].pid()).expect("the rules are kept");
    let old = keeper_of(keeper).expect("by a worker");
    kill_9(old);
    let anew = || keeper_of(keeper).is_some_and(|new| new != old && rig.is_guarded(side, new));
    wait_for("it is restarted", anew);
    rig.changed_by_somebody(side, "delete table inet wiretight");
}

fn keeper_killed(rig: &mut Rig, side: usize) {
    kill_9(keeper_of(rig.nodes[side].pid()).expect("the rules are kept"));
    // The rules stay, and traffic continues; the node reports that it needs a restart, which an upgrade does as well.
    rig.traffic.recovers();
    rig.nodes[side].upgrade();
}

fn table_flushed(rig: &mut Rig, side: usize) {
    rig.changed_by_somebody(side, "flush table inet wiretight");
}

fn table_deleted(rig: &mut Rig, side: usize) {
    rig.changed_by_somebody(side, "delete table inet wiretight");
}

fn table_switched_off(rig: &mut Rig, side: usize) {
    rig.changed_by_somebody(side, "add table inet wiretight { flags dormant; }");
}

fn ruleset_flushed(rig: &mut Rig, side: usize) {
    rig.changed_by_somebody(side, "flush ruleset");
}

fn authority_killed(rig: &mut Rig, _: usize) {
    rig.authority.kill();
    rig.pause(100, 1000);
    rig.authority.start();
    rig.authority.ready();
}

fn authority_stands_still(rig: &mut Rig, _: usize) {
    rig.authority.kid().signal(Signal::STOP);
    rig.pause(200, 1500);
    rig.authority.kid().signal(Signal::CONT);
}

fn removed(rig: &mut Rig, side: usize) {
    rig.authority.cli(&["node", "remove", NAMES[side], "--yes"]).good();
    // It keeps running, and only `protect` protects it.
    rig.pause(300, 1000);
    rig.nodes[side].kill();
    let token = dual_stack_token(&rig.authority, side);
    fs::write(rig.nodes[side].token_file(), token).unwrap();
    rig.nodes[side].start();
}

fn link_down(rig: &mut Rig, side: usize) {
    ip(&format!("-n {} link set eth0 down", rig.machines[side]));
    rig.pause(100, 700);
    address(&rig.machines[side], host(side));
}

/// Like a reboot: everything is gone; the rules are loaded before the network is up, and the node starts after it.
fn boot(rig: &mut Rig, side: usize) {
    let machine = rig.machines[side].clone();
    rig.nodes[side].kill();
    ip(&format!("-n {machine} link set eth0 down"));
    ip(&format!("-n {machine} addr flush dev eth0"));
    rig.nft(side, "flush ruleset");
    let mut load = wiretight();
    load.args(["rules", "load", "--config"]).arg(rig.nodes[side].file());
    Ran::of(&mut within(Some(&machine), load), "").good();
    address(&machine, host(side));
    rig.pause(100, 500);
    rig.nodes[side].start();
}

fn reload(rig: &mut Rig, side: usize) {
    rig.reloads += 1;
    let witnesses = rig.log.section(&rig.nodes[side]);
    rig.nodes[side].write(&format!("{}{witnesses}", sections(side, 2000 + rig.reloads)));
    rig.nodes[side].cli(&["reload"]).good();
}

fn rotated(rig: &mut Rig, _: usize) {
    let step = ["intermediate", "prepare-root", "activate-root", "retire-root"][rig.rotation % 4];
    rig.rotation += 1;
    // Every node must have the new root, and the old one's last certificate must expire.
    let body = json!({ "step": step }).to_string();
    wait_for(&format!("the authority does {step}"), || {
        matches!(rig.authority.http("POST", "/v1/authority", &body), Ok((200, _)))
    });
}

fn expired(rig: &mut Rig, _: usize) {
    rig.authority.kill();
    // Each expires at a different time.
    let ended = |node: &Node| {
        let status = node.status();
        let left = |i: &Value| i["expires_in_seconds"].as_i64().is_some_and(|left| left < 0);
        status["identities"].as_array().is_some_and(|all| all.iter().all(left))
    };
    wait_for("identities run out", || rig.nodes.iter().all(ended));
    // Sessions continue when their certificates have expired; new ones cannot start.
    let new = |traffic: &Traffic| {
        let new = traffic.covered.iter().filter(|tried| tried.what.starts_with(NEW));
        new.map(|tried| tried.done.load(Relaxed)).sum::<u64>()
    };
    // Open sessions may end.
    rig.pause(1000, 1200);
    let before = new(&rig.traffic);
    rig.pause(500, 700);
    assert_eq!(new(&rig.traffic), before, "connections begin without identities");
    rig.authority.start();
    rig.authority.ready();
}

/// The clock of a node or the authority is wrong: ahead, behind, or first one and then the other.
fn clock_set(rig: &mut Rig, side: usize) {
    let which = match rig.dice.below(2) {
        0 => side,
        _ => 2,
    };
    let ahead = [7200, -7200][rig.dice.below(2) as usize];
    let steps = 1 + rig.dice.below(2);
    for step in 0..steps as u32 {
        rig.clocks[which].set(ahead * (-1i64).pow(step));
        rig.pause(3000, 7000);
    }
    rig.clocks[which].set(0);
}

/// It has another token each time. Its announcements stay in the registry.
fn member_gone_bad(rig: &mut Rig, side: usize) {
    let token = rig.authority.token("bad", &["evil"]);
    let others = [hosts(1)[0].to_string(), format!("[{}]", hosts(2)[1]), "10.77.0.200".into()];
    let records = hostile_records("evil", "10.77.0.4", &others.each_ref().map(|host| &**host));
    let dir = tempfile::tempdir().unwrap();
    let said = announce(&rig.bad, &token, &dir.path().join("bad"), &records);
    assert!(said.contains("not_allowed") && said.contains("16500 ports"), "{said}");
    let status = rig.nodes[side].status();
    assert_eq!(status["intercept"]["error"], Value::Null, "{status}");
    let services = rig.nodes[side].http("GET", "/v1/registry", "").unwrap().1;
    assert!(!services.contains("0.0.0.0") && !services.contains("10.77.0.200"), "{services}");
}

// ---- The rig.

const SERVICES: [[&str; 2]; 2] = [["c", "c-6"], ["s", "s-6"]];

struct Rig {
    traffic: Traffic,
    nodes: [Node; 2],
    authority: Node,
    log: LogSide,
    machines: [String; 2],
    /// The machines of the nodes and of the authority.
    clocks: [Clock; 3],
    /// The machine of a compromised member.
    bad: String,
    dice: Dice,
    reloads: u16,
    rotation: usize,
}

impl Rig {
    fn pause(&mut self, from: u64, to: u64) {
        thread::sleep(ms(from + self.dice.below(to - from)));
    }

    fn nft(&self, side: usize, command: &str) -> String {
        let mut nft = Command::new(find("nft").unwrap());
        nft.arg(command);
        Ran::of(&mut within(Some(&self.machines[side]), nft), "").good().out
    }

    /// Whether the second table of a process exists and drops. (It may disappear during the check.)
    fn is_guarded(&self, side: usize, keeper: u32) -> bool {
        let nft = |command: &str| {
            let mut nft = Command::new(find("nft").unwrap());
            nft.arg(command);
            Ran::of(&mut within(Some(&self.machines[side]), nft), "").out
        };
        let (tables, of) = (nft("list tables inet"), format!("wiretight_guard_{keeper}_"));
        let name = tables.split_whitespace().find(|name| name.starts_with(&of));
        name.is_some_and(|name| nft(&format!("list table inet {name}")).contains("drop"))
    }

    /// Another program changes the rules: the node restores them and logs it.
    fn changed_by_somebody(&mut self, side: usize, command: &str) {
        let node = &self.nodes[side];
        let mended = || node.log().matches("another program changed").count();
        let before = mended();
        self.nft(side, command);
        wait_for(&format!("{command}: it is restored"), || mended() > before);
    }
}

/// It connects over IPv4 and offers a service over IPv6 as well.
fn dual_stack_token(authority: &Node, side: usize) -> String {
    let six = hosts(host(side))[1].to_string();
    authority.token_at(NAMES[side], &SERVICES[side], &[&six])
}

/// Its number on the wire.
fn host(side: usize) -> u8 {
    side as u8 + 1
}

fn sections(side: usize, management: u16) -> String {
    let other = NAMES[1 - side];
    let mut text = "drain = \"1s\"\n".to_owned();
    for (name, ip) in SERVICES[side].iter().zip(hosts(host(side))) {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nlisten = \"{}\"\nforward = \"127.0.0.1:{COVERED}\"\n\
             allow = [\"node/{other}\"]\n",
            SocketAddr::new(ip, MESH)
        );
    }
    text + &format!(
        "[intercept]\nmode = \"strict\"\nprotect = [\"10.77.0.0/24\", \"fd77::/64\"]\n\
         management = [22, {management}]\n"
    )
}

// ---- Programs that retry for ever.

/// How often each got through.
struct Try {
    what: String,
    done: AtomicU64,
}

/// What a program does repeatedly.
type Again = fn(SocketAddr, &Try, &AtomicBool);

struct Traffic {
    stop: Arc<AtomicBool>,
    /// To a service.
    covered: Vec<Arc<Try>>,
    /// To something that is no service.
    uncovered: Vec<Arc<Try>>,
}

impl Traffic {
    fn start(machines: &[String; 2]) -> Traffic {
        let (stop, mut covered, mut uncovered) = (Arc::default(), Vec::new(), Vec::new());
        for side in [0, 1] {
            for port in [COVERED, UNCOVERED] {
                on(&machines[side], move || echo_all(port)).join().unwrap();
            }
            let heard = start_try(format!("UDP to {}", NAMES[side]));
            uncovered.push(heard.clone());
            on(&machines[side], move || {
                let socket = UdpSocket::bind(("::", UDP)).unwrap();
                thread::spawn(move || {
                    while socket.recv(&mut [0; 64]).is_ok() {
                        heard.done.fetch_add(1, Relaxed);
                    }
                })
            })
            .join()
            .unwrap();
            for ip in hosts(host(side)) {
                let start = |list: &mut Vec<_>, what: &str, port, again: Again| {
                    let to = SocketAddr::new(ip, port);
                    let tried = start_try(format!("{what} to {to}"));
                    list.push(tried.clone());
                    let stop: Arc<AtomicBool> = Arc::clone(&stop);
                    on(&machines[1 - side], move || {
                        while !stop.load(Relaxed) {
                            again(to, &tried, &stop);
                            thread::sleep(ms(15));
                        }
                    });
                };
                start(&mut covered, NEW, COVERED, |to, tried, _| {
                    let done = connect(to).and_then(|mut socket| exchange(&mut socket));
                    tried.done.fetch_add(done.is_ok().into(), Relaxed);
                });
                start(&mut covered, "a connection that stays", COVERED, |to, tried, stop| {
                    let Ok(mut socket) = connect(to) else { return };
                    while !stop.load(Relaxed) && exchange(&mut socket).is_ok() {
                        tried.done.fetch_add(1, Relaxed);
                        thread::sleep(ms(15));
                    }
                });
                start(&mut uncovered, NEW, UNCOVERED, |to, tried, _| {
                    let done = connect(to).and_then(|mut socket| exchange(&mut socket));
                    tried.done.fetch_add(done.is_ok().into(), Relaxed);
                });
                start(&mut Vec::new(), "datagrams", UDP, |to, _, _| {
                    let own = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let sent = UdpSocket::bind(own).map(|s| s.send_to(CANARY.as_bytes(), to));
                    drop(sent);
                });
            }
        }
        Traffic { stop, covered, uncovered }
    }

    /// Waits until covered connections got through this often.
    fn counts(&self) -> Vec<u64> {
        self.covered.iter().map(|tried| tried.done.load(Relaxed)).collect()
    }

    /// Waits until all covered connections get through again.
    #[track_caller]
    fn recovers(&self) -> Duration {
        self.recovered()
            .unwrap_or_else(|missing| panic!("no traffic after {PATIENCE:?}: {missing}"))
    }

    /// The same, with an error that names what does not get through.
    fn recovered(&self) -> Result<Duration, String> {
        let (begun, before) = (Instant::now(), self.counts());
        let missing = || -> Vec<&str> {
            let each = self.covered.iter().zip(&before);
            each.filter(|(t, old)| t.done.load(Relaxed) < *old + 2).map(|(t, _)| &*t.what).collect()
        };
        while !missing().is_empty() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("{:?}", missing()));
            }
            thread::sleep(ms(5));
        }
        Ok(begun.elapsed())
    }

    fn crossed(&self) -> u64 {
        self.uncovered.iter().map(|tried| tried.done.load(Relaxed)).sum()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn start_try(what: String) -> Arc<Try> {
    Arc::new(Try { what, done: AtomicU64::new(0) })
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&to, ms(300))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(ms(500)))?;
    socket.set_write_timeout(Some(ms(500)))?;
    Ok(socket)
}

fn exchange(socket: &mut TcpStream) -> io::Result<()> {
    socket.write_all(CANARY.as_bytes())?;
    let mut back = [0; CANARY.len()];
    socket.read_exact(&mut back)?;
    assert_eq!(back, *CANARY.as_bytes(), "other bytes came back");
    Ok(())
}

/// On all addresses of this thread's machine, for as long as the tests run.
fn echo_all(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 256];
                while let Ok(n @ 1..) = socket.read(&mut buffer) {
                    if socket.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

// ---- The run.

/// Each fault as often as its weight, in random order.
fn deck(dice: &mut Dice) -> Vec<&'static Fault> {
    let all = FAULTS.iter().flat_map(|fault| (0..fault.weight).map(move |_| fault));
    let mut deck: Vec<_> = all.collect();
    for i in (1..deck.len()).rev() {
        deck.swap(i, dice.below(i as u64 + 1) as usize);
    }
    deck
}

#[derive(Default)]
struct Sum {
    cycles: u64,
    longest: Duration,
    canaries: u64,
}

#[test]
fn no_fault_leaks_plaintext_and_traffic_recovers_from_each() {
    if !has(&["ip", "nft", "tcpdump", "faketime"]) || !is_root() {
        return;
    }
    let given = |name: &str| std::env::var(name).ok().map(|n| n.parse().expect("a number"));
    let cycles = given("WIRETIGHT_CHAOS_CYCLES").unwrap_or(CYCLES);
    let seed = given("WIRETIGHT_CHAOS_SEED").unwrap_or(SEED);
    say(format!("WIRETIGHT_CHAOS_CYCLES={cycles} WIRETIGHT_CHAOS_SEED={seed}"));

    let world = World::new();
    let mut wire = Wire::new();
    let (third, bad) = (wire.add(3), wire.add(4));
    let machines = [wire.client.clone(), wire.server.clone()];
    let traffic = Traffic::start(&machines);
    // The traffic between the two, and all traffic of the authority.
    let ports = [AUTHORITY, MESH];
    let watches = [(1, "client"), (3, "authority")]
        .map(|(host, name)| Watch::start(&wire, &world, host, name, &ports));

    // The control: without rules all of them get through, and everything is readable.
    traffic.recovers();
    wait_for("all of them get through", || {
        traffic.uncovered.iter().all(|tried| tried.done.load(Relaxed) > 5)
    });
    assert!(watches[0].seen().canaries > 100, "the capture misses what is there");

    let quiet = ("WIRETIGHT_LOG", "access=off,info".into());
    let section = format!(
        "[authority]\nlisten = \"10.77.0.3:{AUTHORITY}\"\nsvid_ttl = \"10s\"\nintermediate_ttl = \"1h\"\n"
    );
    let mut authority = world.node("auth", &section);
    authority.netns = Some(third.clone());
    let clock_of = |name: &str| Clock::in_folder(&world.path(name));
    let of_authority = clock_of("auth");
    authority.env.extend(of_authority.env());
    let log = LogSide::start(&world, &authority, &third);
    let witnesses = log.section(&authority);
    authority.write(&format!("{section}{witnesses}"));
    authority.start();
    authority.ready();
    let nodes = [0, 1].map(|side| {
        let mut node = world.node(NAMES[side], &sections(side, 2000));
        let witnesses = log.section(&node);
        node.write(&format!("{}{witnesses}", sections(side, 2000)));
        fs::write(node.token_file(), dual_stack_token(&authority, side)).unwrap();
        node.netns = Some(machines[side].clone());
        node.env.push(quiet.clone());
        node.env.extend(clock_of(NAMES[side]).env());
        node.start();
        node.ready();
        node
    });
    wait_for("the rules are in force", || {
        nodes.iter().all(|node| node.status()["intercept"]["mode"] == "strict")
    });
    let dice = Dice::of(seed);
    let [client, server] = NAMES.map(clock_of);
    let clocks = [client, server, of_authority];
    let mut rig = Rig {
        traffic,
        nodes,
        authority,
        log,
        machines,
        clocks,
        bad,
        dice,
        reloads: 0,
        rotation: 0,
    };
    rig.traffic.recovers();
    watches.iter().for_each(Watch::forget);
    let crossed = rig.traffic.crossed();

    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    let (mut faults, begun) = (Vec::new(), Instant::now());
    for cycle in 0..cycles {
        if faults.is_empty() {
            faults = deck(&mut rig.dice);
        }
        let fault = faults.pop().expect("there are some");
        let (side, before) = (rig.dice.below(2) as usize, watches[0].canaries());
        (fault.run)(&mut rig, side);
        let took = rig.traffic.recovered().unwrap_or_else(|missing| {
            let rules = [0, 1].map(|side| rig.nft(side, "list ruleset"));
            let (name, side) = (fault.name, NAMES[side]);
            panic!("cycle {cycle}: {name} ({side}): no traffic: {missing}\n{}", rules.join("\n"));
        });
        let sum = sums.entry(fault.name).or_default();
        sum.cycles += 1;
        sum.longest = sum.longest.max(took);
        let canaries = watches[0].seen().canaries - before;
        sum.canaries += canaries;
        if canaries > 0 {
            say(format!("cycle {cycle}: {} ({}): {canaries} canaries", fault.name, NAMES[side]));
        }
    }

    let seconds = begun.elapsed().as_secs();
    let exchanges: u64 = rig.traffic.counts().iter().sum();
    say(format!("{cycles} faults in {seconds} s, under {exchanges} exchanges"));
    say(format!("{:<32}{:>8}{:>20}{:>10}", "fault", "cycles", "longest recovery", "canaries"));
    for (name, Sum { cycles, longest, canaries }) in &sums {
        let longest = format!("{} ms", longest.as_millis());
        say(format!("{name:<32}{cycles:>8}{longest:>20}{canaries:>10}"));
    }
    for watch in watches {
        watch.end().assert_encrypted();
    }
    assert_eq!(rig.traffic.crossed(), crossed, "plaintext got through");
    rig.log.assert_told_the_truth();
    drop(rig);
}
