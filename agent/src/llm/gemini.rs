//! Gemini's `generateContent` and `embedContent`: `POST …/models/MODEL:generateContent`, of the Gemini API and of
//! Vertex AI. A stream is a list of responses (events with `alt=sse`), each with more of every candidate. Vertex AI embeds
//! by `predict`, which has instances and predictions of whatever the model is for.
//!
//! Names may be written in both of protobuf's ways: `promptTokenCount` and `prompt_token_count`.
//!
//! Source: Google's API reference, "Generating content" and "Embeddings" (v1beta), and that of Vertex AI (v1), with "Text
//! embeddings API".

use super::{
    ROOM,
    call::{
        Message, Modality, Parameters, Part, Request, Response, Tool, ToolCall, ToolResult, Usage,
        texts,
    },
    chat::{self, answer},
};
use crate::protocol::json::{Text, Value};

/// A member, however its name is written.
fn get<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let mut members = value.members().iter();
    members
        .find(|(known, value)| *value != Value::Null && plain(known).eq(plain(name)))
        .map(|(_, value)| value)
}

fn plain(name: &str) -> impl Iterator<Item = u8> {
    let bytes = name.bytes().filter(|byte| *byte != b'_');
    bytes.map(|byte| byte.to_ascii_lowercase())
}

fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| get(value, name))
}

fn text(value: &Value, name: &str) -> Option<Text> {
    get(value, name)?.text().cloned()
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    get(value, name).map_or(&[], Value::list)
}

/// Whether a body may be a request.
pub fn is_request(body: &Value) -> bool {
    get(body, "contents").is_some()
}

/// Whether a body may be one to embed.
pub fn is_embedding(body: &Value) -> bool {
    get(body, "content").is_some() || !list(body, "requests").is_empty() || is_prediction(body)
}

/// Instances are whatever a model takes: one that embeds takes texts.
fn is_prediction(body: &Value) -> bool {
    let instances = list(body, "instances");
    let is_text = |instance: &Value| get(instance, "content").is_some_and(|it| it.str().is_some());
    !instances.is_empty() && instances.iter().all(is_text)
}

/// Whether a body is a response, or a list of pieces of one.
pub fn is_response(body: &Value) -> bool {
    let first = body.list().first().unwrap_or(body);
    let is_known = |name| get(first, name).is_some();
    is_known("usageMetadata") && (is_known("candidates") || is_known("promptFeedback"))
}

pub fn request(body: &Value) -> Request {
    let requests = list(body, "requests");
    let embedded = requests
        .iter()
        .filter_map(|request| get(request, "content"));
    let instances = list(body, "instances").iter().filter_map(instance);
    let messages = match get(body, "contents").or_else(|| get(body, "content")) {
        Some(Value::List(contents)) => contents.iter().map(message).collect(),
        Some(content) => vec![message(content)],
        None => embedded.map(message).chain(instances).collect(),
    };
    Request {
        model: None,
        parameters: parameters(body),
        instructions: get(body, "systemInstruction").map_or_else(Vec::new, parts),
        messages,
        tools: list(body, "tools").iter().flat_map(tools).collect(),
        conversation: None,
        previous: None,
        service_tier: None,
    }
}

fn parameters(body: &Value) -> Parameters {
    let of = |name| at(body, &["generationConfig", name]);
    let float = |name| of(name).and_then(Value::float);
    let count = |name| of(name).and_then(Value::count);
    let modalities = texts(of("responseModalities"));
    let is_wanted = |name: &str| {
        modalities
            .iter()
            .any(|wanted| wanted.kept.eq_ignore_ascii_case(name))
    };
    Parameters {
        max_tokens: count("maxOutputTokens"),
        temperature: float("temperature"),
        top_p: float("topP"),
        top_k: float("topK"),
        frequency_penalty: float("frequencyPenalty"),
        presence_penalty: float("presencePenalty"),
        seed: count("seed"),
        choices: count("candidateCount"),
        stop_sequences: texts(of("stopSequences")),
        dimensions: get(body, "outputDimensionality")
            .or_else(|| at(body, &["parameters", "outputDimensionality"]))
            .and_then(Value::count),
        output: match of("responseMimeType").and_then(Value::str) {
            Some("application/json") => Some("json"),
            Some("text/plain") => Some("text"),
            _ if is_wanted("image") => Some("image"),
            _ if is_wanted("audio") => Some("speech"),
            _ => None,
        },
        ..Parameters::default()
    }
}

/// Functions, and what the server knows: each by a name of its own.
fn tools(value: &Value) -> Vec<Tool> {
    let named = |(name, value): &(Box<str>, Value)| match value.list() {
        [] => vec![Tool {
            kind: Some(Text::of(name)),
            ..Tool::default()
        }],
        functions => functions.iter().map(function).collect(),
    };
    value.members().iter().flat_map(named).collect()
}

fn function(value: &Value) -> Tool {
    let schema = get(value, "parameters").or_else(|| get(value, "parametersJsonSchema"));
    Tool {
        kind: Some(Text::of("function")),
        name: text(value, "name"),
        description: text(value, "description"),
        parameters: schema.map(Value::written),
    }
}

fn message(content: &Value) -> Message {
    Message {
        role: role(content).or_else(|| Some(Text::of("user"))),
        parts: parts(content),
        ..Message::default()
    }
}

fn instance(value: &Value) -> Option<Message> {
    Some(Message {
        role: Some(Text::of("user")),
        parts: vec![Part::Text(text(value, "content")?)],
        ..Message::default()
    })
}

/// Who answers is called `model` here, and `assistant` everywhere else.
fn role(content: &Value) -> Option<Text> {
    let role = text(content, "role").filter(|role| !role.is_empty())?;
    Some(match &*role.kept {
        "model" => Text::of("assistant"),
        _ => role,
    })
}

