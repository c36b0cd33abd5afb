//! The monitor recognises a watched identity under every name that a certificate can use.

use super::forged::{DNS, EMAIL, Forged, IP, URI, hash, key, named};
use super::monitor::World;
use super::rig::{Log, now, write};

/// A monitor that expects one key of `service/db`.
struct Watched {
    world: World,
    mine: wiretight_keys::SigningKey,
    expect: String,
}

impl Watched {
    fn new() -> Watched {
        let (world, mine) = (World::new(1), key());
        let text = format!("service/db sha256:{}\n", hash(&mine));
        let expect = write(world.dir.path(), "expect", text).display().to_string();
        Watched { world, mine, expect }
    }

    fn log(&mut self, entry: Vec<u8>) {
        self.world.log.entries.push(entry);
        let log = &self.world.log;
        self.world.publish(log, log.entries.len(), now());
    }

    fn args(&self) -> [&str; 4] {
        ["--watch", "service/db", "--expect", &self.expect]
    }
}

#[test]
fn a_certificate_is_seen_under_every_name_that_software_accepts() {
    let mut watched = Watched::new();
    let stolen = key();
    let names: &[&[(u8, &str)]] = &[
        &[(DNS, "db.service.example.org")],
        &[(DNS, "DB.Service.Example.org.")],
        &[(DNS, "*.service.example.org")],
        &[(DNS, "d*.service.example.org")],
        &[(URI, "spiffe://example.org/service/web"), (DNS, "db.service.example.org")],
        &[(URI, "SPIFFE://Example.org/service/db")],
        &[(URI, "spiffe://example.org/service/%64b/")],
        &[(URI, "https://db.service.example.org/")],
        &[(IP, "\x0a\0\0\x05")],
        &[(EMAIL, "db@example.org")],
        &[(DNS, "db.service.example.org\0.example.net")],
    ];
    for names in names {
        watched.log(named(&stolen, names));
        let alert = watched.world.alert("unexpected-certificate", &watched.args());
        assert_eq!(alert["key"], hash(&stolen), "{names:?}");
        assert_eq!(alert["index"], watched.world.log.entries.len() - 1, "{names:?}");
    }
    // Only by the common name.
    for name in ["db.service.example.org", "service/db"] {
        let forged =
            Forged { key: &stolen, common_name: Some(name), names: Vec::new(), is_ca: false };
        watched.log(forged.entry());
        watched.world.alert("unexpected-certificate", &watched.args());
    }
    // The control: certificates for other names, and the expected key under all its names.
    watched.log(named(&stolen, &[(DNS, "web.service.example.org"), (DNS, "*.node.example.org")]));
    watched.world.quiet(&watched.args());
    let own = [(URI, "spiffe://example.org/service/db"), (DNS, "DB.service.example.org.")];
    watched.log(named(&watched.mine, &own));
    watched.world.quiet(&watched.args());
}

#[test]
fn a_ca_certificate_with_an_expected_name_and_key_is_reported() {
    let mut watched = Watched::new();
    let names = vec![(URI, b"spiffe://example.org/service/db".to_vec())];
    let forged = |is_ca| {
        Forged { key: &watched.mine, common_name: None, names: names.clone(), is_ca }.entry()
    };
    let (leaf, authority) = (forged(false), forged(true));
    watched.log(leaf);
    watched.world.quiet(&watched.args());
    watched.log(authority);
    let alert = watched.world.alert("unexpected-certificate", &watched.args());
    assert!(alert["detail"].as_str().unwrap().contains("CA certificate"), "{alert}");
    // A CA certificate whose key is listed under the trust domain is expected.
    let intermediate = key();
    let text = format!("spiffe://example.org sha256:{}\n", hash(&intermediate));
    write(watched.world.dir.path(), "expect", text);
    let names = vec![(URI, b"spiffe://example.org".to_vec())];
    watched.log(Forged { key: &intermediate, common_name: None, names, is_ca: true }.entry());
    watched.world.quiet(&watched.args());
}

#[test]
fn every_log_of_the_policy_is_followed() {
    let mut watched = Watched::new();
    let mut other = Log::of("log.example/b", 2);
    let (dir, state) = (watched.world.dir.path().to_owned(), watched.world.path("state"));
    let place = dir.join("other");
    let policy = std::fs::read_to_string(dir.join("policy")).unwrap();
    let line = format!("log {}\n", other.signer.public());
    write(&dir, "policy", line + &policy);
    // The monitor was given the URL of the second log; the first one keeps its state.
    watched.world.cosign_and_publish(&other, &place, 2);
    let named_url = format!("log.example/b={}", place.display());
    let expect = watched.expect.clone();
    let args = ["--watch", "service/db", "--expect", &expect, "--url", &named_url];
    watched.world.quiet(&args);
    other.entries.push(named(&key(), &[(DNS, "db.service.example.org")]));
    watched.world.cosign_and_publish(&other, &place, 3);
    let output = watched.world.look(&args);
    assert_eq!(output.status.code(), Some(1));
    let bodies = watched.world.hook.bodies();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(
        (&bodies[0]["kind"], &bodies[0]["log"]),
        (&"unexpected-certificate".into(), &"log.example/b".into())
    );
    let args_of_list = ["monitor", "list", "--state", &state, "--watch", "service/db", "--json"];
    let listed = super::rig::stdout(&super::rig::wiretight(&args_of_list));
    let rows: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of_other = |row: &serde_json::Value| row["log"] == "log.example/b" && row["index"] == 2;
    assert!(rows.as_array().unwrap().iter().any(of_other), "{listed}");
    // Without a URL the monitor cannot read the log, and reports that.
    let output = watched.world.look(&watched.args());
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let bodies = watched.world.hook.bodies();
    assert_eq!((bodies.len(), &bodies[0]["kind"]), (1, &"blind".into()), "{bodies:?}");
    // The log that was followed before is continued where it was.
    let entry = named(&key(), &[(DNS, "db.service.example.org")]);
    watched.log(entry);
    let output = watched.world.look(&args);
    assert_eq!(output.status.code(), Some(1));
    let bodies = watched.world.hook.bodies();
    assert_eq!((bodies.len(), &bodies[0]["log"]), (1, &"log.example/a".into()), "{bodies:?}");
}
