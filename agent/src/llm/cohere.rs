//! Cohere's API: `POST …/v2/chat` and `…/v1/chat`, whose streams differ, and `…/embed` of both. Bedrock has the bodies
//! of the first version, and errors of its own in their streams.
//!
//! Source: Cohere's API reference, "Chat", "Chat with streaming" and "Embed", and the types of its SDK for Python.

use super::{
    ROOM,
    call::{
        Message, Modality, Parameters, Part, Request, Response, Tool, ToolCall, ToolResult, Usage,
        free, text, texts,
    },
    chat::{self, address, tool_call},
};
use crate::protocol::json::{Text, Value};

/// Most parts of an answer that are told apart.
const MANY: usize = 128;

pub fn request(body: &Value) -> Request {
    let is_second = body.get("messages").is_some();
    Request {
        model: text(body, "model"),
        parameters: parameters(body),
        instructions: text(body, "preamble").map(Part::Text).into_iter().collect(),
        messages: match is_second {
            true => list(body, "messages").iter().map(message).collect(),
            false => turns(body),
        }
        .into_iter()
        .chain(list(body, "documents").iter().map(document))
        .collect(),
        tools: match is_second {
            true => body.get("tools").map_or_else(Vec::new, chat::tools),
            false => list(body, "tools").iter().map(tool).collect(),
        },
        conversation: text(body, "conversation_id"),
        ..Request::default()
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).map_or(&[], Value::list)
}

fn parameters(body: &Value) -> Parameters {
    let float = |name| body.get(name).and_then(Value::float);
    let count = |name| body.get(name).and_then(Value::count);
    Parameters {
        stream: body.get("stream").and_then(Value::bool),
        max_tokens: count("max_tokens"),
        temperature: float("temperature"),
        top_p: float("p"),
        top_k: float("k"),
        frequency_penalty: float("frequency_penalty"),
        presence_penalty: float("presence_penalty"),
        seed: count("seed"),
        stop_sequences: texts(body.get("stop_sequences")),
        encoding_formats: texts(body.get("embedding_types")),
        dimensions: count("output_dimension"),
        output: match body.at(&["response_format", "type"]).and_then(Value::str) {
            Some("json_object") => Some("json"),
            Some("text") => Some("text"),
            _ => None,
        },
        ..Parameters::default()
    }
}

/// As OpenAI has it, with a plan before the calls of tools.
fn message(value: &Value) -> Message {
    let mut message = chat::message(value);
    if let Some(plan) = text(value, "tool_plan").filter(|plan| !plan.is_empty()) {
        message.parts.insert(0, Part::Reasoning(plan));
    }
    message
}

/// What was said before, what is said now, what tools said to it; or what is to be embedded.
fn turns(body: &Value) -> Vec<Message> {
    let said = |role: &str, parts: Vec<Part>| Message {
        parts,
        ..Message::of(role)
    };
    let mut messages: Vec<Message> = list(body, "chat_history").iter().map(turn).collect();
    let now = text(body, "message").filter(|text| !text.is_empty());
    messages.extend(now.map(|text| said("user", vec![Part::Text(text)])));
    let results: Vec<Part> = list(body, "tool_results").iter().map(tool_result).collect();
    if !results.is_empty() {
        messages.push(said("tool", results));
    }
    for text in texts(body.get("texts")) {
        messages.push(said("user", vec![Part::Text(text)]));
    }
    for image in texts(body.get("images")) {
        messages.push(said("user", vec![address(Modality::Image, image)]));
    }
    let inputs = list(body, "inputs").iter().map(chat::message);
    messages.extend(inputs.map(|message| Message {
        role: message.role.or_else(|| Some(Text::of("user"))),
        ..message
    }));
    messages
}

/// Its roles are shouted: `USER`, `CHATBOT`, `SYSTEM`, `TOOL`.
fn turn(value: &Value) -> Message {
    let mut parts: Vec<Part> = text(value, "message").map(Part::Text).into_iter().collect();
    parts.extend(list(value, "tool_calls").iter().map(first_call));
    parts.extend(list(value, "tool_results").iter().map(tool_result));
    let role = text(value, "role").map(|role| match &*role.kept {
        "USER" => Text::of("user"),
        "CHATBOT" => Text::of("assistant"),
        "SYSTEM" => Text::of("system"),
        "TOOL" => Text::of("tool"),
        _ => role,
    });
    Message {
        role,
        parts,
        ..Message::default()
    }
}

