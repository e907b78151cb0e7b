//! Which wire format a call is in: by the shape of its path and of its body, not by who is called.

use super::{
    bedrock::{self, invoke},
    call::{Request, Response},
    chat, cohere, conversations, gemini, messages, ollama, responses,
    route::Route,
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
    /// Cohere's, of both versions.
    Cohere,
    CohereEmbeddings,
    Gemini,
    GeminiEmbeddings,
    /// Bedrock's own, for all models; and what their families have, without a word for it.
    Converse,
    Invoke,
    InvokeEmbeddings,
    /// Mistral's.
    Conversations,
}

impl Format {
    /// What a path leads to if its body fits. `path`: without what is behind the question mark.
    pub fn of_path(path: &str) -> Option<Format> {
        let path = path.trim_end_matches('/');
        let ends = |with: &str| path.ends_with(with);
        Some(match path {
            _ if ends("/api/chat") => Format::Ollama,
            _ if ends("/api/generate") => Format::OllamaPrompt,
            _ if ends("/v2/chat") || ends("/v1/chat") => Format::Cohere,
            _ if ends("/v2/embed") || ends("/v1/embed") => Format::CohereEmbeddings,
            _ if ends("/api/embed") => Format::OllamaEmbeddings,
            _ if ends("/chat/completions") => Format::Chat,
            _ if ends("/completions") => Format::Completions,
            _ if ends("/embeddings") => Format::Embeddings,
            _ if ends("/responses") => Format::Responses,
            _ if ends("/messages") => Format::Messages,
            _ if ends("/converse") || ends("/converse-stream") => Format::Converse,
            _ if ends("/invoke") || ends("/invoke-with-response-stream") => {
                let (_, model) = path.rsplit_once("/model/")?;
                match model.contains("embed") {
                    true => Format::InvokeEmbeddings,
                    false => Format::Invoke,
                }
            }
            // Vertex AI has others' models under their own formats.
            _ if ends(":rawPredict") || ends(":streamRawPredict") => {
                match path.contains("/publishers/anthropic/") {
                    true => Format::Messages,
                    false => Format::Chat,
                }
            }
            _ if ends(":generateContent") || ends(":streamGenerateContent") => Format::Gemini,
            _ if ends(":embedContent") || ends(":batchEmbedContents") => Format::GeminiEmbeddings,
            _ if ends(":predict") => Format::GeminiEmbeddings,
            _ if conversations::is_path(path) => Format::Conversations,
            _ => return None,
        })
    }

    /// What a request is, by its body and what its path says.
    pub fn of_request(route: &Route, body: &Value) -> Option<Format> {
        let path = route.format;
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
            // What its first version can't do without is a word that anybody may use.
            Some(Format::Cohere) if route.is_first && has("message") => {
                ["model", "stream", "chat_history"]
                    .iter()
                    .any(|name| has(name))
                    .then_some(Format::Cohere)
            }
            Some(Format::Cohere) if !route.is_first && has_messages() && has("model") => path,
            Some(Format::CohereEmbeddings) if has("model") || has("input_type") => {
                ["texts", "images", "inputs"]
                    .iter()
                    .any(|name| has(name))
                    .then_some(Format::CohereEmbeddings)
            }
            Some(Format::Responses) if has("input") || has("prompt") => Some(Format::Responses),
            None if has("model") && has_items(body) => Some(Format::Responses),
            Some(Format::Conversations) if conversations::is_request(body) => path,
            Some(Format::Gemini) if gemini::is_request(body) => Some(Format::Gemini),
            Some(Format::GeminiEmbeddings) if gemini::is_embedding(body) => {
                Some(Format::GeminiEmbeddings)
            }
            // Command R of Bedrock takes what Cohere's first version does.
            Some(Format::Invoke) if has("message") => Some(Format::Cohere),
            Some(Format::Invoke | Format::InvokeEmbeddings) if invoke::is_request(body) => path,
            Some(Format::Converse | Format::Invoke)
                if has_messages() && bedrock::is_conversation(body) =>
            {
                Some(Format::Converse)
            }
            _ if !has_messages() => None,
            _ if has("anthropic_version") => Some(Format::Messages),
            _ if has("model")
                || matches!(
                    path,
                    Some(Format::Chat | Format::Completions | Format::Invoke)
                ) =>
            {
                Some(Format::Chat)
            }
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
            (Some("conversation.response"), _) | (_, Some("conversation.response.started")) => {
                Some(Format::Conversations)
            }
            (
                _,
                Some("message" | "message_start" | "content_block_start" | "content_block_delta"),
            ) => Some(Format::Messages),
            _ if gemini::is_response(body) => Some(Format::Gemini),
            _ if body.at(&["output", "message", "content"]).is_some()
                && body.get("stopReason").is_some() =>
            {
                Some(Format::Converse)
            }
            _ if ["messageStart", "contentBlockDelta"]
                .iter()
                .any(|name| body.get(name).is_some()) =>
            {
                Some(Format::Converse)
            }
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
            | Format::Converse
            | Format::Conversations => "chat",
            Format::Completions | Format::OllamaPrompt | Format::Invoke => "text_completion",
            Format::Embeddings
            | Format::OllamaEmbeddings
            | Format::CohereEmbeddings
            | Format::GeminiEmbeddings
            | Format::InvokeEmbeddings => "embeddings",
            Format::Gemini => "generate_content",
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
            Format::Cohere | Format::CohereEmbeddings => "cohere",
            Format::Ollama | Format::OllamaPrompt | Format::OllamaEmbeddings => "ollama",
            Format::Conversations => "mistral_ai",
            Format::Gemini | Format::GeminiEmbeddings => "gcp.gemini",
            Format::Converse | Format::Invoke | Format::InvokeEmbeddings => "aws.bedrock",
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
            Format::Cohere | Format::CohereEmbeddings => cohere::request(body),
            Format::Gemini | Format::GeminiEmbeddings => gemini::request(body),
            Format::Converse => bedrock::request(body),
            Format::Conversations => conversations::request(body),
            Format::Invoke | Format::InvokeEmbeddings => invoke::request(body),
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
            Format::Cohere | Format::CohereEmbeddings => cohere::response(body, response),
            Format::Gemini | Format::GeminiEmbeddings => gemini::response(body, response),
            Format::Converse => bedrock::response(body, response),
            Format::Conversations => conversations::response(body, response),
            Format::Invoke | Format::InvokeEmbeddings => invoke::response(body, response),
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
            Format::Cohere | Format::CohereEmbeddings => cohere::event(body, response),
            Format::Gemini | Format::GeminiEmbeddings => gemini::event(body, response),
            Format::Converse => bedrock::event(body, response),
            Format::Conversations => conversations::event(body, response),
            Format::Invoke | Format::InvokeEmbeddings => invoke::event(body, response),
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
