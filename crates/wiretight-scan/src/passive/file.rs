//! Reads capture files: pcap and pcapng, also compressed by gzip.
//!
//! A file is read as a stream, so it may be longer than memory, or a pipe. Memory is bounded by the longest frame
//! ([`MAX_FRAME`]) and the number of interfaces ([`MAX_INTERFACES`]), whatever lengths the file claims. After an error
//! nothing more is read, because neither format says where the next packet starts.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::read::MultiGzDecoder;

use super::packets::LinkType;

/// A longer frame makes a file malformed. Linux joins segments into frames of up to 512 KiB.
pub const MAX_FRAME: usize = 1 << 20;
/// Interfaces in a section of a pcapng file.
pub const MAX_INTERFACES: usize = 4096;
/// Options of an interface that are read; more are skipped.
const MAX_OPTIONS: u32 = 4096;
const BUFFER: usize = 128 << 10;

/// Why a file can't be read further. The frames before are valid.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("not a capture file: neither pcap nor pcapng")]
    NotACapture,
    #[error("the file was cut off in a packet, after {frames} whole packets")]
    Truncated { frames: u64 },
    #[error("malformed after {frames} packets: {what}")]
    Malformed { what: &'static str, frames: u64 },
    #[error("could not read the file after {frames} packets")]
    Read { source: io::Error, frames: u64 },
}

/// A captured frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub link: LinkType,
    pub at: jiff::Timestamp,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Its length on the wire.
    pub length: usize,
}

/// A capture file that is being read.
#[derive(Debug)]
pub struct Capture<R: Read> {
    input: Input<R>,
    format: Format,
    /// The frame that was read last.
    buffer: Vec<u8>,
    /// The time of the last frame, for frames without a valid time.
    at: jiff::Timestamp,
    frames: u64,
    over: bool,
}

#[derive(Debug)]
enum Format {
    Pcap { order: Order, header: usize, old: bool, link: LinkType, ticks: Ticks },
    Pcapng { order: Order, interfaces: Vec<Interface>, dropped_before: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link: LinkType,
    /// The longest captured part; 0 is no limit.
    snap: u32,
    ticks: Ticks,
    /// Frames that the capturing program lost.
    dropped: u64,
}

/// The unit of timestamps.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    per_second: u64,
    /// Seconds to add.
    offset: i64,
}

impl Ticks {
    const MICRO: Self = Self { per_second: 1_000_000, offset: 0 };
    const NANO: Self = Self { per_second: 1_000_000_000, offset: 0 };

    /// `None` if it is outside of the calendar.
    fn at(self, ticks: u64) -> Option<jiff::Timestamp> {
        let seconds = i64::try_from(ticks / self.per_second).ok()?.checked_add(self.offset)?;
        let part = u128::from(ticks % self.per_second) * 1_000_000_000;
        let nanoseconds = i32::try_from(part / u128::from(self.per_second)).ok()?;
        jiff::Timestamp::new(seconds, nanoseconds).ok()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Big,
    Little,
}

impl Order {
    fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Big => u16::from_be_bytes(bytes),
            Self::Little => u16::from_le_bytes(bytes),
        }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Big => u32::from_be_bytes(bytes),
            Self::Little => u32::from_le_bytes(bytes),
        }
    }

    fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Big => u64::from_be_bytes(bytes),
            Self::Little => u64::from_le_bytes(bytes),
        }
    }

    /// The words of a header.
    fn words<const N: usize>(self, bytes: &[u8]) -> [u32; N] {
        let mut words = [0; N];
        let (chunks, _) = bytes.as_chunks();
        for (word, chunk) in words.iter_mut().zip(chunks) {
            *word = self.u32(*chunk);
        }
        words
    }
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const GZIP: [u8; 2] = [0x1f, 0x8b];

