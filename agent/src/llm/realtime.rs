//! Calls over a WebSocket: OpenAI's Realtime API, and its Responses API, as Codex speaks it there.
//!
//! Each response is a call. What was said to it stands in other messages before: the session with its instructions
//! and tools, items, sound. Of sound its size is kept.
//!
//! Source: OpenAI's API reference, "Realtime", its guide "WebSocket mode", and the types of its SDK for Python.

use std::collections::VecDeque;

use agent_ebpf::Direction;

use super::{
    Asked, Call, Format, ROOM,
    call::{self, Message, Modality, Part, Request, text},
    chat, responses,
    route::Route,
};
use crate::protocol::{
    Side,
    exchange::Exchange,
    head,
    json::{self, Read, Text, Value},
    websocket::{self, Kind},
};

/// Most items that are kept for the next response, and most responses that go on at a time.
const ITEMS_MAX: usize = 256;
const TURNS_MAX: usize = 32;

/// Most messages that are looked at before it is clear that they are of something else.
const STRANGE_MAX: u32 = 8;

/// A connection that became a WebSocket.
#[derive(Debug)]
pub struct Socket {
    /// The exchange that it was, and what that asked for.
    pub exchange: u64,
    pub asked: head::Request,
    /// Which way requests go, once one did.
    asks: Option<Direction>,
    is_known: bool,
    strange: u32,
    /// What holds for every response of it.
    session: Request,
    /// What was said since the last one.
    items: Vec<Message>,
    /// Bytes of sound since the last that became an item.
    sound: u64,
    /// Of what the client said a part is missing, or was not kept, since the last response.
    has_hole: bool,
    is_cut: bool,
    pub(super) turns: VecDeque<Turn>,
    /// Bytes of the session and of items.
    weight: usize,
}

/// What a message was.
#[derive(Debug, Default)]
pub struct Heard {
    /// Calls that are over with it.
    pub over: Vec<Turn>,
    /// What it says is told with a call.
    pub is_call: bool,
}

/// One response, while it goes on.
#[derive(Debug)]
pub struct Turn {
    pub call: Call,
    pub began: u64,
    pub ended: u64,
    id: Option<Text>,
    /// Which of several that go on at a time, if the client numbers them.
    lane: Option<Text>,
    sound: u64,
}

impl Socket {
    /// If the exchange became one.
    pub fn of(exchange: &Exchange) -> Option<Socket> {
        let asked = exchange.asked()?;
        let is_upgraded = exchange.answered()?.status == Some(101);
        let mut upgrade = asked.fields.list("upgrade");
        if !is_upgraded || !upgrade.any(|name| name.eq_ignore_ascii_case(b"websocket")) {
            return None;
        }
        let target = String::from_utf8_lossy(asked.target.as_deref().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        // Azure's name for it is that of a deployment.
        let parameters = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut named = parameters.filter(|(name, _)| matches!(*name, "model" | "deployment"));
        let session = Request {
            model: named.next().map(|(_, model)| Text::of(model)),
            ..Request::default()
        };
        Some(Socket {
            exchange: exchange.id,
            asked: asked.clone(),
            asks: None,
            is_known: path.ends_with("/realtime") || path.ends_with("/responses"),
            strange: 0,
            session,
            items: Vec::new(),
            sound: 0,
            has_hole: false,
            is_cut: false,
            turns: VecDeque::new(),
            weight: 0,
        })
    }

    /// May it be one over which models are called?
    pub fn is_one(&self) -> bool {
        self.is_known || self.strange < STRANGE_MAX
    }

    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        let turns = self.turns.iter();
        let turns: usize = turns
            .map(|turn| {
                let Turn { call, id, lane, .. } = turn;
                call.request.weight() + call.response.weight() + call::words_weight([id, lane])
            })
            .sum();
        self.weight + turns
    }

    fn weigh(&mut self) {
        self.weight = self.session.weight() + call::messages_weight(&self.items);
    }

