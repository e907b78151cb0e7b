//! Exchanges → calls to language models, as they go on.
//!
//! A call is read while it comes: its request into a tree of bounded size, its response piece by piece, whether it
//! is streamed or not. What is missing of it is said, and never made up: a client that hangs up, a hole, a
//! connection that was joined in its middle. One wire format a file, all told in the same words (`call.rs`).
//!
//! Whether an exchange is a call is for its body to say. Its path is a hint, and the name of the server none: local
//! models and gateways have any.

mod bedrock;
pub mod call;
mod chat;
mod cohere;
mod conversations;
pub mod dialog;
mod format;
mod gemini;
mod messages;
mod ollama;
pub mod price;
mod provider;
mod realtime;
mod responses;
mod route;
mod streamed;
pub mod tell;

use std::collections::{HashMap, HashSet};

use agent_ebpf::Direction;

use crate::{
    plaintext::Plaintext,
    planted::Mistake,
    protocol::{
        Limit, Side, eventstream,
        exchange::{Exchange, Half},
        head::{self, Head, media_name},
        json::{self, Layout, Read, Reader, Text, Value},
        sse, websocket,
    },
    record::Words,
    redact::Redactor,
};
use call::{Message, PARTS_MAX, Request, Response};
pub use format::Format;
use realtime::Socket;
pub use realtime::{Heard, Turn};
use route::Route;
use streamed::Streamed;

/// Bytes kept of a request, of a response, and of a text that is put together.
const ROOM: usize = 1 << 20;

/// Of all calls that are open.
const TOTAL: usize = 64 << 20;

/// Most members of a body that are looked at before it is clear that it is no call.
const MEMBERS_MAX: usize = 24;

/// What open calls hold, of all connections.
#[derive(Debug, Default)]
pub struct Held(usize);

impl Held {
    pub fn bytes(&self) -> usize {
        self.0
    }
}

/// The open calls of a connection, by their exchanges.
#[derive(Debug, Default)]
pub struct Calls {
    open: HashMap<u64, Call>,
    /// Exchanges that seemed to be calls, and of which nobody knows what they are any more.
    forgotten: HashSet<u64>,
    /// What it became, and what that holds.
    socket: Option<Socket>,
    socket_held: usize,
}

/// One call, while it goes on.
#[derive(Debug)]
pub struct Call {
    route: Route,
    asked: Asked,
    answered: Answered,
    pub format: Option<Format>,
    pub request: Request,
    pub response: Response,
    pub pace: Pace,
    pub missing: Missing,
    pub streamed: Streamed,
    held: usize,
    /// Bytes that came since it was weighed.
    heard: usize,
}

/// When pieces of a streamed response came, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    pub chunks: u64,
    pub first: u64,
    pub last: u64,
}

/// What is not known of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Its request, or a part of it.
    pub request: bool,
    /// A part of its response.
    pub response: bool,
    /// How it ended: its response did not come to the end that the API gives it.
    pub end: bool,
    /// It was too long to be kept.
    pub content: bool,
}

impl Missing {
    /// As in records.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let Missing {
            request,
            response,
            end,
            content,
        } = self;
        let all = [
            (request, "request"),
            (response, "response"),
            (end, "end"),
            (content, "content"),
        ];
        all.into_iter()
            .filter(|(is_missing, _)| *is_missing)
            .map(|(_, name)| name)
    }
}

/// The request.
#[derive(Debug)]
enum Asked {
    Reading(Box<Reader>),
    /// It is in, or as much as came of it.
    Read(Value),
    /// It is known what it says, or that it can't be known.
    Over,
}

/// The response.
#[derive(Debug)]
enum Answered {
    /// Nothing came yet.
    Not,
    /// In one piece.
    Whole(Box<Reader>),
    /// In values, each a piece: in lines, or as elements of a list.
    Pieces(Box<Reader>),
    /// In events.
    Events,
    /// In messages of an event stream.
    Messages(Box<eventstream::Messages>),
    /// In something that is not read here.
    Otherwise,
}

/// Hears of bounds that were reached.
pub type Out<'a> = &'a mut dyn FnMut(Limit);

impl Calls {
    /// A head came: of a call, if its path or its body may be that of one.
    pub fn head(&mut self, exchange: &Exchange, side: Side) {
        match side {
            Side::Request => {
                if let Some(call) = Call::asked(exchange) {
                    self.open.insert(exchange.id, call);
                }
            }
            Side::Response => {
                let has_asked = exchange.request().is_some();
                if !has_asked {
                    self.open.insert(exchange.id, Call::unasked());
                }
                if let Some(call) = self.open.get_mut(&exchange.id) {
                    call.answers(exchange);
                }
            }
        }
    }

