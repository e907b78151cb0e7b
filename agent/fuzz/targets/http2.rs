//! HTTP/2: any calls, and conversations whose meaning is known.
//!
//! An input is four bytes that say how calls are cut, one that says what the rest is, and that: calls, or choices
//! that make a conversation.
#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use play::{
    Choices,
    hpack::Encoder,
    is_long, memory,
    talk::{Step, cut, has_gap, over_and_over, steps, with_hole},
    told::{Ear, Part, Told},
};
use vortex_agent::protocol::{
    Message, Side,
    http2::{Http2, PREFACE},
};

/// On each lane a block and a frame of it, doubled as vectors are, and a table; and ten thousand streams.
const KEPT_MAX: usize = 8 << 20;
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
    // Where frames are looked for behind what is none depends on how it was cut.
    if !has_gap(steps) && !whole.is_astray && !cut.is_astray {
        assert_eq!(whole.told, cut.told);
    }
}

/// The same calls again and again: what is kept has a bound.
fn long(steps: &[Step]) {
    let mut http = Http2::new(true);
    memory::assert_kept(over_and_over(steps, LONG), KEPT_MAX, |step| {
        feed(&mut http, step, &mut |_| {});
    });
}

fn play(from_start: bool, steps: &[Step]) -> Ear {
    let mut http = Http2::new(from_start);
    let mut ear = Ear::default();
    for step in steps {
        feed(&mut http, step, &mut |message| ear.note(message));
    }
    http.close(&mut |message| ear.note(message));
    ear.close();
    ear
}

fn feed(http: &mut Http2, step: &Step, out: &mut dyn FnMut(Message<'_>)) {
    match step {
        Step::Bytes(side, bytes) => http.feed(*side, bytes, 7, out),
        Step::Gap(side, length) => http.gap(*side, *length, out),
    }
}

mod flag {
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// A frame, or a block's frames, in one call.
struct Said {
    /// Whose: in the order in which they began.
    stream: usize,
    /// Where its data is, and of which byte of the body on.
    data: Option<(Range<usize>, usize)>,
}

#[derive(Default)]
struct Talk {
    steps: Vec<Step>,
    said: Vec<Said>,
    encoders: [Encoder; 2],
}

fn conversation(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let mut talk = Talk::default();
    talk.say(Side::Request, usize::MAX, PREFACE.to_vec());
    talk.say(
        Side::Request,
        usize::MAX,
        frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]),
    );
    talk.say(Side::Response, usize::MAX, frame(4, 0, 0, &[]));
    let count = 1 + choices.below(4);
    let mut truth = vec![Told::default(); count];
    // One after the other, or all at once.
    let rounds: Vec<(Side, usize)> = match choices.chance() {
        true => (0..count)
            .flat_map(|stream| [(Side::Request, stream), (Side::Response, stream)])
            .collect(),
        false => (0..count)
            .map(|stream| (Side::Request, stream))
            .chain((0..count).rev().map(|stream| (Side::Response, stream)))
            .collect(),
    };
    for (side, stream) in &rounds {
        let part = Some(talk.message(choices, *side, *stream));
        match side {
            Side::Request => truth[*stream].request = part,
            Side::Response => truth[*stream].response = part,
        }
    }
    let order = rounds.iter().filter(|(side, _)| *side == Side::Response);
    let told: Vec<Told> = order.map(|(_, stream)| truth[*stream].clone()).collect();
    assert_eq!(play(true, &talk.steps).told, told);
    assert_eq!(play(true, &cut(&talk.steps, cuts)).told, told, "cut");
    hole(&mut Choices(&ahead), &talk, &truth);
}

/// A hole in data costs what it covers. Any other one may hide a part of the table: what is said after it is
/// less, and never wrong.
fn hole(choices: &mut Choices<'_>, talk: &Talk, truth: &[Told]) {
    let at = choices.below(talk.steps.len());
    let Step::Bytes(side, bytes) = &talk.steps[at] else {
        return;
    };
    let hole = choices.range(bytes.len());
    let ear = play(true, &with_hole(&talk.steps, at, hole.clone()));
    let Said { stream, data } = &talk.said[at];
    let inside = data
        .as_ref()
        .filter(|(range, _)| range.start <= hole.start && hole.end <= range.end);
    if let Some((range, from)) = inside {
        for (number, told) in truth.iter().enumerate() {
            let mut told = told.clone();
            if number == *stream
                && let Some(part) = told.part(*side)
            {
                let start = from + hole.start - range.start;
                part.body.drain(start..start + hole.len());
                part.length -= hole.len() as u64;
                part.lost = hole.len() as u64;
                part.is_whole = false;
            }
            assert!(
                ear.told.contains(&told),
                "{told:?} is not in {:?}",
                ear.told
            );
        }
        return;
    }
    let is_before = |stream: usize| {
        let last = talk.said.iter().rposition(|said| said.stream == stream);
        last.is_some_and(|last| last < at)
    };
    for (number, told) in truth.iter().enumerate() {
        assert!(!is_before(number) || ear.told.contains(told), "{told:?}");
    }
    for told in &ear.told {
        for (seen, of) in [
            (&told.request, Side::Request),
            (&told.response, Side::Response),
        ] {
            let Some(seen) = seen else { continue };
            // The number of its stream is in each part, and in no table.
            let number = seen.fields.iter().find(|(name, _)| name == "x-number");
            let Some((_, number)) = number else { continue };
            let mut truth = truth[number.parse::<usize>().unwrap_or_default()].clone();
            let truth = truth.part(of).expect("both sides speak");
            let is_right = |seen: &str, truth: &str| seen == "?" || seen == truth;
            for seen in &seen.fields {
                let fits = |truth: &(String, String)| {
                    is_right(&seen.0, &truth.0) && is_right(&seen.1, &truth.1)
                };
                // Without its name a part of the first line is a field as any other.
                let is_of_line = seen.0 == "?" && (seen.1 == "?" || truth.line.contains(&seen.1));
                assert!(
                    truth.fields.iter().any(fits) || is_of_line,
                    "{seen:?} is not in {truth:?}"
                );
            }
        }
    }
}

