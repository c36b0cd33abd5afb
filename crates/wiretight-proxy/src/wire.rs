//! The frames of `wiretight/1` (docs/wire.md, section 2). The parser handles untrusted bytes, does no I/O, and does
//! not allocate according to announced lengths.

use std::net::SocketAddr;

use wiretight_keys::Name;

use crate::reason::Reason;

/// The length of a frame header.
pub const HEADER: usize = 4;
/// The longest body of an OPEN.
pub const MAX_OPEN: usize = 512;
/// The longest body of a DATA frame.
pub const MAX_DATA: usize = (1 << 24) - 1;

/// Why a peer's frames are invalid. The connection is closed without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// An OPEN that is too long.
    #[error("an OPEN of {0} bytes, more than {MAX_OPEN}")]
    OpenTooLong(usize),
    /// A frame whose body length is not allowed for its type.
    #[error("a {0} frame with a body of {1} bytes")]
    BodyLength(&'static str, usize),
    /// A malformed OPEN body.
    #[error("a malformed OPEN: {0}")]
    BadOpen(&'static str),
    /// A frame that is not allowed at this point.
    #[error("a {0} frame out of turn")]
    OutOfTurn(&'static str),
}

/// A parsed header, for OPEN and DATA with the length of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A body of this length follows, for [`Open::parse`].
    Open(usize),
    /// The backend is connected.
    Opened,
    /// One byte follows, the code of [`Refused`].
    Refused,
    /// This many bytes of the stream follow; at least 1.
    Data(usize),
    /// This direction was closed in order.
    Fin,
    /// This direction was aborted.
    Reset,
}

impl Frame {
    pub fn parse(header: [u8; HEADER]) -> Result<Frame, WireError> {
        let [kind, a, b, c] = header;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let fixed = |frame: Frame, name, want| match len == want {
            true => Ok(frame),
            false => Err(WireError::BodyLength(name, len)),
        };
        match kind {
            1 if len > MAX_OPEN => Err(WireError::OpenTooLong(len)),
            1 => Ok(Frame::Open(len)),
            2 => fixed(Frame::Opened, "OPENED", 0),
            3 => fixed(Frame::Refused, "REFUSED", 1),
            4 if len == 0 => Err(WireError::BodyLength("DATA", 0)),
            4 => Ok(Frame::Data(len)),
            5 => fixed(Frame::Fin, "FIN", 0),
            6 => fixed(Frame::Reset, "RESET", 0),
            other => Err(WireError::UnknownType(other)),
        }
    }

    /// Encodes a header. For DATA the length is at most [`MAX_DATA`].
    pub fn header(self) -> [u8; HEADER] {
        let (kind, len) = match self {
            Frame::Open(len) => (1, len),
            Frame::Opened => (2, 0),
            Frame::Refused => (3, 1),
            Frame::Data(len) => (4, len),
            Frame::Fin => (5, 0),
            Frame::Reset => (6, 0),
        };
        debug_assert!(len <= MAX_DATA);
        let [_, a, b, c] = (len as u32).to_be_bytes();
        [kind, a, b, c]
    }

    /// The name, for logs.
    pub fn name(self) -> &'static str {
        match self {
            Frame::Open(_) => "OPEN",
            Frame::Opened => "OPENED",
            Frame::Refused => "REFUSED",
            Frame::Data(_) => "DATA",
            Frame::Fin => "FIN",
            Frame::Reset => "RESET",
        }
    }
}

/// The body of an OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub service: Name,
    /// The original destination of the program's connection, if it was intercepted.
    pub destination: Option<SocketAddr>,
}

impl Open {
    /// Encodes the whole frame, header included.
    pub fn encode(&self) -> Vec<u8> {
        let service = self.service.as_str();
        let destination = self.destination.map(|d| d.to_string()).unwrap_or_default();
        let len = 2 + service.len() + destination.len();
        let mut out = Vec::with_capacity(HEADER + len);
        out.extend_from_slice(&Frame::Open(len).header());
        for text in [service, &destination] {
            out.push(text.len() as u8); // a name has at most 63 bytes, an address at most 58
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    pub fn parse(body: &[u8]) -> Result<Open, WireError> {
        if body.len() > MAX_OPEN {
            return Err(WireError::OpenTooLong(body.len()));
        }
        let mut rest = body;
        let service = text(&mut rest).ok_or(WireError::BadOpen("the service is truncated"))?;
        let service =
            service.parse().map_err(|_| WireError::BadOpen("the service is not a name"))?;
        let destination =
            text(&mut rest).ok_or(WireError::BadOpen("the destination is truncated"))?;
        let destination = match destination {
            "" => None,
            d => Some(d.parse().map_err(|_| WireError::BadOpen("the destination is not IP:PORT"))?),
        };
        while !rest.is_empty() {
            rest = &rest[1..]; // the option's type
            text(&mut rest).ok_or(WireError::BadOpen("an option is truncated"))?;
        }
        Ok(Open { service, destination })
    }
}

/// Takes a text with a 1-byte length off the front.
fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (len, tail) = rest.split_first()?;
    let (text, tail) = tail.split_at_checked(usize::from(*len))?;
    *rest = tail;
    // Options are binary and are skipped. Elsewhere, invalid UTF-8 becomes a text that is neither a name nor an
    // address.
    Some(std::str::from_utf8(text).unwrap_or("\u{fffd}"))
}

/// Why a server refuses a session. Sent to members of the mesh only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The client's identity is not in `allow`.
    NotAllowed,
    /// This listener does not serve the service.
    NoSuchService,
    /// No backend could be reached.
    BackendUnavailable,
    /// The client's identity has too many connections.
    TooManyConnections,
    /// The server is stopping.
    Draining,
    /// A code from a later version.
    Other(u8),
}

