//! JSON as it comes: any bytes, and values that are known.
//!
//! An input is four bytes that say how it is cut, one that says what the rest is, one of layout and bound, and the
//! rest: a text, or choices that make one. serde_json reads the same where it can.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::{Choices, is_long, memory, talk::pieces};
use vortex_agent::protocol::json::{Layout, Read, Reader, Value};

const LAYOUTS: [Layout; 3] = [Layout::Values, Layout::Lines, Layout::Elements];
const BOUNDS: [usize; 4] = [64, 600, 4096, 1 << 20];
/// Of what is not placed yet: a name, and itself, of each list or map that is open.
const OPEN: usize = 64 * (256 + 128);
/// What a vector has room for beyond what is in it, what allocation rounds up, and a digest.
const SPARE: usize = 4;
/// A string or a number that is read, and a blob's first text.
const READ_NOW: usize = 8 << 10;
const LONG: usize = 256 << 10;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    let what = choices.byte();
    let how = choices.byte();
    let layout = LAYOUTS[usize::from(how % 3)];
    let bound = BOUNDS[usize::from(how / 3 % 4)];
    match what {
        0 | 1 if is_long(input) => long(choices.0, layout, bound),
        0 | 1 => anything(choices.0, layout, bound, cuts),
        _ => known(&mut choices, layout, cuts),
    }
});

/// The same again and again: what is kept has a bound.
fn long(text: &[u8], layout: Layout, bound: usize) {
    let mut reader = Reader::new(layout, bound);
    let rounds = LONG / text.len().max(64);
    let most = SPARE * (bound + OPEN) + READ_NOW;
    memory::assert_kept(0..rounds, most, |_| reader.feed(text, &mut |_| {}));
}

fn anything(text: &[u8], layout: Layout, bound: usize, cuts: [u8; 4]) {
    let (whole, is_right) = play([Some(text)], layout, bound);
    let (cut, _) = play(pieces(text, cuts).map(Some), layout, bound);
    assert_eq!(whole, cut);
    for read in &whole {
        let weight = read.value.weight();
        assert!(weight <= bound + OPEN, "{weight} bytes of {bound}");
        let mut written = Vec::new();
        read.value.write(&mut written);
        let again: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(&written);
        again.expect("what is written is JSON");
    }
    if layout == Layout::Values {
        compare(text, &whole, is_right);
    }
}

/// All values, and whether it was all right until the end.
fn play<'a>(
    parts: impl IntoIterator<Item = Option<&'a [u8]>>,
    layout: Layout,
    bound: usize,
) -> (Vec<Read>, bool) {
    let (mut reader, mut found) = (Reader::new(layout, bound), Vec::new());
    let mut hear = |read| found.push(read);
    for part in parts {
        match part {
            Some(bytes) => reader.feed(bytes, &mut hear),
            None => reader.hole(&mut hear),
        }
        assert!(reader.held() <= bound + 1024 + OPEN);
    }
    let is_right = !reader.is_broken();
    reader.close(&mut hear);
    (found, is_right)
}

/// Against a reader that is right: what it takes is the same here, and what it does not is broken here, too.
fn compare(text: &[u8], ours: &[Read], is_right: bool) {
    let mut ours = ours.iter();
    let mut theirs = serde_json::Deserializer::from_slice(text).into_iter::<serde_json::Value>();
    loop {
        match (theirs.next(), ours.next()) {
            (Some(Ok(value)), Some(read)) => {
                assert!(!read.is_broken, "{value}");
                if read.is_cut || has_blob(&read.value) {
                    continue;
                }
                let mut written = Vec::new();
                read.value.write(&mut written);
                let again: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
                assert_eq!(again, value);
                check_same(&read.value, &value);
            }
            (Some(Ok(value)), None) => panic!("{value} was not read"),
            (Some(Err(error)), read) if is_strict(text, &error) => {
                // What there is no room for is skipped by its brackets alone.
                if read.is_some_and(|read| read.is_cut) {
                    return;
                }
                // A number or a word is whole, and what follows it is nothing that may.
                let is_behind = error.to_string().starts_with("trailing characters");
                let is_known = |read: &Read| read.is_broken || is_behind;
                assert!(read.is_none_or(is_known), "{error}: {read:?}");
                assert!(ours.next().is_none());
                // Whether a word is one is known behind it.
                let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                let is_open = text.last().is_some_and(goes_on);
                assert!(!is_right || error.is_eof() || is_open, "{error}");
                return;
            }
            (Some(Err(_)), _) => return,
            (None, read) => {
                assert!(is_right && read.is_none(), "{read:?}");
                return;
            }
        }
    }
}

