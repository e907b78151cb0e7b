//! WebSocket: any calls, and messages that are known.
//!
//! An input is four bytes that say how calls are cut, one that says what the rest is, one that says what was
//! agreed on for compression, and the rest: calls, or choices that make messages.
#![no_main]

use std::ops::Range;

use flate2::{Compress, Compression, FlushCompress};
use libfuzzer_sys::fuzz_target;
use play::{
    Choices, is_long, memory,
    talk::{Step, cut, has_gap, over_and_over, steps, with_hole},
};
use vortex_agent::protocol::{
    Side,
    head::Fields,
    websocket::{Deflate, Found, Kind, Message, WebSocket},
};

/// On each lane a message, doubled as vectors are, and a window.
const KEPT_MAX: usize = 6 << 20;
const LONG: usize = 3 << 19;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    let mode = choices.byte();
    let forgets = choices.chance();
    let deflate = choices.chance().then(|| agreed(forgets)).flatten();
    match mode {
        0 | 1 if is_long(input) => long(deflate, &steps(choices.0)),
        0 | 1 => anything(deflate, &steps(choices.0), cuts),
        _ => known(&mut choices, deflate, forgets, cuts),
    }
});

fn agreed(forgets: bool) -> Option<Deflate> {
    let mut fields = Fields::default();
    let value: &[u8] = match forgets {
        true => b"x, permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        false => b"permessage-deflate",
    };
    fields.push(b"Sec-WebSocket-Extensions", value);
    Deflate::agreed(&fields)
}

fn anything(deflate: Option<Deflate>, steps: &[Step], cuts: [u8; 4]) {
    let (whole, whole_astray) = play(deflate, steps);
    let (cut, cut_astray) = play(deflate, &cut(steps, cuts));
    // Where frames are looked for behind what is none depends on how it was cut.
    if !has_gap(steps) && !whole_astray && !cut_astray {
        assert_eq!(whole, cut);
    }
}

/// The same calls again and again: what is kept has a bound.
fn long(deflate: Option<Deflate>, steps: &[Step]) {
    let mut socket = WebSocket::new(deflate);
    memory::assert_kept(over_and_over(steps, LONG), KEPT_MAX, |step| {
        feed(&mut socket, step, &mut |_| {});
    });
}

/// Messages, and whether bytes belonged to none.
fn play(deflate: Option<Deflate>, steps: &[Step]) -> (Vec<Message>, bool) {
    let mut socket = WebSocket::new(deflate);
    let (mut messages, mut is_astray) = (Vec::new(), false);
    let mut hear = |found: Found<'_>| match found {
        Found::Message(message) => messages.push(message),
        Found::Undecoded(..) => is_astray = true,
        Found::Limit(_) => {}
    };
    for step in steps {
        feed(&mut socket, step, &mut hear);
    }
    socket.close(&mut hear);
    (messages, is_astray)
}

