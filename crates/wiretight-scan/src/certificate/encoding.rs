//! A lenient DER reader: a scan must also report certificates that strict parsers reject. It does not copy
//! or recurse, and checks all lengths against the input.

/// Why a value is unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// A tag and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tlv<'a> {
    pub(super) tag: u8,
    pub(super) value: &'a [u8],
    /// The value with tag and length.
    pub(super) whole: &'a [u8],
}

impl<'a> Tlv<'a> {
    pub(super) fn inside(self) -> Reader<'a> {
        Reader(self.value)
    }

    /// The bytes of a BIT STRING without unused bits.
    pub(super) fn bits(self) -> Result<&'a [u8], Malformed> {
        match self.value.split_first() {
            Some((0, bytes)) => Ok(bytes),
            Some(_) => Err(Malformed("a BIT STRING does not end with a byte")),
            None => Err(Malformed("a BIT STRING is empty")),
        }
    }
}

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const ENUMERATED: u8 = 0x0a;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;

/// The explicit tag `[n]`.
pub(super) const fn explicit(n: u8) -> u8 {
    0xa0 | n
}

/// The implicit tag `[n]` of a primitive type.
pub(super) const fn implicit(n: u8) -> u8 {
    0x80 | n
}

/// Reads values one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn next(&mut self) -> Result<Tlv<'a>, Malformed> {
        const SHORT: Malformed = Malformed("a value is longer than the input");
        let (tag, first) = match *self.0 {
            [tag, first, ..] => (tag, first),
            _ => return Err(SHORT),
        };
        if tag & 0x1f == 0x1f {
            return Err(Malformed("a tag has several bytes"));
        }
        let (header, len) = match first {
            0..0x80 => (2, usize::from(first)),
            0x80 => return Err(Malformed("a length is indefinite")),
            0x81..=0x84 => {
                let header = 2 + usize::from(first & 0x7f);
                let bytes = self.0.get(2..header).ok_or(SHORT)?;
                (header, bytes.iter().fold(0_usize, |n, b| n << 8 | usize::from(*b)))
            }
            _ => return Err(Malformed("a length has more than four bytes")),
        };
        let end = header.checked_add(len).ok_or(SHORT)?;
        let (whole, rest) = self.0.split_at_checked(end).ok_or(SHORT)?;
        self.0 = rest;
        Ok(Tlv { tag, value: &whole[header..], whole })
    }

    /// The next value, which must have this tag.
    pub(super) fn expect(
        &mut self,
        tag: u8,
        otherwise: &'static str,
    ) -> Result<Tlv<'a>, Malformed> {
        self.optional(tag)?.ok_or(Malformed(otherwise))
    }

    /// The next value if it has this tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Tlv<'a>>, Malformed> {
        match self.0.first() {
            Some(&t) if t == tag => self.next().map(Some),
            _ => Ok(None),
        }
    }

    /// The remaining values, up to the first unreadable one.
    pub(super) fn readable(mut self) -> impl Iterator<Item = Tlv<'a>> {
        std::iter::from_fn(move || self.next().ok())
    }
}

/// An object identifier in dotted notation; in hex if invalid.
pub(super) fn dotted(oid: &[u8]) -> String {
    match const_oid::ObjectIdentifier::from_bytes(oid) {
        Ok(oid) => oid.to_string(),
        Err(_) => format!("#{}", hex(&oid[..oid.len().min(40)])),
    }
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A time, and whether it has the form required by RFC 5280 (4.1.2.5).
///
/// Other forms are read too: without seconds, or with an offset.
pub(super) fn time(tlv: Tlv<'_>) -> Result<(jiff::Timestamp, bool), Malformed> {
    const BAD: Malformed = Malformed("a time cannot be read");
    let text = std::str::from_utf8(tlv.value).map_err(|_| BAD)?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, zone) = text.split_at(digits);
    let two = |at: usize| -> Result<i8, Malformed> {
        digits.get(at..at + 2).and_then(|d| d.parse().ok()).ok_or(BAD)
    };
    let (year, at) = match tlv.tag {
        // RFC 5280, 4.1.2.5.1: 50 and above mean 19xx.
        UTC_TIME => match i16::from(two(0)?) {
            year @ 50.. => (1900 + year, 2),
            year => (2000 + year, 2),
        },
        GENERALIZED_TIME => {
            (digits.get(..4).and_then(|year| year.parse::<i16>().ok()).ok_or(BAD)?, 4)
        }
        _ => return Err(Malformed("a time has the wrong type")),
    };
    let (seconds, strict) = match digits.len() - at {
        10 => (two(at + 8)?, true),
        8 => (0, false),
        _ => return Err(BAD),
    };
    let local = jiff::civil::DateTime::new(
        year,
        two(at)?,
        two(at + 2)?,
        two(at + 4)?,
        two(at + 6)?,
        seconds,
        0,
    )
    .map_err(|_| BAD)?;
    let (offset, utc) = match zone.as_bytes() {
        b"Z" => (0, true),
        [sign @ (b'+' | b'-'), a, b, c, d] if [a, b, c, d].iter().all(|d| d.is_ascii_digit()) => {
            let number = |tens: u8, ones: u8| i32::from(tens - b'0') * 10 + i32::from(ones - b'0');
            let seconds = number(*a, *b) * 3600 + number(*c, *d) * 60;
            (if *sign == b'+' { seconds } else { -seconds }, false)
        }
        _ => return Err(BAD),
    };
    let offset = jiff::tz::Offset::from_seconds(offset).map_err(|_| BAD)?;
    let at = match offset.to_timestamp(local) {
        Ok(at) => at,
        // "No well-defined expiration" (4.1.2.5) is one day after jiff's maximum.
        Err(_) if year == 9999 => jiff::Timestamp::MAX,
        Err(_) => return Err(BAD),
    };
    Ok((at, strict && utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_the_input_does_not_cover_are_refused() {
        assert_eq!(Reader(&[0x30, 0x82, 0x00, 0x01, 0x05]).next().unwrap().value, [5]);
        for bad in [
            &[0x30][..],
            &[0x30, 0x01],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
            &[0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x1f, 0x01, 0x00],
        ] {
            assert!(Reader(bad).next().is_err(), "{bad:02x?}");
        }
    }

    #[test]
    fn times_are_read_in_all_their_forms() {
        for (tag, text, seconds, strict) in [
            (UTC_TIME, "700101000001Z", 1, true),
            (UTC_TIME, "500101000000Z", -631_152_000, true),
            (UTC_TIME, "491231235959Z", 2_524_607_999, true),
            (GENERALIZED_TIME, "99991231235959Z", jiff::Timestamp::MAX.as_second(), true),
            (UTC_TIME, "7001010100+0100", 0, false),
        ] {
            let tlv = Tlv { tag, value: text.as_bytes(), whole: &[] };
            let (at, is_strict) = time(tlv).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((at.as_second(), is_strict), (seconds, strict), "{text}");
        }
        for text in ["", "Z", "700101000061Z", "7013010000Z", "700101000000", "70010100000Z", "é00"]
        {
            let tlv = Tlv { tag: UTC_TIME, value: text.as_bytes(), whole: &[] };
            assert!(time(tlv).is_err(), "{text}");
        }
    }
}