    /// More of a body, without its codings.
    pub fn body(
        &mut self,
        exchange: u64,
        side: Side,
        bytes: Plaintext<'_>,
        time: u64,
        held: &mut Held,
        out: Out<'_>,
    ) {
        let Some(call) = self.open.get_mut(&exchange) else {
            return;
        };
        call.heard += bytes.len();
        let goes_on = match side {
            Side::Request => call.hears_request(bytes.reveal()),
            Side::Response => call.hears_response(bytes.reveal(), time),
        };
        self.weigh(exchange, goes_on, held, out);
    }

    /// A part of a body is missing.
    pub fn hole(&mut self, exchange: u64, side: Side, time: u64) {
        if let Some(call) = self.open.get_mut(&exchange) {
            call.misses(side, time);
        }
    }

    /// An event of a response.
    pub fn event(
        &mut self,
        exchange: u64,
        event: &sse::Event,
        time: u64,
        held: &mut Held,
        out: Out<'_>,
    ) {
        let Some(call) = self.open.get_mut(&exchange) else {
            return;
        };
        let goes_on = call.hears_event(event, time);
        self.weigh(exchange, goes_on, held, out);
    }

    /// Is it a call, as far as it is known?
    pub fn is_one(&self, exchange: u64) -> bool {
        let call = self.open.get(&exchange);
        call.is_some_and(|call| call.format.is_some())
    }

    /// Was it told as one, and will not be?
    pub fn is_forgotten(&self, exchange: u64) -> bool {
        self.forgotten.contains(&exchange)
    }

    /// A call whose answer begins to come, the first time.
    pub fn begin(&mut self, exchange: u64, began: u64) -> Option<&Call> {
        let call = self.open.get_mut(&exchange)?;
        let is_asking = matches!(call.asked, Asked::Reading(_));
        if is_asking || call.format.is_none() || call.streamed.begun.is_some() {
            return None;
        }
        call.settle();
        call.request.name_results();
        call.begins(began);
        Some(call)
    }

    /// Does the answer of a call begin here, of which more comes in pieces?
    pub fn is_answered_in_pieces(&self, exchange: &Exchange) -> bool {
        let call = self.open.get(&exchange.id);
        let status = exchange.answered().and_then(|head| head.status);
        call.is_some_and(Call::is_in_pieces) && status.is_none_or(|status| status < 400)
    }

    /// A call whose answer comes in pieces, once what was asked has been told.
    pub fn read(&mut self, exchange: u64) -> Option<&mut Call> {
        let call = self.open.get_mut(&exchange)?;
        (call.is_in_pieces() && call.streamed.begun.is_some()).then_some(call)
    }

    /// An exchange is over: the call that it was, if it was one.
    pub fn end(&mut self, exchange: &Exchange, held: &mut Held) -> Option<Call> {
        if let Some(socket) = Socket::of(exchange) {
            self.socket = Some(socket);
        }
        self.forgotten.remove(&exchange.id);
        let mut call = self.open.remove(&exchange.id)?;
        held.0 -= call.held;
        let is_call = call.ends(exchange);
        call.request.name_results();
        is_call.then_some(call)
    }

    /// A message of a WebSocket that the connection became.
    pub fn message(
        &mut self,
        direction: Direction,
        message: &websocket::Message,
        time: u64,
        held: &mut Held,
        out: Out<'_>,
    ) -> Heard {
        let Some(socket) = &mut self.socket else {
            return Heard::default();
        };
        let heard = socket.message(direction, message, time);
        let (weight, is_one) = (socket.weight(), socket.is_one());
        self.weigh_socket(weight, held);
        let is_too_much = held.0 > TOTAL;
        if is_too_much {
            out(Limit::Memory);
        }
        // Those that are over are told of by what it was.
        if heard.over.is_empty() && (is_too_much || !is_one) {
            self.weigh_socket(0, held);
            self.socket = None;
        }
        heard
    }

    /// The call over a WebSocket that is read along, the first time that there is something to read, and what became the
    /// WebSocket.
    pub fn begin_turn(&mut self) -> Option<(&Turn, (u64, &head::Request))> {
        let socket = self.socket.as_mut()?;
        let is_begun = socket.turns.front_mut()?.begin();
        let socket: &Socket = socket;
        is_begun.then_some((socket.turns.front()?, (socket.exchange, &socket.asked)))
    }

