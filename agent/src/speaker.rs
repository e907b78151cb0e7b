//! What is said of one connection → records: its bytes, its gaps, and what its decoder makes of them.

use std::collections::BTreeMap;

use agent_ebpf::Direction;

use crate::{
    event::{HandleId, StreamId},
    http::Teller,
    pipeline::{Out, Wanted},
    plaintext::Plaintext,
    protocol::{
        Limit, Said,
        exchange::{Exchange, Half},
        head::{Request, Response, Version},
    },
    record::{Body, Cause, Connection, Content, Joined, Kind, Process, Record, WallTime},
    redact::{self, Redactor},
};

/// The records of one connection, at one event.
pub struct Voice<'a> {
    pub wanted: &'a Wanted,
    pub process: Option<&'a Process>,
    pub tid: Option<u32>,
    pub function: Option<&'static str>,
    pub connection: &'a mut Connection,
    /// Of the stream: is nothing missing, and how much is.
    pub complete: bool,
    pub lost: u64,
    pub time: u64,
    /// Wall clock minus time since boot, in nanoseconds.
    pub clock: u64,
    pub sequence: &'a mut u64,
    pub out: Out<'a>,
}

impl Voice<'_> {
    /// A record about the stream.
    pub fn say(&mut self, body: Body<'_>) {
        self.say_of(self.time, self.complete, self.lost, body);
    }

    fn say_of(&mut self, time: u64, complete: bool, lost_bytes: u64, body: Body<'_>) {
        let record = &mut Record {
            sequence: 0,
            time: WallTime(time.wrapping_add(self.clock)),
            process: self.process,
            tid: self.tid,
            connection: Some(self.connection),
            function: self.function,
            complete,
            lost_bytes,
            body,
        };
        emit(self.wanted, self.sequence, self.out, record);
    }

    fn data(&mut self, direction: Direction, offset: u64, length: u64, content: Content<'_>) {
        self.say(Body::Data {
            direction,
            offset,
            length,
            content,
        });
    }
}

/// Numbers the record and lets it out, if its kind is wanted.
pub fn emit(wanted: &Wanted, sequence: &mut u64, out: Out<'_>, record: &mut Record<'_>) {
    let kind = record.body.kind();
    if wanted.emit.contains(&kind) || kind == Kind::Data && wanted.undecoded {
        record.sequence = *sequence;
        *sequence += 1;
        out(record);
    }
}

/// A [`Voice`] and what it redacts with.
pub struct Speaker<'a> {
    pub voice: Voice<'a>,
    pub redactor: &'a mut Redactor,
    /// How often a bound of a decoder was reached.
    pub limits: &'a mut BTreeMap<Limit, u64>,
    pub handle: HandleId,
}

impl Speaker<'_> {
    /// Bytes of a stream, as data.
    pub fn bytes(&mut self, direction: Direction, offset: u64, bytes: Plaintext<'_>, time: u64) {
        let Speaker {
            voice,
            redactor,
            handle,
            ..
        } = self;
        let piece = redact::Piece {
            offset,
            bytes,
            is_first: voice.connection.joined == Joined::Start && offset == 0,
            time,
        };
        let id = StreamId {
            handle: *handle,
            direction,
        };
        redactor.bytes(id, piece, &mut |offset, length, content| {
            voice.data(direction, offset, length, content);
        });
    }

    pub fn gap(&mut self, direction: Direction, offset: u64, length: u64, cause: Cause) {
        let Speaker {
            voice,
            redactor,
            handle,
            ..
        } = self;
        let id = StreamId {
            handle: *handle,
            direction,
        };
        redactor.gap(id, length, &mut |offset, length, content| {
            voice.data(direction, offset, length, content);
        });
        voice.say(Body::Gap {
            direction,
            cause,
            offset: Some(offset),
            length,
        });
    }

    /// What the decoder says.
    pub fn heard(&mut self, said: Said<'_>) {
        match said {
            // All bytes are told as data already.
            Said::Data { .. } if self.voice.wanted.emit.contains(&Kind::Data) => {}
            Said::Data {
                direction,
                offset,
                bytes,
                time,
                is_stray: false,
            } => self.bytes(direction, offset, bytes, time),
            Said::Data {
                direction,
                offset,
                bytes,
                ..
            } => {
                let content = self.redactor.stray(bytes);
                self.voice
                    .data(direction, offset, bytes.len() as u64, content);
            }
            Said::Exchange(exchange) => self.exchange(exchange),
            Said::Event {
                exchange,
                event,
                number,
            } => {
                self.names_version(exchange);
                let sse = self.teller().event(exchange, event, number);
                let complete = !event.is_cut;
                self.voice
                    .say_of(self.voice.time, complete, 0, Body::Sse(&sse));
            }
            Said::Message { direction, message } => {
                let socket = self.teller().message(direction, message);
                let complete = !message.is_cut && !message.is_unreadable;
                self.voice
                    .say_of(message.began, complete, 0, Body::WebSocket(&socket));
            }
            Said::Limit(limit) => *self.limits.entry(limit).or_default() += 1,
        }
    }

    fn exchange(&mut self, exchange: &Exchange) {
        self.names_version(exchange);
        let began = match (&exchange.request, &exchange.response) {
            (Some(half), _) => half.began,
            (None, Some(half)) => half.began,
            (None, None) => return,
        };
        let complete = exchange.request.as_ref().is_some_and(|half| half.is_whole)
            && exchange.response.as_ref().is_some_and(|half| half.is_whole);
        let lost = exchange.request.as_ref().map_or(0, |half| half.lost)
            + exchange.response.as_ref().map_or(0, |half| half.lost);
        let teller = self.teller();
        if let Some(grpc) = teller.grpc(exchange) {
            return self.voice.say_of(began, complete, lost, Body::Grpc(&grpc));
        }
        let http = teller.http(exchange);
        self.voice.say_of(began, complete, lost, Body::Http(&http));
    }

    fn names_version(&mut self, exchange: &Exchange) {
        let of_request = |half: &Half<Request>| half.head.as_ref().map(|head| head.version);
        let of_response = |half: &Half<Response>| half.head.as_ref().map(|head| head.version);
        let version = exchange
            .request
            .as_ref()
            .and_then(of_request)
            .or_else(|| exchange.response.as_ref().and_then(of_response));
        if let Some(version) = version.map(Version::name) {
            self.voice.connection.http_version = Some(version);
        }
    }

    fn teller(&self) -> Teller<'_> {
        Teller {
            redactor: self.redactor,
            policy: self.voice.wanted.content,
            server: self.voice.connection.server_name.as_deref(),
            clock: self.voice.clock,
        }
    }
}
