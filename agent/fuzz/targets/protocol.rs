//! All decoders: any bytes and holes of a connection.
//!
//! They never panic, keep nothing when the connection is over, and tell each exchange once. Without holes, what
//! they say does not depend on how the bytes were cut into calls, unless bytes belonged to no message: where the
//! next one is looked for then depends on it.
//!
//! An input is a byte whose lowest bit says whether the connection is seen from its start, and then calls: a byte
//! (lowest bit: direction, next: a hole), two of length, and the bytes, unless they are missing.
#![no_main]

use agent_ebpf::Direction;
use libfuzzer_sys::fuzz_target;
use vortex_agent::{
    plaintext::Plaintext,
    protocol::{
        Piece, Protocol, Said,
        exchange::{Bounds, Half, Keep},
    },
};

const BOUNDS: Bounds = Bounds {
    body: 4 << 10,
    total: 16 << 10,
};

enum Step<'a> {
    Bytes(Direction, &'a [u8]),
    Gap(Direction, u64),
}

fuzz_target!(|input: &[u8]| {
    let Some((&mode, script)) = input.split_first() else {
        return;
    };
    let from_start = mode & 1 != 0;
    let steps = steps(script);
    let whole = play(from_start, &steps);
    let has_gap = steps.iter().any(|step| matches!(step, Step::Gap(..)));
    if has_gap || !from_start || whole.is_astray {
        return;
    }
    let cut: Vec<Step> = steps.iter().flat_map(bytewise).collect();
    let cut = play(from_start, &cut);
    if !cut.is_astray {
        assert_eq!(whole.said, cut.said);
    }
});

fn steps(script: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = script;
    while let [flags, low, high, behind @ ..] = rest {
        let direction = match flags & 1 {
            0 => Direction::Sent,
            _ => Direction::Received,
        };
        let length = u16::from_le_bytes([*low, *high]);
        rest = behind;
        if flags & 2 != 0 {
            steps.push(Step::Gap(direction, length.into()));
            continue;
        }
        let (bytes, behind) = rest.split_at(rest.len().min(length.into()));
        rest = behind;
        if !bytes.is_empty() {
            steps.push(Step::Bytes(direction, bytes));
        }
    }
    steps
}

fn bytewise<'a>(step: &Step<'a>) -> Vec<Step<'a>> {
    match *step {
        Step::Bytes(direction, bytes) => bytes
            .chunks(1)
            .map(|byte| Step::Bytes(direction, byte))
            .collect(),
        Step::Gap(direction, length) => vec![Step::Gap(direction, length)],
    }
}

struct Played {
    said: Vec<String>,
    /// Bytes belonged to no message.
    is_astray: bool,
}

fn play(from_start: bool, steps: &[Step<'_>]) -> Played {
    let mut protocol = Protocol::new(from_start);
    let mut keep = Keep::new(BOUNDS);
    let mut offsets = [0; 2];
    let (mut said, mut is_astray, mut told) = (Vec::new(), false, Vec::new());
    let mut data = [Vec::new(), Vec::new()];
    let mut note = |what: Said<'_>| match what {
        Said::Data {
            direction,
            offset,
            bytes,
            is_stray,
            ..
        } => {
            is_astray |= is_stray;
            data[direction as usize].push((offset, bytes.len()));
        }
        Said::Exchange(exchange) => {
            assert!(!told.contains(&exchange.id), "an exchange is told twice");
            told.push(exchange.id);
            let request = exchange.request.as_ref().map(half);
            let response = exchange.response.as_ref().map(half);
            said.push(format!("{} {request:?} {response:?}", exchange.id));
        }
        Said::Event { event, number, .. } => {
            said.push(format!("{number} {:?} {:?}", event.name, event.data));
        }
        Said::Message { direction, message } => said.push(format!(
            "{direction:?} {:?} {:?} {}",
            message.kind, message.bytes, message.is_cut
        )),
        Said::Limit(limit) => said.push(format!("{limit:?}")),
    };
    for step in steps {
        match *step {
            Step::Bytes(direction, bytes) => {
                let offset = &mut offsets[direction as usize];
                let piece = Piece {
                    direction,
                    offset: *offset,
                    bytes: Plaintext::new(bytes),
                    time: 7,
                };
                *offset += bytes.len() as u64;
                protocol.feed(piece, Some(Direction::Sent), &mut keep, &mut note);
            }
            Step::Gap(direction, length) => {
                offsets[direction as usize] += length;
                protocol.gap(direction, length, 7, &mut keep, &mut note);
            }
        }
        assert!(keep.used() <= BOUNDS.total);
    }
    protocol.close(7, &mut keep, &mut note);
    assert_eq!(keep.used(), 0, "bodies are kept of nobody");
    for direction in [Direction::Sent, Direction::Received] {
        for pair in data[direction as usize].windows(2) {
            let [(offset, length), (next, _)] = pair else {
                continue;
            };
            assert!(offset + *length as u64 <= *next, "bytes are told twice");
        }
    }
    Played { said, is_astray }
}

fn half<H>(half: &Half<H>) -> String {
    let body = &half.body;
    format!(
        "{} {} {:?} {:?} {} {} {}",
        body.length,
        body.decoded,
        body.kept,
        body.unreadable(),
        body.is_cut,
        half.lost,
        half.is_whole
    )
}
