//! HTTP/2 (RFC 9113): frames, streams, and the heads that HPACK makes of blocks.
//!
//! Frames are cut anywhere, by TLS calls and by holes. A hole inside of a DATA frame costs what it covers. Any
//! other one may have hidden a header block: the table is partial from then on, the streams that were open
//! are not whole, and frames are looked for where a TLS call begins.

use std::collections::BTreeMap;

use super::{
    Limit, Message, Out, Side,
    head::{Fields, Head, Request, Response, Version},
    hpack::Table,
};
use crate::{plaintext::Plaintext, planted::Mistake};

/// What a client sends first (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest header block, coded, and longest head, decoded.
const BLOCK_MAX: usize = 256 << 10;
const HEAD_MAX: usize = 256 << 10;
const FIELDS_MAX: usize = 1024;
/// Most streams that are open at once.
const STREAMS_MAX: usize = 10_000;
/// Longest frame of a kind that is read as a whole, header blocks aside.
const SMALL: usize = 16 << 10;

/// Both lanes of a connection. The request lane is the client's.
#[derive(Debug)]
pub struct Http2 {
    client: Lane,
    server: Lane,
    /// The open ones, by [`place`].
    streams: BTreeMap<u32, Stream>,
    /// Streams that the client began have odd ids, the server's have even ones; each end counts up.
    ids: [Ids; 2],
    next: u64,
    /// Bytes of the call that were used before.
    at: usize,
}

/// Where a stream is among the open ones. The lowest bit of its id says who began it, and comes first: the streams
/// that one end may refuse lie together.
fn place(id: u32) -> u32 {
    id.rotate_right(1)
}

/// Ids of streams that one end began.
#[derive(Debug)]
struct Ids {
    highest: u32,
    /// Up to here one may have begun in a hole.
    hidden: u32,
}

#[derive(Debug)]
struct Lane {
    state: State,
    /// The beginning of what must be whole: a frame's header, a block.
    buffer: Vec<u8>,
    table: Table,
    /// The block that CONTINUATION goes on with.
    block: Option<Block>,
    /// When the first byte of the frame came.
    began: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Preface,
    /// A frame begins here.
    Header,
    /// The first byte of a padded DATA frame.
    PadLength(Frame),
    Data {
        frame: Frame,
        left: usize,
        padding: usize,
    },
    /// A frame that is read as a whole.
    Whole(Frame),
    Skip {
        left: usize,
    },
    Lost,
}

/// A frame's header (section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

const HEADER: usize = 9;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

mod flag {
    pub const END_STREAM: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

#[derive(Debug)]
struct Block {
    /// Whose fields they are; of a promise, the promised stream.
    stream: u32,
    is_promise: bool,
    ends_stream: bool,
    began: u64,
    bytes: Vec<u8>,
    /// It is too long, and skipped.
    is_over: bool,
}

#[derive(Debug)]
struct Stream {
    exchange: u64,
    request: Part,
    response: Part,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// The head was seen: what comes next are trailers.
    has_head: bool,
    is_over: bool,
}

impl Stream {
    fn part(&mut self, side: Side) -> &mut Part {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }
}

impl Http2 {
    /// A connection from its first byte, or from somewhere.
    pub fn new(from_start: bool) -> Http2 {
        let lane = |state| Lane {
            state: if from_start { state } else { State::Lost },
            buffer: Vec::new(),
            table: Table::new(from_start),
            block: None,
            began: 0,
        };
        let ids = || Ids {
            highest: 0,
            hidden: if from_start { 0 } else { STREAM_MASK },
        };
        Http2 {
            client: lane(State::Preface),
            server: lane(State::Header),
            streams: BTreeMap::new(),
            ids: [ids(), ids()],
            next: 0,
            at: 0,
        }
    }

    /// Counts on from the exchanges that were there before, in another protocol.
    pub fn behind(mut self, exchanges: u64) -> Http2 {
        self.next = exchanges;
        self
    }

    /// The next bytes of a lane, as one TLS call carried them.
    pub fn feed(&mut self, side: Side, bytes: &[u8], time: u64, out: Out<'_>) {
        self.at = 0;
        while self.at < bytes.len() {
            self.at += self.step(side, &bytes[self.at..], time, out);
        }
    }

