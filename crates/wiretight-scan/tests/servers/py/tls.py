"""A server with tlslite-ng: hybrid post-quantum groups, SSL 3.0, RC4, and flaws that no current server has.

    tls.py PORT CERTIFICATE [--min 1.0] [--max 1.3] [--ciphers ...] [--groups ...] [--kx ...] [--weak FLAW]

The flaws are put into the library from outside, for real servers that have them can no longer be had:

- robot: a PKCS #1 block with bad padding is answered with an alert, a good one is not (CVE-2017-13099 and others);
- robot-silent: the same, but the difference is that the connection ends without a word;
- poodle: the padding of CBC records is not looked at, only its length (CVE-2014-8730);
- heartbleed: a heartbeat is answered with as many bytes as it says it has (CVE-2014-0160);
- ticketbleed: a session ID of a resumed session is filled up to 32 bytes with memory (CVE-2016-9244);
- ccs: a ChangeCipherSpec is taken at any time, and what follows is read with keys of nothing (CVE-2014-0224).
"""

import argparse
import os
import socket
import struct
import threading

from tlslite.api import HandshakeSettings, SessionCache, TLSConnection, X509CertChain, parsePEMKey
from tlslite import keyexchange, messages, recordlayer, tlsrecordlayer, tlsconnection
from tlslite.constants import CipherSuite, ContentType, ExtensionType, HeartbeatMessageType
from tlslite.errors import TLSBadRecordMAC, TLSIllegalParameterException
from tlslite.utils.cryptomath import bytesToNumber, numberToByteArray

VERSIONS = {"3.0": (3, 0), "1.0": (3, 1), "1.1": (3, 2), "1.2": (3, 3), "1.3": (3, 4)}

arguments = argparse.ArgumentParser()
arguments.add_argument("port", type=int)
arguments.add_argument("certificate")
arguments.add_argument("--min", default="1.0", choices=VERSIONS)
arguments.add_argument("--max", default="1.3", choices=VERSIONS)
arguments.add_argument("--ciphers")
arguments.add_argument("--groups")
arguments.add_argument("--kx")
arguments.add_argument("--no-ems", action="store_true")
arguments.add_argument("--no-etm", action="store_true")
arguments.add_argument("--no-heartbeat", action="store_true")
arguments.add_argument("--no-renegotiation-info", action="store_true")
arguments.add_argument("--tickets", action="store_true")
arguments.add_argument("--weak", default="")
arguments = arguments.parse_args()

settings = HandshakeSettings()
settings.minVersion, settings.maxVersion = VERSIONS[arguments.min], VERSIONS[arguments.max]
settings.versions = [v for v in settings.versions if settings.minVersion <= v <= settings.maxVersion]
settings.useExtendedMasterSecret = not arguments.no_ems
settings.useEncryptThenMAC = not arguments.no_etm
settings.use_heartbeat_extension = not arguments.no_heartbeat
if arguments.ciphers:
    settings.cipherNames = [{"aes128": "aes128", "aes256": "aes256"}.get(c, c) for c in arguments.ciphers.split(",")]
    settings.macNames = ["sha", "sha256", "sha384", "md5", "aead"]
if arguments.kx:
    settings.keyExchangeNames = arguments.kx.split(",")
if arguments.groups:
    settings.eccCurves = arguments.groups.split(",")
    settings.keyShares = settings.eccCurves[:1]
    settings.dhGroups = []
if arguments.tickets or arguments.weak == "ticketbleed":
    settings.ticketKeys = [bytearray(os.urandom(32))]
if settings.maxVersion < (3, 3):
    settings.more_sig_schemes = []


