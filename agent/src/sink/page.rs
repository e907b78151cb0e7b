//! A text for people, and what of it is painted: secrets, holes, the keys and strings of JSON.

use std::ops::Range;

use crate::redact::{Hole, Redaction};

/// A part of a text, within one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) range: Range<usize>,
    pub(super) ink: Ink,
}

/// What a part of a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Secret,
    Missing,
    Key,
    String,
}

/// A text, and its marks in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) text: String,
    pub(super) marks: Vec<Mark>,
}

impl Page {
    pub(super) fn new(text: &str, redactions: &[Redaction], holes: &[Hole]) -> Page {
        let mut page = Page::default();
        let mut secrets = secrets(0, text, redactions, holes).into_iter().peekable();
        let mut from = 0;
        for hole in holes {
            let at = text.floor_char_boundary(hole.at).max(from);
            page.copy(text, from..at, &mut secrets);
            let note = match hole.length {
                // Nobody knows how much.
                0 => "[something is missing]".into(),
                1 => "[1 byte missing]".into(),
                length => format!("[{length} bytes missing]"),
            };
            page.push(&note, Ink::Missing);
            from = at;
        }
        page.copy(text, from..text.len(), &mut secrets);
        page
    }

    /// A part of a text, with those of its marks that lie inside.
    fn copy(&mut self, text: &str, part: Range<usize>, marks: &mut Marks) {
        let place = |at: usize| at - part.start + self.text.len();
        while let Some(Mark { range, ink }) = marks.next_if(|mark| mark.range.end <= part.end) {
            let range = place(range.start)..place(range.end);
            self.marks.push(Mark { range, ink });
        }
        self.text.push_str(&text[part]);
    }

    fn push(&mut self, text: &str, ink: Ink) {
        if text.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.push_str(text);
        let range = start..self.text.len();
        self.marks.push(Mark { range, ink });
    }

    /// If it is JSON: its keys and strings marked, and a value a line, unless somebody has laid it out already or
    /// `in_lines` is false. Anything else is as it was. The end of what `is_cut` may be missing.
    pub(super) fn laid_out(self, in_lines: bool, is_cut: bool) -> Page {
        let in_lines = in_lines && !self.text.trim().contains('\n');
        let layout = Layout {
            text: &self.text,
            marks: self.marks.clone().into_iter().peekable(),
            at: 0,
            open: Vec::new(),
            in_lines,
            is_cut,
            page: Page::default(),
        };
        layout.run().unwrap_or(self)
    }
}

type Marks = std::iter::Peekable<std::vec::IntoIter<Mark>>;

/// Where in a text the redactions are, which say where they are on the wire; the text begins at `offset` there.
pub(super) fn secrets(
    offset: u64,
    text: &str,
    redactions: &[Redaction],
    holes: &[Hole],
) -> Vec<Mark> {
    // What all before have added to the text, and taken away.
    let (mut more, mut less) = (0, offset);
    let mut holes = holes.iter().peekable();
    let mark = |redaction: &Redaction| {
        while let Some(hole) = holes.next_if(|hole| hole.offset <= redaction.offset) {
            less += hole.length;
        }
        let label = redaction.label();
        let start = (redaction.offset + more).checked_sub(less)? as usize;
        more += label.len() as u64;
        less += redaction.length;
        let range = start..start + label.len();
        let ink = Ink::Secret;
        (text.get(range.clone()) == Some(&label)).then_some(Mark { range, ink })
    };
    redactions.iter().filter_map(mark).collect()
}

/// A document on its way from a text into lines.
struct Layout<'a> {
    text: &'a str,
    marks: Marks,
    at: usize,
    /// The brackets around what comes next.
    open: Vec<u8>,
    in_lines: bool,
    is_cut: bool,
    page: Page,
}

/// Deeper than this nothing is indented further: the output must not grow with the square of the input.
const DEEPEST: usize = 32;

