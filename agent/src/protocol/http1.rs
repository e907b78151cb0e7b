//! HTTP/1.0 and 1.1 (RFC 9112): heads, framing of bodies, which response answers which request.
//!
//! A hole in a stream is an input. Inside a body whose length is known it costs what it covers; elsewhere the
//! place of the next message is unknown, and that lane looks for a head where a TLS call begins, which is
//! where programs begin one.
//!
//! Responses carry no name of what they answer: they come in order. After a hole that may hide a message the
//! order still tells as long as the client waits for each response before it asks again, as nearly all do.
//! One that was seen to pipeline is no longer believed after a hole: its messages stay alone. A hole is told of
//! when its lane goes on, which may be after the other lane's next message: a request behind half a response is no
//! sign yet.

use std::collections::VecDeque;

use httparse::{EMPTY_HEADER, Header, ParserConfig, Status};
use memchr::{memchr, memmem};

use super::{
    Limit, Message, Next, Out, Side,
    head::{Fields, Head, Request, Response, Version},
    websocket::Deflate,
};
use crate::{plaintext::Plaintext, planted::Mistake};

/// Longest head.
const HEAD_MAX: usize = 256 << 10;
/// Most fields of a head; the first number of them needs no memory of its own.
const FIELDS_USUAL: usize = 64;
const FIELDS_MAX: usize = 1024;
/// Longest line with the size of a chunk and its extensions.
const LINE_MAX: usize = 4096;
/// Most requests that wait for their responses.
const PENDING_MAX: usize = 1024;

/// Both lanes of a connection.
#[derive(Debug)]
pub struct Http1 {
    request: Lane,
    response: Lane,
    /// Requests whose responses have not ended.
    pending: VecDeque<Asked>,
    next: u64,
    /// The client asks again before it was answered.
    pipelines: bool,
    /// The client asked again, and the end of the answer before was not seen. It pipelines if that comes now. If it is
    /// in a hole, which is told of only when the lane goes on, the client may well have waited for it.
    is_ahead: bool,
    /// Nobody knows any more which response answers which request.
    is_astray: bool,
    /// Bytes of the call that were used before.
    at: usize,
}

#[derive(Debug)]
struct Lane {
    state: State,
    /// The beginning of a head or line that is not whole.
    buffer: Vec<u8>,
    /// When the first byte of the head came.
    began: u64,
    exchange: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A message begins here.
    Head,
    Body(Body),
    /// Where the next message begins is not known.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// So many bytes are left.
    Length(u64),
    ChunkLine,
    Chunk(u64),
    /// The line's end behind a chunk.
    ChunkEnd,
    Trailers,
    /// All there is until the connection ends.
    Rest,
}

/// A request, as far as its response depends on it.
#[derive(Clone, Copy, Debug)]
struct Asked {
    exchange: u64,
    method: Method,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
    Unknown,
    /// Its name was not whole when a hole came: what looks like a request next may be the rest of it.
    Torn,
}

/// How far a feed went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    All,
    /// What is behind so many bytes belongs to another protocol, on both lanes.
    Switched(usize, Next),
}

/// What a lane finds at its next step.
enum Step {
    /// So many bytes were used.
    Used(usize),
    Switched(usize, Next),
}

impl Http1 {
    /// A connection from its first byte, or from somewhere.
    pub fn new(from_start: bool) -> Http1 {
        let lane = || Lane {
            state: match from_start {
                true => State::Head,
                false => State::Lost,
            },
            buffer: Vec::new(),
            began: 0,
            exchange: 0,
        };
        Http1 {
            request: lane(),
            response: lane(),
            pending: VecDeque::new(),
            next: 0,
            pipelines: false,
            is_ahead: false,
            is_astray: false,
            at: 0,
        }
    }

    /// Counts on from the exchanges that were there before, in another protocol.
    pub fn behind(mut self, exchanges: u64) -> Http1 {
        self.next = exchanges;
        self
    }

    /// How many exchanges began.
    pub fn begun(&self) -> u64 {
        self.next
    }

    /// The next bytes of a lane, as one TLS call carried them.
    pub fn feed(&mut self, side: Side, bytes: &[u8], time: u64, out: Out<'_>) -> Fed {
        self.at = 0;
        while self.at < bytes.len() {
            match self.step(side, &bytes[self.at..], time, out) {
                Step::Used(used) => self.at += used,
                Step::Switched(used, next) => return Fed::Switched(self.at + used, next),
            }
        }
        self.at = 0;
        Fed::All
    }

