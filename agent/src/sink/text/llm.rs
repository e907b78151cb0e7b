//! Calls to models, for people.

use agent_ebpf::Direction;

use super::{BOLD, CYAN, DIM, Encoder, RED, YELLOW, print};
use crate::{
    amount::size,
    escape,
    record::{Llm, LlmMessage, LlmPart, Record, Role, Words},
    redact::{OwnedContent, Shown},
};

/// Most of a part that is shown: JSON has all of it.
const PART_BYTES: usize = 4 << 10;
const PART_LINES: usize = 24;

/// Whose words came last, and what they are.
#[derive(PartialEq, Eq)]
pub(super) struct Speaking {
    connection: Option<u64>,
    exchange: u64,
    kind: &'static str,
}

impl Encoder {
    /// What a model says, as it comes: on the same line as long as nobody else is told of.
    pub(super) fn words(&mut self, record: &Record<'_>, words: &Words, out: &mut Vec<u8>) {
        let now = Speaking {
            connection: record.connection.map(|connection| connection.number),
            exchange: words.exchange,
            kind: words.kind,
        };
        if self.speaking.as_ref() != Some(&now) {
            if self.speaking.is_some() {
                out.push(b'\n');
            }
            let is_server = record.connection.and_then(|it| it.role) == Some(Role::Server);
            let direction = match is_server {
                true => Direction::Sent,
                false => Direction::Received,
            };
            self.who(record, record.time, Some(words.exchange), direction, out);
            self.painted(BOLD, out, |out| out.extend_from_slice(b"assistant "));
            if words.kind != "text" {
                self.painted(DIM, out, |out| print(out, format_args!("{} ", words.kind)));
            }
        }
        for (number, line) in words.text.split('\n').enumerate() {
            if number > 0 {
                self.painted(DIM, out, |out| out.extend_from_slice("\n  │ ".as_bytes()));
            }
            escape::visible(line, out);
        }
        self.speaking = Some(now);
    }

    /// `openai gpt-5 chat, 12 → 34 tokens (8 cached), 0.0012 USD, stop, in 1.2 s`, and as a tree what was said since the
    /// model spoke last, and what it says to that. Of one that goes on: what was said; when it is over, what was not
    /// told on the way.
    pub(super) fn llm(&self, record: &Record<'_>, llm: &Llm, out: &mut Vec<u8>) {
        let is_server = record.connection.and_then(|it| it.role) == Some(Role::Server);
        let direction = match is_server == llm.told.is_some() {
            true => Direction::Sent,
            false => Direction::Received,
        };
        let time = if llm.told.is_some() {
            llm.ended
        } else {
            record.time
        };
        self.who(record, time, Some(llm.exchange), direction, out);
        self.painted(DIM, out, |out| {
            print(out, format_args!("{} ", llm.provider))
        });
        if let Some(model) = llm.response_model.as_ref().or(llm.model.as_ref()) {
            self.painted(BOLD, out, |out| escape::visible(model, out));
            out.push(b' ');
        }
        print(out, format_args!("{}", llm.operation));
        if llm.place.turn > 1 {
            self.painted(DIM, out, |out| {
                print(out, format_args!(", turn {}", llm.place.turn));
            });
        }
        if llm.is_open {
            self.painted(DIM, out, |out| out.extend_from_slice(b", goes on\n"));
            return self.turns(asked(llm).iter().map(all), out);
        }
        let usage = &llm.usage;
        if usage.input.is_some() || usage.output.is_some() {
            let count = |count: Option<u64>| count.map_or("?".into(), |count| count.to_string());
            self.painted(CYAN, out, |out| {
                print(
                    out,
                    format_args!(", {} → {} tokens", count(usage.input), count(usage.output)),
                );
            });
            if let Some(cached) = usage.cache_read.filter(|count| *count > 0) {
                self.painted(DIM, out, |out| {
                    print(out, format_args!(" ({cached} cached)"))
                });
            }
        }
        if let Some(cost) = llm.cost {
            print(
                out,
                format_args!(", {} {}", amount(cost.amount), cost.currency),
            );
        }
        for reason in &llm.finish_reasons {
            out.extend_from_slice(b", ");
            escape::visible(reason, out);
        }
        if let Some(error) = &llm.error {
            out.extend_from_slice(b", ");
            self.painted(RED, out, |out| escape::visible(error, out));
        }
        print(out, format_args!(", in {:.1} s", llm.duration));
        if !llm.missing.is_empty() {
            self.painted(YELLOW, out, |out| {
                print(out, format_args!(", missing: {}", llm.missing.join(", ")))
            });
        }
        out.push(b'\n');
        let asked = match llm.told {
            Some(count) => llm.input.get(count..).unwrap_or_default(),
            None => asked(llm),
        };
        // Of several answers the first one was read along.
        let (first, others) = llm.output.split_at(llm.output.len().min(1));
        let first = first.iter().map(|turn| (turn, llm.has_streamed));
        let turns = asked.iter().map(all).chain(first);
        self.turns(turns.chain(others.iter().map(all)), out);
    }

