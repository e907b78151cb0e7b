//! Server-sent events (HTML standard, section 9.2.6): the text of a body in, events out as they come.

use super::Limit;
use crate::planted::Mistake;

/// Longest event.
const EVENT_MAX: usize = 1 << 20;

/// One event. Fields that were not sent are empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// `message` if the server does not say.
    pub name: Vec<u8>,
    /// Its lines, with line feeds between them.
    pub data: Vec<u8>,
    pub id: Vec<u8>,
    /// Something of it is missing, or it is too long.
    pub is_cut: bool,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({} bytes)", self.data.len())
    }
}

/// The events of one body.
#[derive(Debug)]
pub struct Events {
    event: Event,
    has_data: bool,
    line: Vec<u8>,
    /// The last byte ended a line by CR: a LF that follows belongs to it.
    after_return: bool,
    /// Only at the very start a byte order mark is one.
    is_first: bool,
    /// Behind a hole: what comes is the rest of something.
    is_lost: bool,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            event: Event::default(),
            has_data: false,
            line: Vec::new(),
            after_return: false,
            is_first: true,
            is_lost: false,
        }
    }
}

/// What was found.
pub enum Found {
    Event(Event),
    Limit(Limit),
}

pub type Out<'a> = &'a mut dyn FnMut(Found);

impl Events {
    /// More of the body, without its codings.
    pub fn feed(&mut self, bytes: &[u8], out: Out<'_>) {
        let mut rest = bytes;
        if self.after_return && rest.first() == Some(&b'\n') {
            rest = &rest[1..];
        }
        if !bytes.is_empty() {
            self.after_return = false;
        }
        while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
            self.add(&rest[..end], out);
            self.end_of_line(out);
            let is_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            match rest.first() {
                Some(b'\n') if is_return => rest = &rest[1..],
                None => self.after_return = is_return && !Mistake::Sse.is_planted(),
                _ => {}
            }
        }
        self.add(rest, out);
    }

    /// Bytes of what is not whole.
    pub fn held(&self) -> usize {
        let Event { name, data, id, .. } = &self.event;
        self.line.len() + name.len() + data.len() + id.len()
    }

    /// A part of the body is missing.
    pub fn hole(&mut self) {
        self.line.clear();
        self.after_return = false;
        self.is_first = false;
        self.is_lost = true;
        self.event.is_cut = true;
    }

    /// The body ends. What is not ended by an empty line is no event for a client; here it is a cut one.
    pub fn close(&mut self, out: Out<'_>) {
        if !self.line.is_empty() {
            self.end_of_line(out);
        }
        self.event.is_cut = true;
        self.dispatch(out);
    }

    fn add(&mut self, bytes: &[u8], out: Out<'_>) {
        let room = EVENT_MAX.saturating_sub(self.line.len() + self.event.data.len());
        if bytes.len() > room && !self.event.is_cut {
            self.event.is_cut = true;
            out(Found::Limit(Limit::Event));
        }
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_of_line(&mut self, out: Out<'_>) {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.is_first) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if std::mem::take(&mut self.is_lost) {
            // The rest of a line says nothing, unless it is empty; even then an event may have ended here.
        } else if line.is_empty() {
            self.dispatch(out);
        } else {
            self.field(&line);
        }
        line.clear();
        self.line = line;
    }

    fn field(&mut self, line: &[u8]) {
        let (name, value) = match memchr::memchr(b':', line) {
            Some(0) => return,
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let event = &mut self.event;
        match name {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    event.data.push(b'\n');
                }
                event.data.extend_from_slice(value);
            }
            b"event" => event.name = value.to_vec(),
            b"id" if !value.contains(&0) => event.id = value.to_vec(),
            _ => {}
        }
    }

    fn dispatch(&mut self, out: Out<'_>) {
        let event = std::mem::take(&mut self.event);
        if std::mem::take(&mut self.has_data) {
            out(Found::Event(event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(calls: &[Option<&[u8]>]) -> Vec<String> {
        let mut events = Events::default();
        let mut said = Vec::new();
        let mut note = |found: Found| {
            said.push(match found {
                Found::Limit(limit) => format!("{limit:?}"),
                Found::Event(event) => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let cut = if event.is_cut { " cut" } else { "" };
                    let Event { name, data, id, .. } = &event;
                    format!("{}|{}|{}{cut}", text(name), text(data), text(id))
                }
            });
        };
        for call in calls {
            match call {
                Some(bytes) => events.feed(bytes, &mut note),
                None => events.hole(),
            }
        }
        events.close(&mut note);
        said
    }

    #[test]
    fn events_however_they_are_cut() {
        let body = b"\xef\xbb\xbf: a comment\n\nevent: one\ndata: a\ndata\ndata:  b\nid: 7\r\n\r\ndata:x\r\rretry: 3\n\
            ignored: y\nevent: none\n\ndata: {\"a\":1}\n\n\xef\xbb\xbfdata: no\n\ndata: last\n";
        let expected = ["one|a\n\n b|7", "|x|", "|{\"a\":1}|", "|last| cut"];
        assert_eq!(read(&[Some(body)]), expected);
        for cut in 0..=body.len() {
            let (first, second) = body.split_at(cut);
            assert_eq!(read(&[Some(first), Some(second)]), expected, "{cut}");
        }
        let bytes: Vec<_> = body.chunks(1).map(Some).collect();
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn a_hole_costs_the_event_around_it() {
        let (first, second) = (b"data: a\n\ndata: b\nda", b"ta: c\ndata: d\n\ndata: e\n\n");
        assert_eq!(
            read(&[Some(first), None, Some(second)]),
            ["|a|", "|b\nd| cut", "|e|"]
        );
    }

    #[test]
    fn an_event_has_its_bound() {
        let long = format!("data: {}\n\ndata: next\n\n", "x".repeat(EVENT_MAX + 9));
        let said = read(&[Some(long.as_bytes())]);
        assert_eq!(said[0], "Event");
        assert!(said[1].len() <= EVENT_MAX + 9 && said[1].ends_with("cut"));
        assert_eq!(said[2..], ["|next|"]);
        let many = "data: 0123456789\n".repeat(EVENT_MAX / 8);
        let said = read(&[Some(many.as_bytes()), Some(b"\ndata: next\n\n")]);
        assert_eq!((said.len(), said[2].as_str()), (3, "|next|"));
    }
}
