//! Checks the framing of HTTP/1 requests strictly by RFC 9112, before the HTTP library, so that the edge, the backend
//! and any proxy in front of the edge cannot see different requests in the same bytes.
//!
//! No I/O: gets bytes, and returns how many may be passed on, or a [`Violation`]. It rejects everything that another
//! parser might read differently: two lengths, a length with chunks, bare CR or LF, folded lines, white space before
//! a colon, and unusual chunk sizes and transfer codings.

/// The limit of a request's head, and of its trailers, in bytes.
pub const MAX_HEAD: usize = 32 * 1024;
/// The limit of header lines in a head, and in trailers.
pub const MAX_HEADERS: usize = 100;
/// The limit of chunk extensions, in bytes.
const MAX_EXTENSION: usize = 256;
/// The most digits of a chunk size: up to 2^60.
const MAX_CHUNK_DIGITS: usize = 15;
/// The most digits of a Content-Length: more than any file, less than 2^63.
pub(crate) const MAX_LENGTH_DIGITS: usize = 18;

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not a method, a target and a version, separated by single spaces (RFC 9112, section 3).
    #[error("malformed request line")]
    RequestLine,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    #[error("not HTTP/1.1 or HTTP/1.0")]
    Version,
    /// A line that ends with LF only, or a CR without LF (section 2.2).
    #[error("a line does not end in CR LF")]
    BareLineEnd,
    /// A header line that starts with white space (section 5.2).
    #[error("obsolete line folding")]
    Fold,
    /// White space between a header's name and its colon (section 5.1).
    #[error("white space before a colon")]
    SpaceBeforeColon,
    /// A character that is not allowed in a header name.
    #[error("malformed header name")]
    Name,
    /// NUL or another control character in a header's value (RFC 9110, section 5.5).
    #[error("a control character in a header")]
    Control,
    /// Not exactly one Host (section 3.2); HTTP/1.0 may have none.
    #[error("not exactly one Host header")]
    Host,
    /// An invalid or repeated Content-Length (section 6.3).
    #[error("malformed or repeated Content-Length")]
    Length,
    /// A Transfer-Encoding other than `chunked`, a repeated one, or one in HTTP/1.0 (section 6.1).
    #[error("a Transfer-Encoding other than chunked")]
    Coding,
    /// Content-Length and Transfer-Encoding (section 6.3).
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndCoding,
    /// An invalid chunk size or end of chunk (section 7.1).
    #[error("malformed chunk")]
    Chunk,
    /// More than [`MAX_HEAD`] bytes or [`MAX_HEADERS`] lines.
    #[error("the header section is too large")]
    TooLarge,
}

impl Violation {
    /// The status of the response.
    pub fn status(self) -> u16 {
        match self {
            Violation::TooLarge => 431,
            Violation::Version => 505,
            _ => 400,
        }
    }
}

/// The result of [`Framing::feed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed {
    /// How many of the bytes were checked. Fewer than all only if the framing is [`Phase::Behind`] a request.
    pub used: usize,
    /// How many of the checked bytes that are not released yet may be passed on, starting with those of earlier calls.
    pub release: usize,
    /// The violation in the bytes after those; nothing more may be passed on.
    pub refused: Option<Violation>,
}

/// The position of the stream within a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Between two requests.
    Idle,
    Head,
    Body,
    /// After a request. The meaning of the next bytes depends on the response: another request, or another protocol.
    Behind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Method,
    Target,
    Version(usize),
    LineStart,
    Name,
    Value,
    ValueLf,
    HeadLf,
    Body(u64),
    ChunkSize(usize),
    ChunkExtension(usize),
    ChunkSizeLf,
    ChunkData(u64),
    ChunkDataCr,
    ChunkDataLf,
    Behind,
}

const VERSION: &[u8] = b"HTTP/1.";

