//! The pseudo-headers of an HTTP/3 request, as they stand in its encoded head (RFC 9204, section 4.5): each once, and
//! before all other fields (RFC 9114, section 4.3). Pure.

/// What a request may have, and `:status`, which it may not.
const NAMES: [&[u8]; 6] =
    [b":authority", b":method", b":path", b":protocol", b":scheme", b":status"];
const STATUS: usize = 5;

/// Which of [`NAMES`] an entry of the static table has (RFC 9204, appendix A).
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

/// The code of a character of [`NAMES`] and its length in bits (RFC 7541, appendix B).
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

/// Whether that is the name in Huffman code.
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
    // Filled up with ones.
    let last = (bits << (8 - n)) as u8 | (0xff >> n);
    (n == 0 || at.next() == Some(&last)) && at.next().is_none()
}

/// Takes an integer whose first byte has so many bits of it (RFC 7541, section 5.1).
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

/// Takes a string whose length has so many bits in its first byte, the one before those says whether it is in Huffman
/// code.
fn string<'a>(block: &mut &'a [u8], bits: u32) -> Option<(bool, &'a [u8])> {
    let huffman = block.first()? >> bits & 1 == 1;
    let length = integer(block, bits)?;
    let (string, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some((huffman, string))
}

/// A field's name.
enum Name {
    Pseudo(usize),
    Other,
}

/// Takes one field.
fn field(block: &mut &[u8]) -> Option<Name> {
    let first = *block.first()?;
    let in_table = |index| in_table(index).map_or(Name::Other, Name::Pseudo);
    if first & 0x80 != 0 {
        // Indexed; there is no dynamic table.
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

/// Whether the pseudo-headers of a request's encoded head are in order.
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

    /// A head: two bytes before it.
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
    /// RFC 7541, appendix B, by another hand.
    const BY_HUFFMAN: &[u8] = &[0x2c, 0xb9, 0x58, 0xd3, 0x3f, 0x01, b'/'];
    const OTHER: &[u8] = b"\x21x\x01y";

    #[test]
    fn each_comes_once_and_before_all_others() {
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
    fn what_is_cut_off_is_not_well_formed() {
        let whole = head(&[METHOD, SCHEME, AUTHORITY, BY_HUFFMAN]);
        for cut in [0, 1, 5, 6, whole.len() - 1, whole.len() - 2, whole.len() - 5] {
            assert!(!is_well_formed(&whole[..cut]), "{cut}");
        }
    }
}
