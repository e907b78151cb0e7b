//! The output schema: what leaves the agent, field by field. The product's public contract.
//!
//! A record borrows from the pipeline's state and is turned into bytes by a [`crate::sink`]. Names of
//! JSON fields are the dotted paths of OpenTelemetry attributes wherever one exists.

use std::{net::SocketAddr, sync::Arc};

use agent_ebpf::Direction;
use serde::{Deserialize, Serialize};

use crate::detect::{Rule, Severity};
use crate::llm::{
    call::{Durations, Usage},
    dialog::Place,
    price::Cost,
};
use crate::locate::Instruction;
use crate::redact::Redactor;
pub use crate::redact::{Clear, Content, OwnedContent, Redaction, View};
use crate::shed::{Account, Level};

/// Wall clock, nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WallTime(pub u64);

/// A [`WallTime`] as people write it, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    pub year: u32,
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
    pub nanosecond: u32,
}

impl WallTime {
    /// As records have it: `2026-11-21T01:20:29.000000042Z`, all digits always there.
    pub fn read(text: &str) -> Option<WallTime> {
        let digits = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
        let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
        let of_day = digits(11, 13)? * 3600 + digits(14, 16)? * 60 + digits(17, 19)?;
        // A year that begins in March has its leap day at its end.
        let year = if month <= 2 {
            year.checked_sub(1)?
        } else {
            year
        };
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
        let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year;
        let seconds = days.checked_sub(719_468)? * 86_400 + of_day;
        let nanoseconds = seconds.checked_mul(1_000_000_000)?;
        Some(WallTime(nanoseconds.checked_add(digits(20, 29)?)?))
    }

    /// The same, appended. RFC 3339, UTC, all nine digits of the fraction, so that lines sort as text.
    pub fn write(self, out: &mut Vec<u8>) {
        let civil = self.civil();
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let fields = [
            (0..4, civil.year),
            (5..7, civil.month),
            (8..10, civil.day),
            (11..13, civil.hour),
            (14..16, civil.minute),
            (17..19, civil.second),
            (20..29, civil.nanosecond),
        ];
        for (place, mut value) in fields {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        out.extend_from_slice(&text);
    }

    pub fn written(self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8(out).expect("digits and signs")
    }

    pub fn civil(self) -> Civil {
        let seconds = self.0 / 1_000_000_000;
        let of_day = (seconds % 86_400) as u32;
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: years begin
        // in March, so that the leap day is the last, and come in eras of 400.
        let days = (seconds / 86_400) as u32 + 719_468;
        let era = days / 146_097;
        let of_era = days % 146_097;
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Civil {
            year: era * 400 + year_of_era + u32::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            nanosecond: (self.0 % 1_000_000_000) as u32,
        }
    }
}

/// The kinds of the contract.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
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

impl Kind {
    /// As in `kind` and in `--emit`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Http => "http",
            Kind::Websocket => "websocket",
            Kind::Sse => "sse",
            Kind::Grpc => "grpc",
            Kind::Llm => "llm",
            Kind::Mcp => "mcp",
            Kind::Finding => "finding",
            Kind::Coverage => "coverage",
            Kind::Gap => "gap",
            Kind::Stats => "stats",
        }
    }
}

/// Who: the facts about a process, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The id in the process' own pid namespace, if it is another one.
    pub vpid: Option<u32>,
    pub comm: Option<Clear>,
    pub executable: Option<Clear>,
    /// The command line, as far as it is kept.
    pub arguments: Vec<Clear>,
    pub owner_uid: Option<u32>,
    pub parent_pid: Option<u32>,
    pub container_id: Option<Clear>,
    /// What the container's runtime said of it.
    pub container: Option<Arc<Container>>,
}

impl Process {
    /// Less may be told of it than when it was met.
    pub fn redact(&mut self, redactor: &Redactor) {
        let named = [&mut self.comm, &mut self.executable, &mut self.container_id];
        redactor.again(named.into_iter().flatten());
        let arguments = self.arguments.iter().map(|argument| argument.to_string());
        self.arguments = redactor.arguments(&arguments.collect::<Vec<_>>());
        if let Some(container) = &mut self.container {
            Arc::make_mut(container).redact(redactor);
        }
    }
}

/// A container, as far as its runtime told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: Option<Clear>,
    /// `docker.io/library/nginx`, and `1.27`.
    pub image: Option<Clear>,
    pub image_tag: Option<Clear>,
    pub labels: Vec<(Clear, Clear)>,
    pub pod: Option<Pod>,
}

