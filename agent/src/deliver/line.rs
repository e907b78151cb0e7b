//! A record as deliver gets it: one line of JSON, by the names of `sink/json`.

use clap::ValueEnum as _;
use serde_json::Value;

use crate::record::{Kind, WallTime};

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
        Some(WallTime::read(self.text(pointer)?)?.0)
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
}
