//! Everything that the line is told, one thing at a time. Nothing else comes in: with the time of each, a list of
//! these is the run itself (`recording.rs`).

use std::{collections::BTreeSet, net::SocketAddr};

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    confine::Landlock,
    coverage::User,
    detect, event,
    half::{Connected, Facts, Features, FileId, Finding, Pending, Runtime, Silent},
    locate::{Found, stored},
    metadata::{Container, Names},
    policy::Policy,
    record::{Governing, Kind, SinkCount},
    redact,
    shed::Rung,
};

/// One thing that happens. A change of what is in here changes recordings: `recording::VERSION`.
#[derive(Debug, Serialize, Deserialize)]
pub enum Input<'a> {
    /// Wall clock minus time since boot, in nanoseconds; changes when somebody sets the clock.
    Clock(u64),
    /// What this machine can do for us, and in words what not.
    Machine {
        landlock: Landlock,
        features: Features,
        limits: Vec<String>,
    },
    /// A record of the ring.
    #[serde(borrow, serialize_with = "written")]
    Record(&'a [u8]),
    /// The ring is empty: who waited long enough waits no longer.
    Idle,
    /// Nothing more will come that could name anybody.
    NoNames,
    /// The half has told of everything that happened until then, in nanoseconds since boot.
    CaughtUp { until: u64 },
    /// Who a process is, or has become by exec.
    Process(Facts),
    /// From now on somebody can be asked about containers, or nobody any more.
    Runtimes { are_asked: bool },
    /// What a container is, or that no runtime has it.
    Container {
        id: &'a str,
        container: Option<Container>,
    },
    /// The process' leader calls itself something else, from the next record on.
    Renamed { pid: u32, comm: &'a str },
    /// A process that was held goes on, whether the probes are in place or not.
    Continued { pid: u32 },
    /// The process is gone, and so are its connections.
    Ended { pid: u32 },
    /// Others are watched from here on.
    Watch {
        exes: Vec<String>,
        uids: Vec<u32>,
        comms: Vec<String>,
        names: Names,
    },
    /// Whether a process is in the control groups that are watched, when those have become others.
    Placed { pid: u32, is_outside: bool },
    /// Other things are shown from here on. Not in a replay, where what is shown is asked for anew.
    Show(Show),
    /// Points were found in a file.
    Found {
        file: FileId,
        path: &'a str,
        #[serde(with = "stored")]
        found: Found,
    },
    /// A TLS library that can't be probed.
    Refused {
        file: FileId,
        path: &'a str,
        why: &'a str,
    },
    /// There is nothing to probe in the file.
    Nothing { file: FileId },
    /// A process maps a file.
    Mapped { file: FileId, user: User },
    /// The probes of a file are in place, since nanoseconds after boot.
    Attached { file: FileId, at: u64 },
    /// The half could not or would not place them.
    Failed { file: FileId, why: &'a str },
    /// The file turned out to be one that is known.
    Same { file: FileId, known: FileId },
    /// Nobody maps the file any more, or it can't be read: nothing more comes about it.
    LetGo { file: FileId },
    /// A process used what may be a TLS library, and nobody could look at either.
    Missed { pid: u32, path: &'a str },
    /// What runs the code of a process.
    Runtime { pid: u32, runtime: Option<Runtime> },
    /// What the half found out about a connection that nobody has claimed.
    Inspected {
        connected: Connected,
        finding: Finding,
    },
    /// Breakpoints are gone from a process of which one way only was seen.
    Silent { pid: u32, silent: Silent },
    /// Holes at the end of streams that the half found in the kernel's map.
    Pending(Vec<Pending>),
    /// What was counted outside of the line: time for `stats`.
    Count(Count),
    /// The end: whatever waits comes out.
    Finish,
    /// The agent made a connection: nothing is told of its other end.
    Ours { local: SocketAddr, peer: SocketAddr },
    /// More or less is left out from here on, by what the agent uses and may use.
    Shed(Rung),
    /// More or less is told of containers from here on.
    Policy(Option<Policy>),
    /// So many bytes of bodies, and of whatever else open exchanges hold, are kept at most from here on, by what memory
    /// the agent may use; `None`: as many as usual.
    Room(Option<u64>),
    /// Other findings are told from here on.
    Findings(detect::Settings),
}

/// What is shown, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Show {
    pub emit: BTreeSet<Kind>,
    /// Bytes that nothing decodes are told as data, also where `emit` has no data.
    pub undecoded: bool,
    /// Somebody reads along.
    pub live: bool,
    pub body_limit: u64,
    pub content: redact::Policy,
}

impl Show {
    /// Is anything that decoders say wanted?
    pub fn decodes(&self) -> bool {
        let kinds = [
            Kind::Http,
            Kind::Sse,
            Kind::Websocket,
            Kind::Grpc,
            Kind::Llm,
            Kind::Mcp,
            Kind::Finding,
        ];
        self.undecoded || kinds.iter().any(|kind| self.emit.contains(kind))
    }
}

/// What `stats` says and the line can't know.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Count {
    /// True for the last one of a run.
    pub last: bool,
    /// The kernel side's counters, each the sum over all CPUs.
    pub kernel: Vec<u64>,
    pub sinks: Vec<SinkCount>,
    /// Own CPU time so far in seconds and resident memory in bytes, both halves.
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    pub governing: Option<Governing>,
}

/// What lies behind the end of a record in the ring was another process' plaintext: it is written nowhere.
fn written<S: Serializer>(record: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(event::written(record))
}
