//! The detect stage: what a person should look at, in what goes out. **Begin a review here.**
//!
//! It hears each exchange when it is over, as records tell of it: behind redaction. So it never holds a secret, what
//! it says needs no look of its own, and of what the policy withholds it knows as little as anybody. One rule family
//! a file: secrets that leave (`secret.rs`), encoded data (`encoded.rs`), uploads (`upload.rs`), and what was never
//! there before (`novelty.rs`). `rules.toml` has the data that they go by.
//!
//! Only clients are judged: what a server is sent is its client's to explain.
//!
//! Pure: time comes with the exchange, and what was learned before comes in ([`Detector::remember`]) and goes out
//! ([`Detector::learned`]) as a value. The same exchanges and the same baseline give the same findings.

pub mod baseline;
mod encoded;
mod novelty;
mod program;
mod quiet;
mod rules;
mod secret;
mod upload;

use std::{borrow::Cow, cell::OnceCell, collections::BTreeSet};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    plaintext::Plaintext,
    record::{Connection, Evidence, Finding, Http, Llm, LlmPart, Mcp, Process, Role, authority},
    redact::{OwnedContent, Redaction, Redactor, Shown},
};
use baseline::Baseline;
use quiet::Quiet;
use rules::RULES;

/// What is looked for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[value(rename_all = "snake_case")]
pub enum Rule {
    SecretLeaving,
    NewModelEndpoint,
    NewMcpServer,
    NewModelUser,
    LargeUpload,
    EncodedData,
}

impl Rule {
    pub const COUNT: usize = Rule::EncodedData as usize + 1;

    /// As in `finding.rule`.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::SecretLeaving => "secret_leaving",
            Rule::NewModelEndpoint => "new_model_endpoint",
            Rule::NewMcpServer => "new_mcp_server",
            Rule::NewModelUser => "new_model_user",
            Rule::LargeUpload => "large_upload",
            Rule::EncodedData => "encoded_data",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
pub enum Severity {
    Off,
    Low,
    Medium,
    High,
}

impl Severity {
    /// As in `finding.severity`.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Off => "off",
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
        }
    }
}

/// The table `[findings]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// By [`Rule`].
    pub severities: [Severity; Rule::COUNT],
    /// How long is watched before anything is unusual, and how long one finding speaks for those like it. In
    /// nanoseconds.
    pub learning: u64,
    pub window: u64,
    /// Hosts, and all below them, that secrets may go to.
    pub trusted: Vec<String>,
}

const HOUR: u64 = 3_600_000_000_000;

impl Default for Settings {
    fn default() -> Settings {
        use Severity::{High, Medium};
        Settings {
            severities: [High, Medium, Medium, Medium, High, High],
            learning: 24 * HOUR,
            window: HOUR,
            trusted: Vec::new(),
        }
    }
}

impl Settings {
    fn severity(&self, rule: Rule) -> Severity {
        self.severities[rule as usize]
    }
}

/// A record that was told, if its kind is wanted: its number.
pub type About = Option<u64>;

/// What is judged in one go: an exchange and the calls that it was, or calls by themselves.
pub struct Heard<'a> {
    /// Since boot, in nanoseconds.
    pub time: u64,
    pub process: Option<&'a Process>,
    pub connection: &'a Connection,
    pub http: Option<(&'a Http, About)>,
    pub llm: Option<(&'a Llm, About)>,
    pub mcp: &'a [(Mcp, About)],
}

/// All state of the stage.
pub struct Detector {
    settings: Settings,
    baseline: Baseline,
    quiet: Quiet,
    /// Hashes of values that documentation is full of, from the first secret on.
    examples: OnceCell<BTreeSet<u32>>,
    /// When it heard last, in this run.
    last: Option<u64>,
    is_changed: bool,
}

/// A rule's answer, in words that hold no secret: excerpts of records, numbers, names.
struct Suspicion {
    rule: Rule,
    place: Option<String>,
    expected: String,
    seen: String,
    evidence: Option<Excerpt>,
    about: About,
}

/// Of what a record shows.
#[derive(Default)]
struct Excerpt {
    before: String,
    secret: Option<Redaction>,
    behind: String,
}

/// Who sends, and to whom.
struct Ends {
    /// `None`: it is not known what it is.
    program: Option<String>,
    peer: String,
    /// The peer without its port.
    host: String,
}

/// A text that goes out.
struct Leaving<'a> {
    place: String,
    content: &'a OwnedContent,
    /// It is meant for a model or a tool, which nobody logs in to by what is said.
    is_said: bool,
    about: About,
}

