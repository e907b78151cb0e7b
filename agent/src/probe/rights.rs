//! The capabilities that the privileged half needs on this kernel. What depends on the kernel is tried.

use std::{fs, io, mem, os::fd::FromRawFd as _};

use anyhow::{Result, anyhow};
use aya::sys::{UProbeMultiFeature, is_uprobe_multi_supported};
use aya_obj::generated::{bpf_cmd, bpf_map_type, perf_event_attr};
use rustix::{
    fd::OwnedFd,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};

use super::{
    link::reads_kernel_memory,
    mapping::SideBand,
    raw::{descriptor_of, zeroed},
};
use crate::obstacle::Obstacle;

/// A capability, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// As people write it.
    pub name: &'static str,
    /// It, or another one that includes it.
    any: CapabilitySet,
    pub purpose: &'static str,
}

/// On every kernel.
const ALWAYS: [Right; 5] = [
    Right {
        name: "CAP_BPF",
        any: CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN),
        purpose: "load programs into the kernel",
    },
    Right {
        name: "CAP_PERFMON",
        any: CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN),
        purpose: "let them read memory, and be told of mappings",
    },
    Right {
        name: "CAP_SYS_PTRACE",
        any: CapabilitySet::SYS_PTRACE,
        purpose: "look at what processes map",
    },
    Right {
        name: "CAP_DAC_READ_SEARCH",
        any: CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::DAC_OVERRIDE),
        purpose: "look at processes of other users",
    },
    Right {
        name: "CAP_CHECKPOINT_RESTORE",
        any: CapabilitySet::CHECKPOINT_RESTORE.union(CapabilitySet::SYS_ADMIN),
        purpose: "open the files that processes map",
    },
];

const SYS_ADMIN: Right = Right {
    name: "CAP_SYS_ADMIN",
    any: CapabilitySet::SYS_ADMIN,
    purpose: "place probes: this kernel has no uprobe_multi links, which do without (Linux 6.6)",
};

/// Debian and others ask for more than the kernel of kernel.org does.
const SYS_ADMIN_TO_WATCH: Right = Right {
    purpose: "be told of mappings: kernel.perf_event_paranoid is so high that CAP_PERFMON is not enough; \
              `sysctl kernel.perf_event_paranoid=2` does it, too",
    ..SYS_ADMIN
};

const SYS_ADMIN_TO_LOAD: Right = Right {
    purpose: "load programs: this kernel lets nobody read its memory (lockdown=confidentiality), and what is loaded \
              there without that is found among all programs",
    ..SYS_ADMIN
};

const SYS_RESOURCE: Right = Right {
    name: "CAP_SYS_RESOURCE",
    any: CapabilitySet::SYS_RESOURCE,
    purpose: "exceed RLIMIT_MEMLOCK, against which this kernel counts the ring (Linux 5.11 does not); \
              `ulimit -l unlimited` or LimitMEMLOCK=infinity does it, too",
};

impl Right {
    /// The one by whose name it goes.
    fn least(&self) -> CapabilitySet {
        self.any - CapabilitySet::SYS_ADMIN - CapabilitySet::DAC_OVERRIDE
    }

    pub fn is_held(&self) -> bool {
        capabilities(None).is_ok_and(|sets| sets.effective.intersects(self.any))
    }
}

/// What is not there of what is needed. Call it while there is one thread: it changes a limit for a moment.
pub fn missing() -> Vec<Right> {
    let lacks = |right: &Right| !right.is_held();
    let mut missing: Vec<Right> = ALWAYS.into_iter().filter(lacks).collect();
    // Without these nothing can be tried.
    let can_try = missing.iter().all(|right| !ALWAYS[..2].contains(right));
    if can_try && lacks(&SYS_ADMIN) {
        if !places_without_admin() {
            missing.push(SYS_ADMIN);
        } else if SideBand::is_refused() {
            missing.push(SYS_ADMIN_TO_WATCH);
        } else if !reads_kernel_memory() {
            missing.push(SYS_ADMIN_TO_LOAD);
        }
    }
    if can_try && lacks(&SYS_RESOURCE) && is_memory_short() {
        missing.push(SYS_RESOURCE);
    }
    missing
}

/// # Errors
/// One of the capabilities is not there: in words, which and what for.
pub fn check() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing
        .iter()
        .map(|right| format!("{} (to {})", right.name, right.purpose));
    let missing: Vec<String> = missing.collect();
    Err(Obstacle::Rights.mark(anyhow!(
        "the privileged half has no {}; `vortex-agent doctor` says how to give it",
        missing.join(", no ")
    )))
}

/// Not needed, and of use: the reader goes before others, files of others give a lease, processes of others are held.
const OF_USE: CapabilitySet = CapabilitySet::SYS_NICE
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::KILL);

/// Gives up what is not needed on this kernel, of root's rights. Call it while there is one thread.
///
/// # Errors
/// The kernel refuses it, which it has no reason to.
pub fn keep_needed() -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    let always = ALWAYS.iter().fold(OF_USE, |all, right| all | right.least());
    let mut kept = always & held;
    // First what the kernel asks for, and then what it asks for beyond that.
    loop {
        set_capabilities(None, sets(kept, held))?;
        let lacks = missing();
        let more = lacks.iter().fold(kept, |all, right| all | right.any & held);
        if more == kept {
            break;
        }
        kept = more;
    }
    Ok(set_capabilities(None, sets(kept, kept))?)
}

fn sets(effective: CapabilitySet, permitted: CapabilitySet) -> CapabilitySets {
    CapabilitySets {
        effective,
        permitted,
        inheritable: CapabilitySet::empty(),
    }
}

/// Multi links ask for what loading asks for. The perf ones have asked for more since CVE-2025-38466.
fn places_without_admin() -> bool {
    let multi = is_uprobe_multi_supported(UProbeMultiFeature::LinkCreation);
    multi.unwrap_or(false) || !is_perf_refused()
}

/// A perf probe of no file is refused for that reason only if one of a file would not be refused.
fn is_perf_refused() -> bool {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type");
    let Some(kind) = kind.ok().and_then(|kind| kind.trim().parse().ok()) else {
        return false;
    };
    // SAFETY: a structure of plain integers.
    let mut attributes: perf_event_attr = unsafe { mem::zeroed() };
    attributes.type_ = kind;
    attributes.size = size_of_val(&attributes) as u32;
    // SAFETY: `attributes` is as long as it says; the other arguments are plain numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            0,
            -1,
            0,
        )
    };
    if fd >= 0 {
        // SAFETY: a new descriptor that nobody else owns.
        drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        return false;
    }
    let error = io::Error::last_os_error().raw_os_error();
    matches!(error, Some(libc::EACCES | libc::EPERM))
}

/// Does the kernel count maps against a limit that we can't raise? With a limit of nothing it refuses one.
fn is_memory_short() -> bool {
    let limit = getrlimit(Resource::Memlock);
    if limit.maximum.is_none() {
        return false;
    }
    let nothing = Rlimit {
        current: Some(0),
        ..limit
    };
    if setrlimit(Resource::Memlock, nothing).is_err() {
        return false;
    }
    let mut attributes = zeroed();
    // SAFETY: a union of plain integers, zeroed.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    (create.key_size, create.value_size, create.max_entries) = (4, 8, 1);
    // SAFETY: plain numbers; the command makes a descriptor.
    let map = unsafe { descriptor_of(bpf_cmd::BPF_MAP_CREATE, &mut attributes) };
    let _ = setrlimit(Resource::Memlock, limit);
    map.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}
