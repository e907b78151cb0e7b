//! What decoders say of requests and responses → exchanges: a request, its response, and when it all came.
//!
//! Bodies are kept up to a limit, without their content codings; what is kept of all bodies together has a
//! bound of its own.

use std::collections::HashMap;

use super::{
    Limit, Message, Side,
    content::{Content, Unreadable},
    grpc::Messages,
    head::{Fields, Head, Request, Response, Version, media_name},
    lines::{self, Line, Lines, are_lines},
    sse::{self, Events},
    websocket::{self, Deflate, WebSocket},
};

/// How much is kept, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of one body.
    pub body: usize,
    /// Of all bodies that are not told of yet.
    pub total: usize,
    /// What else the open exchanges of a connection hold: heads, windows of codings, events and messages that are
    /// not whole.
    pub share: usize,
    /// The same of all connections.
    pub held: usize,
}

impl Bounds {
    /// For bodies of this length: some of them fit in at a time.
    pub fn of(body: usize) -> Bounds {
        let usual = Bounds::default();
        Bounds {
            body,
            total: usual.total.max(body.saturating_mul(4)),
            ..usual
        }
    }

    /// The same, where all bodies have no more room than that, nor has all else.
    #[must_use]
    pub fn within(self, room: usize) -> Bounds {
        Bounds {
            body: self.body,
            total: self.total.min(room),
            share: self.share.min(room),
            held: self.held.min(room),
        }
    }
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            body: 1 << 20,
            total: 64 << 20,
            share: 64 << 20,
            held: 256 << 20,
        }
    }
}

/// So many times its limit a body may grow to: beyond, it is not even counted.
const GROWTH: u64 = 64;

/// Most holes of one body that are told apart.
const HOLES_MAX: usize = 64;

/// Most responses before the response that are kept.
const INTERIM_MAX: usize = 8;

/// What is kept, of all connections.
#[derive(Debug)]
pub struct Keep {
    bounds: Bounds,
    /// Nothing more is kept of bodies, whatever the bounds are.
    sheds: bool,
    /// Of bodies.
    used: usize,
    /// Of all else.
    held: usize,
}

impl Keep {
    pub fn new(bounds: Bounds) -> Keep {
        Keep {
            bounds,
            sheds: false,
            used: 0,
            held: 0,
        }
    }

    /// Other bounds from here on. What is kept already stays.
    pub fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Are bodies only counted from here on? What is kept already stays.
    pub fn shed(&mut self, sheds: bool) {
        self.sheds = sheds;
    }

    /// Adds what fits to a body. False: not all of it did.
    fn add(&mut self, kept: &mut Vec<u8>, bytes: &[u8]) -> bool {
        let bound = if self.sheds { 0 } else { self.bounds.body };
        let room = bound.saturating_sub(kept.len());
        let room = room.min(self.bounds.total.saturating_sub(self.used));
        let taken = bytes.len().min(room);
        kept.extend_from_slice(&bytes[..taken]);
        self.used += taken;
        taken == bytes.len()
    }

    fn release(&mut self, kept: &[u8]) {
        self.used = self.used.saturating_sub(kept.len());
    }

    /// Bytes of bodies that are kept now.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes of all else that open exchanges hold now.
    pub fn held(&self) -> usize {
        self.held
    }
}

/// A request and its response, as far as they were seen.
#[derive(Debug)]
pub struct Exchange {
    pub id: u64,
    halves: [Option<Half>; 2],
    /// Responses before the response (RFC 9110, section 15.2), as many as are kept.
    pub interim: Vec<Response>,
    /// Server-sent events of the response so far.
    pub events: u64,
    /// It was told of before it is over: [`Half::told`] is how much of it.
    pub is_told: bool,
}

impl Exchange {
    fn new(id: u64) -> Exchange {
        Exchange {
            id,
            halves: [None, None],
            interim: Vec::new(),
            events: 0,
            is_told: false,
        }
    }

    pub fn request(&self) -> Option<&Half> {
        self.halves[Side::Request as usize].as_ref()
    }

    pub fn response(&self) -> Option<&Half> {
        self.halves[Side::Response as usize].as_ref()
    }

    /// What was seen of both, in this order.
    pub fn halves(&self) -> impl Iterator<Item = &Half> {
        self.halves.iter().flatten()
    }

    /// The head of the request.
    pub fn asked(&self) -> Option<&Request> {
        match self.request()?.head.as_ref()? {
            Head::Request(head) => Some(head),
            Head::Response(_) => None,
        }
    }

