//! reassemble: pieces of a stream in any order → its bytes in order, and its gaps.
//!
//! A piece that comes too early is not a gap: two CPUs may submit in the other order. It waits until the
//! kernel explains the hole, or until a second has passed: then the hole's cause is unknown, which is a
//! bug of ours.

use std::collections::BTreeMap;

use crate::{
    plaintext::{Kept, Plaintext},
    planted::Mistake,
    record::Cause,
};

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'a> {
    Bytes {
        offset: u64,
        bytes: Plaintext<'a>,
    },
    Gap {
        offset: u64,
        length: u64,
        cause: Cause,
    },
}

/// Takes what comes out, with the stream as it is then.
pub type Out<'a> = &'a mut dyn FnMut(&Stream, Output<'_>);

/// Longest wait for a hole to be explained, in nanoseconds.
const PATIENCE: u64 = 1_000_000_000;
/// Most bytes that wait in one stream.
const WAITING_LIMIT: usize = 1 << 20;

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Stream {
    /// Position of the first byte that is wanted.
    start: u64,
    /// Position of the next one.
    next: u64,
    /// Bytes that are missing before `next`.
    lost: u64,
    /// Pieces and gaps behind a hole, by position.
    waiting: BTreeMap<u64, Piece>,
    waiting_bytes: usize,
    /// When the oldest of them came.
    waiting_since: u64,
    /// It starts with the next piece that comes, wherever that is.
    joins: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Kept),
    Gap(u64, Cause),
}

impl Stream {
    /// What came before is told of elsewhere.
    pub fn start_at(&mut self, position: u64) {
        self.start = position;
        self.next = position;
        self.joins = false;
    }

    /// What came before was turned away, nobody knows how much: it starts with what comes next.
    pub fn join(&mut self) {
        self.joins = true;
    }

    fn join_at(&mut self, position: u64) {
        if self.joins {
            self.start_at(position);
        }
    }

    /// The end of the last byte that has come. `None`: nothing has, and nobody knows where it will begin.
    pub fn end(&self) -> Option<u64> {
        if self.joins {
            return None;
        }
        let last = self.waiting.last_key_value();
        let last = last.map_or(0, |(offset, piece)| match piece {
            Piece::Bytes(bytes) => offset.saturating_add(bytes.plaintext().len() as u64),
            Piece::Gap(length, _) => offset.saturating_add(*length),
        });
        Some(last.max(self.next))
    }

    /// What waits behind a hole will not be told: how many bytes, and how long the gaps are of each cause.
    pub fn turn_away(&mut self) -> (u64, Vec<(u64, Cause)>) {
        let (mut bytes, mut gaps) = (0, Vec::new());
        for piece in std::mem::take(&mut self.waiting).into_values() {
            match piece {
                Piece::Bytes(kept) => bytes += kept.plaintext().len() as u64,
                Piece::Gap(length, cause) => gaps.push((length, cause)),
            }
        }
        self.waiting_bytes = 0;
        (bytes, gaps)
    }

    /// How many of so many bytes that have come are before its start, which may be here: they may be told later than
    /// what comes next.
    pub fn unwanted(&mut self, offset: u64, length: u64) -> u64 {
        self.join_at(offset);
        self.start.saturating_sub(offset).min(length)
    }