/// Tracks the requests of one connection.
#[derive(Debug)]
pub struct Framing {
    state: State,
    /// The number of complete heads.
    heads: usize,
    /// Bytes checked but not yet released.
    kept: usize,
    /// The bytes and lines of the current head or trailers.
    head: usize,
    lines: usize,
    in_trailers: bool,
    minor: u8,
    /// The name of the current header line, in lower case, as far as it fits.
    name: [u8; 20],
    name_len: usize,
    /// The value of the current header line, for headers that determine the length of the body.
    value: [u8; 24],
    value_len: usize,
    /// The value is longer than that, and the rest is not just trailing white space.
    value_is_long: bool,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    chunk: u64,
}

impl Default for Framing {
    fn default() -> Framing {
        Framing {
            state: State::Start,
            heads: 0,
            kept: 0,
            head: 0,
            lines: 0,
            in_trailers: false,
            minor: 1,
            name: [0; 20],
            name_len: 0,
            value: [0; 24],
            value_len: 0,
            value_is_long: false,
            hosts: 0,
            length: None,
            chunked: false,
            chunk: 0,
        }
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

impl Framing {
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Start => Phase::Idle,
            State::Behind => Phase::Behind,
            _ if self.in_trailers => Phase::Body,
            State::Body(_)
            | State::ChunkSize(_)
            | State::ChunkExtension(_)
            | State::ChunkSizeLf
            | State::ChunkData(_)
            | State::ChunkDataCr
            | State::ChunkDataLf => Phase::Body,
            _ => Phase::Head,
        }
    }

    /// The number of heads released since the start of the connection.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Call this when the request has its response and the protocol is unchanged: another request follows.
    pub fn resume(&mut self) {
        if self.state == State::Behind {
            self.state = State::Start;
        }
    }

    /// Checks the next bytes of the stream, up to the end of a request.
    pub fn feed(&mut self, bytes: &[u8]) -> Fed {
        let (mut at, mut release) = (0, 0);
        while at < bytes.len() && self.state != State::Behind {
            // Process bodies in bulk; they are released as they arrive.
            if let State::Body(left) | State::ChunkData(left) = &mut self.state {
                let n = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                let done = *left == 0;
                at += n;
                self.kept += n;
                if done {
                    self.state = match self.state {
                        State::Body(_) => State::Behind,
                        _ => State::ChunkDataCr,
                    };
                }
                release += std::mem::take(&mut self.kept);
                continue;
            }
            self.kept += 1;
            let was_head = self.phase() == Phase::Head || self.state == State::Start;
            if let Err(violation) = self.byte(bytes[at]) {
                return Fed { used: at, release, refused: Some(violation) };
            }
            at += 1;
            // A head is released when it is complete; bytes between chunks are released at once.
            let in_head = self.phase() == Phase::Head;
            self.heads += usize::from(was_head && !in_head);
            if !in_head || !was_head {
                release += std::mem::take(&mut self.kept);
            }
        }
        Fed { used: at, release, refused: None }
    }

