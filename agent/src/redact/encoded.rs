//! Secrets in a text that is encoded once more: percent-encoding, escapes of JSON and programs, entities of HTML, base64
//! and hexadecimal digits, also of each other.
//!
//! A text is decoded as far as it can be, and what that says is searched as any text is. Of escapes what stands for the
//! secret is replaced; of base64 and digits all of it. Whether something is base64 is told by what it says: 12 bytes of
//! text by chance are rarer than one in 100,000, and then there must be a secret as well.
//!
//! Of texts that are there as a whole only. Each level costs a pass at most for escapes of all of it and one for its
//! strings, and nothing is decoded into more than it was.

use std::{borrow::Cow, collections::BTreeSet, iter, ops::Range};

use base64_simd::forgiving_decode_to_vec;

use super::{
    Key, Redaction,
    bytes::{self, Set},
    rules::RULES,
    scanner::{Cleared, Scanner},
    verdict::Ending,
};

/// How often one may be encoded in another.
const LEVELS: u32 = 3;
/// Digits of base64 that say whether it is some.
const SAMPLE: usize = 16;
/// Bytes beyond ASCII in what a sample says, at most.
const FOREIGN: usize = 4;
/// Where in a run base64 may begin: behind a slash, as in a path, at so many places.
const STARTS: usize = 4;
/// A line of this or more goes on in the next one.
const LINE: usize = 48;

const RUN: Set = bytes::BASE64.with(b'-').with(b'_').without(b'=');

/// What of a text stands for secrets, in order. `ending`: of the text.
pub fn secrets(key: Option<&Key>, text: &[u8], ending: Ending) -> Vec<Redaction> {
    let mut found = Vec::new();
    search(key, text, ending, LEVELS, &mut found);
    found.sort_by_key(|redaction| (redaction.offset, std::cmp::Reverse(redaction.length)));
    found
}

fn search(key: Option<&Key>, text: &[u8], ending: Ending, levels: u32, found: &mut Vec<Redaction>) {
    let ending_of = |range: &Range<usize>| match range.end == text.len() {
        true => ending,
        false => Ending::End,
    };
    if escapes(text).next().is_some() {
        let mut inside = all(key, &decoded_by(escapes(text), text), ending, levels - 1);
        point_to_source(&mut inside, escapes(text));
        found.append(&mut inside);
    }
    let mut from = 0;
    while let Some(range) = next_string(text, from) {
        from = range.end;
        let string = &text[range.clone()];
        let said = decoded_by(escapes_of_string(string), string);
        let mut inside = all(key, &said, ending_of(&range), levels - 1);
        point_to_source(&mut inside, escapes_of_string(string));
        for redaction in &mut inside {
            redaction.offset += range.start as u64;
        }
        found.append(&mut inside);
    }
    let mut from = 0;
    while let Some(run) = next_run(text, from) {
        from = run.end;
        let ending = ending_of(&run);
        found.extend(in_run(key, text, run, ending, levels - 1));
    }
}

/// What of a decoded text is a secret, and what stands for one.
fn all(key: Option<&Key>, text: &[u8], ending: Ending, levels: u32) -> Vec<Redaction> {
    let mut found = Vec::new();
    // Of any length that it was.
    let ascii = || {
        text.iter()
            .map(|byte| char::from(if byte.is_ascii() { *byte } else { b'?' }))
    };
    let text = match str::from_utf8(text) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(ascii().collect()),
    };
    Scanner::new(key.cloned(), 0, true).ending(&text, ending, &mut |_, _, cleared| {
        if let Cleared::Text(_, redactions) = cleared {
            found.extend_from_slice(redactions);
        }
    });
    if levels > 0 {
        search(key, text.as_bytes(), ending, levels, &mut found);
    }
    found
}

/// What stands for one byte of a text, and where.
struct Escape {
    at: usize,
    length: usize,
    byte: u8,
}

/// Those of all of a text.
fn escapes(text: &[u8]) -> impl Iterator<Item = Escape> {
    let mut from = 0;
    iter::from_fn(move || {
        loop {
            let at = from + memchr::memchr3(b'%', b'\\', b'&', &text[from..])?;
            if let Some((byte, length)) = escape(&text[at..]) {
                from = at + length;
                return Some(Escape { at, length, byte });
            }
            // A row of backslashes is looked at once.
            let row = text[at..].iter().take_while(|byte| **byte == b'\\');
            from = at + row.count().max(1);
        }
    })
}

