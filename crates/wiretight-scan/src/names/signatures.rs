//! Signature schemes (IANA, TLS SignatureScheme), and the older pairs of hash and signature of
//! TLS 1.2.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignatureScheme {
    pub code: u16,
    /// The name in the registry.
    pub name: &'static str,
}

impl SignatureScheme {
    pub fn from_code(code: u16) -> Option<Self> {
        SCHEMES.iter().copied().find(|scheme| scheme.code == code)
    }

    /// Whether its hash is broken for signatures (RFC 9155).
    pub fn is_weak(self) -> bool {
        matches!(self.code >> 8, 1 | 2)
    }
}

const fn scheme(code: u16, name: &'static str) -> SignatureScheme {
    SignatureScheme { code, name }
}

/// All schemes to test.
pub const SCHEMES: &[SignatureScheme] = &[
    scheme(0x0904, "mldsa44"),
    scheme(0x0905, "mldsa65"),
    scheme(0x0906, "mldsa87"),
    scheme(0x0807, "ed25519"),
    scheme(0x0808, "ed448"),
    scheme(0x0403, "ecdsa_secp256r1_sha256"),
    scheme(0x0503, "ecdsa_secp384r1_sha384"),
    scheme(0x0603, "ecdsa_secp521r1_sha512"),
    scheme(0x081a, "ecdsa_brainpoolP256r1tls13_sha256"),
    scheme(0x081b, "ecdsa_brainpoolP384r1tls13_sha384"),
    scheme(0x081c, "ecdsa_brainpoolP512r1tls13_sha512"),
    scheme(0x0804, "rsa_pss_rsae_sha256"),
    scheme(0x0805, "rsa_pss_rsae_sha384"),
    scheme(0x0806, "rsa_pss_rsae_sha512"),
    scheme(0x0809, "rsa_pss_pss_sha256"),
    scheme(0x080a, "rsa_pss_pss_sha384"),
    scheme(0x080b, "rsa_pss_pss_sha512"),
    scheme(0x0401, "rsa_pkcs1_sha256"),
    scheme(0x0501, "rsa_pkcs1_sha384"),
    scheme(0x0601, "rsa_pkcs1_sha512"),
    scheme(0x0708, "sm2sig_sm3"),
    scheme(0x0303, "ecdsa_sha224"),
    scheme(0x0301, "rsa_pkcs1_sha224"),
    scheme(0x0203, "ecdsa_sha1"),
    scheme(0x0201, "rsa_pkcs1_sha1"),
    scheme(0x0101, "rsa_pkcs1_md5"),
    scheme(0x0602, "dsa_sha512"),
    scheme(0x0502, "dsa_sha384"),
    scheme(0x0402, "dsa_sha256"),
    scheme(0x0302, "dsa_sha224"),
    scheme(0x0202, "dsa_sha1"),
];
