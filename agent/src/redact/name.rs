//! Secrets that are known by their name: headers, parameters, fields, variables, flags. What stands around a
//! name tells how its value is written, and how much it takes to believe that it is one.

use serde::Deserialize;

use super::{
    bytes::{self, Set},
    rules::BEHIND,
    value::{Value, is_code, is_keyword, is_label, is_made, is_opaque, is_placeholder, is_prose},
    verdict::{Ending, Until, Verdict, undecided},
};

/// Spaces around a separator.
const SPACES: usize = 8;

/// Before a name. With half of [`BEHIND`] for the name and what stands before these, each is within it: what is
/// farther away may be gone.
const BACKSLASHES: usize = 63;
const INDENT: usize = 60;
/// The longest type of a declaration.
const TYPE: usize = 48;

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Strength {
    Strong,
    Weak,
    Url,
}

/// The name of something secret.
pub struct Name {
    pub words: Vec<Vec<u8>>,
    pub kind: &'static str,
    pub strength: Strength,
}

impl Name {
    /// Where this name begins, if the identifier ends in it.
    pub fn ends(&self, text: &[u8], place: &Place) -> Option<usize> {
        let mut at = place.end;
        for (number, word) in self.words.iter().rev().enumerate() {
            if number > 0 && at > place.start && matches!(text[at - 1], b'_' | b'-' | b'.') {
                at -= 1;
            }
            let start = at
                .checked_sub(word.len())
                .filter(|start| *start >= place.start)?;
            if !text[start..at].eq_ignore_ascii_case(word) {
                return None;
            }
            at = start;
        }
        let is_whole = at == place.start
            || !text[at - 1].is_ascii_alphabetic()
            || text[at - 1].is_ascii_lowercase() && text[at].is_ascii_uppercase();
        is_whole.then_some(at)
    }
}

/// A name in a text and what stands around it.
pub struct Place {
    start: usize,
    end: usize,
    /// Quote before the name, and how many backslashes before that.
    quote: Option<(u8, u32)>,
    /// Behind `--`.
    is_flag: bool,
    /// Behind `?`, `&` and what else precedes a parameter of a URL.
    in_url: bool,
    is_tag: bool,
    /// Behind `;`, as in a connection string.
    in_list: bool,
    at_line: Line,
    /// Behind `const` or `static`: a colon is followed by a type.
    is_declared: bool,
    /// The same behind `var`, where nothing but a space may precede the type.
    is_variable: bool,
    /// Behind `login name` of a `.netrc`.
    in_netrc: bool,
    in_head: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Start,
    Indented,
    Within,
}

impl Place {
    pub fn of(text: &[u8], end: usize, in_head: bool) -> Place {
        let limit = end.saturating_sub(BEHIND / 2);
        let name = text[limit..end].iter().rev();
        let mut start = end - name.take_while(|byte| bytes::WORD.has(**byte)).count();
        start += bytes::escape_before(text, start, end);
        let dashes = text[start..end]
            .iter()
            .take_while(|byte| **byte == b'-')
            .count();
        start += dashes;
        let before = &text[..start - dashes];
        let quote = match before.last() {
            Some(quote @ (b'"' | b'\'' | b'`')) => {
                let backslashes = before[..before.len() - 1].iter().rev().take(BACKSLASHES);
                let backslashes = backslashes.take_while(|byte| **byte == b'\\').count();
                Some((*quote, backslashes as u32))
            }
            _ => None,
        };
        let indent = before.iter().rev().take(INDENT);
        let indent = indent.take_while(|byte| bytes::INDENT.has(**byte)).count();
        let lead = &before[..before.len() - indent];
        let lead = lead.strip_suffix(b"export").unwrap_or(lead);
        let at_line = match lead.last() {
            None | Some(b'\n' | b'\r') if indent == 0 || lead.len() + indent < before.len() => {
                Line::Start
            }
            None | Some(b'\n' | b'\r') => Line::Indented,
            _ => Line::Within,
        };
        Place {
            start,
            end,
            quote,
            is_flag: dashes > 0,
            in_url: matches!(before.last(), Some(b'?' | b'&' | b'#'))
                || [&b"%3F"[..], b"%3f", b"%26", b"&amp;", b"\\u0026"]
                    .iter()
                    .any(|escape| before.ends_with(escape)),
            is_tag: matches!(before.last(), Some(b'<')),
            in_list: matches!(before.last(), Some(b';')),
            at_line,
            is_declared: indent > 0 && (lead.ends_with(b"const") || lead.ends_with(b"static")),
            is_variable: indent > 0 && (lead.ends_with(b"const") || lead.ends_with(b"var")),
            in_netrc: indent > 0 && is_login(lead),
            in_head,
        }
    }