    /// The next `length` bytes of a lane are missing.
    pub fn gap(&mut self, side: Side, length: u64, out: Out<'_>) {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        let hole = |length| Message::Hole {
            exchange,
            side,
            length,
            is_inside: true,
        };
        match &mut lane.state {
            State::Body(Body::Rest) => out(hole(length)),
            State::Body(Body::Length(left)) if length < *left => {
                *left -= length;
                out(hole(length));
            }
            State::Body(Body::Chunk(left)) if length <= *left => {
                *left -= length;
                if *left == 0 {
                    lane.state = State::Body(Body::ChunkEnd);
                }
                out(hole(length));
            }
            State::Body(Body::Length(left)) => {
                let (covered, behind) = (*left, length - *left);
                out(hole(covered));
                self.end(side, true, out);
                if behind > 0 {
                    self.pass_over(side, out);
                    self.lose(side, out);
                }
            }
            State::Body(_) => {
                out(hole(length));
                self.lose(side, out);
            }
            State::Head => {
                if lane.buffer.is_empty() {
                    self.pass_over(side, out);
                }
                self.cut_head(side, 0, length, out);
                self.lose(side, out);
            }
            State::Lost => self.lose(side, out),
        }
    }

    /// The connection is over.
    pub fn close(&mut self, out: Out<'_>) {
        for side in [Side::Request, Side::Response] {
            match self.lane(side).state {
                State::Body(Body::Rest) => self.end(side, true, out),
                State::Body(_) => self.end(side, false, out),
                State::Head => self.cut_head(side, 0, 0, out),
                State::Lost => {}
            }
            self.lane(side).state = State::Lost;
        }
        self.abandon(out);
    }

    fn lane(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    fn step(&mut self, side: Side, bytes: &[u8], time: u64, out: Out<'_>) -> Step {
        if side == Side::Response && self.is_ahead {
            self.is_ahead = false;
            self.pipelines = true;
        }
        let lane = self.lane(side);
        let exchange = lane.exchange;
        let body = |bytes| Message::Body {
            exchange,
            side,
            bytes: Plaintext::new(bytes),
        };
        let used = match &mut lane.state {
            State::Head => return self.head(side, bytes, time, out),
            State::Lost => return Step::Used(self.search(side, bytes, out)),
            State::Body(Body::Rest) => {
                out(body(bytes));
                bytes.len()
            }
            State::Body(Body::Length(left)) => {
                let (used, is_over) = take(left, bytes);
                out(body(&bytes[..used]));
                if is_over {
                    self.end(side, true, out);
                }
                used
            }
            State::Body(Body::Chunk(left)) => {
                let (used, is_over) = take(left, bytes);
                if is_over {
                    lane.state = State::Body(Body::ChunkEnd);
                }
                out(body(&bytes[..used]));
                used
            }
            State::Body(Body::ChunkLine) => self.chunk_line(side, bytes, out),
            State::Body(Body::ChunkEnd) => {
                // An odd client ends lines by LF alone.
                let end = memchr(b'\n', bytes);
                match end {
                    Some(0 | 1) => lane.state = State::Body(Body::ChunkLine),
                    None if bytes == b"\r" => {}
                    _ => self.lose(side, out),
                }
                end.map_or(bytes.len(), |end| end + 1).min(2)
            }
            State::Body(Body::Trailers) => self.trailers(side, bytes, out),
        };
        Step::Used(used)
    }

    /// A head, if it is whole.
    fn head(&mut self, side: Side, bytes: &[u8], time: u64, out: Out<'_>) -> Step {
        let lane = self.lane(side);
        if lane.buffer.is_empty() {
            // Empty lines before a message mean nothing (RFC 9112, section 2.2).
            let blank = bytes
                .iter()
                .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                .count();
            if blank > 0 {
                return Step::Used(blank);
            }
            lane.began = time;
            if let Some(end) = head_end(bytes, 0) {
                return self.whole_head(side, &bytes[..end], end, out);
            }
        }
        let known = lane.buffer.len();
        let room = HEAD_MAX.saturating_sub(known);
        lane.buffer
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let begun = if Mistake::Http1.is_planted() { 0 } else { 3 };
        if let Some(end) = head_end(&lane.buffer, known.saturating_sub(begun)) {
            let head = std::mem::take(&mut lane.buffer);
            return self.whole_head(side, &head[..end], end - known, out);
        }
        if bytes.len() > room {
            out(Message::Limit(Limit::Head));
            self.cut_head(side, bytes.len().min(room), 0, out);
            self.lose(side, out);
        }
        Step::Used(bytes.len().min(room))
    }

    fn whole_head(&mut self, side: Side, head: &[u8], used: usize, out: Out<'_>) -> Step {
        let parsed = match side {
            Side::Request => request(head).map(Head::Request),
            Side::Response => response(head).map(Head::Response),
        };
        match parsed {
            Ok(Head::Request(head)) => {
                self.asked(head, out);
                Step::Used(used)
            }
            Ok(Head::Response(head)) => match self.answered(head, out) {
                Some(next) => Step::Switched(used, next),
                None => Step::Used(used),
            },
            Err(why) => {
                if why == Malformed::TooManyFields {
                    out(Message::Limit(Limit::Head));
                }
                out(Message::Undecoded {
                    side,
                    bytes: Plaintext::new(head),
                    end: self.at + used,
                });
                if side == Side::Request {
                    // Something was asked, and will be answered.
                    self.ask(Method::Unknown);
                    self.bound(out);
                }
                self.lose(side, out);
                Step::Used(used)
            }
        }
    }

    fn asked(&mut self, head: Request, out: Out<'_>) {
        let method = method_of(&head);
        let exchange = match self.torn() {
            Some(asked) => {
                asked.method = method;
                asked.exchange
            }
            None => {
                self.settle(out);
                self.ask(method)
            }
        };
        let framing = framing_of_request(&head.fields);
        let began = self.request.began;
        self.request.exchange = exchange;
        out(Message::Head {
            exchange,
            head: Head::Request(head),
            began,
        });
        self.bound(out);
        self.enter(Side::Request, framing, out);
    }

    /// Of more requests than this none waits for an answer: nobody knows any more whose one is.
    fn bound(&mut self, out: Out<'_>) {
        if self.pending.len() > PENDING_MAX {
            out(Message::Limit(Limit::Pipeline));
            self.is_astray = true;
        }
        if self.is_astray {
            self.abandon(out);
        }
    }

    /// The request that a hole tore, if nothing has come of its answer.
    fn torn(&mut self) -> Option<&mut Asked> {
        let is_answered = matches!(self.response.state, State::Body(_));
        let last = self.pending.back_mut();
        last.filter(|asked| !is_answered && asked.method == Method::Torn)
    }

    /// A request comes: what came before it is answered, unless this client does not wait for that.
    fn settle(&mut self, out: Out<'_>) {
        if self.pending.is_empty() {
            return;
        }
        if self.response.state == State::Lost {
            self.abandon(out);
        } else if self.at > 0 {
            // In one call with what came before: nothing can have been read in between.
            self.pipelines = true;
        } else {
            self.is_ahead = true;
        }
    }

    /// The beginning of the next response is in a hole. Whose that is matters only if more are asked for.
    fn pass_over(&mut self, side: Side, out: Out<'_>) {
        if side == Side::Request || !self.is_ahead {
            return;
        }
        if let Some(asked) = self.pending.pop_front() {
            out(Message::End {
                exchange: asked.exchange,
                side,
                is_whole: false,
            });
        }
        self.is_ahead = self.pending.len() > 1;
    }

    /// Nothing will be known to answer what was asked so far, but for the response that we are inside of.
    fn abandon(&mut self, out: Out<'_>) {
        let is_inside = matches!(self.response.state, State::Body(_));
        let kept = usize::from(is_inside).min(self.pending.len());
        for asked in self.pending.split_off(kept) {
            out(Message::End {
                exchange: asked.exchange,
                side: Side::Response,
                is_whole: false,
            });
        }
    }

    /// Makes an exchange of what comes, to be answered.
    fn ask(&mut self, method: Method) -> u64 {
        let exchange = self.next;
        self.next += 1;
        self.pending.push_back(Asked { exchange, method });
        exchange
    }

    fn answered(&mut self, head: Response, out: Out<'_>) -> Option<Next> {
        if self.pending.is_empty() {
            // Its request was not seen. An interim response keeps the exchange for the one that follows.
            self.ask(Method::Unknown);
        }
        let Asked { exchange, method } = self.pending[0];
        self.response.exchange = exchange;
        let began = self.response.began;
        let is_interim = head.is_interim();
        let status = head.status.unwrap_or_default();
        let next = match (status, method) {
            (101, _) if head.fields.list("upgrade").any(is_websocket) => {
                Some(Next::WebSocket(Deflate::agreed(&head.fields)))
            }
            (101, _) | (200..=299, Method::Connect) => Some(Next::Tunnel),
            _ => None,
        };
        let framing = framing_of_response(&head, method);
        out(Message::Head {
            exchange,
            head: Head::Response(head),
            began,
        });
        if is_interim {
            return None;
        }
        if next.is_some() {
            self.end(Side::Response, true, out);
            return next;
        }
        self.enter(Side::Response, framing, out);
        None
    }

    /// The body begins.
    fn enter(&mut self, side: Side, framing: Framing, out: Out<'_>) {
        let body = match framing {
            Framing::None | Framing::Length(0) => return self.end(side, true, out),
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::ChunkLine,
            Framing::Rest => Body::Rest,
            Framing::Unknown => {
                self.end(side, false, out);
                return self.lose(side, out);
            }
        };
        self.lane(side).state = State::Body(body);
    }

    /// The message is over, and another one may begin.
    fn end(&mut self, side: Side, is_whole: bool, out: Out<'_>) {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        lane.state = State::Head;
        lane.buffer.clear();
        out(Message::End {
            exchange,
            side,
            is_whole,
        });
        if side == Side::Response {
            self.pending.pop_front();
            self.is_ahead &= self.pending.len() > 1;
        }
    }

    /// Nobody knows where the next message begins.
    fn lose(&mut self, side: Side, out: Out<'_>) {
        if let State::Body(_) = self.lane(side).state {
            self.end(side, false, out);
        }
        let lane = self.lane(side);
        lane.state = State::Lost;
        lane.buffer = Vec::new();
        if self.pipelines {
            self.is_astray = true;
            self.abandon(out);
        }
        if side == Side::Response && std::mem::take(&mut self.is_ahead) {
            // How many of those who wait are answered in the hole nobody knows.
            self.abandon(out);
        }
    }

    /// A hole, or the end, cuts a head: what came of it is said. Of this call it has `used` bytes.
    fn cut_head(&mut self, side: Side, used: usize, missing: u64, out: Out<'_>) {
        let lane = self.lane(side);
        let began = lane.began;
        let bytes = std::mem::take(&mut lane.buffer);
        if bytes.is_empty() {
            return;
        }
        let lines = memchr::memrchr(b'\n', &bytes).map_or(0, |end| end + 1);
        let head = [&bytes[..lines], b"\r\n"].concat();
        let head = match side {
            Side::Request => request(&head).map(Head::Request),
            Side::Response => response(&head).map(Head::Response),
        };
        let method = match &head {
            Ok(Head::Request(head)) => method_of(head),
            Err(_) if side == Side::Request => Method::Torn,
            _ => Method::Unknown,
        };
        let exchange = match self.pending.front() {
            Some(asked) if side == Side::Response => asked.exchange,
            _ => {
                self.settle(out);
                self.ask(method)
            }
        };
        let Ok(head) = head else {
            out(Message::Undecoded {
                side,
                bytes: Plaintext::new(&bytes),
                end: self.at + used,
            });
            if side == Side::Request {
                self.bound(out);
            }
            return;
        };
        self.lane(side).exchange = exchange;
        let is_interim = matches!(&head, Head::Response(head) if head.is_interim());
        out(Message::Head {
            exchange,
            head,
            began,
        });
        if is_interim {
            // The response itself may follow the hole.
            return;
        }
        if missing > 0 {
            out(Message::Hole {
                exchange,
                side,
                length: missing,
                is_inside: false,
            });
        }
        self.end(side, false, out);
        if side == Side::Request {
            self.bound(out);
        }
    }

    /// Looks for a head where one may begin.
    fn search(&mut self, side: Side, bytes: &[u8], out: Out<'_>) -> usize {
        let found = if self.at == 0 && is_start(side, bytes) {
            Some(0)
        } else {
            behind_last_chunk(side, bytes)
        };
        let skipped = found.unwrap_or(bytes.len());
        if skipped > 0 {
            out(Message::Undecoded {
                side,
                bytes: Plaintext::new(&bytes[..skipped]),
                end: self.at + skipped,
            });
        }
        if found.is_some() {
            self.lane(side).state = State::Head;
        }
        skipped
    }

    fn chunk_line(&mut self, side: Side, bytes: &[u8], out: Out<'_>) -> usize {
        let lane = self.lane(side);
        let Some(end) = memchr(b'\n', bytes) else {
            lane.buffer.extend_from_slice(bytes);
            if lane.buffer.len() > LINE_MAX {
                out(Message::Limit(Limit::Head));
                self.lose(side, out);
            }
            return bytes.len();
        };
        let size = if lane.buffer.is_empty() {
            chunk_size(&bytes[..end])
        } else {
            lane.buffer.extend_from_slice(&bytes[..end]);
            let size = chunk_size(&lane.buffer);
            lane.buffer.clear();
            size
        };
        match size {
            Some(0) => lane.state = State::Body(Body::Trailers),
            Some(size) => lane.state = State::Body(Body::Chunk(size)),
            None => self.lose(side, out),
        }
        end + 1
    }

    fn trailers(&mut self, side: Side, bytes: &[u8], out: Out<'_>) -> usize {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        let known = lane.buffer.len();
        let room = HEAD_MAX.saturating_sub(known);
        lane.buffer
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        // The chunk's line has ended just before: an empty line may be the first one.
        let end = match lane.buffer.as_slice() {
            [b'\n', ..] => Some(1),
            [b'\r', b'\n', ..] => Some(2),
            buffer => head_end(buffer, known.saturating_sub(3)),
        };
        let Some(end) = end else {
            if bytes.len() > room {
                out(Message::Limit(Limit::Head));
                self.lose(side, out);
            }
            return bytes.len().min(room);
        };
        let lines = std::mem::take(&mut lane.buffer);
        if end > 2
            && let Some(fields) = trailers(&lines[..end])
        {
            out(Message::Trailers {
                exchange,
                side,
                fields,
            });
        }
        self.end(side, true, out);
        end - known
    }
}