    /// The same, once it has begun: of several that go on the first. With the exchange.
    pub fn turn(&mut self) -> Option<(u64, &mut Turn)> {
        let socket = self.socket.as_mut()?;
        let exchange = socket.exchange;
        let turn = socket.turns.front_mut()?;
        turn.call
            .streamed
            .begun
            .is_some()
            .then_some((exchange, turn))
    }

    fn weigh_socket(&mut self, weight: usize, held: &mut Held) {
        let before = std::mem::replace(&mut self.socket_held, weight);
        held.0 = held.0 - before + weight;
    }

    /// A part of a stream is missing.
    pub fn gap(&mut self, direction: Direction) {
        if let Some(socket) = &mut self.socket {
            socket.gap(direction);
        }
    }

    /// The connection is over, and so are the calls of what it became.
    pub fn close(&mut self, held: &mut Held) -> Vec<Turn> {
        self.weigh_socket(0, held);
        let socket = self.socket.as_mut();
        socket.map_or_else(Vec::new, Socket::close)
    }

    /// Nobody hears of them any more.
    pub fn leave(&mut self, held: &mut Held) {
        self.weigh_socket(0, held);
        self.socket = None;
        self.forgotten.clear();
        held.0 -= self.open.drain().map(|(_, call)| call.held).sum::<usize>();
    }

    /// The exchange that became a WebSocket, and what it asked for.
    pub fn upgraded(&self) -> Option<(u64, &head::Request)> {
        let socket = self.socket.as_ref()?;
        Some((socket.exchange, &socket.asked))
    }

    /// Counts what a call holds, and forgets it if that is too much, or if it is none.
    fn weigh(&mut self, exchange: u64, goes_on: bool, held: &mut Held, out: Out<'_>) {
        let Some(call) = self.open.get_mut(&exchange) else {
            return;
        };
        // To weigh takes the longer the more there is, and so is done the more seldom.
        if goes_on && call.heard < call.held / 16 {
            return;
        }
        call.heard = 0;
        let weight = call.weight();
        let before = std::mem::replace(&mut call.held, weight);
        held.0 = held.0 - before + call.held;
        let is_too_much = held.0 > TOTAL;
        if is_too_much {
            out(Limit::Memory);
        }
        if !goes_on || is_too_much {
            held.0 -= call.held;
            if call.format.is_some() {
                self.forgotten.insert(exchange);
            }
            self.open.remove(&exchange);
        }
    }
}

impl Call {
    fn new(route: Route, asked: Asked) -> Call {
        Call {
            route,
            asked,
            answered: Answered::Not,
            format: None,
            request: Request::default(),
            response: Response::default(),
            pace: Pace::default(),
            missing: Missing::default(),
            streamed: Streamed::default(),
            held: 0,
            heard: 0,
        }
    }

    /// A request that may be one.
    fn asked(exchange: &Exchange) -> Option<Call> {
        let head = exchange.asked()?;
        let is_post = head
            .method
            .as_deref()
            .is_none_or(|method| method == b"POST");
        let media = head.fields.get("content-type").unwrap_or_default();
        // curl says that it sends a form, whatever it is.
        let is_json = is_json(media)
            || media.is_empty()
            || media_name(media) == b"application/x-www-form-urlencoded";
        if !is_post || !is_json {
            return None;
        }
        let route = Route::of(head)?;
        let reader = Reader::new(Layout::Values, ROOM);
        Some(Call::new(route, Asked::Reading(Box::new(reader))))
    }

    /// A response whose request was not seen.
    fn unasked() -> Call {
        let mut call = Call::new(Route::default(), Asked::Over);
        call.missing.request = true;
        call
    }

    /// Does its answer come in pieces?
    fn is_in_pieces(&self) -> bool {
        match &self.answered {
            Answered::Pieces(_) | Answered::Events | Answered::Messages(_) => true,
            Answered::Not | Answered::Whole(_) | Answered::Otherwise => false,
        }
    }

    /// What was asked is told now.
    fn begins(&mut self, began: u64) {
        self.streamed.begun = Some(began);
        self.streamed.asked = self.request.messages.len();
    }

    /// What has come of its answer since the last time, if what was asked has been told. `is_over`: nothing more comes.
    pub fn fresh(&mut self, exchange: u64, is_over: bool, redactor: &Redactor) -> Vec<Words> {
        // Items of a response are one answer. Of several answers the first one is read along.
        let count = match self.format {
            Some(Format::Responses | Format::Realtime) => usize::MAX,
            _ => 1,
        };
        let messages = &self.response.messages;
        let answer = &messages[..messages.len().min(count)];
        self.streamed.fresh(exchange, answer, is_over, redactor)
    }

