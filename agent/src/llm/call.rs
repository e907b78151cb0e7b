//! What is known of one call to a model, whatever wire format told it.

use std::collections::HashMap;

use crate::protocol::json::{Text, Value};

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub model: Option<Text>,
    pub parameters: Parameters,
    /// Instructions that stand apart from the messages.
    pub instructions: Vec<Part>,
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    /// As the API names it: a conversation, a thread, a session.
    pub conversation: Option<Text>,
    /// The response that this one goes on from.
    pub previous: Option<Text>,
    pub service_tier: Option<Text>,
}

/// By the names of OpenTelemetry's `gen_ai.request.*`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    pub stream: Option<bool>,
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub seed: Option<u64>,
    /// How many answers are wanted.
    pub choices: Option<u64>,
    pub stop_sequences: Vec<Text>,
    pub encoding_formats: Vec<Text>,
    pub dimensions: Option<u64>,
    /// `text`, `json`, `image`, `speech`.
    pub output: Option<&'static str>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Response {
    pub id: Option<Text>,
    pub model: Option<Text>,
    /// Answers, in order. Most calls want one.
    pub messages: Vec<Message>,
    pub usage: Usage,
    pub durations: Durations,
    /// What the API says that it costs.
    pub charged: Option<f64>,
    /// A word of the API, such as `rate_limit_error`.
    pub error: Option<Text>,
    pub service_tier: Option<Text>,
    pub fingerprint: Option<Text>,
    /// The conversation that it became a part of.
    pub conversation: Option<Text>,
    /// The API said that it is over.
    pub is_over: bool,
}

/// Tokens, as the API counts them; all that went in, cached or not, is `input`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: Option<u64>,
    pub output: Option<u64>,
    /// Of the input, read from a cache and written to it.
    pub cache_read: Option<u64>,
    pub cache_creation: Option<u64>,
    /// Of the output, for thoughts.
    pub reasoning: Option<u64>,
}

impl Usage {
    /// What is said later holds.
    pub fn update(&mut self, later: Usage) {
        let Usage {
            input,
            output,
            cache_read,
            cache_creation,
            reasoning,
        } = later;
        self.input = input.or(self.input);
        self.output = output.or(self.output);
        self.cache_read = cache_read.or(self.cache_read);
        self.cache_creation = cache_creation.or(self.cache_creation);
        self.reasoning = reasoning.or(self.reasoning);
    }
}

/// How long a server says that it took, in nanoseconds. Only Ollama does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    pub total: Option<u64>,
    /// To load the model.
    pub load: Option<u64>,
    /// To read what was asked, and to say what is answered.
    pub prompt_eval: Option<u64>,
    pub eval: Option<u64>,
}

impl Durations {
    /// What is said later holds.
    pub fn update(&mut self, later: Durations) {
        let Durations {
            total,
            load,
            prompt_eval,
            eval,
        } = later;
        self.total = total.or(self.total);
        self.load = load.or(self.load);
        self.prompt_eval = prompt_eval.or(self.prompt_eval);
        self.eval = eval.or(self.eval);
    }
}

/// Most parts of an answer that comes in pieces: none has so many turns from thoughts to words and back.
pub const PARTS_MAX: usize = 1024;

/// One turn of a conversation.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or another word of the API.
    pub role: Option<Text>,
    pub name: Option<Text>,
    pub parts: Vec<Part>,
    /// Why an answer ends, as the API says it.
    pub finish: Option<Text>,
}

#[derive(Clone, Debug)]
pub enum Part {
    Text(Text),
    /// What a model says to itself.
    Reasoning(Text),
    Refusal(Text),
    Call(ToolCall),
    Result(ToolResult),
    /// An image, a sound, a file: sent along.
    Blob {
        modality: Modality,
        media: Option<Text>,
        data: Text,
    },
    /// The same, by address.
    Uri {
        modality: Modality,
        uri: Text,
    },
    /// The same, by an id of the API.
    File {
        modality: Modality,
        id: Text,
    },
    /// What no format of ours knows: its type, and its size as JSON.
    Other {
        kind: Text,
        size: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    Image,
    Audio,
    Video,
    Document,
}

impl Modality {
    /// Of a media type.
    pub fn of(media: &str) -> Modality {
        match media.split('/').next() {
            Some("image") => Modality::Image,
            Some("audio") => Modality::Audio,
            Some("video") => Modality::Video,
            _ => Modality::Document,
        }
    }

    /// As in OpenTelemetry's messages, where there is a name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Modality::Image => "image",
            Modality::Audio => "audio",
            Modality::Video => "video",
            Modality::Document => "document",
        }
    }
}

/// What a model wants to be run.
#[derive(Clone, Debug, Default)]
pub struct ToolCall {
    pub id: Option<Text>,
    pub name: Option<Text>,
    /// JSON, as text.
    pub arguments: Text,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct ToolResult {
    /// Of the call.
    pub id: Option<Text>,
    pub name: Option<Text>,
    pub result: Text,
    pub is_error: bool,
}

/// What a model may ask for.
#[derive(Clone, Debug, Default)]
pub struct Tool {
    /// `function`, or another word of the API.
    pub kind: Option<Text>,
    pub name: Option<Text>,
    pub description: Option<Text>,
    /// A JSON schema, as text.
    pub parameters: Option<Text>,
}

impl Message {
    pub fn of(role: &str) -> Message {
        Message {
            role: Some(Text::of(role)),
            ..Message::default()
        }
    }

