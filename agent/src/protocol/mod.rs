//! Bytes of a connection in order, and its gaps → what they mean.
//!
//! Every decoder is a function of bytes, gaps and times: `feed`, `gap`, `close`. One wire format a file.
//! A decoder never fails: what it can't read it says as [`Message::Undecoded`], and goes on where it finds
//! the next message.

pub mod charset;
pub mod content;
pub mod deflate;
pub mod eventstream;
pub mod exchange;
pub mod grpc;
pub mod head;
pub mod hpack;
pub mod http1;
pub mod http2;
mod huffman;
pub mod json;
pub mod lines;
pub mod sse;
#[cfg(test)]
mod transcript;
pub mod websocket;

use std::fmt;

use agent_ebpf::Direction;

use crate::{
    plaintext::{Kept, Plaintext},
    planted::Mistake,
};
use exchange::{Exchange, Exchanges, Keep, Told};
use head::{Fields, Head};
use http1::{Fed, Http1};
use http2::Http2;
use lines::Line;
use websocket::{Deflate, WebSocket};

/// The two halves of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Request,
    Response,
}

/// What a decoder says. `exchange` counts the exchanges of its connection, from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// `began` is when its first byte came.
    Head {
        exchange: u64,
        head: Head,
        began: u64,
    },
    /// More of a body, without its transfer coding.
    Body {
        exchange: u64,
        side: Side,
        bytes: Plaintext<'a>,
    },
    /// Bytes of a message that are missing.
    Hole {
        exchange: u64,
        side: Side,
        length: u64,
        /// All of them are of its body. Else nobody knows how many of them are, and whether more are.
        is_inside: bool,
    },
    Trailers {
        exchange: u64,
        side: Side,
        fields: Fields,
    },
    /// A message is over; not `is_whole` if its end was not seen.
    End {
        exchange: u64,
        side: Side,
        is_whole: bool,
    },
    /// Bytes of no message that we know the beginning of. They end with the first `end` bytes of the call that
    /// was fed, and may have begun in one before; 0 at a gap and at the end.
    Undecoded {
        side: Side,
        bytes: Plaintext<'a>,
        end: usize,
    },
    /// A bound was reached, and something was given up for it.
    Limit(Limit),
}

/// Bounds of what a peer can make us keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// A head, a trailer or the line before a chunk is too long, or has too many fields; or too many heads come
    /// before the response.
    Head,
    /// A sender's table of fields is too large.
    Table,
    /// More requests were sent than answered.
    Pipeline,
    /// More streams are open than anybody needs.
    Streams,
    /// A body has too many codings, one with too large a window, or grows too much.
    Coding,
    /// What is kept of exchanges that are open is too much.
    Memory,
    /// A server-sent event is too long.
    Event,
    /// A WebSocket message is too long.
    Message,
}

impl Limit {
    pub const ALL: [Limit; 8] = [
        Limit::Head,
        Limit::Table,
        Limit::Pipeline,
        Limit::Streams,
        Limit::Coding,
        Limit::Memory,
        Limit::Event,
        Limit::Message,
    ];

    /// As in `stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Head => "head",
            Limit::Table => "table",
            Limit::Pipeline => "pipeline",
            Limit::Streams => "streams",
            Limit::Coding => "coding",
            Limit::Memory => "memory",
            Limit::Event => "event",
            Limit::Message => "message",
        }
    }
}

/// Takes what a decoder says.
pub type Out<'a> = &'a mut dyn FnMut(Message<'_>);

/// What a connection becomes when its two ends agree on another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    WebSocket(Option<Deflate>),
    /// Behind CONNECT, or an upgrade that we don't know.
    Tunnel,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Request => "request",
            Side::Response => "response",
        })
    }
}

/// One connection: what it speaks, and what it is in the middle of.
#[derive(Debug)]
pub struct Protocol {
    decoder: Decoder,
    /// The direction of requests, once it is known.
    asks: Direction,
    exchanges: Exchanges,
    /// How many exchanges began before the present decoder.
    begun: u64,
}

