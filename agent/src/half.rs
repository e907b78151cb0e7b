//! What the two halves say to each other, and the socket that carries it.
//!
//! One `SOCK_SEQPACKET` packet is one message: no length prefix, no partial read. A packet of length 0
//! is the end, so no message is empty. Descriptors travel with the message they belong to, in a number
//! that the message fixes; anything else is a protocol error.

use std::{io, mem::MaybeUninit, net::SocketAddr, time::Duration};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{Errno, IoSlice, IoSliceMut},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{cgroup::is_below, container, obstacle::Obstacle};

/// The longest time that the half keeps a process of CMD's tree stopped, for however many files.
pub const HELD_LONGEST: Duration = Duration::from_secs(6);

/// How long the probes of a file are out that cost too much, in seconds: no shorter, no longer. Placing them is work for
/// the kernel that everybody waits for.
pub const PAUSE: std::ops::RangeInclusive<u32> = 10..=300;

/// Among the limits of a kernel where `--plain` does nothing.
pub const NO_PLAIN: &str = "plain connections are not seen";

/// Number of a file, given by who opened it first: the half, or the pipeline with [`OWN_FILE`] set.
pub type FileId = u64;
pub const OWN_FILE: FileId = 1 << 63;

/// Privileged half → pipeline.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// First of all. Descriptors: ring, counters, control words, calls of points.
    Hello(Hello),
    /// Instead of `Hello`, or at any later time: the half ends, and why. With an obstacle another one would, too.
    Failed {
        why: String,
        obstacle: Option<Obstacle>,
    },
    /// The filter is in force.
    FilterSet,
    /// A process maps a file executable.
    Mapped(Mapped),
    /// A file that is to be looked at: it was mapped for the first time. One descriptor.
    Opened {
        file: FileId,
        /// As the kernel shows it; for people.
        path: String,
    },
    /// Instead of `Opened`: the file can't be looked at. Nothing more comes about it.
    Unread {
        file: FileId,
        path: String,
        why: String,
    },
    /// Who a process is; sent before anything else about it.
    Process(Facts),
    Attached(Attached),
    /// The file is another name or number of one that is known: whoever maps it maps that one.
    Same {
        file: FileId,
        known: FileId,
    },
    /// Nothing was attached to this file, or no longer is.
    Refused {
        file: FileId,
        why: String,
    },
    /// The probes of a file are out for a while; answers [`Order::Pause`]. It ends with `Attached`, `Refused` or `LetGo`.
    Paused {
        file: FileId,
    },
    /// Nothing more comes about this file: nobody maps it any more, or it can't be read. If it is mapped again it is
    /// another one.
    LetGo {
        file: FileId,
    },
    /// The probes of a file were taken out while processes use it. If there are probes in it again, those come
    /// back as who was turned away does.
    Interrupted,
    /// Holes at the end of streams that no later call could announce.
    Pending(Vec<Pending>),
    /// The half's own usage, after the holes; answers [`Order::Survey`].
    Survey(Survey),
    /// A process that waited goes on.
    Continued {
        pid: u32,
    },
    /// What the process' leader calls itself from now on.
    Renamed {
        pid: u32,
        comm: String,
    },
    /// Other control groups are watched: whether this process is in one.
    Placed {
        pid: u32,
        is_outside: bool,
    },
    /// The process is gone.
    Ended {
        pid: u32,
    },
    /// A process mapped a file, and both were gone before anybody could look.
    Missed {
        pid: u32,
        path: String,
    },
    /// What runs the code of a process; answers [`Order::Introduce`], after `Process`.
    Runtime {
        pid: u32,
        runtime: Option<Runtime>,
    },
    /// Answers [`Order::Inspect`].
    Inspected {
        connected: Connected,
        finding: Finding,
    },
    /// Answers [`Order::Examine`], if there is something to say.
    Silent {
        pid: u32,
        silent: Silent,
    },
    /// What happened before [`Order::CatchUp`] was given has been told.
    CaughtUp,
    /// A line for the log.
    Warning(String),
}

