"""The machines of scripts/boots: namespaces, the programs in them, the capture, and the steps of a boot."""

import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PATIENCE = 60
# The user of the node and of the rules.
USER = 65534
HUB4, HUB6 = "10.77.0.2", "fd77::2"
APP4, APP6 = "10.77.0.1", "fd77::1"
# The port of the mesh's service, of a program without the mesh, and of a program on the machine that boots.
SERVICE, PLAIN, INNER = 5000, 5001, 6001
LIBC = ctypes.CDLL(None, use_errno=True)
FORK = multiprocessing.get_context("fork")

HUB_FILE = """
[node]
name = "auth"
trust_domain = "example.org"
state_dir = "{dir}/auth"
admin = "off"
[authority]
listen = "10.77.0.2:7400"
[[service]]
name = "db"
listen = "10.77.0.2:7432"
forward = "127.0.0.1:5000"
allow = ["node/app"]
[[service]]
name = "db-6"
listen = "[fd77::2]:7432"
forward = "[::1]:5000"
allow = ["node/app"]
"""
APP_FILE = """
[node]
name = "app"
trust_domain = "example.org"
state_dir = "{dir}/state"
authority = ["10.77.0.2:7400"]
join_token_file = "{dir}/token"
admin = "off"
[[service]]
name = "inner"
listen = "10.77.0.1:7432"
forward = "127.0.0.1:6001"
allow = ["node/auth"]
[intercept]
mode = "strict"
protect = ["10.77.0.0/24", "fd77::/64"]
"""


# ---- Namespaces.


def sh(script):
    ran = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"{script}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def enter(namespace):
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if LIBC.setns(fd, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(fd)


class Helper:
    """A process of this script in a namespace. It runs `work(pipe)`; `ask` sends it a word and returns its answer."""

    def __init__(self, namespace, work, *args):
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._run, args=(namespace, work, theirs, args), daemon=True)
        self.process.start()
        theirs.close()
        self.receive()

    @staticmethod
    def _run(namespace, work, pipe, args):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        enter(namespace)
        work(pipe, *args)

    def receive(self):
        if not self.pipe.poll(PATIENCE):
            raise SystemExit("a helper process hangs")
        return self.pipe.recv()

    def ask(self, word):
        self.pipe.send(word)
        return self.receive()

    def end(self):
        self.process.kill()
        self.process.join()


# ---- The other machine: destinations, a client from outside, and the capture.