impl Detector {
    pub fn new(settings: Settings) -> Detector {
        Detector {
            examples: OnceCell::new(),
            settings,
            baseline: Baseline::default(),
            quiet: Quiet::default(),
            last: None,
            is_changed: false,
        }
    }

    /// What another run has learned.
    pub fn remember(&mut self, baseline: Baseline) {
        self.baseline = baseline;
    }

    /// Other settings from here on. What was learned stays.
    pub fn follow(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What was learned, if that is more than when it was asked for last.
    pub fn learned(&mut self) -> Option<&Baseline> {
        std::mem::take(&mut self.is_changed).then_some(&self.baseline)
    }

    /// Judges it, and learns of it. `redactor`: one that redacts, for what records show as it was.
    pub fn hear(&mut self, heard: &Heard<'_>, redactor: &Redactor) -> Vec<Finding> {
        // A client has a name to ask for; of whom neither is known it is not said what leaves.
        let is_client = match heard.connection.role {
            Some(role) => role == Role::Client,
            None => heard.connection.server_name.is_some(),
        };
        if !is_client {
            return Vec::new();
        }
        let Some(ends) = ends(heard) else {
            return Vec::new();
        };
        let passed = self.last.map_or(0, |last| heard.time.saturating_sub(last));
        self.last = self.last.max(Some(heard.time));
        self.baseline.watch(passed);
        self.is_changed = true;
        let is_learned = self.baseline.watched >= self.settings.learning;

        let body = body(heard).and_then(|content| redacted(content, redactor));
        let body = body.as_deref();
        let mut suspicions = Vec::new();
        let examples = &|| self.examples.get_or_init(|| examples(redactor));
        let mut judged = |is_judged: bool, suspicion: Option<Suspicion>| {
            suspicions.extend(suspicion.filter(|_| is_judged));
        };
        let baseline = &mut self.baseline;
        judged(
            true,
            secret::judge(
                heard,
                body,
                &ends,
                &self.settings.trusted,
                examples,
                redactor,
            ),
        );
        for suspicion in novelty::judge(heard, &ends, baseline) {
            judged(is_learned, Some(suspicion));
        }
        if let Some(http) = heard.http {
            judged(is_learned, upload::judge(http, heard.llm, &ends, baseline));
        }
        let is_told = |rule| is_learned && self.settings.severity(rule) > Severity::Off;
        judged(
            is_learned,
            encoded::judge(heard, body, &ends, baseline, is_told(Rule::EncodedData)),
        );
        let exchange = exchange_of(heard);
        let mut findings = Vec::new();
        for suspicion in suspicions {
            let severity = self.settings.severity(suspicion.rule);
            if severity == Severity::Off {
                continue;
            }
            let subject = (ends.program.as_deref().unwrap_or_default(), &*ends.peer);
            let window = self.settings.window;
            let Some(suppressed) = self.quiet.tell(suspicion.rule, subject, heard.time, window)
            else {
                continue;
            };
            let clear = |text: &str| redactor.string(text);
            findings.push(Finding {
                exchange,
                rule: suspicion.rule,
                severity,
                place: suspicion.place.as_deref().map(clear),
                peer: clear(&ends.peer),
                expected: clear(&suspicion.expected),
                seen: clear(&suspicion.seen),
                evidence: suspicion.evidence.map(|excerpt| Evidence {
                    before: clear(&excerpt.before),
                    secret: excerpt.secret,
                    behind: clear(&excerpt.behind),
                }),
                suppressed,
                about: suspicion.about,
            });
        }
        findings
    }
}

/// By the hashes of this run: of redacted text nothing else says that a value is one of them.
fn examples(redactor: &Redactor) -> BTreeSet<u32> {
    let text = [&RULES.examples[..], &RULES.fillers].concat().join("\n");
    let content = redactor.whole(Plaintext::new(text.as_bytes()), &[], false);
    match content.content().shown() {
        Shown::Text(_, marks) => marks.iter().filter_map(|mark| mark.hash).collect(),
        _ => BTreeSet::new(),
    }
}

fn exchange_of(heard: &Heard<'_>) -> Option<u64> {
    let http = heard.http.map(|(http, _)| http.exchange);
    let llm = || heard.llm.map(|(llm, _)| llm.exchange);
    let mcp = || heard.mcp.first().map(|(mcp, _)| mcp.exchange);
    http.or_else(llm).or_else(mcp)
}

/// The server as the handshake names it, else as the request does, else its address. The port as the request has it:
/// that of the socket may be known of one exchange and not of the next.
fn ends(heard: &Heard<'_>) -> Option<Ends> {
    let Heard { http, llm, mcp, .. } = heard;
    let urls = [
        http.map(|(http, _)| &http.url),
        llm.map(|(llm, _)| &llm.url),
        mcp.first().map(|(mcp, _)| &mcp.url),
    ];
    let mut fulls = urls
        .into_iter()
        .flatten()
        .filter_map(|url| url.full.as_deref());
    let asked = fulls.find_map(authority);
    let connection = heard.connection;
    let host = match (&connection.server_name, asked) {
        (Some(name), _) => name.as_str().to_ascii_lowercase(),
        (None, Some((host, _))) => host.to_ascii_lowercase(),
        (None, None) => connection.peer?.ip().to_canonical().to_string(),
    };
    let port = asked
        .and_then(|(_, port)| port)
        .filter(|port| ![80, 443].contains(port));
    let peer = match port {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    };
    Some(Ends {
        program: heard.process.and_then(program::name),
        peer,
        host,
    })
}

/// What of it is text that goes out. `body`: of the request, if it is nothing else.
fn leaving<'a>(heard: &Heard<'a>, body: Option<&'a OwnedContent>) -> Vec<Leaving<'a>> {
    let mut texts = Vec::new();
    if let Some((llm, about)) = heard.llm {
        said_to_model(llm, about, &mut texts);
    }
    for (mcp, about) in heard
        .mcp
        .iter()
        .filter(|(mcp, _)| mcp.initiator == "client")
    {
        let parts = [
            ("gen_ai.tool.call.arguments", &mcp.arguments),
            ("mcp.params", &mcp.params),
        ];
        texts.extend(parts.into_iter().filter_map(|(place, content)| {
            Some(Leaving {
                place: place.to_owned(),
                content: content.as_ref()?,
                is_said: true,
                about: *about,
            })
        }));
    }
    if texts.is_empty()
        && let (Some(content), Some((_, about))) = (body, heard.http)
    {
        texts.push(Leaving {
            place: BODY.to_owned(),
            content,
            is_said: false,
            about,
        });
    }
    texts
}

/// Where the body of a request is.
const BODY: &str = "http.request.body";

fn body<'a>(heard: &Heard<'a>) -> Option<&'a OwnedContent> {
    let (http, _) = heard.http?;
    Some(&http.request.as_ref()?.body.content)
}