/// A pod of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Clear,
    pub name: Clear,
    pub uid: Clear,
    /// What the pod calls the container.
    pub container: Option<Clear>,
    pub labels: Vec<(Clear, Clear)>,
    pub annotations: Vec<(Clear, Clear)>,
}

impl Container {
    /// Less may be told of it than when its runtime told.
    pub fn redact(&mut self, redactor: &Redactor) {
        let named = [&mut self.name, &mut self.image, &mut self.image_tag];
        redactor.again(named.into_iter().flatten());
        let mut labels: Vec<_> = self.labels.iter_mut().collect();
        if let Some(pod) = &mut self.pod {
            redactor.again([&mut pod.namespace, &mut pod.name, &mut pod.uid]);
            redactor.again(&mut pod.container);
            labels.extend(pod.labels.iter_mut().chain(&mut pod.annotations));
        }
        for (name, value) in labels {
            *value = redactor.labelled(name, value);
            redactor.again([name]);
        }
    }
}

/// How often runtimes were asked about containers, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    pub named: u64,
    /// No runtime has it, or there are too many.
    pub unknown: u64,
    /// Records went without, because there was no answer in time.
    pub late: u64,
    /// Of those with a name, if there is a policy.
    pub withheld: Option<Withheld>,
}

/// Containers of which less is told than of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    /// The configuration wants nothing of them.
    pub excluded: u64,
    /// Their pods asked for less than the configuration has for them.
    pub opted_out: u64,
}

impl Process {
    /// Is nothing known of it but its id?
    pub fn is_bare(&self) -> bool {
        let Process {
            comm, executable, ..
        } = self;
        comm.is_none() && executable.is_none()
    }
}

/// How sure we are of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// The only socket used inside a TLS call of this connection.
    Exact,
    /// What its thread did before and after its calls, confirmed by sizes.
    Inferred,
    None,
}

/// Which end of a connection the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Server => "server",
        }
    }
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
    /// Counts the connections of the run, from 1: a short name, for people.
    pub number: u64,
    pub attribution: Attribution,
    pub joined: Joined,
    /// Calls of it passed by: bytes are missing, nobody knows how many.
    pub has_unseen: bool,
    pub local: Option<SocketAddr>,
    pub peer: Option<SocketAddr>,
    pub role: Option<Role>,
    /// As the client asked for it. Only clients do.
    pub server_name: Option<Clear>,
    /// `OpenSSL`, and its version where the file tells it.
    pub library_name: Option<Clear>,
    pub library_version: Option<Clear>,
    /// The version of HTTP, once it is known that it is HTTP.
    pub http_version: Option<&'static str>,
    /// No TLS is below: what was seen is what its socket carried.
    pub is_plain: bool,
}

impl Connection {
    pub fn set_library(&mut self, library: Option<(&'static str, Option<&Clear>)>) {
        self.library_name = library.map(|(name, _)| Clear::ours(name));
        self.library_version = library.and_then(|(_, version)| version).cloned();
    }

    /// The server's end, if it is known which one that is.
    pub fn server(&self) -> Option<SocketAddr> {
        match self.role {
            Some(Role::Server) => self.local,
            Some(Role::Client) => self.peer,
            None if self.server_name.is_some() => self.peer,
            None => None,
        }
    }
}

/// Why bytes are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    RingFull,
    CopyFault,
    MapFull,
    CallTooLong,
    /// The process flooded the ring, and others needed it.
    OverBudget,
    /// The kernel sent them from a file, past every buffer. Nothing went wrong.
    Sendfile,
    /// A plain connection carried them by a call that shows no buffer, or that nobody saw.
    NoBuffer,
    /// What gave them is no TLS function, as its first calls showed.
    Withdrawn,
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

impl CoverageStatus {
    pub fn name(self) -> &'static str {
        match self {
            CoverageStatus::Probed => "probed",
            CoverageStatus::Partly => "partly",
            CoverageStatus::Refused => "refused",
            CoverageStatus::Unknown => "unknown",
        }
    }
}

/// One probed function of a coverage record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub function: &'static str,
    pub instruction: Instruction,
}

/// One process that speaks TLS: seen, or not and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    pub status: CoverageStatus,
    /// For every status but `probed`.
    pub reason: Option<Clear>,
    /// The mapped file; `None`: TLS was seen that no file is known of.
    pub library_path: Option<Clear>,
    pub library_name: Option<Clear>,
    pub library_version: Option<Clear>,
    /// By what its functions were found, in a word.
    pub library_located: Option<&'static str>,
    pub functions: Vec<Probed>,
    /// From when it is seen, if it is. `None`: from the first call of the process.
    pub seen_from: Option<WallTime>,
}

