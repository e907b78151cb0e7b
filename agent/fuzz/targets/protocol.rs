//! All decoders: any bytes and holes of a connection.
//!
//! They never panic, keep nothing when the connection is over, and tell each exchange once. What is told as data
//! is what the stream has at that place, and told once. Without holes, what they say does not depend on how the
//! bytes were cut into calls, unless bytes belonged to no message: where the next one is looked for then depends
//! on it.
//!
//! An input is a byte whose lowest bit says whether the connection is seen from its start, and then calls
//! (see [`steps`]).
#![no_main]

use agent_ebpf::Direction;
use libfuzzer_sys::fuzz_target;
use play::{
    talk::{Step, cut, has_gap, steps},
    told::{BOUNDS, Told},
};
use vortex_agent::{
    plaintext::Plaintext,
    protocol::{Piece, Protocol, Said, Side, exchange::Keep},
};

fuzz_target!(|input: &[u8]| {
    let Some((&mode, script)) = input.split_first() else {
        return;
    };
    let from_start = mode & 1 != 0;
    let steps = steps(script);
    let whole = play(from_start, &steps);
    if has_gap(&steps) || !from_start || whole.is_astray {
        return;
    }
    let cut = play(from_start, &cut(&steps, [mode >> 1, 0, mode >> 4, 0]));
    if !cut.is_astray {
        assert_eq!(whole.said, cut.said);
    }
});

struct Played {
    said: Vec<String>,
    /// Bytes belonged to no message.
    is_astray: bool,
}

/// A stream as it was fed, with zeros for what is missing, and how far it was told as data.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    told: usize,
}

fn play(from_start: bool, steps: &[Step]) -> Played {
    let mut protocol = Protocol::new(from_start);
    let mut keep = Keep::new(BOUNDS);
    let mut streams = [Stream::default(), Stream::default()];
    let (mut said, mut is_astray, mut ids) = (Vec::new(), false, Vec::new());
    for step in steps.iter().map(Some).chain([None]) {
        if let Some(Step::Bytes(side, bytes)) = step {
            streams[*side as usize].bytes.extend_from_slice(bytes);
        }
        let known = streams.each_ref().map(|stream| stream.bytes.len());
        let note = &mut |what: Said<'_>| match what {
            Said::Data {
                direction,
                offset,
                bytes,
                is_stray,
                ..
            } => {
                is_astray |= is_stray;
                let Stream { bytes: all, told } = &mut streams[side_of(direction) as usize];
                let (start, end) = (offset as usize, offset as usize + bytes.len());
                assert!(*told <= start, "bytes are told twice");
                let there = all.get(start..end).map(Plaintext::new);
                assert!(there == Some(bytes), "other bytes are at {start}..{end}");
                *told = end;
            }
            Said::Exchange(exchange) => {
                assert!(!ids.contains(&exchange.id), "an exchange is told twice");
                ids.push(exchange.id);
                said.push(format!("{} {:?}", exchange.id, Told::of(exchange)));
            }
            Said::Event { event, number, .. } => {
                said.push(format!("{number} {:?} {:?}", event.name, event.data));
            }
            Said::Message { direction, message } => said.push(format!(
                "{direction:?} {:?} {:?} {}",
                message.kind, message.bytes, message.is_cut
            )),
            Said::Limit(limit) => said.push(format!("{limit:?}")),
            // When it is said depends on the calls.
            Said::Asked(_)
            | Said::Open(_)
            | Said::Part { .. }
            | Said::Head { .. }
            | Said::Body { .. }
            | Said::Hole { .. } => {}
        };
        match step {
            Some(Step::Bytes(side, bytes)) => {
                let piece = Piece {
                    direction: direction_of(*side),
                    offset: (known[*side as usize] - bytes.len()) as u64,
                    bytes: Plaintext::new(bytes),
                    time: 7,
                };
                protocol.feed(piece, Some(Direction::Sent), &mut keep, note);
            }
            Some(Step::Gap(side, length)) => {
                protocol.gap(direction_of(*side), *length, 7, &mut keep, note);
                let bytes = &mut streams[*side as usize].bytes;
                bytes.resize(bytes.len() + *length as usize, 0);
            }
            None => protocol.close(7, &mut keep, note),
        }
        assert!(keep.used() <= BOUNDS.total);
    }
    assert_eq!(keep.used(), 0, "bodies are kept of nobody");
    Played { said, is_astray }
}

fn direction_of(side: Side) -> Direction {
    match side {
        Side::Request => Direction::Sent,
        Side::Response => Direction::Received,
    }
}

fn side_of(direction: Direction) -> Side {
    match direction {
        Direction::Sent => Side::Request,
        Direction::Received => Side::Response,
    }
}