    /// How many of so many bytes at a position nothing was told of yet, neither that they are missing.
    pub fn untold(&self, offset: u64, length: u64) -> u64 {
        let end = offset.saturating_add(length);
        end.saturating_sub(self.next).min(length)
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Has anything of it come out?
    pub fn is_begun(&self) -> bool {
        self.next > self.start
    }

    /// Does anything wait for a hole to be explained?
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Bytes at a position of the stream. `time` is the event's, in nanoseconds.
    pub fn data(&mut self, offset: u64, bytes: Plaintext<'_>, time: u64, out: Out<'_>) {
        self.join_at(offset);
        if offset > self.next {
            self.wait(offset, Piece::Bytes(bytes.keep()), time);
            if self.waiting_bytes > WAITING_LIMIT {
                self.give_up(out);
            }
            return;
        }
        // Known bytes again: a second link on one function delivered them.
        let is_new = Mistake::Pipeline.is_planted();
        let known = if is_new {
            0
        } else {
            (self.next - offset).min(bytes.len() as u64)
        };
        let bytes = bytes.skip(known as usize);
        if !bytes.is_empty() {
            let offset = self.next;
            self.next += bytes.len() as u64;
            out(self, Output::Bytes { offset, bytes });
        }
        self.resume(out);
    }

    /// The kernel says that these bytes will not come.
    pub fn gap(&mut self, offset: u64, length: u64, cause: Cause, time: u64, out: Out<'_>) {
        self.join_at(offset);
        if offset > self.next {
            self.wait(offset, Piece::Gap(length, cause), time);
            return;
        }
        self.miss(offset.saturating_add(length), cause, out);
        self.resume(out);
    }

    /// Is it time to give up on a hole?
    pub fn is_overdue(&self, now: u64) -> bool {
        !self.waiting.is_empty() && now.saturating_sub(self.waiting_since) > PATIENCE
    }

    /// Nobody will explain the holes any more.
    pub fn give_up(&mut self, out: Out<'_>) {
        while let Some((offset, _)) = self.waiting.first_key_value() {
            self.miss(*offset, Cause::Unknown, out);
            self.resume(out);
        }
    }

    fn wait(&mut self, offset: u64, piece: Piece, time: u64) {
        if self.waiting.is_empty() {
            self.waiting_since = time;
        }
        if let Piece::Bytes(bytes) = &piece {
            self.waiting_bytes += bytes.plaintext().len();
        }
        if let Some(Piece::Bytes(replaced)) = self.waiting.insert(offset, piece) {
            self.waiting_bytes -= replaced.plaintext().len();
        }
    }

    /// Everything before `end` that has not come is missing.
    fn miss(&mut self, end: u64, cause: Cause, out: Out<'_>) {
        if end <= self.next {
            return;
        }
        let (offset, length) = (self.next, end - self.next);
        self.next = end;
        self.lost += length;
        out(
            self,
            Output::Gap {
                offset,
                length,
                cause,
            },
        );
    }

    /// What waited and is next now.
    fn resume(&mut self, out: Out<'_>) {
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > self.next {
                return;
            }
            let (offset, piece) = entry.remove_entry();
            match piece {
                Piece::Bytes(kept) => {
                    let bytes = kept.plaintext();
                    self.waiting_bytes -= bytes.len();
                    let known = (self.next - offset).min(bytes.len() as u64) as usize;
                    if known < bytes.len() {
                        let offset = self.next;
                        self.next += (bytes.len() - known) as u64;
                        out(
                            self,
                            Output::Bytes {
                                offset,
                                bytes: bytes.skip(known),
                            },
                        );
                    }
                }
                Piece::Gap(length, cause) => self.miss(offset.saturating_add(length), cause, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Owned {
        Bytes(u64, Vec<u8>),
        Gap(u64, u64, Cause),
    }

    enum Input<'a> {
        Data(u64, &'a [u8]),
        Gap(u64, u64, Cause),
        GiveUp,
    }

    fn run(inputs: &[Input<'_>]) -> Vec<Owned> {
        let mut stream = Stream::default();
        let mut seen = Vec::new();
        let mut out = |_: &Stream, output: Output<'_>| {
            seen.push(match output {
                Output::Bytes { offset, bytes } => Owned::Bytes(offset, bytes.reveal().to_vec()),
                Output::Gap {
                    offset,
                    length,
                    cause,
                } => Owned::Gap(offset, length, cause),
            });
        };
        for input in inputs {
            match input {
                Input::Data(offset, bytes) => {
                    stream.data(*offset, Plaintext::new(bytes), 0, &mut out);
                }
                Input::Gap(offset, length, cause) => {
                    stream.gap(*offset, *length, *cause, 0, &mut out)
                }
                Input::GiveUp => stream.give_up(&mut out),
            }
        }
        seen
    }

    #[test]
    fn pieces_in_any_order_come_out_in_order() {
        let orders = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        let pieces = [(0, &b"abc"[..]), (3, b"de"), (5, b"f")];
        for order in orders {
            let inputs = order.map(|i| Input::Data(pieces[i].0, pieces[i].1));
            let bytes: Vec<u8> = run(&inputs)
                .into_iter()
                .flat_map(|owned| match owned {
                    Owned::Bytes(_, bytes) => bytes,
                    gap => panic!("{gap:?}"),
                })
                .collect();
            assert_eq!(bytes, b"abcdef", "{order:?}");
        }
    }

    #[test]
    fn one_that_joins_starts_with_the_first_that_comes() {
        let mut stream = Stream::default();
        stream.join();
        assert_eq!(stream.end(), None);
        assert_eq!(stream.unwanted(10, 6), 0);
        assert_eq!(stream.end(), Some(10));
        // Before anything of it was told.
        assert_eq!(stream.unwanted(0, 5), 5);
        assert_eq!(stream.unwanted(5, 7), 5);
        assert_eq!((stream.untold(5, 7), stream.untold(5, 5)), (2, 0));
        assert_eq!(stream.untold(12, 3), 3);
    }

    #[test]
    fn a_gap_is_said_once_and_in_its_place() {
        let expected = [
            Owned::Bytes(0, b"ab".into()),
            Owned::Gap(2, 3, Cause::RingFull),
            Owned::Bytes(5, b"f".into()),
        ];
        let gap = || Input::Gap(2, 3, Cause::RingFull);
        assert_eq!(
            run(&[Input::Data(0, b"ab"), gap(), Input::Data(5, b"f")]),
            expected
        );
        assert_eq!(
            run(&[Input::Data(0, b"ab"), Input::Data(5, b"f"), gap(), gap()]),
            expected
        );
        assert_eq!(
            run(&[gap(), Input::Data(0, b"ab"), Input::Data(5, b"f")]),
            expected
        );
    }

    #[test]
    fn a_gap_that_grew_is_only_what_is_new() {
        assert_eq!(
            run(&[
                Input::Gap(0, 3, Cause::RingFull),
                Input::Gap(0, 5, Cause::RingFull)
            ]),
            [
                Owned::Gap(0, 3, Cause::RingFull),
                Owned::Gap(3, 2, Cause::RingFull)
            ]
        );
    }

    #[test]
    fn known_bytes_are_dropped() {
        assert_eq!(
            run(&[
                Input::Data(0, b"abc"),
                Input::Data(0, b"abc"),
                Input::Data(1, b"bcd")
            ]),
            [Owned::Bytes(0, b"abc".into()), Owned::Bytes(3, b"d".into())]
        );
    }

    #[test]
    fn a_hole_that_nobody_explains_is_unknown() {
        assert_eq!(
            run(&[Input::Data(2, b"c"), Input::GiveUp]),
            [
                Owned::Gap(0, 2, Cause::Unknown),
                Owned::Bytes(2, b"c".into())
            ]
        );
    }

    #[test]
    fn what_waits_is_bounded() {
        let big = vec![0; WAITING_LIMIT];
        let seen = run(&[
            Input::Data(10, &big),
            Input::Data(WAITING_LIMIT as u64 + 20, b"x"),
        ]);
        assert_eq!(seen.len(), 4, "two gaps, two pieces");
    }
}
