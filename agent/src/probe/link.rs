//! Loads the programs and attaches them: by which kind of link, and with what it costs to undo.

use std::{
    collections::HashMap as Named,
    ffi::CString,
    fs, io,
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use agent_ebpf::{Group, GroupId, Offsets, PORT_WORDS, calls, control, counter};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, CgroupArray, HashMap, Map, MapData},
    programs::{
        Program, ProgramError, ProgramType, RawTracePoint, UProbe, loaded_programs,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
    sys::{
        UProbeMultiFeature, is_helper_supported, is_perf_link_supported, is_uprobe_multi_supported,
    },
};
use aya_obj::generated::{bpf_attach_type, bpf_func_id};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::{
    identity::{Identities, Inode},
    ids::Ids,
    kernel::Layout,
    mapping::Mapping,
    raw::{self, Bound, Kind},
    session::{self, Session},
};
use crate::{
    half::{Features, Files, Link, NO_PLAIN, Site, Sockets},
    namespace,
    obstacle::refused_by,
};

/// The kernel programs as they were built.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture"));

/// Programs for perf links without cookies, by the low bits of what would be the cookie: shape and direction.
const PERF_ENTRIES: [(u64, &str); 9] = [
    (0, "entry_read"),
    (1, "entry_write"),
    (2, "entry_read_fourth"),
    (3, "entry_write_fourth"),
    (5, "entry_write_fifth"),
    (6, "entry_read_peekable"),
    (8, "entry_handshake"),
    (15, "entry_sendfile"),
    (25, "entry_flush"),
];
const WHAT: u64 = 31;
/// Programs that see sockets used, and what they hang on.
pub struct SocketUses {
    how: Sockets,
    pub pair: [(&'static str, &'static str); 2],
}

/// The first that this kernel takes. The tracepoints came with 6.3. The old pair is refused where it does
/// not belong, the new one is not.
pub const SOCKET_USES: [SocketUses; 3] = [
    SocketUses {
        how: Sockets::Tracepoints,
        pair: [
            ("socket_send", "sock_send_length"),
            ("socket_receive", "sock_recv_length"),
        ],
    },
    SocketUses {
        how: Sockets::Fexit,
        pair: [
            ("tcp_send_old", "tcp_sendmsg"),
            ("tcp_receive_old", "tcp_recvmsg"),
        ],
    },
    SocketUses {
        how: Sockets::Fexit,
        pair: [("tcp_send", "tcp_sendmsg"), ("tcp_receive", "tcp_recvmsg")],
    },
];
/// Programs that see which connections begin with TLS, and what they hang on; the first that this kernel takes.
pub const HELLOS: [(&str, &str); 2] = [("hello", "sock_send_length"), ("hello_tcp", "tcp_sendmsg")];
/// Programs that see what plain connections say, as perf events of these tracepoints.
pub const PLAIN_EVENTS: [(&str, &str); 2] = [
    ("plain_send_event", "sock_send_length"),
    ("plain_receive_event", "sock_recv_length"),
];
/// The same in other ways, in the order of [`SOCKET_USES`].
pub const PLAINS: [[(&str, &str); 2]; SOCKET_USES.len()] = [
    [
        ("plain_send", "sock_send_length"),
        ("plain_receive", "sock_recv_length"),
    ],
    [
        ("plain_tcp_send_old", "tcp_sendmsg"),
        ("plain_tcp_receive_old", "tcp_recvmsg"),
    ],
    [
        ("plain_tcp_send", "tcp_sendmsg"),
        ("plain_tcp_receive", "tcp_recvmsg"),
    ],
];
pub const SOCKET_END: (&str, &str) = ("socket_closed", "tcp_destroy_sock");
/// The low bits of the cookies of points that have no pair of programs.
const CREATED: u64 = 22;
const CONTROL: u64 = 10;
const CLEARED: u64 = 12;
const FREED: u64 = 16;
const REWIRED: u64 = 30;
const BEGUN: u64 = 20;
/// Points whose entry says all, which have a program of their own, because they carry bytes.
const PASSED: [u64; 2] = [18, 19];
/// rustls has programs of its own.
const ENCRYPTED: u64 = 27;
const DECRYPTED: u64 = 28;

