//! Calls to models → what records may show of them: everything goes through the redactor here.
//!
//! With `--content none` there is what was called and what it took, and nothing of what was said.

use super::{
    Call, Turn,
    call::{Message, Part, Tool},
    dialog::Place,
    price::Cost,
    provider,
};
use crate::{
    http::Teller,
    plaintext::Plaintext,
    protocol::{exchange::Exchange, head, json::Text},
    record::{Llm, LlmMessage, LlmPart, LlmTool, authority},
    redact::{Clear, OwnedContent, Policy},
};

/// Longest name, id or word of an API that is told.
const WORD_MAX: usize = 256;

/// What an answer says that it costs, where that is known to be money.
fn charged(provider: &str, amount: Option<f64>) -> Option<Cost> {
    let amount = amount.filter(|_| provider::charges(provider))?;
    Some(Cost {
        amount,
        currency: "USD",
    })
}

impl Teller<'_> {
    /// A call, if it is clear what it is.
    pub fn llm(&self, call: &Call, exchange: &Exchange, place: Place) -> Option<Llm> {
        let began = exchange.halves().next()?.began;
        let ended = exchange.halves().map(|half| half.ended).max()?;
        self.call(call, (exchange.id, exchange.asked()), (began, ended), place)
    }

    /// A call over a WebSocket. `became`: the exchange that became it, and what that asked for.
    pub fn turn(&self, turn: &Turn, became: (u64, &head::Request), place: Place) -> Option<Llm> {
        let (exchange, asked) = became;
        let (began, ended) = (turn.began, turn.ended);
        self.call(&turn.call, (exchange, Some(asked)), (began, ended), place)
    }

    fn call(
        &self,
        call: &Call,
        (exchange, head): (u64, Option<&head::Request>),
        (began, ended): (u64, u64),
        place: Place,
    ) -> Option<Llm> {
        let format = call.format?;
        let (asked, answered) = (&call.request, &call.response);
        let url = head.map(|head| self.url(head)).unwrap_or_default();
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        let pace = call.pace;
        let is_told = self.policy != Policy::None;
        let provider = self.provider(&url.full).or(call.provider())?;
        let models = [&answered.model, &asked.model];
        let models = models.into_iter().flatten().map(|model| &*model.kept);
        Some(Llm {
            exchange,
            is_open: false,
            told: call.streamed.begun.map(|_| call.streamed.asked),
            has_streamed: call.streamed.has_words,
            operation: format.operation(),
            provider,
            owner: format.provider(),
            api: format.api(),
            cost: self
                .prices
                .cost(provider, models, &answered.usage)
                .or_else(|| charged(provider, answered.charged)),
            model: self.word(&asked.model),
            parameters: crate::record::LlmParameters {
                stream: asked.parameters.stream,
                max_tokens: asked.parameters.max_tokens,
                temperature: asked.parameters.temperature,
                top_p: asked.parameters.top_p,
                top_k: asked.parameters.top_k,
                frequency_penalty: asked.parameters.frequency_penalty,
                presence_penalty: asked.parameters.presence_penalty,
                seed: asked.parameters.seed,
                choices: asked.parameters.choices,
                stop_sequences: match is_told {
                    true => asked
                        .parameters
                        .stop_sequences
                        .iter()
                        .map(|text| self.clear(text))
                        .collect(),
                    false => Vec::new(),
                },
                encoding_formats: asked
                    .parameters
                    .encoding_formats
                    .iter()
                    .map(|text| self.clear(text))
                    .collect(),
                dimensions: asked.parameters.dimensions,
            },
            output_type: asked.parameters.output,
            response_id: self.word(&answered.id),
            response_model: self.word(&answered.model),
            finish_reasons: answered
                .messages
                .iter()
                .filter_map(|message| self.word(&message.finish))
                .collect(),
            request_tier: self.word(&asked.service_tier),
            response_tier: self.word(&answered.service_tier),
            fingerprint: self.word(&answered.fingerprint),
            usage: answered.usage,
            durations: answered.durations,
            error: self.word(&answered.error),
            conversation: self
                .word(&answered.conversation)
                .or_else(|| self.word(&asked.conversation)),
            place,
            instructions: self.parts(&asked.instructions),
            input: self.messages(&asked.messages),
            output: self.messages(&answered.messages),
            tools: match is_told {
                true => asked.tools.iter().map(|tool| self.tool(tool)).collect(),
                false => Vec::new(),
            },
            began: self.wall(began),
            ended: self.wall(ended),
            duration: seconds(began, ended),
            chunks: pace.chunks,
            first_chunk: (pace.chunks > 0).then(|| seconds(began, pace.first)),
            per_chunk: (pace.chunks > 1)
                .then(|| seconds(pace.first, pace.last) / (pace.chunks - 1) as f64),
            url,
            missing: call.missing.names().collect(),
        })
    }

    fn provider(&self, url: &Option<Clear>) -> Option<&'static str> {
        let url = url.as_deref()?;
        let by_url = authority(url).and_then(|(host, _)| provider::of(host));
        by_url.or_else(|| provider::of(self.server?))
    }

    fn messages(&self, messages: &[Message]) -> Vec<LlmMessage> {
        if self.policy == Policy::None {
            return Vec::new();
        }
        let told = |message: &Message| LlmMessage {
            role: self.word(&message.role),
            name: self.word(&message.name),
            parts: self.parts(&message.parts),
            finish: self.word(&message.finish),
        };
        messages.iter().map(told).collect()
    }

    fn parts(&self, parts: &[Part]) -> Vec<LlmPart> {
        if self.policy == Policy::None {
            return Vec::new();
        }
        parts.iter().map(|part| self.part(part)).collect()
    }

    fn part(&self, part: &Part) -> LlmPart {
        match part {
            Part::Text(text) => LlmPart::Text("text", self.content(text)),
            Part::Reasoning(text) => LlmPart::Text("reasoning", self.content(text)),
            Part::Refusal(text) => LlmPart::Text("refusal", self.content(text)),
            Part::Call(call) => LlmPart::Call {
                id: self.word(&call.id),
                name: self.word(&call.name),
                arguments: self.content(&call.arguments),
            },
            Part::Result(result) => LlmPart::Result {
                id: self.word(&result.id),
                name: self.word(&result.name),
                result: self.content(&result.result),
                is_error: result.is_error,
            },
            Part::Blob {
                modality,
                media,
                data,
            } => {
                let blob = data.decoded();
                LlmPart::Blob {
                    modality: modality.name(),
                    media: self.word(media),
                    // What is no base64 is at least as long as it is.
                    size: blob.map_or(data.length, |blob| blob.size),
                    sha256: blob.map(|blob| blob.sha256),
                }
            }
            Part::Uri { modality, uri } => LlmPart::Uri {
                modality: modality.name(),
                uri: self.clear(uri),
            },
            Part::File { modality, id } => LlmPart::File {
                modality: modality.name(),
                id: self.clear(id),
            },
            Part::Other { kind, size } => LlmPart::Other {
                kind: self.clear(kind),
                size: *size as u64,
            },
        }
    }

    fn tool(&self, tool: &Tool) -> LlmTool {
        LlmTool {
            kind: self.word(&tool.kind),
            name: self.word(&tool.name),
            description: tool.description.as_ref().map(|text| self.content(text)),
            parameters: tool.parameters.as_ref().map(|text| self.content(text)),
            is_whole: tool.parameters.as_ref().is_some_and(|text| !text.is_cut),
        }
    }

    fn content(&self, text: &Text) -> OwnedContent {
        self.redactor
            .whole(Plaintext::new(text.kept.as_bytes()), &[], text.is_cut)
    }

    /// What an API calls something.
    fn word(&self, text: &Option<Text>) -> Option<Clear> {
        text.as_ref().map(|text| self.clear(text))
    }

    fn clear(&self, text: &Text) -> Clear {
        let end = text.kept.floor_char_boundary(WORD_MAX);
        self.redactor.string(&text.kept[..end])
    }
}
