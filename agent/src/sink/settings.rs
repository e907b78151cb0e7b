//! What `[[sink]]` says: one output, its kinds of records, and the keys of its type.

use std::collections::BTreeSet;

use clap::ValueEnum as _;
use serde::{Deserialize, Deserializer, de};

use super::{Format, OpenError, Target, file::File, stdout::Stdout};
#[cfg(feature = "otlp")]
use crate::deliver::settings::{Kinds, Otlp, WrittenOtlp};
#[cfg(feature = "prometheus")]
use crate::deliver::{
    self,
    settings::{Prometheus, WrittenPrometheus},
};
use crate::{
    config::{self, Color, Output},
    record::{Body, Kind, Record, View},
};

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// In `stats` and in errors. `None`: what it writes to.
    pub name: Option<String>,
    pub selection: Selection,
    pub to: Type,
}

/// The types, one line for each. What its table may say is in its file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Type {
    Stdout(Stdout),
    File(File),
    #[cfg(feature = "otlp")]
    #[serde(deserialize_with = "otlp")]
    Otlp(Box<Otlp>),
    #[cfg(feature = "prometheus")]
    #[serde(deserialize_with = "prometheus")]
    Prometheus(Prometheus),
}

impl Type {
    /// Opens what it writes to, while there are privileges. `None`: the process that delivers does.
    pub(super) fn open(&self, with_command: bool) -> Result<Option<Target>, OpenError> {
        match self {
            Type::Stdout(stdout) => stdout.open(with_command).map(Some),
            Type::File(file) => file.open().map(Some),
            #[cfg(any(feature = "otlp", feature = "prometheus"))]
            _ => Ok(None),
        }
    }

    /// Is it written to by this process?
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Type::Stdout(_) | Type::File(_))
    }

    fn output(&self) -> (Output, Color) {
        match self {
            Type::Stdout(stdout) => (stdout.output, stdout.color),
            Type::File(file) => (file.output, file.color),
            #[cfg(any(feature = "otlp", feature = "prometheus"))]
            _ => (Output::Json, Color::Never),
        }
    }
}

#[cfg(feature = "otlp")]
fn otlp<'de, D: Deserializer<'de>>(from: D) -> Result<Box<Otlp>, D::Error> {
    let otlp = Otlp::try_from(WrittenOtlp::deserialize(from)?);
    otlp.map(Box::new).map_err(de::Error::custom)
}

#[cfg(feature = "prometheus")]
fn prometheus<'de, D: Deserializer<'de>>(from: D) -> Result<Prometheus, D::Error> {
    WrittenPrometheus::deserialize(from).map(Prometheus::from)
}

/// Which records an output takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub kinds: BTreeSet<Kind>,
    /// `data` of connections that nothing decodes, too: nobody chose kinds.
    pub undecoded: bool,
}

impl Selection {
    /// Those that were chosen.
    pub fn new(kinds: Option<Vec<Kind>>) -> Self {
        let undecoded = kinds.is_none();
        // `data` would say once more what the others say.
        let all = || {
            let all = Kind::value_variants().iter().copied();
            all.filter(|kind| *kind != Kind::Data).collect()
        };
        Selection {
            kinds: kinds.map_or_else(all, BTreeSet::from_iter),
            undecoded,
        }
    }

    pub(super) fn wants(&self, record: &Record<'_>, reads: Reads) -> bool {
        // Who watches everything is told of a call once.
        if reads.exchanges && reads.calls && record.body.is_of_call() {
            return false;
        }
        match Share::of(record) {
            Share::Undecoded => self.undecoded,
            Share::Part(Kind::Llm) => reads.calls,
            Share::Part(kind) => reads.exchanges && self.kinds.contains(&kind),
            Share::Whole(kind) => self.kinds.contains(&kind),
        }
    }
}

/// What an output is told of while it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pub exchanges: bool,
    /// Those to models.
    pub calls: bool,
}

/// For whom a record is.
pub(crate) enum Share {
    /// `data` of a connection that nothing decodes, for who wants no other.
    Undecoded,
    /// Something that is not over, for who reads along.
    Part(Kind),
    Whole(Kind),
}

impl Share {
    pub(crate) fn of(record: &Record<'_>) -> Share {
        let kind = record.body.kind();
        if let Body::Data {
            view: View::Undecoded,
            ..
        } = record.body
        {
            return Share::Undecoded;
        }
        match record.body.is_part() {
            true => Share::Part(kind),
            false => Share::Whole(kind),
        }
    }
}

impl Settings {
    /// What is told while it goes on: exchanges only if events are, without which nobody would be told what the
    /// response was.
    pub fn reads(&self) -> Reads {
        let (output, _) = self.to.output();
        let has = |kind| output == Output::Text && self.selection.kinds.contains(&kind);
        Reads {
            exchanges: has(Kind::Sse),
            calls: has(Kind::Llm),
        }
    }

    pub(super) fn format(&self, target: &Target) -> Format {
        let (output, color) = self.to.output();
        match output {
            Output::Json => Format::Json,
            Output::Text => Format::Text {
                colour: match color {
                    Color::Always => true,
                    Color::Never => false,
                    Color::Auto => target.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
                },
                live: self.reads().exchanges,
            },
        }
    }
}

/// Names are shown with each `stats` and in errors.
const NAME_MAX: usize = 64;

/// By hand, for the words: what is wrong is said with the name of the sink it is in.
impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut table = toml::Table::deserialize(from)?;
        let name = match table.remove("name") {
            None => None,
            Some(toml::Value::String(name)) if is_name(&name) => Some(name),
            Some(_) => {
                let wrong = "sink: `name` is letters, digits and some signs, 64 at most";
                return Err(de::Error::custom(wrong));
            }
        };
        let of = match &name {
            Some(name) => format!("sink `{name}`"),
            None => "sink".to_owned(),
        };
        let wrong = |why: &str| {
            // Where it is inside of the table is lost, and the rest is the first line.
            let why = why.lines().next().unwrap_or_default();
            de::Error::custom(format!("{of}: {why}"))
        };
        let kinds = table.remove("emit").map(config::names_of);
        let kinds = kinds
            .transpose()
            .map_err(|why| wrong(&format!("`emit`: {why}")))?;
        #[cfg_attr(not(any(feature = "otlp", feature = "prometheus")), expect(unused_mut))]
        let mut to: Type = table
            .try_into()
            .map_err(|error: toml::de::Error| wrong(error.message()))?;
        #[cfg(feature = "prometheus")]
        if let Type::Prometheus(page) = &mut to {
            if kinds.is_some() {
                return Err(wrong("`emit`: a page counts, and shows no records"));
            }
            page.name = name.clone().unwrap_or_else(|| page.name.clone());
            return Ok(Settings {
                name,
                selection: Selection::new(Some(deliver::settings::METERED.to_vec())),
                to,
            });
        }
        let selection = Selection::new(kinds);
        #[cfg(feature = "otlp")]
        if let Type::Otlp(otlp) = &mut to {
            otlp.name = name.clone().unwrap_or_else(|| otlp.name.clone());
            otlp.kinds = Kinds::of(&selection.kinds);
            otlp.undecoded = selection.undecoded;
        }
        Ok(Settings {
            name,
            selection,
            to,
        })
    }
}

fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+.:/".contains(&byte);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_part)
}