/// Programs for session links: for calls, for creators, and for rustls.
pub const SESSIONS: [&str; 3] = ["call_session", "created_session", "decrypt_session"];
/// As many of them are loaded at the start.
const USUAL_SESSIONS: usize = 2;

/// A link. Dropping it detaches.
pub enum Attachment {
    Uprobe { _link: UProbeLink },
    Session { _link: OwnedFd },
}

/// The loaded kernel side.
pub struct Kernel {
    maps: Named<String, Map>,
    pub programs: Programs,
    pub features: Features,
    /// Of what sees sockets.
    _links: Vec<OwnedFd>,
    /// Where the ids that we know processes by are not those that the programs know them by.
    ids: Option<Ids>,
    /// What does not work here, in words.
    pub limits: Vec<String>,
    pub cpus: u32,
    pub ring_bytes: u32,
    #[cfg(feature = "kernel-log")]
    log: super::log::KernelLog,
}

/// What is attached, for the threads that do it: the kernel reads the file's pages meanwhile and may
/// wait for them, so the loop does not.
#[derive(Clone)]
pub struct Programs {
    /// The kernel attaches one file after the other anyway.
    ebpf: Arc<Mutex<Ebpf>>,
    /// [`SESSIONS`] as far as they were needed, where `link` is [`Link::Session`].
    sessions: Arc<Mutex<[Option<Session>; SESSIONS.len()]>>,
    /// For what aya does not load.
    object: Arc<Bound>,
    /// The kernel's memory can be read, and aya loads programs.
    is_readable: bool,
    /// Where this kernel can say it.
    identities: Option<Arc<Identities>>,
    link: Link,
    /// A link can be for one process alone (the filter of the first uprobe_multi kernels is broken).
    scopes_processes: bool,
}

impl Kernel {
    /// Loads what this kernel can run and attaches what is not a probe.
    pub fn load(ring_bytes: u32, allow_multi: bool, plain: &[u16]) -> Result<Kernel> {
        let mut limits = Vec::new();
        let layout = readable_layout().unwrap_or_else(|error| {
            limits.push(format!(
                "{error:#}: no addresses, no --comm filter, children are followed with a delay"
            ));
            Layout::default()
        });
        let known = layout.known;
        let cpus = possible_cpus()?;
        let mut ebpf = open(ring_bytes, cpus, &layout.offsets)?;
        #[cfg(feature = "kernel-log")]
        let log = super::log::KernelLog::open(&mut ebpf)?;
        let link = best_link(allow_multi);
        if link != Link::Session {
            limits.push(
                "no session links (Linux 6.13): a program that switches stacks inside a TLS call, such as \
                 coroutines do, can be killed"
                    .to_owned(),
            );
        }
        let is_readable = reads_kernel_memory();
        let object = Arc::new(Bound::to(&ebpf)?);
        // For the verifier they are as much work as all else here: it does both at a time.
        let sessions = thread::spawn({
            let object = object.clone();
            move || load_sessions(&object, link)
        });
        let as_built = (!is_readable).then_some(&*object);
        for name in usual_uprobes(link) {
            loaded(&mut ebpf, name, as_built)?;
        }
        let mut follows = known.tasks;
        for (name, tracepoint) in [
            ("process_exec", "sched_process_exec"),
            ("process_exit", "sched_process_exit"),
            ("process_fork", "sched_process_fork"),
        ] {
            if name == "process_fork" && !known.tasks {
                continue;
            }
            if let Err(error) = raw_tracepoint(&mut ebpf, name, tracepoint) {
                limits.push(format!("{error:#}"));
                follows &= name != "process_fork";
            }
        }
        if known.groups {
            for (name, tracepoint) in [
                ("group_exec", "sched_process_exec"),
                ("group_fork", "sched_process_fork"),
            ] {
                if let Err(error) = raw_tracepoint(&mut ebpf, name, tracepoint) {
                    limits.push(format!(
                        "{error:#}: in which container a process was that ends at once is not known"
                    ));
                }
            }
        }
        let scopes_processes = matches!(link, Link::Multi | Link::Session)
            && is_uprobe_multi_supported(UProbeMultiFeature::ProcessScopedPidFilter)
                .unwrap_or(false);
        let (mut sockets, mut links) = (Sockets::Unseen, Vec::new());
        if known.sockets {
            (sockets, links) = follow_sockets(&object, &layout).unwrap_or_else(|error| {
                limits.push(format!("no addresses of connections: {error:#}"));
                (sockets, links)
            });
        }
        let hellos = match known.hellos {
            true => follow_hellos(&object, &layout),
            false => Err(anyhow!("the kernel's structures are unknown")),
        };
        let has_hellos = hellos.is_ok();
        match hellos {
            Ok(link) => links.push(link),
            Err(error) => limits.push(format!(
                "TLS of libraries that we don't know is not looked for: {error:#}"
            )),
        }
        if !plain.is_empty() {
            let plains = match known.plain {
                true => set_ports(&mut ebpf, plain).and_then(|()| follow_plain(&object, &layout)),
                false => Err(anyhow!("the kernel's structures are unknown")),
            };
            match plains {
                Ok(pair) => links.extend(pair),
                Err(error) => limits.push(format!("{NO_PLAIN}: {error:#}")),
            }
        }
        let identities = if known.files {
            Identities::load(&mut ebpf, &object, &layout)
        } else {
            Err(anyhow!("its structures are unknown"))
        };
        let identities = identities.map_err(|error| {
            limits.push(format!(
                "the kernel does not say which file a mapping is ({error:#}): a file below two overlay mounts \
                 is taken for two, and probes stay until the end"
            ));
        });
        let ids = match namespace::is_initial() {
            true => None,
            false if known.ids => {
                Some(Ids::load(&mut ebpf, &object, &layout).context(namespace::NO_IDS)?)
            }
            false => bail!("{}: its structures are unknown", namespace::NO_IDS),
        };
        let features = Features {
            link,
            scopes_processes,
            sockets,
            roles: known.sides,
            hellos: has_hellos,
            files: match &identities {
                Ok(known) if known.know_other_processes() => Files::OfProcesses,
                Ok(_) => Files::Own,
                Err(()) => Files::Numbers,
            },
            follows,
            comms: known.leader,
        };
        let sessions = sessions.join();
        let sessions = sessions.map_err(|_| anyhow!("the thread that loads programs failed"))??;
        let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        let maps = names
            .into_iter()
            .filter_map(|name| ebpf.take_map(&name).map(|map| (name, map)))
            .collect();
        Ok(Kernel {
            maps,
            programs: Programs {
                ebpf: Arc::new(Mutex::new(ebpf)),
                sessions: Arc::new(Mutex::new(sessions)),
                object,
                is_readable,
                identities: identities.ok().map(Arc::new),
                link,
                scopes_processes,
            },
            features,
            _links: links,
            ids,
            limits,
            cpus,
            ring_bytes,
            #[cfg(feature = "kernel-log")]
            log,
        })
    }

