//! Calls of MCP → what records may show of them: everything goes through the redactor here.
//!
//! With `--content none` there is what was called and what became of it, and nothing of what was said.

use super::{call::Call, message::Outcome};
use crate::{
    http::Teller,
    plaintext::Plaintext,
    protocol::{
        Side,
        json::{Blob, Text, Value},
    },
    record::Mcp,
    redact::{Clear, OwnedContent, Policy},
};

/// Longest name, id or address that is told.
const WORD_MAX: usize = 1024;

impl Teller<'_> {
    /// `exchange`: in which it ended.
    pub fn mcp(&self, call: &Call, exchange: u64) -> Mcp {
        let method = call.method.as_ref().map(|method| method.kept.as_str());
        let is_tool = method == Some("tools/call");
        let named = |wanted: bool, name: &str| {
            let text = wanted.then(|| call.param(name)).flatten();
            text.map(|text| self.called(&text.kept))
        };
        let is_prompt = method == Some("prompts/get");
        let is_resource = method.is_some_and(|method| {
            method.starts_with("resources/") || method == "notifications/resources/updated"
        });
        let (mut arguments, mut params) = (None, call.params.as_ref().map(shown));
        if is_tool {
            let value = call
                .params
                .as_ref()
                .and_then(|params| params.get("arguments"));
            arguments = value.map(shown);
            params = call.params.as_ref().and_then(rest);
        }
        let content = |text: &Text| self.said(text);
        let (mut result, mut code, mut message, mut data) = (None, None, None, None);
        match &call.outcome {
            Some(Outcome::Result(value)) => result = content(&shown(value)),
            Some(Outcome::Error {
                code: number,
                message: text,
                data: value,
            }) => {
                code = number.as_ref().map(|code| self.called(code));
                message = text.as_ref().and_then(content);
                data = value.as_ref().and_then(|value| content(&shown(value)));
            }
            None => {}
        }
        // What was waited for: an answer, or the response to a notification.
        let is_answered = call.ended > call.began || call.outcome.is_some();
        let seconds = call.ended.saturating_sub(call.began) as f64 / 1e9;
        Mcp {
            exchange,
            url: call
                .head
                .as_ref()
                .map(|head| self.url(head))
                .unwrap_or_default(),
            initiator: match call.from {
                Side::Request => "client",
                Side::Response => "server",
            },
            method: method.map(|method| self.called(method)),
            id: call.id.as_ref().map(|id| match id {
                Value::Text(text) => self.called(&text.kept),
                id => self.called(&id.written().kept),
            }),
            session: call.session.as_ref().and_then(|session| {
                let (name, id) = session.id.as_ref()?;
                Some(self.redactor.header(name, id))
            }),
            version: version(call).map(|version| self.called(version)),
            traceparent: self.traceparent(call),
            is_tool,
            tool: named(is_tool, "name"),
            prompt: named(is_prompt, "name"),
            resource: named(is_resource, "uri").map(|uri| self.address(uri)),
            arguments: arguments.as_ref().and_then(content),
            params: params.as_ref().and_then(content),
            result,
            error: self.error(call),
            code,
            message,
            data,
            began: self.wall(call.began),
            ended: self.wall(call.ended),
            duration: is_answered.then_some(seconds),
            missing: call.missing.names().collect(),
        }
    }

    /// In its parameters, as the head of HTTP has it: that may be one of several messages.
    fn traceparent(&self, call: &Call) -> Option<Clear> {
        const NAME: &str = "traceparent";
        let parent = call.params.as_ref()?.at(&["_meta", NAME])?.str()?;
        let is_told = self.policy != Policy::None && parent.len() <= WORD_MAX;
        is_told.then(|| self.redactor.header(NAME, parent))
    }

    /// With `--content none` without what is behind the question mark.
    fn address(&self, uri: Clear) -> Clear {
        match (self.policy, uri.find(['?', '#'])) {
            (Policy::None, Some(at)) => uri.part(..at),
            _ => uri,
        }
    }

    /// By OpenTelemetry's conventions: the code of an error, `tool_error`, else the status of HTTP.
    fn error(&self, call: &Call) -> Option<Clear> {
        match &call.outcome {
            Some(Outcome::Error { code, .. }) => {
                let code = code.as_ref().map(|code| self.called(code));
                Some(code.unwrap_or(Clear::ours("_OTHER")))
            }
            Some(Outcome::Result(value)) => {
                let is_error = value.get("isError").and_then(Value::bool);
                (is_error == Some(true)).then(|| Clear::ours("tool_error"))
            }
            None => call.status.map(|status| self.called(&status.to_string())),
        }
    }

    /// `None` if nothing may be told of it.
    fn said(&self, text: &Text) -> Option<OwnedContent> {
        (self.policy != Policy::None).then(|| {
            let bytes = Plaintext::new(text.kept.as_bytes());
            self.redactor.whole(bytes, &[], text.is_cut)
        })
    }

    fn called(&self, text: &str) -> Clear {
        let end = text.floor_char_boundary(WORD_MAX);
        self.redactor.string(&text[..end])
    }
}

/// Which version of the protocol: as the two agreed on, as the head says, or as the request itself does.
fn version(call: &Call) -> Option<&str> {
    let result = match &call.outcome {
        Some(Outcome::Result(result)) if call.has_method("initialize") => Some(result),
        _ => None,
    };
    let agreed = result.and_then(|result| result.get("protocolVersion")?.str());
    let headed = call.version.as_ref().map(|version| version.kept.as_str());
    let params = call.params.as_ref();
    agreed
        .or(headed)
        .or_else(|| params?.get("protocolVersion")?.str())
        .or_else(|| {
            params?
                .at(&["_meta", "io.modelcontextprotocol/protocolVersion"])?
                .str()
        })
}

/// What a call of a tool has besides its arguments, if anything.
fn rest(params: &Value) -> Option<Text> {
    const TOLD: [&str; 3] = ["name", "arguments", "_meta"];
    let members = params.members().iter();
    let members: Vec<_> = members
        .filter(|(name, _)| !TOLD.contains(&&**name))
        .cloned()
        .collect();
    (!members.is_empty()).then(|| shown(&Value::Map(members)))
}

/// As JSON. Instead of an image or a file there is its size and its hash.
fn shown(value: &Value) -> Text {
    match has_blob(value) {
        true => without_blobs(value).written(),
        false => value.written(),
    }
}

fn has_blob(value: &Value) -> bool {
    match value {
        Value::Text(text) => text.blob.is_some(),
        Value::List(values) => values.iter().any(has_blob),
        Value::Map(members) => members.iter().any(|(_, value)| has_blob(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn without_blobs(value: &Value) -> Value {
    match value {
        Value::Text(text) => text.blob.as_deref().map_or_else(|| value.clone(), told),
        Value::List(values) => Value::List(values.iter().map(without_blobs).collect()),
        Value::Map(members) => {
            let member = |(name, value): &(Box<str>, Value)| (name.clone(), without_blobs(value));
            Value::Map(members.iter().map(member).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn told(blob: &Blob) -> Value {
    let hash: String = blob
        .sha256
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Value::Map(vec![
        ("size".into(), Value::Number(blob.size.to_string().into())),
        ("sha256".into(), Value::Text(Text::of(&hash))),
    ])
}