    pub fn name<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.start..self.end]
    }

    /// The byte behind the name and its closing quote or bracket; `Err` if that has not come.
    fn behind(&self, text: &[u8]) -> Result<(usize, bool), ()> {
        let mut at = self.end;
        let mut is_closed = false;
        if let Some((quote, backslashes)) = self.quote {
            let run = text[at..].iter().take_while(|byte| **byte == b'\\').count();
            match text.get(at + run) {
                None => return Err(()),
                Some(next) if *next == quote && run as u32 == backslashes => {
                    at += run + 1;
                    is_closed = true;
                }
                Some(_) => {}
            }
        }
        for closing in [&b"%22"[..], b"]", b"%5D", b"%5d"] {
            if text[at..].starts_with(closing) {
                at += closing.len();
            }
        }
        // Half of an escape: a closing one or a separator.
        if matches!(text[at..], [b'%'] | [b'%', b'2' | b'3' | b'5']) {
            return Err(());
        }
        Ok((at, is_closed))
    }

    /// `Authorization: Bearer x`. `None`: the name of a header, but not in the form of one.
    pub fn header(&self, text: &[u8], kind: &'static str, ending: Ending) -> Option<Verdict> {
        let Ok((at, is_closed)) = self.behind(text) else {
            return Some(undecided(text, ending));
        };
        let at = at + spaces(&text[at..], is_closed);
        match text.get(at) {
            None => return Some(undecided(text, ending)),
            Some(b':') => {}
            Some(b'=') if is_closed => {}
            Some(b',') if is_closed => return Some(self.pair(text, at + 1, kind, ending)),
            Some(_) => return None,
        }
        let at = at + 1 + spaces(&text[at + 1..], is_closed);
        let Some(first) = text.get(at) else {
            return Some(undecided(text, ending));
        };
        if is_closed {
            let Some((start, until)) = quoted(text, at) else {
                return Some(undecided(text, ending));
            };
            let value = Value::of(text, start, &until);
            return Some(value.verdict(kind, until, ending, |value| {
                let is_credential = kind != "cookie" || value.contains(&b'=');
                is_credential && value.len() >= 6 && !is_placeholder(value) && !is_prose(value)
            }));
        }
        if matches!(first, b'\r' | b'\n') {
            return Some(Verdict::No);
        }
        let until = Until::Line {
            quote: self.quote.map(|(quote, _)| quote),
            inside: self.quote.is_some() || self.at_line == Line::Within,
            escaped: false,
        };
        let value = Value::of(text, at, &until);
        let is_certain = self.quote.is_some() || self.at_line == Line::Start;
        Some(value.verdict(kind, until, ending, |value| {
            if self.in_head && self.at_line == Line::Start {
                return true;
            }
            let is_credential = match kind {
                "cookie" => value.contains(&b'='),
                _ => {
                    let last = value.rsplit(|byte| *byte == b' ').next();
                    !is_prose(value) && !is_keyword(value) && !last.is_some_and(is_placeholder)
                }
            };
            is_credential
                && !is_placeholder(value)
                && (is_certain
                    || value
                        .split(|byte| *byte == b' ')
                        .any(|word| is_made(word, 8)))
        }))
    }

    /// `("Authorization", "Bearer x")` and `{"name": "Cookie", "value": "x"}`.
    fn pair(&self, text: &[u8], at: usize, kind: &'static str, ending: Ending) -> Verdict {
        let mut at = at + spaces(&text[at..], true);
        let label = b"\"value\"";
        let came = &text[at..text.len().min(at + label.len())];
        if label.starts_with(came) && came.len() < label.len() && ending != Ending::End {
            // Behind its quote it may be the value itself.
            return Verdict::Wait(text.len().min(at + 1));
        }
        if came == label {
            at += label.len() + spaces(&text[at + label.len()..], true);
            match text.get(at) {
                None => return undecided(text, ending),
                Some(b':') => at += 1 + spaces(&text[at + 1..], true),
                Some(_) => return Verdict::No,
            }
        }
        let Some((start, until)) = quoted(text, at) else {
            return undecided(text, ending);
        };
        let value = Value::of(text, start, &until);
        value.verdict(kind, until, ending, |value| {
            let mut words = value.split(|byte| *byte == b' ');
            let is_credential = match kind {
                "cookie" => value.contains(&b'='),
                _ => words.any(|word| is_made(word, 8) || is_opaque(word)),
            };
            is_credential && !is_placeholder(value)
        })
    }

    /// A field of a form: `name="password"`, and its value behind an empty line or in `value="x"`.
    fn field(&self, text: &[u8], at: usize, name: &Name, ending: Ending) -> Verdict {
        let rest = &text[at..];
        let (start, until) = if rest.starts_with(b"\r\n") || rest == b"\r" {
            let rest = &rest[..rest.len().min(2 * BEHIND)];
            let end = memchr::memmem::find(rest, b"\r\n\r\n");
            // No other headers have a meaning there, and some would be secrets of their own.
            let label = b"content-";
            let mut lines = rest[..end.unwrap_or(rest.len())].split(|byte| *byte == b'\n');
            let are_of_field = lines.all(|line| {
                let came = &line[..line.len().min(label.len())];
                came == b"\r" || label[..came.len()].eq_ignore_ascii_case(came)
            });
            let Some(end) = end.filter(|_| are_of_field) else {
                return if are_of_field && rest.len() < 2 * BEHIND {
                    undecided(text, ending)
                } else {
                    Verdict::No
                };
            };
            let until = Until::Line {
                quote: None,
                inside: false,
                escaped: false,
            };
            (at + end + 4, until)
        } else {
            let at = at + spaces(rest, true);
            let label = b"value=";
            let came = &text[at..text.len().min(at + label.len())];
            if came != label {
                return if label.starts_with(came) {
                    undecided(text, ending)
                } else {
                    Verdict::No
                };
            }
            match quoted(text, at + label.len()) {
                None => return undecided(text, ending),
                Some(quoted) => quoted,
            }
        };
        let value = Value::of(text, start, &until);
        value.verdict(name.kind, until, ending, |value| match name.strength {
            Strength::Strong => !is_placeholder(value),
            Strength::Weak => is_made(value, 8),
            Strength::Url => false,
        })
    }

    /// `name=value`, `"name": "value"`, `--name value` and the like.
    pub fn parameter(&self, text: &[u8], name: &Name, ending: Ending) -> Verdict {
        let Ok((behind, is_closed)) = self.behind(text) else {
            return undecided(text, ending);
        };
        if is_closed && text[..self.start - 1].ends_with(b"name=") {
            return self.field(text, behind, name, ending);
        }
        let tag = self.is_tag && text.get(behind) == Some(&b'>');
        let at = behind + spaces(&text[behind..], is_closed);
        let Some((separator, length)) = separator(&text[at..]) else {
            return if at > behind && self.is_variable {
                self.declared(text, at, name, ending)
            } else if at > behind && self.in_netrc {
                self.value(text, at, name, b' ', true, ending)
            } else if matches!(text[at..], [] | [b'%'] | [b'%', b'3']) {
                undecided(text, ending)
            } else if self.is_flag && at > behind && !is_closed {
                self.value(text, at, name, b' ', true, ending)
            } else {
                Verdict::No
            };
        };
        if separator == b'>' && !tag {
            return Verdict::No;
        }
        let is_tight = at == behind;
        let start = at + length;
        let gap = spaces(&text[start..], is_closed);
        let verdict = self.value(
            text,
            start + gap,
            name,
            separator,
            is_tight && gap == 0,
            ending,
        );
        match verdict {
            Verdict::No if separator == b':' && length == 1 && !is_closed => {
                self.declared(text, start, name, ending)
            }
            verdict => verdict,
        }
    }

    /// `password: &str = "value"`: a type between the name and its value, which is a string then.
    fn declared(&self, text: &[u8], at: usize, name: &Name, ending: Ending) -> Verdict {
        let rest = &text[at..];
        let length = rest
            .iter()
            .take(TYPE)
            .take_while(|byte| bytes::TYPE.has(**byte));
        let length = length.count();
        let value = match rest.get(length..) {
            None | Some([]) if length < TYPE => return undecided(text, ending),
            Some([b'=', b'=' | b'>', ..]) => return Verdict::No,
            Some([b'=', ..]) => at + length + 1,
            _ => return Verdict::No,
        };
        let value = value + spaces(&text[value..], false);
        let prefix = text[value..].iter().take(2);
        let prefix = prefix.take_while(|byte| matches!(byte, b'b' | b'r' | b'u' | b'f' | b'c'));
        match text.get(value + prefix.count()) {
            None => undecided(text, ending),
            Some(b'"' | b'\'' | b'`') => self.value(text, value, name, b'=', false, ending),
            Some(_) => Verdict::No,
        }
    }

    fn value(
        &self,
        text: &[u8],
        at: usize,
        name: &Name,
        separator: u8,
        is_tight: bool,
        ending: Ending,
    ) -> Verdict {
        let Some(first) = text.get(at) else {
            return undecided(text, ending);
        };
        let is_closed = self.behind(text).is_ok_and(|(_, is_closed)| is_closed);
        let is_strong = name.strength == Strength::Strong;
        let may_be_string = !self.in_url && separator != b'>';
        let is_string = match first {
            b'"' | b'\'' | b'`' | b'\\' => true,
            b'b' | b'r' | b'u' | b'f' | b'B' | b'R' => match text.get(at + 1) {
                // The letter may be a string's prefix or a secret's first: it can wait like half a character.
                None if may_be_string && ending != Ending::End => return Verdict::Wait(at),
                next => matches!(next, Some(b'"' | b'\'')),
            },
            _ => false,
        };
        if is_string && may_be_string {
            let Some((start, until)) = quoted(text, at) else {
                return undecided(text, ending);
            };
            let value = Value::of(text, start, &until);
            let is_field = is_closed && separator == b':';
            return value.verdict(name.kind, until, ending, |value| {
                !is_placeholder(value)
                    && !is_keyword(value)
                    && match name.strength {
                        Strength::Strong if is_field => !is_label(value),
                        Strength::Strong => is_made(value, 6) || is_opaque(value),
                        Strength::Weak => is_made(value, 8) || is_field && is_opaque(value),
                        Strength::Url => false,
                    }
            });
        }
        let set = match separator {
            b'>' => bytes::TAG_TEXT,
            b':' if is_closed => bytes::DIGITS,
            _ if self.in_list => bytes::BARE.without(b';'),
            _ => match self.quote {
                Some((quote, _)) if !is_closed => bytes::BARE.without(quote),
                _ => bytes::BARE,
            },
        };
        let until = Until::Outside(set);
        let value = Value::of(text, at, &until);
        let end = at + value.length;
        if value.is_whole
            && text.get(end) == Some(&b' ')
            && end + 1 == text.len()
            && ending == Ending::More
        {
            // What follows tells whether it is prose.
            return Verdict::Wait(at);
        }
        let is_variable = !self.name(text).iter().any(u8::is_ascii_lowercase);
        value.verdict(name.kind, until, ending, |value| {
            // A private key ends farther on than such a value, and is known by itself.
            if is_placeholder(value) || is_keyword(value) || value == b"-----BEGIN" {
                return false;
            }
            match separator {
                _ if name.strength == Strength::Url => self.in_url && is_tight && is_made(value, 8),
                b'>' | b':' if is_closed || separator == b'>' => match is_strong {
                    true if is_closed => value.len() >= 4,
                    true => !is_prose(value) && !is_code(value),
                    false => separator == b'>' && is_made(value, 8),
                },
                b'%' => is_tight && (is_strong || is_made(value, 8)),
                b'=' if self.in_url || self.in_list => is_tight,
                b'=' if is_tight && self.at_line == Line::Start && is_strong => !is_code(value),
                b'=' if is_tight && is_variable && is_strong => !is_code(value),
                b':' if !is_tight && self.at_line != Line::Within && is_strong => {
                    !is_code(value) && !goes_on(text, end)
                }
                b' ' => self.in_netrc || is_made(value, 6),
                b':' if self.is_declared => false,
                // In code a value without quotes is no literal.
                b'=' if !is_tight => self.at_line == Line::Start && is_strong && is_made(value, 6),
                _ => is_made(value, 8),
            }
        })
    }
}