    /// Ring, counters, control words, calls of points: the maps that the pipeline shares.
    pub fn shared(&self) -> [BorrowedFd<'_>; 4] {
        ["RING", "COUNTERS", "CONTROL", "CALLS"].map(|name| match self.maps.get(name) {
            Some(Map::RingBuf(map) | Map::Array(map)) => map.fd().as_fd(),
            _ => unreachable!("{name} is a map of the object"),
        })
    }

    /// A map keyed by `K`, as the object defines it.
    pub fn map<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        let map = self
            .maps
            .get_mut(name)
            .unwrap_or_else(|| panic!("{name} is a map of the object"));
        HashMap::try_from(map).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The control groups that a process was in when it was made or became another program, as the kernel side has
    /// noted them: of processes of late, by the id that the programs know. In version 2, and in a hierarchy of version 1.
    pub fn noted_groups(&mut self, id: u32) -> [Option<Group>; 2] {
        let known = self.map::<u32, [GroupId; 2]>("GROUPS_OF").get(&id, 0);
        let groups = self.map::<GroupId, Group>("GROUP_NAMES");
        let group = |number: usize| groups.get(&known.as_ref().ok()?[number], 0).ok();
        [group(0), group(1)]
    }

    /// The id by which the programs, and so the records, know a process. `None`: it is not watched, or it is
    /// gone.
    pub fn id(&self, pid: u32) -> Option<u32> {
        match &self.ids {
            Some(ids) => ids.known(pid),
            None => Some(pid),
        }
    }

    /// The same of any process, which is known from then on.
    pub fn learn_id(&mut self, pid: u32) -> Option<u32> {
        match &mut self.ids {
            Some(ids) => ids.learn(pid),
            None => Some(pid),
        }
    }

