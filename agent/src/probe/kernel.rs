//! Where the members of kernel structures are, and what programs hang on, read from the kernel's own BTF.
//! aya's programs have no CO-RE, so they get the offsets as a global.
//!
//! Once, and nothing is kept but the answers: the types are megabytes, and aya's reader, which makes
//! objects of all of them, takes longer than all other steps of a start but one.
//!
//! Format: `include/uapi/linux/btf.h` and `Documentation/bpf/btf.rst`.

use std::{fs, io};

use agent_ebpf::{NO_CONTROLLER, Offsets};

/// Which groups of offsets are complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// `task_struct.tgid`: children can be followed in the kernel.
    pub tasks: bool,
    /// The leader's name.
    pub leader: bool,
    /// Ids in pid namespaces.
    pub ids: bool,
    /// Addresses of sockets.
    pub sockets: bool,
    /// Who of them connected, and who accepted.
    pub sides: bool,
    /// What a socket sends first.
    pub hellos: bool,
    /// How far a connection is, both ways.
    pub plain: bool,
    /// What a perf event says of a socket that has sent or received is where the programs look for it.
    pub events: bool,
    /// From a mapping to its inode, and from there to all its mappings.
    pub files: bool,
    /// Names of control groups.
    pub groups: bool,
}

/// What the kernel's types say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    pub offsets: Offsets,
    pub known: Known,
    /// By the order of [`HOOKS`]; 0: there is none.
    hooks: [u32; HOOKS.len()],
}

impl Layout {
    /// That of the running kernel.
    ///
    /// # Errors
    /// There is no BTF, or it is not readable (confidentiality lockdown, a container without /sys).
    pub fn read() -> io::Result<Layout> {
        let controllers = fs::read_to_string("/proc/cgroups").unwrap_or_default();
        parse(&fs::read("/sys/kernel/btf/vmlinux")?, &controllers)
            .ok_or_else(|| io::Error::other("unknown format of /sys/kernel/btf/vmlinux"))
    }

