//! HTTP/1 (RFC 9112), and what is started in it: WebSocket, other upgrades.

use super::{Opening, Verdict, plaintext, quoted};
use crate::parse::starttls::{Parsed, line};
use crate::passive::Grade;

/// Longer ones were never seen.
const MAX_METHOD: usize = 24;

/// HTTP/1.0 and HTTP/1.1: a request line, or a status line.
pub(super) fn http1(opening: &Opening<'_>) -> Verdict {
    let request = request_line(opening.client.bytes);
    let status = status_line(opening.server.bytes);
    let text = match (request, status) {
        (Parsed::Whole(text, _), _) | (_, Parsed::Whole(text, _)) => text,
        (Parsed::Partial, Parsed::Partial) => return Verdict::Maybe,
        _ => return Verdict::No,
    };
    // A query may contain a token.
    let shown = text.split(|b| *b == b'?').next().unwrap_or_default();
    plaintext("http", Grade::Seen, quoted(shown))
}

/// The method and the target of a request.
fn request_line(data: &[u8]) -> Parsed<&[u8]> {
    const NOT: Parsed<&[u8]> = Parsed::Not("not a request line");
    let method = data.iter().take(MAX_METHOD + 1).take_while(|b| b.is_ascii_uppercase()).count();
    match data.get(method) {
        None => return Parsed::Partial,
        Some(b' ') if (3..=MAX_METHOD).contains(&method) => {}
        Some(_) => return NOT,
    }
    match line(data) {
        Parsed::Whole(text, len) => match text {
            [head @ .., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1'] => {
                Parsed::Whole(head, len)
            }
            _ => NOT,
        },
        other => other,
    }
}

fn status_line(data: &[u8]) -> Parsed<&[u8]> {
    let known = data.len().min(8);
    if data.get(..known) != b"HTTP/1.1".get(..known)
        && data.get(..known) != b"HTTP/1.0".get(..known)
    {
        return Parsed::Not("not a status line");
    }
    match line(data) {
        Parsed::Whole(text, len) => match text.get(8..) {
            Some([b' ', a, b, c, ..]) if [a, b, c].iter().all(|d| d.is_ascii_digit()) => {
                Parsed::Whole(text, len)
            }
            _ => Parsed::Not("not a status line"),
        },
        other => other,
    }
}
