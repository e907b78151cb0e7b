//! What is plain text: UTF-8 without control characters but tab and line ends, outside of bodies that are
//! encoded. Redaction can see into nothing else.

/// How much of `bytes` is plain text, in whole characters, and whether the rest may still become some: it is
/// then the beginning of a character.
pub fn plain_text(bytes: &[u8]) -> (usize, bool) {
    let (valid, is_text) = match simdutf8::compat::from_utf8(bytes) {
        Ok(_) => (bytes.len(), true),
        Err(error) => (error.valid_up_to(), error.error_len().is_none()),
    };
    match control(&bytes[..valid]) {
        Some(at) => (at, false),
        None => (valid, is_text),
    }
}

/// The first control character that text does not have.
fn control(bytes: &[u8]) -> Option<usize> {
    let is_control = |byte: u8| {
        (byte < 0x20 && byte != b'\t' && byte != b'\n' && byte != b'\r') | (byte == 0x7f)
    };
    // Without a branch per byte, so that the compiler makes vector compares of it.
    let block = bytes.chunks(64).position(|block| {
        block
            .iter()
            .fold(false, |any, byte| any | is_control(*byte))
    })?;
    let start = block * 64;
    Some(start + bytes[start..].iter().position(|byte| is_control(*byte))?)
}

const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"PATCH ",
    b"DELETE ",
    b"HEAD ",
    b"OPTIONS ",
    b"CONNECT ",
    b"TRACE ",
];
const LINE_MAX: usize = 8192;

/// Do these bytes begin with the first line of an HTTP/1 message? All of that line must be there: nothing
/// else is enough to believe that text begins again.
pub fn is_head(bytes: &[u8]) -> bool {
    // The common case costs one look.
    if !matches!(bytes.first(), Some(b'A'..=b'Z')) {
        return false;
    }
    let line = &bytes[..bytes.len().min(LINE_MAX)];
    memchr::memchr(b'\n', line).is_some_and(|end| is_first_line(&line[..end]))
}

fn is_first_line(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_graphic = line.iter().all(|byte| matches!(byte, b' '..=b'~' | 0x80..));
    let is_status = || {
        matches!(line, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', a, b, c, ..]
            if [a, b, c].iter().all(|digit| digit.is_ascii_digit()))
    };
    let is_request = || {
        METHODS.iter().any(|method| line.starts_with(method))
            && (line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"))
    };
    is_graphic && (is_status() || is_request())
}

/// The head of an HTTP/1 message, as far as it tells what kind of body follows.
pub struct Head {
    state: State,
    /// The beginning of the line that we are in.
    line: Vec<u8>,
    is_one: bool,
    encoded: bool,
}

#[derive(PartialEq, Eq)]
enum State {
    FirstLine,
    Fields,
    Outside,
}

impl Head {
    /// A message may begin here.
    pub fn first() -> Head {
        Head {
            state: State::FirstLine,
            line: Vec::new(),
            is_one: false,
            encoded: false,
        }
    }

    pub fn none() -> Head {
        Head {
            state: State::Outside,
            ..Head::first()
        }
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Fields
    }

    /// Is or was it a head at all?
    pub fn is_one(&self) -> bool {
        self.is_one
    }

    /// Does the head that has ended announce a body that can't be read?
    pub fn announces_encoded(&self) -> bool {
        self.encoded
    }

    /// Reads on. Says where the head ends, or what was none.
    pub fn end(&mut self, text: &[u8]) -> Option<usize> {
        let mut rest = text;
        while self.state != State::Outside {
            let end = memchr::memchr(b'\n', rest);
            let more = &rest[..end.unwrap_or(rest.len())];
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&more[..more.len().min(room)]);
            rest = &rest[end? + 1..];
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            self.state = match self.state {
                State::FirstLine if is_first_line(line) => {
                    self.is_one = true;
                    State::Fields
                }
                State::Fields if !line.is_empty() => {
                    self.encoded |= is_encoding(line);
                    State::Fields
                }
                _ => State::Outside,
            };
            if self.state == State::Outside {
                return Some(text.len() - rest.len());
            }
        }
        None
    }
}

/// `Content-Encoding: br` and what else makes of a body something that we can't read.
fn is_encoding(line: &[u8]) -> bool {
    let Some(colon) = memchr::memchr(b':', line) else {
        return false;
    };
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.eq_ignore_ascii_case(b"content-encoding") {
        return !value.is_empty() && !value.eq_ignore_ascii_case(b"identity");
    }
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        return !value.eq_ignore_ascii_case(b"chunked") && !value.eq_ignore_ascii_case(b"identity");
    }
    // What follows such a request or answer are frames, masked or not.
    name.eq_ignore_ascii_case(b"sec-websocket-key")
        || name.eq_ignore_ascii_case(b"sec-websocket-accept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_at_the_first_byte_that_is_none() {
        for (bytes, expected) in [
            (&b""[..], (0, true)),
            (b"a\tb\r\n", (5, true)),
            ("a\u{e9}".as_bytes(), (3, true)),
            (&"a\u{e9}".as_bytes()[..2], (1, true)),
            (b"a\xff", (1, false)),
            (b"a\0b", (1, false)),
            (b"a\x7f", (1, false)),
            (b"\x1f\x8b\x08", (0, false)),
        ] {
            assert_eq!(plain_text(bytes), expected, "{bytes:?}");
        }
        for at in 0..200 {
            let mut bytes = vec![b'x'; 200];
            bytes[at] = 0x1b;
            assert_eq!(plain_text(&bytes), (at, false));
        }
    }

    #[test]
    fn first_lines() {
        for head in [
            "HTTP/1.1 200 OK\r\nA: b",
            "GET / HTTP/1.1\r\n",
            "POST /a?b=c HTTP/1.0\n",
        ] {
            assert!(is_head(head.as_bytes()), "{head}");
        }
        for other in [
            "",
            "HTTP/1.1 200 OK",
            "HTTP/2 200\n",
            "GET / HTTP/1.1",
            "GETS / HTTP/1.1\n",
            "GET /\n",
            "x",
        ] {
            assert!(!is_head(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_head_tells_of_its_body_however_it_is_cut() {
        for (field, encoded) in [
            ("Content-Encoding: br", true),
            ("content-encoding:gzip", true),
            ("Content-Encoding: identity", false),
            ("Transfer-Encoding: chunked", false),
            ("Transfer-Encoding: gzip, chunked", true),
            ("Sec-WebSocket-Accept: x", true),
            ("X-Content-Encoding: br", false),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\nServer: x\r\n{field}\r\nA: b\r\n\r\n");
            let text = format!("{head}body\n\nContent-Encoding: br\n\n");
            for cut in 0..text.len() {
                let mut state = Head::first();
                let first = state.end(&text.as_bytes()[..cut]);
                let end = first.or_else(|| state.end(&text.as_bytes()[cut..]).map(|end| cut + end));
                assert_eq!(end, Some(head.len()), "{field} {cut}");
                assert_eq!(state.announces_encoded(), encoded, "{field} {cut}");
            }
        }
        let mut state = Head::first();
        assert_eq!(state.end(b"hello\nContent-Encoding: br\n\n"), Some(6));
        assert!(!state.announces_encoded() && !state.is_open());
    }
}
