//! Which file is which: one library below two mounts, mounts that must go, a library written in place.

use std::process::Command;

use crate::harness::{
    Agent, End, Lab, PYTHON, Proc, Run, argv, bare, scaled, seconds, skip, wait_for,
};

/// A shell in a mount namespace of its own runs the script; `$1` is the test's directory, `$2` the server.
fn in_own_mounts(lab: &Lab, server: &str, script: &str) -> Run {
    lab.private_libssl("private");
    // Two seconds are promised, on a machine that has time for us.
    let script = format!(
        "set -e; cd \"$1\"; \
         unmount() {{ n=0; until umount \"$1\"; do n=$((n + 1)); [ $n -lt 100 ] || return 1; sleep 0.2; done; \
           echo \"$1 could be unmounted after $n fifths of a second\"; }}; {script}"
    );
    let command = argv![
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        lab.path("."),
        server
    ];
    // Nothing here is about a ring that is full.
    let ring = argv!["--ring-size", (64 << 20).to_string()];
    lab.agent().options(ring).run(command)
}

/// No call was seen by two links: the second one would find the frame of the first one, and count it as left
/// behind.
fn assert_once(run: &Run) {
    if bare() {
        return;
    }
    let records = run.records();
    let calls = &records.last_stats().unwrap()["ledger"]["calls"];
    assert_eq!(calls["unmatched"]["abandoned"], 0, "{calls}");
    assert_eq!(calls["entries"], calls["returns"], "{calls}");
    let said = run.process.err();
    assert!(!said.contains("two links"), "{said}");
}

