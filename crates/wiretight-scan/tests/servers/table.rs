//! The table of servers.

use std::time::Duration;

use wiretight_scan::Start;

use super::hostile::Play;
use super::proxies::Trouble;
use super::{Config, How, Kind};

pub fn all() -> Vec<Config> {
    let mut all = Vec::new();
    let mut add = |name, kind, start, how| all.push(Config { name, kind, start, how });

    for (name, arguments) in OPENSSL {
        add(name, Kind::Real, Start::Https, How::Openssl(arguments));
    }
    for (name, priority, arguments) in GNUTLS {
        add(name, Kind::Real, Start::Https, How::Gnutls(priority, arguments));
    }
    for (name, server) in NGINX {
        add(name, Kind::Real, Start::Https, How::Nginx(server));
    }
    for (name, bind) in HAPROXY {
        add(name, Kind::Real, Start::Https, How::Haproxy(bind));
    }
    add(
        "node-default",
        Kind::Real,
        Start::Https,
        How::Node("cert: file('rsa.chain'), key: file('rsa.key')"),
    );
    add("postfix", Kind::Real, Start::Smtp, How::Postfix(""));
    add(
        "postfix-old",
        Kind::Real,
        Start::Smtp,
        How::Postfix(
            "smtpd_tls_protocols = >=TLSv1\nsmtpd_tls_ciphers = low\ntls_low_cipherlist = ALL:@SECLEVEL=0\n\
             smtpd_tls_mandatory_ciphers = low\ntls_preempt_cipherlist = yes",
        ),
    );
    add("dovecot-imap", Kind::Real, Start::Imap, How::Dovecot("imap", ""));
    add(
        "dovecot-pop3",
        Kind::Real,
        Start::Pop3,
        How::Dovecot("pop3", "ssl_min_protocol = TLSv1.3"),
    );
    add("postgres", Kind::Real, Start::Postgres, How::Postgres(&[]));
    add(
        "postgres-old",
        Kind::Real,
        Start::Postgres,
        How::Postgres(&[
            "ssl_min_protocol_version=TLSv1",
            "ssl_ciphers=ALL:@SECLEVEL=0",
            "ssl_ecdh_curve=secp384r1",
        ]),
    );
    add("mariadb", Kind::Real, Start::Mysql, How::Mariadb(&[]));
    add("slapd", Kind::Real, Start::Ldap, How::Slapd(""));
    for (name, kind, arguments) in TLSLITE {
        add(name, *kind, Start::Https, How::Python("tls.py", arguments));
    }
    for (name, kind, arguments) in OLD_OPENSSL {
        add(name, *kind, Start::Https, How::Python("old_openssl.py", arguments));
    }
    for (name, behind, trouble) in BEHIND {
        add(name, Kind::Odd, Start::Https, How::Behind(behind, *trouble));
    }
    add("plain-http", Kind::Odd, Start::Https, How::Played(Play::Http));
    add("plain-echo", Kind::Odd, Start::Https, How::Played(Play::Echo));
    add("plain-banner", Kind::Odd, Start::Https, How::Played(Play::Banner));
    add(
        "ipv6-only",
        Kind::Odd,
        Start::Https,
        How::Openssl("-www -cert rsa.pem -cert_chain ca.pem -key rsa.key"),
    );
    for (name, arguments) in RARE_TLS1_3 {
        add(name, Kind::Odd, Start::Https, How::Openssl(arguments));
    }
    for (name, play) in Play::HOSTILE {
        add(name, Kind::Hostile, Start::Https, How::Played(*play));
    }
    all
}

