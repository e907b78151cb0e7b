//! `application/vnd.amazon.eventstream`: the bytes of a body in, messages out as they come.
//!
//! A message is its length, that of its headers, a checksum of both, headers, a payload, and a checksum of all.
//!
//! Source: Smithy specification, "Amazon Event Stream".

use flate2::Crc;

use crate::planted::Mistake;

/// Two lengths and their checksum.
const PRELUDE: usize = 12;

/// What a message has besides headers and payload.
const FRAME: usize = PRELUDE + 4;

/// Longest message that is read. The format allows for more.
const MESSAGE_MAX: usize = 1 << 20;

/// Most headers of a message.
const HEADERS_MAX: usize = 64;

/// One message.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Those that are text: `:message-type`, `:event-type` and so on. What others say is of no use here.
    headers: Vec<(String, String)>,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({} bytes)", self.payload.len())
    }
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Message(Message),
    /// A message was passed over.
    TooLong,
    /// A checksum or a length is wrong, or the end is missing: nothing more is read.
    Broken,
}

pub type Out<'a> = &'a mut dyn FnMut(Found);

/// The messages of one body.
#[derive(Debug, Default)]
pub struct Messages {
    /// Of the message that is read.
    kept: Vec<u8>,
    /// All of it, once its prelude is in.
    length: Option<usize>,
    /// So many bytes are of a message that is too long.
    skipped: usize,
    /// Behind a hole: a prelude is looked for, which its checksum tells.
    is_lost: bool,
    is_broken: bool,
}

impl Messages {
    /// More of the body, without its codings.
    pub fn feed(&mut self, bytes: &[u8], out: Out<'_>) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_broken {
            if self.skipped > 0 {
                let taken = self.skipped.min(rest.len());
                self.skipped -= taken;
                rest = &rest[taken..];
                continue;
            }
            let taken = self.missing().min(rest.len());
            self.kept.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.missing() == 0 {
                self.advance(out);
            }
        }
    }

    /// Bytes of what is not whole.
    pub fn held(&self) -> usize {
        self.kept.len()
    }

    /// A part of the body is missing.
    pub fn hole(&mut self) {
        self.kept.clear();
        self.length = None;
        self.skipped = 0;
        self.is_lost = true;
    }

    /// The body ends.
    pub fn close(&mut self, out: Out<'_>) {
        if !self.kept.is_empty() || self.skipped > 0 {
            self.give_up(out);
        }
    }

    /// How much must come before there is something to do.
    fn missing(&self) -> usize {
        self.length.unwrap_or(PRELUDE) - self.kept.len()
    }

    /// A prelude is there, or a message.
    fn advance(&mut self, out: Out<'_>) {
        if self.length.take().is_some() {
            let message = message(&self.kept);
            self.kept.clear();
            return match message {
                Some(message) => out(Found::Message(message)),
                None => self.give_up(out),
            };
        }
        let length = number(&self.kept) as usize;
        let headers = number(&self.kept[4..]) as usize;
        if !is_summed(&self.kept) || length < FRAME || headers > length - FRAME {
            match self.is_lost {
                true if Mistake::Eventstream.is_planted() => self.kept.clear(),
                true => drop(self.kept.remove(0)),
                false => self.give_up(out),
            }
            return;
        }
        self.is_lost = false;
        self.length = Some(length);
        if length > MESSAGE_MAX {
            self.skipped = length - PRELUDE;
            self.length = None;
            self.kept.clear();
            out(Found::TooLong);
        }
    }

    fn give_up(&mut self, out: Out<'_>) {
        self.kept = Vec::new();
        if !std::mem::replace(&mut self.is_broken, true) {
            out(Found::Broken);
        }
    }
}

/// The first four bytes, of at least so many.
fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |four| u32::from_be_bytes(*four))
}

/// Whether the last four bytes are the checksum of those before.
fn is_summed(bytes: &[u8]) -> bool {
    let (text, sum) = bytes.split_at(bytes.len() - 4);
    let mut crc = Crc::new();
    crc.update(text);
    crc.sum() == number(sum)
}

