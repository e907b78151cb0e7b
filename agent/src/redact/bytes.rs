//! Sets of bytes, and the edges of words.

/// A set of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set([u64; 4]);

impl Set {
    pub const NONE: Set = Set([0; 4]);
    const ALL: Set = Set([u64::MAX; 4]);

    pub const fn has(&self, byte: u8) -> bool {
        self.0[(byte >> 6) as usize] >> (byte & 63) & 1 == 1
    }

    pub const fn with(mut self, byte: u8) -> Set {
        self.0[(byte >> 6) as usize] |= 1 << (byte & 63);
        self
    }

    pub const fn without(mut self, byte: u8) -> Set {
        self.0[(byte >> 6) as usize] &= !(1 << (byte & 63));
        self
    }

    pub const fn or(self, other: Set) -> Set {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        Set([a | e, b | f, c | g, d | h])
    }

    const fn of(bytes: &[u8]) -> Set {
        let mut set = Set::NONE;
        let mut i = 0;
        while i < bytes.len() {
            set = set.with(bytes[i]);
            i += 1;
        }
        set
    }

    const fn but(bytes: &[u8]) -> Set {
        let mut set = Set::ALL;
        let mut i = 0;
        while i < bytes.len() {
            set = set.without(bytes[i]);
            i += 1;
        }
        set
    }
}

const LETTERS: Set = Set::of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789");
/// Of any token.
pub const TOKEN: Set = LETTERS.or(Set::of(b"+/=_.~:-"));
pub const DIGITS: Set = Set::of(b"0123456789");
/// Of a card's number, as people write it.
pub const CARD: Set = DIGITS.with(b' ').with(b'-');
pub const HEX: Set = Set::of(b"0123456789ABCDEFabcdef");
pub const BASE64: Set = LETTERS.or(Set::of(b"+/="));
/// Of an identifier, a header's or a variable's name.
pub const WORD: Set = LETTERS.or(Set::of(b"_-."));
/// Before a name at the beginning of a line: also of a list, a comment, a log of curl's, a diff.
pub const INDENT: Set = Set::of(b" \t-+#>*");
/// The inside of a PEM block, also where a program's text or JSON holds it.
pub const PRIVATE_KEY: Set = BASE64.or(Set::of(b" \t\r\n\\\"'-:,._@()<>;"));
/// A value that nothing encloses. Whoever puts another of these into a URL, a form or a variable has to
/// encode it; brackets, commas and single quotes need not be.
pub const BARE: Set = Set::but(b" \t\r\n\x0b\x0c\0&\"<>`");
/// Of a type in a declaration.
pub const TYPE: Set = LETTERS.or(Set::of(b"_&'*.<>[]?|:, "));
/// Text between tags.
pub const TAG_TEXT: Set = Set::but(b"<");
/// Before the @ of a URL.
pub const USER: Set = Set::but(b" \t\r\n\x0b\x0c\0/?#\"'<>\\`");

/// Can a token begin here? Not behind a letter or a digit, unless that belongs to an escape such as the n
/// of `\n` or the digits of `%3D`.
pub fn is_edge(text: &[u8], at: usize) -> bool {
    match text[..at].last() {
        None => true,
        Some(before) if !before.is_ascii_alphanumeric() => true,
        Some(_) => ends_in_escape(&text[..at]),
    }
}

fn ends_in_escape(text: &[u8]) -> bool {
    let hex = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
    match text {
        [.., b'\\', b'n' | b'r' | b't' | b'b' | b'f'] => true,
        [.., b'%' | b'=', a, b] => hex(&[*a, *b]),
        [.., b'\\', b'x', a, b] => hex(&[*a, *b]),
        [.., b'\\', b'u', a, b, c, d] => hex(&[*a, *b, *c, *d]),
        _ => false,
    }
}

/// How many bytes at the beginning of the identifier `start..end` belong to an escape before it.
pub fn escape_before(text: &[u8], start: usize, end: usize) -> usize {
    (1..=5)
        .rev()
        .filter(|_| matches!(text[..start].last(), Some(b'\\' | b'%' | b'=')))
        .find(|length| start + length < end && ends_in_escape(&text[..start + length]))
        .unwrap_or(0)
}
