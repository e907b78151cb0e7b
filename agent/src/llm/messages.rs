//! Anthropic's Messages API: `POST …/v1/messages`. Bedrock and Vertex carry the same bodies under other paths.
//!
//! Source: Anthropic's API reference, "Messages" and "Streaming messages".

use super::{
    ROOM,
    call::{
        Message, Modality, PARTS_MAX, Parameters, Part, Request, Response, Tool, ToolCall,
        ToolResult, Usage, free, other, text, texts,
    },
    chat::error,
};
use crate::protocol::json::{Text, Value};

pub fn request(body: &Value) -> Request {
    let float = |name| body.get(name).and_then(Value::float);
    Request {
        model: text(body, "model"),
        parameters: Parameters {
            stream: body.get("stream").and_then(Value::bool),
            max_tokens: body.get("max_tokens").and_then(Value::count),
            temperature: float("temperature"),
            top_p: float("top_p"),
            top_k: float("top_k"),
            stop_sequences: texts(body.get("stop_sequences")),
            ..Parameters::default()
        },
        instructions: body.get("system").map_or_else(Vec::new, parts),
        messages: body
            .get("messages")
            .map_or(&[][..], Value::list)
            .iter()
            .map(message)
            .collect(),
        tools: body
            .get("tools")
            .map_or(&[][..], Value::list)
            .iter()
            .map(tool)
            .collect(),
        conversation: None,
        previous: None,
        service_tier: text(body, "service_tier"),
    }
}

fn message(value: &Value) -> Message {
    Message {
        role: text(value, "role"),
        parts: value.get("content").map_or_else(Vec::new, parts),
        ..Message::default()
    }
}

/// Text, or blocks of content.
fn parts(content: &Value) -> Vec<Part> {
    match content {
        Value::Text(text) => vec![Part::Text(text.clone())],
        content => content.list().iter().map(part).collect(),
    }
}

fn part(block: &Value) -> Part {
    let kind = block.get("type").and_then(Value::str).unwrap_or_default();
    let known = match kind {
        "text" => text(block, "text").map(Part::Text),
        "thinking" => text(block, "thinking").map(Part::Reasoning),
        "tool_use" | "server_tool_use" | "mcp_tool_use" => Some(Part::Call(ToolCall {
            id: text(block, "id"),
            name: text(block, "name"),
            arguments: block.get("input").map(free).unwrap_or_default(),
        })),
        // `tool_result`, and those of tools that the server runs: `web_search_tool_result` and so on.
        kind if kind.ends_with("tool_result") => Some(Part::Result(ToolResult {
            id: text(block, "tool_use_id"),
            name: None,
            result: block.get("content").map(result).unwrap_or_default(),
            is_error: block.get("is_error").and_then(Value::bool) == Some(true),
        })),
        "image" => source(block, Modality::Image),
        "document" => source(block, Modality::Document),
        _ => None,
    };
    known.unwrap_or_else(|| other(block))
}

/// What a tool said: its text, if it is nothing else.
fn result(content: &Value) -> Text {
    let blocks = content.list();
    let is_text = |block: &Value| block.get("type").and_then(Value::str) == Some("text");
    if blocks.is_empty() || !blocks.iter().all(is_text) {
        return free(content);
    }
    let mut all = Text::default();
    let texts = blocks.iter().filter_map(|block| block.get("text")?.text());
    texts.for_each(|text| all.append(text, ROOM));
    all
}

fn source(block: &Value, modality: Modality) -> Option<Part> {
    let source = block.get("source")?;
    match source.get("type").and_then(Value::str)? {
        "base64" => Some(Part::Blob {
            modality,
            media: text(source, "media_type"),
            data: text(source, "data")?,
        }),
        "url" => Some(Part::Uri {
            modality,
            uri: text(source, "url")?,
        }),
        "file" => Some(Part::File {
            modality,
            id: text(source, "file_id")?,
        }),
        "text" => text(source, "data").map(Part::Text),
        _ => None,
    }
}

/// Tools that the server knows have a type and no schema.
fn tool(value: &Value) -> Tool {
    Tool {
        kind: Some(text(value, "type").unwrap_or_else(|| Text::of("function"))),
        name: text(value, "name"),
        description: text(value, "description"),
        parameters: value.get("input_schema").map(Value::written),
    }
}

