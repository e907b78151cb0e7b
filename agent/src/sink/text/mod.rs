//! Text for people: like `curl -v`, for the whole machine.
//!
//! ```text
//! 09:30:01.250000 #3.1 curl[4242] → localhost (127.0.0.1:443): GET https://localhost/ 200 in 1.2 ms
//!   > user-agent: curl/8
//!   < content-type: text/plain
//!   <
//!   < hello
//! ```
//!
//! `#3.1` is the first exchange of the third connection: what goes on for a while is several blocks, between
//! which there may be those of others.

mod finding;
mod llm;
mod mcp;

use std::fmt::Arguments;
use std::io::Write as _;
use std::mem;
use std::net::SocketAddr;

use agent_ebpf::Direction;

use super::instruction_name;
use super::page::{Ink, Mark, Page, secrets};
use crate::amount::{plural, size};
use crate::escape;
use crate::record::{
    Attribution, Body, Bytes, Calls, Cause, Clear, Connection, Container, Content, Coverage,
    CoverageStatus, Governing, Grpc, Header, Http, HttpHalf, Line, Message, Messages, OwnedContent,
    Process, Record, Role, Shedding, Sse, Stats, WallTime, WebSocket,
};
use crate::redact::Shown;

/// Turns records into blocks of lines.
pub(super) struct Encoder {
    pub(super) colour: bool,
    /// What goes on is told in pieces. Otherwise all of an exchange is in the one record of it.
    pub(super) live: bool,
    /// The call whose words stand on the last line, which goes on with them.
    speaking: Option<llm::Speaking>,
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const MAGENTA: &str = "\x1b[35m";
const CYAN: &str = "\x1b[36m";
const BLUE: &str = "\x1b[94m";
const RESET: &str = "\x1b[0m";

/// Of connections, so that blocks of the same are found at a glance. Red is for what went wrong.
const LABELS: [&str; 5] = ["\x1b[93m", "\x1b[95m", "\x1b[96m", "\x1b[92m", BLUE];

/// Most lines of a body, and most bytes of a line of it.
const LINES: usize = 200;
const LONGEST: usize = 4096;

/// Most lines of a dump: of a body, and of data, which nobody knows better.
const DUMPED: usize = 4;
const DUMPED_DATA: usize = 16;

/// Most messages of one side of a call.
const MESSAGES: usize = 8;

impl Encoder {
    pub(super) fn new(colour: bool, live: bool) -> Encoder {
        Encoder {
            colour,
            live,
            speaking: None,
        }
    }

    /// Appends one block.
    pub(super) fn encode(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        if let Body::Words(words) = &record.body {
            return self.words(record, words, out);
        }
        if self.speaking.take().is_some() {
            out.push(b'\n');
        }
        match &record.body {
            Body::Words(_) => {}
            Body::Http(http) => self.exchange(record, http, None, out),
            Body::Grpc(grpc) => self.exchange(record, &grpc.http, Some(grpc), out),
            Body::Message(message) => self.message(record, message, out),
            Body::Line(line) => self.line(record, line, out),
            Body::Sse(sse) => self.sse(record, sse, out),
            Body::Llm(llm) => self.llm(record, llm, out),
            Body::Mcp(mcp) => self.mcp(record, mcp, out),
            Body::Finding(finding) => self.finding(record, finding, out),
            Body::WebSocket(socket) => self.websocket(record, socket, out),
            Body::Data {
                direction,
                offset,
                length,
                content,
                ..
            } => {
                self.head(record, record.time, None, *direction, out);
                print(out, format_args!("{}\n", plural(*length, "byte")));
                self.payload(*direction, *offset, *content, out);
            }
            Body::Gap {
                direction,
                cause,
                offset,
                length,
            } => {
                self.head(record, record.time, None, *direction, out);
                self.painted(RED, out, |out| {
                    print(out, format_args!("{} missing", plural(*length, "byte")));
                    if let Some(offset) = offset {
                        print(out, format_args!(" at {offset}"));
                    }
                    print(out, format_args!(": {}", cause_words(*cause)));
                });
                out.push(b'\n');
            }
            Body::Coverage(coverage) => self.coverage(record, coverage, out),
            Body::Stats(stats) => self.stats(stats, out),
        }
    }

    /// When, of which connection and exchange, who, and which way.
    fn who(
        &self,
        record: &Record<'_>,
        moment: WallTime,
        exchange: Option<u64>,
        direction: Direction,
        out: &mut Vec<u8>,
    ) {
        self.painted(DIM, out, |out| time(moment, out));
        out.push(b' ');
        if let Some(connection) = record.connection {
            let colour = LABELS[(connection.number % LABELS.len() as u64) as usize];
            self.painted(colour, out, |out| {
                print(out, format_args!("#{}", connection.number));
                if let Some(exchange) = exchange {
                    print(out, format_args!(".{}", exchange + 1));
                }
            });
            out.push(b' ');
        }
        self.painted(colour_of(direction), out, |out| {
            process(record.process, out);
            let arrow = match direction {
                Direction::Received => " ← ",
                Direction::Sent => " → ",
            };
            out.extend_from_slice(arrow.as_bytes());
        });
    }

    /// The same, and with whom.
    fn head(
        &self,
        record: &Record<'_>,
        moment: WallTime,
        exchange: Option<u64>,
        direction: Direction,
        out: &mut Vec<u8>,
    ) {
        self.who(record, moment, exchange, direction, out);
        self.painted(colour_of(direction), out, |out| match record.connection {
            Some(connection) => {
                peer(connection, out);
                if connection.is_plain {
                    out.extend_from_slice(b" without TLS");
                }
            }
            None => out.extend_from_slice(UNKNOWN),
        });
        out.extend_from_slice(b": ");
    }

    /// A piece of a stream.
    fn payload(&self, direction: Direction, offset: u64, content: Content<'_>, out: &mut Vec<u8>) {
        let bytes = match content.shown() {
            Shown::Nothing => return,
            Shown::Encoded => return self.note(direction, DIM, WITHHELD, out),
            Shown::Text(text, redactions) => {
                let marks = secrets(offset, text, redactions, &[]);
                return self.lines(direction, &Lines::all(text, &marks), out);
            }
            Shown::Raw(bytes) => bytes,
        };
        if let Some((before, text, after)) = as_text(bytes) {
            let lines = Lines {
                before,
                after,
                ..Lines::all(text, &[])
            };
            return self.lines(direction, &lines, out);
        }
        let head = head_before(bytes);
        self.lines(direction, &Lines::all(head, &[]), out);
        let (offset, rest) = (offset + head.len() as u64, &bytes[head.len()..]);
        self.dump(direction, offset, rest, DUMPED_DATA, out);
    }

    /// A body, an event or a message: JSON with a value a line if `in_lines`.
    fn content(
        &self,
        direction: Direction,
        content: &OwnedContent,
        (in_lines, is_cut): (bool, bool),
        out: &mut Vec<u8>,
    ) {
        let (before, text, after, redactions) = match content.content().shown() {
            Shown::Nothing => return,
            Shown::Encoded => return self.note(direction, DIM, WITHHELD, out),
            Shown::Text(text, redactions) => (&[][..], text, &[][..], redactions),
            Shown::Raw(bytes) => match as_text(bytes) {
                Some((before, text, after)) => (before, text, after, &[][..]),
                None => return self.dump(direction, 0, bytes, DUMPED, out),
            },
        };
        let page = Page::new(text, redactions, content.holes()).laid_out(in_lines, is_cut);
        let lines = Lines {
            before,
            text: &page.text,
            marks: &page.marks,
            after,
            most: LINES,
            longest: LONGEST,
        };
        self.lines(direction, &lines, out);
    }

