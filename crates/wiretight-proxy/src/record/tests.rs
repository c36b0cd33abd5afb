//! Records against our own implementation, and against invalid input. Tests against rustls, OpenSSL and others are in
//! `stream::tests`.

use rustls::ExtractedSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};

use super::*;

/// Key material that both ends can compute: the first, second, ... key of each direction.
struct Known {
    make: fn(AeadKey, Iv) -> ConnectionTrafficSecrets,
    is_client: bool,
    made: [u8; 2],
}

impl Known {
    fn keys(&self, of_client: bool, number: u8) -> ConnectionTrafficSecrets {
        (self.make)(AeadKey::from([number; 32]), Iv::new([u8::from(of_client); 12]))
    }
}

impl Secrets for Known {
    fn next(&mut self, direction: Direction) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        let is_send = direction == Direction::Send;
        let made = &mut self.made[usize::from(is_send)];
        *made = made.wrapping_add(1);
        let made = *made;
        Ok(self.keys(is_send == self.is_client, made))
    }

    fn peer_is_server(&self) -> bool {
        self.is_client
    }
}

impl Records {
    pub(crate) fn accepts_tickets(&self) -> bool {
        self.secrets.peer_is_server()
    }
}

fn end(make: fn(AeadKey, Iv) -> ConnectionTrafficSecrets, is_client: bool) -> Records {
    let known = Known { make, is_client, made: [0; 2] };
    let keys =
        ExtractedSecrets { tx: (0, known.keys(is_client, 0)), rx: (0, known.keys(!is_client, 0)) };
    Records::new(keys, Box::new(known)).unwrap()
}

fn aes(key: AeadKey, iv: Iv) -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm { key, iv }
}

fn chacha(key: AeadKey, iv: Iv) -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }
}

fn pair() -> (Records, Records) {
    (end(aes, true), end(aes, false))
}

/// Encrypts all of it.
fn seal(from: &mut Records, plaintext: &[u8]) -> Vec<u8> {
    let mut out =
        vec![0; plaintext.len() + (plaintext.len() / MAX_PLAINTEXT + 1) * 2 * OVERHEAD + 9];
    let (used, filled) = from.seal(plaintext, &mut out).unwrap();
    assert_eq!(used, plaintext.len());
    out.truncate(filled);
    out
}

/// One record of any type.
fn record_of(from: &mut Records, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; body.len() + OVERHEAD];
    let n = from.send.seal(kind, body, &mut out).unwrap();
    assert_eq!(n, out.len());
    out
}

/// The content, if all of it decrypts.
fn open(to: &mut Records, input: &[u8]) -> Result<Vec<u8>, RecordError> {
    let mut out = vec![0; input.len()];
    let opened = to.open(input, &mut out);
    let later = to.open(&[], &mut []); // data before an error is returned first
    assert!(later.is_err() || opened.is_ok(), "an error was forgotten");
    let (used, filled) = later.and(opened)?;
    assert!(used == input.len() || to.has_ended());
    out.truncate(filled);
    Ok(out)
}

#[test]
fn sealed_data_opens_however_it_is_split_and_across_key_updates() {
    for make in [aes, chacha] {
        let (mut client, mut server) = (end(make, true), end(make, false));
        let plaintext: Vec<u8> = (0..300_000_u32).map(|n| (n / 3) as u8).collect();
        let (mut sent, mut got, mut waiting) = (0, Vec::new(), Vec::new());
        for step in (1..).map(|n| n * n) {
            let piece = &plaintext[sent..(sent + step).min(plaintext.len())];
            sent += piece.len();
            for part in seal(&mut client, piece).chunks(step * 7 + 1) {
                waiting.extend_from_slice(part);
                let mut out = vec![0; waiting.len()];
                let (used, filled) = server.open(&waiting, &mut out).unwrap();
                got.extend_from_slice(&out[..filled]);
                waiting.drain(..used);
            }
            if piece.is_empty() {
                break;
            }
        }
        assert!(waiting.is_empty() && got == plaintext);
        assert!(client.send.number < RECORDS_A_KEY && sent / RECORDS_A_KEY as usize > 0);
    }
}

