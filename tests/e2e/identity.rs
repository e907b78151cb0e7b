//! Which file is which: one library below two mounts, mounts that must go, a library written in place.

use crate::harness::{End, Lab, PYTHON, Run, argv, bare, skip};

/// A shell in a mount namespace of its own runs the script; `$1` is the test's directory, `$2` the server.
fn in_own_mounts(lab: &Lab, server: &str, script: &str) -> Run {
    lab.private_libssl("private");
    let script = format!("set -e; cd \"$1\"; {script}");
    lab.agent().run(argv![
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        lab.path("."),
        server
    ])
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
    let said = run.process.err();
    assert!(!said.contains("two links"), "it is probed twice:\n{said}");
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
         cp private/* volume/; LD_LIBRARY_PATH=$PWD/volume curl -sk -o /dev/null \"$2\"; sleep 2.5; \
         umount volume || { losetup -d $device; exit 3; }; losetup -d $device; \
         test ! -e /sys/block/${device#/dev/}/loop/backing_file",
    );
    if run.end == End::Code(77) {
        return skip("left_mounts_are_let_go", "no loop device is free");
    }
    run.success();
    run.assert_exact(&server.client_truth());
}

/// Who writes into a probed library waits until no breakpoint is in it; what was written is what runs.
#[test]
fn rewritten_in_place() {
    let Some(lab) = Lab::with("rewritten_in_place", &["curl", "unshare"]) else {
        return;
    };
    let server = lab.server(&[]);
    let zeros = "import mmap, os\n\
                 file = open('private/libssl.so.3', 'r+b')\n\
                 size = os.fstat(file.fileno()).st_size\n\
                 file.write(bytes(size)); file.flush()\n\
                 view = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)\n\
                 other = [at for at in range(size) if view[at]]\n\
                 assert not other, 'not what was written: %r' % other\n";
    lab.file("zeros.py", zeros);
    let request = "LD_LIBRARY_PATH=$PWD/private curl -sk -o /dev/null \"$2\"";
    let run = in_own_mounts(
        &lab,
        &server.url("/bytes/20000"),
        &format!(
            "cp private/libssl.so.3 kept; {request}; {PYTHON} zeros.py; \
             cat kept > private/libssl.so.3; {request}; \
             cp kept new; mv new private/libssl.so.3; {request}"
        ),
    );
    run.success();
    if bare() {
        return;
    }
    run.assert_exact(&server.client_truth());
}
