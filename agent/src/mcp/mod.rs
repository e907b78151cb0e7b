//! Exchanges → calls of the Model Context Protocol, over its Streamable HTTP (2025-03-26 and later) and over what was
//! before it, HTTP with server-sent events (2024-11-05).
//!
//! A call is a request of JSON-RPC with its answer, or a notification, whoever sends it: what a client says is in
//! bodies of POST, what a server says in their responses, in JSON or as events, or in events of a GET. An answer is
//! joined to its request by the id, in the same exchange, or in another one of the same session and process.
//!
//! Whether it is MCP is for the messages to say, and for the heads that it has of its own. Paths and the names of
//! servers say nothing. What is missing of a call is said, and never made up.

pub mod call;
mod message;
pub mod tell;
mod waiting;

use std::{collections::HashMap, sync::Arc};

use crate::{
    event::HandleId,
    plaintext::Plaintext,
    protocol::{
        Limit, Side,
        exchange::Exchange,
        head::{self, Head, media_name},
        json::{self, Layout, Read, Reader, Text, Value},
        sse,
    },
};
use call::{Call, Missing, SESSION, Session};
use message::Message;
pub use waiting::Waiting;
use waiting::{Answer, Asked};

/// Bytes kept of a message.
const ROOM: usize = 1 << 20;

/// Most messages of an exchange that wait for its end. A batch is a few.
const DONE_MAX: usize = 256;

/// Lines of heads that only MCP has.
const HEADERS: [&str; 3] = [SESSION, VERSION, "mcp-method"];

const VERSION: &str = "mcp-protocol-version";

/// Hears of bounds that were reached.
pub type Out<'a> = &'a mut dyn FnMut(Limit);

/// What is heard, and what it is joined to.
pub struct Ear<'a> {
    pub handle: HandleId,
    pub time: u64,
    pub waiting: &'a mut Waiting,
    pub out: Out<'a>,
}

/// The exchanges of a connection that may be MCP.
#[derive(Debug, Default)]
pub struct Calls {
    open: HashMap<u64, Open>,
    /// It has carried MCP.
    is_known: bool,
}

/// One of them, while it goes on.
#[derive(Debug)]
struct Open {
    /// Bodies that are JSON: of the request, of the response.
    readers: [Option<Box<Reader>>; 2],
    head: Option<Arc<head::Request>>,
    /// As its heads have it.
    session: Option<Session>,
    /// Its events come from there.
    endpoint: Option<Session>,
    version: Option<Text>,
    /// One of [`HEADERS`] is there.
    has_header: bool,
    /// It is MCP.
    is_known: bool,
    /// The connection has carried it before.
    is_among: bool,
    began: u64,
    /// Calls that are told of when it is over.
    done: Vec<Call>,
    held: usize,
}

impl Calls {
    /// A head came: of messages, if its body may be some.
    pub fn head(&mut self, exchange: &Exchange, side: Side) {
        let is_among = self.is_known;
        match side {
            Side::Request => {
                if let Some(head) = exchange.asked()
                    && may_ask(head)
                {
                    let began = exchange.request().map_or(0, |half| half.began);
                    let mut open = Open::new(Some(head), began, is_among);
                    open.readers[side as usize] = Some(reader());
                    self.open.insert(exchange.id, open);
                }
            }
            Side::Response => {
                let Some(Head::Response(head)) =
                    exchange.response().and_then(|half| half.head.as_ref())
                else {
                    return;
                };
                let media = head.fields.get("content-type").unwrap_or_default();
                let is_stream = media_name(media) == b"text/event-stream";
                let asked = exchange.asked();
                let is_get = asked.is_some_and(|head| head.method.as_deref() == Some(b"GET"));
                // What a POST asked for was looked at already.
                if is_stream && is_get || exchange.request().is_none() {
                    let began = exchange.response().map_or(0, |half| half.began);
                    self.open
                        .insert(exchange.id, Open::new(asked, began, is_among));
                }
                if let Some(open) = self.open.get_mut(&exchange.id) {
                    open.hears_of(&head.fields);
                    let is_json = is_json(media) && !is_stream;
                    open.readers[side as usize] = is_json.then(reader);
                }
            }
        }
    }

