//! Which wire format a call is in: by the shape of its path and of its body, not by who is called.

use super::{
    call::{Request, Response},
    chat, cohere, messages, ollama, responses,
};
use crate::protocol::json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenAI's chat completions, which most others speak, too.
    Chat,
    /// The same, before there were turns.
    Completions,
    Embeddings,
    /// Anthropic's messages.
    Messages,
    /// OpenAI's responses.
    Responses,
    /// The same as the answers of a session, over a WebSocket.
    Realtime,
    /// Ollama's own: turns, a prompt, and texts to embed.
    Ollama,
    OllamaPrompt,
    OllamaEmbeddings,
    /// Cohere's, of both versions; what only its first one takes is told by its path.
    Cohere,
    CohereFirst,
    CohereEmbeddings,
}

impl Format {
    /// What a path leads to if its body fits. `path`: without what is behind the question mark.
    pub fn of_path(path: &str) -> Option<Format> {
        let path = path.trim_end_matches('/');
        let ends = |with: &str| path.ends_with(with);
        Some(match path {
            _ if ends("/api/chat") => Format::Ollama,
            _ if ends("/api/generate") => Format::OllamaPrompt,
            _ if ends("/v2/chat") => Format::Cohere,
            _ if ends("/v1/chat") => Format::CohereFirst,
            _ if ends("/v2/embed") || ends("/v1/embed") => Format::CohereEmbeddings,
            _ if ends("/api/embed") => Format::OllamaEmbeddings,
            _ if ends("/chat/completions") => Format::Chat,
            _ if ends("/completions") => Format::Completions,
            _ if ends("/embeddings") => Format::Embeddings,
            _ if ends("/responses") => Format::Responses,
            _ if ends("/messages") || ends("rawPredict") || ends("RawPredict") => Format::Messages,
            _ => return None,
        })
    }

    /// What is sent there is counted, and no model asked: `…/messages/count_tokens`, `…/responses/input_tokens`.
    pub fn counts(path: &str) -> bool {
        let path = path.trim_end_matches('/');
        path.ends_with("/count_tokens") || path.ends_with("/input_tokens")
    }

    /// What a request is, by its body and what its path says.
    pub fn of_request(path: Option<Format>, body: &Value) -> Option<Format> {
        let has = |name| body.get(name).is_some();
        let has_messages =
            || matches!(body.get("messages"), Some(Value::List(messages)) if !messages.is_empty());
        match path {
            Some(Format::Messages) if has_messages() && has("max_tokens") => Some(Format::Messages),
            Some(Format::Completions) if has("prompt") => Some(Format::Completions),
            Some(Format::Embeddings) if has("input") => Some(Format::Embeddings),
            // What Ollama's `…/api/embeddings` takes, too.
            Some(Format::Embeddings) if has("model") && has("prompt") => {
                Some(Format::OllamaEmbeddings)
            }
            Some(Format::Ollama) if has_messages() && has("model") => Some(Format::Ollama),
            Some(Format::OllamaPrompt) if has("model") && has("prompt") => path,
            Some(Format::OllamaEmbeddings) if has("model") && has("input") => path,
            Some(Format::Cohere) if has_messages() && has("model") => path,
            // What it can't do without is a word that anybody may use.
            Some(Format::CohereFirst) if has("message") => ["model", "stream", "chat_history"]
                .iter()
                .any(|name| has(name))
                .then_some(Format::Cohere),
            Some(Format::CohereEmbeddings) if has("model") || has("input_type") => {
                ["texts", "images", "inputs"]
                    .iter()
                    .any(|name| has(name))
                    .then_some(Format::CohereEmbeddings)
            }
            Some(Format::Responses) if has("input") || has("prompt") => Some(Format::Responses),
            None if has("model") && has_items(body) => Some(Format::Responses),
            _ if !has_messages() => None,
            _ if has("anthropic_version") => Some(Format::Messages),
            _ if has("model") || path == Some(Format::Chat) => Some(Format::Chat),
            _ => None,
        }
    }