    /// The id of a type that programs hang on, which is one of [`HOOKS`].
    pub fn hook(&self, name: &str) -> Option<u32> {
        let at = HOOKS.iter().position(|(_, known)| *known == name)?;
        Some(self.hooks[at]).filter(|id| *id != 0)
    }
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;

/// The types of tracepoints, functions and iterators.
const HOOKS: [(u32, &str); 6] = [
    (KIND_TYPEDEF, "btf_trace_sock_send_length"),
    (KIND_TYPEDEF, "btf_trace_sock_recv_length"),
    (KIND_TYPEDEF, "btf_trace_tcp_destroy_sock"),
    (KIND_FUNC, "tcp_sendmsg"),
    (KIND_FUNC, "tcp_recvmsg"),
    (KIND_FUNC, "bpf_iter_task"),
];

const STRUCTURES: [&str; 21] = [
    "task_struct",
    "pid",
    "mm_struct",
    "sock",
    "sock_common",
    "vm_area_struct",
    "file",
    "inode",
    "super_block",
    "address_space",
    "inet_connection_sock",
    "inet_bind_bucket",
    "files_struct",
    "fdtable",
    "socket",
    "tcp_sock",
    "css_set",
    "cgroup_subsys_state",
    "cgroup",
    "kernfs_node",
    "trace_event_raw_sock_msg_length",
];

/// Which controller has which place in a `css_set`.
const CONTROLLERS: &str = "cgroup_subsys_id";

/// `controllers` is what `/proc/cgroups` says.
fn parse(btf: &[u8], controllers: &str) -> Option<Layout> {
    let types = Types::new(btf)?;
    let at = |name, member| types.member(name, member);
    let in_sock = |member| Some(at("sock", "__sk_common")? + at("sock_common", member)?);
    let mut offsets = Offsets::default();
    let mut set = |field: fn(&mut Offsets) -> &mut u32, value: Option<u32>| {
        *field(&mut offsets) = value.unwrap_or_default();
        value.is_some()
    };
    let tasks = set(|o| &mut o.task_tgid, at("task_struct", "tgid"));
    let leader = set(
        |o| &mut o.task_group_leader,
        at("task_struct", "group_leader"),
    ) & set(|o| &mut o.task_comm, at("task_struct", "comm"));
    let ids = set(|o| &mut o.task_thread_pid, at("task_struct", "thread_pid"))
        & set(|o| &mut o.pid_level, at("pid", "level"))
        & set(|o| &mut o.pid_numbers, at("pid", "numbers"));
    let mm = at("task_struct", "mm").zip(at("mm_struct", "start_stack"));
    set(|o| &mut o.task_mm, mm.map(|(mm, _)| mm));
    set(|o| &mut o.mm_start_stack, mm.map(|(_, stack)| stack));
    let sockets = set(|o| &mut o.sock_family, in_sock("skc_family"))
        & set(|o| &mut o.sock_num, in_sock("skc_num"))
        & set(|o| &mut o.sock_dport, in_sock("skc_dport"))
        & set(|o| &mut o.sock_rcv_saddr, in_sock("skc_rcv_saddr"))
        & set(|o| &mut o.sock_daddr, in_sock("skc_daddr"))
        & set(|o| &mut o.sock_v6_rcv_saddr, in_sock("skc_v6_rcv_saddr"))
        & set(|o| &mut o.sock_v6_daddr, in_sock("skc_v6_daddr"))
        & set(|o| &mut o.sock_protocol, at("sock", "sk_protocol"))
        & set(|o| &mut o.sock_cookie, in_sock("skc_cookie"));
    // Without them nobody says who connected; all else works.
    let sides = set(
        |o| &mut o.sock_bind_hash,
        at("inet_connection_sock", "icsk_bind_hash"),
    ) & set(
        |o| &mut o.bucket_fastreuse,
        at("inet_bind_bucket", "fastreuse"),
    );
    if sides {
        set(
            |o| &mut o.sock_max_ack_backlog,
            at("sock", "sk_max_ack_backlog"),
        );
    }
    set(
        |o| &mut o.sock_ulp,
        at("inet_connection_sock", "icsk_ulp_ops"),
    );
    let sent = set(|o| &mut o.tcp_snd_una, at("tcp_sock", "snd_una"))
        & set(|o| &mut o.tcp_write_seq, at("tcp_sock", "write_seq"))
        & set(|o| &mut o.task_stack, at("task_struct", "stack"));
    // The program asks for this one first.
    let hellos = sockets && sent && set(|o| &mut o.tcp_bytes_acked, at("tcp_sock", "bytes_acked"));
    let plain = hellos
        && set(|o| &mut o.tcp_rcv_nxt, at("tcp_sock", "rcv_nxt"))
            & set(
                |o| &mut o.tcp_bytes_received,
                at("tcp_sock", "bytes_received"),
            )
            & set(|o| &mut o.sock_state, in_sock("skc_state"))
            & set(|o| &mut o.tcp_copied_seq, at("tcp_sock", "copied_seq"));
    let descriptors = set(|o| &mut o.files_fdt, at("files_struct", "fdt"))
        & set(|o| &mut o.fdtable_max_fds, at("fdtable", "max_fds"))
        & set(|o| &mut o.fdtable_fd, at("fdtable", "fd"))
        & set(|o| &mut o.file_private_data, at("file", "private_data"))
        & set(|o| &mut o.socket_file, at("socket", "file"))
        & set(|o| &mut o.socket_sk, at("socket", "sk"));
    // The program asks for this one first.
    if descriptors && sockets {
        set(|o| &mut o.task_files, at("task_struct", "files"));
    }
    let files = set(|o| &mut o.vma_file, at("vm_area_struct", "vm_file"))
        & set(|o| &mut o.file_inode, at("file", "f_inode"))
        & set(|o| &mut o.inode_sb, at("inode", "i_sb"))
        & set(|o| &mut o.inode_ino, at("inode", "i_ino"))
        & set(|o| &mut o.inode_mapping, at("inode", "i_mapping"))
        & set(|o| &mut o.super_dev, at("super_block", "s_dev"))
        & set(|o| &mut o.mapping_i_mmap, at("address_space", "i_mmap"));
    let groups = set(|o| &mut o.css_set_default, at("css_set", "dfl_cgrp"))
        & set(|o| &mut o.cgroup_node, at("cgroup", "kn"))
        & set(|o| &mut o.node_id, at("kernfs_node", "id"))
        & set(|o| &mut o.node_name, at("kernfs_node", "name"))
        // Since 6.15 it has underscores.
        & set(
            |o| &mut o.node_parent,
            at("kernfs_node", "parent").or_else(|| at("kernfs_node", "__parent")),
        );
    let state = || {
        let place = types.controller(controller_of_version_1(controllers)?)?;
        let css = at("cgroup_subsys_state", "cgroup")?;
        Some((at("css_set", "subsys")? + place * 8, css))
    };
    let (controller, css) = state().unwrap_or((NO_CONTROLLER, 0));
    set(|o| &mut o.css_set_controller, Some(controller));
    set(|o| &mut o.css_cgroup, Some(css));
    // The programs are attached for this one.
    let groups = tasks && groups && set(|o| &mut o.task_cgroups, at("task_struct", "cgroups"));
    let of_event = |member| at("trace_event_raw_sock_msg_length", member);
    let known = Known {
        tasks,
        leader,
        ids: tasks && ids,
        sockets,
        sides,
        hellos,
        plain,
        events: ["sk", "ret", "flags"].map(of_event) == [Some(8), Some(20), Some(24)],
        files,
        groups,
    };
    Some(Layout {
        offsets,
        known,
        hooks: types.hooks,
    })
}

/// The controller of which the kernel side looks at the groups, as its enumeration names it: one that has a hierarchy
/// of its own. Runtimes join them all, and these are everywhere.
fn controller_of_version_1(controllers: &str) -> Option<&'static str> {
    const USUAL: [(&str, &str); 4] = [
        ("memory", "memory_cgrp_id"),
        ("pids", "pids_cgrp_id"),
        ("devices", "devices_cgrp_id"),
        ("cpu", "cpu_cgrp_id"),
    ];
    // Its name and the number of its hierarchy, which is 0 in version 2 and where nobody has mounted it.
    let has_own = |name: &str| {
        controllers.lines().any(|line| {
            let mut fields = line.split('\t');
            fields.next() == Some(name) && fields.next().is_some_and(|number| number != "0")
        })
    };
    let usual = USUAL.iter().find(|(name, _)| has_own(name));
    usual.map(|(_, constant)| *constant)
}