/// Pipeline → privileged half.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Filter(Filter),
    /// Others are wanted; with [`Filter::may_change`] only. Who is wanted before and after passes all the time, and who is
    /// neither never does: first those leave who are wanted no more. Then the pipeline changes the control word.
    Change(Choice),
    /// It has: now those come who are wanted from now on. As the other, answered by `FilterSet`.
    Changed,
    /// One descriptor: a directory of the cgroup v2 hierarchy. Each of a filter before `Filter` or `Change`.
    Cgroup,
    /// Answers `Opened`: probe these points; without points nothing is there, let go of the file. Or, with
    /// one descriptor, probe a file of the pipeline's own.
    Attach {
        file: FileId,
        points: Vec<Site>,
    },
    /// What the kernel side may spare us of these sockets: cookies, and values of its map of them. Lost, it
    /// only costs records.
    Sockets(Vec<(u64, u64)>),
    /// These handles are used up: their streams can go.
    Forget(Vec<Handle>),
    /// This file is a TLS library that can't be probed, or none, as its first calls showed: its probes are taken out.
    Refuse {
        file: FileId,
        why: String,
    },
    /// The probes of this file cost too much: they are taken out, and placed again after so many seconds, of which the
    /// half knows the least and the most. A file without probes stays as it is.
    Pause {
        file: FileId,
        seconds: u32,
    },
    /// Who is this process? It is watched, but nothing it maps was worth a word.
    Introduce {
        pid: u32,
    },
    /// What can be said of this connection, which began with TLS that no probe saw?
    Inspect(Connected),
    /// Are all breakpoints where this process maps the files that are probed?
    Examine {
        pid: u32,
    },
    /// Say when everything that has happened until now is told.
    CatchUp,
    /// `pending`: look for holes at the end of streams, too.
    Survey {
        pending: bool,
    },
    /// Detach and end. The control word has stopped the programs already.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub ring_bytes: u64,
    /// Rows of the counters.
    pub cpus: u32,
    pub features: Features,
    /// What does not work here, in words.
    pub limits: Vec<String>,
    /// If they were asked for, and points can be told apart.
    pub costs: Option<Costs>,
}

/// What a hit of a probe costs who calls, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// The trap at an instruction that the kernel emulates.
    pub entry: u32,
    /// More where it is single-stepped.
    pub step: u32,
    /// More where the call's return is probed.
    pub exit: u32,
}

/// What this kernel can do for us. Each was tried; no version was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    pub link: Link,
    /// A link can be for one process alone.
    pub scopes_processes: bool,
    pub sockets: Sockets,
    /// Who connected is told from who accepted.
    pub roles: bool,
    /// Connections that begin with TLS are noticed, whatever library makes it.
    pub hellos: bool,
    pub files: Files,
    /// Children are followed in the kernel.
    pub follows: bool,
    /// The name of a thread's leader can be asked for.
    pub comms: bool,
}

impl Features {
    /// For people and tests: what, and how.
    pub fn words(&self) -> [(&'static str, &'static str); 9] {
        let has = |has| if has { "yes" } else { "no" };
        [
            ("links", self.link.name()),
            ("cookies", has(self.link != Link::Perf)),
            ("process_links", has(self.scopes_processes)),
            ("sockets", self.sockets.name()),
            ("roles", has(self.roles)),
            ("hellos", has(self.hellos)),
            ("files", self.files.name()),
            ("children", if self.follows { "kernel" } else { "reports" }),
            ("comms", has(self.comms)),
        ]
    }
}

/// A connection of a process, by its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Connected {
    pub pid: u32,
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// What runs code that is in no file, and has a TLS of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Runtime {
    Jvm,
    Erlang,
}

/// What the half saw of a connection and its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its socket has the kernel's TLS.
    pub is_kernels: bool,
    /// Bytes both ways; 0 also if the socket is gone.
    pub transferred: u64,
    /// Probes of this file are not where the process maps it.
    pub silent: Option<Silent>,
}

/// A file whose probes a process does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    pub file: FileId,
    /// They are being placed again. Once only: who takes them out twice has its reasons.
    pub is_placed_again: bool,
}

/// How uses of sockets are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    /// 6.3
    Tracepoints,
    Fexit,
    Unseen,
}

impl Sockets {
    const fn name(self) -> &'static str {
        match self {
            Sockets::Tracepoints => "tracepoints",
            Sockets::Fexit => "fexit",
            Sockets::Unseen => "none",
        }
    }
}

/// How a file is told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Files {
    /// By the kernel's inode, also of what another process maps (6.1).
    OfProcesses,
    /// By the kernel's inode, of what we map ourselves (5.17).
    Own,
    /// By what `stat` shows.
    Numbers,
}

impl Files {
    const fn name(self) -> &'static str {
        match self {
            Files::OfProcesses => "inodes",
            Files::Own => "own-inodes",
            Files::Numbers => "numbers",
        }
    }
}

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// One link for all points of a file; the entry decides whether there is a return probe (6.13).
    Session,
    /// One link for all points of a file and kind (6.6).
    Multi,
    /// One perf event per point, with cookies (5.15).
    PerfCookie,
    Perf,
}

impl Link {
    pub const fn name(self) -> &'static str {
        match self {
            Link::Session => "session",
            Link::Multi => "multi",
            Link::PerfCookie | Link::Perf => "perf",
        }
    }
}

/// Which processes are wanted. Lists of one kind mean "or", different kinds "and"; all empty: everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// In the agent's own pid namespace.
    pub pids: Vec<u32>,
    /// Children of `pids` too.
    pub follow: bool,
    pub choice: Choice,
    /// A daemon's `choice` may.
    pub may_change: bool,
    /// Look at what is mapped already.
    pub scan: bool,
    /// Hold processes of the tree while a new file of theirs is looked at.
    pub hold: bool,
    /// Processes of the agent that the half does not know by itself: they are never looked at.
    pub own: Vec<u32>,
}