impl Coverage {
    /// Less may be told of its file than when it was met.
    pub fn redact(&mut self, redactor: &Redactor) {
        let named = [
            &mut self.reason,
            &mut self.library_path,
            &mut self.library_version,
        ];
        redactor.again(named.into_iter().flatten());
    }
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
    pub over_budget: u64,
    pub sendfile: u64,
    pub no_buffer: u64,
    pub withdrawn: u64,
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
    pub other_stack: u64,
}

impl Lost {
    pub const fn sum(&self) -> u64 {
        self.ring_full
            + self.copy_fault
            + self.map_full
            + self.over_budget
            + self.sendfile
            + self.no_buffer
            + self.withdrawn
            + self.unknown
    }
}

impl Unmatched {
    pub const fn sum(&self) -> u64 {
        self.abandoned + self.too_deep + self.map_full + self.exited + self.other_stack
    }
}

/// Where a request goes, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    pub full: Option<Clear>,
    pub path: Option<Clear>,
    pub query: Option<Clear>,
}

/// The host and the port of a URL that has them.
pub fn authority(url: &str) -> Option<(&str, Option<u64>)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest[..end].rsplit('@').next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some((host, port))
}

/// A line of a head, with its name in lower case. What is `None` was sent in a way that only who saw the
/// connection from its start could read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: Option<Clear>,
    pub value: Option<Clear>,
}

/// One side of an exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpHalf {
    pub headers: Vec<Header>,
    pub trailers: Vec<Header>,
    pub body: HttpBody,
    /// When its first and its last byte came.
    pub began: WallTime,
    pub ended: WallTime,
    /// Its end was seen.
    pub is_whole: bool,
    /// This record tells its head, and its body as it is in the end; not so if an earlier one of the exchange did,
    /// or if a later one will.
    pub has_head: bool,
    pub has_body: bool,
}

/// A body, without its codings where they could be taken away.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpBody {
    /// Bytes that came, with the content coding.
    pub size: u64,
    /// Bytes without it, as far as it could be read.
    pub decoded_size: u64,
    pub content: OwnedContent,
    /// What it was written in, if it was text in another encoding.
    pub charset: Option<&'static str>,
    /// There is more of it than is shown.
    pub is_cut: bool,
    /// Why not all of it could be read.
    pub unreadable: Option<&'static str>,
}

/// One exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Counts the exchanges of its connection, from 0.
    pub exchange: u64,
    /// It goes on. Only who reads along is told of it before it is over.
    pub is_open: bool,
    /// An earlier record told that it was open.
    pub is_continued: bool,
    /// It is told as a call to a model, too.
    pub is_call: bool,
    pub method: Option<Clear>,
    pub url: Url,
    pub status: Option<u16>,
    pub request: Option<HttpHalf>,
    pub response: Option<HttpHalf>,
    /// Responses before the response.
    pub interim: Vec<Interim>,
    /// Server-sent events of the response so far, each of which is a record.
    pub events: u64,
}

/// One response before the response, such as `103 Early Hints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interim {
    pub status: Option<u16>,
    pub headers: Vec<Header>,
}

/// One event of a stream of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sse {
    /// The exchange of its connection.
    pub exchange: u64,
    pub url: Url,
    /// Counts the events of its response, from 0.
    pub number: u64,
    pub name: Option<Clear>,
    pub id: Option<Clear>,
    pub size: u64,
    pub data: OwnedContent,
    pub is_cut: bool,
    /// It is told as a part of a call to a model, too.
    pub is_call: bool,
}

/// One message of one end.
#[derive(Clone, Debug, PartialEq)]
pub struct WebSocket {
    pub direction: Direction,
    /// `text`, `binary`, `ping`, `pong`, `close`.
    pub kind: &'static str,
    pub close_code: Option<u16>,
    /// Bytes on the wire.
    pub size: u64,
    pub content: OwnedContent,
    pub is_cut: bool,
    /// It is told as a part of a call to a model, too.
    pub is_call: bool,
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub struct Grpc {
    pub http: Http,
    pub service: Option<Clear>,
    pub method: Option<Clear>,
    pub status: Option<u16>,
    pub message: Option<Clear>,
    pub sent: Messages,
    pub received: Messages,
}

/// The messages of one side of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    pub count: u64,
    /// Of the first ones.
    pub sizes: Vec<u32>,
}