    /// The head of the response.
    pub fn answered(&self) -> Option<&Response> {
        match self.response()?.head.as_ref()? {
            Head::Response(head) => Some(head),
            Head::Request(_) => None,
        }
    }

    fn half(&mut self, side: Side) -> &mut Option<Half> {
        &mut self.halves[side as usize]
    }

    /// One half, made if nothing was seen of it before.
    fn seen(&mut self, side: Side, time: u64, keep: &Keep) -> &mut Half {
        self.half(side)
            .get_or_insert_with(|| Half::new(None, time, keep))
    }
}

/// One side of an exchange. Times are those of the events, in nanoseconds.
#[derive(Debug)]
pub struct Half {
    /// `None`: its beginning was not seen.
    pub head: Option<Head>,
    pub began: u64,
    /// When its last byte so far came.
    pub ended: u64,
    pub body: Body,
    pub trailers: Fields,
    /// Bytes that are missing.
    pub lost: u64,
    /// Something is missing, whether or not it is known how much.
    has_hole: bool,
    /// Its end was seen, and nothing is missing.
    pub is_whole: bool,
    pub is_over: bool,
    /// What was told of it while the exchange was open.
    pub told: Extent,
}

/// How much of a half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    #[default]
    Nothing,
    Head,
    /// Its body, too, or that comes piece by piece.
    All,
}

/// A body without its codings, or its beginning.
pub struct Body {
    /// As much as is kept.
    pub kept: Vec<u8>,
    /// Bytes that came, with the content coding.
    pub length: u64,
    /// Bytes without it, as far as it could be read.
    pub decoded: u64,
    /// There is more of it than is kept.
    pub is_cut: bool,
    /// It is cut because nothing was kept just then, of no body.
    pub is_shed: bool,
    /// Where in `kept` something is missing, and how much.
    pub holes: Vec<(usize, u64)>,
    content: Content,
    /// If it is one of gRPC.
    pub messages: Option<Messages>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.length)
    }
}

impl Body {
    fn new(fields: &Fields, keep: &Keep) -> Body {
        let media = fields.get("content-type").unwrap_or_default();
        Body {
            kept: Vec::new(),
            length: 0,
            decoded: 0,
            is_cut: false,
            is_shed: false,
            holes: Vec::new(),
            content: Content::of(fields, (keep.bounds.body as u64).saturating_mul(GROWTH)),
            messages: is_grpc(media).then(Messages::default),
        }
    }

    /// Why not all of it could be read.
    pub fn unreadable(&self) -> Option<Unreadable> {
        self.content.unreadable()
    }

    fn feed(&mut self, bytes: &[u8], keep: &mut Keep, shown: &mut dyn FnMut(&[u8])) {
        self.length += bytes.len() as u64;
        let (kept, decoded, is_cut) = (&mut self.kept, &mut self.decoded, &mut self.is_cut);
        let (messages, is_shed) = (&mut self.messages, &mut self.is_shed);
        let has_room = self.holes.len() < HOLES_MAX;
        self.content.feed(bytes, &mut |bytes| {
            *decoded += bytes.len() as u64;
            if let Some(messages) = messages {
                messages.feed(bytes);
            }
            *is_shed |= keep.sheds && !*is_cut && !bytes.is_empty();
            // Behind what did not fit nothing is kept.
            *is_cut = *is_cut || !has_room || !keep.add(kept, bytes);
            shown(bytes);
        });
    }

    fn hole(&mut self, length: u64, is_inside: bool) {
        self.content.hole();
        if self.holes.len() < HOLES_MAX {
            self.holes.push((self.kept.len(), length));
        }
        if let Some(messages) = &mut self.messages {
            match is_inside && self.content.is_plain() {
                true => messages.hole(length),
                false => messages.is_lost = true,
            }
        }
    }
}

/// `application/grpc`, `application/grpc+proto`, `application/grpc-web-text`.
pub fn is_grpc(media: &[u8]) -> bool {
    let name = media_name(media);
    name.strip_prefix(b"application/grpc").is_some_and(|rest| {
        let rest = rest.strip_prefix(b"-web").unwrap_or(rest);
        let rest = rest.strip_prefix(b"-text").unwrap_or(rest);
        matches!(rest, [] | [b'+', ..])
    })
}

fn is_event_stream(media: &[u8]) -> bool {
    media_name(media) == b"text/event-stream"
}

