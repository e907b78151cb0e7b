//! Amazon Bedrock: `POST /model/ID/converse`, one format for all models, and `POST /model/ID/invoke`, whose bodies are
//! as each family of models has them. Streams of both are messages of an event stream.
//!
//! Source: Amazon Bedrock's API reference, "Converse", "ConverseStream", "InvokeModelWithResponseStream", and its user
//! guide, "Inference request parameters and response fields for foundation models".

use super::{
    ROOM,
    call::{
        Message, Modality, Parameters, Part, Request, Response, Tool, ToolCall, ToolResult, Usage,
        free, text, texts,
    },
    chat::answer,
};
use crate::protocol::{
    eventstream,
    head::Fields,
    json::{self, Read, Text, Value},
};

/// What came of a stream's message: an event under its name, or a piece as the model's family has it.
pub fn piece(message: &eventstream::Message) -> Option<Read> {
    let word = match message.header(":message-type") {
        Some("exception") => message.header(":exception-type"),
        Some("error") => message.header(":error-code"),
        _ => None,
    };
    if let Some(word) = word {
        let pair = |name: &str, value| (name.into(), value);
        let error = Value::Map(vec![pair("type", Value::Text(Text::of(word)))]);
        return Some(Read {
            value: Value::Map(vec![
                pair("type", Value::Text(Text::of("error"))),
                pair("error", error),
            ]),
            is_cut: false,
            is_broken: false,
        });
    }
    let name = message.header(":event-type")?;
    if name == "chunk" {
        let read = json::read_verbatim(&message.payload, ROOM)?;
        let bytes = read.value.get("bytes")?.text()?;
        let bytes = base64_simd::STANDARD.decode_to_vec(&bytes.kept).ok()?;
        return json::read(&bytes, ROOM);
    }
    let read = json::read(&message.payload, ROOM)?;
    Some(Read {
        value: Value::Map(vec![(name.into(), read.value)]),
        ..read
    })
}

/// What the service says of a call besides what its model does: in the last piece of a stream.
pub fn metrics(body: &Value) -> Option<Usage> {
    let counts = body.get("amazon-bedrock-invocationMetrics")?;
    let count = |name| counts.get(name).and_then(Value::count);
    Some(sum(
        count("inputTokenCount"),
        count("outputTokenCount"),
        count("cacheReadInputTokenCount"),
        count("cacheWriteInputTokenCount"),
    ))
}

/// The same, of a response in one piece.
pub fn fields(fields: &Fields) -> Usage {
    let count = |name| str::from_utf8(fields.get(name)?).ok()?.parse().ok();
    sum(
        count("x-amzn-bedrock-input-token-count"),
        count("x-amzn-bedrock-output-token-count"),
        count("x-amzn-bedrock-cache-read-input-token-count"),
        count("x-amzn-bedrock-cache-write-input-token-count"),
    )
}

/// What was read from a cache and written to it is counted apart here.
fn sum(input: Option<u64>, output: Option<u64>, read: Option<u64>, created: Option<u64>) -> Usage {
    let cached = read.unwrap_or(0).saturating_add(created.unwrap_or(0));
    Usage {
        input: input.map(|fresh| fresh.saturating_add(cached)),
        output,
        cache_read: read,
        cache_creation: created,
        reasoning: None,
    }
}

/// Whether messages are as here: blocks have no `type`. Nova has them in bodies of its own, too.
pub fn is_conversation(body: &Value) -> bool {
    let messages = body.get("messages").map_or(&[][..], Value::list);
    let blocks = messages
        .first()
        .and_then(|message| message.get("content"))
        .map_or(&[][..], Value::list);
    let is_typed = |block: &Value| block.get("type").is_some();
    !blocks.is_empty() && !blocks.iter().any(is_typed)
}

pub fn request(body: &Value) -> Request {
    let messages = body.get("messages").map_or(&[][..], Value::list);
    let tools = body
        .at(&["toolConfig", "tools"])
        .map_or(&[][..], Value::list);
    Request {
        model: None,
        parameters: parameters(body),
        instructions: blocks(body.get("system")),
        messages: messages.iter().map(message).collect(),
        tools: tools.iter().filter_map(tool).collect(),
        conversation: None,
        previous: None,
        service_tier: body
            .get("serviceTier")
            .and_then(|tier| self::text(tier, "type")),
    }
}

fn parameters(body: &Value) -> Parameters {
    let of = |name| body.at(&["inferenceConfig", name]);
    let more = |name| body.at(&["additionalModelRequestFields", name]);
    // Nova's own bodies and additional fields have names of their own.
    let max = of("maxTokens").or_else(|| of("max_new_tokens"));
    let top_k = of("topK").or_else(|| more("top_k"));
    Parameters {
        max_tokens: max.and_then(Value::count),
        temperature: of("temperature").and_then(Value::float),
        top_p: of("topP").and_then(Value::float),
        top_k: top_k.and_then(Value::float),
        stop_sequences: texts(of("stopSequences")),
        ..Parameters::default()
    }
}

