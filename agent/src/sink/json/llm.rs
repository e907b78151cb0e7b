//! Calls to models, by the names of OpenTelemetry's conventions for generative AI (v1.41).
//!
//! Messages are as its JSON schemas have them, but that of a blob there is its size and hash.

use std::collections::HashSet;

use super::{Object, braces, quoted};
use crate::{
    llm::{
        call::{Durations, Usage},
        price::Cost,
    },
    protocol::json::{self, Value},
    record::{Llm, LlmMessage, LlmParameters, LlmPart, LlmTool},
};

impl Object<'_> {
    /// A call to a model, by the names of OpenTelemetry's conventions for generative AI.
    pub(super) fn llm(&mut self, llm: &Llm) {
        self.url(&llm.url);
        self.object("gen_ai", |member| member.gen_ai(llm));
        if has_own(llm) {
            match llm.owner.split_once('.') {
                Some((first, second)) => {
                    self.object(first, |member| {
                        member.object(second, |member| member.own(llm))
                    });
                }
                None => self.object(llm.owner, |member| member.own(llm)),
            }
        }
        self.number("turn", llm.place.turn);
        if let Some(Cost { amount, currency }) = llm.cost {
            self.object("cost", |member| {
                member.float("amount", amount);
                member.word("currency", currency);
            });
        }
        match &llm.error {
            Some(error) => self.object("error", |member| member.string("type", error)),
            None if llm.missing.contains(&"end") => {
                self.object("error", |member| member.word("type", "incomplete"));
            }
            None => {}
        }
        self.object("timings", |timings| {
            timings.time("request_start", llm.began);
            timings.time("end", llm.ended);
            timings.float("duration", llm.duration);
            if llm.chunks > 0 {
                timings.number("chunks", llm.chunks);
            }
            timings.optional_float("time_per_output_chunk", llm.per_chunk);
        });
        if !llm.missing.is_empty() {
            self.array("missing", &llm.missing, |out, name| quoted(name, out));
        }
    }

    /// What only one API has: by its owner's name, as the conventions have it for OpenAI.
    fn own(&mut self, llm: &Llm) {
        if let Some(api) = llm.api {
            self.object("api", |member| member.word("type", api));
        }
        if let Some(tier) = &llm.request_tier {
            self.object("request", |member| member.string("service_tier", tier));
        }
        if answers_own(llm) {
            let Durations {
                total,
                load,
                prompt_eval,
                eval,
            } = llm.durations;
            self.object("response", |member| {
                member.optional_string("service_tier", llm.response_tier.as_deref());
                member.optional_string("system_fingerprint", llm.fingerprint.as_deref());
                member.optional_number("total_duration", total);
                member.optional_number("load_duration", load);
                member.optional_number("prompt_eval_duration", prompt_eval);
                member.optional_number("eval_duration", eval);
            });
        }
    }

    fn gen_ai(&mut self, llm: &Llm) {
        self.object("operation", |member| member.word("name", llm.operation));
        self.object("provider", |member| member.word("name", llm.provider));
        self.object("request", |member| {
            member.optional_string("model", llm.model.as_deref());
            member.parameters(&llm.parameters);
        });
        self.object("response", |member| {
            member.optional_string("id", llm.response_id.as_deref());
            member.optional_string("model", llm.response_model.as_deref());
            if !llm.finish_reasons.is_empty() {
                member.array("finish_reasons", &llm.finish_reasons, |out, reason| {
                    quoted(reason, out)
                });
            }
            member.optional_float("time_to_first_chunk", llm.first_chunk);
        });
        if let Some(count) = llm.parameters.dimensions {
            self.object("embeddings", |member| {
                member.object("dimension", |member| member.number("count", count));
            });
        }
        let usage = &llm.usage;
        if *usage != Usage::default() {
            self.object("usage", |member| {
                member.optional_number("input_tokens", usage.input);
                member.optional_number("output_tokens", usage.output);
                for (key, of, count) in [
                    ("cache_read", "input_tokens", usage.cache_read),
                    ("cache_creation", "input_tokens", usage.cache_creation),
                    ("reasoning", "output_tokens", usage.reasoning),
                ] {
                    if let Some(count) = count {
                        member.object(key, |member| member.number(of, count));
                    }
                }
            });
        }
        self.object("conversation", |member| match &llm.conversation {
            Some(id) => member.string("id", id),
            None => member.string("id", &format!("{:016x}", llm.place.id)),
        });
        if !llm.instructions.is_empty() {
            self.array("system_instructions", &llm.instructions, part);
        }
        if !llm.tools.is_empty() {
            self.object("tool", |member| {
                member.array("definitions", &llm.tools, tool)
            });
        }
        if !llm.input.is_empty() {
            self.object("input", |member| member.array("messages", &llm.input, turn));
        }
        if !llm.output.is_empty() || llm.output_type.is_some() {
            self.object("output", |member| {
                member.optional_string("type", llm.output_type);
                if !llm.output.is_empty() {
                    member.array("messages", &llm.output, turn);
                }
            });
        }
    }

    fn parameters(&mut self, parameters: &LlmParameters) {
        if let Some(stream) = parameters.stream {
            self.boolean("stream", stream);
        }
        self.optional_number("max_tokens", parameters.max_tokens);
        self.optional_float("temperature", parameters.temperature);
        self.optional_float("top_p", parameters.top_p);
        self.optional_float("top_k", parameters.top_k);
        self.optional_float("frequency_penalty", parameters.frequency_penalty);
        self.optional_float("presence_penalty", parameters.presence_penalty);
        self.optional_number("seed", parameters.seed);
        if let Some(count) = parameters.choices {
            self.object("choice", |member| member.number("count", count));
        }
        for (key, texts) in [
            ("stop_sequences", &parameters.stop_sequences),
            ("encoding_formats", &parameters.encoding_formats),
        ] {
            if !texts.is_empty() {
                self.array(key, texts, |out, text| quoted(text, out));
            }
        }
    }
}