    fn byte(&mut self, b: u8) -> Result<(), Violation> {
        self.state = match self.state {
            State::Start => {
                *self = Framing { kept: self.kept, heads: self.heads, ..Framing::default() };
                self.head = 1;
                if !is_token(b) {
                    return Err(Violation::RequestLine);
                }
                State::Method
            }
            State::Method => {
                self.count()?;
                match b {
                    b' ' => State::Target,
                    b if is_token(b) && self.head <= 32 => State::Method,
                    _ => return Err(Violation::RequestLine),
                }
            }
            State::Target => {
                self.count()?;
                match b {
                    b' ' => State::Version(0),
                    0x21..=0x7e => State::Target,
                    _ => return Err(Violation::RequestLine),
                }
            }
            State::Version(at) => {
                self.count()?;
                match (at, b) {
                    (0..7, b) if b == VERSION[at] => {}
                    (7, b'0' | b'1') => self.minor = b - b'0',
                    (8, b'\r') => {}
                    (8, b'\n') => return Err(Violation::BareLineEnd),
                    (9, b'\n') => {}
                    (9, _) => return Err(Violation::BareLineEnd),
                    (0, _) => return Err(Violation::RequestLine),
                    _ => return Err(Violation::Version),
                }
                if at == 9 { State::LineStart } else { State::Version(at + 1) }
            }
            State::LineStart => {
                self.count()?;
                match b {
                    b'\r' => State::HeadLf,
                    b'\n' => return Err(Violation::BareLineEnd),
                    b' ' | b'\t' => return Err(Violation::Fold),
                    b if is_token(b) => {
                        self.lines += 1;
                        if self.lines > MAX_HEADERS {
                            return Err(Violation::TooLarge);
                        }
                        (self.name_len, self.value_len, self.value_is_long) = (0, 0, false);
                        self.push_name(b);
                        State::Name
                    }
                    _ => return Err(Violation::Name),
                }
            }
            State::Name => {
                self.count()?;
                match b {
                    b':' => State::Value,
                    b' ' | b'\t' => return Err(Violation::SpaceBeforeColon),
                    b if is_token(b) => {
                        self.push_name(b);
                        State::Name
                    }
                    _ => return Err(Violation::Name),
                }
            }
            State::Value => {
                self.count()?;
                match b {
                    b'\r' => State::ValueLf,
                    b'\n' => return Err(Violation::BareLineEnd),
                    b'\t' | 0x20..=0x7e | 0x80.. => {
                        let is_blank = matches!(b, b' ' | b'\t');
                        match self.value.get_mut(self.value_len) {
                            Some(_) if is_blank && self.value_len == 0 => {}
                            Some(slot) => {
                                *slot = b;
                                self.value_len += 1;
                            }
                            None => self.value_is_long |= !is_blank,
                        }
                        State::Value
                    }
                    _ => return Err(Violation::Control),
                }
            }
            State::ValueLf => {
                self.count()?;
                if b != b'\n' {
                    return Err(Violation::BareLineEnd);
                }
                self.line()?;
                State::LineStart
            }
            State::HeadLf => {
                self.count()?;
                if b != b'\n' {
                    return Err(Violation::BareLineEnd);
                }
                self.whole()?
            }
            State::ChunkSize(digits) => match b {
                b'\r' if digits > 0 => State::ChunkSizeLf,
                b';' if digits > 0 => State::ChunkExtension(0),
                _ => {
                    let digit = (b as char).to_digit(16).ok_or(Violation::Chunk)?;
                    if digits == MAX_CHUNK_DIGITS {
                        return Err(Violation::Chunk);
                    }
                    self.chunk = self.chunk << 4 | u64::from(digit);
                    State::ChunkSize(digits + 1)
                }
            },
            State::ChunkExtension(n) => match b {
                b'\r' => State::ChunkSizeLf,
                b'\t' | 0x20..=0x7e if n < MAX_EXTENSION => State::ChunkExtension(n + 1),
                _ => return Err(Violation::Chunk),
            },
            State::ChunkSizeLf => match (b, self.chunk) {
                (b'\n', 0) => {
                    (self.head, self.lines, self.in_trailers) = (0, 0, true);
                    State::LineStart
                }
                (b'\n', n) => State::ChunkData(n),
                _ => return Err(Violation::Chunk),
            },
            State::ChunkDataCr if b == b'\r' => State::ChunkDataLf,
            State::ChunkDataLf if b == b'\n' => {
                self.chunk = 0;
                State::ChunkSize(0)
            }
            State::ChunkDataCr | State::ChunkDataLf => return Err(Violation::Chunk),
            // `feed` handles these in bulk, or stops before them.
            state @ (State::Body(_) | State::ChunkData(_) | State::Behind) => state,
        };
        Ok(())
    }

    fn count(&mut self) -> Result<(), Violation> {
        self.head += 1;
        if self.head > MAX_HEAD { Err(Violation::TooLarge) } else { Ok(()) }
    }

    fn push_name(&mut self, b: u8) {
        if let Some(slot) = self.name.get_mut(self.name_len) {
            *slot = b.to_ascii_lowercase();
        }
        self.name_len += 1;
    }