def hub(pipe):
    heard, lock = {}, threading.Lock()

    def note(data, how):
        with lock:
            for word in data.split():
                if word.startswith(b"CANARY"):
                    key = (word.decode("latin-1").split("/")[0], how)
                    heard[key] = heard.get(key, 0) + 1

    def answer(c):
        # The relay's connection to its backend comes over loopback.
        here = c.getsockname()[0]
        how = "encrypted" if here in ("127.0.0.1", "::1") else "plain"
        c.settimeout(5)
        try:
            while data := c.recv(4096):
                note(data, how)
                c.sendall(how.encode() + b" ")
        except OSError:
            pass
        c.close()

    def listen_tcp(family, port):
        s = socket.socket(family, socket.SOCK_STREAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind(("", port))
        s.setsockopt(socket.IPPROTO_TCP, 23, 64)  # TCP_FASTOPEN
        s.listen(128)
        while True:
            threading.Thread(target=answer, args=(s.accept()[0],), daemon=True).start()

    def listen_udp(family, port):
        s = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind(("", port))
        while True:
            data, peer = s.recvfrom(4096)
            note(data, "plain")
            try:
                s.sendto(b"plain ", peer)
            except OSError:
                pass

    for family in (socket.AF_INET, socket.AF_INET6):
        for port in (SERVICE, PLAIN):
            threading.Thread(target=listen_tcp, args=(family, port), daemon=True).start()
            threading.Thread(target=listen_udp, args=(family, port), daemon=True).start()
    busy = threading.Event()
    for address in (APP4, APP6):
        threading.Thread(target=from_outside, args=(address, busy), daemon=True).start()
    capture = None
    pipe.send("ready")
    while True:
        word, *args = pipe.recv()
        if word == "begin":
            with lock:
                heard.clear()
            capture = Capture(*args)
            busy.set()
            pipe.send(None)
        elif word == "end":
            busy.clear()
            time.sleep(0.02)
            with lock:
                pipe.send((capture.end(), dict(heard)))


def from_outside(address, busy):
    """A client of the machine that boots."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        busy.wait()
        time.sleep(0.01)
        try:
            u = socket.socket(family, socket.SOCK_DGRAM)
            u.sendto(b"INWARD", (address, INNER))
            t = socket.socket(family, socket.SOCK_STREAM)
            t.settimeout(0.1)
            t.connect((address, INNER))
            t.sendall(b"INWARD")
            t.recv(100)
        except OSError:
            pass
        finally:
            u.close()
            t.close()


class Capture:
    """Counts canaries on an interface, as the machine at the other end of the wire receives them."""

    def __init__(self, interface, canary):
        self.canary, self.stop = canary, False
        self.times, self.bytes, self.first = 0, 0, None
        self.kinds = {}
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((interface, 3))
        self.socket.settimeout(0.02)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                frame = self.socket.recv(65536)
            except TimeoutError:
                if self.stop:
                    return
                continue
            except OSError:  # the interface is gone
                if self.stop:
                    return
                continue
            self.bytes += len(frame)
            found = frame.count(self.canary)
            if found:
                self.times += found
                word = frame[frame.index(self.canary):].split()[0].decode("latin-1")
                self.kinds[word] = self.kinds.get(word, 0) + found

    def end(self):
        self.stop = True
        self.thread.join()
        lost = int.from_bytes(self.socket.getsockopt(263, 6, 8)[4:8], sys.byteorder)  # PACKET_STATISTICS
        self.socket.close()
        return {"canaries": self.times, "bytes": self.bytes, "lost": lost, "by": self.kinds}


# ---- The programs of the machine that boots.


def programs(pipe, canary):
    done, lock = {}, threading.Lock()
    inward = [0]

    def note(what, how):
        with lock:
            done[what, how] = done.get((what, how), 0) + 1

    def family(address):
        return socket.AF_INET6 if ":" in address else socket.AF_INET

    def tcp(address, port, fast):
        what = f"{'tfo' if fast else 'tcp'}-{port}-{'6' if ':' in address else '4'}"
        text = canary + b"/" + what.encode() + b" "
        while True:
            s = socket.socket(family(address), socket.SOCK_STREAM)
            s.settimeout(0.15)
            try:
                if fast:
                    s.sendto(text, 0x20000000, (address, port))  # MSG_FASTOPEN
                else:
                    s.connect((address, port))
                    s.sendall(text)
                s.settimeout(1)
                note(what, s.recv(100).decode().strip() or "closed")
                time.sleep(0.02)
            except OSError:
                note(what, "failed")
                time.sleep(0.003)
            s.close()

    def udp(address):
        text = canary + b"/udp" + (b"6 " if ":" in address else b"4 ")
        s = socket.socket(family(address), socket.SOCK_DGRAM)
        s.setblocking(False)
        while True:
            try:
                s.sendto(text, (address, PLAIN))
                note("udp", s.recv(100).decode().strip())
            except OSError:
                pass
            time.sleep(0.002)

    def raw(address, protocol, head):
        s = socket.socket(family(address), socket.SOCK_RAW, protocol)
        text = head + canary + b"/raw%d " % protocol
        text += b" " * (len(text) % 2)
        if protocol == 1:
            total = sum(int.from_bytes(text[n : n + 2], "big") for n in range(0, len(text), 2))
            total = (total & 0xFFFF) + (total >> 16)
            text = text[:2] + (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + text[4:]
        while True:
            try:
                s.sendto(text, (address, 0))
            except OSError:
                pass
            time.sleep(0.005)

    def serve(family):
        u = socket.socket(family, socket.SOCK_DGRAM)
        t = socket.socket(family, socket.SOCK_STREAM)
        t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for s in (u, t):
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind(("", INNER))
        t.listen(64)

        def datagrams():
            while True:
                data, peer = u.recvfrom(100)
                inward[0] += 1
                try:
                    u.sendto(canary + b"/reply-udp ", peer)
                except OSError:
                    pass

        threading.Thread(target=datagrams, daemon=True).start()
        while True:
            c, peer = t.accept()
            try:
                # A server that speaks first.
                c.sendall(canary + b"/reply-tcp ")
                inward[0] += 1
            except OSError:
                pass
            c.close()

    start = lambda work, *args: threading.Thread(target=work, args=args, daemon=True).start()
    for v in (socket.AF_INET, socket.AF_INET6):
        start(serve, v)
    for address in (HUB4, HUB6):
        start(tcp, address, SERVICE, False)
        start(tcp, address, PLAIN, False)
        start(tcp, address, PLAIN, True)
        start(udp, address)
        start(raw, address, 253, b"")
    start(raw, HUB4, 1, b"\x08\0\0\0\0\x4d\0\x01")
    start(raw, HUB6, 58, b"\x80\0\0\0\0\x4d\0\x01")
    pipe.send("ready")
    while True:
        pipe.recv()
        with lock:
            pipe.send((dict(done), inward[0]))


# ---- Boots.


class Failure(Exception):
    pass


class Machine:
    """One boot."""

    def __init__(self, lab, number, rules=True):
        self.lab, self.number, self.rules = lab, number, rules
        self.ns = f"{lab.id}b{number}{'' if rules else 'x'}"
        self.wire = f"{lab.id}w{number}{'' if rules else 'x'}"
        self.canary = f"CANARY-{number}{'' if rules else 'x'}".encode()
        self.node = self.guard = self.programs = None
        self.addresses = False
        self.said = []
        sh(f"""ip netns add {self.ns}
            ip -n {self.ns} link set lo up
            ip -n {lab.hub_ns} link add {self.wire} type veth peer name eth0 netns {self.ns}
            ip -n {lab.hub_ns} link set {self.wire} master br0
            ip -n {lab.hub_ns} link set {self.wire} up""")
        lab.hub.ask(("begin", self.wire, self.canary))

    def command(self, *args, user=USER, caps="net_admin"):
        caps = ",".join("+" + cap for cap in caps.split(",") if cap)
        drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        if user:
            drop += [f"--inh-caps=-all,{caps}", f"--ambient-caps=-all,{caps}", f"--bounding-set=-all,{caps}"]
        return ["ip", "netns", "exec", self.ns, *drop, *args]

    def wiretight(self, *args, **how):
        return self.command(self.lab.binary, *args, "--config", f"{self.lab.dir}/app.toml", **how)

    def run(self, command):
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.lab.env)

    # The steps.

    def step(self, letter):
        step = {"R": self.load_rules, "A": self.bring_up, "N": self.start_node, "P": self.start_programs}[letter]
        if step() is False:
            raise Failure(f"the rules are not loaded: {self.said[-1]}")

    def load_rules(self):
        """As wiretight-rules.service and wiretight-guard.service. If the first fails, units that require it do not start."""
        if not self.rules:
            return True
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = f"{self.lab.dir}/notify"
        if os.path.exists(path):
            os.unlink(path)
        notify.bind(path)
        os.chmod(path, 0o777)
        notify.settimeout(0.02)
        env = dict(self.lab.env, NOTIFY_SOCKET=path)
        log = open(f"{self.lab.dir}/rules.log", "a+b")
        at = log.tell()
        self.guard = subprocess.Popen(
            self.wiretight("rules", "guard"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if b"READY=1" in notify.recv(4096):
                    return True
            except TimeoutError:
                pass
            if self.guard.poll() is not None:
                self.guard = None
                log.seek(at)
                self.said.append(log.read().decode(errors="replace"))
                return False
        raise Failure("the rules are not loaded in time")

    def bring_up(self):
        self.addresses = True
        batch = f"""addr add {APP4}/24 dev eth0
addr add {APP6}/64 dev eth0 nodad
link set eth0 up
"""
        subprocess.run(["ip", "-n", self.ns, "-batch", "-"], input=batch, text=True, check=True)

    def start_node(self, keep=True):
        """As wiretight.service: whenever it ends, it is started again."""
        self.node = Service(self, keep)

    def start_programs(self):
        self.programs = Helper(self.ns, programs, self.canary)

    # What goes wrong.

    def nft(self, text):
        return self.run(self.command("nft", text, user=0))

    def until(self, so):
        end = time.monotonic() + PATIENCE
        while not so():
            if time.monotonic() > end:
                raise Failure("not in time")
            time.sleep(0.001)

    def wait_until_encrypted(self):
        end = time.monotonic() + PATIENCE
        base = None
        while time.monotonic() < end:
            done, _ = self.programs.ask("done")
            now = [done.get((f"tcp-{SERVICE}-{v}", "encrypted"), 0) for v in "46"]
            base = base or now
            if all(a > b for a, b in zip(now, base)):
                return
            time.sleep(0.02)
        raise Failure("programs do not get through, encrypted")

    def off(self):
        """The power is cut. Returns what was seen."""
        done, inward = self.programs.ask("done") if self.programs else ({}, 0)
        if self.node:
            self.node.end()
        if self.guard:
            self.guard.kill()
            self.guard.wait()
        if self.programs:
            self.programs.end()
        seen, heard = self.lab.hub.ask(("end",))
        pids = sh(f"ip netns pids {self.ns}").split()
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        sh(f"ip -n {self.lab.hub_ns} link del {self.wire}; ip netns del {self.ns}")
        canary = self.canary.decode()
        plain = heard.get((canary, "plain"), 0)
        return {
            "canaries": seen["canaries"],
            "by": seen["by"],
            "bytes": seen["bytes"],
            "lost": seen["lost"],
            "plain": plain + (inward if self.rules else 0),
            "inward": inward,
            "encrypted": heard.get((canary, "encrypted"), 0),
            "tried": sum(done.values()),
        }


class Service:
    """Runs `wiretight run` until it is ended."""

    def __init__(self, machine, keep):
        self.machine, self.keep, self.over = machine, keep, False
        self.process = None
        self.starts = 0
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        self.begun.wait()

    def run(self):
        log = open(f"{self.machine.lab.dir}/node.log", "ab")
        while not self.over:
            command = self.machine.wiretight("run", caps="net_admin,net_raw")
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.machine.lab.env
            )
            self.starts += 1
            self.begun.set()
            self.process.wait()
            if not self.keep:
                return
            time.sleep(0.1)

    def kill(self):
        """kill -9 of the node; with `Restart=always` it is started again."""
        self.process.kill()

    def end(self):
        self.over = True
        self.process.kill()
        self.thread.join()


class Lab:
    def __init__(self, binary, seed):
        self.id = f"wt{os.getpid()}"
        self.hub_ns = f"{self.id}h"
        self.random = random.Random(seed)
        self.next_order = 0
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WIRETIGHT_")}
        self.dir = tempfile.mkdtemp(prefix="wiretight-boots-")
        os.chmod(self.dir, 0o755)
        self.binary = f"{self.dir}/wiretight"
        shutil.copy(binary, self.binary)
        os.chmod(self.binary, 0o755)
        self.authority = self.hub = None

    def __enter__(self):
        sh(f"""ip netns add {self.hub_ns}
            ip -n {self.hub_ns} link set lo up
            ip -n {self.hub_ns} link add br0 type bridge mcast_snooping 0
            ip -n {self.hub_ns} link set br0 up
            ip -n {self.hub_ns} addr add {HUB4}/24 dev br0
            ip -n {self.hub_ns} addr add {HUB6}/64 dev br0 nodad
            mkdir -m 0700 {self.dir}/state
            chown {USER}:{USER} {self.dir}/state""")
        for name, text in (("hub", HUB_FILE), ("app", APP_FILE)):
            with open(f"{self.dir}/{name}.toml", "w") as f:
                f.write(text.format(dir=self.dir))
        log = open(f"{self.dir}/hub.log", "ab")
        self.authority = subprocess.Popen(
            ["ip", "netns", "exec", self.hub_ns, self.binary, "run", "--config", f"{self.dir}/hub.toml"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env,
        )
        at = ["--config", f"{self.dir}/hub.toml"]
        end = time.monotonic() + PATIENCE
        while subprocess.run([self.binary, "status", *at], capture_output=True, env=self.env).returncode == 3:
            if time.monotonic() > end or self.authority.poll() is not None:
                raise SystemExit(open(f"{self.dir}/hub.log").read())
            time.sleep(0.05)
        grant = ["node", "grant", "auth", "--add", "--address", HUB6]
        subprocess.run([self.binary, *grant, *at], check=True, capture_output=True, env=self.env)
        token = ["token", "create", "--node", "app", "--service", "inner", "--json"]
        made = subprocess.run([self.binary, *token, *at], check=True, capture_output=True, text=True, env=self.env)
        with open(f"{self.dir}/token", "w") as f:
            f.write(json.loads(made.stdout)["token"])
        os.chmod(f"{self.dir}/token", 0o600)
        os.chown(f"{self.dir}/token", USER, USER)
        self.hub = Helper(self.hub_ns, hub)
        # The first run: it joins, and strict mode is on from then.
        m = Machine(self, 0, rules=False)
        for step in "ANP":
            m.step(step)
        m.wait_until_encrypted()
        m.off()
        return self

    def __exit__(self, failed, *_):
        if self.hub:
            self.hub.end()
        if self.authority:
            self.authority.kill()
            self.authority.wait()
        for name in os.listdir("/run/netns"):
            if name.startswith(self.id):
                for pid in sh(f"ip netns pids {name}").split():
                    os.kill(int(pid), signal.SIGKILL)
                sh(f"ip netns del {name}")
        if failed:
            for name in ("hub", "node", "rules"):
                text = open(f"{self.dir}/{name}.log").read() if os.path.exists(f"{self.dir}/{name}.log") else ""
                print(f"---- {name}.log\n{text[-3000:]}", file=sys.stderr)
        shutil.rmtree(self.dir, ignore_errors=True)

    def boot(self, kind, run, number, rules):
        m = Machine(self, number, rules)
        begun = time.monotonic()
        problem, must_leak = None, False
        try:
            detail, must_leak = run(self, m)
        except Failure as e:
            detail, problem = "", str(e)
        seen = m.off()
        seen.update(kind=kind, detail=detail, rules=rules, seconds=round(time.monotonic() - begun, 2))
        if seen["lost"]:
            problem = problem or f"the capture lost {seen['lost']} packets"
        if rules and (seen["canaries"] or seen["plain"]):
            problem = f"{seen['canaries']} canaries on the wire, {seen['plain']} delivered: {seen['by']}"
        if not rules and must_leak and not seen["canaries"]:
            problem = problem or "the control found nothing"
        seen["problem"] = problem
        return seen
