//! OpenAI's Responses API: `POST …/responses`, which Codex sends to `…/backend-api/codex/responses`.
//!
//! Source: OpenAI's API reference, "Responses" and "Streaming events", and the types of its SDK for Python.

use super::{
    ROOM,
    call::{
        Message, Modality, Parameters, Part, Request, Response, Tool, ToolCall, ToolResult, Usage,
        free, other, text,
    },
    chat::{address, charged, error, result},
};
use crate::protocol::json::{Text, Value};

/// Most items of one response, and most parts of one item, that are told apart.
const MANY: usize = 128;

pub fn request(body: &Value) -> Request {
    Request {
        model: text(body, "model"),
        parameters: parameters(body),
        instructions: match body.get("instructions") {
            Some(Value::Text(text)) => vec![Part::Text(text.clone())],
            Some(items) => items
                .list()
                .iter()
                .flat_map(|one| item(one).parts)
                .collect(),
            None => Vec::new(),
        },
        messages: input(body),
        tools: body.get("tools").map_or_else(Vec::new, tools),
        conversation: conversation(body),
        previous: text(body, "previous_response_id"),
        service_tier: text(body, "service_tier"),
    }
}

fn parameters(body: &Value) -> Parameters {
    let float = |name| body.get(name).and_then(Value::float);
    Parameters {
        stream: body.get("stream").and_then(Value::bool),
        max_tokens: body.get("max_output_tokens").and_then(Value::count),
        temperature: float("temperature"),
        top_p: float("top_p"),
        output: match body.at(&["text", "format", "type"]).and_then(Value::str) {
            Some("json_object" | "json_schema") => Some("json"),
            Some("text") => Some("text"),
            _ => None,
        },
        ..Parameters::default()
    }
}

/// Text, or items.
pub fn input(body: &Value) -> Vec<Message> {
    match body.get("input") {
        Some(Value::Text(text)) => vec![Message {
            parts: vec![Part::Text(text.clone())],
            ..Message::of("user")
        }],
        Some(items) => items.list().iter().map(item).collect(),
        None => Vec::new(),
    }
}

/// By its id, or as an object that has one.
fn conversation(body: &Value) -> Option<Text> {
    match body.get("conversation")? {
        Value::Text(id) => Some(id.clone()),
        conversation => text(conversation, "id"),
    }
}

/// What a server runs itself has a type, and no name.
pub fn tools(value: &Value) -> Vec<Tool> {
    let tool = |value: &Value| Tool {
        kind: text(value, "type"),
        name: text(value, "name").or_else(|| text(value, "server_label")),
        description: text(value, "description"),
        parameters: value.get("parameters").map(Value::written),
    };
    value.list().iter().map(tool).collect()
}

/// An item of an input or of an output, as a turn of its own.
pub fn item(value: &Value) -> Message {
    let role = |name: &str| text(value, "role").or_else(|| Some(Text::of(name)));
    let kind = value.get("type").and_then(Value::str);
    let (role, parts) = match kind.unwrap_or("message") {
        "message" => (
            text(value, "role"),
            value.get("content").map_or_else(Vec::new, parts),
        ),
        "reasoning" => (role("assistant"), thoughts(value)),
        "image_generation_call" => (role("assistant"), vec![image(value)]),
        "mcp_approval_request" => (role("assistant"), vec![called("mcp", value)]),
        kind => match (kind.strip_suffix("_output"), kind.strip_suffix("_call")) {
            (Some(_), _) => (role("tool"), vec![answered(value)]),
            (_, Some(name)) => {
                let mut parts = vec![called(name, value)];
                // What a server ran itself has its result beside it.
                parts.extend(value.get("output").map(|_| answered(value)));
                (role("assistant"), parts)
            }
            _ => (text(value, "role"), vec![other(value)]),
        },
    };
    Message {
        role,
        parts,
        ..Message::default()
    }
}

/// Text, or parts.
fn parts(content: &Value) -> Vec<Part> {
    match content {
        Value::Text(text) => vec![Part::Text(text.clone())],
        content => content.list().iter().map(part).collect(),
    }
}

fn part(value: &Value) -> Part {
    let kind = value.get("type").and_then(Value::str).unwrap_or_default();
    let known = match kind {
        "input_text" | "output_text" | "text" | "summary_text" => {
            text(value, "text").map(Part::Text)
        }
        "reasoning_text" => text(value, "text").map(Part::Reasoning),
        "refusal" => text(value, "refusal").map(Part::Refusal),
        "input_image" => sent(value, Modality::Image, &["image_url"]),
        "input_file" => sent(value, Modality::Document, &["file_data", "file_url"]),
        "input_audio" | "output_audio" | "audio" => sound(value),
        _ => None,
    };
    known.unwrap_or_else(|| other(value))
}