/// Is there anything that only one API has?
fn has_own(llm: &Llm) -> bool {
    llm.api.is_some() || llm.request_tier.is_some() || answers_own(llm)
}

fn answers_own(llm: &Llm) -> bool {
    let words = [&llm.response_tier, &llm.fingerprint];
    words.iter().any(|word| word.is_some()) || llm.durations != Durations::default()
}

fn turn(out: &mut Vec<u8>, message: &LlmMessage) {
    braces(out, |member| {
        member.optional_string("role", message.role.as_deref());
        member.optional_string("name", message.name.as_deref());
        member.array("parts", &message.parts, part);
        member.optional_string("finish_reason", message.finish.as_deref());
    });
}

fn part(out: &mut Vec<u8>, part: &LlmPart) {
    braces(out, |member| match part {
        LlmPart::Text(kind, content) => {
            member.word("type", kind);
            member.content_as("content", content.content());
        }
        LlmPart::Call {
            id,
            name,
            arguments,
        } => {
            member.word("type", "tool_call");
            member.optional_string("id", id.as_deref());
            member.optional_string("name", name.as_deref());
            member.content_as("arguments", arguments.content());
        }
        LlmPart::Result {
            id,
            name,
            result,
            is_error,
        } => {
            member.word("type", "tool_call_response");
            member.optional_string("id", id.as_deref());
            member.optional_string("name", name.as_deref());
            if *is_error {
                member.boolean("is_error", true);
            }
            member.content_as("response", result.content());
        }
        LlmPart::Blob {
            modality,
            media,
            size,
            sha256,
        } => {
            member.word("type", "blob");
            member.word("modality", modality);
            member.optional_string("mime_type", media.as_deref());
            member.number("size", *size);
            if let Some(hash) = sha256 {
                let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                member.string("sha256", &hash);
            }
        }
        LlmPart::Uri { modality, uri } => {
            member.word("type", "uri");
            member.word("modality", modality);
            member.string("uri", uri);
        }
        LlmPart::File { modality, id } => {
            member.word("type", "file");
            member.word("modality", modality);
            member.string("file_id", id);
        }
        LlmPart::Other { kind, size } => {
            member.string("type", kind);
            member.number("size", *size);
        }
    });
}