    /// The same, without remembering it.
    pub fn ask_id(&mut self, pid: u32) -> Option<u32> {
        match &mut self.ids {
            Some(ids) => ids.ask(pid),
            None => Some(pid),
        }
    }

    pub fn forget_id(&mut self, pid: u32) {
        if let Some(ids) = &mut self.ids {
            ids.forget(pid);
        }
    }

    /// Which control group the programs ask for in this slot.
    pub fn set_group(&mut self, slot: u32, directory: Option<&OwnedFd>) -> Result<()> {
        let map = self
            .maps
            .get_mut("CGROUPS")
            .context("CGROUPS is a map of the object")?;
        let mut groups = CgroupArray::try_from(map)?;
        match directory {
            Some(directory) => groups.set(slot, directory.as_raw_fd(), 0)?,
            None => groups.unset(slot)?,
        }
        Ok(())
    }

    /// What the programs said, in a build that lets them.
    pub fn flush_log(&mut self) {
        #[cfg(feature = "kernel-log")]
        self.log.flush();
    }

    /// A counter of all CPUs.
    pub fn sum(&self, index: usize) -> Result<u64> {
        let map = self.maps.get("COUNTERS");
        let map = map.context("COUNTERS is a map of the object")?;
        let rows: Array<_, [u64; counter::ROW]> = Array::try_from(map)?;
        let rows: Result<Vec<_>, _> = rows.iter().collect();
        Ok(rows?.iter().map(|row| row[index]).sum())
    }

    /// Counts from 0 again: nobody has looked yet, and what was counted were our own calls.
    pub fn clear_counters(&mut self) -> Result<()> {
        static NOTHING: [u64; calls::SLOTS] = [0; calls::SLOTS];
        for cpu in 0..self.cpus {
            self.array("COUNTERS")?
                .set(cpu, &[0_u64; counter::ROW], 0)?;
            self.array("CALLS")?.set(cpu, &NOTHING, 0)?;
        }
        Ok(())
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self.maps.get_mut(name);
        let map = map.with_context(|| format!("{name} is a map of the object"))?;
        Ok(Array::try_from(map)?)
    }

    /// Sets the control word that stops every program.
    pub fn stop(&mut self) -> Result<()> {
        let mut control = self.array::<[u64; control::COUNT]>("CONTROL")?;
        let mut words = control.get(&0, 0)?;
        words[control::STOP] = 1;
        Ok(control.set(0, &words, 0)?)
    }
}

impl Programs {
    /// What an open file is for the kernel. Waits for its file system.
    pub fn inode(&self, file: &OwnedFd) -> Option<Inode> {
        self.identities.as_ref()?.of(file).ok()
    }

    /// What a process maps there, for the kernel. `None` also where this kernel can't say it.
    pub fn inode_mapped(&self, mapping: &Mapping) -> Option<Inode> {
        let identities = self.identities.as_ref()?;
        identities.of_mapping(mapping.pid, mapping.address)
    }

    /// The same for who may wait.
    pub fn inode_mapped_at_last(&self, mapping: &Mapping) -> Option<Inode> {
        let identities = self.identities.as_ref()?;
        identities.of_mapping_at_last(mapping.pid, mapping.address)
    }

    /// Does nobody map the file any more? Not known is not nobody.
    pub fn is_left(&self, inode: Inode) -> bool {
        let mapped = self.identities.as_ref().map(|known| known.is_mapped(inode));
        matches!(mapped, Some(Ok(false)))
    }

    /// Is there a program for this point? Where the object counts its owners is in the cookie: without, there
    /// is none for that.
    pub fn takes(&self, site: &Site) -> bool {
        self.link != Link::Perf || site.cookie & WHAT != FREED
    }

    /// Does every process that maps a file meet the probes that are attached for `only`?
    ///
    /// A session link of one process lets the calls of others have their return probe: where two such
    /// links meet, no entry program could refuse it.
    pub fn is_for_everybody(&self, only: &[u32]) -> bool {
        only.is_empty() || !self.scopes_processes || self.link == Link::Session && only.len() > 1
    }

