//! Test vectors both ways: the JavaScript of verify.html judges those of the Rust code, under node and in Chromium, and the
//! Rust code those of the JavaScript. Their form is in web/vectors.mjs.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use wiretight_keys::claims::*;
use wiretight_tlog::cosignature::Algorithm as Kind;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, MAX_SIZE, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogSigner, Note, Policy, Signature, SignedCheckpoint,
    TreeError,
};

use super::browser::browse;
use super::common::{find, has};

const NOW: u64 = 1_800_000_000;
const WEB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/web");

fn result(of: Result<(), TreeError>) -> &'static str {
    match of {
        Ok(()) => "",
        Err(TreeError::OutOfRange) => "range",
        Err(TreeError::WrongLength) => "length",
        Err(TreeError::WrongRoot) => "root",
    }
}

fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::to_string).collect()
}

/// Proofs, right and altered.
fn trees() -> (Vec<Value>, Vec<Value>) {
    let leaves: Vec<Hash> = (0..40u64).map(|n| Hash::leaf(&n.to_be_bytes())).collect();
    let read = |node: Node| {
        let (width, index) = (1usize << node.level, node.index as usize);
        wiretight_tlog::tile::subtree(&leaves[index * width..(index + 1) * width])
            .ok_or(TreeError::OutOfRange)
    };
    let root = |size: u64| Frontier::read(size, read).unwrap().root();
    let (mut inclusion, mut consistency) = (Vec::new(), Vec::new());
    let mut add = |leaf: Hash, index: u64, size: u64, proof: &[Hash], root: Hash| {
        let result = result(tree::verify_inclusion(leaf, index, size, proof, root));
        inclusion.push(json!({
            "leaf": leaf.to_string(), "index": index.to_string(), "size": size.to_string(), "root": root.to_string(),
            "proof": texts(proof), "result": result,
        }));
    };
    let mut add_old = |old: (u64, Hash), new: (u64, Hash), proof: &[Hash]| {
        let tree = |(size, root): (u64, Hash)| json!({ "size": size.to_string(), "root": root.to_string() });
        consistency.push(json!({
            "from": tree(old), "to": tree(new), "proof": texts(proof),
            "result": result(tree::verify_consistency(old, new, proof)),
        }));
    };
    // Each altered proof: a hash changed, one missing, one too many.
    let altered = |proof: &[Hash]| {
        let mut all = vec![[proof, &[leaves[0]]].concat()];
        for n in 0..proof.len() {
            all.push([&proof[..n], &[Hash::leaf(b"x")], &proof[n + 1..]].concat());
            all.push([&proof[..n], &proof[n + 1..]].concat());
        }
        all
    };
    for size in (1..=17).chain([31, 32, 33, 40]) {
        for index in 0..size {
            let proof = tree::inclusion_proof(index, size, read).unwrap();
            let leaf = leaves[index as usize];
            add(leaf, index, size, &proof, root(size));
            add(leaf, index ^ 1, size, &proof, root(size));
            add(leaf, index, size, &proof, root(size - 1));
            altered(&proof).iter().for_each(|proof| add(leaf, index, size, proof, root(size)));
        }
        for old in 0..=size {
            let proof = tree::consistency_proof(old, size, read).unwrap();
            let (from, to) = ((old, root(old)), (size, root(size)));
            add_old(from, to, &proof);
            add_old((old, leaves[1]), to, &proof);
            add_old(from, (size, leaves[1]), &proof);
            add_old(to, from, &proof);
            altered(&proof).iter().for_each(|proof| add_old(from, to, proof));
        }
    }
    // All leaves of the largest tree are equal, and with them all nodes of a level.
    let mut levels = vec![Hash::leaf(b"")];
    (0..62).for_each(|n| levels.push(Hash::node(levels[n], levels[n])));
    let read = |n: Node| Ok::<_, TreeError>(levels[usize::from(n.level)]);
    let root = |size| Frontier::read(size, read).unwrap().root();
    for index in [0, 1, (1 << 53) + 1, MAX_SIZE / 3, MAX_SIZE - 1] {
        let proof = tree::inclusion_proof(index, MAX_SIZE, read).unwrap();
        for (index, size) in [(index, MAX_SIZE), (index, MAX_SIZE + 1), (u64::MAX, MAX_SIZE)] {
            add(levels[0], index, size, &proof, levels[62]);
        }
        let proof = tree::consistency_proof(index, MAX_SIZE, read).unwrap();
        for old in [index, index + 1] {
            add_old((old, root(index)), (MAX_SIZE, levels[62]), &proof);
        }
    }
    (inclusion, consistency)
}

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