fn decoded_by(escapes: impl Iterator<Item = Escape>, text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut from = 0;
    for escape in escapes {
        plain.extend_from_slice(&text[from..escape.at]);
        plain.push(escape.byte);
        from = escape.at + escape.length;
    }
    plain.extend_from_slice(&text[from..]);
    plain
}

/// What was found in a decoded text, as what stands for that.
fn point_to_source(found: &mut [Redaction], escapes: impl Iterator<Item = Escape>) {
    if found.is_empty() {
        return;
    }
    // From which byte on the decoded text is so much shorter.
    let mut shorter = 0;
    let shorter: Vec<(u64, u64)> = escapes
        .map(|escape| {
            let behind = escape.at as u64 - shorter + 1;
            shorter += escape.length as u64 - 1;
            (behind, shorter)
        })
        .collect();
    let place = |at: u64| {
        let behind = shorter.partition_point(|(from, _)| *from <= at);
        at + behind.checked_sub(1).map_or(0, |last| shorter[last].1)
    };
    for redaction in found {
        // The end of a byte is where the next one begins.
        let start = place(redaction.offset);
        redaction.length = place(redaction.offset + redaction.length) - start;
        redaction.offset = start;
    }
}

/// The next string with an escape in it, without its quotes: what it says is a text of its own, with lines and quotes
/// that rules know values by. One that began before the text has no quote, nor has one that goes on behind it.
fn next_string(text: &[u8], from: usize) -> Option<Range<usize>> {
    let first = from + memchr::memchr(b'\\', &text[from..])?;
    let start = memchr::memrchr2(b'"', b'\n', &text[from..first]).map_or(from, |at| from + at + 1);
    let mut end = first;
    while let Some(rest) = text.get(end..)
        && let Some(next) = memchr::memchr3(b'\\', b'"', b'\n', rest)
    {
        end += next;
        if text[end] != b'\\' {
            return Some(start..end);
        }
        end += 2;
    }
    Some(start..text.len())
}

/// Those of a string of JSON (RFC 8259, section 7); programs' strings have much the same.
fn escapes_of_string(string: &[u8]) -> impl Iterator<Item = Escape> {
    let mut from = 0;
    iter::from_fn(move || {
        loop {
            let at = from + memchr::memchr(b'\\', &string[from..])?;
            let (byte, length) = match string[at + 1..] {
                [byte @ (b'"' | b'\\' | b'/' | b'\''), ..] => (byte, 2),
                [b'n', ..] => (b'\n', 2),
                [b'r', ..] => (b'\r', 2),
                [b't', ..] => (b'\t', 2),
                _ => escape(&string[at..]).unwrap_or((b'\\', 1)),
            };
            from = at + length;
            if length > 1 {
                return Some(Escape { at, length, byte });
            }
        }
    })
}

/// The ASCII character that an escape stands for, and how long the escape is. Of quotes that a backslash precedes, and
/// of ends of lines so written, rules know themselves.
fn escape(text: &[u8]) -> Option<(u8, usize)> {
    let hex = |digits: Option<&[u8]>| {
        let digits = str::from_utf8(digits?).ok()?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)
    };
    let (code, length) = match text {
        [b'%', rest @ ..] => (hex(rest.get(..2))?, 3),
        // In JSON in JSON there are more of them.
        [b'\\', ..] => {
            let row = text.iter().take_while(|byte| **byte == b'\\').count();
            match &text[row..] {
                [b'/', ..] => (u32::from(b'/'), row + 1),
                [b'u', rest @ ..] => (hex(rest.get(..4))?, row + 5),
                [b'x', rest @ ..] => (hex(rest.get(..2))?, row + 3),
                _ => return None,
            }
        }
        [b'&', rest @ ..] => {
            let end = memchr::memchr(b';', &rest[..rest.len().min(8)])?;
            let code = match &rest[..end] {
                b"quot" => u32::from(b'"'),
                b"apos" => u32::from(b'\''),
                b"amp" => u32::from(b'&'),
                b"lt" => u32::from(b'<'),
                b"gt" => u32::from(b'>'),
                [b'#', b'x' | b'X', digits @ ..] => hex(Some(digits))?,
                [b'#', digits @ ..] => str::from_utf8(digits).ok()?.parse().ok()?,
                _ => return None,
            };
            (code, end + 2)
        }
        _ => return None,
    };
    let byte = u8::try_from(code).ok()?;
    matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n').then_some((byte, length))
}

