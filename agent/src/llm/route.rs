//! What the path of a call says besides its format: which model, whose, and how the answer is wanted.

use super::format::Format;
use crate::{
    http::unescaped,
    protocol::{head, json::Text},
};

#[derive(Debug, Default)]
pub struct Route {
    /// What its body is, if it fits.
    pub format: Option<Format>,
    /// It leads to the first version of an API whose second one has other bodies: Cohere's.
    pub is_first: bool,
    pub model: Option<Text>,
    /// `gen_ai.provider.name`: it holds behind a gateway, too, whose name says nothing.
    pub provider: Option<&'static str>,
    /// The path asks for a stream. Others ask for it in the body.
    pub stream: Option<bool>,
    /// A streamed response without events is a list.
    pub is_list: bool,
}

impl Route {
    /// None: what is there counts tokens and calls no model.
    pub fn of(head: &head::Request) -> Option<Route> {
        let target = String::from_utf8_lossy(head.target.as_deref().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = path
            .split('#')
            .next()
            .unwrap_or_default()
            .trim_end_matches('/');
        let has_key = head.fields.get("api-key").is_some();
        Route::of_path(path, has_key || query.contains("api-version="))
    }

    /// `is_azure`: what comes with it is as Azure wants it. Others have `/openai/v1` in their paths, too.
    fn of_path(path: &str, is_azure: bool) -> Option<Route> {
        // Their bodies are those of calls.
        const COUNTING: [&str; 3] = ["/count_tokens", "/input_tokens", "/count-tokens:rawPredict"];
        if COUNTING.iter().any(|end| path.ends_with(end)) {
            return None;
        }
        let mut route = Route {
            format: Format::of_path(path),
            is_first: path.ends_with("/v1/chat"),
            ..Route::default()
        };
        if let Some(name) = between(path, "/openai/deployments/", '/') {
            route.provider = Some("azure.ai.openai");
            route.model = Some(decoded(name));
        } else if path.contains("/openai/v1/") && is_azure {
            route.provider = Some("azure.ai.openai");
        } else if let Some((model, method)) = google(path) {
            route.model = Some(decoded(model));
            route.stream = method.starts_with("stream").then_some(true);
            route.is_list = method == "streamGenerateContent";
        } else if let Some((model, method)) = bedrock(path) {
            route.provider = Some("aws.bedrock");
            route.model = Some(decoded(model));
            route.stream = method.ends_with("-stream").then_some(true);
        }
        if path.contains("/projects/") && path.contains("/locations/") && route.format.is_some() {
            route.provider = Some("gcp.vertex_ai");
        }
        Some(route)
    }
}

/// `…/models/MODEL:METHOD`, as Google's APIs have it.
fn google(path: &str) -> Option<(&str, &str)> {
    let (_, last) = path.rsplit_once("/models/")?;
    last.rsplit_once(':').filter(|(_, method)| {
        matches!(
            *method,
            "generateContent"
                | "streamGenerateContent"
                | "embedContent"
                | "batchEmbedContents"
                | "predict"
                | "rawPredict"
                | "streamRawPredict"
        )
    })
}

/// `…/model/ID/METHOD`, as Bedrock has it. An ID may be a whole ARN, with slashes.
fn bedrock(path: &str) -> Option<(&str, &str)> {
    let (_, last) = path.split_once("/model/")?;
    last.rsplit_once('/').filter(|(_, method)| {
        matches!(
            *method,
            "converse" | "converse-stream" | "invoke" | "invoke-with-response-stream"
        )
    })
}

/// What stands behind `start`, up to `end`.
fn between<'p>(path: &'p str, start: &str, end: char) -> Option<&'p str> {
    let (_, rest) = path.split_once(start)?;
    rest.split_once(end).map(|(name, _)| name)
}

fn decoded(part: &str) -> Text {
    Text::of(&String::from_utf8_lossy(&unescaped(part.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_providers_by_path() {
        let cases = [
            (
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
                "gemini-2.5-pro - streamed",
            ),
            (
                "/v1beta/models/gemini-embedding-001:embedContent",
                "gemini-embedding-001 -",
            ),
            (
                "/v1/projects/p/locations/eu/publishers/google/models/gemini-2.5-pro:generateContent",
                "gemini-2.5-pro gcp.vertex_ai",
            ),
            (
                "/v1/projects/p/locations/eu/publishers/anthropic/models/claude-opus-4-1@20250805:streamRawPredict",
                "claude-opus-4-1@20250805 gcp.vertex_ai streamed",
            ),
            (
                "/v1/projects/p/locations/eu/endpoints/openapi/chat/completions",
                "- gcp.vertex_ai",
            ),
            ("/v1/projects/p/locations/eu/jobs", "- -"),
            (
                "/gateway/openai/deployments/my%20gpt%2/chat/completions",
                "my gpt%2 azure.ai.openai",
            ),
            ("/openai/v1/chat/completions", "- -"),
            ("/v1/models/a:explain", "- -"),
            (
                "/model/anthropic.claude-opus-4-1-20250805-v1%3A0/converse-stream",
                "anthropic.claude-opus-4-1-20250805-v1:0 aws.bedrock streamed",
            ),
            (
                "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.amazon.nova/invoke",
                "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova aws.bedrock",
            ),
            (
                "/gate/model/arn:aws:bedrock:eu-west-1:1:provisioned-model/x/invoke-with-response-stream",
                "arn:aws:bedrock:eu-west-1:1:provisioned-model/x aws.bedrock streamed",
            ),
            ("/model/x/explain", "- -"),
            ("/v1/chat/completions", "- -"),
        ];
        for (path, expected) in cases {
            let route = Route::of_path(path, false).unwrap();
            let model = route.model.map_or("-".into(), |model| model.kept);
            let stream = if route.stream == Some(true) {
                " streamed"
            } else {
                ""
            };
            let said = format!("{model} {}{stream}", route.provider.unwrap_or("-"));
            assert_eq!(said, expected, "{path}");
        }
        let route = Route::of_path("/openai/v1/chat/completions", true).unwrap();
        assert_eq!(route.provider, Some("azure.ai.openai"));
        for path in [
            "/v1/messages/count_tokens",
            "/v1/projects/p/locations/eu/publishers/anthropic/models/count-tokens:rawPredict",
        ] {
            assert!(Route::of_path(path, false).is_none(), "{path}");
        }
    }
}