    /// Turns, and whether their words were told.
    fn turns<'a>(&self, turns: impl Iterator<Item = (&'a LlmMessage, bool)>, out: &mut Vec<u8>) {
        let parts = turns.flat_map(|(turn, has_streamed)| {
            let is_told = move |part: &&LlmPart| has_streamed && matches!(part, LlmPart::Text(..));
            let parts = turn.parts.iter().filter(move |part| !is_told(part));
            parts.map(move |part| (turn, part))
        });
        let mut parts = parts.peekable();
        while let Some((turn, part)) = parts.next() {
            self.part(turn, part, parts.peek().is_none(), out);
        }
    }

    /// A branch of the tree.
    fn part(&self, turn: &LlmMessage, part: &LlmPart, is_last: bool, out: &mut Vec<u8>) {
        let (branch, trunk) = match is_last {
            true => ("  └ ", "    "),
            false => ("  ├ ", "  │ "),
        };
        self.painted(DIM, out, |out| out.extend_from_slice(branch.as_bytes()));
        let role = turn.role.as_deref().unwrap_or("?");
        let word = |word: &str, out: &mut Vec<u8>| {
            self.painted(BOLD, out, |out| escape::visible(word, out));
            out.push(b' ');
        };
        match part {
            LlmPart::Text(kind, content) => {
                word(role, out);
                if *kind != "text" {
                    self.painted(DIM, out, |out| print(out, format_args!("{kind} ")));
                }
                self.told(content, trunk, out);
            }
            LlmPart::Call {
                name, arguments, ..
            } => {
                word(role, out);
                print(out, format_args!("calls "));
                self.painted(CYAN, out, |out| {
                    escape::visible(name.as_deref().unwrap_or("?"), out);
                });
                out.push(b' ');
                self.told(arguments, trunk, out);
            }
            LlmPart::Result {
                id,
                name,
                result,
                is_error,
            } => {
                print(out, format_args!("result of "));
                self.painted(CYAN, out, |out| {
                    escape::visible(name.as_deref().or(id.as_deref()).unwrap_or("?"), out);
                });
                out.push(b' ');
                if *is_error {
                    self.painted(RED, out, |out| out.extend_from_slice(b"error "));
                }
                self.told(result, trunk, out);
            }
            LlmPart::Blob {
                modality,
                media,
                size: bytes,
                ..
            } => {
                word(role, out);
                escape::visible(media.as_deref().unwrap_or(modality), out);
                print(out, format_args!(", {}\n", size(*bytes)));
            }
            LlmPart::Uri { modality, uri } => {
                word(role, out);
                print(out, format_args!("{modality} "));
                escape::visible(uri, out);
                out.push(b'\n');
            }
            LlmPart::File { modality, id } => {
                word(role, out);
                print(out, format_args!("{modality} of id "));
                escape::visible(id, out);
                out.push(b'\n');
            }
            LlmPart::Other { kind, size: bytes } => {
                word(role, out);
                escape::visible(kind, out);
                print(out, format_args!(", {} of JSON\n", size(*bytes)));
            }
        }
    }

    /// Text, whose other lines stand beside the trunk.
    fn told(&self, content: &OwnedContent, trunk: &str, out: &mut Vec<u8>) {
        let text = match content.content().shown() {
            Shown::Text(text, _) => String::from(text).into(),
            Shown::Raw(bytes) => String::from_utf8_lossy(bytes),
            Shown::Nothing | Shown::Encoded => "(withheld)".into(),
        };
        let end = text.floor_char_boundary(PART_BYTES);
        let mut shown = 0;
        for (number, line) in text[..end].lines().take(PART_LINES).enumerate() {
            if number > 0 {
                self.painted(DIM, out, |out| {
                    print(out, format_args!("\n{}", trunk.trim_end()));
                });
                out.extend_from_slice(b"   ");
            }
            escape::visible(line, out);
            shown += line.len() + 1;
        }
        let left = text.len().saturating_sub(shown);
        if left > 0 {
            self.painted(YELLOW, out, |out| {
                print(out, format_args!(" … {} more", size(left as u64)));
            });
        }
        out.push(b'\n');
    }
}

/// None of it was told.
fn all(turn: &LlmMessage) -> (&LlmMessage, bool) {
    (turn, false)
}

/// What was said since the model spoke last.
fn asked(llm: &Llm) -> &[LlmMessage] {
    let is_answer = |message: &LlmMessage| message.role.as_deref() == Some("assistant");
    let new = llm.input.iter().rposition(is_answer).map_or(0, |at| at + 1);
    &llm.input[new..]
}

/// Money, with digits that say something: a call costs a fraction of a cent.
fn amount(amount: f64) -> String {
    let digits = match amount {
        amount if amount >= 1.0 => 2,
        amount if amount >= 0.01 => 4,
        _ => 6,
    };
    format!("{amount:.digits$}")
}
