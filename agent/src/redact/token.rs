//! Secrets that say by themselves what they are: token formats, private keys, passwords in URLs.

use serde::Deserialize;

use super::{
    bytes::{self, Set},
    value::{ENOUGH, is_keyword, is_opaque, is_placeholder},
    verdict::{Ending, Secret, Until, Verdict, undecided},
};

/// A format that says by itself what it is.
pub struct Token {
    pub kind: &'static str,
    pub pattern: Vec<Part>,
    /// How many literals it begins with.
    pub anchor: usize,
    pub left: Left,
    pub mixed: bool,
    /// What it begins with says where it is, and is none of it.
    pub shows_anchor: bool,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Left {
    #[default]
    Edge,
    Digit,
    Any,
    /// No letter or digit, nor what joins a number to others: of a date, a path, a fraction.
    Number,
}

impl Left {
    pub fn allows(self, text: &[u8], at: usize) -> bool {
        match self {
            Left::Edge => bytes::is_edge(text, at),
            Left::Digit => at > 0 && text[at - 1].is_ascii_digit(),
            Left::Any => true,
            Left::Number => {
                let before = text[..at].last();
                bytes::is_edge(text, at) && !before.is_some_and(|byte| b".-_/#$".contains(byte))
            }
        }
    }
}

/// So many bytes of a set.
#[derive(Clone, Debug)]
pub struct Part {
    set: Set,
    least: u32,
    most: u32,
}

impl Token {
    pub fn judge(&self, text: &[u8], start: usize, ending: Ending) -> Verdict {
        if !self.left.allows(text, start) {
            return Verdict::No;
        }
        let mut at = start;
        let last = self.pattern.len() - 1;
        for (number, part) in self.pattern.iter().enumerate() {
            let run = text[at..].iter().take(part.most as usize);
            let run = run.take_while(|byte| part.set.has(**byte)).count();
            at += run;
            let is_cut = at == text.len() && run < part.most as usize;
            if is_cut && (number < last || run < part.least as usize) {
                return self.cut(text, start, at, ending);
            }
            if run < part.least as usize {
                return Verdict::No;
            }
        }
        let looked_at = at.min(start + ENOUGH);
        if self.mixed
            && !text[start + self.anchor..looked_at]
                .iter()
                .any(u8::is_ascii_digit)
        {
            // The digit may come yet.
            return if at == text.len() && at - start < ENOUGH {
                self.cut(text, start, at, ending)
            } else {
                Verdict::No
            };
        }
        Verdict::Secret(self.secret(start, Set::NONE))
    }

    /// The text ends inside of it.
    fn cut(&self, text: &[u8], start: usize, at: usize, ending: Ending) -> Verdict {
        let has_secret_bytes = at > start + self.anchor;
        match ending {
            Ending::More | Ending::Idle => Verdict::Wait(start),
            // A beginning that everybody knows is no secret.
            Ending::Late if !has_secret_bytes => Verdict::Wait(text.len()),
            Ending::End if is_word(&text[start + self.anchor..at]) => Verdict::No,
            // Which one it would have become is open: it goes on with whatever any of them has.
            Ending::Late | Ending::End => Verdict::Secret(self.secret(start, bytes::TOKEN)),
        }
    }

    /// It goes on with what the pattern has behind its beginning, and with what is in `set`.
    fn secret(&self, start: usize, set: Set) -> Secret {
        let behind = self.pattern.iter().skip(self.anchor);
        let shown = if self.shows_anchor { self.anchor } else { 0 };
        Secret {
            start: start + shown,
            kind: self.kind,
            until: Until::Token {
                beginning: self.anchor - shown,
                set: behind.fold(set, |all, part| all.or(part.set)),
            },
        }
    }
}

/// What a name goes on with that begins as a token does: `npm_install`, `hf_llama3`, `sess-42`. Of a token that was cut
/// hardly anything looks so.
fn is_word(rest: &[u8]) -> bool {
    let digits = rest.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let (word, digits) = rest.split_at(rest.len() - digits.count());
    let is_small = |byte: &u8| byte.is_ascii_lowercase() || b"_-".contains(byte);
    digits.len() <= 2 && word.iter().all(is_small)
}

/// `-----BEGIN RSA PRIVATE KEY-----` with something behind it.
pub fn private_key(text: &[u8], (start, end): (usize, usize), ending: Ending) -> Verdict {
    let secret = Verdict::Secret(Secret {
        start,
        kind: "private_key",
        until: Until::PrivateKey { row: 0, rows: 0 },
    });
    let cut = |has_secret_bytes: bool| match ending {
        Ending::More | Ending::Idle => Verdict::Wait(start),
        Ending::Late | Ending::End if has_secret_bytes => secret.clone(),
        Ending::Late => Verdict::Wait(text.len()),
        Ending::End => Verdict::No,
    };
    let label = text[end..].iter().take(48);
    let label = label
        .take_while(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b' '))
        .count();
    let label_end = end + label;
    let dashes = text[label_end..]
        .iter()
        .take(5)
        .take_while(|byte| **byte == b'-')
        .count();
    if label_end + dashes == text.len() {
        return cut(false);
    }
    let is_key = text[end..label_end]
        .windows(11)
        .any(|window| window == b"PRIVATE KEY");
    if !is_key || dashes < 5 {
        return Verdict::No;
    }
    // Line ends, also written as escapes, and quotes and pluses between the lines of a program's text.
    let mut body = &text[label_end + 5..];
    loop {
        body = match body {
            [b'\\', b'n' | b'r', rest @ ..] => rest,
            [
                b' ' | b'\t' | b'\r' | b'\n' | b'\\' | b'"' | b'\'' | b'+' | b',',
                rest @ ..,
            ] => rest,
            _ => break,
        };
    }
    let run = body
        .iter()
        .take(16)
        .take_while(|byte| bytes::BASE64.has(**byte))
        .count();
    let titles = [&b"Proc-Type"[..], b"Version", b"Comment", b"DEK-Info"];
    if run == 16 || titles.iter().any(|title| body.starts_with(title)) {
        return secret;
    }
    let is_cut_title = titles.iter().any(|title| title.starts_with(body));
    if run == body.len() && body.len() < 16 || is_cut_title {
        return cut(!body.is_empty());
    }
    Verdict::No
}