impl<R: Read> Capture<R> {
    /// Reads the header of a file.
    pub fn new(read: R) -> Result<Self, FileError> {
        let mut input = Input::new(read).map_err(|e| e.after(0))?;
        let mut magic = [0; 4];
        input.fill(&mut magic).map_err(|e| match (e, &input) {
            (Problem::Truncated, Input::Plain(_)) => FileError::NotACapture,
            (e, _) => e.after(0),
        })?;
        let format = match u32::from_be_bytes(magic) {
            SECTION => {
                let order = section(&mut input).map_err(|e| e.after(0))?;
                Format::Pcapng { order, interfaces: Vec::new(), dropped_before: 0 }
            }
            other => {
                let (order, header, ticks) = match other {
                    0xa1b2_c3d4 => (Order::Big, 16, Ticks::MICRO),
                    0xd4c3_b2a1 => (Order::Little, 16, Ticks::MICRO),
                    0xa1b2_3c4d => (Order::Big, 16, Ticks::NANO),
                    0x4d3c_b2a1 => (Order::Little, 16, Ticks::NANO),
                    // Old patched versions of libpcap add the interface to each header.
                    0xa1b2_cd34 => (Order::Big, 24, Ticks::MICRO),
                    0x34cd_b2a1 => (Order::Little, 24, Ticks::MICRO),
                    _ => return Err(FileError::NotACapture),
                };
                let mut rest = [0; 20];
                input.fill(&mut rest).map_err(|e| e.after(0))?;
                let [version, _, _, _, link] = order.words(&rest);
                // Up to version 2.3, the two lengths of a packet may be swapped.
                let minor = if order == Order::Big { version & 0xffff } else { version >> 16 };
                // The upper bits are the length of the frame check sequence.
                let link = LinkType((link & 0xffff) as u16);
                Format::Pcap { order, header, old: minor <= 3, link, ticks }
            }
        };
        let (buffer, at) = (Vec::new(), jiff::Timestamp::UNIX_EPOCH);
        Ok(Self { input, format, buffer, at, frames: 0, over: false })
    }

