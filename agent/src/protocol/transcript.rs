//! What a decoder said, as lines: for tests.

use super::{Message, Side, head::Head};

/// A step of a connection.
#[derive(Clone, Copy)]
pub enum Wire<'a> {
    Bytes(Side, &'a [u8]),
    Gap(Side, u64),
}

/// Plays a connection to a decoder, and its end as `None`.
pub fn run<'a>(
    wire: &[Wire<'a>],
    mut play: impl FnMut(Option<Wire<'a>>, &mut dyn FnMut(Message<'_>)),
) -> Vec<String> {
    let mut said = Transcript::default();
    for step in wire.iter().copied().map(Some).chain([None]) {
        play(step, &mut |message| said.note(message));
    }
    said.lines
}

/// The connection with one of its calls cut in two, each in each place.
pub fn cuts<'a>(wire: &[Wire<'a>]) -> Vec<Vec<Wire<'a>>> {
    let mut all = Vec::new();
    for (at, step) in wire.iter().enumerate() {
        let Wire::Bytes(side, bytes) = *step else {
            continue;
        };
        for cut in 1..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let halves = [Wire::Bytes(side, first), Wire::Bytes(side, second)];
            all.push([&wire[..at], &halves, &wire[at + 1..]].concat());
        }
    }
    all
}

/// Each call one byte.
pub fn bytewise<'a>(wire: &[Wire<'a>]) -> Vec<Wire<'a>> {
    let calls = wire.iter().flat_map(|step| match *step {
        Wire::Bytes(side, bytes) => bytes
            .chunks(1)
            .map(|byte| Wire::Bytes(side, byte))
            .collect(),
        gap => vec![gap],
    });
    calls.collect()
}

/// A body is one line, however it was cut.
#[derive(Default)]
struct Transcript {
    lines: Vec<String>,
    bodies: Vec<(u64, Side, Vec<u8>)>,
}

impl Transcript {
    fn note(&mut self, message: Message<'_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = match message {
            Message::Head {
                exchange,
                head: Head::Request(head),
                ..
            } => format!(
                "{exchange} {} {}",
                text(&head.method.unwrap_or_default()),
                text(&head.target.unwrap_or_default())
            ),
            Message::Head {
                exchange,
                head: Head::Response(head),
                ..
            } => format!("{exchange} {}", head.status.unwrap_or_default()),
            Message::Body {
                exchange,
                side,
                bytes,
            } => {
                let body = self
                    .bodies
                    .iter_mut()
                    .find(|(known, of, _)| (*known, *of) == (exchange, side));
                match body {
                    Some((.., body)) => body.extend_from_slice(bytes.reveal()),
                    None => self.bodies.push((exchange, side, bytes.reveal().to_vec())),
                }
                return;
            }
            Message::Hole {
                exchange,
                side,
                length,
                ..
            } => format!("{exchange} {side} -{length}"),
            Message::Trailers {
                exchange, fields, ..
            } => format!("{exchange} trailers {}", fields.len()),
            Message::End {
                exchange,
                side,
                is_whole,
            } => {
                let known = self
                    .bodies
                    .iter()
                    .position(|(known, of, _)| (*known, *of) == (exchange, side));
                let body = known.map(|at| self.bodies.remove(at).2).unwrap_or_default();
                let cut = if is_whole { "" } else { " cut" };
                format!("{exchange} {side} [{}]{cut}", text(&body))
            }
            Message::Undecoded { side, bytes, .. } => {
                // Where it is cut says nothing.
                let more = text(bytes.reveal());
                let begun = format!("{side} ?");
                match self.lines.last_mut() {
                    Some(last) if last.starts_with(&begun) => return last.push_str(&more),
                    _ => format!("{begun}{more}"),
                }
            }
            Message::Limit(limit) => format!("{limit:?} limit"),
        };
        self.lines.push(line);
    }
}
