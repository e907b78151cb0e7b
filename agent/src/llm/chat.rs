//! Chat completions as OpenAI has them, and so most others: `POST …/chat/completions`, and the older
//! `…/completions` and `…/embeddings` beside it.
//!
//! Source: OpenAI's API reference, "Chat", "Completions (legacy)" and "Embeddings".

use super::{
    ROOM,
    call::{
        Message, Modality, Parameters, Part, Request, Response, Tool, ToolCall, ToolResult, Usage,
        free, other, text, texts,
    },
};
use crate::protocol::json::{Text, Value};

pub fn request(body: &Value) -> Request {
    let messages = body.get("messages").map_or(&[][..], Value::list);
    let prompt = body.get("prompt").or_else(|| body.get("input"));
    let mut prompts = prompt.map(prompts).unwrap_or_default();
    // What the text that is wanted comes before.
    if let (Some(last), Some(suffix)) = (prompts.last_mut(), text(body, "suffix")) {
        last.parts.push(Part::Text(suffix));
    }
    Request {
        model: text(body, "model"),
        parameters: parameters(body),
        messages: match messages {
            [] => prompts,
            messages => messages.iter().map(message).collect(),
        },
        tools: body.get("tools").map_or_else(Vec::new, tools),
        conversation: None,
        previous: None,
        service_tier: text(body, "service_tier"),
        instructions: Vec::new(),
    }
}

pub fn parameters(body: &Value) -> Parameters {
    let float = |name| body.get(name).and_then(Value::float);
    let count = |name| body.get(name).and_then(Value::count);
    Parameters {
        stream: body.get("stream").and_then(Value::bool),
        max_tokens: count("max_completion_tokens").or_else(|| count("max_tokens")),
        temperature: float("temperature"),
        top_p: float("top_p"),
        top_k: float("top_k"),
        frequency_penalty: float("frequency_penalty"),
        presence_penalty: float("presence_penalty"),
        // Mistral calls it `random_seed`.
        seed: count("seed").or_else(|| count("random_seed")),
        choices: count("n"),
        stop_sequences: texts(body.get("stop")),
        encoding_formats: texts(body.get("encoding_format")),
        dimensions: count("dimensions"),
        output: match body.at(&["response_format", "type"]).and_then(Value::str) {
            Some("json_object" | "json_schema") => Some("json"),
            Some("text") => Some("text"),
            _ => None,
        },
    }
}

/// A prompt, or several, of text or of numbers of tokens.
fn prompts(prompt: &Value) -> Vec<Message> {
    let user = |part| Message {
        parts: vec![part],
        ..Message::of("user")
    };
    match prompt {
        Value::Text(text) => vec![user(Part::Text(text.clone()))],
        Value::List(values) if values.iter().all(|value| value.text().is_some()) => {
            let texts = values.iter().filter_map(Value::text);
            texts.map(|text| user(Part::Text(text.clone()))).collect()
        }
        value => vec![user(Part::Other {
            kind: Text::of("tokens"),
            size: value.written().kept.len(),
        })],
    }
}

pub fn message(value: &Value) -> Message {
    let mut parts = Vec::new();
    // DeepSeek, vLLM and others put thoughts beside the text; OpenRouter calls them `reasoning`.
    let thoughts = text(value, "reasoning_content").or_else(|| text(value, "reasoning"));
    parts.extend(
        thoughts
            .filter(|text| !text.is_empty())
            .map(Part::Reasoning),
    );
    let role = text(value, "role");
    let is_tool = role
        .as_ref()
        .is_some_and(|role| matches!(&*role.kept, "tool" | "function"));
    match value.get("content") {
        Some(content) if is_tool => parts.push(Part::Result(ToolResult {
            id: text(value, "tool_call_id"),
            name: text(value, "name"),
            result: result(content),
            is_error: false,
        })),
        Some(Value::Text(text)) if text.is_empty() => {}
        Some(Value::Text(text)) => parts.push(Part::Text(text.clone())),
        Some(content) => parts.extend(content.list().iter().map(part)),
        None => {}
    }
    let refusal = text(value, "refusal").filter(|text| !text.is_empty());
    parts.extend(refusal.map(Part::Refusal));
    // OpenRouter's, of models that make some.
    let images = value.get("images").map_or(&[][..], Value::list);
    parts.extend(images.iter().map(part));
    let calls = value.get("tool_calls").map_or(&[][..], Value::list);
    parts.extend(calls.iter().map(|call| Part::Call(tool_call(call))));
    // As it was before there were tools.
    parts.extend(
        value
            .get("function_call")
            .map(|call| Part::Call(function(call))),
    );
    Message {
        role,
        name: text(value, "name").filter(|_| !is_tool),
        parts,
        finish: None,
    }
}

