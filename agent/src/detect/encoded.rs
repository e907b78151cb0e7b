//! Encoded data in bulk, in a body that is text: base64, hexadecimal or anything else that is random to who reads it,
//! where this program does not usually send any to this peer. Images, sounds, documents and public keys are no finding
//! where they are what they say; binary bodies and parts that are declared are what the upload's rule is for.
//!
//! A body is looked at in strides: only what could be within a long run is read.

use super::{BODY, Ends, Excerpt, Heard, Rule, Suspicion, baseline::Baseline, rules::RULES};
use crate::{
    amount::size,
    record::{Llm, LlmPart},
    redact::{OwnedContent, Shown},
};

/// A line of wrapped base64 is 64 or 76 characters long.
const LINE: usize = 48;
/// One run that is data in bulk, and what many short ones are together.
const RUN: usize = 512;
const SUM: usize = 4096;
/// A run counts in that sum if it is at least so long: hashes of packages are 64 and 88.
const PART: usize = 120;
/// Between the lines of a run: `\r\n`, as JSON writes it.
const BREAK: usize = 4;
/// Requests with such data before it is what this program sends to this peer.
const USUAL: u32 = 3;
/// How much of a run is looked at to know what it is, and how much of what stands before it.
const SAMPLE: usize = 2048;
const BEFORE: usize = 160;
/// Characters of a run that are shown.
const SHOWN: usize = 24;

/// Learns, whatever is told. `body`: of the request, behind redaction.
pub fn judge(
    heard: &Heard<'_>,
    body: Option<&OwnedContent>,
    ends: &Ends,
    baseline: &mut Baseline,
    is_told: bool,
) -> Option<Suspicion> {
    let program = ends.program.as_deref()?;
    let found = body.and_then(|content| match content.content().shown() {
        Shown::Text(text, _) => in_text(text),
        _ => None,
    });
    let found = found.map(|found| (found, BODY.to_owned()));
    let attached = || {
        let (llm, _) = heard.llm?;
        attached(llm)
    };
    let found = found.or_else(attached);
    let pair = baseline.pair(program, &ends.peer);
    let (requests, encoded) = (pair.requests, pair.encoded);
    pair.requests = requests.saturating_add(1);
    let ((seen, evidence), place) = found?;
    pair.encoded = encoded.saturating_add(1).min(pair.requests);
    if !is_told || encoded >= USUAL {
        return None;
    }
    Some(Suspicion {
        rule: Rule::EncodedData,
        place: Some(place),
        expected: match requests {
            0 => format!("{program} has sent nothing to this peer before"),
            _ => format!(
                "{encoded} of {requests} requests of {program} to this peer had encoded data"
            ),
        },
        seen,
        evidence,
        about: heard.http.and_then(|(_, about)| about),
    })
}

/// A file that goes with a message, and is neither image nor document.
fn attached(llm: &Llm) -> Option<((String, Option<Excerpt>), String)> {
    let turns = llm.input.iter().enumerate();
    let mut parts = turns.flat_map(|(at, turn)| turn.parts.iter().map(move |part| (at, part)));
    parts.find_map(|(at, part)| {
        let LlmPart::Blob {
            media, size: bytes, ..
        } = part
        else {
            return None;
        };
        let media = media
            .as_deref()
            .filter(|media| RULES.is_packed_media(media))?;
        let seen = format!("{media}, {}", size(*bytes));
        Some(((seen, None), format!("gen_ai.input.messages[{at}]")))
    })
}

/// A run of characters of one alphabet, wrapped or not.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    end: usize,
}

/// What is encoded in a text, and its beginning.
fn in_text(text: &str) -> Option<(String, Option<Excerpt>)> {
    let mut sum = 0;
    let mut first = None;
    let mut count = 0;
    let mut at = 0;
    while let Some(run) = next(text.as_bytes(), at) {
        at = run.end;
        let length = run.end - run.start;
        let Some(coding) = (length >= PART).then(|| judged(text, run)).flatten() else {
            continue;
        };
        first = first.or(Some((run, coding)));
        count += 1;
        sum += length;
        if length >= RUN || sum >= SUM {
            let (run, coding) = first?;
            let start = &text[run.start..run.end];
            let packed = RULES.packed(start).map(|name| format!(" of {name}"));
            let runs = match count {
                1 => String::new(),
                count => format!(" in {count} runs"),
            };
            let seen = format!(
                "{coding}{}, at least {sum} characters{runs}",
                packed.unwrap_or_default()
            );
            let shown = text.floor_char_boundary(run.start + SHOWN);
            let excerpt = Excerpt {
                behind: format!("{}…", &text[run.start..shown]),
                ..Excerpt::default()
            };
            return Some((seen, Some(excerpt)));
        }
    }
    None
}

/// Which alphabet a run is in, if it is data and not ordinary.
fn judged(text: &str, run: Run) -> Option<&'static str> {
    let sample = text.floor_char_boundary(run.end.min(run.start + SAMPLE));
    let coding = coding(&text.as_bytes()[run.start..sample])?;
    let from = text.ceil_char_boundary(run.start.saturating_sub(BEFORE));
    let before = &text[from.min(run.start)..run.start];
    (!RULES.is_media(before, &text[run.start..sample])).then_some(coding)
}