fn said_to_model<'a>(llm: &'a Llm, about: About, texts: &mut Vec<Leaving<'a>>) {
    let instructions = llm.instructions.iter().enumerate();
    let instructions = instructions.map(|(at, part)| ("gen_ai.system_instructions", at, part));
    let turns = llm.input.iter().enumerate();
    let turns = turns.flat_map(|(at, turn)| {
        let parts = turn.parts.iter();
        parts.map(move |part| ("gen_ai.input.messages", at, part))
    });
    for (list, at, part) in instructions.chain(turns) {
        let content = match part {
            LlmPart::Text(_, content) => content,
            LlmPart::Call { arguments, .. } => arguments,
            LlmPart::Result { result, .. } => result,
            LlmPart::Blob { .. }
            | LlmPart::Uri { .. }
            | LlmPart::File { .. }
            | LlmPart::Other { .. } => continue,
        };
        texts.push(Leaving {
            place: format!("{list}[{at}]"),
            content,
            is_said: true,
            about,
        });
    }
}

/// A content as redaction shows it, also where all is shown.
fn redacted<'a>(content: &'a OwnedContent, redactor: &Redactor) -> Option<Cow<'a, OwnedContent>> {
    match content.content().shown() {
        Shown::Nothing | Shown::Encoded => None,
        Shown::Text(..) => Some(Cow::Borrowed(content)),
        Shown::Raw(bytes) => Some(Cow::Owned(redactor.whole(
            Plaintext::new(bytes),
            &[],
            false,
        ))),
    }
}

#[cfg(test)]
mod tests;
