//! Kernels on which a probe may hurt. What the kernel does is tried where that harms nobody; here alone a
//! version is looked at, and each number has its source.
//!
//! Not here, since they can't happen to us: private stacks (6.13, no program uses more than 48 bytes of
//! stack: opentelemetry-ebpf-instrumentation#3056), return probes in Go (pixie#1612, we place none),
//! definitions left in tracefs (deepflow#10688, we write none), stacks switched inside a call (`Link`).

use std::{collections::BTreeMap, fs};

use anyhow::{Result, anyhow};
use rustix::system::uname;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::obstacle::Obstacle;

/// Something that this kernel does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Danger {
    pub what: &'static str,
    pub way_out: &'static str,
    /// Nothing is probed here.
    pub is_deadly: bool,
}

/// Return probes end by the system call `uretprobe` since 6.11, which seccomp passed on to filters that
/// don't know it. Fixed by cf6cb56ef244, "seccomp: passthrough uretprobe systemcall without filtering"
/// (6.14, 6.13.3, 6.12.14). Seen in systemd#34615, opensnitch#1205, moby#50077.
const FILTERED_RETURNS: Danger = Danger {
    what: "a probe kills programs under a seccomp filter, as those of services and containers are: it catches \
           the system call by which return probes end",
    way_out: "install a newer kernel: 6.12.14, 6.13.3 and 6.14 do it right",
    is_deadly: true,
};

/// A return probe changed the return address and not its copy on the shadow stack. Fixed by 1713b63a07a2,
/// "x86/shstk: Make return uprobe work with shadow stack" (6.11; stable trees of 2024-07-30).
const SHADOW_STACKS: Danger = Danger {
    what: "a probe kills programs with a shadow stack, and there is one: see x86_Thread_features in \
           /proc/PID/status",
    way_out: "install a newer kernel: 6.6.44, 6.10.3 and 6.11 do it right; or start that program without \
              glibc.cpu.x86_shstk in GLIBC_TUNABLES",
    is_deadly: true,
};
const SHADOW_STACKS_IN: [Versions; 2] = [([6, 6, 0], [6, 6, 44]), ([6, 7, 0], [6, 10, 3])];

const SHADOW_STACKS_LATER: Danger = Danger {
    what: "a probe would kill a program with a shadow stack; none runs now",
    is_deadly: false,
    ..SHADOW_STACKS
};

/// The kernel looked at a structure of uprobes that it had freed, if a profiler asked for the stack of a
/// thread that was about to end. Fixed by b583ef82b671, "uprobes: Fix race in uprobe_free_utask" (6.13; stable
/// trees of 2025-03-13). Seen in talos#9671, coroot#377.
const FREED_TASKS: Danger = Danger {
    what: "the kernel can crash when a profiler takes the stack of a probed thread that ends",
    way_out: "run no profiler that samples user stacks beside Vortex, or install a newer kernel: 5.15.179, \
              6.1.131, 6.6.83, 6.12.19 and 6.13 do it right",
    is_deadly: false,
};
const FREED_TASKS_IN: [Versions; 4] = [
    ([5, 15, 0], [5, 15, 179]),
    ([6, 1, 0], [6, 1, 131]),
    ([6, 6, 0], [6, 6, 83]),
    ([6, 7, 0], [6, 12, 19]),
];
/// What looks at the freed structure, where there is such a thing.
const FREED_TASKS_BY: &str = "is_uprobe_at_func_entry";

type Version = [u32; 3];
/// From the first up to the second, which has it no more.
type Versions = (Version, Version);

/// What the judgement rests on.
#[derive(Clone, Copy, Default)]
struct Facts {
    version: Version,
    /// Tried: a filter catches the end of a return probe.
    filters_returns: bool,
    has_shadow_stacks: bool,
    uses_shadow_stacks: bool,
    looks_at_uprobes: bool,
}