    /// Probes all sites of a file. The links are undone when they are dropped.
    ///
    /// By offset. All sites of a kind go in one call: the kernel's writer lock costs 5 to 28 ms once, 20 µs
    /// each after that. The return probes come first, so that no entry stays without its return. The
    /// creators and what makes an object new again come last: a connection whose beginning was seen counts as
    /// seen from its first byte.
    ///
    /// With `only`, and where the kernel can, nobody else meets a breakpoint: no cost for bystanders.
    pub fn attach(&self, file: &OwnedFd, sites: &[Site], only: &[u32]) -> Result<Vec<Attachment>> {
        let of = |what| -> Vec<&Site> {
            let sites = sites.iter();
            sites.filter(|site| site.cookie & WHAT == what).collect()
        };
        let creators = of(CREATED);
        let (encrypters, decrypters) = (of(ENCRYPTED), of(DECRYPTED));
        let is_event = |site: &&Site| {
            matches!(
                site.cookie & WHAT,
                CONTROL | CLEARED | FREED | REWIRED | BEGUN
            )
        };
        let events: Vec<&Site> = sites.iter().filter(is_event).collect();
        let is_passed = |site: &&Site| PASSED.contains(&(site.cookie & WHAT));
        let passed: Vec<&Site> = sites.iter().filter(is_passed).collect();
        let is_own = |site: &&Site| matches!(site.cookie & WHAT, CREATED | ENCRYPTED | DECRYPTED);
        let is_carrier = |site: &&Site| !is_event(site) && !is_passed(site) && !is_own(site);
        let carriers: Vec<&Site> = sites.iter().filter(is_carrier).collect();
        let pids = only.iter().copied().filter_map(NonZeroU32::new);
        let scopes: Vec<UProbeScope> = match self.is_for_everybody(only) {
            true => vec![UProbeScope::AllProcesses],
            false => pids.map(UProbeScope::OneProcess).collect(),
        };
        // The descriptor's own link: no path is looked up again.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut links = Vec::new();
        let groups: Vec<(&str, Vec<&Site>)> = match self.link {
            Link::Session => {
                let sites = [carriers, creators, decrypters];
                links = self.attach_sessions(&path, sites, only)?;
                vec![
                    ("passed_multi", passed),
                    ("encrypt_multi", encrypters),
                    ("event_multi", events),
                ]
            }
            Link::Multi => vec![
                ("return_multi", carriers.clone()),
                ("entry_multi", carriers),
                ("passed_multi", passed),
                ("decrypted_multi", decrypters.clone()),
                ("decrypt_multi", decrypters),
                ("encrypt_multi", encrypters),
                ("created_multi", creators),
                ("event_multi", events),
            ],
            Link::PerfCookie => vec![
                ("return_perf", carriers.clone()),
                ("entry_cookie", carriers),
                ("passed_cookie", passed),
                ("decrypted_perf", decrypters.clone()),
                ("decrypt_cookie", decrypters),
                ("encrypt_cookie", encrypters),
                ("created_cookie", creators),
                ("event_cookie", events),
            ],
            Link::Perf => {
                let entries = PERF_ENTRIES.map(|(what, name)| {
                    let is_of = |site: &&&Site| site.cookie & WHAT == what;
                    (name, carriers.iter().filter(is_of).copied().collect())
                });
                let mut groups = vec![("return_perf", carriers.clone())];
                groups.extend(entries);
                groups.push(("passed_read", of(PASSED[0])));
                groups.push(("passed_write", of(PASSED[1])));
                groups.push(("decrypted_perf", decrypters.clone()));
                groups.push(("decrypt_perf", decrypters));
                groups.push(("encrypt_perf", encrypters));
                groups.push(("created_perf", creators));
                groups.push(("control_perf", of(CONTROL)));
                groups.push(("cleared_perf", of(CLEARED)));
                groups.push(("rewired_perf", of(REWIRED)));
                groups.push(("begun_perf", of(BEGUN)));
                groups
            }
        };
        let cookies = self.link != Link::Perf;
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, sites) in groups.iter().filter(|(_, sites)| !sites.is_empty()) {
            let as_built = (!self.is_readable).then_some(&*self.object);
            let program = loaded(&mut ebpf, name, as_built)?;
            for scope in &scopes {
                let points = sites.iter().map(|site| UProbeAttachPoint {
                    location: UProbeAttachLocation::AbsoluteOffset(site.offset),
                    cookie: cookies.then_some(site.cookie),
                });
                let id = program
                    .attach(points, &path, *scope)
                    .map_err(|error| anyhow!("{}", root_cause(&error)))?;
                links.push(Attachment::Uprobe {
                    _link: program.take_link(id)?,
                });
            }
        }
        Ok(links)
    }

    fn attach_sessions(
        &self,
        path: &str,
        sites: [Vec<&Site>; SESSIONS.len()],
        only: &[u32],
    ) -> Result<Vec<Attachment>> {
        let path = CString::new(path)?;
        let pid = match only {
            [pid] if !self.is_for_everybody(only) => *pid,
            _ => 0,
        };
        let mut links = Vec::new();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        for ((session, name), sites) in sessions.iter_mut().zip(SESSIONS).zip(sites) {
            if !sites.is_empty() {
                let session = load_session(session, name, &self.object)?;
                let _link = session.attach(&path, &sites, pid)?;
                links.push(Attachment::Session { _link });
            }
        }
        Ok(links)
    }
}