    /// The next `length` bytes of a lane are missing.
    pub fn gap(&mut self, side: Side, length: u64, out: Out<'_>) {
        let lane = self.lane(side);
        if let State::Data {
            frame,
            left,
            padding,
        } = lane.state
            && length <= left as u64
        {
            let left = left - length as usize;
            lane.state = State::Data {
                frame,
                left,
                padding,
            };
            if let Some(stream) = self.streams.get(&place(frame.stream)) {
                let exchange = stream.exchange;
                out(Message::Hole {
                    exchange,
                    side,
                    length,
                    is_inside: true,
                });
            }
            if left == 0 {
                self.data_over(side, frame, padding, out);
            }
            return;
        }
        self.lose(side, length, out);
    }

    /// The connection is over.
    pub fn close(&mut self, out: Out<'_>) {
        while let Some((at, _)) = self.streams.first_key_value() {
            self.abort_at(*at, out);
        }
    }

    fn lane(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Request => &mut self.client,
            Side::Response => &mut self.server,
        }
    }

    fn step(&mut self, side: Side, bytes: &[u8], time: u64, out: Out<'_>) -> usize {
        let at = self.at;
        let lane = self.lane(side);
        match lane.state {
            State::Preface => {
                let used = lane.gather(bytes, PREFACE.len());
                if !PREFACE.starts_with(&lane.buffer) {
                    let bytes = std::mem::take(&mut lane.buffer);
                    out(Message::Undecoded {
                        side,
                        bytes: Plaintext::new(&bytes),
                        end: at + used,
                    });
                    self.lose(side, 0, out);
                } else if lane.buffer.len() == PREFACE.len() {
                    lane.buffer.clear();
                    lane.state = State::Header;
                }
                used
            }
            State::Header => {
                if lane.buffer.is_empty() {
                    lane.began = time;
                }
                let used = lane.gather(bytes, HEADER);
                if lane.buffer.len() == HEADER {
                    let frame = Frame::parse(&lane.buffer);
                    lane.buffer.clear();
                    self.begin(side, frame, out);
                }
                used
            }
            State::PadLength(frame) => {
                let padding = usize::from(bytes[0]);
                match (frame.length - 1).checked_sub(padding) {
                    Some(left) => {
                        lane.state = State::Data {
                            frame,
                            left,
                            padding,
                        };
                        if left == 0 {
                            self.data_over(side, frame, padding, out);
                        }
                    }
                    None => self.lose(side, 0, out),
                }
                1
            }
            State::Data {
                frame,
                left,
                padding,
            } => {
                let used = left.min(bytes.len());
                lane.state = State::Data {
                    frame,
                    left: left - used,
                    padding,
                };
                self.body(side, frame.stream, &bytes[..used], out);
                if used == left {
                    self.data_over(side, frame, padding, out);
                }
                used
            }
            State::Skip { left } => {
                let used = left.min(bytes.len());
                lane.state = match left - used {
                    0 => State::Header,
                    left => State::Skip { left },
                };
                used
            }
            State::Whole(frame) => {
                let used = lane.gather(bytes, frame.length);
                if lane.buffer.len() == frame.length {
                    lane.state = State::Header;
                    let payload = std::mem::take(&mut lane.buffer);
                    self.whole(side, frame, &payload, out);
                    let lane = self.lane(side);
                    lane.buffer = payload;
                    lane.buffer.clear();
                }
                used
            }
            State::Lost => {
                if at == 0 && Frame::are_plausible(side, bytes) {
                    let begins = side == Side::Request && bytes.starts_with(PREFACE);
                    lane.state = if begins {
                        State::Preface
                    } else {
                        State::Header
                    };
                    return 0;
                }
                out(Message::Undecoded {
                    side,
                    bytes: Plaintext::new(bytes),
                    end: at + bytes.len(),
                });
                bytes.len()
            }
        }
    }