#[test]
fn a_batch_stops_when_the_buffer_is_full() {
    let (mut client, mut server) = pair();
    let plaintext = vec![7; 3 * MAX_PLAINTEXT];
    let mut out = vec![0; 2 * (MAX_PLAINTEXT + OVERHEAD)];
    assert_eq!(client.seal(&plaintext, &mut out), Ok((2 * MAX_PLAINTEXT, out.len())));
    let mut room = vec![0; MAX_PLAINTEXT + OVERHEAD];
    let one = MAX_PLAINTEXT + OVERHEAD;
    assert_eq!(server.open(&out, &mut room), Ok((one, MAX_PLAINTEXT)));
    assert_eq!(server.open(&out[one..], &mut room), Ok((one, MAX_PLAINTEXT)));
    assert_eq!(client.seal(b"more", &mut [0; OVERHEAD + 3]), Ok((0, 0)));
    assert_eq!(server.open(&out[..4], &mut room), Ok((0, 0)));
}

/// The server's result for two records, after `harm` modified them.
fn harmed(harm: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) -> Result<Vec<u8>, RecordError> {
    let (mut client, mut server) = pair();
    let (mut first, mut second) = (seal(&mut client, b"first"), seal(&mut client, b"second"));
    harm(&mut first, &mut second);
    open(&mut server, &[first, second].concat())
}

#[test]
fn altered_repeated_or_missing_records_do_not_open() {
    assert_eq!(harmed(|_, _| ()).unwrap(), b"firstsecond");
    for at in 0..OVERHEAD + 5 {
        let harm = |first: &mut Vec<u8>, second: &mut Vec<u8>| {
            first[at] ^= 1;
            second.resize(512, 0); // enough bytes if the altered length is longer
        };
        let kind = APPLICATION_DATA ^ 1;
        let error = if at == 0 { RecordError::NotEncrypted(kind) } else { RecordError::BadMac };
        assert_eq!(harmed(harm), Err(error), "at {at}");
    }
    assert_eq!(harmed(|first, _| first.extend_from_within(..)), Err(RecordError::BadMac));
    assert_eq!(harmed(|first, _| first.clear()), Err(RecordError::BadMac));
    assert_eq!(harmed(std::mem::swap), Err(RecordError::BadMac));
}

#[test]
fn plaintext_of_a_record_that_fails_is_erased() {
    let (mut client, mut server) = pair();
    let mut stream = seal(&mut client, b"not vouched for");
    *stream.last_mut().unwrap() ^= 1;
    let mut out = [0; 100];
    assert_eq!(server.open(&stream, &mut out), Err(RecordError::BadMac));
    assert_eq!(out, [0; 100]);
}

#[test]
fn data_before_a_record_that_fails_is_delivered() {
    let (mut client, mut server) = pair();
    let first = seal(&mut client, b"first");
    let mut second = seal(&mut client, b"second");
    *second.last_mut().unwrap() ^= 1;
    let mut out = [0; 100];
    let opened = server.open(&[&first[..], &second].concat(), &mut out);
    assert_eq!(opened, Ok((first.len(), 5)));
    assert_eq!(&out[..5], b"first");
    assert_eq!(server.open(&second, &mut out), Err(RecordError::BadMac));
}

#[test]
fn record_lengths_are_limited() {
    let header = |len: usize| [APPLICATION_DATA, 3, 3, (len >> 8) as u8, len as u8];
    let longest = MAX_PLAINTEXT + 256;
    let (_, mut server) = pair();
    assert_eq!(server.open(&header(longest), &mut []), Ok((0, 0)), "waits for the rest");
    assert_eq!(server.open(&header(longest + 1), &mut []), Err(RecordError::Overflow));
    // Shorter than a tag, and long enough for one.
    for (len, error) in [(0, RecordError::BadMac), (TAG - 1, RecordError::BadMac)] {
        let stream = [&header(len)[..], &vec![0; len]].concat();
        assert_eq!(open(&mut pair().1, &stream), Err(error));
    }
    for (len, expected) in
        [(MAX_PLAINTEXT, Ok(())), (MAX_PLAINTEXT + 1, Err(RecordError::Overflow))]
    {
        let (mut client, mut server) = pair();
        let stream = record_of(&mut client, APPLICATION_DATA, &vec![1; len]);
        assert_eq!(open(&mut server, &stream).map(|_| ()), expected);
    }
}

