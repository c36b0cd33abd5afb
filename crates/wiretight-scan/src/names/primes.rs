//! Diffie-Hellman primes that many servers share, by the first half of their SHA-256. Breaking one of
//! them breaks the connections of all these servers (Logjam, 2015).

/// The name of a common prime, given without leading zeros.
pub fn common_prime(p: &[u8]) -> Option<&'static str> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, p);
    let hex: String = digest.as_ref()[..16].iter().map(|b| format!("{b:02x}")).collect();
    include_str!("primes.txt").lines().find_map(|line| {
        let (hash, rest) = line.split_once(' ')?;
        (hash == hex).then_some(rest.split_once(' ')?.1)
    })
}
