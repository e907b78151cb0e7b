//! JSON for machines: one record a line, named as the public contract says.
//!
//! Written by hand: a line is made for every piece of plaintext, 64 bytes at the least, and the
//! pipeline waits for it. Nothing is allocated once the output has its size.

mod finding;
mod llm;
mod mcp;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use agent_ebpf::Direction;
use base64_simd::STANDARD;

use super::{Origin, instruction_name};
use crate::escape;
use crate::locate::Instruction;
use crate::record::{
    Attribution, Body, Cause, Clear, Connection, Container, Content, Coverage, Governing, Grpc,
    Header, Http, HttpHalf, Interim, Joined, Ledger, Line, Message, Pod, Probed, Process, Record,
    Shedding, Sse, Stats, Url, WallTime, WebSocket, Words,
};
use crate::redact::{Redaction, Shown};

/// Turns records into lines.
pub(super) struct Encoder {
    /// The run's id and the dash before the sequence number, escaped.
    run: Vec<u8>,
    /// The member `host`, with the comma before it.
    host: Vec<u8>,
    who: Vec<Who>,
}

/// Renderings kept. A busy server has more connections than this, and a miss costs less than a
/// microsecond.
const SLOTS: usize = 256;

impl Encoder {
    pub(super) fn new(origin: &Origin) -> Self {
        let mut run = Vec::new();
        escape::json(&origin.run, &mut run);
        run.push(b'-');
        let mut host = Vec::new();
        Object(&mut host).object("host", |host| host.string("name", &origin.host));
        Encoder {
            run,
            host,
            who: vec![Who::default(); SLOTS],
        }
    }

    /// Appends one line.
    pub(super) fn encode(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"v\":1,\"kind\":\"");
        out.extend_from_slice(record.body.kind().name().as_bytes());
        out.extend_from_slice(b"\",\"id\":\"");
        out.extend_from_slice(&self.run);
        number(record.sequence, out);
        out.extend_from_slice(b"\",\"time\":\"");
        record.time.write(out);
        out.push(b'"');
        out.extend_from_slice(&self.host);
        out.extend_from_slice(self.who(record));

        let mut line = Object(out);
        match &record.body {
            Body::Coverage(_) | Body::Stats(_) | Body::Finding(_) => {}
            _ => {
                line.boolean("complete", record.complete);
                line.number("lost_bytes", record.lost_bytes);
            }
        }
        match &record.body {
            Body::Http(http) => line.exchange(http),
            Body::Grpc(grpc) => line.grpc(grpc),
            Body::Message(message) => line.message(message),
            Body::Line(part) => line.line(part),
            Body::Sse(sse) => line.sse(sse),
            Body::Llm(llm) => line.llm(llm),
            Body::Words(words) => line.words(words),
            Body::Mcp(mcp) => line.mcp(mcp),
            Body::Finding(finding) => line.finding(finding, &self.run),
            Body::WebSocket(socket) => line.websocket(socket),
            Body::Data {
                direction,
                offset,
                length,
                content,
                ..
            } => {
                line.word("direction", direction_name(*direction));
                line.number("offset", *offset);
                line.number("length", *length);
                line.content(*content);
            }
            Body::Gap {
                direction,
                cause,
                offset,
                length,
            } => {
                line.word("direction", direction_name(*direction));
                line.word("cause", cause_name(*cause));
                line.optional_number("offset", *offset);
                line.number("length", *length);
            }
            Body::Coverage(coverage) => line.coverage(coverage),
            Body::Stats(stats) => line.stats(stats),
        }
        out.extend_from_slice(b"}\n");
    }

    /// The members that say who: the same from record to record of a connection.
    fn who(&mut self, record: &Record<'_>) -> &[u8] {
        let slot = &mut self.who[slot(record)];
        if !slot.is_of(record) {
            slot.render(record);
        }
        &slot.rendered
    }
}

/// Where the rendering of a record's facts is kept. What collides is rendered anew, so this needs to
/// be fast rather than good.
fn slot(record: &Record<'_>) -> usize {
    let id = record.connection.map_or("", |connection| &connection.id);
    let mut key = u64::from(record.tid.unwrap_or_default());
    // Ids differ in their last bytes.
    if let Some(tail) = id.as_bytes().last_chunk() {
        key ^= u64::from_le_bytes(*tail).rotate_left(20);
    }
    key ^= (record.function.map_or(0, str::len) as u64) << 40;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS
}

/// Facts, and their members, each with a comma before it.
///
/// All facts are compared at each use: that costs less than any message that they have changed, and
/// an old rendering can't be shown for new facts.
#[derive(Clone, Default)]
struct Who {
    process: Option<Process>,
    tid: Option<u32>,
    connection: Option<Connection>,
    function: Option<&'static str>,
    rendered: Vec<u8>,
}

impl Who {
    fn is_of(&self, record: &Record<'_>) -> bool {
        self.tid == record.tid
            && self.function == record.function
            && self.connection.as_ref() == record.connection
            && self.process.as_ref() == record.process
    }

    fn render(&mut self, record: &Record<'_>) {
        self.process = record.process.cloned();
        self.tid = record.tid;
        self.connection = record.connection.cloned();
        self.function = record.function;
        self.rendered.clear();
        let mut members = Object(&mut self.rendered);
        members.who(record);
    }
}

