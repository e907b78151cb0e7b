//! What decoders say of requests and responses → exchanges: a request, its response, and when it all came.
//!
//! Bodies are kept up to a limit, without their content codings; what is kept of all bodies together has a
//! bound of its own.

use std::collections::HashMap;

use super::{
    Limit, Message, Side,
    content::{Content, Unreadable},
    grpc::Messages,
    head::{Fields, Head, Request, Response},
    sse::{self, Events},
};

/// How much of bodies is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of one body, in bytes.
    pub body: usize,
    /// Of all bodies that are not told of yet, in bytes.
    pub total: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            body: 1 << 20,
            total: 64 << 20,
        }
    }
}

/// So many times its limit a body may grow to: beyond, it is not even counted.
const GROWTH: u64 = 64;

/// Most holes of one body that are told apart.
const HOLES_MAX: usize = 64;

/// What is kept of bodies, of all connections.
#[derive(Debug)]
pub struct Keep {
    bounds: Bounds,
    used: usize,
}

impl Keep {
    pub fn new(bounds: Bounds) -> Keep {
        Keep { bounds, used: 0 }
    }

    /// Adds what fits to a body. False: not all of it did.
    fn add(&mut self, kept: &mut Vec<u8>, bytes: &[u8]) -> bool {
        let room = self.bounds.body.saturating_sub(kept.len());
        let room = room.min(self.bounds.total.saturating_sub(self.used));
        let taken = bytes.len().min(room);
        kept.extend_from_slice(&bytes[..taken]);
        self.used += taken;
        taken == bytes.len()
    }

    fn release(&mut self, kept: &[u8]) {
        self.used = self.used.saturating_sub(kept.len());
    }

    /// Bytes that are kept now.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// A request and its response, as far as they were seen.
#[derive(Debug)]
pub struct Exchange {
    pub id: u64,
    pub request: Option<Half<Request>>,
    pub response: Option<Half<Response>>,
    /// Responses before the response, and their number only.
    pub interim: u32,
}

/// One side of an exchange. Times are those of the events, in nanoseconds.
#[derive(Debug)]
pub struct Half<H> {
    /// `None`: its beginning was not seen.
    pub head: Option<H>,
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
    is_over: bool,
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
    fn of(fields: &Fields, keep: &Keep) -> Body {
        let media = fields.get("content-type").unwrap_or_default();
        Body {
            kept: Vec::new(),
            length: 0,
            decoded: 0,
            is_cut: false,
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
        if let Some(messages) = &mut self.messages {
            messages.feed(bytes);
        }
        let (kept, decoded, is_cut) = (&mut self.kept, &mut self.decoded, &mut self.is_cut);
        let has_room = self.holes.len() < HOLES_MAX;
        self.content.feed(bytes, &mut |bytes| {
            *decoded += bytes.len() as u64;
            // Behind what did not fit nothing is kept.
            *is_cut = *is_cut || !has_room || !keep.add(kept, bytes);
            shown(bytes);
        });
    }

    fn hole(&mut self, length: u64) {
        self.content.hole();
        if self.holes.len() < HOLES_MAX {
            self.holes.push((self.kept.len(), length));
        }
        if let Some(messages) = &mut self.messages {
            messages.hole(length);
        }
    }
}

/// `application/grpc`, `application/grpc+proto`, `application/grpc-web`; its text form is base64, which is
/// not read.
pub fn is_grpc(media: &[u8]) -> bool {
    let name = media
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let name = name.to_ascii_lowercase();
    name.strip_prefix(b"application/grpc").is_some_and(|rest| {
        matches!(rest, [] | [b'+', ..]) || rest == b"-web" || rest.starts_with(b"-web+")
    })
}

fn is_event_stream(media: &[u8]) -> bool {
    let name = media.split(|byte| *byte == b';').next().unwrap_or_default();
    name.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

impl<H> Half<H> {
    fn new(head: Option<H>, body: Body, began: u64) -> Half<H> {
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
        }
    }
}

/// What is known at some moment.
pub enum Told<'a> {
    /// It is over.
    Exchange(&'a Exchange),
    /// An event of a response that goes on. `number` counts those of the response from 0.
    Event {
        exchange: &'a Exchange,
        event: sse::Event,
        number: u64,
    },
    Limit(Limit),
}

pub type Out<'a> = &'a mut dyn FnMut(Told<'_>);

/// The open exchanges of a connection.
#[derive(Debug, Default)]
pub struct Exchanges {
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    exchange: Exchange,
    /// If the response is a stream of events; and how many there were.
    events: Option<(Events, u64)>,
    /// No response comes any more, whether or not one came.
    is_answered: bool,
}

impl Exchanges {
    /// One message of a decoder, at a time.
    pub fn note(&mut self, message: Message<'_>, time: u64, keep: &mut Keep, out: Out<'_>) {
        match message {
            Message::Head {
                exchange,
                head,
                began,
            } => self.head(exchange, head, began, time, keep),
            Message::Body {
                exchange,
                side,
                bytes,
            } => self.body(exchange, side, bytes.reveal(), time, keep, out),
            Message::Hole {
                exchange,
                side,
                length,
            } => self.hole(exchange, side, length, time, keep),
            Message::Trailers {
                exchange,
                side,
                fields,
            } => {
                let open = self.open(exchange);
                match side {
                    Side::Request => {
                        if let Some(half) = &mut open.exchange.request {
                            half.trailers = fields;
                        }
                    }
                    Side::Response => {
                        if let Some(half) = &mut open.exchange.response {
                            half.trailers = fields;
                        }
                    }
                }
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
            exchange: Exchange {
                id,
                request: None,
                response: None,
                interim: 0,
            },
            events: None,
            is_answered: false,
        })
    }

    fn head(&mut self, id: u64, head: Head, began: u64, time: u64, keep: &mut Keep) {
        let open = self.open(id);
        match head {
            Head::Request(head) => {
                let body = Body::of(&head.fields, keep);
                let half = Half::new(Some(head), body, began);
                half.follow(&mut open.exchange.request, time, keep);
            }
            Head::Response(head) if head.is_interim() => open.exchange.interim += 1,
            Head::Response(head) => {
                let body = Body::of(&head.fields, keep);
                let media = head.fields.get("content-type").unwrap_or_default();
                open.events = is_event_stream(media).then(Default::default);
                let half = Half::new(Some(head), body, began);
                half.follow(&mut open.exchange.response, time, keep);
            }
        }
    }

    /// The side of an exchange, made if nothing was seen of it before.
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
            exchange, events, ..
        } = self.open(id);
        let mut found = Vec::new();
        match side {
            Side::Request => {
                let half = exchange.request.get_or_insert_with(|| {
                    Half::new(None, Body::of(&Fields::default(), keep), time)
                });
                half.ended = time;
                half.body.feed(bytes, keep, &mut |_| {});
            }
            Side::Response => {
                let half = exchange.response.get_or_insert_with(|| {
                    Half::new(None, Body::of(&Fields::default(), keep), time)
                });
                half.ended = time;
                half.body.feed(bytes, keep, &mut |bytes| {
                    if let Some((events, _)) = events {
                        events.feed(bytes, &mut |event| found.push(event));
                    }
                });
            }
        }
        self.tell_events(id, found, out);
    }

