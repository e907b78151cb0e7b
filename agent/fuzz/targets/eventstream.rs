//! Amazon's event stream: any body, and messages that are known.
//!
//! An input is four bytes that say how the body is cut, one that says what the rest is, and that: a body, or
//! choices that make one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::{
    Choices, is_long, memory,
    talk::{framed, pieces},
};
use vortex_agent::protocol::eventstream::{Found, Messages};

/// A message as long as it may be, with a vector's room for as much again.
const KEPT_MAX: usize = 3 << 20;
const LONG: usize = 3 << 20;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    match choices.byte() {
        0 | 1 if is_long(input) => long(choices.0),
        0 | 1 => {
            let parts = pieces(choices.0, cuts).map(Some);
            assert_eq!(play([Some(choices.0)]), play(parts));
        }
        2 => endless(&mut choices),
        _ => known(&mut choices, cuts),
    }
});

/// The same again and again: what is kept has a bound.
fn long(body: &[u8]) {
    let mut messages = Messages::default();
    let rounds = LONG / body.len().max(64);
    memory::assert_kept(0..rounds, KEPT_MAX, |_| messages.feed(body, &mut |_| {}));
}

/// A message says how long it is, and goes on for so long; behind it comes another.
fn endless(choices: &mut Choices<'_>) {
    let length = (1 << 20) - 128 + choices.below(256);
    let body = framed(&[], &vec![b'x'; length]);
    let next = framed(&[], b"next");
    let mut messages = Messages::default();
    let mut found = Vec::new();
    for part in body.chunks(1 << 18).chain([&next[..]]) {
        messages.feed(part, &mut |what| found.push(what));
        assert!(messages.held() <= 1 << 20);
    }
    let [first, Found::Message(last)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(last.payload, b"next");
    match body.len() > 1 << 20 {
        true => assert_eq!(*first, Found::TooLong),
        false => assert!(matches!(first, Found::Message(it) if it.payload.len() == length)),
    }
}

fn play<'a>(parts: impl IntoIterator<Item = Option<&'a [u8]>>) -> Vec<Found> {
    let (mut messages, mut found) = (Messages::default(), Vec::new());
    for part in parts {
        match part {
            Some(bytes) => messages.feed(bytes, &mut |what| found.push(what)),
            None => messages.hole(),
        }
    }
    messages.close(&mut |what| found.push(what));
    found
}

type Lines = Vec<(String, String)>;

fn known(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let (mut body, mut truth, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..1 + choices.below(5) {
        let (headers, lines) = headers(choices);
        let payload = choices.letters(60);
        let start = body.len();
        body.extend(framed(&headers, payload.as_bytes()));
        places.push(start..body.len());
        truth.push((lines, payload));
    }
    let check = |found: &[Found], truth: &[(Lines, String)]| {
        assert_eq!(found.len(), truth.len(), "{found:?}");
        for (found, (lines, payload)) in found.iter().zip(truth) {
            let Found::Message(message) = found else {
                panic!("{found:?}");
            };
            assert_eq!(message.payload, payload.as_bytes());
            for (name, value) in lines {
                assert_eq!(message.header(name), Some(value.as_str()));
            }
        }
    };
    check(&play([Some(&body[..])]), &truth);
    check(&play(pieces(&body, cuts).map(Some)), &truth);

    // A message that a hole touches is gone, and no other: the next one is found by itself.
    let mut ahead = Choices(&ahead);
    let hole = ahead.range(body.len());
    let behind = pieces(&body[hole.end..], cuts).map(Some);
    let mut found = play([Some(&body[..hole.start]), None].into_iter().chain(behind));
    // The end of the torn one was looked through.
    if found.last() == Some(&Found::Broken) {
        found.pop();
    }
    let is_whole =
        |place: &&std::ops::Range<usize>| place.end <= hole.start || place.start >= hole.end;
    let left: Vec<_> = places
        .iter()
        .zip(&truth)
        .filter(|(place, _)| is_whole(place))
        .collect();
    let left: Vec<_> = left.into_iter().map(|(_, truth)| truth.clone()).collect();
    check(&found, &left);

    // A bit that is wrong is found by a checksum, and ends it.
    let (at, bit) = (ahead.below(body.len()), ahead.below(8));
    body[at] ^= 1 << bit;
    let mut found = play([Some(&body[..])]);
    assert_eq!(found.pop(), Some(Found::Broken));
    let before = places.partition_point(|place| place.end <= at);
    check(&found, &truth[..before]);
}

/// Headers of all types, and those of text.
fn headers(choices: &mut Choices<'_>) -> (Vec<u8>, Lines) {
    let (mut headers, mut lines) = (Vec::new(), Lines::new());
    for at in 0..choices.below(12) {
        // No name twice.
        let name = format!("{}{at}", choices.letters(8));
        let kind = choices.below(14).min(9) as u8;
        let value = match kind {
            0 | 1 => String::new(),
            6 | 7 => choices.letters(20),
            kind => "x".repeat([1, 2, 4, 8, 0, 0, 8, 16][usize::from(kind) - 2]),
        };
        headers.push(name.len() as u8);
        headers.extend(name.bytes());
        headers.push(kind);
        if matches!(kind, 6 | 7) {
            headers.extend((value.len() as u16).to_be_bytes());
        }
        headers.extend(value.bytes());
        if kind == 7 {
            lines.push((name, value));
        }
    }
    (headers, lines)
}