/// A message of a call that goes on: for who reads along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The exchange of its connection.
    pub exchange: u64,
    pub direction: Direction,
    /// Counts the messages of its side, from 0.
    pub number: u64,
    pub size: u32,
}

/// One call to a model. What is said in it is content; the rest is what it was and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Llm {
    /// The exchange of its connection.
    pub exchange: u64,
    /// It goes on. Only who reads along is told of it before it is over.
    pub is_open: bool,
    /// What was asked has been told by an earlier record: so many messages of it.
    pub told: Option<usize>,
    /// And the words of the answer by [`Words`].
    pub has_streamed: bool,
    pub url: Url,
    pub operation: &'static str,
    pub provider: &'static str,
    /// Whose wire format it is: what only that has is told by this name.
    pub owner: &'static str,
    pub api: Option<&'static str>,
    pub model: Option<Clear>,
    pub parameters: LlmParameters,
    pub output_type: Option<&'static str>,
    pub response_id: Option<Clear>,
    pub response_model: Option<Clear>,
    pub finish_reasons: Vec<Clear>,
    pub request_tier: Option<Clear>,
    pub response_tier: Option<Clear>,
    pub fingerprint: Option<Clear>,
    pub usage: Usage,
    pub durations: Durations,
    /// Where the configuration has a price for it.
    pub cost: Option<Cost>,
    pub error: Option<Clear>,
    /// As its API has it.
    pub conversation: Option<Clear>,
    pub place: Place,
    pub instructions: Vec<LlmPart>,
    pub input: Vec<LlmMessage>,
    pub output: Vec<LlmMessage>,
    pub tools: Vec<LlmTool>,
    pub began: WallTime,
    pub ended: WallTime,
    /// In seconds: all of it, to the first piece of a streamed response, and from one to the next.
    pub duration: f64,
    pub first_chunk: Option<f64>,
    pub per_chunk: Option<f64>,
    pub chunks: u64,
    /// What is not known of it, in words.
    pub missing: Vec<&'static str>,
}

/// As OpenTelemetry's `gen_ai.request.*` has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LlmParameters {
    pub stream: Option<bool>,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub seed: Option<u64>,
    pub choices: Option<u64>,
    pub stop_sequences: Vec<Clear>,
    pub encoding_formats: Vec<Clear>,
    pub dimensions: Option<u64>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmMessage {
    pub role: Option<Clear>,
    pub name: Option<Clear>,
    pub parts: Vec<LlmPart>,
    pub finish: Option<Clear>,
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum LlmPart {
    /// `text`, `reasoning`, `refusal`.
    Text(&'static str, OwnedContent),
    Call {
        id: Option<Clear>,
        name: Option<Clear>,
        arguments: OwnedContent,
    },
    Result {
        id: Option<Clear>,
        name: Option<Clear>,
        result: OwnedContent,
        is_error: bool,
    },
    /// Its bytes are not told.
    Blob {
        modality: &'static str,
        media: Option<Clear>,
        size: u64,
        sha256: Option<[u8; 32]>,
    },
    Uri {
        modality: &'static str,
        uri: Clear,
    },
    File {
        modality: &'static str,
        id: Clear,
    },
    /// A word of the API, and how long it is as JSON.
    Other {
        kind: Clear,
        size: u64,
    },
}

/// What a model may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmTool {
    pub kind: Option<Clear>,
    pub name: Option<Clear>,
    pub description: Option<OwnedContent>,
    /// A JSON schema, as text.
    pub parameters: Option<OwnedContent>,
    /// Nothing of that is missing.
    pub is_whole: bool,
}

/// One request of MCP with its answer, or one notification. What is said in it is content; the rest is what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Mcp {
    /// The exchange of its connection that it ended in.
    pub exchange: u64,
    pub url: Url,
    /// `client`, `server`: who asks.
    pub initiator: &'static str,
    /// `None`: its request was not seen.
    pub method: Option<Clear>,
    /// Of the request. Notifications have none.
    pub id: Option<Clear>,
    pub session: Option<Clear>,
    pub version: Option<Clear>,
    /// Of the trace that its sender says it belongs to.
    pub traceparent: Option<Clear>,
    pub is_tool: bool,
    pub tool: Option<Clear>,
    pub prompt: Option<Clear>,
    pub resource: Option<Clear>,
    /// Of a tool. JSON, as is all content of it.
    pub arguments: Option<OwnedContent>,
    /// What else is asked for.
    pub params: Option<OwnedContent>,
    pub result: Option<OwnedContent>,
    /// The code of an error, `tool_error`, or a status of HTTP.
    pub error: Option<Clear>,
    pub code: Option<Clear>,
    pub message: Option<OwnedContent>,
    pub data: Option<OwnedContent>,
    pub began: WallTime,
    pub ended: WallTime,
    /// In seconds, if anything was waited for.
    pub duration: Option<f64>,
    /// What is not known of it, in words.
    pub missing: Vec<&'static str>,
}