    /// The next frame, or `None` at the end of the file and after an error.
    pub fn next_frame(&mut self) -> Option<Result<Frame<'_>, FileError>> {
        if self.over {
            return None;
        }
        let header = match &self.format {
            Format::Pcap { .. } => self.pcap(),
            Format::Pcapng { .. } => self.pcapng(),
        };
        match header {
            Ok(Some((link, at, length))) => {
                self.frames += 1;
                self.at = at.unwrap_or(self.at);
                let bytes = &self.buffer[..];
                let length = (length as usize).max(bytes.len());
                Some(Ok(Frame { link, at: self.at, bytes, length }))
            }
            Ok(None) => {
                self.over = true;
                None
            }
            Err(e) => {
                self.over = true;
                Some(Err(e.after(self.frames)))
            }
        }
    }

    /// Frames that the capturing program lost, as far as the file says so (pcapng, at its end).
    pub fn dropped(&self) -> u64 {
        match &self.format {
            Format::Pcap { .. } => 0,
            Format::Pcapng { interfaces, dropped_before, .. } => interfaces
                .iter()
                .fold(*dropped_before, |sum, interface| sum.saturating_add(interface.dropped)),
        }
    }

    /// Reads a frame into the buffer.
    fn pcap(&mut self) -> Result<Option<Header>, Problem> {
        let Format::Pcap { order, header, old, link, ticks } = self.format else {
            return Ok(None);
        };
        let mut bytes = [0; 24];
        let (bytes, _) = bytes.split_at_mut(header);
        if !self.input.fill_or_end(bytes)? {
            return Ok(None);
        }
        let [seconds, part, mut captured, mut length] = order.words(bytes);
        if old && captured > length {
            (captured, length) = (length, captured);
        }
        self.input.frame(captured, &mut self.buffer)?;
        // 32 bits of seconds in nanoseconds fit.
        let at = ticks.at(u64::from(seconds) * ticks.per_second + u64::from(part));
        Ok(Some((link, at, length)))
    }

    /// Reads blocks up to the next frame, which is read into the buffer.
    fn pcapng(&mut self) -> Result<Option<Header>, Problem> {
        let Format::Pcapng { order, interfaces, dropped_before } = &mut self.format else {
            return Ok(None);
        };
        let (input, buffer) = (&mut self.input, &mut self.buffer);
        loop {
            let mut kind = [0; 4];
            if !input.fill_or_end(&mut kind)? {
                return Ok(None);
            }
            // The type of this block reads the same in both byte orders.
            if u32::from_be_bytes(kind) == SECTION {
                for interface in interfaces.drain(..) {
                    *dropped_before = dropped_before.saturating_add(interface.dropped);
                }
                *order = section(input)?;
                continue;
            }
            let kind = order.u32(kind);
            let mut total = [0; 4];
            input.fill(&mut total)?;
            let total = order.u32(total);
            // The type, the length and, at the end, the length again.
            let body = match total.checked_sub(12) {
                Some(body) if body.is_multiple_of(4) => body,
                _ => return Err(Problem::Malformed("the length of a block")),
            };
            let mut block = Block { input, left: body };
            let frame = match kind {
                INTERFACE => {
                    let [link, snap] = order.words(&block.array::<8>()?);
                    // The other half is reserved.
                    let link = if *order == Order::Big { link >> 16 } else { link & 0xffff };
                    if interfaces.len() == MAX_INTERFACES {
                        return Err(Problem::Malformed("too many interfaces"));
                    }
                    let link = LinkType(link as u16);
                    let ticks = interface_ticks(*order, block.options(buffer)?)?;
                    interfaces.push(Interface { link, snap, ticks, dropped: 0 });
                    None
                }
                ENHANCED_PACKET => {
                    let [id, high, low, captured, length] = order.words(&block.array::<20>()?);
                    let interface = known(interfaces, id)?;
                    block.frame(captured, buffer)?;
                    let ticks = u64::from(high) << 32 | u64::from(low);
                    Some((interface.link, interface.ticks.at(ticks), length))
                }
                SIMPLE_PACKET => {
                    let [length] = order.words(&block.array::<4>()?);
                    let interface = known(interfaces, 0)?;
                    let snap = if interface.snap == 0 { u32::MAX } else { interface.snap };
                    block.frame(length.min(snap).min(block.left), buffer)?;
                    Some((interface.link, None, length))
                }
                OLD_PACKET => {
                    let bytes = block.array::<20>()?;
                    let [_, high, low, captured, length] = order.words(&bytes);
                    let [a, b, ..] = bytes;
                    let interface = known(interfaces, order.u16([a, b]).into())?;
                    block.frame(captured, buffer)?;
                    let ticks = u64::from(high) << 32 | u64::from(low);
                    Some((interface.link, interface.ticks.at(ticks), length))
                }
                STATISTICS => {
                    let [id, _, _] = order.words(&block.array::<12>()?);
                    let interface = known(interfaces, id)?;
                    interface.dropped = dropped(*order, block.options(buffer)?);
                    None
                }
                _ => None,
            };
            block.skip_rest()?;
            let mut again = [0; 4];
            input.fill(&mut again)?;
            if order.u32(again) != total {
                return Err(Problem::Malformed("the two lengths of a block differ"));
            }
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }
}

/// Of a frame: its link layer, its time if that is valid, its length on the wire.
type Header = (LinkType, Option<jiff::Timestamp>, u32);

fn known(interfaces: &mut [Interface], id: u32) -> Result<&mut Interface, Problem> {
    let interface = interfaces.get_mut(id as usize);
    interface.ok_or(Problem::Malformed("a packet of an interface that is not described"))
}