/// How many of these bytes belong to what is left, and whether that is all of it.
fn take(left: &mut u64, bytes: &[u8]) -> (usize, bool) {
    let used = (*left).min(bytes.len() as u64);
    *left -= used;
    (used as usize, *left == 0)
}

/// Behind the empty line that ends a head. `from`: no end is before it.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(newline) = memchr(b'\n', bytes.get(at..)?) {
        at += newline + 1;
        match bytes.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Malformed {
    Head,
    TooManyFields,
}

fn parser() -> ParserConfig {
    let mut config = ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_multiple_spaces_in_request_line_delimiters(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .ignore_invalid_headers_in_requests(true)
        .ignore_invalid_headers_in_responses(true);
    config
}

/// Lines that go on in the next one, as a single one of the same length (RFC 9112, section 5.2).
fn unfolded(head: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let is_fold = |at: usize| matches!(head.get(at + 1), Some(b' ' | b'\t'));
    let mut folds = memchr::memchr_iter(b'\n', head)
        .filter(|at| is_fold(*at))
        .peekable();
    if folds.peek().is_none() {
        return head.into();
    }
    let mut head_of_one = head.to_vec();
    for at in folds {
        head_of_one[at] = b' ';
        if at > 0 && head_of_one[at - 1] == b'\r' {
            head_of_one[at - 1] = b' ';
        }
    }
    head_of_one.into()
}

/// Runs a parse with as many fields as it needs.
fn with_fields<'head, T>(
    parse: impl Fn(&mut [Header<'head>]) -> Result<T, httparse::Error>,
) -> Result<T, Malformed> {
    let mut parsed = parse(&mut [EMPTY_HEADER; FIELDS_USUAL]);
    if let Err(httparse::Error::TooManyHeaders) = parsed {
        parsed = parse(&mut vec![EMPTY_HEADER; FIELDS_MAX]);
    }
    parsed.map_err(|why| match why {
        httparse::Error::TooManyHeaders => Malformed::TooManyFields,
        _ => Malformed::Head,
    })
}

/// What ends with an empty line is whole, or none.
fn whole<T>(status: Status<T>) -> Result<T, httparse::Error> {
    match status {
        Status::Complete(parsed) => Ok(parsed),
        Status::Partial => Err(httparse::Error::NewLine),
    }
}

fn request(head: &[u8]) -> Result<Request, Malformed> {
    let head = unfolded(head);
    with_fields(|headers| {
        let mut request = httparse::Request::new(headers);
        whole(parser().parse_request(&mut request, &head)?)?;
        Ok(Request {
            version: version(request.version),
            method: request.method.map(|method| method.as_bytes().to_vec()),
            target: request.path.map(|path| path.as_bytes().to_vec()),
            scheme: None,
            authority: None,
            protocol: None,
            fields: fields_of(request.headers),
        })
    })
}

fn response(head: &[u8]) -> Result<Response, Malformed> {
    let head = unfolded(head);
    with_fields(|headers| {
        let mut response = httparse::Response::new(headers);
        whole(parser().parse_response(&mut response, &head)?)?;
        Ok(Response {
            version: version(response.version),
            status: response.code,
            fields: fields_of(response.headers),
        })
    })
}

fn trailers(lines: &[u8]) -> Option<Fields> {
    let lines = unfolded(lines);
    with_fields(|headers| {
        let (_, headers) = whole(httparse::parse_headers(&lines, headers)?)?;
        Ok(fields_of(headers))
    })
    .ok()
}

fn version(minor: Option<u8>) -> Version {
    match minor {
        Some(0) => Version::Http10,
        _ => Version::Http11,
    }
}

fn fields_of(headers: &[Header<'_>]) -> Fields {
    let mut fields = Fields::default();
    for header in headers {
        fields.push(header.name.as_bytes(), header.value.trim_ascii_end());
    }
    fields
}

fn method_of(request: &Request) -> Method {
    match request.method.as_deref() {
        Some(b"HEAD") => Method::Head,
        Some(b"CONNECT") => Method::Connect,
        Some(_) => Method::Other,
        None => Method::Unknown,
    }
}

/// How long a body is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Until the connection ends.
    Rest,
    /// The head contradicts itself.
    Unknown,
}

fn framing_of_request(fields: &Fields) -> Framing {
    match codings(fields) {
        Codings::Chunked => Framing::Chunked,
        Codings::Other => Framing::Unknown,
        Codings::None => length_of(fields).unwrap_or(Framing::None),
    }
}

fn framing_of_response(head: &Response, method: Method) -> Framing {
    let status = head.status.unwrap_or_default();
    if method == Method::Head || matches!(status, 100..=199 | 204 | 304) {
        return Framing::None;
    }
    match codings(&head.fields) {
        Codings::Chunked => Framing::Chunked,
        Codings::Other => Framing::Rest,
        Codings::None => length_of(&head.fields).unwrap_or(Framing::Rest),
    }
}

enum Codings {
    None,
    /// The last one frames the body.
    Chunked,
    Other,
}

fn codings(fields: &Fields) -> Codings {
    match fields.list("transfer-encoding").last() {
        None => Codings::None,
        Some(last) if last.eq_ignore_ascii_case(b"chunked") => Codings::Chunked,
        Some(last) if last.eq_ignore_ascii_case(b"identity") => Codings::None,
        Some(_) => Codings::Other,
    }
}

/// `Content-Length`, which may come several times if it is always the same.
fn length_of(fields: &Fields) -> Option<Framing> {
    let mut lengths = fields.list("content-length").map(decimal);
    let first = lengths.next()?;
    let is_one = lengths.all(|length| length == first);
    Some(match first.filter(|_| is_one) {
        Some(length) => Framing::Length(length),
        None => Framing::Unknown,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| str::from_utf8(text).ok()?.parse().ok())?
}

/// The number before a chunk, without its extensions.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let is_number = matches!(size.len(), 1..=16) && size.iter().all(u8::is_ascii_hexdigit);
    is_number.then(|| u64::from_str_radix(str::from_utf8(size).ok()?, 16).ok())?
}

fn is_websocket(protocol: &[u8]) -> bool {
    protocol.eq_ignore_ascii_case(b"websocket")
}

/// Do these bytes begin with all of a message's first line?
pub fn is_start(side: Side, bytes: &[u8]) -> bool {
    // Most bytes are none, and one look tells.
    if !matches!(bytes.first(), Some(b'A'..=b'Z')) {
        return false;
    }
    let line = &bytes[..bytes.len().min(START_MAX)];
    let Some(end) = memchr(b'\n', line) else {
        return false;
    };
    let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
    match side {
        Side::Request => is_request_line(line),
        Side::Response => is_status_line(line),
    }
}

/// Longest first line that is looked for.
const START_MAX: usize = 16 << 10;

fn is_request_line(line: &[u8]) -> bool {
    let method = line
        .iter()
        .take_while(|byte| matches!(byte, b'A'..=b'Z' | b'-'))
        .count();
    let has_version = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    matches!(method, 3..=20)
        && line.get(method) == Some(&b' ')
        && has_version
        && line.len() > method + " HTTP/1.1".len()
        && line.iter().all(|byte| matches!(byte, b' '..=b'~' | 0x80..))
}

fn is_status_line(line: &[u8]) -> bool {
    let Some(rest) = line.strip_prefix(b"HTTP/1.") else {
        return false;
    };
    matches!(
        rest,
        [b'0' | b'1', b' ', b'1'..=b'9', b'0'..=b'9', b'0'..=b'9']
    ) || matches!(
        rest,
        [
            b'0' | b'1',
            b' ',
            b'1'..=b'9',
            b'0'..=b'9',
            b'0'..=b'9',
            b' ',
            ..
        ]
    )
}

/// Where a head begins right behind the last chunk of a body.
fn behind_last_chunk(side: Side, bytes: &[u8]) -> Option<usize> {
    const LAST: &[u8] = b"\r\n0\r\n\r\n";
    memmem::find_iter(bytes, LAST)
        .map(|at| at + LAST.len())
        .find(|end| is_start(side, &bytes[*end..]))
}

#[cfg(test)]
mod tests {
    use super::{
        super::transcript::{Wire, bytewise, cuts, run},
        *,
    };
    use Side::{Request as Asks, Response as Answers};

    fn asks(bytes: &str) -> Wire<'_> {
        Wire::Bytes(Asks, bytes.as_bytes())
    }

    fn answers(bytes: &str) -> Wire<'_> {
        Wire::Bytes(Answers, bytes.as_bytes())
    }

    fn said(from_start: bool, wire: &[Wire<'_>]) -> Vec<String> {
        let mut http = Http1::new(from_start);
        let mut next = None;
        let mut said = run(wire, |step, out| match step {
            _ if next.is_some() => {}
            Some(Wire::Bytes(side, bytes)) => {
                if let Fed::Switched(at, to) = http.feed(side, bytes, 7, out) {
                    next = Some(format!("{to:?} {}", String::from_utf8_lossy(&bytes[at..])));
                }
            }
            Some(Wire::Gap(side, length)) => http.gap(side, length, out),
            None => http.close(out),
        });
        said.extend(next);
        said
    }

    /// The same, whatever calls the bytes come in.
    fn check(wire: &[Wire<'_>], expected: &[&str]) {
        assert_eq!(said(true, wire), expected);
        for wire in cuts(wire) {
            assert_eq!(said(true, &wire), expected);
        }
        assert_eq!(said(true, &bytewise(wire)), expected);
    }

    #[test]
    fn one_exchange_after_the_other() {
        check(
            &[
                asks("GET /a HTTP/1.1\r\nHost: x\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
                asks("POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"),
                answers("HTTP/1.1 204 No Content\r\n\r\n"),
                asks("HEAD /c HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
                asks("GET /d HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
            ],
            &[
                "0 GET /a",
                "0 request []",
                "0 200",
                "0 response [hello]",
                "1 POST /b",
                "1 request [abc]",
                "1 204",
                "1 response []",
                "2 HEAD /c",
                "2 request []",
                "2 200",
                "2 response []",
                "3 GET /d",
                "3 request []",
                "3 304",
                "3 response []",
            ],
        );
    }

    #[test]
    fn chunks_trailers_and_what_clients_do_wrong() {
        check(
            &[
                asks(
                    "\r\n\r\nPUT /a HTTP/1.1\nTransfer-Encoding: chunked\nX: a\n\tb\n\n3;x=y\nabc\n0\n\n",
                ),
                answers(
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
                     HTTP/1.1 200\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n\
                     00a\r\n0123456789\r\n1 \r\nx\r\n0\r\nA: 1\r\nB: 2\r\n\r\n",
                ),
            ],
            &[
                "0 PUT /a",
                "0 request [abc]",
                "0 100",
                "0 103",
                "0 200",
                "0 trailers 2",
                "0 response [0123456789x]",
            ],
        );
    }

    #[test]
    fn a_body_until_the_connection_ends() {
        check(
            &[
                asks("GET / HTTP/1.0\r\n\r\n"),
                answers("HTTP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
            ],
            &[
                "0 GET /",
                "0 request []",
                "0 200",
                "0 response [HTTP/1.1 200 OK\r\n\r\n]",
            ],
        );
    }

    #[test]
    fn pipelined_requests_are_answered_in_order() {
        check(
            &[
                asks("GET /0 HTTP/1.1\r\n\r\nHEAD /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"),
                answers(
                    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\
                     HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nc",
                ),
            ],
            &[
                "0 GET /0",
                "0 request []",
                "1 HEAD /1",
                "1 request []",
                "2 GET /2",
                "2 request []",
                "0 200",
                "0 response [a]",
                "1 200",
                "1 response []",
                "2 200",
                "2 response [c]",
            ],
        );
    }

    #[test]
    fn another_protocol_takes_over() {
        let upgrade = "GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n\r\n";
        let expected = ["0 GET /chat", "0 request []", "0 101", "0 response []"];
        let frames = format!("{agreed}frames");
        let mut said = self::said(true, &[asks(upgrade), answers(&frames)]);
        assert_eq!(said.pop().as_deref(), Some("WebSocket(None) frames"));
        assert_eq!(said, expected);

        let tunnel = [
            asks("CONNECT a:443 HTTP/1.1\r\n\r\n"),
            answers("HTTP/1.1 200 Connection established\r\nContent-Length: 9\r\n\r\n\x16\x03"),
        ];
        assert_eq!(
            self::said(true, &tunnel).last().map(String::as_str),
            Some("Tunnel \x16\x03")
        );
        check(
            &[
                asks("CONNECT a:443 HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno"),
            ],
            &[
                "0 CONNECT a:443",
                "0 request []",
                "0 407",
                "0 response [no]",
            ],
        );
    }

    #[test]
    fn unanswered_and_cut() {
        check(
            &[asks("GET / HTTP/1.1\r\n\r\n")],
            &["0 GET /", "0 request []", "0 response [] cut"],
        );
        check(
            &[
                asks("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxyz"),
            ],
            &[
                "0 POST /",
                "0 200",
                "0 request [abc] cut",
                "0 response [xyz] cut",
            ],
        );
        // Of half a head the whole lines are known.
        check(
            &[asks("GET /a HTTP/1.1\r\nHost: x\r\nCook")],
            &["0 GET /a", "0 request [] cut", "0 response [] cut"],
        );
    }

    #[test]
    fn a_hole_in_a_body_costs_what_it_covers() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n";
        let next = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
        check(
            &[
                asks("GET /a HTTP/1.1\r\n\r\n"),
                answers(head),
                answers("ab"),
                Wire::Gap(Answers, 3),
                answers("f"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                answers(next),
            ],
            &[
                "0 GET /a",
                "0 request []",
                "0 200",
                "0 response -3",
                "0 response [abf]",
                "1 GET /b",
                "1 request []",
                "1 200",
                "1 response [no]",
            ],
        );
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nab";
        for (length, rest, body) in [
            (3, "f\r\n0\r\n\r\n", "abf"),
            (4, "\r\n1\r\nz\r\n0\r\n\r\n", "abz"),
        ] {
            check(
                &[
                    asks("GET /a HTTP/1.1\r\n\r\n"),
                    answers(chunked),
                    Wire::Gap(Answers, length),
                    answers(rest),
                ],
                &[
                    "0 GET /a",
                    "0 request []",
                    "0 200",
                    &format!("0 response -{length}"),
                    &format!("0 response [{body}]"),
                ],
            );
        }
    }

    #[test]
    fn behind_a_hole_the_next_message_is_found() {
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nab"),
                Wire::Gap(Answers, 30),
                answers("rest of it\r\n0\r\n\r\n"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "0 200",
                "0 response -30",
                "0 response [ab] cut",
                "response ?rest of it\r\n0\r\n\r\n",
                "1 GET /b",
                "1 request []",
                "1 200",
                "1 response [ok]",
            ]
        );
        // The request is lost: the response stays alone, and the next pair is right.
        let said = self::said(
            true,
            &[
                Wire::Gap(Asks, 20),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 200",
                "0 response [a]",
                "1 GET /b",
                "1 request []",
                "1 404",
                "1 response []"
            ]
        );
        // The response is lost.
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\n"),
                Wire::Gap(Answers, 40),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "0 response [] cut",
                "1 GET /b",
                "1 request []",
                "1 404",
                "1 response []",
            ]
        );
    }

    /// A hole in the requests takes nothing from the response that is under way.
    #[test]
    fn a_response_under_way_goes_on() {
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"),
                Wire::Gap(Asks, 30),
                answers("cd"),
                answers("HTTP/1.1 204 No\r\n\r\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "1 GET /b",
                "1 request []",
                "0 200",
                "1 response [] cut",
                "0 response [abcd]",
                "2 204",
                "2 response []",
            ]
        );
    }

    #[test]
    fn behind_a_torn_interim_response_comes_the_real_one() {
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 103 Early Hints\r\nLink: x\r\n"),
                Wire::Gap(Answers, 2),
                answers("HTTP/1.1 204 No\r\n\r\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "0 103",
                "0 204",
                "0 response []"
            ]
        );
    }

    /// What follows a hole in a method looks like one, and is answered once.
    #[test]
    fn the_rest_of_a_torn_request_is_no_other_one() {
        let said = self::said(
            true,
            &[
                asks("D"),
                Wire::Gap(Asks, 2),
                asks("ETE /a HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 204 No\r\n\r\n"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"),
            ],
        );
        assert_eq!(
            said,
            [
                "request ?D",
                "0 ETE /a",
                "0 request []",
                "0 204",
                "0 response []",
                "1 GET /b",
                "1 request []",
                "1 200",
                "1 response [x]",
            ]
        );
    }

    /// Which response is missing nobody can tell.
    #[test]
    fn who_pipelines_is_not_believed_behind_a_hole() {
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n"),
                Wire::Gap(Answers, 40),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"),
                asks("GET /c HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "1 GET /b",
                "1 request []",
                "0 response [] cut",
                "1 response [] cut",
                "2 200",
                "2 response [x]",
                "3 GET /c",
                "3 response [] cut",
                "3 request []",
                "4 200",
                "4 response [y]",
            ]
        );
    }

    /// The end of a response is missed when something comes behind it, which is after the next request.
    #[test]
    fn a_hole_told_late_is_no_pipelining() {
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                Wire::Gap(Answers, 2),
                answers("HTTP/1.1 204 No\r\n\r\n"),
                // All of a response, and the beginning of the next.
                asks("GET /c HTTP/1.1\r\n\r\n"),
                asks("GET /d HTTP/1.1\r\n\r\n"),
                Wire::Gap(Answers, 30),
                answers("HTTP/1.1 204 No\r\n\r\n"),
                asks("GET /e HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 204 No\r\n\r\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "0 200",
                "1 GET /b",
                "1 request []",
                "0 response -2",
                "0 response [ab]",
                "1 204",
                "1 response []",
                "2 GET /c",
                "2 request []",
                "3 GET /d",
                "3 request []",
                "2 response [] cut",
                "3 204",
                "3 response []",
                "4 GET /e",
                "4 request []",
                "4 204",
                "4 response []",
            ]
        );
    }

    /// Of three that wait a hole may have answered one or two: none is guessed, and the next pair is right.
    #[test]
    fn of_three_that_wait_none_is_guessed() {
        let said = self::said(
            true,
            &[
                asks("GET /a HTTP/1.1\r\n\r\n"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                asks("GET /c HTTP/1.1\r\n\r\n"),
                Wire::Gap(Answers, 30),
                answers("HTTP/1.1 204 No\r\n\r\n"),
                asks("GET /d HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"),
                asks("GET /e HTTP/1.1\r\n\r\n"),
                asks("GET /f HTTP/1.1\r\n\r\n"),
                // The rest of the first, the second's beginning.
                Wire::Gap(Answers, 12),
                answers("HTTP/1.1 204 No\r\n\r\n"),
            ],
        );
        assert_eq!(
            said,
            [
                "0 GET /a",
                "0 request []",
                "1 GET /b",
                "1 request []",
                "2 GET /c",
                "2 request []",
                "0 response [] cut",
                "1 response [] cut",
                "2 response [] cut",
                "3 204",
                "3 response []",
                "4 GET /d",
                "4 request []",
                "4 200",
                "5 GET /e",
                "5 request []",
                "6 GET /f",
                "6 request []",
                "4 response -2",
                "4 response [ab]",
                "5 response [] cut",
                "6 204",
                "6 response []",
            ]
        );
    }

    /// The rest of a response comes after the next request: its client does not wait.
    #[test]
    fn who_asks_in_the_middle_of_a_response_pipelines() {
        for rest in [&[answers("cd")][..], &[Wire::Gap(Answers, 1), answers("d")]] {
            let mut wire = vec![
                asks("GET /a HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
            ];
            wire.extend_from_slice(rest);
            wire.extend([
                answers("HTTP/1.1 204 No\r\n\r\n"),
                asks("GET /c HTTP/1.1\r\n\r\n"),
                Wire::Gap(Answers, 40),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"),
            ]);
            let said = self::said(true, &wire);
            let end = ["2 response [] cut", "3 200", "3 response [x]"];
            assert_eq!(said[said.len() - 3..], end);
        }
    }

    #[test]
    fn joined_in_the_middle_of_a_body() {
        let said = self::said(
            false,
            &[
                answers("the end of a body"),
                asks("GET /b HTTP/1.1\r\n\r\n"),
                answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ],
        );
        assert_eq!(
            said,
            [
                "response ?the end of a body",
                "0 GET /b",
                "0 request []",
                "0 200",
                "0 response [ok]",
            ]
        );
    }

    #[test]
    fn contradictions_are_not_believed() {
        for fields in [
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: -1\r\n",
            "Transfer-Encoding: gzip\r\n",
        ] {
            let head = format!("POST / HTTP/1.1\r\n{fields}\r\n");
            let said = self::said(true, &[asks(&head), asks("abc")]);
            assert_eq!(
                said,
                [
                    "0 POST /",
                    "0 request [] cut",
                    "request ?abc",
                    "0 response [] cut"
                ],
                "{fields}"
            );
        }
    }

    #[test]
    fn limits() {
        let mut head = String::from("GET / HTTP/1.1\r\n");
        while head.len() <= HEAD_MAX {
            head.push_str(&format!("X: {}\r\n", "0".repeat(4000)));
        }
        let said = self::said(true, &[asks(&head), asks("GET /b HTTP/1.1\r\n\r\n")]);
        assert_eq!(said[0], "Head limit");
        // What has come of it is known.
        assert_eq!(said[1..3], ["0 GET /", "0 request [] cut"]);
        assert!(said.contains(&"1 GET /b".to_owned()));

        let head = format!("GET / HTTP/1.1\r\n{}\r\n", "A:b\r\n".repeat(FIELDS_MAX + 1));
        let said = self::said(true, &[asks(&head), asks("GET /b HTTP/1.1\r\n\r\n")]);
        assert_eq!(said[0], "Head limit");
        assert!(said.contains(&"1 GET /b".to_owned()));

        let many = "GET / HTTP/1.1\r\n\r\n".repeat(PENDING_MAX + 1);
        let said = self::said(true, &[asks(&many)]);
        assert_eq!(
            said.iter().filter(|line| *line == "Pipeline limit").count(),
            1
        );
        assert_eq!(
            said.iter()
                .filter(|line| line.ends_with("response [] cut"))
                .count(),
            PENDING_MAX + 1
        );

        // So are those that can't be read, and those of which a part is missing.
        let strange = asks("GET / HTTP/1.1\r\nA\0: b\r\n\r\n");
        let torn = [asks("POST /a HTTP/1.1\r\nHost: a"), Wire::Gap(Asks, 9)];
        for wire in [vec![strange], torn.to_vec()] {
            let said = self::said(true, &wire.repeat(PENDING_MAX + 2));
            let limits = said.iter().filter(|line| *line == "Pipeline limit");
            assert_eq!(limits.count(), 1);
        }

        let line = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
            "x".repeat(LINE_MAX)
        );
        assert_eq!(self::said(true, &[asks(&line)])[1], "Head limit");
    }
}