#[test]
fn padding_is_removed_and_padding_only_is_rejected() {
    // Type 0 at the end makes this a padded record: the real type and zeros come before it.
    let (mut client, mut server) = pair();
    let padded =
        record_of(&mut client, 0, &[b"data".as_slice(), &[APPLICATION_DATA, 0, 0]].concat());
    assert_eq!(open(&mut server, &padded).unwrap(), b"data");
    let padded = record_of(&mut client, 0, &[0; 9]);
    assert_eq!(open(&mut server, &padded), Err(RecordError::Unexpected));
}

#[test]
fn data_after_close_notify_is_ignored() {
    let (mut client, mut server) = pair();
    let mut stream = seal(&mut client, b"last words");
    let mut close = [0; 100];
    let n = client.seal_alert(AlertDescription::CloseNotify, &mut close).unwrap();
    stream.extend_from_slice(&close[..n]);
    assert_eq!(open(&mut server, &stream).unwrap(), b"last words");
    assert!(server.has_ended());
    assert_eq!(open(&mut server, &seal(&mut client, b"afterthought")).unwrap(), b"");
    // The other direction continues.
    let answer = seal(&mut server, b"answer");
    assert_eq!(open(&mut client, &answer).unwrap(), b"answer");
    assert!(!client.has_ended());
}

/// The server's result for one record from a client, and the client's for one from its server.
fn said(kind: u8, body: &[u8]) -> [Result<Vec<u8>, RecordError>; 2] {
    let (mut client, mut server) = pair();
    let to_server = record_of(&mut client, kind, body);
    let to_client = record_of(&mut server, kind, body);
    [open(&mut server, &to_server), open(&mut client, &to_client)]
}

#[test]
fn only_allowed_messages_are_accepted_after_the_handshake() {
    const FINISHED: u8 = 20;
    const CERTIFICATE_REQUEST: u8 = 13;
    let fine = Ok(Vec::new());
    let alert = |description| Err(RecordError::Alert(description));
    let unexpected = Err(RecordError::Unexpected);
    let both: &[(u8, &[u8], _)] = &[
        (APPLICATION_DATA, b"", fine.clone()),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], fine.clone()),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1], fine.clone()),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2], Err(RecordError::IllegalKeyUpdate)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 2, 0, 0], Err(RecordError::Decode)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE], unexpected.clone()),
        (HANDSHAKE, &[NEW_SESSION_TICKET, 1, 0, 1], Err(RecordError::Decode)),
        (HANDSHAKE, &[FINISHED, 0, 0, 1, 0], unexpected.clone()),
        (HANDSHAKE, &[CERTIFICATE_REQUEST, 0, 0, 1, 0], unexpected.clone()),
        (HANDSHAKE, b"", unexpected.clone()),
        (ALERT, &[1, 90], fine.clone()), // user_canceled
        (ALERT, &[1, 0], fine.clone()),  // close_notify
        (ALERT, &[2, 42], alert(AlertDescription::BadCertificate)),
        (ALERT, &[1, 42], alert(AlertDescription::BadCertificate)),
        (ALERT, &[2], Err(RecordError::Decode)),
        (ALERT, &[], Err(RecordError::Unexpected)),
        (ALERT, &[2, 42, 0], Err(RecordError::Decode)),
        (20, &[1], unexpected.clone()), // change_cipher_spec, encrypted
        (24, &[1], unexpected.clone()), // heartbeat
    ];
    for (kind, body, expected) in both {
        assert_eq!(said(*kind, body), [expected.clone(), expected.clone()], "{kind} {body:?}");
    }
    // A server may send tickets, which are ignored; a client may not.
    let ticket = [NEW_SESSION_TICKET, 0, 0, 3, 1, 2, 3];
    assert_eq!(said(HANDSHAKE, &ticket), [unexpected, fine]);
}

#[test]
fn unencrypted_records_are_rejected_alerts_included() {
    for kind in [20, ALERT, HANDSHAKE, 0, 71] {
        let plain = [kind, 3, 3, 0, 2, 2, 42];
        assert_eq!(open(&mut pair().1, &plain), Err(RecordError::NotEncrypted(kind)));
    }
}