/// Who takes a trampoline off waits (`synchronize_rcu_tasks`, in kernels with CONFIG_PREEMPTION) for all tasks that
/// are ending. The first process of a pid namespace, when it ends, waits for all others there, and so for the half:
/// both for good, and from then on nobody on that machine takes a trampoline off. Each time on 6.1.192, by the stacks
/// of the two. The tracepoints, which are tried first, have no trampoline.
const UNSAFE_FEXIT: &str = "fexit: in a pid namespace this kernel could hang when the agent ends (from 6.3 on tracepoints are used instead)";

/// Attaches what sees sockets: those that end in any case, and the first pair for those that are used. The
/// links, too.
fn follow_sockets(object: &Bound, layout: &Layout) -> Result<(Sockets, Vec<OwnedFd>)> {
    let end = load_socket_program(object, layout, Sockets::Tracepoints, SOCKET_END)?;
    let mut refusals = Vec::new();
    for SocketUses { how, pair } in SOCKET_USES {
        if how == Sockets::Fexit && !namespace::is_initial() {
            refusals.push(UNSAFE_FEXIT.to_owned());
            break;
        }
        let loaded: Result<Vec<OwnedFd>> = pair
            .into_iter()
            .map(|program| load_socket_program(object, layout, how, program))
            .collect();
        let pair = match loaded {
            Ok(pair) => pair,
            Err(error) => {
                refusals.push(format!("{error:#}"));
                continue;
            }
        };
        let programs = [&end].into_iter().chain(&pair);
        let links: io::Result<_> = programs.map(raw::attach).collect();
        return Ok((how, links.context("attach what sees sockets")?));
    }
    bail!("{}", refusals.join("; "))
}

/// Says which ports are those of plain connections.
fn set_ports(ebpf: &mut Ebpf, ports: &[u16]) -> Result<()> {
    let mut words = [0_u64; PORT_WORDS];
    for port in ports {
        words[usize::from(port >> 6)] |= 1 << (port & 63);
    }
    let map = ebpf.map_mut("PORTS");
    let map = map.context("PORTS is a map of the object")?;
    Ok(Array::try_from(map)?.set(0, &words, 0)?)
}

/// Attaches what sees plain connections to perf events of tracepoints, whose numbers the kernel tells in its tracefs.
fn follow_events(object: &Bound, layout: &Layout) -> Result<Vec<OwnedFd>> {
    const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    ensure!(layout.known.events, "no such perf events");
    let events = PLAIN_EVENTS.into_iter().map(|(program, tracepoint)| {
        let mut numbers = TRACEFS
            .iter()
            .filter_map(|at| fs::read_to_string(format!("{at}/events/sock/{tracepoint}/id")).ok());
        let number = numbers.next().context("there is no tracefs")?;
        let loaded = object.load(program, Kind::EVENT);
        let loaded = loaded.with_context(|| format!("load the kernel program {program}"))?;
        raw::attach_event(&loaded, number.trim().parse()?)
            .with_context(|| format!("attach to a perf event of {tracepoint}"))
    });
    events.collect()
}