    /// A frame begins.
    fn begin(&mut self, side: Side, frame: Frame, out: Out<'_>) {
        let lane = self.lane(side);
        // Nothing may come between the parts of a block (section 6.10).
        if lane.block.is_some() != (frame.kind == kind::CONTINUATION) || !frame.is_valid(side) {
            return self.lose(side, 0, out);
        }
        lane.state = match frame.kind {
            kind::DATA if frame.has(flag::PADDED) => State::PadLength(frame),
            kind::DATA => State::Data {
                frame,
                left: frame.length,
                padding: 0,
            },
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                if frame.length > BLOCK_MAX {
                    out(Message::Limit(Limit::Head));
                    return self.skip_block(side, frame);
                }
                State::Whole(frame)
            }
            kind::RST_STREAM | kind::GOAWAY if frame.length <= SMALL => State::Whole(frame),
            _ => State::Skip { left: frame.length },
        };
        // A frame without a payload is over at once.
        if frame.length == 0 {
            match self.lane(side).state {
                State::Data { padding, .. } => self.data_over(side, frame, padding, out),
                State::Whole(_) => {
                    self.lane(side).state = State::Header;
                    self.whole(side, frame, &[], out);
                }
                _ => self.lane(side).state = State::Header,
            }
        }
    }

    /// Nobody will know what the block did to the table.
    fn skip_block(&mut self, side: Side, frame: Frame) {
        let lane = self.lane(side);
        lane.table.lose();
        lane.state = State::Skip { left: frame.length };
        let is_over = true;
        match &mut lane.block {
            Some(block) => block.is_over = true,
            None => {
                lane.block = Some(Block {
                    stream: frame.stream,
                    is_promise: false,
                    ends_stream: frame.has(flag::END_STREAM),
                    began: 0,
                    bytes: Vec::new(),
                    is_over,
                });
            }
        }
        if frame.has(flag::END_HEADERS) {
            lane.block = None;
        }
    }

    fn whole(&mut self, side: Side, frame: Frame, payload: &[u8], out: Out<'_>) {
        match frame.kind {
            kind::HEADERS => {
                let Some(fragment) = frame.fragment(payload) else {
                    return self.lose(side, 0, out);
                };
                self.block(side, frame, frame.stream, fragment, out);
            }
            kind::PUSH_PROMISE => {
                let fragment = frame.fragment(payload);
                let Some((promised, fragment)) =
                    fragment.and_then(|fragment| fragment.split_first_chunk::<4>())
                else {
                    return self.lose(side, 0, out);
                };
                let promised = u32::from_be_bytes(*promised) & STREAM_MASK;
                self.block(side, frame, promised, fragment, out);
            }
            kind::CONTINUATION => {
                let lane = self.lane(side);
                let Some(block) = &mut lane.block else {
                    return;
                };
                if block.bytes.len() + payload.len() > BLOCK_MAX && !block.is_over {
                    out(Message::Limit(Limit::Head));
                    lane.table.lose();
                    block.is_over = true;
                    block.bytes = Vec::new();
                }
                if !block.is_over {
                    block.bytes.extend_from_slice(payload);
                }
                if frame.has(flag::END_HEADERS) {
                    self.block_over(side, out);
                }
            }
            kind::RST_STREAM => self.abort(frame.stream, out),
            kind::GOAWAY => {
                let Some(last) = payload.first_chunk::<4>() else {
                    return;
                };
                let last = u32::from_be_bytes(*last) & STREAM_MASK;
                // What the other end began behind it will never be processed (section 6.8).
                let parity = match side {
                    Side::Response => 1,
                    Side::Request => 0,
                };
                let first = last + 1 + (last + 1 + parity) % 2;
                let refused = place(first)..=place(!1 | parity);
                let refused = self.streams.range(refused);
                let refused: Vec<u32> = refused.map(|(at, _)| *at).collect();
                for at in refused {
                    self.abort_at(at, out);
                }
            }
            _ => {}
        }
    }

    fn block(&mut self, side: Side, frame: Frame, stream: u32, fragment: &[u8], out: Out<'_>) {
        let lane = self.lane(side);
        lane.block = Some(Block {
            stream,
            is_promise: frame.kind == kind::PUSH_PROMISE,
            ends_stream: frame.kind == kind::HEADERS && frame.has(flag::END_STREAM),
            began: lane.began,
            bytes: fragment.to_vec(),
            is_over: false,
        });
        if frame.has(flag::END_HEADERS) {
            self.block_over(side, out);
        }
    }

    fn block_over(&mut self, side: Side, out: Out<'_>) {
        let lane = self.lane(side);
        let Some(block) = lane.block.take() else {
            return;
        };
        if block.is_over {
            if block.ends_stream {
                self.end(block.stream, side, out);
            }
            return;
        }
        let mut head = Pseudo::default();
        let decoded = lane
            .table
            .decode(&block.bytes, &mut |field| head.push(field));
        if lane.table.is_over() {
            out(Message::Limit(Limit::Table));
        }
        if head.is_over {
            out(Message::Limit(Limit::Head));
        }
        let lost = decoded.is_err() || head.is_over;
        // A promise is a request that the server makes in the client's place.
        let of = match block.is_promise {
            true => Side::Request,
            false => side,
        };
        self.head(of, &block, head, out);
        if lost && let Some(stream) = self.streams.get(&place(block.stream)) {
            out(Message::Hole {
                exchange: stream.exchange,
                side: of,
                length: 0,
                is_inside: true,
            });
        }
        if block.ends_stream || block.is_promise {
            self.end(block.stream, of, out);
        }
    }

    fn head(&mut self, side: Side, block: &Block, head: Pseudo, out: Out<'_>) {
        let Some(stream) = self.open(block.stream, out) else {
            return;
        };
        let exchange = stream.exchange;
        let part = stream.part(side);
        if part.has_head {
            return out(Message::Trailers {
                exchange,
                side,
                fields: head.fields,
            });
        }
        let version = Version::Http2;
        let head = match side {
            Side::Request => Head::Request(Request {
                version,
                method: head.method,
                target: head.path,
                scheme: head.scheme,
                authority: head.authority,
                protocol: head.protocol,
                fields: head.fields,
            }),
            Side::Response => Head::Response(Response {
                version,
                status: head.status,
                fields: head.fields,
            }),
        };
        let is_interim = matches!(&head, Head::Response(head) if head.is_interim());
        part.has_head = !is_interim;
        out(Message::Head {
            exchange,
            head,
            began: block.began,
        });
    }

    /// The stream, made if it is new. One that was reset is none any more, though the other end may go on
    /// with it for a while.
    fn open(&mut self, id: u32, out: Out<'_>) -> Option<&mut Stream> {
        if !self.streams.contains_key(&place(id)) {
            let ids = &mut self.ids[id as usize % 2];
            if id <= ids.highest && id > ids.hidden {
                return None;
            }
            ids.highest = ids.highest.max(id);
            if self.streams.len() >= STREAMS_MAX {
                out(Message::Limit(Limit::Streams));
                let (oldest, _) = self.streams.first_key_value()?;
                self.abort_at(*oldest, out);
            }
            let exchange = self.next;
            self.next += 1;
            self.streams.insert(
                place(id),
                Stream {
                    exchange,
                    request: Part::default(),
                    response: Part::default(),
                },
            );
        }
        self.streams.get_mut(&place(id))
    }

    fn body(&mut self, side: Side, id: u32, bytes: &[u8], out: Out<'_>) {
        if bytes.is_empty() {
            return;
        }
        match self.open(id, out) {
            Some(stream) => out(Message::Body {
                exchange: stream.exchange,
                side,
                bytes: Plaintext::new(bytes),
            }),
            None => out(Message::Undecoded {
                side,
                bytes: Plaintext::new(bytes),
                end: self.at + bytes.len(),
            }),
        }
    }

    fn data_over(&mut self, side: Side, frame: Frame, padding: usize, out: Out<'_>) {
        self.lane(side).state = match padding {
            0 => State::Header,
            left => State::Skip { left },
        };
        if frame.has(flag::END_STREAM) {
            self.end(frame.stream, side, out);
        }
    }

    /// A stream is over on one side.
    fn end(&mut self, id: u32, side: Side, out: Out<'_>) {
        let Some(stream) = self.streams.get_mut(&place(id)) else {
            return;
        };
        // Its request was sent before anybody looked, and is not waited for.
        let is_unasked = !stream.request.has_head && !stream.request.is_over;
        if side == Side::Response && is_unasked {
            stream.request.is_over = true;
            out(Message::End {
                exchange: stream.exchange,
                side: Side::Request,
                is_whole: false,
            });
        }
        let part = stream.part(side);
        if part.is_over {
            return;
        }
        part.is_over = true;
        out(Message::End {
            exchange: stream.exchange,
            side,
            is_whole: true,
        });
        if stream.request.is_over && stream.response.is_over {
            self.streams.remove(&place(id));
        }
    }

    /// A stream is over before its ends.
    fn abort(&mut self, id: u32, out: Out<'_>) {
        self.abort_at(place(id), out);
    }

    fn abort_at(&mut self, at: u32, out: Out<'_>) {
        let Some(mut stream) = self.streams.remove(&at) else {
            return;
        };
        for side in [Side::Request, Side::Response] {
            if !stream.part(side).is_over {
                out(Message::End {
                    exchange: stream.exchange,
                    side,
                    is_whole: false,
                });
            }
        }
    }

    /// Nobody knows where the next frame begins, nor what was in those that are missing.
    fn lose(&mut self, side: Side, length: u64, out: Out<'_>) {
        let lane = self.lane(side);
        lane.state = State::Lost;
        lane.buffer = Vec::new();
        lane.block = None;
        if !Mistake::Http2.is_planted() {
            lane.table.lose();
        }
        for ids in &mut self.ids {
            ids.hidden = ids.hidden.max(ids.highest);
        }
        for stream in self.streams.values_mut() {
            if !stream.part(side).is_over {
                let exchange = stream.exchange;
                out(Message::Hole {
                    exchange,
                    side,
                    length,
                    is_inside: false,
                });
            }
        }
    }
}

