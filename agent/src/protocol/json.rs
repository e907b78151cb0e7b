//! JSON (RFC 8259) as it comes: bytes in, however they are cut, values out.
//!
//! A value is kept up to a bound, whatever its sender makes of it: what does not fit is left out, and said to be.
//! Of a long string of base64, which is an image or a file, its size and its hash are kept and not its text.
//! What comes behind a hole or a mistake is not read, unless values stand in lines.

use base64_simd::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::planted::Mistake;

/// A value, as far as it was kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As it was written.
    Number(Box<str>),
    Text(Text),
    List(Vec<Value>),
    /// Members in order. The same name may come twice.
    Map(Vec<(Box<str>, Value)>),
}

/// A string, as far as it was kept.
#[derive(Clone, Default, PartialEq)]
pub struct Text {
    /// Its beginning; of a blob what stands before the base64: nothing, or `data:image/png;base64,`.
    pub kept: String,
    /// Bytes of all of it, without escapes.
    pub length: u64,
    /// There is more of it than is kept.
    pub is_cut: bool,
    /// If it is long and base64.
    pub blob: Option<Box<Blob>>,
}

/// What base64 stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub size: u64,
    pub sha256: [u8; 32],
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({} bytes)", self.length)
    }
}

impl Text {
    /// Our own, or one that was put together.
    pub fn of(text: &str) -> Text {
        Text {
            kept: text.to_owned(),
            length: text.len() as u64,
            ..Text::default()
        }
    }

    /// Bytes of memory, besides itself.
    pub fn weight(&self) -> usize {
        self.kept.len() + self.blob.as_deref().map_or(0, size_of_val)
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// More of it, up to `room` bytes in all.
    pub fn append(&mut self, more: &Text, room: usize) {
        self.length += more.length;
        let fits = !self.is_cut && self.kept.len() + more.kept.len() <= room;
        if fits {
            self.kept.push_str(&more.kept);
        }
        self.is_cut |= !fits || more.is_cut || more.blob.is_some();
    }

    /// What its base64 stands for, if it is that, however short it is.
    pub fn decoded(&self) -> Option<Blob> {
        if self.blob.is_some() || self.is_cut {
            return self.blob.as_deref().copied();
        }
        let mut digest = Digest::new(self.kept.as_bytes());
        digest.feed(&self.kept.as_bytes()[digest.prefix..]);
        digest.finish()
    }
}

impl Value {
    /// The first member of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let members = self.members().iter();
        members
            .filter(|(known, _)| **known == *name)
            .map(|(_, value)| value)
            .find(|value| **value != Value::Null)
    }

    /// The same, of members of members.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |value, name| value.get(name))
    }

    pub fn members(&self) -> &[(Box<str>, Value)] {
        match self {
            Value::Map(members) => members,
            _ => &[],
        }
    }

    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(values) => values,
            _ => &[],
        }
    }

    pub fn text(&self) -> Option<&Text> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole string.
    pub fn str(&self) -> Option<&str> {
        self.text()
            .filter(|text| !text.is_cut && text.blob.is_none())
            .map(|text| text.kept.as_str())
    }

    pub fn bool(&self) -> Option<bool> {
        match self {
            Value::Bool(is) => Some(*is),
            _ => None,
        }
    }

    pub fn float(&self) -> Option<f64> {
        match self {
            Value::Number(number) => number
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    /// A whole number that is not negative, also if it is written as `1.0`.
    pub fn count(&self) -> Option<u64> {
        let Value::Number(number) = self else {
            return None;
        };
        number.parse().ok().or_else(|| {
            let number = self.float()?;
            (number >= 0.0 && number.fract() == 0.0 && number < u64::MAX as f64)
                .then_some(number as u64)
        })
    }

    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        size_of::<Value>()
            + match self {
                Value::Null | Value::Bool(_) => 0,
                Value::Number(number) => number.len(),
                Value::Text(text) => text.weight(),
                Value::List(values) => values.iter().map(Value::weight).sum(),
                Value::Map(members) => {
                    let weight =
                        |(name, value): &(Box<str>, Value)| NAME + name.len() + value.weight();
                    members.iter().map(weight).sum()
                }
            }
    }

    /// As text, without blanks.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_with(quote, out);
    }

    /// The same with strings as `quote` writes them.
    pub fn write_with(&self, quote: fn(&str, &mut Vec<u8>), out: &mut Vec<u8>) {
        match self {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Bool(true) => out.extend_from_slice(b"true"),
            Value::Bool(false) => out.extend_from_slice(b"false"),
            Value::Number(number) => out.extend_from_slice(number.as_bytes()),
            Value::Text(text) => quote(&text.kept, out),
            Value::List(values) => {
                out.push(b'[');
                for (at, value) in values.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    value.write_with(quote, out);
                }
                out.push(b']');
            }
            Value::Map(members) => {
                out.push(b'{');
                for (at, (name, value)) in members.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    quote(name, out);
                    out.push(b':');
                    value.write_with(quote, out);
                }
                out.push(b'}');
            }
        }
    }

    /// The same, as a string. Cut if a part of it is.
    pub fn written(&self) -> Text {
        let mut out = Vec::new();
        self.write(&mut out);
        let mut text = Text::of(&String::from_utf8_lossy(&out));
        text.is_cut = self.is_cut();
        text
    }

    fn is_cut(&self) -> bool {
        match self {
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
            Value::Text(text) => text.is_cut || text.blob.is_some(),
            Value::List(values) => values.iter().any(Value::is_cut),
            Value::Map(members) => members.iter().any(|(_, value)| value.is_cut()),
        }
    }
}

fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// A member's share of a map, besides its name and value.
const NAME: usize = size_of::<Box<str>>();

/// Lists and maps in one another that are kept.
const DEPTH_MAX: usize = 64;

/// Longest number, and the longest name of a member that is kept.
const TOKEN_MAX: usize = 256;

/// So long is a string at least that is not text if it can be base64.
const BLOB_MIN: usize = 1024;

/// How values stand in what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One value, or several one behind the other.
    Values,
    /// Each on a line of its own (NDJSON): a broken one ends with its line.
    Lines,
    /// They are the elements of one list.
    Elements,
}

/// A value that was read, or as much as came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    pub value: Value,
    /// Something of it was left out, for the bounds.
    pub is_cut: bool,
    /// It ends in a hole, a mistake, or too early.
    pub is_broken: bool,
}

pub type Out<'a> = &'a mut dyn FnMut(Read);

/// Reads values.
#[derive(Debug)]
pub struct Reader {
    layout: Layout,
    /// Bytes kept of one value, with what the tree around them takes.
    bound: usize,
    /// Base64 is kept as any text.
    is_verbatim: bool,
    /// Numbers in lists are left out, which is not said.
    skips_numbers: bool,
    state: State,
    stack: Vec<Frame>,
    /// Lists and maps that are too deep to be kept, and which of them are maps does not matter.
    deeper: usize,
    string: Buffer,
    token: Vec<u8>,
    /// Of the value that is read now.
    kept: usize,
    is_cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between values at the top.
    Between,
    /// A value comes; behind `[` there may be none.
    Value,
    First,
    /// A name comes; behind `{` there may be none.
    Name,
    FirstName,
    Colon,
    /// Behind a value: a comma or an end.
    Behind,
    /// In a string, which may be a name.
    Text {
        is_name: bool,
    },
    Escape {
        is_name: bool,
    },
    /// So many digits of four are missing.
    Unicode {
        is_name: bool,
        missing: u8,
        unit: u16,
    },
    /// In a number or a word.
    Token,
    /// Too deep: strings are told from the rest, and no more.
    Deep,
    DeepText,
    DeepEscape,
    /// A mistake, or a hole.
    Broken,
}

#[derive(Debug)]
enum Frame {
    List(Vec<Value>),
    Map(Vec<(Box<str>, Value)>, Option<Box<str>>),
}

/// The string that is read now.
#[derive(Default)]
struct Buffer {
    kept: Vec<u8>,
    length: u64,
    is_cut: bool,
    /// The first half of a character beyond the first plane.
    surrogate: Option<u16>,
    /// Once it is long.
    digest: Option<Digest>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

impl Buffer {
    fn push(&mut self, bytes: &[u8], room: usize, is_verbatim: bool) {
        // Before so much is there, nobody knows whether it is a blob, which takes less than its text.
        let room = match is_verbatim {
            true => room,
            false => room.max(BLOB_MIN),
        };
        match &mut self.digest {
            Some(digest) => digest.feed(bytes),
            None if !is_verbatim && self.kept.len() + bytes.len() >= BLOB_MIN => {
                let (first, rest) = bytes.split_at(BLOB_MIN - self.kept.len());
                let head = [&self.kept, first].concat();
                let mut digest = Digest::new(&head);
                digest.feed(&head[digest.prefix..]);
                digest.feed(rest);
                self.digest = Some(digest);
            }
            None => {}
        }
        self.length += bytes.len() as u64;
        // Behind what did not fit nothing is kept.
        let taken = match self.is_cut {
            true => 0,
            false => bytes.len().min(room.saturating_sub(self.kept.len())),
        };
        self.kept.extend_from_slice(&bytes[..taken]);
        self.is_cut |= taken < bytes.len();
    }

    /// `room`: bytes that the text may take.
    fn take(&mut self, room: usize) -> Text {
        let Buffer {
            mut kept,
            length,
            mut is_cut,
            digest,
            ..
        } = std::mem::take(self);
        if let Some(digest) = digest {
            let prefix = digest.prefix;
            if let Some(blob) = digest.finish() {
                kept.truncate(prefix);
                return Text {
                    kept: String::from_utf8_lossy(&kept).into_owned(),
                    length,
                    is_cut: false,
                    blob: Some(Box::new(blob)),
                };
            }
        }
        if is_cut
            && let Err(error) = simdutf8::compat::from_utf8(&kept)
            && error.error_len().is_none()
        {
            // It was cut within a character.
            kept.truncate(error.valid_up_to());
        }
        let mut kept = String::from_utf8(kept)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        // What stands for a byte that is no character takes three.
        if kept.len() > room {
            kept.truncate(kept.floor_char_boundary(room));
            kept.shrink_to_fit();
            is_cut = true;
        }
        Text {
            kept,
            length,
            is_cut,
            blob: None,
        }
    }
}

/// Decodes base64 of both alphabets, for its hash.
struct Digest {
    /// Where the base64 begins.
    prefix: usize,
    hash: Sha256,
    size: u64,
    /// Less than four characters that wait.
    rest: Vec<u8>,
    /// `-` and `_` instead of `+` and `/`, once one of them was seen.
    is_url_safe: Option<bool>,
    /// Padding was seen: nothing but it may follow.
    is_padded: bool,
    is_wrong: bool,
}

/// Longest `data:` with a media type before base64.
const PREFIX_MAX: usize = 256;

impl Digest {
    fn new(text: &[u8]) -> Digest {
        let prefix = match text.starts_with(b"data:") {
            true => {
                let head = &text[..text.len().min(PREFIX_MAX)];
                memchr::memmem::find(head, b";base64,").map_or(0, |at| at + b";base64,".len())
            }
            false => 0,
        };
        Digest {
            prefix,
            hash: Sha256::new(),
            size: 0,
            rest: Vec::new(),
            is_url_safe: None,
            is_padded: false,
            is_wrong: false,
        }
    }

