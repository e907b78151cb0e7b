//! What is said of one connection → records: its bytes, its gaps, and what its decoder makes of them.

use std::collections::{BTreeMap, VecDeque};

use agent_ebpf::Direction;

use crate::{
    connection::Border,
    detect::{About, Detector, Heard},
    event::{HandleId, StreamId},
    http::Teller,
    llm::{
        Calls, Held, Turn,
        dialog::{Dialogs, Place},
    },
    mcp,
    pipeline::{Out, Wanted},
    plaintext::Plaintext,
    policy::{Capture, Past},
    protocol::{Limit, Said, Side, exchange::Exchange, lines, sse},
    record::{
        Body, Cause, Connection, Content, Http, Joined, Kind, Line, Llm, Mcp, Message, Process,
        Record, Role, WallTime, Words,
    },
    redact::{self, Policy, Redactors, Told, View},
    shed::Account,
};

/// The records of one connection, at one event.
pub struct Voice<'a> {
    pub wanted: &'a Wanted,
    pub process: Option<&'a Process>,
    pub tid: Option<u32>,
    pub function: Option<&'static str>,
    pub connection: &'a mut Connection,
    /// Bytes that are missing of each stream so far, by direction.
    pub lost: [u64; 2],
    /// How much of its process may be told, and of what began under other policies.
    pub capture: Capture,
    pub past: Past,
    pub border: Border,
    pub time: u64,
    /// Wall clock minus time since boot, in nanoseconds.
    pub clock: u64,
    pub sequence: &'a mut u64,
    pub out: Out<'a>,
}

impl Voice<'_> {
    /// A record about a stream.
    fn say(&mut self, direction: Direction, body: Body<'_>) {
        let connection = &self.connection;
        let lost = self.lost[direction as usize];
        let is_known = connection.joined == Joined::Start && !connection.has_unseen;
        self.say_of(self.time, is_known && lost == 0, lost, body);
    }

    /// `time`: when what is told of began. Gives the record's number, if its kind is wanted.
    fn say_of(
        &mut self,
        time: u64,
        complete: bool,
        lost_bytes: u64,
        body: Body<'_>,
    ) -> Option<u64> {
        // What came before that was known is in its decoder still.
        if self.capture_since(time) == Capture::None {
            return None;
        }
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
        emit(self.wanted, self.sequence, self.out, record)
    }

    /// How much is told of what seems to have begun at this time.
    fn capture_since(&self, time: u64) -> Capture {
        self.past.least(self.border.began(time), self.capture)
    }

    /// What the redactor lets out of a stream. Less may be told of it than when the redactor took it.
    pub fn data(
        &mut self,
        direction: Direction,
        view: View,
        offset: u64,
        length: u64,
        content: Content<'_>,
    ) {
        let content = match self.capture.content(self.wanted.content) {
            Policy::None => Content::WITHHELD,
            Policy::Redacted | Policy::Full => content,
        };
        let body = Body::Data {
            direction,
            offset,
            length,
            content,
            view,
        };
        self.say(direction, body);
    }
}

/// Numbers the record and lets it out, if its kind is wanted: its number.
pub fn emit(
    wanted: &Wanted,
    sequence: &mut u64,
    out: Out<'_>,
    record: &mut Record<'_>,
) -> Option<u64> {
    let kind = record.body.kind();
    let is_wanted = wanted.emit.contains(&kind) || kind == Kind::Data && wanted.undecoded;
    is_wanted.then(|| {
        record.sequence = *sequence;
        *sequence += 1;
        out(record);
        record.sequence
    })
}

/// A [`Voice`] and what it redacts with.
pub struct Speaker<'a> {
    pub voice: Voice<'a>,
    pub redactors: &'a mut Redactors,
    /// How often a bound of a decoder was reached.
    pub limits: &'a mut BTreeMap<Limit, u64>,
    pub asked: &'a mut VecDeque<Asked>,
    /// What is left out.
    pub account: &'a mut Account,
    /// Those to models, and what such calls hold.
    pub calls: &'a mut Calls,
    pub held: &'a mut Held,
    pub dialogs: &'a mut Dialogs,
    /// Those of MCP, and what waits of all of them.
    pub mcp: &'a mut mcp::Calls,
    pub waits: &'a mut mcp::Waiting,
    /// What a person should look at.
    pub detector: &'a mut Detector,
    pub handle: HandleId,
}