/// A stream that both ends use as a WebSocket from here on (RFC 8441, section 5).
fn is_websocket(asked: Option<&Request>, answered: &Response) -> bool {
    let protocol = asked.and_then(|head| head.protocol.as_deref());
    protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && matches!(answered.status, Some(200..=299))
}

impl Half {
    fn new(head: Option<Head>, began: u64, keep: &Keep) -> Half {
        let body = match &head {
            Some(head) => Body::new(head.fields(), keep),
            None => Body::new(&Fields::default(), keep),
        };
        Half {
            head,
            began,
            ended: began,
            body,
            trailers: Fields::default(),
            lost: 0,
            has_hole: false,
            is_whole: false,
            is_over: false,
            told: Extent::Nothing,
        }
    }

    /// How much can be told of it now.
    pub fn extent(&self) -> Extent {
        match self.is_over || self.comes_in_pieces() {
            true => Extent::All,
            false => Extent::Head,
        }
    }

    /// Its body is events, lines or messages, each of which is told by itself.
    pub fn comes_in_pieces(&self) -> bool {
        self.body.messages.is_some() || self.is_stream()
    }

    /// Is it a response of events or lines, of which the first is told by itself, too?
    pub fn is_stream(&self) -> bool {
        self.is_event_stream() || self.is_lines()
    }

    fn is_event_stream(&self) -> bool {
        self.answered_media().is_some_and(is_event_stream)
    }

    fn is_lines(&self) -> bool {
        self.answered_media().is_some_and(are_lines)
    }

    /// What the body of a response is.
    fn answered_media(&self) -> Option<&[u8]> {
        match &self.head {
            Some(Head::Response(head)) => head.fields.get("content-type"),
            Some(Head::Request(_)) | None => None,
        }
    }

    /// Takes the place of what came before a head, if anything did: nobody knows what it was of.
    fn follow(mut self, place: &mut Option<Half>, time: u64, keep: &mut Keep) {
        self.ended = time;
        if let Some(before) = place.take() {
            keep.release(&before.body.kept);
            self.has_hole = true;
            self.lost = before.lost + before.body.length;
            self.is_over = before.is_over;
        }
        *place = Some(self);
    }

    fn end(&mut self, is_whole: bool, time: u64) {
        self.is_over = true;
        // nginx resets a stream as soon as it has answered, when it has read a body and not its end.
        let is_reset = || self.head.as_ref().map(Head::version) == Some(Version::Http2);
        self.is_whole = match is_whole {
            true => !self.has_hole && self.head.is_some(),
            false => is_reset() && self.is_as_long_as_said(),
        };
        if is_whole {
            self.ended = time;
        }
    }

    /// Bytes besides those of the body.
    fn weight(&self) -> usize {
        let head = self.head.as_ref().map_or(0, Head::weight);
        head + self.trailers.weight() + self.body.content.held()
    }

    /// Nothing more comes. All of the body may have, though nobody read on to where it ends: curl goes by
    /// `Content-Length`, and leaves an empty last frame of HTTP/2 to the system.
    fn settle(&mut self) {
        if !self.is_over {
            self.is_whole = self.is_as_long_as_said();
        }
    }

    fn is_as_long_as_said(&self) -> bool {
        let head = self.head.as_ref().filter(|_| !self.has_hole);
        let length = head.and_then(|head| head.fields().get("content-length"));
        let length = length.and_then(|length| str::from_utf8(length).ok()?.parse().ok());
        length == Some(self.body.length)
    }
}