/// The next stretch that may be base64 or digits, with its breaks of lines and its padding.
fn next_run(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut at = from;
    loop {
        // A run as long as a sample has a byte at one of each so many.
        while !RUN.has(*text.get(at + SAMPLE - 1)?) {
            at += SAMPLE;
        }
        let before = text[at..at + SAMPLE - 1].iter().rev();
        let start = at + SAMPLE - 1 - before.take_while(|byte| RUN.has(**byte)).count();
        let line = length_of(RUN, &text[start..]);
        if line < SAMPLE {
            at = start + line;
            continue;
        }
        let mut end = start + line;
        let mut last = line;
        while last >= LINE
            && let Some(space) = line_break(&text[end..])
        {
            last = length_of(RUN, &text[end + space..]);
            if last == 0 {
                break;
            }
            end += space + last;
        }
        let padding = text[end..].iter().take(2).take_while(|byte| **byte == b'=');
        return Some(start..end + padding.count());
    }
}

fn length_of(set: Set, text: &[u8]) -> usize {
    text.iter().take_while(|byte| set.has(**byte)).count()
}

/// The length of a line's end, also where it is an escape, and of what indents the next line.
fn line_break(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let row = text[at..].iter().take_while(|byte| **byte == b'\\').count();
        at += match &text[at + row..] {
            [b'n' | b'r', ..] if row > 0 => row + 1,
            [b'\n' | b'\r', ..] if row == 0 => 1,
            _ => break,
        };
    }
    let indent = text[at..]
        .iter()
        .take(64)
        .take_while(|byte| matches!(byte, b' ' | b'\t'));
    (at > 0).then(|| at + indent.count())
}

/// All of a run, if what it says holds a secret.
fn in_run(
    key: Option<&Key>,
    text: &[u8],
    run: Range<usize>,
    ending: Ending,
    levels: u32,
) -> Option<Redaction> {
    // What looks like an escape before it may be one, or the end of `name=` and two of its digits.
    let behind = run.start + bytes::escape_before(text, run.start, run.end);
    let slashes = (run.start + 1..run.end).filter(|at| b"/-_+".contains(&text[at - 1]));
    let escaped = Some(behind).filter(|behind| *behind > run.start);
    let slashes = std::iter::once(run.start).chain(escaped).chain(slashes);
    let mut tries = 0;
    for start in slashes {
        let Some(said) = decoded(&text[start..run.end]) else {
            continue;
        };
        let mut inside = all(key, &said, ending, levels);
        if !inside.is_empty() {
            return Some(together(&mut inside, start..run.end));
        }
        tries += 1;
        if tries == STARTS {
            break;
        }
    }
    None
}

/// What stands for all that is inside of a run.
fn together(inside: &mut Vec<Redaction>, run: Range<usize>) -> Redaction {
    inside.sort_by_key(|secret| (secret.offset, std::cmp::Reverse(secret.length)));
    // One may be found twice: as it is written, and decoded.
    inside.dedup_by(|next, one| next.offset < one.offset + one.length);
    let hashes: BTreeSet<u32> = inside.iter().filter_map(|secret| secret.hash).collect();
    let deeper: u32 = inside
        .iter()
        .map(|secret| secret.several)
        .max()
        .unwrap_or(0);
    let several = (hashes.len() as u32).max(deeper);
    let single = hashes.first().filter(|_| several == 1);
    // What says by itself what it is says most of all of them.
    let named = || match single {
        Some(_) => inside.iter().find(|secret| secret.hash.is_some()),
        None => inside.first(),
    };
    let of_form = inside.iter().find(|secret| RULES.have_form(secret.kind));
    Redaction {
        offset: run.start as u64,
        length: run.len() as u64,
        kind: of_form
            .or_else(named)
            .map_or("secret", |secret| secret.kind),
        hash: single.copied(),
        several: if several > 1 { several } else { 0 },
    }
}

