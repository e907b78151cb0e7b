//! Is this a secret's value, or what people write in its place?

use super::verdict::{Ending, Secret, Until, Verdict};

/// How much of a value is looked at before it is believed.
pub const ENOUGH: usize = 64;

/// A value as far as it has come.
pub struct Value<'a> {
    text: &'a [u8],
    start: usize,
    pub length: usize,
    pub is_whole: bool,
}

impl<'a> Value<'a> {
    pub fn of(text: &'a [u8], start: usize, until: &Until) -> Value<'a> {
        let beginning = &text[start..text.len().min(start + ENOUGH)];
        let (length, is_whole) = until.clone().take(beginning);
        Value {
            text,
            start,
            length,
            is_whole,
        }
    }

    pub fn verdict(
        &self,
        kind: &'static str,
        until: Until,
        ending: Ending,
        is_believed: impl Fn(&[u8]) -> bool,
    ) -> Verdict {
        let value = &self.text[self.start..self.start + self.length];
        let is_enough = self.is_whole || self.length >= ENOUGH;
        if !is_enough && ending == Ending::More {
            return Verdict::Wait(self.start);
        }
        let is_secret =
            !value.is_empty() && (is_believed(value) || !is_enough && ending == Ending::Late);
        if is_secret {
            return Verdict::Secret(Secret {
                start: self.start,
                kind,
                until,
            });
        }
        if is_enough || ending == Ending::End {
            Verdict::No
        } else {
            Verdict::Wait(self.start)
        }
    }
}

/// Looks made by a machine or well chosen: letters and digits, and nothing that reads like code.
pub fn is_made(value: &[u8], least: usize) -> bool {
    let value = bare_of(value, b",;)");
    value.len() >= least
        && value.iter().any(u8::is_ascii_digit)
        && value.iter().any(u8::is_ascii_alphabetic)
        && value.iter().all(u8::is_ascii_graphic)
        && !is_code(value)
}

/// Without what punctuation follows it.
fn bare_of<'a>(value: &'a [u8], punctuation: &[u8]) -> &'a [u8] {
    let kept = value.iter().rposition(|byte| !punctuation.contains(byte));
    &value[..kept.map_or(0, |last| last + 1)]
}

/// An expression, a path or an address rather than a literal.
pub fn is_code(value: &[u8]) -> bool {
    value.iter().any(|byte| b"([{|".contains(byte))
        || matches!(
            value.first(),
            Some(b'.' | b'&' | b'*' | b'-' | b'@' | b'_' | b'!' | b':' | b',')
        )
        || value.starts_with(b"/") && !is_key_of_aws(value)
        || value.len() < 4
        || matches!(value.last(), Some(b',' | b';' | b':'))
        || value.windows(3).any(|three| three == b"://")
        || value
            .windows(2)
            .any(|two| two == b"::" || two == b"->" || two == b"==")
        || is_path(value)
}

/// 40 digits of base64, of which one in 64 begins as a path does.
fn is_key_of_aws(value: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    value.len() == 40
        && value.iter().all(is_digit)
        && value.iter().any(u8::is_ascii_digit)
        && value.iter().any(u8::is_ascii_lowercase)
        && value.iter().any(u8::is_ascii_uppercase)
}

/// `self.password`, `config.token2`: identifiers joined by dots.
pub fn is_path(value: &[u8]) -> bool {
    value.contains(&b'.')
        && value.split(|byte| *byte == b'.').all(|part| {
            part.first()
                .is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
                && part.len() < 24
                && part
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
                && part.iter().filter(|byte| byte.is_ascii_digit()).count() < 2
        })
}

/// Words in a row: a label, not a secret.
pub fn is_prose(value: &[u8]) -> bool {
    let is_text = |byte: &u8| {
        byte.is_ascii_alphabetic() || b" .,'-:!?\t\"()`".contains(byte) || *byte >= 0x80
    };
    value.iter().all(is_text) && value.iter().filter(|byte| **byte == b' ').count() >= 2
}

/// A sentence, as an interface shows it: nobody capitalises a pass phrase so.
pub fn is_label(value: &[u8]) -> bool {
    let mut words = value.split(|byte| *byte == b' ');
    is_prose(value)
        && words
            .next()
            .is_some_and(|word| word.first().is_some_and(u8::is_ascii_uppercase))
        && words.all(|word| word.first().is_none_or(|first| !first.is_ascii_uppercase()))
}

/// Long and without a space: nothing that people write.
pub fn is_opaque(value: &[u8]) -> bool {
    value.len() >= 20 && value.iter().all(u8::is_ascii_graphic) && !is_code(value)
}

/// What people write where a secret goes.
pub fn is_placeholder(value: &[u8]) -> bool {
    let holds = |part: &[u8]| value.windows(part.len()).any(|window| window == part);
    let lower = value.to_ascii_lowercase();
    matches!(value.first(), None | Some(b'$' | b'{' | b'<' | b'[' | b'('))
        || matches!(value, [b'%', next, ..] if next.is_ascii_alphabetic() && !next.is_ascii_hexdigit() || *next == b'(')
        || holds(b"${")
        || holds(b"{{")
        || holds(b"$(")
        || value
            .windows(2)
            .any(|two| two[0] == b'{' && (two[1] == b'}' || two[1].is_ascii_alphabetic()))
            && value.contains(&b'}')
        || holds(b"%s")
        || holds(b"...")
        || holds("…".as_bytes())
        || value.contains(&b'>')
            && value
                .windows(2)
                .any(|two| two[0] == b'<' && two[1].is_ascii_alphabetic())
        || lower.starts_with(b"your")
        || lower.starts_with(b"my_")
        || value.iter().all(|byte| *byte == value[0])
}

/// Words of languages, types, and names of what should be there.
pub fn is_keyword(value: &[u8]) -> bool {
    const WORDS: [&str; 43] = [
        "none",
        "null",
        "nil",
        "true",
        "false",
        "undefined",
        "str",
        "string",
        "bytes",
        "int",
        "integer",
        "number",
        "bool",
        "boolean",
        "any",
        "object",
        "self",
        "required",
        "optional",
        "password",
        "secret",
        "token",
        "text",
        "unknown",
        "never",
        "void",
        "symbol",
        "array",
        "list",
        "dict",
        "function",
        "char",
        "yes",
        "no",
        "on",
        "off",
        "hidden",
        "disabled",
        "enabled",
        "default",
        "pass",
        "read",
        "write",
    ];
    let word = bare_of(value, b",;)?!.");
    WORDS
        .iter()
        .any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
}