/// `machine host login name`, before `password`.
fn is_login(text: &[u8]) -> bool {
    let near = text[text.len().saturating_sub(BEHIND / 2)..].trim_ascii_end();
    let mut words = near.rsplit(u8::is_ascii_whitespace);
    words.next();
    words.next() == Some(b"login")
}

/// What separates a name from its value, and its length.
fn separator(text: &[u8]) -> Option<(u8, usize)> {
    Some(match text {
        [b'=', b'>', ..] | [b':', b'=', ..] => (b':', 2),
        // A comparison.
        [b'=', b'=', ..] => return None,
        [b'=', ..] => (b'=', 1),
        [b':', b':', ..] => return None,
        [b':', ..] => (b':', 1),
        [b'%', b'3', b'D' | b'd' | b'A' | b'a', ..] => (b'%', 3),
        [b'>', ..] => (b'>', 1),
        _ => return None,
    })
}

/// Behind a closed name a line may end.
fn spaces(text: &[u8], with_lines: bool) -> usize {
    let is_space = |byte: &&u8| match **byte {
        b' ' | b'\t' => true,
        b'\n' | b'\r' => with_lines,
        _ => false,
    };
    let limit = if with_lines { BEHIND } else { SPACES };
    text.iter().take(limit).take_while(is_space).count()
}

/// The inside of a string that begins here; `None` if that has not come. What is no string ends at once.
fn quoted(text: &[u8], at: usize) -> Option<(usize, Until)> {
    let prefix = text[at..].iter().take(2);
    let at = at + prefix.take_while(|byte| byte.is_ascii_alphabetic()).count();
    let backslashes = text[at..].iter().take_while(|byte| **byte == b'\\').count();
    let quote = *text.get(at + backslashes)?;
    let until = match quote {
        b'"' | b'\'' | b'`' => Until::Quote {
            quote,
            backslashes: backslashes as u32,
            run: 0,
        },
        _ => Until::Outside(Set::NONE),
    };
    Some((at + backslashes + 1, until))
}

/// More words follow on the line, or a type's parameters.
fn goes_on(text: &[u8], end: usize) -> bool {
    match text.get(end..) {
        Some([b' ', next, ..]) => next.is_ascii_alphanumeric(),
        Some([b'<', ..]) => true,
        _ => false,
    }
}