    /// A line of ours.
    fn note(&self, direction: Direction, colour: &str, text: &str, out: &mut Vec<u8>) {
        self.margin(direction, out);
        self.painted(colour, out, |out| escape::visible(text, out));
        out.push(b'\n');
    }

    fn lines(&self, direction: Direction, lines: &Lines<'_>, out: &mut Vec<u8>) {
        let Lines {
            mut before,
            text,
            mut marks,
            after,
            most,
            longest,
        } = *lines;
        let cut = |bytes: &[u8], out: &mut Vec<u8>| {
            for byte in bytes {
                escape::byte(*byte, out);
            }
        };
        let mut start = 0;
        let mut all = text.split('\n').enumerate().peekable();
        while let Some((number, line)) = all.next() {
            let last = all.peek().is_none();
            // A newline ends a line, it doesn't begin an empty one.
            if last && line.is_empty() && after.is_empty() {
                break;
            }
            if number == most {
                let rest = &text[start..];
                let count = plural(rest.lines().count() as u64, "more line");
                let note = format!("… {count}, {}", size(rest.len() as u64));
                return self.note(direction, YELLOW, &note, out);
            }
            self.margin(direction, out);
            cut(mem::take(&mut before), out);
            let next = start + line.len() + 1;
            // Lines of protocols end in CRLF; a CR elsewhere is shown.
            let line = if last {
                line
            } else {
                line.strip_suffix('\r').unwrap_or(line)
            };
            let (line, more) = line.split_at(line.floor_char_boundary(longest));
            let mut shown = 0;
            while let [Mark { range, ink }, rest @ ..] = marks
                && range.end < next
            {
                marks = rest;
                // It may be in what is cut off.
                let (from, to) = (range.start - start, (range.end - start).min(line.len()));
                if from < to {
                    spread(&line[shown..from], out);
                    shown = to;
                    self.painted(colour_of_ink(*ink), out, |out| {
                        escape::visible(&line[from..to], out);
                    });
                }
            }
            spread(&line[shown..], out);
            if !more.is_empty() {
                self.painted(YELLOW, out, |out| {
                    print(out, format_args!(" … {} more", size(more.len() as u64)));
                });
            }
            if last {
                cut(after, out);
            }
            out.push(b'\n');
            start = next;
        }
    }

    /// Bytes as hex and ASCII, with their position in the stream.
    fn dump(
        &self,
        direction: Direction,
        offset: u64,
        bytes: &[u8],
        lines: usize,
        out: &mut Vec<u8>,
    ) {
        const WIDTH: usize = 16;
        let shown = bytes.len().min(lines * WIDTH);
        for (i, row) in bytes[..shown].chunks(WIDTH).enumerate() {
            self.margin(direction, out);
            let position = offset + (i * WIDTH) as u64;
            self.painted(DIM, out, |out| print(out, format_args!("{position:08x} ")));
            for column in 0..WIDTH {
                if column == WIDTH / 2 {
                    out.push(b' ');
                }
                match row.get(column) {
                    Some(byte) => print(out, format_args!(" {byte:02x}")),
                    None => out.extend_from_slice(b"   "),
                }
            }
            out.extend_from_slice(b"  ");
            out.extend(row.iter().map(|byte| match byte {
                b' '..=b'~' => *byte,
                _ => b'.',
            }));
            out.push(b'\n');
        }
        if shown < bytes.len() {
            self.margin(direction, out);
            let more = plural((bytes.len() - shown) as u64, "more byte");
            print(out, format_args!("… {more}\n"));
        }
    }

    fn margin(&self, direction: Direction, out: &mut Vec<u8>) {
        self.painted(colour_of(direction), out, |out| {
            out.extend_from_slice(match direction {
                Direction::Received => b"  <",
                Direction::Sent => b"  >",
            });
        });
        out.push(b' ');
    }

    /// One block: what was asked and what came of it, then both in full. What goes on is told when it begins to,
    /// and the rest in a second block when it is over.
    fn exchange(&self, record: &Record<'_>, http: &Http, grpc: Option<&Grpc>, out: &mut Vec<u8>) {
        let (asks, answers) = match record.connection.and_then(|connection| connection.role) {
            Some(Role::Server) => (Direction::Received, Direction::Sent),
            Some(Role::Client) | None => (Direction::Sent, Direction::Received),
        };
        let exchange = Some(http.exchange);
        match http.is_continued && self.live {
            false => self.head(record, record.time, exchange, asks, out),
            true => self.who(
                record,
                last(http).unwrap_or(record.time),
                exchange,
                answers,
                out,
            ),
        }
        self.painted(BOLD, out, |out| {
            escape::visible(http.method.as_deref().unwrap_or("?"), out);
            out.push(b' ');
            let url = http.url.full.as_ref().or(http.url.path.as_ref());
            escape::visible(url.map_or("?", Clear::as_str), out);
        });
        out.push(b' ');
        self.outcome(http, out);
        self.painted(DIM, out, |out| times(http, out));
        if let Some(grpc) = grpc {
            self.call(grpc, out);
        }
        self.painted(DIM, out, |out| sizes(http, out));
        if !http.is_open && !record.complete {
            self.painted(RED, out, |out| {
                out.extend_from_slice(b", incomplete");
                if record.lost_bytes > 0 {
                    print(out, format_args!(": {} missing", size(record.lost_bytes)));
                }
            });
        }
        out.push(b'\n');
        if let Some(request) = &http.request {
            self.half(asks, request, grpc.map(|grpc| &grpc.sent), out);
        }
        self.interim(answers, http, out);
        if let Some(response) = &http.response {
            self.half(answers, response, grpc.map(|grpc| &grpc.received), out);
        }
    }

    fn outcome(&self, http: &Http, out: &mut Vec<u8>) {
        match (http.status, &http.response) {
            (Some(status), _) => self.status(status, out),
            (None, None) if http.is_open => {
                self.painted(DIM, out, |out| out.extend_from_slice(b"(no response yet)"));
            }
            (None, response) => self.painted(RED, out, |out| {
                out.extend_from_slice(match response {
                    Some(_) => b"unknown status",
                    None => b"no response",
                });
            }),
        }
    }

    fn status(&self, status: u16, out: &mut Vec<u8>) {
        let colour = match status {
            100..300 => GREEN,
            300..400 => CYAN,
            400..500 => YELLOW,
            _ => RED,
        };
        self.painted(colour, out, |out| print(out, format_args!("{status}")));
    }

    fn call(&self, grpc: &Grpc, out: &mut Vec<u8>) {
        out.extend_from_slice(b", gRPC");
        if let Some(status) = grpc.status {
            let colour = if status == 0 { GREEN } else { RED };
            self.painted(colour, out, |out| {
                print(out, format_args!(" {}", grpc_status(status)));
            });
        }
        if let Some(message) = grpc
            .message
            .as_deref()
            .filter(|message| !message.is_empty())
        {
            out.extend_from_slice(b" ");
            escape::visible(message, out);
        }
        print(
            out,
            format_args!(", {} → {} messages", grpc.sent.count, grpc.received.count),
        );
    }