#[derive(Debug)]
enum Decoder {
    /// From its first byte, and too little has come to tell.
    New(Vec<Waiting>),
    /// From somewhere: a message may begin at any call.
    Middle,
    Http1(Box<Http1>),
    Http2(Box<Http2>),
    WebSocket(Box<WebSocket>),
    /// Nothing that we know.
    Opaque,
}

/// Bytes of a call that wait until it is known what they are.
#[derive(Debug)]
struct Waiting {
    direction: Direction,
    offset: u64,
    bytes: Kept,
    time: u64,
}

/// What is said of a connection.
pub enum Said<'a> {
    /// These bytes of a stream are of no protocol that we know, or of no message whose beginning we know.
    Data {
        direction: Direction,
        offset: u64,
        bytes: Plaintext<'a>,
        time: u64,
        /// The connection is decoded otherwise: redaction can't know what this is a part of.
        is_stray: bool,
    },
    /// A request began.
    Asked(u64),
    /// An exchange goes on.
    Open(&'a Exchange),
    /// A message of gRPC, in an exchange that goes on.
    Part {
        exchange: u64,
        direction: Direction,
        number: u64,
        size: u32,
    },
    /// The head of a side is in.
    Head {
        exchange: &'a Exchange,
        side: Side,
    },
    /// More of a body that is no stream of events, without its codings.
    Body {
        exchange: u64,
        side: Side,
        bytes: Plaintext<'a>,
    },
    /// A part of a body is missing.
    Hole {
        exchange: u64,
        side: Side,
    },
    Exchange(&'a Exchange),
    Event {
        exchange: &'a Exchange,
        event: &'a sse::Event,
        number: u64,
    },
    /// A line of a response that goes on.
    Line {
        exchange: &'a Exchange,
        direction: Direction,
        line: &'a Line<'a>,
    },
    Message {
        direction: Direction,
        message: &'a websocket::Message,
    },
    Limit(Limit),
    /// The connection is over: nothing more is said of it.
    Closed,
}

/// Longest first line of a message that is waited for.
const UNDECIDED_MAX: usize = 16 << 10;

/// What the first bytes of one direction look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    /// It could become one.
    Open,
    Http1(Side),
    Http2(Side),
    Other,
}

impl Protocol {
    pub fn new(from_start: bool) -> Protocol {
        Protocol {
            decoder: match from_start {
                true => Decoder::New(Vec::new()),
                false => Decoder::Middle,
            },
            asks: Direction::Sent,
            exchanges: Exchanges::default(),
            begun: 0,
        }
    }

    /// Is it of no protocol that we know?
    pub fn is_opaque(&self) -> bool {
        matches!(self.decoder, Decoder::Opaque)
    }