fn feed(socket: &mut WebSocket, step: &Step, out: &mut dyn FnMut(Found<'_>)) {
    match step {
        Step::Bytes(side, bytes) => socket.feed(*side, bytes, 7, out),
        Step::Gap(side, length) => socket.gap(*side, *length, out),
    }
}

/// A message in one call, with a ping or none in its middle.
struct Said {
    message: Message,
    ping: Option<Message>,
    /// Where its payload is, and of which byte on.
    payload: Vec<(Range<usize>, usize)>,
    is_compressed: bool,
}

fn known(choices: &mut Choices<'_>, deflate: Option<Deflate>, forgets: bool, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let mut windows = [0; 2].map(|_| Compress::new(Compression::fast(), false));
    let (mut said, mut steps) = (Vec::new(), Vec::new());
    for _ in 0..1 + choices.below(5) {
        let side = choices.of(&[Side::Request, Side::Response]);
        let window = &mut windows[side as usize];
        if forgets {
            window.reset();
        }
        let compress = deflate.is_some() && choices.chance();
        let (next, bytes) = message(choices, side, compress.then_some(window));
        said.push(next);
        steps.push(Step::Bytes(side, bytes));
    }
    let order = |said: &Said| {
        said.ping
            .iter()
            .chain([&said.message])
            .cloned()
            .collect::<Vec<_>>()
    };
    let truth: Vec<Message> = said.iter().flat_map(order).collect();
    assert_eq!(play(deflate, &steps), (truth.clone(), false));
    assert_eq!(play(deflate, &cut(&steps, cuts)), (truth, false), "cut");
    hole(&mut Choices(&ahead), deflate, &said, &steps);
}

fn hole(choices: &mut Choices<'_>, deflate: Option<Deflate>, said: &[Said], steps: &[Step]) {
    let at = choices.below(steps.len());
    let Step::Bytes(side, bytes) = &steps[at] else {
        return;
    };
    let hole = choices.range(bytes.len());
    let (found, _) = play(deflate, &with_hole(steps, at, hole.clone()));
    for (number, said) in said.iter().enumerate() {
        // Behind a hole what is compressed refers to what nobody has.
        let is_lost = number > at && said.message.side == *side && said.is_compressed;
        if number != at && !is_lost {
            assert!(found.contains(&said.message), "{:?}", said.message);
        }
    }
    let said = &said[at];
    let inside =
        |(range, _): &&(Range<usize>, usize)| range.start <= hole.start && hole.end <= range.end;
    if let Some((range, from)) = said.payload.iter().find(inside)
        && !said.is_compressed
    {
        let mut torn = said.message.clone();
        let start = from + hole.start - range.start;
        torn.bytes.drain(start..start + hole.len());
        torn.is_cut = true;
        assert!(found.contains(&torn), "{torn:?}");
    }
}

fn message(
    choices: &mut Choices<'_>,
    side: Side,
    window: Option<&mut Compress>,
) -> (Said, Vec<u8>) {
    let (kind, opcode) = choices.of(&[(Kind::Text, 1), (Kind::Binary, 2)]);
    let plain = choices.bytes(200);
    let is_compressed = window.is_some();
    let sent = match window {
        Some(window) => compressed(window, &plain),
        None => plain.clone(),
    };
    let known = |kind, bytes: &[u8], length: usize| Message {
        kind,
        side,
        bytes: bytes.to_vec(),
        length: length as u64,
        is_unreadable: false,
        is_cut: false,
        began: 7,
    };
    let mut said = Said {
        message: known(kind, &plain, sent.len()),
        ping: None,
        payload: Vec::new(),
        is_compressed,
    };
    let (mut bytes, mut at, mut first) = (Vec::new(), 0, true);
    loop {
        let size = match choices.below(3) {
            1 => choices.below(sent.len() - at + 1),
            _ => sent.len() - at,
        };
        let is_last = at + size == sent.len();
        let mut head = if first { opcode } else { 0 };
        head |= if first && is_compressed { 0x40 } else { 0 };
        head |= if is_last { 0x80 } else { 0 };
        let payload = frame(choices, side, head, &sent[at..at + size], &mut bytes);
        said.payload.push((payload, at));
        (at, first) = (at + size, false);
        if is_last {
            return (said, bytes);
        }
        if said.ping.is_none() && choices.chance() {
            let ping = choices.letters(20).into_bytes();
            frame(choices, side, 0x89, &ping, &mut bytes);
            said.ping = Some(known(Kind::Ping, &ping, ping.len()));
        }
    }
}

/// Without what the sender takes away (RFC 7692, section 7.2.1).
fn compressed(window: &mut Compress, plain: &[u8]) -> Vec<u8> {
    let mut sent = Vec::with_capacity(1024);
    window
        .compress_vec(plain, &mut sent, FlushCompress::Sync)
        .expect("it fits");
    if sent.ends_with(&[0, 0, 0xff, 0xff]) {
        sent.truncate(sent.len() - 4);
    }
    sent
}

/// Returns where the payload is.
fn frame(
    choices: &mut Choices<'_>,
    side: Side,
    head: u8,
    payload: &[u8],
    bytes: &mut Vec<u8>,
) -> Range<usize> {
    let mask = (side == Side::Request).then(|| choices.array::<4>());
    let bit = if mask.is_some() { 0x80 } else { 0 };
    bytes.push(head);
    match payload.len() {
        length @ 0..126 => bytes.push(bit | length as u8),
        length => {
            bytes.push(bit | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let start = bytes.len();
    let mask = mask.unwrap_or_default();
    bytes.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    start..bytes.len()
}