/// SDKs let a text stand for a part, and a part for a list of them.
fn parts(content: &Value) -> Vec<Part> {
    match get(content, "parts") {
        Some(Value::List(parts)) => parts.iter().filter_map(part).collect(),
        Some(value) => part(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A part, if there is anything in it: some have a signature of thoughts only.
fn part(value: &Value) -> Option<Part> {
    let is_thought = get(value, "thought").and_then(Value::bool) == Some(true);
    if let Some(text) = text(value, "text") {
        return (!text.is_empty()).then_some(match is_thought {
            true => Part::Reasoning(text),
            false => Part::Text(text),
        });
    }
    let has = |name| get(value, name);
    let known = None
        .or_else(|| blob(has("inlineData")?))
        .or_else(|| file(has("fileData")?))
        .or_else(|| Some(Part::Call(call(has("functionCall")?))))
        .or_else(|| Some(Part::Result(result(has("functionResponse")?))))
        .or_else(|| Some(Part::Call(code(has("executableCode")?))))
        .or_else(|| Some(Part::Result(outcome(has("codeExecutionResult")?))));
    if known.is_some() {
        return known;
    }
    let (name, data) = value
        .members()
        .iter()
        .find(|(name, _)| !matches!(&**name, "thoughtSignature" | "thought_signature"))?;
    Some(Part::Other {
        kind: Text::of(name),
        size: data.written().kept.len(),
    })
}

fn blob(value: &Value) -> Option<Part> {
    let media = text(value, "mimeType");
    Some(Part::Blob {
        modality: Modality::of(media.as_ref().map_or("", |media| &media.kept)),
        media,
        data: text(value, "data")?,
    })
}

fn file(value: &Value) -> Option<Part> {
    let media = text(value, "mimeType");
    Some(Part::Uri {
        modality: Modality::of(media.as_ref().map_or("", |media| &media.kept)),
        uri: text(value, "fileUri")?,
    })
}

fn call(value: &Value) -> ToolCall {
    ToolCall {
        id: text(value, "id"),
        name: text(value, "name"),
        arguments: get(value, "args").map(Value::written).unwrap_or_default(),
    }
}

fn result(value: &Value) -> ToolResult {
    ToolResult {
        id: text(value, "id"),
        name: text(value, "name"),
        result: get(value, "response")
            .map(Value::written)
            .unwrap_or_default(),
        is_error: at(value, &["response", "error"]).is_some(),
    }
}

/// The tool of the server that runs code.
const CODE: &str = "code_execution";

fn code(value: &Value) -> ToolCall {
    ToolCall {
        id: text(value, "id"),
        name: Some(Text::of(CODE)),
        arguments: value.written(),
    }
}

fn outcome(value: &Value) -> ToolResult {
    ToolResult {
        id: text(value, "id"),
        name: Some(Text::of(CODE)),
        result: text(value, "output").unwrap_or_default(),
        is_error: get(value, "outcome").and_then(Value::str) != Some("OUTCOME_OK"),
    }
}

/// A response in one piece, or all pieces of one in a list.
pub fn response(body: &Value, response: &mut Response) {
    match body {
        Value::List(pieces) => pieces.iter().for_each(|piece| event(piece, response)),
        body => {
            event(body, response);
            response.is_over = true;
        }
    }
}

/// A piece of a streamed one.
pub fn event(body: &Value, response: &mut Response) {
    let set = |place: &mut Option<Text>, name| {
        if let Some(text) = text(body, name) {
            *place = Some(text);
        }
    };
    set(&mut response.id, "responseId");
    set(&mut response.model, "modelVersion");
    if let Some(counts) = get(body, "usageMetadata") {
        response.usage.update(usage(counts));
    }
    let counts = |prediction| at(prediction, &["embeddings", "statistics", "token_count"]);
    let counts = list(body, "predictions").iter().filter_map(counts);
    if let Some(input) = counts.filter_map(Value::count).reduce(u64::saturating_add) {
        response.usage.input = Some(input);
    }
    if let Some(value) = get(body, "error") {
        response.error = text(value, "status").or_else(|| Some(chat::error(value)));
    }
    // Nothing is answered to what is asked.
    if let Some(reason) = at(body, &["promptFeedback", "blockReason"]).and_then(Value::text) {
        response.error = Some(reason.clone());
        response.is_over = true;
    }
    for candidate in list(body, "candidates") {
        let index = get(candidate, "index").and_then(Value::count).unwrap_or(0);
        let finish = text(candidate, "finishReason");
        // There is no other end to a stream.
        response.is_over |= finish.is_some();
        let Some(answer) = answer(response, index) else {
            continue;
        };
        if let Some(content) = get(candidate, "content") {
            answer.role = role(content).or(answer.role.take());
            parts(content)
                .into_iter()
                .for_each(|part| answer.add(part, ROOM));
        }
        answer.finish = finish.or(answer.finish.take());
    }
}

/// Tokens of the results of tools are not among those of the prompt, and those of thoughts not among those of the
/// candidates. Cached ones are among those of the prompt.
fn usage(value: &Value) -> Usage {
    let count = |name| get(value, name).and_then(Value::count);
    let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (None, None) => None,
        (one, other) => Some(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
    };
    let thoughts = count("thoughtsTokenCount");
    Usage {
        input: sum(count("promptTokenCount"), count("toolUsePromptTokenCount")),
        output: sum(count("candidatesTokenCount"), thoughts),
        cache_read: count("cachedContentTokenCount"),
        cache_creation: None,
        reasoning: thoughts,
    }
}
