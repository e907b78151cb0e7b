//! Who runs a model: `providers.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Providers {
    provider: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    name: String,
    hosts: Vec<String>,
    #[serde(default)]
    charges: bool,
}

static PROVIDERS: LazyLock<Providers> =
    LazyLock::new(|| toml::from_str(include_str!("providers.toml")).expect("a test reads it"));

/// By the name of a server, without its port.
pub fn of(host: &str) -> Option<&'static str> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_of = |known: &String| match known.starts_with(['.', '-']) {
        true => host.ends_with(known.as_str()),
        false => host == *known,
    };
    let providers = &PROVIDERS.provider;
    let provider = providers
        .iter()
        .find(|provider| provider.hosts.iter().any(is_of))?;
    Some(&provider.name)
}

/// Do the answers of the one that is called so say what they cost, in US dollars? Others may mean something else by
/// the same words.
pub fn charges(name: &str) -> bool {
    let mut providers = PROVIDERS.provider.iter();
    providers.any(|provider| provider.charges && provider.name == name)
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn providers_by_name() {
        let cases = [
            ("api.openai.com", Some("openai")),
            ("EU.API.OpenAI.com.", Some("openai")),
            ("mine.openai.azure.com", Some("azure.ai.openai")),
            (
                "bedrock-runtime.us-east-1.amazonaws.com",
                Some("aws.bedrock"),
            ),
            (
                "europe-west4-aiplatform.googleapis.com",
                Some("gcp.vertex_ai"),
            ),
            ("api.openai.com.evil.example", None),
            ("xapi.openai.com", None),
            ("localhost", None),
        ];
        for (host, expected) in cases {
            assert_eq!(of(host), expected, "{host}");
        }
    }
}
