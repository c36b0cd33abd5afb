//! Wrong clocks of the authority, the witnesses and the nodes: after they are corrected, the mesh recovers within a minute.
//!
//! WIRETIGHT_CLOCKS=all runs every case; by default one of each kind runs.

use std::thread;
use std::time::Instant;

use super::machines::Clock;
use super::rig::*;
use super::transparency::Witnessed;

const HOURS: i64 = 7200;
/// Longer than the intervals at which clocks are checked.
const WRONG: u64 = 7000;
/// Cases that run concurrently, each with its own mesh.
const AT_ONCE: usize = 6;

const EVERYBODY: [&str; 6] = ["auth", "db1", "app1", "north", "south", "east"];

/// Whose clocks are wrong, and how many seconds they are ahead, one value after the other.
type Case = (&'static [&'static str], &'static [i64]);

/// Up to 45 s, nearly all of it waiting: twice until a wrong clock is noticed, and then for an authority whose clock
/// was behind and ahead, which tries every 5 to 10 s to replace its intermediate and to log that. The cases run in
/// parallel.
#[test]
fn a_mesh_recovers_after_wrong_clocks_are_corrected() {
    if !has(&["faketime"]) {
        return;
    }
    let (witnesses, issuing) = (&EVERYBODY[3..], &EVERYBODY[..3]);
    let mut cases: Vec<Case> = vec![
        (&EVERYBODY, &[HOURS]),
        (&["auth"], &[HOURS]),
        (witnesses, &[HOURS]),
        (&["db1"], &[-HOURS]),
        (issuing, &[-HOURS, HOURS]),
    ];
    if std::env::var("WIRETIGHT_CLOCKS").is_ok_and(|which| which == "all") {
        let who: [&[&str]; 6] = [&EVERYBODY, &["auth"], witnesses, &["db1"], &["app1"], issuing];
        let how: [&[i64]; 3] = [&[HOURS], &[-HOURS], &[HOURS, -HOURS, HOURS]];
        cases = who.iter().flat_map(|who| how.map(|how| (*who, how))).collect();
    }
    let mut noticed = [false; 2];
    for some in cases.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|case| scope.spawn(|| recovers(*case))).collect();
            for case in running {
                let by = case.join().expect("the mesh recovers");
                noticed = [noticed[0] || by[0], noticed[1] || by[1]];
            }
        });
    }
    // The control: their clocks were set.
    assert_eq!(noticed, [true; 2], "the authority and db1 have noticed a clock that was set");
}

/// Returns whether the authority and db1 have noticed that their clocks were set.
fn recovers((who, how): Case) -> [bool; 2] {
    let world = World::new();
    let mesh = Witnessed::with(&world, |folder| Clock::in_folder(folder).env());
    let clock = |name: &str| Clock::of(&world.path(name));
    let mut live = Talk::open(mesh.entry).unwrap();
    live.exchange().unwrap();
    let what = format!("{} by {how:?} s", who.join(", "));
    let set = |ahead: i64| who.iter().for_each(|name| clock(name).set(ahead));
    for ahead in how {
        set(*ahead);
        // Request everything again with wrong clocks, whatever the results.
        thread::sleep(ms(WRONG / 2));
        let mut asked = [&mesh.db, &mesh.app].map(|node| {
            let mut renew = wiretight();
            renew.args(["svid", "renew", "--config"]).arg(node.file());
            Kid::start(&mut renew, &world.path("renew.log"))
        });
        thread::sleep(ms(WRONG / 2));
        asked.iter_mut().for_each(Kid::kill);
    }
    set(0);
    let begun = Instant::now();
    let works = || {
        let ready = |node: &&Node| matches!(node.probe("/readyz"), Ok((200, _)));
        once(mesh.entry).is_ok() && [&mesh.auth, &mesh.db, &mesh.app].iter().all(ready)
    };
    wait_for(&format!("{what}: connections work again"), works);
    let connects = begun.elapsed();
    // New certificates are issued and work.
    for node in [&mesh.db, &mesh.app] {
        wait_for(&format!("{what}: {} renews", node.name), || {
            begun.elapsed() < PATIENCE && node.cli(&["svid", "renew"]).code == Some(0)
        });
    }
    let renews = begun.elapsed();
    once(mesh.entry).unwrap();
    live.exchange().unwrap();
    say(format!(
        "{what}: connections after {:.1} s, all renewed after {:.1} s",
        connects.as_secs_f32(),
        renews.as_secs_f32()
    ));
    [&mesh.auth, &mesh.db].map(|node| node.log().contains("clock was set"))
}