/// What is sent along, by id, by address or in itself.
fn sent(value: &Value, modality: Modality, names: &[&str]) -> Option<Part> {
    let data = names.iter().find_map(|name| text(value, name));
    match data {
        // A file may be base64 and nothing else.
        Some(data) if !data.kept.contains(':') => Some(Part::Blob {
            modality,
            media: None,
            data,
        }),
        Some(data) => Some(address(modality, data)),
        None => text(value, "file_id").map(|id| Part::File { modality, id }),
    }
}

/// Of what was said its words are worth more than its sound.
fn sound(value: &Value) -> Option<Part> {
    if let Some(words) = text(value, "transcript") {
        return Some(Part::Text(words));
    }
    let nested = value.get("input_audio").unwrap_or(value);
    Some(Part::Blob {
        modality: Modality::Audio,
        media: text(nested, "format"),
        data: text(nested, "data").or_else(|| text(nested, "audio"))?,
    })
}

/// A summary, or all of it, or nothing that can be read.
fn thoughts(value: &Value) -> Vec<Part> {
    let lists = ["summary", "content"]
        .iter()
        .filter_map(|name| value.get(name));
    let texts = lists
        .flat_map(|list| list.list())
        .filter_map(|part| text(part, "text"));
    let parts: Vec<Part> = texts.map(Part::Reasoning).collect();
    match value.get("encrypted_content") {
        Some(_) if parts.is_empty() => vec![other(value)],
        _ => parts,
    }
}

fn image(value: &Value) -> Part {
    match text(value, "result") {
        Some(data) => Part::Blob {
            modality: Modality::Image,
            media: None,
            data,
        },
        None => called("image_generation", value),
    }
}

/// A call of a tool, whatever it calls what it hands over. `name`: of one that has no name of its own.
fn called(name: &str, value: &Value) -> Part {
    const ARGUMENTS: [&str; 8] = [
        "arguments",
        "input",
        "action",
        "actions",
        "operation",
        "code",
        "queries",
        "query",
    ];
    let arguments = ARGUMENTS.iter().find_map(|name| value.get(name));
    Part::Call(ToolCall {
        id: text(value, "call_id").or_else(|| text(value, "id")),
        name: text(value, "name").or_else(|| Some(Text::of(name))),
        arguments: arguments.map(free).unwrap_or_default(),
    })
}

fn answered(value: &Value) -> Part {
    let output = value.get("output").or_else(|| value.get("result"));
    Part::Result(ToolResult {
        id: text(value, "call_id").or_else(|| text(value, "id")),
        name: text(value, "name"),
        result: output.map(result).unwrap_or_default(),
        is_error: value.get("status").and_then(Value::str) == Some("failed"),
    })
}

/// A response in one piece.
pub fn response(body: &Value, response: &mut Response) {
    settle(body, response);
    closes(body, response);
    response.is_over = true;
}

/// What is told of a response at its beginning and at its end.
fn settle(body: &Value, response: &mut Response) {
    let known = |name| text(body, name).filter(|text| !text.is_empty());
    response.id = known("id").or(response.id.take());
    response.model = known("model").or(response.model.take());
    response.service_tier = known("service_tier").or(response.service_tier.take());
    response.conversation = conversation(body)
        .or_else(|| known("conversation_id"))
        .or(response.conversation.take());
    if let Some(counts) = body.get("usage") {
        response.usage.update(usage(counts));
        response.charged = charged(counts).or(response.charged);
    }
    if let Some(value) = body.get("error") {
        response.error = Some(error(value));
    }
    let items = body.get("output").map_or(&[][..], Value::list);
    if !items.is_empty() {
        response.messages = items.iter().take(MANY).map(item).collect();
    }
}

/// The items of one answer are one turn.
pub fn end(response: &mut Response) {
    let mut messages = std::mem::take(&mut response.messages).into_iter();
    response
        .messages
        .extend(messages.next().map(|first| Message {
            role: first.role.or_else(|| Some(Text::of("assistant"))),
            ..first
        }));
    for message in messages {
        let all = &mut response.messages[0];
        all.parts.extend(message.parts);
        all.finish = message.finish.or(all.finish.take());
    }
}

