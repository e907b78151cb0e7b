//! HTTP/1: any calls, and conversations whose meaning is known.
//!
//! An input is four bytes that say how calls are cut, one that says what the rest is, and that: calls, or choices
//! that make a conversation.
#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use play::{
    Choices, is_long, memory,
    talk::{Step, cut, has_gap, over_and_over, steps, with_hole},
    told::{Ear, Lines, Part, Told},
};
use vortex_agent::protocol::{
    Side,
    http1::{Fed, Http1},
};

/// Both lanes' heads in the making, doubled as vectors are, and what waits for a response.
const KEPT_MAX: usize = 2 << 20;
const LONG: usize = 512 << 10;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    match choices.byte() {
        0 | 1 if is_long(input) => long(&steps(choices.0)),
        mode @ (0 | 1) => anything(mode == 1, &steps(choices.0), cuts),
        _ => conversation(&mut choices, cuts),
    }
});

fn anything(from_start: bool, steps: &[Step], cuts: [u8; 4]) {
    let whole = play(from_start, steps);
    let cut = play(from_start, &cut(steps, cuts));
    // Where a message begins behind what is of none depends on how it was cut.
    if !has_gap(steps) && !whole.is_astray && !cut.is_astray {
        assert_eq!(whole.told, cut.told);
    }
}

/// The same calls again and again: what is kept has a bound.
fn long(steps: &[Step]) {
    let mut http = Http1::new(true);
    memory::assert_kept(over_and_over(steps, LONG), KEPT_MAX, |step| {
        feed(&mut http, step, &mut |_| {});
    });
}

fn play(from_start: bool, steps: &[Step]) -> Ear {
    let mut http = Http1::new(from_start);
    let mut ear = Ear::default();
    for step in steps {
        if let Fed::Switched(..) = feed(&mut http, step, &mut |message| ear.note(message)) {
            break;
        }
    }
    http.close(&mut |message| ear.note(message));
    ear.close();
    ear
}