/// Attaches what sees plain connections: the first pair of programs that this kernel takes.
fn follow_plain(object: &Bound, layout: &Layout) -> Result<Vec<OwnedFd>> {
    let mut refusals = match follow_events(object, layout) {
        Ok(events) => return Ok(events),
        Err(error) => vec![format!("{error:#}")],
    };
    for (SocketUses { how, .. }, pair) in SOCKET_USES.iter().zip(PLAINS) {
        if *how == Sockets::Fexit && !namespace::is_initial() {
            refusals.push(UNSAFE_FEXIT.to_owned());
            break;
        }
        let loaded: Result<Vec<OwnedFd>> = pair
            .into_iter()
            .map(|program| load_socket_program(object, layout, *how, program))
            .collect();
        match loaded {
            Ok(pair) => {
                let links: io::Result<_> = pair.iter().map(raw::attach).collect();
                return links.context("attach what sees plain connections");
            }
            Err(error) => refusals.push(format!("{error:#}")),
        }
    }
    bail!("{}", refusals.join("; "))
}

/// Attaches what sees the first bytes of connections.
fn follow_hellos(object: &Bound, layout: &Layout) -> Result<OwnedFd> {
    let mut refusals = Vec::new();
    for (program, how) in HELLOS
        .into_iter()
        .zip([Sockets::Tracepoints, Sockets::Fexit])
    {
        if how == Sockets::Fexit && !namespace::is_initial() {
            refusals.push(UNSAFE_FEXIT.to_owned());
            break;
        }
        let attached = load_socket_program(object, layout, how, program)
            .and_then(|loaded| raw::attach(&loaded).context("attach what sees first bytes"));
        match attached {
            Ok(link) => return Ok(link),
            Err(error) => refusals.push(format!("{error:#}")),
        }
    }
    bail!("{}", refusals.join("; "))
}

fn load_socket_program(
    object: &Bound,
    layout: &Layout,
    how: Sockets,
    (name, hook): (&str, &str),
) -> Result<OwnedFd> {
    let (attach, id) = match how {
        Sockets::Fexit => (bpf_attach_type::BPF_TRACE_FEXIT, layout.hook(hook)),
        _ => {
            let hook = layout.hook(&format!("btf_trace_{hook}"));
            (bpf_attach_type::BPF_TRACE_RAW_TP, hook)
        }
    };
    let id = id.with_context(|| format!("{hook}: this kernel has none"))?;
    let loaded = object.load(name, Kind::tracing(attach, id));
    loaded.map_err(|error| {
        let said = error.to_string();
        let (error, log) = said.split_once('\n').unwrap_or((&said, ""));
        anyhow!("{hook}: {error}: {}", last_word(log))
    })
}

/// The verifier's log is for `load-check`; its last words are enough here.
fn in_a_line(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return root_cause(error);
    };
    format!("{io_error}: {}", last_word(&verifier_log.to_string()))
}

fn last_word(log: &str) -> &str {
    let said = log
        .lines()
        .rev()
        .find(|line| !VERIFIER_STATISTICS.iter().any(|s| line.starts_with(s)));
    said.unwrap_or("the kernel does not say why")
}

const VERIFIER_STATISTICS: [&str; 4] =
    ["verification time", "stack depth", "processed", "mark_read"];

pub fn open(ring_bytes: u32, cpus: u32, offsets: &Offsets) -> Result<Ebpf> {
    const PROCESSES: u32 = 32768;
    let ids = if namespace::is_initial() {
        1
    } else {
        PROCESSES
    };
    EbpfLoader::new()
        .override_global("OFFSETS", offsets, true)
        .override_global("RING_SIZE", &ring_bytes, true)
        .map_max_entries("RING", ring_bytes)
        .map_max_entries("COUNTERS", cpus)
        .map_max_entries("CALLS", cpus)
        .map_max_entries("IDS", ids)
        .load(OBJECT)
        .context("create the kernel maps")
}

/// Where the members of kernel structures are, if a program may read them. Without offsets no program tries:
/// the verifier skips what can't be reached.
fn readable_layout() -> Result<Layout> {
    let layout = Layout::read().map_err(|error| {
        anyhow!("no kernel type information (/sys/kernel/btf/vmlinux: {error})")
    })?;
    ensure!(
        reads_kernel_memory(),
        "the kernel's memory can't be read (lockdown)"
    );
    Ok(layout)
}

/// False only after a clear no, which confidentiality lockdown gives.
pub fn reads_kernel_memory() -> bool {
    let helper = bpf_func_id::BPF_FUNC_probe_read_kernel;
    is_helper_supported(ProgramType::KProbe, helper).unwrap_or(true)
}

