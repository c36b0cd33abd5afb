//! Cipher suites. The name of a suite in the registry contains all its properties, so the tables contain only
//! numbers and names.

use std::sync::LazyLock;

/// A cipher suite of SSL 3.0 or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Suite {
    pub code: u16,
    /// The name in the IANA registry, or by its inventors: `TLS_RSA_WITH_AES_128_CBC_SHA`.
    pub name: &'static str,
}

/// A key-exchange method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyExchange {
    /// TLS 1.3: depends on the group, not on the suite.
    Any,
    Ecdhe,
    Dhe,
    /// RSA key transport.
    Rsa,
    /// Static Diffie-Hellman with a key in the certificate.
    Dh,
    Ecdh,
    Psk,
    DhePsk,
    EcdhePsk,
    RsaPsk,
    Srp,
    Krb5,
    Gost,
    /// CECPQ1, ECCPWD.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bulk {
    Null,
    Rc4,
    Rc2,
    Des40,
    Des,
    TripleDes,
    Idea,
    Seed,
    Aes,
    Camellia,
    Aria,
    ChaCha20,
    Sm4,
    Aegis,
    Gost,
}

/// All known suites, by number.
pub fn suites() -> &'static [Suite] {
    static ALL: LazyLock<Vec<Suite>> = LazyLock::new(|| {
        lines(include_str!("suites.txt"))
            .filter_map(|(code, name)| Some(Suite { code: u16::try_from(code).ok()?, name }))
            .collect()
    });
    &ALL
}