/// `openssl s_server`, OpenSSL 3.0.
const OPENSSL: &[(&str, &str)] = &[
    ("openssl-default", "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key"),
    (
        "openssl-tls1_0",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1 -cipher ALL:@SECLEVEL=0",
    ),
    (
        "openssl-tls1_1",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_1 -cipher ALL:@SECLEVEL=0",
    ),
    ("openssl-tls1_2", "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_2"),
    ("openssl-tls1_3", "-www -cert ecdsa.pem -cert_chain ca.pem -key ecdsa.key -tls1_3"),
    (
        "openssl-everything",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -dcert ecdsa.pem -dcert_chain ca.pem -dkey ecdsa.key \
         -dhparam dh1024.pem -cipher ALL:COMPLEMENTOFALL:@SECLEVEL=0",
    ),
    ("openssl-anonymous", "-www -nocert -cipher aNULL:@SECLEVEL=0 -no_tls1_3"),
    (
        "openssl-null",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -cipher eNULL:@SECLEVEL=0 -no_tls1_3",
    ),
    (
        "openssl-static-rsa",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -cipher kRSA -no_tls1_3",
    ),
    (
        "openssl-dhe-1024",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -cipher kDHE:@SECLEVEL=0 -no_tls1_3 -dhparam dh1024.pem",
    ),
    (
        "openssl-dhe-2048",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -cipher kDHE -no_tls1_3 -dhparam dh2048.pem",
    ),
    ("openssl-ecdsa", "-www -cert ecdsa.pem -cert_chain ca.pem -key ecdsa.key -no_tls1_3"),
    (
        "openssl-dual",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -dcert ecdsa.pem -dcert_chain ca.pem -dkey ecdsa.key",
    ),
    ("openssl-ed25519", "-www -cert ed25519.pem -cert_chain ca.pem -key ed25519.key"),
    (
        "openssl-server-order",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -serverpref -cipher \
         AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-GCM-SHA384",
    ),
    (
        "openssl-client-order",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -cipher \
         AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-GCM-SHA384",
    ),
    (
        "openssl-renegotiation",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_2 -legacy_renegotiation -client_renegotiation",
    ),
    ("openssl-no-ticket", "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_2 -no_ticket"),
    (
        "openssl-no-cache",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_2 -no_ticket -no_cache",
    ),
    ("openssl-stapled", "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -status_file ocsp.der"),
    ("openssl-must-staple", "-www -cert staple.pem -cert_chain ca.pem -key staple.key"),
    ("openssl-alpn", "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -alpn h2,http/1.1"),
    (
        "openssl-client-requested",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -verify 2 -CAfile root.pem -tls1_2",
    ),
    (
        "openssl-client-required",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -Verify 2 -CAfile root.pem -verify_return_error",
    ),
    (
        "openssl-early-data",
        "-cert rsa.pem -cert_chain ca.pem -key rsa.key -early_data -max_early_data 4096",
    ),
    ("openssl-groups", "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -groups P-521:X448"),
    (
        "openssl-brainpool",
        "-www -cert brainpool.pem -cert_chain ca.pem -key brainpool.key -no_tls1_3 -groups \
         brainpoolP256r1:brainpoolP384r1",
    ),
    ("openssl-expired", "-www -cert expired.pem -cert_chain ca.pem -key expired.key"),
    ("openssl-incomplete", "-www -cert rsa.pem -key rsa.key -no-CAfile -no-CApath -no-CAstore"),
    ("openssl-self-signed", "-www -cert self.pem -key self.key"),
    ("openssl-other-name", "-www -cert other.pem -cert_chain ca.pem -key other.key"),
    (
        "openssl-weak-certificate",
        "-www -cert sha1.pem -cert_chain ca.pem -key sha1.key -cipher DEFAULT:@SECLEVEL=0 -no_tls1_3",
    ),
    (
        "openssl-rsa-1024",
        "-www -cert rsa1024.pem -cert_chain ca.pem -key rsa1024.key -cipher DEFAULT:@SECLEVEL=0 -no_tls1_3",
    ),
    (
        "openssl-no-etm",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_2 -no_etm -cipher AES128-SHA",
    ),
    (
        "openssl-psk-modes",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_3 -allow_no_dhe_kex",
    ),
    (
        "openssl-psk",
        "-www -nocert -psk 00112233445566778899aabbccddeeff -cipher PSK:kDHEPSK:kECDHEPSK -no_tls1_3",
    ),
    (
        "openssl-ccm",
        "-www -cert ecdsa.pem -cert_chain ca.pem -key ecdsa.key -tls1_2 -cipher ECDHE+AESCCM",
    ),
    (
        "openssl-camellia",
        "-www -cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_2 -cipher ECDHE+CAMELLIA128",
    ),
    ("openssl-cookies", "-cert rsa.pem -cert_chain ca.pem -key rsa.key -tls1_3 -stateless -rev"),
];