/// What a person should look at. All of it was behind redaction before it was put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The exchange of its connection.
    pub exchange: Option<u64>,
    pub rule: Rule,
    pub severity: Severity,
    /// Where in the record that it is about, by the names of its fields.
    pub place: Option<Clear>,
    /// Host, and port if it is no usual one.
    pub peer: Clear,
    pub expected: Clear,
    pub seen: Clear,
    pub evidence: Option<Evidence>,
    /// Like it and not told since the last one.
    pub suppressed: u64,
    /// The number of the record that it is about, if that was wanted.
    pub about: Option<u64>,
}

/// What a finding is about, and what stands around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    pub before: Clear,
    /// What stands there instead of a secret.
    pub secret: Option<Redaction>,
    pub behind: Clear,
}

impl Evidence {
    pub fn text(&self) -> String {
        let label = self.secret.map(|secret| secret.label());
        let label = label.unwrap_or_default();
        format!("{}{label}{}", self.before.as_str(), self.behind.as_str())
    }
}

/// A line of a response that goes on: for who reads along.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The exchange of its connection.
    pub exchange: u64,
    pub direction: Direction,
    /// Counts the lines of its response, from 0.
    pub number: u64,
    pub content: OwnedContent,
    pub is_cut: bool,
    /// It is told as a part of a call to a model, too.
    pub is_call: bool,
}

/// What a model says, as it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// The exchange of its connection.
    pub exchange: u64,
    /// As in [`LlmPart::Text`].
    pub kind: &'static str,
    pub text: Clear,
}

/// What became of the records at one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What the kernel can do for us, and how.
    pub features: Vec<(&'static str, &'static str)>,
    /// `none`, `redacted`, `full`.
    pub content: &'static str,
    /// What does not work on this machine, in words: no BTF, no attribution.
    pub limits: Vec<Clear>,
    /// How often each bound of what decoders keep was reached.
    pub bounds: Vec<(&'static str, u64)>,
    /// `None`: no runtime is asked.
    pub containers: Option<Containers>,
    pub shedding: Shedding,
    /// `None`: what probes cost others is not looked at.
    pub governing: Option<Governing>,
}

/// What the probes cost the programs that are traced, and how often that was too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Governing {
    /// In CPUs, as all costs here; `None`: no longer limited.
    pub limit: Option<f64>,
    /// Of the last seconds, estimated.
    pub cost: f64,
    /// Files that are paused now.
    pub paused: u64,
    pub pauses: u64,
    /// Of all pauses.
    pub paused_seconds: f64,
}

/// What the limits of the agent leave out, and how much that was so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shedding {
    pub level: Level,
    /// Of so many new connections one is decoded.
    pub one_in: u64,
    /// Since when it is this level; `None`: from the start.
    pub since: Option<WallTime>,
    /// Bodies, events and messages that were cut.
    pub bodies: u64,
    /// Pieces of streams that were not written as data.
    pub data: u64,
    /// Their bytes on the wire.
    pub data_bytes: u64,
    pub connections: u64,
}