/// The structures and unions of a BTF blob; members are read when asked for.
struct Types<'a> {
    strings: &'a [u8],
    /// In the order of their ids.
    composites: Vec<Composite<'a>>,
    /// By the order of [`STRUCTURES`] and of [`HOOKS`]; 0: there is none.
    structures: [u32; STRUCTURES.len()],
    hooks: [u32; HOOKS.len()],
    /// The members of [`CONTROLLERS`].
    controllers: &'a [u8],
}

struct Composite<'a> {
    id: u32,
    /// Member offsets hold a bit-field size in their upper byte.
    bit_fields: bool,
    members: &'a [u8],
}

impl<'a> Types<'a> {
    fn new(btf: &'a [u8]) -> Option<Types<'a>> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = u32_at(btf, 4)? as usize;
        let section = |offset: usize| {
            let start = header.checked_add(u32_at(btf, offset)? as usize)?;
            btf.get(start..start.checked_add(u32_at(btf, offset + 4)? as usize)?)
        };
        let mut types = Types {
            strings: section(16)?,
            composites: Vec::new(),
            structures: [0; STRUCTURES.len()],
            hooks: [0; HOOKS.len()],
            controllers: &[],
        };
        let mut rest = section(8)?;
        let mut id = 0;
        while !rest.is_empty() {
            id += 1;
            let (name, info) = (u32_at(rest, 0)?, u32_at(rest, 4)?);
            let (count, kind) = (info as usize & 0xffff, info >> 24 & 0x1f);
            // What follows the 12 bytes that all kinds have.
            let tail = match kind {
                // INT, VAR, DECL_TAG
                1 | 14 | 17 => 4,
                // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
                2 | 7..=12 | 16 | 18 => 0,
                // ARRAY
                3 => 12,
                // STRUCT, UNION, DATASEC, ENUM64
                4 | 5 | 15 | 19 => count * 12,
                // ENUM, FUNC_PROTO
                6 | 13 => count * 8,
                _ => return None,
            };
            if kind == KIND_STRUCT || kind == KIND_UNION {
                types.composites.push(Composite {
                    id,
                    bit_fields: info >> 31 == 1,
                    members: rest.get(12..12 + tail)?,
                });
            }
            match kind {
                KIND_STRUCT => {
                    if let Some(at) = STRUCTURES.iter().position(|one| types.is(name, one)) {
                        first(&mut types.structures[at], id);
                    }
                }
                KIND_ENUM if types.is(name, CONTROLLERS) => {
                    types.controllers = rest.get(12..12 + tail)?;
                }
                KIND_TYPEDEF | KIND_FUNC => {
                    let mut hooks = HOOKS.iter();
                    if let Some(at) = hooks.position(|one| one.0 == kind && types.is(name, one.1)) {
                        first(&mut types.hooks[at], id);
                    }
                }
                _ => {}
            }
            rest = rest.get(12 + tail..)?;
        }
        Some(types)
    }