    /// A header line is complete.
    fn line(&mut self) -> Result<(), Violation> {
        let Some(name) = self.name.get(..self.name_len) else { return Ok(()) };
        let value = self.value[..self.value_len].trim_ascii_end();
        match name {
            b"content-length" | b"transfer-encoding" if self.in_trailers => {
                return Err(Violation::Length);
            }
            b"content-length" => {
                let digits = (1..=MAX_LENGTH_DIGITS).contains(&value.len())
                    && value.iter().all(u8::is_ascii_digit);
                if !digits || self.value_is_long || self.length.is_some() {
                    return Err(Violation::Length);
                }
                let number = value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'));
                self.length = Some(number);
            }
            b"transfer-encoding" => {
                let is_chunked = !self.value_is_long && value.eq_ignore_ascii_case(b"chunked");
                if self.chunked || self.minor == 0 || !is_chunked {
                    return Err(Violation::Coding);
                }
                self.chunked = true;
            }
            b"host" => self.hosts += 1,
            _ => {}
        }
        Ok(())
    }

    /// A head, or a chunked body with its trailers, is complete.
    fn whole(&mut self) -> Result<State, Violation> {
        if self.in_trailers {
            self.in_trailers = false;
            return Ok(State::Behind);
        }
        match (self.hosts, self.minor) {
            (1, _) | (0, 0) => {}
            _ => return Err(Violation::Host),
        }
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Violation::LengthAndCoding),
            (None, true) => Ok(State::ChunkSize(0)),
            (Some(n @ 1..), false) => Ok(State::Body(n)),
            _ => Ok(State::Behind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds everything at once, and byte by byte: the result must be the same, and no more may be released than was
    /// fed.
    fn check(input: &[u8]) -> Result<usize, Violation> {
        let all = feed(&mut Framing::default(), input);
        let mut slow = Framing::default();
        let (mut sum, mut refused) = (0, None);
        for b in input {
            let (release, violation) = feed(&mut slow, std::slice::from_ref(b));
            sum += release;
            refused = violation;
            if refused.is_some() {
                break;
            }
        }
        assert!(sum <= input.len());
        assert_eq!(all, (sum, refused), "{:?}", input.escape_ascii());
        refused.map_or(Ok(sum), Err)
    }

    /// As if each request got its response at once.
    fn feed(framing: &mut Framing, mut bytes: &[u8]) -> (usize, Option<Violation>) {
        let mut sum = 0;
        loop {
            framing.resume();
            let fed = framing.feed(bytes);
            sum += fed.release;
            bytes = &bytes[fed.used..];
            if fed.refused.is_some() || bytes.is_empty() {
                return (sum, fed.refused);
            }
            assert_eq!(framing.phase(), Phase::Behind);
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

    #[test]
    fn plain_requests_are_released_completely() {
        for good in [
            format!("{GET}\r\n"),
            format!("{GET}\r\n{GET}\r\n"),
            format!("{GET}x:\r\ny: \t a b\t \r\n\r\n"),
            format!("{GET}x: caf\u{e9}\r\n\r\n"),
            "GET / HTTP/1.0\r\n\r\n".into(),
            "OPTIONS * HTTP/1.1\r\nhOsT:\r\n\r\n".into(),
            "M-SEARCH http://a/b?c=%20 HTTP/1.1\r\nHost: a:1\r\n\r\n".into(),
            format!("{POST}Content-Length: 5\r\n\r\nhello{GET}\r\n"),
            format!("{POST}content-length:\t0 \r\n\r\n{GET}\r\n"),
            format!("{POST}Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{GET}\r\n"),
            format!(
                "{POST}Transfer-Encoding: chunked\r\n\r\nA;x=\"y\"\r\n0123456789\r\n00\r\nt: 1\r\n\r\n"
            ),
        ] {
            assert_eq!(check(good.as_bytes()), Ok(good.len()), "{good:?}");
        }
    }

    #[test]
    fn heads_are_counted_when_they_are_complete() {
        let body = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nt: 1\r\n\r\n";
        let text =
            format!("{GET}\r\n{POST}{body}{POST}Content-Length: 2\r\n\r\nhi{GET}\r\n{GET}x: y\r\n");
        for pieces in [1, 7, text.len()] {
            let mut framing = Framing::default();
            text.as_bytes()
                .chunks(pieces)
                .for_each(|piece| assert_eq!(feed(&mut framing, piece).1, None));
            assert_eq!(framing.heads(), 4);
            feed(&mut framing, b"\r\n");
            assert_eq!(framing.heads(), 5);
        }
    }

    #[test]
    fn ambiguous_requests_are_rejected() {
        use Violation::*;
        let long = |n| format!("{GET}x: {}\r\n\r\n", "y".repeat(n));
        for (bad, why) in [
            ("GET /\r\n\r\n".into(), RequestLine),
            (" GET / HTTP/1.1\r\n".into(), RequestLine),
            ("\r\nGET / HTTP/1.1\r\n".into(), RequestLine),
            ("GET  / HTTP/1.1\r\n".into(), RequestLine),
            ("GET /\0 HTTP/1.1\r\n".into(), RequestLine),
            ("GET /\u{e9} HTTP/1.1\r\n".into(), RequestLine),
            ("GET /\tHTTP/1.1\r\n".into(), RequestLine),
            ("G@T / HTTP/1.1\r\n".into(), RequestLine),
            ("PRI * HTTP/2.0\r\n\r\n".into(), Version),
            ("GET / HTTP/1.2\r\n".into(), Version),
            ("GET / HTTP/0.9\r\n".into(), Version),
            ("GET / HTTP/1.1 \r\n".into(), Version),
            ("GET / HTTP/1.11\r\n".into(), Version),
            ("GET / http/1.1\r\n".into(), RequestLine),
            ("GET / HTTP/1.1\n".into(), BareLineEnd),
            ("GET / HTTP/1.1\r\r\n".into(), BareLineEnd),
            (format!("{GET}x: y\n\r\n"), BareLineEnd),
            (format!("{GET}x: y\rz: 1\r\n\r\n"), BareLineEnd),
            (format!("{GET}\n"), BareLineEnd),
            (format!("{GET}\rX"), BareLineEnd),
            (format!("{GET}x: y\r\n z\r\n\r\n"), Fold),
            (format!("{GET}\tx: y\r\n\r\n"), Fold),
            (format!("{GET}x : y\r\n\r\n"), SpaceBeforeColon),
            (format!("{GET}x\t: y\r\n\r\n"), SpaceBeforeColon),
            (format!("{GET}: y\r\n\r\n"), Name),
            (format!("{GET}x\r\n\r\n"), Name),
            (format!("{GET}x(: y\r\n\r\n"), Name),
            (format!("{GET}\u{e9}: y\r\n\r\n"), Name),
            (format!("{GET}x: a\0b\r\n\r\n"), Control),
            (format!("{GET}x: a\x7fb\r\n\r\n"), Control),
            (format!("{GET}x: a\x0bb\r\n\r\n"), Control),
            ("GET / HTTP/1.1\r\n\r\n".into(), Host),
            (format!("{GET}Host: b\r\n\r\n"), Host),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n".into(), Host),
            (format!("{POST}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), Length),
            (format!("{POST}Content-Length: 5, 5\r\n\r\n"), Length),
            (format!("{POST}Content-Length: +5\r\n\r\n"), Length),
            (format!("{POST}Content-Length: -1\r\n\r\n"), Length),
            (format!("{POST}Content-Length: 0x5\r\n\r\n"), Length),
            (format!("{POST}Content-Length: 5 5\r\n\r\n"), Length),
            (format!("{POST}Content-Length:\r\n\r\n"), Length),
            (format!("{POST}Content-Length: 9999999999999999999\r\n\r\n"), Length),
            (format!("{POST}Content-Length: {}\r\n\r\n", "0".repeat(40)), Length),
            (format!("{POST}Transfer-Encoding: gzip, chunked\r\n\r\n"), Coding),
            (format!("{POST}Transfer-Encoding: identity\r\n\r\n"), Coding),
            (format!("{POST}Transfer-Encoding: xchunked\r\n\r\n"), Coding),
            (format!("{POST}Transfer-Encoding: chunked, chunked\r\n\r\n"), Coding),
            (format!("{POST}Transfer-Encoding: \x0bchunked\r\n\r\n"), Control),
            (format!("{POST}Transfer-Encoding: chunked{}x\r\n\r\n", " ".repeat(40)), Coding),
            (
                format!("{POST}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
                Coding,
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Coding),
            (
                format!("{POST}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"),
                LengthAndCoding,
            ),
            (
                format!("{POST}Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"),
                LengthAndCoding,
            ),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n\r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n0x5\r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n 5\r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5 \r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n-1\r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5\nhello"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\rX"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n"), Chunk),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n5;{}\r\n", "x".repeat(300)), Chunk),
            (
                format!("{POST}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n"),
                Length,
            ),
            (format!("{POST}Transfer-Encoding: chunked\r\n\r\n0\r\n x: 1\r\n\r\n"), Fold),
            (long(MAX_HEAD), TooLarge),
            (format!("GET /{} HTTP/1.1\r\n", "y".repeat(MAX_HEAD)), TooLarge),
            (format!("{GET}{}\r\n", "x: y\r\n".repeat(MAX_HEADERS)), TooLarge),
        ] {
            assert_eq!(check(bad.as_bytes()), Err(why), "{bad:?}");
        }
        assert!(check(long(MAX_HEAD - 100).as_bytes()).is_ok());
        assert!(
            check(format!("{GET}{}\r\n", "x: y\r\n".repeat(MAX_HEADERS - 1)).as_bytes()).is_ok()
        );
    }

    fn fed(used: usize, release: usize) -> Fed {
        Fed { used, release, refused: None }
    }

    #[test]
    fn a_head_is_released_when_complete_and_a_body_as_it_arrives() {
        let mut framing = Framing::default();
        let head = format!("{POST}Content-Length: 5\r\n\r");
        assert_eq!(framing.feed(head.as_bytes()), fed(head.len(), 0));
        assert_eq!(framing.phase(), Phase::Head);
        assert_eq!(framing.feed(b"\nhe"), fed(3, head.len() + 3));
        assert_eq!(framing.phase(), Phase::Body);
        assert_eq!(framing.feed(b"llo"), fed(3, 3));
        assert_eq!(framing.phase(), Phase::Behind);
        framing.resume();
        assert_eq!(framing.phase(), Phase::Idle);
        assert_eq!(framing.feed(b"GET"), fed(3, 0));
    }

    #[test]
    fn checking_stops_after_a_request_until_its_response() {
        for head in [
            format!("{GET}\r\n"),
            format!("{GET}Upgrade: websocket\r\n\r\n"),
            format!("{POST}Content-Length: 2\r\n\r\nab"),
            format!("{POST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ] {
            let mut framing = Framing::default();
            let ahead = format!("{head}\u{1}\0");
            assert_eq!(framing.feed(ahead.as_bytes()), fed(head.len(), head.len()));
            assert_eq!(framing.phase(), Phase::Behind);
            assert_eq!(framing.feed(b"\x01\0"), fed(0, 0));
            framing.resume();
            assert_eq!(framing.feed(b"\x01").refused, Some(Violation::RequestLine));
        }
    }

    #[test]
    fn requests_before_a_rejected_head_are_released() {
        let good = format!("{GET}\r\n");
        let bad = format!("{good}{GET}x: y\n");
        let fed = feed(&mut Framing::default(), bad.as_bytes());
        assert_eq!(fed, (good.len(), Some(Violation::BareLineEnd)));
    }
}
