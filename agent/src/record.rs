//! The output schema: what leaves the agent, field by field. The product's public contract.
//!
//! A record borrows from the pipeline's state and is turned into bytes by a [`crate::sink`]. Names of
//! JSON fields are the dotted paths of OpenTelemetry attributes wherever one exists.

use std::net::SocketAddr;

use agent_ebpf::Direction;

use crate::locate::Instruction;

/// Wall clock, nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WallTime(pub u64);

/// The kinds of the contract. `--emit` accepts all of them; some have no producer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Data,
    Http,
    Websocket,
    Sse,
    Grpc,
    Llm,
    Mcp,
    Finding,
    Coverage,
    Gap,
    Stats,
}

/// Who: the facts about a process, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The id in the process' own pid namespace, if it is another one.
    pub vpid: Option<u32>,
    pub comm: Option<String>,
    pub executable: Option<String>,
    pub owner_uid: Option<u32>,
    pub parent_pid: Option<u32>,
    pub container_id: Option<String>,
}

/// How sure we are of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// The only socket used inside a TLS call of this connection.
    Exact,
    None,
}

/// Was the connection seen from its first byte?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    Start,
    Middle,
}

/// A TLS connection of one process: both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Unique on the host.
    pub id: String,
    pub attribution: Attribution,
    pub joined: Joined,
    pub local: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
    /// `OpenSSL`, and its version where the file tells it.
    pub library_name: Option<String>,
    pub library_version: Option<String>,
}

/// Why bytes are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    RingFull,
    CopyFault,
    MapFull,
    CallTooLong,
    /// The stream jumped and nobody said why. 0 in every test.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoverageStatus {
    Probed,
    Partly,
    Refused,
    Unknown,
}

/// One probed function of a coverage record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub function: &'static str,
    pub instruction: Instruction,
}

/// One process that speaks TLS by a library we know: seen, or not and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    pub status: CoverageStatus,
    /// For every status but `probed`.
    pub reason: Option<String>,
    /// The mapped file.
    pub library_path: String,
    pub library_name: Option<String>,
    pub library_version: Option<String>,
    pub functions: Vec<Probed>,
    /// `None`: from the first call of the process. Else from this moment on.
    pub seen_from: Option<WallTime>,
}

/// The ledger: every byte and every call has one place.
///
/// `seen = filtered + over_limit + Σ lost + delivered + in_flight` and
/// `entries = returns + in_flight + Σ unmatched`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub bytes: Bytes,
    pub calls: Calls,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub seen: u64,
    pub filtered: u64,
    pub over_limit: u64,
    pub lost: Lost,
    pub delivered: u64,
    pub in_flight: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub ring_full: u64,
    pub copy_fault: u64,
    pub map_full: u64,
    pub unknown: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub entries: u64,
    pub returns: u64,
    pub in_flight: u64,
    pub filtered: u64,
    pub unmatched: Unmatched,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmatched {
    pub abandoned: u64,
    pub too_deep: u64,
    pub map_full: u64,
    pub exited: u64,
}

/// What became of the records at one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkCount {
    pub name: String,
    pub sent: u64,
    pub dropped: u64,
}

/// The agent about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// True for the last one of a run.
    pub last: bool,
    pub ledger: Ledger,
    pub sinks: Vec<SinkCount>,
    /// Own CPU time so far in seconds and resident memory in bytes, both halves.
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    /// `none`, `redacted`, `full`.
    pub content: &'static str,
    /// What does not work on this machine, in words: no BTF, no attribution.
    pub limits: Vec<String>,
}

/// The plaintext of a data record, after the content policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// `--content none`.
    Absent,
    Plain(&'a [u8]),
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body<'a> {
    Data {
        direction: Direction,
        /// Position in the stream, on the wire.
        offset: u64,
        /// Bytes on the wire.
        length: u64,
        content: Content<'a>,
    },
    Gap {
        direction: Direction,
        cause: Cause,
        /// `None` where the position is unknown (`map_full`).
        offset: Option<u64>,
        length: u64,
    },
    Coverage(Coverage),
    Stats(Stats),
}

/// One line of output.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a> {
    /// Unique within the run; `id` is made of the run's own id and this.
    pub sequence: u64,
    pub time: WallTime,
    pub process: Option<&'a Process>,
    pub tid: Option<u32>,
    pub connection: Option<&'a Connection>,
    /// `tls.function`, where known.
    pub function: Option<&'static str>,
    /// Nothing of this stream is missing so far.
    pub complete: bool,
    /// Bytes of this stream that are missing so far.
    pub lost_bytes: u64,
    pub body: Body<'a>,
}
