//! Key-exchange groups (IANA, TLS Supported Groups).

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    pub code: u16,
    /// The name in the registry.
    pub name: &'static str,
    pub kind: GroupKind,
    /// Bits of security against classical computers (NIST SP 800-57).
    pub bits: u16,
}

/// The type of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    Elliptic,
    /// An RFC 7919 group.
    FiniteField,
    /// ML-KEM or a predecessor, without a curve.
    PostQuantum,
    /// A post-quantum scheme combined with a curve.
    Hybrid,
}

impl Group {
    pub fn from_code(code: u16) -> Option<Self> {
        GROUPS.iter().copied().find(|group| group.code == code)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        GROUPS.iter().copied().find(|group| group.name == name)
    }

    /// Whether it protects recorded traffic against quantum computers.
    pub fn is_post_quantum(self) -> bool {
        matches!(self.kind, GroupKind::PostQuantum | GroupKind::Hybrid)
    }
}

const fn group(code: u16, name: &'static str, kind: GroupKind, bits: u16) -> Group {
    Group { code, name, kind, bits }
}

/// All groups to test. Those of TLS 1.3 come first, in the order in which current servers
/// prefer them.
pub const GROUPS: &[Group] = {
    use GroupKind::*;
    &[
        group(0x11ec, "X25519MLKEM768", Hybrid, 128),
        group(0x11eb, "SecP256r1MLKEM768", Hybrid, 128),
        group(0x11ed, "SecP384r1MLKEM1024", Hybrid, 192),
        group(0x11ee, "curveSM2MLKEM768", Hybrid, 128),
        group(0x0200, "MLKEM512", PostQuantum, 128),
        group(0x0201, "MLKEM768", PostQuantum, 192),
        group(0x0202, "MLKEM1024", PostQuantum, 256),
        group(0x6399, "X25519Kyber768Draft00", Hybrid, 128),
        group(0x639a, "SecP256r1Kyber768Draft00", Hybrid, 128),
        group(0x001d, "x25519", Elliptic, 128),
        group(0x0017, "secp256r1", Elliptic, 128),
        group(0x001e, "x448", Elliptic, 224),
        group(0x0018, "secp384r1", Elliptic, 192),
        group(0x0019, "secp521r1", Elliptic, 256),
        group(0x001f, "brainpoolP256r1tls13", Elliptic, 128),
        group(0x0020, "brainpoolP384r1tls13", Elliptic, 192),
        group(0x0021, "brainpoolP512r1tls13", Elliptic, 256),
        group(0x0029, "curveSM2", Elliptic, 128),
        group(0x0100, "ffdhe2048", FiniteField, 112),
        group(0x0101, "ffdhe3072", FiniteField, 128),
        group(0x0102, "ffdhe4096", FiniteField, 152),
        group(0x0103, "ffdhe6144", FiniteField, 176),
        group(0x0104, "ffdhe8192", FiniteField, 200),
        // TLS 1.2 and earlier.
        group(0x001a, "brainpoolP256r1", Elliptic, 128),
        group(0x001b, "brainpoolP384r1", Elliptic, 192),
        group(0x001c, "brainpoolP512r1", Elliptic, 256),
        group(0x0016, "secp256k1", Elliptic, 128),
        group(0x0015, "secp224r1", Elliptic, 112),
        group(0x0014, "secp224k1", Elliptic, 112),
        group(0x0013, "secp192r1", Elliptic, 96),
        group(0x0012, "secp192k1", Elliptic, 96),
        group(0x0011, "secp160r2", Elliptic, 80),
        group(0x0010, "secp160r1", Elliptic, 80),
        group(0x000f, "secp160k1", Elliptic, 80),
        group(0x000e, "sect571r1", Elliptic, 256),
        group(0x000d, "sect571k1", Elliptic, 256),
        group(0x000c, "sect409r1", Elliptic, 192),
        group(0x000b, "sect409k1", Elliptic, 192),
        group(0x000a, "sect283r1", Elliptic, 128),
        group(0x0009, "sect283k1", Elliptic, 128),
        group(0x0008, "sect239k1", Elliptic, 112),
        group(0x0007, "sect233r1", Elliptic, 112),
        group(0x0006, "sect233k1", Elliptic, 112),
        group(0x0005, "sect193r2", Elliptic, 96),
        group(0x0004, "sect193r1", Elliptic, 96),
        group(0x0003, "sect163r2", Elliptic, 80),
        group(0x0002, "sect163r1", Elliptic, 80),
        group(0x0001, "sect163k1", Elliptic, 80),
        group(0x0022, "GC256A", Elliptic, 128),
        group(0x0023, "GC256B", Elliptic, 128),
        group(0x0024, "GC256C", Elliptic, 128),
        group(0x0025, "GC256D", Elliptic, 128),
        group(0x0026, "GC512A", Elliptic, 256),
        group(0x0027, "GC512B", Elliptic, 256),
        group(0x0028, "GC512C", Elliptic, 256),
    ]
};
