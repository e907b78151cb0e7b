//! What confines the agent besides missing rights: a seccomp filter, and the profile of a security module. Both refuse
//! with the same errors as a right that is not there.

use std::{fs, io};

use rustix::process::geteuid;

use super::{Check, Status, failed, limited, ok};
use crate::probe::rights;

const NAME: &str = "sandbox";

pub fn checks() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_filtered = status.lines().any(|line| line == "Seccomp:\t2");
    let profile = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let mut checks: Vec<Check> = profile_check(profile.trim_end_matches(['\n', '\0']))
        .into_iter()
        .collect();
    // Without a right the same calls fail, and `privileges` says so.
    if is_filtered && geteuid().is_root() && rights::missing().is_empty() {
        checks.push(seccomp_check(&refused()));
    }
    if checks.is_empty() {
        checks.push(ok(
            NAME,
            "no seccomp filter, and no profile of a security module",
        ));
    }
    checks
}

/// AppArmor says `docker-default (enforce)`, SELinux `system_u:system_r:container_t:s0:c1,c2`.
fn profile_check(profile: &str) -> Option<Check> {
    if let Some(name) = profile.strip_suffix(" (enforce)") {
        return Some(limited(
            NAME,
            format!(
                "the AppArmor profile {name} is in force, which may refuse to look at other processes"
            ),
            "docker and podman: --security-opt apparmor=unconfined; Kubernetes: \
             securityContext.appArmorProfile.type: Unconfined; a profile of your own needs `ptrace (read),`, \
             `capability,` and `/proc/** r,`",
        ));
    }
    let kind = profile.split(':').nth(2)?;
    kind.starts_with("container").then(|| {
        limited(
            NAME,
            format!(
                "the SELinux type {kind} is in force, which may refuse to look at other processes"
            ),
            "docker and podman: --security-opt label=disable; Kubernetes: \
             securityContext.seLinuxOptions.type: spc_t",
        )
    })
}

fn seccomp_check(refused: &[&str]) -> Check {
    if refused.is_empty() {
        return ok(
            NAME,
            "a seccomp filter is in force, and passes what is needed",
        );
    }
    let status = match refused {
        [HELPFUL] => Status::Limited,
        _ => Status::Failed,
    };
    Check {
        status,
        ..failed(
            NAME,
            format!("a seccomp filter refuses {}", refused.join(", ")),
            "give the capabilities, with which the default filters of docker, podman and containerd pass them; or \
             docker and podman: --security-opt seccomp=unconfined; Kubernetes: \
             securityContext.seccompProfile.type: Unconfined; systemd: SystemCallFilter=",
        )
    }
}

/// Without it less is said of connections that nobody's plaintext claims.
const HELPFUL: &str = "pidfd_getfd";

/// What the privileged half calls and filters refuse, each with arguments that make it fail before it does anything.
const CALLS: [(&str, libc::c_long, [libc::c_long; 5]); 4] = [
    // No such command.
    ("bpf", libc::SYS_bpf, [9999, 0, 0, 0, 0]),
    // No such operation. By it both halves give up what they do not need, and neither goes on without.
    ("seccomp", libc::SYS_seccomp, [9999, 0, 0, 0, 0]),
    // No such flag.
    (
        "perf_event_open",
        libc::SYS_perf_event_open,
        [0, 0, -1, -1, -1],
    ),
    // No such descriptor.
    (HELPFUL, libc::SYS_pidfd_getfd, [-1, -1, 0, 0, 0]),
];

/// Asked in a process of its own: a filter may end who calls what it does not know.
fn refused() -> Vec<&'static str> {
    let is_refused = |(_, call, arguments): &&(&str, libc::c_long, [libc::c_long; 5])| {
        // SAFETY: there is one thread, so the child may go on; it makes system calls and nothing else.
        match unsafe { libc::fork() } {
            -1 => false,
            0 => {
                let [a, b, c, d, e] = *arguments;
                // SAFETY: numbers, of which none is a valid pointer or descriptor; it ends in any case.
                unsafe {
                    let result = libc::syscall(*call, a, b, c, d, e);
                    let error = io::Error::last_os_error().raw_os_error();
                    let is_refused = matches!(error, Some(libc::EPERM | libc::ENOSYS));
                    libc::_exit((result == -1 && is_refused).into())
                }
            }
            child => {
                let mut status = 0;
                // SAFETY: our own child; `status` outlives the call.
                while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0
                    && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
                {
                }
                status != 0
            }
        }
    };
    let refused = CALLS.iter().filter(is_refused);
    refused.map(|(name, ..)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_named() {
        for (profile, name) in [
            ("docker-default (enforce)", Some("docker-default")),
            (
                "cri-containerd.apparmor.d (enforce)",
                Some("cri-containerd"),
            ),
            (
                "system_u:system_r:container_t:s0:c1,c2",
                Some("container_t"),
            ),
            ("unconfined", None),
            ("docker-default (complain)", None),
            ("system_u:system_r:spc_t:s0", None),
            ("unconfined_u:unconfined_r:unconfined_t:s0", None),
            ("kernel", None),
            ("", None),
        ] {
            let detail = profile_check(profile).map(|check| check.detail);
            assert_eq!(detail.is_some(), name.is_some(), "{profile:?}: {detail:?}");
            assert!(
                detail
                    .unwrap_or_default()
                    .contains(name.unwrap_or_default())
            );
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let check = seccomp_check(&["bpf", "pidfd_getfd"]);
        assert!(
            check.detail.ends_with("refuses bpf, pidfd_getfd"),
            "{check:?}"
        );
        assert!(check.way_out.is_some());
        assert_eq!(check.status, Status::Failed);
        assert_eq!(seccomp_check(&[HELPFUL]).status, Status::Limited);
        assert!(seccomp_check(&[]).way_out.is_none());
    }
}
