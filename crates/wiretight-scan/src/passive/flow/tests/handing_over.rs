use super::*;

#[test]
fn what_was_handed_over_is_not_repeated_unless_it_changes() {
    let mut net = Net::new();
    let handed = |net: &mut Net, takes: bool| {
        let mut seen = Vec::new();
        net.table.hand_over(|record| {
            seen.push(record.seen.protocol.to_string());
            takes
        });
        seen
    };
    // Not decided: it is shown each time.
    net.open(C, S);
    assert_eq!(handed(&mut net, true), ["unknown"]);
    assert_eq!(handed(&mut net, true), ["unknown"]);
    // Decided, but not taken.
    net.tcp(C, S, 101, ACK, GET).tcp(S, C, 501, ACK, b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(handed(&mut net, false), ["http"]);
    assert_eq!(handed(&mut net, true), ["http"]);
    assert!(handed(&mut net, true).is_empty());
    // Another connection with the same ports is another flow, and the first one is not said again.
    net.tcp(C, S, 9000, SYN, b"").tcp(S, C, 9500, SYN | ACK, b"");
    assert!(net.table.ended().is_empty());
    assert_eq!(handed(&mut net, true), ["unknown"]);
    net.tcp(C, S, 9001, ACK, GET).tcp(S, C, 9501, ACK, b"HTTP/1.1 200 OK\r\n\r\n");
    // The control: what was not handed over is said at the end.
    assert_eq!(net.only().seen.protocol, "http");
    // Its place is free, and used again.
    net.open(C, S);
    assert_eq!(handed(&mut net, true), ["unknown"]);
}

#[test]
fn what_changes_is_handed_over_again() {
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, GET);
    net.tcp(S, C, 501, ACK, b"HTTP/1.1 200 OK\r\n\r\n");
    let mut taken = 0;
    net.table.hand_over(|_| {
        taken += 1;
        true
    });
    // Its first bytes once more, but others.
    net.tcp(C, S, 101, ACK, b"PUT /another.html HTTP/1.1\r\n\r\n");
    net.table.hand_over(|_| {
        taken += 1;
        true
    });
    assert_eq!(taken, 2);
    assert!(net.finish().is_empty());
}
