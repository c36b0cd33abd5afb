use wiretight_scan::passive::totals::AlgorithmShare;

use super::*;

const SECOND: u64 = 1_000_000_000;
const T0: u64 = 1_000_000 * HOUR / 3600;

fn key(client: &str, server: &str) -> Key {
    let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
    Key { protocol: 6, zone: 0, client, server }
}

fn tracked(key: Key, bytes: Option<[u64; 2]>) -> Tracked {
    let packets = bytes.map(|b| b.map(|n| n / 100));
    Tracked { key, answers: key.server, packets, bytes, started: None, stopped: None }
}

fn seen(protocol: &'static str, level: Level) -> Arc<Seen> {
    let grade = if level == Level::Unknown { Grade::Unknown } else { Grade::Seen };
    Arc::new(Seen {
        protocol: protocol.into(),
        level,
        grade,
        evidence: "a test".into(),
        starttls: None,
        sealed: None,
    })
}

fn record(client: &str, server: &str, seen: Arc<Seen>) -> Record {
    let at = Timestamp::from_nanosecond(T0.into()).unwrap();
    Record {
        transport: Transport::Tcp,
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
        first: at,
        last: at,
        packets: [1, 1],
        bytes: [1, 1],
        whole: true,
        seen,
    }
}

/// A census after its first, empty list. This machine is 10.0.0.1.
fn census() -> Census {
    let mut census = Census::new(T0);
    census.set_local(["10.0.0.1".parse().unwrap()].into());
    census.list_begins();
    census.list_ends(T0);
    census
}

const A: &str = "10.0.0.1:40000";
const B: &str = "10.0.0.2:443";

#[test]
fn bytes_come_from_the_kernel_and_the_protocol_from_the_first_packets() {
    let mut census = census();
    let begun = census.event(Event::Is(tracked(key(A, B), None)), false, T0).unwrap();
    assert_eq!(begun.way, Way::Out);
    // The packets arrive in either order, and with the ends swapped.
    census.seen(&record(B, A, seen("tls", Level::Strong)), false);
    census.event(Event::Ended(tracked(key(A, B), Some([1000, 9000]))), false, T0 + SECOND);
    census.tick(T0 + SECOND, 12_000, Gaps::default());
    let (settled, all) = census.totals();
    assert_eq!(settled, all);
    let levels = settled.by_level();
    assert_eq!(levels[&Level::Strong], Count { connections: 1, bytes: 10_000 });
    assert_eq!(levels[&Level::Unknown], Count { connections: 0, bytes: 2000 });
    let (rows, left_out, _) = census.rows(None, 10);
    assert_eq!((rows.len(), left_out, rows[0].open), (1, 0, 0));
    assert_eq!((rows[0].bytes, &*rows[0].seen.protocol), ([1000, 9000], "tls"));
    let hours = census.hours();
    assert_eq!(hours.len(), 1);
    hours[0].check().unwrap();
    assert_eq!((hours[0].watched_seconds, hours[0].totals.gaps.missed_bytes), (1, 2000));
}

#[test]
fn what_is_said_before_the_connection_is_announced_is_kept_for_a_moment() {
    let mut census = census();
    census.seen(&record(A, B, seen("http", Level::Plaintext)), true);
    census.tick(T0 + SECOND, 0, Gaps::default());
    census.event(Event::Is(tracked(key(A, B), None)), false, T0);
    census.event(Event::Ended(tracked(key(A, B), Some([1, 1]))), false, T0);
    census.tick(T0 + 2 * SECOND, 0, Gaps::default());
    assert_eq!(census.totals().0.by_level()[&Level::Plaintext].connections, 1);
    // Not for another one with the same ports, later.
    census.seen(&record(A, B, seen("http", Level::Plaintext)), true);
    for n in 3..6 {
        census.tick(T0 + n * SECOND, 0, Gaps::default());
    }
    census.event(Event::Is(tracked(key(A, B), None)), false, T0 + 6 * SECOND);
    census.event(Event::Ended(tracked(key(A, B), Some([1, 1]))), false, T0 + 6 * SECOND);
    census.tick(T0 + 7 * SECOND, 0, Gaps::default());
    let levels = census.totals().0.by_level();
    assert_eq!(
        (levels[&Level::Plaintext].connections, levels[&Level::Unknown].connections),
        (1, 1)
    );
}