/// What the policy makes of the checkpoint, with all signatures and with those that a browser can check.
fn judged(policy: &str, note: &str) -> Value {
    let parsed = Policy::parse(policy).unwrap();
    let signed = SignedCheckpoint::parse(note).unwrap();
    let time = |signed: &SignedCheckpoint| {
        let time = parsed.witnessed(signed).ok().and_then(|w| w.time());
        time.map_or_else(String::new, |t| t.to_string())
    };
    let mut ed25519 =
        SignedCheckpoint::new(Note::new(signed.note().text().into()).unwrap()).unwrap();
    let checkable = |s: &&Signature| s.bytes.len() < 100;
    signed.note().signatures().iter().filter(checkable).for_each(|s| ed25519.add(s.clone()));
    let by = parsed.logs().iter().any(|log| signed.verified_by(&log.key).is_some());
    json!({ "policy": policy, "note": note, "signed": by, "time": time(&signed), "browser": time(&ed25519) })
}

/// Checkpoints with all kinds of cosignatures.
fn cosigned() -> Vec<Value> {
    let witness = |n: u8| {
        let algorithm = if n == 2 { Kind::MlDsa44 } else { Kind::Ed25519 };
        Cosigner::from_seed(name(&format!("witness.example/{n}")), algorithm, &[n; 32]).unwrap()
    };
    let witnesses: Vec<Cosigner> = (0..3).map(witness).collect();
    let stranger = Cosigner::from_seed(name("witness.example/1"), Kind::Ed25519, &[9; 32]).unwrap();
    let [log, other] = [1u8, 2].map(|_| LogSigner::generate(name("log.example/a")).unwrap());
    let checkpoint = |origin: &str, extensions: &[&str]| Checkpoint {
        origin: origin.into(),
        size: 9,
        root: Hash::leaf(b"x"),
        extensions: extensions.iter().map(|e| (*e).to_owned()).collect(),
    };
    let own = checkpoint("log.example/a", &[]);
    let mut keys = format!("log {} https://log.example\n", log.public());
    for (n, witness) in witnesses.iter().enumerate() {
        keys += &format!("witness w{n} {}\n", witness.public());
    }
    let quorums = [
        "quorum none",
        "quorum w2",
        "quorum w1",
        "group g 2 w0 w1 w2\nquorum g",
        "group g all w0 w1\nquorum g",
        "group a any w1 w2\ngroup b all w0 a\nquorum b",
    ];
    let with = |lines: &[Signature]| {
        let mut signed = own.sign(&log).unwrap();
        lines.iter().for_each(|line| signed.add(line.clone()));
        signed.to_string()
    };
    let cosign = |n: usize, time: u64| witnesses[n].cosign(&own, time).unwrap();
    let mut notes = Vec::new();
    for set in 0..8usize {
        let lines = (0..3).filter(|n| set >> n & 1 == 1).map(|n| cosign(n, NOW + n as u64));
        notes.push(with(&lines.collect::<Vec<_>>()));
    }
    let junk = |s: &Signature| {
        let bytes = [&s.bytes[..8], &vec![7; s.bytes.len() - 8]].concat();
        Signature { bytes, ..s.clone() }
    };
    // A witness twice, with junk, with a time outside of the specification, by another key or for another tree.
    let (zero, one) = (cosign(0, NOW), cosign(1, NOW));
    notes.push(with(&[cosign(0, NOW - 50), zero.clone(), cosign(0, NOW - 9), one.clone()]));
    notes.push(with(&[junk(&zero), zero.clone(), one.clone()]));
    notes.push(with(&[
        junk(&cosign(0, i64::MAX as u64)),
        zero.clone(),
        cosign(1, i64::MAX as u64),
    ]));
    notes.push(with(&[junk(&zero), one.clone()]));
    notes.push(with(&[cosign(0, 0), one.clone()]));
    notes.push(with(&[Signature { bytes: vec![0; 7], ..zero.clone() }, one.clone()]));
    notes.push(with(&[zero.clone(), stranger.cosign(&own, NOW).unwrap()]));
    let longer = Checkpoint { size: 10, ..own.clone() };
    notes.push(with(&[zero.clone(), witnesses[1].cosign(&longer, NOW).unwrap()]));
    // A log that is not in the policy, another origin, extension lines, a spoilt signature of the log.
    for (log, checkpoint) in [
        (&other, checkpoint("log.example/a", &[])),
        (&log, checkpoint("log.example/b", &[])),
        (&log, checkpoint("log.example/a", &["more"])),
    ] {
        let mut signed = checkpoint.sign(log).unwrap();
        (0..2).for_each(|n| signed.add(witnesses[n].cosign(&checkpoint, NOW).unwrap()));
        notes.push(signed.to_string());
    }
    let signed = SignedCheckpoint::parse(&with(&[])).unwrap();
    notes.push(with(&[junk(&signed.note().signatures()[0]), zero, one]));
    let policies = quorums.iter().map(|quorum| format!("{keys}{quorum}\n"));
    policies.flat_map(|p| notes.iter().map(|n| judged(&p, n)).collect::<Vec<_>>()).collect()
}