/// The next run of at least [`LINE`] characters, lines of it taken together.
fn next(text: &[u8], mut at: usize) -> Option<Run> {
    loop {
        let mut run = line(text, at)?;
        at = run.end;
        while let Some(more) = continued(text, run.end) {
            run.end = more;
        }
        if run.end - run.start >= PART {
            return Some(run);
        }
        at = at.max(run.end);
    }
}

fn line(text: &[u8], from: usize) -> Option<Run> {
    let mut probe = from + LINE - 1;
    while let Some(byte) = text.get(probe) {
        if !is_dense(*byte) {
            probe += LINE;
            continue;
        }
        let before = text[from..probe].iter().rposition(|byte| !is_dense(*byte));
        let mut start = before.map_or(from, |last| from + last + 1);
        // The letter of an escape is none of the run's.
        if start > 0 && text[start - 1] == b'\\' && matches!(text[start], b'n' | b'r' | b't') {
            start += 1;
        }
        let length = text[probe..].iter().position(|byte| !is_dense(*byte));
        let end = length.map_or(text.len(), |length| probe + length);
        if end - start >= LINE {
            return Some(Run { start, end });
        }
        probe = end + LINE;
    }
    None
}

/// Where a line ends that follows a break.
fn continued(text: &[u8], end: usize) -> Option<usize> {
    let rest = &text[end..];
    let gap = match rest {
        [b'\\', b'r', b'\\', b'n', ..] => BREAK,
        [b'\\', b'n' | b'r' | b'/', ..] | [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        // Python and JavaScript go on with a string behind the next quote; a list of pieces has a comma between.
        [b'"', b',', b' ', b'"', ..] => 4,
        [b'"', b',', b'"', ..] => 3,
        _ => return None,
    };
    let behind = &rest[gap..];
    let length = behind.iter().take_while(|byte| is_dense(**byte)).count();
    // The last line may be of any length.
    (length > 0).then_some(end + gap + length)
}

/// Bytes of which encoded data is made: of base64 in its two alphabets, and of base85.
fn is_dense(byte: u8) -> bool {
    DENSE[usize::from(byte)]
}

static DENSE: [bool; 256] = {
    let mut dense = [false; 256];
    let mut at = 0;
    let marks = b"+/=-_%!#$&()*;<>?@^`{|}~.:";
    while at < 256 {
        let byte = at as u8;
        dense[at] = byte.is_ascii_alphanumeric();
        let mut mark = 0;
        while mark < marks.len() {
            dense[at] |= marks[mark] == byte;
            mark += 1;
        }
        at += 1;
    }
    dense
};

/// The alphabet of a sample, if it is as even as that of data is.
fn coding(sample: &[u8]) -> Option<&'static str> {
    let mut counts = [0_u32; 256];
    for byte in sample
        .iter()
        .filter(|byte| !matches!(byte, b'\r' | b'\n' | b'\\' | b'"' | b',' | b' '))
    {
        counts[usize::from(*byte)] += 1;
    }
    let total: u32 = counts.iter().sum();
    let share = |is_in: &dyn Fn(u8) -> bool| {
        let of = (0..=255_u8).filter(|byte| is_in(*byte));
        let of: u32 = of.map(|byte| counts[usize::from(byte)]).sum();
        f64::from(of) / f64::from(total.max(1))
    };
    let used = counts.iter().filter(|count| **count > 0);
    let entropy: f64 = used
        .map(|count| {
            let share = f64::from(*count) / f64::from(total);
            -share * share.log2()
        })
        .sum();
    let digits = share(&|byte| byte.is_ascii_digit());
    let upper = share(&|byte| byte.is_ascii_uppercase());
    let lower = share(&|byte| byte.is_ascii_lowercase());
    let hex = share(&|byte| byte.is_ascii_hexdigit());
    let base64 = share(&|byte| byte.is_ascii_alphanumeric() || b"+/=-_".contains(&byte));
    // A short sample can't be as even as a long one: of 120 characters of base64 it is 5.5 bits and more.
    if hex > 0.98 && digits > 0.3 && entropy > 2.5 {
        return Some("hexadecimal");
    }
    let base32 =
        share(&|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte) || byte == b'=');
    if base32 > 0.99 && digits > 0.08 && entropy > 4.2 {
        return Some("base32");
    }
    if base64 > 0.985 && upper > 0.12 && lower > 0.12 && digits > 0.05 && entropy > 4.6 {
        return Some("base64");
    }
    if base64 < 0.95 && digits > 0.05 && upper > 0.12 && entropy > 5.75 {
        return Some("base85 or the like");
    }
    let escaped = share(&|byte| byte == b'%');
    if escaped > 0.2 && digits > 0.2 && hex + escaped > 0.9 {
        return Some("percent-encoding");
    }
    None
}