    fn tell_events(&mut self, id: u64, found: Vec<sse::Found>, out: Out<'_>) {
        let Some(Open {
            exchange,
            events: Some((_, count)),
            ..
        }) = self.open.get_mut(&id)
        else {
            return;
        };
        for found in found {
            match found {
                sse::Found::Limit(limit) => out(Told::Limit(limit)),
                sse::Found::Event(event) => {
                    let number = *count;
                    *count += 1;
                    out(Told::Event {
                        exchange,
                        event,
                        number,
                    });
                }
            }
        }
    }

    fn hole(&mut self, id: u64, side: Side, length: u64, time: u64, keep: &Keep) {
        let Open {
            exchange, events, ..
        } = self.open(id);
        let (has_hole, lost, body) = match side {
            Side::Request => {
                let half = exchange.request.get_or_insert_with(|| {
                    Half::new(None, Body::of(&Fields::default(), keep), time)
                });
                (&mut half.has_hole, &mut half.lost, &mut half.body)
            }
            Side::Response => {
                if let Some((events, _)) = events {
                    events.hole();
                }
                let half = exchange.response.get_or_insert_with(|| {
                    Half::new(None, Body::of(&Fields::default(), keep), time)
                });
                (&mut half.has_hole, &mut half.lost, &mut half.body)
            }
        };
        *has_hole = true;
        *lost += length;
        body.hole(length);
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
        }) = self.open.get_mut(&id)
        else {
            return;
        };
        *is_answered |= side == Side::Response;
        let is_answered = *is_answered;
        let mut found = Vec::new();
        match (side, &mut exchange.request, &mut exchange.response) {
            (Side::Request, Some(half), _) => half.end(is_whole, time),
            (Side::Response, _, Some(half)) => {
                half.end(is_whole, time);
                if let Some((events, _)) = events {
                    events.close(&mut |event| found.push(event));
                }
            }
            (Side::Request, None, _) | (Side::Response, _, None) => {}
        }
        // Of a request that was never seen no end comes.
        let has_asked = exchange.request.as_ref().is_none_or(|half| half.is_over);
        self.tell_events(id, found, out);
        if has_asked && is_answered {
            self.tell(id, keep, out);
        }
    }

    fn tell(&mut self, id: u64, keep: &mut Keep, out: Out<'_>) {
        let Some(Open { mut exchange, .. }) = self.open.remove(&id) else {
            return;
        };
        if let Some(half) = &mut exchange.request {
            half.settle(|head| &head.fields);
        }
        if let Some(half) = &mut exchange.response {
            half.settle(|head| &head.fields);
        }
        if let Some(half) = &exchange.request {
            keep.release(&half.body.kept);
        }
        if let Some(half) = &exchange.response {
            keep.release(&half.body.kept);
        }
        if exchange.request.is_some() || exchange.response.is_some() {
            out(Told::Exchange(&exchange));
        }
    }
}

impl<H> Half<H> {
    /// Takes the place of what came before a head, if anything did: nobody knows what it was of.
    fn follow(mut self, place: &mut Option<Half<H>>, time: u64, keep: &mut Keep) {
        self.ended = time;
        if let Some(before) = place.take() {
            keep.release(&before.body.kept);
            self.has_hole = true;
            self.lost = before.lost + before.body.length;
            self.is_over = before.is_over;
        }
        *place = Some(self);
    }

    /// Nothing more comes. All of the body may have, though nobody read on to where it ends: curl goes by
    /// `Content-Length`, and leaves an empty last frame of HTTP/2 to the system.
    fn settle(&mut self, fields: impl Fn(&H) -> &Fields) {
        let Some(head) = self.head.as_ref().filter(|_| !self.is_over) else {
            return;
        };
        let length = fields(head).get("content-length");
        let length = length.and_then(|length| str::from_utf8(length).ok()?.parse().ok());
        self.is_whole = !self.has_hole && length == Some(self.body.length);
    }

    fn end(&mut self, is_whole: bool, time: u64) {
        self.is_over = true;
        self.is_whole = is_whole && !self.has_hole && self.head.is_some();
        if is_whole {
            self.ended = time;
        }
    }
}