fn amount(n: u64) -> Amount {
    Amount { connections: n, bytes: n.saturating_mul(3) }
}

fn hour(n: u64) -> MeshPeriod {
    let protocol = |k: u64| Protocol {
        protocol: format!("p{}", (k * 7 + n) % 40),
        level: ["unknown", "plaintext", "weak", "acceptable", "strong"][k as usize % 5].into(),
        amount: amount(k / 3 + (n << 53)),
    };
    let algorithm = |k: u64| Algorithm {
        version: "TLS 1.3".into(),
        key_exchange: format!("x{}", (k * 5 + n) % 30),
        cipher: "c".into(),
        post_quantum: k.is_multiple_of(2),
        amount: amount(k),
    };
    MeshPeriod {
        nodes: NodeCount { members: 3, reported: n as u32 % 3 },
        watched_seconds: n,
        levels: Levels { strong: amount((1 << 53) + n), unknown: amount(n), ..Levels::default() },
        carried: amount(n),
        missed: Missed { bytes: u64::MAX - 5, resyncs: n, lost_packets: 1 },
        modes: Modes { strict: n as u32, ..Modes::default() },
        algorithms: (0..20).map(algorithm).collect(),
        protocols: (0..24).map(protocol).collect(),
        releases: vec![Release { version: "0.1.0".into(), nodes: 3 }],
        ..MeshPeriod::new(n * HOUR, HOUR)
    }
}

fn text(entry: &[u8]) -> String {
    String::from_utf8(entry[2..].to_vec()).unwrap()
}