/// Text, or parts of text.
pub fn result(content: &Value) -> Text {
    let parts = content.list();
    let texts: Vec<&Text> = parts
        .iter()
        .filter_map(|part| part.get("text")?.text())
        .collect();
    if parts.is_empty() || texts.len() < parts.len() {
        return free(content);
    }
    let mut all = Text::default();
    texts.into_iter().for_each(|text| all.append(text, ROOM));
    all
}

pub fn part(value: &Value) -> Part {
    let data = |name: &str, key: &str| value.at(&[name, key]).and_then(Value::text).cloned();
    let kind = value.get("type").and_then(Value::str).unwrap_or_default();
    let known = match kind {
        "text" | "input_text" | "output_text" => text(value, "text").map(Part::Text),
        "refusal" => text(value, "refusal").map(Part::Refusal),
        // Mistral's: a list of parts of text.
        "thinking" => value
            .get("thinking")
            .map(|value| Part::Reasoning(result(value))),
        "image_url" => data("image_url", "url")
            .or_else(|| text(value, "image_url"))
            .map(|uri| address(Modality::Image, uri)),
        "input_audio" => data("input_audio", "data").map(|data| Part::Blob {
            modality: Modality::Audio,
            media: value
                .at(&["input_audio", "format"])
                .and_then(Value::text)
                .cloned(),
            data,
        }),
        "video_url" => data("video_url", "url").map(|uri| address(Modality::Video, uri)),
        "document_url" => text(value, "document_url").map(|uri| address(Modality::Document, uri)),
        "file" => match (data("file", "file_id"), data("file", "file_data")) {
            (Some(id), _) => Some(Part::File {
                modality: Modality::Document,
                id,
            }),
            (None, data) => data.map(|data| address(Modality::Document, data)),
        },
        _ => None,
    };
    known.unwrap_or_else(|| other(value))
}

/// What is sent by address, or in the address itself (RFC 2397).
pub fn address(modality: Modality, uri: Text) -> Part {
    let Some(rest) = uri.kept.strip_prefix("data:") else {
        return match uri.blob {
            Some(_) => Part::Blob {
                modality,
                media: None,
                data: uri,
            },
            None => Part::Uri { modality, uri },
        };
    };
    let media = rest.split([';', ',']).next().map(Text::of);
    let head = uri
        .kept
        .find(";base64,")
        .map_or(0, |at| at + ";base64,".len());
    let data = match uri.blob {
        Some(_) => uri,
        None => {
            let kept = uri.kept[head..].to_owned();
            // What is no character takes more room than it had.
            let length = uri.length.saturating_sub(head as u64);
            Text {
                length: length.max(kept.len() as u64),
                kept,
                ..uri
            }
        }
    };
    Part::Blob {
        modality,
        media,
        data,
    }
}

pub fn tool_call(value: &Value) -> ToolCall {
    let function = value.get("function").or_else(|| value.get("custom"));
    ToolCall {
        id: text(value, "id"),
        ..function.map(self::function).unwrap_or_default()
    }
}

fn function(value: &Value) -> ToolCall {
    let arguments = value.get("arguments").or_else(|| value.get("input"));
    ToolCall {
        id: None,
        name: text(value, "name"),
        arguments: arguments.map(free).unwrap_or_default(),
    }
}

pub fn tools(value: &Value) -> Vec<Tool> {
    let tool = |value: &Value| {
        let kind = text(value, "type");
        let named = kind.as_ref().and_then(|kind| value.get(&kind.kept));
        let function = named.unwrap_or(value);
        Tool {
            name: text(function, "name"),
            description: text(function, "description"),
            parameters: function.get("parameters").map(Value::written),
            kind,
        }
    };
    value.list().iter().map(tool).collect()
}

