//! Which container a process is in, by the names of its control groups.
//!
//! Every runtime makes a group for each container and writes the container's id into its name. What else
//! is in a path, and which hierarchies have it, differs: so all lines of `/proc/PID/cgroup` are looked at
//! and nothing is expected of a path but an id. LXC and systemd's machines have no ids; their names are told
//! by the words that stand before them.

use std::borrow::Cow;

use crate::cgroup::{Line, lines};

/// The innermost container of a process, from its `/proc/PID/cgroup`: its runtime's id, or `lxc:NAME` or
/// `machine:NAME`.
///
/// Hierarchies may disagree: a runtime need not join all of them, and a daemon in a container may join
/// fewer than the one that started it. The line that tells of most containers within each other knows
/// most; among equals version 2 comes first, then systemd's own.
pub fn id(groups: &str) -> Option<Cow<'_, str>> {
    let told = lines(groups).filter_map(|line| {
        let (more, innermost) = innermost(line.path)?;
        Some((more, rank(&line), innermost))
    });
    let best = told.reduce(|best, other| {
        let is_better = (other.0, other.1) > (best.0, best.1);
        if is_better { other } else { best }
    });
    best.map(|(_, _, id)| id)
}

/// The name in an id of which no runtime has to be asked.
pub fn name(id: &str) -> Option<&str> {
    let (kind, name) = id.split_once(':')?;
    [LXC, MACHINE].contains(&kind).then_some(name)
}

const LXC: &str = "lxc";
const MACHINE: &str = "machine";

/// And in how many others it is. What groups are called below a container its own root decides, who may choose an id
/// that nobody knows, but not the name of another container: that would be told of as that one is.
fn innermost(path: &str) -> Option<(usize, Cow<'_, str>)> {
    let mut found: Option<(usize, Cow<'_, str>)> = None;
    let mut groups = path.split('/').peekable();
    let mut above = "";
    while let Some(group) = groups.next() {
        let below = groups.peek().copied().unwrap_or_default();
        let id = match id_in(group) {
            Some(id) => Some(Cow::Borrowed(id)),
            None if found.is_none() => named(above, group, below).map(Cow::Owned),
            None => None,
        };
        above = group;
        if let Some(id) = id {
            found = Some((found.map_or(0, |(more, _)| more + 1), id));
        }
    }
    found
}

/// A container that has a name and no id, by the name of its group, and of those above and below.
fn named(above: &str, group: &str, below: &str) -> Option<String> {
    // LXC: `lxc.payload.NAME` since 4.0 (`DEFAULT_PAYLOAD_CGROUP_PREFIX` in its cgroups/cgroup.h) and so in Incus,
    // `lxc.payload/NAME` since 3.1 (lxc issue 2782), `lxc/NAME` before and in Proxmox. `lxc.monitor` runs outside.
    let lxc = match group {
        "lxc" | "lxc.payload" => Some(below),
        _ => group.strip_prefix("lxc.payload."),
    };
    if let Some(name) = lxc.filter(|name| !name.is_empty()) {
        return Some(format!("{LXC}:{name}"));
    }
    // systemd-machined makes `machine-NAME.scope`; systemd-nspawn@.service and NixOS' container@.service keep their own
    // unit, and systemd-nspawn that is not to register `NAME.scope`. The latter are told from others by the group that
    // systemd-nspawn makes below its unit. It is itself beside that, in `supervisor`: outside.
    if below == "supervisor" {
        return None;
    }
    let unit = group
        .strip_suffix(".scope")
        .or_else(|| group.strip_suffix(".service"))?;
    let scope = unit
        .strip_prefix("machine-")
        .filter(|_| group.ends_with(".scope"));
    let instance = unit.strip_prefix("systemd-nspawn@");
    let of_nspawn = (above == "machine.slice" && below == "payload")
        .then(|| unit.split_once('@').map_or(unit, |(_, instance)| instance));
    let name = unescaped(scope.or(instance).or(of_nspawn)?);
    // libvirt's virtual machines are machines, too: their processes are the host's.
    let is_container = !name.is_empty() && !name.starts_with("qemu-");
    is_container.then(|| format!("{MACHINE}:{name}"))
}

/// As systemd-escape(1) writes what may not stand in the name of a unit: `\x2d`. A machine's name is ASCII.
fn unescaped(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..2)
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                text.push(char::from(code));
                text.push_str(&part[2..]);
            }
            None => {
                text.push_str("\\x");
                text.push_str(part);
            }
        }
    }
    text
}

