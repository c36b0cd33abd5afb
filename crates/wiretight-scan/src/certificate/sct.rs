//! Counts signed certificate timestamps (RFC 6962, 3.2 and 3.3). Verifying them would require a browser's
//! list of logs.

use super::encoding::Malformed;

/// The maximum number of timestamps to count.
const MOST: usize = 100;

/// The well-formed timestamps of a SignedCertificateTimestampList.
pub(super) fn count(list: &[u8]) -> Result<usize, Malformed> {
    let (mut rest, after) = vector(list).ok_or(Malformed("the list of timestamps is truncated"))?;
    if !after.is_empty() {
        return Err(Malformed("bytes follow the list of timestamps"));
    }
    let mut count = 0;
    while !rest.is_empty() {
        let (timestamp, next) = vector(rest).ok_or(Malformed("a timestamp is truncated"))?;
        rest = next;
        if !is_timestamp(timestamp) {
            return Err(Malformed("a timestamp does not have the format of RFC 6962"));
        }
        count += 1;
        if count == MOST {
            break;
        }
    }
    Ok(count)
}

/// Whether it has version 1, a log ID, a time, extensions and a signature.
fn is_timestamp(timestamp: &[u8]) -> bool {
    let Some((head, rest)) = timestamp.split_at_checked(1 + 32 + 8) else { return false };
    let Some((_extensions, rest)) = vector(rest) else { return false };
    let signature = rest.split_at_checked(2).and_then(|(_algorithm, rest)| vector(rest));
    head[0] == 0
        && signature.is_some_and(|(signature, after)| !signature.is_empty() && after.is_empty())
}

/// A vector with a length of two bytes, and the rest.
fn vector(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_timestamps_count() {
        let mut timestamp = vec![0; 41];
        timestamp.extend_from_slice(&[0, 0, 4, 3, 0, 1, 9]);
        let entry = [&[0, 48][..], &timestamp].concat();
        assert_eq!(count(&[&[0, 100][..], &entry, &entry].concat()), Ok(2));
        assert_eq!(count(&[0, 0]), Ok(0));
        for bad in [
            &[][..],
            &[0, 1],
            &[0, 2, 0, 1],
            &[0, 0, 0],
            &[&[0, 50][..], &[0, 48, 1], &timestamp[1..]].concat(),
            &[&[0, 49][..], &[0, 47], &timestamp[..47]].concat(),
        ] {
            assert!(count(bad).is_err(), "{bad:?}");
        }
    }
}