#[test]
fn connections_from_before_are_unknown_and_only_their_new_bytes_count() {
    let mut census = Census::new(T0);
    census.set_local(["10.0.0.1".parse().unwrap()].into());
    census.list_begins();
    census.event(Event::Is(tracked(key(A, B), Some([500, 500]))), true, T0);
    census.list_ends(T0);
    census.tick(T0 + 40 * SECOND, 0, Gaps::default());
    assert_eq!(census.totals().0.shares, []);
    census.list_begins();
    census.event(Event::Is(tracked(key(A, B), Some([600, 700]))), true, T0 + 41 * SECOND);
    census.list_ends(T0 + 41 * SECOND);
    census.tick(T0 + 42 * SECOND, 300, Gaps::default());
    let totals = census.totals().0;
    assert_eq!(totals.by_level()[&Level::Unknown], Count { connections: 0, bytes: 300 });
    assert_eq!(totals.gaps.missed_bytes, 0);
    assert_eq!(census.rows(None, 9).0[0].seen.grade, Grade::Unknown);
}

#[test]
fn lost_events_are_made_good_by_the_next_list_and_the_rest_is_missed() {
    let mut census = census();
    let of = |n: u16| key(&format!("10.0.0.1:{n}"), B);
    census.event(Event::Is(tracked(of(1), None)), false, T0);
    census.event(Event::Is(tracked(of(2), None)), false, T0);
    // The end of 1 and all of 3 are lost; 4 began unnoticed.
    census.list_begins();
    census.event(Event::Is(tracked(of(2), Some([100, 100]))), true, T0 + SECOND);
    census.event(Event::Is(tracked(of(4), Some([50, 50]))), true, T0 + SECOND);
    census.list_ends(T0 + SECOND);
    assert_eq!(census.open(), 2);
    let lost = Gaps { resyncs: 1, ..Gaps::default() };
    census.tick(T0 + 40 * SECOND, 1000, lost);
    let totals = census.totals().0;
    assert_eq!(totals.by_level()[&Level::Unknown], Count { connections: 3, bytes: 1000 });
    assert_eq!((totals.gaps.resyncs, totals.gaps.missed_bytes), (1, 700));
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let mut census = census();
    let is = |bytes| Event::Is(tracked(key(A, B), bytes));
    census.event(is(None), false, T0);
    census.seen(&record(A, B, seen("tls", Level::Strong)), false);
    // Its end was lost; a list shows fewer bytes than there were.
    census.event(is(Some([900, 900])), true, T0 + SECOND);
    census.event(is(Some([10, 10])), true, T0 + 2 * SECOND);
    census.tick(T0 + 60 * SECOND, 0, Gaps::default());
    let levels = census.totals().0.by_level();
    assert_eq!(levels[&Level::Strong], Count { connections: 1, bytes: 1800 });
    assert_eq!(levels[&Level::Unknown], Count { connections: 1, bytes: 20 });
}

#[test]
fn what_was_seen_of_a_connection_is_not_said_of_the_next_one_with_its_ports() {
    let mut census = census();
    census.event(Event::Is(tracked(key(A, B), None)), false, T0);
    census.event(Event::Ended(tracked(key(A, B), Some([10, 10]))), false, T0 + SECOND);
    census.event(Event::Is(tracked(key(A, B), None)), false, T0 + SECOND);
    // The first packets of the second one were lost.
    census.seen(&record(A, B, seen("tls", Level::Strong)), true);
    census.event(Event::Ended(tracked(key(A, B), Some([7, 7]))), false, T0 + 2 * SECOND);
    census.tick(T0 + 3 * SECOND, 0, Gaps::default());
    let levels = census.totals().0.by_level();
    assert_eq!(levels[&Level::Strong], Count { connections: 1, bytes: 20 });
    assert_eq!(levels[&Level::Unknown], Count { connections: 1, bytes: 14 });
}

#[test]
fn connections_that_were_announced_late_stay_unknown() {
    let mut census = census();
    census.event(Event::Is(tracked(key(A, B), None)), false, T0);
    census.behind = true;
    census.event(Event::Ended(tracked(key(A, B), Some([10, 10]))), false, T0 + 5 * SECOND);
    census.event(Event::Is(tracked(key(A, B), None)), false, T0 + 5 * SECOND);
    census.behind = false;
    // Of which of the two?
    census.seen(&record(A, B, seen("tls", Level::Strong)), true);
    census.tick(T0 + 60 * SECOND, 0, Gaps::default());
    let levels = census.totals().0.by_level();
    assert_eq!((levels[&Level::Unknown].connections, levels[&Level::Strong].connections), (2, 0));
}