/// What is known at some moment.
pub enum Told<'a> {
    /// A request began.
    Asked(u64),
    /// It goes on, and this is known of it.
    Open(&'a Exchange),
    /// A message of gRPC in an exchange that was told of as open. `number` counts those of its side from 0.
    Message {
        exchange: u64,
        side: Side,
        number: u64,
        size: u32,
    },
    /// The head of a side is in.
    Head {
        exchange: &'a Exchange,
        side: Side,
    },
    /// More of a body, without its codings.
    Body {
        exchange: u64,
        side: Side,
        bytes: &'a [u8],
    },
    /// A part of a body is missing.
    Hole {
        exchange: u64,
        side: Side,
    },
    /// It is over.
    Exchange(&'a Exchange),
    /// An event of a response that goes on. `number` counts those of the response from 0.
    Event {
        exchange: &'a Exchange,
        event: sse::Event,
        number: u64,
    },
    /// A line of a response that goes on, as far as its body is kept.
    Line {
        exchange: &'a Exchange,
        line: Line<'a>,
    },
    /// A message of a WebSocket that is one stream of several.
    WebSocket(websocket::Message),
    Limit(Limit),
}

pub type Out<'a> = &'a mut dyn FnMut(Told<'_>);

/// The open exchanges of a connection.
#[derive(Debug, Default)]
pub struct Exchanges {
    open: HashMap<u64, Open>,
    /// What they hold besides bodies.
    held: usize,
}

#[derive(Debug)]
struct Open {
    exchange: Exchange,
    /// If the response is a stream of events.
    events: Option<Events>,
    /// If the response is lines of JSON, and there may be more of them.
    lines: Option<Lines>,
    /// If its bodies are the two lanes of one.
    socket: Option<Box<WebSocket>>,
    /// No response comes any more, whether or not one came.
    is_answered: bool,
    /// What it held when it was weighed last.
    held: usize,
}

impl Open {
    /// Bytes besides those of bodies.
    fn weight(&self) -> usize {
        let Exchange {
            halves, interim, ..
        } = &self.exchange;
        let interim: usize = interim.iter().map(|head| head.fields.weight()).sum();
        let halves: usize = halves.iter().flatten().map(Half::weight).sum();
        let events = self.events.as_ref().map_or(0, Events::held);
        let socket = self.socket.as_ref().map_or(0, |socket| socket.held());
        interim + halves + events + socket
    }

    /// Bodies are read no further.
    fn stop(&mut self) {
        let is_read = self.events.is_some() || self.socket.is_some();
        (self.events, self.socket) = (None, None);
        for half in self.exchange.halves.iter_mut().flatten() {
            half.body.content.stop();
            half.body.is_cut |= is_read;
            half.has_hole |= is_read;
        }
    }

    /// Nor are heads known any more.
    fn forget(&mut self) {
        self.exchange.interim = Vec::new();
        for half in self.exchange.halves.iter_mut().flatten() {
            half.head = None;
            half.trailers = Fields::default();
            half.has_hole = true;
        }
    }
}

impl Exchanges {
    /// One message of a decoder, at a time.
    pub fn note(&mut self, message: Message<'_>, time: u64, keep: &mut Keep, out: Out<'_>) {
        match message {
            Message::Head {
                exchange,
                head,
                began,
            } => {
                self.head(exchange, head, began, time, keep, out);
                self.weigh(exchange, keep, out);
            }
            Message::Body {
                exchange,
                side,
                bytes,
            } => self.body(exchange, side, bytes.reveal(), time, keep, out),
            Message::Hole {
                exchange,
                side,
                length,
                is_inside,
            } => {
                if let Some(socket) = &mut self.open(exchange).socket {
                    // What may be more than it is ends every frame.
                    let length = if is_inside { length } else { u64::MAX };
                    socket.gap(side, length, &mut |found| {
                        tell_found(found, None, keep, out)
                    });
                }
                self.hole(exchange, side, length, is_inside, time, keep);
                out(Told::Hole { exchange, side });
            }
            Message::Trailers {
                exchange,
                side,
                fields,
            } => {
                if let Some(half) = self.open(exchange).exchange.half(side) {
                    half.trailers = fields;
                }
                self.weigh(exchange, keep, out);
            }
            Message::End {
                exchange,
                side,
                is_whole,
            } => self.end(exchange, side, is_whole, time, keep, out),
            Message::Limit(limit) => out(Told::Limit(limit)),
            Message::Undecoded { .. } => {}
        }
    }

    /// The connection is over, and so is all that is open.
    pub fn close(&mut self, keep: &mut Keep, out: Out<'_>) {
        let mut ids: Vec<u64> = self.open.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.tell(id, keep, out);
        }
    }

    fn open(&mut self, id: u64) -> &mut Open {
        self.open.entry(id).or_insert_with(|| Open {
            exchange: Exchange::new(id),
            events: None,
            lines: None,
            socket: None,
            is_answered: false,
            held: 0,
        })
    }

    /// Counts what an exchange holds, and lets go of it if that is too much. What was asked and answered is worth
    /// more than how a body goes on.
    fn weigh(&mut self, id: u64, keep: &mut Keep, out: Out<'_>) {
        let Exchanges { open, held } = self;
        let Some(open) = open.get_mut(&id) else {
            return;
        };
        let mut is_over = |open: &mut Open| {
            let weight = open.weight();
            let before = std::mem::replace(&mut open.held, weight);
            *held = *held - before + weight;
            keep.held = keep.held - before + weight;
            *held > keep.bounds.share || keep.held > keep.bounds.held
        };
        if !is_over(open) {
            return;
        }
        out(Told::Limit(Limit::Memory));
        open.stop();
        if is_over(open) {
            open.forget();
            is_over(open);
        }
    }

    fn head(&mut self, id: u64, head: Head, began: u64, time: u64, keep: &mut Keep, out: Out<'_>) {
        let Open {
            exchange,
            events,
            lines,
            socket,
            ..
        } = self.open(id);
        let head = match head {
            Head::Response(head) if head.is_interim() => {
                match exchange.interim.len() < INTERIM_MAX {
                    true => exchange.interim.push(head),
                    false => out(Told::Limit(Limit::Head)),
                }
                return;
            }
            head => head,
        };
        let side = match &head {
            Head::Request(_) => Side::Request,
            Head::Response(answered) => {
                *socket = is_websocket(exchange.asked(), answered)
                    .then(|| Box::new(WebSocket::new(Deflate::agreed(&answered.fields))));
                Side::Response
            }
        };
        let half = Half::new(Some(head), began, keep);
        if half.body.unreadable() == Some(Unreadable::TooLarge) {
            out(Told::Limit(Limit::Coding));
        }
        if side == Side::Response {
            *events = half.is_event_stream().then(Events::default);
            *lines = half.is_lines().then(Lines::default);
        }
        half.follow(exchange.half(side), time, keep);
        out(Told::Head { exchange, side });
        match side {
            Side::Request => out(Told::Asked(id)),
            // What comes of it is told as it comes, and this is what it belongs to.
            Side::Response if events.is_some() || lines.is_some() => self.tell_open(id, out),
            Side::Response => {}
        }
    }

    /// Tells of an exchange that it goes on, unless it is over or was told of.
    pub fn show(&mut self, id: u64, out: Out<'_>) {
        if self
            .open
            .get(&id)
            .is_some_and(|open| !open.exchange.is_told)
        {
            self.tell_open(id, out);
        }
    }

    fn tell_open(&mut self, id: u64, out: Out<'_>) {
        let Some(Open { exchange, .. }) = self.open.get_mut(&id) else {
            return;
        };
        out(Told::Open(exchange));
        exchange.is_told = true;
        for half in exchange.halves.iter_mut().flatten() {
            half.told = half.extent();
        }
    }

    fn body(
        &mut self,
        id: u64,
        side: Side,
        bytes: &[u8],
        time: u64,
        keep: &mut Keep,
        out: Out<'_>,
    ) {
        let Open {
            exchange,
            events,
            lines,
            socket,
            ..
        } = self.open(id);
        let half = exchange.seen(side, time, keep);
        half.ended = time;
        if let Some(socket) = socket {
            socket.feed(side, bytes, time, &mut |found| {
                tell_found(found, Some(&mut half.body), keep, out);
            });
            return self.weigh(id, keep, out);
        }
        let mut found = Vec::new();
        let before = (half.body.is_cut, half.body.unreadable());
        let has_events = events.is_some();
        let has_lines = side == Side::Response && lines.is_some();
        let is_coded = !half.body.content.is_plain();
        let has_messages = half.body.messages.is_some();
        half.body.feed(bytes, keep, &mut |bytes| {
            if let (Side::Response, Some(events)) = (side, &mut *events) {
                events.feed(bytes, &mut |event| found.push(event));
            } else {
                out(Told::Body {
                    exchange: id,
                    side,
                    bytes,
                });
            }
        });
        let body = &half.body;
        if !before.0 && body.is_cut && body.kept.len() < keep.bounds.body {
            out(Told::Limit(Limit::Memory));
        }
        if before.1 != body.unreadable() && body.unreadable() == Some(Unreadable::TooLarge) {
            out(Told::Limit(Limit::Coding));
        }
        // Of most bodies there is no more to say.
        if has_events {
            self.tell_events(id, found, out);
        }
        if has_lines {
            self.tell_lines(id, None, out);
        }
        if has_messages {
            self.tell_messages(id, side, out);
        }
        if has_events || is_coded {
            self.weigh(id, keep, out);
        }
    }

    /// Those of gRPC that have just begun. A call is a stream from its second message of a side on.
    fn tell_messages(&mut self, id: u64, side: Side, out: Out<'_>) {
        let Some(Open { exchange, .. }) = self.open.get_mut(&id) else {
            return;
        };
        let is_told = exchange.is_told;
        let half = exchange.half(side).as_ref();
        let Some(messages) = half.and_then(|half| half.body.messages.as_ref()) else {
            return;
        };
        if !is_told {
            if messages.count > 1 {
                self.tell_open(id, out);
            }
            return;
        }
        for (number, size) in (messages.before..).zip(&messages.begun) {
            out(Told::Message {
                exchange: id,
                side,
                number,
                size: *size,
            });
        }
    }

    fn hole(&mut self, id: u64, side: Side, length: u64, is_inside: bool, time: u64, keep: &Keep) {
        let Open {
            exchange, events, ..
        } = self.open(id);
        let half = exchange.seen(side, time, keep);
        half.has_hole = true;
        half.lost += length;
        half.body.hole(length, is_inside);
        if let (Side::Response, Some(events)) = (side, events) {
            events.hole();
        }
    }

    fn end(
        &mut self,
        id: u64,
        side: Side,
        is_whole: bool,
        time: u64,
        keep: &mut Keep,
        out: Out<'_>,
    ) {
        let Some(Open {
            exchange,
            events,
            is_answered,
            ..
        }) = self.open.get_mut(&id)
        else {
            return;
        };
        *is_answered |= side == Side::Response;
        let mut found = Vec::new();
        if let Some(half) = exchange.half(side) {
            half.end(is_whole, time);
            if let (Side::Response, Some(events)) = (side, events) {
                events.close(&mut |event| found.push(event));
            }
        }
        // Of a request that was never seen no end comes.
        let has_asked = exchange.request().is_none_or(|half| half.is_over);
        let is_over = has_asked && *is_answered;
        self.tell_events(id, found, out);
        if side == Side::Response {
            self.tell_lines(id, Some(is_whole), out);
        }
        if is_over {
            self.tell(id, keep, out);
        }
    }

    fn tell_events(&mut self, id: u64, found: Vec<sse::Found>, out: Out<'_>) {
        let Some(Open { exchange, .. }) = self.open.get_mut(&id) else {
            return;
        };
        for found in found {
            match found {
                sse::Found::Limit(limit) => out(Told::Limit(limit)),
                sse::Found::Event(event) => {
                    let number = exchange.events;
                    exchange.events += 1;
                    out(Told::Event {
                        exchange,
                        event,
                        number,
                    });
                }
            }
        }
    }

    /// Those that are whole, or, behind the last of the body, all: was its end seen?
    fn tell_lines(&mut self, id: u64, end: Option<bool>, out: Out<'_>) {
        let Some(Open {
            exchange, lines, ..
        }) = self.open.get_mut(&id)
        else {
            return;
        };
        let exchange: &Exchange = exchange;
        let (Some(found), Some(half)) = (lines.as_mut(), exchange.response()) else {
            return;
        };
        let body = &half.body;
        let kept = lines::Kept {
            bytes: &body.kept,
            holes: &body.holes,
        };
        let say = &mut |line: Line<'_>| out(Told::Line { exchange, line });
        let is_cut = body.is_cut || body.unreadable().is_some();
        if end.is_none() && !is_cut {
            return found.feed(kept, say);
        }
        let is_seen = end == Some(true) || half.is_as_long_as_said();
        found.close(kept, is_seen && !is_cut, say);
        *lines = None;
    }

    fn tell(&mut self, id: u64, keep: &mut Keep, out: Out<'_>) {
        self.tell_lines(id, Some(false), out);
        let Some(Open {
            mut exchange,
            socket,
            held,
            ..
        }) = self.open.remove(&id)
        else {
            return;
        };
        self.held -= held;
        keep.held -= held;
        if let Some(mut socket) = socket {
            socket.close(&mut |found| tell_found(found, None, keep, out));
        }
        for half in exchange.halves.iter_mut().flatten() {
            half.settle();
            keep.release(&half.body.kept);
        }
        if exchange.halves().next().is_some() {
            out(Told::Exchange(&exchange));
        }
    }
}

/// Bytes of no message are a body's.
fn tell_found(found: websocket::Found<'_>, body: Option<&mut Body>, keep: &mut Keep, out: Out<'_>) {
    match (found, body) {
        (websocket::Found::Message(message), _) => out(Told::WebSocket(message)),
        (websocket::Found::Limit(limit), _) => out(Told::Limit(limit)),
        (websocket::Found::Undecoded(_, bytes), Some(body)) => body.feed(bytes, keep, &mut |_| {}),
        (websocket::Found::Undecoded(..), None) => {}
    }
}