/// The usual ones of [`SESSIONS`], where there are such links.
fn load_sessions(object: &Bound, link: Link) -> Result<[Option<Session>; SESSIONS.len()]> {
    let mut sessions = [const { None }; SESSIONS.len()];
    if link == Link::Session {
        for (session, name) in sessions.iter_mut().zip(SESSIONS).take(USUAL_SESSIONS) {
            load_session(session, name, object)?;
        }
    }
    Ok(sessions)
}

/// A session program, loaded if it was not needed before.
fn load_session<'a>(
    session: &'a mut Option<Session>,
    name: &str,
    object: &Bound,
) -> Result<&'a Session> {
    if session.is_none() {
        let loaded = Session::load(object, name);
        *session = Some(loaded.with_context(|| format!("load the kernel program {name}"))?);
    }
    session.as_ref().context("it was just loaded")
}

/// A program for uprobes, loaded if it was not needed before: by aya, or as it was built.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &str, as_built: Option<&Bound>) -> Result<&'a mut UProbe> {
    let uprobe: &mut UProbe = program(ebpf, name)?;
    if uprobe.fd().is_ok() {
        return Ok(uprobe);
    }
    match as_built {
        None => uprobe.load().map_err(|error| {
            let said = anyhow!("load the kernel program {name}: {}", in_a_line(&error));
            match &error {
                ProgramError::LoadError { io_error, .. } => refused_by(io_error, said),
                _ => said,
            }
        })?,
        Some(object) => load_as_built(uprobe, name, object)?,
    }
    Ok(uprobe)
}

/// aya takes a kernel that refuses reads of its own memory for one from before 5.5, and makes one helper of all
/// that read memory, which is refused as well. So we load what was built, and aya gets the program.
fn load_as_built(uprobe: &mut UProbe, name: &str, object: &Bound) -> Result<()> {
    let kind = match name.ends_with("_multi") {
        true => Kind::MULTI,
        false => Kind::UPROBE,
    };
    let loaded = object.load(name, kind);
    let loaded = loaded.with_context(|| format!("load the kernel program {name}"))?;
    let id = raw::info(&loaded)?.id;
    let mut all = loaded_programs().flatten();
    let info = all.find(|info| info.id() == id);
    let info = info.context("a loaded program is not in the kernel's list")?;
    // SAFETY: it was loaded as the kind of program that `uprobe` is.
    *uprobe = unsafe { UProbe::from_program_info(info, name.to_owned().into(), uprobe.kind()) }?;
    Ok(())
}

fn best_link(allow_multi: bool) -> Link {
    if allow_multi && session::is_supported() {
        Link::Session
    } else if allow_multi
        && is_uprobe_multi_supported(UProbeMultiFeature::LinkCreation).unwrap_or(false)
    {
        Link::Multi
    } else if is_perf_link_supported().unwrap_or(false) {
        Link::PerfCookie
    } else {
        Link::Perf
    }
}

/// What is loaded at the start. The programs of Go and rustls are as much work for the verifier as all these: they
/// are loaded for the first file that needs them.
fn usual_uprobes(link: Link) -> Vec<&'static str> {
    match link {
        Link::Session => vec!["event_multi"],
        Link::Multi => vec![
            "entry_multi",
            "return_multi",
            "created_multi",
            "event_multi",
        ],
        Link::PerfCookie => vec![
            "entry_cookie",
            "return_perf",
            "created_cookie",
            "event_cookie",
        ],
        Link::Perf => PERF_ENTRIES
            .iter()
            .map(|(_, name)| *name)
            .chain([
                "return_perf",
                "created_perf",
                "control_perf",
                "cleared_perf",
                "rewired_perf",
            ])
            .collect(),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name} in the object"))?;
    Ok(program.try_into()?)
}

fn raw_tracepoint(ebpf: &mut Ebpf, name: &str, tracepoint: &str) -> Result<()> {
    let program: &mut RawTracePoint = program(ebpf, name)?;
    program
        .load()
        .and_then(|()| program.attach(tracepoint))
        .with_context(|| format!("attach to the tracepoint {tracepoint}"))?;
    Ok(())
}

/// The last error of a chain: aya's outer ones repeat it.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The kernel numbers CPUs from 0 to this, absent ones included.
pub fn possible_cpus() -> Result<u32> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    Ok(cpus.get())
}