fn tool(out: &mut Vec<u8>, tool: &LlmTool) {
    braces(out, |member| {
        member.optional_string("type", tool.kind.as_deref());
        member.optional_string("name", tool.name.as_deref());
        let texts = [
            ("description", &tool.description),
            ("parameters", &tool.parameters),
        ];
        member.parts_as(&texts, |key, text| {
            let is_schema = key == "parameters" && tool.is_whole;
            is_schema.then(|| schema(text)).flatten()
        });
    });
}

/// What a schema and its redactions may take as a tree.
const SCHEMA_ROOM: usize = 16 << 20;

/// An object that says what the text says, which redaction may have made something else than JSON.
fn schema(text: &str) -> Option<Value> {
    let value = json::read_verbatim(text.as_bytes(), SCHEMA_ROOM)?.value;
    let mut again = Vec::with_capacity(text.len());
    value.write(&mut again);
    let is_same = again == text.as_bytes() && !has_twins(&value);
    (matches!(value, Value::Map(_)) && is_same).then_some(value)
}

/// Is a name there twice? Some readers refuse all of such a record.
fn has_twins(value: &Value) -> bool {
    let mut names = HashSet::new();
    let mut members = value.members().iter();
    members.any(|(name, value)| !names.insert(name) || has_twins(value))
        || value.list().iter().any(has_twins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plaintext::Plaintext,
        redact::{Key, OwnedContent, Policy, Redactor},
    };

    fn content(text: &str) -> Option<OwnedContent> {
        let redactor = Redactor::new(Policy::Redacted, Key::new([1; 32]));
        Some(redactor.whole(Plaintext::new(text.as_bytes()), &[], false))
    }

    fn told(defined: &LlmTool) -> (String, serde_json::Value) {
        let mut written = Vec::new();
        tool(&mut written, defined);
        let written = String::from_utf8(written).unwrap();
        let value = serde_json::from_str(&written).unwrap();
        (written, value)
    }

    /// A name that is there twice is read by some as its first value, and by some as its last.
    #[test]
    fn redactions_of_both_texts_of_a_tool_are_one_list() {
        let (written, value) = told(&LlmTool {
            kind: None,
            name: None,
            description: content("password=hunter2x"),
            parameters: content("{\"token\":\"Ab1Cd2Ef3Gh4\"}"),
            is_whole: true,
        });
        assert_eq!(written.matches("\"redactions\"").count(), 1, "{written}");
        let of = |at: usize| value["redactions"][at]["of"].as_str();
        assert_eq!(
            (of(0), of(1)),
            (Some("description"), Some("parameters")),
            "{written}"
        );
    }

    /// Of a part nobody can say what it was a part of, and a secret may stand where JSON has no text.
    #[test]
    fn a_schema_is_an_object_if_all_of_it_is_there() {
        let told = |text: &str, is_whole| {
            let (written, value) = told(&LlmTool {
                kind: None,
                name: None,
                description: None,
                parameters: content(text),
                is_whole,
            });
            assert!(!written.contains('\u{202e}'));
            value["parameters"].to_string()
        };
        let schema = r#"{"type":"object","properties":{"a\u202e":{"enum":[1.50,"\"x\u001b",null,true],"default":{}}}}"#;
        let value: serde_json::Value = serde_json::from_str(schema).unwrap();
        let text = schema.replace("\\u202e", "\u{202e}");
        assert_eq!(told(&text, true), value.to_string());
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        assert_eq!(told(&text, false), quoted(&text));
        for other in [
            "true",
            "\"a\"",
            "[1]",
            "{\"a\":1} ",
            "{\"a\":1",
            "{\"a\":01}",
            "{\"a\":[{\"b\":1,\"b\":1}]}",
            "",
        ] {
            assert_eq!(told(other, true), quoted(other), "{other}");
        }
        let hidden = told(r#"{"pin":{"password":"hunter2xyz"}}"#, true);
        assert!(
            hidden.starts_with(r#"{"pin":{"password":"[redacted:"#),
            "{hidden}"
        );
        let hidden = told(r#"{"password":1234567890}"#, true);
        assert!(
            hidden.starts_with(r#""{\"password\":[redacted:"#),
            "{hidden}"
        );
    }
}
