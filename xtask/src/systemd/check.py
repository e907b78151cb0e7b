"""The life of the package and of its service, under systemd: see `cargo xtask vm --systemd`.

Says of each step what libtest says of a test. Each stands on the one before, so the first that finds something wrong is
the last; those that never ran are missed outside. Emulated machines are slow: all waits are long, and have an end.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import pwd
import signal
import struct
import subprocess
import sys
import time
import traceback

UNIT = "vortex-agent.service"
NAME = "vortex-agent"
CONFIG = pathlib.Path("/etc/vortex-agent/config.toml")
RECORDS = pathlib.Path("/var/lib/vortex-agent/records.ndjson")
DROP_IN = pathlib.Path("/etc/systemd/system/vortex-agent.service.d/watchdog.conf")
PORT = 4433
CERTIFICATE = "/run/vm-certificate.pem"
PATIENCE_S = 120
# As runtimes name a container's group when systemd makes it: slice and scope without the id.
SCOPES = [
    ("kubepods-besteffort-pod3f6e0d2c_5b1a_4c8e_9d7f_0a1b2c3d4e5f.slice", "cri-containerd-"),
    ("system.slice", "docker-"),
    ("machine.slice", "libpod-"),
]
RELOADS = 6


def run(*words, timeout=PATIENCE_S, fine=(0,)):
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
    assert done.returncode in fine, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def show(name, unit=UNIT):
    return run("systemctl", "show", "--value", "--property", name, unit)


def wait_for(what, is_so, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while True:
        found = is_so()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def equal(found, expected):
    assert found == expected, f"{found!r} instead of {expected!r}"


def journal(*words):
    run("journalctl", "--sync")
    return run("journalctl", "--boot", "--no-pager", "--output=cat", *words)


# The machine.


class Probes:
    """The code of a TLS library in this process, which shows each probe, and the links that the kernel has."""

    LINK_GET_NEXT_ID = 31
    SYS_BPF = 321

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.library = ctypes.CDLL("libssl.so.3")
        self.code = self.now()
        self.links = self.ids()

    def now(self):
        for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
            if " r-xp " in line and line.endswith("/libssl.so.3"):
                start, end = (int(place, 16) for place in line.split()[0].split("-"))
                return ctypes.string_at(start, end - start)
        raise AssertionError("there is no code of libssl")

    def ids(self):
        """Of all links that the kernel has."""
        found, last = set(), 0
        while True:
            attributes = ctypes.create_string_buffer(struct.pack("III", last, 0, 0), 12)
            if self.libc.syscall(self.SYS_BPF, self.LINK_GET_NEXT_ID, attributes, 12) != 0:
                error = ctypes.get_errno()
                assert error == 2, f"bpf: {os.strerror(error)}"
                return found
            last = struct.unpack("III", attributes.raw)[1]
            found.add(last)

    def new_links(self):
        return self.ids() - self.links

    def are_in(self):
        return self.now() != self.code and self.new_links()

    def are_gone(self):
        return self.now() == self.code and not self.new_links()


def files():
    """What there is, and of what people configure the content."""
    passing = ("/proc", "/sys", "/dev", "/run", "/tmp", "/vm", "/var/log", "/var/tmp")
    passing += ("/var/lib/dpkg", "/var/lib/systemd")
    found = {}
    for directory, directories, names in os.walk("/"):
        directories[:] = [
            name
            for name in directories
            if name != "__pycache__" and not os.path.join(directory, name).startswith(passing)
        ]
        for name in directories + names:
            path = os.path.join(directory, name)
            # The copies that passwd's programs keep, and their lock.
            if path.startswith("/etc/") and (path.endswith("-") or name == ".pwd.lock"):
                continue
            is_text = path.startswith("/etc/") and os.path.isfile(path)
            found[path] = pathlib.Path(path).read_bytes() if is_text else b""
    return found


def agents():
    """The processes whose program is ours, by pid."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and "vortex-agent" in os.readlink(entry / "exe"):
                found[int(entry.name)] = os.readlink(entry / "exe")
    return found