fn message(value: &Value) -> Message {
    Message {
        role: text(value, "role"),
        parts: blocks(value.get("content")),
        ..Message::default()
    }
}

fn blocks(value: Option<&Value>) -> Vec<Part> {
    let blocks = value.map_or(&[][..], Value::list);
    blocks.iter().filter_map(part).collect()
}

/// A block: what it is is the name of its only member. A point to cache at is no content.
fn part(block: &Value) -> Option<Part> {
    let (name, value) = block
        .members()
        .iter()
        .find(|(_, value)| *value != Value::Null)?;
    let known = match &**name {
        "cachePoint" => return None,
        "text" => value.text().cloned().map(Part::Text),
        "reasoningContent" => value
            .get("reasoningText")
            .and_then(|thought| text(thought, "text"))
            .map(Part::Reasoning),
        "toolUse" => Some(Part::Call(ToolCall {
            id: text(value, "toolUseId"),
            name: text(value, "name"),
            arguments: value.get("input").map(free).unwrap_or_default(),
        })),
        "toolResult" => Some(Part::Result(ToolResult {
            id: text(value, "toolUseId"),
            name: None,
            result: value.get("content").map(result).unwrap_or_default(),
            is_error: value.get("status").and_then(Value::str) == Some("error"),
        })),
        "image" => source(value, Modality::Image),
        "audio" => source(value, Modality::Audio),
        "video" => source(value, Modality::Video),
        "document" => source(value, Modality::Document),
        "guardContent" => value
            .at(&["text", "text"])
            .and_then(Value::text)
            .cloned()
            .map(Part::Text),
        "citationsContent" => value.get("content").map(result).map(Part::Text),
        _ => None,
    };
    Some(known.unwrap_or_else(|| Part::Other {
        kind: Text::of(name),
        size: value.written().kept.len(),
    }))
}

/// Text and JSON of blocks, one behind the other, if there is nothing else.
fn result(content: &Value) -> Text {
    let blocks = content.list();
    let texts = blocks
        .iter()
        .map(|block| block.get("text").or_else(|| block.get("json")).map(free));
    let Some(texts) = texts.collect::<Option<Vec<_>>>() else {
        return content.written();
    };
    let mut all = Text::default();
    texts.iter().for_each(|text| all.append(text, ROOM));
    all
}

fn source(value: &Value, modality: Modality) -> Option<Part> {
    let source = value.get("source")?;
    if let Some(uri) = source.at(&["s3Location", "uri"]) {
        return Some(Part::Uri {
            modality,
            uri: uri.text()?.clone(),
        });
    }
    if let Some(text) = text(source, "text") {
        return Some(Part::Text(text));
    }
    let media = text(value, "format").map(|format| match modality {
        // `pdf`, `csv`, `docx` and so on: what they are is for who reads it.
        Modality::Document => format,
        modality => Text::of(&format!("{}/{}", modality.name(), format.kept)),
    });
    Some(Part::Blob {
        modality,
        media,
        data: text(source, "bytes")?,
    })
}

fn tool(value: &Value) -> Option<Tool> {
    if let Some(system) = value.get("systemTool") {
        return Some(Tool {
            kind: Some(Text::of("systemTool")),
            name: text(system, "name"),
            ..Tool::default()
        });
    }
    let spec = value.get("toolSpec")?;
    Some(Tool {
        kind: Some(Text::of("function")),
        name: text(spec, "name"),
        description: text(spec, "description"),
        parameters: spec.at(&["inputSchema", "json"]).map(Value::written),
    })
}

/// A response in one piece.
pub fn response(body: &Value, response: &mut Response) {
    if let Some(value) = body.at(&["output", "message"]) {
        response.messages.push(Message {
            finish: text(body, "stopReason"),
            ..message(value)
        });
    }
    count(body, response);
    response.is_over = true;
}

/// A piece of a streamed one: `messageStart`, pieces of blocks, `messageStop`, `metadata`.
pub fn event(body: &Value, response: &mut Response) {
    // A model's own stream has what the service says behind it, in the same piece.
    let Some((name, value)) = body.members().first() else {
        return;
    };
    if let Some(error) = body.at(&["error", "type"]) {
        response.error = error.text().cloned();
        return;
    }
    if &**name == "metadata" {
        count(value, response);
        response.is_over = true;
    }
    let names = [
        "messageStart",
        "contentBlockStart",
        "contentBlockDelta",
        "messageStop",
    ];
    if !names.contains(&&**name) {
        return;
    }
    let Some(answer) = answer(response, 0) else {
        return;
    };
    match &**name {
        "messageStart" => answer.role = text(value, "role").or(answer.role.take()),
        "messageStop" => answer.finish = text(value, "stopReason"),
        "contentBlockStart" => {
            if let Some(part) = value.get("start").and_then(part) {
                answer.push(part);
            }
        }
        _ => {
            if let Some(delta) = value.get("delta") {
                add(delta, answer);
            }
        }
    }
}