fn feed(
    http: &mut Http1,
    step: &Step,
    out: &mut dyn FnMut(vortex_agent::protocol::Message<'_>),
) -> Fed {
    match step {
        Step::Bytes(side, bytes) => http.feed(*side, bytes, 7, out),
        Step::Gap(side, length) => {
            http.gap(*side, *length, out);
            Fed::All
        }
    }
}

/// A message in one call.
struct Said {
    side: Side,
    bytes: Vec<u8>,
    part: Part,
    /// Where its body is, and of which byte on: a hole in one of these costs what it covers.
    body: Vec<(Range<usize>, usize)>,
}

fn conversation(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let count = 1 + choices.below(4);
    let mut said = Vec::new();
    let mut truth = Vec::new();
    for number in 0..count {
        // Of what a hole hides nobody knows that it has no body.
        let asks_for_head = choices.byte() == 1;
        let method = match asks_for_head {
            true => "HEAD",
            false => choices.of(&["GET", "POST", "DELETE", "M-SEARCH"]),
        };
        let interim = usize::from(choices.below(8) == 1);
        let status = choices.of(&["200", "404", "500", "204", "304"]);
        let has_body = !asks_for_head && !matches!(status, "204" | "304");
        let request = message(
            choices,
            Side::Request,
            &format!("{method} /{number}"),
            true,
            false,
        );
        let is_last = number + 1 == count;
        let mut response = message(choices, Side::Response, status, has_body, is_last);
        if interim > 0 {
            let hint = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
            response.bytes.splice(..0, *hint);
            for (range, _) in &mut response.body {
                *range = range.start + hint.len()..range.end + hint.len();
            }
        }
        truth.push(Told {
            request: Some(request.part.clone()),
            response: Some(response.part.clone()),
            interim,
        });
        said.extend([request, response]);
    }
    let steps: Vec<Step> = said
        .iter()
        .map(|said| Step::Bytes(said.side, said.bytes.clone()))
        .collect();
    assert_eq!(play(true, &steps).told, truth);
    assert_eq!(play(true, &cut(&steps, cuts)).told, truth, "cut");
    hole(&mut Choices(&ahead), &said, &steps, &truth);
}

/// A hole in one message costs no other one anything.
fn hole(choices: &mut Choices<'_>, said: &[Said], steps: &[Step], truth: &[Told]) {
    let at = choices.below(steps.len());
    let Said {
        side, bytes, body, ..
    } = &said[at];
    let hole = choices.range(bytes.len());
    let ear = play(true, &with_hole(steps, at, hole.clone()));
    let is_head = |told: &Told| {
        told.request
            .as_ref()
            .is_some_and(|part| part.line.starts_with("HEAD"))
    };
    if *side == Side::Request && is_head(&truth[at / 2]) {
        return;
    }
    for (number, told) in truth.iter().enumerate() {
        if number != at / 2 {
            assert!(ear.told.contains(told), "{told:?} is not in {:?}", ear.told);
        }
    }
    assert_eq!(
        ear.told.len(),
        truth.len(),
        "{hole:?} is missing of {}: {:?}",
        bytes.escape_ascii(),
        ear.told
    );
    let inside =
        |(range, _): &&(Range<usize>, usize)| range.start <= hole.start && hole.end <= range.end;
    if let Some((range, from)) = body.iter().find(inside) {
        let mut torn = truth[at / 2].clone();
        if let Some(part) = torn.part(*side) {
            let start = from + hole.start - range.start;
            part.body.drain(start..start + hole.len());
            part.length -= hole.len() as u64;
            part.lost = hole.len() as u64;
            part.is_whole = false;
        }
        assert_eq!(ear.told[at / 2], torn);
    }
}

fn message(
    choices: &mut Choices<'_>,
    side: Side,
    line: &str,
    has_body: bool,
    may_rest: bool,
) -> Said {
    let mut bytes = match side {
        Side::Request => format!("{line} HTTP/1.1\r\n"),
        Side::Response => format!("HTTP/1.1 {line} It is so\r\n"),
    }
    .into_bytes();
    let mut part = Part {
        line: line.to_owned(),
        fields: fields(choices, "X-", &mut bytes),
        is_whole: true,
        ..Part::default()
    };
    let mut body = Vec::new();
    let content = choices.letters(80);
    let framing = choices.below(if may_rest { 4 } else { 3 });
    match framing {
        0 => {
            let length = content.len().to_string();
            bytes.extend(format!("Content-Length: {length}\r\n\r\n").bytes());
            part.fields.push(("Content-Length".to_owned(), length));
            if has_body {
                body.push((bytes.len()..bytes.len() + content.len(), 0));
                bytes.extend(content.bytes());
            }
        }
        1 => {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            part.fields
                .push(("Transfer-Encoding".to_owned(), "chunked".to_owned()));
            if has_body {
                chunks(choices, &content, &mut bytes, &mut body);
                part.trailers = fields(choices, "T-", &mut bytes);
                bytes.extend(b"\r\n");
            }
        }
        3 if has_body => {
            bytes.extend(b"\r\n");
            body.push((bytes.len()..bytes.len() + content.len(), 0));
            bytes.extend(content.bytes());
        }
        _ => {
            // Of a response only an empty length says that there is nothing.
            if side == Side::Response {
                bytes.extend(b"content-length: 0\r\n");
                part.fields
                    .push(("content-length".to_owned(), "0".to_owned()));
            }
            bytes.extend(b"\r\n");
        }
    }
    if has_body && (framing < 2 || framing == 3) {
        part.body = content.into_bytes();
        part.length = part.body.len() as u64;
    }
    Said {
        side,
        bytes,
        part,
        body,
    }
}

/// Each on its line, and one that goes on in the next.
fn fields(choices: &mut Choices<'_>, prefix: &str, bytes: &mut Vec<u8>) -> Lines {
    let mut lines = Lines::new();
    for _ in 0..choices.below(4) {
        let name = format!("{prefix}{}", choices.letters(8));
        let mut value = choices.letters(30);
        let mut sent = value.clone();
        if choices.below(8) == 1 {
            let more = choices.letters(4);
            sent = format!("{value}\r\n {more}");
            value = format!("{value}   {more}").trim().to_owned();
        }
        bytes.extend(format!("{name}: {sent}\r\n").bytes());
        lines.push((name, value));
    }
    lines
}

fn chunks(
    choices: &mut Choices<'_>,
    content: &str,
    bytes: &mut Vec<u8>,
    body: &mut Vec<(Range<usize>, usize)>,
) {
    let mut at = 0;
    while at < content.len() {
        let size = (1 + choices.below(32)).min(content.len() - at);
        let extension = choices.of(&["", "", " ", ";a=b"]);
        bytes.extend(format!("{size:x}{extension}\r\n").bytes());
        body.push((bytes.len()..bytes.len() + size, at));
        bytes.extend_from_slice(&content.as_bytes()[at..at + size]);
        bytes.extend(b"\r\n");
        at += size;
    }
    bytes.extend(b"0\r\n");
}