    /// Responses before the response, where its head is told or none came.
    fn interim(&self, direction: Direction, http: &Http, out: &mut Vec<u8>) {
        let is_here = match &http.response {
            Some(response) => self.has_head(response),
            None => !http.is_open,
        };
        if http.interim.is_empty() || !is_here {
            return;
        }
        for interim in &http.interim {
            self.status_line(direction, interim.status, out);
            self.headers(direction, &interim.headers, out);
        }
        if http.response.is_some() {
            self.status_line(direction, http.status, out);
        }
    }

    fn status_line(&self, direction: Direction, status: Option<u16>, out: &mut Vec<u8>) {
        self.margin(direction, out);
        match status {
            Some(status) => self.status(status, out),
            None => out.extend_from_slice(b"?"),
        }
        out.push(b'\n');
    }

    fn half(
        &self,
        direction: Direction,
        half: &HttpHalf,
        messages: Option<&Messages>,
        out: &mut Vec<u8>,
    ) {
        if self.has_head(half) {
            self.headers(direction, &half.headers, out);
        }
        if half.has_body || !self.live {
            self.body(direction, half, messages, out);
        }
        self.headers(direction, &half.trailers, out);
    }

    fn has_head(&self, half: &HttpHalf) -> bool {
        half.has_head || !self.live
    }

    fn body(
        &self,
        direction: Direction,
        half: &HttpHalf,
        messages: Option<&Messages>,
        out: &mut Vec<u8>,
    ) {
        let body = &half.body;
        if body.size > 0 && self.has_head(half) {
            self.margin(direction, out);
            out.push(b'\n');
        }
        if let Some(messages) = messages {
            for (number, size) in (0..).zip(messages.sizes.iter().take(MESSAGES)) {
                self.margin(direction, out);
                self.message_line(number, *size, out);
            }
            let more = messages.count.saturating_sub(MESSAGES as u64);
            if more > 0 {
                let note = format!("… {}", plural(more, "more message"));
                self.note(direction, YELLOW, &note, out);
            }
        }
        let kind = value(&half.headers, "content-type").unwrap_or("binary");
        let what = format!("{kind}, {}", size(body.size));
        match body.content.content().shown() {
            _ if body.size == 0 => {}
            // What its messages are is said already.
            Shown::Encoded if messages.is_some() => {}
            Shown::Encoded => {
                let note = format!("({what}; withheld: not plain text)");
                self.note(direction, DIM, &note, out);
            }
            Shown::Raw(bytes) if messages.is_none() && as_text(bytes).is_none() => {
                self.note(direction, DIM, &format!("({what})"), out);
                self.dump(direction, 0, bytes, DUMPED, out);
            }
            _ => {
                let is_cut = body.is_cut || !half.is_whole;
                self.content(direction, &body.content, (true, is_cut), out);
            }
        }
        let has_holes = !body.content.holes().is_empty();
        let note = match (body.unreadable, body.is_cut) {
            (Some(why), _) => format!("(not all of it can be read: {why})"),
            (None, true) => format!("(cut: {} in all)", size(body.size)),
            // Holes are said in their place.
            (None, false) if half.is_whole || messages.is_some() || has_holes => return,
            (None, false) => "(its end was not seen)".into(),
        };
        self.note(direction, YELLOW, &note, out);
    }

    fn headers(&self, direction: Direction, headers: &[Header], out: &mut Vec<u8>) {
        for header in headers {
            let Some(name) = &header.name else { continue };
            self.margin(direction, out);
            self.painted(DIM, out, |out| {
                escape::visible(name, out);
                out.extend_from_slice(b": ");
                escape::visible(header.value.as_deref().unwrap_or("(unknown)"), out);
            });
            out.push(b'\n');
        }
        let nameless = headers.iter().filter(|header| header.name.is_none());
        let nameless = nameless.count() as u64;
        if nameless > 0 {
            let fields = plural(nameless, "unknown field");
            let note = format!("({fields}: the connection was joined in its middle)");
            self.note(direction, YELLOW, &note, out);
        }
    }

    /// As it happens: a message of a call that goes on.
    fn message(&self, record: &Record<'_>, message: &Message, out: &mut Vec<u8>) {
        let (exchange, direction) = (Some(message.exchange), message.direction);
        self.who(record, record.time, exchange, direction, out);
        self.message_line(message.number, message.size, out);
    }

    fn message_line(&self, number: u64, length: u32, out: &mut Vec<u8>) {
        self.painted(BOLD, out, |out| {
            print(out, format_args!("message {number}"))
        });
        print(out, format_args!(", {}\n", size(length.into())));
    }

    /// As it happens: a line of a response that goes on.
    fn line(&self, record: &Record<'_>, line: &Line, out: &mut Vec<u8>) {
        self.who(
            record,
            record.time,
            Some(line.exchange),
            line.direction,
            out,
        );
        self.painted(BOLD, out, |out| {
            print(out, format_args!("line {}", line.number))
        });
        if line.is_cut {
            self.painted(YELLOW, out, |out| out.extend_from_slice(b", cut"));
        }
        out.push(b'\n');
        self.content(line.direction, &line.content, (false, line.is_cut), out);
    }

    /// As it happens: an event of a response that goes on.
    fn sse(&self, record: &Record<'_>, sse: &Sse, out: &mut Vec<u8>) {
        let direction = match record.connection.and_then(|connection| connection.role) {
            Some(Role::Server) => Direction::Sent,
            Some(Role::Client) | None => Direction::Received,
        };
        self.who(record, record.time, Some(sse.exchange), direction, out);
        self.painted(BOLD, out, |out| {
            print(out, format_args!("event {}", sse.number));
            if let Some(name) = &sse.name {
                out.push(b' ');
                escape::visible(name, out);
            }
        });
        if let Some(id) = &sse.id {
            self.painted(DIM, out, |out| {
                out.extend_from_slice(b", id ");
                escape::visible(id, out);
            });
        }
        if sse.is_cut {
            self.painted(YELLOW, out, |out| out.extend_from_slice(b", cut"));
        }
        out.push(b'\n');
        self.content(direction, &sse.data, (false, sse.is_cut), out);
    }

    fn websocket(&self, record: &Record<'_>, socket: &WebSocket, out: &mut Vec<u8>) {
        self.who(record, record.time, None, socket.direction, out);
        self.painted(BOLD, out, |out| print(out, format_args!("{}", socket.kind)));
        if let Some(code) = socket.close_code {
            print(out, format_args!(" {code}"));
        }
        print(out, format_args!(", {}", size(socket.size)));
        if socket.is_cut {
            self.painted(YELLOW, out, |out| out.extend_from_slice(b", cut"));
        }
        out.push(b'\n');
        if socket.size > 0 {
            let how = (false, socket.is_cut);
            self.content(socket.direction, &socket.content, how, out);
        }
    }

