//! Primes of finite-field Diffie-Hellman that many servers share, by the first half of their
//! SHA-256: whoever does the work for one of them reads all of those servers (Logjam, 2015).

/// The name of a prime that is given without leading zeros, where it is a common one.
pub fn common_prime(p: &[u8]) -> Option<&'static str> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, p);
    let hex: String = digest.as_ref()[..16].iter().map(|b| format!("{b:02x}")).collect();
    include_str!("primes.txt").lines().find_map(|line| {
        let (hash, rest) = line.split_once(' ')?;
        (hash == hex).then_some(rest.split_once(' ')?.1)
    })
}