/// The ciphers of SSL 2.0 (three bytes each).
pub static SSL2_SUITES: LazyLock<Vec<(u32, &'static str)>> =
    LazyLock::new(|| lines(include_str!("ssl2.txt")).collect());

fn lines(text: &'static str) -> impl Iterator<Item = (u32, &'static str)> {
    text.lines().filter_map(|line| {
        let (code, name) = line.split_once(' ')?;
        Some((u32::from_str_radix(code, 16).ok()?, name))
    })
}

impl Suite {
    pub fn from_code(code: u16) -> Option<Self> {
        let all = suites();
        all.binary_search_by_key(&code, |suite| suite.code).ok().map(|at| all[at])
    }

    pub fn from_name(name: &str) -> Option<Self> {
        suites().iter().copied().find(|suite| suite.name == name)
    }

    /// Whether it is a TLS 1.3 suite, which names only cipher and hash.
    pub fn is_tls1_3(self) -> bool {
        !self.name.contains("_WITH_")
    }

    /// The parts of the name before and after `_WITH_`.
    fn halves(self) -> (&'static str, &'static str) {
        let name = self.name.strip_prefix("TLS_").unwrap_or(self.name);
        name.split_once("_WITH_").unwrap_or(("", name))
    }

    pub fn key_exchange(self) -> KeyExchange {
        let kx = self.halves().0;
        let first = kx.split('_').next().unwrap_or_default();
        match first {
            "" => KeyExchange::Any,
            "ECDHE" if kx.contains("PSK") => KeyExchange::EcdhePsk,
            "ECDHE" => KeyExchange::Ecdhe,
            "DHE" if kx.contains("PSK") => KeyExchange::DhePsk,
            "DHE" => KeyExchange::Dhe,
            "DH" if kx.contains("anon") => KeyExchange::Dhe,
            "ECDH" if kx.contains("anon") => KeyExchange::Ecdhe,
            "DH" => KeyExchange::Dh,
            "ECDH" => KeyExchange::Ecdh,
            "PSK" if kx.contains("DHE") => KeyExchange::DhePsk,
            "PSK" => KeyExchange::Psk,
            "RSA" if kx.contains("PSK") => KeyExchange::RsaPsk,
            "RSA" => KeyExchange::Rsa,
            "SRP" => KeyExchange::Srp,
            "KRB5" => KeyExchange::Krb5,
            _ if first.starts_with("GOST") => KeyExchange::Gost,
            _ => KeyExchange::Other,
        }
    }

    /// Whether neither side is authenticated.
    pub fn is_anonymous(self) -> bool {
        self.halves().0.contains("anon")
    }

    /// Whether it is an export suite: keys of 40 or 56 bits, key exchange with 512 or 1024 bits.
    pub fn is_export(self) -> bool {
        self.halves().0.contains("EXPORT")
    }

    /// Whether recorded traffic stays secret if the server's long-term key leaks.
    pub fn is_forward_secret(self) -> bool {
        use KeyExchange::*;
        matches!(self.key_exchange(), Any | Ecdhe | Dhe | DhePsk | EcdhePsk)
    }

    /// The type of the key in the server's certificate; `None` if the suite does not determine it.
    pub fn authentication(self) -> Option<&'static str> {
        let kx = self.halves().0;
        let last = kx.strip_suffix("_EXPORT").or(kx.strip_suffix("_EXPORT1024")).unwrap_or(kx);
        match last.rsplit('_').next() {
            Some("RSA") => Some("rsa"),
            Some("ECDSA") => Some("ecdsa"),
            Some("DSS") => Some("dsa"),
            Some("anon") => Some("none"),
            Some("PSK") if kx.starts_with("RSA") => Some("rsa"),
            Some("PSK") => Some("psk"),
            _ => None,
        }
    }

    pub fn bulk(self) -> Bulk {
        let cipher = self.halves().1;
        let by_prefix = [
            ("NULL", Bulk::Null),
            ("RC4", Bulk::Rc4),
            ("RC2", Bulk::Rc2),
            ("DES40", Bulk::Des40),
            ("DES_CBC_40", Bulk::Des40),
            ("DES", Bulk::Des),
            ("3DES", Bulk::TripleDes),
            ("IDEA", Bulk::Idea),
            ("SEED", Bulk::Seed),
            ("AES", Bulk::Aes),
            ("CAMELLIA", Bulk::Camellia),
            ("ARIA", Bulk::Aria),
            ("CHACHA20", Bulk::ChaCha20),
            ("SM4", Bulk::Sm4),
            ("AEGIS", Bulk::Aegis),
        ];
        let found = by_prefix.iter().find(|(prefix, _)| cipher.starts_with(prefix));
        found.map_or(Bulk::Gost, |(_, bulk)| *bulk)
    }

    pub fn bits(self) -> u16 {
        let (kx, cipher) = self.halves();
        let has = |part: &str| cipher.split('_').any(|p| p == part);
        match self.bulk() {
            Bulk::Null => 0,
            Bulk::Des40 => 40,
            Bulk::Rc4 | Bulk::Rc2 if has("40") => 40,
            Bulk::Rc4 if has("56") || kx.contains("EXPORT1024") => 56,
            Bulk::Rc2 if has("56") => 56,
            Bulk::Des => 56,
            Bulk::TripleDes => 112,
            Bulk::ChaCha20 | Bulk::Gost => 256,
            _ if has("256") => 256,
            _ => 128,
        }
    }

    pub fn is_cbc(self) -> bool {
        self.halves().1.split('_').any(|part| part == "CBC")
    }

    pub fn is_aead(self) -> bool {
        let cipher = self.halves().1;
        let aead = ["GCM", "CCM", "POLY1305", "AEGIS", "MGM"];
        aead.iter().any(|mode| cipher.contains(mode)) || self.bulk() == Bulk::Aegis
    }

    /// Whether its cipher has 64-bit blocks.
    pub fn has_small_blocks(self) -> bool {
        use Bulk::*;
        matches!(self.bulk(), Rc2 | Des40 | Des | TripleDes | Idea)
            || self.bulk() == Gost && !self.name.contains("KUZNYECHIK")
    }

    /// Whether it requires TLS 1.2: AEAD, or SHA-2 in MAC or PRF.
    pub fn needs_tls1_2(self) -> bool {
        let cipher = self.halves().1;
        self.is_aead() || cipher.ends_with("SHA256") || cipher.ends_with("SHA384")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_properties_of_a_suite_follow_from_its_name() {
        let suite = |name| Suite::from_name(name).unwrap_or_else(|| panic!("{name}"));
        assert!(suites().windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(suites().len() > 350);
        let s = suite("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
        assert_eq!((s.code, s.bits(), s.bulk()), (0xc02f, 128, Bulk::Aes));
        assert!(s.is_forward_secret() && s.is_aead() && !s.is_cbc() && s.needs_tls1_2());
        let s = suite("TLS_RSA_EXPORT_WITH_RC4_40_MD5");
        assert!(s.is_export() && s.bits() == 40 && s.key_exchange() == KeyExchange::Rsa);
        let s = suite("TLS_DH_anon_WITH_3DES_EDE_CBC_SHA");
        assert!(s.is_anonymous() && s.bits() == 112 && s.has_small_blocks() && s.is_cbc());
        let s = suite("TLS_CHACHA20_POLY1305_SHA256");
        assert!(s.is_tls1_3() && s.bits() == 256 && s.is_aead());
        assert_eq!(suite("TLS_RSA_WITH_AES_256_CCM_8").authentication(), Some("rsa"));
        assert_eq!(suite("TLS_DHE_DSS_WITH_AES_256_CBC_SHA").authentication(), Some("dsa"));
        assert_eq!(suite("TLS_RSA_EXPORT1024_WITH_RC4_56_SHA").bits(), 56);
        assert_eq!(suite("TLS_RSA_WITH_NULL_SHA256").bits(), 0);
    }
}
