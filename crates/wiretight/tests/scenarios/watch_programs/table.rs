//! The programs: how each is started and used, and what flows then.

use wiretight_scan::judge::Level::{self, *};
use wiretight_scan::passive::StartTls::{self, *};
use wiretight_scan::passive::Transport;

/// A server and its client, as scripts of the shell. Each runs in a folder of its own. `$T` is the folder with
/// `cert.pem`, `key.pem` and those of the servers; `$S` and `$C` are the addresses.
pub(super) struct Program {
    pub(super) name: &'static str,
    /// Sockets of the server: `tcp/80 udp/53`.
    pub(super) listens: &'static str,
    pub(super) serve: &'static str,
    pub(super) call: &'static str,
    /// Everything that flows at these ports.
    pub(super) flows: &'static [Expected],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) at: Port,
    pub(super) protocol: &'static str,
    pub(super) level: Level,
    pub(super) starttls: Option<StartTls>,
}

/// The transport, and the server's port.
pub(super) type Port = (Transport, u16);

const fn tcp(port: u16, protocol: &'static str, level: Level) -> Expected {
    Expected { at: (Transport::Tcp, port), protocol, level, starttls: None }
}

const fn udp(port: u16, protocol: &'static str, level: Level) -> Expected {
    Expected { at: (Transport::Udp, port), protocol, level, starttls: None }
}

impl Expected {
    const fn with(self, state: StartTls) -> Expected {
        Expected { starttls: Some(state), ..self }
    }
}