    fn coverage(&self, record: &Record<'_>, coverage: &Coverage, out: &mut Vec<u8>) {
        let who = record.process;
        process(who, out);
        out.push(b' ');
        match (&coverage.library_path, record.connection) {
            (Some(path), _) => escape::visible(path.rsplit('/').next().unwrap_or(path), out),
            (None, Some(connection)) => unnamed(connection, out),
            (None, None) => out.extend_from_slice(b"TLS"),
        }
        for fact in [&coverage.library_name, &coverage.library_version]
            .into_iter()
            .flatten()
        {
            out.push(b' ');
            escape::visible(fact, out);
        }
        out.extend_from_slice(b": ");
        let (colour, words) = match coverage.status {
            CoverageStatus::Probed => (GREEN, "probed"),
            CoverageStatus::Partly => (YELLOW, "partly probed"),
            CoverageStatus::Refused => (RED, "refused"),
            CoverageStatus::Unknown => (RED, "unknown"),
        };
        self.painted(colour, out, |out| print(out, format_args!("{words}")));
        functions(coverage, out);
        if coverage.is_seen() {
            match coverage.seen_from {
                None => out.extend_from_slice(b", from its start"),
                Some(moment) => {
                    out.extend_from_slice(b", from ");
                    time(moment, out);
                    out.extend_from_slice(b" on");
                }
            }
        }
        if let Some(reason) = &coverage.reason {
            out.extend_from_slice(b": ");
            escape::visible(reason, out);
        }
        out.push(b'\n');
        self.command_line(who, out);
    }

    /// What the process was started as.
    fn command_line(&self, who: Option<&Process>, out: &mut Vec<u8>) {
        let arguments = who.map_or(&[][..], |process| &process.arguments);
        if arguments.is_empty() {
            return;
        }
        self.painted(DIM, out, |out| {
            out.extend_from_slice(b"  $");
            for argument in arguments {
                out.push(b' ');
                quoted(argument, out);
            }
        });
        out.push(b'\n');
    }

    fn stats(&self, stats: &Stats, out: &mut Vec<u8>) {
        let title = if stats.last { "In all" } else { "So far" };
        self.painted(DIM, out, |out| print(out, format_args!("{title}")));
        out.push(b'\n');
        bytes_line(&stats.ledger.bytes, out);
        calls_line(&stats.ledger.calls, out);
        for sink in &stats.sinks {
            out.extend_from_slice(b"  ");
            escape::visible(&sink.name, out);
            print(
                out,
                format_args!(
                    ": {} sent, {} dropped\n",
                    plural(sink.sent, "record"),
                    sink.dropped
                ),
            );
        }
        print(
            out,
            format_args!(
                "  the agent itself: {:.2} s of CPU, {:.1} MiB of memory; content: {}\n",
                stats.cpu_seconds,
                stats.memory_bytes as f64 / (1 << 20) as f64,
                stats.content,
            ),
        );
        shedding_line(&stats.shedding, out);
        if let Some(governing) = &stats.governing {
            governing_line(governing, out);
        }
        for limit in &stats.limits {
            out.extend_from_slice(b"  ");
            self.painted(YELLOW, out, |out| {
                out.extend_from_slice(b"limit: ");
                escape::visible(limit, out);
            });
            out.push(b'\n');
        }
    }

    fn painted(&self, colour: &str, out: &mut Vec<u8>, text: impl FnOnce(&mut Vec<u8>)) {
        if !self.colour {
            return text(out);
        }
        out.extend_from_slice(colour.as_bytes());
        text(out);
        out.extend_from_slice(RESET.as_bytes());
    }
}

/// A text, and how it is shown.
#[derive(Clone, Copy)]
struct Lines<'a> {
    /// Pieces of characters at its ends.
    before: &'a [u8],
    text: &'a str,
    marks: &'a [Mark],
    after: &'a [u8],
    /// So many lines of it, and of each so many bytes.
    most: usize,
    longest: usize,
}

impl<'a> Lines<'a> {
    fn all(text: &'a str, marks: &'a [Mark]) -> Lines<'a> {
        Lines {
            before: &[],
            text,
            marks,
            after: &[],
            most: usize::MAX,
            longest: usize::MAX,
        }
    }
}

/// In place of what redaction can't see into.
const WITHHELD: &str = "(withheld: not plain text)";

/// When the last of an exchange so far came.
fn last(http: &Http) -> Option<WallTime> {
    let half = http.response.as_ref().or(http.request.as_ref())?;
    Some(half.ended)
}

/// How long it took.
fn times(http: &Http, out: &mut Vec<u8>) {
    let (Some(request), Some(response)) = (&http.request, &http.response) else {
        return;
    };
    let since = |moment: WallTime| moment.0.saturating_sub(request.began.0);
    let (first, all) = (since(response.began), since(response.ended));
    if http.is_open {
        return print(out, format_args!(" after {}, goes on", duration(first)));
    }
    print(out, format_args!(" in {}", duration(all)));
    // Where it says more than the whole does.
    if first < all / 10 * 9 {
        print(out, format_args!(", first byte after {}", duration(first)));
    }
}

/// How much it was.
fn sizes(http: &Http, out: &mut Vec<u8>) {
    if http.events > 0 {
        print(out, format_args!(", {}", plural(http.events, "event")));
    }
    for (half, verb) in [(&http.request, "asked"), (&http.response, "answered")] {
        let Some(half) = half.as_ref().filter(|half| half.body.size > 0) else {
            continue;
        };
        print(out, format_args!(", {} {verb}", size(half.body.size)));
        let decoded = half.body.decoded_size;
        if decoded != half.body.size {
            out.extend_from_slice(b" (");
            escape::visible(
                value(&half.headers, "content-encoding").unwrap_or("coded"),
                out,
            );
            print(out, format_args!(" of {})", size(decoded)));
        }
    }
}

/// The first value of this name.
fn value<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    let mut named = headers
        .iter()
        .filter(|header| header.name.as_deref() == Some(name));
    named.next()?.value.as_deref()
}

/// The names of gRPC's status codes (gRPC, "Status codes and their use in gRPC").
fn grpc_status(status: u16) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    match NAMES.get(usize::from(status)) {
        Some(name) => (*name).into(),
        None => format!("status {status}"),
    }
}

/// As people say it: `1.2 ms`.
fn duration(nanoseconds: u64) -> String {
    match nanoseconds as f64 / 1e9 {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 1e-3 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{:.0} µs", seconds * 1e6),
    }
}

/// Splits a chunk into text and the pieces of a character that was cut off at either end; `None` if
/// it is something else. NUL makes it binary, as for grep: frames of HTTP/2 are valid UTF-8 often
/// enough.
fn as_text(bytes: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let is_continuation = |byte: &&u8| matches!(byte, 0x80..=0xbf);
    let before = bytes.iter().take(3).take_while(is_continuation).count();
    let (before, rest) = bytes.split_at(before);
    let (text, after) = match str::from_utf8(rest) {
        Ok(text) => (text, [].as_slice()),
        // No length: the end came inside a character.
        Err(error) if error.error_len().is_none() => {
            let (text, after) = rest.split_at(error.valid_up_to());
            (str::from_utf8(text).ok()?, after)
        }
        Err(_) => return None,
    };
    let is_text =
        memchr::memchr(0, text.as_bytes()).is_none() && (!text.is_empty() || bytes.is_empty());
    is_text.then_some((before, text, after))
}

/// Where binary follows text: the text, up to its last empty line. It is the head of a message whose body
/// came with it.
fn head_before(bytes: &[u8]) -> &str {
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0x80..);
    let end = bytes.iter().take_while(|byte| is_text(byte)).count();
    let text = match str::from_utf8(&bytes[..end]) {
        Ok(text) => text,
        Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    };
    let ends = ["\n\r\n", "\n\n"].map(|empty| text.rfind(empty).map(|at| at + empty.len()));
    let end = ends.into_iter().flatten().max().unwrap_or_default();
    // Protocol buffers like to begin with newlines.
    if text.starts_with(['\r', '\n']) {
        return "";
    }
    &text[..end]
}