/// A call of the first version: it has no id.
fn first_call(value: &Value) -> Part {
    Part::Call(ToolCall {
        id: None,
        name: text(value, "name"),
        arguments: value.get("parameters").map(free).unwrap_or_default(),
    })
}

fn tool_result(value: &Value) -> Part {
    Part::Result(ToolResult {
        id: None,
        name: value.at(&["call", "name"]).and_then(Value::text).cloned(),
        result: value.get("outputs").map(free).unwrap_or_default(),
        is_error: false,
    })
}

fn tool(value: &Value) -> Tool {
    Tool {
        kind: Some(Text::of("function")),
        name: text(value, "name"),
        description: text(value, "description"),
        parameters: value.get("parameter_definitions").map(Value::written),
    }
}

/// What the answer may cite.
fn document(value: &Value) -> Message {
    Message {
        name: text(value, "id"),
        parts: vec![Part::Text(free(value.get("data").unwrap_or(value)))],
        ..Message::of("document")
    }
}

/// A response in one piece.
pub fn response(body: &Value, response: &mut Response) {
    // Its error is prose in place of a message: the status of the response says more.
    let is_answer = ["finish_reason", "text", "embeddings", "response_type"]
        .iter()
        .any(|name| body.get(name).is_some());
    if !is_answer {
        return;
    }
    response.is_over = true;
    response.id = ["response_id", "generation_id", "id"]
        .iter()
        .find_map(|name| text(body, name))
        .or(response.id.take());
    response.conversation = text(body, "conversation_id").or(response.conversation.take());
    if let Some(counts) = body.get("usage").or_else(|| body.get("meta")) {
        response.usage.update(usage(counts));
    }
    if body.get("embeddings").is_some() {
        return;
    }
    let answer = match body.get("message") {
        Some(value) => message(value),
        None => {
            let said = text(body, "text").filter(|text| !text.is_empty());
            let calls = list(body, "tool_calls").iter().map(first_call);
            Message {
                parts: said.map(Part::Text).into_iter().chain(calls).collect(),
                ..Message::of("assistant")
            }
        }
    };
    response.messages = vec![answer];
    finish(body, response);
}

/// A response of this format or a piece of one, by itself.
pub fn is_response(body: &Value) -> bool {
    let kind = |name| body.get(name).and_then(Value::str);
    match (kind("event_type"), kind("type")) {
        (Some(kind), _) => matches!(kind, "stream-start" | "text-generation" | "stream-end"),
        (_, Some(kind)) => matches!(kind, "message-start" | "content-delta" | "message-end"),
        (None, None) => {
            let said = body
                .at(&["message", "role"])
                .or_else(|| body.get("generation_id"));
            said.is_some() && body.get("finish_reason").is_some()
        }
    }
}

/// Why it ends, which may be an error.
fn finish(value: &Value, response: &mut Response) {
    let Some(reason) = text(value, "finish_reason") else {
        return;
    };
    if reason.kept.starts_with("ERROR") {
        response.error = Some(reason.clone());
    }
    answer(response).finish = Some(reason);
}

fn answer(response: &mut Response) -> &mut Message {
    if response.messages.is_empty() {
        response.messages.push(Message::of("assistant"));
    }
    &mut response.messages[0]
}

/// A piece of a streamed one, of either version.
pub fn event(body: &Value, response: &mut Response) {
    let kind = |name| body.get(name).and_then(Value::str);
    match kind("event_type") {
        Some(kind) => first_event(kind, body, response),
        None => second_event(kind("type").unwrap_or_default(), body, response),
    }
}