/// A response in one piece.
pub fn response(body: &Value, response: &mut Response) {
    common(body, response);
    response.is_over = true;
    for choice in body.get("choices").map_or(&[][..], Value::list) {
        let mut answer = match choice.get("message") {
            Some(value) => message(value),
            None => Message {
                parts: text(choice, "text").map(Part::Text).into_iter().collect(),
                ..Message::of("assistant")
            },
        };
        answer.finish = finish(choice);
        response.messages.push(answer);
    }
}

/// A piece of a streamed one.
pub fn event(body: &Value, response: &mut Response) {
    common(body, response);
    for choice in body.get("choices").map_or(&[][..], Value::list) {
        let index = choice.get("index").and_then(Value::count).unwrap_or(0);
        let Some(answer) = answer(response, index) else {
            continue;
        };
        if let Some(text) = text(choice, "text") {
            answer.append(Part::Text, &text, ROOM);
        }
        if let Some(delta) = choice.get("delta") {
            add(delta, answer);
        }
        answer.finish = finish(choice).or(answer.finish.take());
    }
}

/// Mistral's models on Bedrock have another name for it.
fn finish(choice: &Value) -> Option<Text> {
    text(choice, "finish_reason").or_else(|| text(choice, "stop_reason"))
}

/// Most answers, and most calls of tools of one, that are told apart.
const MANY: u64 = 128;

/// The answer with this number.
pub fn answer(response: &mut Response, index: u64) -> Option<&mut Message> {
    if index >= MANY {
        return None;
    }
    while response.messages.len() as u64 <= index {
        response.messages.push(Message::of("assistant"));
    }
    response.messages.get_mut(index as usize)
}

fn add(delta: &Value, answer: &mut Message) {
    if let Some(role) = text(delta, "role").filter(|role| !role.is_empty()) {
        answer.role = Some(role);
    }
    let thoughts = text(delta, "reasoning_content").or_else(|| text(delta, "reasoning"));
    if let Some(thoughts) = thoughts.filter(|text| !text.is_empty()) {
        answer.append(Part::Reasoning, &thoughts, ROOM);
    }
    match delta.get("content") {
        Some(Value::Text(text)) if !text.is_empty() => answer.append(Part::Text, text, ROOM),
        Some(content) => {
            for piece in content.list().iter().map(part) {
                answer.add(piece, ROOM);
            }
        }
        None => {}
    }
    for image in delta.get("images").map_or(&[][..], Value::list) {
        answer.push(part(image));
    }
    if let Some(refusal) = text(delta, "refusal").filter(|text| !text.is_empty()) {
        answer.append(Part::Refusal, &refusal, ROOM);
    }
    let calls = delta.get("tool_calls").map_or(&[][..], Value::list);
    for (at, call) in calls.iter().enumerate() {
        let index = call.get("index").and_then(Value::count);
        piece_of_call(tool_call(call), index.unwrap_or(at as u64), answer);
    }
    if let Some(call) = delta.get("function_call") {
        piece_of_call(function(call), 0, answer);
    }
}

/// The first piece has the name, all have some of the arguments.
fn piece_of_call(piece: ToolCall, index: u64, answer: &mut Message) {
    let calls = answer.parts.iter_mut().filter_map(|part| match part {
        Part::Call(call) => Some(call),
        _ => None,
    });
    let mut calls: Vec<&mut ToolCall> = calls.collect();
    let known = calls.len() as u64;
    // Some tell every call whole, and all by the same number.
    let is_other = |call: &ToolCall| match (&call.id, &piece.id) {
        (Some(known), Some(id)) => !id.is_empty() && known != id && piece.name.is_some(),
        _ => false,
    };
    let at = match calls.get(index as usize) {
        Some(call) if is_other(call) => known,
        _ => index,
    };
    match calls.get_mut(at as usize) {
        Some(call) => {
            call.id = call.id.take().or(piece.id);
            call.name = call.name.take().or(piece.name);
            call.arguments.append(&piece.arguments, ROOM);
        }
        // Pieces of calls that were never begun: something is missing before them.
        None if at <= known && known < MANY => {
            answer.push(Part::Call(piece));
        }
        None => {}
    }
}