/// As those who read it see it.
fn check_same(ours: &Value, theirs: &serde_json::Value) {
    assert_eq!(ours.bool(), theirs.as_bool());
    assert_eq!(ours.str(), theirs.as_str());
    assert_eq!(ours.float().is_some(), theirs.is_number());
    if let Some(count) = theirs.as_u64() {
        assert_eq!(ours.count(), Some(count));
    }
    let elements = theirs.as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(ours.list().len(), elements.len());
    for (ours, theirs) in ours.list().iter().zip(elements) {
        check_same(ours, theirs);
    }
    let members = theirs.as_object().map_or(0, serde_json::Map::len);
    // The same name may come twice, and then one of them is theirs.
    if ours.members().len() == members {
        for (name, value) in ours.members() {
            check_same(value, &theirs[&**name]);
            let found = ours.get(name);
            assert_eq!(found, Some(value).filter(|value| **value != Value::Null));
        }
    }
}

/// Nothing in it is taken here and refused there: bytes and escapes that are no characters, and numbers and depths
/// beyond what they have.
fn is_strict(text: &[u8], error: &serde_json::Error) -> bool {
    let mut pairs = text.windows(3);
    let opened = text.iter().filter(|byte| matches!(byte, b'[' | b'{'));
    str::from_utf8(text).is_ok()
        && !text.iter().any(|byte| *byte < b' ')
        && !pairs.any(|part| part.eq_ignore_ascii_case(b"\\ud"))
        && !error.to_string().starts_with("number out of range")
        && text.len() < 256
        && opened.count() < 64
}

fn has_blob(value: &Value) -> bool {
    match value {
        Value::Text(text) => text.blob.is_some(),
        Value::List(values) => values.iter().any(has_blob),
        Value::Map(members) => members.iter().any(|(_, value)| has_blob(value)),
        _ => false,
    }
}

fn known(choices: &mut Choices<'_>, layout: Layout, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let mut maker = Maker {
        choices,
        layout,
        text: Vec::new(),
        truth: Vec::new(),
        blobs: Vec::new(),
    };
    // Where each value begins and ends in the text.
    let (mut truths, mut places) = (Vec::new(), Vec::new());
    let count = 1 + maker.choices.below(5);
    if layout == Layout::Elements {
        maker.text.push(b'[');
    }
    for at in 0..count {
        if at > 0 && layout == Layout::Elements {
            maker.text.push(b',');
        }
        maker.blank();
        let start = maker.text.len();
        maker.value(0);
        places.push(start..maker.text.len());
        truths.push(std::mem::take(&mut maker.truth));
        match layout {
            Layout::Values => maker.text.push(b' '),
            Layout::Lines => maker.text.push(b'\n'),
            Layout::Elements => {}
        }
    }
    if layout == Layout::Elements {
        maker.text.push(b']');
    }
    let Maker { text, blobs, .. } = maker;
    let bound = BOUNDS[3];
    for found in [
        play([Some(&text[..])], layout, bound),
        play(pieces(&text, cuts).map(Some), layout, bound),
    ] {
        let (found, is_right) = found;
        assert!(is_right);
        let told: Vec<Vec<u8>> = found.iter().map(whole).collect();
        assert_eq!(told, truths, "{}", text.escape_ascii());
        let mut sizes = Vec::new();
        found
            .iter()
            .for_each(|read| list_blobs(&read.value, &mut sizes));
        assert_eq!(sizes, blobs);
    }

    // A hole costs what it touches; where values stand in lines, what is behind its line comes again.
    let hole = Choices(&ahead).range(text.len());
    let parts = [Some(&text[..hole.start]), None, Some(&text[hole.end..])];
    let (found, _) = play(parts, layout, bound);
    let before = places.iter().filter(|place| place.end < hole.start).count();
    let told: Vec<Vec<u8>> = found[..before].iter().map(whole).collect();
    assert_eq!(told, truths[..before]);
    let mut behind = &found[before..];
    if let [first, rest @ ..] = behind
        && first.is_broken
    {
        assert!(!rest.iter().any(|read| read.is_broken), "{found:?}");
        behind = rest;
    }
    let from = match layout {
        Layout::Lines => {
            let line = text[hole.end..].iter().position(|byte| *byte == b'\n');
            line.map_or(text.len(), |at| hole.end + at)
        }
        // Nothing comes again.
        Layout::Values | Layout::Elements => text.len(),
    };
    let first = places.partition_point(|place| place.start < from);
    let told: Vec<Vec<u8>> = behind.iter().map(whole).collect();
    // A value that had just ended before the hole is whole.
    let is_same = told == truths[first..]
        || before < truths.len()
            && told[..] == [&truths[before..=before], &truths[first..]].concat();
    assert!(is_same, "{}", text.escape_ascii());
}

