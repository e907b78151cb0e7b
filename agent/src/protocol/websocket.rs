//! WebSocket (RFC 6455) behind the upgrade, with permessage-deflate (RFC 7692): messages, put together.

use super::{Limit, Side, deflate, head::Fields};
use crate::planted::Mistake;

/// Longest message, decoded.
const MESSAGE_MAX: usize = 1 << 20;
/// Longest header: two bytes, eight of length, four of mask.
const HEADER_MAX: usize = 14;

/// What the two ends agreed on for compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// By side: each message begins with an empty window.
    client_forgets: bool,
    server_forgets: bool,
}

impl Deflate {
    /// As the server's response says (RFC 7692, section 7.1).
    pub fn agreed(fields: &Fields) -> Option<Deflate> {
        let mut extensions = fields.list("sec-websocket-extensions");
        extensions.find_map(|extension| {
            let mut parts = extension
                .split(|byte| *byte == b';')
                .map(<[u8]>::trim_ascii);
            let is_deflate = parts.next()?.eq_ignore_ascii_case(b"permessage-deflate");
            let parameters: Vec<&[u8]> = parts.collect();
            let has = |name: &str| {
                parameters
                    .iter()
                    .any(|part| part.eq_ignore_ascii_case(name.as_bytes()))
            };
            is_deflate.then(|| Deflate {
                client_forgets: has("client_no_context_takeover"),
                server_forgets: has("server_no_context_takeover"),
            })
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
    /// With its status code, if there is one.
    Close(Option<u16>),
}

/// One message of one end, or a part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    /// The client's are requests here.
    pub side: Side,
    /// Decoded, as far as it is kept. Of a close the reason.
    pub bytes: Vec<u8>,
    /// Bytes of payload as they were sent.
    pub length: u64,
    /// It was compressed, and can't be read: a part before is missing, or it is malformed.
    pub is_unreadable: bool,
    /// Not all of it is in `bytes`.
    pub is_cut: bool,
    /// When its first byte came.
    pub began: u64,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

/// What was found.
pub enum Found<'a> {
    Message(Message),
    /// Bytes of no frame that we know the beginning of.
    Undecoded(Side, &'a [u8]),
    Limit(Limit),
}

pub type Out<'a> = &'a mut dyn FnMut(Found<'_>);

/// Both lanes of a connection.
#[derive(Debug)]
pub struct WebSocket {
    client: Lane,
    server: Lane,
}

struct Lane {
    side: Side,
    state: State,
    header: Vec<u8>,
    began: u64,
    /// The data message that frames are put together to.
    message: Option<Message>,
    is_compressed: bool,
    inflate: Option<Inflate>,
    /// A control frame, which may come in the middle of a message.
    control: Option<Message>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Payload { frame: Frame, left: u64 },
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    is_last: bool,
    is_compressed: bool,
    opcode: u8,
    length: u64,
    mask: Option<[u8; 4]>,
    header: usize,
}

struct Inflate {
    decoder: deflate::Inflate,
    forgets: bool,
    /// A part of what was sent is missing: what refers to it can't be read.
    is_lost: bool,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lane({:?})", self.state)
    }
}

impl WebSocket {
    pub fn new(deflate: Option<Deflate>) -> WebSocket {
        let lane = |side, forgets: fn(Deflate) -> bool| Lane {
            side,
            state: State::Header,
            header: Vec::new(),
            began: 0,
            message: None,
            is_compressed: false,
            inflate: deflate.map(|deflate| Inflate {
                decoder: deflate::Inflate::raw(),
                forgets: forgets(deflate),
                is_lost: false,
            }),
            control: None,
        };
        WebSocket {
            client: lane(Side::Request, |deflate| deflate.client_forgets),
            server: lane(Side::Response, |deflate| deflate.server_forgets),
        }
    }

    /// The next bytes of a lane, as one TLS call carried them.
    pub fn feed(&mut self, side: Side, bytes: &[u8], time: u64, out: Out<'_>) {
        self.lane(side).feed(bytes, time, out);
    }

    /// The next `length` bytes of a lane are missing.
    pub fn gap(&mut self, side: Side, length: u64, out: Out<'_>) {
        self.lane(side).gap(length, out);
    }

    /// The connection is over.
    pub fn close(&mut self, out: Out<'_>) {
        self.client.give_up(out);
        self.server.give_up(out);
    }

    /// Bytes of memory that messages take which are not whole, and windows.
    pub fn held(&self) -> usize {
        self.client.held() + self.server.held()
    }

    fn lane(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Request => &mut self.client,
            Side::Response => &mut self.server,
        }
    }
}

impl Lane {
    fn held(&self) -> usize {
        let messages = [&self.message, &self.control].into_iter().flatten();
        let messages: usize = messages.map(|message| message.bytes.len()).sum();
        messages + self.inflate.as_ref().map_or(0, |_| deflate::WEIGHT)
    }

    fn feed(&mut self, bytes: &[u8], time: u64, out: Out<'_>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let is_start = rest.len() == bytes.len();
            match self.state {
                State::Header => {
                    if self.header.is_empty() {
                        self.began = time;
                    }
                    // One byte after the other: a header says itself how long it is.
                    self.header.push(rest[0]);
                    rest = &rest[1..];
                    if let Some(frame) = Frame::parse(&self.header) {
                        self.header.clear();
                        self.begin(frame, out);
                    }
                }
                State::Payload { frame, left } => {
                    let used = left.min(rest.len() as u64) as usize;
                    self.payload(&frame, frame.length - left, &rest[..used], out);
                    rest = &rest[used..];
                    self.state = State::Payload {
                        frame,
                        left: left - used as u64,
                    };
                    self.end_of_payload(out);
                }
                State::Lost if is_start && Frame::are_plausible(self.side, rest) => {
                    self.state = State::Header;
                }
                State::Lost => {
                    out(Found::Undecoded(self.side, rest));
                    rest = &[];
                }
            }
        }
    }

    fn gap(&mut self, length: u64, out: Out<'_>) {
        if let Some(inflate) = &mut self.inflate {
            inflate.is_lost = true;
        }
        if let State::Payload { frame, left } = self.state
            && length <= left
        {
            let left = left - length;
            if let Some(message) = self.message_of(&frame) {
                message.is_cut = true;
                message.length += length;
            }
            self.state = State::Payload { frame, left };
            return self.end_of_payload(out);
        }
        self.give_up(out);
        self.state = State::Lost;
    }

    /// Says what has come of messages that will not be whole.
    fn give_up(&mut self, out: Out<'_>) {
        self.header.clear();
        for mut message in [self.control.take(), self.message.take()]
            .into_iter()
            .flatten()
        {
            message.is_cut = true;
            out(Found::Message(message));
        }
    }

    fn begin(&mut self, frame: Frame, out: Out<'_>) {
        if !frame.is_valid(self.side) || frame.is_compressed && self.inflate.is_none() {
            self.give_up(out);
            self.state = State::Lost;
            return;
        }
        let message = |kind| Message {
            kind,
            side: self.side,
            bytes: Vec::new(),
            length: 0,
            is_unreadable: false,
            is_cut: false,
            began: self.began,
        };
        match frame.opcode {
            opcode::CONTINUATION => {
                if self.message.is_none() {
                    // The beginning is missing.
                    self.message = Some(Message {
                        is_cut: true,
                        ..message(Kind::Binary)
                    });
                    self.is_compressed = false;
                }
            }
            opcode::TEXT | opcode::BINARY => {
                let kind = match frame.opcode {
                    opcode::TEXT => Kind::Text,
                    _ => Kind::Binary,
                };
                let begun = message(kind);
                if let Some(mut cut) = self.message.replace(begun) {
                    cut.is_cut = true;
                    out(Found::Message(cut));
                }
                self.is_compressed = frame.is_compressed;
                if let Some(inflate) = self.inflate.as_mut().filter(|inflate| inflate.forgets) {
                    inflate.decoder.reset();
                    inflate.is_lost = false;
                }
            }
            opcode::PING => self.control = Some(message(Kind::Ping)),
            opcode::PONG => self.control = Some(message(Kind::Pong)),
            _ => self.control = Some(message(Kind::Close(None))),
        }
        let left = frame.length;
        self.state = State::Payload { frame, left };
        self.end_of_payload(out);
    }

    fn message_of(&mut self, frame: &Frame) -> Option<&mut Message> {
        match frame.is_control() {
            true => self.control.as_mut(),
            false => self.message.as_mut(),
        }
    }

    fn payload(&mut self, frame: &Frame, from: u64, bytes: &[u8], out: Out<'_>) {
        let mut plain;
        let bytes = match frame.mask {
            None => bytes,
            Some(mask) => {
                let from = if Mistake::Websocket.is_planted() {
                    0
                } else {
                    from
                };
                plain = bytes.to_vec();
                for (at, byte) in plain.iter_mut().enumerate() {
                    *byte ^= mask[(from as usize + at) % 4];
                }
                &plain[..]
            }
        };
        let is_compressed = self.is_compressed && !frame.is_control();
        let Lane {
            message,
            control,
            inflate,
            ..
        } = self;
        let message = match frame.is_control() {
            true => control,
            false => message,
        };
        let Some(message) = message else {
            return;
        };
        message.length += bytes.len() as u64;
        match inflate {
            Some(inflate) if is_compressed => inflate.feed(bytes, message, out),
            _ => keep(message, bytes, out),
        }
    }

    /// The frame may be over, and the message with it.
    fn end_of_payload(&mut self, out: Out<'_>) {
        let State::Payload { frame, left: 0 } = self.state else {
            return;
        };
        self.state = State::Header;
        if frame.is_control() {
            if let Some(mut message) = self.control.take() {
                if let (Kind::Close(_), Some((code, _))) =
                    (message.kind, message.bytes.split_first_chunk::<2>())
                {
                    message.kind = Kind::Close(Some(u16::from_be_bytes(*code)));
                    message.bytes.drain(..2);
                }
                out(Found::Message(message));
            }
            return;
        }
        if !frame.is_last {
            return;
        }
        let Some(mut message) = self.message.take() else {
            return;
        };
        if let Some(inflate) = &mut self.inflate
            && self.is_compressed
        {
            // What the sender took away (RFC 7692, section 7.2.2).
            inflate.feed(&[0, 0, 0xff, 0xff], &mut message, out);
        }
        out(Found::Message(message));
    }
}

/// Adds to a message what fits.
fn keep(message: &mut Message, bytes: &[u8], out: Out<'_>) {
    let room = MESSAGE_MAX - message.bytes.len();
    if bytes.len() > room {
        if !message.is_cut {
            out(Found::Limit(Limit::Message));
        }
        message.is_cut = true;
    }
    message
        .bytes
        .extend_from_slice(&bytes[..bytes.len().min(room)]);
}

impl Inflate {
    fn feed(&mut self, bytes: &[u8], message: &mut Message, out: Out<'_>) {
        if self.is_lost {
            message.is_unreadable = true;
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut keep = |decoded: &[u8]| keep(message, decoded, out);
            let (behind, is_over) = self.decoder.feed(rest, &mut keep);
            rest = behind;
            match is_over {
                // A last block: what follows is a stream of its own (RFC 7692, section 7.2.3.4).
                Ok(true) => self.decoder.reset(),
                Ok(false) => {}
                Err(_) => {
                    self.is_lost = true;
                    message.is_unreadable = true;
                    return;
                }
            }
        }
    }
}

mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

impl Frame {
    /// RFC 6455, section 5.2. `None`: there is more of it.
    fn parse(header: &[u8]) -> Option<Frame> {
        let (&first, rest) = header.split_first()?;
        let (&second, rest) = rest.split_first()?;
        let (length, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let mask = match second & 0x80 {
            0 => None,
            _ => Some(*rest.first_chunk()?),
        };
        Some(Frame {
            is_last: first & 0x80 != 0,
            is_compressed: first & 0x40 != 0,
            opcode: first & 0x3f,
            length,
            mask,
            header: header.len() - rest.len() + mask.map_or(0, |mask| mask.len()),
        })
    }

    fn is_control(&self) -> bool {
        self.opcode >= opcode::CLOSE
    }

    /// The two reserved bits are part of `opcode` here, so that they are none.
    fn is_valid(&self, side: Side) -> bool {
        let is_known = matches!(
            self.opcode,
            opcode::CONTINUATION..=opcode::BINARY | opcode::CLOSE..=opcode::PONG
        );
        let is_masked = self.mask.is_some() == (side == Side::Request);
        let fits = !self.is_control() || self.length < 126 && self.is_last && !self.is_compressed;
        is_known && is_masked && fits && self.length >> 63 == 0
    }

    /// Do these bytes begin with frames, and nothing else?
    fn are_plausible(side: Side, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        loop {
            let header = &rest[..rest.len().min(HEADER_MAX)];
            let Some(frame) = Frame::parse(header) else {
                return false;
            };
            if !frame.is_valid(side) {
                return false;
            }
            let Some(behind) = frame.header.checked_add(frame.length as usize) else {
                return false;
            };
            match rest.get(behind..) {
                Some([]) => return true,
                Some(more) => rest = more,
                None => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Side::{Request as Client, Response as Server};

    fn frame(side: Side, first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = (side == Client).then_some([0x37, 0xfa, 0x21, 0x3d]);
        let bit = if mask.is_some() { 0x80 } else { 0 };
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(bit | length as u8),
            length @ 126..65536 => {
                frame.push(bit | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(bit | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(
            mask.unwrap_or_default()
                .iter()
                .take(if mask.is_some() { 4 } else { 0 }),
        );
        let mask = mask.unwrap_or_default();
        frame.extend(
            payload
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ mask[at % 4]),
        );
        frame
    }

    #[derive(Clone, Copy)]
    enum Wire<'a> {
        Bytes(Side, &'a [u8]),
        Gap(Side, u64),
    }

    fn read(deflate: Option<Deflate>, wire: &[Wire<'_>]) -> Vec<String> {
        let mut socket = WebSocket::new(deflate);
        let mut said = Vec::new();
        let mut note = |found: Found<'_>| {
            let text = |bytes: &[u8]| {
                let text = String::from_utf8_lossy(bytes).into_owned();
                if text.len() > 40 {
                    format!("{} bytes", text.len())
                } else {
                    text
                }
            };
            said.push(match found {
                Found::Limit(limit) => format!("{limit:?}"),
                Found::Undecoded(side, bytes) => format!("{side} ?{}", text(bytes)),
                Found::Message(message) => {
                    let cut = if message.is_cut { " cut" } else { "" };
                    let unreadable = if message.is_unreadable {
                        " unreadable"
                    } else {
                        ""
                    };
                    let Message {
                        side, kind, length, ..
                    } = message;
                    format!(
                        "{side} {kind:?} {length} {}{cut}{unreadable}",
                        text(&message.bytes)
                    )
                }
            });
        };
        for step in wire {
            match *step {
                Wire::Bytes(side, bytes) => socket.feed(side, bytes, 7, &mut note),
                Wire::Gap(side, length) => socket.gap(side, length, &mut note),
            }
        }
        socket.close(&mut note);
        said
    }

    #[test]
    fn messages_however_they_are_cut() {
        let sent = [
            frame(Client, 0x81, b"Hello"),
            frame(Client, 0x01, b"frag"),
            frame(Client, 0x89, b"ping"),
            frame(Client, 0x00, b""),
            frame(Client, 0x80, b"ment"),
            frame(Client, 0x82, &[b'x'; 200]),
            frame(Client, 0x88, b"\x03\xe8bye"),
            frame(Client, 0x88, b""),
        ]
        .concat();
        let expected = [
            "request Text 5 Hello",
            "request Ping 4 ping",
            "request Text 8 fragment",
            "request Binary 200 200 bytes",
            "request Close(Some(1000)) 5 bye",
            "request Close(None) 0 ",
        ];
        assert_eq!(read(None, &[Wire::Bytes(Client, &sent)]), expected);
        for cut in 1..sent.len() {
            let (first, second) = sent.split_at(cut);
            let wire = [Wire::Bytes(Client, first), Wire::Bytes(Client, second)];
            assert_eq!(read(None, &wire), expected, "{cut}");
        }
        // The examples of RFC 6455, section 5.7.
        let masked = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(
            read(None, &[Wire::Bytes(Client, &masked)]),
            ["request Text 5 Hello"]
        );
        let long = frame(Server, 0x82, &[0; 65536]);
        assert_eq!(long[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(
            read(None, &[Wire::Bytes(Server, &long)]),
            ["response Binary 65536 65536 bytes"]
        );
    }

    const DEFLATE: Deflate = Deflate {
        client_forgets: false,
        server_forgets: false,
    };

    #[test]
    fn compressed() {
        // RFC 7692, section 7.2.3: twice the same message, the second by the window of the first.
        let first = [0xc1, 0x07, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let second = [0xc1, 0x05, 0xf2, 0x00, 0x11, 0x00, 0x00];
        let fragments = [
            0x41, 0x03, 0xf2, 0x48, 0xcd, 0x80, 0x04, 0xc9, 0xc9, 0x07, 0x00,
        ];
        let plain = [0x81, 0x02, b'o', b'k'];
        let sent = [&first[..], &second, &plain, &fragments].concat();
        let expected = [
            "response Text 7 Hello",
            "response Text 5 Hello",
            "response Text 2 ok",
            "response Text 7 Hello",
        ];
        assert_eq!(read(Some(DEFLATE), &[Wire::Bytes(Server, &sent)]), expected);
        for cut in 1..sent.len() {
            let (one, two) = sent.split_at(cut);
            let wire = [Wire::Bytes(Server, one), Wire::Bytes(Server, two)];
            assert_eq!(read(Some(DEFLATE), &wire), expected, "{cut}");
        }
        // Sections 7.2.3.4 and 7.2.3.5: a last block, and two blocks.
        let last = [0xc1, 0x08, 0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
        let two = [
            0xc1, 0x0d, 0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07,
            0x00,
        ];
        let wire = [&last[..], &two, &last].map(|bytes| Wire::Bytes(Server, bytes));
        assert_eq!(
            read(Some(DEFLATE), &wire),
            [8, 13, 8].map(|length| format!("response Text {length} Hello"))
        );
        // Behind a hole the window is unknown, unless the server forgets it.
        let wire = [
            Wire::Bytes(Server, &first[..4]),
            Wire::Gap(Server, 5),
            Wire::Bytes(Server, &second),
            Wire::Bytes(Server, &plain),
        ];
        assert_eq!(
            read(Some(DEFLATE), &wire),
            [
                "response Text 7 H cut unreadable",
                "response Text 5  unreadable",
                "response Text 2 ok",
            ]
        );
        let forgetful = Deflate {
            server_forgets: true,
            ..DEFLATE
        };
        let wire = [
            Wire::Bytes(Server, &first[..4]),
            Wire::Gap(Server, 5),
            Wire::Bytes(Server, &first),
        ];
        let said = read(Some(forgetful), &wire);
        assert_eq!(said[1], "response Text 7 Hello");
        // The hole may hide the end of a message, too.
        let wire = [
            Wire::Bytes(Server, &first[..4]),
            Wire::Gap(Server, 6),
            Wire::Bytes(Server, &first),
        ];
        let said = read(Some(forgetful), &wire);
        assert_eq!(said[1], "response Text 7 Hello");
        // Nobody agreed on compression.
        assert_eq!(
            read(None, &[Wire::Bytes(Server, &first)]),
            ["response ?\u{7}"].map(|_| said_of(&first))
        );
    }

    fn said_of(frame: &[u8]) -> String {
        format!("response ?{}", String::from_utf8_lossy(&frame[2..]))
    }

    #[test]
    fn agreed() {
        let mut fields = Fields::default();
        assert_eq!(Deflate::agreed(&fields), None);
        fields.push(
            b"Sec-WebSocket-Extensions",
            b"x, Permessage-Deflate; server_max_window_bits=12;client_no_context_takeover",
        );
        let agreed = Deflate::agreed(&fields).unwrap();
        assert!(agreed.client_forgets && !agreed.server_forgets);
    }

    #[test]
    fn behind_a_hole_the_next_frame_is_found() {
        let hello = frame(Server, 0x81, b"Hello");
        let wire = [
            Wire::Bytes(Server, &hello[..1]),
            Wire::Gap(Server, 20),
            Wire::Bytes(Server, b"the rest"),
            Wire::Bytes(Server, &hello),
        ];
        assert_eq!(
            read(None, &wire),
            ["response ?the rest", "response Text 5 Hello"]
        );
        let wire = [
            Wire::Bytes(Server, &hello[..4]),
            Wire::Gap(Server, 2),
            Wire::Bytes(Server, &hello[6..]),
        ];
        assert_eq!(read(None, &wire), ["response Text 5 Heo cut"]);
    }

    #[test]
    fn a_message_has_its_bound() {
        let long = frame(Server, 0x82, &vec![0; MESSAGE_MAX + 9]);
        let next = frame(Server, 0x81, b"next");
        let wire = [Wire::Bytes(Server, &long), Wire::Bytes(Server, &next)];
        assert_eq!(
            read(None, &wire),
            [
                "Message",
                "response Binary 1048585 1048576 bytes cut",
                "response Text 4 next"
            ]
        );
        // What is compressed grows no further either.
        let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
        let mut coded = Vec::with_capacity(1 << 20);
        deflate
            .compress_vec(&vec![0; 64 << 20], &mut coded, flate2::FlushCompress::Sync)
            .unwrap();
        coded.truncate(coded.len() - 4);
        let bomb = frame(Server, 0xc2, &coded);
        let wire = [Wire::Bytes(Server, &bomb), Wire::Bytes(Server, &next)];
        let said = read(Some(DEFLATE), &wire);
        assert_eq!(said[0], "Message");
        assert!(said[1].contains("1048576 bytes cut") && said[2].ends_with("next"));
    }
}