    fn feed(&mut self, mut text: &[u8]) {
        if self.is_wrong {
            return;
        }
        if !self.rest.is_empty() {
            let taken = text.len().min(4 - self.rest.len());
            self.rest.extend_from_slice(&text[..taken]);
            text = &text[taken..];
            if self.rest.len() < 4 {
                return;
            }
            let four = std::mem::take(&mut self.rest);
            self.decode(&four);
        }
        let whole = text.len() / 4 * 4;
        self.rest.extend_from_slice(&text[whole..]);
        self.decode(&text[..whole]);
    }

    fn decode(&mut self, text: &[u8]) {
        let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
        let text = &text[..text.len() - padding];
        self.is_wrong |= padding > 2 || self.is_padded && !text.is_empty();
        self.is_padded |= padding > 0;
        if self.is_wrong || text.is_empty() {
            return;
        }
        if self.is_url_safe.is_none() {
            self.is_url_safe = memchr::memchr2(b'-', b'_', text)
                .map(|_| true)
                .or_else(|| memchr::memchr2(b'+', b'/', text).map(|_| false));
        }
        let alphabet = match self.is_url_safe {
            Some(true) => URL_SAFE_NO_PAD,
            _ => STANDARD_NO_PAD,
        };
        match alphabet.decode_to_vec(text) {
            Ok(bytes) => {
                self.hash.update(&bytes);
                self.size += bytes.len() as u64;
            }
            Err(_) => self.is_wrong = true,
        }
    }

    fn finish(mut self) -> Option<Blob> {
        let rest = std::mem::take(&mut self.rest);
        self.decode(&rest);
        (!self.is_wrong && self.size > 0).then(|| Blob {
            size: self.size,
            sha256: self.hash.finalize().into(),
        })
    }
}

impl Reader {
    /// `bound`: bytes kept of one value.
    pub fn new(layout: Layout, bound: usize) -> Reader {
        Reader {
            layout,
            bound,
            is_verbatim: false,
            skips_numbers: false,
            state: State::Between,
            stack: Vec::new(),
            deeper: 0,
            string: Buffer::default(),
            token: Vec::new(),
            kept: 0,
            is_cut: false,
        }
    }

    /// Numbers in lists are not wanted: vectors, of which there are millions.
    pub fn without_numbers(self) -> Reader {
        Reader {
            skips_numbers: true,
            ..self
        }
    }

    /// Bytes of what is not whole.
    pub fn held(&self) -> usize {
        self.kept + self.string.kept.len()
    }

    /// Nothing more will be read.
    pub fn is_broken(&self) -> bool {
        self.state == State::Broken && self.layout != Layout::Lines
    }

    /// Members of the outermost map that are whole.
    pub fn members(&self) -> &[(Box<str>, Value)] {
        match self.stack.first() {
            Some(Frame::Map(members, _)) => members,
            _ => &[],
        }
    }

    /// Members of the outermost map so far, with the one that is being read. Of elements it is that of the present one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let is_list = matches!(self.stack.first(), Some(Frame::List(_)));
        let at = usize::from(is_list && self.layout == Layout::Elements);
        let (members, name) = match self.stack.get(at) {
            Some(Frame::Map(members, name)) => (&members[..], name.as_deref()),
            _ => (&[][..], None),
        };
        members.iter().map(|(name, _)| &**name).chain(name)
    }

    pub fn feed(&mut self, bytes: &[u8], out: Out<'_>) {
        if Mistake::Json.is_planted() {
            self.string.surrogate = None;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.step(rest, out);
            rest = &rest[taken..];
        }
    }

    /// A part is missing.
    pub fn hole(&mut self, out: Out<'_>) {
        self.give_up(out);
    }

    /// The end: what is not whole is given out as far as it came.
    pub fn close(&mut self, out: Out<'_>) {
        if self.state == State::Token {
            self.end_of_token(out);
        }
        self.give_up(out);
    }

