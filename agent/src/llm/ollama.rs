//! Ollama's own API: `POST …/api/chat` and `…/api/generate`, in lines unless they are asked for in one piece, and
//! `…/api/embed`, formerly `…/api/embeddings`.
//!
//! Source: Ollama's API documentation, and the types of its SDK for Python.

use super::{
    ROOM,
    call::{
        Durations, Message, Modality, Parameters, Part, Request, Response, ToolResult, Usage, free,
        text, texts,
    },
    chat::{tool_call, tools},
};
use crate::protocol::json::{Text, Value};

/// Most calls of tools of one answer that are kept.
const MANY: usize = 128;

pub fn request(body: &Value) -> Request {
    let messages = body.get("messages").map_or(&[][..], Value::list);
    Request {
        model: text(body, "model"),
        parameters: parameters(body),
        instructions: text(body, "system").map(Part::Text).into_iter().collect(),
        messages: match messages {
            [] => prompts(body),
            messages => messages.iter().map(message).collect(),
        },
        tools: body.get("tools").map_or_else(Vec::new, tools),
        ..Request::default()
    }
}

fn parameters(body: &Value) -> Parameters {
    let option = |name| body.at(&["options", name]);
    let float = |name| option(name).and_then(Value::float);
    Parameters {
        stream: body.get("stream").and_then(Value::bool),
        max_tokens: option("num_predict").and_then(Value::count),
        temperature: float("temperature"),
        top_p: float("top_p"),
        top_k: float("top_k"),
        frequency_penalty: float("frequency_penalty"),
        presence_penalty: float("presence_penalty"),
        seed: option("seed").and_then(Value::count),
        stop_sequences: texts(option("stop")),
        dimensions: body.get("dimensions").and_then(Value::count),
        output: match body.get("format") {
            // Or the schema that it shall have.
            Some(Value::Map(_)) => Some("json"),
            Some(Value::Text(word)) if &*word.kept == "json" => Some("json"),
            _ => None,
        },
        ..Parameters::default()
    }
}

/// A prompt with its images, or texts to embed.
fn prompts(body: &Value) -> Vec<Message> {
    let user = |text| Message {
        parts: vec![Part::Text(text)],
        ..Message::of("user")
    };
    let mut messages: Vec<Message> = match body.get("input") {
        Some(input) => texts(Some(input)).into_iter().map(user).collect(),
        None => text(body, "prompt").map(user).into_iter().collect(),
    };
    // What stands behind the gap that is to be filled.
    let suffix = text(body, "suffix").filter(|text| !text.is_empty());
    if let Some(prompt) = messages.first_mut() {
        prompt.parts.extend(suffix.map(Part::Text));
        prompt.parts.extend(images(body));
    }
    messages
}

fn images(value: &Value) -> impl Iterator<Item = Part> {
    texts(value.get("images")).into_iter().map(image)
}

/// Base64, and nothing else.
fn image(data: Text) -> Part {
    Part::Blob {
        modality: Modality::Image,
        media: None,
        data,
    }
}

fn message(value: &Value) -> Message {
    let role = text(value, "role");
    let content = text(value, "content").filter(|text| !text.is_empty());
    let is_tool = role.as_ref().is_some_and(|role| &*role.kept == "tool");
    let mut parts = Vec::new();
    parts.extend(thoughts(value).map(Part::Reasoning));
    match is_tool {
        true => parts.push(Part::Result(ToolResult {
            id: text(value, "tool_call_id"),
            name: text(value, "tool_name"),
            result: value.get("content").map(free).unwrap_or_default(),
            is_error: false,
        })),
        false => parts.extend(content.map(Part::Text)),
    }
    parts.extend(images(value));
    parts.extend(calls(value));
    Message {
        role,
        parts,
        ..Message::default()
    }
}

fn thoughts(value: &Value) -> Option<Text> {
    text(value, "thinking").filter(|text| !text.is_empty())
}

/// Each is whole, with its arguments as an object.
fn calls(value: &Value) -> impl Iterator<Item = Part> {
    let calls = value.get("tool_calls").map_or(&[][..], Value::list);
    calls.iter().map(|call| Part::Call(tool_call(call)))
}

/// A response in one piece, which is like the only piece of one that is streamed.
pub fn response(body: &Value, response: &mut Response) {
    // Its error is prose: the status of the response says more.
    if body.get("error").is_some() {
        return;
    }
    event(body, response);
    response.is_over = true;
}

/// A piece of a streamed one. The last one says why it ends, and what it took.
pub fn event(body: &Value, response: &mut Response) {
    if body.get("error").is_some() {
        response.error = Some(Text::of("error"));
        return;
    }
    response.model = text(body, "model").or(response.model.take());
    let count = |name| body.get(name).and_then(Value::count);
    response.usage.update(Usage {
        input: count("prompt_eval_count"),
        output: count("eval_count"),
        ..Usage::default()
    });
    response.durations.update(Durations {
        total: count("total_duration"),
        load: count("load_duration"),
        prompt_eval: count("prompt_eval_duration"),
        eval: count("eval_duration"),
    });
    let is_said = ["message", "response"]
        .iter()
        .any(|name| body.get(name).is_some());
    if is_said {
        let answer = answer(response);
        match body.get("message") {
            Some(piece) => add(piece, "content", answer),
            None => add(body, "response", answer),
        }
        answer.finish = text(body, "done_reason").or(answer.finish.take());
    }
    response.is_over |= body.get("done").and_then(Value::bool) == Some(true);
}

fn answer(response: &mut Response) -> &mut Message {
    if response.messages.is_empty() {
        response.messages.push(Message::of("assistant"));
    }
    &mut response.messages[0]
}

/// `name`: of its text.
fn add(piece: &Value, name: &str, answer: &mut Message) {
    if let Some(thoughts) = thoughts(piece) {
        answer.append(Part::Reasoning, &thoughts, ROOM);
    }
    if let Some(text) = text(piece, name).filter(|text| !text.is_empty()) {
        answer.append(Part::Text, &text, ROOM);
    }
    // Of a model that draws.
    let drawn = text(piece, "image").map(image);
    let others = drawn.into_iter().chain(calls(piece));
    answer
        .parts
        .extend(others.take(MANY.saturating_sub(answer.parts.len())));
}