/// TLS 1.3 with nothing but what browsers do not have.
const RARE_TLS1_3: &[(&str, &str)] = &[
    (
        "openssl-ccm-tls1_3",
        "-www -cert ecdsa.pem -cert_chain ca.pem -key ecdsa.key -tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256",
    ),
    ("openssl-x448", "-www -cert ecdsa.pem -cert_chain ca.pem -key ecdsa.key -tls1_3 -groups X448"),
    (
        "openssl-ffdhe",
        "-www -cert ecdsa.pem -cert_chain ca.pem -key ecdsa.key -tls1_3 -groups ffdhe3072",
    ),
];

/// GnuTLS 3.7.
const GNUTLS: &[(&str, &str, &str)] = &[
    ("gnutls-default", "NORMAL", "rsa"),
    ("gnutls-tls1_0", "NORMAL:-VERS-ALL:+VERS-TLS1.0:+VERS-TLS1.1:%SERVER_PRECEDENCE", "rsa"),
    (
        "gnutls-legacy",
        "LEGACY:+VERS-SSL3.0:+VERS-TLS1.0:+ARCFOUR-128:+3DES-CBC:+DHE-RSA:+MD5:+SHA1:%VERIFY_ALLOW_SIGN_WITH_SHA1",
        "rsa",
    ),
    ("gnutls-secure256", "SECURE256:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2", "ecdsa"),
    (
        "gnutls-no-tickets",
        "NORMAL:-GROUP-ALL:+GROUP-SECP384R1:+GROUP-FFDHE3072:+DHE-RSA",
        "rsa --no-tickets",
    ),
];

const NGINX: &[(&str, &str)] = &[
    (
        "nginx-modern",
        "ssl_certificate $pki/ecdsa.chain; ssl_certificate_key $pki/ecdsa.key; ssl_protocols TLSv1.3;\n\
         ssl_prefer_server_ciphers off; add_header Strict-Transport-Security \"max-age=63072000\" always;",
    ),
    (
        "nginx-intermediate",
        "ssl_certificate $pki/rsa.chain; ssl_certificate_key $pki/rsa.key; ssl_protocols TLSv1.2 TLSv1.3;\n\
         ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES128-GCM-SHA256:\
DHE-RSA-AES256-GCM-SHA384:DHE-RSA-CHACHA20-POLY1305;\n\
         ssl_dhparam $pki/dh2048.pem; ssl_prefer_server_ciphers off; ssl_session_tickets off; \
         ssl_session_cache shared:s:1m;\n\
         add_header Strict-Transport-Security \"max-age=15768000; includeSubDomains; preload\" always;\n\
         add_header X-Frame-Options DENY always; add_header X-Content-Type-Options nosniff always;",
    ),
    (
        "nginx-old",
        "ssl_certificate $pki/rsa.chain; ssl_certificate_key $pki/rsa.key; ssl_protocols TLSv1 TLSv1.1 TLSv1.2 \
         TLSv1.3;\nssl_ciphers ALL:!aNULL:!eNULL:!PSK:!SRP:@SECLEVEL=0; ssl_prefer_server_ciphers on; \
         ssl_dhparam $pki/dh1024.pem;",
    ),
    (
        "nginx-stapled",
        "ssl_certificate $pki/staple.chain; ssl_certificate_key $pki/staple.key; ssl_stapling on; \
         ssl_stapling_file $pki/staple.der;",
    ),
    // The server knows no name, so it rejects each hello with unrecognized_name.
    ("nginx-by-name-only", "ssl_reject_handshake on; ssl_protocols TLSv1.2 TLSv1.3;"),
    (
        "nginx-client-required",
        "ssl_certificate $pki/rsa.chain; ssl_certificate_key $pki/rsa.key; ssl_verify_client on; \
         ssl_client_certificate $pki/root.pem; ssl_verify_depth 2;",
    ),
];

const HAPROXY: &[(&str, &str)] = &[
    ("haproxy-modern", "crt ecdsa.all ssl-min-ver TLSv1.3 alpn h2,http/1.1"),
    ("haproxy-tls1_2", "crt rsa.all ssl-min-ver TLSv1.2 ssl-max-ver TLSv1.2 no-tls-tickets"),
    ("haproxy-early-data", "crt rsa.all ssl-min-ver TLSv1.2 allow-0rtt alpn http/1.1"),
];