impl Lane {
    /// Adds to the buffer until it has `length` bytes; returns how many it took.
    fn gather(&mut self, bytes: &[u8], length: usize) -> usize {
        let used = bytes.len().min(length - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..used]);
        used
    }
}

const STREAM_MASK: u32 = 0x7fff_ffff;

impl Frame {
    fn parse(header: &[u8]) -> Frame {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *header else {
            unreachable!("gathered to its length")
        };
        Frame {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & STREAM_MASK,
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Without padding and priority (section 6.2).
    fn fragment<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = payload;
        let mut padding = 0;
        if self.has(flag::PADDED) {
            let (length, behind) = rest.split_first()?;
            (padding, rest) = (usize::from(*length), behind);
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            rest = rest.get(5..)?;
        }
        rest.get(..rest.len().checked_sub(padding)?)
    }

    /// What section 6 says of each kind's length and stream. Kinds that we don't know are as they are.
    fn is_valid(&self, side: Side) -> bool {
        let of_stream = self.stream != 0;
        match self.kind {
            kind::DATA => of_stream && !(self.has(flag::PADDED) && self.length == 0),
            kind::HEADERS | kind::CONTINUATION => of_stream,
            kind::PRIORITY => of_stream && self.length == 5,
            kind::RST_STREAM => of_stream && self.length == 4,
            kind::SETTINGS => {
                !of_stream
                    && self.length.is_multiple_of(6)
                    && !(self.has(flag::ACK) && self.length > 0)
            }
            kind::PUSH_PROMISE => of_stream && self.length >= 4 && side == Side::Response,
            kind::PING => !of_stream && self.length == 8,
            kind::GOAWAY => !of_stream && self.length >= 8,
            kind::WINDOW_UPDATE => self.length == 4,
            _ => true,
        }
    }

    /// Could it begin here, where nothing says that a frame does?
    fn is_plausible(&self, side: Side) -> bool {
        let flags = match self.kind {
            kind::DATA => flag::END_STREAM | flag::PADDED,
            kind::HEADERS => flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY,
            kind::SETTINGS | kind::PING => flag::ACK,
            kind::PUSH_PROMISE => flag::END_HEADERS | flag::PADDED,
            // In the middle of a block there is nothing to begin with.
            kind::CONTINUATION => return false,
            kind::PRIORITY | kind::RST_STREAM | kind::GOAWAY | kind::WINDOW_UPDATE => 0,
            _ => return false,
        };
        self.flags & !flags == 0 && self.length <= 1 << 20 && self.is_valid(side)
    }

    /// Do these bytes begin with frames, and nothing else?
    pub fn are_plausible(side: Side, bytes: &[u8]) -> bool {
        if side == Side::Request && bytes.starts_with(PREFACE) {
            return true;
        }
        let mut rest = bytes;
        let mut has_proof = false;
        loop {
            let Some(header) = rest.get(..HEADER) else {
                return has_proof && rest.is_empty();
            };
            let frame = Frame::parse(header);
            if header[5] & 0x80 != 0 || !frame.is_plausible(side) {
                return false;
            }
            // A kind whose length is fixed, a block that is whole, or a frame that ends where the call does.
            has_proof |= matches!(
                frame.kind,
                kind::SETTINGS | kind::PING | kind::RST_STREAM | kind::WINDOW_UPDATE
            ) || rest.len() == HEADER + frame.length
                || frame.kind == kind::HEADERS && frame.has(flag::END_HEADERS);
            match rest.get(HEADER + frame.length..) {
                Some(behind) => rest = behind,
                None => return has_proof,
            }
        }
    }
}

/// Do these bytes of a connection that we join begin with frames?
pub fn is_start(side: Side, bytes: &[u8]) -> bool {
    Frame::are_plausible(side, bytes)
}

/// A head in the making: the fields whose names begin with a colon are what HTTP/1 has in its first line
/// (section 8.3).
#[derive(Default)]
struct Pseudo {
    method: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    protocol: Option<Vec<u8>>,
    status: Option<u16>,
    fields: Fields,
    /// There is more than is kept.
    is_over: bool,
}

impl Pseudo {
    fn push(&mut self, field: super::head::Field<'_>) {
        let (Some(name), Some(value)) = (field.name, field.value) else {
            return self.push_field(field);
        };
        let kept = || Some(value.to_vec());
        match name {
            b":method" => self.method = kept(),
            b":scheme" => self.scheme = kept(),
            b":authority" => self.authority = kept(),
            b":path" => self.path = kept(),
            b":protocol" => self.protocol = kept(),
            b":status" => {
                self.status = str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse().ok())
            }
            _ => self.push_field(field),
        }
    }