    /// `gen_ai.provider.name`, of whom the name of the server says nothing.
    pub fn provider(&self) -> Option<&'static str> {
        self.route.provider.or(self.format.map(Format::provider))
    }

    /// How its response comes.
    fn answers(&mut self, exchange: &Exchange) {
        let Some(Head::Response(head)) = exchange.response().and_then(|half| half.head.as_ref())
        else {
            return;
        };
        self.response.usage.update(bedrock::fields(&head.fields));
        if let Some(kind) = head.fields.get("x-amzn-errortype") {
            // A link may follow.
            let kind = String::from_utf8_lossy(kind);
            self.response.error = kind.split(':').next().map(Text::of);
        }
        let media = head.fields.get("content-type").unwrap_or_default();
        self.answered = match media_name(media).as_slice() {
            b"text/event-stream" => Answered::Events,
            b"application/x-ndjson"
            | b"application/jsonl"
            | b"application/json-lines"
            | b"application/stream+json" => {
                Answered::Pieces(Box::new(Reader::new(Layout::Lines, ROOM)))
            }
            b"application/vnd.amazon.eventstream" => Answered::Messages(Box::default()),
            _ if is_json(media) && self.route.is_list => {
                Answered::Pieces(Box::new(Reader::new(Layout::Elements, ROOM)))
            }
            _ if is_json(media) => {
                let reader = Reader::new(Layout::Values, ROOM);
                let is_vectors = self
                    .format
                    .is_some_and(|format| format.operation() == "embeddings");
                Answered::Whole(Box::new(match is_vectors {
                    true => reader.without_numbers(),
                    false => reader,
                }))
            }
            _ => Answered::Otherwise,
        };
    }

    /// More of the request. False: it is no call.
    fn hears_request(&mut self, bytes: &[u8]) -> bool {
        let Asked::Reading(reader) = &mut self.asked else {
            return true;
        };
        // What comes behind the first value is nothing of the API's.
        let mut found = None;
        reader.feed(bytes, &mut |read| {
            found.get_or_insert(read);
        });
        if let Some(read) = found {
            return self.reads_request(read);
        }
        let Asked::Reading(reader) = &self.asked else {
            return true;
        };
        !reader.is_broken() && (self.route.format.is_some() || may_be_one(reader.members()))
    }

    fn reads_request(&mut self, read: Read) -> bool {
        self.missing.content |= read.is_cut;
        self.missing.request |= read.is_broken;
        // As it would have been decided on the way.
        if self.route.format.is_some() || may_be_one(read.value.members()) {
            self.format = Format::of_request(&self.route, &read.value);
        }
        self.asked = Asked::Read(read.value);
        self.format.is_some()
    }

    /// Nothing more comes of the request.
    fn settle(&mut self) {
        if let Asked::Reading(reader) = &mut self.asked {
            let mut found = None;
            reader.close(&mut |read| found = Some(read));
            self.missing.request = true;
            if let Some(read) = found {
                self.reads_request(read);
            }
        }
        if let Asked::Read(value) = std::mem::replace(&mut self.asked, Asked::Over)
            && let Some(format) = self.format
        {
            self.request = format.request(&value);
            if self.missing.request || self.missing.content {
                self.request.lacks();
            }
            let Route { model, stream, .. } = &self.route;
            let asked = &mut self.request;
            asked.model = asked.model.take().or_else(|| model.clone());
            asked.parameters.stream = asked.parameters.stream.or(*stream);
        }
    }

    fn hears_response(&mut self, bytes: &[u8], time: u64) -> bool {
        if let Answered::Messages(messages) = &mut self.answered {
            let mut found = Vec::new();
            messages.feed(bytes, &mut |message| found.push(message));
            return found
                .into_iter()
                .all(|message| self.hears_message(message, time));
        }
        let (Answered::Whole(reader) | Answered::Pieces(reader)) = &mut self.answered else {
            return true;
        };
        let mut found = Vec::new();
        reader.feed(bytes, &mut |read| {
            if Mistake::Llm.is_planted() {
                found.clear();
            }
            found.push(read);
        });
        found
            .into_iter()
            .all(|read| self.reads_response(read, time))
    }

    fn hears_event(&mut self, event: &sse::Event, time: u64) -> bool {
        // OpenAI's last one.
        if event.data == b"[DONE]" {
            self.response.is_over = true;
            return true;
        }
        self.missing.response |= event.is_cut;
        match json::read(&event.data, ROOM) {
            Some(read) => self.reads_response(read, time),
            None => true,
        }
    }

    fn hears_message(&mut self, found: eventstream::Found, time: u64) -> bool {
        let message = match found {
            eventstream::Found::Message(message) => message,
            eventstream::Found::TooLong => {
                self.missing.content = true;
                return true;
            }
            eventstream::Found::Broken => {
                self.missing.response = true;
                return true;
            }
        };
        let Some(read) = bedrock::piece(&message) else {
            // There is something in it, and it can't be read.
            self.missing.response |= !message.payload.is_empty();
            return true;
        };
        let metrics = bedrock::metrics(&read.value);
        let goes_on = self.reads_response(read, time);
        if let Some(usage) = metrics {
            self.response.usage.update(usage);
            self.response.is_over = true;
        }
        goes_on
    }

    /// A response, or a piece of one.
    fn reads_response(&mut self, read: Read, time: u64) -> bool {
        let Read {
            value,
            is_cut,
            is_broken,
        } = read;
        // Who answers knows best what it is.
        if self.route.format.is_none() || self.format.is_none() {
            self.format = Format::of_response(&value).or(self.format);
        }
        self.settle();
        let Some(format) = self.format else {
            return false;
        };
        self.missing.content |= is_cut;
        self.missing.response |= is_broken;
        if matches!(self.answered, Answered::Whole(_)) {
            format.response(&value, &mut self.response);
            return true;
        }
        if self.pace.chunks == 0 {
            self.pace.first = time;
        }
        self.pace.chunks += 1;
        self.pace.last = time;
        format.event(&value, &mut self.response);
        true
    }

    fn misses(&mut self, side: Side, time: u64) {
        match side {
            Side::Request => {
                self.missing.request = true;
                if let Asked::Reading(reader) = &mut self.asked {
                    let mut found = None;
                    reader.hole(&mut |read| found = Some(read));
                    if let Some(read) = found {
                        self.reads_request(read);
                    }
                }
            }
            Side::Response => {
                self.missing.response = true;
                if let Answered::Messages(messages) = &mut self.answered {
                    messages.hole();
                }
                if let Answered::Whole(reader) | Answered::Pieces(reader) = &mut self.answered {
                    let mut found = Vec::new();
                    reader.hole(&mut |read| found.push(read));
                    for read in found {
                        self.reads_response(read, time);
                    }
                }
            }
        }
    }

    /// The exchange is over. False: it was no call.
    fn ends(&mut self, exchange: &Exchange) -> bool {
        let time = exchange.response().map_or(0, |half| half.ended);
        if let Answered::Whole(reader) | Answered::Pieces(reader) = &mut self.answered {
            let mut found = Vec::new();
            reader.close(&mut |read| found.push(read));
            for read in found {
                self.reads_response(read, time);
            }
        }
        if let Answered::Messages(messages) = &mut self.answered {
            messages.close(&mut |_| self.missing.response = true);
        }
        self.settle();
        if let Some(format) = self.format {
            format.end(&mut self.response);
        }
        let is_full = |message: &Message| message.parts.len() >= PARTS_MAX;
        self.missing.content |= self.response.messages.iter().any(is_full);
        let is_whole = |half: Option<&Half>| half.is_some_and(|half| half.is_whole);
        self.missing.request |= !is_whole(exchange.request());
        self.missing.response |= exchange.response().is_none_or(|half| half.lost > 0);
        self.missing.end = !self.response.is_over && self.response.error.is_none();
        if let Some(status) = exchange.answered().and_then(|head| head.status)
            && status >= 400
        {
            self.missing.end = !is_whole(exchange.response());
            self.response
                .error
                .get_or_insert_with(|| Text::of(&status.to_string()));
        }
        self.format.is_some()
    }

    fn weight(&self) -> usize {
        let asked = match &self.asked {
            Asked::Reading(reader) => reader.held(),
            Asked::Read(value) => value.weight(),
            Asked::Over => self.request.weight(),
        };
        let answered = match &self.answered {
            Answered::Whole(reader) | Answered::Pieces(reader) => reader.held(),
            Answered::Messages(messages) => messages.held(),
            Answered::Not | Answered::Events | Answered::Otherwise => 0,
        };
        asked + answered + self.response.weight()
    }
}

/// May a body that begins with these members be that of a call?
fn may_be_one(members: &[(Box<str>, Value)]) -> bool {
    let is_one = |(name, _): &(Box<str>, Value)| matches!(&**name, "messages" | "model");
    match members.get(..MEMBERS_MAX) {
        Some(first) => first.iter().any(is_one),
        None => true,
    }
}

/// `application/json`, `application/problem+json`.
fn is_json(media: &[u8]) -> bool {
    let name = media_name(media);
    name == b"application/json" || name == b"text/json" || name.ends_with(b"+json")
}

#[cfg(test)]
mod tests;