impl Refused {
    pub fn from_code(code: u8) -> Refused {
        match code {
            1 => Refused::NotAllowed,
            2 => Refused::NoSuchService,
            3 => Refused::BackendUnavailable,
            4 => Refused::TooManyConnections,
            5 => Refused::Draining,
            other => Refused::Other(other),
        }
    }

    /// Encodes the whole frame.
    pub fn encode(self) -> [u8; HEADER + 1] {
        let code = match self {
            Refused::NotAllowed => 1,
            Refused::NoSuchService => 2,
            Refused::BackendUnavailable => 3,
            Refused::TooManyConnections => 4,
            Refused::Draining => 5,
            Refused::Other(code) => code,
        };
        let [kind, a, b, c] = Frame::Refused.header();
        [kind, a, b, c, code]
    }

    /// For metrics and logs.
    pub fn reason(self) -> Reason {
        match self {
            Refused::NotAllowed => Reason::NotAllowed,
            Refused::NoSuchService => Reason::NoSuchService,
            Refused::BackendUnavailable => Reason::BackendUnavailable,
            Refused::TooManyConnections => Reason::TooManyConnections,
            Refused::Draining => Reason::Draining,
            Refused::Other(_) => Reason::Other,
        }
    }
}

/// A parse event in a stream of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A frame. If it has a body, [`Event::Body`] follows.
    Frame(Frame),
    /// Part of the body of the last frame; there may be several.
    Body(&'a [u8]),
}

/// Parses a plaintext stream into frames, regardless of how it is split. Buffers at most a header.
#[derive(Debug, Default)]
pub struct Cutter {
    header: [u8; HEADER],
    have: u8,
    body: u32,
}

