//! Calls to models, for people.

use agent_ebpf::Direction;

use super::{BOLD, CYAN, DIM, Encoder, RED, YELLOW, print, size};
use crate::{
    escape,
    record::{Llm, LlmMessage, LlmPart, Record, Role},
    redact::{OwnedContent, Shown},
};

/// Most of a part that is shown: JSON has all of it.
const PART_BYTES: usize = 4 << 10;
const PART_LINES: usize = 24;

impl Encoder {
    /// `openai gpt-5 chat, 12 → 34 tokens (8 cached), 0.0012 USD, stop, in 1.2 s`, and as a tree what was said since the
    /// model spoke last, and what it says to that.
    pub(super) fn llm(&self, record: &Record<'_>, llm: &Llm, out: &mut Vec<u8>) {
        let direction = match record.connection.and_then(|connection| connection.role) {
            Some(Role::Server) => Direction::Received,
            Some(Role::Client) | None => Direction::Sent,
        };
        self.who(record, record.time, Some(llm.exchange), direction, out);
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
        let is_answer = |message: &LlmMessage| message.role.as_deref() == Some("assistant");
        let new = llm.input.iter().rposition(is_answer).map_or(0, |at| at + 1);
        let turns = llm.input[new..].iter().chain(&llm.output);
        let parts = turns.flat_map(|turn| turn.parts.iter().map(move |part| (turn, part)));
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

/// Money, with digits that say something: a call costs a fraction of a cent.
fn amount(amount: f64) -> String {
    let digits = match amount {
        amount if amount >= 1.0 => 2,
        amount if amount >= 0.01 => 4,
        _ => 6,
    };
    format!("{amount:.digits$}")
}