/// Writes the members of one object. Keys and words are ours and need no escape.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn who(&mut self, record: &Record<'_>) {
        if let Some(process) = record.process {
            self.object("process", |member| member.process(process, record.tid));
            if let Some(id) = &process.container_id {
                let told = process.container.as_deref();
                self.object("container", |member| {
                    member.string("id", id);
                    if let Some(told) = told {
                        member.container(told);
                    }
                });
                if let Some(pod) = told.and_then(|told| told.pod.as_ref()) {
                    self.object("k8s", |member| member.pod(pod));
                }
            }
        }
        let connection = record.connection;
        if let Some(connection) = connection
            && (connection.local.is_some()
                || connection.peer.is_some()
                || connection.http_version.is_some())
        {
            self.object("network", |network| {
                network.word("transport", "tcp");
                network.address("local", connection.local);
                network.address("peer", connection.peer);
                if let Some(version) = connection.http_version {
                    network.object("protocol", |protocol| {
                        protocol.word("name", "http");
                        protocol.word("version", version);
                    });
                }
            });
        }
        if let Some(connection) = connection
            && (connection.server_name.is_some() || connection.server().is_some())
        {
            self.object("server", |server| server.server(connection));
        }
        let name = connection.and_then(|connection| connection.library_name.as_deref());
        let version = connection.and_then(|connection| connection.library_version.as_deref());
        if name.is_some() || version.is_some() || record.function.is_some() {
            self.object("tls", |tls| {
                if name.is_some() || version.is_some() {
                    tls.object("library", |library| {
                        library.optional_string("name", name);
                        library.optional_string("version", version);
                    });
                }
                tls.optional_string("function", record.function);
            });
        }
        if let Some(connection) = connection {
            self.object("connection", |member| {
                member.string("id", &connection.id);
                if let Some(role) = connection.role {
                    member.word("role", role.name());
                }
                member.word("attribution", attribution_name(connection.attribution));
                member.word("joined", joined_name(connection.joined));
            });
        }
    }

    /// The name that was asked for, else the address.
    fn server(&mut self, connection: &Connection) {
        let end = connection.server();
        match (&connection.server_name, end) {
            (Some(name), _) => self.string("address", name),
            (None, Some(end)) => {
                self.key("address");
                self.ip(end);
            }
            (None, None) => {}
        }
        self.optional_number("port", end.map(|end| end.port().into()));
    }

    fn process(&mut self, process: &Process, tid: Option<u32>) {
        self.number("pid", process.pid.into());
        self.optional_number("vpid", process.vpid.map(u64::from));
        self.optional_number("tid", tid.map(u64::from));
        self.optional_string("comm", process.comm.as_deref());
        if let Some(path) = &process.executable {
            self.object("executable", |executable| executable.string("path", path));
        }
        if !process.arguments.is_empty() {
            self.array("command_args", &process.arguments, |out, argument| {
                quoted(argument, out);
            });
        }
        self.optional_number("owner_uid", process.owner_uid.map(u64::from));
        self.optional_number("parent_pid", process.parent_pid.map(u64::from));
    }

    fn container(&mut self, container: &Container) {
        self.optional_string("name", container.name.as_deref());
        if let Some(name) = &container.image {
            self.object("image", |image| {
                image.string("name", name);
                if let Some(tag) = &container.image_tag {
                    image.array("tags", std::slice::from_ref(tag), |out, tag| {
                        quoted(tag, out)
                    });
                }
            });
        }
        self.pairs("labels", &container.labels);
    }

    fn pod(&mut self, pod: &Pod) {
        self.object("namespace", |namespace| {
            namespace.string("name", &pod.namespace)
        });
        self.object("pod", |member| {
            member.string("name", &pod.name);
            if !pod.uid.is_empty() {
                member.string("uid", &pod.uid);
            }
            member.pairs("labels", &pod.labels);
            member.pairs("annotations", &pod.annotations);
        });
        if let Some(name) = &pod.container {
            self.object("container", |container| container.string("name", name));
        }
    }

    /// Keys that others chose, dots included: one flat object.
    fn pairs(&mut self, key: &str, pairs: &[(Clear, Clear)]) {
        if pairs.is_empty() {
            return;
        }
        self.object(key, |members| {
            for (key, value) in pairs {
                if !members.0.ends_with(b"{") {
                    members.0.push(b',');
                }
                quoted(key, members.0);
                members.0.push(b':');
                quoted(value, members.0);
            }
        });
    }

    fn address(&mut self, key: &str, address: Option<SocketAddr>) {
        let Some(address) = address else { return };
        self.object(key, |member| {
            member.key("address");
            member.ip(address);
            member.number("port", address.port().into());
        });
    }

    /// A v4-mapped address is the IPv4 address that it stands for.
    fn ip(&mut self, address: SocketAddr) {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => self.display(format_args!("\"{ip}\"")),
            IpAddr::V6(ip) => self.display(format_args!("\"{ip}\"")),
        }
    }

    /// Text if all of it is UTF-8, else base64; what the policy withholds is missing.
    fn content(&mut self, content: Content<'_>) {
        self.content_as("text", content);
    }

    /// The same, the text under another name.
    fn content_as(&mut self, key: &'static str, content: Content<'_>) {
        let bytes = match content.shown() {
            Shown::Nothing => return,
            Shown::Encoded => return self.word("withheld", "encoded"),
            Shown::Text(text, redactions) => return self.redacted(key, text, redactions),
            Shown::Raw(bytes) => bytes,
        };
        // The `compat` flavour gives up at the first block that isn't UTF-8; `basic` reads to the end.
        match simdutf8::compat::from_utf8(bytes) {
            Ok(text) => self.string(key, text),
            Err(_) => {
                self.key("base64");
                self.0.push(b'"');
                STANDARD.encode_append(bytes, self.0);
                self.0.push(b'"');
            }
        }
    }

    fn redacted(&mut self, key: &'static str, text: &str, redactions: &[Redaction]) {
        self.string(key, text);
        if redactions.is_empty() {
            return;
        }
        self.array("redactions", redactions, |out, redaction| {
            braces(out, |member| member.redaction(redaction));
        });
    }

    fn redaction(&mut self, redaction: &Redaction) {
        self.number("offset", redaction.offset);
        self.number("length", redaction.length);
        self.word("kind", redaction.kind);
        if let Some(hash) = redaction.hash {
            self.key("hash");
            self.display(format_args!("\"{hash:08x}\""));
        }
    }

    /// An exchange, by the names of OpenTelemetry's conventions for HTTP.
    fn exchange(&mut self, http: &Http) {
        self.url(&http.url);
        self.object("http", |member| {
            if let Some(request) = &http.request {
                member.object("request", |member| {
                    member.optional_string("method", http.method.as_deref());
                    member.half(request);
                });
            }
            if http.response.is_some() || !http.interim.is_empty() {
                member.object("response", |member| {
                    if !http.interim.is_empty() {
                        member.array("interim", &http.interim, |out, interim| {
                            braces(out, |member| member.interim(interim));
                        });
                    }
                    member.optional_number("status_code", http.status.map(u64::from));
                    if let Some(response) = &http.response {
                        member.half(response);
                    }
                });
            }
        });
        // OpenTelemetry: the status where it says that it went wrong, else what did.
        let is_answered = http
            .response
            .as_ref()
            .is_some_and(|response| response.is_whole);
        match http.status {
            Some(status @ 400..) => self.object("error", |error| {
                error.key("type");
                error.display(format_args!("\"{status}\""));
            }),
            _ if !is_answered => self.object("error", |error| error.word("type", "incomplete")),
            _ => {}
        }
        self.object("timings", |timings| {
            if let Some(request) = &http.request {
                timings.time("request_start", request.began);
                timings.time("request_end", request.ended);
            }
            if let Some(response) = &http.response {
                timings.time("first_byte", response.began);
                timings.time("end", response.ended);
            }
        });
    }

    fn url(&mut self, url: &Url) {
        if url.full.is_none() && url.path.is_none() {
            return;
        }
        self.object("url", |member| {
            if let Some(full) = &url.full {
                member.string("full", full);
                if let Some((scheme, _)) = full.split_once("://") {
                    member.string("scheme", scheme);
                }
            }
            member.optional_string("path", url.path.as_deref());
            member.optional_string("query", url.query.as_deref());
        });
    }

    fn interim(&mut self, interim: &Interim) {
        self.optional_number("status_code", interim.status.map(u64::from));
        self.headers("header", &interim.headers);
        self.unknown_fields(interim.headers.iter());
    }

    fn half(&mut self, half: &HttpHalf) {
        self.headers("header", &half.headers);
        self.headers("trailer", &half.trailers);
        self.unknown_fields(half.headers.iter().chain(&half.trailers));
        let body = &half.body;
        self.object("body", |member| {
            member.number("size", body.size);
            if body.decoded_size != body.size {
                member.number("decoded_size", body.decoded_size);
            }
            if body.size > 0 {
                member.content_as("content", body.content.content());
            }
            member.optional_string("charset", body.charset);
            if body.is_cut {
                member.boolean("cut", true);
            }
            member.optional_string("unreadable", body.unreadable);
        });
        if !half.is_whole {
            self.boolean("whole", false);
        }
    }

    /// Values by name, each name once; what is unknown is `null`.
    fn headers(&mut self, key: &'static str, headers: &[Header]) {
        if headers.is_empty() {
            return;
        }
        self.object(key, |member| {
            for (at, header) in headers.iter().enumerate() {
                let is_first =
                    |header: &Header| headers[..at].iter().all(|known| known.name != header.name);
                let Some(name) = &header.name else { continue };
                if !is_first(header) {
                    continue;
                }
                member
                    .0
                    .extend_from_slice(if member.0.ends_with(b"{") { b"" } else { b"," });
                quoted(name, member.0);
                member.0.extend_from_slice(b":[");
                let same = headers[at..]
                    .iter()
                    .filter(|other| other.name == header.name);
                for (count, same) in same.enumerate() {
                    if count > 0 {
                        member.0.push(b',');
                    }
                    match &same.value {
                        Some(value) => quoted(value, member.0),
                        None => member.0.extend_from_slice(b"null"),
                    }
                }
                member.0.push(b']');
            }
        });
    }

    /// Fields without a name, of a head and its trailers together: a member comes once.
    fn unknown_fields<'a>(&mut self, headers: impl Iterator<Item = &'a Header>) {
        let nameless = headers.filter(|header| header.name.is_none()).count();
        if nameless > 0 {
            self.number("unknown_fields", nameless as u64);
        }
    }

    fn grpc(&mut self, grpc: &Grpc) {
        self.object("rpc", |rpc| {
            rpc.word("system", "grpc");
            rpc.optional_string("service", grpc.service.as_deref());
            rpc.optional_string("method", grpc.method.as_deref());
            if let Some(status) = grpc.status {
                rpc.object("grpc", |member| member.number("status_code", status.into()));
            }
        });
        self.object("grpc", |member| {
            member.optional_string("message", grpc.message.as_deref());
            for (key, messages) in [("sent", &grpc.sent), ("received", &grpc.received)] {
                member.object(key, |member| {
                    member.number("messages", messages.count);
                    member.array("sizes", &messages.sizes, |out, size| {
                        number((*size).into(), out)
                    });
                });
            }
        });
        self.exchange(&grpc.http);
    }

    fn message(&mut self, message: &Message) {
        self.word("direction", direction_name(message.direction));
        self.object("grpc", |member| {
            member.number("number", message.number);
            member.number("size", message.size.into());
        });
    }

    fn line(&mut self, line: &Line) {
        self.word("direction", direction_name(line.direction));
        self.object("line", |member| {
            member.number("number", line.number);
            member.content_as("data", line.content.content());
            if line.is_cut {
                member.boolean("cut", true);
            }
        });
    }

    fn words(&mut self, words: &Words) {
        self.object("words", |member| {
            member.string("type", words.kind);
            member.string("content", &words.text);
        });
    }

    fn sse(&mut self, sse: &Sse) {
        self.url(&sse.url);
        self.object("sse", |member| {
            member.number("number", sse.number);
            member.optional_string("event", sse.name.as_deref());
            member.optional_string("id", sse.id.as_deref());
            member.number("size", sse.size);
            member.content_as("data", sse.data.content());
            if sse.is_cut {
                member.boolean("cut", true);
            }
        });
    }

    fn websocket(&mut self, socket: &WebSocket) {
        self.word("direction", direction_name(socket.direction));
        self.object("websocket", |member| {
            member.word("type", socket.kind);
            member.optional_number("close_code", socket.close_code.map(u64::from));
            member.number("size", socket.size);
            if socket.size > 0 {
                member.content_as("content", socket.content.content());
            }
            if socket.is_cut {
                member.boolean("cut", true);
            }
        });
    }

    fn time(&mut self, key: &str, moment: WallTime) {
        self.key(key);
        self.0.push(b'"');
        moment.write(self.0);
        self.0.push(b'"');
    }

    fn coverage(&mut self, coverage: &Coverage) {
        self.word("status", coverage.status.name());
        self.optional_string("reason", coverage.reason.as_deref());
        if let Some(path) = &coverage.library_path {
            self.object("library", |library| {
                library.optional_string("name", coverage.library_name.as_deref());
                library.optional_string("version", coverage.library_version.as_deref());
                library.string("path", path);
                if let Some(located) = coverage.library_located {
                    library.word("located", located);
                }
            });
        }
        // The pair at the top is the dearest point: who looks for the cost need not look further.
        let functions = &coverage.functions;
        let stepped = |probed: &&Probed| probed.instruction == Instruction::Stepped;
        if let Some(dearest) = functions.iter().find(stepped).or(functions.first()) {
            self.word("function", dearest.function);
            self.word("instruction", instruction_name(dearest.instruction));
        }
        self.array("functions", functions, |out, probed| {
            braces(out, |member| {
                member.word("name", probed.function);
                member.word("instruction", instruction_name(probed.instruction));
            });
        });
        if coverage.library_path.is_none() || !coverage.is_seen() {
            return;
        }
        match coverage.seen_from {
            None => self.word("seen_from", "start"),
            Some(moment) => self.time("seen_from", moment),
        }
    }

    fn stats(&mut self, stats: &Stats) {
        self.boolean("last", stats.last);
        self.word("content", stats.content);
        self.object("ledger", |ledger| ledger.ledger(&stats.ledger));
        self.array("sinks", &stats.sinks, |out, sink| {
            braces(out, |member| {
                member.string("name", &sink.name);
                member.number("sent", sink.sent);
                member.number("dropped", sink.dropped);
            });
        });
        self.object("agent", |agent| {
            agent.key("cpu_seconds");
            agent.display(format_args!("{:.3}", stats.cpu_seconds));
            agent.number("memory_bytes", stats.memory_bytes);
            agent.object("features", |features| {
                for (what, how) in &stats.features {
                    features.word(what, how);
                }
            });
        });
        self.array("limits", &stats.limits, |out, limit| quoted(limit, out));
        self.object("bounds", |bounds| {
            for (what, count) in &stats.bounds {
                bounds.number(what, *count);
            }
        });
        self.object("shedding", |shedding| shedding.shedding(&stats.shedding));
        if let Some(governing) = &stats.governing {
            self.object("governor", |governor| governor.governor(governing));
        }
        if let Some(containers) = &stats.containers {
            self.object("containers", |member| {
                member.number("named", containers.named);
                member.number("unknown", containers.unknown);
                member.number("late", containers.late);
                if let Some(withheld) = containers.withheld {
                    member.number("excluded", withheld.excluded);
                    member.number("opted_out", withheld.opted_out);
                }
            });
        }
    }

    fn shedding(&mut self, shedding: &Shedding) {
        self.number("level", shedding.level as u64);
        self.word("name", shedding.level.name());
        self.key("share");
        self.display(format_args!("{}", 1.0 / shedding.one_in as f64));
        if let Some(since) = shedding.since {
            self.time("since", since);
        }
        self.number("bodies", shedding.bodies);
        self.number("data", shedding.data);
        self.number("data_bytes", shedding.data_bytes);
        self.number("connections", shedding.connections);
    }

    fn governor(&mut self, governing: &Governing) {
        if let Some(limit) = governing.limit {
            self.key("limit");
            self.display(format_args!("{limit:.3}"));
        }
        self.key("cost");
        self.display(format_args!("{:.3}", governing.cost));
        self.number("paused", governing.paused);
        self.number("pauses", governing.pauses);
        self.key("paused_seconds");
        self.display(format_args!("{:.3}", governing.paused_seconds));
    }

    fn ledger(&mut self, ledger: &Ledger) {
        self.object("bytes", |bytes| {
            bytes.number("seen", ledger.bytes.seen);
            bytes.number("filtered", ledger.bytes.filtered);
            bytes.number("over_limit", ledger.bytes.over_limit);
            bytes.object("lost", |lost| {
                lost.number("ring_full", ledger.bytes.lost.ring_full);
                lost.number("copy_fault", ledger.bytes.lost.copy_fault);
                lost.number("map_full", ledger.bytes.lost.map_full);
                lost.number("over_budget", ledger.bytes.lost.over_budget);
                lost.number("sendfile", ledger.bytes.lost.sendfile);
                lost.number("no_buffer", ledger.bytes.lost.no_buffer);
                lost.number("withdrawn", ledger.bytes.lost.withdrawn);
                lost.number("unknown", ledger.bytes.lost.unknown);
            });
            bytes.number("delivered", ledger.bytes.delivered);
            bytes.number("in_flight", ledger.bytes.in_flight);
        });
        self.object("calls", |calls| {
            calls.number("entries", ledger.calls.entries);
            calls.number("returns", ledger.calls.returns);
            calls.number("in_flight", ledger.calls.in_flight);
            calls.number("filtered", ledger.calls.filtered);
            calls.object("unmatched", |unmatched| {
                unmatched.number("abandoned", ledger.calls.unmatched.abandoned);
                unmatched.number("too_deep", ledger.calls.unmatched.too_deep);
                unmatched.number("map_full", ledger.calls.unmatched.map_full);
                unmatched.number("exited", ledger.calls.unmatched.exited);
                unmatched.number("other_stack", ledger.calls.unmatched.other_stack);
            });
        });
    }

    fn key(&mut self, key: &str) {
        // A brace is the last byte only where an object begins: strings end in a quote.
        if !self.0.ends_with(b"{") {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn object(&mut self, key: &str, members: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        braces(self.0, members);
    }

    fn array<T>(&mut self, key: &str, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
        self.key(key);
        self.0.push(b'[');
        for (i, each) in items.iter().enumerate() {
            if i > 0 {
                self.0.push(b',');
            }
            item(self.0, each);
        }
        self.0.push(b']');
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key);
        quoted(value, self.0);
    }

    fn optional_string(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.string(key, value);
        }
    }

    fn word(&mut self, key: &str, value: &'static str) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        number(value, self.0);
    }

    fn optional_number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    fn float(&mut self, key: &str, value: f64) {
        self.key(key);
        self.display(format_args!("{value}"));
    }

    fn optional_float(&mut self, key: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.float(key, value);
        }
    }

    fn boolean(&mut self, key: &str, value: bool) {
        self.key(key);
        self.0
            .extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn display(&mut self, value: std::fmt::Arguments<'_>) {
        // Writing to memory can't fail.
        let _ = self.0.write_fmt(value);
    }
}