def bad_padding(this, message):
    """The premaster secret of a block, with the insecure checks of old servers."""
    key = this.privateKey
    block = numberToByteArray(key._rawPrivateKeyOp(bytesToNumber(message.encryptedPreMasterSecret)), len(key) // 8)
    end = block.find(b"\0", 2)
    if block[0] != 0 or block[1] != 2 or end < 10 or len(block) - end - 1 != 48:
        if arguments.weak == "robot-silent":
            raise ConnectionAbortedError("bad padding")
        raise TLSIllegalParameterException("bad padding")
    return block[end + 1 :]


def careless_cbc(this, kind, data):
    """Like `_decryptThenMAC`, but without checking the padding."""
    state = this._readState
    if state.encContext.block_size == 1 or not state.encContext.isBlockCipher:
        return plain_decrypt(this, kind, data)
    block = state.encContext.block_size
    if len(data) % block:
        raise TLSBadRecordMAC("no whole blocks")
    data = state.encContext.decrypt(data)
    if this.version >= (3, 2):
        data = data[block:]
    size = state.macContext.digest_size
    end = len(data) - data[-1] - 1 - size
    if end < 0:
        raise TLSBadRecordMAC("too short")
    content, mac = data[:end], data[end : end + size]
    if mac != this.calculateMAC(state.macContext.copy(), state.getSeqNumBytes(), kind, content):
        raise TLSBadRecordMAC("MAC mismatch")
    return content


def careless_heartbeat(this, parser):
    this.message_type = parser.get(1)
    says = parser.get(2)
    there = parser.getFixBytes(parser.getRemainingLength())
    # The memory behind the message.
    this.payload = (there + b"secret " * (says // 7 + 1))[:says]
    this.padding = bytearray(16)
    return this


def bleeding_create(this, version, random, session_id, *rest, **more):
    if 0 < len(session_id) < 32:
        session_id = session_id + bytearray(os.urandom(32 - len(session_id)))
    return plain_create(this, version, random, session_id, *rest, **more)


def early_ccs(this):
    """Accepts an early ChangeCipherSpec; after it, reading fails as with wrong keys."""
    for result in plain_receive(this):
        if result in (0, 1):
            yield result
            continue
        header, parser = result
        pending = this._pendingReadState.macContext or this._pendingReadState.encContext
        early = getattr(this, "taken_early", False)
        if header.type == ContentType.change_cipher_spec and not pending and not early:
            this.taken_early = True
            for inner in early_ccs(this):
                yield inner
            return
        if early and header.type != ContentType.alert:
            raise TLSBadRecordMAC("keys of nothing")
        yield result


weak = arguments.weak
if weak.startswith("robot"):
    keyexchange.RSAKeyExchange.processClientKeyExchange = bad_padding
elif weak == "poodle":
    plain_decrypt = recordlayer.RecordLayer._decryptThenMAC
    recordlayer.RecordLayer._decryptThenMAC = careless_cbc
elif weak == "heartbleed":
    messages.Heartbeat.parse = careless_heartbeat
elif weak == "ticketbleed":
    plain_create = messages.ServerHello.create
    messages.ServerHello.create = bleeding_create
elif weak == "ccs":
    plain_receive = recordlayer.RecordLayer.recvRecord
    recordlayer.RecordLayer.recvRecord = early_ccs
elif weak:
    raise SystemExit(f"unknown flaw {weak}")

if weak == "heartbleed":
    # The record with the answer may be long, and the library must be told that heartbeats are in use.
    plain_hello = TLSConnection._serverGetClientHello

    def with_heartbeat(this, *rest, **more):
        for result in plain_hello(this, *rest, **more):
            this.heartbeat_supported = this.heartbeat_can_receive = True
            yield result

    TLSConnection._serverGetClientHello = with_heartbeat

if arguments.no_renegotiation_info:
    # The extension is answered only if the hello contains it.
    plain_extension = messages.ClientHello.getExtension
    messages.ClientHello.getExtension = lambda this, kind: (
        None if kind == ExtensionType.renegotiation_info else plain_extension(this, kind)
    )
    CipherSuite.TLS_EMPTY_RENEGOTIATION_INFO_SCSV = -1

chain = X509CertChain()
chain.parsePemList(open(f"{arguments.certificate}.chain").read())
key = parsePEMKey(open(f"{arguments.certificate}.key").read(), private=True, implementations=["python"])
cache = SessionCache()
listener = socket.create_server(("127.0.0.1", arguments.port), backlog=100)


def serve(connection):
    connection.settimeout(60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tls = TLSConnection(connection)
    try:
        tls.handshakeServer(certChain=chain, privateKey=key, sessionCache=cache, settings=settings)
        asked = b""
        while b"\r\n\r\n" not in asked:
            part = tls.read(min=1, max=16384)
            if not part:
                break
            asked += part
        if asked:
            tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
        tls.close()
    except Exception as error:
        # Clients that leave are normal here; other errors are logged.
        print(type(error).__name__, error, flush=True)
    finally:
        connection.close()


while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