    /// What a response is, or a piece of one, by itself.
    pub fn of_response(body: &Value) -> Option<Format> {
        let kind = |name| body.get(name).and_then(Value::str);
        if cohere::is_response(body) {
            return Some(Format::Cohere);
        }
        match (kind("object"), kind("type")) {
            (Some("chat.completion" | "chat.completion.chunk"), _) => Some(Format::Chat),
            (Some("text_completion"), _) => Some(Format::Completions),
            _ if body.get("created_at").is_some() && body.get("done").is_some() => {
                match (body.get("message"), body.get("response")) {
                    (Some(_), _) => Some(Format::Ollama),
                    (None, Some(_)) => Some(Format::OllamaPrompt),
                    (None, None) => None,
                }
            }
            (Some("response"), _) => Some(Format::Responses),
            (_, Some(kind)) if kind.starts_with("response.") => Some(Format::Responses),
            (
                _,
                Some("message" | "message_start" | "content_block_start" | "content_block_delta"),
            ) => Some(Format::Messages),
            _ => None,
        }
    }

    /// `gen_ai.operation.name`.
    pub const fn operation(self) -> &'static str {
        match self {
            Format::Chat
            | Format::Messages
            | Format::Responses
            | Format::Realtime
            | Format::Ollama
            | Format::Cohere
            | Format::CohereFirst => "chat",
            Format::Completions | Format::OllamaPrompt => "text_completion",
            Format::Embeddings | Format::OllamaEmbeddings | Format::CohereEmbeddings => {
                "embeddings"
            }
        }
    }

    /// `gen_ai.provider.name`, of whom nothing else is known.
    pub const fn provider(self) -> &'static str {
        match self {
            Format::Chat
            | Format::Completions
            | Format::Embeddings
            | Format::Responses
            | Format::Realtime => "openai",
            Format::Messages => "anthropic",
            Format::Cohere | Format::CohereFirst | Format::CohereEmbeddings => "cohere",
            Format::Ollama | Format::OllamaPrompt | Format::OllamaEmbeddings => "ollama",
        }
    }

    /// `openai.api.type`, if it is one of theirs.
    pub const fn api(self) -> Option<&'static str> {
        match self {
            Format::Chat => Some("chat_completions"),
            Format::Responses => Some("responses"),
            _ => None,
        }
    }

    pub fn request(self, body: &Value) -> Request {
        match self {
            Format::Chat | Format::Completions | Format::Embeddings => chat::request(body),
            Format::Messages => messages::request(body),
            Format::Responses | Format::Realtime => responses::request(body),
            Format::Ollama | Format::OllamaPrompt | Format::OllamaEmbeddings => {
                ollama::request(body)
            }
            Format::Cohere | Format::CohereFirst | Format::CohereEmbeddings => cohere::request(body),
        }
    }

    /// A response in one piece.
    pub fn response(self, body: &Value, response: &mut Response) {
        match self {
            Format::Chat | Format::Completions | Format::Embeddings => {
                chat::response(body, response)
            }
            Format::Messages => messages::response(body, response),
            Format::Responses | Format::Realtime => responses::response(body, response),
            Format::Ollama | Format::OllamaPrompt | Format::OllamaEmbeddings => {
                ollama::response(body, response)
            }
            Format::Cohere | Format::CohereFirst | Format::CohereEmbeddings => cohere::response(body, response),
        }
    }

    /// A piece of one that is streamed.
    pub fn event(self, body: &Value, response: &mut Response) {
        match self {
            Format::Chat | Format::Completions | Format::Embeddings => chat::event(body, response),
            Format::Messages => messages::event(body, response),
            Format::Responses | Format::Realtime => responses::event(body, response),
            Format::Ollama | Format::OllamaPrompt | Format::OllamaEmbeddings => {
                ollama::event(body, response)
            }
            Format::Cohere | Format::CohereFirst | Format::CohereEmbeddings => cohere::event(body, response),
        }
    }

    /// Nothing more comes of a response.
    pub fn end(self, response: &mut Response) {
        if self == Format::Responses {
            responses::end(response);
        }
    }
}

/// What goes in are items, each with what it is or whose.
fn has_items(body: &Value) -> bool {
    let items = body.get("input").map_or(&[][..], Value::list);
    let is_item = |item: &Value| {
        item.get("role").is_some() && item.get("content").is_some() || item.get("type").is_some()
    };
    !items.is_empty() && items.iter().all(is_item)
}