    fn push_field(&mut self, field: super::head::Field<'_>) {
        let length = field.name.map_or(0, <[u8]>::len) + field.value.map_or(0, <[u8]>::len);
        if self.fields.len() >= FIELDS_MAX || self.fields.size() + length > HEAD_MAX {
            self.is_over = true;
            return;
        }
        self.fields.push_field(field);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::transcript::{Wire, bytewise, cuts, run},
        *,
    };
    use Side::{Request as Asks, Response as Answers};

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        let header = [a, b, c, kind, flags];
        [&header[..], &stream.to_be_bytes(), payload].concat()
    }

    /// A block of fields that are not put into the table.
    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }

    const BOTH: u8 = flag::END_HEADERS | flag::END_STREAM;

    fn get(stream: u32, path: &str) -> Vec<u8> {
        let block = block(&[(":method", "GET"), (":path", path), (":scheme", "https")]);
        frame(kind::HEADERS, BOTH, stream, &block)
    }

    fn answer(stream: u32, flags: u8, status: &str) -> Vec<u8> {
        frame(
            kind::HEADERS,
            flag::END_HEADERS | flags,
            stream,
            &block(&[(":status", status)]),
        )
    }

    fn data(stream: u32, flags: u8, text: &str) -> Vec<u8> {
        frame(kind::DATA, flags, stream, text.as_bytes())
    }

    fn settings() -> Vec<u8> {
        frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])
    }

    fn hello() -> Vec<u8> {
        [
            PREFACE,
            &settings(),
            &frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]),
        ]
        .concat()
    }

    fn said(from_start: bool, wire: &[Wire<'_>]) -> Vec<String> {
        let mut http = Http2::new(from_start);
        run(wire, |step, out| match step {
            Some(Wire::Bytes(side, bytes)) => http.feed(side, bytes, 7, out),
            Some(Wire::Gap(side, length)) => http.gap(side, length, out),
            None => http.close(out),
        })
    }

    fn check(wire: &[Wire<'_>], expected: &[&str]) {
        assert_eq!(said(true, wire), expected);
        for wire in cuts(wire) {
            assert_eq!(said(true, &wire), expected);
        }
        assert_eq!(said(true, &bytewise(wire)), expected);
    }

    #[test]
    fn streams_side_by_side() {
        let asked = [hello(), get(1, "/a"), get(3, "/b"), get(5, "/c")].concat();
        let answered = [
            settings(),
            answer(3, 0, "103"),
            answer(3, 0, "200"),
            data(3, 0, "he"),
            answer(1, flag::END_STREAM, "204"),
            data(3, 0, ""),
            frame(0xbe, 0xff, 9, b"a kind of tomorrow"),
            data(3, flag::END_STREAM, "llo"),
            answer(5, 0, "404"),
            data(5, flag::END_STREAM, ""),
        ]
        .concat();
        check(
            &[Wire::Bytes(Asks, &asked), Wire::Bytes(Answers, &answered)],
            &[
                "0 GET /a",
                "0 request []",
                "1 GET /b",
                "1 request []",
                "2 GET /c",
                "2 request []",
                "1 103",
                "1 200",
                "0 204",
                "0 response []",
                "1 response [hello]",
                "2 404",
                "2 response []",
            ],
        );
    }

    #[test]
    fn padding_priority_continuation_and_trailers() {
        let fields = block(&[(":method", "POST"), (":path", "/a"), ("x", "y")]);
        let (first, rest) = fields.split_at(7);
        let (second, third) = rest.split_at(9);
        let padded = [&[2], &[0, 0, 0, 0, 9][..], first, &[0, 0]].concat();
        let asked = [
            PREFACE,
            &settings(),
            &frame(kind::HEADERS, flag::PADDED | flag::PRIORITY, 1, &padded),
            &frame(kind::CONTINUATION, 0, 1, second),
            &frame(kind::CONTINUATION, flag::END_HEADERS, 1, third),
            &frame(kind::DATA, flag::PADDED, 1, b"\x03abc\0\0\0"),
            &frame(kind::DATA, flag::PADDED, 1, b"\x02\0\0"),
            &data(1, 0, "def"),
            &frame(kind::HEADERS, BOTH, 1, &block(&[("grpc-status", "0")])),
        ]
        .concat();
        check(
            &[Wire::Bytes(Asks, &asked)],
            &[
                "0 POST /a",
                "0 trailers 1",
                "0 request [abcdef]",
                "0 response [] cut",
            ],
        );
    }

    #[test]
    fn a_stream_that_ends_early() {
        let asked = [hello(), get(1, "/a"), get(3, "/b"), get(5, "/c")].concat();
        let answered = [
            settings(),
            answer(1, 0, "200"),
            data(1, 0, "ab"),
            frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]),
            // The other end goes on for a while.
            data(1, 0, "late"),
            frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]),
            answer(3, flag::END_STREAM, "200"),
        ]
        .concat();
        check(
            &[Wire::Bytes(Asks, &asked), Wire::Bytes(Answers, &answered)],
            &[
                "0 GET /a",
                "0 request []",
                "1 GET /b",
                "1 request []",
                "2 GET /c",
                "2 request []",
                "0 200",
                "0 response [ab] cut",
                "response ?late",
                "2 response [] cut",
                "1 200",
                "1 response []",
            ],
        );
    }

    #[test]
    fn pushed() {
        let asked = [hello(), get(1, "/a")].concat();
        let promise = [
            &2_u32.to_be_bytes()[..],
            &block(&[(":method", "GET"), (":path", "/style")]),
        ]
        .concat();
        let answered = [
            settings(),
            frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &promise),
            answer(1, flag::END_STREAM, "200"),
            answer(2, 0, "200"),
            data(2, flag::END_STREAM, "css"),
        ]
        .concat();
        check(
            &[Wire::Bytes(Asks, &asked), Wire::Bytes(Answers, &answered)],
            &[
                "0 GET /a",
                "0 request []",
                "1 GET /style",
                "1 request []",
                "0 200",
                "0 response []",
                "1 200",
                "1 response [css]",
            ],
        );
    }

    #[test]
    fn a_hole_in_a_body_costs_what_it_covers() {
        let asked = [hello(), get(1, "/a")].concat();
        let head = [settings(), answer(1, 0, "200")].concat();
        let body = data(1, 0, "0123456789");
        let rest = data(1, flag::END_STREAM, "end");
        for (from, to) in [(0, 3), (2, 9), (4, 10), (0, 10)] {
            let (before, behind) = (&body[..9 + from], &body[9 + to..]);
            let shown = format!("{}{}end", &"0123456789"[..from], &"0123456789"[to..]);
            check(
                &[
                    Wire::Bytes(Asks, &asked),
                    Wire::Bytes(Answers, &head),
                    Wire::Bytes(Answers, before),
                    Wire::Gap(Answers, (to - from) as u64),
                    Wire::Bytes(Answers, behind),
                    Wire::Bytes(Answers, &rest),
                ],
                &[
                    "0 GET /a",
                    "0 request []",
                    "0 200",
                    &format!("0 response -{}", to - from),
                    &format!("0 response [{shown}]"),
                ],
            );
        }
    }

    /// RFC 7541, appendix C.4: the second and the third refer to what the first one put into the table.
    const BLOCKS: [&[u8]; 3] = [
        &[
            0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab,
            0x90, 0xf4, 0xff,
        ],
        &[
            0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf,
        ],
        &[
            0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f,
            0x89, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
        ],
    ];

    #[test]
    fn a_hole_between_streams_hides_fields_and_shows_no_wrong_ones() {
        let [first, second, third] = [(1, BLOCKS[0]), (3, BLOCKS[1]), (5, BLOCKS[2])]
            .map(|(stream, block)| frame(kind::HEADERS, BOTH, stream, block));
        let hello = hello();
        let heads = |wire: &[Wire<'_>], from_start| {
            let mut http = Http2::new(from_start);
            let mut heads = Vec::new();
            for step in wire {
                let out = &mut |message: Message<'_>| {
                    if let Message::Head {
                        head: Head::Request(head),
                        ..
                    } = message
                    {
                        heads.push((head.authority.is_some(), head.fields.len()));
                        let authority = head.authority.unwrap_or(b"www.example.com".to_vec());
                        assert_eq!(authority, b"www.example.com");
                    }
                };
                match *step {
                    Wire::Bytes(side, bytes) => http.feed(side, bytes, 7, out),
                    Wire::Gap(side, length) => http.gap(side, length, out),
                }
            }
            heads
        };
        let all = [&hello, &first, &second, &third].map(|bytes| Wire::Bytes(Asks, bytes));
        assert_eq!(heads(&all, true), [(true, 0), (true, 1), (true, 1)]);
        let gap = Wire::Gap(Asks, first.len() as u64);
        assert_eq!(
            heads(&[all[0], gap, all[2], all[3]], true),
            [(false, 2), (false, 2)]
        );
        // Joined in the middle it is the same.
        assert_eq!(heads(&all[2..], false), [(false, 2), (false, 2)]);
    }

    #[test]
    fn joined_in_the_middle_of_a_frame() {
        let answered = [answer(7, 0, "200"), data(7, flag::END_STREAM, "ok")].concat();
        let more = data(5, 0, "more");
        let wire = [
            Wire::Bytes(Answers, b"the rest of a frame"),
            Wire::Bytes(Answers, &more),
            Wire::Bytes(Answers, &answered),
        ];
        assert_eq!(
            said(false, &wire),
            [
                "response ?the rest of a frame",
                "1 200",
                "1 request [] cut",
                "1 response [ok]",
                "0 request [] cut",
                "0 response [more] cut",
            ]
        );
    }

    #[test]
    fn what_is_no_frame_is_none() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
            b"{\"a\":1}",
            &[0; 9],
            &[0; 64],
            &[0xff; 64],
        ] {
            assert!(!is_start(Answers, bytes), "{bytes:?}");
            let wire = [Wire::Bytes(Answers, bytes)];
            assert!(said(false, &wire)[0].starts_with("response ?"));
        }
    }

    #[test]
    fn limits() {
        let long = block(&[("a", &"b".repeat(120))]).repeat(BLOCK_MAX / 120);
        let mut asked = hello();
        asked.extend(frame(kind::HEADERS, flag::END_STREAM, 1, &long[..100_000]));
        asked.extend(frame(kind::CONTINUATION, 0, 1, &long[100_000..200_000]));
        asked.extend(frame(
            kind::CONTINUATION,
            flag::END_HEADERS,
            1,
            &long[200_000..],
        ));
        asked.extend(get(3, "/b"));
        let said = said(true, &[Wire::Bytes(Asks, &asked)]);
        assert_eq!(
            said,
            [
                "Head limit",
                "0 GET /b",
                "0 request []",
                "0 response [] cut"
            ]
        );

        // One byte each, of an entry that is large: what is decoded has its bound, too.
        let mut bomb = vec![0x40, 1, b'a', 127, 0x80 | 0x51, 0x1e];
        bomb.extend(vec![b'b'; 127 + 0x51 + (0x1e << 7)]);
        let mut asked = hello();
        asked.extend(frame(
            kind::HEADERS,
            BOTH,
            1,
            &[&bomb[..], &[0xbe; 1000]].concat(),
        ));
        asked.extend(get(3, "/b"));
        let said = self::said(true, &[Wire::Bytes(Asks, &asked)]);
        assert_eq!(said[0], "Head limit");
        assert!(said.contains(&"1 GET /b".into()));

        let mut asked = hello();
        for stream in 0..=STREAMS_MAX as u32 {
            asked.extend(get(2 * stream + 1, "/"));
        }
        let said = self::said(true, &[Wire::Bytes(Asks, &asked)]);
        assert_eq!(
            said.iter().filter(|line| *line == "Streams limit").count(),
            1
        );
        assert!(said.contains(&"0 response [] cut".into()));
    }
}
