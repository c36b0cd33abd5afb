"""Programs that know nothing of Wiretight, for the tests of the kernel's rules. Standard library only.

peer.py serve SPECS   echoes on each of these; says "ready"; then a line for whatever came
peer.py probe SPECS   tries each of these, all at once; says what came back, as JSON
peer.py hold SPEC     connects, says "ready", waits for a line, sends; says what came back
peer.py flood SPEC    sends datagrams until it is killed
"""

import json
import socket
import struct
import sys
import threading
import time

SO_MARK = 36
PATIENCE = 1.2


def make(spec, kind, protocol=0):
    family = socket.AF_INET6 if ":" in spec["addr"] else socket.AF_INET
    s = socket.socket(family, kind, protocol)
    if spec.get("mark"):
        s.setsockopt(socket.SOL_SOCKET, SO_MARK, spec["mark"])
    return s


def original(c):
    if c.family == socket.AF_INET6:
        raw = c.getsockopt(41, 80, 28)
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0]
    raw = c.getsockopt(0, 80, 16)
    return socket.inet_ntop(socket.AF_INET, raw[4:8]), struct.unpack("!H", raw[2:4])[0]


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def echo(c, spec):
    if spec.get("redirected"):
        try:
            c.sendall(("to %s %d " % original(c)).encode())
        except OSError as e:
            c.sendall(("not redirected: %s " % e).encode())
    while True:
        try:
            data = c.recv(65536)
        except OSError:
            return
        if not data:
            c.close()
            return
        say("got %d %s" % (spec["port"], data[:40].decode("latin-1")))
        c.sendall(data)


def serve_tcp(s, spec):
    while True:
        c, _ = s.accept()
        threading.Thread(target=echo, args=(c, spec), daemon=True).start()


def serve_udp(s, spec):
    while True:
        data, peer = s.recvfrom(65536)
        say("got %d %s" % (spec["port"], data[:40].decode("latin-1")))
        s.sendto(data, peer)


def serve(specs):
    for spec in specs:
        tcp = spec["proto"] == "tcp"
        s = make(spec, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if s.family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((spec["addr"], spec["port"]))
        if tcp:
            s.listen(64)
        threading.Thread(target=serve_tcp if tcp else serve_udp, args=(s, spec), daemon=True).start()
    say("ready")
    sys.stdin.read()


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def probe_one(spec):
    payload = spec["payload"].encode()
    to = (spec["addr"], spec.get("port", 0))
    six = ":" in spec["addr"]
    proto = spec["proto"]
    if proto == "tcp":
        s = make(spec, socket.SOCK_STREAM)
        if spec.get("from"):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("::" if six else "0.0.0.0", spec["from"]))
    elif proto == "udp":
        s = make(spec, socket.SOCK_DGRAM)
        if spec.get("from"):
            s.bind(("::" if six else "0.0.0.0", spec["from"]))
        if spec.get("options"):
            s.setsockopt(socket.IPPROTO_IPV6, 59, b"\0\0\1\4\0\0\0\0")
        payload = payload * spec.get("times", 1)
    elif proto == "ping":
        s = make(spec, socket.SOCK_RAW, 58 if six else 1)
        payload += b" " * (len(payload) % 2)
        head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 77, 1)
        check = 0 if six else checksum(head + payload)
        payload = struct.pack("!BBHHH", 128 if six else 8, 0, check, 77, 1) + payload
    else:
        s = make(spec, socket.SOCK_RAW, int(proto))
    s.settimeout(spec.get("patience", PATIENCE))
    if proto == "tcp":
        s.connect(to)
        s.sendall(payload)
    elif proto == "udp":
        s.connect(to)
        s.send(payload)
    else:
        s.sendto(payload, (spec["addr"], 0))
    if proto not in ("tcp", "udp", "ping"):
        return "sent"
    if proto == "ping":
        end = time.time() + PATIENCE
        while time.time() < end:
            data = s.recv(65536)
            at = 0 if six else 20
            if data[at] in (0, 129):
                return "ok " + data[at + 8:].decode("latin-1").strip()
        return "late"
    data = b""
    while len(data) < len(payload):
        more = s.recv(65536)
        if not more:
            break
        data += more
    return "ok " + data[:120].decode("latin-1")


def probe(specs):
    said = [None] * len(specs)

    def run(n):
        try:
            said[n] = probe_one(specs[n])
        except socket.timeout:
            said[n] = "late"
        except PermissionError:
            said[n] = "late"  # the kernel tells a sender that its datagram was dropped
        except ConnectionRefusedError:
            said[n] = "refused"
        except OSError as e:
            said[n] = "error %s" % e

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(specs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    say(json.dumps(said))


def hold(spec):
    s = make(spec, socket.SOCK_STREAM)
    s.settimeout(5)
    s.connect((spec["addr"], spec["port"]))
    s.sendall(b"hello")
    s.recv(100)
    say("ready")
    s.settimeout(PATIENCE)
    sys.stdin.readline()
    try:
        s.sendall(spec["payload"].encode() * spec.get("times", 1))
        data = s.recv(100)
        say("ok " + data.decode("latin-1") if data else "closed")
    except socket.timeout:
        say("late")
    except OSError as e:
        say("error %s" % e)


def flood(spec):
    s = make(spec, socket.SOCK_DGRAM)
    payload = spec["payload"].encode()
    say("ready")
    while True:
        try:
            s.sendto(payload, (spec["addr"], spec["port"]))
        except OSError:
            pass
        time.sleep(spec.get("pause", 0.0005))


{"serve": serve, "probe": probe, "hold": hold, "flood": flood}[sys.argv[1]](json.loads(sys.argv[2]))
