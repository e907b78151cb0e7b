//! The pid namespace that this process is in.
//!
//! The kernel programs know processes by their ids in the initial namespace, `/proc`, perf events and signals
//! by those in ours. In another one the privileged half translates what is watched by its id, and there is no
//! watching what is outside.

use std::{fs, os::unix::fs::MetadataExt as _};

/// Is it the initial one? What can't be read is taken for it: before 3.8 there is no other.
pub fn is_initial() -> bool {
    // PROC_PID_INIT_INO, include/uapi/linux/nsfs.h and include/linux/proc_ns.h.
    const INITIAL: u64 = 0xeffffffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL)
        || !fs::exists("/proc/self/ns/pid").unwrap_or(false)
}

/// Does `/proc` show the processes of this namespace, by their ids here? One that was mounted further out
/// shows other ids.
pub fn has_own_proc() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    // From the namespace of the mount inwards.
    let ids = lines.find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().count() == 1)
}

/// Why the machine can't be watched from here.
pub const NOT_INITIAL: &str = "this is a pid namespace of its own, as a container has it, and what is \
                               outside can't be seen: watch a command or `--pid N`, or run vortex-agent on \
                               the host, or in a container with `hostPID: true` (Kubernetes) or \
                               `--pid=host` (docker, podman)";

/// Why nothing can be watched, if /proc is not ours.
pub const FOREIGN_PROC: &str = "/proc belongs to another pid namespace than this process: mount it here \
                                (`unshare --mount-proc`)";

/// What can't be done where nothing can be watched.
pub const NO_IDS: &str = "ask the kernel for the ids of processes outside of this pid namespace (on the host, \
                          with `hostPID: true` or with `--pid=host` nobody has to)";