    fn is(&self, name: u32, expected: &str) -> bool {
        let at = name as usize;
        let end = at + expected.len();
        self.strings.get(at..end) == Some(expected.as_bytes()) && self.strings.get(end) == Some(&0)
    }

    /// Offset in bytes of a member, also inside anonymous structures and unions.
    fn member(&self, composite: &str, member: &str) -> Option<u32> {
        let at = STRUCTURES.iter().position(|known| *known == composite)?;
        self.member_of(self.structures[at], member, 0)
    }

    /// The place of a controller, by the name that the enumeration has for it.
    fn controller(&self, wanted: &str) -> Option<u32> {
        let (members, _) = self.controllers.as_chunks::<8>();
        let is_it =
            |member: &&[u8; 8]| u32_at(*member, 0).is_some_and(|name| self.is(name, wanted));
        u32_at(members.iter().find(is_it)?, 4)
    }

    fn member_of(&self, id: u32, wanted: &str, depth: u32) -> Option<u32> {
        let at = self
            .composites
            .binary_search_by_key(&id, |one| one.id)
            .ok()?;
        let composite = &self.composites[at];
        composite
            .members
            .as_chunks::<12>()
            .0
            .iter()
            .find_map(|member| {
                let (name, kind, offset) =
                    (u32_at(member, 0)?, u32_at(member, 4)?, u32_at(member, 8)?);
                let bits = if composite.bit_fields {
                    offset & 0x00ff_ffff
                } else {
                    offset
                };
                if self.is(name, wanted) {
                    return Some(bits / 8);
                }
                if name != 0 || depth > 8 {
                    return None;
                }
                Some(bits / 8 + self.member_of(kind, wanted, depth + 1)?)
            })
    }
}

/// Of several of a name the first is the kernel's own.
fn first(known: &mut u32, id: u32) {
    if *known == 0 {
        *known = id;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_that_has_a_hierarchy_of_its_own() {
        let heading = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n";
        let check = |lines: &str, expected| {
            let controllers = format!("{heading}{lines}");
            assert_eq!(controller_of_version_1(&controllers), expected, "{lines}");
        };
        check(
            "cpuset\t3\t1\t1\nmemory\t4\t8\t1\npids\t8\t1\t1\n",
            Some("memory_cgrp_id"),
        );
        check("cpuset\t0\t1\t1\nmemory\t0\t8\t1\npids\t0\t1\t1\n", None);
        check("memory\t0\t8\t1\npids\t5\t1\t1\n", Some("pids_cgrp_id"));
        check("net_cls\t2\t1\t1\n", None);
    }

    /// The smallest BTF with an anonymous union: `struct sock_common { union { u32 a; }; }`.
    #[test]
    fn members_inside_anonymous_unions_are_found() {
        let strings = b"\0sock_common\0skc_num\0";
        let word = |v: u32| v.to_ne_bytes();
        let mut types = Vec::new();
        // 1: union with member skc_num (name 13) at bit 16
        for v in [0, 5 << 24 | 1, 4, 13, 0, 16] {
            types.extend(word(v));
        }
        // 2: struct sock_common (name 1) with an anonymous member of type 1 at bit 64
        for v in [1, 4 << 24 | 1, 16, 0, 1, 64] {
            types.extend(word(v));
        }
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        for v in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            btf.extend(word(v));
        }
        btf.extend(&types);
        btf.extend(strings);
        let parsed = Types::new(&btf).unwrap();
        assert_eq!(parsed.member("sock_common", "skc_num"), Some(10));
        assert_eq!(parsed.member("sock_common", "skc_nu"), None);
        for len in 0..btf.len() {
            assert!(Types::new(&btf[..len]).is_none_or(|types| types.composites.is_empty()));
        }
    }
}