    /// A message of one end.
    pub fn message(
        &mut self,
        direction: Direction,
        message: &websocket::Message,
        time: u64,
    ) -> Heard {
        if message.side == Side::Request {
            self.asks = Some(direction);
        }
        match message.kind {
            Kind::Close(_) => {
                return Heard {
                    over: self.close(),
                    is_call: false,
                };
            }
            Kind::Text => {}
            Kind::Binary | Kind::Ping | Kind::Pong => return Heard::default(),
        }
        if message.is_unreadable {
            self.misses(message.side);
            return Heard::default();
        }
        let Some(mut read) = json::read(&message.bytes, ROOM) else {
            return Heard::default();
        };
        read.is_broken |= message.is_cut;
        let over = match message.side {
            Side::Request => self.hears_client(&read, message),
            Side::Response => self.hears_server(&read, message.began, time),
        };
        match over {
            Some(over) => {
                self.is_known = true;
                let is_call = true;
                Heard { over, is_call }
            }
            None => {
                self.strange = self.strange.saturating_add(1);
                Heard::default()
            }
        }
    }

    /// A part of what one end said is missing.
    pub fn gap(&mut self, direction: Direction) {
        match self.asks {
            Some(asks) if asks == direction => self.misses(Side::Request),
            Some(_) => self.misses(Side::Response),
            None => {
                self.misses(Side::Request);
                self.misses(Side::Response);
            }
        }
    }

    fn misses(&mut self, side: Side) {
        match side {
            Side::Request => self.has_hole = true,
            Side::Response => {
                for turn in &mut self.turns {
                    turn.call.missing.response = true;
                }
            }
        }
    }

    /// Nothing more comes.
    pub fn close(&mut self) -> Vec<Turn> {
        let turns = std::mem::take(&mut self.turns);
        turns.into_iter().map(Turn::over).collect()
    }

    /// `None`: it is no message that we know.
    fn hears_client(&mut self, read: &Read, message: &websocket::Message) -> Option<Vec<Turn>> {
        let value = &read.value;
        match value.get("type").and_then(Value::str)? {
            "session.update" => self.settle(value.get("session")?, read),
            "conversation.item.create" => {
                self.says(responses::item(value.get("item")?), read);
            }
            // Of a message that is too long its length is known.
            "input_audio_buffer.append" if read.is_broken => self.sound += message.length / 4 * 3,
            "input_audio_buffer.append" => self.sound += size(value.get("audio")?),
            "input_audio_buffer.clear" => self.sound = 0,
            "input_audio_buffer.commit" | "response.cancel" => {}
            "response.create" => return Some(self.create(read, message.began)),
            kind if self.is_known && is_about_one(kind) => {}
            _ => return None,
        }
        Some(Vec::new())
    }

    fn says(&mut self, item: Message, read: &Read) {
        self.has_hole |= read.is_broken;
        self.is_cut |= read.is_cut;
        match self.items.len() < ITEMS_MAX {
            true => self.items.push(item),
            false => self.is_cut = true,
        }
        self.weigh();
    }

    /// What is set holds, what is not stays.
    fn settle(&mut self, session: &Value, read: &Read) {
        self.has_hole |= read.is_broken;
        self.is_cut |= read.is_cut;
        overlay(&mut self.session, session, read);
        self.weigh();
    }

    /// The client wants a response.
    fn create(&mut self, read: &Read, began: u64) -> Vec<Turn> {
        let value = &read.value;
        let is_all_of_it = ["model", "input", "previous_response_id"]
            .iter()
            .any(|name| value.get(name).is_some());
        let mut turn = match is_all_of_it {
            true => {
                let mut request = responses::request(value);
                if read.is_broken || read.is_cut {
                    request.lacks();
                }
                Turn::new(Format::Responses, request, began)
            }
            false => {
                let own = value.get("response").map(|own| (own, read));
                self.turn(own, began)
            }
        };
        turn.lane = text(value, "stream_id");
        turn.call.missing.request |= read.is_broken;
        turn.call.missing.content |= read.is_cut;
        self.push(turn)
    }

    fn push(&mut self, turn: Turn) -> Vec<Turn> {
        self.turns.push_back(turn);
        match self.turns.len() > TURNS_MAX {
            true => self.turns.pop_front().map(Turn::over).into_iter().collect(),
            false => Vec::new(),
        }
    }