fn whole(read: &Read) -> Vec<u8> {
    assert!(!read.is_broken && !read.is_cut);
    let mut written = Vec::new();
    read.value.write(&mut written);
    written
}

fn list_blobs(value: &Value, sizes: &mut Vec<u64>) {
    match value {
        Value::Text(text) => sizes.extend(text.blob.as_ref().map(|blob| blob.size)),
        Value::List(values) => values.iter().for_each(|value| list_blobs(value, sizes)),
        Value::Map(members) => members
            .iter()
            .for_each(|(_, value)| list_blobs(value, sizes)),
        _ => {}
    }
}

/// Writes values in any of the ways that there are, and in the one way that is ours.
struct Maker<'c, 'i> {
    choices: &'c mut Choices<'i>,
    layout: Layout,
    text: Vec<u8>,
    truth: Vec<u8>,
    /// Sizes of what is base64.
    blobs: Vec<u64>,
}

impl Maker<'_, '_> {
    fn value(&mut self, depth: u32) {
        let what = match depth {
            0..4 => self.choices.below(8),
            _ => self.choices.below(6),
        };
        match what {
            0 => self.both(b"null"),
            1 => self.both(b"true"),
            2 => {
                let number =
                    self.choices
                        .of(&["0", "-1", "2.50", "1e-9", "-0E+7", "18446744073709551616"]);
                self.both(number.as_bytes());
            }
            3 | 4 => self.string(),
            5 => self.blob(),
            6 => {
                self.both(b"[");
                let count = self.choices.below(4);
                for at in 0..count {
                    self.comma(at);
                    self.value(depth + 1);
                }
                self.blank();
                self.both(b"]");
            }
            _ => {
                self.both(b"{");
                let count = self.choices.below(4);
                for at in 0..count {
                    self.comma(at);
                    self.string();
                    self.blank();
                    self.both(b":");
                    self.blank();
                    self.value(depth + 1);
                }
                self.blank();
                self.both(b"}");
            }
        }
    }

    fn comma(&mut self, at: usize) {
        if at > 0 {
            self.blank();
            self.both(b",");
        }
        self.blank();
    }

    fn blank(&mut self) {
        let blank = match self.choices.byte() {
            0..200 => "",
            200..220 => " ",
            220..240 => "\t\r ",
            _ if self.layout == Layout::Lines => "  ",
            _ => "\n",
        };
        self.text.extend(blank.bytes());
    }

    fn both(&mut self, bytes: &[u8]) {
        self.text.extend(bytes);
        self.truth.extend(bytes);
    }

    /// Of characters that are written as they are, in an escape of two bytes, or by their number.
    fn string(&mut self) {
        self.both(b"\"");
        for _ in 0..self.choices.below(10) {
            let (plain, short) = self.choices.of(&[
                ('a', None),
                ('{', None),
                ('\u{e9}', None),
                ('\u{1f600}', None),
                ('"', Some("\\\"")),
                ('\\', Some("\\\\")),
                ('\n', Some("\\n")),
                ('/', Some("\\/")),
                ('\u{8}', Some("\\b")),
            ]);
            match (plain, short) {
                ('"' | '\\', Some(short)) => self.truth.extend(short.bytes()),
                ('\n', _) => self.truth.extend(b"\\n"),
                ('\u{8}', _) => self.truth.extend(b"\\u0008"),
                _ => self.truth.extend(plain.to_string().bytes()),
            }
            let by_number = || {
                plain
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("\\u{unit:04X}"))
                    .collect()
            };
            let written: String = match (self.choices.chance(), short) {
                (true, _) => by_number(),
                (false, Some(short)) => short.to_owned(),
                (false, None) => plain.to_string(),
            };
            self.text.extend(written.bytes());
        }
        self.both(b"\"");
    }

    /// Base64 of an image, whose text is not kept.
    fn blob(&mut self) {
        let prefix = self.choices.of(&["", "data:image/png;base64,"]);
        let groups = 300 + self.choices.below(200);
        let end = self.choices.of(&["", "QQ==", "QUI=", "QUI"]);
        self.both(b"\"");
        self.both(prefix.as_bytes());
        for _ in 0..groups {
            self.text.extend(b"Zm9v");
        }
        self.text.extend(end.bytes());
        self.both(b"\"");
        let rest = match end {
            "" => 0,
            "QQ==" => 1,
            _ => 2,
        };
        self.blobs.push(3 * groups as u64 + rest);
    }
}