/// What is known to go wrong here. Call it while there is one thread: it forks.
pub fn known() -> Vec<Danger> {
    let uname = uname();
    let texts = [uname.release(), uname.version()].map(|text| text.to_string_lossy());
    let version = version(&texts);
    let may_be = |versions: &[Versions]| versions.iter().any(|one| is_in(version, *one));
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let has_shadow_stacks = may_be(&SHADOW_STACKS_IN)
        && read("/proc/cpuinfo")
            .split_whitespace()
            .any(|flag| flag == "user_shstk");
    judge(Facts {
        version,
        filters_returns: filters_returns(),
        has_shadow_stacks,
        uses_shadow_stacks: has_shadow_stacks && somebody_has_a_shadow_stack(),
        looks_at_uprobes: may_be(&FREED_TASKS_IN)
            && read("/proc/kallsyms").contains(FREED_TASKS_BY),
    })
}

/// # Errors
/// Something of it is deadly.
pub fn check(known: &[Danger]) -> Result<()> {
    if let Some(Danger { what, way_out, .. }) = known.iter().find(|danger| danger.is_deadly) {
        return Err(Obstacle::Kernel.mark(anyhow!("on this kernel {what}: {way_out}")));
    }
    Ok(())
}

fn judge(facts: Facts) -> Vec<Danger> {
    let within = |versions: &[Versions]| versions.iter().any(|one| is_in(facts.version, *one));
    let mut found = Vec::new();
    if facts.filters_returns {
        found.push(FILTERED_RETURNS);
    }
    if facts.has_shadow_stacks && within(&SHADOW_STACKS_IN) {
        found.push(match facts.uses_shadow_stacks {
            true => SHADOW_STACKS,
            false => SHADOW_STACKS_LATER,
        });
    }
    if facts.looks_at_uprobes && within(&FREED_TASKS_IN) {
        found.push(FREED_TASKS);
    }
    found
}

fn is_in(version: Version, (from, until): Versions) -> bool {
    (from..until).contains(&version)
}

/// Debian's release says `6.1.0-56` for what its build calls 6.1.192: the largest that both agree about.
fn version(texts: &[impl AsRef<str>]) -> Version {
    let words = texts
        .iter()
        .flat_map(|text| text.as_ref().split_whitespace());
    let mut found = words.filter_map(|word| {
        let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok);
        Some([next()?, next()?, next().unwrap_or(0)])
    });
    let first = found.next().unwrap_or_default();
    found
        .filter(|other| other[..2] == first[..2])
        .fold(first, Version::max)
}

fn somebody_has_a_shadow_stack() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut statuses =
        processes.filter_map(|process| fs::read_to_string(process.path().join("status")).ok());
    statuses.any(|status| has_shadow_stack(&status))
}

fn has_shadow_stack(status: &str) -> bool {
    let mut lines = status.lines();
    let features = lines.find_map(|line| line.strip_prefix("x86_Thread_features:"));
    features.is_some_and(|features| features.split_whitespace().any(|one| one == "shstk"))
}

const URETPROBE: libc::c_long = 335;

/// Is the call by which a return probe ends subject to filters? Outside of a return probe it ends the
/// process by SIGILL, unless there is no such call, or a filter forbids it.
fn filters_returns() -> bool {
    let forbidden = BTreeMap::from([(URETPROBE, vec![])]);
    let error = SeccompAction::Errno(libc::EPERM as u32);
    let filter = std::env::consts::ARCH
        .try_into()
        .and_then(|arch| SeccompFilter::new(forbidden, SeccompAction::Allow, error, arch))
        .and_then(BpfProgram::try_from);
    let Ok(filter) = filter else {
        return false;
    };
    ends_by_sigill(None) && !ends_by_sigill(Some(&filter))
}