    /// One of the Realtime API. `own`: what it has instead of what the session has.
    fn turn(&mut self, own: Option<(&Value, &Read)>, began: u64) -> Turn {
        let mut request = self.session.clone();
        let mut messages = Vec::new();
        if let Some((own, read)) = own {
            overlay(&mut request, own, read);
            messages = responses::input(own);
        }
        if messages.is_empty() {
            messages = std::mem::take(&mut self.items);
            self.weigh();
        }
        request.messages = messages;
        let mut turn = Turn::new(Format::Realtime, request, began);
        turn.call.missing.request = std::mem::take(&mut self.has_hole);
        turn.call.missing.content = std::mem::take(&mut self.is_cut);
        turn
    }

    /// `None`: it is no message that we know.
    fn hears_server(&mut self, read: &Read, began: u64, time: u64) -> Option<Vec<Turn>> {
        let value = &read.value;
        match value.get("type").and_then(Value::str)? {
            "session.created" | "session.updated" => self.settle(value.get("session")?, read),
            "input_audio_buffer.committed" => {
                let said = sound(std::mem::take(&mut self.sound));
                let message = Message {
                    parts: vec![said],
                    ..Message::of("user")
                };
                self.says(message, read);
            }
            // It may come while it is answered already.
            "conversation.item.input_audio_transcription.completed" => {
                let message = Message {
                    parts: text(value, "transcript")
                        .map(Part::Text)
                        .into_iter()
                        .collect(),
                    ..Message::of("user")
                };
                match self.turns.back_mut() {
                    Some(turn) if turn.call.request.messages.len() < ITEMS_MAX => {
                        turn.call.request.messages.push(message);
                    }
                    Some(_) => {}
                    None => self.says(message, read),
                }
            }
            "error" => return self.fails(value),
            kind if kind.starts_with("response.") => {
                return Some(self.goes_on(kind, read, began, time));
            }
            kind if self.is_known && is_about_one(kind) => {}
            _ => return None,
        }
        Some(Vec::new())
    }

    /// Of which response an event is, or that which it begins.
    fn find(&self, value: &Value) -> Option<usize> {
        let id = id(value);
        let lane = text(value, "stream_id");
        let named = |turn: &Turn| id.is_some() && turn.id == id;
        // Most events of the Responses API name none: one goes on at a time in a lane.
        let fits = |turn: &Turn| turn.lane == lane && (id.is_none() || turn.id.is_none());
        let turns = || self.turns.iter();
        turns().position(named).or_else(|| turns().position(fits))
    }

    fn goes_on(&mut self, kind: &str, read: &Read, began: u64, time: u64) -> Vec<Turn> {
        let value = &read.value;
        let mut over = Vec::new();
        let at = match self.find(value) {
            Some(at) => at,
            // The server itself found that it was spoken to; or the request is in a hole.
            None if kind == "response.created" => {
                let object = value.at(&["response", "object"]).and_then(Value::str);
                let turn = match object {
                    Some("response") => {
                        let mut turn = Turn::new(Format::Responses, Request::default(), began);
                        turn.call.missing.request = true;
                        turn
                    }
                    _ => self.turn(None, began),
                };
                over = self.push(turn);
                self.turns.len() - 1
            }
            None => return over,
        };
        let Some(turn) = self.turns.get_mut(at) else {
            return over;
        };
        turn.hears(kind, read, time);
        if turn.call.response.is_over {
            over.extend(self.turns.remove(at).map(Turn::over));
        }
        over
    }

    /// An error is of the response that was asked for and has not begun, or of that which is all there is. `None`: it is
    /// of none.
    fn fails(&mut self, value: &Value) -> Option<Vec<Turn>> {
        let lane = text(value, "stream_id");
        let waits = |turn: &Turn| turn.lane == lane && turn.id.is_none();
        let is_alone =
            |turn: &Turn| turn.lane == lane && turn.call.format == Some(Format::Responses);
        let turns = || self.turns.iter();
        let at = turns()
            .position(waits)
            .or_else(|| turns().position(is_alone));
        let mut turn = self.turns.remove(at?)?;
        responses::event(value, &mut turn.call.response);
        Some(vec![turn.over()])
    }
}