pub(super) const PROGRAMS: &[Program] = &[
    Program {
        name: "nginx",
        listens: "tcp/80 tcp/443 tcp/444 tcp/8080",
        serve: r#"
            head -c 1000000 /dev/zero > file
            cat > conf <<END
            daemon off; user root; worker_processes 1; pid pid; error_log stderr; events {}
            http { access_log off; root $PWD; ssl_certificate $T/cert.pem; ssl_certificate_key $T/key.pem;
              client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
              server { listen $S:80; listen 127.0.0.1:80; listen $S:443 ssl; }
              server { listen $S:444 ssl; ssl_protocols TLSv1.2; ssl_ciphers AES128-SHA; }
              server { listen $S:8080 http2; } }
            END
            nginx -p $PWD -c $PWD/conf"#,
        call: r#"
            curl -sSo /dev/null http://$S/file
            curl -sSko /dev/null https://$S/file
            curl -sSko /dev/null --ciphers DEFAULT:@SECLEVEL=0 https://$S:444/file
            curl -sSo /dev/null --http2-prior-knowledge http://$S:8080/file"#,
        flows: &[
            tcp(80, "http", Plaintext),
            tcp(443, "tls", Acceptable),
            tcp(444, "tls", Weak),
            tcp(8080, "http2", Plaintext),
        ],
    },
    Program {
        name: "redis-server",
        listens: "tcp/6379 tcp/6380",
        serve: r#"
            redis-server --bind $S 127.0.0.1 --save "" --protected-mode no --tls-port 6380 \
                --tls-cert-file $T/cert.pem --tls-key-file $T/key.pem --tls-auth-clients no"#,
        call: r#"
            redis-cli -h $S set k v
            redis-cli -h $S -p 6380 --tls --insecure get k"#,
        flows: &[tcp(6379, "redis", Plaintext), tcp(6380, "tls", Acceptable)],
    },
    Program {
        name: "postgres",
        listens: "tcp/5432",
        serve: r#"
            install -o postgres -m 700 -d data
            as="setpriv --reuid=postgres --regid=postgres --clear-groups"
            $as initdb -U postgres --auth=trust --no-sync --locale=C -D $PWD/data
            echo "host all all all trust" > data/pg_hba.conf
            install -o postgres -m 600 $T/key.pem $T/cert.pem data
            $as postgres -D $PWD/data -h $S -k $PWD/data -c fsync=off -c ssl=on \
                -c ssl_cert_file=cert.pem -c ssl_key_file=key.pem"#,
        call: r#"
            for mode in disable require; do
                psql "host=$S user=postgres sslmode=$mode" -c "select repeat('x', 10000)"
            done"#,
        flows: &[tcp(5432, "postgres", Plaintext), tcp(5432, "postgres", Acceptable).with(Used)],
    },
    Program {
        name: "mariadbd",
        listens: "tcp/3306",
        serve: r#"
            install -o mysql -d data
            mariadbd --no-defaults --skip-grant-tables --user=mysql --bind-address=$S --port=3306 \
                --datadir=$PWD/data --socket=$PWD/data/s --pid-file=$PWD/data/p \
                --ssl-cert=$T/cert.pem --ssl-key=$T/key.pem"#,
        call: r#"
            for mode in --skip-ssl --ssl; do mariadb --no-defaults -h $S $mode -e "select repeat('x', 10000)"; done"#,
        flows: &[tcp(3306, "mysql", Plaintext), tcp(3306, "mysql", Acceptable).with(Used)],
    },
    Program {
        name: "postfix",
        listens: "tcp/25 tcp/587",
        serve: r#"
            mkdir -p q/pid; install -o postfix -d q/private q/public data
            cat > main.cf <<END
            compatibility_level = 3.6
            queue_directory = $PWD/q
            data_directory = $PWD/data
            mail_owner = postfix
            setgid_group = postdrop
            myhostname = mail.test
            mydestination =
            local_recipient_maps =
            alias_maps =
            maillog_file =
            smtpd_tls_security_level = may
            smtpd_tls_cert_file = $T/cert.pem
            smtpd_tls_key_file = $T/key.pem
            inet_interfaces = $S
            inet_protocols = ipv4
            END
            cat > master.cf <<END
            $S:25 inet n - n - - smtpd
            $S:587 inet n - n - - smtpd -o smtpd_tls_security_level=none
            tlsmgr unix - - n 1000? 1 tlsmgr
            rewrite unix - - n - - trivial-rewrite
            anvil unix - - n - 1 anvil
            END
            master -c $PWD -d"#,
        call: r#"
            curl -sS smtp://$S:25 -X NOOP
            curl -sSk --ssl-reqd smtp://$S:25 -X NOOP
            curl -sS smtp://$S:587 -X NOOP"#,
        flows: &[
            tcp(25, "smtp", Plaintext).with(Unused),
            tcp(25, "smtp", Acceptable).with(Used),
            tcp(587, "smtp", Plaintext).with(NotOffered),
        ],
    },
    Program {
        name: "stripper",
        listens: "tcp/2525",
        serve: r#"
            cat > strip.py <<END
            import os, socket, threading
            def pump(a, b):
                while data := a.recv(65536):
                    b.sendall(data.replace(b"STARTTLS", b"XXXXXXXX"))
                b.shutdown(socket.SHUT_WR)
            listener = socket.create_server((os.environ["S"], 2525))
            while True:
                a = listener.accept()[0]
                b = socket.create_connection((os.environ["S"], 25))
                for ends in ((a, b), (b, a)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()
            END
            python3 strip.py"#,
        call: r#"curl -sS smtp://$S:2525 -X NOOP"#,
        flows: &[tcp(2525, "smtp", Plaintext).with(Stripped)],
    },
    Program {
        name: "dovecot",
        listens: "tcp/143 tcp/110 tcp/993 tcp/995",
        serve: r#"
            mkdir run state
            cat > conf <<END
            base_dir = $PWD/run
            state_dir = $PWD/state
            log_path = $PWD/dovecot.log
            protocols = imap pop3
            listen = $S
            ssl = yes
            ssl_cert = <$T/cert.pem
            ssl_key = <$T/key.pem
            disable_plaintext_auth = no
            passdb {
              driver = static
              args = nopassword=y
            }
            END
            dovecot -F -c $PWD/conf"#,
        call: r#"
            curl -sS imap://$S -X NOOP || :
            curl -sSk --ssl-reqd imap://$S -X NOOP || :
            curl -sS pop3://$S -X CAPA || :
            curl -sSk --ssl-reqd pop3://$S -X CAPA || :
            curl -sSk imaps://$S -X NOOP || :
            curl -sSk pop3s://$S -X CAPA || :"#,
        flows: &[
            tcp(143, "imap", Plaintext).with(Unused),
            tcp(143, "imap", Acceptable).with(Used),
            tcp(110, "pop3", Plaintext).with(Unused),
            tcp(110, "pop3", Acceptable).with(Used),
            tcp(993, "tls", Acceptable),
            tcp(995, "tls", Acceptable),
        ],
    },
    Program {
        name: "vsftpd",
        listens: "tcp/21",
        serve: r#"
            mkdir empty files
            yes 'a line of text in a file' | head -n 5000 > files/file
            cat > conf <<END
            listen=YES
            listen_address=$S
            background=NO
            ssl_enable=YES
            allow_anon_ssl=YES
            force_local_data_ssl=NO
            rsa_cert_file=$T/cert.pem
            rsa_private_key_file=$T/key.pem
            require_ssl_reuse=NO
            ssl_tlsv1=YES
            secure_chroot_dir=$PWD/empty
            anonymous_enable=YES
            no_anon_password=YES
            anon_root=$PWD/files
            seccomp_sandbox=NO
            pasv_min_port=2121
            pasv_max_port=2121
            END
            vsftpd $PWD/conf"#,
        call: r#"
            curl -sSo /dev/null ftp://$S/file
            curl -sSko /dev/null --ssl-reqd --head ftp://$S/file"#,
        flows: &[
            tcp(21, "ftp", Plaintext),
            tcp(21, "ftp", Acceptable).with(Used),
            tcp(2121, "unknown", Plaintext),
        ],
    },
    Program {
        name: "slapd",
        listens: "tcp/389 tcp/636",
        serve: r#"
            printf '%s\n' "TLSCertificateFile $T/cert.pem" "TLSCertificateKeyFile $T/key.pem" "pidfile $PWD/pid" > conf
            slapd -d 0 -h "ldap://$S ldaps://$S" -f $PWD/conf"#,
        call: r#"
            export LDAPTLS_REQCERT=never
            for how in "-H ldap://$S" "-H ldap://$S -ZZ" "-H ldaps://$S"; do
                ldapsearch -x $how -s base -b "" supportedExtension
            done"#,
        flows: &[
            tcp(389, "ldap", Plaintext),
            tcp(389, "ldap", Acceptable).with(Used),
            tcp(636, "tls", Acceptable),
        ],
    },
    Program {
        name: "prosody",
        listens: "tcp/5222",
        serve: r#"
            mkdir data
            cat > conf.lua <<END
            run_as_root = true
            daemonize = false
            pidfile = "$PWD/pid"
            data_path = "$PWD/data"
            interfaces = { "$S" }
            c2s_ports = { 5222 }
            s2s_ports = { }
            modules_enabled = { "tls", "saslauth" }
            c2s_require_encryption = false
            ssl = { key = "$T/key.pem", certificate = "$T/cert.pem" }
            log = { info = "*console" }
            VirtualHost "localhost"
            END
            prosody --config $PWD/conf.lua -F"#,
        call: r#"
            openssl s_client -connect $S:5222 -starttls xmpp -xmpphost localhost </dev/null"#,
        flows: &[tcp(5222, "xmpp", Acceptable).with(Used)],
    },
    Program {
        name: "inspircd",
        listens: "tcp/6667",
        serve: r#"
            cat > conf <<END
            <config format="xml">
            <server name="irc.test" description="x" network="T" id="00A">
            <admin name="a" nick="a" email="a@b.test">
            <bind address="$S" port="6667" type="clients">
            <connect name="all" allow="*">
            <path datadir="$PWD" logdir="$PWD" runtimedir="$PWD">
            END
            inspircd --config=$PWD/conf --nofork --nolog --nopid --runasroot"#,
        call: r#"
            (printf 'NICK me\r\nUSER me 0 * :me\r\n'; sleep 1; printf 'QUIT\r\n') | socat - TCP:$S:6667"#,
        flows: &[tcp(6667, "irc", Plaintext)],
    },
    Program {
        name: "sshd",
        listens: "tcp/22",
        serve: r#"
            mkdir -p /run/sshd
            ssh-keygen -q -t ed25519 -N "" -f host
            ssh-keygen -q -t ed25519 -N "" -f id
            $(command -v sshd) -D -e -f /dev/null -h $PWD/host -o ListenAddress=$S -o PidFile=none -o UsePAM=no \
                -o StrictModes=no -o AuthorizedKeysFile=$PWD/id.pub"#,
        call: r#"
            ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                -i $T/sshd/id root@$S head -c 100000 /dev/zero >/dev/null"#,
        flows: &[tcp(22, "ssh", Strong)],
    },
    Program {
        name: "dnsmasq",
        listens: "udp/53 tcp/53",
        serve: r#"
            dnsmasq -k -C /dev/null -u root -R -h --pid-file= --bind-interfaces -a $S --address=/a.test/192.0.2.1"#,
        call: r#"
            dig @$S +tries=1 a.test
            dig @$S +tcp a.test"#,
        flows: &[udp(53, "dns", Plaintext), tcp(53, "dns", Plaintext)],
    },
    Program {
        name: "caddy",
        listens: "tcp/8443 udp/8443",
        serve: r#"
            cat > Caddyfile <<END
            {
                admin off
                auto_https off
            }
            https://www.test:8443 {
                tls $T/cert.pem $T/key.pem
                respond "hello"
            }
            END
            export HOME=$PWD XDG_DATA_HOME=$PWD XDG_CONFIG_HOME=$PWD
            caddy run --config Caddyfile --adapter caddyfile"#,
        call: r#"
            to=www.test:8443:$S
            curl -sSk --resolve $to https://www.test:8443/
            $PYPI - $to <<END
            import sys
            from curl_cffi import CurlHttpVersion, CurlOpt, requests
            answer = requests.get("https://www.test:8443/", http_version=CurlHttpVersion.V3ONLY, verify=False,
                                  timeout=30, curl_options={CurlOpt.RESOLVE: [sys.argv[1]]})
            assert answer.http_version == 30, answer.http_version
            END"#,
        flows: &[tcp(8443, "tls", Acceptable), udp(8443, "quic", Acceptable)],
    },
    Program {
        name: "rsyslogd",
        listens: "udp/514 tcp/514",
        serve: r#"
            cat > conf <<END
            module(load="imudp")
            module(load="imtcp")
            input(type="imudp" address="$S" port="514")
            input(type="imtcp" address="$S" port="514")
            *.* action(type="omfile" file="$PWD/all")
            END
            rsyslogd -n -i NONE -f $PWD/conf"#,
        call: r#"
            logger -n $S -P 514 -d "a message over UDP"
            logger -n $S -P 514 -T "a message over TCP""#,
        flows: &[udp(514, "syslog", Plaintext), tcp(514, "syslog", Plaintext)],
    },
    Program {
        name: "rpcbind",
        listens: "tcp/111 udp/111",
        serve: r#"rpcbind -f -h $S"#,
        call: r#"
            rpcinfo -p $S
            rpcinfo -T udp $S 100000"#,
        flows: &[tcp(111, "portmap", Plaintext), udp(111, "portmap", Plaintext)],
    },
    Program {
        name: "memcached",
        listens: "tcp/11211 udp/11211",
        serve: r#"memcached -u root -l $S -p 11211 -U 11211"#,
        call: r#"
            printf 'set k 0 0 5\r\nhello\r\nget k\r\nquit\r\n' | socat -t 2 - TCP:$S:11211"#,
        flows: &[tcp(11211, "memcached", Plaintext)],
    },
    Program {
        name: "openssl",
        listens: "udp/4433 tcp/4411",
        serve: r#"
            sleep 1000 | openssl s_server -4 -dtls -accept $S:4433 -cert $T/cert.pem -key $T/key.pem &
            openssl s_server -4 -tls1_1 -cipher DEFAULT@SECLEVEL=0 -accept $S:4411 -www \
                -cert $T/cert.pem -key $T/key.pem"#,
        call: r#"
            (sleep 1; echo hello; sleep 1; echo Q) | openssl s_client -dtls1_2 -connect $S:4433
            openssl s_client -tls1_1 -cipher DEFAULT@SECLEVEL=0 -connect $S:4411 </dev/null"#,
        flows: &[udp(4433, "dtls", Acceptable), tcp(4411, "tls", Weak)],
    },
    Program {
        name: "wireguard-go",
        listens: "udp/51820",
        serve: r#"
            wg genkey > server; wg genkey > client
            wireguard-go -f wgs0 & sleep 0.5
            wg set wgs0 private-key server listen-port 51820 peer $(wg pubkey < client) allowed-ips 10.88.0.2/32
            ip addr add 10.88.0.1/24 dev wgs0; ip link set wgs0 up
            wait"#,
        call: r#"
            d=$T/wireguard-go
            wireguard-go wgc0
            wg set wgc0 private-key $d/client peer $(wg pubkey < $d/server) allowed-ips 10.88.0.1/32 endpoint $S:51820
            ip addr add 10.88.0.2/24 dev wgc0; ip link set wgc0 up
            timeout 30 sh -c "until wg show wgc0 latest-handshakes | awk '{ exit \$2 == 0 }'; do
                echo hello | socat -u - UDP:10.88.0.1:7; sleep 0.2
            done"
            echo hello | socat -u - UDP:10.88.0.1:7 || :"#,
        flows: &[udp(51820, "wireguard", Acceptable)],
    },
    Program {
        name: "openvpn",
        listens: "udp/1194",
        serve: r#"
            openvpn --local $S --proto udp --dev tun --ifconfig 10.89.0.1 10.89.0.2 --tls-server --dh none \
                --ca $T/cert.pem --cert $T/cert.pem --key $T/key.pem --data-ciphers AES-256-GCM"#,
        call: r#"
            openvpn --remote $S --proto udp --nobind --dev tun --ifconfig 10.89.0.2 10.89.0.1 --tls-client \
                --ca $T/cert.pem --cert $T/cert.pem --key $T/key.pem --data-ciphers AES-256-GCM --daemon --log log
            timeout 30 sh -c "until grep -q 'Initialization Sequence Completed' log; do sleep 0.1; done"
            echo hello | socat -u - UDP:10.89.0.1:7 || :"#,
        flows: &[udp(1194, "openvpn", Unknown)],
    },
    Program {
        name: "krb5kdc",
        listens: "udp/88 tcp/88",
        serve: r#"
            cat > krb5.conf <<END
            [libdefaults]
            default_realm = A.TEST
            dns_lookup_kdc = false
            [realms]
            A.TEST = {
                kdc = $S
            }
            END
            cat > kdc.conf <<END
            [kdcdefaults]
            kdc_listen = $S:88
            kdc_tcp_listen = $S:88
            [realms]
            A.TEST = {
                database_name = $PWD/principal
                key_stash_file = $PWD/stash
            }
            END
            export KRB5_CONFIG=$PWD/krb5.conf KRB5_KDC_PROFILE=$PWD/kdc.conf
            kdb5_util -d $PWD/principal create -s -r A.TEST -P secret
            krb5kdc -n"#,
        call: r#"
            export KRB5_CONFIG=$T/krb5kdc/krb5.conf
            kinit -c $PWD/cache nobody </dev/null || :"#,
        flows: &[udp(88, "kerberos", Plaintext)],
    },
    Program {
        name: "snmpd",
        listens: "udp/161",
        serve: r#"
            echo "rocommunity public" > conf
            snmpd -f -Lo -C -c $PWD/conf udp:$S:161"#,
        call: r#"snmpget -v 2c -c public $S 1.3.6.1.2.1.1.1.0"#,
        flows: &[udp(161, "snmp", Plaintext)],
    },
    Program {
        name: "chronyd",
        listens: "udp/123",
        serve: r#"
            printf '%s\n' "allow all" "local stratum 1" "bindaddress $S" "cmdport 0" "pidfile $PWD/pid" > conf
            chronyd -d -x -u root -f $PWD/conf"#,
        call: r#"chronyd -Q -t 10 -u root -f /dev/null "server $S iburst" "pidfile $PWD/pid" "cmdport 0""#,
        flows: &[udp(123, "ntp", Plaintext)],
    },
    Program {
        name: "mosquitto",
        listens: "tcp/1883 tcp/8883",
        serve: r#"
            printf '%s\n' "allow_anonymous true" "user root" "listener 1883 $S" "listener 8883 $S" \
                "certfile $T/cert.pem" "keyfile $T/key.pem" > conf
            mosquitto -c conf"#,
        call: r#"
            mosquitto_pub -h $S -t a -m hello
            mosquitto_pub -h $S -p 8883 --cafile $T/cert.pem --insecure -t a -m hello"#,
        flows: &[tcp(1883, "mqtt", Plaintext), tcp(8883, "tls", Acceptable)],
    },
    Program {
        name: "telnetd",
        listens: "tcp/23",
        serve: r#"
            cat > inetd.py <<END
            import os, socket, subprocess
            listener = socket.create_server((os.environ["S"], 23))
            while True:
                ends = dict.fromkeys(("stdin", "stdout", "stderr"), listener.accept()[0])
                subprocess.Popen(["telnetd", "-h", "-E", "/bin/cat"], **ends)
            END
            python3 inetd.py"#,
        call: r#"(sleep 1; echo hello; sleep 1) | timeout -s KILL 3 telnet $S || :"#,
        // Both ends agree on the option ENCRYPT, and it is not known whether they use it.
        flows: &[tcp(23, "telnet", Unknown)],
    },
    Program {
        name: "sipp",
        listens: "udp/5060",
        serve: r#"sipp -sn uas -i $S -p 5060 -mp 6000 -rtp_echo -nostdin"#,
        call: r#"
            ln -s /usr/share/sip-tester pcap
            sipp -sd uac_pcap | sed 's/milliseconds="8000"/milliseconds="1500"/' > call.xml
            sipp -sf call.xml -i $C -p 5061 -mp 6000 -m 1 -nostdin $S"#,
        flows: &[udp(5060, "sip", Plaintext), udp(6000, "rtp", Unknown)],
    },
    Program {
        name: "git-daemon",
        listens: "tcp/9418",
        serve: r#"
            git init -q --bare repo
            git daemon --base-path=$PWD --export-all --listen=$S"#,
        call: r#"git ls-remote git://$S/repo"#,
        flows: &[tcp(9418, "git", Plaintext)],
    },
    Program {
        name: "ganesha",
        listens: "tcp/2049",
        serve: r#"
            mkdir export state; echo hello > export/file
            cat > conf <<END
            NFS_CORE_PARAM { Protocols = 4; NFS_Port = 2049; Bind_addr = $S; Enable_NLM = false; Enable_RQUOTA = false; }
            NFSv4 { Grace_Period = 1; Graceless = true; RecoveryRoot = $PWD/state; Minor_Versions = 0; }
            EXPORT { Export_Id = 1; Path = $PWD/export; Pseudo = /e; Access_Type = RW; SecType = sys; FSAL { Name = MEM; } }
            END
            ganesha.nfsd -F -f $PWD/conf -L $PWD/log -p $PWD/pid"#,
        call: r#"nfs-ls "nfs://$S/e?version=4""#,
        flows: &[tcp(2049, "nfs", Plaintext)],
    },
    Program {
        name: "socat",
        listens: "tcp/9999 udp/9998",
        serve: r#"
            socat -u UDP-RECV:9998,bind=$S OPEN:/dev/null &
            socat -u TCP-LISTEN:9999,bind=$S,fork OPEN:/dev/null"#,
        call: r#"
            head -c 20000 /dev/urandom | socat -u - TCP:$S:9999
            head -c 20000 /dev/urandom | socat -u -b 1000 - UDP:$S:9998"#,
        flows: &[tcp(9999, "unknown", Unknown), udp(9998, "unknown", Unknown)],
    },
];