fn ends_by_sigill(filter: Option<&BpfProgram>) -> bool {
    // SAFETY: there is one thread, so the child may go on; it makes system calls and nothing else.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return true;
    }
    if child == 0 {
        let is_filtered = filter.is_none_or(|filter| seccompiler::apply_filter(filter).is_ok());
        // SAFETY: numbers, and a structure that outlives the call. It ends here in any case: where there is
        // no filter nothing was found out, which looks like a signal.
        unsafe {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            if !is_filtered {
                libc::raise(libc::SIGILL);
            }
            libc::syscall(URETPROBE);
            libc::_exit(0)
        }
    }
    let mut status = 0;
    // SAFETY: our own child; `status` outlives the call.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0
        && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
    {}
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGILL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (release, build, expected) in [
            (
                "6.1.0-56-cloud-amd64",
                "#1 SMP Debian 6.1.192-1 (2026-10-01)",
                [6, 1, 192],
            ),
            (
                "6.12.117+deb13-cloud-amd64",
                "#1 SMP Debian 6.12.117-1",
                [6, 12, 117],
            ),
            ("6.6.43", "#2 SMP 2024 x86 5.1.2 6.5.9", [6, 6, 43]),
            ("7.2-rc1", "", [7, 2, 0]),
            ("6.18.44-fc-v595", "#1 SMP PREEMPT_DYNAMIC", [6, 18, 44]),
            ("unknown", "6.6.43", [6, 6, 43]),
            ("", "", [0, 0, 0]),
        ] {
            assert_eq!(version(&[release, build]), expected, "{release} {build}");
        }
    }

    #[test]
    fn each_danger_is_in_its_versions() {
        let all = |version| {
            judge(Facts {
                version,
                filters_returns: false,
                has_shadow_stacks: true,
                uses_shadow_stacks: true,
                looks_at_uprobes: true,
            })
        };
        let both = [SHADOW_STACKS, FREED_TASKS];
        for (version, expected) in [
            ([5, 10, 200], &[][..]),
            ([5, 15, 178], &both[1..]),
            ([5, 15, 179], &[]),
            ([6, 1, 130], &both[1..]),
            ([6, 1, 131], &[]),
            ([6, 5, 13], &[]),
            ([6, 6, 0], &both),
            ([6, 6, 43], &both),
            ([6, 6, 44], &both[1..]),
            ([6, 6, 82], &both[1..]),
            ([6, 6, 83], &[]),
            ([6, 8, 12], &both),
            ([6, 10, 2], &both),
            ([6, 10, 3], &both[1..]),
            ([6, 11, 0], &both[1..]),
            ([6, 12, 18], &both[1..]),
            ([6, 12, 19], &[]),
            ([6, 13, 0], &[]),
            ([7, 2, 12], &[]),
        ] {
            assert_eq!(all(version), expected, "{version:?}");
        }
    }

    #[test]
    fn a_version_alone_is_no_danger() {
        let version = [6, 6, 43];
        let facts = Facts {
            version,
            ..Facts::default()
        };
        assert_eq!(judge(facts), []);
        let shadow = Facts {
            has_shadow_stacks: true,
            ..facts
        };
        assert_eq!(judge(shadow), [SHADOW_STACKS_LATER]);
        assert!(check(&judge(shadow)).is_ok(), "said, and no more");
        let used = Facts {
            uses_shadow_stacks: true,
            ..shadow
        };
        let refused = check(&judge(used)).unwrap_err().to_string();
        assert!(
            refused.contains("shadow stack") && refused.contains("6.6.44"),
            "{refused}"
        );
        let filtered = Facts {
            filters_returns: true,
            ..Facts::default()
        };
        assert!(check(&judge(filtered)).is_err());
    }

    #[test]
    fn shadow_stacks_are_seen() {
        assert!(has_shadow_stack(
            "Name:\tx\nx86_Thread_features:\tshstk wrss \n"
        ));
        for status in [
            "",
            "x86_Thread_features:\t\n",
            "x86_Thread_features_locked:\tshstk\n",
        ] {
            assert!(!has_shadow_stack(status), "{status}");
        }
    }
}
