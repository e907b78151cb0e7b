//! What /proc says of a process.

use procfs::process::{MMPermissions, MMapPath, Process};

use super::mapping::Mapping;
use crate::half::Facts;

/// Everything that can still be read: the process may be ending.
pub fn of(pid: u32) -> Facts {
    let mut facts = Facts {
        pid,
        ..Facts::default()
    };
    let Ok(process) = Process::new(pid as i32) else {
        return facts;
    };
    facts.executable = process
        .exe()
        .ok()
        .map(|path| path.to_string_lossy().into_owned());
    facts.comm = std::fs::read(format!("/proc/{pid}/comm"))
        .ok()
        .map(|comm| String::from_utf8_lossy(comm.trim_ascii_end()).into_owned());
    if let Ok(status) = process.status() {
        facts.owner_uid = Some(status.euid);
        facts.parent_pid = u32::try_from(status.ppid).ok();
        // The last one is the id in the innermost namespace.
        facts.vpid = status
            .nspid
            .and_then(|ids| u32::try_from(*ids.last()?).ok())
            .filter(|vpid| *vpid != pid);
    }
    if let Ok(groups) = process.cgroups() {
        facts.container_id = groups
            .0
            .iter()
            .find_map(|group| container_id(&group.pathname))
            .map(str::to_owned);
    }
    facts
}

/// Docker, containerd, CRI-O and Podman all end the path with 64 hexadecimal digits, with a prefix and
/// `.scope` under systemd.
fn container_id(path: &str) -> Option<&str> {
    const LEN: usize = 64;
    let name = path.rsplit('/').find(|name| name.len() >= LEN)?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.get(name.len().checked_sub(LEN)?..)?;
    id.bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then_some(id)
}

/// The files that a process maps executable now.
pub fn mappings(pid: u32) -> Vec<Mapping> {
    let Ok(maps) = Process::new(pid as i32).and_then(|process| process.maps()) else {
        return Vec::new();
    };
    maps.0
        .into_iter()
        .filter(|map| map.perms.contains(MMPermissions::EXECUTE) && map.inode != 0)
        .map(|map| Mapping {
            pid,
            address: map.address.0,
            length: map.address.1 - map.address.0,
            major: map.dev.0 as u32,
            minor: map.dev.1 as u32,
            inode: map.inode,
            // Not in the text; events have it. 0 never equals a real one, so the file is looked at anew.
            generation: 0,
            at: None,
            path: match map.pathname {
                MMapPath::Path(path) => path.to_string_lossy().into_owned(),
                other => format!("{other:?}"),
            },
        })
        .collect()
}

/// All processes that exist now.
pub fn all_pids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Stopped, traced, dead or gone: such a process is never stopped by us.
pub fn must_not_be_held(pid: u32) -> bool {
    let Ok(process) = Process::new(pid as i32) else {
        return true;
    };
    let (Ok(stat), Ok(status)) = (process.stat(), process.status()) else {
        return true;
    };
    matches!(stat.state, 'T' | 't' | 'Z' | 'X') || status.tracerpid != 0
}

/// Own resident memory in bytes.
pub fn own_memory() -> u64 {
    let statm = Process::myself().and_then(|process| process.statm());
    statm.map_or(0, |statm| statm.resident * procfs::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_in_their_spellings() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/burstable/pod1/{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/crio-{id}.scope"),
        ] {
            assert_eq!(container_id(&path), Some(id.as_str()), "{path}");
        }
        for path in [
            "/",
            "",
            "/user.slice/user-1000.slice",
            &format!("/docker/{}", "g".repeat(64)),
        ] {
            assert_eq!(container_id(path), None, "{path}");
        }
    }

    #[test]
    fn the_facts_about_ourselves() {
        let facts = of(std::process::id());
        assert_eq!(facts.owner_uid, Some(rustix::process::geteuid().as_raw()));
        assert_eq!(facts.parent_pid, Some(std::os::unix::process::parent_id()));
        assert!(facts.executable.is_some());
        assert!(!mappings(facts.pid).is_empty());
        assert!(all_pids().contains(&facts.pid));
    }
}