/// What of it may change while the half runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub uids: Vec<u32>,
    pub comms: Vec<String>,
    /// Control groups, as `/proc/PID/cgroup` names them.
    pub groups: Vec<String>,
    /// Beginnings of container ids.
    pub containers: Vec<String>,
    /// The kernel side is told who is in `groups` and `containers`: it can't find out itself.
    pub members: bool,
}

impl Choice {
    /// Is a process with this `/proc/PID/cgroup` in what is watched?
    pub fn holds(&self, groups: &str) -> bool {
        let Choice {
            groups: wanted,
            containers,
            ..
        } = self;
        let is_in = |id: &str| containers.iter().any(|start| id.starts_with(start));
        (wanted.is_empty() || wanted.iter().any(|path| is_below(groups, path)))
            && (containers.is_empty() || container::id(groups).is_some_and(|id| is_in(&id)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Mapped {
    pub file: FileId,
    pub pid: u32,
    /// Nanoseconds since boot; `None`: found by the scan, mapped earlier.
    pub at: Option<u64>,
    /// The process waits until this file is answered. Its id in our pid namespace, for who has to continue it.
    pub held: Option<u32>,
}

/// What /proc says of a process. As everywhere between the halves, ids are those of the initial pid namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub pid: u32,
    /// In the process' own namespace, if that is another one.
    pub vpid: Option<u32>,
    pub comm: Option<String>,
    pub executable: Option<String>,
    /// The beginning of the command line.
    pub arguments: Vec<String>,
    pub owner_uid: Option<u32>,
    pub parent_pid: Option<u32>,
    pub container_id: Option<String>,
    /// It is not in the control groups that are watched.
    pub is_outside: bool,
    /// When it called exec, in nanoseconds since boot, if that was seen: what it did before, it did as another program.
    pub since: Option<u64>,
}

/// One probe to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// File offset.
    pub offset: u64,
    pub cookie: u64,
    /// The bytes the pipeline saw there. The half looks again before it attaches.
    pub bytes: [u8; 16],
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Attached {
    pub file: FileId,
    /// When the last probe was in place, nanoseconds since boot.
    pub at: u64,
    /// From the mapping or the order to here.
    pub micros: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Survey {
    /// CPU time in microseconds and resident memory in bytes.
    pub cpu_micros: u64,
    pub memory_bytes: u64,
}

/// A handle of a process, and since when it means what it means.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Handle {
    pub tgid: u32,
    pub handle: u64,
    pub born: u64,
}

/// The last bytes of a stream, lost and not announced.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Pending {
    pub handle: u64,
    pub born: u64,
    pub tgid: u32,
    pub direction: u32,
    /// The stream has ended: no record of it will come any more.
    pub is_over: bool,
    pub offset: u64,
    pub length: u64,
    /// `agent_ebpf::cause`
    pub cause: u16,
}

/// Largest message: well below the default socket buffer of 208 KiB.
const MAX_BYTES: usize = 64 << 10;
const MAX_FDS: usize = agent_ebpf::GROUPS as usize;

/// What came.
#[derive(Debug)]
pub enum Received<M> {
    Message(M, Vec<OwnedFd>),
    /// The other half is gone.
    End,
    /// Nothing is there now.
    Nothing,
}

/// The beginning of a text of unknown length, for a message.
pub fn clip(text: &str) -> String {
    const MAX_TEXT: usize = 2048;
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// Never blocks: `WouldBlock` if the other half does not read.
pub fn send<M: Serialize>(
    socket: impl AsFd,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_BYTES || fds.len() > MAX_FDS {
        return Err(io::Error::other(
            "a message between the halves is too large",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Never blocks.
///
/// # Errors
/// A message that this half does not know, or one that was cut: the other half is broken or hostile.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<Received<M>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        flags,
    ) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
        // The other half closed with data of ours unread: an end as well.
        Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Received::End),
        Err(error) => return Err(error.into()),
    };
    // Collected before the message is judged: none may leak, a cut list must not be half believed.
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(Received::End);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::other("a message of the other half was cut"));
    }
    let message = postcard::from_bytes(&bytes[..received.bytes])
        .map_err(|error| io::Error::other(format!("a message of the other half: {error}")))?;
    Ok(Received::Message(message, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_containers() {
        let id = "c0ffee00".repeat(8);
        let groups = format!("4:memory:/jobs/7\n0::/system.slice/docker-{id}.scope\n");
        let holds = |wanted: &[&str], containers: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|one| one.to_string()).collect();
            let choice = Choice {
                groups: owned(wanted),
                containers: owned(containers),
                ..Choice::default()
            };
            choice.holds(&groups)
        };
        assert!(holds(&[], &[]));
        assert!(holds(&[], &["beef", "c0ffee"]) && holds(&["/no", "/jobs"], &[]));
        assert!(holds(&["/jobs"], &[&id]));
        assert!(!holds(&["/jobs"], &["beef"]) && !holds(&["/no"], &["c0ff"]));
        assert!(!holds(&[], &["0ffee"]), "a beginning, not a part");
    }
}