impl Talk {
    fn say(&mut self, side: Side, stream: usize, bytes: Vec<u8>) {
        self.steps.push(Step::Bytes(side, bytes));
        self.said.push(Said { stream, data: None });
    }

    fn message(&mut self, choices: &mut Choices<'_>, side: Side, stream: usize) -> Part {
        let mut part = Part {
            is_whole: true,
            ..Part::default()
        };
        let line = match side {
            Side::Request => {
                let (method, path) = (choices.of(&["GET", "POST"]), format!("/{stream}"));
                part.line = format!("{method} {path}");
                vec![(":method", method.to_owned()), (":path", path)]
            }
            Side::Response => {
                part.line = choices.of(&["200", "404"]).to_owned();
                vec![(":status", part.line.clone())]
            }
        };
        let mut block = Vec::new();
        let encoder = &mut self.encoders[side as usize];
        if choices.below(8) == 1 {
            encoder.resize(choices.of(&[0, 200, 4096]), &mut block);
        }
        for (name, value) in &line {
            encoder.field(choices, name, value, &mut block);
        }
        let number = stream.to_string();
        // Never in a table.
        block.extend(
            [
                &[0x10, 8][..],
                b"x-number",
                &[number.len() as u8],
                number.as_bytes(),
            ]
            .concat(),
        );
        part.fields.push(("x-number".to_owned(), number));
        for _ in 0..choices.below(5) {
            // What others have said, too, is in their tables.
            let name = format!("x-{}", choices.byte() % 4);
            let value = match choices.chance() {
                true => choices.of(&["a", "b", "c"]).to_owned(),
                false => format!("{stream}{}", choices.letters(20)),
            };
            encoder.field(choices, &name, &value, &mut block);
            part.fields.push((name, value));
        }
        let has_trailers = choices.below(4) == 1;
        let body = choices.letters(60);
        let ends = body.is_empty() && !has_trailers;
        self.block(choices, side, stream, &block, ends);
        self.data(choices, side, stream, body.as_bytes(), !has_trailers);
        if has_trailers {
            let value = choices.letters(8);
            let mut block = Vec::new();
            self.encoders[side as usize].field(choices, "t-x", &value, &mut block);
            part.trailers.push(("t-x".to_owned(), value));
            self.block(choices, side, stream, &block, true);
        }
        part.length = body.len() as u64;
        part.body = body.into_bytes();
        part
    }

    /// HEADERS, and CONTINUATION as often as it takes.
    fn block(
        &mut self,
        choices: &mut Choices<'_>,
        side: Side,
        stream: usize,
        block: &[u8],
        ends: bool,
    ) {
        let id = 2 * stream as u32 + 1;
        let first = match choices.below(4) {
            1 => choices.below(block.len() + 1),
            _ => block.len(),
        };
        let (first, mut rest) = block.split_at(first);
        let mut flags = if ends { flag::END_STREAM } else { 0 };
        flags |= if rest.is_empty() {
            flag::END_HEADERS
        } else {
            0
        };
        let mut payload = Vec::new();
        let padding = choices.of(&[0, 0, 0, 3]);
        if padding > 0 {
            flags |= flag::PADDED;
            payload.push(padding);
        }
        if choices.below(4) == 1 {
            flags |= flag::PRIORITY;
            payload.extend([0, 0, 0, 0, 7]);
        }
        payload.extend_from_slice(first);
        payload.extend(vec![0; padding.into()]);
        let mut bytes = frame(1, flags, id, &payload);
        while !rest.is_empty() {
            let (next, behind) = rest.split_at(1 + choices.below(rest.len()));
            rest = behind;
            let flags = if rest.is_empty() {
                flag::END_HEADERS
            } else {
                0
            };
            bytes.extend(frame(9, flags, id, next));
        }
        self.say(side, stream, bytes);
    }

    fn data(
        &mut self,
        choices: &mut Choices<'_>,
        side: Side,
        stream: usize,
        body: &[u8],
        ends: bool,
    ) {
        let mut at = 0;
        while at < body.len() {
            let size = (1 + choices.below(40)).min(body.len() - at);
            let is_last = at + size == body.len();
            let mut flags = if ends && is_last { flag::END_STREAM } else { 0 };
            let mut payload = Vec::new();
            let padding = choices.of(&[0, 0, 0, 5]);
            if padding > 0 {
                flags |= flag::PADDED;
                payload.push(padding);
            }
            let start = 9 + payload.len();
            payload.extend_from_slice(&body[at..at + size]);
            payload.extend(vec![0; padding.into()]);
            self.steps.push(Step::Bytes(
                side,
                frame(0, flags, 2 * stream as u32 + 1, &payload),
            ));
            self.said.push(Said {
                stream,
                data: Some((start..start + size, at)),
            });
            at += size;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}