    /// Reads some of the bytes, one at the least, and says how many.
    fn step(&mut self, bytes: &[u8], out: Out<'_>) -> usize {
        let byte = bytes[0];
        if byte == b'\n' && self.layout == Layout::Lines {
            self.end_of_line(out);
            return 1;
        }
        match self.state {
            State::Text { is_name } => return self.text(bytes, is_name, out),
            State::Token => {
                let is_part =
                    |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
                let length = bytes.iter().take_while(is_part).count();
                if length == 0 {
                    self.end_of_token(out);
                }
                // One more than is kept says that it is too long.
                let room = (TOKEN_MAX + 1).saturating_sub(self.token.len());
                self.token.extend_from_slice(&bytes[..length.min(room)]);
                return length;
            }
            State::Escape { is_name } => self.escape(byte, is_name, out),
            State::Unicode {
                is_name,
                missing,
                unit,
            } => match (byte as char).to_digit(16) {
                None => self.give_up(out),
                Some(digit) => {
                    let unit = unit << 4 | digit as u16;
                    self.state = match missing {
                        1 => {
                            self.unit(unit, is_name);
                            State::Text { is_name }
                        }
                        _ => State::Unicode {
                            is_name,
                            missing: missing - 1,
                            unit,
                        },
                    };
                }
            },
            State::Deep => return self.deep(bytes, out),
            State::DeepText => {
                let Some(at) = self.end_of_text(bytes) else {
                    return bytes.len();
                };
                self.state = match bytes[at] {
                    b'"' => State::Deep,
                    b'\\' => State::DeepEscape,
                    _ => return at,
                };
                return at + 1;
            }
            State::DeepEscape => self.state = State::DeepText,
            State::Broken if self.layout == Layout::Lines => {
                return memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
            }
            State::Broken => return bytes.len(),
            _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => {
                let blank = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r');
                return 1 + bytes[1..].iter().take_while(blank).count();
            }
            State::Between | State::Value => self.value(byte, out),
            State::First if byte == b']' => self.end_of_list(out),
            State::First => self.value(byte, out),
            State::FirstName if byte == b'}' => self.end_of_map(out),
            State::Name | State::FirstName if byte == b'"' => {
                self.state = State::Text { is_name: true }
            }
            State::Name | State::FirstName => self.give_up(out),
            State::Colon if byte == b':' => self.state = State::Value,
            State::Colon => self.give_up(out),
            State::Behind => match (byte, self.stack.last()) {
                (b',', Some(Frame::List(_))) => self.state = State::Value,
                (b',', Some(Frame::Map(..))) => self.state = State::Name,
                (b']', Some(Frame::List(_))) => self.end_of_list(out),
                (b'}', Some(Frame::Map(..))) => self.end_of_map(out),
                _ => self.give_up(out),
            },
        }
        1
    }

    /// No value goes on in the next line.
    fn end_of_line(&mut self, out: Out<'_>) {
        if self.state == State::Token {
            self.end_of_token(out);
        }
        if self.state != State::Between {
            self.give_up(out);
        }
        self.state = State::Between;
    }

