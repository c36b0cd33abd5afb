//! Frame parser: arbitrary input must not cause a panic or buffering beyond a header, and only valid frames are
//! accepted. Seeded, so that failures are reproducible; `fuzz/` goes further.

use super::rig;

use rig::Random;
use wiretight_proxy::wire::{Cutter, Event, Frame, HEADER, MAX_DATA, MAX_OPEN, Open, Refused};

/// Reads to the end or to an error, in pieces; checks that bodies have the announced length. Returns the frames, the
/// bytes of bodies, and whether there was an error.
fn read(stream: &[u8], random: &mut Random) -> (Vec<Frame>, usize, bool) {
    let (mut cutter, mut frames, mut bodies) = (Cutter::default(), Vec::new(), 0);
    let mut announced = 0;
    let mut rest = stream;
    while !rest.is_empty() {
        let (mut piece, after) = rest.split_at(rest.len().min(1 + random.below(50)));
        rest = after;
        loop {
            let before = piece.len();
            match cutter.next(&mut piece) {
                Ok(Some(Event::Frame(frame))) => {
                    assert_eq!(announced, 0, "a frame began inside a body");
                    announced = match frame {
                        Frame::Open(n) => n,
                        Frame::Data(n) => n,
                        Frame::Refused => 1,
                        _ => 0,
                    };
                    assert!(announced <= MAX_DATA);
                    frames.push(frame);
                }
                Ok(Some(Event::Body(body))) => {
                    assert!(!body.is_empty() && body.len() <= announced);
                    announced -= body.len();
                    bodies += body.len();
                }
                Ok(None) => {
                    assert!(piece.is_empty(), "it stopped before the end");
                    break;
                }
                Err(_) => return (frames, bodies, true),
            }
            assert!(piece.len() < before, "it makes no progress");
            assert_eq!(cutter.body_left(), announced);
        }
    }
    (frames, bodies, false)
}

#[test]
fn random_bytes_are_parsed_safely() {
    let mut random = Random::new(1);
    for _ in 0..20_000 {
        let len = random.below(300);
        let mut bytes = random.bytes(len);
        // Half of them start like a frame; otherwise all would be unknown frames.
        if random.below(2) == 0
            && let [kind, a, b, ..] = &mut bytes[..]
        {
            (*kind, *a, *b) = (1 + (*kind % 6), 0, 0);
        }
        read(&bytes, &mut random);
    }
}

#[test]
fn random_frames_round_trip() {
    let mut random = Random::new(2);
    for _ in 0..2_000 {
        let (mut stream, mut frames, mut bodies) = (Vec::new(), Vec::new(), 0);
        for _ in 0..random.below(20) {
            let body = match random.below(6) {
                0 => {
                    let open = Open {
                        service: "db".parse().unwrap(),
                        destination: Some(([10, 0, 0, 1], random.next() as u16).into()),
                    };
                    stream.extend_from_slice(&open.encode());
                    let len = open.encode().len() - HEADER;
                    frames.push(Frame::Open(len));
                    len
                }
                1 => {
                    stream.extend_from_slice(&Refused::from_code(random.next() as u8).encode());
                    frames.push(Frame::Refused);
                    1
                }
                2 => {
                    let len = 1 + random.below(2000);
                    stream.extend_from_slice(&Frame::Data(len).header());
                    stream.extend_from_slice(&random.bytes(len));
                    frames.push(Frame::Data(len));
                    len
                }
                n => {
                    let frame = [Frame::Opened, Frame::Fin, Frame::Reset][n - 3];
                    stream.extend_from_slice(&frame.header());
                    frames.push(frame);
                    0
                }
            };
            bodies += body;
        }
        assert_eq!(read(&stream, &mut random), (frames, bodies, false));
    }
}

#[test]
fn random_and_damaged_opens_are_parsed_or_rejected() {
    let mut random = Random::new(3);
    let mut parsed = 0;
    for _ in 0..50_000 {
        let mut body = match random.below(2) {
            0 => {
                let len = random.below(MAX_OPEN + 20);
                random.bytes(len)
            }
            _ => {
                let destination = Some(([127, 0, 0, 1], 1).into());
                let mut body = Open { service: "db".parse().unwrap(), destination }.encode()
                    [HEADER..]
                    .to_vec();
                let more = random.below(10);
                body.extend_from_slice(&random.bytes(more));
                body
            }
        };
        if random.below(2) == 0 && !body.is_empty() {
            let at = random.below(body.len());
            body[at] = random.next() as u8;
        }
        if let Ok(open) = Open::parse(&body) {
            assert!(body.len() <= MAX_OPEN);
            assert_eq!(Open::parse(&open.encode()[HEADER..]), Ok(open));
            parsed += 1;
        }
    }
    assert!(parsed > 1000, "only {parsed} were valid");
}
