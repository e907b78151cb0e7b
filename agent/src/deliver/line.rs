//! A record as deliver gets it: one line of JSON, by the names of `sink/json`.

use clap::ValueEnum as _;
use serde_json::Value;

use crate::record::Kind;

/// Of a line that is read.
pub struct Line(Value);

/// How every line begins.
const START: &[u8] = b"{\"v\":1,\"kind\":\"";

/// Without reading the line: most are only passed on.
pub fn kind(line: &[u8]) -> Option<Kind> {
    let rest = line.strip_prefix(START)?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    named(str::from_utf8(&rest[..end]).ok()?)
}

fn named(name: &str) -> Option<Kind> {
    let mut kinds = Kind::value_variants().iter();
    kinds.find(|kind| kind.name() == name).copied()
}

impl Line {
    /// `None`: the pipeline wrote no JSON, which it always does.
    pub fn read(line: &[u8]) -> Option<Line> {
        let value = serde_json::from_slice::<Value>(line).ok()?;
        value.is_object().then_some(Line(value))
    }

    pub fn kind(&self) -> Option<Kind> {
        named(self.text("/kind")?)
    }

    /// What is there, by its JSON pointer.
    pub fn at(&self, pointer: &str) -> Option<&Value> {
        self.0.pointer(pointer)
    }

    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.at(pointer)?.as_str()
    }

    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.at(pointer)?.as_u64()
    }

    /// Nanoseconds since 1970.
    pub fn time(&self, pointer: &str) -> Option<u64> {
        nanoseconds(self.text(pointer)?)
    }

    /// Replaces a list by its JSON as text.
    #[cfg(feature = "otlp")]
    pub fn write_out(&mut self, pointer: &str) {
        if let Some(value) = self.0.pointer_mut(pointer) {
            *value = Value::String(value.to_string());
        }
    }

    /// The members, each with its name.
    #[cfg(feature = "otlp")]
    pub fn into_members(self) -> serde_json::Map<String, Value> {
        match self.0 {
            Value::Object(members) => members,
            _ => serde_json::Map::new(),
        }
    }
}

/// `2026-11-21T01:20:29.000000042Z`, all digits always there.
fn nanoseconds(text: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let of_day = digits(11, 13)? * 3600 + digits(14, 16)? * 60 + digits(17, 19)?;
    // A year that begins in March has its leap day at its end.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year;
    let seconds = days.checked_sub(719_468)? * 86_400 + of_day;
    Some(seconds * 1_000_000_000 + digits(20, 29)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_known_without_reading() {
        for kind in Kind::value_variants() {
            let line = format!("{{\"v\":1,\"kind\":\"{}\",\"id\":\"x\"}}\n", kind.name());
            assert_eq!(super::kind(line.as_bytes()), Some(*kind));
            assert_eq!(Line::read(line.as_bytes()).unwrap().kind(), Some(*kind));
        }
        assert_eq!(super::kind(b"{\"v\":1,\"kind\":\"date\"}"), None);
        assert!(Line::read(b"[1]").is_none() && Line::read(b"{").is_none());
    }

    /// Expected values from `date -u -d @SECONDS`.
    #[test]
    fn times_are_what_was_written() {
        for (text, expected) in [
            ("1970-01-01T00:00:00.000000000Z", 0),
            ("2000-02-28T23:59:59.999999999Z", 951_782_399_999_999_999),
            ("2000-02-29T00:00:00.000000000Z", 951_782_400_000_000_000),
            ("2000-03-01T00:00:00.000000001Z", 951_868_800_000_000_001),
            ("2024-12-31T23:59:59.000000000Z", 1_735_689_599_000_000_000),
            ("2026-11-21T01:20:29.000000042Z", 1_795_224_029_000_000_042),
        ] {
            assert_eq!(nanoseconds(text), Some(expected), "{text}");
        }
        assert_eq!(nanoseconds("soon"), None);
    }
}
