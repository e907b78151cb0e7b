//! The pid namespace that this process is in.
//!
//! The kernel programs know processes by their ids in the initial namespace, `/proc` and perf events by
//! those of ours: in any other namespace they would be taken for each other.

use std::{fs, os::unix::fs::MetadataExt as _};

/// Is it the initial one? What can't be read is taken for it: before 3.8 there is no other.
pub fn is_initial() -> bool {
    // PROC_PID_INIT_INO, include/uapi/linux/nsfs.h and include/linux/proc_ns.h.
    const INITIAL: u64 = 0xeffffffc;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL)
        || !fs::exists("/proc/self/ns/pid").unwrap_or(false)
}

/// Why nothing can be watched from here.
pub const NOT_INITIAL: &str = "this is a pid namespace of its own, as a container has it, and processes \
                               have other numbers outside: run vortex-agent on the host, or in a container \
                               with `hostPID: true` (Kubernetes) or `--pid=host` (docker, podman)";