/// Reads a section header, after its type.
fn section<R: Read>(input: &mut Input<R>) -> Result<Order, Problem> {
    let (mut total, mut magic) = ([0; 4], [0; 4]);
    input.fill(&mut total)?;
    input.fill(&mut magic)?;
    let order = match u32::from_be_bytes(magic) {
        0x1a2b_3c4d => Order::Big,
        0x4d3c_2b1a => Order::Little,
        _ => return Err(Problem::Malformed("the byte order of a section")),
    };
    let total = order.u32(total);
    // The type, the length, the byte order and, at the end, the length again.
    let left = match total.checked_sub(16) {
        Some(left) if left >= 12 && left.is_multiple_of(4) => left,
        _ => return Err(Problem::Malformed("the length of a section header")),
    };
    let mut block = Block { input, left };
    let [a, b, ..] = block.array::<12>()?;
    if order.u16([a, b]) != 1 {
        return Err(Problem::Malformed("the version of a section"));
    }
    block.skip_rest()?;
    let mut again = [0; 4];
    input.fill(&mut again)?;
    if order.u32(again) != total {
        return Err(Problem::Malformed("the two lengths of a section header differ"));
    }
    Ok(order)
}

/// The unit of an interface's timestamps, from its options.
fn interface_ticks(order: Order, options: &[u8]) -> Result<Ticks, Problem> {
    let mut ticks = Ticks::MICRO;
    for (code, value) in (Options { order, rest: options }) {
        match (code, value) {
            (IF_TSRESOL, [unit]) => {
                let exponent = u32::from(unit & 0x7f);
                let base: u64 = if unit & 0x80 == 0 { 10 } else { 2 };
                let per_second = base.checked_pow(exponent);
                ticks.per_second = per_second.ok_or(Problem::Malformed("a unit of time"))?;
            }
            (IF_TSOFFSET, value) => {
                if let Ok(offset) = value.try_into() {
                    ticks.offset = order.u64(offset).cast_signed();
                }
            }
            _ => {}
        }
    }
    Ok(ticks)
}

fn dropped(order: Order, options: &[u8]) -> u64 {
    let numbers = Options { order, rest: options }
        .filter(|(code, _)| matches!(*code, ISB_IFDROP | ISB_OSDROP))
        .filter_map(|(_, value)| value.try_into().ok())
        .map(|value| order.u64(value));
    numbers.fold(0, u64::saturating_add)
}

const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;
const ISB_IFDROP: u16 = 5;
const ISB_OSDROP: u16 = 7;

/// The options of a block: code and value.
struct Options<'a> {
    order: Order,
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let ([a, b, c, d], rest) = self.rest.split_first_chunk()?;
        let (code, length) = (self.order.u16([*a, *b]), usize::from(self.order.u16([*c, *d])));
        let (value, _) = rest.split_at_checked(length)?;
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        (code != 0).then_some((code, value))
    }
}

/// What is left of a block's body.
struct Block<'a, R: Read> {
    input: &'a mut Input<R>,
    left: u32,
}

impl<R: Read> Block<'_, R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        self.consume(N as u32)?;
        let mut bytes = [0; N];
        self.input.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn frame(&mut self, length: u32, buffer: &mut Vec<u8>) -> Result<(), Problem> {
        self.consume(length)?;
        self.input.frame(length, buffer)
    }

    fn options<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Problem> {
        self.frame(self.left.min(MAX_OPTIONS), buffer)?;
        Ok(buffer)
    }

    fn skip_rest(self) -> Result<(), Problem> {
        self.input.skip(self.left as usize)
    }

    fn consume(&mut self, length: u32) -> Result<(), Problem> {
        let left = self.left.checked_sub(length);
        self.left = left.ok_or(Problem::Malformed("a packet is longer than its block"))?;
        Ok(())
    }
}

/// The file's bytes, decompressed.
#[derive(Debug)]
enum Input<R: Read> {
    Plain(BufReader<Start<R>>),
    Gzip(Box<BufReader<MultiGzDecoder<Start<R>>>>),
}

/// A reader whose first two bytes were read already.
type Start<R> = io::Chain<io::Take<Cursor<[u8; 2]>>, R>;