    /// More of a body, without its codings.
    pub fn body(&mut self, exchange: u64, side: Side, bytes: Plaintext<'_>, ear: &mut Ear<'_>) {
        self.feed(exchange, side, ear, |reader, out| {
            reader.feed(bytes.reveal(), out)
        });
    }

    /// A part of a body is missing.
    pub fn hole(&mut self, exchange: u64, side: Side, ear: &mut Ear<'_>) {
        self.feed(exchange, side, ear, |reader, out| reader.hole(out));
    }

    fn feed(
        &mut self,
        exchange: u64,
        side: Side,
        ear: &mut Ear<'_>,
        feed: impl FnOnce(&mut Reader, json::Out<'_>),
    ) {
        let Some(open) = self.open.get_mut(&exchange) else {
            return;
        };
        let mut goes_on = open.feed(exchange, side, ear, feed);
        self.is_known |= open.is_known;
        let before = open.held;
        open.held = open.weight();
        ear.waiting.weigh(before, open.held);
        if ear.waiting.is_full() {
            (ear.out)(Limit::Memory);
            goes_on = false;
        }
        if !goes_on {
            self.forget(exchange, ear.waiting);
        }
    }

    fn forget(&mut self, exchange: u64, waiting: &mut Waiting) {
        if let Some(open) = self.open.remove(&exchange) {
            waiting.weigh(open.held, 0);
        }
    }

    /// An event of a response: the calls that end with it.
    pub fn event(
        &mut self,
        exchange: &Exchange,
        event: &sse::Event,
        ear: &mut Ear<'_>,
    ) -> Vec<Call> {
        let Some(open) = self.open.get_mut(&exchange.id) else {
            return Vec::new();
        };
        let mut done = Vec::new();
        let goes_on = open.event(exchange.id, event, ear, &mut done);
        self.is_known |= open.is_known;
        if !goes_on {
            self.forget(exchange.id, ear.waiting);
        }
        done
    }

    /// An exchange is over: the calls that end with it.
    pub fn end(&mut self, exchange: &Exchange, ear: &mut Ear<'_>) -> Vec<Call> {
        for side in [Side::Request, Side::Response] {
            self.feed(exchange.id, side, ear, Reader::close);
        }
        let Some(open) = self.open.remove(&exchange.id) else {
            return Vec::new();
        };
        ear.waiting.weigh(open.held, 0);
        open.end(exchange, ear)
    }

    /// The connection is over: the calls that nothing answers any more.
    pub fn close(&mut self, ear: &mut Ear<'_>) -> Vec<(u64, Call)> {
        self.leave(ear.waiting);
        let calls = ear.waiting.close(ear.handle).into_iter();
        calls
            .map(|(exchange, call)| (exchange, call.unanswered()))
            .collect()
    }

    /// Nothing is told of the connection any more.
    pub fn leave(&mut self, waiting: &mut Waiting) {
        for (_, open) in self.open.drain() {
            waiting.weigh(open.held, 0);
        }
    }
}

impl Open {
    fn new(head: Option<&head::Request>, began: u64, is_among: bool) -> Open {
        let mut open = Open {
            readers: [None, None],
            head: head.map(|head| Arc::new(address(head))),
            session: None,
            endpoint: None,
            version: None,
            has_header: false,
            is_known: false,
            is_among,
            began,
            done: Vec::new(),
            held: 0,
        };
        if let Some(head) = head {
            open.hears_of(&head.fields);
        }
        open
    }

    fn hears_of(&mut self, fields: &head::Fields) {
        self.has_header |= HEADERS.iter().any(|name| fields.get(name).is_some());
        self.session = self.session.take().or_else(|| Session::of_fields(fields));
        let version = || Some(Text::of(&String::from_utf8_lossy(fields.get(VERSION)?)));
        self.version = self.version.take().or_else(version);
    }

    /// Which session the messages of a side are of.
    fn session(&self, side: Side) -> Option<Session> {
        let target = || Session::of_target(self.head.as_ref()?.target.as_deref()?);
        let other = || match side {
            Side::Request => target(),
            Side::Response => self.endpoint.clone(),
        };
        self.session.clone().or_else(other)
    }