#[test]
fn messages_may_be_split_but_not_interleaved() {
    let update = [KEY_UPDATE, 0, 0, 1, 0];
    for cut in 1..update.len() {
        for mixed in [None, Some(APPLICATION_DATA), Some(ALERT)] {
            let (mut client, mut server) = pair();
            let mut stream = record_of(&mut client, HANDSHAKE, &update[..cut]);
            if let Some(kind) = mixed {
                stream.extend(record_of(&mut client, kind, &[1, 0]));
            }
            stream.extend(record_of(&mut client, HANDSHAKE, &update[cut..]));
            client.send = client.next(Direction::Send).unwrap();
            stream.extend(seal(&mut client, b"by the new key"));
            let expected = match mixed {
                None => Ok(b"by the new key".to_vec()),
                Some(_) => Err(RecordError::Unexpected),
            };
            assert_eq!(open(&mut server, &stream), expected, "{cut} {mixed:?}");
        }
    }
}

#[test]
fn a_requested_key_update_precedes_the_next_data_once() {
    let (mut client, mut server) = pair();
    for _ in 0..3 {
        let ask = record_of(&mut client, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1]);
        client.send = client.next(Direction::Send).unwrap();
        open(&mut server, &ask).unwrap();
    }
    let answer = seal(&mut server, b"answer");
    assert_eq!(answer.len(), KEY_UPDATE_RECORD + OVERHEAD + 6);
    assert_eq!(open(&mut client, &answer).unwrap(), b"answer");
    let next = seal(&mut server, b"next");
    assert_eq!(next.len(), OVERHEAD + 4);
    assert_eq!(open(&mut client, &next).unwrap(), b"next");
    // If there is not enough space for both, neither is written.
    let ask = record_of(&mut client, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1]);
    open(&mut server, &ask).unwrap();
    const BOTH: usize = KEY_UPDATE_RECORD + OVERHEAD + 1;
    assert_eq!(server.seal(b"x", &mut [0; BOTH - 1]), Ok((0, 0)));
    assert_eq!(server.seal(b"x", &mut [0; BOTH]), Ok((1, BOTH)));
}

#[test]
fn each_error_is_reported_by_the_alert_of_the_rfc() {
    for (error, alert) in [
        (RecordError::Alert(AlertDescription::BadCertificate), None),
        (RecordError::NotEncrypted(HANDSHAKE), Some(AlertDescription::UnexpectedMessage)),
        (RecordError::Unexpected, Some(AlertDescription::UnexpectedMessage)),
        (RecordError::Idle, Some(AlertDescription::UnexpectedMessage)),
        (RecordError::Overflow, Some(AlertDescription::RecordOverflow)),
        (RecordError::BadMac, Some(AlertDescription::BadRecordMac)),
        (RecordError::Decode, Some(AlertDescription::DecodeError)),
        (RecordError::IllegalKeyUpdate, Some(AlertDescription::IllegalParameter)),
        (RecordError::Keys, Some(AlertDescription::InternalError)),
    ] {
        assert_eq!(error.alert(), alert, "{error:?}");
    }
}

#[test]
fn only_close_notify_is_a_warning() {
    for (alert, body) in [
        (AlertDescription::CloseNotify, [1, 0]),
        (AlertDescription::BadRecordMac, [2, 20]),
        (AlertDescription::InternalError, [2, 80]),
    ] {
        let (mut client, mut server) = pair();
        assert_eq!(client.seal_alert(alert, &mut [0; OVERHEAD + 1]), Ok(0));
        let (mut record, mut out) = ([0; OVERHEAD + 2], [0; OVERHEAD + 2]);
        assert_eq!(client.seal_alert(alert, &mut record), Ok(record.len()));
        assert_eq!(server.receive.open(&record, &mut out), Ok((ALERT, 2)));
        assert_eq!(out[..2], body);
    }
}

#[test]
fn a_peer_that_sends_only_empty_records_is_rejected() {
    for (kind, body) in [(APPLICATION_DATA, &[][..]), (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1])] {
        for paid in [false, true] {
            let (mut client, mut server) = pair();
            let mut went = 0;
            let result = loop {
                let mut stream = record_of(&mut client, kind, body);
                if kind == HANDSHAKE {
                    client.send = client.next(Direction::Send).unwrap();
                }
                if paid {
                    stream.extend(record_of(&mut client, APPLICATION_DATA, b"x"));
                }
                match open(&mut server, &stream) {
                    Ok(_) if went == 100 => break Ok(()),
                    Ok(_) => went += 1,
                    Err(error) => break Err((went, error)),
                }
            };
            let cut_off = Err((usize::from(MAX_IDLE_RECORDS), RecordError::Idle));
            assert_eq!(result, if paid { Ok(()) } else { cut_off });
        }
    }
}