/// A piece of a streamed one: `response.created`, items, each with its pieces, `response.completed`.
pub fn event(body: &Value, response: &mut Response) {
    let kind = body.get("type").and_then(Value::str).unwrap_or_default();
    match kind {
        "response.created" | "response.queued" | "response.in_progress" => {
            if let Some(value) = body.get("response") {
                settle(value, response);
            }
        }
        "response.completed"
        | "response.incomplete"
        | "response.failed"
        | "response.cancelled"
        | "response.done" => {
            if let Some(value) = body.get("response") {
                settle(value, response);
                closes(value, response);
            }
            response.is_over = true;
        }
        "response.output_item.added" | "response.output_item.done" => {
            if let (Some(value), Some(message)) = (body.get("item"), place(body, response)) {
                *message = item(value);
            }
        }
        "error" => {
            let word = body.get("error").map(error).or_else(|| text(body, "code"));
            response.error = Some(word.unwrap_or_else(|| Text::of(kind)));
        }
        "response.content_part.added" | "response.reasoning_summary_part.added" => {
            if let (Some(value), Some(message)) = (body.get("part"), place(body, response))
                && message.parts.len() < MANY
            {
                let is_thought = kind != "response.content_part.added";
                message.parts.push(match part(value) {
                    Part::Text(text) if is_thought => Part::Reasoning(text),
                    part => part,
                });
            }
        }
        // Whatever comes next, too: "new event types may be added".
        kind => {
            if let Some(new) = beginning(kind)
                && let Some(message) = place(body, response)
            {
                add(body, new, message);
            }
        }
    }
}

/// Why it ended: the reason for what it lacks, or its state.
fn closes(value: &Value, response: &mut Response) {
    end(response);
    let reason = ["incomplete_details", "status_details"]
        .iter()
        .find_map(|name| text(value.get(name)?, "reason"));
    let is_cut_short = reason.is_some();
    let finish = reason.or_else(|| text(value, "status"));
    if response.messages.is_empty() && is_cut_short {
        response.messages.push(Message::of("assistant"));
    }
    if let Some(answer) = response.messages.first_mut() {
        answer.finish = finish;
    }
}

/// The item that an event is of. Those before it whose beginning was not seen are empty.
fn place<'a>(event: &Value, response: &'a mut Response) -> Option<&'a mut Message> {
    let index = event.get("output_index").and_then(Value::count)?;
    let index = usize::try_from(index).ok().filter(|index| *index < MANY)?;
    // Behind its end it is one turn.
    if response.is_over {
        return None;
    }
    if response.messages.len() <= index {
        response.messages.resize_with(index + 1, Message::default);
    }
    response.messages.get_mut(index)
}

/// What an event adds to.
fn beginning(kind: &str) -> Option<Part> {
    Some(match kind {
        "response.output_text.delta"
        | "response.output_audio_transcript.delta"
        | "response.text.delta"
        | "response.audio_transcript.delta" => Part::Text(Text::default()),
        "response.refusal.delta" => Part::Refusal(Text::default()),
        "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
            Part::Reasoning(Text::default())
        }
        "response.function_call_arguments.delta"
        | "response.mcp_call_arguments.delta"
        | "response.custom_tool_call_input.delta"
        | "response.code_interpreter_call_code.delta" => Part::Call(ToolCall::default()),
        _ => return None,
    })
}

/// `new`: what its part is if nothing of it came before.
fn add(event: &Value, new: Part, item: &mut Message) {
    let same = |part: &Part| std::mem::discriminant(part) == std::mem::discriminant(&new);
    let index = ["content_index", "summary_index"]
        .iter()
        .find_map(|name| event.get(name)?.count());
    let count = item.parts.len();
    let index = index.map_or(0, |index| index.min(count as u64) as usize);
    // Of a part whose beginning was not seen it is not known which of them it is.
    let at = match item.parts.get(index) {
        Some(part) if same(part) => index,
        Some(_) => return,
        None if item.parts.last().is_some_and(same) => count - 1,
        None if count < MANY => {
            item.parts.push(new);
            count
        }
        None => return,
    };
    if let Some(more) = text(event, "delta")
        && let Part::Text(text)
        | Part::Refusal(text)
        | Part::Reasoning(text)
        | Part::Call(ToolCall {
            arguments: text, ..
        }) = &mut item.parts[at]
    {
        text.append(&more, ROOM);
    }
}

pub fn usage(value: &Value) -> Usage {
    let count = |path: &[&str]| value.at(path).and_then(Value::count);
    // The Realtime API has them by names that differ by a letter.
    let detail = |names: [&str; 2], name| names.iter().find_map(|of| count(&[of, name]));
    let (input, output) = (
        ["input_tokens_details", "input_token_details"],
        ["output_tokens_details", "output_token_details"],
    );
    Usage {
        input: count(&["input_tokens"]),
        output: count(&["output_tokens"]),
        cache_read: detail(input, "cached_tokens"),
        cache_creation: detail(input, "cache_write_tokens"),
        reasoning: detail(output, "reasoning_tokens"),
    }
}