/// `message-start`, then contents, a plan, calls and citations, each with its pieces, `message-end`.
fn second_event(kind: &str, body: &Value, response: &mut Response) {
    let message = body.at(&["delta", "message"]);
    match kind {
        "message-start" => {
            response.id = text(body, "id");
            answer(response);
        }
        "content-start" | "content-delta" => {
            let Some(content) = message.and_then(|message| message.get("content")) else {
                return;
            };
            let answer = answer(response);
            piece(answer, Part::Reasoning, text(content, "thinking"));
            piece(answer, Part::Text, text(content, "text"));
        }
        "tool-plan-delta" => {
            let plan = message.and_then(|message| text(message, "tool_plan"));
            piece(answer(response), Part::Reasoning, plan);
        }
        "tool-call-start" => {
            let parts = &mut answer(response).parts;
            if let Some(call) = message.and_then(|message| message.get("tool_calls"))
                && parts.len() < MANY
            {
                parts.push(Part::Call(tool_call(call)));
            }
        }
        "tool-call-delta" => {
            let path = ["tool_calls", "function", "arguments"];
            if let Some(more) = message.and_then(|message| message.at(&path)?.text()) {
                arguments(answer(response), None, more);
            }
        }
        "message-end" => {
            response.is_over = true;
            if let Some(delta) = body.get("delta") {
                if let Some(counts) = delta.get("usage") {
                    response.usage.update(usage(counts));
                }
                finish(delta, response);
            }
        }
        "error" => response.error = body.get("error").map(chat::error),
        // Citations, ends of contents, and whatever comes next.
        _ => {}
    }
}

/// More of a text. Where it begins it is empty.
fn piece(answer: &mut Message, kind: fn(Text) -> Part, more: Option<Text>) {
    if let Some(more) = more.filter(|more| !more.is_empty()) {
        answer.append(kind, &more, ROOM);
    }
}

/// More of the arguments of the last call, or of the one with this number: a call whose beginning was not seen
/// begins with them.
fn arguments(answer: &mut Message, index: Option<u64>, more: &Text) {
    let count = answer.parts.len();
    let calls = answer.parts.iter_mut().filter_map(|part| match part {
        Part::Call(call) => Some(call),
        _ => None,
    });
    let mut calls: Vec<&mut ToolCall> = calls.collect();
    let at = index.map_or(calls.len().saturating_sub(1), |index| index as usize);
    match calls.get_mut(at) {
        Some(call) => call.arguments.append(more, ROOM),
        None if count < MANY => answer.parts.push(Part::Call(ToolCall {
            arguments: more.clone(),
            ..ToolCall::default()
        })),
        None => {}
    }
}

/// `stream-start`, texts and calls, `stream-end` with all of it.
fn first_event(kind: &str, body: &Value, response: &mut Response) {
    match kind {
        "stream-start" => {
            response.id = text(body, "generation_id");
            answer(response);
        }
        "text-generation" => piece(answer(response), Part::Text, text(body, "text")),
        "tool-calls-chunk" => {
            let Some(delta) = body.get("tool_call_delta") else {
                // What it thinks of it.
                return piece(answer(response), Part::Text, text(body, "text"));
            };
            let answer = answer(response);
            if let Some(name) = text(delta, "name")
                && answer.parts.len() < MANY
            {
                answer.parts.push(Part::Call(ToolCall {
                    name: Some(name),
                    ..ToolCall::default()
                }));
            }
            if let Some(more) = text(delta, "parameters") {
                let index = delta.get("index").and_then(Value::count);
                arguments(answer, index, &more);
            }
        }
        "tool-calls-generation" => {
            let answer = answer(response);
            answer.parts.retain(|part| !matches!(part, Part::Call(_)));
            let room = MANY.saturating_sub(answer.parts.len());
            let calls = list(body, "tool_calls").iter().map(first_call);
            answer.parts.extend(calls.take(room));
        }
        "stream-end" => {
            if let Some(all) = body.get("response") {
                self::response(all, response);
            }
            response.is_over = true;
            finish(body, response);
        }
        // Searches, citations, and whatever comes next.
        _ => {}
    }
}

/// What went in and came out; what is billed where nothing else is told, as of embeddings.
fn usage(value: &Value) -> Usage {
    let count = |name| {
        let of = |of| value.at(&[of, name]).and_then(Value::count);
        of("tokens").or_else(|| of("billed_units"))
    };
    Usage {
        input: count("input_tokens"),
        output: count("output_tokens"),
        cache_read: value.get("cached_tokens").and_then(Value::count),
        ..Usage::default()
    }
}
