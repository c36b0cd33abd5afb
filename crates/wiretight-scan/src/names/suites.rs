//! Cipher suites. The registry's name of a suite says all about it, so the tables hold numbers and
//! names alone.

use std::sync::LazyLock;

/// A cipher suite of SSL 3.0 and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Suite {
    /// As it stands on the wire.
    pub code: u16,
    /// As IANA's registry, or who made it up, has it: `TLS_RSA_WITH_AES_128_CBC_SHA`.
    pub name: &'static str,
}

/// How the key is agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say it")]
pub enum KeyExchange {
    /// TLS 1.3: by group, not by suite.
    Any,
    Ecdhe,
    Dhe,
    /// RSA key transport.
    Rsa,
    /// Static Diffie-Hellman, of a certificate.
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

/// What encrypts the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say it")]
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

/// All that is known, by number.
pub fn suites() -> &'static [Suite] {
    static ALL: LazyLock<Vec<Suite>> = LazyLock::new(|| {
        lines(include_str!("suites.txt"))
            .filter_map(|(code, name)| Some(Suite { code: u16::try_from(code).ok()?, name }))
            .collect()
    });
    &ALL
}

/// Cipher kinds of SSL 2.0 (three bytes each).
pub static SSL2_SUITES: LazyLock<Vec<(u32, &'static str)>> =
    LazyLock::new(|| lines(include_str!("ssl2.txt")).collect());

fn lines(text: &'static str) -> impl Iterator<Item = (u32, &'static str)> {
    text.lines().filter_map(|line| {
        let (code, name) = line.split_once(' ')?;
        Some((u32::from_str_radix(code, 16).ok()?, name))
    })
}

impl Suite {
    /// The suite of a number.
    pub fn from_code(code: u16) -> Option<Self> {
        let all = suites();
        all.binary_search_by_key(&code, |suite| suite.code).ok().map(|at| all[at])
    }

    /// The suite of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        suites().iter().copied().find(|suite| suite.name == name)
    }

    /// Whether it belongs to TLS 1.3, where a suite names cipher and hash alone.
    pub fn is_tls1_3(self) -> bool {
        !self.name.contains("_WITH_")
    }

    /// Before and after `_WITH_`.
    fn halves(self) -> (&'static str, &'static str) {
        let name = self.name.strip_prefix("TLS_").unwrap_or(self.name);
        name.split_once("_WITH_").unwrap_or(("", name))
    }

    /// How the key is agreed.
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

    /// Whether nobody proves who they are.
    pub fn is_anonymous(self) -> bool {
        self.halves().0.contains("anon")
    }

    /// Whether it was made for export, with 40 or 56 bits of key and 512 or 1024 of exchange.
    pub fn is_export(self) -> bool {
        self.halves().0.contains("EXPORT")
    }

    /// Whether what was sent stays secret when the server's long-lived key leaks.
    pub fn is_forward_secret(self) -> bool {
        use KeyExchange::*;
        matches!(self.key_exchange(), Any | Ecdhe | Dhe | DhePsk | EcdhePsk)
    }

    /// Whether the server's certificate has an RSA key; `None` where the suite does not say.
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

    /// What encrypts the data.
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

    /// Bits of the cipher's key.
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

    /// Whether it encrypts block by block, each chained to the one before.
    pub fn is_cbc(self) -> bool {
        self.halves().1.split('_').any(|part| part == "CBC")
    }

    /// Whether encryption and authentication are one (AEAD).
    pub fn is_aead(self) -> bool {
        let cipher = self.halves().1;
        let aead = ["GCM", "CCM", "POLY1305", "AEGIS", "MGM"];
        aead.iter().any(|mode| cipher.contains(mode)) || self.bulk() == Bulk::Aegis
    }

    /// Whether its blocks have 64 bits.
    pub fn has_small_blocks(self) -> bool {
        use Bulk::*;
        matches!(self.bulk(), Rc2 | Des40 | Des | TripleDes | Idea)
            || self.bulk() == Gost && !self.name.contains("KUZNYECHIK")
    }

    /// Whether it needs TLS 1.2: AEAD, or a MAC or PRF of SHA-2.
    pub fn needs_tls1_2(self) -> bool {
        let cipher = self.halves().1;
        self.is_aead() || cipher.ends_with("SHA256") || cipher.ends_with("SHA384")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_suite_is() {
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