impl Cutter {
    /// Consumes the next event from `input`; `None` when the input is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, WireError> {
        if input.is_empty() {
            return Ok(None);
        }
        if self.body > 0 {
            let take = input.len().min(self.body as usize);
            let (body, rest) = input.split_at(take);
            *input = rest;
            self.body -= take as u32;
            return Ok(Some(Event::Body(body)));
        }
        let have = usize::from(self.have);
        let take = input.len().min(HEADER - have);
        let (part, rest) = input.split_at(take);
        self.header[have..have + take].copy_from_slice(part);
        *input = rest;
        self.have += take as u8;
        if usize::from(self.have) < HEADER {
            return Ok(None);
        }
        self.have = 0;
        let frame = Frame::parse(self.header)?;
        self.body = match frame {
            Frame::Open(len) | Frame::Data(len) => len as u32,
            Frame::Refused => 1,
            Frame::Opened | Frame::Fin | Frame::Reset => 0,
        };
        Ok(Some(Event::Frame(frame)))
    }

    /// The number of bytes that remain of the current body.
    pub fn body_left(&self) -> usize {
        self.body as usize
    }

    /// Whether the stream is between two frames.
    pub fn between_frames(&self) -> bool {
        self.have == 0 && self.body == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Open {
        Open { service: "db".parse().unwrap(), destination: Some("10.0.0.1:5432".parse().unwrap()) }
    }

    #[test]
    fn open_round_trips_and_unknown_options_are_skipped() {
        for open in [open(), Open { destination: None, ..open() }] {
            let mut bytes = open.encode();
            assert_eq!(Open::parse(&bytes[HEADER..]), Ok(open.clone()));
            bytes.extend_from_slice(&[9, 3, 0xff, 0xfe, 0xfd, 8, 0]);
            assert_eq!(Open::parse(&bytes[HEADER..]), Ok(open));
            bytes.extend_from_slice(&[9, 3, 1]);
            assert_eq!(
                Open::parse(&bytes[HEADER..]),
                Err(WireError::BadOpen("an option is truncated"))
            );
        }
        assert!(Open::parse(&[]).is_err());
        assert!(Open::parse(&[2, b'D', b'B', 0]).is_err());
        assert!(Open::parse(&[2, b'd', b'b', 1, b'x']).is_err());
    }

    #[test]
    fn frames_and_refusals_have_the_codes_of_the_specification() {
        for (frame, header, name) in [
            (Frame::Open(512), [1, 0, 2, 0], "OPEN"),
            (Frame::Opened, [2, 0, 0, 0], "OPENED"),
            (Frame::Refused, [3, 0, 0, 1], "REFUSED"),
            (Frame::Data(1), [4, 0, 0, 1], "DATA"),
            (Frame::Data(MAX_DATA), [4, 255, 255, 255], "DATA"),
            (Frame::Fin, [5, 0, 0, 0], "FIN"),
            (Frame::Reset, [6, 0, 0, 0], "RESET"),
        ] {
            assert_eq!((frame.header(), frame.name()), (header, name));
            assert_eq!(Frame::parse(header), Ok(frame));
        }
        for (refused, code, reason) in [
            (Refused::NotAllowed, 1, Reason::NotAllowed),
            (Refused::NoSuchService, 2, Reason::NoSuchService),
            (Refused::BackendUnavailable, 3, Reason::BackendUnavailable),
            (Refused::TooManyConnections, 4, Reason::TooManyConnections),
            (Refused::Draining, 5, Reason::Draining),
            (Refused::Other(6), 6, Reason::Other),
        ] {
            assert_eq!((Refused::from_code(code), refused.reason()), (refused, reason));
            assert_eq!(refused.encode(), [3, 0, 0, 1, code]);
        }
    }

    #[test]
    fn an_open_has_at_most_512_bytes() {
        let of = |options: &[usize]| {
            let mut body = open().encode().split_off(HEADER);
            for len in options {
                body.extend_from_slice(&[9, *len as u8]);
                body.extend_from_slice(&vec![0; *len]);
            }
            Open::parse(&body).map_err(|e| (body.len(), e))
        };
        let rest = MAX_OPEN - (open().encode().len() - HEADER) - 4;
        assert_eq!(of(&[255, rest - 255]), Ok(open()));
        let long = WireError::OpenTooLong(MAX_OPEN + 1);
        assert_eq!(of(&[255, rest - 254]), Err((MAX_OPEN + 1, long)));
    }

    #[test]
    fn the_rest_of_a_body_is_known() {
        let (mut cutter, mut input) = (Cutter::default(), &[4, 0, 0, 3, b'a', b'b'][..]);
        assert!(cutter.between_frames());
        let mut header = &input[..3];
        assert_eq!(cutter.next(&mut header), Ok(None));
        assert!(!cutter.between_frames());
        input = &input[3..];
        assert_eq!(cutter.next(&mut input), Ok(Some(Event::Frame(Frame::Data(3)))));
        assert_eq!((cutter.body_left(), cutter.between_frames()), (3, false));
        assert_eq!(cutter.next(&mut input), Ok(Some(Event::Body(b"ab"))));
        assert_eq!((cutter.body_left(), cutter.between_frames()), (1, false));
        assert_eq!(cutter.next(&mut &b"c"[..]), Ok(Some(Event::Body(b"c"))));
        assert_eq!((cutter.body_left(), cutter.between_frames()), (0, true));
    }

    #[test]
    fn too_long_frames_are_rejected_by_their_header() {
        assert_eq!(Frame::parse([1, 0, 2, 0]), Ok(Frame::Open(512)));
        assert_eq!(Frame::parse([1, 0, 2, 1]), Err(WireError::OpenTooLong(513)));
        assert_eq!(Frame::parse([1, 255, 255, 255]), Err(WireError::OpenTooLong(MAX_DATA)));
        assert_eq!(Frame::parse([4, 0, 0, 0]), Err(WireError::BodyLength("DATA", 0)));
        assert_eq!(Frame::parse([5, 0, 0, 1]), Err(WireError::BodyLength("FIN", 1)));
        assert_eq!(Frame::parse([0x16, 3, 1, 2]), Err(WireError::UnknownType(0x16)));
    }

    #[test]
    fn frames_are_parsed_regardless_of_how_bytes_are_split() {
        let mut stream = open().encode();
        stream.extend_from_slice(&Frame::Data(5).header());
        stream.extend_from_slice(b"hello");
        stream.extend_from_slice(&Refused::Draining.encode());
        stream.extend_from_slice(&Frame::Fin.header());
        let read = |step: usize| {
            let (mut cutter, mut frames, mut body) = (Cutter::default(), Vec::new(), Vec::new());
            for mut chunk in stream.chunks(step) {
                while let Some(event) = cutter.next(&mut chunk).unwrap() {
                    match event {
                        Event::Frame(f) => frames.push(f),
                        Event::Body(b) => body.extend_from_slice(b),
                    }
                }
            }
            assert!(cutter.between_frames());
            (frames, body)
        };
        let whole = read(stream.len());
        assert_eq!(whole.0.len(), 4);
        for step in 1..stream.len() {
            assert_eq!(read(step), whole, "step {step}");
        }
    }
}