impl<R: Read> Input<R> {
    fn new(mut read: R) -> Result<Self, Problem> {
        let (mut magic, mut got) = ([0; 2], 0);
        while let Some(free @ [_, ..]) = magic.get_mut(got..) {
            match read.read(free) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Problem::Read(e)),
            }
        }
        let start = Cursor::new(magic).take(got as u64).chain(read);
        Ok(match magic {
            GZIP => {
                let decoder = MultiGzDecoder::new(start);
                Self::Gzip(Box::new(BufReader::with_capacity(BUFFER, decoder)))
            }
            _ => Self::Plain(BufReader::with_capacity(BUFFER, start)),
        })
    }

    fn reader(&mut self) -> &mut dyn BufRead {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(reader) => reader,
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Problem> {
        Ok(self.reader().read_exact(buffer)?)
    }

    /// `false` if the input has ended before the first byte.
    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool, Problem> {
        loop {
            match self.reader().fill_buf() {
                Ok([]) => return Ok(false),
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.fill(buffer)?;
        Ok(true)
    }

    fn frame(&mut self, length: u32, buffer: &mut Vec<u8>) -> Result<(), Problem> {
        let length = length as usize;
        if length > MAX_FRAME {
            return Err(Problem::Malformed("a frame of more than 1 MiB"));
        }
        buffer.resize(length, 0);
        self.fill(buffer)
    }

    fn skip(&mut self, mut length: usize) -> Result<(), Problem> {
        let reader = self.reader();
        while length > 0 {
            let available = match reader.fill_buf() {
                Ok([]) => return Err(Problem::Truncated),
                Ok(bytes) => bytes.len().min(length),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            reader.consume(available);
            length -= available;
        }
        Ok(())
    }
}

/// A [`FileError`], before the number of frames is known.
#[derive(Debug)]
enum Problem {
    Truncated,
    Malformed(&'static str),
    Read(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Read(error),
        }
    }
}

impl Problem {
    fn after(self, frames: u64) -> FileError {
        match self {
            Self::Truncated => FileError::Truncated { frames },
            Self::Malformed(what) => FileError::Malformed { what, frames },
            Self::Read(source) => FileError::Read { source, frames },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames as link type, nanoseconds, bytes, length; and the error at the end.
    type Read = (Vec<(u16, i128, Vec<u8>, usize)>, Option<FileError>, u64);

    fn read(file: &[u8]) -> Read {
        let mut capture = match Capture::new(file) {
            Ok(capture) => capture,
            Err(e) => return (Vec::new(), Some(e), 0),
        };
        let mut frames = Vec::new();
        loop {
            match capture.next_frame() {
                None => return (frames, None, capture.dropped()),
                Some(Err(e)) => {
                    assert!(capture.next_frame().is_none(), "nothing is read after an error");
                    return (frames, Some(e), capture.dropped());
                }
                Some(Ok(Frame { link, at, bytes, length })) => {
                    frames.push((link.0, at.as_nanosecond(), bytes.to_vec(), length));
                }
            }
        }
    }

    struct Writer {
        order: Order,
        out: Vec<u8>,
    }

    impl Writer {
        fn new(order: Order) -> Self {
            Self { order, out: Vec::new() }
        }

        fn u16(&mut self, v: u16) -> &mut Self {
            let bytes = if self.order == Order::Big { v.to_be_bytes() } else { v.to_le_bytes() };
            self.out.extend(bytes);
            self
        }

        fn u32(&mut self, v: u32) -> &mut Self {
            let bytes = if self.order == Order::Big { v.to_be_bytes() } else { v.to_le_bytes() };
            self.out.extend(bytes);
            self
        }

        fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
            self.out.extend(bytes);
            self
        }

        fn pcap(&mut self, magic: u32, link: u32) -> &mut Self {
            self.u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65535).u32(link)
        }

        fn record(&mut self, time: (u32, u32), bytes: &[u8], length: u32) -> &mut Self {
            self.u32(time.0).u32(time.1).u32(bytes.len() as u32).u32(length).bytes(bytes)
        }

        fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) -> &mut Self {
            let mut inner = Self::new(self.order);
            body(&mut inner);
            inner.out.resize(inner.out.len().next_multiple_of(4), 0);
            let total = inner.out.len() as u32 + 12;
            self.u32(kind).u32(total).bytes(&inner.out).u32(total)
        }

        fn section(&mut self) -> &mut Self {
            self.block(SECTION, |w| {
                w.u32(0x1a2b_3c4d).u16(1).u16(0).u32(u32::MAX).u32(u32::MAX);
            })
        }

        fn interface(&mut self, link: u16, options: &[(u16, &[u8])]) -> &mut Self {
            self.block(INTERFACE, |w| {
                w.u16(link).u16(0).u32(96);
                for (code, value) in options {
                    w.u16(*code).u16(value.len() as u16).bytes(value);
                    w.out.resize(w.out.len().next_multiple_of(4), 0);
                }
                w.u32(0);
            })
        }

        fn enhanced(&mut self, id: u32, ticks: u64, bytes: &[u8], length: u32) -> &mut Self {
            self.block(ENHANCED_PACKET, |w| {
                w.u32(id).u32((ticks >> 32) as u32).u32(ticks as u32);
                w.u32(bytes.len() as u32).u32(length).bytes(bytes);
            })
        }
    }

    fn pcap(order: Order, magic: u32) -> Vec<u8> {
        let mut w = Writer::new(order);
        w.pcap(magic, 1).record((1, 2), b"abc", 1500).record((3, 4), b"", 0);
        w.out
    }

    #[test]
    fn pcap_of_both_byte_orders_and_both_units() {
        for order in [Order::Big, Order::Little] {
            for (magic, unit) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
                let (frames, error, dropped) = read(&pcap(order, magic));
                assert!(error.is_none(), "{error:?}");
                assert_eq!(dropped, 0);
                let second = 1_000_000_000;
                let first = (1, second + 2 * unit, b"abc".to_vec(), 1500);
                assert_eq!(frames, [first, (1, 3 * second + 4 * unit, vec![], 0)]);
            }
        }
    }

    #[test]
    fn the_upper_bits_of_the_link_type_are_the_length_of_the_checksum() {
        let mut w = Writer::new(Order::Little);
        w.pcap(0xa1b2_c3d4, 0x5400_0114).record((0, 0), b"a", 1);
        assert_eq!(read(&w.out).0[0].0, 276);
    }

    #[test]
    fn headers_of_patched_and_of_old_versions_of_libpcap() {
        let mut w = Writer::new(Order::Little);
        w.pcap(0xa1b2_cd34, 1).u32(1).u32(0).u32(1).u32(9).u32(3).u32(0).bytes(b"z");
        assert_eq!(read(&w.out).0, [(1, 1_000_000_000, b"z".to_vec(), 9)]);

        let mut w = Writer::new(Order::Big);
        w.u32(0xa1b2_c3d4).u16(2).u16(2).bytes(&[0; 12]).u32(1);
        w.u32(1).u32(0).u32(9).u32(1).bytes(b"z");
        assert_eq!(read(&w.out).0, [(1, 1_000_000_000, b"z".to_vec(), 9)]);
    }

    #[test]
    fn a_cut_file_has_all_whole_packets_and_then_an_error() {
        let whole = pcap(Order::Little, 0xa1b2_c3d4);
        let ends = [24, 24 + 16 + 3, whole.len()];
        for cut in 4..whole.len() {
            let (frames, error, _) = read(&whole[..cut]);
            let before = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
            assert_eq!(frames.len(), before, "cut at {cut}");
            match error {
                None => assert!(ends.contains(&cut), "cut at {cut}"),
                Some(FileError::Truncated { frames }) => {
                    assert!(!ends.contains(&cut));
                    assert_eq!(frames, before as u64);
                }
                Some(other) => panic!("cut at {cut}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_capture() {
        for bytes in [&b""[..], b"a", b"abc", &[0; 4096], b"GET / HTTP/1.1\r\n", &[0x1f, 0x8b]] {
            let (_, error, _) = read(bytes);
            let truncated_gzip = bytes.starts_with(&GZIP);
            match error {
                Some(FileError::NotACapture) => assert!(!truncated_gzip),
                Some(FileError::Truncated { frames: 0 }) => assert!(truncated_gzip),
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_pcap_of_zeros_is_empty_frames() {
        let mut w = Writer::new(Order::Little);
        w.pcap(0xa1b2_c3d4, 1);
        w.out.resize(24 + 16 * 10_000 + 7, 0);
        let (frames, error, _) = read(&w.out);
        assert_eq!(frames.len(), 10_000);
        assert!(frames.iter().all(|frame| frame.2.is_empty()));
        assert!(matches!(error, Some(FileError::Truncated { frames: 10_000 })));
    }

    #[test]
    fn an_absurd_length_is_an_error_without_memory() {
        for length in [MAX_FRAME as u32 + 1, u32::MAX] {
            let mut w = Writer::new(Order::Little);
            w.pcap(0xa1b2_c3d4, 1).record((1, 1), b"a", 1);
            w.u32(0).u32(0).u32(length).u32(length).bytes(&[0; 100]);
            let mut capture = Capture::new(&w.out[..]).unwrap();
            assert!(capture.next_frame().unwrap().is_ok());
            let error = capture.next_frame().unwrap().unwrap_err();
            assert!(matches!(error, FileError::Malformed { frames: 1, .. }), "{error:?}");
            assert!(capture.buffer.capacity() < 1024);
        }
    }

    #[test]
    fn pcapng_with_several_sections_and_interfaces() {
        let mut file = Vec::new();
        for order in [Order::Little, Order::Big] {
            let mut w = Writer::new(order);
            let offset = if order == Order::Big { 5i64.to_be_bytes() } else { 5i64.to_le_bytes() };
            w.section()
                .interface(1, &[(2, b"eth0")])
                .interface(113, &[(IF_TSRESOL, &[9]), (IF_TSOFFSET, &offset)])
                .block(0x0bad, |w| {
                    w.bytes(&[7; 40]);
                })
                .interface(276, &[(IF_TSRESOL, &[0x80 | 10])])
                .enhanced(0, 1_000_001, b"abcde", 1500)
                .enhanced(1, 7, b"x", 1)
                .enhanced(2, 1536, b"y", 1)
                .block(SIMPLE_PACKET, |w| {
                    w.u32(3).bytes(b"sim");
                })
                .block(OLD_PACKET, |w| {
                    w.u16(1).u16(9).u32(0).u32(11).u32(3).u32(4).bytes(b"old");
                })
                .block(STATISTICS, |w| {
                    w.u32(1).u32(0).u32(0).u16(ISB_IFDROP).u16(8);
                    let dropped = 40u64;
                    match order {
                        Order::Big => w.bytes(&dropped.to_be_bytes()),
                        Order::Little => w.bytes(&dropped.to_le_bytes()),
                    };
                    w.u16(ISB_OSDROP).u16(8);
                    match order {
                        Order::Big => w.bytes(&2u64.to_be_bytes()),
                        Order::Little => w.bytes(&2u64.to_le_bytes()),
                    };
                });
            file.extend(w.out);
        }
        let (frames, error, dropped) = read(&file);
        assert!(error.is_none(), "{error:?}");
        let of_a_section = [
            (1, 1_000_001_000, b"abcde".to_vec(), 1500),
            (113, 5_000_000_007, b"x".to_vec(), 1),
            (276, 1_500_000_000, b"y".to_vec(), 1),
            (1, 1_500_000_000, b"sim".to_vec(), 3),
            (113, 5_000_000_011, b"old".to_vec(), 4),
        ];
        assert_eq!(frames, [of_a_section.clone(), of_a_section].concat());
        assert_eq!(dropped, 84);
    }

    #[test]
    fn pcapng_with_absurd_lengths() {
        let start = |w: &mut Writer| w.section().interface(1, &[]).out.len();
        type Write<'a> = &'a dyn Fn(&mut Writer);
        let absurd: &[(&str, Write<'_>)] = &[
            ("short", &|w| _ = w.u32(6).u32(8).u32(8)),
            ("not a multiple of four", &|w| _ = w.u32(6).u32(33).bytes(&[0; 100])),
            ("no interface", &|w| _ = w.enhanced(1, 0, b"a", 1)),
            ("longer than its block", &|w| {
                w.block(ENHANCED_PACKET, |w| {
                    w.u32(0).u32(0).u32(0).u32(5).u32(5).bytes(b"abcd");
                });
            }),
            ("a long frame", &|w| {
                w.u32(6).u32(u32::MAX - 3).u32(0).u32(0).u32(0).u32(u32::MAX - 100).u32(0);
            }),
            ("lengths differ", &|w| {
                w.enhanced(0, 0, b"abcd", 4);
                let last = w.out.len() - 4;
                w.out[last] ^= 4;
            }),
            ("a unit of time", &|w| _ = w.interface(1, &[(IF_TSRESOL, &[20])])),
            ("a unit of time", &|w| _ = w.interface(1, &[(IF_TSRESOL, &[0x80 | 64])])),
            ("too many interfaces", &|w| {
                for _ in 0..MAX_INTERFACES {
                    w.interface(1, &[]);
                }
            }),
        ];
        for (name, write) in absurd {
            let mut w = Writer::new(Order::Little);
            start(&mut w);
            write(&mut w);
            let mut capture = Capture::new(&w.out[..]).unwrap();
            let error = capture.next_frame().expect(name).expect_err(name);
            assert!(matches!(error, FileError::Malformed { frames: 0, .. }), "{name}: {error:?}");
            assert!(capture.buffer.capacity() < 8192, "{name}");
        }
        // An unknown block of 4 GiB is skipped, up to the end of the file.
        let mut w = Writer::new(Order::Little);
        start(&mut w);
        w.u32(99).u32(u32::MAX - 3).bytes(&[0; 100]);
        assert!(matches!(read(&w.out).1, Some(FileError::Truncated { frames: 0 })));
    }

    #[test]
    fn a_time_outside_of_the_calendar_is_that_of_the_frame_before() {
        let mut w = Writer::new(Order::Little);
        w.section().interface(1, &[(IF_TSRESOL, &[0])]);
        w.enhanced(0, 77, b"a", 1).enhanced(0, u64::MAX, b"b", 1);
        let times: Vec<i128> = read(&w.out).0.iter().map(|frame| frame.1).collect();
        assert_eq!(times, [77_000_000_000; 2]);
    }

    #[test]
    fn gzip_also_in_several_members_and_cut() {
        use flate2::{Compression, write::GzEncoder};
        use io::Write;
        let plain = pcap(Order::Little, 0xa1b2_c3d4);
        let mut file = Vec::new();
        for part in [&plain[..30], &plain[30..]] {
            let mut encoder = GzEncoder::new(&mut file, Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap();
        }
        let (frames, error, _) = read(&file);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(frames, read(&plain).0);
        assert!(read(&file[..file.len() - 5]).1.is_some());
    }

    #[test]
    fn a_reader_that_returns_one_byte_at_a_time() {
        struct Slow<'a>(&'a [u8]);
        impl io::Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let (Some((first, rest)), [to, ..]) = (self.0.split_first(), buffer) else {
                    return Ok(0);
                };
                (*to, self.0) = (*first, rest);
                Ok(1)
            }
        }
        let file = pcap(Order::Big, 0xa1b2_c3d4);
        let mut capture = Capture::new(Slow(&file)).unwrap();
        assert_eq!(capture.next_frame().unwrap().unwrap().bytes, b"abc");
        assert!(capture.next_frame().unwrap().is_ok());
        assert!(capture.next_frame().is_none());
    }
}