    /// Is anything said in it that people read?
    pub fn has_words(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Text(text) | Part::Reasoning(text) | Part::Refusal(text) => !text.is_empty(),
            _ => false,
        })
    }

    /// A part of an answer that comes in pieces, if there is room for it.
    pub fn push(&mut self, part: Part) -> bool {
        let has_room = self.parts.len() < PARTS_MAX;
        if has_room {
            self.parts.push(part);
        }
        has_room
    }

    /// More of an answer: text goes on where the last part is of its kind.
    pub fn add(&mut self, part: Part, room: usize) {
        match part {
            Part::Text(text) => self.append(Part::Text, &text, room),
            Part::Reasoning(text) => self.append(Part::Reasoning, &text, room),
            part => {
                self.push(part);
            }
        }
    }

    /// The last part, if it is text of this kind, or a new one.
    pub fn append(&mut self, kind: fn(Text) -> Part, more: &Text, room: usize) {
        let new = kind(Text::default());
        let is_same = self
            .parts
            .last()
            .is_some_and(|last| std::mem::discriminant(last) == std::mem::discriminant(&new));
        if !is_same && !self.push(new) {
            return;
        }
        if let Some(Part::Text(text) | Part::Reasoning(text) | Part::Refusal(text)) =
            self.parts.last_mut()
        {
            text.append(more, room);
        }
    }
}

/// A string member.
pub fn text(value: &Value, name: &str) -> Option<Text> {
    value.get(name)?.text().cloned()
}

/// A part of a request or a response that nothing is known of.
pub fn other(value: &Value) -> Part {
    Part::Other {
        kind: text(value, "type").unwrap_or_default(),
        size: value.written().kept.len(),
    }
}

/// Strings of a list, or a string alone.
pub fn texts(value: Option<&Value>) -> Vec<Text> {
    match value {
        Some(Value::Text(text)) => vec![text.clone()],
        Some(value) => value
            .list()
            .iter()
            .filter_map(Value::text)
            .cloned()
            .collect(),
        None => Vec::new(),
    }
}

/// What may be text, or JSON of any kind: a tool's result, its arguments.
pub fn free(value: &Value) -> Text {
    match value {
        Value::Text(text) => text.clone(),
        Value::Null => Text::default(),
        value => value.written(),
    }
}

impl Request {
    /// A part of what it was read from is missing, whichever it is.
    pub fn lacks(&mut self) {
        let schemas = self
            .tools
            .iter_mut()
            .filter_map(|tool| tool.parameters.as_mut());
        schemas.for_each(|schema| schema.is_cut = true);
    }

    /// Gives results the names of the tools that they are of: most APIs name a call by its id alone.
    pub fn name_results(&mut self) {
        let mut names: HashMap<String, Text> = HashMap::new();
        for part in self.messages.iter_mut().flat_map(|turn| &mut turn.parts) {
            match part {
                Part::Call(ToolCall {
                    id: Some(id),
                    name: Some(name),
                    ..
                }) => {
                    names.insert(id.kept.clone(), name.clone());
                }
                Part::Result(ToolResult {
                    id: Some(id),
                    name: name @ None,
                    ..
                }) => *name = names.get(&id.kept).cloned(),
                _ => {}
            }
        }
    }

    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        let Request {
            model,
            parameters,
            instructions,
            messages,
            tools,
            conversation,
            previous,
            service_tier,
        } = self;
        let words = [model, conversation, previous, service_tier];
        let lists = [&parameters.stop_sequences, &parameters.encoding_formats];
        let texts = lists.into_iter().flatten();
        let tools: usize = tools.iter().map(Tool::weight).sum();
        words_weight(words)
            + texts
                .map(|text| size_of::<Text>() + text.weight())
                .sum::<usize>()
            + parts_weight(instructions)
            + messages_weight(messages)
            + tools
    }
}

impl Response {
    /// Bytes of memory, but for a few.
    pub fn weight(&self) -> usize {
        let Response {
            id,
            model,
            messages,
            error,
            service_tier,
            fingerprint,
            conversation,
            usage: _,
            durations: _,
            charged: _,
            is_over: _,
        } = self;
        messages_weight(messages)
            + words_weight([id, model, error, service_tier, fingerprint, conversation])
    }
}

impl Tool {
    fn weight(&self) -> usize {
        let Tool {
            kind,
            name,
            description,
            parameters,
        } = self;
        size_of::<Tool>() + words_weight([kind, name, description, parameters])
    }
}

/// Bytes of memory, but for a few.
pub fn messages_weight(messages: &[Message]) -> usize {
    let weight = |message: &Message| {
        let Message {
            role,
            name,
            parts,
            finish,
        } = message;
        size_of::<Message>() + words_weight([role, name, finish]) + parts_weight(parts)
    };
    messages.iter().map(weight).sum()
}

/// What texts take besides themselves.
pub fn words_weight<const N: usize>(words: [&Option<Text>; N]) -> usize {
    words.into_iter().flatten().map(Text::weight).sum()
}

fn parts_weight(parts: &[Part]) -> usize {
    let weight = |part: &Part| {
        let texts = match part {
            Part::Text(text) | Part::Reasoning(text) | Part::Refusal(text) => text.weight(),
            Part::Call(ToolCall {
                id,
                name,
                arguments,
            }) => words_weight([id, name]) + arguments.weight(),
            Part::Result(ToolResult {
                id,
                name,
                result,
                is_error: _,
            }) => words_weight([id, name]) + result.weight(),
            Part::Blob { media, data, .. } => words_weight([media]) + data.weight(),
            Part::Uri { uri: text, .. }
            | Part::File { id: text, .. }
            | Part::Other { kind: text, .. } => text.weight(),
        };
        size_of::<Part>() + texts
    };
    parts.iter().map(weight).sum()
}