/// A request, from when on it is waited for its response.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub time: u64,
    pub handle: HandleId,
    pub exchange: u64,
}

impl Speaker<'_> {
    /// Bytes of a stream, as data.
    pub fn bytes(
        &mut self,
        direction: Direction,
        view: View,
        offset: u64,
        bytes: Plaintext<'_>,
        time: u64,
    ) {
        let Speaker {
            voice,
            redactors,
            account,
            handle,
            ..
        } = self;
        let stream = StreamId {
            handle: *handle,
            direction,
        };
        let told = Told { stream, view };
        let is_first = voice.connection.joined == Joined::Start && offset == 0;
        let came = voice.border.came(direction, offset, time);
        let capture = voice.past.least(came, voice.capture);
        if capture == Capture::None {
            return;
        }
        let mut say = |offset, length, content: Content<'_>| {
            voice.data(direction, view, offset, length, content);
        };
        let length = bytes.len() as u64;
        if account.leaves_data_out(length) {
            // What comes behind it could be the rest of a secret.
            return redactors.holding_mut().gap(told, length, &mut say);
        }
        let piece = redact::Piece {
            offset,
            bytes,
            is_first,
            time,
        };
        redactors.bytes(told, piece, capture, &mut say);
    }

    pub fn gap(&mut self, direction: Direction, offset: u64, length: u64, cause: Cause) {
        let Speaker {
            voice,
            redactors,
            handle,
            ..
        } = self;
        let stream = StreamId {
            handle: *handle,
            direction,
        };
        self.calls.gap(direction);
        for told in Told::of(stream) {
            redactors
                .holding_mut()
                .gap(told, length, &mut |offset, length, content| {
                    voice.data(direction, told.view, offset, length, content);
                });
        }
        let body = Body::Gap {
            direction,
            cause,
            offset: Some(offset),
            length,
        };
        voice.say(direction, body);
    }

    /// What the decoder says.
    pub fn heard(&mut self, said: Said<'_>) {
        match said {
            Said::Data { .. } if !self.voice.wanted.undecoded => {}
            Said::Data {
                direction,
                offset,
                bytes,
                time,
                is_stray: false,
            } => self.bytes(direction, View::Undecoded, offset, bytes, time),
            Said::Data {
                direction,
                offset,
                bytes,
                time,
                ..
            } => {
                let came = self.voice.border.came(direction, offset, time);
                let capture = self.voice.past.least(came, self.voice.capture);
                let length = bytes.len() as u64;
                if capture == Capture::None || self.account.leaves_data_out(length) {
                    return;
                }
                let content = self.redactors.of(capture).stray(bytes);
                self.voice
                    .data(direction, View::Undecoded, offset, length, content);
            }
            Said::Asked(exchange) if self.voice.wanted.live => self.ask(exchange),
            Said::Open(exchange) if self.voice.wanted.live => {
                self.begins(exchange);
                let is_call = self.calls.is_one(exchange.id);
                self.exchange(exchange, true, is_call, false);
            }
            Said::Part {
                exchange,
                direction,
                number,
                size,
            } if self.voice.wanted.live => {
                let message = Message {
                    exchange,
                    direction,
                    number,
                    size,
                };
                self.voice
                    .say_of(self.voice.time, true, 0, Body::Message(&message));
            }
            Said::Line {
                exchange,
                direction,
                line,
            } if self.voice.wanted.live => {
                self.line(exchange, direction, line);
                self.words(exchange.id);
            }
            // What is read no further if nobody wants it: JSON, and all of it.
            Said::Head { exchange, side } => {
                let emit = &self.voice.wanted.emit;
                let is_judged = emit.contains(&Kind::Finding);
                if is_judged || emit.contains(&Kind::Llm) {
                    self.calls.head(exchange, side);
                }
                if side == Side::Response && self.calls.is_answered_in_pieces(exchange) {
                    self.begins(exchange);
                }
                if is_judged || emit.contains(&Kind::Mcp) {
                    self.mcp.head(exchange, side);
                }
            }
            Said::Asked(_) | Said::Open(_) | Said::Part { .. } | Said::Line { .. } => {}
            Said::Body {
                exchange,
                side,
                bytes,
            } => {
                let (time, limits) = (self.voice.time, &mut *self.limits);
                self.calls
                    .body(exchange, side, bytes, time, self.held, &mut count(limits));
                self.words(exchange);
                self.listen(|mcp, ear| mcp.body(exchange, side, bytes, ear));
            }
            Said::Hole { exchange, side } => {
                self.calls.hole(exchange, side, self.voice.time);
                self.listen(|mcp, ear| mcp.hole(exchange, side, ear));
            }
            Said::Exchange(exchange) => {
                let id = exchange.id;
                let was_call = self.calls.is_one(id) || self.calls.is_forgotten(id);
                let call = self.call(exchange);
                let is_new = was_call && call.is_none();
                let http = self.exchange(exchange, false, call.is_some(), is_new);
                let llm = call.and_then(|call| self.tells_call(exchange, call));
                let calls = self.listen(|mcp, ear| mcp.end(exchange, ear));
                let mcp = self.messages(exchange.id, &calls);
                self.judge(http, llm, &mcp);
            }
            Said::Event {
                exchange,
                event,
                number,
            } => {
                let (time, limits) = (self.voice.time, &mut *self.limits);
                self.calls
                    .event(exchange.id, event, time, self.held, &mut count(limits));
                self.names_version(exchange);
                self.begins(exchange);
                self.tells_event(exchange, event, number);
                self.words(exchange.id);
                let calls = self.listen(|mcp, ear| mcp.event(exchange, event, ear));
                let mcp = self.messages(exchange.id, &calls);
                self.judge(None, None, &mcp);
            }
            Said::Message { direction, message } => {
                let is_shed = self.account.cuts(&message.bytes);
                let capture = self.voice.capture_since(message.began);
                let (time, limits) = (self.voice.time, &mut *self.limits);
                let heard =
                    self.calls
                        .message(direction, message, time, self.held, &mut count(limits));
                let mut socket = self.teller(capture).message(direction, message, is_shed);
                socket.is_call = heard.is_call;
                let complete = !socket.is_cut && !message.is_unreadable;
                self.voice
                    .say_of(message.began, complete, 0, Body::WebSocket(&socket));
                self.turns(heard.over);
                self.turn();
            }
            Said::Closed => {
                let turns = self.calls.close(self.held);
                self.turns(turns);
                for (exchange, call) in self.listen(|mcp, ear| mcp.close(ear)) {
                    let mcp = self.messages(exchange, &[call]);
                    self.judge(None, None, &mcp);
                }
            }
            Said::Limit(limit) => *self.limits.entry(limit).or_default() += 1,
        }
    }

    fn tells_event(&mut self, exchange: &Exchange, event: &sse::Event, number: u64) {
        let is_shed = self.account.cuts(&event.data);
        let began = began(exchange).unwrap_or(self.voice.time);
        let capture = self.voice.capture_since(began);
        if capture == Capture::None {
            return;
        }
        let mut sse = self.teller(capture).event(exchange, event, number, is_shed);
        sse.is_call = self.calls.is_one(exchange.id);
        let complete = !sse.is_cut;
        self.voice
            .say_of(self.voice.time, complete, 0, Body::Sse(&sse));
    }

    /// Of a flood nobody reads along: the oldest are told of when they are over.
    fn ask(&mut self, exchange: u64) {
        const ASKED_MAX: usize = 4096;
        if self.asked.len() == ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(Asked {
            time: self.voice.time,
            handle: self.handle,
            exchange,
        });
    }

    fn line(&mut self, exchange: &Exchange, direction: Direction, line: &lines::Line<'_>) {
        let began = began(exchange).unwrap_or(self.voice.time);
        let capture = self.voice.capture_since(began);
        if capture == Capture::None {
            return;
        }
        let bytes = Plaintext::new(line.bytes);
        let redactor = self.redactors.of(capture);
        let line = Line {
            exchange: exchange.id,
            direction,
            number: line.number,
            content: redactor.whole(bytes, &line.holes, line.is_cut),
            is_cut: line.is_cut,
            is_call: self.calls.is_one(exchange.id),
        };
        let complete = !line.is_cut && line.content.holes().is_empty();
        self.voice
            .say_of(self.voice.time, complete, 0, Body::Line(&line));
    }

    /// `is_call`: it is told as one to a model, too. `is_new`: it was until now.
    /// What was told of it, unless nothing may be.
    fn exchange(
        &mut self,
        exchange: &Exchange,
        is_open: bool,
        is_call: bool,
        is_new: bool,
    ) -> Option<(Http, About)> {
        self.names_version(exchange);
        let began = began(exchange)?;
        let complete = exchange.halves().filter(|half| half.is_whole).count() == 2;
        let lost = exchange.halves().map(|half| half.lost).sum();
        if !is_open {
            let halves = exchange.halves();
            self.account
                .cut(halves.filter(|half| half.body.is_shed).count());
        }
        let capture = self.voice.capture_since(began);
        let mut teller = self.teller(capture);
        // Who reads along was told of a call, and of nothing else.
        teller.live &= !is_new;
        let told = match teller.grpc(exchange, is_open) {
            Some(grpc) => {
                let about = self.voice.say_of(began, complete, lost, Body::Grpc(&grpc));
                (grpc.http, about)
            }
            None => {
                let mut http = teller.http(exchange, is_open);
                http.is_call = is_call;
                let about = self.voice.say_of(began, complete, lost, Body::Http(&http));
                (http, about)
            }
        };
        (capture > Capture::None).then_some(told)
    }

    /// A call to a model, whose answer begins: for who reads along.
    fn begins(&mut self, exchange: &Exchange) {
        if !self.voice.wanted.reads_calls() {
            return;
        }
        let began = began(exchange).unwrap_or(self.voice.time);
        let Some(call) = self.calls.begin(exchange.id, began) else {
            return;
        };
        let teller = teller(self.redactors, &self.voice, self.voice.capture_since(began));
        let llm = teller.llm(call, exchange, Place::UNKNOWN);
        self.opens(began, llm);
    }

    fn opens(&mut self, began: u64, llm: Option<Llm>) {
        let Some(llm) = llm else { return };
        let llm = Llm {
            is_open: true,
            told: None,
            ..llm
        };
        self.voice.say_of(began, true, 0, Body::Llm(&llm));
    }

    /// What has come of its answer since.
    fn words(&mut self, exchange: u64) {
        let Some(call) = self.calls.read(exchange) else {
            return;
        };
        let began = call.streamed.begun.unwrap_or(self.voice.time);
        let redactor = self.redactors.of(self.voice.capture_since(began));
        let words = call.fresh(exchange, false, redactor);
        self.tells_words(began, &words);
    }

    /// The same of a call over a WebSocket.
    fn turn(&mut self) {
        if !self.voice.wanted.reads_calls() {
            return;
        }
        if let Some((turn, became)) = self.calls.begin_turn() {
            let began = turn.began;
            let teller = teller(self.redactors, &self.voice, self.voice.capture_since(began));
            let llm = teller.turn(turn, became, Place::UNKNOWN);
            self.opens(began, llm);
        }
        let Some((exchange, turn)) = self.calls.turn() else {
            return;
        };
        let began = turn.began;
        let redactor = self.redactors.of(self.voice.capture_since(began));
        let words = turn.call.fresh(exchange, false, redactor);
        self.tells_words(began, &words);
    }

    fn tells_words(&mut self, began: u64, words: &[Words]) {
        if self.voice.capture_since(began) == Capture::None {
            return;
        }
        for words in words {
            self.voice
                .say_of(self.voice.time, true, 0, Body::Words(words));
        }
    }

    /// The call to a model that it was, if it was one.
    fn call(&mut self, exchange: &Exchange) -> Option<Llm> {
        let mut call = self.calls.end(exchange, self.held)?;
        let place = self.dialogs.place(&call, self.is_server());
        let began = began(exchange).unwrap_or(self.voice.time);
        if call.streamed.has_words {
            let redactor = self.redactors.of(self.voice.capture_since(began));
            let words = call.fresh(exchange.id, true, redactor);
            self.tells_words(began, &words);
        }
        let teller = self.teller(self.voice.capture_since(began));
        teller.llm(&call, exchange, place)
    }

    /// It, unless nothing may be told of it.
    fn tells_call(&mut self, exchange: &Exchange, llm: Llm) -> Option<(Llm, About)> {
        let began = began(exchange).unwrap_or(self.voice.time);
        let lost = exchange.halves().map(|half| half.lost).sum();
        let complete = llm.missing.is_empty();
        let about = self.voice.say_of(began, complete, lost, Body::Llm(&llm));
        (self.voice.capture_since(began) > Capture::None).then_some((llm, about))
    }

    /// Calls to a model over a WebSocket, which are over.
    fn turns(&mut self, turns: Vec<Turn>) {
        for mut turn in turns {
            let place = self.dialogs.place(&turn.call, self.is_server());
            let capture = self.voice.capture_since(turn.began);
            if turn.call.streamed.has_words
                && let Some((exchange, _)) = self.calls.upgraded()
            {
                let redactor = self.redactors.of(capture);
                let words = turn.call.fresh(exchange, true, redactor);
                self.tells_words(turn.began, &words);
            }
            let teller = self.teller(capture);
            let became = self.calls.upgraded();
            let Some(llm) = became.and_then(|became| teller.turn(&turn, became, place)) else {
                continue;
            };
            let complete = llm.missing.is_empty();
            let about = self.voice.say_of(turn.began, complete, 0, Body::Llm(&llm));
            if capture > Capture::None {
                self.judge(None, Some((llm, about)), &[]);
            }
        }
    }

    fn is_server(&self) -> bool {
        self.voice.connection.role == Some(Role::Server)
    }

    /// What MCP makes of something.
    fn listen<T>(&mut self, hear: impl FnOnce(&mut mcp::Calls, &mut mcp::Ear<'_>) -> T) -> T {
        let mut ear = mcp::Ear {
            handle: self.handle,
            time: self.voice.time,
            waiting: self.waits,
            out: &mut count(self.limits),
        };
        hear(self.mcp, &mut ear)
    }

    /// Calls of MCP that ended in an exchange.
    fn messages(&mut self, exchange: u64, calls: &[mcp::call::Call]) -> Vec<(Mcp, About)> {
        let mut told = Vec::new();
        for call in calls {
            let capture = self.voice.capture_since(call.began);
            let mcp = self.teller(capture).mcp(call, exchange);
            let complete = mcp.missing.is_empty();
            let about = self.voice.say_of(call.began, complete, 0, Body::Mcp(&mcp));
            if capture > Capture::None {
                told.push((mcp, about));
            }
        }
        told
    }

    /// Looks at what was told, for what a person should look at, too.
    fn judge(
        &mut self,
        http: Option<(Http, About)>,
        llm: Option<(Llm, About)>,
        mcp: &[(Mcp, About)],
    ) {
        let is_any = http.is_some() || llm.is_some() || !mcp.is_empty();
        if !is_any || !self.voice.wanted.emit.contains(&Kind::Finding) {
            return;
        }
        let heard = Heard {
            time: self.voice.time,
            process: self.voice.process,
            connection: self.voice.connection,
            http: http.as_ref().map(|(http, about)| (http, *about)),
            llm: llm.as_ref().map(|(llm, about)| (llm, *about)),
            mcp,
        };
        for finding in self.detector.hear(&heard, self.redactors.holding()) {
            self.voice
                .say_of(self.voice.time, true, 0, Body::Finding(&finding));
        }
    }

    fn names_version(&mut self, exchange: &Exchange) {
        let mut heads = exchange.halves().filter_map(|half| half.head.as_ref());
        if let Some(head) = heads.next() {
            self.voice.connection.http_version = Some(head.version().name());
        }
    }

    fn teller(&self, capture: Capture) -> Teller<'_> {
        teller(self.redactors, &self.voice, capture)
    }
}

fn teller<'a>(redactors: &'a Redactors, voice: &'a Voice<'_>, capture: Capture) -> Teller<'a> {
    Teller {
        redactor: redactors.of(capture),
        policy: capture.content(voice.wanted.content),
        server: voice.connection.server_name.as_deref(),
        scheme: match voice.connection.is_plain {
            true => "http",
            false => "https",
        },
        clock: voice.clock,
        prices: &voice.wanted.prices,
        live: voice.wanted.live,
    }
}

/// Counts the bounds that calls reach.
fn count(limits: &mut BTreeMap<Limit, u64>) -> impl FnMut(Limit) {
    |limit| *limits.entry(limit).or_default() += 1
}

fn began(exchange: &Exchange) -> Option<u64> {
    exchange.halves().next().map(|half| half.began)
}