/// A part of a line, with tabs that don't depend on what is before it.
fn spread(text: &str, out: &mut Vec<u8>) {
    for (i, piece) in text.split('\t').enumerate() {
        if i > 0 {
            out.extend_from_slice(b"    ");
        }
        escape::visible(piece, out);
    }
}

/// As a shell takes it for one word.
fn quoted(argument: &str, out: &mut Vec<u8>) {
    let is_plain = |c: char| c.is_alphanumeric() || "%+,-./:=@_".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return escape::visible(argument, out);
    }
    out.push(b'\'');
    for (i, piece) in argument.split('\'').enumerate() {
        if i > 0 {
            out.extend_from_slice(b"'\\''");
        }
        escape::visible(piece, out);
    }
    out.push(b'\'');
}

/// What the limits leave out, if they have left anything out.
fn shedding_line(shedding: &Shedding, out: &mut Vec<u8>) {
    if *shedding == Shedding::default() {
        return;
    }
    print(
        out,
        format_args!("  its limits: {}", shedding.level.words()),
    );
    if shedding.one_in > 1 {
        print(out, format_args!(" (1 in {} is decoded)", shedding.one_in));
    }
    print(
        out,
        format_args!(
            "; so far: bodies {}, data {} of {} bytes, connections {}\n",
            shedding.bodies, shedding.data, shedding.data_bytes, shedding.connections,
        ),
    );
}

/// What the probes cost others, and whether that was too much.
fn governing_line(governing: &Governing, out: &mut Vec<u8>) {
    print(
        out,
        format_args!("  its probes cost others {:.3} CPUs", governing.cost),
    );
    if let Some(limit) = governing.limit {
        print(out, format_args!(" of {limit:.3}"));
    }
    print(
        out,
        format_args!(
            "; so far: {}, {:.0} s in all; now: {} paused\n",
            plural(governing.pauses, "pause"),
            governing.paused_seconds,
            plural(governing.paused, "file"),
        ),
    );
}

/// `bytes.seen` and where they all are.
fn bytes_line(bytes: &Bytes, out: &mut Vec<u8>) {
    let lost = &bytes.lost;
    print(
        out,
        format_args!(
            "  {} seen = {} delivered + {} lost + {} filtered + {} over the limit + {} in flight",
            plural(bytes.seen, "byte"),
            bytes.delivered,
            lost.sum(),
            bytes.filtered,
            bytes.over_limit,
            bytes.in_flight,
        ),
    );
    causes(
        "lost",
        [
            (lost.ring_full, "ring full"),
            (lost.copy_fault, "copy fault"),
            (lost.map_full, "map full"),
            (lost.over_budget, "over budget"),
            (lost.sendfile, "sent from files by the kernel"),
            (lost.no_buffer, "in no buffer that was seen"),
            (lost.withdrawn, "no TLS after all"),
            (lost.unknown, "unknown"),
        ],
        out,
    );
}

/// `calls.entries` and what became of them.
fn calls_line(calls: &Calls, out: &mut Vec<u8>) {
    let unmatched = &calls.unmatched;
    print(
        out,
        format_args!(
            "  {} entered = {} returned + {} unmatched + {} in flight; {} more filtered",
            plural(calls.entries, "call"),
            calls.returns,
            unmatched.sum(),
            calls.in_flight,
            calls.filtered,
        ),
    );
    causes(
        "unmatched",
        [
            (unmatched.abandoned, "abandoned"),
            (unmatched.too_deep, "too deep"),
            (unmatched.map_full, "map full"),
            (unmatched.exited, "exited"),
            (unmatched.other_stack, "on another stack"),
        ],
        out,
    );
}

/// Ends the line with what a sum is made of, without the zeros.
fn causes<const N: usize>(sum: &str, counts: [(u64, &str); N], out: &mut Vec<u8>) {
    let mut opening = format!(" ({sum}: ");
    let mut closing = "";
    for (count, cause) in counts.into_iter().filter(|(count, _)| *count > 0) {
        print(out, format_args!("{opening}{count} {cause}"));
        opening = ", ".into();
        closing = ")";
    }
    print(out, format_args!("{closing}\n"));
}

/// TLS of which only the ends are known.
fn unnamed(connection: &Connection, out: &mut Vec<u8>) {
    let verb = match connection.role {
        Some(Role::Server) => "TLS of a server for ",
        Some(Role::Client) | None => "TLS with ",
    };
    out.extend_from_slice(verb.as_bytes());
    if let Some(name) = &connection.server_name {
        escape::visible(name, out);
        out.push(b' ');
    }
    if let Some(peer) = connection.peer {
        print(out, format_args!("{peer}"));
    }
}

/// Names, and after each run of one kind how the kernel runs the instruction.
fn functions(coverage: &Coverage, out: &mut Vec<u8>) {
    let mut opening = " at ";
    for alike in coverage
        .functions
        .chunk_by(|a, b| a.instruction == b.instruction)
    {
        for probed in alike {
            print(out, format_args!("{opening}{}", probed.function));
            opening = ", ";
        }
        print(
            out,
            format_args!(" ({})", instruction_name(alike[0].instruction)),
        );
    }
}

const UNKNOWN: &[u8] = b"unknown peer";

/// The other end: the name that the client asked for, and the address. A question mark is behind an
/// address that was inferred.
fn peer(connection: &Connection, out: &mut Vec<u8>) {
    let address = connection.peer.map(|peer| {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let doubt = match connection.attribution {
            Attribution::Inferred => "?",
            Attribution::Exact | Attribution::None => "",
        };
        format!("{peer}{doubt}")
    });
    match (&connection.server_name, address) {
        (Some(name), Some(address)) => {
            escape::visible(name, out);
            print(out, format_args!(" ({address})"));
        }
        (Some(name), None) => {
            escape::visible(name, out);
            out.extend_from_slice(b" (unknown address)");
        }
        (None, Some(address)) => print(out, format_args!("{address}")),
        (None, None) => out.extend_from_slice(UNKNOWN),
    }
}

/// `curl[4242]`, and its pod or container as people write it
fn process(process: Option<&Process>, out: &mut Vec<u8>) {
    let Some(process) = process else {
        return out.push(b'?');
    };
    escape::visible(process.comm.as_deref().unwrap_or("?"), out);
    print(out, format_args!("[{}]", process.pid));
    let Some(id) = &process.container_id else {
        return;
    };
    out.extend_from_slice(b" in ");
    match process.container.as_deref() {
        Some(Container { pod: Some(pod), .. }) => {
            escape::visible(&pod.namespace, out);
            out.push(b'/');
            escape::visible(&pod.name, out);
        }
        Some(Container {
            name: Some(name), ..
        }) => escape::visible(name, out),
        _ => escape::visible(&id[..id.floor_char_boundary(CONTAINER)], out),
    }
}

/// As `docker ps` and `crictl ps` shorten ids.
const CONTAINER: usize = 12;

/// Time of day in UTC, to the microsecond.
fn time(moment: WallTime, out: &mut Vec<u8>) {
    let civil = moment.civil();
    print(
        out,
        format_args!(
            "{:02}:{:02}:{:02}.{:06}",
            civil.hour,
            civil.minute,
            civil.second,
            civil.nanosecond / 1000
        ),
    );
}