    /// What ends a part of a string: a quote, an escape, and where values stand in lines the end of one.
    fn end_of_text(&self, bytes: &[u8]) -> Option<usize> {
        match self.layout {
            Layout::Lines => memchr::memchr3(b'"', b'\\', b'\n', bytes),
            Layout::Values | Layout::Elements => memchr::memchr2(b'"', b'\\', bytes),
        }
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8, out: Out<'_>) {
        match byte {
            b'{' | b'[' if self.stack.len() == DEPTH_MAX || !self.fits(size_of::<Value>()) => {
                self.is_cut = true;
                self.deeper = 1;
                self.state = State::Deep;
            }
            b'{' => {
                self.kept += size_of::<Value>() + self.name();
                self.stack.push(Frame::Map(Vec::new(), None));
                self.state = State::FirstName;
            }
            b'[' => {
                self.kept += size_of::<Value>() + self.name();
                self.stack.push(Frame::List(Vec::new()));
                self.state = State::First;
            }
            b'"' => self.state = State::Text { is_name: false },
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                self.token.push(byte);
                self.state = State::Token;
            }
            _ => self.give_up(out),
        }
    }

    fn text(&mut self, bytes: &[u8], is_name: bool, out: Out<'_>) -> usize {
        let end = self.end_of_text(bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        if end.is_some_and(|end| bytes[end] == b'"')
            && let Some(text) = self.short(part, is_name)
        {
            self.whole_text(text, is_name, out);
            return part.len() + 1;
        }
        if !part.is_empty() {
            self.flush_surrogate(is_name);
            self.push(part, is_name);
        }
        let Some(end) = end else {
            return bytes.len();
        };
        match bytes[end] {
            b'"' => {}
            b'\\' => {
                self.state = State::Escape { is_name };
                return end + 1;
            }
            _ => return end,
        }
        self.flush_surrogate(is_name);
        let room = self.room(is_name);
        let text = self.string.take(room);
        self.is_cut |= text.is_cut;
        self.whole_text(text, is_name, out);
        end + 1
    }

    /// Most strings are short, come in one piece, and have no escape: they need no buffer.
    fn short(&self, text: &[u8], is_name: bool) -> Option<Text> {
        let is_begun = self.string.length > 0 || self.string.surrogate.is_some();
        if is_begun || text.len() >= BLOB_MIN || text.len() > self.room(is_name) {
            return None;
        }
        simdutf8::basic::from_utf8(text).ok().map(Text::of)
    }

    fn whole_text(&mut self, text: Text, is_name: bool, out: Out<'_>) {
        if !is_name {
            return self.place(Value::Text(text), out);
        }
        if let Some(Frame::Map(_, name)) = self.stack.last_mut() {
            *name = Some(text.kept.into());
        }
        self.state = State::Colon;
    }

    fn room(&self, is_name: bool) -> usize {
        match is_name {
            true => TOKEN_MAX,
            false => self
                .bound
                .saturating_sub(self.kept + size_of::<Value>() + self.name()),
        }
    }

    /// Is there room for this and the name that it gets?
    fn fits(&self, own: usize) -> bool {
        self.kept + own + self.name() <= self.bound
    }

    /// What the name takes that the next value gets.
    fn name(&self) -> usize {
        match self.stack.last() {
            Some(Frame::Map(_, Some(name))) => NAME + name.len(),
            _ => 0,
        }
    }

    fn escape(&mut self, byte: u8, is_name: bool, out: Out<'_>) {
        self.state = State::Text { is_name };
        let one = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.state = State::Unicode {
                    is_name,
                    missing: 4,
                    unit: 0,
                };
                return;
            }
            _ => return self.give_up(out),
        };
        self.flush_surrogate(is_name);
        self.push(&[one], is_name);
    }

    /// A unit of UTF-16.
    fn unit(&mut self, unit: u16, is_name: bool) {
        let first = self.string.surrogate.take();
        let code = match (first, unit) {
            (Some(first), 0xdc00..=0xdfff) => {
                0x10000 + ((u32::from(first) - 0xd800) << 10) + u32::from(unit) - 0xdc00
            }
            _ => {
                if first.is_some() {
                    self.character(char::REPLACEMENT_CHARACTER, is_name);
                }
                if matches!(unit, 0xd800..=0xdbff) {
                    self.string.surrogate = Some(unit);
                    return;
                }
                unit.into()
            }
        };
        let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        self.character(character, is_name);
    }

    fn character(&mut self, character: char, is_name: bool) {
        let mut bytes = [0; 4];
        self.push(character.encode_utf8(&mut bytes).as_bytes(), is_name);
    }

    /// More of the string. A name is one, however long it is.
    fn push(&mut self, bytes: &[u8], is_name: bool) {
        let room = self.room(is_name);
        self.string.push(bytes, room, is_name || self.is_verbatim);
    }

    /// Half a character, and its other half does not follow.
    fn flush_surrogate(&mut self, is_name: bool) {
        if self.string.surrogate.take().is_some() {
            self.character(char::REPLACEMENT_CHARACTER, is_name);
        }
    }

    fn end_of_token(&mut self, out: Out<'_>) {
        let mut token = std::mem::take(&mut self.token);
        let is_left_out = self.skips() && token.len() <= TOKEN_MAX && is_number(&token);
        if is_left_out {
            self.state = State::Behind;
        } else {
            match self.token_value(&token) {
                Some(value) => self.place(value, out),
                None => self.give_up(out),
            }
        }
        // Its memory is for the next one.
        token.clear();
        self.token = token;
    }

    /// `None`: it is none.
    fn token_value(&mut self, token: &[u8]) -> Option<Value> {
        Some(match token {
            b"null" => Value::Null,
            b"true" => Value::Bool(true),
            b"false" => Value::Bool(false),
            // With its last digits it loses its meaning.
            [b'-' | b'0'..=b'9', ..] if token.len() > TOKEN_MAX => {
                self.is_cut = true;
                Value::Null
            }
            token if !is_number(token) => return None,
            token => Value::Number(str::from_utf8(token).ok()?.into()),
        })
    }

    /// Are numbers left out here?
    fn skips(&self) -> bool {
        self.skips_numbers
            && matches!(self.stack.last(), Some(Frame::List(_)))
            && !self.is_element()
    }

    /// Is what comes next told by itself?
    fn is_element(&self) -> bool {
        self.layout == Layout::Elements && matches!(self.stack[..], [Frame::List(_)])
    }

    fn deep(&mut self, bytes: &[u8], out: Out<'_>) -> usize {
        let Some(at) = bytes
            .iter()
            .position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']' | b'\n'))
        else {
            return bytes.len();
        };
        match bytes[at] {
            b'"' => self.state = State::DeepText,
            b'{' | b'[' => self.deeper += 1,
            b'\n' if self.layout == Layout::Lines => return at,
            b'\n' => {}
            _ => {
                self.deeper -= 1;
                if self.deeper == 0 {
                    self.place(Value::Null, out);
                }
            }
        }
        at + 1
    }

    fn end_of_list(&mut self, out: Out<'_>) {
        if let Some(Frame::List(values)) = self.stack.pop() {
            // Its elements are told, and it is nothing itself.
            match self.stack.is_empty() && self.layout == Layout::Elements {
                true => self.state = State::Between,
                false => self.place(Value::List(values), out),
            }
        }
    }

    fn end_of_map(&mut self, out: Out<'_>) {
        if let Some(Frame::Map(members, _)) = self.stack.pop() {
            self.place(Value::Map(members), out);
        }
    }

    /// A value is whole.
    fn place(&mut self, value: Value, out: Out<'_>) {
        self.state = State::Behind;
        if self.stack.is_empty() || self.is_element() {
            self.kept = 0;
            if self.stack.is_empty() {
                self.state = State::Between;
            }
            return out(Read {
                value,
                is_cut: std::mem::take(&mut self.is_cut),
                is_broken: false,
            });
        }
        // A list or a map was counted when it began: what is kept in it has a place, however much it is.
        if !matches!(value, Value::List(_) | Value::Map(_)) {
            if !self.fits(value.weight()) {
                self.is_cut = true;
                return;
            }
            self.kept += value.weight() + self.name();
        }
        match self.stack.last_mut() {
            Some(Frame::List(values)) => values.push(value),
            Some(Frame::Map(members, name)) => {
                members.push((name.take().unwrap_or_default(), value))
            }
            None => {}
        }
    }

    /// Gives out what there is of a value, and reads no further.
    fn give_up(&mut self, out: Out<'_>) {
        let in_text = matches!(
            self.state,
            State::Text { is_name: false }
                | State::Escape { is_name: false }
                | State::Unicode { is_name: false, .. }
        );
        let is_begun = in_text || !self.stack.is_empty() || self.deeper > 0;
        self.state = State::Broken;
        self.token.clear();
        self.deeper = 0;
        if !is_begun {
            self.string = Buffer::default();
            return;
        }
        let room = self.room(false);
        self.string.is_cut = true;
        self.string.digest = None;
        let text = self.string.take(room);
        let mut value = in_text.then_some(Value::Text(text));
        while let Some(frame) = self.stack.pop() {
            if self.stack.is_empty()
                && self.layout == Layout::Elements
                && matches!(frame, Frame::List(_))
            {
                break;
            }
            value = Some(match frame {
                Frame::List(mut values) => {
                    values.extend(value);
                    Value::List(values)
                }
                Frame::Map(mut members, name) => {
                    members.extend(name.zip(value));
                    Value::Map(members)
                }
            });
        }
        self.stack.clear();
        self.kept = 0;
        if let Some(value) = value {
            out(Read {
                value,
                is_cut: std::mem::take(&mut self.is_cut),
                is_broken: true,
            });
        }
    }
}