/// Bodies of entries, and changes of them.
fn bodies() -> (Vec<Value>, Vec<Value>) {
    let mut bodies: Vec<String> = (0..3).map(|n| text(&hour(n).entry())).collect();
    let body = bodies[1].clone();
    let changes = [
        ("\"version\":1,", "\"version\": 1,"),
        ("\"version\":1,", "\"version\":2,"),
        ("\"version\":1,", ""),
        ("\"start\":3600", "\"start\":3600.0"),
        ("\"start\":3600", "\"start\":03600"),
        ("\"start\":3600", "\"start\":3601"),
        ("\"start\":3600", "\"start\":-3600"),
        ("\"start\":3600", "\"start\":3600e0"),
        ("\"start\":3600", "\"start\":\"3600\""),
        ("\"start\":3600", "\"start\":3600,\"start\":3600"),
        ("\"start\":3600", "\"start\":18446744073709548000"),
        ("\"start\":3600", "\"start\":18446744073709551600"),
        ("\"length\":3600", "\"length\":60"),
        ("\"length\":3600", "\"length\":86400"),
        ("\"members\":3", "\"members\":4294967295"),
        ("\"members\":3", "\"members\":4294967296"),
        ("\"reported\":1", "\"reported\":4"),
        ("\"watched_seconds\":1", "\"watched_seconds\":10800"),
        ("\"watched_seconds\":1", "\"watched_seconds\":10801"),
        ("\"connections\":9007199254740993", "\"connections\":9007199254740992"),
        ("\"connections\":9007199254740993", "\"connections\":18446744073709551615"),
        ("\"connections\":9007199254740993", "\"connections\":18446744073709551616"),
        ("\"TLS 1.3\"", "\"TLS\\u0020 1.3\""),
        ("\"TLS 1.3\"", "\"\\u0000\""),
        ("\"TLS 1.3\"", "\"\\u00001\""),
        ("\"TLS 1.3\"", "\"a\u{1b}\""),
        ("\"TLS 1.3\"", "\"é\""),
        ("\"TLS 1.3\"", "\"\""),
        ("\"TLS 1.3\"", "\"\\\"\\\\\""),
        ("\"post_quantum\":true", "\"post_quantum\":1"),
        ("\"releases\":[{", "\"releases\":[{\"more\":1,"),
        ("\"releases\":", "\"more\":1,\"releases\":"),
        ("\"releases\":[", "\"releases\":null,\"x\":["),
    ];
    for (from, to) in changes {
        assert!(body.contains(from), "{from}");
        bodies.push(body.replacen(from, to, 1));
    }
    let long = |n: usize| body.replacen("TLS 1.3", &"x".repeat(n), 1);
    bodies.extend([long(MAX_NAME), long(MAX_NAME + 1), format!("{body}\n"), format!(" {body}")]);
    let mut many = hour(1);
    many.protocols.push(many.protocols[0].clone());
    bodies.extend([text(&many.entry()), String::new(), "{}".into(), "[]".into(), "null".into()]);
    let period = |body: String| {
        let ok = MeshPeriod::parse(body.as_bytes()).is_ok();
        json!({ "body": body, "ok": ok })
    };
    let published = text(&Publication::new(u64::MAX, b"").entry());
    let publications = [
        published.clone(),
        published.replace("e3b0", "E3B0"),
        published.replace("e3b0", ""),
        published.replace("\"version\":1", "\"version\":2"),
        published.replace("615,", "616,"),
        published.replace("\"at\"", "\"when\""),
        published.replace('}', ",\"x\":1}"),
    ];
    let publication = |body: String| {
        let ok = Publication::parse(body.as_bytes()).is_ok();
        json!({ "body": body, "ok": ok })
    };
    (bodies.into_iter().map(period).collect(), publications.into_iter().map(publication).collect())
}

/// Days and their hours: sums beyond 2^53 and at the limit, and more rows than a day has.
fn days() -> Vec<Value> {
    let all: Vec<MeshPeriod> = (0..24).map(hour).collect();
    let some = [&all[..], &all[..1], &all[3..5], &all[20..]];
    let vector = |hours: &[MeshPeriod]| {
        let body = |p: &MeshPeriod| text(&p.entry());
        let day = MeshPeriod::day(0, hours);
        json!({ "start": "0", "hours": hours.iter().map(body).collect::<Vec<_>>(), "day": body(&day) })
    };
    some.into_iter().map(vector).collect()
}

/// Vectors of the Rust code.
fn made_here() -> Value {
    let (inclusion, consistency) = trees();
    let (periods, publications) = bodies();
    for list in [&periods, &publications] {
        assert!(list.iter().any(|v| v["ok"] == true) && list.iter().any(|v| v["ok"] == false));
    }
    json!({
        "inclusion": inclusion, "consistency": consistency, "judged": cosigned(),
        "periods": periods, "publications": publications, "days": days(),
    })
}

