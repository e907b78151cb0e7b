//! Text for people: like `curl -v`, for the whole machine.
//!
//! ```text
//! 09:30:01.250000 curl[4242] → localhost (127.0.0.1:443): 41 bytes
//!   > GET / HTTP/1.1
//!   > Host: localhost
//!   >
//! ```

use std::fmt::Arguments;
use std::io::Write as _;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;

use agent_ebpf::Direction;

use super::instruction_name;
use crate::escape;
use crate::record::{
    Attribution, Body, Bytes, Calls, Cause, Clear, Connection, Content, Coverage, CoverageStatus,
    Grpc, Header, Http, HttpHalf, Process, Record, Role, Sse, Stats, WallTime, WebSocket,
};
use crate::redact::{Redaction, Shown};

/// Turns records into blocks of lines.
pub(super) struct Encoder {
    pub(super) colour: bool,
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const MAGENTA: &str = "\x1b[35m";
const CYAN: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

impl Encoder {
    /// Appends one block.
    pub(super) fn encode(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        match &record.body {
            Body::Http(http) => self.exchange(record, http, None, out),
            Body::Grpc(grpc) => self.exchange(record, &grpc.http, Some(grpc), out),
            Body::Sse(sse) => self.sse(record, sse, out),
            Body::WebSocket(socket) => self.websocket(record, socket, out),
            Body::Data {
                direction,
                offset,
                length,
                content,
            } => {
                self.head(record, *direction, out);
                print(out, format_args!("{}\n", plural(*length, "byte")));
                self.payload(*direction, *offset, *content, out);
            }
            Body::Gap {
                direction,
                cause,
                offset,
                length,
            } => {
                self.head(record, *direction, out);
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

    /// When, who, which way and with whom.
    fn head(&self, record: &Record<'_>, direction: Direction, out: &mut Vec<u8>) {
        self.painted(DIM, out, |out| time(record.time, out));
        out.push(b' ');
        self.painted(colour_of(direction), out, |out| {
            process(record.process, out);
            print(
                out,
                format_args!(
                    "{}",
                    match direction {
                        Direction::Received => " ← ",
                        Direction::Sent => " → ",
                    }
                ),
            );
            match record.connection {
                Some(connection) => peer(connection, out),
                None => out.extend_from_slice(UNKNOWN),
            }
        });
        out.extend_from_slice(b": ");
    }

    fn payload(&self, direction: Direction, offset: u64, content: Content<'_>, out: &mut Vec<u8>) {
        let bytes = match content.shown() {
            Shown::Nothing => return,
            Shown::Encoded => return self.withheld(direction, out),
            Shown::Text(text, redactions) => {
                let marks = marks(offset, text, redactions);
                return self.lines(direction, &[], (text, &marks), &[], out);
            }
            Shown::Raw(bytes) => bytes,
        };
        if let Some((before, text, after)) = as_text(bytes) {
            return self.lines(direction, before, (text, &[]), after, out);
        }
        let head = head_before(bytes);
        self.lines(direction, &[], (head, &[]), &[], out);
        let (offset, rest) = (offset + head.len() as u64, &bytes[head.len()..]);
        self.dump(direction, offset, rest, out);
    }

    /// In place of what redaction can't see into.
    fn withheld(&self, direction: Direction, out: &mut Vec<u8>) {
        self.margin(direction, out);
        self.painted(DIM, out, |out| {
            out.extend_from_slice(b"(withheld: not plain text)");
        });
        out.push(b'\n');
    }

    fn lines(
        &self,
        direction: Direction,
        before: &[u8],
        (text, mut marks): (&str, &[Range<usize>]),
        after: &[u8],
        out: &mut Vec<u8>,
    ) {
        let cut = |bytes: &[u8], out: &mut Vec<u8>| {
            for byte in bytes {
                escape::byte(*byte, out);
            }
        };
        let mut before = before;
        let mut start = 0;
        let mut lines = text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let last = lines.peek().is_none();
            // A newline ends a line, it doesn't begin an empty one.
            if last && line.is_empty() && after.is_empty() {
                break;
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
            let mut shown = 0;
            while let [mark, rest @ ..] = marks
                && mark.end < next
            {
                spread(&line[shown..mark.start - start], out);
                shown = mark.end - start;
                self.painted(MAGENTA, out, |out| {
                    escape::visible(&text[mark.clone()], out);
                });
                marks = rest;
            }
            spread(&line[shown..], out);
            if last {
                cut(after, out);
            }
            out.push(b'\n');
            start = next;
        }
    }

    /// Bytes as hex and ASCII, with their position in the stream.
    fn dump(&self, direction: Direction, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
        const LINES: usize = 16;
        const WIDTH: usize = 16;
        let shown = bytes.len().min(LINES * WIDTH);
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

    /// One block: what was asked and what came of it, then both in full.
    ///
    /// ```text
    /// 09:30:01.250000 curl[4242] → localhost (127.0.0.1:443): GET https://localhost/ 200 in 1.2 ms
    ///   > user-agent: curl/8
    ///   < content-type: text/plain
    ///   <
    ///   < hello
    /// ```
    fn exchange(&self, record: &Record<'_>, http: &Http, grpc: Option<&Grpc>, out: &mut Vec<u8>) {
        let asks = match record.connection.and_then(|connection| connection.role) {
            Some(Role::Server) => Direction::Received,
            Some(Role::Client) | None => Direction::Sent,
        };
        self.head(record, asks, out);
        self.painted(BOLD, out, |out| {
            escape::visible(http.method.as_deref().unwrap_or("?"), out);
            out.push(b' ');
            let url = http.url.full.as_ref().or(http.url.path.as_ref());
            escape::visible(url.map_or("?", Clear::as_str), out);
        });
        out.push(b' ');
        let colour = match http.status {
            Some(100..400) => GREEN,
            Some(400..500) => YELLOW,
            _ => RED,
        };
        self.painted(colour, out, |out| match (http.status, &http.response) {
            (Some(status), _) => print(out, format_args!("{status}")),
            (None, Some(_)) => out.extend_from_slice(b"unknown status"),
            (None, None) => out.extend_from_slice(b"no response"),
        });
        if let Some(grpc) = grpc {
            self.call(grpc, out);
        }
        self.painted(DIM, out, |out| {
            if let (Some(request), Some(response)) = (&http.request, &http.response) {
                let nanoseconds = response.ended.0.saturating_sub(request.began.0);
                print(out, format_args!(" in {}", duration(nanoseconds)));
            }
            let size = |half: &Option<HttpHalf>| half.as_ref().map_or(0, |half| half.body.size);
            let (up, down) = (size(&http.request), size(&http.response));
            if up > 0 {
                print(out, format_args!(", {} asked", plural(up, "byte")));
            }
            if down > 0 {
                print(out, format_args!(", {} answered", plural(down, "byte")));
            }
        });
        if !record.complete {
            self.painted(RED, out, |out| out.extend_from_slice(b", incomplete"));
        }
        out.push(b'\n');
        let answers = match asks {
            Direction::Sent => Direction::Received,
            Direction::Received => Direction::Sent,
        };
        if let Some(request) = &http.request {
            self.half(asks, request, out);
        }
        if let Some(response) = &http.response {
            self.half(answers, response, out);
        }
    }

    fn call(&self, grpc: &Grpc, out: &mut Vec<u8>) {
        print(out, format_args!(", gRPC"));
        if let Some(status) = grpc.status {
            let colour = if status == 0 { GREEN } else { RED };
            self.painted(colour, out, |out| {
                print(out, format_args!(" status {status}"))
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

    fn half(&self, direction: Direction, half: &HttpHalf, out: &mut Vec<u8>) {
        self.headers(direction, &half.headers, out);
        let body = &half.body;
        if body.size > 0 {
            self.margin(direction, out);
            out.push(b'\n');
            match body.content.content().shown() {
                Shown::Text(text, redactions) => {
                    let (text, marks) = pretty(text, &marks(0, text, redactions));
                    self.lines(direction, &[], (&text, &marks), &[], out);
                }
                Shown::Raw(bytes) => match str::from_utf8(bytes) {
                    Ok(text) => {
                        let (text, _) = pretty(text, &[]);
                        self.lines(direction, &[], (&text, &[]), &[], out);
                    }
                    Err(_) => self.payload(direction, 0, body.content.content(), out),
                },
                Shown::Nothing | Shown::Encoded => {
                    self.payload(direction, 0, body.content.content(), out);
                }
            }
        }
        let note = match (body.unreadable, body.is_cut) {
            (Some(why), _) => Some(format!("(not all of it can be read: {why})")),
            (None, true) => Some(format!("(cut: {} in all)", plural(body.size, "byte"))),
            (None, false) => None,
        };
        if let Some(note) = note {
            self.margin(direction, out);
            self.painted(YELLOW, out, |out| print(out, format_args!("{note}")));
            out.push(b'\n');
        }
        self.headers(direction, &half.trailers, out);
    }

    fn headers(&self, direction: Direction, headers: &[Header], out: &mut Vec<u8>) {
        for header in headers {
            self.margin(direction, out);
            self.painted(DIM, out, |out| {
                escape::visible(header.name.as_deref().unwrap_or("(unknown)"), out);
                out.push(b':');
            });
            out.push(b' ');
            escape::visible(header.value.as_deref().unwrap_or("(unknown)"), out);
            out.push(b'\n');
        }
    }

    /// As it happens: an event of a response that goes on.
    fn sse(&self, record: &Record<'_>, sse: &Sse, out: &mut Vec<u8>) {
        let direction = match record.connection.and_then(|connection| connection.role) {
            Some(Role::Server) => Direction::Sent,
            Some(Role::Client) | None => Direction::Received,
        };
        self.head(record, direction, out);
        self.painted(BOLD, out, |out| {
            print(out, format_args!("event {}", sse.number));
            if let Some(name) = &sse.name {
                out.push(b' ');
                escape::visible(name, out);
            }
        });
        out.push(b'\n');
        self.payload(direction, 0, sse.data.content(), out);
    }

    fn websocket(&self, record: &Record<'_>, socket: &WebSocket, out: &mut Vec<u8>) {
        self.head(record, socket.direction, out);
        self.painted(BOLD, out, |out| print(out, format_args!("{}", socket.kind)));
        if let Some(code) = socket.close_code {
            print(out, format_args!(" {code}"));
        }
        print(out, format_args!(", {}", plural(socket.size, "byte")));
        if socket.is_cut {
            self.painted(YELLOW, out, |out| out.extend_from_slice(b", cut"));
        }
        out.push(b'\n');
        if socket.size > 0 {
            self.payload(socket.direction, 0, socket.content.content(), out);
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

/// JSON in lines, one value each; the marks with it. Anything else is as it was.
///
/// It is never parsed: a cut or redacted document is laid out as far as it goes.
fn pretty(text: &str, marks: &[Range<usize>]) -> (String, Vec<Range<usize>>) {
    if !matches!(text.trim_start().bytes().next(), Some(b'{' | b'[')) || text.contains('\n') {
        return (text.to_owned(), marks.to_vec());
    }
    const DEEPEST: usize = 32;
    let mut out = String::with_capacity(text.len() * 2);
    let mut moved = Vec::with_capacity(marks.len());
    let mut rest = marks.iter().peekable();
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = text.char_indices().peekable();
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        (0..depth.min(DEEPEST)).for_each(|_| out.push_str("  "));
    };
    while let Some((at, character)) = characters.next() {
        if let Some(mark) = rest.next_if(|mark| mark.start <= at) {
            // What stands for a secret is no JSON.
            let start = out.len();
            out.push_str(&text[at..mark.end]);
            moved.push(start..out.len());
            while characters.next_if(|(at, _)| *at < mark.end).is_some() {}
            continue;
        }
        let next = characters.peek().map(|(_, next)| *next);
        match character {
            _ if in_string => {
                out.push(character);
                in_string = escaped || character != '"';
                escaped = !escaped && character == '\\';
            }
            '"' => {
                out.push('"');
                (in_string, escaped) = (true, false);
            }
            '{' | '[' if matches!(next, Some('}' | ']')) => {
                out.push(character);
                out.extend(characters.next().map(|(_, next)| next));
            }
            '{' | '[' => {
                depth += 1;
                out.push(character);
                new_line(&mut out, depth);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(',');
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            ' ' | '\t' => {}
            other => out.push(other),
        }
    }
    (out, moved)
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

/// Where in the text the redactions are, which say where they are on the wire.
fn marks(offset: u64, text: &str, redactions: &[Redaction]) -> Vec<Range<usize>> {
    // What all redactions before have added, and taken away.
    let (mut longer, mut shorter) = (0, 0);
    let mark = |redaction: &Redaction| {
        let label = redaction.label();
        let start = (redaction.offset.checked_sub(offset)? + longer).checked_sub(shorter)? as usize;
        longer += label.len() as u64;
        shorter += redaction.length;
        let mark = start..start + label.len();
        (text.get(mark.clone()) == Some(&label)).then_some(mark)
    };
    redactions.iter().filter_map(mark).collect()
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

/// `curl[4242]`, and its container as people write it
fn process(process: Option<&Process>, out: &mut Vec<u8>) {
    let Some(process) = process else {
        return out.push(b'?');
    };
    escape::visible(process.comm.as_deref().unwrap_or("?"), out);
    print(out, format_args!("[{}]", process.pid));
    if let Some(id) = &process.container_id {
        let short = &id[..id.floor_char_boundary(CONTAINER)];
        out.extend_from_slice(b" in ");
        escape::visible(short, out);
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

fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

fn colour_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Received => GREEN,
        Direction::Sent => CYAN,
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
    use super::super::sample;
    use super::*;
    use crate::locate::Instruction;
    use crate::record::{Ledger, Lost, SinkCount, Unmatched};
    use crate::redact::Policy;

    fn block(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        Encoder { colour: false }.encode(record, &mut out);
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
            "01:20:29.000000 curl[4242] in c0ffee → example.org ([::1]:443): 44 bytes\n  \
             > GET / HTTP/1.1\n  \
             > Host: localhost\n  \
             > \n  \
             > {    \"a\": 1}\n"
        );
        let record = sample::data(&process, &connection, request, Policy::None);
        assert_eq!(
            block(&record),
            "01:20:29.000000 curl[4242] in c0ffee → example.org ([::1]:443): 44 bytes\n"
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
            let head = block.strip_prefix("01:20:29.000000 ").unwrap();
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
        process.container_id = None;
        assert_eq!(head(&process, &connection), "curl[4242] → unknown peer");
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
        };
        let redactions = [
            redaction(15, 20, Some(0xabc)),
            redaction(37, 2, None),
            redaction(41, 3, None),
        ];
        // On the wire: ten bytes, a secret, a tab and a newline, a secret, CRLF, a secret.
        let text = "[redacted:[redacted:cookie:00000abc]\t\n[redacted:cookie]\r\n[redacted:cookie]";
        assert_eq!(
            marks(5, text, &redactions),
            [10..36, 38..55, 57..74],
            "{text}"
        );
        let (process, connection) = (sample::process(), sample::connection());
        let record = sample::shown(
            &process,
            &connection,
            39,
            Shown::Text(text, &redactions).into(),
        );
        let mut out = Vec::new();
        Encoder { colour: true }.encode(&record, &mut out);
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
        assert!(marks(5, text, &[redaction(14, 20, Some(0xabc))]).is_empty());
        let overlapping = [redaction(5, 99, None), redaction(6, 1, None)];
        assert!(marks(5, text, &overlapping).is_empty());
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
        };
        assert_eq!(
            block(&sample::alone(None, Body::Stats(stats.clone()))),
            "In all\n  \
             100 bytes seen = 60 delivered + 21 lost + 10 filtered + 5 over the limit \
             + 4 in flight (lost: 20 ring full, 1 unknown)\n  \
             1 call entered = 1 returned + 0 unmatched + 0 in flight; 3 more filtered\n  \
             stdout: 9 records sent, 1 dropped\n  \
             the agent itself: 0.12 s of CPU, 1.5 MiB of memory; content: full\n  \
             limit: no BTF\n"
        );
        let mut running = stats;
        running.last = false;
        running.ledger.calls.unmatched = Unmatched {
            abandoned: 1,
            too_deep: 2,
            map_full: 3,
            exited: 4,
            other_stack: 5,
        };
        let block = block(&sample::alone(None, Body::Stats(running)));
        assert!(block.starts_with("So far\n"));
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
            let records = [
                sample::data(&process, &connection, evil.as_bytes(), Policy::Full),
                sample::alone(Some(&process), Body::Coverage(coverage)),
                sample::alone(None, Body::Stats(stats)),
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
            Encoder { colour: true }.encode(&record, &mut out);
            let mut coloured = String::from_utf8(out).unwrap();
            assert!(coloured.contains(CYAN) && coloured.contains(DIM));
            for style in [DIM, RED, GREEN, YELLOW, CYAN, RESET] {
                coloured = coloured.replace(style, "");
            }
            assert_eq!(coloured, block(&record));
        }
    }
}