fn colour_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Received => GREEN,
        Direction::Sent => CYAN,
    }
}

fn colour_of_ink(ink: Ink) -> &'static str {
    match ink {
        Ink::Secret => MAGENTA,
        Ink::Missing => RED,
        Ink::Key => BLUE,
        Ink::String => GREEN,
    }
}

fn cause_words(cause: Cause) -> &'static str {
    match cause {
        Cause::RingFull => "the ring buffer was full",
        Cause::CopyFault => "a page of the buffer was not in memory",
        Cause::MapFull => "too many streams or threads at once",
        Cause::OverBudget => "the process sent more than its share of the ring buffer",
        Cause::CallTooLong => "the call was longer than is copied of one",
        Cause::Sendfile => "the kernel sent them from a file",
        Cause::NoBuffer => "they passed by in no buffer that was seen",
        Cause::Withdrawn => "what gave them is no TLS function",
        Cause::Unknown => "nobody knows why",
    }
}

fn print(out: &mut Vec<u8>, text: Arguments<'_>) {
    // Writing to memory can't fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::sample::{self, half, header, http};
    use super::*;
    use crate::locate::Instruction;
    use crate::record::{Interim, Ledger, Lost, Pod, SinkCount, Unmatched, View};
    use crate::redact::{Policy, Redaction};
    use crate::shed::Level;

    fn block(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        Encoder::new(false, true).encode(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// The lines below the head, for a payload at offset 5.
    fn payload(bytes: &[u8]) -> String {
        let (process, connection) = (sample::process(), sample::connection());
        let block = block(&sample::data(&process, &connection, bytes, Policy::Full));
        block.split_once('\n').unwrap().1.into()
    }

    #[test]
    fn a_request_reads_like_curl() {
        let (process, connection) = (sample::process(), sample::connection());
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n{\t\"a\": 1}";
        let record = sample::data(&process, &connection, request, Policy::Full);
        assert_eq!(
            block(&record),
            "01:20:29.000000 #3 curl[4242] in c0ffee → example.org ([::1]:443): 44 bytes\n  \
             > GET / HTTP/1.1\n  \
             > Host: localhost\n  \
             > \n  \
             > {    \"a\": 1}\n"
        );
        let record = sample::data(&process, &connection, request, Policy::None);
        assert_eq!(
            block(&record),
            "01:20:29.000000 #3 curl[4242] in c0ffee → example.org ([::1]:443): 44 bytes\n"
        );
    }

    /// Name and address of the other end, as far as they are known and how surely.
    #[test]
    fn with_whom() {
        let mut process = sample::process();
        process.container_id = Some("c0ffee0123456789".into());
        let mut connection = sample::connection();
        let head = |process: &Process, connection: &Connection| {
            let block = block(&sample::data(process, connection, b"", Policy::None));
            let head = block.strip_prefix("01:20:29.000000 #3 ").unwrap();
            head.strip_suffix(": 0 bytes\n").unwrap().to_owned()
        };
        let who = "curl[4242] in c0ffee012345 →";
        let exact = head(&process, &connection);
        assert_eq!(exact, format!("{who} example.org ([::1]:443)"));
        connection.attribution = Attribution::Inferred;
        let inferred = head(&process, &connection);
        assert_eq!(inferred, format!("{who} example.org ([::1]:443?)"));
        connection.peer = None;
        connection.attribution = Attribution::None;
        let unknown = head(&process, &connection);
        assert_eq!(unknown, format!("{who} example.org (unknown address)"));
        connection.server_name = None;
        let mut container = Container {
            name: Some("web".into()),
            ..Container::default()
        };
        process.container = Some(Arc::new(container.clone()));
        let named = head(&process, &connection);
        assert_eq!(named, "curl[4242] in web → unknown peer");
        container.pod = Some(Pod {
            namespace: "shop".into(),
            name: "web-0".into(),
            ..Pod::default()
        });
        process.container = Some(Arc::new(container));
        let named = head(&process, &connection);
        assert_eq!(named, "curl[4242] in shop/web-0 → unknown peer");
        process.container_id = None;
        assert_eq!(head(&process, &connection), "curl[4242] → unknown peer");
        connection.is_plain = true;
        let plain = head(&process, &connection);
        assert_eq!(plain, "curl[4242] → unknown peer without TLS");
        connection.is_plain = false;
        connection.peer = Some("[::ffff:127.0.0.1]:443".parse().unwrap());
        assert_eq!(head(&process, &connection), "curl[4242] → 127.0.0.1:443");
    }

    #[test]
    fn the_other_way_and_nobody_known() {
        let record = sample::alone(
            None,
            Body::Data {
                direction: Direction::Received,
                offset: 0,
                length: 1,
                content: Policy::Full.apply(b"x"),
                view: View::All,
            },
        );
        assert_eq!(
            block(&record),
            "01:20:29.000000 ? ← unknown peer: 1 byte\n  < x\n"
        );
    }

    #[test]
    fn newlines_end_lines_and_a_lone_return_is_shown() {
        assert_eq!(payload(b""), "");
        assert_eq!(payload(b"\n"), "  > \n");
        assert_eq!(payload(b"a\n\nb"), "  > a\n  > \n  > b\n");
        assert_eq!(payload(b"a\rb\r\nc\r"), "  > a\\rb\n  > c\\r\n");
    }

    #[test]
    fn a_character_cut_at_either_end_is_still_text() {
        let text = "é…€".as_bytes();
        assert_eq!(payload(&text[1..]), "  > \\xa9…€\n");
        assert_eq!(payload(&text[..7]), "  > é…\\xe2\\x82\n");
        assert_eq!(payload(b"\xa9\n"), "  > \\xa9\n");
        assert_eq!(payload(b"\xa9a\nb"), "  > \\xa9a\n  > b\n");
        assert_eq!(payload(b"a\n\xe2"), "  > a\n  > \\xe2\n");
        assert!(payload(b"\xa9\xa9\xa9\xa9a").starts_with("  > 00000005  a9"));
        assert!(payload(b"a\xffb").starts_with("  > 00000005  61 ff 62"));
        assert!(payload(b"\xa9").starts_with("  > 00000005  a9"));
    }

    #[test]
    fn binary_is_dumped_and_cut() {
        assert_eq!(
            payload(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00hello \xff\x7f"),
            "  > 00000005  00 00 12 04 00 00 00 00  00 68 65 6c 6c 6f 20 ff  .........hello .\n  \
             > 00000015  7f                                                .\n"
        );
        let shown = payload(&[0; 256]);
        assert_eq!(shown.lines().count(), 16);
        let shown = payload(&[0; 257]);
        assert_eq!(shown.lines().count(), 17);
        assert!(shown.ends_with("\n  > … 1 more byte\n"));
        assert!(payload(&[0; 300]).ends_with("\n  > … 44 more bytes\n"));
    }

    /// A body that is no text does not make a dump of its head.
    #[test]
    fn a_head_is_text_whatever_follows() {
        let head = "HTTP/1.1 200 OK\r\na: b\r\n\r\n";
        let shown = "  > HTTP/1.1 200 OK\n  > a: b\n  > \n";
        let body = payload(&[head.as_bytes(), b"\x1f\x8b\0"].concat());
        let dumped = body.strip_prefix(shown).unwrap();
        assert!(dumped.starts_with("  > 0000001e  1f 8b 00  "), "{dumped}");
        assert_eq!(dumped.lines().count(), 1);
        // The last empty line, also behind a character that is none.
        let parts = payload("é\n\nb: c\n\nx\u{1}y\0".as_bytes());
        assert!(parts.starts_with("  > é\n  > \n  > b: c\n  > \n  > 0000000f  78 01 79 00"));
        for binary in ["\n\nab\0", "a\nb\0", "a\u{1}\n\nb\0", "\0a\n\n"] {
            let dumped = payload(binary.as_bytes());
            assert!(dumped.starts_with("  > 00000005  "), "{dumped}");
        }
    }

    /// Secrets are seen at a glance; what only looks like one of their places isn't painted.
    #[test]
    fn redactions_have_a_colour() {
        let redaction = |offset, length, hash| Redaction {
            offset,
            length,
            kind: "cookie",
            hash,
            several: 0,
        };
        let redactions = [
            redaction(15, 20, Some(0xabc)),
            redaction(37, 2, None),
            redaction(41, 3, None),
        ];
        // On the wire: ten bytes, a secret, a tab and a newline, a secret, CRLF, a secret.
        let text = "[redacted:[redacted:cookie:00000abc]\t\n[redacted:cookie]\r\n[redacted:cookie]";
        let marks = |redactions: &[Redaction]| -> Vec<_> {
            let marks = secrets(5, text, redactions, &[]).into_iter();
            marks.map(|mark| mark.range).collect()
        };
        assert_eq!(marks(&redactions), [10..36, 38..55, 57..74], "{text}");
        let (process, connection) = (sample::process(), sample::connection());
        let record = sample::shown(
            &process,
            &connection,
            39,
            Shown::Text(text, &redactions).into(),
        );
        let mut out = Vec::new();
        Encoder::new(true, true).encode(&record, &mut out);
        let coloured = String::from_utf8(out).unwrap();
        let painted: Vec<&str> = coloured
            .split(MAGENTA)
            .skip(1)
            .filter_map(|rest| rest.split(RESET).next())
            .collect();
        assert_eq!(
            painted,
            [
                "[redacted:cookie:00000abc]",
                "[redacted:cookie]",
                "[redacted:cookie]"
            ]
        );
        assert!(coloured.contains(&format!(" [redacted:{MAGENTA}")));
        assert_eq!(
            block(&record).split_once('\n').unwrap().1,
            "  > [redacted:[redacted:cookie:00000abc]    \n  > [redacted:cookie]\n  > [redacted:cookie]\n"
        );
        // Not where it should be: nothing is painted.
        assert!(marks(&[redaction(14, 20, Some(0xabc))]).is_empty());
        let overlapping = [redaction(5, 99, None), redaction(6, 1, None)];
        assert!(marks(&overlapping).is_empty());
    }

    /// A block of this connection, in colour or not.
    fn exchange(body: Body<'_>, colour: bool) -> String {
        let (process, connection) = (sample::process(), sample::connection());
        let record = Record {
            body,
            ..sample::shown(&process, &connection, 0, Policy::Full.apply(b""))
        };
        let mut out = Vec::new();
        Encoder::new(colour, true).encode(&record, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// The lines of a response's body.
    fn body(bytes: &[u8]) -> Vec<String> {
        let http = http(half(Vec::new(), b""), half(Vec::new(), bytes));
        let block = exchange(Body::Http(&http), false);
        block.lines().skip(2).map(str::to_owned).collect()
    }

    #[test]
    fn long_bodies_are_cut_with_a_line_that_says_so() {
        let lines = body("x\n".repeat(LINES).as_bytes());
        assert_eq!(lines.len(), LINES);
        let lines = body("12345\n".repeat(LINES + 1000).as_bytes());
        assert_eq!(lines.len(), LINES + 1);
        assert_eq!(lines[LINES], "  < … 1000 more lines, 5.9 KiB");
        // JSON is cut where it is laid out.
        let lines = body(format!("[{}1]", "1,".repeat(LINES)).as_bytes());
        assert_eq!(lines[LINES], "  < … 3 more lines, 10 B");
        let lines = body(&vec![b'y'; LONGEST + 2000]);
        let expected = format!("  < {} … 2.0 KiB more", "y".repeat(LONGEST));
        assert_eq!(lines, [expected]);
        // Binary: its type, and a few lines of it.
        let lines = body(&[0; 1000]);
        assert_eq!(lines[0], "  < (binary, 1000 B)");
        assert_eq!(lines.len(), 1 + DUMPED + 1);
        assert_eq!(lines[1 + DUMPED], "  < … 936 more bytes");
    }

    #[test]
    fn colours_say_how_it_went() {
        let painted = |status| {
            let mut http = http(half(Vec::new(), b""), half(Vec::new(), b""));
            http.status = Some(status);
            let block = exchange(Body::Http(&http), true);
            let at = block.find(&format!("{status}{RESET}")).unwrap();
            block[..at].rsplit('\x1b').next().unwrap().to_owned()
        };
        let colours = [200, 304, 404, 503].map(painted);
        let expected = [GREEN, CYAN, YELLOW, RED].map(|colour| colour.trim_start_matches('\x1b'));
        assert_eq!(colours, expected);
        // Keys and strings of JSON, and nothing of it without a terminal.
        let http = http(half(Vec::new(), b""), half(Vec::new(), br#"{"a":"b"}"#));
        let coloured = exchange(Body::Http(&http), true);
        assert!(coloured.contains(&format!("  {BLUE}\"a\"{RESET}: {GREEN}\"b\"{RESET}\n")));
        let plain = exchange(Body::Http(&http), false);
        assert!(!plain.contains('\x1b') && plain.contains("  \"a\": \"b\"\n"));
    }

    #[test]
    fn fields_without_names_are_counted() {
        let unknown = |name: Option<&str>| Header {
            name: name.map(Into::into),
            value: None,
        };
        let headers = vec![unknown(None), unknown(Some("cookie")), unknown(None)];
        let http = http(half(headers, b""), half(Vec::new(), b""));
        let block = exchange(Body::Http(&http), false);
        let lines: Vec<&str> = block.lines().skip(1).collect();
        let expected = [
            "  > cookie: (unknown)",
            "  > (2 unknown fields: the connection was joined in its middle)",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn words_of_a_command_line() {
        let quote = |argument| {
            let mut out = Vec::new();
            quoted(argument, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(quote("https://a.b:1/c-d_e.f"), "https://a.b:1/c-d_e.f");
        assert_eq!(quote("https://a.b/?c&d"), "'https://a.b/?c&d'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote("$(x)\n"), "'$(x)\\n'");
    }

    #[test]
    fn gaps_are_one_line() {
        let process = sample::process();
        let gap = |offset| {
            block(&sample::alone(
                Some(&process),
                Body::Gap {
                    direction: Direction::Received,
                    cause: Cause::RingFull,
                    offset,
                    length: 512,
                },
            ))
        };
        let head = "01:20:29.000000 curl[4242] in c0ffee ← unknown peer: 512 bytes missing";
        assert_eq!(
            gap(Some(9)),
            format!("{head} at 9: the ring buffer was full\n")
        );
        assert_eq!(gap(None), format!("{head}: the ring buffer was full\n"));
    }

    #[test]
    fn coverage_is_one_line_and_the_command() {
        let process = sample::process();
        let line = |coverage| block(&sample::alone(Some(&process), Body::Coverage(coverage)));
        let mut coverage = sample::coverage();
        assert_eq!(
            line(coverage.clone()),
            "curl[4242] in c0ffee libssl.so.3 OpenSSL 3.0.22: \
             probed at ssl_read_internal, ssl_write_internal (emulated), from its start\n  $ curl -s\n"
        );
        coverage.functions[1].instruction = Instruction::Stepped;
        coverage.seen_from = Some(sample::TIME);
        coverage.status = CoverageStatus::Partly;
        coverage.reason = Some("SSL_sendfile\x1b[2J".into());
        assert_eq!(
            line(coverage.clone()),
            "curl[4242] in c0ffee libssl.so.3 OpenSSL 3.0.22: partly probed at ssl_read_internal (emulated), \
             ssl_write_internal (stepped), from 01:20:29.000000 on: SSL_sendfile\\x1b[2J\n  $ curl -s\n"
        );
        coverage.functions.clear();
        coverage.library_name = None;
        coverage.library_version = None;
        coverage.status = CoverageStatus::Refused;
        coverage.reason = Some("a 32-bit program".into());
        assert_eq!(
            line(coverage),
            "curl[4242] in c0ffee libssl.so.3: refused: a 32-bit program\n  $ curl -s\n"
        );
    }

    #[test]
    fn stats_show_where_everything_is() {
        let stats = Stats {
            last: true,
            ledger: Ledger {
                bytes: Bytes {
                    seen: 100,
                    delivered: 60,
                    filtered: 10,
                    over_limit: 5,
                    in_flight: 4,
                    lost: Lost {
                        ring_full: 20,
                        unknown: 1,
                        ..Lost::default()
                    },
                },
                calls: Calls {
                    entries: 1,
                    returns: 1,
                    filtered: 3,
                    ..Calls::default()
                },
            },
            sinks: vec![SinkCount {
                name: "stdout".into(),
                sent: 9,
                dropped: 1,
            }],
            cpu_seconds: 0.125,
            memory_bytes: 3 << 19,
            features: vec![("links", "session")],
            content: "full",
            limits: vec!["no BTF".into()],
            bounds: Vec::new(),
            containers: None,
            shedding: Shedding {
                level: Level::Connections,
                one_in: 4,
                since: Some(WallTime(1_000_000_000)),
                bodies: 1,
                data: 2,
                data_bytes: 40,
                connections: 3,
            },
            governing: Some(Governing {
                limit: Some(0.05),
                cost: 0.0125,
                paused: 1,
                pauses: 2,
                paused_seconds: 30.0,
            }),
        };
        assert_eq!(
            block(&sample::alone(None, Body::Stats(&stats))),
            "In all\n  \
             100 bytes seen = 60 delivered + 21 lost + 10 filtered + 5 over the limit \
             + 4 in flight (lost: 20 ring full, 1 unknown)\n  \
             1 call entered = 1 returned + 0 unmatched + 0 in flight; 3 more filtered\n  \
             stdout: 9 records sent, 1 dropped\n  \
             the agent itself: 0.12 s of CPU, 1.5 MiB of memory; content: full\n  \
             its limits: bodies, data and some of the new connections are left out (1 in 4 is decoded); \
             so far: bodies 1, data 2 of 40 bytes, connections 3\n  \
             its probes cost others 0.013 CPUs of 0.050; so far: 2 pauses, 30 s in all; now: 1 file paused\n  \
             limit: no BTF\n"
        );
        let mut running = stats;
        running.last = false;
        running.shedding = Shedding::default();
        running.ledger.calls.unmatched = Unmatched {
            abandoned: 1,
            too_deep: 2,
            map_full: 3,
            exited: 4,
            other_stack: 5,
        };
        let block = block(&sample::alone(None, Body::Stats(&running)));
        assert!(block.starts_with("So far\n") && !block.contains("its limits"));
        assert!(block.contains(
            "+ 15 unmatched + 0 in flight; 3 more filtered \
             (unmatched: 1 abandoned, 2 too deep, 3 map full, 4 exited, 5 on another stack)\n"
        ));
    }

    /// S1: whatever is in a string, no control reaches the terminal.
    #[test]
    fn every_control_in_every_string() {
        for c in ('\0'..=char::MAX).filter(|c| escape::is_control(*c)) {
            let evil = format!("a{c}b");
            let process = Process {
                comm: Some(evil.as_str().into()),
                container_id: Some(evil.as_str().into()),
                ..sample::process()
            };
            let connection = Connection {
                id: evil.clone(),
                server_name: Some(evil.as_str().into()),
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
            let evils = vec![header(&evil, &evil), header("content-encoding", &evil)];
            let mut http = http(
                half(evils.clone(), evil.as_bytes()),
                half(evils.clone(), evil.as_bytes()),
            );
            if let Some(half) = &mut http.response {
                (half.trailers, half.body.decoded_size) = (evils.clone(), 99);
            }
            http.method = Some(evil.as_str().into());
            http.url.full = http.method.clone();
            http.interim = vec![Interim {
                status: Some(103),
                headers: evils,
            }];
            let picture = format!("{evil}\0");
            let mut binary = http.clone();
            binary.response = Some(half(
                vec![header("content-type", &evil)],
                picture.as_bytes(),
            ));
            let grpc = Grpc {
                http: http.clone(),
                service: None,
                method: None,
                status: Some(2),
                message: http.method.clone(),
                sent: Messages::default(),
                received: Messages::default(),
            };
            let sse = Sse {
                exchange: 0,
                url: http.url.clone(),
                number: 0,
                name: http.method.clone(),
                id: http.method.clone(),
                size: 3,
                data: Shown::Raw(evil.as_bytes()).into(),
                is_cut: false,
                is_call: false,
            };
            let socket = WebSocket {
                direction: Direction::Sent,
                kind: "text",
                close_code: None,
                size: 3,
                content: Shown::Text(&evil, &[]).into(),
                is_cut: false,
                is_call: false,
            };
            let with = |body| Record {
                body,
                ..sample::data(&process, &connection, b"", Policy::Full)
            };
            let records = [
                with(Body::Http(&http)),
                with(Body::Http(&binary)),
                with(Body::Grpc(&grpc)),
                with(Body::Sse(&sse)),
                with(Body::WebSocket(&socket)),
                sample::data(&process, &connection, evil.as_bytes(), Policy::Full),
                sample::alone(Some(&process), Body::Coverage(coverage)),
                sample::alone(None, Body::Stats(&stats)),
            ];
            for record in records {
                let block = block(&record);
                assert!(
                    block
                        .split('\n')
                        .all(|line| !line.chars().any(escape::is_control)),
                    "{c:?}: {block}"
                );
                assert!(!block.contains(&evil) || c == '\n');
            }
        }
    }

    #[test]
    fn colour_is_the_only_difference() {
        let (process, connection) = (sample::process(), sample::connection());
        for payload in [b"GET /\n\x1b[0m".as_slice(), b"\0\x1b\xff"] {
            let record = sample::data(&process, &connection, payload, Policy::Full);
            let mut out = Vec::new();
            Encoder::new(true, true).encode(&record, &mut out);
            let mut coloured = String::from_utf8(out).unwrap();
            assert!(coloured.contains(CYAN) && coloured.contains(DIM));
            let label = LABELS[3];
            for style in [DIM, RED, GREEN, YELLOW, CYAN, RESET, label] {
                coloured = coloured.replace(style, "");
            }
            assert_eq!(coloured, block(&record));
        }
    }
}