/// tlslite-ng in a small server, for features that no C library in Debian has.
const TLSLITE: &[(&str, Kind, &str)] = &[
    ("tlslite-hybrids", Kind::Real, "rsa"),
    ("tlslite-pq-only", Kind::Odd, "rsa --min 1.3 --groups x25519mlkem768"),
    ("tlslite-pq-p384-only", Kind::Odd, "ecdsa --min 1.3 --groups secp384r1mlkem1024"),
    ("tlslite-brainpool", Kind::Odd, "rsa --min 1.3 --groups brainpoolP384r1tls13"),
    ("tlslite-ssl3", Kind::Real, "rsa --min 3.0 --max 3.0 --ciphers rc4,3des,aes128,aes256"),
    ("tlslite-rc4", Kind::Real, "rsa --min 1.0 --max 1.2 --ciphers rc4,3des"),
    ("tlslite-no-ems", Kind::Real, "rsa --min 1.0 --max 1.2 --no-ems --no-etm --no-heartbeat"),
    (
        "tlslite-insecure-renegotiation",
        Kind::Real,
        "rsa --min 1.0 --max 1.2 --no-renegotiation-info",
    ),
    ("tlslite-robot", Kind::Mock, "rsa --min 1.0 --max 1.2 --kx rsa --weak robot"),
    ("tlslite-robot-timeout", Kind::Mock, "rsa --min 1.0 --max 1.2 --kx rsa --weak robot-silent"),
    (
        "tlslite-poodle",
        Kind::Mock,
        "rsa --min 1.0 --max 1.2 --ciphers aes128,aes256 --no-etm --weak poodle",
    ),
    ("tlslite-heartbleed", Kind::Mock, "rsa --min 1.0 --max 1.2 --weak heartbleed"),
    ("tlslite-ticketbleed", Kind::Mock, "rsa --min 1.0 --max 1.2 --weak ticketbleed"),
    ("tlslite-ccs", Kind::Mock, "rsa --min 1.0 --max 1.2 --weak ccs"),
];

/// OpenSSL 0.9.8e, as Red Hat shipped it in 2008: SSL 2.0 and 3.0, export suites, single DES, RC2, compression.
const OLD_OPENSSL: &[(&str, Kind, &str)] = &[
    ("old-everything", Kind::Real, "rsa ALL:COMPLEMENTOFALL --export"),
    ("old-ssl2", Kind::Real, "rsa ALL --ssl2 --export"),
    ("old-ssl3", Kind::Real, "rsa ALL --ssl3"),
    ("old-default", Kind::Real, "rsa DEFAULT"),
    ("old-compression", Kind::Real, "rsa DEFAULT --compression"),
];

const BEHIND: &[(&str, &str, Trouble)] = &[
    ("throttled", "nginx-intermediate", Trouble::Throttles(10)),
    ("throttled-hard", "nginx-old", Trouble::Throttles(3)),
    ("ignores-many", "nginx-intermediate", Trouble::Ignores(20)),
    ("swallows-big-hellos", "nginx-intermediate", Trouble::SwallowsHellosOver(512)),
    ("resets-big-hellos", "nginx-intermediate", Trouble::ResetsHellosOver(512)),
    ("slow", "nginx-intermediate", Trouble::Slow(Duration::from_millis(700))),
    ("drips", "nginx-old", Trouble::Drips(7)),
    ("eats-alerts-hangs", "nginx-intermediate", Trouble::EatsAlertsAndHangs),
    ("eats-alerts-closes", "nginx-intermediate", Trouble::EatsAlertsAndCloses),
    ("resets-each-third", "nginx-intermediate", Trouble::ResetsEachThird),
    ("refuses-long-lists-40", "openssl-server-order", Trouble::RefusesLongLists(40)),
    ("refuses-long-lists-50", "openssl-dhe-2048", Trouble::RefusesLongLists(50)),
    ("clear-at-first", "openssl-tls1_2", Trouble::ClearAtFirst),
    ("clear-to-tls1_3", "openssl-tls1_2", Trouble::ClearToTls13),
    ("other-alert", "openssl-ecdsa", Trouble::OtherAlert(40, 70)),
];