    /// The next bytes of a direction, as one TLS call carried them. `client`: the direction of the client's
    /// bytes, if the socket told it.
    pub fn feed(
        &mut self,
        piece: Piece<'_>,
        client: Option<Direction>,
        keep: &mut Keep,
        out: &mut dyn FnMut(Said<'_>),
    ) {
        let Piece {
            direction,
            offset,
            bytes,
            time,
        } = piece;
        match &mut self.decoder {
            Decoder::Opaque => out(data(piece, false)),
            Decoder::Middle => match looks_from(bytes.reveal(), direction, client) {
                Looks::Http1(side) => {
                    self.asks = direction_of(direction, side);
                    self.decoder = Decoder::Http1(Box::new(Http1::new(false).behind(self.begun)));
                    self.decode(piece, keep, out);
                }
                Looks::Http2(side) => {
                    self.asks = direction_of(direction, side);
                    self.decoder = Decoder::Http2(Box::new(Http2::new(false).behind(self.begun)));
                    self.decode(piece, keep, out);
                }
                Looks::Open | Looks::Other => out(data(piece, false)),
            },
            Decoder::New(waiting) => {
                waiting.push(Waiting {
                    direction,
                    offset,
                    bytes: bytes.keep(),
                    time,
                });
                let looks = looks_of(waiting, direction);
                self.decide(looks, direction, keep, out);
            }
            _ => self.decode(piece, keep, out),
        }
    }

    /// The next `length` bytes of a direction are missing.
    pub fn gap(
        &mut self,
        direction: Direction,
        length: u64,
        time: u64,
        keep: &mut Keep,
        out: &mut dyn FnMut(Said<'_>),
    ) {
        if let Decoder::New(_) = self.decoder {
            self.let_go(Decoder::Middle, out);
        }
        let (side, asks) = (self.side(direction), self.asks);
        let Protocol {
            decoder, exchanges, ..
        } = self;
        let note = &mut |message: Message<'_>| {
            exchanges.note(message, time, keep, &mut |told| tell(told, asks, out));
        };
        match decoder {
            Decoder::Http1(http) => http.gap(side, length, note),
            Decoder::Http2(http) => http.gap(side, length, note),
            Decoder::WebSocket(socket) => {
                socket.gap(side, length, &mut |found| {
                    tell_found(found, asks, 0, time, out)
                });
            }
            Decoder::New(_) | Decoder::Middle | Decoder::Opaque => {}
        }
    }

    /// The connection is over.
    pub fn close(&mut self, time: u64, keep: &mut Keep, out: &mut dyn FnMut(Said<'_>)) {
        if let Decoder::New(_) = self.decoder {
            self.let_go(Decoder::Opaque, out);
        }
        let asks = self.asks;
        let Protocol {
            decoder, exchanges, ..
        } = self;
        let note = &mut |message: Message<'_>| {
            exchanges.note(message, time, keep, &mut |told| tell(told, asks, out));
        };
        match decoder {
            Decoder::Http1(http) => http.close(note),
            Decoder::Http2(http) => http.close(note),
            Decoder::WebSocket(socket) => {
                socket.close(&mut |found| tell_found(found, asks, 0, time, out));
            }
            Decoder::New(_) | Decoder::Middle | Decoder::Opaque => {}
        }
        exchanges.close(keep, &mut |told| tell(told, asks, out));
        self.decoder = Decoder::Opaque;
        out(Said::Closed);
    }

    /// Tells of an exchange that it goes on, unless it is over or was told of.
    pub fn show(&mut self, exchange: u64, out: &mut dyn FnMut(Said<'_>)) {
        let asks = self.asks;
        self.exchanges
            .show(exchange, &mut |told| tell(told, asks, out));
    }

    fn side(&self, direction: Direction) -> Side {
        match direction == self.asks {
            true => Side::Request,
            false => Side::Response,
        }
    }

    /// What a new connection is, if its first bytes tell.
    fn decide(
        &mut self,
        looks: Looks,
        direction: Direction,
        keep: &mut Keep,
        out: &mut dyn FnMut(Said<'_>),
    ) {
        let (decoder, side) = match looks {
            Looks::Open => return,
            Looks::Other => return self.let_go(Decoder::Opaque, out),
            Looks::Http1(side) => (
                Decoder::Http1(Box::new(Http1::new(true).behind(self.begun))),
                side,
            ),
            Looks::Http2(side) => (
                Decoder::Http2(Box::new(Http2::new(true).behind(self.begun))),
                side,
            ),
        };
        self.asks = direction_of(direction, side);
        let Decoder::New(waiting) = std::mem::replace(&mut self.decoder, decoder) else {
            return;
        };
        for Waiting {
            direction,
            offset,
            bytes,
            time,
        } in waiting
        {
            let piece = Piece {
                direction,
                offset,
                bytes: bytes.plaintext(),
                time,
            };
            self.decode(piece, keep, out);
        }
    }

    /// Nothing that we know: what waited is data.
    fn let_go(&mut self, decoder: Decoder, out: &mut dyn FnMut(Said<'_>)) {
        let Decoder::New(waiting) = std::mem::replace(&mut self.decoder, decoder) else {
            return;
        };
        for call in waiting {
            out(Said::Data {
                direction: call.direction,
                offset: call.offset,
                bytes: call.bytes.plaintext(),
                time: call.time,
                is_stray: false,
            });
        }
    }

    fn decode(&mut self, piece: Piece<'_>, keep: &mut Keep, out: &mut dyn FnMut(Said<'_>)) {
        let Piece {
            direction,
            offset,
            bytes,
            time,
        } = piece;
        let (side, asks) = (self.side(direction), self.asks);
        let Protocol {
            decoder, exchanges, ..
        } = self;
        let note = &mut |message: Message<'_>| match message {
            Message::Undecoded { bytes, end, .. } => out(Said::Data {
                direction,
                offset: (offset + end as u64).saturating_sub(bytes.len() as u64),
                bytes,
                time,
                is_stray: true,
            }),
            message => exchanges.note(message, time, keep, &mut |told| tell(told, asks, out)),
        };
        let next = match decoder {
            Decoder::Http1(http) => match http.feed(side, bytes.reveal(), time, note) {
                Fed::All => return,
                Fed::Switched(at, next) => {
                    self.begun = http.begun();
                    (at, next)
                }
            },
            Decoder::Http2(http) => return http.feed(side, bytes.reveal(), time, note),
            Decoder::WebSocket(socket) => {
                let end = offset + bytes.len() as u64;
                return socket.feed(side, bytes.reveal(), time, &mut |found| {
                    tell_found(found, asks, end, time, out);
                });
            }
            Decoder::New(_) | Decoder::Middle | Decoder::Opaque => return,
        };
        let (at, next) = next;
        // What is still open is of the protocol that ends here.
        exchanges.close(keep, &mut |told| tell(told, asks, out));
        self.decoder = match next {
            Next::WebSocket(deflate) => Decoder::WebSocket(Box::new(WebSocket::new(deflate))),
            Next::Tunnel => Decoder::New(Vec::new()),
        };
        let behind = if Mistake::Protocol.is_planted() {
            0
        } else {
            at
        };
        let rest = Piece {
            direction,
            offset: offset + behind as u64,
            bytes: bytes.skip(at),
            time,
        };
        if !rest.bytes.is_empty() {
            self.feed(rest, None, keep, out);
        }
    }
}

/// Bytes of one call.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    pub direction: Direction,
    /// In the stream.
    pub offset: u64,
    pub bytes: Plaintext<'a>,
    pub time: u64,
}

fn data(piece: Piece<'_>, is_stray: bool) -> Said<'_> {
    Said::Data {
        direction: piece.direction,
        offset: piece.offset,
        bytes: piece.bytes,
        time: piece.time,
        is_stray,
    }
}

/// `asks`: the client's direction.
fn tell(told: Told<'_>, asks: Direction, out: &mut dyn FnMut(Said<'_>)) {
    match told {
        Told::Asked(exchange) => out(Said::Asked(exchange)),
        Told::Open(exchange) => out(Said::Open(exchange)),
        Told::Message {
            exchange,
            side,
            number,
            size,
        } => out(Said::Part {
            exchange,
            direction: direction_of(asks, side),
            number,
            size,
        }),
        Told::Head { exchange, side } => out(Said::Head { exchange, side }),
        Told::Body {
            exchange,
            side,
            bytes,
        } => out(Said::Body {
            exchange,
            side,
            bytes: Plaintext::new(bytes),
        }),
        Told::Hole { exchange, side } => out(Said::Hole { exchange, side }),
        Told::Exchange(exchange) => out(Said::Exchange(exchange)),
        Told::Event {
            exchange,
            event,
            number,
        } => out(Said::Event {
            exchange,
            event: &event,
            number,
        }),
        Told::Line { exchange, line } => out(Said::Line {
            exchange,
            direction: direction_of(asks, Side::Response),
            line: &line,
        }),
        Told::WebSocket(message) => out(Said::Message {
            direction: direction_of(asks, message.side),
            message: &message,
        }),
        Told::Limit(limit) => out(Said::Limit(limit)),
    }
}

/// `asks`: the client's direction; `end`: the position behind the call.
fn tell_found(
    found: websocket::Found<'_>,
    asks: Direction,
    end: u64,
    time: u64,
    out: &mut dyn FnMut(Said<'_>),
) {
    match found {
        websocket::Found::Message(message) => out(Said::Message {
            direction: direction_of(asks, message.side),
            message: &message,
        }),
        websocket::Found::Undecoded(side, bytes) => out(Said::Data {
            direction: direction_of(asks, side),
            offset: end - bytes.len() as u64,
            bytes: Plaintext::new(bytes),
            time,
            is_stray: true,
        }),
        websocket::Found::Limit(limit) => out(Said::Limit(limit)),
    }
}

/// Which way that side goes, if requests go this way; and which way requests go, if that side goes this way.
fn direction_of(asks: Direction, side: Side) -> Direction {
    match (side, asks) {
        (Side::Request, asks) => asks,
        (Side::Response, Direction::Sent) => Direction::Received,
        (Side::Response, Direction::Received) => Direction::Sent,
    }
}

/// What a call in the middle of a connection begins with.
fn looks_from(bytes: &[u8], direction: Direction, client: Option<Direction>) -> Looks {
    for side in [Side::Request, Side::Response] {
        if http1::is_start(side, bytes) {
            return Looks::Http1(side);
        }
    }
    if bytes.starts_with(http2::PREFACE) {
        return Looks::Http2(Side::Request);
    }
    // Frames of both ends look alike.
    let side = match client {
        Some(client) if client == direction => Side::Request,
        Some(_) => Side::Response,
        None => return Looks::Other,
    };
    match http2::is_start(side, bytes) {
        true => Looks::Http2(side),
        false => Looks::Other,
    }
}

/// What the first bytes of a direction of a new connection look like.
fn looks_of(waiting: &[Waiting], direction: Direction) -> Looks {
    let calls: Vec<&Waiting> = waiting
        .iter()
        .filter(|call| call.direction == direction)
        .collect();
    match calls[..] {
        [call] => looks_like(call.bytes.plaintext().reveal()),
        _ => {
            let parts = calls.iter().map(|call| call.bytes.plaintext().reveal());
            looks_like(&parts.collect::<Vec<_>>().concat())
        }
    }
}

fn looks_like(bytes: &[u8]) -> Looks {
    let length = bytes.len().min(http2::PREFACE.len());
    if bytes[..length] == http2::PREFACE[..length] {
        return match length == http2::PREFACE.len() {
            true => Looks::Http2(Side::Request),
            false => Looks::Open,
        };
    }
    // A server of HTTP/2 may speak first, with its settings (RFC 9113, section 3.4).
    if bytes[0] == 0 {
        return match bytes.get(..9) {
            None => Looks::Open,
            Some([0, _, length, 4, 0, 0, 0, 0, 0]) if length % 6 == 0 => {
                Looks::Http2(Side::Response)
            }
            Some(_) => Looks::Other,
        };
    }
    // Empty lines before the first request are allowed.
    let blank = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let bytes = &bytes[blank..];
    if bytes.is_empty() {
        return if blank <= 8 {
            Looks::Open
        } else {
            Looks::Other
        };
    }
    let token = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'A'..=b'Z' | b'-' | b'/'))
        .count();
    let has_method = matches!(token, 1..=20)
        && matches!(bytes.get(token), None | Some(b' ' | b'1'))
        && bytes[0].is_ascii_uppercase();
    if !has_method {
        return Looks::Other;
    }
    if memchr::memchr(b'\n', bytes).is_none() {
        return match bytes.len() < UNDECIDED_MAX {
            true => Looks::Open,
            false => Looks::Other,
        };
    }
    let is = |side| http1::is_start(side, bytes);
    match (is(Side::Request), is(Side::Response)) {
        (true, _) => Looks::Http1(Side::Request),
        (_, true) => Looks::Http1(Side::Response),
        _ => Looks::Other,
    }
}

#[cfg(test)]
mod tests;