/// All of a message, whose prelude is right.
fn message(bytes: &[u8]) -> Option<Message> {
    if !is_summed(bytes) {
        return None;
    }
    let (headers, rest) = bytes[PRELUDE..].split_at(number(&bytes[4..]) as usize);
    Some(Message {
        headers: self::headers(headers)?,
        payload: rest[..rest.len() - 4].to_vec(),
    })
}

/// A name behind its length, a type, and a value.
fn headers(mut rest: &[u8]) -> Option<Vec<(String, String)>> {
    let mut texts = Vec::new();
    let mut count = 0;
    while !rest.is_empty() {
        count += 1;
        let length = take(&mut rest, 1)?[0] as usize;
        let name = take(&mut rest, length)?;
        let kind = take(&mut rest, 1)?[0];
        let size = match kind {
            // True and false.
            0 | 1 => 0,
            // Numbers of one byte, two, four and eight; a time is one of eight.
            2 => 1,
            3 => 2,
            4 => 4,
            5 | 8 => 8,
            // Bytes and text have a length of their own.
            6 | 7 => u16::from_be_bytes(*take(&mut rest, 2)?.first_chunk()?) as usize,
            // A UUID.
            9 => 16,
            _ => return None,
        };
        let value = take(&mut rest, size)?;
        if count > HEADERS_MAX {
            return None;
        }
        if kind == 7 {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            texts.push((text(name), text(value)));
        }
    }
    Some(texts)
}

fn take<'b>(rest: &mut &'b [u8], size: usize) -> Option<&'b [u8]> {
    let (taken, behind) = rest.split_at_checked(size)?;
    *rest = behind;
    Some(taken)
}

/// A message as it is sent, with headers of text.
#[cfg(test)]
pub fn encode(texts: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut headers = Vec::new();
    for (name, value) in texts {
        headers.push(name.len() as u8);
        headers.extend_from_slice(name.as_bytes());
        headers.push(7);
        headers.extend_from_slice(&(value.len() as u16).to_be_bytes());
        headers.extend_from_slice(value.as_bytes());
    }
    frame(&headers, payload)
}