fn common(body: &Value, response: &mut Response) {
    let Response {
        id,
        model,
        usage,
        charged,
        error,
        service_tier,
        fingerprint,
        ..
    } = response;
    let set = |place: &mut Option<Text>, name| {
        if let Some(text) = text(body, name).filter(|text| !text.is_empty()) {
            *place = Some(text);
        }
    };
    set(id, "id");
    set(model, "model");
    set(service_tier, "service_tier");
    set(fingerprint, "system_fingerprint");
    // Groq tells it in a member of its own when it streams.
    let counts = body.get("usage").or_else(|| body.at(&["x_groq", "usage"]));
    if let Some(counts) = counts {
        usage.update(self::usage(counts));
        *charged = self::charged(counts).or(*charged);
    } else if let Some(timings) = body.get("timings") {
        usage.update(self::timings(timings));
    }
    // OpenRouter puts it into a choice, too; with vLLM it may be all there is.
    let choices = body.get("choices").map_or(&[][..], Value::list);
    let is_error = body.get("object").and_then(Value::str) == Some("error");
    let failed = body
        .get("error")
        .or_else(|| body.at(&["x_groq", "error"]))
        .or_else(|| choices.iter().find_map(|choice| choice.get("error")))
        .or_else(|| is_error.then_some(body));
    if let Some(value) = failed {
        *error = Some(self::error(value));
    }
}

pub fn usage(value: &Value) -> Usage {
    let count = |path: &[&str]| value.at(path).and_then(Value::count);
    let input = count(&["prompt_tokens"]);
    let output = count(&["completion_tokens"]);
    // xAI and Gemini leave thoughts out of what is completed, but not out of the total.
    let all = count(&["total_tokens"]).zip(input);
    let all = all.and_then(|(total, input)| total.checked_sub(input));
    Usage {
        input,
        output: output.max(all.filter(|_| output.is_some())),
        // DeepSeek counts hits by a name of its own.
        cache_read: count(&["prompt_tokens_details", "cached_tokens"])
            .or_else(|| count(&["prompt_cache_hit_tokens"])),
        // OpenRouter's.
        cache_creation: count(&["prompt_tokens_details", "cache_write_tokens"]),
        reasoning: count(&["completion_tokens_details", "reasoning_tokens"]),
    }
}

/// What a call costs: as OpenRouter says it (its credits are dollars), Perplexity, and xAI (of a dollar 10^10).
///
/// Sources: openrouter.ai/docs/use-cases/usage-accounting, docs.perplexity.ai, docs.x.ai/developers/cost-tracking.
pub fn charged(usage: &Value) -> Option<f64> {
    const TICKS: f64 = 1e10;
    let ticks = usage.get("cost_in_usd_ticks").and_then(Value::float);
    let cost = ticks
        .map(|ticks| ticks / TICKS)
        .or_else(|| usage.at(&["cost", "total_cost"])?.float())
        .or_else(|| usage.get("cost")?.float())?;
    (cost.is_finite() && cost >= 0.0).then_some(cost)
}

/// What llama.cpp says where nobody asked for usage: tokens of the prompt that were not cached, those that were, and
/// those that were made.
fn timings(value: &Value) -> Usage {
    let count = |name| value.get(name).and_then(Value::count);
    let cached = count("cache_n");
    Usage {
        input: count("prompt_n").map(|fresh| fresh.saturating_add(cached.unwrap_or(0))),
        output: count("predicted_n"),
        cache_read: cached,
        ..Usage::default()
    }
}

/// The word for what went wrong.
pub fn error(value: &Value) -> Text {
    let word = ["type", "code", "status"].iter().find_map(|name| {
        let value = value.get(name)?;
        match value {
            Value::Text(text) => Some(text.clone()),
            Value::Number(number) => Some(Text::of(number)),
            _ => None,
        }
    });
    word.or_else(|| value.text().cloned())
        .unwrap_or_else(|| Text::of("error"))
}
