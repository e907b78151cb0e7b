//! A secret that leaves to somebody for whom it isn't meant. What logs a program in is: headers are not looked at, nor
//! one password in the body of a request, nor a token that goes to who issued it. In what is said to a model or a
//! tool there is none to log in with.

use std::collections::BTreeSet;

use super::{
    Ends, Excerpt, Heard, Leaving, Rule, Suspicion, leaving, redacted,
    rules::{Known, RULES, is_at},
};
use crate::redact::{OwnedContent, Redaction, Redactor, Shown};

/// Hashes of values that are nobody's.
pub type Examples<'a> = &'a dyn Fn() -> &'a BTreeSet<u32>;

/// So many secrets that are known by their names are more than one logs in with: name, password, second factor and
/// the secret of the client.
const MANY: usize = 4;

/// What is encoded in less is no secret.
const SHORTEST: u64 = 8;

/// In what is said a shorter password is as likely one of a test.
const LONG: u64 = 12;

/// Characters of evidence around a secret.
const BEFORE: usize = 48;
const BEHIND: usize = 16;

pub fn judge(
    heard: &Heard<'_>,
    body: Option<&OwnedContent>,
    ends: &Ends,
    trusted: &[String],
    examples: Examples<'_>,
    redactor: &Redactor,
) -> Option<Suspicion> {
    if is_at(&ends.host, trusted) {
        return None;
    }
    let judge = |text: Leaving<'_>| in_text(&text, ends, examples, redactor);
    leaving(heard, body)
        .into_iter()
        .find_map(judge)
        .or_else(|| in_query(heard, ends))
}

fn in_text(
    text: &Leaving<'_>,
    ends: &Ends,
    examples: Examples<'_>,
    redactor: &Redactor,
) -> Option<Suspicion> {
    let content = redacted(text.content, redactor)?;
    let Shown::Text(shown, marks) = content.content().shown() else {
        return None;
    };
    let (mut at, mut first, mut count) = (0, None, 0);
    let mut kinds = BTreeSet::new();
    let mut named = BTreeSet::new();
    let mut encoded = 0;
    for mark in marks {
        let label = mark.label();
        let Some(found) = shown[at..].find(&label) else {
            continue;
        };
        // Nothing before the last one: a label is no text.
        let from = shown.ceil_char_boundary((at + found).saturating_sub(BEFORE));
        let before = &shown[at.max(from)..at + found];
        at += found + label.len();
        if !is_secret(mark, ends, examples) {
            continue;
        }
        let words = before.to_ascii_lowercase();
        let is_certain = RULES.known(mark.kind) == Known::ByForm
            || shown[at..].starts_with('@')
            || RULES.is_never_meant(&words);
        match text.is_said {
            _ if is_certain => count += secrets(mark),
            false => match mark.hash {
                Some(hash) => {
                    named.insert(hash);
                }
                None => encoded += secrets(mark),
            },
            // What people say of one tells what it is.
            true if mark.length < LONG || RULES.is_fixture(&words) => continue,
            true => count += secrets(mark),
        }
        kinds.insert(mark.kind);
        first = first.or(Some((before, *mark, at)));
    }
    let named = named.len() + encoded;
    let count = match named >= MANY {
        true => count + named,
        false => count,
    };
    let (before, mark, end) = first.filter(|_| count > 0)?;
    let kinds: Vec<_> = kinds.into_iter().collect();
    Some(Suspicion {
        rule: Rule::SecretLeaving,
        place: Some(text.place.clone()),
        expected: format!("no credentials of others in what goes to {}", ends.peer),
        seen: match count {
            1 => format!("a secret: {}", kinds.join(", ")),
            count => format!("{count} secrets: {}", kinds.join(", ")),
        },
        evidence: Some(Excerpt {
            before: before.to_owned(),
            secret: Some(mark),
            behind: behind(shown, end).to_owned(),
        }),
        about: text.about,
    })
}

fn is_secret(mark: &Redaction, ends: &Ends, examples: Examples<'_>) -> bool {
    RULES.known(mark.kind) != Known::Not
        && !RULES.is_owner(mark.kind, &ends.host)
        && match mark.hash {
            Some(hash) => !examples().contains(&hash),
            // Short ones have none, and are as likely to be words. Several that are encoded together have none in
            // common, and each of them is long enough for one.
            None => mark.several > 1 && mark.length >= SHORTEST,
        }
}

/// How many it stands for.
fn secrets(mark: &Redaction) -> usize {
    mark.several.max(1) as usize
}

/// Tokens in an address are known by the labels that redaction has left there. Those that are known by a name are how
/// one logs in.
fn in_query(heard: &Heard<'_>, ends: &Ends) -> Option<Suspicion> {
    let (http, about) = heard.http?;
    let query = http.url.query.as_deref()?;
    for (start, _) in query.match_indices("[redacted:") {
        let end = start + query[start..].find(']')? + 1;
        let kind = query[start..end].split(':').nth(1)?.trim_end_matches(']');
        let is_meant = RULES.known(kind) != Known::ByForm || RULES.is_owner(kind, &ends.host);
        if is_meant {
            continue;
        }
        return Some(Suspicion {
            rule: Rule::SecretLeaving,
            place: Some("url.query".to_owned()),
            expected: format!("no credentials of others in what goes to {}", ends.peer),
            seen: format!("a secret: {kind}"),
            // It stands in there.
            evidence: None,
            about,
        });
    }
    None
}

/// What follows, up to the next secret.
fn behind(shown: &str, end: usize) -> &str {
    let rest = &shown[end..shown.floor_char_boundary(shown.len().min(end + BEHIND))];
    rest.split('[').next().unwrap_or_default()
}