/// `scheme://user:password@host`
pub fn url(
    text: &[u8],
    behind: usize,
    ending: Ending,
    may_hold_secret: impl Fn(&[u8]) -> bool,
) -> Verdict {
    let run = |from: usize, most: usize, set: Set| {
        let run = text[from..].iter().take(most);
        from + run.take_while(|byte| set.has(**byte)).count()
    };
    let colon = run(behind, 128, bytes::USER.without(b':').without(b'@'));
    match text.get(colon) {
        // It may be a token, and is judged with its password or, too late for one, by itself.
        None if matches!(ending, Ending::More | Ending::Idle) => return Verdict::Wait(behind),
        None => return undecided(text, ending),
        Some(b':') => {}
        Some(_) => return Verdict::No,
    }
    let start = colon + 1;
    let end = run(start, 1024, bytes::USER);
    // With some services the user is a token, and the password is nothing. Or there is a secret in it, which is
    // not to be shown before its own rule is asked.
    let user = &text[behind..colon];
    let from = match is_opaque(user) || may_hold_secret(user) {
        true => behind,
        false => start,
    };
    let value = &text[start..end];
    // The last one: some write a password with an @ in it.
    let at = memchr::memrchr(b'@', value);
    let (beginning, set) = match (at, ending) {
        _ if end < text.len() || ending == Ending::End => {
            let password = &value[..at.unwrap_or(0)];
            if password.is_empty() || is_placeholder(password) || is_keyword(password) {
                return Verdict::No;
            }
            (start - from + password.len(), Set::NONE)
        }
        // Which @ is the last is open: the host may be taken for a part.
        (_, Ending::Late) if !value.is_empty() => (0, bytes::USER),
        _ => return Verdict::Wait(from),
    };
    Verdict::Secret(Secret {
        start: from,
        kind: "password",
        until: Until::Token { beginning, set },
    })
}

/// What the search looks for: the literals that a token begins with, and where they are too few, with each
/// byte that may follow.
pub fn anchors_of(pattern: &[Part], anchor: usize) -> Vec<Vec<u8>> {
    let all = |part: &Part| {
        (0..=0x7f)
            .filter(|byte| part.set.has(*byte))
            .collect::<Vec<u8>>()
    };
    let literals: Vec<u8> = pattern[..anchor].iter().map(|part| all(part)[0]).collect();
    if literals.len() > 2 {
        return vec![literals];
    }
    let longer = |byte| [&literals[..], &[byte]].concat();
    all(&pattern[anchor]).into_iter().map(longer).collect()
}

/// Parses the part of regular expressions that `rules.toml` uses. Also returns how many literals it begins
/// with.
pub fn pattern(text: &str, fold: bool) -> Result<(Vec<Part>, usize), String> {
    let error = || format!("not understood: {text}");
    let mut parts: Vec<Part> = Vec::new();
    let mut anchor = None;
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let mut set = Set::NONE;
        match first {
            b'[' => {
                anchor.get_or_insert(parts.len());
                let end = after
                    .iter()
                    .position(|byte| *byte == b']')
                    .ok_or_else(error)?;
                set = class(&after[..end]);
                rest = &after[end + 1..];
            }
            b'\\' => {
                let (literal, after) = after.split_first().ok_or_else(error)?;
                set = set.with(*literal);
                rest = after;
            }
            literal => {
                set = set.with(*literal);
                rest = after;
            }
        }
        if fold {
            set = (0..=u8::MAX)
                .filter(|byte| {
                    set.has(byte.to_ascii_lowercase()) || set.has(byte.to_ascii_uppercase())
                })
                .fold(set, Set::with);
        }
        let (least, most) = match rest {
            [b'{', counts @ ..] => {
                let end = counts
                    .iter()
                    .position(|byte| *byte == b'}')
                    .ok_or_else(error)?;
                let counted = str::from_utf8(&counts[..end]).map_err(|_| error())?;
                rest = &counts[end + 1..];
                let number = |text: &str| text.parse::<u32>().map_err(|_| error());
                match counted.split_once(',') {
                    None => (number(counted)?, number(counted)?),
                    Some((least, "")) => (number(least)?, u32::MAX),
                    Some((least, most)) => (number(least)?, number(most)?),
                }
            }
            [b'*', after @ ..] => {
                rest = after;
                (0, u32::MAX)
            }
            _ => (1, 1),
        };
        parts.push(Part { set, least, most });
    }
    let anchor = anchor.ok_or_else(error)?;
    Ok((parts, anchor))
}

/// The inside of brackets.
fn class(text: &[u8]) -> Set {
    let mut set = Set::NONE;
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return set,
            [b'\\', b'r', after @ ..] => {
                set = set.with(b'\r');
                after
            }
            [b'\\', b'n', after @ ..] => {
                set = set.with(b'\n');
                after
            }
            [from, b'-', to, after @ ..] => {
                set = (*from..=*to).fold(set, Set::with);
                after
            }
            [byte, after @ ..] => {
                set = set.with(*byte);
                after
            }
        };
    }
}