fn rank(line: &Line<'_>) -> u8 {
    match (line.number, line.controllers) {
        ("0", "") => 2,
        (_, "name=systemd") => 1,
        _ => 0,
    }
}

/// The id in one name of a path, if the group is a container's.
fn id_in(name: &str) -> Option<&str> {
    // Under systemd a container is a scope.
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // `docker-ID`, `cri-containerd-ID`, `SLICE:cri-containerd:ID`, or the id alone.
    let (runtime, id) = match name.rfind(['-', ':']) {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => ("", name),
    };
    if is_hex(id, 64) {
        // `libpod-conmon-ID` and `crio-conmon-ID` hold the container's monitor, which runs outside.
        return (!runtime.ends_with("conmon")).then_some(id);
    }
    // Fargate: its task and a number.
    let is_fargate =
        is_hex(runtime, 32) && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
    is_fargate.then_some(name)
}

/// Runtimes write lower case.
fn is_hex(text: &str, length: usize) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == length && text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "cb1eadb7abe3a6545e9856411207073277838e1bdc003337c2f8685faeedc32c";
    const B: &str = "0ba8ac17e4e7a31fb82279503552fe94e64bab4745bf6fd2ff231e7c8ca8bed0";

    /// Spellings as they are on real machines. A and B stand for the ids.
    fn filled(text: &str) -> String {
        text.replace("{A}", A).replace("{B}", B)
    }

    #[track_caller]
    fn assert_id(lines: &str, expected: Option<&str>) {
        let lines = filled(lines);
        assert_eq!(id(&lines).as_deref(), expected, "{lines}");
    }

    #[test]
    fn docker() {
        // cgroupfs driver on v1 (Ubuntu 14.04), and where dockerd was told `--cgroup-parent=/`.
        assert_id(
            "12:name=systemd:/docker/{A}\n11:hugetlb:/docker/{A}\n",
            Some(A),
        );
        assert_id("10:net_prio:/{A}\n9:perf_event:/{A}\n", Some(A));
        // systemd driver, v1 (CentOS 7) and v2 (Debian 12).
        assert_id("10:devices:/system.slice/docker-{A}.scope\n", Some(A));
        assert_id("0::/system.slice/docker-{A}.scope\n", Some(A));
        // A container that makes groups of its own: systemd inside, kube-proxy.
        assert_id("0::/system.slice/docker-{A}.scope/init.scope\n", Some(A));
        assert_id("0::/docker/{A}/system.slice/nginx.service\n", Some(A));
        assert_id(
            "1:name=systemd:/kubepods/besteffort/podf8a694f2/{A}/kube-proxy\n",
            Some(A),
        );
    }

    #[test]
    fn kubernetes() {
        let pod = "kubepods-burstable-poddd1bf9d1_241d_47f5_8e25_12de83135812.slice";
        for name in [
            "cri-containerd-{A}.scope",
            "crio-{A}.scope",
            "docker-{A}.scope",
        ] {
            let path = format!("/kubepods.slice/kubepods-burstable.slice/{pod}/{name}");
            assert_id(&format!("0::{path}\n"), Some(A));
            assert_id(
                &format!("11:cpuset:{path}\n1:name=systemd:{path}\n"),
                Some(A),
            );
        }
        // cgroupfs drivers of containerd and of CRI-O.
        assert_id(
            "0::/kubepods/besteffort/pod74ba62da-1a3d-11e7-bb11-080027cb0e22/{A}\n",
            Some(A),
        );
        assert_id("0::/kubepods/burstable/pod74ba62da/crio-{A}\n", Some(A));
        // kubelet says systemd and containerd has SystemdCgroup = false: the three parts of a unit as one
        // name (containerd issue 4857).
        let one = format!("0::/system.slice/containerd.service/{pod}:cri-containerd:{{A}}\n");
        assert_id(&one, Some(A));
        // One hierarchy may have no line of the pod at all.
        assert_id(
            "3:rdma:/\n2:cpuset,cpu:/kubepods/besteffort/pod1f/{A}\n",
            Some(A),
        );
    }

    #[test]
    fn podman() {
        assert_id("0::/machine.slice/libpod-{A}.scope/container\n", Some(A));
        assert_id("0::/machine.slice/libpod-{A}.scope\n", Some(A));
        assert_id(
            "10:pids:/libpod_parent/libpod-{A}\n0::/libpod_parent/libpod-{A}\n",
            Some(A),
        );
        // Rootless, below the user's manager; and in a pod.
        let user = "/user.slice/user-1000.slice/user@1000.service/user.slice";
        assert_id(
            &format!("0::{user}/libpod-{{A}}.scope/container\n"),
            Some(A),
        );
        assert_id(
            &format!("0::{user}/user-libpod_pod_{{B}}.slice/libpod-{{A}}.scope\n"),
            Some(A),
        );
        // A service made by Quadlet, with `--cgroups=split`.
        assert_id("0::/system.slice/web.service/libpod-payload-{A}\n", Some(A));
        // Podman's own process.
        assert_id(&format!("0::{user}/podman-6696.scope\n"), None);
    }

    #[test]
    fn lxc() {
        // Ubuntu 18.04, 3.1 (lxc issue 2782), 4.0 and Incus, below a user's manager; Proxmox; a hybrid host.
        for lines in [
            "12:pids:/lxc/web\n1:name=systemd:/lxc/web/init.scope\n",
            "0::/lxc.payload/web/system.slice/cron.service\n",
            "0::/lxc.payload.web/system.slice/cron.service\n",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/lxc.payload.web\n",
            "12:pids:/lxc/web\n0::/lxc.payload.web/system.slice/cron.service\n",
        ] {
            assert_id(lines, Some("lxc:web"));
        }
        assert_id("0::/lxc/101/ns/init.scope\n", Some("lxc:101"));
        assert_id("0::/lxc.payload.my.web-1\n", Some("lxc:my.web-1"));
        // What starts and watches it, and lxc's own service.
        for lines in [
            "0::/lxc.monitor.web\n",
            "0::/lxc.monitor/web\n",
            "0::/lxc.pivot\n",
            "0::/lxc\n",
            "0::/lxc.payload.\n",
            "0::/system.slice/lxc.service\n",
        ] {
            assert_id(lines, None);
        }
    }

    #[test]
    fn machines_of_systemd() {
        // systemd-nspawn@.service and `systemd-nspawn` of version 252, and on version 1 as in 232.
        for lines in [
            "0::/machine.slice/systemd-nspawn@web.service/payload/system.slice/cron.service\n",
            "0::/machine.slice/machine-web.scope/payload/init.scope\n",
            "4:memory:/machine.slice/machine-web.scope\n0::/machine.slice/machine-web.scope\n",
            // NixOS; `--register=no` (systemd pull request 6166).
            "0::/machine.slice/container@web.service/payload/init.scope\n",
            "0::/machine.slice/web.scope/payload\n",
        ] {
            assert_id(lines, Some("machine:web"));
        }
        // systemd-escape(1); libvirt's containers.
        let escaped = "0::/machine.slice/machine-my\\x2dweb.scope/payload\n";
        assert_id(escaped, Some("machine:my-web"));
        let libvirt = "0::/machine.slice/machine-lxc\\x2d1234\\x2dweb.scope/libvirt\n";
        assert_id(libvirt, Some("machine:lxc-1234-web"));
        for lines in [
            "0::/machine.slice/systemd-nspawn@web.service/supervisor\n",
            "0::/machine.slice/machine-web.scope/supervisor\n",
            // libvirt's cgroup guide.
            "0::/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator\n",
            "0::/machine.slice/machine-.scope\n",
            "0::/machine.slice/container@web.service/supervisor\n",
            "0::/machine.slice/web.service\n",
            "0::/system.slice/web.service/payload\n",
            "0::/machine.slice\n",
            "0::/system.slice/systemd-machined.service\n",
        ] {
            assert_id(lines, None);
        }
    }

    /// Docker in LXC has an id; what a container calls its own groups is no name of another one.
    #[test]
    fn names_are_the_machines_own() {
        assert_id("0::/lxc.payload.web/docker/{A}\n", Some(A));
        assert_id("0::/lxc.payload.web/lxc.payload.db\n", Some("lxc:web"));
        assert_id("0::/docker/{A}/lxc/web\n", Some(A));
        assert_id("0::/docker/{A}/machine-web.scope\n", Some(A));
    }

    #[test]
    fn names_in_ids() {
        assert_eq!(name("lxc:web"), Some("web"));
        assert_eq!(name("machine:a:b"), Some("a:b"));
        for id in [
            A,
            "cd189a933e5849daa93386466019ab50-2495160603",
            "other:web",
            "",
        ] {
            assert_eq!(name(id), None, "{id}");
        }
    }

    /// conmon(8) runs beside the container, not in it.
    #[test]
    fn monitors_are_no_containers() {
        assert_id("0::/machine.slice/libpod-conmon-{A}.scope\n", None);
        assert_id(
            "0::/kubepods.slice/kubepods-pod1.slice/crio-conmon-{A}.scope\n",
            None,
        );
        assert_id(
            "4:memory:/libpod_parent/conmon\n0::/libpod_parent/conmon-{A}\n",
            None,
        );
        // Podman in a container: its monitor is in the outer one.
        assert_id(
            "0::/docker/{B}/machine.slice/libpod-conmon-{A}.scope\n",
            Some(B),
        );
    }

    #[test]
    fn the_innermost_of_nested_ones() {
        // Docker in Docker (RancherOS); CRI-O in a node that is a container (minikube issue 11280); kind.
        assert_id("9:name=systemd:/docker/{B}/docker/{A}\n", Some(A));
        assert_id(
            "0::/docker/{B}/kubepods.slice/kubepods-pod1.slice/crio-{A}.scope\n",
            Some(A),
        );
        let kind = "0::/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/\
                    cri-containerd-{A}.scope\n";
        assert_id(kind, Some(A));
        // The inner runtime did not join every hierarchy.
        assert_id("0::/docker/{B}\n5:cpu:/docker/{B}/docker/{A}\n", Some(A));
    }

    #[test]
    fn lines_that_disagree() {
        // dockerd on a hybrid host, before it joined v2; kubernetes issue 18202.
        let hybrid =
            "9:perf_event:/docker/{A}\n1:name=systemd:/system.slice/docker.service\n0::/\n";
        assert_id(hybrid, Some(A));
        assert_id(
            "0::/system.slice/containerd.service\n4:memory:/docker/{A}\n",
            Some(A),
        );
        assert_id("4:memory:/docker/{B}\n0::/docker/{A}\n", Some(A));
        assert_id(
            "4:memory:/docker/{B}\n1:name=systemd:/docker/{A}\n",
            Some(A),
        );
    }

    #[test]
    fn fargate() {
        // DockerId in the examples of Amazon's task metadata endpoint version 4.
        let one = "cd189a933e5849daa93386466019ab50-2495160603";
        let task = "cd189a933e5849daa93386466019ab50";
        assert_id(&format!("11:memory:/ecs/{task}/{one}\n"), Some(one));
        assert_id(&format!("11:memory:/ecs/{one}\n"), Some(one));
        assert_id(&format!("11:memory:/ecs/{task}\n"), None);
        assert_id(
            "11:memory:/ecs/55091c13-b8cf-4801-b527-f4601742204d/{A}\n",
            Some(A),
        );
    }

    #[test]
    fn nobody_is_in_a_container() {
        for lines in [
            "",
            "0::/\n",
            "0::\n",
            "nonsense",
            "0::/init.scope\n",
            "0::/user.slice/user-1000.slice/session-3.scope\n",
            // Cloud Foundry: a UUID, which is no container id of any runtime.
            "11:memory:/system.slice/garden.service/garden/1de2f4ec-5c2b-4b3a-6b7d-3c1d\n",
            // A name of 32 digits, of 63 and of 65; upper case; other letters.
            "4:memory:/api/e616ebd731b3bd4169fa2f015f3e31a2\n",
            "0::/docker/b1eadb7abe3a6545e9856411207073277838e1bdc003337c2f8685faeedc32c\n",
            "0::/docker/0{A}\n",
            "0::/docker/CB1EADB7ABE3A6545E9856411207073277838E1BDC003337C2F8685FAEEDC32C\n",
            "0::/docker/gb1eadb7abe3a6545e9856411207073277838e1bdc003337c2f8685faeedc32c\n",
            "0::/docker/{A}x\n",
            // Characters of several bytes at every length.
            "0::/docker-é/é-é.scope\n",
        ] {
            assert_id(lines, None);
        }
    }

    /// Of a process outside our own cgroup namespace the kernel shows the way there.
    #[test]
    fn seen_from_a_cgroup_namespace() {
        assert_id(
            "0::/../../kubepods.slice/kubepods-pod1.slice/cri-containerd-{A}.scope\n",
            Some(A),
        );
        assert_id("0::/../{A}\n", Some(A));
        assert_id("0::/../..\n", None);
    }

    #[test]
    fn a_zombie_of_a_removed_group() {
        assert_id("0::/system.slice/docker-{A}.scope (deleted)\n", Some(A));
    }

    /// Whatever the cut, no panic.
    #[test]
    fn every_cut() {
        let lines = filled("9:name=systemd:/docker/{B}/é-{A}.scope\n0::/ecs/{B}-7 (deleted)\n");
        for at in (0..=lines.len()).filter(|at| lines.is_char_boundary(*at)) {
            id(&lines[..at]);
            id(&lines[at..]);
        }
    }
}