/// Blocks come one behind the other: what is told is of the last.
fn add(delta: &Value, answer: &mut Message) {
    if let Some(more) = text(delta, "text").filter(|more| !more.is_empty()) {
        answer.append(Part::Text, &more, ROOM);
    }
    let thought = delta
        .get("reasoningContent")
        .and_then(|thought| text(thought, "text"));
    if let Some(more) = thought {
        answer.append(Part::Reasoning, &more, ROOM);
    }
    let Some(more) = delta.at(&["toolUse", "input"]).and_then(Value::text) else {
        return;
    };
    // One whose beginning was not seen.
    if !matches!(answer.parts.last(), Some(Part::Call(_)))
        && !answer.push(Part::Call(ToolCall::default()))
    {
        return;
    }
    if let Some(Part::Call(call)) = answer.parts.last_mut() {
        call.arguments.append(more, ROOM);
    }
}

fn count(body: &Value, response: &mut Response) {
    if let Some(counts) = body.get("usage") {
        let count = |name| counts.get(name).and_then(Value::count);
        response.usage.update(sum(
            count("inputTokens"),
            count("outputTokens"),
            count("cacheReadInputTokens"),
            count("cacheWriteInputTokens"),
        ));
    }
    if let Some(tier) = body.get("serviceTier") {
        response.service_tier = text(tier, "type").or(response.service_tier.take());
    }
}

/// What models of most families are given: `prompt`, Titan's `inputText`, Cohere's `texts`.
pub mod invoke {
    use super::*;

    pub fn is_request(body: &Value) -> bool {
        let names = ["prompt", "inputText", "texts", "inputImage"];
        names.iter().any(|name| body.get(name).is_some())
    }

    pub fn request(body: &Value) -> Request {
        let prompts = ["prompt", "inputText", "texts"];
        let prompts = prompts.iter().flat_map(|name| texts(body.get(name)));
        let user = |text| Message {
            parts: vec![Part::Text(text)],
            ..Message::of("user")
        };
        let image = text(body, "inputImage").map(|data| Message {
            parts: vec![Part::Blob {
                modality: Modality::Image,
                media: None,
                data,
            }],
            ..Message::of("user")
        });
        Request {
            parameters: parameters(body),
            messages: prompts.map(user).chain(image).collect(),
            ..Request::default()
        }
    }

    fn parameters(body: &Value) -> Parameters {
        let body = body.get("textGenerationConfig").unwrap_or(body);
        let first = |names: &[&str]| names.iter().find_map(|name| body.get(name));
        let float = |names| first(names).and_then(Value::float);
        let count = |names| first(names).and_then(Value::count);
        Parameters {
            max_tokens: count(&[
                "max_tokens",
                "max_gen_len",
                "maxTokenCount",
                "max_tokens_to_sample",
            ]),
            temperature: float(&["temperature"]),
            top_p: float(&["top_p", "topP", "p"]),
            top_k: float(&["top_k", "k"]),
            seed: count(&["seed"]),
            stop_sequences: texts(first(&["stop", "stopSequences", "stop_sequences"])),
            dimensions: count(&["dimensions"]),
            ..Parameters::default()
        }
    }

    /// A response in one piece.
    pub fn response(body: &Value, response: &mut Response) {
        event(body, response);
        response.is_over = true;
    }

    /// A piece of a streamed one, which has the same members.
    pub fn event(body: &Value, response: &mut Response) {
        if let Some(error) = body.at(&["error", "type"]) {
            response.error = error.text().cloned();
            return;
        }
        let lists = ["results", "outputs", "generations", "choices"];
        let items = lists.iter().find_map(|name| body.get(name));
        let items = match items.map(Value::list) {
            Some(items) if !items.is_empty() => items,
            _ => std::slice::from_ref(body),
        };
        for (index, item) in items.iter().enumerate() {
            let first = |names: &[&str]| names.iter().find_map(|name| text(item, name));
            let more = first(&["outputText", "text", "generation", "completion"]);
            let finish = first(&["completionReason", "stop_reason", "finish_reason"]);
            if more.is_none() && finish.is_none() {
                continue;
            }
            let Some(answer) = answer(response, index as u64) else {
                break;
            };
            if let Some(more) = more.filter(|more| !more.is_empty()) {
                answer.append(Part::Text, &more, ROOM);
            }
            answer.finish = finish.or(answer.finish.take());
        }
        let first = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| body.get(name).and_then(Value::count))
        };
        let counts = items
            .iter()
            .filter_map(|item| item.get("tokenCount")?.count());
        response.usage.update(Usage {
            input: first(&["prompt_token_count", "inputTextTokenCount"]),
            output: first(&["generation_token_count", "totalOutputTextTokenCount"])
                .or_else(|| counts.reduce(u64::saturating_add)),
            ..Usage::default()
        });
        response.id = text(body, "id").or(response.id.take());
    }
}