/// Two overlay mounts show one file as two. It is probed once, and each byte comes once.
#[test]
fn two_overlays_over_one_file() {
    let Some(lab) = Lab::with("two_overlays_over_one_file", &["curl", "unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    let run = in_own_mounts(
        &lab,
        &server.url("/bytes/20000"),
        "mount -t tmpfs none /mnt; \
         for n in 1 2; do mkdir -p /mnt/up$n /mnt/work$n m$n; mount -t overlay none \
           -o lowerdir=$PWD/private,upperdir=/mnt/up$n,workdir=/mnt/work$n m$n || exit 77; done; \
         for n in 1 2 1 2; do LD_LIBRARY_PATH=$PWD/m$n curl -sk -o /dev/null \"$2\"; done; \
         LD_LIBRARY_PATH=$PWD/m1 curl -sk -o /dev/null \"$2\" & \
         LD_LIBRARY_PATH=$PWD/m2 curl -sk -o /dev/null \"$2\"; wait",
    );
    if run.end == End::Code(77) {
        return skip("two_overlays_over_one_file", "no overlay can be mounted");
    }
    run.assert_exact(&server.client_truth());
    assert_once(&run);
}

/// One file by many ways: below an overlay on an overlay, by a hard link, through a bind mount.
#[test]
fn one_file_by_many_ways() {
    let Some(lab) = Lab::with("one_file_by_many_ways", &["curl", "unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    let run = in_own_mounts(
        &lab,
        &server.url("/bytes/20000"),
        "mount -t tmpfs none /mnt; mkdir /mnt/up1 /mnt/up2 /mnt/work1 /mnt/work2 m1 m2 bound linked; \
         lower=$PWD/private; for n in 1 2; do mount -t overlay none \
           -o lowerdir=$lower,upperdir=/mnt/up$n,workdir=/mnt/work$n m$n || exit 77; lower=$PWD/m1; done; \
         mount --bind private bound; ln private/libssl.so.3 linked/libssl.so.3; \
         for d in m2 private m1 linked bound; do \
           LD_LIBRARY_PATH=$PWD/$d curl -sk -o /dev/null \"$2\"; done; \
         for d in m2 private m1 linked bound; do \
           LD_LIBRARY_PATH=$PWD/$d curl -sk -o /dev/null \"$2\" & done; wait",
    );
    if run.end == End::Code(77) {
        return skip("one_file_by_many_ways", "no overlay can be mounted");
    }
    run.assert_exact(&server.client_truth());
    assert_once(&run);
}

/// A file that another one replaces by its name: who maps it is seen until the end, who comes later maps the
/// new one, and both are let go.
#[test]
fn renamed_over() {
    let Some(lab) = Lab::with("renamed_over", &["curl", "unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    lab.file("client.py", CLIENT);
    let url = server.url("/bytes/20000");
    let run = in_own_mounts(
        &lab,
        &url,
        &format!(
            "mount -t tmpfs none /mnt; cp private/* /mnt; export LD_LIBRARY_PATH=/mnt; \
             {PYTHON} -c 'import ssl; from client import *; open(\"ready\", \"w\"); \
               requests({port}); wait_for(\"go\"); requests({port})' & \
             until [ -e ready ]; do sleep 0.01; done; \
             cp private/libssl.so.3 /mnt/new; mv /mnt/new /mnt/libssl.so.3; curl -sk -o /dev/null \"$2\"; \
             touch go; wait $!; curl -sk -o /dev/null \"$2\"; unmount /mnt",
            port = server.port,
        ),
    );
    run.assert_exact(&server.client_truth());
}

/// The mount that a file was probed through can go while others use the file through theirs. Under load and
/// with calls that last all the time, no byte is lost and none comes twice. The server stands still before the mount's
/// last user leaves, so that no moment is without a call.
#[test]
fn probes_move_to_another_mount() {
    let Some(lab) = Lab::with("probes_move_to_another_mount", &["unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    lab.file("client.py", CLIENT);
    lab.file(
        "busy.py",
        "\
import os, sys
from client import *
while not os.path.exists('stop'):
    requests(sys.argv[1], [10000] * 50)
",
    );
    let run = in_own_mounts(
        &lab,
        &server.pid().to_string(),
        &format!(
            "mount -t tmpfs none /mnt; \
             for n in 1 2; do mkdir -p /mnt/up$n /mnt/work$n m$n; mount -t overlay none \
               -o lowerdir=$PWD/private,upperdir=/mnt/up$n,workdir=/mnt/work$n m$n || exit 77; done; \
             LD_LIBRARY_PATH=$PWD/m1 {PYTHON} -c 'import ssl; from client import *; requests({port}); \
               open(\"ready\", \"w\"); wait_for(\"go\"); requests({port}); \
               open(\"done\", \"w\"); wait_for(\"leave\")' & first=$!; \
             until [ -e ready ]; do sleep 0.01; done; \
             for n in 1 2; do LD_LIBRARY_PATH=$PWD/m2 {PYTHON} busy.py {port} & done; \
             sleep 1; touch go; until [ -e done ]; do sleep 0.01; done; \
             kill -STOP \"$2\"; touch leave; wait $first; sleep 2.5; umount m1 && exit 4; kill -CONT \"$2\"; \
             unmount m1 || {{ touch stop; exit 3; }}; sleep 0.5; touch stop; wait",
            port = server.port,
        ),
    );
    match run.end {
        End::Code(77) => {
            return skip("probes_move_to_another_mount", "no overlay can be mounted");
        }
        // Without probes nothing holds the mount.
        End::Code(4) if bare() => return,
        _ => {}
    }
    run.assert_exact(&server.client_truth());
    assert_once(&run);
}

/// A library that never had a path, and one that lost it before it was mapped.
#[test]
fn files_without_a_name() {
    let Some(lab) = Lab::new("files_without_a_name") else {
        return;
    };
    let server = lab.server(&[]);
    lab.private_libssl("private");
    lab.file("client.py", CLIENT);
    // The name inside the library is what the next one that needs it asks for.
    let program = lab.file(
        "nameless.py",
        "\
import ctypes, os, sys
from client import *
library = 'private/libssl.so.3'
if sys.argv[2] == 'memfd':
    file = os.memfd_create('library')
    os.write(file, open(library, 'rb').read())
else:
    file = os.open(library, os.O_RDONLY)
    os.unlink(library)
ctypes.CDLL('/proc/self/fd/%d' % file)
requests(sys.argv[1])
",
    );
    let script = format!(
        "cd {}; for how in memfd deleted; do {PYTHON} {} {} $how || exit 1; done",
        lab.path(".").display(),
        program.display(),
        server.port,
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return;
    }
    let records = run.records();
    let paths: Vec<&str> = records
        .kind("coverage")
        .filter(|record| record["status"] == "probed")
        .filter_map(|record| record["library"]["path"].as_str())
        .collect();
    for name in ["/memfd:library (deleted)", "/libssl.so.3 (deleted)"] {
        assert!(paths.iter().any(|path| path.ends_with(name)), "{paths:?}");
    }
}

/// A btrfs snapshot shows its files under their originals' numbers, and they are other files for the kernel: both
/// are probed.
#[test]
fn snapshot_and_original() {
    let Some(lab) = Lab::with(
        "snapshot_and_original",
        &["curl", "unshare", "losetup", "mkfs.btrfs", "btrfs"],
    ) else {
        return;
    };
    let server = lab.server(&[]);
    let run = in_own_mounts(
        &lab,
        &server.url("/bytes/20000"),
        "truncate -s 120M image; mkfs.btrfs -q image; mkdir volume; \
         device=$(losetup -f --show image) || exit 77; \
         mount $device volume || { losetup -d $device; exit 77; }; \
         btrfs -q subvolume create volume/one; cp private/* volume/one; \
         btrfs -q subvolume snapshot volume/one volume/two; \
         for n in one two one; do LD_LIBRARY_PATH=$PWD/volume/$n curl -sk -o /dev/null \"$2\"; done; \
         LD_LIBRARY_PATH=$PWD/volume/one curl -sk -o /dev/null \"$2\" & \
         LD_LIBRARY_PATH=$PWD/volume/two curl -sk -o /dev/null \"$2\"; wait; \
         unmount volume || { losetup -d $device; exit 3; }; losetup -d $device; \
         test ! -e /sys/block/${device#/dev/}/loop/backing_file",
    );
    if run.end == End::Code(77) {
        return skip("snapshot_and_original", "no btrfs can be mounted");
    }
    run.assert_exact(&server.client_truth());
}

/// A file system can be unmounted two seconds after the last process that used a library on it.
#[test]
fn left_mounts_are_let_go() {
    let Some(lab) = Lab::with(
        "left_mounts_are_let_go",
        &["curl", "unshare", "losetup", "mkfs.ext4"],
    ) else {
        return;
    };
    let server = lab.server(&[]);
    let run = in_own_mounts(
        &lab,
        &server.url("/bytes/20000"),
        "truncate -s 40M image; mkfs.ext4 -q -F image; mkdir volume; \
         device=$(losetup -f --show image) || exit 77; mount $device volume; \
         cp private/* volume/; LD_LIBRARY_PATH=$PWD/volume curl -sk -o /dev/null \"$2\"; \
         unmount volume || { losetup -d $device; exit 3; }; losetup -d $device; \
         test ! -e /sys/block/${device#/dev/}/loop/backing_file",
    );
    if run.end == End::Code(77) {
        return skip("left_mounts_are_let_go", "no loop device is free");
    }
    run.success();
    run.assert_exact(&server.client_truth());
}

/// A library whose content is zeroed in place, looked at until that is what runs, for `patience` seconds at most,
/// written back, and replaced. Runs with a client between each.
fn rewritten(lab: &Lab, agent: Agent<'_>, patience: &str) -> Run {
    let server = lab.server(&[]);
    let zeros = "\
import mmap, os, sys, time
file = open('private/libssl.so.3', 'r+b')
size = os.fstat(file.fileno()).st_size
file.write(bytes(size))
file.flush()
deadline = time.monotonic() + float(sys.argv[1])
while True:
    view = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    other = [at for at in range(size) if view[at]]
    if not other:
        break
    assert time.monotonic() < deadline, 'not what was written: %r' % other
    time.sleep(0.1)
";
    lab.file("zeros.py", zeros);
    let request = format!(
        "LD_LIBRARY_PATH=$PWD/private curl -sk -o /dev/null {}",
        server.url("/bytes/20000")
    );
    let script = format!(
        "set -e; cd {}; cp private/libssl.so.3 kept; {request}; {PYTHON} zeros.py {patience}; \
         cat kept > private/libssl.so.3; {request}; \
         cp kept new; mv new private/libssl.so.3; {request}",
        lab.path(".").display(),
    );
    let run = agent.run(argv!["sh", "-c", script]);
    run.success();
    if !bare() {
        run.assert_exact(&server.client_truth());
    }
    run
}

/// Who writes into a probed library waits until no breakpoint is in it; what was written is what runs.
#[test]
fn rewritten_in_place() {
    let Some(lab) = Lab::with("rewritten_in_place", &["curl"]) else {
        return;
    };
    lab.private_libssl("private");
    rewritten(&lab, lab.agent(), "0");
}

/// Where nobody gives a lease the write is noticed, and who maps the file a moment later runs what was written.
#[test]
fn rewritten_without_a_lease() {
    let Some(lab) = Lab::with("rewritten_without_a_lease", &["curl", "setpriv"]) else {
        return;
    };
    let library = lab.private_libssl("private").join("libssl.so.3");
    // A lease on another one's file needs a capability.
    std::os::unix::fs::chown(&library, Some(65534), None).unwrap();
    let without = argv![
        "setpriv",
        "--inh-caps",
        "-lease",
        "--bounding-set",
        "-lease"
    ];
    rewritten(&lab, lab.agent().before(without), "20");
}

/// New versions are copied over a library while clients come and go: who maps one runs what it holds, and the
/// agent goes on.
#[test]
fn copied_over_under_load() {
    let Some(lab) = Lab::with("copied_over_under_load", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    lab.private_libssl("private");
    let rounds = scaled("rounds", 6, 2);
    let script = format!(
        "set -e; cd {}; cp private/libssl.so.3 kept; \
         n=0; while [ $n -lt {rounds} ]; do n=$((n + 1)); \
           for m in 1 2 3; do LD_LIBRARY_PATH=$PWD/private curl -sk -o /dev/null {url}; done; \
           : > private/libssl.so.3; cat kept > private/libssl.so.3; \
           {PYTHON} clean.py; \
           LD_LIBRARY_PATH=$PWD/private curl -sk -o /dev/null {url} & \
           LD_LIBRARY_PATH=$PWD/private curl -sk -o /dev/null {url} & wait; done",
        lab.path(".").display(),
        url = server.url("/bytes/20000"),
    );
    lab.file(
        "clean.py",
        "\
import mmap, os
file = open('private/libssl.so.3', 'rb')
kept = open('kept', 'rb').read()
view = mmap.mmap(file.fileno(), len(kept), mmap.MAP_PRIVATE, mmap.PROT_READ)
assert view[:] == kept, 'a breakpoint is left'
",
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.success();
    let truth = server.client_truth();
    assert_eq!(truth.len() as u64, 5 * rounds);
    if bare() {
        return;
    }
    let records = run.records();
    records.check_ledger().unwrap();
    // On a busy machine the probes are back later than a client is held for them.
    let connections = records.connections().unwrap();
    let seen = connections
        .iter()
        .filter(|connection| truth.iter().any(|truth| connection.is(truth)));
    assert!(seen.count() >= truth.len() / 2, "{}", run.process.err());
}

/// What the clients here have in common: a wait for a file, and requests over one connection, which wait for
/// their answer inside the library: without a time limit, for with one Python waits outside.
const CLIENT: &str = "\
import os, signal, sys, time
signal.alarm(60)

def wait_for(name):
    for _ in range(3000):
        if os.path.exists(name):
            return
        time.sleep(0.01)
    sys.exit('no ' + name)

def requests(port, sizes=(1, 20000, 170000)):
    import http.client, ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection('127.0.0.1', int(port), context=context)
    for size in sizes:
        connection.request('POST', '/echo', os.urandom(size))
        assert len(connection.getresponse().read()) == size
    connection.close()
";

/// A client below an overlay that maps the private libssl, has it copied up and waits for `go`.
const COPIED_UP: &str = "\
import os, ssl, sys
from client import *
library = 'merged/libssl.so.3'
assert os.path.abspath(library) in open('/proc/self/maps').read()
content = open(library, 'rb').read()
with open(library, 'r+b') as file:
    file.write(content)
if sys.argv[2] == 'gone':
    os.rename('private/libssl.so.3', 'private/moved')
print('ready', flush=True)
wait_for('go')
requests(sys.argv[1])
";

/// With these options, and what may be done then.
const WHOLE: &str =
    "mount -t overlay none -o lowerdir=$PWD/private,upperdir=/mnt/up,workdir=/mnt/work merged";

fn copied_up(lab: &Lab, port: u16, layer: &str, mount: &str) -> Option<Proc> {
    lab.private_libssl("private");
    lab.file("client.py", CLIENT);
    lab.file("copied_up.py", COPIED_UP);
    let script = format!(
        "cd \"$1\"; mount -t tmpfs none /mnt && mkdir /mnt/up /mnt/work merged && {mount} || exit 77; \
         LD_LIBRARY_PATH=$PWD/merged exec {PYTHON} copied_up.py {port} {layer}"
    );
    let mut command = Command::new("unshare");
    command.args(argv!["-m", "sh", "-c", script, "sh", lab.path(".")]);
    let client = lab.spawn(command, "client");
    wait_for("the copy-up", seconds(20), || {
        let is_over = client.ended().is_some() || client.out().contains("ready");
        is_over.then_some(())
    });
    match client.ended() {
        Some(End::Code(77)) => {
            skip("copied_up", "no overlay can be mounted");
            None
        }
        Some(end) => panic!("{end:?}: {}", client.err()),
        None => Some(client),
    }
}

/// Somebody opens a probed library for writing while a process is inside a call: the probes are out at once, the
/// process goes on unharmed and its records say that it is not seen. It is again once the library is mapped
/// again, also by the thread whose call was cut.
#[test]
fn written_inside_a_call() {
    let Some(lab) = Lab::with("written_inside_a_call", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    lab.private_libssl("private");
    lab.file("client.py", CLIENT);
    lab.file(
        "inside.py",
        "\
import sys
from client import *
def sizes():
    yield 10
    open('ready', 'w')
    wait_for('stopped')
    yield 20000
requests(sys.argv[1], sizes())
open('out', 'w')
wait_for('again')
requests(sys.argv[1], [77777, 1])
",
    );
    lab.file(
        "write.py",
        "\
with open('private/libssl.so.3', 'r+b') as file:
    content = file.read()
    file.seek(0)
    file.write(content)
",
    );
    let script = format!(
        "cd {dir}; LD_LIBRARY_PATH=$PWD/private {PYTHON} inside.py {port} & client=$!; \
         until [ -e ready ]; do sleep 0.01; done; kill -STOP {server}; touch stopped; sleep 0.5; \
         {PYTHON} write.py; kill -CONT {server}; until [ -e out ]; do sleep 0.01; done; \
         LD_LIBRARY_PATH=$PWD/private curl -sk -o /dev/null {url}; touch again; wait $client",
        dir = lab.path(".").display(),
        port = server.port,
        server = server.pid(),
        url = server.url("/bytes/20000"),
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.success();
    let truth = server.client_truth();
    if bare() {
        return;
    }
    let records = run.records();
    records.check_ledger().unwrap();
    let whole: Vec<_> = truth
        .into_iter()
        .filter(|truth| !String::from_utf8_lossy(&truth.sent).contains("Content-Length: 20000\r"))
        .collect();
    assert_eq!(whole.len(), 2);
    let connections = records.connections().unwrap();
    for truth in &whole {
        let is_seen = connections.iter().any(|connection| connection.is(truth));
        assert!(is_seen, "{} is not seen", truth.name);
    }
    let mut coverage = records.kind("coverage");
    let is_said = coverage.any(|record| {
        record["status"] == "refused"
            && record["process"]["comm"] == "python3"
            && record["reason"].to_string().contains("somebody writes")
    });
    assert!(is_said, "{}", run.process.err());
}

/// After a copy-up every path leads to the copy, and the process still runs the layer's file: that one is
/// probed.
#[test]
fn copied_up_under_a_process() {
    copied_up_and_there("copied_up_under_a_process", WHOLE);
}

/// The layer is named as container engines do to save room.
#[test]
fn copied_up_from_a_relative_layer() {
    let mount = "cp -r private /mnt && mkdir /mnt/3 && mv /mnt/up /mnt/3/fs && merged=$PWD/merged && (cd /mnt && \
                 mount -t overlay none -o lowerdir=private,upperdir=/mnt/3/fs,workdir=/mnt/work $merged)";
    copied_up_and_there("copied_up_from_a_relative_layer", mount);
}

/// A part of the overlay is mounted by itself.
#[test]
fn copied_up_in_a_part() {
    let mount = "mkdir /mnt/low && cp -r private /mnt/low/part && mount -t overlay none \
                 -o lowerdir=/mnt/low,upperdir=/mnt/up,workdir=/mnt/work merged && \
                 mount --bind merged/part merged && cd .";
    copied_up_and_there("copied_up_in_a_part", mount);
}

#[track_caller]
fn copied_up_and_there(test: &'static str, mount: &str) {
    let Some(lab) = Lab::with(test, &["unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    let Some(client) = copied_up(&lab, server.port, "there", mount) else {
        return;
    };
    let running = lab.agent().watch(client.pid());
    lab.file("go", "");
    assert_eq!(client.wait(seconds(30)), End::Code(0), "{}", client.err());
    running
        .finish(seconds(10))
        .assert_exact(&server.client_truth());
}

/// The same where nothing leads to the layer's file any more: nothing is probed, and that is said.
#[test]
fn copied_up_and_gone() {
    let Some(lab) = Lab::with("copied_up_and_gone", &["unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    let Some(client) = copied_up(&lab, server.port, "gone", WHOLE) else {
        return;
    };
    if bare() {
        return;
    }
    let running = lab.agent().watch_without_coverage(client.pid());
    let reason = wait_for("coverage", seconds(10), || {
        let records = running.records();
        let mut coverage = records.kind("coverage");
        coverage
            .find(|record| record["status"] != "unknown")
            .cloned()
    });
    assert_eq!(reason["status"], "refused", "{reason}");
    let why = reason["reason"].as_str().unwrap_or_default();
    assert!(why.contains("it was replaced"), "{why}");
    lab.file("go", "");
    assert_eq!(client.wait(seconds(30)), End::Code(0), "{}", client.err());
    let run = running.finish(seconds(10));
    run.success();
    assert_eq!(run.records().kind("data").count(), 0);
}