impl Turn {
    fn new(format: Format, request: Request, began: u64) -> Turn {
        let mut call = Call::new(Route::default(), Asked::Over);
        call.format = Some(format);
        call.request = request;
        Turn {
            call,
            began,
            ended: began,
            id: None,
            lane: None,
            sound: 0,
        }
    }

    /// An event of it.
    fn hears(&mut self, kind: &str, read: &Read, time: u64) {
        let value = &read.value;
        let Call {
            response,
            pace,
            missing,
            ..
        } = &mut self.call;
        self.id = self.id.take().or_else(|| id(value));
        self.ended = time;
        missing.response |= read.is_broken;
        missing.content |= read.is_cut;
        if pace.chunks == 0 {
            pace.first = time;
        }
        pace.chunks += 1;
        pace.last = time;
        if matches!(kind, "response.output_audio.delta" | "response.audio.delta") {
            self.sound += value.get("delta").map_or(0, size);
        }
        responses::event(value, response);
        if let Some(error) = value.at(&["response", "status_details", "error"]) {
            response.error = Some(chat::error(error));
        }
    }

    /// What was asked, the first time that there are words of an answer. Others may come to it: what was spoken is
    /// written down meanwhile.
    pub fn begin(&mut self) -> bool {
        let Call {
            response, streamed, ..
        } = &self.call;
        let has_words = response.messages.iter().any(Message::has_words);
        let begins = has_words && streamed.begun.is_none();
        if begins {
            self.call.begins(self.began);
        }
        begins
    }

    /// It is over, or nothing more comes of it.
    fn over(mut self) -> Turn {
        let Call {
            response, missing, ..
        } = &mut self.call;
        responses::end(response);
        if self.sound > 0 {
            if response.messages.is_empty() {
                response.messages.push(Message::of("assistant"));
            }
            response.messages[0].parts.push(sound(self.sound));
        }
        missing.end = !response.is_over && response.error.is_none();
        self
    }
}

/// Does a message say of a conversation what is told with its calls, or nothing that anybody says? It may be called
/// something like that elsewhere.
fn is_about_one(kind: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [
        "conversation.item.",
        "input_audio_buffer.",
        "output_audio_buffer.",
        "rate_limits.",
    ];
    BEGINNINGS
        .iter()
        .any(|beginning| kind.starts_with(beginning))
}

/// Of a response, in an event of it.
fn id(value: &Value) -> Option<Text> {
    text(value, "response_id").or_else(|| text(value.get("response")?, "id"))
}

/// What a session says of itself, or a response that has something else. `read`: what it is a part of.
fn overlay(request: &mut Request, value: &Value, read: &Read) {
    let mut new = responses::request(value);
    if read.is_broken || read.is_cut {
        new.lacks();
    }
    request.model = new.model.or(request.model.take());
    if value.get("instructions").is_some() {
        request.instructions = new.instructions;
    }
    if value.get("tools").is_some() {
        request.tools = new.tools;
    }
    let parameters = &mut request.parameters;
    parameters.temperature = new.parameters.temperature.or(parameters.temperature);
    let most = ["max_output_tokens", "max_response_output_tokens"];
    let most = most.iter().find_map(|name| value.get(name)?.count());
    parameters.max_tokens = most.or(parameters.max_tokens);
    let modalities = ["output_modalities", "modalities"];
    if let Some(names) = modalities.iter().find_map(|name| value.get(name)) {
        let has_sound = names.list().iter().any(|name| name.str() == Some("audio"));
        parameters.output = Some(if has_sound { "speech" } else { "text" });
    }
}

/// Bytes that base64 stands for.
fn size(value: &Value) -> u64 {
    value.text().map_or(0, |text| {
        text.decoded().map_or(text.length / 4 * 3, |blob| blob.size)
    })
}

/// Sound that is not kept.
fn sound(size: u64) -> Part {
    Part::Blob {
        modality: Modality::Audio,
        media: None,
        data: Text {
            length: size,
            is_cut: true,
            ..Text::default()
        },
    }
}
