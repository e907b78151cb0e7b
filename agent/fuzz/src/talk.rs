//! A connection as the decoders get it: calls and holes of its two sides.

use agent_ebpf::Direction;
use flate2::Crc;
use vortex_agent::{
    plaintext::Plaintext,
    protocol::{Piece, Protocol, Said, Side, exchange::Keep},
};

#[derive(Clone, Debug)]
pub enum Step {
    Bytes(Side, Vec<u8>),
    Gap(Side, u64),
}

impl Step {
    /// `offset`: of the bytes in their stream. Who is watched asks.
    pub fn play(
        &self,
        offset: u64,
        protocol: &mut Protocol,
        keep: &mut Keep,
        hear: &mut dyn FnMut(Said<'_>),
    ) {
        match self {
            Step::Bytes(side, bytes) => {
                let piece = Piece {
                    direction: direction_of(*side),
                    offset,
                    bytes: Plaintext::new(bytes),
                    time: 7,
                };
                protocol.feed(piece, Some(Direction::Sent), keep, hear);
            }
            Step::Gap(side, length) => {
                protocol.gap(direction_of(*side), *length, 7, keep, hear);
            }
        }
    }
}

/// Of what this side says, seen from who asks.
pub fn direction_of(side: Side) -> Direction {
    match side {
        Side::Request => Direction::Sent,
        Side::Response => Direction::Received,
    }
}

/// The same calls again and again, until they have about so many bytes.
pub fn over_and_over(steps: &[Step], bytes: usize) -> impl Iterator<Item = &Step> {
    let size = steps.iter().map(|step| match step {
        Step::Bytes(_, bytes) => bytes.len(),
        Step::Gap(..) => 1,
    });
    let rounds = bytes / size.sum::<usize>().max(64);
    (0..rounds).flat_map(move |_| steps)
}

/// Any calls: a byte (lowest bit: side, next: a hole), two of length, and the bytes, unless they are missing.
pub fn steps(script: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = script;
    while let [flags, low, high, behind @ ..] = rest {
        let side = match flags & 1 {
            0 => Side::Request,
            _ => Side::Response,
        };
        let length = u16::from_le_bytes([*low, *high]);
        rest = behind;
        if flags & 2 != 0 {
            steps.push(Step::Gap(side, length.into()));
            continue;
        }
        let (bytes, behind) = rest.split_at(rest.len().min(length.into()));
        rest = behind;
        if !bytes.is_empty() {
            steps.push(Step::Bytes(side, bytes.to_vec()));
        }
    }
    steps
}

pub fn has_gap(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, Step::Gap(..)))
}

/// The same bytes in other calls: so many more than one in each.
pub fn cut(steps: &[Step], cuts: [u8; 4]) -> Vec<Step> {
    let mut cut = Vec::new();
    for step in steps {
        match step {
            Step::Bytes(side, bytes) => {
                let pieces = pieces(bytes, cuts);
                cut.extend(pieces.map(|piece| Step::Bytes(*side, piece.to_vec())));
            }
            gap => cut.push(gap.clone()),
        }
    }
    cut
}

/// The same of one body.
pub fn pieces(bytes: &[u8], cuts: [u8; 4]) -> impl Iterator<Item = &[u8]> {
    let mut lengths = cuts.into_iter().cycle();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(lengths.next()?) + 1;
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Calls one of which has a hole.
pub fn with_hole(steps: &[Step], at: usize, hole: std::ops::Range<usize>) -> Vec<Step> {
    let Step::Bytes(side, bytes) = &steps[at] else {
        return steps.to_vec();
    };
    let mut torn = steps[..at].to_vec();
    torn.push(Step::Bytes(*side, bytes[..hole.start].to_vec()));
    torn.push(Step::Gap(*side, hole.len() as u64));
    torn.push(Step::Bytes(*side, bytes[hole.end..].to_vec()));
    torn.extend_from_slice(&steps[at + 1..]);
    torn
}

/// A message of Amazon's event stream, whole.
pub fn framed(headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let sum = |bytes: &mut Vec<u8>| {
        let mut crc = Crc::new();
        crc.update(bytes);
        bytes.extend(crc.sum().to_be_bytes());
    };
    bytes.extend((16 + headers.len() as u32 + payload.len() as u32).to_be_bytes());
    bytes.extend((headers.len() as u32).to_be_bytes());
    sum(&mut bytes);
    bytes.extend(headers);
    bytes.extend(payload);
    sum(&mut bytes);
    bytes
}