impl Default for Shedding {
    fn default() -> Shedding {
        Account::default().told(0, 0)
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body<'a> {
    Http(&'a Http),
    Sse(&'a Sse),
    WebSocket(&'a WebSocket),
    Grpc(&'a Grpc),
    Message(&'a Message),
    Llm(&'a Llm),
    Words(&'a Words),
    Mcp(&'a Mcp),
    Finding(&'a Finding),
    Line(&'a Line),
    Data {
        direction: Direction,
        /// Position in the stream, on the wire.
        offset: u64,
        /// Bytes on the wire, whatever the content policy left of them.
        length: u64,
        content: Content<'a>,
        view: View,
    },
    Gap {
        direction: Direction,
        cause: Cause,
        /// `None` where the position is unknown (`map_full`).
        offset: Option<u64>,
        length: u64,
    },
    Coverage(Coverage),
    Stats(&'a Stats),
}

impl Body<'_> {
    /// Is the same told as a call to a model, too?
    pub fn is_of_call(&self) -> bool {
        match self {
            Body::Http(http) => http.is_call,
            Body::Sse(sse) => sse.is_call,
            Body::Line(line) => line.is_call,
            Body::WebSocket(socket) => socket.is_call,
            _ => false,
        }
    }

    /// Is it of something that is not over, for who reads along?
    pub fn is_part(&self) -> bool {
        match self {
            Body::Message(_) | Body::Line(_) | Body::Words(_) => true,
            Body::Llm(llm) => llm.is_open,
            Body::Http(http) => http.is_open,
            Body::Grpc(grpc) => grpc.http.is_open,
            _ => false,
        }
    }

    pub const fn kind(&self) -> Kind {
        match self {
            Body::Http(_) | Body::Line(_) => Kind::Http,
            Body::Sse(_) => Kind::Sse,
            Body::WebSocket(_) => Kind::Websocket,
            Body::Grpc(_) | Body::Message(_) => Kind::Grpc,
            Body::Llm(_) | Body::Words(_) => Kind::Llm,
            Body::Mcp(_) => Kind::Mcp,
            Body::Finding(_) => Kind::Finding,
            Body::Data { .. } => Kind::Data,
            Body::Gap { .. } => Kind::Gap,
            Body::Coverage(_) => Kind::Coverage,
            Body::Stats(_) => Kind::Stats,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nanoseconds: u64, expected: [u32; 7]) {
        let civil = WallTime(nanoseconds).civil();
        let fields = [
            civil.year,
            civil.month,
            civil.day,
            civil.hour,
            civil.minute,
            civil.second,
            civil.nanosecond,
        ];
        assert_eq!(fields, expected);
    }

    /// Expected values from `date -u -d @SECONDS`.
    #[test]
    fn dates_around_the_edges_of_the_calendar() {
        check(0, [1970, 1, 1, 0, 0, 0, 0]);
        check(
            951_782_399_999_999_999,
            [2000, 2, 28, 23, 59, 59, 999_999_999],
        );
        check(951_782_400_000_000_000, [2000, 2, 29, 0, 0, 0, 0]);
        check(951_868_800_000_000_001, [2000, 3, 1, 0, 0, 0, 1]);
        check(1_735_689_599_000_000_000, [2024, 12, 31, 23, 59, 59, 0]);
        check(4_107_542_400_000_000_000, [2100, 3, 1, 0, 0, 0, 0]);
        check(u64::MAX, [2554, 7, 21, 23, 34, 33, 709_551_615]);
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = WallTime(0).civil();
        for day in 1..213_503 {
            let today = WallTime(day * 86_400_000_000_000).civil();
            let next_in_month = today.day == before.day + 1 && today.month == before.month;
            let next_month = today.day == 1
                && before.day >= 28
                && (today.month == before.month + 1
                    || today.month == 1 && before.month == 12 && today.year == before.year + 1);
            assert!(next_in_month || next_month, "{before:?} {today:?}");
            before = today;
        }
    }

    #[test]
    fn addresses_of_urls() {
        for (url, expected) in [
            ("https://a.example/b?c", Some(("a.example", None))),
            ("https://a:8443", Some(("a", Some(8443)))),
            ("https://[::1]:8443/", Some(("::1", Some(8443)))),
            ("https://[::1]/", Some(("::1", None))),
            ("https://[redacted:password:1]@a/", Some(("a", None))),
            ("/b", None),
            ("https:///b", None),
        ] {
            assert_eq!(authority(url), expected, "{url}");
        }
    }

    /// Expected values from `date -u -d @SECONDS`.
    #[test]
    fn times_are_what_was_written() {
        for (text, expected) in [
            ("1970-01-01T00:00:00.000000000Z", 0),
            ("2000-02-28T23:59:59.999999999Z", 951_782_399_999_999_999),
            ("2000-02-29T00:00:00.000000000Z", 951_782_400_000_000_000),
            ("2000-03-01T00:00:00.000000001Z", 951_868_800_000_000_001),
            ("2024-12-31T23:59:59.000000000Z", 1_735_689_599_000_000_000),
            ("2026-11-21T01:20:29.000000042Z", 1_795_224_029_000_000_042),
        ] {
            assert_eq!(WallTime::read(text), Some(WallTime(expected)), "{text}");
        }
        for text in [
            "soon",
            "0000-01-01T00:00:00.000000000Z",
            "2026-00-00T00:00:00.000000000Z",
        ] {
            assert_eq!(WallTime::read(text), None, "{text}");
        }
    }
}
