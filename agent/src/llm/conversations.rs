//! Mistral's conversations: `POST …/v1/conversations`, `…/conversations/ID` and `…/conversations/ID/restart`.
//!
//! Source: Mistral's API reference, "Conversations" (beta).

use super::{
    ROOM,
    call::{Message, Part, Request, Response, ToolCall, ToolResult, Usage, free, other, text},
    chat::{self, answer},
};
use crate::protocol::json::{Text, Value};

/// Whether a path leads here.
pub fn is_path(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let (last, before) = (parts.next(), parts.next());
    let second = match last {
        Some("restart") => parts.next(),
        Some("conversations") => last,
        _ => before,
    };
    second == Some("conversations")
}

/// Others have conversations, too, and no `inputs`.
pub fn is_request(body: &Value) -> bool {
    body.get("inputs").is_some()
}

pub fn request(body: &Value) -> Request {
    let messages = match body.get("inputs") {
        Some(Value::Text(text)) => vec![Message {
            parts: vec![Part::Text(text.clone())],
            ..Message::of("user")
        }],
        Some(inputs) => inputs.list().iter().map(entry).collect(),
        None => Vec::new(),
    };
    let mut parameters = body
        .get("completion_args")
        .map(chat::parameters)
        .unwrap_or_default();
    parameters.stream = body.get("stream").and_then(Value::bool);
    Request {
        model: text(body, "model"),
        parameters,
        instructions: text(body, "instructions")
            .map(Part::Text)
            .into_iter()
            .collect(),
        messages,
        tools: body.get("tools").map_or_else(Vec::new, chat::tools),
        ..Request::default()
    }
}

/// What was said, called or found out.
fn entry(value: &Value) -> Message {
    let role = match value.get("type").and_then(Value::str) {
        Some("function.result") => "tool",
        Some("message.input") | None => "user",
        _ => "assistant",
    };
    Message {
        role: text(value, "role").or_else(|| Some(Text::of(role))),
        parts: parts(value),
        ..Message::default()
    }
}

fn parts(value: &Value) -> Vec<Part> {
    match value.get("type").and_then(Value::str) {
        Some("function.result") => vec![Part::Result(ToolResult {
            id: text(value, "tool_call_id"),
            result: value.get("result").map(free).unwrap_or_default(),
            ..ToolResult::default()
        })],
        Some("function.call" | "tool.execution") => vec![Part::Call(call(value))],
        Some("message.input" | "message.output") | None => content(value),
        Some(_) => vec![other(value)],
    }
}

/// Text, a part, or a list of parts.
fn content(value: &Value) -> Vec<Part> {
    match value.get("content") {
        Some(Value::Text(text)) => vec![Part::Text(text.clone())],
        Some(Value::List(parts)) => parts.iter().map(chat::part).collect(),
        Some(part) => vec![chat::part(part)],
        None => Vec::new(),
    }
}

/// A function of the client, or a tool that the server runs.
fn call(value: &Value) -> ToolCall {
    ToolCall {
        id: text(value, "tool_call_id").or_else(|| text(value, "id")),
        name: text(value, "name"),
        arguments: value.get("arguments").map(free).unwrap_or_default(),
    }
}

/// A response in one piece.
pub fn response(body: &Value, response: &mut Response) {
    common(body, response);
    let outputs = body.get("outputs").map_or(&[][..], Value::list);
    if !outputs.is_empty() {
        response.messages.push(Message {
            parts: outputs.iter().flat_map(parts).collect(),
            ..Message::of("assistant")
        });
    }
    if let Some(model) = outputs.iter().find_map(|output| text(output, "model")) {
        response.model = Some(model);
    }
    if let Some(value) = body.get("error") {
        response.error = Some(chat::error(value));
    }
    response.is_over = true;
}

/// A piece of a streamed one: `conversation.response.started`, pieces of what is said and called, `…done`.
pub fn event(body: &Value, response: &mut Response) {
    let kind = body.get("type").and_then(Value::str).unwrap_or_default();
    common(body, response);
    match kind {
        "conversation.response.done" => response.is_over = true,
        "conversation.response.error" => response.error = body.get("code").map(free),
        "message.output.delta"
        | "function.call.delta"
        | "tool.execution.started"
        | "tool.execution.delta" => {
            if let Some(answer) = answer(response, 0) {
                add(body, kind, answer);
            }
        }
        _ => {}
    }
}

fn add(body: &Value, kind: &str, answer: &mut Message) {
    if kind == "message.output.delta" {
        let parts = content(body).into_iter();
        return parts.for_each(|part| answer.add(part, ROOM));
    }
    // All pieces of a call have its id.
    let piece = call(body);
    let known = answer.parts.iter_mut().find_map(|part| match part {
        Part::Call(call) if call.id == piece.id => Some(call),
        _ => None,
    });
    match known {
        Some(call) => call.arguments.append(&piece.arguments, ROOM),
        None => {
            answer.push(Part::Call(piece));
        }
    }
}

fn common(body: &Value, response: &mut Response) {
    if let Some(id) = text(body, "conversation_id") {
        response.conversation = Some(id);
    }
    if let Some(model) = text(body, "model") {
        response.model = Some(model);
    }
    let Some(counts) = body.get("usage") else {
        return;
    };
    let count = |name| counts.get(name).and_then(Value::count);
    // What tools of the server bring goes in, and is counted apart.
    let brought = count("connector_tokens").unwrap_or(0);
    response.usage.update(Usage {
        input: count("prompt_tokens").map(|told| told.saturating_add(brought)),
        output: count("completion_tokens"),
        ..Usage::default()
    });
}