/// `-`, digits without a zero before them, a fraction, an exponent. What else floating point may be called is none.
fn is_number(token: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = token.strip_prefix(b"-").unwrap_or(token);
    let whole = digits(rest);
    let mut rest = match rest[..whole] {
        [] | [b'0', _, ..] => return false,
        _ => &rest[whole..],
    };
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = digits(fraction);
        if length == 0 {
            return false;
        }
        rest = &fraction[length..];
    }
    let [b'e' | b'E', exponent @ ..] = rest else {
        return rest.is_empty();
    };
    let ([b'+' | b'-', exponent @ ..] | exponent) = exponent;
    !exponent.is_empty() && digits(exponent) == exponent.len()
}

/// All of a text that is one value.
pub fn read(bytes: &[u8], bound: usize) -> Option<Read> {
    one(bytes, Reader::new(Layout::Values, bound))
}

/// The same, where base64 is not the end of it: with it as text.
pub fn read_verbatim(bytes: &[u8], bound: usize) -> Option<Read> {
    let reader = Reader {
        is_verbatim: true,
        ..Reader::new(Layout::Values, bound)
    };
    one(bytes, reader)
}

fn one(bytes: &[u8], mut reader: Reader) -> Option<Read> {
    let mut found = None;
    let out: Out<'_> = &mut |read| {
        found.get_or_insert(read);
    };
    reader.feed(bytes, out);
    reader.close(out);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: usize = 1 << 20;

    fn write(value: &Value) -> String {
        let mut out = Vec::new();
        value.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// Each value, and `~` behind those that are cut.
    fn told(layout: Layout, bound: usize, parts: &[Option<&[u8]>]) -> Vec<String> {
        let mut reader = Reader::new(layout, bound);
        let mut told = Vec::new();
        let mut out = |read: Read| {
            let cut = if read.is_cut || read.is_broken {
                "~"
            } else {
                ""
            };
            told.push(format!("{}{cut}", write(&read.value)));
        };
        for part in parts {
            match part {
                Some(bytes) => reader.feed(bytes, &mut out),
                None => reader.hole(&mut out),
            }
        }
        reader.close(&mut out);
        told
    }

    #[test]
    fn values_however_they_are_cut() {
        let text = r#" {"a" : [1, -2.5e3, true,false , null, [], {}], "b\u00e9\n\"": "\ud83d\ude00 x\/\\", "":{"":""} } "#;
        let expected = r#"{"a":[1,-2.5e3,true,false,null,[],{}],"bé\n\"":"😀 x/\\","":{"":""}}"#;
        let text = text.as_bytes();
        assert_eq!(told(Layout::Values, BOUND, &[Some(text)]), [expected]);
        for cut in 0..=text.len() {
            let (first, second) = text.split_at(cut);
            let parts = [Some(first), Some(second)];
            assert_eq!(told(Layout::Values, BOUND, &parts), [expected], "{cut}");
        }
        let bytes: Vec<_> = text.chunks(1).map(Some).collect();
        assert_eq!(told(Layout::Values, BOUND, &bytes), [expected]);
    }

    /// Against a reader that is right: any text that it takes gives the same.
    #[test]
    fn as_another_reader_has_it() {
        let texts = [
            "1",
            "-0.0",
            "\"a\"",
            "[[[[1]]]]",
            "{\"a\":{\"b\":[1,{\"c\":2}]}}",
            "\"\\ud83d\\ude00\"",
            "[1,2 , 3]",
            "\"\\u0000\\u001f\\u007f\"",
            "true",
            "[null]",
            "123456789012345678901234567890",
            "1e400",
        ];
        for text in texts {
            let ours = told(Layout::Values, BOUND, &[Some(text.as_bytes())]);
            let [ours] = &ours[..] else {
                panic!("{text}: {ours:?}")
            };
            let (ours, theirs): (Result<serde_json::Value, _>, Result<serde_json::Value, _>) =
                (serde_json::from_str(ours), serde_json::from_str(text));
            assert_eq!(ours.ok(), theirs.ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_ends_there() {
        let cases = [
            ("{\"a\":1 x", vec!["{\"a\":1}~"]),
            ("{\"a\":[1,2}", vec!["{\"a\":[1,2]}~"]),
            ("{a:1}", vec!["{}~"]),
            ("[1,,2]", vec!["[1]~"]),
            ("hello", vec![]),
            ("{\"a\":tru}", vec!["{}~"]),
            ("\"\\x\"", vec!["\"\"~"]),
            ("{\"a\":\"b", vec!["{\"a\":\"b\"}~"]),
            ("\"\\u12g4\"", vec!["\"\"~"]),
            ("]", vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(
                told(Layout::Values, BOUND, &[Some(text.as_bytes())]),
                expected,
                "{text}"
            );
        }
    }

    /// What `f64` has names for, and JSON has not.
    #[test]
    fn what_is_no_number() {
        for text in [
            "-", "-inf", "-nan", "01", "-00", "1.", "-.5", "1.e5", "1e", "1e+", "0x1", "1f", "--1",
            "1-",
        ] {
            assert!(
                told(Layout::Values, BOUND, &[Some(text.as_bytes())]).is_empty(),
                "{text}"
            );
        }
        for text in ["0", "-0", "0.0", "10", "1e0", "1E+00", "-1.50e-07"] {
            assert_eq!(
                told(Layout::Values, BOUND, &[Some(text.as_bytes())]),
                [text]
            );
        }
    }

    /// A number without its last digits is another one.
    #[test]
    fn a_number_that_is_too_long_is_left_out() {
        let fits = "1".repeat(TOKEN_MAX);
        let text = format!("[{fits},{fits}0,2]");
        assert_eq!(
            told(Layout::Values, BOUND, &[Some(text.as_bytes())]),
            [format!("[{fits},null,2]~")]
        );
    }

    /// A string that its writer did not end takes no line but its own.
    #[test]
    fn no_string_goes_on_in_the_next_line() {
        let deep = "[".repeat(DEPTH_MAX + 1);
        for line in [
            "\"a",
            "{\"a",
            "{\"a\":\"b",
            "\"\\",
            "\"\\u00",
            &format!("{deep}\"a"),
            &format!("{deep}\"\\"),
        ] {
            let text = format!("{line}\n\"c\"\n1\n");
            let bytes: Vec<_> = text.as_bytes().chunks(1).map(Some).collect();
            for parts in [&[Some(text.as_bytes())][..], &bytes] {
                let told = told(Layout::Lines, BOUND, parts);
                assert_eq!(told[1..], ["\"c\"", "1"], "{line:?}");
                assert!(told[0].ends_with('~'), "{line:?}");
            }
        }
        let text = "\"a\nb\"";
        assert_eq!(
            told(Layout::Values, BOUND, &[Some(text.as_bytes())]),
            ["\"a\\nb\""]
        );
    }

    /// What is kept of a string is not for its cuts to say: neither near the bound, nor of a name, nor of what is no
    /// text at all.
    #[test]
    fn bounds_of_strings_however_they_are_cut() {
        let base64 = "iVBORw0KGgo".repeat(200);
        let escaped = "\\u0061".repeat(2 * TOKEN_MAX);
        let cases = [
            // There is no room for its text, but for its size.
            (format!("[\"{}\",\"{base64}\"]", "x ".repeat(900)), 2048),
            (format!("{{\"{base64}\":1}}"), BOUND),
            (format!("{{\"{escaped}\":1,\"\\ud83d{escaped}\":2}}"), BOUND),
        ];
        for (text, bound) in cases {
            let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
            let read = |parts: &[&[u8]]| {
                let mut reader = Reader::new(Layout::Values, bound);
                let mut found = Vec::new();
                parts
                    .iter()
                    .for_each(|part| reader.feed(part, &mut |read| found.push(read)));
                found
            };
            let found = read(&[text.as_bytes()]);
            assert_eq!(found, read(&bytes));
            let value = &found[0].value;
            if let [_, blob] = value.list() {
                assert_eq!(blob.text().unwrap().decoded().unwrap().size, 1650);
            }
            for (name, _) in value.members() {
                assert!(found[0].is_cut && name.len() <= TOKEN_MAX && !name.is_empty());
            }
        }
        let noise = [b"[\"", &[0xff; 1500][..], b"\"]"].concat();
        let found = read(&noise, 2048).unwrap();
        assert!(found.is_cut && found.value.weight() <= 2048 + 100);
        let text = found.value.list()[0].text().unwrap();
        assert!(text.is_cut && text.kept.len() > 1800 && text.length == 1500);
    }

    #[test]
    fn lines_and_elements() {
        let lines = "{\"a\":1}\n\n{\"b\":\n{\"c\":3}\r\nx\n4\n[1";
        assert_eq!(
            told(Layout::Lines, BOUND, &[Some(lines.as_bytes())]),
            ["{\"a\":1}", "{}~", "{\"c\":3}", "4", "[1]~"]
        );
        let holes = [
            Some(&b"{\"a\":1}\n{\"b\":"[..]),
            None,
            Some(b"3}\n{\"c\":4}\n"),
        ];
        assert_eq!(
            told(Layout::Lines, BOUND, &holes),
            ["{\"a\":1}", "{}~", "{\"c\":4}"]
        );
        assert_eq!(told(Layout::Values, BOUND, &holes), ["{\"a\":1}", "{}~"]);
        let list = "[{\"a\":[1,2]}\n,\n{\"b\":2},3]";
        for cut in 0..=list.len() {
            let (first, second) = list.as_bytes().split_at(cut);
            let parts = [Some(first), Some(second)];
            assert_eq!(
                told(Layout::Elements, BOUND, &parts),
                ["{\"a\":[1,2]}", "{\"b\":2}", "3"],
                "{cut}"
            );
        }
        let hole = [Some(&b"[{\"a\":1},{\"b\":[2"[..]), None, Some(b"]}]")];
        assert_eq!(
            told(Layout::Elements, BOUND, &hole),
            ["{\"a\":1}", "{\"b\":[]}~"]
        );
    }

    #[test]
    fn a_value_has_its_bound() {
        let text = format!(
            "{{\"a\":\"{}\",\"b\":2,\"c\":[{}]}}",
            "x y ".repeat(1000),
            "7,".repeat(999) + "7"
        );
        let mut reader = Reader::new(Layout::Values, 2048);
        let mut found = Vec::new();
        for part in text.as_bytes().chunks(100) {
            reader.feed(part, &mut |read| found.push(read));
            assert!(reader.held() <= 2048 + 300, "{}", reader.held());
        }
        let [
            Read {
                value,
                is_cut: true,
                ..
            },
        ] = &found[..]
        else {
            panic!("{found:?}");
        };
        let kept = value.get("a").and_then(Value::text).unwrap();
        assert!(kept.is_cut && kept.length == 4000 && kept.kept.len() > 1000);
        assert!(value.weight() <= 2048 + 200, "{}", value.weight());
    }

    /// What a text that takes all room stands in has its place.
    #[test]
    fn a_long_text_is_where_it_was() {
        let text = format!(
            "{{\"a\":[{{\"b\":[\"{}\"]}},[]],\"c\":1}}",
            "x y ".repeat(1000)
        );
        let mut found = Vec::new();
        let mut reader = Reader::new(Layout::Values, 2048);
        reader.feed(text.as_bytes(), &mut |read| found.push(read));
        let [Read { value, is_cut, .. }] = &found[..] else {
            panic!("{found:?}");
        };
        let kept = &value.get("a").unwrap().list()[0].get("b").unwrap().list()[0];
        assert!(*is_cut && kept.text().unwrap().kept.len() > 1000);
        assert!(value.weight() <= 2048 + 200, "{}", value.weight());
    }

    #[test]
    fn what_is_too_deep_is_left_out() {
        let deep = format!(
            "{{\"a\":{}\"]}}\\\"\"{},\"b\":1}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        for parts in [
            vec![Some(deep.as_bytes())],
            deep.as_bytes().chunks(7).map(Some).collect(),
        ] {
            let told = told(Layout::Values, BOUND, &parts);
            let expected = format!(
                "{{\"a\":{}null{},\"b\":1}}~",
                "[".repeat(63),
                "]".repeat(63)
            );
            assert_eq!(told, [expected]);
        }
    }

    #[test]
    fn images_are_told_by_size_and_hash() {
        let file: Vec<u8> = (0..100_000_u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        for (size, alphabet) in [
            (1000, STANDARD_NO_PAD),
            (400_000, STANDARD_NO_PAD),
            (399_999, URL_SAFE_NO_PAD),
        ] {
            let padding = ["", "==", "="][size % 3];
            let base64 = alphabet.encode_to_string(&file[..size]);
            let text = format!(
                "[\"data:image/png;base64,{base64}{padding}\",\"{base64}\",\"{base64} x\"]"
            );
            for step in [1, 7, 4096, text.len()] {
                let mut found = Vec::new();
                let mut reader = Reader::new(Layout::Values, 4096);
                text.as_bytes()
                    .chunks(step)
                    .for_each(|part| reader.feed(part, &mut |read| found.push(read)));
                let [Read { value, .. }] = &found[..] else {
                    panic!()
                };
                let sha256: [u8; 32] = Sha256::digest(&file[..size]).into();
                let expected = Blob {
                    size: size as u64,
                    sha256,
                };
                let texts: Vec<_> = value.list().iter().filter_map(Value::text).collect();
                assert_eq!(texts[0].decoded(), Some(expected), "{size} {step}");
                assert_eq!(texts[0].kept, "data:image/png;base64,");
                assert_eq!((texts[1].decoded(), &*texts[1].kept), (Some(expected), ""));
                assert_eq!(texts[2].decoded(), None);
            }
        }
        assert_eq!(
            Text::of("iVBORw0KGgo=").decoded().map(|blob| blob.size),
            Some(8)
        );
        assert_eq!(Text::of("no base64!").decoded(), None);
    }
}
