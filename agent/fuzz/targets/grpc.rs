//! gRPC's messages: any body, and messages that are known.
//!
//! An input is four bytes that say how the body is cut, one that says what the rest is, and that: a body, or
//! choices that make one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::{Choices, is_long, memory, talk::pieces};
use vortex_agent::protocol::grpc::Messages;

/// Sizes of the first messages, and trailers.
const KEPT_MAX: usize = 32 << 10;
const LONG: usize = 256 << 10;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    match choices.byte() {
        0 | 1 if is_long(input) => long(choices.0),
        0 | 1 => assert_eq!(play([choices.0]), play(pieces(choices.0, cuts))),
        _ => known(&mut choices, cuts),
    }
});

/// The same again and again: what is kept has a bound.
fn long(body: &[u8]) {
    let mut messages = Messages::default();
    let rounds = LONG / body.len().max(64);
    memory::assert_kept(0..rounds, KEPT_MAX, |_| messages.feed(body));
}

fn play<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Messages {
    let mut messages = Messages::default();
    for piece in pieces {
        messages.feed(piece);
    }
    // What the last bytes began depends on how they were cut.
    (messages.before, messages.begun) = (0, Vec::new());
    messages
}

fn known(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let (mut body, mut sizes, mut payloads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..choices.below(8) {
        let message = choices.bytes(300);
        let size = message.len() as u32;
        body.push(u8::from(choices.chance()));
        body.extend(size.to_be_bytes());
        payloads.push(body.len()..body.len() + message.len());
        body.extend(message);
        sizes.push(size);
    }
    let mut trailers = choices.below(3);
    let mut lines = Vec::new();
    while trailers > 0 {
        let (name, value) = (choices.letters(8), choices.letters(8));
        lines.push((format!("{trailers}{name}"), value));
        trailers -= 1;
    }
    let text: String = lines
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    body.push(0x80);
    body.extend((text.len() as u32).to_be_bytes());
    body.extend(text.bytes());

    let check = |messages: &Messages| {
        assert_eq!(
            (messages.count, &messages.sizes),
            (sizes.len() as u64, &sizes)
        );
        assert!(!messages.is_lost);
        for (name, value) in &lines {
            assert_eq!(messages.trailer(name), Some(value.as_bytes()));
        }
    };
    check(&play([&body[..]]));
    check(&play(pieces(&body, cuts)));

    let hole = Choices(&ahead).range(body.len());
    let mut torn = play([&body[..hole.start]]);
    torn.hole(hole.len() as u64);
    torn.feed(&body[hole.end..]);
    let is_inside =
        |payload: &std::ops::Range<usize>| payload.start <= hole.start && hole.end <= payload.end;
    if payloads.iter().any(is_inside) {
        return check(&torn);
    }
    // What was counted before is right.
    assert!(torn.is_lost);
    assert_eq!(torn.sizes, sizes[..torn.sizes.len()]);
}