#[cfg(test)]
fn frame(headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let sum = |bytes: &mut Vec<u8>| {
        let mut crc = Crc::new();
        crc.update(bytes);
        bytes.extend_from_slice(&crc.sum().to_be_bytes());
    };
    bytes.extend_from_slice(&((FRAME + headers.len() + payload.len()) as u32).to_be_bytes());
    bytes.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    sum(&mut bytes);
    bytes.extend_from_slice(headers);
    bytes.extend_from_slice(payload);
    sum(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(calls: &[Option<&[u8]>]) -> Vec<String> {
        let mut messages = Messages::default();
        let mut said = Vec::new();
        let mut note = |found: Found| {
            said.push(match found {
                Found::Message(message) => format!(
                    "{:?} {}",
                    message.headers,
                    String::from_utf8_lossy(&message.payload)
                ),
                found => format!("{found:?}"),
            });
        };
        for call in calls {
            match call {
                Some(bytes) => messages.feed(bytes, &mut note),
                None => messages.hole(),
            }
            assert!(messages.held() <= MESSAGE_MAX);
        }
        messages.close(&mut note);
        said
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter_map(|digit| Some(digit.to_digit(16)? as u8))
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    /// Messages that AWS' own libraries are tested with.
    const VECTORS: [(&str, &str); 4] = [
        ("00000010 00000000 05c248eb 7d98c8ff", "[] "),
        (
            "0000001d 00000000 fd528c5a 7b27666f6f273a27626172277d c3653936",
            "[] {'foo':'bar'}",
        ),
        (
            "0000002d 00000010 41c424b8 0a6576656e742d74797065 04 0000a00c 7b27666f6f273a27626172277d 36f480a0",
            "[] {'foo':'bar'}",
        ),
        (
            "0000003d 00000020 07fd8396 0c636f6e74656e742d74797065 07 0010 6170706c69636174696f6e2f6a736f6e \
             7b27666f6f273a27626172277d 8d9c08b1",
            "[(\"content-type\", \"application/json\")] {'foo':'bar'}",
        ),
    ];

    #[test]
    fn messages_however_they_are_cut() {
        let bytes: Vec<u8> = VECTORS.iter().flat_map(|(text, _)| hex(text)).collect();
        let expected = VECTORS.map(|(_, said)| said);
        assert_eq!(read(&[Some(&bytes)]), expected);
        for cut in 0..=bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(read(&[Some(first), Some(second)]), expected, "{cut}");
        }
        let single: Vec<_> = bytes.chunks(1).map(Some).collect();
        assert_eq!(read(&single), expected);
    }

    #[test]
    fn headers_of_all_types() {
        let mut headers = Vec::new();
        let sizes = [0, 0, 1, 2, 4, 8, 5, 3, 8, 16];
        for (kind, size) in sizes.into_iter().enumerate() {
            headers.extend_from_slice(&[1, b'a' + kind as u8, kind as u8]);
            if matches!(kind, 6 | 7) {
                headers.extend_from_slice(&[0, size as u8]);
            }
            headers.extend(std::iter::repeat_n(b'x', size));
        }
        let bytes = frame(&headers, b"p");
        assert_eq!(read(&[Some(&bytes)]), ["[(\"h\", \"xxx\")] p"]);
        // A type that is none, a value that is cut, and too many.
        for headers in [
            &b"\x01a\x0a"[..],
            b"\x01a\x07\x00\x09x",
            &b"\x01a\x00".repeat(HEADERS_MAX + 1),
        ] {
            assert_eq!(read(&[Some(&frame(headers, b"p"))]), ["Broken"]);
        }
    }

    #[test]
    fn any_wrong_bit_ends_it() {
        let right = encode(&[(":event-type", "chunk")], b"{\"a\":1}");
        let next = encode(&[], b"next");
        for at in 0..right.len() * 8 {
            let mut wrong = right.clone();
            wrong[at / 8] ^= 1 << (at % 8);
            assert_eq!(read(&[Some(&wrong), Some(&next)]), ["Broken"], "{at}");
        }
        // A prelude that is summed, but of nonsense.
        for (length, headers) in [
            (15_u32, 0_u32),
            (0, 0),
            (12, 0),
            (20, 5),
            (u32::MAX, u32::MAX),
        ] {
            let mut bytes = [length.to_be_bytes(), headers.to_be_bytes()].concat();
            let mut crc = Crc::new();
            crc.update(&bytes);
            bytes.extend_from_slice(&crc.sum().to_be_bytes());
            bytes.extend_from_slice(&[0; 32]);
            assert_eq!(read(&[Some(&bytes)]), ["Broken"], "{length} {headers}");
        }
        assert_eq!(read(&[Some(&right[..right.len() - 1])]), ["Broken"]);
    }

    #[test]
    fn behind_a_hole_the_next_message_is_found() {
        let parts = [b"one", b"two", b"six"].map(|payload| encode(&[("n", "v")], payload));
        let bytes = parts.concat();
        let (begin, end) = (parts[0].len(), parts[0].len() + parts[1].len());
        for from in begin..end {
            let said = read(&[
                Some(&bytes[..begin]),
                Some(&bytes[begin..from]),
                None,
                Some(&bytes[from + 1..]),
            ]);
            // The hole may have been in the last message, or just before it.
            assert_eq!(
                said,
                ["[(\"n\", \"v\")] one", "[(\"n\", \"v\")] six"],
                "{from}"
            );
        }
    }

    #[test]
    fn a_message_has_its_bound() {
        let long = encode(&[], &vec![b'x'; MESSAGE_MAX]);
        let next = encode(&[], b"next");
        let said = read(&[Some(&long[..99]), Some(&long[99..]), Some(&next)]);
        assert_eq!(said, ["TooLong", "[] next"]);
        let fits = encode(&[], &vec![b'x'; MESSAGE_MAX - FRAME]);
        assert_eq!(read(&[Some(&fits)]).len(), 1);
        assert_eq!(read(&[Some(&long[..99])]), ["TooLong", "Broken"]);
    }
}