fn braces(out: &mut Vec<u8>, members: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    members(&mut Object(out));
    out.push(b'}');
}

fn quoted(value: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escape::json(value, out);
    out.push(b'"');
}

fn number(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Received => "received",
        Direction::Sent => "sent",
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::RingFull => "ring_full",
        Cause::CopyFault => "copy_fault",
        Cause::MapFull => "map_full",
        Cause::OverBudget => "over_budget",
        Cause::Sendfile => "sendfile",
        Cause::NoBuffer => "no_buffer",
        Cause::Withdrawn => "withdrawn",
        Cause::CallTooLong => "call_too_long",
        Cause::Unknown => "unknown",
    }
}

fn attribution_name(attribution: Attribution) -> &'static str {
    match attribution {
        Attribution::Exact => "exact",
        Attribution::Inferred => "inferred",
        Attribution::None => "none",
    }
}

fn joined_name(joined: Joined) -> &'static str {
    match joined {
        Joined::Start => "start",
        Joined::Middle => "middle",
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::hint::black_box;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::super::sample;
    use super::*;
    use crate::record::{CoverageStatus, Role, SinkCount};
    use crate::redact::Policy;
    use crate::shed::Level;

    fn line(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        Encoder::new(&sample::origin()).encode(record, &mut out);
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.find('\n'), Some(line.len() - 1), "one line: {line:?}");
        line
    }

    fn value(record: &Record<'_>) -> Value {
        serde_json::from_str(&line(record)).unwrap()
    }

    fn data_line(payload: &[u8], policy: Policy) -> String {
        let (process, connection) = (sample::process(), sample::connection());
        line(&sample::data(&process, &connection, payload, policy))
    }

    const DATA: &str = concat!(
        r#"{"v":1,"kind":"data","id":"7c1f-42","time":"2026-11-21T01:20:29.000000042Z","#,
        r#""host":{"name":"box"},"#,
        r#""process":{"pid":4242,"vpid":7,"tid":4243,"comm":"curl","#,
        r#""executable":{"path":"/usr/bin/curl"},"command_args":["curl","-s"],"owner_uid":1000,"parent_pid":1},"#,
        r#""container":{"id":"c0ffee"},"#,
        r#""network":{"transport":"tcp","local":{"address":"127.0.0.1","port":50000},"#,
        r#""peer":{"address":"::1","port":443}},"#,
        r#""server":{"address":"example.org","port":443},"#,
        r#""tls":{"library":{"name":"OpenSSL","version":"3.0.22"},"#,
        r#""function":"ssl_write_internal"},"#,
        r#""connection":{"id":"4242-1a2b-1","role":"client","attribution":"exact","joined":"start"},"#,
        r#""complete":true,"lost_bytes":0,"direction":"sent","offset":5,"length":"#,
    );

    #[test]
    fn data_is_text_or_base64_or_withheld() {
        let text = data_line("GET /\r\n\"é\"".as_bytes(), Policy::Full);
        let inside = r#"GET /\u000d\u000a\"é\""#;
        assert_eq!(text, format!("{DATA}11,\"text\":\"{inside}\"}}\n"));
        let binary = data_line(b"\xff\x00\x01", Policy::Full);
        assert_eq!(binary, format!("{DATA}3,\"base64\":\"/wAB\"}}\n"));
        let withheld = data_line(b"secret", Policy::None);
        assert_eq!(withheld, format!("{DATA}6}}\n"));
        let empty = data_line(b"", Policy::Full);
        assert_eq!(empty, format!("{DATA}0,\"text\":\"\"}}\n"));
    }

    #[test]
    fn the_server_is_the_name_or_the_end_that_serves() {
        let server = |role, server_name: Option<&str>| {
            let connection = Connection {
                role,
                server_name: server_name.map(Into::into),
                ..sample::connection()
            };
            let process = sample::process();
            let record = sample::data(&process, &connection, b"x", Policy::Full);
            value(&record)["server"].take()
        };
        let (client, name) = (Some(Role::Client), Some("example.org"));
        let named = json!({"address": "example.org", "port": 443});
        assert_eq!(server(client, name), named);
        // Only clients ask for a name.
        assert_eq!(server(None, name), named);
        assert_eq!(server(client, None), json!({"address": "::1", "port": 443}));
        assert_eq!(
            server(Some(Role::Server), None),
            json!({"address": "127.0.0.1", "port": 50000})
        );
        assert_eq!(server(None, None), Value::Null);
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let process = Process {
            pid: 1,
            ..Process::default()
        };
        let connection = Connection {
            attribution: Attribution::None,
            joined: Joined::Middle,
            has_unseen: false,
            local: None,
            peer: None,
            role: None,
            server_name: None,
            library_name: None,
            library_version: None,
            http_version: None,
            ..sample::connection()
        };
        let mut record = sample::data(&process, &connection, b"x", Policy::Full);
        record.tid = None;
        record.function = None;
        record.complete = false;
        record.lost_bytes = 9;
        let got = value(&record);
        assert_eq!(got["process"], json!({"pid": 1}));
        assert_eq!(
            got["connection"],
            json!({"id": "4242-1a2b-1", "attribution": "none", "joined": "middle"})
        );
        for absent in ["container", "network", "server", "tls"] {
            assert_eq!(got.get(absent), None);
        }
        assert_eq!(got["complete"], json!(false));
        assert_eq!(got["lost_bytes"], json!(9));
    }

    #[test]
    fn gaps_name_every_cause() {
        let causes = [
            (Cause::RingFull, "ring_full"),
            (Cause::CopyFault, "copy_fault"),
            (Cause::MapFull, "map_full"),
            (Cause::OverBudget, "over_budget"),
            (Cause::Sendfile, "sendfile"),
            (Cause::NoBuffer, "no_buffer"),
            (Cause::Withdrawn, "withdrawn"),
            (Cause::CallTooLong, "call_too_long"),
            (Cause::Unknown, "unknown"),
        ];
        for (cause, name) in causes {
            let mut record = sample::alone(
                None,
                Body::Gap {
                    direction: Direction::Received,
                    cause,
                    offset: Some(1024),
                    length: 512,
                },
            );
            record.lost_bytes = 512;
            assert_eq!(
                line(&record),
                format!(
                    "{{\"v\":1,\"kind\":\"gap\",\"id\":\"7c1f-1\",\
                     \"time\":\"2026-11-21T01:20:29.000000042Z\",\"host\":{{\"name\":\"box\"}},\
                     \"complete\":false,\"lost_bytes\":512,\"direction\":\"received\",\
                     \"cause\":\"{name}\",\"offset\":1024,\"length\":512}}\n"
                )
            );
        }
        let nowhere = sample::alone(
            None,
            Body::Gap {
                direction: Direction::Sent,
                cause: Cause::MapFull,
                offset: None,
                length: 1,
            },
        );
        assert_eq!(value(&nowhere).get("offset"), None);
    }

    #[test]
    fn coverage_names_its_points_and_the_dearest() {
        let process = sample::process();
        let mut coverage = sample::coverage();
        let got = value(&sample::alone(
            Some(&process),
            Body::Coverage(coverage.clone()),
        ));
        assert_eq!(got["kind"], "coverage");
        assert_eq!(got["process"]["pid"], 4242);
        assert_eq!(got["status"], "probed");
        assert_eq!(got.get("reason"), None);
        assert_eq!(got.get("complete"), None);
        assert_eq!(
            got["library"],
            json!({
                "name": "OpenSSL", "version": "3.0.22", "path": "/usr/lib/libssl.so.3",
                "located": "symbols",
            })
        );
        assert_eq!(got["function"], "ssl_read_internal");
        assert_eq!(got["instruction"], "emulated");
        assert_eq!(
            got["functions"],
            json!([
                {"name": "ssl_read_internal", "instruction": "emulated"},
                {"name": "ssl_write_internal", "instruction": "emulated"},
            ])
        );
        assert_eq!(got["seen_from"], "start");

        coverage.functions[1].instruction = Instruction::Stepped;
        coverage.seen_from = Some(sample::TIME);
        let got = value(&sample::alone(None, Body::Coverage(coverage.clone())));
        assert_eq!(got["function"], "ssl_write_internal");
        assert_eq!(got["instruction"], "stepped");
        assert_eq!(got["seen_from"], "2026-11-21T01:20:29.000000042Z");

        coverage.status = CoverageStatus::Refused;
        coverage.reason = Some("32-bit".into());
        coverage.functions.clear();
        let got = value(&sample::alone(None, Body::Coverage(coverage)));
        assert_eq!(got["status"], "refused");
        assert_eq!(got.get("seen_from"), None);
        assert_eq!(got["reason"], "32-bit");
        assert_eq!(got.get("function"), None);
        assert_eq!(got["functions"], json!([]));
    }

    #[test]
    fn stats_hold_every_field_zero_included() {
        let mut stats = Stats {
            content: "none",
            ..Stats::default()
        };
        let zero = line(&sample::alone(None, Body::Stats(&stats)));
        assert_eq!(
            zero,
            concat!(
                r#"{"v":1,"kind":"stats","id":"7c1f-1","time":"2026-11-21T01:20:29.000000042Z","#,
                r#""host":{"name":"box"},"last":false,"content":"none","#,
                r#""ledger":{"bytes":{"seen":0,"filtered":0,"over_limit":0,"#,
                r#""lost":{"ring_full":0,"copy_fault":0,"map_full":0,"over_budget":0,"sendfile":0,"no_buffer":0,"withdrawn":0,"unknown":0},"#,
                r#""delivered":0,"in_flight":0},"calls":{"entries":0,"returns":0,"in_flight":0,"#,
                r#""filtered":0,"unmatched":{"abandoned":0,"too_deep":0,"map_full":0,"exited":0,"other_stack":0}}},"#,
                r#""sinks":[],"agent":{"cpu_seconds":0.000,"memory_bytes":0,"features":{}},"limits":[],"bounds":{},"#,
                r#""shedding":{"level":0,"name":"nothing","share":1,"bodies":0,"data":0,"data_bytes":0,"connections":0}}"#,
                "\n"
            )
        );

        let (bytes, calls) = (&mut stats.ledger.bytes, &mut stats.ledger.calls);
        (bytes.seen, bytes.filtered, bytes.over_limit) = (1, 2, 3);
        (bytes.delivered, bytes.in_flight) = (4, 5);
        let lost = &mut bytes.lost;
        (lost.ring_full, lost.copy_fault, lost.map_full, lost.unknown) = (6, 7, 8, 9);
        lost.over_budget = 17;
        lost.sendfile = 18;
        lost.no_buffer = 25;
        lost.withdrawn = 21;
        (
            calls.entries,
            calls.returns,
            calls.in_flight,
            calls.filtered,
        ) = (10, 11, 12, 13);
        let unmatched = &mut calls.unmatched;
        (unmatched.abandoned, unmatched.too_deep) = (14, 15);
        (unmatched.map_full, unmatched.exited) = (16, u64::MAX);
        unmatched.other_stack = 20;
        stats.last = true;
        stats.cpu_seconds = 1.25;
        stats.memory_bytes = 17;
        stats.features = vec![("links", "multi"), ("cookies", "yes")];
        stats.limits = vec!["no BTF".into(), "no attribution".into()];
        stats.sinks = ["stdout", "/tmp/x"]
            .map(|name| SinkCount {
                name: name.into(),
                sent: 18,
                dropped: 19,
            })
            .into();
        stats.shedding = Shedding {
            level: Level::Connections,
            one_in: 4,
            since: Some(WallTime(1_000_000_000)),
            bodies: 22,
            data: 23,
            data_bytes: 28,
            connections: 24,
        };
        stats.governing = Some(Governing {
            limit: Some(0.05),
            cost: 1.25,
            paused: 25,
            pauses: 26,
            paused_seconds: 27.5,
        });
        let got = value(&sample::alone(None, Body::Stats(&stats)));
        assert_eq!(
            got["governor"],
            json!({"limit": 0.05, "cost": 1.25, "paused": 25, "pauses": 26, "paused_seconds": 27.5})
        );
        assert_eq!(
            got["shedding"],
            json!({
                "level": 3, "name": "connections", "share": 0.25, "since": "1970-01-01T00:00:01.000000000Z",
                "bodies": 22, "data": 23, "data_bytes": 28, "connections": 24,
            })
        );
        assert_eq!(
            got["ledger"],
            json!({
                "bytes": {
                    "seen": 1, "filtered": 2, "over_limit": 3, "delivered": 4, "in_flight": 5,
                    "lost": {
                        "ring_full": 6, "copy_fault": 7, "map_full": 8, "over_budget": 17, "sendfile": 18,
                        "no_buffer": 25, "withdrawn": 21, "unknown": 9
                    },
                },
                "calls": {
                    "entries": 10, "returns": 11, "in_flight": 12, "filtered": 13,
                    "unmatched": {
                        "abandoned": 14, "too_deep": 15, "map_full": 16, "exited": u64::MAX,
                        "other_stack": 20,
                    },
                },
            })
        );
        assert_eq!(got["last"], json!(true));
        assert_eq!(
            got["agent"],
            json!({"cpu_seconds": 1.25, "memory_bytes": 17, "features": {"links": "multi", "cookies": "yes"}})
        );
        assert_eq!(got["limits"], json!(["no BTF", "no attribution"]));
        assert_eq!(
            got["sinks"],
            json!([
                {"name": "stdout", "sent": 18, "dropped": 19},
                {"name": "/tmp/x", "sent": 18, "dropped": 19},
            ])
        );
    }

    /// S1: no control leaves as it is, from whichever field, and each decodes to itself.
    #[test]
    fn every_control_in_every_string() {
        for c in ('\0'..=char::MAX).filter(|c| escape::is_control(*c)) {
            let evil = format!("a{c}b");
            let origin = Origin {
                run: evil.clone(),
                host: evil.clone(),
            };
            let process = Process {
                comm: Some(evil.as_str().into()),
                executable: Some(evil.as_str().into()),
                container_id: Some(evil.as_str().into()),
                ..sample::process()
            };
            let connection = Connection {
                id: evil.clone(),
                library_name: Some(evil.as_str().into()),
                library_version: Some(evil.as_str().into()),
                http_version: None,
                ..sample::connection()
            };
            let coverage = Coverage {
                reason: Some(evil.as_str().into()),
                library_path: Some(evil.as_str().into()),
                library_name: Some(evil.as_str().into()),
                library_version: Some(evil.as_str().into()),
                ..sample::coverage()
            };
            let stats = Stats {
                sinks: vec![SinkCount {
                    name: evil.clone(),
                    ..SinkCount::default()
                }],
                limits: vec![evil.as_str().into()],
                bounds: Vec::new(),
                ..Stats::default()
            };
            let records = [
                sample::data(&process, &connection, evil.as_bytes(), Policy::Full),
                sample::alone(None, Body::Coverage(coverage)),
                sample::alone(None, Body::Stats(&stats)),
            ];
            let [data, coverage, stats] = records.map(|record| {
                let mut out = Vec::new();
                Encoder::new(&origin).encode(&record, &mut out);
                let line = String::from_utf8(out).unwrap();
                let inside = line.strip_suffix('\n').unwrap();
                assert!(!inside.chars().any(escape::is_control), "{c:?}");
                serde_json::from_str::<Value>(inside).unwrap()
            });
            let found = [
                (&data, "/host/name"),
                (&data, "/process/comm"),
                (&data, "/process/executable/path"),
                (&data, "/container/id"),
                (&data, "/connection/id"),
                (&data, "/tls/library/name"),
                (&data, "/tls/library/version"),
                (&data, "/text"),
                (&coverage, "/reason"),
                (&coverage, "/library/path"),
                (&coverage, "/library/name"),
                (&coverage, "/library/version"),
                (&stats, "/sinks/0/name"),
                (&stats, "/limits/0"),
            ];
            for (value, pointer) in found {
                assert_eq!(value.pointer(pointer).unwrap(), &evil, "{pointer}");
            }
            assert_eq!(data["id"], format!("{evil}-42"));
        }
    }

    /// A generator that gives the same bytes in every run (splitmix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }
    }

    #[test]
    fn payloads_come_back_byte_for_byte() {
        let mut random = Random(1);
        let (process, connection) = (sample::process(), sample::connection());
        let mut encoder = Encoder::new(&sample::origin());
        let mut out = Vec::new();
        let mut seen = [0, 0];
        for round in 0..4000 {
            let length = random.next() as usize % 300;
            let payload: Vec<u8> = match round % 3 {
                0 => (0..length).map(|_| random.next() as u8).collect(),
                1 => (0..length).map(|_| random.next() as u8 & 0x7f).collect(),
                _ => (0..length)
                    .filter_map(|_| {
                        char::from_u32((random.next() >> (43 + random.next() % 21)) as u32)
                    })
                    .collect::<String>()
                    .into(),
            };
            out.clear();
            let record = sample::data(&process, &connection, &payload, Policy::Full);
            encoder.encode(&record, &mut out);
            let got: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(
                got["text"].is_string(),
                std::str::from_utf8(&payload).is_ok()
            );
            let decoded = match (&got["text"], &got["base64"]) {
                (Value::String(text), Value::Null) => text.clone().into_bytes(),
                (Value::Null, Value::String(base64)) => STANDARD.decode_to_vec(base64).unwrap(),
                _ => panic!("neither or both"),
            };
            assert_eq!(decoded, payload);
            seen[usize::from(got["text"].is_string())] += 1;
        }
        assert!(seen.iter().all(|count| *count > 1000), "{seen:?}");
    }

    #[test]
    fn a_changed_fact_shows_in_the_next_line() {
        let mut encoder = Encoder::new(&sample::origin());
        let mut check = |process: &Process, connection: &Connection, tid, function| {
            let mut record = sample::data(process, connection, b"x", Policy::Full);
            record.tid = tid;
            record.function = function;
            let mut out = Vec::new();
            encoder.encode(&record, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), line(&record));
        };
        let (mut process, mut connection) = (sample::process(), sample::connection());
        for _ in 0..2 {
            check(&process, &connection, Some(1), None);
            check(&process, &connection, Some(1), Some("SSL_read"));
            // As long as the one before, so in the same slot.
            check(&process, &connection, Some(1), Some("SSL_peek"));
            check(&process, &connection, None, None);
            process.comm = Some("renamed".into());
            check(&process, &connection, None, None);
            connection.peer = None;
            check(&process, &connection, None, None);
        }
        for n in 0..2 * SLOTS as u64 {
            connection.id = format!("4242-1a2b-{n}");
            check(&process, &connection, Some(1), None);
        }
        for tid in 0..20 * SLOTS as u32 {
            check(&process, &connection, Some(tid), None);
        }
    }

    /// `cargo test --release -- --ignored --nocapture speed`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let mut random = Random(2);
        let binary: Vec<u8> = (0..64 << 10).map(|_| random.next() as u8).collect();
        let mut http = String::new();
        while http.len() < 64 << 10 {
            http.push_str(
                "POST /v1/messages HTTP/1.1\r\nHost: api.example.com\r\n\
                 Content-Type: application/json\r\n\r\n{\"model\":\"some-model\",\
                 \"messages\":[{\"role\":\"user\",\"content\":\"Hello there, how are you?\"}]}\r\n",
            );
        }
        let prose = "The quick brown fox jumps over the lazy dog, again. ".repeat(1300);
        let hangul =
            "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ".repeat(800);
        let hangul = hangul.as_bytes();
        let (process, connection) = (sample::process(), sample::connection());
        let mut report = String::new();
        for (name, payload) in [
            ("binary", binary.as_slice()),
            ("http", http.as_bytes()),
            ("prose", prose.as_bytes()),
            ("hangul", hangul),
        ] {
            for length in [64, 1 << 10, 16 << 10, 64 << 10] {
                // Whole characters only.
                let length = length / 3 * 3;
                let length = match name {
                    "hangul" => String::from_utf8_lossy(&payload[..length])
                        .trim_end_matches('\u{fffd}')
                        .len(),
                    _ => length,
                };
                let record = sample::data(&process, &connection, &payload[..length], Policy::Full);
                let mut encoder = Encoder::new(&sample::origin());
                let mut out = Vec::with_capacity(1 << 20);
                let rounds = (1 << 30) / (length + 256);
                let start = Instant::now();
                for _ in 0..rounds {
                    if out.len() >= 256 << 10 {
                        out.clear();
                    }
                    encoder.encode(black_box(&record), &mut out);
                }
                black_box(&out);
                let seconds = start.elapsed().as_secs_f64();
                writeln!(
                    report,
                    "{name:>6} {length:>6} B: {:>8.0} ns/record, {:>6.3} GiB/s",
                    seconds * 1e9 / rounds as f64,
                    (rounds * length) as f64 / seconds / (1u64 << 30) as f64
                )
                .unwrap();
            }
        }
        println!("{report}");
    }
}