def status_of(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


# The daemon.


def configure(**more):
    settings = {"content": '"full"', "stats-interval": '"2s"', **more}
    lines = [f"{key} = {value}" for key, value in settings.items()]
    sink = ["[[sink]]", 'type = "file"', f'path = "{RECORDS}"', 'output = "json"', 'emit = ["data", "gap", "stats"]']
    CONFIG.write_text("\n".join(lines + sink) + "\n")


def health():
    return json.loads(run("vortex-agent", "health"))


def is_well():
    """Its own answer, and systemd's view of it."""
    equal(show("ActiveState"), "active")
    equal(show("SubState"), "running")
    status = health()
    equal(status["state"], "ready")
    equal(status["pid"], int(show("MainPID")))
    equal(os.readlink(f"/proc/{status['pid']}/exe"), "/usr/bin/vortex-agent")
    equal(run("systemctl", "--failed", "--no-legend", "--plain"), "")
    return status


def records():
    lines = RECORDS.read_text().splitlines(keepends=True)
    # It is being written to.
    return [json.loads(line) for line in lines if line.endswith("\n")]


def said(found, direction, connection):
    offset = 0
    pieces = [piece for piece in found if piece["connection"]["id"] == connection and piece["direction"] == direction]
    for piece in pieces:
        equal(piece["offset"], offset)
        offset += piece["length"]
    return "".join(piece["text"] for piece in pieces)


def connections(pid):
    """What a process said and heard by connection, with what is said of its container."""
    found = [record for record in records() if record["kind"] == "data" and record["process"]["pid"] == pid]
    ids = {record["connection"]["id"] for record in found}
    containers = {record.get("container", {}).get("id") for record in found}
    return [(said(found, "sent", one), said(found, "received", one)) for one in sorted(ids)], containers


def ask(name, count=5, scope=()):
    words = ["python3", "/vm/peer.py", "ask", str(PORT), name, str(count)]
    if scope:
        words = ["systemd-run", "--quiet", "--scope", *scope, *words]
    return json.loads(run(*words))


def assert_seen(client, container=None):
    """All of it, once, at both ends, and of the right container."""
    expected = [(client["sent"], client["received"])]
    seen = wait_for(f"all of {client['pid']}", lambda: complete(client["pid"], client))
    equal(seen, (expected, {container}))
    server = int(show("MainPID", "vm-server.service"))
    mirrored = (client["received"], client["sent"])
    wait_for("the same at the server", lambda: connections(server)[0].count(mirrored) == 1)
    equal(connections(server)[1], {None})


def complete(pid, client):
    seen = connections(pid)
    lengths = sum(len(sent) + len(received) for sent, received in seen[0])
    return seen if lengths >= len(client["sent"]) + len(client["received"]) else None


def assert_nothing_lost():
    gaps = [record for record in records() if record["kind"] == "gap"]
    equal(gaps, [])
    status = is_well()
    equal(status["bytes"]["lost"], 0)
    assert status["bytes"]["delivered"] > 0, status


# The steps.


class Life:
    def __init__(self):
        self.probes = Probes()
        self.files = files()

    def install(self):
        """It is there, and not started before somebody says so."""
        run("dpkg", "--install", "/vm/first.deb")
        equal(run("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}${Version}", NAME), "ii 0.1.0-1")
        equal(show("LoadState"), "loaded")
        equal(show("ActiveState"), "inactive")
        equal(run("systemctl", "is-enabled", UNIT, fine=(1,)), "disabled")
        equal(show("NeedDaemonReload"), "no")
        self.say_what_debian_asks_for()
        run("systemctl", "start", UNIT)
        is_well()
        equal(show("Type"), "notify")
        equal(show("WatchdogUSec"), "30s")
        equal(show("NotifyAccess"), "main")
        equal(show("NRestarts"), "0")
        # The main process, which systemd hears and signals, is the half without privileges.
        status = status_of(int(show("MainPID")))
        equal(set(status["Uid"].split()), {str(pwd.getpwnam(NAME).pw_uid)})
        equal(int(status["CapEff"], 16), 0)
        equal(int(status["CapPrm"], 16), 0)
        equal(status["NoNewPrivs"], "1")
        equal(set(agents().values()), {"/usr/bin/vortex-agent"})
        groups = {pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip() for pid in agents()}
        equal(groups, {f"0::/system.slice/{UNIT}"})
        # The way in which the end of this would fail.
        assert self.probes.are_in(), "no link, or no probe in this process"
        # The journal has what systemd finds wrong in a unit, or in the directories that it makes.
        warnings = journal("--priority=warning", f"INVOCATION_ID={show('InvocationID')}")
        equal([line for line in warnings.splitlines() if line.startswith(UNIT)], [])

    def say_what_debian_asks_for(self):
        """Debian's kernel wants CAP_SYS_ADMIN, which the unit does not give, or this setting: the README says so."""
        configure()
        paranoid = pathlib.Path("/proc/sys/kernel/perf_event_paranoid")
        equal(paranoid.read_text(), "3\n")
        run("systemctl", "start", UNIT, fine=(1,))
        said = journal(f"--unit={UNIT}")
        assert "CAP_SYS_ADMIN" in said and "sysctl kernel.perf_event_paranoid=2" in said, said
        # Nor is it tried again and again: no start of its own mends that.
        wait_for("the end", lambda: show("ActiveState") == "failed")
        equal(show("ExecMainStatus"), "77")
        run("systemctl", "stop", UNIT)
        equal(agents(), {})
        paranoid.write_text("2")

    def traffic_of_scopes(self):
        for number, (place, runtime) in enumerate(SCOPES):
            container = f"{number + 10:02x}" * 32
            unit = f"{runtime}{container}.scope"
            client = ask(f"scope-{number}", scope=(f"--slice={place}", f"--unit={unit}"))
            assert client["group"].endswith(f"/{place}/{unit}"), client["group"]
            assert_seen(client, container)
        assert_seen(ask("none"))
        assert_nothing_lost()

    def watchdog(self):
        with self.impatient():
            self.restart_by_watchdog()
        run("systemctl", "restart", UNIT)
        equal(show("WatchdogUSec"), "30s")

    @contextlib.contextmanager
    def impatient(self):
        """With a watchdog that does not take half a minute."""
        DROP_IN.parent.mkdir()
        try:
            DROP_IN.write_text("[Service]\nWatchdogSec=10s\n")
            run("systemctl", "daemon-reload")
            yield
        finally:
            DROP_IN.unlink()
            DROP_IN.parent.rmdir()
            run("systemctl", "daemon-reload")

    def restart_by_watchdog(self):
        run("systemctl", "restart", UNIT)
        is_well()
        equal(show("WatchdogUSec"), "10s")
        pid = int(show("MainPID"))
        # It lives for longer than that if nobody stops it.
        time.sleep(15)
        equal(int(show("MainPID")), pid)
        equal(show("NRestarts"), "0")
        before = set(agents())
        os.kill(pid, signal.SIGSTOP)
        wait_for("another main process", lambda: show("NRestarts") == "1" and show("ActiveState") == "active")
        assert "Watchdog timeout" in journal(f"--unit={UNIT}"), "another reason"
        assert int(show("MainPID")) != pid
        is_well()
        # All of what it was went with it.
        equal(before & set(agents()), set())
        assert_seen(ask("after-the-watchdog"))
        assert_nothing_lost()

    def reload_under_load(self):
        is_well()
        pid = show("MainPID")
        enough = pathlib.Path("/run/vm-enough")
        words = ["python3", "/vm/peer.py", "ask", str(PORT)]
        clients = [
            subprocess.Popen([*words, f"load-{number}", "50", str(enough)], stdout=subprocess.PIPE, text=True)
            for number in range(2)
        ]
        try:
            for client in clients:
                wait_for("what it says", lambda: connections(client.pid)[0])
            for number in range(RELOADS):
                before = health()["bytes"]["delivered"]
                # Whoever asks passes each of them, by another filter.
                configure(comm=['["python3"]', '["other", "python3"]', "[]"][number % 3])
                run("systemctl", "reload", UNIT)
                wait_for("more records", lambda: health()["bytes"]["delivered"] > before)
                assert all(client.poll() is None for client in clients), "the load has ended"
        finally:
            enough.touch()
            said = [client.communicate(timeout=PATIENCE_S)[0] for client in clients]
        enough.unlink()
        equal([client.returncode for client in clients], [0, 0])
        for client in map(json.loads, said):
            print(f"    {client['count']} requests during {RELOADS} reloads")
            assert_seen(client)
        assert_nothing_lost()
        equal(show("MainPID"), pid)
        # What is reloaded is followed.
        self.reload('["nobody"]')
        unseen = ask("unseen")
        self.reload('["python3"]')
        assert_seen(ask("seen-again"))
        equal(connections(unseen["pid"])[0], [])
        equal(show("MainPID"), pid)
        complaints = journal(f"--unit={UNIT}")
        assert "nothing of it is taken" not in complaints and "stay as they were" not in complaints, complaints
        assert_nothing_lost()

    def reload(self, comm):
        """And waits until the daemon has said that it is over."""
        configure(comm=comm)
        run("systemctl", "reload", UNIT)
        # It is asked for by then, not over; too short a wait fails, it does not pass.
        time.sleep(5)
        wait_for("the end of the reload", lambda: show("ActiveState") == "active")

    def upgrade(self):
        settings, pid = CONFIG.read_bytes(), show("MainPID")
        user = pwd.getpwnam(NAME)
        run("dpkg", "--install", "/vm/next.deb")
        equal(run("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}${Version}", NAME), "ii 0.1.0-2")
        is_well()
        assert show("MainPID") != pid, "the old program goes on"
        equal(show("NRestarts"), "0")
        equal(CONFIG.read_bytes(), settings)
        equal(CONFIG.stat().st_mode & 0o777, 0o600)
        equal(pwd.getpwnam(NAME), user)
        equal(run("systemctl", "is-enabled", UNIT, fine=(1,)), "disabled")
        assert_seen(ask("after-the-upgrade"))
        assert_nothing_lost()

    def remove(self):
        run("systemctl", "enable", UNIT)
        equal(run("systemctl", "is-enabled", UNIT), "enabled")
        assert self.probes.are_in(), "it was not watching"
        assert len(agents()) > 1, agents()
        run("dpkg", "--remove", NAME)
        equal(run("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}", NAME), "rc")
        equal(agents(), {})
        equal(show("LoadState"), "not-found")
        equal(show("ActiveState"), "inactive")
        equal(run("systemctl", "--failed", "--no-legend", "--plain"), "")
        equal(run("systemctl", "list-unit-files", "--no-legend", "--plain", "vortex*", fine=(0, 1)), "")
        assert CONFIG.exists(), "the configuration went without being purged"
        wait_for("no probe, no link", self.probes.are_gone)
        said = journal(f"--unit={UNIT}", "--lines=20")
        assert "Deactivated successfully" in said and "timed out" not in said, said

    def purge(self):
        run("dpkg", "--purge", NAME)
        equal(run("dpkg-query", "--show", NAME, fine=(1,)), "")
        now = files()
        equal(sorted(now.keys() ^ self.files.keys()), [])
        equal([path for path in now if now[path] != self.files[path]], [])
        equal([entry.name for entry in pathlib.Path("/run").iterdir() if NAME in entry.name], [])
        equal(run("systemctl", "list-units", "--all", "--no-legend", "--plain", "vortex*"), "")


def prepare():
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/run/vm-key.pem"]
    run("openssl", "req", "-x509", *key, "-out", CERTIFICATE, "-subj", "/CN=localhost", "-days", "30")
    with open(CERTIFICATE, "a") as both:
        both.write(pathlib.Path("/run/vm-key.pem").read_text())
    run("systemd-run", "--quiet", "--unit=vm-server", "python3", "/vm/peer.py", "serve", str(PORT), CERTIFICATE)
    wait_for("the server", lambda: "0100007F:%04X" % PORT in pathlib.Path("/proc/net/tcp").read_text())
    # A unit that has failed before is not ours.
    equal(run("systemctl", "--failed", "--no-legend", "--plain"), "")


def main():
    uptime = pathlib.Path("/proc/uptime").read_text().split()[0]
    print(f"VM-INIT kernel {os.uname().release} after {uptime} s")
    manager = os.readlink("/proc/1/exe")
    assert manager == "/usr/lib/systemd/systemd", f"the first process is {manager}"
    print(f"    {run('systemctl', '--version').splitlines()[0]}")
    prepare()
    life = Life()
    steps = [
        life.install,
        life.traffic_of_scopes,
        life.watchdog,
        life.reload_under_load,
        life.upgrade,
        life.remove,
        life.purge,
    ]
    passed = failed = 0
    for step in steps:
        start = time.monotonic()
        try:
            step()
            passed += 1
        except Exception:
            failed += 1
            print(traceback.format_exc())
            print(journal(f"--unit={UNIT}", "--lines=30"))
        print(f"    after {time.monotonic() - start:.1f} s")
        print(f"test systemd::{step.__name__} ... {'FAILED' if failed else 'ok'}")
        if failed:
            break
    result = "FAILED" if failed else "ok"
    print(f"test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out")
    sys.exit(failed)


main()