/// A response in one piece.
pub fn response(body: &Value, response: &mut Response) {
    if let Some(value) = body.get("error") {
        response.error = Some(error(value));
        return;
    }
    begin(body, response);
    response.is_over = true;
}

fn begin(value: &Value, response: &mut Response) {
    response.id = text(value, "id");
    response.model = text(value, "model");
    if let Some(counts) = value.get("usage") {
        count(counts, response);
    }
    response.messages.push(Message {
        finish: text(value, "stop_reason"),
        ..message(value)
    });
}

/// A piece of a streamed one: `message_start`, then blocks, each with its pieces, `message_delta`, `message_stop`.
pub fn event(body: &Value, response: &mut Response) {
    match body.get("type").and_then(Value::str).unwrap_or_default() {
        "message_start" => {
            if let Some(message) = body.get("message") {
                response.messages.clear();
                begin(message, response);
            }
        }
        "content_block_start" => {
            if let Some(block) = body.get("content_block") {
                answer(response).push(begun(block));
            }
        }
        "content_block_delta" => {
            let index = body.get("index").and_then(Value::count).unwrap_or(u64::MAX);
            if let Some(delta) = body.get("delta") {
                add(delta, index, answer(response));
            }
        }
        "message_delta" => {
            if let Some(reason) = body
                .get("delta")
                .and_then(|delta| text(delta, "stop_reason"))
            {
                answer(response).finish = Some(reason);
            }
            if let Some(counts) = body.get("usage") {
                count(counts, response);
            }
        }
        "message_stop" => response.is_over = true,
        "error" => response.error = body.get("error").map(error),
        // `ping`, and whatever comes next: "new event types may be added".
        _ => {}
    }
}

/// Blocks begin empty; the arguments of a tool as `{}`, which is not a part of what follows.
fn begun(block: &Value) -> Part {
    match part(block) {
        Part::Call(call) if &*call.arguments.kept == "{}" => Part::Call(ToolCall {
            arguments: Text::default(),
            ..call
        }),
        part => part,
    }
}

fn answer(response: &mut Response) -> &mut Message {
    if response.messages.is_empty() {
        response.messages.push(Message::of("assistant"));
    }
    &mut response.messages[0]
}

/// Blocks come one behind the other: a piece is of the last, or of one whose beginning was not seen.
fn add(delta: &Value, index: u64, answer: &mut Message) {
    // There was no room for its block.
    if answer.parts.len() >= PARTS_MAX && index >= PARTS_MAX as u64 {
        return;
    }
    let piece = |name| text(delta, name).unwrap_or_default();
    match delta.get("type").and_then(Value::str).unwrap_or_default() {
        "text_delta" => answer.append(Part::Text, &piece("text"), ROOM),
        "thinking_delta" => answer.append(Part::Reasoning, &piece("thinking"), ROOM),
        "input_json_delta" => {
            if !matches!(answer.parts.last(), Some(Part::Call(_))) {
                answer.push(Part::Call(ToolCall::default()));
            }
            if let Some(Part::Call(call)) = answer.parts.last_mut() {
                call.arguments.append(&piece("partial_json"), ROOM);
            }
        }
        // Signatures of thoughts, citations.
        _ => {}
    }
}

/// What was read from a cache and written to it is counted apart here.
fn count(value: &Value, response: &mut Response) {
    let count = |name| value.get(name).and_then(Value::count);
    let usage = &mut response.usage;
    let (read, created) = (
        count("cache_read_input_tokens"),
        count("cache_creation_input_tokens"),
    );
    let fresh = count("input_tokens").map(|fresh| {
        let cached = [read.or(usage.cache_read), created.or(usage.cache_creation)];
        let cached = cached.into_iter().flatten();
        cached.fold(fresh, u64::saturating_add)
    });
    usage.update(Usage {
        input: fresh,
        output: count("output_tokens"),
        cache_read: read,
        cache_creation: created,
        reasoning: None,
    });
    if let Some(tier) = text(value, "service_tier") {
        response.service_tier = Some(tier);
    }
}