    /// False: it is not MCP.
    fn feed(
        &mut self,
        exchange: u64,
        side: Side,
        ear: &mut Ear<'_>,
        feed: impl FnOnce(&mut Reader, json::Out<'_>),
    ) -> bool {
        let Some(reader) = &mut self.readers[side as usize] else {
            return true;
        };
        let mut found = Vec::new();
        feed(reader, &mut |read| found.push(read));
        // What stands behind something strange is not read, whether or not that came in the same call.
        let first = found.iter().position(is_strange);
        let is_strange = first.is_some() || reader.names().any(|name| !message::is_member(name));
        let is_over = reader.is_broken();
        if is_strange || is_over {
            self.readers[side as usize] = None;
        }
        let is_none = found.is_empty();
        found.truncate(first.unwrap_or(found.len()));
        let mut done = std::mem::take(&mut self.done);
        for read in found {
            self.reads(exchange, side, read, ear, &mut done);
        }
        if done.len() > DONE_MAX {
            done.truncate(DONE_MAX);
            (ear.out)(Limit::Memory);
        }
        self.done = done;
        let may_be = self.is_among || is_none && !is_over;
        self.is_known || self.has_header || may_be && !is_strange
    }

    fn event(
        &mut self,
        exchange: u64,
        event: &sse::Event,
        ear: &mut Ear<'_>,
        done: &mut Vec<Call>,
    ) -> bool {
        if event.name == b"endpoint" {
            self.endpoint = Session::of_target(&event.data);
            self.is_known |= self.endpoint.is_some();
            return true;
        }
        // There are such, for the id alone.
        if event.data.is_empty() {
            return true;
        }
        let Some(mut read) = json::read(&event.data, ROOM) else {
            return self.is_known;
        };
        read.is_broken |= event.is_cut;
        self.reads(exchange, Side::Response, read, ear, done);
        self.is_known || self.has_header
    }

    /// A message, or several of older versions.
    fn reads(
        &mut self,
        exchange: u64,
        side: Side,
        read: Read,
        ear: &mut Ear<'_>,
        done: &mut Vec<Call>,
    ) {
        let Read {
            value,
            is_cut,
            is_broken,
        } = read;
        if let Value::List(values) = value {
            let last = values.len().saturating_sub(1);
            for (at, value) in values.into_iter().enumerate() {
                let read = Read {
                    value,
                    is_cut,
                    is_broken: is_broken && at == last,
                };
                self.reads(exchange, side, read, ear, done);
            }
            return;
        }
        // What did not fit in is missing as well, be it an id.
        let is_partial = is_broken || is_cut;
        match Message::of(value, is_partial) {
            Some(Message::Asks { id, method, params }) => {
                if !self.is_mcp(&method.kept, params.as_ref()) {
                    return;
                }
                self.is_known = true;
                let is_notification = match is_partial {
                    true => method.kept.starts_with("notifications/"),
                    false => id.is_none(),
                };
                let call = Call {
                    id,
                    method: Some(method),
                    params,
                    is_notification,
                    missing: Missing {
                        request: is_broken,
                        content: is_cut,
                        ..Missing::default()
                    },
                    ..self.call(side, ear.time)
                };
                if is_notification {
                    return done.push(call);
                }
                let asked = Asked {
                    handle: ear.handle,
                    exchange,
                    session: self.session(side),
                    call,
                };
                done.extend(ear.waiting.ask(asked).map(Call::unanswered));
            }
            Some(Message::Answers { id, outcome }) => {
                let session = self.session(side);
                let answer = Answer {
                    handle: ear.handle,
                    exchange,
                    session: session.as_ref(),
                    side,
                    id: id.as_ref(),
                    outcome: &outcome,
                };
                let is_known = self.is_known || self.has_header || self.is_among;
                let mut call = match ear.waiting.answer(&answer) {
                    Some(call) => call,
                    // A notification that is refused has no id to be answered under.
                    None if id.is_none()
                        && let Some(at) = done.iter().position(is_open) =>
                    {
                        done.remove(at)
                    }
                    None if is_known => Call {
                        id,
                        missing: Missing {
                            request: true,
                            ..Missing::default()
                        },
                        ..self.call(other(side), ear.time)
                    },
                    None => return,
                };
                self.is_known = true;
                call.session = call.session.or(session);
                call.outcome = Some(outcome);
                call.ended = ear.time;
                call.missing.response |= is_broken;
                call.missing.content |= is_cut;
                done.push(call);
            }
            None => {}
        }
    }

    fn is_mcp(&self, method: &str, params: Option<&Value>) -> bool {
        let is_spoken = self.is_known || self.is_among;
        self.has_header
            || message::is_own(method, params)
            || is_spoken && message::is_shared(method)
    }

    /// One of which nothing is known but where it stands.
    fn call(&self, from: Side, time: u64) -> Call {
        Call {
            from,
            id: None,
            method: None,
            params: None,
            is_notification: false,
            outcome: None,
            status: None,
            session: self.session(from).filter(|session| session.id.is_some()),
            version: self.version.clone(),
            head: self.head.clone(),
            began: match from {
                Side::Request => self.began,
                Side::Response => time,
            },
            ended: time,
            missing: Missing::default(),
        }
    }

    fn end(self, exchange: &Exchange, ear: &mut Ear<'_>) -> Vec<Call> {
        let answered = exchange.answered();
        let status = answered.and_then(|head| head.status);
        let is_refused = status.is_some_and(|status| status >= 400);
        let media = answered.and_then(|head| head.fields.get("content-type"));
        let is_stream = media.is_some_and(|media| media_name(media) == b"text/event-stream");
        // The answer may come in another stream: of the older transport always, of the present one when the server
        // has closed this one.
        let has_id = self.session.is_some();
        let may_wait = |asked: &Asked| match asked.call.from {
            Side::Request => {
                !asked.call.missing.request && (status == Some(202) || is_stream && has_id)
            }
            Side::Response => asked.session.is_some(),
        };
        let ended = exchange.response().map_or(ear.time, |half| half.ended);
        let left = ear.waiting.end(ear.handle, exchange.id, may_wait);
        let mut calls = self.done;
        calls.extend(left.into_iter().map(|call| Call { ended, ..call }));
        for call in &mut calls {
            call.session = call.session.take().or_else(|| self.session.clone());
            if call.from == Side::Request && call.is_notification {
                call.ended = ended;
            }
            let is_open = call.outcome.is_none();
            if is_open && is_refused && call.from == Side::Request {
                call.status = status;
            } else if is_open && (!call.is_notification || status.is_none()) {
                call.missing.response |= call.from == Side::Request || !call.is_notification;
            }
        }
        calls
    }

    fn weight(&self) -> usize {
        let readers = self.readers.iter().flatten();
        let reading: usize = readers.map(|reader| reader.held()).sum();
        let done: usize = self.done.iter().map(Call::weight).sum();
        reading + done
    }
}

/// Is it a map with a member that no message has?
fn is_strange(read: &Read) -> bool {
    let mut members = read.value.members().iter();
    members.any(|(name, _)| !message::is_member(name))
}

fn other(side: Side) -> Side {
    match side {
        Side::Request => Side::Response,
        Side::Response => Side::Request,
    }
}

/// Is it a client's notification that nothing was said of?
fn is_open(call: &Call) -> bool {
    call.is_notification && call.from == Side::Request && call.outcome.is_none()
}

/// Lists are batches, and so is each message a value of its own.
fn reader() -> Box<Reader> {
    Box::new(Reader::new(Layout::Elements, ROOM))
}

/// May this be the head of messages?
fn may_ask(head: &head::Request) -> bool {
    let is_post = head
        .method
        .as_deref()
        .is_none_or(|method| method == b"POST");
    let media = head.fields.get("content-type").unwrap_or_default();
    is_post && (media.is_empty() || is_json(media))
}

fn is_json(media: &[u8]) -> bool {
    let name = media_name(media);
    name == b"application/json" || name.ends_with(b"+json")
}

/// What an address is made of, and nothing else of a head.
fn address(head: &head::Request) -> head::Request {
    let mut fields = head::Fields::default();
    if let Some(host) = head.fields.get("host") {
        fields.push(b"host", host);
    }
    head::Request {
        fields,
        version: head.version,
        method: head.method.clone(),
        target: head.target.clone(),
        scheme: head.scheme.clone(),
        authority: head.authority.clone(),
        protocol: None,
    }
}

#[cfg(test)]
mod tests;
