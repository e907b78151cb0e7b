//! All decoders: any bytes and holes of a connection.
//!
//! They never panic, keep nothing when the connection is over, and tell each exchange once. What is told as data
//! is what the stream has at that place, and told once; lines are those of their body. Without holes, what they say does not depend on how the
//! bytes were cut into calls, unless bytes belonged to no message: where the next one is looked for then depends
//! on it.
//!
//! An input is a byte whose lowest bit says whether the connection is seen from its start, and then calls
//! (see [`steps`]).
#![no_main]

use std::collections::HashMap;

use agent_ebpf::Direction;
use libfuzzer_sys::fuzz_target;
use play::{
    talk::{Step, cut, has_gap, steps},
    told::{BOUNDS, Told},
};
use vortex_agent::{
    plaintext::Plaintext,
    protocol::{
        Protocol, Said, Side,
        exchange::{Exchange, Keep},
    },
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
    let mut lines: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
    let mut is_closed = false;
    for step in steps.iter().map(Some).chain([None]) {
        if let Some(Step::Bytes(side, bytes)) = step {
            streams[*side as usize].bytes.extend_from_slice(bytes);
        }
        let known = streams.each_ref().map(|stream| stream.bytes.len());
        let note = &mut |what: Said<'_>| {
            assert!(!is_closed, "behind the end of the connection");
            match what {
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
                    if let Some(lines) = lines.remove(&exchange.id) {
                        check_lines(&lines, exchange);
                    }
                    said.push(format!("{} {:?}", exchange.id, Told::of(exchange)));
                }
                Said::Event { event, number, .. } => {
                    said.push(format!("{number} {:?} {:?}", event.name, event.data));
                }
                Said::Line { exchange, line, .. } => {
                    let lines = lines.entry(exchange.id).or_default();
                    assert_eq!(line.number, lines.len() as u64);
                    lines.push(line.bytes.to_vec());
                    said.push(format!("{} {line:?}", exchange.id));
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
                Said::Closed => is_closed = true,
            }
        };
        match step {
            Some(step @ Step::Bytes(side, bytes)) => {
                let offset = known[*side as usize] - bytes.len();
                step.play(offset as u64, &mut protocol, &mut keep, note);
            }
            Some(step @ Step::Gap(side, length)) => {
                step.play(0, &mut protocol, &mut keep, note);
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

/// They are what is kept of the body, each once; of holes there may be empty ones.
fn check_lines(told: &[Vec<u8>], exchange: &Exchange) {
    let half = exchange.response().expect("it has lines");
    let told = told
        .iter()
        .map(Vec::as_slice)
        .filter(|line| !is_blank(line));
    let kept = half.body.kept.split(|byte| *byte == b'\n');
    let kept = kept.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    assert!(told.eq(kept.filter(|line| !is_blank(line))), "{exchange:?}");
}

fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

fn side_of(direction: Direction) -> Side {
    match direction {
        Direction::Sent => Side::Request,
        Direction::Received => Side::Response,
    }
}