/// Judges vectors of the JavaScript.
fn judge_theirs(made: &Value) {
    let hash = |v: &Value| Hash::from_base64(v.as_str().unwrap()).unwrap();
    let number = |v: &Value| v.as_str().unwrap().parse::<u64>().unwrap();
    let proof = |v: &Value| v["proof"].as_array().unwrap().iter().map(hash).collect::<Vec<_>>();
    let all = |kind: &str| made[kind].as_array().filter(|all| all.len() > 20).unwrap();
    for v in all("inclusion") {
        let (index, size) = (number(&v["index"]), number(&v["size"]));
        let got =
            tree::verify_inclusion(hash(&v["leaf"]), index, size, &proof(v), hash(&v["root"]));
        assert_eq!(v["result"], result(got), "{v}");
    }
    for v in all("consistency") {
        let [from, to] =
            ["from", "to"].map(|tree| (number(&v[tree]["size"]), hash(&v[tree]["root"])));
        assert_eq!(v["result"], result(tree::verify_consistency(from, to, &proof(v))), "{v}");
    }
    for v in all("judged") {
        assert_eq!(*v, judged(v["policy"].as_str().unwrap(), v["note"].as_str().unwrap()));
    }
    for v in all("policies") {
        let line = Policy::parse(v["policy"].as_str().unwrap()).map_or_else(|e| e.line, |_| 0);
        assert_eq!(v["line"], line, "{v}");
    }
}

/// Every vector had the expected result, and there were as many as expected.
#[track_caller]
fn all_right(run: &Value, vectors: &Value) {
    assert_eq!(run["wrong"], json!([]), "{run:#}");
    for (kind, of) in vectors.as_object().unwrap() {
        assert_eq!(run["counts"][kind], of.as_array().unwrap().len(), "{kind}");
    }
}

#[test]
fn both_implementations_judge_each_others_vectors_alike() {
    if !has(&["node"]) {
        return;
    }
    let shared: Value =
        serde_json::from_str(include_str!("../../../wiretight-tlog/tests/vectors.json")).unwrap();
    let made = made_here();
    // The control: one result is turned round.
    let mut turned =
        json!({ "consistency": [made["consistency"][0]], "periods": [made["periods"][0]] });
    turned["consistency"][0]["result"] = "root".into();
    turned["periods"][0]["ok"] = false.into();
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(find("node").unwrap());
    command.arg(Path::new(WEB).join("checker.mjs"));
    let lists = [&shared, &made, &turned];
    for (n, list) in lists.iter().enumerate() {
        let file = dir.path().join(format!("{n}.json"));
        fs::write(&file, list.to_string()).unwrap();
        command.arg(file);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    all_right(&printed["results"][0], &shared);
    all_right(&printed["results"][1], &made);
    assert_eq!(printed["results"][2]["wrong"].as_array().unwrap().len(), 2);
    judge_theirs(&printed["made"]);

    // The same in Chromium, whose WebCrypto is another one.
    fs::write(dir.path().join("checker.mjs"), printed["source"].as_str().unwrap()).unwrap();
    fs::copy(Path::new(WEB).join("vectors.mjs"), dir.path().join("vectors.mjs")).unwrap();
    fs::write(dir.path().join("index.html"), "<!doctype html><title>vectors</title>").unwrap();
    let script = "(async () => {
        const [c, v] = await Promise.all([import('/checker.mjs'), import('/vectors.mjs')]), results = [];
        for (const n of [0, 1, 2]) results.push(await v.run(c, await (await fetch(`/${n}.json`)).json()));
        return { results, made: await v.make(c) };
    })()";
    let visit = json!([{ "name": "vectors", "dir": dir.path(), "steps": [["evaluate", script]] }]);
    let Some(seen) = browse(&visit) else { return };
    let printed = &seen[0].good().results[0];
    all_right(&printed["results"][0], &shared);
    all_right(&printed["results"][1], &made);
    assert_eq!(printed["results"][2]["wrong"].as_array().unwrap().len(), 2);
    judge_theirs(&printed["made"]);
}
