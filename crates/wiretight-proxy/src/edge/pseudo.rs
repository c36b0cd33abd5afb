//! Checks the pseudo-headers in the encoded head of an HTTP/3 request (RFC 9204, section 4.5): each occurs at most
//! once, and before all other fields (RFC 9114, section 4.3). No I/O.

/// The pseudo-headers of requests, and `:status`, which is not allowed in a request.
const NAMES: [&[u8]; 6] =
    [b":authority", b":method", b":path", b":protocol", b":scheme", b":status"];
const STATUS: usize = 5;

/// The index in [`NAMES`] of an entry of the static table (RFC 9204, appendix A).
fn in_table(index: usize) -> Option<usize> {
    match index {
        0 => Some(0),
        15..=21 => Some(1),
        1 => Some(2),
        22 | 23 => Some(4),
        24..=28 | 63..=71 => Some(STATUS),
        _ => None,
    }
}

/// The Huffman code of a character in [`NAMES`], and its length in bits (RFC 7541, appendix B).
fn code(byte: u8) -> (u32, u32) {
    match byte {
        b':' => (0x5c, 7),
        b'a' => (0x3, 5),
        b'c' => (0x4, 5),
        b'd' => (0x24, 6),
        b'e' => (0x5, 5),
        b'h' => (0x27, 6),
        b'i' => (0x6, 5),
        b'l' => (0x28, 6),
        b'm' => (0x29, 6),
        b'o' => (0x7, 5),
        b'p' => (0x2b, 6),
        b'r' => (0x2c, 6),
        b's' => (0x8, 5),
        b't' => (0x9, 5),
        b'u' => (0x2d, 6),
        _ => (0x7a, 7), // y
    }
}

/// Whether `coded` is the Huffman code of the name.
fn is_huffman_of(coded: &[u8], name: &[u8]) -> bool {
    let (mut bits, mut n, mut at) = (0u32, 0, coded.iter());
    for byte in name {
        let (code, length) = code(*byte);
        (bits, n) = (bits << length | code, n + length);
        while n >= 8 {
            n -= 8;
            if at.next() != Some(&((bits >> n) as u8)) {
                return false;
            }
        }
    }
    // Padded with ones.
    let last = (bits << (8 - n)) as u8 | (0xff >> n);
    (n == 0 || at.next() == Some(&last)) && at.next().is_none()
}

/// Parses an integer with a prefix of `bits` bits in its first byte (RFC 7541, section 5.1).
fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let (first, mut rest) = block.split_first()?;
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for shift in (0..28).step_by(7) {
            let (next, after) = rest.split_first()?;
            rest = after;
            value += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *block = rest;
                return Some(value);
            }
        }
        return None;
    }
    *block = rest;
    Some(value)
}

/// Parses a string. Its length has a prefix of `bits` bits in the first byte; the bit before that tells whether it is
/// Huffman-coded.
fn string<'a>(block: &mut &'a [u8], bits: u32) -> Option<(bool, &'a [u8])> {
    let huffman = block.first()? >> bits & 1 == 1;
    let length = integer(block, bits)?;
    let (string, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some((huffman, string))
}

enum Name {
    Pseudo(usize),
    Other,
}

/// Parses one field.
fn field(block: &mut &[u8]) -> Option<Name> {
    let first = *block.first()?;
    let in_table = |index| in_table(index).map_or(Name::Other, Name::Pseudo);
    if first & 0x80 != 0 {
        // Indexed, which must be the static table because there is no dynamic one.
        return (first & 0x40 != 0).then(|| integer(block, 6).map(in_table))?;
    }
    let name = if first & 0x40 != 0 {
        (first & 0x10 != 0).then(|| integer(block, 4).map(in_table))??
    } else if first & 0x20 != 0 {
        let (huffman, name) = string(block, 3)?;
        let is = |known: &&&[u8]| match huffman {
            true => is_huffman_of(name, known),
            false => name == **known,
        };
        let begins = name.first().is_some_and(|b| match huffman {
            true => b >> 1 == 0x5c,
            false => *b == b':',
        });
        match NAMES.iter().enumerate().find(|(_, known)| is(known)) {
            Some((which, _)) => Name::Pseudo(which),
            None if begins => return None,
            None => Name::Other,
        }
    } else {
        return None;
    };
    string(block, 7)?;
    Some(name)
}

/// Whether the pseudo-headers in a request's encoded head are valid.
pub fn is_well_formed(mut block: &[u8]) -> bool {
    // Required Insert Count and Delta Base.
    if integer(&mut block, 8).is_none() || integer(&mut block, 7).is_none() {
        return false;
    }
    let (mut seen, mut others) = ([false; NAMES.len()], false);
    while !block.is_empty() {
        match field(&mut block) {
            Some(Name::Pseudo(which)) => {
                if others || which == STATUS || std::mem::replace(&mut seen[which], true) {
                    return false;
                }
            }
            Some(Name::Other) => others = true,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An encoded head, with its two-byte prefix.
    fn head(fields: &[&[u8]]) -> Vec<u8> {
        [&[0, 0], fields.concat().as_slice()].concat()
    }

    const METHOD: &[u8] = &[0xc0 | 17]; // GET
    const SCHEME: &[u8] = &[0xc0 | 23];
    const PATH: &[u8] = &[0xc0 | 1];
    const AUTHORITY: &[u8] = b"\x50\x01a";
    const ACCEPT: &[u8] = &[0xc0 | 29];
    const STATUS_200: &[u8] = &[0xc0 | 25];
    const BY_NAME: &[u8] = b"\x25:path\x01/";
    /// RFC 7541, appendix B, encoded independently.
    const BY_HUFFMAN: &[u8] = &[0x2c, 0xb9, 0x58, 0xd3, 0x3f, 0x01, b'/'];
    const OTHER: &[u8] = b"\x21x\x01y";

    #[test]
    fn pseudo_headers_must_be_unique_and_first() {
        for good in [
            &[METHOD, SCHEME, AUTHORITY, PATH][..],
            &[METHOD, SCHEME, AUTHORITY, PATH, ACCEPT, OTHER],
            &[BY_NAME, AUTHORITY, SCHEME, METHOD, OTHER],
            &[BY_HUFFMAN, METHOD, SCHEME, OTHER, OTHER],
        ] {
            assert!(is_well_formed(&head(good)), "{good:?}");
        }
        for bad in [
            &[METHOD, METHOD, SCHEME, PATH][..],
            &[METHOD, SCHEME, PATH, PATH],
            &[METHOD, SCHEME, PATH, BY_NAME],
            &[METHOD, SCHEME, PATH, BY_HUFFMAN],
            &[METHOD, SCHEME, BY_NAME, BY_HUFFMAN],
            &[METHOD, SCHEME, AUTHORITY, PATH, AUTHORITY],
            &[METHOD, SCHEME, PATH, ACCEPT, AUTHORITY],
            &[METHOD, SCHEME, OTHER, PATH],
            &[METHOD, SCHEME, PATH, STATUS_200],
            &[METHOD, SCHEME, PATH, b"\x22:x\x01y"],
            &[b"\x80"],
            &[b"\x10"],
        ] {
            assert!(!is_well_formed(&head(bad)), "{bad:?}");
        }
    }

    #[test]
    fn truncated_heads_are_not_well_formed() {
        let whole = head(&[METHOD, SCHEME, AUTHORITY, BY_HUFFMAN]);
        for cut in [0, 1, 5, 6, whole.len() - 1, whole.len() - 2, whole.len() - 5] {
            assert!(!is_well_formed(&whole[..cut]), "{cut}");
        }
    }
}