/// What hexadecimal digits or base64 say, if that is text.
fn decoded(run: &[u8]) -> Option<Vec<u8>> {
    let of_hex = |digits: &[u8]| {
        let (pairs, _) = digits.as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        pairs.iter().map(byte).collect::<Option<Vec<u8>>>()
    };
    let sample = run.get(..SAMPLE)?;
    if length_of(bytes::HEX, sample) == SAMPLE
        && of_hex(sample).is_some_and(|said| is_text(&said))
        && let Some(said) = of_hex(&run[..length_of(bytes::HEX, run)])
    {
        return Some(plain(said));
    }
    if !is_text(&of_base64(sample)?) {
        return None;
    }
    Some(plain(of_base64(run)?))
}

fn of_base64(run: &[u8]) -> Option<Vec<u8>> {
    let mut digits = Vec::with_capacity(run.len());
    let mut at = 0;
    while let Some(byte) = run.get(at) {
        match byte {
            b'-' => digits.push(b'+'),
            b'_' => digits.push(b'/'),
            b'=' => {}
            byte if RUN.has(*byte) => digits.push(*byte),
            _ => {
                at += line_break(&run[at..])?;
                continue;
            }
        }
        at += 1;
    }
    // A digit alone says nothing.
    if digits.len() % 4 == 1 {
        digits.pop();
    }
    forgiving_decode_to_vec(&digits).ok()
}

fn is_text(said: &[u8]) -> bool {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n' | 0x80..);
    said.iter().all(is_plain) && said.iter().filter(|byte| !byte.is_ascii()).count() <= FOREIGN
}

/// Without control characters, at which a text would end.
fn plain(mut said: Vec<u8>) -> Vec<u8> {
    for byte in &mut said {
        if *byte < b' ' && !matches!(*byte, b'\t' | b'\r') || *byte == 0x7f {
            *byte = b'\n';
        }
    }
    said
}

/// Writes a piece of a text that begins at `at`, without what is marked in it and what is in `more`, which may reach
/// beyond it.
pub fn write(
    (text, at): (&str, u64),
    marks: &[Redaction],
    more: &[Redaction],
    out: &mut String,
    written: &mut Vec<Redaction>,
) {
    let end = at + text.len() as u64;
    let mut all: Vec<Redaction> = marks.to_vec();
    for redaction in more {
        let start = redaction.offset.max(at);
        let stop = (redaction.offset + redaction.length).min(end);
        if start < stop {
            let is_whole = (start, stop - start) == (redaction.offset, redaction.length);
            all.push(Redaction {
                offset: start,
                length: stop - start,
                hash: redaction.hash.filter(|_| is_whole),
                ..*redaction
            });
        }
    }
    // Base64 of JSON looks like a token: what it holds says more.
    all.sort_by_key(|redaction| {
        let size = (redaction.length, redaction.several);
        (redaction.offset, std::cmp::Reverse(size))
    });
    let mut shown = at;
    let mut all = all.into_iter().peekable();
    while let Some(mut redaction) = all.next() {
        while let Some(next) = all.next_if(|next| next.offset < redaction.offset + redaction.length)
        {
            let stop = (redaction.offset + redaction.length).max(next.offset + next.length);
            if stop > redaction.offset + redaction.length {
                redaction.hash = None;
                redaction.several = redaction.several.max(next.several);
                redaction.length = stop - redaction.offset;
            }
        }
        out.push_str(between(
            text,
            (shown - at) as usize,
            (redaction.offset - at) as usize,
        ));
        redaction.write(out);
        shown = redaction.offset + redaction.length;
        written.push(redaction);
    }
    out.push_str(between(text, (shown - at) as usize, text.len()));
}

/// Escapes and base64 are ASCII, so that what is marked ends between characters.
fn between(text: &str, from: usize, to: usize) -> &str {
    text.get(from..to).unwrap_or_default()
}