impl Layout<'_> {
    /// `None`: it is no JSON.
    fn run(mut self) -> Option<Page> {
        if !self.text.trim_start().starts_with(['{', '[']) {
            return None;
        }
        while let Some(byte) = self.peek() {
            let is_over = self.open.is_empty() && !self.page.text.trim_ascii().is_empty();
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' if self.in_lines => self.at += 1,
                b' ' | b'\t' | b'\n' | b'\r' => self.take(1),
                _ if is_over => return None,
                // What stands for a secret or a hole is no JSON.
                _ if self.is_at_mark() => self.mark(),
                b'{' | b'[' => self.begin(byte),
                b'}' | b']' => self.end(byte)?,
                b',' => {
                    self.take(1);
                    self.new_line();
                }
                b':' => {
                    self.take(1);
                    if self.in_lines {
                        self.page.text.push(' ');
                    }
                }
                b'"' => self.string()?,
                _ => self.scalar()?,
            }
        }
        (self.open.is_empty() || self.is_cut).then_some(self.page)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no white space.
    fn next(&self) -> Option<u8> {
        self.text[self.at..].trim_ascii_start().bytes().next()
    }

    /// The next bytes as they are.
    fn take(&mut self, count: usize) {
        let end = self.at + count;
        self.page.text.push_str(&self.text[self.at..end]);
        self.at = end;
    }

    fn new_line(&mut self) {
        if self.in_lines {
            self.page.text.push('\n');
            let depth = self.open.len().min(DEEPEST);
            (0..depth).for_each(|_| self.page.text.push_str("  "));
        }
    }

    fn is_at_mark(&mut self) -> bool {
        let at = self.at;
        self.marks.peek().is_some_and(|mark| mark.range.start <= at)
    }

    fn mark(&mut self) {
        if let Some(Mark { range, ink }) = self.marks.next() {
            self.page.push(&self.text[self.at..range.end], ink);
            self.at = range.end;
        }
    }

    fn begin(&mut self, bracket: u8) {
        self.take(1);
        self.open.push(bracket);
        // Nothing is in it.
        if self.in_lines && self.next() == Some(bracket + 2) {
            self.at += self.text[self.at..]
                .find(char::from(bracket + 2))
                .unwrap_or(0);
            self.open.pop();
            return self.take(1);
        }
        self.new_line();
    }

    fn end(&mut self, bracket: u8) -> Option<()> {
        // In ASCII `{` and `}`, `[` and `]` are two apart.
        if self.open.pop()? + 2 != bracket {
            return None;
        }
        self.new_line();
        self.take(1);
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        let first = self.page.marks.len();
        let mut start = self.at;
        let mut end = self.at + 1;
        loop {
            let mark = self
                .marks
                .peek()
                .map_or(usize::MAX, |mark| mark.range.start);
            if end >= mark {
                self.page
                    .push(&self.text[start..mark.max(start)], Ink::String);
                self.at = mark.max(start);
                self.mark();
                (start, end) = (self.at, self.at);
                continue;
            }
            match self.text.as_bytes().get(end) {
                Some(b'"') => break,
                Some(b'\\') if end + 1 < mark => end += 2,
                Some(b'\n') => return None,
                Some(_) => end += 1,
                None if self.is_cut => {
                    self.page.push(&self.text[start..], Ink::String);
                    self.at = self.text.len();
                    return Some(());
                }
                None => return None,
            }
        }
        self.page.push(&self.text[start..=end], Ink::String);
        self.at = end + 1;
        if self.open.last() == Some(&b'{') && self.next() == Some(b':') {
            let strings = self.page.marks[first..].iter_mut();
            strings
                .filter(|mark| mark.ink == Ink::String)
                .for_each(|mark| mark.ink = Ink::Key);
        }
        Some(())
    }

    fn scalar(&mut self) -> Option<()> {
        let rest = &self.text[self.at..];
        let is_end = |c: char| c.is_ascii_whitespace() || ",:]}[{\"".contains(c);
        let length = rest.find(is_end).unwrap_or(rest.len());
        let mark = self.marks.peek().map(|mark| mark.range.start - self.at);
        let length = mark.map_or(length, |mark| length.min(mark));
        let is_value =
            |word: &str| matches!(word, "true" | "false" | "null") || word.parse::<f64>().is_ok();
        let is_last = self.is_cut && length == rest.len();
        if !is_last && !is_value(&rest[..length]) {
            return None;
        }
        self.take(length);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(text: &str) -> String {
        Page::new(text, &[], &[]).laid_out(true, false).text
    }

    /// The marked parts of a page.
    fn marked(page: &Page) -> Vec<(&str, Ink)> {
        let part = |mark: &Mark| (&page.text[mark.range.clone()], mark.ink);
        page.marks.iter().map(part).collect()
    }

    #[test]
    fn a_value_a_line() {
        assert_eq!(
            laid_out(r#"{"a": [1,-2.5e3, "x,{\"y\":\\"], "b":{ }, "c":[],"d":{"e":null}}"#),
            "{\n  \"a\": [\n    1,\n    -2.5e3,\n    \"x,{\\\"y\\\":\\\\\"\n  ],\n  \"b\": {},\n  \"c\": [],\n  \
             \"d\": {\n    \"e\": null\n  }\n}"
        );
        assert_eq!(laid_out(" [ true ]\n"), "[\n  true\n]");
        // The square of this would be gigabytes.
        let deep = "[".repeat(1 << 16) + &"]".repeat(1 << 16);
        assert!(laid_out(&deep).len() < 16 << 20);
    }

    #[test]
    fn what_is_no_json_is_as_it_was() {
        for text in [
            "",
            "a",
            "\"a\"",
            "1",
            "{",
            "[1",
            "{\"a",
            "{]",
            "}",
            "[1]]",
            "[1] x",
            "{} {}",
            "[INFO] started",
            "{name}",
            "{\"a\": b}",
            "[\"a\nb\"]",
            "{\"a\": \"\\\"}",
            "{{x}}",
            "[é]",
            "[nul",
            "a[1]",
        ] {
            assert_eq!(laid_out(text), text);
            // Cut anywhere nothing panics.
            Page::new(text, &[], &[]).laid_out(true, true);
        }
        // Somebody has laid it out.
        assert_eq!(laid_out("{\n \"a\":1 }\n"), "{\n \"a\":1 }\n");
    }

    #[test]
    fn cut_anywhere_it_is_laid_out_as_far_as_it_goes() {
        let text = r#"{"a":["é\"x",true,{}],"b":12}"#;
        let whole = laid_out(text);
        for (end, _) in text.char_indices().skip(1) {
            let cut = Page::new(&text[..end], &[], &[]).laid_out(true, true).text;
            assert!(cut.len() > 1 && whole.starts_with(cut.trim_end()), "{cut}");
        }
    }

    #[test]
    fn keys_and_strings_are_marked() {
        use Ink::{Key, String};
        let text = r#"{"k":"v","n":1,"l":["s"]}"#;
        for in_lines in [true, false] {
            let page = Page::new(text, &[], &[]).laid_out(in_lines, false);
            let expected = [
                ("\"k\"", Key),
                ("\"v\"", String),
                ("\"n\"", Key),
                ("\"l\"", Key),
                ("\"s\"", String),
            ];
            assert_eq!(marked(&page), expected);
            assert_eq!(page.text == text, !in_lines);
        }
    }

    fn redaction(offset: u64, length: u64) -> Redaction {
        Redaction {
            offset,
            length,
            kind: "key",
            hash: None,
            several: 0,
        }
    }

    /// Secrets inside of strings, at their ends and in place of values.
    #[test]
    fn secrets_stay_marked() {
        use Ink::{Key, Secret, String};
        let text =
            r#"{"a":"[redacted:key]","[redacted:key]b":[redacted:key],"c":"d[redacted:key]e"}"#;
        // On the wire each secret had one byte.
        let redactions = [6, 10, 14, 22].map(|offset| redaction(offset, 1));
        let page = Page::new(text, &redactions, &[]).laid_out(true, false);
        assert_eq!(
            page.text,
            "{\n  \"a\": \"[redacted:key]\",\n  \"[redacted:key]b\": [redacted:key],\n  \
             \"c\": \"d[redacted:key]e\"\n}"
        );
        let label = "[redacted:key]";
        let expected = [
            ("\"a\"", Key),
            ("\"", String),
            (label, Secret),
            ("\"", String),
            ("\"", Key),
            (label, Secret),
            ("b\"", Key),
            (label, Secret),
            ("\"c\"", Key),
            ("\"d", String),
            (label, Secret),
            ("e\"", String),
        ];
        assert_eq!(marked(&page), expected);
    }

    #[test]
    fn holes_are_said_in_their_place() {
        use Ink::{Missing, Secret};
        // "one" and a secret, 100 bytes missing, a secret and "two".
        let text = "one[redacted:key][redacted:key]two";
        let hole = Hole {
            at: 17,
            offset: 5,
            length: 100,
        };
        let redactions = [redaction(3, 2), redaction(105, 8)];
        let page = Page::new(text, &redactions, &[hole]);
        assert_eq!(
            page.text,
            "one[redacted:key][100 bytes missing][redacted:key]two"
        );
        let label = "[redacted:key]";
        let expected = [
            (label, Secret),
            ("[100 bytes missing]", Missing),
            (label, Secret),
        ];
        assert_eq!(marked(&page), expected);
        // At a place that is none nothing is lost.
        let shown = |length| {
            let hole = Hole {
                at: 99,
                length,
                ..hole
            };
            Page::new("é", &[], &[hole]).text
        };
        assert_eq!(shown(1), "é[1 byte missing]");
        assert_eq!(shown(0), "é[something is missing]");
    }
}
