//! The rpm, installed into the root directory of a machine whose other packages rpm does not know.

use std::fs;

use super::Packages;
use super::machine::{Machine, can};
use super::machines::Wire;
use super::rig::*;

#[test]
fn rpm_installs_upgrades_and_keeps_state_when_it_is_removed() {
    if !can() || !has(&["rpm"]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let machine = Machine::boot(&world, &wire.server, "fedora");
    let package = Packages::get().rpm.display().to_string();
    let root = machine.root.display().to_string();
    // `--nodeps`, because its database has no C library.
    let rpm = |args: &[&str]| {
        machine.of_the_host("rpm", &[&["--root", &root, "--nodeps"], args].concat())
    };

    let asked =
        Ran::of(std::process::Command::new("rpm").args(["-qp", "--requires", &package]), "");
    let requires = asked.good().out;
    for needed in ["nftables >= 1.0.6", "iproute", "libc.so.6(GLIBC_2.34)(64bit)"] {
        assert!(requires.lines().any(|line| line == needed), "{needed}: {requires}");
    }

    machine.run("apt-get -qq -y install nftables iproute2");
    rpm(&["-i", &package]).good();
    machine.run("getent passwd wiretight wiretight-witness wiretight-monitor");
    machine.run("test \"$(stat -c '%U %a' /var/lib/wiretight)\" = 'wiretight 700'");
    assert!(machine.exists("/etc/systemd/system/multi-user.target.wants/wiretight.service"));
    assert_eq!(machine.of_the_host("pgrep", &["-x", "wiretight"]).code, Some(1), "nothing runs");
    machine.run("wiretight --version");
    rpm(&["-V", "wiretight"]).good();

    fs::write(machine.inside("/var/lib/wiretight/a-key"), "secret").unwrap();
    rpm(&["-U", "--force", &package]).good();
    assert!(machine.exists("/etc/systemd/system/multi-user.target.wants/wiretight.service"));
    // Only a name: what the rules do is tested elsewhere.
    machine.run("nft add table inet wiretight");
    let said = rpm(&["-e", "wiretight"]).good().all();
    assert!(said.contains("nft delete table inet wiretight"), "{said}");
    assert!(said.contains("are kept"), "{said}");
    assert!(!machine.exists("/usr/bin/wiretight"));
    assert!(!machine.exists("/etc/systemd/system/multi-user.target.wants/wiretight.service"));
    assert!(machine.exists("/var/lib/wiretight/a-key"));
    machine.run("nft list table inet wiretight");
}