#[test]
fn what_the_relay_carries_is_carried_and_its_plaintext_leg_is_not_on_the_network() {
    let mut census = census();
    let sealed = seen("wiretight", Level::Strong);
    let session = Session {
        local: A.parse().unwrap(),
        peer: B.parse().unwrap(),
        seen: Seen { grade: Grade::Carried, ..Seen::clone(&sealed) },
    };
    census.set_own(Own {
        dials: vec!["127.0.0.1:5432".parse().unwrap()],
        edge: vec!["0.0.0.0:8443".parse().unwrap()],
        sessions: vec![session],
    });
    let legs = [
        (A, B, seen("tls", Level::Strong)),
        ("127.0.0.1:1", "127.0.0.1:5432", seen("postgres", Level::Plaintext)),
        ("127.0.0.1:1", "127.0.0.1:6379", seen("redis", Level::Plaintext)),
        ("10.0.0.9:1", "10.0.0.1:8443", seen("tls", Level::Strong)),
        // A failed handshake at the edge.
        ("10.0.0.9:2", "10.0.0.1:8443", seen("unknown", Level::Unknown)),
    ];
    for (client, server, seen) in legs {
        census.event(Event::Is(tracked(key(client, server), Some([1, 1]))), false, T0);
        census.seen(&record(client, server, seen), false);
    }
    census.tick(T0 + 40 * SECOND, 0, Gaps::default());
    let kinds: BTreeMap<(Way, String), Grade> = census
        .rows(None, 9)
        .0
        .into_iter()
        .map(|row| ((row.way, row.seen.protocol.into_owned()), row.seen.grade))
        .collect();
    let expected = [
        ((Way::Out, "wiretight"), Grade::Carried),
        ((Way::Relay, "postgres"), Grade::Seen),
        ((Way::Loopback, "redis"), Grade::Seen),
        ((Way::In, "tls"), Grade::Carried),
        ((Way::In, "unknown"), Grade::Unknown),
    ];
    assert_eq!(kinds, expected.map(|((way, name), grade)| ((way, name.to_owned()), grade)).into());
    let totals = census.totals().0;
    let levels = totals.by_level();
    assert_eq!((levels[&Level::Plaintext].bytes, levels[&Level::Strong].bytes), (0, 4));
    let of = |share: AlgorithmShare| (share.algorithm.version.into_owned(), share.count.bytes);
    let algorithms: BTreeMap<String, u64> = totals.algorithms.into_iter().map(of).collect();
    assert_eq!(algorithms, [("tls".to_owned(), 2), ("wiretight".to_owned(), 2)].into());
}

#[test]
fn a_time_in_which_the_machine_slept_was_not_watched() {
    let mut census = census();
    for at in [10, 20, 620, 630] {
        census.tick(T0 + at * SECOND, 0, Gaps::default());
    }
    assert_eq!(census.hours()[0].watched_seconds, 30);
}

#[test]
fn rows_and_memory_are_bounded_and_totals_are_complete() {
    let mut census = census();
    for n in 0..2 * MAX_ROWS as u32 {
        let client = format!("11.{}.{}.{}:1", n >> 16, (n >> 8) & 255, n & 255);
        let key = key(&client, "10.0.0.1:80");
        census.event(Event::Is(tracked(key, None)), false, T0 + u64::from(n));
        census.event(Event::Ended(tracked(key, Some([1, 0]))), false, T0 + u64::from(n));
        if n % 4096 == 0 {
            census.tick(T0 + u64::from(n), 0, Gaps::default());
        }
    }
    census.tick(T0 + SECOND, 0, Gaps::default());
    let (rows, left_out, forgotten) = census.rows(Some(Level::Unknown), 7);
    assert_eq!(rows.len(), 7);
    assert!(left_out as usize <= MAX_ROWS && forgotten > 0);
    assert_eq!(left_out + 7 + forgotten, 2 * MAX_ROWS as u64);
    let unknown = census.totals().0.by_level()[&Level::Unknown];
    assert_eq!(unknown, Count { connections: 2 * MAX_ROWS as u64, bytes: 2 * MAX_ROWS as u64 });
}
